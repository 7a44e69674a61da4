"""Payment requests on the payer's side: shown, approved, declined.

Approving is paying: the instruction is an ordinary payment, carried as every other. What is checked before it is
carried (that the request is open, the amount, the id, the expiry) saves a futile one; that a request is not paid twice
does not hang on it, for the ledger books the id of a request's payment once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.crypto import jws
from kernel.crypto.keys import PublicKey
from kernel.errors import ProblemError
from kernel.ids import AccountNumber, ParticipantId
from ledger.contract import (
    INSTRUCTION_TYP,
    Instruction,
    InvalidInstruction,
    LedgerRefusal,
    TransferKind,
    TransferRefusal,
    read_instruction,
)
from wallet.contract import WalletRefusal
from wallet.contract.requests import (
    DECLINE_TYP,
    REQUEST_LIFE_DAYS_MAX,
    REQUEST_TYP,
    DeclineDocument,
    RequestDocument,
    RequestOffer,
)
from wallet.domain.records import Payment, Wallet
from wallet.domain.requests import OPEN_STATES, PAYMENTS_MAX, Request, Terms, amount_refused, payment_id
from wallet.store import carriage, payments, wallets
from wallet.store import requests as store
from wallet.store.carriage import Connection
from wallet.store.requests import Incoming
from wallet.usecases import requests
from wallet.usecases.context import Context
from wallet.usecases.pay import Declined, Outcome, final, pay
from wallet.usecases.peers import REQUEST_REFUSALS, canonical, peer_unavailable, signed_document
from wallet.usecases.wallets import find_wallet

ADDRESSED_SHOWN_MAX = 200
DECLINES_A_PASS_MAX = 200


@dataclass(frozen=True, slots=True)
class Shown:
    """A request before a payer: as this service keeps it, as it was signed, and how far it has come (None: as known
    last, nobody was asked)."""

    row: Incoming
    document: RequestDocument
    offer: RequestOffer | None


def offer_of(request: Request, now: datetime) -> RequestOffer:
    """What anybody may know of a request of ours."""
    is_open = request.state_at(now) in OPEN_STATES
    return RequestOffer.model_validate(
        {
            "document": request.document,
            "state": request.state_at(now),
            "remaining_minor": request.remaining_minor,
            "next_payment": request.next_payment if is_open else None,
        }
    )


def get_offer(context: Context, request_id: UUID) -> RequestOffer:
    """For payers' institutions, and whoever else knows the id: many at once cost the ledger one statement.

    Raises: ProblemError(request-not-found, service-unavailable).
    """
    now = context.clock()
    since = now - requests.LOOKED_AGAIN_AFTER
    return offer_of(requests.look(context, requests.find_request(context, request_id), unless_looked_since=since), now)


# --- shown -----------------------------------------------------------------------------------------------------------


def show_request(
    context: Context,
    wallet_id: UUID,
    *,
    request_id: UUID | None = None,
    institution: ParticipantId | None = None,
    document: str | None = None,
) -> Shown:
    """Put a request before a wallet: by id and institution (of a code or a link), or its document. Again: the same.

    Raises: ProblemError(wallet-not-found, wallet-not-open, institution-unknown, request-not-found,
    request-document-invalid, request-not-for-wallet, wrong-ledger, wrong-currency, service-unavailable).
    """
    wallet = find_wallet(context, wallet_id)
    if document is None:
        if request_id is None or institution is None:
            raise TypeError("a request is named by its id and institution")
        document = _ask_offer(context, institution, request_id).document
    asked = signed_document(context, document, typ=REQUEST_TYP, model=RequestDocument)
    if (request_id or asked.request, institution or asked.institution) != (asked.request, asked.institution):
        raise ProblemError(WalletRefusal.REQUEST_DOCUMENT_INVALID, "the institution answered with another request")
    keep(context, wallet, document, asked)
    return find_incoming(context, wallet_id, asked.request)


def deliver_request(context: Context, document: str) -> None:
    """Another institution sends a request to one of our wallets. Raises: as `show_request`, and not-our-wallet."""
    asked = signed_document(context, document, typ=REQUEST_TYP, model=RequestDocument)
    now = context.clock()
    if not now < asked.expires_at <= now + timedelta(days=REQUEST_LIFE_DAYS_MAX):
        raise ProblemError(WalletRefusal.REQUEST_DOCUMENT_INVALID, "it has expired, or would stand for too long")
    keep(context, wallet_of(context, asked.payer), document, asked)


def wallet_of(context: Context, account: AccountNumber | None) -> Wallet:
    """Raises: ProblemError(not-our-wallet)."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        found = None if account is None else wallets.find_wallet_of_account(connection, account)
    if found is None:
        raise ProblemError(WalletRefusal.NOT_OUR_WALLET)
    return found


