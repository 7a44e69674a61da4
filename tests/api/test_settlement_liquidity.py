"""Goal: the queue, limits and runs from outside: the operator previews and starts, institutions see their own only.
Method: the real app on a socket with its database and engine; the typed client and the command line speak to it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kernel import ids
from kernel.client import ProblemResponse
from settlement.__main__ import app
from settlement.contract import SettlementState
from settlement.domain.instructions import Priority
from settlement.domain.liquidity.model import LimitKind
from tests.api.test_settlement_api import (
    BANK_A,
    BANK_B,
    BANK_C,
    BRIDGE,
    START,
    TODAY,
    Running,
    instruction,
    pacs,
    service,
)

__all__ = ["service"]


@pytest.fixture(autouse=True)
def normal_instructions_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the service starts: its settings read the environment."""
    monkeypatch.setenv("JIAOZI_SETTLEMENT_QUEUED_PRIORITIES", "NORM")


def test_queued_instructions_settle_netted_and_the_one_too_large_knows_why(service: Running, tmp_path: Path) -> None:
    there, back = instruction(1, 10_000), instruction(2, 4_000, debtor=BANK_B, creditor=BANK_A)
    urgent, large = instruction(3, 7, priority=Priority.URGENT), instruction(4, START * 2)
    with service.client(BRIDGE) as bridge, service.client(BANK_A) as bank, service.client(BANK_C) as stranger:
        batch = bridge.submit_batch(pacs(there, back, urgent, large), file_format="pacs.009").batch
        deadline = time.monotonic() + 20
        while bridge.batch(batch).counts[SettlementState.SETTLED] < 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        queued = list(bank.queue())
        assert [item.uetr for item in queued] == [there.uetr, back.uetr, large.uetr]
        assert list(stranger.queue()) == [] and not bridge.queue_batch(batch).queued
        view = bridge.preview_run(idempotency_key="once")
        assert bridge.preview_run(idempotency_key="once") == view
        assert (view.taken_count, view.queue_count, view.needs_approval) == (2, 3, False)
        # 10,000 CNY against 5,123 AED, 4,000 against 2,050: net 6,000 CNY and 3,073 AED.
        assert [(flow.payer, flow.currency, flow.amount_minor) for flow in view.net] == [
            (BANK_B, "AED", 3_073), (BANK_A, "CNY", 6_000),
        ]  # fmt: skip
        before = service.cny.balance(11), service.aed.balance(21)
        done = bridge.wait_for_run(bridge.start_run(view.run).run, timeout_seconds=30)
        assert done.state == "settled" and done.netting is not None
        netting, one = bridge.settlement(done.netting), bank.settlement(queued[0].settlement)
        assert one.state is SettlementState.SETTLED and one.finality_at == netting.finality_at
        assert {leg.state.value for leg in one.legs} == {"netted"}
        bridge.wait_for_batch(netting.batch, timeout_seconds=30)
        assert (service.cny.balance(11), service.aed.balance(21)) == (before[0] - 6_000, before[1] + 3_073)
        seen = list(bank.run_instructions(view.run))
        assert [item.stage is None for item in seen] == [False, False, True]
        assert list(stranger.run_instructions(view.run)) == []
        assert [item.settlement for item in bridge.run_instructions(view.run, is_taken=False)] == [queued[2].settlement]
        why = bank.why_queued(queued[2].settlement)
        # Two amounts: A lacks CNY, and B the AED that the rate makes of it.
        lacking = {(need.participant, need.currency) for need in why.needs}
        assert why.is_worked_out and lacking == {(BANK_A, "CNY"), (BANK_B, "AED")}
        with pytest.raises(ProblemResponse) as hidden:
            stranger.why_queued(queued[2].settlement)
        assert hidden.value.refusal == "settlement-not-found"
        bank.release_from_queue(queued[2].settlement)
        bridge.wait_for_batch(batch, timeout_seconds=30)
        assert bank.settlement(queued[2].settlement).state is SettlementState.CANCELLED
    key = tmp_path / "cli.pem"
    service.keys[BRIDGE].save(key)
    shown = CliRunner().invoke(app, ["liquidity", "runs", "--json", "--client-key", str(key), "--url", service.url])
    assert json.loads(shown.output)[0]["state"] == "settled"


def test_who_may_set_limits_and_run(service: Running) -> None:
    today = TODAY
    with service.client(BRIDGE) as bridge, service.client(BANK_A) as bank, service.client(BANK_C) as stranger:
        assert list(bridge.queue()) == [] and bridge.preview_run().taken_count == 0
        cap = bridge.set_limit(LimitKind.CAP, participant=BANK_A, currency="CNY", amount_minor=500, valid_from=today)
        assert cap.is_operator and bank.limits() == [cap] and stranger.limits() == []
        with pytest.raises(ProblemResponse) as above:
            bank.set_limit(LimitKind.CAP, participant=BANK_A, currency="CNY", amount_minor=501, valid_from=today)
        assert (above.value.status, above.value.refusal) == (422, "liquidity-limit-above-cap")
        with pytest.raises(ProblemResponse) as foreign:
            bank.set_limit(LimitKind.CAP, participant=BANK_B, currency="CNY", amount_minor=1, valid_from=today)
        assert foreign.value.status == 403
        for call in (bank.preview_run, lambda: list(bank.runs())):
            with pytest.raises(ProblemResponse) as forbidden:
                call()
            assert forbidden.value.status == 403
        for call in (
            lambda: bridge.run(ids.new_uuid7()),
            lambda: bridge.start_run(ids.new_uuid7()),
            lambda: bank.why_queued(ids.new_uuid7()),
            lambda: bank.release_from_queue(ids.new_uuid7()),
        ):
            with pytest.raises(ProblemResponse) as missing:
                call()
            assert missing.value.status == 404


def test_the_command_line_shows_limits_and_previews(service: Running, tmp_path: Path) -> None:
    key = tmp_path / "cli.pem"
    service.keys[BRIDGE].save(key)
    runner = CliRunner()

    def call(*arguments: str) -> str:
        found = runner.invoke(app, ["liquidity", *arguments, "--client-key", str(key), "--url", service.url])
        assert found.exit_code == 0, found.output
        return found.output

    assert "lim_" in call("set-limit", "cap", BANK_A, "12.50", "--currency", "CNY")
    assert "12.50 CNY" in call("limits") and json.loads(call("limits", "--json"))[0]["amount_minor"] == "1250"
    assert "Nothing is queued" in call("queue")
    picture = tmp_path / "positions.svg"
    assert "0 of 0 would settle" in call("preview", "--picture", str(picture))
    assert picture.read_text().startswith("<svg")
    assert "previewed" in call("runs")
    empty = json.loads(call("preview", "--json"))["run"]
    refused = runner.invoke(app, ["liquidity", "run", empty, "--client-key", str(key), "--url", service.url])
    assert refused.exit_code == 2
