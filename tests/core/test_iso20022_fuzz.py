"""Goal: no bytes whatever make a reader do anything but answer: instructions, or documented refusals, in bounded time.

Method: real messages mutated by Hypothesis (bytes changed, cut, inserted, doubled), classic XML attacks, and files that
are large in one place. Every reader gets the same treatment; what is raised that is not documented fails the test.
"""

from __future__ import annotations

import io
import random
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.ids import ParticipantId
from kernel.money import Currency, Money
from settlement.domain.compliance import ComplianceData, PartyKind
from settlement.domain.instructions import Instruction, InstructionProblem, InstructionRefusal
from settlement.iso20022.camt053 import read_camt053
from settlement.iso20022.chunks import FileProblem
from settlement.iso20022.credit_transfer import read_chunks, read_credit_transfer
from settlement.iso20022.csv_batch import read_csv, read_csv_chunks, write_csv
from settlement.iso20022.head001 import envelope
from settlement.iso20022.pacs002 import read_pacs002
from settlement.iso20022.pacs008 import write_pacs008
from settlement.iso20022.pacs009 import write_pacs009
from settlement.iso20022.recalls import Recall, RecallItem, read_recall, write_recall
from settlement.iso20022.small_messages import MessageRefused
from tests.messages_world import spoiled

NOW = datetime(2026, 11, 2, tzinfo=UTC)
DAY = date(2026, 11, 2)
ATTRIBUTES = b" ".join(b"a%d='x'" % number for number in range(9_000))
BANK_A, BANK_B, BRIDGE = (ParticipantId(code) for code in ("AAAACNBJ", "BBBBAEAD", "BRDGAEAD"))
CNY, AED = Currency.of("CNY"), Currency.of("AED")
DATA = ComplianceData(PartyKind.PERSON, "Zhang San", "CN", "11010119", creditor_name="Shop")
ITEMS = [
    Instruction(f"I{n}", f"E{n}", UUID(int=n << 80 | 4 << 76 | 2 << 62), BANK_A, BANK_B, Money(n, CNY), AED, None, DAY)
    for n in range(1, 4)
]
PACS009 = write_pacs009(ITEMS, message_id="M1", created_at=NOW)
PACS008 = write_pacs008(
    [replace(item, compliance=DATA) for item in ITEMS],
    message_id="M1",
    created_at=NOW,
)
ENVELOPED = envelope(PACS009, sender=BANK_A, receiver=BRIDGE, business_message_id="M1", created_at=NOW)
RECALL = write_recall(Recall("", "A1", BANK_A, BRIDGE, NOW, "C1", (RecallItem(ITEMS[0].uetr),)))
CSV = write_csv(ITEMS)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([PACS008, PACS009, ENVELOPED]), st.randoms(use_true_random=False))
def test_a_spoiled_xml_file_is_read_or_refused(content: bytes, random_: random.Random) -> None:
    data = spoiled(content, random_)
    result = read_credit_transfer(io.BytesIO(data))
    assert bool(result.instructions) != bool(result.problems)
    assert all(isinstance(problem.refusal, InstructionRefusal) for problem in result.problems)
    lines, refused = [], None
    try:
        for chunk in read_chunks(io.BytesIO(data)):
            lines += chunk.lines
    except FileProblem as found:
        refused = found.problem
    # The two ways of reading agree: what is accepted whole is accepted line by line, and equal.
    if result.instructions:
        assert refused is None and [line.decided for line in lines] == list(result.instructions)
    elif refused is None:
        assert any(isinstance(line.decided, InstructionProblem) for line in lines) or all(
            problem.index == 0 or "duplicate" in problem.refusal.value for problem in result.problems
        )


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False))
def test_a_spoiled_csv_file_is_read_or_refused(random_: random.Random) -> None:
    data = spoiled(CSV, random_)
    result = read_csv(io.BytesIO(data))
    assert bool(result.instructions) != bool(result.problems)
    with suppress(FileProblem):
        assert list(read_csv_chunks(io.BytesIO(data)))[-1].is_last


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([RECALL, PACS009]), st.randoms(use_true_random=False))
def test_a_spoiled_small_message_is_read_or_refused(content: bytes, random_: random.Random) -> None:
    data = spoiled(content, random_)
    for read in (read_recall, read_pacs002):
        with suppress(MessageRefused):
            read(data)
    assert read_camt053(io.BytesIO(data)).problems


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    assert read_credit_transfer(io.BytesIO(data)).problems
    assert read_csv(io.BytesIO(data)).problems
    with pytest.raises(MessageRefused):
        read_recall(data)


