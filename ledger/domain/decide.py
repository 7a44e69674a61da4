"""What can change money? This page: given the state and a batch, which transfers are booked and which refused.

`decide` is pure. It returns a `Decision`; only after the journal has it durably does `LedgerState.absorb` apply it.

1. *Static checks*, vectorised over the whole batch: amount, accounts, kinds, authority, freezes, the cap for one
   payment. They do not depend on the order of transfers.
2. *Plain part*. Add up what every account would pay and receive if everything were accepted. A transfer whose payer
   could still pay, and whose payee could still hold, in that worst case is accepted whatever the order.
3. *Ordered part*. Every transfer that touches an account near one of its limits, and every hold, post, void and
   linked chain, is decided one by one, in order, by `_Ordered`. The result is exactly that of deciding the
   whole batch in order: a transfer left in the plain part cannot be refused in any order, and no account near a
   limit is touched by the plain part. A property test holds both to a model of a hundred lines.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kernel.errors import InvariantBroken
from kernel.money import AMOUNT_MINOR_MAX
from ledger.domain.records import FLAG_LINKED, JOURNAL, SUBMISSION, Authority, Batch, Extra, Records
from ledger.domain.state import (
    CLOSED,
    CREDITS_PENDING,
    CREDITS_POSTED,
    DEBITS_PENDING,
    DEBITS_POSTED,
    FROZEN,
    ISSUANCE_ACCOUNT,
    NO_CAP,
    SPENT_DAY,
    SPENT_YEAR,
    SUSPENDED,
    Effects,
    Hold,
    HoldEnd,
    Int64s,
    LedgerState,
    RuleCaps,
)
from ledger.domain.vocabulary import (
    ACCOUNT_KIND_CODE,
    KIND_CODE,
    TRANSFER_KINDS,
    TRANSFER_REFUSALS,
    AccountKind,
    TransferKind,
    TransferRefusal,
)

ACCEPTED = 0
DUPLICATE = -1
REFUSAL_CODE = {refusal: code for code, refusal in enumerate(TRANSFER_REFUSALS, start=1)}

PLAIN_AMOUNT_MAX = 2**49
"""8192 such amounts add up within 63 bits; a larger amount is decided in the ordered part, in unbounded integers."""
TOTAL_PLAIN_MAX = 2**62

_K = KIND_CODE
_SPENDING = {TransferKind.PAYMENT, TransferKind.REFUND, TransferKind.HOLD, TransferKind.PURSE_FUND}
"""Kinds that count towards the payer's caps for one payment, a day and a year (I9). A refund counts too, and what loads
a purse: a payment must not escape the caps by its name."""
_PLAIN_KINDS = (
    TransferKind.PAYMENT,
    TransferKind.REFUND,
    TransferKind.INTEREST,
    TransferKind.EXCHANGE_IN,
    TransferKind.EXCHANGE_OUT,
    TransferKind.PURSE_FUND,
    TransferKind.PURSE_REDEEM,
    TransferKind.PURSE_LOSS,
)
_HOLDERS = (AccountKind.VAULT, AccountKind.WALLET)
_JOINS: dict[TransferKind, set[tuple[AccountKind, AccountKind]]] = {
    TransferKind.ISSUE: {(AccountKind.ISSUANCE, AccountKind.VAULT)},
    TransferKind.REDEEM: {(AccountKind.VAULT, AccountKind.ISSUANCE)},
    TransferKind.EXCHANGE_IN: {(AccountKind.VAULT, AccountKind.WALLET)},
    TransferKind.EXCHANGE_OUT: {(AccountKind.WALLET, AccountKind.VAULT)},
    TransferKind.PAYMENT: {(debit, credit) for debit in _HOLDERS for credit in _HOLDERS},
    TransferKind.REFUND: {(debit, credit) for debit in _HOLDERS for credit in _HOLDERS},
    TransferKind.INTEREST: {(AccountKind.VAULT, AccountKind.WALLET)},
    TransferKind.HOLD: {(debit, credit) for debit in _HOLDERS for credit in _HOLDERS},
    TransferKind.ADJUSTMENT: {(debit, credit) for debit in _HOLDERS for credit in _HOLDERS},
    TransferKind.PURSE_FUND: {(AccountKind.WALLET, AccountKind.OFFLINE)},
    TransferKind.PURSE_REDEEM: {(AccountKind.OFFLINE, AccountKind.WALLET)},
    TransferKind.PURSE_LOSS: {(AccountKind.VAULT, AccountKind.OFFLINE), (AccountKind.OFFLINE, AccountKind.VAULT)},
}
"""Which kinds of accounts a kind of transfer joins. Post, void and expire take their accounts from their hold."""

JOINS = np.zeros((len(TRANSFER_KINDS), len(ACCOUNT_KIND_CODE), len(ACCOUNT_KIND_CODE)), np.bool_)
for _kind, _pairs in _JOINS.items():
    for _debit, _credit in _pairs:
        JOINS[_K[_kind], ACCOUNT_KIND_CODE[_debit], ACCOUNT_KIND_CODE[_credit]] = True
SPENDING = np.array([kind in _SPENDING for kind in TRANSFER_KINDS], np.bool_)
PLAIN = np.array([kind in _PLAIN_KINDS for kind in TRANSFER_KINDS], np.bool_)
_SAME_PARTICIPANT = {
    TransferKind.EXCHANGE_IN,
    TransferKind.EXCHANGE_OUT,
    TransferKind.PURSE_FUND,
    TransferKind.PURSE_LOSS,
}
"""Both accounts are of one participant. A purse's money is redeemed for payees at others too."""
SAME_PARTICIPANT = np.array([kind in _SAME_PARTICIPANT for kind in TRANSFER_KINDS], np.bool_)
_WALLET = ACCOUNT_KIND_CODE[AccountKind.WALLET]
_ISSUANCE = ACCOUNT_KIND_CODE[AccountKind.ISSUANCE]
_ENDS = (TransferKind.POST, TransferKind.VOID, TransferKind.EXPIRE)
_TOMBSTONE = _K[TransferKind.TOMBSTONE]
_JOINED = frozenset(
    (_K[kind], ACCOUNT_KIND_CODE[debit], ACCOUNT_KIND_CODE[credit])
    for kind, pairs in _JOINS.items()
    for debit, credit in pairs
)


