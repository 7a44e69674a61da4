"""Goal: notes, checkpoints and cosignatures are the specifications', and nothing else passes for one.

Method: the specification's own example; round trips; each rule of C2SP signed-note, tlog-checkpoint and
tlog-cosignature broken once; every bit of a cosigned checkpoint flipped.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.crypto.keys import PrivateKey, Suite
from kernel.transparency.checkpoints import Checkpoint, open_checkpoint, witness_keys
from kernel.transparency.notes import (
    KeyKind,
    Note,
    NoteRefused,
    Signature,
    VerifierKey,
    cosign_text,
    from_base64,
    open_note,
    sign_text,
    to_base64,
)

EXAMPLE_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
EXAMPLE_NOTE = (
    "This is an example message.\n\n"
    "\u2014 example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)
"""C2SP signed-note, section "Verifier keys", example."""

LOG, WITNESS, OTHER = PrivateKey.generate(), PrivateKey.generate(), PrivateKey.generate()
LOG_KEY = VerifierKey("log.example", KeyKind.ED25519, LOG.public)
WITNESS_KEY = VerifierKey("w1.example", KeyKind.COSIGNATURE_V1, WITNESS.public)
OTHER_KEY = VerifierKey("w2.example", KeyKind.COSIGNATURE_V1, OTHER.public)
TEXT = Checkpoint("log.example", 42, bytes(range(32)), ("block 7 x", "supply y")).text


def signed(text: str = TEXT, *more: Signature) -> Note:
    return Note(text, (sign_text(text, name="log.example", key=LOG), *more))


def cosigned(text: str = TEXT) -> Note:
    return signed(
        text,
        cosign_text(text, name="w1.example", key=WITNESS, timestamp=1_700_000_000),
        cosign_text(text, name="w2.example", key=OTHER, timestamp=1_700_000_001),
    )


def test_the_specifications_example_opens() -> None:
    key = VerifierKey.parse(EXAMPLE_KEY)
    assert str(key) == EXAMPLE_KEY
    note = Note.parse(EXAMPLE_NOTE)
    assert str(note) == EXAMPLE_NOTE
    assert list(open_note(note, [key])) == [key]
    with pytest.raises(NoteRefused, match="does not verify"):
        open_note(Note.parse(EXAMPLE_NOTE.replace("example message", "other message")), [key])


def test_a_cosignature_signs_the_time_and_the_whole_text() -> None:
    """Source: C2SP tlog-cosignature, "Ed25519 signed message"."""
    line = cosign_text(TEXT, name="w1.example", key=WITNESS, timestamp=1_679_315_147)
    timestamp, signature = struct.unpack(">Q64s", line.value)
    assert timestamp == 1_679_315_147
    assert WITNESS.public.verify(b"cosignature/v1\ntime 1679315147\n" + TEXT.encode(), signature)
    assert WITNESS_KEY.verify(TEXT, line.value)
    later = struct.pack(">Q", timestamp + 1) + signature
    assert not WITNESS_KEY.verify(TEXT, later)
    assert not WITNESS_KEY.verify(TEXT, line.value[:-1])
    assert not WITNESS_KEY.verify(TEXT, struct.pack(">Q", 2**63) + signature)
    # a plain signature is no cosignature, nor the other way round
    assert not WITNESS_KEY.verify(TEXT, WITNESS.sign(TEXT.encode()))
    assert not VerifierKey("w1.example", KeyKind.ED25519, WITNESS.public).verify(TEXT, line.value)
    for bad in (0, -1, 2**63):
        with pytest.raises(NoteRefused):
            cosign_text(TEXT, name="w1.example", key=WITNESS, timestamp=bad)


def test_a_checkpoint_is_believed_by_log_key_and_quorum() -> None:
    note = str(cosigned())
    opened = open_checkpoint(note, log_key=LOG_KEY, witnesses=[WITNESS_KEY, OTHER_KEY], quorum=2)
    assert opened.checkpoint == Checkpoint.parse(TEXT)
    assert [(item.witness, item.timestamp) for item in opened.cosigned] == [
        ("w1.example", 1_700_000_000),
        ("w2.example", 1_700_000_001),
    ]
    assert opened.checkpoint.extension("block") == ["7", "x"]
    assert opened.checkpoint.extension("nothing") is None
    assert open_checkpoint(note, log_key=LOG_KEY).cosigned == ()
    with pytest.raises(NoteRefused, match="1 of the known witnesses have cosigned, 2 are asked for"):
        open_checkpoint(
            str(signed(TEXT, cosigned().signatures[1])), log_key=LOG_KEY, witnesses=[WITNESS_KEY, OTHER_KEY], quorum=2
        )
    with pytest.raises(NoteRefused, match="quorum is larger"):
        open_checkpoint(note, log_key=LOG_KEY, witnesses=[WITNESS_KEY], quorum=2)


def test_one_witness_counts_once() -> None:
    twice = cosign_text(TEXT, name="w1.example", key=WITNESS, timestamp=1_700_000_005)
    note = signed(TEXT, cosigned().signatures[1], twice)
    with pytest.raises(NoteRefused, match="2 are asked for"):
        open_checkpoint(str(note), log_key=LOG_KEY, witnesses=[WITNESS_KEY, OTHER_KEY], quorum=2)
    alias = VerifierKey("w1-alias.example", KeyKind.COSIGNATURE_V1, WITNESS.public)
    by_alias = cosign_text(TEXT, name="w1-alias.example", key=WITNESS, timestamp=1_700_000_005)
    with pytest.raises(NoteRefused, match="quorum is larger"):
        open_checkpoint(
            str(signed(TEXT, cosigned().signatures[1], by_alias)),
            log_key=LOG_KEY,
            witnesses=[WITNESS_KEY, alias],
            quorum=2,
        )
    with pytest.raises(NoteRefused, match="same key"):
        witness_keys([str(WITNESS_KEY), str(alias)])


@pytest.mark.parametrize(
    "signature",
    [
        sign_text(TEXT, name="log.example", key=OTHER),  # another key, the log's name
        sign_text(TEXT, name="other.example", key=LOG),  # the log's key, another name
        Signature("log.example", LOG_KEY.key_id, OTHER.sign(TEXT.encode())),  # the log's id, another hand
        Signature("log.example", LOG_KEY.key_id, LOG.sign(b"another text\n")),
        Signature("log.example", LOG_KEY.key_id, b"short"),
        cosign_text(TEXT, name="log.example", key=LOG, timestamp=1),  # a cosignature is not the log's word
    ],
)
def test_another_keys_checkpoint_is_refused(signature: Signature) -> None:
    with pytest.raises(NoteRefused):
        open_checkpoint(str(Note(TEXT, (signature,))), log_key=LOG_KEY)


def test_a_false_line_of_a_known_key_spoils_the_note_and_unknown_ones_are_passed_over() -> None:
    good = sign_text(TEXT, name="log.example", key=LOG)
    unknown = Signature("log.example", b"abcd", b"whatever this is")
    assert open_checkpoint(str(Note(TEXT, (unknown, good))), log_key=LOG_KEY).checkpoint.size == 42
    false = Signature("w1.example", WITNESS_KEY.key_id, bytes(72))
    with pytest.raises(NoteRefused, match=r"w1\.example does not verify"):
        open_checkpoint(str(Note(TEXT, (good, false))), log_key=LOG_KEY, witnesses=[WITNESS_KEY])


def test_every_bit_of_a_cosigned_checkpoint_matters() -> None:
    note = str(cosigned()).encode()
    for place in range(len(note)):
        for bit in range(8):
            flipped = bytearray(note)
            flipped[place] ^= 1 << bit
            with pytest.raises(NoteRefused):
                open_checkpoint(bytes(flipped), log_key=LOG_KEY, witnesses=[WITNESS_KEY, OTHER_KEY], quorum=2)


@pytest.mark.parametrize(
    "note",
    [
        "",
        "text\n",
        "text\n\n",
        "text\n\n\n",
        "text\n\n- log.example " + to_base64(b"12345") + "\n",
        "text\n\n\u2014 log.example " + to_base64(b"12345"),
        "text\n\n\u2014 log.example " + to_base64(b"1234") + "\n",
        "text\n\n\u2014 log.example !!!!\n",
        "text\n\n\u2014 log.example AAAAAAB=\n",  # not canonical
        "text\n\n\u2014 log+example " + to_base64(b"12345") + "\n",
        "text\n\n\u2014  " + to_base64(b"12345") + "\n",
        "text\n\n\u2014 a\u00a0b " + to_base64(b"12345") + "\n",
        "te\txt\n\n\u2014 log.example " + to_base64(b"12345") + "\n",
        "text\r\n\n\u2014 log.example " + to_base64(b"12345") + "\n",
        b"te\xffxt\n\n\xe2\x80\x94 log.example " + to_base64(b"12345").encode() + b"\n",
        "text\n\n" + f"\u2014 log.example {to_base64(b'12345')}\n" * 65,
        "x" * 70_000,
    ],
)
def test_malformed_notes_are_refused(note: str | bytes) -> None:
    with pytest.raises(NoteRefused):
        Note.parse(note)


@pytest.mark.parametrize(
    "text",
    [
        "log.example\n42\n",
        f"log.example\n042\n{to_base64(bytes(32))}\n",
        f"log.example\n-1\n{to_base64(bytes(32))}\n",
        f"log.example\n+1\n{to_base64(bytes(32))}\n",
        f"log.example\n1 \n{to_base64(bytes(32))}\n",
        f"log.example\n\u0661\n{to_base64(bytes(32))}\n",
        f"log.example\n{2**63}\n{to_base64(bytes(32))}\n",
        f"log.example\n1\n{to_base64(bytes(31))}\n",
        f"log.example\n1\n{to_base64(bytes(32))}",
        f"log.example\n1\n{to_base64(bytes(32))}\n\nextension\n",
        f"log example\n1\n{to_base64(bytes(32))}\n",
        f"\n1\n{to_base64(bytes(32))}\n",
        f"other.example\n1\n{to_base64(bytes(32))}\n",
    ],
)
def test_what_a_log_signs_is_a_checkpoint_or_refused(text: str) -> None:
    with pytest.raises(NoteRefused):
        open_checkpoint(str(signed(text)), log_key=LOG_KEY)


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "log.example",
        "log.example+00000000",
        EXAMPLE_KEY.replace("530d903a", "530d903b"),
        EXAMPLE_KEY.replace("530d903a", "530D903A"),
        EXAMPLE_KEY.replace("example.com/foo", "example.com/bar"),
        EXAMPLE_KEY[:-1],
        EXAMPLE_KEY + "A",
        EXAMPLE_KEY + "\n",
        f"log.example+01020304+{to_base64(bytes([2]) + bytes(32))}",
        f"log.example+01020304+{to_base64(bytes([1]) + bytes(32))}",  # a point of small order
        f"log.example+01020304+{to_base64(bytes([1]) + b'!' * 31)}",
    ],
)
def test_other_verifier_keys_are_refused(vkey: str) -> None:
    with pytest.raises(NoteRefused):
        VerifierKey.parse(vkey)


def test_only_ed25519_keys_sign_notes() -> None:
    with pytest.raises(NoteRefused):
        sign_text(TEXT, name="log.example", key=PrivateKey.generate(Suite.ECDSA_P256_SHA256))
    with pytest.raises(NoteRefused, match="type 0x01"):
        open_checkpoint(str(cosigned()), log_key=WITNESS_KEY)
    with pytest.raises(NoteRefused, match="type 0x01"):
        open_checkpoint(str(cosigned()), log_key=LOG_KEY, witnesses=[LOG_KEY])


@given(data=st.binary(max_size=200))
def test_base64_has_one_spelling(data: bytes) -> None:
    text = to_base64(data)
    assert from_base64(text) == data
    for other in (text + "=", text.rstrip("=") if text.endswith("=") else text + "A", " " + text, text + "\n"):
        with pytest.raises(NoteRefused):
            from_base64(other)


@given(st.binary(max_size=300))
def test_no_bytes_crash_the_parser(data: bytes) -> None:
    try:
        Note.parse(data)
    except NoteRefused:
        return
    assert str(Note.parse(data)).encode() == data
