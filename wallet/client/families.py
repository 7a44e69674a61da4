"""The client's part for families, corporate owners, hardware wallets and aliases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import quote
from uuid import UUID

from pydantic import BaseModel

from kernel import ids
from kernel.client import ServiceClient
from kernel.clock import Clock
from kernel.crypto.keys import PrivateKey, PublicKey, to_base64url
from ledger.contract import StatementLine, TransferKind, TransferTerms, sign_instruction
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

POOLING_LIFE = timedelta(minutes=10)
"""How long the children's signatures under a pooling stand."""


class FamilyCalls:
    """Mixed into `WalletClient`."""

    _http: ServiceClient
    _clock: Clock

    _post: Callable[[str, BaseModel], Any]

    # --- families

    def open_child(
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
        return ChildView.model_validate(self._post(f"{_wallet(parent)}/children", body))

    def push_child(
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
        return self.open_child(
            parent,
            customer=customer,
            wallet_class=wallet_class,
            device_key=key.key.public,
            caps=caps,
            label=label,
            push=PushBody.model_validate({"merchant": merchant, "sealed_key": to_base64url(key.sealed)}),
            child=child,
        )

    def children(self, parent: UUID) -> list[ChildView]:
        return FamilyView.model_validate(self._http.get(f"{_wallet(parent)}/children")).children

    def get_child(self, parent: UUID, child: UUID) -> ChildView:
        return ChildView.model_validate(self._http.get(_child(parent, child)))

    def child_history(self, parent: UUID, child: UUID, *, limit: int = 1000) -> list[StatementLine]:
        """The newest lines first, at most `limit` (1000)."""
        query = {"limit": limit, "newest_first": "true"}
        page = self._http.get(f"{_child(parent, child)}/history", query=query)
        return [StatementLine.model_validate(item) for item in page["items"]]

    def set_child_caps(self, parent: UUID, child: UUID, caps: ChildCapsBody, *, version: int) -> ChildView:
        body = ChildCapsRequest(caps=caps, version=version)
        return ChildView.model_validate(self._post(f"{_child(parent, child)}/caps", body))

    def revoke_child(self, parent: UUID, child: UUID) -> ChildView:
        return ChildView.model_validate(self._http.post(f"{_child(parent, child)}/revocation", {}, idempotent=True))

    def close_child(self, parent: UUID, child: UUID) -> ChildView:
        return ChildView.model_validate(self._http.post(f"{_child(parent, child)}/closing", {}, idempotent=True))

    def pool(self, parent: UUID, *, keys: Mapping[UUID, PrivateKey], ledger: str) -> list[PaymentResult]:
        """All the money of the children whose keys are given, back to the parent, each child's as far as its class's
        caps go. Signs and sends; a result a child that has any."""
        parent_account = self._http.get(_wallet(parent))["account"]
        tokens = []
        for view in self.children(parent):
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
        return self.submit_poolings(parent, tokens) if tokens else []

    def submit_poolings(self, parent: UUID, instructions: Sequence[str]) -> list[PaymentResult]:
        body = PoolingRequest(instructions=list(instructions))
        return PoolingResponse.model_validate(self._post(f"{_wallet(parent)}/poolings", body)).results

    def charge(
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
        return PaymentView.model_validate(self._post("/v1/charges", body))

    # --- corporate owners

    def register_corporate(
        self, customer: UUID, *, legal_name: str, lei: str = "", social_credit_code: str = ""
    ) -> CorporateView:
        body = CorporateRequest(legal_name=legal_name, lei=lei, social_credit_code=social_credit_code)
        return CorporateView.model_validate(self._post(f"/v1/customers/{ids.show('cus', customer)}/corporate", body))

    def get_corporate(self, customer: UUID) -> CorporateView:
        path = f"/v1/customers/{ids.show('cus', customer)}/corporate"
        return CorporateView.model_validate(self._http.get(path))

    # --- hardware wallets

    def register_card(
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
        return CardView.model_validate(self._post(f"{_wallet(wallet)}/cards", body))

    def cards(self, wallet: UUID) -> list[CardView]:
        return CardsView.model_validate(self._http.get(f"{_wallet(wallet)}/cards")).cards

    def take_card_revocations(self, revocations: str) -> CardRevocationsView:
        body = CardRevocationsRequest(revocations=revocations)
        return CardRevocationsView.model_validate(self._post("/v1/card-revocations", body))

    def report_card(self, wallet: UUID, thumbprint: str) -> CardView:
        path = f"{_wallet(wallet)}/cards/{quote(thumbprint, safe='', errors='replace')}/report"
        return CardView.model_validate(self._http.post(path, {}, idempotent=True))

    # --- aliases

    def create_alias(self, wallet: UUID, *, kind: AliasKind, alias: str, alias_id: UUID | None = None) -> AliasView:
        """Sends a code to the alias."""
        body = AliasRequest(alias_id=alias_id or ids.new_uuid7(), kind=kind, alias=alias, wallet=wallet)
        return AliasView.model_validate(self._post("/v1/aliases", body))

    def verify_alias(self, alias_id: UUID, code: str) -> AliasView:
        return AliasView.model_validate(self._post(f"{_alias(alias_id)}/verification", AliasCodeRequest(code=code)))

    def make_alias_default(self, alias_id: UUID) -> AliasView:
        return AliasView.model_validate(self._http.post(f"{_alias(alias_id)}/default", {}, idempotent=True))

    def remove_alias(self, alias_id: UUID) -> AliasView:
        return AliasView.model_validate(self._http.post(f"{_alias(alias_id)}/removal", {}, idempotent=True))

    def aliases(self, wallet: UUID) -> list[AliasView]:
        return AliasesView.model_validate(self._http.get(f"{_wallet(wallet)}/aliases")).aliases

    def look_up_alias(self, *, payer: UUID, kind: AliasKind, alias: str, currency: str) -> AliasLookupView:
        body = AliasLookupRequest(payer=payer, kind=kind, alias=alias, currency=currency)
        return AliasLookupView.model_validate(self._post("/v1/alias-lookups", body))

    def simulated_codes(self) -> list[SentCode]:
        """Sandbox only; the newest first."""
        return SentCodesView.model_validate(self._http.get("/v1/simulate/codes")).codes


def _wallet(wallet: UUID) -> str:
    return f"/v1/wallets/{ids.show('wlt', wallet)}"


def _child(parent: UUID, child: UUID) -> str:
    return f"{_wallet(parent)}/children/{ids.show('wlt', child)}"


def _alias(alias_id: UUID) -> str:
    return f"/v1/aliases/{ids.show('als', alias_id)}"
