"""Goal: no bytes but the documented ones are a message, a frame or a state; each reads back as it was written; and what
is signed is what a general COSE library would have signed.
Method: round trips, a general CBOR library as oracle, fuzzing (bytes at random, and real messages with bytes changed,
cut, doubled) against "a clear refusal or the same message".
"""

from __future__ import annotations

import contextlib
import secrets
from uuid import UUID

import cbor2
import pytest
import segno
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel import ids
from kernel.crypto.keys import PrivateKey, Suite
from tests.purse_world import Purse
from wallet.domain.offline import cbor, cose, element, messages
from wallet.domain.offline.carriers import BadFrames, from_base45, from_frames, to_base45, to_frames
from wallet.domain.offline.cbor import NotCbor
from wallet.domain.offline.cose import Unreadable
from wallet.domain.offline.element import Device, PurseState
from wallet.domain.offline.limits import DEPTH_MAX, MESSAGE_BYTES_MAX
from wallet.domain.offline.vocabulary import Disposition, PurseRefusal, Refused
from wallet.purse_device import DeviceBroken, read_state, write_state

NOW = 1_000_000
BANK = PrivateKey.generate()


def make_purse(bank: PrivateKey = BANK, *, suite: str = "ed25519", fund: int = 1000, hops_max: int = 4) -> Purse:
    key, purse = PrivateKey.generate(suite), ids.new_uuid7()
    certificate = messages.sign_certificate(
        issuer="BKCHCNBJ",
        ledger="cny",
        currency="CNY",
        purse=purse,
        account=17,
        key=key.public,
        balance_max_minor=1000,
        single_max_minor=800,
        hops_max=hops_max,
        not_before=NOW,
        not_after=NOW + 10_000,
        grace_seconds=1000,
        suite=bank.suite,
        sign=bank.sign,
    )
    state = element.new_purse(certificate, bank.public, Device(key.public, key.sign))
    assert isinstance(state, PurseState)
    made = Purse(purse, key, state)
    if fund:
        made.step(element.load(made.state, funding_for(made, fund, bank)))
    return made


def funding_for(purse: Purse, amount: int, bank: PrivateKey = BANK, *, transfer: UUID | None = None) -> bytes:
    return messages.sign_funding(
        purse=purse.id,
        transfer=transfer or ids.new_uuid7(),
        amount_minor=amount,
        issued_at=NOW,
        suite=bank.suite,
        sign=bank.sign,
    )


def three_hops() -> tuple[Purse, Purse, Purse, bytes]:
    first, second, third = make_purse(suite="ecdsa-p256-sha256"), make_purse(fund=100), make_purse(fund=0)
    first.pays(second, 500, NOW)
    return first, second, third, second.pays(third, 550, NOW)


ONE, TWO, THREE, TRANSFER = three_hops()
INVOICE = THREE.ask(5, NOW)
MESSAGES = {
    "transfer": (TRANSFER, messages.read_transfer),
    "invoice": (INVOICE, messages.read_invoice_bundle),
    "certificate": (ONE.state.certificate, messages.read_certificate),
    "spend": (messages.read_transfer(TRANSFER).payment.signed.message, messages.read_spend),
    "revocations": (
        messages.sign_revocations(number=3, purses=[ONE.id, TWO.id], suite=BANK.suite, sign=BANK.sign),
        messages.read_revocations,
    ),
}

values = st.recursive(
    st.one_of(st.integers(0, 2**63 - 1), st.binary(max_size=300), st.text(max_size=40)),
    lambda inner: st.lists(inner, max_size=30),
    max_leaves=20,
)


@given(values)
def test_encoding_is_what_a_general_library_makes_and_reads(value: object) -> None:
    def depth(item: object) -> int:
        return 1 + max((depth(member) for member in item), default=0) if isinstance(item, list) else 0

    encoded = cbor.encode(value)  # type: ignore[arg-type]
    assert encoded == cbor2.dumps(value, canonical=True)
    if depth(value) <= DEPTH_MAX and len(encoded) <= MESSAGE_BYTES_MAX:
        assert cbor.decode(encoded) == value == cbor2.loads(encoded)


