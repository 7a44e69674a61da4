"""CSV and Parquet as lines, by a counterparty's mapping: read and checked by columns, faults named by line."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.csv as pa_csv  # type: ignore[import-untyped]
import pyarrow.parquet as pa_parquet  # type: ignore[import-untyped]

from settlement.domain.instructions import PROBLEMS_MAX, parse_currency
from settlement.domain.reconciliation.lines import LINES_MAX, SCHEMA, LineTable
from settlement.domain.reconciliation.mapping import CANONICAL, Sign, TableMapping

TEXT_LENGTH_MAX = 140
PARQUET_BYTES_MAX = 2 * 1024 * 1024 * 1024
"""Of a Parquet file unpacked: it may be packed a thousandfold."""
_OPTIONAL = ("uetr", "end_to_end_id", "group_reference", "account", "counterparty", "counterparty_account")
_UETR = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
_ZONED = r"(Z|[+-][0-9]{2}:?[0-9]{2})$"
_LOCAL = "^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,6})?$"


@dataclass(frozen=True, slots=True)
class SourceProblem:
    """One refusal with its place: `index` counts lines from 1, 0 = the file as a whole."""

    refusal: str
    index: int
    reason: str


class _Refused(Exception):
    def __init__(self, problems: list[SourceProblem]) -> None:
        super().__init__(problems[0].reason)
        self.problems = tuple(problems[:PROBLEMS_MAX])


Read = tuple[LineTable | None, tuple[SourceProblem, ...]]


def read_csv(content: bytes, mapping: TableMapping = CANONICAL) -> Read:
    """RFC 4180 with a header. Columns that the mapping does not name are left aside."""
    return _read(lambda: _csv_columns(content, mapping), mapping)


def read_parquet(content: bytes, mapping: TableMapping = CANONICAL) -> Read:
    """Columns by the mapping, as texts, numbers or dates; a file with the columns of `SCHEMA` needs none."""
    try:
        file = pa_parquet.ParquetFile(io.BytesIO(content))
        packed = file.metadata
        size = sum(packed.row_group(number).total_byte_size for number in range(packed.num_row_groups))
        if packed.num_rows > LINES_MAX or size > PARQUET_BYTES_MAX:
            raise _whole("too-many-entries", f"at most {LINES_MAX:,} lines and {PARQUET_BYTES_MAX:,} bytes unpacked")
        names = set(file.schema_arrow.names)
        if mapping == CANONICAL and names >= set(SCHEMA.names):
            return _read_own(file)
        wanted = [name for name in mapping.columns.values() if name in names]
        table = file.read(columns=wanted)
    except _Refused as refused:
        return None, refused.problems
    except (pa.ArrowException, OSError, ValueError) as error:
        return None, (SourceProblem("parquet-malformed", 0, str(error)[:300]),)
    return _read(lambda: {name: _as_text(table.column(name)) for name in wanted}, mapping)


def _read_own(file: Any) -> Read:
    def read() -> LineTable:
        table = file.read(columns=SCHEMA.names)
        lines = LineTable.of_table(table)
        if any(lines.table.column(field.name).null_count for field in SCHEMA if not field.nullable):
            raise _whole("field-missing", "a column that every line must have is empty somewhere")
        _check(
            pc.greater_equal(lines.strings("amount_minor"), 0), "amount-invalid", lambda _: "an amount is not negative"
        )
        _check_currencies(lines.strings("currency"))
        _check_texts(lines)
        return lines

    return _guarded(read)


def _read(columns: Callable[[], dict[str, pa.Array]], mapping: TableMapping) -> Read:
    return _guarded(lambda: _lines(columns(), mapping))


def _guarded(read: Callable[[], LineTable]) -> Read:
    try:
        return read(), ()
    except _Refused as refused:
        return None, refused.problems
    except (pa.ArrowException, ValueError, OverflowError) as error:
        return None, (SourceProblem("csv-malformed", 0, str(error)[:300]),)


def _csv_columns(content: bytes, mapping: TableMapping) -> dict[str, pa.Array]:
    if b"\x00" in content:
        raise _whole("nul-character", "text may not contain the NUL character")
    try:
        table = pa_csv.read_csv(
            pa.py_buffer(content),
            read_options=pa_csv.ReadOptions(encoding=mapping.encoding, block_size=4 * 1024 * 1024),
            parse_options=pa_csv.ParseOptions(delimiter=mapping.delimiter),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(mapping.columns.values(), pa.string()),
                include_columns=_present(content, mapping),
                strings_can_be_null=False,
                check_utf8=True,
            ),
        )
    except (pa.ArrowException, UnicodeError) as error:
        raise _whole("csv-malformed", str(error)[:300]) from None
    columns = {name: _joined(table.column(name)) for name in table.column_names}
    if content.isascii() and not any(blank in content for blank in (b" ", b"\t", b"\x0b", b"\x0c")):
        return columns
    return {name: _trimmed(column) for name, column in columns.items()}


def _present(content: bytes, mapping: TableMapping) -> list[str]:
    """Of the mapping's columns, those that the header has. Raises _Refused for a header with a name twice."""
    head = content[: 64 * 1024].split(b"\n", 1)[0]
    options = pa_csv.ReadOptions(encoding=mapping.encoding)
    parse = pa_csv.ParseOptions(delimiter=mapping.delimiter)
    names = pa_csv.read_csv(pa.py_buffer(head + b"\n"), read_options=options, parse_options=parse).column_names
    if len(set(names)) != len(names):
        raise _whole("csv-column-duplicate", "the header names a column twice")
    return [name for name in mapping.columns.values() if name in names]


