"""Goal: a ChainMaker chain behind the port keeps all promises of the conformance suite, and speaks the published bytes.

Method: the suite, and attacks on the adapter, over a double of a node (`tests/chainmaker/node.py`: a real gRPC server
that checks signatures and runs the same bytecode); messages against bytes that the public SDK made. No real node.
"""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from eth_utils.address import to_checksum_address
from typer.testing import CliRunner

from kernel import ids
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.money import Currency, Money
from kernel.server import make_server
from settlement.__main__ import app
from settlement.api.app import Outside, connect_over_http, create
from settlement.client import SettlementClient
from settlement.conformance import CASES, Case, Result, run_case
from settlement.conformance.chainmaker import ALLOWANCE_MAX, ChainMakerSubject
from settlement.conformance.stage import AMOUNT_MINOR, Order, Stage
from settlement.domain.instructions import Instruction, Priority
from settlement.islands.authorisers import Authorised, FakeAuthoriser, LegOrder
from settlement.islands.balances import read_available
from settlement.islands.chainmaker import wire_pb2 as wire
from settlement.islands.chainmaker.client import (
    Node,
    NodeRefused,
    NodeUnreachable,
    Tls,
    address_of_certificate,
    address_of_contract,
    evm_call,
    load_signer,
    payload_bytes,
    transaction_id,
    verified_sender,
)
from settlement.islands.chainmaker.config import connect_chainmaker
from settlement.islands.chainmaker.entry import ChainMakerEntry
from settlement.islands.chainmaker.island import ChainMakerIsland, EscrowAstray
from settlement.islands.chainmaker.payer import ChainMakerAuthoriser, PayerSigner
from settlement.islands.chainmaker.terms import VALID_SECONDS, VALID_SECONDS_MAX, check_lock, sign_lock
from settlement.islands.evm.contracts import ESCROW, TOKEN, chain_id_of_hold
from settlement.islands.evm.payer import AuthoriserByLedger
from settlement.islands.fake import FakeIsland
from settlement.islands.port import Ended, Held, HoldStanding, Island, Refused, SignedHold, Unknown
from settlement.iso20022.pacs009 import write_pacs009
from settlement.settings import Directory, LedgerEntry, SettlementSettings
from tests.chainmaker.generate import HERE, generated
from tests.chainmaker.node import TX_TIMEOUT_SECONDS, address_of
from tests.chainmaker.world import DECIMALS, ESCROW_NAME, FUNDS_MINOR, TOKEN_NAME, UNIT, World, running, signer_of
from tests.ledger_world import free_port

GOLDEN: dict[str, Any] = json.loads((HERE.parents[2] / "tests" / "chainmaker" / "golden.json").read_text())
NOT_RUN = {"reorganised-hold", "reorganised-post"}
"""By the chain's consensus no block is undone."""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with running() as found:
        yield found


@pytest.fixture(scope="module")
def subject(world: World) -> Iterator[ChainMakerSubject]:
    found = world.subject()
    yield found
    found.close()


@pytest.fixture
def stage(subject: ChainMakerSubject) -> Iterator[Stage]:
    found = Stage(subject)
    found.open()
    yield found
    found.close()


@pytest.fixture
def fresh() -> Iterator[tuple[World, ChainMakerSubject, Stage]]:
    """A chain of its own, for tests that spoil it."""
    with running() as world:
        subject = world.subject()
        stage = Stage(subject)
        stage.open()
        yield world, subject, stage
        subject.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_conformance(subject: ChainMakerSubject, case: Case) -> None:
    verdict = run_case(subject, case)
    wanted = Result.NOT_RUN if case.name in NOT_RUN else Result.PASSED
    assert verdict.result is wanted, f"{case.rule}: {verdict.detail}"


# --- the published bytes


def test_the_generated_code_is_that_of_the_proto() -> None:
    for name, content in generated().items():
        assert (HERE / name).read_text("utf-8") == content, f"python -m tests.chainmaker.generate writes {name}"


