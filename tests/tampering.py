"""An export in memory as plain rows that a test may change, and then seal again as an attacker could.

The formulas of digests, hashes and totals are written here a second time, row by row, so that the verifier's own are
checked against them wherever an untouched journal is read and packed again.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kernel.clock import from_micros
from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey
from kernel.transparency.checkpoints import Checkpoint
from kernel.transparency.notes import KeyKind, Note, VerifierKey, sign_text, to_base64
from ledger.export import layout
from ledger.export.layout import FileEntry, Manifest, SegmentEntry, segment_name
from ledger.verifier import Report, verify_source
from ledger.verifier.source import MemorySource, Segment, Source

Row = dict[str, Any]
NIL = bytes(16)
SECTION_OF = {
    "block": "blocks",
    "transfer": "transfers",
    "evidence": "evidence",
    "hold_event": "hold-events",
    "tombstone": "tombstones",
    "account": "accounts",
    "directive": "directives",
}
DIGESTS = ("transfers_digest", "evidence_digest", "directives_digest", "accounts_digest", "previous_hash")


@dataclass
class Journal:
    """Rows by table, in the order of their numbers. Values are integers, bytes and None."""

    tables: dict[str, list[Row]]
    checkpoints: list[tuple[int, bytes, bytes]] = field(default_factory=list)
    """(size, note, supply statement)"""
    range_keys: dict[int, bytes] = field(default_factory=dict)
    block_salts: dict[int, bytes] = field(default_factory=dict)

    def copy(self) -> Journal:
        tables = {table: [dict(row) for row in rows] for table, rows in self.tables.items()}
        return Journal(tables, list(self.checkpoints), dict(self.range_keys), dict(self.block_salts))


# --- to rows and back ------------------------------------------------------------------------------------------------


def read(source: Source) -> Journal:
    journal = Journal({table: [] for table in SECTION_OF})
    for number in range(len(source.segments)):
        segment = Segment(source, number)
        _read_tables(segment, journal.tables)
        journal.checkpoints += segment.notes()
        journal.range_keys |= {int(row["range"]): row["key"].tobytes() for row in segment.range_keys}
        journal.block_salts |= {int(row["number"]): row["salt"].tobytes() for row in segment.block_salts}
    return journal


def _read_tables(segment: Segment, tables: dict[str, list[Row]]) -> None:
    tables["block"] += [_plain(record) for record in segment.blocks]
    for record in segment.transfers:
        row = _plain(record)
        for name in ("id", "hold", "reference"):
            row[name] = struct.pack(">QQ", row.pop(f"{name}_high"), row.pop(f"{name}_low"))
        tables["transfer"].append(row)
    for record, body in zip(segment.evidence, segment.bodies(0, len(segment.evidence)), strict=True):
        row = _plain(record) | {"body": body}
        del row["length"]
        tables["evidence"].append(row)
    for record in segment.hold_events:
        row = _plain(record)
        given = row.pop("given")
        for bit, name in ((1, "commit_hash"), (2, "abort_hash"), (4, "expires_at")):
            row[name] = row[name] if given & bit else None
        tables["hold_event"].append(row)
    for record in segment.tombstones:
        row = _plain(record)
        row["guard"] = row["guard"][: row.pop("length")]
        tables["tombstone"].append(row)
    texts = segment.account_texts(0, len(segment.accounts))
    for record, (name, key) in zip(segment.accounts, texts, strict=True):
        row = _plain(record) | {"rule_class": name, "holder_key": key}
        del row["class_length"], row["key_length"]
        tables["account"].append(row)
    documents = segment.directive_texts(0, len(segment.directives))
    for record, (kind, body) in zip(segment.directives, documents, strict=True):
        row = _plain(record) | {"kind": kind, "body": body}
        row["mandate"] = row["mandate"] if row.pop("has_mandate") else None
        del row["kind_length"], row["body_length"]
        tables["directive"].append(row)


def _plain(record: Any) -> Row:
    values = ((name, record[name]) for name in record.dtype.names)
    return {name: value.tobytes() if value.dtype.kind == "V" else int(value) for name, value in values}


def pack(journal: Journal, *, cuts: tuple[int, ...] = ()) -> MemorySource:
    """An export of these rows, with the right SHA-256 of everything; `cuts`: blocks after which a segment ends."""
    entries: list[SegmentEntry] = []
    files: dict[tuple[int, str], bytes] = {}
    blocks = journal.tables["block"]
    edges = [*cuts, None]
    done = (-(2**63), -(2**63), -(2**63), -(2**63), -2)
    for number, edge in enumerate(edges):
        mine = [row for row in blocks if row["number"] > done[0] and (edge is None or row["number"] <= edge)]
        last = done
        if edge is not None and mine:
            block = mine[-1]
            last = (
                block["number"],
                block["first_seq"] + block["transfer_count"] - 1,
                block["first_directive"] + block["directive_count"] - 1,
                block["first_account"] + block["account_count"] - 1,
                block["first_seq"] + block["transfer_count"] - 1,
            )
        elif edge is None:
            last = (2**63 - 1,) * 5
        sections = _sections(journal, done, last)
        for name, data in sections.items():
            files[number, name] = data
        entries.append(_entry(number, sections, mine, last, journal))
        done = last
    return MemorySource(Manifest(entries), files)


def relisted(manifest: Manifest, files: Mapping[tuple[int, str], bytes]) -> Manifest:
    """The manifest with sizes and SHA-256 of these files; empty ones are not listed."""
    segments = []
    for number, entry in enumerate(manifest.segments):
        mine = {name: data for (segment, name), data in files.items() if segment == number and data}
        listed = {name: FileEntry(len(data), hashlib.sha256(data).hexdigest()) for name, data in mine.items()}
        segments.append(replace(entry, files=listed))
    return Manifest(segments)


def verify_files(manifest: Manifest, files: Mapping[tuple[int, str], bytes]) -> Report:
    return verify_source(MemorySource(manifest, files))


def _entry(number: int, sections: Mapping[str, bytes], blocks: list[Row], last: Any, journal: Journal) -> SegmentEntry:
    head = blocks[-1] if blocks else {"number": 0, "hash": bytes(32)}
    transfers = journal.tables["transfer"]
    return SegmentEntry(
        name=segment_name(number + 1),
        last_block=max(head["number"], 0),
        last_seq=max(min(last[1], transfers[-1]["seq"] if transfers else 0), 0),
        last_directive=0,
        last_account=0,
        last_checkpoint=-1,
        last_closing=-1,
        blocks=len(blocks),
        transfers=len(sections.get("transfers", b"")) // layout.TRANSFER.itemsize,
        head_hash=head["hash"].hex(),
        files={name: FileEntry(len(data), hashlib.sha256(data).hexdigest()) for name, data in sections.items()},
    )


def _sections(journal: Journal, after: Any, through: Any) -> dict[str, bytes]:
    tables = journal.tables

    def part(table: str, column: str, place: int) -> list[Row]:
        rows = [row for row in tables[table] if after[place] < row[column] <= through[place]]
        return sorted(rows, key=lambda row: row[column]) if table != "block" else rows

    found: dict[str, bytes] = {"blocks": _records(layout.BLOCK, part("block", "number", 0))}
    transfers = part("transfer", "seq", 1)
    found["transfers"] = b"".join(transfer_record(row) for row in transfers)
    evidence = sorted(part("evidence", "seq", 1), key=lambda row: (row["seq"], row["kind"]))
    found["evidence"] = _records(layout.EVIDENCE, [row | {"length": len(row["body"])} for row in evidence])
    found["evidence-bodies"] = b"".join(row["body"] for row in evidence)
    events = sorted(part("hold_event", "seq", 1), key=lambda row: (row["seq"], row["phase"]))
    found["hold-events"] = _records(layout.HOLD_EVENT, [_event(row) for row in events])
    stones = part("tombstone", "seq", 1)
    found["tombstones"] = _records(
        layout.TOMBSTONE,
        [row | {"length": len(row["guard"]), "guard": row["guard"].ljust(32, b"\0")} for row in stones],
    )
    accounts = part("account", "number", 3)
    found["accounts"] = _records(
        layout.ACCOUNT,
        [
            row
            | {
                "class_length": len(row["rule_class"]),
                "key_length": -1 if row["holder_key"] is None else len(row["holder_key"]),
            }
            for row in accounts
        ],
    )
    found["account-texts"] = b"".join(row["rule_class"] + (row["holder_key"] or b"") for row in accounts)
    directives = part("directive", "number", 2)
    found["directives"] = _records(
        layout.DIRECTIVE,
        [
            row
            | {
                "has_mandate": row["mandate"] is not None,
                "mandate": row["mandate"] or NIL,
                "kind_length": len(row["kind"]),
                "body_length": len(row["body"]),
            }
            for row in directives
        ],
    )
    found["directive-texts"] = b"".join(row["kind"] + row["body"] for row in directives)
    notes = [item for item in journal.checkpoints if after[4] < item[0] <= through[4]]
    found["checkpoints"] = _records(
        layout.CHECKPOINT,
        [{"size": size, "note_length": len(note), "supply_length": len(text)} for size, note, text in notes],
    )
    found["checkpoint-texts"] = b"".join(note + text for _, note, text in notes)
    if journal.block_salts:
        numbers = [row["number"] for row in part("block", "number", 0)]
        salts = [{"number": number, "salt": journal.block_salts.get(number, bytes(32))} for number in numbers]
        found["block-salts"] = _records(layout.BLOCK_SALT, salts)
    if after[0] < 0:
        keys = [{"range": number, "key": key} for number, key in sorted(journal.range_keys.items())]
        found["range-keys"] = _records(layout.RANGE_KEY, keys)
    return {name: data for name, data in found.items() if data}


def _event(row: Row) -> Row:
    given = sum(
        bit for bit, name in ((1, "commit_hash"), (2, "abort_hash"), (4, "expires_at")) if row[name] is not None
    )
    return row | {
        "given": given,
        "commit_hash": row["commit_hash"] or bytes(32),
        "abort_hash": row["abort_hash"] or bytes(32),
        "expires_at": row["expires_at"] or 0,
    }


def _records(dtype: np.dtype[Any], rows: list[Row]) -> bytes:
    return np.array([tuple(row[name] for name in dtype.names or ()) for row in rows], dtype).tobytes()


def transfer_record(row: Row) -> bytes:
    """The 93 bytes."""
    return struct.pack(
        ">q16sBqqq16s16siq",
        *(row["seq"], row["id"], row["kind"], row["debit"], row["credit"], row["amount"]),
        *(row["hold"], row["reference"], row["submitter"], row["booked_at"]),
    )


# --- sealing again: what somebody with the whole database, and none of the keys, can do ------------------------------


def reseal(journal: Journal, *, totals: bool = True) -> None:
    """Every digest, header total and hash of a journal anew, in place."""
    previous = bytes(32)
    supply = _Supply(journal)
    for block in journal.tables["block"]:
        rows = _of_block(journal, block)
        block["transfers_digest"] = _sha256(transfer_record(row) for row in rows["transfer"])
        items = evidence_items(rows)
        block["evidence_digest"] = digest_evidence(items)
        block["directives_digest"] = _sha256(
            struct.pack(">qI", row["number"], len(row["body"])) + row["body"] for row in rows["directive"]
        )
        block["accounts_digest"] = _sha256(_account_item(row) for row in rows["account"])
        if totals:
            block |= supply.after(rows["transfer"])
        block["previous_hash"] = previous
        block["hash"] = previous = block_hash(block)


def block_hash(block: Row) -> bytes:
    integers = [block[name] for name in layout.BLOCK.names or () if name not in (*DIGESTS, "hash")]
    return hashlib.sha256(
        b"jiaozi-block-v1" + struct.pack(">15q", *integers) + b"".join(block[name] for name in DIGESTS)
    ).digest()


def evidence_items(rows: Mapping[str, list[Row]]) -> list[tuple[int, int, bytes]]:
    items = [(row["seq"], row["kind"], row["body"]) for row in rows["evidence"]]
    for row in rows["hold_event"]:
        if row["phase"] == 0:
            hashes = (row["commit_hash"] or bytes(32)) + (row["abort_hash"] or bytes(32))
            items.append((row["seq"], 4, hashes + struct.pack(">q", row["expires_at"] or 0)))
    items += [(row["seq"], 5, row["hold"] + row["guard"]) for row in rows["tombstone"]]
    return sorted(items)


def digest_evidence(items: list[tuple[int, int, bytes]]) -> bytes:
    return _sha256(struct.pack(">qBI", seq, kind, len(body)) + body for seq, kind, body in items)


def _of_block(journal: Journal, block: Row) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for table in SECTION_OF:
        if table == "block":
            continue
        name = table if table in ("account", "directive") else "seq"
        count = {"account": "account_count", "directive": "directive_count"}.get(table, "transfer_count")
        column = "number" if table in ("account", "directive") else "seq"
        first = block[f"first_{name}"]
        found[table] = [row for row in journal.tables[table] if first <= row[column] < first + block[count]]
    return found


def _account_item(row: Row) -> bytes:
    name, key = row["rule_class"], row["holder_key"] or b""
    return (
        struct.pack(">q16sBi", row["number"], row["opening"], row["kind"], row["participant"])
        + bytes([len(name)])
        + name
        + bytes([len(key)])
        + key
    )


def _sha256(parts: Any) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


class _Supply:
    """The six totals of headers, as the rows have them, whether they make sense or not."""

    def __init__(self, journal: Journal) -> None:
        self.kinds = {1: 0} | {row["number"]: row["kind"] for row in journal.tables["account"]}
        self.totals = dict.fromkeys(("issued", "redeemed", "vaults", "wallets", "offline", "held"), 0)
        self.holds: dict[bytes, int] = {}

    def after(self, transfers: list[Row]) -> dict[str, int]:
        totals = self.totals
        for row in transfers:
            kind, amount = row["kind"], row["amount"]
            if kind == 7:
                self.holds[row["id"]] = amount
                totals["held"] += amount
            elif kind in (8, 9, 10):
                totals["held"] -= self.holds.pop(row["hold"], 0)
            totals["issued"] += amount if kind == 0 else 0
            totals["redeemed"] += amount if kind == 1 else 0
            if kind not in (7, 9, 10, 12):
                for account, delta in ((row["debit"], -amount), (row["credit"], amount)):
                    name = {1: "vaults", 2: "wallets", 3: "offline"}.get(self.kinds.get(account, 4))
                    if name is not None:
                        totals[name] += delta
        return {name: max(-(2**63), min(value, 2**63 - 1)) for name, value in totals.items()}


# --- a transparency log over it --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogKeys:
    signing: PrivateKey
    origin: str = "test.example/log"

    @property
    def verifier(self) -> VerifierKey:
        return VerifierKey(self.origin, KeyKind.ED25519, self.signing.public)


def add_log(journal: Journal, keys: LogKeys, *, every: int = 7) -> None:
    """Checkpoints as the ledger's log makes them, after each `every`-th block that has transfers and the last one."""
    journal.range_keys = {0: hashlib.sha256(b"range 0 of a test").digest()}
    numbers = [int(block["number"]) for block in journal.tables["block"]]
    journal.block_salts = {number: hashlib.sha256(b"block %d of a test" % number).digest() for number in numbers}
    journal.checkpoints = []
    leaves = leaf_hashes(journal)
    ledger, currency = ledger_of(journal)
    blocks = [block for block in journal.tables["block"] if block["transfer_count"]]
    for place, block in enumerate(blocks):
        if place % every and block is not blocks[-1]:
            continue
        size = block["first_seq"] + block["transfer_count"] - 1
        statement = supply_statement(block, ledger, currency)
        text = Checkpoint(
            keys.origin,
            size,
            tree_root(leaves[:size]),
            (
                f"block {block['number']} {to_base64(block_commitment(journal, block))}",
                f"supply {to_base64(hashlib.sha256(statement).digest())}",
            ),
        ).text
        note = Note(text, (sign_text(text, name=keys.origin, key=keys.signing),))
        journal.checkpoints.append((size, str(note).encode(), statement))


