"""Goal: the client repeats only what may be repeated, signs each attempt anew, and tells refusal from unknown outcome.

Method: httpx mock transports that fail a given number of times; both clients run the same table.
"""

from __future__ import annotations

import asyncio
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
