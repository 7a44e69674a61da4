"""The settlement service, wired: settings -> database, islands, institutions, engine, routes -> one FastAPI app."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from kernel import migrate
from kernel.client import ServiceClient
from kernel.clock import Clock, system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import SigningKey
from kernel.crypto.nonces import PostgresNonceStore
from kernel.crypto.pkcs11 import load_signing_key
from kernel.database import Database, resolve_url
from kernel.http import create_app
from kernel.money import Currency
from ledger.client import LedgerClient
from settlement.api.auth import Authenticator
from settlement.api.breaks import router as breaks_router
from settlement.api.calendars import router as calendars_router
from settlement.api.compliance import router as compliance_router
from settlement.api.control import router as control_router
from settlement.api.liquidity import router as liquidity_router
from settlement.api.market import router as market_router
from settlement.api.messages import router as messages_router
from settlement.api.multileg import router as multileg_router
from settlement.api.oversight import build_oversight
from settlement.api.reconciliation import router as reconciliation_router
from settlement.api.relay import connect_relay
from settlement.api.relay import router as relay_router
from settlement.api.routes import router
from settlement.api.service import Service
from settlement.api.sources import router as sources_router
from settlement.contract import BATCH_BYTES_MAX, STATUS_BY_REFUSAL
from settlement.contract.reconciliation import SOURCE_BYTES_MAX
from settlement.domain.reconciliation.lifecycle import Officer
from settlement.domain.streams import PART_BYTES_MAX
from settlement.islands.authorisers import Authoriser, Check, HttpAuthoriser
from settlement.islands.evm.config import connect_evm
from settlement.islands.evm.terms import check_lock
from settlement.islands.native import NativeIsland
from settlement.islands.port import Island
from settlement.iso20022.recalls import RECALL_BYTES_MAX
from settlement.settings import SERVICE, Directory, SettlementSettings, read_directory
from settlement.store.decision_log import DecisionLog
from settlement.store.islands import IslandMemory
from settlement.store.tables import request_nonce
from settlement.usecases.breaks import Officers
from settlement.usecases.compliance import Compliance, find_barred, screen_anew
from settlement.usecases.control import Control, ControlWatch
from settlement.usecases.evidence import Books
from settlement.usecases.keeper import Keeper
from settlement.usecases.liquidity import Desk, advance, queue_checks
from settlement.usecases.market import Market
from settlement.usecases.market_watch import MarketWatch
from settlement.usecases.netting_authoriser import NettingAuthoriser
from settlement.usecases.relay import RelayWatch
from settlement.usecases.settle import ANSWER_WAIT_SECONDS, Engine
from settlement.usecases.streams import StreamContext, StreamWorker
from settlement.usecases.worker import Worker

if TYPE_CHECKING:
    from settlement.islands.chainmaker.config import ChainMakerConnection

_DESCRIPTION = """\
Cross-border settlement: payment versus payment on several ledgers, all legs or none, by decision escrow. Instructions
come as ISO 20022 pacs.008, pacs.009 or CSV; pacs.002, camt.052, 053, 054 and 029 go out; statements are reconciled.
Amounts are strings of digits in minor units. Requests are signed (RFC 9421) by a registered institution or the bridge.
"""


_INSTITUTION_CALLS_MAX = 64
"""Calls to institutions at once; each ends within `call_timeout_seconds`."""
_LOG_WRITES = 3
"""Writes of the engine to its log at once: the next wave, decisions, ends."""
_ENGINE_POOL_SIZE = 3 + _LOG_WRITES
"""The engine's thread has one transaction at a time beside its writes; the rest is for what comes beside it."""


class NotMigrated(RuntimeError):
    """The database's tables are not those of this program."""


@dataclass(frozen=True, slots=True)
class Outside:
    """The others: ledgers and institutions, and how to hang up."""

    islands: Mapping[str, Island]
    authoriser: Authoriser
    close: Callable[[], None]


Connect = Callable[[SettlementSettings, Directory, SigningKey], Outside]


