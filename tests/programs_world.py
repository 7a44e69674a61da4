"""A bank with programs for the tests: a fake ledger that also keeps holds and linked chains, parties, shorthands.

The fake keeps a hold's money apart from every account's balance, as the ledger counts it: still the payer's, not
available to him. Holds end once; a void of an unknown hold leaves a tombstone; what is due expires by itself.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from uuid import UUID

from kernel.client import ProblemResponse
from kernel.crypto.keys import PrivateKey, PublicKey
from kernel.database import Database
from kernel.errors import ProblemError, Refusal
from kernel.ids import AccountNumber
from ledger.contract import (
    BookingsResponse,
    HoldStatus,
    HoldView,
    LedgerRefusal,
    ParticipantRole,
    ParticipantView,
    SignedInstruction,
    TransferItem,
    TransferKind,
    TransferOutcome,
    TransferRefusal,
    TransferResult,
    TransferTerms,
    sign_instruction,
)
from tests.fakes import FakeLedger, _Booked, problem
from tests.wallet_bank import Bank, Holder
from wallet.contract.programs import (
    MerchantRequest,
    ParameterValue,
    Party,
    ProgramRequest,
    ProgramStatement,
    VoucherRequest,
    VoucherSpend,
    hold_terms,
    sign_spend,
    sign_statement,
)
from wallet.domain.program_records import Spend
from wallet.usecases import program_books, program_funding, program_statements, programs, vouchers
from wallet.usecases.program_books import Known


@dataclass
class FakeHold:
    terms: TransferTerms
    status: HoldStatus = HoldStatus.HELD
    secret: bytes | None = None


class HoldingLedger(FakeLedger):
    """`FakeLedger` with holds. Faults besides: `lose_answers` and `unreachable` as there; `refuse_next` refuses one
    submission whole; `delayed` copies arrive when `arrive_late` is called."""

    holds: dict[UUID, FakeHold]
    tombstones: set[tuple[UUID, bytes]]
    peers: dict[str, PublicKey]

    @staticmethod
    def of(ledger: FakeLedger) -> HoldingLedger:
        """The same ledger, from now on with holds."""
        found = HoldingLedger.__new__(HoldingLedger)
        found.__dict__ = ledger.__dict__
        found.holds, found.tombstones, found.peers = {}, set(), {}
        return found

    def total(self) -> int:
        return super().total() + self.held()

    def held(self) -> int:
        self._expire()
        return sum(hold.terms.amount_minor or 0 for hold in self.holds.values() if hold.status is HoldStatus.HELD)

    def submit(self, items: Sequence[TransferItem], *, expires_at: datetime | None = None) -> list[TransferResult]:
        self._arrive("submit")
        if expires_at is not None and self._clock() > expires_at:
            raise ProblemResponse(
                status=401, refusal="signature-stale", transient=False, detail="expired", request_id="fake"
            )
        self._expire()
        results: list[TransferResult] = []
        chain: list[TransferItem] = []
        for item in items:
            chain.append(item)
            if not item.linked:
                results += self._chain(chain)
                chain = []
        assert not chain, "the chain is open"
        self._answer()
        return results

    def _chain(self, chain: Sequence[TransferItem]) -> list[TransferResult]:
        if len(chain) == 1:
            return [self._one(chain[0])]
        holds = {key: copy.copy(hold) for key, hold in self.holds.items()}
        accounts = {number: copy.copy(account) for number, account in self.accounts.items()}
        before = holds, set(self.tombstones), dict(self.booked), accounts
        results = [self._one(item) for item in chain]
        refused = [item for item in results if item.outcome is TransferOutcome.REFUSED]
        if not refused:
            return results
        self.holds, self.tombstones, self.booked, self.accounts = before
        first = results.index(refused[0])
        return [
            result if index == first else self._no(result.id, TransferRefusal.LINKED_TRANSFER_REFUSED)
            for index, result in enumerate(results)
        ]

    def get_hold(self, hold: UUID) -> HoldView:
        self._arrive("get_hold")
        self._expire()
        found = self.holds.get(hold)
        if found is None:
            raise problem(TransferRefusal.HOLD_NOT_FOUND)
        terms = found.terms
        return HoldView(
            hold=hold,
            status=found.status,
            debit=terms.debit,
            credit=terms.credit,
            amount_minor=terms.amount_minor,
            currency=terms.currency,
            commit_hash=terms.commit_hash,
            abort_hash=terms.abort_hash,
            expires_at=terms.expires_at,
            ended_by=None,
            secret=found.secret,
        )

    def participants(self) -> list[ParticipantView]:
        self._arrive("participants")
        return [
            ParticipantView(
                participant=name,
                name=name,
                role=ParticipantRole.INTERMEDIARY,
                key=key.to_jwk(),
                quota_minor=0,
                outstanding_minor=0,
            )
            for name, key in self.peers.items()
        ]

    def bookings(self, *, after_seq: int, limit: int = 1000) -> BookingsResponse:
        """A post moves what its hold says, between the hold's accounts."""
        kept = self.booked
        self.booked = {id: self._with_hold(item) for id, item in kept.items()}
        try:
            return super().bookings(after_seq=after_seq, limit=limit)
        finally:
            self.booked = kept

    def _with_hold(self, item: _Booked) -> _Booked:
        hold = self.holds.get(item.terms.hold) if item.terms.hold is not None else None
        if hold is None:
            return item
        named = {name: getattr(hold.terms, name) for name in ("debit", "credit", "amount_minor")}
        return replace(item, terms=item.terms.model_copy(update=named))

    def _expire(self) -> None:
        for hold in self.holds.values():
            due = hold.terms.expires_at
            if hold.status is HoldStatus.HELD and due is not None and due <= self._clock():
                self._give_back(hold, HoldStatus.EXPIRED)

    def _give_back(self, hold: FakeHold, status: HoldStatus) -> None:
        hold.status = status
        payer = self.accounts[hold.terms.debit]
        payer.balance += hold.terms.amount_minor
        payer.spent_day = max(payer.spent_day - hold.terms.amount_minor, 0)
        payer.spent_year = max(payer.spent_year - hold.terms.amount_minor, 0)

    def _no(self, id: UUID | None, refusal: Refusal) -> TransferResult:
        return TransferResult(
            id=id,
            outcome=TransferOutcome.REFUSED,
            refusal=refusal.value,
            transient=refusal.transient,
            detail=refusal.title,
        )

    def _decide(self, terms: TransferTerms, *, token: str | None, document: SignedInstruction | None) -> TransferResult:
        if terms.kind in (TransferKind.POST, TransferKind.VOID):
            return self._end(terms)
        if terms.kind is not TransferKind.HOLD or terms.id in self.booked:
            return super()._decide(terms, token=token, document=document)
        if (terms.id, terms.abort_hash) in self.tombstones:
            return self._no(terms.id, TransferRefusal.HOLD_ALREADY_VOIDED)
        if terms.expires_at is None or terms.expires_at <= self._clock():
            return self._no(terms.id, TransferRefusal.HOLD_TERMS_INVALID)
        limits = terms.model_copy(update={"kind": TransferKind.PAYMENT})
        refusal = self._refusal(limits, token, document)
        if refusal is not None:
            return self._no(terms.id, refusal)
        result = super()._decide(terms, token=token, document=document)
        if result.outcome is TransferOutcome.BOOKED:
            assert terms.debit is not None and terms.credit is not None and terms.amount_minor is not None
            self.accounts[terms.credit].balance -= terms.amount_minor
            self.accounts[terms.debit].spent_day += terms.amount_minor
            self.accounts[terms.debit].spent_year += terms.amount_minor
            self.holds[terms.id] = FakeHold(terms)
        return result

    def _end(self, terms: TransferTerms) -> TransferResult:
        if terms.id in self.booked:
            if self.booked[terms.id].terms != terms:
                return self._no(terms.id, TransferRefusal.ID_ALREADY_USED)
            found = self.booked[terms.id]
            return TransferResult(
                id=terms.id, outcome=TransferOutcome.ALREADY_BOOKED, seq=found.seq, booked_at=found.booked_at
            )
        assert terms.hold is not None and terms.secret is not None
        hashed = hashlib.sha256(terms.secret).digest()
        hold = self.holds.get(terms.hold)
        if hold is None:
            if terms.kind is TransferKind.POST:
                return self._no(terms.id, TransferRefusal.HOLD_NOT_FOUND)
            if (terms.hold, hashed) in self.tombstones:
                return self._no(terms.id, TransferRefusal.HOLD_ALREADY_VOIDED)
            self.tombstones.add((terms.hold, hashed))
        elif hold.status is not HoldStatus.HELD:
            return self._no(terms.id, _BY_STATUS[hold.status])
        elif hashed != (hold.terms.commit_hash if terms.kind is TransferKind.POST else hold.terms.abort_hash):
            return self._no(terms.id, TransferRefusal.HOLD_SECRET_WRONG)
        elif terms.kind is TransferKind.POST:
            hold.status, hold.secret = HoldStatus.POSTED, terms.secret
            self.accounts[hold.terms.credit].balance += hold.terms.amount_minor
        else:
            hold.secret = terms.secret
            self._give_back(hold, HoldStatus.VOIDED)
        return self._book(terms)

    def _book(self, terms: TransferTerms) -> TransferResult:
        booked = _Booked(len(self.booked) + 1, terms, self._clock())
        self.booked[terms.id] = booked
        return TransferResult(id=terms.id, outcome=TransferOutcome.BOOKED, seq=booked.seq, booked_at=booked.booked_at)


