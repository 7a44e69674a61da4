"""camt.053 (BankToCustomerStatement), and its siblings: camt.052, the report of a day that is not over, and camt.054,
notifications of single debits and credits. Streamed out, and read back, in every version of `versions`; read too:
those of `versions.UNVALIDATED`, whose schemas are not here (`unvalidated`).

| statement | element of Stmt (camt.052: Rpt, camt.054: Ntfctn) |
|---|---|
| statement id, sequence number | Id, ElctrncSeqNb |
| account, currency, servicer | Acct/Id/Othr/Id (IBAN is read too), Acct/Ccy, Acct/Svcr/FinInstnId/BICFI |
| opening and closing balance | Bal with Tp/CdOrPrtry/Cd OPBD and CLBD (interim ones: ITBD), direction in CdtDbtInd |
| declared totals | TxsSummry, over all entries |
| entry reference (the transfer id without hyphens) | Ntry/AcctSvcrRef (and NtryRef) |
| booked_at, value_date | BookgDt/DtTm (a bare Dt is read as 00:00 UTC), ValDt/Dt |
| page, last page | StmtPgntn/PgNb, LastPgInd; read too: GrpHdr/MsgPgntn (`statement_pages` joins the pages) |
| end-to-end id, UETR | NtryDtls/TxDtls/Refs (a UETR of version 7: Prtry with Tp UETR) |
| counterparty and its account | TxDtls/RltdAgts and RltdPties: the debtor's of a credit, the creditor's of a debit |
| bulk booking (read only) | NtryDtls/Btch/PmtInfId, or else its MsgId |
| amount before conversion | AmtDtls/InstdAmt/Amt of the one TxDtls, or else of the entry |
| reversal | RvslInd |

How others write, and what is made of it:
1. Only the servicer's reference tells an entry from all others of the account. NtryRef is often a number within the
   statement, so it is put behind the statement's id; an entry without any reference is named by its place.
2. An entry that books several payments as one (several TxDtls, each with its amount, at least one with an id) is read
   as its payments: each is a line. That they add up to the entry is a finding of `check_statement`.
3. What has no booking date is booked on its value date, and the other way round. A value date is the day as written,
   whatever its time zone; a moment without an offset is in the counterparty's time zone (`zone`).
4. An entry for information (INFO) is no line; FUTR is pending.
5. A message may be in an envelope with its application header (head.001). Several statements in one message: the one
   of `account`. Several notifications of one account are one list of lines.

The reader refuses what it cannot understand. Whether a statement that it does understand adds up is a *finding*, not a
refusal: `settlement.domain.reconciliation.check_statement` turns each into a break, so that a person sees the
counterparty's lines next to what is wrong with their sums. `read_camt053` hands them out as `findings`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import BinaryIO
from uuid import UUID
from zoneinfo import ZoneInfo

from lxml import etree

from kernel.ids import ParticipantId, parse_participant
from kernel.money import Currency, Money
from settlement.domain.instructions import PROBLEMS_MAX, parse_currency, parse_date
from settlement.domain.reconciliation import Break, check_statement
from settlement.domain.statements import (
    EARLIEST,
    LATEST,
    Direction,
    EntryStatus,
    Statement,
    StatementEntry,
    StatementRefusal,
    StatementSummary,
    is_id,
    summarise,
)
from settlement.iso20022.statement_pages import PAGES_MAX, Page, PagesRefused, chosen, join
from settlement.iso20022.unvalidated import ShapeRefused, check_shape
from settlement.iso20022.unwrapping import Unwrapped
from settlement.iso20022.versions import DEFAULT, UNVALIDATED, VERSIONS, kind_of
from settlement.iso20022.xml_reader import MessageReader, line_of, local_name
from settlement.iso20022.xml_writer import XmlWriter, amount_text, datetime_text, document_writer, minor_text

MESSAGE = DEFAULT["camt.053"]
ENTRIES_MAX = 1_000_000
BYTES_MAX = 1024 * 1024 * 1024
ENTRY_BYTES_MAX = 16 * 1024 * 1024
"""Of one Ntry, which is held in memory: the batch booking of some 10,000 payments."""

_UETR_HEX = re.compile(r"[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}", re.ASCII)
_AMOUNT = re.compile(r"\+?(?P<units>[0-9]*)(?:\.(?P<fraction>[0-9]*))?", re.ASCII)
_MOMENT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})T([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,40}))?(Z|[+-][0-9]{2}:[0-9]{2})?", re.ASCII
)
_ZONE_OF_DAY = re.compile(r"(?:Z|[+-][0-9]{2}:[0-9]{2})$", re.ASCII)
_STATUSES = {
    "BOOK": EntryStatus.BOOKED,
    "PDNG": EntryStatus.PENDING,
    "FUTR": EntryStatus.PENDING,
    "INFO": EntryStatus.INFORMATION,
}
_REFUSAL_BY_CODE = {refusal.value: refusal for refusal in StatementRefusal}
_SHAPES = {
    "camt.052": ("BkToCstmrAcctRpt", "Rpt", "RptPgntn"),
    "camt.053": ("BkToCstmrStmt", "Stmt", "StmtPgntn"),
    "camt.054": ("BkToCstmrDbtCdtNtfctn", "Ntfctn", "NtfctnPgntn"),
}
"""What differs between the three: the names of root, part and page."""
_FAMILY = {Direction.CREDIT: "RCDT", Direction.DEBIT: "ICDT"}


@dataclass(frozen=True, slots=True)
class StatementProblem:
    """One refusal with its place: `index` counts entries from 1, 0 = the statement as a whole."""

    refusal: StatementRefusal
    index: int
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class StatementReadResult:
    """`statement` is None if there is any problem. `findings` are breaks within the statement itself."""

    statement: Statement | None
    problems: tuple[StatementProblem, ...]
    findings: tuple[Break, ...] = ()
    message: str = ""
    """The version that was read; of pages in several, one without a schema if there is any."""


def write_camt053(
    statement: Statement, file: BinaryIO, *, version: str = MESSAGE, allow_inconsistent: bool = False
) -> None:
    """Write the statement in flat memory; its totals are computed. `version` may be a camt.052 or 054 too.

    Raises ValueError for what the message cannot carry, and if opening + booked entries is not closing or an entry has
    another currency, unless `allow_inconsistent` (to play a counterparty that errs, in tests and the sandbox).
    """
    if kind_of(version) not in _SHAPES or version not in VERSIONS[kind_of(version)]:
        raise ValueError(f"{version[:40]!r} is no account message of this service")
    currency = statement.currency
    findings = check_statement(statement, as_of=statement.to_at.date())
    if findings and not allow_inconsistent:
        raise ValueError(f"statement {statement.statement_id} does not add up: {findings[0].sentence}")
    if not allow_inconsistent and any(entry.amount.currency != currency for entry in statement.entries):
        raise ValueError(f"statement {statement.statement_id} is in {currency}; an entry is not")
    kind = kind_of(version)
    root, part, pagination = _SHAPES[kind]
    with document_writer(file, version) as xml, xml.element(root):
        with xml.element("GrpHdr"):
            xml.text("MsgId", statement.statement_id)
            xml.text("CreDtTm", datetime_text(statement.created_at))
        with xml.element(part):
            xml.text("Id", statement.statement_id)
            with xml.element(pagination):
                xml.text("PgNb", str(statement.page), length_max=5)
                xml.text("LastPgInd", "true" if statement.is_last_page else "false")
            if statement.sequence_number is not None:
                xml.text("ElctrncSeqNb", str(statement.sequence_number))
            xml.text("CreDtTm", datetime_text(statement.created_at))
            with xml.element("FrToDt"):
                xml.text("FrDtTm", datetime_text(statement.from_at))
                xml.text("ToDtTm", datetime_text(statement.to_at))
            with xml.element("Acct"):
                _write_account_id(xml, statement.account)
                xml.text("Ccy", currency.code)
                if statement.servicer is not None:
                    with xml.element("Svcr"):
                        _write_bic(xml, statement.servicer)
            if kind != "camt.054":
                is_final = kind == "camt.053" and statement.is_last_page
                opening = "OPBD" if statement.page == 1 else "ITBD"
                _write_balance(xml, opening, statement.opening_minor, currency, statement.from_at)
                closing = "CLBD" if is_final else "ITBD"
                _write_balance(xml, closing, statement.closing_minor, currency, statement.to_at)
            _write_summary(xml, statement)
            for entry in statement.entries:
                _write_entry(xml, entry)


def read_camt053(
    source: BinaryIO | Path,
    *,
    entries_max: int = ENTRIES_MAX,
    bytes_max: int = BYTES_MAX,
    messages: Sequence[str] = VERSIONS["camt.053"],
    zone: str = "UTC",
    account: str | None = None,
) -> StatementReadResult:
    """Read one statement whole, or refuse it with every problem found, up to PROBLEMS_MAX. Raises OSError.

    `messages` may be those of one sibling instead. `zone` is that of moments that name none; `account` says which
    statement is meant if there are several.
    """
    return read_pages(
        [source], entries_max=entries_max, bytes_max=bytes_max, messages=messages, zone=zone, account=account
    )


def read_pages(
    sources: Sequence[BinaryIO | Path],
    *,
    entries_max: int = ENTRIES_MAX,
    bytes_max: int = BYTES_MAX,
    messages: Sequence[str] = VERSIONS["camt.053"],
    zone: str = "UTC",
    account: str | None = None,
) -> StatementReadResult:
    """One statement whose pages are in several messages, in any order; the same page twice counts once."""
    pages: list[Page] = []
    versions: set[str] = set()
    for source in sources:
        version, found, problems = _read_message(
            source, entries_max=entries_max, bytes_max=bytes_max, messages=messages, zone=ZoneInfo(zone)
        )
        if problems:
            return StatementReadResult(None, problems)
        pages += found
        versions.add(version)
        entries_max -= sum(len(page.entries) for page in found)
    try:
        statement = join(chosen(pages, account))
    except PagesRefused as refused:
        return StatementReadResult(None, (StatementProblem(refused.refusal, 0, 0, refused.reason[:300]),))
    message = min(versions)  # those without a schema are the oldest
    return StatementReadResult(statement, (), check_statement(statement, as_of=statement.to_at.date()), message)


def _read_message(
    source: BinaryIO | Path, *, entries_max: int, bytes_max: int, messages: Sequence[str], zone: ZoneInfo
) -> tuple[str, list[Page], tuple[StatementProblem, ...]]:
    part = _SHAPES[kind_of(messages[0])][1]
    with Unwrapped(source, messages) as document:
        if document.problem is not None:
            refusal = _REFUSAL_BY_CODE[document.problem.refusal.value]
            return "", [], (StatementProblem(refusal, 0, document.problem.line, document.problem.reason),)
        return _read_document(
            document.file, part, entries_max=entries_max, bytes_max=bytes_max, messages=document.messages, zone=zone
        )


def _read_document(
    source: BinaryIO, part: str, *, entries_max: int, bytes_max: int, messages: Sequence[str], zone: ZoneInfo
) -> tuple[str, list[Page], tuple[StatementProblem, ...]]:
    reader = MessageReader(
        source,
        messages=messages,
        tags=("GrpHdr", "Ntry", part),
        repeated="Ntry",
        bytes_max=bytes_max,
        part_bytes_max=ENTRY_BYTES_MAX,
        problems_max=PROBLEMS_MAX,
    )
    entries: list[_Entry] = []
    lines = 0
    pages: list[Page] = []
    of_message: tuple[str | None, str | None] = (None, None)
    problems: list[StatementProblem] = []
    index = 0
    for element in reader:
        line = line_of(element)
        try:
            if reader.message in UNVALIDATED.get(kind_of(reader.message), ()):
                check_shape(element)
            if local_name(element) == "GrpHdr":
                of_message = _page_of(element, "MsgPgntn")
                continue
            if local_name(element) == "Ntry":
                index += 1
                lines += 1
                if lines <= entries_max:
                    entries.append(_read_entry(element, zone))
                    lines += max(0, len(entries[-1].entry.parts) - 1)
                if lines > entries_max:
                    raise _Refused(StatementRefusal.TOO_MANY_ENTRIES, f"a statement takes at most {entries_max:,}")
                continue
            if len(pages) >= PAGES_MAX:
                raise _Refused(StatementRefusal.TOO_MANY_STATEMENTS, f"a message has at most {PAGES_MAX:,} pages")
            pages.append(_read_page(element, entries, kind_of(reader.message), of_message, zone))
            entries = []
        except ShapeRefused as refused:
            place = index + 1 if local_name(element) == "Ntry" else 0
            problems.append(StatementProblem(StatementRefusal.SCHEMA_INVALID, place, line, str(refused)[:300]))
            break
        except _Refused as refused:
            place = index if local_name(element) == "Ntry" else 0
            problems.append(StatementProblem(refused.refusal, place, line, refused.reason[:300]))
            fatal = (StatementRefusal.TOO_MANY_ENTRIES, StatementRefusal.TOO_MANY_STATEMENTS)
            if refused.refusal in fatal or len(problems) >= PROBLEMS_MAX:
                break
    xml_problems = [
        StatementProblem(_REFUSAL_BY_CODE[found.refusal.value], found.index, found.line, found.reason)
        for found in reader.problems
    ]
    if not pages and not xml_problems and not problems:  # a schema demands one
        problems.append(StatementProblem(StatementRefusal.SCHEMA_INVALID, 0, 0, f"there is no {part}"))
    return reader.message, pages, tuple([*xml_problems, *problems][:PROBLEMS_MAX])


class _Refused(Exception):
    """Leaves the reading of one part; caught in `read_camt053`, never seen outside."""

    def __init__(self, refusal: StatementRefusal, reason: str) -> None:
        super().__init__(reason)
        self.refusal = refusal
        self.reason = reason


def _write_account_id(xml: XmlWriter, account: str) -> None:
    with xml.element("Id"), xml.element("Othr"):
        xml.text("Id", account, length_max=34)


def _write_bic(xml: XmlWriter, participant: ParticipantId) -> None:
    with xml.element("FinInstnId"):
        xml.text("BICFI", participant, length_max=11)


def _write_balance(xml: XmlWriter, code: str, signed_minor: int, currency: Currency, moment: datetime) -> None:
    with xml.element("Bal"):
        with xml.element("Tp"), xml.element("CdOrPrtry"):
            xml.text("Cd", code)
        xml.text("Amt", minor_text(abs(signed_minor), currency), Ccy=currency.code)
        xml.text("CdtDbtInd", "DBIT" if signed_minor < 0 else "CRDT")
        with xml.element("Dt"):
            xml.text("DtTm", datetime_text(moment))


def _write_summary(xml: XmlWriter, statement: Statement) -> None:
    totals = summarise(statement.entries)
    groups = (
        ("TtlNtries", totals.entry_count, totals.entry_sum_minor),
        ("TtlCdtNtries", totals.credit_count, totals.credit_sum_minor),
        ("TtlDbtNtries", totals.debit_count, totals.debit_sum_minor),
    )
    with xml.element("TxsSummry"):
        for name, count, sum_minor in groups:
            with xml.element(name):
                xml.text("NbOfNtries", str(count or 0))
                xml.text("Sum", minor_text(sum_minor or 0, statement.currency))


def _write_entry(xml: XmlWriter, entry: StatementEntry) -> None:
    with xml.element("Ntry"):
        xml.text("NtryRef", entry.reference)
        xml.text("Amt", amount_text(entry.amount), Ccy=entry.amount.currency.code)
        xml.text("CdtDbtInd", entry.direction.value)
        if entry.is_reversal:
            xml.text("RvslInd", "true")
        with xml.element("Sts"):
            xml.text("Cd", entry.status.value)
        with xml.element("BookgDt"):
            xml.text("DtTm", datetime_text(entry.booked_at))
        with xml.element("ValDt"):
            xml.text("Dt", entry.value_date.isoformat())
        xml.text("AcctSvcrRef", entry.reference)
        with xml.element("BkTxCd"), xml.element("Domn"):
            xml.text("Cd", "PMNT")
            with xml.element("Fmly"):
                xml.text("Cd", _FAMILY[entry.direction])
                xml.text("SubFmlyCd", "FICT")
        has_refs = entry.end_to_end_id is not None or entry.uetr is not None
        others = (entry.counterparty, entry.counterparty_account, entry.instructed)
        if not has_refs and all(item is None for item in others):
            return
        role = "Dbtr" if entry.direction is Direction.CREDIT else "Cdtr"
        with xml.element("NtryDtls"), xml.element("TxDtls"):
            if has_refs:
                with xml.element("Refs"):
                    if entry.end_to_end_id is not None:
                        xml.text("EndToEndId", entry.end_to_end_id)
                    if entry.uetr is not None:
                        _write_uetr(xml, entry.uetr)
            if entry.instructed is not None:
                with xml.element("AmtDtls"), xml.element("InstdAmt"):
                    xml.text("Amt", amount_text(entry.instructed), Ccy=entry.instructed.currency.code)
            if entry.counterparty_account is not None:
                with xml.element("RltdPties"), xml.element(role + "Acct"):
                    _write_account_id(xml, entry.counterparty_account)
            if entry.counterparty is not None:
                with xml.element("RltdAgts"), xml.element(role + "Agt"):
                    _write_bic(xml, entry.counterparty)


def _write_uetr(xml: XmlWriter, uetr: UUID) -> None:
    if uetr.version == 4:
        xml.text("UETR", str(uetr), length_max=36)
    elif uetr.version == 7:  # the schema knows version 4 alone
        with xml.element("Prtry"):
            xml.text("Tp", "UETR")
            xml.text("Ref", uetr.hex)
    else:
        raise ValueError(f"UETR {uetr} is not a UUID of version 4 or 7")


def _find(element: etree._Element | None, *path: str) -> etree._Element | None:
    """The first descendant along local names (the schema has settled the namespace already)."""
    for name in path:
        if element is None:
            return None
        element = next((child for child in element if local_name(child) == name), None)
    return element


def _text(element: etree._Element | None, *path: str) -> str | None:
    found = _find(element, *path)
    return None if found is None else found.text or ""


def _required(element: etree._Element, *path: str) -> str:
    text = _text(element, *path)
    if not text:
        raise _Refused(StatementRefusal.FIELD_MISSING, "/".join(path))
    return text


def _currency(code: str) -> Currency:
    currency = parse_currency(code)
    if currency is None:
        raise _Refused(StatementRefusal.CURRENCY_UNKNOWN, f"{code[:10]!r}")
    return currency


def _minor(text: str, currency: Currency) -> int:
    """Minor units of a non-negative xs:decimal; zeros beyond the currency's decimals say nothing and are let be."""
    match = _AMOUNT.fullmatch(text.strip()[:60])
    if match is not None and (match["units"] or match["fraction"]):
        fraction = (match["fraction"] or "").rstrip("0")
        units = match["units"].lstrip("0")
        if len(fraction) <= currency.exponent and len(units) + currency.exponent <= 18:
            return int((units or "0") + fraction.ljust(currency.exponent, "0"))
    raise _Refused(StatementRefusal.AMOUNT_INVALID, f"{text[:40]!r} in {currency} with {currency.exponent} decimals")


