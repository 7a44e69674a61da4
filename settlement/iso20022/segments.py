"""Takes a large message apart into segments that are each a small message, so that reading is bounded and resumable.

A segment is the file's head (declaration, envelope, group header), some whole transactions and the closing tags: a
well-formed document of its own. Reading segments one by one is reading the file: each segment's middle is well-formed
content at the same depth, so the concatenation has the same meaning as the whole, and a segment that is not well-formed
(a transaction's end tag in a comment, a cut file) refuses the file. Thus a reader can go on from any `Cursor` with
nothing but the file, and memory is one segment, whatever the file's size.

The file may be hostile:
1. No more than `bytes_max` bytes are read; the head, a transaction and the rest behind the last one have bounds too.
2. Only UTF-8. The parser is told so, whatever the file declares: an encoding is where a DOCTYPE can hide.
3. `<!DOCTYPE` and `<!ENTITY` are refused on the bytes, before the parser sees them (ISO 20022-4 messages have neither);
   the parser, too, resolves no entity, loads no DTD, opens no network and keeps libxml2's limits (nesting 256).
4. The root is the message's Document, or an envelope of exactly an AppHdr and a Document.
5. Every segment is validated against the schema of its message and version. A transaction's fault is that
   transaction's; a fault elsewhere is the file's.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import BinaryIO

from lxml import etree

from settlement.iso20022.xml_reader import (
    NAMESPACE_PREFIX,
    REASON_LENGTH_MAX,
    XmlRefusal,
    check_encoding,
    line_of,
    local_name,
    namespace_of,
    safe_parser,
    schema_fault,
    schema_of,
)

READ_BYTES = 256 * 1024
HEAD_BYTES_MAX = 256 * 1024
"""An envelope with its application header (its signature included) and a group header: some 2 KB, 20 KB if signed."""
TRANSACTION_BYTES_MAX = 256 * 1024
"""A transaction has some 700 bytes, and 10 KB with every remittance line that a schema allows."""
TAIL_BYTES_MAX = 256 * 1024
"""Closing tags, and a message's supplementary data."""

_FORBIDDEN = re.compile(rb"<!(?:DOCTYPE|ENTITY)", re.IGNORECASE)
_OVERLAP_BYTES = 8  # one less than the longest forbidden mark, so that none hides across two reads
_OPENED = b"<opened>"
_XSD = "{http://www.w3.org/2001/XMLSchema}"


class FileRefused(Exception):
    """The file as a whole is refused; `line` is at or before the fault, `index` the transaction or 0."""

    def __init__(self, refusal: XmlRefusal, reason: str, *, line: int = 0, index: int = 0) -> None:
        super().__init__(reason)
        self.refusal = refusal
        self.reason = reason[:REASON_LENGTH_MAX]
        self.line = line
        self.index = index


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the file behind a whole transaction: bytes and transactions before it, and the line it is on."""

    offset: int
    index: int
    line: int


START = Cursor(0, 0, 1)


@dataclass(slots=True)
class Part:
    """One transaction. `fault` is what the schema says against it, "" if nothing."""

    element: etree._Element
    index: int
    line: int
    fault: str


@dataclass(frozen=True, slots=True)
class Segment:
    """`document` is the message's root of this segment, with its transactions still in it."""

    message: str
    document: etree._Element
    header: etree._Element | None
    """The business application header, if there is an envelope."""
    parts: tuple[Part, ...]
    after: Cursor
    is_last: bool


@dataclass(frozen=True, slots=True)
class _Head:
    content: bytes
    line: int
    """On which the head ends."""
    message: str
    closing: bytes
    """End tags of what is open behind the head."""
    end_tag: bytes
    """The transaction's, as the file writes it."""