def create(settings: SettlementSettings, *, connect: Connect | None = None, clock: Clock = system_clock) -> FastAPI:
    """The app. Nothing is opened before it starts; `connect` and `clock` are for tests and simulations."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = await run_in_threadpool(_Running, settings, connect, clock)
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
        body_limits={
            "/v1/streams/{stream}/parts/{offset}": PART_BYTES_MAX,
            "/v1/recalls": RECALL_BYTES_MAX,
            "/v1/batches": BATCH_BYTES_MAX,
            "/v1/reconciliation-sources": SOURCE_BYTES_MAX,
        },
        read_seconds_max=30.0,  # a full batch file over a slow line
    )
    app.include_router(router)
    app.include_router(calendars_router)
    app.include_router(compliance_router)
    app.include_router(market_router)
    app.include_router(messages_router)
    app.include_router(multileg_router)
    app.include_router(liquidity_router)
    app.include_router(sources_router)
    app.include_router(reconciliation_router)
    app.include_router(breaks_router)
    app.include_router(control_router)
    app.include_router(relay_router)
    return app


class _Running:
    """What is open between start and stop."""

    def __init__(self, settings: SettlementSettings, connect: Connect | None, clock: Clock) -> None:
        directory = read_directory(settings)
        key = load_signing_key(settings.signing_key_path)
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        url, self._server = resolve_url(settings.database_url, settings.data_dir, SERVICE)
        if self._server is not None:
            migrate.upgrade(SERVICE, self._server.url(SERVICE), service_url=url)
        elif not migrate.is_current(SERVICE, url):
            raise NotMigrated("the database is not at this program's migration: run `jiaozi-settlement migrate`")
        self._database = Database(url, application_name="jiaozi-settlement", pool_size=settings.database_pool_size)
        if connect is None:
            memory = IslandMemory(self._database, clock)
            self._outside = connect_over_http(settings, directory, key, memory=memory)
        else:
            self._outside = connect(settings, directory, key)
        # Each ledger may have a hold, a post and a void under way, so that a slow one leaves the others their threads.
        self._executor = ThreadPoolExecutor(3 * len(directory.ledgers), thread_name_prefix="settlement-ledger")
        calls = min(_INSTITUTION_CALLS_MAX, max(1, len(directory.institutions)))
        self._institution_executor = ThreadPoolExecutor(calls, thread_name_prefix="settlement-institution")
        self._log_executor = ThreadPoolExecutor(_LOG_WRITES, thread_name_prefix="settlement-log")
        # Apart from the requests' pool: they cannot starve it, and an engine that stands still inside a transaction
        # does not keep the lease's row locked: its session is ended by the time a standby has waited for it.
        self._engine_database = Database(
            url,
            application_name="jiaozi-settlement-engine",
            pool_size=_ENGINE_POOL_SIZE,
            idle_transaction_timeout_ms=int(1_000 * settings.standby_seconds),
        )
        log = DecisionLog(self._engine_database)
        engine = Engine(
            log=log,
            islands=self._outside.islands,
            authoriser=NettingAuthoriser(self._outside.authoriser, self._database),
            clock=clock,
            holder=f"{socket.gethostname()}/{os.getpid()}",
            executor=self._executor,
            institution_executor=self._institution_executor,
            log_executor=self._log_executor,
            # Well within the time a standby waits.
            answer_wait_seconds=min(ANSWER_WAIT_SECONDS, settings.standby_seconds / 10),
            wave_settlements=settings.wave_settlements,
        )
        oversight = build_oversight(settings, directory, clock)
        self._close_oversight = oversight.close
        self._worker = Worker(engine, log, clock=clock, standby=timedelta(seconds=settings.standby_seconds))
        nonces = PostgresNonceStore(lambda: self._database.session(is_lazy=True), clock=clock, table=request_nonce)
        self.authenticator = Authenticator(
            directory,
            bridge=settings.participant,
            bridge_key=key.public,
            public_url=settings.public_url,
            nonces=nonces,
            clock=clock,
            officers=oversight.officers,
        )
        market = Market(
            database=self._database,
            directory=directory,
            bridge=settings.participant,
            clock=clock,
            lock_time=timedelta(seconds=settings.fx_lock_seconds),
            screen_anew=None if oversight.compliance is None else partial(screen_anew, compliance=oversight.compliance),
            find_barred=_barred(oversight.compliance, directory),
        )
        self._market_watch = MarketWatch(market)
        desk = Desk(
            self._database,
            directory,
            self._outside.islands,
            settings.participant,
            oversight.officers,
            clock,
            may_overtake=settings.queue_overtaking,
            calendars=oversight.calendars,
        )
        intake_checks = (*oversight.checks, *queue_checks(settings))
        streams = StreamContext(
            database=self._database,
            directory=directory,
            clock=clock,
            files_directory=settings.files_directory,
            bridge=settings.participant,
            run_on_submit=settings.run_on_submit,
            checks=intake_checks,
            market=market,
        )
        self._stream_worker = StreamWorker(streams, booked=self._worker.wake)
        officers = Officers(
            {
                thumbprint: (Officer(name, settings.participant), officer_key)
                for thumbprint, (name, officer_key) in oversight.officers.items()
            },
            settings.participant,
        )
        control = Control(
            database=self._database,
            islands=self._outside.islands,
            bridge=settings.participant,
            clock=clock,
            in_doubt_max=timedelta(minutes=settings.control_in_doubt_minutes),
        )
        self._control_watch = ControlWatch(
            control,
            every_seconds=settings.control_seconds,
            balances_every_seconds=settings.control_balances_seconds,
        )
        self._relay = connect_relay(settings, directory, key, database=self._database, clock=clock)
        self._relay_watch = (
            None if self._relay is None else RelayWatch(self._relay, every_seconds=settings.relay_seconds)
        )
        self.service = Service(
            database=self._database,
            directory=directory,
            engine=engine,
            worker=self._worker,
            files_directory=settings.files_directory,
            run_on_submit=settings.run_on_submit,
            intake_checks=intake_checks,
            liquidity=desk,
            oversight=oversight,
            clock=clock,
            market=market,
            streams=streams,
            stream_worker=self._stream_worker,
            books=Books(officers, control, key, self._outside.islands),
            relay=self._relay,
            engine_silent_after=timedelta(seconds=settings.standby_seconds),
        )
        passes = (*oversight.passes, advance)
        self._keeper = Keeper(passes, database=self._database, clock=clock, moved=self._worker.wake)
        self._worker.start()
        self._stream_worker.start()
        self._keeper.start()
        self._market_watch.start()
        self._control_watch.start()
        if self._relay_watch is not None:
            self._relay_watch.start()

    def close(self) -> None:
        if self._relay is not None and self._relay_watch is not None:
            self._relay_watch.stop()
            self._relay.close()
        self._control_watch.stop()
        self._market_watch.stop()
        self._keeper.stop()
        self._stream_worker.stop()
        self._worker.stop()
        self._close_oversight()
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._institution_executor.shutdown(wait=False, cancel_futures=True)
        self._log_executor.shutdown(wait=False, cancel_futures=True)
        self._outside.close()
        self._engine_database.close()
        self._database.close()
        if self._server is not None:
            self._server.stop()


def _barred(compliance: Compliance | None, directory: Directory) -> Callable[[datetime], Collection[str]]:
    if compliance is None:
        return lambda _: ()
    return lambda now: find_barred(compliance, directory.institutions, now=now)


def connect_over_http(
    settings: SettlementSettings, directory: Directory, key: SigningKey, *, memory: IslandMemory | None = None
) -> Outside:
    """The real others. Nothing is dialled yet: a service that is down is no reason not to start. Without `memory` what
    was final on a chain is forgotten at the end."""
    signer, timeout = RequestSigner(key), settings.call_timeout_seconds
    ledgers = {
        name: LedgerClient(entry.url, signer=signer, timeout_seconds=timeout)
        for name, entry in directory.ledgers.items()
        if entry.kind == "native"
    }
    chains = {
        name: connect_evm(
            entry.evm,
            ledger=name,
            url=entry.url,
            currency=Currency.of(entry.currency),
            timeout_seconds=timeout,
            memory=memory,
            recall=memory.authorisation if memory is not None else None,
        )
        for name, entry in directory.ledgers.items()
        if entry.evm is not None
    }
    chainmakers = _chainmakers(directory, timeout)
    institutions = {
        # The engine backs off and repeats by itself.
        participant: ServiceClient(entry.authorisation_url, auth=signer, timeout_seconds=timeout, retries_max=0)
        for participant, entry in directory.institutions.items()
    }

    def close() -> None:
        for ledger in ledgers.values():
            ledger.close()
        for chain in chains.values():
            chain.close()
        for chainmaker in chainmakers.values():
            chainmaker.close()
        for institution in institutions.values():
            institution.close()

    islands: dict[str, Island] = {name: NativeIsland(name, client) for name, client in ledgers.items()}
    islands |= {name: chain.island for name, chain in chains.items()}
    islands |= {name: chain.island for name, chain in chainmakers.items()}
    checks: dict[str, Check] = {name: partial(check_lock, chain.terms) for name, chain in chains.items()}
    checks |= {name: chain.check for name, chain in chainmakers.items()}
    return Outside(islands, HttpAuthoriser(institutions, checks), close)


def _chainmakers(directory: Directory, timeout_seconds: float) -> dict[str, ChainMakerConnection]:
    entries = {name: entry for name, entry in directory.ledgers.items() if entry.chainmaker is not None}
    if not entries:
        return {}
    from settlement.islands.chainmaker.config import connect_chainmaker  # gRPC is loaded where a chain needs it

    return {
        name: connect_chainmaker(
            entry.chainmaker,
            ledger=name,
            url=entry.url,
            currency=Currency.of(entry.currency),
            timeout_seconds=timeout_seconds,
        )
        for name, entry in entries.items()
        if entry.chainmaker is not None
    }
