"""`jiaozi-wallet payroll`: pay a file of many lines, each signed on this machine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from pydantic import Field, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from kernel import ids
from kernel.client import ProblemResponse
from kernel.clock import system_clock
from kernel.ids import AccountNumber
from kernel.money import Currency, format_minor
from ledger.contract import AccountRef, LedgerRefusal, Model, Moment
from wallet.cli import output
from wallet.cli.options import DEFAULT_URL, ClientKey, DeviceKey, Json, Url, connect, fail, load_key, parse_id
from wallet.client import WalletClient
from wallet.client.bulk import chunks_of, sign_lines, summary_of
from wallet.contract import WalletRef, WalletRefusal
from wallet.contract.bulk import (
    FILE_BYTES_MAX,
    BadLine,
    BulkCheckView,
    BulkFileRef,
    BulkFileState,
    BulkFileView,
    BulkLineState,
    BulkLineView,
    FileUnreadable,
    LineResult,
    PayrollLine,
    SignedLineRequest,
    read_payroll,
    result_lines,
)

app = typer.Typer(
    no_args_is_help=True,
    help="Pay many people from one CSV file. Each line is signed here with the device's key; the service carries the "
    "lines and keeps the outcome of each. A run that broke off goes on with --resume and never pays a line twice.",
)

_SHOWN_MAX = 20
_POLL_SECONDS = 0.2
_SIGNED_AGAIN = (LedgerRefusal.INSTRUCTION_EXPIRED.value, LedgerRefusal.INSTRUCTION_INVALID.value)
FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="CSV: line_id,payee,amount,description (docs/bulk.md).")
]
BulkFileArgument = Annotated[str, typer.Argument(metavar="BLK", help="The bulk file's id, blk_...")]


class _Job(Model):
    """Beside the payroll, so that a later run knows which file at the service this is. Holds no secret."""

    file: BulkFileRef
    wallet: WalletRef
    content_sha256: str
    aliases: Annotated[dict[str, AccountRef], Field(default_factory=dict)]
    """Alias -> account, as the payer has confirmed them by name: a later run signs to no other account."""
    valid_until: Moment | None = None
    """Of the signatures that were written for a checker: a later run signs the very same, which he has approved."""


@dataclass(frozen=True, slots=True)
class _Payroll:
    path: Path
    currency: Currency
    content_sha256: bytes
    lines: int
    total_minor: int

    def read(self) -> Iterator[PayrollLine | BadLine]:
        return read_payroll(chunks_of(self.path), self.currency)


@app.command()
def run(
    file: FileArgument,
    wallet: Annotated[str, typer.Option("--wallet", help="The paying wallet, wlt_...")],
    client_key: ClientKey,
    device_key: DeviceKey,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every line; book nothing.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that this file began.")] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="With --resume: sign refused lines anew that may succeed now.")
    ] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Pay although the check foresees that some lines will be refused.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="This content was paid before and is meant to be paid once more.")
    ] = False,
    for_approval: Annotated[
        Path | None,
        typer.Option(
            "--for-approval",
            help="Dual control: write the signed lines here (with --resume --retry, those that need an approval) and "
            "end; nothing is paid. Once they are approved (control approve), go on with --resume.",
        ),
    ] = None,
    valid_hours: Annotated[int, typer.Option(min=1, max=72, help="How long the signatures stand.")] = 24,
    yes: Annotated[
        bool, typer.Option("--yes", help="The names behind the aliases were looked at in a dry run: do not ask.")
    ] = False,
    result: Annotated[
        Path | None, typer.Option(help="Where the results go: .csv or .json; unset = FILE.result.csv")
    ] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Check a payroll, sign its lines, have them paid, and write what became of each.

    Ends with 0 if every line was booked, 3 if some were refused. Stopped at any point, run it again with --resume.
    """
    wallet_id = parse_id("wlt", wallet)
    key = load_key(device_key)
    job_path = file.with_name(file.name + ".job")
    with connect(url, client_key) as client:
        home = client.institution().ledgers[0]
        payroll = _read(file, Currency.of(home.currency))
        job = _job(job_path)
        if job is not None and (job.wallet != wallet_id or job.content_sha256 != payroll.content_sha256.hex()):
            fail(f"{job_path} belongs to another wallet or content: the file was changed after its run began")
        if job is None or dry_run:
            if resume:
                fail(f"there is nothing to resume: {job_path} does not exist")
            checked = client.check_payroll(wallet_id, file.read_bytes())
            _show_check(checked, payroll, as_json=as_json and dry_run)
            foreseen = len(checked.lines) - checked.payable
            if dry_run:
                raise typer.Exit(3 if foreseen else 0)
            if foreseen and not partial:
                fail(f"{foreseen} lines would be refused: mend the file, or pay the others with --partial")
            aliases = _aliases(checked, payroll)
            lost = _lost(payroll, aliases)
            if lost:
                shown = ", ".join(map(str, lost[:_SHOWN_MAX]))
                fail(f"lines {shown}: no account, and no alias that leads to one: mend them")
            if aliases and not yes:
                typer.confirm(f"Are all {len(aliases)} names those whom you mean to pay?", abort=True, err=True)
            job = _begin(job_path, wallet_id, payroll, aliases)
        elif not resume:
            fail(
                f"this file's run was begun ({job_path}): go on with --resume, or pay it anew after removing that file"
            )
        debit = client.get_wallet(wallet_id).account
        if debit is None:
            fail("the wallet is not open yet")
        with _progress(is_quiet=as_json) as progress:
            sent = progress.add_task("sign and send", total=payroll.lines)
            if for_approval is not None:
                job = job.model_copy(update={"valid_until": system_clock() + timedelta(hours=valid_hours)})
                _save(job_path, job)
            view = _register(client, job, payroll, again=again)
            aliases = job.aliases
            approved, now = job.valid_until, system_clock()
            is_past = approved is not None and approved <= now  # an approval of what has expired is void too
            valid_until = now + timedelta(hours=valid_hours) if approved is None or is_past else approved

            def account_of(payee: str) -> int:
                if payee in aliases:
                    return aliases[payee]
                return ids.parse_account(payee)

            def signed(lines: Iterator[PayrollLine | BadLine]) -> Iterator[list[SignedLineRequest]]:
                return sign_lines(
                    lines,
                    file=job.file,
                    account_of=account_of,
                    key=key,
                    ledger=home.ledger,
                    debit=debit,
                    currency=home.currency,
                    valid_until=valid_until,
                )

            def send(lines: Iterator[PayrollLine | BadLine]) -> None:
                for chunk in signed(lines):
                    client.add_bulk_lines(job.file, chunk)
                    progress.advance(sent, len(chunk))

            if for_approval is not None:
                wanted = _unapproved(client, job.file) if retry else None
                lines = (line for line in payroll.read() if wanted is None or line.line_id in wanted)
                tokens = (line.instruction for chunk in signed(lines) for line in chunk)
                count = output.write_tokens(for_approval, tokens)
                typer.echo(f"{count} signed lines in {for_approval}: once approved, go on with --resume", err=True)
                raise typer.Exit
            if view.state is BulkFileState.UPLOADING:
                send(payroll.read())
                client.start_bulk_file(job.file)
            progress.update(sent, completed=payroll.lines)
            paid = progress.add_task("pay", total=payroll.lines)
            view = _follow(client, job.file, progress, paid)
            if retry and view.refused:
                renewable = {line.line_id for line in client.bulk_lines(job.file) if _may_be_renewed(line)}
                send(line for line in payroll.read() if line.line_id in renewable)
                view = _follow(client, job.file, progress, paid)
        target = result or file.with_name(file.name + ".result.csv")
        _write_result(target, client, job.file, payroll)
    _show_end(view, target, as_json=as_json)
    raise typer.Exit(3 if view.refused else 0)


