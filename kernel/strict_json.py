"""Strict JSON (RFC 8259, I-JSON RFC 7493) at the door: whatever two parsers could read differently is refused.

Refused: NaN and Infinity, duplicate member names, NUL characters, invalid UTF-8, lone surrogates, a byte order mark,
nesting beyond 32, numbers of more than 30 digits. Python's own parser accepts nearly all of these.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from kernel.errors import ProblemError, RequestRefusal
from kernel.limits import JSON_DEPTH_MAX, JSON_NUMBER_DIGITS_MAX

_ESCAPED_SURROGATE_OR_NUL = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")


class WireInteger(int):
    """An integer that came as a JSON number. Amounts and accounts are strings on the wire, so that no JavaScript
    client rounds them: their validators take an `int` from a program and refuse this type from a request."""


def loads(data: bytes, *, wire: bool = False) -> Any:
    """The value in `data`. Raises: ProblemError(MALFORMED_JSON | NUL_CHARACTER); nothing else, whatever the bytes.

    With `wire`, integers are `WireInteger`: for requests, whose amounts must be strings.
    """
    if b"\x00" in data:
        raise ProblemError(RequestRefusal.NUL_CHARACTER, "remove the NUL character from the body")
    try:
        value = (_WIRE_DECODER if wire else _DECODER).decode(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        _malformed(f"byte {error.start} is not UTF-8")
    except json.JSONDecodeError as error:
        _malformed(f"{error.msg} at character {error.pos}")
    except RecursionError:
        _malformed(f"nested deeper than {JSON_DEPTH_MAX} levels")
    except ValueError as error:
        _malformed(str(error))
    if data.count(b"[") + data.count(b"{") > JSON_DEPTH_MAX:
        _check_depth(value)
    # Only a body that spells such an escape can hold one of these characters: the common body is not walked.
    if _ESCAPED_SURROGATE_OR_NUL.search(data):
        _check_characters(value)
    return value


def dumps(value: Any) -> bytes:
    """Compact UTF-8 JSON. Raises ValueError for NaN and Infinity, TypeError for what JSON cannot say."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")


def dumps_string(text: str) -> str:
    """One JSON string, escaped as RFC 8785 section 3.2.2.2 has it (which is what Python's encoder writes)."""
    return json.dumps(text, ensure_ascii=False)


def _malformed(detail: str) -> NoReturn:
    raise ProblemError(RequestRefusal.MALFORMED_JSON, detail)


def _check_depth(root: Any) -> None:
    """Level by level, so without recursion. The parser itself stops far deeper nesting with RecursionError."""
    level = [root]
    for _ in range(JSON_DEPTH_MAX):
        below: list[Any] = []
        for value in level:
            if type(value) is dict:
                below += [member for member in value.values() if type(member) is dict or type(member) is list]
            elif type(value) is list:
                below += [item for item in value if type(item) is dict or type(item) is list]
        if not below:
            return
        level = below
    _malformed(f"nested deeper than {JSON_DEPTH_MAX} levels")


def _check_characters(root: Any) -> None:
    stack = [root]
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            if "\x00" in value:
                raise ProblemError(RequestRefusal.NUL_CHARACTER, "remove the escaped NUL character from the body")
            if any("\ud800" <= character <= "\udfff" for character in value):
                _malformed("a lone surrogate is not a character")
        elif isinstance(value, dict):
            stack.extend(value)
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the member {name[:64]!r} occurs twice")
            seen.add(name)
    return members


def _integer(text: str) -> int:
    if len(text) > JSON_NUMBER_DIGITS_MAX:
        raise ValueError(f"a number has more than {JSON_NUMBER_DIGITS_MAX} digits")
    return int(text)


def _wire_integer(text: str) -> WireInteger:
    return WireInteger(_integer(text))


def _number(text: str) -> float:
    if len(text) > JSON_NUMBER_DIGITS_MAX:
        raise ValueError(f"a number has more than {JSON_NUMBER_DIGITS_MAX} digits")
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("a number is beyond the range of JSON numbers")
    return value


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_number, parse_constant=_constant
)
_WIRE_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_wire_integer, parse_float=_number, parse_constant=_constant
)
