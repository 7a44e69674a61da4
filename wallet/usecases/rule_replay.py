"""Which past payments of this service another rule pack would have refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from kernel.database import Database
from wallet.domain.rule_replay import Refused, Replay
from wallet.domain.rules import RulePack
from wallet.store import rule_replay as store

PROGRESS_EVERY = 1_000
"""Movements between two words of progress."""


def replay_payments(
    database: Database,
    pack: RulePack,
    *,
    until: datetime,
    refused: Callable[[Refused], None],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Replay:
    """Streams what was booked before `until`, one transaction's view of it; `refused` hears of each refusal in order,
    `progress` of (payments decided, payments in all). Reads only. The totals are in what is returned."""
    replay = Replay(pack)
    with database.transaction(isolation="REPEATABLE READ") as connection:
        total = store.count_payments(connection, until=until)
        for number, movement in enumerate(store.movements(connection, until=until)):
            found = replay.feed(movement)
            if found is not None:
                refused(found)
            if number % PROGRESS_EVERY == 0:
                progress(replay.payments.total(), total)
    progress(replay.payments.total(), total)
    return replay
