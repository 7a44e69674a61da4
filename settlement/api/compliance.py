"""The compliance port's operations: the queue, officers' verdicts, the record of decisions, a resident's quota."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Path, Query

from kernel import ids
from kernel.errors import ProblemError
from kernel.http import problems, strict_router
from kernel.pagination import PAGE_ITEMS_DEFAULT, Page, PageCursor, PageLimit, decode, encode
from settlement.api.auth import SIGNED, Caller, Officers, Overseer
from settlement.api.service import Service, Services, not_found, parse_ref
from settlement.contract import STATUS_BY_REFUSAL
from settlement.contract.compliance import (
    CaseDecisionRequest,
    ComplianceCaseView,
    ComplianceDecisionView,
    QuotaRequest,
    QuotaView,
)
from settlement.domain.fx import show_fraction
from settlement.domain.refusals import SettlementRefusal as R
from settlement.store import compliance as store
from settlement.usecases.compliance import OFFICERS_NEEDED, Compliance, Officer, decide_case, quota_left

router = strict_router(tags=["compliance"])
_REF = "stl_0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"
SettlementPath = Annotated[str, Path(json_schema_extra={"pattern": ids.pattern("stl"), "examples": [_REF]})]


def _responses(*refusals: R) -> dict[int | str, dict[str, Any]]:
    return problems(*SIGNED, R.COMPLIANCE_OFF, *refusals, statuses=STATUS_BY_REFUSAL)


@router.get(
    "/v1/compliance/cases",
    operation_id="list_compliance_cases",
    summary="Settlements that wait for compliance officers, oldest first",
    responses=_responses(),
)
def list_compliance_cases(
    service: Services, caller: Overseer, limit: PageLimit = PAGE_ITEMS_DEFAULT, cursor: PageCursor = None
) -> Page[ComplianceCaseView]:
    _compliance(service)
    after = _after(cursor, {})
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        rows = store.open_cases(connection, after=after, limit=limit + 1)
        decisions = store.decisions_of(connection, [row.settlement for row in rows])
    more = encode([f"stl_{rows[limit - 1].settlement}"], {}) if len(rows) > limit else None
    return Page(items=[_case(row, decisions[row.settlement]) for row in rows[:limit]], next_cursor=more)


@router.get(
    "/v1/compliance/cases/{settlement}",
    operation_id="get_compliance_case",
    summary="A case, open or closed, with every decision about it",
    responses=_responses(R.COMPLIANCE_CASE_NOT_FOUND),
)
def get_compliance_case(settlement: SettlementPath, service: Services, caller: Overseer) -> ComplianceCaseView:
    _compliance(service)
    return _read(service, parse_ref("stl", settlement, R.COMPLIANCE_CASE_NOT_FOUND))


@router.post(
    "/v1/compliance/cases/{settlement}/approve",
    operation_id="approve_compliance_case",
    summary="An officer's approval; the second one, by another officer, lets the settlement go",
    responses=_responses(R.COMPLIANCE_CASE_NOT_FOUND, R.COMPLIANCE_CASE_CLOSED, R.OFFICER_DECIDED),
)
def approve_compliance_case(
    settlement: SettlementPath, body: CaseDecisionRequest, service: Services, caller: Officers
) -> ComplianceCaseView:
    return _decide(service, settlement, "approve", caller, body.reason)


@router.post(
    "/v1/compliance/cases/{settlement}/reject",
    operation_id="reject_compliance_case",
    summary="An officer's rejection: it ends the settlement; no secret was ever made and nobody was asked (I5)",
    responses=_responses(R.COMPLIANCE_CASE_NOT_FOUND, R.COMPLIANCE_CASE_CLOSED, R.OFFICER_DECIDED),
)
def reject_compliance_case(
    settlement: SettlementPath, body: CaseDecisionRequest, service: Services, caller: Officers
) -> ComplianceCaseView:
    return _decide(service, settlement, "reject", caller, body.reason)


@router.get(
    "/v1/compliance/decisions",
    operation_id="list_compliance_decisions",
    summary="Who decided what, by which versions, why and when; oldest first",
    responses=_responses(R.SETTLEMENT_NOT_FOUND),
)
def list_compliance_decisions(
    service: Services,
    caller: Overseer,
    settlement: Annotated[
        str | None, Query(json_schema_extra={"pattern": ids.pattern("stl"), "examples": [_REF]})
    ] = None,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[ComplianceDecisionView]:
    _compliance(service)
    filters = {"settlement": settlement}
    key = None if settlement is None else parse_ref("stl", settlement, R.SETTLEMENT_NOT_FOUND)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        rows = store.decisions_page(connection, settlement=key, after=_after(cursor, filters), limit=limit + 1)
    more = encode([f"stl_{rows[limit - 1].id}"], filters) if len(rows) > limit else None
    return Page(items=[_decision(row) for row in rows[:limit]], next_cursor=more)


@router.post(
    "/v1/compliance/quotas",
    operation_id="look_up_quota",
    summary="What is left of a resident's annual quotas. A POST, so that no identity number is in an address",
    responses=_responses(),
)
def look_up_quota(body: QuotaRequest, service: Services, caller: Overseer) -> list[QuotaView]:
    compliance = _compliance(service)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        found = quota_left(
            connection,
            compliance,
            country=body.country,
            resident_id=body.resident_id,
            year=body.year,
            now=service.clock(),
        )
    return [
        QuotaView(
            rule=item.rule.name,
            direction=item.direction,
            year=item.year,
            currency=item.rule.counted_in,
            limit_minor=item.rule.limit_minor,
            used_minor=show_fraction(item.used_minor),
            left_minor=max(0, int(item.rule.limit_minor - item.used_minor)),
        )
        for item in found
    ]


def _decide(
    service: Service, settlement: str, verdict: Literal["approve", "reject"], caller: Caller, reason: str
) -> ComplianceCaseView:
    compliance = _compliance(service)
    key = parse_ref("stl", settlement, R.COMPLIANCE_CASE_NOT_FOUND)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        decide_case(
            connection,
            key,
            verdict=verdict,
            officer=Officer(caller.officer, caller.key_thumbprint),
            reason=reason,
            version=compliance.version,
            now=service.clock(),
        )
    service.worker.wake()
    return _read(service, key)


def _read(service: Service, key: UUID) -> ComplianceCaseView:
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        row = store.find_case(connection, key)
        decisions = store.decisions_of(connection, [key])[key]
    if row is None:
        not_found(R.COMPLIANCE_CASE_NOT_FOUND)
    return _case(row, decisions)


def _compliance(service: Service) -> Compliance:
    if service.oversight.compliance is None:
        raise ProblemError(R.COMPLIANCE_OFF)
    return service.oversight.compliance


def _after(cursor: str | None, filters: dict[str, str | None]) -> UUID | None:
    if cursor is None:
        return None
    return parse_ref("stl", str(decode(cursor, filters, shape=(str,))[0]), R.SETTLEMENT_NOT_FOUND)


def _case(row: store.CaseRow, decisions: list[store.DecisionRow]) -> ComplianceCaseView:
    return ComplianceCaseView(
        settlement=row.settlement,
        state=row.state,
        reason=row.reason,
        parties=row.parties,
        opened_at=row.opened_at,
        closed_at=row.closed_at,
        approvals=sum(found.verdict == "approve" for found in decisions),
        approvals_needed=OFFICERS_NEEDED,
        decisions=[_decision(found) for found in decisions],
    )


def _decision(row: store.DecisionRow) -> ComplianceDecisionView:
    return ComplianceDecisionView(
        id=row.id,
        settlement=row.settlement,
        verdict=row.verdict,
        decided_by=row.decided_by,
        is_officer=row.is_officer,
        key_thumbprint=row.key_thumbprint,
        versions=row.versions,
        reason=row.reason,
        decided_at=row.decided_at,
        institutions=None if row.institutions is None else dict(row.institutions),
    )
