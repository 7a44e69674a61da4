"""Goal: calendars and compliance through the front door: the API, its refusals, and the commands, as people use them.

Method: the real app on a real socket with its database and threads and a clock that the test turns; ledgers and
institutions are the fakes that the product ships. The typed client and the CLI speak to it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from typer.testing import CliRunner

from kernel import ids
from kernel.client import ProblemResponse
from kernel.clock import ManualClock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.ids import ParticipantId, new_uuid7
from kernel.money import Currency, Money
from kernel.server import make_server
from settlement.__main__ import app as cli
from settlement.api.app import Outside, create
from settlement.cli import options
from settlement.client import SettlementClient
from settlement.compliance_files import DEMONSTRATION
from settlement.contract import SettlementState, SettlementView
from settlement.domain.compliance import ComplianceData, PartyKind
from settlement.domain.instructions import Instruction
from settlement.islands.authorisers import FakeAuthoriser
from settlement.islands.fake import FakeIsland
from settlement.iso20022.pacs008 import write_pacs008
from settlement.iso20022.pacs009 import write_pacs009
from settlement.settings import SettlementSettings
from tests.ledger_world import free_port

BRIDGE, BANK_A, BANK_B = (ParticipantId(code) for code in ("BRDGAEAD", "AAAACNBJ", "BBBBAEAD"))
CNY, AED = Currency.of("CNY"), Currency.of("AED")
ACCOUNTS = {BANK_A: (11, 21), BANK_B: (12, 22)}
PERSON = ComplianceData(
    debtor_kind=PartyKind.PERSON, debtor_name="Ivo Qwertz", debtor_country="CN", debtor_resident_id="P1234567",
    creditor_name="Gulf School", creditor_country="AE", purpose="STDY",
)  # fmt: skip


@dataclass
class Running:
    url: str
    clock: ManualClock
    directory: Path
    cny: FakeIsland

    def client(self, name: str) -> SettlementClient:
        signer = RequestSigner(PrivateKey.load(self.key(name)), clock=self.clock)
        return SettlementClient(self.url, signer=signer, timeout_seconds=20)

    def key(self, name: str) -> Path:
        return self.directory / f"{name}.pem"

    def submit(self, *, data: ComplianceData | None = None, value_date: date | None = None) -> SettlementView:
        """One instruction of 710.00 CNY from A to B against AED."""
        number = uuid4().hex[:12]
        made = Instruction(
            f"I{number}", f"E{number}", uuid4(), BANK_A, BANK_B, Money(71_000, CNY), AED, None,
            value_date or self.clock().date(), compliance=data,
        )  # fmt: skip
        write = write_pacs009 if data is None else write_pacs008
        with self.client("bank-a") as client:
            content = write([made], message_id=uuid4().hex, created_at=self.clock())
            batch = client.submit_batch(content, file_format="pacs.009")
            (found,) = client.settlements(batch.batch)
        return found

    def wait(self, settlement: SettlementView, state: SettlementState) -> SettlementView:
        deadline = time.monotonic() + 30
        with self.client("bank-a") as client:
            while (found := client.settlement(settlement.settlement)).state is not state:
                assert time.monotonic() < deadline, found
                time.sleep(0.05)
        return found

    def cli(self, *arguments: str, key: str = "", code: int = 0) -> str:
        signed = ["--client-key", str(self.key(key))] if key else []
        found = CliRunner().invoke(cli, [*arguments, "--url", self.url, *signed])
        assert found.exit_code == code, (found.output, found.exception)
        return found.output


@pytest.fixture
def start(
    fresh_database: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Running]]:
    servers: list[tuple[Any, threading.Thread]] = []

    def run(*, moment: datetime | None = None, **changes: Any) -> Running:
        keys = {name: PrivateKey.generate() for name in ("bridge", "bank-a", "bank-b", "li", "chen")}
        for name, key in keys.items():
            key.save(tmp_path / f"{name}.pem")
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        files: dict[str, Any] = {
            "ledgers": [
                {"ledger": "cny", "url": "http://127.0.0.1:1", "currency": "CNY"},
                {"ledger": "aed", "url": "http://127.0.0.1:1", "currency": "AED"},
            ],
            "institutions": [
                {
                    "participant": participant,
                    "authorisation_url": "http://127.0.0.1:1",
                    "key": keys[name].public.to_jwk(),
                    "accounts": {"CNY": ids.show_account(cny), "AED": ids.show_account(aed)},
                }
                for name, (participant, (cny, aed)) in zip(("bank-a", "bank-b"), ACCOUNTS.items(), strict=True)
            ],
            "rates": [
                {"base": "CNY", "counter": "AED", "rate": "0.5123", "provider": BANK_B},
                {"base": "USD", "counter": "CNY", "rate": "7.1", "provider": BANK_B},
            ],
            "officers": [
                {"officer": "li.na", "key": keys["li"].public.to_jwk()},
                {"officer": "chen.wei", "key": keys["chen"].public.to_jwk()},
            ],
            "clear-out": [{"currency": "CNY", "returns_to": BANK_A, "against": "AED"}],
        }
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        hash_key = tmp_path / "hash.key"
        hash_key.write_text("ab" * 32)
        hash_key.chmod(0o600)
        settings = SettlementSettings(
            **{
                "host": "127.0.0.1", "port": port, "public_url": url, "database_url": fresh_database("settlement"),
                "data_dir": tmp_path / "data", "participant": BRIDGE, "signing_key_path": tmp_path / "bridge.pem",
                "ledgers_path": tmp_path / "ledgers.json", "institutions_path": tmp_path / "institutions.json",
                "rates_path": tmp_path / "rates.json", "officers_path": tmp_path / "officers.json",
                "clear_out_path": tmp_path / "clear-out.json", "calendars_path": Path("packaged"),
                "compliance_path": DEMONSTRATION, "compliance_hash_key_path": hash_key,
            }
            | changes
        )  # fmt: skip
        clock = ManualClock(moment or datetime(2026, 11, 23, 5, tzinfo=UTC))
        # The commands sign by the clock that the service has, which here is not the wall's.
        monkeypatch.setattr(options, "RequestSigner", lambda key: RequestSigner(key, clock=clock))
        cny = FakeIsland("cny", balances={pair[0]: 10**9 for pair in ACCOUNTS.values()})
        aed = FakeIsland("aed", balances={pair[1]: 10**9 for pair in ACCOUNTS.values()})
        authoriser = FakeAuthoriser(PrivateKey.generate(), clock=clock)
        outside = Outside({"cny": cny, "aed": aed}, authoriser, lambda: None)
        server = make_server(
            create(settings, connect=lambda *_: outside, clock=clock), host="127.0.0.1", port=port, log_level="warning"
        )
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        servers.append((server, thread))
        deadline = time.monotonic() + 20
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        return Running(url, clock, tmp_path, cny)

    yield run
    for server, thread in servers:
        server.should_exit = True
        thread.join(15)


def test_a_settlement_waits_for_its_window_and_the_api_says_when(start: Callable[..., Running]) -> None:
    service = start(moment=datetime(2026, 11, 23, 2, tzinfo=UTC))
    found = service.submit()
    with service.client("bank-a") as client, SettlementClient(service.url) as anybody:
        when = anybody.when(["AED", "CNY", "CNY"])
        assert (when.settles_at, when.value_date) == (datetime(2026, 11, 23, 4, tzinfo=UTC), date(2026, 11, 23))
        assert when.calendars_sha256 == anybody.calendars().sha256
        plan = client.settlement_plan(found.settlement)
        assert (plan.window_from, plan.events) == (when.settles_at, [])
        time.sleep(0.8)
        assert client.settlement(found.settlement).state is SettlementState.RECEIVED
        service.clock.advance(timedelta(hours=2))
        service.wait(found, SettlementState.SETTLED)
        assert [event.event for event in client.settlement_plan(found.settlement).events] == ["opened"]
    with service.client("bridge") as bridge, pytest.raises(ProblemResponse) as nothing:
        bridge.settlement_plan(new_uuid7())
    assert nothing.value.status == 404


AFTER_HOURS = "when?currencies=CNY&at=2026-11-23T10:00:00Z&value_date=2026-11-23"
QUESTIONS = [
    ("when?currencies=CNY,XXX", "calendar-unknown"),
    ("when?currencies=CNY,GBP", "calendar-unknown"),
    ("when?currencies=CNY&value_date=2026-11-20", "value-date-past"),
    ("when?currencies=CNY&value_date=2030-11-20", "value-date-too-far"),
    ("when?currencies=CNY&value_date=2026-11-28&rule=none", "value-date-not-business-day"),
    (AFTER_HOURS + "&missed_cut_off=refuse", "cut-off-missed"),
    ("when?currencies=CNY&at=9999-12-31T23:59:59Z", "calendar-not-covered"),
    ("when?currencies=USD&at=0001-01-01T00:00:00Z", "calendar-not-covered"),
    ("when?currencies=CNY&at=2026-11-23T10:00:00", "validation-failed"),
    ("when?currencies=CNY&lag_days=11", "validation-failed"),
    ("when", "validation-failed"),
    ("when?currencies=" + ",".join(["CNY"] * 17), "validation-failed"),
    ("hours?currency=CNY&first=2030-01-01", "calendar-not-covered"),
    ("hours?currency=CNY&first=9999-12-31&days=62", "calendar-not-covered"),
    ("overlap?currencies=CNY,AED&first=9999-12-31&days=62", "calendar-not-covered"),
    ("overlap?currencies=CNY&first=0001-01-01", "calendar-not-covered"),
    ("overlap?currencies=CNY&days=63", "validation-failed"),
]


def test_what_cannot_be_answered_is_one_clear_problem(start: Callable[..., Running]) -> None:
    service = start()
    answers = []
    with httpx.Client(trust_env=False) as client:
        for query, _ in QUESTIONS:
            found = client.get(f"{service.url}/v1/calendars/{query}")
            answers.append((query, found.json().get("refusal") if found.status_code == 422 else found.text))
    assert answers == QUESTIONS


def test_two_officers_release_a_case_and_the_queue_shows_it(start: Callable[..., Running]) -> None:
    service = start()
    found = service.submit(data=PERSON)
    shown = ids.show("stl", found.settlement)
    assert "0 of 2" in service.cli("compliance", "queue", key="li")
    (waiting,) = json.loads(service.cli("compliance", "queue", "--json", key="bridge"))
    assert waiting["parties"]["debtor_name"] == "Ivo Qwertz"
    service.cli("compliance", "approve", shown, "--reason", "passport seen", key="li")
    service.cli("compliance", "approve", shown, "--reason", "passport seen", key="li")
    assert "approved, 2 of 2" in service.cli("compliance", "approve", shown, "--reason", "agreed", key="chen")
    service.wait(found, SettlementState.SETTLED)
    decisions = json.loads(service.cli("compliance", "decisions", "--settlement", shown, "--json", key="li"))
    assert [item["verdict"] for item in decisions] == ["review", "approve", "approve"]
    assert "Nothing waits" in service.cli("compliance", "queue", key="chen")
    quota = service.cli("compliance", "quota", "--resident-id", "P 123-4567", key="li")
    assert "49,900.00" in quota


def test_a_rejection_ends_the_settlement_for_its_parties_to_see(start: Callable[..., Running]) -> None:
    service = start()
    found = service.submit(data=PERSON)
    shown = ids.show("stl", found.settlement)
    service.cli("compliance", "reject", shown, "--reason", "no answer", key="chen")
    ended = service.wait(found, SettlementState.CANCELLED)
    assert (ended.reason, ended.detail) == ("compliance-refused", "rejected by a compliance officer")
    assert service.cny.balance(12) == 10**9
    service.cli("compliance", "approve", shown, "--reason", "changed my mind", key="chen", code=2)


def test_only_officers_decide_and_officers_do_nothing_else(start: Callable[..., Running]) -> None:
    service = start()
    found = service.submit(data=PERSON)
    for name in ("bank-a", "bridge"):
        with service.client(name) as client, pytest.raises(ProblemResponse) as refused:
            client.approve_case(found.settlement, reason="let it go")
        assert refused.value.refusal == "not-permitted"
    with service.client("bank-a") as client:
        for call in (
            lambda: list(client.compliance_cases()),
            lambda: list(client.compliance_decisions()),
            lambda: client.quotas(country="CN", resident_id="P1234567"),
            lambda: client.uncleared("CNY"),
            lambda: client.propose_clear_out("CNY"),
        ):
            with pytest.raises(ProblemResponse) as refused:
                call()
            assert refused.value.refusal == "not-permitted"
    with service.client("li") as officer:
        for call in (lambda: officer.settlement(found.settlement), lambda: officer.propose_clear_out("CNY")):
            with pytest.raises(ProblemResponse) as refused:
                call()
            assert refused.value.refusal == "not-permitted"
        with pytest.raises(ProblemResponse) as nothing:
            officer.approve_case(new_uuid7(), reason="x")
        assert nothing.value.refusal == "compliance-case-not-found"


def test_the_days_clear_out_from_the_terminal(start: Callable[..., Running]) -> None:
    service = start()
    service.wait(service.submit(), SettlementState.SETTLED)
    assert "710.00" in service.cli("calendar", "uncleared", "CNY", key="bridge", code=1)
    proposed = json.loads(service.cli("calendar", "clear-out", "CNY", "--json", key="bridge"))
    assert [line["amount_minor"] for line in proposed["lines"]] == ["71000"]
    assert service.cny.balance(12) == 10**9 + 71_000
    for _ in range(2):
        assert "Approved by BRDGAEAD" in service.cli("calendar", "approve", proposed["clear_out"], key="bridge")
    deadline = time.monotonic() + 30
    with service.client("bridge") as bridge:  # the money is there before the engine has written down that it is
        while service.cny.balance(12) != 10**9 or any(item.uncleared_minor for item in bridge.uncleared("CNY").items):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    service.cli("calendar", "uncleared", "CNY", key="bridge")


def test_the_calendar_commands_read_well(start: Callable[..., Running]) -> None:
    service = start()
    assert "2026-11-24 04:00Z" in service.cli("calendar", "when", "CNY", "AED", "--at", "2026-11-23T20:00:00Z")
    assert "Thanksgiving Day" in service.cli("calendar", "overlap", "USD", "CNY", "--from", "2026-11-26", "--days", "1")
    hours = json.loads(service.cli("calendar", "hours", "AED", "--from", "2026-11-27", "--days", "2", "--json"))
    assert [item["is_open"] for item in hours] == [True, False]
    assert (
        "value-date-past"
        in CliRunner()
        .invoke(cli, ["calendar", "when", "CNY", "--value-date", "2026-11-20", "--url", service.url])
        .output
    )


def test_without_the_settings_both_are_off_and_say_so(start: Callable[..., Running]) -> None:
    service = start(moment=datetime(2026, 11, 22, 2, tzinfo=UTC), calendars_path=None, compliance_path=None)
    service.wait(service.submit(data=PERSON), SettlementState.SETTLED)  # a Sunday night, and a listed name
    assert httpx.get(f"{service.url}/v1/calendars", trust_env=False).json()["refusal"] == "calendars-off"
    with service.client("li") as officer, pytest.raises(ProblemResponse) as refused:
        list(officer.compliance_cases())
    assert refused.value.refusal == "compliance-off"
