"""Refunds of payments received: whole or in parts, never more than the payment in sum (I7), only to whoever paid.

  1. check: the holder's device has signed it; the ledger has the original, final, and it credited this account;
  2. one transaction: reserve the amount under the original's row lock; the table's CHECK says no once more;
  3. carry it as every payment (`wallet.usecases.pay`);
  4. one transaction: final, or released.

A reservation is given back only if its refund cannot be booked any more: at once if it was sent once and refused;
otherwise `settle_refunds` waits until every copy's signature is past and asks the ledger. So no crash and no doubled
request can refund a fen twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa

from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.crypto import jws
from kernel.crypto.keys import PublicKey
from kernel.errors import ProblemError
from kernel.ids import AccountNumber, ParticipantId
from ledger.contract import (
    INSTRUCTION_TYP,
    AccountKind,
    Instruction,
    InvalidInstruction,
    LedgerRefusal,
    StatementLine,
    TransferKind,
    TransferRefusal,
    TransferView,
    read_instruction,
)
from wallet.contract import WalletRefusal
from wallet.domain.events import EventType
from wallet.domain.records import Payment, Wallet
from wallet.domain.refunds import Original, Refund, release, reserve
from wallet.store import events, payments, wallets
from wallet.store import refunds as store
from wallet.store import requests as request_store
from wallet.usecases import vouchers
from wallet.usecases.context import SUBMISSION_GRACE, Context, ledger_unavailable
from wallet.usecases.pay import REFUNDS, Declined, final, pay

REFUNDS_A_PASS_MAX = 500
REFUNDS_SHOWN_MAX = 1_000
LOOKED_THROUGH_PAGES_MAX = 10
LINES_A_PAGE = 1_000
OLD_ENOUGH = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Refunds:
    """What has been given back of a payment. `is_complete`: whether all of it has been looked through."""

    original: Original
    refunds: Sequence[Refund]
    is_complete: bool
    debit: AccountNumber
    """Of the original: another than `original.payer_account` only where an institution stood in between."""


def refund(context: Context, token: str) -> Payment:
    """Carry a refund that the holder has signed; its `reference` is the original. Again: the same answer.

    Raises: ProblemError(instruction-invalid, not-our-wallet, original-not-found, refund-mismatch, refund-exists,
    refund-exceeds-original), as `vouchers.ask_origin`, and as `pay_one`.
    """
    item = _read(token)
    wallet = _payee(context, item)
    original = _original(context, item, wallet)
    _reserve(context, item, original)
    outcome = pay(context, [token], kinds=REFUNDS)[0]
    if isinstance(outcome, Declined) or outcome.state == "refused":
        _release_at_once(context, item.id)
    elif outcome.state == "final":
        _finish(context, item.id, outcome)
    return final(outcome)


# --- 1. check --------------------------------------------------------------------------------------------------------


def _read(token: str) -> Instruction:
    try:
        item = read_instruction(token)
    except InvalidInstruction as error:
        raise ProblemError(LedgerRefusal.INSTRUCTION_INVALID, error.reason) from None
    if item.kind is not TransferKind.REFUND:
        raise ProblemError(TransferRefusal.KIND_NOT_ALLOWED, f"a {item.kind.value} has another address")
    if not item.reference_number:
        detail = "a refund's reference is the id of the payment that it gives back"
        raise ProblemError(WalletRefusal.ORIGINAL_NOT_FOUND, detail)
    if not item.amount_minor:
        raise ProblemError(TransferRefusal.AMOUNT_INVALID)
    return item


def _payee(context: Context, item: Instruction) -> Wallet:
    """The wallet that gives back. Only what its device has signed reserves anything."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        wallet = wallets.find_wallet_of_account(connection, item.debit or 0)
        known = payments.find_payment(connection, item.id)
    if wallet is None:
        raise ProblemError(WalletRefusal.NOT_OUR_WALLET)
    if known is not None and known.instruction == item.unverified.token:
        return wallet  # it was carried before, though its key may have been replaced since
    try:
        key = wallet.devices.get(str(jws.peek_header(item.unverified.token).get("kid")))
        if key is None:
            raise ProblemError(LedgerRefusal.INSTRUCTION_INVALID, "the key is none of this wallet's devices'")
        jws.check(item.unverified, PublicKey.from_jwk(key), typ=INSTRUCTION_TYP)
    except jws.InvalidJws as error:
        raise ProblemError(LedgerRefusal.INSTRUCTION_INVALID, error.reason) from None
    return wallet


