"""Goal: the settlement API keeps its promises: whole batches or none, ids once, strangers out, hostile files refused.

Method: the real app on a real socket with its real database and engine thread; ledgers and institutions are the fakes
that the product ships. The typed client speaks to it, raw requests where the client would not.
"""

from __future__ import annotations

import io
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from kernel import ids
from kernel.client import ProblemResponse
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.ids import ParticipantId
from kernel.money import Currency, Money
from kernel.pagination import encode
from kernel.server import make_server
from settlement.api.app import Outside, create
from settlement.client import SettlementClient
from settlement.contract import (
    BATCH_BYTES_MAX,
    BATCH_INSTRUCTIONS_MAX,
    STATUS_BY_REFUSAL,
    SettlementRefusal,
    SettlementState,
)
from settlement.domain.instructions import Instruction, Priority
from settlement.domain.statements import Statement
from settlement.islands.authorisers import FakeAuthoriser
from settlement.islands.fake import FakeIsland
from settlement.iso20022.camt053 import read_camt053
from settlement.iso20022.csv_batch import write_csv
from settlement.iso20022.head001 import envelope
from settlement.iso20022.pacs009 import write_pacs009
from settlement.settings import SettlementSettings
from settlement.usecases.statements import camt053_bytes
from tests.ledger_world import free_port

BRIDGE, BANK_A, BANK_B, BANK_C = (ParticipantId(code) for code in ("BRDGAEAD", "AAAACNBJ", "BBBBAEAD", "CCCCCNBJ"))
CNY, AED = Currency.of("CNY"), Currency.of("AED")
ACCOUNTS = {BANK_A: (11, 21), BANK_B: (12, 22), BANK_C: (13, 23)}
START = 10_000_000


def today() -> date:
    """Asked for when it is needed: a day taken at import is yesterday's in a run that passes midnight."""
    return datetime.now(UTC).date()


@dataclass
class Running:
    url: str
    keys: dict[ParticipantId, PrivateKey]
    cny: FakeIsland
    aed: FakeIsland
    authoriser: FakeAuthoriser
    log_lines: list[str]

    def client(self, participant: ParticipantId) -> SettlementClient:
        return SettlementClient(self.url, signer=RequestSigner(self.keys[participant]), timeout_seconds=20)

    def raw(
        self, participant: ParticipantId, content: bytes, media_type: str = "application/xml", **headers: str
    ) -> httpx.Response:
        with httpx.Client(auth=RequestSigner(self.keys[participant]), trust_env=False, timeout=30) as client:
            return client.post(
                f"{self.url}/v1/batches",
                content=content,
                headers={"content-type": media_type, "idempotency-key": uuid4().hex} | headers,
            )


@contextmanager
def running(fresh_database: Callable[[str], str], tmp_path: Path) -> Iterator[Running]:
    keys = {participant: PrivateKey.generate() for participant in (BRIDGE, *ACCOUNTS)}
    keys[BRIDGE].save(tmp_path / "bridge.pem")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    files = {
        "ledgers": [
            {"ledger": "cny-ledger", "url": "http://127.0.0.1:1", "currency": "CNY"},
            {"ledger": "aed-ledger", "url": "http://127.0.0.1:1", "currency": "AED"},
        ],
        "institutions": [
            {
                "participant": participant,
                "authorisation_url": "http://127.0.0.1:1",
                "key": keys[participant].public.to_jwk(),
                "accounts": {"CNY": ids.show_account(cny), "AED": ids.show_account(aed)},
            }
            for participant, (cny, aed) in ACCOUNTS.items()
        ],
        "rates": [{"base": "CNY", "counter": "AED", "rate": "0.5123", "provider": BANK_B}],
    }
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    settings = SettlementSettings(
        host="127.0.0.1",
        port=port,
        public_url=url,
        database_url=fresh_database("settlement"),
        data_dir=tmp_path / "data",
        participant=BRIDGE,
        signing_key_path=tmp_path / "bridge.pem",
        ledgers_path=tmp_path / "ledgers.json",
        institutions_path=tmp_path / "institutions.json",
        rates_path=tmp_path / "rates.json",
    )
    cny = FakeIsland("cny-ledger", balances={pair[0]: START for pair in ACCOUNTS.values()})
    aed = FakeIsland("aed-ledger", balances={pair[1]: START for pair in ACCOUNTS.values()})
    authoriser = FakeAuthoriser(PrivateKey.generate(), clock=lambda: datetime.now(UTC))
    lines: list[str] = []
    handler = _Lines(lines)
    logging.getLogger().addHandler(handler)
    app = create(
        settings,
        connect=lambda *_: Outside({"cny-ledger": cny, "aed-ledger": aed}, authoriser, lambda: None),
    )
    server = make_server(app, host="127.0.0.1", port=port, log_level="warning")
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    yield Running(url, keys, cny, aed, authoriser, lines)
    server.should_exit = True
    thread.join(15)
    logging.getLogger().removeHandler(handler)
    cny.check()
    aed.check()


