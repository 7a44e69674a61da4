"""Bookings: what was booked on a participant's accounts, in the order of the journal. Wallet services follow it."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query

from kernel import ids
from kernel.errors import RequestRefusal
from kernel.http import problems, strict_router
from kernel.limits import PAGE_ITEMS_DEFAULT, PAGE_ITEMS_MAX
from ledger.api.auth import required_caller
from ledger.api.service import Service, service_of
from ledger.contract import STATUS_BY_REFUSAL, Booking, BookingsResponse
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
) -> BookingsResponse:
    """A page of the transfers that debit or credit accounts of the calling participant. Begin anywhere; go on at
    `through_seq`, which moves on over other participants' transfers too."""
    booked, through_seq = service.accounts.bookings(caller=caller, after_seq=after_seq, limit=limit)
    return BookingsResponse(bookings=[_booking(row) for row in booked], through_seq=through_seq)


def _booking(row: BookedTransfer) -> Booking:
    return Booking(
        seq=row.seq,
        transfer=row.id,
        kind=TRANSFER_KINDS[row.kind],
        debit=ids.AccountNumber(row.debit) if row.debit else None,
        credit=ids.AccountNumber(row.credit) if row.credit else None,
        amount_minor=0 if row.kind in UNPOSTED_CODES else row.amount,
        reference=row.reference,
        booked_at=row.booked_at,
    )
