"""Goal: whatever arrives, the edge answers with the right problem, and a slow or greedy client harms only itself.

Method: one small app behind the real server (uvicorn in a thread, short deadlines); raw sockets for bad senders.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
import pytest
import sqlalchemy.exc
from fastapi import APIRouter, FastAPI, Request
from fastapi.testclient import TestClient
from pydantic import BaseModel, ConfigDict, Field

from kernel.database import OutcomeUnknown
from kernel.errors import STATUS_BY_REQUEST_REFUSAL, InvariantBroken, ProblemError, Refusal, RequestRefusal
from kernel.http import IdempotencyKey, create_app, problem_response, problems, status_of, strict_router
from kernel.server import make_server

READ_SECONDS = 1.0
HEADER_SECONDS = 1.0
PER_CLIENT = 8


class ExampleRefusal(Refusal):
    INSUFFICIENT_FUNDS = "insufficient-funds", True, "The debit account has too little."


STATUS_BY_EXAMPLE_REFUSAL = {ExampleRefusal.INSUFFICIENT_FUNDS: 422}


class Payment(BaseModel):
    model_config = ConfigDict(extra="forbid")

    amount_minor: str = Field(pattern=r"^[0-9]{1,19}$", examples=["100"])
    note: str = ""


def example_app(read_seconds: float = READ_SECONDS) -> FastAPI:
    app = create_app(
        title="Example",
        version="1.0",
        description="For tests.",
        status_tables=[STATUS_BY_EXAMPLE_REFUSAL],
        body_bytes_max=4_096,
        body_limits={"/v1/files/{name}": 100_000},
        read_seconds_max=read_seconds,
        concurrent_requests_per_client_max=PER_CLIENT,
    )
    router = strict_router()
    table = problems(
        ExampleRefusal.INSUFFICIENT_FUNDS, RequestRefusal.NOT_PERMITTED, statuses=STATUS_BY_EXAMPLE_REFUSAL
    )

    @router.post("/v1/payments", operation_id="create_payment", status_code=201, responses=table)
    def create_payment(body: Payment, key: IdempotencyKey, limit: int = 5) -> Payment:
        return body

    @router.post("/v1/refused", operation_id="refused", responses=table)
    def refused(request: Request) -> dict[str, int]:
        raise ProblemError(ExampleRefusal.INSUFFICIENT_FUNDS, "3 missing", missing_minor="3")

    @router.post("/v1/returned", operation_id="returned", responses=table)
    def returned(request: Request) -> Any:
        assert status_of(request, ExampleRefusal.INSUFFICIENT_FUNDS) == 422
        return problem_response(request, ExampleRefusal.INSUFFICIENT_FUNDS)

    @router.post(
        "/v1/files/{name}",
        operation_id="put_file",
        openapi_extra={"requestBody": {"content": {"application/xml": {}}, "required": True}},
    )
    async def put_file(name: str, request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @router.get("/v1/fails/{how}", operation_id="fails")
    def fails(how: str) -> dict[str, int]:
        raise {
            "bug": RuntimeError("hush: internal text"),
            "invariant": InvariantBroken("I2", "hush"),
            "sqlalchemy": sqlalchemy.exc.OperationalError("SELECT hush", {}, Exception("hush")),
            "pool": sqlalchemy.exc.TimeoutError("hush"),
            "psycopg": psycopg.OperationalError("hush"),
            "unknown": OutcomeUnknown("hush"),
        }[how]

    app.include_router(router)
    return app


@dataclass(frozen=True)
class Running:
    host: str
    port: int

    def raw(self, source: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=10, source_address=(source, 0))


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with served(example_app()) as found:
        yield found


@contextmanager
def served(app: FastAPI) -> Iterator[Running]:
    server = make_server(app, header_seconds_max=HEADER_SECONDS, connections_per_client_max=40, log_level="critical")
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    yield Running(host, port)
    server.should_exit = True
    thread.join(timeout=30)
    assert not thread.is_alive()


@pytest.fixture
def client(running: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{running.host}:{running.port}", trust_env=False, timeout=10) as client:
        yield client


JSON = {"content-type": "application/json", "idempotency-key": "k"}
GOOD = b'{"amount_minor":"100"}'

BAD_REQUESTS: dict[str, tuple[str, str, bytes, dict[str, str], RequestRefusal]] = {
    "unknown address": ("GET", "/nope", b"", {}, RequestRefusal.NOT_FOUND),
    "trailing slash": ("GET", "/healthz/", b"", {}, RequestRefusal.NOT_FOUND),
    "method": ("DELETE", "/v1/payments", b"", {}, RequestRefusal.METHOD_NOT_ALLOWED),
    "NaN": ("POST", "/v1/payments", b'{"amount_minor":NaN}', JSON, RequestRefusal.MALFORMED_JSON),
    "duplicate": (
        "POST",
        "/v1/payments",
        b'{"amount_minor":"1","amount_minor":"2"}',
        JSON,
        RequestRefusal.MALFORMED_JSON,
    ),
    "cut off": ("POST", "/v1/payments", GOOD[:-1], JSON, RequestRefusal.MALFORMED_JSON),
    "deep": ("POST", "/v1/payments", b"[" * 4_000, JSON, RequestRefusal.MALFORMED_JSON),
    "NUL": ("POST", "/v1/payments", b'{"amount_minor":"1","note":"\\u0000"}', JSON, RequestRefusal.NUL_CHARACTER),
    "NUL in the path": ("POST", "/v1/files/a%00b", b"", {}, RequestRefusal.NUL_CHARACTER),
    "NUL in the query": ("GET", "/healthz?a=%00", b"", {}, RequestRefusal.NUL_CHARACTER),
    "no content type": ("POST", "/v1/payments", GOOD, {"idempotency-key": "k"}, RequestRefusal.UNSUPPORTED_MEDIA_TYPE),
    "form": (
        "POST",
        "/v1/payments",
        GOOD,
        JSON | {"content-type": "application/x-www-form-urlencoded"},
        RequestRefusal.UNSUPPORTED_MEDIA_TYPE,
    ),
    "other charset": (
        "POST",
        "/v1/payments",
        GOOD,
        JSON | {"content-type": "application/json; charset=utf-16"},
        RequestRefusal.UNSUPPORTED_MEDIA_TYPE,
    ),
    "compressed": (
        "POST",
        "/v1/payments",
        GOOD,
        JSON | {"content-encoding": "gzip"},
        RequestRefusal.UNSUPPORTED_MEDIA_TYPE,
    ),
    "JSON where XML is taken": ("POST", "/v1/files/a", GOOD, JSON, RequestRefusal.UNSUPPORTED_MEDIA_TYPE),
    "unknown member": (
        "POST",
        "/v1/payments",
        b'{"amount_minor":"1","x":1}',
        JSON,
        RequestRefusal.VALIDATION_FAILED,
    ),
    "number for amount": ("POST", "/v1/payments", b'{"amount_minor":1}', JSON, RequestRefusal.VALIDATION_FAILED),
    "negative": ("POST", "/v1/payments", b'{"amount_minor":"-1"}', JSON, RequestRefusal.VALIDATION_FAILED),
    "Arabic digits": (
        "POST",
        "/v1/payments",
        '{"amount_minor":"١٢"}'.encode(),
        JSON,
        RequestRefusal.VALIDATION_FAILED,
    ),
    "not an object": ("POST", "/v1/payments", b"[]", JSON, RequestRefusal.VALIDATION_FAILED),
    "empty body": ("POST", "/v1/payments", b"", JSON, RequestRefusal.VALIDATION_FAILED),
    "unknown query": ("POST", "/v1/payments?x=1", GOOD, JSON, RequestRefusal.VALIDATION_FAILED),
    "query twice": ("POST", "/v1/payments?limit=1&limit=2", GOOD, JSON, RequestRefusal.VALIDATION_FAILED),
    "query of another type": ("POST", "/v1/payments?limit=x", GOOD, JSON, RequestRefusal.VALIDATION_FAILED),
    "key missing": (
        "POST",
        "/v1/payments",
        GOOD,
        {"content-type": "application/json"},
        RequestRefusal.IDEMPOTENCY_KEY_MISSING,
    ),
    "key too long": (
        "POST",
        "/v1/payments",
        GOOD,
        JSON | {"idempotency-key": "k" * 256},
        RequestRefusal.VALIDATION_FAILED,
    ),
    "key with a space": (
        "POST",
        "/v1/payments",
        GOOD,
        JSON | {"idempotency-key": "a b"},
        RequestRefusal.VALIDATION_FAILED,
    ),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_request_gets_its_own_problem(client: httpx.Client, name: str) -> None:
    method, path, body, headers, refusal = BAD_REQUESTS[name]
    response = client.request(method, path, content=body, headers=headers)
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (problem["refusal"], response.status_code) == (refusal.value, STATUS_BY_REQUEST_REFUSAL[refusal])
    assert problem["status"] == response.status_code
    assert problem["request_id"] == response.headers["x-request-id"]
    if refusal is RequestRefusal.METHOD_NOT_ALLOWED:
        assert response.headers["allow"] == "POST"


def test_good_requests_pass(client: httpx.Client) -> None:
    created = client.post("/v1/payments?limit=7", content=GOOD, headers=JSON)
    assert (created.status_code, created.json()["amount_minor"]) == (201, "100")
    chunked = client.post("/v1/payments", content=iter([GOOD[:5], GOOD[5:]]), headers=JSON)
    assert chunked.status_code == 201
    larger = client.post("/v1/files/a", content=b"<" * 50_000, headers={"content-type": "application/xml"})
    assert larger.json() == {"bytes": 50_000}
    assert client.get("/healthz").json() == {"status": "ok"}


def test_refusals_of_the_service_become_problems(client: httpx.Client) -> None:
    raised = client.post("/v1/refused")
    assert (raised.status_code, raised.json()["missing_minor"], raised.json()["transient"]) == (422, "3", True)
    assert client.post("/v1/returned").json()["type"] == "/problems/insufficient-funds"


def test_validation_names_places_by_pointer_without_echoing_the_input(client: httpx.Client) -> None:
    body = json.dumps({"amount_minor": "hush" * 100, "~a/b": 1} | {f"x{n}": 1 for n in range(50)})
    problem = client.post("/v1/payments", content=body, headers=JSON).json()
    pointers = [error["pointer"] for error in problem["errors"]]
    assert "/body/amount_minor" in pointers and "/body/~0a~1b" in pointers
    assert len(pointers) == 20 and problem["errors_total"] == 52
    assert "hush" not in json.dumps(problem)


@pytest.mark.parametrize(
    ("how", "status"),
    [("bug", 500), ("invariant", 500), ("sqlalchemy", 503), ("pool", 503), ("psycopg", 503), ("unknown", 503)],
)
def test_failure_says_nothing_of_its_inside(
    client: httpx.Client, how: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="jiaozi.http"):
        response = client.get(f"/v1/fails/{how}", headers={"x-request-id": "abc-1"})
    assert (response.status_code, response.json()["transient"]) == (status, True)
    assert "hush" not in response.text
    assert "abc-1" in caplog.text
    assert ("retry-after" in response.headers) == (status == 503)


def test_request_id_is_taken_only_if_it_is_safe_in_a_log(client: httpx.Client) -> None:
    assert client.get("/healthz", headers={"x-request-id": "A.b_c-1"}).headers["x-request-id"] == "A.b_c-1"
    for unsafe in ("a b", "x" * 65, "a\tb", '"'):
        given = client.get("/healthz", headers={"x-request-id": unsafe}).headers["x-request-id"]
        assert re.fullmatch(r"[0-9a-f]{32}", given)


def read_all(connection: socket.socket) -> bytes:
    data = b""
    try:
        while chunk := connection.recv(65_536):
            data += chunk
    except ConnectionResetError:
        pass
    return data


def read_head(connection: socket.socket) -> bytes:
    data = b""
    try:
        while b"\r\n\r\n" not in data and (chunk := connection.recv(65_536)):
            data += chunk
    except ConnectionResetError:
        pass
    return data


def test_body_over_the_bound_is_refused_before_it_is_read(running: Running) -> None:
    for length in (4_097, 10**12, 10**30):
        with running.raw() as connection:
            connection.sendall(
                b"POST /v1/payments HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n" % length
            )
            answer = read_all(connection)  # not one byte of the body was sent; to wait for it would end in a 408
            # The parser itself refuses a length beyond 64 bits.
            assert answer.startswith(b"HTTP/1.1 413" if length < 2**64 else b"HTTP/1.1 400")


def test_chunked_body_is_cut_at_the_bound(running: Running) -> None:
    with running.raw() as connection:
        connection.sendall(
            b"POST /v1/payments HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        connection.sendall(b"1000\r\n" + b" " * 4_096 + b"\r\n1\r\n \r\n")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 413") and b"connection: close" in answer


def trickle(connection: socket.socket, first: bytes, then: bytes, seconds: float) -> tuple[bytes, float]:
    """Send `first`, then `then` every 0.1 s until the server answers or hangs up; its answer and when it came."""
    started = time.monotonic()
    connection.sendall(first)
    connection.settimeout(0.1)
    answer = b""
    while time.monotonic() - started < seconds:
        try:
            chunk = connection.recv(65_536)
            if not chunk:
                break
            answer += chunk
        except TimeoutError:
            try:
                connection.sendall(then)
            except OSError:
                break
        except ConnectionResetError:
            break
    return answer, time.monotonic() - started


SLOW_SENDERS = {
    "head": (b"GET /healthz HTTP/1.1\r\nhost: x\r\n", b"a: b\r\n", b"408"),
    "nothing": (b"", b"", b"408"),
    "empty lines": (b"", b"\r\n", b"408"),
    "second head": (b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /he", b"a", b"408"),
    "empty lines after an answer": (b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n", b"\r\n", b"408"),
    "body": (b"POST /v1/refused HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n", b"x", b"request-timeout"),
    "chunked body": (
        b"POST /v1/refused HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n",
        b"1\r\nx\r\n",
        b"request-timeout",
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("head", "body", "second head") else pytest.param(name, marks=pytest.mark.extended)
        for name in SLOW_SENDERS
    ],
)
def test_slow_sender_is_cut_off_in_time(running: Running, name: str) -> None:
    first, then, expected = SLOW_SENDERS[name]
    with running.raw() as connection:
        answer, seconds = trickle(connection, first, then, 20)
    assert expected in answer
    assert 0.8 < seconds < 15


def test_head_over_the_bound_is_cut_off(running: Running) -> None:
    for filler in (b"a: " + b"b" * 200_000 + b"\r\n\r\n", b"a: b\r\n" * 20_000):
        with running.raw() as connection:
            try:
                connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + filler)
            except OSError:
                continue
            assert b"200" not in read_all(connection)[:20]


def test_slow_clients_take_only_their_own_share() -> None:
    """200 connections from one address; another address is served while the first still have time."""
    with served(example_app(read_seconds=4.0)) as running:
        check_shares(running, read_seconds=4.0)


def check_shares(running: Running, *, read_seconds: float) -> None:
    head = b"POST /v1/refused HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"
    slow: list[socket.socket] = []
    try:
        began = time.monotonic()
        for _ in range(200):
            connection = running.raw("127.0.0.2")
            connection.sendall(head)
            slow.append(connection)
        with running.raw("127.0.0.3") as other:
            other.sendall(b"POST /v1/refused HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert b"insufficient-funds" in read_all(other)
            assert time.monotonic() - began < read_seconds
        answers = [read_head(connection) for connection in slow]
    finally:
        for connection in slow:
            connection.close()
    assert sum(b"HTTP/1.1 408" in answer for answer in answers) == PER_CLIENT  # had slots, then ran out of time
    refused = [answer for answer in answers if b"HTTP/1.1 429" in answer]
    assert refused and all(b"retry-after: 1" in answer for answer in refused)
    assert sum(answer == b"" for answer in answers) == 200 - 40  # beyond the share of connections


def test_document_lists_every_refusal_and_none_of_fastapis_shapes(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    text = json.dumps(document)
    assert document["openapi"].startswith("3.1")
    assert "HTTPValidationError" not in text and '"ValidationError"' not in text
    operation = document["paths"]["/v1/payments"]["post"]
    codes = {
        code
        for response in operation["responses"].values()
        for code in response.get("content", {}).get("application/problem+json", {}).get("examples", {})
    }
    assert {"insufficient-funds", "not-permitted", "validation-failed", "body-too-large", "malformed-json"} <= codes
    assert {"insufficient-funds", "validation-failed"} <= set(
        operation["responses"]["422"]["content"]["application/problem+json"]["examples"]
    )
    key = next(p for p in operation["parameters"] if p["name"] == "Idempotency-Key")
    assert key["required"] and key["schema"]["maxLength"] == 255
    assert json.dumps(example_app().openapi()) == json.dumps(example_app().openapi())


def test_docs_page_is_self_contained(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert "create_payment" in page.text and "insufficient-funds" in page.text
    assert "<script" not in page.text
    assert re.findall(r"(?:src|href)=\"(?!#|/openapi\.json)", page.text) == []
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy


def test_router_that_is_not_strict_is_refused_at_start_up() -> None:
    app = example_app()
    lax = APIRouter()

    @lax.get("/v1/lax")
    def read() -> dict[str, int]:
        return {}

    app.include_router(lax)
    with pytest.raises(TypeError, match="strict_router"):
        app.openapi()


def test_two_tables_that_disagree_about_a_status_are_refused() -> None:
    with pytest.raises(ValueError, match="disagree"):
        create_app(title="x", version="1", description="", status_tables=[{RequestRefusal.NOT_FOUND: 410}])


# --- direct operations -----------------------------------------------------------------------------------------------


def test_direct_operation_answers_plain_requests_and_leaves_the_others_to_the_app() -> None:
    async def direct(scope: Any, body: bytes) -> tuple[int, bytes] | None:
        if body == b'{"left":1}':
            return None
        if body == b'{"refused":1}':
            raise ProblemError(RequestRefusal.NOT_PERMITTED, "not you")
        return 201, b'{"by":"direct"}'

    app = create_app(title="t", version="1", description="", status_tables=[], direct={"/v1/quick": direct})
    router = strict_router()

    @router.post("/v1/quick", operation_id="quick")
    def quick(body: dict[str, int]) -> dict[str, str]:
        return {"by": "app"}

    app.include_router(router)
    with TestClient(app) as client:
        json_type = {"content-type": "application/json"}
        plain = client.post("/v1/quick", content=b'{"a":1}', headers=json_type)
        assert (plain.status_code, plain.json()) == (201, {"by": "direct"})
        through_the_app = client.post("/v1/quick", content=b'{"left":1}', headers=json_type)
        assert (through_the_app.status_code, through_the_app.json()) == (200, {"by": "app"})
        for name in ("x-content-type-options", "cache-control", "content-type"):
            assert plain.headers[name] == through_the_app.headers[name]
        assert re.fullmatch(r"[0-9a-f]{32}", plain.headers["x-request-id"])
        refused = client.post("/v1/quick", content=b'{"refused":1}', headers=json_type)
        assert (refused.status_code, refused.json()["refusal"]) == (403, "not-permitted")
        for headers, path in (
            ({"content-type": "application/json; charset=utf-8"}, "/v1/quick"),
            ({"content-type": "text/plain"}, "/v1/quick"),
            ({**json_type, "content-encoding": "gzip"}, "/v1/quick"),
            ({}, "/v1/quick"),
            (json_type, "/v1/quick?a=1"),
        ):
            assert client.post(path, content=b'{"a":1}', headers=headers).text != plain.text
        assert client.get("/v1/quick").status_code == 405


def test_direct_operation_without_one_in_the_document_is_refused_at_start_up() -> None:
    async def direct(scope: Any, body: bytes) -> tuple[int, bytes] | None:
        return None

    app = create_app(title="t", version="1", description="", status_tables=[], direct={"/v1/quick": direct})
    with pytest.raises(TypeError, match="/v1/quick"), TestClient(app):
        pass