HoldTerms = tuple[bytes | None, bytes | None, int]
"""Commit hash, abort hash, expiry in microseconds (0 = none)."""


@dataclass(frozen=True, slots=True)
class Known:
    """A transfer that the journal already has, for answering a retry (I7)."""

    seq: int
    booked_at: int
    kind: int
    debit: int
    credit: int
    amount: int
    hold: bytes
    reference: bytes
    terms: HoldTerms = (None, None, 0)
    guard: bytes = b""
    """Of a tombstone."""


@dataclass(slots=True)
class Decision:
    """The outcome of a batch. Arrays are parallel to the batch; `journal` holds the booked ones in seq order."""

    booked_at: int
    codes: npt.NDArray[np.int16]
    """0 booked, -1 booked before (a retry), else 1 + the refusal's position."""
    seqs: Int64s
    positions: npt.NDArray[np.intp]
    """Positions in the batch of the booked transfers."""
    journal: Records
    effects: Effects
    known: dict[int, Known] = field(default_factory=dict)
    """For retries: position -> the booked original."""
    hold_terms: dict[int, Hold] = field(default_factory=dict)
    """position -> hold placed."""
    hold_ends: dict[int, HoldEnd] = field(default_factory=dict)
    tombstones: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)

    def refusal(self, position: int) -> TransferRefusal | None:
        code = int(self.codes[position])
        return TRANSFER_REFUSALS[code - 1] if code > 0 else None


def decide(state: LedgerState, batch: Batch, *, booked_at: int, known: Mapping[bytes, Known] | None = None) -> Decision:
    """Decide a batch against the state, which `state.roll_to(booked_at)` has brought to the day.

    `known` are transfers of the journal whose ids occur in the batch. Never raises for what a client sent.
    """
    records = batch.records
    kind = np.minimum(records["kind"], len(TRANSFER_KINDS) - 1).astype(np.intp)
    amount = records["amount"].astype(np.int64)
    ordered = _Ordered(state, batch, booked_at=booked_at, known=known or {})
    if (
        known
        or not PLAIN[kind].all()
        or int(records["kind"].max(initial=0)) >= len(TRANSFER_KINDS)
        or records["flags"].any()
        or int(amount.max(initial=0)) > PLAIN_AMOUNT_MAX
        or int(amount.max(initial=0)) * len(batch) > TOTAL_PLAIN_MAX
        or _has_duplicate_ids(records)
    ):
        ordered.run(range(len(batch)))
        return _decision(state, batch, ordered, booked_at=booked_at)

    # 1. static checks
    debit, credit = records["debit"].astype(np.int64), records["credit"].astype(np.int64)
    codes = _static_codes(state, batch, kind, debit, credit, amount)
    open_ = np.flatnonzero(codes == ACCEPTED)
    payer, payee, value = debit[open_], credit[open_], amount[open_]

    # 2. the plain part: what every account would pay and receive if all were accepted
    paid, received = _sums(state, payer, value), _sums(state, payee, value)
    payer_caps, balance_max = state.class_caps[state.rule_class[payer]], state.balance_maxima(payee)
    payer_debits, payee_credits = state.debits_posted[payer], state.credits_posted[payee]
    payer_safe = (
        (paid <= state.credits_posted[payer] - payer_debits - state.debits_pending[payer])
        & (paid <= payer_caps[:, 2] - state.spent_day[payer])
        & (paid <= payer_caps[:, 3] - state.spent_year[payer])
        & (paid <= TOTAL_PLAIN_MAX - payer_debits)
    )
    holding = payee_credits - state.debits_posted[payee] + state.credits_pending[payee]
    payee_safe = (received <= balance_max - holding) & (
        received <= TOTAL_PLAIN_MAX - payee_credits - state.credits_pending[payee]
    )

    # 3. the ordered part: every transfer that touches an account near one of its limits
    if not (payer_safe.all() and payee_safe.all()):
        near = np.zeros(state.size, np.bool_)
        near[payer[~payer_safe]] = True
        near[payee[~payee_safe]] = True
        in_order = near[payer] | near[payee]
        ordered.codes = codes
        ordered.run(open_[in_order].tolist())
        open_ = open_[~in_order]
        payer, payee, value = debit[open_], credit[open_], amount[open_]
    ordered.codes = codes
    effects = ordered.effects
    effects.debit, effects.credit, effects.amount, effects.spent = payer, payee, value, SPENDING[kind[open_]]
    return _decision(state, batch, ordered, booked_at=booked_at)


