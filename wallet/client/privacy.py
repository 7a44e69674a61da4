"""The client's part for erasure, unmask and the privacy log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from kernel import ids
from kernel.client import ServiceClient
from kernel.clock import Clock
from kernel.crypto.keys import PrivateKey
from wallet.contract.privacy import (
    DisclosureView,
    ErasureReason,
    ErasureRequest,
    ErasureView,
    LogEntriesView,
    LogKeyView,
    LogProofView,
    UnmaskApproval,
    UnmaskApprovalRequest,
    UnmaskEvidence,
    UnmaskField,
    UnmaskOrder,
    UnmaskOrderRequest,
    UnmaskView,
    sha256_of,
    sign_approval,
    sign_order,
)

ORDER_LIFE = timedelta(days=1)
"""How long an order stands, unless said otherwise."""


class PrivacyMethods:
    """Methods of `wallet.client.WalletClient`."""

    _http: ServiceClient
    _clock: Clock
    _post: Callable[[str, BaseModel], Any]
    _items: Callable[[str, dict[str, Any]], Iterator[Any]]

    def erase_customer(self, customer: UUID, *, reason: ErasureReason, erasure: UUID | None = None) -> ErasureView:
        """Needs a compliance officer's client. There is no way back."""
        body = ErasureRequest(erasure=erasure or ids.new_uuid7(), reason=reason)
        return ErasureView.model_validate(self._post(_erasure(customer), body))

    def get_erasure(self, customer: UUID) -> ErasureView:
        return ErasureView.model_validate(self._http.get(_erasure(customer)))

    def order_unmask(
        self,
        *,
        institution: str,
        case_number: str,
        legal_basis: str,
        fields: Sequence[UnmaskField],
        key: PrivateKey,
        wallet: UUID | None = None,
        account: int | None = None,
        valid_until: datetime | None = None,
        request: UUID | None = None,
    ) -> UnmaskView:
        """Sign an order with the officer's key, which is also the client's, and record it."""
        order = UnmaskOrder.model_validate(
            {
                "institution": institution,
                "request": request or ids.new_uuid7(),
                "case_number": case_number,
                "legal_basis": legal_basis,
                "wallet": wallet,
                "account": account,
                "fields": list(fields),
                "valid_until": valid_until or self._clock() + ORDER_LIFE,
            }
        )
        body = UnmaskOrderRequest(order=sign_order(order, key=key))
        return UnmaskView.model_validate(self._post("/v1/unmask-requests", body))

    def unmask_requests(self) -> Iterator[UnmaskView]:
        return (UnmaskView.model_validate(item) for item in self._items("/v1/unmask-requests", {"limit": 1000}))

    def get_unmask_request(self, request: UUID) -> UnmaskView:
        return UnmaskView.model_validate(self._http.get(_unmask(request)))

    def approve_unmask(self, view: UnmaskView, *, institution: str, key: PrivateKey) -> UnmaskView:
        """Approve the order that was read, letter by letter, with another officer's key."""
        approval = UnmaskApproval.model_validate(
            {"institution": institution, "request": view.request, "order_sha256": sha256_of(view.order)}
        )
        body = UnmaskApprovalRequest(approval=sign_approval(approval, key=key))
        return UnmaskView.model_validate(self._post(f"{_unmask(view.request)}/approvals", body))

    def disclose(self, request: UUID) -> DisclosureView:
        """Answered once: a lost answer is not repeated, and the log keeps the entry."""
        return DisclosureView.model_validate(self._http.post(f"{_unmask(request)}/disclosure", {}, idempotent=False))

    def unmask_evidence(self, wallet: UUID | None = None) -> Iterator[UnmaskEvidence]:
        """For auditors; of one wallet's holder, or of all, in the log's order."""
        query: dict[str, Any] = {"limit": 1000, "wallet": wallet and ids.show("wlt", wallet)}
        return (UnmaskEvidence.model_validate(item) for item in self._items("/v1/unmask-evidence", query))

    def privacy_log_key(self) -> str:
        return LogKeyView.model_validate(self._http.get("/v1/privacy-log/key")).key

    def privacy_log_checkpoint(self) -> str:
        return self._http.request("GET", "/v1/privacy-log/checkpoint", idempotent=True).content.decode()

    def privacy_log_entries(self, *, start: int = 0, limit: int = 1000) -> LogEntriesView:
        query = {"start": start, "limit": limit}
        return LogEntriesView.model_validate(self._http.get("/v1/privacy-log/entries", query=query))

    def privacy_log_proof(
        self, *, index: int | None = None, old_size: int | None = None, size: int | None = None
    ) -> LogProofView:
        """Of inclusion (`index`) or of consistency (`old_size`)."""
        query: Mapping[str, Any] = {"index": index, "old_size": old_size, "size": size}
        return LogProofView.model_validate(self._http.get("/v1/privacy-log/proof", query=query))


def _erasure(customer: UUID) -> str:
    return f"/v1/customers/{ids.show('cus', customer)}/erasure"


def _unmask(request: UUID) -> str:
    return f"/v1/unmask-requests/{ids.show('unm', request)}"
