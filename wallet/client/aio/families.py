"""Asynchronous twin of `wallet.client.families`, made by `python -m sandbox.async_client`: change that one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote
from uuid import UUID

from pydantic import BaseModel

from kernel import ids
from kernel.client import AsyncServiceClient
from kernel.clock import Clock
from kernel.crypto.keys import PrivateKey, PublicKey, to_base64url
from ledger.contract import StatementLine, TransferKind, TransferTerms, sign_instruction
from wallet.client.families import POOLING_LIFE, _alias, _child, _wallet
from wallet.contract import PaymentResult, PaymentView
from wallet.contract.cards import CardRevocationsRequest, CardRevocationsView
from wallet.contract.families import (
    AliasCodeRequest,
    AliasesView,
    AliasKind,
    AliasLookupRequest,
    AliasLookupView,
    AliasRequest,
    AliasView,
    CardRequest,
    CardsView,
    CardView,
    ChargeRequest,
    ChildCapsBody,
    ChildCapsRequest,
    ChildRequest,
    ChildView,
    CorporateRequest,
    CorporateView,
    FamilyView,
    PoolingRequest,
    PoolingResponse,
    PushBody,
    SentCode,
    SentCodesView,
)
from wallet.domain.rules import WalletClass
from wallet.sealed_keys import PushedKey


class AsyncFamilyCalls:
    """Mixed into `WalletClient`."""

    _http: AsyncServiceClient
    _clock: Clock

    _post: Callable[[str, BaseModel], Awaitable[Any]]

    # --- families

    async def open_child(
        self,
        parent: UUID,
        *,
        customer: UUID,
        wallet_class: WalletClass,
        device_key: PublicKey,
        caps: ChildCapsBody | None = None,
        label: str = "",
        push: PushBody | None = None,
        child: UUID | None = None,
    ) -> ChildView:
        """A child wallet. To push it to a merchant see `push_child`."""
        body = ChildRequest(
            child=child or ids.new_uuid7(),
            customer=customer,
            wallet_class=wallet_class,
            device_key=device_key.to_jwk(),
            label=label,
            caps=caps or ChildCapsBody(),
            push=push,
        )
        return ChildView.model_validate(await self._post(f"{_wallet(parent)}/children", body))

    async def push_child(
        self,
        parent: UUID,
        *,
        customer: UUID,
        wallet_class: WalletClass,
        merchant: int,
        key: PushedKey,
        child: UUID,
        caps: ChildCapsBody,
        label: str = "",
    ) -> ChildView:
        """A child that the merchant may charge, with `key` from `wallet.sealed_keys.make(child, merchant)`: keep its
        `key`, hand its `secret` to the merchant."""
        return await self.open_child(
            parent,
            customer=customer,
            wallet_class=wallet_class,
            device_key=key.key.public,
            caps=caps,
            label=label,
            push=PushBody.model_validate({"merchant": merchant, "sealed_key": to_base64url(key.sealed)}),
            child=child,
        )

    async def children(self, parent: UUID) -> list[ChildView]:
        return FamilyView.model_validate(await self._http.get(f"{_wallet(parent)}/children")).children

    async def get_child(self, parent: UUID, child: UUID) -> ChildView:
        return ChildView.model_validate(await self._http.get(_child(parent, child)))

    async def child_history(self, parent: UUID, child: UUID, *, limit: int = 1000) -> list[StatementLine]:
        """The newest lines first, at most `limit` (1000)."""
        query = {"limit": limit, "newest_first": "true"}
        page = await self._http.get(f"{_child(parent, child)}/history", query=query)
        return [StatementLine.model_validate(item) for item in page["items"]]

    async def set_child_caps(self, parent: UUID, child: UUID, caps: ChildCapsBody, *, version: int) -> ChildView:
        body = ChildCapsRequest(caps=caps, version=version)
        return ChildView.model_validate(await self._post(f"{_child(parent, child)}/caps", body))

    async def revoke_child(self, parent: UUID, child: UUID) -> ChildView:
        return ChildView.model_validate(
            await self._http.post(f"{_child(parent, child)}/revocation", {}, idempotent=True)
        )

    async def close_child(self, parent: UUID, child: UUID) -> ChildView:
        return ChildView.model_validate(await self._http.post(f"{_child(parent, child)}/closing", {}, idempotent=True))

    async def pool(self, parent: UUID, *, keys: Mapping[UUID, PrivateKey], ledger: str) -> list[PaymentResult]:
        """All the money of the children whose keys are given, back to the parent, each child's as far as its class's
        caps go. Signs and sends; a result a child that has any."""
        parent_account = (await self._http.get(_wallet(parent)))["account"]
        tokens = []
        for view in await self.children(parent):
            if view.child in keys and view.account is not None and view.balance_minor:
                terms = TransferTerms.model_validate(
                    {
                        "id": ids.new_uuid7(),
                        "kind": TransferKind.PAYMENT,
                        "debit": view.account,
                        "credit": parent_account,
                        "amount_minor": view.balance_minor,
                        "currency": view.currency,
                    }
                )
                until = self._clock() + POOLING_LIFE
                tokens.append(sign_instruction(terms, ledger=ledger, valid_until=until, key=keys[view.child]))
        return await self.submit_poolings(parent, tokens) if tokens else []

    async def submit_poolings(self, parent: UUID, instructions: Sequence[str]) -> list[PaymentResult]:
        body = PoolingRequest(instructions=list(instructions))
        return PoolingResponse.model_validate(await self._post(f"{_wallet(parent)}/poolings", body)).results

    async def charge(
        self, child: UUID, *, secret: bytes, amount_minor: int, currency: str, charge: UUID | None = None
    ) -> PaymentView:
        """The merchant's call; needs no registered client. Repeat it with the same `charge`: it is carried once."""
        body = ChargeRequest(
            charge=charge or ids.new_uuid7(),
            child=child,
            amount_minor=amount_minor,
            currency=currency,
            secret=to_base64url(secret),
        )
        return PaymentView.model_validate(await self._post("/v1/charges", body))

    # --- corporate owners

    async def register_corporate(
        self, customer: UUID, *, legal_name: str, lei: str = "", social_credit_code: str = ""
    ) -> CorporateView:
        body = CorporateRequest(legal_name=legal_name, lei=lei, social_credit_code=social_credit_code)
        return CorporateView.model_validate(
            await self._post(f"/v1/customers/{ids.show('cus', customer)}/corporate", body)
        )

    async def get_corporate(self, customer: UUID) -> CorporateView:
        path = f"/v1/customers/{ids.show('cus', customer)}/corporate"
        return CorporateView.model_validate(await self._http.get(path))

    # --- hardware wallets

    async def register_card(
        self,
        wallet: UUID,
        *,
        key: PublicKey,
        attestation: Sequence[str],
        pin_free_single_max_minor: int,
        pin_free_total_max_minor: int,
    ) -> CardView:
        body = CardRequest(
            key=key.to_jwk(),
            attestation=list(attestation),
            pin_free_single_max_minor=pin_free_single_max_minor,
            pin_free_total_max_minor=pin_free_total_max_minor,
        )
        return CardView.model_validate(await self._post(f"{_wallet(wallet)}/cards", body))

    async def cards(self, wallet: UUID) -> list[CardView]:
        return CardsView.model_validate(await self._http.get(f"{_wallet(wallet)}/cards")).cards

    async def take_card_revocations(self, revocations: str) -> CardRevocationsView:
        body = CardRevocationsRequest(revocations=revocations)
        return CardRevocationsView.model_validate(await self._post("/v1/card-revocations", body))

    async def report_card(self, wallet: UUID, thumbprint: str) -> CardView:
        path = f"{_wallet(wallet)}/cards/{quote(thumbprint, safe='', errors='replace')}/report"
        return CardView.model_validate(await self._http.post(path, {}, idempotent=True))

    # --- aliases

    async def create_alias(
        self, wallet: UUID, *, kind: AliasKind, alias: str, alias_id: UUID | None = None
    ) -> AliasView:
        """Sends a code to the alias."""
        body = AliasRequest(alias_id=alias_id or ids.new_uuid7(), kind=kind, alias=alias, wallet=wallet)
        return AliasView.model_validate(await self._post("/v1/aliases", body))

    async def verify_alias(self, alias_id: UUID, code: str) -> AliasView:
        return AliasView.model_validate(
            await self._post(f"{_alias(alias_id)}/verification", AliasCodeRequest(code=code))
        )

    async def make_alias_default(self, alias_id: UUID) -> AliasView:
        return AliasView.model_validate(await self._http.post(f"{_alias(alias_id)}/default", {}, idempotent=True))

    async def remove_alias(self, alias_id: UUID) -> AliasView:
        return AliasView.model_validate(await self._http.post(f"{_alias(alias_id)}/removal", {}, idempotent=True))

    async def aliases(self, wallet: UUID) -> list[AliasView]:
        return AliasesView.model_validate(await self._http.get(f"{_wallet(wallet)}/aliases")).aliases

    async def look_up_alias(self, *, payer: UUID, kind: AliasKind, alias: str, currency: str) -> AliasLookupView:
        body = AliasLookupRequest(payer=payer, kind=kind, alias=alias, currency=currency)
        return AliasLookupView.model_validate(await self._post("/v1/alias-lookups", body))

    async def simulated_codes(self) -> list[SentCode]:
        """Sandbox only; the newest first."""
        return SentCodesView.model_validate(await self._http.get("/v1/simulate/codes")).codes