def _sums(state: LedgerState, account: Int64s, amount: Int64s) -> Int64s:
    """For each transfer the sum of all amounts of the batch on its account."""
    np.add.at(state.scratch, account, amount)
    sums = state.scratch[account]
    state.scratch[account] = 0
    return sums


def _has_duplicate_ids(records: Records) -> bool:
    """Two equal ids in one batch. Time-ordered ids from one client are increasing, which is checked first."""
    high, low = records["id_high"].astype(np.uint64), records["id_low"].astype(np.uint64)
    increasing = (high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] > low[:-1]))
    if bool(increasing.all()):
        return False
    order = np.lexsort((low, high))
    high, low = high[order], low[order]
    return bool(((high[1:] == high[:-1]) & (low[1:] == low[:-1])).any())


def _static_codes(
    state: LedgerState, batch: Batch, kind: npt.NDArray[np.intp], debit: Int64s, credit: Int64s, amount: Int64s
) -> npt.NDArray[np.int16]:
    """What the order of transfers cannot change, for plain kinds. Lowest precedence first: the last write wins."""
    debit_exists = (debit > 0) & (debit < state.size)
    credit_exists = (credit > 0) & (credit < state.size)
    payer, payee = np.where(debit_exists, debit, 0), np.where(credit_exists, credit, 0)
    debit_kind, credit_kind = state.kind[payer], state.kind[payee]
    owner = state.participant[payer]
    is_institutions = debit_kind != _WALLET  # what joins the issuance account is no plain kind
    by_institution = (batch.authority == Authority.INSTITUTION) & is_institutions & (batch.submitter == owner)
    key_version = np.where(is_institutions, state.participant_key_version[owner], state.key_version[payer])
    is_owners = batch.authority == Authority.OWNER
    by_owner = is_owners & (batch.key_version == key_version)
    if np.count_nonzero(by_owner) != np.count_nonzero(is_owners):  # signed with another of the holder's keys?
        others = np.flatnonzero(is_owners & ~by_owner)
        versions = batch.key_version[others]
        current = (state.device_versions[state.devices[payer[others]]] == versions[:, None]).any(axis=1)
        by_owner[others] = current & (versions > 0)
    joined = JOINS[kind, debit_kind, credit_kind] & (~SAME_PARTICIPANT[kind] | (owner == state.participant[payee]))
    single_max = state.class_caps[state.rule_class[payer], 1]

    codes = np.zeros(len(batch), np.int16)
    codes[SPENDING[kind] & (amount > single_max)] = REFUSAL_CODE[TransferRefusal.SINGLE_LIMIT_EXCEEDED]
    payer_standing, payee_standing = state.standing[payer], state.standing[payee]
    if payer_standing.any() or payee_standing.any():
        codes[payee_standing & FROZEN != 0] = REFUSAL_CODE[TransferRefusal.CREDIT_ACCOUNT_FROZEN]
        codes[payer_standing & FROZEN != 0] = REFUSAL_CODE[TransferRefusal.DEBIT_ACCOUNT_FROZEN]
        codes[payer_standing & SUSPENDED != 0] = REFUSAL_CODE[TransferRefusal.DEBIT_ACCOUNT_SUSPENDED]
        codes[(payer_standing | payee_standing) & CLOSED != 0] = REFUSAL_CODE[TransferRefusal.ACCOUNT_CLOSED]
    codes[~(by_institution | by_owner)] = REFUSAL_CODE[TransferRefusal.NOT_AUTHORISED]
    codes[~joined] = REFUSAL_CODE[TransferRefusal.KIND_NOT_ALLOWED]
    codes[~credit_exists] = REFUSAL_CODE[TransferRefusal.CREDIT_ACCOUNT_UNKNOWN]
    codes[~debit_exists] = REFUSAL_CODE[TransferRefusal.DEBIT_ACCOUNT_UNKNOWN]
    codes[debit == credit] = REFUSAL_CODE[TransferRefusal.ACCOUNTS_MUST_DIFFER]
    codes[amount <= 0] = REFUSAL_CODE[TransferRefusal.AMOUNT_INVALID]
    return codes


