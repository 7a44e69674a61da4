"""The client's side of the compliance port. A verdict is signed by the officer's own key."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

from kernel import ids
from kernel.client import ServiceClient
from settlement.contract.compliance import ComplianceCaseView, ComplianceDecisionView, QuotaView


class ComplianceMixin:
    _http: ServiceClient

    def compliance_cases(self) -> Iterator[ComplianceCaseView]:
        """Those that wait, oldest first, page by page."""
        cursor: str | None = None
        while True:
            page = self._http.get("/v1/compliance/cases", query={"limit": 500, "cursor": cursor})
            yield from (ComplianceCaseView.model_validate(item) for item in page["items"])
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def compliance_case(self, settlement: UUID) -> ComplianceCaseView:
        path = f"/v1/compliance/cases/{ids.show('stl', settlement)}"
        return ComplianceCaseView.model_validate(self._http.get(path))

    def approve_case(self, settlement: UUID, *, reason: str) -> ComplianceCaseView:
        """Refuses: compliance-case-not-found, compliance-case-closed, officer-decided."""
        return self._decide(settlement, "approve", reason)

    def reject_case(self, settlement: UUID, *, reason: str) -> ComplianceCaseView:
        """Ends the settlement. Refuses: compliance-case-not-found, compliance-case-closed, officer-decided."""
        return self._decide(settlement, "reject", reason)

    def compliance_decisions(self, settlement: UUID | None = None) -> Iterator[ComplianceDecisionView]:
        shown = None if settlement is None else ids.show("stl", settlement)
        cursor: str | None = None
        while True:
            query = {"limit": 500, "settlement": shown, "cursor": cursor}
            page = self._http.get("/v1/compliance/decisions", query=query)
            yield from (ComplianceDecisionView.model_validate(item) for item in page["items"])
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def quotas(self, *, country: str, resident_id: str, year: int | None = None) -> list[QuotaView]:
        body = {"country": country, "resident_id": resident_id} | ({} if year is None else {"year": year})
        answer = self._http.post("/v1/compliance/quotas", body, idempotent=True)
        return [QuotaView.model_validate(item) for item in answer]

    def _decide(self, settlement: UUID, verdict: str, reason: str) -> ComplianceCaseView:
        path = f"/v1/compliance/cases/{ids.show('stl', settlement)}/{verdict}"
        return ComplianceCaseView.model_validate(self._http.post(path, {"reason": reason}, idempotent=True))