def _moment(text: str, zone: ZoneInfo) -> datetime:
    match = _MOMENT.fullmatch(text.strip()[:100])
    if match is None:
        raise _Refused(StatementRefusal.DATE_INVALID, f"{text[:40]!r} is no moment")
    try:
        offset = "+00:00" if match[4] == "Z" else match[4] or ""
        micros = (match[3] or "0")[:6].ljust(6, "0")
        is_end = match[2] == "24:00:00"  # of a day, as xs:dateTime has it
        moment = datetime.fromisoformat(f"{match[1]}T{'00:00:00' if is_end else match[2]}.{micros}{offset}")
        moment += timedelta(days=int(is_end))
        moment = (moment if offset else moment.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise _Refused(StatementRefusal.DATE_INVALID, f"{text[:40]!r}") from None
    _check_near(moment.date())
    return moment


def _day(text: str) -> date:
    """The day as written: of a booking it is the servicer's, whatever offset stands behind it."""
    day = parse_date(_ZONE_OF_DAY.sub("", text.strip()[:40]))
    if day is None:
        raise _Refused(StatementRefusal.DATE_INVALID, f"{text[:40]!r} is not one calendar date")
    _check_near(day)
    return day


def _check_near(day: date) -> None:
    if not EARLIEST <= day <= LATEST:
        raise _Refused(StatementRefusal.DATE_INVALID, f"{day} is not from {EARLIEST} to {LATEST}")


def _bic(element: etree._Element | None) -> ParticipantId | None:
    """BICFI (camt.053.001.02: BIC), of which the schema has checked the shape already."""
    text = _text(element, "FinInstnId", "BICFI") or _text(element, "FinInstnId", "BIC")
    return None if text is None else parse_participant(text)


def _page_of(element: etree._Element, pagination: str) -> tuple[str | None, str | None]:
    return _text(element, pagination, "PgNb"), _text(element, pagination, "LastPgInd")


def _read_page(
    element: etree._Element,
    entries: Sequence[_Entry],
    kind: str,
    of_message: tuple[str | None, str | None],
    zone: ZoneInfo,
) -> Page:
    page, last = _page_of(element, _SHAPES[kind][2])
    if page is None:
        page, last = of_message
    account = _find(element, "Acct")
    number = _text(account, "Id", "Othr", "Id") or _text(account, "Id", "IBAN")
    if not number:
        raise _Refused(StatementRefusal.FIELD_MISSING, "Acct/Id")
    declared = _text(account, "Ccy")
    balances = {} if kind == "camt.054" else _balances(element, zone)
    found = {currency for currency, _, _ in balances.values()} | ({_currency(declared)} if declared else set())
    if len(found) > 1:
        raise _Refused(StatementRefusal.AMOUNT_INVALID, "the account and its balances are in several currencies")
    if not found:
        raise _Refused(StatementRefusal.FIELD_MISSING, "Acct/Ccy")
    closes = ("CLBD",) if kind == "camt.053" else ("CLBD", "ITBD")
    opening = next((balances[code] for code in _OPENING if code in balances), None)
    closing = next((balances[code] for code in closes if code in balances), None)
    created, begins, ends = (
        _text(element, *path) for path in (("CreDtTm",), ("FrToDt", "FrDtTm"), ("FrToDt", "ToDtTm"))
    )
    currency = found.pop()
    number_of_page, statement_id = _page_number(page), _required(element, "Id")
    return Page(
        number=number_of_page,
        is_last=(last or "").strip() not in ("false", "0"),
        statement_id=statement_id,
        sequence_number=_sequence_number(_text(element, "ElctrncSeqNb")),
        account=number,
        currency=currency,
        created_at=_moment(created, zone) if created else None,
        period=(_moment(begins, zone), _moment(ends, zone)) if begins and ends else None,
        opening=None if opening is None else (opening[1], opening[2][0]),
        closing=None if closing is None else (closing[1], closing[2][1]),
        has_balances=kind != "camt.054",
        servicer=_bic(_find(account, "Svcr")),
        summary=_read_summary(_find(element, "TxsSummry"), currency),
        entries=tuple(
            entry.named(statement_id, f"{number_of_page}.{place}") for place, entry in enumerate(entries, start=1)
        ),
    )


def _page_number(text: str | None) -> int:
    if text is None:
        return 1
    if not re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) or int(text) < 1:
        raise _Refused(StatementRefusal.PAGES_INCOMPLETE, f"there is no page {text[:10]!r}")
    return int(text)


