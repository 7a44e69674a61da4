"""The queue, limits, previews and runs: each route parses, calls one use case or query, and renders."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from kernel import idempotency, ids
from kernel.errors import ProblemError, RequestRefusal
from kernel.http import IdempotencyKey, problems, strict_router
from kernel.ids import ParticipantId
from kernel.pagination import PAGE_ITEMS_DEFAULT, Page, PageCursor, PageLimit, decode, encode
from ledger.contract import ParticipantRef
from settlement.api.auth import SIGNED, Caller, Operator, Signed
from settlement.api.service import Service, Services, not_found, parse_ref
from settlement.contract import STATUS_BY_REFUSAL
from settlement.contract.liquidity import (
    ApprovalRequest,
    FlowView,
    LimitRequest,
    LimitView,
    NeedView,
    PositionView,
    PreviewRequest,
    QueuedView,
    QueueRequest,
    QueueView,
    RunItemView,
    RunView,
    WhyView,
)
from settlement.domain.liquidity import limits as limit_rules
from settlement.domain.liquidity.model import Flow
from settlement.domain.liquidity.picture import positions_svg
from settlement.domain.refusals import SettlementRefusal as R
from settlement.store import batches, tables
from settlement.store import liquidity as store
from settlement.usecases import liquidity as desk_work

router = strict_router(tags=["liquidity"])
PRIORITY_NAMES = {rank: name for name, rank in batches.PRIORITY_RANK.items()}


def _ref(prefix: str) -> Any:
    example = f"{prefix}_0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"
    return Path(json_schema_extra={"pattern": ids.pattern(prefix), "examples": [example]})


RunPath = Annotated[str, _ref("lqr")]
SettlementPath = Annotated[str, _ref("stl")]


def _responses(*refusals: R | RequestRefusal) -> dict[int | str, dict[str, Any]]:
    return problems(*SIGNED, *refusals, statuses=STATUS_BY_REFUSAL)


# --- the queue


@router.get(
    "/v1/liquidity/queue",
    operation_id="list_queue",
    summary="Instructions that wait for a run, in queue order; an institution sees its own",
    responses=_responses(),
)
def list_queue(
    service: Services, caller: Signed, limit: PageLimit = PAGE_ITEMS_DEFAULT, cursor: PageCursor = None
) -> Page[QueuedView]:
    after = None
    if cursor is not None:
        priority, batch, position = decode(cursor, {}, shape=(int, str, int))
        after = (int(priority), parse_ref("bat", str(batch), R.BATCH_NOT_FOUND), int(position))
        if not 0 <= after[0] <= 2 or not 0 <= after[2] <= 2**31 - 1:
            raise ProblemError(RequestRefusal.VALIDATION_FAILED, "the cursor is damaged: pass next_cursor unchanged")
    party = None if caller.is_operator else caller.participant
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        found = store.queue_page(connection, after=after, limit=limit + 1, party=party)
    last = found[limit - 1] if len(found) > limit else None
    more = None if last is None else encode([last.priority, f"bat_{last.batch}", last.position], {})
    return Page(items=[_queued_view(row) for row in found[:limit]], next_cursor=more)


@router.post(
    "/v1/liquidity/queue",
    operation_id="queue_batch",
    summary="Put what has not begun of a batch into the queue; harmless if it is there",
    responses=_responses(R.BATCH_NOT_FOUND),
)
def queue_batch(body: QueueRequest, service: Services, caller: Signed) -> QueueView:
    count = desk_work.queue_batch(service.liquidity, body.batch, by=caller.participant, is_operator=caller.is_operator)
    return QueueView(batch=body.batch, queued=count)


@router.post(
    "/v1/liquidity/queue/{settlement}/release",
    operation_id="release_from_queue",
    status_code=204,
    response_class=Response,
    summary="Let one instruction settle by itself, at once: for its debtor and the operator",
    responses=_responses(R.SETTLEMENT_NOT_FOUND, R.LIQUIDITY_NOT_QUEUED, R.LIQUIDITY_NOT_RECEIVED),
)
def release_from_queue(settlement: SettlementPath, service: Services, caller: Signed) -> Response:
    key = parse_ref("stl", settlement, R.SETTLEMENT_NOT_FOUND)
    desk_work.release(service.liquidity, key, by=caller.participant, is_operator=caller.is_operator)
    service.worker.wake()
    return Response(status_code=204)


@router.get(
    "/v1/liquidity/why/{settlement}",
    operation_id="why_queued",
    summary="Why an instruction waits now, and the smallest amount that frees it; an institution sees its own part",
    responses=_responses(R.SETTLEMENT_NOT_FOUND, R.LIQUIDITY_NOT_QUEUED, R.LIQUIDITY_POSITIONS_UNKNOWN),
)
def why_queued(
    settlement: SettlementPath,
    service: Services,
    caller: Signed,
    method: Annotated[str, Query(pattern="^(strict|overtaking)$")] = "strict",
) -> WhyView:
    key = parse_ref("stl", settlement, R.SETTLEMENT_NOT_FOUND)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        row = batches.find_settlement(connection, key)
    if row is None or not caller.may_see(*row.parties):
        not_found(R.SETTLEMENT_NOT_FOUND)
    may_overtake = method == "overtaking"
    if may_overtake and not caller.is_operator:
        raise ProblemError(RequestRefusal.NOT_PERMITTED, "method=overtaking is for the bridge's operator: ask strict")
    viewer = None if caller.is_operator else caller.participant
    with service.heavy_work():
        found = desk_work.why(service.liquidity, key, may_overtake=may_overtake, viewer=viewer)
    return WhyView(
        settlement=key,
        sentence=found.sentence,
        needs=[NeedView.model_validate(desk_work.need_json(need)) for need in found.needs],
        is_worked_out=found.is_worked_out,
        behind=found.behind,
    )


# --- limits


@router.get(
    "/v1/liquidity/limits",
    operation_id="list_limits",
    summary="Limits, past and lifted ones too; an institution sees its own and the operator's caps on it",
    responses=_responses(),
)
def list_limits(service: Services, caller: Signed, participant: ParticipantRef | None = None) -> list[LimitView]:
    wanted = participant if caller.is_operator else caller.participant
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        found = store.limits(connection, participant=wanted)
    in_force = {limit.id for limit in limit_rules.in_force(found, on=service.clock().date())}
    return [_limit_view(limit, is_in_force=limit.id in in_force) for limit in found]


@router.post(
    "/v1/liquidity/limits",
    operation_id="set_limit",
    status_code=201,
    response_model=LimitView,
    summary="Set a limit from a day on: a participant its own, the operator caps; the same again is the same",
    responses=_responses(R.LIQUIDITY_LIMIT_INVALID, R.LIQUIDITY_LIMIT_ABOVE_CAP)
    | {200: {"model": LimitView, "description": "It stood before."}},
)
def set_limit(body: LimitRequest, service: Services, caller: Signed) -> Response:
    caller.require(body.participant)
    change = desk_work.LimitChange(
        body.kind,
        body.participant,
        body.currency,
        body.counterparty,
        None if body.amount_minor is None else int(body.amount_minor),
        body.valid_from,
    )
    made, is_new = desk_work.set_limit(service.liquidity, change, by=caller.participant, is_operator=caller.is_operator)
    is_in_force = made.amount_minor is not None and made.valid_from <= service.clock().date()
    content = _limit_view(made, is_in_force=is_in_force).model_dump(mode="json")
    return JSONResponse(content, status_code=201 if is_new else 200)


# --- previews and runs


@router.post(
    "/v1/liquidity/previews",
    operation_id="preview_run",
    status_code=201,
    response_model=RunView,
    summary="What a run would settle now, positions before and after, and why the rest would wait; nothing moves",
    responses=_responses(
        R.LIQUIDITY_POSITIONS_UNKNOWN,
        R.LIQUIDITY_SOLVER_MISSING,
        RequestRefusal.IDEMPOTENCY_KEY_REUSED,
        RequestRefusal.IDEMPOTENCY_IN_PROGRESS,
    ),
)
async def preview_run(
    body: PreviewRequest, request: Request, key: IdempotencyKey, service: Services, caller: Operator
) -> Response:
    return await run_in_threadpool(_preview, service, caller, body, await request.body(), key, request.url.path)


def _preview(service: Service, caller: Caller, body: PreviewRequest, content: bytes, key: str, path: str) -> Response:
    def work() -> tuple[int, dict[str, Any]]:
        wanted = desk_work.RunRequest(body.method, body.settle_as, body.seconds, body.weights)
        row = desk_work.preview(service.liquidity, wanted, by=caller.participant)
        return 201, _run_view(row).model_dump(mode="json")

    with service.database.transaction(isolation="READ COMMITTED") as connection:
        outcome = idempotency.run_once(
            connection,
            client=caller.participant,
            key=key,
            fingerprint=idempotency.fingerprint("POST", path, content),
            work=work,
            table=tables.idempotency,
            clock=service.clock,
        )
    return JSONResponse(outcome.body, status_code=outcome.status, headers=outcome.headers)


@router.get(
    "/v1/liquidity/runs",
    operation_id="list_runs",
    summary="Previews and runs, the newest first",
    responses=_responses(),
)
def list_runs(
    service: Services, caller: Operator, limit: PageLimit = PAGE_ITEMS_DEFAULT, cursor: PageCursor = None
) -> Page[RunView]:
    before = None
    if cursor is not None:
        before = parse_ref("lqr", str(decode(cursor, {}, shape=(str,))[0]), R.LIQUIDITY_RUN_NOT_FOUND)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        found = store.runs_page(connection, before=before, limit=limit + 1)
    more = encode([f"lqr_{found[limit - 1].id}"], {}) if len(found) > limit else None
    return Page(items=[_run_view(row) for row in found[:limit]], next_cursor=more)


@router.get(
    "/v1/liquidity/runs/{run}",
    operation_id="get_run",
    summary="A preview, and the run if it was started",
    responses=_responses(R.LIQUIDITY_RUN_NOT_FOUND),
)
def get_run(run: RunPath, service: Services, caller: Operator) -> RunView:
    return _run_view(_run(service, run))


@router.get(
    "/v1/liquidity/runs/{run}/positions.svg",
    operation_id="draw_run",
    summary="The run's positions before and after, drawn",
    response_class=Response,
    responses=_responses(R.LIQUIDITY_RUN_NOT_FOUND)
    | {200: {"content": {"image/svg+xml": {"schema": {"type": "string"}}}, "description": "A picture."}},
)
def draw_run(run: RunPath, service: Services, caller: Operator) -> Response:
    row = _run(service, run)
    positions = [
        (item["participant"], item["currency"], int(item["before_minor"]), int(item["after_minor"]))
        for item in row.summary["positions"]
    ]
    read_at = row.positions_read_at.isoformat(timespec="seconds")
    drawn = positions_svg(positions, title=f"Positions before and after run lqr_{row.id}, read at {read_at}")
    return Response(drawn, media_type="image/svg+xml")


@router.get(
    "/v1/liquidity/runs/{run}/instructions",
    operation_id="list_run_instructions",
    summary="What a run saw, in queue order: taken, or left and why; an institution sees its own once it has begun",
    responses=_responses(R.LIQUIDITY_RUN_NOT_FOUND),
)
def list_run_instructions(
    run: RunPath,
    service: Services,
    caller: Signed,
    is_taken: bool | None = None,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[RunItemView]:
    row = _run(service, run)
    if not caller.is_operator and row.state == "previewed":
        not_found(R.LIQUIDITY_RUN_NOT_FOUND)
    filters = {"run": run, "is_taken": None if is_taken is None else str(is_taken)}
    after = 0 if cursor is None else int(decode(cursor, filters, shape=(int,))[0])
    if not 0 <= after <= desk_work.QUEUE_RUN_MAX:
        raise ProblemError(RequestRefusal.VALIDATION_FAILED, "the cursor is damaged: pass next_cursor unchanged")
    party: ParticipantId | None = None if caller.is_operator else caller.participant
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        found = store.run_items(connection, row.id, after=after, limit=limit + 1, party=party, is_taken=is_taken)
    more = encode([found[limit - 1].place], filters) if len(found) > limit else None
    seen = found[:limit] if party is None else [desk_work.item_seen_by(item, party) for item in found[:limit]]
    return Page(items=[_item_view(item) for item in seen], next_cursor=more)


@router.post(
    "/v1/liquidity/runs/{run}/approvals",
    operation_id="approve_run",
    summary="An officer's signed approval of a run that breaks the queue's order; two officers are needed",
    responses=_responses(R.LIQUIDITY_RUN_NOT_FOUND, R.LIQUIDITY_APPROVAL_INVALID, R.LIQUIDITY_RUN_STARTED),
)
def approve_run(run: RunPath, body: ApprovalRequest, service: Services, caller: Operator) -> RunView:
    key = parse_ref("lqr", run, R.LIQUIDITY_RUN_NOT_FOUND)
    return _run_view(desk_work.approve(service.liquidity, key, body.token))


@router.post(
    "/v1/liquidity/runs/{run}/start",
    operation_id="start_run",
    status_code=202,
    summary="Settle what was previewed, all of it or nothing; harmless if it was started",
    responses=_responses(
        R.LIQUIDITY_RUN_NOT_FOUND,
        R.LIQUIDITY_RUN_EMPTY,
        R.LIQUIDITY_RUN_STALE,
        R.LIQUIDITY_RUN_UNDER_WAY,
        R.LIQUIDITY_RUN_OUT_OF_HOURS,
        R.CALENDAR_UNKNOWN,
        R.CALENDAR_NOT_COVERED,
        R.NO_JOINT_BUSINESS_DAY,
        R.LIQUIDITY_APPROVALS_MISSING,
    ),
)
def start_run(run: RunPath, service: Services, caller: Operator) -> RunView:
    key = parse_ref("lqr", run, R.LIQUIDITY_RUN_NOT_FOUND)
    row = desk_work.start(service.liquidity, key, by=caller.participant)
    service.worker.wake()
    return _run_view(row)


# --- views


def _run(service: Service, text: str) -> store.RunRow:
    key = parse_ref("lqr", text, R.LIQUIDITY_RUN_NOT_FOUND)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        row = store.find_run(connection, key)
    if row is None:
        not_found(R.LIQUIDITY_RUN_NOT_FOUND)
    return row


def _flow_view(flow: Flow) -> FlowView:
    return FlowView(payer=flow.payer, payee=flow.payee, amount_minor=flow.amount_minor, currency=flow.currency)


def _queued_view(row: store.QueueRow) -> QueuedView:
    return QueuedView.model_validate(
        {
            "settlement": row.id,
            "batch": row.batch,
            "uetr": row.uetr,
            "debtor": row.debtor,
            "creditor": row.creditor,
            "priority": PRIORITY_NAMES[row.priority],
            "queued_at": row.queued_at,
            "reason": row.reason,
            "is_started": row.is_started,
            "run": row.netted_by,
            "other_gates": list(row.other_gates),
            "flows": [_flow_view(flow) for flow in row.flows],
        }
    )


def _limit_view(limit: limit_rules.Limit, *, is_in_force: bool) -> LimitView:
    return LimitView(
        limit=limit.id,
        kind=limit.kind,
        participant=limit.participant,
        currency=limit.currency,
        counterparty=limit.counterparty,
        amount_minor=limit.amount_minor,
        valid_from=limit.valid_from,
        is_operator=limit.is_operator,
        set_by=limit.set_by,
        set_at=limit.set_at,
        is_in_force=is_in_force,
    )


def _run_view(row: store.RunRow) -> RunView:
    summary = row.summary
    return RunView.model_validate(
        {
            "run": row.id,
            "state": row.state,
            "method": row.method,
            "settle_as": row.settle_as,
            "needs_approval": row.needs_approval,
            "queue_count": row.queue_count,
            "taken_count": row.taken_count,
            "stages": summary["stages"],
            "taken_sha256": row.taken_sha256.hex(),
            "positions_read_at": row.positions_read_at,
            "positions": [PositionView.model_validate(item) for item in summary["positions"]],
            "value_minor": summary["value_minor"],
            "liquidity_used_minor": summary["liquidity_used_minor"],
            "net": [_flow_view(flow) for flow in desk_work.net_of(row)],
            "value": summary.get("value"),
            "bound": summary.get("bound"),
            "is_proven": summary.get("is_proven"),
            "seconds": summary["seconds"],
            "created_by": row.created_by,
            "created_at": row.created_at,
            "approved_by": list(row.approved_by),
            "started_by": row.started_by,
            "started_at": row.started_at,
            "ended_at": row.ended_at,
            "reason": row.reason,
            "netting": row.netting_id,
            "round": row.round,
        }
    )


def _item_view(item: store.RunItem) -> RunItemView:
    return RunItemView.model_validate(
        {
            "place": item.place,
            "settlement": item.settlement,
            "stage": item.stage,
            "round": item.round,
            "sentence": item.sentence,
            "needs": [NeedView.model_validate(need) for need in item.needs],
            "is_worked_out": item.is_worked_out,
        }
    )
