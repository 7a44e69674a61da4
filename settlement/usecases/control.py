"""Continuous control: after settlements end, are the islands where the bridge says they are?

For each settlement that ended since the last point, in order and a bounded number at a time:
1. every leg is looked up on its island. A posted leg that the island does not have as posted is `reorged-event`; a
   cancelled leg that still holds money, or a settlement in doubt for too long, is `escrow-stuck`;
2. what the bridge's posted legs add up to on each account (nostro), and what the island says of the same legs
   (vostro), go into two running sums. They must be equal: `movement`.
3. at a period of its own, whole balances: `balance_control`.
An island that does not answer stops the round: the point stays, and nothing is believed that was not asked.
A break of the control lives as any other does, and its alarm is over when an officer has closed it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from kernel import ids
from kernel.arrays import is_one_of
from kernel.clock import Clock
from kernel.database import Database
from kernel.ids import ParticipantId
from kernel.money import Currency
from settlement.domain.escrow import HoldOrder, Leg, LegState
from settlement.domain.reconciliation import AgeBucket, Break, BreakType
from settlement.islands.port import HoldStanding, Island
from settlement.store import reconciliation as store
from settlement.store import reconciliation_tables as rt
from settlement.store import tables as t
from settlement.store.decision_log import LEG_COLUMNS, leg_of
from settlement.store.reconciliation import BreakRow, Relation
from settlement.usecases.balance_control import COUNTERPARTY, Place, find_contradictions
from settlement.usecases.breaks import follow_repairs
from settlement.usecases.reconcile import break_keys, new_break

SETTLEMENTS_MAX = 500
"""Of one round."""
ALARMS_SHOWN_MAX = 100
IN_DOUBT_MAX = timedelta(minutes=15)
_log = logging.getLogger(__name__)
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Balance:
    ledger: str
    account: int
    participant: ParticipantId
    currency: str
    bridge_minor: int
    island_minor: int
    legs: int


@dataclass(frozen=True, slots=True)
class Round:
    """What one round did. `is_whole` = nothing is left to check, and every island answered."""

    settlements: int
    legs: int
    alarms: tuple[UUID, ...]
    is_whole: bool


@dataclass(frozen=True, slots=True)
class Report:
    alarms: list[BreakRow]
    settlements: int
    legs: int
    checked_at: datetime | None
    balances: list[Balance]


class Control:
    """One bridge's control; rounds do not overlap, in whatever process (a lock in the database)."""

    def __init__(
        self,
        *,
        database: Database,
        islands: Mapping[str, Island],
        bridge: ParticipantId,
        clock: Clock,
        in_doubt_max: timedelta = IN_DOUBT_MAX,
    ) -> None:
        self._database = database
        self._islands = islands
        self._bridge = bridge
        self._clock = clock
        self._in_doubt_max = in_doubt_max
        self._compared_to: Place | None = None

    def run(self) -> Round:
        """One bounded round. Raises nothing for an island that does not answer."""
        follow_repairs(database=self._database, clock=self._clock)
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            store.lock_name(connection, "control")
            found = self._round(connection)
        for alarm in found.alarms:
            _log.error("control: alarm %s: the books of the bridge and of an island disagree", ids.show("brk", alarm))
        return found

    def compare_balances(self) -> tuple[UUID, ...]:
        """Whole balances instead of legs (`balance_control`); the new alarms. Of many accounts a part each time, in
        turn. An island that does not answer is left out: it is asked again when its turn comes."""
        found, place = find_contradictions(
            self._database,
            self._islands,
            bridge=self._bridge,
            today=self._clock().date(),
            behind=self._compared_to,
        )
        self._compared_to = place
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            store.lock_name(connection, "control")
            alarms = self._alarm(connection, found, self._clock())
        for alarm in alarms:
            _log.error("control: alarm %s: an island has less than the bridge's legs on it", ids.show("brk", alarm))
        return alarms

    def report(self) -> Report:
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            sums = connection.execute(
                sa.select(
                    sa.func.coalesce(sa.func.sum(rt.control.c.settlements), 0).label("settlements"),
                    sa.func.coalesce(sa.func.sum(rt.control.c.legs), 0).label("legs"),
                    sa.func.max(rt.control.c.checked_at).label("checked_at"),
                )
            ).one()
            order = (rt.control_balance.c.ledger, rt.control_balance.c.account)
            rows = connection.execute(sa.select(rt.control_balance).order_by(*order).limit(1_000))
            balances = [
                Balance(
                    row.ledger,
                    row.account,
                    ParticipantId(row.participant),
                    row.currency,
                    int(row.bridge_minor),
                    int(row.island_minor),
                    row.legs,
                )
                for row in rows
            ]
            alarms = store.breaks_page(
                connection,
                store.BreakFilter(
                    self._clock().date(),
                    counterparty=COUNTERPARTY,
                    states=("open", "assigned", "proposed", "approved"),
                ),
                after=None,
                limit=ALARMS_SHOWN_MAX,
            )
        return Report(alarms, int(sums.settlements), int(sums.legs), sums.checked_at, balances)

    def _round(self, connection: sa.Connection) -> Round:
        now = self._clock()
        last = connection.execute(sa.select(rt.control).order_by(rt.control.c.number.desc()).limit(1)).one_or_none()
        rows = _ended_since(connection, None if last is None else (last.through_ended_at, last.through_settlement))
        legs = _legs(connection, [row.id for row in rows])
        standings = self._look_up(rows, legs)
        breaks: list[tuple[Relation, Break]] = list(self._stuck(connection, now))
        if standings is None:
            return Round(0, 0, self._alarm(connection, breaks, now), is_whole=False)
        sums: dict[tuple[str, int, str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
        for row in rows:
            for leg in legs[row.id]:
                standing, terms = standings[leg.hold_id], leg.terms
                bad = _contradiction(leg.state, standing)
                if bad is not None:
                    breaks.append(_break(bad, row, leg, standing, now))
                for account, party, sign in ((terms.debit, terms.payer, -1), (terms.credit, terms.payee, 1)):
                    found = sums[(terms.ledger, account, party, terms.amount.currency.code)]
                    signed = sign * terms.amount.amount_minor
                    found[0] += signed if leg.state is LegState.POSTED else 0
                    found[1] += signed if standing is HoldStanding.POSTED else 0
                    found[2] += 1
                    if leg.state is LegState.POSTED:
                        found[3 if sign < 0 else 4] += terms.amount.amount_minor
        breaks += [_movement(key, found, now) for key, found in sums.items() if found[0] != found[1]]
        _add_balances(connection, sums)
        alarms = self._alarm(connection, breaks, now)
        if rows:
            connection.execute(
                rt.control.insert().values(
                    number=1 if last is None else last.number + 1,
                    through_ended_at=rows[-1].ended_at,
                    through_settlement=rows[-1].id,
                    settlements=len(rows),
                    legs=sum(len(found) for found in legs.values()),
                    alarms=len(alarms),
                    checked_at=now,
                )
            )
        return Round(len(rows), sum(len(found) for found in legs.values()), alarms, len(rows) < SETTLEMENTS_MAX)

    def _look_up(self, rows: Sequence[sa.Row[Any]], legs: Mapping[UUID, list[Leg]]) -> dict[UUID, HoldStanding] | None:
        """Every leg's standing, or None if an island does not answer."""
        by_island: dict[str, list[HoldOrder]] = defaultdict(list)
        for row in rows:
            for leg in legs[row.id]:
                if row.commit_hash is not None and row.abort_hash is not None:
                    order = HoldOrder(leg.hold_id, leg.terms, row.uetr, bytes(row.commit_hash), bytes(row.abort_hash))
                    by_island[leg.terms.ledger].append(order)
        # A settlement that ended unprepared asked nothing of any island.
        found = {leg.hold_id: HoldStanding.ABSENT for items in legs.values() for leg in items}
        for name, orders in by_island.items():
            answers = self._islands[name].look_up(orders)
            if HoldStanding.UNKNOWN in answers:
                return None
            found |= {order.hold_id: answer for order, answer in zip(orders, answers, strict=True)}
        return found

    def _stuck(self, connection: sa.Connection, now: datetime) -> list[tuple[Relation, Break]]:
        """Settlements in doubt for longer than they may be."""
        table = t.settlement
        rows = connection.execute(
            sa.select(table)
            .where(
                table.c.state.in_(("prepared", "committed", "aborted")), table.c.prepared_at < now - self._in_doubt_max
            )
            .order_by(table.c.id)
            .limit(SETTLEMENTS_MAX)
        ).all()
        legs = _legs(connection, [row.id for row in rows])
        # The log may say `pending` of a leg that its island holds: the engine died before it was stored, or the leg was
        # decided while its answer was on the way. Only the island knows, and its silence is no better.
        pending = [
            (row, leg)
            for row in rows
            for leg in legs[row.id]
            if leg.state is LegState.PENDING and row.commit_hash is not None and row.abort_hash is not None
        ]
        standings = self._standings(pending)
        found: list[tuple[Relation, Break]] = []
        for row in rows:
            for leg in legs[row.id]:
                standing = HoldStanding.HELD if leg.state is LegState.HELD else standings.get(leg.hold_id)
                if standing in (HoldStanding.HELD, HoldStanding.UNKNOWN):
                    found.append(_break(BreakType.ESCROW_STUCK, row, leg, standing, now))
        return found

    def _standings(self, asked: Sequence[tuple[sa.Row[Any], Leg]]) -> dict[UUID, HoldStanding]:
        """By hold. Each island for itself: one that does not answer leaves its own unknown; one that is configured no
        more is not asked."""
        by_island: dict[str, list[HoldOrder]] = defaultdict(list)
        for row, leg in asked:
            order = HoldOrder(leg.hold_id, leg.terms, row.uetr, bytes(row.commit_hash), bytes(row.abort_hash))
            by_island[leg.terms.ledger].append(order)
        found: dict[UUID, HoldStanding] = {}
        for name, orders in by_island.items():
            island = self._islands.get(name)
            if island is not None:
                answers = island.look_up(orders)
                found |= {order.hold_id: answer for order, answer in zip(orders, answers, strict=True)}
        return found

    def _alarm(
        self, connection: sa.Connection, breaks: Sequence[tuple[Relation, Break]], now: datetime
    ) -> tuple[UUID, ...]:
        """New breaks; one that is open already is not opened again."""
        if not breaks:
            return ()
        new = [
            new_break(found, relation, break_keys(relation, [found])[0], run=None, lines=None, now=now)
            for relation, found in breaks
        ]
        known = store.find_open_keys(connection, [item.key for item in new])
        fresh = {item.key: item for item in new if item.key not in known}
        store.insert_breaks(connection, list(fresh.values()))
        return tuple(item.id for item in fresh.values())


class ControlWatch:
    """Runs the control in a thread of its own: again at once while there is more, else after a pause."""

    def __init__(self, control: Control, *, every_seconds: float, balances_every_seconds: float) -> None:
        self._control = control
        self._every_seconds = every_seconds
        self._balances_every_seconds = balances_every_seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="settlement-control", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def _watch(self) -> None:
        balances_due = time.monotonic() + self._balances_every_seconds
        while not self._stopped.is_set():
            found = self._attempt(self._control.run)
            has_more = found is not None and found.settlements > 0 and not found.is_whole
            if time.monotonic() >= balances_due:
                self._attempt(self._control.compare_balances)
                balances_due = time.monotonic() + self._balances_every_seconds
            self._stopped.wait(0.0 if has_more else min(self._every_seconds, self._balances_every_seconds))

    def _attempt(self, work: Callable[[], _Found]) -> _Found | None:
        try:
            return work()
        except Exception as error:  # the next round asks again; a control that ended silently would be worse
            _log.warning("control: the round failed and is repeated: %s", type(error).__name__)
            return None


def _ended_since(connection: sa.Connection, after: tuple[datetime, UUID] | None) -> list[sa.Row[Any]]:
    table = t.settlement
    columns = (table.c.id, table.c.uetr, table.c.commit_hash, table.c.abort_hash, table.c.prepared_at, table.c.ended_at)
    statement = sa.select(*columns).where(table.c.ended_at.is_not(None))
    if after is not None:
        statement = statement.where(sa.tuple_(table.c.ended_at, table.c.id) > sa.tuple_(*map(sa.literal, after)))
    return list(connection.execute(statement.order_by(table.c.ended_at, table.c.id).limit(SETTLEMENTS_MAX)))


def _contradiction(state: LegState, standing: HoldStanding) -> BreakType | None:
    if state is LegState.POSTED:
        return None if standing is HoldStanding.POSTED else BreakType.REORGED_EVENT
    if standing is HoldStanding.POSTED:
        return BreakType.REORGED_EVENT
    return BreakType.ESCROW_STUCK if standing is HoldStanding.HELD else None


def _break(
    kind: BreakType, row: sa.Row[Any], leg: Leg, standing: HoldStanding, now: datetime
) -> tuple[Relation, Break]:
    terms, moment = leg.terms, row.ended_at or row.prepared_at or now
    day = moment.astimezone(UTC).date()
    account = ids.show_account(terms.debit)
    sentence = (
        f"Leg {leg.number} of {ids.show('stl', row.id)}, {terms.amount} from {terms.payer} to {terms.payee} on "
        f"{terms.ledger}: it is {leg.state.value} with the bridge and {standing.value} on the island."
    )
    relation = Relation(terms.payer, COUNTERPARTY, terms.amount.currency.code, account, "same-account")
    gross = ((terms.amount.currency, terms.amount.amount_minor),)
    age = max(0, (now.date() - day).days)
    bucket = next(x for x, most in zip(AgeBucket, (1, 5, 30, 10**9), strict=True) if age <= most)
    references = (leg.hold_id.hex,)
    return relation, Break(kind, references, (), terms.amount, None, None, gross, age, bucket, sentence, oldest=day)


def _movement(key: tuple[str, int, str, str], found: Sequence[int], now: datetime) -> tuple[Relation, Break]:
    ledger, account, participant, code = key
    currency = Currency.of(code)
    shown = ids.show_account(account)
    sentence = (
        f"{participant} on {ledger}: the bridge's posted legs of this round move {shown} by {found[0]} minor units of "
        f"{code}, the island's by {found[1]}."
    )
    difference = found[1] - found[0]
    gross = ((currency, abs(difference)),)
    relation = Relation(ParticipantId(participant), COUNTERPARTY, code, shown, "same-account")
    made = Break(
        BreakType.MOVEMENT,
        (f"{ledger} {shown} {now.isoformat()}",),
        (),
        None,
        None,
        difference,
        gross,
        0,
        AgeBucket.DAYS_0_1,
        sentence,
        oldest=now.date(),
    )
    return relation, made


def _legs(connection: sa.Connection, settlements: Sequence[UUID]) -> dict[UUID, list[Leg]]:
    found: dict[UUID, list[Leg]] = {key: [] for key in settlements}
    if settlements:
        rows = connection.execute(
            sa.select(*LEG_COLUMNS)
            .where(is_one_of(t.leg.c.settlement_id, settlements))
            .order_by(t.leg.c.settlement_id, t.leg.c.number)
        )
        for row in rows:
            found[row.settlement_id].append(leg_of(row))
    return found


def _add_balances(connection: sa.Connection, sums: Mapping[tuple[str, int, str, str], Sequence[int]]) -> None:
    table = rt.control_balance
    for (ledger, account, participant, currency), (bridge, island, legs, debits, credits) in sorted(sums.items()):
        added = insert(table).values(
            ledger=ledger,
            account=account,
            participant=participant,
            currency=currency,
            bridge_minor=bridge,
            island_minor=island,
            legs=legs,
            debits_minor=debits,
            credits_minor=credits,
        )
        connection.execute(
            added.on_conflict_do_update(
                constraint="control_balance_pk",
                set_={
                    "bridge_minor": table.c.bridge_minor + bridge,
                    "island_minor": table.c.island_minor + island,
                    "legs": table.c.legs + legs,
                    "debits_minor": table.c.debits_minor + debits,
                    "credits_minor": table.c.credits_minor + credits,
                },
            )
        )
