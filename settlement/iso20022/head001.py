"""head.001 (BusinessApplicationHeader): who sends what to whom, around a message in one envelope.

| field | element of AppHdr | must agree with |
|---|---|---|
| sender | Fr/FIId/FinInstnId/BICFI | InstgAgt of the group header, if given; who submits the file |
| receiver | To/FIId/FinInstnId/BICFI | InstdAgt of the group header, if given; the bridge |
| business message id | BizMsgIdr | the message's own id |
| message | MsgDefIdr | the message and version of the Document |

There is no standard envelope: any element is taken that holds an AppHdr and a Document and nothing else. A signature
(Sgntr) in the header is not checked: requests are signed as such (RFC 9421). An instruction or recall whose header
says that it is a copy (CpyDplct COPY or CODU) is for information, so it is refused; a duplicate (DUPL) is what
idempotency is for.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import datetime

from lxml import etree

from kernel.ids import ParticipantId, parse_participant
from settlement.iso20022.versions import DEFAULT, VERSIONS, require
from settlement.iso20022.xml_reader import NAMESPACE_PREFIX, namespace_of, schema_fault, schema_of
from settlement.iso20022.xml_writer import XmlWriter, datetime_text


class HeaderRefused(Exception):
    """The header is not valid, or does not agree with its document."""


@dataclass(frozen=True, slots=True)
class ApplicationHeader:
    version: str
    sender: ParticipantId
    receiver: ParticipantId
    business_message_id: str
    message: str
    created_at: str
    """As written: CreDt is for people and not relied upon."""
    copy: str = ""
    """CpyDplct."""


def read_header(element: etree._Element) -> ApplicationHeader:
    """The header of an envelope. Raises HeaderRefused."""
    version = str(element.tag)[1:].partition("}")[0].removeprefix(NAMESPACE_PREFIX)
    if version not in VERSIONS["head.001"]:
        raise HeaderRefused(f"AppHdr is {version[:60]!r}, expected one of {', '.join(VERSIONS['head.001'])}")
    schema = schema_of(version)
    if not schema.validate(element):
        raise HeaderRefused(f"AppHdr: {schema_fault(schema)}"[:300])
    prefix = f"{{{namespace_of(version)}}}"

    def text(*path: str) -> str:
        return (element.findtext("/".join(prefix + name for name in path)) or "").strip()

    parties: list[ParticipantId] = []
    for role in ("Fr", "To"):
        bic = text(role, "FIId", "FinInstnId", "BICFI")
        try:
            parties.append(parse_participant(bic))
        except ValueError:
            raise HeaderRefused(f"AppHdr/{role} must name an institution by its BIC") from None
    return ApplicationHeader(
        version, parties[0], parties[1], text("BizMsgIdr"), text("MsgDefIdr"), text("CreDt"), text("CpyDplct")
    )


def check_header(
    header: ApplicationHeader, *, message: str, message_id: str, sender: str = "", receiver: str = ""
) -> None:
    """Of what is to be acted upon. Raises HeaderRefused unless the header agrees with its document; "" is a party that
    the document leaves out."""
    if header.copy in ("COPY", "CODU"):
        raise HeaderRefused(f"AppHdr/CpyDplct says {header.copy}: a copy is no instruction")
    for name, says, holds in (
        ("MsgDefIdr", header.message, message),
        ("BizMsgIdr", header.business_message_id, message_id),
        ("Fr", header.sender, sender or header.sender),
        ("To", header.receiver, receiver or header.receiver),
    ):
        if says != holds:
            raise HeaderRefused(f"AppHdr/{name} says {says[:60]!r}, the document {holds[:60]!r}")


def envelope(
    content: bytes,
    *,
    sender: ParticipantId,
    receiver: ParticipantId,
    business_message_id: str,
    created_at: datetime,
    version: str = DEFAULT["head.001"],
) -> bytes:
    """A finished message of ours in an envelope with its application header. Raises ValueError."""
    root = etree.fromstring(content)
    message = str(root.tag)[1:].partition("}")[0].removeprefix(NAMESPACE_PREFIX)
    file = io.BytesIO()
    namespace = namespace_of(require("head.001", version))
    with etree.xmlfile(file, encoding="utf-8") as xml, xml.element("AppHdr", nsmap={None: namespace}):
        writer = XmlWriter(xml)
        for role, participant in (("Fr", sender), ("To", receiver)):
            with writer.element(role), writer.element("FIId"), writer.element("FinInstnId"):
                writer.text("BICFI", participant, length_max=11)
        writer.text("BizMsgIdr", business_message_id)
        writer.text("MsgDefIdr", message)
        # head.001.001.01 takes nothing but UTC with a Z, and whole seconds suit all.
        writer.text("CreDt", datetime_text(created_at.replace(microsecond=0)))
    declaration, _, document = content.partition(b"?>")
    return declaration + b"?>\n<Envelope>" + file.getvalue() + document.strip() + b"</Envelope>"
