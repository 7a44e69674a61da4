"""Models of payroll files. The file itself is described in docs/bulk.md and read by `read_payroll`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated
from uuid import UUID

from pydantic import Field

from ledger.contract import AccountRef, Amount, CurrencyCode, Hash32, Model, Moment, Token
from wallet.contract import PaymentRef, WalletRef, id_type
from wallet.domain.bulk import FILE_BYTES_MAX as FILE_BYTES_MAX
from wallet.domain.bulk import HEADER as HEADER
from wallet.domain.bulk import LINES_MAX as LINES_MAX
from wallet.domain.bulk import BadLine as BadLine
from wallet.domain.bulk import FileUnreadable as FileUnreadable
from wallet.domain.bulk import LineResult as LineResult
from wallet.domain.bulk import PayrollLine as PayrollLine
from wallet.domain.bulk import line_transfer_id as line_transfer_id
from wallet.domain.bulk import read_payroll as read_payroll
from wallet.domain.bulk import result_lines as result_lines

LINES_TOGETHER_MAX = 500
"""Signed lines of one request: about 400 KiB."""

BulkFileRef = Annotated[UUID, *id_type("blk")]
LineId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,63}$", examples=["2026-06/0001"])]


class CheckedLineView(Model):
    """What would become of the line now; `refusal` null = it would be booked."""

    number: int
    """The file's line, the header being 1."""
    line_id: str
    """Empty if it could not be read."""
    account: AccountRef | None
    amount_minor: Amount
    refusal: str | None
    """line-unreadable, line-repeated, payee-unknown, or as of a payment."""
    detail: str
    payee_name: str | None = None
    """Of a payee named by an alias: whose account it is, masked. Pay only if you know it."""


class BulkCheckView(Model):
    """The dry run of a file: nothing was kept, nothing booked."""

    wallet: WalletRef
    currency: CurrencyCode
    lines: list[CheckedLineView]
    total_minor: Amount
    """Of all lines that could be read."""
    payable: int
    payable_minor: Amount
    available_minor: Amount


class BulkFileRequest(Model):
    file: BulkFileRef
    wallet: WalletRef
    content_sha256: Hash32
    lines: Annotated[int, Field(ge=1, le=LINES_MAX)]
    total_minor: Annotated[Amount, Field(gt=0)]
    """The control sum."""
    again: bool = False
    """The same content was sent before, and is meant to be paid again."""


class SignedLineRequest(Model):
    number: Annotated[int, Field(ge=1, le=LINES_MAX + 1)]
    line_id: LineId
    instruction: Token
    """A payment from the file's wallet under the id `line_transfer_id(file, line_id)`, signed by its device."""


class BulkLinesRequest(Model):
    lines: Annotated[list[SignedLineRequest], Field(min_length=1, max_length=LINES_TOGETHER_MAX)]


class BulkLineState(StrEnum):
    RECEIVED = "received"
    BOOKED = "booked"
    REFUSED = "refused"


class BulkLineView(Model):
    number: int
    line_id: str
    payment: PaymentRef
    credit: AccountRef
    amount_minor: Amount
    state: BulkLineState
    refusal: str | None
    transient: bool | None
    """May the line succeed if it is signed and sent again?"""
    detail: str | None
    seq: int | None
    booked_at: Moment | None


class BulkLinesResponse(Model):
    lines: list[BulkLineView]
    """In the order of the request."""


class BulkFileState(StrEnum):
    UPLOADING = "uploading"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"


class BulkFileView(Model):
    file: BulkFileRef
    wallet: WalletRef
    currency: CurrencyCode
    content_sha256: Hash32
    lines: int
    total_minor: Amount
    state: BulkFileState
    received: int | None
    """Lines that wait; null in listings, as what follows."""
    booked: int | None
    booked_minor: Amount | None
    refused: int | None
    refused_minor: Amount | None
    created_at: Moment
    started_at: Moment | None
    finished_at: Moment | None
