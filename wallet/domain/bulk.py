"""Payroll files: the CSV that a payer hands in, read strictly, and what a dry run says of each line. Pure.

The file (docs/bulk.md): UTF-8, an optional byte order mark, lines ended by CRLF or LF, RFC 4180 quoting, the header
`line_id,payee,amount,description`, then one line a payment. A field holds no line break and no control character, so
one line of the file is one record: memory is bounded by a line, not by the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

from kernel.ids import derive_uuid7
from kernel.money import Currency, Money, format_minor
from ledger.contract import TransferRefusal
from wallet.domain.limits import Caps, Usage, decide_payment
from wallet.domain.shown_text import NEVER_SHOWN

HEADER = ("line_id", "payee", "amount", "description")
RESULT_HEADER = ("line_id", "payee", "amount", "description", "state", "refusal", "detail", "payment", "booked_at")
LINES_MAX = 20_000
"""Twice the payroll that is asked for; one file's line ids are held in memory to find repetitions."""
FILE_BYTES_MAX = 8 * 1024 * 1024
"""20,000 lines of 400 bytes each."""
RECORD_BYTES_MAX = 2_048
DESCRIPTION_CHARACTERS_MAX = 140
"""As the unstructured remittance information of ISO 20022."""
PAYEE_CHARACTERS_MAX = 254
_BOM = b"\xef\xbb\xbf"
_LINE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,63}", re.ASCII)
_FIELD = re.compile(r'"((?:[^"]|"")*)"|([^",]*)')
_FORMULA_STARTS = frozenset("=+-@\t\r\n＝＋－＠")
_NEVER_SHOWN = re.compile(f"[{NEVER_SHOWN}]")


class FileUnreadable(ValueError):
    """The file as a whole is not a payroll: nothing of it can be trusted. The text says what to mend."""


@dataclass(frozen=True, slots=True)
class PayrollLine:
    number: int
    """The file's line, the header being 1."""
    line_id: str
    payee: str
    """An account (`acc_...`) or an alias."""
    amount_minor: int
    description: str


@dataclass(frozen=True, slots=True)
class BadLine:
    number: int
    line_id: str
    """As far as it could be read; empty if not at all."""
    reason: str
    is_repeated: bool = False


def line_transfer_id(file_id: UUID, line_id: str) -> UUID:
    """The id of a line's transfer: the same whoever sends the line again, so that it books once (I7)."""
    return derive_uuid7(file_id, f"bulk-line/{line_id}")


def read_payroll(chunks: Iterable[bytes], currency: Currency) -> Iterator[PayrollLine | BadLine]:
    """Each line as it comes, good or bad. Raises: FileUnreadable, at once or on the way."""
    records = _records(chunks)
    if tuple(_header(next(records, (1, b""))[1])) != HEADER:
        raise FileUnreadable(f"the first line must be exactly: {','.join(HEADER)}")
    seen: set[str] = set()
    count = 0
    for number, record in records:
        count += 1
        if count > LINES_MAX:
            raise FileUnreadable(f"more than {LINES_MAX} lines; split the file")
        line = _line(number, record, currency)
        if line.line_id:
            if line.line_id in seen:
                line = BadLine(number, line.line_id, "the line id was used above", is_repeated=True)
            seen.add(line.line_id)
        yield line
    if not count:
        raise FileUnreadable("the file has a header and no lines")


