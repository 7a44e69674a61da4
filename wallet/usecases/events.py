"""Events in order, and webhooks: a bounded piece of work at a time, safe to be done by several processes.

1. `number_events` gives committed events their positions (see `store.events.number`);
2. `follow_ledger` makes events of what the ledger has booked on this institution's accounts;
3. `fan_out` turns events into deliveries, one for each endpoint that wants them, in one transaction with its place;
4. `deliver` sends what is due, and records each answer. A death between sending and recording sends again: a webhook
   is told at least once, under the event's id.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.crypto.keys import PrivateKey
from kernel.errors import ProblemError
from wallet.contract import WalletRefusal
from wallet.domain.events import (
    FAILING_MAX,
    AddressRefused,
    Event,
    check_url,
    event_body,
    next_delivery,
    webhook_headers,
)
from wallet.store import events, webhooks
from wallet.store.webhooks import Delivery, Endpoint
from wallet.usecases.context import Context
from wallet.usecases.kept_twice import KeptByDatabase
from wallet.webhook_sender import Answer, WebhookSender

NUMBERED_TOGETHER_MAX = 2_000
BOOKINGS_TOGETHER_MAX = 200
"""A page takes some 20 ms of Python's lock: payments that are under way meanwhile wait for it."""
UNDER_WAY = timedelta(seconds=5)
"""A payment that is booked and not recorded as such is left to its request for so long."""
FANNED_OUT_TOGETHER_MAX = 500
SENT_TOGETHER_MAX = 32
SENT_TOGETHER_EACH_MAX = 4
"""To one endpoint: a slow one leaves room for the others."""
CLAIM = timedelta(seconds=60)
ENDPOINTS_MAX = 10
REPLAYED_MAX = 10_000
_ERROR_CHARACTERS_MAX = 200
_GONE = 410


@dataclass(frozen=True, slots=True)
class Hooks:
    """What sending webhooks takes: the institution's Ed25519 key for them, and a guarded way out."""

    key: PrivateKey
    sender: WebhookSender


def webhook_key(path: Path) -> PrivateKey:
    """The key in the file, made if there is none. Raises: OSError, KeyRefused."""
    if not path.exists():
        PrivateKey.generate().save(path)
    return PrivateKey.load(path)


# --- the feed --------------------------------------------------------------------------------------------------------


def page(context: Context, *, after: int, types: Collection[str], limit: int) -> list[Event]:
    """Events after a position, in order."""
    number_events(context)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        return events.page(connection, after=after, types=types, limit=limit)


def number_events(context: Context) -> int:
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        return events.number(connection, limit=NUMBERED_TOGETHER_MAX)


def follow_ledger(context: Context) -> int:
    """The next page of what the ledger has booked on our accounts becomes events; how far in the journal it went. So a
    payment's path is free of its events, and what came from elsewhere is told in the same way."""
    home, now = context.ledgers.home, context.clock()
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        after = events.told_through(connection, home.name)
    try:
        page = home.client.bookings(after_seq=after, limit=BOOKINGS_TOGETHER_MAX)
    except (ProblemResponse, ServiceUnreachable):
        return 0  # the next pass asks again
    if page.through_seq == after:
        return 0
    try:
        return context.database.run_session(
            lambda connection: events.tell_bookings(
                connection,
                home.name,
                page.bookings,
                after_seq=after,
                through_seq=page.through_seq,
                under_way_since=now - UNDER_WAY,
            )
        )
    except KeptByDatabase as kept:
        if not kept.is_taken:
            raise
        return 0  # another process tells at this moment


# --- endpoints -------------------------------------------------------------------------------------------------------


