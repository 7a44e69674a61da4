"""Typed client of the settlement service: what the CLI, the demo and the tests use."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Literal, Self
from uuid import UUID

from kernel import ids, strict_json
from kernel.client import ServiceClient
from kernel.crypto.http_signatures import RequestSigner
from kernel.ids import ParticipantId
from settlement.client.calendars import CalendarsMixin
from settlement.client.compliance import ComplianceMixin
from settlement.client.liquidity import LiquidityMixin
from settlement.client.market import MarketMixin
from settlement.client.messages import MessagesMixin
from settlement.client.multileg import MultilegMixin
from settlement.client.reconciliation import ReconciliationMixin
from settlement.client.relay import RelayMixin
from settlement.contract import (
    BatchView,
    InDoubtView,
    QuoteView,
    RateView,
    SettlementState,
    SettlementView,
    StatementFileView,
)

_MEDIA_TYPE = {"pacs.009": "application/xml", "csv": "text/csv"}


class SettlementClient(
    LiquidityMixin,
    MessagesMixin,
    CalendarsMixin,
    ComplianceMixin,
    MarketMixin,
    MultilegMixin,
    ReconciliationMixin,
    RelayMixin,
):
    """Sync. `signer` has the key of an institution or of the bridge. Raises `kernel.client.ProblemResponse`."""

    def __init__(self, base_url: str, *, signer: RequestSigner | None = None, timeout_seconds: float = 60.0) -> None:
        self._http = ServiceClient(base_url, auth=signer, timeout_seconds=timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # --- batches and settlements

    def submit_batch(
        self, content: bytes, *, file_format: Literal["pacs.009", "csv"], idempotency_key: str | None = None
    ) -> BatchView:
        """Without a key of its own a file's digest is the key: the same file again is the same batch."""
        key = idempotency_key or hashlib.sha256(content).hexdigest()
        response = self._http.request(
            "POST",
            "/v1/batches",
            content=content,
            content_type=_MEDIA_TYPE[file_format],
            headers={"idempotency-key": key},
            idempotent=True,
        )
        return BatchView.model_validate(strict_json.loads(response.content))

    def batch(self, batch: UUID) -> BatchView:
        return BatchView.model_validate(self._http.get(f"/v1/batches/{ids.show('bat', batch)}"))

    def run_batch(self, batch: UUID) -> BatchView:
        answer = self._http.post(f"/v1/batches/{ids.show('bat', batch)}/run", {}, idempotent=True)
        return BatchView.model_validate(answer)

    def wait_for_batch(self, batch: UUID, *, timeout_seconds: float = 60.0, every_seconds: float = 0.2) -> BatchView:
        """Until every settlement is settled or cancelled. Raises: TimeoutError."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            view = self.batch(batch)
            if view.is_finished:
                return view
            if time.monotonic() > deadline:
                raise TimeoutError(f"batch {ids.show('bat', batch)} is not finished: {view.counts}")
            time.sleep(every_seconds)

    def settlements(self, batch: UUID, *, states: tuple[SettlementState, ...] = ()) -> Iterator[SettlementView]:
        """Every settlement of a batch in the order of its file, page by page."""
        query: dict[str, Any] = {"limit": 500, "state": [state.value for state in states] or None}
        for item in self._pages(f"/v1/batches/{ids.show('bat', batch)}/settlements", query):
            yield SettlementView.model_validate(item)

    def settlement(self, settlement: UUID) -> SettlementView:
        return SettlementView.model_validate(self._http.get(f"/v1/settlements/{ids.show('stl', settlement)}"))

    def abort_settlement(self, settlement: UUID) -> SettlementView:
        """The bridge's operator only. Refuses: settlement-decided."""
        answer = self._http.post(f"/v1/settlements/{ids.show('stl', settlement)}/abort", {}, idempotent=True)
        return SettlementView.model_validate(answer)

    def in_doubt(self, *, received: bool = False) -> Iterator[InDoubtView]:
        """`received`: also those that wait to begin."""
        for item in self._pages("/v1/in-doubt", {"limit": 500, "received": "true" if received else None}):
            yield InDoubtView.model_validate(item)

    # --- prices

    def rates(self) -> list[RateView]:
        return [RateView.model_validate(item) for item in self._http.get("/v1/rates")]

    def quote(self, amount_minor: int, *, base: str, counter: str, receiver: ParticipantId | None = None) -> QuoteView:
        query = {"amount_minor": str(amount_minor), "base": base, "counter": counter, "receiver": receiver}
        return QuoteView.model_validate(self._http.get("/v1/quotes", query=query))

    # --- statements and reconciliation

    def write_statement(self, batch: UUID, *, participant: str, currency: str) -> StatementFileView:
        body = {"batch": ids.show("bat", batch), "participant": participant, "currency": currency}
        return StatementFileView.model_validate(self._http.post("/v1/statements", body, idempotent=True))

    def statement_file(self, statement: UUID) -> bytes:
        path = f"/v1/statements/{ids.show('stf', statement)}"
        return self._http.request("GET", path, idempotent=True).content

    def _pages(self, path: str, query: dict[str, Any]) -> Iterator[Any]:
        cursor: str | None = None
        while True:
            page = self._http.get(path, query=query | {"cursor": cursor})
            yield from page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return
