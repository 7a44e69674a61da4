"""Goal: a proof that is changed anywhere proves nothing, and nothing that did not happen can be proved.

Method: an own small log with a real key, and a chain in process (py-evm) with the real escrow; each byte of each proof
and header is flipped, one at a time; the trie is held against the library that py-evm itself uses.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rlp import encode as rlp_encode  # type: ignore[import-untyped]
from trie.hexary import HexaryTrie

from kernel.crypto.keys import PrivateKey
from kernel.ids import AccountNumber, ParticipantId, derive_uuid7, new_uuid7, show_account
from kernel.transparency.checkpoints import Checkpoint
from kernel.transparency.merkle import leaf_hash, node_hash, root_of
from kernel.transparency.notes import KeyKind, Note, VerifierKey, sign_text, to_base64
from ledger.contract import TransferKind
from ledger.log.leaves import leaf_input
from ledger.receipts import Receipt, ReceiptTransfer, SupplyStatement
from settlement.domain.escrow import SettlementState
from settlement.islands.evm.contracts import ESCROW, TOKEN, chain_id_of_hold
from settlement.relay import evm, keeping, native
from settlement.relay.bundle import (
    EventProof,
    EvmProof,
    HeaderChain,
    LegProof,
    LegStanding,
    NativeProof,
    ProofBundle,
    Statement,
)
from settlement.relay.keeping import AlarmKind, Kept
from settlement.relay.trie import EMPTY_ROOT, ProofRefused, prove, read_proved
from settlement.relay.trust import EvmTrust, NativeTrust, Trust
from settlement.relay.verdict import Outcome, judge, read_bundle
from settlement.usecases.relay import header_rlp, receipt_rlp
from tests.evm.chain import Reverted
from tests.relay_world import CONFIRMATIONS, RelayChain

LEDGER, CHAIN = "cny-ledger", "aed-chain"
AMOUNT, UNIT = 1_234, 100
PAYER, PAYEE = AccountNumber(11), AccountNumber(12)
COMMIT, ABORT = secrets.token_bytes(32), secrets.token_bytes(32)
COMMIT_HASH, ABORT_HASH = hashlib.sha256(COMMIT).digest(), hashlib.sha256(ABORT).digest()
SETTLEMENT, UETR = new_uuid7(), uuid4()
BANKS = (ParticipantId("AAAACNBJ"), ParticipantId("BBBBAEAD"))


KEYS = st.integers(0, 300).map(lambda number: bytes(rlp_encode(number)))


def hold_of(number: int) -> UUID:
    return derive_uuid7(SETTLEMENT, f"leg-{number}/hold")


def statement(number: int, **changes: Any) -> Statement:
    said: dict[str, Any] = {
        "number": number,
        "ledger": (LEDGER, CHAIN)[number],
        "hold": hold_of(number),
        "payer": BANKS[number],
        "payee": BANKS[1 - number],
        "debit": PAYER,
        "credit": PAYEE,
        "amount_minor": AMOUNT,
        "currency": ("CNY", "AED")[number],
        "state": LegStanding.POSTED,
    }
    return Statement.model_validate(said | changes)


# --- a log of our own


class SmallLog:
    def __init__(self) -> None:
        self.key = PrivateKey.generate()
        self.vkey = VerifierKey(LEDGER, KeyKind.ED25519, self.key.public)
        self.leaves: list[tuple[ReceiptTransfer, bytes, bytes | None]] = []

    def book(self, kind: TransferKind, own: UUID, *, evidence: list[tuple[int, bytes]], **changes: Any) -> int:
        """Its number from 0."""
        said: dict[str, Any] = {
            "seq": len(self.leaves) + 1,
            "id": own,
            "kind": kind,
            "debit": PAYER,
            "credit": PAYEE,
            "amount_minor": AMOUNT,
            "hold": None,
            "reference": UETR,
            "submitter": 3,
            "booked_at": datetime(2026, 11, 23, tzinfo=UTC),
        }
        transfer = ReceiptTransfer.model_validate(said | changes)
        digest = native.evidence_digest(transfer.seq, evidence) if evidence else None
        self.leaves.append((transfer, secrets.token_bytes(16), digest))
        return len(self.leaves) - 1

    def hashes(self) -> list[bytes]:
        return [leaf_hash(leaf_input(salt, transfer.record, digest)) for transfer, salt, digest in self.leaves]

    def note(self, size: int | None = None, root: bytes | None = None) -> str:
        count = len(self.leaves) if size is None else size
        supply = hashlib.sha256(self.supply(count).canonical).digest()
        lines = (f"block 1 {to_base64(bytes(32))}", f"supply {to_base64(supply)}")
        checkpoint = Checkpoint(LEDGER, count, root or root_of(self.hashes()[:count]), lines)
        return str(Note(checkpoint.text, (sign_text(checkpoint.text, name=LEDGER, key=self.key),)))

    def supply(self, size: int) -> SupplyStatement:
        zero = dict.fromkeys(("issued", "redeemed", "circulation", "vaults", "wallets", "held", "offline"), "0")
        return SupplyStatement.model_validate(
            {f"{name}_minor": value for name, value in zero.items()}
            | {"ledger": LEDGER, "currency": "CNY", "block": 1, "seq": size}
            | {"booked_at": datetime(2026, 11, 23, tzinfo=UTC)}
        )

    def receipt(self, number: int) -> dict[str, Any]:
        transfer, salt, digest = self.leaves[number]
        size = len(self.leaves)
        found = Receipt(
            format="jiaozi-receipt/v1",
            ledger=LEDGER,
            currency="CNY",
            transfer=transfer,
            salt=salt,
            evidence_digest=digest,
            leaf_index=number,
            tree_size=size,
            inclusion_proof=inclusion(self.hashes(), number),
            checkpoint=self.note(),
            supply=self.supply(size),
        )
        return found.model_dump(mode="json")

    @property
    def trust(self) -> NativeTrust:
        return NativeTrust(kind="native", ledger=LEDGER, currency="CNY", log_key=str(self.vkey))


def split(count: int) -> int:
    return 1 << ((count - 1).bit_length() - 1)


def inclusion(hashes: list[bytes], number: int) -> list[bytes]:
    """RFC 6962 section 2.1.1, as it is written there."""
    if len(hashes) == 1:
        return []
    middle = split(len(hashes))
    if number < middle:
        return [*inclusion(hashes[:middle], number), root_of(hashes[middle:])]
    return [*inclusion(hashes[middle:], number - middle), root_of(hashes[:middle])]


@dataclass
class NativeScene:
    log: SmallLog
    posted: NativeProof
    others: dict[str, NativeProof]

    def check(self, proof: NativeProof, said: Statement | None = None, **terms: Any) -> LegStanding:
        wanted: dict[str, Any] = {"uetr": UETR, "commit_hash": COMMIT_HASH, "abort_hash": ABORT_HASH} | terms
        return native.check_leg(self.log.trust, said or statement(0), proof, **wanted)[0]


@pytest.fixture(scope="module")
def ledger() -> NativeScene:
    log, instruction = SmallLog(), "header.payload.signature"
    terms = COMMIT_HASH + ABORT_HASH + bytes(8)
    held = [(1, instruction.encode()), (4, terms)]
    hold = hold_of(0)
    places = {
        "hold": log.book(TransferKind.HOLD, hold, evidence=held),
        "noise": log.book(TransferKind.PAYMENT, new_uuid7(), evidence=[]),
        "post": log.book(TransferKind.POST, new_uuid7(), hold=hold, evidence=[(2, COMMIT)]),
        "void": log.book(TransferKind.VOID, new_uuid7(), hold=hold, evidence=[(2, ABORT)]),
        "other-hold": log.book(TransferKind.POST, new_uuid7(), hold=new_uuid7(), evidence=[(2, COMMIT)]),
        "less": log.book(TransferKind.POST, new_uuid7(), hold=hold, amount_minor=AMOUNT - 1, evidence=[(2, COMMIT)]),
        "expired": log.book(TransferKind.EXPIRE, new_uuid7(), hold=hold, evidence=[]),
        "expiring": log.book(TransferKind.HOLD, hold, evidence=[held[0], (4, terms[:-1] + b"\1")]),
        "dear": log.book(TransferKind.HOLD, hold, amount_minor=AMOUNT + 1, evidence=held),
        "buried": log.book(
            TransferKind.TOMBSTONE, new_uuid7(), hold=hold, debit=None, credit=None, amount_minor=0,
            evidence=[(2, ABORT), (5, hold.bytes + ABORT_HASH)],
        ),
        "buried-by-another": log.book(
            TransferKind.TOMBSTONE, new_uuid7(), hold=hold, debit=None, credit=None, amount_minor=0,
            evidence=[(5, hold.bytes + COMMIT_HASH)],
        ),
    }  # fmt: skip

    def proof(placed: str | None, ended: str | None, secret: bytes | None = None) -> NativeProof:
        return NativeProof(
            hold_receipt=None if placed is None else log.receipt(places[placed]),
            instruction=None if placed is None else instruction,
            end_receipt=None if ended is None else log.receipt(places[ended]),
            end_secret=secret,
        )

    others = {
        "voided": proof("hold", "void"),
        "held": proof("hold", None),
        "buried": proof(None, "buried", ABORT),
        "nothing": proof(None, None),
        "end of another hold": proof("hold", "other-hold"),
        "end of less": proof("hold", "less"),
        "expired": proof("hold", "expired"),
        "hold that expires": proof("expiring", "post"),
        "hold of more": proof("dear", "post"),
        "no hold": proof("noise", "post"),
        "post without its hold": proof(None, "post"),
        "tombstone of another": proof(None, "buried-by-another", ABORT),
        "tombstone without its evidence": proof(None, "buried"),
        "hold that ends nothing": proof("hold", "hold"),
    }
    return NativeScene(log, proof("hold", "post"), others)


def test_native_legs_are_proved_for_what_they_are(ledger: NativeScene) -> None:
    assert ledger.check(ledger.posted) is LegStanding.POSTED
    assert ledger.check(ledger.others["voided"]) is LegStanding.VOIDED
    assert ledger.check(ledger.others["buried"]) is LegStanding.VOIDED
    assert ledger.check(ledger.others["held"]) is LegStanding.HELD
    for name in list(ledger.others)[3:]:
        with pytest.raises(ProofRefused):
            ledger.check(ledger.others[name])


@pytest.mark.parametrize(
    "change",
    [{"amount_minor": AMOUNT + 1}, {"debit": PAYEE}, {"credit": AccountNumber(13)}, {"hold": new_uuid7()}],
    ids=["amount", "debit", "credit", "hold"],
)
def test_a_native_proof_of_other_terms_is_refused(ledger: NativeScene, change: dict[str, Any]) -> None:
    for proof in (ledger.posted, ledger.others["voided"], ledger.others["held"]):
        with pytest.raises(ProofRefused):
            ledger.check(proof, statement(0, **change))


def test_a_native_proof_under_other_hashes_uetr_or_key_is_refused(ledger: NativeScene) -> None:
    for terms in ({"commit_hash": ABORT_HASH}, {"abort_hash": bytes(32)}, {"uetr": uuid4()}):
        with pytest.raises(ProofRefused):
            ledger.check(ledger.posted, **terms)
    with pytest.raises(ProofRefused):
        ledger.check(ledger.posted.model_copy(update={"instruction": "another.one.signed"}))
    stranger = NativeScene(SmallLog(), ledger.posted, {})
    with pytest.raises(ProofRefused):
        stranger.check(ledger.posted)


def test_every_character_of_a_native_proof_counts(ledger: NativeScene) -> None:
    """A flipped bit anywhere in the bundle's native part is refused, whether it is a value, a name or a bracket."""
    text = ledger.posted.model_dump_json().encode()
    refused = 0
    for place in range(0, len(text), 5):  # every fifth byte, with the three low bits in turn
        changed = bytearray(text)
        changed[place] ^= 1 << place % 3
        try:
            proof = NativeProof.model_validate_json(bytes(changed))
        except ValueError:
            refused += 1
            continue
        with pytest.raises(ProofRefused):
            ledger.check(proof)
        refused += 1
    assert refused == len(range(0, len(text), 5))


