"""Asynchronous twin of `wallet.client.interest`, made by `python -m sandbox.async_client`: change that one."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import date
from typing import Any
from uuid import UUID

from kernel import ids
from kernel.client import AsyncServiceClient
from wallet.contract.interest import (
    ExchangeCheckView,
    InterestPreview,
    InterestRunView,
    InterestSettlementView,
    InterestTotal,
    InterestTotals,
    InterestView,
    ReservePage,
)
from wallet.domain.reserves import ReserveReport, report
from wallet.domain.rules import WalletClass


class AsyncInterestMethods:
    """What `WalletClient` can do with interest. Reads, but for `run_interest`, which may be repeated."""

    _http: AsyncServiceClient
    _items: Callable[[str, dict[str, Any]], AsyncIterator[Any]]

    async def get_interest(self, wallet: UUID) -> InterestView:
        return InterestView.model_validate(await self._http.get(f"/v1/wallets/{ids.show('wlt', wallet)}/interest"))

    def interest_settlements(self, wallet: UUID) -> AsyncIterator[InterestSettlementView]:
        """Newest first."""
        items = self._items(f"/v1/wallets/{ids.show('wlt', wallet)}/interest-settlements", {"limit": 100})
        return (InterestSettlementView.model_validate(item) async for item in items)

    def interest_previews(self) -> AsyncIterator[InterestPreview]:
        """Every wallet, page by page; the service asks the ledger about each. For an operator."""
        return (InterestPreview.model_validate(item) async for item in self._items("/v1/interest-previews", {}))

    async def run_interest(self) -> InterestRunView:
        """One bounded pass. For an operator."""
        return InterestRunView.model_validate(await self._http.post("/v1/interest-runs", {}, idempotent=True))

    async def interest_totals(self) -> list[InterestTotal]:
        """The remainder account, newest first. For an operator."""
        return InterestTotals.model_validate(await self._http.get("/v1/interest-totals")).items

    async def reserve_report(self, day: date, *, margin_held_minor: int | None = None) -> ReserveReport:
        """Added up here from every wallet's closing balance, page by page. For an operator."""
        balances: Counter[WalletClass] = Counter()
        escrow, cursor = 0, None
        while True:
            answer = await self._http.get(f"/v1/reserve-balances/{day.isoformat()}", query={"cursor": cursor})
            page = ReservePage.model_validate(answer)
            escrow += page.escrow_minor or 0
            for item in page.items:
                balances[item.wallet_class] += item.balance_minor
            cursor = page.next_cursor
            if cursor is None:
                return report(
                    day=day,
                    participant=page.participant,
                    operator_kind=page.operator_kind,
                    rule_pack=page.rule_pack,
                    in_reserve_base=page.in_reserve_base,
                    margin_percent=page.margin_percent,
                    balances_minor={name: balances[name] for name in WalletClass},
                    escrow_minor=escrow,
                    margin_held_minor=margin_held_minor,
                )

    async def check_exchanges(self, day: date) -> ExchangeCheckView:
        """For an operator."""
        return ExchangeCheckView.model_validate(await self._http.get(f"/v1/exchange-checks/{day.isoformat()}"))
