"""The client's side of settlements of n legs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from uuid import UUID

from kernel.client import ServiceClient
from settlement.contract import SettlementView
from settlement.contract.multileg import LegRequest, SettlementRequest
from settlement.domain.instructions import Priority


class MultilegMixin:
    _http: ServiceClient

    def submit_settlement(
        self,
        legs: Sequence[LegRequest],
        *,
        uetr: UUID,
        value_date: date,
        priority: Priority = Priority.NORMAL,
        idempotency_key: str | None = None,
    ) -> SettlementView:
        """One settlement of 2 to 32 legs, all or none. Without a key of its own the UETR is the key.

        Refuses: legs-invalid, participant-unknown, submitter-not-party, currency-not-served, account-missing,
        uetr-already-used.
        """
        request = SettlementRequest(uetr=uetr, legs=list(legs), value_date=value_date, priority=priority)
        answer = self._http.post(
            "/v1/settlements",
            request,
            idempotent=True,
            idempotency_key=idempotency_key or str(uetr),
        )
        return SettlementView.model_validate(answer)
