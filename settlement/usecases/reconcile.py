"""Reconciliation of a batch: the bridge's record of posted legs against a counterparty's camt.053."""

from __future__ import annotations

import hashlib
import io
from uuid import UUID

from kernel import ids
from kernel.clock import Clock
from kernel.database import Database
from kernel.errors import ProblemError
from kernel.ids import AccountNumber, ParticipantId, new_uuid7
from kernel.money import Currency
from settlement.contract import STATEMENT_BYTES_MAX
from settlement.domain import reconciliation
from settlement.domain.refusals import SettlementRefusal
from settlement.domain.statements import Statement
from settlement.iso20022.camt053 import read_camt053
from settlement.store import batches, reports
from settlement.usecases.statements import account_of, batch_entries


def reconcile_batch(
    content: bytes,
    *,
    batch: UUID,
    participant: ParticipantId,
    currency: Currency,
    account: AccountNumber | None,
    run_by: ParticipantId,
    database: Database,
    clock: Clock,
) -> reports.ReconciliationRow:
    """Match, store the typed breaks, and return the run.

    `content` is a statement of the participant's account on the ledger of `currency`. It may hold more than the batch:
    lines of other batches' settlements, and lines booked before the batch arrived, are not of it and left aside.
    `account` is that account as registered now; the batch's own legs, if any are posted, say which it was then.
    Raises: ProblemError(statement-invalid with `problems`, batch-not-found, statement-of-another-account).
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
        found = batches.find(connection, batch)
        if found is None:
            raise ProblemError(SettlementRefusal.BATCH_NOT_FOUND)
        rows = batches.posted_legs(connection, batch, participant=participant, currency=currency.code)
        _require_account(theirs, {account_of(leg, participant) for _, leg in rows} or {account}, currency)
        ours = batch_entries(rows, participant)
        named = [entry.uetr for entry in theirs.entries if entry.uetr is not None]
        elsewhere = batches.uetrs_of_other_batches(connection, named, batch=batch)
        lines = [
            entry for entry in theirs.entries if entry.uetr not in elsewhere and entry.booked_at >= found.received_at
        ]
        result = reconciliation.reconcile(ours, lines, as_of=now.date())
        breaks = (*result.breaks, *read.findings)
        run = reports.ReconciliationRow(
            id=new_uuid7(),
            batch_id=batch,
            participant=participant,
            currency=currency.code,
            file_sha256=hashlib.sha256(content).digest(),
            as_of=now.date(),
            lines_ours=len(ours),
            lines_theirs=len(lines),
            matched=len(result.matched),
            run_by=run_by,
            created_at=now,
        )
        reports.insert_reconciliation(connection, run, breaks)
        stored = reports.find_reconciliation(connection, run.id)
    if stored is None:
        raise RuntimeError("the run just stored is not there")
    return stored


def _require_account(theirs: Statement, accounts: set[AccountNumber | None], currency: Currency) -> None:
    """Another account's statement would match nothing and report every line as a break."""
    shown = {ids.show_account(account) for account in accounts if account is not None}
    if theirs.currency != currency or theirs.account not in shown:
        wanted = " or ".join(sorted(shown)) or "no account"
        raise ProblemError(
            SettlementRefusal.STATEMENT_OF_ANOTHER_ACCOUNT,
            f"it is of {theirs.account} in {theirs.currency}, not of {wanted} in {currency}"[:300],
        )
