"""The settlement service with a planted fault: it publishes decisions that are not durable yet.

Run in the place of `settlement.torture.planted`, by `World.service`. The COMMIT of a decision, and only that, returns
before its record is on disk (`synchronous_commit = off`); a database that dies then has never heard of the decision.
"""

from __future__ import annotations

import threading
from typing import Any

from psycopg import pq

from kernel.database import CheckedConnection
from settlement.store.decision_log import DecisionLog
from settlement.torture import planted

_here = threading.local()


def main() -> None:
    decide, commit = DecisionLog.decide, CheckedConnection.commit

    def hasty_decide(self: DecisionLog, *args: Any, **options: Any) -> None:
        _here.decides = True
        try:
            decide(self, *args, **options)
        finally:
            _here.decides = False

    def hasty_commit(self: CheckedConnection) -> None:
        if getattr(_here, "decides", False) and self.info.transaction_status == pq.TransactionStatus.INTRANS:
            self.execute("SET LOCAL synchronous_commit = off")
        commit(self)

    DecisionLog.decide = hasty_decide  # type: ignore[method-assign]
    CheckedConnection.commit = hasty_commit  # type: ignore[method-assign]
    planted.main()
