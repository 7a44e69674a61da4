"""C2SP signed-note: a text, a blank line, signature lines. Keys are known by name and a 32-bit key id.

Two kinds of signature: Ed25519 over the text (type 0x01, a log's), and the timestamped cosignature/v1 (type 0x04, a
witness's). A text may be believed only after `open_note`.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256

from kernel.crypto.keys import KeyRefused, PublicKey, SigningKey, Suite, from_base64url, to_base64url

NOTE_BYTES_MAX = 64 * 1024
SIGNATURES_MAX = 64
"""The specification asks for at least 16."""
KEY_NAME_CHARACTERS_MAX = 255
TIMESTAMP_MAX = 2**63 - 1
_DASH = "\u2014 "
_RAW_KEY_BYTES = 32


class NoteRefused(ValueError):
    """The note is malformed, or not signed as it must be; the message says which."""


class KeyKind(IntEnum):
    """Signature types of signed-note."""

    ED25519 = 0x01
    COSIGNATURE_V1 = 0x04


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key with its name: `<name>+<key id in hex>+<base64 of type and key>`, called vkey."""

    name: str
    kind: KeyKind
    public: PublicKey

    def __post_init__(self) -> None:
        check_key_name(self.name)
        if self.public.suite is not Suite.ED25519:
            raise NoteRefused("a note's key is an Ed25519 key")

    @property
    def key_id(self) -> bytes:
        return sha256(self.name.encode() + b"\n" + self._material).digest()[:4]

    @property
    def _material(self) -> bytes:
        return bytes([self.kind]) + from_base64url(self.public.to_jwk()["x"])

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{to_base64(self._material)}"

    @staticmethod
    def parse(text: str) -> VerifierKey:
        """Raises NoteRefused for another form, another kind of key, or a key id that is not the key's."""
        name, first, rest = text.partition("+")
        key_id, second, encoded = rest.partition("+")
        if not (first and second):
            raise NoteRefused("a verifier key has the form name+id+key")
        material = from_base64(encoded)
        if len(material) != 1 + _RAW_KEY_BYTES or material[0] not in list(KeyKind):
            raise NoteRefused("the verifier key is of a kind that is not taken here")
        try:
            public = PublicKey.from_jwk({"kty": "OKP", "crv": "Ed25519", "x": to_base64url(material[1:])})
        except KeyRefused as error:
            raise NoteRefused(str(error)) from None
        key = VerifierKey(name, KeyKind(material[0]), public)
        if key.key_id.hex() != key_id:
            raise NoteRefused("the verifier key's id is not that of its name and key")
        return key

    def verify(self, text: str, signature: bytes) -> bool:
        """Whether `signature` (without the key id) is this key's over the note's text."""
        if self.kind is KeyKind.ED25519:
            return self.public.verify(text.encode(), signature)
        if len(signature) != 8 + 64 or timestamp_of(signature) > TIMESTAMP_MAX:
            return False
        return self.public.verify(_cosigned(text, timestamp_of(signature)), signature[8:])


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line. `value` is without the key id; a cosignature's begins with its timestamp (8 bytes)."""

    name: str
    key_id: bytes
    value: bytes

    @property
    def line(self) -> str:
        return f"{_DASH}{self.name} {to_base64(self.key_id + self.value)}\n"


@dataclass(frozen=True, slots=True)
class Note:
    text: str
    """Ends in a newline."""
    signatures: tuple[Signature, ...]

    def __str__(self) -> str:
        return self.text + "\n" + "".join(signature.line for signature in self.signatures)

    @staticmethod
    def parse(data: bytes | str) -> Note:
        """Raises NoteRefused unless the note is exactly as the specification has it."""
        raw = data.encode() if isinstance(data, str) else data
        if len(raw) > NOTE_BYTES_MAX:
            raise NoteRefused(f"the note is longer than {NOTE_BYTES_MAX} bytes")
        try:
            decoded = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise NoteRefused("the note is not UTF-8") from None
        if any(character < " " and character != "\n" for character in decoded):
            raise NoteRefused("the note has a control character")
        text, separator, lines = decoded.rpartition("\n\n")
        if not separator:
            raise NoteRefused("the note has no blank line between text and signatures")
        return Note(text + "\n", parse_signatures(lines))


def parse_signatures(lines: str) -> tuple[Signature, ...]:
    """Signature lines, each ending in a newline; at least one. Raises NoteRefused."""
    if not lines.endswith("\n") or lines.count("\n") > SIGNATURES_MAX:
        raise NoteRefused(f"a note has 1 to {SIGNATURES_MAX} signature lines, each ended by a newline")
    return tuple(_parse_signature(line) for line in lines[:-1].split("\n"))


def _parse_signature(line: str) -> Signature:
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH):
        raise NoteRefused("a signature line begins with an em dash and a space")
    check_key_name(name)
    raw = from_base64(encoded)
    if len(raw) < 5:
        raise NoteRefused("a signature line holds a key id and a signature")
    return Signature(name, raw[:4], raw[4:])


def open_note(note: Note, keys: Iterable[VerifierKey]) -> Mapping[VerifierKey, Signature]:
    """The keys among these that signed the note, with their signatures.

    Raises NoteRefused if a signature by one of the keys does not verify, or if none of the keys has signed. Other
    signatures are passed over, as the specification demands.
    """
    known = {(key.name, key.key_id): key for key in keys}
    found: dict[VerifierKey, Signature] = {}
    for signature in note.signatures:
        key = known.get((signature.name, signature.key_id))
        if key is None or key in found:
            continue
        if not key.verify(note.text, signature.value):
            raise NoteRefused(f"the signature of {key.name} does not verify")
        found[key] = signature
    if not found:
        raise NoteRefused("the note carries no signature of a known key")
    return found


def sign_text(text: str, *, name: str, key: SigningKey) -> Signature:
    """An Ed25519 signature of type 0x01."""
    verifier = VerifierKey(name, KeyKind.ED25519, key.public)
    return Signature(name, verifier.key_id, key.sign(text.encode()))


def cosign_text(text: str, *, name: str, key: SigningKey, timestamp: int) -> Signature:
    """A cosignature/v1 (type 0x04). `timestamp` in seconds since 1970. Source: C2SP tlog-cosignature."""
    verifier = VerifierKey(name, KeyKind.COSIGNATURE_V1, key.public)
    if not 0 < timestamp <= TIMESTAMP_MAX:
        raise NoteRefused("a cosignature's timestamp is a positive number of seconds")
    return Signature(name, verifier.key_id, struct.pack(">Q", timestamp) + key.sign(_cosigned(text, timestamp)))


def timestamp_of(cosignature: bytes) -> int:
    """Seconds since 1970."""
    return int.from_bytes(cosignature[:8], "big")


def check_key_name(name: str) -> None:
    """Raises NoteRefused for a name that a note cannot carry."""
    is_plain = all(character > " " and character != "+" and not character.isspace() for character in name)
    if not name or not is_plain or len(name) > KEY_NAME_CHARACTERS_MAX:
        raise NoteRefused("a key's name has 1 to 255 characters, no space and no plus sign")


def to_base64(data: bytes) -> str:
    """RFC 4648 section 4, with padding."""
    return base64.b64encode(data).decode("ascii")


def from_base64(text: str) -> bytes:
    """The bytes of canonical base64. Raises NoteRefused for anything that would not encode back to it."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise NoteRefused("not base64") from None
    if to_base64(data) != text:
        raise NoteRefused("not canonical base64")
    return data


def _cosigned(text: str, timestamp: int) -> bytes:
    return f"cosignature/v1\ntime {timestamp}\n{text}".encode()
