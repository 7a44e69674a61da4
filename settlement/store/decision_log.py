"""What the engine writes and reads: secrets, legs, the decision log, and the lease that fences it.

Every write first compares the engine's epoch with the lease row, in the same transaction, and locks that row: a deposed
engine can write nothing, and whoever takes the lease waits until a write under way has committed or failed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from kernel.database import Database
from kernel.errors import InvariantBroken
from kernel.ids import AccountNumber, ParticipantId
from kernel.money import Currency, Money
from settlement.domain.escrow import (
    Decision,
    DecisionRecord,
    HoldOrder,
    Leg,
    LegState,
    LegTerms,
    Secrets,
    SettlementState,
    state_after,
)
from settlement.domain.refusals import AbortReason
from settlement.store import tables as t

LEASE_NAME = "engine"


class Deposed(Exception):
    """Another engine has taken the lease: this one may decide and write nothing any more."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """A settlement as the engine works on it. `hold_orders` are its legs' holds, in the order of `legs`."""

    id: UUID
    uetr: UUID
    commit_hash: bytes
    abort_hash: bytes
    legs: tuple[Leg, ...]

    @property
    def hold_orders(self) -> tuple[HoldOrder, ...]:
        return tuple(self.hold_order(leg) for leg in self.legs)

    def hold_order(self, leg: Leg) -> HoldOrder:
        return HoldOrder(leg.hold_id, leg.terms, self.uetr, self.commit_hash, self.abort_hash)