def _joined(column: pa.ChunkedArray) -> pa.Array:
    found = column.combine_chunks()
    return found.chunk(0) if isinstance(found, pa.ChunkedArray) and found.num_chunks else found


def _as_text(column: pa.ChunkedArray) -> pa.Array:
    if pa.types.is_floating(column.type):
        raise _whole("amount-invalid", "a column of floating point numbers: amounts are texts, integers or decimals")
    return _trimmed(pc.fill_null(_joined(column).cast(pa.string()), ""))


def _lines(found: dict[str, pa.Array], mapping: TableMapping) -> LineTable:
    columns = {what: found[name] for what, name in mapping.columns.items() if name in found}
    lacking = [name for what, name in mapping.columns.items() if what not in columns and _is_needed(what, mapping)]
    if lacking:
        raise _whole("csv-column-missing", f"the header lacks {', '.join(repr(name) for name in lacking)}")
    count = len(next(iter(columns.values())))
    if count > LINES_MAX:
        raise _whole("too-many-entries", f"a source has at most {LINES_MAX:,} lines")
    currency = columns.get("currency")
    if currency is None:
        currency = pa.repeat(pa.scalar(mapping.currency or "", pa.string()), count)
    _check_currencies(currency)
    amount_minor, is_credit = _amounts(columns, currency, mapping)
    value_date = _dates(columns["value_date"], mapping)
    values: dict[str, Any] = {
        "reference": columns["reference"],
        "currency": currency,
        "amount_minor": amount_minor,
        "is_credit": is_credit,
        "is_booked": _booked(columns.get("status"), count, mapping),
        "value_date": value_date,
        "booked_at": _moments(columns.get("booked_at"), value_date, mapping),
    }
    for name in _OPTIONAL:
        values[name] = _optional(columns.get(name), count)
    values["uetr"] = pc.ascii_lower(values["uetr"])
    values["instructed_minor"], values["instructed_currency"] = _instructed(columns, count, mapping)
    arrays = [_joined_or(values[field.name]) for field in SCHEMA]
    lines = LineTable(pa.Table.from_arrays(arrays, schema=SCHEMA))
    _check(pc.not_equal(columns["reference"], ""), "field-missing", lambda _: "the line has no reference")
    _check_texts(lines)
    return lines


def _trimmed(column: pa.Array) -> pa.Array:
    """Without blanks around. Most columns have none: looking costs a tenth of copying."""
    has_blanks = pc.any(pc.match_substring_regex(column, r"^\s|\s$|[^\x00-\x7f]"), min_count=0).as_py()
    return pc.utf8_trim_whitespace(column) if has_blanks else column


def _joined_or(values: Any) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def _is_needed(what: str, mapping: TableMapping) -> bool:
    """Our own tables may lack a column that no line uses; a counterparty's mapping says what its tables have."""
    always = {"reference", "value_date", "currency", "amount", "direction", "credit", "debit"}
    return what in always or mapping != CANONICAL


