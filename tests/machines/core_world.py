"""A small scheme that exists twice, in the ledger's state machine and in the reference model, and traffic for it.

`Twin.run` gives both the same batch and compares everything there is to compare; `traffic` draws batches that aim at
the edges: small balances, tight caps, repeated ids, wrong authorities, holds and secrets that cross each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from ledger.domain.decide import Decision, Known, decide
from ledger.domain.records import FLAG_LINKED, SUBMISSION, Authority, Batch, Extra
from ledger.domain.state import (
    CLOSED,
    COLUMNS,
    FROZEN,
    NO_CAP,
    SUSPENDED,
    BalanceCap,
    HoldEnd,
    LedgerState,
    RuleCaps,
)
from ledger.domain.vocabulary import KIND_CODE, TRANSFER_KINDS, AccountKind, ParticipantRole
from ledger.domain.vocabulary import TransferKind as Kind
from tests.machines.reference_model import BOOKED, DUPLICATE, LARGEST, Item, ReferenceLedger

SHANGHAI = ZoneInfo("Asia/Shanghai")
SECOND, HOUR = 1_000_000, 3_600_000_000
NEW_YEAR = 1_798_732_800 * SECOND
"""2027-01-01 00:00 in Shanghai, 16:00 UTC the day before."""
UNKNOWN_KIND = 200
LOW = 2**64 - 1
Caps = tuple[int, int, int, int]
"""balance, single, day, year"""
UNCAPPED: Caps = (LARGEST, LARGEST, LARGEST, LARGEST)
ISSUANCE = 1


class Twin:
    """One scheme in two implementations. Participants 1 and 2 are intermediaries, 3 is foreign; account 1 issues."""

    def __init__(self) -> None:
        self.state = new_state()
        self.model = ReferenceLedger()
        for number in (1, 2, 3):
            self.model.participants[number] = {"key_version": 1, "quota": LARGEST, "outstanding": 0}
        self.known: dict[bytes, Known] = {}
        self.now = NEW_YEAR - 40 * HOUR
        self.last_id = 0
        self.scale = 4
        """A typical amount."""
        self.open_account(AccountKind.ISSUANCE, 0, UNCAPPED)

    def open_account(self, kind: AccountKind, participant: int, caps: Caps) -> int:
        number = add_account(self.state, kind, participant, caps)
        self.model.accounts[number] = {
            "kind": kind.value,
            "participant": participant,
            "caps": caps,
            **dict.fromkeys(("frozen", "suspended", "closed"), False),
            "more_versions": [],
            "key_version": int(self.state.key_version[number]),
            **dict.fromkeys(COLUMNS, 0),
        }
        return number

    def freeze(self, account: int, is_frozen: bool = True) -> None:
        self.state.set_standing(account, FROZEN, is_frozen)
        self.model.accounts[account]["frozen"] = is_frozen

    def suspend(self, account: int, is_suspended: bool = True) -> None:
        self.state.set_standing(account, SUSPENDED, is_suspended)
        self.model.accounts[account]["suspended"] = is_suspended

    def close(self, account: int) -> None:
        """Whatever it holds: that an account with money is not closed is for `account_changes` to see to."""
        self.state.set_standing(account, CLOSED, True)
        self.model.accounts[account]["closed"] = True

    def cap(self, account: int, cap: int | None, *, version: int) -> None:
        """A balance cap of the account's own, beside its class's."""
        self.state.set_balance_cap(account, BalanceCap(version, NO_CAP if cap is None else cap))
        model = self.model.accounts[account]
        if version > model.setdefault("cap_version", 0):
            of_class = int(self.state.classes[self.state.rule_class[account]].balance_max)
            model["cap_version"] = version
            model["caps"] = (of_class if cap is None else min(of_class, cap), *model["caps"][1:])

    def add_key(self, account: int, version: int) -> None:
        self.state.add_key(account, bytes([1]) + version.to_bytes(32, "big"), version=version)
        self.model.accounts[account]["more_versions"].append(version)

    def set_quota(self, number: int, quota: int) -> None:
        participant = self.state.participants[number]
        assert participant is not None
        participant.quota = self.model.participants[number]["quota"] = quota

    def next_id(self) -> int:
        """Increasing; consecutive ones differ in both halves of the uuid, or only in one."""
        self.last_id += 1
        return (self.last_id // 3 << 64) + self.last_id % 3 + 1

    def fund(self, account: int, amount: int) -> None:
        """Issues, and hands on to a wallet; the caps of the wallet allow it or the test's world is wrong."""
        participant = self.model.accounts[account]["participant"]
        vault = account
        if self.model.accounts[account]["kind"] == "wallet":
            vaults = [n for n, a in self.model.accounts.items() if a["kind"] == "vault"]
            vault = next(n for n in vaults if self.model.accounts[n]["participant"] == participant)
        items = [Item(self.next_id(), Kind.ISSUE, ISSUANCE, vault, amount, authority="mandate")]
        if vault != account:
            items.append(Item(self.next_id(), Kind.EXCHANGE_IN, vault, account, amount, submitter=participant))
        assert set(outcomes(self.run(items))) == {BOOKED}

    def run(self, items: list[Item], *, at: int | None = None) -> Decision:
        """Decides a block with both, applies it, and holds one to the other, bit for bit."""
        self.now = self.now if at is None else at
        expected = self.model.decide(items, self.now)
        decision = apply(self.state, items, at=self.now, known=self.known)
        got = list(zip(outcomes(decision), decision.seqs.tolist(), strict=True))
        assert got == expected, "\n".join(
            f"{item}: {a}, model {b}" for item, a, b in zip(items, got, expected, strict=True) if a != b
        )
        rows = sorted(self.model.rows.values())[-len(decision.journal) :] if len(decision.journal) else []
        assert journal_rows(decision) == rows
        self.compare()
        return decision

    def compare(self) -> None:
        state, model = self.state, self.model
        assert state.broken_invariant() is None
        for number, account in model.accounts.items():
            totals = {column: int(getattr(state, column)[number]) for column in COLUMNS}
            assert totals == {column: account[column] for column in COLUMNS}, f"account {number}"
        assert {
            int.from_bytes(h.id, "big"): (h.debit, h.credit, h.amount, (h.commit_hash, h.abort_hash, h.expires_at))
            for h in state.holds.values()
        } == {n: (h["by"], h["to"], h["amount"], h["terms"]) for n, h in model.holds.items()}
        ended = {int.from_bytes(hold, "big"): end.value for hold, end in state.ended_holds.items()}
        assert ended == model.ended
        tombstones = {
            (int.from_bytes(hold, "big"), guard if len(guard) == 32 else int.from_bytes(guard, "big"))
            for hold, guard in state.tombstones
        }
        assert tombstones == model.tombstones
        for number, participant in model.participants.items():
            entry = state.participants[number]
            assert entry is not None and entry.outstanding == participant["outstanding"]
        assert (state.totals.issued, state.totals.redeemed) == (model.issued, model.redeemed)
        assert (state.next_seq, state.booked_at) == (len(model.rows) + 1, model.now)
        assert not state.scratch.any()


