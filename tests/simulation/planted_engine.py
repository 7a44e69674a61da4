"""Known bugs, planted in the product's own parts: the simulation must find every one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from settlement.domain.escrow import Decision, LegState, SettlementState
from settlement.islands.fake import FakeIsland
from settlement.islands.port import Ended, EndOrder, EndOutcome, Held, HoldStanding, Unknown
from settlement.simulation.memory_log import MemoryLog
from settlement.simulation.world import Parts
from settlement.store.decision_log import Decided, LegUpdate, Verdict
from settlement.usecases.settle import Engine


class CommitsBeforeAllAreHeld(Engine):
    """One held leg is taken for all of them."""

    def _decide(self) -> bool:
        for item in self._open.values():
            legs = item.settlement.legs
            if item.refusal is None and any(leg.state is LegState.HELD for leg in legs):
                held = tuple(replace(leg, state=LegState.HELD) for leg in legs)
                item.settlement = replace(item.settlement, legs=held)
        return super()._decide()


class KeepsBothSecrets(MemoryLog):
    """A decision does not erase the undecided secret, and a reader may have it."""

    def decide(self, verdicts: Sequence[Verdict], legs: Sequence[LegUpdate] = (), *, epoch: int, now: datetime) -> None:
        kept = {verdict.settlement: self.rows[verdict.settlement].abort_secret for verdict in verdicts}
        super().decide(verdicts, legs, epoch=epoch, now=now)
        self.kept = getattr(self, "kept", {}) | kept


class VoidsWhatDoesNotAnswer(Engine):
    """A committed leg without an answer is voided, with the other secret."""

    def _end_at(self, place: tuple[str, Decision], legs: Sequence[tuple[Decided, object]]) -> Sequence[EndOutcome]:  # type: ignore[override]
        answers = super()._end_at(place, legs)  # type: ignore[arg-type]
        ledger, decision = place
        kept: Mapping[UUID, bytes | None] = getattr(self._log._log, "kept", {})  # type: ignore[attr-defined]
        if decision is Decision.COMMIT and all(isinstance(answer, Unknown) for answer in answers):
            for decided, leg in legs:
                secret = kept.get(decided.settlement.id)
                if secret is not None:
                    order = decided.settlement.hold_order(leg)  # type: ignore[arg-type]
                    end = EndOrder(order, leg.end_id(Decision.ABORT, secret), secret)  # type: ignore[attr-defined]
                    self._islands[ledger].cancel([end])
        return answers


class LeavesNoTombstone(FakeIsland):
    """A void that overtakes its hold is forgotten."""

    def cancel(self, orders: Sequence[EndOrder]) -> list[EndOutcome]:
        known = [order for order in orders if self.standing(order.order.hold_id) is not HoldStanding.ABSENT]
        super().cancel(known)
        return [Ended() for _ in orders]


class HasNoFence(MemoryLog):
    """Any engine may write, deposed or not."""

    def _fence(self, epoch: int) -> None:
        pass


class ReadsTheSecretFirst(Engine):
    """Legs are posted as soon as they are held; the decision follows."""

    def _decide(self) -> bool:
        rows = self._log._log.rows  # type: ignore[attr-defined]
        for key, item in self._open.items():
            if item.refusal is None and all(leg.state is LegState.HELD for leg in item.settlement.legs):
                decided = Decided(item.settlement, Decision.COMMIT, rows[key].commit_secret)
                for leg in item.settlement.legs:
                    self._end_at((leg.terms.ledger, Decision.COMMIT), [(decided, leg)])
        return super()._decide()


class DecidesTwice(MemoryLog):
    """The later decision replaces the earlier: a COMMIT may be presumed aborted."""

    def undecided_of_others(self, *, epoch: int) -> list[UUID]:
        open_states = (SettlementState.PREPARED, SettlementState.COMMITTED)
        return [row.id for row in self.rows.values() if row.state in open_states and row.epoch < epoch]

    def decide(self, verdicts: Sequence[Verdict], legs: Sequence[LegUpdate] = (), *, epoch: int, now: datetime) -> None:
        self._fence(epoch)
        for verdict in verdicts:
            row = self.rows[verdict.settlement]
            if self.records.pop(verdict.settlement, None) is not None:
                row.abort_secret = row.commit_secret
            row.state = SettlementState.PREPARED
        super().decide(verdicts, legs, epoch=epoch, now=now)


class PresumesCommit(Engine):
    """Recovery commits what an earlier engine left undecided."""

    def start(self) -> None:
        real = self._log.decide

        def decide(verdicts: Sequence[Verdict], *, epoch: int, now: datetime) -> None:
            for verdict in verdicts:
                self._log._log.rows[verdict.settlement].epoch = epoch  # type: ignore[attr-defined]
            real([Verdict(item.settlement, Decision.COMMIT) for item in verdicts], epoch=epoch, now=now)

        self._log.decide = decide  # type: ignore[method-assign]
        try:
            super().start()
        finally:
            del self._log.__dict__["decide"]  # the class's own again


class TakesSilenceForYes(Engine):
    """A hold without an answer counts as held."""

    def _prepare_at(self, ledger, legs):  # type: ignore[no-untyped-def]
        return [Held() if isinstance(answer, Unknown) else answer for answer in super()._prepare_at(ledger, legs)]


class TakesSilenceForEnded(Engine):
    """A post or void without an answer counts as done."""

    def _end_at(self, place, legs):  # type: ignore[no-untyped-def]
        return [Ended() if isinstance(answer, Unknown) else answer for answer in super()._end_at(place, legs)]


class PostsTwice(FakeIsland):
    """A repeated post books again."""

    def fulfil(self, orders: Sequence[EndOrder]) -> list[EndOutcome]:
        for order in orders:
            hold = self._holds.get(order.order.hold_id)
            if hold is not None and hold.standing is HoldStanding.POSTED:
                self._balances[order.order.terms.credit] += order.order.terms.amount.amount_minor
        return super().fulfil(orders)


Planted = tuple[str, Callable[[], Parts], set[str]]
PLANTED: tuple[Planted, ...] = (
    ("commit-before-all-held", lambda: Parts(engine=CommitsBeforeAllAreHeld), {"split", "rest"}),
    ("both-secrets", lambda: Parts(engine=VoidsWhatDoesNotAnswer, log=KeepsBothSecrets), {"secret"}),
    ("no-tombstone", lambda: Parts(island=LeavesNoTombstone), {"rest"}),
    ("no-fence", lambda: Parts(log=HasNoFence), {"fence"}),
    ("secret-before-decision", lambda: Parts(engine=ReadsTheSecretFirst), {"secret"}),
    ("decides-twice", lambda: Parts(log=DecidesTwice), {"lost"}),
    ("presumes-commit", lambda: Parts(engine=PresumesCommit), {"split", "rest"}),
    ("silence-is-held", lambda: Parts(engine=TakesSilenceForYes), {"split", "rest"}),
    ("silence-is-ended", lambda: Parts(engine=TakesSilenceForEnded), {"split", "rest"}),
    ("posts-twice", lambda: Parts(island=PostsTwice), {"conserved"}),
)
"""Each: name, the parts with the bug, and the kinds of failure it may show as."""
