"""Asynchronous twin of `wallet.client.offline`, made by `python -m sandbox.async_client`: change that one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from kernel import ids
from kernel.client import AsyncServiceClient
from kernel.crypto.keys import PrivateKey, PublicKey
from kernel.ids import AccountNumber
from ledger.contract import TransferKind, TransferTerms, sign_instruction
from wallet.contract.offline import (
    EscrowView,
    ProofView,
    PurseFundingRequest,
    PurseFundingView,
    PurseRequest,
    PurseSyncRequest,
    PurseSyncResponse,
    PurseSyncResult,
    PurseView,
    RevocationsView,
)


class AsyncOfflineMethods:
    """What `WalletClient` can do with purses. All of it may be repeated."""

    _http: AsyncServiceClient
    _post: Callable[[str, BaseModel], Awaitable[Any]]

    async def create_purse(self, *, wallet: UUID, device_key: PublicKey, purse: UUID | None = None) -> PurseView:
        body = PurseRequest(purse=purse or ids.new_uuid7(), wallet=wallet, device_key=device_key.to_jwk())
        return PurseView.model_validate(await self._post("/v1/purses", body))

    async def get_purse(self, purse: UUID) -> PurseView:
        return PurseView.model_validate(await self._http.get(f"/v1/purses/{ids.show('pur', purse)}"))

    async def report_purse_lost(self, purse: UUID) -> PurseView:
        path = f"/v1/purses/{ids.show('pur', purse)}/loss"
        return PurseView.model_validate(await self._http.post(path, {}, idempotent=True))

    async def double_spend_proof(self, purse: UUID) -> bytes:
        """For `verify-double-spend`. Raises: ProblemResponse(purse-has-no-proof)."""
        answer = await self._http.get(f"/v1/purses/{ids.show('pur', purse)}/double-spend-proof")
        return ProofView.model_validate(answer).proof

    async def fund_purse(
        self,
        *,
        key: PrivateKey,
        ledger: str,
        debit: int,
        escrow: int,
        purse: UUID,
        amount_minor: int,
        currency: str,
        valid_until: datetime,
        funding: UUID | None = None,
    ) -> PurseFundingView:
        """Sign the loading with the wallet's key and have it carried; `message` is for the purse's device."""
        terms = TransferTerms(
            id=funding or ids.new_uuid7(),
            kind=TransferKind.PURSE_FUND,
            debit=AccountNumber(debit),
            credit=AccountNumber(escrow),
            amount_minor=amount_minor,
            currency=currency,
            reference=purse,
        )
        token = sign_instruction(terms, ledger=ledger, valid_until=valid_until, key=key)
        return PurseFundingView.model_validate(
            await self._post("/v1/purse-fundings", PurseFundingRequest(instruction=token))
        )

    async def get_purse_funding(self, funding: UUID) -> PurseFundingView:
        return PurseFundingView.model_validate(await self._http.get(f"/v1/purse-fundings/{ids.show('trf', funding)}"))

    async def sync_purses(self, messages: Sequence[bytes]) -> list[PurseSyncResult]:
        """At most `SYNCED_TOGETHER_MAX`; one result a message, in order."""
        answer = await self._post("/v1/purse-syncs", PurseSyncRequest(messages=list(messages)))
        return PurseSyncResponse.model_validate(answer).results

    async def purse_revocations(self) -> bytes:
        return RevocationsView.model_validate(await self._http.get("/v1/purse-revocations")).revocations

    async def purse_escrow(self) -> EscrowView:
        return EscrowView.model_validate(await self._http.get("/v1/purse-escrow"))
