"""Goal: a webhook leaves for a public address or not at all, however the address is spelt, and ends in time, whatever
the name server or the receiver does.
Method: the sender with the machine's own resolver, which reads each old spelling of an address; sockets that misbehave.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from wallet.domain.events import AddressRefused, check_url
from wallet.webhook_sender import WebhookSender


@pytest.mark.parametrize(
    "host",
    ["2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1", "127.0.0.1.", "localhost", "LOCALHOST", "0", "10.1"],
)
def test_an_inner_address_in_any_spelling_is_not_connected_to(host: str) -> None:
    """They pass for names until they are resolved: what is connected to is what counts."""
    sender = WebhookSender(is_sandbox=False, seconds_max=5)
    answer = sender.send(f"https://{host}/", headers={}, body=b"{}")
    refusals = ("the name leads to an address that is not public", "ConnectError: no connection or no HTTP answer")
    assert answer.status == 0
    assert answer.error in refusals[: 2 if host.endswith(".") else 1]


@pytest.mark.parametrize(
    "host",
    [
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::127.0.0.1]",
        "[64:ff9b:1::a00:1]",
        "[2002:7f00:1::]",
        "[2001:0:1::1]",
        "[::127.0.0.1]",
        "[fe80::1%25eth0]",
        "[fc00::1]",
        "bank.example:0",
        "bank.example:-1",
        "[::1",
    ],
)
def test_such_an_address_is_no_endpoint(host: str) -> None:
    with pytest.raises(AddressRefused):
        check_url(f"https://{host}/", is_sandbox=False)


def test_a_name_server_that_does_not_answer_holds_nobody_up() -> None:
    asleep = threading.Event()

    def resolver(host: str, port: int) -> list[str]:
        asleep.wait(30)
        return ["127.0.0.1"]

    sender = WebhookSender(is_sandbox=True, resolver=resolver, seconds_max=0.3)
    begun = time.monotonic()
    try:
        answer = sender.send("http://hooks.test/", headers={}, body=b"{}")
    finally:
        asleep.set()
    assert (answer.status, answer.error) == (0, "no answer in time")
    assert time.monotonic() - begun < 10


@pytest.fixture
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """Answers whatever is asked with the test's bytes, again and again."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                head, again = request.param
                connection.sendall(head)
                while True:
                    connection.sendall(again)
                    time.sleep(0.001)

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


@pytest.mark.parametrize(
    "port",
    [
        (b"HTTP/1.1 200 OK\r\n", b"x-more: " + b"y" * 60_000 + b"\r\n"),
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1;" + b"z" * 60_000 + b"\r\nx\r\n"),
        (b"", b"\x00" * 60_000),
    ],
    ids=["endless headers", "endless hints", "endless chunk extensions", "no HTTP"],
    indirect=True,
)
def test_an_answer_without_end_ends_in_time(port: int) -> None:
    sender = WebhookSender(is_sandbox=True, resolver=lambda host, port: ["127.0.0.1"], seconds_max=1)
    begun = time.monotonic()
    answer = sender.send(f"http://hooks.test:{port}/", headers={}, body=b"{}")
    assert not answer.is_success or answer.error
    assert time.monotonic() - begun < 10
