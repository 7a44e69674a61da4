"""Goal: reconciliation as a product keeps its promises over HTTP: sources, breaks, two officers, late sides, evidence.

Method: the real service on a real socket with its real database and engine; ledgers and institutions are the fakes that
the product ships. Officers sign with keys of their own. The evidence pack is verified with public keys alone, and then
spoilt byte by byte.
"""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from kernel import ids
from kernel.client import ProblemResponse
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.ids import ParticipantId
from kernel.money import Currency, Money
from kernel.server import make_server
from settlement.api.app import Outside, create
from settlement.client import SettlementClient
from settlement.contract import SettlementState
from settlement.contract.reconciliation import BreakView
from settlement.domain.instructions import Instruction, Priority
from settlement.domain.reconciliation.lifecycle import DecisionDocument, DecisionKind, Repair, RepairKind
from settlement.domain.statements import EntryStatus, Statement, StatementEntry
from settlement.evidence.verify import verify_pack
from settlement.islands.authorisers import FakeAuthoriser
from settlement.islands.fake import FakeIsland
from settlement.islands.port import HoldStanding
from settlement.iso20022.camt053 import read_camt053
from settlement.iso20022.pacs009 import write_pacs009
from settlement.settings import SettlementSettings
from settlement.usecases.evidence import make_evidence
from settlement.usecases.statements import camt053_bytes
from tests.ledger_world import free_port

BRIDGE, BANK_A, BANK_B = (ParticipantId(code) for code in ("BRDGAEAD", "AAAACNBJ", "BBBBAEAD"))
CNY, AED = Currency.of("CNY"), Currency.of("AED")
ACCOUNTS = {BANK_A: (11, 21), BANK_B: (12, 22)}
START = 10_000_000
K = DecisionKind
PAPERS = frozenset({"sequence-gap", "opening-not-previous-closing"})


@dataclass
class World:
    url: str
    keys: dict[str, PrivateKey]
    cny: FakeIsland
    aed: FakeIsland
    app: Any

    def client(self, participant: str) -> SettlementClient:
        return SettlementClient(self.url, signer=RequestSigner(self.keys[participant]), timeout_seconds=20)

    def evidence(self, reconciliation: UUID) -> bytes:
        with self.client(BANK_A) as client:
            return client.evidence(reconciliation)


