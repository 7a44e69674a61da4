"""The institution's books of its purses: who has which claim on the escrow, and what each arriving spend changes.

Pure: the service loads the rows that a chain concerns into `Books`, applies the chain, and writes back what changed,
in one transaction under the purses' locks. Messages arrive in any order, any number of times, from anybody.

Per value object the books keep which intervals were spent. What nobody has spent is still the owner's:

    escrow on the ledger = sum over value objects of (backed - covered) + payouts not booked yet - losses not booked yet

A spend over an interval that was spent before is a double spend. It is paid nevertheless: first from what the purse of
the double spender has left, whichever value object that is in, then from the institution's vault, until its losses by
this certificate reach the certificate's cap; then it falls short, for its payee and for whoever he paid with it. So the
loss by one certificate begins where its purse is empty and never exceeds its cap, and money is never made: a value
object passes on no more than it was backed with. Nothing is borne for a payee who is the double spender himself: the
same purse, another of the same account, or one that was caught too.

From the moment of the proof on, the rest of the purse is held for those whom it has paid, and then for the vault: the
device redeems nothing, and neither does another purse of the same account what it got from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from kernel.errors import InvariantBroken
from wallet.domain.offline.messages import Funding, Part, Spend
from wallet.domain.offline.verify import Chain
from wallet.domain.offline.vocabulary import Disposition, PurseRefusal, Refused

SPENDS_BOOKED_MAX = 2_000
"""Of one purse: twice what an honest one can make. A hacked device's flood ends here."""


@dataclass(slots=True)
class PurseBook:
    purse: UUID
    certificate: bytes
    """Hash."""
    account: int
    loss_max_minor: int
    closes_at: int
    loss_minor: int = 0
    """Paid by the institution for this device's double spending so far."""
    recovered_minor: int = 0
    """Taken back at closing from what the device had not spent."""
    spends: int = 0
    is_named: bool = False
    """Caught double spending, with a proof."""
    is_closed: bool = False


@dataclass(slots=True)
class SourceBook:
    """A value object. `intervals`: what was spent of it, by whichever spend."""

    hash: bytes
    owner: UUID
    amount_minor: int
    backed_minor: int
    """[0, backed) is money in the escrow; the rest fell short."""
    covered_minor: int = 0
    """Of the backed part: spent, gone towards a double spend of its owner, or returned at closing."""
    answers_for: UUID | None = None
    """The purse of the same account that paid this one: should it be caught, this money is held for its losses."""
    intervals: list[Part] = field(default_factory=list)

    @property
    def left_minor(self) -> int:
        return self.backed_minor - self.covered_minor


@dataclass(frozen=True, slots=True)
class BookedSpend:
    """What became of a spend, once and for ever: amount = credited + short."""

    hash: bytes
    payer: UUID
    payee: UUID
    counter: int
    amount_minor: int
    borne_minor: int
    """The part that is backed by the institution's vault: it was spent before."""
    short_minor: int
    is_paid_out: bool
    """To the payee's wallet; else it is a value object in his purse."""
    parts: tuple[Part, ...]
    message: bytes

    @property
    def credited_minor(self) -> int:
        return self.amount_minor - self.short_minor


@dataclass(frozen=True, slots=True)
class Conflict:
    purse: UUID
    first: bytes
    """The message of the spend that was booked before."""
    second: bytes


@dataclass(frozen=True, slots=True)
class Payout:
    """Money to move on the ledger. `key` makes its transfer's id: the same event, the same transfer (I7)."""

    key: bytes
    kind: str
    """redeem: escrow to wallet. loss: vault to escrow. recovery: escrow to vault."""
    purse: UUID
    account: int | None
    """The wallet's, of a redeem."""
    amount_minor: int


