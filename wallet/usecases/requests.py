"""Payment requests on the payee's side: made, looked after, ended.

Whether a request is paid is never asked of anybody but the ledger. Two ways lead there: the ids of its payments are
known beforehand, so one look-up each tells at once (`look`); and the statements of accounts with requests are read to
their end now and then (`watch_accounts`), which finds every payment with a request's reference, whoever sent it and
whatever he told us.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa

from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.crypto import jws
from kernel.errors import ProblemError
from kernel.ids import AccountNumber, ParticipantId, is_from_future
from ledger.contract import LedgerRefusal, StatementLine, TransferKind
from wallet.contract import WalletRefusal
from wallet.contract.requests import (
    DECLINE_TYP,
    REQUEST_LIFE_DAYS_MAX,
    REQUEST_TYP,
    DeclineDocument,
    RequestDocument,
)
from wallet.domain.events import EventType
from wallet.domain.requests import (
    OPEN_STATES,
    PAYMENTS_MAX,
    Received,
    Request,
    RequestStateName,
    Terms,
    contradiction,
    end,
    receive,
)
from wallet.store import events
from wallet.store import requests as store
from wallet.store.requests import RequestPayment, Watch
from wallet.usecases.context import SUBMISSION_GRACE, Context, ledger_unavailable
from wallet.usecases.peers import canonical, signed_document
from wallet.usecases.wallets import find_wallet

log = logging.getLogger("jiaozi.wallet.requests")

WATCHED_AFTER = timedelta(days=7)
"""How long after a request's expiry the account is still watched for money that comes with its reference."""
LOOKED_AGAIN_AFTER = timedelta(seconds=4)
WATCHES_A_PASS_MAX = 200
PAGES_A_LOOK_MAX = 20
LINES_A_PAGE = 1_000
EXPIRED_A_PASS_MAX = 500


def create_request(
    context: Context,
    request_id: UUID,
    *,
    wallet_id: UUID,
    currency: str,
    terms: Terms,
    payer_account: AccountNumber | None,
    payer_institution: ParticipantId | None,
    payee_name: str,
    description: str,
    payee_reference: str,
    expires_at: datetime,
) -> Request:
    """Idempotent by id. If the payer's wallet is elsewhere, the request is sent there once; it can be fetched anyway.

    Raises: ProblemError(wallet-not-found, wallet-not-open, wrong-currency, request-terms-invalid, id-from-future,
    request-exists, service-unavailable).
    """
    now, home = context.clock(), context.ledgers.home
    wallet = find_wallet(context, wallet_id)
    if wallet.account is None:
        raise ProblemError(WalletRefusal.WALLET_NOT_OPEN)
    if payer_institution == context.participant:
        payer_institution = None
    document = RequestDocument(
        request=request_id,
        ledger=home.name,
        institution=context.participant,
        account=wallet.account,
        payee_name=payee_name,
        currency=currency,
        amount_minor=terms.amount_minor,
        amount_min_minor=terms.amount_min_minor,
        amount_max_minor=terms.amount_max_minor,
        payments="many" if terms.is_many else "one",
        payer=payer_account,
        payer_institution=payer_institution,
        description=description,
        payee_reference=payee_reference,
        created_at=now,
        expires_at=expires_at,
    )
    row = Request(
        id=request_id,
        wallet_id=wallet_id,
        account=wallet.account,
        currency=currency,
        terms=terms,
        payer_account=payer_account,
        payer_institution=payer_institution,
        payee_name=payee_name,
        description=description,
        payee_reference=payee_reference,
        document="",
        state="open",
        paid_minor=0,
        payments=0,
        surplus_minor=0,
        created_at=now,
        expires_at=expires_at,
        ended_at=None,
    )
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        known = store.find_request(connection, request_id)
    if known is None:
        _check_order(context, row, now)
        row = replace(row, document=jws.sign(canonical(document), context.key, typ=REQUEST_TYP))
        # Read before anybody can know the request: no payment of it can be booked at or before this seq.
        since = Watch(wallet.account, expires_at + WATCHED_AFTER, now, _seq_of(context, wallet.account))
        with context.database.transaction(isolation="READ COMMITTED") as connection:
            is_new = store.insert_request(connection, row)
            store.watch(connection, since)
            known = row if is_new else store.find_request(connection, request_id)
        if known is row and payer_institution is not None:
            _deliver(context, payer_institution, row.document)
    if known is None or not row.asks_the_same_as(known):
        raise ProblemError(WalletRefusal.REQUEST_EXISTS)
    return known


def _check_order(context: Context, row: Request, now: datetime) -> None:
    home = context.ledgers.home
    if row.currency != home.currency:
        raise ProblemError(LedgerRefusal.WRONG_CURRENCY, f"this wallet holds {home.currency}")
    if row.id.version != 7 or is_from_future(row.id, now=now):
        raise ProblemError(LedgerRefusal.ID_FROM_FUTURE, "the id must be a UUIDv7 of now: correct the client's clock")
    reason = contradiction(row.terms)
    if reason is None and row.payer_account == row.account:
        reason = "the payer is the payee"
    if reason is None and row.payer_institution is not None and row.payer_account is None:
        reason = "a payer's institution needs the payer's account"
    if reason is None and not now < row.expires_at <= now + timedelta(days=REQUEST_LIFE_DAYS_MAX):
        reason = f"the expiry must be in the future, at most {REQUEST_LIFE_DAYS_MAX} days from now"
    if reason is not None:
        raise ProblemError(WalletRefusal.REQUEST_TERMS_INVALID, reason)


