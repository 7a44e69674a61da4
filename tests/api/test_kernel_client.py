"""Goal: the client repeats only what may be repeated, signs each attempt anew, and tells refusal from unknown outcome.

Method: httpx mock transports that fail a given number of times, and raw sockets that misbehave; both clients run the
same table.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from kernel import limits
from kernel.client import AsyncServiceClient, ProblemResponse, ServiceClient, ServiceUnreachable
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.errors import RequestRefusal, problem_document

Answer = httpx.Response | Exception
Call = Callable[..., Any]


def unavailable() -> httpx.Response:
    document = problem_document(RequestRefusal.SERVICE_UNAVAILABLE, 503, request_id="r-1", missing="3")
    return httpx.Response(503, json=document, headers={"content-type": "application/problem+json"})


def run(kind: str, answers: list[Answer], call: Call, **arguments: Any) -> tuple[Any, list[httpx.Request]]:
    """The result (or exception) of `call(client)` when the service answers so, and the requests it saw."""
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        answer = answers[min(len(seen), len(answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    transport = httpx.MockTransport(handler)
    try:
        if kind == "sync":
            with ServiceClient("http://x", transport=transport, sleep=lambda _: None, **arguments) as client:
                return call(client), seen

        async def main() -> Any:
            async with AsyncServiceClient("http://x", transport=transport, **arguments) as client:
                return await call(client)

        return asyncio.run(main()), seen
    except (ProblemResponse, ServiceUnreachable) as error:
        return error, seen


def post(idempotent: bool) -> Call:
    return lambda client: client.post("/v1/x", {"a": 1}, idempotent=idempotent, idempotency_key="k")


GET: Call = lambda client: client.get("/v1/x", query={"a": 1, "b": None})  # noqa: E731
OK = httpx.Response(200, json={"ok": True})
both = pytest.mark.parametrize("kind", ["sync", "async"])


@both
@pytest.mark.parametrize("failure", [httpx.ReadTimeout("x"), httpx.RemoteProtocolError("x"), unavailable()], ids=repr)
def test_only_what_may_be_repeated_is_repeated(kind: str, failure: Answer) -> None:
    assert run(kind, [failure, OK], GET)[0] == {"ok": True}
    result, seen = run(kind, [failure, OK], post(idempotent=True))
    assert result == {"ok": True} and len({request.content for request in seen}) == 1
    result, seen = run(kind, [failure, OK], post(idempotent=False))
    assert isinstance(result, ProblemResponse | ServiceUnreachable) and len(seen) == 1


@both
def test_connection_that_was_refused_is_tried_again_for_any_call(kind: str) -> None:
    assert run(kind, [httpx.ConnectError("x"), OK], post(idempotent=False))[0] == {"ok": True}


@both
def test_attempts_are_bounded(kind: str) -> None:
    result, seen = run(kind, [httpx.ReadTimeout("x")], GET, retries_max=2)
    assert isinstance(result, ServiceUnreachable) and len(seen) == 3


@both
def test_refusal_that_is_not_transient_is_not_repeated(kind: str) -> None:
    document = problem_document(RequestRefusal.NOT_PERMITTED, 403)
    refusal = httpx.Response(403, json=document, headers={"content-type": "application/problem+json"})
    result, seen = run(kind, [refusal], GET)
    assert (result.refusal, result.status, result.transient, len(seen)) == ("not-permitted", 403, False, 1)


@both
def test_problem_is_parsed_whole(kind: str) -> None:
    result, _ = run(kind, [unavailable()], GET, retries_max=0)
    assert (result.status, result.refusal, result.transient) == (503, "service-unavailable", True)
    assert (result.request_id, result.extra) == ("r-1", {"missing": "3"})


@both
@pytest.mark.parametrize(
    "body", [b"<html>", b'{"refusal":5,"transient":"x"}', b"[]", b"\xff", b'{"refusal":"a","refusal":"b"}']
)
def test_error_without_a_sound_problem_is_still_an_error(kind: str, body: bytes) -> None:
    answer = httpx.Response(502, content=body, headers={"content-type": "application/problem+json"})
    result, _ = run(kind, [answer], GET, retries_max=0)
    assert isinstance(result, ProblemResponse) and (result.status, result.refusal, result.transient) == (502, "", True)


@both
def test_answer_that_is_not_strict_json_or_too_large_is_an_unknown_outcome(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(run(kind, [httpx.Response(200, content=b'{"a":NaN}')], GET)[0], ServiceUnreachable)
    monkeypatch.setattr(limits, "RESPONSE_BYTES_MAX", 1_000)
    result, _ = run(kind, [httpx.Response(200, content=b" " * 1_001)], GET)
    assert isinstance(result, ServiceUnreachable) and "larger" in str(result)


@both
def test_every_attempt_is_signed_anew_over_the_same_body(kind: str) -> None:
    signer = RequestSigner(PrivateKey.generate())
    _, seen = run(kind, [unavailable(), unavailable(), OK], post(idempotent=True), auth=signer)
    assert len(seen) == 3
    assert len({request.headers["signature-input"] for request in seen}) == 3
    assert len({request.headers["content-digest"] for request in seen}) == 1


@both
def test_absent_query_members_are_left_out_and_redirects_are_not_followed(kind: str) -> None:
    redirect = httpx.Response(307, headers={"location": "http://attacker.example/"})
    result, seen = run(kind, [redirect], GET)
    assert isinstance(result, ProblemResponse) and str(seen[0].url) == "http://x/v1/x?a=1"


# --- hostile peers


class _Peer:
    """A raw socket that answers each connection by `serve`; no HTTP library stands between the test and the bytes."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve, self._listener = serve, socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.recv(65_536)
            self._serve(connection)

    def close(self) -> None:
        self._listener.close()