@pytest.fixture
def service(fresh_database: Callable[[str], str], tmp_path: Path) -> Iterator[Running]:
    with running(fresh_database, tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def shared(fresh_databases: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One for all tests of a module that change nothing: what they send is refused."""
    with running(fresh_databases, tmp_path_factory.mktemp("shared")) as found:
        yield found


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())


def instruction(number: int = 1, amount: int = 10_001, **changes: Any) -> Instruction:
    made = Instruction(
        f"INS{number:05d}",
        f"E2E{number:05d}",
        uuid4(),
        BANK_A,
        BANK_B,
        Money(amount, Currency.of(changes.pop("currency", "CNY"))),
        AED,
        None,
        today(),
        Priority.NORMAL,
    )
    return replace(made, **changes)


def pacs(*instructions: Instruction, message_id: str | None = None) -> bytes:
    return write_pacs009(instructions, message_id=message_id or uuid4().hex, created_at=datetime.now(UTC))


# --- the main line


def test_pacs009_and_csv_settle_pvp_and_show_their_finality(service: Running) -> None:
    with service.client(BANK_A) as client:
        first = client.submit_batch(pacs(*(instruction(number) for number in range(1, 41))), file_format="pacs.009")
        second = client.submit_batch(write_csv([instruction(number) for number in range(1, 21)]), file_format="csv")
        for batch, count in ((first, 40), (second, 20)):
            done = client.wait_for_batch(batch.batch, timeout_seconds=30)
            assert done.counts[SettlementState.SETTLED] == count
        found = list(client.settlements(first.batch))
    assert len(found) == 40
    one = found[0]
    # 100.01 CNY at 0.5123 = 51.235123 AED: down to the fen for the provider, who pays it; the rest is stated.
    assert [leg.amount_minor for leg in one.legs] == [10_001, 5_123]
    assert (one.rate, one.remainder_minor, one.rate_provider) == ("5123/10000", "5123/10000", BANK_B)
    assert one.finality_at is not None and one.decision == "commit"
    assert (service.cny.balance(12), service.aed.balance(21)) == (START + 60 * 10_001, START + 60 * 5_123)


def test_a_refused_settlement_says_why_and_the_others_settle(service: Running) -> None:
    with service.client(BANK_A) as client:
        batch = client.submit_batch(pacs(instruction(1), instruction(2, START * 5)), file_format="pacs.009")
        done = client.wait_for_batch(batch.batch, timeout_seconds=30)
        assert (done.counts[SettlementState.SETTLED], done.counts[SettlementState.CANCELLED]) == (1, 1)
        (cancelled,) = client.settlements(batch.batch, states=(SettlementState.CANCELLED,))
    assert cancelled.reason == "leg-refused"
    assert "insufficient-funds" in cancelled.detail
    assert cancelled.finality_at is None


def test_in_doubt_names_what_each_settlement_waits_for(service: Running) -> None:
    service.aed.faults.down = True
    with service.client(BANK_A) as client, service.client(BRIDGE) as bridge, service.client(BANK_C) as stranger:
        batch = client.submit_batch(pacs(instruction()), file_format="pacs.009")
        deadline = time.monotonic() + 30
        while not (found := list(bridge.in_doubt())) or "did not answer" not in found[0].waits_for:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert "aed-ledger" in found[0].waits_for
        assert list(found[0].legs.values()) == ["held", "pending"]
        assert list(stranger.in_doubt()) == []
        service.aed.faults.down = False
        client.wait_for_batch(batch.batch, timeout_seconds=30)
        assert list(bridge.in_doubt()) == []


# --- idempotency and id reuse


def test_the_same_file_again_is_the_same_batch_whatever_the_key(service: Running) -> None:
    content = pacs(instruction())
    with service.client(BANK_A) as client:
        batches = {
            client.submit_batch(content, file_format="pacs.009", idempotency_key=key).batch
            for key in ("k1", "k1", "k2")
        }
        assert len(batches) == 1
        client.wait_for_batch(batches.pop(), timeout_seconds=30)
    assert service.cny.balance(12) == START + 10_001


def test_an_idempotency_key_or_message_id_with_other_content_is_refused(service: Running) -> None:
    with service.client(BANK_A) as client:
        client.submit_batch(pacs(instruction(), message_id="M1"), file_format="pacs.009", idempotency_key="k1")
        with pytest.raises(ProblemResponse) as reused:
            client.submit_batch(pacs(instruction(), message_id="M2"), file_format="pacs.009", idempotency_key="k1")
        assert reused.value.refusal == "idempotency-key-reused"
        with pytest.raises(ProblemResponse) as other:
            client.submit_batch(pacs(instruction(), message_id="M1"), file_format="pacs.009", idempotency_key="k2")
        assert (other.value.status, other.value.refusal) == (409, "batch-id-reused")


def test_a_uetr_settles_once_in_whatever_batch(service: Running) -> None:
    paid = instruction()
    with service.client(BANK_A) as client:
        client.submit_batch(pacs(paid), file_format="pacs.009")
        with pytest.raises(ProblemResponse) as refused:
            client.submit_batch(write_csv([instruction(2), paid]), file_format="csv")
    assert [(item["refusal"], item["index"]) for item in refused.value.extra["problems"]] == [("uetr-already-used", 2)]


# --- refused batches


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"creditor": ParticipantId("ZZZZAEAD")}, "participant-unknown"),
        ({"debtor": BANK_C}, "submitter-not-party"),
        ({"counter_currency": Currency.of("JPY")}, "quote-not-found"),
        (
            {"counter_currency": Currency.of("JPY"), "counter_amount": Money(5, Currency.of("JPY"))},
            "currency-not-served",
        ),
        ({"amount": 1}, "counter-amount-out-of-range"),
        ({"value_date": date(1, 1, 1)}, "value-date-past"),
        ({"value_date": today() - timedelta(days=3)}, "value-date-past"),
        ({"value_date": today() + timedelta(days=3)}, "value-date-too-far"),
        ({"value_date": date(9999, 12, 31)}, "value-date-too-far"),
        ({"amount": 100, "currency": "JPY"}, "quote-not-found"),
        ({"amount": 100, "currency": "KWD"}, "quote-not-found"),
    ],
)
def test_one_bad_line_refuses_the_batch_whole_with_its_place(
    shared: Running, changes: dict[str, Any], refusal: str
) -> None:
    with shared.client(BANK_A) as client:
        with pytest.raises(ProblemResponse) as refused:
            client.submit_batch(pacs(instruction(1), instruction(2, **changes)), file_format="pacs.009")
        assert (refused.value.status, refused.value.refusal) == (422, "batch-invalid")
        assert [(item["refusal"], item["index"]) for item in refused.value.extra["problems"]] == [(refusal, 2)]
    assert shared.authoriser.calls == 0


def test_a_file_addressed_to_another_or_from_another_is_refused(shared: Running) -> None:
    """By the application header: whoever signs the request is its sender, and it is for this bridge."""
    content = pacs(instruction(), message_id="BAH1")
    for sender, receiver, part in ((BANK_A, BANK_B, "AppHdr/To"), (BANK_B, BRIDGE, "AppHdr/Fr")):
        made = envelope(
            content, sender=sender, receiver=receiver, business_message_id="BAH1", created_at=datetime.now(UTC)
        )
        response = shared.raw(BANK_A, made)
        assert (response.status_code, response.json()["refusal"]) == (422, "batch-invalid")
        (problem,) = response.json()["problems"]
        assert problem["refusal"] == "application-header-invalid" and part in problem["reason"]


HOSTILE = {
    "billion laughs": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><a>&c;</a>',
    "external entity": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
    "not xml": b"hello",
    "empty": b"",
    "other message": b'<Document xmlns="urn:iso:std:iso:20022:tech:xsd:pacs.008.001.08"/>',
    "nul": b"<Document>\x00</Document>",
    "utf-16": "<?xml version='1.0' encoding='UTF-16'?><a/>".encode("utf-16"),
    "deep": b"<a>" * 5_000 + b"</a>" * 5_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_or_broken_file_is_a_clear_problem_and_never_a_5xx(shared: Running, name: str) -> None:
    response = shared.raw(BANK_A, HOSTILE[name])
    assert response.status_code in (400, 415, 422), response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert b"root:" not in response.content


@pytest.mark.parametrize("text", ["=cmd()", "1e3", "-5", "0", "٣", "9" * 40, "NaN"])
def test_a_csv_amount_that_is_no_plain_decimal_is_refused(shared: Running, text: str) -> None:
    good = write_csv([instruction()]).decode()
    assert "100.01" in good
    response = shared.raw(BANK_A, good.replace("100.01", text).encode(), "text/csv")
    assert (response.status_code, response.json()["refusal"]) == (422, "batch-invalid")


def test_a_body_over_the_bound_is_refused_before_it_is_sent(service: Running) -> None:
    address = httpx.URL(service.url)
    head = (
        "POST /v1/batches HTTP/1.1\r\nhost: x\r\ncontent-type: application/xml\r\n"
        f"content-length: {BATCH_BYTES_MAX + 1}\r\n\r\n"
    )
    with socket.create_connection((address.host, address.port or 0), timeout=20) as connection:
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(4_096).split(b"\r\n")[0]


def test_a_batch_over_the_bound_is_refused(service: Running) -> None:
    many = [instruction(number) for number in range(1, BATCH_INSTRUCTIONS_MAX + 2)]
    response = service.raw(BANK_A, write_csv(many), "text/csv")
    assert response.status_code == 422
    assert {item["refusal"] for item in response.json()["problems"]} == {"too-many-instructions"}


def test_other_content_types_are_refused(service: Running) -> None:
    assert service.raw(BANK_A, b"{}", "application/json").status_code == 415


# --- who may


def test_unsigned_forged_replayed_and_foreign_requests_are_refused(service: Running) -> None:
    content, stranger = pacs(instruction()), PrivateKey.generate()
    with httpx.Client(trust_env=False) as client:
        headers = {"content-type": "application/xml", "idempotency-key": "k"}
        unsigned = client.post(f"{service.url}/v1/batches", content=content, headers=headers)
        forged = client.post(
            f"{service.url}/v1/batches", content=content, headers=headers, auth=RequestSigner(stranger)
        )
        signed = client.build_request("POST", f"{service.url}/v1/batches", content=content, headers=headers)
        RequestSigner(service.keys[BANK_A]).sign(signed)
        first, again = client.send(signed), client.send(signed)
        altered = client.build_request("POST", signed.url, content=pacs(instruction()), headers=dict(signed.headers))
        changed = client.send(altered)
    assert [response.status_code for response in (unsigned, forged, first, again, changed)] == [401, 401, 201, 409, 401]


def test_another_institutions_batch_settlement_and_statement_do_not_exist_for_a_stranger(service: Running) -> None:
    with service.client(BANK_A) as client, service.client(BANK_C) as stranger, service.client(BANK_B) as party:
        batch = client.submit_batch(pacs(instruction()), file_format="pacs.009").batch
        client.wait_for_batch(batch, timeout_seconds=30)
        (one,) = client.settlements(batch)
        statement = client.write_statement(batch, participant=BANK_A, currency="CNY").statement
        attempts: list[Callable[[], object]] = [
            lambda: stranger.batch(batch),
            lambda: list(stranger.settlements(batch)),
            lambda: stranger.run_batch(batch),
            lambda: stranger.settlement(one.settlement),
            lambda: stranger.statement_file(statement),
            lambda: client.settlement(uuid7()),
        ]
        for attempt in attempts:
            with pytest.raises(ProblemResponse) as refused:
                attempt()
            assert refused.value.status == 404
        for forbidden in (
            lambda: stranger.write_statement(batch, participant=BANK_A, currency="CNY"),
            lambda: client.abort_settlement(one.settlement),
        ):
            with pytest.raises(ProblemResponse) as refused:
                forbidden()
            assert refused.value.status == 403
        assert party.settlement(one.settlement).settlement == one.settlement


def uuid7() -> UUID:
    return ids.new_uuid7()


# --- statements and reconciliation


def test_a_statement_is_written_once_and_planted_breaks_are_found_exactly(service: Running) -> None:
    with service.client(BANK_A) as client:
        batch = client.submit_batch(
            pacs(*(instruction(number, 10_000 + number) for number in range(1, 31))), file_format="pacs.009"
        ).batch
        client.wait_for_batch(batch, timeout_seconds=30)
        file = client.write_statement(batch, participant=BANK_A, currency="CNY")
        assert client.write_statement(batch, participant=BANK_A, currency="CNY") == file
        content = client.statement_file(file.statement)
        clean = client.reconcile(content, batch=batch, participant=BANK_A, currency="CNY")
        assert (clean.matched, clean.breaks) == (30, [])
        ours = read_camt053(io.BytesIO(content)).statement
        assert ours is not None and ours.closing_minor == -sum(10_000 + number for number in range(1, 31))
        run = client.reconcile(camt053_bytes(planted(ours)), batch=batch, participant=BANK_A, currency="CNY")
        again = client.reconciliation(run.reconciliation)
    kinds = sorted(item.type for item in run.breaks)
    assert kinds == ["amount", "duplicate", "missing-here", "missing-there"]
    amount = next(item for item in run.breaks if item.type == "amount")
    assert amount.difference_minor == -1
    assert again == run


def planted(ours: Statement) -> Statement:
    """Their copy: our second line missing, the third one fen more, the fourth twice, and a line that we lack."""
    lines = list(ours.entries)
    wrong = replace(lines[2], amount=Money(lines[2].amount.amount_minor + 1, CNY))
    extra = replace(lines[4], uetr=uuid4(), reference="f" * 32, end_to_end_id="X", amount=Money(77, CNY))
    doubled = replace(lines[3], reference="e" * 32)
    return ours.with_entries([lines[0], wrong, lines[3], doubled, *lines[4:], extra])


def test_a_statement_file_that_is_none_is_refused(service: Running) -> None:
    with service.client(BANK_A) as client:
        batch = client.submit_batch(pacs(instruction()), file_format="pacs.009").batch
        with pytest.raises(ProblemResponse) as refused:
            client.reconcile(b"<a/>", batch=batch, participant=BANK_A, currency="CNY")
        assert (refused.value.status, refused.value.refusal) == (422, "statement-invalid")


@pytest.mark.parametrize(("participant", "currency"), [(BANK_A, "AED"), (BANK_B, "CNY")])
def test_a_statement_of_another_account_or_currency_is_refused(
    service: Running, participant: ParticipantId, currency: str
) -> None:
    with service.client(BANK_A) as client, service.client(BRIDGE) as bridge:
        batch = client.submit_batch(pacs(instruction()), file_format="pacs.009").batch
        client.wait_for_batch(batch, timeout_seconds=30)
        file = client.write_statement(batch, participant=BANK_A, currency="CNY")
        content = client.statement_file(file.statement)
        with pytest.raises(ProblemResponse) as refused:
            bridge.reconcile(content, batch=batch, participant=participant, currency=currency)
    assert (refused.value.status, refused.value.refusal) == (422, "statement-of-another-account")


@pytest.mark.parametrize("position", [-1, 2**31, 2**62])
def test_a_forged_cursor_is_a_validation_problem_and_never_a_5xx(service: Running, position: int) -> None:
    with service.client(BANK_A) as client:
        batch = client.submit_batch(pacs(instruction()), file_format="pacs.009").batch
    shown = ids.show("bat", batch)
    cursor = encode([position], {"batch": shown, "state": None})
    with httpx.Client(auth=RequestSigner(service.keys[BANK_A]), trust_env=False) as raw:
        response = raw.get(f"{service.url}/v1/batches/{shown}/settlements", params={"cursor": cursor})
    assert (response.status_code, response.json()["refusal"]) == (422, "validation-failed")


# --- the description


def test_the_status_table_is_total() -> None:
    assert STATUS_BY_REFUSAL.keys() == set(SettlementRefusal)


def test_the_description_names_every_operation_and_prices_are_public(service: Running) -> None:
    document = httpx.get(f"{service.url}/openapi.json", trust_env=False).json()
    operations = {operation["operationId"] for path in document["paths"].values() for operation in path.values()}
    assert {"submit_batch", "get_settlement", "list_in_doubt", "write_statement", "reconcile"} <= operations
    with SettlementClient(service.url) as anybody:
        quoted = anybody.quote(10_001, base="CNY", counter="AED")
        assert (quoted.counter_amount_minor, quoted.remainder_minor) == (5_123, "5123/10000")
        assert anybody.quote(10_001, base="CNY", counter="AED", receiver=BANK_B).counter_amount_minor == 5_124
        assert [rate.rate for rate in anybody.rates()] == ["5123/10000"]


def test_no_secret_reaches_a_log_line(service: Running) -> None:
    sent: list[str] = []
    real = service.cny.fulfil

    def watching(orders: Any) -> Any:
        sent.extend(order.secret.hex() for order in orders)
        return real(orders)

    service.cny.fulfil = watching  # type: ignore[method-assign]
    with service.client(BANK_A) as client:
        batch = client.submit_batch(pacs(instruction()), file_format="pacs.009").batch
        client.wait_for_batch(batch, timeout_seconds=30)
        shown = "".join(item.model_dump_json() for item in client.settlements(batch))
    assert len(sent) == 1
    assert sent[0] not in shown + "\n".join(service.log_lines)
