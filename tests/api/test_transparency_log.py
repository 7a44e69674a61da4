"""Goal: anybody can check the ledger's log with public keys alone, and every lie about it is found.

Method: a real ledger with its sealer's process, and real witnesses, over HTTP. A holder's receipt is verified offline,
and then spoiled in every member, bit by bit; rows and tiles are altered by the database's owner.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from kernel import ids
from kernel.client import ProblemResponse
from kernel.clock import system_clock, to_micros
from kernel.crypto.keys import PrivateKey
from kernel.transparency.checkpoints import open_checkpoint
from kernel.transparency.merkle import verify_consistency, verify_inclusion
from kernel.transparency.notes import KeyKind, Note, VerifierKey, cosign_text, sign_text, to_base64
from kernel.transparency.tiles import TiledTree
from ledger.client import ReceiptRefused, verify_receipt, verify_supply
from ledger.contract import TransferResult
from ledger.domain.records import JOURNAL
from ledger.receipts import Receipt, SupplyStatement
from tests.ledger_world import make_world, serving
from tests.log_world import BANK, OTHER, Scene, module_database, read_over_http, scene_on


@pytest.fixture
def scene(fresh_database: Callable[[str], str], tmp_path: Path) -> Iterator[Scene]:
    with scene_on(fresh_database("ledger"), tmp_path) as found:
        yield found


# --- what a stranger can check ---------------------------------------------------------------------------------------


def test_a_stranger_checks_checkpoints_tiles_and_proofs(scene: Scene, tmp_path: Path) -> None:
    trees = []
    for count in (1, 200, 300, 1100):
        results = scene.pay(count)
        note = scene.await_sealed(results[-1].seq or 0)
        trees.append(open_checkpoint(note, log_key=scene.log_key).checkpoint)
    with scene.world.anonymous() as client:
        log = client.log()
        assert (log.origin, log.vkey, log.failure) == ("test-cny", str(scene.log_key), None)
        assert client.ledger().log_key == log.vkey
        newest = trees[-1]
        for checkpoint in trees:
            tree = TiledTree(checkpoint.size, read_over_http(scene.world.url))
            assert tree.root() == checkpoint.root
            for old in trees:
                if old.size <= checkpoint.size:
                    proof = client.consistency_proof(old.size, checkpoint.size).proof
                    assert verify_consistency(
                        old_size=old.size,
                        old_root=old.root,
                        new_size=checkpoint.size,
                        new_root=checkpoint.root,
                        proof=proof,
                    )
        for seq in (1, 255, 256, 257, newest.size):
            found = client.inclusion_proof(seq, newest.size)
            assert verify_inclusion(
                found.leaf_hash, index=found.leaf_index, size=newest.size, proof=found.proof, root=newest.root
            )
        listed = client.checkpoints(limit=1000)
        assert [item.block for item in listed] == sorted({item.block for item in listed}, reverse=True)
        assert [item.size for item in listed] == sorted((item.size for item in listed), reverse=True)
        for item in listed:
            opened = open_checkpoint(item.note, log_key=scene.log_key).checkpoint
            assert (opened.size, opened.root) == (item.size, item.root)
            assert opened.extension("block") == [str(item.block), to_base64(item.block_commitment)]
    master = bytes.fromhex((tmp_path / "log-test-cny.salt").read_text())
    with scene.world.operator() as client:
        for item in listed[:20]:
            block_hash = client.block(item.block).hash
            assert block_hash is not None
            salt = hmac.digest(master, b"jiaozi-block-salt-v1" + item.block.to_bytes(8), "sha256")
            expected = hashlib.sha256(b"jiaozi-block-commitment-v1" + salt + block_hash).digest()
            assert item.block_commitment == expected
            assert to_base64(block_hash) not in item.note, "nobody can test a guess of a block's content"


def test_every_checkpoint_signs_a_supply_that_adds_up(one_scene: Scene) -> None:
    one_scene.await_sealed(one_scene.pay(5)[-1].seq or 0)
    with one_scene.world.anonymous() as client:
        supply, note = client.supply(), client.checkpoint()
        statement = client.supply_statement()
        found = verify_supply(statement, note, log_key=one_scene.log_key).statement
        assert (found.issued_minor, found.vaults_minor, found.wallets_minor, found.held_minor) == (
            supply.issued_minor,
            supply.vaults_minor,
            supply.wallets_minor,
            supply.held_minor,
        )
        assert found.circulation_minor == 10**9
        newest_of_size = {item.size: item for item in reversed(client.checkpoints())}
        for size, item in newest_of_size.items():
            of_size = httpx.get(f"{one_scene.world.url}/v1/log/checkpoints/{size}").json()
            # A witness may cosign between the two answers, so the later one may carry more signatures, never fewer.
            assert of_size["block"] == item.block
            assert of_size["note"].partition("\n\n")[0] == item.note.partition("\n\n")[0]
            assert set(of_size["note"].splitlines()) >= set(item.note.splitlines())
            verify_supply(client.supply_statement(size), item.note, log_key=one_scene.log_key)
        forged = statement.replace(b'"issued_minor":"1000000000"', b'"issued_minor":"1000000001"')
        assert forged != statement
        with pytest.raises(ReceiptRefused, match="not the one that the checkpoint signs"):
            verify_supply(forged, note, log_key=one_scene.log_key)


def test_a_signed_supply_that_does_not_add_up_is_refused(tmp_path: Path) -> None:
    """The ledger itself lies, with its own key."""
    key = PrivateKey.generate()
    honest = {
        **{"ledger": "x", "currency": "CNY", "block": 3, "seq": 7, "booked_at": "2026-11-23T03:47:50.093653Z"},
        **{"issued_minor": "10", "redeemed_minor": "2", "circulation_minor": "8", "vaults_minor": "5"},
        **{"wallets_minor": "3", "held_minor": "1", "offline_minor": "0"},
    }

    def check(**changed: str) -> None:
        statement = SupplyStatement.model_validate({**honest, **changed}).canonical
        digest = to_base64(hashlib.sha256(statement).digest())
        text = f"x\n7\n{to_base64(bytes(32))}\nblock 3 {to_base64(bytes(32))}\nsupply {digest}\n"
        note = str(Note(text, (sign_text(text, name="x", key=key),)))
        verify_supply(statement, note, log_key=VerifierKey("x", KeyKind.ED25519, key.public))

    check()
    for member in (
        "issued_minor",
        "redeemed_minor",
        "circulation_minor",
        "vaults_minor",
        "wallets_minor",
        "offline_minor",
    ):
        with pytest.raises(ReceiptRefused, match="add up"):
            check(**{member: str(int(str(honest[member])) + 1)})
    with pytest.raises(ReceiptRefused, match="more is held"):
        check(held_minor="9")
    for less, more in (("vaults_minor", "wallets_minor"), ("wallets_minor", "vaults_minor")):
        with pytest.raises(ReceiptRefused, match="less than nothing"):
            check(**{less: "-1", more: "9"})
    with pytest.raises(ReceiptRefused, match="another block"):
        check(**{"seq": 8})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/tile/0/000.p/1", 200),
        ("/tile/0/000", 404),
        ("/tile/0/000.p/255", 404),
        ("/tile/0/001", 404),
        ("/tile/8/000", 404),
        ("/tile/00/000.p/1", 404),
        ("/tile/-1/000.p/1", 404),
        ("/tile/entries/000.p/1", 404),
        ("/tile/0/0.p/1", 404),
        ("/tile/0/x000/000.p/1", 404),
        ("/tile/0/%2e%2e/000", 404),
        ("/tile/0/x999/x999/x999/x999/x999/x999/999", 404),
        ("/v1/log/inclusion?seq=1&size=999999", 503),
        ("/v1/log/inclusion?seq=2&size=1", 422),
        ("/v1/log/inclusion?seq=0&size=1", 422),
        ("/v1/log/inclusion?seq=1&size=9223372036854775808", 422),
        ("/v1/log/consistency?old=2&new=1", 422),
        ("/v1/log/consistency?old=0&new=1", 200),
        ("/v1/log/supply/987654321", 404),
        ("/v1/log/supply/9223372036854775807", 404),
        ("/v1/log/supply/9999999999999999999", 404),
        ("/v1/log/supply/-1", 422),
        ("/v1/log/checkpoints/987654321", 404),
        ("/v1/log/checkpoints?limit=0", 422),
        ("/checkpoint?x=1", 422),
    ],
)
def test_what_the_log_does_not_have_is_one_clear_problem(one_scene: Scene, path: str, status: int) -> None:
    response = httpx.get(one_scene.world.url + path)
    assert response.status_code == status, response.text
    if status >= 400:
        assert response.headers["content-type"] == "application/problem+json"
        assert "immutable" not in response.headers.get("cache-control", "")


@pytest.fixture(scope="module")
def one_scene(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One ledger for tests that only read and pay."""
    with (
        module_database(postgres) as url,
        scene_on(url, tmp_path_factory.mktemp("log"), witnesses=2) as found,
    ):
        found.await_sealed(found.pay(20)[-1].seq or 0, cosignatures=2)
        yield found


