"""Settlement instructions: what a participant asks the bridge to settle, and every way a batch of them is refused.

An instruction is payment versus payment (PvP): the *debtor* pays `amount` to the *creditor* on the ledger of that
currency, and the creditor pays the counter amount back on the ledger of `counter_currency`; both or neither.

A batch is read whole or not at all: `Intake` takes raw lines from any reader (pacs.008, pacs.009, CSV), decides each,
and hands out instructions only if no line and no total was refused. A stream is decided line by line
(`decide_instruction`), and only its totals (`Totals`) refuse it whole. Pure: no I/O, no clock. Whether a value date is
still open is the calendar's question, and whether a participant exists is the participant register's; neither is asked
here.

Field rules beyond the schemas are those of the published CBPR+ conventions that matter for settlement: references in
the FIN X character set without `//` nor a slash at either end, an instruction's of at most 16 characters, names and
remittance in FIN X and its CBPR+ extension, a UETR always, LEIs with valid check digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from uuid import UUID

import msgspec

from kernel.errors import Refusal
from kernel.ids import ParticipantId, parse_participant
from kernel.money import Currency, Money
from settlement.domain.compliance import ComplianceData, find_fault

PROBLEMS_MAX = 100
"""A refused file is reported up to this many problems; the sender mends those first."""

AMOUNT_DIGITS_MAX = 18
"""ActiveCurrencyAndAmount has totalDigits 18: one digit less than a bigint, so a larger amount cannot be reported."""

REFERENCE_LENGTH_MAX = 35
"""Max35Text."""

INSTRUCTION_ID_LENGTH_MAX = 16
"""Of an InstrId under CBPR+, for whoever turns it into field 20 of a FIN message."""

CURRENCIES_MAX = 300
"""More than ISO 4217 has: a hostile file's made-up codes are not collected without end."""

KEPT_MAX = 1_024
"""A file's lines share a few currencies and dates: what was made of so many texts is kept."""

REASON_LENGTH_MAX = 300
"""A reason quotes the sender's text, so it is cut: a hostile file must not become a hostile answer."""

_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9/?:().,'+ -]{0,34}(?<! )", re.ASCII)
_UETR = re.compile(r"[a-f0-9]{8}-[a-f0-9]{4}-[47][a-f0-9]{3}-[89ab][a-f0-9]{3}-[a-f0-9]{12}", re.ASCII)
_NOT_CBPR = re.compile(r"[^0-9a-zA-Z/\-?:().,'+ !#$%&*=^_`{|}~\";<>@\[\\\]\r\n]")
"""What is outside of FIN X and the extension that CBPR+ allows in names, addresses and remittance information."""
_LEI = re.compile(r"[A-Z0-9]{18}[0-9]{2}", re.ASCII)
_DECIMAL_AMOUNT = re.compile(r"([0-9]{1,30})(?:\.([0-9]{0,17}))?", re.ASCII)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_CURRENCY = re.compile(r"[A-Z]{3}", re.ASCII)
_AMOUNT = re.compile(r"(0|[1-9][0-9]*)(?:\.([0-9]+))?", re.ASCII)


