"""Base of the services' HTTP clients, synchronous and asynchronous: deadlines, bounded retries, problems as exceptions.

Only calls that may be repeated are: GET, and others whose caller says `idempotent=True` (the same id or
Idempotency-Key in every attempt). A lost answer is an unknown outcome, never a failure: repeat with the same ids.
"""

from __future__ import annotations

import asyncio
import functools
import random
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpcore
import httpx
from pydantic import BaseModel

from kernel import limits, strict_json
from kernel.errors import ProblemError

_BACKOFF_SECONDS_FIRST = 0.05
_BACKOFF_SECONDS_MAX = 2.0
_CONNECT_SECONDS_MAX = 5.0
_WRITE_BYTES = 64 * 1024
"""Sent between two looks at the deadline."""


class ProblemResponse(Exception):
    """The service answered with a problem document, or an error status without one (`refusal` is then "")."""

    def __init__(
        self,
        *,
        status: int,
        refusal: str,
        transient: bool,
        detail: str,
        request_id: str,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{status} {refusal or 'no problem document'}: {detail} (request {request_id or 'unknown'})")
        self.status = status
        self.refusal = refusal
        self.transient = transient
        self.detail = detail
        self.request_id = request_id
        self.extra: Mapping[str, Any] = extra or {}
        """The problem's other members, `errors` of validation among them."""


class ServiceUnreachable(Exception):
    """No usable answer came, so the outcome is unknown: repeat with the same ids."""


class ServiceClient:
    """Synchronous. Thread-safe as httpx.Client is; close it, or use it as a context manager."""

    def __init__(
        self,
        base_url: str,
        *,
        auth: httpx.Auth | None = None,
        timeout_seconds: float = 10.0,
        retries_max: int = limits.RETRIES_MAX,
        uds: str | None = None,
        headers: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`auth` is a RequestSigner where the service wants one. `uds` dials a Unix socket; base_url stays the origin.

        The environment's proxies are not used. `timeout_seconds` bounds a call as a whole: its attempts, the waits
        between them, and an answer that drips in byte by byte.
        """
        self._retries_max = retries_max
        self._timeout_seconds = timeout_seconds
        self._sleep = sleep
        self._client = httpx.Client(
            base_url=base_url,
            auth=auth,
            timeout=timeout_seconds,
            headers=headers,
            transport=transport or _deadline_transport(uds),
            follow_redirects=False,
            trust_env=False,
        )

    def get(self, path: str, *, query: Mapping[str, Any] | None = None) -> Any:
        """The JSON of GET. Members of `query` that are None are left out."""
        return _json_of(self.request("GET", path, query=query, idempotent=True))

    def post(
        self,
        path: str,
        body: Any = None,
        *,
        idempotent: bool = False,
        idempotency_key: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Any:
        """The JSON of POST. `body`: a JSON value, a pydantic model, or JSON's bytes. Repeated only if `idempotent`."""
        call = _Call.of_json(body, idempotency_key)
        return _json_of(
            self.request(
                "POST",
                path,
                content=call.content,
                headers=call.headers,
                idempotent=idempotent,
                timeout_seconds=timeout_seconds,
            )
        )

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        idempotent: bool = False,
        timeout_seconds: float | None = None,
    ) -> httpx.Response:
        """The successful response, read whole. Raises: ProblemResponse, ServiceUnreachable."""
        deadline = _Deadline(timeout_seconds or self._timeout_seconds)
        token = _DEADLINE.set(deadline)
        try:
            for attempt in range(self._retries_max + 1):
                # Built anew for each attempt, so that each is signed anew.
                request = self._client.build_request(
                    method, path, params=_query(query), content=content, headers=_headers(headers, content_type)
                )
                request.extensions = {**request.extensions, "timeout": deadline.timeout().as_dict()}
                try:
                    response = self._client.send(request, stream=True)
                    try:
                        _refuse_encoded(response)
                        body = _Bounded(deadline)
                        for chunk in response.iter_bytes():
                            body.add(chunk)
                    finally:
                        response.close()
                    return _checked(response, body.whole())
                except (httpx.RequestError, ServiceUnreachable, ProblemResponse) as error:
                    wait = _wait_seconds(error, attempt, self._retries_max, idempotent)
                    if wait is None or wait >= deadline.left():
                        raise _final(error, method, path) from error
                self._sleep(wait)
        finally:
            _DEADLINE.reset(token)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class AsyncServiceClient:
    """The same with `await`: get, post, request, aclose."""

    def __init__(
        self,
        base_url: str,
        *,
        auth: httpx.Auth | None = None,
        timeout_seconds: float = 10.0,
        retries_max: int = limits.RETRIES_MAX,
        uds: str | None = None,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._retries_max = retries_max
        self._timeout_seconds = timeout_seconds
        self._client = httpx.AsyncClient(
            base_url=base_url,
            auth=auth,
            timeout=timeout_seconds,
            headers=headers,
            transport=transport or httpx.AsyncHTTPTransport(verify=_tls(), uds=uds),
            follow_redirects=False,
            trust_env=False,
        )

    async def get(self, path: str, *, query: Mapping[str, Any] | None = None) -> Any:
        return _json_of(await self.request("GET", path, query=query, idempotent=True))

    async def post(
        self,
        path: str,
        body: Any = None,
        *,
        idempotent: bool = False,
        idempotency_key: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Any:
        call = _Call.of_json(body, idempotency_key)
        return _json_of(
            await self.request(
                "POST",
                path,
                content=call.content,
                headers=call.headers,
                idempotent=idempotent,
                timeout_seconds=timeout_seconds,
            )
        )

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        idempotent: bool = False,
        timeout_seconds: float | None = None,
    ) -> httpx.Response:
        seconds = timeout_seconds or self._timeout_seconds
        deadline = _Deadline(seconds)
        try:
            async with asyncio.timeout(seconds):
                for attempt in range(self._retries_max + 1):
                    request = self._client.build_request(
                        method, path, params=_query(query), content=content, headers=_headers(headers, content_type)
                    )
                    request.extensions = {**request.extensions, "timeout": deadline.timeout().as_dict()}
                    try:
                        response = await self._client.send(request, stream=True)
                        try:
                            _refuse_encoded(response)
                            body = _Bounded(deadline)
                            async for chunk in response.aiter_bytes():
                                body.add(chunk)
                        finally:
                            await response.aclose()
                        return _checked(response, body.whole())
                    except (httpx.RequestError, ServiceUnreachable, ProblemResponse) as error:
                        wait = _wait_seconds(error, attempt, self._retries_max, idempotent)
                        if wait is None or wait >= deadline.left():
                            raise _final(error, method, path) from error
                    await asyncio.sleep(wait)
        except TimeoutError:
            raise ServiceUnreachable(f"{method} {path}: no whole answer within {seconds} s") from None
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def aclose(self) -> None:
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()


@dataclass(frozen=True, slots=True)
class _Call:
    content: bytes | None
    headers: dict[str, str]

    @staticmethod
    def of_json(body: Any, idempotency_key: str | None) -> _Call:
        headers = {} if idempotency_key is None else {"idempotency-key": idempotency_key}
        if body is None:
            return _Call(None, headers)
        if isinstance(body, bytes):
            content = body
        elif isinstance(body, BaseModel):
            content = body.model_dump_json(exclude_none=True).encode()
        else:
            content = strict_json.dumps(body)
        return _Call(content, headers | {"content-type": "application/json"})


class _Deadline:
    """When a call as a whole must have ended."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._at = time.monotonic() + seconds

    def left(self) -> float:
        return self._at - time.monotonic()

    def check(self) -> None:
        if self.left() <= 0:
            raise ServiceUnreachable(f"no whole answer within {self._seconds} s")

    def timeout(self) -> httpx.Timeout:
        """For one attempt: what is left."""
        left = max(0.001, self.left())
        return httpx.Timeout(left, connect=min(left, _CONNECT_SECONDS_MAX))


_DEADLINE: ContextVar[_Deadline | None] = ContextVar("jiaozi_call_deadline", default=None)
"""Of the synchronous call under way in this thread: its socket looks here before every wait."""


@dataclass(slots=True)
class _Bounded:
    """A response's bytes, up to RESPONSE_BYTES_MAX and up to the deadline."""

    deadline: _Deadline
    chunks: list[bytes] = field(default_factory=list)
    size: int = 0

    def add(self, chunk: bytes) -> None:
        self.deadline.check()
        self.size += len(chunk)
        if self.size > limits.RESPONSE_BYTES_MAX:
            raise ServiceUnreachable(f"the answer is larger than {limits.RESPONSE_BYTES_MAX} bytes")
        self.chunks.append(chunk)

    def whole(self) -> bytes:
        return b"".join(self.chunks)


class _DeadlineStream(httpcore.NetworkStream):
    """A socket whose waits end with the call's deadline.

    httpx bounds each read alone, so a peer that sends one byte a second, of the head or of the body, never times out.
    """

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _WRITE_BYTES):
            self._stream.write(buffer[start : start + _WRITE_BYTES], _left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        wait = _left(timeout, httpcore.ConnectTimeout)
        return _DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, wait))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _DeadlineBackend(httpcore.SyncBackend):
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        wait = _left(timeout, httpcore.ConnectTimeout)
        return _DeadlineStream(super().connect_tcp(host, port, wait, local_address, socket_options))

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        wait = _left(timeout, httpcore.ConnectTimeout)
        return _DeadlineStream(super().connect_unix_socket(path, wait, socket_options))


