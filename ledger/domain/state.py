"""The ledger's state: every account's running totals, open holds, participants, rule classes. Pure memory, no I/O.

Two things change it, both after the journal has them: `absorb` (a decided block of transfers) and the functions of
`ledger.domain.directives` (who may do what). The same records in the same order give the same state, bit for bit:
that is what recovery, the verifier and every auditor rely on.

Accounts are dense: the account number is the index into the arrays, and index 0 is nobody.
A balance is credits_posted - debits_posted; available leaves out debits_pending. The issuance account alone may be
overdrawn: its debit balance is the circulation (I2).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import tzinfo
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kernel.clock import from_micros
from kernel.errors import InvariantBroken
from kernel.money import AMOUNT_MINOR_MAX
from ledger.domain.vocabulary import ACCOUNT_KIND_CODE, AccountKind, ParticipantRole

Int64s = npt.NDArray[np.int64]

ISSUANCE_ACCOUNT = 1
NO_CAP = AMOUNT_MINOR_MAX
HOLDER_KEY_BYTES = 34
"""One byte for the suite and the key: 32 bytes (Ed25519) or a compressed point of 33 (P-256)."""
PAGE_ACCOUNTS = 32
"""Accounts whose totals a snapshot writes together: 1,536 bytes, one row that PostgreSQL keeps in line."""
HOLDER_KEYS_MAX = 5
"""Of one wallet: the first lies with its account, four more in a row of their own."""
FROZEN, SUSPENDED, CLOSED, CAPPED = 1, 2, 4, 8
"""Bits of an account's standing: by a legal order; by its participant; for ever; has a balance cap of its own."""
ENDED_HOLDS_KEPT = 200_000
"""Ended holds kept in memory for retries; older ones are looked up in the journal."""


@dataclass(frozen=True, slots=True)
class RuleCaps:
    """Caps of a rule class in minor units; `NO_CAP` = none."""

    name: str
    balance_max: int = NO_CAP
    single_max: int = NO_CAP
    day_max: int = NO_CAP
    year_max: int = NO_CAP


@dataclass(slots=True)
class Participant:
    """An institution known to the ledger. `outstanding` = issued to it less redeemed by it, held to its quota."""

    number: int
    code: str
    name: str
    role: ParticipantRole
    key: bytes
    """Its public key as canonical JWK JSON."""
    key_version: int
    quota: int
    outstanding: int = 0


class AnnouncedKey(NamedTuple):
    key: bytes
    """As `keys.key_bytes` has it."""
    announced_at: int
    """Microseconds since 1970."""


class BalanceCap(NamedTuple):
    """Of one account, set by its participant, beside its class's."""

    version: int
    balance_max: int
    """`NO_CAP` = none."""


@dataclass(frozen=True, slots=True)
class Operator:
    name: str
    key: bytes


@dataclass(frozen=True, slots=True)
class Hold:
    """An open reservation. Plain: `expires_at`. Conditional: both hashes, and then a deadline only if given."""

    id: bytes
    debit: int
    credit: int
    amount: int
    commit_hash: bytes | None
    abort_hash: bytes | None
    expires_at: int
    """Microseconds since 1970; 0 = never."""
    counted: bool
    """Counted towards the payer's day and year caps, to be given back if it ends unposted."""
    day: int
    year: int

    @property
    def is_conditional(self) -> bool:
        return self.commit_hash is not None


class HoldEnd(StrEnum):
    POSTED = "posted"
    VOIDED = "voided"
    EXPIRED = "expired"


class Totals(NamedTuple):
    """What the whole currency adds up to, in minor units. I2: issued - redeemed = vaults + wallets + offline."""

    issued: int
    redeemed: int
    vaults: int
    """Balances of all vaults, held money included."""
    wallets: int
    offline: int
    """Balances of the escrow accounts behind offline purses."""
    held: int
    """Part of vaults and wallets that open holds reserve."""