def test_payloads_are_the_public_sdks_bytes() -> None:
    payload = evm_call(
        "chain1",
        "jiaozi_escrow",
        bytes.fromhex(GOLDEN["data"]),
        tx_id=GOLDEN["tx_id"],
        timestamp=1_800_000_000,
        expiration_time=1_800_000_600,
        gas_limit=90_000_000,
    )
    assert payload_bytes(payload).hex() == GOLDEN["invoke_payload"]
    query = wire.Payload(
        chain_id="chain1",
        tx_type=wire.QUERY_CONTRACT,
        tx_id="ab" * 32,
        timestamp=1_800_000_001,
        contract_name="CHAIN_QUERY",
        method="GET_TX_BY_TX_ID",
        parameters=[wire.KeyValuePair(key="txId", value=GOLDEN["tx_id"].encode())],
    )
    assert payload_bytes(query).hex() == GOLDEN["query_payload"]


def test_a_request_that_the_public_sdk_signed_is_read_and_its_signature_is_good() -> None:
    raw = bytes.fromhex(GOLDEN["tx_request"])
    request = wire.TxRequest.FromString(raw)
    assert request.SerializeToString(deterministic=True) == raw
    assert request.sender.signer.org_id == GOLDEN["org_id"]
    certificate = verified_sender(request)
    assert certificate.public_bytes(Encoding.PEM).decode() == GOLDEN["certificate"]
    request.payload.timestamp += 1
    with pytest.raises(ValueError, match="signature"):
        verified_sender(request)


def test_addresses_are_the_public_sdks() -> None:
    certificate = x509.load_pem_x509_certificate(GOLDEN["certificate"].encode())
    for kind, address in GOLDEN["addresses"].items():
        assert address_of_certificate(certificate, kind) == to_checksum_address("0x" + address)
    assert address_of_contract("jiaozi_escrow") == to_checksum_address("0x" + GOLDEN["contract_address"])


def test_answers_in_the_public_sdks_bytes_are_read() -> None:
    response = wire.TxResponse.FromString(bytes.fromhex(GOLDEN["tx_response"]))
    assert (response.code, response.message, response.tx_block_height) == (4, "CONTRACT_FAIL", 9)
    assert (response.contract_result.result, response.contract_result.gas_used) == (b"\x01\x02", 77)
    info = wire.TransactionInfo.FromString(bytes.fromhex(GOLDEN["transaction_info"]))
    assert (info.block_height, info.tx_index, info.block_timestamp) == (9, 3, 1_800_000_003)
    assert info.transaction.payload.tx_id == GOLDEN["tx_id"]
    event = info.transaction.result.contract_result.contract_event[0]
    assert (event.topic, list(event.event_data)) == ("11" * 32, ["22" * 32, "33" * 64])
    block = wire.BlockInfo.FromString(bytes.fromhex(GOLDEN["block_info"])).block
    assert (block.header.block_height, block.header.block_hash, block.header.block_timestamp) == (
        9,
        b"\x06" * 32,
        1_800_000_003,
    )
    assert block.txs[0] == info.transaction


# --- the payer's authorisation


def test_a_lock_of_anything_else_is_not_relayed(stage: Stage, subject: ChainMakerSubject, world: World) -> None:
    order = stage.order()
    right = subject.authorise(order.hold)
    assert isinstance(check_lock(subject.terms, order.hold, right), Authorised)
    request = wire.TxRequest.FromString(base64.urlsafe_b64decode(right + "=" * (-len(right) % 4)))
    now = int(world.node.now())

    def signed(payload: wire.Payload, *, endorsed: bool = False) -> str:
        made = signer_of(world.payer).signed(payload)
        if endorsed:
            made.endorsers.add().CopyFrom(made.sender)
        return base64.urlsafe_b64encode(made.SerializeToString()).decode()

    def changed(**values: object) -> wire.Payload:
        payload = wire.Payload()
        payload.CopyFrom(request.payload)
        for name, value in values.items():
            setattr(payload, name, value)
        return payload

    more = changed()
    more.parameters.add(key="more", value=b"1")
    with_gas = changed()
    with_gas.limit.gas_limit = 1
    deadline = changed()
    del deadline.parameters[:]
    call = subject.terms.lock_call(order.hold, deadline=now + 60).hex().encode()
    deadline.parameters.add(key="data", value=call)
    wrong = {
        "another chain": signed(changed(chain_id="chain2")),
        "another contract": signed(changed(contract_name="other")),
        "another method": signed(changed(method="00000000")),
        "a query": signed(changed(tx_type=wire.QUERY_CONTRACT)),
        "another id": signed(changed(tx_id="ab" * 32)),
        "no expiry": signed(changed(expiration_time=0)),
        "valid too long": signed(changed(expiration_time=now + VALID_SECONDS_MAX + 60)),
        "more parameters": signed(more),
        "a gas limit that was not agreed": signed(with_gas),
        "a deadline": signed(deadline),
        "endorsers": signed(changed(), endorsed=True),
        "of the payee": sign_lock(subject.terms, order.hold, signer_of(world.payee), now=now),
        "nothing": "",
        "long": "A" * 20_000,
        "not base64": "é" * 40,
    }
    for name, token in wrong.items():
        outcome = subject.island.prepare([SignedHold(order.hold, token)])[0]
        assert isinstance(outcome, Refused), name
        assert outcome.code == "authorisation-differs", name
    stage.expect_standing(order, HoldStanding.ABSENT)