def _sequence_number(text: str | None) -> int | None:
    if text is None:
        return None
    digits = text.strip().removeprefix("+").partition(".")[0]
    if not digits.isdigit():
        raise _Refused(StatementRefusal.FIELD_MISSING, "ElctrncSeqNb must be a natural number")
    return int(digits)


_Balance = tuple[Currency, int, tuple[datetime, datetime]]


def _balances(element: etree._Element, zone: ZoneInfo) -> dict[str, _Balance]:
    """By code: currency, signed minor units, and the first and the last moment of its date. One that is marked as
    intermediate (a page's) stands back for one that is not; else the first opening and the last closing one count."""
    found: dict[str, _Balance] = {}
    ranks: dict[str, bool] = {}
    for balance in element:
        amount = _find(balance, "Amt") if local_name(balance) == "Bal" else None
        if amount is None:
            continue
        code = _text(balance, "Tp", "CdOrPrtry", "Cd") or ""
        is_whole = _text(balance, "Tp", "SubTp", "Cd") != "INTM"
        known = ranks.get(code)
        if known is not None and (known > is_whole or (known is is_whole and code in _OPENING)):
            continue
        currency = _currency(str(amount.get("Ccy", "")))
        signed = _minor(amount.text or "", currency) * (-1 if _text(balance, "CdtDbtInd") == "DBIT" else 1)
        found[code], ranks[code] = (currency, signed, _date_of(balance, zone)), is_whole
    return found


