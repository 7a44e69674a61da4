"""Verify an evidence pack offline: public keys in, findings out. No database, no network, nothing believed.

1. The archive is in its one form, so no byte lies outside its members.
2. The manifest is signed by the bridge, and names every other member by its SHA-256.
3. Our lines and theirs are read again from their files, and the whole reconciliation is run again: pairs, matches,
   breaks and the result's digest must come out as stored.
4. breaks.json lists these breaks one to one, in their order (of a break that an earlier run has found first, its own
   amounts and sentence are of that run), or the first `BREAKS_MAX` of them, which the manifest says. Every decision is
   signed by an officer whose key is given (or stated in the manifest, which the bridge has signed);
   every history follows the rules of the life of a break; an approved repair has two officers and two keys, and is of
   no more than the break.
5. Every receipt proves under its ledger's checkpoint the posting of a line of ours: its amount, currency and accounts.
6. summary.html is the one that these contents give. summary.pdf is not checked and is not evidence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from kernel import ids, strict_json
from kernel.crypto import jws
from kernel.crypto.keys import PublicKey
from kernel.errors import ProblemError
from kernel.transparency.notes import VerifierKey
from ledger.client import ReceiptRefused, VerifiedReceipt, verify_receipt
from ledger.contract import TransferKind
from settlement.domain.reconciliation import JOURNAL, View
from settlement.domain.reconciliation import lifecycle as life
from settlement.domain.reconciliation import session as sessions
from settlement.domain.reconciliation.lines import LineTable
from settlement.domain.reconciliation.mapping import CANONICAL, TableMapping
from settlement.domain.statements import Direction, StatementEntry
from settlement.evidence import summary
from settlement.evidence.archive import PackRefused, read_archive
from settlement.sources import SourceFormat, SourceRead, is_validated, papers_of, read_source

MANIFEST_TYPE = "jiaozi-evidence-manifest+jws"
MANIFEST_BYTES_MAX = 64 * 1024 * 1024
FORMAT = "jiaozi-evidence/v1"
BREAKS_MAX = 100_000
"""Listed in a pack, in the order of the run's report."""


@dataclass(slots=True)
class Verified:
    """What was found. A pack is good if there are no `findings`."""

    findings: list[str] = field(default_factory=list)
    proved: dict[str, int] = field(default_factory=dict)
    trusted_from_manifest: list[str] = field(default_factory=list)
    """Keys that were not given and were taken from the manifest, on the bridge's word."""
    notes: list[str] = field(default_factory=list)
    """What a reader of a good pack must know: what it does not prove."""

    @property
    def is_good(self) -> bool:
        return not self.findings


def verify_pack(
    content: bytes,
    *,
    bridge_key: PublicKey,
    officer_keys: Mapping[str, PublicKey] | None = None,
    log_keys: Mapping[str, VerifierKey] | None = None,
) -> Verified:
    """Raises nothing: whatever is wrong is a finding."""
    found = Verified()
    try:
        members = read_archive(content)
        manifest = _manifest(members, bridge_key)
        found.proved["files"] = len(manifest["files"])
        rerun = _rerun(members, manifest, found)
        _listed(members, manifest, rerun.outcome, found)
        _histories(members, manifest, officer_keys, found)
        _receipts(members, manifest, log_keys, rerun.lines_of, found)
        _summary(members, manifest, found)
    except PackRefused as refused:
        found.findings.append(str(refused))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ProblemError) as error:
        found.findings.append(f"a member is not as it must be: {type(error).__name__}: {str(error)[:200]}")
    return found


def _manifest(members: Mapping[str, bytes], key: PublicKey) -> dict[str, Any]:
    token = members.get("manifest.jws")
    if token is None:
        raise PackRefused("there is no manifest.jws")
    try:
        payload = jws.verify(token.decode("ascii"), key, typ=MANIFEST_TYPE, bytes_max=MANIFEST_BYTES_MAX)
    except (jws.InvalidJws, UnicodeDecodeError) as error:
        raise PackRefused(f"the manifest is not signed by the bridge: {error}") from None
    manifest: dict[str, Any] = strict_json.loads(payload)
    if manifest["format"] != FORMAT:
        raise PackRefused(f"the pack has the format {str(manifest['format'])[:40]}, this program reads {FORMAT}")
    named = set(manifest["files"])
    if named != set(members) - {"manifest.jws"}:
        raise PackRefused("the pack's members are not those that the manifest names")
    for name, what in manifest["files"].items():
        if hashlib.sha256(members[name]).hexdigest() != what["sha256"] or len(members[name]) != what["bytes"]:
            raise PackRefused(f"{name} is not the file that the manifest names")
    return manifest


