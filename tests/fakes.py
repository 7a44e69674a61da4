"""In-memory stand-ins for other services.

`FakeLedger` answers like a `LedgerClient` of a real ledger: it verifies signatures, books each id at most once, keeps
balances and class limits, changes accounts (`change_account`; a participant's own signature is checked where
`participant_key` is set), and refuses in the ledger's order of precedence (the part that wallets meet). Faults:

    ledger.lose_answers = 1        # the next submission is booked, its answer lost (ServiceUnreachable)
    ledger.unreachable = True      # nothing arrives
    ledger.before_call = function  # called with the method's name, may raise
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

from pydantic import ValidationError

from kernel import strict_json
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.clock import Clock
from kernel.crypto import jws
from kernel.crypto.keys import PublicKey
from kernel.errors import ProblemError, Refusal
from kernel.ids import AccountNumber
from ledger.client import LedgerClient
from ledger.contract import (
    CHANGE_TYP,
    CONSENT_TYP,
    HOLDER_KEYS_MAX,
    INSTRUCTION_TYP,
    KEY_RECOVERY_SECONDS,
    STATUS_BY_REFUSAL,
    AccountChangeDocument,
    AccountChangeView,
    AccountKind,
    AccountOpening,
    AccountOpeningResult,
    AccountStatus,
    AccountView,
    AnnouncedKeyView,
    Booking,
    BookingsResponse,
    HolderKeyChange,
    InvalidInstruction,
    LedgerRefusal,
    ParticipantRole,
    ParticipantView,
    RuleClass,
    SetAccountClass,
    SetBalanceCap,
    SignedInstruction,
    StatementLine,
    StatementResponse,
    TransferAnswer,
    TransferItem,
    TransferKind,
    TransferOutcome,
    TransferRefusal,
    TransferResult,
    TransferTerms,
    TransferView,
    read_account_change,
)


@dataclass
class _Account:
    number: AccountNumber
    kind: AccountKind
    rule_class: str
    key: PublicKey | None
    """The oldest of the holder's keys."""
    more_keys: list[PublicKey] = field(default_factory=list)
    announced: tuple[PublicKey, datetime] | None = None
    cap_version: int = 0
    balance_max: int | None = None
    status: AccountStatus = AccountStatus.ACTIVE
    balance: int = 0
    day: object = None
    spent_day: int = 0
    spent_year: int = 0

    @property
    def keys(self) -> list[PublicKey]:
        return [self.key, *self.more_keys] if self.key is not None else []

    def key_of(self, token: str) -> PublicKey | None:
        """The holder's key that a token names."""
        kid = jws.peek_header(token).get("kid")
        return next((key for key in self.keys if key.thumbprint == kid), None)


@dataclass
class _Booked:
    seq: int
    terms: TransferTerms
    booked_at: datetime
    balances: dict[int, int] = field(default_factory=dict)


_UNPOSTED = (TransferKind.HOLD, TransferKind.VOID, TransferKind.EXPIRE, TransferKind.TOMBSTONE)