@functools.cache
def _tls() -> ssl.SSLContext:
    """The authorities that are trusted, read once a process: that takes longer than most requests."""
    return httpx.create_ssl_context()


def _deadline_transport(uds: str | None) -> httpx.HTTPTransport:
    transport = httpx.HTTPTransport(verify=_tls(), uds=uds)
    # httpx has no public way to give its pool a backend; a test with a dripping peer holds this line in place.
    transport._pool._network_backend = _DeadlineBackend()
    return transport


def _left(timeout: float | None, expired: type[Exception]) -> float | None:
    deadline = _DEADLINE.get()
    if deadline is None:
        return timeout
    left = deadline.left()
    if left <= 0:
        raise expired("the call's deadline has passed")
    return left if timeout is None else min(timeout, left)


def _refuse_encoded(response: httpx.Response) -> None:
    """Nothing is unpacked: we asked for identity, and a small compressed answer may be a large one unpacked."""
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise ServiceUnreachable(f"the answer has a content-encoding that was not asked for: {encoding[:50]!r}")


def _query(query: Mapping[str, Any] | None) -> dict[str, Any] | None:
    present = {name: value for name, value in (query or {}).items() if value is not None}
    return present or None


def _headers(headers: Mapping[str, str] | None, content_type: str | None) -> dict[str, str]:
    # Uncompressed, so that the bound on an answer is the bound on what is received.
    fixed = {"accept-encoding": "identity", **(headers or {})}
    return fixed if content_type is None else {**fixed, "content-type": content_type}


