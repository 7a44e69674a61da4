"""What the engine writes and reads: secrets, legs, the decision log, and the lease that fences it.

Every write first compares the engine's epoch with the lease row, in the same transaction, and locks that row: a deposed
engine can write nothing, and whoever takes the lease waits until the writes under way have committed or failed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from kernel.arrays import is_one_of, rows_of
from kernel.database import Database, is_retriable
from kernel.errors import InvariantBroken
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
from settlement.store import calendar_tables as calendar
from settlement.store import market_tables as market
from settlement.store import tables as t
from settlement.store.liquidity import follow_decisions

LEASE_NAME = "engine"
LEASE_LOCK = 0x6A69_616F_7A69_0005
"""Of PostgreSQL's advisory locks, which are numbers."""
DEADLOCK_RETRIES = 5


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

    def with_legs(self, legs: Sequence[Leg]) -> Settlement:
        return Settlement(self.id, self.uetr, self.commit_hash, self.abort_hash, tuple(legs))

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


Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


def _again_after_deadlock(
    method: Callable[Concatenate[DecisionLog, Arguments], Result],
) -> Callable[Concatenate[DecisionLog, Arguments], Result]:
    """Begin a write anew when PostgreSQL gave it up to break a deadlock, or could not serialise it: then nothing of it
    was written, and the fence is asked again. Else one such loss would end the epoch, and with it abort what
    everybody has prepared."""

    @wraps(method)
    def write(log: DecisionLog, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        for _ in range(DEADLOCK_RETRIES):
            try:
                return method(log, *args, **kwargs)
            except sa.exc.DBAPIError as error:
                if not is_retriable(error):
                    raise
        return method(log, *args, **kwargs)

    return write


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
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LEASE_LOCK)))
            return int(connection.execute(statement).scalar_one())

    def renew_lease(self, *, epoch: int, now: datetime) -> None:
        """Raises: Deposed."""
        ours = t.lease.update().where(t.lease.c.name == LEASE_NAME, t.lease.c.epoch == epoch).values(renewed_at=now)
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            if connection.execute(ours).rowcount != 1:
                raise Deposed(f"epoch {epoch} no longer holds the lease")

    def lease(self) -> tuple[int, str, datetime] | None:
        """(epoch, holder, renewed at), for a standby that waits."""
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            return find_lease(connection)

    # --- step 1

    def received(self, *, limit: int, now: datetime, without_payers: Collection[str] = ()) -> list[UUID]:
        """The next settlements of started batches: by priority, then in the order of their submission.

        Those with a closed gate wait, and those with a leg of one of `without_payers`; but what the operator has given
        up is taken in any case, since all that is left to do with it is ABORT. One whose quotes' lock has expired waits
        to be quoted anew or given up (settlement.usecases.market); one whose window is over at `now`, to be rolled or
        ended (settlement.usecases.calendars): the engine may be back before whoever does that.
        """
        is_free = t.batch.c.started_at.is_not(None) & ~sa.exists().where(
            t.gate.c.settlement_id == t.settlement.c.id, t.gate.c.opened_at.is_(None)
        )
        is_free &= ~market.is_lock_expired(t.settlement.c.id) & ~calendar.is_window_over(t.settlement.c.id, now)
        if without_payers:
            is_free &= ~sa.exists().where(
                t.leg.c.settlement_id == t.settlement.c.id, t.leg.c.payer.in_(sorted(without_payers))
            )
        statement = (
            sa.select(t.settlement.c.id)
            .join(t.batch)
            # Spelt out, not a parameter: else the plan of a prepared statement cannot use the queue's index.
            .where(t.settlement.c.state == sa.literal_column("'received'"), t.settlement.c.netted_by.is_(None))
            .where(is_free | t.settlement.c.abort_requested_at.is_not(None))
            .order_by(t.settlement.c.priority, t.settlement.c.batch_id, t.settlement.c.position)
            .limit(limit)
        )
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            return list(connection.execute(statement).scalars())

    @_again_after_deadlock
    def persist(self, secrets: Mapping[UUID, Secrets], *, epoch: int, now: datetime) -> list[Settlement]:
        """Step 1: store fresh secrets and hashes of received settlements. Nothing was sent to anybody before this.

        Settlements that are no longer `received` are left out. Raises: Deposed.
        """
        ids = sorted(secrets)
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            _fence(connection, epoch)
            open_ids = set(
                connection.execute(
                    sa.select(t.settlement.c.id)
                    .where(is_one_of(t.settlement.c.id, ids), t.settlement.c.state == SettlementState.RECEIVED.value)
                    .where(t.settlement.c.netted_by.is_(None))
                    .order_by(t.settlement.c.id)
                    .with_for_update()
                ).scalars()
            )
            # Asked again under the rows' locks: a gate that closed since `received` keeps its settlement.
            open_ids -= _gated(connection, open_ids, now=now)
            if not open_ids:
                return []
            taken = [key for key in ids if key in open_ids]
            given = rows_of(
                settlement_id=(sa.Uuid(), taken),
                commit_secret=(sa.LargeBinary(), [secrets[key].commit for key in taken]),
                abort_secret=(sa.LargeBinary(), [secrets[key].abort for key in taken]),
            )
            names = ["settlement_id", "commit_secret", "abort_secret"]
            connection.execute(t.secret.insert().from_select(names, sa.select(*(given.c[name] for name in names))))
            given = rows_of(
                key=(sa.Uuid(), taken),
                commit_hash=(sa.LargeBinary(), [secrets[key].commit_hash for key in taken]),
                abort_hash=(sa.LargeBinary(), [secrets[key].abort_hash for key in taken]),
            )
            connection.execute(
                t.settlement.update()
                .where(t.settlement.c.id == given.c.key)
                .values(
                    state=SettlementState.PREPARED.value,
                    epoch=epoch,
                    prepared_at=now,
                    commit_hash=given.c.commit_hash,
                    abort_hash=given.c.abort_hash,
                )
            )
            return _load(connection, is_one_of(t.settlement.c.id, taken))

    # --- step 2

    @_again_after_deadlock
    def record_legs(self, updates: Sequence[LegUpdate], *, epoch: int, now: datetime) -> None:
        """What is now known of undecided legs. Raises: Deposed."""
        if not updates:
            return
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            _fence(connection, epoch)
            _update_legs(connection, updates)

    @_again_after_deadlock
    def record_waits(self, waits: Mapping[UUID, str], *, epoch: int, now: datetime) -> None:
        """What settlements in doubt wait for, for people to see. Raises: Deposed."""
        if not waits:
            return
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            _fence(connection, epoch)
            keys = sorted(waits)
            given = rows_of(key=(sa.Uuid(), keys), waits_for=(sa.Text(), [waits[key][:300] for key in keys]))
            connection.execute(
                t.settlement.update().where(t.settlement.c.id == given.c.key).values(waits_for=given.c.waits_for)
            )

    # --- step 3

    @_again_after_deadlock
    def decide(self, verdicts: Sequence[Verdict], legs: Sequence[LegUpdate] = (), *, epoch: int, now: datetime) -> None:
        """Step 3: the decisions, durable and final when this returns. Undecided secrets are erased with it, and what
        is new of the settlements' `legs` is stored.

        A settlement that is decided already keeps its decision. `kernel.database.OutcomeUnknown` says what it says:
        read the log back. Raises: Deposed, InvariantBroken.
        """
        if not verdicts:
            return
        by_id = {verdict.settlement: verdict for verdict in sorted(verdicts, key=lambda verdict: verdict.settlement)}
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            _fence(connection, epoch)
            verdicts = list(by_id.values())
            given = rows_of(
                settlement_id=(sa.Uuid(), [verdict.settlement for verdict in verdicts]),
                decision=(sa.Text(), [verdict.decision.value for verdict in verdicts]),
                reason=(
                    sa.Text(),
                    [verdict.reason.value if verdict.reason is not None else None for verdict in verdicts],
                ),
                detail=(sa.Text(), [verdict.detail[:300] for verdict in verdicts]),
            )
            rows = sa.select(*given.c, sa.literal(epoch, sa.BigInteger()), sa.literal(now, sa.DateTime(timezone=True)))
            written = set(
                connection.execute(
                    insert(t.decision)
                    .from_select([*given.c.keys(), "epoch", "decided_at"], rows)
                    .on_conflict_do_nothing()
                    .returning(t.decision.c.settlement_id)
                ).scalars()
            )
            _update_legs(connection, [update for update in legs if update.settlement in written], decided=by_id)
            for decision in Decision:
                ids = [key for key in by_id if key in written and by_id[key].decision is decision]
                if ids:
                    _settle_decision(connection, decision, ids, epoch=epoch)
            follow_decisions(connection, {key: by_id[key].decision for key in written}, epoch=epoch, now=now)

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

    def abort_requests(self, *, limit: int = 10_000) -> set[UUID]:
        """Prepared, undecided settlements that the operator has given up."""
        statement = (
            sa.select(t.settlement.c.id)
            .where(t.settlement.c.abort_requested_at.is_not(None))
            .where(t.settlement.c.state == SettlementState.PREPARED.value)
            .order_by(t.settlement.c.id)
            .limit(limit)
        )
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            return set(connection.execute(statement).scalars())

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

    def published(self, ids: Sequence[UUID]) -> dict[UUID, tuple[Decision, bytes]]:
        """Step 4: of decided settlements their decision and the one secret that it names. Raises: InvariantBroken."""
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            return _published(connection, ids)

    def unfinished(self, *, limit: int = 10_000) -> list[Decided]:
        """Step 4: decided settlements with a leg that is not ended, each with the one secret its decision names."""
        is_unfinished = t.settlement.c.state.in_([SettlementState.COMMITTED.value, SettlementState.ABORTED.value])
        with self._database.transaction(isolation="REPEATABLE READ") as connection:
            found = _load(connection, is_unfinished, limit=limit)
            published = _published(connection, [item.id for item in found])
        return [Decided(item, *published[item.id]) for item in found]

    @_again_after_deadlock
    def record_ends(
        self, ends: Mapping[UUID, tuple[Decision, Mapping[int, datetime]]], *, epoch: int, now: datetime
    ) -> dict[UUID, SettlementState]:
        """Step 4: which legs (by number) are posted or voided, and when. Returns where each settlement stands.

        Raises: Deposed.
        """
        if not ends:
            return {}
        end_state = {Decision.COMMIT: LegState.POSTED, Decision.ABORT: LegState.VOIDED}
        rows = [
            (key, number, end_state[decision].value, ended_at)
            for key, (decision, ended) in sorted(ends.items())
            for number, ended_at in sorted(ended.items())
        ]
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            _fence(connection, epoch)
            if rows:
                given = rows_of(
                    key=(sa.Uuid(), [row[0] for row in rows]),
                    number=(sa.SmallInteger(), [row[1] for row in rows]),
                    state=(sa.Text(), [row[2] for row in rows]),
                    ended_at=(sa.DateTime(timezone=True), [row[3] for row in rows]),
                )
                connection.execute(
                    t.leg.update()
                    .where(t.leg.c.settlement_id == given.c.key, t.leg.c.number == given.c.number)
                    .where(t.leg.c.ended_at.is_(None))
                    .values(state=given.c.state, ended_at=given.c.ended_at)
                )
            states: dict[UUID, list[LegState]] = {}
            found = connection.execute(
                sa.select(t.leg.c.settlement_id, t.leg.c.state).where(is_one_of(t.leg.c.settlement_id, list(ends)))
            )
            for row in found:
                states.setdefault(row.settlement_id, []).append(LegState(row.state))
            after = {key: state_after(ends[key][0], legs) for key, legs in states.items()}
            for state in (SettlementState.SETTLED, SettlementState.CANCELLED):
                done = sorted(key for key, reached in after.items() if reached is state)
                if done:
                    connection.execute(
                        t.settlement.update()
                        .where(is_one_of(t.settlement.c.id, done), t.settlement.c.ended_at.is_(None))
                        .values(state=state.value, ended_at=now, waits_for="")
                    )
            return after


