"""Statements (camt.053) from the bridge's own record, or from a ledger's; and the files they are written to."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from kernel import ids
from kernel.clock import Clock
from kernel.database import Database
from kernel.errors import ProblemError
from kernel.ids import AccountNumber, ParticipantId, new_uuid7
from kernel.money import Currency, Money
from ledger.client import LedgerClient
from ledger.contract import StatementLine
from settlement.domain.refusals import SettlementRefusal
from settlement.domain.statements import Direction, Statement, StatementEntry, booked_net_minor, reference_of
from settlement.iso20022.camt053 import write_camt053
from settlement.store import batches, reports

_UETR_VERSION = 4
_BESIDE = ".part"
INTERRUPTED_AFTER = timedelta(hours=1)
"""Far longer than any file takes to be read: what is older and still beside its place, nobody will put there."""


def batch_entries(
    rows: Iterable[tuple[batches.SettlementRow, batches.LegRow]], participant: ParticipantId
) -> tuple[StatementEntry, ...]:
    """The bridge's record of posted legs, as the participant's account saw them.

    Value date is the day (UTC) on which the ledger booked the post, as in the ledger's own statements: around midnight
    the decision may be of the day before.
    """
    entries = []
    for row, found in rows:
        leg, terms = found.leg, found.leg.terms
        booked_at = found.ended_at
        if booked_at is None:
            continue  # written with the state `posted` in one statement (DecisionLog.record_ends)
        is_credit = terms.payee == participant
        ordered = row.legs[0].leg.terms.amount  # what the first leg pays; the others are its exchange
        entries.append(
            StatementEntry(
                reference=reference_of(leg.hold_id),
                end_to_end_id=row.end_to_end_id,
                uetr=row.uetr,
                amount=terms.amount,
                direction=Direction.CREDIT if is_credit else Direction.DEBIT,
                booked_at=booked_at,
                value_date=booked_at.astimezone(UTC).date(),
                counterparty=terms.payer if is_credit else terms.payee,
                counterparty_account=ids.show_account(terms.debit if is_credit else terms.credit),
                instructed=None if row.nets or ordered.currency == terms.amount.currency else ordered,
            )
        )
    return tuple(entries)


def account_of(found: batches.LegRow, participant: ParticipantId) -> AccountNumber:
    """The participant's account of a leg that it pays or receives."""
    terms = found.leg.terms
    return terms.credit if terms.payee == participant else terms.debit


def write_batch_statement(
    batch: UUID,
    *,
    participant: ParticipantId,
    currency: Currency,
    database: Database,
    files_directory: Path,
    clock: Clock,
) -> reports.StatementFileRow:
    """A camt.053 of what a batch moved on a participant's account. Asked again without new postings: the same file.

    The bridge knows nobody's balance: the statement opens with zero and closes with the batch's net.
    Raises: ProblemError(batch-not-found, account-not-in-batch).
    """
    with database.transaction(isolation="READ COMMITTED") as connection:
        sequence_number = reports.next_sequence_number(connection, participant, currency.code)
        found = batches.find(connection, batch)
        if found is None:
            raise ProblemError(SettlementRefusal.BATCH_NOT_FOUND)
        rows = batches.posted_legs(connection, batch, participant=participant, currency=currency.code)
        if not rows:
            raise ProblemError(SettlementRefusal.ACCOUNT_NOT_IN_BATCH, f"{participant} in {currency}")
        same = reports.find_same_statement(connection, batch, participant, currency.code, len(rows))
        if same is not None and (files_directory / same.file_name).is_file():
            return same
        now, key = clock(), new_uuid7()
        entries = batch_entries(rows, participant)
        statement = Statement(
            statement_id=key.hex,
            sequence_number=sequence_number,
            account=ids.show_account(account_of(rows[0][1], participant)),
            currency=currency,
            created_at=now,
            from_at=found.received_at,
            to_at=now,
            opening_minor=0,
            closing_minor=booked_net_minor(entries),
            entries=entries,
        )
        content = camt053_bytes(statement)
        name = f"{ids.show('stf', key)}.camt.053.xml"
        write_durably(files_directory / name, content)
        digest = hashlib.sha256(content).digest()
        row = reports.StatementFileRow(
            key, batch, participant, currency.code, sequence_number, len(entries), name, digest, now
        )
        reports.insert_statement_file(connection, row)
    return row


