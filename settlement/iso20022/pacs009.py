"""pacs.009.001.08 (FinancialInstitutionCreditTransfer): batches of PvP instructions in, and out for senders and tests.

Where each term of an instruction travels:

| term | element of CdtTrfTxInf |
|---|---|
| instruction id, end-to-end id, UETR | PmtId/InstrId, PmtId/EndToEndId, PmtId/UETR (all three required here) |
| debtor, creditor | Dbtr/FinInstnId/BICFI, Cdtr/FinInstnId/BICFI |
| currency and amount of the first leg | IntrBkSttlmAmt and its Ccy |
| value date | IntrBkSttlmDt, of the transaction or else of the group header |
| priority | SttlmPrty (default NORM) |
| counter currency, counter amount | InstrForNxtAgt/InstrInf, the code word `/PVP/AED` or `/PVP/AED/3650.00` |

A pacs.009 has no field for a second currency: it moves one. The bridge is the *next agent*, so what it alone has
to do (exchange
against another currency, both or neither) is an instruction for the next agent, in the slash-coded form that field
72 of
its predecessor MT 202 had. Other texts in InstrForNxtAgt are ignored; two `/PVP/` are refused. Without one, the counter
currency is left to the quote.

Checked besides the schema: NbOfTxs, CtrlSum and TtlIntrBkSttlmAmt (when given), and duplicates. An answer without
problems
means "XSD-valid and readable", not valid under the rules of any payment scheme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from lxml import etree

from kernel.money import Money
from settlement.domain.instructions import (
    PROBLEMS_MAX,
    DeclaredTotals,
    Instruction,
    InstructionRefusal,
    Intake,
    RawInstruction,
    ReadResult,
    control_sum,
    show_sum,
)
from settlement.iso20022.xml_reader import MessageReader, line_of, local_name
from settlement.iso20022.xml_writer import XmlWriter, amount_text, datetime_text, document_writer

MESSAGE = "pacs.009.001.08"
INSTRUCTIONS_MAX = 100_000
BYTES_MAX = 160 * 1024 * 1024
"""About 1,600 bytes for each of INSTRUCTIONS_MAX; our own writer needs some 800."""

_PVP = re.compile(r"/PVP/([A-Z]{3})(?:/([0-9.]{1,40}))?", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)", re.ASCII)
_REFUSAL_BY_CODE = {refusal.value: refusal for refusal in InstructionRefusal}
_CLEARING_SYSTEM = "JIAOZI-PVP"


def read_pacs009(
    source: BinaryIO | Path, *, instructions_max: int = INSTRUCTIONS_MAX, bytes_max: int = BYTES_MAX
) -> ReadResult:
    """Read a batch whole or refuse it with every problem found, up to PROBLEMS_MAX.

    Memory: the instructions, plus one transaction of XML. Raises OSError if the source cannot be read.
    """
    intake = Intake(instructions_max=instructions_max)
    header = _Header()
    reader = MessageReader(
        source,
        message=MESSAGE,
        tags=("GrpHdr", "CdtTrfTxInf"),
        repeated="CdtTrfTxInf",
        bytes_max=bytes_max,
        problems_max=PROBLEMS_MAX,
    )
    for element in reader:
        if local_name(element) == "GrpHdr":
            header = _read_header(element)
            if header.declared.count is not None and header.declared.count > instructions_max:
                reason = f"NbOfTxs says {header.declared.count:,}, a batch takes at most {instructions_max:,}"
                intake.refuse(InstructionRefusal.TOO_MANY_INSTRUCTIONS, reason, line=line_of(element))
                break
        elif reader.problems and reader.problems[-1].index == intake.seen + 1:
            intake.skip()
        else:
            _read_transaction(element, header=header, intake=intake)
        if intake.is_full:
            break
    for problem in reader.problems:
        intake.refuse(_REFUSAL_BY_CODE[problem.refusal.value], problem.reason, line=problem.line, index=problem.index)
    return intake.finish(message_id=header.message_id, declared=header.declared)


def write_pacs009(instructions: Sequence[Instruction], *, message_id: str, created_at: datetime) -> bytes:
    """The batch as one XSD-valid message. Raises ValueError for what the message cannot carry."""
    file = io.BytesIO()
    stream_pacs009(instructions, file, message_id=message_id, created_at=created_at)
    return file.getvalue()


def stream_pacs009(
    instructions: Sequence[Instruction], file: BinaryIO, *, message_id: str, created_at: datetime
) -> None:
    """As `write_pacs009`, into a file and in flat memory."""
    if not instructions:
        raise ValueError("a pacs.009 carries at least one transaction")
    with document_writer(file, MESSAGE) as xml, xml.element("FICdtTrf"):
        with xml.element("GrpHdr"):
            xml.text("MsgId", message_id)
            xml.text("CreDtTm", datetime_text(created_at))
            xml.text("NbOfTxs", str(len(instructions)))
            xml.text("CtrlSum", show_sum(control_sum(tuple(instructions))))
            with xml.element("SttlmInf"):
                xml.text("SttlmMtd", "CLRG")
                with xml.element("ClrSys"):
                    xml.text("Prtry", _CLEARING_SYSTEM)
        for instruction in instructions:
            _write_transaction(xml, instruction)


class _Header:
    """What the group header says; kept while the transactions stream by."""

    def __init__(self, message_id: str = "", value_date: str = "", declared: DeclaredTotals | None = None) -> None:
        self.message_id = message_id
        self.value_date = value_date
        self.declared = declared or DeclaredTotals()


def _read_header(element: etree._Element) -> _Header:
    children = {local_name(child): child for child in element}
    text = {name: child.text or "" for name, child in children.items()}
    total = children.get("TtlIntrBkSttlmAmt")
    return _Header(
        text.get("MsgId", ""),
        text.get("IntrBkSttlmDt", ""),
        DeclaredTotals(
            count=_number(text.get("NbOfTxs")),
            control_sum=_decimal(text.get("CtrlSum")),
            total=_total(total),
        ),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) <= 15 else None


def _decimal(text: str | None) -> Fraction | None:
    """An xs:decimal. A text that is none is reported by the schema; here it counts as not declared."""
    trimmed = (text or "").strip()
    return Fraction(trimmed) if len(trimmed) <= 60 and _DECIMAL.fullmatch(trimmed) else None


def _total(element: etree._Element | None) -> tuple[str, Fraction] | None:
    if element is None:
        return None
    amount = _decimal(element.text)
    return None if amount is None else (str(element.get("Ccy", "")), amount)


def _read_transaction(element: etree._Element, *, header: _Header, intake: Intake) -> None:
    line = line_of(element)
    children: dict[str, etree._Element] = {}
    terms: list[str] = []
    for child in element:
        name = local_name(child)
        if name == "InstrForNxtAgt":
            terms += [part.text or "" for part in child if local_name(part) == "InstrInf"]
        else:
            children[name] = child
    pvp = [text.strip() for text in terms if text.strip().startswith("/PVP/")]
    match = _PVP.fullmatch(pvp[0]) if pvp else None
    if len(pvp) > 1 or (pvp and match is None):
        reason = f"expected one /PVP/CCY or /PVP/CCY/AMOUNT, found {'; '.join(pvp)[:80]!r}"
        intake.refuse_raw(InstructionRefusal.COUNTER_TERMS_INVALID, reason, line=line)
        return
    ids = {local_name(child): child.text or "" for child in children.get("PmtId", ())}
    amount = children.get("IntrBkSttlmAmt")
    value_date = _text(children, "IntrBkSttlmDt")
    if value_date and header.value_date and value_date != header.value_date:
        reason = f"the transaction says {value_date[:30]!r}, the group header {header.value_date[:30]!r}"
        intake.refuse_raw(InstructionRefusal.VALUE_DATE_INVALID, reason, line=line)
        return
    intake.add(
        RawInstruction(
            line=line,
            instruction_id=ids.get("InstrId", ""),
            end_to_end_id=ids.get("EndToEndId", ""),
            uetr=ids.get("UETR", ""),
            debtor=_bic(children.get("Dbtr")),
            creditor=_bic(children.get("Cdtr")),
            currency=str(amount.get("Ccy", "")) if amount is not None else "",
            # xs:decimal lets white space surround a number; nothing else is forgiven.
            amount=(amount.text or "").strip() if amount is not None else "",
            counter_currency=match[1] if match else "",
            counter_amount=(match[2] or "") if match else "",
            value_date=(value_date or header.value_date).strip(),
            priority=_text(children, "SttlmPrty"),
        )
    )


def _text(children: dict[str, etree._Element], name: str) -> str:
    child = children.get(name)
    return "" if child is None else child.text or ""


def _bic(party: etree._Element | None) -> str:
    """FinInstnId/BICFI of a party, or "" (the party may be named by LEI or name only)."""
    for institution in () if party is None else party:
        if local_name(institution) == "FinInstnId":
            for child in institution:
                if local_name(child) == "BICFI":
                    return child.text or ""
    return ""


def _write_transaction(xml: XmlWriter, instruction: Instruction) -> None:
    with xml.element("CdtTrfTxInf"):
        with xml.element("PmtId"):
            xml.text("InstrId", instruction.instruction_id)
            xml.text("EndToEndId", instruction.end_to_end_id)
            xml.text("UETR", str(instruction.uetr), length_max=36)
        xml.text("IntrBkSttlmAmt", amount_text(instruction.amount), Ccy=instruction.amount.currency.code)
        xml.text("IntrBkSttlmDt", instruction.value_date.isoformat())
        xml.text("SttlmPrty", instruction.priority.value)
        for role, participant in (("Dbtr", instruction.debtor), ("Cdtr", instruction.creditor)):
            with xml.element(role), xml.element("FinInstnId"):
                xml.text("BICFI", participant)
        terms = _pvp_terms(instruction)
        if terms:
            with xml.element("InstrForNxtAgt"):
                xml.text("InstrInf", terms)


def _pvp_terms(instruction: Instruction) -> str:
    counter: Money | None = instruction.counter_amount
    if instruction.counter_currency is None:
        if counter is not None:
            raise ValueError("a counter amount needs a counter currency")
        return ""
    terms = f"/PVP/{instruction.counter_currency.code}"
    return terms if counter is None else f"{terms}/{amount_text(counter)}"
