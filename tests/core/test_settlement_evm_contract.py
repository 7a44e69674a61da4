"""Goal: the escrow contract keeps its rules against anybody: payers, payees, strangers and tokens.

Method: the committed bytecode in an EVM in process (py-evm). After every test the escrow holds, of each token, exactly
what its standing holds add up to (I2). Where Node.js and solc are installed, the bytecode is compiled and compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from eth_account.signers.local import LocalAccount
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from settlement.islands.evm.contracts import ADDRESS_ZERO, ESCROW, TOKEN, Contract
from tests.evm.chain import Chain, Mined, Reverted
from tests.evm.compile import SOLC, SOURCES, compile_sources, written

EVIL = Contract.load(Path(__file__).resolve().parent.parent / "evm" / "evil_tokens.json")
ABSENT, HELD, POSTED, VOIDED = range(4)
VICES = (
    "none",
    "returns false",
    "returns nothing",
    "returns two",
    "returns one byte",
    "keeps a fee",
    "moves nothing",
    "reverts",
    "burns gas",
    "returns a flood",
    "re-enters commit",
    "re-enters abort",
    "re-enters lock",
)
FUNDS = 1_000
EXAMPLES = int(os.environ.get("JIAOZI_MACHINE_EXAMPLES", "6"))


def sha256(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


@dataclass(frozen=True)
class Terms:
    """A hold to be: both secrets, and the arguments of `lock`."""

    id: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    commit: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    abort: bytes | None = field(default_factory=lambda: secrets.token_bytes(32))
    amount: int = 100
    deadline: int = 0
    ref: bytes = b"\x07" * 32

    @property
    def abort_hash(self) -> bytes:
        return bytes(32) if self.abort is None else sha256(self.abort)


class Scene:
    def __init__(self) -> None:
        self.chain = Chain()
        self.escrow = self.chain.deploy(ESCROW)
        self.token = self.chain.deploy(TOKEN, ["Yuan", "CNY", 2])
        self.evil = self.chain.deploy(EVIL)
        self.payer, self.payee, self.stranger = (self.chain.account() for _ in range(3))
        for token, kind in ((self.token, TOKEN), (self.evil, EVIL)):
            self.chain.send(self.chain.issuer, token, kind.call("mint", self.payer.address, FUNDS))
            self.chain.send(self.payer, token, kind.call("approve", self.escrow, FUNDS))

    def lock(self, terms: Terms, *, by: LocalAccount | None = None, token: str = "", payee: str = "") -> Mined:
        data = ESCROW.call(
            "lock",
            terms.id,
            token or self.token,
            payee or self.payee.address,
            terms.amount,
            sha256(terms.commit),
            terms.abort_hash,
            terms.deadline,
            terms.ref,
        )
        return self.chain.send(by or self.payer, self.escrow, data, gas=400_000)

    def commit(self, terms: Terms, secret: bytes | None = None) -> Mined:
        data = ESCROW.call("commit", self.payer.address, terms.id, terms.commit if secret is None else secret)
        return self.chain.send(self.stranger, self.escrow, data, gas=400_000)

    def abort(self, terms: Terms, secret: bytes | None = None) -> Mined:
        data = ESCROW.call("abort", self.payer.address, terms.id, terms.abort if secret is None else secret)
        return self.chain.send(self.stranger, self.escrow, data)

    def expire(self, terms: Terms) -> Mined:
        return self.chain.send(self.stranger, self.escrow, ESCROW.call("expire", self.payer.address, terms.id))

    def standing(self, terms: Terms, payer: str = "") -> int:
        return int(self._look_up(terms, payer)[0][0][3])

    def ended_at(self, terms: Terms) -> int:
        return int(self._look_up(terms, "")[0][0][2])

    def is_buried(self, terms: Terms) -> bool:
        return bool(self._look_up(terms, "")[1][0])

    def _look_up(self, terms: Terms, payer: str) -> tuple[list[tuple[Any, ...]], list[bool]]:
        data = ESCROW.call("lookUp", [payer or self.payer.address], [terms.id], [terms.abort_hash])
        found, buried = ESCROW.result("lookUp", self.chain.call(self.escrow, data))
        return list(found), list(buried)

    def balance(self, who: str, token: str = "") -> int:
        return int(TOKEN.result("balanceOf", self.chain.call(token or self.token, TOKEN.call("balanceOf", who)))[0])

    def held_total(self, token: str) -> int:
        data = self.chain.call(self.escrow, ESCROW.call("heldTotal", token))
        return int(ESCROW.result("heldTotal", data)[0])

    def now(self) -> int:
        return int(self.chain.rpc("eth_getBlockByNumber", ["latest", False])["timestamp"], 16)

    def become(self, vice: str) -> None:
        self.chain.send(self.chain.issuer, self.evil, EVIL.call("become", VICES.index(vice)))


@pytest.fixture(scope="module")
def deployed() -> Scene:
    return Scene()


@pytest.fixture
def scene(deployed: Scene) -> Iterator[Scene]:
    taken = deployed.chain.snapshot()
    yield deployed
    for token in (deployed.token, deployed.evil):
        assert deployed.balance(deployed.escrow, token) == deployed.held_total(token), "I2: the escrow is short"
    deployed.chain.revert(taken)


def events(mined: Mined, scene: Scene) -> list[tuple[str, dict[str, object]]]:
    return [ESCROW.event(topics, data) for address, topics, data in mined.logs if address == scene.escrow]


# --- decision escrow


def test_a_hold_is_locked_and_posted_once(scene: Scene) -> None:
    terms = Terms()
    ((name, locked),) = events(scene.lock(terms), scene)
    assert (name, locked["payer"], locked["payee"]) == ("Locked", scene.payer.address, scene.payee.address)
    assert (locked["id"], locked["ref"], locked["amount"], locked["deadline"]) == (terms.id, terms.ref, 100, 0)
    assert (locked["token"], locked["commitHash"]) == (scene.token, sha256(terms.commit))
    assert locked["abortHash"] == terms.abort_hash
    assert (scene.balance(scene.payer.address), scene.balance(scene.escrow)) == (FUNDS - 100, 100)
    ((name, posted),) = events(scene.commit(terms), scene)
    assert (name, posted["secret"], posted["amount"]) == ("Posted", terms.commit, 100)
    assert events(scene.commit(terms), scene) == []  # again: nothing more
    assert scene.balance(scene.payee.address) == 100
    assert scene.standing(terms) == POSTED
    assert 0 < scene.ended_at(terms) < scene.now()  # the time of the block that posted it, not of the repetition


def test_a_hold_is_voided_once_and_its_money_returns(scene: Scene) -> None:
    terms = Terms()
    scene.lock(terms)
    assert events(scene.abort(terms), scene)[0][0] == "Voided"
    assert events(scene.abort(terms), scene) == []
    assert (scene.balance(scene.payer.address), scene.standing(terms)) == (FUNDS, VOIDED)


@pytest.mark.parametrize("ended", ["posted", "voided"])
def test_an_ended_hold_never_ends_the_other_way(scene: Scene, ended: str) -> None:
    terms = Terms()
    scene.lock(terms)
    (scene.commit if ended == "posted" else scene.abort)(terms)
    with pytest.raises(Reverted) as caught:
        (scene.abort if ended == "posted" else scene.commit)(terms)
    assert caught.value.name == ("AlreadyPosted" if ended == "posted" else "AlreadyVoided")


def test_only_the_right_secret_posts(scene: Scene) -> None:
    terms = Terms()
    scene.lock(terms)
    assert terms.abort is not None
    for wrong in (terms.abort, bytes(32), secrets.token_bytes(32), sha256(terms.commit)):
        with pytest.raises(Reverted, match="SecretWrong"):
            scene.commit(terms, wrong)
    for wrong in (terms.commit, bytes(32)):
        scene.abort(terms, wrong)  # buries another hold of the id, and touches this one not at all
    assert scene.standing(terms) == HELD
    scene.commit(terms)
    with pytest.raises(Reverted, match="SecretWrong"):  # a wrong secret is told from a repetition
        scene.commit(terms, bytes(32))


def test_a_post_of_an_unknown_hold_is_refused(scene: Scene) -> None:
    with pytest.raises(Reverted, match="HoldUnknown"):
        scene.commit(Terms())


def test_an_abort_that_overtakes_its_lock_keeps_it_out_for_ever(scene: Scene) -> None:
    terms = Terms()
    assert events(scene.abort(terms), scene)[0][0] == "Buried"
    assert events(scene.abort(terms), scene) == []
    for _ in range(2):
        with pytest.raises(Reverted, match="Tombstoned"):
            scene.lock(terms)
    assert (scene.standing(terms), scene.is_buried(terms)) == (ABSENT, True)


def test_a_tombstone_keeps_out_no_hold_of_another_abort_hash(scene: Scene) -> None:
    """A stranger knows the id before the lock is mined, and not the secret."""
    terms = Terms()
    scene.abort(terms, secrets.token_bytes(32))
    scene.lock(terms)
    assert scene.standing(terms) == HELD


@pytest.mark.parametrize("end", ["none", "commit", "abort"])
def test_an_id_is_used_once(scene: Scene, end: str) -> None:
    terms = Terms()
    scene.lock(terms)
    if end != "none":
        getattr(scene, end)(terms)
    for other in (terms, Terms(id=terms.id, amount=7), Terms(id=terms.id)):
        with pytest.raises(Reverted, match="IdUsed"):
            scene.lock(other)
    assert (
        scene.balance(scene.payer.address) + scene.balance(scene.payee.address) + scene.balance(scene.escrow) == FUNDS
    )


def test_nobody_takes_anothers_id_by_being_faster(scene: Scene) -> None:
    """The lock waits in public; a stranger's lock of the same id and hashes is another hold, and hinders nothing."""
    terms = Terms()
    scene.chain.send(scene.chain.issuer, scene.token, TOKEN.call("mint", scene.stranger.address, 500))
    scene.chain.send(scene.stranger, scene.token, TOKEN.call("approve", scene.escrow, 500))
    scene.lock(terms, by=scene.stranger, payee=scene.payer.address)
    scene.lock(terms)
    assert (scene.standing(terms), scene.standing(terms, scene.stranger.address)) == (HELD, HELD)
    scene.commit(terms)
    assert scene.standing(terms, scene.stranger.address) == HELD
    assert scene.balance(scene.payee.address) == 100