def create_endpoint(
    context: Context, hooks: Hooks, endpoint_id: UUID, *, client: str, url: str, types: Sequence[str]
) -> Endpoint:
    """Idempotent by id. It is told what happens from now on.

    Raises: ProblemError(endpoint-refused, endpoint-exists, endpoints-too-many).
    """
    try:
        check_url(url, is_sandbox=hooks.sender.is_sandbox)
    except AddressRefused as error:
        raise ProblemError(WalletRefusal.ENDPOINT_REFUSED, str(error)) from None
    follow_ledger(context)
    number_events(context)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = Endpoint(
            id=endpoint_id,
            client=client,
            url=url,
            types=sorted(set(types)),
            state="enabled",
            disabled_for=None,
            failing_since=None,
            position=events.last_position(connection),
            created_at=context.clock(),
        )
        known = webhooks.find_endpoint(connection, endpoint_id)
        if known is None:
            if len(webhooks.endpoints_of(connection, client)) >= ENDPOINTS_MAX:
                raise ProblemError(WalletRefusal.ENDPOINTS_TOO_MANY, f"at most {ENDPOINTS_MAX}")
            if webhooks.insert_endpoint(connection, row):
                return row
            known = webhooks.find_endpoint(connection, endpoint_id)
    if known is None or (known.client, known.url, known.types) != (client, url, row.types):
        raise ProblemError(WalletRefusal.ENDPOINT_EXISTS)
    return known


def list_endpoints(context: Context, client: str) -> list[Endpoint]:
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        return webhooks.endpoints_of(connection, client)


