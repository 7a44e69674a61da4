"""Bookings: what was booked on a participant's accounts, in the order of the journal. Wallet services follow it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import Depends, Query, Response

from kernel import ids
from kernel.errors import RequestRefusal
from kernel.http import problems, strict_router
from kernel.limits import PAGE_ITEMS_DEFAULT, PAGE_ITEMS_MAX
from ledger.api.auth import required_caller
from ledger.api.service import Service, service_of
from ledger.contract import STATUS_BY_REFUSAL, BookingsResponse, show_moment
from ledger.domain.vocabulary import TRANSFER_KINDS, LedgerRefusal
from ledger.store.queries import BookedTransfer
from ledger.usecases.accounts import UNPOSTED_CODES
from ledger.usecases.keyring import Caller

router = strict_router()


@router.get(
    "/v1/bookings",
    operation_id="list_bookings",
    summary="What was booked on the caller's accounts, in order",
    tags=["accounts"],
    response_model=BookingsResponse,
    responses=problems(
        RequestRefusal.SIGNATURE_MISSING,
        RequestRefusal.SIGNATURE_INVALID,
        RequestRefusal.SIGNATURE_STALE,
        RequestRefusal.SIGNATURE_REPLAYED,
        LedgerRefusal.ROLE_NOT_ALLOWED,
        statuses=STATUS_BY_REFUSAL,
    ),
)
def list_bookings(
    caller: Annotated[Caller, Depends(required_caller)],
    service: Annotated[Service, Depends(service_of)],
    after_seq: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    limit: Annotated[int, Query(ge=1, le=PAGE_ITEMS_MAX)] = PAGE_ITEMS_DEFAULT,
) -> Response:
    """A page of the transfers that debit or credit accounts of the calling participant. Begin anywhere; go on at
    `through_seq`, which moves on over other participants' transfers too."""
    booked, through_seq = service.accounts.bookings(caller=caller, after_seq=after_seq, limit=limit)
    # Written without a model a booking: wallet services ask for pages of them while payments are under way.
    lines = [_wire(row) for row in booked]
    return Response(_encode(_BookingsWire(lines, through_seq)), media_type="application/json")


class _BookingWire(msgspec.Struct):
    """`ledger.contract.Booking` as JSON."""

    seq: int
    transfer: str
    kind: str
    debit: str | None
    credit: str | None
    amount_minor: str
    reference: str | None
    booked_at: str


class _BookingsWire(msgspec.Struct):
    bookings: list[_BookingWire]
    through_seq: int


_encode = msgspec.json.Encoder().encode


def _wire(row: BookedTransfer) -> _BookingWire:
    return _BookingWire(
        row.seq,
        f"trf_{row.id}",
        TRANSFER_KINDS[row.kind].value,
        ids.show_account(row.debit) if row.debit else None,
        ids.show_account(row.credit) if row.credit else None,
        "0" if row.kind in UNPOSTED_CODES else str(row.amount),
        None if row.reference is None else str(row.reference),
        show_moment(row.booked_at),
    )