# --- receipts --------------------------------------------------------------------------------------------------------


def test_a_receipt_of_every_kind_of_transfer_verifies_offline(one_scene: Scene) -> None:
    world = one_scene.world
    with world.client(BANK) as client:
        funded = client.transfer(world.terms("exchange-in", one_scene.payer, one_scene.wallet, 5_000))
        signed_terms = world.terms("payment", one_scene.wallet, one_scene.payee, 700)
        signed = client.submit_instruction(world.instruction(signed_terms, one_scene.holder))
        secret = b"s" * 32
        plain = world.terms(
            "hold", one_scene.payer, one_scene.payee, 50, expires_at=system_clock() + timedelta(hours=1)
        )
        conditional = world.terms(
            *("hold", one_scene.payer, one_scene.payee, 60),
            commit_hash=hashlib.sha256(secret).digest(),
            abort_hash=hashlib.sha256(b"a" * 32).digest(),
        )
        results = [funded, signed, client.transfer(plain), client.transfer(conditional)]
        results.append(client.transfer(world.terms("post", None, None, None, hold=conditional.id, secret=secret)))
        with world.client(OTHER) as payees:
            results.append(payees.transfer(world.terms("void", None, None, None, hold=plain.id)))
        results.append(client.transfer(world.terms("void", None, None, None, hold=ids.new_uuid7(), secret=secret)))
        assert all(result.outcome.value == "booked" for result in results), results
        one_scene.await_sealed(results[-1].seq or 0)
        evidence = []
        for result in results:
            assert result.id is not None
            document = one_scene.receipt(result) if result is not results[-1] else _operators_receipt(one_scene, result)
            proved = verify_receipt(document, log_key=one_scene.log_key).receipt
            view = _operators_view(one_scene, result)
            assert (proved.transfer.seq, proved.transfer.id, proved.transfer.kind) == (view.seq, view.id, view.kind)
            assert (proved.transfer.debit, proved.transfer.credit) == (view.debit, view.credit)
            assert proved.transfer.amount_minor == view.amount_minor
            evidence.append(proved.evidence_digest is not None)
    assert evidence == [False, True, True, True, True, False, True]
    with world.operator() as client:  # the issue carries its mandate
        issued = [item for item in _records(one_scene) if item["kind"] == 0]
        transfer = ids.UUID(int=int(issued[0]["id_high"]) << 64 | int(issued[0]["id_low"]))
        assert verify_receipt(client.receipt(transfer), log_key=one_scene.log_key).receipt.evidence_digest is not None