def find_lease(connection: sa.Connection) -> tuple[int, str, datetime] | None:
    """(epoch, holder, renewed at)."""
    row = connection.execute(sa.select(t.lease.c.epoch, t.lease.c.holder, t.lease.c.renewed_at)).one_or_none()
    return None if row is None else (row.epoch, row.holder, row.renewed_at)


def _update_legs(
    connection: sa.Connection, updates: Sequence[LegUpdate], *, decided: Mapping[UUID, Verdict] | None = None
) -> None:
    """What is new of undecided legs, and with `decided` their decision in the same write."""
    if not updates:
        return
    # The newest of each leg: one statement writes a row once.
    newest: dict[tuple[UUID, int], LegUpdate] = {}
    for update in updates:
        before = newest.get((update.settlement, update.number))
        if before is not None and update.authorisation is None:
            update = replace(update, authorisation=before.authorisation)
        newest[update.settlement, update.number] = update
    latest = [newest[key] for key in sorted(newest, key=lambda key: (key[0].int, key[1]))]
    given = rows_of(
        key=(sa.Uuid(), [update.settlement for update in latest]),
        number=(sa.SmallInteger(), [update.number for update in latest]),
        state=(sa.Text(), [update.state.value for update in latest]),
        detail=(sa.Text(), [update.detail[:300] for update in latest]),
        authorisation=(sa.Text(), [update.authorisation for update in latest]),
        decision=(
            sa.Text(),
            [None if decided is None else decided[update.settlement].decision.value for update in latest],
        ),
    )
    connection.execute(
        t.leg.update()
        .where(t.leg.c.settlement_id == given.c.key, t.leg.c.number == given.c.number)
        .where(t.leg.c.decision.is_(None))
        .values(
            state=given.c.state,
            detail=given.c.detail,
            authorisation=sa.func.coalesce(given.c.authorisation, t.leg.c.authorisation),
            decision=given.c.decision,
        )
    )


