"""Goal: the quick readers of instructions, batches and answers never read what the models and strict JSON do not.

Method: both readers on the same bytes, honest and hostile; they must agree on every member, or both refuse.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel import ids, strict_json
from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey
from kernel.errors import ProblemError
from ledger import contract
from ledger.contract import (
    INSTRUCTION_TYP,
    Instruction,
    InvalidInstruction,
    TransferAnswer,
    TransferBatchRequest,
    TransferBatchResponse,
    read_answers,
    read_instruction,
    read_signed_items,
    write_answers,
    write_signed_items,
)

KEY = PrivateKey.generate()
NOW = datetime(2026, 6, 15, 4, 0, tzinfo=UTC)
HONEST: dict[str, Any] = {
    "ledger": "cny",
    "terms": {
        "amount_minor": "100",
        "credit": ids.show_account(18),
        "currency": "CNY",
        "debit": ids.show_account(17),
        "id": "trf_0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28",
        "kind": "payment",
    },
    "valid_until": "2026-06-15T04:00:00.000000Z",
}


def reading(payload: bytes, reader: Any = None) -> dict[str, Any] | None:
    """What is read, `terms` aside; None = refused."""
    token = jws.sign(payload, KEY, typ=INSTRUCTION_TYP)
    try:
        found: Instruction = read_instruction(token) if reader is None else reader(jws.read(token))
    except InvalidInstruction:
        return None
    return {name: getattr(found, name) for name in found.__struct_fields__ if name not in ("terms", "unverified")}


def both_agree(payload: bytes) -> dict[str, Any] | None:
    read = reading(payload)
    assert read == reading(payload, contract._read_any)
    return read


def is_read_quickly(payload: bytes) -> bool:
    return read_instruction(jws.sign(payload, KEY, typ=INSTRUCTION_TYP)).terms is None


def changed(**terms: Any) -> bytes:
    return jws.canonical_json({**HONEST, "terms": {**HONEST["terms"], **terms}})


def test_canonical_plain_instruction_is_read_quickly_and_alike() -> None:
    payload = jws.canonical_json(HONEST)
    read = both_agree(payload)
    assert is_read_quickly(payload)
    assert read is not None
    assert (read["debit"], read["credit"], read["amount_minor"], read["valid_until"]) == (17, 18, 100, NOW)
    assert UUID(int=read["id_number"]) == ids.parse("trf", read["id_shown"])


@pytest.mark.parametrize(
    "terms",
    [
        {"amount_minor": value}
        for value in ("0", "00", "-1", "1.0", "9223372036854775807", "9223372036854775808", "", " 1", 100, True, None)
    ]
    + [{"currency": value} for value in ("cny", "CNYX", "CN", "CNY\n", "", 5, None)]
    + [{"kind": value} for value in ("refund", "exchange-out", "hold", "post", "void", "issue", "nothing", "", None)]
    + [
        {"id": value}
        for value in (
            "0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28",
            "trf_0198c7b2-6f1e-4c3a-9d55-f5a72f6f9b28",
            "trf_0198c7b2-6f1e-8c3a-9d55-f5a72f6f9b28",
            "trf_0198C7B2-6f1e-7c3a-9d55-f5a72f6f9b28",
            "trf_0198c7b2-6f1e-7c3a-1d55-f5a72f6f9b28",
            "trf_0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28\n",
            None,
        )
    ]
    + [{"debit": value} for value in ("acc_00000000001700", "17", 17, ids.show_account(18), None, "")]
    + [
        {"reference": value}
        for value in (
            "6f9b2801-6f1e-4c3a-9d55-f5a72f6f9b28",
            "00000000-0000-0000-0000-000000000000",
            "6F9B2801-6f1e-4c3a-9d55-f5a72f6f9b28",
            "6f9b28016f1e4c3a9d55f5a72f6f9b28",
            "",
            None,
        )
    ]
    + [{"bonus": "1"}, {"hold": None}, {"expires_at": "2026-06-15T04:00:00Z"}, {"secret": "0" * 64}],
    ids=str,
)
def test_every_odd_member_is_read_alike_by_both(terms: dict[str, Any]) -> None:
    both_agree(changed(**terms))


@pytest.mark.parametrize(
    "moment",
    [
        "2026-06-15T04:00:00Z",
        "2026-06-15T04:00:00",
        "2026-06-15",
        "2026-06-15T12:00:00+08:00",
        "0001-01-01T00:00+01:00",
        "20260615T040000Z",
        "now",
        "",
        5,
        None,
    ],
    ids=str,
)
def test_every_spelling_of_the_expiry_is_read_alike(moment: object) -> None:
    both_agree(jws.canonical_json({**HONEST, "valid_until": moment}))


SPELLINGS = {
    "spaces": json.dumps(HONEST, sort_keys=True).encode(),
    "another order": json.dumps(dict(reversed(HONEST.items())), separators=(",", ":")).encode(),
    "a member twice": jws.canonical_json(HONEST).replace(b'"kind":"payment"', b'"kind":"payment","kind":"payment"'),
    "a member twice, of two minds": jws.canonical_json(HONEST).replace(
        b'"amount_minor":"100"', b'"amount_minor":"1","amount_minor":"100"'
    ),
    "an escaped letter": jws.canonical_json(HONEST).replace(b'"payment"', b'"\\u0070ayment"'),
    "an escaped NUL": jws.canonical_json({**HONEST, "ledger": "cny?"}).replace(b"?", b"\\u0000"),
    "a NUL": jws.canonical_json({**HONEST, "ledger": "cny?"}).replace(b"?", b"\x00"),
    "a lone surrogate": jws.canonical_json({**HONEST, "ledger": "cny?"}).replace(b"?", b"\\ud800"),
    "a surrogate in UTF-8": jws.canonical_json({**HONEST, "ledger": "cny?"}).replace(b"?", b"\xed\xa0\x80"),
    "broken UTF-8": jws.canonical_json({**HONEST, "ledger": "cny?"}).replace(b"?", b"\xff"),
    "other letters": jws.canonical_json({**HONEST, "ledger": "人民币"}),
    "more behind": jws.canonical_json(HONEST) + b"{}",
    "a space behind": jws.canonical_json(HONEST) + b" ",
    "a byte order mark": b"\xef\xbb\xbf" + jws.canonical_json(HONEST),
    "a list": b"[]",
    "nothing": b"",
    "NaN": jws.canonical_json(HONEST).replace(b'"100"', b"NaN"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_odd_spelling_is_read_alike_by_both(spelling: str) -> None:
    payload = SPELLINGS[spelling]
    read = both_agree(payload)
    if read is not None and spelling != "other letters":
        assert not is_read_quickly(payload)


@given(st.data())
def test_any_changed_byte_is_read_alike_by_both(data: st.DataObject) -> None:
    payload = bytearray(jws.canonical_json(HONEST))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(payload) - 1))
        payload[position : position + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    both_agree(bytes(payload))


# --- batches and answers ---------------------------------------------------------------------------------------------


def test_batch_is_read_as_the_model_reads_it() -> None:
    tokens = ["a" * 20 + str(number) for number in range(3)]
    body = write_signed_items(tokens)
    quick = read_signed_items(body)
    model = TransferBatchRequest.model_validate(strict_json.loads(body, wire=True)).transfers
    assert quick is not None
    assert [(item.instruction, item.linked, item.terms) for item in quick] == [
        (item.instruction, item.linked, item.terms) for item in model
    ]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"transfers":[]}',
        b'{"transfers":[{}]}',
        b'{"transfers":[{"instruction":"short"}]}',
        b'{"transfers":[{"instruction":"' + b"a" * 16_385 + b'"}]}',
        b'{"transfers":[{"instruction":"aaaaaaaaaaaaaaaaaaaaa","instruction":"aaaaaaaaaaaaaaaaaaaaa"}]}',
        b'{"transfers":[{"instruction":"aaaaaaaaaaaaaaaaaaaaa","bonus":1}]}',
        b'{"transfers":[{"instruction":"aaaaaaaaaaaaaaaaaaaaa"}],"transfers":[]}',
        b'{"transfers": [{"instruction":"aaaaaaaaaaaaaaaaaaaaa"}]}',
        b'{"transfers":[{"instruction":"\\u0061aaaaaaaaaaaaaaaaaaaaa"}]}',
        b'{"transfers":[{"terms":{}}]}',
    ],
)
def test_whatever_is_not_plain_is_left_to_the_model(body: bytes) -> None:
    assert read_signed_items(body) is None


def test_too_many_items_are_left_to_the_model() -> None:
    assert read_signed_items(write_signed_items(["a" * 20] * 8_193)) is None
    assert read_signed_items(write_signed_items(["a" * 20] * 8_192)) is not None


def test_answers_travel_as_the_documented_model() -> None:
    answers = [
        TransferAnswer("booked", "trf_0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28", 7, "2026-06-15T04:00:00.000000Z"),
        TransferAnswer("refused", refusal="instruction-invalid", transient=False, detail='it says "no"'),
    ]
    body = write_answers(answers)
    assert read_answers(body) == answers
    documented = TransferBatchResponse.model_validate(strict_json.loads(body)).model_dump(
        mode="json", exclude_none=True
    )
    assert documented == json.loads(body)
    with pytest.raises(ValueError):
        read_answers(b"{}")


def test_a_strict_body_is_still_refused_by_the_model() -> None:
    with pytest.raises(ProblemError):
        strict_json.loads(b'{"transfers":[],"transfers":[]}', wire=True)
