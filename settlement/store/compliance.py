"""Compliance cases, decisions and quotas. A resident is known here by a keyed hash alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from kernel.ids import new_uuid7
from settlement.domain.compliance import QuotaDirection
from settlement.domain.escrow import SettlementState
from settlement.store import compliance_tables as c
from settlement.store import tables as t
from settlement.store.gates import GateKind

REASON_LENGTH_MAX = 500
VERSIONS_LENGTH_MAX = 500
KEYS_MAX = 1_000
"""In one statement."""


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """`decided_by` is a screen's name or an officer's."""

    id: UUID
    settlement: UUID
    verdict: str
    """pass, review or refuse of a screen; approve or reject of an officer."""
    decided_by: str
    is_officer: bool
    key_thumbprint: str | None
    versions: str
    reason: str
    decided_at: datetime
    institutions: Mapping[str, str] | None = None
    """A screen's verdict on each institution of the legs; None of an officer's decision, which is of the whole."""


@dataclass(frozen=True, slots=True)
class CaseRow:
    settlement: UUID
    state: str
    """review or refused while it is open; approved, rejected, refused or lapsed when it is closed."""
    reason: str
    parties: dict[str, Any]
    opened_at: datetime
    closed_at: datetime | None


@dataclass(frozen=True, slots=True)
class QuotaKey:
    rule: str
    direction: QuotaDirection
    resident: bytes
    """HMAC-SHA-256."""
    year: int


def insert_decisions(connection: sa.Connection, rows: Sequence[DecisionRow]) -> None:
    if rows:
        connection.execute(
            c.compliance_decision.insert(),
            [
                {
                    "id": row.id,
                    "settlement_id": row.settlement,
                    "verdict": row.verdict,
                    "decided_by": row.decided_by,
                    "is_officer": row.is_officer,
                    "key_thumbprint": row.key_thumbprint,
                    "versions": row.versions[:VERSIONS_LENGTH_MAX],
                    "reason": row.reason[:REASON_LENGTH_MAX],
                    "decided_at": row.decided_at,
                    "institutions": None if row.institutions is None else dict(row.institutions),
                }
                for row in rows
            ],
        )


def insert_cases(connection: sa.Connection, rows: Sequence[CaseRow]) -> None:
    if rows:
        connection.execute(
            c.compliance_case.insert(),
            [
                {
                    "settlement_id": row.settlement,
                    "state": row.state,
                    "reason": row.reason[:REASON_LENGTH_MAX],
                    "parties": row.parties,
                    "opened_at": row.opened_at,
                    "closed_at": row.closed_at,
                }
                for row in rows
            ],
        )


def lock_case(connection: sa.Connection, settlement: UUID) -> CaseRow | None:
    row = connection.execute(
        sa.select(c.compliance_case).where(c.compliance_case.c.settlement_id == settlement).with_for_update()
    ).one_or_none()
    return None if row is None else _case(row)


def find_case(connection: sa.Connection, settlement: UUID) -> CaseRow | None:
    row = connection.execute(
        sa.select(c.compliance_case).where(c.compliance_case.c.settlement_id == settlement)
    ).one_or_none()
    return None if row is None else _case(row)


def open_cases(connection: sa.Connection, *, after: UUID | None, limit: int) -> list[CaseRow]:
    """Oldest first (settlement ids are time-ordered)."""
    statement = sa.select(c.compliance_case).where(c.compliance_case.c.closed_at.is_(None))
    if after is not None:
        statement = statement.where(c.compliance_case.c.settlement_id > after)
    rows = connection.execute(statement.order_by(c.compliance_case.c.settlement_id).limit(limit))
    return [_case(row) for row in rows]


def close_cases(connection: sa.Connection, settlements: Sequence[UUID], *, state: str, now: datetime) -> None:
    connection.execute(
        c.compliance_case.update()
        .where(c.compliance_case.c.settlement_id.in_(settlements), c.compliance_case.c.closed_at.is_(None))
        .values(state=state, closed_at=now)
    )


def refused_cases(connection: sa.Connection, *, limit: int) -> list[CaseRow]:
    """Refused by a screen and not ended yet; locked."""
    rows = connection.execute(
        sa.select(c.compliance_case)
        .where(c.compliance_case.c.state == "refused", c.compliance_case.c.closed_at.is_(None))
        .order_by(c.compliance_case.c.settlement_id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [_case(row) for row in rows]


def lapse_cases(connection: sa.Connection, *, now: datetime, limit: int) -> int:
    """Close the cases of settlements that ended in another way: given up by the operator, recalled, past their day."""
    ended = (
        sa.select(c.compliance_case.c.settlement_id)
        .join(t.settlement, t.settlement.c.id == c.compliance_case.c.settlement_id)
        .where(c.compliance_case.c.closed_at.is_(None), c.compliance_case.c.state == "review")
        .where(t.settlement.c.state != SettlementState.RECEIVED.value)
        .order_by(c.compliance_case.c.settlement_id)
        .limit(limit)
    )
    closing = c.compliance_case.update().where(c.compliance_case.c.settlement_id.in_(ended))
    return connection.execute(closing.values(state="lapsed", closed_at=now)).rowcount


def decisions_of(connection: sa.Connection, settlements: Sequence[UUID]) -> dict[UUID, list[DecisionRow]]:
    """Of each, oldest first."""
    rows = connection.execute(
        sa.select(c.compliance_decision)
        .where(c.compliance_decision.c.settlement_id.in_(settlements))
        .order_by(c.compliance_decision.c.id)
    )
    found: dict[UUID, list[DecisionRow]] = {key: [] for key in settlements}
    for row in rows:
        found[row.settlement_id].append(_decision(row))
    return found


def decisions_page(
    connection: sa.Connection, *, settlement: UUID | None, after: UUID | None, limit: int
) -> list[DecisionRow]:
    """Oldest first."""
    statement = sa.select(c.compliance_decision)
    if settlement is not None:
        statement = statement.where(c.compliance_decision.c.settlement_id == settlement)
    if after is not None:
        statement = statement.where(c.compliance_decision.c.id > after)
    return [_decision(row) for row in connection.execute(statement.order_by(c.compliance_decision.c.id).limit(limit))]


def screened_institutions(connection: sa.Connection, settlement: UUID) -> frozenset[str]:
    """Who passed the screens of this settlement, or is in a review of it, which officers judge as a whole."""
    found: set[str] = set()
    for row in decisions_of(connection, [settlement])[settlement]:
        found.update(
            party
            for party, verdict in (row.institutions or {}).items()
            if verdict == "pass" or (verdict == "review" and row.verdict == "review")
        )
    return frozenset(found)


def is_gate_closed(connection: sa.Connection, settlement: UUID) -> bool:
    where = (t.gate.c.settlement_id == settlement) & (t.gate.c.kind == GateKind.COMPLIANCE.value)
    return connection.execute(sa.select(sa.exists().where(where, t.gate.c.opened_at.is_(None)))).scalar_one()


# --- quota


def lock_years(connection: sa.Connection, limits: Mapping[QuotaKey, int], /) -> dict[QuotaKey, Fraction]:
    """What each resident has used, exactly; the rows are made if need be and locked, in one order for everybody.

    `limits` in minor units: of a row that is there already the limit is brought up to date, unless more is used.
    """
    keys = sorted(limits, key=_order)
    used: dict[QuotaKey, Fraction] = {}
    for start in range(0, len(keys), KEYS_MAX):
        chunk = keys[start : start + KEYS_MAX]
        connection.execute(
            insert(c.quota_year).on_conflict_do_nothing(),
            [{**_key(key), "limit_minor": limits[key], "used_numerator": 0, "used_denominator": 1} for key in chunk],
        )
        columns = [c.quota_year.c[name] for name in ("rule", "direction", "resident", "year")]
        wanted = [tuple(_key(key).values()) for key in chunk]
        rows = connection.execute(
            sa.select(c.quota_year).where(sa.tuple_(*columns).in_(wanted)).order_by(*columns).with_for_update()
        ).all()
        for row in rows:
            key = QuotaKey(row.rule, QuotaDirection(row.direction), bytes(row.resident), row.year)
            used[key] = Fraction(int(row.used_numerator), int(row.used_denominator))
            if row.limit_minor != limits[key] and used[key] <= limits[key]:
                changed = c.quota_year.update().where(_is(c.quota_year, key))
                connection.execute(changed.values(limit_minor=limits[key]))
    return used


def reserve(
    connection: sa.Connection,
    uses: Mapping[QuotaKey, Mapping[UUID, Fraction]],
    *,
    used: Mapping[QuotaKey, Fraction],
    now: datetime,
) -> None:
    """Count these settlements; `used` are the sums with them. `lock_years` has locked the rows, whose CHECKs agree."""
    if not uses:
        return
    _set_used(connection, {key: used[key] for key in uses})
    connection.execute(
        c.quota_use.insert(),
        [
            {
                "settlement_id": settlement,
                **_key(key),
                "numerator": counted.numerator,
                "denominator": counted.denominator,
                "state": "reserved",
                "reserved_at": now,
            }
            for key, counts in uses.items()
            for settlement, counted in counts.items()
        ],
    )


def end_uses(connection: sa.Connection, *, now: datetime, limit: int) -> int:
    """Quotas of settled settlements are used for good; those of cancelled ones are given back, once."""
    ended = (SettlementState.SETTLED.value, SettlementState.CANCELLED.value)
    rows = connection.execute(
        sa.select(c.quota_use, t.settlement.c.state.label("ended_as"))
        .join(t.settlement, t.settlement.c.id == c.quota_use.c.settlement_id)
        .where(c.quota_use.c.state == "reserved", t.settlement.c.state.in_(ended))
        .order_by(c.quota_use.c.settlement_id)
        .limit(limit)
        .with_for_update(of=c.quota_use, skip_locked=True)
    ).all()
    back: dict[QuotaKey, Fraction] = {}
    for row in rows:
        if row.ended_as == SettlementState.CANCELLED.value:
            key = QuotaKey(row.rule, QuotaDirection(row.direction), bytes(row.resident), row.year)
            counted = Fraction(int(row.numerator), int(row.denominator))
            back[key] = back.get(key, Fraction(0)) + counted
    left: dict[QuotaKey, Fraction] = {}
    for key in sorted(back, key=_order):
        found = connection.execute(sa.select(c.quota_year).where(_is(c.quota_year, key)).with_for_update()).one()
        left[key] = Fraction(int(found.used_numerator), int(found.used_denominator)) - back[key]
    _set_used(connection, left)
    for ended_as, state in ((SettlementState.SETTLED, "used"), (SettlementState.CANCELLED, "released")):
        ids = [row.settlement_id for row in rows if row.ended_as == ended_as.value]
        if ids:
            connection.execute(
                c.quota_use.update()
                .where(c.quota_use.c.settlement_id.in_(ids), c.quota_use.c.state == "reserved")
                .values(state=state, ended_at=now)
            )
    return len(rows)


def find_used(connection: sa.Connection, key: QuotaKey) -> Fraction:
    row = connection.execute(sa.select(c.quota_year).where(_is(c.quota_year, key))).one_or_none()
    return Fraction(0) if row is None else Fraction(int(row.used_numerator), int(row.used_denominator))


def _set_used(connection: sa.Connection, used: Mapping[QuotaKey, Fraction]) -> None:
    names = ("rule", "direction", "resident", "year")
    if used:
        connection.execute(
            c.quota_year.update()
            .where(*(c.quota_year.c[name] == sa.bindparam(f"of_{name}") for name in names))
            .values(used_numerator=sa.bindparam("new_numerator"), used_denominator=sa.bindparam("new_denominator")),
            [
                {f"of_{name}": value for name, value in _key(key).items()}
                | {"new_numerator": value.numerator, "new_denominator": value.denominator}
                for key, value in used.items()
            ],
        )


def _order(key: QuotaKey) -> tuple[str, str, bytes, int]:
    return key.rule, key.direction.value, key.resident, key.year


def _key(key: QuotaKey) -> dict[str, Any]:
    return {"rule": key.rule, "direction": key.direction.value, "resident": key.resident, "year": key.year}


def _is(table: sa.Table, key: QuotaKey) -> sa.ColumnElement[bool]:
    return sa.and_(*(table.c[name] == value for name, value in _key(key).items()))


def _case(row: sa.Row[tuple[Any, ...]]) -> CaseRow:
    return CaseRow(row.settlement_id, row.state, row.reason, row.parties, row.opened_at, row.closed_at)


def _decision(row: sa.Row[tuple[Any, ...]]) -> DecisionRow:
    return DecisionRow(
        row.id,
        row.settlement_id,
        row.verdict,
        row.decided_by,
        row.is_officer,
        row.key_thumbprint,
        row.versions,
        row.reason,
        row.decided_at,
        row.institutions,
    )


def screen_decision(
    settlement: UUID,
    *,
    verdict: str,
    by: str,
    versions: str,
    reason: str,
    institutions: Mapping[str, str],
    now: datetime,
) -> DecisionRow:
    return DecisionRow(new_uuid7(), settlement, verdict, by, False, None, versions, reason, now, institutions)
