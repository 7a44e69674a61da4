"""The part of CBOR that purses speak: unsigned integers, byte and text strings, arrays and the empty map; nothing else.

Deterministic in RFC 8949 section 4.2.1's sense, and the decoder takes only that: shortest heads, definite lengths, no
tags, no floats, no trailing bytes. So one value has one encoding, and a signature over it means one thing. A general
decoder would build dates, decimals and regular expressions out of a stranger's bytes; this one cannot.
"""

from __future__ import annotations

from kernel.money import AMOUNT_MINOR_MAX
from wallet.domain.offline.limits import DEPTH_MAX, ITEMS_MAX, MESSAGE_BYTES_MAX

Value = int | bytes | str | list["Value"] | dict["Value", "Value"]
"""Integers are 0 to 2**63 - 1; the only dict is the empty one."""


class NotCbor(ValueError):
    """Not the deterministic encoding of such a value; the message says where it goes wrong."""


def encode(value: Value) -> bytes:
    """The one encoding of `value`. Raises TypeError or ValueError for what this subset does not have."""
    if type(value) is int:
        if not 0 <= value <= AMOUNT_MINOR_MAX:
            raise ValueError("integer out of range")
        return _head(0, value)
    if isinstance(value, bytes):
        return _head(2, len(value)) + value
    if isinstance(value, str):
        data = value.encode()
        return _head(3, len(data)) + data
    if isinstance(value, list):
        return _head(4, len(value)) + b"".join(map(encode, value))
    if value == {} and isinstance(value, dict):
        return b"\xa0"
    raise TypeError(f"a {type(value).__name__} is not encoded")


def decode(data: bytes, *, bytes_max: int = MESSAGE_BYTES_MAX) -> Value:
    """The value that `encode` made `data` of. Raises: NotCbor."""
    if len(data) > bytes_max:
        raise NotCbor(f"longer than {bytes_max} bytes")
    value, end = _item(data, 0, 0)
    if end != len(data):
        raise NotCbor(f"bytes after the end at {end}")
    return value


def _head(major: int, number: int) -> bytes:
    first = major << 5
    if number < 24:
        return bytes((first | number,))
    for info, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if number < 1 << 8 * size:
            return bytes((first | info,)) + number.to_bytes(size, "big")
    raise ValueError("number out of range")


def _item(data: bytes, at: int, depth: int) -> tuple[Value, int]:
    if at >= len(data):
        raise NotCbor(f"ends early at {at}")
    major, info = data[at] >> 5, data[at] & 31
    start, at = at, at + 1
    if info < 24:
        number = info
    elif info <= 27:
        size = 1 << (info - 24)
        if at + size > len(data):
            raise NotCbor(f"ends early at {at}")
        number = int.from_bytes(data[at : at + size], "big")
        at += size
        if number < 24 or (size > 1 and number < 1 << 4 * size):
            raise NotCbor(f"not the shortest form at {start}")
    else:
        raise NotCbor(f"indefinite or reserved length at {start}")
    if major == 0:
        if number > AMOUNT_MINOR_MAX:
            raise NotCbor(f"integer out of range at {start}")
        return number, at
    if major in (2, 3):
        if number > len(data) - at:
            raise NotCbor(f"ends early at {at}")
        content = data[at : at + number]
        if major == 2:
            return content, at + number
        try:
            return content.decode(), at + number
        except UnicodeDecodeError:
            raise NotCbor(f"text that is not UTF-8 at {start}") from None
    if major == 4:
        if depth >= DEPTH_MAX:
            raise NotCbor(f"nested deeper than {DEPTH_MAX} at {start}")
        if number > ITEMS_MAX:
            raise NotCbor(f"more than {ITEMS_MAX} items at {start}")
        items: list[Value] = []
        for _ in range(number):
            item, at = _item(data, at, depth + 1)
            items.append(item)
        return items, at
    if major == 5 and number == 0:
        return {}, at
    raise NotCbor(f"a type that is not used here at {start}")