def _check_texts(lines: LineTable) -> None:
    for name in ("reference", *_OPTIONAL):
        texts = lines.strings(name)
        if texts.null_count == len(texts):
            continue
        if (pc.max(pc.binary_length(texts)).as_py() or 0) <= TEXT_LENGTH_MAX:
            continue
        lengths = pc.fill_null(pc.utf8_length(texts), 0)
        is_short = pc.less_equal(lengths, TEXT_LENGTH_MAX)
        _check(is_short, "field-too-long", _says(f"{name}: at most {TEXT_LENGTH_MAX} characters"))
    uetrs = lines.strings("uetr")
    if uetrs.null_count < len(uetrs):
        is_uuid = pc.fill_null(pc.match_substring_regex(uetrs, _UETR), fill_value=True)
        _check(is_uuid, "uetr-invalid", lambda at: f"{str(uetrs[at])[:40]!r} is not a UUID")


def _check_currencies(currency: pa.Array) -> None:
    for code in currency.unique().to_pylist():
        if code is None or parse_currency(code) is None:
            is_good = pc.not_equal(currency, code)
            _check(is_good, "currency-unknown", _says(f"{str(code)[:10]!r} is not a currency to book"))


def _amounts(columns: dict[str, pa.Array], currency: pa.Array, mapping: TableMapping) -> tuple[pa.Array, pa.Array]:
    """Minor units without sign, and whether each line is a credit."""
    if mapping.sign is Sign.TWO_COLUMNS:
        credit = _signed(_zero_if_empty(columns["credit"]), currency, mapping)
        debit = _signed(_zero_if_empty(columns["debit"]), currency, mapping)
        _check(pa.array((credit == 0) | (debit == 0)), "amount-invalid", lambda _: "both a credit and a debit")
        _check(pa.array((credit >= 0) & (debit >= 0)), "amount-invalid", lambda _: "a negative credit or debit")
        return pa.array(credit + debit), pa.array(debit == 0)
    signed = _signed(columns["amount"], currency, mapping)
    if mapping.sign is Sign.DIRECTION:
        _check(
            pa.array(signed >= 0), "amount-invalid", lambda _: "a negative amount, where a column says the direction"
        )
        return pa.array(signed), _words(columns["direction"], mapping.credit_words, mapping.debit_words, "direction")
    is_credit = signed >= 0 if mapping.sign is Sign.POSITIVE_IS_CREDIT else signed <= 0
    return pa.array(np.abs(signed)), pa.array(is_credit)


def _zero_if_empty(column: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(column, ""), pa.scalar("0"), column)


def _signed(texts: pa.Array, currency: pa.Array, mapping: TableMapping) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Texts as minor units. Raises _Refused naming each line that is no amount of its currency."""
    if mapping.grouping:
        texts = pc.replace_substring(texts, mapping.grouping, "")
    if mapping.decimal == ",":
        texts = pc.replace_substring(texts, ",", ".")
    found = np.zeros(len(texts), np.int64)
    exponents = {
        code: 0 if mapping.is_minor else known.exponent
        for code in currency.unique().to_pylist()
        if (known := parse_currency(code)) is not None
    }
    for exponent in sorted(set(exponents.values())):
        codes = [code for code, digits in exponents.items() if digits == exponent]
        mine = pc.is_in(currency, value_set=pa.array(codes, pa.string()))
        pattern = f"^[+-]?[0-9]{{1,{18 - exponent}}}" + (f"([.][0-9]{{0,{exponent}}}0*)?$" if exponent else "([.]0*)?$")
        if len(codes) == len(exponents) and (plain := _plain(texts, exponent)) is not None:
            return plain
        is_amount = pc.or_(pc.invert(mine), pc.match_substring_regex(texts, pattern))
        _check(is_amount, "amount-invalid", _says(f"no amount with at most {exponent} decimals", texts))
        if len(codes) == len(exponents):
            return _decimal(texts, exponent)
        found[np.flatnonzero(mine.to_numpy(zero_copy_only=False))] = _decimal(texts.filter(mine), exponent)
    return found


def _plain(texts: pa.Array, exponent: int) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """The common column: every amount with exactly the currency's decimals and no sign. None if one is not."""
    pattern = f"^[0-9]{{1,{18 - exponent}}}" + (f"[.][0-9]{{{exponent}}}$" if exponent else "$")
    if not pc.all(pc.match_substring_regex(texts, pattern), min_count=0).as_py():
        return None
    digits = pc.replace_substring(texts, ".", "") if exponent else texts
    found: np.ndarray[Any, np.dtype[np.int64]] = pc.cast(digits, pa.int64()).to_numpy(zero_copy_only=False)
    return found