_OPENING = ("OPBD", "PRCD")


def _date_of(balance: etree._Element, zone: ZoneInfo) -> tuple[datetime, datetime]:
    moment = _text(balance, "Dt", "DtTm")
    if moment:
        return _moment(moment, zone), _moment(moment, zone)
    day = _day(_required(balance, "Dt", "Dt"))
    begins = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return begins, begins.replace(hour=23, minute=59, second=59)


def _read_summary(element: etree._Element | None, currency: Currency) -> StatementSummary | None:
    if element is None:
        return None
    numbers: list[int | None] = []
    for group in ("TtlNtries", "TtlCdtNtries", "TtlDbtNtries"):
        count, total = _text(element, group, "NbOfNtries"), _text(element, group, "Sum")
        numbers += [int(count) if count else None, _minor(total, currency) if total else None]
    return StatementSummary(*numbers)


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry as read; its name beyond the statement follows with the statement's id."""

    entry: StatementEntry
    ordinal: str
    """NtryRef, "" if there is none."""

    def named(self, statement_id: str, place: str) -> StatementEntry:
        entry = self.entry
        if entry.reference and not entry.parts:
            return entry
        reference = entry.reference or f"{statement_id}/{self.ordinal or place}"
        parts = tuple(
            replace(
                part,
                reference=part.reference or f"{reference}/{number}",
                group_reference=entry.group_reference or reference,
            )
            for number, part in enumerate(entry.parts, start=1)
        )
        return replace(entry, reference=reference, parts=parts)