@dataclass(frozen=True, slots=True)
class _Rerun:
    outcome: sessions.Outcome
    ours: LineTable
    carried: tuple[StatementEntry, ...]

    def lines_of(self, wanted: Collection[str]) -> dict[str, list[StatementEntry]]:
        """Our lines by these references."""
        references = self.ours.strings("reference").to_pylist() if wanted else []
        places = [at for at, reference in enumerate(references) if reference in wanted]
        lines: dict[str, list[StatementEntry]] = {}
        for line in (*self.ours.entries(places), *self.carried):
            if line.reference in wanted:
                lines.setdefault(line.reference, []).append(line)
        return lines


def _rerun(members: Mapping[str, bytes], manifest: Mapping[str, Any], found: Verified) -> _Rerun:
    """Step 3."""
    for side in ("ours", "theirs"):
        source = manifest["inputs"][side]
        if source["is_bridge_record"] is not (source["counterparty"] == JOURNAL):
            found.findings.append(f"the manifest contradicts itself on whose record {source['file']} is")
    if manifest["inputs"]["theirs"]["counterparty"] != manifest["run"]["counterparty"]:
        found.findings.append("their side is not the counterparty's")
    if not manifest["inputs"]["ours"]["is_bridge_record"]:
        found.notes.append("our side is a file that was handed in, not the bridge's own record")
    run, selection = manifest["run"], selection_of(members)
    ours, theirs = (_read(members, manifest, side) for side in ("ours", "theirs"))
    if ours.lines is None or theirs.lines is None:
        raise PackRefused("an input cannot be read by its mapping")
    for side, read in (("ours", ours), ("theirs", theirs)):
        said = manifest["inputs"][side]
        if (said["message"], said["is_schema_validated"]) != (read.message, is_validated(read.message)):
            found.findings.append(f"the manifest is wrong about the message that {said['file']} is")
        if is_validated(read.message) is False:
            found.notes.append(
                f"{said['file']} is a {read.message}: it was read without a schema, not schema-validated"
            )
    outcome = sessions.run_session(
        ours.lines,
        theirs.lines,
        selection=selection,
        rules=sessions.rules_of_json(run["rules"]),
        view=View(run["view"]),
        as_of=date.fromisoformat(run["as_of"]),
        papers=papers_of(theirs),
    )
    if outcome.digest.hex() != run["result_sha256"]:
        found.findings.append("the breaks do not follow from the inputs: the reconciliation gives another result")
    stored = json.loads(members["result/matches.json"])
    if [sessions.match_document(item) for item in outcome.matches] != stored:
        found.findings.append("result/matches.json is not what the inputs give")
    documents = json.loads(members["result/findings.json"])
    if [sessions.break_document(item) for item in outcome.breaks] != documents:
        found.findings.append("result/findings.json is not what the inputs give")
    packed = {pairs.rule: sessions.pack_pairs(pairs.ours, pairs.theirs) for pairs in outcome.pairs}
    names = {name for name in members if name.startswith("result/pairs-")}
    if names != {f"result/pairs-{rule.value}.bin" for rule in packed}:
        found.findings.append("the pack has pairs of other rules than the inputs give")
    for rule, content in packed.items():
        if members.get(f"result/pairs-{rule.value}.bin") != content:
            found.findings.append(f"pairs by {rule.value} are not what the inputs give")
    counts = (outcome.lines_ours, outcome.lines_theirs, outcome.matched, len(outcome.breaks))
    if counts != (run["lines_ours"], run["lines_theirs"], run["matched"], run["finding_count"]):
        found.findings.append("the run's counts are not those of its inputs")
    found.proved |= {"lines": counts[0] + counts[1], "matches": counts[2], "findings": counts[3]}
    return _Rerun(outcome, ours.lines, selection.carried_ours)


_SAME_IN_ANY_RUN = ("type", "side", "our_references", "their_references")
_SAME_IN_ITS_RUN = (*_SAME_IN_ANY_RUN, "our_amount_minor", "their_amount_minor", "gross", "oldest", "sentence")


