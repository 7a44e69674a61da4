"""Operations of streams, recalls and ISO 20022 messages: each parses, calls one use case or query, and renders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import Annotated, Any
from urllib.parse import urlencode
from uuid import UUID

from fastapi import Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from kernel import ids
from kernel.errors import ProblemError, RequestRefusal
from kernel.http import problems, strict_router
from kernel.ids import ParticipantId
from kernel.money import Currency
from kernel.pagination import PAGE_ITEMS_DEFAULT, Page, PageCursor, PageLimit, decode, encode
from ledger.contract import CurrencyCode, ParticipantRef
from settlement.api.auth import SIGNED, Caller, Signed
from settlement.api.service import Service, Services, not_found, parse_ref
from settlement.contract import STATUS_BY_REFUSAL
from settlement.contract.messages import (
    RECALL_PREFIX,
    STREAM_PREFIX,
    RecallItemView,
    RecallView,
    StreamBatchView,
    StreamRefusalView,
    StreamRequest,
    StreamView,
)
from settlement.domain.escrow import SettlementState
from settlement.domain.refusals import SettlementRefusal as R
from settlement.domain.statuses import confirmation_of
from settlement.domain.streams import StreamState
from settlement.iso20022.head001 import envelope
from settlement.iso20022.versions import DEFAULT, VERSIONS
from settlement.store import batches, messages
from settlement.store.messages import StreamRow
from settlement.usecases import messages as usecases
from settlement.usecases import streams
from settlement.usecases.messages import RecallStanding, WrittenPage

router = strict_router(tags=["messages"])
XML = "application/xml"
BYTES = "application/octet-stream"
MESSAGE_ITEMS_DEFAULT = 1_000
MESSAGE_ITEMS_MAX = 10_000
"""Instructions or entries in one message: some 7 MB."""


def _ref(prefix: str) -> Any:
    example = f"{prefix}_0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"
    return Path(json_schema_extra={"pattern": ids.pattern(prefix), "examples": [example]})


StreamPath = Annotated[str, _ref(STREAM_PREFIX)]
RecallPath = Annotated[str, _ref(RECALL_PREFIX)]
BatchPath = Annotated[str, _ref("bat")]
SettlementPath = Annotated[str, _ref("stl")]
OffsetPath = Annotated[str, Path(json_schema_extra={"pattern": "^(0|[1-9][0-9]{0,11})$", "examples": ["0"]})]
MessageLimit = Annotated[int, Query(ge=1, le=MESSAGE_ITEMS_MAX, description="Instructions or entries in the message.")]
Header = Annotated[
    str | None,
    Query(
        alias="header",
        max_length=20,
        description="Put the message in an envelope with a business application header of this version.",
        examples=list(VERSIONS["head.001"]),
    ),
]


def _version(kind: str) -> Any:
    return Query(
        max_length=20,
        description=f"Message version: {', '.join(VERSIONS[kind])}.",
        examples=list(VERSIONS[kind]),
    )


def _responses(*refusals: R | RequestRefusal) -> dict[int | str, dict[str, Any]]:
    return problems(*SIGNED, *refusals, statuses=STATUS_BY_REFUSAL)


def _xml_responses(*refusals: R | RequestRefusal) -> dict[int | str, dict[str, Any]]:
    ok = {
        "content": {XML: {"schema": {"type": "string"}}},
        "description": "The message. A header `Link: <...>; rel=next` leads to the next page, if there is one.",
    }
    return _responses(R.MESSAGE_VERSION_UNKNOWN, *refusals) | {200: ok}


# --- streams


@router.post(
    "/v1/streams",
    operation_id="open_stream",
    status_code=201,
    response_model=StreamView,
    summary="Announce a file of up to a million instructions; the same file again is the same stream",
    responses=_responses(R.STREAM_TOO_LARGE, R.STREAM_DIFFERS, R.TOO_MANY_STREAMS)
    | {200: {"model": StreamView, "description": "The file was announced before."}},
)
def open_stream(body: StreamRequest, service: Services, caller: Signed) -> Response:
    row, is_new = streams.open_stream(
        service.streams,
        submitter=caller.participant,
        is_operator=caller.is_operator,
        stream_format=body.format,
        sha256=bytes.fromhex(body.sha256),
        byte_count=body.byte_count,
    )
    view = _stream_view(service, row)
    return JSONResponse(view.model_dump(mode="json"), status_code=201 if is_new else 200)


@router.put(
    "/v1/streams/{stream}/parts/{offset}",
    operation_id="put_stream_part",
    response_model=StreamView,
    summary="Store bytes of a stream's file, in order; a part that is here already is acknowledged again",
    responses=_responses(R.STREAM_NOT_FOUND, R.STREAM_NOT_OPEN, R.STREAM_PART_MISPLACED, R.STREAM_PART_DIFFERS),
    openapi_extra={
        "requestBody": {"required": True, "content": {BYTES: {"schema": {"type": "string", "format": "binary"}}}}
    },
)
async def put_stream_part(
    request: Request, stream: StreamPath, offset: OffsetPath, service: Services, caller: Signed
) -> StreamView:
    content = await request.body()
    return await run_in_threadpool(_put_part, service, caller, stream, offset, content)


def _put_part(service: Service, caller: Caller, stream: str, offset: str, content: bytes) -> StreamView:
    row = _stream(service, caller, stream)
    if not (offset.isascii() and offset.isdigit() and len(offset) <= 12):
        raise ProblemError(R.STREAM_PART_MISPLACED, "an offset is a number", received_bytes=str(row.received_bytes))
    row = streams.put_part(service.streams, row.id, offset=int(offset), content=content)
    service.stream_worker.wake()
    return _stream_view(service, row)


@router.get(
    "/v1/streams",
    operation_id="list_streams",
    summary="Streams, newest first",
    responses=_responses(),
)
def list_streams(
    service: Services, caller: Signed, limit: PageLimit = PAGE_ITEMS_DEFAULT, cursor: PageCursor = None
) -> Page[StreamView]:
    after = None
    if cursor is not None:
        after = parse_ref(STREAM_PREFIX, str(decode(cursor, {}, shape=(str,))[0]), R.STREAM_NOT_FOUND)
    mine = None if caller.is_operator else caller.participant
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        found = messages.streams_page(connection, submitter=mine, after=after, limit=limit + 1)
    more = encode([ids.show(STREAM_PREFIX, found[limit - 1].id)], {}) if len(found) > limit else None
    return Page(items=[_stream_view(service, row, with_counts=False) for row in found[:limit]], next_cursor=more)


@router.get(
    "/v1/streams/{stream}",
    operation_id="get_stream",
    summary="How far a stream is: bytes received and read, lines booked and refused, settlements by state",
    responses=_responses(R.STREAM_NOT_FOUND),
)
def get_stream(stream: StreamPath, service: Services, caller: Signed) -> StreamView:
    return _stream_view(service, _stream(service, caller, stream))


@router.post(
    "/v1/streams/{stream}/withdraw",
    operation_id="withdraw_stream",
    summary="Give up a stream that is not wholly received; harmless if it is given up already",
    responses=_responses(R.STREAM_NOT_FOUND, R.STREAM_NOT_OPEN),
)
def withdraw_stream(stream: StreamPath, service: Services, caller: Signed) -> StreamView:
    return _stream_view(service, streams.withdraw(service.streams, _stream(service, caller, stream).id))


@router.get(
    "/v1/streams/{stream}/refusals",
    operation_id="list_stream_refusals",
    summary="The lines of a stream that were refused, in their order, each with its reason",
    responses=_responses(R.STREAM_NOT_FOUND),
)
def list_stream_refusals(
    stream: StreamPath,
    service: Services,
    caller: Signed,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[StreamRefusalView]:
    row = _stream(service, caller, stream)
    filters = {"stream": stream}
    after = _number(cursor, filters)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        found = messages.refusals_page(connection, row.id, after=after, limit=limit + 1)
    more = encode([found[limit - 1].number], filters) if len(found) > limit else None
    items = [
        StreamRefusalView(
            number=item.number,
            line=item.line,
            refusal=item.refusal,
            reason=item.reason,
            instruction_id=item.instruction_id,
            uetr=item.uetr,
        )
        for item in found[:limit]
    ]
    return Page(items=items, next_cursor=more)


@router.get(
    "/v1/streams/{stream}/batches",
    operation_id="list_stream_batches",
    summary="The batches that a stream was booked as, each with the range of its instructions",
    responses=_responses(R.STREAM_NOT_FOUND),
)
def list_stream_batches(stream: StreamPath, service: Services, caller: Signed) -> list[StreamBatchView]:
    row = _stream(service, caller, stream)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        found = messages.stream_batches(connection, row.id)
    return [
        StreamBatchView(batch=item.batch, first_number=item.first_number, last_number=item.last_number)
        for item in found
    ]


# --- pacs.002


@router.get(
    "/v1/streams/{stream}/status-report",
    operation_id="get_stream_status_report",
    summary="pacs.002 of a stream's instructions, refused ones included, page by page",
    response_class=Response,
    responses=_xml_responses(R.STREAM_NOT_FOUND),
)
def get_stream_status_report(
    request: Request,
    stream: StreamPath,
    service: Services,
    caller: Signed,
    version: Annotated[str, _version("pacs.002")] = DEFAULT["pacs.002"],
    header: Header = None,
    limit: MessageLimit = MESSAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Response:
    row = _stream(service, caller, stream)
    _check_version("pacs.002", version)
    filters = {"stream": stream}
    with service.database.transaction(isolation="REPEATABLE READ") as connection:
        page = usecases.stream_status_report(
            connection, row, after=_number(cursor, filters), limit=limit, version=version, now=service.clock()
        )
    return _xml(request, service, page, row.submitter, header, lambda place: encode([place], filters))


@router.get(
    "/v1/batches/{batch}/status-report",
    operation_id="get_batch_status_report",
    summary="pacs.002 of a batch's instructions, page by page",
    response_class=Response,
    responses=_xml_responses(R.BATCH_NOT_FOUND),
)
def get_batch_status_report(
    request: Request,
    batch: BatchPath,
    service: Services,
    caller: Signed,
    version: Annotated[str, _version("pacs.002")] = DEFAULT["pacs.002"],
    header: Header = None,
    limit: MessageLimit = MESSAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Response:
    key = parse_ref("bat", batch, R.BATCH_NOT_FOUND)
    _check_version("pacs.002", version)
    filters = {"batch": batch}
    with service.database.transaction(isolation="REPEATABLE READ") as connection:
        row = batches.find(connection, key)
        if row is None or not caller.may_see(row.submitter):
            not_found(R.BATCH_NOT_FOUND)
        page = usecases.batch_status_report(
            connection, row, after=_number(cursor, filters), limit=limit, version=version, now=service.clock()
        )
    return _xml(request, service, page, row.submitter, header, lambda place: encode([place], filters))


@router.get(
    "/v1/settlements/{settlement}/status-report",
    operation_id="get_settlement_status_report",
    summary="pacs.002 of one instruction",
    response_class=Response,
    responses=_xml_responses(R.SETTLEMENT_NOT_FOUND),
)
def get_settlement_status_report(
    request: Request,
    settlement: SettlementPath,
    service: Services,
    caller: Signed,
    version: Annotated[str, _version("pacs.002")] = DEFAULT["pacs.002"],
    header: Header = None,
) -> Response:
    key = parse_ref("stl", settlement, R.SETTLEMENT_NOT_FOUND)
    _check_version("pacs.002", version)
    with service.database.transaction(isolation="REPEATABLE READ") as connection:
        row = batches.find_settlement(connection, key)
        batch = None if row is None else batches.find(connection, row.batch)
        if row is None or batch is None or not caller.may_see(*row.parties, batch.submitter):
            not_found(R.SETTLEMENT_NOT_FOUND)
        stream = messages.stream_of_batch(connection, batch.id)
    content = usecases.settlement_status_report(row, batch, stream, version=version, now=service.clock())
    return _xml(request, service, WrittenPage(content, None), caller.participant, header, str)


# --- camt.052, 053, 054


def _account_message(
    request: Request,
    service: Service,
    caller: Caller,
    *,
    kind: str,
    participant: ParticipantId,
    currency: str,
    version: str,
    header: str | None,
    day: date | None,
    limit: int,
    cursor: str | None,
) -> Response:
    caller.require(participant)
    _check_version(kind, version)
    try:
        of_currency = Currency.of(currency)
    except ValueError as error:
        raise ProblemError(R.CURRENCY_NOT_SERVED, str(error)) from None
    account = service.directory.account(participant, of_currency)
    if account is None:
        raise ProblemError(R.ACCOUNT_MISSING, f"{participant} in {currency}")
    filters = {"kind": kind, "participant": participant, "currency": currency, "day": None if day is None else str(day)}
    page_number, after = 1, None
    if cursor is not None:
        moment, settlement, number, shown = decode(cursor, filters, shape=(str, str, int, int))
        after, page_number = _place(str(moment), str(settlement), int(number)), int(shown)
    if not 1 <= page_number <= 99_999:
        raise _bad_cursor()
    with service.database.transaction(isolation="REPEATABLE READ") as connection:
        page = usecases.account_message(
            connection,
            participant=participant,
            currency=of_currency,
            account=account,
            version=version,
            day=day,
            after=after,
            page=page_number,
            limit=limit,
            now=service.clock(),
        )

    def show(place: Any) -> str:
        return encode([place[0].isoformat(), str(place[1]), place[2], page_number + 1], filters)

    return _xml(request, service, page, participant, header, show)


def _place(moment: str, settlement: str, number: int) -> tuple[datetime, UUID, int]:
    try:
        at = datetime.fromisoformat(moment)
        if at.tzinfo is None:
            raise ValueError("no time zone")
        return at, UUID(settlement), number
    except (ValueError, OverflowError):
        raise _bad_cursor() from None


@router.get(
    "/v1/account-reports",
    operation_id="get_account_report",
    summary="camt.052: what the bridge moved on an account today, so far",
    response_class=Response,
    responses=_xml_responses(R.CURRENCY_NOT_SERVED, R.ACCOUNT_MISSING),
)
def get_account_report(
    request: Request,
    service: Services,
    caller: Signed,
    participant: ParticipantRef,
    currency: CurrencyCode,
    version: Annotated[str, _version("camt.052")] = DEFAULT["camt.052"],
    header: Header = None,
    limit: MessageLimit = MESSAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Response:
    return _account_message(
        request,
        service,
        caller,
        kind="camt.052",
        participant=participant,
        currency=currency,
        version=version,
        header=header,
        day=None,
        limit=limit,
        cursor=cursor,
    )


@router.get(
    "/v1/account-statements",
    operation_id="get_account_statement",
    summary="camt.053: what the bridge moved on an account on a day (UTC) that is over",
    response_class=Response,
    responses=_xml_responses(R.CURRENCY_NOT_SERVED, R.ACCOUNT_MISSING, R.DAY_NOT_OVER),
)
def get_account_statement(
    request: Request,
    service: Services,
    caller: Signed,
    participant: ParticipantRef,
    currency: CurrencyCode,
    day: Annotated[date, Query(description="UTC.", examples=["2026-11-02"])],
    version: Annotated[str, _version("camt.053")] = DEFAULT["camt.053"],
    header: Header = None,
    limit: MessageLimit = MESSAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Response:
    return _account_message(
        request,
        service,
        caller,
        kind="camt.053",
        participant=participant,
        currency=currency,
        version=version,
        header=header,
        day=day,
        limit=limit,
        cursor=cursor,
    )


@router.get(
    "/v1/notifications",
    operation_id="get_notifications",
    summary="camt.054: debits and credits of an account, of one day or since the cursor of an earlier answer",
    response_class=Response,
    responses=_xml_responses(R.CURRENCY_NOT_SERVED, R.ACCOUNT_MISSING),
)
def get_notifications(
    request: Request,
    service: Services,
    caller: Signed,
    participant: ParticipantRef,
    currency: CurrencyCode,
    day: Annotated[date | None, Query(description="UTC; without it, from the first on.")] = None,
    version: Annotated[str, _version("camt.054")] = DEFAULT["camt.054"],
    header: Header = None,
    limit: MessageLimit = MESSAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Response:
    return _account_message(
        request,
        service,
        caller,
        kind="camt.054",
        participant=participant,
        currency=currency,
        version=version,
        header=header,
        day=day,
        limit=limit,
        cursor=cursor,
    )


# --- recalls


@router.post(
    "/v1/recalls",
    operation_id="submit_recall",
    status_code=201,
    response_model=RecallView,
    summary="camt.056: ask payments back; what is undecided is given up, what is final stays",
    responses=_responses(R.RECALL_INVALID, R.RECALL_ID_REUSED)
    | {200: {"model": RecallView, "description": "The recall was taken in before."}},
    openapi_extra={"requestBody": {"required": True, "content": {XML: {"schema": {"type": "string", "minLength": 1}}}}},
)
async def submit_recall(request: Request, service: Services, caller: Signed) -> Response:
    content = await request.body()

    def work() -> tuple[RecallStanding, bool]:
        return usecases.submit_recall(
            content,
            submitter=caller.participant,
            is_operator=caller.is_operator,
            bridge=service.streams.bridge,
            database=service.database,
            clock=service.clock,
        )

    standing, is_new = await run_in_threadpool(work)
    service.worker.wake()
    return JSONResponse(_recall_view(standing).model_dump(mode="json"), status_code=201 if is_new else 200)


@router.get(
    "/v1/recalls/{recall}",
    operation_id="get_recall",
    summary="A recall, and what came of each payment",
    responses=_responses(R.RECALL_NOT_FOUND),
)
def get_recall(recall: RecallPath, service: Services, caller: Signed) -> RecallView:
    return _recall_view(_recall(service, caller, recall))


@router.get(
    "/v1/recalls/{recall}/resolution",
    operation_id="get_recall_resolution",
    summary="camt.029: the answer to a recall, as it stands",
    response_class=Response,
    responses=_xml_responses(R.RECALL_NOT_FOUND),
)
def get_recall_resolution(
    request: Request,
    recall: RecallPath,
    service: Services,
    caller: Signed,
    version: Annotated[str, _version("camt.029")] = DEFAULT["camt.029"],
    header: Header = None,
) -> Response:
    standing = _recall(service, caller, recall)
    _check_version("camt.029", version)
    bridge = service.streams.bridge
    content = usecases.resolution_message(standing, bridge=bridge, version=version, now=service.clock())
    return _xml(request, service, WrittenPage(content, None), standing.row.assigner, header, str)


# --- shared by the above


def _xml(
    request: Request,
    service: Service,
    page: WrittenPage,
    receiver: ParticipantId,
    header: str | None,
    show: Callable[[Any], str],
) -> Response:
    content = page.content
    if header is not None:
        _check_version("head.001", header)
        try:
            content = envelope(
                content,
                sender=service.streams.bridge,
                receiver=receiver,
                business_message_id=usecases.own_id(content),
                created_at=service.clock(),
                version=header,
            )
        except ValueError as error:
            raise ProblemError(R.MESSAGE_VERSION_UNKNOWN, str(error)) from None
    headers = {}
    if page.next_place is not None:
        query = dict(request.query_params) | {"cursor": show(page.next_place)}
        headers["link"] = f'<{request.url.path}?{urlencode(query)}>; rel="next"'
    return Response(content, media_type=XML, headers=headers)


def _check_version(kind: str, version: str) -> None:
    if version not in VERSIONS[kind]:
        raise ProblemError(R.MESSAGE_VERSION_UNKNOWN, f"{version!r} is not one of {', '.join(VERSIONS[kind])}")


def _number(cursor: str | None, filters: Mapping[str, str | None]) -> int:
    after = 0 if cursor is None else int(decode(cursor, filters, shape=(int,))[0])
    if not 0 <= after < 2**31:
        raise _bad_cursor()
    return after


def _bad_cursor() -> ProblemError:
    reason = "the cursor is damaged: pass it unchanged"
    errors = [{"pointer": "/query/cursor", "message": reason}]
    return ProblemError(RequestRefusal.VALIDATION_FAILED, reason, errors=errors)


def _stream(service: Service, caller: Caller, text: str) -> StreamRow:
    """A stream is its submitter's; to others it does not exist."""
    key = parse_ref(STREAM_PREFIX, text, R.STREAM_NOT_FOUND)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        row = messages.find_stream(connection, key)
    if row is None or not caller.may_see(row.submitter):
        not_found(R.STREAM_NOT_FOUND)
    return row