def test_a_stranger_cannot_lock_a_payers_money(scene: Scene) -> None:
    """The payer's approval of the escrow serves only locks that the payer sends."""
    with pytest.raises(Reverted, match="TokenFailed"):
        scene.lock(Terms(), by=scene.stranger)
    assert scene.balance(scene.payer.address) == FUNDS


def test_no_more_is_locked_than_there_is(scene: Scene) -> None:
    with pytest.raises(Reverted, match="TokenFailed"):
        scene.lock(Terms(amount=FUNDS + 1))
    scene.lock(Terms(amount=FUNDS))
    with pytest.raises(Reverted, match="TokenFailed"):
        scene.lock(Terms(amount=1))


def test_terms_that_cannot_end_well_are_refused(scene: Scene) -> None:
    same = secrets.token_bytes(32)
    for terms, payee, name in (
        (Terms(amount=0), "", "TermsInvalid"),
        (Terms(), scene.payer.address, "TermsInvalid"),
        (Terms(), scene.escrow, "TermsInvalid"),
        (Terms(), ADDRESS_ZERO, "TermsInvalid"),
        (Terms(commit=same, abort=same), "", "TermsInvalid"),
        (Terms(abort=None), "", "TermsInvalid"),  # nothing could ever void it
        (Terms(deadline=scene.now() - 1), "", "DeadlinePassed"),
        (Terms(amount=2**256 - 1), "", "TokenFailed"),
    ):
        with pytest.raises(Reverted, match=name):
            scene.lock(terms, payee=payee)