# --- a chain of our own


@dataclass
class ChainScene:
    chain: RelayChain
    trust: EvmTrust
    headers: HeaderChain
    proofs: dict[str, EvmProof]

    def check(self, proof: EvmProof, said: Statement | None = None, **terms: Any) -> LegStanding:
        finals = evm.final_headers(self.trust, self.headers)
        wanted: dict[str, Any] = {"uetr": UETR, "commit_hash": COMMIT_HASH, "abort_hash": ABORT_HASH} | terms
        return evm.check_leg(self.trust, finals, said or statement(1), proof, **wanted)[0]


@pytest.fixture(scope="module")
def scene() -> ChainScene:
    chain = RelayChain()
    payer, payee, anyone = chain.account(), chain.account(), chain.account()
    escrow, token = chain.deploy(ESCROW), chain.deploy(TOKEN, ["Dirham", "AED", 4])
    imitation = chain.deploy(ESCROW)
    chain.send(chain.issuer, token, TOKEN.call("mint", payer.address, 10**9))
    for contract in (escrow, imitation):
        chain.send(payer, token, TOKEN.call("approve", contract, 10**9))
    hold = chain_id_of_hold(hold_of(1))

    def event(position: int = 0) -> EventProof:
        number = chain._head
        values = {bytes(rlp_encode(i)): receipt_rlp(it) for i, it in enumerate(chain.block_receipts(number))}
        _, nodes = prove(values, bytes(rlp_encode(0)))
        return EventProof(
            block=number, transaction_index=0, log_position=position, nodes=[node.hex() for node in nodes]
        )

    def lock(contract: str, amount: int = AMOUNT * UNIT, deadline: int = 0) -> EventProof:
        terms = (hold, token, payee.address, amount, COMMIT_HASH, ABORT_HASH, deadline, chain_id_of_hold(UETR))
        # The token's Transfer is the receipt's first log, the escrow's own the last.
        mined = chain.send(payer, contract, ESCROW.call("lock", *terms))
        return event(len(mined.logs) - 1)

    def end(contract: str, function: str, secret: bytes) -> EventProof:
        mined = chain.send(anyone, contract, ESCROW.call(function, payer.address, hold, secret))
        return event(len(mined.logs) - 1)

    cases: dict[str, EvmProof] = {}
    locked = lock(escrow)
    posted = end(escrow, "commit", COMMIT)
    cases["posted"] = EvmProof(locked=locked, ended=posted)
    cases["held"] = EvmProof(locked=locked, ended=None)
    cases["post without its lock"] = EvmProof(locked=None, ended=posted)
    cases["nothing"] = EvmProof(locked=None, ended=None)
    cases["a lock for an end"] = EvmProof(locked=locked, ended=locked)
    cases["the token's log"] = EvmProof(locked=locked.model_copy(update={"log_position": 0}), ended=posted)
    cases["no log there"] = EvmProof(locked=locked, ended=posted.model_copy(update={"log_position": 9}))
    cases["no transaction there"] = EvmProof(locked=locked, ended=posted.model_copy(update={"transaction_index": 1}))
    cases["another block"] = EvmProof(locked=locked, ended=posted.model_copy(update={"block": posted.block + 1}))
    cases["another contract"] = EvmProof(locked=lock(imitation), ended=end(imitation, "commit", COMMIT))
    with pytest.raises(Reverted):
        chain.send(anyone, escrow, ESCROW.call("abort", payer.address, hold, ABORT))
    cases["a failed transaction"] = EvmProof(locked=locked, ended=event())
    chain.mine(CONFIRMATIONS - 1)
    late = chain._head
    cases["not final"] = EvmProof(locked=locked, ended=end(escrow, "abort", secrets.token_bytes(32)))
    assert chain._head == late + 1
    trust = EvmTrust(
        kind="evm",
        ledger=CHAIN,
        currency="AED",
        escrow=escrow,
        token=token,
        unit=UNIT,
        accounts={PAYER: payer.address, PAYEE: payee.address},
        anchor={"number": 3, "hash": chain._block(3)["hash"][2:]},
        confirmations=CONFIRMATIONS,
        quorum=0,
    )
    raws = [chain.header_rlp(number).hex() for number in range(3, chain._head + 1)]
    return ChainScene(chain, trust, HeaderChain(ledger=CHAIN, headers=raws, note=""), cases)