class InstructionRefusal(Refusal):
    """Every way a batch or one of its lines is refused, in order of precedence: first the file, then lines, then
    totals."""

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
    APPLICATION_HEADER_INVALID = (
        "application-header-invalid",
        False,
        "The business application header does not agree with its document or with who sent it.",
    )
    SETTLEMENT_METHOD_UNSUPPORTED = (
        "settlement-method-unsupported",
        False,
        "This bridge settles by clearing: the settlement method must be CLRG.",
    )
    NUL_CHARACTER = "nul-character", False, "Text may not contain the NUL character."
    CSV_MALFORMED = "csv-malformed", False, "The line is not CSV as in RFC 4180 with as many fields as the header."
    CSV_COLUMN_DUPLICATE = "csv-column-duplicate", False, "The header names a column twice."
    CSV_COLUMN_UNKNOWN = "csv-column-unknown", False, "The header names a column that this service does not know."
    CSV_COLUMN_MISSING = "csv-column-missing", False, "The header lacks a required column."
    NO_INSTRUCTIONS = "no-instructions", False, "The file holds no instruction."
    TOO_MANY_INSTRUCTIONS = "too-many-instructions", False, "The file holds more instructions than one batch takes."
    FIELD_TOO_LONG = "field-too-long", False, "A field is longer than the standard lets it be."
    FORMULA_TEXT = "formula-text", False, "A CSV field may not begin like a spreadsheet formula."
    FIELD_MISSING = "field-missing", False, "A field that settlement needs is absent."
    REFERENCE_INVALID = (
        "reference-invalid",
        False,
        "A reference is 1 to 35 characters of the SWIFT X set, an instruction id at most 16.",
    )
    UETR_INVALID = "uetr-invalid", False, "A UETR is a lower-case UUID of version 4 (or 7, in CSV)."
    PARTICIPANT_INVALID = "participant-invalid", False, "A participant is named by a code in the shape of a BIC."
    LEI_INVALID = "lei-invalid", False, "The check digits of an LEI are wrong (ISO 17442, ISO 7064 MOD 97-10)."
    CHARACTER_NOT_ALLOWED = (
        "character-not-allowed",
        False,
        "A text has a character outside of FIN X and the CBPR+ extension.",
    )
    CUSTOMER_DATA_INVALID = "customer-data-invalid", False, "What is said of a customer is not in its standard's shape."
    CHARGE_BEARER_INVALID = "charge-bearer-invalid", False, "The charge bearer does not go with the charges."
    AGENT_UNSUPPORTED = "agent-unsupported", False, "Another agent than the two that settle here would pass it on."
    PARTICIPANTS_MUST_DIFFER = "participants-must-differ", False, "Debtor and creditor are the same participant."
    CURRENCY_UNKNOWN = "currency-unknown", False, "The currency is not one of ISO 4217 that can be booked."
    AMOUNT_INVALID = "amount-invalid", False, "An amount is digits with at most one decimal point, without sign."
    AMOUNT_TOO_MANY_DECIMALS = "amount-too-many-decimals", False, "The amount has more decimals than its currency."
    AMOUNT_ZERO = "amount-zero", False, "An amount of zero settles nothing."
    AMOUNT_TOO_LARGE = "amount-too-large", False, "The amount has more than the 18 digits that ISO 20022 can carry."
    COUNTER_TERMS_INVALID = "counter-terms-invalid", False, "The counter leg's terms cannot be read."
    COUNTER_CURRENCY_SAME = "counter-currency-same", False, "The counter currency must differ from the first leg's."
    VALUE_DATE_INVALID = (
        "value-date-invalid",
        False,
        "A value date is one calendar date YYYY-MM-DD without a time zone.",
    )
    PRIORITY_UNKNOWN = "priority-unknown", False, "A priority is URGT, HIGH or NORM."
    DUPLICATE_INSTRUCTION_ID = "duplicate-instruction-id", False, "An instruction id occurs twice in the file."
    DUPLICATE_UETR = "duplicate-uetr", False, "A UETR occurs twice in the file."
    MESSAGE_ID_REUSED = "message-id-reused", False, "The message id was used with other content."
    NUMBER_OF_TRANSACTIONS_MISMATCH = "nb-of-txs-mismatch", False, "NbOfTxs is not the number of transactions."
    CONTROL_SUM_MISMATCH = "control-sum-mismatch", False, "CtrlSum is not the sum of the amounts."
    TOTAL_AMOUNT_MISMATCH = "total-amount-mismatch", False, "TtlIntrBkSttlmAmt is not the total in one currency."


class Priority(StrEnum):
    """Order of settlement within a queue. Source: ISO 20022 Priority3Code."""

    URGENT = "URGT"
    HIGH = "HIGH"
    NORMAL = "NORM"


_PRIORITIES = {"": Priority.NORMAL} | {priority.value: priority for priority in Priority}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One PvP instruction. The counter leg is None until a quote fixes it, or as stated by the sender."""

    instruction_id: str
    """InstrId, at most 16 characters, unique within a batch; with its message id it names the instruction for ever."""
    end_to_end_id: str
    uetr: UUID
    """Unique end-to-end transaction reference, a UUID of version 4 or 7; both legs carry it."""
    debtor: ParticipantId
    creditor: ParticipantId
    amount: Money
    """The first leg: what the debtor pays."""
    counter_currency: Currency | None
    counter_amount: Money | None
    """The second leg: what the creditor pays. Given only if the parties agreed the rate outside the bridge."""
    value_date: date
    priority: Priority = Priority.NORMAL
    compliance: ComplianceData | None = None
    """Of a customer's payment: its ultimate parties. None for a payment between institutions on their own account."""