def test_an_address_without_code_is_no_token(scene: Scene) -> None:
    with pytest.raises(Reverted, match="TokenFailed"):
        scene.lock(Terms(), token=scene.stranger.address)


def test_ether_is_refused() -> None:
    document = json.loads((Path(SOURCES_BY_NAME["Escrow"]).with_suffix(".json")).read_text())
    kinds = {item["type"] for item in document["abi"]}
    assert not kinds & {"receive", "fallback"}
    assert not [item["name"] for item in document["abi"] if item.get("stateMutability") == "payable"]


# --- deadlines and the hash-time-lock


def test_without_a_deadline_nothing_expires(scene: Scene) -> None:
    terms = Terms()
    scene.lock(terms)
    scene.chain.mine(1, seconds=100 * 365 * 86_400)
    with pytest.raises(Reverted, match="DeadlineNotPassed"):
        scene.expire(terms)
    scene.commit(terms)
    assert scene.standing(terms) == POSTED


@pytest.mark.parametrize("is_time_lock", [True, False])
def test_at_its_deadline_a_hold_is_posted_no_more_and_returns(scene: Scene, is_time_lock: bool) -> None:
    deadline = scene.now() + 5_000
    terms = Terms(abort=None, deadline=deadline) if is_time_lock else Terms(deadline=deadline)
    scene.lock(terms)
    with pytest.raises(Reverted, match="DeadlineNotPassed"):
        scene.expire(terms)
    scene.chain.mine(1, seconds=5_000)
    with pytest.raises(Reverted, match="DeadlinePassed"):
        scene.commit(terms)
    assert events(scene.expire(terms), scene)[0][0] == "Expired"
    assert events(scene.expire(terms), scene) == []
    assert (scene.standing(terms), scene.balance(scene.payer.address)) == (VOIDED, FUNDS)
    with pytest.raises(Reverted, match="AlreadyVoided"):
        scene.commit(terms)


