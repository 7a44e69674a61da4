"""What the use cases work with: built once at start, passed down. And the ledgers, as this institution sees them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

from kernel import ids
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.clock import Clock
from kernel.crypto.keys import PublicKey, SigningKey
from kernel.database import Database
from kernel.errors import ProblemError, Refusal, RequestRefusal
from kernel.ids import AccountNumber, ParticipantId
from kernel.limits import SIGNATURE_SKEW_SECONDS_MAX
from ledger.client import LedgerClient
from ledger.contract import AccountKind, AccountOpening, LedgerRefusal, TransferRefusal
from wallet.contract import WalletRefusal
from wallet.domain.aliases import CodeSender, NoCodeSender
from wallet.domain.core_banking import CoreBanking
from wallet.domain.reserves import OperatorKind
from wallet.domain.rules import RulePack
from wallet.personal_data import PersonalDataVault
from wallet.program_template_files import TemplateBook, builtin_templates
from wallet.store import wallets
from wallet.usecases.doubts import Doubts
from wallet.usecases.peers import Peers

SUBMISSION_LIFE = timedelta(seconds=60)
"""A transfer is signed to expire this long after the durable decision to send it: longer than a request may take, short
enough that a refusal which cannot be believed at once is believed soon."""
SUBMISSION_GRACE = timedelta(seconds=SIGNATURE_SKEW_SECONDS_MAX + 30)
"""How long after its expiry a transfer may still be booked: the ledger's clock runs behind ours by no more than the
skew (or it refuses our signatures as made in the future), and it books or refuses what it took in within 30 seconds."""


@dataclass(slots=True)
class LedgerAccess:
    """One ledger: `client` signs with the institution's key."""

    name: str
    currency: str
    client: LedgerClient
    vault: AccountNumber | None = None


class Ledgers:
    """The ledgers this institution is a participant of, the home ledger first; our vault on each."""

    def __init__(self, entries: Sequence[LedgerAccess], *, database: Database) -> None:
        self._entries = {entry.name: entry for entry in entries}
        self._home = entries[0]
        self._database = database
        self._lock = threading.Lock()

    @property
    def home(self) -> LedgerAccess:
        return self._home

    def all(self) -> list[LedgerAccess]:
        return list(self._entries.values())

    def find(self, name: str) -> LedgerAccess | None:
        return self._entries.get(name)

    def vault(self, entry: LedgerAccess) -> AccountNumber:
        """Our account on a ledger; opened at first need, under an id that is durable before the ledger hears of it.

        Raises: ProblemError when the ledger refuses or cannot be reached.
        """
        if entry.vault is None:
            with self._lock:
                entry.vault = entry.vault or self._open_vault(entry)
        return entry.vault

    def _open_vault(self, entry: LedgerAccess) -> AccountNumber:
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            opening_id, known = wallets.prepare_institution_account(connection, entry.name, ids.new_uuid7())
        if known is not None:
            return AccountNumber(known)
        try:
            result = entry.client.open_accounts([AccountOpening(opening=opening_id, kind=AccountKind.VAULT)])[0]
        except (ProblemResponse, ServiceUnreachable) as error:
            raise ledger_unavailable(error) from error
        if result.account is None:
            raise ProblemError(refusal_of(result.refusal), result.detail or "the ledger refused to open our vault")
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            wallets.save_institution_account(connection, entry.name, result.account)
        return result.account


@dataclass(frozen=True, slots=True)
class Context:
    database: Database
    ledgers: Ledgers
    pack: RulePack
    participant: ParticipantId
    key: SigningKey
    clock: Clock
    core_banking: CoreBanking
    personal_data: PersonalDataVault
    time_zone: ZoneInfo
    claim: timedelta = field(default=timedelta(seconds=60))
    """How long an exchange is left to whoever works on it."""
    doubts: Doubts = field(default_factory=Doubts)
    templates: TemplateBook = field(default_factory=builtin_templates)
    peers: Peers = field(default_factory=Peers)
    """Other institutions' wallet services, and their keys."""
    pin_free_max_minor: int = 100_000
    """The most that a payer's code pays without asking its holder again, in minor units: the institution's policy."""
    codes: CodeSender = field(default_factory=NoCodeSender)
    """Where one-time codes for aliases leave."""
    operator_kind: OperatorKind = OperatorKind.BANK
    """What this institution is to the rules on reserves."""
    card_issuers: Mapping[str, PublicKey] = field(default_factory=dict)
    """The root keys of the card issuers that are trusted here, by name. None: no card is taken."""
    packs: Sequence[RulePack] = ()
    """Every pack that was, is or will be in force here, for what goes by the day; empty = `pack` alone."""

    def take_effect(self, pack: RulePack) -> None:
        """A pending pack's day has come: every operation that begins from now on sees it. The one thing of a context
        that ever changes, by `wallet.usecases.rule_adoption`."""
        object.__setattr__(self, "pack", pack)


def ledger_unavailable(error: ProblemResponse | ServiceUnreachable) -> ProblemError:
    """For calls without effect, or whose effect a retry with the same ids repeats."""
    if isinstance(error, ProblemResponse) and is_definite(error):
        return ProblemError(refusal_of(error.refusal), error.detail)
    return ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "the ledger cannot be reached now; retry with the same ids")


def is_definite(error: ProblemResponse) -> bool:
    """Whether the ledger has said no to a whole request, so that nothing of it was booked.

    `signature-replayed` is no such no: the network doubled the request, and the other copy may be at work.
    """
    if error.refusal == RequestRefusal.SIGNATURE_REPLAYED.value:
        return False
    return 400 <= error.status < 500 and bool(error.refusal) and not error.transient


_PASSED_ON: dict[str, Refusal] = {
    refusal.value: refusal
    for refusal in (RequestRefusal.VALIDATION_FAILED, *LedgerRefusal, *TransferRefusal, *WalletRefusal)
    if refusal is not LedgerRefusal.UNKNOWN_SIGNER
}


def refusal_of(code: str | None) -> Refusal:
    """The refusal with a code that the ledger sent. What concerns our own standing there (signatures, permission) or is
    new to us becomes `service-unavailable`: our client can do nothing about it but retry."""
    return _PASSED_ON.get(code or "", RequestRefusal.SERVICE_UNAVAILABLE)


def show_transfer(transfer_id: UUID) -> str:
    return ids.show("trf", transfer_id)