def _decimal(texts: pa.Array, exponent: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    texts = pc.replace_substring_regex(texts, "[.]0*$|([.][0-9]*[1-9])0*$", r"\1") if exponent else _whole_part(texts)
    decimals = pc.cast(pc.utf8_ltrim(texts, "+"), pa.decimal128(38, exponent))
    # A decimal is 16 bytes, the low word first; the pattern has kept it within 18 digits, so the low word is all of it.
    words = np.frombuffer(decimals.buffers()[1], np.int64).reshape(-1, 2)
    found: np.ndarray[Any, np.dtype[np.int64]] = words[decimals.offset : decimals.offset + len(decimals), 0].copy()
    return found


def _whole_part(texts: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(texts, "[.]0*$", "")


def _words(texts: pa.Array, yes: tuple[str, ...], no: tuple[str, ...], what: str) -> pa.Array:
    """Which of two sets of words each text is. Raises _Refused for others."""
    distinct = texts.dictionary_encode()
    lowered = pc.utf8_lower(distinct.dictionary)
    words_yes, words_no = (pa.array([word.casefold() for word in words]) for words in (yes, no))
    is_yes = pc.is_in(lowered, value_set=words_yes).take(distinct.indices)
    is_known = pc.is_in(lowered, value_set=pa.concat_arrays([words_yes, words_no])).take(distinct.indices)
    _check(is_known, f"{what}-unknown", lambda at: f"{str(texts[at])[:20]!r} is none of {', '.join((*yes, *no))}")
    return is_yes


def _booked(texts: pa.Array | None, count: int, mapping: TableMapping) -> pa.Array:
    if texts is None:
        return pa.repeat(pa.scalar(True), count)
    return _words(
        pc.if_else(pc.equal(texts, ""), mapping.booked_words[0], texts),
        mapping.booked_words,
        mapping.pending_words,
        "status",
    )


def _dates(texts: pa.Array, mapping: TableMapping) -> pa.Array:
    pattern = (
        "^"
        + mapping.date_format.value.replace(".", "[.]")
        .replace("YYYY", "[0-9]{4}")
        .replace("MM", "[0-9]{2}")
        .replace("DD", "[0-9]{2}")
        + "$"
    )

    def reason(at: int) -> str:
        return f"{str(texts[at])[:20]!r} is no date in the form {mapping.date_format.value}"

    _check(pc.match_substring_regex(texts, pattern), "date-invalid", reason)
    distinct = texts.dictionary_encode()
    days: list[Any] = []
    for text in distinct.dictionary.to_pylist():
        try:
            days.append(datetime.strptime(text, mapping.date_format.strptime).date())  # noqa: DTZ007  # a day has no zone
        except ValueError:
            _check(pc.not_equal(texts, text), "date-invalid", reason)
    return pa.array(days, pa.date32()).take(distinct.indices)


def _moments(texts: pa.Array | None, value_date: pa.Array, mapping: TableMapping) -> pa.Array:
    """Booking times; a line without one is taken as of 00:00 UTC of its value date."""
    start = pc.cast(pc.cast(value_date, pa.timestamp("us")), pa.timestamp("us", tz="UTC"))
    if texts is None:
        return start
    is_empty = pc.equal(texts, "")
    if pc.all(is_empty).as_py():
        return start
    if pc.all(pc.match_substring_regex(texts, _LOCAL[:-1] + _ZONED)).as_py():
        return pc.cast(texts, pa.timestamp("us", tz="UTC"))
    is_zoned = pc.match_substring_regex(texts, _ZONED)
    bare = pc.replace_substring_regex(texts, _ZONED, "")
    is_good = pc.or_(is_empty, pc.match_substring_regex(bare, _LOCAL))
    _check(is_good, "date-invalid", lambda at: f"{str(texts[at])[:40]!r} is no time YYYY-MM-DDTHH:MM:SS")
    nothing = pa.scalar(None, pa.string())
    zoned = pc.cast(pc.if_else(pc.and_(is_zoned, pc.invert(is_empty)), texts, nothing), pa.timestamp("us", tz="UTC"))
    if pc.all(pc.or_(is_zoned, is_empty)).as_py():
        return pc.coalesce(zoned, start)
    local = pc.cast(pc.if_else(pc.or_(is_zoned, is_empty), nothing, bare), pa.timestamp("us"))
    placed = pc.assume_timezone(local, str(ZoneInfo(mapping.zone)), ambiguous="earliest", nonexistent="latest")
    return pc.coalesce(zoned, pc.cast(placed, pa.timestamp("us", tz="UTC")), start)


def _optional(texts: pa.Array | None, count: int) -> pa.Array:
    if texts is None:
        return pa.nulls(count, pa.string())
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)


def _instructed(columns: dict[str, pa.Array], count: int, mapping: TableMapping) -> tuple[pa.Array, pa.Array]:
    amounts, currency = columns.get("instructed_amount"), columns.get("instructed_currency")
    if amounts is None or currency is None:
        return pa.nulls(count, pa.int64()), pa.nulls(count, pa.string())
    has_one = pc.not_equal(amounts, "")
    if not pc.any(has_one).as_py():
        return pa.nulls(count, pa.int64()), pa.nulls(count, pa.string())
    codes = pc.if_else(has_one, currency, pa.scalar("XXX" if mapping.currency is None else mapping.currency))
    _check_currencies(codes.filter(has_one))
    usable = pc.if_else(has_one, currency, codes.filter(has_one)[0])
    minor = pa.array(np.abs(_signed(pc.if_else(has_one, amounts, "0"), usable, mapping)))
    return (
        pc.if_else(has_one, minor, pa.scalar(None, pa.int64())),
        pc.if_else(has_one, currency, pa.scalar(None, pa.string())),
    )


def _check(is_good: pa.Array, refusal: str, reason: Callable[[int], str]) -> None:
    """Raises _Refused with the first lines that are not good."""
    if pc.all(is_good, min_count=0).as_py():
        return
    bad = np.flatnonzero(~pc.fill_null(is_good, fill_value=False).to_numpy(zero_copy_only=False))
    raise _Refused([SourceProblem(refusal, int(at) + 1, reason(int(at))) for at in bad[:PROBLEMS_MAX]])


def _says(text: str, quoted: pa.Array | None = None) -> Callable[[int], str]:
    return lambda at: text if quoted is None else f"{str(quoted[at])[:40]!r}: {text}"


def _whole(refusal: str, reason: str) -> _Refused:
    return _Refused([SourceProblem(refusal, 0, reason)])


def write_csv(lines: LineTable) -> bytes:
    """Our own table (the mapping `CANONICAL`): what `read_csv` gives back line by line."""
    table = lines.table
    exponents: dict[str, int] = {}
    for name in ("currency", "instructed_currency"):
        for code in lines.strings(name).unique().to_pylist():
            known = None if code is None else parse_currency(code)
            if known is not None:
                exponents[code] = known.exponent
    columns: dict[str, Any] = {
        "reference": table.column("reference"),
        "uetr": table.column("uetr"),
        "end_to_end_id": table.column("end_to_end_id"),
        "currency": table.column("currency"),
        "amount": _major(lines, "amount_minor", "currency", exponents),
        "direction": pc.if_else(table.column("is_credit"), "CRDT", "DBIT"),
        "value_date": pc.cast(table.column("value_date"), pa.string()),
        "booked_at": pc.strftime(table.column("booked_at"), format="%Y-%m-%dT%H:%M:%SZ"),
        "status": pc.if_else(table.column("is_booked"), "BOOK", "PDNG"),
        "group_reference": table.column("group_reference"),
        "account": table.column("account"),
        "counterparty": table.column("counterparty"),
        "counterparty_account": table.column("counterparty_account"),
        "instructed_amount": _major(lines, "instructed_minor", "instructed_currency", exponents),
        "instructed_currency": table.column("instructed_currency"),
    }
    out = pa.BufferOutputStream()
    options = pa_csv.WriteOptions(quoting_style="needed")
    pa_csv.write_csv(
        pa.table(
            {
                name: pc.fill_null(column.cast(pa.string()) if hasattr(column, "cast") else column, "")
                for name, column in columns.items()
            }
        ),
        out,
        options,
    )
    return bytes(out.getvalue())


def _major(lines: LineTable, amounts: str, currencies: str, exponents: dict[str, int]) -> pa.Array:
    column = lines.strings(amounts)
    if column.null_count == len(column):
        return pa.nulls(len(column), pa.string())
    texts: list[str | None] = []
    for minor, code in zip(column.to_pylist(), lines.strings(currencies).to_pylist(), strict=True):
        if minor is None:
            texts.append(None)
            continue
        digits = exponents[code]
        units, fraction = divmod(minor, 10**digits)
        texts.append(f"{units}.{fraction:0{digits}d}" if digits else str(units))
    return pa.array(texts, pa.string())
