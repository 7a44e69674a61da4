"""Payment requests and QR codes: the payee's side, the payer's side, and what institutions say to each other.

The last group needs no signature on the request: whoever knows a request's id may read its signed document, and what
is sent there is signed by an institution that the ledger knows, or by a holder's device.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Path, Query, Response

from kernel.clock import to_micros
from kernel.errors import RequestRefusal
from kernel.http import problems, strict_router
from kernel.limits import PAGE_ITEMS_DEFAULT
from kernel.pagination import Page, PageCursor, PageLimit, decode, encode
from ledger.contract import LedgerRefusal, TransferRefusal
from wallet.api.auth import SIGNED, Channel, Reader
from wallet.api.dependencies import STATUSES, Services
from wallet.api.money import INSTRUCTED
from wallet.api.views import payment_view
from wallet.contract import PaymentView, WalletRef, WalletRefusal
from wallet.contract.requests import (
    QR_SCALE_MAX,
    ApprovalOrder,
    CodeRedemption,
    CodeRedemptionAnswer,
    CodeView,
    DeclineOrder,
    IncomingRequestOrder,
    IncomingRequestView,
    IncomingState,
    PaymentRequestOrder,
    PaymentRequestView,
    ReadCodeOrder,
    RedemptionOrder,
    RedemptionView,
    RequestDelivery,
    RequestOffer,
    RequestPaymentView,
    RequestRef,
    RequestState,
)
from wallet.domain.qr import MerchantCode
from wallet.domain.requests import Request, Terms
from wallet.qr_images import MEDIA_TYPES, ImageFormat, render
from wallet.store.requests import RequestPayment
from wallet.usecases import codes, incoming, listings, payer_codes, requests
from wallet.usecases.codes import ReadCode, Shop
from wallet.usecases.context import Context
from wallet.usecases.incoming import Shown

router = strict_router(tags=["requests"])
_R = WalletRefusal
_UNAVAILABLE = RequestRefusal.SERVICE_UNAVAILABLE
RequestPath = Annotated[RequestRef, Path(alias="request")]
WalletPath = Annotated[WalletRef, Path()]

_PEER = (_R.INSTITUTION_UNKNOWN, _R.REQUEST_DOCUMENT_INVALID, _UNAVAILABLE)
_CODES = (
    _R.CODE_INVALID,
    _R.CODE_SIGNATURE_INVALID,
    _R.CODE_EXPIRED,
    _R.CODE_ALREADY_REDEEMED,
    _R.REQUEST_TERMS_INVALID,
    _R.REQUEST_ENDED,
    _R.REQUEST_ALREADY_PAID,
    _R.REQUEST_NOT_FOR_WALLET,
    _R.NOT_OUR_WALLET,
    _R.WALLET_NOT_OPEN,
    _R.WALLET_CLOSING,
    TransferRefusal.KIND_NOT_ALLOWED,
    TransferRefusal.INSUFFICIENT_FUNDS,
    TransferRefusal.SINGLE_LIMIT_EXCEEDED,
    TransferRefusal.DAY_LIMIT_EXCEEDED,
    TransferRefusal.YEAR_LIMIT_EXCEEDED,
    TransferRefusal.BALANCE_LIMIT_EXCEEDED,
    TransferRefusal.LINKED_TRANSFER_REFUSED,
    TransferRefusal.DEBIT_ACCOUNT_FROZEN,
    TransferRefusal.CREDIT_ACCOUNT_FROZEN,
    TransferRefusal.DEBIT_ACCOUNT_SUSPENDED,
    TransferRefusal.ACCOUNT_CLOSED,
    TransferRefusal.AMOUNT_OVERFLOW,
    LedgerRefusal.INSTRUCTION_INVALID,
    LedgerRefusal.INSTRUCTION_EXPIRED,
    LedgerRefusal.OUTCOME_UNKNOWN,
    LedgerRefusal.WRONG_LEDGER,
    LedgerRefusal.WRONG_CURRENCY,
)


# --- the payee's side ------------------------------------------------------------------------------------------------


@router.post(
    "/v1/payment-requests",
    operation_id="create_payment_request",
    status_code=201,
    summary="Ask for a payment; the signed document can be shown, sent, or put in a QR code",
    responses=problems(
        *SIGNED,
        _R.WALLET_NOT_FOUND,
        _R.WALLET_NOT_OPEN,
        _R.REQUEST_TERMS_INVALID,
        _R.REQUEST_EXISTS,
        LedgerRefusal.WRONG_CURRENCY,
        LedgerRefusal.ID_FROM_FUTURE,
        _UNAVAILABLE,
        statuses=STATUSES,
    ),
)
def create_payment_request(body: PaymentRequestOrder, context: Services, client: Channel) -> PaymentRequestView:
    row = requests.create_request(
        context,
        body.request,
        wallet_id=body.wallet,
        currency=body.currency,
        terms=Terms(body.amount_minor, body.amount_min_minor, body.amount_max_minor, body.payments == "many"),
        payer_account=body.payer,
        payer_institution=body.payer_institution,
        payee_name=body.payee_name,
        description=body.description,
        payee_reference=body.payee_reference,
        expires_at=body.expires_at,
    )
    return _request_view(row, context)


@router.get(
    "/v1/payment-requests/{request}",
    operation_id="get_payment_request",
    summary="A request, after a look at the ledger for its payments",
    responses=problems(*SIGNED, _R.REQUEST_NOT_FOUND, _UNAVAILABLE, statuses=STATUSES),
)
def get_payment_request(request_id: RequestPath, context: Services, client: Reader) -> PaymentRequestView:
    return _request_view(requests.look(context, requests.find_request(context, request_id)), context)


@router.get(
    "/v1/wallets/{wallet}/payment-requests",
    operation_id="list_payment_requests",
    summary="Requests that the wallet has made, newest first, as known last",
    responses=problems(*SIGNED, _R.WALLET_NOT_FOUND, statuses=STATUSES),
)
def list_payment_requests(
    wallet: WalletPath,
    context: Services,
    client: Reader,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[PaymentRequestView]:
    filters = {"list": "payment-requests", "wallet": wallet}
    before = None if cursor is None else listings.position_of_moment(decode(cursor, filters, shape=(int, str)))
    rows = requests.list_requests(context, wallet, before=before, limit=limit)
    place: list[int | str] = [to_micros(rows[-1].created_at), str(rows[-1].id)] if rows else []
    return Page[PaymentRequestView](
        items=[_request_view(row, context) for row in rows],
        next_cursor=encode(place, filters) if len(rows) == limit else None,
    )


@router.get(
    "/v1/payment-requests/{request}/payments",
    operation_id="list_request_payments",
    summary="What came for a request, surplus included, in order of booking",
    responses=problems(*SIGNED, _R.REQUEST_NOT_FOUND, _UNAVAILABLE, statuses=STATUSES),
)
def list_request_payments(
    request_id: RequestPath,
    context: Services,
    client: Reader,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[RequestPaymentView]:
    filters = {"list": "request-payments", "request": request_id}
    after = 0 if cursor is None else int(decode(cursor, filters, shape=(int,))[0])
    rows = requests.list_payments(context, request_id, after_seq=after, limit=limit)
    return Page[RequestPaymentView](
        items=[_request_payment_view(row) for row in rows],
        next_cursor=encode([rows[-1].seq], filters) if len(rows) == limit else None,
    )


@router.post(
    "/v1/payment-requests/{request}/cancel",
    operation_id="cancel_payment_request",
    summary="Ask for it no longer; what was booked before stands",
    responses=problems(
        *SIGNED, _R.REQUEST_NOT_FOUND, _R.REQUEST_ENDED, _R.REQUEST_ALREADY_PAID, _UNAVAILABLE, statuses=STATUSES
    ),
)
def cancel_payment_request(request_id: RequestPath, context: Services, client: Channel) -> PaymentRequestView:
    return _request_view(requests.cancel_request(context, request_id), context)


@router.post(
    "/v1/payment-requests/{request}/redemptions",
    operation_id="redeem_payer_code",
    summary="Have a request paid by the code that a payer shows",
    responses=problems(*SIGNED, _R.REQUEST_NOT_FOUND, *_PEER, *_CODES, statuses=STATUSES),
)
def redeem_payer_code(
    body: RedemptionOrder, request_id: RequestPath, context: Services, client: Channel
) -> RedemptionView:
    return payer_codes.redeem(context, request_id, body.code)


# --- QR codes --------------------------------------------------------------------------------------------------------

ShopName = Annotated[str, Query(min_length=1, max_length=25, description="Payee's name: printable ASCII.")]
City = Annotated[str, Query(min_length=1, max_length=15, description="Payee's city: printable ASCII.")]
Country = Annotated[str, Query(pattern="^[A-Z]{2}$", description="ISO 3166-1 alpha-2.")]
Category = Annotated[str, Query(pattern="^[0-9]{4}$", description="ISO 18245 merchant category code.")]
As = Annotated[Literal["text", "png", "svg"], Query(alias="as", description="The payload, or its symbol.")]
Scale = Annotated[int, Query(ge=1, le=QR_SCALE_MAX, description="Pixels a module.")]
_IMAGES: dict[int | str, dict[str, object]] = {
    200: {
        "description": "The code.",
        "content": {
            media: {"schema": {"type": "string"}} for media in ("text/plain", MEDIA_TYPES["png"], MEDIA_TYPES["svg"])
        },
    }
}


def _image(text: str, form: str, scale: int) -> Response:
    if form == "text":
        return Response(text, media_type="text/plain")
    image: ImageFormat = "png" if form == "png" else "svg"
    return Response(render(text, image=image, scale=scale), media_type=MEDIA_TYPES[image])


@router.get(
    "/v1/payment-requests/{request}/qr",
    operation_id="get_request_qr",
    summary="A request as a dynamic QR code (EMVCo, signed)",
    response_class=Response,
    responses={
        **_IMAGES,
        **problems(*SIGNED, _R.REQUEST_NOT_FOUND, _R.REQUEST_ENDED, _R.CODE_INVALID, statuses=STATUSES),
    },
)
def get_request_qr(
    request_id: RequestPath,
    context: Services,
    client: Reader,
    name: ShopName,
    city: City,
    country: Country = "CN",
    category: Category = "0000",
    form: As = "text",
    scale: Scale = 4,
) -> Response:
    text = codes.dynamic_code(context, request_id, shop=Shop(name, city, country, category))
    return _image(text, form, scale)


@router.get(
    "/v1/wallets/{wallet}/qr",
    operation_id="get_wallet_qr",
    summary="A static QR code that pays this wallet (EMVCo, signed), to print",
    response_class=Response,
    responses={
        **_IMAGES,
        **problems(*SIGNED, _R.WALLET_NOT_FOUND, _R.WALLET_NOT_OPEN, _R.CODE_INVALID, statuses=STATUSES),
    },
)
def get_wallet_qr(
    wallet: WalletPath,
    context: Services,
    client: Reader,
    name: ShopName,
    city: City,
    country: Country = "CN",
    category: Category = "0000",
    amount_minor: Annotated[str | None, Query(pattern="^[1-9][0-9]{0,18}$")] = None,
    reference: Annotated[str | None, Query(min_length=1, max_length=25)] = None,
    form: As = "text",
    scale: Scale = 4,
) -> Response:
    shop = Shop(name, city, country, category)
    amount = None if amount_minor is None else int(amount_minor)
    return _image(codes.static_code(context, wallet, shop=shop, amount_minor=amount, reference=reference), form, scale)


@router.post(
    "/v1/codes/read",
    operation_id="read_code",
    summary="What a scanned code says, and whether its institution has signed it",
    responses=problems(*SIGNED, _R.CODE_INVALID, LedgerRefusal.WRONG_CURRENCY, _UNAVAILABLE, statuses=STATUSES),
)
def read_code(body: ReadCodeOrder, context: Services, client: Reader) -> CodeView:
    return _code_view(codes.read_code(context, body.code))


# --- the payer's side ------------------------------------------------------------------------------------------------


@router.post(
    "/v1/wallets/{wallet}/incoming-requests",
    operation_id="show_request",
    status_code=201,
    summary="Put a request before a wallet: by its code, its link or its document",
    responses=problems(
        *SIGNED,
        _R.WALLET_NOT_FOUND,
        _R.WALLET_NOT_OPEN,
        _R.REQUEST_NOT_FOUND,
        _R.REQUEST_NOT_FOR_WALLET,
        LedgerRefusal.WRONG_LEDGER,
        LedgerRefusal.WRONG_CURRENCY,
        *_PEER,
        statuses=STATUSES,
    ),
)
def show_request(
    body: IncomingRequestOrder, wallet: WalletPath, context: Services, client: Channel
) -> IncomingRequestView:
    return _incoming_view(
        incoming.show_request(
            context, wallet, request_id=body.request, institution=body.institution, document=body.document
        )
    )


@router.get(
    "/v1/wallets/{wallet}/incoming-requests",
    operation_id="list_incoming_requests",
    summary="Requests before a wallet, newest first, as known last",
    responses=problems(*SIGNED, _R.WALLET_NOT_FOUND, statuses=STATUSES),
)
def list_incoming_requests(
    wallet: WalletPath,
    context: Services,
    client: Reader,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[IncomingRequestView]:
    filters = {"list": "incoming-requests", "wallet": wallet}
    before = None if cursor is None else listings.position_of_moment(decode(cursor, filters, shape=(int, str)))
    found = incoming.list_incoming(context, wallet, before=before, limit=limit)
    place: list[int | str] = [to_micros(found[-1].row.received_at), str(found[-1].row.request_id)] if found else []
    return Page[IncomingRequestView](
        items=[_incoming_view(item) for item in found],
        next_cursor=encode(place, filters) if len(found) == limit else None,
    )


@router.get(
    "/v1/wallets/{wallet}/incoming-requests/{request}",
    operation_id="get_incoming_request",
    summary="A request before a wallet, its payee's institution asked how far it has come",
    responses=problems(*SIGNED, _R.REQUEST_NOT_FOUND, *_PEER, statuses=STATUSES),
)
def get_incoming_request(
    wallet: WalletPath, request_id: RequestPath, context: Services, client: Reader
) -> IncomingRequestView:
    return _incoming_view(incoming.find_incoming(context, wallet, request_id))


@router.post(
    "/v1/wallets/{wallet}/incoming-requests/{request}/approve",
    operation_id="approve_request",
    status_code=201,
    summary="Pay a request: carry the holder's signed payment that answers it, once",
    responses=problems(
        *INSTRUCTED,
        _R.WALLET_NOT_FOUND,
        _R.REQUEST_NOT_FOUND,
        _R.REQUEST_ENDED,
        _R.REQUEST_ALREADY_PAID,
        _R.REQUEST_PAYMENT_UNDER_WAY,
        _R.REQUEST_TERMS_MISMATCH,
        *_PEER,
        statuses=STATUSES,
    ),
)
def approve_request(body: ApprovalOrder, wallet: WalletPath, request_id: RequestPath, context: Services) -> PaymentView:
    return payment_view(incoming.approve(context, wallet, request_id, body.instruction))


@router.post(
    "/v1/wallets/{wallet}/incoming-requests/{request}/decline",
    operation_id="decline_request",
    summary="Do not pay a request; a payee who asked this payer alone is told",
    responses=problems(*SIGNED, _R.WALLET_NOT_FOUND, _R.REQUEST_NOT_FOUND, _R.REQUEST_ALREADY_PAID, statuses=STATUSES),
)
def decline_request(
    wallet: WalletPath, request_id: RequestPath, context: Services, client: Channel
) -> IncomingRequestView:
    return _incoming_view(incoming.decline(context, wallet, request_id))


# --- institution to institution --------------------------------------------------------------------------------------


@router.get(
    "/v1/payment-requests/{request}/offer",
    operation_id="get_request_offer",
    summary="A request's signed document and how far it has come, for whoever knows its id",
    responses=problems(_R.REQUEST_NOT_FOUND, _UNAVAILABLE, statuses=STATUSES),
)
def get_request_offer(request_id: RequestPath, context: Services) -> RequestOffer:
    return incoming.get_offer(context, request_id)


@router.post(
    "/v1/incoming-requests",
    operation_id="deliver_request",
    status_code=201,
    summary="A payee's institution sends its request to the payer whom it names",
    responses=problems(
        _R.NOT_OUR_WALLET,
        _R.WALLET_NOT_OPEN,
        _R.REQUEST_DOCUMENT_INVALID,
        _R.REQUEST_NOT_FOR_WALLET,
        LedgerRefusal.WRONG_LEDGER,
        LedgerRefusal.WRONG_CURRENCY,
        _UNAVAILABLE,
        statuses=STATUSES,
    ),
)
def deliver_request(body: RequestDelivery, context: Services) -> RequestDelivery:
    incoming.deliver_request(context, body.document)
    return body


@router.post(
    "/v1/payment-requests/{request}/declines",
    operation_id="take_request_decline",
    status_code=201,
    summary="A payer's institution tells that he does not pay",
    responses=problems(
        _R.REQUEST_NOT_FOUND, _R.REQUEST_DOCUMENT_INVALID, _R.REQUEST_NOT_FOR_WALLET, _UNAVAILABLE, statuses=STATUSES
    ),
)
def take_request_decline(body: DeclineOrder, request_id: RequestPath, context: Services) -> DeclineOrder:
    requests.take_decline(context, request_id, body.decline)
    return body


@router.post(
    "/v1/code-redemptions",
    operation_id="accept_payer_code",
    summary="A merchant's institution brings a code of one of our holders, and the request to pay with it",
    responses=problems(_R.REQUEST_DOCUMENT_INVALID, *_CODES, _UNAVAILABLE, statuses=STATUSES),
)
def accept_payer_code(body: CodeRedemption, context: Services) -> CodeRedemptionAnswer:
    return payer_codes.accept(context, body)


# --- views -----------------------------------------------------------------------------------------------------------


def _request_view(row: Request, context: Context) -> PaymentRequestView:
    return PaymentRequestView(
        request=row.id,
        wallet=row.wallet_id,
        account=row.account,
        state=RequestState(row.state_at(context.clock())),
        currency=row.currency,
        amount_minor=row.terms.amount_minor,
        amount_min_minor=row.terms.amount_min_minor,
        amount_max_minor=row.terms.amount_max_minor,
        payments="many" if row.terms.is_many else "one",
        paid_minor=row.paid_minor,
        remaining_minor=row.remaining_minor,
        surplus_minor=row.surplus_minor,
        payer=row.payer_account,
        payer_institution=row.payer_institution,
        payee_name=row.payee_name,
        description=row.description,
        payee_reference=row.payee_reference,
        document=row.document,
        created_at=row.created_at,
        expires_at=row.expires_at,
        ended_at=row.ended_at,
    )


def _request_payment_view(row: RequestPayment) -> RequestPaymentView:
    return RequestPaymentView(
        payment=row.transfer_id,
        request=row.request_id,
        payer=row.refund_account or row.payer_account,
        amount_minor=row.amount_minor,
        is_surplus=row.is_surplus,
        seq=row.seq,
        booked_at=row.booked_at,
    )


def _incoming_view(shown: Shown) -> IncomingRequestView:
    row, offer = shown.row, shown.offer
    return IncomingRequestView(
        wallet=row.wallet_id,
        state=IncomingState(row.state),
        asked=shown.document,
        remaining_minor=None if offer is None else offer.remaining_minor,
        next_payment=None if offer is None else offer.next_payment,
        paid_minor=row.paid_minor,
        payment=row.payment_id,
        needs_approval=row.needs_approval,
        received_at=row.received_at,
    )


def _code_view(read: ReadCode) -> CodeView:
    code = read.code
    if isinstance(code, MerchantCode):
        return CodeView(
            kind="payee-dynamic" if code.is_dynamic else "payee-static",
            institution=code.institution,
            account=code.account,
            currency=code.currency,
            amount_minor=code.amount_minor,
            name=code.name,
            city=code.city,
            request=code.request,
            reference=code.reference,
            valid_until=code.valid_until,
            is_signed=read.is_signed,
            is_expired=read.is_expired,
        )
    return CodeView(
        kind="payer",
        institution=code.institution,
        account=code.account,
        currency=None,
        amount_minor=code.cap_minor,
        name=None,
        city=None,
        request=None,
        reference=None,
        valid_until=code.valid_until,
        is_signed=read.is_signed,
        is_expired=read.is_expired,
    )
