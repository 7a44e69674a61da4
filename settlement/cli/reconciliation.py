"""`jiaozi-settlement recon ...`, `evidence ...`, `control`, `report`: reconciliation from a terminal."""

from __future__ import annotations

import json
import re
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.table import Table

from kernel import ids, strict_json
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import KeyRefused, PrivateKey, PublicKey
from kernel.errors import ProblemError
from kernel.money import Currency, format_minor
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
from settlement.client import SettlementClient
from settlement.contract.reconciliation import BreakDetailView, BreakView, ReconciliationView
from settlement.domain.reconciliation.lifecycle import DecisionDocument, DecisionKind, Repair, RepairKind

app = typer.Typer(
    no_args_is_help=True,
    help="Compare the bridge's record with a counterparty's statement, and work on the breaks. "
    "Officers sign their decisions with a key of their own (--officer-key); a repair takes two of them.",
)
evidence_app = typer.Typer(no_args_is_help=True, help="Evidence packs: fetch one, verify one offline.")

BreakId = Annotated[str, typer.Argument(help="Break, as brk_...")]
RunId = Annotated[str, typer.Argument(help="Reconciliation, as rec_...")]
OfficerKey = Annotated[
    Path,
    typer.Option(
        "--officer-key", envvar="JIAOZI_OFFICER_KEY", help="The officer's private key (PEM): signs the decision."
    ),
]
Reason = Annotated[
    str, typer.Option("--reason", "-r", help="Why, for whoever reads the history: 10 characters or more.")
]
CounterpartyOption = Annotated[str | None, typer.Option(help="Who sends the statements; unset = the participant.")]
_FORMATS = {".xml": "camt.053", ".csv": "csv", ".parquet": "parquet", ".zip": "camt.053-pages"}
_FAILURES = (ProblemResponse, ServiceUnreachable, KeyRefused, OSError, ValueError)


# --- runs


@app.command()
def run(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="The counterparty's file: .xml (camt.052, .053, .054), .csv or .parquet; several .xml "
            "are the pages of one statement.",
            exists=True,
        ),
    ],
    participant: Participant,
    currency: CurrencyOption,
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
    counterparty: CounterpartyOption = None,
    batch: Annotated[str | None, typer.Option(help="Only this batch, as bat_...; unset = the period.")] = None,
    since: Annotated[datetime | None, typer.Option("--from", help="Booked from (UTC).")] = None,
    until: Annotated[datetime | None, typer.Option("--to", help="Booked before (UTC).")] = None,
    ours: Annotated[Path | None, typer.Option(help="Our own file instead of the bridge's record.", exists=True)] = None,
    mirror: Annotated[bool, typer.Option(help="Their own account: their debit is our credit.")] = False,
    rules: Annotated[Path | None, typer.Option(help="A JSON file of tolerances.", exists=True)] = None,
    account: Annotated[str | None, typer.Option(help="Which of several accounts in the file, as it names it.")] = None,
    as_json: Json = False,
) -> None:
    """Compare a counterparty's file with the bridge's record. Exit code 1 if there are breaks."""
    other = counterparty or participant
    with connect(url, client_key) as client:
        try:
            content, known = _content(files)
            theirs = client.add_source(
                content, source_format=known, participant=participant, counterparty=other, account=account
            )
            own = None
            if ours is not None:
                own = client.add_source(
                    ours.read_bytes(), source_format=_format(ours), participant=participant, counterparty=other
                ).source
            view = client.run_reconciliation(
                participant=participant,
                counterparty=other,
                currency=currency,
                their_source=theirs.source,
                our_source=own,
                batch=None if batch is None else parse_ref("bat", batch),
                booked_from=_utc(since),
                booked_to=_utc(until),
                view="mirror" if mirror else "same-account",
                rules=None if rules is None else _json_of(rules),
            )
        except _FAILURES as error:
            fail(error)
    if as_json:
        _print_json(view)
    else:
        _print_run(view)
        if theirs.is_schema_validated is False:
            console.print(f"Their file is a {theirs.message}: read without a schema, not schema-validated.")
    if view.break_count:
        raise typer.Exit(1)


