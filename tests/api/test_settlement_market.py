"""Goal: over the wire, quotes compete, an execution is the previewed best, settles whole or not at all, with evidence.

Method: the real app on a real socket with its real database, engine and market clockwork; ledgers and institutions are
the fakes that the product ships. The typed client and the command line speak to it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from typer.testing import CliRunner

from kernel import ids
from kernel.client import ProblemResponse
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.ids import ParticipantId
from kernel.money import Money
from kernel.server import make_server
from settlement.__main__ import app as cli
from settlement.api.app import Outside, create
from settlement.client import SettlementClient
from settlement.contract import SettlementState
from settlement.contract.market import ExecutionRequest, ExecutionView, OnExpiry, Wish
from settlement.domain.instructions import Instruction
from settlement.islands.authorisers import FakeAuthoriser
from settlement.islands.fake import FakeIsland
from settlement.iso20022.pacs009 import write_pacs009
from settlement.settings import SettlementSettings
from settlement.usecases.market import BATCH_LOCK_TIME
from tests.ledger_world import free_port
from tests.market_world import (
    AED,
    BRIDGE,
    CNY,
    P1,
    P2,
    P3,
    PAYEE,
    PAYER,
    START,
    Quotes,
    account,
    files,
    islands,
    new_keys,
    new_uetr,
)

RATES: list[dict[str, Any]] = [{"base": "CNY", "counter": "AED", "rate": "0.40", "provider": P3}]


@dataclass
class Running:
    url: str
    keys: dict[ParticipantId, PrivateKey]
    quotes: Quotes
    islands: dict[str, FakeIsland]
    authoriser: FakeAuthoriser
    directory: Path

    def client(self, participant: ParticipantId) -> SettlementClient:
        return SettlementClient(self.url, signer=RequestSigner(self.keys[participant]), timeout_seconds=20)

    def post(self, provider: ParticipantId, pair: str, **changes: Any) -> UUID:
        with self.client(provider) as client:
            return client.post_fx_quote(self.quotes.token(provider, pair, **changes)).quote

    def execute(self, **changes: Any) -> ExecutionView:
        with self.client(PAYER) as client:
            return client.execute(request(**changes))

    def wait(self, execution: ExecutionView, *states: SettlementState) -> ExecutionView:
        deadline = time.monotonic() + 20
        with self.client(PAYER) as client:
            while (found := client.execution(execution.settlement)).settlement_state not in states:
                assert time.monotonic() < deadline, found.settlement_state
                time.sleep(0.02)
        return found

    def moved(self, participant: ParticipantId) -> tuple[int, ...]:
        return tuple(
            self.islands[f"{code.lower()}-ledger"].balance(account(participant, code)) - START
            for code in ("CNY", "USD", "AED")
        )

    def cli(self, participant: ParticipantId, *arguments: str) -> tuple[int, str]:
        key = self.directory / f"{participant}.pem"
        if not key.exists():
            self.keys[participant].save(key)
        found = CliRunner().invoke(
            cli, ["fx", *arguments, "--client-key", str(key), "--url", self.url], env={"COLUMNS": "200"}
        )
        return found.exit_code, found.output


def wish(**changes: Any) -> dict[str, Any]:
    return {"payer": PAYER, "payee": PAYEE, "sell": "CNY", "buy": "AED", "given_minor": 71_000} | changes


def request(**changes: Any) -> ExecutionRequest:
    made = wish(uetr=new_uetr(), value_date=datetime.now(UTC).date(), on_expiry=OnExpiry.ABORT) | changes
    return ExecutionRequest(**made)


@pytest.fixture
def lock_seconds() -> int:
    """Longer than a busy machine takes for a settlement."""
    return 60


@pytest.fixture
def service(fresh_database: Callable[[str], str], tmp_path: Path, lock_seconds: int) -> Iterator[Running]:
    keys = new_keys()
    keys[BRIDGE].save(tmp_path / "bridge.pem")
    port = free_port()
    for name, content in files(keys, RATES).items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    settings = SettlementSettings(
        host="127.0.0.1",
        port=port,
        public_url=f"http://127.0.0.1:{port}",
        database_url=fresh_database("settlement"),
        data_dir=tmp_path / "data",
        participant=BRIDGE,
        signing_key_path=tmp_path / "bridge.pem",
        ledgers_path=tmp_path / "ledgers.json",
        institutions_path=tmp_path / "institutions.json",
        rates_path=tmp_path / "rates.json",
        fx_lock_seconds=lock_seconds,
    )
    fakes = islands()
    authoriser = FakeAuthoriser(PrivateKey.generate(), clock=lambda: datetime.now(UTC))
    app = create(settings, connect=lambda *_: Outside(fakes, authoriser, lambda: None))
    server = make_server(app, host="127.0.0.1", port=port, log_level="warning")
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    yield Running(settings.public_url, keys, Quotes(keys, lambda: datetime.now(UTC)), fakes, authoriser, tmp_path)
    server.should_exit = True
    thread.join(15)
    for island in fakes.values():
        island.check()


def test_providers_compete_and_the_best_way_settles_as_previewed(service: Running) -> None:
    service.post(P3, "CNY/AED", bid="0.50", offer="0.53")
    bridge = [
        service.post(P1, "USD/CNY", bid="7.00", offer="7.10"),
        service.post(P2, "USD/AED", bid="3.67", fee_ppm=100),
    ]
    with service.client(PAYER) as client:
        preview = client.preview_execution(Wish(**wish(least_received_minor=36_696)))
        assert preview.chosen == ["CNY", "USD", "AED"]
        assert [(way.path, way.received_minor) for way in preview.ways] == [
            (["CNY", "USD", "AED"], 36_696),
            (["CNY", "AED"], 35_500),
        ]
        assert "CNY-USD-AED gives AED 366.96 for CNY 710.00, AED 11.96 more than the next best, CNY-AED" in preview.why
        assert len(preview.live_quotes) == 3
        for way in preview.ways:
            for hop in way.hops:
                if hop.mid is not None and hop.spread_minor is not None:
                    costs = sum(Fraction(cost) for cost in (hop.spread_minor, hop.fee_minor, hop.rounding_minor))
                    assert hop.given_minor * Fraction(hop.mid) == hop.received_minor + costs
    made = service.execute(least_received_minor=36_696)
    done = service.wait(made, SettlementState.SETTLED)
    assert [fill.state for fill in done.fills] == ["consumed", "consumed"]
    assert done.searches[0].ways == preview.ways
    assert (service.moved(PAYER), service.moved(PAYEE)) == ((-71_000, 0, 0), (0, 0, 36_696))
    assert (service.moved(P1), service.moved(P2)) == ((71_000, -10_000, 0), (0, 10_000, -36_696))
    with service.client(P1) as provider, service.client(PAYER) as client:
        assert provider.fx_quote(bridge[0]).offer_used_minor == 10_000
        own = provider.execution(made.settlement)
        assert ([fill.provider for fill in own.fills], own.searches) == ([P1], [])
        assert len(client.settlement(made.settlement).legs) == 3
    with service.client(P2) as provider:
        assert [(item.currency, item.remainder_minor) for item in provider.fx_remainders()] == [("AED", "33/100")]
    with service.client(P3) as stranger, pytest.raises(ProblemResponse) as refused:
        stranger.execution(made.settlement)
    assert refused.value.refusal == "fx-execution-not-found"


def test_a_refused_leg_aborts_the_whole_chain_and_the_quotes_are_whole_again(service: Running) -> None:
    quotes = {P1: service.post(P1, "USD/CNY", offer="7.10"), P2: service.post(P2, "USD/AED", bid="3.67")}
    sent = request()
    service.authoriser.refuse.add(sent.uetr)
    with service.client(PAYER) as client:
        made = client.execute(sent)
        assert client.execute(sent).settlement == made.settlement
    done = service.wait(made, SettlementState.CANCELLED)
    assert [fill.state for fill in done.fills] == ["released", "released"]
    deadline = time.monotonic() + 30
    for provider, quote in quotes.items():
        with service.client(provider) as client:
            while (view := client.fx_quote(quote)).bid_used_minor + view.offer_used_minor:
                assert time.monotonic() < deadline
                time.sleep(0.05)
    assert service.moved(PAYER) == service.moved(P1) == service.moved(PAYEE) == (0, 0, 0)


def test_the_fixed_rate_is_the_fallback_where_no_quote_does_it(service: Running) -> None:
    made = service.execute()
    assert [(fill.quote, fill.provider, fill.received_minor) for fill in made.fills] == [(None, P3, 28_400)]
    assert made.searches[0].uses_fixed_rate
    service.wait(made, SettlementState.SETTLED)
    service.post(P1, "CNY/AED", bid="0.30")
    assert service.execute().received_minor == 21_300  # a live quote that can do it goes first


@pytest.mark.parametrize("lock_seconds", [1])
def test_a_silent_provider_costs_a_lock_and_no_money(service: Running) -> None:
    """The lock expires while the provider does not sign: the settlement is given up, everything returns."""
    quote = service.post(P1, "CNY/AED", bid="0.50")
    service.authoriser.unreachable.add(P1)
    done = service.wait(service.execute(on_expiry=OnExpiry.REQUOTE), SettlementState.CANCELLED)
    assert done.fills[0].state == "released"
    deadline = time.monotonic() + 30
    with service.client(P1) as client:
        while client.fx_quote(quote).bid_used_minor:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert service.moved(PAYER) == (0, 0, 0)


def test_the_book_and_quotes_are_shown_to_whom_they_concern(service: Running) -> None:
    first, second = service.post(P1, "CNY/AED", bid="0.50", offer="0.52"), service.post(P2, "AED/CNY", bid="1.90")
    with service.client(PAYER) as client, service.client(BRIDGE) as bridge, service.client(P1) as provider:
        view = client.order_book("CNY", "AED")
        assert [(level.quote, level.price) for level in view.bids] == [(first, "1/2")]
        assert [(level.quote, level.price) for level in view.offers] == [(first, "13/25"), (second, "10/19")]
        assert view.mid == "51/100"
        assert list(client.fx_quotes()) == []
        assert {item.quote for item in bridge.fx_quotes(live=True)} == {first, second}
        assert [item.quote for item in provider.fx_quotes()] == [first]
        with pytest.raises(ProblemResponse) as hidden:
            client.fx_quote(first)
        assert hidden.value.status == 404
        assert provider.withdraw_fx_quote(first).is_live is False
        assert provider.withdraw_fx_quote(first).withdrawn_at is not None
        assert list(provider.fx_quotes(live=True)) == []


BAD_ORDERS: list[tuple[dict[str, Any], str]] = [
    ({"payer": "ZZZZCNBJ"}, "participant-unknown"),
    ({"sell": "JPY"}, "currency-not-served"),
    ({"sell": "XXX"}, "currency-not-served"),
    ({"buy": "CNY"}, "fx-order-invalid"),
    ({"given_minor": "0"}, "fx-order-invalid"),
    ({"given_minor": "9223372036854775807"}, "fx-order-invalid"),
    ({"limit_rate": "0"}, "fx-order-invalid"),
    ({"limit_rate": "1e3"}, "validation-failed"),
    ({"received_minor": "5"}, "validation-failed"),
    ({"given_minor": None}, "validation-failed"),
    ({"given_minor": 71000}, "validation-failed"),
    ({"least_received_minor": "28401"}, "fx-limit-not-met"),
    ({"limit_rate": "0.4001"}, "fx-limit-not-met"),
    ({"buy": "USD"}, "fx-no-route"),
]


def test_a_bad_order_is_one_clear_problem_and_nothing_is_kept(service: Running) -> None:
    with httpx.Client(auth=RequestSigner(service.keys[BRIDGE]), trust_env=False) as client:
        for number, (changes, refusal) in enumerate(BAD_ORDERS):
            body = json.loads(request().model_dump_json()) | changes
            answer = client.post(f"{service.url}/v1/executions", json=body, headers={"idempotency-key": f"k{number}"})
            assert (answer.json()["refusal"], changes) == (refusal, changes), answer.text
            assert 400 <= answer.status_code < 500
    with service.client(BRIDGE) as bridge:
        assert list(bridge.executions()) == []


def test_an_execution_that_is_not_started_waits_for_the_desks_and_for_its_run(service: Running) -> None:
    service.post(P1, "CNY/AED", bid="0.50")
    made = service.execute(start=False)
    with service.client(P1) as provider, service.client(P2) as other, service.client(PAYER) as client:
        (found,) = provider.executions(locked=True)
        assert (found.settlement, found.settlement_state) == (made.settlement, SettlementState.RECEIVED)
        legs = provider.settlement(found.settlement).legs
        assert [(leg.payer, leg.payee, leg.amount_minor) for leg in legs] == [
            (PAYER, P1, 71_000),
            (P1, PAYEE, 35_500),
        ]
        assert list(other.executions()) == []
        client.run_batch(made.batch)
        service.wait(made, SettlementState.SETTLED)
        assert list(provider.executions(locked=True)) == []
        assert [item.is_locked for item in provider.executions()] == [False]


def test_a_batch_is_priced_by_its_creditors_own_quotes_and_else_by_the_fixed_rate(service: Running) -> None:
    def line(number: int, creditor: ParticipantId, amount: int) -> Instruction:
        return Instruction(
            f"INS{number}",
            f"E2E{number}",
            new_uetr(),
            PAYER,
            creditor,
            Money(amount, CNY),
            AED,
            None,
            datetime.now(UTC).date(),
        )

    service.post(P2, "CNY/AED", bid="0.60")  # better, and not asked: these are trades with P1 and P3
    quotes = [
        service.post(P1, "CNY/AED", bid="0.50", size=10_000),
        service.post(P1, "CNY/AED", bid="0.48", size=10_000),
    ]
    lines = [line(1, P1, 6_000), line(2, P1, 9_000), line(3, P1, 6_000), line(4, P3, 10_000)]
    content = write_pacs009(lines, message_id="M1", created_at=datetime.now(UTC))
    with service.client(PAYER) as client, service.client(P1) as provider:
        batch = client.submit_batch(content, file_format="pacs.009")
        found = list(client.settlements(batch.batch))
        # 6000 at 0.50; 4000 at 0.50 and 5000 at 0.48; 5000 are left, too few for the third; nobody but P3 for the last.
        assert [leg.amount_minor for item in found for leg in item.legs] == [
            *(6_000, 3_000),
            *(9_000, 4_400),
            *(6_000, 2_400),
            *(10_000, 4_000),
        ]
        assert [provider.fx_quote(quote).bid_used_minor for quote in quotes] == [10_000, 5_000]
        assert client.wait_for_batch(batch.batch).counts[SettlementState.SETTLED] == 4
        report = client.execution(found[1].settlement)
        assert [(fill.state, fill.given_minor) for fill in report.fills] == [("consumed", 4_000), ("consumed", 5_000)]
        assert report.lock_expires_at == report.created_at + BATCH_LOCK_TIME
    assert service.moved(P1) == (21_000, 0, -9_800)


def test_strangers_and_others_money(service: Running) -> None:
    with service.client(PAYEE) as client, pytest.raises(ProblemResponse) as refused:
        client.execute(request())
    assert refused.value.refusal == "submitter-not-party"
    with service.client(P1) as client, pytest.raises(ProblemResponse) as hidden:
        client.preview_execution(Wish(**wish()))
    assert hidden.value.refusal == "not-permitted"
    unsigned = httpx.get(f"{service.url}/v1/order-books/CNY/AED", trust_env=False)
    assert unsigned.status_code == 401


def test_the_command_line_quotes_shows_executes_and_reports(service: Running) -> None:
    quote = ["quote", "CNY/AED", "--provider", P1, "--bridge", BRIDGE]
    code, output = service.cli(P1, *quote, "--bid", "0.50", "--bid-size", "1000.00", "--json")
    assert code == 0, output
    made = json.loads(output)
    code, output = service.cli(P1, *quote, "--bid", "0.51", "--bid-size", "1000.00", "--amend", made["quote"])
    assert code == 0 and "rev. 2" in output, output
    assert "0.510000" in service.cli(PAYER, "book", "CNY/AED")[1]
    order = ["--payer", PAYER, "--payee", PAYEE, "--sell", "CNY", "--buy", "AED", "--give", "100.00"]
    code, output = service.cli(PAYER, "preview", *order)
    assert code == 0 and "the only way that can do the whole amount" in output, output
    code, output = service.cli(PAYER, "execute", *order, "--limit-rate", "0.52")
    assert code == 2 and "fx-limit-not-met" in output, output
    code, output = service.cli(PAYER, "execute", *order, "--limit-rate", "0.51", "--json")
    assert code == 0, output
    execution = ExecutionView.model_validate(json.loads(output))
    assert execution.received_minor == 5_100
    service.wait(execution, SettlementState.SETTLED)
    code, output = service.cli(PAYER, "report", ids.show("stl", execution.settlement))
    assert code == 0 and "consumed" in output and "AED 51.00" in output, output
    code, output = service.cli(PAYER, "execute", *order, "--hold", "--json")
    held = ExecutionView.model_validate(json.loads(output))
    assert (code, held.settlement_state) == (0, SettlementState.RECEIVED)
    code, output = service.cli(P1, "executions", "--locked", "--json")
    assert [item["settlement"] for item in json.loads(output)] == [ids.show("stl", held.settlement)]
    assert service.cli(P1, "executions")[0] == 0
    assert service.cli(P1, "withdraw", made["quote"])[0] == 0
    assert "withdrawn" in service.cli(P1, "quotes")[1]
    assert service.cli(P1, "remainders")[0] == 0
    code, output = service.cli(P1, *quote, "--bid", "abc", "--bid-size", "1.00")
    assert code == 2 and "bid" in output, output