def test_a_payer_signs_only_its_own_legs(stage: Stage, subject: ChainMakerSubject, world: World) -> None:
    payee = PayerSigner(subject.terms, signer_of(world.payee), clock=world.node.now)
    order = stage.order()
    assert isinstance(payee.sign(order.hold), Refused)
    unknown = replace(order.hold, terms=replace(order.hold.terms, credit=ids.AccountNumber(99)))
    assert isinstance(subject.signer.sign(unknown), Refused)
    authoriser = ChainMakerAuthoriser({subject.payer: subject.signer})
    assert isinstance(authoriser.authorise(subject.payer, [LegOrder(order.hold, ())])[0], Authorised)
    assert isinstance(authoriser.authorise(subject.payee, [LegOrder(order.hold, ())])[0], Refused)


def test_an_order_signed_twice_is_one_transaction(stage: Stage, subject: ChainMakerSubject, world: World) -> None:
    order = stage.order()
    first, second = (sign_lock(subject.terms, order.hold, signer_of(world.payer), now=it) for it in _times(world))
    assert first != second
    sent = len(world.node.received)
    stage.hold(order)
    assert stage.answered(lambda: subject.island.prepare([SignedHold(order.hold, second)])) == [Held()]
    assert {item.payload.tx_id for item in world.node.received[sent:]} == {_lock_id(order)}
    stage.expect_moved(debit=-AMOUNT_MINOR, credit=0)


def test_a_lock_whose_time_is_over_is_refused(fresh: tuple[World, ChainMakerSubject, Stage]) -> None:
    world, subject, stage = fresh
    order = stage.order()
    late = stage.signed(order)
    world.node.pass_time(VALID_SECONDS + 1)
    outcome = subject.island.prepare([late])[0]
    assert outcome == Refused("authorisation-expired", "the signed lock is not valid any more")
    stage.hold(order)  # signed anew it is good


def test_an_allowance_that_is_too_low_is_said(fresh: tuple[World, ChainMakerSubject, Stage]) -> None:
    world, _, stage = fresh
    world.node.act(world.payer, TOKEN_NAME, TOKEN.call("approve", address_of_contract(ESCROW_NAME), 0))
    outcome = stage.prepare(stage.order())[0]
    assert isinstance(outcome, Refused)
    assert outcome.code == "allowance-too-low"
    world.node.act(world.payer, TOKEN_NAME, TOKEN.call("approve", address_of_contract(ESCROW_NAME), ALLOWANCE_MAX))
    stage.hold(stage.order())


# --- the node


