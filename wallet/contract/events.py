"""Models of events and webhooks (docs/events.md)."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import Field, model_validator

from ledger.contract import Jwk, Model, Moment, ParticipantRef
from wallet.contract import WalletRef, id_type
from wallet.domain.events import URL_CHARACTERS_MAX
from wallet.domain.events import EventType as EventType
from wallet.domain.events import WebhookRefused as WebhookRefused
from wallet.domain.events import verify_webhook as verify_webhook

EventRef = Annotated[UUID, *id_type("evt")]
EndpointRef = Annotated[UUID, *id_type("whe")]
ReplayRef = Annotated[UUID, *id_type("whr")]
REPLAY_EVENTS_MAX = 1_000


class EventView(Model):
    event: EventRef
    sequence: int
    """Dense; events are read, though not always delivered, in this order."""
    type: EventType
    subject: str
    """The id of what it happened to."""
    wallet: WalletRef | None
    institution: ParticipantRef
    created_at: Moment
    data: dict[str, Any]


class EventPage(Model):
    items: list[EventView]
    next: str | None
    """Pass as `after` for what comes next, now or later; null only before the very first event."""
    has_more: bool


class EndpointRequest(Model):
    endpoint: EndpointRef
    url: Annotated[str, Field(min_length=8, max_length=URL_CHARACTERS_MAX, examples=["https://bank.example/hooks"])]
    types: Annotated[list[EventType], Field(default_factory=list, max_length=len(EventType))]
    """Empty = all."""


class EndpointState(StrEnum):
    ENABLED = "enabled"
    DISABLED = "disabled"


class EndpointView(Model):
    endpoint: EndpointRef
    url: str
    types: list[EventType]
    state: EndpointState
    disabled_for: str | None
    """by-its-client, gone (it answered 410), or failing (nothing but failures for five days)."""
    failing_since: Moment | None
    created_at: Moment


class EndpointsView(Model):
    items: list[EndpointView]


class DeliveryState(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


class DeliveryView(Model):
    event: EventRef
    sequence: int
    state: DeliveryState
    attempts: int
    next_at: Moment | None
    last_status: int | None
    last_error: str | None
    ended_at: Moment | None


class ReplayRequest(Model):
    """By ids, or by time: of events made in [since, until), the endpoint's types only."""

    replay: ReplayRef
    events: Annotated[list[EventRef], Field(default_factory=list, max_length=REPLAY_EVENTS_MAX)]
    since: Moment | None = None
    until: Moment | None = None

    @model_validator(mode="after")
    def _chooses(self) -> Self:
        if bool(self.events) == (self.since is not None or self.until is not None):
            raise ValueError("give either events, or since and until")
        return self


class ReplayView(Model):
    replay: ReplayRef
    deliveries: int


class WebhookKeyView(Model):
    key: Jwk
    """Ed25519."""
    standard: str
    """The same in the Standard Webhooks serialisation, whpk_..."""


class WebhookKeysView(Model):
    keys: list[WebhookKeyView]
