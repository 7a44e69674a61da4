"""The wallet service, wired: settings -> database, ledgers, keys, use cases -> one FastAPI app."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from zoneinfo import ZoneInfo

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from kernel import migrate
from kernel.clock import Clock, system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.nonces import PostgresNonceStore
from kernel.crypto.pkcs11 import load_signing_key
from kernel.database import Database, resolve_url
from kernel.http import create_app
from kernel.limits import BULK_BODY_BYTES_MAX
from kernel.postgres import EmbeddedPostgres
from ledger.client import LedgerClient
from wallet.api import (
    aliases,
    bulk,
    controls,
    events,
    families,
    interest,
    lifecycle,
    money,
    offline,
    privacy,
    programs,
    refunds,
    requests,
    schedules,
    settlements,
    simulate,
    wallets,
)
from wallet.api.auth import Authenticator
from wallet.api.dependencies import STATUSES
from wallet.client import WalletClient
from wallet.domain.aliases import NoCodeSender
from wallet.personal_data import PersonalDataVault
from wallet.program_template_files import load_templates
from wallet.rulepack_files import load_rule_pack, read_authority
from wallet.settings import (
    SERVICE,
    LedgerEntry,
    WalletSettings,
    read_card_issuers,
    read_clients,
    read_ledgers,
    read_peers,
    read_publishers,
)
from wallet.store.sandbox_core_banking import SandboxCoreBanking
from wallet.store.tables import request_nonce
from wallet.store.tenancy import tenant_url, unbound
from wallet.usecases.aliases import SandboxCodeSender
from wallet.usecases.bulk import run_files
from wallet.usecases.carrier import Carrier
from wallet.usecases.context import Context, LedgerAccess, Ledgers
from wallet.usecases.events import Hooks, follow, tell, webhook_key
from wallet.usecases.kept_twice import meaning_of
from wallet.usecases.peers import Peers
from wallet.usecases.privacy import PrivacyLog
from wallet.usecases.program_pass import ProgramPass
from wallet.usecases.recover import RecoveryThread
from wallet.usecases.schedules import execute_due
from wallet.usecases.worker import Worker
from wallet.webhook_sender import WebhookSender

log = logging.getLogger(__name__)
PEER_SECONDS_MAX = 10.0
"""A payer or a merchant waits while another institution is asked."""
Connect = Callable[[str, RequestSigner], LedgerClient]
"""(base URL, signer) -> client of that ledger."""

_DESCRIPTION = """\
An intermediary's wallets: customers, KYC classes and limits, exchange of bank deposit for currency, holders' signed
payments, and the bank's authorisations of cross-border legs. Amounts are strings of digits in minor units. Every write
carries an id of the client's making and may be repeated.
"""


class NotMigrated(RuntimeError):
    """The database's tables are not those of this program."""


class NotIsolated(RuntimeError):
    """Row security does not keep this institution's rows apart in the database."""


