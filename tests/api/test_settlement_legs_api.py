"""Goal: n legs go in by the API and settle together; and an operator learns of each unended settlement why, what it
waits for and what resolves it, from the API and from the terminal.

Method: the real app of test_settlement_api on its real database and engine, with the fakes that the product ships.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from typer.testing import CliRunner

from kernel import ids
from kernel.client import ProblemResponse
from kernel.crypto.http_signatures import RequestSigner
from kernel.ids import ParticipantId
from settlement.__main__ import app
from settlement.client import SettlementClient
from settlement.contract import SettlementState, SettlementView
from settlement.contract.multileg import LegRequest
from tests.api.test_settlement_api import (
    BANK_A,
    BANK_B,
    BANK_C,
    BRIDGE,
    START,
    Running,
    instruction,
    pacs,
    service,
    shared,
    today,
)

__all__ = ["service", "shared"]


def leg(payer: ParticipantId, payee: ParticipantId, currency: str, amount: int, **changes: Any) -> LegRequest:
    values = {"ledger": f"{currency.lower()}-ledger", "payer": payer, "payee": payee, "currency": currency}
    return LegRequest(**(values | {"amount_minor": str(amount)} | changes))


CYCLE = [
    leg(BANK_A, BANK_B, "CNY", 500),
    leg(BANK_A, BANK_C, "CNY", 200),
    leg(BANK_B, BANK_C, "AED", 90),
    leg(BANK_C, BANK_A, "AED", 140),
    leg(BANK_C, BANK_B, "CNY", 30),
]


def ended(client: SettlementClient, view: SettlementView, *, seconds: float = 20) -> SettlementView:
    return waited(client, view, lambda found: found.ended_at is not None, seconds=seconds)


def waited(
    client: SettlementClient, view: SettlementView, done: Callable[[SettlementView], bool], *, seconds: float = 20
) -> SettlementView:
    deadline = time.monotonic() + seconds
    while not done(found := client.settlement(view.settlement)):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def test_a_netted_cycle_settles_whole_and_every_party_of_it_sees_it(service: Running) -> None:
    uetr = uuid4()
    with service.client(BANK_A) as first, service.client(BANK_C) as third:
        view = first.submit_settlement(CYCLE, uetr=uetr, value_date=today())
        assert first.submit_settlement(CYCLE, uetr=uetr, value_date=today()).settlement == view.settlement
        assert first.submit_settlement(CYCLE, uetr=uetr, value_date=today(), idempotency_key="k2").settlement == (
            view.settlement
        )
        done = ended(first, view)
        assert (done.state, done.explanation) == (SettlementState.SETTLED, None)
        assert [item.state for item in done.legs] == ["posted"] * 5
        assert third.settlement(view.settlement).settlement == view.settlement
    assert service.cny.balance(11) == START - 700
    assert (service.aed.balance(21), service.aed.balance(23)) == (START + 140, START - 50)


def test_one_leg_that_cannot_be_held_cancels_all(service: Running) -> None:
    legs = [*CYCLE[:4], leg(BANK_C, BANK_B, "CNY", START * 2)]
    with service.client(BANK_B) as client:
        done = ended(client, client.submit_settlement(legs, uetr=uuid4(), value_date=today()))
    assert (done.state, done.reason) == (SettlementState.CANCELLED, "leg-refused")
    assert service.cny.available(11) == START


@pytest.mark.parametrize(
    ("legs", "refusal"),
    [
        ([CYCLE[0], leg(BANK_B, ParticipantId("DDDDCNBJ"), "AED", 1)], "participant-unknown"),
        ([leg(BANK_B, BANK_C, "CNY", 1), leg(BANK_C, BANK_B, "AED", 1)], "submitter-not-party"),
        ([CYCLE[0], leg(BANK_B, BANK_A, "USD", 1)], "currency-not-served"),
        ([CYCLE[0], leg(BANK_B, BANK_A, "AED", 1, ledger="cny-ledger")], "currency-not-served"),
        ([CYCLE[0], leg(BANK_B, BANK_A, "XXX", 1)], "currency-not-served"),
        ([CYCLE[0], CYCLE[0]], "legs-invalid"),
        ([CYCLE[0], leg(BANK_B, BANK_A, "AED", 0)], "legs-invalid"),
        ([CYCLE[0], leg(BANK_B, BANK_B, "AED", 1)], "legs-invalid"),
    ],
)
def test_bad_legs_are_refused_whole(shared: Running, legs: list[LegRequest], refusal: str) -> None:
    with shared.client(BANK_A) as client, pytest.raises(ProblemResponse) as refused:
        client.submit_settlement(legs, uetr=uuid4(), value_date=today())
    assert refused.value.refusal == refusal


def test_a_uetr_is_used_once_and_a_key_for_one_content(service: Running) -> None:
    uetr = uuid4()
    with service.client(BANK_A) as client, service.client(BANK_B) as other, service.client(BRIDGE) as bridge:
        client.submit_settlement(CYCLE, uetr=uetr, value_date=today())
        for caller, key, refusal in (
            (client, str(uetr), "idempotency-key-reused"),
            (client, "k2", "batch-id-reused"),
            (other, "k1", "uetr-already-used"),
        ):
            with pytest.raises(ProblemResponse) as refused:
                caller.submit_settlement(CYCLE[:3], uetr=uetr, value_date=today(), idempotency_key=key)
            assert refused.value.refusal == refusal
        # The bridge may submit for others.
        legs = [leg(BANK_B, BANK_C, "CNY", 1), leg(BANK_C, BANK_B, "AED", 1)]
        assert ended(bridge, bridge.submit_settlement(legs, uetr=uuid4(), value_date=today())).decision == "commit"


@pytest.mark.parametrize(
    "body",
    [
        {"legs": []},
        {"legs": [CYCLE[0].model_dump(mode="json")] * 33},
        {"uetr": "8f0a6d1e-3b7c-7f52-9a51-0c6c8f0e7a11"},
        {"value_date": 20_000},
        {"value_date": "2026-13-01"},
        {"priority": "SOON"},
        {"more": 1},
    ],
    ids=str,
)
def test_a_body_of_another_shape_is_refused(shared: Running, body: dict[str, Any]) -> None:
    good = {
        "uetr": str(uuid4()),
        "value_date": today().isoformat(),
        "legs": [item.model_dump(mode="json") for item in CYCLE],
    }
    with httpx.Client(auth=RequestSigner(shared.keys[BANK_A]), trust_env=False) as client:
        answer = client.post(f"{shared.url}/v1/settlements", json=good | body, headers={"idempotency-key": "k"})
    assert (answer.status_code, answer.json()["refusal"]) == (422, "validation-failed")


# --- in doubt


def stuck(service: Running, client: SettlementClient) -> SettlementView:
    """A cycle that waits for the AED ledger, its CNY legs held."""
    service.aed.faults.down = True
    view = client.submit_settlement(CYCLE, uetr=uuid4(), value_date=today())
    return waited(client, view, lambda found: "did not answer" in found.waits_for)


def test_an_operator_reads_why_and_gives_it_up(service: Running) -> None:
    with service.client(BANK_A) as client, service.client(BRIDGE) as bridge:
        view = stuck(service, client)
        (found,) = bridge.in_doubt()
        assert "3 of 5 legs are held" in found.explanation.why
        assert {"ledger aed-ledger to hold leg 2", "ledger aed-ledger to hold leg 3"} <= set(
            found.explanation.waits_for
        )
        assert "the operator may give it up" in found.explanation.resolution
        assert not found.explanation.needs_person
        with pytest.raises(ProblemResponse) as refused:
            client.abort_settlement(view.settlement)
        assert refused.value.refusal == "not-permitted"
        bridge.abort_settlement(view.settlement)
        aborted = waited(bridge, view, lambda found: found.decision is not None)
        assert (aborted.decision, aborted.reason) == ("abort", "operator")
        said = aborted.explanation
        assert said is not None and "ABORT is in the decision log" in said.why
        assert "ledger aed-ledger to void leg 2" in said.waits_for
        with pytest.raises(ProblemResponse) as late:
            bridge.abort_settlement(view.settlement)
        assert late.value.refusal == "settlement-decided"
        service.aed.faults.down = False
        assert ended(bridge, view).state is SettlementState.CANCELLED
    assert service.cny.available(11) == START


def test_received_settlements_are_listed_on_request_with_what_they_wait_for(service: Running) -> None:
    service.authoriser.unreachable.add(BANK_A)
    with service.client(BANK_A) as client, service.client(BRIDGE) as bridge:
        first = client.submit_settlement(CYCLE, uetr=uuid4(), value_date=today())
        waited(client, first, lambda found: "AAAACNBJ" in found.waits_for)
        # Taken by no wave while the payer does not answer.
        client.submit_batch(pacs(instruction()), file_format="pacs.009")
        deadline = time.monotonic() + 30
        while len(every := list(bridge.in_doubt(received=True))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert {item.state for item in every} <= {SettlementState.PREPARED, SettlementState.RECEIVED}
        assert all(item.explanation.why and item.explanation.resolution for item in every)
        assert "AAAACNBJ to sign leg 0 on cny-ledger" in every[0].explanation.waits_for
        assert len(list(bridge.in_doubt())) <= len(every)
        service.authoriser.unreachable.clear()
        assert ended(client, first).decision == "commit"


def test_the_terminal_shows_explains_aborts_and_submits(service: Running, tmp_path: Path) -> None:
    pem = tmp_path / "operator.pem"
    service.keys[BRIDGE].save(pem)
    where = ["--client-key", str(pem), "--url", service.url]
    runner = CliRunner(env={"COLUMNS": "200"})
    assert "Nothing is in doubt" in runner.invoke(app, ["in-doubt", *where]).output
    with service.client(BANK_A) as client:
        view = stuck(service, client)
        shown = ids.show("stl", view.settlement)
        listed = runner.invoke(app, ["in-doubt", *where])
        assert (listed.exit_code, shown in listed.output) == (0, True)
        machine = json.loads(runner.invoke(app, ["in-doubt", "--json", *where]).output)
        assert machine[0]["explanation"]["waits_for"]
        said = runner.invoke(app, ["explain", shown, *where])
        assert said.exit_code == 0 and "3 of 5 legs are held" in said.output and "BBBBAEAD" in said.output
        assert runner.invoke(app, ["abort", shown, *where]).exit_code == 0
        service.aed.faults.down = False
        assert ended(client, view).reason == "operator"
    again = runner.invoke(app, ["abort", shown, *where])
    assert (again.exit_code, "settlement-decided" in again.output) == (2, True)
    file = tmp_path / "cycle.json"
    legs = [item.model_dump(mode="json") for item in CYCLE]
    file.write_text(json.dumps({"uetr": str(uuid4()), "value_date": today().isoformat(), "legs": legs}))
    sent = json.loads(runner.invoke(app, ["settle", str(file), "--json", *where]).output)
    assert len(sent["legs"]) == 5
    file.write_text(json.dumps({"uetr": "x", "value_date": today().isoformat(), "legs": legs}))
    bad = runner.invoke(app, ["settle", str(file), *where])
    assert (bad.exit_code, "uetr" in bad.output) == (2, True)
