"""An HTTP proxy before a ledger, or before an institution's signer, that can mistreat one message at a time.

Each POST has two points, `OPERATION@PLACE:request` (here, not yet handed on) and `OPERATION@PLACE:answer` (carried out,
its answer not yet handed back). What a strike says there:

    None        hand it on
    drop        it is lost; the caller's connection ends without an answer
    duplicate   it is handed on twice, and the second answer goes back (only at `request`)
    hold        the caller's connection ends; the message waits for `release()`: whatever is sent later overtakes it
    delay       it is handed on DELAY_SECONDS later

`partition()` refuses and cuts every connection until `heal()`.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DELAY_SECONDS = 0.35
UPSTREAM_SECONDS_MAX = 30.0
DROP, DUPLICATE, HOLD, DELAY = "drop", "duplicate", "hold", "delay"
_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})


@dataclass(frozen=True, slots=True)
class Message:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


Upstream = Callable[[Message], Answer]
"""Carries a message out. Raises OSError if nobody is there."""
OnPoint = Callable[[str], str | None]


class Proxy:
    """Listens on a loopback port until closed."""

    def __init__(self, place: str, upstream: Upstream, on_point: OnPoint) -> None:
        self.place, self._upstream, self._on_point = place, upstream, on_point
        self._lock = threading.Lock()
        self._is_partitioned = False
        self._connections: set[socket.socket] = set()
        self._held: list[Message] = []
        handler = _handler(self)
        self._server = _Server(("127.0.0.1", 0), handler)
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def partition(self) -> None:
        with self._lock:
            self._is_partitioned = True
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def heal(self) -> None:
        self._is_partitioned = False

    def release(self) -> int:
        """Carry out what was held back, late and with nobody waiting for the answers. How many arrived."""
        with self._lock:
            held, self._held = self._held, []
        arrived = 0
        for message in held:
            with suppress(OSError, http.client.HTTPException):
                self._upstream(message)
                arrived += 1
        return arrived

    def forget(self) -> None:
        """What was held back never arrives."""
        with self._lock:
            self._held.clear()

    def close(self) -> None:
        self.partition()
        self._server.shutdown()
        self._server.server_close()

    # --- one message

    def pass_on(self, message: Message) -> Answer | None:
        """The answer, or None: the caller gets none."""
        if self._is_partitioned:
            return None
        operation = operation_of(message)
        verdict = self._on_point(f"{operation}@{self.place}:request") if operation else None
        if verdict == HOLD:
            with self._lock:
                self._held.append(message)
            return None
        if verdict == DROP or self._is_partitioned:
            return None
        if verdict == DELAY:
            time.sleep(DELAY_SECONDS)
        try:
            answer = self._upstream(message)
            if verdict == DUPLICATE:
                answer = self._upstream(message)
        except (OSError, http.client.HTTPException):
            return None
        verdict = self._on_point(f"{operation}@{self.place}:answer") if operation else None
        if verdict == DELAY:
            time.sleep(DELAY_SECONDS)
        return None if verdict == DROP or self._is_partitioned else answer

    def opened(self, connection: socket.socket) -> bool:
        with self._lock:
            self._connections.add(connection)
            return not self._is_partitioned

    def closed(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)


def operation_of(message: Message) -> str | None:
    """What the engine asks by this message, in the words of `settlement.islands.port`; None for anything else."""
    if message.method != "POST":
        return None
    if message.path.endswith("/v1/leg-authorisations"):
        return "authorise"
    if not message.path.endswith("/v1/transfer-batches"):
        return None
    try:
        first = json.loads(message.body)["transfers"][0]
        kind = "hold" if "instruction" in first else first["terms"]["kind"]
    except (ValueError, LookupError, TypeError):
        return None
    return {"hold": "prepare", "post": "fulfil", "void": "cancel"}.get(kind)


def http_upstream(host: str, port: int) -> Upstream:
    """A new connection for each message, so that a restarted server is met at once."""

    def carry(message: Message) -> Answer:
        connection = http.client.HTTPConnection(host, port, timeout=UPSTREAM_SECONDS_MAX)
        try:
            headers = {name: value for name, value in message.headers.items() if name.lower() not in _HOP}
            connection.request(message.method, message.path, message.body or None, headers)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    return carry


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A cut connection is what this is for."""


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # head and body leave together

        def handle(self) -> None:
            try:
                if proxy.opened(self.connection):
                    super().handle()
            finally:
                proxy.closed(self.connection)

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            answer = proxy.pass_on(Message(self.command, self.path, dict(self.headers.items()), body))
            if answer is None:
                self.close_connection = True
                with suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in _HOP:
                    self.send_header(name, value)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = do_PUT = _any

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
