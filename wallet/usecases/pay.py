"""Carry holders' signed transfers to the ledger: payments, refunds, exchanges out. The service's hot path.

The institution can carry such a transfer but not make one: the ledger asks for the holder's signature itself (I8).
One path for one or a thousand:

  1. read each instruction, find the wallet of its debit account, verify the signature with that wallet's device key;
  2. one transaction: decide limits (I9) under the wallets' row locks, count usage, record the payments as initiated;
  3. one ledger batch;
  4. one transaction: final or refused; a refused payment's usage is given back.

A crash or a lost answer between 2 and 4 leaves initiated payments. Repeating the request, or the recovery pass, sends
the same instruction again: the transfer's id books at most once (I7).

A refusal is believed only when no other copy can still be booked. Every submission is one copy, signed to expire
SUBMISSION_LIFE after the payment's `tried_at`, which is stored before it is sent and so bounds all copies whose outcome
is not known. While an earlier one may live, or a newer attempt has begun, a refused payment stays initiated.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.exc import IntegrityError

from kernel import strict_json
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.crypto import jws
from kernel.crypto.keys import PublicKey
from kernel.errors import ProblemError, Refusal, RequestRefusal
from kernel.ids import AccountNumber, is_from_future
from kernel.money import AMOUNT_MINOR_MAX
from ledger.contract import (
    INSTRUCTION_TYP,
    LedgerRefusal,
    SignedInstruction,
    TransferItem,
    TransferKind,
    TransferOutcome,
    TransferRefusal,
    TransferResult,
)
from wallet.contract import WalletRefusal
from wallet.domain import limits
from wallet.domain.limits import Usage
from wallet.domain.records import Payment, PaymentKind, Wallet
from wallet.store import payments, wallets
from wallet.usecases.context import SUBMISSION_GRACE, SUBMISSION_LIFE, Context, refusal_of

_KINDS: Mapping[TransferKind, PaymentKind] = {
    TransferKind.PAYMENT: "payment",
    TransferKind.REFUND: "refund",
    TransferKind.EXCHANGE_OUT: "exchange-out",
}
PAYMENTS = frozenset({TransferKind.PAYMENT, TransferKind.REFUND})
EXCHANGES_OUT = frozenset({TransferKind.EXCHANGE_OUT})


@dataclass(frozen=True, slots=True)
class Declined:
    """An instruction that was not recorded: nothing happened, nothing will."""

    payment_id: UUID | None
    refusal: Refusal
    detail: str = ""


Outcome = Payment | Declined
"""A recorded payment says final, refused or (the ledger's answer is not known yet) initiated."""


@dataclass(frozen=True, slots=True)
class _Instruction:
    token: str
    document: SignedInstruction
    debit: AccountNumber
    credit: AccountNumber
    amount_minor: int

    @property
    def id(self) -> UUID:
        value: UUID = self.document.terms.id
        return value


def pay(context: Context, tokens: Sequence[str], *, kinds: Collection[TransferKind] = PAYMENTS) -> list[Outcome]:
    """One outcome an instruction, in order. Nothing is all-or-nothing: each item stands alone."""
    outcomes: list[Outcome | None] = [None] * len(tokens)
    first_by_id: dict[UUID, int] = {}
    again: dict[int, int] = {}
    accepted: dict[int, Payment] = {}
    read = [_read(token) for token in tokens]
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        ours = wallets.wallets_of_accounts(connection, {item.debit for item in read if isinstance(item, _Instruction)})
    for index, item in enumerate(read):
        checked = item if isinstance(item, Declined) else _check(context, item, ours.get(item.debit), kinds)
        if isinstance(checked, Declined):
            outcomes[index] = checked
        elif (first := first_by_id.setdefault(checked.id, index)) == index:
            accepted[index] = checked
        elif checked.has_terms_of(accepted[first]):
            again[index] = first
        else:
            outcomes[index] = Declined(checked.id, TransferRefusal.ID_ALREADY_USED)
    if accepted:
        carried = carry(context, list(accepted.values()))
        for index, outcome in zip(accepted, carried, strict=True):
            outcomes[index] = outcome
    for index, first in again.items():
        outcomes[index] = outcomes[first]
    return [outcome for outcome in outcomes if outcome is not None]


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


# --- 1. read and verify ----------------------------------------------------------------------------------------------


def _read(token: str) -> _Instruction | Declined:
    try:
        document = SignedInstruction.model_validate(strict_json.loads(jws.peek_payload(token)))
    except (jws.InvalidJws, ValidationError, ProblemError):
        return Declined(None, LedgerRefusal.INSTRUCTION_INVALID, "not a compact JWS of a signed instruction")
    terms = document.terms
    if terms.kind not in _KINDS:
        return Declined(terms.id, TransferRefusal.KIND_NOT_ALLOWED, f"a {terms.kind.value} is not carried here")
    if terms.debit is None or terms.credit is None or terms.amount_minor is None:
        return Declined(terms.id, LedgerRefusal.INSTRUCTION_INVALID, "give debit, credit and amount_minor")
    return _Instruction(token, document, terms.debit, terms.credit, terms.amount_minor)


def _check(
    context: Context, item: _Instruction, wallet: Wallet | None, kinds: Collection[TransferKind]
) -> Payment | Declined:
    """The payment to record, once the signature is that of the wallet's device."""
    terms, home = item.document.terms, context.ledgers.home
    if wallet is None:
        return Declined(item.id, WalletRefusal.NOT_OUR_WALLET)
    try:
        jws.verify(item.token, PublicKey.from_jwk(wallet.device_key), typ=INSTRUCTION_TYP)
    except jws.InvalidJws as error:
        return Declined(item.id, LedgerRefusal.INSTRUCTION_INVALID, error.reason)
    if item.document.ledger != home.name:
        return Declined(item.id, LedgerRefusal.WRONG_LEDGER, f"this wallet's ledger is {home.name}")
    if terms.currency != home.currency:
        return Declined(item.id, LedgerRefusal.WRONG_CURRENCY, f"this wallet holds {home.currency}")
    if terms.kind not in kinds:
        return Declined(item.id, TransferRefusal.KIND_NOT_ALLOWED, f"a {terms.kind.value} has another address")
    if not 0 < item.amount_minor <= AMOUNT_MINOR_MAX:
        return Declined(item.id, TransferRefusal.AMOUNT_INVALID)
    if item.debit == item.credit:
        return Declined(item.id, TransferRefusal.ACCOUNTS_MUST_DIFFER)
    if terms.kind is TransferKind.EXCHANGE_OUT and item.credit != context.ledgers.vault(home):
        return Declined(item.id, WalletRefusal.NOT_OUR_VAULT, "an exchange out credits the vault of /v1/institution")
    if is_from_future(item.id, now=context.clock()):
        return Declined(item.id, LedgerRefusal.ID_FROM_FUTURE)
    now = context.clock()
    return Payment(
        id=item.id,
        wallet_id=wallet.id,
        kind=_KINDS[terms.kind],
        debit_account=item.debit,
        credit_account=item.credit,
        amount_minor=item.amount_minor,
        currency=terms.currency,
        reference=terms.reference,
        instruction=item.token,
        valid_until=item.document.valid_until,
        state="initiated",
        refusal=None,
        is_transient=None,
        detail=None,
        seq=None,
        booked_at=None,
        counted_on=None,
        deposit_credited_at=None,
        created_at=now,
        tried_at=now,
    )


# --- 2. to 4. carry --------------------------------------------------------------------------------------------------


def carry(context: Context, items: Sequence[Payment]) -> list[Outcome]:
    """Record, submit, conclude. `items` are verified and have distinct ids; what is known of them already is kept."""
    recorded, earlier = _record_once_more_if_raced(context, items)
    to_submit = [item for item in recorded if isinstance(item, Payment) and item.state == "initiated"]
    concluded = _conclude(context, to_submit, _submit(context, to_submit), earlier)
    return [concluded.get(item.id, item) if isinstance(item, Payment) else item for item in recorded]


_Earlier = Mapping[UUID, datetime]
"""When a payment's newest earlier copy whose outcome is not known was decided on. Absent: there is no such copy."""


def _record_once_more_if_raced(context: Context, items: Sequence[Payment]) -> tuple[list[Outcome], _Earlier]:
    def work(connection: sa.Connection) -> tuple[list[Outcome], _Earlier]:
        return _record(connection, items, now=context.clock(), context=context)

    try:
        return context.database.run(work, isolation="READ COMMITTED")
    except IntegrityError:  # another request took one of the ids in between: now it is there to be read
        return context.database.run(work, isolation="READ COMMITTED")


def _record(
    connection: sa.Connection, items: Sequence[Payment], *, now: datetime, context: Context
) -> tuple[list[Outcome], _Earlier]:
    """Each item as initiated and counted, as it was concluded before, or declined."""
    today = limits.scheme_day(now, context.time_zone)
    locked = wallets.lock_wallets(connection, {item.wallet_id for item in items})
    known = payments.find_payments(connection, [item.id for item in items], lock=True)
    usages: dict[UUID, Usage] = {}
    new: list[Payment] = []
    earlier: dict[UUID, datetime] = {}
    found: list[Outcome] = []
    for item in items:
        before = known.get(item.id)
        # Strictly later than the one before, whatever the clock says: it bounds that copy too, and names this attempt.
        tried_at = now if before is None else max(now, before.tried_at + timedelta(microseconds=1))
        if before is not None and not item.has_terms_of(before):
            found.append(Declined(item.id, TransferRefusal.ID_ALREADY_USED))
            continue
        if before is not None and before.state == "final":
            found.append(before)
            continue
        if before is not None and before.state == "initiated":
            # On its way, counted already; a newer signature replaces one that may have expired.
            earlier[item.id] = before.tried_at
            newest = max(before, item, key=lambda candidate: candidate.valid_until)
            again = replace(before, instruction=newest.instruction, valid_until=newest.valid_until, tried_at=tried_at)
            payments.mark_tried_again(
                connection, again, instruction=again.instruction, valid_until=again.valid_until, tried_at=tried_at
            )
            found.append(again)
            continue
        if before is not None and not before.is_transient and before.instruction == item.instruction:
            found.append(before)
            continue
        if now >= item.valid_until:
            found.append(Declined(item.id, LedgerRefusal.INSTRUCTION_EXPIRED))
            continue
        counted_on: date | None = None
        if item.kind == "payment":
            wallet = locked[item.wallet_id]
            decided = limits.decide_payment(
                item.amount_minor,
                caps=context.pack.caps(wallet.wallet_class),
                usage=usages.get(wallet.id, wallet.usage),
                today=today,
            )
            if isinstance(decided, Refusal):
                found.append(Declined(item.id, decided, f"class {wallet.wallet_class.value} of {context.pack.name}"))
                continue
            usages[wallet.id] = decided
            counted_on = decided.day
        recorded = replace(item, counted_on=counted_on, tried_at=tried_at)
        if before is None:
            new.append(recorded)
        else:
            payments.mark_tried_again(
                connection,
                replace(before, counted_on=counted_on),
                instruction=item.instruction,
                valid_until=item.valid_until,
                tried_at=tried_at,
            )
        found.append(recorded)
    payments.insert_payments(connection, new)
    wallets.save_usages(connection, usages)
    return found, earlier


def _submit(context: Context, items: Sequence[Payment]) -> list[TransferResult | None]:
    """The ledger's answer to each; None = not known."""
    if not items:
        return []
    try:
        answer = context.ledgers.home.client.submit(
            [TransferItem(instruction=item.instruction) for item in items],
            expires_at=min(item.tried_at for item in items) + SUBMISSION_LIFE,
        )
    except (ProblemResponse, ServiceUnreachable):
        # Also when the ledger refused the request as a whole: that is our fault, not the holders'; recovery retries.
        return [None] * len(items)
    # An item that the ledger could not read has no id in its result; its place says which it is.
    if len(answer) != len(items) or any(
        result.id not in (None, item.id) for result, item in zip(answer, items, strict=True)
    ):
        raise ProblemError(RequestRefusal.INTERNAL_ERROR, "the ledger answered about other transfers")
    return list(answer)


def _conclude(
    context: Context, items: Sequence[Payment], results: Sequence[TransferResult | None], earlier: _Earlier
) -> dict[UUID, Payment]:
    now = context.clock()
    booked: dict[UUID, payments.Booked] = {}
    refused: dict[UUID, TransferResult] = {}
    undecided: set[UUID] = set()
    concluded: dict[UUID, Payment] = {}
    for item, result in zip(items, results, strict=True):
        if result is not None and result.outcome is TransferOutcome.REFUSED and item.id in earlier:
            result = _second_look(context, item, result, earlier=earlier[item.id])
            if result is None:
                undecided.add(item.id)
        if result is None:
            concluded[item.id] = item
        elif result.outcome is TransferOutcome.REFUSED:
            refused[item.id] = result
            concluded[item.id] = replace(
                item,
                state="refused",
                refusal=result.refusal,
                is_transient=bool(result.transient),
                detail=result.detail,
                counted_on=None,
            )
        else:
            booked_at = result.booked_at or now
            booked[item.id] = payments.Booked(item.id, result.seq, booked_at)
            concluded[item.id] = replace(item, state="final", seq=result.seq, booked_at=booked_at)
    if undecided:
        # This copy is out of the count: only the earlier ones still matter.
        answered = [(item, earlier[item.id]) for item in items if item.id in undecided]
        context.database.run(
            lambda connection: payments.mark_answered(connection, answered), isolation="READ COMMITTED"
        )
    if booked or refused:
        others = context.database.run(
            lambda connection: _write(connection, items, booked, refused, context=context), isolation="READ COMMITTED"
        )
        concluded.update(others)
    return concluded


def _second_look(
    context: Context, item: Payment, result: TransferResult, *, earlier: datetime
) -> TransferResult | None:
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
        return result if error.refusal == LedgerRefusal.TRANSFER_NOT_FOUND.value and is_last_word else None
    is_ours = (view.debit, view.credit, view.amount_minor) == (
        item.debit_account,
        item.credit_account,
        item.amount_minor,
    )
    if not is_ours:  # the id is somebody else's, so ours can never be booked
        return result
    return TransferResult(id=item.id, outcome=TransferOutcome.ALREADY_BOOKED, seq=view.seq, booked_at=view.booked_at)


def _write(
    connection: sa.Connection,
    items: Sequence[Payment],
    booked: Mapping[UUID, payments.Booked],
    refused: Mapping[UUID, TransferResult],
    *,
    context: Context,
) -> dict[UUID, Payment]:
    """The payments of which another attempt knows better, as they are.

    Common case in one statement; with a refusal or a race, under the wallets' locks, each payment by itself.
    """
    if not refused and payments.finish_initiated(connection, list(booked.values())) == len(booked):
        return {}
    tried_at = {item.id: item.tried_at for item in items}
    others: dict[UUID, Payment] = {}
    locked = wallets.lock_wallets(connection, {item.wallet_id for item in items})
    usages = {wallet.id: wallet.usage for wallet in locked.values()}
    current = payments.find_payments(connection, [*booked, *refused], lock=True)
    for payment_id, payment in current.items():
        if payment.state == "final":
            others[payment_id] = payment
            continue
        if payment_id in refused and payment.tried_at != tried_at[payment_id]:
            # A newer attempt has begun, whose copy may be booked yet: it has the last word, or the recovery pass.
            others[payment_id] = payment
            continue
        usage = usages[payment.wallet_id]
        if payment_id in booked:
            counted_on = payment.counted_on
            if payment.kind == "payment" and counted_on is None:
                # Another attempt wrote "refused" first; what is booked is spent, whatever the caps say.
                usage = limits.usage_on(usage, limits.scheme_day(context.clock(), context.time_zone))
                counted_on = usage.day
                usage = replace(
                    usage,
                    day_minor=usage.day_minor + payment.amount_minor,
                    year_minor=usage.year_minor + payment.amount_minor,
                )
            payments.mark_final(connection, booked[payment_id], counted_on=counted_on)
        else:
            if payment.counted_on is not None:
                usage = limits.release(usage, payment.amount_minor, counted_on=payment.counted_on)
            result = refused[payment_id]
            payments.mark_refused(
                connection,
                payment_id,
                refusal=result.refusal or RequestRefusal.SERVICE_UNAVAILABLE.value,
                is_transient=bool(result.transient),
                detail=result.detail,
            )
        usages[payment.wallet_id] = usage
    wallets.save_usages(connection, usages)
    return others