def create(
    settings: WalletSettings, *, connect: Connect | None = None, clock: Clock = system_clock, is_alone: bool = True
) -> FastAPI:
    """The app of one institution. Nothing is opened before it starts; `connect` and `clock` are for tests.

    `is_alone` = no other institution is in the database, as far as is known.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = await run_in_threadpool(_Running, settings, connect or _connector(settings), clock, is_alone)
        app.state.context = running.context
        app.state.carrier = running.carrier
        app.state.authenticator = running.authenticator
        app.state.sandbox_bank = running.bank
        app.state.hooks = running.hooks
        app.state.privacy_log = running.privacy_log
        app.state.codes = running.codes
        try:
            yield
        finally:
            await run_in_threadpool(running.close)

    app = create_app(
        title="Jiaozi wallet service",
        version="1.0.0",
        description=_DESCRIPTION,
        status_tables=[STATUSES],
        lifespan=lifespan,
        direct={"/v1/payments": money.create_payment_directly},
        body_limits=dict.fromkeys(
            (
                "/v1/payment-batches",
                "/v1/settlement-instructions",
                "/v1/leg-authorisations",
                "/v1/program-fundings",
                "/v1/purse-syncs",
                "/v1/program-previews",
                "/v1/programs",
                "/v1/bulk-checks",
                "/v1/bulk-files/{file}/lines",
            ),
            BULK_BODY_BYTES_MAX,
        ),
    )
    parts = (wallets, money, settlements, bulk, schedules, events, families, controls, aliases, lifecycle, programs)
    for part in (*parts, requests, refunds, offline, privacy, interest, *((simulate,) if settings.sandbox else ())):
        app.include_router(part.router)
    return app


class _Running:
    """What is open between start and stop."""

    def __init__(self, settings: WalletSettings, connect: Connect, clock: Clock, is_alone: bool) -> None:
        authority = read_authority(settings.rule_authority_path)
        pack = load_rule_pack(settings.rule_pack, authority=authority)
        pending = settings.pending_rule_pack and load_rule_pack(settings.pending_rule_pack, authority=authority)
        packs = (pack, pending) if pending else (pack,)
        if pending and (pending.currency, pending.time_zone) != (pack.currency, pack.time_zone):
            raise ValueError(f"{pending.name} has another currency or time zone than {pack.name}")
        key = load_signing_key(settings.signing_key_path)
        clients = read_clients(settings.clients_path)
        signer = RequestSigner(key)
        url, self._server = resolve_url(settings.database_url, data_dir=settings.data_dir, service=SERVICE)
        self._database = open_database(settings, url, self._server, is_alone=is_alone)
        entries = _ledger_entries(settings, connect, signer)
        if entries[0].currency != pack.currency:
            raise ValueError(f"the home ledger {entries[0].name} has {entries[0].currency}, the pack {pack.currency}")
        self._clients = [entry.client for entry in entries]
        self._peers = {
            participant: WalletClient(url, timeout_seconds=PEER_SECONDS_MAX)
            for participant, url in (read_peers(settings.peers_path) if settings.peers_path else {}).items()
        }
        self.bank = SandboxCoreBanking(self._database, clock=clock)
        self.codes = SandboxCodeSender(clock) if settings.sandbox else NoCodeSender()
        self.context = Context(
            database=self._database,
            ledgers=Ledgers(entries, database=self._database),
            pack=pack,
            participant=settings.participant,
            key=key,
            clock=clock,
            core_banking=self.bank,
            codes=self.codes,
            personal_data=PersonalDataVault.at(settings.data_key_path or settings.data_dir / "customer-data.key"),
            time_zone=ZoneInfo(pack.time_zone),
            templates=load_templates(
                settings.program_templates_path, read_publishers(settings.program_publishers_path)
            ),
            peers=Peers(self._peers),
            card_issuers=read_card_issuers(settings.card_issuers_path),
            pin_free_max_minor=settings.pin_free_max_minor,
            operator_kind=settings.operator_kind,
            packs=packs,
        )
        nonces = PostgresNonceStore(lambda: self._database.session(is_lazy=True), clock=clock, table=request_nonce)
        self.authenticator = Authenticator(clients, public_url=settings.public_url, nonces=nonces, clock=clock)
        self.carrier = Carrier(self.context)
        self.carrier.start()
        self._recovery = RecoveryThread(self.context, every_seconds=settings.recovery_seconds)
        self._recovery.start()
        self.privacy_log = PrivacyLog(
            settings.participant,
            webhook_key(settings.privacy_log_key_path or settings.data_dir / "privacy-log.key"),
        )
        self.hooks = Hooks(
            key=webhook_key(settings.webhook_key_path or settings.data_dir / "webhook.key"),
            sender=WebhookSender(is_sandbox=settings.sandbox),
        )
        programs_due = ProgramPass(self.context)
        self._workers = [
            Worker(
                "bookings", lambda at_start: follow(self.context), every_seconds=settings.worker_seconds, is_gentle=True
            ),
            *(
                Worker(name, work, every_seconds=settings.worker_seconds)
                for name, work in (
                    ("bulk", lambda at_start: run_files(self.context, at_start=at_start)),
                    ("schedules", lambda at_start: execute_due(self.context, at_start=at_start)),
                    ("events", lambda at_start: tell(self.context, self.hooks)),
                    ("programs", lambda at_start: programs_due()),
                )
            ),
        ]
        for worker in self._workers:
            worker.start()

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()
        self._recovery.stop()
        self.carrier.stop()
        for client in self._clients:
            client.close()
        for peer in self._peers.values():
            peer.close()
        self._database.close()
        if self._server is not None:
            self._server.stop()


def open_database(
    settings: WalletSettings, url: str, server: EmbeddedPostgres | None, *, is_alone: bool = True
) -> Database:
    """The institution's pool. An embedded database is migrated at start, another by command.

    Raises: NotMigrated; NotIsolated unless row security binds the role that the URL names. A sandbox with one
    institution is only warned, so that it may run as the tables' owner.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    if server is not None:
        migrate.upgrade(SERVICE, tenant_url(server.url(SERVICE), settings.participant), service_url=url)
    elif not migrate.is_current(SERVICE, url):
        raise NotMigrated("the database is not at this program's migration: run `jiaozi-wallet migrate`")
    database = Database(
        tenant_url(url, settings.participant),
        application_name="jiaozi-wallet",
        pool_size=settings.database_pool_size,
        meaning_of=meaning_of,
    )
    with database.transaction(isolation="READ COMMITTED") as connection:
        reasons = unbound(connection, settings.participant)
    if reasons and not (settings.sandbox and is_alone):
        database.close()
        raise NotIsolated(f"institutions are not kept apart in the database: {'; '.join(reasons)}")
    for reason in reasons:
        log.warning("nothing but this program keeps another institution's rows apart: %s", reason)
    return database


def _connector(settings: WalletSettings) -> Connect:
    return lambda url, signer: LedgerClient(url, signer=signer, timeout_seconds=settings.ledger_timeout_seconds)


def _ledger_entries(settings: WalletSettings, connect: Connect, signer: RequestSigner) -> list[LedgerAccess]:
    if settings.ledgers_path is None:
        client = connect(settings.ledger_url, signer)
        view = client.ledger()
        return [LedgerAccess(view.ledger, view.currency, client)]

    def access(entry: LedgerEntry) -> LedgerAccess:
        return LedgerAccess(entry.ledger, entry.currency, connect(entry.url, signer), entry.vault)

    return [access(entry) for entry in read_ledgers(settings.ledgers_path)]
