"""The books, kept again from nothing: accounts, holds, participants and caps, one transfer at a time in plain Python.

Every rule that the engine must obey is asked of what it booked. A transfer that breaks one is reported and its effect
applied all the same, so that what follows is judged by what the journal says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from kernel.clock import to_micros
from kernel.crypto.keys import PublicKey
from kernel.ids import derive_uuid8, parse, parse_account, show
from kernel.money import AMOUNT_MINOR_MAX, parse_minor
from ledger.verifier import documents
from ledger.verifier.documents import InstructionCheck, Mandate, Unproven
from ledger.verifier.layout import (
    ADJUSTMENT,
    ENDS,
    EXCHANGE_IN,
    EXCHANGE_OUT,
    EXPIRE,
    HOLD,
    INSTRUCTION,
    INTEREST,
    ISSUANCE,
    ISSUANCE_ACCOUNT,
    ISSUE,
    KINDS,
    MANDATE,
    MANDATED,
    POST,
    REDEEM,
    SECRET,
    SPENDING,
    TOMBSTONE,
    VAULT,
    WALLET,
    AccountRow,
    DirectiveRow,
    HoldEventRow,
    TombstoneRow,
    TransferRow,
)
from ledger.verifier.report import Report

_HOLDERS = (VAULT, WALLET)
_JOINS: Mapping[int, set[tuple[int, int]]] = {
    ISSUE: {(ISSUANCE, VAULT)},
    REDEEM: {(VAULT, ISSUANCE)},
    EXCHANGE_IN: {(VAULT, WALLET)},
    EXCHANGE_OUT: {(WALLET, VAULT)},
    INTEREST: {(VAULT, WALLET)},
}
"""Debit and credit kinds of accounts; every other kind of transfer joins holders."""
_AMONG_HOLDERS = {(debit, credit) for debit in _HOLDERS for credit in _HOLDERS}


class Caps(NamedTuple):
    balance_max: int = AMOUNT_MINOR_MAX
    single_max: int = AMOUNT_MINOR_MAX
    day_max: int = AMOUNT_MINOR_MAX
    year_max: int = AMOUNT_MINOR_MAX


@dataclass(slots=True)
class Participant:
    number: int
    code: str
    role: str
    key: PublicKey
    quota: int
    outstanding: int = 0
    """Issued to it less redeemed by it."""


@dataclass(slots=True)
class Account:
    kind: int
    participant: int
    rule_class: str
    key: PublicKey | None = None
    frozen: bool = False
    debits_posted: int = 0
    credits_posted: int = 0
    debits_pending: int = 0
    credits_pending: int = 0
    day: int = 0
    spent_day: int = 0
    year: int = 0
    spent_year: int = 0
    """`spent_day` is what was spent on `day`, `spent_year` in `year`; on another day nothing was spent yet."""

    @property
    def balance(self) -> int:
        return self.credits_posted - self.debits_posted

    @property
    def available(self) -> int:
        return self.balance - self.debits_pending


class Hold(NamedTuple):
    debit: int
    credit: int
    amount: int
    commit_hash: bytes | None
    abort_hash: bytes | None
    expires_at: int
    """Microseconds since 1970; 0 = never."""
    day: int
    year: int


@dataclass(slots=True)
class Attached:
    """What the journal keeps beside one transfer."""

    evidence: dict[int, bytes] = field(default_factory=dict)
    placed: HoldEventRow | None = None
    ended: HoldEventRow | None = None
    tombstone: TombstoneRow | None = None


Complain = Callable[[str, int | None, str], None]
"""(rule, seq, message)"""


class Book:
    def __init__(self, report: Report, complain: Complain) -> None:
        self.report = report
        self.complain = complain
        self.zone: Any = ZoneInfo("UTC")
        self.accounts: dict[int, Account] = {}
        self.participants: dict[int, Participant] = {}
        self.number_of: dict[str, int] = {}
        self.operators: dict[str, PublicKey] = {}
        self.makers: dict[str, PublicKey] = {}
        """Every key that ever could propose: a participant may have rotated its key since it proposed."""
        self.maker_of: dict[str, int] = {}
        self.approvals_needed = 0
        self.caps: dict[str, Caps] = {"none": Caps()}
        self.mandates: set[UUID] = set()
        self.holds: dict[bytes, Hold] = {}
        self.tombstones: set[tuple[bytes, bytes]] = set()
        self.instructions: list[InstructionCheck] = []
        """Signatures to verify, collected so that threads can share them."""
        self.holders_total = 0
        self.booked_at = 0
        self.day = 0
        self.year = 0

    # --- directives and accounts

    def begin(self, booked_at: datetime) -> None:
        self.booked_at = to_micros(booked_at)
        local = booked_at.astimezone(self.zone)
        self.day, self.year = local.date().toordinal(), local.year

    def order(self, row: DirectiveRow) -> tuple[int, Mapping[str, Any]] | None:
        """Check a directive's signatures and apply it. Returns (number, action) if it must have booked a transfer."""
        try:
            if row.number == 1:
                self._genesis(row)
                return None
            mandate = documents.verify_mandate(
                row.body,
                ledger=self.report.ledger,
                operators=self.operators,
                makers=self.makers | self.operators,
                approvals_needed=self.approvals_needed,
            )
            self._check_mandate(row, mandate)
            self.report.proved["approvals of mandates"] += mandate.approvals
            self.report.proved["mandates"] += 1
            action = mandate.action
            if action["action"] in ("issue", "redeem", "adjustment"):
                return row.number, action
            self._apply(action)
        except Unproven as error:
            self.complain("I8", None, f"directive {row.number}: {error}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.complain("I8", None, f"directive {row.number} cannot be read: {type(error).__name__}: {error}")
        return None

    def _genesis(self, row: DirectiveRow) -> None:
        document = documents.canonical(row.body)
        if (document["kind"], row.kind) != ("genesis", "genesis"):
            raise Unproven("the first directive is not genesis")
        self.report.ledger, self.report.currency = document["ledger"], document["currency"]
        self.zone = ZoneInfo(document["time_zone"])
        self.approvals_needed = document["approvals_needed"]
        for operator in document["operators"]:
            key = PublicKey.from_jwk(operator["key"])
            self.operators[key.thumbprint] = key
            self.report.operators.append((operator["name"], key.thumbprint))
        for rule_class in document["rule_classes"]:
            self.caps[rule_class["name"]] = _caps(rule_class)
        self.accounts[ISSUANCE_ACCOUNT] = Account(ISSUANCE, 0, "none")

    def _check_mandate(self, row: DirectiveRow, mandate: Mandate) -> None:
        action = mandate.action
        if row.kind != action["action"] or row.mandate != mandate.id.bytes:
            raise Unproven("its row names another kind or mandate than its proposal")
        if mandate.id in self.mandates:
            raise Unproven("its mandate has acted before")
        self.mandates.add(mandate.id)
        if mandate.maker not in self.operators:
            vault = self.accounts.get(parse_account(action["vault"])) if "vault" in action else None
            if vault is None or vault.participant != self.maker_of[mandate.maker]:
                raise Unproven("a participant proposed what is not its own to propose")

    def _apply(self, action: Mapping[str, Any]) -> None:
        match action["action"]:
            case "register-participant":
                number = len(self.participants) + 1
                key = PublicKey.from_jwk(action["key"])
                self.participants[number] = Participant(
                    number, action["participant"], action["role"], key, parse_minor(action["quota_minor"])
                )
                self.number_of[action["participant"]] = number
                self._may_propose(key, number)
            case "rotate-participant-key":
                participant = self.participants[self.number_of[action["participant"]]]
                participant.key = PublicKey.from_jwk(action["key"])
                self._may_propose(participant.key, participant.number)
            case "set-quota":
                participant = self.participants[self.number_of[action["participant"]]]
                participant.quota = parse_minor(action["quota_minor"])
            case "freeze" | "unfreeze":
                self.accounts[parse_account(action["account"])].frozen = action["action"] == "freeze"
            case "set-rule-class":
                self.caps[action["rule_class"]["name"]] = _caps(action["rule_class"])
            case unknown:
                raise Unproven(f"{unknown!r} is no action that this verifier knows")

    def _may_propose(self, key: PublicKey, number: int) -> None:
        self.makers[key.thumbprint] = key
        self.maker_of[key.thumbprint] = number

    def open(self, row: AccountRow) -> None:
        participant = self.participants.get(row.participant)
        if participant is None or row.rule_class not in self.caps or row.kind not in _HOLDERS:
            self.complain("I8", None, f"account {row.number} is of no known participant, class or kind")
        elif row.kind == WALLET and participant.role != "intermediary":
            self.complain("I8", None, f"account {row.number} is a wallet at a {participant.role} participant")
        key = None
        if row.kind == WALLET:
            try:
                key = documents.holder_key(row.holder_key or b"")
            except ValueError as error:
                self.complain("I8", None, f"account {row.number}: {error}")
        self.accounts[row.number] = Account(row.kind, row.participant, row.rule_class, key)

    # --- transfers

    def book(self, row: TransferRow, attached: Attached, ordered: tuple[int, Mapping[str, Any]] | None) -> None:
        """One transfer, in seq order. `ordered` is what a mandate of the same block wants booked."""
        self.report.proved["transfers"] += 1
        if row.kind == TOMBSTONE:
            self._entomb(row, attached)
            return
        if not 0 <= row.kind < TOMBSTONE:
            self.complain("I1", row.seq, f"no kind of transfer has the code {row.kind}")
            return
        debit, credit = self.accounts.get(row.debit), self.accounts.get(row.credit)
        if debit is None or credit is None or row.debit == row.credit or not 0 < row.amount <= AMOUNT_MINOR_MAX:
            self.complain("I1", row.seq, "it needs two different accounts that exist and a positive amount")
            return
        self.report.booked[KINDS[row.kind]] += row.amount
        if row.kind in ENDS:
            self._end(row, attached)
        else:
            self._check_new(row, attached, ordered, debit, credit)
            self._move(row, attached, debit, credit)
        if debit.kind != ISSUANCE and debit.available < 0:
            self.complain("I3", row.seq, f"account {row.debit} has {debit.available} available")

    def _check_new(
        self,
        row: TransferRow,
        attached: Attached,
        ordered: tuple[int, Mapping[str, Any]] | None,
        debit: Account,
        credit: Account,
    ) -> None:
        """Everything but the payer's funds, against the state before the transfer."""
        kind = row.kind
        same_owner = kind not in (EXCHANGE_IN, EXCHANGE_OUT) or debit.participant == credit.participant
        if (debit.kind, credit.kind) not in _JOINS.get(kind, _AMONG_HOLDERS) or not same_owner:
            self.complain("I1", row.seq, f"{KINDS[kind]} does not join accounts {row.debit} and {row.credit}")
        self._check_authority(row, attached, ordered, debit)
        if kind == ADJUSTMENT:
            return
        if debit.frozen or credit.frozen:
            self.complain("freeze", row.seq, "it moves money of or to a frozen account")
        if kind == ISSUE:
            participant = self.participants.get(credit.participant)
            if participant is None or participant.role != "intermediary":
                self.complain("quota", row.seq, "issued to a vault that is no intermediary's")
            elif participant.outstanding + row.amount > participant.quota:
                self.complain("quota", row.seq, f"issued beyond the quota of {participant.code}")
            else:
                self.report.proved["quotas"] += 1
        if kind in SPENDING:
            caps = self.caps.get(debit.rule_class, Caps())
            spent_day = debit.spent_day if debit.day == self.day else 0
            spent_year = debit.spent_year if debit.year == self.year else 0
            for name, value, cap in (
                ("one payment", row.amount, caps.single_max),
                ("a day", spent_day + row.amount, caps.day_max),
                ("a year", spent_year + row.amount, caps.year_max),
            ):
                if value > cap:
                    self.complain("I9", row.seq, f"{value} is above the cap of {cap} for {name}, account {row.debit}")
            self.report.proved["caps of payments"] += 1
        balance_max = self.caps.get(credit.rule_class, Caps()).balance_max
        holding = credit.balance + credit.credits_pending + row.amount
        if holding > balance_max:
            self.complain("I9", row.seq, f"account {row.credit} holds {holding}, its class at most {balance_max}")

    def _check_authority(
        self, row: TransferRow, attached: Attached, ordered: tuple[int, Mapping[str, Any]] | None, debit: Account
    ) -> None:
        """I8: a mandate's transfer has its directive, a wallet's its holder's instruction, a vault's its owner."""
        evidence = attached.evidence
        if row.kind in MANDATED:
            problem = self._mandate_problem(row, evidence.get(MANDATE), ordered)
            if problem is not None:
                self.complain("I8", row.seq, problem)
            return
        if MANDATE in evidence:
            self.complain("I8", row.seq, "evidence of a mandate on a transfer that needs none")
        token = evidence.get(INSTRUCTION)
        owner = self.participants.get(debit.participant)
        if token is not None:
            key = debit.key if debit.kind == WALLET else owner.key if owner is not None else None
            if key is None:
                self.complain("I8", row.seq, f"account {row.debit} has no key that could have signed")
                return
            self._verify_later(row, attached, token, key)
        elif debit.kind == VAULT and row.submitter == debit.participant:
            self.report.proved["vault debits by their institution"] += 1
        elif debit.kind == WALLET:
            self.complain("I8", row.seq, f"wallet {row.debit} is debited without its holder's instruction")
        else:
            self.complain("I8", row.seq, f"account {row.debit} is debited by participant {row.submitter}")

    def _mandate_problem(
        self, row: TransferRow, number: bytes | None, ordered: tuple[int, Mapping[str, Any]] | None
    ) -> str | None:
        if ordered is None or number is None or number != ordered[0].to_bytes(8, "big"):
            return f"{KINDS[row.kind]} without a valid mandate of its own in its block"
        action = ordered[1]
        try:
            amount, currency = parse_minor(action["amount_minor"]), action["currency"]
            accounts: tuple[int, int]
            match action["action"]:
                case "issue":
                    accounts = (ISSUANCE_ACCOUNT, parse_account(action["vault"]))
                case "redeem":
                    accounts = (parse_account(action["vault"]), ISSUANCE_ACCOUNT)
                case _:
                    accounts = (parse_account(action["debit"]), parse_account(action["credit"]))
            wanted = (action["action"], parse("trf", action["transfer"]).bytes, *accounts, amount, currency)
        except (ValueError, KeyError, TypeError) as error:
            return f"its mandate cannot be read: {error}"
        if wanted != (KINDS[row.kind], row.id, row.debit, row.credit, row.amount, self.report.currency):
            return "it is not what its mandate ordered"
        self.report.proved["transfers by mandate"] += 1
        return None

    def _verify_later(self, row: TransferRow, attached: Attached, token: bytes, key: PublicKey) -> None:
        placed, report = attached.placed, self.report
        terms = None
        if placed is not None:
            terms = (placed.commit_hash, placed.abort_hash, to_micros(placed.expires_at) if placed.expires_at else 0)
        is_end = row.kind in ENDS or row.kind == TOMBSTONE
        self.instructions.append(InstructionCheck(row, token, key, report.ledger, report.currency, terms, is_end))

    def _move(self, row: TransferRow, attached: Attached, debit: Account, credit: Account) -> None:
        if row.kind == HOLD:
            self._place(row, attached, debit, credit)
        else:
            self._post(debit, credit, row.amount)
        if row.kind in SPENDING:
            self._spend(debit, row.amount)
        if row.kind in (ISSUE, REDEEM):
            is_issue = row.kind == ISSUE
            participant = self.participants.get((credit if is_issue else debit).participant)
            if participant is not None:
                participant.outstanding += row.amount if is_issue else -row.amount
            if is_issue:
                self.report.supply.issued += row.amount
            else:
                self.report.supply.redeemed += row.amount

    def _post(self, debit: Account, credit: Account, amount: int) -> None:
        debit.debits_posted += amount
        credit.credits_posted += amount
        self.holders_total += (amount if credit.kind != ISSUANCE else 0) - (amount if debit.kind != ISSUANCE else 0)

    def _spend(self, account: Account, amount: int) -> None:
        if account.day != self.day:
            account.day, account.spent_day = self.day, 0
        if account.year != self.year:
            account.year, account.spent_year = self.year, 0
        account.spent_day += amount
        account.spent_year += amount

    # --- holds

    def _place(self, row: TransferRow, attached: Attached, debit: Account, credit: Account) -> None:
        event, attached.placed = attached.placed, None
        if event is None or (event.hold, event.transfer, event.kind) != (row.id, row.id, HOLD):
            self.complain("I6", row.seq, "the hold has no terms of its own")
            commit, abort, expires_at = None, None, 0
        else:
            commit, abort = event.commit_hash, event.abort_hash
            expires_at = to_micros(event.expires_at) if event.expires_at is not None else 0
            is_conditional = commit is not None and abort is not None and commit != abort
            if not is_conditional and (commit is not None or abort is not None or expires_at == 0):
                self.complain("I6", row.seq, "a hold needs either an expiry or two different hashes")
            if expires_at and expires_at <= self.booked_at:
                self.complain("I6", row.seq, "the hold had expired when it was placed")
        guard = abort if abort is not None else credit.participant.to_bytes(4, "big", signed=True)
        if (row.id, guard) in self.tombstones:
            self.complain("I6", row.seq, "the hold was placed after its void: a tombstone should have kept it out")
        debit.debits_pending += row.amount
        credit.credits_pending += row.amount
        self.report.supply.held += row.amount
        self.holds[row.id] = Hold(row.debit, row.credit, row.amount, commit, abort, expires_at, self.day, self.year)
        self.report.proved["holds placed"] += 1

    def _end(self, row: TransferRow, attached: Attached) -> None:
        """I6. Freezes and caps were asked when the hold was placed."""
        event, attached.ended = attached.ended, None
        if event is None or (event.hold, event.transfer, event.kind) != (row.hold, row.id, row.kind):
            self.complain("I6", row.seq, f"the {KINDS[row.kind]} has no event of its own in hold_event")
        hold = self.holds.pop(row.hold or b"", None)
        if hold is None:
            self.complain("I6", row.seq, f"the {KINDS[row.kind]} ends a hold that is not open")
            if row.kind == POST:
                self._post(self.accounts[row.debit], self.accounts[row.credit], row.amount)
            return
        if (row.debit, row.credit) != (hold.debit, hold.credit):
            self.complain("I6", row.seq, "it names other accounts than its hold")
        whole = row.kind != POST or hold.commit_hash is not None
        if row.amount > hold.amount or (whole and row.amount != hold.amount):
            self.complain("I6", row.seq, f"{row.amount} of a hold of {hold.amount}")
        problem = self._end_problem(row, attached, hold)
        if problem is not None:
            self.complain("I6", row.seq, problem)
        self._check_end_instruction(row, attached)
        debit, credit = self.accounts[hold.debit], self.accounts[hold.credit]
        debit.debits_pending -= hold.amount
        credit.credits_pending -= hold.amount
        self.report.supply.held -= hold.amount
        unspent = hold.amount
        if row.kind == POST:
            self._post(self.accounts[row.debit], self.accounts[row.credit], row.amount)
            unspent -= row.amount
        if hold.day == self.day == debit.day:
            debit.spent_day -= unspent
        if hold.year == self.year == debit.year:
            debit.spent_year -= unspent
        self.report.proved["holds ended once"] += 1

    def _end_problem(self, row: TransferRow, attached: Attached, hold: Hold) -> str | None:
        is_due = hold.expires_at != 0 and hold.expires_at <= self.booked_at
        if row.kind == EXPIRE:
            own_id = derive_uuid8(UUID(bytes=row.hold), "expire").bytes
            return None if is_due and row.id == own_id else "the hold expired before its time"
        if row.kind == POST and is_due:
            return "the hold was posted after its expiry"
        if hold.commit_hash is None:
            owner = self.accounts[hold.credit].participant
            return None if row.submitter == owner else f"participant {row.submitter} ended a hold for {owner}"
        secret = attached.evidence.get(SECRET)
        wanted = hold.commit_hash if row.kind == POST else hold.abort_hash
        if secret is None or hashlib.sha256(secret).digest() != wanted:
            return "the secret kept with it is not the pre-image of the hold's hash"
        self.report.proved["secrets"] += 1
        return None

    def _check_end_instruction(self, row: TransferRow, attached: Attached) -> None:
        """An end may come as an instruction, though the secret is what gives it effect: its signature must hold."""
        token = attached.evidence.get(INSTRUCTION)
        if token is None:
            return
        try:
            signer = self.accounts[parse_account(documents.debit_of_instruction(token))]
        except (ValueError, KeyError) as error:
            self.complain("I8", row.seq, f"its instruction names no account that could sign: {error}")
            return
        owner = self.participants.get(signer.participant)
        key = signer.key if signer.kind == WALLET else owner.key if owner is not None else None
        if key is not None:
            self._verify_later(row, attached, token, key)

    def _entomb(self, row: TransferRow, attached: Attached) -> None:
        """The void of a hold that had not arrived. Moves nothing."""
        stone, attached.tombstone = attached.tombstone, None
        if (row.debit, row.credit, row.amount) != (0, 0, 0):
            self.complain("I1", row.seq, "a tombstone moves money")
        if stone is None or (stone.hold, stone.transfer) != (row.hold, row.id):
            self.complain("I6", row.seq, "the tombstone has no row of its own in hold_tombstone")
            return
        secret = attached.evidence.get(SECRET)
        guard = hashlib.sha256(secret).digest() if secret is not None else row.submitter.to_bytes(4, "big", signed=True)
        if stone.guard != guard:
            self.complain("I6", row.seq, "the tombstone's guard is not of who submitted it")
        if stone.hold in self.holds:
            self.complain("I6", row.seq, f"a tombstone for {show('trf', UUID(bytes=stone.hold))}, which is open")
        self.tombstones.add((stone.hold, stone.guard))
        self._check_end_instruction(row, attached)
        self.report.proved["tombstones"] += 1

    # --- at the end of a block, and of all

    def check_supply(self, *, in_full: bool = False) -> None:
        """I2 by the running total of the holders' balances; `in_full` adds up every account anew (and I1, I6)."""
        supply = self.report.supply
        if self.holders_total != supply.circulation:
            self.complain(
                "I2", None, f"issued - redeemed is {supply.circulation}, the holders have {self.holders_total}"
            )
        if not in_full:
            return
        totals = {ISSUANCE: 0, VAULT: 0, WALLET: 0}
        pending = 0
        for account in self.accounts.values():
            totals[account.kind] = totals.get(account.kind, 0) + account.balance
            pending += account.debits_pending
        supply.vaults, supply.wallets = totals[VAULT], totals[WALLET]
        if supply.vaults + supply.wallets != supply.circulation or -totals[ISSUANCE] != supply.circulation:
            self.complain("I2", None, "issued - redeemed = vaults + wallets does not hold in the end")
        if pending != supply.held or pending != sum(hold.amount for hold in self.holds.values()):
            self.complain("I6", None, "the accounts' pending totals are not the sum of the open holds")


def _caps(item: Mapping[str, Any]) -> Caps:
    def cap(name: str) -> int:
        value = item.get(name)
        return AMOUNT_MINOR_MAX if value is None else parse_minor(value)

    return Caps(cap("balance_max_minor"), cap("single_max_minor"), cap("day_max_minor"), cap("year_max_minor"))