def new_state() -> LedgerState:
    state = LedgerState(time_zone=SHANGHAI)
    for code, role in (("A", "intermediary"), ("B", "intermediary"), ("F", "foreign")):
        state.add_participant(code=code, name=code, role=ParticipantRole(role), key=b"{}", quota=LARGEST)
    return state


def add_account(state: LedgerState, kind: AccountKind, participant: int, caps: Caps) -> int:
    rule_class = state.set_class(RuleCaps(f"class-{state.size}", *caps))
    key = bytes(33) if kind is AccountKind.WALLET else None
    return state.open_account(kind=kind, participant=participant, rule_class=rule_class, holder_key=key)


def uuid_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


def to_batch(items: Sequence[Item]) -> Batch:
    records = np.zeros(len(items), SUBMISSION)
    extras = {}
    for position, item in enumerate(items):
        row = records[position]
        row["id_high"], row["id_low"] = item.id >> 64, item.id & LOW
        row["hold_high"], row["hold_low"] = item.hold >> 64, item.hold & LOW
        row["reference_high"], row["reference_low"] = item.reference >> 64, item.reference & LOW
        row["debit"], row["credit"], row["amount"] = item.debit, item.credit, item.amount
        row["expires_at"] = item.expires_at
        row["kind"] = UNKNOWN_KIND if item.kind is None else KIND_CODE[item.kind]
        row["flags"] = FLAG_LINKED if item.linked else 0
        if (item.commit, item.abort, item.secret) != (None, None, None):
            extras[position] = Extra(commit_hash=item.commit, abort_hash=item.abort, secret=item.secret)
    return Batch(
        records=records,
        authority=np.array([Authority[item.authority.upper()] for item in items], np.uint8),
        submitter=np.array([item.submitter for item in items], np.int32),
        key_version=np.array([item.key_version for item in items], np.int32),
        extras=extras,
    )


