"""pacs.002 (FIToFIPaymentStatusReport): the status of each instruction of a file, page by page.

| report | element |
|---|---|
| message id of the report, its time | GrpHdr/MsgId, CreDtTm |
| the original file | OrgnlGrpInfAndSts: OrgnlMsgId, OrgnlMsgNmId, OrgnlNbOfTxs, GrpSts of a file refused whole |
| how many are in each status | OrgnlGrpInfAndSts/NbOfTxsPerSts |
| an instruction | TxInfAndSts: OrgnlInstrId, OrgnlEndToEndId, OrgnlUETR, TxSts, StsRsnInf, FctvIntrBkSttlmDt |

A UETR of version 7 does not fit the schema; the original's other ids name the instruction then. A message id longer
than 35 characters (a CSV file is known by its digest) is cut to its first 35.
"""

from __future__ import annotations

import io
from datetime import date, datetime
from uuid import UUID

from settlement.domain.statuses import PaymentStatus, StatusReport, TransactionStatus
from settlement.iso20022.small_messages import Node, read_message
from settlement.iso20022.versions import DEFAULT, VERSIONS, require
from settlement.iso20022.xml_writer import XmlWriter, datetime_text, document_writer, is_identifier

REFERENCE_LENGTH_MAX = 35


def _original_message_id(kept: str) -> str:
    """As the sender wrote it, without the place of a stream's segment behind it ("#1-30", which no MsgId can have)."""
    sent = kept.partition("#")[0][:REFERENCE_LENGTH_MAX]
    return sent if is_identifier(sent) else "NOTPROVIDED"  # a CSV file's name may be anything


def write_pacs002(report: StatusReport, version: str = DEFAULT["pacs.002"]) -> bytes:
    """One XSD-valid message. Raises ValueError for what it cannot carry."""
    file = io.BytesIO()
    with document_writer(file, require("pacs.002", version)) as xml, xml.element("FIToFIPmtStsRpt"):
        with xml.element("GrpHdr"):
            xml.text("MsgId", report.message_id)
            xml.text("CreDtTm", datetime_text(report.created_at))
        with xml.element("OrgnlGrpInfAndSts"):
            xml.text("OrgnlMsgId", _original_message_id(report.original_message_id))
            xml.text("OrgnlMsgNmId", report.original_message)
            if report.original_count is not None:
                xml.text("OrgnlNbOfTxs", str(report.original_count), length_max=15)
            if report.group_reason is not None:
                xml.text("GrpSts", TransactionStatus.REJECTED.value)
                _write_reason(xml, report.group_reason, report.group_texts)
            for status, count in sorted(report.counts.items()):
                if count:
                    with xml.element("NbOfTxsPerSts"):
                        xml.text("DtldNbOfTxs", str(count), length_max=15)
                        xml.text("DtldSts", status.value)
        for item in report.items:
            _write_item(xml, item)
    return file.getvalue()


def _write_item(xml: XmlWriter, item: PaymentStatus) -> None:
    with xml.element("TxInfAndSts"):
        if item.instruction_id is not None:
            xml.text("OrgnlInstrId", item.instruction_id)
        if item.end_to_end_id is not None:
            xml.text("OrgnlEndToEndId", item.end_to_end_id)
        if item.uetr is not None and item.uetr.version == 4:
            xml.text("OrgnlUETR", str(item.uetr), length_max=36)
        xml.text("TxSts", item.status.value)
        if item.reason is not None:
            _write_reason(xml, item.reason, item.texts)
        if item.settled_on is not None:
            with xml.element("FctvIntrBkSttlmDt"):
                xml.text("Dt", item.settled_on.isoformat())


def _write_reason(xml: XmlWriter, code: str, texts: tuple[str, ...]) -> None:
    with xml.element("StsRsnInf"):
        with xml.element("Rsn"):
            xml.text("Cd", code, length_max=4)
        for text in texts:
            xml.text("AddtlInf", text, length_max=105)


def read_pacs002(content: bytes) -> StatusReport:
    """Any version's report as written here. Raises MessageRefused."""
    _, root, _ = read_message(content, VERSIONS["pacs.002"])
    group = root.find("OrgnlGrpInfAndSts") or root
    count = group.text("OrgnlNbOfTxs")
    reasons = [_reason(found) for found in group.all("StsRsnInf")]
    return StatusReport(
        message_id=root.required("GrpHdr/MsgId"),
        created_at=datetime.fromisoformat(root.required("GrpHdr/CreDtTm")),
        original_message_id=group.required("OrgnlMsgId"),
        original_message=group.required("OrgnlMsgNmId"),
        original_count=None if count is None else int(count),
        counts={
            TransactionStatus(found.required("DtldSts")): int(found.required("DtldNbOfTxs"))
            for found in group.all("NbOfTxsPerSts")
        },
        items=tuple(_read_item(found) for found in root.all("TxInfAndSts")),
        group_reason=reasons[0][0] if reasons else None,
        group_texts=reasons[0][1] if reasons else (),
    )


def _reason(node: Node) -> tuple[str | None, tuple[str, ...]]:
    return node.text("Rsn/Cd"), tuple(found.element.text or "" for found in node.all("AddtlInf"))


def _read_item(node: Node) -> PaymentStatus:
    reasons = [_reason(found) for found in node.all("StsRsnInf")]
    uetr, day = node.text("OrgnlUETR"), node.text("FctvIntrBkSttlmDt/Dt")
    return PaymentStatus(
        status=TransactionStatus(node.required("TxSts")),
        instruction_id=node.text("OrgnlInstrId"),
        end_to_end_id=node.text("OrgnlEndToEndId"),
        uetr=None if uetr is None else UUID(uetr),
        reason=reasons[0][0] if reasons else None,
        texts=reasons[0][1] if reasons else (),
        settled_on=None if day is None else date.fromisoformat(day),
    )
