"""The transparency log over HTTP: checkpoint and tiles for any C2SP client, proofs, supply statements, receipts.

Everything but receipts is public, unsigned and cacheable: a tile says nothing of a transfer without its salt. Entry
bundles (`/tile/entries/...`) would hold the salted transfers themselves, so there are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import Depends, Path, Query, Response

from kernel import pagination
from kernel.errors import ProblemError, Refusal, RequestRefusal
from kernel.http import problems, strict_router
from kernel.limits import PAGE_ITEMS_DEFAULT, PAGE_ITEMS_MAX
from kernel.pagination import Page, PageCursor, PageLimit
from kernel.transparency.merkle import SIZE_MAX
from kernel.transparency.tiles import LEVEL_MAX, TILE_WIDTH, TiledTree, entries, parse_tile_index
from ledger.api.auth import required_caller
from ledger.api.routes import booked_transfer
from ledger.api.service import Service, service_of
from ledger.contract import (
    STATUS_BY_REFUSAL,
    CheckpointView,
    ConsistencyProofView,
    IncidentAcknowledgement,
    IncidentView,
    InclusionProofView,
    LogView,
    LogWitnessView,
)
from ledger.domain.vocabulary import LedgerRefusal
from ledger.log import incidents, queries
from ledger.log.incidents import Incident
from ledger.log.issue import make_receipt
from ledger.log.queries import SealedCheckpoint
from ledger.log.service import WITNESSES_MAX, TransparencyLog
from ledger.receipts import Receipt, SupplyStatement
from ledger.usecases.keyring import Caller

router = strict_router(tags=["transparency log"])
Signed = Annotated[Caller, Depends(required_caller)]
Running = Annotated[Service, Depends(service_of)]
TreeSize = Annotated[int, Query(ge=0, le=SIZE_MAX)]
NEWEST = "public, max-age=1"
FOR_EVER = "public, max-age=31536000, immutable"
_TEXT = "text/plain; charset=utf-8"
_SIGNATURE = (
    RequestRefusal.SIGNATURE_MISSING,
    RequestRefusal.SIGNATURE_INVALID,
    RequestRefusal.SIGNATURE_STALE,
    RequestRefusal.SIGNATURE_REPLAYED,
)


def _refusals(*refusals: Refusal) -> dict[int | str, dict[str, Any]]:
    return problems(*refusals, statuses=STATUS_BY_REFUSAL)


def _log(service: Running) -> TransparencyLog:
    if service.log is None:
        raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "this ledger keeps no transparency log")
    return service.log


Log = Annotated[TransparencyLog, Depends(_log)]


def _latest(connection: sa.Connection) -> SealedCheckpoint:
    found = queries.latest_checkpoint(connection)
    if found is None:
        raise ProblemError(LedgerRefusal.NOT_SEALED)
    return found


@router.get(
    "/checkpoint",
    operation_id="get_checkpoint",
    summary="The newest checkpoint, with its cosignatures",
    response_class=Response,
    responses={
        200: {"description": "A signed note (C2SP tlog-checkpoint).", "content": {_TEXT: {}}},
        **_refusals(LedgerRefusal.NOT_SEALED),
    },
)
def get_checkpoint(service: Running, log: Log) -> Response:
    """Origin, size and root of the tree, the block it ends with and the digest of the supply statement; signed by the
    log, cosigned by witnesses."""
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        note = queries.cosigned_notes(connection, [_latest(connection)])[0]
    return Response(note, headers={"content-type": _TEXT, "cache-control": NEWEST})


@router.get(
    "/tile/{level}/{index:path}",
    operation_id="get_tile",
    summary="A tile of the Merkle tree",
    response_class=Response,
    responses={
        200: {"description": "Hashes of 32 bytes.", "content": {"application/octet-stream": {}}},
        **_refusals(LedgerRefusal.TILE_NOT_FOUND),
    },
)
def get_tile(
    level: Annotated[str, Path(max_length=8, description="0 to 7.")],
    index: Annotated[str, Path(max_length=64, description="`x001/x234/067`, partial tiles with `.p/<width>`.")],
    service: Running,
    log: Log,
) -> Response:
    """C2SP tlog-tiles: 256 hashes of 32 bytes, or the first `<width>` of them. It never changes."""
    try:
        number, width = parse_tile_index(index)
    except ValueError as error:
        raise ProblemError(LedgerRefusal.TILE_NOT_FOUND, str(error)) from None
    if level not in _LEVELS:
        raise ProblemError(LedgerRefusal.TILE_NOT_FOUND, f"levels are 0 to {LEVEL_MAX}; entries are not public")
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        latest = queries.latest_checkpoint(connection)
        if latest is None or entries(latest.size, int(level)) < number * TILE_WIDTH + width:
            raise ProblemError(LedgerRefusal.TILE_NOT_FOUND)
        hashes = queries.tile_reader(connection)(int(level), number, width)
    return Response(hashes, headers={"content-type": "application/octet-stream", "cache-control": FOR_EVER})


_LEVELS = frozenset(str(level) for level in range(LEVEL_MAX + 1))


@router.get("/v1/log", operation_id="get_log", summary="The log's origin, public key and witnesses")
def get_log(service: Running, log: Log) -> LogView:
    """What a reader has to know before he believes a checkpoint; get it from more than one place."""
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        latest = queries.latest_checkpoint(connection)
    return LogView(
        origin=log.keys.origin,
        vkey=str(log.keys.verifier_key),
        size=latest.size if latest is not None else 0,
        witnesses=[LogWitnessView(name=item.key.name, vkey=str(item.key)) for item in log.witnesses],
        failure=log.failure,
    )


@router.get(
    "/v1/log/incidents",
    operation_id="list_incidents",
    summary="Which checkpoints witnesses refused, and why",
    responses=_refusals(RequestRefusal.VALIDATION_FAILED),
)
def list_incidents(
    service: Running, log: Log, cursor: PageCursor = None, limit: PageLimit = PAGE_ITEMS_DEFAULT
) -> Page[IncidentView]:
    """The newest first; for everybody, with what operators have said of them."""
    before: tuple[int, str] | None = None
    if cursor is not None:
        block, witness = pagination.decode(cursor, {}, shape=(int, str))
        before = (int(block), str(witness))
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        found = incidents.list_incidents(connection, before=before, limit=limit + 1)
    items = [_incident_view(item) for item in found[:limit]]
    more = len(found) > limit
    return Page(items=items, next_cursor=pagination.encode([items[-1].block, items[-1].witness], {}) if more else None)


@router.post(
    "/v1/log/incidents/acknowledge",
    operation_id="acknowledge_incident",
    summary="Say what an incident was, once it is handled",
    responses=_refusals(
        *_SIGNATURE,
        RequestRefusal.NOT_PERMITTED,
        LedgerRefusal.INCIDENT_NOT_FOUND,
        LedgerRefusal.INCIDENT_ACKNOWLEDGED,
    ),
)
def acknowledge_incident(body: IncidentAcknowledgement, caller: Signed, service: Running, log: Log) -> IncidentView:
    """By an operator, once for each incident, for ever. The ledger's health is good again within some seconds, also
    while the witness still refuses; it is not when another refuses, or this one after it has cosigned again."""
    if not caller.is_operator:
        raise ProblemError(RequestRefusal.NOT_PERMITTED, "incidents are acknowledged by operators")
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        found = incidents.acknowledge(
            connection,
            body.witness,
            body.block,
            operator=caller.thumbprint,
            reason=body.reason,
            now=service.clock(),
        )
    if found is None:
        raise ProblemError(LedgerRefusal.INCIDENT_NOT_FOUND)
    if (found.operator, found.reason) != (caller.thumbprint, body.reason):
        raise ProblemError(LedgerRefusal.INCIDENT_ACKNOWLEDGED)
    return _incident_view(found)


def _incident_view(item: Incident) -> IncidentView:
    return IncidentView(**asdict(item))


@router.get(
    "/v1/log/checkpoints",
    operation_id="list_checkpoints",
    summary="Checkpoints, the newest first",
    responses=_refusals(RequestRefusal.VALIDATION_FAILED),
)
def list_checkpoints(
    service: Running,
    log: Log,
    cursor: Annotated[str | None, Query(max_length=1024)] = None,
    limit: Annotated[int, Query(ge=1, le=PAGE_ITEMS_MAX)] = PAGE_ITEMS_DEFAULT,
) -> Page[CheckpointView]:
    before = int(pagination.decode(cursor, {}, shape=(int,))[0]) if cursor is not None else None
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        found = queries.checkpoints_page(connection, before=before, limit=limit + 1)
        items = _checkpoint_views(connection, found[:limit])
    more = len(found) > limit
    return Page(items=items, next_cursor=pagination.encode([items[-1].block], {}) if more else None)


@router.get(
    "/v1/log/checkpoints/{size}",
    operation_id="get_checkpoint_of_size",
    summary="The checkpoint of one tree size",
    responses=_refusals(LedgerRefusal.CHECKPOINT_NOT_FOUND),
)
def get_checkpoint_of_size(size: Annotated[int, Path(ge=0, le=SIZE_MAX)], service: Running, log: Log) -> CheckpointView:
    """The newest of that size: while no transfer comes, other blocks are sealed with the same tree."""
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        found = queries.find_checkpoint(connection, size)
        if found is None:
            raise ProblemError(LedgerRefusal.CHECKPOINT_NOT_FOUND)
        return _checkpoint_views(connection, [found])[0]


def _checkpoint_views(connection: sa.Connection, found: Sequence[SealedCheckpoint]) -> list[CheckpointView]:
    return [
        CheckpointView(
            size=item.size,
            root=item.root,
            block=item.block,
            block_commitment=item.block_commitment,
            sealed_at=item.sealed_at,
            note=note,
        )
        for item, note in zip(found, queries.cosigned_notes(connection, found), strict=True)
    ]


@router.get(
    "/v1/log/inclusion",
    operation_id="get_inclusion_proof",
    summary="Proof that a leaf is in a tree",
    responses=_refusals(LedgerRefusal.NOT_SEALED, RequestRefusal.VALIDATION_FAILED),
)
def get_inclusion_proof(
    seq: Annotated[int, Query(ge=1, le=SIZE_MAX)],
    size: Annotated[int, Query(ge=1, le=SIZE_MAX)],
    service: Running,
    log: Log,
) -> InclusionProofView:
    """RFC 6962 section 2.1.1: leaf `seq - 1` in the tree of `size` leaves."""
    if seq > size:
        raise ProblemError(RequestRefusal.VALIDATION_FAILED, "the tree of that size does not hold that seq")
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        tree = _tree(connection, size)
        return InclusionProofView(
            leaf_index=seq - 1, leaf_hash=tree.leaf(seq - 1), tree_size=size, proof=tree.inclusion_proof(seq - 1)
        )


@router.get(
    "/v1/log/consistency",
    operation_id="get_consistency_proof",
    summary="Proof that one tree begins another",
    responses=_refusals(LedgerRefusal.NOT_SEALED, RequestRefusal.VALIDATION_FAILED),
)
def get_consistency_proof(old: TreeSize, new: TreeSize, service: Running, log: Log) -> ConsistencyProofView:
    """RFC 6962 section 2.1.2: the tree of `old` leaves is the beginning of the one of `new` leaves."""
    if old > new:
        raise ProblemError(RequestRefusal.VALIDATION_FAILED, "old is larger than new")
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        return ConsistencyProofView(old_size=old, new_size=new, proof=_tree(connection, new).consistency_proof(old))


def _tree(connection: sa.Connection, size: int) -> TiledTree:
    if size > _latest(connection).size:
        raise ProblemError(LedgerRefusal.NOT_SEALED)
    return TiledTree(size, queries.tile_reader(connection))


@router.get(
    "/v1/log/supply/{size}",
    operation_id="get_supply_statement",
    summary="The supply statement that a checkpoint signs",
    response_model=SupplyStatement,
    responses=_refusals(LedgerRefusal.CHECKPOINT_NOT_FOUND, LedgerRefusal.NOT_SEALED),
)
def get_supply_statement(
    size: Annotated[str, Path(pattern=r"^(latest|0|[1-9][0-9]{0,18})$")], service: Running, log: Log
) -> Response:
    """Canonical JSON (RFC 8785), byte for byte: its SHA-256 stands in the newest checkpoint of that size. The ledger's
    own word: witnesses vouch for the tree only."""
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        latest = _latest(connection)
        found = latest if size == "latest" else queries.find_checkpoint(connection, min(int(size), SIZE_MAX))
    if found is None:
        raise ProblemError(LedgerRefusal.CHECKPOINT_NOT_FOUND)
    caching = FOR_EVER if found.size < latest.size else NEWEST
    return Response(found.supply, media_type="application/json", headers={"cache-control": caching})


@router.get(
    "/v1/transfers/{transfer}/receipt",
    operation_id="get_receipt",
    summary="A receipt that verifies offline",
    responses=_refusals(*_SIGNATURE, LedgerRefusal.TRANSFER_NOT_FOUND, LedgerRefusal.NOT_SEALED),
)
def get_receipt(
    transfer: Annotated[str, Path(max_length=64)],
    caller: Signed,
    service: Running,
    log: Log,
    quorum: Annotated[int, Query(ge=0, le=WITNESSES_MAX, description="So many witnesses must have cosigned.")] = 0,
) -> Receipt:
    """The transfer with its proof of inclusion in the log, for the participants it concerns and for operators. A
    transfer is sealed within a second or two of its booking; until then `not-sealed`."""
    found = booked_transfer(service, caller, transfer)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        receipt = make_receipt(
            connection,
            found,
            master=log.keys.master,
            ledger=service.state.ledger,
            currency=service.state.currency,
            quorum=quorum,
        )
    if receipt is None:
        wanted = f"a checkpoint with {quorum} cosignatures" if quorum else "a checkpoint"
        detail = f"the transfer is booked, and not yet under {wanted}"
        raise ProblemError(LedgerRefusal.NOT_SEALED, detail)
    return receipt
