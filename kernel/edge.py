"""What stands between the socket and the operations, as one pure ASGI middleware.

For each request, in this order: a request id; a slot (fair between clients) or 429; the body, bounded and within its
deadline, or 413 and 408; then the app; and whatever exception comes out becomes a problem document. The whole body is
read before the app sees the request, so a slow sender holds one slot of its own client and no worker.

An operation that must be quick may be *direct*: a plain request to its path (JSON by POST, or a GET without a body) is
offered to a function beside the app, which answers it or leaves it to the app's operation (a framework costs 200 us a
request and two threads, this 15 us).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
import sqlalchemy.exc
import uuid_utils
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kernel import limits, strict_json
from kernel.database import OutcomeUnknown
from kernel.errors import InvariantBroken, ProblemError, RequestRefusal, problem_document

PROBLEM_MEDIA_TYPE = "application/problem+json"
HEALTH_PATH = "/healthz"

Direct = Callable[[Scope, bytes], Awaitable[tuple[int, bytes] | None]]
"""A direct operation: from the request and its whole body to a status and a JSON body. None leaves the request to the
app; then it must have had no effect. Refuses as any operation does, by raising ProblemError."""

DirectRead = Callable[[Scope, re.Match[str]], Awaitable[tuple[int, bytes] | None]]
"""The same for a GET: from the request and the match of its path's pattern."""

log = logging.getLogger("jiaozi.http")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_CLOSES_CONNECTION = frozenset({RequestRefusal.BODY_TOO_LARGE, RequestRefusal.REQUEST_TIMEOUT})
_RETRY_LATER = frozenset({RequestRefusal.TOO_MANY_REQUESTS, RequestRefusal.SERVICE_UNAVAILABLE})
_DATABASE_AWAY = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.TimeoutError,
    psycopg.OperationalError,
    psycopg.InterfaceError,
)


@dataclass(frozen=True, slots=True)
class EdgeBounds:
    """The bounds of one app's edge; `body_limits` maps path templates to other body bounds, in bytes."""

    body_bytes_max: int = limits.BODY_BYTES_MAX
    body_limits: Mapping[str, int] = field(default_factory=dict)
    read_seconds_max: float = limits.READ_SECONDS_MAX
    concurrent_requests_max: int = limits.CONCURRENT_REQUESTS_MAX
    concurrent_requests_per_client_max: int = limits.CONCURRENT_REQUESTS_PER_CLIENT_MAX
    buffered_bytes_max: int = limits.BUFFERED_BYTES_MAX