@settings(max_examples=1000)
@given(st.binary(max_size=60))
def test_only_the_one_encoding_is_read(data: bytes) -> None:
    try:
        value = cbor.decode(data)
    except NotCbor:
        return
    assert cbor.encode(value) == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x18\x17",  # 23 in two bytes
        b"\x19\x00\xff",  # 255 in three
        b"\x1a\x00\x00\xff\xff",
        b"\x1b\x00\x00\x00\x00\xff\xff\xff\xff",
        b"\x1b\xff\xff\xff\xff\xff\xff\xff\xff",  # beyond 2**63 - 1
        b"\x20",  # -1
        b"\x5f\x41a\xff",  # indefinite
        b"\x9f\xff",
        b"\xa1\x01\x02",  # a map with content
        b"\xc0\x60",  # a tag
        b"\xd8\x23\x63(a+)",  # a regular expression
        b"\xf9\x00\x00",  # a float
        b"\xf6",  # null
        b"\x61\xff",  # not UTF-8
        b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xff",  # a length of 9 exabytes
        b"\x9b\x00\x00\x00\x01\x00\x00\x00\x00",
        b"\x81" * 100 + b"\x00",
        b"\x00\x00",
        b"\x00" * (MESSAGE_BYTES_MAX + 1),
    ],
)
def test_other_cbor_is_refused(data: bytes) -> None:
    with pytest.raises(NotCbor):
        cbor.decode(data)


@pytest.mark.parametrize("suite", Suite)
def test_documents_are_cose_sign1(suite: Suite) -> None:
    key = PrivateKey.generate(suite)
    message = cose.sign("jz-spend", [1, b"x"], suite=suite, sign=key.sign)
    protected, unprotected, payload, signature = cbor2.loads(message)
    assert cbor2.loads(protected) == {1: {Suite.ED25519: -8, Suite.ECDSA_P256_SHA256: -7}[suite], 16: "jz-spend"}
    assert (unprotected, cbor2.loads(payload)) == ({}, [1, b"x"])
    assert key.public.verify(cbor2.dumps(["Signature1", protected, b"", payload], canonical=True), signature)
    signed, members = cose.read(message, "jz-spend")
    assert members == [1, b"x"]
    assert signed.is_signed_by(key.public, "jz-spend")
    assert not signed.is_signed_by(PrivateKey.generate(suite).public, "jz-spend")
    with pytest.raises(Unreadable, match="type"):
        cose.read(message, "jz-receipt")


def test_second_signature_over_the_same_payment_is_the_same_payment() -> None:
    """Anybody can turn (r, s) into (r, n - s): that must name no honest device."""
    spend = messages.read_transfer(ONE.state.sent[0]).payment
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    s = order - int.from_bytes(spend.signed.signature[32:], "big")
    other = spend.signed.message[:-32] + s.to_bytes(32, "big")
    twin = messages.read_spend(other)
    assert twin.signed.is_signed_by(ONE.key.public, "jz-spend")
    assert (twin.hash, twin.conflicts_with(spend)) == (spend.hash, False)


