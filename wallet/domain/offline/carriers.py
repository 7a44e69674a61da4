"""Messages as text and as frames for QR codes. Any other carrier (NFC, a cable, a file) takes the bytes as they are.

Base45 (RFC 9285) is what QR's alphanumeric mode carries best: 97 % of what the binary mode holds, and every scanner
returns it unharmed. A message too long for one symbol becomes frames, shown in turn and collected in any order:

    JZP1/<first 8 hex digits of the message's SHA-256>/<number>/<count>/<base45>
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from wallet.domain.offline.limits import MESSAGE_BYTES_MAX

FRAME_BYTES = 600
"""900 characters of base45: a symbol of version 20 at level M, which a phone reads off another's screen."""
FRAMES_MAX = -(-MESSAGE_BYTES_MAX // FRAME_BYTES)
FRAME_CHARACTERS_MAX = 1_000
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:"
_VALUES = {character: value for value, character in enumerate(_ALPHABET)}
_FRAME = re.compile(r"JZP1/([0-9A-F]{8})/([1-9][0-9]?)/([1-9][0-9]?)/([0-9A-Z $%*+./:-]+)", re.ASCII)


class BadFrames(ValueError):
    """These frames make no message; says why."""


def to_base45(data: bytes) -> str:
    """RFC 9285: two bytes make three characters, a last single one two."""
    text = []
    for at in range(0, len(data), 2):
        pair = data[at : at + 2]
        number = int.from_bytes(pair, "big")
        for _ in range(len(pair) + 1):
            number, digit = divmod(number, 45)
            text.append(_ALPHABET[digit])
    return "".join(text)


def from_base45(text: str) -> bytes:
    """Raises: ValueError for anything that `to_base45` does not write."""
    data = bytearray()
    for at in range(0, len(text), 3):
        group = text[at : at + 3]
        if len(group) == 1 or any(character not in _VALUES for character in group):
            raise ValueError("not base45")
        number = sum(_VALUES[character] * 45**place for place, character in enumerate(group))
        if number >= 1 << 8 * (len(group) - 1):
            raise ValueError("not base45")
        data += number.to_bytes(len(group) - 1, "big")
    return bytes(data)


def to_frames(message: bytes) -> list[str]:
    """One frame a QR symbol. Raises ValueError for an empty or too long message."""
    if not 0 < len(message) <= MESSAGE_BYTES_MAX:
        raise ValueError(f"a message has 1 to {MESSAGE_BYTES_MAX} bytes")
    name = hashlib.sha256(message).hexdigest()[:8].upper()
    count = -(-len(message) // FRAME_BYTES)
    return [
        f"JZP1/{name}/{number + 1}/{count}/{to_base45(message[number * FRAME_BYTES : (number + 1) * FRAME_BYTES])}"
        for number in range(count)
    ]


def from_frames(frames: Iterable[str]) -> bytes:
    """The message, from all of its frames in any order; one may come twice. Raises: BadFrames."""
    parts: dict[int, bytes] = {}
    head: tuple[str, int] | None = None
    for frame in frames:
        match = _FRAME.fullmatch(frame) if len(frame) <= FRAME_CHARACTERS_MAX else None
        if match is None:
            raise BadFrames("not a frame of a purse's message")
        name, number, count = match[1], int(match[2]), int(match[3])
        if head not in (None, (name, count)) or not number <= count <= FRAMES_MAX:
            raise BadFrames("frames of different messages, or too many")
        head = (name, count)
        try:
            part = from_base45(match[4])
        except ValueError as error:
            raise BadFrames(str(error)) from None
        if len(part) > FRAME_BYTES or parts.setdefault(number, part) != part:
            raise BadFrames("a frame is too long, or there twice with different content")
    if head is None or len(parts) < head[1]:
        raise BadFrames(f"{len(parts)} of {head[1] if head else 'its'} frames are here: scan the others")
    message = b"".join(parts[number] for number in sorted(parts))
    if hashlib.sha256(message).hexdigest()[:8].upper() != head[0]:
        raise BadFrames("the frames do not add up to the message that they name")
    return message
