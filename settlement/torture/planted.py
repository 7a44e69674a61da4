"""The settlement service as it is, with points around its seams: log, database commit, islands, authoriser.

Nothing in the service knows of this. `main` is what the forker runs instead of `jiaozi-settlement serve`.

The log's points are found, not listed: every public method of `DecisionLog` has them, so a new step of the protocol is
tortured without a change here. A read is a point only after it has found something.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sized
from dataclasses import replace
from typing import Any

from psycopg import pq

from kernel.crypto.keys import PrivateKey
from kernel.database import CheckedConnection
from kernel.errors import InvariantBroken
from kernel.server import serve
from settlement.api.app import Outside, connect_over_http, create
from settlement.settings import Directory, SettlementSettings
from settlement.store.decision_log import DecisionLog, Deposed
from settlement.torture.points import GATE, HALTED, Reporter
from settlement.usecases.settle import Engine

SOCKET = "JIAOZI_TORTURE_SOCKET"
NAME = "JIAOZI_TORTURE_NAME"
NOT_STEPS = frozenset({"lease", "decisions"})
"""Methods of the log that only look."""
OPERATIONS = frozenset({"prepare", "fulfil", "cancel", "authorise"})

_running = threading.local()
"""`.method`: the log's method that this thread is in."""


def main() -> None:
    settings = SettlementSettings.load()
    reporter = Reporter(os.environ[SOCKET], os.environ[NAME])
    plant(reporter)
    app = create(settings, connect=functools.partial(_connect, reporter))
    serve(app, host=settings.host, port=settings.port, log_level="warning")


def plant(reporter: Reporter) -> None:
    """From now on this process's logs and database connections stop at their points."""
    for name, method in list(vars(DecisionLog).items()):
        if not name.startswith("_") and name not in NOT_STEPS and callable(method):
            setattr(DecisionLog, name, _watched(method, name, reporter, is_log=True))
    for name in ("start", "tick"):
        setattr(Engine, name, _halting(getattr(Engine, name), reporter))
    original = CheckedConnection.commit

    def commit(self: CheckedConnection) -> None:
        method: str | None = getattr(_running, "method", None)
        if method is None or not _wrote(self):
            original(self)
            return
        if reporter.reached(f"{method}:commit") == "split":
            self.pgconn.send_query(b"COMMIT")
            while self.pgconn.flush():
                pass
            reporter.reached(f"{method}:sent")
            while self.pgconn.get_result() is not None:
                pass
        original(self)  # says nothing more if the COMMIT above was answered, and what it always says if it was not

    setattr(CheckedConnection, "commit", commit)  # noqa: B010 - mypy would refuse the plain assignment


def _halting(method: Callable[..., Any], reporter: Reporter) -> Callable[..., Any]:
    @functools.wraps(method)
    def watched(*args: Any, **options: Any) -> Any:
        try:
            return method(*args, **options)
        except InvariantBroken:
            reporter.reached(HALTED)
            raise

    return watched


def _wrote(connection: CheckedConnection) -> bool:
    if connection.info.transaction_status != pq.TransactionStatus.INTRANS:
        return False
    result = connection.pgconn.exec_(b"SELECT pg_current_xact_id_if_assigned() IS NOT NULL")
    return result.status == pq.ExecStatus.TUPLES_OK and result.get_value(0, 0) == b"t"


def _watched(method: Callable[..., Any], name: str, reporter: Reporter, *, is_log: bool) -> Callable[..., Any]:
    @functools.wraps(method)
    def watched(*args: Any, **options: Any) -> Any:
        if is_log:
            return _log_call(method, name, reporter, args, options)
        reporter.reached(f"{name}:before")
        result = method(*args, **options)
        reporter.reached(f"{name}:after")
        return result

    return watched


def _log_call(
    method: Callable[..., Any], name: str, reporter: Reporter, args: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    if len(args) > 1 and isinstance(args[1], Sized) and not args[1]:
        return method(*args, **options)  # nothing to write
    if f"{name}:before" == GATE:
        reporter.reached(GATE)
    _running.method = name
    try:
        result = method(*args, **options)
    except Deposed:
        reporter.reached(f"{name}:deposed")
        raise
    except Exception:
        reporter.reached(f"{name}:failed")
        raise
    finally:
        _running.method = None
    if not isinstance(result, Sized) or len(result):
        reporter.reached(f"{name}:after")
    return result


class _Planted:
    """An island or the authoriser, with a point before and after each operation."""

    def __init__(self, inner: Any, label: str, reporter: Reporter) -> None:
        self._inner, self._label, self._reporter = inner, label, reporter

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in OPERATIONS:
            return found

        def operation(*args: Any, **options: Any) -> Any:
            place = self._label or str(args[0])  # the authoriser's first argument is the payer
            self._reporter.reached(f"{name}@{place}:before")
            result = found(*args, **options)
            self._reporter.reached(f"{name}@{place}:after")
            return result

        return operation


def _connect(reporter: Reporter, settings: SettlementSettings, directory: Directory, key: PrivateKey) -> Outside:
    outside = connect_over_http(settings, directory, key)
    islands: dict[str, Any] = {name: _Planted(island, name, reporter) for name, island in outside.islands.items()}
    authoriser: Any = _Planted(outside.authoriser, "", reporter)
    return replace(outside, islands=islands, authoriser=authoriser)


if __name__ == "__main__":
    main()