@dataclass(slots=True, eq=False)
class Effects:
    """What a block changes: deltas, so that the plain and the ordered part of a block add up."""

    debit: Int64s
    credit: Int64s
    amount: Int64s
    spent: npt.NDArray[np.bool_]
    """Plain part: parallel arrays of account indexes, amounts, and whether the amount counts as spent."""
    running: dict[int, list[int]] = field(default_factory=dict)
    """Ordered part: account -> deltas in the order of `COLUMNS`."""
    placed: dict[bytes, Hold] = field(default_factory=dict)
    ended: dict[bytes, HoldEnd] = field(default_factory=dict)
    tombstones: set[tuple[bytes, bytes]] = field(default_factory=set)
    """(hold id, guard): guard is the abort hash, or the submitter's number for a plain hold."""
    outstanding: dict[int, int] = field(default_factory=dict)
    issued: int = 0
    redeemed: int = 0

    @property
    def is_plain(self) -> bool:
        """Nothing but sums by account: such a block can be taken back (`LedgerState.retract`)."""
        others = (self.placed, self.ended, self.tombstones, self.outstanding)
        return not (self.issued or self.redeemed or any(others))

    def on(self, account: int) -> list[int]:
        """What a plain block adds to an account, in the order of `COLUMNS`."""
        debited, credited = np.flatnonzero(self.debit == account), np.flatnonzero(self.credit == account)
        spent = int(self.amount[debited[self.spent[debited]]].sum())
        sums = [int(self.amount[debited].sum()), int(self.amount[credited].sum()), 0, 0, spent, spent]
        ordered = self.running.get(account, [0] * len(COLUMNS))
        return [one + other for one, other in zip(sums, ordered, strict=True)]


_ACCOUNT = np.dtype(
    [
        ("debits_posted", "i8"),
        ("credits_posted", "i8"),
        ("debits_pending", "i8"),
        ("credits_pending", "i8"),
        ("spent_day", "i8"),
        ("spent_year", "i8"),
        ("scratch", "i8"),
        ("participant", "i4"),
        ("key_version", "i4"),
        ("devices", "i4"),
        ("kind", "u1"),
        ("standing", "u1"),
        ("rule_class", "u1"),
    ],
    align=True,
)
"""72 bytes; a holder's key lies apart, for only signatures need it."""
COLUMNS = ("debits_posted", "credits_posted", "debits_pending", "credits_pending", "spent_day", "spent_year")
_VAULT, _WALLET, _OFFLINE = (ACCOUNT_KIND_CODE[kind] for kind in tuple(AccountKind)[1:])
DEBITS_POSTED, CREDITS_POSTED, DEBITS_PENDING, CREDITS_PENDING, SPENT_DAY, SPENT_YEAR = range(6)


