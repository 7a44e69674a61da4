"""Payrolls: check a file, sign its lines with the payer's device key, hand them in, follow and fetch what became."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from kernel import ids
from kernel.client import ServiceClient
from kernel.crypto.keys import PrivateKey
from kernel.money import Currency
from ledger.contract import TransferKind, TransferTerms, sign_instruction
from wallet.contract.bulk import (
    LINES_TOGETHER_MAX,
    BadLine,
    BulkCheckView,
    BulkFileRequest,
    BulkFileView,
    BulkLinesRequest,
    BulkLinesResponse,
    BulkLineView,
    PayrollLine,
    SignedLineRequest,
    line_transfer_id,
    read_payroll,
)

_CHUNK_BYTES = 64 * 1024


class BulkMethods:
    """What `WalletClient` can do with payrolls. All of it may be repeated."""

    _http: ServiceClient
    _post: Callable[[str, BaseModel], Any]
    _items: Callable[[str, dict[str, Any]], Iterator[Any]]

    def check_payroll(self, wallet: UUID, content: bytes) -> BulkCheckView:
        """The dry run. Raises: ProblemResponse(bulk-file-unreadable, ...)."""
        response = self._http.request(
            "POST",
            "/v1/bulk-checks",
            query={"wallet": ids.show("wlt", wallet)},
            content=content,
            content_type="text/csv",
            idempotent=True,
        )
        return BulkCheckView.model_validate_json(response.content)

    def create_bulk_file(
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
        return BulkFileView.model_validate(self._post("/v1/bulk-files", body))

    def add_bulk_lines(self, file: UUID, lines: list[SignedLineRequest]) -> list[BulkLineView]:
        """At most `LINES_TOGETHER_MAX`."""
        answer = self._post(f"/v1/bulk-files/{ids.show('blk', file)}/lines", BulkLinesRequest(lines=lines))
        return BulkLinesResponse.model_validate(answer).lines

    def start_bulk_file(self, file: UUID) -> BulkFileView:
        path = f"/v1/bulk-files/{ids.show('blk', file)}/start"
        return BulkFileView.model_validate(self._http.post(path, {}, idempotent=True))

    def cancel_bulk_file(self, file: UUID) -> BulkFileView:
        path = f"/v1/bulk-files/{ids.show('blk', file)}/cancellation"
        return BulkFileView.model_validate(self._http.post(path, {}, idempotent=True))

    def get_bulk_file(self, file: UUID) -> BulkFileView:
        return BulkFileView.model_validate(self._http.get(f"/v1/bulk-files/{ids.show('blk', file)}"))

    def bulk_lines(self, file: UUID) -> Iterator[BulkLineView]:
        """Every line, in the file's order, page by page."""
        path = f"/v1/bulk-files/{ids.show('blk', file)}/lines"
        return (BulkLineView.model_validate(item) for item in self._items(path, {"limit": 1000}))

    def bulk_result_csv(self, file: UUID) -> bytes:
        path = f"/v1/bulk-files/{ids.show('blk', file)}/result"
        return self._http.request("GET", path, idempotent=True).content

    def bulk_files(self, wallet: UUID) -> Iterator[BulkFileView]:
        """A wallet's files, newest first."""
        path = f"/v1/wallets/{ids.show('wlt', wallet)}/bulk-files"
        return (BulkFileView.model_validate(item) for item in self._items(path, {"limit": 1000}))


def chunks_of(path: Path) -> Iterator[bytes]:
    """A file in pieces. Raises: OSError."""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def summary_of(path: Path, currency: Currency) -> tuple[bytes, int, int, list[BadLine]]:
    """(SHA-256, good lines, their sum in minor units, bad lines) of a payroll file.

    Raises: OSError, wallet.contract.bulk.FileUnreadable.
    """
    digest = sha256()

    def hashed() -> Iterator[bytes]:
        for chunk in chunks_of(path):
            digest.update(chunk)
            yield chunk

    count, total, bad = 0, 0, []
    for line in read_payroll(hashed(), currency):
        if isinstance(line, BadLine):
            bad.append(line)
        else:
            count, total = count + 1, total + line.amount_minor
    return digest.digest(), count, total, bad


def sign_lines(
    lines: Iterable[PayrollLine | BadLine],
    *,
    file: UUID,
    account_of: Callable[[str], int],
    key: PrivateKey,
    ledger: str,
    debit: int,
    currency: str,
    valid_until: datetime,
) -> Iterator[list[SignedLineRequest]]:
    """The lines signed, in chunks for `add_bulk_lines`. The same line of the same file has the same transfer id (I7).

    `account_of` maps a payee to its account. Raises: ValueError for a bad line, or a payee that is none.
    """
    chunk: list[SignedLineRequest] = []
    for line in lines:
        if isinstance(line, BadLine):
            raise ValueError(f"line {line.number}: {line.reason}")
        terms = TransferTerms(
            id=line_transfer_id(file, line.line_id),
            kind=TransferKind.PAYMENT,
            debit=ids.AccountNumber(debit),
            credit=ids.AccountNumber(account_of(line.payee)),
            amount_minor=line.amount_minor,
            currency=currency,
        )
        token = sign_instruction(terms, ledger=ledger, valid_until=valid_until, key=key)
        chunk.append(SignedLineRequest(number=line.number, line_id=line.line_id, instruction=token))
        if len(chunk) == LINES_TOGETHER_MAX:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