def _operators_receipt(scene: Scene, result: TransferResult) -> bytes:
    with scene.world.operator() as client:
        assert result.id is not None
        return client.receipt(result.id)


def _operators_view(scene: Scene, result: TransferResult) -> Any:
    with scene.world.operator() as client:
        assert result.id is not None
        return client.get_transfer(result.id)


def _records(scene: Scene) -> Any:
    with scene.owner() as connection:
        rows = connection.execute(
            "SELECT seq, id, kind, debit_account, credit_account, amount_minor, hold_id, reference, submitter,"
            " booked_at FROM transfer ORDER BY seq"
        ).fetchall()
    records = np.zeros(len(rows), JOURNAL)
    low = 2**64 - 1
    for place, row in enumerate(rows):
        hold, reference = (row[6].int if row[6] else 0), (row[7].int if row[7] else 0)
        records[place] = (
            *(row[0], row[1].int >> 64, row[1].int & low, *row[2:6], hold >> 64, hold & low),
            *(reference >> 64, reference & low, row[8], to_micros(row[9])),
        )
    return records


def test_the_receipts_record_is_the_journals(one_scene: Scene) -> None:
    one_scene.await_sealed(one_scene.pay(3)[-1].seq or 0)
    for record in _records(one_scene):
        transfer = ids.UUID(int=int(record["id_high"]) << 64 | int(record["id_low"]))
        with one_scene.world.operator() as client:
            receipt = Receipt.model_validate_json(client.receipt(transfer))
        assert receipt.transfer.record == record.tobytes()