def _stream_view(service: Service, row: StreamRow, *, with_counts: bool = True) -> StreamView:
    counts = dict.fromkeys(SettlementState, 0)
    if with_counts and row.booked_count:
        with service.database.transaction(isolation="READ COMMITTED") as connection:
            found = messages.states_of_stream(connection, row.id)
        counts |= {SettlementState(state): count for state, count in found.items()}
    return StreamView(
        stream=row.id,
        submitter=row.submitter,
        format="csv" if row.format == "csv" else "xml",
        sha256=row.content_sha256.hex(),
        state=StreamState(row.state),
        byte_count=row.byte_count,
        received_bytes=row.received_bytes,
        read_bytes=row.read_bytes,
        message=row.message,
        message_id=row.message_id,
        line_count=row.line_count,
        refused_count=row.refused_count,
        booked_count=row.booked_count,
        counts=counts,
        refusal=row.refusal,
        reason=row.reason,
        created_at=row.created_at,
        received_at=row.received_at,
        ended_at=row.ended_at,
    )


def _recall(service: Service, caller: Caller, text: str) -> RecallStanding:
    key = parse_ref(RECALL_PREFIX, text, R.RECALL_NOT_FOUND)
    with service.database.transaction(isolation="REPEATABLE READ") as connection:
        standing = usecases.recall_standing(connection, key)
    if standing is None or not caller.may_see(standing.row.submitter):
        not_found(R.RECALL_NOT_FOUND)
    return standing


def _recall_view(standing: RecallStanding) -> RecallView:
    resolved = usecases.resolve(standing)
    return RecallView(
        recall=standing.row.id,
        assignment_id=standing.row.assignment_id,
        message=standing.row.message,
        confirmation=confirmation_of([item.status for item in resolved]),
        items=[
            RecallItemView(
                uetr=row.uetr or UUID(int=0),
                settlement=None if settlement is None else settlement.id,
                state=None if settlement is None else settlement.state,
                status=item.status,
                reason=item.reason,
                detail=" ".join(item.texts),
            )
            for (row, settlement), item in zip(standing.items, resolved, strict=True)
        ],
        received_at=standing.row.received_at,
    )
