"""The settlement service, wired: settings -> database, islands, institutions, engine, routes -> one FastAPI app."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from kernel import migrate
from kernel.client import ServiceClient
from kernel.clock import Clock, system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.crypto.nonces import PostgresNonceStore
from kernel.database import Database, resolve_url
from kernel.http import create_app
from ledger.client import LedgerClient
from settlement.api.auth import Authenticator
from settlement.api.routes import router
from settlement.api.service import Service
from settlement.contract import BATCH_BYTES_MAX, STATEMENT_BYTES_MAX, STATUS_BY_REFUSAL
from settlement.islands.authorisers import Authoriser, HttpAuthoriser
from settlement.islands.native import NativeIsland
from settlement.islands.port import Island
from settlement.settings import SERVICE, Directory, SettlementSettings, read_directory
from settlement.store.decision_log import DecisionLog
from settlement.store.tables import request_nonce
from settlement.usecases.settle import ANSWER_WAIT_SECONDS, Engine
from settlement.usecases.worker import Worker

_DESCRIPTION = """\
Cross-border settlement: payment versus payment on several ledgers, all legs or none, by decision escrow. Instructions
come as ISO 20022 pacs.009.001.08 or CSV; statements go out as camt.053.001.08 and are reconciled. Amounts are strings
of digits in minor units. Requests are signed (RFC 9421) by a registered institution or by the bridge.
"""


_INSTITUTION_CALLS_MAX = 64
"""Calls to institutions at once; each ends within `call_timeout_seconds`."""


class NotMigrated(RuntimeError):
    """The database's tables are not those of this program."""


@dataclass(frozen=True, slots=True)
class Outside:
    """The others: ledgers and institutions, and how to hang up."""

    islands: Mapping[str, Island]
    authoriser: Authoriser
    close: Callable[[], None]


Connect = Callable[[SettlementSettings, Directory, PrivateKey], Outside]


def create(settings: SettlementSettings, *, connect: Connect | None = None, clock: Clock = system_clock) -> FastAPI:
    """The app. Nothing is opened before it starts; `connect` and `clock` are for tests and simulations."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = await run_in_threadpool(_Running, settings, connect or connect_over_http, clock)
        app.state.service = running.service
        app.state.authenticator = running.authenticator
        try:
            yield
        finally:
            await run_in_threadpool(running.close)

    app = create_app(
        title="Jiaozi settlement service",
        version="1.0.0",
        description=_DESCRIPTION,
        status_tables=[STATUS_BY_REFUSAL],
        lifespan=lifespan,
        body_limits={"/v1/batches": BATCH_BYTES_MAX, "/v1/reconciliations": STATEMENT_BYTES_MAX},
        read_seconds_max=30.0,  # a full batch file over a slow line
    )
    app.include_router(router)
    return app


class _Running:
    """What is open between start and stop."""

    def __init__(self, settings: SettlementSettings, connect: Connect, clock: Clock) -> None:
        directory = read_directory(settings)
        key = PrivateKey.load(settings.signing_key_path)
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        url, self._server = resolve_url(settings.database_url, settings.data_dir, SERVICE)
        if self._server is not None:
            migrate.upgrade(SERVICE, self._server.url(SERVICE), service_url=url)
        elif not migrate.is_current(SERVICE, url):
            raise NotMigrated("the database is not at this program's migration: run `jiaozi-settlement migrate`")
        self._database = Database(url, application_name="jiaozi-settlement", pool_size=settings.database_pool_size)
        self._outside = connect(settings, directory, key)
        # Each ledger may have a hold, a post and a void under way, so that a slow one leaves the others their threads.
        self._executor = ThreadPoolExecutor(3 * len(directory.ledgers), thread_name_prefix="settlement-ledger")
        calls = min(_INSTITUTION_CALLS_MAX, max(1, len(directory.institutions)))
        self._institution_executor = ThreadPoolExecutor(calls, thread_name_prefix="settlement-institution")
        log = DecisionLog(self._database)
        engine = Engine(
            log=log,
            islands=self._outside.islands,
            authoriser=self._outside.authoriser,
            clock=clock,
            holder=f"{socket.gethostname()}/{os.getpid()}",
            executor=self._executor,
            institution_executor=self._institution_executor,
            # A round waits thrice at most and renews the lease at its end: well within the time a standby waits.
            answer_wait_seconds=min(ANSWER_WAIT_SECONDS, settings.standby_seconds / 10),
            wave_settlements=settings.wave_settlements,
        )
        self._worker = Worker(engine, log, clock=clock, standby=timedelta(seconds=settings.standby_seconds))
        nonces = PostgresNonceStore(lambda: self._database.session(is_lazy=True), clock=clock, table=request_nonce)
        self.authenticator = Authenticator(
            directory,
            bridge=settings.participant,
            bridge_key=key.public,
            public_url=settings.public_url,
            nonces=nonces,
            clock=clock,
        )
        self.service = Service(
            database=self._database,
            directory=directory,
            engine=engine,
            worker=self._worker,
            files_directory=settings.files_directory,
            run_on_submit=settings.run_on_submit,
            clock=clock,
        )
        self._worker.start()

    def close(self) -> None:
        self._worker.stop()
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._institution_executor.shutdown(wait=False, cancel_futures=True)
        self._outside.close()
        self._database.close()
        if self._server is not None:
            self._server.stop()


def connect_over_http(settings: SettlementSettings, directory: Directory, key: PrivateKey) -> Outside:
    """The real others. Nothing is dialled yet: a service that is down is no reason not to start."""
    signer, timeout = RequestSigner(key), settings.call_timeout_seconds
    ledgers = {
        name: LedgerClient(entry.url, signer=signer, timeout_seconds=timeout)
        for name, entry in directory.ledgers.items()
    }
    institutions = {
        # The engine backs off and repeats by itself.
        participant: ServiceClient(entry.authorisation_url, auth=signer, timeout_seconds=timeout, retries_max=0)
        for participant, entry in directory.institutions.items()
    }

    def close() -> None:
        for ledger in ledgers.values():
            ledger.close()
        for institution in institutions.values():
            institution.close()

    islands = {name: NativeIsland(name, client) for name, client in ledgers.items()}
    return Outside(islands, HttpAuthoriser(institutions), close)