@dataclass
class Books:
    """Purses by id, value objects and spends by hash: all that a step may need. The lists are its work."""

    purses: dict[UUID, PurseBook] = field(default_factory=dict)
    sources: dict[bytes, SourceBook] = field(default_factory=dict)
    spends: dict[bytes, BookedSpend] = field(default_factory=dict)
    new_sources: list[SourceBook] = field(default_factory=list)
    new_spends: list[BookedSpend] = field(default_factory=list)
    payouts: list[Payout] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)

    def purse_of(self, certificate: bytes) -> PurseBook | None:
        return next((purse for purse in self.purses.values() if purse.certificate == certificate), None)

    def claims_minor(self) -> int:
        """What the escrow owes to value objects that are not spent."""
        return sum(source.left_minor for source in self.sources.values())

    def add_funding(self, funding: Funding) -> None:
        """Once the ledger has moved the money. Again: no change."""
        if funding.hash not in self.sources:
            source = SourceBook(funding.hash, funding.purse, funding.amount_minor, funding.amount_minor)
            self.sources[funding.hash] = source
            self.new_sources.append(source)

    def arrive(self, chain: Chain, *, now: int) -> list[BookedSpend | Refused]:
        """Book each spend of a verified chain, in order: new, or as it was booked before. After a refusal the rest is
        refused for the same reason. A redemption that is refused as held is evidence all the same.

        Refuses: purse-unknown, purse-closed, counter-exhausted (a flood), purse-held, chain-broken (a funding of other
        amount).
        """
        results: list[BookedSpend | Refused] = []
        for funding in chain.transfer.fundings:
            if funding.hash not in self.sources:
                refused = Refused(PurseRefusal.CHAIN_BROKEN, "a funding that the ledger has not booked")
                return [refused] * len(chain.transfer.spends)
        for spend in chain.transfer.spends:
            if results and isinstance(results[-1], Refused):
                results.append(results[-1])
                continue
            known = self.spends.get(spend.hash)
            results.append(known if known is not None else self._book(spend, now=now))
        return results

    def close(self, purse_id: UUID, *, now: int) -> int:
        """Settle a purse after expiry and grace: what arrived has been paid; the rest goes back to the holder's wallet,
        after the institution has taken back what it paid for this device, and for another of the same account out of
        what that one had paid to this one. Returns the holder's part."""
        purse = self.purses[purse_id]
        if purse.is_closed or now < purse.closes_at:
            return 0
        rest = 0
        for source in self.sources.values():
            if source.owner == purse_id:
                left = source.left_minor
                source.covered_minor = source.backed_minor
                other = self.purses.get(source.answers_for) if source.answers_for else None
                if other is not None:
                    left -= self._recover(other, left, key=b"recovery:" + source.hash)
                rest += left
        purse.is_closed = True
        rest -= self._recover(purse, rest, key=b"recovery")
        if rest:
            self.payouts.append(Payout(b"rest", "redeem", purse_id, purse.account, rest))
        return rest

    # --- inside

    def _book(self, spend: Spend, *, now: int) -> BookedSpend | Refused:
        payer, payee = self.purse_of(spend.payer), self.purse_of(spend.payee)
        if payer is None or payee is None:
            return Refused(PurseRefusal.PURSE_UNKNOWN)
        if payer.is_closed or now >= payer.closes_at:
            return Refused(PurseRefusal.PURSE_CLOSED, f"purse {payer.purse}")
        if payer.spends >= SPENDS_BOOKED_MAX:
            return Refused(PurseRefusal.COUNTER_EXHAUSTED, f"purse {payer.purse} was used by a hacked device")
        for other in self.spends.values():
            if other.payer == payer.purse and _excludes(other, spend):
                payer.is_named = True
                self.conflicts.append(Conflict(payer.purse, other.message, spend.signed.message))
                break
        # A purse that is settled already holds nothing any more: what comes for it goes to its wallet.
        is_paid_out = spend.disposition is Disposition.ACCOUNT or payee.is_closed or now >= payee.closes_at
        is_own = payer.account == payee.account
        if is_own and is_paid_out and self._is_held(payer, spend):
            return Refused(PurseRefusal.PURSE_HELD, f"purse {payer.purse}")
        fresh = spent_before = short = 0
        for part in spend.parts:
            source = self.sources[part.source]
            backed_end = min(part.end, source.backed_minor)
            backed = max(backed_end - part.offset, 0)
            again = _covered(part.offset, part.offset + backed, source.intervals)
            # Part of what nobody has spent may have gone towards an earlier double spend.
            new = min(backed - again, source.left_minor)
            fresh += new
            spent_before += backed - new
            short += part.amount_minor - backed
            source.covered_minor += new
            source.intervals.append(part)
        is_covered = not is_own and not payee.is_named
        from_rest = self._take_rest(payer, spent_before) if is_covered else 0
        borne = min(spent_before - from_rest, payer.loss_max_minor - payer.loss_minor) if is_covered else 0
        short += spent_before - from_rest - borne
        payer.loss_minor += borne
        payer.spends += 1
        if payer.loss_minor > payer.loss_max_minor or fresh + from_rest + borne + short != spend.amount_minor:
            raise InvariantBroken("I2", f"the books of purse {payer.purse} do not add up")
        booked = BookedSpend(
            hash=spend.hash,
            payer=payer.purse,
            payee=payee.purse,
            counter=spend.counter,
            amount_minor=spend.amount_minor,
            borne_minor=borne,
            short_minor=short,
            is_paid_out=is_paid_out,
            parts=spend.parts,
            message=spend.signed.message,
        )
        self.spends[spend.hash] = booked
        self.new_spends.append(booked)
        if borne:
            self.payouts.append(Payout(spend.hash, "loss", payer.purse, None, borne))
        if is_paid_out:
            due = booked.credited_minor
            if spend.disposition is Disposition.PURSE:  # for a purse that is settled: its debt goes first
                due -= self._recover(payee, due, key=b"recovery:" + spend.hash)
            if due:
                self.payouts.append(Payout(spend.hash, "redeem", payer.purse, payee.account, due))
        else:
            answers_for = (self._answers_for(spend) or payer.purse) if is_own else None
            source = SourceBook(
                spend.hash, payee.purse, spend.amount_minor, booked.credited_minor, answers_for=answers_for
            )
            self.sources[spend.hash] = source
            self.new_sources.append(source)
        return booked

    def _is_held(self, payer: PurseBook, spend: Spend) -> bool:
        """A redemption by a device that was caught, or of what such a one has paid to its holder's other purse."""
        answers_for = self._answers_for(spend)
        other = self.purses.get(answers_for) if answers_for else None
        return payer.is_named or (other is not None and other.is_named)

    def _answers_for(self, spend: Spend) -> UUID | None:
        """The purse of the same account from which the parts come; of several a caught one."""
        found = [purse for part in spend.parts if (purse := self.sources[part.source].answers_for) is not None]
        named = [purse for purse in found if purse in self.purses and self.purses[purse].is_named]
        return next(iter([*named, *found]), None)

    def _take_rest(self, payer: PurseBook, amount_minor: int) -> int:
        """Of what the purse has left, up to that much; it is the payee's from now on. Oldest hash first: any order
        pays the same."""
        taken = 0
        for source in sorted(self.sources.values(), key=lambda one: one.hash):
            if source.owner == payer.purse:
                step = min(source.left_minor, amount_minor - taken)
                source.covered_minor += step
                taken += step
        return taken

    def _recover(self, purse: PurseBook, available_minor: int, *, key: bytes) -> int:
        """What the vault takes back of its losses by this purse."""
        amount = min(available_minor, purse.loss_minor - purse.recovered_minor)
        if amount:
            purse.recovered_minor += amount
            self.payouts.append(Payout(key, "recovery", purse.purse, None, amount))
        return amount


def _excludes(booked: BookedSpend, spend: Spend) -> bool:
    if booked.hash == spend.hash:
        return False
    if booked.counter == spend.counter:
        return True
    return any(one.overlaps(other) for one in booked.parts for other in spend.parts)


def _covered(low: int, high: int, intervals: list[Part]) -> int:
    """How much of [low, high) lies in at least one of the intervals."""
    covered, at = 0, low
    for interval in sorted(intervals, key=lambda part: part.offset):
        start, end = max(at, interval.offset), min(high, interval.end)
        if start < end:
            covered += end - start
            at = end
    return covered
