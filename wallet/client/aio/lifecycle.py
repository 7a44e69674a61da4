"""Asynchronous twin of `wallet.client.lifecycle`, made by `python -m sandbox.async_client`: change that one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel

from kernel import ids
from kernel.client import AsyncServiceClient
from kernel.clock import Clock
from kernel.crypto.keys import PrivateKey, PublicKey
from ledger.contract import AccountChange, AccountChangeDocument, AccountStanding, HolderKeyChange, sign_account_consent
from wallet.client.lifecycle import ORDER_LIFE, DeviceChange
from wallet.contract.lifecycle import (
    CapsOrder,
    CapsRequest,
    CapsView,
    ClassChangeRequest,
    ClosureRequest,
    DeviceChangeRequest,
    DevicesView,
    DeviceView,
    EvidenceChangeRequest,
    EvidenceChangeView,
    KeyRecoveryRequest,
    NoticeView,
    ObjectionRequest,
    ResumptionRequest,
    SuspensionRequest,
    WalletChangeView,
    sign_caps_order,
)
from wallet.domain.rules import Evidence, WalletClass


class AsyncLifecycleClient:
    """Mixin: caps, class, evidence, devices, suspension, closure. Every write may be repeated with its id."""

    _http: AsyncServiceClient
    _clock: Clock
    _post: Callable[[str, BaseModel], Awaitable[Any]]
    _items: Callable[[str, dict[str, Any]], AsyncIterator[Any]]

    async def set_caps(
        self, *, wallet: UUID, caps: CapsView, key: PrivateKey | None = None, change: UUID | None = None
    ) -> WalletChangeView:
        """All four own caps, as they shall be. `key`: a device's, needed to raise one."""
        change_id = change or ids.new_uuid7()
        order = None
        if key is not None:
            until = self._clock() + ORDER_LIFE
            order = sign_caps_order(CapsOrder(wallet=wallet, change=change_id, caps=caps, valid_until=until), key=key)
        return await self._change(wallet, "caps", CapsRequest(change=change_id, caps=caps, order=order))

    async def change_class(
        self, *, wallet: UUID, wallet_class: WalletClass, change: UUID | None = None
    ) -> WalletChangeView:
        body = ClassChangeRequest(change=change or ids.new_uuid7(), wallet_class=wallet_class)
        return await self._change(wallet, "class-changes", body)

    async def change_evidence(
        self,
        *,
        customer: UUID,
        added: Sequence[Evidence] = (),
        withdrawn: Sequence[Evidence] = (),
        change: UUID | None = None,
    ) -> EvidenceChangeView:
        body = EvidenceChangeRequest(change=change or ids.new_uuid7(), added=list(added), withdrawn=list(withdrawn))
        path = f"/v1/customers/{ids.show('cus', customer)}/evidence-changes"
        return EvidenceChangeView.model_validate(await self._post(path, body))

    # --- devices

    async def devices(self, wallet: UUID) -> list[DeviceView]:
        path = f"/v1/wallets/{ids.show('wlt', wallet)}/devices"
        return DevicesView.model_validate(await self._http.get(path)).items

    def consent(
        self,
        body: AccountChange,
        *,
        ledger: str,
        key: PrivateKey,
        change: UUID | None = None,
        valid_until: datetime | None = None,
    ) -> str:
        """A device's signed consent to a change of the wallet's account; nothing is sent."""
        until = valid_until or self._clock() + ORDER_LIFE
        document = AccountChangeDocument(id=change or ids.new_uuid7(), ledger=ledger, change=body, valid_until=until)
        return sign_account_consent(document, key=key)

    async def change_device(
        self,
        kind: DeviceChange,
        *,
        wallet: UUID,
        account: int,
        ledger: str,
        device_key: PublicKey,
        key: PrivateKey,
        change: UUID | None = None,
    ) -> WalletChangeView:
        """Add or remove `device_key`, or make it the only one; `key` is an active device's, which consents."""
        body = HolderKeyChange.model_validate({"change": kind, "account": account, "key": device_key.to_jwk()})
        consent = self.consent(body, ledger=ledger, key=key, change=change)
        return await self._change(wallet, "device-changes", DeviceChangeRequest(consent=consent))

    async def report_loss(self, *, wallet: UUID, change: UUID | None = None) -> WalletChangeView:
        return await self.suspend_wallet(wallet=wallet, reason="loss", change=change)

    async def recover_key(
        self, *, wallet: UUID, device_key: PublicKey, identified_by: Sequence[Evidence], change: UUID | None = None
    ) -> WalletChangeView:
        """Announce the key of a new device; the answer's `due_at` says from when on it is the only one."""
        body = KeyRecoveryRequest(
            change=change or ids.new_uuid7(), device_key=device_key.to_jwk(), identified_by=list(identified_by)
        )
        return await self._change(wallet, "key-recoveries", body)

    async def object_to_key(
        self, *, wallet: UUID, account: int, ledger: str, key: PrivateKey, objection: UUID | None = None
    ) -> WalletChangeView:
        """With a current key, against the announced one. Needs no registered client."""
        body = AccountStanding.model_validate({"change": "object-to-key", "account": account})
        consent = self.consent(body, ledger=ledger, key=key, change=objection)
        return await self._change(wallet, "objections", ObjectionRequest(consent=consent))

    # --- suspension and closure

    async def suspend_wallet(
        self, *, wallet: UUID, reason: Literal["loss", "institution"], change: UUID | None = None
    ) -> WalletChangeView:
        body = SuspensionRequest(change=change or ids.new_uuid7(), reason=reason)
        return await self._change(wallet, "suspensions", body)

    async def resume_wallet(
        self,
        *,
        wallet: UUID,
        reason: Literal["loss", "institution"],
        identified_by: Sequence[Evidence] = (),
        change: UUID | None = None,
    ) -> WalletChangeView:
        body = ResumptionRequest(change=change or ids.new_uuid7(), reason=reason, identified_by=list(identified_by))
        return await self._change(wallet, "resumptions", body)

    async def close_wallet(
        self, *, wallet: UUID, instruction: str | None = None, change: UUID | None = None
    ) -> WalletChangeView:
        """Begin or go on with (the same `change`) a closure. Its `closure.amount_due_minor` is what to sign."""
        body = ClosureRequest(change=change or ids.new_uuid7(), instruction=instruction)
        return await self._change(wallet, "closures", body)

    async def cancel_closure(self, change: UUID) -> WalletChangeView:
        path = f"/v1/wallet-changes/{ids.show('chg', change)}/cancellation"
        return WalletChangeView.model_validate(await self._http.post(path, {}, idempotent=True))

    # --- what happened

    async def get_wallet_change(self, change: UUID) -> WalletChangeView:
        return WalletChangeView.model_validate(await self._http.get(f"/v1/wallet-changes/{ids.show('chg', change)}"))

    def wallet_changes(self, wallet: UUID) -> AsyncIterator[WalletChangeView]:
        """Newest first."""
        path = f"/v1/wallets/{ids.show('wlt', wallet)}/changes"
        return (WalletChangeView.model_validate(item) async for item in self._items(path, {"limit": 1000}))

    def notices(self, wallet: UUID) -> AsyncIterator[NoticeView]:
        """Newest first."""
        path = f"/v1/wallets/{ids.show('wlt', wallet)}/notices"
        return (NoticeView.model_validate(item) async for item in self._items(path, {"limit": 1000}))

    # --- helpers

    async def _change(self, wallet: UUID, part: str, body: BaseModel) -> WalletChangeView:
        return WalletChangeView.model_validate(await self._post(f"/v1/wallets/{ids.show('wlt', wallet)}/{part}", body))