def voided(scene: ChainScene, *, is_locked: bool) -> LegStanding:
    """A hold of another settlement's leg on the same chain, voided or buried."""
    chain, trust = scene.chain, scene.trust
    payer = chain.account()
    token, escrow, payee = trust.token, trust.escrow, trust.accounts[PAYEE]
    chain.send(chain.issuer, token, TOKEN.call("mint", payer.address, 10**9))
    chain.send(payer, token, TOKEN.call("approve", escrow, 10**9))
    hold = chain_id_of_hold(hold_of(1))
    events: list[EventProof] = []

    def sent(data: bytes) -> None:
        mined = chain.send(payer, escrow, data)
        values = {bytes(rlp_encode(0)): receipt_rlp(chain.block_receipts(chain._head)[0])}
        _, nodes = prove(values, bytes(rlp_encode(0)))
        shown = [node.hex() for node in nodes]
        place = len(mined.logs) - 1
        events.append(EventProof(block=chain._head, transaction_index=0, log_position=place, nodes=shown))

    if is_locked:
        terms = (hold, token, payee, AMOUNT * UNIT, COMMIT_HASH, ABORT_HASH, 0, chain_id_of_hold(UETR))
        sent(ESCROW.call("lock", *terms))
    sent(ESCROW.call("abort", payer.address, hold, ABORT))
    chain.mine(CONFIRMATIONS)
    trust = trust.model_copy(update={"accounts": {PAYER: payer.address, PAYEE: payee}})
    raws = [chain.header_rlp(number).hex() for number in range(3, chain._head + 1)]
    made = ChainScene(chain, trust, HeaderChain(ledger=CHAIN, headers=raws, note=""), {})
    return made.check(EvmProof(locked=events[0] if is_locked else None, ended=events[-1]))