def test_only_those_concerned_get_a_receipt_and_only_once_it_is_sealed(
    fresh_database: Callable[[str], str], tmp_path: Path
) -> None:
    world = make_world(fresh_database("ledger"), tmp_path, log_seal_seconds=60)
    with serving(world):
        world.register(BANK)
        world.register(OTHER)
        payer, third = world.open_vault(BANK), world.open_vault(BANK)
        world.issue(payer, 1000)
        with world.client(BANK) as client:
            deadline = time.monotonic() + 20
            while not client.checkpoints():  # the next one comes a minute later
                assert time.monotonic() < deadline
                time.sleep(0.02)
            result = client.transfer(world.terms("payment", payer, third, 5))
            assert result.id is not None
            with pytest.raises(ProblemResponse) as refused:
                client.receipt(result.id)
            assert (refused.value.refusal, refused.value.transient, refused.value.status) == ("not-sealed", True, 503)
            with pytest.raises(ProblemResponse, match="signature-missing"), world.anonymous() as nobody:
                nobody.receipt(result.id)
        with world.client(OTHER) as client, pytest.raises(ProblemResponse, match="transfer-not-found"):
            client.receipt(result.id)


def test_witnesses_cosign_and_receipts_carry_a_quorum(one_scene: Scene) -> None:
    keys = [item.key for item in one_scene.witnesses]
    result = one_scene.pay()[0]
    document = one_scene.receipt(result, quorum=2)
    proved = verify_receipt(document, log_key=one_scene.log_key, witnesses=keys, quorum=2)
    assert {item.witness for item in proved.tree_cosigned} == {"w0.example", "w1.example"}
    stranger = VerifierKey("w9.example", KeyKind.COSIGNATURE_V1, PrivateKey.generate().public)
    with pytest.raises(ReceiptRefused, match="2 of the known witnesses"):
        verify_receipt(document, log_key=one_scene.log_key, witnesses=[*keys, stranger], quorum=3)
    with one_scene.world.client(BANK) as client:
        assert result.id is not None
        with pytest.raises(ProblemResponse, match="not-sealed"):
            client.receipt(result.id, quorum=3)
        assert [item.name for item in client.log().witnesses] == ["w0.example", "w1.example"]


@pytest.mark.parametrize("each", [8, pytest.param(1, marks=pytest.mark.extended)])
def test_a_bit_flipped_anywhere_in_a_receipt_is_found(one_scene: Scene, each: int) -> None:
    """Every bit of every byte of the document, or each eighth: one of each byte; a receipt with two cosignatures."""
    keys = [item.key for item in one_scene.witnesses]
    document = one_scene.receipt(one_scene.pay()[0], quorum=2)
    verify_receipt(document, log_key=one_scene.log_key, witnesses=keys, quorum=2)
    survivors = []
    for place in range(len(document)):
        for bit in range(place % each, 8, each):
            flipped = bytearray(document)
            flipped[place] ^= 1 << bit
            try:
                verify_receipt(bytes(flipped), log_key=one_scene.log_key, witnesses=keys, quorum=2)
            except ReceiptRefused:
                continue
            survivors.append((place, bit, bytes(flipped[max(0, place - 20) : place + 20])))
    assert survivors == []


