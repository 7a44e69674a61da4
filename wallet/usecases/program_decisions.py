"""Decisions of programs: what the conditions say of each part, written once (step 3 of `wallet.usecases.programs`)."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from wallet.domain.program_records import Part
from wallet.domain.program_templates import Decided, replay
from wallet.store import programs as store
from wallet.store.carriage import Connection
from wallet.usecases.context import Context
from wallet.usecases.program_books import RETRY_AFTER, Known, read

LOOK_EVERY = timedelta(seconds=30)
"""How often a counterpart's hold is looked up in the ledger, where its secret may have been shown."""


def decide_now(context: Context, known: Known, part: Part, *, now: datetime) -> Decided:
    """What the conditions say of one undecided part. Pure."""
    program = known.program
    funded_at = program.funded_at or now
    return replay(
        known.plan,
        amount_minor=part.amount_minor,
        instalment=part.number,
        funded_at=funded_at,
        since=program.evaluated_at or funded_at,
        until=now,
        said=known.said,
        time_zone=context.time_zone,
        is_secret_shown=program.shown_secret is not None,
    )


def decide(connection: Connection, context: Context, known: Known) -> Known:
    """Decide every part that can be decided now; the program's row is locked. A voucher's part in a purchase waits."""
    program = known.program
    if program.state != "active" or program.evaluated_at is None:
        return known
    # A clock that has gone back decides nothing anew.
    now = max(context.clock(), program.evaluated_at)
    wakes: list[datetime] = []
    for part in known.parts:
        if part.state != "held":
            continue
        if part.spend_id is not None:
            wakes.append(now + RETRY_AFTER)
            continue
        if part.outcome is not None:
            wakes.append(now + RETRY_AFTER)
            continue
        decided = decide_now(context, known, part, now=now)
        if decided.outcome is not None:
            store.insert_decision(
                connection, part.id, outcome=decided.outcome, because=decided.because, decided_at=decided.at
            )
            wakes.append(now + RETRY_AFTER)
        else:
            wakes.append(decided.next_at or program.deadline)
    if known.plan.template.lock == "counterpart":
        wakes.append(now + LOOK_EVERY)
    current = replace(program, evaluated_at=now, wake_at=min(wakes, default=program.wake_at or now))
    store.save_program(connection, current)
    return read(connection, context, current)
