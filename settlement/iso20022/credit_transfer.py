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
| whose money it is | UltmtDbtr or Dbtr, UltmtCdtr or Cdtr: Nm, country, Id; Purp/Cd (*) |

(*) Of a pacs.008; of a pacs.009 that covers one, the parties within UndrlygCstmrCdtTrf.

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
    is_lei,
    is_reference,
)
from settlement.iso20022.chunks import Chunk, FileProblem, GroupHeader, Line
from settlement.iso20022.head001 import HeaderRefused, check_header, read_header
from settlement.iso20022.segments import START, Cursor, FileRefused, Part, Segment, SegmentReader
from settlement.iso20022.versions import CREDIT_TRANSFERS, kind_of
from settlement.iso20022.xml_reader import line_of, local_name, namespace_of

INSTRUCTIONS_MAX = 100_000
BYTES_MAX = 160 * 1024 * 1024
"""About 1,600 bytes for each of INSTRUCTIONS_MAX; our own writer needs some 800."""

_HEAD_OFFICE = "XXX"
"""Branch code of a BIC of 11 characters that names the same office as its first eight."""
_TEXTS = (
    *("Nm", "Ustrd", "AddtlRmtInf", "AdrLine", "Dept", "SubDept", "StrtNm", "BldgNb", "BldgNm", "Flr", "PstBx"),
    *("Room", "PstCd", "TwnNm", "TwnLctnNm", "DstrctNm", "CtrySubDvsn"),
)
"""Names, addresses and remittance lines: what CBPR+ holds to its character set."""
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

    if not is_reference(text("MsgId")):
        reason = f"MsgId {text('MsgId')[:40]!r}"
        raise FileProblem(InstructionProblem(InstructionRefusal.REFERENCE_INVALID, 0, line, reason))
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
    for lei in element.iter(f"{prefix}LEI"):
        if not is_lei(lei.text or ""):
            raise FileProblem(InstructionProblem(InstructionRefusal.LEI_INVALID, 0, line, f"{(lei.text or '')[:40]!r}"))
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


def _text(element: etree._Element | None) -> str:
    return "" if element is None else element.text or ""


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
        self._other_ids = tuple((name, prefix + name) for name in ("TxId", "ClrSysRef"))
        self._instruction_id = f"{prefix}InstrId"
        self._end_to_end_id = f"{prefix}EndToEndId"
        self._uetr = f"{prefix}UETR"
        self._amount = f"{prefix}IntrBkSttlmAmt"
        self._value_date = f"{prefix}IntrBkSttlmDt"
        self._priority = f"{prefix}SttlmPrty"
        self._charge_bearer = f"{prefix}ChrgBr"
        self._charges = f"{prefix}ChrgsInf"
        self._next_agent = f"{prefix}InstrForNxtAgt"
        self._instruction_text = f"{prefix}InstrInf"
        self._institution = f"{prefix}FinInstnId"
        self._bic = f"{prefix}BICFI"
        self._lei = f"{prefix}LEI"
        self._checked = tuple(prefix + name for name in ("LEI", *_TEXTS))
        self._intermediaries = tuple(f"{prefix}IntrmyAgt{number}" for number in (1, 2, 3))
        self._underlying = f"{prefix}UndrlygCstmrCdtTrf"
        self._debtor = f"{prefix}{'DbtrAgt' if self._is_customer else 'Dbtr'}"
        self._creditor = f"{prefix}{'CdtrAgt' if self._is_customer else 'Cdtr'}"

    def line(self, part: Part) -> Line:
        children: dict[str | bytes, etree._Element] = {}
        terms: list[str] = []
        for child in part.element:
            tag = child.tag
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
        self, part: Part, children: dict[str | bytes, etree._Element], terms: list[str], amount: str, currency: str
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
        own_date, group_date = _text(children.get(self._value_date)), self._header.value_date
        if own_date and group_date and own_date.strip() != group_date:
            reason = f"the transaction says {own_date[:30]!r}, the group header {group_date[:30]!r}"
            return refuse(InstructionRefusal.VALUE_DATE_INVALID, reason)
        checked = list(part.element.iter(*self._checked))
        agents = self._agents_fault(children)
        if agents:
            return refuse(InstructionRefusal.AGENT_UNSUPPORTED, agents)
        ids = {child.tag: child.text or "" for child in children.get(self._payment_id, ())}
        raw = RawInstruction(
            part.line,
            ids.get(self._instruction_id, ""),
            ids.get(self._end_to_end_id, ""),
            ids.get(self._uetr, ""),
            self._bic_of(children.get(self._debtor)),
            self._bic_of(children.get(self._creditor)),
            currency,
            amount,
            match[1] if match else "",
            (match[2] or "") if match else "",
            (own_date or group_date).strip(),
            _text(children.get(self._priority)),
            self._whose_money(children),
            _text(children.get(self._charge_bearer)),
            self._charges in children,
            tuple(item.text or "" for item in checked if item.tag == self._lei),
            tuple(_named(item) for item in checked if item.tag != self._lei),
            tuple((name, ids[tag]) for name, tag in self._other_ids if tag in ids),
        )
        return decide_instruction(raw, index=part.index)

    def _bic_of(self, party: etree._Element | None) -> str:
        """FinInstnId/BICFI of a party, or "" (the party may be named by LEI or name only).

        The transaction is as its schema says, so each of the two is the first of its siblings.
        """
        if party is None or not len(party):
            return ""
        institution = party[0]
        if institution.tag != self._institution or not len(institution):
            return ""
        first = institution[0]
        return (first.text or "") if first.tag == self._bic else ""

    def _agents_fault(self, children: dict[str | bytes, etree._Element]) -> str:
        """Who else than the two that settle here would have to pass the money on; "" if nobody."""
        for tag in self._intermediaries:
            if tag in children:
                return f"{local_name(children[tag])} is given: debtor and creditor settle here between themselves"
        for role in () if self._is_customer else ("Dbtr", "Cdtr"):
            named = children.get(f"{self._prefix}{role}Agt")
            if named is None:
                continue
            agent = self._bic_of(named)
            party = self._bic_of(children.get(self._prefix + role))
            if agent and agent.removesuffix(_HEAD_OFFICE) != party.removesuffix(_HEAD_OFFICE):
                return f"{role}Agt is {agent[:11]!r}, {role} is {party[:11]!r}, whose own account is the one here"
        return ""

    def _whose_money(self, children: dict[str | bytes, etree._Element]) -> ComplianceData | None:
        """None of what institutions pay on their own account. A cover payment is its customers', as what it covers."""
        if self._is_customer:
            return self._customers(children)
        underlying = children.get(self._underlying)
        if underlying is None:
            return None
        parties: dict[str | bytes, etree._Element] = {child.tag: child for child in underlying}
        purpose = children.get(f"{self._prefix}Purp")
        return self._customers(parties if purpose is None else parties | {purpose.tag: purpose})

    def _customers(self, children: dict[str | bytes, etree._Element]) -> ComplianceData:
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

    def _party(self, children: dict[str | bytes, etree._Element], *roles: str) -> _Party:
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


def _named(found: etree._Element) -> tuple[str, str]:
    parent = found.getparent()
    return f"{local_name(parent) if parent is not None else ''}/{local_name(found)}", found.text or ""


@dataclass(frozen=True, slots=True)
class _Party:
    kind: PartyKind = PartyKind.UNKNOWN
    name: str = ""
    country: str = ""
    identification: str = ""
    lei: str = ""

    def __repr__(self) -> str:
        return f"_Party({self.kind})"
