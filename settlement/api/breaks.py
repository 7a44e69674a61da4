"""Breaks and officers' decisions on them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from kernel import ids
from kernel.http import strict_router
from kernel.pagination import PAGE_ITEMS_DEFAULT, Page, PageCursor, PageLimit, encode
from ledger.contract import CurrencyCode, ParticipantRef
from settlement.api.auth import Signed
from settlement.api.reconciliation_parts import (
    BreakPath,
    after_ref,
    break_view,
    detail_view,
    find_break,
    only_own,
    responses,
)
from settlement.api.service import Services, parse_ref
from settlement.contract.reconciliation import (
    BreakDetailView,
    BreakView,
    Counterparty,
    DecisionRequest,
)
from settlement.domain.reconciliation import AgeBucket, BreakType
from settlement.domain.reconciliation.lifecycle import BreakState
from settlement.domain.refusals import SettlementRefusal as R
from settlement.store import reconciliation as store
from settlement.store.reconciliation import BreakFilter
from settlement.usecases import breaks as officers_at_work

router = strict_router()


@router.get(
    "/v1/breaks",
    tags=["reconciliation"],
    operation_id="list_breaks",
    summary="Breaks by state, type, age, assignee and relation, in the order in which they were opened",
    responses=responses(R.RECONCILIATION_NOT_FOUND, R.BREAK_NOT_FOUND),
)
def list_breaks(
    service: Services,
    caller: Signed,
    participant: ParticipantRef | None = None,
    counterparty: Annotated[Counterparty | None, Query()] = None,
    currency: CurrencyCode | None = None,
    reconciliation: Annotated[str | None, Query(max_length=64)] = None,
    state: Annotated[list[BreakState] | None, Query()] = None,
    type: Annotated[list[BreakType] | None, Query()] = None,
    bucket: AgeBucket | None = None,
    assignee: Annotated[str | None, Query(max_length=64)] = None,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[BreakView]:
    filters = {
        "participant": participant,
        "counterparty": counterparty,
        "currency": currency,
        "reconciliation": reconciliation,
        "state": ",".join(sorted(state or ())) or None,
        "type": ",".join(sorted(type or ())) or None,
        "bucket": None if bucket is None else bucket.value,
        "assignee": assignee,
    }
    wanted = BreakFilter(
        service.clock().date(),
        only_own(caller, participant),
        counterparty,
        currency,
        None if reconciliation is None else parse_ref("rec", reconciliation, R.RECONCILIATION_NOT_FOUND),
        tuple(item.value for item in state or ()),
        tuple(item.value for item in type or ()),
        filters["bucket"],
        assignee,
    )
    after = after_ref(cursor, filters, "brk", R.BREAK_NOT_FOUND)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        rows = store.breaks_page(connection, wanted, after=after, limit=limit + 1)
    more = encode([ids.show("brk", rows[limit - 1].id)], filters) if len(rows) > limit else None
    return Page(items=[break_view(row, service) for row in rows[:limit]], next_cursor=more)


@router.get(
    "/v1/breaks/{found}",
    tags=["reconciliation"],
    operation_id="get_break",
    summary="A break, the history of every decision on it, and its repairs",
    responses=responses(R.BREAK_NOT_FOUND),
)
def get_break(found: BreakPath, service: Services, caller: Signed) -> BreakDetailView:
    return detail_view(service, find_break(service, caller, found))


@router.post(
    "/v1/breaks/{found}/decisions",
    tags=["reconciliation"],
    operation_id="decide_break",
    status_code=201,
    summary="An officer's signed decision: assign, release, explain, propose, approve, reject, rematch, reopen",
    responses=responses(
        R.BREAK_NOT_FOUND,
        R.OFFICER_UNKNOWN,
        R.DECISION_INVALID,
        R.DECISION_ID_REUSED,
        R.BREAK_HAS_MOVED_ON,
        R.BREAK_STATE_WRONG,
        R.FOUR_EYES,
        R.REPAIR_NOT_POSSIBLE,
        R.LINES_DO_NOT_BALANCE,
    ),
)
def decide_break(found: BreakPath, body: DecisionRequest, service: Services, caller: Signed) -> BreakDetailView:
    row = officers_at_work.decide_break(
        body.token,
        subject=find_break(service, caller, found).id,
        officers=service.books.officers,
        database=service.database,
        directory=service.directory,
        checks=service.intake_checks,
        clock=service.clock,
    )
    service.worker.wake()
    return detail_view(service, row)