def _read_entry(element: etree._Element, zone: ZoneInfo) -> _Entry:
    """One Ntry. Its reference, and those of its parts, are the servicer's or "" for the time being."""
    amount = _find(element, "Amt")
    if amount is None:
        raise _Refused(StatementRefusal.FIELD_MISSING, "Amt")
    currency = _currency(str(amount.get("Ccy", "")))
    direction = Direction(_required(element, "CdtDbtInd"))
    code = _text(element, "Sts", "Cd") or (_text(element, "Sts") or "").strip()  # bare before camt.053.001.08
    status = _STATUSES.get(code)
    if status is None:
        said = code or _text(element, "Sts", "Prtry") or ""
        raise _Refused(StatementRefusal.STATUS_UNKNOWN, f"{said[:35]!r}")
    details = [
        each for part in element if local_name(part) == "NtryDtls" for each in part if local_name(each) == "TxDtls"
    ]
    # A batch-booked entry has several, in one or in several NtryDtls, and none of their ids is the entry's.
    single = details[0] if len(details) == 1 else None
    entry = _of_details(
        single,
        StatementEntry(
            reference=_text(element, "AcctSvcrRef") or "",
            end_to_end_id=None,
            uetr=None,
            amount=Money(_minor(amount.text or "", currency), currency),
            direction=direction,
            booked_at=_booked_at(element, zone),
            value_date=_value_date(element),
            status=status,
            group_reference=_group(element),
            instructed=_instructed(element),
            is_reversal=(_text(element, "RvslInd") or "").strip() in ("true", "1"),
        ),
    )
    if len(details) > 1:
        entry = replace(entry, parts=_parts(details, entry))
    return _Entry(entry, _text(element, "NtryRef") or "")


