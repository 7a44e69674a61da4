"""The periodic pass over programs: what time has decided, and what a crash or a lost answer left behind."""

from __future__ import annotations

import logging

from kernel.errors import InvariantBroken, ProblemError
from wallet.personal_data import PersonalDataUnreadable
from wallet.store import programs as store
from wallet.usecases.context import Context
from wallet.usecases.programs import step
from wallet.usecases.vouchers import resume_spends

PASS_MAX = 200
"""Programs of one pass; the rest is due at the next one."""

log = logging.getLogger("jiaozi.wallet.programs")


def resume_programs(context: Context) -> int:
    """Look at every program that is due. Returns how many. One that fails is logged and stays due."""
    now = context.clock()
    due = context.database.run_session(lambda connection: store.programs_due(connection, now=now, limit=PASS_MAX))
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