def _records(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """(line number, line without its end). The last line may lack its end; an empty line is a line."""
    pending, number, size = b"", 0, 0
    for chunk in chunks:
        size += len(chunk)
        if size > FILE_BYTES_MAX:
            raise FileUnreadable(f"the file is larger than {FILE_BYTES_MAX} bytes; split it")
        lines = (pending + chunk).split(b"\n")
        pending = lines.pop()
        for line in lines:
            number += 1
            yield number, _unended(line, number)
        if len(pending) > RECORD_BYTES_MAX:
            raise FileUnreadable(f"line {number + 1} is longer than {RECORD_BYTES_MAX} bytes")
    if pending:
        yield number + 1, _unended(pending, number + 1)


def _unended(line: bytes, number: int) -> bytes:
    if len(line) > RECORD_BYTES_MAX:
        raise FileUnreadable(f"line {number} is longer than {RECORD_BYTES_MAX} bytes")
    if number == 1:
        line = line.removeprefix(_BOM)
    return line.removesuffix(b"\r")


def _header(record: bytes) -> Sequence[str]:
    try:
        return _fields(record.decode("utf-8"))
    except ValueError as error:
        raise FileUnreadable(f"the first line cannot be read: {_reason(error)}") from None


def _line(number: int, record: bytes, currency: Currency) -> PayrollLine | BadLine:
    line_id = ""
    try:
        fields = _fields(record.decode("utf-8"))
        if len(fields) != len(HEADER):
            raise ValueError(f"{len(fields)} fields where {len(HEADER)} are needed")
        given, payee, amount, description = fields
        if _LINE_ID.fullmatch(given) is None:
            raise ValueError("line_id: 1 to 64 of A-Z a-z 0-9 . _ / -, the first a letter or digit")
        line_id = given
        if not 0 < len(payee) <= PAYEE_CHARACTERS_MAX:
            raise ValueError("payee: an account (acc_...) or an alias")
        try:
            amount_minor = Money.parse_major(amount, currency).amount_minor
        except ValueError as error:
            raise ValueError(f"amount: {error}") from None
        if amount_minor == 0:
            raise ValueError("amount: must be above zero")
        if len(description) > DESCRIPTION_CHARACTERS_MAX:
            raise ValueError(f"description: at most {DESCRIPTION_CHARACTERS_MAX} characters")
    except ValueError as error:
        return BadLine(number, line_id, _reason(error))
    return PayrollLine(number, line_id, payee, amount_minor, description)


def _reason(error: ValueError) -> str:
    return "the text is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def _fields(text: str) -> list[str]:
    """The fields of one RFC 4180 record. Raises: ValueError."""
    if _NEVER_SHOWN.search(text) is not None:
        raise ValueError("control characters, line breaks and changes of direction are not taken, quoted or not")
    fields = []
    position = 0
    while True:
        match = _FIELD.match(text, position)
        if match is None:
            raise ValueError("a quotation mark inside a field must be doubled, and the field quoted")
        fields.append(match[1].replace('""', '"') if match[1] is not None else match[2])
        if len(fields) > len(HEADER) * 4:
            raise ValueError(f"more than {len(HEADER)} fields")
        position = match.end()
        if position == len(text):
            return fields
        if text[position] != ",":
            raise ValueError("a quotation mark inside a field must be doubled, and the field quoted")
        position += 1


# --- what comes out --------------------------------------------------------------------------------------------------


def csv_cell(value: str) -> str:
    """A field of RFC 4180 that no spreadsheet takes for a formula: one that would be gets an apostrophe in front.

    Source: OWASP, "CSV Injection".
    """
    text = _NEVER_SHOWN.sub(" ", value)
    if value[:1] in _FORMULA_STARTS or text[:1] in _FORMULA_STARTS:
        text = "'" + text
    if any(character in text for character in ",\"'") or text != text.strip():
        return '"' + text.replace('"', '""') + '"'
    return text


def csv_line(values: Iterable[str]) -> str:
    return ",".join(csv_cell(value) for value in values) + "\r\n"


# --- the dry run -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CheckedLine:
    number: int
    line_id: str
    account: int | None
    amount_minor: int
    refusal: str | None
    detail: str
    payee_name: str | None = None
    """Of a payee named by an alias: whose account it is, masked."""


@dataclass(frozen=True, slots=True)
class Payer:
    """What a dry run holds the lines against."""

    account: int
    caps: Caps
    usage: Usage
    available_minor: int


def check_lines(
    lines: Iterable[PayrollLine],
    *,
    accounts: Mapping[str, int],
    payer: Payer,
    today: date,
    names: Mapping[str, str] | None = None,
) -> Iterator[CheckedLine]:
    """What would become of each line if it were paid now, in the file's order; a refused line uses up nothing.

    `accounts`: payee -> account, for those who can be paid; `names`: payee -> masked name, for aliases.

    Refuses: payee-unknown, accounts-must-differ,
    single-, day-, year-limit-exceeded (I9), insufficient-funds.
    """
    usage, available = payer.usage, payer.available_minor
    for line in lines:
        account = accounts.get(line.payee)
        refusal: str | None = None
        detail = ""
        if account is None:
            refusal, detail = PAYEE_UNKNOWN, "no open account or alias of this name"
        elif account == payer.account:
            refusal = TransferRefusal.ACCOUNTS_MUST_DIFFER.value
        else:
            decided = decide_payment(line.amount_minor, caps=payer.caps, usage=usage, today=today)
            if not isinstance(decided, Usage):
                refusal = decided.value
            elif line.amount_minor > available:
                refusal, detail = TransferRefusal.INSUFFICIENT_FUNDS.value, f"{available} are left in minor units"
            else:
                usage, available = decided, available - line.amount_minor
        name = (names or {}).get(line.payee)
        yield CheckedLine(line.number, line.line_id, account, line.amount_minor, refusal, detail, name)


PAYEE_UNKNOWN = "payee-unknown"


# --- the result ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LineResult:
    line_id: str
    payee: str
    amount_minor: int
    description: str
    state: str
    refusal: str
    detail: str
    payment: str
    booked_at: datetime | None


def result_lines(results: Iterable[LineResult], currency: Currency) -> Iterator[str]:
    """The result file as CSV, a line at a time, the header first."""
    yield csv_line(RESULT_HEADER)
    for item in results:
        yield csv_line(
            (
                item.line_id,
                item.payee,
                format_minor(item.amount_minor, currency, grouping=False),
                item.description,
                item.state,
                item.refusal,
                item.detail,
                item.payment,
                item.booked_at.isoformat() if item.booked_at is not None else "",
            )
        )
