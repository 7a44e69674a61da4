"""Carry holders' signed transfers to the ledger: payments, refunds, exchanges out. The service's hot path.

The institution can carry such a transfer but not make one: the ledger checks the holder's signature (I8), and for most
instructions it alone does (`wallet.usecases.doubts`). One path for one or a thousand:

  1. read each instruction;
  2. one transaction: find the wallets of the debit accounts, decide limits (I9) under their rows' locks, count usage,
     record the payments as initiated;
  3. one ledger batch;
  4. one transaction: final or refused; a refused payment's usage is given back, and one that the ledger found not to be
     signed by the holder is forgotten.

A crash or a lost answer between 2 and 4 leaves initiated payments. Repeating the request, or the recovery pass, sends
the same instruction again: the transfer's id books at most once (I7). So 2 waits for the disk, and 4 does only if it
records a refusal: what is lost of it is initiated again, and recovery asks the ledger (docs/decisions/0008).

A refusal is believed only when no other copy can still be booked. Every submission is one copy, signed to expire
SUBMISSION_LIFE after the payment's `tried_at`, which is stored before it is sent and so bounds all copies whose outcome
is not known. While an earlier one may live, or a newer attempt has begun, a refused payment stays initiated.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from functools import lru_cache
from uuid import UUID

from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.crypto import jws
from kernel.crypto.keys import PublicKey
from kernel.errors import ProblemError, Refusal, RequestRefusal
from kernel.ids import is_from_future
from kernel.money import AMOUNT_MINOR_MAX
from ledger.contract import (
    INSTRUCTION_TYP,
    Instruction,
    InvalidInstruction,
    LedgerRefusal,
    TransferAnswer,
    TransferKind,
    TransferOutcome,
    TransferRefusal,
    read_instruction,
    show_moment,
)
from wallet.contract import WalletRefusal
from wallet.domain import limits
from wallet.domain.lifecycle import caps_in_force, refuse_paying
from wallet.domain.limits import Usage
from wallet.domain.records import Payment, PaymentKind
from wallet.store import carriage
from wallet.store.carriage import Booked, Connection, Payer
from wallet.usecases import own_rules
from wallet.usecases.context import SUBMISSION_GRACE, SUBMISSION_LIFE, Context, refusal_of, show_transfer
from wallet.usecases.kept_twice import KeptByDatabase
from wallet.usecases.own_rules import OwnRules, Tally

_KINDS: Mapping[TransferKind, PaymentKind] = {
    TransferKind.PAYMENT: "payment",
    TransferKind.REFUND: "refund",
    TransferKind.EXCHANGE_OUT: "exchange-out",
}
PAYMENTS = frozenset({TransferKind.PAYMENT})
REFUNDS = frozenset({TransferKind.REFUND})
"""Only `wallet.usecases.refunds` carries these: each is tied to the payment that it gives back."""
EXCHANGES_OUT = frozenset({TransferKind.EXCHANGE_OUT})
_KEYS_CACHED_MAX = 10_000
RECORD_ATTEMPTS_MAX = 4
"""An id that is taken is read at the second attempt, unless its payment was forgotten meanwhile: payers of one payment
request share the id of its payment (`wallet.usecases.incoming`)."""


@dataclass(frozen=True, slots=True)
class Declined:
    """An instruction that was not recorded: nothing happened, nothing will."""

    payment_id: UUID | None
    refusal: Refusal
    detail: str = ""


Outcome = Payment | Declined
"""A recorded payment says final, refused or (the ledger's answer is not known yet) initiated."""


def pay(context: Context, tokens: Sequence[str], *, kinds: Collection[TransferKind] = PAYMENTS) -> list[Outcome]:
    """One outcome an instruction, in order. Nothing is all-or-nothing: each item stands alone."""
    outcomes: list[Outcome | None] = [None] * len(tokens)
    taken: list[tuple[int, Instruction]] = []
    for index, token in enumerate(tokens):
        read = _read(token)
        if isinstance(read, Declined):
            outcomes[index] = read
        else:
            taken.append((index, read))
    if taken:
        carried = _carry_instructions(context, [item for _, item in taken], kinds)
        for (index, _), outcome in zip(taken, carried, strict=True):
            outcomes[index] = outcome
    return [outcome for outcome in outcomes if outcome is not None]


def pay_out(context: Context, token: str) -> Payment:
    """`pay_one` for the one instruction that empties a wallet which is being closed."""
    item = _read(token)
    if isinstance(item, Declined):
        return final(item)
    return final(_carry_instructions(context, [item], PAYMENTS | EXCHANGES_OUT, is_payout=True)[0])


def pay_one(context: Context, token: str, *, kinds: Collection[TransferKind] = PAYMENTS) -> Payment:
    """The final payment. Raises: ProblemError with the refusal, or outcome-unknown: repeat the same request."""
    return final(pay(context, [token], kinds=kinds)[0])


def final(outcome: Outcome) -> Payment:
    """The payment, if it is final. Raises: as `pay_one`."""
    if isinstance(outcome, Declined):
        raise ProblemError(outcome.refusal, outcome.detail)
    if outcome.state == "refused":
        raise ProblemError(refusal_of(outcome.refusal), outcome.detail or "")
    if outcome.state == "initiated":
        raise ProblemError(LedgerRefusal.OUTCOME_UNKNOWN, "the ledger's answer is not known yet; repeat the request")
    return outcome


# --- 1. read ---------------------------------------------------------------------------------------------------------


def _read(token: str) -> Instruction | Declined:
    try:
        item = read_instruction(token)
    except InvalidInstruction as error:
        return Declined(None, LedgerRefusal.INSTRUCTION_INVALID, error.reason)
    if item.kind not in _KINDS:
        return Declined(item.id, TransferRefusal.KIND_NOT_ALLOWED, f"a {item.kind.value} is not carried here")
    if item.debit is None or item.credit is None or item.amount_minor is None:
        return Declined(item.id, LedgerRefusal.INSTRUCTION_INVALID, "give debit, credit and amount_minor")
    return item


# --- 2. to 4. carry --------------------------------------------------------------------------------------------------


def carry(context: Context, items: Sequence[Payment]) -> list[Outcome]:
    """Record, submit, conclude payments that were recorded before, each once. What is known of them now is kept."""
    return _carry(context, items, kinds=frozenset(_KINDS), in_doubt=frozenset())


def _carry_instructions(
    context: Context, items: Sequence[Instruction], kinds: Collection[TransferKind], *, is_payout: bool = False
) -> list[Outcome]:
    accounts = [item.debit for item in items if item.debit is not None]
    in_doubt = context.doubts.enter(accounts)
    try:
        return _carry(context, items, kinds=kinds, in_doubt=in_doubt, is_payout=is_payout)
    finally:
        context.doubts.leave(accounts)


def _carry(
    context: Context,
    items: Sequence[Instruction | Payment],
    *,
    kinds: Collection[TransferKind],
    in_doubt: Collection[int],
    is_payout: bool = False,
) -> list[Outcome]:
    recorder = _Recorder(context, items, kinds=kinds, in_doubt=in_doubt, is_payout=is_payout)
    for attempt in range(RECORD_ATTEMPTS_MAX):
        try:
            recorded = context.database.run_session(recorder.record)
            break
        except KeptByDatabase as kept:
            # An id was taken in between: now it is there to be read. Or a wallet came under dual control in between, or
            # under a cap: now its rules are there.
            if attempt == RECORD_ATTEMPTS_MAX - 1:
                if kept.is_taken:
                    raise
                # What is held back holds up nobody else's payment: each by itself.
                if len(items) == 1:
                    return [Declined(items[0].id, kept.refusal, kept.detail)]
                apart = [_carry(context, [item], kinds=kinds, in_doubt=in_doubt, is_payout=is_payout) for item in items]
                return [outcomes[0] for outcomes in apart]
    to_submit = [
        item
        for index, item in enumerate(recorded.outcomes)
        if isinstance(item, Payment) and item.state == "initiated" and index not in recorded.repeats
    ]
    if not to_submit:
        return recorded.outcomes
    concluded = _conclude(context, to_submit, _submit(context, to_submit), recorded)
    return [concluded.get(item.id, item) if isinstance(item, Payment) else item for item in recorded.outcomes]


_Earlier = Mapping[UUID, datetime]
"""When a payment's newest earlier copy whose outcome is not known was decided on. Absent: there is no such copy."""


@dataclass(frozen=True, slots=True)
class _Recorded:
    outcomes: list[Outcome]
    """Of each item: initiated and counted; as it was concluded before; or declined."""
    repeats: Collection[int]
    """Items that repeat an earlier one of the same request: they are not sent again."""
    earlier: _Earlier
    new: Collection[UUID]
    """What was recorded now for the first time."""


@dataclass(frozen=True, slots=True)
class _Decided:
    """Step 2 before it is written."""

    recorded: _Recorded
    new: Sequence[Payment]
    tried_again: Sequence[Payment]
    usages: Mapping[int, Usage]
    own: Tally


class _Recorder:
    """Step 2. Its `record` may be run again from the start."""

    def __init__(
        self,
        context: Context,
        items: Sequence[Instruction | Payment],
        *,
        kinds: Collection[TransferKind],
        in_doubt: Collection[int],
        is_payout: bool = False,
    ) -> None:
        self._context = context
        self._is_payout = is_payout
        self._items = items
        self._kinds = kinds
        self._in_doubt = in_doubt
        self._ids = [item.id for item in items]
        self._own = OwnRules()
        self._must_ask = any(isinstance(item, Payment) for item in items)
        """Which of the payments are known already."""
        home = context.ledgers.home
        is_exchange = any(item.kind == TransferKind.EXCHANGE_OUT.value for item in items)
        self._vault = context.ledgers.vault(home) if is_exchange else None

    def record(self, connection: Connection) -> _Recorded:
        """Mostly every payment is new, and then nobody need be asked: the primary key refuses one that is known.
        One that is known may look refused (its limit is used up, by itself): so nothing is declined without asking.

        Raises: KeptByDatabase; then run it again.
        """
        moves = [(item.id, _debit(item), _credit(item)) for item in self._items]
        sides = {account for _, *both in moves for account in both if account}
        locked = carriage.lock_payers_and_rules(connection, [debit for _, debit, _ in moves], sides)
        payers = locked.payers
        self._own = own_rules.load(
            connection,
            moves,
            of_children=locked.of_children,
            of_cards=locked.of_cards,
            of_controls=locked.of_controls,
        )
        if not self._must_ask:
            decided = self._decide(connection, payers, {})
            self._must_ask = True
            if not any(isinstance(outcome, Declined) for outcome in decided.recorded.outcomes):
                return self._write(connection, decided)
        decided = self._decide(connection, payers, carriage.lock_payments(connection, self._ids))
        return self._write(connection, decided)

    @staticmethod
    def _write(connection: Connection, decided: _Decided) -> _Recorded:
        for payment in decided.tried_again:
            carriage.mark_tried_again(connection, payment)
        carriage.insert_initiated(connection, decided.new, usages=decided.usages)
        decided.own.write(connection)
        return decided.recorded

    def _decide(self, connection: Connection, payers: Mapping[int, Payer], known: Mapping[UUID, Payment]) -> _Decided:
        context, now = self._context, self._context.clock()
        today = limits.scheme_day(now, context.time_zone)
        own = Tally(context, self._own, connection, now=now, today=today)
        usages: dict[int, Usage] = {}
        new: list[Payment] = []
        tried_again: list[Payment] = []
        earlier: dict[UUID, datetime] = {}
        outcomes: list[Outcome] = []
        repeats: set[int] = set()
        first_by_id: dict[UUID, Payment] = {}
        for payment_id, item in zip(self._ids, self._items, strict=True):
            payer, before = payers.get(_debit(item)), known.get(payment_id)
            checked = self._check(payment_id, item, payer, before=before, now=now, today=today)
            if isinstance(checked, Declined) or payer is None:
                outcomes.append(checked)
                continue
            first = first_by_id.get(payment_id)
            if first is not None:
                repeats.add(len(outcomes))
                is_same = checked.has_terms_of(first)
                outcomes.append(first if is_same else Declined(payment_id, TransferRefusal.ID_ALREADY_USED))
                continue
            if before is not None:
                again = _again(checked, before, payer, now)
                if not isinstance(again, Payment) or again.state != "initiated":
                    outcomes.append(again)
                    continue
                if before.state == "initiated":  # on its way, counted already
                    earlier[payment_id] = before.tried_at
                    tried_again.append(again)
                    first_by_id[payment_id] = again
                    outcomes.append(again)
                    continue
                checked = again
            if payer.state != "open":
                refusal = refuse_paying(payer.state)
                if refusal is not None and not (self._is_payout and payer.state == "closing"):
                    outcomes.append(Declined(payment_id, refusal))
                    continue
            if now >= checked.valid_until:
                outcomes.append(Declined(payment_id, LedgerRefusal.INSTRUCTION_EXPIRED))
                continue
            not_allowed = own.refuse(checked)
            if not_allowed is not None:
                outcomes.append(Declined(payment_id, not_allowed))
                continue
            if checked.kind == "payment":
                account = checked.debit_account
                decided = limits.decide_payment(
                    checked.amount_minor,
                    caps=caps_in_force(
                        context.pack, payer.wallet_class, changing_to=payer.changing_to, own=payer.own_caps
                    ),
                    usage=usages.get(account, payer.usage),
                    today=today,
                )
                if isinstance(decided, Refusal):
                    detail = f"class {payer.wallet_class.value} of {context.pack.name}"
                    outcomes.append(Declined(payment_id, decided, detail))
                    continue
                usages[account] = decided
                if decided.day != checked.counted_on:
                    checked = replace(checked, counted_on=decided.day)
            own.count(checked)
            if before is None:
                new.append(checked)
            else:
                tried_again.append(checked)
            first_by_id[payment_id] = checked
            outcomes.append(checked)
        recorded = _Recorded(outcomes, repeats, earlier, {row.id for row in new})
        return _Decided(recorded, new, tried_again, usages, own)

    def _check(
        self,
        payment_id: UUID,
        item: Instruction | Payment,
        payer: Payer | None,
        *,
        before: Payment | None,
        now: datetime,
        today: date,
    ) -> Payment | Declined:
        """The payment to record. Its signature is checked here only if there is a doubt, else in tier 1. What is
        recorded is answered as before, whatever has become of the key that signed it."""
        home = self._context.ledgers.home
        if payer is None:
            return Declined(payment_id, WalletRefusal.NOT_OUR_WALLET)
        if isinstance(item, Payment):
            return item if before is not None else Declined(payment_id, LedgerRefusal.INSTRUCTION_INVALID)
        thumbprint, key = _signer(item.unverified.token, payer)
        is_headed = jws.is_headed_for(item.unverified, thumbprint, typ=INSTRUCTION_TYP)
        is_in_doubt = not is_headed or item.debit in self._in_doubt or self._own.is_card(item.debit)
        if (before is not None or is_in_doubt) and not _is_settled_for(item, before):
            try:
                jws.check(item.unverified, _device_key(key), typ=INSTRUCTION_TYP)
            except jws.InvalidJws as error:
                return Declined(payment_id, LedgerRefusal.INSTRUCTION_INVALID, error.reason)
        if item.ledger != home.name:
            return Declined(payment_id, LedgerRefusal.WRONG_LEDGER, f"this wallet's ledger is {home.name}")
        if item.currency != home.currency:
            return Declined(payment_id, LedgerRefusal.WRONG_CURRENCY, f"this wallet holds {home.currency}")
        if item.kind not in self._kinds:
            return Declined(payment_id, TransferRefusal.KIND_NOT_ALLOWED, f"a {item.kind.value} has another address")
        if item.debit is None or item.credit is None or item.amount_minor is None:
            raise TypeError("an instruction that was taken names its accounts and amount")
        if not 0 < item.amount_minor <= AMOUNT_MINOR_MAX:
            return Declined(payment_id, TransferRefusal.AMOUNT_INVALID)
        if item.debit == item.credit:
            return Declined(payment_id, TransferRefusal.ACCOUNTS_MUST_DIFFER)
        if item.kind is TransferKind.EXCHANGE_OUT and item.credit != self._vault:
            detail = "an exchange out credits the vault of /v1/institution"
            return Declined(payment_id, WalletRefusal.NOT_OUR_VAULT, detail)
        if is_from_future(payment_id, now=now):
            return Declined(payment_id, LedgerRefusal.ID_FROM_FUTURE)
        kind = _KINDS[item.kind]
        return Payment(
            id=payment_id,
            wallet_id=payer.wallet_id,
            kind=kind,
            debit_account=item.debit,
            credit_account=item.credit,
            amount_minor=item.amount_minor,
            currency=item.currency,
            reference=UUID(int=item.reference_number) if item.reference_number else None,
            instruction=item.unverified.token,
            valid_until=item.valid_until,
            state="initiated",
            refusal=None,
            is_transient=None,
            detail=None,
            seq=None,
            booked_at=None,
            counted_on=max(today, payer.usage.day) if kind == "payment" else None,
            deposit_credited_at=None,
            created_at=now,
            tried_at=now,
        )


def _is_settled_for(item: Instruction, before: Payment | None) -> bool:
    """Whether this very instruction is recorded, and nothing is decided anew if it comes again."""
    if before is None or before.instruction != item.unverified.token:
        return False
    return before.state != "refused" or not before.is_transient


def _signer(token: str, payer: Payer) -> tuple[str, str]:
    """(thumbprint, JWK) of the device that the token names; of the first one if it names none of the wallet's."""
    if payer.other_devices is not None:
        try:
            kid = str(jws.peek_header(token).get("kid"))
        except jws.InvalidJws:
            kid = ""
        key = _devices(payer.other_devices).get(kid)
        if key is not None:
            return kid, key
    return payer.device_thumbprint, payer.device_key


@lru_cache(maxsize=_KEYS_CACHED_MAX)
def _devices(by_thumbprint: str) -> dict[str, str]:
    return {thumbprint: json.dumps(key) for thumbprint, key in json.loads(by_thumbprint).items()}


def _is_signed(token: str, payer: Payer) -> bool:
    try:
        jws.verify(token, _device_key(_signer(token, payer)[1]), typ=INSTRUCTION_TYP)
    except jws.InvalidJws:
        return False
    return True


@lru_cache(maxsize=_KEYS_CACHED_MAX)
def _device_key(jwk: str) -> PublicKey:
    return PublicKey.from_jwk(json.loads(jwk))


def _debit(item: Instruction | Payment) -> int:
    return item.debit_account if isinstance(item, Payment) else item.debit or 0


def _credit(item: Instruction | Payment) -> int:
    return item.credit_account if isinstance(item, Payment) else item.credit or 0


def _again(item: Payment, before: Payment, payer: Payer, now: datetime) -> Outcome:
    """What a payment that is known becomes when it comes again: initiated, if it is to be sent."""
    if not item.has_terms_of(before):
        return Declined(item.id, TransferRefusal.ID_ALREADY_USED)
    if before.state == "final":
        return before
    # Strictly later than the one before, whatever the clock says: it bounds that copy too, and names this attempt.
    tried_at = max(now, before.tried_at + timedelta(microseconds=1))
    if before.state == "initiated":
        # A newer signature replaces one that may have expired. The one before may have been taken unchecked.
        newest = max(before, item, key=lambda candidate: candidate.valid_until)
        is_signed = newest.instruction == item.instruction or _is_signed(newest.instruction, payer)
        instruction = newest.instruction if is_signed else item.instruction
        return replace(before, instruction=instruction, valid_until=newest.valid_until, tried_at=tried_at)
    if not before.is_transient and before.instruction == item.instruction:
        return before
    return replace(item, created_at=before.created_at, tried_at=tried_at)


# --- 3. submit ----------------------------------------------------------------------------------------------------


def _submit(context: Context, items: Sequence[Payment]) -> list[TransferAnswer | None]:
    """The ledger's answer to each; None = not known."""
    try:
        answers = context.ledgers.home.client.submit_signed(
            [item.instruction for item in items],
            expires_at=min(item.tried_at for item in items) + SUBMISSION_LIFE,
        )
    except (ProblemResponse, ServiceUnreachable):
        # Also when the ledger refused the request as a whole: that is our fault, not the holders'; recovery retries.
        context.doubts.ledger_answers(False)
        return [None] * len(items)
    context.doubts.ledger_answers(True)
    # An item that the ledger could not read has no id in its result; its place says which it is.
    if len(answers) != len(items) or any(
        answer.id is not None and answer.id != show_transfer(item.id)
        for answer, item in zip(answers, items, strict=True)
    ):
        raise ProblemError(RequestRefusal.INTERNAL_ERROR, "the ledger answered about other transfers")
    return list(answers)


# --- 4. conclude --------------------------------------------------------------------------------------------------


def _conclude(
    context: Context, items: Sequence[Payment], answers: Sequence[TransferAnswer | None], recorded: _Recorded
) -> dict[UUID, Outcome]:
    earlier = recorded.earlier
    times: dict[str, datetime] = {}
    booked: dict[UUID, Booked] = {}
    refused: dict[UUID, TransferAnswer] = {}
    undecided: list[tuple[Payment, datetime]] = []
    concluded: dict[UUID, Outcome] = {}
    for item, answer in zip(items, answers, strict=True):
        if answer is not None and answer.outcome == _REFUSED and item.id in earlier:
            answer = _second_look(context, item, answer, earlier=earlier[item.id])
            if answer is None:
                undecided.append((item, earlier[item.id]))
        if answer is None:
            concluded[item.id] = item
        elif answer.outcome == _REFUSED:
            refused[item.id] = answer
            concluded[item.id] = _refused(item, answer, is_new=item.id in recorded.new)
        else:
            shown = answer.booked_at or show_moment(context.clock())
            booked_at = times.get(shown) or times.setdefault(shown, datetime.fromisoformat(shown))
            booked[item.id] = Booked(item.id, answer.seq, booked_at)
            concluded[item.id] = item.booked(answer.seq, booked_at)
    if undecided:
        # This copy is out of the count: only the earlier ones still matter.
        context.database.run_session(lambda connection: carriage.mark_answered(connection, undecided))
    forgotten = {key for key, outcome in concluded.items() if isinstance(outcome, Declined)}
    context.doubts.suspect({item.debit_account for item in items if item.id in forgotten})
    if booked and not refused:
        # Common case in one statement. It need not wait for the disk: lost in a crash, the payment is initiated, and
        # recovery learns from the ledger that it is booked.
        with context.database.session(is_lazy=True) as connection:
            if carriage.finish_initiated(connection, list(booked.values())) == len(booked):
                return concluded
    if booked or refused:
        concluded.update(
            context.database.run_session(
                lambda connection: _write(connection, items, booked, refused, forgotten, context=context)
            )
        )
    return concluded


_REFUSED = TransferOutcome.REFUSED.value


def _refused(item: Payment, answer: TransferAnswer, *, is_new: bool) -> Outcome:
    if is_new and answer.refusal == LedgerRefusal.INSTRUCTION_INVALID.value:
        return Declined(item.id, LedgerRefusal.INSTRUCTION_INVALID, answer.detail or "")
    return replace(
        item,
        state="refused",
        refusal=answer.refusal or RequestRefusal.SERVICE_UNAVAILABLE.value,
        is_transient=bool(answer.transient),
        detail=answer.detail,
        counted_on=None,
    )


def _second_look(
    context: Context, item: Payment, answer: TransferAnswer, *, earlier: datetime
) -> TransferAnswer | None:
    """What became of a payment of which this copy was refused, but an earlier one was never answered. None: not known.

    It is refused if the ledger does not know it once the earlier copies are dead: by their request's signature, or by
    the holder's own `valid_until`, which no earlier copy's exceeds.
    """
    is_last_word = context.clock() > min(earlier + SUBMISSION_LIFE, item.valid_until) + SUBMISSION_GRACE
    try:
        view = context.ledgers.home.client.get_transfer(item.id)
    except ServiceUnreachable:
        return None
    except ProblemResponse as error:
        return answer if error.refusal == LedgerRefusal.TRANSFER_NOT_FOUND.value and is_last_word else None
    is_ours = (view.debit, view.credit, view.amount_minor) == (
        item.debit_account,
        item.credit_account,
        item.amount_minor,
    )
    if not is_ours:  # the id is somebody else's, so ours can never be booked
        return answer
    booked_at = show_moment(view.booked_at)
    return TransferAnswer(TransferOutcome.ALREADY_BOOKED.value, show_transfer(item.id), view.seq, booked_at)


def _write(
    connection: Connection,
    items: Sequence[Payment],
    booked: Mapping[UUID, Booked],
    refused: Mapping[UUID, TransferAnswer],
    forgotten: Collection[UUID],
    *,
    context: Context,
) -> dict[UUID, Outcome]:
    """The payments of which another attempt knows better, as they are. Each by itself, under the payers' locks."""
    tried_at = {item.id: item.tried_at for item in items}
    others: dict[UUID, Outcome] = {}
    payers = carriage.lock_payers(connection, [item.debit_account for item in items])
    usages = {account: payer.usage for account, payer in payers.items()}
    current = carriage.lock_payments(connection, [*booked, *refused])
    released: list[Payment] = []
    forced: list[Payment] = []
    for payment_id, payment in current.items():
        if payment.state == "final":
            others[payment_id] = payment
            continue
        if payment_id in refused and payment.tried_at != tried_at[payment_id]:
            # A newer attempt has begun, whose copy may be booked yet: it has the last word, or the recovery pass.
            others[payment_id] = payment
            continue
        usage = usages[payment.debit_account]
        if payment_id in booked:
            counted_on = payment.counted_on
            if payment.kind == "payment" and counted_on is None:
                forced.append(payment)
                # Another attempt wrote "refused" first; what is booked is spent, whatever the caps say.
                today = limits.scheme_day(context.clock(), context.time_zone)
                usage = limits.force(usage, payment.amount_minor, today=today)
                counted_on = usage.day
            carriage.mark_final(connection, booked[payment_id], counted_on=counted_on)
        else:
            if payment.counted_on is not None:
                released.append(payment)
                usage = limits.release(usage, payment.amount_minor, counted_on=payment.counted_on)
            if payment_id in forgotten:
                carriage.forget(connection, payment_id)
            else:
                answer = refused[payment_id]
                carriage.mark_refused(
                    connection,
                    payment_id,
                    refusal=answer.refusal or RequestRefusal.SERVICE_UNAVAILABLE.value,
                    is_transient=bool(answer.transient),
                    detail=answer.detail,
                )
        usages[payment.debit_account] = usage
    carriage.save_usages(connection, usages)
    own_rules.settle(connection, context, released=released, forced=forced)
    return others
