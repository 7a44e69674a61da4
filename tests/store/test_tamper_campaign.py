"""Goal: whatever is changed in a journal is found, and the first wrong place named.

Method: one real ledger's journal with some of everything, exported to memory. Each case changes one thing there (a bit
of any field of any table; a row dropped, doubled, exchanged with another) and is verified whole. Three attackers:

1. *the careless*: changes rows and the manifest. The digests of the block find it, at that block.
2. *the sealer*: has the whole database and computes every digest, header total and hash anew, but has no key. Against
   him stands what somebody signed: the log's checkpoints cover every byte, from the first checkpoint after it on.
3. *the sealer without a log*: only signatures of holders, institutions and operators are left, and the rules. What they
   cover is found. What they do not (whom an institution says it paid from its own vault) is listed here, by name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from kernel.crypto.keys import PrivateKey
from kernel.postgres import EmbeddedPostgres
from ledger.export.log import NO_SALTS
from ledger.verifier import Known, Report, replay, verify_source
from ledger.verifier.database import DatabaseSource
from tests import tampering
from tests.roles import dsn
from tests.sequencer_world import Item, SequencerWorld
from tests.tampering import Journal, LogKeys, Row
from tests.verifier_world import Scheme, make_scheme

SHORT = int(os.environ.get("JIAOZI_TAMPERINGS", "15"))
LONG = int(os.environ.get("JIAOZI_CAMPAIGN_CASES", "20000"))
NUMBER = {"block": "number", "account": "number", "directive": "number"}
WIDTH = {"kind": 8, "phase": 8, "participant": 32, "submitter": 32}
"""Bits of integers that are not 64 bits wide."""
UNSIGNED = {"kind", "phase"}
BYTES_OF = {"commit_hash": 32, "abort_hash": 32, "holder_key": 33, "mandate": 16}
"""Length of what may also be missing."""


@dataclass(frozen=True)
class Sample:
    scheme: Scheme
    journal: Journal
    """With a log over it."""
    keys: LogKeys

    @property
    def known(self) -> Known:
        return Known(log_key=self.keys.verifier)

    def block_at(self, table: str, number: int) -> int:
        """The block that a row of this number belongs to; the last for what comes after it."""
        blocks = self.journal.tables["block"]
        if table == "block":
            return min(max(number, 1), len(blocks))
        first, count = {
            "account": ("first_account", "account_count"),
            "directive": ("first_directive", "directive_count"),
        }.get(table, ("first_seq", "transfer_count"))
        for block in blocks:
            if number < block[first] + block[count]:
                return int(block["number"])
        return int(blocks[-1]["number"])

    def next_checkpoint(self, block: int) -> int:
        """The block of the first checkpoint that covers a block."""
        return next(named for note in self.journal.checkpoints if (named := block_of_note(note[1])) >= block)


def block_of_note(note: bytes) -> int:
    return next(int(line.split()[1]) for line in note.decode().splitlines() if line.startswith("block "))


_samples: list[Sample] = []


@pytest.fixture(scope="module", autouse=True)
def _sample(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Not a fixture's value: Hypothesis runs many cases in one test."""
    scheme = make_scheme(postgres, tmp_path_factory.mktemp("campaign"), bulk=6, signed=4)
    with psycopg.connect(postgres.conninfo(scheme.database)) as connection:
        source = DatabaseSource(connection, tmp_path_factory.mktemp("export") / "files", NO_SALTS)
        list(source.grow())
        journal = tampering.read(source)
    keys = LogKeys(PrivateKey.generate())
    tampering.add_log(journal, keys)
    _samples.append(Sample(scheme, journal, keys))
    yield
    _samples.clear()


def sample() -> Sample:
    return _samples[0]


def verify(journal: Journal, known: Known | None = None, *, cuts: tuple[int, ...] = ()) -> Report:
    return verify_source(tampering.pack(journal, cuts=cuts), known=known if known is not None else Known())


# --- the sample itself, and that this test's formulas are the ledger's ------------------------------------------------


