"""Response models of a wallet's changes, devices and notices."""

from __future__ import annotations

from kernel.clock import to_micros
from wallet.contract.lifecycle import (
    ChangeKind,
    ChangeState,
    ClosureView,
    DeviceState,
    DeviceView,
    NoticeView,
    WalletChangeView,
)
from wallet.domain.lifecycle import Change, Device, Notice
from wallet.usecases.closing import Closure, closure_of


def change_view(row: Change) -> WalletChangeView:
    return closure_view(closure_of(row)) if row.kind == "close" else _view(row, None)


def closure_view(closure: Closure) -> WalletChangeView:
    shown = ClosureView(
        interest_minor=closure.interest_minor, amount_due_minor=closure.amount_due_minor, payout=closure.payout
    )
    return _view(closure.change, shown)


def _view(row: Change, closure: ClosureView | None) -> WalletChangeView:
    return WalletChangeView(
        change=row.id,
        wallet=row.wallet_id,
        kind=ChangeKind(row.kind),
        state=ChangeState(row.state),
        content=dict(row.content),
        refusal=row.refusal,
        detail=row.detail,
        due_at=row.due_at if row.state == "waiting" else None,
        created_at=row.created_at,
        ended_at=row.ended_at,
        closure=closure,
    )


def device_view(row: Device) -> DeviceView:
    return DeviceView(
        thumbprint=row.thumbprint,
        key=dict(row.key),
        state=DeviceState(row.state),
        added_at=row.added_at,
        ended_at=row.ended_at,
    )


def notice_view(row: Notice) -> NoticeView:
    return NoticeView(wallet=row.wallet_id, kind=row.kind, at=row.at, data=dict(row.data))


def change_position(row: Change) -> list[int | str]:
    return [to_micros(row.created_at), str(row.id)]


def notice_position(row: Notice) -> list[int | str]:
    return [to_micros(row.at), str(row.id)]