class FakeLedger(LedgerClient):
    def __init__(
        self,
        *,
        clock: Clock,
        name: str = "cny",
        currency: str = "CNY",
        rule_classes: Sequence[RuleClass] = (),
        participant: str = "BKCHCNBJ",
    ) -> None:
        self.name, self.currency, self.participant = name, currency, participant
        self.accounts: dict[int, _Account] = {}
        self.openings: dict[UUID, int] = {}
        self.booked: dict[UUID, _Booked] = {}
        self.changes: dict[UUID, tuple[bytes, AccountChangeView]] = {}
        self.key_recovery_seconds = KEY_RECOVERY_SECONDS
        self.participant_key: PublicKey | None = None
        self.classes = {rule_class.name: rule_class for rule_class in rule_classes}
        self.institutions: dict[str, PublicKey] = {}
        self.lose_answers = 0
        self.unreachable = False
        self.before_call: Callable[[str], None] = lambda method: None
        self._clock = clock

    def close(self) -> None:
        pass

    def fund(self, account: int, amount_minor: int) -> None:
        """Money from nowhere, for tests: an issue."""
        self.accounts[account].balance += amount_minor

    def total(self) -> int:
        return sum(account.balance for account in self.accounts.values())

    # --- the client's methods

    def participants(self) -> list[ParticipantView]:
        self._arrive("participants")
        return [
            ParticipantView(
                participant=participant,
                name=participant,
                role=ParticipantRole.INTERMEDIARY,
                key=key.to_jwk(),
                quota_minor=0,
                outstanding_minor=0,
            )
            for participant, key in self.institutions.items()
        ]

    def submit(self, items: Sequence[TransferItem], *, expires_at: datetime | None = None) -> list[TransferResult]:
        """Arrives when it is called: a test that delays a copy calls this later, with the copy's own `expires_at`."""
        self._arrive("submit")
        if expires_at is not None and self._clock() > expires_at:
            raise ProblemResponse(
                status=401, refusal="signature-stale", transient=False, detail="expired", request_id="fake"
            )
        results = [self._one(item) for item in items]
        self._answer()
        return results

    def submit_signed(self, tokens: Sequence[str], *, expires_at: datetime | None = None) -> list[TransferAnswer]:
        items = [TransferItem(instruction=token) for token in tokens]
        return [
            TransferAnswer(**result.model_dump(mode="json"))
            for result in self.submit(items, **({} if expires_at is None else {"expires_at": expires_at}))
        ]

    def get_transfer(self, transfer: UUID) -> TransferView:
        self._arrive("get_transfer")
        booked = self.booked.get(transfer)
        if booked is None:
            raise problem(LedgerRefusal.TRANSFER_NOT_FOUND)
        return TransferView(
            id=transfer,
            seq=booked.seq,
            kind=booked.terms.kind,
            debit=booked.terms.debit,
            debit_kind=self.accounts[booked.terms.debit].kind if booked.terms.debit else None,
            credit=booked.terms.credit,
            amount_minor=booked.terms.amount_minor,
            currency=booked.terms.currency,
            hold=None,
            reference=booked.terms.reference,
            booked_at=booked.booked_at,
            submitter=self.participant,
        )

    def open_accounts(self, openings: Sequence[AccountOpening]) -> list[AccountOpeningResult]:
        self._arrive("open_accounts")
        results = [self._open(opening) for opening in openings]
        self._answer()
        return results

    def check_accounts(self, accounts: Sequence[int]) -> list[bool]:
        self._arrive("check_accounts")
        return [account in self.accounts for account in accounts]

    def get_account(self, account: int) -> AccountView:
        self._arrive("get_account")
        if account not in self.accounts:
            raise problem(LedgerRefusal.ACCOUNT_NOT_FOUND)
        found = self.accounts[account]
        self._roll(found)
        return AccountView(
            account=found.number,
            kind=found.kind,
            participant=self.participant,
            status=found.status,
            rule_class=found.rule_class,
            currency=self.currency,
            balance_minor=found.balance,
            available_minor=found.balance,
            debits_posted_minor=0,
            credits_posted_minor=found.balance,
            debits_pending_minor=0,
            credits_pending_minor=0,
            spent_today_minor=found.spent_day,
            spent_this_year_minor=found.spent_year,
            balance_max_minor=found.balance_max,
            holder_key=found.key.thumbprint if found.key else None,
            holder_keys=[key.thumbprint for key in found.keys],
            announced_key=self._announced(found),
            as_of_seq=len(self.booked),
            as_of=self._clock(),
        )

    def change_account(self, change: str | None, *, consent: str | None = None) -> AccountChangeView:
        self._arrive("change_account")
        try:
            document = read_account_change(change or consent or "")
            if change is not None and self.participant_key is not None:
                jws.verify(change, self.participant_key, typ=CHANGE_TYP)
        except (jws.InvalidJws, InvalidInstruction):
            raise problem(LedgerRefusal.INSTRUCTION_INVALID) from None
        payload = jws.peek_payload(change or consent or "")
        if document.id in self.changes:
            before, view = self.changes[document.id]
            if before != payload:
                raise problem(LedgerRefusal.CHANGE_EXISTS)
            return view
        refusal = self._change(document, payload, is_signed=change is not None, consent=consent)
        if refusal is not None:
            raise problem(refusal)
        view = AccountChangeView(
            id=document.id,
            change=document.change,
            has_consent=consent is not None,
            directive=len(self.changes) + 100,
            booked_at=self._clock(),
        )
        self.changes[document.id] = (payload, view)
        self._answer()
        return view

    def get_account_change(self, change: UUID) -> AccountChangeView:
        self._arrive("get_account_change")
        if change not in self.changes:
            raise problem(LedgerRefusal.CHANGE_NOT_FOUND)
        return self.changes[change][1]

    def statement(
        self, account: int, *, cursor: str | None = None, limit: int = 1000, newest_first: bool = False
    ) -> StatementResponse:
        self._arrive("statement")
        lines = []
        for booked in sorted(self.booked.values(), key=lambda found: found.seq, reverse=newest_first):
            is_further = cursor is None or (booked.seq < int(cursor) if newest_first else booked.seq > int(cursor))
            if account in (booked.terms.debit, booked.terms.credit) and is_further:
                is_debit = account == booked.terms.debit
                lines.append(
                    StatementLine(
                        seq=booked.seq,
                        transfer=booked.terms.id,
                        kind=booked.terms.kind,
                        direction="debit" if is_debit else "credit",
                        amount_minor=booked.terms.amount_minor,
                        counterparty=booked.terms.credit if is_debit else booked.terms.debit,
                        reference=booked.terms.reference,
                        booked_at=booked.booked_at,
                        balance_minor=booked.balances[account],
                    )
                )
        more, lines = len(lines) > limit, lines[:limit]
        return StatementResponse(
            account=AccountNumber(account),
            currency=self.currency,
            opening_balance_minor=0,
            closing_balance_minor=lines[-1].balance_minor if lines else 0,
            lines=lines,
            next_cursor=str(lines[-1].seq) if more else None,
        )

    def bookings(self, *, after_seq: int, limit: int = 1000) -> BookingsResponse:
        """Of all accounts: the one participant has them all."""
        self._arrive("bookings")
        found = sorted((item for item in self.booked.values() if item.seq > after_seq), key=lambda item: item.seq)
        page = [
            Booking(
                seq=item.seq,
                transfer=item.terms.id,
                kind=item.terms.kind,
                debit=item.terms.debit,
                credit=item.terms.credit,
                amount_minor=0 if item.terms.kind in _UNPOSTED else item.terms.amount_minor,
                reference=item.terms.reference,
                booked_at=item.booked_at,
            )
            for item in found[:limit]
        ]
        return BookingsResponse(bookings=page, through_seq=page[-1].seq if page else after_seq)

    # --- inside

    def _arrive(self, method: str) -> None:
        if self.unreachable:
            raise ServiceUnreachable("the fake ledger is unreachable")
        self.before_call(method)

    def _answer(self) -> None:
        if self.lose_answers:
            self.lose_answers -= 1
            raise ServiceUnreachable("the fake ledger's answer was lost")

    def _open(self, opening: AccountOpening) -> AccountOpeningResult:
        if opening.opening not in self.openings:
            if opening.kind is AccountKind.WALLET and opening.rule_class not in self.classes:
                refusal = LedgerRefusal.CLASS_UNKNOWN
                return AccountOpeningResult(opening=opening.opening, refusal=refusal, transient=refusal.transient)
            number = AccountNumber(len(self.accounts) + 17)
            key = PublicKey.from_jwk(opening.holder_key) if opening.holder_key else None
            self.accounts[number] = _Account(number, opening.kind, opening.rule_class, key)
            self.openings[opening.opening] = number
        return AccountOpeningResult(opening=opening.opening, account=AccountNumber(self.openings[opening.opening]))

    def _announced(self, account: _Account) -> AnnouncedKeyView | None:
        if account.announced is None:
            return None
        key, at = account.announced
        effective_at = at + timedelta(seconds=self.key_recovery_seconds)
        return AnnouncedKeyView(key=key.thumbprint, announced_at=at, effective_at=effective_at)

    def _change(
        self, document: AccountChangeDocument, payload: bytes, *, is_signed: bool, consent: str | None
    ) -> Refusal | None:
        """Carries a change out, or says why not, in the ledger's order."""
        change, now = document.change, self._clock()
        if document.ledger != self.name:
            return LedgerRefusal.WRONG_LEDGER
        if document.valid_until < now:
            return LedgerRefusal.INSTRUCTION_EXPIRED
        if is_signed == (change.change == "object-to-key"):
            return LedgerRefusal.INSTRUCTION_INVALID
        account = self.accounts.get(change.account)
        if account is None:
            return LedgerRefusal.ACCOUNT_NOT_FOUND
        if account.status is AccountStatus.CLOSED:
            return TransferRefusal.ACCOUNT_CLOSED
        if consent is not None:
            key = account.key_of(consent)
            try:
                if key is None or jws.verify(consent, key, typ=CONSENT_TYP) != payload:
                    return LedgerRefusal.CONSENT_INVALID
            except jws.InvalidJws:
                return LedgerRefusal.CONSENT_INVALID
        if isinstance(change, SetAccountClass):
            if change.rule_class not in self.classes:
                return LedgerRefusal.CLASS_UNKNOWN
            account.rule_class = change.rule_class
        elif isinstance(change, SetBalanceCap):
            if change.version > account.cap_version:
                account.cap_version, account.balance_max = change.version, change.balance_max_minor
        elif isinstance(change, HolderKeyChange):
            return self._change_key(account, change, has_consent=consent is not None)
        elif change.change == "object-to-key":
            if account.announced is None:
                return LedgerRefusal.KEY_NOT_ANNOUNCED
            account.announced = None
        elif change.change == "suspend":
            account.status = AccountStatus.SUSPENDED
        elif change.change == "resume":
            account.status = AccountStatus.ACTIVE
        else:
            if account.balance:
                return LedgerRefusal.ACCOUNT_NOT_EMPTY
            account.status, account.announced = AccountStatus.CLOSED, None
        return None

    def _change_key(self, account: _Account, change: HolderKeyChange, *, has_consent: bool) -> Refusal | None:
        if account.kind is not AccountKind.WALLET:
            return LedgerRefusal.HOLDER_KEY_MISMATCH
        key, keys = PublicKey.from_jwk(change.key), account.keys
        is_known = key.thumbprint in [known.thumbprint for known in keys]
        if not has_consent and change.change in ("add-holder-key", "remove-holder-key"):
            return LedgerRefusal.CONSENT_MISSING
        if change.change == "remove-holder-key":
            if not is_known:
                return LedgerRefusal.HOLDER_KEY_UNKNOWN
            if len(keys) == 1:
                return LedgerRefusal.HOLDER_KEY_LAST
            keys = [known for known in keys if known.thumbprint != key.thumbprint]
        elif is_known:
            return LedgerRefusal.KEY_IN_USE
        elif change.change == "add-holder-key":
            if len(keys) == HOLDER_KEYS_MAX:
                return LedgerRefusal.HOLDER_KEYS_EXCEEDED
            keys = [*keys, key]
        elif change.change == "announce-holder-key":
            account.announced = (key, self._clock())
            return None
        else:
            if not has_consent:
                if account.announced is None or account.announced[0].thumbprint != key.thumbprint:
                    return LedgerRefusal.KEY_NOT_ANNOUNCED
                if self._clock() < account.announced[1] + timedelta(seconds=self.key_recovery_seconds):
                    return LedgerRefusal.KEY_RECOVERY_PENDING
            keys, account.announced = [key], None
        account.key, account.more_keys = keys[0], keys[1:]
        return None

    def _one(self, item: TransferItem) -> TransferResult:
        if item.instruction is None:
            assert item.terms is not None
            return self._decide(item.terms, token=None, document=None)
        try:
            document = SignedInstruction.model_validate(strict_json.loads(jws.peek_payload(item.instruction)))
        except (jws.InvalidJws, ValidationError, ProblemError) as error:
            raise AssertionError("the wallet let a malformed instruction through") from error
        return self._decide(document.terms, token=item.instruction, document=document)

    def _decide(self, terms: TransferTerms, *, token: str | None, document: SignedInstruction | None) -> TransferResult:
        refusal = self._refusal(terms, token, document)
        if refusal is not None:
            return TransferResult(
                id=terms.id,
                outcome=TransferOutcome.REFUSED,
                refusal=refusal.value,
                transient=refusal.transient,
                detail=refusal.title,
            )
        if terms.id in self.booked:
            found = self.booked[terms.id]
            return TransferResult(
                id=terms.id, outcome=TransferOutcome.ALREADY_BOOKED, seq=found.seq, booked_at=found.booked_at
            )
        assert terms.debit is not None and terms.credit is not None and terms.amount_minor is not None
        debit, credit = self.accounts[terms.debit], self.accounts[terms.credit]
        debit.balance -= terms.amount_minor
        credit.balance += terms.amount_minor
        if terms.kind in (TransferKind.PAYMENT, TransferKind.PURSE_FUND):
            debit.spent_day += terms.amount_minor
            debit.spent_year += terms.amount_minor
        balances: dict[int, int] = {terms.debit: debit.balance, terms.credit: credit.balance}
        booked = _Booked(len(self.booked) + 1, terms, self._clock(), balances)
        self.booked[terms.id] = booked
        return TransferResult(id=terms.id, outcome=TransferOutcome.BOOKED, seq=booked.seq, booked_at=booked.booked_at)

    def _refusal(self, terms: TransferTerms, token: str | None, document: SignedInstruction | None) -> Refusal | None:
        if document is not None and document.ledger != self.name:
            return LedgerRefusal.WRONG_LEDGER
        if document is not None and self._clock() >= document.valid_until:
            return LedgerRefusal.INSTRUCTION_EXPIRED
        if terms.currency != self.currency:
            return LedgerRefusal.WRONG_CURRENCY
        if not terms.amount_minor:
            return TransferRefusal.AMOUNT_INVALID
        if terms.debit == terms.credit:
            return TransferRefusal.ACCOUNTS_MUST_DIFFER
        if terms.id in self.booked:
            return None if self.booked[terms.id].terms == terms else TransferRefusal.ID_ALREADY_USED
        debit, credit = self.accounts.get(terms.debit or 0), self.accounts.get(terms.credit or 0)
        if debit is None:
            return TransferRefusal.DEBIT_ACCOUNT_UNKNOWN
        if credit is None:
            return TransferRefusal.CREDIT_ACCOUNT_UNKNOWN
        if debit.kind is AccountKind.WALLET:
            if token is None or debit.key is None:
                return TransferRefusal.NOT_AUTHORISED
            try:
                jws.verify(token, debit.key_of(token) or debit.key, typ=INSTRUCTION_TYP)
            except jws.InvalidJws:
                return LedgerRefusal.INSTRUCTION_INVALID
        if AccountStatus.CLOSED in (debit.status, credit.status):
            return TransferRefusal.ACCOUNT_CLOSED
        if debit.status is AccountStatus.SUSPENDED:
            return TransferRefusal.DEBIT_ACCOUNT_SUSPENDED
        self._roll(debit)
        caps = self.classes.get(debit.rule_class)
        if caps is not None and terms.kind in (TransferKind.PAYMENT, TransferKind.PURSE_FUND):
            if _exceeds(terms.amount_minor, caps.single_max_minor):
                return TransferRefusal.SINGLE_LIMIT_EXCEEDED
            if _exceeds(debit.spent_day + terms.amount_minor, caps.day_max_minor):
                return TransferRefusal.DAY_LIMIT_EXCEEDED
            if _exceeds(debit.spent_year + terms.amount_minor, caps.year_max_minor):
                return TransferRefusal.YEAR_LIMIT_EXCEEDED
        if debit.balance < terms.amount_minor:
            return TransferRefusal.INSUFFICIENT_FUNDS
        caps = self.classes.get(credit.rule_class)
        if caps is not None and _exceeds(credit.balance + terms.amount_minor, caps.balance_max_minor):
            return TransferRefusal.BALANCE_LIMIT_EXCEEDED
        if _exceeds(credit.balance + terms.amount_minor, credit.balance_max):
            return TransferRefusal.BALANCE_LIMIT_EXCEEDED
        return None

    def _roll(self, account: _Account) -> None:
        today = self._clock().astimezone(UTC).date()
        if account.day != today:
            account.day, account.spent_day = today, 0


def problem(refusal: Refusal) -> ProblemResponse:
    """What a client raises when the service refuses the whole request."""
    return ProblemResponse(
        status=STATUS_BY_REFUSAL[refusal],
        refusal=refusal.value,
        transient=refusal.transient,
        detail=refusal.title,
        request_id="fake",
    )


def _exceeds(value: int, cap: int | None) -> bool:
    return cap is not None and value > cap