def test_the_node_takes_no_bad_transaction(world: World, subject: ChainMakerSubject) -> None:
    """Of the double: what it refuses, a node refuses."""
    now = int(world.node.now())
    data = TOKEN.call("approve", address_of(world.payee), 1)

    def sent(*, forged: bool = False, **values: Any) -> wire.TxResponse:
        asked: dict[str, Any] = {"tx_id": transaction_id(repr(values), str(forged)), "timestamp": now}
        asked |= {"expiration_time": now + 60, **values}
        payload = evm_call(asked.pop("chain_id", "chain1"), TOKEN_NAME, data, **asked)
        request = signer_of(world.payer).signed(payload)
        if forged:
            request.payload.parameters[0].value += b"00"
        answer = subject.faulty.send([request])[0]
        assert not isinstance(answer, NodeUnreachable)
        return answer

    assert sent().code == 0
    assert "duplicate" in sent().message
    assert "chain" in sent(chain_id="chain2").message
    assert "authentication" in sent(forged=True).message
    assert "expired" in sent(expiration_time=now - 1).message
    assert "timestamp" in sent(timestamp=now - TX_TIMEOUT_SECONDS - 1, expiration_time=0).message
    stranger = Node(world.node.url, replace(signer_of(world.payer), org_id="bank-b"), chain_id="chain1")
    with pytest.raises(NodeRefused, match="authentication"):
        stranger.query_evm(TOKEN_NAME, [TOKEN.call("totalSupply")])
    stranger.close()


def test_an_acknowledgement_lost_after_the_commit_moves_money_once(
    stage: Stage, subject: ChainMakerSubject, world: World
) -> None:
    order = stage.order()
    authorised = stage.signed(order)
    world.node.lose_acks = 1
    assert not isinstance(subject.island.prepare([authorised])[0], Refused)
    assert stage.answered(lambda: subject.reopened().prepare([authorised])) == [Held()]
    world.node.lose_acks = 1
    stage.expect_ended(stage.fulfil(order))
    assert world.node.lose_acks == 0
    stage.expect_ended(stage.fulfil(order, island=subject.reopened()))
    ours = [it.payload.tx_id for it in world.node.received if it.payload.tx_id in (_lock_id(order), _end_id(order))]
    assert sorted(set(ours)) == sorted((_lock_id(order), _end_id(order)))
    stage.expect_moved(debit=-AMOUNT_MINOR, credit=AMOUNT_MINOR)


def test_admission_to_the_pool_is_no_outcome(stage: Stage, subject: ChainMakerSubject, world: World) -> None:
    order = stage.order()
    world.node.is_sealing = False
    try:
        outcome = subject.island.prepare([stage.signed(order)])[0]
        assert isinstance(outcome, Unknown)
        stage.expect_standing(order, HoldStanding.ABSENT)
    finally:
        world.node.is_sealing = True
    stage.hold(order)


def test_an_end_whose_id_a_stranger_used_up_is_sent_under_the_next(
    stage: Stage, subject: ChainMakerSubject, world: World
) -> None:
    order = stage.order()
    stage.hold(order)
    now = int(world.node.now())
    data = TOKEN.call("approve", address_of(world.payee), 1)
    squat = evm_call("chain1", TOKEN_NAME, data, tx_id=_end_id(order), timestamp=now, expiration_time=now + 60)
    assert getattr(subject.faulty.send([signer_of(world.payee).signed(squat)])[0], "code", None) == 0
    stage.expect_ended(stage.fulfil(order))
    assert _end_id(order, attempt=1) in {item.payload.tx_id for item in world.node.received}
    stage.expect_moved(debit=-AMOUNT_MINOR, credit=AMOUNT_MINOR)


def test_a_lock_id_that_was_used_otherwise_is_a_refusal(stage: Stage, subject: ChainMakerSubject, world: World) -> None:
    order = stage.order()
    now = int(world.node.now())
    data = TOKEN.call("approve", address_of_contract(ESCROW_NAME), ALLOWANCE_MAX)
    other = evm_call("chain1", TOKEN_NAME, data, tx_id=_lock_id(order), timestamp=now, expiration_time=now + 60)
    assert getattr(subject.faulty.send([signer_of(world.payer).signed(other)])[0], "code", None) == 0
    outcome = stage.prepare(order)[0]
    assert isinstance(outcome, Refused)
    assert outcome.code == "authorisation-superseded"


def test_a_wrong_secret_is_shown_to_nobody(stage: Stage, subject: ChainMakerSubject, world: World) -> None:
    order = stage.order()
    stage.hold(order)
    sent = len(world.node.received)
    end = replace(order.post, secret=order.secrets.abort)
    assert isinstance(subject.island.fulfil([end])[0], Unknown)
    assert len(world.node.received) == sent