def test_evm_legs_are_proved_for_what_they_are(scene: ChainScene) -> None:
    assert scene.check(scene.proofs["posted"]) is LegStanding.POSTED
    assert scene.check(scene.proofs["held"]) is LegStanding.HELD
    assert voided(scene, is_locked=True) is LegStanding.VOIDED
    assert voided(scene, is_locked=False) is LegStanding.VOIDED
    reasons = {}
    for name in list(scene.proofs)[2:]:
        with pytest.raises(ProofRefused) as refused:
            scene.check(scene.proofs[name])
        reasons[name] = str(refused.value)
    assert "another contract" in reasons["another contract"]
    assert "failed" in reasons["a failed transaction"]
    assert "not final" in reasons["not final"]


@pytest.mark.parametrize(
    "change",
    [{"amount_minor": AMOUNT + 1}, {"debit": PAYEE, "credit": PAYER}, {"hold": hold_of(0)}],
    ids=["amount", "accounts", "hold"],
)
def test_an_evm_proof_of_other_terms_is_refused(scene: ChainScene, change: dict[str, Any]) -> None:
    with pytest.raises(ProofRefused):
        scene.check(scene.proofs["posted"], statement(1, **change))


def test_an_evm_proof_under_other_hashes_or_uetr_is_refused(scene: ChainScene) -> None:
    for terms in ({"commit_hash": ABORT_HASH}, {"abort_hash": bytes(32)}, {"uetr": uuid4()}):
        with pytest.raises(ProofRefused):
            scene.check(scene.proofs["posted"], **terms)


