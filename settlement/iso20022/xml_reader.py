"""Streams the parts of one ISO 20022 message out of a file that may be hostile, checking it against its schema.

Rules:
1. No more than `bytes_max` bytes are read.
2. Only UTF-8. The parser is told so, whatever the file declares: an encoding is where a DOCTYPE can hide.
3. `<!DOCTYPE` and `<!ENTITY` are refused on the bytes, before the parser sees them (ISO 20022-4 messages have neither);
   the parser, too, resolves no entity, opens no network and keeps libxml2's limits (nesting 256, text 10 MB).
4. The root must be the expected message and version.
5. The whole message is validated while it streams, unless it is of `versions.UNVALIDATED`: then whoever reads it
   checks what it reads. A fault in the last line shows only at the end, so a caller must
   *stage* what it reads and use nothing before the iterator has ended with `problems` empty.
6. Memory is bounded: each part is handed out complete and emptied afterwards; no part, nor all that is beside the
   parts, may have more than `part_bytes_max` bytes.
Source: `etree.iterparse(schema=...)` reported an error of entry 50,000 after all 100,000 had been yielded; a pull
parser fed element by element reports it at its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

from lxml import etree

from kernel.errors import Refusal
from settlement.iso20022.versions import UNVALIDATED

CHUNK_BYTES = 65_536
NAMESPACE_PREFIX = "urn:iso:std:iso:20022:tech:xsd:"
REASON_LENGTH_MAX = 300
_WITHOUT_SCHEMA = frozenset(message for messages in UNVALIDATED.values() for message in messages)

_DECLARED_ENCODING = re.compile(rb"<\?xml[^>]*?encoding\s*=\s*[\"']([^\"']*)[\"']")
_FORBIDDEN = re.compile(rb"<!(?:DOCTYPE|ENTITY)", re.IGNORECASE)
_OVERLAP_BYTES = 8  # one less than the longest forbidden mark, so that none hides across two chunks


class XmlRefusal(Refusal):
    """Every way in which a file is not the expected message, in order of precedence.

    InstructionRefusal and StatementRefusal have the same codes, so that each remains one closed enum.
    """

    FILE_TOO_LARGE = "file-too-large", False, "The file is larger than this service takes."
    ENCODING_NOT_UTF8 = "encoding-not-utf8", False, "The file is not UTF-8."
    DOCTYPE_FORBIDDEN = "doctype-forbidden", False, "An ISO 20022 message has no DOCTYPE and declares no entities."
    NOT_XML = "not-xml", False, "The file is not well-formed XML."
    WRONG_NAMESPACE = "wrong-namespace", False, "The file is another message or version than the one expected."
    SCHEMA_INVALID = "schema-invalid", False, "The file does not match the message's schema."
    PART_TOO_LARGE = (
        "part-too-large",
        False,
        "A part of the file is larger than any real one: an instruction, a header.",
    )


@dataclass(frozen=True, slots=True)
class XmlProblem:
    """`index` counts the repeated part (transaction, entry) from 1, 0 outside; `line` is at or before the fault."""

    refusal: XmlRefusal
    index: int
    line: int
    reason: str


def namespace_of(message: str) -> str:
    """`pacs.009.001.08` -> its XML namespace."""
    return NAMESPACE_PREFIX + message


@cache
def schema_of(message: str) -> etree.XMLSchema:
    """The compiled schema of a message that is in `xsd/`. Raises FileNotFoundError for another."""
    text = files("settlement.iso20022").joinpath("xsd", f"{message}.xsd").read_bytes()
    return etree.XMLSchema(etree.fromstring(text))


def schema_fault(schema: etree.XMLSchema) -> str:
    """What the last validation found first, without the namespace in front of every name."""
    for entry in list(schema.error_log):  # type: ignore[call-overload]  # lxml-stubs do not know it is iterable
        return re.sub(r"\{[a-z]+:[^}]*\}", "", str(entry.message))[:REASON_LENGTH_MAX]  # a pattern's {8} stays
    return "not as the schema says"


def safe_parser() -> etree.XMLParser:
    """A parser for one message in memory: no entity, no DTD, no network, libxml2's limits kept."""
    return etree.XMLParser(
        encoding="utf-8",
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )


