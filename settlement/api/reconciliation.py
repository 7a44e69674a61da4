"""Reconciliation's operations: each parses, calls one use case or query, and renders."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any
from uuid import UUID

from fastapi import Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from kernel import ids
from kernel.errors import ProblemError, RequestRefusal
from kernel.http import problems, strict_router
from kernel.ids import ParticipantId
from kernel.money import Currency
from kernel.pagination import PAGE_ITEMS_DEFAULT, Page, PageCursor, PageLimit, decode, encode
from ledger.contract import CurrencyCode, ParticipantRef
from settlement.api.auth import SIGNED, Caller, Operator, Signed
from settlement.api.service import Service, Services, not_found, parse_ref
from settlement.contract import STATUS_BY_REFUSAL
from settlement.contract.reconciliation import (
    BreakDetailView,
    BreakView,
    ControlBalanceView,
    ControlView,
    Counterparty,
    DecisionRequest,
    EventView,
    MappingRequest,
    MappingView,
    MatchView,
    ReconciliationRequest,
    ReconciliationView,
    RepairView,
    ReportView,
    RulesBody,
    SourceView,
    TableMappingBody,
)
from settlement.domain.reconciliation import AgeBucket, BreakType, MatchRule, age_bucket, severity
from settlement.domain.reconciliation.lifecycle import BreakState
from settlement.domain.reconciliation.session import rules_of_json, unpack_pairs
from settlement.domain.refusals import SettlementRefusal as R
from settlement.sources import SourceFormat
from settlement.store import reconciliation as store
from settlement.store import reports
from settlement.store.reconciliation import BreakFilter, BreakRow, RunRow, SourceRow
from settlement.usecases import breaks as officers_at_work
from settlement.usecases import reconcile as work
from settlement.usecases.control import Report
from settlement.usecases.evidence import make_evidence

router = strict_router()
BREAKS_SHOWN_MAX = 500
MAPPINGS_MAX = 1_000


def _ref(prefix: str) -> Any:
    example = f"{prefix}_0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"
    return Path(json_schema_extra={"pattern": ids.pattern(prefix), "examples": [example]})


ReconciliationPath = Annotated[str, _ref("rec")]
SourcePath = Annotated[str, _ref("src")]
BreakPath = Annotated[str, _ref("brk")]
_BODIES = {
    "application/xml": {"schema": {"type": "string"}},
    "text/csv": {"schema": {"type": "string"}},
    "application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}},
}


def _responses(*refusals: R | RequestRefusal) -> dict[int | str, dict[str, Any]]:
    return problems(*SIGNED, *refusals, statuses=STATUS_BY_REFUSAL)


# --- mappings and sources


@router.post(
    "/v1/reconciliation-mappings",
    tags=["reconciliation"],
    operation_id="keep_mapping",
    status_code=201,
    summary="Keep how a counterparty's tables are read; each change is a new version",
    responses=_responses(R.MAPPING_INVALID),
)
def keep_mapping(body: MappingRequest, service: Services, caller: Signed) -> MappingView:
    caller.require(body.participant)
    row = work.keep_mapping(
        body.mapping.model_dump(mode="json"),
        participant=body.participant,
        counterparty=body.counterparty,
        created_by=caller.participant,
        database=service.database,
        clock=service.clock,
    )
    return _mapping_view(row)


@router.get(
    "/v1/reconciliation-mappings",
    tags=["reconciliation"],
    operation_id="list_mappings",
    summary="The newest mapping of each counterparty",
    responses=_responses(),
)
def list_mappings(service: Services, caller: Signed, participant: ParticipantRef | None = None) -> list[MappingView]:
    mine = _only_own(caller, participant)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        return [_mapping_view(row) for row in store.mappings(connection, mine, limit=MAPPINGS_MAX)]


@router.post(
    "/v1/reconciliation-sources",
    tags=["reconciliation"],
    operation_id="add_source",
    status_code=201,
    response_model=SourceView,
    summary="Hand in a counterparty's file: camt.053, or a table (CSV, Parquet) by its mapping",
    responses=_responses(R.STATEMENT_INVALID),
    openapi_extra={"requestBody": {"required": True, "content": _BODIES}},
)
async def add_source(
    request: Request,
    service: Services,
    caller: Signed,
    participant: Annotated[ParticipantRef, Query()],
    counterparty: Annotated[Counterparty, Query()],
    format: Annotated[SourceFormat, Query()],
    account: Annotated[str | None, Query(min_length=1, max_length=34)] = None,
) -> SourceView:
    caller.require(participant)
    wanted = work.NewSource(await request.body(), format, participant, counterparty, account, caller.participant)

    def take() -> SourceRow:
        return work.take_source(
            wanted, database=service.database, files_directory=service.files_directory, clock=service.clock
        )

    return _source_view(await run_in_threadpool(take))


@router.get(
    "/v1/reconciliation-sources/{source}",
    tags=["reconciliation"],
    operation_id="get_source",
    summary="A source: what was handed in, and its digest",
    responses=_responses(R.SOURCE_NOT_FOUND),
)
def get_source(source: SourcePath, service: Services, caller: Signed) -> SourceView:
    key = parse_ref("src", source, R.SOURCE_NOT_FOUND)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        row = store.find_source(connection, key)
    if row is None or not caller.may_see(row.participant):
        not_found(R.SOURCE_NOT_FOUND)
    return _source_view(row)


# --- runs


@router.post(
    "/v1/reconciliations",
    tags=["reconciliation"],
    operation_id="reconcile",
    status_code=201,
    summary="Compare two sides line by line: a counterparty's file with the bridge's record, or with another file",
    responses=_responses(
        R.CURRENCY_NOT_SERVED,
        R.RULES_INVALID,
        R.SOURCE_NOT_FOUND,
        R.SOURCE_OF_ANOTHER_RELATION,
        R.BATCH_NOT_FOUND,
        R.STATEMENT_OF_ANOTHER_ACCOUNT,
        R.STATEMENT_INVALID,
        R.RECONCILIATION_ID_REUSED,
    ),
)
def reconcile(body: ReconciliationRequest, service: Services, caller: Signed) -> ReconciliationView:
    caller.require(body.participant)
    currency = _currency(body.currency)
    try:
        rules = rules_of_json(body.rules.model_dump(mode="json"))
    except ValueError as error:
        raise ProblemError(R.RULES_INVALID, str(error)) from None
    wanted = work.Wanted(
        body.reconciliation,
        body.participant,
        body.counterparty,
        currency,
        body.their_source,
        body.our_source,
        body.batch,
        body.booked_from,
        body.booked_to,
        body.view,
        rules,
        body.as_of,
    )
    with service.heavy_work():
        row = work.reconcile(
            wanted,
            account=service.directory.account(body.participant, currency),
            run_by=caller.participant,
            database=service.database,
            files_directory=service.files_directory,
            clock=service.clock,
        )
    return _run_view(service, row, with_breaks=True)


@router.get(
    "/v1/reconciliations",
    tags=["reconciliation"],
    operation_id="list_reconciliations",
    summary="Reconciliations, newest first, without their breaks",
    responses=_responses(R.RECONCILIATION_NOT_FOUND, R.BATCH_NOT_FOUND),
)
def list_reconciliations(
    service: Services,
    caller: Signed,
    participant: ParticipantRef | None = None,
    currency: CurrencyCode | None = None,
    batch: Annotated[str | None, Query(max_length=64)] = None,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[ReconciliationView]:
    filters = {"participant": participant, "currency": currency, "batch": batch}
    before = _after(cursor, filters, "rec", R.RECONCILIATION_NOT_FOUND)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        rows = store.runs_page(
            connection,
            participant=_only_own(caller, participant),
            currency=currency,
            batch=None if batch is None else parse_ref("bat", batch, R.BATCH_NOT_FOUND),
            before=before,
            limit=limit + 1,
        )
    more = encode([ids.show("rec", rows[limit - 1].id)], filters) if len(rows) > limit else None
    return Page(items=[_run_view(service, row, with_breaks=False) for row in rows[:limit]], next_cursor=more)


@router.get(
    "/v1/reconciliations/{reconciliation}",
    tags=["reconciliation"],
    operation_id="get_reconciliation",
    summary="A reconciliation and the breaks that it found",
    responses=_responses(R.RECONCILIATION_NOT_FOUND),
)
def get_reconciliation(reconciliation: ReconciliationPath, service: Services, caller: Signed) -> ReconciliationView:
    return _run_view(service, _run(service, caller, reconciliation), with_breaks=True)


@router.get(
    "/v1/reconciliations/{reconciliation}/breaks",
    tags=["reconciliation"],
    operation_id="list_findings",
    summary="Every break that a reconciliation found, in the order of its report",
    responses=_responses(R.RECONCILIATION_NOT_FOUND),
)
def list_findings(
    reconciliation: ReconciliationPath,
    service: Services,
    caller: Signed,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[BreakView]:
    row = _run(service, caller, reconciliation)
    filters = {"reconciliation": reconciliation}
    after = _number(cursor, filters)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        found = store.findings_of(connection, row.id, after=after, limit=limit)
    more = encode([after + limit], filters) if after + limit < row.finding_count else None
    return Page(items=[_break_view(item, service) for item in found], next_cursor=more)


@router.get(
    "/v1/reconciliations/{reconciliation}/matches",
    tags=["reconciliation"],
    operation_id="list_matches",
    summary="Matches, each with the rule that made it: first those of several lines or none by id, then by id",
    responses=_responses(R.RECONCILIATION_NOT_FOUND),
)
def list_matches(
    reconciliation: ReconciliationPath,
    service: Services,
    caller: Signed,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[MatchView]:
    row = _run(service, caller, reconciliation)
    filters = {"reconciliation": reconciliation}
    after = _number(cursor, filters)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        undone = store.unmatched(connection, row.id)
        items = [
            _match_view(MatchRule(x.rule), x.our_positions, x.their_positions, x.difference_minor, undone)
            for x in store.matches_of(connection, row.id)
        ]
        chosen = items[after : after + limit]
        start, total = len(items), len(items)
        for block in store.pairs_of(connection, row.id):
            first, last = max(after - start, 0), min(after + limit - start, block.count)
            if first < last:
                pairs = unpack_pairs(MatchRule(block.rule), block.positions)
                ours, theirs = pairs.ours[first:last].tolist(), pairs.theirs[first:last].tolist()
                chosen += [_match_view(pairs.rule, [a], [b], 0, undone) for a, b in zip(ours, theirs, strict=True)]
            start += block.count
            total += block.count
    more = encode([after + limit], filters) if after + limit < total else None
    return Page(items=chosen, next_cursor=more)


@router.post(
    "/v1/reconciliations/{reconciliation}/unmatch",
    tags=["reconciliation"],
    operation_id="undo_match",
    status_code=201,
    summary="Take a match back by an officer's signed decision; its lines become an open break",
    responses=_responses(
        R.RECONCILIATION_NOT_FOUND, R.OFFICER_UNKNOWN, R.DECISION_INVALID, R.DECISION_ID_REUSED, R.MATCH_NOT_FOUND
    ),
)
def undo_match(
    reconciliation: ReconciliationPath, body: DecisionRequest, service: Services, caller: Signed
) -> BreakDetailView:
    row = officers_at_work.undo_match(
        body.token,
        run=_run(service, caller, reconciliation).id,
        officers=service.books.officers,
        database=service.database,
        files_directory=service.files_directory,
        clock=service.clock,
    )
    return _detail(service, row)


@router.get(
    "/v1/reconciliations/{reconciliation}/evidence",
    tags=["reconciliation"],
    operation_id="get_evidence",
    summary="The evidence pack: a signed zip that anybody can verify offline",
    response_class=Response,
    responses=_responses(R.RECONCILIATION_NOT_FOUND, R.SOURCE_NOT_FOUND)
    | {200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}, "description": "zip"}},
)
def get_evidence(reconciliation: ReconciliationPath, service: Services, caller: Signed) -> Response:
    row = _run(service, caller, reconciliation)
    with service.heavy_work():
        content = make_evidence(
            row, books=service.books, database=service.database, files_directory=service.files_directory
        )
    name = f"{ids.show('rec', row.id)}.evidence.zip"
    return Response(
        content, media_type="application/zip", headers={"content-disposition": f'attachment; filename="{name}"'}
    )


# --- breaks


@router.get(
    "/v1/breaks",
    tags=["reconciliation"],
    operation_id="list_breaks",
    summary="Breaks by state, type, age, assignee and relation, in the order in which they were opened",
    responses=_responses(R.RECONCILIATION_NOT_FOUND, R.BREAK_NOT_FOUND),
)
def list_breaks(
    service: Services,
    caller: Signed,
    participant: ParticipantRef | None = None,
    counterparty: Annotated[Counterparty | None, Query()] = None,
    currency: CurrencyCode | None = None,
    reconciliation: Annotated[str | None, Query(max_length=64)] = None,
    state: Annotated[list[BreakState] | None, Query()] = None,
    type: Annotated[list[BreakType] | None, Query()] = None,
    bucket: AgeBucket | None = None,
    assignee: Annotated[str | None, Query(max_length=64)] = None,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[BreakView]:
    filters = {
        "participant": participant,
        "counterparty": counterparty,
        "currency": currency,
        "reconciliation": reconciliation,
        "state": ",".join(sorted(state or ())) or None,
        "type": ",".join(sorted(type or ())) or None,
        "bucket": None if bucket is None else bucket.value,
        "assignee": assignee,
    }
    wanted = BreakFilter(
        service.clock().date(),
        _only_own(caller, participant),
        counterparty,
        currency,
        None if reconciliation is None else parse_ref("rec", reconciliation, R.RECONCILIATION_NOT_FOUND),
        tuple(item.value for item in state or ()),
        tuple(item.value for item in type or ()),
        filters["bucket"],
        assignee,
    )
    after = _after(cursor, filters, "brk", R.BREAK_NOT_FOUND)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        rows = store.breaks_page(connection, wanted, after=after, limit=limit + 1)
    more = encode([ids.show("brk", rows[limit - 1].id)], filters) if len(rows) > limit else None
    return Page(items=[_break_view(row, service) for row in rows[:limit]], next_cursor=more)


@router.get(
    "/v1/breaks/{found}",
    tags=["reconciliation"],
    operation_id="get_break",
    summary="A break, the history of every decision on it, and its repairs",
    responses=_responses(R.BREAK_NOT_FOUND),
)
def get_break(found: BreakPath, service: Services, caller: Signed) -> BreakDetailView:
    return _detail(service, _found(service, caller, found))


@router.post(
    "/v1/breaks/{found}/decisions",
    tags=["reconciliation"],
    operation_id="decide_break",
    status_code=201,
    summary="An officer's signed decision: assign, release, explain, propose, approve, reject, rematch, reopen",
    responses=_responses(
        R.BREAK_NOT_FOUND,
        R.OFFICER_UNKNOWN,
        R.DECISION_INVALID,
        R.DECISION_ID_REUSED,
        R.BREAK_HAS_MOVED_ON,
        R.BREAK_STATE_WRONG,
        R.FOUR_EYES,
        R.REPAIR_NOT_POSSIBLE,
        R.LINES_DO_NOT_BALANCE,
    ),
)
def decide_break(found: BreakPath, body: DecisionRequest, service: Services, caller: Signed) -> BreakDetailView:
    row = officers_at_work.decide_break(
        body.token,
        subject=_found(service, caller, found).id,
        officers=service.books.officers,
        database=service.database,
        directory=service.directory,
        checks=service.intake_checks,
        clock=service.clock,
    )
    service.worker.wake()
    return _detail(service, row)


# --- reports and the control


@router.get(
    "/v1/settlement-reports",
    tags=["reconciliation"],
    operation_id="list_settlement_report",
    summary="What was settled, by batch, participant, currency and value date; gross, with the net beside it",
    responses=_responses(R.BATCH_NOT_FOUND),
)
def list_settlement_report(
    service: Services,
    caller: Signed,
    batch: Annotated[str | None, Query(max_length=64)] = None,
    participant: ParticipantRef | None = None,
    currency: CurrencyCode | None = None,
    value_date_from: date | None = None,
    value_date_to: date | None = None,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[ReportView]:
    filters = {
        "batch": batch,
        "participant": participant,
        "currency": currency,
        "from": None if value_date_from is None else value_date_from.isoformat(),
        "to": None if value_date_to is None else value_date_to.isoformat(),
    }
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        rows = reports.settlement_report(
            connection,
            batch=None if batch is None else parse_ref("bat", batch, R.BATCH_NOT_FOUND),
            participant=_only_own(caller, participant),
            currency=currency,
            value_date_from=value_date_from,
            value_date_to=value_date_to,
            after=_place(cursor, filters),
            limit=limit + 1,
        )
    more = encode(list(rows[limit - 1].position), filters) if len(rows) > limit else None
    return Page(items=[_report_view(row) for row in rows[:limit]], next_cursor=more)


@router.get(
    "/v1/control",
    tags=["reconciliation"],
    operation_id="get_control",
    summary="The continuous control: nostro against vostro, escrows, open alarms",
    responses=_responses(),
)
def get_control(service: Services, caller: Operator) -> ControlView:
    return _control_view(service, service.books.control.report())


@router.post(
    "/v1/control/run",
    tags=["reconciliation"],
    operation_id="run_control",
    summary="Run a round of the control now",
    responses=_responses(),
)
def run_control(service: Services, caller: Operator) -> ControlView:
    service.books.control.run()
    return _control_view(service, service.books.control.report())


# --- lookups and cursors


def _only_own(caller: Caller, participant: ParticipantId | None) -> ParticipantId | None:
    """An institution sees its own; the bridge whatever it asks for."""
    if participant is not None:
        caller.require(participant)
        return participant
    return None if caller.is_operator else caller.participant


def _run(service: Service, caller: Caller, text: str) -> RunRow:
    key = parse_ref("rec", text, R.RECONCILIATION_NOT_FOUND)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        row = store.find_run(connection, key)
    if row is None or not caller.may_see(row.participant):
        not_found(R.RECONCILIATION_NOT_FOUND)
    return row


def _found(service: Service, caller: Caller, text: str) -> BreakRow:
    key = parse_ref("brk", text, R.BREAK_NOT_FOUND)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        row = store.find_break(connection, key)
    if row is None or not caller.may_see(row.participant):
        not_found(R.BREAK_NOT_FOUND)
    return row


def _after(cursor: str | None, filters: dict[str, Any], prefix: str, refusal: R) -> UUID | None:
    return None if cursor is None else parse_ref(prefix, str(decode(cursor, filters, shape=(str,))[0]), refusal)


def _number(cursor: str | None, filters: dict[str, Any]) -> int:
    after = 0 if cursor is None else int(decode(cursor, filters, shape=(int,))[0])
    if not 0 <= after < 2**31 - 1_000:
        raise _damaged()
    return after


def _place(cursor: str | None, filters: dict[str, Any]) -> tuple[str, str, str, str] | None:
    if cursor is None:
        return None
    day, batch, participant, currency = (str(item) for item in decode(cursor, filters, shape=(str, str, str, str)))
    try:
        return date.fromisoformat(day).isoformat(), str(UUID(batch)), participant, currency
    except ValueError:
        raise _damaged() from None


def _damaged() -> ProblemError:
    reason = "the cursor is damaged: pass next_cursor unchanged"
    errors = [{"pointer": "/query/cursor", "message": reason}]
    return ProblemError(RequestRefusal.VALIDATION_FAILED, reason, errors=errors)


def _currency(code: str) -> Currency:
    try:
        return Currency.of(code)
    except ValueError as error:
        raise ProblemError(R.CURRENCY_NOT_SERVED, str(error)) from None


# --- views


def _mapping_view(row: store.MappingRow) -> MappingView:
    return MappingView(
        participant=row.participant,
        counterparty=row.counterparty,
        version=row.version,
        mapping=TableMappingBody.model_validate(row.content),
        sha256=row.sha256.hex(),
        created_by=row.created_by,
        created_at=row.created_at,
    )


def _source_view(row: SourceRow) -> SourceView:
    return SourceView(
        source=row.id,
        participant=row.participant,
        counterparty=row.counterparty,
        format=row.format,
        mapping_version=row.mapping_version,
        sha256=row.sha256.hex(),
        byte_count=row.byte_count,
        line_count=row.line_count,
        account=row.account,
        currency=row.currency,
        statement_id=row.statement_id,
        sequence_number=row.sequence_number,
        created_by=row.created_by,
        created_at=row.created_at,
    )


def _run_view(service: Service, row: RunRow, *, with_breaks: bool) -> ReconciliationView:
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        found = store.findings_of(connection, row.id, limit=BREAKS_SHOWN_MAX) if with_breaks else []
        theirs = store.find_source(connection, row.their_source)
    return ReconciliationView(
        reconciliation=row.id,
        batch=row.batch_id,
        participant=row.participant,
        counterparty=row.counterparty,
        currency=row.currency,
        account=row.account,
        view=row.view,
        our_source=row.our_source,
        their_source=row.their_source,
        their_sha256="" if theirs is None else theirs.sha256.hex(),
        rules=RulesBody.model_validate(row.rules),
        as_of=row.as_of,
        lines_ours=row.lines_ours,
        lines_theirs=row.lines_theirs,
        carried_ours=row.carried_ours,
        carried_theirs=row.carried_theirs,
        matched=row.matched,
        break_count=row.finding_count,
        closed_count=row.closed_count,
        breaks=[_break_view(item, service) for item in found],
        result_sha256=row.result_sha256.hex(),
        run_by=row.run_by,
        created_at=row.created_at,
    )


def _break_view(row: BreakRow, service: Service) -> BreakView:
    age_days = max(0, (service.clock().date() - row.oldest).days)
    gross = tuple((Currency.of(code), int(amount)) for code, amount in row.gross.items())
    return BreakView(
        id=row.id,
        reconciliation=row.run_id,
        participant=row.participant,
        counterparty=row.counterparty,
        currency=row.currency,
        account=row.account,
        type=row.type,
        side=row.side,
        also=row.also,
        our_references=row.our_references[: work.REFERENCES_SHOWN_MAX],
        their_references=row.their_references[: work.REFERENCES_SHOWN_MAX],
        our_amount_minor=row.our_amount_minor,
        their_amount_minor=row.their_amount_minor,
        difference_minor=row.difference_minor,
        gross_minor=row.gross,
        oldest=row.oldest,
        age_days=age_days,
        bucket=age_bucket(age_days),
        severity=severity(gross, age_bucket(age_days)),
        sentence=row.sentence,
        state=row.state,
        sequence=row.sequence,
        assignee=row.assignee,
        created_at=row.created_at,
    )


def _match_view(
    rule: MatchRule, ours: list[int], theirs: list[int], difference_minor: int, undone: set[tuple[int, int]]
) -> MatchView:
    return MatchView(
        rule=rule,
        our_positions=ours,
        their_positions=theirs,
        is_undone=bool(ours and theirs) and (ours[0], theirs[0]) in undone,
        difference_minor=difference_minor,
    )


def _detail(service: Service, row: BreakRow) -> BreakDetailView:
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        events, repairs = store.history(connection, row.id), store.repairs_of(connection, row.id)
    return BreakDetailView(
        found=_break_view(row, service),
        history=[
            EventView(
                sequence=event.sequence,
                kind=event.kind,
                actor=event.actor,
                at=event.at,
                reason=event.reason,
                assignee=event.assignee,
                decision=event.decision,
                reconciliation=event.run,
                token=event.token,
            )
            for event in events
        ],
        repairs=[
            RepairView(
                proposal=repair.id,
                kind=repair.kind,
                payer=repair.payer,
                payee=repair.payee,
                amount_minor=repair.amount_minor,
                currency=repair.currency,
                maker=repair.maker,
                checker=repair.checker,
                settlement=repair.settlement_id,
                proposed_at=repair.proposed_at,
                approved_at=repair.approved_at,
                booked_at=repair.booked_at,
            )
            for repair in repairs
        ],
    )


def _report_view(row: reports.ReportRow) -> ReportView:
    return ReportView(
        batch=row.batch,
        participant=row.participant,
        currency=row.currency,
        value_date=row.value_date,
        paid_legs=row.paid_legs,
        paid_minor=str(row.paid_minor),
        received_legs=row.received_legs,
        received_minor=str(row.received_minor),
        net_minor=str(row.net_minor),
    )


def _control_view(service: Service, report: Report) -> ControlView:
    return ControlView(
        is_good=not report.alarms,
        alarms=[_break_view(row, service) for row in report.alarms],
        settlements_checked=report.settlements,
        legs_checked=report.legs,
        checked_at=report.checked_at,
        balances=[
            ControlBalanceView(
                ledger=item.ledger,
                account=ids.show_account(item.account),
                participant=item.participant,
                currency=item.currency,
                bridge_minor=str(item.bridge_minor),
                island_minor=str(item.island_minor),
                legs=item.legs,
            )
            for item in report.balances
        ],
    )
