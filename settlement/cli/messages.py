"""`jiaozi-settlement message`: ISO 20022 files in and out: streams, status reports, statements, recalls."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import typer
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from kernel import ids
from kernel.client import ProblemResponse, ServiceUnreachable
from settlement.cli.options import (
    DEFAULT_URL,
    ClientKey,
    CurrencyOption,
    Json,
    Participant,
    Url,
    connect,
    console,
    errors,
    fail,
    parse_ref,
)
from settlement.contract.messages import RECALL_PREFIX, STREAM_PREFIX, RecallView, StreamState, StreamView

app = typer.Typer(
    no_args_is_help=True,
    help="ISO 20022 messages. In: large files as streams (pacs.008, pacs.009, CSV), recalls (camt.056). "
    "Out: pacs.002, camt.052, camt.053, camt.054, camt.029, in the version you name. "
    "A message of several pages is written to several files.",
)

Output = Annotated[
    Path, typer.Option("--output", "-o", help="Where to write; pages after the first get -2, -3, ... in the name.")
]
Version = Annotated[str | None, typer.Option(help="Message version, e.g. pacs.002.001.12; unset = the oldest served.")]
HeaderOption = Annotated[
    str | None, typer.Option("--header", help="Add a business application header, e.g. head.001.001.02.")
]
StreamArgument = Annotated[str, typer.Argument(help="Stream, as str_...")]
_FAILURES = (ProblemResponse, ServiceUnreachable, TimeoutError, OSError)
_REFUSALS_SHOWN = 50


class StreamProgress:
    """Bars on the terminal for what was sent, read and booked; silent with --json."""

    def __init__(self, *, is_shown: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description:>8}"),
            BarColumn(),
            DownloadColumn(),
            console=errors,
            disable=not is_shown,
        )
        self._lines = Progress(
            TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), console=errors, disable=not is_shown
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> StreamProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        self._lines.stop()

    def show(self, view: StreamView) -> None:
        for name, done in (("sent", view.received_bytes), ("read", view.read_bytes)):
            self._bar(self._progress, name, done, view.byte_count)
        if view.state in (StreamState.BOOKING, StreamState.DONE):
            self._progress.stop()
            self._lines.start()
            self._bar(self._lines, "booked", view.booked_count + view.refused_count, view.line_count)

    def _bar(self, progress: Progress, name: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = progress.add_task(name, total=total)
        progress.update(self._tasks[name], completed=done, total=total)


def stream_file(file: Path, client_key: Path, url: str, *, wait: bool, as_json: bool) -> None:
    """Send a file as a stream and show what became of it. Exit code 1 if it or one of its lines was refused."""
    with connect(url, client_key) as client, StreamProgress(is_shown=not as_json) as progress:
        try:
            view = client.send_stream(file, progress=progress.show)
            if wait:
                view = client.wait_for_stream(view.stream, timeout_seconds=3_600, progress=progress.show)
            refusals = list(client.stream_refusals(view.stream)) if wait and view.refused_count else []
        except _FAILURES as error:
            fail(error)
    if as_json:
        lines = [item.model_dump(mode="json") for item in refusals]
        typer.echo(json.dumps({"stream": view.model_dump(mode="json"), "refusals": lines}))
    else:
        _print_stream(view)
        if not wait:
            console.print(f"Follow it: jiaozi-settlement message stream {ids.show(STREAM_PREFIX, view.stream)}")
        if refusals:
            console.print(_refusals_table(refusals))
    if view.state is StreamState.REFUSED or view.refused_count:
        raise typer.Exit(1)


@app.command()
def stream(stream: StreamArgument, client_key: ClientKey, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """How far a streamed file is, and which of its lines were refused, with each reason."""
    with connect(url, client_key) as client:
        try:
            view = client.stream(parse_ref(STREAM_PREFIX, stream))
            refusals = list(client.stream_refusals(view.stream)) if view.refused_count else []
        except _FAILURES as error:
            fail(error)
    if as_json:
        lines = [item.model_dump(mode="json") for item in refusals]
        typer.echo(json.dumps({"stream": view.model_dump(mode="json"), "refusals": lines}))
        return
    _print_stream(view)
    if refusals:
        console.print(_refusals_table(refusals))


@app.command()
def withdraw(stream: StreamArgument, client_key: ClientKey, url: Url = DEFAULT_URL) -> None:
    """Give up a stream that was not sent to its end. What is whole is not stopped: recall its payments instead."""
    with connect(url, client_key) as client:
        try:
            view = client.withdraw_stream(parse_ref(STREAM_PREFIX, stream))
        except _FAILURES as error:
            fail(error)
    _print_stream(view)


@app.command()
def status(
    of: Annotated[str, typer.Argument(help="Stream (str_...), batch (bat_...) or settlement (stl_...).")],
    client_key: ClientKey,
    output: Output,
    url: Url = DEFAULT_URL,
    version: Version = None,
    header: HeaderOption = None,
    limit: Annotated[int | None, typer.Option(help="Instructions a page, up to 10,000.")] = None,
) -> None:
    """pacs.002: the status of every instruction, refused lines of a stream included."""
    kinds: dict[str, Literal["stream", "batch", "settlement"]] = {
        STREAM_PREFIX: "stream",
        "bat": "batch",
        "stl": "settlement",
    }
    prefix = of.partition("_")[0]
    if prefix not in kinds:
        fail(ValueError(f"{of!r} is no stream, batch or settlement: give str_..., bat_... or stl_..."))
    key = parse_ref(prefix, of)
    with connect(url, client_key) as client:
        try:
            _write(client.status_reports(key, kind=kinds[prefix], version=version, header=header, limit=limit), output)
        except _FAILURES as error:
            fail(error)


@app.command()
def intraday(
    participant: Participant,
    currency: CurrencyOption,
    client_key: ClientKey,
    output: Output,
    url: Url = DEFAULT_URL,
    version: Version = None,
    header: HeaderOption = None,
) -> None:
    """camt.052: what the bridge moved on an account today, so far."""
    _account("camt.052", participant, currency, client_key, output, url, None, version, header)


@app.command()
def statement(
    participant: Participant,
    currency: CurrencyOption,
    day: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="A day (UTC) that is over.")],
    client_key: ClientKey,
    output: Output,
    url: Url = DEFAULT_URL,
    version: Version = None,
    header: HeaderOption = None,
) -> None:
    """camt.053: what the bridge moved on an account on a day; it opens with the previous day's closing."""
    _account("camt.053", participant, currency, client_key, output, url, day, version, header)


