"""A wallet's life: own caps, class, evidence, devices, suspension, lost keys, closure, notices."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

from kernel.errors import ProblemError, Refusal, RequestRefusal
from kernel.http import problems, strict_router
from kernel.limits import PAGE_ITEMS_DEFAULT
from kernel.pagination import Page, PageCursor, PageLimit, decode, encode
from ledger.contract import ChangeRef, LedgerRefusal, TransferRefusal
from wallet.api.auth import SIGNED, Channel, Reader
from wallet.api.dependencies import STATUSES, Services
from wallet.api.lifecycle_views import (
    change_position,
    change_view,
    closure_view,
    device_view,
    notice_position,
    notice_view,
)
from wallet.api.views import customer_view
from wallet.contract import CustomerRef, WalletRef, WalletRefusal
from wallet.contract.lifecycle import (
    CapsRequest,
    ClassChangeRequest,
    ClosureRequest,
    DeviceChangeRequest,
    DevicesView,
    EvidenceChangeRequest,
    EvidenceChangeView,
    KeyRecoveryRequest,
    NoticeView,
    ObjectionRequest,
    ResumptionRequest,
    SuspensionRequest,
    WalletChangeView,
)
from wallet.domain.limits import Caps
from wallet.settings import ClientRole
from wallet.usecases import changes, closing, devices, lifecycle, listings, wallets

router = strict_router(tags=["lifecycle"])
_R = WalletRefusal
_UNAVAILABLE = RequestRefusal.SERVICE_UNAVAILABLE
WalletPath = Annotated[WalletRef, Path()]
ChangePath = Annotated[ChangeRef, Path()]

_CHANGED = (
    _R.WALLET_NOT_FOUND,
    _R.WALLET_NOT_OPEN,
    _R.WALLET_SUSPENDED,
    _R.WALLET_CLOSING,
    _R.WALLET_CLOSED,
    _R.CHANGE_EXISTS,
    _R.CHANGE_IN_PROGRESS,
    LedgerRefusal.ID_FROM_FUTURE,
    _UNAVAILABLE,
)
_ORDERED = (_R.HOLDER_ORDER_INVALID, _R.HOLDER_ORDER_EXPIRED)
_NEW_KEY = (_R.DEVICE_KEY_REFUSED, _R.DEVICE_KEY_IN_USE)


def _refusals(*refusals: Refusal) -> dict[int | str, dict[str, object]]:
    return problems(*SIGNED, *_CHANGED, *refusals, statuses=STATUSES)


@router.post(
    "/v1/wallets/{wallet}/caps",
    operation_id="set_wallet_caps",
    status_code=201,
    summary="The holder's own caps; to raise one needs his signature",
    responses=_refusals(_R.CAP_ABOVE_CLASS, _R.HOLDER_ORDER_MISSING, *_ORDERED),
)
def set_wallet_caps(wallet: WalletPath, body: CapsRequest, context: Services, client: Channel) -> WalletChangeView:
    own = Caps(
        balance_max_minor=body.caps.balance_max_minor,
        single_max_minor=body.caps.single_max_minor,
        day_max_minor=body.caps.day_max_minor,
        year_max_minor=body.caps.year_max_minor,
    )
    return change_view(lifecycle.set_caps(context, body.change, wallet, own, order=body.order))


@router.post(
    "/v1/wallets/{wallet}/class-changes",
    operation_id="change_wallet_class",
    status_code=201,
    summary="Up or down to a class that the customer's evidence opens",
    responses=_refusals(_R.EVIDENCE_INSUFFICIENT, LedgerRefusal.CLASS_UNKNOWN),
)
def change_wallet_class(
    wallet: WalletPath, body: ClassChangeRequest, context: Services, client: Channel
) -> WalletChangeView:
    return change_view(lifecycle.change_class(context, body.change, wallet, body.wallet_class))


@router.post(
    "/v1/customers/{customer}/evidence-changes",
    operation_id="change_customer_evidence",
    status_code=201,
    summary="Evidence verified anew or no longer good; wallets go down to what it opens",
    responses=problems(*SIGNED, _R.CUSTOMER_NOT_FOUND, _R.CUSTOMER_ERASED, _R.CHANGE_EXISTS, statuses=STATUSES),
)
def change_customer_evidence(
    customer: Annotated[CustomerRef, Path()], body: EvidenceChangeRequest, context: Services, client: Channel
) -> EvidenceChangeView:
    made = lifecycle.change_evidence(
        context, body.change, customer, added=frozenset(body.added), withdrawn=frozenset(body.withdrawn)
    )
    known = customer_view(wallets.find_customer(context, customer), context.pack)
    return EvidenceChangeView(change=body.change, customer=known, changes=[change_view(row) for row in made])


# --- devices ---------------------------------------------------------------------------------------------------------


@router.get(
    "/v1/wallets/{wallet}/devices",
    operation_id="list_wallet_devices",
    summary="All devices that the wallet ever had, the oldest first",
    responses=problems(*SIGNED, _R.WALLET_NOT_FOUND, statuses=STATUSES),
)
def list_wallet_devices(wallet: WalletPath, context: Services, client: Reader) -> DevicesView:
    return DevicesView(wallet=wallet, items=[device_view(row) for row in devices.list_devices(context, wallet)])


@router.post(
    "/v1/wallets/{wallet}/device-changes",
    operation_id="change_wallet_device",
    status_code=201,
    summary="Add, remove or replace a device with an active device's consent, whose id is the change's",
    responses=_refusals(*_ORDERED, *_NEW_KEY, _R.DEVICE_UNKNOWN, _R.DEVICES_TOO_MANY, _R.DEVICE_IS_LAST),
)
def change_wallet_device(
    wallet: WalletPath, body: DeviceChangeRequest, context: Services, client: Channel
) -> WalletChangeView:
    return change_view(devices.change_device(context, wallet, body.consent))


@router.post(
    "/v1/wallets/{wallet}/key-recoveries",
    operation_id="recover_wallet_key",
    status_code=201,
    summary="Announce a new device's key for a wallet whose devices are lost; it counts after the waiting time",
    responses=_refusals(*_NEW_KEY, _R.WALLET_NOT_SUSPENDED, _R.EVIDENCE_INSUFFICIENT),
)
def recover_wallet_key(
    wallet: WalletPath, body: KeyRecoveryRequest, context: Services, client: Channel
) -> WalletChangeView:
    change = devices.recover_key(
        context,
        body.change,
        wallet,
        device_key=body.device_key,
        identified_by=frozenset(body.identified_by),
    )
    return change_view(change)


@router.post(
    "/v1/wallets/{wallet}/objections",
    operation_id="object_to_announced_key",
    status_code=201,
    summary="A current key objects to the announced one: the holder's signature is all it needs",
    responses=problems(
        _R.WALLET_NOT_FOUND,
        _R.NOTHING_ANNOUNCED,
        *_ORDERED,
        LedgerRefusal.CONSENT_INVALID,
        LedgerRefusal.INSTRUCTION_EXPIRED,
        _UNAVAILABLE,
        statuses=STATUSES,
    ),
)
def object_to_announced_key(wallet: WalletPath, body: ObjectionRequest, context: Services) -> WalletChangeView:
    return change_view(devices.object_to_key(context, wallet, body.consent))


# --- suspension and closure ------------------------------------------------------------------------------------------


@router.post(
    "/v1/wallets/{wallet}/suspensions",
    operation_id="suspend_wallet",
    status_code=201,
    summary="Nothing is debited any more, at once: a lost device, or the institution's own reason",
    responses=_refusals(),
)
def suspend_wallet(wallet: WalletPath, body: SuspensionRequest, context: Services, client: Reader) -> WalletChangeView:
    return change_view(lifecycle.suspend(context, body.change, wallet, body.reason))


@router.post(
    "/v1/wallets/{wallet}/resumptions",
    operation_id="resume_wallet",
    status_code=201,
    summary="Take a reason of the suspension away; the wallet is open when none is left",
    responses=_refusals(_R.WALLET_NOT_SUSPENDED, _R.EVIDENCE_INSUFFICIENT),
)
def resume_wallet(wallet: WalletPath, body: ResumptionRequest, context: Services, client: Reader) -> WalletChangeView:
    if body.reason == "institution" and client.role is not ClientRole.OPERATOR:
        raise ProblemError(RequestRefusal.NOT_PERMITTED, "the institution's own reason is for its desk to take away")
    identified_by = frozenset(body.identified_by)
    return change_view(lifecycle.resume(context, body.change, wallet, body.reason, identified_by=identified_by))


@router.post(
    "/v1/wallets/{wallet}/closures",
    operation_id="close_wallet",
    status_code=201,
    summary="Close the wallet: interest, the holder's pay-out of the whole balance, the end of its account",
    responses=_refusals(
        _R.MONEY_ON_ITS_WAY,
        _R.CHILDREN_NOT_CLOSED,
        _R.PURSE_NOT_SETTLED,
        _R.PROGRAM_NOT_FINISHED,
        _R.PAYOUT_MISMATCH,
        _R.NOT_OUR_VAULT,
        LedgerRefusal.INSTRUCTION_INVALID,
        LedgerRefusal.INSTRUCTION_EXPIRED,
        LedgerRefusal.WRONG_LEDGER,
        LedgerRefusal.WRONG_CURRENCY,
        LedgerRefusal.OUTCOME_UNKNOWN,
        TransferRefusal.ACCOUNTS_MUST_DIFFER,
        TransferRefusal.ID_ALREADY_USED,
        TransferRefusal.CREDIT_ACCOUNT_UNKNOWN,
        TransferRefusal.KIND_NOT_ALLOWED,
        TransferRefusal.ACCOUNT_CLOSED,
        TransferRefusal.DEBIT_ACCOUNT_FROZEN,
        TransferRefusal.CREDIT_ACCOUNT_FROZEN,
        TransferRefusal.SINGLE_LIMIT_EXCEEDED,
        TransferRefusal.DAY_LIMIT_EXCEEDED,
        TransferRefusal.YEAR_LIMIT_EXCEEDED,
        TransferRefusal.INSUFFICIENT_FUNDS,
        TransferRefusal.BALANCE_LIMIT_EXCEEDED,
    ),
)
def close_wallet(wallet: WalletPath, body: ClosureRequest, context: Services, client: Channel) -> WalletChangeView:
    return closure_view(closing.close_wallet(context, body.change, wallet, instruction=body.instruction))


@router.post(
    "/v1/wallet-changes/{change}/cancellation",
    operation_id="cancel_wallet_closure",
    summary="Cancel a closure, as long as the account is not being closed",
    responses=problems(*SIGNED, _R.CHANGE_NOT_FOUND, _R.CHANGE_IN_PROGRESS, statuses=STATUSES),
)
def cancel_wallet_closure(change: ChangePath, context: Services, client: Channel) -> WalletChangeView:
    row = closing.cancel_closure(context, change)
    if row.state != "cancelled":
        raise ProblemError(_R.CHANGE_NOT_FOUND, f"the closure is {row.state}")
    return change_view(row)


# --- what happened ---------------------------------------------------------------------------------------------------


@router.get(
    "/v1/wallet-changes/{change}",
    operation_id="get_wallet_change",
    summary="How far a change of a wallet has come",
    responses=problems(*SIGNED, _R.CHANGE_NOT_FOUND, statuses=STATUSES),
)
def get_wallet_change(change: ChangePath, context: Services, client: Reader) -> WalletChangeView:
    return change_view(changes.find_change(context, change))


@router.get(
    "/v1/wallets/{wallet}/changes",
    operation_id="list_wallet_changes",
    summary="Changes of the wallet, newest first",
    responses=problems(*SIGNED, _R.WALLET_NOT_FOUND, statuses=STATUSES),
)
def list_wallet_changes(
    wallet: WalletPath,
    context: Services,
    client: Reader,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[WalletChangeView]:
    filters = {"list": "wallet-changes", "wallet": wallet}
    before = None if cursor is None else listings.position_of_moment(decode(cursor, filters, shape=(int, str)))
    rows = changes.list_changes(context, wallet, before=before, limit=limit)
    return Page[WalletChangeView](
        items=[change_view(row) for row in rows],
        next_cursor=encode(change_position(rows[-1]), filters) if len(rows) == limit else None,
    )


@router.get(
    "/v1/wallets/{wallet}/notices",
    operation_id="list_wallet_notices",
    summary="What the holder is to be told, newest first",
    responses=problems(*SIGNED, _R.WALLET_NOT_FOUND, statuses=STATUSES),
)
def list_wallet_notices(
    wallet: WalletPath,
    context: Services,
    client: Reader,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[NoticeView]:
    filters = {"list": "wallet-notices", "wallet": wallet}
    before = None if cursor is None else listings.position_of_moment(decode(cursor, filters, shape=(int, str)))
    rows = changes.list_notices(context, wallet, before=before, limit=limit)
    return Page[NoticeView](
        items=[notice_view(row) for row in rows],
        next_cursor=encode(notice_position(rows[-1]), filters) if len(rows) == limit else None,
    )