_BY_STATUS = {
    HoldStatus.POSTED: TransferRefusal.HOLD_ALREADY_POSTED,
    HoldStatus.VOIDED: TransferRefusal.HOLD_ALREADY_VOIDED,
    HoldStatus.EXPIRED: TransferRefusal.HOLD_EXPIRED,
}


@dataclass
class Actors:
    """Who takes part in a program: role -> key; payer and payee are holders."""

    keys: dict[str, PrivateKey]
    accounts: dict[str, AccountNumber] = field(default_factory=dict)

    def parties(self) -> list[Party]:
        return [
            Party(role=role, key=key.public.to_jwk(), account=self.accounts.get(role))
            for role, key in self.keys.items()
        ]


class ProgramBank(Bank):
    """`Bank` over a ledger with holds."""

    ledger: HoldingLedger

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.ledger = HoldingLedger.of(self.ledger)
        self.context.ledgers.home.client = self.ledger

    def actors(self, payer: Holder, payee: Holder | None, *third: str) -> Actors:
        keys = {"payer": payer.key} | ({"payee": payee.key} if payee else {})
        accounts = {"payer": payer.account} | ({"payee": payee.account} if payee else {})
        return Actors(keys | {role: PrivateKey.generate() for role in third}, accounts)

    def request(
        self,
        template: str,
        actors: Actors,
        amounts: Sequence[int] = (),
        *,
        vouchers: Sequence[VoucherRequest] = (),
        days: int = 30,
        **parameters: ParameterValue,
    ) -> ProgramRequest:
        deadline = (self.clock() + timedelta(days=days)).isoformat().replace("+00:00", "Z")
        return ProgramRequest(
            program=self.new_id(),
            template=template,
            version=1,
            parameters={"deadline": deadline} | parameters,
            parties=actors.parties(),
            amounts_minor=list(amounts),
            vouchers=list(vouchers),
        )

    def statement(self, known: Known, actors: Actors, role: str, event: str, ordinal: int = 1) -> str:
        said = ProgramStatement(
            statement=self.new_id(),
            program=known.program.id,
            terms_sha256=known.program.terms_sha256,
            role=role,
            event=event,
            ordinal=ordinal,
        )
        return sign_statement(said, actors.keys[role])

    def say(self, known: Known, actors: Actors, role: str, event: str, ordinal: int = 1) -> Known:
        return program_statements.take_statement(self.context, self.statement(known, actors, role, event, ordinal))

    def holds(self, known: Known, key: PrivateKey, *, valid_for: timedelta = timedelta(minutes=10)) -> list[str]:
        return [
            sign_instruction(hold, ledger="cny", valid_until=self.clock() + valid_for, key=key)
            for hold in hold_terms(known.terms)
        ]

    def propose(self, request: ProgramRequest, actors: Actors) -> Known:
        """Terms, accepted by everybody who must."""
        known = programs.propose(self.context, request)
        for role in known.awaited:
            known = self.say(known, actors, role, "accept")
        return known

    def fund(self, known: Known, actors: Actors) -> Known:
        agreement = self.statement(known, actors, "payer", "agree")
        holds = self.holds(known, actors.keys["payer"])
        return program_funding.fund(self.context, known.program.id, agreement=agreement, instructions=holds)

    def funded(self, request: ProgramRequest, actors: Actors) -> Known:
        return self.fund(self.propose(request, actors), actors)

    # --- vouchers

    def voucher(self, recipient: Holder, value_minor: int) -> VoucherRequest:
        return VoucherRequest(
            voucher=self.new_id(),
            recipient=recipient.key.public.to_jwk(),
            account=recipient.account,
            value_minor=value_minor,
        )

    def merchant(self, *, category: str = "5411", place: str = "330106") -> Holder:
        holder = self.holder()
        request = MerchantRequest(account=holder.account, name="Shop", category=category, place=place)
        vouchers.register_merchant(self.context, request)
        return holder

    def purchase(
        self, voucher: UUID, merchant: int, amount_minor: int, key: PrivateKey, *, spend: UUID | None = None
    ) -> str:
        order = VoucherSpend(
            spend=spend or self.new_id(),
            voucher=voucher,
            merchant=AccountNumber(merchant),
            amount_minor=amount_minor,
            currency="CNY",
            valid_until=self.clock() + timedelta(minutes=10),
        )
        return sign_spend(order, key)

    def spend(self, voucher: UUID, merchant: Holder, amount_minor: int, recipient: Holder) -> Spend:
        token = self.purchase(voucher, merchant.account, amount_minor, recipient.key)
        return vouchers.spend(self.context, token)

    # --- what must always be so

    def check(self, program_id: UUID) -> Mapping[str, int]:
        """released + returned + held = funded, in the program's totals, in its parts, and in the ledger."""
        known = program_books.find(self.context, program_id)
        program = known.program
        sums = {"held": 0, "released": 0, "returned": 0, "proposed": 0}
        for part in known.parts:
            sums[part.state] += part.amount_minor
        if program.state in ("active", "finished"):
            assert program.held_minor + program.released_minor + program.returned_minor == program.funded_minor
            assert sums["held"] == program.held_minor
        else:
            assert program.held_minor == program.released_minor == program.returned_minor == 0
        return sums


def refusal_of(work: object, *arguments: object, **named: object) -> str:
    """The refusal with which a use case ends."""
    assert callable(work)
    try:
        work(*arguments, **named)
    except ProblemError as error:
        return error.refusal.value
    raise AssertionError("it was not refused")


__all__ = ["Actors", "HoldingLedger", "LedgerRefusal", "ProgramBank", "refusal_of"]
