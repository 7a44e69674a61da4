"""Aliases: telephone numbers and e-mail addresses that lead to wallets, and confirmation of payee."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

from kernel.errors import RequestRefusal
from kernel.http import problems, strict_router
from wallet.api.auth import SIGNED, Channel, Reader
from wallet.api.dependencies import STATUSES, Services
from wallet.contract import WalletRef, WalletRefusal
from wallet.contract.families import (
    AliasCodeRequest,
    AliasesView,
    AliasKind,
    AliasLookupRequest,
    AliasLookupView,
    AliasRef,
    AliasRequest,
    AliasState,
    AliasView,
)
from wallet.domain.aliases import Alias
from wallet.usecases import aliases

router = strict_router(tags=["aliases"])
_R = WalletRefusal
AliasPath = Annotated[AliasRef, Path(alias="alias")]


@router.post(
    "/v1/aliases",
    operation_id="create_alias",
    status_code=201,
    summary="Ask for a one-time code to be sent to a telephone number or an e-mail address",
    responses=problems(
        *SIGNED,
        _R.WALLET_NOT_FOUND,
        _R.WALLET_NOT_OPEN,
        _R.ALIAS_INVALID,
        _R.ALIAS_EXISTS,
        _R.ALIAS_CODES_TOO_MANY,
        RequestRefusal.SERVICE_UNAVAILABLE,
        statuses=STATUSES,
    ),
)
def create_alias(body: AliasRequest, context: Services, client: Channel) -> AliasView:
    row = aliases.ask(context, body.alias_id, kind=body.kind.value, alias=body.alias, wallet_id=body.wallet)
    return _view(row)


@router.post(
    "/v1/aliases/{alias}/verification",
    operation_id="verify_alias",
    summary="Give the code back; the alias leads to the wallet from now on",
    responses=problems(*SIGNED, _R.ALIAS_NOT_FOUND, _R.ALIAS_CODE_WRONG, _R.ALIAS_CODE_SPENT, statuses=STATUSES),
)
def verify_alias(alias_id: AliasPath, body: AliasCodeRequest, context: Services, client: Channel) -> AliasView:
    return _view(aliases.verify(context, alias_id, body.code))


@router.post(
    "/v1/aliases/{alias}/default",
    operation_id="make_alias_default",
    summary="Of several wallets with one alias, let this be the one that is paid in its currency",
    responses=problems(*SIGNED, _R.ALIAS_NOT_FOUND, statuses=STATUSES),
)
def make_alias_default(alias_id: AliasPath, context: Services, client: Channel) -> AliasView:
    return _view(aliases.make_default(context, alias_id))


@router.post(
    "/v1/aliases/{alias}/removal",
    operation_id="remove_alias",
    summary="The alias leads to the wallet no more",
    responses=problems(*SIGNED, _R.ALIAS_NOT_FOUND, statuses=STATUSES),
)
def remove_alias(alias_id: AliasPath, context: Services, client: Channel) -> AliasView:
    return _view(aliases.remove(context, alias_id))


@router.get(
    "/v1/wallets/{wallet}/aliases",
    operation_id="list_aliases",
    summary="A wallet's aliases, the newest first; never the alias itself",
    responses=problems(*SIGNED, _R.WALLET_NOT_FOUND, statuses=STATUSES),
)
def list_aliases(wallet: Annotated[WalletRef, Path()], context: Services, client: Reader) -> AliasesView:
    return AliasesView(wallet=wallet, aliases=[_view(row) for row in aliases.list_aliases(context, wallet)])


@router.post(
    "/v1/alias-lookups",
    operation_id="look_up_alias",
    summary="Confirmation of payee: whose account an alias leads to, by masked name",
    responses=problems(
        *SIGNED,
        _R.WALLET_NOT_FOUND,
        _R.WALLET_NOT_OPEN,
        _R.ALIAS_INVALID,
        _R.ALIAS_NOT_FOUND,
        _R.ALIAS_LOOKUPS_TOO_MANY,
        statuses=STATUSES,
    ),
)
def look_up_alias(body: AliasLookupRequest, context: Services, client: Channel) -> AliasLookupView:
    payee = aliases.look_up(context, body.payer, kind=body.kind.value, alias=body.alias, currency=body.currency)
    return AliasLookupView(account=payee.account, masked_name=payee.masked_name)


def _view(row: Alias) -> AliasView:
    return AliasView(
        alias_id=row.id,
        kind=AliasKind(row.kind),
        wallet=row.wallet_id,
        currency=row.currency,
        state=AliasState(row.state),
        is_default=row.is_default,
        tries_left=row.tries_left,
        code_until=row.code_until,
    )