@dataclass(slots=True)
class RawInstruction:
    """One line as a reader found it: text, with "" for an absent field. Nothing in it is checked yet.

    Not frozen: it is made and left once a line, and a frozen one takes twice as long to make.
    """

    line: int
    """Line of the file, from 1; 0 if unknown."""
    instruction_id: str
    end_to_end_id: str
    uetr: str
    debtor: str
    creditor: str
    currency: str
    amount: str
    counter_currency: str
    counter_amount: str
    value_date: str
    priority: str
    compliance: ComplianceData | None = None
    charge_bearer: str = ""
    """ChrgBr of a pacs.008."""
    charges_stated: bool = False
    """ChrgsInf is there."""
    leis: Sequence[str] = ()
    texts: Sequence[tuple[str, str]] = ()
    """Names and remittance lines with what each is called, for the check of their characters."""
    other_ids: tuple[tuple[str, str], ...] = ()
    """Identifiers that settlement does not need (TxId, ClrSysRef) with their names: others' messages repeat them."""


@dataclass(frozen=True, slots=True)
class InstructionProblem:
    """One refusal with its place: `index` counts instructions from 1 (0 = the file as a whole), `line` lines of
    text."""

    refusal: InstructionRefusal
    index: int
    line: int
    reason: str

    def __str__(self) -> str:
        place = (
            f"instruction {self.index}, line {self.line}"
            if self.index
            else f"line {self.line}"
            if self.line
            else "file"
        )
        return f"{place}: {self.refusal.value}: {self.reason}"


@dataclass(frozen=True, slots=True)
class ReadResult:
    """A batch that was read. `instructions` is empty unless `problems` is: a batch is accepted whole or not at all."""

    message_id: str
    """MsgId of the file; "" for CSV, which has none."""
    instructions: tuple[Instruction, ...]
    problems: tuple[InstructionProblem, ...]
    problems_truncated: bool
    """More than PROBLEMS_MAX were found."""
    message: str = ""
    """The message's name and version; "" for CSV."""
    sender: ParticipantId | None = None
    """Fr of the business application header, if there is one."""
    receiver: ParticipantId | None = None
    """To of the same."""


@dataclass(frozen=True, slots=True)
class DeclaredTotals:
    """What a file says about itself; a None is not declared."""

    count: int | None = None
    control_sum: Fraction | None = None
    """Sum of all amounts in major units, irrespective of currency (CtrlSum)."""
    total: tuple[str, Fraction] | None = None
    """Currency code and amount in major units (TtlIntrBkSttlmAmt)."""


@dataclass(slots=True)
class Totals:
    """Number and exact sum of the amounts of a file's lines, whatever becomes of each line. Memory is constant.

    The sum is kept in units of 10**-17: as many decimals as a DecimalNumber has, so that it is an integer.
    """

    count: int = 0
    sum_scaled: int = 0
    unreadable: int = 0
    """Lines whose amount is no decimal number, or is absent."""
    codes: set[str] = field(default_factory=set)

    def add(self, amount: str, currency: str) -> None:
        self.count += 1
        match = _DECIMAL_AMOUNT.fullmatch(amount)
        if match is None:
            self.unreadable += 1
            return
        self.sum_scaled += int(match[1]) * 10**17 + int((match[2] or "").ljust(17, "0"))
        if len(self.codes) < CURRENCIES_MAX:
            self.codes.add(currency[:3])

    @property
    def control_sum(self) -> Fraction:
        return Fraction(self.sum_scaled, 10**17)

    def faults(self, declared: DeclaredTotals) -> list[tuple[InstructionRefusal, str]]:
        """Where the file does not hold what it declares."""
        found: list[tuple[InstructionRefusal, str]] = []
        if declared.count is not None and declared.count != self.count:
            reason = f"NbOfTxs says {declared.count}, the file holds {self.count}"
            found.append((InstructionRefusal.NUMBER_OF_TRANSACTIONS_MISMATCH, reason))
        beside = f", besides {self.unreadable} unreadable ones" if self.unreadable else ""
        holds = self.control_sum
        if declared.control_sum is not None and (declared.control_sum != holds or self.unreadable):
            reason = f"CtrlSum says {show_sum(declared.control_sum)}, the amounts add up to {show_sum(holds)}{beside}"
            found.append((InstructionRefusal.CONTROL_SUM_MISMATCH, reason))
        if declared.total is not None:
            code, amount = declared.total
            if sorted(self.codes) != [code] or amount != holds or self.unreadable:
                shown = f"{'+'.join(sorted(self.codes))} {show_sum(holds)}{beside}"
                reason = f"TtlIntrBkSttlmAmt says {code} {show_sum(amount)}, the file holds {shown}"
                found.append((InstructionRefusal.TOTAL_AMOUNT_MISMATCH, reason))
        return found