@app.command(name="runs")
def runs_command(
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
    participant: Annotated[str | None, typer.Option(help="Of whom.")] = None,
    currency: Annotated[str | None, typer.Option(help="In which currency.")] = None,
    as_json: Json = False,
) -> None:
    """Reconciliations, newest first."""
    with connect(url, client_key) as client:
        try:
            found = list(client.reconciliations(participant=participant, currency=currency))
        except _FAILURES as error:
            fail(error)
    if as_json:
        _print_json(found)
        return
    table = Table("reconciliation", "participant", "against", "as of", "matched", "breaks", title="Reconciliations")
    for item in found:
        shown = ids.show("rec", item.reconciliation)
        against = f"{item.counterparty} {item.currency}"
        table.add_row(shown, item.participant, against, str(item.as_of), f"{item.matched:,}", f"{item.break_count:,}")
    console.print(table)


@app.command()
def breaks(
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
    reconciliation: Annotated[str | None, typer.Option("--run", help="Found by this reconciliation, rec_...")] = None,
    participant: Annotated[str | None, typer.Option(help="Of whom.")] = None,
    currency: Annotated[str | None, typer.Option(help="In which currency.")] = None,
    state: Annotated[list[str] | None, typer.Option(help="open, assigned, proposed, approved, closed.")] = None,
    kind: Annotated[list[str] | None, typer.Option("--type", help="E.g. missing-there, amount.")] = None,
    bucket: Annotated[str | None, typer.Option(help="Age in days: 0-1, 2-5, 6-30, >30.")] = None,
    assignee: Annotated[str | None, typer.Option(help="Whose work.")] = None,
    as_json: Json = False,
) -> None:
    """Breaks; without --state those that are not closed."""
    states = state or ["open", "assigned", "proposed", "approved"]
    with connect(url, client_key) as client:
        try:
            found = list(
                client.breaks(
                    reconciliation=None if reconciliation is None else parse_ref("rec", reconciliation),
                    participant=participant,
                    currency=currency,
                    states=states,
                    types=kind or (),
                    bucket=bucket,
                    assignee=assignee,
                )
            )
        except _FAILURES as error:
            fail(error)
    if as_json:
        _print_json(found)
    else:
        console.print(breaks_table(found) if found else "No such breaks.")