def _of_details(details: etree._Element | None, entry: StatementEntry) -> StatementEntry:
    """The entry with what its transaction says."""
    if details is None:
        return entry
    refs = _find(details, "Refs")
    uetr = _text(refs, "UETR") or _proprietary_uetr(refs)
    role = "Dbtr" if entry.direction is Direction.CREDIT else "Cdtr"
    account = _find(details, "RltdPties", role + "Acct", "Id")
    return replace(
        entry,
        reference=entry.reference or _text(refs, "AcctSvcrRef") or "",
        end_to_end_id=_text(refs, "EndToEndId"),
        uetr=None if uetr is None else UUID(uetr),
        counterparty=_bic(_find(details, "RltdAgts", role + "Agt")),
        counterparty_account=_text(account, "Othr", "Id") or _text(account, "IBAN"),
        instructed=_instructed(details) or entry.instructed,
    )


def _parts(details: Sequence[etree._Element], entry: StatementEntry) -> tuple[StatementEntry, ...]:
    """The payments of a batch-booked entry; none if they do not all say their amounts, or nothing names any of them:
    then the entry is all there is to compare."""
    parts: list[StatementEntry] = []
    currency = entry.amount.currency
    names: set[str] = set()
    for each in details:
        amount = _find(each, "Amt")
        amount = _find(each, "AmtDtls", "TxAmt", "Amt") if amount is None else amount
        if amount is None or amount.get("Ccy") != currency.code:
            return ()
        said = _text(each, "CdtDbtInd")
        part = _of_details(
            each,
            replace(
                entry,
                reference="",
                amount=Money(_minor(amount.text or "", currency), currency),
                direction=entry.direction if said is None else Direction(said),
                instructed=None,
            ),
        )
        is_own = part.reference not in names and part.reference != entry.reference
        parts.append(part if is_own else replace(part, reference=""))
        names.add(part.reference)
    has_ids = any(part.uetr is not None or is_id(part.end_to_end_id) for part in parts)
    return tuple(parts) if has_ids else ()