@pytest.fixture(scope="module")
def world(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    from kernel import migrate

    name = f"recon_{uuid4().hex[:8]}"
    postgres.ensure_database(name)
    migrate.upgrade("settlement", postgres.url(name))
    directory = tmp_path_factory.mktemp("recon")
    keys = {key: PrivateKey.generate() for key in (BRIDGE, *ACCOUNTS, "ann", "ben")}
    keys[BRIDGE].save(directory / "bridge.pem")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    files: dict[str, Any] = {
        "ledgers": [
            {"ledger": f"{code.lower()}-ledger", "url": "http://127.0.0.1:1", "currency": code}
            for code in ("CNY", "AED")
        ],
        "institutions": [
            {
                "participant": participant,
                "authorisation_url": "http://127.0.0.1:1",
                "key": keys[participant].public.to_jwk(),
                "accounts": {"CNY": ids.show_account(cny), "AED": ids.show_account(aed)},
            }
            for participant, (cny, aed) in ACCOUNTS.items()
        ],
        "rates": [{"base": "CNY", "counter": "AED", "rate": "0.5123", "provider": BANK_B}],
        "officers": [{"officer": name, "key": keys[name].public.to_jwk()} for name in ("ann", "ben")],
    }
    for what, content in files.items():
        (directory / f"{what}.json").write_text(json.dumps(content))
    settings = SettlementSettings(
        host="127.0.0.1",
        port=port,
        public_url=url,
        database_url=postgres.url(name),
        data_dir=directory / "data",
        participant=BRIDGE,
        signing_key_path=directory / "bridge.pem",
        ledgers_path=directory / "ledgers.json",
        institutions_path=directory / "institutions.json",
        rates_path=directory / "rates.json",
        officers_path=directory / "officers.json",
        control_seconds=3_600,  # the tests run it themselves
    )
    cny = FakeIsland("cny-ledger", balances={pair[0]: START for pair in ACCOUNTS.values()})
    aed = FakeIsland("aed-ledger", balances={pair[1]: START for pair in ACCOUNTS.values()})
    authoriser = FakeAuthoriser(PrivateKey.generate(), clock=lambda: datetime.now(UTC))
    app = create(settings, connect=lambda *_: Outside({"cny-ledger": cny, "aed-ledger": aed}, authoriser, lambda: None))
    server = make_server(app, host="127.0.0.1", port=port, log_level="warning")
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    yield World(url, keys, cny, aed, app)
    server.should_exit = True
    thread.join(15)
    cny.check()
    aed.check()


def settled(world: World, count: int = 6) -> UUID:
    lines = [
        Instruction(
            f"INS{number:05d}",
            f"E2E{uuid4().hex[:12]}",
            uuid4(),
            BANK_A,
            BANK_B,
            Money(10_000 + number, CNY),
            AED,
            None,
            datetime.now(UTC).date(),
            Priority.NORMAL,
        )
        for number in range(1, count + 1)
    ]
    content = write_pacs009(lines, message_id=uuid4().hex, created_at=datetime.now(UTC))
    with world.client(BANK_A) as client:
        batch = client.submit_batch(content, file_format="pacs.009").batch
        done = client.wait_for_batch(batch, timeout_seconds=30)
        assert done.counts[SettlementState.SETTLED] == count
    return batch


def statement_of(world: World, batch: UUID) -> Statement:
    with world.client(BANK_A) as client:
        file = client.write_statement(batch, participant=BANK_A, currency="CNY")
        read = read_camt053(io.BytesIO(client.statement_file(file.statement))).statement
    assert read is not None
    return read


def spoilt(world: World, batch: UUID) -> Statement:
    """Their copy lacks our second line, has our third with one fen more, and a line that we do not have."""
    ours = statement_of(world, batch)
    lines = list(ours.entries)
    wrong = replace(lines[2], amount=Money(lines[2].amount.amount_minor + 1, CNY))
    extra = replace(lines[4], uetr=uuid4(), reference=uuid4().hex, end_to_end_id="X", amount=Money(77, CNY))
    return ours.with_entries([lines[0], wrong, *lines[3:], extra])


def document(kind: DecisionKind, found: BreakView, reason: str = "", **fields: Any) -> DecisionDocument:
    return DecisionDocument(ids.new_uuid7(), kind, found.id, found.sequence, reason, **fields)


def refused(call: Callable[[], object]) -> str | None:
    with pytest.raises(ProblemResponse) as error:
        call()
    return error.value.refusal


def test_a_break_lives_from_finding_to_booking_and_its_evidence_verifies_offline(world: World) -> None:
    batch = settled(world)
    with world.client(BANK_A) as client, world.client(BANK_B) as stranger:
        run = client.reconcile(
            camt053_bytes(spoilt(world, batch)), batch=batch, participant=BANK_A, currency="CNY", counterparty="agent"
        )
        found = {item.type.value: item for item in run.breaks}
        assert sorted(found) == ["amount", "missing-here", "missing-there"]
        assert (run.matched, run.lines_ours, run.lines_theirs) == (4, 6, 6)
        assert refused(lambda: stranger.break_detail(found["amount"].id)) == "break-not-found"
        ann, ben = world.keys["ann"], world.keys["ben"]

        # Assigned; explained only with a reason.
        given = client.decide(document(K.ASSIGN, found["missing-here"], assignee="carol"), officer_key=ann).found
        assert (given.state, given.assignee) == ("assigned", "carol")
        assert refused(lambda: client.decide(document(K.EXPLAIN, given, "no"), officer_key=ann)) == "decision-invalid"
        stale = document(K.EXPLAIN, found["missing-here"], "their own interest line")
        assert refused(lambda: client.decide(stale, officer_key=ann)) == "break-has-moved-on"
        nobody = document(K.EXPLAIN, given, "their own interest line")
        assert refused(lambda: client.decide(nobody, officer_key=PrivateKey.generate())) == "officer-unknown"
        explained = document(K.EXPLAIN, given, "their own interest line")
        closed = client.decide(explained, officer_key=ann)
        assert client.decide(explained, officer_key=ann) == closed
        assert closed.found.state == "closed"
        assert [event.kind.value for event in closed.history] == ["opened", "assigned", "explained"]
        again = client.decide(document(K.REOPEN, closed.found, "it was not interest after all"), officer_key=ben)
        assert again.found.state == "open"

        # A claim of one fen: proposed by ann, approved by ben and not by ann.
        repair = Repair(RepairKind.CLAIM, BANK_B, BANK_A, 1, "CNY")
        proposed = client.decide(
            document(K.PROPOSE, found["amount"], "they booked one fen more", repair=repair), officer_key=ann
        )
        proposal = proposed.repairs[0].proposal
        own = document(K.APPROVE, proposed.found, proposal=proposal)
        assert refused(lambda: client.decide(own, officer_key=ann)) == "four-eyes"
        booked = client.decide(document(K.APPROVE, proposed.found, proposal=proposal), officer_key=ben)
        assert [event.kind.value for event in booked.history] == ["opened", "proposed", "approved", "booked"]
        assert (booked.found.state, booked.repairs[0].checker) == ("closed", "ben")
        assert booked.repairs[0].booked_at is not None

        pack = client.evidence(run.reconciliation)
        assert client.evidence(run.reconciliation) == pack
    bridge = world.keys[BRIDGE].public
    officers = {name: world.keys[name].public for name in ("ann", "ben")}
    verified = verify_pack(pack, bridge_key=bridge, officer_keys=officers)
    assert verified.findings == []
    assert verified.proved["decisions"] == 5 and verified.proved["matches"] == 4
    assert not verify_pack(pack, bridge_key=PrivateKey.generate().public).is_good
    swapped = officers | {"ben": officers["ann"]}
    assert not verify_pack(pack, bridge_key=bridge, officer_keys=swapped).is_good
    assert b"%PDF-" in pack and b"missing-there" in pack
    step = max(1, len(pack) // 150)
    for at in range(0, len(pack), step):
        changed = bytearray(pack)
        changed[at] ^= 1
        assert not verify_pack(bytes(changed), bridge_key=bridge, officer_keys=officers).is_good, at
    assert not verify_pack(pack[:-1], bridge_key=bridge).is_good
    assert not verify_pack(pack + b"x", bridge_key=bridge).is_good


def test_the_late_side_closes_its_break_and_a_second_run_finds_the_same_breaks(world: World) -> None:
    batch = settled(world)
    whole, partial = statement_of(world, batch), spoilt(world, batch)
    relation: dict[str, Any] = {"participant": BANK_A, "currency": "CNY", "counterparty": "late", "batch": batch}
    with world.client(BANK_A) as client:
        first = client.reconcile(camt053_bytes(partial), **relation)
        again = client.reconcile(camt053_bytes(partial), **relation)
        assert [item.id for item in again.breaks] == [item.id for item in first.breaks]
        last = client.reconcile(camt053_bytes(whole), **relation)
        assert (last.matched, last.breaks, last.closed_count) == (6, [], 2)
        left = list(client.breaks(counterparty="late", states=["open"]))
        assert [item.type.value for item in left] == ["missing-here"]
        ended = {item.type.value: client.break_detail(item.id) for item in first.breaks}
        assert [event.kind.value for event in ended["missing-there"].history] == ["opened", "late-side"]
        assert ended["missing-there"].history[-1].reconciliation == last.reconciliation


def test_a_line_that_comes_with_the_next_statement_finds_its_carried_counterpart(world: World) -> None:
    start = datetime.now(UTC)
    batch = settled(world)
    whole = statement_of(world, batch)
    first, second = whole.with_entries(whole.entries[:5]), whole.with_entries(whole.entries[5:])
    second = replace(second, sequence_number=(first.sequence_number or 0) + 1, opening_minor=first.closing_minor)
    second = second.with_entries(second.entries)
    with world.client(BANK_A) as client:

        def compare(statement: Statement, since: datetime, until: datetime) -> Any:
            content = camt053_bytes(statement)
            source = client.add_source(content, source_format="camt.053", participant=BANK_A, counterparty="daily")
            return client.run_reconciliation(
                participant=BANK_A,
                counterparty="daily",
                currency="CNY",
                their_source=source.source,
                booked_from=since,
                booked_to=until,
            )

        now = datetime.now(UTC)
        today = compare(first, start, now)
        assert [item.type.value for item in today.breaks] == ["missing-there"]
        late = [replace(line, booked_at=now) for line in second.entries]
        tomorrow = compare(second.with_entries(late), now, now + timedelta(days=1))
        assert (tomorrow.carried_ours, tomorrow.closed_count, tomorrow.breaks) == (1, 1, [])
        assert client.break_detail(today.breaks[0].id).found.state == "closed"
        pack = client.evidence(tomorrow.reconciliation)
    assert verify_pack(pack, bridge_key=world.keys[BRIDGE].public).findings == []


def test_what_a_counterparty_books_later_or_undoes_and_books_again_closes_its_own_breaks(world: World) -> None:
    start = datetime.now(UTC)
    whole = statement_of(world, settled(world))
    end = datetime.now(UTC)
    paid = whole.entries[0]
    undone = replace(paid, reference=uuid4().hex, direction=paid.direction.opposite, is_reversal=True)
    with world.client(BANK_A) as client:

        def compare(lines: list[StatementEntry], since: datetime, until: datetime) -> Any:
            at = since if until <= start or since >= end else None
            named = replace(whole, statement_id=uuid4().hex, sequence_number=None).with_entries(
                [line if at is None else replace(line, booked_at=at) for line in lines]
            )
            source = client.add_source(
                camt053_bytes(named), source_format="camt.053", participant=BANK_A, counterparty="fickle"
            )
            return client.run_reconciliation(
                participant=BANK_A,
                counterparty="fickle",
                currency="CNY",
                their_source=source.source,
                booked_from=since,
                booked_to=until,
            )

        def types(run: Any) -> list[str]:
            return [item.type.value for item in run.breaks if item.type.value not in PAPERS]

        # Pending with them before we have it, then booked.
        hours = [timedelta(hours=number) for number in range(4)]
        pending = replace(paid, reference=uuid4().hex, status=EntryStatus.PENDING)
        first = compare([pending], start - timedelta(days=30), start - timedelta(days=29))
        assert types(first) == ["missing-here"]
        second = compare(list(whole.entries), start, end)
        assert (types(second), second.matched, second.carried_theirs, second.closed_count) == ([], 6, 1, 1)
        matches = list(client.matches(second.reconciliation))
        assert [(item.our_positions, item.their_positions) for item in matches if item.rule == "replaced"] == [
            ([], [6])
        ]
        # They reverse it, and book it again the hour after.
        third = compare([undone], end, end + hours[1])
        assert types(third) == ["reversed"]
        fourth = compare([replace(paid, reference=uuid4().hex)], end + hours[2], end + hours[3])
        assert (types(fourth), fourth.matched, fourth.closed_count) == ([], 0, 1)
        for run in (first, third):
            (found,) = [item for item in run.breaks if item.type.value not in PAPERS]
            assert [event.kind.value for event in client.break_detail(found.id).history] == ["opened", "late-side"]
        packs = [client.evidence(run.reconciliation) for run in (second, fourth)]
    assert [verify_pack(pack, bridge_key=world.keys[BRIDGE].public).findings for pack in packs] == [[], []]


def test_a_statement_read_without_a_schema_says_so_wherever_it_is_shown(world: World) -> None:
    batch = settled(world)
    content = camt053_bytes(statement_of(world, batch)).replace(b"camt.053.001.08", b"camt.053.001.07")
    told = {"source_format": "camt.053", "participant": BANK_A, "counterparty": "old"}
    with world.client(BANK_A) as client:
        source = client.add_source(content, **told)
        assert (source.message, source.is_schema_validated) == ("camt.053.001.07", False)
        run = client.reconcile(content, batch=batch, participant=BANK_A, currency="CNY", counterparty="old")
        assert (run.matched, run.breaks) == (6, [])
        pack = client.evidence(run.reconciliation)
        refused_by = refused(lambda: client.add_source(content.replace(b"<CdtDbtInd>DBIT", b"<CdtDbtInd>DEBT"), **told))
    assert refused_by == "statement-invalid"
    verified = verify_pack(pack, bridge_key=world.keys[BRIDGE].public)
    assert verified.findings == [] and any("not schema-validated" in note for note in verified.notes)
    assert b"camt.053.001.07, not schema-validated" in pack


def test_a_repair_by_instruction_goes_through_the_engine_and_then_closes_the_break(world: World) -> None:
    batch = settled(world)
    with world.client(BANK_A) as client, world.client(BRIDGE) as bridge:
        run = client.reconcile(
            camt053_bytes(spoilt(world, batch)), batch=batch, participant=BANK_A, currency="CNY", counterparty="paid"
        )
        amount = next(item for item in run.breaks if item.type.value == "amount")
        before = world.cny.balance(11)
        repair = Repair(RepairKind.INSTRUCTION, BANK_B, BANK_A, 1, "CNY")
        proposed = client.decide(
            document(K.PROPOSE, amount, "pay the fen back to bank A", repair=repair), officer_key=world.keys["ben"]
        )
        approve = document(K.APPROVE, proposed.found, proposal=proposed.repairs[0].proposal)
        approved = client.decide(approve, officer_key=world.keys["ann"])
        assert approved.found.state == "approved"
        settlement = approved.repairs[0].settlement
        assert settlement is not None
        deadline = time.monotonic() + 20
        while bridge.settlement(settlement).state is not SettlementState.SETTLED and time.monotonic() < deadline:
            time.sleep(0.05)
        bridge.run_control()
        done = client.break_detail(amount.id)
        assert [event.kind.value for event in done.history] == ["opened", "proposed", "approved", "booked"]
        assert world.cny.balance(11) == before + 1
        assert bridge.settlement(settlement).end_to_end_id == f"BRK{amount.id.hex}"
        assert len(bridge.settlement(settlement).instruction_id) == 16
        refusal = refused(
            lambda: client.decide(document(K.REOPEN, done.found, "change of my mind"), officer_key=world.keys["ann"])
        )
        assert refusal == "break-state-wrong"


def test_a_match_is_taken_back_and_made_again_by_hand(world: World) -> None:
    batch = settled(world)
    with world.client(BANK_A) as client:
        run = client.reconcile(
            camt053_bytes(statement_of(world, batch)),
            batch=batch,
            participant=BANK_A,
            currency="CNY",
            counterparty="um",
        )
        one = next(iter(client.matches(run.reconciliation)))
        assert (one.rule.value, one.is_undone) == ("uetr", False)
        positions = (one.our_positions[0], one.their_positions[0])
        undo = DecisionDocument(
            ids.new_uuid7(), K.UNMATCH, run.reconciliation, 0, "another payment after all", positions=positions
        )
        opened = client.undo_match(undo, officer_key=world.keys["ann"])
        assert client.undo_match(undo, officer_key=world.keys["ann"]) == opened
        assert next(iter(client.matches(run.reconciliation))).rule.value == "uetr"
        assert any(item.is_undone for item in client.matches(run.reconciliation))
        twice = replace(undo, decision=ids.new_uuid7())
        assert refused(lambda: client.undo_match(twice, officer_key=world.keys["ann"])) == "match-not-found"
        back = client.decide(
            document(K.REMATCH, opened.found, "it was the same payment"), officer_key=world.keys["ben"]
        )
        assert back.found.state == "closed"
        assert any(item.rule.value == "manual" for item in client.matches(run.reconciliation))
        pack = client.evidence(run.reconciliation)
    assert verify_pack(pack, bridge_key=world.keys[BRIDGE].public).findings == []


def test_what_officers_have_decided_is_undone_by_no_later_run(world: World) -> None:
    """An explained break is found again and stays closed; a match that was taken back is not closed as `late-side`."""
    batch = settled(world)
    content = camt053_bytes(statement_of(world, batch).with_entries(statement_of(world, batch).entries[1:]))
    again: dict[str, Any] = {
        "batch": batch,
        "participant": BANK_A,
        "currency": "CNY",
        "counterparty": "decided",
    }
    with world.client(BANK_A) as client:
        run = client.reconcile(content, **again)
        (missing,) = client.breaks(counterparty="decided")
        explained = client.decide(
            document(K.EXPLAIN, missing, "their ledger lost it, a letter says so"), officer_key=world.keys["ann"]
        )
        one = next(iter(client.matches(run.reconciliation)))
        positions = (one.our_positions[0], one.their_positions[0])
        undo = DecisionDocument(
            ids.new_uuid7(), K.UNMATCH, run.reconciliation, 0, "another payment after all", positions=positions
        )
        opened = client.undo_match(undo, officer_key=world.keys["ann"])
        second = client.reconcile(content, **again)
        assert second.reconciliation != run.reconciliation
        assert [item.id for item in client.breaks(counterparty="decided", states=["open"])] == [opened.found.id]
        assert client.break_detail(explained.found.id).found.state == "closed"
        pack = client.evidence(second.reconciliation)
    assert verify_pack(pack, bridge_key=world.keys[BRIDGE].public).findings == []


def test_the_same_id_is_the_same_run_and_other_content_is_refused(world: World) -> None:
    batch = settled(world, 2)
    with world.client(BANK_A) as client:
        content = camt053_bytes(statement_of(world, batch))
        source = client.add_source(content, source_format="camt.053", participant=BANK_A, counterparty="id")
        assert client.add_source(content, source_format="camt.053", participant=BANK_A, counterparty="id") == source
        wanted: dict[str, Any] = {
            "participant": BANK_A,
            "counterparty": "id",
            "currency": "CNY",
            "their_source": source.source,
            "batch": batch,
            "reconciliation": ids.new_uuid7(),
        }
        first = client.run_reconciliation(**wanted)
        assert client.run_reconciliation(**wanted) == first
        other = wanted | {"rules": {"value_days_max": 1}}
        assert refused(lambda: client.run_reconciliation(**other)) == "reconciliation-id-reused"


def test_a_table_is_read_by_the_counterpartys_mapping_and_each_version_is_kept(world: World) -> None:
    batch = settled(world, 2)
    entries = statement_of(world, batch).entries
    rows = ["Ref;UETR;Betrag;Valuta"]
    rows += [
        f"{line.reference};{line.uetr};-{line.amount.amount_minor // 100}.{line.amount.amount_minor % 100:02d}"
        f";{line.value_date:%d.%m.%Y}".replace(".", ",", 1)
        for line in entries
    ]
    content = "\n".join(rows).encode()
    mapping = {
        "columns": {"reference": "Ref", "uetr": "UETR", "amount": "Betrag", "value_date": "Valuta"},
        "sign": "positive-is-credit",
        "delimiter": ";",
        "decimal": ",",
        "date_format": "DD.MM.YYYY",
        "currency": "CNY",
    }
    with world.client(BANK_A) as client:
        with pytest.raises(ProblemResponse):
            client.add_source(content, source_format="csv", participant=BANK_A, counterparty="table")
        assert (
            refused(lambda: client.keep_mapping(BANK_A, "table", mapping | {"sign": "two-columns"}))
            == "mapping-invalid"
        )
        assert client.keep_mapping(BANK_A, "table", mapping).version == 1
        assert client.keep_mapping(BANK_A, "table", mapping).version == 1
        assert client.keep_mapping(BANK_A, "table", mapping | {"zone": "Asia/Dubai"}).version == 2
        source = client.add_source(content, source_format="csv", participant=BANK_A, counterparty="table")
        assert (source.mapping_version, source.line_count) == (2, 2)
        run = client.run_reconciliation(
            participant=BANK_A,
            counterparty="table",
            currency="CNY",
            their_source=source.source,
            batch=batch,
        )
        # A table has no booking time: the whole day counts as midnight, before the batch came. So by period:
        assert run.lines_theirs in (0, 2)
        pack = client.evidence(run.reconciliation)
    assert verify_pack(pack, bridge_key=world.keys[BRIDGE].public).findings == []


def test_a_third_long_computation_is_refused_at_once_and_reads_go_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = settled(world, 2)
    go_on, begun = threading.Event(), threading.Semaphore(0)

    def slow(*args: Any, **how: Any) -> bytes:
        begun.release()
        assert go_on.wait(20)
        return make_evidence(*args, **how)

    monkeypatch.setattr("settlement.api.reconciliation.make_evidence", slow)
    with world.client(BANK_A) as client, world.client(BRIDGE) as bridge, ThreadPoolExecutor(2) as pool:
        content = camt053_bytes(statement_of(world, batch))
        relation: dict[str, Any] = {"participant": BANK_A, "currency": "CNY", "counterparty": "busy", "batch": batch}
        run = client.reconcile(content, **relation)
        queued = bridge.settlements(batch)
        settlement = ids.show("stl", next(iter(queued)).settlement)
        packs = [pool.submit(world.evidence, run.reconciliation) for _ in range(2)]
        try:
            assert begun.acquire(timeout=20) and begun.acquire(timeout=20)
            with httpx.Client(auth=RequestSigner(world.keys[BANK_A]), trust_env=False, timeout=20) as raw:
                reference = ids.show("rec", run.reconciliation)
                for path in (f"/v1/reconciliations/{reference}/evidence", f"/v1/liquidity/why/{settlement}"):
                    third = raw.get(world.url + path)
                    assert (third.status_code, third.json()["refusal"]) == (429, "too-many-requests")
                    assert int(third.headers["retry-after"]) >= 1
                body = {
                    "reconciliation": ids.show("rec", ids.new_uuid7()),
                    "participant": BANK_A,
                    "counterparty": "busy",
                    "currency": "CNY",
                    "their_source": ids.show("src", run.their_source),
                    "batch": ids.show("bat", batch),
                }
                assert raw.post(f"{world.url}/v1/reconciliations", json=body).status_code == 429
                assert raw.get(f"{world.url}/v1/reconciliations/{reference}").status_code == 200
        finally:
            go_on.set()
        assert packs[0].result() == packs[1].result()
        assert client.evidence(run.reconciliation) == packs[0].result()
        assert client.reconcile(content, **relation).matched == 2


def test_reports_add_up_by_batch_participant_and_currency(world: World) -> None:
    batch = settled(world, 3)
    with world.client(BANK_A) as client, world.client(BRIDGE) as bridge:
        mine = list(client.settlement_report(batch=batch))
        everybody = list(bridge.settlement_report(batch=batch))
        one = next(bridge.settlement_report(batch=batch, currency="CNY", participant=BANK_B))
        assert one.net_minor == "30006"
    assert {(item.participant, item.currency): item.net_minor for item in mine} == {
        (BANK_A, "CNY"): "-30006",
        (BANK_A, "AED"): "15371",
    }
    assert sum(int(item.net_minor) for item in everybody if item.currency == "CNY") == 0


def test_the_control_says_when_an_island_has_lost_a_leg(world: World) -> None:
    batch = settled(world, 2)
    with world.client(BRIDGE) as bridge, world.client(BANK_A) as client:
        while bridge.run_control().settlements_checked < bridge.control().settlements_checked:
            pass
        good = bridge.control()
        assert good.is_good and good.legs_checked > 0
        assert all(item.bridge_minor == item.island_minor for item in good.balances)
        assert refused(client.control) == "not-permitted"
        settled(world, 1)
        real = world.aed.look_up
        world.aed.look_up = lambda orders: [HoldStanding.ABSENT for _ in orders]  # type: ignore[method-assign]
        try:
            bad = bridge.run_control()
        finally:
            world.aed.look_up = real  # type: ignore[method-assign]
        assert not bad.is_good
        assert sorted({item.type.value for item in bad.alarms}) == ["movement", "reorged-event"]
        assert len(bad.alarms) == 3
        assert bridge.run_control().settlements_checked == bad.settlements_checked
        for alarm in bad.alarms:
            explained = document(K.EXPLAIN, alarm, "the island answered wrongly in a test")
            bridge.decide(explained, officer_key=world.keys["ann"])
        assert bridge.control().is_good
    assert batch


def test_an_island_that_does_not_answer_moves_no_point(world: World) -> None:
    settled(world, 1)
    with world.client(BRIDGE) as bridge:
        before = bridge.control().settlements_checked
        real = world.cny.look_up
        world.cny.look_up = lambda orders: [HoldStanding.UNKNOWN for _ in orders]  # type: ignore[method-assign]
        try:
            assert bridge.run_control().settlements_checked == before
        finally:
            world.cny.look_up = real  # type: ignore[method-assign]
        assert bridge.run_control().settlements_checked > before
