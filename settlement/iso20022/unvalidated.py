"""Statements of versions whose schemas this service does not have: camt.053.001.02 to .07, which many still send.

Their schemas are not in `xsd/`, so what a schema says of everything is checked here of the elements that are read and
of those alone: where they stand, how often, and what may stand in them. Whatever else a message holds is not looked at.
Such a statement is therefore marked as not validated, wherever its source is shown and in evidence.

What differs from camt.053.001.08 in what is read:
 - an entry's status is a bare code (BOOK, PDNG, INFO) in Sts, not in Sts/Cd;
 - an agent's BIC is in FinInstnId/BIC (.02), not BICFI;
 - .02 has no Amt in TxDtls: a payment's amount is AmtDtls/TxAmt/Amt; nor StmtPgntn: pages are GrpHdr/MsgPgntn's;
 - there is no Refs/UETR: it is read where it stands nevertheless, and as a proprietary reference.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lxml import etree


class ShapeRefused(Exception):
    """An element that is read is not as the message's versions have it; the reason names it."""


@dataclass(frozen=True, slots=True)
class _Node:
    """An element: at least and at most so many, its text if it has no children, and its children that are read."""

    least: int = 0
    most: int = 1
    text: re.Pattern[str] | None = None
    children: Mapping[str, _Node] = field(default_factory=dict)
    has_currency: bool = False
    one_of: bool = False
    """A choice: one child and no more."""


_SPACED = r"[ \t\r\n]*"
_MANY = 10**9


def _leaf(pattern: str, *, least: int = 0) -> _Node:
    return _Node(least=least, text=re.compile(pattern, re.DOTALL))


def _trimmed(pattern: str, *, least: int = 0) -> _Node:
    """Numbers, dates and booleans may have white space around them; texts and codes say what they say."""
    return _leaf(f"{_SPACED}(?:{pattern}){_SPACED}", least=least)


def _of(least: int = 0, most: int = 1, /, **children: _Node) -> _Node:
    return _Node(least=least, most=most, children=children)


def _choice(least: int = 0, /, **children: _Node) -> _Node:
    return _Node(least=least, children=children, one_of=True)


def _max_text(length: int, *, least: int = 0) -> _Node:
    return _leaf(f".{{1,{length}}}", least=least)


_MOMENT = _trimmed(r"-?[0-9]{4,}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,60}(?:Z|[+-][0-9]{2}:[0-9]{2})?")
_DAY = _trimmed(r"-?[0-9]{4,}-[0-9]{2}-[0-9]{2}(?:Z|[+-][0-9]{2}:[0-9]{2})?")
_DECIMAL = r"\+?(?:[0-9]{1,18}(?:\.[0-9]{0,17})?|\.[0-9]{1,17})"
_SIDE = _leaf("CRDT|DBIT")
_TRUTH = _trimmed("true|false|1|0")
_COUNT = _leaf("[0-9]{1,15}")
_PAGES = _of(PgNb=_leaf("[0-9]{1,5}", least=1), LastPgInd=_trimmed("true|false|1|0", least=1))
_BIC = _leaf("[A-Z]{6}[A-Z2-9][A-NP-Z0-9](?:[A-Z0-9]{3})?")
_AGENT = _of(FinInstnId=_of(BIC=_BIC, BICFI=_leaf("[A-Z0-9]{4}[A-Z]{2}[A-Z0-9]{2}(?:[A-Z0-9]{3})?")))
_NUMBER = _choice(1, IBAN=_leaf("[A-Z]{2}[0-9]{2}[a-zA-Z0-9]{1,30}"), Othr=_of(Id=_max_text(34, least=1)))
_DATE = _choice(Dt=_DAY, DtTm=_MOMENT)


def _amount(*, least: int = 0) -> _Node:
    return _Node(least=least, text=re.compile(f"{_SPACED}{_DECIMAL}{_SPACED}"), has_currency=True)