class Intake:
    """Collects the lines of one batch, and says at the end whether it is accepted.

    Memory is bounded by `instructions_max`: lines beyond it are refused and not kept.
    """

    def __init__(self, *, instructions_max: int, problems_max: int = PROBLEMS_MAX) -> None:
        self._instructions_max = instructions_max
        self._problems_max = problems_max
        self._instructions: list[Instruction] = []
        self._problems: list[InstructionProblem] = []
        self._truncated = False
        self._totals = Totals()
        self._index_by_instruction_id: dict[str, int] = {}
        self._index_by_uetr: dict[UUID, int] = {}

    @property
    def seen(self) -> int:
        """Lines taken so far, refused ones included."""
        return self._totals.count

    @property
    def is_full(self) -> bool:
        """Nothing that follows can change the answer: too many lines, or no room for another problem."""
        return self._truncated or self.seen > self._instructions_max

    def add(self, decided: Instruction | InstructionProblem, *, amount: str, currency: str, line: int) -> None:
        """One line that its reader decided, with the amount as written."""
        if self._count(amount, currency, line=line):
            self._take(decided, line=line)

    def _take(self, decided: Instruction | InstructionProblem, *, line: int) -> None:
        if isinstance(decided, InstructionProblem):
            self._append(decided)
            return
        for refusal, first, reason in (
            (
                InstructionRefusal.DUPLICATE_INSTRUCTION_ID,
                self._index_by_instruction_id.setdefault(decided.instruction_id, self.seen),
                f"{decided.instruction_id} was already instruction",
            ),
            (
                InstructionRefusal.DUPLICATE_UETR,
                self._index_by_uetr.setdefault(decided.uetr, self.seen),
                f"{decided.uetr} was already in instruction",
            ),
        ):
            if first != self.seen:
                self._append(InstructionProblem(refusal, self.seen, line, f"{reason} {first}"))
                return
        self._instructions.append(decided)

    def _count(self, amount: str, currency: str, *, line: int) -> bool:
        """One line more; False if it is beyond the bound."""
        self._totals.add(amount, currency)
        if self.seen == self._instructions_max + 1:
            reason = f"a batch takes at most {self._instructions_max:,}"
            self.refuse(InstructionRefusal.TOO_MANY_INSTRUCTIONS, reason, line=line)
        return self.seen <= self._instructions_max

    def refuse(self, refusal: InstructionRefusal, reason: str, *, line: int = 0, index: int = 0) -> None:
        """Refuse the file, or one place in it."""
        self._append(InstructionProblem(refusal, index, line, reason[:REASON_LENGTH_MAX]))

    def finish(
        self,
        *,
        message_id: str = "",
        declared: DeclaredTotals | None = None,
        message: str = "",
        sender: ParticipantId | None = None,
        receiver: ParticipantId | None = None,
    ) -> ReadResult:
        """The answer. Totals are compared only when every line was read: otherwise they would repeat what is said
        already."""
        if not self._problems:
            if self.seen == 0:
                self.refuse(InstructionRefusal.NO_INSTRUCTIONS, "there is nothing to settle")
            for refusal, reason in self._totals.faults(declared or DeclaredTotals()) if self.seen else ():
                self.refuse(refusal, reason)
        problems = tuple(sorted(self._problems, key=_precedence))
        instructions = () if problems else tuple(self._instructions)
        return ReadResult(message_id, instructions, problems, self._truncated, message, sender, receiver)

    def _append(self, problem: InstructionProblem) -> None:
        if len(self._problems) < self._problems_max:
            self._problems.append(problem)
        else:
            self._truncated = True