def block_commitment(journal: Journal, block: Row) -> bytes:
    salt = journal.block_salts[block["number"]]
    return hashlib.sha256(b"jiaozi-block-commitment-v1" + salt + block["hash"]).digest()


def leaf_hashes(journal: Journal) -> list[bytes]:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    found = []
    for row in journal.tables["transfer"]:
        seq = row["seq"]
        key = journal.range_keys[(seq - 1) >> 20]
        salt = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(struct.pack(">QQ", 0, seq))
        tables = ("evidence", "hold_event", "tombstone")
        rows = {name: [item for item in journal.tables[name] if item["seq"] == seq] for name in tables}
        items = evidence_items(rows)
        own = digest_evidence(items) if items else b""
        found.append(hashlib.sha256(b"\0" + salt + transfer_record(row) + own).digest())
    return found


def tree_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\1" + tree_root(leaves[:half]) + tree_root(leaves[half:])).digest()


def ledger_of(journal: Journal) -> tuple[str, str]:
    import json

    genesis = json.loads(journal.tables["directive"][0]["body"])
    return genesis["ledger"], genesis["currency"]


def supply_statement(block: Row, ledger: str, currency: str) -> bytes:
    names = ("issued", "redeemed", "vaults", "wallets", "offline", "held")
    amounts = {f"{name}_minor": str(block[name]) for name in names}
    return jws.canonical_json(
        {
            **amounts,
            "ledger": ledger,
            "currency": currency,
            "block": block["number"],
            "seq": block["first_seq"] + block["transfer_count"] - 1,
            "booked_at": from_micros(block["booked_at"]).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "circulation_minor": str(block["issued"] - block["redeemed"]),
        }
    )