def _checked(response: httpx.Response, body: bytes) -> httpx.Response:
    """The response with its body in place, if it is a success. Raises: ProblemResponse."""
    headers = response.headers.copy()
    for name in ("content-encoding", "content-length", "transfer-encoding"):  # of the body as it travelled
        headers.pop(name, None)
    whole = httpx.Response(response.status_code, headers=headers, content=body, request=response.request)
    if whole.is_success:
        return whole
    document: Any = None
    if whole.headers.get("content-type", "").startswith("application/problem+json"):
        try:
            document = strict_json.loads(body)
        except ProblemError:
            document = None
    problem = dict(document) if isinstance(document, dict) else {}
    refusal = problem.pop("refusal", "")
    transient = problem.pop("transient", None)
    raise ProblemResponse(
        status=whole.status_code,
        refusal=refusal if isinstance(refusal, str) else "",
        transient=transient if isinstance(transient, bool) else whole.status_code in (429, 502, 503, 504),
        detail=str(problem.pop("detail", "") or f"HTTP {whole.status_code}")[:2_000],
        request_id=str(problem.pop("request_id", "") or whole.headers.get("x-request-id", ""))[:64],
        extra={name: value for name, value in problem.items() if name not in ("type", "title", "status", "instance")},
    )


def _json_of(response: httpx.Response) -> Any:
    if not response.content:
        return None
    try:
        return strict_json.loads(response.content)
    except ProblemError as error:
        raise ServiceUnreachable(f"the answer is not strict JSON: {error.detail}") from None


def _wait_seconds(error: Exception, attempt: int, retries_max: int, idempotent: bool) -> float | None:
    """How long to wait before the next attempt; None if there is to be none."""
    # A connection that was refused carried nothing, so even a call that must not be repeated may be.
    is_unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
    is_transient = isinstance(error, httpx.TransportError) or (isinstance(error, ProblemResponse) and error.transient)
    if attempt >= retries_max or not is_transient or not (idempotent or is_unsent):
        return None
    # Full jitter (AWS Architecture Blog, 2015): clients that failed together do not return together.
    ceiling = min(_BACKOFF_SECONDS_MAX, _BACKOFF_SECONDS_FIRST * 4**attempt)
    return random.uniform(ceiling / 4, ceiling)  # noqa: S311  jitter, not a secret


def _final(error: Exception, method: str, path: str) -> Exception:
    if isinstance(error, httpx.RequestError):
        return ServiceUnreachable(f"{method} {path}: {type(error).__name__}: {error}")
    return error
