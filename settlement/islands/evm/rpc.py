"""JSON-RPC to an EVM node over HTTP: bounded, batched, with two kinds of failure.

A node that gives no usable answer is `NodeUnreachable`: nothing is known. One that answers with an error is
`NodeRefused`: the request was read and not done. URLs may carry an access token, so no error text shows one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

ANSWER_BYTES_MAX = 32 * 1024 * 1024
BATCH_MAX = 100
"""Calls in one HTTP request; what public nodes commonly allow."""

Call = tuple[str, list[Any]]


class NodeUnreachable(Exception):
    """No usable answer: it may or may not have been done."""


class NodeRefused(Exception):
    """The node's own error. `message` is its text, shortened; `data` the revert's output if there is one."""

    def __init__(self, code: int, message: str, data: bytes = b"") -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.message = message
        self.data = data


class Node:
    """One node. Thread-safe as httpx.Client is."""

    def __init__(
        self, url: str, *, timeout_seconds: float = 10.0, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._url = url
        self.name = urlsplit(url).hostname or "node"
        self._client = httpx.Client(timeout=timeout_seconds, transport=transport, trust_env=False)
        self._ids = itertools.count(1)

    def close(self) -> None:
        self._client.close()

    def call(self, method: str, *params: Any) -> Any:
        """The result. Raises NodeUnreachable, NodeRefused."""
        (answer,) = self.batch([(method, list(params))])
        if isinstance(answer, NodeRefused):
            raise answer
        return answer

    def batch(self, calls: Sequence[Call]) -> list[Any]:
        """One answer a call, in order: its result, or its NodeRefused. Raises NodeUnreachable."""
        answers: list[Any] = []
        for start in range(0, len(calls), BATCH_MAX):
            answers += self._send(calls[start : start + BATCH_MAX])
        return answers

    def _send(self, calls: Sequence[Call]) -> list[Any]:
        asked = [
            {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params} for method, params in calls
        ]
        document = self._post(asked if len(asked) > 1 else asked[0])
        items = document if isinstance(document, list) else [document]
        by_id = {item.get("id"): item for item in items if isinstance(item, dict)}
        found = [by_id.get(item["id"]) for item in asked]
        if len(items) != len(asked) or any(item is None for item in found):
            raise NodeUnreachable(f"{self.name} answered other calls than it was asked")
        return [_result(item) for item in found if item is not None]

    def _post(self, body: object) -> Any:
        try:
            with self._client.stream("POST", self._url, json=body) as response:
                content = bytearray()
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > ANSWER_BYTES_MAX:
                        raise NodeUnreachable(f"{self.name} answered more than {ANSWER_BYTES_MAX} bytes")
                if response.status_code != httpx.codes.OK:
                    raise NodeUnreachable(f"{self.name} answered {response.status_code}")
            return json.loads(bytes(content))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise NodeUnreachable(f"{self.name}: {type(error).__name__}") from None
        except ValueError:
            raise NodeUnreachable(f"{self.name} answered no JSON") from None


def _result(item: dict[str, Any]) -> Any:
    error = item.get("error")
    if error is None:
        return item.get("result")
    if not isinstance(error, dict):
        return NodeRefused(0, str(error)[:200])
    code = error.get("code")
    data = error.get("data")
    if isinstance(data, dict):  # some nodes wrap it
        data = data.get("data")
    try:
        output = hex_bytes(data) if isinstance(data, str) else b""
    except ValueError:
        output = b""
    return NodeRefused(code if isinstance(code, int) else 0, str(error.get("message", ""))[:200], output)


def quantity(value: Any) -> int:
    """A JSON-RPC quantity. Raises NodeUnreachable for anything else: the node does not speak the protocol."""
    if isinstance(value, str) and value.startswith("0x"):
        try:
            return int(value, 16)
        except ValueError:
            pass
    raise NodeUnreachable("a node answered no quantity where one was due")


def hex_bytes(text: str) -> bytes:
    """Raises ValueError."""
    if not text.startswith("0x"):
        raise ValueError("not 0x-prefixed")
    return bytes.fromhex(text[2:])


def data_bytes(value: Any) -> bytes:
    """JSON-RPC data. Raises NodeUnreachable."""
    try:
        return hex_bytes(value)
    except (ValueError, AttributeError, TypeError):
        raise NodeUnreachable("a node answered no data where some was due") from None
