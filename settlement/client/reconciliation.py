"""Reconciliation from a client: sources, runs, breaks, officers' decisions, evidence, the control."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from typing import Any
from uuid import UUID

from kernel import ids, strict_json
from kernel.client import ServiceClient
from kernel.crypto.keys import PrivateKey
from kernel.ids import new_uuid7
from settlement.contract.reconciliation import (
    BreakDetailView,
    BreakView,
    ControlView,
    MappingView,
    MatchView,
    ReconciliationView,
    ReportView,
    SourceView,
)
from settlement.domain.reconciliation.lifecycle import DecisionDocument, sign_decision

_MEDIA_TYPE = {
    "camt.052": "application/xml",
    "camt.053": "application/xml",
    "camt.053-pages": "application/zip",
    "camt.054": "application/xml",
    "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet",
}


class ReconciliationMixin:
    """Methods of `SettlementClient`."""

    _http: ServiceClient

    def keep_mapping(self, participant: str, counterparty: str, mapping: Mapping[str, Any]) -> MappingView:
        """The next version of how a counterparty's tables are read. Refuses: mapping-invalid."""
        body = {"participant": participant, "counterparty": counterparty, "mapping": dict(mapping)}
        return MappingView.model_validate(self._http.post("/v1/reconciliation-mappings", body, idempotent=True))

    def mappings(self, participant: str | None = None) -> list[MappingView]:
        found = self._http.get("/v1/reconciliation-mappings", query={"participant": participant})
        return [MappingView.model_validate(item) for item in found]

    def add_source(
        self,
        content: bytes,
        *,
        source_format: str,
        participant: str,
        counterparty: str,
        account: str | None = None,
    ) -> SourceView:
        """A counterparty's file (camt.052, .053, .054, csv, parquet); the same file again is the same source. `account`
        is for tables, which do not name theirs, and says which of several statements is meant. Refuses:
        statement-invalid."""
        query = {"participant": participant, "counterparty": counterparty, "format": source_format, "account": account}
        response = self._http.request(
            "POST",
            "/v1/reconciliation-sources",
            query=query,
            content=content,
            content_type=_MEDIA_TYPE[source_format],
            idempotent=True,
        )
        return SourceView.model_validate(strict_json.loads(response.content))

    def run_reconciliation(
        self,
        *,
        participant: str,
        counterparty: str,
        currency: str,
        their_source: UUID,
        our_source: UUID | None = None,
        batch: UUID | None = None,
        booked_from: datetime | None = None,
        booked_to: datetime | None = None,
        view: str = "same-account",
        rules: Mapping[str, Any] | None = None,
        as_of: date | None = None,
        reconciliation: UUID | None = None,
    ) -> ReconciliationView:
        """Compare. Without `our_source` our side is the bridge's record of a batch or a period."""
        body = {
            "reconciliation": ids.show("rec", reconciliation or new_uuid7()),
            "participant": participant,
            "counterparty": counterparty,
            "currency": currency,
            "their_source": ids.show("src", their_source),
            "our_source": None if our_source is None else ids.show("src", our_source),
            "batch": None if batch is None else ids.show("bat", batch),
            "booked_from": None if booked_from is None else booked_from.isoformat().replace("+00:00", "Z"),
            "booked_to": None if booked_to is None else booked_to.isoformat().replace("+00:00", "Z"),
            "view": view,
            "rules": dict(rules or {}),
            "as_of": None if as_of is None else as_of.isoformat(),
        }
        return ReconciliationView.model_validate(self._http.post("/v1/reconciliations", body, idempotent=True))

    def reconcile(
        self, content: bytes, *, batch: UUID, participant: str, currency: str, counterparty: str | None = None
    ) -> ReconciliationView:
        """A counterparty's camt.053 of the participant's account against the bridge's record of a batch, in one go."""
        other = counterparty or participant
        source = self.add_source(content, source_format="camt.053", participant=participant, counterparty=other)
        return self.run_reconciliation(
            participant=participant, counterparty=other, currency=currency, their_source=source.source, batch=batch
        )

    def reconciliation(self, reconciliation: UUID) -> ReconciliationView:
        path = f"/v1/reconciliations/{ids.show('rec', reconciliation)}"
        return ReconciliationView.model_validate(self._http.get(path))

    def reconciliations(
        self, *, participant: str | None = None, currency: str | None = None, batch: UUID | None = None
    ) -> Iterator[ReconciliationView]:
        """The newest first, without their breaks."""
        query = {
            "participant": participant,
            "currency": currency,
            "batch": None if batch is None else ids.show("bat", batch),
        }
        for item in self._pages_of("/v1/reconciliations", query):
            yield ReconciliationView.model_validate(item)

    def matches(self, reconciliation: UUID) -> Iterator[MatchView]:
        for item in self._pages_of(f"/v1/reconciliations/{ids.show('rec', reconciliation)}/matches", {}):
            yield MatchView.model_validate(item)

    def evidence(self, reconciliation: UUID) -> bytes:
        """The signed evidence pack, a zip; `jiaozi-settlement evidence verify` checks it offline."""
        path = f"/v1/reconciliations/{ids.show('rec', reconciliation)}/evidence"
        return self._http.request("GET", path, idempotent=True).content

    def breaks(
        self,
        *,
        participant: str | None = None,
        counterparty: str | None = None,
        currency: str | None = None,
        reconciliation: UUID | None = None,
        states: Sequence[str] = (),
        types: Sequence[str] = (),
        bucket: str | None = None,
        assignee: str | None = None,
    ) -> Iterator[BreakView]:
        """In the order in which they were opened."""
        query = {
            "participant": participant,
            "counterparty": counterparty,
            "currency": currency,
            "reconciliation": None if reconciliation is None else ids.show("rec", reconciliation),
            "state": list(states) or None,
            "type": list(types) or None,
            "bucket": bucket,
            "assignee": assignee,
        }
        for item in self._pages_of("/v1/breaks", query):
            yield BreakView.model_validate(item)

    def break_detail(self, break_id: UUID) -> BreakDetailView:
        return BreakDetailView.model_validate(self._http.get(f"/v1/breaks/{ids.show('brk', break_id)}"))

    def decide(self, document: DecisionDocument, *, officer_key: PrivateKey) -> BreakDetailView:
        """An officer's decision on a break, signed here. The same decision again is harmless.

        Refuses: officer-unknown, decision-invalid, break-has-moved-on, break-state-wrong, four-eyes,
        repair-not-possible, lines-do-not-balance.
        """
        body = {"token": sign_decision(document, key=officer_key)}
        path = f"/v1/breaks/{ids.show('brk', document.subject)}/decisions"
        return BreakDetailView.model_validate(self._http.post(path, body, idempotent=True))

    def undo_match(self, document: DecisionDocument, *, officer_key: PrivateKey) -> BreakDetailView:
        """Take a match back: the break that its lines become. Refuses: match-not-found."""
        body = {"token": sign_decision(document, key=officer_key)}
        path = f"/v1/reconciliations/{ids.show('rec', document.subject)}/unmatch"
        return BreakDetailView.model_validate(self._http.post(path, body, idempotent=True))

    def settlement_report(
        self,
        *,
        batch: UUID | None = None,
        participant: str | None = None,
        currency: str | None = None,
        value_date_from: date | None = None,
        value_date_to: date | None = None,
    ) -> Iterator[ReportView]:
        """Posted legs by batch, participant, currency and value date."""
        query = {
            "batch": None if batch is None else ids.show("bat", batch),
            "participant": participant,
            "currency": currency,
            "value_date_from": None if value_date_from is None else value_date_from.isoformat(),
            "value_date_to": None if value_date_to is None else value_date_to.isoformat(),
        }
        for item in self._pages_of("/v1/settlement-reports", query):
            yield ReportView.model_validate(item)

    def control(self) -> ControlView:
        return ControlView.model_validate(self._http.get("/v1/control"))

    def run_control(self) -> ControlView:
        """One round now. The bridge's operator only."""
        return ControlView.model_validate(self._http.post("/v1/control/run", {}, idempotent=True))

    def _pages_of(self, path: str, query: Mapping[str, Any]) -> Iterator[Any]:
        cursor: str | None = None
        while True:
            page = self._http.get(path, query={**query, "limit": 500, "cursor": cursor})
            yield from page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return
