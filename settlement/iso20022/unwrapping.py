"""A message out of its envelope: the Document's own bytes, for a reader that streams them.

Networks hand statements over with the business application header beside them, under a root of their own. What is
around the Document is small, so it is read whole: taken out of the Document's place it has to be one element with one
AppHdr and nothing else, and the header has to name this message. A Document that uses a namespace prefix of its
envelope's is refused as not well-formed.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast

from lxml import etree

from settlement.iso20022.head001 import HeaderRefused, read_header
from settlement.iso20022.xml_reader import (
    REASON_LENGTH_MAX,
    XmlProblem,
    XmlRefusal,
    check_encoding,
    local_name,
    safe_parser,
)

FRAME_BYTES_MAX = 256 * 1024
"""Before the Document, and behind it: an application header has some 1 KB, 20 KB if it is signed."""
_ROOT = re.compile(rb"<([\w.-]+:)?([\w.-]+)(?=[\s/>])")
_DOCUMENT = re.compile(rb"<((?:[\w.-]+:)?Document)(?=[\s/>])")
_FORBIDDEN = re.compile(rb"<!(?:DOCTYPE|ENTITY)", re.IGNORECASE)
_NOTHING_SAID = re.compile(rb"<\?.*?\?>|<!--.*?-->", re.DOTALL)


class Unwrapped:
    """`file` is the message: as it is, if its root is the Document. `problem` says why there is none."""

    def __init__(self, source: BinaryIO | Path, messages: Sequence[str]) -> None:
        self.problem: XmlProblem | None = None
        self._opened = source.open("rb") if isinstance(source, Path) else None
        file = self._opened or source
        if isinstance(file, Path):
            raise TypeError("a path was opened")
        self.file: BinaryIO = file
        self.messages = tuple(messages)
        """Those that it may be: the one that the header names."""
        if not file.seekable():
            return
        start = file.tell()
        head = file.read(FRAME_BYTES_MAX)
        file.seek(start)
        if check_encoding(head) or _FORBIDDEN.search(head):
            return  # the reader says so
        root = _ROOT.search(_NOTHING_SAID.sub(b"", head))
        if root is None or root[2] == b"Document":
            return
        self._unwrap(file, start, head, messages)

    def __enter__(self) -> Unwrapped:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None:
            self._opened.close()

    def _unwrap(self, file: BinaryIO, start: int, head: bytes, messages: Sequence[str]) -> None:
        opening = _DOCUMENT.search(head)
        if opening is None:
            return
        size = file.seek(0, io.SEEK_END)
        tail_start = max(start + opening.start(), size - FRAME_BYTES_MAX)
        file.seek(tail_start)
        tail = file.read(FRAME_BYTES_MAX)
        file.seek(start)
        closing = list(re.finditer(rb"</" + opening[1] + rb"\s*>", tail))
        if not closing or _FORBIDDEN.search(tail):
            return
        end = tail_start + closing[-1].end()
        try:
            frame = etree.fromstring(head[: opening.start()] + tail[closing[-1].end() :], safe_parser())
        except etree.XMLSyntaxError as error:
            self._refuse(XmlRefusal.NOT_XML, error.msg or "the envelope is not well-formed")
            return
        children = [child for child in frame if isinstance(child.tag, str)]
        if [local_name(child) for child in children] != ["AppHdr"]:
            self._refuse(XmlRefusal.WRONG_NAMESPACE, "an envelope holds one AppHdr and one Document")
            return
        try:
            header = read_header(children[0])
        except HeaderRefused as refused:
            self._refuse(XmlRefusal.SCHEMA_INVALID, str(refused))
            return
        if header.message not in messages:
            self._refuse(XmlRefusal.WRONG_NAMESPACE, f"AppHdr/MsgDefIdr says {header.message[:60]!r}")
            return
        self.messages = (header.message,)
        self.file = cast(BinaryIO, _Part(file, start + opening.start(), end))

    def _refuse(self, refusal: XmlRefusal, reason: str) -> None:
        self.problem = XmlProblem(refusal, 0, 0, reason[:REASON_LENGTH_MAX])


class _Part(io.RawIOBase):
    """Bytes of a file from a place to a place."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        super().__init__()
        self._file = file
        self._left = end - start
        file.seek(start)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(content)
        return content