def test_an_untouched_journal_verifies_with_its_log() -> None:
    report = verify(sample().journal, sample().known)
    assert report.findings == []
    assert report.is_whole
    assert report.proved["leaves of the log"] == report.proved["transfers"] == report.head_seq
    assert report.proved["roots of checkpoints"] == len(sample().journal.checkpoints) > 2
    assert report.unproved == ["who the operators are: compare genesis with what you know of it"]


def test_sealing_an_untouched_journal_again_changes_nothing() -> None:
    journal = sample().journal.copy()
    tampering.reseal(journal)
    assert journal.tables == sample().journal.tables


@pytest.mark.parametrize("cuts", [(1,), (9,), (3, 4, 12, 30)])
def test_where_segments_end_is_no_matter(cuts: tuple[int, ...]) -> None:
    report = verify(sample().journal, sample().known, cuts=cuts)
    assert report.findings == []
    assert report.proved == verify(sample().journal, sample().known).proved | {"files": report.proved["files"]}


# --- one change anywhere ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """What was done, for Hypothesis to print; `places` are the blocks that it concerns."""

    what: str
    table: str
    field: str
    places: tuple[int, ...]


def _new_integer(data: Any, field: str, old: int, others: list[int]) -> int:
    bits = WIDTH.get(field, 64)
    low, high = (0, 2**bits - 1) if field in UNSIGNED else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    flipped = st.integers(0, bits - 1).map(lambda bit: _flip(old, bit, bits, signed=field not in UNSIGNED))
    near = st.integers(-3, 3).map(lambda step: old + step)
    new = data.draw(st.one_of(flipped, near, st.sampled_from(others)), label=field)
    assume(new != old and low <= new <= high)
    return int(new)


def _flip(value: int, bit: int, bits: int, *, signed: bool) -> int:
    raw = (value % 2**bits) ^ (1 << bit)
    return raw - 2**bits if signed and raw >= 2 ** (bits - 1) else raw


def _new_bytes(data: Any, field: str, old: bytes | None, others: list[bytes | None]) -> bytes | None:
    choices: list[st.SearchStrategy[bytes | None]] = [st.sampled_from(others)]
    if old:
        choices.append(
            st.integers(0, 8 * len(old) - 1).map(
                lambda bit: (int.from_bytes(old, "big") ^ (1 << bit)).to_bytes(len(old), "big")
            )
        )
    elif field in BYTES_OF:
        choices.append(st.binary(min_size=BYTES_OF[field], max_size=BYTES_OF[field]))
    new = data.draw(st.one_of(*choices), label=field)
    assume(new != old)
    return new


def change_a_field(data: Any, journal: Journal, tables: tuple[str, ...]) -> Change:
    table = data.draw(st.sampled_from(tables), label="table")
    rows = journal.tables[table]
    row: Row = rows[data.draw(st.integers(0, len(rows) - 1), label="row")]
    field = data.draw(st.sampled_from(sorted(row)), label="field")
    column = NUMBER.get(table, "seq")
    old, others = row[field], [other[field] for other in rows]
    before = row[column]
    if isinstance(old, int) or (old is None and field == "expires_at"):
        numbers = [other for other in others if other is not None] or [1]
        row[field] = _new_integer(data, field, old if old is not None else 2**63 - 1, numbers)
    else:
        row[field] = _new_bytes(data, field, old, others)
    places = {sample().block_at(table, number) for number in (before, row[column])}
    return Change("field", table, field, tuple(sorted(places)))


