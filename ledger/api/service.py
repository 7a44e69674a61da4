"""Wiring: what one running ledger is made of, built once from its settings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import ValidationError
from starlette.requests import Request

from kernel import migrate
from kernel.clock import Clock, system_clock
from kernel.crypto import jws
from kernel.crypto.keys import KeyRefused, PublicKey
from kernel.crypto.nonces import NonceStore, PostgresNonceStore
from kernel.database import Database, resolve_url
from kernel.money import Currency
from kernel.postgres import EmbeddedPostgres
from ledger.contract import Genesis
from ledger.domain.state import LedgerState
from ledger.engine.sequencer import Sequencer
from ledger.log.feed import LogFeed
from ledger.log.keys import LogKeyRefused
from ledger.log.service import TransparencyLog, start_log
from ledger.settings import LedgerSettings
from ledger.store.history import History
from ledger.store.tables import request_nonce
from ledger.usecases.account_changes import AccountChanges
from ledger.usecases.accounts import Accounts
from ledger.usecases.closings import Closings
from ledger.usecases.keyring import Keyring
from ledger.usecases.mandates import Mandates
from ledger.usecases.submit import Submitter

logger = logging.getLogger("jiaozi.ledger")


class LedgerNotReady(RuntimeError):
    """The ledger cannot start; the message says what to set."""


@dataclass(frozen=True, slots=True)
class Service:
    settings: LedgerSettings
    clock: Clock
    database: Database
    server: EmbeddedPostgres | None
    """The embedded server, if this ledger runs its own."""
    sequencer: Sequencer
    state: LedgerState
    """For facts that only directives change; balances are read through the sequencer."""
    keyring: Keyring
    nonces: NonceStore
    history: History
    submitter: Submitter
    mandates: Mandates
    accounts: Accounts
    account_changes: AccountChanges
    closings: Closings
    log: TransparencyLog | None
    """None where settings have switched it off."""

    @property
    def failure(self) -> str | None:
        """Why the ledger no longer writes, why its log no longer stands, its closings or its histories; None = all is
        well."""
        log_failure = self.log.failure if self.log is not None else None
        return self.sequencer.failure or log_failure or self.closings.failure or self.history.failure

    def close(self) -> None:
        """Stop writing, after what was taken is durable, and leave no process behind."""
        self.submitter.close()
        self.closings.stop()
        self.sequencer.stop(keep_lease=True)
        self.history.stop()
        if self.log is not None:
            self.log.feed.close()  # after the last block, before the database goes
        self.sequencer.release()
        self.database.close()
        if self.server is not None and not self.sequencer.is_deposed:  # then it is another's
            self.server.stop()


def service_of(request: Request) -> Service:
    """The running ledger. Raises ProblemError(SERVICE_UNAVAILABLE) while this one stands by."""
    service: Service = request.app.state.starting.service
    return service


StandingBy = Callable[[Sequencer, str], None]
"""Is told, once, that the ledger of this name is the writer and that this one waits for its turn."""


def start_service(
    settings: LedgerSettings, *, clock: Clock = system_clock, standing_by: StandingBy | None = None
) -> Service:
    """Database, migrations, lease, recovery, genesis. Returns when it serves, which may be after another ledger's end.

    Raises LedgerNotReady, or what recovery raises; SequencerUnavailable if it was stopped before its turn.
    """
    if settings.genesis_path is not None:
        load_genesis(settings.genesis_path)  # what is wrong in the file is said before a database is started
    url, server = resolve_url(settings.database_url, settings.data_dir, "ledger")
    try:
        return _start_on(settings, url, server, clock, standing_by)
    except BaseException:
        if server is not None:
            server.stop_if_launched()  # a ledger that does not start leaves no server behind
        raise


def _start_on(
    settings: LedgerSettings,
    url: str,
    server: EmbeddedPostgres | None,
    clock: Clock,
    standing_by: StandingBy | None,
) -> Service:
    if server is not None:
        migrate.upgrade("ledger", server.url("ledger"), service_url=url)
    elif not migrate.is_current("ledger", url):
        raise LedgerNotReady("the database is not at this program's migration: run `jiaozi-ledger migrate`")
    excess = migrate.excess("ledger", url)
    if excess:
        logger.warning(
            "this ledger connects as a role that may %s: its journal is append-only by the program alone. Give it a"
            " role of its own, and the owner's URL to `jiaozi-ledger migrate` (JIAOZI_LEDGER_MIGRATION_URL)",
            excess[0],
        )
    database = Database(url, application_name=f"jiaozi-ledger {settings.node}")
    revive = server.start if server is not None else None
    history, feed = History(database), LogFeed()
    sequencer = Sequencer(
        database,
        node=settings.node,
        clock=clock,
        revive=revive,
        check_clock=clock is system_clock,
        lease_seconds=settings.lease_seconds,
        followers=[lambda block: history.follow(block.transfers), *([feed.follow] if settings.log_enabled else [])],
    )
    try:
        writer = sequencer.ask_to_start()
        if writer is not None and standing_by is not None:
            standing_by(sequencer, writer)
        sequencer.await_start()
        history.start()
        _ensure_genesis(settings, sequencer)
        state = sequencer.read(lambda state: state).result()
        log = _start_log(settings, database, feed, url=url, state=state, holder=sequencer.holder, clock=clock)
    except BaseException:
        if sequencer.is_running:
            sequencer.stop()
        history.stop()
        database.close()
        raise
    keyring = Keyring(state)
    closings = Closings(
        sequencer,
        database,
        database_url=url,
        state=state,
        keys=log.keys if log is not None else None,
        answer_seconds_max=settings.answer_seconds_max,
    )
    closings.start()
    return Service(
        settings=settings,
        clock=clock,
        database=database,
        server=server,
        sequencer=sequencer,
        state=state,
        keyring=keyring,
        nonces=PostgresNonceStore(lambda: database.session(is_lazy=True), clock=clock, table=request_nonce),
        submitter=Submitter(
            sequencer,
            keyring,
            database,
            ledger=state.ledger,
            currency=state.currency,
            clock=clock,
            verifier_threads=settings.verifier_threads,
            answer_seconds_max=settings.answer_seconds_max,
        ),
        mandates=Mandates(
            sequencer,
            keyring,
            database,
            state=state,
            clock=clock,
            answer_seconds_max=settings.answer_seconds_max,
        ),
        history=history,
        accounts=Accounts(
            sequencer, keyring, database, history, state=state, answer_seconds_max=settings.answer_seconds_max
        ),
        account_changes=AccountChanges(
            sequencer, keyring, database, state=state, clock=clock, answer_seconds_max=settings.answer_seconds_max
        ),
        closings=closings,
        log=log,
    )


def _start_log(
    settings: LedgerSettings,
    database: Database,
    feed: LogFeed,
    *,
    url: str,
    state: LedgerState,
    holder: str,
    clock: Clock,
) -> TransparencyLog | None:
    if not settings.log_enabled:
        return None
    try:
        return start_log(
            settings,
            database,
            feed,
            database_url=url,
            ledger=state.ledger,
            currency=state.currency,
            holder=holder,
            clock=clock,
        )
    except (LogKeyRefused, KeyRefused, OSError) as error:
        raise LedgerNotReady(str(error)) from error


def load_genesis(path: Path) -> Genesis:
    """A genesis file, checked. Raises LedgerNotReady with what is wrong in it."""
    try:
        genesis = Genesis.model_validate_json(path.read_bytes())
        Currency.of(genesis.currency)
        ZoneInfo(genesis.time_zone)
        keys = [PublicKey.from_jwk(operator.key).thumbprint for operator in genesis.operators]
    except OSError as error:
        raise LedgerNotReady(f"the genesis file cannot be read: {error}") from error
    except (ValidationError, ValueError, ZoneInfoNotFoundError) as error:
        raise LedgerNotReady(f"the genesis file {path} is not valid: {error}") from error
    if len(set(keys)) != len(keys):
        raise LedgerNotReady("two operators of the genesis file have the same key")
    if genesis.approvals_needed > len(keys):
        raise LedgerNotReady("the genesis file asks for more approvals than it names operators")
    return genesis


def _ensure_genesis(settings: LedgerSettings, sequencer: Sequencer) -> None:
    genesis = load_genesis(settings.genesis_path) if settings.genesis_path is not None else None
    if sequencer.head is None:
        if genesis is None:
            raise LedgerNotReady("the journal is empty: set JIAOZI_LEDGER_GENESIS_PATH to a genesis file")
        document = {"kind": "genesis", **genesis.model_dump(mode="json", exclude_none=True)}
        sequencer.carry_out(kind="genesis", mandate_id=None, body=jws.canonical_json(document), action=None).result()
    elif genesis is not None:
        ledger, currency = sequencer.read(lambda state: (state.ledger, state.currency)).result()
        if (genesis.ledger, genesis.currency) != (ledger, currency):
            raise LedgerNotReady(
                f"the journal belongs to {ledger} ({currency}), the genesis file to {genesis.ledger}"
                f" ({genesis.currency}): point JIAOZI_LEDGER_DATABASE_URL at another database"
            )
