"""camt.056 (FIToFIPaymentCancellationRequest) in, camt.029 (ResolutionOfInvestigation) out: a payment is asked back.

| recall | element of camt.056 | of camt.029 |
|---|---|---|
| assignment id, its time | Assgnmt/Id, CreDtTm | Assgnmt (the bridge's own) |
| who asks, who is asked | Assgnmt/Assgnr, Assgne, each Agt/FinInstnId/BICFI | the same two, exchanged |
| case | Case/Id, Cretr | RslvdCase/Id, Cretr |
| a payment | Undrlyg/TxInf | CxlDtls/TxInfAndSts with TxCxlSts and CxlStsRsnInf |
| the answer as a whole | | Sts/Conf |

A payment is found by OrgnlUETR, which is required here; whatever else the recall says of it (ids, amount, date) must be
so of the payment found, or that one is not given up. OrgnlGrpInfAndCxl with GrpCxl (a whole file at once) is refused:
name the payments.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import date, datetime
from fractions import Fraction
from uuid import UUID

from kernel.ids import ParticipantId, parse_participant
from kernel.money import Money
from settlement.domain.instructions import is_reference, parse_amount, parse_date, show_sum
from settlement.domain.statuses import CancellationStatus, Confirmation
from settlement.iso20022.head001 import HeaderRefused, check_header, read_header
from settlement.iso20022.small_messages import MessageRefused, Node, read_message
from settlement.iso20022.versions import DEFAULT, VERSIONS, require
from settlement.iso20022.xml_reader import XmlRefusal
from settlement.iso20022.xml_writer import XmlWriter, amount_text, datetime_text, document_writer

RECALL_ITEMS_MAX = 1_000
RECALL_BYTES_MAX = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class RecallItem:
    """One payment asked back; ids are None where the message leaves them out."""

    uetr: UUID
    cancellation_id: str | None = None
    original_message_id: str | None = None
    original_message: str | None = None
    instruction_id: str | None = None
    end_to_end_id: str | None = None
    reason: str | None = None
    """Of the asker: a code such as DUPL, CUST or FRAD."""
    amount: Money | None = None
    value_date: date | None = None


@dataclass(frozen=True, slots=True)
class Recall:
    message: str
    assignment_id: str
    assigner: ParticipantId
    assignee: ParticipantId
    created_at: datetime
    case_id: str | None
    items: tuple[RecallItem, ...]
    sender: ParticipantId | None = None
    """Fr of the application header, if there is one."""


@dataclass(frozen=True, slots=True)
class ResolvedItem:
    """What came of one payment that was asked back. `uetr` is None if it is not of version 4."""

    status: CancellationStatus
    uetr: UUID | None
    cancellation_id: str | None = None
    original_message_id: str | None = None
    original_message: str | None = None
    instruction_id: str | None = None
    end_to_end_id: str | None = None
    reason: str | None = None
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Resolution:
    assignment_id: str
    assigner: ParticipantId
    """Who answers: the bridge."""
    assignee: ParticipantId
    created_at: datetime
    case_id: str | None
    confirmation: Confirmation
    items: tuple[ResolvedItem, ...]


def read_recall(content: bytes) -> Recall:
    """Raises MessageRefused."""
    version, root, header = read_message(content, VERSIONS["camt.056"], bytes_max=RECALL_BYTES_MAX)
    assigner, assignee = _agent(root, "Assgnmt/Assgnr"), _agent(root, "Assgnmt/Assgne")
    _check_references(root, "Assgnmt/Id", "Case/Id")
    sender = None
    if header is not None:
        try:
            found = read_header(header)
            check_header(
                found,
                message=version,
                message_id=root.required("Assgnmt/Id"),
                sender=assigner,
                receiver=assignee,
            )
        except HeaderRefused as refused:
            raise MessageRefused(XmlRefusal.SCHEMA_INVALID, str(refused)) from None
        sender = found.sender
    items: list[RecallItem] = []
    for underlying in root.all("Undrlyg"):
        # xs:boolean lets white space surround it.
        if (underlying.text("OrgnlGrpInfAndCxl/GrpCxl") or "").strip() in ("true", "1"):
            raise MessageRefused(XmlRefusal.SCHEMA_INVALID, "a whole file is not recalled: name the payments (TxInf)")
        named = [_item(found, underlying.find("OrgnlGrpInfAndCxl")) for found in underlying.all("TxInf")]
        _check_count(underlying.text("OrgnlGrpInfAndCxl/NbOfTxs"), named)
        items += named
        if len(items) > RECALL_ITEMS_MAX:
            raise MessageRefused(XmlRefusal.PART_TOO_LARGE, f"a recall names at most {RECALL_ITEMS_MAX:,} payments")
    if not items:
        raise MessageRefused(XmlRefusal.SCHEMA_INVALID, "the recall names no payment (TxInf)")
    if len({item.uetr for item in items}) != len(items):
        raise MessageRefused(XmlRefusal.SCHEMA_INVALID, "the recall names a payment twice")
    _check_totals(root, items)
    try:
        created_at = datetime.fromisoformat(root.required("Assgnmt/CreDtTm"))
    except ValueError:
        raise MessageRefused(XmlRefusal.SCHEMA_INVALID, "Assgnmt/CreDtTm is no moment that can be read") from None
    return Recall(
        message=version,
        assignment_id=root.required("Assgnmt/Id"),
        assigner=assigner,
        assignee=assignee,
        created_at=created_at,
        case_id=root.text("Case/Id"),
        items=tuple(items),
        sender=sender,
    )


def _check_count(count: str | None, items: list[RecallItem]) -> None:
    if count is not None and int(count) != len(items):
        raise MessageRefused(XmlRefusal.SCHEMA_INVALID, f"NbOfTxs says {count}, the recall names {len(items)} payments")


def _check_totals(root: Node, items: list[RecallItem]) -> None:
    _check_count(root.text("CtrlData/NbOfTxs"), items)
    declared = root.text("CtrlData/CtrlSum")
    if declared is None:
        return
    amounts = [item.amount for item in items if item.amount is not None]
    holds = sum((Fraction(money.amount_minor, 10**money.currency.exponent) for money in amounts), Fraction(0))
    if len(amounts) != len(items) or Fraction(declared.strip()) != holds:
        reason = f"CtrlSum says {declared.strip()[:40]}, the amounts (OrgnlIntrBkSttlmAmt) add up to {show_sum(holds)}"
        raise MessageRefused(XmlRefusal.SCHEMA_INVALID, reason)


def _agent(root: Node, path: str) -> ParticipantId:
    try:
        return parse_participant(root.text(f"{path}/Agt/FinInstnId/BICFI") or "")
    except ValueError:
        raise MessageRefused(XmlRefusal.SCHEMA_INVALID, f"{path} must name an agent by its BIC") from None


def _check_references(node: Node, *paths: str) -> None:
    """The answer repeats them: what no message of ours may carry is refused."""
    for path in paths:
        text = node.text(path)
        if text is not None and not is_reference(text):
            raise MessageRefused(XmlRefusal.SCHEMA_INVALID, f"{path} {text[:40]!r}: 1 to 35 characters of FIN X")


def _item(node: Node, group: Node | None) -> RecallItem:
    uetr = node.text("OrgnlUETR")
    if not uetr:
        raise MessageRefused(XmlRefusal.SCHEMA_INVALID, "every payment is named by its UETR (OrgnlUETR)")
    own = node.find("OrgnlGrpInf")
    original = own if own is not None else group
    _check_references(node, "CxlId", "OrgnlInstrId", "OrgnlEndToEndId")
    if original is not None:
        _check_references(original, "OrgnlMsgId", "OrgnlMsgNmId")
    amount, day = node.find("OrgnlIntrBkSttlmAmt"), node.text("OrgnlIntrBkSttlmDt")
    money = None
    if amount is not None:
        read = parse_amount((amount.element.text or "").strip(), str(amount.element.get("Ccy", "")))
        if not isinstance(read, Money):
            raise MessageRefused(XmlRefusal.SCHEMA_INVALID, f"OrgnlIntrBkSttlmAmt: {read[0].value}: {read[1]}")
        money = read
    value_date = None if day is None else parse_date(day.strip())
    if day is not None and value_date is None:
        raise MessageRefused(XmlRefusal.SCHEMA_INVALID, f"OrgnlIntrBkSttlmDt {day[:30]!r} is no date without a zone")
    reasons = [found.text("Rsn/Cd") for found in node.all("CxlRsnInf")]
    return RecallItem(
        uetr=UUID(uetr),
        cancellation_id=node.text("CxlId"),
        original_message_id=None if original is None else original.text("OrgnlMsgId"),
        original_message=None if original is None else original.text("OrgnlMsgNmId"),
        instruction_id=node.text("OrgnlInstrId"),
        end_to_end_id=node.text("OrgnlEndToEndId"),
        reason=reasons[0] if reasons else None,
        amount=money,
        value_date=value_date,
    )


def write_recall(recall: Recall, version: str = DEFAULT["camt.056"]) -> bytes:
    """A camt.056 as senders and tests write it. Raises ValueError for what it cannot carry."""
    file = io.BytesIO()
    with document_writer(file, require("camt.056", version)) as xml, xml.element("FIToFIPmtCxlReq"):
        _write_assignment(xml, recall.assignment_id, recall.assigner, recall.assignee, recall.created_at)
        if recall.case_id is not None:
            _write_case(xml, "Case", recall.case_id, recall.assigner)
        with xml.element("CtrlData"):
            xml.text("NbOfTxs", str(len(recall.items)))
        with xml.element("Undrlyg"):
            for item in recall.items:
                with xml.element("TxInf"):
                    _write_ids(xml, "CxlId", item)
                    xml.text("OrgnlUETR", str(item.uetr), length_max=36)
                    if item.amount is not None:
                        xml.text("OrgnlIntrBkSttlmAmt", amount_text(item.amount), Ccy=item.amount.currency.code)
                    if item.value_date is not None:
                        xml.text("OrgnlIntrBkSttlmDt", item.value_date.isoformat())
                    if item.reason is not None:
                        with xml.element("CxlRsnInf"), xml.element("Rsn"):
                            xml.text("Cd", item.reason, length_max=4)
    return file.getvalue()


def write_resolution(resolution: Resolution, version: str = DEFAULT["camt.029"]) -> bytes:
    """A camt.029. Raises ValueError for what it cannot carry."""
    file = io.BytesIO()
    with document_writer(file, require("camt.029", version)) as xml, xml.element("RsltnOfInvstgtn"):
        _write_assignment(
            xml, resolution.assignment_id, resolution.assigner, resolution.assignee, resolution.created_at
        )
        if resolution.case_id is not None:
            _write_case(xml, "RslvdCase", resolution.case_id, resolution.assignee)
        with xml.element("Sts"):
            xml.text("Conf", resolution.confirmation.value, length_max=4)
        with xml.element("CxlDtls"):
            for item in resolution.items:
                with xml.element("TxInfAndSts"):
                    _write_ids(xml, "CxlStsId", item)
                    if item.uetr is not None:
                        xml.text("OrgnlUETR", str(item.uetr), length_max=36)
                    xml.text("TxCxlSts", item.status.value)
                    if item.reason is not None or item.texts:
                        with xml.element("CxlStsRsnInf"):
                            if item.reason is not None:
                                with xml.element("Rsn"):
                                    xml.text("Cd", item.reason, length_max=4)
                            for text in item.texts:
                                xml.text("AddtlInf", text, length_max=105)
    return file.getvalue()


def read_resolution(content: bytes) -> Resolution:
    """Any version's camt.029 as written here. Raises MessageRefused."""
    _, root, _ = read_message(content, VERSIONS["camt.029"])
    items: list[ResolvedItem] = []
    for details in root.all("CxlDtls"):
        for node in details.all("TxInfAndSts"):
            reason, uetr = node.find("CxlStsRsnInf"), node.text("OrgnlUETR")
            items.append(
                ResolvedItem(
                    status=CancellationStatus(node.required("TxCxlSts")),
                    uetr=None if uetr is None else UUID(uetr),
                    cancellation_id=node.text("CxlStsId"),
                    original_message_id=node.text("OrgnlGrpInf/OrgnlMsgId"),
                    original_message=node.text("OrgnlGrpInf/OrgnlMsgNmId"),
                    instruction_id=node.text("OrgnlInstrId"),
                    end_to_end_id=node.text("OrgnlEndToEndId"),
                    reason=None if reason is None else reason.text("Rsn/Cd"),
                    texts=() if reason is None else tuple(found.element.text or "" for found in reason.all("AddtlInf")),
                )
            )
    return Resolution(
        assignment_id=root.required("Assgnmt/Id"),
        assigner=_agent(root, "Assgnmt/Assgnr"),
        assignee=_agent(root, "Assgnmt/Assgne"),
        created_at=datetime.fromisoformat(root.required("Assgnmt/CreDtTm")),
        case_id=root.text("RslvdCase/Id"),
        confirmation=Confirmation(root.required("Sts/Conf")),
        items=tuple(items),
    )