def _decision(state: LedgerState, batch: Batch, ordered: _Ordered, *, booked_at: int) -> Decision:
    """Number the booked transfers and lay out their journal records."""
    records, codes = batch.records, ordered.codes
    positions = np.flatnonzero(codes == ACCEPTED)
    seqs = np.zeros(len(batch), np.int64)
    seqs[positions] = np.arange(state.next_seq, state.next_seq + len(positions))
    for position, original in ordered.repeats.items():
        seqs[position] = seqs[original]
    for position, known in ordered.known_at.items():
        seqs[position] = known.seq
    journal = np.zeros(len(positions), JOURNAL)
    booked = records if len(positions) == len(records) else records[positions]
    for column in ("id_high", "id_low", "kind", "debit", "credit", "amount"):
        journal[column] = booked[column]
    for column in ("hold_high", "hold_low", "reference_high", "reference_low"):
        if booked[column].any():
            journal[column] = booked[column]
    journal["seq"] = seqs[positions]
    journal["submitter"] = batch.submitter[positions]
    journal["booked_at"] = booked_at
    if ordered.resolved:
        rows = seqs[np.fromiter(ordered.resolved, np.intp)] - state.next_seq
        resolved = np.array(list(ordered.resolved.values()), np.int64)
        for place, column in enumerate(("kind", "debit", "credit", "amount")):
            journal[column][rows] = resolved[:, place]
    return Decision(
        booked_at=booked_at,
        codes=codes,
        seqs=seqs,
        positions=positions,
        journal=journal,
        effects=ordered.effects,
        known=ordered.known_at,
        hold_terms=ordered.hold_terms,
        hold_ends=ordered.hold_ends,
        tombstones=ordered.tombstones,
    )


_SUBMITTED = struct.Struct(">16sqqq16s16sqBB6x")
"""`SUBMISSION` as plain values: id, debit, credit, amount, hold, reference, expires_at, kind, flags."""
if _SUBMITTED.size != SUBMISSION.itemsize:
    raise TypeError("the two definitions of a submitted record differ")


@dataclass(slots=True)
class _Account:
    """What deciding needs of an account, read once a batch. `totals` are the state's plus this batch's, by column."""

    kind: int
    owner: int
    standing: int
    caps: RuleCaps
    balance_max: int
    totals: list[int]

    @property
    def balance(self) -> int:
        return self.totals[CREDITS_POSTED] - self.totals[DEBITS_POSTED]

    @property
    def available(self) -> int:
        return self.balance - self.totals[DEBITS_PENDING]


@dataclass(slots=True)
class _Item:
    """One submitted transfer as plain Python values."""

    position: int
    id: bytes
    code: int
    kind: TransferKind
    debit: int
    credit: int
    amount: int
    hold: bytes
    reference: bytes
    expires_at: int
    authority: int
    submitter: int
    key_version: int
    extra: Extra

    @property
    def guard(self) -> bytes:
        """What a void of an unknown hold would keep out; empty if nothing."""
        if self.extra.secret is not None:
            return hashlib.sha256(self.extra.secret).digest()
        return guard_of_participant(self.submitter) if self.authority == Authority.INSTITUTION else b""

    @property
    def terms(self) -> HoldTerms:
        return self.extra.commit_hash, self.extra.abort_hash, self.expires_at


_NO_EXTRA = Extra()
_NIL = bytes(16)


