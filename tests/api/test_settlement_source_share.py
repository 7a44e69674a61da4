"""Goal: a source that is larger than what one client may ever have in memory is refused as too large, not with "retry":
no retry would help it; and nothing of it stays counted.

Method: the edge in front of an app that counts bytes, with the settlement service's own proportions scaled down; then
the service's real bounds compared.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from kernel import limits
from kernel.edge import Edge, EdgeBounds, merged_statuses
from kernel.errors import STATUS_BY_REQUEST_REFUSAL
from settlement.contract.reconciliation import SOURCE_BYTES_MAX

PATH = "/v1/reconciliation-sources"
SHARE = 1_000


async def count(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
    body = await Request(scope, receive).body()
    await PlainTextResponse(str(len(body)))(scope, receive, send)


async def in_pieces(size: int) -> AsyncIterator[bytes]:
    """Without a Content-Length: the edge learns the size as it comes."""
    for _ in range(size // 100):
        yield b"x" * 100
    yield b"x" * (size % 100)


async def ask() -> None:
    bounds = EdgeBounds(body_limits={PATH: 4 * SHARE}, buffered_bytes_max=4 * SHARE)
    edge = Edge(count, bounds=bounds, statuses=merged_statuses([STATUS_BY_REQUEST_REFUSAL]))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(edge), base_url="http://service") as client:
        for _ in range(5):
            for body in (b"x" * (SHARE + 1), in_pieces(SHARE + 1)):
                refused = await client.post(PATH, content=body)
                told = refused.json()
                assert (refused.status_code, told["refusal"], told["bytes_max"]) == (413, "body-too-large", SHARE)
                assert "retry-after" not in refused.headers
            for body in (b"x" * SHARE, in_pieces(SHARE)):
                assert (await client.post(PATH, content=body)).text == str(SHARE)


def test_a_source_larger_than_a_clients_share_is_too_large_and_frees_what_it_took() -> None:
    asyncio.run(ask())


def test_a_source_as_large_as_the_contract_allows_fits_into_a_clients_share() -> None:
    assert SOURCE_BYTES_MAX <= limits.BUFFERED_BYTES_MAX // 4