def _write_assignment(
    xml: XmlWriter, assignment_id: str, assigner: ParticipantId, assignee: ParticipantId, created_at: datetime
) -> None:
    with xml.element("Assgnmt"):
        xml.text("Id", assignment_id)
        for role, participant in (("Assgnr", assigner), ("Assgne", assignee)):
            with xml.element(role):
                _write_agent(xml, participant)
        xml.text("CreDtTm", datetime_text(created_at))


def _write_case(xml: XmlWriter, name: str, case_id: str, creator: ParticipantId) -> None:
    with xml.element(name):
        xml.text("Id", case_id)
        with xml.element("Cretr"):
            _write_agent(xml, creator)


def _write_agent(xml: XmlWriter, participant: ParticipantId) -> None:
    with xml.element("Agt"), xml.element("FinInstnId"):
        xml.text("BICFI", participant, length_max=11)


def _write_ids(xml: XmlWriter, own: str, item: RecallItem | ResolvedItem) -> None:
    if item.cancellation_id is not None:
        xml.text(own, item.cancellation_id)
    if item.original_message_id is not None:
        with xml.element("OrgnlGrpInf"):
            xml.text("OrgnlMsgId", item.original_message_id)
            xml.text("OrgnlMsgNmId", item.original_message or "NOTPROVIDED")
    if item.instruction_id is not None:
        xml.text("OrgnlInstrId", item.instruction_id)
    if item.end_to_end_id is not None:
        xml.text("OrgnlEndToEndId", item.end_to_end_id)
