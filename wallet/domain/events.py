"""Events and webhooks: which there are, how one is signed, when a delivery is tried again, where none may go. Pure.

Signatures, headers and the retry schedule are those of the Standard Webhooks specification 1.0.0 (`v1a`, Ed25519).
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from urllib.parse import urlsplit
from uuid import UUID

from kernel.crypto.jws import canonical_json
from kernel.crypto.keys import PrivateKey, PublicKey, Suite
from ledger.contract import show_moment


class EventType(StrEnum):
    PAYMENT_FINAL = "payment.final"
    PAYMENT_REFUSED = "payment.refused"
    MONEY_RECEIVED = "money.received"
    EXCHANGE_FINAL = "exchange.final"
    EXCHANGE_FAILED = "exchange.failed"
    REQUEST_PAID = "request.paid"
    REQUEST_DECLINED = "request.declined"
    REQUEST_EXPIRED = "request.expired"
    REQUEST_SURPLUS = "request.surplus"
    """Money that came for a request and does not pay it: to be refunded."""
    CODE_REDEEMED = "code.redeemed"
    """A merchant scanned a payer's code and was paid: the payer's phone may know nothing of it yet."""
    REFUND_FINAL = "refund.final"
    REFUND_RELEASED = "refund.released"
    """It was not booked and never will be: the amount can be refunded again."""
    PROGRAM_FUNDED = "program.funded"
    PROGRAM_REFUSED = "program.refused"
    PROGRAM_RELEASED = "program.released"
    PROGRAM_RETURNED = "program.returned"
    PROGRAM_FINISHED = "program.finished"
    PURSE_LOADED = "purse.loaded"
    PURSE_SYNCED = "purse.synced"
    """A payment between purses has arrived here."""
    PURSE_DOUBLE_SPENT = "purse.double-spent"
    """Two payments of a purse's device exclude each other: the proof names it."""
    PURSE_SETTLED = "purse.settled"
    WALLET_OPENED = "wallet.opened"
    WALLET_CHANGED = "wallet.changed"
    """Suspended, resumed, closed, class, key or caps changed: `data.kind` of the notice says which."""
    SCHEDULE_EXECUTED = "schedule.executed"
    SCHEDULE_REFUSED = "schedule.refused"
    BULK_FINISHED = "bulk.finished"


@dataclass(frozen=True, slots=True)
class Event:
    id: UUID
    position: int
    type: str
    subject: str
    wallet_id: UUID | None
    created_at: datetime
    data: Mapping[str, object]


def event_body(event: Event, *, institution: str) -> bytes:
    """The payload as it is signed and sent: canonical JSON, thin (ids, never names)."""
    data: dict[str, object] = {"subject": event.subject, **event.data}
    if event.wallet_id is not None:
        data["wallet"] = f"wlt_{event.wallet_id}"
    return canonical_json(
        {
            "id": f"evt_{event.id}",
            "type": event.type,
            "timestamp": show_moment(event.created_at),
            "sequence": event.position,
            "institution": institution,
            "data": data,
        }
    )


# --- the signature ---------------------------------------------------------------------------------------------------

TOLERANCE = timedelta(minutes=5)
BODY_BYTES_MAX = 64 * 1024
_ID_CHARACTERS_MAX = 100
_SIGNATURES_MAX = 10


class WebhookRefused(ValueError):
    """The message is not what the institution has just sent; the text says why."""


def webhook_headers(message_id: str, body: bytes, *, sent_at: datetime, key: PrivateKey) -> dict[str, str]:
    """Raises: ValueError for a key that is not Ed25519, or an id with a full stop."""
    if key.suite is not Suite.ED25519 or "." in message_id:
        raise ValueError("v1a is Ed25519, over an id without full stops")
    timestamp = str(int(sent_at.timestamp()))
    signature = key.sign(_signed(message_id, timestamp, body))
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1a,{base64.b64encode(signature).decode('ascii')}",
    }