def apply(state: LedgerState, items: Sequence[Item], *, at: int, known: dict[bytes, Known]) -> Decision:
    """One block as the sequencer does it: roll, look up the ids in the journal, decide, absorb. Adds to `known`."""
    state.roll_to(at)
    ids = {uuid_of(item.id) for item in items}
    batch = to_batch(items)
    decision = decide(state, batch, booked_at=at, known={i: known[i] for i in ids if i in known})
    state.absorb(decision.effects, transfer_count=len(decision.journal), booked_at=at)
    for position, row in zip(decision.positions.tolist(), journal_rows(decision), strict=True):
        seq, number, kind, debit, credit, amount, hold, reference, _, booked_at = row
        placed = decision.hold_terms.get(position)
        terms = (placed.commit_hash, placed.abort_hash, placed.expires_at) if placed else (None, None, 0)
        guard = decision.tombstones.get(position, (b"", b""))[1]
        known[uuid_of(number)] = Known(
            seq, booked_at, KIND_CODE[kind], debit, credit, amount, uuid_of(hold), uuid_of(reference), terms, guard
        )
    return decision


def outcomes(decision: Decision) -> list[str]:
    names = {0: BOOKED, -1: DUPLICATE}
    return [names.get(code) or str(decision.refusal(p)) for p, code in enumerate(decision.codes.tolist())]


def journal_rows(decision: Decision) -> list[tuple[Any, ...]]:
    """The journal's rows as the reference model writes them."""
    return [
        (
            row["seq"],
            (row["id_high"] << 64) | row["id_low"],
            TRANSFER_KINDS[row["kind"]],
            row["debit"],
            row["credit"],
            row["amount"],
            (row["hold_high"] << 64) | row["hold_low"],
            (row["reference_high"] << 64) | row["reference_low"],
            row["submitter"],
            row["booked_at"],
        )
        for row in (dict(zip(decision.journal.dtype.names or (), r, strict=True)) for r in decision.journal.tolist())
    ]


def totals_of(state: LedgerState) -> tuple[Any, ...]:
    """Everything a block can change, for comparing two states bit for bit."""
    return (
        {column: getattr(state, column)[: state.size].tobytes() for column in COLUMNS},
        dict(state.holds),
        dict[bytes, HoldEnd](state.ended_holds),
        set(state.tombstones),
        [p.outstanding for p in state.participants if p is not None],
        (*state.totals, state.next_seq, state.booked_at, state.day, state.year),
    )


# --- traffic

SECRETS = [b"secret-%d" % n for n in range(4)]
HASHES = [hashlib.sha256(secret).digest() for secret in SECRETS]
PURSE_KINDS = (Kind.PURSE_FUND, Kind.PURSE_REDEEM, Kind.PURSE_LOSS)
PLAIN_KINDS = (*[Kind.PAYMENT] * 3, Kind.REFUND, Kind.INTEREST, Kind.EXCHANGE_IN, Kind.EXCHANGE_OUT, *PURSE_KINDS)
HOLD_KINDS = (Kind.HOLD, Kind.HOLD, Kind.POST, Kind.VOID, Kind.EXPIRE)
OTHER_KINDS = (Kind.ISSUE, Kind.REDEEM, Kind.ADJUSTMENT, Kind.TOMBSTONE, None)


def small_world(random: Random) -> Twin:
    """Two intermediaries, one foreign participant, 1 to 5 wallets; balances and caps of a few units of one scale."""
    twin = Twin()
    twin.scale = scale = random.choice([1, 4, 4, 100, 2**44, 2**58])
    depth = 1 if scale == 2**58 else random.choice([1, 1, 6, 50])
    for participant in (1, 2, 3):
        twin.fund(twin.open_account(AccountKind.VAULT, participant, UNCAPPED), 3 * scale * depth)
    for _ in range(random.randint(1, 5)):
        caps = [random.choice([LARGEST, LARGEST, random.randint(1, 12) * scale * depth]) for _ in range(4)]
        wallet = twin.open_account(AccountKind.WALLET, random.randint(1, 2), (caps[0], caps[1], caps[2], caps[3]))
        if amount := min(caps[0], random.randint(0, 3) * scale * depth):
            twin.fund(wallet, amount)
    for participant in (1, 2):
        escrow = twin.open_account(AccountKind.OFFLINE, participant, UNCAPPED)
        if amount := random.randint(0, 3) * scale * depth:
            vault = 1 + participant
            twin.fund(vault, amount)
            twin.run([Item(twin.next_id(), Kind.PURSE_LOSS, vault, escrow, amount, submitter=participant)])
    if scale == 2**58:  # at the top of the range: almost all that 63 bits can count is issued
        twin.fund(2, 2**63 - 2**56 - twin.model.issued)
    for number in (1, 2):
        outstanding = twin.model.participants[number]["outstanding"]
        twin.set_quota(number, min(LARGEST, outstanding + random.choice([0, 5 * scale, LARGEST])))
    for account in range(2, twin.state.size):
        twin.freeze(account, random.random() < 0.04)
        twin.suspend(account, random.random() < 0.04)
        if twin.model.accounts[account]["kind"] == "wallet" and random.random() < 0.3:
            twin.add_key(account, 2)
        if twin.model.accounts[account]["kind"] == "wallet" and random.random() < 0.2:
            twin.cap(account, random.choice([None, random.randint(0, 6) * scale * depth]), version=1)
        if random.random() < 0.03:
            twin.close(account)
    return twin


