"""Account statements: what happened on one account between two moments, as camt.053 carries it.

Balances are signed minor units from the account owner's view: positive = credit balance. Amounts of entries are
`Money` and never
negative; their direction says credit or debit of *this* account. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from enum import StrEnum
from uuid import UUID

from kernel.errors import Refusal
from kernel.ids import ParticipantId
from kernel.money import Currency, Money

NOT_PROVIDED = "NOTPROVIDED"
NO_IDS = frozenset({"", NOT_PROVIDED, "NOT PROVIDED", "NONREF", "NONE", "N/A", "UNKNOWN"})
"""What senders without an end-to-end id write, in whatever case (NONREF is the MT statements'); it identifies
nothing: two payments that carry it are two payments."""


def is_id(text: str | None) -> bool:
    """Whether an end-to-end id tells a payment from others."""
    return text is not None and (not text.isascii() or text.upper() not in NO_IDS)


EARLIEST, LATEST = date(1900, 1, 1), date(2199, 12, 31)
"""Value dates and booking times lie between these: what is beyond them is a mistake, and time zones, cut-offs and ages
can be reckoned with everything within."""


class StatementRefusal(Refusal):
    """Every way a statement file is refused, in order of precedence."""

    FILE_TOO_LARGE = "file-too-large", False, "The file is larger than this service takes."
    ENCODING_NOT_UTF8 = "encoding-not-utf8", False, "The file is not UTF-8."
    DOCTYPE_FORBIDDEN = "doctype-forbidden", False, "An ISO 20022 message has no DOCTYPE and declares no entities."
    NOT_XML = "not-xml", False, "The file is not well-formed XML."
    WRONG_NAMESPACE = "wrong-namespace", False, "The file is another message or version than the one expected."
    SCHEMA_INVALID = "schema-invalid", False, "The file does not match the message's schema."
    PART_TOO_LARGE = (
        "part-too-large",
        False,
        "A part of the file is larger than any real one: an instruction, a header.",
    )
    TOO_MANY_ENTRIES = "too-many-entries", False, "The statement holds more entries than this service takes."
    TOO_MANY_STATEMENTS = (
        "too-many-statements",
        False,
        "The file holds more than one statement, and nothing says which is meant.",
    )
    PAGES_INCOMPLETE = "pages-incomplete", False, "The file is one page of several; send the statement whole."
    FIELD_MISSING = "field-missing", False, "A field that reconciliation needs is absent."
    CURRENCY_UNKNOWN = "currency-unknown", False, "The currency is not one of ISO 4217 that can be booked."
    AMOUNT_INVALID = "amount-invalid", False, "An amount does not fit its currency."
    DATE_INVALID = "date-invalid", False, "A date or moment cannot be placed in time without a guess."
    STATUS_UNKNOWN = "status-unknown", False, "An entry's status is none of BOOK, PDNG, FUTR and INFO."


class Direction(StrEnum):
    """Effect on the account's balance. Source: ISO 20022 CreditDebitCode."""

    CREDIT = "CRDT"
    DEBIT = "DBIT"

    @property
    def opposite(self) -> Direction:
        return Direction.DEBIT if self is Direction.CREDIT else Direction.CREDIT


class EntryStatus(StrEnum):
    """Source: ISO 20022 ExternalEntryStatus1Code. A pending entry is in no booked balance."""

    BOOKED = "BOOK"
    PENDING = "PDNG"
    """FUTR (booked in the future) is read as this."""
    INFORMATION = "INFO"
    """No booking at all: counted among a statement's entries, and none of its lines."""


@dataclass(frozen=True, slots=True)
class StatementEntry:
    """One line of a statement."""

    reference: str
    """The account servicer's reference, unique on the account: for our ledgers `reference_of(transfer id)`."""
    end_to_end_id: str | None
    uetr: UUID | None
    amount: Money
    direction: Direction
    booked_at: datetime
    value_date: date
    status: EntryStatus = EntryStatus.BOOKED
    counterparty: ParticipantId | None = None
    counterparty_account: str | None = None
    """As shown (`acc_...`), at most 34 characters."""
    group_reference: str | None = None
    """Of the bulk booking that the line is part of (ISO 20022 PmtInfId), if it names one."""
    account: str | None = None
    """The account that the line itself names, where a file mixes several."""
    instructed: Money | None = None
    """The amount before conversion, where the parties exchange it."""
    is_reversal: bool = False
    """It says of itself that it undoes an earlier booking (ISO 20022 RvslInd); its direction is its own."""
    parts: tuple[StatementEntry, ...] = ()
    """Of an entry that books several payments as one (batch booking): its payments. Only they are lines."""

    @property
    def signed_minor(self) -> int:
        """Effect on the balance in minor units: positive for a credit."""
        return self.amount.amount_minor if self.direction is Direction.CREDIT else -self.amount.amount_minor


@dataclass(frozen=True, slots=True)
class StatementSummary:
    """The totals a statement declares (TxsSummry) over all its entries, in minor units; None = not declared."""

    entry_count: int | None = None
    entry_sum_minor: int | None = None
    credit_count: int | None = None
    credit_sum_minor: int | None = None
    debit_count: int | None = None
    debit_sum_minor: int | None = None


@dataclass(frozen=True, slots=True)
class Statement:
    """One account, one currency, one period. `sequence_number` counts the account's statements without gaps; None of
    a counterparty that does not count them."""

    statement_id: str
    sequence_number: int | None
    account: str
    currency: Currency
    created_at: datetime
    from_at: datetime
    to_at: datetime
    opening_minor: int
    closing_minor: int
    entries: tuple[StatementEntry, ...]
    servicer: ParticipantId | None = None
    """Who keeps the account (the issuing central bank's ledger)."""
    summary: StatementSummary | None = None
    """As declared by whoever wrote the file; None for a statement that was made here."""
    page: int = 1
    """Of a statement in several files; its balances are those before and after this page's entries."""
    is_last_page: bool = True

    def with_entries(self, entries: Iterable[StatementEntry]) -> Statement:
        """The same statement with other entries, its closing balance following from them."""
        lines = tuple(entries)
        return replace(self, entries=lines, closing_minor=self.opening_minor + booked_net_minor(lines), summary=None)


def reference_of(transfer_id: UUID) -> str:
    """A transfer id as an ISO 20022 reference: 32 hexadecimal digits, since with hyphens (36) it exceeds Max35Text."""
    return transfer_id.hex


def transfer_id_of(reference: str) -> UUID:
    """The transfer id in a reference of ours. Raises ValueError for any other text."""
    if len(reference) != 32 or reference != reference.lower():
        raise ValueError("expected 32 lower-case hexadecimal digits")
    return UUID(hex=reference)


def lines_of(entries: Iterable[StatementEntry]) -> Iterator[StatementEntry]:
    """What is compared with the other side's lines: payments for the entry that books several of them as one."""
    for entry in entries:
        if entry.status is not EntryStatus.INFORMATION:
            yield from entry.parts or (entry,)


def booked_net_minor(entries: Sequence[StatementEntry]) -> int:
    """Signed effect of the booked entries on the balance, in minor units."""
    return sum(entry.signed_minor for entry in entries if entry.status is EntryStatus.BOOKED)


def summarise(entries: Sequence[StatementEntry]) -> StatementSummary:
    """The totals over all entries, pending ones included, as TxsSummry defines them."""
    credits = [entry.amount.amount_minor for entry in entries if entry.direction is Direction.CREDIT]
    debits = [entry.amount.amount_minor for entry in entries if entry.direction is Direction.DEBIT]
    return StatementSummary(
        entry_count=len(entries),
        entry_sum_minor=sum(credits) + sum(debits),
        credit_count=len(credits),
        credit_sum_minor=sum(credits),
        debit_count=len(debits),
        debit_sum_minor=sum(debits),
    )