class _Ordered:
    """Decides transfers one by one, in order: the part to read for every rule. Money is unbounded integers here."""

    def __init__(self, state: LedgerState, batch: Batch, *, booked_at: int, known: Mapping[bytes, Known]) -> None:
        self.state = state
        self.batch = batch
        self.booked_at = booked_at
        self.known = known
        self.codes: npt.NDArray[np.int16] = np.zeros(len(batch), np.int16)
        none = np.zeros(0, np.int64)
        self.effects = Effects(none, none, none, np.zeros(0, np.bool_))
        self.resolved: dict[int, tuple[int, int, int, int]] = {}
        """position -> code of the kind, accounts and amount, of what takes them from its hold."""
        self.booked: dict[bytes, _Item] = {}
        self.repeats: dict[int, int] = {}
        self.known_at: dict[int, Known] = {}
        self.hold_terms: dict[int, Hold] = {}
        self.hold_ends: dict[int, HoldEnd] = {}
        self.tombstones: dict[int, tuple[bytes, bytes]] = {}
        self.accounts: dict[int, _Account] = {}
        self.undo: list[Callable[[], object]] | None = None
        """Inside a linked chain: how to take its effects back, in order."""

    # --- the loop, and chains

    def run(self, positions: Sequence[int]) -> None:
        chain: list[int] = []
        refused_at: int | None = None
        for position, is_linked, item in self._items(positions):
            if not is_linked and not chain:
                self._decide(item)
                continue
            if not chain:
                self.undo = []
                refused_at = None
            chain.append(position)
            if refused_at is None and not self._decide(item):
                refused_at = position
            if not is_linked:
                if refused_at is not None:
                    self._refuse_chain(chain, refused_at, TransferRefusal.LINKED_TRANSFER_REFUSED)
                chain, self.undo = [], None
        if chain:
            self._refuse_chain(chain, None, TransferRefusal.LINKED_CHAIN_OPEN)

    def _refuse_chain(self, chain: list[int], refused_at: int | None, refusal: TransferRefusal) -> None:
        for step in reversed(self.undo or []):
            step()
        for position in chain:
            self.repeats.pop(position, None)
            self.known_at.pop(position, None)
            if position != refused_at:
                self.codes[position] = REFUSAL_CODE[refusal]

    def _decide(self, item: _Item) -> bool:
        """Decide one transfer; True unless it was refused."""
        position = item.position
        outcome = self._book(item)
        if outcome is None:
            self.codes[position] = ACCEPTED
            self.booked[item.id] = item
            if self.undo is not None:
                self.undo.append(lambda: self.booked.pop(item.id))
            return True
        if isinstance(outcome, TransferRefusal):
            self.codes[position] = REFUSAL_CODE[outcome]
            return False
        self.codes[position] = DUPLICATE
        return True

    def _items(self, positions: Sequence[int]) -> Iterator[tuple[int, bool, _Item]]:
        """Position, whether it is linked to the next one, and the transfer."""
        batch, extras = self.batch, self.batch.extras
        chosen = np.asarray(positions, np.intp)
        columns = (batch.authority[chosen], batch.submitter[chosen], batch.key_version[chosen])
        records = _SUBMITTED.iter_unpack(batch.records[chosen].astype(SUBMISSION, copy=False).tobytes())
        for position, record, authority, submitter, key_version in zip(
            positions, records, *(column.tolist() for column in columns), strict=True
        ):
            id_, debit, credit, amount, hold, reference, expires_at, code, flags = record
            code = code if code < len(TRANSFER_KINDS) else _TOMBSTONE  # a kind that nobody may submit
            yield (
                position,
                bool(flags & FLAG_LINKED),
                _Item(
                    position,
                    id_,
                    code,
                    TRANSFER_KINDS[code],
                    debit,
                    credit,
                    amount,
                    hold,
                    reference,
                    expires_at,
                    authority,
                    submitter,
                    key_version,
                    extras.get(position, _NO_EXTRA),
                ),
            )

    def _account(self, number: int) -> _Account | None:
        found = self.accounts.get(number)
        if found is None and self.state.exists(number):
            state = self.state
            found = self.accounts[number] = _Account(
                int(state.kind[number]),
                int(state.participant[number]),
                int(state.standing[number]),
                state.classes[state.rule_class[number]],
                state.balance_max(number),
                [
                    int(column[number])
                    for column in (
                        *(state.debits_posted, state.credits_posted, state.debits_pending, state.credits_pending),
                        *(state.spent_day, state.spent_year),
                    )
                ],
            )
        return found

    # --- the rules, in order of precedence

    def _book(self, item: _Item) -> TransferRefusal | bool | None:
        """None = booked; True = the identical transfer was booked before; else the refusal."""
        is_end = item.kind in _ENDS
        if item.amount < 0 or item.amount > AMOUNT_MINOR_MAX or (item.amount == 0 and not is_end):
            return TransferRefusal.AMOUNT_INVALID
        if not is_end and item.debit == item.credit:
            return TransferRefusal.ACCOUNTS_MUST_DIFFER
        repeated = self._repeated(item)
        if repeated is not None:
            return repeated
        return self._end_hold(item) if is_end else self._move(item)

    def _repeated(self, item: _Item) -> TransferRefusal | bool | None:
        """I7: an id books at most once. The same transfer again is answered with the first one's booking."""
        before = self.booked.get(item.id)
        if before is not None:
            same = _is_same(self._as_known(before), item)
            if same:
                self.repeats[item.position] = before.position
        else:
            known = self.known.get(item.id)
            if known is None:
                return None
            same = _is_same(known, item)
            if same:
                self.known_at[item.position] = known
        return True if same else TransferRefusal.ID_ALREADY_USED

    def _as_known(self, item: _Item) -> Known:
        """A transfer booked earlier in this batch, as the journal will have it."""
        code, debit, credit, amount = self.resolved.get(
            item.position, (item.code, item.debit, item.credit, item.amount)
        )
        guard = self.tombstones.get(item.position, (b"", b""))[1]
        return Known(0, self.booked_at, code, debit, credit, amount, item.hold, item.reference, item.terms, guard)

    def _move(self, item: _Item) -> TransferRefusal | None:
        kind = item.kind
        payer, payee = self._account(item.debit), self._account(item.credit)
        if payer is None:
            return TransferRefusal.DEBIT_ACCOUNT_UNKNOWN
        if payee is None:
            return TransferRefusal.CREDIT_ACCOUNT_UNKNOWN
        if (item.code, payer.kind, payee.kind) not in _JOINED or (
            kind in _SAME_PARTICIPANT and payer.owner != payee.owner
        ):
            return TransferRefusal.KIND_NOT_ALLOWED
        if not self._is_authorised(item, payer):
            return TransferRefusal.NOT_AUTHORISED
        if kind is TransferKind.HOLD:
            refusal = self._check_hold_terms(item, payee)
            if refusal is not None:
                return refusal
        if (payer.standing | payee.standing) & CLOSED:
            return TransferRefusal.ACCOUNT_CLOSED
        if kind is not TransferKind.ADJUSTMENT:  # a legal order also reaches suspended and frozen accounts
            if payer.standing & SUSPENDED:
                return TransferRefusal.DEBIT_ACCOUNT_SUSPENDED
            if payer.standing & FROZEN:
                return TransferRefusal.DEBIT_ACCOUNT_FROZEN
            if payee.standing & FROZEN:
                return TransferRefusal.CREDIT_ACCOUNT_FROZEN
        if kind is TransferKind.ISSUE and self._outstanding(payee.owner) + item.amount > self._quota(payee.owner):
            return TransferRefusal.QUOTA_EXCEEDED
        spends = kind in _SPENDING
        paid, received = payer.totals, payee.totals
        if spends:  # I9
            if item.amount > payer.caps.single_max:
                return TransferRefusal.SINGLE_LIMIT_EXCEEDED
            if paid[SPENT_DAY] + item.amount > payer.caps.day_max:
                return TransferRefusal.DAY_LIMIT_EXCEEDED
            if paid[SPENT_YEAR] + item.amount > payer.caps.year_max:
                return TransferRefusal.YEAR_LIMIT_EXCEEDED
        if item.debit != ISSUANCE_ACCOUNT and item.amount > payer.available:  # I3
            return TransferRefusal.INSUFFICIENT_FUNDS
        holding = payee.balance + received[CREDITS_PENDING]
        if kind is not TransferKind.ADJUSTMENT and holding + item.amount > payee.balance_max:
            return TransferRefusal.BALANCE_LIMIT_EXCEEDED
        largest = max(
            paid[DEBITS_POSTED] + paid[DEBITS_PENDING],
            received[CREDITS_POSTED] + received[CREDITS_PENDING],
        )
        if largest + item.amount > AMOUNT_MINOR_MAX - PLAIN_AMOUNT_MAX:
            return TransferRefusal.AMOUNT_OVERFLOW

        if kind is TransferKind.HOLD:
            self._place_hold(item)
        else:
            self._post(item.debit, item.credit, item.amount)
        if spends:
            self._add(item.debit, SPENT_DAY, item.amount)
            self._add(item.debit, SPENT_YEAR, item.amount)
        if kind is TransferKind.ISSUE:
            self._add_outstanding(payee.owner, item.amount)
        elif kind is TransferKind.REDEEM:
            self._add_outstanding(payer.owner, -item.amount)
        return None

    def _is_authorised(self, item: _Item, payer: _Account) -> bool:
        """I8: a wallet moves on its holder's signature, a vault or escrow on its institution's, else on a mandate."""
        if item.kind in (TransferKind.ISSUE, TransferKind.REDEEM, TransferKind.ADJUSTMENT):
            return item.authority == Authority.MANDATE
        is_institutions = payer.kind != _WALLET
        if item.authority == Authority.OWNER:
            if is_institutions:
                return item.key_version == int(self.state.participant_key_version[payer.owner])
            return self.state.has_key_version(item.debit, item.key_version)
        return item.authority == Authority.INSTITUTION and is_institutions and item.submitter == payer.owner

    # --- holds

    def _check_hold_terms(self, item: _Item, payee: _Account) -> TransferRefusal | None:
        extra = item.extra
        guard = extra.abort_hash if extra.abort_hash is not None else guard_of_participant(payee.owner)
        if (item.id, guard) in self.state.tombstones or (item.id, guard) in self.effects.tombstones:
            return TransferRefusal.HOLD_ALREADY_VOIDED
        if (extra.commit_hash is None) != (extra.abort_hash is None):
            return TransferRefusal.HOLD_TERMS_INVALID
        if extra.commit_hash is not None and extra.commit_hash == extra.abort_hash:
            return TransferRefusal.HOLD_TERMS_INVALID
        if item.expires_at < 0 or (item.expires_at == 0 and extra.commit_hash is None):
            return TransferRefusal.HOLD_TERMS_INVALID
        if item.expires_at and item.expires_at <= self.booked_at:
            return TransferRefusal.HOLD_TERMS_INVALID
        if item.expires_at == 0 and payee.balance_max != NO_CAP:  # or a stranger could fill a holder's cap for ever
            return TransferRefusal.HOLD_TERMS_INVALID
        return None

    def _place_hold(self, item: _Item) -> None:
        hold = Hold(
            id=item.id,
            debit=item.debit,
            credit=item.credit,
            amount=item.amount,
            commit_hash=item.extra.commit_hash,
            abort_hash=item.extra.abort_hash,
            expires_at=item.expires_at,
            counted=True,
            day=self.state.day,
            year=self.state.year,
        )
        self._add(item.debit, DEBITS_PENDING, item.amount)
        self._add(item.credit, CREDITS_PENDING, item.amount)
        self.effects.placed[item.id] = hold
        self.hold_terms[item.position] = hold
        if self.undo is not None:
            self.undo.append(lambda: self.effects.placed.pop(item.id))
            self.undo.append(lambda: self.hold_terms.pop(item.position))

    def _end_hold(self, item: _Item) -> TransferRefusal | None:
        """I6: post, void and expire end a hold, once. Freezes and caps were asked when it was placed: a settlement
        whose other leg is posted must never be stopped half way (I5)."""
        kind, extra = item.kind, item.extra
        end = self.effects.ended.get(item.hold) or self.state.ended_holds.get(item.hold)
        if end is not None:
            return _REFUSAL_BY_END[end]
        hold = self.effects.placed.get(item.hold) or self.state.holds.get(item.hold)
        if hold is None:
            return self._entomb(item) if kind is TransferKind.VOID else TransferRefusal.HOLD_NOT_FOUND
        is_due = hold.expires_at != 0 and hold.expires_at <= self.booked_at
        if kind is TransferKind.EXPIRE:
            if item.authority != Authority.ENGINE or not is_due:
                return TransferRefusal.NOT_AUTHORISED
        elif hold.is_conditional:
            if extra.secret is None:
                return TransferRefusal.NOT_AUTHORISED
            wanted = hold.commit_hash if kind is TransferKind.POST else hold.abort_hash
            if kind is TransferKind.POST and is_due:
                return TransferRefusal.HOLD_EXPIRED
            if hashlib.sha256(extra.secret).digest() != wanted:
                return TransferRefusal.HOLD_SECRET_WRONG
        elif item.authority != Authority.INSTITUTION or item.submitter != int(self.state.participant[hold.credit]):
            return TransferRefusal.NOT_AUTHORISED
        amount = hold.amount if item.amount == 0 else item.amount
        if kind is TransferKind.POST:
            if is_due:
                return TransferRefusal.HOLD_EXPIRED
            if amount > hold.amount or (hold.is_conditional and amount != hold.amount):
                return TransferRefusal.HOLD_AMOUNT_EXCEEDED
        elif item.amount not in (0, hold.amount):
            return TransferRefusal.HOLD_AMOUNT_EXCEEDED

        self._add(hold.debit, DEBITS_PENDING, -hold.amount)
        self._add(hold.credit, CREDITS_PENDING, -hold.amount)
        unspent = hold.amount
        if kind is TransferKind.POST:
            self._post(hold.debit, hold.credit, amount)
            unspent -= amount
        if hold.counted and unspent:
            if hold.day == self.state.day:
                self._add(hold.debit, SPENT_DAY, -unspent)
            if hold.year == self.state.year:
                self._add(hold.debit, SPENT_YEAR, -unspent)
        self.resolved[item.position] = (item.code, hold.debit, hold.credit, amount)
        self.hold_ends[item.position] = self.effects.ended[item.hold] = _END_BY_KIND[kind]
        if self.undo is not None:
            self.undo.append(lambda: self.resolved.pop(item.position))
            self.undo.append(lambda: self.hold_ends.pop(item.position))
            self.undo.append(lambda: self.effects.ended.pop(item.hold))
        return None

    def _entomb(self, item: _Item) -> TransferRefusal | None:
        """The abort overtook its hold. Only who could have voided the hold can keep it out, hence the guard."""
        if item.submitter == 0:
            return TransferRefusal.HOLD_NOT_FOUND  # nobody unknown may fill the journal with tombstones
        if not item.guard:
            return TransferRefusal.HOLD_NOT_FOUND
        tombstone = (item.hold, item.guard)
        if tombstone in self.state.tombstones or tombstone in self.effects.tombstones:
            return TransferRefusal.HOLD_ALREADY_VOIDED
        self.effects.tombstones.add(tombstone)
        self.tombstones[item.position] = tombstone
        self.resolved[item.position] = (_TOMBSTONE, 0, 0, 0)
        if self.undo is not None:
            self.undo.append(lambda: self.effects.tombstones.discard(tombstone))
            self.undo.append(lambda: self.tombstones.pop(item.position))
            self.undo.append(lambda: self.resolved.pop(item.position))
        return None

    # --- running totals: the state's plus this block's

    def _add(self, number: int, column: int, delta: int) -> None:
        account = self._account(number)
        if account is None:
            raise InvariantBroken("I1", f"account {number} of a hold does not exist")
        deltas = self.effects.running.get(number)
        if deltas is None:
            deltas = self.effects.running[number] = [0, 0, 0, 0, 0, 0]
        deltas[column] += delta
        account.totals[column] += delta
        if self.undo is not None:
            self.undo.append(lambda: self._take_back(number, column, delta))

    def _take_back(self, number: int, column: int, delta: int) -> None:
        self.effects.running[number][column] -= delta
        self.accounts[number].totals[column] -= delta

    def _post(self, debit: int, credit: int, amount: int) -> None:
        """I1: the same amount on both sides."""
        self._add(debit, DEBITS_POSTED, amount)
        self._add(credit, CREDITS_POSTED, amount)

    def _quota(self, number: int) -> int:
        participant = self.state.participants[number]
        return participant.quota if participant is not None else 0

    def _outstanding(self, number: int) -> int:
        participant = self.state.participants[number]
        return (participant.outstanding if participant is not None else 0) + self.effects.outstanding.get(number, 0)

    def _add_outstanding(self, number: int, delta: int) -> None:
        effects = self.effects
        effects.outstanding[number] = effects.outstanding.get(number, 0) + delta
        issued, redeemed = max(delta, 0), max(-delta, 0)
        effects.issued += issued
        effects.redeemed += redeemed

        def back() -> None:
            effects.outstanding[number] -= delta
            effects.issued -= issued
            effects.redeemed -= redeemed

        if self.undo is not None:
            self.undo.append(back)