def test_every_byte_of_a_receipt_proof_and_of_a_header_counts(scene: ChainScene) -> None:
    posted = scene.proofs["posted"]
    finals = evm.final_headers(scene.trust, scene.headers)
    for shown in (posted.locked, posted.ended):
        assert shown is not None
        for number, node in enumerate(shown.nodes):
            for place in range(len(node) // 2):
                changed = bytearray(bytes.fromhex(node))
                changed[place] ^= 1 << place % 8
                nodes = [*shown.nodes[:number], changed.hex(), *shown.nodes[number + 1 :]]
                with pytest.raises(ProofRefused):
                    evm.read_event(finals.headers[shown.block], shown.model_copy(update={"nodes": nodes}))
    headers = scene.headers.headers[-4:]
    last = evm.read_header(bytes.fromhex(headers[-1]))
    # The last is trusted: all before it hang on its hash.
    anchor = {"number": last.number, "hash": last.hash.hex()}
    anchored = EvmTrust.model_validate(scene.trust.model_dump(mode="json") | {"anchor": anchor})
    good = evm.final_headers(anchored, HeaderChain(ledger=CHAIN, headers=headers, note=""))
    assert len(good.headers) == 4
    for number, text in enumerate(headers):
        for place in range(len(text) // 2):
            changed = bytearray(bytes.fromhex(text))
            changed[place] ^= 1 << place % 8
            others = [*headers[:number], changed.hex(), *headers[number + 1 :]]
            with pytest.raises(ProofRefused):
                evm.final_headers(anchored, HeaderChain(ledger=CHAIN, headers=others, note=""))


def check_posted(scene: ChainScene, trust: EvmTrust, finals: evm.Finals) -> None:
    terms = {"uetr": UETR, "commit_hash": COMMIT_HASH, "abort_hash": ABORT_HASH}
    evm.check_leg(trust, finals, statement(1), scene.proofs["posted"], **terms)  # type: ignore[arg-type]


def test_headers_are_final_by_depth_and_by_keepers(scene: ChainScene) -> None:
    headers = evm.linked([bytes.fromhex(text) for text in scene.headers.headers])
    last = headers[-1]
    finals = evm.final_headers(scene.trust, scene.headers)
    assert max(finals.headers) == last.number - CONFIRMATIONS + 1
    keys = [PrivateKey.generate() for _ in range(2)]
    vkeys = [str(VerifierKey(f"keeper-{n}", KeyKind.ED25519, key.public)) for n, key in enumerate(keys)]
    asked = EvmTrust.model_validate(scene.trust.model_dump(mode="json") | {"keepers": vkeys, "quorum": 2})
    notes = [evm.sign_header(CHAIN, last, name=f"keeper-{n}", key=key) for n, key in enumerate(keys)]
    both = str(Note(evm.header_text(CHAIN, last), Note.parse(notes[0]).signatures + Note.parse(notes[1]).signatures))
    assert evm.final_headers(asked, scene.headers.model_copy(update={"note": both})) == finals
    of_another = evm.sign_header(CHAIN, headers[-2], name="keeper-0", key=keys[0])
    elsewhere = evm.sign_header("other-chain", last, name="keeper-0", key=keys[0])
    for note in ("", notes[0], of_another, elsewhere, both.replace("keeper-1", "keeper-2")):
        alone = evm.final_headers(asked, scene.headers.model_copy(update={"note": note}))
        assert max(alone.headers) == asked.anchor.number
        assert alone.beyond
        with pytest.raises(
            ProofRefused, match=r"not final for this reader: .*keepers|not final for this reader: .*note"
        ):
            check_posted(scene, asked, alone)
    gap = [*scene.headers.headers[:2], *scene.headers.headers[3:]]
    swapped = [*scene.headers.headers[:2], *reversed(scene.headers.headers[2:])]
    for shown in (gap, swapped, scene.headers.headers[1:]):
        with pytest.raises(ProofRefused):
            evm.final_headers(scene.trust, scene.headers.model_copy(update={"headers": shown}))


def test_headers_and_receipts_are_encoded_as_the_chain_hashes_them(scene: ChainScene) -> None:
    for number in range(3, scene.chain._head + 1):
        shown = scene.chain._block(number)
        raw = header_rlp(shown)
        assert raw == scene.chain.header_rlp(number)
        assert "0x" + evm.read_header(raw).hash.hex() == shown["hash"]
        receipts = scene.chain.block_receipts(number)
        values = {bytes(rlp_encode(place)): receipt_rlp(receipt) for place, receipt in enumerate(receipts)}
        if values:
            root, _ = prove(values, bytes(rlp_encode(0)))
            assert root == evm.read_header(raw).receipts_root
        else:
            assert evm.read_header(raw).receipts_root == EMPTY_ROOT


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(KEYS, st.binary(min_size=1, max_size=80), min_size=1, max_size=40))
def test_the_trie_is_the_one_that_others_make(values: dict[bytes, bytes]) -> None:
    """Small values too: their nodes stand in their parents."""
    other = HexaryTrie({})
    for key, value in values.items():
        other[key] = value
    for key, value in values.items():
        root, nodes = prove(values, key)
        assert root == bytes(other.root_hash)
        assert read_proved(root, key, nodes) == value
        theirs = [bytes(rlp_encode(node)) for node in other.get_proof(key)]  # type: ignore[no-untyped-call]
        assert nodes == [node for node in theirs if node == theirs[0] or len(node) >= 32]
        with pytest.raises(ProofRefused):
            read_proved(root, key, [*nodes, nodes[-1]])
        with pytest.raises(ProofRefused):
            read_proved(root, key, nodes[:-1])
    absent = bytes(rlp_encode(1_000))
    _, nodes = prove(values, next(iter(values)))
    with pytest.raises(ProofRefused):
        read_proved(bytes(other.root_hash), absent, nodes)


# --- what is kept


def test_a_forked_or_rewritten_log_is_an_alarm_with_both_notes(ledger: NativeScene) -> None:
    log = ledger.log
    hashes = log.hashes()
    kept = keeping.open_note_of(log.trust, log.note(4))
    same = keeping.open_note_of(log.trust, log.note(4))
    later = keeping.open_note_of(log.trust, log.note(8))
    proof = [root_of(hashes[4:8])]
    assert keeping.compare(kept, same, []) is None
    assert keeping.compare(kept, later, proof) is None
    assert keeping.compare(later, kept, proof) is None
    forked = keeping.open_note_of(log.trust, log.note(4, root_of([*hashes[:3], bytes(32)])))
    alarm = keeping.compare(kept, forked, [])
    assert alarm is not None
    assert (alarm.kind, alarm.first, alarm.second) == (AlarmKind.FORK, kept.note.encode(), forked.note.encode())
    rewritten = keeping.open_note_of(log.trust, log.note(8, node_hash(forked.root, proof[0])))
    for wrong in (proof, [], [bytes(32)], [*proof, bytes(32)]):
        alarm = keeping.compare(kept, rewritten, wrong)
        assert alarm is not None
        assert alarm.kind is AlarmKind.INCONSISTENT
    for note in (log.note(4).replace("4\n", "5\n", 1), "", SmallLog().note(0, bytes(32))):
        with pytest.raises(ProofRefused):
            keeping.open_note_of(log.trust, note)
    assert isinstance(kept, Kept)


# --- the settlement


def bundle(legs: list[tuple[Statement, Any]], headers: HeaderChain) -> ProofBundle:
    made = ProofBundle(
        settlement=SETTLEMENT,
        uetr=UETR,
        state=SettlementState.SETTLED,
        commit_hash=COMMIT_HASH,
        abort_hash=ABORT_HASH,
        legs=[LegProof(statement=said, proof=proof) for said, proof in legs],
        chains=[headers],
    )
    return read_bundle(made.model_dump_json().encode())


def test_a_settlement_is_proven_whole_or_shown_to_be_split(ledger: NativeScene, scene: ChainScene) -> None:
    """I5: all in one direction, or a proven violation; a leg that is not proven makes nothing of the others."""
    trust = Trust(format="jiaozi-relay-trust/v1", islands=[ledger.log.trust, scene.trust])
    on_chain = (statement(1), scene.proofs["posted"])
    whole = bundle([(statement(0), ledger.posted), on_chain], scene.headers)
    assert judge(whole, trust).outcome is Outcome.POSTED
    for state in (LegStanding.VOIDED, LegStanding.POSTED):  # whatever is claimed
        split_legs = [(statement(0, state=state), ledger.others["voided"]), on_chain]
        assert judge(bundle(split_legs, scene.headers), trust).outcome is Outcome.VIOLATION
    for proof in (ledger.others["held"], None, ledger.others["end of less"], scene.proofs["posted"]):
        found = judge(bundle([(statement(0), proof), on_chain], scene.headers), trust)
        assert (found.outcome, [leg.is_proven for leg in found.legs]) == (Outcome.NOT_PROVEN, [False, True])
    assert judge(bundle([on_chain], scene.headers), trust).outcome is Outcome.NOT_PROVEN
    nobody = Trust(format="jiaozi-relay-trust/v1", islands=[ledger.log.trust])
    assert judge(whole, nobody).outcome is Outcome.NOT_PROVEN
    assert judge(whole.model_copy(update={"chains": []}), trust).outcome is Outcome.NOT_PROVEN
    assert judge(whole.model_copy(update={"abort_hash": COMMIT_HASH}), trust).outcome is Outcome.NOT_PROVEN
    for content in (b"", b"[]", b'{"format": "x"}', whole.model_dump_json().encode()[:-1]):
        with pytest.raises(ProofRefused):
            read_bundle(content)


def test_a_trust_that_says_nothing_definite_is_refused(ledger: NativeScene, scene: ChainScene) -> None:
    good_log = ledger.log.trust.model_dump(mode="json")
    good_chain = scene.trust.model_dump(mode="json")
    for island in (
        good_log | {"log_key": "x"},
        good_log | {"quorum": 1},
        good_chain | {"unit": "0"},
        good_chain | {"quorum": 1},
        good_chain | {"accounts": {show_account(n): scene.trust.escrow for n in (1, 2)}},
        {name: value for name, value in good_chain.items() if name != "quorum"},
    ):
        with pytest.raises(ValueError, match="validation error"):
            Trust.model_validate({"format": "jiaozi-relay-trust/v1", "islands": [island]})
    with pytest.raises(ValueError, match="twice"):
        Trust.model_validate({"format": "jiaozi-relay-trust/v1", "islands": [good_log, good_log]})
