"""Typed client of a wallet service: what the CLI, the demo, the bridge and the tests use. Writes may be repeated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import httpx
from pydantic import BaseModel

from kernel import ids
from kernel.client import ServiceClient
from kernel.clock import Clock, system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey, PublicKey
from ledger.contract import StatementLine, TransferKind, TransferTerms, sign_instruction
from wallet.client.bulk import BulkMethods
from wallet.client.controls import ControlMethods
from wallet.client.events import EventMethods
from wallet.client.families import FamilyCalls
from wallet.client.interest import InterestMethods
from wallet.client.lifecycle import LifecycleClient
from wallet.client.offline import OfflineMethods
from wallet.client.privacy import PrivacyMethods
from wallet.client.programs import ProgramMethods
from wallet.client.requests import RequestMethods
from wallet.client.schedules import ScheduleMethods
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

INSTRUCTION_LIFE = timedelta(minutes=10)
"""How long a holder's signature stands, unless said otherwise."""


class WalletClient(
    InterestMethods,
    BulkMethods,
    ControlMethods,
    EventMethods,
    ScheduleMethods,
    FamilyCalls,
    LifecycleClient,
    ProgramMethods,
    RequestMethods,
    OfflineMethods,
    PrivacyMethods,
):
    """Sync client of one wallet service. Raises `kernel.client.ProblemResponse`, `kernel.client.ServiceUnreachable`.

    `signer` is a registered client's; carrying holders' instructions (pay, refund, exchange_out) needs none.
    """

    def __init__(
        self,
        base_url: str,
        *,
        signer: RequestSigner | None = None,
        timeout_seconds: float = 30.0,
        transport: httpx.BaseTransport | None = None,
        clock: Clock = system_clock,
    ) -> None:
        self._http = ServiceClient(base_url, auth=signer, timeout_seconds=timeout_seconds, transport=transport)
        self._clock = clock

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # --- customers and wallets

    def create_customer(
        self, *, evidence: Sequence[Evidence], name: str = "", phone: str = "", customer: UUID | None = None
    ) -> CustomerView:
        body = CustomerRequest(customer=customer or ids.new_uuid7(), name=name, phone=phone, evidence=list(evidence))
        return CustomerView.model_validate(self._post("/v1/customers", body))

    def get_customer(self, customer: UUID) -> CustomerView:
        return CustomerView.model_validate(self._http.get(f"/v1/customers/{ids.show('cus', customer)}"))

    def open_wallet(
        self, *, customer: UUID, wallet_class: WalletClass, device_key: PublicKey, wallet: UUID | None = None
    ) -> WalletView:
        body = WalletRequest(
            wallet=wallet or ids.new_uuid7(),
            customer=customer,
            wallet_class=wallet_class,
            device_key=device_key.to_jwk(),
        )
        return WalletView.model_validate(self._post("/v1/wallets", body))

    def get_wallet(self, wallet: UUID) -> WalletView:
        return WalletView.model_validate(self._http.get(f"/v1/wallets/{ids.show('wlt', wallet)}"))

    def wallets(self, *, customer: UUID | None = None) -> Iterator[WalletView]:
        """Every wallet (of a customer), page by page, without balances."""
        query = {"customer": customer and ids.show("cus", customer), "limit": 1000}
        return (WalletView.model_validate(item) for item in self._items("/v1/wallets", query))

    def history_page(
        self, wallet: UUID, *, cursor: str | None = None, limit: int = 50, newest_first: bool = False
    ) -> HistoryPage:
        path = f"/v1/wallets/{ids.show('wlt', wallet)}/history"
        query = {"cursor": cursor, "limit": limit, "newest_first": "true" if newest_first else None}
        return HistoryPage.model_validate(self._http.get(path, query=query))

    def history(self, wallet: UUID) -> Iterator[StatementLine]:
        """Every booked line, oldest first."""
        path = f"/v1/wallets/{ids.show('wlt', wallet)}/history"
        return (StatementLine.model_validate(item) for item in self._items(path, {"limit": 1000}))

    def payments(self, wallet: UUID) -> Iterator[PaymentView]:
        """Every payment sent, refused ones included, newest first."""
        path = f"/v1/wallets/{ids.show('wlt', wallet)}/payments"
        return (PaymentView.model_validate(item) for item in self._items(path, {"limit": 1000}))

    # --- money

    def exchange_in(
        self, *, wallet: UUID, amount_minor: int, currency: str, exchange: UUID | None = None
    ) -> ExchangeView:
        """Deposit for currency. The view's state says whether it is final yet."""
        body = ExchangeInRequest(
            exchange=exchange or ids.new_uuid7(), wallet=wallet, amount_minor=amount_minor, currency=currency
        )
        return ExchangeView.model_validate(self._post("/v1/exchanges-in", body))

    def get_exchange_in(self, exchange: UUID) -> ExchangeView:
        return ExchangeView.model_validate(self._http.get(f"/v1/exchanges-in/{ids.show('exc', exchange)}"))

    def pay(
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
        return self.submit_payment(
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

    def submit_payment(self, instruction: str) -> PaymentView:
        """A signed payment or refund."""
        return PaymentView.model_validate(self._post("/v1/payments", PaymentRequest(instruction=instruction)))

    def submit_payments(self, instructions: Sequence[str]) -> list[PaymentResult]:
        """Up to `BATCH_ITEMS_MAX` at once; a result an item, in order."""
        if len(instructions) > BATCH_ITEMS_MAX:
            raise ValueError(f"at most {BATCH_ITEMS_MAX} instructions a request")
        body = PaymentBatchRequest(instructions=list(instructions))
        return PaymentBatchResponse.model_validate(self._post("/v1/payment-batches", body)).results

    def exchange_out(self, instruction: str) -> PaymentView:
        """A signed exchange-out: wallet -> the vault in `institution()`."""
        return PaymentView.model_validate(self._post("/v1/exchanges-out", PaymentRequest(instruction=instruction)))

    def get_payment(self, payment: UUID) -> PaymentView:
        return PaymentView.model_validate(self._http.get(f"/v1/payments/{ids.show('trf', payment)}"))

    # --- cross-border

    def institution(self) -> InstitutionView:
        return InstitutionView.model_validate(self._http.get("/v1/institution"))

    def register_settlements(self, orders: Sequence[SettlementOrder]) -> list[SettlementOrderResult]:
        """The desk's orders to the bridge; at most `BATCH_ITEMS_MAX`."""
        body = SettlementOrdersRequest(instructions=list(orders))
        return SettlementOrdersResponse.model_validate(self._post("/v1/settlement-instructions", body)).results

    def authorise_legs(self, legs: Sequence[LegAuthorisation]) -> list[LegAuthorisationResult]:
        """The bridge asks for the bank's signatures; at most `BATCH_ITEMS_MAX`."""
        body = LegAuthorisationsRequest(legs=list(legs))
        return LegAuthorisationsResponse.model_validate(self._post("/v1/leg-authorisations", body)).results

    # --- sandbox

    def simulate_deposit(self, *, customer: UUID, amount_minor: int, posting: UUID | None = None) -> DepositView:
        body = DepositRequest(posting=posting or ids.new_uuid7(), customer=customer, amount_minor=amount_minor)
        return DepositView.model_validate(self._post("/v1/simulate/deposits", body))

    def simulated_deposit(self, customer: UUID) -> DepositView:
        return DepositView.model_validate(self._http.get(f"/v1/simulate/deposits/{ids.show('cus', customer)}"))

    # --- helpers

    def _post(self, path: str, body: BaseModel) -> Any:
        return self._http.post(path, body.model_dump(mode="json", exclude_none=True), idempotent=True)

    def _items(self, path: str, query: dict[str, Any]) -> Iterator[Any]:
        cursor: str | None = None
        while True:
            page = self._http.get(path, query=query | {"cursor": cursor})
            yield from page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return