@pytest.mark.parametrize("kind", MESSAGES)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_changed_messages_are_refused_clearly(kind: str, data: st.DataObject) -> None:
    message, read = MESSAGES[kind]
    at = data.draw(st.integers(0, len(message) - 1))
    change = data.draw(st.sampled_from(["flip", "cut", "insert", "double", "swap"]))
    changed = {
        "flip": lambda: message[:at] + bytes((message[at] ^ data.draw(st.integers(1, 255)),)) + message[at + 1 :],
        "cut": lambda: message[:at],
        "insert": lambda: message[:at] + data.draw(st.binary(min_size=1, max_size=9)) + message[at:],
        "double": lambda: message[:at] + message,
        "swap": lambda: message[at:] + message[:at],
    }[change]()
    with contextlib.suppress(Unreadable):
        read(changed)
    if kind == "transfer" and changed != message:
        fresh = THREE.state
        outcome = element.receive(fresh, changed, now=NOW, device=THREE.device)
        # The very payment under another valid signature is known; anything else is refused.
        if not isinstance(outcome, Refused):
            assert messages.read_transfer(changed).payment.hash == messages.read_transfer(message).payment.hash
            assert outcome.state == fresh


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_random_bytes_are_no_message(data: bytes) -> None:
    for _, read in MESSAGES.values():
        with pytest.raises(Unreadable):
            read(data)
    for step in (
        element.load(THREE.state, data),
        element.carry_revocations(THREE.state, data),
        element.pay(THREE.state, data, now=NOW, device=THREE.device),
        element.receive(THREE.state, data, now=NOW, device=THREE.device),
    ):
        assert isinstance(step, Refused)
        assert step.refusal is PurseRefusal.MESSAGE_INVALID


def test_messages_stay_small() -> None:
    """One hop is one QR symbol of version 20; the longest chain stays within the bound."""
    payer, payee = make_purse(), make_purse(fund=0)
    assert len(payee.ask(1, NOW)) < 500
    assert len(payer.pays(payee, 1, NOW)) < 600
    assert len(TRANSFER) < 1_400


@given(st.binary(max_size=200))
def test_base45_reads_back(data: bytes) -> None:
    assert from_base45(to_base45(data)) == data


def test_base45_examples_of_the_standard() -> None:
    for plain, text in (
        (b"AB", "BB8"),
        (b"Hello!!", "%69 VD92EX0"),
        (b"base-45", "UJCLQE7W581"),
        (b"ietf!", "QED8WEX0"),
    ):
        assert (to_base45(plain), from_base45(text)) == (text, plain)
    for bad in ("GGW", "A", "ab", ":::", "ZZZZ", "É00"):
        with pytest.raises(ValueError):
            from_base45(bad)


@given(st.binary(min_size=1, max_size=4_000), st.randoms())
def test_frames_come_in_any_order(message: bytes, random: object) -> None:
    frames = to_frames(message)
    shuffled = [*frames, frames[0]]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert from_frames(shuffled) == message
    if len(frames) > 1:
        with pytest.raises(BadFrames, match="of"):
            from_frames(frames[1:])
        with pytest.raises(BadFrames):
            from_frames([frames[0], *to_frames(message + b"x")[1:]])


@settings(max_examples=500)
@given(st.lists(st.text(alphabet="JZP1/0123456789ABCDEF $%", max_size=60), max_size=4))
def test_no_text_breaks_the_frames(frames: list[str]) -> None:
    with pytest.raises(BadFrames):
        from_frames(frames)


def test_frames_fit_one_symbol_each() -> None:
    for frame in to_frames(secrets.token_bytes(MESSAGE_BYTES_MAX)):
        symbol = segno.make_qr(frame, error="m")
        assert symbol.mode == "alphanumeric"
        assert int(symbol.version) <= 22


def test_state_reads_back_and_other_bytes_do_not() -> None:
    for purse in (ONE, TWO, THREE):
        assert read_state(write_state(purse.state)) == purse.state
    for broken in (b"", b"\x80", cbor.encode([1] * 10), write_state(ONE.state)[:-1]):
        with pytest.raises(DeviceBroken):
            read_state(broken)


def test_disposition_is_part_of_what_is_signed() -> None:
    payer, payee = make_purse(), make_purse(fund=0)
    payment = messages.read_transfer(payer.pays(payee, 7, NOW, Disposition.ACCOUNT)).payment
    assert payment.disposition is Disposition.ACCOUNT
    assert payee.state.balance_minor == 0