LAUGHS = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
HEAD, _, REST = PACS009.partition(b"<Document")
TRANSACTION = PACS009[PACS009.index(b"<CdtTrfTxInf>") : PACS009.index(b"</CdtTrfTxInf>") + 15]
ATTACKS = {
    "billion laughs": HEAD + f'<!DOCTYPE x [<!ENTITY a0 "ha">{LAUGHS}]>'.encode() + b"<Document" + REST,
    "laughs, cased": HEAD + f'<!doctype x [<!ENTITY a0 "ha">{LAUGHS}]>'.encode() + b"<Document" + REST,
    "external entity": HEAD + b'<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><Document' + REST,
    "parameter entity": HEAD + b'<!DOCTYPE x [<!ENTITY % p SYSTEM "http://127.0.0.1:9/x">%p;]><Document' + REST,
    "entity in the middle": PACS009.replace(b">E2<", b">&f;<"),
    "doctype in the middle": PACS009.replace(b"<CdtTrfTxInf>", b"<!DOCTYPE x><CdtTrfTxInf>", 1),
    "deep in the head": PACS009.replace(b"<GrpHdr>", b"<GrpHdr>" + b"<a>" * 3_000),
    "deep in a transaction": PACS009.replace(b"<PmtId>", b"<PmtId>" + b"<a>" * 3_000, 1),
    "many attributes": PACS009.replace(b"<PmtId>", b"<PmtId " + ATTRIBUTES + b">", 1),
    "endless transaction": PACS009.replace(b">E1<", b">" + b"x" * 3_000_000 + b"<"),
    "endless head": PACS009.replace(b"<MsgId>", b" " * 3_000_000 + b"<MsgId>"),
    "endless tail": PACS009.replace(b"</FICdtTrf>", b" " * 3_000_000 + b"</FICdtTrf>"),
    "a transaction in a comment": PACS009.replace(TRANSACTION, b"<!-- " + TRANSACTION + b" -->", 1),
    "a transaction in CDATA": PACS009.replace(b">E1<", b"><![CDATA[" + TRANSACTION + b"]]><"),
    "two documents": PACS009 + PACS009[PACS009.index(b"<Document") :],
    "nested in itself": PACS009.replace(b"<CdtTrfTxInf>", b"<CdtTrfTxInf>" + TRANSACTION, 1),
    "another namespace inside": PACS009.replace(b"<CdtTrfTxInf>", b"<CdtTrfTxInf xmlns='urn:x'>", 1),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_quickly_and_quotes_nothing_of_the_machine(name: str) -> None:
    began = time.perf_counter()
    result = read_credit_transfer(io.BytesIO(ATTACKS[name]))
    assert time.perf_counter() - began < 10  # it takes milliseconds: this catches what grows without bound
    assert result.problems and result.instructions == ()
    assert "root:" not in "".join(problem.reason for problem in result.problems)


def test_nothing_hides_from_whoever_counts_the_lines() -> None:
    """A transaction is read wherever a parser of the whole file sees one, and nowhere else."""
    remark = PACS009.replace(b"<CdtTrfTxInf>", b"<!-- a remark --><CdtTrfTxInf>").replace(b">E2<", b"><![CDATA[E2]]><")
    assert read_credit_transfer(io.BytesIO(remark)).instructions == tuple(ITEMS)


def test_no_segment_begins_within_a_comment_or_cdata_of_the_head() -> None:
    """Each segment repeats the head: one cut within a comment would hide from us what others read, or the reverse."""
    tag = b"<CdtTrfTxInf>"
    hidden = PACS009.replace(tag, b"<!-- " + tag + b" -->" + tag, 1)
    remark = PACS009.replace(b"<MsgId>", b"<!-- <CdtTrfTxInf> --><MsgId>", 1)
    for content in (hidden, remark, PACS009.replace(tag, b"<?x " + tag + b"?>" + tag, 1)):
        (problem,) = read_credit_transfer(io.BytesIO(content)).problems
        assert problem.refusal == "not-xml" and "comment" in problem.reason