_REQUIRED = (
    "instruction id",
    "end-to-end id",
    "UETR",
    "debtor's BIC",
    "creditor's BIC",
    "currency",
    "amount",
    "value date",
)


def decide_instruction(raw: RawInstruction, *, index: int) -> Instruction | InstructionProblem:
    """One line on its own: an instruction, or the first refusal in order of precedence."""

    def refuse(refusal: InstructionRefusal, reason: str) -> InstructionProblem:
        return InstructionProblem(refusal, index, raw.line, reason[:REASON_LENGTH_MAX])

    required = (
        raw.instruction_id,
        raw.end_to_end_id,
        raw.uetr,
        raw.debtor,
        raw.creditor,
        raw.currency,
        raw.amount,
        raw.value_date,
    )
    if not all(required):
        return refuse(InstructionRefusal.FIELD_MISSING, f"the {_REQUIRED[required.index('')]} is absent")
    for name, text in (*zip(_REQUIRED, required[:2], strict=False), *raw.other_ids):
        if not is_reference(text):
            return refuse(InstructionRefusal.REFERENCE_INVALID, f"{name} {text[:40]!r}")
    fault = instruction_id_fault(raw.instruction_id)
    if fault:
        return refuse(InstructionRefusal.REFERENCE_INVALID, f"instruction id {raw.instruction_id!r} {fault}")
    if _UETR.fullmatch(raw.uetr) is None:
        return refuse(InstructionRefusal.UETR_INVALID, f"{raw.uetr[:40]!r}")
    try:
        debtor, creditor = parse_participant(raw.debtor), parse_participant(raw.creditor)
    except ValueError as error:
        return refuse(InstructionRefusal.PARTICIPANT_INVALID, f"{raw.debtor[:20]!r}, {raw.creditor[:20]!r}: {error}")
    for lei in raw.leis:
        if not is_lei(lei):
            return refuse(InstructionRefusal.LEI_INVALID, f"{lei[:40]!r}")
    for name, text in raw.texts:
        wrong = _NOT_CBPR.search(text)
        if wrong is not None:
            return refuse(InstructionRefusal.CHARACTER_NOT_ALLOWED, f"{name} has {wrong[0]!r} at {wrong.start() + 1}")
    of_customers = None if raw.compliance is None else find_fault(raw.compliance)
    if of_customers is not None:
        return refuse(InstructionRefusal.CUSTOMER_DATA_INVALID, of_customers)
    if raw.charge_bearer == "CRED" and not raw.charges_stated:
        return refuse(InstructionRefusal.CHARGE_BEARER_INVALID, "CRED needs the charges stated (ChrgsInf)")
    if debtor == creditor:
        return refuse(InstructionRefusal.PARTICIPANTS_MUST_DIFFER, f"{debtor} would pay itself")
    amount = parse_amount(raw.amount, raw.currency)
    if not isinstance(amount, Money):
        return refuse(*amount)
    if raw.counter_amount and not raw.counter_currency:
        return refuse(InstructionRefusal.COUNTER_TERMS_INVALID, "a counter amount needs a counter currency")
    counter_currency: Currency | None = None
    counter_amount: Money | None = None
    if raw.counter_currency:
        currency = parse_currency(raw.counter_currency)
        if currency is None:
            return refuse(InstructionRefusal.CURRENCY_UNKNOWN, f"counter currency {raw.counter_currency[:10]!r}")
        if raw.counter_currency == raw.currency:
            return refuse(InstructionRefusal.COUNTER_CURRENCY_SAME, f"both legs are in {currency}")
        counter_currency = currency
        if raw.counter_amount:
            counter = parse_amount(raw.counter_amount, raw.counter_currency)
            if not isinstance(counter, Money):
                return refuse(counter[0], f"counter amount: {counter[1]}")
            counter_amount = counter
    value_date = parse_date(raw.value_date)
    if value_date is None:
        return refuse(InstructionRefusal.VALUE_DATE_INVALID, f"{raw.value_date[:30]!r}")
    priority = _PRIORITIES.get(raw.priority)
    if priority is None:
        return refuse(InstructionRefusal.PRIORITY_UNKNOWN, f"{raw.priority[:10]!r}")
    return Instruction(
        raw.instruction_id,
        raw.end_to_end_id,
        msgspec.convert(raw.uetr, UUID),  # a third of the time that UUID() takes
        debtor,
        creditor,
        amount,
        counter_currency,
        counter_amount,
        value_date,
        priority,
        raw.compliance,
    )