def _original(context: Context, item: Instruction, wallet: Wallet) -> Original:
    """The payment to give back, as the ledger has it. Raises: ProblemError(original-not-found, refund-mismatch)."""
    original_id = UUID(int=item.reference_number)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        original = store.find_original(connection, original_id)
    if original is None:
        original = _received(context, original_id, wallet)
    if original is None or original.account != item.debit:
        raise ProblemError(WalletRefusal.ORIGINAL_NOT_FOUND)
    if item.credit != original.payer_account:
        raise ProblemError(WalletRefusal.REFUND_MISMATCH, "a refund credits the account that paid")
    if item.currency != original.currency:
        raise ProblemError(LedgerRefusal.WRONG_CURRENCY)
    return original


def _received(context: Context, original_id: UUID, wallet: Wallet) -> Original | None:
    """A payment that this wallet has received; every booked transfer is final."""
    view = _booked(context, original_id)
    if view is None or view.kind is not TransferKind.PAYMENT or view.credit is None or view.debit is None:
        return None
    if view.credit != wallet.account:
        return None
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        for_request = request_store.find_payment(connection, original_id)
    behind = None if for_request is None else for_request.refund_account
    if behind is None and view.debit == context.ledgers.vault(context.ledgers.home):
        behind = _issuer_behind(context, original_id)
        if behind is None:  # nobody's that is known here; given back to the vault, it would be the institution's
            return None
    elif behind is None and _may_be_voucher(context, view):
        # The ledger does not say for whom a vault has paid; so the institution of it is asked, and must answer.
        behind = vouchers.ask_origin(context, ParticipantId(str(view.submitter)), view)
    return Original(
        transfer_id=original_id,
        wallet_id=wallet.id,
        account=view.credit,
        payer_account=behind or view.debit,
        amount_minor=view.amount_minor,
        currency=view.currency,
        refunded_minor=0,
        seq=view.seq,
        booked_at=view.booked_at,
    )


def _issuer_behind(context: Context, payment_id: UUID) -> AccountNumber | None:
    found = vouchers.issuer_of(context, payment_id)
    return None if found is None else found[1]


def _may_be_voucher(context: Context, view: TransferView) -> bool:
    """Carried by another institution, from its vault, under a reference of the form that programs have
    (`reference_of`). What a holder has paid from a wallet is his, whatever reference it has."""
    is_others = view.submitter is not None and view.submitter != context.participant
    is_from_vault = view.debit_kind is AccountKind.VAULT
    return is_others and is_from_vault and view.reference is not None and view.reference.version == 8


def _booked(context: Context, transfer_id: UUID) -> TransferView | None:
    try:
        return context.ledgers.home.client.get_transfer(transfer_id)
    except ProblemResponse as error:
        if error.refusal == LedgerRefusal.TRANSFER_NOT_FOUND.value:
            return None
        raise ledger_unavailable(error) from error
    except ServiceUnreachable as error:
        raise ledger_unavailable(error) from error


# --- 2. reserve ------------------------------------------------------------------------------------------------------


