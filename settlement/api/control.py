"""The report of what was settled, and the continuous control."""

from __future__ import annotations

from datetime import date
from typing import Annotated

from fastapi import Query

from kernel import ids
from kernel.http import strict_router
from kernel.pagination import PAGE_ITEMS_DEFAULT, Page, PageCursor, PageLimit, encode
from ledger.contract import CurrencyCode, ParticipantRef
from settlement.api.auth import Operator, Signed
from settlement.api.reconciliation_parts import after_place, break_view, only_own, responses
from settlement.api.service import Service, Services, parse_ref
from settlement.contract.reconciliation import (
    ControlBalanceView,
    ControlView,
    ReportView,
)
from settlement.domain.refusals import SettlementRefusal as R
from settlement.store import reports
from settlement.usecases.control import Report

router = strict_router()


@router.get(
    "/v1/settlement-reports",
    tags=["reconciliation"],
    operation_id="list_settlement_report",
    summary="What was settled, by batch, participant, currency and value date; gross, with the net beside it",
    responses=responses(R.BATCH_NOT_FOUND),
)
def list_settlement_report(
    service: Services,
    caller: Signed,
    batch: Annotated[str | None, Query(max_length=64)] = None,
    participant: ParticipantRef | None = None,
    currency: CurrencyCode | None = None,
    value_date_from: date | None = None,
    value_date_to: date | None = None,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[ReportView]:
    filters = {
        "batch": batch,
        "participant": participant,
        "currency": currency,
        "from": None if value_date_from is None else value_date_from.isoformat(),
        "to": None if value_date_to is None else value_date_to.isoformat(),
    }
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        rows = reports.settlement_report(
            connection,
            batch=None if batch is None else parse_ref("bat", batch, R.BATCH_NOT_FOUND),
            participant=only_own(caller, participant),
            currency=currency,
            value_date_from=value_date_from,
            value_date_to=value_date_to,
            after=after_place(cursor, filters),
            limit=limit + 1,
        )
    more = encode(list(rows[limit - 1].position), filters) if len(rows) > limit else None
    return Page(items=[_report_view(row) for row in rows[:limit]], next_cursor=more)


@router.get(
    "/v1/control",
    tags=["reconciliation"],
    operation_id="get_control",
    summary="The continuous control: nostro against vostro, escrows, open alarms",
    responses=responses(),
)
def get_control(service: Services, caller: Operator) -> ControlView:
    return _control_view(service, service.books.control.report())


@router.post(
    "/v1/control/run",
    tags=["reconciliation"],
    operation_id="run_control",
    summary="Run a round of the control now, and compare whole balances",
    responses=responses(),
)
def run_control(service: Services, caller: Operator) -> ControlView:
    service.books.control.run()
    service.books.control.compare_balances()
    return _control_view(service, service.books.control.report())


def _report_view(row: reports.ReportRow) -> ReportView:
    return ReportView(
        batch=row.batch,
        participant=row.participant,
        currency=row.currency,
        value_date=row.value_date,
        paid_legs=row.paid_legs,
        paid_minor=str(row.paid_minor),
        received_legs=row.received_legs,
        received_minor=str(row.received_minor),
        net_minor=str(row.net_minor),
    )


def _control_view(service: Service, report: Report) -> ControlView:
    return ControlView(
        is_good=not report.alarms,
        alarms=[break_view(row, service) for row in report.alarms],
        settlements_checked=report.settlements,
        legs_checked=report.legs,
        checked_at=report.checked_at,
        balances=[
            ControlBalanceView(
                ledger=item.ledger,
                account=ids.show_account(item.account),
                participant=item.participant,
                currency=item.currency,
                bridge_minor=str(item.bridge_minor),
                island_minor=str(item.island_minor),
                legs=item.legs,
            )
            for item in report.balances
        ],
    )