def is_reference(text: str) -> bool:
    """Whether messages may carry it as an identifier: 1 to 35 characters of FIN X, the first a letter or a digit."""
    return _REFERENCE.fullmatch(text) is not None


def instruction_id_fault(text: str) -> str:
    """What CBPR+ says against a reference as an instruction id; "" if nothing."""
    if len(text) > INSTRUCTION_ID_LENGTH_MAX:
        return f"has more than {INSTRUCTION_ID_LENGTH_MAX} characters"
    return "ends with a slash or has two in a row" if text.endswith("/") or "//" in text else ""


def is_lei(text: str) -> bool:
    """A legal entity identifier with valid check digits. Source: ISO 17442-1, ISO 7064 MOD 97-10."""
    return _LEI.fullmatch(text) is not None and int("".join(str(int(char, 36)) for char in text)) % 97 == 1


@lru_cache(maxsize=KEPT_MAX)
def parse_currency(code: str) -> Currency | None:
    """The ISO 4217 currency that can be booked, or None."""
    if _CURRENCY.fullmatch(code) is None:
        return None
    try:
        return Currency.of(code)
    except ValueError:
        return None


def parse_amount(text: str, code: str) -> Money | tuple[InstructionRefusal, str]:
    """An amount in major units greater than zero, or the refusal and its reason."""
    currency = parse_currency(code)
    if currency is None:
        return InstructionRefusal.CURRENCY_UNKNOWN, f"{code[:10]!r}"
    match = _AMOUNT.fullmatch(text)
    if match is None:
        return InstructionRefusal.AMOUNT_INVALID, f"{text[:40]!r}"
    units, fraction = match[1], match[2] or ""
    if len(fraction) > currency.exponent:
        return InstructionRefusal.AMOUNT_TOO_MANY_DECIMALS, f"{code} has {currency.exponent} decimals: {text[:40]!r}"
    # The length is looked at before the conversion: int() of a megabyte of digits is slow by design.
    if len(units) + currency.exponent > AMOUNT_DIGITS_MAX:
        return InstructionRefusal.AMOUNT_TOO_LARGE, f"{text[:40]!r}"
    money = Money(int(units + fraction.ljust(currency.exponent, "0")), currency)
    if money.amount_minor == 0:
        return InstructionRefusal.AMOUNT_ZERO, f"{code} {text}"
    return money


@lru_cache(maxsize=KEPT_MAX)
def parse_date(text: str) -> date | None:
    """`YYYY-MM-DD` and nothing else (an xs:date may carry a time zone: which day that is here would be a guess)."""
    if _DATE.fullmatch(text) is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def control_sum(instructions: Iterable[Instruction]) -> Fraction:
    """Sum of the first legs in major units, irrespective of currency. Source: ISO 20022 GroupHeader93/ControlSum."""
    minor_by_exponent: dict[int, int] = {}
    for instruction in instructions:
        exponent = instruction.amount.currency.exponent
        minor_by_exponent[exponent] = minor_by_exponent.get(exponent, 0) + instruction.amount.amount_minor
    return sum((Fraction(minor, 10**exponent) for exponent, minor in minor_by_exponent.items()), Fraction(0))


def show_sum(value: Fraction) -> str:
    """A sum of decimal amounts as exact decimal text (no exponent, no rounding; at most 17 decimals, as
    DecimalNumber)."""
    digits = 0
    while digits < 17 and (value * 10**digits).denominator != 1:
        digits += 1
    scaled = int(value * 10**digits)
    units, fraction = divmod(abs(scaled), 10**digits)
    sign = "-" if scaled < 0 else ""
    return f"{sign}{units}.{fraction:0{digits}d}" if digits else f"{sign}{units}"


_PRECEDENCE = {refusal: rank for rank, refusal in enumerate(InstructionRefusal)}


def _precedence(problem: InstructionProblem) -> tuple[int, int, int]:
    """What concerns the file first, then the lines in their order."""
    return (0 if problem.index == 0 else 1, problem.index, _PRECEDENCE[problem.refusal])
