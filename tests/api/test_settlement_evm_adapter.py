"""Goal: the EVM adapter survives what chains and nodes do: forks, lags, reorganisations, full pools, dear gas, lost
answers; and relays nothing but exactly what the payer signed.

Method: chains in process (py-evm) behind JSON-RPC; the adapter's own client, no stand-in of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from eth_account import Account

from kernel.money import Money
from settlement.conformance.evm import UNIT, EvmSubject
from settlement.conformance.stage import Order, Stage
from settlement.islands.authorisers import Authorised
from settlement.islands.evm.contracts import ESCROW, TOKEN, chain_id_of_hold
from settlement.islands.evm.finality import ChainView, FinalBlocksInMemory, NodeAstray
from settlement.islands.evm.island import EvmIsland
from settlement.islands.evm.payer import PayerSigner
from settlement.islands.evm.rpc import Node, NodeRefused, NodeUnreachable
from settlement.islands.evm.sender import GasPolicy, GasTooDear, Sender, load_account
from settlement.islands.evm.terms import LOCK_GAS_MAX, LockTransaction, check_lock, read_lock
from settlement.islands.port import Contradiction, Ended, Held, HoldStanding, Refused, SignedHold, Unknown
from tests.evm.chain import Chain

LEDGER = "evm-cny"


@pytest.fixture
def chain() -> Chain:
    return Chain()


def subject_on(chain: Chain, directory: Path, *, confirmations: int = 1) -> EvmSubject:
    made = EvmSubject(
        "http://py-evm.invalid",
        chain.issuer,
        directory,
        confirmations=confirmations,
        gas=GasPolicy(),
        transport=chain.transport(),
        wait_seconds=0.05,
        resend_seconds=0.0,
    )
    made.patience_seconds = 3.0
    return made


@pytest.fixture
def subject(chain: Chain, tmp_path: Path) -> Iterator[EvmSubject]:
    made = subject_on(chain, tmp_path)
    yield made
    made.close()


@pytest.fixture
def stage(subject: EvmSubject) -> Stage:
    return Stage(subject)


# --- what the payer signed, and nothing else


def test_a_lock_of_anything_else_is_not_relayed(stage: Stage, subject: EvmSubject) -> None:
    order = stage.order()
    terms = subject.terms
    good: dict[str, Any] = {
        "chainId": subject.chain_id,
        "to": terms.escrow,
        "value": 0,
        "data": terms.lock_call(order.hold),
        "gas": 300_000,
        "nonce": 7,
        "maxFeePerGas": 10**10,
        "maxPriorityFeePerGas": 0,
    }
    other_lock = terms.lock_call(stage.order().hold)

    def read(document: dict[str, Any], account: Any = subject.payer_account) -> LockTransaction | Refused:
        return read_lock(terms, order.hold, "0x" + account.sign_transaction(document).raw_transaction.hex())

    found = read(good)
    assert isinstance(found, LockTransaction)
    assert (found.sender, found.nonce) == (subject.payer_account.address, 7)
    legacy = {key: value for key, value in good.items() if "Fee" not in key} | {"gasPrice": 1}
    assert isinstance(read(legacy), LockTransaction)
    for change in (
        {"chainId": 1},
        {"to": terms.token},
        {"value": 1},
        {"data": other_lock},
        {"data": good["data"] + b"\0" * 32},
        {"data": TOKEN.call("approve", terms.escrow, 5)},
        {"gas": 21_000},
        {"gas": LOCK_GAS_MAX + 1},
    ):
        refused = read(good | change)
        assert isinstance(refused, Refused), change
        assert refused.code == "authorisation-differs"
    assert isinstance(read(good, subject.payee_account), Refused)
    without_chain = {key: value for key, value in legacy.items() if key != "chainId"}
    assert isinstance(read(without_chain), Refused)
    for token in ("", "0x", "zz", "0x02", "0x" + "ff" * 5_000, "eyJhbGciOiJFZERTQSJ9.e30.AA"):
        assert isinstance(check_lock(terms, order.hold, token), Refused)
    nobody = replace(order.hold, terms=replace(order.hold.terms, credit=99))  # type: ignore[arg-type]
    assert isinstance(check_lock(terms, nobody, "0x00"), Refused)


def test_amounts_are_scaled_to_the_tokens_units(stage: Stage, subject: EvmSubject) -> None:
    order = stage.order(123)
    arguments = ESCROW.arguments("lock", subject.terms.lock_call(order.hold))
    assert arguments[3] == 123 * UNIT
    assert arguments[6] == 0  # no deadline


# --- finality


def test_a_leg_counts_only_when_enough_blocks_stand_on_it(chain: Chain, tmp_path: Path) -> None:
    subject = subject_on(chain, tmp_path, confirmations=4)
    stage = Stage(subject)
    order = stage.order()
    signed = [stage.signed(order)]
    for _ in range(3):
        assert isinstance(subject.island.prepare(signed)[0], Unknown)
        assert subject.island.look_up([order.hold]) == [HoldStanding.UNKNOWN]
        chain.mine()
    assert subject.island.prepare(signed) == [Held()]
    assert subject.island.look_up([order.hold]) == [HoldStanding.HELD]
    subject.close()


def view_of(*chains: Chain, memory: FinalBlocksInMemory, confirmations: int | None = 1) -> ChainView:
    nodes = [Node(f"http://node{place}.invalid", transport=it.transport()) for place, it in enumerate(chains)]
    return ChainView(LEDGER, nodes, chain_id=61_337, confirmations=confirmations, memory=memory)


def test_a_node_that_lags_or_answers_from_a_fork_is_not_believed(chain: Chain) -> None:
    memory = FinalBlocksInMemory()
    chain.mine(3)
    taken = chain.snapshot()
    chain.mine(4)
    final = view_of(chain, memory=memory).final()
    assert final.number == 7
    chain.revert(taken)
    with pytest.raises(NodeAstray, match="lags"):
        view_of(chain, memory=memory).final()
    chain.mine(6)  # longer than before, and another branch
    with pytest.raises(NodeAstray, match="fork"):
        view_of(chain, memory=memory).final()
    assert memory.last(LEDGER) == (7, final.hash)


def test_nodes_that_disagree_or_are_of_another_chain_are_not_believed(chain: Chain) -> None:
    other = Chain()  # the same chain id, other blocks
    chain.mine(2)
    other.mine(2)
    with pytest.raises(NodeAstray, match="different blocks"):
        view_of(chain, other, memory=FinalBlocksInMemory()).final()
    with pytest.raises(NodeAstray, match="another chain"):
        view_of(Chain(chain_id=5), memory=FinalBlocksInMemory()).final()
    same = view_of(chain, chain, memory=FinalBlocksInMemory()).final()
    assert same.number == 2


def test_the_nodes_own_finalized_block_can_be_the_measure(chain: Chain) -> None:
    chain.mine(9)
    assert view_of(chain, memory=FinalBlocksInMemory(), confirmations=None).final().number == 7


def test_a_fork_is_no_answer_to_anything(stage: Stage, subject: EvmSubject, chain: Chain) -> None:
    taken = chain.snapshot()
    order = stage.order()
    stage.hold(order)
    chain.revert(taken)
    chain.mine(5)
    outcomes: list[object] = [
        *subject.island.prepare([stage.signed(order)]),
        *subject.island.fulfil([order.post]),
        *subject.island.cancel([order.void]),
    ]
    assert all(isinstance(outcome, Unknown) and "fork" in outcome.why for outcome in outcomes)
    assert subject.island.look_up([order.hold]) == [HoldStanding.UNKNOWN]
    assert chain.queue == []


def test_another_contract_at_the_escrows_address_is_not_believed(stage: Stage, subject: EvmSubject) -> None:
    order = stage.order()
    stage.hold(order)
    terms = replace(subject.terms, escrow=subject.terms.token)
    view = ChainView(LEDGER, [subject.node], chain_id=subject.chain_id, confirmations=1, memory=FinalBlocksInMemory())
    sender = Sender(subject.node, subject.bridge, chain_id=subject.chain_id, gas=GasPolicy())
    island = EvmIsland(terms, subject.node, view, sender, wait_seconds=0.05)
    assert island.look_up([order.hold]) == [HoldStanding.UNKNOWN]
    assert isinstance(island.fulfil([order.post])[0], Unknown)


# --- reorganisations


def test_a_held_lock_that_is_reorganised_away_after_the_decision_is_sent_again(chain: Chain, tmp_path: Path) -> None:
    """Deeper than its finality: the fresh adapter has only the stored authorisation, and posts in the end."""
    subject = subject_on(chain, tmp_path)
    stage = Stage(subject)
    order = stage.order()
    authorisation = stage.signed(order).authorisation
    taken = chain.snapshot()
    assert stage.prepare(order) == [Held()]
    chain.revert(taken)
    chain.mine(3)
    memory = FinalBlocksInMemory()  # the operator's answer to such a reorganisation: forget, and look anew
    view = ChainView(LEDGER, [subject.node], chain_id=subject.chain_id, confirmations=1, memory=memory)
    sender = Sender(subject.node, subject.bridge, chain_id=subject.chain_id, gas=GasPolicy())
    asked: list[object] = []

    def recall(hold: object) -> str | None:
        asked.append(hold)
        return authorisation

    lost = EvmIsland(subject.terms, subject.node, view, sender, wait_seconds=0.0)
    outcome = lost.fulfil([order.post])[0]
    assert isinstance(outcome, Unknown)
    assert "not known here" in outcome.why
    island = EvmIsland(subject.terms, subject.node, view, sender, wait_seconds=0.05, recall=recall)
    assert isinstance(stage.fulfil(order, island=island)[0], Ended)
    assert asked
    assert subject.available(subject.credit) == 100
    subject.close()


def test_a_contradiction_counts_only_in_a_final_block(chain: Chain, tmp_path: Path) -> None:
    subject = subject_on(chain, tmp_path, confirmations=3)
    stage = Stage(subject)
    order = stage.order()
    stage.hold(order)
    payer = subject.terms.addresses[subject.debit]
    call = ESCROW.call("abort", payer, chain_id_of_hold(order.hold.hold_id), order.secrets.abort)
    subject.transact(subject.payee_account, subject.terms.escrow, call)
    assert isinstance(subject.island.fulfil([order.post])[0], Unknown)
    chain.mine(3)
    assert isinstance(subject.island.fulfil([order.post])[0], Contradiction)
    subject.close()


# --- nonces, fees, failures


def test_what_waits_in_the_pool_is_not_sent_twice_and_a_forgotten_transaction_is(
    stage: Stage, subject: EvmSubject, chain: Chain
) -> None:
    first, second = stage.order(), stage.order()
    assert stage.prepare(first, second) == [Held()] * 2
    chain.is_mining = False
    for _ in range(4):
        assert isinstance(subject.island.fulfil([first.post])[0], Unknown)
    assert len(chain.queue) == 1
    assert isinstance(subject.island.fulfil([second.post])[0], Unknown)
    assert len(chain.queue) == 2
    chain.queue.pop(0)  # the node forgets the first: the second can never be mined before it comes again
    chain.mine(1)
    assert len(chain.queue) == 1
    assert isinstance(subject.island.fulfil([first.post, second.post])[0], Unknown)
    assert len(chain.queue) == 2
    chain.queue.reverse()
    chain.is_mining = True
    chain.mine(1)
    assert all(isinstance(item, Ended) for item in stage.fulfil(first, second))


def test_a_crash_leaves_no_gap(stage: Stage, subject: EvmSubject, chain: Chain) -> None:
    first, second = stage.order(), stage.order()
    assert stage.prepare(first, second) == [Held()] * 2
    chain.is_mining = False
    subject.island.fulfil([first.post])
    fresh = subject.reopened()  # knows nothing of what waits
    fresh.fulfil([first.post, second.post])
    chain.is_mining = True
    chain.mine(1)
    assert all(isinstance(item, Ended) for item in stage.fulfil(first, second, island=fresh))
    assert subject.available(subject.credit) == 200


def test_gas_above_the_bound_is_not_paid() -> None:
    policy = GasPolicy(max_wei=30)
    assert policy.fees(None, 30, bumps=0) == {"gasPrice": 30}
    with pytest.raises(GasTooDear):
        policy.fees(None, 31, bumps=0)
    with pytest.raises(GasTooDear):
        policy.fees(10**12, None, bumps=0)
    assert GasPolicy(price_wei=0).fees(5, 5, bumps=3) == {"gasPrice": 0}
    cheap, bumped = (GasPolicy().fees(10**9, None, bumps=bumps) for bumps in (0, 1))
    assert all(bumped[key] * 100 >= cheap[key] * 112 for key in cheap)
    assert GasPolicy().fees(240 * 10**9, None, bumps=9)["maxFeePerGas"] <= GasPolicy().max_wei


def test_dear_gas_is_a_reason_to_wait(stage: Stage, subject: EvmSubject) -> None:
    order = stage.order()
    stage.hold(order)
    view = ChainView(LEDGER, [subject.node], chain_id=subject.chain_id, confirmations=1, memory=FinalBlocksInMemory())
    sender = Sender(subject.node, subject.bridge, chain_id=subject.chain_id, gas=GasPolicy(max_wei=1))
    island = EvmIsland(subject.terms, subject.node, view, sender, wait_seconds=0.0)
    outcome = island.fulfil([order.post])[0]
    assert isinstance(outcome, Unknown)
    assert "the bound is 1" in outcome.why


@pytest.mark.parametrize(
    "body",
    [b"", b"no json", b"[]", b"{}", b'{"jsonrpc":"2.0","id":999,"result":"0x1"}', b'"x"', b"[1,2,3]"],
)
def test_a_node_that_answers_nonsense_is_unknown(stage: Stage, subject: EvmSubject, body: bytes) -> None:
    order = stage.order()
    stage.hold(order)
    broken = Node("http://broken.invalid", transport=httpx.MockTransport(lambda _: httpx.Response(200, content=body)))
    view = ChainView(LEDGER, [broken], chain_id=subject.chain_id, confirmations=1, memory=FinalBlocksInMemory())
    sender = Sender(broken, subject.bridge, chain_id=subject.chain_id, gas=GasPolicy())
    island = EvmIsland(subject.terms, broken, view, sender, wait_seconds=0.0)
    assert isinstance(island.prepare([stage.signed(order)])[0], Unknown)
    assert isinstance(island.fulfil([order.post])[0], Unknown)
    assert island.look_up([order.hold]) == [HoldStanding.UNKNOWN]
    with pytest.raises((NodeUnreachable, NodeRefused)):
        island.statement(subject.debit)


def test_a_wrong_secret_is_shown_to_nobody(stage: Stage, subject: EvmSubject, chain: Chain) -> None:
    order = stage.order()
    stage.hold(order)
    height = chain.rpc("eth_blockNumber", [])
    wrong = replace(order.post, secret=order.secrets.abort)
    assert isinstance(subject.island.fulfil([wrong])[0], Unknown)
    assert chain.rpc("eth_blockNumber", []) == height


# --- the payer's side


def payer_signer(subject: EvmSubject, journal: Path) -> PayerSigner:
    return PayerSigner(subject.terms, subject.node, subject.payer_account, journal=journal, gas=GasPolicy())


def test_a_payer_signs_an_order_once_and_remembers_it_after_a_crash(
    stage: Stage, subject: EvmSubject, tmp_path: Path
) -> None:
    order, journal = stage.order(), tmp_path / "payer.jsonl"
    signer = payer_signer(subject, journal)
    first = signer.sign(order.hold)
    assert isinstance(first, Authorised)
    with pytest.raises(BlockingIOError):
        payer_signer(subject, journal)
    signer.close()
    assert journal.stat().st_mode & 0o777 == 0o600
    with journal.open("ab") as file:
        file.write(b'{"hold": "half a li')  # died while writing
    again = payer_signer(subject, journal)
    assert again.sign(order.hold) == first
    other = replace(order.hold, terms=replace(order.hold.terms, amount=Money(99, subject.currency)))
    refused = again.sign(other)
    assert isinstance(refused, Refused)
    assert refused.detail == "leg-already-authorised"
    second = again.sign(stage.order().hold)
    assert isinstance(second, Authorised)
    assert second != first
    again.close()


def test_a_lock_that_was_never_relayed_leaves_no_gap(stage: Stage, subject: EvmSubject, chain: Chain) -> None:
    """Another leg was refused, so the first lock was never sent; its settlement is aborted, the next one settles."""
    refused, good = stage.order(), stage.order()
    stage.signed(refused)
    ends = [subject.island.cancel([refused.void])[0] for _ in range(5)]
    assert isinstance(ends[-1], Ended)
    signed = stage.signed(good)
    assert isinstance(subject.island.prepare([signed])[0], Unknown)  # waits behind the first nonce
    assert subject.signer.pump() == 2
    assert subject.island.prepare([signed]) == [Held()]
    assert stage.standing(refused.hold) is HoldStanding.VOIDED
    assert subject.available(subject.debit) == 1_000_000 - 100


def test_a_nonce_that_the_payer_used_otherwise_is_a_refusal(stage: Stage, subject: EvmSubject) -> None:
    order = stage.order()
    signed = stage.signed(order)
    subject.transact(subject.payer_account, subject.payee_account.address, b"", gas=21_000)
    outcome = subject.island.prepare([signed])[0]
    assert isinstance(outcome, Refused)
    assert outcome.code == "authorisation-superseded"


def test_an_allowance_that_is_too_low_is_said(stage: Stage, subject: EvmSubject) -> None:
    subject.transact(subject.payer_account, subject.terms.token, TOKEN.call("approve", subject.terms.escrow, 5))
    order = stage.order()
    outcome = subject.island.prepare([stage.signed(order)])[0]
    assert isinstance(outcome, Refused)
    assert outcome.code == "allowance-too-low"
    assert subject.signer.allowance() == 5


def test_a_key_file_that_others_can_read_is_refused_and_never_shown(tmp_path: Path) -> None:
    account = Account.create()
    path = tmp_path / "chain.key"
    path.write_text(account.key.hex())
    path.chmod(0o644)
    with pytest.raises(ValueError, match="0600"):
        load_account(path)
    path.chmod(0o600)
    assert load_account(path).address == account.address
    secret = secrets.token_hex(20)
    path.write_text(secret)
    with pytest.raises(ValueError, match="no private key") as caught:
        load_account(path)
    assert secret not in str(caught.value)
    with pytest.raises(ValueError, match="No such file"):
        load_account(tmp_path / "absent")


def test_the_statement_names_the_payments_reference(stage: Stage, subject: EvmSubject) -> None:
    order: Order = stage.order()
    stage.hold(order)
    assert isinstance(stage.fulfil(order)[0], Ended)
    island = subject.island
    assert isinstance(island, EvmIsland)
    (line,) = island.statement(subject.credit)
    assert (line.reference, line.hold_id) == (order.hold.reference, order.hold.hold_id)
    assert (line.debit, line.amount_units) == (subject.payer_account.address, 100 * UNIT)
    assert island.available_of([subject.debit, subject.credit]) == [1_000_000 - 100, 100]


def test_a_bad_authorisation_stops_no_other(stage: Stage, subject: EvmSubject) -> None:
    bad, good = stage.order(), stage.order()
    holds = [SignedHold(bad.hold, "0x1234"), stage.signed(good)]
    outcomes = stage.answered(lambda: subject.island.prepare(holds))
    assert isinstance(outcomes[0], Refused)
    assert outcomes[1] == Held()


def test_a_wave_of_legs_is_posted_in_few_transactions(stage: Stage, subject: EvmSubject, chain: Chain) -> None:
    orders = [stage.order(1) for _ in range(7)]
    assert stage.prepare(*orders) == [Held()] * 7
    view = ChainView(LEDGER, [subject.node], chain_id=subject.chain_id, confirmations=1, memory=FinalBlocksInMemory())
    sender = Sender(subject.node, subject.bridge, chain_id=subject.chain_id, gas=GasPolicy())
    island = EvmIsland(subject.terms, subject.node, view, sender, wait_seconds=0.0, ends_per_transaction=5)
    chain.is_mining = False
    island.fulfil([order.post for order in orders])
    assert len(chain.queue) == 2  # 5 and 2
    chain.is_mining = True
    chain.mine(0)
    assert all(isinstance(item, Ended) for item in stage.fulfil(*orders, island=island))
    assert subject.available(subject.credit) == 7


def test_a_lock_mined_while_it_is_asked_about_is_no_refusal(
    stage: Stage, subject: EvmSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its receipt is not there yet; when the nonce is asked for, the lock itself has used it."""
    order = stage.order()
    signed = stage.signed(order)
    asked = Node.batch
    is_mined: list[bool] = []

    def batch(node: Node, calls: Any) -> list[Any]:
        if is_mined or not any(method == "eth_getTransactionReceipt" for method, _ in calls):
            return asked(node, calls)
        is_mined.append(True)
        early = {number for number, (method, _) in enumerate(calls) if method == "eth_getTransactionReceipt"}
        found = {number: asked(node, [calls[number]])[0] for number in early}
        node.call("eth_sendRawTransaction", signed.authorisation)
        return [found[number] if number in early else asked(node, [call])[0] for number, call in enumerate(calls)]

    monkeypatch.setattr(Node, "batch", batch)
    assert not isinstance(subject.island.prepare([signed])[0], Refused)
    assert is_mined
    assert stage.prepare(order) == [Held()]


def test_a_node_that_does_not_say_whether_a_lock_is_mined_decides_nothing(
    stage: Stage, subject: EvmSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = stage.order()
    signed = stage.signed(order)
    subject.transact(subject.payer_account, subject.payee_account.address, b"", gas=21_000)  # its nonce is used
    asked = Node.batch

    def batch(node: Node, calls: Any) -> list[Any]:
        busy = NodeRefused(-32000, "transaction indexing is in progress")
        answers = asked(node, calls)
        return [
            busy if method == "eth_getTransactionReceipt" else found
            for (method, _), found in zip(calls, answers, strict=True)
        ]

    with monkeypatch.context() as patch:
        patch.setattr(Node, "batch", batch)
        assert isinstance(subject.island.prepare([signed])[0], Unknown)
    assert isinstance(subject.island.prepare([signed])[0], Refused)