def test_another_contract_under_the_escrows_name_is_not_believed(
    fresh: tuple[World, ChainMakerSubject, Stage],
) -> None:
    world, subject, stage = fresh
    order = stage.order()
    stage.hold(order)
    install = world.node.install("other_token", TOKEN.bytecode, _token_arguments(), person=world.bridge)
    other = replace(subject.terms, escrow="other_token")  # other code under the very name
    for terms, tx_id in ((subject.terms, install), (subject.terms, "ab" * 32), (other, install)):
        island = ChainMakerIsland(terms, subject.faulty, install_tx_id=tx_id, wait_seconds=0.05)
        assert island.look_up([order.hold]) == [HoldStanding.UNKNOWN]
        signed = sign_lock(terms, order.hold, signer_of(world.payer), now=int(world.node.now()))
        assert isinstance(island.prepare([SignedHold(order.hold, signed)])[0], Unknown)
        assert isinstance(island.fulfil([order.post])[0], Unknown)
        with pytest.raises(EscrowAstray, match=r"did not install|in no block"):
            island.statement(subject.debit)
    world.node.install(ESCROW_NAME, b"", person=world.bridge, version="2.0", upgrade=True)
    assert subject.reopened().look_up([order.hold]) == [HoldStanding.UNKNOWN]


def test_a_hold_of_another_token_payee_or_amount_is_not_the_leg(
    fresh: tuple[World, ChainMakerSubject, Stage],
) -> None:
    world, subject, stage = fresh
    payer = address_of(world.payer)
    world.node.install("other_token", TOKEN.bytecode, _token_arguments(), person=world.payer)
    for data in (
        TOKEN.call("mint", payer, 10**9),
        TOKEN.call("approve", address_of_contract(ESCROW_NAME), ALLOWANCE_MAX),
    ):
        world.node.act(world.payer, "other_token", data)
    right = stage.order()
    leg = list(ESCROW.arguments("lock", subject.terms.lock_call(right.hold)))
    for place, value in ((1, address_of_contract("other_token")), (2, address_of(world.bridge)), (3, leg[3] - 1)):
        order = stage.order()
        terms = list(ESCROW.arguments("lock", subject.terms.lock_call(order.hold)))
        terms[place] = value
        world.node.act(world.payer, ESCROW_NAME, ESCROW.call("lock", *terms))
        stage.expect_standing(order, HoldStanding.OTHER)
        outcome = stage.prepare(order)[0]
        assert isinstance(outcome, Refused)
        assert outcome.code == "hold-differs"
        stage.expect_ended(stage.cancel(order))


def test_an_installation_without_a_majority_of_the_organisations_fails(
    fresh: tuple[World, ChainMakerSubject, Stage],
) -> None:
    world, _, _ = fresh
    world.node.admins = world.node.admins[:1]
    with pytest.raises(RuntimeError, match="majority"):
        world.node.install("evil", ESCROW.bytecode, person=world.bridge)


def test_the_statement_shows_what_the_state_bears_out(fresh: tuple[World, ChainMakerSubject, Stage]) -> None:
    world, subject, stage = fresh
    order = stage.order(7)
    held = stage.order(7)
    assert stage.prepare(order, held) == [Held()] * 2
    stage.expect_ended(stage.fulfil(order))
    block = world.node._blocks[-1]  # a token that a stranger locks may show any event in a call of the escrow
    real = block.txs[0].result.contract_result.contract_event[-1]
    assert real.topic == ESCROW.topic("Posted").hex()
    forged = block.txs[0].result.contract_result.contract_event.add()
    forged.CopyFrom(real)
    forged.event_data[2] = chain_id_of_hold(held.hold.hold_id).hex()
    other = block.txs[0].result.contract_result.contract_event.add()
    other.CopyFrom(real)  # nor can it hide the real one behind another amount
    other.event_data[3] = other.event_data[3].replace(f"{7 * UNIT:064x}", f"{8 * UNIT:064x}")
    assert other.event_data[3] != real.event_data[3]
    line = subject.island.statement(subject.debit)[0]
    assert len(subject.island.statement(subject.debit)) == len(subject.island.statement(subject.credit)) == 1
    assert (line.hold_id, line.reference, line.amount_units) == (order.hold.hold_id, order.hold.reference, 7 * UNIT)
    assert line.transaction == _end_id(order)
    assert subject.island.statement(ids.AccountNumber(99)) == []


