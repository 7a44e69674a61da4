"""The relay's operations: what is kept of the islands, and a settlement's proofs."""

from __future__ import annotations

from typing import Annotated, Literal, cast

from fastapi import Path

from kernel import ids
from kernel.clock import Clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import SigningKey
from kernel.database import Database
from kernel.errors import ProblemError
from kernel.http import problems, strict_router
from ledger.client import LedgerClient
from settlement.api.auth import SIGNED, Operator, Signed
from settlement.api.service import Service, Services, not_found, parse_ref
from settlement.contract import STATUS_BY_REFUSAL
from settlement.contract.relay import ALARMS_MAX, AlarmView, KeptIslandView, RelayView
from settlement.domain.refusals import SettlementRefusal as R
from settlement.islands.evm.rpc import Node
from settlement.relay.bundle import ProofBundle
from settlement.relay.keeping import AlarmKind
from settlement.relay.trust import EvmTrust, read_trust
from settlement.settings import Directory, SettlementSettings
from settlement.store import batches
from settlement.store.relay import AlarmRow
from settlement.usecases.relay import Relay

router = strict_router(tags=["relay"])

_EXAMPLE = "stl_0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"
SettlementPath = Annotated[str, Path(json_schema_extra={"pattern": ids.pattern("stl"), "examples": [_EXAMPLE]})]


@router.get(
    "/v1/relay",
    operation_id="get_relay",
    summary="What is kept of each island: its newest signed checkpoint or header, and every alarm",
    responses=problems(*SIGNED, R.RELAY_OFF, statuses=STATUS_BY_REFUSAL),
)
def get_relay(service: Services, caller: Operator) -> RelayView:
    relay = _relay(service)
    return RelayView(
        keeper=relay.keeper,
        islands=[
            KeptIslandView(
                ledger=item.ledger,
                kind=cast(Literal["native", "evm"], item.kind),
                height=item.height,
                head=item.head,
                note=item.note,
                failure=item.failure,
            )
            for item in relay.standings()
        ],
        alarms=[_alarm(row) for row in relay.alarms(limit=ALARMS_MAX)],
    )


@router.get(
    "/v1/settlements/{settlement}/proofs",
    operation_id="get_settlement_proofs",
    summary="Each leg's statement with its proof, and the headers they stand under; to be checked offline",
    responses=problems(*SIGNED, R.RELAY_OFF, R.SETTLEMENT_NOT_FOUND, R.NOTHING_TO_PROVE, statuses=STATUS_BY_REFUSAL),
)
def get_settlement_proofs(settlement: SettlementPath, service: Services, caller: Signed) -> ProofBundle:
    """For the parties and the bridge's operator. A leg that cannot be proved yet says why."""
    relay = _relay(service)
    key = parse_ref("stl", settlement, R.SETTLEMENT_NOT_FOUND)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        row = batches.find_settlement(connection, key)
    if row is None or not caller.may_see(*row.parties):
        not_found(R.SETTLEMENT_NOT_FOUND)
    bundle = relay.prove(row)
    if bundle is None:
        raise ProblemError(R.NOTHING_TO_PROVE)
    return bundle


def connect_relay(
    settings: SettlementSettings, directory: Directory, key: SigningKey, *, database: Database, clock: Clock
) -> Relay | None:
    """None if the settings name no trust file. Nothing is dialled yet. Raises OSError, ValueError."""
    if settings.relay_path is None:
        return None
    trust = read_trust(settings.relay_path)
    ledgers, nodes = {}, {}
    timeout = settings.call_timeout_seconds
    for island in trust.islands:
        entry = directory.ledgers.get(island.ledger)
        if entry is None or entry.currency != island.currency:
            raise ValueError(f"{settings.relay_path}: {island.ledger} is no ledger of this bridge in {island.currency}")
        if isinstance(island, EvmTrust) and entry.kind == "evm":
            nodes[island.ledger] = Node(entry.url, timeout_seconds=timeout)
        elif island.kind == "native" and entry.kind == "native":
            ledgers[island.ledger] = LedgerClient(entry.url, signer=RequestSigner(key), timeout_seconds=timeout)
    return Relay(trust, ledgers, nodes, database=database, clock=clock, name=settings.participant, key=key)


def _relay(service: Service) -> Relay:
    if service.relay is None:
        raise ProblemError(R.RELAY_OFF)
    return service.relay


def _alarm(row: AlarmRow) -> AlarmView:
    is_note = row.kind is not AlarmKind.CONTRADICTION
    first, second = ((side.decode() if is_note else side.hex()) for side in (row.first, row.second))
    return AlarmView(
        alarm=row.id,
        ledger=row.ledger,
        kind=row.kind,
        detail=row.detail,
        first=first,
        second=second,
        raised_at=row.raised_at,
    )
