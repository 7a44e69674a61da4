"""The ledger's HTTP application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from kernel.clock import Clock, system_clock
from kernel.http import create_app
from kernel.limits import BULK_BODY_BYTES_MAX
from ledger.api import account_change_routes, booking_routes, closing_routes, log_routes, statement_routes
from ledger.api.routes import look_up_holds_directly, router, submit_transfers_directly
from ledger.api.standby import Starting
from ledger.contract import STATUS_BY_REFUSAL, TransferBatchRequest
from ledger.settings import LedgerSettings

VERSION = "1.0.0"


def create(settings: LedgerSettings, *, clock: Clock = system_clock, started: Starting | None = None) -> FastAPI:
    """The application; its service starts and stops with it. `started`: a start that was begun, and is closed here."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        starting = started if started is not None else Starting(settings, clock=clock)
        if started is None:
            await run_in_threadpool(starting.begin)
        app.state.starting = starting
        app.state.failure = starting.failure
        try:
            yield
        finally:
            await run_in_threadpool(starting.close)

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
        direct={
            "/v1/transfer-batches": submit_transfers_directly,
            "/v1/hold-look-ups": look_up_holds_directly,
        },
        direct_reads={statement_routes.PATH: statement_routes.get_statement_directly},
        body_limits={"/v1/transfer-batches": BULK_BODY_BYTES_MAX, "/v1/accounts": BULK_BODY_BYTES_MAX},
    )
    app.include_router(router)
    app.include_router(statement_routes.router)
    app.include_router(booking_routes.router)
    app.include_router(account_change_routes.router)
    app.include_router(closing_routes.router)
    app.include_router(log_routes.router)
    return app