@app.command()
def show(found: BreakId, client_key: ClientKey, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """A break: what differs, where it stands, its repairs."""
    with connect(url, client_key) as client:
        try:
            view = client.break_detail(parse_ref("brk", found))
        except _FAILURES as error:
            fail(error)
    _print_detail(view, as_json=as_json)


@app.command()
def history(found: BreakId, client_key: ClientKey, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Every decision on a break, oldest first."""
    with connect(url, client_key) as client:
        try:
            view = client.break_detail(parse_ref("brk", found))
        except _FAILURES as error:
            fail(error)
    if as_json:
        _print_json(view.history)
    else:
        console.print(_history_table(view))


# --- officers' decisions


@app.command()
def assign(
    found: BreakId,
    to: Annotated[str, typer.Option("--to", help="Who works on it.")],
    client_key: ClientKey,
    officer_key: OfficerKey,
    url: Url = DEFAULT_URL,
) -> None:
    """Give a break to somebody."""
    _decide(found, DecisionKind.ASSIGN, client_key, officer_key, url, assignee=to)


@app.command()
def release(found: BreakId, client_key: ClientKey, officer_key: OfficerKey, url: Url = DEFAULT_URL) -> None:
    """Take a break from whoever has it."""
    _decide(found, DecisionKind.RELEASE, client_key, officer_key, url)


@app.command()
def explain(
    found: BreakId, reason: Reason, client_key: ClientKey, officer_key: OfficerKey, url: Url = DEFAULT_URL
) -> None:
    """Close a break with an explanation, without booking anything."""
    _decide(found, DecisionKind.EXPLAIN, client_key, officer_key, url, reason=reason)


@app.command()
def propose(
    found: BreakId,
    reason: Reason,
    payer: Annotated[str, typer.Option(help="Who owes or pays.")],
    payee: Annotated[str, typer.Option(help="Who is owed or paid.")],
    amount_minor: Annotated[int, typer.Option(help="In minor units.", min=1)],
    currency: CurrencyOption,
    client_key: ClientKey,
    officer_key: OfficerKey,
    url: Url = DEFAULT_URL,
    instruction: Annotated[bool, typer.Option(help="Pay it through the engine; otherwise a claim is booked.")] = False,
) -> None:
    """Propose an adjustment. Another officer approves it; only then is anything booked."""
    try:
        kind = RepairKind.INSTRUCTION if instruction else RepairKind.CLAIM
        parties = ids.parse_participant(payer), ids.parse_participant(payee)
    except ValueError as error:
        fail(error)
    repair = Repair(kind, parties[0], parties[1], amount_minor, currency)
    _decide(found, DecisionKind.PROPOSE, client_key, officer_key, url, reason=reason, repair=repair)


@app.command()
def approve(found: BreakId, client_key: ClientKey, officer_key: OfficerKey, url: Url = DEFAULT_URL) -> None:
    """Approve the proposed adjustment of a break, as another officer than its maker."""
    _decide(found, DecisionKind.APPROVE, client_key, officer_key, url)


@app.command()
def reject(
    found: BreakId, reason: Reason, client_key: ClientKey, officer_key: OfficerKey, url: Url = DEFAULT_URL
) -> None:
    """Reject the proposed adjustment; the break is open again."""
    _decide(found, DecisionKind.REJECT, client_key, officer_key, url, reason=reason)


@app.command()
def reopen(
    found: BreakId, reason: Reason, client_key: ClientKey, officer_key: OfficerKey, url: Url = DEFAULT_URL
) -> None:
    """Open a closed break again. (A booked adjustment stands: book another one.)"""
    _decide(found, DecisionKind.REOPEN, client_key, officer_key, url, reason=reason)


@app.command()
def rematch(
    found: BreakId,
    reason: Reason,
    client_key: ClientKey,
    officer_key: OfficerKey,
    url: Url = DEFAULT_URL,
    other: Annotated[list[str] | None, typer.Option("--with", help="Further breaks of the same payment.")] = None,
) -> None:
    """Match the lines of breaks by hand; both sides must add up to the same."""
    breaks_ = tuple(parse_ref("brk", item) for item in other or ())
    _decide(found, DecisionKind.REMATCH, client_key, officer_key, url, reason=reason, breaks=breaks_)


@app.command()
def unmatch(
    reconciliation: RunId,
    ours: Annotated[int, typer.Argument(help="Position of our first line, from 0 (see `matches`).", min=0)],
    theirs: Annotated[int, typer.Argument(help="Position of their first line.", min=0)],
    reason: Reason,
    client_key: ClientKey,
    officer_key: OfficerKey,
    url: Url = DEFAULT_URL,
) -> None:
    """Take a match back: its lines become an open break."""
    with connect(url, client_key) as client:
        try:
            document = DecisionDocument(
                ids.new_uuid7(),
                DecisionKind.UNMATCH,
                parse_ref("rec", reconciliation),
                0,
                reason,
                positions=(ours, theirs),
            )
            view = client.undo_match(document, officer_key=PrivateKey.load(officer_key))
        except _FAILURES as error:
            fail(error)
    _print_detail(view, as_json=False)


# --- mappings


@app.command()
def mapping(
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
    file: Annotated[Path | None, typer.Option(help="A JSON file: keep it as the next version.", exists=True)] = None,
    participant: Annotated[str | None, typer.Option(help="Whose mapping.")] = None,
    counterparty: Annotated[str | None, typer.Option(help="Whose tables.")] = None,
    as_json: Json = False,
) -> None:
    """Show how counterparties' tables are read, or keep a new version (--file)."""
    with connect(url, client_key) as client:
        try:
            if file is not None:
                if participant is None or counterparty is None:
                    raise ValueError("name --participant and --counterparty with --file")
                found = [client.keep_mapping(participant, counterparty, _json_of(file))]
            else:
                found = client.mappings(participant)
        except _FAILURES as error:
            fail(error)
    if as_json:
        _print_json(found)
        return
    table = Table("participant", "counterparty", "version", "columns", "sign", "dates", title="Mappings")
    for item in found:
        columns = ", ".join(f"{what}={name}" for what, name in item.mapping.columns.items())
        table.add_row(
            item.participant,
            item.counterparty,
            str(item.version),
            columns,
            item.mapping.sign.value,
            item.mapping.date_format.value,
        )
    console.print(table)


# --- evidence, control, reports


@evidence_app.command(name="make")
def evidence_make(
    reconciliation: RunId,
    client_key: ClientKey,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the pack (.zip).")],
    url: Url = DEFAULT_URL,
) -> None:
    """Fetch the evidence pack of a reconciliation."""
    with connect(url, client_key) as client:
        try:
            content = client.evidence(parse_ref("rec", reconciliation))
            output.write_bytes(content)
        except _FAILURES as error:
            fail(error)
    console.print(f"{output}: {len(content):,} bytes; check it with `jiaozi-settlement evidence verify {output}`")


@evidence_app.command(name="verify")
def evidence_verify(
    file: Annotated[Path, typer.Argument(help="The pack (.zip).", exists=True)],
    bridge_key: Annotated[Path, typer.Option(help="The bridge's public key, a JWK file.", exists=True)],
    officers: Annotated[
        Path | None,
        typer.Option(
            help='The officers\' keys: [{"officer", "key": JWK}]; unset = as the bridge states them.', exists=True
        ),
    ] = None,
    log_key: Annotated[
        list[str] | None, typer.Option(help="LEDGER=VKEY of a ledger's log; unset = as the bridge states it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify a pack offline: signature, digests, the reconciliation run again, decisions, receipts. Exit code 1 if
    anything is wrong."""
    from kernel.transparency.notes import NoteRefused, VerifierKey
    from settlement.evidence.verify import verify_pack

    try:
        officer_keys = None
        if officers is not None:
            listed: Any = strict_json.loads(officers.read_bytes())
            officer_keys = {str(item["officer"]): PublicKey.from_jwk(item["key"]) for item in listed}
        log_keys = {}
        for item in log_key or ():
            ledger, _, text = item.partition("=")
            log_keys[ledger] = VerifierKey.parse(text)
        found = verify_pack(
            file.read_bytes(),
            bridge_key=PublicKey.from_jwk(_json_of(bridge_key)),
            officer_keys=officer_keys,
            log_keys=log_keys or None,
        )
    except (OSError, ValueError, KeyError, TypeError, NoteRefused, ProblemError) as error:
        fail(error)
    if as_json:
        stated = found.trusted_from_manifest
        print_json = {"is_good": found.is_good, "findings": found.findings, "proved": found.proved, "stated": stated}
        typer.echo(json.dumps(print_json | {"notes": found.notes}))
    else:
        for text in found.findings:
            errors.print(f"WRONG: {text}", markup=False)
        proved = ", ".join(f"{count:,} {what}" for what, count in found.proved.items())
        console.print(f"{'Good' if found.is_good else 'NOT good'}: {proved or 'nothing'} checked.", markup=False)
        if found.trusted_from_manifest:
            console.print(f"On the bridge's word: the keys of {', '.join(found.trusted_from_manifest)}.", markup=False)
        for text in found.notes:
            console.print(f"Note: {text}", markup=False)
    if not found.is_good:
        raise typer.Exit(1)


def control(
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
    now: Annotated[bool, typer.Option(help="Run a round first.")] = False,
    as_json: Json = False,
) -> None:
    """The continuous control: nostro against vostro on every ledger. Exit code 1 if an alarm is open."""
    with connect(url, client_key) as client:
        try:
            view = client.run_control() if now else client.control()
        except _FAILURES as error:
            fail(error)
    if as_json:
        _print_json(view)
    else:
        table = Table("ledger", "account", "participant", "bridge", "island", "legs", title="Nostro and vostro")
        for item in view.balances:
            currency = Currency.of(item.currency)
            amounts = [format_minor(int(text), currency) for text in (item.bridge_minor, item.island_minor)]
            table.add_row(item.ledger, item.account, item.participant, *amounts, f"{item.legs:,}")
        console.print(table)
        checked = f"{view.settlements_checked:,} settlements, {view.legs_checked:,} legs checked"
        console.print(f"{checked}; {'no alarm' if view.is_good else f'{len(view.alarms)} ALARMS'}")
        if view.alarms:
            console.print(breaks_table(view.alarms))
    if not view.is_good:
        raise typer.Exit(1)


def report(
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
    batch: Annotated[str | None, typer.Option(help="Of this batch, bat_...")] = None,
    participant: Annotated[str | None, typer.Option(help="Of whom.")] = None,
    currency: Annotated[str | None, typer.Option(help="In which currency.")] = None,
    since: Annotated[datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="Value date from.")] = None,
    until: Annotated[datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="Value date to.")] = None,
    as_json: Json = False,
) -> None:
    """What was settled, by batch, participant, currency and value date."""
    with connect(url, client_key) as client:
        try:
            found = list(
                client.settlement_report(
                    batch=None if batch is None else parse_ref("bat", batch),
                    participant=participant,
                    currency=currency,
                    value_date_from=_day(since),
                    value_date_to=_day(until),
                )
            )
        except _FAILURES as error:
            fail(error)
    if as_json:
        _print_json(found)
        return
    table = Table("value date", "batch", "participant", "", "paid", "received", "net", title="Settled")
    for item in found:
        known = Currency.of(item.currency)
        amounts = [format_minor(int(text), known) for text in (item.paid_minor, item.received_minor, item.net_minor)]
        table.add_row(str(item.value_date), ids.show("bat", item.batch), item.participant, item.currency, *amounts)
    console.print(table)


def register(main: typer.Typer) -> None:
    """Everything of this area under `jiaozi-settlement`."""
    main.add_typer(app, name="recon")
    main.add_typer(evidence_app, name="evidence")
    main.command(name="control")(control)
    main.command(name="report")(report)


# --- helpers


def _decide(text: str, kind: DecisionKind, client_key: Path, officer_key: Path, url: str, **fields: Any) -> None:
    """Look at the break, sign what follows its last event, send it."""
    try:
        key = PrivateKey.load(officer_key)
    except KeyRefused as error:
        fail(error)
    with SettlementClient(url, signer=_signer(client_key)) as client:
        try:
            seen = client.break_detail(parse_ref("brk", text))
            if kind in (DecisionKind.APPROVE, DecisionKind.REJECT):
                proposed = [event.decision for event in seen.history if event.kind == "proposed"]
                fields["proposal"] = proposed[-1] if proposed else None
            document = DecisionDocument(ids.new_uuid7(), kind, seen.found.id, seen.found.sequence, **fields)
            view = client.decide(document, officer_key=key)
        except _FAILURES as error:
            fail(error)
    _print_detail(view, as_json=False)


def _signer(path: Path) -> RequestSigner:
    try:
        return RequestSigner(PrivateKey.load(path))
    except KeyRefused as error:
        fail(error)


def _format(path: Path) -> str:
    known = _FORMATS.get(path.suffix.lower())
    if known is None:
        raise ValueError(f"{path}: a source is .xml (camt.052, .053 or .054), .csv, .parquet or .zip (pages)")
    if known != "camt.053":
        return known
    with path.open("rb") as file:
        named = re.search(rb"camt\.05[234](?=\.001\.)", file.read(64 * 1024))
    return known if named is None else named[0].decode()


def _content(files: list[Path]) -> tuple[bytes, str]:
    """One file as it is; several as the pages of one statement."""
    if len(files) == 1:
        return files[0].read_bytes(), _format(files[0])
    if any(_format(path) != "camt.053" for path in files):
        raise ValueError("several files are the pages of one statement: each is an .xml of camt.053")
    from settlement.sources import zip_of_pages  # here: it loads what reads tables, which takes its time

    return zip_of_pages([path.read_bytes() for path in files]), "camt.053-pages"


def _json_of(path: Path) -> Any:
    try:
        return strict_json.loads(path.read_bytes())
    except ProblemError as error:
        raise ValueError(f"{path}: {error}") from None


def _utc(moment: datetime | None) -> datetime | None:
    from datetime import UTC

    return None if moment is None else moment.replace(tzinfo=UTC)


def _day(moment: datetime | None) -> date | None:
    return None if moment is None else moment.date()


def _print_json(found: BaseModel | list[Any]) -> None:
    items = (
        found.model_dump(mode="json") if isinstance(found, BaseModel) else [x.model_dump(mode="json") for x in found]
    )
    typer.echo(json.dumps(items))


def _print_run(view: ReconciliationView) -> None:
    console.print(
        f"{ids.show('rec', view.reconciliation)}: {view.matched:,} matched of {view.lines_ours:,} of our lines and "
        f"{view.lines_theirs:,} of theirs; {view.break_count:,} breaks; {view.closed_count:,} older ones closed"
    )
    if view.breaks:
        console.print(breaks_table(view.breaks))


def breaks_table(found: list[BreakView]) -> Table:
    """Breaks, amounts in major units."""
    table = Table("break", "type", "severity", "age", "state", "ours", "theirs", "what", title="Breaks")
    for column in (5, 6):
        table.columns[column].justify = "right"
    for item in found:
        currency = Currency.of(item.currency)
        amounts = [
            "" if amount is None else format_minor(amount, currency)
            for amount in (item.our_amount_minor, item.their_amount_minor)
        ]
        state = item.state.value if item.assignee is None else f"{item.state.value} {item.assignee}"
        age = f"{item.age_days} d"
        table.add_row(
            ids.show("brk", item.id), item.type.value, item.severity.value, age, state, *amounts, item.sentence
        )
    return table


def _history_table(view: BreakDetailView) -> Table:
    table = Table("", "what", "who", "when", "why", title=f"History of {ids.show('brk', view.found.id)}")
    for event in view.history:
        why = event.reason if event.assignee is None else f"to {event.assignee} {event.reason}"
        table.add_row(str(event.sequence), event.kind.value, event.actor, event.at.isoformat(timespec="seconds"), why)
    return table


def _print_detail(view: BreakDetailView, *, as_json: bool) -> None:
    if as_json:
        _print_json(view)
        return
    console.print(breaks_table([view.found]))
    console.print(_history_table(view))
    for repair in view.repairs:
        amount = format_minor(repair.amount_minor, Currency.of(repair.currency))
        booked = "booked" if repair.booked_at else "approved" if repair.approved_at else "proposed"
        console.print(
            f"{repair.kind.value}: {repair.payer} to {repair.payee}, {repair.currency} {amount}: {booked}, "
            f"by {repair.maker}{'' if repair.checker is None else ' and ' + repair.checker}"
        )