def test_a_time_lock_is_claimed_before_its_deadline_and_then_never_returns(scene: Scene) -> None:
    terms = Terms(abort=None, deadline=scene.now() + 5_000)
    scene.lock(terms)
    scene.commit(terms)
    scene.chain.mine(1, seconds=5_000)
    with pytest.raises(Reverted, match="AlreadyPosted"):
        scene.expire(terms)
    assert scene.balance(scene.payee.address) == 100


def test_no_secret_voids_a_time_lock(scene: Scene) -> None:
    terms = Terms(abort=None, deadline=scene.now() + 5_000)
    scene.lock(terms)
    for secret in (bytes(32), terms.commit, secrets.token_bytes(32)):
        scene.abort(terms, secret)
    assert scene.standing(terms) == HELD
    scene.commit(terms)


# --- many at once


def test_one_that_cannot_end_stops_no_other_of_its_batch(scene: Scene) -> None:
    good, voided, unknown, wrong, late = (Terms() for _ in range(5))
    for terms in (good, voided, wrong, late):
        scene.lock(terms)
    scene.abort(voided)
    batch = (good, voided, unknown, wrong, good, late)
    shown = [terms.commit if terms is not wrong else bytes(32) for terms in batch]
    data = ESCROW.call("commitAll", [scene.payer.address] * 6, [terms.id for terms in batch], shown)
    mined = scene.chain.send(scene.stranger, scene.escrow, data)
    assert [name for name, _ in events(mined, scene)] == ["Posted", "Posted"]
    standings = [scene.standing(terms) for terms in (good, voided, unknown, wrong, late)]
    assert standings == [POSTED, VOIDED, ABSENT, HELD, POSTED]
    aborted = (wrong, unknown, good)
    data = ESCROW.call("abortAll", [scene.payer.address] * 3, [t.id for t in aborted], [t.abort for t in aborted])
    scene.chain.send(scene.stranger, scene.escrow, data)
    assert (scene.standing(wrong), scene.is_buried(unknown), scene.standing(good)) == (VOIDED, True, POSTED)


def test_lists_of_unequal_length_are_refused(scene: Scene) -> None:
    for function in ("commitAll", "abortAll", "lookUp"):
        with pytest.raises(Reverted, match="TermsInvalid"):
            scene.chain.call(scene.escrow, ESCROW.call(function, [scene.payer.address], [bytes(32)] * 2, [bytes(32)]))


# --- malicious tokens


@pytest.mark.parametrize(
    ("vice", "is_taken"),
    [
        ("none", True),
        ("returns false", False),
        ("returns nothing", True),
        ("returns two", False),
        ("returns one byte", False),
        ("keeps a fee", False),
        ("moves nothing", False),
        ("reverts", False),
        ("burns gas", False),
        ("returns a flood", True),
    ],
)
def test_a_token_is_believed_only_if_all_of_the_money_moved(scene: Scene, vice: str, is_taken: bool) -> None:
    terms = Terms()
    scene.become(vice)
    if is_taken:
        scene.lock(terms, token=scene.evil)
        assert scene.balance(scene.escrow, scene.evil) == 100
    else:
        with pytest.raises(Reverted):
            scene.lock(terms, token=scene.evil)
        assert scene.standing(terms) == ABSENT
    # Honest when it is locked, wicked when it is to be paid out: nothing ends by halves.
    scene.become("none")
    later = Terms()
    scene.lock(later, token=scene.evil)
    scene.become(vice)
    if is_taken:
        scene.commit(later)
        assert scene.balance(scene.payee.address, scene.evil) == 100
    else:
        with pytest.raises(Reverted):
            scene.commit(later)
        assert scene.standing(later) == HELD
        scene.become("none")
        scene.commit(later)
        assert scene.standing(later) == POSTED


