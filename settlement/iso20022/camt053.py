"""camt.053 (BankToCustomerStatement), and its siblings: camt.052, the report of a day that is not over, and camt.054,
notifications of single debits and credits. Streamed out, and read back, in every version of `versions`.

| statement | element of Stmt (camt.052: Rpt, camt.054: Ntfctn) |
|---|---|
| statement id, sequence number | Id, ElctrncSeqNb |
| account, currency, servicer | Acct/Id/Othr/Id (IBAN is read too), Acct/Ccy, Acct/Svcr/FinInstnId/BICFI |
| opening and closing balance | Bal with Tp/CdOrPrtry/Cd OPBD and CLBD (interim ones: ITBD), direction in CdtDbtInd |
| declared totals | TxsSummry, over all entries |
| entry reference (the transfer id without hyphens) | Ntry/NtryRef, or else Ntry/AcctSvcrRef |
| booked_at, value_date | BookgDt/DtTm (a bare Dt is read as 00:00 UTC), ValDt/Dt |
| page, last page | StmtPgntn/PgNb, LastPgInd |
| end-to-end id, UETR | NtryDtls/TxDtls/Refs (a UETR of version 7: Prtry with Tp UETR) |
| counterparty and its account | TxDtls/RltdAgts and RltdPties: the debtor's of a credit, the creditor's of a debit |

The reader refuses what it cannot understand. Whether a statement that it does understand adds up is a *finding*, not a
refusal: `settlement.domain.reconciliation.check_statement` turns each into a break, so that a person sees the
counterparty's lines next to what is wrong with their sums. `read_camt053` hands them out as `findings`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from lxml import etree

from kernel.ids import ParticipantId, parse_participant
from kernel.money import Currency, Money
from settlement.domain.instructions import PROBLEMS_MAX, parse_currency, parse_date
from settlement.domain.reconciliation import Break, check_statement
from settlement.domain.statements import (
    Direction,
    EntryStatus,
    Statement,
    StatementEntry,
    StatementRefusal,
    StatementSummary,
    booked_net_minor,
    summarise,
)
from settlement.iso20022.versions import DEFAULT, VERSIONS, kind_of
from settlement.iso20022.xml_reader import MessageReader, line_of, local_name
from settlement.iso20022.xml_writer import XmlWriter, amount_text, datetime_text, document_writer, minor_text

MESSAGE = DEFAULT["camt.053"]
ENTRIES_MAX = 1_000_000
BYTES_MAX = 1024 * 1024 * 1024

_UETR_HEX = re.compile(r"[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}", re.ASCII)
_AMOUNT = re.compile(r"\+?(?P<units>[0-9]*)(?:\.(?P<fraction>[0-9]*))?", re.ASCII)
_MOMENT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,40}))?(Z|[+-][0-9]{2}:[0-9]{2})", re.ASCII
)
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
) -> StatementReadResult:
    """Read one statement whole, or refuse it with every problem found, up to PROBLEMS_MAX. Raises OSError.

    `messages` may be those of one sibling instead.
    """
    part = _SHAPES[kind_of(messages[0])][1]
    reader = MessageReader(
        source,
        messages=messages,
        tags=("Ntry", part),
        repeated="Ntry",
        bytes_max=bytes_max,
        problems_max=PROBLEMS_MAX,
    )
    entries: list[StatementEntry] = []
    statements: list[Statement] = []
    problems: list[StatementProblem] = []
    index = 0
    for element in reader:
        line = line_of(element)
        try:
            if local_name(element) == "Ntry":
                index += 1
                if index > entries_max:
                    raise _Refused(StatementRefusal.TOO_MANY_ENTRIES, f"a statement takes at most {entries_max:,}")
                entries.append(_read_entry(element))
                continue
            if statements:
                raise _Refused(StatementRefusal.TOO_MANY_STATEMENTS, "send one statement a file")
            statements.append(_read_statement(element, tuple(entries), kind_of(reader.message)))
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
    if xml_problems or problems:
        return StatementReadResult(None, tuple([*xml_problems, *problems][:PROBLEMS_MAX]))
    statement = statements[0]  # the schema demands at least one
    return StatementReadResult(statement, (), check_statement(statement, as_of=statement.to_at.date()))


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
        if not has_refs and entry.counterparty is None and entry.counterparty_account is None:
            return
        role = "Dbtr" if entry.direction is Direction.CREDIT else "Cdtr"
        with xml.element("NtryDtls"), xml.element("TxDtls"):
            if has_refs:
                with xml.element("Refs"):
                    if entry.end_to_end_id is not None:
                        xml.text("EndToEndId", entry.end_to_end_id)
                    if entry.uetr is not None:
                        _write_uetr(xml, entry.uetr)
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


def _moment(text: str) -> datetime:
    match = _MOMENT.fullmatch(text)
    if match is None:
        raise _Refused(StatementRefusal.DATE_INVALID, f"{text[:40]!r}: a moment needs its time zone")
    try:
        zone = "+00:00" if match[3] == "Z" else match[3]
        micros = (match[2] or "0")[:6].ljust(6, "0")
        return datetime.fromisoformat(f"{match[1]}.{micros}{zone}").astimezone(UTC)
    except (ValueError, OverflowError):
        raise _Refused(StatementRefusal.DATE_INVALID, f"{text[:40]!r}") from None


def _day(text: str) -> date:
    day = parse_date(text)
    if day is None:
        raise _Refused(StatementRefusal.DATE_INVALID, f"{text[:40]!r} is not one calendar date")
    return day


def _bic(element: etree._Element | None) -> ParticipantId | None:
    """BICFI, of which the schema has checked the shape already."""
    text = _text(element, "FinInstnId", "BICFI")
    return None if text is None else parse_participant(text)


def _read_statement(element: etree._Element, entries: tuple[StatementEntry, ...], kind: str) -> Statement:
    pagination = _SHAPES[kind][2]
    page = _text(element, pagination, "PgNb")
    if page not in (None, "1") or _text(element, pagination, "LastPgInd") in ("false", "0"):
        raise _Refused(StatementRefusal.PAGES_INCOMPLETE, f"page {page}")
    account = _find(element, "Acct")
    number = _text(account, "Id", "Othr", "Id") or _text(account, "Id", "IBAN")
    if not number:
        raise _Refused(StatementRefusal.FIELD_MISSING, "Acct/Id")
    (currency, opening_minor), (closing_currency, closing_minor) = _opening_and_closing(element, entries, kind)
    declared = _text(account, "Ccy")
    if closing_currency != currency or (declared is not None and declared != currency.code):
        raise _Refused(StatementRefusal.AMOUNT_INVALID, "the account and its balances are in several currencies")
    sequence = _required(element, "ElctrncSeqNb").strip().removeprefix("+").partition(".")[0]
    if not sequence.isdigit():
        raise _Refused(StatementRefusal.FIELD_MISSING, "ElctrncSeqNb must be a natural number")
    return Statement(
        statement_id=_required(element, "Id"),
        sequence_number=int(sequence),
        account=number,
        currency=currency,
        created_at=_moment(
            _required(element, "CreDtTm") if _text(element, "CreDtTm") else _required(element, "FrToDt", "ToDtTm")
        ),
        from_at=_moment(_required(element, "FrToDt", "FrDtTm")),
        to_at=_moment(_required(element, "FrToDt", "ToDtTm")),
        opening_minor=opening_minor,
        closing_minor=closing_minor,
        entries=entries,
        servicer=_bic(_find(account, "Svcr")),
        summary=_read_summary(_find(element, "TxsSummry"), currency),
    )


def _opening_and_closing(
    element: etree._Element, entries: tuple[StatementEntry, ...], kind: str
) -> tuple[tuple[Currency, int], tuple[Currency, int]]:
    """Of a notification, which has no balances: from zero to the net of its entries."""
    if kind == "camt.054":
        currency = _currency(_required(element, "Acct", "Ccy"))
        return (currency, 0), (currency, booked_net_minor(entries))
    balances = dict(_balances(element))
    closing = "CLBD" if kind == "camt.053" or "CLBD" in balances else "ITBD"
    for code in ("OPBD", closing):
        if code not in balances:
            raise _Refused(StatementRefusal.FIELD_MISSING, f"the booked balance {code}")
    return balances["OPBD"], balances[closing]


def _balances(element: etree._Element) -> Iterator[tuple[str, tuple[Currency, int]]]:
    for balance in element:
        if local_name(balance) != "Bal":
            continue
        amount = _find(balance, "Amt")
        if amount is None:
            continue
        currency = _currency(str(amount.get("Ccy", "")))
        signed = _minor(amount.text or "", currency) * (-1 if _text(balance, "CdtDbtInd") == "DBIT" else 1)
        yield _text(balance, "Tp", "CdOrPrtry", "Cd") or "", (currency, signed)


def _read_summary(element: etree._Element | None, currency: Currency) -> StatementSummary | None:
    if element is None:
        return None
    numbers: list[int | None] = []
    for group in ("TtlNtries", "TtlCdtNtries", "TtlDbtNtries"):
        count, total = _text(element, group, "NbOfNtries"), _text(element, group, "Sum")
        numbers += [int(count) if count else None, _minor(total, currency) if total else None]
    return StatementSummary(*numbers)


def _read_entry(element: etree._Element) -> StatementEntry:
    amount = _find(element, "Amt")
    if amount is None:
        raise _Refused(StatementRefusal.FIELD_MISSING, "Amt")
    currency = _currency(str(amount.get("Ccy", "")))
    direction = Direction(_required(element, "CdtDbtInd"))
    code = _text(element, "Sts", "Cd") or ""
    if code not in {"BOOK", "PDNG"}:
        raise _Refused(StatementRefusal.STATUS_UNKNOWN, f"{code[:10]!r}")
    reference = _text(element, "NtryRef") or _text(element, "AcctSvcrRef")
    if not reference:
        raise _Refused(StatementRefusal.FIELD_MISSING, "NtryRef or AcctSvcrRef")
    details = _single(element)
    uetr = _text(details, "Refs", "UETR") or _proprietary_uetr(_find(details, "Refs"))
    role = "Dbtr" if direction is Direction.CREDIT else "Cdtr"
    account = _find(details, "RltdPties", role + "Acct", "Id")
    return StatementEntry(
        reference=reference,
        end_to_end_id=_text(details, "Refs", "EndToEndId"),
        uetr=None if uetr is None else UUID(uetr),
        amount=Money(_minor(amount.text or "", currency), currency),
        direction=direction,
        booked_at=_booked_at(element),
        value_date=_value_date(element),
        status=EntryStatus(code),
        counterparty=_bic(_find(details, "RltdAgts", role + "Agt")),
        counterparty_account=_text(account, "Othr", "Id") or _text(account, "IBAN"),
    )


def _proprietary_uetr(refs: etree._Element | None) -> str | None:
    for found in () if refs is None else refs:
        if local_name(found) == "Prtry" and _text(found, "Tp") == "UETR":
            text = _text(found, "Ref") or ""
            return text if _UETR_HEX.fullmatch(text) else None
    return None


def _single(entry: etree._Element) -> etree._Element | None:
    """The one transaction of an entry. A batch-booked entry has several, in one or in several NtryDtls, and none of
    their ids is the entry's."""
    details = [part for part in entry if local_name(part) == "NtryDtls"]
    found = [each for part in details for each in part if local_name(each) == "TxDtls"]
    return found[0] if len(found) == 1 else None


def _booked_at(element: etree._Element) -> datetime:
    moment = _text(element, "BookgDt", "DtTm")
    if moment is not None:
        return _moment(moment)
    day = _day(_required(element, "BookgDt", "Dt"))
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _value_date(element: etree._Element) -> date:
    day = _text(element, "ValDt", "Dt")
    return _day(day) if day is not None else _moment(_required(element, "ValDt", "DtTm")).date()