def _listed(
    members: Mapping[str, bytes], manifest: Mapping[str, Any], outcome: sessions.Outcome, found: Verified
) -> None:
    """Step 4, the list: what the inputs give and what is listed are the same breaks."""
    items, stated = json.loads(members["breaks.json"]), manifest["breaks"]
    count = len(outcome.breaks)
    if stated["found"] != count or stated["listed"] != len(items) or len(items) != min(count, BREAKS_MAX):
        found.findings.append(f"breaks.json lists {len(items)} breaks, the inputs give {count}")
    if len(items) < count:
        found.notes.append(f"breaks.json lists the first {len(items):,} of {count:,} breaks")
    if len({item["break"] for item in items}) != len(items):
        found.findings.append("breaks.json lists a break twice")
    earlier = 0
    for item, given in zip(items, outcome.breaks, strict=False):
        document = sessions.break_document(given)
        is_of_this_run = item["history"][0]["reconciliation"] == manifest["run"]["reconciliation"]
        earlier += not is_of_this_run
        names = _SAME_IN_ITS_RUN if is_of_this_run else _SAME_IN_ANY_RUN
        wrong = [name for name in names if item[name] != document[name]]
        if wrong:
            found.findings.append(f"{item['break']}: not the break that the inputs give: {', '.join(wrong)}")
    if earlier:
        found.proved["breaks of earlier runs"] = earlier


def _read(members: Mapping[str, bytes], manifest: Mapping[str, Any], side: str) -> SourceRead:
    what = manifest["inputs"][side]
    mapping = CANONICAL if what["mapping"] is None else TableMapping.of_json(what["mapping"])
    content = members[what["file"]]
    return read_source(content, SourceFormat(what["format"]), mapping=mapping, account=what["account"])


def selection_of(members: Mapping[str, bytes]) -> sessions.Selection:
    return sessions.selection_of_json(json.loads(members["selection.json"]))


def _histories(
    members: Mapping[str, bytes],
    manifest: Mapping[str, Any],
    officer_keys: Mapping[str, PublicKey] | None,
    found: Verified,
) -> None:
    """Step 4."""
    keys: dict[str, tuple[str, PublicKey]] = {}
    for item in manifest["officers"]:
        stated = PublicKey.from_jwk(item["key"])
        if officer_keys is None:
            found.trusted_from_manifest.append(f"officer {item['officer']}")
        elif officer_keys.get(item["officer"]) != stated:
            found.findings.append(f"officer {item['officer']} has another key than the one given")
            continue
        keys[stated.thumbprint] = (item["officer"], stated)
    decisions = 0
    for item in json.loads(members["breaks.json"]):
        name = item["break"]
        state: life.BreakState | None = None
        proposal: dict[str, Any] | None = None
        repairs = {repair["proposal"]: repair for repair in item["repairs"]}
        if any(int(x["amount_minor"]) > int(item["gross"].get(x["currency"], 0)) for x in item["repairs"]):
            found.findings.append(f"{name}: a repair is of more than the break")
        for number, event in enumerate(item["history"], start=1):
            kind = life.EventKind(event["kind"])
            follows = state is None if kind is life.EventKind.OPENED else state in life.ALLOWED_FROM[kind]
            if event["sequence"] != number or not follows:
                found.findings.append(f"{name}: event {number} ({kind.value}) does not follow")
            if event["token"] is not None:
                decisions += 1
                _decision(name, event, keys, repairs, found)
            elif kind not in _UNSIGNED:
                found.findings.append(f"{name}: event {number} ({kind.value}) is signed by nobody")
            if kind is life.EventKind.PROPOSED:
                proposal = event
            repair = None if proposal is None else repairs.get(proposal["decision"])
            if kind is life.EventKind.APPROVED and (
                proposal is None or proposal["actor"] == event["actor"] or _kid(proposal) == _kid(event)
            ):
                found.findings.append(f"{name}: one pair of eyes has proposed and approved")
            if kind is life.EventKind.BOOKED and (repair is None or repair["booked_at"] is None):
                found.findings.append(f"{name}: closed as booked, and nothing is booked")
            if kind is life.EventKind.EXPLAINED and len(event["reason"].strip()) < life.REASON_LENGTH_MIN:
                found.findings.append(f"{name}: closed without an explanation")
            state = kind.state
        if state is None or state.value != item["state"]:
            found.findings.append(f"{name}: its state is not that of its last event")
    found.proved["decisions"] = decisions


_UNSIGNED = frozenset({life.EventKind.OPENED, life.EventKind.BOOKED, life.EventKind.FAILED, life.EventKind.LATE_SIDE})


def _kid(event: Mapping[str, Any]) -> object:
    return None if event["token"] is None else jws.peek_header(event["token"]).get("kid")


