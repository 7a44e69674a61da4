"""Goal: scheduled and standing payments over HTTP, by the client and from a terminal: made on their day and not before,
tried again for want of money until the day ends, cancelled in whole and in part.
Method: the app on a clock moved by hand with a fake ledger; what is due is made by the worker's own function.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

from kernel import ids
from kernel.clock import ManualClock, system_clock
from kernel.crypto.keys import PrivateKey
from tests.api.test_wallet_api import Service, open_wallet, service
from wallet.__main__ import app as cli
from wallet.cli import schedules as commands
from wallet.contract import WalletView
from wallet.contract.schedules import Frequency, Recurrence, ScheduledPaymentView
from wallet.domain.rules import WalletClass
from wallet.usecases.schedules import execute_due

__all__ = ["service"]
AMOUNT = 1_000


class Standing:
    """A daily order of three payments, which begins tomorrow."""

    def __init__(self, service: Service, *, deposit: int) -> None:
        self.service, self.id = service, ids.new_uuid7()
        app = service.http.app
        assert isinstance(app, FastAPI)
        self.clock = ManualClock(system_clock())
        service.ledger._clock = self.clock
        app.state.context = self.context = replace(app.state.context, clock=self.clock)
        self.payer: WalletView
        self.key: PrivateKey
        self.payer, self.key, _ = open_wallet(service, deposit=deposit)
        self.payee: WalletView = open_wallet(service, WalletClass.II)[0]
        today = self.clock().astimezone(self.context.time_zone).date()
        self.recurrence = Recurrence(frequency=Frequency.DAILY, first_on=today + timedelta(days=1))

    def signed(self, *, first: int = 0, count: int = 3, key: PrivateKey | None = None) -> list[str]:
        with self.service.client("channel") as client:
            return client.sign_schedule(
                client.schedule_dates(self.recurrence, first=first, count=count),
                schedule=self.id,
                key=key or self.key,
                ledger="cny",
                debit=self.payer.account or 0,
                credit=self.payee.account or 0,
                amount_minor=AMOUNT,
                currency="CNY",
            )

    def create(self, tokens: list[str]) -> None:
        with self.service.client("channel") as client:
            client.create_schedule(
                schedule=self.id, wallet=self.payer.wallet, recurrence=self.recurrence, instructions=tokens
            )

    def payments(self) -> list[ScheduledPaymentView]:
        with self.service.client("channel") as client:
            return list(client.scheduled_payments(self.id))

    def states(self) -> list[tuple[str, str | None]]:
        return [(item.state.value, item.refusal) for item in self.payments()]

    def received(self) -> int:
        return self.service.ledger.accounts[self.payee.account or 0].balance

    def due(self, number: int) -> int:
        """What the worker makes on the day of a payment, at the hour it is first tried."""
        moment = self.payments()[number].next_try_at
        assert moment is not None
        self.clock.advance(max(moment - self.clock(), timedelta(0)))
        return execute_due(self.context)


def test_each_payment_is_made_on_its_day_once(service: Service) -> None:
    order = Standing(service, deposit=10 * AMOUNT)
    tokens = order.signed()
    order.create(tokens)
    order.create(tokens)  # lost answer: the same again
    assert execute_due(order.context) == 0
    assert order.states() == [("waiting", None)] * 3
    for number in range(3):
        assert order.due(number) == 1
        assert execute_due(order.context) == 0
        assert order.received() == (number + 1) * AMOUNT
    assert order.states() == [("executed", None)] * 3
    with service.client("channel") as client:
        made = [item.payment for item in order.payments()]
        assert [client.get_payment(payment).state.value for payment in made] == ["final"] * 3
        client.prolong_schedule(order.id, first=3, instructions=order.signed(first=3, count=1))
        assert [view.schedule for view in client.schedules(order.payer.wallet)] == [order.id]
    assert order.due(3) == 1
    assert order.received() == 4 * AMOUNT


def test_without_money_it_is_tried_again_until_its_day_ends(service: Service) -> None:
    order = Standing(service, deposit=AMOUNT)
    order.create(order.signed())
    assert order.due(0) == 1
    assert order.due(1) == 0  # the second finds an empty wallet, and waits
    waiting = order.payments()[1]
    assert (waiting.state.value, waiting.refusal, waiting.attempts) == ("waiting", "insufficient-funds", 1)
    assert waiting.next_try_at is not None
    service.ledger.fund(order.payer.account or 0, AMOUNT)
    assert order.due(1) == 1
    assert order.due(2) == 0
    for _ in range(50):  # a day has an end
        if order.payments()[2].state.value != "waiting":
            break
        order.due(2)
    assert order.states() == [("executed", None), ("executed", None), ("refused", "insufficient-funds")]
    service.ledger.fund(order.payer.account or 0, AMOUNT)
    order.clock.advance(timedelta(days=2))
    assert execute_due(order.context) == 0
    assert order.received() == 2 * AMOUNT


def test_a_cancelled_payment_is_never_made(service: Service) -> None:
    order = Standing(service, deposit=10 * AMOUNT)
    order.create(order.signed())
    with service.client("channel") as client:
        client.cancel_scheduled_payment(order.id, 0)
        client.cancel_scheduled_payment(order.id, 0)
        assert order.states() == [("cancelled", None), ("waiting", None), ("waiting", None)]
        assert order.due(1) == 1
        assert service.refusal(lambda: client.cancel_scheduled_payment(order.id, 1))[0] == 409
        assert client.cancel_schedule(order.id).cancelled
        assert client.get_schedule(order.id).cancelled
        late = order.signed(first=3, count=1)
        refused = service.refusal(lambda: client.prolong_schedule(order.id, first=3, instructions=late))
        assert refused == (409, "schedule-ended")
    order.clock.advance(timedelta(days=5))
    assert execute_due(order.context) == 0
    assert order.states() == [("cancelled", None), ("executed", None), ("cancelled", None)]
    assert order.received() == AMOUNT


def test_refused_before_anything_is_kept(service: Service) -> None:
    order = Standing(service, deposit=AMOUNT)
    tokens = order.signed()
    with service.client("channel") as client:
        swapped = [tokens[1], tokens[0], tokens[2]]
        assert service.refusal(lambda: order.create(swapped)) == (422, "schedule-instruction-mismatch")
        assert service.refusal(lambda: client.get_schedule(order.id)) == (404, "schedule-not-found")
        order.create(tokens)
        stranger = ids.new_uuid7()
        assert service.refusal(lambda: client.cancel_schedule(stranger)) == (404, "schedule-not-found")
        other = order.recurrence.model_copy(update={"first_on": order.recurrence.first_on + timedelta(days=1)})
        order.recurrence = other
        assert service.refusal(lambda: order.create(tokens))[0] in (409, 422)


def test_from_a_terminal(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = Standing(service, deposit=10 * AMOUNT)
    monkeypatch.setattr(commands, "connect", lambda url, client_key: service.client("channel"))
    order.key.save(tmp_path / "device.pem")
    order.key.save(tmp_path / "channel.pem")

    def run(*arguments: str) -> Any:
        done = CliRunner().invoke(cli, ["schedule", *arguments, "--client-key", str(tmp_path / "channel.pem")])
        assert done.exit_code == 0, done.output
        return done.stdout

    made = run(
        "create",
        ids.show("wlt", order.payer.wallet),
        ids.show_account(order.payee.account or 0),
        "10.00",
        *("--on", order.recurrence.first_on.isoformat(), "--frequency", "daily", "--count", "2"),
        *("--device-key", str(tmp_path / "device.pem"), "--json"),
    )
    schedule = json.loads(made)["schedule"]
    order.id = ids.parse("sch", schedule)
    assert order.due(0) == 1
    run("cancel", schedule)
    shown = json.loads(run("show", schedule, "--json"))
    assert [item["state"] for item in shown] == ["executed", "cancelled"]
    assert schedule in run("list", ids.show("wlt", order.payer.wallet))