@dataclass(frozen=True, slots=True)
class Decided:
    """A settlement with its decision and the one secret that may be published."""

    settlement: Settlement
    decision: Decision
    secret: bytes

    def __repr__(self) -> str:
        return f"Decided({self.settlement.id}, {self.decision.value})"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision to be written."""

    settlement: UUID
    decision: Decision
    reason: AbortReason | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class LegUpdate:
    settlement: UUID
    number: int
    state: LegState
    detail: str = ""
    authorisation: str | None = None


class DecisionLog:
    def __init__(self, database: Database) -> None:
        self._database = database

    # --- the lease

    def take_lease(self, *, holder: str, now: datetime) -> int:
        """Depose whoever holds the lease and return the new epoch. Safe at any moment: see the module's docstring."""
        taken = insert(t.lease).values(name=LEASE_NAME, epoch=1, holder=holder, renewed_at=now)
        statement = taken.on_conflict_do_update(
            index_elements=["name"],
            set_={
                "epoch": t.lease.c.epoch + 1,
                "holder": taken.excluded.holder,
                "renewed_at": taken.excluded.renewed_at,
            },
        ).returning(t.lease.c.epoch)
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            return int(connection.execute(statement).scalar_one())

    def renew_lease(self, *, epoch: int, now: datetime) -> None:
        """Raises: Deposed."""
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            _fence(connection, epoch, now)

    def lease(self) -> tuple[int, str, datetime] | None:
        """(epoch, holder, renewed at), for a standby that waits."""
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            row = connection.execute(sa.select(t.lease.c.epoch, t.lease.c.holder, t.lease.c.renewed_at)).one_or_none()
        return None if row is None else (row.epoch, row.holder, row.renewed_at)

    # --- step 1

    def received(self, *, limit: int, without_payers: Collection[str] = ()) -> list[UUID]:
        """The next settlements of started batches: by priority, then in the order of their submission.

        Those with a leg of one of `without_payers` wait.
        """
        statement = (
            sa.select(t.settlement.c.id)
            .join(t.batch)
            .where(t.settlement.c.state == SettlementState.RECEIVED.value, t.batch.c.started_at.is_not(None))
            .order_by(t.settlement.c.priority, t.settlement.c.batch_id, t.settlement.c.position)
            .limit(limit)
        )
        if without_payers:
            slow = sa.exists().where(
                t.leg.c.settlement_id == t.settlement.c.id, t.leg.c.payer.in_(sorted(without_payers))
            )
            statement = statement.where(~slow)
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            return list(connection.execute(statement).scalars())

    def persist(self, secrets: Mapping[UUID, Secrets], *, epoch: int, now: datetime) -> list[Settlement]:
        """Step 1: store fresh secrets and hashes of received settlements. Nothing was sent to anybody before this.

        Settlements that are no longer `received` are left out. Raises: Deposed.
        """
        ids = sorted(secrets)
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            _fence(connection, epoch, now)
            open_ids = set(
                connection.execute(
                    sa.select(t.settlement.c.id)
                    .where(t.settlement.c.id.in_(ids), t.settlement.c.state == SettlementState.RECEIVED.value)
                    .order_by(t.settlement.c.id)
                    .with_for_update()
                ).scalars()
            )
            if not open_ids:
                return []
            rows = [
                {"settlement_id": key, "commit_secret": secrets[key].commit, "abort_secret": secrets[key].abort}
                for key in ids
                if key in open_ids
            ]
            connection.execute(t.secret.insert(), rows)
            connection.execute(
                t.settlement.update()
                .where(t.settlement.c.id == sa.bindparam("key"))
                .values(
                    state=SettlementState.PREPARED.value,
                    epoch=epoch,
                    prepared_at=now,
                    commit_hash=sa.bindparam("new_commit_hash"),
                    abort_hash=sa.bindparam("new_abort_hash"),
                ),
                [
                    {
                        "key": key,
                        "new_commit_hash": secrets[key].commit_hash,
                        "new_abort_hash": secrets[key].abort_hash,
                    }
                    for key in ids
                    if key in open_ids
                ],
            )
            return _load(connection, t.settlement.c.id.in_(open_ids))

    # --- step 2

    def record_legs(self, updates: Sequence[LegUpdate], *, epoch: int, now: datetime) -> None:
        """What is now known of undecided legs. Raises: Deposed."""
        if not updates:
            return
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            _fence(connection, epoch, now)
            connection.execute(
                t.leg.update()
                .where(t.leg.c.settlement_id == sa.bindparam("key"), t.leg.c.number == sa.bindparam("leg_number"))
                .where(t.leg.c.decision.is_(None))
                .values(
                    state=sa.bindparam("new_state"),
                    detail=sa.bindparam("new_detail"),
                    authorisation=sa.func.coalesce(
                        sa.bindparam("new_authorisation", type_=sa.Text), t.leg.c.authorisation
                    ),
                ),
                [
                    {
                        "key": update.settlement,
                        "leg_number": update.number,
                        "new_state": update.state.value,
                        "new_detail": update.detail[:300],
                        "new_authorisation": update.authorisation,
                    }
                    for update in sorted(updates, key=lambda update: (update.settlement, update.number))
                ],
            )

    def record_waits(self, waits: Mapping[UUID, str], *, epoch: int, now: datetime) -> None:
        """What settlements in doubt wait for, for people to see. Raises: Deposed."""
        if not waits:
            return
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            _fence(connection, epoch, now)
            connection.execute(
                t.settlement.update()
                .where(t.settlement.c.id == sa.bindparam("key"))
                .values(waits_for=sa.bindparam("new_waits_for")),
                [{"key": key, "new_waits_for": waits[key][:300]} for key in sorted(waits)],
            )

    # --- step 3

    def decide(self, verdicts: Sequence[Verdict], *, epoch: int, now: datetime) -> None:
        """Step 3: the decisions, durable and final when this returns. Undecided secrets are erased with it.

        A settlement that is decided already keeps its decision. `kernel.database.OutcomeUnknown` says what it says:
        read the log back. Raises: Deposed, InvariantBroken.
        """
        if not verdicts:
            return
        by_id = {verdict.settlement: verdict for verdict in sorted(verdicts, key=lambda verdict: verdict.settlement)}
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            _fence(connection, epoch, now)
            written = set(
                connection.execute(
                    insert(t.decision)
                    .values(
                        [
                            {
                                "settlement_id": verdict.settlement,
                                "decision": verdict.decision.value,
                                "epoch": epoch,
                                "decided_at": now,
                                "reason": None if verdict.reason is None else verdict.reason.value,
                                "detail": verdict.detail[:300],
                            }
                            for verdict in by_id.values()
                        ]
                    )
                    .on_conflict_do_nothing()
                    .returning(t.decision.c.settlement_id)
                ).scalars()
            )
            for decision in Decision:
                ids = [key for key in by_id if key in written and by_id[key].decision is decision]
                if ids:
                    _settle_decision(connection, decision, ids, epoch=epoch)

    def decisions(self, ids: Sequence[UUID]) -> dict[UUID, DecisionRecord]:
        statement = sa.select(t.decision).where(t.decision.c.settlement_id.in_(ids))
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            rows = connection.execute(statement).all()
        return {
            row.settlement_id: DecisionRecord(
                row.settlement_id, Decision(row.decision), row.decided_at, row.epoch, row.reason, row.detail
            )
            for row in rows
        }

    # --- steps 4 and 5

    def undecided_of_others(self, *, epoch: int) -> list[UUID]:
        """Step 5: what earlier engines prepared and never decided: presumed aborted."""
        statement = (
            sa.select(t.settlement.c.id)
            .where(t.settlement.c.state == SettlementState.PREPARED.value, t.settlement.c.epoch < epoch)
            .order_by(t.settlement.c.id)
        )
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            return list(connection.execute(statement).scalars())

    def unfinished(self, ids: Sequence[UUID] | None = None, *, limit: int = 10_000) -> list[Decided]:
        """Step 4: decided settlements with a leg that is not ended, each with the one secret its decision names."""
        where: sa.ColumnElement[bool] = t.settlement.c.state.in_(
            [SettlementState.COMMITTED.value, SettlementState.ABORTED.value]
        )
        if ids is not None:
            where = where & t.settlement.c.id.in_(ids)
        with self._database.transaction(isolation="REPEATABLE READ") as connection:
            found = _load(connection, where, limit=limit)
            keys = [item.id for item in found]
            # The join is the rule: a secret is read only under the decision that publishes it.
            of_commit, of_abort = t.decision.c.decision == "commit", t.decision.c.decision == "abort"
            published = sa.case((of_commit, t.secret.c.commit_secret), (of_abort, t.secret.c.abort_secret))
            rows = connection.execute(
                sa.select(t.decision.c.settlement_id, t.decision.c.decision, published.label("secret"))
                .join(t.secret, t.secret.c.settlement_id == t.decision.c.settlement_id)
                .where(t.decision.c.settlement_id.in_(keys))
            ).all()
        by_id = {row.settlement_id: row for row in rows}
        decided = []
        for item in found:
            row = by_id.get(item.id)
            if row is None or row.secret is None:
                raise InvariantBroken("I5", f"settlement {item.id} is decided and lacks its decision or secret")
            decided.append(Decided(item, Decision(row.decision), bytes(row.secret)))
        return decided

    def record_ends(
        self, ends: Mapping[UUID, tuple[Decision, Mapping[int, datetime]]], *, epoch: int, now: datetime
    ) -> dict[UUID, SettlementState]:
        """Step 4: which legs (by number) are posted or voided, and when. Returns where each settlement stands.

        Raises: Deposed.
        """
        if not ends:
            return {}
        rows = [
            {
                "key": key,
                "leg_number": number,
                "new_state": (LegState.POSTED if decision is Decision.COMMIT else LegState.VOIDED).value,
                "new_ended_at": ended_at,
            }
            for key, (decision, ended) in sorted(ends.items())
            for number, ended_at in sorted(ended.items())
        ]
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            _fence(connection, epoch, now)
            if rows:
                connection.execute(
                    t.leg.update()
                    .where(t.leg.c.settlement_id == sa.bindparam("key"), t.leg.c.number == sa.bindparam("leg_number"))
                    .where(t.leg.c.ended_at.is_(None))
                    .values(state=sa.bindparam("new_state"), ended_at=sa.bindparam("new_ended_at")),
                    rows,
                )
            states: dict[UUID, list[LegState]] = {}
            found = connection.execute(
                sa.select(t.leg.c.settlement_id, t.leg.c.state).where(t.leg.c.settlement_id.in_(list(ends)))
            )
            for row in found:
                states.setdefault(row.settlement_id, []).append(LegState(row.state))
            after = {key: state_after(ends[key][0], legs) for key, legs in states.items()}
            for state in (SettlementState.SETTLED, SettlementState.CANCELLED):
                done = sorted(key for key, reached in after.items() if reached is state)
                if done:
                    connection.execute(
                        t.settlement.update()
                        .where(t.settlement.c.id.in_(done), t.settlement.c.ended_at.is_(None))
                        .values(state=state.value, ended_at=now, waits_for="")
                    )
            return after