@app.command()
def status(file: BulkFileArgument, client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Show how far a payroll has come."""
    with connect(url, client_key) as client:
        view = client.get_bulk_file(parse_id("blk", file))
    if as_json:
        typer.echo(view.model_dump_json())
        return
    typer.echo(f"{view.state.value}: {view.booked} booked, {view.refused} refused, {view.lines} lines in all")


@app.command("list")
def list_files(
    wallet: Annotated[str, typer.Argument(help="The paying wallet, wlt_...")],
    client_key: ClientKey,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List a wallet's payrolls, newest first."""
    with connect(url, client_key) as client:
        columns = ("file", "state", "lines", "total_minor", "created_at")
        output.show_rows(client.bulk_files(parse_id("wlt", wallet)), columns, as_json=as_json)


@app.command("result")
def fetch_result(file: BulkFileArgument, client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Print what became of each line, as CSV or JSON. The descriptions stay with the payer's own file."""
    with connect(url, client_key) as client:
        if as_json:
            typer.echo(json.dumps([line.model_dump(mode="json") for line in client.bulk_lines(parse_id("blk", file))]))
        else:
            typer.echo(client.bulk_result_csv(parse_id("blk", file)).decode("utf-8"), nl=False)


@app.command()
def cancel(file: BulkFileArgument, client_key: ClientKey, url: Url = DEFAULT_URL) -> None:
    """Drop a payroll that was not started yet."""
    with connect(url, client_key) as client:
        typer.echo(client.cancel_bulk_file(parse_id("blk", file)).state.value)


# --- steps -----------------------------------------------------------------------------------------------------------


def _read(path: Path, currency: Currency) -> _Payroll:
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            fail(f"{path} is larger than {FILE_BYTES_MAX} bytes: split it")
        digest, lines, total, bad = summary_of(path, currency)
    except OSError as error:
        fail(f"cannot read {path}: {error.strerror}")
    except FileUnreadable as error:
        fail(f"{path}: {error}")
    for line in bad[:_SHOWN_MAX]:
        typer.echo(f"line {line.number} {line.line_id}: {line.reason}", err=True)
    if bad:
        fail(f"{path}: {len(bad)} lines cannot be read; nothing was sent")
    return _Payroll(path, currency, digest, lines, total)


def _job(path: Path) -> _Job | None:
    try:
        return _Job.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        fail(f"{path} is damaged: restore it, or find the file's id with the bank before paying anew")


def _begin(path: Path, wallet_id: UUID, payroll: _Payroll, aliases: dict[str, AccountNumber]) -> _Job:
    """Durable before anything is sent: what is sent later is known by this id."""
    job = _Job(file=ids.new_uuid7(), wallet=wallet_id, content_sha256=payroll.content_sha256.hex(), aliases=aliases)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(job.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror}")
    return job


def _save(path: Path, job: _Job) -> None:
    """In the place of the one before, whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    try:
        fresh.write_text(job.model_dump_json(), encoding="ascii")
        fresh.replace(path)
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror}")


def _unapproved(client: WalletClient, file: UUID) -> set[str]:
    return {line.line_id for line in client.bulk_lines(file) if line.refusal == WalletRefusal.APPROVAL_NEEDED.value}


def _register(client: WalletClient, job: _Job, payroll: _Payroll, *, again: bool) -> BulkFileView:
    try:
        return client.create_bulk_file(
            file=job.file,
            wallet=job.wallet,
            content_sha256=payroll.content_sha256,
            lines=payroll.lines,
            total_minor=payroll.total_minor,
            again=again,
        )
    except ProblemResponse as error:
        if error.refusal == WalletRefusal.BULK_FILE_REPEATED.value:
            payroll.path.with_name(payroll.path.name + ".job").unlink(missing_ok=True)
            fail(f"{error.detail}. If it is meant, pass --again")
        raise


def _aliases(checked: BulkCheckView, payroll: _Payroll) -> dict[str, AccountNumber]:
    """Alias -> account as the service has resolved it. Names were shown with them."""
    by_number = {
        line.number: line.account for line in checked.lines if line.account is not None and line.payee_name is not None
    }
    good = (line for line in payroll.read() if isinstance(line, PayrollLine))
    return {line.payee: by_number[line.number] for line in good if line.number in by_number}


def _lost(payroll: _Payroll, aliases: dict[str, AccountNumber]) -> list[int]:
    """Lines whose payee is neither an account nor an alias that leads to one: nothing could be signed."""

    def is_account(payee: str) -> bool:
        try:
            ids.parse_account(payee)
        except ValueError:
            return False
        return True

    lines = (line for line in payroll.read() if isinstance(line, PayrollLine))
    return [line.number for line in lines if line.payee not in aliases and not is_account(line.payee)]


def _follow(client: WalletClient, file: UUID, progress: Progress, task: TaskID) -> BulkFileView:
    while True:
        view = client.get_bulk_file(file)
        progress.update(task, completed=(view.booked or 0) + (view.refused or 0))
        if view.state is not BulkFileState.RUNNING:
            return view
        time.sleep(_POLL_SECONDS)


def _may_be_renewed(line: BulkLineView) -> bool:
    return line.state is BulkLineState.REFUSED and (bool(line.transient) or line.refusal in _SIGNED_AGAIN)


def _progress(*, is_quiet: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), disable=is_quiet)


# --- output ----------------------------------------------------------------------------------------------------------


def _show_check(checked: BulkCheckView, payroll: _Payroll, *, as_json: bool) -> None:
    if as_json:
        typer.echo(checked.model_dump_json())
        return
    payees = {line.number: line.payee for line in payroll.read() if isinstance(line, PayrollLine)}
    for line in checked.lines:
        if line.payee_name is not None and line.account is not None:
            payee = payees.get(line.number, "")
            account = ids.show_account(line.account)
            typer.echo(f"line {line.number} {line.line_id}: {payee} is {line.payee_name}, {account}", err=True)
    refused = [line for line in checked.lines if line.refusal is not None]
    for line in refused[:_SHOWN_MAX]:
        typer.echo(f"line {line.number} {line.line_id}: {line.refusal} {line.detail}", err=True)
    if len(refused) > _SHOWN_MAX:
        typer.echo(f"... and {len(refused) - _SHOWN_MAX} more", err=True)
    currency = payroll.currency
    typer.echo(
        f"{len(checked.lines)} lines, {currency} {format_minor(checked.total_minor, currency)};"
        f" payable now {checked.payable}, {currency} {format_minor(checked.payable_minor, currency)};"
        f" available {currency} {format_minor(checked.available_minor, currency)}",
        err=True,
    )


def _write_result(path: Path, client: WalletClient, file: UUID, payroll: _Payroll) -> None:
    """The payer's own lines with what became of each, in one pass over both."""

    def results() -> Iterator[LineResult]:
        outcomes = client.bulk_lines(file)
        for line, outcome in zip(payroll.read(), outcomes, strict=True):
            if isinstance(line, BadLine) or line.line_id != outcome.line_id:
                fail(f"the service's lines are not those of {payroll.path}")
            yield LineResult(
                line_id=line.line_id,
                payee=line.payee,
                amount_minor=line.amount_minor,
                description=line.description,
                state=outcome.state.value,
                refusal=outcome.refusal or "",
                detail=outcome.detail or "",
                payment=ids.show("trf", outcome.payment),
                booked_at=outcome.booked_at,
            )

    try:
        with path.open("w", encoding="utf-8", newline="") as target:
            if path.suffix == ".json":
                separator = "[\n"
                for item in results():
                    target.write(separator + json.dumps(_json_of(item), ensure_ascii=False))
                    separator = ",\n"
                target.write("\n]\n")
            else:
                target.writelines(result_lines(results(), payroll.currency))
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror}")


def _json_of(item: LineResult) -> dict[str, Any]:
    return {
        "line_id": item.line_id,
        "payee": item.payee,
        "amount_minor": str(item.amount_minor),
        "description": item.description,
        "state": item.state,
        "refusal": item.refusal or None,
        "detail": item.detail or None,
        "payment": item.payment,
        "booked_at": item.booked_at.isoformat() if item.booked_at is not None else None,
    }


def _show_end(view: BulkFileView, target: Path, *, as_json: bool) -> None:
    if as_json:
        typer.echo(view.model_dump_json())
        return
    currency = Currency.of(view.currency)
    typer.echo(
        f"{view.booked} booked, {currency} {format_minor(view.booked_minor or 0, currency)};"
        f" {view.refused} refused; results in {target}; {ids.show('blk', view.file)}"
    )
