"""Goal: what happens is told in order, at least once, to whom it should be and nowhere else, and telling ends.
Method: the use cases on a real PostgreSQL, a real HTTP receiver on loopback (slow, failing, redirecting, huge), a
resolver that the test controls.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import UUID

import pytest

from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.errors import ProblemError
from tests.wallet_bank import Bank
from wallet.domain.events import Event, verify_webhook
from wallet.store.payments import find_payment
from wallet.usecases import events
from wallet.usecases.events import Hooks
from wallet.usecases.pay import pay_one
from wallet.webhook_sender import WebhookSender


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[Bank]:
    database = Database(fresh_database("wallet"), application_name="test")
    yield Bank(database)
    database.close()


class Receiver:
    """Answers as `status`, or oddly as `manner`; keeps what came."""

    def __init__(self) -> None:
        self.status, self.manner = 204, ""
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.got.append((self.path, dict(self.headers), body))
                if receiver.manner == "slow":
                    time.sleep(3)
                self.send_response(receiver.status)
                if receiver.manner == "redirect":
                    self.send_header("location", "/elsewhere")
                self.end_headers()
                try:
                    if receiver.manner == "huge":
                        for _ in range(1_000):
                            self.wfile.write(b"x" * 65_536)
                    while receiver.manner == "drip":
                        self.wfile.write(b"x")
                        time.sleep(0.05)
                except OSError:
                    pass

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://hooks.test:{self.server.server_address[1]}/in"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def hooks(*, sandbox: bool = True, addresses: list[list[str]] | None = None, seconds_max: float = 20) -> Hooks:
    answers = iter(addresses or [])
    sender = WebhookSender(
        is_sandbox=sandbox, resolver=lambda host, port: next(answers, ["127.0.0.1"]), seconds_max=seconds_max
    )
    return Hooks(PrivateKey.generate(), sender)


def endpoint(bank: Bank, hook: Hooks, url: str, types: tuple[str, ...] = ()) -> UUID:
    made = bank.new_id()
    events.create_endpoint(bank.context, hook, made, client="channel", url=url, types=types)
    return made


def tell(bank: Bank, hook: Hooks) -> None:
    """One round of both passes."""
    events.follow(bank.context)
    events.tell(bank.context, hook)


def feed(bank: Bank) -> list[Event]:
    while events.follow_ledger(bank.context):
        pass
    events.number_events(bank.context)
    return events.page(bank.context, after=0, types=(), limit=1000)


def pay(bank: Bank, amount: int = 10, funds: int = 1000) -> UUID:
    payer, payee = bank.holder(funds=funds), bank.holder()
    try:
        return pay_one(bank.context, bank.instruction(payer, payee.account, amount)).id
    except ProblemError:
        return payer.wallet.id


def test_a_payment_tells_payer_and_payee_once(bank: Bank) -> None:
    payment = pay(bank)
    found = [row for row in feed(bank) if row.subject == f"trf_{payment}"]
    assert [row.type for row in found] == ["payment.final", "money.received"]
    assert found[0].wallet_id != found[1].wallet_id
    for _ in range(3):
        events.follow_ledger(bank.context)
    assert [row for row in feed(bank) if row.subject == f"trf_{payment}"] == found
    positions = [row.position for row in feed(bank)]
    assert positions == list(range(1, len(positions) + 1))


def test_refused_payment_tells_why(bank: Bank) -> None:
    pay(bank, 10, funds=5)
    assert [row.data for row in feed(bank) if row.type == "payment.refused"] == [{"refusal": "insufficient-funds"}]


def test_money_from_elsewhere_is_found_in_the_bookings(bank: Bank) -> None:
    payer, payee = bank.holder(funds=100), bank.holder()
    token = bank.instruction(payer, payee.account, 7)
    bank.ledger.submit_signed([token])  # not through this service
    found = [row for row in feed(bank) if row.type == "money.received"]
    assert [(row.wallet_id, row.data["amount_minor"]) for row in found] == [(payee.wallet.id, "7")]


def test_payment_that_is_booked_but_not_recorded_waits_for_its_request_then_is_told_and_final(bank: Bank) -> None:
    payer, payee = bank.holder(funds=100), bank.holder()
    feed(bank)
    bank.ledger.lose_answers = 1
    with pytest.raises(ProblemError, match="outcome-unknown"):
        pay_one(bank.context, bank.instruction(payer, payee.account, 7))
    other = pay(bank)  # booked later: it is not told before the other
    assert [row for row in feed(bank) if row.type == "payment.final"] == []
    bank.clock.advance(events.UNDER_WAY)
    told = [row for row in feed(bank) if row.type == "payment.final"]
    assert len(told) == 2
    assert told[1].subject == f"trf_{other}"
    with bank.context.database.transaction(isolation="READ COMMITTED") as connection:
        payment = find_payment(connection, UUID(told[0].subject.removeprefix("trf_")))
    assert payment is not None
    assert (payment.state, payment.amount_minor, payment.seq is not None) == ("final", 7, True)


def test_reader_who_goes_on_from_his_place_misses_nothing_while_many_write(bank: Bank) -> None:
    pairs = [(bank.holder(funds=1000), bank.holder()) for _ in range(4)]
    tokens = [bank.instruction(payer, payee.account, 1) for payer, payee in pairs for _ in range(10)]
    seen: list[int] = []
    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(pay_one, bank.context, token) for token in tokens]
        while not all(item.done() for item in writing):
            events.follow_ledger(bank.context)
            seen += [
                row.position for row in events.page(bank.context, after=seen[-1] if seen else 0, types=(), limit=7)
            ]
    feed(bank)
    while rows := events.page(bank.context, after=seen[-1] if seen else 0, types=(), limit=100):
        seen += [row.position for row in rows]
    assert seen == list(range(1, len(seen) + 1))
    assert sum(row.type == "payment.final" for row in feed(bank)) == len(tokens)


def test_webhook_arrives_signed_and_thin_and_once(bank: Bank, receiver: Receiver) -> None:
    hook = hooks()
    made = endpoint(bank, hook, receiver.url, ("payment.final",))
    payment = pay(bank)
    for _ in range(4):
        tell(bank, hook)
    [(path, headers, body)] = receiver.got
    assert path == "/in"
    message_id = verify_webhook(headers, body, keys=[hook.key.public], now=bank.clock())
    content = json.loads(body)
    assert (content["id"], content["type"]) == (message_id, "payment.final")
    assert content["data"]["subject"] == f"trf_{payment}"
    [row] = events.deliveries(bank.context, made, client="channel", state=None, after=0, limit=10)
    assert (row.state, row.attempts, row.last_status) == ("delivered", 1, 204)


@pytest.mark.parametrize(
    ("status", "manner", "says"),
    [
        (500, "", "HTTP 500"),
        (302, "redirect", "HTTP 302"),
        (200, "slow", "no answer in time"),
        (200, "drip", "no answer in time"),
    ],
)
def test_failing_receiver_is_tried_again_by_the_schedule_then_dead_then_replayed(
    bank: Bank, receiver: Receiver, status: int, manner: str, says: str
) -> None:
    hook = hooks(seconds_max=0.7 if says == "no answer in time" else 20)
    made = endpoint(bank, hook, receiver.url, ("payment.final",))
    pay(bank)
    receiver.status, receiver.manner = status, manner
    tries = 10 if not manner else 1
    for _ in range(tries):
        tell(bank, hook)
        bank.clock.advance(timedelta(hours=29))
        events.enable_endpoint(bank.context, made, client="channel", is_enabled=True)  # five days pass on the way
    [row] = events.deliveries(bank.context, made, client="channel", state=None, after=0, limit=10)
    assert row.last_error == says
    assert {path for path, _, _ in receiver.got} == {"/in"}  # no redirect was followed
    if not manner:
        assert (row.state, row.attempts) == ("dead", 10)
        receiver.status = 200
        events.enable_endpoint(bank.context, made, client="channel", is_enabled=True)
        replay = bank.new_id()
        arguments = {"client": "channel", "event_ids": [row.event_id], "since": None, "until": None}
        assert events.replay(bank.context, replay, made, **arguments) == 1  # type: ignore[arg-type]
        assert events.replay(bank.context, replay, made, **arguments) == 1  # type: ignore[arg-type]
        events.deliver(bank.context, hook)
        [row] = events.deliveries(bank.context, made, client="channel", state=None, after=0, limit=10)
        assert row.state == "delivered"


def test_huge_answer_is_cut_off(bank: Bank, receiver: Receiver) -> None:
    receiver.status, receiver.manner = 200, "huge"
    answer = hooks().sender.send(receiver.url, headers={}, body=b"{}")
    assert answer.status == 200
    assert answer.error == "the answer is too large"


def test_endpoint_that_is_gone_or_fails_for_days_is_disabled_and_later_told_what_it_missed(
    bank: Bank, receiver: Receiver
) -> None:
    hook = hooks()
    made = endpoint(bank, hook, receiver.url, ("payment.final",))
    receiver.status = 410
    pay(bank)
    tell(bank, hook)
    assert events.find_endpoint(bank.context, made, client="channel").disabled_for == "gone"
    pay(bank)
    tell(bank, hook)
    assert len(receiver.got) == 1
    receiver.status = 200
    events.enable_endpoint(bank.context, made, client="channel", is_enabled=True)
    bank.clock.advance(timedelta(minutes=1))
    tell(bank, hook)
    assert len(receiver.got) == 3
    with pytest.raises(ProblemError, match="endpoint-not-found"):
        events.find_endpoint(bank.context, made, client="operator")


def test_name_that_is_rebound_to_an_inner_address_is_not_followed(receiver: Receiver) -> None:
    """The first answer is checked and connected to; a second is never asked for."""
    asked = []

    def resolver(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) > 1 else ["8.8.8.8", "169.254.169.254"]

    sender = WebhookSender(is_sandbox=False, resolver=resolver, seconds_max=0.7)
    answer = sender.send(receiver.url.replace("http:", "https:"), headers={}, body=b"{}")
    assert (answer.status, answer.error) == (0, "the name leads to an address that is not public")
    assert asked == ["hooks.test"]
    for inner in ("127.0.0.1", "::ffff:127.0.0.1", "10.0.0.1", "fe80::1"):
        guarded = WebhookSender(is_sandbox=False, resolver=lambda host, port, inner=inner: [inner], seconds_max=0.7)
        assert guarded.send("https://hooks.test/", headers={}, body=b"{}").status == 0
    assert receiver.got == []


def test_plain_http_is_for_the_sandbox_alone(bank: Bank, receiver: Receiver) -> None:
    with pytest.raises(ProblemError, match="endpoint-refused"):
        endpoint(bank, hooks(sandbox=False), receiver.url)
    assert hooks(sandbox=False).sender.send(receiver.url, headers={}, body=b"{}").error == (
        "an address begins with https://"
    )