def keep(context: Context, wallet: Wallet, token: str, asked: RequestDocument, *, needs_approval: bool = False) -> None:
    """Record a request, whose document is verified, for a wallet. Raises: ProblemError as `show_request`."""
    home = context.ledgers.home
    if wallet.account is None:
        raise ProblemError(WalletRefusal.WALLET_NOT_OPEN)
    if asked.ledger != home.name:
        raise ProblemError(LedgerRefusal.WRONG_LEDGER, f"this wallet's ledger is {home.name}")
    if asked.currency != home.currency:
        raise ProblemError(LedgerRefusal.WRONG_CURRENCY, f"this wallet holds {home.currency}")
    if wallet.account == asked.account or asked.payer not in (None, wallet.account):
        raise ProblemError(WalletRefusal.REQUEST_NOT_FOR_WALLET)
    row = Incoming(
        wallet_id=wallet.id,
        request_id=asked.request,
        document=token,
        state="open",
        needs_approval=needs_approval,
        paid_minor=0,
        payment_id=None,
        decline=None,
        received_at=context.clock(),
        expires_at=asked.expires_at,
    )
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        store.insert_incoming(connection, row)


def find_incoming(context: Context, wallet_id: UUID, request_id: UUID) -> Shown:
    """With the payee's institution asked how far it has come.

    Raises: ProblemError(request-not-found, institution-unknown, service-unavailable).
    """
    row = _find(context, wallet_id, request_id)
    asked = _read(row.document)
    if row.state in ("declined", "ended"):
        return Shown(row, asked, None)
    offer = _ask_offer(context, asked.institution, request_id)
    if row.state == "open" and offer.state not in OPEN_STATES:
        row = replace(row, state="ended")
        with context.database.transaction(isolation="READ COMMITTED") as connection:
            store.end_incoming(connection, wallet_id, request_id)
    return Shown(row, asked, offer)


def list_incoming(
    context: Context, wallet_id: UUID, *, before: tuple[datetime, UUID] | None, limit: int
) -> list[Shown]:
    """Newest first, as known last. Those of wallets here that name this one as the payer appear by themselves."""
    wallet = find_wallet(context, wallet_id)
    if wallet.account is not None and before is None:
        with context.database.transaction(isolation="READ COMMITTED") as connection:
            addressed = store.requests_addressed_to(
                connection, wallet.account, now=context.clock(), limit=ADDRESSED_SHOWN_MAX
            )
        for request in addressed:
            keep(context, wallet, request.document, _read(request.document))
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        rows = store.list_incoming(connection, wallet_id=wallet_id, before=before, limit=limit)
    return [Shown(row, _read(row.document), None) for row in rows]


def _find(context: Context, wallet_id: UUID, request_id: UUID) -> Incoming:
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = store.find_incoming(connection, wallet_id, request_id)
    if row is None:
        raise ProblemError(WalletRefusal.REQUEST_NOT_FOUND, "show the request to the wallet first")
    return row


def _read(token: str) -> RequestDocument:
    """A document that was verified when it was kept."""
    return RequestDocument.model_validate_json(jws.peek_payload(token))


def _ask_offer(context: Context, institution: ParticipantId, request_id: UUID) -> RequestOffer:
    if institution == context.participant:
        return get_offer(context, request_id)
    try:
        return context.peers.find(institution).request_offer(request_id)
    except (ProblemResponse, ServiceUnreachable) as error:
        raise peer_unavailable(error, passed_on=REQUEST_REFUSALS) from error