def ask(kind: str, url: str, **arguments: Any) -> Any:
    try:
        if kind == "sync":
            with ServiceClient(url, **arguments) as client:
                return client.get("/v1/x")

        async def main() -> Any:
            async with AsyncServiceClient(url, **arguments) as client:
                return await client.get("/v1/x")

        return asyncio.run(main())
    except (ProblemResponse, ServiceUnreachable) as error:
        return error


BOMB = gzip.compress(b'{"a":"' + b" " * 100_000 + b'"}')


@both
@pytest.mark.parametrize("body", [b"xxxx", BOMB], ids=["garbage", "bomb"])
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br, gzip"])
def test_an_encoded_answer_is_an_unknown_outcome_and_is_never_unpacked(kind: str, body: bytes, encoding: str) -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-encoding: {encoding}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    peer = _Peer(lambda connection: connection.sendall(head + body))
    found = ask(kind, peer.url)
    peer.close()
    assert isinstance(found, ServiceUnreachable) and "content-encoding" in str(found)


@both
@pytest.mark.parametrize("part", ["head", "body"])
def test_a_peer_that_drips_is_given_up_at_the_deadline_of_the_whole_call(kind: str, part: str) -> None:
    def drip(connection: socket.socket) -> None:
        if part == "body":
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        else:
            connection.sendall(b"HTTP/1.1 200 OK\r\nx-slow: ")
        while True:
            connection.sendall(b"a")
            time.sleep(0.05)

    peer = _Peer(drip)
    began = time.monotonic()
    found = ask(kind, peer.url, timeout_seconds=0.4)
    took = time.monotonic() - began
    peer.close()
    assert isinstance(found, ServiceUnreachable)
    assert 0.3 < took < 15


@both
def test_attempts_and_the_waits_between_them_end_with_the_deadline(kind: str) -> None:
    requests: list[float] = []

    def reset(connection: socket.socket) -> None:
        requests.append(time.monotonic())

    peer = _Peer(reset)
    began = time.monotonic()
    found = ask(kind, peer.url, timeout_seconds=1.0, retries_max=1_000)
    took = time.monotonic() - began
    peer.close()
    assert isinstance(found, ServiceUnreachable) and took < 15
    assert 2 <= len(requests) <= 10
