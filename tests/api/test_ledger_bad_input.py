"""Bad input at the ledger's door: each gets its own problem, never a 500, and nothing moves.

Goal: malformed JSON, NaN, duplicate keys, NUL, unknown fields, amounts that are negative, zero, fractional, huge or not
numbers, wrong currency, unknown accounts, stale or replayed signatures, bodies over the bound, ids reused.
Method: raw HTTP against a real ledger; after every refusal the supply and both balances are what they were.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import httpx
import numpy as np
import pytest

from kernel import ids
from kernel.clock import system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from ledger.contract import BINARY_MEDIA_TYPE
from ledger.domain.records import SUBMISSION
from ledger.domain.vocabulary import KIND_CODE, TransferKind
from tests.ledger_world import LedgerWorld, running_ledger

BANK, OTHER = "BKCHCNBJ", "ICBKCNBJ"
PATH = "/v1/transfer-batches"


@pytest.fixture(scope="module")
def world(fresh_databases: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LedgerWorld]:
    with running_ledger(fresh_databases("ledger"), tmp_path_factory.mktemp("ledger")) as world:
        world.register(BANK)
        world.register(OTHER)
        yield world


@pytest.fixture(scope="module")
def accounts(world: LedgerWorld) -> tuple[int, int]:
    source, target = world.open_vault(BANK), world.open_vault(OTHER)
    world.issue(source, 1_000)
    return source, target


@pytest.fixture(autouse=True)
def nothing_moves(world: LedgerWorld, accounts: tuple[int, int]) -> Iterator[None]:
    def look() -> tuple[int, ...]:
        with world.operator() as client:
            supply = client.supply()
            assert supply.identity_holds
            balances = (client.get_account(account).balance_minor for account in accounts)
            return (*balances, supply.circulation_minor, supply.as_of_seq)

    before = look()
    yield
    assert look() == before


def post(
    world: LedgerWorld, body: bytes, *, content_type: str = "application/json", signer: httpx.Auth | None = None
) -> httpx.Response:
    auth = signer or RequestSigner(world.participants[BANK])
    with httpx.Client(auth=auth) as client:
        return client.post(world.url + PATH, content=body, headers={"content-type": content_type})


def problem(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["status"] == response.status_code
    assert document["type"] == f"/problems/{document['refusal']}"
    assert document["request_id"] == response.headers["x-request-id"]
    return response.status_code, document["refusal"]


def item(accounts: tuple[int, int], **change: Any) -> dict[str, Any]:
    terms: dict[str, Any] = {
        "id": ids.show("trf", ids.new_uuid7()),
        "kind": "payment",
        "debit": ids.show_account(accounts[0]),
        "credit": ids.show_account(accounts[1]),
        "amount_minor": "5",
        "currency": "CNY",
    }
    terms = {name: value for name, value in (terms | change).items() if value is not None}
    return {"transfers": [{"terms": terms}]}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", (422, "validation-failed")),
        (b"{", (400, "malformed-json")),
        (b'{"transfers": NaN}', (400, "malformed-json")),
        (b'{"transfers": [], "transfers": []}', (400, "malformed-json")),
        (b'{"transfers": ["\\u0000"]}', (400, "nul-character")),
        (b'{"transfers": ["\x00"]}', (400, "nul-character")),
        (b'\xff{"transfers": []}', (400, "malformed-json")),
        (b"[" * 5_000, (400, "malformed-json")),
        (b'{"transfers": []}', (422, "validation-failed")),
        (b'{"transfers": [{}], "extra": 1}', (422, "validation-failed")),
        (b"[]", (422, "validation-failed")),
        (b'"text"', (422, "validation-failed")),
        (b'{"transfers": ' + b"1" * 40 + b"}", (400, "malformed-json")),
    ],
)
def test_malformed_documents(world: LedgerWorld, body: bytes, expected: tuple[int, str]) -> None:
    got = problem(post(world, body))
    assert got == expected or (body == b"" and got == (400, "malformed-json"))


@pytest.mark.parametrize(
    "change",
    [
        {"amount_minor": "-5"},
        {"amount_minor": "5.0"},
        {"amount_minor": "05"},
        {"amount_minor": "5e3"},
        {"amount_minor": " 5"},
        {"amount_minor": "٥"},
        {"amount_minor": "9223372036854775808"},
        {"amount_minor": "1" * 400},
        {"amount_minor": "NaN"},
        {"amount_minor": ""},
        {"amount_minor": 5},
        {"amount_minor": 5.5},
        {"amount_minor": True},
        {"amount_minor": ["5"]},
        {"amount_minor": None},
        {"currency": "cny"},
        {"currency": "CNYX"},
        {"currency": None},
        {"debit": "acc_0000000000017"},
        {"debit": "acc_00000000001799"},
        {"debit": 17},
        {"debit": "17"},
        {"credit": None},
        {"id": "trf_not-a-uuid"},
        {"id": "mdt_0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"},
        {"id": "trf_0198c7b2-6f1e-4c3a-9d55-f5a72f6f9b28"},
        {"id": "trf_0198C7B2-6F1E-7C3A-9D55-F5A72F6F9B28"},
        {"kind": "mint"},
        {"reference": "00000000-0000-0000-0000-000000000000"},
        {"reference": "not-a-uuid"},
        {"unknown_field": "1"},
        {"secret": "00" * 32},
        {"commit_hash": "00" * 32},
        {"hold": "trf_0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"},
        {"expires_at": "2030-01-01T00:00:00Z"},
        {"kind": "hold", "expires_at": "2030-01-01T00:00:00"},
        {"kind": "post"},
    ],
)
def test_misshapen_transfers(world: LedgerWorld, accounts: tuple[int, int], change: dict[str, Any]) -> None:
    response = post(world, json.dumps(item(accounts, **change)).encode())
    assert problem(response) == (422, "validation-failed")
    assert all(error["pointer"].startswith("/body/transfers/0") for error in response.json()["errors"])


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"amount_minor": "0"}, "amount-invalid"),
        ({"amount_minor": "9223372036854775807"}, "insufficient-funds"),
        ({"currency": "USD"}, "wrong-currency"),
        ({"credit": ids.show_account(999_999)}, "credit-account-unknown"),
        ({"debit": ids.show_account(999_999)}, "debit-account-unknown"),
        ({"debit": ids.show_account(1)}, "kind-not-allowed"),
        ({"kind": "issue"}, "kind-not-allowed"),
        ({"kind": "adjustment"}, "kind-not-allowed"),
        ({"kind": "exchange-in"}, "kind-not-allowed"),
        ({"kind": "hold", "expires_at": "2020-01-01T00:00:00Z"}, "hold-terms-invalid"),
    ],
)
def test_transfers_refused_for_what_they_mean(
    world: LedgerWorld, accounts: tuple[int, int], change: dict[str, Any], refusal: str
) -> None:
    response = post(world, json.dumps(item(accounts, **change)).encode())
    assert response.status_code == 200
    assert response.json()["results"][0]["refusal"] == refusal


def test_another_institution_cannot_debit_ours(world: LedgerWorld, accounts: tuple[int, int]) -> None:
    body = json.dumps(item(accounts)).encode()
    response = post(world, body, signer=RequestSigner(world.participants[OTHER]))
    assert response.json()["results"][0]["refusal"] == "not-authorised"
    with httpx.Client() as client:
        unsigned = client.post(world.url + PATH, content=body, headers={"content-type": "application/json"})
    assert unsigned.json()["results"][0]["refusal"] == "not-authorised"


def signed_headers(world: LedgerWorld, body: bytes, when: datetime, key: PrivateKey) -> dict[str, str]:
    request = httpx.Request("POST", world.url + PATH, content=body, headers={"content-type": "application/json"})
    RequestSigner(key, clock=lambda: when).sign(request)
    return dict(request.headers)


def test_stale_future_replayed_and_altered_signatures(world: LedgerWorld, accounts: tuple[int, int]) -> None:
    refused = json.dumps(item(accounts, amount_minor="5000")).encode()  # refused for its funds, so nothing moves
    key = world.participants[BANK]

    def send(body: bytes, headers: dict[str, str]) -> httpx.Response:
        with httpx.Client() as client:
            return client.post(world.url + PATH, content=body, headers=headers)

    now = system_clock()
    for shift in (timedelta(minutes=-6), timedelta(minutes=2)):
        response = send(refused, signed_headers(world, refused, now + shift, key))
        assert problem(response) == (401, "signature-stale")
    headers = signed_headers(world, refused, now, key)
    assert send(refused, headers).status_code == 200
    assert problem(send(refused, headers)) == (409, "signature-replayed")
    altered = refused.replace(b"5000", b"0005")
    assert problem(send(altered, signed_headers(world, refused, now, key))) == (401, "signature-invalid")
    stranger = PrivateKey.generate()
    assert problem(send(refused, signed_headers(world, refused, now, stranger))) == (401, "signature-invalid")


def test_bodies_over_the_bound_and_other_content_types(world: LedgerWorld) -> None:
    with httpx.Client() as client:
        over = client.post(world.url + PATH, content=b" " * (9 << 20), headers={"content-type": "application/json"})
        assert problem(over) == (413, "body-too-large")
        small = client.post(world.url + "/v1/mandates", content=b" " * (65 << 10))
        assert problem(small) == (413, "body-too-large")
        text = client.post(world.url + PATH, content=b"x", headers={"content-type": "text/plain"})
        assert problem(text) == (415, "unsupported-media-type")
        assert problem(client.get(world.url + PATH)) == (405, "method-not-allowed")
        assert problem(client.get(world.url + "/v1/nothing")) == (404, "not-found")
        assert problem(client.get(world.url + "/v1/supply?at=1")) == (422, "validation-failed")
        assert problem(client.get(world.url + "/v1/blocks/0")) == (422, "validation-failed")
        assert problem(client.get(world.url + "/v1/blocks/999999999999999999")) == (404, "block-not-found")


def test_a_batch_over_the_bound_is_refused_whole(world: LedgerWorld, accounts: tuple[int, int]) -> None:
    one = item(accounts)["transfers"][0]
    body = json.dumps({"transfers": [one] * 8193}).encode()
    assert problem(post(world, body)) == (422, "validation-failed")


@pytest.mark.parametrize("length", [1, 87, 89, 88 * 8193])
def test_binary_batches_of_a_wrong_length(world: LedgerWorld, length: int) -> None:
    response = post(world, bytes(length), content_type=BINARY_MEDIA_TYPE)
    assert problem(response) == (422, "validation-failed")


@pytest.mark.parametrize(
    "change", [{"kind": 200}, {"kind": 0}, {"flags": 1}, {"hold_low": 7}, {"expires_at": 1}, {"id_high": 5}]
)
def test_binary_records_that_are_no_plain_transfers(
    world: LedgerWorld, accounts: tuple[int, int], change: dict[str, int]
) -> None:
    response = post(world, binary(accounts, **change), content_type=BINARY_MEDIA_TYPE)
    assert problem(response) == (422, "validation-failed")


@pytest.mark.parametrize(
    "change",
    [
        *({"amount": value} for value in (0, -1, -(2**63), 2**63 - 1)),
        *({"debit": value} for value in (0, -1, 2**62, 1)),
        *({"credit": value} for value in (0, -5, 2**63 - 1, 1)),
    ],
)
def test_binary_records_refused_for_what_they_mean(
    world: LedgerWorld, accounts: tuple[int, int], change: dict[str, int]
) -> None:
    response = post(world, binary(accounts, **change), content_type=BINARY_MEDIA_TYPE)
    assert response.status_code == 200
    assert np.frombuffer(response.content, ">i2", count=1)[0] > 0


def binary(accounts: tuple[int, int], **change: int) -> bytes:
    record = np.zeros(1, SUBMISSION)
    own = ids.new_uuid7().int
    record["id_high"], record["id_low"] = own >> 64, own & (2**64 - 1)
    record["debit"], record["credit"] = accounts
    record["amount"], record["kind"] = 5, KIND_CODE[TransferKind.PAYMENT]
    for name, value in change.items():
        record[name] = value
    return record.tobytes()


@pytest.mark.parametrize(
    "path", ["/v1/transfers/trf_x", "/v1/holds/' OR 1=1", "/v1/accounts/acc_1", "/v1/mandates/%00", "/v1/mandates/../x"]
)
def test_paths_that_name_nothing(world: LedgerWorld, path: str) -> None:
    with httpx.Client(auth=RequestSigner(world.participants[BANK])) as client:
        status, refusal = problem(client.get(world.url + path))
    assert (status, refusal) in {(422, "validation-failed"), (404, "not-found"), (400, "nul-character")}


@pytest.mark.parametrize("token", ["a.b.c" * 10, "e30." * 8, "." * 40, "x" * 20_000, "é" * 40])
def test_documents_that_are_no_jws(world: LedgerWorld, token: str) -> None:
    with httpx.Client() as client:
        response = client.post(world.url + "/v1/mandates", json={"proposal": token})
    assert problem(response)[1] in {"instruction-invalid", "validation-failed", "unknown-signer"}
