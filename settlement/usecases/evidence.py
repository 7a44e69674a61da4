"""Make the evidence pack of a reconciliation: all that it rests on and all decided since, signed by the bridge.

The pack is made anew at each request, from what is stored; two packs of one reconciliation differ only if decisions
were taken in between, or other receipts could be had.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from uuid import UUID

import sqlalchemy as sa

from kernel import ids
from kernel.crypto import jws
from kernel.crypto.keys import SigningKey
from kernel.database import Database
from kernel.errors import ProblemError
from settlement.domain.reconciliation import JOURNAL, View
from settlement.domain.reconciliation import session as sessions
from settlement.domain.refusals import SettlementRefusal as R
from settlement.domain.statements import transfer_id_of
from settlement.evidence import summary
from settlement.evidence.archive import write_archive
from settlement.evidence.verify import BREAKS_MAX, FORMAT, MANIFEST_TYPE
from settlement.islands.port import Island
from settlement.sources import is_validated, papers_of
from settlement.store import reconciliation as store
from settlement.store import tables as t
from settlement.store.reconciliation import BreakRow, RunRow, SourceRow
from settlement.usecases.breaks import Officers
from settlement.usecases.control import Control
from settlement.usecases.reconcile import read_kept, source_path

RECEIPTS_MAX = 50
"""Of lines in breaks first, then from the start of our file: each is a call to a ledger."""


@runtime_checkable
class Proving(Protocol):
    """An island that can prove what it booked."""

    def receipt(self, hold_id: UUID) -> bytes | None: ...

    def log_key(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Books:
    """What reconciliation needs beside the database."""

    officers: Officers
    control: Control
    key: SigningKey
    islands: Mapping[str, Island]


def make_evidence(run: RunRow, *, books: Books, database: Database, files_directory: Path) -> bytes:
    """The pack, a zip. Raises: ProblemError(source-not-found) if an input's file is gone."""
    with database.transaction(isolation="REPEATABLE READ") as connection:
        sources = {"ours": _source(connection, run.our_source), "theirs": _source(connection, run.their_source)}
        mappings = {side: _mapping(connection, source) for side, source in sources.items()}
        breaks = store.findings_of(connection, run.id, limit=BREAKS_MAX)
        described = [_describe(connection, row) for row in breaks]
        wanted = _legs_to_prove(connection, run, sources["ours"], breaks, database, files_directory)
    members: dict[str, bytes] = {}
    inputs: dict[str, Any] = {}
    for side, source in sources.items():
        path = source_path(files_directory, source.sha256)
        if not path.is_file():
            raise ProblemError(R.SOURCE_NOT_FOUND, "an input's file is gone: send it again")
        name = f"inputs/{side}.{_SUFFIX[source.format]}"
        members[name] = path.read_bytes()
        inputs[side] = {
            "file": name,
            "format": source.format,
            "mapping": mappings[side],
            "account": source.account,
            "counterparty": source.counterparty,
            "is_bridge_record": source.counterparty == JOURNAL,
            "message": source.message,
            "is_schema_validated": is_validated(source.message),
        }
    members["selection.json"] = _json(run.selection)
    outcome = _outcome(run, sources, database, files_directory)
    for pairs in outcome.pairs:
        members[f"result/pairs-{pairs.rule.value}.bin"] = sessions.pack_pairs(pairs.ours, pairs.theirs)
    members["result/matches.json"] = _json([sessions.match_document(item) for item in outcome.matches])
    members["result/findings.json"] = _json([sessions.break_document(item) for item in outcome.breaks])
    members["breaks.json"] = _json(described)
    receipts, logs = _receipts(wanted, books, members)
    manifest = _manifest(run, inputs, members, books, receipts, logs, len(described))
    tables = summary.tables_of(manifest, described)
    members["summary.html"] = summary.write_html(tables)
    members["summary.pdf"] = summary.write_pdf(tables)
    manifest = _manifest(run, inputs, members, books, receipts, logs, len(described))
    members["manifest.jws"] = jws.sign(jws.canonical_json(manifest), books.key, typ=MANIFEST_TYPE).encode("ascii")
    return write_archive(members)


_SUFFIX = {
    "camt.052": "xml",
    "camt.053": "xml",
    "camt.053-pages": "zip",
    "camt.054": "xml",
    "csv": "csv",
    "parquet": "parquet",
}


def _manifest(
    run: RunRow,
    inputs: Mapping[str, Any],
    members: Mapping[str, bytes],
    books: Books,
    receipts: Sequence[Mapping[str, str]],
    logs: Mapping[str, str],
    listed: int,
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "bridge": books.officers.bridge,
        "run": {
            "reconciliation": ids.show("rec", run.id),
            "batch": None if run.batch_id is None else ids.show("bat", run.batch_id),
            "participant": run.participant,
            "counterparty": run.counterparty,
            "currency": run.currency,
            "account": run.account,
            "view": run.view,
            "rules": run.rules,
            "as_of": run.as_of.isoformat(),
            "lines_ours": run.lines_ours,
            "lines_theirs": run.lines_theirs,
            "matched": run.matched,
            "finding_count": run.finding_count,
            "closed_count": run.closed_count,
            "result_sha256": run.result_sha256.hex(),
            "run_by": run.run_by,
            "created_at": run.created_at.isoformat(),
        },
        "breaks": {"found": run.finding_count, "listed": listed},
        "inputs": dict(inputs),
        "officers": [
            {"officer": officer.name, "key": key.to_jwk()}
            for officer, key in sorted(books.officers.keys.values(), key=lambda item: item[0].name)
        ],
        "logs": dict(logs),
        "receipts": [dict(item) for item in receipts],
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in sorted(members.items())
        },
    }


