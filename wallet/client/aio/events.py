"""Asynchronous twin of `wallet.client.events`, made by `python -m sandbox.async_client`: change that one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from kernel import ids
from kernel.client import AsyncServiceClient
from kernel.crypto.keys import PublicKey
from wallet.client.events import _path
from wallet.contract.events import (
    DeliveryState,
    DeliveryView,
    EndpointRequest,
    EndpointsView,
    EndpointView,
    EventPage,
    EventType,
    ReplayRequest,
    ReplayView,
    WebhookKeysView,
)


class AsyncEventMethods:
    """What `WalletClient` can do with events and webhooks."""

    _http: AsyncServiceClient
    _post: Callable[[str, BaseModel], Awaitable[Any]]
    _items: Callable[[str, dict[str, Any]], AsyncIterator[Any]]

    async def events(self, *, after: str | None = None, type: EventType | None = None, limit: int = 100) -> EventPage:
        """Keep the page's `next`: it is where to go on, now or later."""
        return EventPage.model_validate(
            await self._http.get("/v1/events", query={"after": after, "type": type and type.value, "limit": limit})
        )

    async def webhook_keys(self) -> list[PublicKey]:
        view = WebhookKeysView.model_validate(await self._http.get("/v1/webhook-keys"))
        return [PublicKey.from_jwk(item.key) for item in view.keys]

    async def create_webhook_endpoint(
        self, url: str, *, types: Sequence[EventType] = (), endpoint: UUID | None = None
    ) -> EndpointView:
        body = EndpointRequest(endpoint=endpoint or ids.new_uuid7(), url=url, types=list(types))
        return EndpointView.model_validate(await self._post("/v1/webhook-endpoints", body))

    async def webhook_endpoints(self) -> list[EndpointView]:
        return EndpointsView.model_validate(await self._http.get("/v1/webhook-endpoints")).items

    async def enable_webhook_endpoint(self, endpoint: UUID) -> EndpointView:
        return EndpointView.model_validate(await self._http.post(f"{_path(endpoint)}/enable", {}, idempotent=True))

    async def disable_webhook_endpoint(self, endpoint: UUID) -> EndpointView:
        return EndpointView.model_validate(await self._http.post(f"{_path(endpoint)}/disable", {}, idempotent=True))

    def webhook_deliveries(self, endpoint: UUID, *, state: DeliveryState | None = None) -> AsyncIterator[DeliveryView]:
        """In the events' order; state dead = the dead letters."""
        query = {"state": state and state.value, "limit": 1000}
        return (DeliveryView.model_validate(item) async for item in self._items(f"{_path(endpoint)}/deliveries", query))

    async def replay_webhooks(
        self,
        endpoint: UUID,
        *,
        events: Sequence[UUID] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        replay: UUID | None = None,
    ) -> ReplayView:
        """By ids, or by time."""
        body = ReplayRequest(replay=replay or ids.new_uuid7(), events=list(events), since=since, until=until)
        return ReplayView.model_validate(await self._post(f"{_path(endpoint)}/replays", body))
