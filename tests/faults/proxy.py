"""A TCP proxy between a ledger and PostgreSQL that can cut or freeze a connection at one exact point of the protocol.

It reads the bytes of PostgreSQL's protocol (version 3) only as far as it must: the text of a client's statement, and
the server's CommandComplete of a COMMIT.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00"
"""CommandComplete: type, length 11, the command's tag."""
CHUNK = 1 << 16


@dataclass(eq=False)
class Link:
    """One client's connection, with what was seen of it since its last COMMIT."""

    client: socket.socket
    server: socket.socket
    wrote_block: bool = False
    frozen: threading.Event = field(default_factory=threading.Event)

    def cut(self) -> None:
        """Both sides at once, like a cable."""
        for side in (self.client, self.server):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)


Hook = Callable[[Link, bytes], str]
"""Is shown each chunk before it goes on, and says "pass", "cut" (it never goes on) or "freeze" (nor anything after)."""


def let_pass(link: Link, chunk: bytes) -> str:
    return "pass"


class Proxy:
    """Listens on a loopback port until closed; `from_client` and `from_server` may be set at any time."""

    def __init__(self, unix_socket: str) -> None:
        self._target = unix_socket
        self.from_client: Hook = let_pass
        self.from_server: Hook = let_pass
        self.links: list[Link] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, database: str, role: str) -> str:
        return f"postgresql+psycopg://{role}@127.0.0.1:{self.port}/{database}?sslmode=disable&gssencmode=disable"

    def close(self) -> None:
        self._listener.close()
        for link in self.links:
            link.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._target)
            except OSError:  # PostgreSQL is down
                client.close()
                continue
            link = Link(client, server)
            self.links.append(link)
            for source, sink, side in ((client, server, "from_client"), (server, client, "from_server")):
                threading.Thread(target=self._pump, args=(link, source, sink, side), daemon=True).start()

    def _pump(self, link: Link, source: socket.socket, sink: socket.socket, side: str) -> None:
        try:
            while chunk := source.recv(CHUNK):
                if side == "from_client" and b"COPY transfer" in chunk:
                    link.wrote_block = True
                verdict = getattr(self, side)(link, chunk)
                if verdict == "cut":
                    break
                if verdict == "freeze":
                    link.frozen.set()
                    threading.Event().wait()  # for ever: the thread is a daemon
                sink.sendall(chunk)
                if side == "from_server" and COMMITTED in chunk:
                    link.wrote_block = False
        except OSError:
            pass
        finally:
            link.cut()
