"""`jiaozi-wallet privacy`: erasure and lawful access for compliance officers; `verify-unmask` for everybody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from kernel import ids
from kernel.transparency.notes import NoteRefused, VerifierKey
from ledger.contract import show_moment
from wallet.cli.options import DEFAULT_URL, ClientKey, Json, Url, connect, fail, load_key, parse_id
from wallet.client import WalletClient
from wallet.contract.privacy import (
    ErasureReason,
    EvidenceRefused,
    UnmaskEvidence,
    UnmaskField,
    UnmaskView,
    verify_growth,
    verify_unmask,
)

app = typer.Typer(
    no_args_is_help=True,
    help="Erase a customer's data; unmask by order of one compliance officer and approval of two others. Each officer "
    "uses a key of his own (--client-key). Every unmask leaves an entry in the institution's privacy log.",
)
EVIDENCE_BYTES_MAX = 1024 * 1024
RequestId = Annotated[str, typer.Argument(metavar="REQUEST", help="The unmask order, as unm_...")]
LogKey = Annotated[
    str,
    typer.Option(
        "--log-key",
        envvar="JIAOZI_PRIVACY_LOG_KEY",
        help="The privacy log's verifier key, name+id+key; from `privacy log-key` once, and kept since.",
    ),
]


@app.command("order")
def order(
    client_key: ClientKey,
    case: Annotated[str, typer.Option("--case", help="Case number.")],
    legal_basis: Annotated[str, typer.Option("--legal-basis", help="The order or law it rests on.")],
    field: Annotated[list[UnmaskField], typer.Option("--field", help="What is asked for; repeat the option.")],
    wallet: Annotated[str, typer.Option(help="Whose data: a wallet, as wlt_...")] = "",
    account: Annotated[str, typer.Option(help="Or an account, as acc_...")] = "",
    request: Annotated[str, typer.Option(help="The order's id, unm_...: after an unknown outcome give the same.")] = "",
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Give an order: sign whose data, which of it, and on what ground. It stands for a day."""
    if bool(wallet) == bool(account):
        fail("give --wallet or --account, one of them")
    try:
        number = ids.parse_account(account) if account else None
    except ValueError as error:
        fail(f"{account}: {error}")
    with connect(url, client_key) as client:
        view = client.order_unmask(
            institution=client.institution().participant,
            case_number=case,
            legal_basis=legal_basis,
            fields=field,
            key=load_key(client_key),
            wallet=parse_id("wlt", wallet) if wallet else None,
            account=number,
            request=parse_id("unm", request) if request else None,
        )
    _print(view, as_json)


