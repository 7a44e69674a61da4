"""`jiaozi-wallet events` and `jiaozi-wallet webhook`: what happened, read or sent."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from kernel import ids
from kernel.client import ServiceUnreachable
from wallet.cli.options import DEFAULT_URL, ClientKey, Json, Url, connect, fail, parse_id
from wallet.cli.output import moment, show, show_rows
from wallet.client import WalletClient
from wallet.contract.events import REPLAY_EVENTS_MAX, DeliveryState, EventPage, EventType, EventView

webhook_app = typer.Typer(
    no_args_is_help=True,
    help="Have events sent to an https address (Standard Webhooks, signed with Ed25519). What is refused is tried "
    "again with growing pauses, then kept as a dead letter; `deliveries --state dead` lists those and `replay` sends "
    "them again.",
)
EndpointArgument = Annotated[str, typer.Argument(metavar="WHE", help="The endpoint's id, whe_...")]
Time = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d"], help="In UTC.")]


def events(
    client_key: ClientKey,
    after: Annotated[str, typer.Option(help="Where to go on: the `next` printed the last time.")] = "",
    type: Annotated[EventType | None, typer.Option(help="Only this type.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many events, without --follow.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for what happens next, until interrupted.")] = False,
    every: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between two looks with --follow.")] = 1.0,
    bookmark: Annotated[
        Path | None, typer.Option(help="A file that remembers where this reader is: read from it, kept up to date.")
    ] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Print what happened, oldest first. With --json one event a line, for other programs to read.

    Each event comes once and in order; after an interruption go on with --after or the same --bookmark. An event that
    was printed but not yet bookmarked comes again: compare ids.
    """
    if after and bookmark is not None:
        fail("give --after or --bookmark, not both")
    position = after or (_read(bookmark) if bookmark is not None else "")
    left = limit
    with connect(url, client_key) as client:
        for page in _pages(client, position, type, limit=None if follow else limit, every=every):
            for event in page.items:
                typer.echo(event.model_dump_json() if as_json else _line(event))
            position, left = page.next or position, left - len(page.items)
            if bookmark is not None and page.items:
                _write(bookmark, position)
            if not follow and (not page.has_more or left <= 0):
                break
    if position:
        typer.echo(f"next {position}", err=True)


def _pages(
    client: WalletClient, position: str, type: EventType | None, *, limit: int | None, every: float
) -> Iterator[EventPage]:
    """Without a limit: for ever, with a rest when there is nothing new, and through a restart of the service."""
    while True:
        try:
            page = client.events(after=position or None, type=type, limit=min(limit or 1000, 1000))
        except ServiceUnreachable as error:
            if limit is not None:
                raise
            typer.echo(f"no answer: {error}; asking again", err=True)
            time.sleep(every)
            continue
        yield page
        position = page.next or position
        if limit is not None:
            limit -= len(page.items)
        elif not page.has_more:
            time.sleep(every)


@webhook_app.command("add")
def add_endpoint(
    address: Annotated[str, typer.Argument(metavar="URL", help="https://..., reachable from the service.")],
    client_key: ClientKey,
    type: Annotated[
        list[EventType] | None, typer.Option(help="Only this type; may be given again. Unset: all.")
    ] = None,
    endpoint: Annotated[str, typer.Option(help="Its id, whe_...: after an unknown outcome give the same.")] = "",
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Have events sent to an address from now on. What happened before can be replayed."""
    endpoint_id = parse_id("whe", endpoint) if endpoint else ids.new_uuid7()
    typer.echo(f"endpoint {ids.show('whe', endpoint_id)}", err=True)
    with connect(url, client_key) as client:
        show(client.create_webhook_endpoint(address, types=type or (), endpoint=endpoint_id), as_json=as_json)


@webhook_app.command("list")
def list_endpoints(client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Your endpoints: id, state, why one is disabled, address."""
    with connect(url, client_key) as client:
        show_rows(client.webhook_endpoints(), ("endpoint", "state", "disabled_for", "url"), as_json=as_json)


@webhook_app.command("enable")
def enable(endpoint: EndpointArgument, client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Send again, beginning with what waits."""
    with connect(url, client_key) as client:
        show(client.enable_webhook_endpoint(parse_id("whe", endpoint)), as_json=as_json)


@webhook_app.command("disable")
def disable(endpoint: EndpointArgument, client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Stop sending. What happens meanwhile waits for `enable`."""
    with connect(url, client_key) as client:
        show(client.disable_webhook_endpoint(parse_id("whe", endpoint)), as_json=as_json)


@webhook_app.command("deliveries")
def deliveries(
    endpoint: EndpointArgument,
    client_key: ClientKey,
    state: Annotated[DeliveryState | None, typer.Option(help="dead = the dead letters.")] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """What was sent and how the receiver answered, in the events' order."""
    columns = ("event", "state", "attempts", "last_status", "last_error")
    with connect(url, client_key) as client:
        show_rows(client.webhook_deliveries(parse_id("whe", endpoint), state=state), columns, as_json=as_json)


@webhook_app.command("replay")
def replay(
    endpoint: EndpointArgument,
    client_key: ClientKey,
    event: Annotated[list[str] | None, typer.Option(help="An event's id, evt_...; may be given again.")] = None,
    since: Time = None,
    until: Time = None,
    dead: Annotated[bool, typer.Option("--dead", help=f"All dead letters, at most {REPLAY_EVENTS_MAX}.")] = False,
    replay: Annotated[str, typer.Option(help="Its id, whr_...: after an unknown outcome give the same.")] = "",
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Send events again: those named, those made in [--since, --until), or the dead letters."""
    if sum((bool(event), since is not None or until is not None, dead)) != 1:
        fail("say which events: --event (again and again), --since and --until, or --dead")
    replay_id = parse_id("whr", replay) if replay else ids.new_uuid7()
    endpoint_id = parse_id("whe", endpoint)
    chosen = [parse_id("evt", text) for text in event or ()]
    typer.echo(f"replay {ids.show('whr', replay_id)}", err=True)
    with connect(url, client_key) as client:
        if dead:
            letters = client.webhook_deliveries(endpoint_id, state=DeliveryState.DEAD)
            chosen = [item.event for _, item in zip(range(REPLAY_EVENTS_MAX), letters, strict=False)]
            if not chosen:
                fail("there are no dead letters")
        view = client.replay_webhooks(
            endpoint_id,
            events=chosen,
            since=since and since.replace(tzinfo=UTC),
            until=until and until.replace(tzinfo=UTC),
            replay=replay_id,
        )
    show(view, as_json=as_json)


@webhook_app.command("keys")
def keys(url: Url = DEFAULT_URL) -> None:
    """Print the public keys that sign the webhooks, as JSON Web Keys. For everybody: needs no client's key."""
    with WalletClient(url) as client:
        typer.echo(json.dumps([key.to_jwk() for key in client.webhook_keys()]))


def _line(event: EventView) -> str:
    return f"{moment(event.created_at)}  {ids.show('evt', event.event)}  {event.type.value:<24} {event.subject}"


def _read(bookmark: Path) -> str:
    try:
        return bookmark.read_text(encoding="ascii").strip() if bookmark.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        fail(f"cannot read {bookmark}: {error}")


def _write(bookmark: Path, position: str) -> None:
    """Whole or not at all."""
    fresh = bookmark.with_name(bookmark.name + ".new")
    try:
        fresh.write_text(position + "\n", encoding="ascii")
        fresh.replace(bookmark)
    except OSError as error:
        fail(f"cannot write {bookmark}: {error.strerror}")