def _seq_of(context: Context, account: int) -> int:
    try:
        return context.ledgers.home.client.get_account(account).as_of_seq
    except (ProblemResponse, ServiceUnreachable) as error:
        raise ledger_unavailable(error) from error


def _deliver(context: Context, institution: ParticipantId, document: str) -> None:
    """Best effort: the payer's institution can fetch the request as long as it is open."""
    try:
        context.peers.find(institution).deliver_request(document)
    except (ProblemResponse, ServiceUnreachable, ProblemError) as error:
        log.info("a request was not delivered to %s: %s", institution, type(error).__name__)


# --- reading ---------------------------------------------------------------------------------------------------------


def find_request(context: Context, request_id: UUID) -> Request:
    """As it was known last. Raises: ProblemError(request-not-found)."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = store.find_request(connection, request_id)
    if row is None:
        raise ProblemError(WalletRefusal.REQUEST_NOT_FOUND)
    return row


def list_requests(
    context: Context, wallet_id: UUID, *, before: tuple[datetime, UUID] | None, limit: int
) -> list[Request]:
    """Newest first, as known last. Raises: ProblemError(wallet-not-found)."""
    find_wallet(context, wallet_id)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        return store.list_requests(connection, wallet_id=wallet_id, before=before, limit=limit)


def list_payments(context: Context, request_id: UUID, *, after_seq: int, limit: int) -> list[RequestPayment]:
    """In order of booking, after a look at the ledger. Raises: ProblemError(request-not-found)."""
    look(context, find_request(context, request_id))
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        return store.list_payments(connection, request_id=request_id, after_seq=after_seq, limit=limit)


# --- what the ledger knows ------------------------------------------------------------------------------------------


def look(context: Context, request: Request, *, unless_looked_since: datetime | None = None) -> Request:
    """The request with every payment that the ledger has booked for it by now.

    `unless_looked_since`: a statement that was read later than this is not read again, for those who may ask as often
    as they like. Raises: ProblemError when the ledger cannot be reached.
    """
    if not request.terms.has_slots:
        with context.database.transaction(isolation="READ COMMITTED") as connection:
            watched = store.find_watch(connection, request.account)
        is_fresh = watched is not None and unless_looked_since is not None and watched.looked_at > unless_looked_since
        if watched is not None and not is_fresh:
            look_at_account(context, watched)
        return find_request(context, request.id)
    while request.state != "paid" and request.next_payment is not None and request.payments < PAYMENTS_MAX:
        found = _booked(context, request, request.next_payment)
        if found is None:
            break
        after = record(context, request.id, found)
        if after.payments == request.payments:  # a surplus: the slot is taken by a payment of another amount
            return after
        request = after
    return request


def _booked(context: Context, request: Request, transfer_id: UUID) -> Received | None:
    """The transfer with this id, if it pays this account with the request's reference."""
    try:
        view = context.ledgers.home.client.get_transfer(transfer_id)
    except ProblemResponse as error:
        if error.refusal == LedgerRefusal.TRANSFER_NOT_FOUND.value:
            return None
        raise ledger_unavailable(error) from error
    except ServiceUnreachable as error:
        raise ledger_unavailable(error) from error
    is_ours = view.credit == request.account and view.reference == request.id and view.kind is TransferKind.PAYMENT
    return Received(transfer_id, view.seq, view.debit, view.amount_minor, view.booked_at) if is_ours else None


