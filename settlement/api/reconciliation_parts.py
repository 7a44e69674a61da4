"""What the operations of reconciliation share: paths, lookups that show a caller its own only, cursors, views."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any
from uuid import UUID

from fastapi import Path

from kernel import ids
from kernel.errors import ProblemError, RequestRefusal
from kernel.http import problems
from kernel.ids import ParticipantId
from kernel.money import Currency
from kernel.pagination import decode
from settlement.api.auth import SIGNED, Caller
from settlement.api.service import Service, not_found, parse_ref
from settlement.contract import STATUS_BY_REFUSAL
from settlement.contract.reconciliation import (
    BreakDetailView,
    BreakView,
    EventView,
    RepairView,
)
from settlement.domain.reconciliation import age_bucket, severity
from settlement.domain.refusals import SettlementRefusal as R
from settlement.store import reconciliation as store
from settlement.store.reconciliation import BreakRow, RunRow
from settlement.usecases import reconcile as work


def _ref(prefix: str) -> Any:
    example = f"{prefix}_0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"
    return Path(json_schema_extra={"pattern": ids.pattern(prefix), "examples": [example]})


ReconciliationPath = Annotated[str, _ref("rec")]
SourcePath = Annotated[str, _ref("src")]
BreakPath = Annotated[str, _ref("brk")]


def responses(*refusals: R | RequestRefusal) -> dict[int | str, dict[str, Any]]:
    return problems(*SIGNED, *refusals, statuses=STATUS_BY_REFUSAL)


def only_own(caller: Caller, participant: ParticipantId | None) -> ParticipantId | None:
    """An institution sees its own; the bridge whatever it asks for."""
    if participant is not None:
        caller.require(participant)
        return participant
    return None if caller.is_operator else caller.participant


def find_run(service: Service, caller: Caller, text: str) -> RunRow:
    key = parse_ref("rec", text, R.RECONCILIATION_NOT_FOUND)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        row = store.find_run(connection, key)
    if row is None or not caller.may_see(row.participant):
        not_found(R.RECONCILIATION_NOT_FOUND)
    return row


def find_break(service: Service, caller: Caller, text: str) -> BreakRow:
    key = parse_ref("brk", text, R.BREAK_NOT_FOUND)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        row = store.find_break(connection, key)
    if row is None or not caller.may_see(row.participant):
        not_found(R.BREAK_NOT_FOUND)
    return row


def after_ref(cursor: str | None, filters: dict[str, Any], prefix: str, refusal: R) -> UUID | None:
    return None if cursor is None else parse_ref(prefix, str(decode(cursor, filters, shape=(str,))[0]), refusal)


def after_number(cursor: str | None, filters: dict[str, Any]) -> int:
    after = 0 if cursor is None else int(decode(cursor, filters, shape=(int,))[0])
    if not 0 <= after < 2**31 - 1_000:
        raise damaged()
    return after


def after_place(cursor: str | None, filters: dict[str, Any]) -> tuple[str, str, str, str] | None:
    if cursor is None:
        return None
    day, batch, participant, currency = (str(item) for item in decode(cursor, filters, shape=(str, str, str, str)))
    try:
        return date.fromisoformat(day).isoformat(), str(UUID(batch)), participant, currency
    except ValueError:
        raise damaged() from None


def damaged() -> ProblemError:
    reason = "the cursor is damaged: pass next_cursor unchanged"
    errors = [{"pointer": "/query/cursor", "message": reason}]
    return ProblemError(RequestRefusal.VALIDATION_FAILED, reason, errors=errors)


def currency_of(code: str) -> Currency:
    try:
        return Currency.of(code)
    except ValueError as error:
        raise ProblemError(R.CURRENCY_NOT_SERVED, str(error)) from None


def break_view(row: BreakRow, service: Service) -> BreakView:
    age_days = max(0, (service.clock().date() - row.oldest).days)
    gross = tuple((Currency.of(code), int(amount)) for code, amount in row.gross.items())
    return BreakView(
        id=row.id,
        reconciliation=row.run_id,
        participant=row.participant,
        counterparty=row.counterparty,
        currency=row.currency,
        account=row.account,
        type=row.type,
        side=row.side,
        also=row.also,
        our_references=row.our_references[: work.REFERENCES_SHOWN_MAX],
        their_references=row.their_references[: work.REFERENCES_SHOWN_MAX],
        our_amount_minor=row.our_amount_minor,
        their_amount_minor=row.their_amount_minor,
        difference_minor=row.difference_minor,
        gross_minor=row.gross,
        oldest=row.oldest,
        age_days=age_days,
        bucket=age_bucket(age_days),
        severity=severity(gross, age_bucket(age_days)),
        sentence=row.sentence,
        state=row.state,
        sequence=row.sequence,
        assignee=row.assignee,
        created_at=row.created_at,
    )


def detail_view(service: Service, row: BreakRow) -> BreakDetailView:
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        events, repairs = store.history(connection, row.id), store.repairs_of(connection, row.id)
    return BreakDetailView(
        found=break_view(row, service),
        history=[
            EventView(
                sequence=event.sequence,
                kind=event.kind,
                actor=event.actor,
                at=event.at,
                reason=event.reason,
                assignee=event.assignee,
                decision=event.decision,
                reconciliation=event.run,
                token=event.token,
            )
            for event in events
        ],
        repairs=[
            RepairView(
                proposal=repair.id,
                kind=repair.kind,
                payer=repair.payer,
                payee=repair.payee,
                amount_minor=repair.amount_minor,
                currency=repair.currency,
                maker=repair.maker,
                checker=repair.checker,
                settlement=repair.settlement_id,
                proposed_at=repair.proposed_at,
                approved_at=repair.approved_at,
                booked_at=repair.booked_at,
            )
            for repair in repairs
        ],
    )
