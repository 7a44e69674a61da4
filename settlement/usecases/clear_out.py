"""The end-of-day clear-out: foreign institutions' balances of a currency are returned by the day's end.

mBridge's rule. The bridge holds no balances and may not read those of others, so what it reports and proposes to return
is what its own settlements have left with an institution: received less paid, of posted legs, less what is surely on
its way out by then. A proposal is a list of PvP instructions; nothing moves before the operator approves it, and then
only as any other batch does: with the payer's institution's signature, by the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from kernel import ids
from kernel.clock import Clock
from kernel.database import Database
from kernel.errors import ProblemError
from kernel.ids import ParticipantId, new_uuid7
from kernel.money import Currency, Money
from settlement.domain.calendars import Declined, PaymentKind, plan
from settlement.domain.instructions import Instruction
from settlement.domain.refusals import SettlementRefusal
from settlement.iso20022.csv_batch import write_csv
from settlement.settings import ClearOutEntry, Directory
from settlement.store import batches
from settlement.store import calendars as store
from settlement.usecases.calendars import CalendarRules
from settlement.usecases.intake import IntakeCheck
from settlement.usecases.submit import Submission, submit_batch

_LOCK = 0x6A_69_61_6F_63_6C_72  # one approval at a time, so that two proposals do not return one balance twice


@dataclass(frozen=True, slots=True)
class Uncleared:
    """A foreign position and what is to be returned of it, in minor units."""

    position: store.Position
    uncleared_minor: int


@dataclass(frozen=True, slots=True)
class Report:
    entry: ClearOutEntry
    business_day: date
    due_at: datetime
    items: tuple[Uncleared, ...]


@dataclass(frozen=True, slots=True)
class ClearOuts:
    """What the operations need; `entries` by currency."""

    rules: CalendarRules
    entries: Mapping[str, ClearOutEntry]

    def report(self, connection: sa.Connection, currency: str, *, now: datetime) -> Report:
        """What foreign institutions hold now. Raises: ProblemError(clear-out-not-found, calendar-*)."""
        entry = self.entries.get(currency)
        if entry is None:
            raise ProblemError(SettlementRefusal.CLEAR_OUT_NOT_FOUND, f"{currency} has no rule of clearing out")
        calendars = self.rules.calendars.of([currency])
        if isinstance(calendars, Declined):
            raise ProblemError(calendars.refusal, calendars.reason)
        planned = plan(calendars, at=now, value_date=None, terms=self.rules.terms(PaymentKind.BANK))
        if isinstance(planned, Declined):
            raise ProblemError(planned.refusal, planned.reason)
        home = calendars[0].home_countries
        items = tuple(
            Uncleared(found, max(0, found.net_minor - found.outgoing_minor))
            for found in store.positions(connection, currency=currency, through=planned.value_date)
            if found.participant[4:6] not in home
        )
        return Report(entry, planned.value_date, planned.cut_off_at, items)

    def propose(
        self, connection: sa.Connection, currency: str, *, by: ParticipantId, now: datetime
    ) -> store.ClearOutRow:
        """Store the instruction list that clears the currency out. Nothing moves. Raises as `report`."""
        report = self.report(connection, currency, now=now)
        owed = [item for item in report.items if item.uncleared_minor > 0]
        row = store.ClearOutRow(
            new_uuid7(),
            currency,
            report.business_day,
            by,
            now,
            tuple(
                store.ClearOutLine(
                    number,
                    item.position.participant,
                    report.entry.returns_to,
                    report.entry.against,
                    item.uncleared_minor,
                    uuid4(),
                )
                for number, item in enumerate(owed, start=1)
            ),
            None,
            None,
            None,
        )
        store.insert_clear_out(connection, row)
        return row

    def approve(
        self,
        row: store.ClearOutRow,
        *,
        by: ParticipantId,
        database: Database,
        directory: Directory,
        clock: Clock,
        checks: tuple[IntakeCheck, ...],
    ) -> store.ClearOutRow:
        """Submit the proposal as a batch of the operator. Once: a repetition finds the batch it made.

        Raises: ProblemError(clear-out-stale, batch-invalid with `problems`).
        """
        content = write_csv([_instruction(row, line) for line in row.lines])
        with database.transaction(isolation="READ COMMITTED") as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            found = store.find_clear_out(connection, row.id)
            if found is not None and found.batch is not None:
                return found
            if not row.lines:
                raise ProblemError(SettlementRefusal.CLEAR_OUT_STALE, "there is nothing to return")
            # A crash after the batch and before its approval was noted: the batch is there, under its first line's id.
            if not batches.used_uetrs(connection, [line.uetr for line in row.lines]):
                self._check_is_fresh(connection, row, now=clock())
            submission = Submission(content, "csv", by, True, f"clear-out:{row.id}", "/v1/clear-outs")
            outcome = submit_batch(
                submission,
                database=database,
                directory=directory,
                clock=clock,
                bridge=by,
                run_on_submit=True,
                checks=checks,
                render=_only_the_id,
            )
            batch = ids.parse("bat", outcome.body["batch"])
            store.approve_clear_out(connection, row.id, batch=batch, by=by, now=clock())
            stored = store.find_clear_out(connection, row.id)
        return stored if stored is not None else row

    def _check_is_fresh(self, connection: sa.Connection, row: store.ClearOutRow, *, now: datetime) -> None:
        owed = {
            item.position.participant: item.uncleared_minor
            for item in self.report(connection, row.currency, now=now).items
        }
        for line in row.lines:
            if owed.get(line.participant, 0) != line.amount_minor:
                detail = f"{line.participant} holds another amount than was proposed to be returned"
                raise ProblemError(SettlementRefusal.CLEAR_OUT_STALE, detail)


def _instruction(row: store.ClearOutRow, line: store.ClearOutLine) -> Instruction:
    return Instruction(
        instruction_id=f"CLR{row.id.hex[-8:]}-{line.number}",
        end_to_end_id=f"CLR{row.id.hex[-12:]}-{line.number}",
        uetr=line.uetr,
        debtor=line.participant,
        creditor=line.returns_to,
        amount=Money(line.amount_minor, Currency.of(row.currency)),
        counter_currency=Currency.of(line.against),
        counter_amount=None,
        value_date=row.business_day,
    )


def _only_the_id(row: batches.BatchRow) -> dict[str, Any]:
    return {"batch": ids.show("bat", row.id)}