def test_balances_are_shown(subject: ChainMakerSubject) -> None:
    known, unknown = subject.debit, ids.AccountNumber(99)
    found = read_available({"chainmaker-cny": subject.island}, {"chainmaker-cny": [known, unknown]})
    assert found["chainmaker-cny", known] == subject.available(known)
    assert found["chainmaker-cny", unknown] is None
    assert subject.island.escrow_totals() is not None


@pytest.mark.parametrize("at_once", [8])
def test_many_bridges_at_once_post_once(stage: Stage, subject: ChainMakerSubject, at_once: int) -> None:
    orders = [stage.order() for _ in range(10)]
    assert stage.prepare(*orders) == [Held()] * 10
    islands = [subject.reopened() for _ in range(at_once)]
    with ThreadPoolExecutor(at_once) as pool:
        for outcomes in pool.map(lambda island: stage.fulfil(*orders, island=island), islands):
            assert all(isinstance(item, Ended) for item in outcomes)
    stage.expect_moved(debit=-10 * AMOUNT_MINOR, credit=10 * AMOUNT_MINOR)


# --- keys, files, transport


def test_a_key_file_that_others_can_read_is_refused_and_never_shown(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = world.files(world.bridge, tmp_path, "bridge")
    key, certificate = Path(files["key_path"]), Path(files["certificate_path"])
    signer = load_signer("bridge", key, certificate)
    text = world.bridge.key_pem.decode().splitlines()[1]
    with caplog.at_level(logging.DEBUG):
        assert text not in repr(signer)
        key.chmod(0o644)
        with pytest.raises(ValueError, match="0600"):
            load_signer("bridge", key, certificate)
        key.chmod(0o600)
        certificate.write_bytes(world.payer.certificate_pem)
        with pytest.raises(ValueError, match="not the certificate"):
            load_signer("bridge", key, certificate)
        key.write_text("nothing")
        with pytest.raises(ValueError, match="no private key") as found:
            load_signer("bridge", key, certificate)
    assert text not in str(found.value)
    assert text not in caplog.text
    with pytest.raises(ValueError, match="missing"):
        load_signer("bridge", tmp_path / "missing", certificate)


def test_over_tls_the_node_has_to_be_the_right_one(tmp_path: Path) -> None:
    world = World()
    organisation = world.node.organisations["bridge"]
    world.node.start(tls=organisation.member("node", host="chainmaker.test"))
    try:
        ca = organisation.ca.public_bytes(Encoding.PEM)
        tls = Tls(ca=ca, server_name="chainmaker.test")
        signer = signer_of(world.bridge)
        node = Node(world.node.url, signer, chain_id="chain1", tls=tls)
        assert node.height() >= 3
        node.close()
        other = world.node.organisations["bank-a"].ca.public_bytes(Encoding.PEM)
        astray = Node(world.node.url, signer, chain_id="chain1", tls=replace(tls, ca=other), timeout_seconds=1.0)
        with pytest.raises(NodeUnreachable):
            astray.height()
        astray.close()
    finally:
        world.node.stop()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "grpcs://127.0.0.1:1", "127.0.0.1:1", "grpc://"])
def test_an_address_that_is_none_is_refused(world: World, url: str) -> None:
    with pytest.raises(ValueError, match="grpc"):
        Node(url, signer_of(world.bridge), chain_id="chain1")


# --- wiring


def _entry(world: World, subject: ChainMakerSubject, directory: Path) -> dict[str, Any]:
    addresses = {ids.show_account(account): address for account, address in subject.terms.addresses.items()}
    return {
        "chain_id": "chain1",
        "escrow": ESCROW_NAME,
        "install_tx_id": world.install_tx_id,
        "token": TOKEN_NAME,
        "token_decimals": DECIMALS,
        "accounts": addresses,
        "wait_seconds": 0.3,
        **world.files(world.bridge, directory, "bridge"),
    }


