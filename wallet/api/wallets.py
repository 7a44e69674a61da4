"""Customers, wallets, and what is in them. For the bank's channels (signed requests)."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query

from kernel.errors import RequestRefusal
from kernel.http import problems, strict_router
from kernel.limits import PAGE_ITEMS_DEFAULT
from kernel.pagination import Page, PageCursor, PageLimit, decode, encode
from wallet.api.auth import SIGNED, Channel, Reader, sight_of
from wallet.api.dependencies import STATUSES, Services
from wallet.api.views import customer_view, history_page, payment_view, wallet_view
from wallet.contract import (
    CustomerRef,
    CustomerRequest,
    CustomerView,
    HistoryPage,
    PaymentView,
    WalletRef,
    WalletRefusal,
    WalletRequest,
    WalletView,
)
from wallet.usecases import listings, wallets

router = strict_router(tags=["wallets"])
_UNAVAILABLE = RequestRefusal.SERVICE_UNAVAILABLE
_R = WalletRefusal
WalletPath = Annotated[WalletRef, Path()]


@router.post(
    "/v1/customers",
    operation_id="create_customer",
    status_code=201,
    summary="Register a customer",
    responses=problems(*SIGNED, _R.CUSTOMER_EXISTS, _R.CUSTOMER_ERASED, statuses=STATUSES),
)
def create_customer(body: CustomerRequest, context: Services, client: Channel) -> CustomerView:
    known = wallets.register_customer(
        context, body.customer, name=body.name, phone=body.phone, evidence=frozenset(body.evidence)
    )
    return customer_view(known, context.pack)


@router.get(
    "/v1/customers/{customer}",
    operation_id="get_customer",
    summary="A customer",
    responses=problems(*SIGNED, _R.CUSTOMER_NOT_FOUND, _R.CUSTOMER_ERASED, statuses=STATUSES),
)
def get_customer(customer: Annotated[CustomerRef, Path()], context: Services, client: Reader) -> CustomerView:
    return customer_view(wallets.find_customer(context, customer), context.pack, sight=sight_of(client))


@router.post(
    "/v1/wallets",
    operation_id="open_wallet",
    status_code=201,
    summary="Open a wallet in a class",
    responses=problems(
        *SIGNED,
        _R.DEVICE_KEY_REFUSED,
        _R.CUSTOMER_NOT_FOUND,
        _R.CUSTOMER_ERASED,
        _R.EVIDENCE_INSUFFICIENT,
        _R.WALLET_EXISTS,
        _R.DEVICE_KEY_IN_USE,
        _R.WALLET_OPENING_REFUSED,
        _UNAVAILABLE,
        statuses=STATUSES,
    ),
)
def open_wallet(body: WalletRequest, context: Services, client: Channel) -> WalletView:
    row = wallets.open_wallet(
        context,
        body.wallet,
        customer_id=body.customer,
        wallet_class=body.wallet_class,
        device_key=body.device_key,
    )
    return wallet_view(row, wallets.account_of(context, row), pack=context.pack)


@router.get(
    "/v1/wallets/{wallet}",
    operation_id="get_wallet",
    summary="A wallet with its balance and what its limits leave",
    responses=problems(*SIGNED, _R.WALLET_NOT_FOUND, _UNAVAILABLE, statuses=STATUSES),
)
def get_wallet(wallet: WalletPath, context: Services, client: Reader) -> WalletView:
    row = wallets.find_wallet(context, wallet)
    return wallet_view(row, wallets.account_of(context, row), pack=context.pack)


@router.get(
    "/v1/wallets",
    operation_id="list_wallets",
    summary="Wallets in order of id, without balances",
    responses=problems(*SIGNED, statuses=STATUSES),
)
def list_wallets(
    context: Services,
    client: Reader,
    customer: Annotated[CustomerRef | None, Query()] = None,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[WalletView]:
    filters = {"list": "wallets", "customer": customer}
    after = None if cursor is None else listings.position_of_id(decode(cursor, filters, shape=(str,)))
    rows = listings.list_wallets(context, customer_id=customer, after=after, limit=limit)
    return Page[WalletView](
        items=[wallet_view(row, None, pack=context.pack) for row in rows],
        next_cursor=encode([str(rows[-1].id)], filters) if len(rows) == limit else None,
    )


@router.get(
    "/v1/wallets/{wallet}/history",
    operation_id="get_wallet_history",
    summary="What was booked on the wallet's account, oldest first unless asked otherwise",
    responses=problems(*SIGNED, _R.WALLET_NOT_FOUND, _R.WALLET_NOT_OPEN, _UNAVAILABLE, statuses=STATUSES),
)
def get_wallet_history(
    wallet: WalletPath,
    context: Services,
    client: Reader,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
    newest_first: bool = False,
) -> HistoryPage:
    row = wallets.find_wallet(context, wallet)
    lines = wallets.history(context, row.id, cursor=cursor, limit=limit, newest_first=newest_first)
    return history_page(row, lines)


@router.get(
    "/v1/wallets/{wallet}/payments",
    operation_id="list_wallet_payments",
    summary="Payments the wallet's holder has sent, refused ones included, newest first",
    responses=problems(*SIGNED, _R.WALLET_NOT_FOUND, statuses=STATUSES),
)
def list_wallet_payments(
    wallet: WalletPath,
    context: Services,
    client: Reader,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[PaymentView]:
    filters = {"list": "payments", "wallet": wallet}
    before = None if cursor is None else listings.position_of_moment(decode(cursor, filters, shape=(int, str)))
    rows = listings.list_payments(context, wallet, before=before, limit=limit)
    return Page[PaymentView](
        items=[payment_view(row) for row in rows],
        next_cursor=encode(listings.moment_position(rows[-1]), filters) if len(rows) == limit else None,
    )
