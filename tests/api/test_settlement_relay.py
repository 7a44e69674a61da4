"""Goal: what a leg is, on a ledger and on a chain, is proved offline by what the service hands out, by nothing less.

Method: the real service between a real ledger (over a socket, with its transparency log) and a chain in process
(py-evm behind JSON-RPC); the bundle is judged without the service, through the CLI too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rlp import encode as rlp_encode  # type: ignore[import-untyped]
from typer.testing import CliRunner

from kernel import ids
from kernel.client import ProblemResponse
from settlement.__main__ import app
from settlement.contract import SettlementState
from settlement.islands.evm.rpc import quantity
from settlement.relay.bundle import LegStanding
from settlement.relay.evm import read_header
from settlement.relay.trie import prove, read_proved
from settlement.relay.trust import Trust
from settlement.relay.verdict import Outcome, Verdict, judge, read_bundle
from settlement.usecases.relay import header_rlp, receipt_rlp
from tests.islands_world import evm_on_anvil
from tests.relay_world import BRIDGE, CHAIN, LEDGER, STRANGER, RelayWorld, relay_world


@pytest.fixture(scope="module")
def world(fresh_databases: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayWorld]:
    with relay_world(fresh_databases, tmp_path_factory.mktemp("relay")) as found:
        yield found


def judged(world: RelayWorld, content: bytes, **changes: Any) -> Verdict:
    trust = json.loads(json.dumps(world.trust))
    trust["islands"][1] |= changes
    return judge(read_bundle(content), Trust.model_validate(trust))


def proofs(world: RelayWorld, outcome: Outcome, amount: int = 10_000) -> tuple[str, bytes]:
    settlement = world.settle(amount)
    with world.client() as client:
        view = client.settlement(settlement)
    assert (view.state is SettlementState.SETTLED) == (outcome is Outcome.POSTED), (view.reason, view.detail, view.legs)
    content = world.await_proofs(settlement, lambda found: judged(world, found).outcome is outcome)
    verdict = judged(world, content)
    assert verdict.outcome is outcome, verdict
    return ids.show("stl", settlement), content


def test_a_settlement_is_proved_posted_offline_and_its_tampered_bundle_is_not(
    world: RelayWorld, tmp_path: Path
) -> None:
    settlement, content = proofs(world, Outcome.POSTED)
    verdict = judged(world, content)
    assert [(leg.ledger, leg.standing, leg.is_proven) for leg in verdict.legs] == [
        (LEDGER, LegStanding.POSTED, True),
        (CHAIN, LegStanding.POSTED, True),
    ]
    key = tmp_path / "bank.pem"
    world.keys[BRIDGE].save(key)
    bundle = tmp_path / "bundle.json"
    arguments = ["relay", "proofs", settlement, "-o", str(bundle), "--client-key", str(key), "--url", world.url]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    verify = ["relay", "verify", str(bundle), "--trust", str(world.trust_path)]
    good = CliRunner().invoke(app, verify)
    assert good.exit_code == 0, good.output
    assert good.output.count("PROVEN posted") == 2 and "the bundle's word" in " ".join(good.output.split())
    counted = CliRunner().invoke(app, [*verify, "--legs", "2"])
    assert counted.exit_code == 0 and "the bundle's word" not in " ".join(counted.output.split())
    # A leg left out is not missed by who believes the bundle, and is by who counts.
    less = json.loads(content)
    less["legs"] = less["legs"][:1]
    bundle.write_text(json.dumps(less))
    assert CliRunner().invoke(app, verify).exit_code == 0
    left_out = CliRunner().invoke(app, [*verify, "--legs", "2"])
    assert left_out.exit_code == 1 and "NOT PROVEN: it shows 1 legs" in " ".join(left_out.output.split())
    bundle.write_bytes(content)
    # The same bundle with other terms, one by one.
    document = json.loads(content)
    for leg, change in [
        (0, {"amount_minor": "10001"}),
        (1, {"amount_minor": "1"}),
        (0, {"debit": document["legs"][0]["statement"]["credit"]}),
        (1, {"credit": document["legs"][1]["statement"]["debit"]}),
        (0, {"state": "voided"}),
        (1, {"hold": document["legs"][0]["statement"]["hold"]}),
        (0, {"ledger": CHAIN}),
        (1, {"currency": "CNY"}),
    ]:
        changed = json.loads(content)
        changed["legs"][leg]["statement"] |= change
        bundle.write_text(json.dumps(changed))
        bad = CliRunner().invoke(app, [*verify, "--json"])
        assert bad.exit_code == 1, (change, bad.output)
        assert [item["proven"] for item in json.loads(bad.output)["legs"]] == [leg == 1, leg == 0]
    for member in ("uetr", "commit_hash", "abort_hash", "settlement"):
        changed = json.loads(content)
        other = {"uetr": "11111111-1111-4111-8111-111111111111", "settlement": ids.show("stl", ids.new_uuid7())}
        changed[member] = other.get(member, "11" * 32)
        assert not any(leg.is_proven for leg in judged(world, json.dumps(changed).encode()).legs), member
    bundle.write_text("{")
    assert CliRunner().invoke(app, verify).exit_code == 2


def test_the_headers_count_only_for_who_trusts_them(world: RelayWorld) -> None:
    _, content = proofs(world, Outcome.POSTED)
    assert judged(world, content, anchor={"number": 1, "hash": "11" * 32}).outcome is Outcome.NOT_PROVEN
    assert judged(world, content, confirmations=10_000).outcome is Outcome.NOT_PROVEN
    with world.client(BRIDGE) as client:
        keeper = client.relay().keeper
    assert judged(world, content, keepers=[keeper], quorum=1).outcome is Outcome.POSTED
    document = json.loads(content)
    document["chains"][0]["headers"].pop()
    shorter = json.dumps(document).encode()
    assert judged(world, shorter, keepers=[keeper], quorum=1).outcome is Outcome.NOT_PROVEN
    # An anchor after the block: its ancestors are bound to it, and need neither depth nor a keeper.
    last = world.chain._block(len(document["chains"][0]["headers"]))
    anchor = {"number": int(last["number"], 16), "hash": last["hash"][2:]}
    assert judged(world, content, anchor=anchor, confirmations=10_000).outcome is Outcome.POSTED


def test_a_cancelled_settlement_is_proved_voided(world: RelayWorld) -> None:
    for refused in (CHAIN, LEDGER):
        world.signers.refuse = {refused}
        try:
            proofs(world, Outcome.VOIDED)
        finally:
            world.signers.refuse = set()
            world.subject.signer.pump()  # a lock that was signed and never sent would keep its nonce for ever


def test_strangers_see_no_proofs_and_what_is_kept_is_the_operators(world: RelayWorld, tmp_path: Path) -> None:
    settlement, _ = proofs(world, Outcome.POSTED)
    with world.client(STRANGER) as client:
        with pytest.raises(ProblemResponse) as hidden:
            client.settlement_proofs(ids.parse("stl", settlement))
        assert hidden.value.refusal == "settlement-not-found"
        with pytest.raises(ProblemResponse) as closed:
            client.relay()
        assert closed.value.refusal == "not-permitted"
    with world.client(BRIDGE) as client:
        view = client.relay()
    assert {item.ledger: item.failure for item in view.islands} == {LEDGER: "", CHAIN: ""}
    assert all(item.height for item in view.islands)  # how high they are depends on what was settled before
    assert view.alarms == []
    key = tmp_path / "bridge.pem"
    world.keys[BRIDGE].save(key)
    shown = CliRunner().invoke(app, ["relay", "status", "--json", "--client-key", str(key), "--url", world.url])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.output)["keeper"] == view.keeper


def test_headers_and_receipts_of_a_real_node_are_encoded_as_it_hashes_them(tmp_path: Path) -> None:
    """Of the newest hard fork that the node knows, with all its header fields and typed receipts."""
    with evm_on_anvil(tmp_path, confirmations=1) as subject:
        last = quantity(subject.node.call("eth_blockNumber"))
        typed = 0
        for number in range(last + 1):
            block = subject.node.call("eth_getBlockByNumber", hex(number), False)
            header = read_header(header_rlp(block))
            assert "0x" + header.hash.hex() == block["hash"]
            receipts = subject.node.call("eth_getBlockReceipts", hex(number))
            values = {bytes(rlp_encode(place)): receipt_rlp(receipt) for place, receipt in enumerate(receipts)}
            for key, value in values.items():
                root, nodes = prove(values, key)
                assert root == header.receipts_root
                assert read_proved(root, key, nodes) == value
                typed += value[0] < 0x80
        assert last > 4
        assert typed > 0