def change_rows(data: Any, journal: Journal) -> Change:
    """Drop a row, double it under another id, or exchange two rows' places."""
    table = data.draw(st.sampled_from(tuple(tampering.SECTION_OF)), label="table")
    rows, column = journal.tables[table], NUMBER.get(table, "seq")
    place = data.draw(st.integers(0, len(rows) - 1), label="row")
    number = rows[place][column]
    what = data.draw(st.sampled_from(("drop", "double", "exchange")), label="what")
    places = [sample().block_at(table, number)]
    if what == "drop":
        assume(not (table == "block" and place == len(rows) - 1))  # a younger journal, see the anchor's test
        del rows[place]
    elif what == "double":
        twin = dict(rows[place])
        for name in ("id", "opening", "mandate"):
            if isinstance(twin.get(name), bytes):
                twin[name] = bytes(15) + b"\1"
        rows.insert(place + 1, twin)
    else:
        other = data.draw(st.integers(0, len(rows) - 1), label="other")
        names = [name for name in rows[place] if name != column]
        assume(any(rows[place][name] != rows[other][name] for name in names))
        assume(table in ("block", "transfer", "account", "directive"))
        places.append(sample().block_at(table, rows[other][column]))
        for name in names:
            rows[place][name], rows[other][name] = rows[other][name], rows[place][name]
    return Change(what, table, "", tuple(sorted(set(places))))


def assert_found(report: Report, change: Change, last_block: int) -> None:
    """Found, and the first finding is not after the change (or the header after it, if a header was changed)."""
    assert not report.is_whole, f"not found: {change}"
    first = report.findings[0]
    last_block = max(last_block, change.places[0] + (change.table == "block"))
    assert first.block is None or first.block <= last_block or change.field == "number", (change, report.findings)


