"""Goal: a stop by signal finishes the request in flight, then returns to the caller, who closes what he opened.

Method: a process of its own on a Unix socket, signalled while a request is being worked on.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kernel.client import ServiceClient

PROGRAM = """
import asyncio, sys
from kernel.http import create_app, strict_router
from kernel.server import serve

app = create_app(title="x", version="1", description="", status_tables=[])
router = strict_router()

@router.get("/v1/slow", operation_id="slow")
async def slow() -> dict[str, bool]:
    print("working", flush=True)
    await asyncio.sleep(0.5)
    return {"done": True}

app.include_router(router)
serve(app, uds=sys.argv[1], log_level="warning")
print("closed what was opened", flush=True)
"""


@pytest.mark.parametrize("stop", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.extended)])
def test_stop_finishes_the_request_in_flight_and_returns_to_the_caller(stop: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(path)], stdout=subprocess.PIPE, text=True)
    answers: list[object] = []
    try:
        with ServiceClient("http://x", uds=str(path), retries_max=0) as client:
            deadline = time.monotonic() + 30
            while not path.exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            thread = threading.Thread(target=lambda: answers.append(client.get("/v1/slow")))
            thread.start()
            assert process.stdout is not None and process.stdout.readline() == "working\n"
            process.send_signal(stop)
            thread.join(timeout=10)
        output, _ = process.communicate(timeout=15)
    finally:
        process.kill()
    assert answers == [{"done": True}]
    assert (output, process.returncode) == ("closed what was opened\n", 0)
