"""Parent and child wallets, corporate owners, hardware wallets. A merchant's charge needs no signed request."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

from kernel.crypto.keys import from_base64url
from kernel.errors import RequestRefusal
from kernel.http import problems, strict_router
from kernel.limits import PAGE_ITEMS_DEFAULT
from kernel.pagination import PageCursor, PageLimit
from ledger.contract import TransferRefusal
from wallet.api.auth import SIGNED, Channel, Reader
from wallet.api.dependencies import STATUSES, Services
from wallet.api.money import INSTRUCTED
from wallet.api.views import history_page, payment_result, payment_view
from wallet.contract import CustomerRef, HistoryPage, PaymentView, WalletRef, WalletRefusal, WalletState
from wallet.contract.cards import CardRevocationsRequest, CardRevocationsView
from wallet.contract.families import (
    CardRequest,
    CardsView,
    CardView,
    ChargeRequest,
    ChildCapsBody,
    ChildCapsRequest,
    ChildRequest,
    ChildState,
    ChildView,
    CorporateRequest,
    CorporateView,
    FamilyView,
    PoolingRequest,
    PoolingResponse,
)
from wallet.domain.cards import CardRecord
from wallet.domain.families import ChildCaps
from wallet.domain.rules import RulePack
from wallet.usecases import corporate, families, hardware
from wallet.usecases.corporate import LegalData
from wallet.usecases.families import KnownChild, Push

router = strict_router(tags=["families"])
_R = WalletRefusal
_UNAVAILABLE = RequestRefusal.SERVICE_UNAVAILABLE
WalletPath = Annotated[WalletRef, Path()]
ChildPath = Annotated[WalletRef, Path()]
CustomerPath = Annotated[CustomerRef, Path()]
ThumbprintPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{43}$")]


# --- families --------------------------------------------------------------------------------------------------------


@router.post(
    "/v1/wallets/{wallet}/children",
    operation_id="open_child_wallet",
    status_code=201,
    summary="Open a child wallet with caps of its own; push it to a merchant, if asked",
    responses=problems(
        *SIGNED,
        _R.CUSTOMER_NOT_FOUND,
        _R.WALLET_NOT_FOUND,
        _R.WALLET_NOT_OPEN,
        _R.PARENT_IS_CHILD,
        _R.CHILD_EXISTS,
        _R.CHILD_CAPS_TOO_HIGH,
        _R.CHILD_CLASS_TOO_STRONG,
        _R.CHILDREN_TOO_MANY,
        _R.PAYEE_NOT_ALLOWED,
        _R.DEVICE_KEY_REFUSED,
        _R.EVIDENCE_INSUFFICIENT,
        _R.WALLET_EXISTS,
        _R.DEVICE_KEY_IN_USE,
        _R.WALLET_OPENING_REFUSED,
        _UNAVAILABLE,
        statuses=STATUSES,
    ),
)
def open_child_wallet(wallet: WalletPath, body: ChildRequest, context: Services, client: Channel) -> ChildView:
    known = families.open_child(
        context,
        wallet,
        body.child,
        customer_id=body.customer,
        wallet_class=body.wallet_class,
        device_key=body.device_key,
        label=body.label,
        caps=_caps(body.caps),
        push=None if body.push is None else Push(body.push.merchant, from_base64url(body.push.sealed_key)),
    )
    return _child_view(known, context.pack)


@router.get(
    "/v1/wallets/{wallet}/children",
    operation_id="list_child_wallets",
    summary="A parent's children with their balances; a child has none and sees no parent",
    responses=problems(*SIGNED, _R.WALLET_NOT_FOUND, _UNAVAILABLE, statuses=STATUSES),
)
def list_child_wallets(wallet: WalletPath, context: Services, client: Reader) -> FamilyView:
    children = families.list_children(context, wallet)
    return FamilyView(parent=wallet, children=[_child_view(child, context.pack) for child in children])


@router.get(
    "/v1/wallets/{wallet}/children/{child}",
    operation_id="get_child_wallet",
    summary="A child as its parent sees it",
    responses=problems(*SIGNED, _R.CHILD_NOT_FOUND, _UNAVAILABLE, statuses=STATUSES),
)
def get_child_wallet(wallet: WalletPath, child: ChildPath, context: Services, client: Reader) -> ChildView:
    return _child_view(families.find_child(context, wallet, child), context.pack)


@router.get(
    "/v1/wallets/{wallet}/children/{child}/history",
    operation_id="get_child_wallet_history",
    summary="What was booked on a child's account, for its parent",
    responses=problems(*SIGNED, _R.CHILD_NOT_FOUND, _R.WALLET_NOT_OPEN, _UNAVAILABLE, statuses=STATUSES),
)
def get_child_wallet_history(
    wallet: WalletPath,
    child: ChildPath,
    context: Services,
    client: Reader,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
    newest_first: bool = False,
) -> HistoryPage:
    known, lines = families.child_history(context, wallet, child, cursor=cursor, limit=limit, newest_first=newest_first)
    return history_page(known.wallet, lines)


@router.post(
    "/v1/wallets/{wallet}/children/{child}/caps",
    operation_id="set_child_caps",
    summary="Change a child's caps; none above its parent's class",
    responses=problems(
        *SIGNED,
        _R.CHILD_NOT_FOUND,
        _R.CHILD_CAPS_TOO_HIGH,
        _R.CHILD_CHANGED,
        _R.CHILD_CLOSED,
        _UNAVAILABLE,
        statuses=STATUSES,
    ),
)
def set_child_caps(
    wallet: WalletPath, child: ChildPath, body: ChildCapsRequest, context: Services, client: Channel
) -> ChildView:
    return _child_view(families.set_caps(context, wallet, child, _caps(body.caps), version=body.version), context.pack)


@router.post(
    "/v1/wallets/{wallet}/children/{child}/revocation",
    operation_id="revoke_child_wallet",
    summary="Take back what was pushed: from now on the child pays its parent alone",
    responses=problems(*SIGNED, _R.CHILD_NOT_FOUND, _R.CHILD_CLOSED, _UNAVAILABLE, statuses=STATUSES),
)
def revoke_child_wallet(wallet: WalletPath, child: ChildPath, context: Services, client: Channel) -> ChildView:
    return _child_view(families.revoke(context, wallet, child), context.pack)


@router.post(
    "/v1/wallets/{wallet}/children/{child}/closing",
    operation_id="close_child_wallet",
    summary="Close an empty child for good",
    responses=problems(
        *SIGNED, _R.CHILD_NOT_FOUND, _R.WALLET_NOT_OPEN, _R.CHILD_NOT_EMPTY, _UNAVAILABLE, statuses=STATUSES
    ),
)
def close_child_wallet(wallet: WalletPath, child: ChildPath, context: Services, client: Channel) -> ChildView:
    return _child_view(families.close_child(context, wallet, child), context.pack)


@router.post(
    "/v1/wallets/{wallet}/poolings",
    operation_id="pool_children",
    summary="Money of children back to their parent: instructions signed with the children's keys; a result each",
    responses=problems(*SIGNED, _R.WALLET_NOT_FOUND, _UNAVAILABLE, statuses=STATUSES),
)
def pool_children(wallet: WalletPath, body: PoolingRequest, context: Services, client: Channel) -> PoolingResponse:
    outcomes = families.pool(context, wallet, body.instructions)
    return PoolingResponse(results=[payment_result(item) for item in outcomes])


@router.post(
    "/v1/charges",
    operation_id="create_charge",
    status_code=201,
    summary="A merchant charges the child wallet that was pushed to it; its secret is the authority",
    responses=problems(
        _R.CHILD_NOT_FOUND, _R.CHARGE_NOT_AUTHORISED, *INSTRUCTED, TransferRefusal.NOT_AUTHORISED, statuses=STATUSES
    ),
)
def create_charge(body: ChargeRequest, context: Services) -> PaymentView:
    return payment_view(
        families.charge(
            context,
            body.charge,
            body.child,
            amount_minor=body.amount_minor,
            currency=body.currency,
            secret=from_base64url(body.secret),
        )
    )


# --- corporate owners ------------------------------------------------------------------------------------------------


@router.post(
    "/v1/customers/{customer}/corporate",
    operation_id="register_corporate",
    status_code=201,
    summary="Say that a customer is a legal entity: its name, LEI and social credit code",
    responses=problems(
        *SIGNED,
        _R.CUSTOMER_NOT_FOUND,
        _R.CUSTOMER_ERASED,
        _R.CUSTOMER_EXISTS,
        _R.CORPORATE_DATA_INVALID,
        statuses=STATUSES,
    ),
)
def register_corporate(
    customer: CustomerPath, body: CorporateRequest, context: Services, client: Channel
) -> CorporateView:
    data = LegalData(body.legal_name, body.lei, body.social_credit_code)
    return _corporate_view(customer, corporate.register(context, customer, data))


@router.get(
    "/v1/customers/{customer}/corporate",
    operation_id="get_corporate",
    summary="A legal entity's name and identifiers",
    responses=problems(*SIGNED, _R.CUSTOMER_NOT_FOUND, _R.CUSTOMER_ERASED, statuses=STATUSES),
)
def get_corporate(customer: CustomerPath, context: Services, client: Reader) -> CorporateView:
    return _corporate_view(customer, corporate.find(context, customer))


# --- hardware wallets ------------------------------------------------------------------------------------------------


@router.post(
    "/v1/wallets/{wallet}/cards",
    operation_id="register_card",
    status_code=201,
    summary="Say that one of the wallet's device keys is in a card, with what it pays without PIN",
    responses=problems(
        *SIGNED,
        _R.WALLET_NOT_FOUND,
        _R.WALLET_NOT_OPEN,
        _R.DEVICE_KEY_REFUSED,
        _R.CARD_NOT_FOUND,
        _R.CARD_NOT_ATTESTED,
        _R.CARD_REVOKED,
        _R.CARD_EXPIRED,
        _R.CARD_EXISTS,
        statuses=STATUSES,
    ),
)
def register_card(wallet: WalletPath, body: CardRequest, context: Services, client: Channel) -> CardView:
    return _card_view(
        hardware.register_card(
            context,
            wallet,
            key=body.key,
            attestation=body.attestation,
            pin_free_single_max_minor=body.pin_free_single_max_minor,
            pin_free_total_max_minor=body.pin_free_total_max_minor,
        )
    )


@router.post(
    "/v1/card-revocations",
    operation_id="take_card_revocations",
    status_code=201,
    summary="A card issuer's signed list of cards that are not to be trusted any more",
    responses=problems(_R.CARD_NOT_ATTESTED, statuses=STATUSES),
)
def take_card_revocations(body: CardRevocationsRequest, context: Services) -> CardRevocationsView:
    listed, suspended = hardware.take_revocations(context, body.revocations)
    return CardRevocationsView(issuer=listed.issuer, number=listed.number, suspended=suspended)


@router.get(
    "/v1/wallets/{wallet}/cards",
    operation_id="list_cards",
    summary="A wallet's cards; of a cloned one, the proof",
    responses=problems(*SIGNED, _R.WALLET_NOT_FOUND, statuses=STATUSES),
)
def list_cards(wallet: WalletPath, context: Services, client: Reader) -> CardsView:
    return CardsView(wallet=wallet, cards=[_card_view(record) for record in hardware.list_cards(context, wallet)])


@router.post(
    "/v1/wallets/{wallet}/cards/{thumbprint}/report",
    operation_id="report_card",
    summary="Lost or stolen: nothing that the card signs is carried from now on",
    responses=problems(*SIGNED, _R.WALLET_NOT_FOUND, _R.CARD_NOT_FOUND, statuses=STATUSES),
)
def report_card(wallet: WalletPath, thumbprint: ThumbprintPath, context: Services, client: Channel) -> CardView:
    return _card_view(hardware.report_card(context, wallet, thumbprint))


# --- views -----------------------------------------------------------------------------------------------------------


def _caps(body: ChildCapsBody) -> ChildCaps:
    return ChildCaps(
        balance_max_minor=body.balance_max_minor,
        single_max_minor=body.single_max_minor,
        day_max_minor=body.day_max_minor,
        total_max_minor=body.total_max_minor,
    )


def _child_view(known: KnownChild, pack: RulePack) -> ChildView:
    child, caps = known.child, known.child.caps
    return ChildView(
        child=child.wallet_id,
        parent=child.parent_id,
        label=known.label,
        state=ChildState(child.state),
        wallet_state=WalletState(known.wallet.state),
        wallet_class=known.wallet.wallet_class,
        currency=pack.currency,
        account=known.wallet.account,
        merchant=child.merchant,
        caps=ChildCapsBody(
            balance_max_minor=caps.balance_max_minor,
            single_max_minor=caps.single_max_minor,
            day_max_minor=caps.day_max_minor,
            total_max_minor=caps.total_max_minor,
        ),
        spent_today_minor=child.usage.day_minor,
        spent_total_minor=child.usage.total_minor,
        balance_minor=None if known.account is None else known.account.balance_minor,
        version=child.version,
    )


def _corporate_view(customer: CustomerRef, data: LegalData) -> CorporateView:
    return CorporateView(
        customer=customer, legal_name=data.legal_name, lei=data.lei, social_credit_code=data.social_credit_code
    )


def _card_view(record: CardRecord) -> CardView:
    card = record.card
    return CardView(
        wallet=card.wallet_id,
        thumbprint=card.thumbprint,
        state=card.state,
        suspended_why=record.suspended_why,
        suspended_at=record.suspended_at,
        expires_at=card.expires_at,
        counter_last=card.counter_last,
        pin_free_single_max_minor=card.pin_free_single_max_minor,
        pin_free_total_max_minor=card.pin_free_total_max_minor,
        pin_free_minor=card.pin_free_minor,
        evidence=list(record.evidence),
    )
