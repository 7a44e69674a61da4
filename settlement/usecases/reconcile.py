"""Reconciliation of a batch: the bridge's record of posted legs against a counterparty's camt.053."""

from __future__ import annotations

import hashlib
import io
from uuid import UUID

from kernel.clock import Clock
from kernel.database import Database
from kernel.errors import ProblemError
from kernel.ids import ParticipantId, new_uuid7
from kernel.money import Currency
from settlement.contract import STATEMENT_BYTES_MAX
from settlement.domain import reconciliation
from settlement.domain.refusals import SettlementRefusal
from settlement.iso20022.camt053 import read_camt053
from settlement.store import batches, reports
from settlement.usecases.statements import batch_entries


def reconcile_batch(
    content: bytes,
    *,
    batch: UUID,
    participant: ParticipantId,
    currency: Currency,
    run_by: ParticipantId,
    database: Database,
    clock: Clock,
) -> reports.ReconciliationRow:
    """Match, store the typed breaks, and return the run.

    `content` is a statement of the participant's account on the ledger of `currency`, covering the batch alone.
    Raises: ProblemError(statement-invalid with `problems`, batch-not-found).
    """
    read = read_camt053(io.BytesIO(content), bytes_max=STATEMENT_BYTES_MAX)
    theirs = read.statement
    if theirs is None:
        problems = [
            {"refusal": item.refusal.value, "index": item.index, "line": item.line, "reason": item.reason}
            for item in read.problems
        ]
        detail = read.problems[0].reason if read.problems else "no statement"
        raise ProblemError(SettlementRefusal.STATEMENT_INVALID, detail, problems=problems)
    now = clock()
    with database.transaction(isolation="REPEATABLE READ") as connection:
        if batches.find(connection, batch) is None:
            raise ProblemError(SettlementRefusal.BATCH_NOT_FOUND)
        rows = batches.posted_legs(connection, batch, participant=participant, currency=currency.code)
        ours = batch_entries(rows, participant)
        result = reconciliation.reconcile(ours, theirs.entries, as_of=now.date())
        breaks = (*result.breaks, *read.findings)
        run = reports.ReconciliationRow(
            id=new_uuid7(),
            batch_id=batch,
            participant=participant,
            currency=currency.code,
            file_sha256=hashlib.sha256(content).digest(),
            as_of=now.date(),
            lines_ours=len(ours),
            lines_theirs=len(theirs.entries),
            matched=len(result.matched),
            run_by=run_by,
            created_at=now,
        )
        reports.insert_reconciliation(connection, run, breaks)
        stored = reports.find_reconciliation(connection, run.id)
    if stored is None:
        raise RuntimeError("the run just stored is not there")
    return stored
