"""pacs.009 (FinancialInstitutionCreditTransfer): PvP instructions between institutions, as senders write them.

`settlement.iso20022.credit_transfer` reads it and says where each term travels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import datetime
from typing import BinaryIO

from kernel.money import Money
from settlement.domain.instructions import Instruction, control_sum, show_sum
from settlement.iso20022.versions import DEFAULT, require
from settlement.iso20022.xml_writer import XmlWriter, amount_text, datetime_text, document_writer

CLEARING_SYSTEM = "JIAOZI-PVP"


def write_pacs009(
    instructions: Sequence[Instruction], *, message_id: str, created_at: datetime, version: str = DEFAULT["pacs.009"]
) -> bytes:
    """The batch as one XSD-valid message. Raises ValueError for what the message cannot carry."""
    file = io.BytesIO()
    stream_pacs009(instructions, file, message_id=message_id, created_at=created_at, version=version)
    return file.getvalue()


def stream_pacs009(
    instructions: Sequence[Instruction],
    file: BinaryIO,
    *,
    message_id: str,
    created_at: datetime,
    version: str = DEFAULT["pacs.009"],
) -> None:
    """As `write_pacs009`, into a file and in flat memory."""
    if not instructions:
        raise ValueError("a pacs.009 carries at least one transaction")
    with document_writer(file, require("pacs.009", version)) as xml, xml.element("FICdtTrf"):
        write_group_header(xml, instructions, message_id=message_id, created_at=created_at)
        for instruction in instructions:
            _write_transaction(xml, instruction)


def write_group_header(
    xml: XmlWriter, instructions: Sequence[Instruction], *, message_id: str, created_at: datetime
) -> None:
    """GrpHdr of a pacs.008 or pacs.009."""
    with xml.element("GrpHdr"):
        xml.text("MsgId", message_id)
        xml.text("CreDtTm", datetime_text(created_at))
        xml.text("NbOfTxs", str(len(instructions)))
        xml.text("CtrlSum", show_sum(control_sum(instructions)))
        with xml.element("SttlmInf"):
            xml.text("SttlmMtd", "CLRG")
            with xml.element("ClrSys"):
                xml.text("Prtry", CLEARING_SYSTEM)


def write_terms(xml: XmlWriter, instruction: Instruction) -> None:
    """Ids, amount, value date and priority: the same in a pacs.008 and a pacs.009."""
    with xml.element("PmtId"):
        xml.text("InstrId", instruction.instruction_id)
        xml.text("EndToEndId", instruction.end_to_end_id)
        if instruction.uetr.version != 4:
            raise ValueError(f"UETR {instruction.uetr} is not a UUID of version 4, as the schema asks for")
        xml.text("UETR", str(instruction.uetr), length_max=36)
    xml.text("IntrBkSttlmAmt", amount_text(instruction.amount), Ccy=instruction.amount.currency.code)
    xml.text("IntrBkSttlmDt", instruction.value_date.isoformat())
    xml.text("SttlmPrty", instruction.priority.value)


def write_pvp(xml: XmlWriter, instruction: Instruction) -> None:
    """The counter leg as an instruction for the next agent, which the bridge is."""
    terms = _pvp_terms(instruction)
    if terms:
        with xml.element("InstrForNxtAgt"):
            xml.text("InstrInf", terms, length_max=140)


def write_agent(xml: XmlWriter, role: str, participant: str) -> None:
    with xml.element(role), xml.element("FinInstnId"):
        xml.text("BICFI", participant, length_max=11)


def _write_transaction(xml: XmlWriter, instruction: Instruction) -> None:
    if instruction.compliance is not None:
        raise ValueError(f"{instruction.instruction_id} is of customers: it goes as a pacs.008")
    with xml.element("CdtTrfTxInf"):
        write_terms(xml, instruction)
        write_agent(xml, "Dbtr", instruction.debtor)
        write_agent(xml, "Cdtr", instruction.creditor)
        write_pvp(xml, instruction)


def _pvp_terms(instruction: Instruction) -> str:
    counter: Money | None = instruction.counter_amount
    if instruction.counter_currency is None:
        if counter is not None:
            raise ValueError("a counter amount needs a counter currency")
        return ""
    terms = f"/PVP/{instruction.counter_currency.code}"
    return terms if counter is None else f"{terms}/{amount_text(counter)}"
