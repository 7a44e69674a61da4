"""Payrolls: dry run, announcement, signed lines, start, progress, results."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from kernel.clock import to_micros
from kernel.errors import RequestRefusal
from kernel.http import problems, strict_router
from kernel.limits import PAGE_ITEMS_DEFAULT
from kernel.pagination import Page, PageCursor, PageLimit, decode, encode
from ledger.contract import LedgerRefusal
from wallet.api.auth import SIGNED, Channel, Reader
from wallet.api.dependencies import STATUSES, Services
from wallet.contract import WalletRef, WalletRefusal
from wallet.contract.bulk import (
    BulkCheckView,
    BulkFileRef,
    BulkFileRequest,
    BulkFileState,
    BulkFileView,
    BulkLinesRequest,
    BulkLinesResponse,
    BulkLineState,
    BulkLineView,
    CheckedLineView,
)
from wallet.store.bulk import BulkFile, BulkLine, Progress
from wallet.usecases import bulk, listings
from wallet.usecases.bulk import SignedLine

router = strict_router(tags=["bulk"])
_R = WalletRefusal
FilePath = Annotated[BulkFileRef, Path()]


@router.post(
    "/v1/bulk-checks",
    operation_id="check_bulk_file",
    summary="Dry run of a payroll file: what would become of each line; nothing is booked",
    responses=problems(
        *SIGNED,
        _R.WALLET_NOT_FOUND,
        _R.WALLET_NOT_OPEN,
        _R.BULK_FILE_UNREADABLE,
        _R.ALIAS_LOOKUPS_TOO_MANY,
        RequestRefusal.SERVICE_UNAVAILABLE,
        statuses=STATUSES,
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "text/csv": {
                    "schema": {"type": "string"},
                    "example": "line_id,payee,amount,description\r\n1,acc_00000000001746,1234.50,June\r\n",
                }
            },
        }
    },
)
async def check_bulk_file(
    request: Request, context: Services, client: Channel, wallet: Annotated[WalletRef, Query()]
) -> BulkCheckView:
    content = await request.body()
    checked = await run_in_threadpool(bulk.check_file, context, wallet, content)
    return BulkCheckView(
        wallet=wallet,
        currency=context.ledgers.home.currency,
        lines=[
            CheckedLineView(
                number=line.number,
                line_id=line.line_id,
                account=line.account,
                amount_minor=line.amount_minor,
                refusal=line.refusal,
                detail=line.detail,
                payee_name=line.payee_name,
            )
            for line in checked.lines
        ],
        total_minor=checked.total_minor,
        payable=checked.payable,
        payable_minor=checked.payable_minor,
        available_minor=checked.available_minor,
    )


@router.post(
    "/v1/bulk-files",
    operation_id="create_bulk_file",
    status_code=201,
    summary="Announce a payroll: its lines and their sum",
    responses=problems(
        *SIGNED,
        LedgerRefusal.ID_FROM_FUTURE,
        _R.WALLET_NOT_FOUND,
        _R.WALLET_NOT_OPEN,
        _R.BULK_FILE_EXISTS,
        _R.BULK_FILE_REPEATED,
        statuses=STATUSES,
    ),
)
def create_bulk_file(body: BulkFileRequest, context: Services, client: Channel) -> BulkFileView:
    row = bulk.register_file(
        context,
        body.file,
        wallet_id=body.wallet,
        content_sha256=body.content_sha256,
        lines_total=body.lines,
        total_minor=body.total_minor,
        again=body.again,
    )
    return _file_view(row, bulk.progress_of(context, row.id))


@router.post(
    "/v1/bulk-files/{file}/lines",
    operation_id="add_bulk_lines",
    summary="Hand in signed lines, all or none; known lines stay, refused ones are tried again with a new signature",
    responses=problems(
        *SIGNED,
        _R.BULK_FILE_NOT_FOUND,
        _R.BULK_FILE_CLOSED,
        _R.BULK_LINE_MISMATCH,
        _R.BULK_TOTALS_MISMATCH,
        LedgerRefusal.INSTRUCTION_EXPIRED,
        statuses=STATUSES,
    ),
)
def add_bulk_lines(file: FilePath, body: BulkLinesRequest, context: Services, client: Channel) -> BulkLinesResponse:
    lines = [SignedLine(item.number, item.line_id, item.instruction) for item in body.lines]
    return BulkLinesResponse(lines=[_line_view(row) for row in bulk.receive_lines(context, file, lines)])


@router.post(
    "/v1/bulk-files/{file}/start",
    operation_id="start_bulk_file",
    summary="Pay the file, if lines and sum are what was announced",
    responses=problems(
        *SIGNED, _R.BULK_FILE_NOT_FOUND, _R.BULK_FILE_CLOSED, _R.BULK_TOTALS_MISMATCH, statuses=STATUSES
    ),
)
def start_bulk_file(file: FilePath, context: Services, client: Channel) -> BulkFileView:
    row = bulk.start_file(context, file)
    return _file_view(row, bulk.progress_of(context, row.id))


@router.post(
    "/v1/bulk-files/{file}/cancellation",
    operation_id="cancel_bulk_file",
    summary="Drop a file that was not started",
    responses=problems(*SIGNED, _R.BULK_FILE_NOT_FOUND, _R.BULK_FILE_CLOSED, statuses=STATUSES),
)
def cancel_bulk_file(file: FilePath, context: Services, client: Channel) -> BulkFileView:
    row = bulk.cancel_file(context, file)
    return _file_view(row, bulk.progress_of(context, row.id))


@router.get(
    "/v1/bulk-files/{file}",
    operation_id="get_bulk_file",
    summary="How far a payroll has come",
    responses=problems(*SIGNED, _R.BULK_FILE_NOT_FOUND, statuses=STATUSES),
)
def get_bulk_file(file: FilePath, context: Services, client: Reader) -> BulkFileView:
    row = bulk.find_file(context, file)
    return _file_view(row, bulk.progress_of(context, row.id))


@router.get(
    "/v1/bulk-files/{file}/lines",
    operation_id="list_bulk_lines",
    summary="What became of each line, in the file's order",
    responses=problems(*SIGNED, _R.BULK_FILE_NOT_FOUND, statuses=STATUSES),
)
def list_bulk_lines(
    file: FilePath,
    context: Services,
    client: Reader,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[BulkLineView]:
    filters = {"list": "bulk-lines", "file": file}
    after = 0 if cursor is None else int(decode(cursor, filters, shape=(int,))[0])
    rows = bulk.page_of_lines(context, file, after=after, limit=limit)
    return Page[BulkLineView](
        items=[_line_view(row) for row in rows],
        next_cursor=encode([rows[-1].number], filters) if len(rows) == limit else None,
    )


@router.get(
    "/v1/bulk-files/{file}/result",
    operation_id="get_bulk_result",
    summary="What became of each line, as CSV",
    responses={
        **problems(*SIGNED, _R.BULK_FILE_NOT_FOUND, statuses=STATUSES),
        200: {"content": {"text/csv": {"schema": {"type": "string"}}}, "description": "RFC 4180, UTF-8"},
    },
    response_class=StreamingResponse,
)
def get_bulk_result(file: FilePath, context: Services, client: Reader) -> StreamingResponse:
    name = f"blk_{file}.csv"
    headers = {"content-disposition": f'attachment; filename="{name}"', "x-content-type-options": "nosniff"}
    lines = bulk.result_csv(context, file)
    return StreamingResponse(lines, media_type="text/csv; charset=utf-8; header=present", headers=headers)


@router.get(
    "/v1/wallets/{wallet}/bulk-files",
    operation_id="list_bulk_files",
    summary="A wallet's payrolls, newest first, without progress",
    responses=problems(*SIGNED, _R.WALLET_NOT_FOUND, statuses=STATUSES),
)
def list_bulk_files(
    wallet: Annotated[WalletRef, Path()],
    context: Services,
    client: Reader,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[BulkFileView]:
    filters = {"list": "bulk-files", "wallet": wallet}
    before = None if cursor is None else listings.position_of_moment(decode(cursor, filters, shape=(int, str)))
    rows = bulk.list_files(context, wallet, before=before, limit=limit)
    return Page[BulkFileView](
        items=[_file_view(row, None) for row in rows],
        next_cursor=encode((to_micros(rows[-1].created_at), str(rows[-1].id)), filters) if len(rows) == limit else None,
    )


def _file_view(row: BulkFile, done: Progress | None) -> BulkFileView:
    return BulkFileView(
        file=row.id,
        wallet=row.wallet_id,
        currency=row.currency,
        content_sha256=row.content_sha256,
        lines=row.lines_total,
        total_minor=row.total_minor,
        state=BulkFileState(row.state),
        received=None if done is None else done.received,
        booked=None if done is None else done.booked,
        booked_minor=None if done is None else done.booked_minor,
        refused=None if done is None else done.refused,
        refused_minor=None if done is None else done.refused_minor,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def _line_view(row: BulkLine) -> BulkLineView:
    return BulkLineView(
        number=row.number,
        line_id=row.line_id,
        payment=row.payment_id,
        credit=row.credit_account,
        amount_minor=row.amount_minor,
        state=BulkLineState(row.state),
        refusal=row.refusal,
        transient=row.is_transient,
        detail=row.detail,
        seq=row.seq,
        booked_at=row.booked_at,
    )
