"""Reads credit transfers, pacs.008 (of customers) and pacs.009 (between institutions), in every version of `versions`.

Where each term of an instruction travels:

| term | element of CdtTrfTxInf |
|---|---|
| instruction id, end-to-end id, UETR | PmtId/InstrId, PmtId/EndToEndId, PmtId/UETR (all three required here) |
| debtor, creditor | pacs.009: Dbtr, Cdtr; pacs.008: DbtrAgt, CdtrAgt; each FinInstnId/BICFI |
| currency and amount of the first leg | IntrBkSttlmAmt and its Ccy |
| value date | IntrBkSttlmDt, of the transaction or else of the group header |
| priority | SttlmPrty (default NORM) |
| counter currency, counter amount | InstrForNxtAgt/InstrInf, the code word `/PVP/AED` or `/PVP/AED/3650.00` |
| pacs.008: whose money it is | UltmtDbtr or Dbtr, UltmtCdtr or Cdtr: Nm, country, Id; Purp/Cd |

A credit transfer has no field for a second currency: it moves one. The bridge is the *next agent*, so what it alone has
to do (exchange against another currency, both or neither) is an instruction for the next agent, in the slash-coded form
that field 72 of its predecessor MT 202 had. Other texts in InstrForNxtAgt are ignored; two `/PVP/` are refused. Without
one, the counter currency is left to the quote.

Checked besides the schema: the application header against the document, SttlmMtd (CLRG), NbOfTxs, CtrlSum and
TtlIntrBkSttlmAmt (when given), duplicates, LEIs, characters. An answer without problems means "XSD-valid and readable",
not valid under the rules of any payment scheme.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from lxml import etree

from settlement.domain.compliance import ComplianceData, PartyKind
from settlement.domain.instructions import (
    DeclaredTotals,
    Instruction,
    InstructionProblem,
    InstructionRefusal,
    Intake,
    RawInstruction,
    ReadResult,
    decide_instruction,
)
from settlement.iso20022.chunks import Chunk, FileProblem, GroupHeader, Line
from settlement.iso20022.head001 import HeaderRefused, check_header, read_header
from settlement.iso20022.segments import START, Cursor, FileRefused, Part, Segment, SegmentReader
from settlement.iso20022.versions import CREDIT_TRANSFERS, kind_of
from settlement.iso20022.xml_reader import line_of, local_name, namespace_of

INSTRUCTIONS_MAX = 100_000
BYTES_MAX = 160 * 1024 * 1024
"""About 1,600 bytes for each of INSTRUCTIONS_MAX; our own writer needs some 800."""

_REFUSAL_BY_CODE = {refusal.value: refusal for refusal in InstructionRefusal}
_PVP = re.compile(r"/PVP/([A-Z]{3})(?:/([0-9.]{1,40}))?", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)", re.ASCII)


def read_chunks(
    source: BinaryIO,
    *,
    cursor: Cursor = START,
    bytes_max: int = BYTES_MAX,
    messages: Sequence[str] = CREDIT_TRANSFERS,
) -> Iterator[Chunk]:
    """A file's instructions in order from a cursor on, each decided by itself, in bounded memory.

    `source` must be seekable. Totals and duplicates are the caller's. Raises FileProblem, OSError.
    """
    reader = SegmentReader(source, messages=messages, repeated="CdtTrfTxInf", bytes_max=bytes_max)
    header: GroupHeader | None = None
    try:
        for segment in reader.segments(cursor):
            if header is None:
                header = _group_header(segment)
            transactions = _Transactions(segment.message, header)
            lines = [transactions.line(part) for part in segment.parts]
            yield Chunk(header, lines, segment.after, segment.is_last)
    except FileRefused as refused:
        refusal = _REFUSAL_BY_CODE[refused.refusal.value]
        raise FileProblem(InstructionProblem(refusal, refused.index, refused.line, refused.reason)) from None


def read_credit_transfer(
    source: BinaryIO | Path,
    *,
    instructions_max: int = INSTRUCTIONS_MAX,
    bytes_max: int = BYTES_MAX,
    messages: Sequence[str] = CREDIT_TRANSFERS,
) -> ReadResult:
    """Read a batch whole or refuse it with every problem found, up to PROBLEMS_MAX.

    Memory: the instructions, plus one segment of XML. Raises OSError if the source cannot be read.
    """
    intake = Intake(instructions_max=instructions_max)
    header: GroupHeader | None = None
    with ExitStack() as stack:
        file = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
        try:
            for chunk in read_chunks(file, bytes_max=bytes_max, messages=messages):
                header = chunk.header
                if header is not None and (header.declared.count or 0) > instructions_max:
                    reason = f"NbOfTxs says {header.declared.count:,}, a batch takes at most {instructions_max:,}"
                    intake.refuse(InstructionRefusal.TOO_MANY_INSTRUCTIONS, reason, line=header.line)
                    break
                for line in chunk.lines:
                    intake.add(line.decided, amount=line.amount, currency=line.currency, line=line.line)
                if intake.is_full:
                    break
        except FileProblem as refused:
            found = refused.problem
            intake.refuse(found.refusal, found.reason, line=found.line, index=found.index)
    if header is None:
        return intake.finish()
    return intake.finish(
        message_id=header.message_id,
        declared=header.declared,
        message=header.message,
        sender=header.sender,
        receiver=header.receiver,
    )


def _group_header(segment: Segment) -> GroupHeader:
    """The group header, checked with what is around it. Raises FileProblem."""
    document = segment.document
    prefix = f"{{{namespace_of(segment.message)}}}"
    element = document.find(f"*/{prefix}GrpHdr")
    if element is None:
        raise FileProblem(InstructionProblem(InstructionRefusal.SCHEMA_INVALID, 0, 0, "there is no GrpHdr"))
    line = line_of(element)

    def text(*path: str) -> str:
        return element.findtext("/".join(prefix + name for name in path)) or ""

    sender = receiver = None
    if segment.header is not None:
        try:
            header = read_header(segment.header)
            agents = [text(role, "FinInstnId", "BICFI") for role in ("InstgAgt", "InstdAgt")]
            check_header(
                header, message=segment.message, message_id=text("MsgId"), sender=agents[0], receiver=agents[1]
            )
        except HeaderRefused as refused:
            problem = InstructionProblem(InstructionRefusal.APPLICATION_HEADER_INVALID, 0, line, str(refused)[:300])
            raise FileProblem(problem) from None
        sender, receiver = header.sender, header.receiver
    total = element.find(f"{prefix}TtlIntrBkSttlmAmt")
    found = GroupHeader(
        segment.message,
        text("MsgId"),
        text("IntrBkSttlmDt").strip(),
        text("SttlmInf", "SttlmMtd"),
        DeclaredTotals(
            count=_number(text("NbOfTxs")),
            control_sum=_decimal(text("CtrlSum")),
            total=_total(total),
        ),
        sender,
        receiver,
        line,
    )
    if found.settlement_method != "CLRG":
        reason = f"SttlmMtd is {found.settlement_method[:10]!r}: no correspondent's account is debited here"
        refusal = InstructionRefusal.SETTLEMENT_METHOD_UNSUPPORTED
        raise FileProblem(InstructionProblem(refusal, 0, line, reason))
    return found


def _number(text: str) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) <= 15 else None


def _decimal(text: str) -> Fraction | None:
    """An xs:decimal. A text that is none is reported by the schema; here it counts as not declared."""
    trimmed = text.strip()
    return Fraction(trimmed) if len(trimmed) <= 60 and _DECIMAL.fullmatch(trimmed) else None


def _total(element: etree._Element | None) -> tuple[str, Fraction] | None:
    if element is None:
        return None
    amount = _decimal(element.text or "")
    return None if amount is None else (str(element.get("Ccy", "")), amount)


class _Transactions:
    """Reads the transactions of one message; element names are put together once."""

    def __init__(self, message: str, header: GroupHeader) -> None:
        self._header = header
        self._is_customer = kind_of(message) == "pacs.008"
        self._prefix = prefix = f"{{{namespace_of(message)}}}"
        self._payment_id = f"{prefix}PmtId"
        self._amount = f"{prefix}IntrBkSttlmAmt"
        self._next_agent = f"{prefix}InstrForNxtAgt"
        self._instruction_text = f"{prefix}InstrInf"
        self._institution = f"{prefix}FinInstnId"
        self._bic = f"{prefix}BICFI"
        self._lei = f"{prefix}LEI"
        self._name = f"{prefix}Nm"
        self._debtor = f"{prefix}{'DbtrAgt' if self._is_customer else 'Dbtr'}"
        self._creditor = f"{prefix}{'CdtrAgt' if self._is_customer else 'Cdtr'}"

    def line(self, part: Part) -> Line:
        children: dict[str, etree._Element] = {}
        terms: list[str] = []
        for child in part.element:
            tag = str(child.tag)
            if tag == self._next_agent:
                terms += [item.text or "" for item in child if item.tag == self._instruction_text]
            else:
                children[tag] = child
        found = children.get(self._amount)
        # xs:decimal lets white space surround a number; nothing else is forgiven.
        amount = "" if found is None else (found.text or "").strip()
        currency = "" if found is None else str(found.get("Ccy", ""))
        decided = self._decide(part, children, terms, amount, currency)
        return Line(part.index, part.line, decided, amount, currency)

    def _decide(
        self, part: Part, children: dict[str, etree._Element], terms: list[str], amount: str, currency: str
    ) -> Instruction | InstructionProblem:
        def refuse(refusal: InstructionRefusal, reason: str) -> InstructionProblem:
            return InstructionProblem(refusal, part.index, part.line, reason)

        if part.fault:
            return refuse(InstructionRefusal.SCHEMA_INVALID, part.fault)
        pvp = [text.strip() for text in terms if text.strip().startswith("/PVP/")]
        match = _PVP.fullmatch(pvp[0]) if pvp else None
        if len(pvp) > 1 or (pvp and match is None):
            reason = f"expected one /PVP/CCY or /PVP/CCY/AMOUNT, found {'; '.join(pvp)[:80]!r}"
            return refuse(InstructionRefusal.COUNTER_TERMS_INVALID, reason)
        own_date, group_date = self._text(children, "IntrBkSttlmDt"), self._header.value_date
        if own_date and group_date and own_date.strip() != group_date:
            reason = f"the transaction says {own_date[:30]!r}, the group header {group_date[:30]!r}"
            return refuse(InstructionRefusal.VALUE_DATE_INVALID, reason)
        ids = {str(child.tag): child.text or "" for child in children.get(self._payment_id, ())}
        raw = RawInstruction(
            line=part.line,
            instruction_id=ids.get(f"{self._prefix}InstrId", ""),
            end_to_end_id=ids.get(f"{self._prefix}EndToEndId", ""),
            uetr=ids.get(f"{self._prefix}UETR", ""),
            debtor=self._bic_of(children.get(self._debtor)),
            creditor=self._bic_of(children.get(self._creditor)),
            currency=currency,
            amount=amount,
            counter_currency=match[1] if match else "",
            counter_amount=(match[2] or "") if match else "",
            value_date=(own_date or group_date).strip(),
            priority=self._text(children, "SttlmPrty"),
            compliance=self._customers(children) if self._is_customer else None,
            charge_bearer=self._text(children, "ChrgBr"),
            charges_stated=f"{self._prefix}ChrgsInf" in children,
            leis=tuple(item.text or "" for item in part.element.iter(self._lei)),
            texts=tuple(self._texts(part.element)),
        )
        return decide_instruction(raw, index=part.index)

    def _text(self, children: dict[str, etree._Element], name: str) -> str:
        child = children.get(self._prefix + name)
        return "" if child is None else child.text or ""

    def _bic_of(self, party: etree._Element | None) -> str:
        """FinInstnId/BICFI of a party, or "" (the party may be named by LEI or name only)."""
        for institution in () if party is None else party:
            if institution.tag == self._institution:
                for child in institution:
                    if child.tag == self._bic:
                        return child.text or ""
        return ""

    def _texts(self, element: etree._Element) -> Iterator[tuple[str, str]]:
        """Names and remittance lines: what CBPR+ holds to its character set."""
        for found in element.iter(self._name, f"{self._prefix}Ustrd", f"{self._prefix}AdrLine"):
            parent = found.getparent()
            yield f"{local_name(parent) if parent is not None else ''}/{local_name(found)}", found.text or ""

    def _customers(self, children: dict[str, etree._Element]) -> ComplianceData:
        """Whose money it is. Personal data: what compliance asks for and no more."""
        debtor = self._party(children, "UltmtDbtr", "Dbtr")
        creditor = self._party(children, "UltmtCdtr", "Cdtr")
        purpose = children.get(f"{self._prefix}Purp")
        code = "" if purpose is None else purpose.findtext(f"{self._prefix}Cd") or ""
        return ComplianceData(
            debtor_kind=debtor.kind,
            debtor_name=debtor.name,
            debtor_country=debtor.country,
            debtor_resident_id=debtor.identification,
            debtor_lei=debtor.lei,
            creditor_kind=creditor.kind,
            creditor_name=creditor.name,
            creditor_country=creditor.country,
            creditor_lei=creditor.lei,
            purpose=code,
        )

    def _party(self, children: dict[str, etree._Element], *roles: str) -> _Party:
        prefix = self._prefix
        element = next((children[prefix + role] for role in roles if prefix + role in children), None)
        if element is None:
            return _Party()

        def text(path: str) -> str:
            return element.findtext("/".join(prefix + name for name in path.split("/"))) or ""

        person = element.find(f"{prefix}Id/{prefix}PrvtId")
        organisation = element.find(f"{prefix}Id/{prefix}OrgId")
        kind = PartyKind.UNKNOWN
        if person is not None:
            kind = PartyKind.PERSON
        elif organisation is not None:
            kind = PartyKind.ORGANISATION
        country = text("CtryOfRes") or text("PstlAdr/Ctry")
        return _Party(kind, text("Nm"), country, text("Id/PrvtId/Othr/Id"), text("Id/OrgId/LEI"))


@dataclass(frozen=True, slots=True)
class _Party:
    kind: PartyKind = PartyKind.UNKNOWN
    name: str = ""
    country: str = ""
    identification: str = ""
    lei: str = ""

    def __repr__(self) -> str:
        return f"_Party({self.kind})"
