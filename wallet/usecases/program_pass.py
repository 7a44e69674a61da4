"""The periodic pass over programs: what time has decided, and what a crash or a lost answer left behind."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from kernel.errors import InvariantBroken, ProblemError
from wallet.personal_data import PersonalDataUnreadable
from wallet.store import programs as store
from wallet.usecases.context import Context
from wallet.usecases.program_steps import step
from wallet.usecases.vouchers import resume_spends

PASS_MAX = 200
"""Programs of one pass; the rest is due at the next one."""
TRIED_AGAIN_AFTER = timedelta(seconds=5)
"""For a program that could not go on: the ledger was silent, or a person has to look at it."""

log = logging.getLogger("jiaozi.wallet.programs")


class ProgramPass:
    """The programs worker's piece of work. What cannot go on now is left alone for a while, so that neither it nor a
    silent ledger keeps the worker from the others."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._waiting: dict[UUID, datetime] = {}

    def __call__(self) -> int:
        """How many of at most `PASS_MAX` programs have moved on; while there are any, call again at once."""
        now = self._context.clock()
        self._waiting = {program: until for program, until in self._waiting.items() if until > now}
        due = _due(self._context, now, but=list(self._waiting))
        _look_at(self._context, due)
        stuck = self._context.database.run_session(lambda connection: store.still_due(connection, due, now=now))
        self._waiting |= dict.fromkeys(stuck, now + TRIED_AGAIN_AFTER)
        return len(due) - len(stuck)


def resume_programs(context: Context) -> int:
    """Look at every program that is due. Returns how many. One that fails is logged and stays due."""
    return _look_at(context, _due(context, context.clock()))


def _due(context: Context, now: datetime, *, but: Sequence[UUID] = ()) -> list[UUID]:
    return context.database.run_session(
        lambda connection: store.programs_due(connection, now=now, limit=PASS_MAX, but=but)
    )


def _look_at(context: Context, due: Sequence[UUID]) -> int:
    done = 0
    for program_id in due:
        try:
            resume_spends(context, program_id)
            step(context, program_id)
            done += 1
        except ProblemError as error:
            log.warning("program %s waits: %s", program_id, error.refusal.value)
        except (InvariantBroken, PersonalDataUnreadable) as error:
            # This one stands still until a person has looked; the others are not kept waiting for it.
            log.critical("program %s stands still: %s", program_id, error)
    return done
