"""Goal: the queue, limits and runs from outside: the operator previews and starts, institutions see their own only.
Method: the real app on a socket with its database and engine; the typed client and the command line speak to it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from kernel import ids
from kernel.client import ProblemResponse
from kernel.money import format_minor
from settlement.__main__ import app
from settlement.contract import SettlementState
from settlement.contract.multileg import LegRequest
from settlement.domain.instructions import Priority
from settlement.domain.liquidity.model import LimitKind
from tests.api.test_settlement_api import (
    AED,
    BANK_A,
    BANK_B,
    BANK_C,
    BRIDGE,
    START,
    Running,
    instruction,
    pacs,
    service,
    today,
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
        assert bank.settlement(netting.settlement).legs == netting.legs and len(netting.legs) == 2
        bridge.wait_for_batch(netting.batch, timeout_seconds=30)
        assert (service.cny.balance(11), service.aed.balance(21)) == (before[0] - 6_000, before[1] + 3_073)
        seen = list(bank.run_instructions(view.run))
        assert [item.stage is None for item in seen] == [False, False, True]
        assert list(stranger.run_instructions(view.run)) == []
        assert [item.settlement for item in bridge.run_instructions(view.run, is_taken=False)] == [queued[2].settlement]
        why = bridge.why_queued(queued[2].settlement)
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


def test_nobody_but_the_operator_reads_what_another_institution_has(service: Running) -> None:
    balance, limit, asked_minor = service.aed.balance(22), 123_456, 7 * 10**14
    legs = [
        LegRequest(ledger="cny-ledger", payer=BANK_A, payee=BANK_B, amount_minor=1, currency="CNY"),
        LegRequest(ledger="aed-ledger", payer=BANK_B, payee=BANK_A, amount_minor=asked_minor, currency="AED"),
    ]
    with service.client(BRIDGE) as bridge, service.client(BANK_A) as probe, service.client(BANK_B) as other:
        other.set_limit(
            LimitKind.BILATERAL, participant=BANK_B, counterparty=BANK_A, currency="AED", amount_minor=limit,
            valid_from=today(),
        )  # fmt: skip
        asked = probe.submit_settlement(legs, uetr=uuid4(), value_date=today()).settlement
        view = bridge.preview_run()
        whole = bridge.why_queued(asked)
        secrets = {format_minor(amount, AED) for amount in (balance, limit, asked_minor - balance, asked_minor - limit)}
        assert all(secret in whole.sentence for secret in secrets) and BANK_B in whole.sentence
        assert {(need.participant, need.kind, need.amount_minor) for need in whole.needs} == {
            (BANK_B, "liquidity", asked_minor - balance), (BANK_B, "bilateral", asked_minor - limit),
        }  # fmt: skip
        assert [item.sentence for item in bridge.run_instructions(view.run)] == [whole.sentence]

        asked_of = probe.why_queued(asked)
        expected = f"Nothing is lacking on the side of {BANK_A}; whether the others can pay is not shown."
        assert (asked_of.sentence, asked_of.needs) == (expected, [])
        # What would settle is a preview's: with it, amounts tried one after another would find what others have.
        with pytest.raises(ProblemResponse) as previewed:
            list(probe.run_instructions(view.run))
        assert previewed.value.refusal == "liquidity-run-not-found"
        assert probe.limits() == []
        told = [
            probe.settlement(asked).model_dump_json(),
            *(item.model_dump_json() for item in probe.in_doubt(received=True)),
            *(item.model_dump_json() for item in probe.queue()),
        ]
        amounts = secrets | {str(amount) for amount in (balance, limit, asked_minor - balance, asked_minor - limit)}
        assert len(told) == 3 and not [(text, amount) for text in told for amount in amounts if amount in text]

        for call in (
            lambda: probe.run(view.run),
            lambda: probe.run_picture(view.run),
            lambda: probe.why_queued(asked, method="overtaking"),
        ):
            with pytest.raises(ProblemResponse) as forbidden:
                call()
            assert forbidden.value.status == 403
        assert bridge.why_queued(asked, method="overtaking").needs == whole.needs

        # The one that lacks it reads its own lack, and what the operator reads of it.
        own = other.why_queued(asked)
        assert own.needs == whole.needs and BANK_B in own.sentence
        # Once a run has begun its parties read of it, the others' without name or amount.
        others = [
            LegRequest(ledger="cny-ledger", payer=BANK_C, payee=BANK_B, amount_minor=1, currency="CNY"),
            LegRequest(ledger="aed-ledger", payer=BANK_C, payee=BANK_A, amount_minor=1, currency="AED"),
        ]
        bridge.submit_settlement(others, uetr=uuid4(), value_date=today())
        begun = bridge.start_run(bridge.preview_run().run)
        of_probe = {item.settlement: item for item in probe.run_instructions(begun.run)}
        of_other = {item.settlement: item for item in other.run_instructions(begun.run)}
        assert len(of_probe) == len(of_other) == 2
        assert of_probe[asked].sentence == "It waits for liquidity of another participant."
        assert not of_probe[asked].needs and of_other[asked].needs == whole.needs


def test_a_party_of_a_netting_settlement_reads_only_the_legs_that_touch_it(service: Running) -> None:
    lines = instruction(1, 10_000), instruction(2, 4_000, debtor=BANK_C, creditor=BANK_B)
    with service.client(BRIDGE) as bridge, service.client(BANK_A) as bank:
        bridge.submit_batch(pacs(*lines), file_format="pacs.009")
        done = bridge.wait_for_run(bridge.start_run(bridge.preview_run().run).run, timeout_seconds=30)
        assert done.netting is not None
        whole, seen = bridge.settlement(done.netting), bank.settlement(done.netting)
        assert {party for leg in whole.legs for party in (leg.payer, leg.payee)} == {BANK_A, BANK_B, BANK_C}
        assert seen.legs == [leg for leg in whole.legs if BANK_A in (leg.payer, leg.payee)]
        assert 0 < len(seen.legs) < len(whole.legs)


def test_an_institution_that_lacks_something_too_reads_its_own_part_alone(service: Running) -> None:
    large = instruction(1, START * 4)
    with service.client(BRIDGE) as bridge, service.client(BANK_A) as bank:
        bank.submit_batch(pacs(instruction(2, 5), large), file_format="pacs.009")
        view = bridge.preview_run()
        item = next(found for found in bank.queue() if found.uetr == large.uetr)
        whole, seen = bridge.why_queued(item.settlement), bank.why_queued(item.settlement)
        assert {need.participant for need in whole.needs} == {BANK_A, BANK_B}
        assert seen.needs == [need for need in whole.needs if need.participant == BANK_A]
        assert "whether the others can pay is not shown" in seen.sentence and BANK_A in seen.sentence
        bridge.start_run(view.run)
        left = list(bank.run_instructions(view.run, is_taken=False))
        assert [found.needs for found in left] == [seen.needs]
        for sentence in (seen.sentence, left[0].sentence):
            assert BANK_B not in sentence and "AED" not in sentence


def test_who_may_set_limits_and_run(service: Running) -> None:
    with service.client(BRIDGE) as bridge, service.client(BANK_A) as bank, service.client(BANK_C) as stranger:
        assert list(bridge.queue()) == [] and bridge.preview_run().taken_count == 0
        cap = bridge.set_limit(LimitKind.CAP, participant=BANK_A, currency="CNY", amount_minor=500, valid_from=today())
        assert cap.is_operator and bank.limits() == [cap] and stranger.limits() == []
        with pytest.raises(ProblemResponse) as above:
            bank.set_limit(LimitKind.CAP, participant=BANK_A, currency="CNY", amount_minor=501, valid_from=today())
        assert (above.value.status, above.value.refusal) == (422, "liquidity-limit-above-cap")
        with pytest.raises(ProblemResponse) as foreign:
            bank.set_limit(LimitKind.CAP, participant=BANK_B, currency="CNY", amount_minor=1, valid_from=today())
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
