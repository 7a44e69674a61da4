"""Reading back what this bridge writes: small messages whole, schema first; elements by local names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lxml import etree

from settlement.iso20022.xml_reader import (
    NAMESPACE_PREFIX,
    XmlRefusal,
    check_encoding,
    local_name,
    safe_parser,
    schema_fault,
    schema_of,
)

MESSAGE_BYTES_MAX = 16 * 1024 * 1024


class MessageRefused(Exception):
    """The message cannot be read: not XML, of another kind, or not valid."""

    def __init__(self, refusal: XmlRefusal, reason: str) -> None:
        super().__init__(f"{refusal.value}: {reason}"[:400])
        self.refusal = refusal


class Node:
    """An element, asked by local names: the schema has settled namespace and order already."""

    def __init__(self, element: etree._Element) -> None:
        self.element = element

    def find(self, path: str) -> Node | None:
        found: etree._Element | None = self.element
        for name in path.split("/"):
            found = None if found is None else next((child for child in found if local_name(child) == name), None)
        return None if found is None else Node(found)

    def all(self, name: str) -> Iterator[Node]:
        return (Node(child) for child in self.element if local_name(child) == name)

    def text(self, path: str) -> str | None:
        found = self.find(path)
        return None if found is None else found.element.text or ""

    def required(self, path: str) -> str:
        """Raises MessageRefused."""
        text = self.text(path)
        if not text:
            raise MessageRefused(XmlRefusal.SCHEMA_INVALID, f"{path} is absent or empty")
        return text


def read_message(
    content: bytes, versions: Sequence[str], *, bytes_max: int = MESSAGE_BYTES_MAX
) -> tuple[str, Node, etree._Element | None]:
    """(version, the element under Document, the application header if enveloped), of a valid message.

    Raises MessageRefused. Source of the rules: settlement.iso20022.segments.
    """
    if len(content) > bytes_max:
        raise MessageRefused(XmlRefusal.FILE_TOO_LARGE, f"more than {bytes_max:,} bytes")
    fault = check_encoding(content)
    if fault:
        raise MessageRefused(XmlRefusal.ENCODING_NOT_UTF8, fault)
    upper = content.upper()
    if b"<!DOCTYPE" in upper or b"<!ENTITY" in upper:
        raise MessageRefused(XmlRefusal.DOCTYPE_FORBIDDEN, "the file declares a document type or an entity")
    try:
        root = etree.fromstring(content, safe_parser())
    except etree.XMLSyntaxError as error:
        raise MessageRefused(XmlRefusal.NOT_XML, error.msg or "not well-formed") from None
    header: etree._Element | None = None
    document = root
    if local_name(root) != "Document":
        children = [child for child in root if isinstance(child.tag, str)]
        if [local_name(child) for child in children] != ["AppHdr", "Document"]:
            reason = f"the root is {str(root.tag)[:120]}, expected a Document of {', '.join(versions)}"
            raise MessageRefused(XmlRefusal.WRONG_NAMESPACE, reason)
        header, document = children
    version = str(document.tag)[1:].partition("}")[0].removeprefix(NAMESPACE_PREFIX)
    if version not in versions:
        reason = f"the Document is {version[:60]!r}, expected one of {', '.join(versions)}"
        raise MessageRefused(XmlRefusal.WRONG_NAMESPACE, reason)
    schema = schema_of(version)
    if not schema.validate(document):
        raise MessageRefused(XmlRefusal.SCHEMA_INVALID, schema_fault(schema))
    return version, Node(document[0]), header