@app.command()
def notifications(
    participant: Participant,
    currency: CurrencyOption,
    client_key: ClientKey,
    output: Output,
    day: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="UTC; unset = from the first on.")] = None,
    url: Url = DEFAULT_URL,
    version: Version = None,
    header: HeaderOption = None,
) -> None:
    """camt.054: each debit and credit of an account."""
    _account("camt.054", participant, currency, client_key, output, url, day, version, header)


@app.command()
def recall(
    file: Annotated[Path, typer.Argument(help="A camt.056 file.", exists=True, dir_okay=False)],
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Ask payments back: what is undecided is given up, what is final stays. Again: how it stands now."""
    with connect(url, client_key) as client:
        try:
            view = client.submit_recall(file.read_bytes())
        except _FAILURES as error:
            fail(error)
    _print_recall(view, as_json=as_json)


@app.command()
def resolution(
    recall: Annotated[str, typer.Argument(help="Recall, as rcl_...")],
    client_key: ClientKey,
    output: Output,
    url: Url = DEFAULT_URL,
    version: Version = None,
    header: HeaderOption = None,
) -> None:
    """camt.029: the answer to a recall, as it stands."""
    with connect(url, client_key) as client:
        try:
            key: UUID = parse_ref(RECALL_PREFIX, recall)
            _write([client.recall_resolution(key, version=version, header=header)], output)
        except _FAILURES as error:
            fail(error)


def _account(
    kind: Literal["camt.052", "camt.053", "camt.054"],
    participant: str,
    currency: str,
    client_key: Path,
    output: Path,
    url: str,
    day: datetime | None,
    version: str | None,
    header: str | None,
) -> None:
    with connect(url, client_key) as client:
        try:
            pages = client.account_messages(
                kind,
                participant=participant,
                currency=currency,
                day=None if day is None else day.date(),
                version=version,
                header=header,
            )
            _write(pages, output)
        except _FAILURES as error:
            fail(error)


def _write(pages: Iterable[bytes], output: Path) -> None:
    for number, content in enumerate(pages, start=1):
        path = output if number == 1 else output.with_name(f"{output.stem}-{number}{output.suffix}")
        path.write_bytes(content)
        console.print(f"{path}: {len(content):,} bytes", markup=False)


def _print_stream(view: StreamView) -> None:
    shown = ids.show(STREAM_PREFIX, view.stream)
    console.print(
        f"{shown}: {view.state.value}; {view.received_bytes:,} of {view.byte_count:,} bytes; "
        f"{view.line_count:,} lines read, {view.booked_count:,} booked, {view.refused_count:,} refused",
        markup=False,
    )
    if view.refusal is not None:
        console.print(f"The file was refused: {view.refusal}: {view.reason}", markup=False)
    counts = ", ".join(f"{count:,} {state.value}" for state, count in view.counts.items() if count)
    if counts:
        console.print(f"Settlements: {counts}", markup=False)


def _refusals_table(refusals: list[Any]) -> Table:
    table = Table("instruction", "line", "refusal", "reason", title=f"{len(refusals):,} lines refused")
    for item in refusals[:_REFUSALS_SHOWN]:
        table.add_row(f"{item.number:,}", f"{item.line:,}", item.refusal, item.reason)
    if len(refusals) > _REFUSALS_SHOWN:
        table.caption = f"and {len(refusals) - _REFUSALS_SHOWN:,} more: --json shows all"
    return table


def _print_recall(view: RecallView, *, as_json: bool) -> None:
    if as_json:
        typer.echo(view.model_dump_json())
        return
    console.print(f"{ids.show(RECALL_PREFIX, view.recall)}: {view.confirmation.name.lower()}", markup=False)
    table = Table("UETR", "answer", "state", "detail")
    for item in view.items:
        table.add_row(str(item.uetr), item.status.value, "" if item.state is None else item.state.value, item.detail)
    console.print(table)
