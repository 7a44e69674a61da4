"""Asynchronous twin of `wallet.client`, made by `python -m sandbox.async_client`: change that one.

async with AsyncWalletClient(url, signer=signer) as client:
    view = await client.get_wallet(wallet)
    async for line in client.history(wallet):
        ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import httpx
from pydantic import BaseModel

from kernel import ids
from kernel.client import AsyncServiceClient
from kernel.clock import Clock, system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey, PublicKey
from ledger.contract import StatementLine, TransferKind, TransferTerms, sign_instruction
from wallet.client import INSTRUCTION_LIFE
from wallet.client.aio.bulk import AsyncBulkMethods
from wallet.client.aio.controls import AsyncControlMethods
from wallet.client.aio.events import AsyncEventMethods
from wallet.client.aio.families import AsyncFamilyCalls
from wallet.client.aio.interest import AsyncInterestMethods
from wallet.client.aio.lifecycle import AsyncLifecycleClient
from wallet.client.aio.offline import AsyncOfflineMethods
from wallet.client.aio.privacy import AsyncPrivacyMethods
from wallet.client.aio.programs import AsyncProgramMethods
from wallet.client.aio.requests import AsyncRequestMethods
from wallet.client.aio.schedules import AsyncScheduleMethods
from wallet.contract import (
    BATCH_ITEMS_MAX,
    CustomerRequest,
    CustomerView,
    DepositRequest,
    DepositView,
    ExchangeInRequest,
    ExchangeView,
    HistoryPage,
    InstitutionView,
    LegAuthorisation,
    LegAuthorisationResult,
    LegAuthorisationsRequest,
    LegAuthorisationsResponse,
    PaymentBatchRequest,
    PaymentBatchResponse,
    PaymentRequest,
    PaymentResult,
    PaymentView,
    SettlementOrder,
    SettlementOrderResult,
    SettlementOrdersRequest,
    SettlementOrdersResponse,
    WalletRequest,
    WalletView,
)
from wallet.domain.rules import Evidence, WalletClass


class AsyncWalletClient(
    AsyncInterestMethods,
    AsyncBulkMethods,
    AsyncControlMethods,
    AsyncEventMethods,
    AsyncScheduleMethods,
    AsyncFamilyCalls,
    AsyncLifecycleClient,
    AsyncProgramMethods,
    AsyncRequestMethods,
    AsyncOfflineMethods,
    AsyncPrivacyMethods,
):
    """Async client of one wallet service. Raises `kernel.client.ProblemResponse`, `kernel.client.ServiceUnreachable`.

    `signer` is a registered client's; carrying holders' instructions (pay, refund, exchange_out) needs none.
    """

    def __init__(
        self,
        base_url: str,
        *,
        signer: RequestSigner | None = None,
        timeout_seconds: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Clock = system_clock,
    ) -> None:
        self._http = AsyncServiceClient(base_url, auth=signer, timeout_seconds=timeout_seconds, transport=transport)
        self._clock = clock

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    # --- customers and wallets

    async def create_customer(
        self, *, evidence: Sequence[Evidence], name: str = "", phone: str = "", customer: UUID | None = None
    ) -> CustomerView:
        body = CustomerRequest(customer=customer or ids.new_uuid7(), name=name, phone=phone, evidence=list(evidence))
        return CustomerView.model_validate(await self._post("/v1/customers", body))

    async def get_customer(self, customer: UUID) -> CustomerView:
        return CustomerView.model_validate(await self._http.get(f"/v1/customers/{ids.show('cus', customer)}"))

    async def open_wallet(
        self, *, customer: UUID, wallet_class: WalletClass, device_key: PublicKey, wallet: UUID | None = None
    ) -> WalletView:
        body = WalletRequest(
            wallet=wallet or ids.new_uuid7(),
            customer=customer,
            wallet_class=wallet_class,
            device_key=device_key.to_jwk(),
        )
        return WalletView.model_validate(await self._post("/v1/wallets", body))

    async def get_wallet(self, wallet: UUID) -> WalletView:
        return WalletView.model_validate(await self._http.get(f"/v1/wallets/{ids.show('wlt', wallet)}"))

    def wallets(self, *, customer: UUID | None = None) -> AsyncIterator[WalletView]:
        """Every wallet (of a customer), page by page, without balances."""
        query = {"customer": customer and ids.show("cus", customer), "limit": 1000}
        return (WalletView.model_validate(item) async for item in self._items("/v1/wallets", query))

    async def history_page(
        self, wallet: UUID, *, cursor: str | None = None, limit: int = 50, newest_first: bool = False
    ) -> HistoryPage:
        path = f"/v1/wallets/{ids.show('wlt', wallet)}/history"
        query = {"cursor": cursor, "limit": limit, "newest_first": "true" if newest_first else None}
        return HistoryPage.model_validate(await self._http.get(path, query=query))

    def history(self, wallet: UUID) -> AsyncIterator[StatementLine]:
        """Every booked line, oldest first."""
        path = f"/v1/wallets/{ids.show('wlt', wallet)}/history"
        return (StatementLine.model_validate(item) async for item in self._items(path, {"limit": 1000}))

    def payments(self, wallet: UUID) -> AsyncIterator[PaymentView]:
        """Every payment sent, refused ones included, newest first."""
        path = f"/v1/wallets/{ids.show('wlt', wallet)}/payments"
        return (PaymentView.model_validate(item) async for item in self._items(path, {"limit": 1000}))

    # --- money

    async def exchange_in(
        self, *, wallet: UUID, amount_minor: int, currency: str, exchange: UUID | None = None
    ) -> ExchangeView:
        """Deposit for currency. The view's state says whether it is final yet."""
        body = ExchangeInRequest(
            exchange=exchange or ids.new_uuid7(), wallet=wallet, amount_minor=amount_minor, currency=currency
        )
        return ExchangeView.model_validate(await self._post("/v1/exchanges-in", body))

    async def get_exchange_in(self, exchange: UUID) -> ExchangeView:
        return ExchangeView.model_validate(await self._http.get(f"/v1/exchanges-in/{ids.show('exc', exchange)}"))

    async def pay(
        self,
        *,
        key: PrivateKey,
        ledger: str,
        debit: int,
        credit: int,
        amount_minor: int,
        currency: str,
        reference: UUID | None = None,
        payment: UUID | None = None,
        valid_until: datetime | None = None,
    ) -> PaymentView:
        """Build the instruction, sign it with the holder's device key, have it carried."""
        return await self.submit_payment(
            self.instruct(
                TransferKind.PAYMENT,
                key=key,
                ledger=ledger,
                debit=debit,
                credit=credit,
                amount_minor=amount_minor,
                currency=currency,
                reference=reference,
                transfer=payment,
                valid_until=valid_until,
            )
        )

    def instruct(
        self,
        kind: TransferKind,
        *,
        key: PrivateKey,
        ledger: str,
        debit: int,
        credit: int,
        amount_minor: int,
        currency: str,
        reference: UUID | None = None,
        transfer: UUID | None = None,
        valid_until: datetime | None = None,
    ) -> str:
        """A holder's signed instruction; nothing is sent. A refund's `reference` is the original transfer's id."""
        terms = TransferTerms.model_validate(
            {
                "id": transfer or ids.new_uuid7(),
                "kind": kind,
                "debit": debit,
                "credit": credit,
                "amount_minor": amount_minor,
                "currency": currency,
                "reference": reference,
            }
        )
        until = valid_until or self._clock() + INSTRUCTION_LIFE
        return sign_instruction(terms, ledger=ledger, valid_until=until, key=key)

    async def submit_payment(self, instruction: str) -> PaymentView:
        """A signed payment or refund."""
        return PaymentView.model_validate(await self._post("/v1/payments", PaymentRequest(instruction=instruction)))

    async def submit_payments(self, instructions: Sequence[str]) -> list[PaymentResult]:
        """Up to `BATCH_ITEMS_MAX` at once; a result an item, in order."""
        if len(instructions) > BATCH_ITEMS_MAX:
            raise ValueError(f"at most {BATCH_ITEMS_MAX} instructions a request")
        body = PaymentBatchRequest(instructions=list(instructions))
        return PaymentBatchResponse.model_validate(await self._post("/v1/payment-batches", body)).results

    async def exchange_out(self, instruction: str) -> PaymentView:
        """A signed exchange-out: wallet -> the vault in `institution()`."""
        return PaymentView.model_validate(
            await self._post("/v1/exchanges-out", PaymentRequest(instruction=instruction))
        )

    async def get_payment(self, payment: UUID) -> PaymentView:
        return PaymentView.model_validate(await self._http.get(f"/v1/payments/{ids.show('trf', payment)}"))

    # --- cross-border

    async def institution(self) -> InstitutionView:
        return InstitutionView.model_validate(await self._http.get("/v1/institution"))

    async def register_settlements(self, orders: Sequence[SettlementOrder]) -> list[SettlementOrderResult]:
        """The desk's orders to the bridge; at most `BATCH_ITEMS_MAX`."""
        body = SettlementOrdersRequest(instructions=list(orders))
        return SettlementOrdersResponse.model_validate(await self._post("/v1/settlement-instructions", body)).results

    async def authorise_legs(self, legs: Sequence[LegAuthorisation]) -> list[LegAuthorisationResult]:
        """The bridge asks for the bank's signatures; at most `BATCH_ITEMS_MAX`."""
        body = LegAuthorisationsRequest(legs=list(legs))
        return LegAuthorisationsResponse.model_validate(await self._post("/v1/leg-authorisations", body)).results

    # --- sandbox

    async def simulate_deposit(self, *, customer: UUID, amount_minor: int, posting: UUID | None = None) -> DepositView:
        body = DepositRequest(posting=posting or ids.new_uuid7(), customer=customer, amount_minor=amount_minor)
        return DepositView.model_validate(await self._post("/v1/simulate/deposits", body))

    async def simulated_deposit(self, customer: UUID) -> DepositView:
        return DepositView.model_validate(await self._http.get(f"/v1/simulate/deposits/{ids.show('cus', customer)}"))

    # --- helpers

    async def _post(self, path: str, body: BaseModel) -> Any:
        return await self._http.post(path, body.model_dump(mode="json", exclude_none=True), idempotent=True)

    async def _items(self, path: str, query: dict[str, Any]) -> AsyncIterator[Any]:
        cursor: str | None = None
        while True:
            page = await self._http.get(path, query=query | {"cursor": cursor})
            for item in page["items"]:
                yield item
            cursor = page["next_cursor"]
            if cursor is None:
                return
