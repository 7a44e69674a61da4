"""What must hold after each case. The ledgers are asked themselves; the engine's log is compared with them afterwards.

Every expectation comes from the instructions as they were sent, never from what the engine says it did:
- I5: each settlement has all its legs posted, once, with their accounts and amounts, or none;
- I2: on each ledger issued - redeemed = circulation = the sum of the accounts' balances, and that is what was funded;
- no hold is left, on any account;
- the payers' balances are the funds less exactly what was posted;
- the decision log: COMMIT where all legs are posted, ABORT where none is; nothing in doubt.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from uuid import UUID

from kernel.ids import AccountNumber, ParticipantId
from ledger.contract import Booking
from settlement.domain.escrow import Decision
from settlement.store import batches
from settlement.store.batches import SettlementRow
from settlement.torture.world import FUNDS_MINOR, Ledger, World, WorldFailed, patiently

TOLD_SECONDS_MAX = 30.0


@dataclass(frozen=True, slots=True)
class SentLeg:
    ledger: str
    payer: ParticipantId
    payee: ParticipantId
    amount_minor: int


@dataclass(frozen=True, slots=True)
class Sent:
    """A settlement as it was instructed. `may_commit` is false of one that an island or institution must refuse."""

    uetr: UUID
    legs: tuple[SentLeg, ...]
    may_commit: bool = True


@dataclass(slots=True)
class Books:
    """What one ledger says of itself."""

    circulation_minor: int = 0
    held_minor: int = 0
    balances_minor: int = 0
    is_conserved: bool = True


@dataclass(slots=True)
class Findings:
    """Of one case. Empty violations mean that all held."""

    violations: list[str] = field(default_factory=list)
    splits: int = 0
    committed: int = 0
    aborted: int = 0


_Posted = tuple[AccountNumber | None, AccountNumber | None, int]


class Checker:
    """Remembers the whole campaign: a leg that is posted late, under an old settlement, is found too."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._after_seq: Counter[str] = Counter()
        self._sent: dict[UUID, Sent] = {}
        self._posted: defaultdict[tuple[str, UUID], list[_Posted]] = defaultdict(list)
        self.books = {name: Books() for name in world.ledgers}
        self._pool = ThreadPoolExecutor(len(world.ledgers), thread_name_prefix="torture-check")
        self._paid: Counter[str] = Counter()
        """Ledger -> what was posted for settlements that were sent."""

    def expect(self, sent: Sequence[Sent]) -> None:
        """These may be posted from now on."""
        self._sent |= {item.uetr: item for item in sent}

    def check(self, sent: Sequence[Sent], rows: Sequence[SettlementRow] = ()) -> Findings:
        """After everything has come back. `rows`: what the engine's database says of what was sent."""
        findings = Findings()
        touched: set[UUID] = {item.uetr for item in sent}
        for news in self._pool.map(self._read_bookings, self._world.ledgers.values()):
            touched |= news
        all_posted: dict[UUID, bool] = {}
        for uetr in touched:
            if uetr in self._sent:
                all_posted[uetr] = self._check_legs(self._sent[uetr], findings)
            else:
                findings.violations.append(f"a leg of {uetr} is posted, which nobody instructed")
        for problems in self._pool.map(self._check_books, self._world.ledgers.values()):
            findings.violations += problems
        if rows:
            self._check_log(rows, all_posted, findings)
        return findings

    def check_again(self) -> Findings:
        """Every settlement of the campaign, at its end, by the ledgers alone."""
        return self.check(list(self._sent.values()))

    # --- the ledgers

    def _read_bookings(self, ledger: Ledger) -> set[UUID]:
        """What was booked since the last time. Every leg on a ledger is paid by its home bank, so that one is asked."""
        client = self._world.ledger_client(ledger, ledger.home_bank)
        needed = patiently(client.supply).as_of_seq
        news: list[Booking] = []
        deadline = time.monotonic() + TOLD_SECONDS_MAX
        while self._after_seq[ledger.name] < needed:
            answer = patiently(lambda: client.bookings(after_seq=self._after_seq[ledger.name]))
            news += answer.bookings
            if answer.through_seq == self._after_seq[ledger.name]:
                if time.monotonic() > deadline:
                    raise WorldFailed(f"{ledger.name} does not tell its bookings after {answer.through_seq}")
                time.sleep(0.01)
            self._after_seq[ledger.name] = answer.through_seq
        touched: set[UUID] = set()
        for item in news:
            if item.amount_minor and item.reference is not None:
                self._posted[ledger.name, item.reference].append((item.debit, item.credit, item.amount_minor))
                self._paid[ledger.name] += item.amount_minor
                touched.add(item.reference)
        return touched

    def _check_legs(self, sent: Sent, findings: Findings) -> bool:
        """I5 of one settlement. True if all its legs are posted."""
        wanted: defaultdict[str, list[_Posted]] = defaultdict(list)
        for leg in sent.legs:
            accounts = self._world.ledgers[leg.ledger].accounts
            wanted[leg.ledger].append((accounts[leg.payer], accounts[leg.payee], leg.amount_minor))
        found = {name: self._posted.get((name, sent.uetr), []) for name in wanted}
        if not any(found.values()):
            return False
        if all(sorted(found[name], key=repr) == sorted(legs, key=repr) for name, legs in wanted.items()):
            if not sent.may_commit:
                findings.violations.append(f"{sent.uetr} is posted although it had to be refused")
            return True
        findings.splits += 1
        shown = {name: f"{len(found[name])} of {len(legs)}" for name, legs in wanted.items()}
        findings.violations.append(f"I5: SPLIT: {sent.uetr}: legs posted {shown}")
        return False

    def _check_books(self, ledger: Ledger) -> list[str]:
        """I2, holds and balances of one ledger."""
        problems: list[str] = []
        balances: dict[ParticipantId, int] = {}
        pending = 0
        for bank, account in ledger.accounts.items():
            client = self._world.ledger_client(ledger, bank)
            view = patiently(lambda: client.get_account(account))  # noqa: B023 - called at once
            balances[bank] = view.balance_minor
            pending += view.debits_pending_minor
        supply = patiently(self._world.ledger_client(ledger).supply)
        books = Books(supply.circulation_minor, supply.held_minor, sum(balances.values()))
        books.is_conserved = supply.identity_holds and supply.circulation_minor == FUNDS_MINOR == books.balances_minor
        self.books[ledger.name] = books
        if not books.is_conserved:
            problems.append(f"I2: {ledger.name}: {supply.circulation_minor} in circulation, accounts have {balances}")
        if supply.held_minor or pending:
            problems.append(f"{ledger.name}: holds of {supply.held_minor} are left")
        expected = FUNDS_MINOR - self._paid[ledger.name]
        if balances[ledger.home_bank] != expected:
            problems.append(f"{ledger.name}: {ledger.home_bank} has {balances[ledger.home_bank]}, not {expected}")
        return problems

    # --- the log

    def _check_log(self, rows: Sequence[SettlementRow], all_posted: dict[UUID, bool], findings: Findings) -> None:
        for row in rows:
            is_posted = all_posted.get(row.uetr, False)
            if row.decision is None:
                findings.violations.append(f"{row.uetr} has no decision, it is {row.state.value}")
            elif (row.decision is Decision.COMMIT) != is_posted:
                posted = "posted" if is_posted else "not posted"
                findings.violations.append(f"{row.uetr}: the log says {row.decision.value}, its legs are {posted}")
            elif is_posted:
                findings.committed += 1
            else:
                findings.aborted += 1
        with self._world.database.transaction(isolation="READ COMMITTED") as connection:
            doubtful = batches.in_doubt(connection, after=None, limit=10, party=None)
        findings.violations += [f"{row.uetr} is still in doubt: {row.state.value}" for row in doubtful]

    def close(self) -> None:
        self._pool.shutdown(wait=False)