CAREFUL = settings(
    deadline=None,
    max_examples=SHORT,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
CAMPAIGN = settings(CAREFUL, max_examples=LONG, derandomize=False)


def careless(data: Any, *, rows: bool) -> None:
    journal = sample().journal.copy()
    change = change_rows(data, journal) if rows else change_a_field(data, journal, tuple(tampering.SECTION_OF))
    assert_found(verify(journal), change, change.places[0])


def sealer(data: Any, *, rows: bool) -> None:
    """Everything is sealed anew; the log's checkpoints cannot be."""
    journal = sample().journal.copy()
    change = change_rows(data, journal) if rows else change_a_field(data, journal, tuple(tampering.SECTION_OF))
    try:
        tampering.reseal(journal)
    except (ValueError, OverflowError, tampering.struct.error):
        return  # what cannot be packed cannot be sealed: the careless attacker's case
    assume(journal.tables["block"] != sample().journal.tables["block"] or change.table != "block")
    report = verify(journal, sample().known)
    assert_found(report, change, sample().next_checkpoint(change.places[0]))


@pytest.mark.campaign
@CAREFUL
@given(st.data())
def test_any_field_changed_is_found_in_its_block(data: Any) -> None:
    careless(data, rows=False)


@pytest.mark.campaign
@CAREFUL
@given(st.data())
def test_any_row_dropped_doubled_or_exchanged_is_found(data: Any) -> None:
    careless(data, rows=True)


@pytest.mark.campaign
@CAREFUL
@given(st.data())
def test_any_field_changed_and_sealed_again_is_found_by_signatures_rules_or_the_log(data: Any) -> None:
    sealer(data, rows=False)


@pytest.mark.campaign
@CAREFUL
@given(st.data())
def test_any_row_changed_and_sealed_again_is_found_by_signatures_rules_or_the_log(data: Any) -> None:
    sealer(data, rows=True)


# --- a careful forger -------------------------------------------------------------------------------------------------


def renumber(journal: Journal, seq: int, step: int) -> None:
    """Make room after `seq` (step 1), or close the gap that a transfer taken from `seq` left (-1), everywhere."""
    for table in ("transfer", "evidence", "hold_event", "tombstone"):
        for row in journal.tables[table]:
            row["seq"] += step if row["seq"] > seq else 0
    for block in journal.tables["block"]:
        first, last = block["first_seq"], block["first_seq"] + block["transfer_count"] - 1
        block["transfer_count"] += step if first <= seq <= last else 0
        block["first_seq"] += step if first > seq else 0


def own_transfers(journal: Journal) -> list[Row]:
    """Transfers between vaults that their institution sent: nobody's signature of them is kept."""
    signed = {row["seq"] for row in journal.tables["evidence"]}
    kinds = {row["number"]: row["kind"] for row in journal.tables["account"]}
    return [
        row
        for row in journal.tables["transfer"]
        if row["kind"] == 4 and row["seq"] not in signed and kinds[row["debit"]] == kinds[row["credit"]] == 1
    ]


def forge(journal: Journal, how: str) -> int:
    """A change that breaks no rule, sealed again. Returns the first wrong seq."""
    row = own_transfers(journal)[0]
    seq = int(row["seq"])
    block = journal.tables["block"][sample().block_at("transfer", seq) - 1]
    match how:
        case "amount":
            row["amount"] -= 1
        case "payee":
            row["debit"], row["credit"] = row["credit"], row["debit"]
            row["submitter"] = next(
                account["participant"] for account in journal.tables["account"] if account["number"] == row["debit"]
            )
        case "id":
            row["id"] = row["id"][:15] + bytes([row["id"][15] ^ 1])
        case "reference":
            row["reference"] = bytes(range(16))
        case "kind":
            row["kind"] = 5
        case "time":
            for rows in ("transfer", "account", "directive"):
                for item in journal.tables[rows]:
                    name = "opened_at" if rows == "account" else "booked_at"
                    item[name] += 1 if item[name] == block["booked_at"] else 0
            block["booked_at"] += 1
            seq = block["first_seq"]
        case "removed":
            journal.tables["transfer"].remove(row)
            renumber(journal, seq, -1)
        case "inserted":
            renumber(journal, seq, 1)
            place = journal.tables["transfer"].index(row)
            journal.tables["transfer"].insert(place + 1, row | {"seq": seq + 1, "id": row["id"][:15] + b"\0"})
            seq += 1
        case _:
            raise ValueError(how)
    tampering.reseal(journal)
    return seq


FORGERIES = ("amount", "payee", "id", "reference", "kind", "time", "removed", "inserted")
"""What no customer's signature covers: an institution's own transfers (its request's signature is not kept)."""


@pytest.mark.parametrize("how", FORGERIES)
def test_what_no_customer_signed_can_be_forged_and_is_found_by_log_anchor_or_nothing(how: str) -> None:
    original, journal = sample().journal, sample().journal.copy()
    seq = forge(journal, how)
    assert verify(without_log(journal)).findings == [], "a rule covers this: say so in the list"
    block = sample().block_at("transfer", seq)
    report = verify(journal, sample().known)
    assert not report.is_whole
    assert report.findings[0].rule == "log"
    assert report.findings[0].block is not None
    shifted = how == "removed"  # then the last transfer of that tree is the first of the next block
    assert report.findings[0].block <= sample().next_checkpoint(block) + shifted
    trees = [finding for finding in report.findings if "the tree of" in finding.message]
    before = max((size for size, *_ in original.checkpoints if size < seq), default=0)
    assert trees[0].seq == before + 1, "between the last good checkpoint and the first bad one"
    last = original.tables["block"][-1]
    anchored = verify(without_log(journal), Known(anchor=(last["number"], last["hash"])))
    assert [finding.rule for finding in anchored.findings] == ["I4"]
    assert "history was rewritten" in anchored.findings[0].message


COVERED = {
    "transfer": {"id", "kind", "debit", "credit", "amount", "reference", "hold"},
    "directive": {"number", "kind", "mandate", "body"},
    "hold_event": {"seq", "phase", "hold", "transfer", "kind", "commit_hash", "abort_hash", "expires_at"},
    "evidence": {"seq", "kind", "transfer", "body"},
    "tombstone": {"seq", "hold", "transfer"},
    "account": {"number", "kind", "holder_key", "opened_at"},
    "block": {"number", "first_seq", "transfer_count", "first_directive", "directive_count", "first_account"},
}
"""Fields that signatures or rules cover even against a sealer without a log: in transfers, those of signed ones."""


def signed_sealer(data: Any) -> None:
    """Somebody who seals anew changes a covered field: no log is needed to find it."""
    journal = without_log(sample().journal.copy())
    signed = {row["seq"] for row in journal.tables["evidence"] if row["kind"] in (1, 3)}
    spared = [row for row in journal.tables["transfer"] if row["seq"] not in signed or row["kind"] in (8, 9, 12)]
    table = data.draw(st.sampled_from(sorted(COVERED)), label="table")
    rows = [row for row in journal.tables[table] if not any(row is other for other in spared)]
    if table == "account":
        paying = {row["debit"] for row in journal.tables["transfer"] if row["seq"] in signed}
        rows = [row for row in rows if row["kind"] == 2 and row["number"] in paying]
    row = rows[data.draw(st.integers(0, len(rows) - 1), label="row")]
    field = data.draw(st.sampled_from(sorted(COVERED[table] & row.keys())), label="field")
    # a secret kept with a tombstone is what its guard is made of: both can be made anew
    assume(not (table == "evidence" and row["kind"] == 2))
    old, others = row[field], [other[field] for other in journal.tables[table]]
    if isinstance(old, int) or (old is None and field == "expires_at"):
        numbers = [other for other in others if other is not None] or [1]
        row[field] = _new_integer(data, field, old if old is not None else 2**63 - 1, numbers)
    else:
        row[field] = _new_bytes(data, field, old, others)
    try:
        tampering.reseal(journal)
    except (ValueError, OverflowError, tampering.struct.error):
        return
    # genesis is signed by nobody: it is what the reader must know
    known = Known(genesis_sha256=hashlib.sha256(sample().journal.tables["directive"][0]["body"]).hexdigest())
    assert not verify(journal, known).is_whole, (table, field)


@pytest.mark.campaign
@CAREFUL
@given(st.data())
def test_what_is_signed_is_found_without_any_log(data: Any) -> None:
    signed_sealer(data)


def without_log(journal: Journal) -> Journal:
    return Journal(journal.tables)


# --- arrays and plain Python say the same ----------------------------------------------------------------------------


def test_deciding_by_arrays_changes_nothing_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything through the ordered path, which has every rule: the arrays may only be quicker."""
    forged = sample().journal.copy()
    forge(forged, "amount")
    spoilt = sample().journal.copy()
    own_transfers(spoilt)[0]["submitter"] = 2
    tampering.reseal(spoilt)
    journals = [sample().journal, forged, spoilt]
    by_arrays = [verify(journal, sample().known).to_dict() for journal in journals]
    monkeypatch.setattr(replay, "_PLAIN", replay._PLAIN & False)
    in_order = [verify(journal, sample().known).to_dict() for journal in journals]
    assert by_arrays == in_order
    assert [report["is_whole"] for report in in_order] == [True, False, False]


def test_an_account_that_dips_below_zero_inside_a_block_is_found_at_its_seq(
    fresh_database: Callable[[str], str], tmp_path: Path
) -> None:
    """I3 and I9 at every seq: at the block's end all is well, whatever the order was."""
    world = SequencerWorld(fresh_database("ledger"))
    try:
        rich, poor, third = world.vault(1_000), world.vault(), world.vault()
        many = [Item("payment", rich, third, 1) for _ in range(20)]
        passed_on = [Item("payment", rich, poor, 100), Item("payment", poor, third, 100)]
        assert set(world.names(*many[:10], *passed_on, *many[10:])) == {"booked"}
        with psycopg.connect(dsn(world.url)) as connection:
            source = DatabaseSource(connection, tmp_path / "files", NO_SALTS)
            list(source.grow())
            journal = tampering.read(source)
    finally:
        world.close()
    assert verify(journal).findings == []
    rows = journal.tables["transfer"]
    first = next(place for place, row in enumerate(rows) if row["amount"] == 100)
    for name in rows[first]:
        if name != "seq":
            rows[first][name], rows[first + 1][name] = rows[first + 1][name], rows[first][name]
    tampering.reseal(journal)
    findings = verify(journal).findings
    assert [(finding.rule, finding.seq) for finding in findings] == [("I3", rows[first]["seq"])]


# --- the log's own files ----------------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_key_or_text_is_refused() -> None:
    other = LogKeys(PrivateKey.generate())
    journal = sample().journal.copy()
    tampering.add_log(journal, other)
    report = verify(journal, sample().known)
    assert report.findings[0].rule == "log"
    assert "not signed" in report.findings[0].message or "no signature" in report.findings[0].message
    journal = sample().journal.copy()
    size, note, supply = journal.checkpoints[1]
    for place in range(0, len(note), 7):
        journal.checkpoints[1] = (size, note[:place] + bytes([note[place] ^ 1]) + note[place + 1 :], supply)
        assert not verify(journal, sample().known).is_whole, place
    journal.checkpoints[1] = (size, note, supply.replace(b'"held_minor":"', b'"held_minor":"1'))
    assert "another than it names" in verify(journal, sample().known).findings[0].message


def test_a_log_that_is_longer_than_the_journal_tells_of_a_cut_tail() -> None:
    journal = sample().journal.copy()
    last = journal.tables["block"].pop()
    for table in ("transfer", "evidence"):
        journal.tables[table] = [row for row in journal.tables[table] if row["seq"] < last["first_seq"]]
    assert verify(without_log(journal)).findings == []
    report = verify(journal, sample().known)
    assert not report.is_whole
    assert {finding.rule for finding in report.findings} == {"log"}


def test_missing_checkpoints_and_salts_are_said_and_not_passed_over() -> None:
    journal = sample().journal.copy()
    assert "no checkpoint" in verify(without_log(journal), sample().known).findings[0].message
    assert any("no checkpoints" in sentence for sentence in verify(without_log(journal)).unproved)
    journal.range_keys = {}
    report = verify(journal, sample().known)
    assert report.is_whole
    assert any("salts" in sentence for sentence in report.unproved)
    journal = sample().journal.copy()
    journal.block_salts = {}
    report = verify(journal, sample().known)
    assert report.is_whole
    assert any("which blocks the checkpoints name" in sentence for sentence in report.unproved)
    named = block_of_note(sample().journal.checkpoints[1][1])
    journal.block_salts = sample().journal.block_salts | {named: bytes(32)}
    report = verify(journal, sample().known)
    assert [finding.rule for finding in report.findings] == ["log"]
    assert f"block {named} is not the one that it names" in report.findings[0].message
    journal = sample().journal.copy()
    journal.range_keys[0] = bytes(32)
    assert verify(journal, sample().known).findings[0].rule == "log"
    dropped = journal.checkpoints.pop()
    journal.range_keys = dict(sample().journal.range_keys)
    report = verify(journal, sample().known)
    assert report.is_whole
    assert any(f"from seq {journal.checkpoints[-1][0] + 1} on" in sentence for sentence in report.unproved), dropped


def test_a_flipped_bit_in_any_file_is_found_by_the_manifest() -> None:
    source = tampering.pack(sample().journal, cuts=(9,))
    for (number, name), content in source.files.items():
        for place in {0, len(content) // 2, len(content) - 1}:
            files = dict(source.files)
            files[number, name] = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
            report = verify_source(type(source)(source.manifest, files))
            assert not report.is_whole, (number, name, place)
            assert any(name in finding.message for finding in report.findings), (name, report.findings)


def test_another_genesis_than_the_known_one_is_named() -> None:
    report = verify(sample().journal)
    assert verify(sample().journal, Known(genesis_sha256=report.genesis_sha256.upper())).is_whole
    found = verify(sample().journal, Known(genesis_sha256="00" * 32)).findings
    assert [(finding.rule, finding.block) for finding in found] == [("genesis", 1)]


@pytest.mark.slow
@pytest.mark.timeout(7_200)
@CAMPAIGN
@given(st.data(), st.sampled_from((careless, sealer, signed_sealer)), st.booleans())
def test_campaign(data: Any, attack: Any, rows: bool) -> None:
    if attack is signed_sealer:
        signed_sealer(data)
    else:
        attack(data, rows=rows)
