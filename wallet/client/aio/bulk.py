"""Asynchronous twin of `wallet.client.bulk`, made by `python -m sandbox.async_client`: change that one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from kernel import ids
from kernel.client import AsyncServiceClient
from wallet.contract.bulk import (
    BulkCheckView,
    BulkFileRequest,
    BulkFileView,
    BulkLinesRequest,
    BulkLinesResponse,
    BulkLineView,
    SignedLineRequest,
)


class AsyncBulkMethods:
    """What `WalletClient` can do with payrolls. All of it may be repeated."""

    _http: AsyncServiceClient
    _post: Callable[[str, BaseModel], Awaitable[Any]]
    _items: Callable[[str, dict[str, Any]], AsyncIterator[Any]]

    async def check_payroll(self, wallet: UUID, content: bytes) -> BulkCheckView:
        """The dry run. Raises: ProblemResponse(bulk-file-unreadable, ...)."""
        response = await self._http.request(
            "POST",
            "/v1/bulk-checks",
            query={"wallet": ids.show("wlt", wallet)},
            content=content,
            content_type="text/csv",
            idempotent=True,
        )
        return BulkCheckView.model_validate_json(response.content)

    async def create_bulk_file(
        self,
        *,
        file: UUID,
        wallet: UUID,
        content_sha256: bytes,
        lines: int,
        total_minor: int,
        again: bool = False,
    ) -> BulkFileView:
        body = BulkFileRequest(
            file=file,
            wallet=wallet,
            content_sha256=content_sha256,
            lines=lines,
            total_minor=total_minor,
            again=again,
        )
        return BulkFileView.model_validate(await self._post("/v1/bulk-files", body))

    async def add_bulk_lines(self, file: UUID, lines: list[SignedLineRequest]) -> list[BulkLineView]:
        """At most `LINES_TOGETHER_MAX`."""
        answer = await self._post(f"/v1/bulk-files/{ids.show('blk', file)}/lines", BulkLinesRequest(lines=lines))
        return BulkLinesResponse.model_validate(answer).lines

    async def start_bulk_file(self, file: UUID) -> BulkFileView:
        path = f"/v1/bulk-files/{ids.show('blk', file)}/start"
        return BulkFileView.model_validate(await self._http.post(path, {}, idempotent=True))

    async def cancel_bulk_file(self, file: UUID) -> BulkFileView:
        path = f"/v1/bulk-files/{ids.show('blk', file)}/cancellation"
        return BulkFileView.model_validate(await self._http.post(path, {}, idempotent=True))

    async def get_bulk_file(self, file: UUID) -> BulkFileView:
        return BulkFileView.model_validate(await self._http.get(f"/v1/bulk-files/{ids.show('blk', file)}"))

    def bulk_lines(self, file: UUID) -> AsyncIterator[BulkLineView]:
        """Every line, in the file's order, page by page."""
        path = f"/v1/bulk-files/{ids.show('blk', file)}/lines"
        return (BulkLineView.model_validate(item) async for item in self._items(path, {"limit": 1000}))

    async def bulk_result_csv(self, file: UUID) -> bytes:
        path = f"/v1/bulk-files/{ids.show('blk', file)}/result"
        return (await self._http.request("GET", path, idempotent=True)).content

    def bulk_files(self, wallet: UUID) -> AsyncIterator[BulkFileView]:
        """A wallet's files, newest first."""
        path = f"/v1/wallets/{ids.show('wlt', wallet)}/bulk-files"
        return (BulkFileView.model_validate(item) async for item in self._items(path, {"limit": 1000}))