def ledger_statement(
    client: LedgerClient,
    account: AccountNumber,
    *,
    statement_id: str,
    sequence_number: int,
    created_at: datetime,
    servicer: ParticipantId | None = None,
    references: Collection[UUID] | None = None,
    since: datetime | None = None,
) -> Statement:
    """A ledger's own statement of an account, with whatever signer the client has (the account's participant's).

    Only lines that move the posted balance become entries: a hold, a void, an expiry moves nothing. `since` begins at a
    time; `references` (UETRs) choose some lines: an extract, whose balances count from zero and are not the account's.
    """
    view = client.get_account(account)
    currency = Currency.of(view.currency)
    lines = [line for line in client.statement_lines(account) if line.amount_minor > 0]
    chosen = [
        line
        for line in lines
        if (references is None or line.reference in references) and (since is None or line.booked_at >= since)
    ]
    entries = tuple(entry_of(line, currency) for line in chosen)
    opening = _balance_before(chosen[0]) if chosen and references is None else 0
    return Statement(
        statement_id=statement_id,
        sequence_number=sequence_number,
        account=ids.show_account(account),
        currency=currency,
        created_at=created_at,
        from_at=chosen[0].booked_at if chosen else created_at,
        to_at=created_at,
        opening_minor=opening,
        closing_minor=opening + booked_net_minor(entries),
        entries=entries,
        servicer=servicer,
    )


def entry_of(line: StatementLine, currency: Currency) -> StatementEntry:
    """A ledger's line as a statement entry. A reference that is a UUID of version 4 is a UETR; others are not shown."""
    reference = line.reference
    return StatementEntry(
        reference=reference_of(line.transfer),
        end_to_end_id=None,
        uetr=reference if reference is not None and reference.version == _UETR_VERSION else None,
        amount=Money(line.amount_minor, currency),
        direction=Direction.CREDIT if line.direction == "credit" else Direction.DEBIT,
        booked_at=line.booked_at,
        value_date=line.booked_at.astimezone(UTC).date(),
        counterparty_account=None if line.counterparty is None else ids.show_account(line.counterparty),
    )


def camt053_bytes(statement: Statement, *, allow_inconsistent: bool = False) -> bytes:
    file = io.BytesIO()
    write_camt053(statement, file, allow_inconsistent=allow_inconsistent)
    return file.getvalue()


def write_durably(path: Path, content: bytes) -> None:
    """The file whole or not at all: written beside, synced, renamed."""
    with written_beside(path, content) as put:
        put()


@contextmanager
def written_beside(path: Path, content: bytes) -> Iterator[Callable[[], None]]:
    """Write a file beside its place while the caller does something else; the function given puts it there, durably.
    Without its call nothing is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{secrets.token_hex(8)}{_BESIDE}")  # two requests may bring one file

    def write() -> None:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def put() -> None:
        writing.result()
        beside.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    try:
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            yield put
    finally:
        beside.unlink(missing_ok=True)


def sweep_interrupted(files_directory: Path, *, now: datetime, older_than: timedelta = INTERRUPTED_AFTER) -> int:
    """Remove what writers that were killed left beside its place; how many files. Another service may be writing
    there now, so young ones stay. A file that goes meanwhile is gone. Raises OSError."""
    swept = 0
    for path in files_directory.rglob(f"*{_BESIDE}"):
        try:
            if now.timestamp() - path.lstat().st_mtime > older_than.total_seconds():
                path.unlink()
                swept += 1
        except FileNotFoundError:
            continue
    return swept


def _balance_before(line: StatementLine) -> int:
    moved = line.amount_minor if line.direction == "credit" else -line.amount_minor
    return line.balance_minor - moved
