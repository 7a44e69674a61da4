"""CSV and Parquet as lines, by a counterparty's mapping: read and checked by columns, faults named by line.

A CSV file is read in blocks, which fit the processor's cache and are checked beside the reading of the next ones. A
block says only that something is wrong: then the file is read once more as a whole, which names the faults.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.csv as pa_csv  # type: ignore[import-untyped]
import pyarrow.parquet as pa_parquet  # type: ignore[import-untyped]

from settlement.domain.instructions import PROBLEMS_MAX, parse_currency
from settlement.domain.reconciliation.lines import LINES_MAX, SCHEMA, LineTable
from settlement.domain.reconciliation.mapping import CANONICAL, DateFormat, Sign, TableMapping
from settlement.domain.statements import EARLIEST, LATEST

TEXT_LENGTH_MAX = 140
PARQUET_BYTES_MAX = 2 * 1024 * 1024 * 1024
"""Of a Parquet file unpacked: it may be packed a thousandfold."""
BLOCK_BYTES = 1024 * 1024
BLOCKS_WAITING_MAX = 8
"""Read but not yet checked."""
_BLANKS = (b" ", b"\t", b"\x0b", b"\x0c", b"\x1c", b"\x1d", b"\x1e", b"\x1f")
"""The one-byte ones that are trimmed, without those that end a line."""
_BLANK_AROUND = r"^[\t-\r\x1c- ]|[\t-\r\x1c- ]$|[^\x00-\x7f]"
_OPTIONAL = ("uetr", "end_to_end_id", "group_reference", "account", "counterparty", "counterparty_account")
_UETR = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
_UUID_LENGTH = 36
_UUID_DASHES = [8, 13, 18, 23]
_ZONED = r"(Z|[+-][0-9]{2}:?[0-9]{2})$"
_OPTIONAL_COLUMNS = frozenset(field.name for field in SCHEMA if field.nullable)
_REVERSED, _NOT_REVERSED = ("true", "1", "y", "yes"), ("false", "0", "n", "no", "")
_BLANKS_IN_NUMBERS = ("\u00a0", "\u202f")
_TIME_BEHIND = "(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.][0-9]{1,9})?)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?)?"
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
    """RFC 4180 with a header. Columns that the mapping does not name are left aside.

    A byte order mark settles the encoding, UTF-16's too (a spreadsheet's "Unicode text").
    """
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        try:
            content, mapping = content.decode("utf-16").encode(), replace(mapping, encoding="utf-8")
        except UnicodeDecodeError as error:
            return None, (SourceProblem("csv-malformed", 0, f"not the UTF-16 that it begins as: {error}"[:300]),)
    elif content.startswith(codecs.BOM_UTF8):
        mapping = replace(mapping, encoding="utf-8")
    if mapping.skip_lines:
        parts = content.split(b"\n", mapping.skip_lines)
        content = parts[mapping.skip_lines] if len(parts) > mapping.skip_lines else b""
        mapping = replace(mapping, skip_lines=0)
    try:
        return _csv_by_blocks(content, mapping), ()
    except (_Refused, pa.ArrowException, ValueError, OverflowError):
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
        if mapping == CANONICAL and names >= set(SCHEMA.names) - _OPTIONAL_COLUMNS:
            return _read_own(file)
        wanted = [name for name in mapping.columns.values() if name in names]
        table = file.read(columns=wanted)
    except _Refused as refused:
        return None, refused.problems
    except (pa.ArrowException, OSError, ValueError) as error:
        return None, (SourceProblem("parquet-malformed", 0, str(error)[:300]),)
    day = mapping.columns["value_date"]
    return _read(lambda: {name: _as_text(table.column(name), mapping, is_day=name == day) for name in wanted}, mapping)


def _read_own(file: Any) -> Read:
    def read() -> LineTable:
        table = file.read(columns=[name for name in SCHEMA.names if name in file.schema_arrow.names])
        for field in SCHEMA:
            if field.name not in table.column_names:
                table = table.append_column(field, pa.nulls(len(table), field.type))
        lines = LineTable.of_table(table)
        if any(lines.table.column(field.name).null_count for field in SCHEMA if not field.nullable):
            raise _whole("field-missing", "a column that every line must have is empty somewhere")
        _check(
            pc.greater_equal(lines.strings("amount_minor"), 0), "amount-invalid", lambda _: "an amount is not negative"
        )
        _check_currencies(lines.strings("currency"))
        _check_times(lines)
        _check_texts(lines)
        _check_uetrs(lines.strings("uetr"))
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


def _csv_by_blocks(content: bytes, mapping: TableMapping) -> LineTable:
    """Raises _Refused, ArrowException, ValueError, OverflowError for a fault that is not named."""
    read_options, parse_options, convert_options = _csv_options(content, mapping, block_bytes=BLOCK_BYTES)
    may_have_blanks = _may_have_blanks(content, mapping)

    def lines(batch: pa.RecordBatch) -> list[pa.Array]:
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        found = _lines(_all_trimmed(columns) if may_have_blanks else columns, mapping)
        return [column.chunk(0) for column in found.table.columns]

    # The block's own threads would not share its memory: one reads, the others check.
    read_options.use_threads = False
    done: list[list[pa.Array]] = []
    with ThreadPoolExecutor(2) as pool:
        waiting: deque[Future[list[pa.Array]]] = deque()
        with pa_csv.open_csv(pa.BufferReader(content), read_options, parse_options, convert_options) as blocks:
            for batch in blocks:
                waiting.append(pool.submit(lines, batch))
                if len(waiting) > BLOCKS_WAITING_MAX:
                    done.append(waiting.popleft().result())
        done += [block.result() for block in waiting]
        if not done:
            raise ValueError("a header without lines: the whole file is read at once")
        if sum(len(columns[0]) for columns in done) > LINES_MAX:
            raise _too_many()
        # Column by column, so that what the blocks hold of one can be had for the next.
        parts = [list(blocks) for blocks in zip(*done, strict=True)]
        done.clear()
        joining = [pool.submit(pa.concat_arrays, parts.pop(0)) for _ in SCHEMA]
        joined = [column.result() for column in joining]
    return LineTable(pa.Table.from_arrays(joined, schema=SCHEMA))


def _csv_columns(content: bytes, mapping: TableMapping) -> dict[str, pa.Array]:
    try:
        table = pa_csv.read_csv(pa.py_buffer(content), *_csv_options(content, mapping, block_bytes=4 * 1024 * 1024))
    except (pa.ArrowException, UnicodeError) as error:
        raise _whole("csv-malformed", str(error)[:300]) from None
    columns = {name: _joined(table.column(name)) for name in table.column_names}
    return _all_trimmed(columns) if _may_have_blanks(content, mapping) else columns


def _csv_options(content: bytes, mapping: TableMapping, *, block_bytes: int) -> tuple[Any, Any, Any]:
    """How to read, parse and convert: every column that is wanted as texts. Raises _Refused."""
    if b"\x00" in content:
        raise _whole("nul-character", "text may not contain the NUL character")
    wanted = _present(content, mapping)
    return (
        pa_csv.ReadOptions(encoding=mapping.encoding, block_size=block_bytes),
        pa_csv.ParseOptions(delimiter=mapping.delimiter, newlines_in_values=b'"' in content),
        pa_csv.ConvertOptions(
            column_types=dict.fromkeys(wanted, pa.string()),
            include_columns=wanted,
            strings_can_be_null=False,
            check_utf8=not content.isascii(),
        ),
    )


def _may_have_blanks(content: bytes, mapping: TableMapping) -> bool:
    """What a field may begin or end with, line breaks too if it is quoted: whether a reference is trimmed must not
    depend on what other lines have."""
    if not content.isascii() or any(blank in content for blank in _BLANKS):
        return True
    return b'"' in content and _may_have_quoted_breaks(content, mapping.delimiter)


def _may_have_quoted_breaks(content: bytes, delimiter: str) -> bool:
    """Whether a field may begin or end with a line break: between the two is a quote, with a field's end behind it.

    Many files quote every field: trimming those would take as long as reading them.
    """
    ends = [ord(delimiter), *b"\r\n"]
    found = np.frombuffer(content, np.uint8)
    for start in range(0, len(found), BLOCK_BYTES):
        block = found[max(0, start - 2) : start + BLOCK_BYTES + 2]
        breaks = np.flatnonzero((block == ord("\n")) | (block == ord("\r")))
        for way in (-1, 1):
            is_quoted = np.take(block, breaks + way, mode="clip") == ord('"')
            beyond = np.take(block, breaks[is_quoted] + 2 * way, mode="clip")
            if np.isin(beyond, ends).any():
                return True
    return content.endswith((b'\n"', b'\r"'))


def _all_trimmed(columns: dict[str, pa.Array]) -> dict[str, pa.Array]:
    return {name: _trimmed(column) for name, column in columns.items()}


def _present(content: bytes, mapping: TableMapping) -> list[str]:
    """Of the mapping's columns, those that the header has. Raises _Refused for a header with a name twice."""
    head = content[: 64 * 1024].split(b"\n", 1)[0]
    if b'"' in head:  # a name may hold a line break
        text = io.StringIO(content[: 64 * 1024].decode(mapping.encoding, errors="replace"), newline="")
        head = text.getvalue()[: _header_length(text, mapping)].encode(mapping.encoding, errors="replace")
    options = pa_csv.ReadOptions(encoding=mapping.encoding)
    parse = pa_csv.ParseOptions(delimiter=mapping.delimiter, newlines_in_values=True)
    names = pa_csv.read_csv(pa.py_buffer(head + b"\n"), read_options=options, parse_options=parse).column_names
    if len(set(names)) != len(names):
        raise _whole("csv-column-duplicate", "the header names a column twice")
    return [name for name in mapping.columns.values() if name in names]


