"""Payees' QR codes of this institution: made and signed; and codes of any institution: read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from kernel.errors import ProblemError
from ledger.contract import LedgerRefusal
from wallet.contract import WalletRefusal
from wallet.domain import qr
from wallet.domain.qr import MerchantCode, PayerCode, QrRefused
from wallet.domain.requests import OPEN_STATES
from wallet.usecases import requests
from wallet.usecases.context import Context
from wallet.usecases.wallets import find_wallet


@dataclass(frozen=True, slots=True)
class Shop:
    """What a payee's code says besides the account: printable ASCII, as the field's standard has it."""

    name: str
    city: str
    country: str
    category: str


@dataclass(frozen=True, slots=True)
class ReadCode:
    code: MerchantCode | PayerCode
    is_signed: bool
    is_expired: bool


def static_code(
    context: Context, wallet_id: UUID, *, shop: Shop, amount_minor: int | None, reference: str | None
) -> str:
    """A code to print: pay this wallet, any time. Raises: ProblemError(wallet-not-found, wallet-not-open,
    code-invalid)."""
    wallet = find_wallet(context, wallet_id)
    if wallet.account is None:
        raise ProblemError(WalletRefusal.WALLET_NOT_OPEN)
    return _encode(
        context,
        MerchantCode(
            institution=context.participant,
            account=wallet.account,
            currency=context.ledgers.home.currency,
            name=shop.name,
            city=shop.city,
            country=shop.country,
            category=shop.category,
            amount_minor=amount_minor,
            reference=reference,
        ),
    )


def dynamic_code(context: Context, request_id: UUID, *, shop: Shop) -> str:
    """A code to show: pay this request. Raises: ProblemError(request-not-found, request-ended, code-invalid)."""
    request = requests.find_request(context, request_id)
    if request.state_at(context.clock()) not in OPEN_STATES:
        raise ProblemError(WalletRefusal.REQUEST_ENDED, f"the request is {request.state_at(context.clock())}")
    return _encode(
        context,
        MerchantCode(
            institution=context.participant,
            account=request.account,
            currency=request.currency,
            name=shop.name,
            city=shop.city,
            country=shop.country,
            category=shop.category,
            amount_minor=request.remaining_minor,
            request=request.id,
            valid_until=request.expires_at.replace(microsecond=0),
        ),
    )


def _encode(context: Context, code: MerchantCode) -> str:
    try:
        return qr.encode_merchant(code, key=context.key)
    except QrRefused as error:
        raise ProblemError(WalletRefusal.CODE_INVALID, str(error)) from None


def read_code(context: Context, text: str) -> ReadCode:
    """What a scanned text says, and whether its institution has signed it; a payer's code only his own can check.

    Raises: ProblemError(code-invalid, wrong-currency, service-unavailable).
    """
    now = context.clock()
    try:
        if qr.is_payer_code(text):
            code = qr.parse_payer(text)
            return ReadCode(code, False, _is_over(code.valid_until, now))
        merchant = qr.parse_merchant(text)
    except QrRefused as error:
        raise ProblemError(WalletRefusal.CODE_INVALID, str(error)) from None
    if merchant.currency != context.ledgers.home.currency:
        raise ProblemError(LedgerRefusal.WRONG_CURRENCY, f"the code asks for {merchant.currency}")
    key = context.peers.key_of(context, merchant.institution, None) if merchant.signature is not None else None
    is_signed = key is not None and qr.is_signed_by(text, key)
    return ReadCode(merchant, is_signed, _is_over(merchant.valid_until, now))


def _is_over(valid_until: datetime | None, now: datetime) -> bool:
    return valid_until is not None and now >= valid_until
