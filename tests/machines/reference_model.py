"""The ledger's rules once more, in dicts of plain integers: slow, obvious, and sharing nothing with the ledger's code.

Goal: an independent answer to "which transfers are booked, and what are the totals then?" (I1-I3, I6-I9).
Method: written from the documented rules (the architecture's ledger section, the refusals' order of precedence), one
transfer after the other; a linked chain works on a copy that is kept or thrown away. Only the vocabulary is imported.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from ledger.domain.vocabulary import TransferKind as Kind
from ledger.domain.vocabulary import TransferRefusal as No

BOOKED, DUPLICATE = "booked", "duplicate"
LARGEST = 2**63 - 1
HEADROOM = LARGEST - 2**49
"""No running total, holds counted, may pass this: whatever is then posted stays within 63 bits."""
ENDS = (Kind.POST, Kind.VOID, Kind.EXPIRE)
HOLDERS = ("vault", "wallet")
JOINS = {
    Kind.ISSUE: [("issuance", "vault")],
    Kind.REDEEM: [("vault", "issuance")],
    Kind.EXCHANGE_IN: [("vault", "wallet")],
    Kind.EXCHANGE_OUT: [("wallet", "vault")],
    Kind.INTEREST: [("vault", "wallet")],
    Kind.PURSE_FUND: [("wallet", "offline")],
    Kind.PURSE_REDEEM: [("offline", "wallet")],
    Kind.PURSE_LOSS: [("vault", "offline"), ("offline", "vault")],
}
WITHIN_ONE_INSTITUTION = (Kind.EXCHANGE_IN, Kind.EXCHANGE_OUT, Kind.PURSE_FUND, Kind.PURSE_LOSS)
SPENDING = (Kind.PAYMENT, Kind.REFUND, Kind.HOLD, Kind.PURSE_FUND)
ANY_TWO_HOLDERS = (Kind.PAYMENT, Kind.REFUND, Kind.HOLD, Kind.ADJUSTMENT)
ENDED = {"posted": No.HOLD_ALREADY_POSTED, "voided": No.HOLD_ALREADY_VOIDED, "expired": No.HOLD_EXPIRED}


@dataclass(frozen=True)
class Item:
    """A submitted transfer; `kind` None is a code that no kind has. `authority` is who vouches for it."""

    id: int
    kind: Kind | None
    debit: int = 0
    credit: int = 0
    amount: int = 0
    hold: int = 0
    reference: int = 0
    expires_at: int = 0
    linked: bool = False
    authority: str = "institution"
    submitter: int = 0
    key_version: int = 0
    commit: bytes | None = None
    abort: bytes | None = None
    secret: bytes | None = None


@dataclass
class ReferenceLedger:
    accounts: dict[int, dict[str, Any]] = field(default_factory=dict)
    """number -> kind, participant, caps (balance, single, day, year), frozen, suspended, closed, key_version,
    more_versions (of further keys) and the six totals"""
    participants: dict[int, dict[str, int]] = field(default_factory=dict)
    """number -> key_version, quota, outstanding"""
    holds: dict[int, dict[str, Any]] = field(default_factory=dict)
    ended: dict[int, str] = field(default_factory=dict)
    tombstones: set[tuple[int, object]] = field(default_factory=set)
    guards: dict[int, object] = field(default_factory=dict)
    rows: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    """id -> (seq, id, kind, debit, credit, amount, hold, reference, submitter, booked_at), as the journal has it"""
    terms: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    issued: int = 0
    redeemed: int = 0
    date: tuple[int, int] = (0, 0)
    now: int = 0

    def decide(self, items: list[Item], booked_at: int) -> list[tuple[str, int]]:
        """(outcome, seq) of every item, in order; the state afterwards is that after the block."""
        self.now = booked_at
        epoch = datetime(1970, 1, 1, tzinfo=UTC)
        local = (epoch + timedelta(microseconds=booked_at)).astimezone(ZoneInfo("Asia/Shanghai"))
        for account in self.accounts.values():
            account["spent_day"] *= local.toordinal() == self.date[0]
            account["spent_year"] *= local.year == self.date[1]
        self.date = (local.toordinal(), local.year)
        outcomes: list[tuple[str, int]] = []
        while len(outcomes) < len(items):
            start = end = len(outcomes)
            while end < len(items) and items[end].linked:
                end += 1
            outcomes += self._chain(items[start : end + 1], is_open=end == len(items))
        return outcomes

    def _chain(self, chain: list[Item], *, is_open: bool) -> list[tuple[str, int]]:
        before = copy.deepcopy(self.__dict__) if len(chain) > 1 else {}
        outcomes: list[tuple[str, int]] = []
        for item in chain:
            outcome = No.LINKED_CHAIN_OPEN if is_open else self._one(item)
            if outcome not in (BOOKED, DUPLICATE):
                self.__dict__.update(before)
                others = No.LINKED_CHAIN_OPEN if is_open else No.LINKED_TRANSFER_REFUSED
                return [(outcome if other is item else others, 0) for other in chain]
            outcomes.append((outcome, self.rows[item.id][0]))
        return outcomes

    def _one(self, item: Item) -> str:
        if not (0 < item.amount <= LARGEST or (item.amount == 0 and item.kind in ENDS)):
            return No.AMOUNT_INVALID
        if item.kind not in ENDS and item.debit == item.credit:
            return No.ACCOUNTS_MUST_DIFFER
        if item.id in self.rows:
            return DUPLICATE if self._is_repeat(item) else No.ID_ALREADY_USED
        return self._end(item) if item.kind in ENDS else self._move(item)

    def _is_repeat(self, item: Item) -> bool:
        _, _, kind, debit, credit, amount, hold, reference, *_ = self.rows[item.id]
        if (hold, reference) != (item.hold, item.reference):
            return False
        if item.kind in ENDS:
            if kind is Kind.TOMBSTONE:
                return item.kind is Kind.VOID and self.guards[item.id] == guard_of(item)
            return kind is item.kind and item.amount in (0, amount)
        same_terms = kind is not Kind.HOLD or self.terms[item.id] == (item.commit, item.abort, item.expires_at)
        return (kind, debit, credit, amount) == (item.kind, item.debit, item.credit, item.amount) and same_terms

    def _move(self, item: Item) -> str:
        kind, amount = item.kind, item.amount
        if item.debit not in self.accounts:
            return No.DEBIT_ACCOUNT_UNKNOWN
        if item.credit not in self.accounts:
            return No.CREDIT_ACCOUNT_UNKNOWN
        payer, payee = self.accounts[item.debit], self.accounts[item.credit]
        pair = (payer["kind"], payee["kind"])
        both_hold = pair[0] in HOLDERS and pair[1] in HOLDERS
        if kind is None or not (pair in JOINS.get(kind, []) or (kind in ANY_TWO_HOLDERS and both_hold)):
            return No.KIND_NOT_ALLOWED
        if kind in WITHIN_ONE_INSTITUTION and payer["participant"] != payee["participant"]:
            return No.KIND_NOT_ALLOWED
        institution = self.participants.get(payer["participant"], {})
        by_vault = payer["kind"] in ("vault", "offline")
        if kind in (Kind.ISSUE, Kind.REDEEM, Kind.ADJUSTMENT):
            is_authorised = item.authority == "mandate"
        elif item.authority == "owner":
            holders = [payer["key_version"], *payer["more_versions"]]
            is_authorised = item.key_version in ([institution["key_version"]] if by_vault else holders)
        else:
            is_authorised = item.authority == "institution" and by_vault and item.submitter == payer["participant"]
        if not is_authorised:
            return No.NOT_AUTHORISED
        if kind is Kind.HOLD:
            guard = item.abort if item.abort is not None else payee["participant"]
            if (item.id, guard) in self.tombstones:
                return No.HOLD_ALREADY_VOIDED
            is_plain = item.commit is None and item.abort is None and item.expires_at != 0
            is_conditional = item.commit is not None and item.abort is not None and item.commit != item.abort
            if not (is_plain or is_conditional) or not (item.expires_at == 0 or item.expires_at > self.now):
                return No.HOLD_TERMS_INVALID
            if item.expires_at == 0 and payee["caps"][0] != LARGEST:
                return No.HOLD_TERMS_INVALID
        is_legal_order = kind is Kind.ADJUSTMENT
        if payer["closed"] or payee["closed"]:
            return No.ACCOUNT_CLOSED
        if payer["suspended"] and not is_legal_order:
            return No.DEBIT_ACCOUNT_SUSPENDED
        if payer["frozen"] and not is_legal_order:
            return No.DEBIT_ACCOUNT_FROZEN
        if payee["frozen"] and not is_legal_order:
            return No.CREDIT_ACCOUNT_FROZEN
        receiver = self.participants.get(payee["participant"], {})
        if kind is Kind.ISSUE and receiver["outstanding"] + amount > receiver["quota"]:
            return No.QUOTA_EXCEEDED
        _, single_max, day_max, year_max = payer["caps"]
        is_spending = kind in SPENDING
        if is_spending and amount > single_max:
            return No.SINGLE_LIMIT_EXCEEDED
        if is_spending and payer["spent_day"] + amount > day_max:
            return No.DAY_LIMIT_EXCEEDED
        if is_spending and payer["spent_year"] + amount > year_max:
            return No.YEAR_LIMIT_EXCEEDED
        if payer["kind"] != "issuance" and amount > balance(payer) - payer["debits_pending"]:
            return No.INSUFFICIENT_FUNDS
        if not is_legal_order and balance(payee) + payee["credits_pending"] + amount > payee["caps"][0]:
            return No.BALANCE_LIMIT_EXCEEDED
        if payer["debits_posted"] + payer["debits_pending"] + amount > HEADROOM:
            return No.AMOUNT_OVERFLOW
        if payee["credits_posted"] + payee["credits_pending"] + amount > HEADROOM:
            return No.AMOUNT_OVERFLOW

        suffix = "pending" if kind is Kind.HOLD else "posted"
        payer["debits_" + suffix] += amount
        payee["credits_" + suffix] += amount
        payer["spent_day"] += amount * is_spending
        payer["spent_year"] += amount * is_spending
        if kind is Kind.HOLD:
            terms = self.terms[item.id] = (item.commit, item.abort, item.expires_at)
            hold = {"by": item.debit, "to": item.credit, "amount": amount, "terms": terms, "date": self.date}
            self.holds[item.id] = hold
        if kind is Kind.ISSUE:
            receiver["outstanding"] += amount
            self.issued += amount
        if kind is Kind.REDEEM:
            institution["outstanding"] -= amount
            self.redeemed += amount
        return self._book(item, kind, item.debit, item.credit, amount)

    def _end(self, item: Item) -> str:
        """What an end needs depends on its hold, so the hold is looked for before the authority."""
        kind, shown = item.kind, hashlib.sha256(item.secret).digest() if item.secret is not None else None
        if item.hold in self.ended:
            return ENDED[self.ended[item.hold]]
        hold = self.holds.get(item.hold)
        if hold is None:
            guard = guard_of(item)
            if kind is not Kind.VOID or not item.submitter or (shown is None and item.authority != "institution"):
                return No.HOLD_NOT_FOUND
            if (item.hold, guard) in self.tombstones:
                return No.HOLD_ALREADY_VOIDED
            self.tombstones.add((item.hold, guard))
            self.guards[item.id] = guard
            return self._book(item, Kind.TOMBSTONE, 0, 0, 0)
        payer, payee = self.accounts[hold["by"]], self.accounts[hold["to"]]
        commit, abort, expires_at = hold["terms"]
        is_due = expires_at != 0 and expires_at <= self.now
        if kind is Kind.EXPIRE:
            is_authorised = item.authority == "engine" and is_due
        elif commit is not None:
            is_authorised = shown is not None
        else:
            is_authorised = item.authority == "institution" and item.submitter == payee["participant"]
        if not is_authorised:
            return No.NOT_AUTHORISED
        if kind is Kind.POST and is_due:
            return No.HOLD_EXPIRED
        if commit is not None and kind is not Kind.EXPIRE and shown != (commit if kind is Kind.POST else abort):
            return No.HOLD_SECRET_WRONG
        amount = item.amount or hold["amount"]
        may_be_part = kind is Kind.POST and commit is None
        if amount > hold["amount"] or (amount < hold["amount"] and not may_be_part):
            return No.HOLD_AMOUNT_EXCEEDED

        payer["debits_pending"] -= hold["amount"]
        payee["credits_pending"] -= hold["amount"]
        posted = amount if kind is Kind.POST else 0
        payer["debits_posted"] += posted
        payee["credits_posted"] += posted
        payer["spent_day"] -= (hold["amount"] - posted) * (hold["date"][0] == self.date[0])
        payer["spent_year"] -= (hold["amount"] - posted) * (hold["date"][1] == self.date[1])
        del self.holds[item.hold]
        self.ended[item.hold] = {Kind.POST: "posted", Kind.VOID: "voided", Kind.EXPIRE: "expired"}[kind]  # type: ignore[index]
        return self._book(item, kind, hold["by"], hold["to"], amount)  # type: ignore[arg-type]

    def _book(self, item: Item, kind: Kind, debit: int, credit: int, amount: int) -> str:
        seq = len(self.rows) + 1
        row = (seq, item.id, kind, debit, credit, amount, item.hold, item.reference, item.submitter, self.now)
        self.rows[item.id] = row
        return BOOKED


def balance(account: dict[str, Any]) -> int:
    return int(account["credits_posted"] - account["debits_posted"])


def guard_of(item: Item) -> object:
    """What a void of an unknown hold keeps out: the hold with this abort hash, or of this payee's participant."""
    if item.secret is not None:
        return hashlib.sha256(item.secret).digest()
    return item.submitter if item.authority == "institution" else None