# --- approved --------------------------------------------------------------------------------------------------------


def approve(context: Context, wallet_id: UUID, request_id: UUID, token: str) -> Payment:
    """Carry the holder's payment for a request. The same instruction again answers the same.

    Raises: ProblemError(request-not-found, request-terms-mismatch, request-ended, request-already-paid,
    request-payment-under-way, instruction-invalid), and as `pay_one`.
    """
    row = _find(context, wallet_id, request_id)
    asked, wallet = _read(row.document), find_wallet(context, wallet_id)
    try:
        item = read_instruction(token)
    except InvalidInstruction as error:
        raise ProblemError(LedgerRefusal.INSTRUCTION_INVALID, error.reason) from None
    known = _known(context, item, wallet_id)
    if known is None or known.instruction != token:  # the very same is answered as before, though its key be replaced
        _check_signed(wallet, item)
    if known is None:
        if row.state == "declined":
            raise ProblemError(WalletRefusal.REQUEST_ENDED, "the payer has declined it")
        _check_answers(item, asked, _ask_offer(context, asked.institution, request_id))
        context.database.run_session(lambda connection: _make_way(connection, item, wallet_id, request_id))
    outcome = pay(context, [token], kinds=frozenset({TransferKind.PAYMENT}))[0]
    if _is_taken(outcome):
        # Either the ledger has booked another payment under the request's id (I7), or one of another wallet here was
        # quicker by a moment and its outcome is not known yet.
        context.database.run_session(lambda connection: _make_way(connection, item, wallet_id, request_id))
        raise ProblemError(WalletRefusal.REQUEST_ALREADY_PAID, "another payment of it was booked first")
    payment = final(outcome)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        kept = store.find_incoming(connection, wallet_id, request_id, lock=True)
        if kept is not None and kept.payment_id != payment.id:
            store.save_incoming(
                connection,
                wallet_id,
                request_id,
                state="paid",
                payment_id=payment.id,
                paid_minor=kept.paid_minor + payment.amount_minor,
            )
    return payment


def terms_of(asked: RequestDocument) -> Terms:
    return Terms(asked.amount_minor, asked.amount_min_minor, asked.amount_max_minor, asked.payments == "many")


def _check_signed(wallet: Wallet, item: Instruction) -> None:
    """Raises: ProblemError(instruction-invalid) unless a device of the wallet has signed it."""
    try:
        key = wallet.devices.get(str(jws.peek_header(item.unverified.token).get("kid")))
        if key is None:
            raise ProblemError(LedgerRefusal.INSTRUCTION_INVALID, "the key is none of this wallet's devices'")
        jws.check(item.unverified, PublicKey.from_jwk(key), typ=INSTRUCTION_TYP)
    except jws.InvalidJws as error:
        raise ProblemError(LedgerRefusal.INSTRUCTION_INVALID, error.reason) from None