@pytest.mark.parametrize("vice", ["re-enters commit", "re-enters abort", "re-enters lock"])
def test_a_token_that_calls_back_gets_nothing_twice(scene: Scene, vice: str) -> None:
    victim, terms = Terms(), Terms()
    scene.lock(victim, token=scene.evil)
    secret = victim.abort if vice == "re-enters abort" else victim.commit
    scene.chain.send(
        scene.chain.issuer, scene.evil, EVIL.call("aim", scene.escrow, scene.payer.address, victim.id, secret)
    )
    scene.become(vice)
    scene.lock(terms, token=scene.evil)
    scene.commit(terms)
    assert not EVIL.result("reentered", scene.chain.call(scene.evil, EVIL.call("reentered")))[0]
    assert (scene.standing(terms), scene.standing(victim)) == (POSTED, HELD)
    assert scene.balance(scene.payee.address, scene.evil) == 100


def test_a_bad_token_in_a_batch_stops_no_good_one(scene: Scene) -> None:
    bad, good = Terms(), Terms()
    scene.lock(bad, token=scene.evil)
    scene.lock(good)
    scene.become("reverts")
    data = ESCROW.call("commitAll", [scene.payer.address] * 2, [bad.id, good.id], [bad.commit, good.commit])
    scene.chain.send(scene.stranger, scene.escrow, data)
    assert (scene.standing(bad), scene.standing(good)) == (HELD, POSTED)


# --- any order of calls


@pytest.mark.campaign
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["lock", "commit", "abort", "wrong", "expire", "later"]), st.integers(0, 2)),
        max_size=14,
    )
)
def test_whatever_the_order_each_hold_ends_at_most_once_and_no_money_is_made(
    deployed: Scene, steps: list[tuple[str, int]]
) -> None:
    """Against a model of a few lines: (standing, is buried) of three holds, the last one with a deadline."""
    scene = deployed
    taken = scene.chain.snapshot()
    holds = [Terms(), Terms(), Terms(deadline=scene.now() + 3_000)]
    model, buried, is_late = [ABSENT] * 3, [False] * 3, False
    try:
        for step, number in steps:
            terms, standing = holds[number], model[number]
            is_over = is_late and terms.deadline != 0
            wanted = standing
            if step == "later":
                scene.chain.mine(1, seconds=3_000)
                is_late = True
                continue
            if step == "lock" and standing == ABSENT and not buried[number] and not is_over:
                wanted = HELD
            elif step == "commit" and standing == HELD and not is_over:
                wanted = POSTED
            elif step == "abort" and standing == ABSENT:
                buried[number] = True
            elif (step == "abort" and standing == HELD) or (step == "expire" and standing == HELD and is_over):
                wanted = VOIDED
            try:
                if step == "wrong":
                    scene.commit(terms, terms.abort)
                else:
                    getattr(scene, step)(terms)
            except Reverted:
                assert wanted == standing
            model[number] = wanted
            assert [scene.standing(item) for item in holds] == model
            assert [scene.is_buried(item) for item in holds] == buried
        assert scene.balance(scene.escrow) == 100 * model.count(HELD) == scene.held_total(scene.token)
        assert scene.balance(scene.payee.address) == 100 * model.count(POSTED)
        assert scene.balance(scene.payer.address) == FUNDS - 100 * (model.count(HELD) + model.count(POSTED))
    finally:
        scene.chain.revert(taken)


# --- what is committed is what the source says

SOURCES_BY_NAME = {contract: path for path, contract in SOURCES.items()}


@pytest.mark.parametrize("contract", list(SOURCES_BY_NAME))
def test_the_committed_bytecode_is_of_the_committed_source(contract: str) -> None:
    path = SOURCES_BY_NAME[contract]
    document = json.loads(path.with_suffix(".json").read_text())
    assert document["source_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (document["contract"], document["evm_version"]) == (contract, "london")


@pytest.mark.extended
def test_the_sources_compile_to_the_committed_bytecode() -> None:
    if shutil.which("node") is None or not SOLC.is_dir():
        missing = "Node.js and solc are missing (npm ci --prefix tests/thirdparty)"
        if os.environ.get("JIAOZI_NO_SKIP") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    for path, document in compile_sources().items():
        assert written(document) == path.with_suffix(".json").read_text()


def test_the_escrow_uses_no_opcode_that_chainmaker_lacks() -> None:
    """No PUSH0, MCOPY, transient storage or blob opcode; of the precompiles, SHA-256 alone."""
    code, used, position = ESCROW.bytecode, set(), 0
    while position < len(code):
        opcode = code[position]
        used.add(opcode)
        position += 1 + (opcode - 0x5F if 0x60 <= opcode <= 0x7F else 0)
    assert not used & {0x5F, 0x5C, 0x5D, 0x5E, 0x49, 0x4A}
    source = SOURCES_BY_NAME["Escrow"].read_text()
    assert "ecrecover" not in source
    assert "payable" not in source
