"""The books, kept again from nothing: participants, caps, holds and mandates, one transfer at a time in plain Python.

Every rule that the engine must obey is asked of what it booked. A transfer that breaks one is reported and its effect
applied all the same, so that what follows is judged by what the journal says. `replay` decides most plain transfers by
arrays; whatever that cannot clear comes here, and this page is what counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from kernel.clock import from_micros
from kernel.crypto.keys import PublicKey
from kernel.ids import derive_uuid8, parse, parse_account, show
from kernel.money import AMOUNT_MINOR_MAX, parse_minor
from ledger.verifier import changes, documents
from ledger.verifier.accounts import (
    CREDITS_PENDING,
    CREDITS_POSTED,
    DEBITS_PENDING,
    DEBITS_POSTED,
    SPENT_DAY,
    SPENT_YEAR,
    Accounts,
    TotalOverflow,
)
from ledger.verifier.documents import InstructionCheck, Mandate, Terms, Unproven
from ledger.verifier.layout import (
    ADJUSTMENT,
    ENDS,
    EXPIRE,
    HOLD,
    INSTRUCTION,
    ISSUANCE,
    ISSUANCE_ACCOUNT,
    ISSUE,
    JOINS,
    KINDS,
    MANDATE,
    MANDATED,
    OFFLINE,
    OPENED,
    POST,
    REDEEM,
    SAME_OWNER,
    SECRET,
    SPENDING,
    TOMBSTONE_KIND,
    VAULT,
    WALLET,
)
from ledger.verifier.report import Report

RULE_CLASSES_MAX = 60_000


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
    key: bytes
    """As `documents.encode_key` has it."""
    quota: int
    outstanding: int = 0
    """Issued to it less redeemed by it."""


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


class TransferRow(NamedTuple):
    """One journal record as plain values; nil uuids are 16 zero bytes."""

    seq: int
    id: bytes
    kind: int
    debit: int
    credit: int
    amount: int
    hold: bytes
    submitter: int
    record: bytes


class HoldEvent(NamedTuple):
    phase: int
    hold: bytes
    transfer: bytes
    kind: int
    commit_hash: bytes | None
    abort_hash: bytes | None
    expires_at: int | None


class Tombstone(NamedTuple):
    hold: bytes
    transfer: bytes
    guard: bytes


@dataclass(slots=True)
class Attached:
    """What the journal keeps beside one transfer."""

    evidence: dict[int, bytes] = field(default_factory=dict)
    placed: HoldEvent | None = None
    ended: HoldEvent | None = None
    tombstone: Tombstone | None = None


class Order(NamedTuple):
    """What a mandate of the block wants booked."""

    directive: int
    action: Mapping[str, Any]


Complain = Callable[[str, int | None, str], None]
"""(rule, seq, message)"""


class Book:
    def __init__(self, report: Report, complain: Complain, verify: Callable[[InstructionCheck], None]) -> None:
        self.report = report
        self.supply = report.supply
        self.complain = complain
        self._verify = verify
        """Takes an instruction's signature to be verified, at once or later."""
        self.zone: Any = ZoneInfo("UTC")
        self.accounts = Accounts()
        self.openings: list[npt.NDArray[np.void]] = []
        """Opening ids of all accounts, by page."""
        self.participants: dict[int, Participant] = {}
        self.number_of: dict[str, int] = {}
        self.operators: dict[str, PublicKey] = {}
        self.makers: dict[str, PublicKey] = {}
        """Every key that ever could propose: a participant may have rotated its key since it proposed."""
        self.maker_of: dict[str, int] = {}
        self.approvals_needed = 0
        self.key_recovery_seconds = 0
        self.class_code: dict[str, int] = {"none": 0}
        self.caps: list[Caps] = [Caps()]
        self.mandates: set[UUID] = set()
        self.holds: dict[bytes, Hold] = {}
        self.tombstones: set[tuple[bytes, bytes]] = set()
        self.booked_at = 0
        self.day = 0
        self.year = 0
        self._day_ends_at = -(2**63)

    # --- time

    def is_next_day(self, booked_at: int) -> bool:
        """Would `begin` start another day of the caps?"""
        return booked_at >= self._day_ends_at

    def begin(self, booked_at: int) -> None:
        """A block's time. Raises ValueError, OverflowError for one that is no time."""
        self.booked_at = booked_at
        if not self.is_next_day(booked_at):
            return
        local = from_micros(booked_at).astimezone(self.zone)
        day, year = local.date().toordinal(), local.year
        if day != self.day:
            self.accounts.start_day()
        if year != self.year:
            self.accounts.start_year()
        self.day, self.year = day, year
        # asked again each quarter of an hour: zones have no finer steps, whatever their rules for summer are
        self._day_ends_at = (booked_at // 900_000_000 + 1) * 900_000_000

    # --- directives and accounts

    def order(self, number: int, kind: str, mandate_id: bytes | None, body: bytes) -> Order | None:
        """Check a directive's signatures and apply it. Returns what it wants booked, if it moves money."""
        try:
            if number == 1:
                self._genesis(kind, mandate_id, body)
                return None
            if kind == changes.KIND:
                self._change(mandate_id, body)
                return None
            mandate = documents.verify_mandate(
                body,
                ledger=self.report.ledger,
                operators=self.operators,
                makers=self.makers | self.operators,
                approvals_needed=self.approvals_needed,
            )
            self._check_mandate(kind, mandate_id, mandate)
            self.report.proved["approvals of mandates"] += mandate.approvals
            self.report.proved["mandates"] += 1
            action = mandate.action
            if action["action"] in ("issue", "redeem", "adjustment"):
                return Order(number, action)
            self._apply(action)
        except Unproven as error:
            self.complain("I8", None, f"directive {number}: {error}")
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            self.complain("I8", None, f"directive {number} cannot be read: {type(error).__name__}: {error}")
        return None

    def _genesis(self, kind: str, mandate_id: bytes | None, body: bytes) -> None:
        self.report.genesis_sha256 = hashlib.sha256(body).hexdigest()
        document = documents.canonical(body)
        if (document["kind"], kind, mandate_id) != ("genesis", "genesis", None):
            raise Unproven("the first directive is not genesis")
        self.report.ledger, self.report.currency = str(document["ledger"]), str(document["currency"])
        self.zone = ZoneInfo(document["time_zone"])
        self._day_ends_at = -(2**63)
        self.begin(self.booked_at)
        self.approvals_needed = document["approvals_needed"]
        self.key_recovery_seconds = int(document["key_recovery_seconds"])
        for operator in document["operators"]:
            key = PublicKey.from_jwk(operator["key"])
            self.operators[key.thumbprint] = key
            self.report.operators.append((operator["name"], key.thumbprint))
        for rule_class in document["rule_classes"]:
            self._set_class(rule_class)
        self.accounts.open(kind=ISSUANCE, participant=0, rule_class=0)

    def _change(self, order_id: bytes | None, body: bytes) -> None:
        change = changes.read_change(
            body,
            ledger=self.report.ledger,
            booked_at=self.booked_at,
            accounts=self.accounts,
            institution_key={number: participant.key for number, participant in self.participants.items()},
        )
        wanted = changes.order_id(change.id)
        if order_id != wanted:
            raise Unproven("its row names another change than its document")
        if UUID(bytes=wanted) in self.mandates:
            raise Unproven("its id has changed an account before")
        self.mandates.add(UUID(bytes=wanted))
        changes.apply(
            change,
            self.accounts,
            class_code=self.class_code,
            booked_at=self.booked_at,
            key_recovery_seconds=self.key_recovery_seconds,
        )
        self.report.proved["account changes"] += 1
        self.report.proved["consents of holders"] += change.has_consent

    def _check_mandate(self, kind: str, mandate_id: bytes | None, mandate: Mandate) -> None:
        action = mandate.action
        if kind != action["action"] or mandate_id != mandate.id.bytes:
            raise Unproven("its row names another kind or mandate than its proposal")
        if mandate.id in self.mandates:
            raise Unproven("its mandate has acted before")
        self.mandates.add(mandate.id)
        if mandate.maker not in self.operators:
            vault = parse_account(action["vault"]) if "vault" in action else 0
            owner = int(self.accounts.participant[vault]) if self.accounts.exists(vault) else None
            if owner is None or owner != self.maker_of[mandate.maker]:
                raise Unproven("a participant proposed what is not its own to propose")

    def _apply(self, action: Mapping[str, Any]) -> None:
        match action["action"]:
            case "register-participant":
                if action["participant"] in self.number_of:
                    raise Unproven("it registers a participant again")
                number = len(self.participants) + 1
                key = PublicKey.from_jwk(action["key"])
                self.participants[number] = Participant(
                    number,
                    action["participant"],
                    action["role"],
                    documents.encode_key(key),
                    parse_minor(action["quota_minor"]),
                )
                self.number_of[action["participant"]] = number
                self._may_propose(key, number)
            case "rotate-participant-key":
                participant = self.participants[self.number_of[action["participant"]]]
                key = PublicKey.from_jwk(action["key"])
                participant.key = documents.encode_key(key)
                self._may_propose(key, participant.number)
            case "set-quota":
                participant = self.participants[self.number_of[action["participant"]]]
                participant.quota = parse_minor(action["quota_minor"])
            case "freeze" | "unfreeze":
                account = parse_account(action["account"])
                if not self.accounts.exists(account) or account == ISSUANCE_ACCOUNT:
                    raise Unproven(f"it names account {account}, which is no holder's")
                self.accounts.frozen[account] = action["action"] == "freeze"
            case "set-rule-class":
                self._set_class(action["rule_class"])
            case unknown:
                raise Unproven(f"{unknown!r} is no action that this verifier knows")

    def _set_class(self, item: Mapping[str, Any]) -> None:
        caps = _caps(item)
        code = self.class_code.setdefault(item["name"], len(self.caps))
        if code == len(self.caps):
            if code >= RULE_CLASSES_MAX:
                raise Unproven("there are too many rule classes")
            self.caps.append(caps)
        else:
            self.caps[code] = caps

    def _may_propose(self, key: PublicKey, number: int) -> None:
        self.makers[key.thumbprint] = key
        self.maker_of[key.thumbprint] = number

    def open(self, number: int, kind: int, participant: int, rule_class: bytes, key: bytes | None) -> None:
        """The next account. What cannot be is reported, and the account opened so that the numbers stay right."""
        owner = self.participants.get(participant)
        code = self.class_code.get(rule_class.decode("utf-8", "replace"))
        if owner is None or code is None or kind not in OPENED:
            self.complain("I8", None, f"account {number} is of no known participant, class or kind")
        elif kind != VAULT and owner.role != "intermediary":
            self.complain("I8", None, f"account {number} is no vault, at a {owner.role} participant")
        if kind == WALLET:
            try:
                documents.holder_key(key or b"")
            except ValueError as error:
                self.complain("I8", None, f"account {number}: {error}")
        elif key is not None:
            self.complain("I8", None, f"account {number} is no wallet and has a holder's key")
        kept = key if key is not None and len(key) <= 34 else None
        self.accounts.open(
            kind=kind if kind in OPENED else VAULT, participant=participant, rule_class=code or 0, key=kept
        )

    def open_page(self, kinds: npt.NDArray[Any], participants: npt.NDArray[Any], name: bytes, keys: Any | None) -> bool:
        """The same of many that are alike: one class, all with keys of one form (rows of bytes) or all without. False
        if they are not in order as one, and nothing was done: then each has to be looked at.

        Whether a P-256 key is a point of its curve is not asked here: one that is not verifies no signature."""
        code = self.class_code.get(name.decode("utf-8", "replace"))
        owners = [self.participants.get(number) for number in np.unique(participants).tolist()]
        kind = VAULT if keys is None else WALLET
        if code is None or (kinds != kind).any() or any(owner is None for owner in owners):
            return False
        if keys is not None:
            suite = {33: 1, 34: 2}.get(keys.shape[1])
            if suite is None or (keys[:, 0] != suite).any():
                return False
            if any(owner is not None and owner.role != "intermediary" for owner in owners):
                return False
        self.accounts.open_page(kinds, participants, code, keys)
        return True

    # --- transfers

    def book(self, row: TransferRow, attached: Attached, ordered: Order | None) -> None:
        """One transfer, in seq order. `ordered` is what a mandate of the same block wants booked."""
        if row.kind == TOMBSTONE_KIND:
            self._entomb(row, attached)
            return
        if row.kind >= len(KINDS):
            self.complain("I1", row.seq, f"no kind of transfer has the code {row.kind}")
            return
        accounts = self.accounts
        both = accounts.exists(row.debit) and accounts.exists(row.credit)
        if not both or row.debit == row.credit or not 0 < row.amount <= AMOUNT_MINOR_MAX:
            self.complain("I1", row.seq, "it needs two different accounts that exist and a positive amount")
            return
        self.report.booked[KINDS[row.kind]] += row.amount
        try:
            if row.kind in ENDS:
                self._end(row, attached)
            else:
                self._check_new(row, attached, ordered)
                self._move(row, attached)
        except TotalOverflow as error:
            self.complain("I3", row.seq, str(error))
        if accounts.kind[row.debit] != ISSUANCE and accounts.available(row.debit) < 0:
            self.complain("I3", row.seq, f"account {row.debit} has {accounts.available(row.debit)} available")

    def _check_new(self, row: TransferRow, attached: Attached, ordered: Order | None) -> None:
        """Everything but the payer's funds, against the state before the transfer."""
        accounts, kind = self.accounts, row.kind
        debit_kind, credit_kind = int(accounts.kind[row.debit]), int(accounts.kind[row.credit])
        payer_owner, payee_owner = int(accounts.participant[row.debit]), int(accounts.participant[row.credit])
        same_owner = kind not in SAME_OWNER or payer_owner == payee_owner
        if (debit_kind, credit_kind) not in JOINS[kind] or not same_owner:
            self.complain("I1", row.seq, f"{KINDS[kind]} does not join accounts {row.debit} and {row.credit}")
        self._check_authority(row, attached, ordered)
        if SECRET in attached.evidence:
            self.complain("I8", row.seq, f"a secret kept with a {KINDS[kind]}, which takes none")
        if accounts.closed[row.debit] or accounts.closed[row.credit]:
            self.complain("freeze", row.seq, "it moves money of or to a closed account")
        if kind == ADJUSTMENT:
            return
        if accounts.suspended[row.debit]:
            self.complain("freeze", row.seq, "it moves money of a suspended account")
        if accounts.frozen[row.debit] or accounts.frozen[row.credit]:
            self.complain("freeze", row.seq, "it moves money of or to a frozen account")
        if kind == ISSUE:
            participant = self.participants.get(payee_owner)
            if participant is None or participant.role != "intermediary":
                self.complain("quota", row.seq, "issued to a vault that is no intermediary's")
            elif participant.outstanding + row.amount > participant.quota:
                self.complain("quota", row.seq, f"issued beyond the quota of {participant.code}")
            else:
                self.report.proved["quotas"] += 1
        if kind in SPENDING:
            caps = self.caps[accounts.rule_class[row.debit]]
            for name, value, cap in (
                ("one payment", row.amount, caps.single_max),
                ("a day", accounts.total(SPENT_DAY, row.debit) + row.amount, caps.day_max),
                ("a year", accounts.total(SPENT_YEAR, row.debit) + row.amount, caps.year_max),
            ):
                if value > cap:
                    self.complain("I9", row.seq, f"{value} is above the cap of {cap} for {name}, account {row.debit}")
            self.report.proved["caps of payments"] += 1
        balance_max = self.caps[accounts.rule_class[row.credit]].balance_max
        holding = accounts.balance(row.credit) + accounts.total(CREDITS_PENDING, row.credit) + row.amount
        if holding > balance_max:
            self.complain("I9", row.seq, f"account {row.credit} holds {holding}, its class at most {balance_max}")
        own = accounts.own_cap(row.credit)
        if own is not None and holding > own:
            self.complain("I9", row.seq, f"account {row.credit} holds {holding}, by its own cap at most {own}")

    def _check_authority(self, row: TransferRow, attached: Attached, ordered: Order | None) -> None:
        """I8: a mandate's transfer has its directive, a wallet's its holder's instruction, a vault's its owner."""
        evidence = attached.evidence
        if row.kind in MANDATED:
            problem = self._mandate_problem(row, evidence, ordered)
            if problem is not None:
                self.complain("I8", row.seq, problem)
            return
        if MANDATE in evidence:
            self.complain("I8", row.seq, "evidence of a mandate on a transfer that needs none")
        token = evidence.get(INSTRUCTION)
        owner = int(self.accounts.participant[row.debit])
        is_wallet = self.accounts.kind[row.debit] == WALLET
        if token is not None:
            self._check_instruction(row, attached, token, row.debit)
        elif is_wallet:
            self.complain("I8", row.seq, f"wallet {row.debit} is debited without its holder's instruction")
        elif self.accounts.kind[row.debit] in (VAULT, OFFLINE) and row.submitter == owner:
            self.report.proved["vault debits by their institution"] += 1
        else:
            self.complain("I8", row.seq, f"account {row.debit} is debited by participant {row.submitter}")

    def owner_key(self, account: int, token: bytes) -> bytes | None:
        """The key whose signature moves an account: its holder's (with several devices the one that the token names),
        or its institution's as of now."""
        if self.accounts.kind[account] == WALLET:
            first = self.accounts.holder_key(account)
            if account not in self.accounts.more_keys:
                return first
            try:
                return documents.named_key(token.decode("ascii"), self.accounts.holder_keys(account)) or first
            except ValueError:  # no token at all: with any key it does not verify
                return first
        participant = self.participants.get(int(self.accounts.participant[account]))
        return participant.key if participant is not None else None

    def _check_instruction(
        self, row: TransferRow, attached: Attached, token: bytes, account: int, *, is_end: bool = False
    ) -> None:
        key = self.owner_key(account, token)
        if key is None:
            self.complain("I8", row.seq, f"account {account} has no key that could have signed")
            return
        terms: Terms | None = None
        if attached.placed is not None:
            placed = attached.placed
            terms = (placed.commit_hash, placed.abort_hash, placed.expires_at or 0)
        self._verify(InstructionCheck(row.seq, row.record, token, key, terms, is_end))

    def _mandate_problem(self, row: TransferRow, evidence: Mapping[int, bytes], ordered: Order | None) -> str | None:
        number = evidence.get(MANDATE)
        if ordered is None or number is None or number != ordered.directive.to_bytes(8, "big"):
            return f"{KINDS[row.kind]} without a valid mandate of its own in its block"
        if INSTRUCTION in evidence or row.submitter != 0 or row.record[49:81] != bytes(32):
            return "a mandate's transfer has no submitter, instruction, hold or reference"
        action = ordered.action
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

    def _move(self, row: TransferRow, attached: Attached) -> None:
        if row.kind == HOLD:
            self._place(row, attached)
        else:
            self._post(row.debit, row.credit, row.amount)
        if row.kind in SPENDING:
            self.accounts.add(SPENT_DAY, row.debit, row.amount)
            self.accounts.add(SPENT_YEAR, row.debit, row.amount)
        if row.kind in (ISSUE, REDEEM):
            is_issue = row.kind == ISSUE
            owner = int(self.accounts.participant[row.credit if is_issue else row.debit])
            participant = self.participants.get(owner)
            if participant is not None:
                participant.outstanding += row.amount if is_issue else -row.amount
            if is_issue:
                self.supply.issued += row.amount
            else:
                self.supply.redeemed += row.amount

    def _post(self, debit: int, credit: int, amount: int) -> None:
        """I1: the same amount on both sides."""
        accounts, supply = self.accounts, self.supply
        accounts.add(DEBITS_POSTED, debit, amount)
        accounts.add(CREDITS_POSTED, credit, amount)
        for account, delta in ((debit, -amount), (credit, amount)):
            if accounts.kind[account] == VAULT:
                supply.vaults += delta
            elif accounts.kind[account] == WALLET:
                supply.wallets += delta
            elif accounts.kind[account] == OFFLINE:
                supply.offline += delta

    # --- holds

    def _place(self, row: TransferRow, attached: Attached) -> None:
        event, attached.placed = attached.placed, None
        if event is None or (event.hold, event.transfer, event.kind) != (row.id, row.id, HOLD):
            self.complain("I6", row.seq, "the hold has no terms of its own")
            commit, abort, expires_at = None, None, 0
        else:
            commit, abort, expires_at = event.commit_hash, event.abort_hash, event.expires_at or 0
            is_conditional = commit is not None and abort is not None and commit != abort
            if not is_conditional and (commit is not None or abort is not None or expires_at == 0):
                self.complain("I6", row.seq, "a hold needs either an expiry or two different hashes")
            if event.expires_at is not None and expires_at <= self.booked_at:
                self.complain("I6", row.seq, "the hold had expired when it was placed")
            balance_max = self.caps[self.accounts.rule_class[row.credit]].balance_max
            is_capped = balance_max != AMOUNT_MINOR_MAX or self.accounts.own_cap(row.credit) is not None
            if expires_at == 0 and is_capped:
                self.complain("I6", row.seq, "a hold for ever fills its payee's cap for ever")
        owner = int(self.accounts.participant[row.credit])
        guard = abort if abort is not None else owner.to_bytes(4, "big", signed=True)
        if (row.id, guard) in self.tombstones:
            self.complain("I6", row.seq, "the hold was placed after its void: a tombstone should have kept it out")
        self.accounts.add(DEBITS_PENDING, row.debit, row.amount)
        self.accounts.add(CREDITS_PENDING, row.credit, row.amount)
        self.supply.held += row.amount
        self.holds[row.id] = Hold(row.debit, row.credit, row.amount, commit, abort, expires_at, self.day, self.year)
        self.report.proved["holds placed"] += 1

    def _end(self, row: TransferRow, attached: Attached) -> None:
        """I6. Freezes and caps were asked when the hold was placed."""
        event, attached.ended = attached.ended, None
        wanted = HoldEvent(1, row.hold, row.id, row.kind, None, None, None)
        if event != wanted:
            self.complain("I6", row.seq, f"the {KINDS[row.kind]} has no event of its own in hold_event")
        hold = self.holds.pop(row.hold, None)
        if hold is None:
            self.complain("I6", row.seq, f"the {KINDS[row.kind]} ends a hold that is not open")
            if row.kind == POST:
                self._post(row.debit, row.credit, row.amount)
            return
        if self.accounts.closed[row.debit] or self.accounts.closed[row.credit]:
            self.complain("freeze", row.seq, "it moves money of or to a closed account")
        if (row.debit, row.credit) != (hold.debit, hold.credit):
            self.complain("I6", row.seq, "it names other accounts than its hold")
        whole = row.kind != POST or hold.commit_hash is not None
        if row.amount > hold.amount or (whole and row.amount != hold.amount):
            self.complain("I6", row.seq, f"{row.amount} of a hold of {hold.amount}")
        problem = self._end_problem(row, attached, hold)
        if problem is not None:
            self.complain("I6", row.seq, problem)
        self._check_end_instruction(row, attached)
        accounts = self.accounts
        accounts.add(DEBITS_PENDING, hold.debit, -hold.amount)
        accounts.add(CREDITS_PENDING, hold.credit, -hold.amount)
        self.supply.held -= hold.amount
        unspent = hold.amount
        if row.kind == POST:
            self._post(row.debit, row.credit, row.amount)
            unspent -= row.amount
        if hold.day == self.day:
            accounts.add(SPENT_DAY, hold.debit, -unspent)
        if hold.year == self.year:
            accounts.add(SPENT_YEAR, hold.debit, -unspent)
        self.report.proved["holds ended once"] += 1

    def _end_problem(self, row: TransferRow, attached: Attached, hold: Hold) -> str | None:
        evidence = attached.evidence
        if MANDATE in evidence:
            return "evidence of a mandate on a transfer that needs none"
        is_due = hold.expires_at != 0 and hold.expires_at <= self.booked_at
        if row.kind == EXPIRE:
            own_id = derive_uuid8(UUID(bytes=row.hold), "expire").bytes
            if not is_due or row.id != own_id:
                return "the hold expired before its time"
            return "an expiry is the ledger's own doing" if evidence or row.submitter else None
        if row.kind == POST and is_due:
            return "the hold was posted after its expiry"
        secret = evidence.get(SECRET)
        if hold.commit_hash is None:
            owner = int(self.accounts.participant[hold.credit])
            if secret is not None or INSTRUCTION in evidence:
                return "a plain hold is ended by the payee's institution, with neither secret nor instruction"
            return None if row.submitter == owner else f"participant {row.submitter} ended a hold for {owner}"
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
            account = int(parse_account(documents.debit_of_instruction(token)))
        except ValueError as error:
            self.complain("I8", row.seq, f"its instruction names no account that could sign: {error}")
            return
        if not self.accounts.exists(account):
            self.complain("I8", row.seq, f"its instruction is of account {account}, which is not there")
            return
        self._check_instruction(row, attached, token, account, is_end=True)

    def _entomb(self, row: TransferRow, attached: Attached) -> None:
        """The void of a hold that had not arrived. Moves nothing."""
        stone, attached.tombstone = attached.tombstone, None
        if (row.debit, row.credit, row.amount) != (0, 0, 0):
            self.complain("I1", row.seq, "a tombstone moves money")
        if stone is None or (stone.hold, stone.transfer) != (row.hold, row.id):
            self.complain("I6", row.seq, "the tombstone has no row of its own in hold_tombstone")
            return
        if MANDATE in attached.evidence or row.submitter not in self.participants:
            self.complain("I6", row.seq, "only a known participant can leave a tombstone")
        secret = attached.evidence.get(SECRET)
        guard = hashlib.sha256(secret).digest() if secret is not None else row.submitter.to_bytes(4, "big", signed=True)
        if stone.guard != guard:
            self.complain("I6", row.seq, "the tombstone's guard is not of who submitted it")
        if stone.hold in self.holds:
            self.complain("I6", row.seq, f"a tombstone for {show('trf', UUID(bytes=stone.hold))}, which is open")
        if (stone.hold, stone.guard) in self.tombstones:
            self.complain("I6", row.seq, "the second tombstone of one hold and guard")
        self.tombstones.add((stone.hold, stone.guard))
        self._check_end_instruction(row, attached)
        self.report.proved["tombstones"] += 1

    # --- at the end

    def check_supply(self) -> None:
        """I2, I1 and I6 once more, every account added up anew."""
        supply = self.supply
        balances, pending = self.accounts.sums()
        by_kind = (balances[VAULT], balances[WALLET], balances[OFFLINE])
        if (supply.vaults, supply.wallets, supply.offline) != by_kind:
            self.complain("I2", None, "the running totals are not the sums of the balances")
        if sum(by_kind) != supply.circulation or -balances[ISSUANCE] != supply.circulation:
            self.complain("I2", None, "issued - redeemed = vaults + wallets + offline does not hold in the end")
        if pending != supply.held or pending != sum(hold.amount for hold in self.holds.values()):
            self.complain("I6", None, "the accounts' pending totals are not the sum of the open holds")


def _caps(item: Mapping[str, Any]) -> Caps:
    def cap(name: str) -> int:
        value = item.get(name)
        return AMOUNT_MINOR_MAX if value is None else parse_minor(value)

    return Caps(cap("balance_max_minor"), cap("single_max_minor"), cap("day_max_minor"), cap("year_max_minor"))