@app.command("show")
def show(request: RequestId, client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Show an order, who has approved it, and what became of it. Never what was shown."""
    with connect(url, client_key) as client:
        _print(client.get_unmask_request(parse_id("unm", request)), as_json)


@app.command("list")
def list_orders(client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """List every order, the oldest first."""
    with connect(url, client_key) as client:
        found = list(client.unmask_requests())
    if as_json:
        typer.echo("[" + ",".join(item.model_dump_json() for item in found) + "]")
        return
    for item in found:
        _print(item, as_json=False)


@app.command("approve")
def approve(
    request: RequestId,
    client_key: ClientKey,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask: the order was read.")] = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Read another officer's order and approve it with one's own signature."""
    with connect(url, client_key) as client:
        view = client.get_unmask_request(parse_id("unm", request))
        if not yes:
            _print(view, as_json=False)
            typer.confirm("Approve exactly this order?", abort=True)
        approved = client.approve_unmask(view, institution=client.institution().participant, key=load_key(client_key))
    _print(approved, as_json)


@app.command("disclose")
def disclose(request: RequestId, client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Have one's own approved order answered. It is answered once: keep what is printed."""
    with connect(url, client_key) as client:
        done = client.disclose(parse_id("unm", request))
    if as_json:
        typer.echo(done.model_dump_json())
        return
    for name, value in done.values.items():
        typer.echo(f"{name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
    typer.echo(f"entry {done.entry_index} of the privacy log", err=True)


@app.command("erase")
def erase(
    customer: Annotated[str, typer.Argument(help="Customer, as cus_...")],
    client_key: ClientKey,
    reason: Annotated[ErasureReason, typer.Option(help="Why.")],
    erasure: Annotated[str, typer.Option(help="The id, ers_...: after an unknown outcome give the same.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Destroy the key of a customer's personal data. All wallets must be closed. There is no way back."""
    customer_id, erasure_id = parse_id("cus", customer), parse_id("ers", erasure) if erasure else ids.new_uuid7()
    typer.echo(f"erasure {ids.show('ers', erasure_id)}", err=True)
    if not yes:
        typer.confirm("There is no way back. Erase?", abort=True)
    with connect(url, client_key) as client:
        view = client.erase_customer(customer_id, reason=reason, erasure=erasure_id)
    typer.echo(view.model_dump_json() if as_json else f"erased {customer} at {show_moment(view.erased_at)}")


@app.command("evidence")
def evidence(
    client_key: ClientKey,
    out: Annotated[Path, typer.Option(help="Directory for one file an unmask: unmask-<index>.json.")],
    wallet: Annotated[str, typer.Option(help="Of this wallet's holder alone, wlt_...")] = "",
    url: Url = DEFAULT_URL,
) -> None:
    """For an auditor: fetch each unmask's entry with salt and proof, to be checked by `verify-unmask`."""
    with connect(url, client_key) as client:
        found = list(client.unmask_evidence(parse_id("wlt", wallet) if wallet else None))
    for item in found:
        path = out / f"unmask-{item.index}.json"
        try:
            path.write_text(item.model_dump_json(exclude_none=True) + "\n")
        except OSError as error:
            fail(f"cannot write {path}: {error.strerror}")
        typer.echo(str(path))
    typer.echo(f"{len(found)} unmasks", err=True)


@app.command("log-key")
def log_key_of(url: Url = DEFAULT_URL) -> None:
    """Print the privacy log's verifier key. Have it confirmed by somebody else, and keep it."""
    with anybody(url) as client:
        typer.echo(client.privacy_log_key())


@app.command("log-entries")
def log_entries(
    start: Annotated[int, typer.Option(min=0, help="The first entry's number.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="So many.")] = 1000,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List the log's entries, which are commitments (SHA-256) alone: what they commit to is in the evidence files."""
    with anybody(url) as client:
        view = client.privacy_log_entries(start=start, limit=limit)
    if as_json:
        typer.echo(view.model_dump_json())
        return
    for number, commitment in enumerate(view.model_dump(mode="json")["commitments"], start=view.start):
        typer.echo(f"{number:>8}  {commitment}")
    typer.echo(f"{view.size} entries in all", err=True)


@app.command("watch")
def watch(
    seen: Annotated[Path, typer.Option(help="File with the checkpoint seen last; made at the first run.")],
    log_key: LogKey,
    url: Url = DEFAULT_URL,
) -> None:
    """Check that the privacy log only grew since the checkpoint in the file, and keep the new one. Exit 1 if not."""
    key = _key(log_key)
    with anybody(url) as client:
        new = client.privacy_log_checkpoint()
        try:
            old = seen.read_text() if seen.exists() else new
            old_size, size = verify_growth(old, old, None, log_key=key), verify_growth(new, new, None, log_key=key)
            proof = client.privacy_log_proof(old_size=old_size, size=size) if 0 < old_size < size else None
            verify_growth(old, new, proof, log_key=key)
            seen.write_text(new)
        except EvidenceRefused as error:
            fail(f"{error}; keep {seen}: it proves what the log was")
        except OSError as error:
            fail(f"{seen}: {error.strerror}")
        except UnicodeError:
            fail(f"{seen} is no checkpoint")
    typer.echo(f"the log only grew: {old_size} -> {size} entries")


def verify_unmask_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Evidence, as `privacy evidence` writes it.")],
    log_key: LogKey,
    as_json: Json = False,
) -> None:
    """Check offline that an unmask was ordered by one officer and approved by two others, and stands in the log.

    Needs the file and the log's verifier key, nothing else. Exit 1 if the file proves nothing.
    """
    key = _key(log_key)
    try:
        with file.open("rb") as stream:
            data = stream.read(EVIDENCE_BYTES_MAX + 1)
        if len(data) > EVIDENCE_BYTES_MAX:
            fail(f"{file} is longer than {EVIDENCE_BYTES_MAX} bytes")
        found = verify_unmask(UnmaskEvidence.model_validate_json(data), log_key=key)
    except OSError as error:
        fail(f"{file}: {error.strerror}")
    except ValidationError as error:
        fail(f"{file} proves nothing: it is no evidence of an unmask: {error.errors()[0]['msg']}")
    except EvidenceRefused as error:
        fail(f"{file} proves nothing: {error}")
    entry = found.entry
    if as_json:
        shown = entry.model_dump(mode="json", exclude_none=True)
        typer.echo(json.dumps({"index": found.index, "size": found.size, "officers": found.officers, "entry": shown}))
        return
    typer.echo(f"entry {found.index} of {found.size} in the privacy log of {entry.institution}")
    typer.echo(f"case {entry.case_number}, on {entry.legal_basis}")
    typer.echo(f"of {entry.subject} at {show_moment(entry.disclosed_at)}: {', '.join(entry.fields)}")
    names = (entry.order.officer, *(item.officer for item in entry.approvals))
    for role, name, thumbprint in zip(
        ("ordered by ", "approved by", "approved by"), names, found.officers, strict=True
    ):
        typer.echo(f"{role} {name}, key {thumbprint}")


def anybody(url: str) -> WalletClient:
    """The log needs no registered client."""
    return WalletClient(url)


def _key(text: str) -> VerifierKey:
    try:
        return VerifierKey.parse(text.strip())
    except NoteRefused as error:
        fail(f"--log-key: {error}; give what `jiaozi-wallet privacy log-key` prints")


def _print(view: UnmaskView, as_json: bool) -> None:
    if as_json:
        typer.echo(view.model_dump_json())
        return
    typer.echo(f"{ids.show('unm', view.request)}  {view.state.value}  until {show_moment(view.valid_until)}")
    typer.echo(f"  case {view.case_number}, on {view.legal_basis}")
    typer.echo(f"  of {view.subject}: {', '.join(view.fields)}")
    approved = ", ".join(item.officer for item in view.approvals) or "nobody yet"
    typer.echo(f"  ordered by {view.requested_by}, approved by {approved}")
