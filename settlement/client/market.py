"""The client's side of the FX market."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

from kernel import ids, strict_json
from kernel.client import ServiceClient
from settlement.contract.market import (
    ExecutionRequest,
    ExecutionSummary,
    ExecutionView,
    FirmQuoteView,
    OrderBookView,
    RemainderView,
    SearchView,
    Wish,
    show_quote_id,
)


class MarketMixin:
    _http: ServiceClient

    def post_fx_quote(self, token: str) -> FirmQuoteView:
        """`token` is of `settlement.contract.market.sign_quote`. The same one again is the same quote.

        Refuses: fx-quote-*, fx-too-many-quotes, currency-not-served, account-missing.
        """
        return FirmQuoteView.model_validate(self._http.post("/v1/fx-quotes", {"token": token}, idempotent=True))

    def fx_quote(self, quote: UUID) -> FirmQuoteView:
        return FirmQuoteView.model_validate(self._http.get(f"/v1/fx-quotes/{show_quote_id(quote)}"))

    def fx_quotes(self, *, live: bool = False) -> Iterator[FirmQuoteView]:
        """The provider's own, page by page."""
        for item in self._market_pages("/v1/fx-quotes", {"live": "true" if live else "false"}):
            yield FirmQuoteView.model_validate(item)

    def withdraw_fx_quote(self, quote: UUID) -> FirmQuoteView:
        """Nothing more is taken of it; what is locked stays locked. Refuses: fx-quote-not-found."""
        response = self._http.request("DELETE", f"/v1/fx-quotes/{show_quote_id(quote)}", idempotent=True)
        return FirmQuoteView.model_validate(strict_json.loads(response.content))

    def order_book(self, base: str, counter: str) -> OrderBookView:
        return OrderBookView.model_validate(self._http.get(f"/v1/order-books/{base}/{counter}"))

    def preview_execution(self, wish: Wish) -> SearchView:
        """Nothing is locked: the execution itself may differ."""
        return SearchView.model_validate(self._http.post("/v1/executions/preview", wish, idempotent=True))

    def execute(self, request: ExecutionRequest, *, idempotency_key: str | None = None) -> ExecutionView:
        """Without a key of its own the UETR is the key. Refuses: fx-no-route, fx-limit-not-met, fx-market-moved, ..."""
        key = idempotency_key or str(request.uetr)
        answer = self._http.post("/v1/executions", request, idempotent=True, idempotency_key=key)
        return ExecutionView.model_validate(answer)

    def execution(self, settlement: UUID) -> ExecutionView:
        return ExecutionView.model_validate(self._http.get(f"/v1/executions/{ids.show('stl', settlement)}"))

    def executions(self, *, locked: bool = False) -> Iterator[ExecutionSummary]:
        """Those that the caller pays, receives or provides for; with `locked` those that are not decided."""
        for item in self._market_pages("/v1/executions", {"locked": "true" if locked else "false"}):
            yield ExecutionSummary.model_validate(item)

    def fx_remainders(self) -> list[RemainderView]:
        return [RemainderView.model_validate(item) for item in self._http.get("/v1/fx-remainders")]

    def _market_pages(self, path: str, query: dict[str, Any]) -> Iterator[Any]:
        cursor: str | None = None
        while True:
            page = self._http.get(path, query=query | {"limit": 500, "cursor": cursor})
            yield from page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return