_AMOUNTS = _of(InstdAmt=_of(Amt=_amount(least=1)), TxAmt=_of(Amt=_amount(least=1)))
_REFS = _of(
    AcctSvcrRef=_max_text(35),
    EndToEndId=_max_text(35),
    UETR=_leaf("[a-f0-9]{8}-[a-f0-9]{4}-4[a-f0-9]{3}-[89ab][a-f0-9]{3}-[a-f0-9]{12}"),
    Prtry=_of(0, _MANY, Tp=_max_text(35, least=1), Ref=_max_text(35, least=1)),
)
_DETAILS = _of(
    0,
    _MANY,
    Refs=_REFS,
    Amt=_amount(),
    CdtDbtInd=_SIDE,
    AmtDtls=_AMOUNTS,
    RltdPties=_of(DbtrAcct=_of(Id=_NUMBER), CdtrAcct=_of(Id=_NUMBER)),
    RltdAgts=_of(DbtrAgt=_AGENT, CdtrAgt=_AGENT),
)
_ENTRY = _of(
    0,
    _MANY,
    NtryRef=_max_text(35),
    Amt=_amount(least=1),
    CdtDbtInd=_leaf("CRDT|DBIT", least=1),
    RvslInd=_TRUTH,
    Sts=_Node(least=1, children={"Cd": _max_text(4), "Prtry": _max_text(35)}),
    BookgDt=_DATE,
    ValDt=_DATE,
    AcctSvcrRef=_max_text(35),
    AmtDtls=_AMOUNTS,
    NtryDtls=_of(0, _MANY, Btch=_of(MsgId=_max_text(35), PmtInfId=_max_text(35)), TxDtls=_DETAILS),
)
_CODE = {"Cd": _max_text(4), "Prtry": _max_text(35)}
_TOTAL = _of(NbOfNtries=_COUNT, Sum=_trimmed(_DECIMAL))
_BALANCE = _of(
    1,
    _MANY,
    Tp=_of(1, CdOrPrtry=_choice(1, **_CODE), SubTp=_choice(**_CODE)),
    Amt=_amount(least=1),
    CdtDbtInd=_leaf("CRDT|DBIT", least=1),
    Dt=_choice(1, Dt=_DAY, DtTm=_MOMENT),
)
_STATEMENT = _of(
    1,
    _MANY,
    Id=_max_text(35, least=1),
    StmtPgntn=_PAGES,
    ElctrncSeqNb=_trimmed(r"[0-9]{1,18}(?:\.0*)?"),
    CreDtTm=_MOMENT,
    FrToDt=_of(FrDtTm=_MOMENT, ToDtTm=_MOMENT),
    Acct=_of(1, Id=_NUMBER, Ccy=_leaf("[A-Z]{3}"), Svcr=_AGENT),
    Bal=_BALANCE,
    TxsSummry=_of(TtlNtries=_TOTAL, TtlCdtNtries=_TOTAL, TtlDbtNtries=_TOTAL),
)
_HEADER = _of(1, MsgId=_max_text(35, least=1), CreDtTm=_MOMENT, MsgPgntn=_PAGES)
_SHAPES = {"Ntry": (_ENTRY, ("Stmt", "BkToCstmrStmt", "Document")), "GrpHdr": (_HEADER, ("BkToCstmrStmt", "Document"))}
_SHAPES["Stmt"] = (_STATEMENT, ("BkToCstmrStmt", "Document"))


def check_shape(element: etree._Element) -> None:
    """Of a complete GrpHdr, Stmt or Ntry. Raises ShapeRefused."""
    tag = etree.QName(element)
    shape, above = _SHAPES[tag.localname]
    parents = list(element.iterancestors())
    if [str(parent.tag) for parent in parents] != [f"{{{tag.namespace}}}{name}" for name in above]:
        raise ShapeRefused(f"{tag.localname} does not stand in {above[0]}")
    is_head, is_first = tag.localname == "GrpHdr", element.getprevious() is None
    if parents[-2].getprevious() is not None or (tag.localname != "Ntry" and is_head is not is_first):
        raise ShapeRefused("a message has one BkToCstmrStmt, and that one GrpHdr before everything else")
    _check(element, shape, f"{{{tag.namespace}}}", tag.localname)


def _check(element: etree._Element, node: _Node, prefix: str, path: str) -> None:
    _check_attributes(element, node, path)
    children: list[Any] = list(element)
    if node.text is not None:
        if children or not node.text.fullmatch(element.text or ""):
            raise ShapeRefused(f"{path} is {(element.text or '')[:40]!r}")
        return
    if not children and path.endswith("/Sts"):
        return  # a bare code, which the reader knows or not
    counts: Counter[str] = Counter()
    for child in children:
        tag = str(child.tag)
        if not tag.startswith(prefix):
            raise ShapeRefused(f"{path} holds {tag[:80]}, of another namespace")
        name = tag[len(prefix) :]
        counts[name] += 1
        found = node.children.get(name)
        if found is not None:
            _check(child, found, prefix, f"{path}/{name}")
    if any((text or "").strip() for text in (element.text, *(child.tail for child in children))):
        raise ShapeRefused(f"{path} holds a text beside its elements")
    for name, found in node.children.items():
        if not found.least <= counts[name] <= found.most:
            raise ShapeRefused(f"{path}/{name} stands there {counts[name]} times")
    if node.one_of and len(children) != 1:
        raise ShapeRefused(f"{path} holds {len(children)} elements where one is chosen")


def _check_attributes(element: etree._Element, node: _Node, path: str) -> None:
    names = [str(name) for name in element.attrib]
    if names != (["Ccy"] if node.has_currency else []):
        raise ShapeRefused(f"{path} has the attributes {', '.join(names)[:60] or 'none'}")
