"""Goal: no two parsers can read one accepted body differently, and no body can crash the reader.

Method: a table of attacks with the refusal each must get, and the sound bodies that look like them.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from kernel import strict_json
from kernel.errors import ProblemError, RequestRefusal

MALFORMED = RequestRefusal.MALFORMED_JSON
NUL = RequestRefusal.NUL_CHARACTER

ATTACKS = {
    "NaN": (b'{"a":NaN}', MALFORMED),
    "Infinity": (b"[Infinity]", MALFORMED),
    "negative Infinity": (b"[-Infinity]", MALFORMED),
    "float overflow to infinity": (b"[1e999]", MALFORMED),
    "duplicate member": (b'{"a":1,"b":2,"a":3}', MALFORMED),
    "nested duplicate member": (b'[{"x":{"a":1,"a":1}}]', MALFORMED),
    "duplicate spelt with an escape": (b'{"a":1,"\\u0061":2}', MALFORMED),
    "raw NUL": (b'{"a":"x\x00y"}', NUL),
    "escaped NUL": (b'{"a":"x\\u0000y"}', NUL),
    "escaped NUL in a name": (b'{"x\\u0000":1}', NUL),
    "escaped NUL deep down": (b'[[[{"a":["\\u0000"]}]]]', NUL),
    "invalid UTF-8": (b'["\xff"]', MALFORMED),
    "overlong UTF-8": (b'["\xc0\xaf"]', MALFORMED),
    "UTF-8 surrogate": (b'["\xed\xa0\x80"]', MALFORMED),
    "byte order mark": (b"\xef\xbb\xbf[]", MALFORMED),
    "UTF-16": ("[]".encode("utf-16-le"), NUL),
    "lone high surrogate": (b'["\\ud800"]', MALFORMED),
    "lone low surrogate": (b'["\\uDC00x"]', MALFORMED),
    "33 levels": (b"[" * 33 + b"]" * 33, MALFORMED),
    "33 levels behind brackets in strings": (b'[{"a":"]]]]}}"},' + b"[" * 32 + b"]" * 32 + b"]", MALFORMED),
    "a million levels": (b"[" * 1_000_000, MALFORMED),
    "a million objects deep": (b'{"a":' * 1_000_000, MALFORMED),
    "31 digits": (b"[" + b"1" * 31 + b"]", MALFORMED),
    "a million digits": (b"1" * 1_000_000, MALFORMED),
    "31 digits of fraction": (b"0." + b"1" * 31, MALFORMED),
    "trailing garbage": (b"{} {}", MALFORMED),
    "single quotes": (b"{'a':1}", MALFORMED),
    "comment": (b"[1] // x", MALFORMED),
    "raw newline in a string": (b'["a\nb"]', MALFORMED),
    "empty": (b"", MALFORMED),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_refused(name: str) -> None:
    data, refusal = ATTACKS[name]
    with pytest.raises(ProblemError) as caught:
        strict_json.loads(data)
    assert caught.value.refusal is refusal
    assert len(caught.value.detail) < 200


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'{"a":"\\ud83d\\ude00"}', {"a": "\U0001f600"}),
        (b'["\\\\u0000"]', ["\\u0000"]),
        (b"[" * 32 + b"]" * 32, json.loads(b"[" * 32 + b"]" * 32)),
        (b"[" + b"1" * 30 + b"]", [int("1" * 30)]),
        (b'["[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["]', ["[" * 38]),
        ('["数字人民币"]'.encode(), ["数字人民币"]),
        (b'[{"a":1},{"a":1}]', [{"a": 1}, {"a": 1}]),
    ],
)
def test_sound_body_is_read(data: bytes, value: object) -> None:
    assert strict_json.loads(data) == value


def test_many_distinct_members_before_a_duplicate_cost_linear_time() -> None:
    members = ",".join(f'"{number}":0' for number in range(300_000))
    with pytest.raises(ProblemError):
        strict_json.loads(f'{{{members},"299999":1}}'.encode())


def test_what_is_written_can_be_read() -> None:
    value = {"text": 'quote " back \\ line\n€ \u2028', "list": [1, None, True]}
    assert strict_json.loads(strict_json.dumps(value)) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        strict_json.dumps(float("nan"))


@pytest.mark.extended
def test_no_import_of_a_service_raises_the_recursion_limit_that_refuses_nested_bodies() -> None:
    program = """import sys
before = sys.getrecursionlimit()
import settlement.api.app
sys.exit(before != sys.getrecursionlimit())"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
