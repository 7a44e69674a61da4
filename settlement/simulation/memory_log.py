"""The decision log in memory: the same promises as `settlement.store.decision_log.DecisionLog`, row by row.

Every method is one transaction: it happens whole, or raises and changes nothing. Held to the real log by a shared
stateful test (tests/store/test_settlement_memory_log.py). For the simulation and for tests; nothing survives it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import UUID

from kernel.errors import InvariantBroken
from settlement.domain.escrow import (
    Decision,
    DecisionRecord,
    Leg,
    LegState,
    LegTerms,
    Secrets,
    SettlementState,
    state_after,
)
from settlement.store.decision_log import Decided, Deposed, LegUpdate, Settlement, Verdict

_UNFINISHED = (SettlementState.COMMITTED, SettlementState.ABORTED)


@dataclass(slots=True)
class Row:
    """A settlement with its legs, as the tables settlement, leg and secret have them."""

    id: UUID
    uetr: UUID
    legs: tuple[Leg, ...]
    priority: int = 2
    is_free: bool = True
    """Its batch is started and no gate of it is closed."""
    state: SettlementState = SettlementState.RECEIVED
    epoch: int = 0
    commit_hash: bytes = b""
    abort_hash: bytes = b""
    commit_secret: bytes | None = None
    abort_secret: bytes | None = None
    waits_for: str = ""
    is_given_up: bool = False
    ended_at: datetime | None = None
    authorised: dict[int, str] = field(default_factory=dict)

    def settlement(self) -> Settlement:
        return Settlement(self.id, self.uetr, self.commit_hash, self.abort_hash, self.legs)


class MemoryLog:
    def __init__(self) -> None:
        self.rows: dict[UUID, Row] = {}
        self.records: dict[UUID, DecisionRecord] = {}
        self.epoch = 0

    def store(
        self, settlement: UUID, uetr: UUID, legs: Sequence[LegTerms], *, priority: int = 2, is_free: bool = True
    ) -> None:
        """A received settlement. They are taken by priority, then in the order of this call."""
        made = tuple(Leg(settlement, number, terms) for number, terms in enumerate(legs))
        self.rows[settlement] = Row(settlement, uetr, made, priority, is_free)

    def request_abort(self, settlement: UUID) -> bool:
        """As `settlement.store.batches.request_abort`."""
        row = self.rows[settlement]
        if row.state not in (SettlementState.RECEIVED, SettlementState.PREPARED):
            return False
        row.is_given_up = True
        return True

    # --- the lease

    def take_lease(self, *, holder: str, now: datetime) -> int:
        self.epoch += 1
        return self.epoch

    def renew_lease(self, *, epoch: int, now: datetime) -> None:
        self._fence(epoch)

    def _fence(self, epoch: int) -> None:
        if epoch != self.epoch:
            raise Deposed(f"epoch {epoch} no longer holds the lease")

    # --- step 1

    def received(self, *, limit: int, now: datetime, without_payers: Collection[str] = ()) -> list[UUID]:
        found = [
            row
            for row in self.rows.values()
            if row.state is SettlementState.RECEIVED
            and (row.is_given_up or (row.is_free and not any(leg.terms.payer in without_payers for leg in row.legs)))
        ]
        found.sort(key=_by_priority)  # stable: then as they came
        return [row.id for row in found[:limit]]

    def persist(self, secrets: Mapping[UUID, Secrets], *, epoch: int, now: datetime) -> list[Settlement]:
        self._fence(epoch)
        made: list[Row] = []
        for key in sorted(secrets):
            row, fresh = self.rows[key], secrets[key]
            if row.state is SettlementState.RECEIVED and (row.is_free or row.is_given_up):
                row.state, row.epoch = SettlementState.PREPARED, epoch
                row.commit_hash, row.abort_hash = fresh.commit_hash, fresh.abort_hash
                row.commit_secret, row.abort_secret = fresh.commit, fresh.abort
                made.append(row)
        made.sort(key=_by_priority_and_id)
        return [row.settlement() for row in made]

    # --- step 2

    def record_legs(self, updates: Sequence[LegUpdate], *, epoch: int, now: datetime) -> None:
        if not updates:
            return
        self._fence(epoch)
        for update in updates:
            row = self.rows[update.settlement]
            if update.settlement not in self.records:
                _set_states(row, (update.number,), update.state)
                if update.authorisation is not None:
                    row.authorised[update.number] = update.authorisation

    def record_waits(self, waits: Mapping[UUID, str], *, epoch: int, now: datetime) -> None:
        if not waits:
            return
        self._fence(epoch)
        for key, text in waits.items():
            self.rows[key].waits_for = text[:300]

    # --- step 3

    def decide(self, verdicts: Sequence[Verdict], legs: Sequence[LegUpdate] = (), *, epoch: int, now: datetime) -> None:
        if not verdicts:
            return
        self._fence(epoch)
        fresh = {verdict.settlement: verdict for verdict in verdicts if verdict.settlement not in self.records}
        for key, verdict in fresh.items():
            row, is_commit = self.rows[key], verdict.decision is Decision.COMMIT
            if row.state is not SettlementState.PREPARED or (is_commit and row.epoch != epoch):
                raise InvariantBroken(
                    "I5", f"a {verdict.decision.value} was to be written for a settlement that is not prepared"
                )
        self.record_legs([update for update in legs if update.settlement in fresh], epoch=epoch, now=now)
        for key, verdict in fresh.items():
            row = self.rows[key]
            reason = None if verdict.reason is None else verdict.reason.value
            self.records[key] = DecisionRecord(key, verdict.decision, now, epoch, reason, verdict.detail[:300])
            row.waits_for = ""
            if verdict.decision is Decision.COMMIT:
                row.state, row.abort_secret = SettlementState.COMMITTED, None
            else:
                row.state, row.commit_secret = SettlementState.ABORTED, None

    def decisions(self, ids: Sequence[UUID]) -> dict[UUID, DecisionRecord]:
        return {key: self.records[key] for key in ids if key in self.records}

    def abort_requests(self) -> set[UUID]:
        return {row.id for row in self.rows.values() if row.is_given_up and row.state is SettlementState.PREPARED}

    # --- steps 4 and 5

    def undecided_of_others(self, *, epoch: int) -> list[UUID]:
        return sorted(
            row.id for row in self.rows.values() if row.state is SettlementState.PREPARED and row.epoch < epoch
        )

    def published(self, ids: Sequence[UUID]) -> dict[UUID, tuple[Decision, bytes]]:
        found: dict[UUID, tuple[Decision, bytes]] = {}
        for key in ids:
            row, record = self.rows[key], self.records.get(key)
            is_commit = record is not None and record.decision is Decision.COMMIT
            secret = row.commit_secret if is_commit else row.abort_secret
            if record is None or secret is None:
                raise InvariantBroken("I5", f"settlement {key} is decided and lacks its decision or secret")
            found[key] = record.decision, secret
        return found

    def unfinished(self, *, limit: int = 10_000) -> list[Decided]:
        unfinished = (row for row in self.rows.values() if row.state in _UNFINISHED)
        found = sorted(unfinished, key=_by_priority_and_id)[:limit]
        published = self.published([row.id for row in found])
        return [Decided(row.settlement(), *published[row.id]) for row in found]

    def record_ends(
        self, ends: Mapping[UUID, tuple[Decision, Mapping[int, datetime]]], *, epoch: int, now: datetime
    ) -> dict[UUID, SettlementState]:
        if not ends:
            return {}
        self._fence(epoch)
        for key, (decision, _) in ends.items():  # CHECK leg_ends_as_decided_i5
            record = self.records.get(key)
            if record is None or record.decision is not decision:
                raise InvariantBroken("I5", f"settlement {key}: a leg ended against its decision")
        after: dict[UUID, SettlementState] = {}
        for key, (decision, ended) in ends.items():
            row = self.rows[key]
            state = LegState.POSTED if decision is Decision.COMMIT else LegState.VOIDED
            _set_states(row, ended, state)
            after[key] = reached = state_after(decision, [leg.state for leg in row.legs])
            if reached not in _UNFINISHED and row.ended_at is None:
                row.state, row.ended_at, row.waits_for = reached, now, ""
        return after


def _set_states(row: Row, numbers: Collection[int], state: LegState) -> None:
    row.legs = tuple(replace(leg, state=state) if leg.number in numbers else leg for leg in row.legs)


def _by_priority(row: Row) -> int:
    return row.priority


def _by_priority_and_id(row: Row) -> tuple[int, UUID]:
    return row.priority, row.id