def _known(context: Context, item: Instruction, wallet_id: UUID) -> Payment | None:
    """This wallet's own payment with this id that is on its way or final: then nothing is asked anew."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        known = payments.find_payment(connection, item.id)
    return known if known is not None and known.wallet_id == wallet_id and known.state != "refused" else None


def _check_answers(item: Instruction, asked: RequestDocument, offer: RequestOffer) -> None:
    if offer.state == "paid":
        raise ProblemError(WalletRefusal.REQUEST_ALREADY_PAID)
    if offer.state not in OPEN_STATES:
        raise ProblemError(WalletRefusal.REQUEST_ENDED, f"the request is {offer.state.value}")
    terms = terms_of(asked)
    paid_minor = 0
    if asked.amount_minor is not None:
        paid_minor = asked.amount_minor - (offer.remaining_minor or 0)
    wrong: str | None = None
    if item.kind is not TransferKind.PAYMENT:
        wrong = "a request is answered by a payment"
    elif item.credit != asked.account:
        wrong = "the payment must credit the request's account"
    elif (item.ledger, item.currency) != (asked.ledger, asked.currency):
        wrong = f"the request is for {asked.currency} on {asked.ledger}"
    elif item.reference_number != asked.request.int:
        wrong = "the payment's reference must be the request's id"
    elif item.valid_until > asked.expires_at:
        wrong = "the signature must not stand longer than the request"
    else:
        wrong = amount_refused(terms, item.amount_minor or 0, paid_minor=paid_minor)
    if wrong is None and terms.has_slots and item.id != offer.next_payment:
        if item.id in (payment_id(asked.request, number) for number in range(PAYMENTS_MAX)):
            raise ProblemError(WalletRefusal.REQUEST_ALREADY_PAID, "this part is paid: sign the next one")
        wrong = "the payment's id must be the request's next_payment"
    if wrong is not None:
        raise ProblemError(WalletRefusal.REQUEST_TERMS_MISMATCH, wrong)


def _make_way(connection: Connection, item: Instruction, wallet_id: UUID, request_id: UUID) -> None:
    """An id that belongs to the request another payment may have had here and been refused: it is forgotten. An id of
    somebody else's making is his.

    Raises: ProblemError(request-payment-under-way, request-already-paid).
    """
    before = carriage.lock_payments(connection, [item.id]).get(item.id)
    if before is None:
        return
    if before.state == "final":
        raise ProblemError(WalletRefusal.REQUEST_ALREADY_PAID)
    if before.state == "initiated":
        raise ProblemError(WalletRefusal.REQUEST_PAYMENT_UNDER_WAY)
    is_same = (before.wallet_id, before.amount_minor) == (wallet_id, item.amount_minor)
    if not is_same and item.id in (payment_id(request_id, number) for number in range(PAYMENTS_MAX)):
        carriage.forget(connection, item.id)


def _is_taken(outcome: Outcome) -> bool:
    refusal = outcome.refusal if isinstance(outcome, Declined) else outcome.refusal or ""
    return refusal == TransferRefusal.ID_ALREADY_USED.value


# --- declined --------------------------------------------------------------------------------------------------------


def decline(context: Context, wallet_id: UUID, request_id: UUID) -> Shown:
    """The payer will not pay. If the request is addressed to him, its institution is told, again and again until it
    has heard; otherwise it is only put away here. Again: the same.

    Raises: ProblemError(wallet-not-found, request-not-found, request-already-paid).
    """
    wallet, row = find_wallet(context, wallet_id), _find(context, wallet_id, request_id)
    asked, now = _read(row.document), context.clock()
    token = None
    if asked.payer is not None and asked.payer == wallet.account:
        document = DeclineDocument(
            request=request_id, institution=context.participant, payer=asked.payer, declined_at=now
        )
        token = jws.sign(canonical(document), context.key, typ=DECLINE_TYP)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        kept = store.find_incoming(connection, wallet_id, request_id, lock=True)
        if kept is None:
            raise ProblemError(WalletRefusal.REQUEST_NOT_FOUND)
        if kept.state == "paid":
            raise ProblemError(WalletRefusal.REQUEST_ALREADY_PAID)
        if kept.state == "open":
            kept = replace(kept, state="declined", decline=token)
            store.save_incoming(connection, wallet_id, request_id, state="declined", decline=token)
    _tell(context, kept)
    return Shown(_find(context, wallet_id, request_id), asked, None)


def tell_declines(context: Context) -> int:
    """Declines of which the payee's institution has not heard yet; how many it has heard of now."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        untold = store.declines_untold(connection, after=context.clock(), limit=DECLINES_A_PASS_MAX)
    return sum(_tell(context, row) for row in untold)


def _tell(context: Context, row: Incoming) -> bool:
    if row.decline is None:
        return False
    institution = _read(row.document).institution
    try:
        if institution == context.participant:
            requests.take_decline(context, row.request_id, row.decline)
        else:
            context.peers.find(institution).tell_decline(row.request_id, row.decline)
    except ProblemResponse as error:
        if error.transient or not 400 <= error.status < 500:
            return False
    except (ServiceUnreachable, ProblemError):
        return False
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        store.save_incoming(connection, row.wallet_id, row.request_id, decline=None)
    return True
