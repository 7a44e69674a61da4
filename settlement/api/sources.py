"""Counterparties' files and how their tables are read: each operation parses, calls one use case, and renders."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request
from starlette.concurrency import run_in_threadpool

from kernel.http import strict_router
from ledger.contract import ParticipantRef
from settlement.api.auth import Signed
from settlement.api.reconciliation_parts import SourcePath, only_own, responses
from settlement.api.service import Services, not_found, parse_ref
from settlement.contract.reconciliation import (
    Counterparty,
    MappingRequest,
    MappingView,
    SourceView,
    TableMappingBody,
)
from settlement.domain.refusals import SettlementRefusal as R
from settlement.sources import SourceFormat, is_validated
from settlement.store import reconciliation as store
from settlement.store.reconciliation import SourceRow
from settlement.usecases import reconcile as work

router = strict_router()
MAPPINGS_MAX = 1_000
_BODIES = {
    "application/xml": {"schema": {"type": "string"}},
    "text/csv": {"schema": {"type": "string"}},
    "application/zip": {"schema": {"type": "string", "format": "binary"}},
    "application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}},
}


@router.post(
    "/v1/reconciliation-mappings",
    tags=["reconciliation"],
    operation_id="keep_mapping",
    status_code=201,
    summary="Keep how a counterparty's tables are read; each change is a new version",
    responses=responses(R.MAPPING_INVALID),
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
    responses=responses(),
)
def list_mappings(service: Services, caller: Signed, participant: ParticipantRef | None = None) -> list[MappingView]:
    mine = only_own(caller, participant)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        return [_mapping_view(row) for row in store.mappings(connection, mine, limit=MAPPINGS_MAX)]


@router.post(
    "/v1/reconciliation-sources",
    tags=["reconciliation"],
    operation_id="add_source",
    status_code=201,
    response_model=SourceView,
    summary="Hand in a counterparty's file: camt.052, .053, .054, or a table (CSV, Parquet) by its mapping",
    responses=responses(R.STATEMENT_INVALID),
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
    responses=responses(R.SOURCE_NOT_FOUND),
)
def get_source(source: SourcePath, service: Services, caller: Signed) -> SourceView:
    key = parse_ref("src", source, R.SOURCE_NOT_FOUND)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        row = store.find_source(connection, key)
    if row is None or not caller.may_see(row.participant):
        not_found(R.SOURCE_NOT_FOUND)
    return _source_view(row)


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
        message=row.message,
        is_schema_validated=is_validated(row.message),
        created_by=row.created_by,
        created_at=row.created_at,
    )
