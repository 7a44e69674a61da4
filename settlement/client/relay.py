"""The client's side of the relay."""

from __future__ import annotations

from uuid import UUID

from kernel import ids
from kernel.client import ServiceClient
from settlement.contract.relay import RelayView


class RelayMixin:
    _http: ServiceClient

    def relay(self) -> RelayView:
        """The bridge's operator only. Refuses: relay-off."""
        return RelayView.model_validate(self._http.get("/v1/relay"))

    def settlement_proofs(self, settlement: UUID) -> bytes:
        """A bundle (JSON) to keep, and to check with `settlement.relay.verdict`. Refuses: relay-off,
        settlement-not-found, nothing-to-prove."""
        path = f"/v1/settlements/{ids.show('stl', settlement)}/proofs"
        return self._http.request("GET", path, idempotent=True).content