def _fence(connection: sa.Connection, epoch: int, now: datetime) -> None:
    held = connection.execute(
        t.lease.update().where(t.lease.c.name == LEASE_NAME, t.lease.c.epoch == epoch).values(renewed_at=now)
    )
    if held.rowcount != 1:
        raise Deposed(f"epoch {epoch} no longer holds the lease")


def _settle_decision(connection: sa.Connection, decision: Decision, ids: list[UUID], *, epoch: int) -> None:
    """The rest of a decision's transaction: states, the link of every leg to it, the end of the undecided secret."""
    state, erased = (
        (SettlementState.COMMITTED, "abort_secret")
        if decision is Decision.COMMIT
        else (SettlementState.ABORTED, "commit_secret")
    )
    changed = connection.execute(
        t.settlement.update()
        .where(t.settlement.c.id.in_(ids), t.settlement.c.state == SettlementState.PREPARED.value)
        # An engine commits only what it prepared itself: only then does it know that every leg is held.
        .where(sa.true() if decision is Decision.ABORT else t.settlement.c.epoch == epoch)
        .values(state=state.value, waits_for="")
    )
    if changed.rowcount != len(ids):
        raise InvariantBroken("I5", f"a {decision.value} was to be written for a settlement that is not prepared")
    connection.execute(t.leg.update().where(t.leg.c.settlement_id.in_(ids)).values(decision=decision.value))
    connection.execute(t.secret.update().where(t.secret.c.settlement_id.in_(ids)).values({erased: None}))