def record(context: Context, request_id: UUID, received: Received) -> Request:
    """The request after a booked payment. Recorded once, whoever noticed it and how often."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        request = store.find_request(connection, request_id, lock=True)
        if request is None:
            raise ProblemError(WalletRefusal.REQUEST_NOT_FOUND)
        if store.find_payment(connection, received.transfer_id) is not None:
            return request
        after, is_surplus = receive(request, received)
        store.insert_payment(connection, request_id, received, is_surplus=is_surplus, refund_account=None)
        store.save_progress(connection, after)
        if is_surplus:
            _tell(connection, EventType.REQUEST_SURPLUS, after, received.booked_at, transfer=received.transfer_id)
        elif after.state == "paid":
            _tell(connection, EventType.REQUEST_PAID, after, received.booked_at, once=request_id)
    if is_surplus:
        log.warning("a surplus payment has come for a request: refund it")
    return after


# --- ending ----------------------------------------------------------------------------------------------------------


def cancel_request(context: Context, request_id: UUID) -> Request:
    """By the payee; again answers the same. A payment that the ledger books first stands, and the request is paid.

    Raises: ProblemError(request-not-found, request-already-paid, request-ended, service-unavailable).
    """
    request = _end(context, look(context, find_request(context, request_id)), "cancelled")
    if request.state == "paid":
        raise ProblemError(WalletRefusal.REQUEST_ALREADY_PAID)
    if request.state != "cancelled":
        raise ProblemError(WalletRefusal.REQUEST_ENDED, f"the request is {request.state}")
    return request


def take_decline(context: Context, request_id: UUID, token: str) -> None:
    """The payer's refusal, signed by his institution; again does nothing. A request that is paid stays paid.

    Raises: ProblemError(request-not-found, request-document-invalid, request-not-for-wallet, service-unavailable).
    """
    request = find_request(context, request_id)
    document = signed_document(context, token, typ=DECLINE_TYP, model=DeclineDocument)
    addressed_to = request.payer_institution or context.participant
    if (document.request, document.payer, document.institution) != (request_id, request.payer_account, addressed_to):
        detail = "only the payer whom a request names can decline it for all"
        raise ProblemError(WalletRefusal.REQUEST_NOT_FOR_WALLET, detail)
    _end(context, look(context, request), "declined")


def _end(context: Context, request: Request, state: RequestStateName) -> Request:
    now = context.clock()
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = store.find_request(connection, request.id, lock=True)
        if row is None:
            raise ProblemError(WalletRefusal.REQUEST_NOT_FOUND)
        after = end(row, "expired" if row.state_at(now) == "expired" else state, now)
        store.save_progress(connection, after)
        if after.state in _TOLD_ENDS:
            _tell(connection, _TOLD_ENDS[after.state], after, now, once=request.id)
    return after


_TOLD_ENDS: Mapping[RequestStateName, EventType] = {
    "declined": EventType.REQUEST_DECLINED,
    "expired": EventType.REQUEST_EXPIRED,
}
"""Whoever cancels knows it himself."""


def _tell(
    connection: sa.Connection,
    type: EventType,
    request: Request,
    at: datetime,
    *,
    once: UUID | None = None,
    transfer: UUID | None = None,
) -> None:
    data = {} if transfer is None else {"transfer": f"trf_{transfer}"}
    events.emit(connection, type, f"req_{request.id}", at=at, wallet_id=request.wallet_id, data=data, once=once)


def expire_requests(context: Context) -> int:
    """Requests whose time is over, once no payment that was in time can be booked any more; how many."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        due = store.requests_expired(connection, before=context.clock() - SUBMISSION_GRACE, limit=EXPIRED_A_PASS_MAX)
    for request in due:
        seen = look(context, request)
        if seen.state in OPEN_STATES:
            _end(context, seen, "expired")
    return len(due)


# --- statements ------------------------------------------------------------------------------------------------------


def watch_accounts(context: Context) -> int:
    """Read on in the statements of accounts with requests; how many payments were found that were not known."""
    now = context.clock()
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        store.end_watches(connection, before=now)
        due = store.watches_due(connection, looked_before=now - LOOKED_AGAIN_AFTER, limit=WATCHES_A_PASS_MAX)
    return sum(look_at_account(context, row) for row in due)


def look_at_account(context: Context, row: Watch) -> int:
    """Every line since the last look, newest first; a look that would take too long is gone on with by the next one.

    Raises: ProblemError when the ledger cannot be reached: what was recorded stays, the place does not move.
    """
    cursor, top = row.gap_cursor, row.gap_seq
    lines: list[StatementLine] = []
    is_done = False
    for _ in range(PAGES_A_LOOK_MAX):
        try:
            page = context.ledgers.home.client.statement(
                row.account, cursor=cursor, limit=LINES_A_PAGE, newest_first=True
            )
        except (ProblemResponse, ServiceUnreachable) as error:
            raise ledger_unavailable(error) from error
        if top is None and page.lines:
            top = page.lines[0].seq
        new = [line for line in page.lines if line.seq > row.seen_seq]
        lines += new
        cursor = page.next_cursor
        if cursor is None or len(new) < len(page.lines):
            is_done = True
            break
    found = _record_lines(context, row.account, lines)
    looked = replace(row, looked_at=max(context.clock(), row.looked_at + timedelta(microseconds=1)))
    if is_done:
        after = replace(looked, seen_seq=max(row.seen_seq, top or 0), gap_seq=None, gap_cursor=None)
    else:
        after = replace(looked, gap_seq=top, gap_cursor=cursor)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        store.save_watch(connection, row, after)
    return found


def _record_lines(context: Context, account: int, lines: Sequence[StatementLine]) -> int:
    """Of these lines, oldest first, those that pay a request; how many were not known."""
    found = 0
    for line in reversed(lines):
        is_payment = line.direction == "credit" and line.kind is TransferKind.PAYMENT
        if not is_payment or line.reference is None:
            continue
        with context.database.transaction(isolation="READ COMMITTED") as connection:
            request = store.find_request(connection, line.reference)
            is_known = store.find_payment(connection, line.transfer) is not None
        if request is None or request.account != account or is_known:
            continue
        if request.terms.has_slots:
            look(context, request)  # its own payments first, in their order: whatever is not among them is a surplus
        record(
            context,
            request.id,
            Received(line.transfer, line.seq, line.counterparty, line.amount_minor, line.booked_at),
        )
        found += 1
    return found