def test_a_directorys_entry_makes_an_island(fresh: tuple[World, ChainMakerSubject, Stage], tmp_path: Path) -> None:
    world, subject, stage = fresh
    document = {
        "ledger": "chainmaker-cny",
        "url": world.node.url,
        "currency": "CNY",
        "kind": "chainmaker",
        "chainmaker": _entry(world, subject, tmp_path),
    }
    entry = LedgerEntry.model_validate(document)
    outside = connect_over_http(
        SettlementSettings.model_construct(call_timeout_seconds=5.0),
        Directory([entry], [], []),
        PrivateKey.generate(),
    )
    try:
        order = stage.order()
        stage.hold(order)
        island = outside.islands["chainmaker-cny"]
        assert island.look_up([order.hold]) == [HoldStanding.HELD]
        stage.expect_ended(stage.fulfil(order, island=island))
    finally:
        outside.close()
    for wrong in ({"kind": "native"}, {"chainmaker": None}, {"kind": "evm"}):
        with pytest.raises(ValueError, match="if, and only if"):
            LedgerEntry.model_validate(document | wrong)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"accounts": {"1": "0x" + "ab" * 20}}, "checksum"),
        ({"token_decimals": 1}, "decimals"),
        ({"tls_ca_path": "/nowhere/ca.pem"}, "nowhere"),
        ({"key_path": "/nowhere/key.pem"}, "nowhere"),
    ],
)
def test_an_entry_that_does_not_fit_says_why(
    world: World, subject: ChainMakerSubject, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    document = _entry(world, subject, tmp_path)
    if "accounts" in change:
        change = {"accounts": dict.fromkeys(list(document["accounts"])[:1], "0x" + "ab" * 20)}
    entry = ChainMakerEntry.model_validate(document | change)
    url = world.node.url.replace("grpc:", "grpcs:") if "tls_ca_path" in change else world.node.url
    with pytest.raises(ValueError, match=said):
        connect_chainmaker(entry, ledger="x", url=url, currency=Currency.of("CNY"), timeout_seconds=1.0)


def test_the_suite_by_its_command(fresh: tuple[World, ChainMakerSubject, Stage], tmp_path: Path) -> None:
    world, _, _ = fresh
    config = {
        "url": world.node.url,
        "chain_id": "chain1",
        "escrow": ESCROW_NAME,
        "install_tx_id": world.install_tx_id,
        "token": TOKEN_NAME,
        "token_decimals": DECIMALS,
        "wait_seconds": 0.3,
        "bridge": world.files(world.bridge, tmp_path, "bridge"),
        "payer": world.files(world.payer, tmp_path, "payer"),
        "payee": world.files(world.payee, tmp_path, "payee"),
    }
    path = tmp_path / "chain.json"
    path.write_text(json.dumps(config))
    command = ["conformance", "--adapter", "settlement.conformance.chainmaker:on_node", "--config", str(path), "--json"]
    for name in ("post", "void-before-hold", "no-expiry"):
        command += ["--case", name]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["counts"] == {"passed": 2, "failed": 0, "not run": 1}
    path.write_text(json.dumps(config | {"payer": {}}))
    assert CliRunner().invoke(app, command).exit_code == 2


# --- a payment versus payment


def test_i5_a_ledger_against_the_chain_with_lost_answers(
    fresh: tuple[World, ChainMakerSubject, Stage], fresh_database: Callable[[str], str], tmp_path: Path
) -> None:
    """CNY on the chain against AED in memory, through the service, its database and engine; each leg posts or none."""
    world, subject, _ = fresh
    bank_a, bank_b, bridge = subject.payer, subject.payee, ids.ParticipantId("BRDGAEAD")
    keys = {code: PrivateKey.generate() for code in (bank_a, bank_b, bridge)}
    keys[bridge].save(tmp_path / "bridge.pem")
    accounts = {bank_a: (subject.debit, ids.AccountNumber(21)), bank_b: (subject.credit, ids.AccountNumber(22))}
    files: dict[str, list[dict[str, Any]]] = {
        "ledgers": [
            {
                "ledger": subject.ledger,
                "url": world.node.url,
                "currency": "CNY",
                "kind": "chainmaker",
                "chainmaker": _entry(world, subject, tmp_path),
            },
            {"ledger": "aed-ledger", "url": "http://127.0.0.1:1", "currency": "AED"},
        ],
        "institutions": [
            {
                "participant": code,
                "authorisation_url": "http://127.0.0.1:1",
                "key": keys[code].public.to_jwk(),
                "accounts": {"CNY": ids.show_account(cny), "AED": ids.show_account(aed)},
            }
            for code, (cny, aed) in accounts.items()
        ],
        "rates": [{"base": "CNY", "counter": "AED", "rate": "0.5", "provider": bank_b}],
    }
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    port = free_port()
    settings = SettlementSettings(
        host="127.0.0.1",
        port=port,
        public_url=f"http://127.0.0.1:{port}",
        database_url=fresh_database("settlement"),
        data_dir=tmp_path / "data",
        participant=bridge,
        signing_key_path=tmp_path / "bridge.pem",
        ledgers_path=tmp_path / "ledgers.json",
        institutions_path=tmp_path / "institutions.json",
        rates_path=tmp_path / "rates.json",
    )
    aed = FakeIsland("aed-ledger", balances={account: FUNDS_MINOR for _, account in accounts.values()})

    def connect(found: SettlementSettings, directory: Directory, key: PrivateKey, **_: object) -> Outside:
        chain = connect_over_http(found, directory, key)
        signers = ChainMakerAuthoriser({bank_a: subject.signer})
        default = FakeAuthoriser(PrivateKey.generate(), clock=lambda: datetime.now(UTC))
        islands: dict[str, Island] = {**chain.islands, "aed-ledger": aed}
        return Outside(islands, AuthoriserByLedger(default, {subject.ledger: signers}), chain.close)

    server = make_server(create(settings, connect=connect), host="127.0.0.1", port=port, log_level="warning")
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    amounts = [1_000 + 2 * line for line in range(20)]
    instructions = [
        Instruction(
            f"I{line}", f"E{line}", uuid4(), bank_a, bank_b, Money(amount, Currency.of("CNY")), Currency.of("AED"),
            None, datetime.now(UTC).date(), Priority.NORMAL,
        )
        for line, amount in enumerate([*amounts, FUNDS_MINOR + 2])
    ]  # fmt: skip
    document = write_pacs009(instructions, message_id="M1", created_at=datetime.now(UTC))
    try:
        with SettlementClient(settings.public_url, signer=RequestSigner(keys[bank_a]), timeout_seconds=20) as client:
            until = time.monotonic() + 20
            while not server.started and time.monotonic() < until:
                time.sleep(0.02)
            world.node.lose_acks = 30
            batch = client.submit_batch(document, file_format="pacs.009").batch
            client.wait_for_batch(batch, timeout_seconds=60)
            settlements = list(client.settlements(batch))
            assert not list(client.in_doubt())
    finally:
        server.should_exit = True
        thread.join(15)
    assert world.node.lose_acks == 0
    by_state = {item.legs[0].amount_minor: item.decision for item in settlements}
    assert by_state == dict.fromkeys(amounts, "commit") | {FUNDS_MINOR + 2: "abort"}
    assert subject.available(subject.debit) == FUNDS_MINOR - sum(amounts)
    assert subject.available(subject.credit) == sum(amounts)
    assert (aed.balance(21), aed.balance(22)) == (FUNDS_MINOR + sum(amounts) // 2, FUNDS_MINOR - sum(amounts) // 2)
    posted = {line.hold_id for line in subject.lines(subject.credit)}
    assert posted == {item.legs[0].hold for item in settlements if item.decision == "commit"}
    held = subject.faulty.query_evm(ESCROW_NAME, [ESCROW.call("heldTotal", subject.terms.token_address)])[0]
    assert int.from_bytes(held, "big") == 0
    aed.check()


def _times(world: World) -> tuple[int, int]:
    now = int(world.node.now())
    return now, now + 1


def _lock_id(order: Order) -> str:
    return transaction_id("chain1", ESCROW_NAME, "lock", str(order.hold.hold_id))


def _end_id(order: Order, *, attempt: int = 0) -> str:
    return transaction_id("chain1", ESCROW_NAME, "commit", str(order.post.end_id), str(attempt))


def _token_arguments() -> bytes:
    return TOKEN.deployment(["Other", "OTH", 2])[len(TOKEN.bytecode) :]
