"""Goal: a bridge cannot sign a pack whose list of breaks or receipts is not what the inputs give, a participant cannot
close breaks of the bridge's record with files of its own making, and a repair passes what every instruction passes.

Method: the real service of `test_settlement_reconciliation`; packs are opened, forged and signed again with the
bridge's real key; receipts are real ones, of a log with one leaf.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey
from kernel.ids import new_uuid7
from kernel.money import Money
from kernel.transparency.checkpoints import Checkpoint
from kernel.transparency.merkle import leaf_hash
from kernel.transparency.notes import KeyKind, Note, VerifierKey, sign_text, to_base64
from ledger.contract import TransferKind
from ledger.log.leaves import leaf_input
from ledger.receipts import Receipt, ReceiptTransfer, SupplyStatement
from settlement.contract import SettlementState
from settlement.domain.reconciliation import JOURNAL
from settlement.domain.reconciliation.lifecycle import Repair, RepairKind
from settlement.domain.reconciliation.lines import LineTable
from settlement.domain.statements import Direction, StatementEntry
from settlement.evidence import summary
from settlement.evidence.archive import PackRefused, read_archive, write_archive
from settlement.evidence.verify import MANIFEST_TYPE, verify_pack
from settlement.sources import SourceFormat
from settlement.sources.tables import write_csv
from settlement.store.gates import Gate, GateKind
from settlement.usecases.intake import Candidate, Fault
from settlement.usecases.statements import camt053_bytes
from tests.api.test_settlement_reconciliation import (
    AED,
    BANK_A,
    BANK_B,
    BRIDGE,
    CNY,
    K,
    World,
    document,
    refused,
    settled,
    spoilt,
    statement_of,
)
from tests.api.test_settlement_reconciliation import world as world

Change = Callable[[list[dict[str, Any]]], object]


def forged(pack: bytes, key: PrivateKey, change: Change) -> bytes:
    """The pack with other breaks listed, consistent in all else, and signed by the bridge."""
    members = read_archive(pack)
    manifest: dict[str, Any] = json.loads(jws.read(members.pop("manifest.jws").decode()).payload)
    breaks = json.loads(members["breaks.json"])
    change(breaks)
    members["breaks.json"] = json.dumps(breaks).encode()
    manifest["breaks"]["listed"] = len(breaks)

    def named() -> dict[str, Any]:
        return {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in members.items()
        }

    papers = ("summary.html", "summary.pdf")
    stated = {**manifest, "files": {name: what for name, what in named().items() if name not in papers}}
    members["summary.html"] = summary.write_html(summary.tables_of(stated, breaks))
    manifest["files"] = named()
    members["manifest.jws"] = jws.sign(jws.canonical_json(manifest), key, typ=MANIFEST_TYPE).encode()
    return write_archive(members)


def test_a_signed_pack_with_other_breaks_than_its_inputs_give_is_found_out(world: World) -> None:
    batch = settled(world)
    with world.client(BANK_A) as client:
        relation: dict[str, Any] = {"participant": BANK_A, "currency": "CNY", "counterparty": "forged", "batch": batch}
        first = client.reconcile(camt053_bytes(spoilt(world, batch)), **relation)
        pack = client.evidence(first.reconciliation)
        again = client.evidence(client.reconcile(camt053_bytes(spoilt(world, batch)), **relation).reconciliation)
    key = world.keys[BRIDGE]

    def findings(change: Change, base: bytes = pack) -> list[str]:
        return verify_pack(forged(base, key, change), bridge_key=key.public).findings

    good = verify_pack(pack, bridge_key=key.public)
    assert findings(lambda _: None) == good.findings == []
    assert any("summary.pdf" in note and "not evidence" in note for note in good.notes)
    assert verify_pack(again, bridge_key=key.public).proved["breaks of earlier runs"] == 2
    assert findings(lambda breaks: breaks.clear()) == ["breaks.json lists 0 breaks, the inputs give 3"]
    assert "twice" in findings(lambda breaks: breaks.append(breaks[0]))[1]
    assert findings(lambda breaks: breaks.reverse())
    for name, value in (
        ("type", "fee"),
        ("sentence", "nothing to see"),
        ("our_amount_minor", "1"),
        ("gross", {"CNY": "2"}),
        ("our_references", ["x"]),
        ("state", "closed"),
    ):
        found = findings(lambda breaks: breaks[0].update({name: value}))  # noqa: B023
        assert len(found) == 1 and name in found[0], (name, found)
    assert "type" in findings(lambda breaks: breaks[0].update({"type": "fee"}), again)[0]


def test_the_pack_says_whose_record_each_side_is(world: World) -> None:
    batch = settled(world, 2)
    with world.client(BANK_A) as client:
        run = client.reconcile(
            camt053_bytes(statement_of(world, batch)), batch=batch, participant=BANK_A, currency="CNY", counterparty="w"
        )
        members = read_archive(client.evidence(run.reconciliation))
        inputs = json.loads(jws.read(members["manifest.jws"].decode()).payload)["inputs"]
        sides = {side: (what["counterparty"], what["is_bridge_record"]) for side, what in inputs.items()}
        assert sides == {"ours": (JOURNAL, True), "theirs": ("w", False)}
        own = client.run_reconciliation(
            participant=BANK_A, counterparty="w", currency="CNY", their_source=run.their_source,
            our_source=run.their_source,
        )  # fmt: skip
        found = verify_pack(client.evidence(own.reconciliation), bridge_key=world.keys[BRIDGE].public)
    assert found.findings == [] and "not the bridge's own record" in found.notes[0]
    assert b"the bridge&#x27;s own record" in members["summary.html"]


def table(lines: Sequence[StatementEntry]) -> bytes:
    return write_csv(LineTable.of_entries(lines))


def test_a_file_of_ones_own_closes_nothing_of_the_bridges_record(world: World) -> None:
    batch = settled(world)
    relation: dict[str, Any] = {"participant": BANK_A, "currency": "CNY", "counterparty": "mine"}
    with world.client(BANK_A) as client:
        whole, partial = statement_of(world, batch), spoilt(world, batch)
        record = client.reconcile(camt053_bytes(partial), batch=batch, **relation)
        opened = {item.id for item in record.breaks}
        assert len(opened) == 3

        def source(lines: Sequence[StatementEntry], counterparty: str = "mine") -> UUID:
            return client.add_source(
                table(lines), source_format=SourceFormat.CSV.value, participant=BANK_A, counterparty=counterparty
            ).source

        assert refused(lambda: source(whole.entries, JOURNAL)) == "validation-failed"
        other = source(whole.entries, "somebody")
        by_other: dict[str, Any] = relation | {"their_source": other, "batch": batch}
        assert refused(lambda: client.run_reconciliation(**by_other)) == "source-of-another-relation"

        # Both sides of one's own making, all equal: every line of the record's breaks is matched.
        everything = [*whole.entries, partial.entries[-1]]
        both = source(everything)
        forged_run = client.run_reconciliation(**relation, their_source=both, our_source=both)
        assert (forged_run.matched, forged_run.breaks, forged_run.closed_count) == (7, [], 0)
        # A line of "ours" that is nowhere in the record does not come into it by being carried either.
        client.run_reconciliation(**relation, their_source=source(whole.entries), our_source=both)
        last = client.reconcile(camt053_bytes(partial), batch=batch, **relation)
        assert ({item.id for item in last.breaks}, last.closed_count) == (opened, 0)
        assert opened <= {item.id for item in client.breaks(counterparty="mine", states=["open"])}
        # The record itself closes what the late side explains.
        assert client.reconcile(camt053_bytes(whole), batch=batch, **relation).closed_count == 2


def test_a_proposed_break_is_not_closed_behind_the_officers_back(world: World) -> None:
    batch = settled(world)
    relation: dict[str, Any] = {"participant": BANK_A, "currency": "CNY", "counterparty": "hands", "batch": batch}
    with world.client(BANK_A) as client:
        first = client.reconcile(camt053_bytes(spoilt(world, batch)), **relation)
        found = {item.type.value: item for item in first.breaks}
        repair = Repair(RepairKind.CLAIM, BANK_B, BANK_A, 1, "CNY")
        proposal = document(K.PROPOSE, found["amount"], "they booked one fen more", repair=repair)
        client.decide(proposal, officer_key=world.keys["ann"])
        last = client.reconcile(camt053_bytes(statement_of(world, batch)), **relation)
        assert last.closed_count == 1
        assert client.break_detail(found["amount"].id).found.state == "proposed"
        assert client.break_detail(found["missing-there"].id).found.state == "closed"
        pack = client.evidence(first.reconciliation)
    key = world.keys[BRIDGE]

    def enlarge(breaks: list[dict[str, Any]]) -> None:
        next(item for item in breaks if item["repairs"])["repairs"][0]["amount_minor"] = "2"

    assert verify_pack(forged(pack, key, lambda _: None), bridge_key=key.public).is_good
    more, unsigned = verify_pack(forged(pack, key, enlarge), bridge_key=key.public).findings
    assert "of more than the break" in more and "not the one that the officer signed" in unsigned


class Checks:
    """An intake check that closes a gate, or refuses."""

    def __init__(self) -> None:
        self.fault = False
        self.seen: list[Candidate] = []

    def __call__(self, connection: Any, candidates: Sequence[Candidate], *, now: datetime) -> list[Fault | Gate]:
        self.seen += candidates
        if self.fault:
            return [Fault("currency-not-served", 1, "instruction 1: not today")]
        return [Gate(item.settlement.id, GateKind.COMPLIANCE, "looked at first") for item in candidates]


def test_a_repair_is_of_no_more_than_the_break_and_passes_the_intake_checks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, checks = settled(world), Checks()
    ann, ben = world.keys["ann"], world.keys["ben"]
    with world.client(BANK_A) as client, world.client(BRIDGE) as bridge:
        run = client.reconcile(
            camt053_bytes(spoilt(world, batch)), batch=batch, participant=BANK_A, currency="CNY", counterparty="gate"
        )
        found = {item.type.value: item for item in run.breaks}
        amount = found["amount"]
        gross = int(amount.gross_minor["CNY"])
        for kind, too_much, currency in (
            (RepairKind.INSTRUCTION, gross + 1, "CNY"),
            (RepairKind.CLAIM, gross + 1, "CNY"),
            (RepairKind.CLAIM, 1, "AED"),
        ):
            repair = Repair(kind, BANK_B, BANK_A, too_much, currency)
            more = document(K.PROPOSE, amount, "more than what is wrong", repair=repair)
            assert refused(lambda: client.decide(more, officer_key=ann)) == "repair-not-possible"  # noqa: B023

        repair = Repair(RepairKind.INSTRUCTION, BANK_B, BANK_A, gross, "CNY")
        proposed = client.decide(document(K.PROPOSE, amount, "pay it back to bank A", repair=repair), officer_key=ann)
        approve = document(K.APPROVE, proposed.found, proposal=proposed.repairs[0].proposal)
        service = world.app.state.service
        before = service.intake_checks
        object.__setattr__(service, "intake_checks", (*before, checks))
        try:
            checks.fault = True
            assert refused(lambda: client.decide(approve, officer_key=ben)) == "repair-not-possible"
            assert client.break_detail(amount.id).found == proposed.found
            checks.fault = False
            approved = client.decide(approve, officer_key=ben)
        finally:
            object.__setattr__(service, "intake_checks", before)
        settlement = approved.repairs[0].settlement
        assert settlement is not None and checks.seen[-1].settlement.id == settlement
        assert checks.seen[-1].instruction.amount == Money(gross, CNY)
        bridge.run_control()
        settled(world, 1)  # the engine has been round since
        assert bridge.settlement(settlement).state is SettlementState.RECEIVED
        assert client.break_detail(amount.id).found.state == "approved"


# --- receipts


def receipt_of(key: PrivateKey, transfer: ReceiptTransfer, currency: str) -> bytes:
    """A real receipt: the only leaf of a log that this key signs."""
    salt, name = bytes(16), "log.example"
    supply = SupplyStatement(
        ledger="cny-ledger", currency=currency, block=1, seq=1, booked_at=transfer.booked_at, issued_minor=0,
        redeemed_minor=0, circulation_minor=0, vaults_minor=0, wallets_minor=0, held_minor=0, offline_minor=0,
    )  # fmt: skip
    signs = (
        f"block 1 {to_base64(bytes(32))}",
        f"supply {to_base64(hashlib.sha256(supply.canonical).digest())}",
    )
    text = Checkpoint(name, 1, leaf_hash(leaf_input(salt, transfer.record, None)), signs).text
    note = str(Note(text, (sign_text(text, name=name, key=key),)))
    receipt = Receipt(
        format="jiaozi-receipt/v1", ledger="cny-ledger", currency=currency, transfer=transfer, salt=salt,
        evidence_digest=None, leaf_index=0, tree_size=1, inclusion_proof=[], checkpoint=note, supply=supply,
    )  # fmt: skip
    return jws.canonical_json(receipt.model_dump(mode="json"))


def test_a_receipt_proves_the_posting_of_its_line_or_is_a_finding(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = settled(world, 2)
    statement = statement_of(world, batch)
    lines = {line.reference: line for line in statement.entries}
    key = PrivateKey.generate()
    changed: dict[str, Any] = {}
    currency = CNY.code

    def receipt(hold: UUID) -> bytes:
        line = lines[hold.hex]
        ends = {"debit": 11, "credit": 12} if line.direction is Direction.DEBIT else {"debit": 12, "credit": 11}
        values: dict[str, Any] = {
            "seq": 1, "id": new_uuid7(), "kind": TransferKind.POST, "amount_minor": line.amount.amount_minor,
            "hold": hold, "reference": None, "submitter": 1, "booked_at": datetime.now(UTC), **ends,
        }  # fmt: skip
        return receipt_of(key, ReceiptTransfer.model_validate(values | changed), currency)

    monkeypatch.setattr(world.cny, "receipt", receipt, raising=False)
    vkey = VerifierKey("log.example", KeyKind.ED25519, key.public)
    monkeypatch.setattr(world.cny, "log_key", lambda: str(vkey), raising=False)
    with world.client(BANK_A) as client:
        run = client.reconcile(
            camt053_bytes(statement), batch=batch, participant=BANK_A, currency="CNY", counterparty="proof"
        )

        def findings() -> list[str]:
            pack = client.evidence(run.reconciliation)
            found = verify_pack(pack, bridge_key=world.keys[BRIDGE].public, log_keys={"cny-ledger": vkey})
            assert found.proved.get("receipts", 0) == (0 if found.findings else 2)
            return found.findings

        assert findings() == []
        for change, said in (
            ({"kind": TransferKind.VOID}, "proves a void"),
            ({"amount_minor": 1}, "proves 1 of CNY"),
            ({"debit": 12, "credit": 11}, "our line's side on another account"),
            ({"credit": 13}, "other side of our line"),
        ):
            changed = change
            found = findings()
            assert len(found) == 2 and all(said in text for text in found), (change, found)
        changed, currency = {}, AED.code
        assert all("of AED" in text for text in findings())


# --- the archive


def test_a_packed_member_is_refused_before_it_is_read() -> None:
    content = write_archive({"a": b"x" * 500})
    assert read_archive(content) == {"a": b"x" * 500}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(range(256)))
    packed = bytearray(out.getvalue())
    with pytest.raises(PackRefused, match="packed"):
        read_archive(bytes(packed))
    packed[40] ^= 0xFF  # a broken stream
    assert verify_pack(bytes(packed), bridge_key=PrivateKey.generate().public).findings
    # Stored by the directory's word, deflated by the member's own header, and the other way round.
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 8
        with pytest.raises(PackRefused):
            read_archive(bytes(changed))
