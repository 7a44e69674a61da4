"""The ledger's HTTP application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from kernel.clock import Clock, system_clock
from kernel.http import create_app
from kernel.limits import BULK_BODY_BYTES_MAX
from ledger.api.routes import router
from ledger.api.service import Service, start_service
from ledger.contract import STATUS_BY_REFUSAL, TransferBatchRequest
from ledger.settings import LedgerSettings

VERSION = "1.0.0"


def create(settings: LedgerSettings, *, clock: Clock = system_clock, started: Service | None = None) -> FastAPI:
    """The application; its service starts and stops with it. `started`: a service that runs already, and stops here."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = started if started is not None else await run_in_threadpool(start_service, settings, clock=clock)
        app.state.service = service
        app.state.failure = lambda: service.sequencer.failure
        try:
            yield
        finally:
            await run_in_threadpool(service.close)

    app = create_app(
        title="Jiaozi ledger",
        version=VERSION,
        description=(
            "Tier 1: the issuing central bank's ledger. Institutions sign requests (RFC 9421), holders sign"
            " instructions (JWS), operators sign mandates (JWS). Amounts are strings of digits in minor units."
        ),
        status_tables=[STATUS_BY_REFUSAL],
        lifespan=lifespan,
        models=[TransferBatchRequest],
        body_limits={"/v1/transfer-batches": BULK_BODY_BYTES_MAX, "/v1/accounts": BULK_BODY_BYTES_MAX},
    )
    app.include_router(router)
    return app