def check_encoding(head: bytes) -> str:
    """Why the first bytes of a file are not those of a UTF-8 one; "" if they may be."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\x00" in head[:4]:
        return "the file looks like UTF-16 or UTF-32"
    declared = _DECLARED_ENCODING.match(head.removeprefix(b"\xef\xbb\xbf"))
    if declared is not None and declared[1].lower() not in (b"utf-8", b"us-ascii"):
        return f"the file declares the encoding {declared[1][:20].decode('ascii', 'replace')!r}"
    return ""


def line_of(element: etree._Element) -> int:
    """The line on which the element begins, 0 if unknown."""
    line: object = element.sourceline
    return line if isinstance(line, int) else 0


def _elements(parser: etree.XMLPullParser) -> Iterator[etree._Element]:
    for _, element in parser.read_events():
        if isinstance(element, etree._Element):
            yield element


def local_name(element: etree._Element) -> str:
    return str(element.tag).rpartition("}")[2]


class _Nothing:
    """A parser target that keeps nothing."""

    def close(self) -> None:
        return None


class MessageReader:
    """Iterates over the complete elements named in `tags`; afterwards `problems` says whether the message may be used.

    `repeated` (one of `tags`) is the part that problems are counted by, and whose earlier siblings are forgotten.
    The iteration stops early once `problems_max` problems are known.
    """

    def __init__(
        self,
        source: BinaryIO | Path,
        *,
        messages: Sequence[str],
        tags: Sequence[str],
        repeated: str,
        bytes_max: int,
        part_bytes_max: int,
        problems_max: int,
    ) -> None:
        self.problems: list[XmlProblem] = []
        self._source = source
        self.message = ""
        """Which of `messages` it is, once its root was read."""
        self._messages = messages
        self._tags = tags
        self._repeated_name = repeated
        self._repeated = ""
        self._bytes_max = bytes_max
        self._part_bytes_max = part_bytes_max
        self._problems_max = problems_max
        # Cut behind every tag of the repeated part: a schema error is then known to lie in this element and no other.
        self._cut = re.compile(rb"<(/?)(?:[\w.-]+:)?" + repeated.encode("ascii") + rb"\s*>")
        self._index = 0
        self._is_inside = False
        self._line = 1
        self._closings = 0
        self._inside_bytes = 0
        self._around_bytes = 0
        self._errors_seen = 0
        # lxml's validating pull parser is silent about a truncated file (6.1.3), so a second one that builds
        # nothing and validates nothing says whether the file is well-formed.
        nothing: Any = _Nothing()
        self._guard = etree.XMLParser(
            target=nothing,
            encoding="utf-8",
            resolve_entities=False,
            no_network=True,
            load_dtd=False,
            huge_tree=False,
        )

    def __iter__(self) -> Iterator[etree._Element]:
        parser: etree.XMLPullParser | None = None
        try:
            for piece, opens in self._pieces():
                if parser is None:
                    if not self._check_root(piece):
                        return
                    parser = self._parser()
                if not self._has_room(piece):
                    return
                parser.feed(piece)
                self._closings += int(piece.endswith(b">") and self._is_inside and not opens)
                self._note_schema_errors(parser)
                yield from self._ended(parser)
                self._is_inside = opens
                self._line += piece.count(b"\n")
                if len(self.problems) >= self._problems_max:
                    return
            if self.problems:
                return
            if parser is None:
                self._refuse(XmlRefusal.NOT_XML, "the file is empty")
                return
            root = parser.close()
            self._note_schema_errors(parser)
            yield from self._ended(parser)
            if root is None or local_name(root) != "Document" or self._index != self._closings:
                self._refuse(
                    XmlRefusal.NOT_XML, "the parser lost a part of the file: nested too deeply, or a text too long"
                )
        except etree.XMLSyntaxError as error:
            if parser is not None:
                self._note_schema_errors(parser)
            if not self.problems:
                self._refuse(XmlRefusal.NOT_XML, error.msg or "not well-formed", index=self._place())

    def _has_room(self, piece: bytes) -> bool:
        """Count the bytes of a repeated part, and those of all that is around them: both are held in memory whole."""
        if self._is_inside:
            self._inside_bytes += len(piece)
        else:
            self._inside_bytes = 0
            content = piece.strip()
            if not self._cut.fullmatch(content):  # the tags and blanks between a million entries are nothing
                self._around_bytes += len(content)
        if self._inside_bytes > self._part_bytes_max:
            reason = f"one {self._repeated_name} of more than {self._part_bytes_max:,} bytes"
        elif self._around_bytes > self._part_bytes_max:
            reason = f"more than {self._part_bytes_max:,} bytes beside its {self._repeated_name}"
        else:
            return True
        self._refuse(XmlRefusal.PART_TOO_LARGE, reason, index=self._place())
        return False

    def _parser(self) -> etree.XMLPullParser:
        """Of the message that the root names."""
        prefix = f"{{{namespace_of(self.message)}}}"
        self._repeated = prefix + self._repeated_name
        return etree.XMLPullParser(
            events=("end",),
            tag=[prefix + tag for tag in self._tags],
            schema=None if self.message in _WITHOUT_SCHEMA else schema_of(self.message),
            encoding="utf-8",
            resolve_entities=False,
            no_network=True,
            load_dtd=False,
            huge_tree=False,
            remove_comments=True,
            remove_pis=True,
        )

    def _pieces(self) -> Iterator[tuple[bytes, bool]]:
        """The bytes cut behind each tag of the repeated part, and whether the piece ends by opening it."""
        carry = b""
        for chunk in self._chunks():
            carry += chunk
            start = 0
            for match in self._cut.finditer(carry):
                yield carry[start : match.end()], not match[1]
                start = match.end()
            carry = carry[start:]
            if len(carry) > CHUNK_BYTES:
                # A tag may be half here: its bytes wait for the next chunk, so that no tag is missed in the count.
                yield carry[:-64], self._is_inside
                carry = carry[-64:]
        if carry:
            yield carry, self._is_inside

    def _chunks(self) -> Iterator[bytes]:
        """The file's bytes, each chunk checked by rules 1 to 3 before it is handed on."""
        with ExitStack() as stack:
            file = stack.enter_context(self._source.open("rb")) if isinstance(self._source, Path) else self._source
            bytes_read = 0
            tail = b""
            while chunk := file.read(CHUNK_BYTES):
                if bytes_read == 0 and len(chunk) < CHUNK_BYTES:
                    chunk += file.read(CHUNK_BYTES - len(chunk))  # a slow pipe must not split the XML declaration
                bytes_read += len(chunk)
                if bytes_read > self._bytes_max:
                    self._refuse(XmlRefusal.FILE_TOO_LARGE, f"more than {self._bytes_max:,} bytes")
                    return
                if bytes_read == len(chunk) and not self._check_encoding(chunk):
                    return
                if _FORBIDDEN.search(tail + chunk):
                    self._refuse(XmlRefusal.DOCTYPE_FORBIDDEN, "the file declares a document type or an entity")
                    return
                tail = chunk[-_OVERLAP_BYTES:] if len(chunk) >= _OVERLAP_BYTES else (tail + chunk)[-_OVERLAP_BYTES:]
                if not self._is_well_formed(chunk):
                    return
                yield chunk
            if bytes_read:
                self._is_well_formed(None)

    def _is_well_formed(self, chunk: bytes | None) -> bool:
        """Show the guard the next bytes, or (None) the end."""
        try:
            if chunk is None:
                self._guard.close()
            else:
                self._guard.feed(chunk)
        except etree.XMLSyntaxError as error:
            self.problems.append(
                XmlProblem(XmlRefusal.NOT_XML, 0, error.lineno or 0, (error.msg or "")[:REASON_LENGTH_MAX])
            )
            return False
        return True

    def _check_encoding(self, head: bytes) -> bool:
        fault = check_encoding(head)
        if fault:
            self._refuse(XmlRefusal.ENCODING_NOT_UTF8, fault)
        return not fault

    def _check_root(self, head: bytes) -> bool:
        """Look at the root with a parser of its own, so that nothing of another message is ever built."""
        probe = etree.XMLPullParser(
            events=("start",),
            encoding="utf-8",
            resolve_entities=False,
            no_network=True,
            load_dtd=False,
            huge_tree=False,
        )
        wanted = {f"{{{namespace_of(message)}}}Document": message for message in self._messages}
        fault = f"no root element within the first {CHUNK_BYTES:,} bytes"
        try:
            probe.feed(head)
        except etree.XMLSyntaxError as error:
            fault = error.msg or "not well-formed"
        for element in _elements(probe):
            if element.tag not in wanted:
                reason = f"the root is {str(element.tag)[:120]}, expected Document of {', '.join(self._messages)}"
                self._refuse(XmlRefusal.WRONG_NAMESPACE, reason)
                return False
            self.message = wanted[str(element.tag)]
            return True
        self._refuse(XmlRefusal.NOT_XML, fault)
        return False

    def _ended(self, parser: etree.XMLPullParser) -> Iterator[etree._Element]:
        for element in _elements(parser):
            if element.tag != self._repeated:
                yield element
                continue
            self._index += 1
            yield element
            element.clear()
            before = element.getprevious()
            parent = element.getparent()
            if before is not None and parent is not None and before.tag == self._repeated:
                parent.remove(before)

    def _note_schema_errors(self, parser: etree.XMLPullParser) -> None:
        """Take over the schema errors that the last piece added."""
        log = parser.feed_error_log
        if len(log) == self._errors_seen:
            return
        for entry in list(log)[self._errors_seen :]:
            if entry.domain == etree.ErrorDomains.SCHEMASV and len(self.problems) < self._problems_max:
                reason = entry.message.replace(f"{{{namespace_of(self.message)}}}", "")
                self._refuse(XmlRefusal.SCHEMA_INVALID, reason, index=self._place())
        self._errors_seen = len(log)

    def _place(self) -> int:
        """The repeated part being read, or 0 outside of it."""
        return self._index + 1 if self._is_inside else 0

    def _refuse(self, refusal: XmlRefusal, reason: str, *, index: int = 0) -> None:
        self.problems.append(XmlProblem(refusal, index, self._line, reason[:REASON_LENGTH_MAX]))
