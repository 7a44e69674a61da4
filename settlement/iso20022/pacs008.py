"""pacs.008 (FIToFICustomerCreditTransfer): instructions for customers, as senders and tests write them.

The agents are the participants that settle; debtor and creditor are their customers, of whom the message says what
compliance needs. `settlement.iso20022.credit_transfer` reads it and says where each term travels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import datetime

from settlement.domain.compliance import ComplianceData, PartyKind
from settlement.domain.instructions import Instruction
from settlement.iso20022.pacs009 import write_agent, write_group_header, write_pvp, write_terms
from settlement.iso20022.versions import DEFAULT, require
from settlement.iso20022.xml_writer import XmlWriter, document_writer


def write_pacs008(
    instructions: Sequence[Instruction], *, message_id: str, created_at: datetime, version: str = DEFAULT["pacs.008"]
) -> bytes:
    """The batch as one XSD-valid message. Raises ValueError for what the message cannot carry."""
    if not instructions:
        raise ValueError("a pacs.008 carries at least one transaction")
    file = io.BytesIO()
    with document_writer(file, require("pacs.008", version)) as xml, xml.element("FIToFICstmrCdtTrf"):
        write_group_header(xml, instructions, message_id=message_id, created_at=created_at)
        for instruction in instructions:
            _write_transaction(xml, instruction)
    return file.getvalue()


def _write_transaction(xml: XmlWriter, instruction: Instruction) -> None:
    customers = instruction.compliance
    if customers is None:
        raise ValueError(f"{instruction.instruction_id} has no customers: it goes as a pacs.009")
    with xml.element("CdtTrfTxInf"):
        write_terms(xml, instruction)
        xml.text("ChrgBr", "SLEV")
        _write_party(xml, "Dbtr", _Named.debtor(customers))
        write_agent(xml, "DbtrAgt", instruction.debtor)
        write_agent(xml, "CdtrAgt", instruction.creditor)
        _write_party(xml, "Cdtr", _Named.creditor(customers))
        write_pvp(xml, instruction)
        if customers.purpose:
            with xml.element("Purp"):
                xml.text("Cd", customers.purpose, length_max=4)


class _Named:
    """One side of the compliance data."""

    def __init__(self, kind: PartyKind, name: str, country: str, identification: str, lei: str) -> None:
        if (identification and kind is not PartyKind.PERSON) or (lei and kind is not PartyKind.ORGANISATION):
            raise ValueError("an identity number is a person's, an LEI an organisation's")
        self.kind, self.name, self.country, self.identification, self.lei = kind, name, country, identification, lei

    @staticmethod
    def debtor(data: ComplianceData) -> _Named:
        return _Named(data.debtor_kind, data.debtor_name, data.debtor_country, data.debtor_resident_id, data.debtor_lei)

    @staticmethod
    def creditor(data: ComplianceData) -> _Named:
        return _Named(data.creditor_kind, data.creditor_name, data.creditor_country, "", data.creditor_lei)


def _write_party(xml: XmlWriter, role: str, party: _Named) -> None:
    with xml.element(role):
        if party.name:
            xml.text("Nm", party.name, length_max=140)
        if party.kind is not PartyKind.UNKNOWN:
            with xml.element("Id"), xml.element("PrvtId" if party.kind is PartyKind.PERSON else "OrgId"):
                if party.lei:
                    xml.text("LEI", party.lei)
                if party.identification:
                    with xml.element("Othr"):
                        xml.text("Id", party.identification)
        if party.country:
            xml.text("CtryOfRes", party.country)