class LedgerState:
    """See the module's docstring. Arrays grow by doubling; `size` counts used entries, index 0 included."""

    def __init__(self, *, time_zone: tzinfo) -> None:
        self.time_zone = time_zone
        self.size = 1
        self.holder_key: npt.NDArray[np.void] = np.zeros(0, f"V{HOLDER_KEY_BYTES}")
        self.device_keys: npt.NDArray[np.void] = np.zeros((16, HOLDER_KEYS_MAX - 1), f"V{HOLDER_KEY_BYTES}")
        self.device_versions: npt.NDArray[np.int32] = np.zeros((16, HOLDER_KEYS_MAX - 1), np.int32)
        """Further keys of wallets with several, by the row that `devices` names; version 0 = no key. Row 0 is empty."""
        self.device_rows = 1
        self.announced: dict[int, AnnouncedKey] = {}
        """Account -> the key that will replace lost ones unless a current key objects."""
        self.balance_caps: dict[int, BalanceCap] = {}
        """Of accounts that have, or had, a cap of their own."""
        self.changed_page: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        """Which pages of PAGE_ACCOUNTS accounts have changed since the last snapshot."""
        self._lay_out(np.zeros(1024, _ACCOUNT))

        self.classes: list[RuleCaps] = []
        self.class_by_name: dict[str, int] = {}
        self.class_caps: Int64s = np.zeros((0, 4), np.int64)
        self.participants: list[Participant | None] = [None]
        self.participant_by_code: dict[str, Participant] = {}
        self.participant_key_version: npt.NDArray[np.int32] = np.zeros(1, np.int32)
        self.institutions_version = 0
        """Moves whenever a participant's or operator's key does."""
        self.operators: list[Operator] = []
        self.approvals_needed = 0
        self.key_recovery_seconds = 0
        self.ledger = ""
        self.currency = ""

        self.holds: dict[bytes, Hold] = {}
        self.ended_holds: OrderedDict[bytes, HoldEnd] = OrderedDict()
        self.tombstones: set[tuple[bytes, bytes]] = set()
        self.totals = Totals(0, 0, 0, 0, 0, 0)
        self.next_seq = 1
        self.booked_at = 0
        self.day = 0
        self.year = 0

    # --- accounts

    def open_account(
        self, *, kind: AccountKind, participant: int, rule_class: int, holder_key: bytes | None = None
    ) -> int:
        """Adds an account and returns its number."""
        if self.size == len(self.kind):
            self._grow()
        number = self.size
        self.kind[number] = ACCOUNT_KIND_CODE[kind]
        self.participant[number] = participant
        self.rule_class[number] = rule_class
        if holder_key is not None:
            self.holder_key[number] = holder_key.ljust(HOLDER_KEY_BYTES, b"\0")
            self.key_version[number] = 1
        self.size += 1
        return number

    def load_accounts(
        self,
        *,
        kind: npt.NDArray[np.uint8],
        participant: npt.NDArray[np.int32],
        rule_class: npt.NDArray[np.uint8],
        holder_key: npt.NDArray[np.void],
        has_key: npt.NDArray[np.bool_],
    ) -> None:
        """Adds accounts by arrays: what recovery reads. `holder_key` is padded with zeros where there is none."""
        first, end = self.size, self.size + len(kind)
        if end > len(self.kind):
            self.reserve(max(end, len(self.kind) * 5 // 4))
        self.kind[first:end] = kind
        self.participant[first:end] = participant
        self.rule_class[first:end] = rule_class
        self.holder_key[first:end] = holder_key
        self.key_version[first:end] = has_key
        self.size = end

    def _grow(self) -> None:
        self.reserve(len(self.kind) * 3 // 2)

    def reserve(self, capacity: int) -> None:
        """Room for so many accounts. Fresh pages of zeros cost no memory until they are used."""
        capacity = -(-capacity // PAGE_ACCOUNTS) * PAGE_ACCOUNTS
        if capacity <= len(self.kind):
            return
        accounts = np.zeros(capacity, _ACCOUNT)
        whole = f"V{_ACCOUNT.itemsize}"  # copied as bytes: field by field takes twenty times as long
        accounts.view(whole)[: self.size] = self._accounts.view(whole)[: self.size]
        self._lay_out(accounts)

    def _lay_out(self, accounts: npt.NDArray[np.void]) -> None:
        """All of an account lies within two lines of the processor's cache; each column is a view of its own."""
        self._accounts = accounts
        self.debits_posted: Int64s = accounts["debits_posted"]
        self.credits_posted: Int64s = accounts["credits_posted"]
        self.debits_pending: Int64s = accounts["debits_pending"]
        self.credits_pending: Int64s = accounts["credits_pending"]
        self.spent_day: Int64s = accounts["spent_day"]
        self.spent_year: Int64s = accounts["spent_year"]
        self.scratch: Int64s = accounts["scratch"]
        """Sums of one batch by account; all zero between batches."""
        self.kind: npt.NDArray[np.uint8] = accounts["kind"]
        self.standing: npt.NDArray[np.uint8] = accounts["standing"]
        """Bits of FROZEN, SUSPENDED, CLOSED, CAPPED."""
        self.rule_class: npt.NDArray[np.uint8] = accounts["rule_class"]
        self.participant: npt.NDArray[np.int32] = accounts["participant"]
        self.key_version: npt.NDArray[np.int32] = accounts["key_version"]
        """Of the first key: 1 as opened, else the number of the directive that brought the key. 0 = no key."""
        self.devices: npt.NDArray[np.int32] = accounts["devices"]
        """Row of the further keys; 0 = there are none."""
        keys = np.zeros(len(accounts), f"V{HOLDER_KEY_BYTES}")
        keys[: len(self.holder_key)] = self.holder_key
        changed = np.zeros(len(accounts) // PAGE_ACCOUNTS, np.bool_)
        changed[: len(self.changed_page)] = self.changed_page
        self.holder_key, self.changed_page = keys, changed

    def exists(self, account: int) -> bool:
        return 0 < account < self.size

    def balance(self, account: int) -> int:
        return int(self.credits_posted[account]) - int(self.debits_posted[account])

    def available(self, account: int) -> int:
        return self.balance(account) - int(self.debits_pending[account])

    def set_standing(self, account: int, bit: int, is_set: bool) -> None:
        self.standing[account] = int(self.standing[account]) & ~bit | (bit if is_set else 0)

    # --- holder keys. Verifier threads read them meanwhile, the version and then the key; here the key is written and
    # then its version. So they may see a new key with a version that is gone, which books nothing; never the contrary.

    def holder_keys(self, account: int) -> list[tuple[int, bytes]]:
        """(version, key padded with zeros) of a wallet's keys; empty for an account without."""
        found = []
        version = int(self.key_version[account])
        if version:
            found.append((version, self.holder_key[account].tobytes()))
        row = int(self.devices[account])
        if row:
            versions = self.device_versions[row].tolist()
            keys = self.device_keys[row]
            found += [(other, keys[slot].tobytes()) for slot, other in enumerate(versions) if other]
        return sorted(found) if len(found) > 1 else found

    def has_key_version(self, account: int, version: int) -> bool:
        """Is the key of this version one of the account's now? A version is never given twice."""
        if version <= 0:
            return False
        return version == self.key_version[account] or version in self.device_versions[self.devices[account]].tolist()

    def add_key(self, account: int, key: bytes, *, version: int) -> None:
        """Raises ValueError if there is no room."""
        row = int(self.devices[account])
        if not row:
            row = self._new_device_row()
            self.devices[account] = row
        free = np.flatnonzero(self.device_versions[row] == 0)
        if not len(free):
            raise ValueError(f"account {account} has all the keys it may have")
        self.device_keys[row, free[0]] = key.ljust(HOLDER_KEY_BYTES, b"\0")
        self.device_versions[row, free[0]] = version

    def remove_key(self, account: int, version: int) -> None:
        """Raises ValueError if it is the last, or not there."""
        row = int(self.devices[account])
        used = np.flatnonzero(self.device_versions[row])
        if version != self.key_version[account]:
            if version <= 0 or version not in self.device_versions[row].tolist():
                raise ValueError(f"account {account} has no key of version {version}")
            self.device_versions[row, self.device_versions[row] == version] = 0
            return
        if not len(used):
            raise ValueError(f"account {account} has only this key")
        heir = used[np.argmin(self.device_versions[row, used])]
        self.holder_key[account] = self.device_keys[row, heir]
        self.key_version[account] = self.device_versions[row, heir]
        self.device_versions[row, heir] = 0

    def replace_keys(self, account: int, key: bytes, *, version: int) -> None:
        """One key in the place of all."""
        self.device_versions[self.devices[account]] = 0
        self.holder_key[account] = key.ljust(HOLDER_KEY_BYTES, b"\0")
        self.key_version[account] = version

    def _new_device_row(self) -> int:
        if self.device_rows == len(self.device_versions):
            # keys before versions: who has read the longer versions finds the longer keys
            self.device_keys = np.concatenate([self.device_keys, np.zeros_like(self.device_keys)])
            self.device_versions = np.concatenate([self.device_versions, np.zeros_like(self.device_versions)])
        self.device_rows += 1
        return self.device_rows - 1

    # --- rule classes and participants

    def set_balance_cap(self, account: int, cap: BalanceCap) -> None:
        """Unless a later version is in force: an order that comes late undoes nothing."""
        before = self.balance_caps.get(account)
        if before is None or cap.version > before.version:
            self.balance_caps[account] = cap
            self.set_standing(account, CAPPED, cap.balance_max != NO_CAP)

    def balance_max(self, account: int) -> int:
        """What the account may hold: its class's cap, or its own if that is lower."""
        of_class = self.classes[int(self.rule_class[account])].balance_max
        if not int(self.standing[account]) & CAPPED:
            return of_class
        return min(of_class, self.balance_caps[account].balance_max)

    def balance_maxima(self, accounts: npt.NDArray[np.int64]) -> Int64s:
        """`balance_max` of many."""
        found: Int64s = self.class_caps[self.rule_class[accounts], 0]
        if self.balance_caps:
            for index in np.flatnonzero(self.standing[accounts] & CAPPED):
                found[index] = min(int(found[index]), self.balance_caps[int(accounts[index])].balance_max)
        return found

    def set_class(self, caps: RuleCaps) -> int:
        """Adds or replaces a class by name; returns its code."""
        code = self.class_by_name.get(caps.name)
        if code is None:
            code = len(self.classes)
            self.class_by_name[caps.name] = code
            self.classes.append(caps)
        else:
            self.classes[code] = caps
        self.class_caps = np.array(
            [(c.balance_max, c.single_max, c.day_max, c.year_max) for c in self.classes], np.int64
        )
        return code

    def add_participant(self, *, code: str, name: str, role: ParticipantRole, key: bytes, quota: int) -> Participant:
        participant = Participant(len(self.participants), code, name, role, key, 1, quota)
        self.participants.append(participant)
        self.participant_by_code[code] = participant
        self.participant_key_version = np.append(self.participant_key_version, np.int32(1))
        self.institutions_version += 1
        return participant

    def rotate_participant_key(self, participant: Participant, key: bytes) -> None:
        participant.key = key
        participant.key_version += 1
        self.participant_key_version[participant.number] = participant.key_version
        self.institutions_version += 1

    # --- time

    def local_date(self, booked_at: int) -> tuple[int, int]:
        """(day as proleptic ordinal, year) of a booking time in the scheme's time zone."""
        local = from_micros(booked_at).astimezone(self.time_zone)
        return local.date().toordinal(), local.year

    def roll_to(self, booked_at: int) -> None:
        """Start a new day or year of the class caps. Time never runs backwards: `booked_at` is monotonic."""
        if booked_at < self.booked_at:
            raise InvariantBroken("I4", "booked_at went backwards")
        day, year = self.local_date(booked_at)
        if day != self.day:
            self._begin_period(self.spent_day)
            self.day = day
        if year != self.year:
            self._begin_period(self.spent_year)
            self.year = year
        self.booked_at = booked_at  # also if nothing is booked: the day must not be begun twice

    def _begin_period(self, spent: Int64s) -> None:
        used = np.flatnonzero(spent[: self.size])
        self.changed_page[used // PAGE_ACCOUNTS] = True  # else a snapshot would keep yesterday's as today's
        spent[used] = 0

    # --- blocks

    def absorb(self, effects: Effects, *, transfer_count: int, booked_at: int) -> None:
        """Apply a block that the journal has made durable (or is making durable: see `retract`)."""
        self.totals = self.totals_after(effects)
        self._add_sums(effects)
        self.holds.update(effects.placed)
        for hold, end in effects.ended.items():
            self.holds.pop(hold, None)
            self.ended_holds[hold] = end
        while len(self.ended_holds) > ENDED_HOLDS_KEPT:
            self.ended_holds.popitem(last=False)
        if len(self.tombstones) > ENDED_HOLDS_KEPT:
            self.tombstones.clear()  # a cache: the sequencer asks the journal before a hold is placed
        self.tombstones |= effects.tombstones
        for number, delta in effects.outstanding.items():
            participant = self.participants[number]
            if participant is None:
                raise InvariantBroken("I2", f"participant {number} does not exist")
            participant.outstanding += delta
        self.next_seq += transfer_count
        self.booked_at = booked_at

    def retract(self, effects: Effects, *, transfer_count: int) -> None:
        """Take back a plain block that was absorbed while its commit was under way, and that the journal refused."""
        if not effects.is_plain:
            raise InvariantBroken("I4", "only a block of plain transfers can be taken back")
        running = {account: [-delta for delta in deltas] for account, deltas in effects.running.items()}
        taken = Effects(effects.debit, effects.credit, -effects.amount, effects.spent, running)
        self.totals = self.totals_after(taken)
        self._add_sums(taken)
        self.next_seq -= transfer_count

    def _add_sums(self, effects: Effects) -> None:
        amount = effects.amount
        np.add.at(self.debits_posted, effects.debit, amount)
        np.add.at(self.credits_posted, effects.credit, amount)
        self.changed_page[effects.debit // PAGE_ACCOUNTS] = True
        self.changed_page[effects.credit // PAGE_ACCOUNTS] = True
        payer, spent = effects.debit, amount
        if not effects.spent.all():
            payer, spent = payer[effects.spent], spent[effects.spent]
        np.add.at(self.spent_day, payer, spent)
        np.add.at(self.spent_year, payer, spent)
        for account, deltas in effects.running.items():
            for column, delta in zip(COLUMNS, deltas, strict=True):
                getattr(self, column)[account] += delta
            self.changed_page[account // PAGE_ACCOUNTS] = True

    def totals_after(self, effects: Effects) -> Totals:
        """The totals once these effects are applied."""
        held = 0
        by_kind = [0] * len(ACCOUNT_KIND_CODE)
        debit_kind, credit_kind = self.kind[effects.debit], self.kind[effects.credit]
        crosses = debit_kind != credit_kind
        if crosses.any():
            for kind in (_VAULT, _WALLET, _OFFLINE):
                gained = effects.amount[crosses & (credit_kind == kind)].sum()
                lost = effects.amount[crosses & (debit_kind == kind)].sum()
                by_kind[kind] += int(gained) - int(lost)
        for account, deltas in effects.running.items():
            by_kind[self.kind[account]] += deltas[CREDITS_POSTED] - deltas[DEBITS_POSTED]
            held += deltas[DEBITS_PENDING]
        return Totals(
            self.totals.issued + effects.issued,
            self.totals.redeemed + effects.redeemed,
            self.totals.vaults + by_kind[_VAULT],
            self.totals.wallets + by_kind[_WALLET],
            self.totals.offline + by_kind[_OFFLINE],
            self.totals.held + held,
        )

    # --- what must always hold

    def circulation(self) -> int:
        return self.totals.issued - self.totals.redeemed

    def broken_invariant(self) -> str | None:
        """A sentence naming the first invariant that does not hold, or None. O(accounts), vectorised."""
        used = slice(1, self.size)
        balances = self.credits_posted[used] - self.debits_posted[used]
        pending = self.debits_pending[used]
        holders = self.kind[used] != ACCOUNT_KIND_CODE[AccountKind.ISSUANCE]
        if int(balances.sum()) != 0:
            return "I1: debits and credits do not add up"
        kinds = self.kind[used]
        by_kind = tuple(int(balances[kinds == kind].sum()) for kind in (_VAULT, _WALLET, _OFFLINE))
        said = (self.totals.vaults, self.totals.wallets, self.totals.offline)
        if by_kind != said or sum(by_kind) != self.circulation():
            return "I2: issued - redeemed is not the sum of the holders' balances"
        if bool(((balances - pending)[holders] < 0).any()):
            return "I3: a holder's available balance is below zero"
        if not int(pending.sum()) == self.totals.held == sum(hold.amount for hold in self.holds.values()):
            return "I6: pending totals are not the sum of the open holds"
        return None