def _published(connection: sa.Connection, ids: Sequence[UUID]) -> dict[UUID, tuple[Decision, bytes]]:
    # The join is the rule: a secret is read only under the decision that publishes it.
    of_commit, of_abort = t.decision.c.decision == "commit", t.decision.c.decision == "abort"
    published = sa.case((of_commit, t.secret.c.commit_secret), (of_abort, t.secret.c.abort_secret))
    rows = connection.execute(
        sa.select(t.decision.c.settlement_id, t.decision.c.decision, published.label("secret"))
        .join(t.secret, t.secret.c.settlement_id == t.decision.c.settlement_id)
        .where(is_one_of(t.decision.c.settlement_id, ids))
    )
    found = {row.settlement_id: (Decision(row.decision), bytes(row.secret)) for row in rows if row.secret is not None}
    for key in ids:
        if key not in found:
            raise InvariantBroken("I5", f"settlement {key} is decided and lacks its decision or secret")
    return found


def _gated(connection: sa.Connection, ids: Collection[UUID], *, now: datetime) -> set[UUID]:
    """Which of these have a closed gate, or a window that is over, and are not given up."""
    is_closed = sa.exists().where(t.gate.c.settlement_id == t.settlement.c.id, t.gate.c.opened_at.is_(None))
    statement = (
        sa.select(t.settlement.c.id)
        .where(is_one_of(t.settlement.c.id, sorted(ids)), t.settlement.c.abort_requested_at.is_(None))
        .where(is_closed | calendar.is_window_over(t.settlement.c.id, now))
    )
    return set(connection.execute(statement).scalars()) if ids else set()