_END_BY_KIND = {
    TransferKind.POST: HoldEnd.POSTED,
    TransferKind.VOID: HoldEnd.VOIDED,
    TransferKind.EXPIRE: HoldEnd.EXPIRED,
}
_REFUSAL_BY_END = {
    HoldEnd.POSTED: TransferRefusal.HOLD_ALREADY_POSTED,
    HoldEnd.VOIDED: TransferRefusal.HOLD_ALREADY_VOIDED,
    HoldEnd.EXPIRED: TransferRefusal.HOLD_EXPIRED,
}


def guard_of_participant(number: int) -> bytes:
    """Who may keep a late plain hold out: the participant that could have voided it."""
    return number.to_bytes(4, "big")


def _is_same(known: Known, item: _Item) -> bool:
    """Is a submitted transfer the one that was booked under its id? Ends of holds take their accounts from the hold."""
    if (known.hold, known.reference) != (item.hold, item.reference):
        return False
    if item.kind in _ENDS:
        if known.kind == _TOMBSTONE:
            return item.kind is TransferKind.VOID and known.guard == item.guard
        return known.kind == item.code and item.amount in (0, known.amount)
    if item.kind is TransferKind.HOLD and known.terms != item.terms:
        return False
    return (known.kind, known.debit, known.credit, known.amount) == (item.code, item.debit, item.credit, item.amount)