class Edge:
    def __init__(
        self,
        app: ASGIApp,
        *,
        bounds: EdgeBounds,
        statuses: Mapping[str, int],
        direct: Mapping[str, Direct] | None = None,
        direct_reads: Mapping[str, DirectRead] | None = None,
    ) -> None:
        """`direct`: by path, of the method POST; `direct_reads`: by path template, of the method GET. Each has an
        operation in `app` too."""
        self._app = app
        self._direct = dict(direct or {})
        self._direct_reads = [(compile_path(path)[0], read) for path, read in (direct_reads or {}).items()]
        self._bounds = bounds
        self._statuses = statuses
        self._slots = _Slots(bounds)
        self._body_limits = [(compile_path(path)[0], bytes_max) for path, bytes_max in bounds.body_limits.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        response = _Response(send, request_id)
        # Health is asked by whoever restarts us: it must answer exactly when everything else is refused.
        client = None if scope["path"] == HEALTH_PATH else _client(scope)
        taken = client is None or self._slots.take(client)
        try:
            if not taken:
                raise ProblemError(RequestRefusal.TOO_MANY_REQUESTS, "too many requests at once; retry")
            _refuse_nul(scope)
            body = _Body(scope, receive, self._slots, client)
            try:
                bytes_max = min(self._bytes_max(scope["path"]), self._slots.share(client or ""))
                await body.read(bytes_max, self._bounds.read_seconds_max)
                answer = await self._answer_directly(scope, body)
                if answer is not None:
                    await response.send_json(*answer)
                else:
                    await self._app(scope, body.replay, response.send)
            finally:
                body.release()
        except ClientDisconnect:
            return
        except Exception as error:
            if response.started:
                log.error("request %s failed after its response began", request_id, exc_info=error)
                raise
            await self._refuse(scope, response, error, request_id)
        finally:
            if client is not None and taken:
                self._slots.give_back(client)

    async def _answer_directly(self, scope: Scope, body: _Body) -> tuple[int, bytes] | None:
        direct = self._direct.get(scope["path"])
        if direct is not None and _is_plain_json(scope):
            return await direct(scope, body.whole())
        if scope["method"] == "GET" and not body.whole():
            for pattern, read in self._direct_reads:
                match = pattern.fullmatch(scope["path"])
                if match is not None:
                    return await read(scope, match)
        return None

    def _bytes_max(self, path: str) -> int:
        for pattern, bytes_max in self._body_limits:
            if pattern.match(path):
                return bytes_max
        return self._bounds.body_bytes_max

    async def _refuse(self, scope: Scope, response: _Response, error: Exception, request_id: str) -> None:
        problem = problem_of(error)
        address = f"{scope['method']} {scope.get('raw_path', b'').decode('latin-1')[:200]!r}"
        if problem.refusal is RequestRefusal.INTERNAL_ERROR:
            level = logging.CRITICAL if isinstance(error, InvariantBroken) else logging.ERROR
            log.log(level, "request %s failed: %s", request_id, address, exc_info=error)
        elif problem.refusal is RequestRefusal.SERVICE_UNAVAILABLE and not isinstance(error, ProblemError):
            log.warning("request %s unavailable: %s: %s", request_id, address, type(error).__name__)
        body, headers = render(problem, self._statuses, instance=scope["path"], request_id=request_id)
        status = self._statuses[problem.refusal.value]
        await response.send({"type": "http.response.start", "status": status, "headers": headers})
        await response.send({"type": "http.response.body", "body": body})


def problem_of(error: Exception) -> ProblemError:
    """What an exception says to the client; of unexpected ones, nothing but that there was one."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, _DATABASE_AWAY) or getattr(error, "connection_invalidated", False):
        return ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "the database does not answer; retry with the same ids")
    if isinstance(error, OutcomeUnknown):
        return ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "the outcome is not known; repeat with the same ids")
    return ProblemError(RequestRefusal.INTERNAL_ERROR)


def render(
    problem: ProblemError, statuses: Mapping[str, int], *, instance: str, request_id: str
) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The body and headers of a problem response."""
    body = strict_json.dumps(
        problem_document(
            problem.refusal,
            statuses[problem.refusal.value],
            detail=problem.detail,
            instance=instance[:200],
            request_id=request_id,
            **problem.extra,
        )
    )
    headers = [(b"content-type", PROBLEM_MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    if problem.refusal in _RETRY_LATER:
        headers.append((b"retry-after", str(limits.RETRY_AFTER_SECONDS).encode()))
    if problem.refusal in _CLOSES_CONNECTION:
        headers.append((b"connection", b"close"))  # the rest of the body is not read, so the connection is not reused
    return body, headers


def merged_statuses(tables: Sequence[Mapping[Any, int]]) -> dict[str, int]:
    """One table by code. Raises ValueError if two tables give one code different statuses."""
    statuses: dict[str, int] = {}
    for table in tables:
        for refusal, status in table.items():
            if statuses.setdefault(refusal.value, status) != status:
                raise ValueError(f"two status tables disagree about {refusal.value}")
    return statuses


class _Response:
    """Sends, adding the headers of every response."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = list(message.get("headers", []))
            headers += [(b"x-request-id", self._request_id.encode()), (b"x-content-type-options", b"nosniff")]
            if not any(name.lower() == b"cache-control" for name, _ in headers):
                headers.append((b"cache-control", b"no-store"))
            message = {**message, "headers": headers}
        await self._send(message)

    async def send_json(self, status: int, body: bytes) -> None:
        self.started = True
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", self._request_id.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"cache-control", b"no-store"),
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


class _Slots:
    """Requests and buffered bytes, overall and per client; a client may have a quarter of the bytes."""

    def __init__(self, bounds: EdgeBounds) -> None:
        self._bounds = bounds
        self._requests: Counter[str] = Counter()
        self._requests_total = 0
        self._bytes: Counter[str] = Counter()
        self._bytes_total = 0

    def take(self, client: str) -> bool:
        if self._requests_total >= self._bounds.concurrent_requests_max:
            return False
        if client and self._requests[client] >= self._bounds.concurrent_requests_per_client_max:
            return False
        self._requests[client] += 1
        self._requests_total += 1
        return True

    def give_back(self, client: str) -> None:
        self._requests_total -= 1
        self._requests[client] -= 1
        if not self._requests[client]:
            del self._requests[client]

    def share(self, client: str) -> int:
        """What a client may ever have in memory: a larger body is refused as too large, for no retry would help."""
        return self._bounds.buffered_bytes_max // (4 if client else 1)

    def take_bytes(self, client: str, count: int) -> bool:
        share = self.share(client)
        if self._bytes_total + count > self._bounds.buffered_bytes_max or self._bytes[client] + count > share:
            return False
        self._bytes[client] += count
        self._bytes_total += count
        return True

    def give_back_bytes(self, client: str, count: int) -> None:
        self._bytes_total -= count
        self._bytes[client] -= count
        if not self._bytes[client]:
            del self._bytes[client]


class _Body:
    """The request's body: read once and whole, then replayed to the app."""

    def __init__(self, scope: Scope, receive: Receive, slots: _Slots, client: str | None) -> None:
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._receive = receive
        self._slots = slots
        self._client = client or ""
        self._chunks: list[bytes] = []
        self._size = 0
        self._is_read = False

    async def read(self, bytes_max: int, seconds_max: float) -> None:
        """Raises: ProblemError(BODY_TOO_LARGE | REQUEST_TIMEOUT | TOO_MANY_REQUESTS), ClientDisconnect."""
        lengths = [value for name, value in self._headers if name == b"content-length"]
        if lengths and not (len(lengths) == 1 and lengths[0].isdigit()):
            raise ProblemError(RequestRefusal.BODY_TOO_LARGE, "Content-Length is not one number")
        if lengths and (len(lengths[0]) > 15 or int(lengths[0]) > bytes_max):
            self._too_large(bytes_max)
        if not any(name == b"transfer-encoding" for name, _ in self._headers) and (not lengths or not int(lengths[0])):
            return
        try:
            async with asyncio.timeout(seconds_max):
                await self._read_all(bytes_max)
        except TimeoutError:
            raise ProblemError(
                RequestRefusal.REQUEST_TIMEOUT, f"the body did not arrive within {seconds_max:g} seconds"
            ) from None

    async def _read_all(self, bytes_max: int) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk = message.get("body", b"")
            if self._size + len(chunk) > bytes_max:
                self._too_large(bytes_max)
            if chunk:
                if not self._slots.take_bytes(self._client, len(chunk)):
                    raise ProblemError(RequestRefusal.TOO_MANY_REQUESTS, "too many bodies at once; retry")
                self._size += len(chunk)
                self._chunks.append(chunk)
            if not message.get("more_body", False):
                self._is_read = True
                return

    async def replay(self) -> Message:
        if not self._is_read:
            return await self._receive()
        self._is_read = False
        body, self._chunks = b"".join(self._chunks), []
        return {"type": "http.request", "body": body, "more_body": False}

    def whole(self) -> bytes:
        """The body; it can be replayed all the same."""
        if len(self._chunks) > 1:
            self._chunks = [b"".join(self._chunks)]
        return self._chunks[0] if self._chunks else b""

    def release(self) -> None:
        if self._size:
            self._slots.give_back_bytes(self._client, self._size)
            self._size = 0

    @staticmethod
    def _too_large(bytes_max: int) -> None:
        raise ProblemError(RequestRefusal.BODY_TOO_LARGE, f"at most {bytes_max} bytes", bytes_max=bytes_max)


def _client(scope: Scope) -> str:
    """The peer's address; "" on a Unix socket, where only the overall bounds hold."""
    client: Any = scope.get("client")
    return str(client[0]) if client else ""


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value.decode("ascii"))
    return str(uuid_utils.uuid7().hex)


def _is_plain_json(scope: Scope) -> bool:
    """A request that needs none of the checks of kernel.http, because nothing about it is unusual."""
    if scope["method"] != "POST" or scope.get("query_string"):
        return False
    is_json = False
    for name, value in scope["headers"]:
        if name == b"content-type":
            if is_json or value != b"application/json":
                return False
            is_json = True
        elif name == b"content-encoding":
            return False
    return is_json


def _refuse_nul(scope: Scope) -> None:
    if "\x00" in scope["path"] or b"%00" in scope.get("query_string", b""):
        raise ProblemError(RequestRefusal.NUL_CHARACTER, "remove the NUL character from the address")
