"""uvicorn with deadlines: what it lacks against slow and greedy clients is added here, nothing else.

By default uvicorn waits for ever for a request's head, and its one concurrency limit lets 200 slow clients lock
everyone out (measured). Here each head has a deadline, and each client address a share of the connections.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kernel import limits


def serve(
    app: Any,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    uds: str | None = None,
    connections_max: int = limits.CONNECTIONS_MAX,
    connections_per_client_max: int = limits.CONNECTIONS_PER_CLIENT_MAX,
    header_seconds_max: float = limits.HEADER_SECONDS_MAX,
    log_level: str = "info",
    stop_when: Callable[[], bool] | None = None,
) -> None:
    """Serve `app` until SIGTERM or SIGINT, finish what is in flight within SHUTDOWN_SECONDS_MAX, and return.

    `uds` is the path of a Unix socket to listen on instead of host and port. `stop_when`, asked ten times a second,
    is another reason to stop than a signal.
    Raises: SystemExit if it cannot listen or the app's start-up fails.
    """
    server = make_server(
        app,
        host=host,
        port=port,
        uds=uds,
        connections_max=connections_max,
        connections_per_client_max=connections_per_client_max,
        header_seconds_max=header_seconds_max,
        log_level=log_level,
        stop_when=stop_when,
    )
    server.run()
    if not server.started:
        raise SystemExit(3)


def make_server(
    app: Any,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    uds: str | None = None,
    connections_max: int = limits.CONNECTIONS_MAX,
    connections_per_client_max: int = limits.CONNECTIONS_PER_CLIENT_MAX,
    header_seconds_max: float = limits.HEADER_SECONDS_MAX,
    log_level: str = "info",
    stop_when: Callable[[], bool] | None = None,
) -> uvicorn.Server:
    """The server that `serve` runs, for callers that run it in a thread of their own (tests)."""
    bounds = _Connections(connections_max, connections_per_client_max, header_seconds_max)

    class Protocol(DeadlineProtocol):
        shared = bounds

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        uds=uds,
        loop="uvloop",
        http=Protocol,
        ws="none",
        interface="asgi3",
        log_level=log_level,
        access_log=False,
        proxy_headers=False,  # X-Forwarded-For is the client's word: limits go by the socket's peer
        server_header=False,
        timeout_keep_alive=limits.KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=limits.SHUTDOWN_SECONDS_MAX,
    )
    return _Server(config, stop_when)


class _Server(uvicorn.Server):
    """uvicorn kills its own process with the signal it was stopped by; here the caller still has things to close."""

    def __init__(self, config: uvicorn.Config, stop_when: Callable[[], bool] | None) -> None:
        super().__init__(config)
        self._stop_when = stop_when

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or (self._stop_when is not None and self._stop_when())

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What is there once everything is imported and started stays: the collector need not go through it again.
        gc.collect()
        gc.freeze()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True  # a second Ctrl-C does not wait
        self.should_exit = True


class _Connections:
    """Open connections of one server, counted per client address ("" for a Unix socket: no share, only the total)."""

    def __init__(self, total_max: int, per_client_max: int, header_seconds_max: float) -> None:
        self.header_seconds_max = header_seconds_max
        self._total_max = total_max
        self._per_client_max = per_client_max
        self._by_client: Counter[str] = Counter()
        self._total = 0

    def take(self, client: str) -> bool:
        if self._total >= self._total_max or (client and self._by_client[client] >= self._per_client_max):
            return False
        self._by_client[client] += 1
        self._total += 1
        return True

    def give_back(self, client: str) -> None:
        self._total -= 1
        self._by_client[client] -= 1
        if not self._by_client[client]:
            del self._by_client[client]


class DeadlineProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with a bound on how long and how large a request's head may be.

    The clock of a head starts when the connection is made or the first byte of a later request arrives, and stops when
    the head is complete; the body has its own deadline in kernel.edge.
    """

    shared: _Connections
    _counted: str | None = None
    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_head = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        client = self.client[0] if self.client else ""
        if not self.shared.take(client):
            transport.abort()  # a polite answer would need a slot of its own
            return
        self._counted = client
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        if self._counted is not None:
            self.shared.give_back(self._counted)
            self._counted = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._counted is None or self.transport.is_closing():
            return
        super().data_received(data)
        # Only a head that came in parts needs a clock. Between requests any byte starts it, also the empty lines the
        # parser skips silently: uvicorn has just taken back its keep-alive timer because of them.
        if self._head_timer is None and (self._in_head or self._is_idle()) and not self.transport.is_closing():
            self._start_head_timer()
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > limits.HEADER_BYTES_MAX:
                self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_head_timer()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > limits.HEADER_BYTES_MAX:
            raise ValueError("the head is too large")  # the parser turns this into a 400 and the connection's end
        super().on_headers_complete()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.shared.header_seconds_max, self._head_too_slow)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_too_slow(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self._is_idle():  # otherwise an earlier, pipelined request is still being answered
            # 408 without a body: nothing is known about this request, not even that it is one.
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()