def find_endpoint(context: Context, endpoint_id: UUID, *, client: str) -> Endpoint:
    """Raises: ProblemError(endpoint-not-found), for another client's too."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = webhooks.find_endpoint(connection, endpoint_id)
    if row is None or row.client != client:
        raise ProblemError(WalletRefusal.ENDPOINT_NOT_FOUND)
    return row


def enable_endpoint(context: Context, endpoint_id: UUID, *, client: str, is_enabled: bool) -> Endpoint:
    """Deliveries of a disabled endpoint wait; enabled again, it is told what it missed. May be repeated."""
    row = find_endpoint(context, endpoint_id, client=client)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        if is_enabled:
            webhooks.update_endpoint(connection, row.id, state="enabled", disabled_for=None, failing_since=None)
        elif row.state == "enabled":
            webhooks.update_endpoint(connection, row.id, state="disabled", disabled_for="by-its-client")
    return find_endpoint(context, endpoint_id, client=client)


def deliveries(
    context: Context, endpoint_id: UUID, *, client: str, state: str | None, after: int, limit: int
) -> list[Delivery]:
    """In order of position; `state` "dead" are the dead letters."""
    row = find_endpoint(context, endpoint_id, client=client)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        return webhooks.page_of_deliveries(connection, row.id, state=state, after=after, limit=limit)


def replay(
    context: Context,
    replay_id: UUID,
    endpoint_id: UUID,
    *,
    client: str,
    event_ids: Sequence[UUID],
    since: datetime | None,
    until: datetime | None,
) -> int:
    """Deliver events again, chosen by id or by time, `REPLAYED_MAX` at most; how many. Idempotent by id.

    Raises: ProblemError(endpoint-not-found, replay-exists).
    """
    row = find_endpoint(context, endpoint_id, client=client)
    request: dict[str, object] = {
        "events": [str(item) for item in event_ids],
        "since": since.isoformat() if since is not None else None,
        "until": until.isoformat() if until is not None else None,
    }
    now = context.clock()
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        webhooks.find_endpoint(connection, row.id, lock=True)
        known = webhooks.find_replay(connection, replay_id)
        if known is not None:
            if known[:2] != (row.id, request):
                raise ProblemError(WalletRefusal.REPLAY_EXISTS)
            return known[2]
        if event_ids:
            chosen = events.find_events(connection, event_ids)
        else:
            chosen = events.events_between(
                connection,
                since=since or row.created_at,
                until=until or now,
                types=row.types,
                limit=REPLAYED_MAX,
            )
        count = webhooks.add_deliveries(connection, row.id, chosen, now=now)
        webhooks.insert_replay(connection, replay_id, row.id, request=request, deliveries=count, now=now)
    return count


# --- the passes ------------------------------------------------------------------------------------------------------


def tell(context: Context, hooks: Hooks) -> int:
    """One round of what follows the events; how much was done if more may wait, else 0."""
    numbered = number_events(context)
    fanned_out = fan_out(context)
    sent = deliver(context, hooks)
    is_more = numbered >= NUMBERED_TOGETHER_MAX or fanned_out >= FANNED_OUT_TOGETHER_MAX or sent >= SENT_TOGETHER_MAX
    return numbered + fanned_out + sent if is_more else 0


def follow(context: Context) -> int:
    """One page of the ledger; how far it went if more may wait, else 0. Then the next page comes in a while: a page for
    each batch of payments would cost more than the payments."""
    followed = follow_ledger(context)
    return followed if followed >= BOOKINGS_TOGETHER_MAX else 0


def fan_out(context: Context) -> int:
    now, made = context.clock(), 0
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        last = events.last_position(connection)
        for endpoint in webhooks.endpoints_behind(connection, position=last, limit=20):
            new = events.page(connection, after=endpoint.position, limit=FANNED_OUT_TOGETHER_MAX)
            if new:
                wanted = [item for item in new if not endpoint.types or item.type in endpoint.types]
                made += webhooks.add_deliveries(connection, endpoint.id, wanted, now=now)
                webhooks.update_endpoint(connection, endpoint.id, position=new[-1].position)
    return made


def deliver(context: Context, hooks: Hooks) -> int:
    """Send what is due; how many were tried."""
    now = context.clock()
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        claimed = webhooks.claim_due(
            connection,
            now=now,
            claimed_until=now + CLAIM,
            each=SENT_TOGETHER_EACH_MAX,
            limit=SENT_TOGETHER_MAX,
        )
    if not claimed:
        return 0

    def send(item: tuple[Delivery, Endpoint, Event]) -> Answer:
        _, endpoint, event = item
        body = event_body(event, institution=context.participant)
        headers = webhook_headers(f"evt_{event.id}", body, sent_at=context.clock(), key=hooks.key)
        return hooks.sender.send(endpoint.url, headers=headers, body=body)

    with ThreadPoolExecutor(min(8, len(claimed))) as pool:
        for item, answer in zip(claimed, pool.map(send, claimed), strict=True):
            _record(context, item, answer)
    return len(claimed)


def _record(context: Context, item: tuple[Delivery, Endpoint, Event], answer: Answer) -> None:
    row, endpoint, _ = item
    now, attempts = context.clock(), row.attempts + 1
    values: dict[str, object] = {
        "attempts": attempts,
        "last_status": answer.status or None,
        "last_error": answer.error[:_ERROR_CHARACTERS_MAX] or None,
    }
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        current = webhooks.find_endpoint(connection, endpoint.id, lock=True)
        if answer.is_success:
            webhooks.conclude(connection, row, state="delivered", ended_at=now, **values)
            webhooks.update_endpoint(connection, endpoint.id, failing_since=None)
            return
        again = next_delivery(
            now,
            attempts=attempts,
            chance=random.random(),  # noqa: S311  spreads load, guards nothing
            retry_after_seconds=answer.retry_after_seconds,
        )
        if again is None:
            webhooks.conclude(connection, row, state="dead", ended_at=now, **values)
        else:
            webhooks.conclude(connection, row, next_at=again, **values)
        since = (current.failing_since if current is not None else None) or now
        if answer.status == _GONE or now - since >= FAILING_MAX:
            reason = "gone" if answer.status == _GONE else "failing"
            webhooks.update_endpoint(
                connection, endpoint.id, state="disabled", disabled_for=reason, failing_since=since
            )
        else:
            webhooks.update_endpoint(connection, endpoint.id, failing_since=since)