def test_every_member_of_a_receipt_is_bound(one_scene: Scene) -> None:
    keys = [item.key for item in one_scene.witnesses]
    one, two = one_scene.pay(2)
    first, second = (json.loads(one_scene.receipt(result, quorum=2)) for result in (one, two))

    def check(document: dict[str, Any]) -> None:
        verify_receipt(json.dumps(document).encode(), log_key=one_scene.log_key, witnesses=keys, quorum=2)

    check(first)
    check(second)
    for name in first:
        without = {key: value for key, value in first.items() if key != name}
        with pytest.raises(ReceiptRefused):
            check(without)
        if first[name] != second[name] and name not in ("checkpoint", "tree_size", "supply"):
            with pytest.raises(ReceiptRefused):
                check({**first, name: second[name]})
    with pytest.raises(ReceiptRefused):
        check({**first, "more": 1})
    transfer = first["transfer"]
    spoiled: dict[str, Any] = {
        "seq": transfer["seq"] + 1,
        "id": ids.show("trf", ids.new_uuid7()),
        "kind": "refund",
        "debit": ids.show_account(77),
        "credit": ids.show_account(78),
        "amount_minor": str(int(transfer["amount_minor"]) + 1),
        "hold": ids.show("trf", ids.new_uuid7()),
        "reference": str(ids.new_uuid7()),
        "submitter": transfer["submitter"] + 1,
        "booked_at": transfer["booked_at"].replace("Z", "+00:00"),
    }
    assert set(spoiled) == set(transfer)
    for name, value in spoiled.items():
        with pytest.raises(ReceiptRefused):
            check({**first, "transfer": {**transfer, name: value}})
    for name, value in first["supply"].items():
        other = value + 1 if isinstance(value, int) else value[:-1] + ("1" if value[-1] != "1" else "2")
        with pytest.raises(ReceiptRefused):
            check({**first, "supply": {**first["supply"], name: other}})
    for proof in (
        [],
        first["inclusion_proof"][1:],
        first["inclusion_proof"][::-1],
        [*first["inclusion_proof"], "0" * 64],
    ):
        with pytest.raises(ReceiptRefused):
            check({**first, "inclusion_proof": proof})
    with pytest.raises(ReceiptRefused):
        verify_receipt(b"[" * 100_000, log_key=one_scene.log_key)
    with pytest.raises(ReceiptRefused):
        verify_receipt(b"x" * 1_000_000, log_key=one_scene.log_key)


def test_a_receipt_of_another_log_or_signed_by_another_key_is_refused(one_scene: Scene) -> None:
    document = json.loads(one_scene.receipt(one_scene.pay()[0]))
    note = Note.parse(document["checkpoint"])
    thief = PrivateKey.generate()
    resigned = Note(note.text, (sign_text(note.text, name="test-cny", key=thief),))
    with pytest.raises(ReceiptRefused, match="no signature of a known key"):
        verify_receipt(json.dumps({**document, "checkpoint": str(resigned)}).encode(), log_key=one_scene.log_key)
    # under the real key's id, but by the thief's hand
    real = note.signatures[0]
    forged = Note(note.text, (type(real)(real.name, real.key_id, thief.sign(note.text.encode())),))
    with pytest.raises(ReceiptRefused, match="does not verify"):
        verify_receipt(json.dumps({**document, "checkpoint": str(forged)}).encode(), log_key=one_scene.log_key)
    other_log = VerifierKey("other-log", KeyKind.ED25519, one_scene.log_key.public)
    with pytest.raises(ReceiptRefused):
        verify_receipt(json.dumps(document).encode(), log_key=other_log)
    # a witness's key is no log key, and a cosignature no log's signature
    witness = PrivateKey.generate()
    cosigned = Note(note.text, (cosign_text(note.text, name="test-cny", key=witness, timestamp=1),))
    as_log = VerifierKey("test-cny", KeyKind.COSIGNATURE_V1, witness.public)
    with pytest.raises(ReceiptRefused):
        verify_receipt(json.dumps({**document, "checkpoint": str(cosigned)}).encode(), log_key=as_log)


# --- a ledger that lies ----------------------------------------------------------------------------------------------


@pytest.mark.extended
def test_a_row_rewritten_after_it_was_sealed_gives_no_receipt(scene: Scene) -> None:
    results = scene.pay(3)
    scene.receipt(results[1])
    with scene.owner() as connection:
        connection.execute("UPDATE transfer SET amount_minor = amount_minor + 1 WHERE id = %s", [results[1].id])
    with scene.world.client(BANK) as client:
        assert results[1].id is not None
        assert results[0].id is not None
        with pytest.raises(ProblemResponse) as refused:
            client.receipt(results[1].id)
        assert refused.value.status == 500
        verify_receipt(client.receipt(results[0].id), log_key=scene.log_key)


def test_an_altered_tile_is_found_by_whoever_reads_it(scene: Scene) -> None:
    result = scene.pay(600)[0]
    checkpoint = open_checkpoint(scene.await_sealed((result.seq or 0) + 599), log_key=scene.log_key).checkpoint
    with scene.owner() as connection:
        connection.execute(
            "UPDATE log_tile SET hashes = set_byte(hashes, 100, get_byte(hashes, 100) # 1) WHERE index = 1"
        )
    index = 256 + 5
    with scene.world.anonymous() as client:
        found = client.inclusion_proof(index + 1, checkpoint.size)
    assert not verify_inclusion(
        found.leaf_hash, index=index, size=checkpoint.size, proof=found.proof, root=checkpoint.root
    )