def _outcome(
    run: RunRow, sources: Mapping[str, SourceRow], database: Database, files_directory: Path
) -> sessions.Outcome:
    """The run again, from its inputs. What it gives must be what was stored."""
    ours, theirs = (
        read_kept(sources[side], database=database, files_directory=files_directory) for side in ("ours", "theirs")
    )
    if ours.lines is None or theirs.lines is None:
        raise ProblemError(R.SOURCE_NOT_FOUND, "an input cannot be read by its mapping any more")
    outcome = sessions.run_session(
        ours.lines,
        theirs.lines,
        selection=sessions.selection_of_json(run.selection),
        rules=sessions.rules_of_json(run.rules),
        view=View(run.view),
        as_of=run.as_of,
        papers=papers_of(theirs),
    )
    if outcome.digest != run.result_sha256:
        raise RuntimeError(f"{ids.show('rec', run.id)} does not follow from its inputs any more")
    return outcome


def _source(connection: sa.Connection, source: UUID) -> SourceRow:
    row = store.find_source(connection, source)
    if row is None:
        raise ProblemError(R.SOURCE_NOT_FOUND)
    return row


def _mapping(connection: sa.Connection, source: SourceRow) -> dict[str, Any] | None:
    if not source.mapping_version:
        return None
    row = store.find_mapping(connection, source.participant, source.counterparty, source.mapping_version)
    return None if row is None else row.content


def _describe(connection: sa.Connection, row: BreakRow) -> dict[str, Any]:
    """A break with its history and repairs."""
    return {
        "break": ids.show("brk", row.id),
        "type": row.type,
        "side": row.side,
        "state": row.state.value,
        "assignee": row.assignee,
        "our_references": row.our_references,
        "their_references": row.their_references,
        "our_amount_minor": None if row.our_amount_minor is None else str(row.our_amount_minor),
        "their_amount_minor": None if row.their_amount_minor is None else str(row.their_amount_minor),
        "gross": row.gross,
        "oldest": row.oldest.isoformat(),
        "sentence": row.sentence,
        "history": [
            {
                "sequence": event.sequence,
                "kind": event.kind.value,
                "actor": event.actor,
                "at": event.at.isoformat(),
                "reason": event.reason,
                "assignee": event.assignee,
                "decision": None if event.decision is None else ids.show("dec", event.decision),
                "reconciliation": None if event.run is None else ids.show("rec", event.run),
                "token": event.token,
            }
            for event in store.history(connection, row.id)
        ],
        "repairs": [
            {
                "proposal": ids.show("dec", repair.id),
                "kind": repair.kind,
                "payer": repair.payer,
                "payee": repair.payee,
                "amount_minor": str(repair.amount_minor),
                "currency": repair.currency,
                "maker": repair.maker,
                "checker": repair.checker,
                "settlement": None if repair.settlement_id is None else ids.show("stl", repair.settlement_id),
                "booked_at": None if repair.booked_at is None else repair.booked_at.isoformat(),
            }
            for repair in store.repairs_of(connection, row.id)
        ],
    }


def _legs_to_prove(
    connection: sa.Connection,
    run: RunRow,
    ours: SourceRow,
    breaks: Sequence[BreakRow],
    database: Database,
    files_directory: Path,
) -> list[tuple[str, str]]:
    """(ledger, our reference) of posted legs: those in breaks, then the first of the file."""
    if ours.counterparty != JOURNAL:
        return []
    read = read_kept(ours, database=database, files_directory=files_directory)
    first = [] if read.lines is None else read.lines.strings("reference").slice(0, RECEIPTS_MAX).to_pylist()
    references = list(dict.fromkeys([*(text for row in breaks for text in row.our_references), *first]))
    currency_ledger = connection.execute(
        sa.select(t.leg.c.ledger).where(t.leg.c.currency == run.currency).limit(1)
    ).scalar_one_or_none()
    return [] if currency_ledger is None else [(currency_ledger, text) for text in references[:RECEIPTS_MAX]]


def _receipts(
    wanted: Sequence[tuple[str, str]], books: Books, members: dict[str, bytes]
) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Receipts into `members`; what proves what, and the logs' keys."""
    found: list[dict[str, str]] = []
    logs: dict[str, str] = {}
    for ledger, reference in wanted:
        island = books.islands.get(ledger)
        if not isinstance(island, Proving):
            continue
        try:
            receipt = island.receipt(transfer_id_of(reference))
        except ValueError:
            continue
        if receipt is None:
            continue
        key = logs.get(ledger) or island.log_key()
        if key is None:
            continue
        name = f"receipts/{ledger}/{reference}.json"
        members[name], logs[ledger] = receipt, key
        found.append({"ledger": ledger, "reference": reference, "file": name})
    return found, logs


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True).encode() + b"\n"
