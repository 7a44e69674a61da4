"""Asynchronous twin of `wallet.client.requests`, made by `python -m sandbox.async_client`: change that one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel

from kernel import ids
from kernel.client import AsyncServiceClient
from kernel.clock import Clock
from kernel.crypto.keys import PrivateKey
from ledger.contract import TransferKind, TransferTerms, sign_instruction
from wallet.client.requests import _APPROVAL_LIFE, PAYER_CODE_LIFE, REQUEST_LIFE, _incoming, _request
from wallet.contract import InstitutionView, PaymentView
from wallet.contract.requests import (
    ApprovalOrder,
    CodeRedemption,
    CodeRedemptionAnswer,
    CodeView,
    DeclineOrder,
    IncomingRequestOrder,
    IncomingRequestView,
    PaymentRequestOrder,
    PaymentRequestView,
    ReadCodeOrder,
    RedemptionOrder,
    RedemptionView,
    RefundOrder,
    RefundsView,
    RequestDelivery,
    RequestOffer,
    RequestPaymentView,
)
from wallet.domain.payer_holds import make_payer_code


class AsyncRequestMethods:
    """What `WalletClient` can do with requests, codes and refunds. Every write may be repeated with the same ids."""

    _http: AsyncServiceClient
    _clock: Clock

    # --- the payee

    async def request_payment(
        self,
        *,
        wallet: UUID,
        payee_name: str,
        currency: str,
        amount_minor: int | None = None,
        amount_min_minor: int | None = None,
        amount_max_minor: int | None = None,
        payments: Literal["one", "many"] = "one",
        payer: int | None = None,
        payer_institution: str | None = None,
        description: str = "",
        payee_reference: str = "",
        expires_at: datetime | None = None,
        request: UUID | None = None,
    ) -> PaymentRequestView:
        order = PaymentRequestOrder.model_validate(
            {
                "request": request or ids.new_uuid7(),
                "wallet": wallet,
                "payee_name": payee_name,
                "currency": currency,
                "amount_minor": amount_minor,
                "amount_min_minor": amount_min_minor,
                "amount_max_minor": amount_max_minor,
                "payments": payments,
                "payer": payer,
                "payer_institution": payer_institution,
                "description": description,
                "payee_reference": payee_reference,
                "expires_at": expires_at or self._clock() + REQUEST_LIFE,
            }
        )
        return PaymentRequestView.model_validate(await self._post_order("/v1/payment-requests", order))

    async def get_payment_request(self, request: UUID) -> PaymentRequestView:
        return PaymentRequestView.model_validate(await self._http.get(_request(request)))

    def payment_requests(self, wallet: UUID) -> AsyncIterator[PaymentRequestView]:
        """Every request that the wallet has made, newest first."""
        path = f"/v1/wallets/{ids.show('wlt', wallet)}/payment-requests"
        return (PaymentRequestView.model_validate(item) async for item in self._request_pages(path))

    def request_payments(self, request: UUID) -> AsyncIterator[RequestPaymentView]:
        """Every payment that came for a request, surplus included."""
        path = f"{_request(request)}/payments"
        return (RequestPaymentView.model_validate(item) async for item in self._request_pages(path))

    async def cancel_payment_request(self, request: UUID) -> PaymentRequestView:
        answer = await self._http.post(f"{_request(request)}/cancel", {}, idempotent=True)
        return PaymentRequestView.model_validate(answer)

    async def redeem_payer_code(self, request: UUID, code: str) -> RedemptionView:
        """Have a request paid by the code that a payer shows. After an unknown outcome: the same again."""
        answer = await self._post_order(f"{_request(request)}/redemptions", RedemptionOrder(code=code))
        return RedemptionView.model_validate(answer)

    async def request_qr(self, request: UUID, *, name: str, city: str, form: str = "text", **more: Any) -> bytes:
        """A request's dynamic code: its payload (`text`), or its symbol (`png`, `svg`; `scale` pixels a module)."""
        query = {"name": name, "city": city, "as": form, **more}
        return (await self._http.request("GET", f"{_request(request)}/qr", query=query, idempotent=True)).content

    async def wallet_qr(self, wallet: UUID, *, name: str, city: str, form: str = "text", **more: Any) -> bytes:
        """A wallet's static code; `amount_minor` and `reference` may be given too."""
        query = {"name": name, "city": city, "as": form, **more}
        path = f"/v1/wallets/{ids.show('wlt', wallet)}/qr"
        return (await self._http.request("GET", path, query=query, idempotent=True)).content

    # --- the payer

    async def read_code(self, code: str) -> CodeView:
        return CodeView.model_validate(await self._post_order("/v1/codes/read", ReadCodeOrder(code=code)))

    async def show_request(
        self,
        wallet: UUID,
        *,
        request: UUID | None = None,
        institution: str | None = None,
        document: str | None = None,
    ) -> IncomingRequestView:
        """Put a request before the wallet: by what its code says, or by its document."""
        order = IncomingRequestOrder.model_validate(
            {"request": request, "institution": institution, "document": document}
        )
        path = f"/v1/wallets/{ids.show('wlt', wallet)}/incoming-requests"
        return IncomingRequestView.model_validate(await self._post_order(path, order))

    async def get_incoming_request(self, wallet: UUID, request: UUID) -> IncomingRequestView:
        return IncomingRequestView.model_validate(await self._http.get(_incoming(wallet, request)))

    def incoming_requests(self, wallet: UUID) -> AsyncIterator[IncomingRequestView]:
        """Every request before the wallet, newest first."""
        path = f"/v1/wallets/{ids.show('wlt', wallet)}/incoming-requests"
        return (IncomingRequestView.model_validate(item) async for item in self._request_pages(path))

    async def approve_request(
        self,
        wallet: UUID,
        shown: IncomingRequestView,
        *,
        key: PrivateKey,
        debit: int,
        amount_minor: int | None = None,
    ) -> PaymentView:
        """Sign the payment that a request asks for, and have it carried. `amount_minor`: where the payer chooses."""
        asked = shown.asked
        instruction = self._sign_transfer(
            TransferKind.PAYMENT,
            key=key,
            ledger=asked.ledger,
            debit=debit,
            credit=asked.account,
            amount_minor=amount_minor or shown.remaining_minor or 0,
            currency=asked.currency,
            reference=asked.request,
            transfer=shown.next_payment,
            valid_until=min(asked.expires_at, self._clock() + _APPROVAL_LIFE),
        )
        return await self.submit_approval(wallet, asked.request, instruction)

    async def submit_approval(self, wallet: UUID, request: UUID, instruction: str) -> PaymentView:
        path = f"{_incoming(wallet, request)}/approve"
        return PaymentView.model_validate(await self._post_order(path, ApprovalOrder(instruction=instruction)))

    async def decline_request(self, wallet: UUID, request: UUID) -> IncomingRequestView:
        answer = await self._http.post(f"{_incoming(wallet, request)}/decline", {}, idempotent=True)
        return IncomingRequestView.model_validate(answer)

    def payer_code(
        self,
        institution: InstitutionView,
        *,
        key: PrivateKey,
        account: int,
        cap_minor: int,
        valid_until: datetime | None = None,
        hold: UUID | None = None,
    ) -> str:
        """The text of a payer's QR code. Nothing is sent: the device may be offline."""
        home = institution.ledgers[0]
        until = (valid_until or self._clock() + PAYER_CODE_LIFE).replace(microsecond=0)
        return make_payer_code(
            key=key,
            institution=institution.participant,
            vault=home.vault,
            ledger=home.ledger,
            currency=home.currency,
            account=ids.AccountNumber(account),
            cap_minor=cap_minor,
            valid_until=until,
            hold=hold or ids.new_uuid7(),
        )

    # --- after a payment

    async def refund(
        self,
        *,
        key: PrivateKey,
        ledger: str,
        debit: int,
        credit: int,
        amount_minor: int,
        currency: str,
        original: UUID,
        refund: UUID | None = None,
    ) -> PaymentView:
        """Sign a refund of the payment `original` with the merchant's device key, and have it carried."""
        return await self.submit_refund(
            self._sign_transfer(
                TransferKind.REFUND,
                key=key,
                ledger=ledger,
                debit=debit,
                credit=credit,
                amount_minor=amount_minor,
                currency=currency,
                reference=original,
                transfer=refund,
                valid_until=self._clock() + _APPROVAL_LIFE,
            )
        )

    async def submit_refund(self, instruction: str) -> PaymentView:
        return PaymentView.model_validate(await self._post_order("/v1/refunds", RefundOrder(instruction=instruction)))

    async def refunds(self, payment: UUID) -> RefundsView:
        return RefundsView.model_validate(await self._http.get(f"/v1/payments/{ids.show('trf', payment)}/refunds"))

    async def receipt(self, wallet: UUID, transfer: UUID, *, quorum: int = 0) -> bytes:
        """The ledger's receipt (JSON), to keep and to check offline: `ledger.client.verify_receipt`."""
        path = f"/v1/wallets/{ids.show('wlt', wallet)}/receipts/{ids.show('trf', transfer)}"
        return (await self._http.request("GET", path, query={"quorum": quorum}, idempotent=True)).content

    async def balance_proof(self, wallet: UUID, *, closing: int | None = None) -> bytes:
        """The ledger's proof (JSON) of the balance in a closing: `ledger.client.verify_balance_proof`."""
        path = f"/v1/wallets/{ids.show('wlt', wallet)}/balance-proof"
        return (await self._http.request("GET", path, query={"closing": closing}, idempotent=True)).content

    # --- institution to institution (wallet.usecases.peers.Peer)

    async def request_offer(self, request: UUID) -> RequestOffer:
        return RequestOffer.model_validate(await self._http.get(f"{_request(request)}/offer"))

    async def deliver_request(self, document: str) -> None:
        await self._post_order("/v1/incoming-requests", RequestDelivery(document=document))

    async def tell_decline(self, request: UUID, decline: str) -> None:
        await self._post_order(f"{_request(request)}/declines", DeclineOrder(decline=decline))

    async def redeem_code(self, redemption: CodeRedemption) -> CodeRedemptionAnswer:
        return CodeRedemptionAnswer.model_validate(await self._post_order("/v1/code-redemptions", redemption))

    # --- helpers

    def _sign_transfer(
        self,
        kind: TransferKind,
        *,
        key: PrivateKey,
        ledger: str,
        debit: int,
        credit: int,
        amount_minor: int,
        currency: str,
        reference: UUID,
        transfer: UUID | None,
        valid_until: datetime,
    ) -> str:
        terms = TransferTerms(
            id=transfer or ids.new_uuid7(),
            kind=kind,
            debit=ids.AccountNumber(debit),
            credit=ids.AccountNumber(credit),
            amount_minor=amount_minor,
            currency=currency,
            reference=reference,
        )
        return sign_instruction(terms, ledger=ledger, valid_until=valid_until, key=key)

    async def _post_order(self, path: str, body: BaseModel) -> Any:
        return await self._http.post(path, body.model_dump(mode="json", exclude_none=True), idempotent=True)

    async def _request_pages(self, path: str) -> AsyncIterator[Any]:
        cursor: str | None = None
        while True:
            page = await self._http.get(path, query={"limit": 1000, "cursor": cursor})
            for item in page["items"]:
                yield item
            cursor = page["next_cursor"]
            if cursor is None:
                return