def verify_webhook(
    headers: Mapping[str, str],
    body: bytes,
    *,
    keys: Iterable[PublicKey],
    now: datetime,
    tolerance: timedelta = TOLERANCE,
) -> str:
    """The message's id (remember it: a message may come twice), if one of the keys has signed it just now.

    Raises: WebhookRefused.
    """
    found = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, timestamp, signatures = (found[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
    except KeyError as error:
        raise WebhookRefused(f"the header {error.args[0]} is missing") from None
    if not 0 < len(message_id) <= _ID_CHARACTERS_MAX or "." in message_id or len(body) > BODY_BYTES_MAX:
        raise WebhookRefused("the message has no acceptable form")
    if not (timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= 12):
        raise WebhookRefused("the timestamp is not a number of seconds")
    if abs(int(timestamp) - now.timestamp()) > tolerance.total_seconds():
        raise WebhookRefused("the message is too old, or from the future")
    signed, trusted = _signed(message_id, timestamp, body), list(keys)
    for item in signatures.split(" ")[:_SIGNATURES_MAX]:
        version, _, encoded = item.partition(",")
        if version != "v1a":
            continue
        try:
            signature = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            continue
        if any(key.suite is Suite.ED25519 and key.verify(signed, signature) for key in trusted):
            return message_id
    raise WebhookRefused("no signature is by a key that is trusted")


def _signed(message_id: str, timestamp: str, body: bytes) -> bytes:
    return f"{message_id}.{timestamp}.".encode() + body


# --- when ------------------------------------------------------------------------------------------------------------

RETRY_DELAYS = tuple(
    timedelta(seconds=seconds) for seconds in (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
)
"""The specification's example schedule: ten attempts in three days."""
ATTEMPTS_MAX = len(RETRY_DELAYS) + 1
RETRY_AFTER_MAX = timedelta(days=1)
JITTER = 0.2
"""Up to a fifth later, so that what failed together does not return together."""
FAILING_MAX = timedelta(days=5)
"""An endpoint that has answered nothing well for so long is disabled."""


def next_delivery(
    now: datetime, *, attempts: int, chance: float, retry_after_seconds: int | None = None
) -> datetime | None:
    """When to try again after `attempts` failures; None = the delivery is dead. `chance` is in [0, 1)."""
    if attempts >= ATTEMPTS_MAX:
        return None
    delay = RETRY_DELAYS[attempts - 1] * (1 + JITTER * chance)
    if retry_after_seconds is not None:
        delay = max(delay, min(timedelta(seconds=retry_after_seconds), RETRY_AFTER_MAX))
    return now + delay


# --- where -----------------------------------------------------------------------------------------------------------

URL_CHARACTERS_MAX = 2_000
_EMBEDDING = [
    ipaddress.ip_network(network)
    for network in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96", "::ffff:0:0/96", "fec0::/10")
]
"""IPv6 ranges that carry IPv4 addresses (NAT64, 6to4, Teredo, compatible, mapped), and the old site-local range."""


class AddressRefused(ValueError):
    """A webhook may not go there (SSRF)."""


def check_url(url: str, *, is_sandbox: bool) -> tuple[str, int]:
    """(host, port) of an acceptable endpoint address. Raises: AddressRefused."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise AddressRefused("the address cannot be read") from None
    if len(url) > URL_CHARACTERS_MAX or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise AddressRefused("an address is printable ASCII of at most 2,000 characters")
    if parts.scheme != "https" and not (is_sandbox and parts.scheme == "http"):
        raise AddressRefused("an address begins with https://")
    if not host or parts.username is not None or parts.password is not None or parts.fragment:
        raise AddressRefused("an address has a host, and no user, password or fragment")
    if port == 0:
        raise AddressRefused("nobody answers at port 0")
    port = port or (443 if parts.scheme == "https" else 80)
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        return host, port
    check_address(str(literal), is_sandbox=is_sandbox)
    return host, port


def check_address(address: str, *, is_sandbox: bool) -> None:
    """Raises: AddressRefused for whatever is not a public unicast address. A sandbox may also reach its own machine."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        raise AddressRefused("the name leads to no address") from None
    if is_sandbox and found.is_loopback:
        return
    is_embedding = isinstance(found, ipaddress.IPv6Address) and any(found in network for network in _EMBEDDING)
    if (
        is_embedding
        or not found.is_global
        or found.is_multicast
        or found.is_private
        or found.is_loopback
        or found.is_link_local
        or found.is_reserved
        or found.is_unspecified
    ):
        raise AddressRefused("the name leads to an address that is not public")