def traffic(random: Random, twin: Twin, size: int, *, only_plain: bool = False) -> list[Item]:
    """Mixed items; most are well-formed and near a limit, some break one rule, some repeat an earlier item."""
    items: list[Item] = []
    while len(items) < size:
        if items and not only_plain and random.random() < 0.06:
            again = random.choice(items)
            larger = min(again.amount + 1, LARGEST)
            change: dict[str, Any] = random.choice([{}, {}, {"amount": larger}, {"reference": 9}, {"amount": 0}])
            items.append(replace(again, linked=False, **change))
        elif random.random() < 0.05 and twin.model.rows and not only_plain:
            items.append(_booked_before(twin, random))
        else:
            kinds: Sequence[Kind | None] = PLAIN_KINDS
            if not only_plain:
                kinds = random.choice([PLAIN_KINDS, HOLD_KINDS, HOLD_KINDS, PLAIN_KINDS, PLAIN_KINDS + OTHER_KINDS])
            item = _item(random, twin, random.choice(kinds), items, extreme=0.004 if only_plain else 0.03)
            is_linked = not only_plain and random.random() < 0.12
            items.append(replace(item, linked=is_linked))
    return items


def _booked_before(twin: Twin, random: Random) -> Item:
    row = random.choice(list(twin.model.rows.values()))
    _, number, kind, debit, credit, amount, hold, reference, submitter, _ = row
    commit, abort, expires_at = twin.model.terms.get(number, (None, None, 0))
    kind = Kind.VOID if kind is Kind.TOMBSTONE else kind
    amount = min(amount + random.choice([0, 0, 0, 1]), LARGEST)
    return Item(
        number, kind, debit, credit, amount, hold, reference, expires_at, False, "owner", submitter, 7, commit, abort
    )


