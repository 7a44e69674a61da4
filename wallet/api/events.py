"""The event feed, and webhooks: endpoints, deliveries, replays, the key."""

from __future__ import annotations

import base64
from typing import Annotated

from fastapi import Depends, Path, Query, Request

from kernel.crypto.keys import from_base64url
from kernel.http import problems, strict_router
from kernel.limits import PAGE_ITEMS_DEFAULT
from kernel.pagination import Page, PageCursor, PageLimit, decode, encode
from wallet.api.auth import SIGNED, Reader
from wallet.api.dependencies import STATUSES, Services
from wallet.contract import WalletRefusal
from wallet.contract.events import (
    DeliveryState,
    DeliveryView,
    EndpointRef,
    EndpointRequest,
    EndpointState,
    EndpointsView,
    EndpointView,
    EventPage,
    EventType,
    EventView,
    ReplayRequest,
    ReplayView,
    WebhookKeysView,
    WebhookKeyView,
)
from wallet.domain.events import Event
from wallet.store.webhooks import Delivery, Endpoint
from wallet.usecases import events
from wallet.usecases.events import Hooks

router = strict_router(tags=["events"])
_R = WalletRefusal
EndpointPath = Annotated[EndpointRef, Path()]


def _hooks(request: Request) -> Hooks:
    hooks: Hooks = request.app.state.hooks
    return hooks


Sending = Annotated[Hooks, Depends(_hooks)]


@router.get(
    "/v1/events",
    operation_id="list_events",
    summary="What happened, in order; ask again with `next` for what happens later",
    responses=problems(*SIGNED, statuses=STATUSES),
)
def list_events(
    context: Services,
    client: Reader,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    after: PageCursor = None,
    type: Annotated[EventType | None, Query()] = None,
) -> EventPage:
    filters = {"list": "events", "type": type}
    position = 0 if after is None else int(decode(after, filters, shape=(int,))[0])
    rows = events.page(context, after=position, types=() if type is None else (type.value,), limit=limit)
    return EventPage(
        items=[_event_view(row, context.participant) for row in rows],
        next=encode([rows[-1].position], filters) if rows else after,
        has_more=len(rows) == limit,
    )


@router.get(
    "/v1/webhook-keys",
    operation_id="list_webhook_keys",
    summary="The keys that sign this institution's webhooks; for everybody",
    responses=problems(statuses=STATUSES),
)
def list_webhook_keys(hooks: Sending) -> WebhookKeysView:
    jwk = hooks.key.public.to_jwk()
    standard = "whpk_" + base64.b64encode(from_base64url(jwk["x"])).decode("ascii")
    return WebhookKeysView(keys=[WebhookKeyView(key=jwk, standard=standard)])


@router.post(
    "/v1/webhook-endpoints",
    operation_id="create_webhook_endpoint",
    status_code=201,
    summary="Be told at an https address what happens from now on",
    responses=problems(*SIGNED, _R.ENDPOINT_REFUSED, _R.ENDPOINT_EXISTS, _R.ENDPOINTS_TOO_MANY, statuses=STATUSES),
)
def create_webhook_endpoint(body: EndpointRequest, context: Services, hooks: Sending, client: Reader) -> EndpointView:
    types = [item.value for item in body.types]
    row = events.create_endpoint(context, hooks, body.endpoint, client=client.name, url=body.url, types=types)
    return _endpoint_view(row)


@router.get(
    "/v1/webhook-endpoints",
    operation_id="list_webhook_endpoints",
    summary="The client's own endpoints",
    responses=problems(*SIGNED, statuses=STATUSES),
)
def list_webhook_endpoints(context: Services, client: Reader) -> EndpointsView:
    return EndpointsView(items=[_endpoint_view(row) for row in events.list_endpoints(context, client.name)])


@router.post(
    "/v1/webhook-endpoints/{endpoint}/enable",
    operation_id="enable_webhook_endpoint",
    summary="Enable an endpoint; it is told what it missed",
    responses=problems(*SIGNED, _R.ENDPOINT_NOT_FOUND, statuses=STATUSES),
)
def enable_webhook_endpoint(endpoint: EndpointPath, context: Services, client: Reader) -> EndpointView:
    return _endpoint_view(events.enable_endpoint(context, endpoint, client=client.name, is_enabled=True))


@router.post(
    "/v1/webhook-endpoints/{endpoint}/disable",
    operation_id="disable_webhook_endpoint",
    summary="Stop sending; what happens meanwhile waits",
    responses=problems(*SIGNED, _R.ENDPOINT_NOT_FOUND, statuses=STATUSES),
)
def disable_webhook_endpoint(endpoint: EndpointPath, context: Services, client: Reader) -> EndpointView:
    return _endpoint_view(events.enable_endpoint(context, endpoint, client=client.name, is_enabled=False))


@router.get(
    "/v1/webhook-endpoints/{endpoint}/deliveries",
    operation_id="list_webhook_deliveries",
    summary="Deliveries in the events' order; state=dead are the dead letters",
    responses=problems(*SIGNED, _R.ENDPOINT_NOT_FOUND, statuses=STATUSES),
)
def list_webhook_deliveries(
    endpoint: EndpointPath,
    context: Services,
    client: Reader,
    state: Annotated[DeliveryState | None, Query()] = None,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[DeliveryView]:
    filters = {"list": "deliveries", "endpoint": endpoint, "state": state}
    after = 0 if cursor is None else int(decode(cursor, filters, shape=(int,))[0])
    wanted = None if state is None else state.value
    rows = events.deliveries(context, endpoint, client=client.name, state=wanted, after=after, limit=limit)
    return Page[DeliveryView](
        items=[_delivery_view(row) for row in rows],
        next_cursor=encode([rows[-1].position], filters) if len(rows) == limit else None,
    )


@router.post(
    "/v1/webhook-endpoints/{endpoint}/replays",
    operation_id="replay_webhooks",
    status_code=201,
    summary="Deliver events again, by id or by time",
    responses=problems(*SIGNED, _R.ENDPOINT_NOT_FOUND, _R.REPLAY_EXISTS, statuses=STATUSES),
)
def replay_webhooks(endpoint: EndpointPath, body: ReplayRequest, context: Services, client: Reader) -> ReplayView:
    count = events.replay(
        context,
        body.replay,
        endpoint,
        client=client.name,
        event_ids=body.events,
        since=body.since,
        until=body.until,
    )
    return ReplayView(replay=body.replay, deliveries=count)


def _event_view(row: Event, institution: str) -> EventView:
    return EventView.model_validate(
        {
            "event": row.id,
            "sequence": row.position,
            "type": row.type,
            "subject": row.subject,
            "wallet": row.wallet_id,
            "institution": institution,
            "created_at": row.created_at,
            "data": dict(row.data),
        }
    )


def _endpoint_view(row: Endpoint) -> EndpointView:
    return EndpointView(
        endpoint=row.id,
        url=row.url,
        types=[EventType(item) for item in row.types],
        state=EndpointState(row.state),
        disabled_for=row.disabled_for,
        failing_since=row.failing_since,
        created_at=row.created_at,
    )


def _delivery_view(row: Delivery) -> DeliveryView:
    return DeliveryView(
        event=row.event_id,
        sequence=row.position,
        state=DeliveryState(row.state),
        attempts=row.attempts,
        next_at=row.next_at if row.state == "pending" else None,
        last_status=row.last_status,
        last_error=row.last_error,
        ended_at=row.ended_at,
    )
