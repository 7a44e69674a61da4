"""A service's command line run inside the test's process: the same `main`, arguments, environment and streams, without
the second that an interpreter takes to load. Tests of commands run one as a process of its own, as typed, and vary it
here."""

from __future__ import annotations

import importlib
import io
import os
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest import mock


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def run_here(service: str, *arguments: str, **environment: str) -> Done:
    """What `python -m service arguments` does, with the settings given here only. A crash is a traceback on stderr."""
    main = importlib.import_module(f"{service}.__main__").main
    prefix = f"JIAOZI_{service.upper()}_"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(prefix)}
    out, error = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, {**clean, "COLUMNS": "300", **environment}, clear=True),
        mock.patch.object(sys, "argv", [f"jiaozi-{service}", *arguments]),
        redirect_stdout(out),
        redirect_stderr(error),
    ):
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception:
            traceback.print_exc()
            status = 1
    return Done(status, out.getvalue(), error.getvalue())