def _fence(connection: sa.Connection, epoch: int) -> None:
    """Locks the lease's row against who would take it, not against this engine's other writes. Who waits to take it is
    next, however many writes overlap: for that alone the second lock, whose queue is fair."""
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock_shared(LEASE_LOCK)))
    held = sa.select(t.lease.c.epoch).where(t.lease.c.name == LEASE_NAME, t.lease.c.epoch == epoch)
    if connection.execute(held.with_for_update(read=True)).one_or_none() is None:
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
        .where(is_one_of(t.settlement.c.id, ids), t.settlement.c.state == SettlementState.PREPARED.value)
        # An engine commits only what it prepared itself: only then does it know that every leg is held.
        .where(sa.true() if decision is Decision.ABORT else t.settlement.c.epoch == epoch)
        .values(state=state.value, waits_for="")
    )
    if changed.rowcount != len(ids):
        raise InvariantBroken("I5", f"a {decision.value} was to be written for a settlement that is not prepared")
    connection.execute(
        t.leg.update()
        .where(is_one_of(t.leg.c.settlement_id, ids), t.leg.c.decision.is_(None))
        .values(decision=decision.value)
    )
    connection.execute(t.secret.update().where(is_one_of(t.secret.c.settlement_id, ids)).values({erased: None}))


def _load(connection: sa.Connection, where: sa.ColumnElement[bool], *, limit: int | None = None) -> list[Settlement]:
    columns = (t.settlement.c.id, t.settlement.c.uetr, t.settlement.c.commit_hash, t.settlement.c.abort_hash)
    statement = sa.select(*columns).where(where).order_by(t.settlement.c.priority, t.settlement.c.id).limit(limit)
    rows = connection.execute(statement).all()
    by_id: dict[UUID, list[Leg]] = {row.id: [] for row in rows}
    legs = sa.select(*LEG_COLUMNS).where(is_one_of(t.leg.c.settlement_id, list(by_id)))
    for found in connection.execute(legs.order_by(t.leg.c.settlement_id, t.leg.c.number)):
        by_id[found[0]].append(leg_of(found))
    return [
        Settlement(row.id, row.uetr, bytes(row.commit_hash), bytes(row.abort_hash), tuple(by_id[row.id]))
        for row in rows
    ]


_LEG = t.leg.c
LEG_COLUMNS = (
    *(_LEG.settlement_id, _LEG.number, _LEG.ledger, _LEG.payer, _LEG.payee, _LEG.debit, _LEG.credit),
    *(_LEG.amount_minor, _LEG.currency, _LEG.state),
)
"""What `leg_of` wants, in its order; more may follow."""


def leg_of(row: Sequence[Any]) -> Leg:
    key, number, ledger, payer, payee, debit, credit, amount_minor, currency, state = row[:10]
    terms = LegTerms(ledger, payer, payee, debit, credit, Money(amount_minor, Currency.of(currency)))
    return Leg(key, number, terms, LegState(state))