def _reserve(context: Context, item: Instruction, seen: Original) -> None:
    amount_minor = item.amount_minor or 0
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        original = store.lock_original(connection, seen)
        known = store.find_refund(connection, item.id)
        if known is not None and (known.original_id, known.amount_minor) != (original.transfer_id, amount_minor):
            raise ProblemError(WalletRefusal.REFUND_EXISTS)
        if known is not None and known.state == "final":
            return
        if known is not None and known.state == "reserved":
            valid_until = max(known.valid_until, item.valid_until)
            store.save_refund(connection, item.id, tries=known.tries + 1, valid_until=valid_until)
            return
        after = reserve(original, amount_minor)
        if after is None:
            detail = f"{original.refundable_minor} of {original.amount_minor} minor units can still be refunded"
            raise ProblemError(WalletRefusal.REFUND_EXCEEDS_ORIGINAL, detail)
        store.save_refunded(connection, after)
        if known is None:
            if payments.find_payment(connection, item.id) is not None:
                raise ProblemError(TransferRefusal.ID_ALREADY_USED)
            row = Refund(
                id=item.id,
                original_id=original.transfer_id,
                amount_minor=amount_minor,
                state="reserved",
                tries=1,
                valid_until=item.valid_until,
                seq=None,
                booked_at=None,
                created_at=context.clock(),
            )
            if not store.insert_refund(connection, row):
                raise ProblemError(WalletRefusal.REFUND_EXISTS)
        else:
            valid_until = max(known.valid_until, item.valid_until)
            store.save_refund(connection, item.id, state="reserved", tries=1, valid_until=valid_until)


# --- 4. conclude -----------------------------------------------------------------------------------------------------