def _load(connection: sa.Connection, where: sa.ColumnElement[bool], *, limit: int | None = None) -> list[Settlement]:
    columns = (t.settlement.c.id, t.settlement.c.uetr, t.settlement.c.commit_hash, t.settlement.c.abort_hash)
    statement = sa.select(*columns).where(where).order_by(t.settlement.c.priority, t.settlement.c.id).limit(limit)
    rows = connection.execute(statement).all()
    by_id: dict[UUID, list[Leg]] = {row.id: [] for row in rows}
    legs = (
        sa.select(t.leg).where(t.leg.c.settlement_id.in_(list(by_id))).order_by(t.leg.c.settlement_id, t.leg.c.number)
    )
    for found in connection.execute(legs):
        by_id[found.settlement_id].append(leg_of(found))
    return [
        Settlement(row.id, row.uetr, bytes(row.commit_hash), bytes(row.abort_hash), tuple(by_id[row.id]))
        for row in rows
    ]


def leg_of(row: sa.Row[tuple[object, ...]]) -> Leg:
    terms = LegTerms(
        ledger=row.ledger,
        payer=ParticipantId(row.payer),
        payee=ParticipantId(row.payee),
        debit=AccountNumber(row.debit),
        credit=AccountNumber(row.credit),
        amount=Money(row.amount_minor, Currency.of(row.currency)),
    )
    return Leg(row.settlement_id, row.number, terms, LegState(row.state))
