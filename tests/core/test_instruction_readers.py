"""Goal: the quick readers of instructions, batches and answers never read what the models and strict JSON do not.

Method: both readers on the same bytes, honest and hostile; they must agree on every member, or both refuse.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
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
    EndTerms,
    Instruction,
    InvalidInstruction,
    TransferAnswer,
    TransferBatchRequest,
    TransferBatchResponse,
    TransferKind,
    TransferTerms,
    read_answers,
    read_end_items,
    read_instruction,
    read_signed_items,
    sign_instruction,
    write_answers,
    write_end_items,
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
    read = {name: getattr(found, name) for name in found.__struct_fields__ if name not in ("stated", "unverified")}
    if found.kind is TransferKind.HOLD and found.terms is not None:
        read["terms"] = found.terms.model_dump()
    return read


def both_agree(payload: bytes) -> dict[str, Any] | None:
    read = reading(payload)
    assert read == reading(payload, contract._read_any)
    return read


def is_read_quickly(payload: bytes) -> bool:
    return isinstance(read_instruction(jws.sign(payload, KEY, typ=INSTRUCTION_TYP)), contract._QuickInstruction)


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


# --- conditional holds ---------------------------------------------------------------------------------------------

HOLD: dict[str, Any] = {
    **HONEST,
    "terms": {
        **HONEST["terms"],
        "abort_hash": "ab" * 32,
        "commit_hash": "cd" * 32,
        "kind": "hold",
        "reference": "6f9b2801-6f1e-4c3a-9d55-f5a72f6f9b28",
    },
}


def test_conditional_hold_is_read_quickly_and_alike_and_signed_as_it_is_read() -> None:
    payload = jws.canonical_json(HOLD)
    assert both_agree(payload) is not None
    assert is_read_quickly(payload)
    terms = TransferTerms.model_validate(HOLD["terms"])
    signed = sign_instruction(terms, ledger="cny", valid_until=NOW, key=KEY)
    assert jws.read(signed).payload == payload
    odd = sign_instruction(terms, ledger='cny"', valid_until=NOW, key=KEY)
    assert jws.read(odd).payload == jws.canonical_json({**HOLD, "ledger": 'cny"'})


@pytest.mark.parametrize(
    "terms",
    [{"abort_hash": value} for value in ("AB" * 32, "ab" * 31, "ab" * 33, "", "zz" * 32, 5, None)]
    + [{"commit_hash": value} for value in ("CD" * 32, "", None)]
    + [{"amount_minor": value} for value in ("0", "-1", "01", "9223372036854775808", 100, None)]
    + [{"expires_at": "2026-06-15T04:00:00Z"}, {"secret": "0" * 64}, {"hold": "trf_" + "0" * 36}, {"bonus": "1"}]
    + [{"kind": value} for value in ("payment", "post", "void", "", None)]
    + [{"debit": "17"}, {"credit": None}, {"currency": "cny"}, {"reference": "6F9B2801-6f1e-4c3a-9d55-f5a72f6f9b28"}],
    ids=str,
)
def test_every_odd_member_of_a_hold_is_read_alike_by_both(terms: dict[str, Any]) -> None:
    both_agree(jws.canonical_json({**HOLD, "terms": {**HOLD["terms"], **terms}}))


@given(st.data())
def test_any_changed_byte_of_a_hold_is_read_alike_by_both(data: st.DataObject) -> None:
    payload = bytearray(jws.canonical_json(HOLD))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(payload) - 1))
        payload[position : position + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    both_agree(bytes(payload))


# --- ends of holds ---------------------------------------------------------------------------------------------------

END = EndTerms(
    id="trf_0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28",
    kind="post",
    currency="CNY",
    reference="6f9b2801-6f1e-4c3a-9d55-f5a72f6f9b28",
    hold="trf_0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b29",
    secret="ef" * 32,
)


def model_of(body: bytes) -> list[dict[str, Any]] | None:
    try:
        return [
            item.terms.model_dump() if item.terms is not None else {}
            for item in TransferBatchRequest.model_validate(strict_json.loads(body, wire=True)).transfers
        ]
    except ValueError:
        return None
    except ProblemError:
        return None


def test_ends_are_read_as_the_model_reads_them() -> None:
    body = write_end_items([END, EndTerms(END.id, "void", "CNY", None, END.hold, END.secret)])
    quick = read_end_items(body)
    assert quick is not None
    assert [item.terms.model_dump() for item in quick] == model_of(body)
    assert all(item.instruction is None and not item.linked for item in quick)


@given(st.data())
def test_any_changed_byte_of_an_end_is_read_alike_or_left_to_the_model(data: st.DataObject) -> None:
    body = bytearray(write_end_items([END]))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(body) - 1))
        body[position : position + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    quick = read_end_items(bytes(body))
    if quick is not None:
        assert [item.terms.model_dump() for item in quick] == model_of(bytes(body))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "hold"},
        {"kind": "payment"},
        {"hold": ""},
        {"secret": ""},
        {"secret": "EF" * 32},
        {"currency": "cny"},
        {"reference": "00000000-0000-0000-0000-000000000000"},
        {"id": "trf_0198c7b2-6f1e-4c3a-9d55-f5a72f6f9b28"},
    ],
    ids=str,
)
def test_an_odd_end_is_left_to_the_model(change: dict[str, str]) -> None:
    body = write_end_items([msgspec.structs.replace(END, **change)])
    assert read_end_items(body) is None


# --- an instruction compared letter by letter ------------------------------------------------------------------------

ORDERED = {
    "hold": UUID("0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"),
    "debit": 17,
    "credit": 18,
    "amount_minor": 100,
    "currency": "CNY",
    "reference": UUID("6f9b2801-6f1e-4c3a-9d55-f5a72f6f9b28"),
    "commit_hash": bytes(range(32)),
    "abort_hash": bytes(range(32, 64)),
}
SPELT = contract.spell_hold_terms(**ORDERED)  # type: ignore[arg-type]


def spelt_instruction() -> bytes:
    terms = {"id" if name == "hold" else name: value for name, value in ORDERED.items()}
    model = contract.TransferTerms(kind=TransferKind.HOLD, **terms)
    return contract.spell_instruction(model, ledger="cny", valid_until=NOW)


def test_the_ordered_instruction_is_known_letter_by_letter() -> None:
    assert contract.is_instruction_of(spelt_instruction(), ledger="cny", terms=SPELT)
    assert not contract.is_instruction_of(spelt_instruction(), ledger="aed", terms=SPELT)
    for other in ({"amount_minor": 101}, {"debit": 19}, {"abort_hash": bytes(32)}, {"reference": None}):
        terms = contract.spell_hold_terms(**{**ORDERED, **other})  # type: ignore[arg-type]
        assert not contract.is_instruction_of(spelt_instruction(), ledger="cny", terms=terms)


@given(st.data())
def test_what_is_known_letter_by_letter_is_read_as_the_ordered_terms(data: st.DataObject) -> None:
    payload = bytearray(spelt_instruction())
    for _ in range(data.draw(st.integers(1, 2))):
        position = data.draw(st.integers(0, len(payload) - 1) | st.integers(len(payload) - 40, len(payload) - 1))
        payload[position : position + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    if contract.is_instruction_of(bytes(payload), ledger="cny", terms=SPELT):
        read, wanted = both_agree(bytes(payload)), reading(spelt_instruction())
        assert read is not None and wanted is not None
        assert read | {"valid_until": NOW} == wanted


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
