"""Go on with what crashes, a silent ledger or a waiting time have left open of wallets' changes."""

from __future__ import annotations

import logging
from datetime import timedelta

from kernel.errors import ProblemError
from wallet.domain.lifecycle import Change
from wallet.store import lifecycle as store
from wallet.usecases import closing, devices, lifecycle
from wallet.usecases.context import Context

log = logging.getLogger("jiaozi.wallet.changes")

RECOVERED_AT_ONCE_MAX = 500
TRIED_AGAIN_AFTER = timedelta(seconds=30)
"""So that those which cannot go on leave room for those which can."""


def resume_changes(context: Context, *, older_than: timedelta = timedelta(0)) -> int:
    """One pass; how many ended. A closure that waits for its holder stays as it is."""
    now = context.clock()
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        rows = store.changes_due(connection, now=now, created_before=now - older_than, limit=RECOVERED_AT_ONCE_MAX)
        unenforced = store.evidence_changes_unenforced(connection, limit=RECOVERED_AT_ONCE_MAX)
    ended = 0
    for row in rows:
        try:
            ended += not _advance(context, row).is_open
        except ProblemError:
            _put_off(context, row)
        except Exception:  # one that cannot go on must not keep the others waiting
            log.exception("change %s cannot go on", row.id)
            _put_off(context, row)
    for change_id, customer_id in unenforced:
        lifecycle.enforce(context, change_id, customer_id)
    return ended


def _put_off(context: Context, change: Change) -> None:
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        store.update_change(connection, change.id, due_at=context.clock() + TRIED_AGAIN_AFTER)


def _advance(context: Context, change: Change) -> Change:
    match change.kind:
        case "class":
            return lifecycle.advance_class(context, change)
        case "suspend" | "resume":
            return lifecycle.advance_standing(context, change)
        case "close":
            return closing.advance(context, change)
        case "caps":  # done as soon as it is recorded
            return change
        case _:
            return devices.advance(context, change)
