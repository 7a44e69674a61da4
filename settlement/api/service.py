"""What every route needs, built once at start."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, NoReturn
from uuid import UUID

from fastapi import Depends, Request

from kernel import ids
from kernel.clock import Clock
from kernel.database import Database
from kernel.errors import ProblemError, RequestRefusal
from settlement.api.oversight import Oversight
from settlement.domain.refusals import SettlementRefusal
from settlement.settings import Directory
from settlement.usecases.evidence import Books
from settlement.usecases.intake import IntakeCheck
from settlement.usecases.liquidity import Desk
from settlement.usecases.market import Market
from settlement.usecases.relay import Relay
from settlement.usecases.settle import Engine
from settlement.usecases.streams import StreamContext, StreamWorker
from settlement.usecases.worker import Worker

HEAVY_AT_ONCE = 2
"""Answers that compute for seconds, at once; with more of them the requests that only read would wait."""


@dataclass(frozen=True, slots=True)
class Service:
    database: Database
    directory: Directory
    engine: Engine
    worker: Worker
    files_directory: Path
    run_on_submit: bool
    intake_checks: tuple[IntakeCheck, ...]
    oversight: Oversight
    clock: Clock
    market: Market
    liquidity: Desk
    streams: StreamContext
    stream_worker: StreamWorker
    books: Books
    relay: Relay | None
    engine_silent_after: timedelta
    """An engine that has not renewed its lease for so long counts as gone, for people."""
    heavy: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(HEAVY_AT_ONCE))

    @contextmanager
    def heavy_work(self) -> Iterator[None]:
        """Around what computes for seconds. Raises at once, nothing done: ProblemError(too-many-requests)."""
        if not self.heavy.acquire(blocking=False):
            reason = f"{HEAVY_AT_ONCE} long computations are under way: ask again later"
            raise ProblemError(RequestRefusal.TOO_MANY_REQUESTS, reason)
        try:
            yield
        finally:
            self.heavy.release()


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Services = Annotated[Service, Depends(_service)]


def parse_ref(prefix: str, text: str, refusal: SettlementRefusal) -> UUID:
    """An id in a path. A malformed one names nothing: the same 404 as an unknown one."""
    try:
        return ids.parse(prefix, text)
    except ValueError as error:
        raise ProblemError(refusal, str(error)) from None


def not_found(refusal: SettlementRefusal) -> NoReturn:
    raise ProblemError(refusal)
