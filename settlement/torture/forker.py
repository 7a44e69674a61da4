"""One process that has done the imports and forks a service anew for each line on its input: restarts cost no imports.

`python -m settlement.torture.forker MODULE...` imports the modules; each line is a JSON `Order` of one process, whose
pid is the answer. When its input ends, the campaign is over or dead: what it forked is ended with SIGKILL, and so are
the PostgreSQL servers below the directories it was told to guard.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from kernel.postgres import EmbeddedPostgres

GUARD = "--guard"
"""Before a directory among the arguments."""


def main() -> None:
    arguments = sys.argv[1:]
    guarded = [Path(place) for flag, place in itertools.pairwise(arguments) if flag == GUARD]
    for name in arguments[: arguments.index(GUARD)] if GUARD in arguments else arguments:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forked ones
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the campaign; then the input ends
    pids: list[int] = []
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(order)
        pids.append(pid)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            child = psutil.Process(pid)
            if child.ppid() == os.getpid():  # a pid may be another program's by now
                child.kill()
    for place in guarded:
        if place.exists():
            _end_server(EmbeddedPostgres(place))


def _end_server(server: EmbeddedPostgres) -> None:
    """Also one whose processes stand still."""
    pid = server.postmaster_pid()
    if pid is not None:
        with suppress(psutil.NoSuchProcess):
            for process in (psutil.Process(pid), *psutil.Process(pid).children()):
                process.resume()
    server.stop("immediate")


def _become(order: dict[str, Any]) -> None:
    """The forked process: its own environment, log and group, then the module's `main`; it never returns."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setpgid(0, 0)
        with open(os.devnull, "rb") as nothing, open(order["log"], "ab") as log:
            os.dup2(nothing.fileno(), 0)
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.environ.update(order["environment"])
        sys.argv = [order["module"], *order["arguments"]]
        importlib.import_module(order["module"]).main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