def _release_at_once(context: Context, refund_id: UUID) -> None:
    """After a refusal, if nobody else has sent the same refund: then this was the only copy."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = store.find_refund(connection, refund_id)
        if row is None:
            return
        original = store.find_original(connection, row.original_id, lock=True)
        row = store.find_refund(connection, refund_id)  # under the lock
        if original is not None and row is not None and row.state == "reserved" and row.tries == 1:
            store.save_refunded(connection, release(original, row.amount_minor))
            store.save_refund(connection, refund_id, state="released")
            _tell(connection, EventType.REFUND_RELEASED, original, refund_id, context.clock())


def _finish(context: Context, refund_id: UUID, payment: Payment) -> None:
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = store.find_refund(connection, refund_id)
        original = None if row is None else store.find_original(connection, row.original_id)
        store.save_refund(connection, refund_id, state="final", seq=payment.seq, booked_at=payment.booked_at)
        if original is not None:
            _tell(connection, EventType.REFUND_FINAL, original, refund_id, payment.booked_at or context.clock())


def _tell(connection: sa.Connection, type: EventType, original: Original, refund_id: UUID, at: datetime) -> None:
    """One that was released may be signed again and released again: each is told."""
    data: dict[str, object] = {"original": f"trf_{original.transfer_id}"}
    once = refund_id if type is EventType.REFUND_FINAL else None
    events.emit(connection, type, f"trf_{refund_id}", at=at, wallet_id=original.wallet_id, data=data, once=once)


def settle_refunds(context: Context, *, older_than: timedelta = OLD_ENOUGH) -> int:
    """Refunds whose outcome nobody has written down; how many were settled."""
    now = context.clock()
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        rows = store.refunds_reserved(connection, before=now - older_than, limit=REFUNDS_A_PASS_MAX)
    return sum(_settle(context, row) for row in rows)


def _settle(context: Context, row: Refund) -> bool:
    is_over = context.clock() - SUBMISSION_GRACE > row.valid_until
    view = _booked(context, row.id)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        original = store.find_original(connection, row.original_id, lock=True)
        now_row = store.find_refund(connection, row.id)
        if original is None or now_row is None or now_row.state != "reserved" or now_row.tries != row.tries:
            return False
        is_this = view is not None and (view.kind, view.debit, view.reference, view.amount_minor) == (
            TransferKind.REFUND,
            original.account,
            original.transfer_id,
            row.amount_minor,
        )
        if view is not None and is_this:
            store.save_refund(connection, row.id, state="final", seq=view.seq, booked_at=view.booked_at)
            _tell(connection, EventType.REFUND_FINAL, original, row.id, view.booked_at)
            return True
        if not is_over and view is None:
            return False
        store.save_refunded(connection, release(original, row.amount_minor))
        store.save_refund(connection, row.id, state="released")
        _tell(connection, EventType.REFUND_RELEASED, original, row.id, context.clock())
        return True


# --- reading ---------------------------------------------------------------------------------------------------------


def find_refunds(context: Context, payment_id: UUID) -> Refunds:
    """What has been given back of a payment that a wallet here has received or sent.

    The payee's side knows its refunds; the payer's finds them on his statement, looking back from now to the payment,
    `LOOKED_THROUGH_PAGES_MAX` pages at most. Raises: ProblemError(payment-not-found, service-unavailable).
    """
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        original = store.find_original(connection, payment_id)
        known = [] if original is None else store.list_refunds(connection, payment_id, limit=REFUNDS_SHOWN_MAX)
    view = _booked(context, payment_id)
    if view is None or view.kind is not TransferKind.PAYMENT or view.debit is None or view.credit is None:
        raise ProblemError(WalletRefusal.PAYMENT_NOT_FOUND)
    if original is not None:
        return Refunds(original, known, len(known) < REFUNDS_SHOWN_MAX, view.debit)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        payee = wallets.find_wallet_of_account(connection, view.credit)
        payer = wallets.find_wallet_of_account(connection, view.debit)
    if payee is not None:
        received = _received(context, payment_id, payee)
        if received is not None:
            return Refunds(received, [], True, view.debit)
    paid_from = view.debit
    if payer is None:
        issuer = _issuer_behind(context, payment_id)
        if issuer is None:
            raise ProblemError(WalletRefusal.PAYMENT_NOT_FOUND)
        with context.database.transaction(isolation="READ COMMITTED") as connection:
            payer, paid_from = wallets.find_wallet_of_account(connection, issuer), issuer
    if payer is None:
        raise ProblemError(WalletRefusal.PAYMENT_NOT_FOUND)
    sent = Original(
        transfer_id=payment_id,
        wallet_id=payer.id,
        account=view.credit,
        payer_account=paid_from,
        amount_minor=view.amount_minor,
        currency=view.currency,
        refunded_minor=0,
        seq=view.seq,
        booked_at=view.booked_at,
    )
    return _on_statement(context, sent, debit=view.debit)


def _on_statement(context: Context, sent: Original, *, debit: AccountNumber) -> Refunds:
    found: list[StatementLine] = []
    cursor: str | None = None
    is_complete = False
    for _ in range(LOOKED_THROUGH_PAGES_MAX):
        try:
            page = context.ledgers.home.client.statement(
                sent.payer_account, cursor=cursor, limit=LINES_A_PAGE, newest_first=True
            )
        except (ProblemResponse, ServiceUnreachable) as error:
            raise ledger_unavailable(error) from error
        for line in page.lines:
            is_refund = line.kind is TransferKind.REFUND and line.direction == "credit"
            if is_refund and line.reference == sent.transfer_id and line.counterparty == sent.account:
                found.append(line)
        cursor = page.next_cursor
        if cursor is None or (page.lines and page.lines[-1].seq <= sent.seq):
            is_complete = True
            break
    refunded = sum(line.amount_minor for line in found)
    if refunded > sent.amount_minor:
        # The payee has gone around his institution and signed more at the ledger: it is his money. Shown as it is.
        refunded = sent.amount_minor
    rows = [
        Refund(
            id=line.transfer,
            original_id=sent.transfer_id,
            amount_minor=line.amount_minor,
            state="final",
            tries=1,
            valid_until=line.booked_at,
            seq=line.seq,
            booked_at=line.booked_at,
            created_at=line.booked_at,
        )
        for line in reversed(found)
    ]
    return Refunds(replace(sent, refunded_minor=refunded), rows, is_complete, debit)