def _group(entry: etree._Element) -> str | None:
    """PmtInfId, or else MsgId, of the bulk that the entry books."""
    batch = _find(entry, "NtryDtls", "Btch")
    return _text(batch, "PmtInfId") or _text(batch, "MsgId") or None


def _instructed(element: etree._Element) -> Money | None:
    """The amount before conversion, if it is in a currency that can be booked."""
    amount = _find(element, "AmtDtls", "InstdAmt", "Amt")
    currency = None if amount is None else parse_currency(str(amount.get("Ccy", "")))
    return None if amount is None or currency is None else Money(_minor(amount.text or "", currency), currency)


def _proprietary_uetr(refs: etree._Element | None) -> str | None:
    for found in () if refs is None else refs:
        if local_name(found) == "Prtry" and _text(found, "Tp") == "UETR":
            text = _text(found, "Ref") or ""
            return text if _UETR_HEX.fullmatch(text) else None
    return None


def _booked_at(element: etree._Element, zone: ZoneInfo) -> datetime:
    moment = _text(element, "BookgDt", "DtTm")
    if moment is not None:
        return _moment(moment, zone)
    day = _day_in(element, "BookgDt", "ValDt")
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _value_date(element: etree._Element) -> date:
    return _day_in(element, "ValDt", "BookgDt")


def _day_in(element: etree._Element, *names: str) -> date:
    """The day that the first of these dates names, as written."""
    for name in names:
        text = _text(element, name, "Dt") or (_text(element, name, "DtTm") or "").strip()[:10]
        if text:
            return _day(text)
    raise _Refused(StatementRefusal.FIELD_MISSING, " or ".join(names))