class SegmentReader:
    """Reads segments from a seekable file, from a cursor on. Raises FileRefused, OSError."""

    def __init__(
        self,
        source: BinaryIO,
        *,
        messages: Sequence[str],
        repeated: str,
        bytes_max: int,
        segment_bytes: int = READ_BYTES,
    ) -> None:
        self._source = source
        self._messages = messages
        self._repeated = repeated
        self._opening = re.compile(rb"<((?:[\w.-]+:)?" + repeated.encode("ascii") + rb")(?=[\s/>])")
        self._bytes_max = bytes_max
        self._segment_bytes = segment_bytes

    def segments(self, cursor: Cursor = START) -> Iterator[Segment]:
        """Segments behind `cursor`, in order; the last one says so. A file without a transaction has one without
        parts. Raises FileRefused."""
        source = self._source
        source.seek(0)
        head = self._read_head()
        if cursor == START:
            cursor = Cursor(len(head.content), 0, head.line)
        source.seek(cursor.offset)
        position, rest, tail = cursor.offset, b"", b""
        while True:
            block = source.read(self._segment_bytes)
            if block:
                self._check_bytes(position + len(rest) + len(block), tail + block, cursor.line)
                tail = block[-_OVERLAP_BYTES:]
                rest += block
                cut = rest.rfind(head.end_tag)
                close = rest.find(b">", cut)
                if cut < 0 or close < 0:
                    if len(rest) > TRANSACTION_BYTES_MAX + self._segment_bytes:
                        reason = f"an instruction or the file's end has more than {TRANSACTION_BYTES_MAX:,} bytes"
                        raise FileRefused(XmlRefusal.PART_TOO_LARGE, reason, line=cursor.line, index=cursor.index + 1)
                    continue
                body, rest = rest[: close + 1], rest[close + 1 :]
                # What follows the last transaction can only be told at the end: one is kept back till then.
                if not (more := source.read(self._segment_bytes)):
                    yield self._segment(head, body + rest, cursor, is_last=True)
                    return
                source.seek(-len(more), 1)
                segment = self._segment(head, body, cursor, is_last=False)
                yield segment
                cursor = segment.after
                position = cursor.offset
                continue
            yield self._segment(head, rest, cursor, is_last=True)
            return

    def _check_bytes(self, bytes_read: int, seen: bytes, line: int) -> None:
        if bytes_read > self._bytes_max:
            raise FileRefused(XmlRefusal.FILE_TOO_LARGE, f"more than {self._bytes_max:,} bytes", line=line)
        if _FORBIDDEN.search(seen):
            reason = "the file declares a document type or an entity"
            raise FileRefused(XmlRefusal.DOCTYPE_FORBIDDEN, reason, line=line)

    def _read_head(self) -> _Head:
        """Everything before the first transaction, or the whole of a small file that has none."""
        content = b""
        while True:
            block = self._source.read(self._segment_bytes)
            if not content:
                fault = check_encoding(block)
                if fault:
                    raise FileRefused(XmlRefusal.ENCODING_NOT_UTF8, fault)
            before = content[-_OVERLAP_BYTES:]
            content += block
            # What is too large is only told after it is looked into: the first fault of a bomb is its DOCTYPE.
            if _FORBIDDEN.search(before + block):
                self._check_bytes(0, before + block, 1)
            self._check_bytes(len(content), b"", 1)
            found = self._opening.search(content)
            if found is not None or not block or len(content) > HEAD_BYTES_MAX:
                break
        head = content if found is None else content[: found.start()]
        stack, message = self._probe(head, is_whole=found is None)
        if found is None and block:
            reason = f"no {self._repeated} within the first {HEAD_BYTES_MAX:,} bytes"
            raise FileRefused(XmlRefusal.SCHEMA_INVALID, reason)
        closing = b"".join(b"</" + name + b">" for name in reversed(stack))
        end_tag = b"" if found is None else b"</" + found[1]
        if found is None:
            return _Head(b"", 1, message, b"", f"</{self._repeated}".encode())
        return _Head(head, 1 + head.count(b"\n"), message, closing, end_tag)

    def _probe(self, head: bytes, *, is_whole: bool) -> tuple[list[bytes], str]:
        """The names of the elements open at the head's end, and the message that the Document is.

        Unless the head is the whole file, an element has to be able to open behind it. If the first transaction's tag
        is in a comment or CDATA, every segment would begin in the middle of that, and would not mean what its bytes
        mean in the whole file.
        """
        parser = etree.XMLPullParser(
            events=("start", "end"),
            encoding="utf-8",
            resolve_entities=False,
            no_network=True,
            load_dtd=False,
            huge_tree=False,
            remove_comments=True,
            remove_pis=True,
        )
        fault = ""
        try:
            parser.feed(head)
            if not is_whole:
                parser.feed(_OPENED)
        except etree.XMLSyntaxError as error:
            fault = error.msg or "not well-formed"
        stack: list[bytes] = []
        names: list[str] = []
        message = ""
        for event, element in parser.read_events():
            if not isinstance(element, etree._Element):
                continue
            if event == "end":
                stack.pop()
                continue
            name = local_name(element)
            stack.append(((element.prefix + ":") if element.prefix else "").encode() + name.encode())
            if len(stack) <= 2:
                names.append(str(element.tag))
            if not message and name == "Document" and len(stack) <= 2:
                message = str(element.tag)[1:].rpartition("}")[0].removeprefix(NAMESPACE_PREFIX)
                if f"{{{namespace_of(message)}}}Document" != element.tag or message not in self._messages:
                    break
        if not names:
            raise FileRefused(XmlRefusal.NOT_XML, fault or "the file is empty")
        if message not in self._messages or f"{{{namespace_of(message)}}}Document" not in names:
            found = message or names[0][:120]
            reason = f"the root is {found[:120]}, expected a Document of {', '.join(self._messages)}"
            raise FileRefused(XmlRefusal.WRONG_NAMESPACE, reason)
        if fault:
            raise FileRefused(XmlRefusal.NOT_XML, fault)
        if not is_whole and stack.pop() != _OPENED[1:-1]:
            reason = f"a tag of {self._repeated} is in a comment or CDATA, where it opens nothing"
            raise FileRefused(XmlRefusal.NOT_XML, reason)
        return stack, message

    def _segment(self, head: _Head, body: bytes, cursor: Cursor, *, is_last: bool) -> Segment:
        text = head.content + body + (b"" if is_last else head.closing)
        # Of a file without a transaction the body is all of it.
        first_line = cursor.line if head.content else 1
        lines_before = head.line - first_line if head.content else 0
        try:
            root = etree.fromstring(text, safe_parser())
        except etree.XMLSyntaxError as error:
            line = max(1, (error.lineno or 1) - lines_before)
            raise FileRefused(XmlRefusal.NOT_XML, error.msg or "not well-formed", line=line) from None
        document, header = self._root(root, head.message)
        elements = list(document.iterfind(f"*/{{{namespace_of(head.message)}}}{self._repeated}"))
        # Behind the last transaction the rest may stand alone.
        is_rest = is_last and not elements and cursor.index > 0
        schema = _schema_without(head.message, self._repeated) if is_rest else schema_of(head.message)
        faults: dict[int, str] = {}
        if not schema.validate(document):
            faults = self._faults(head, document, elements, schema, cursor)
        # Before anything is taken out, for sourceline is the element's own.
        parts = tuple(
            Part(element, cursor.index + number, max(1, line_of(element) - lines_before), faults.get(number, ""))
            for number, element in enumerate(elements, start=1)
        )
        after = Cursor(cursor.offset + len(body), cursor.index + len(parts), cursor.line + body.count(b"\n"))
        return Segment(head.message, document, header, parts, after, is_last)

    def _root(self, root: etree._Element, message: str) -> tuple[etree._Element, etree._Element | None]:
        wanted = f"{{{namespace_of(message)}}}Document"
        if root.tag == wanted:
            return root, None
        children = [child for child in root if isinstance(child.tag, str)]
        names = [local_name(child) for child in children]
        if names != ["AppHdr", "Document"] or children[1].tag != wanted:
            raise FileRefused(
                XmlRefusal.SCHEMA_INVALID, f"an envelope holds one AppHdr and one Document, this one {names[:5]}"
            )
        return children[1], children[0]

    def _faults(
        self,
        head: _Head,
        document: etree._Element,
        elements: list[etree._Element],
        schema: etree.XMLSchema,
        cursor: Cursor,
    ) -> dict[int, str]:
        """Which transactions (from 1 in this segment) the schema refuses, and why. Raises FileRefused for a fault
        elsewhere."""
        first = schema_fault(schema)
        frame = copy.copy(document)  # a deep copy, in lxml
        body = frame[0] if len(frame) else None
        if body is None or len(frame) != 1:
            raise FileRefused(XmlRefusal.SCHEMA_INVALID, first, line=cursor.line)
        place = None
        for child in [child for child in body if local_name(child) == self._repeated]:
            place = body.index(child) if place is None else place
            body.remove(child)
        frame_schema = _schema_without(head.message, self._repeated)
        if not frame_schema.validate(frame):
            raise FileRefused(XmlRefusal.SCHEMA_INVALID, schema_fault(frame_schema), line=cursor.line)
        found: dict[int, str] = {}
        for number, element in enumerate(elements, start=1):
            body.insert(place or 0, copy.copy(element))
            if not schema.validate(frame):
                found[number] = schema_fault(schema)
            body.remove(body[place or 0])
        if not found:
            raise FileRefused(XmlRefusal.SCHEMA_INVALID, first, line=cursor.line)
        return found


@cache
def _schema_without(message: str, repeated: str) -> etree.XMLSchema:
    """The message's schema for what is around its transactions: with none of them it is valid too."""
    text = files("settlement.iso20022").joinpath("xsd", f"{message}.xsd").read_bytes()
    root = etree.fromstring(text)
    for element in root.iter(f"{_XSD}element"):
        if element.get("name") == repeated:
            element.set("minOccurs", "0")
    return etree.XMLSchema(root)
