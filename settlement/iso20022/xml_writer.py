"""Streams an ISO 20022 message into a file: escaping by lxml, lengths and number forms checked here.

What the writers emit is meant to be XSD-valid always; what the schema could not carry raises ValueError before it is
written, so that a wrong message never leaves with a right-looking name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Any, BinaryIO

from lxml import etree

from kernel.money import Currency, Money, format_minor
from settlement.iso20022.xml_reader import namespace_of

_IDENTIFIERS = frozenset(
    {
        *("MsgId", "BizMsgIdr", "InstrId", "EndToEndId", "TxId", "CxlId"),
        *("OrgnlMsgId", "OrgnlInstrId", "OrgnlEndToEndId", "OrgnlTxId"),
    }
)
_FIN_X = re.compile(r"[A-Za-z0-9/?:().,'+ -]+", re.ASCII)
AMOUNT_MINOR_MAX = 10**18 - 1
"""totalDigits 18 of ISO 20022 amounts and sums."""


def is_identifier(text: str) -> bool:
    """Whether CBPR+ lets an identifier be so: characters of FIN X."""
    return _FIN_X.fullmatch(text) is not None


class XmlWriter:
    """Elements of one message, in document order."""

    def __init__(self, xml: Any) -> None:
        self._xml = xml  # lxml's _IncrementalFileWriter, which has no public type

    def element(self, name: str) -> AbstractContextManager[Any]:
        """An element with children."""
        context: AbstractContextManager[Any] = self._xml.element(name)
        return context

    def text(self, name: str, text: str, *, length_max: int = 35, **attributes: str) -> None:
        """A leaf. Raises ValueError if the text is empty, too long, or holds characters that XML cannot, or that CBPR+
        does not let an identifier have."""
        if not 0 < len(text) <= length_max:
            raise ValueError(f"{name} must have 1 to {length_max} characters, it has {len(text)}")
        if name in _IDENTIFIERS and not is_identifier(text):
            raise ValueError(f"{name} {text!r} has a character outside of FIN X")
        with self._xml.element(name, attributes):
            self._xml.write(text)


@contextmanager
def document_writer(file: BinaryIO, message: str) -> Iterator[XmlWriter]:
    """The XML declaration and the root `Document` in the message's namespace, around what the caller writes."""
    with etree.xmlfile(file, encoding="utf-8") as xml:
        xml.write_declaration()
        with xml.element("Document", nsmap={None: namespace_of(message)}):
            yield XmlWriter(xml)


def amount_text(money: Money) -> str:
    """`1234.50`: major units with exactly the currency's decimals. Raises ValueError beyond 18 digits."""
    return minor_text(money.amount_minor, money.currency)


def minor_text(amount_minor: int, currency: Currency) -> str:
    """As `amount_text`, for a non-negative count of minor units that is a sum or a balance."""
    if not 0 <= amount_minor <= AMOUNT_MINOR_MAX:
        raise ValueError(f"{amount_minor} minor units do not fit the 18 digits of an ISO 20022 amount")
    return format_minor(amount_minor, currency, grouping=False)


def datetime_text(moment: datetime) -> str:
    """ISODateTime in UTC with `Z`, microseconds kept. Raises ValueError for a moment without a time zone."""
    if moment.tzinfo is None:
        raise ValueError("a moment must carry its time zone")
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"
