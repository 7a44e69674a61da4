"""The client's side of the queue, limits, previews and runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import date
from typing import Any
from uuid import UUID, uuid4

from kernel import ids
from kernel.client import ServiceClient
from settlement.contract.liquidity import (
    LimitRequest,
    LimitView,
    Method,
    PreviewRequest,
    QueuedView,
    QueueView,
    RunItemView,
    RunView,
    SettleAs,
    WhyView,
)
from settlement.domain.liquidity.model import LimitKind

SOLVER_SECONDS = 20.0


class LiquidityMixin:
    _http: ServiceClient

    def queue(self) -> Iterator[QueuedView]:
        """What waits for a run, in queue order; an institution sees its own."""
        for item in self._liquidity_pages("/v1/liquidity/queue", {"limit": 500}):
            yield QueuedView.model_validate(item)

    def queue_batch(self, batch: UUID) -> QueueView:
        """Put what has not begun of a batch into the queue. Refuses: batch-not-found."""
        answer = self._http.post("/v1/liquidity/queue", {"batch": ids.show("bat", batch)}, idempotent=True)
        return QueueView.model_validate(answer)

    def release_from_queue(self, settlement: UUID) -> None:
        """Let it settle by itself. Refuses: liquidity-not-queued, liquidity-not-received."""
        self._http.request("POST", f"/v1/liquidity/queue/{ids.show('stl', settlement)}/release")

    def why_queued(self, settlement: UUID, *, method: str = "strict") -> WhyView:
        path = f"/v1/liquidity/why/{ids.show('stl', settlement)}"
        return WhyView.model_validate(self._http.get(path, query={"method": method}))

    def limits(self, *, participant: str | None = None) -> list[LimitView]:
        found = self._http.get("/v1/liquidity/limits", query={"participant": participant})
        return [LimitView.model_validate(item) for item in found]

    def set_limit(
        self,
        kind: LimitKind,
        *,
        participant: str,
        currency: str,
        amount_minor: int | None,
        valid_from: date,
        counterparty: str | None = None,
    ) -> LimitView:
        """`amount_minor` None lifts it. Refuses: liquidity-limit-invalid, liquidity-limit-above-cap."""
        request = LimitRequest.model_validate(
            {
                "kind": kind,
                "participant": participant,
                "currency": currency,
                "counterparty": counterparty,
                "amount_minor": None if amount_minor is None else str(amount_minor),
                "valid_from": valid_from,
            }
        )
        return LimitView.model_validate(self._http.post("/v1/liquidity/limits", request, idempotent=True))

    def preview_run(
        self,
        *,
        method: Method = "strict",
        settle_as: SettleAs = "net",
        seconds: float = SOLVER_SECONDS,
        weights: dict[str, int] | None = None,
        idempotency_key: str | None = None,
    ) -> RunView:
        """The operator's. Refuses: liquidity-positions-unknown, liquidity-solver-missing."""
        request = PreviewRequest(method=method, settle_as=settle_as, seconds=seconds, weights=weights or {})
        answer = self._http.post(
            "/v1/liquidity/previews", request, idempotent=True, idempotency_key=idempotency_key or uuid4().hex
        )
        return RunView.model_validate(answer)

    def runs(self) -> Iterator[RunView]:
        for item in self._liquidity_pages("/v1/liquidity/runs", {"limit": 100}):
            yield RunView.model_validate(item)

    def run(self, run: UUID) -> RunView:
        return RunView.model_validate(self._http.get(f"/v1/liquidity/runs/{ids.show('lqr', run)}"))

    def run_picture(self, run: UUID) -> str:
        path = f"/v1/liquidity/runs/{ids.show('lqr', run)}/positions.svg"
        return self._http.request("GET", path, idempotent=True).text

    def run_instructions(self, run: UUID, *, is_taken: bool | None = None) -> Iterator[RunItemView]:
        query = {"limit": 500, "is_taken": None if is_taken is None else str(is_taken).lower()}
        path = f"/v1/liquidity/runs/{ids.show('lqr', run)}/instructions"
        for item in self._liquidity_pages(path, query):
            yield RunItemView.model_validate(item)

    def approve_run(self, run: UUID, token: str) -> RunView:
        """`token`: `settlement.contract.liquidity.ApprovalRequest`. Refuses: liquidity-approval-invalid."""
        path = f"/v1/liquidity/runs/{ids.show('lqr', run)}/approvals"
        return RunView.model_validate(self._http.post(path, {"token": token}, idempotent=True))

    def start_run(self, run: UUID) -> RunView:
        """Refuses: liquidity-run-empty, liquidity-run-under-way, liquidity-run-stale, liquidity-run-out-of-hours,
        liquidity-approvals-missing."""
        path = f"/v1/liquidity/runs/{ids.show('lqr', run)}/start"
        return RunView.model_validate(self._http.post(path, {}, idempotent=True))

    def wait_for_run(self, run: UUID, *, timeout_seconds: float = 60.0, every_seconds: float = 0.2) -> RunView:
        """Until it is settled or aborted. Raises: TimeoutError."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            view = self.run(run)
            if view.state in ("settled", "aborted"):
                return view
            if time.monotonic() > deadline:
                raise TimeoutError(f"run {ids.show('lqr', run)} is {view.state}")
            time.sleep(every_seconds)

    def _liquidity_pages(self, path: str, query: dict[str, Any]) -> Iterator[Any]:
        cursor: str | None = None
        while True:
            page = self._http.get(path, query=query | {"cursor": cursor})
            yield from page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return