def _item(random: Random, twin: Twin, kind: Kind | None, before: list[Item], *, extreme: float) -> Item:
    model, scale = twin.model, twin.scale
    if kind in (Kind.POST, Kind.VOID, Kind.EXPIRE):
        return _end(random, twin, kind, before)
    vaults, wallets = ([n for n, a in model.accounts.items() if a["kind"] == k] for k in ("vault", "wallet"))
    holders = vaults + wallets
    debit = random.choice(vaults if kind in (Kind.INTEREST, Kind.EXCHANGE_IN, Kind.REDEEM) else wallets * 2 + vaults)
    credit = random.choice(wallets if kind in (Kind.INTEREST, Kind.EXCHANGE_IN) else holders)
    owner = model.accounts[debit]["participant"]
    if kind in (Kind.EXCHANGE_IN, Kind.EXCHANGE_OUT) and random.random() < 0.8:
        debit = random.choice(wallets) if kind is Kind.EXCHANGE_OUT else debit
        owner = model.accounts[debit]["participant"]
        others = wallets if kind is Kind.EXCHANGE_IN else vaults
        credit = random.choice([n for n in others if model.accounts[n]["participant"] == owner] or holders)
    if kind in PURSE_KINDS:
        debit, credit = _purse(random, model, kind)
        owner = model.accounts[debit]["participant"]
    if kind is Kind.ISSUE:
        debit, credit = ISSUANCE, random.choice(vaults)
    if kind is Kind.REDEEM:
        credit = ISSUANCE
    if random.random() < 0.03:
        debit = random.choice([0, -1, ISSUANCE, twin.state.size, 2**62, -(2**63)])
    if random.random() < 0.03:
        credit = random.choice([0, -1, ISSUANCE, twin.state.size, 2**63 - 1, -(2**63)])
    few, some = random.randint(1, 3), random.randint(1, 40) * scale // 40
    amount = max(1, random.choice([few, some, random.randint(1, 8) * scale // 4]))
    if random.random() < extreme:
        amount = random.choice([0, -1, 2**49, 2**49 + 1, 2**61, 2**62, 2**63 - 1, -(2**63)])
    authority, submitter, key_version = ("owner", owner, 1) if debit in wallets else ("institution", owner, 0)
    if debit in wallets and random.random() < 0.1:
        key_version = 2
    if kind in (Kind.ISSUE, Kind.REDEEM, Kind.ADJUSTMENT):
        authority = "mandate"
    if random.random() < 0.06:
        authority = random.choice(["institution", "owner", "secret", "mandate", "engine"])
        submitter, key_version = random.randint(0, 3), random.randint(0, 2)
    commit = abort = None
    expires_at = 0
    if kind is Kind.HOLD:
        expires_at = twin.now + random.choice([1, SECOND, 10 * HOUR, 30 * HOUR]) if random.random() < 0.95 else twin.now
        if random.random() < 0.5:
            commit, abort = random.choice(HASHES[:2]), random.choice(HASHES[2:])
            expires_at = random.choice([0, 0, expires_at])
        if random.random() < 0.05:
            commit, abort = random.choice([(HASHES[0], None), (None, HASHES[1]), (HASHES[0], HASHES[0])])
    number = twin.next_id()
    if kind is Kind.HOLD and random.random() < 0.15:  # the hold that somebody ended before it came
        tombstones = sorted({hold for hold, _ in model.tombstones})
        number = random.choice([i.hold for i in before if i.hold] + tombstones + [number])
    return Item(
        number, kind, debit, min(credit, 2**63 - 1), amount, 0, random.choice([0, 0, 5]), expires_at, False,
        authority, submitter, key_version, commit, abort,
    )  # fmt: skip


def _purse(random: Random, model: ReferenceLedger, kind: Kind | None) -> tuple[int, int]:
    """Two accounts that a purse's transfer joins, most of the time; not every world has escrow accounts."""
    of = {k: [n for n, a in model.accounts.items() if a["kind"] == k] or [2] for k in ("vault", "wallet", "offline")}
    wanted = {
        Kind.PURSE_FUND: ("wallet", "offline"),
        Kind.PURSE_REDEEM: ("offline", "wallet"),
    }.get(kind, random.choice([("vault", "offline"), ("offline", "vault")]))  # type: ignore[arg-type]
    debit = random.choice(of[wanted[0]])
    owner = model.accounts[debit]["participant"]
    mine = [number for number in of[wanted[1]] if model.accounts[number]["participant"] == owner]
    others = of[random.choice(["vault", "wallet", "offline"])]
    return debit, random.choice((mine if random.random() < 0.8 else others) or others)


def _end(random: Random, twin: Twin, kind: Kind, before: list[Item]) -> Item:
    model = twin.model
    recent = [item.id for item in before if item.kind is Kind.HOLD]
    hold = random.choice(recent * 2 + list(model.holds) * 2 + list(model.ended) + [twin.next_id(), twin.last_id + 5])
    placed = next((item for item in before if item.id == hold), None)
    if placed is not None and placed.credit in model.accounts:
        payee, amount, commit = placed.credit, placed.amount, placed.commit
    elif hold in model.holds:
        payee, amount, commit = model.holds[hold]["to"], model.holds[hold]["amount"], model.holds[hold]["terms"][0]
    else:
        payee, amount, commit = 2, 5, random.choice([None, HASHES[0]])
    secret, authority, submitter = None, "institution", model.accounts[payee]["participant"]
    if commit is not None:
        authority, secret = "secret", random.choice(SECRETS[:2] if kind is Kind.POST else SECRETS[2:])
    if kind is Kind.EXPIRE:
        authority, submitter = "engine", 0
    if random.random() < 0.12:
        authority, submitter = random.choice(["institution", "owner", "secret", "engine"]), random.randint(0, 3)
        secret = random.choice([None, *SECRETS])
    amount = random.choice([0, 0, amount, amount // 2, amount + 1, 1])
    return Item(
        twin.next_id(), kind, random.choice([0, payee]), 0, min(amount, LARGEST), hold, random.choice([0, 5]),
        random.choice([0, 0, 7]), False, authority, submitter, 0, None, None, secret,
    )  # fmt: skip
