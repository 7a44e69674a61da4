"""Wiring: what one running ledger is made of, built once from its settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import ValidationError
from starlette.requests import Request

from kernel import migrate
from kernel.clock import Clock, system_clock
from kernel.crypto import jws
from kernel.crypto.keys import PublicKey
from kernel.crypto.nonces import NonceStore, PostgresNonceStore
from kernel.database import Database, resolve_url
from kernel.money import Currency
from kernel.postgres import EmbeddedPostgres
from ledger.contract import Genesis
from ledger.domain.state import LedgerState
from ledger.engine.sequencer import Sequencer
from ledger.settings import LedgerSettings
from ledger.store.tables import request_nonce
from ledger.usecases.accounts import Accounts
from ledger.usecases.keyring import Keyring
from ledger.usecases.mandates import Mandates
from ledger.usecases.submit import Submitter


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
    submitter: Submitter
    mandates: Mandates
    accounts: Accounts

    def close(self) -> None:
        """Stop writing, after what was taken is durable, and leave no process behind."""
        self.submitter.close()
        self.sequencer.stop()
        self.database.close()
        if self.server is not None:
            self.server.stop()


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def start_service(settings: LedgerSettings, *, clock: Clock = system_clock) -> Service:
    """Database, migrations, recovery, genesis. Raises LedgerNotReady, or what recovery raises."""
    if settings.genesis_path is not None:
        load_genesis(settings.genesis_path)  # what is wrong in the file is said before a database is started
    url, server = resolve_url(settings.database_url, settings.data_dir, "ledger")
    try:
        return _start_on(settings, url, server, clock)
    except BaseException:
        if server is not None:
            server.stop()  # a ledger that does not start leaves no server behind
        raise


def _start_on(settings: LedgerSettings, url: str, server: EmbeddedPostgres | None, clock: Clock) -> Service:
    if server is not None:
        migrate.upgrade("ledger", url)
    elif not migrate.is_current("ledger", url):
        raise LedgerNotReady("the database is not at this program's migration: run `jiaozi-ledger migrate`")
    database = Database(url, application_name=f"jiaozi-ledger {settings.node}")
    revive = server.start if server is not None else None
    sequencer = Sequencer(database, node=settings.node, clock=clock, revive=revive, check_clock=clock is system_clock)
    try:
        sequencer.start()
        _ensure_genesis(settings, sequencer)
        state = sequencer.read(lambda state: state).result()
    except BaseException:
        if sequencer.is_running:
            sequencer.stop()
        database.close()
        raise
    keyring = Keyring(state)
    return Service(
        settings=settings,
        clock=clock,
        database=database,
        server=server,
        sequencer=sequencer,
        state=state,
        keyring=keyring,
        nonces=PostgresNonceStore(
            lambda: database.transaction(isolation="READ COMMITTED"), clock=clock, table=request_nonce
        ),
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
        accounts=Accounts(sequencer, keyring, database, state=state, answer_seconds_max=settings.answer_seconds_max),
    )


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
