"""Sends one webhook, and nothing else: to a public address, which is resolved once and then connected to.

Against requests that a client tricks this service into (SSRF): every address that the name leads to is checked, and the
connection is made to one of them, so that a second, different answer of the name server changes nothing; TLS still
checks the certificate against the name. No redirects, no proxies, no cookies; time and the answer's size are bounded.
"""

from __future__ import annotations

import functools
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import httpcore

from wallet.domain.events import AddressRefused, check_address, check_url

SECONDS_MAX = 15.0
"""For everything: name, connection, TLS, request, answer. The specification recommends 15 to 30."""
ANSWER_BYTES_MAX = 16 * 1024
"""Of an answer's body, which nobody reads: more and the connection is closed."""
ADDRESSES_MAX = 16
Resolver = Callable[[str, int], list[str]]
"""(host, port) -> addresses. Raises: OSError."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` 0: there was none; `error` says why."""

    status: int
    error: str = ""
    retry_after_seconds: int | None = None

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


def system_resolver(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


@functools.cache
def _trusted() -> ssl.SSLContext:
    """The machine's authorities, read once a process."""
    return ssl.create_default_context()


class WebhookSender:
    """Thread-safe; keeps no connection. In a sandbox http:// and this machine's own addresses are allowed."""

    def __init__(
        self,
        *,
        is_sandbox: bool,
        resolver: Resolver = system_resolver,
        ssl_context: ssl.SSLContext | None = None,
        seconds_max: float = SECONDS_MAX,
    ) -> None:
        self.is_sandbox = is_sandbox
        self._resolver = resolver
        self._ssl_context = ssl_context or _trusted()
        self._seconds_max = seconds_max

    def send(self, url: str, *, headers: dict[str, str], body: bytes) -> Answer:
        """Never raises for what the other side or the network does."""
        deadline = time.monotonic() + self._seconds_max
        try:
            check_url(url, is_sandbox=self.is_sandbox)
            backend = _GuardedBackend(self._resolver, is_sandbox=self.is_sandbox, deadline=deadline)
            with (
                httpcore.ConnectionPool(
                    ssl_context=self._ssl_context, max_connections=1, retries=0, network_backend=backend
                ) as pool,
                pool.stream(
                    "POST",
                    url,
                    headers=[
                        *headers.items(),
                        *{
                            "content-type": "application/json",
                            "content-length": str(len(body)),
                            "accept-encoding": "identity",
                            "user-agent": "jiaozi-webhooks/1",
                            "connection": "close",
                        }.items(),
                    ],
                    content=body,
                    extensions={"timeout": dict.fromkeys(("connect", "read", "write", "pool"), self._seconds_max)},
                ) as response,
            ):
                status, retry_after = response.status, _retry_after(response.headers)
                size = 0
                for chunk in response.iter_stream():
                    size += len(chunk)
                    if size > ANSWER_BYTES_MAX:
                        return Answer(status, "the answer is too large", retry_after)
                return Answer(status, "" if 200 <= status < 300 else f"HTTP {status}", retry_after)
        except AddressRefused as error:
            return Answer(0, str(error))
        except (httpcore.TimeoutException, TimeoutError):
            return Answer(0, "no answer in time")
        except (
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.UnsupportedProtocol,
            ssl.SSLError,
            OSError,
            UnicodeError,
        ) as error:
            return Answer(0, f"{type(error).__name__}: no connection or no HTTP answer")


def _retry_after(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    for name, value in headers:
        if name.lower() == b"retry-after" and value.isdigit() and len(value) <= 9:
            return int(value)
    return None


class _GuardedBackend(httpcore.SyncBackend):
    def __init__(self, resolver: Resolver, *, is_sandbox: bool, deadline: float) -> None:
        self._resolver = resolver
        self._is_sandbox = is_sandbox
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            addresses = self._resolved(host, port)[:ADDRESSES_MAX]
        except TimeoutError:
            raise httpcore.ConnectTimeout("the name server does not answer") from None
        except OSError:
            raise httpcore.ConnectError("the name leads nowhere") from None
        if not addresses:
            raise httpcore.ConnectError("the name leads nowhere")
        for address in addresses:  # one that is not public spoils all: a name that mixes them is an attack
            check_address(address, is_sandbox=self._is_sandbox)
        stream = super().connect_tcp(
            addresses[0], port, _left(self._deadline, httpcore.ConnectTimeout), local_address, socket_options
        )
        return _BoundedStream(stream, self._deadline)

    def _resolved(self, host: str, port: int) -> list[str]:
        """The system's resolver has a patience of its own and cannot be told another: it is waited for, not joined."""
        found: Future[list[str]] = Future()

        def ask() -> None:
            try:
                found.set_result(self._resolver(host, port))
            except Exception as error:  # raised where the answer is waited for
                found.set_exception(error)

        threading.Thread(target=ask, name="webhook-name", daemon=True).start()
        return found.result(_left(self._deadline, httpcore.ConnectTimeout))

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        raise httpcore.ConnectError("webhooks leave by TCP only")


class _BoundedStream(httpcore.NetworkStream):
    """All waits of one delivery end at one deadline: a peer that drips bytes gains nothing."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        wait = _left(self._deadline, httpcore.ConnectTimeout)
        return _BoundedStream(self._stream.start_tls(ssl_context, server_hostname, wait), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float, expired: type[Exception]) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise expired("the delivery's time is over")
    return left
