"""How a counterparty's table (CSV, Parquet) is read: its columns, formats and sign convention. Kept, with versions.

A mapping is data, validated before it is kept: a mapping that could be read in two ways is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo

from settlement.domain.instructions import parse_currency

COLUMNS = (
    "reference",
    "uetr",
    "end_to_end_id",
    "currency",
    "amount",
    "direction",
    "credit",
    "debit",
    "value_date",
    "booked_at",
    "status",
    "group_reference",
    "account",
    "counterparty",
    "counterparty_account",
    "instructed_amount",
    "instructed_currency",
    "reversal",
)
"""What a column may be. `credit` and `debit` are amounts, one of them empty or zero on each line."""
_CANONICAL = tuple(name for name in COLUMNS if name not in ("credit", "debit"))
NAME_LENGTH_MAX = 64
WORDS_MAX = 16
_DELIMITERS = (",", ";", "\t", "|")
_GROUPINGS = ("", ",", ".", " ", "'")
_ENCODINGS = ("utf-8", "windows-1252", "gb18030")
SKIPPED_LINES_MAX = 100


class Sign(StrEnum):
    """How a line says whether it is a credit of the account."""

    DIRECTION = "direction"
    """A column of words; amounts have no sign."""
    POSITIVE_IS_CREDIT = "positive-is-credit"
    """A negative amount has its minus before or behind it, or stands in parentheses."""
    POSITIVE_IS_DEBIT = "positive-is-debit"
    TWO_COLUMNS = "two-columns"


class DateFormat(StrEnum):
    ISO = "YYYY-MM-DD"
    """Of value dates also with a time behind it: the day is what is written before it."""
    COMPACT = "YYYYMMDD"
    SLASHED = "YYYY/MM/DD"
    DOTTED = "DD.MM.YYYY"
    DASHED = "DD-MM-YYYY"
    DAY_FIRST = "DD/MM/YYYY"
    MONTH_FIRST = "MM/DD/YYYY"
    MONTH_NAMED = "DD-MMM-YYYY"
    """The month by its first three letters in English, in whatever case."""

    @property
    def strptime(self) -> str:
        return self.value.replace("YYYY", "%Y").replace("MMM", "%b").replace("MM", "%m").replace("DD", "%d")

    @property
    def pattern(self) -> str:
        """A regular expression, of digits and letters of ASCII."""
        escaped = self.value.replace(".", "[.]").replace("YYYY", "[0-9]{4}").replace("MMM", "[A-Za-z]{3}")
        return escaped.replace("MM", "[0-9]{2}").replace("DD", "[0-9]{2}")


@dataclass(frozen=True, slots=True)
class TableMapping:
    """`columns` names the header of each thing that the table has. Raises ValueError, saying what is wrong."""

    columns: Mapping[str, str] = field(default_factory=lambda: {name: name for name in _CANONICAL})
    sign: Sign = Sign.DIRECTION
    credit_words: tuple[str, ...] = ("CRDT",)
    debit_words: tuple[str, ...] = ("DBIT",)
    booked_words: tuple[str, ...] = ("BOOK",)
    pending_words: tuple[str, ...] = ("PDNG",)
    delimiter: str = ","
    encoding: str = "utf-8"
    decimal: str = "."
    grouping: str = ""
    """What separates thousands; a blank may also be one that does not break."""
    is_minor: bool = False
    """Amounts are whole minor units, without a decimal sign."""
    date_format: DateFormat = DateFormat.ISO
    zone: str = "UTC"
    """Of booking times that name none, in messages too, and of a Parquet column of moments that is to be a day."""
    currency: str | None = None
    """Of every line, if no column says it."""
    skip_lines: int = 0
    """Before the header: many banks begin with a line on the account."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.columns) - set(COLUMNS))
        if unknown:
            raise ValueError(
                f"{unknown[0][:40]!r} is not something that a column can be; these are: {_listed(COLUMNS)}"
            )
        names = list(self.columns.values())
        if any(not 0 < len(name) <= NAME_LENGTH_MAX or not name.isprintable() for name in names):
            raise ValueError(f"a header is 1 to {NAME_LENGTH_MAX} printable characters")
        if len(set(names)) != len(names):
            raise ValueError("two things are read from one column")
        for wanted in ("reference", "value_date", *_AMOUNTS[self.sign]):
            if wanted not in self.columns:
                raise ValueError(f"no column for {wanted}, which the sign convention {self.sign.value} needs")
        surplus = {"amount", "direction", "credit", "debit"} - set(_AMOUNTS[self.sign])
        if surplus & set(self.columns):
            raise ValueError(f"the sign convention {self.sign.value} does not read {_listed(sorted(surplus))}")
        if ("currency" in self.columns) == (self.currency is not None):
            raise ValueError("the currency is named once: by a column, or for the whole table")
        if self.currency is not None and parse_currency(self.currency) is None:
            raise ValueError(f"{self.currency[:10]!r} is not a currency that can be booked")
        if ("instructed_amount" in self.columns) != ("instructed_currency" in self.columns):
            raise ValueError("an instructed amount needs its currency")
        for first, second in ((self.credit_words, self.debit_words), (self.booked_words, self.pending_words)):
            words = [word.casefold() for word in (*first, *second)]
            if not first or not second or len(set(words)) != len(words) or len(words) > WORDS_MAX:
                raise ValueError("words for two things must be given and must differ")
            if any(not 0 < len(word) <= NAME_LENGTH_MAX for word in words):
                raise ValueError(f"a word is 1 to {NAME_LENGTH_MAX} characters")
        if self.delimiter not in _DELIMITERS or self.encoding not in _ENCODINGS:
            raise ValueError(f"delimiters are {_listed(_DELIMITERS)}; encodings {_listed(_ENCODINGS)}")
        if type(self.skip_lines) is not int or not 0 <= self.skip_lines <= SKIPPED_LINES_MAX:
            raise ValueError(f"0 to {SKIPPED_LINES_MAX} lines stand before the header")
        if self.decimal not in (".", ",") or self.grouping not in _GROUPINGS or self.decimal == self.grouping:
            raise ValueError("decimal sign '.' or ','; thousands by nothing, ',', '.', ' ' or \"'\", and another one")
        try:
            ZoneInfo(self.zone)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"{self.zone[:40]!r} is not a time zone") from None

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        return {
            **found,
            "columns": dict(sorted(self.columns.items())),
            "sign": self.sign.value,
            "date_format": self.date_format.value,
        } | {name: list(found[name]) for name in _WORDS}

    @staticmethod
    def of_json(value: Mapping[str, Any]) -> TableMapping:
        """Raises ValueError, TypeError."""
        read = dict(value) | {name: tuple(value[name]) for name in _WORDS if name in value}
        if "sign" in read:
            read["sign"] = Sign(read["sign"])
        if "date_format" in read:
            read["date_format"] = DateFormat(read["date_format"])
        return TableMapping(**read)


_WORDS = ("credit_words", "debit_words", "booked_words", "pending_words")
_AMOUNTS = {
    Sign.DIRECTION: ("amount", "direction"),
    Sign.POSITIVE_IS_CREDIT: ("amount",),
    Sign.POSITIVE_IS_DEBIT: ("amount",),
    Sign.TWO_COLUMNS: ("credit", "debit"),
}


def _listed(items: object) -> str:
    return ", ".join(repr(item) for item in items)  # type: ignore[attr-defined]


CANONICAL = TableMapping()
"""Our own tables: each thing in the column of its name, amounts in major units, ISO dates. Columns may be absent."""