def _header_length(text: io.StringIO, mapping: TableMapping) -> int:
    """Characters of the first record, quoted line breaks in it included."""
    with suppress(csv.Error):
        next(csv.reader(iter(text.readline, ""), delimiter=mapping.delimiter), None)
    return text.tell()


def _joined(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _as_text(column: pa.ChunkedArray, mapping: TableMapping, *, is_day: bool) -> pa.Array:
    """A column as the mapping's texts. A day is a moment's in the mapping's zone, or the one that a bare time names."""
    kind = column.type
    if pa.types.is_floating(kind):
        raise _whole("amount-invalid", "a column of floating point numbers: amounts are texts, integers or decimals")
    if pa.types.is_timestamp(kind):
        # To microseconds: what is finer is cut off.
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)
        column = column.cast(pa.timestamp("us", mapping.zone)) if is_day and kind.tz is not None else column
    if is_day and (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        column = column.cast(pa.timestamp("us")) if pa.types.is_date(kind) else column
        return pc.fill_null(_joined(pc.strftime(column, format=mapping.date_format.strptime)), "")
    if pa.types.is_decimal(kind):
        return pc.replace_substring(pc.fill_null(_joined(column).cast(pa.string()), ""), ".", mapping.decimal)
    return _trimmed(pc.fill_null(_joined(column).cast(pa.string()), ""))


def _lines(found: dict[str, pa.Array], mapping: TableMapping) -> LineTable:
    columns = {what: found[name] for what, name in mapping.columns.items() if name in found}
    lacking = [name for what, name in mapping.columns.items() if what not in columns and _is_needed(what, mapping)]
    if lacking:
        raise _whole("csv-column-missing", f"the header lacks {', '.join(repr(name) for name in lacking)}")
    count = len(next(iter(columns.values())))
    if count > LINES_MAX:
        raise _too_many()
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
    values["uetr"] = _uetrs(values["uetr"])
    values["is_reversal"] = _reversals(columns.get("reversal"), count)
    values["instructed_minor"], values["instructed_currency"] = _instructed(columns, count, mapping)
    arrays = [_joined_or(values[field.name]) for field in SCHEMA]
    lines = LineTable(pa.Table.from_arrays(arrays, schema=SCHEMA))
    _check(pc.not_equal(columns["reference"], ""), "field-missing", lambda _: "the line has no reference")
    _check_times(lines)
    _check_texts(lines)
    return lines


def _trimmed(column: pa.Array) -> pa.Array:
    """Without blanks around. Most columns have none: looking costs a tenth of copying."""
    has_blanks = pc.any(pc.match_substring_regex(column, _BLANK_AROUND), min_count=0).as_py()
    return pc.utf8_trim_whitespace(column) if has_blanks else column


def _joined_or(values: Any) -> pa.Array:
    return _joined(values) if isinstance(values, pa.ChunkedArray) else values


def _is_needed(what: str, mapping: TableMapping) -> bool:
    """Our own tables may lack a column that no line uses; a counterparty's mapping says what its tables have."""
    always = {"reference", "value_date", "currency", "amount", "direction", "credit", "debit"}
    return what in always or mapping != CANONICAL


def _check_times(lines: LineTable) -> None:
    for name in ("value_date", "booked_at"):
        column = _joined_or(lines.table.column(name))
        first, last = (pa.scalar(day, pa.date32()).cast(column.type) for day in (EARLIEST, LATEST))
        is_near = pc.and_(pc.greater_equal(column, first), pc.less_equal(column, last))
        _check(is_near, "date-invalid", _says(f"{name}: a time from {EARLIEST} to {LATEST}"))


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


def _uetrs(texts: pa.Array) -> pa.Array:
    """In lower case. Raises _Refused naming each that is no UUID."""
    if texts.null_count == len(texts) or _are_plain_uuids(texts):
        return texts
    lowered = pc.ascii_lower(texts)
    _check_uetrs(lowered)
    return lowered


def _are_plain_uuids(texts: pa.Array) -> bool:
    """Whether all but the nulls are UUIDs as they are mostly written: in lower case, with dashes."""
    lengths, data = _lengths_and_bytes(texts)
    if not np.array_equal(lengths, np.where(texts.is_valid().to_numpy(zero_copy_only=False), _UUID_LENGTH, 0)):
        return False
    is_hex = _are_digits(data) | (data - np.uint8(ord("a")) < 6)  # smaller bytes wrap around
    by_place = data.reshape(-1, _UUID_LENGTH)
    dashes = by_place[:, _UUID_DASHES] == ord("-")
    return bool(dashes.all() and np.count_nonzero(is_hex) == by_place.shape[0] * (_UUID_LENGTH - len(_UUID_DASHES)))


def _lengths_and_bytes(texts: pa.Array) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, np.dtype[np.uint8]]]:
    """Each text's number of bytes, and the bytes of all, without copying them."""
    _, offsets_buffer, data_buffer = texts.buffers()
    offsets = np.frombuffer(offsets_buffer, "<i4")[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer else np.zeros(0, np.uint8)
    return np.diff(offsets), data[offsets[0] : offsets[-1]]


def _are_digits(data: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return data - np.uint8(ord("0")) < 10


def _check_uetrs(uetrs: pa.Array) -> None:
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
    found = np.zeros(len(texts), np.int64)
    exponents = {
        code: 0 if mapping.is_minor else known.exponent
        for code in currency.unique().to_pylist()
        if (known := parse_currency(code)) is not None
    }
    digits_of = sorted(set(exponents.values()))
    if mapping.decimal == "." and not mapping.grouping and len(digits_of) == 1:
        plain = _plain(texts, digits_of[0])
        if plain is not None:
            return plain
    texts = _normalised(texts, mapping)
    for exponent in digits_of:
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


def _normalised(texts: pa.Array, mapping: TableMapping) -> pa.Array:
    """Amounts with a point, without grouping, and the minus before them. Raises _Refused.

    Strict: what separates thousands must do so, or `1,23` in a table of another convention would be 123.
    """
    if pc.any(pc.match_substring_regex(texts, "[()\u2212]|-$"), min_count=0).as_py():
        texts = pc.replace_substring(texts, "\u2212", "-")
        texts = pc.replace_substring_regex(texts, r"^[(](.*)[)]$", r"-\1")
        texts = pc.replace_substring_regex(texts, r"^([^-].*)-$", r"-\1")
    if mapping.grouping:
        for blank in _BLANKS_IN_NUMBERS if mapping.grouping == " " else ():
            texts = pc.replace_substring(texts, blank, " ")
        group, point = (f"[{sign}]" for sign in (mapping.grouping, mapping.decimal))
        shape = f"^[+-]?([0-9]{{1,3}}({group}[0-9]{{2,3}})*{group}[0-9]{{3}}|[0-9]+)({point}[0-9]*)?$"
        is_grouped = pc.match_substring(texts, mapping.grouping)
        is_good = pc.or_(pc.invert(is_grouped), pc.match_substring_regex(texts, shape))
        _check(is_good, "amount-invalid", _says(f"{mapping.grouping!r} separates thousands", texts))
        texts = pc.replace_substring(texts, mapping.grouping, "")
    if mapping.decimal == ",":
        _check(pc.invert(pc.match_substring(texts, ".")), "amount-invalid", _says("the decimal sign is a comma", texts))
        texts = pc.replace_substring(texts, ",", ".")
    return texts


def _plain(texts: pa.Array, exponent: int) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """The common column: every amount with exactly the currency's decimals and no sign. None if one is not."""
    lengths, data = _lengths_and_bytes(texts)
    tail = exponent + 1 if exponent else 0  # the point and what follows it
    if not len(texts) or not tail < lengths.min() or lengths.max() > 18 + (tail > 0):
        return None
    is_digit = _are_digits(data)
    if tail:
        # As many points as texts, each of them where its text's is due.
        points = np.cumsum(lengths) - tail
        if np.count_nonzero(is_digit) != len(data) - len(texts) or not (data[points] == ord(".")).all():
            return None
        offsets = np.concatenate([[0], np.cumsum(lengths - 1)]).astype(np.int32)
        texts = pa.StringArray.from_buffers(len(texts), pa.py_buffer(offsets), pa.py_buffer(data[is_digit]))
    elif not is_digit.all():
        return None
    found: np.ndarray[Any, np.dtype[np.int64]] = pc.cast(texts, pa.int64()).to_numpy(zero_copy_only=False)
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
    day = mapping.date_format.pattern
    pattern = f"^{day}{_TIME_BEHIND}$"

    def reason(at: int) -> str:
        return f"{str(texts[at])[:20]!r} is no date in the form {mapping.date_format.value}"

    distinct = texts.dictionary_encode()
    if not pc.all(pc.match_substring_regex(distinct.dictionary, pattern), min_count=0).as_py():
        _check(pc.match_substring_regex(texts, pattern), "date-invalid", reason)
    days: list[Any] = []
    length = len(mapping.date_format.value)
    for text in distinct.dictionary.to_pylist():
        try:
            days.append(datetime.strptime(text[:length], mapping.date_format.strptime).date())  # noqa: DTZ007  # a day
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
    distinct = texts.dictionary_encode()  # most files say few
    if pc.all(pc.match_substring_regex(distinct.dictionary, _LOCAL[:-1] + _ZONED)).as_py():
        return pc.cast(distinct.dictionary, pa.timestamp("us", tz="UTC")).take(distinct.indices)
    is_zoned = pc.match_substring_regex(texts, _ZONED)
    bare = pc.replace_substring_regex(texts, _ZONED, "")
    is_good = pc.or_(is_empty, pc.match_substring_regex(bare, _LOCAL))
    if not pc.all(is_good).as_py():
        return pc.coalesce(_moments_otherwise(texts, distinct, mapping), start)
    nothing = pa.scalar(None, pa.string())
    zoned = pc.cast(pc.if_else(pc.and_(is_zoned, pc.invert(is_empty)), texts, nothing), pa.timestamp("us", tz="UTC"))
    if pc.all(pc.or_(is_zoned, is_empty)).as_py():
        return pc.coalesce(zoned, start)
    local = pc.cast(pc.if_else(pc.or_(is_zoned, is_empty), nothing, bare), pa.timestamp("us"))
    placed = pc.assume_timezone(local, str(ZoneInfo(mapping.zone)), ambiguous="earliest", nonexistent="latest")
    return pc.coalesce(zoned, pc.cast(placed, pa.timestamp("us", tz="UTC")), start)


def _moments_otherwise(texts: pa.Array, distinct: pa.DictionaryArray, mapping: TableMapping) -> pa.Array:
    """Booking times of which some are written as dates are, or without seconds; a bare day is 00:00 UTC of it."""
    zone = ZoneInfo(mapping.zone)
    forms = [
        (re.compile(f"({form.pattern})({_TIME_BEHIND})", re.ASCII), form.strptime)
        for form in (DateFormat.ISO, mapping.date_format)
    ]

    def read(text: str) -> datetime | None:
        for pattern, form in forms:
            match = pattern.fullmatch(text)
            if match is not None:
                day = datetime.strptime(match[1], form)  # noqa: DTZ007  # its zone follows
                if not match[2]:
                    return day.replace(tzinfo=UTC)
                behind = re.sub(r"([.][0-9]{6})[0-9]+", r"\1", match[2][1:])
                moment = datetime.fromisoformat(f"{day.date()}T{behind}")
                return (moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)).astimezone(UTC)
        raise ValueError(text)

    moments: list[datetime | None] = []
    for text in distinct.dictionary.to_pylist():
        try:
            moments.append(read(text) if text else None)
        except (ValueError, OverflowError):
            form = mapping.date_format.value
            what = f"{text[:40]!r} is no time YYYY-MM-DDTHH:MM:SS, nor a date {form} with or without a time"
            _check(pc.not_equal(texts, text), "date-invalid", _says(what))
    return pa.array(moments, pa.timestamp("us", tz="UTC")).take(distinct.indices)


def _reversals(texts: pa.Array | None, count: int) -> pa.Array:
    if texts is None:
        return pa.nulls(count, pa.bool_())
    is_reversal = _words(texts, _REVERSED, _NOT_REVERSED, "reversal")
    return pc.if_else(is_reversal, is_reversal, pa.scalar(None, pa.bool_()))


def _optional(texts: pa.Array | None, count: int) -> pa.Array:
    if texts is None:
        return pa.nulls(count, pa.string())
    is_given = pc.not_equal(texts, "")
    if pc.all(is_given, min_count=0).as_py():
        return texts
    if not pc.any(is_given).as_py():
        return pa.nulls(count, pa.string())
    if texts.offset:
        return pc.if_else(is_given, texts, pa.scalar(None, pa.string()))
    # The same without copying the texts.
    _, offsets, data = texts.buffers()
    return pa.StringArray.from_buffers(count, offsets, data, is_given.buffers()[1])


def _instructed(columns: dict[str, pa.Array], count: int, mapping: TableMapping) -> tuple[pa.Array, pa.Array]:
    amounts, currency = columns.get("instructed_amount"), columns.get("instructed_currency")
    if amounts is None or currency is None:
        return pa.nulls(count, pa.int64()), pa.nulls(count, pa.string())
    has_one = pc.not_equal(amounts, "")
    if not pc.any(has_one).as_py():
        return pa.nulls(count, pa.int64()), pa.nulls(count, pa.string())
    # Few lines have one: only those are looked at.
    places = np.flatnonzero(has_one.to_numpy(zero_copy_only=False))
    codes = currency.take(pa.array(places))
    try:
        _check_currencies(codes)
        minor = np.abs(_signed(amounts.take(pa.array(places)), codes, mapping))
    except _Refused as refused:
        raise _Refused([replace(item, index=int(places[item.index - 1]) + 1) for item in refused.problems]) from None
    found = np.zeros(count, np.int64)
    found[places] = minor
    return pa.array(found, mask=~has_one.to_numpy(zero_copy_only=False)), pc.if_else(
        has_one, currency, pa.scalar(None, pa.string())
    )


def _check(is_good: pa.Array, refusal: str, reason: Callable[[int], str]) -> None:
    """Raises _Refused with the first lines that are not good."""
    if pc.all(is_good, min_count=0).as_py():
        return
    bad = np.flatnonzero(~pc.fill_null(is_good, fill_value=False).to_numpy(zero_copy_only=False))
    raise _Refused([SourceProblem(refusal, int(at) + 1, reason(int(at))) for at in bad[:PROBLEMS_MAX]])


def _says(text: str, quoted: pa.Array | None = None) -> Callable[[int], str]:
    return lambda at: text if quoted is None else f"{str(quoted[at])[:40]!r}: {text}"


def _too_many() -> _Refused:
    return _whole("too-many-entries", f"a source has at most {LINES_MAX:,} lines")


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
        "reversal": pc.if_else(pc.fill_null(table.column("is_reversal"), False), "true", ""),
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