def _decision(
    name: str,
    event: Mapping[str, Any],
    keys: Mapping[str, tuple[str, PublicKey]],
    repairs: Mapping[str, Mapping[str, Any]],
    found: Verified,
) -> None:
    """The officer signed exactly this."""
    known = keys.get(str(_kid(event)))
    if known is None or known[0] != event["actor"]:
        found.findings.append(f"{name}: event {event['sequence']} is signed by no known officer {event['actor']}")
        return
    try:
        payload = jws.verify(event["token"], known[1], typ=life.DECISION_TYPE, bytes_max=life.DECISION_BYTES_MAX)
        document = life.parse_decision(payload)
    except (jws.InvalidJws, ValueError) as error:
        found.findings.append(f"{name}: event {event['sequence']}: {error}")
        return
    shown = document.to_json()
    is_about = name == shown["subject"] or name in shown["breaks"] or document.kind is life.DecisionKind.UNMATCH
    same = (shown["decision"], document.reason, life.EVENT_OF[document.kind].value) == (
        event["decision"],
        event["reason"],
        event["kind"],
    )
    if not is_about or not same or shown["assignee"] != event["assignee"]:
        found.findings.append(f"{name}: event {event['sequence']} is not what the officer signed")
    listed = repairs.get(shown["decision"], {})
    if shown["repair"] is not None and any(listed.get(key) != value for key, value in shown["repair"].items()):
        found.findings.append(f"{name}: the repair of event {event['sequence']} is not the one that the officer signed")


def _receipts(
    members: Mapping[str, bytes],
    manifest: Mapping[str, Any],
    log_keys: Mapping[str, VerifierKey] | None,
    lines_of: Callable[[Collection[str]], Mapping[str, list[StatementEntry]]],
    found: Verified,
) -> None:
    """Step 5."""
    proved = 0
    lines = lines_of({item["reference"] for item in manifest["receipts"]})
    for item in manifest["receipts"]:
        ledger, name = item["ledger"], item["file"]
        key = None if log_keys is None else log_keys.get(ledger)
        if key is None:
            stated = manifest["logs"].get(ledger)
            if stated is None:
                found.findings.append(f"{name}: no log key of {ledger}")
                continue
            key = VerifierKey.parse(stated)
            if f"log of {ledger}" not in found.trusted_from_manifest:
                found.trusted_from_manifest.append(f"log of {ledger}")
        try:
            verified = verify_receipt(members[name], log_key=key)
        except ReceiptRefused as refused:
            found.findings.append(f"{name}: {refused}")
            continue
        receipt = verified.receipt
        if receipt.ledger != ledger or receipt.transfer.hold is None or receipt.transfer.hold.hex != item["reference"]:
            found.findings.append(f"{name}: it proves another transfer than the line {item['reference']}")
            continue
        mine = lines.get(item["reference"], [])
        wrong = [text for line in mine if (text := unlike(verified, line, manifest["run"]["account"])) is not None]
        if wrong or not mine:
            found.findings.append(f"{name}: {wrong[0] if wrong else 'no line of ours has this reference'}")
            continue
        proved += 1
    found.proved["receipts"] = proved


def unlike(verified: VerifiedReceipt, line: StatementEntry, account: str) -> str | None:
    """Why a receipt does not prove a line of ours on an account (as shown), or None if it does."""
    receipt, transfer = verified.receipt, verified.receipt.transfer
    if transfer.kind is not TransferKind.POST:
        return f"it proves a {transfer.kind.value}, which moves nothing of this line"
    if (receipt.currency, transfer.amount_minor) != (line.amount.currency.code, line.amount.amount_minor):
        return f"it proves {transfer.amount_minor} of {receipt.currency}, our line is of {line.amount}"
    ends = [None if end is None else ids.show_account(end) for end in (transfer.debit, transfer.credit)]
    own, other = ends if line.direction is Direction.DEBIT else reversed(ends)
    if own != (line.account or account):
        return "it books our line's side on another account"
    if line.counterparty_account is not None and other != line.counterparty_account:
        return "it books the other side of our line on another account"
    return None


def _summary(members: Mapping[str, bytes], manifest: Mapping[str, Any], found: Verified) -> None:
    """Step 6."""
    found.notes.append(summary.PDF_IS_NO_EVIDENCE)
    stated = {**manifest, "files": {name: what for name, what in manifest["files"].items() if name not in _SUMMARIES}}
    tables = summary.tables_of(stated, json.loads(members["breaks.json"]))
    if members["summary.html"] != summary.write_html(tables):
        found.findings.append("summary.html says something else than the pack")


_SUMMARIES = ("summary.html", "summary.pdf")
