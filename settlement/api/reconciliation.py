"""Runs of reconciliation, their matches and evidence: each operation parses, calls one use case, and renders."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Response

from kernel import ids
from kernel.errors import ProblemError
from kernel.http import strict_router
from kernel.pagination import PAGE_ITEMS_DEFAULT, Page, PageCursor, PageLimit, encode
from ledger.contract import CurrencyCode, ParticipantRef
from settlement.api.auth import Signed
from settlement.api.reconciliation_parts import (
    ReconciliationPath,
    after_number,
    after_ref,
    break_view,
    currency_of,
    detail_view,
    find_run,
    only_own,
    responses,
)
from settlement.api.service import Service, Services, parse_ref
from settlement.contract.reconciliation import (
    BreakDetailView,
    BreakView,
    DecisionRequest,
    MatchView,
    ReconciliationRequest,
    ReconciliationView,
    RulesBody,
)
from settlement.domain.reconciliation import MatchRule
from settlement.domain.reconciliation.session import rules_of_json, unpack_pairs
from settlement.domain.refusals import SettlementRefusal as R
from settlement.store import reconciliation as store
from settlement.store.reconciliation import RunRow
from settlement.usecases import breaks as officers_at_work
from settlement.usecases import reconcile as work
from settlement.usecases.evidence import make_evidence

router = strict_router()
BREAKS_SHOWN_MAX = 500


@router.post(
    "/v1/reconciliations",
    tags=["reconciliation"],
    operation_id="reconcile",
    status_code=201,
    summary="Compare two sides line by line: a counterparty's file with the bridge's record, or with another file",
    responses=responses(
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
    currency = currency_of(body.currency)
    try:
        rules = rules_of_json(body.rules.model_dump(mode="json"))
    except ValueError as error:
        raise ProblemError(R.RULES_INVALID, str(error)) from None
    calendars = service.oversight.calendars
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
        None if calendars is None else calendars.calendars.calendars.get(currency.code),
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
    responses=responses(R.RECONCILIATION_NOT_FOUND, R.BATCH_NOT_FOUND),
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
    before = after_ref(cursor, filters, "rec", R.RECONCILIATION_NOT_FOUND)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        rows = store.runs_page(
            connection,
            participant=only_own(caller, participant),
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
    responses=responses(R.RECONCILIATION_NOT_FOUND),
)
def get_reconciliation(reconciliation: ReconciliationPath, service: Services, caller: Signed) -> ReconciliationView:
    return _run_view(service, find_run(service, caller, reconciliation), with_breaks=True)


@router.get(
    "/v1/reconciliations/{reconciliation}/breaks",
    tags=["reconciliation"],
    operation_id="list_findings",
    summary="Every break that a reconciliation found, in the order of its report",
    responses=responses(R.RECONCILIATION_NOT_FOUND),
)
def list_findings(
    reconciliation: ReconciliationPath,
    service: Services,
    caller: Signed,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[BreakView]:
    row = find_run(service, caller, reconciliation)
    filters = {"reconciliation": reconciliation}
    after = after_number(cursor, filters)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        found = store.findings_of(connection, row.id, after=after, limit=limit)
    more = encode([after + limit], filters) if after + limit < row.finding_count else None
    return Page(items=[break_view(item, service) for item in found], next_cursor=more)


@router.get(
    "/v1/reconciliations/{reconciliation}/matches",
    tags=["reconciliation"],
    operation_id="list_matches",
    summary="Matches, each with the rule that made it: first those of several lines or none by id, then by id",
    responses=responses(R.RECONCILIATION_NOT_FOUND),
)
def list_matches(
    reconciliation: ReconciliationPath,
    service: Services,
    caller: Signed,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[MatchView]:
    row = find_run(service, caller, reconciliation)
    filters = {"reconciliation": reconciliation}
    after = after_number(cursor, filters)
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
    responses=responses(
        R.RECONCILIATION_NOT_FOUND, R.OFFICER_UNKNOWN, R.DECISION_INVALID, R.DECISION_ID_REUSED, R.MATCH_NOT_FOUND
    ),
)
def undo_match(
    reconciliation: ReconciliationPath, body: DecisionRequest, service: Services, caller: Signed
) -> BreakDetailView:
    row = officers_at_work.undo_match(
        body.token,
        run=find_run(service, caller, reconciliation).id,
        officers=service.books.officers,
        database=service.database,
        files_directory=service.files_directory,
        clock=service.clock,
    )
    return detail_view(service, row)


@router.get(
    "/v1/reconciliations/{reconciliation}/evidence",
    tags=["reconciliation"],
    operation_id="get_evidence",
    summary="The evidence pack: a signed zip that anybody can verify offline",
    response_class=Response,
    responses=responses(R.RECONCILIATION_NOT_FOUND, R.SOURCE_NOT_FOUND)
    | {200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}, "description": "zip"}},
)
def get_evidence(reconciliation: ReconciliationPath, service: Services, caller: Signed) -> Response:
    row = find_run(service, caller, reconciliation)
    with service.heavy_work():
        content = make_evidence(
            row, books=service.books, database=service.database, files_directory=service.files_directory
        )
    name = f"{ids.show('rec', row.id)}.evidence.zip"
    return Response(
        content, media_type="application/zip", headers={"content-disposition": f'attachment; filename="{name}"'}
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
        breaks=[break_view(item, service) for item in found],
        result_sha256=row.result_sha256.hex(),
        run_by=row.run_by,
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
