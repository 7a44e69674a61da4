"""Goal: a recall ends the payment that it describes and no other, whoever sends it and however often.

Method: camt.056 messages over a real database, each against payments in one batch and one stream; what became of each
payment is read from its row, not from the answer alone. What only the engine can do (the abort itself) is the API's
test; here the engine does not run, so a settlement that is given up is one that carries the request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from kernel.clock import system_clock
from kernel.errors import ProblemError
from kernel.ids import ParticipantId
from kernel.money import Money
from settlement.domain.statuses import CancellationStatus, Confirmation, confirmation_of
from settlement.iso20022.head001 import envelope
from settlement.iso20022.pacs009 import write_pacs009
from settlement.iso20022.recalls import Recall, RecallItem, read_resolution, write_recall
from settlement.usecases import streams
from settlement.usecases.messages import RecallStanding, resolution_message, resolve, submit_recall
from settlement.usecases.streams import steps, work_on
from tests.messages_world import AED, BANK_A, BANK_B, BRIDGE, CNY, CREATED_AT, World, instruction, pacs009

PAID = instruction(1)
"""Of the file M1 that every test begins with."""


@pytest.fixture
def world(fresh_database: Callable[[str], str], tmp_path: Path) -> Iterator[World]:
    made = World(fresh_database("settlement"), tmp_path)
    assert work_on(made.context, made.send(pacs009(3)))
    yield made
    made.close()


def recall(*items: RecallItem, name: str = "R1", assigner: str = BANK_A, assignee: str = BRIDGE) -> bytes:
    parties = ParticipantId(assigner), ParticipantId(assignee)
    return write_recall(Recall("", name, *parties, CREATED_AT, "CASE1", items or (RecallItem(PAID.uetr),)))


def send(world: World, content: bytes, by: ParticipantId = BANK_A) -> tuple[RecallStanding, bool]:
    return submit_recall(
        content,
        submitter=by,
        is_operator=by == BRIDGE,
        bridge=BRIDGE,
        database=world.database,
        clock=system_clock,
    )


def refused(world: World, content: bytes, by: ParticipantId = BANK_A) -> tuple[str, str]:
    with pytest.raises(ProblemError) as found:
        send(world, content, by)
    return found.value.refusal.value, found.value.detail


def given_up(world: World) -> set[UUID]:
    """UETRs of the payments that somebody asked to end."""
    query = sa.text("SELECT uetr FROM settlement WHERE abort_requested_at IS NOT NULL")
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        return set(connection.execute(query).scalars())


def rows(world: World) -> int:
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        return int(connection.execute(sa.text("SELECT count(*) FROM recall")).scalar_one())


LIKE = RecallItem(
    PAID.uetr,
    original_message_id="M1",
    original_message="pacs.009.001.08",
    instruction_id=PAID.instruction_id,
    end_to_end_id=PAID.end_to_end_id,
    amount=PAID.amount,
    value_date=PAID.value_date,
)


def test_a_recall_that_says_all_that_is_so_ends_the_payment(world: World) -> None:
    standing, is_new = send(world, recall(LIKE))
    assert is_new and given_up(world) == {PAID.uetr}
    assert [item.status for item in resolve(standing)] == [CancellationStatus.PENDING]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("OrgnlMsgId", replace(LIKE, original_message_id="M2")),
        ("OrgnlInstrId", replace(LIKE, instruction_id="I1-2")),
        ("OrgnlEndToEndId", replace(LIKE, end_to_end_id="E2E-2")),
        ("OrgnlIntrBkSttlmAmt", replace(LIKE, amount=Money(PAID.amount.amount_minor + 1, CNY))),
        ("OrgnlIntrBkSttlmAmt", replace(LIKE, amount=Money(PAID.amount.amount_minor, AED))),
        ("OrgnlIntrBkSttlmDt", replace(LIKE, value_date=date(2026, 11, 3))),
    ],
)
def test_a_recall_unlike_the_payment_of_its_uetr_ends_nothing_and_says_in_what(
    world: World, name: str, wrong: RecallItem
) -> None:
    standing, _ = send(world, recall(wrong))
    (found,) = resolve(standing)
    assert given_up(world) == set()
    assert (found.status, found.reason) == (CancellationStatus.REJECTED, "NOOR")
    assert f"{name} says" in " ".join(found.texts)
    answer = read_resolution(resolution_message(standing, bridge=BRIDGE, version="camt.029.001.09", now=system_clock()))
    assert answer.confirmation is Confirmation.REJECTED and f"{name} says" in answer.items[0].texts[0]


def test_each_payment_of_a_recall_is_answered_by_itself(world: World) -> None:
    unknown, other = uuid4(), instruction(2)
    items = (RecallItem(unknown), replace(LIKE, end_to_end_id="E9"), RecallItem(other.uetr))
    standing, _ = send(world, recall(*items))
    statuses = [item.status for item in resolve(standing)]
    assert statuses == [CancellationStatus.REJECTED, CancellationStatus.REJECTED, CancellationStatus.PENDING]
    assert confirmation_of(statuses) is Confirmation.PENDING
    assert given_up(world) == {other.uetr}


def test_the_same_recall_is_one_and_another_of_the_same_payment_stands_as_the_first(world: World) -> None:
    content = recall(LIKE)
    first, _ = send(world, content)
    again, is_new = send(world, content)
    assert (again.row.id, is_new) == (first.row.id, False)
    second, is_new = send(world, recall(LIKE, name="R2"))
    assert is_new and second.row.id != first.row.id
    assert [item.status for item in resolve(second)] == [CancellationStatus.PENDING]
    assert refused(world, recall(RecallItem(instruction(2).uetr)))[0] == "recall-id-reused"
    assert (rows(world), given_up(world)) == (2, {PAID.uetr})


WAITING = [instruction(number) for number in range(4, 10)]
"""Of the file M2, two lines a step."""


@pytest.fixture
def waiting(world: World, monkeypatch: pytest.MonkeyPatch) -> UUID:
    """A file of which the first two lines are booked and the others staged."""
    monkeypatch.setattr(streams, "BATCH_LINES", 2)
    stream = world.send(write_pacs009(WAITING, message_id="M2", created_at=CREATED_AT))
    for _ in steps(world.context, stream):
        if world.row(stream).booked_number == 2:
            break
    return stream


def test_a_payment_that_waits_in_its_file_is_refused_when_its_turn_comes(world: World, waiting: UUID) -> None:
    last = WAITING[-1]
    asked = RecallItem(last.uetr, original_message_id="M2", instruction_id=last.instruction_id, amount=last.amount)
    content = recall(asked, RecallItem(WAITING[0].uetr))
    standing, _ = send(world, content)
    assert [item.status for item in resolve(standing)] == [CancellationStatus.PENDING] * 2
    assert work_on(world.context, waiting)
    assert (world.row(waiting).booked_count, world.refusals(waiting)) == (5, [(6, "recalled")])
    again, is_new = send(world, content)
    found = resolve(again)
    assert not is_new and [item.status for item in found] == [CancellationStatus.ACCEPTED, CancellationStatus.PENDING]
    assert given_up(world) == {WAITING[0].uetr}
    answer = resolution_message(again, bridge=BRIDGE, version="camt.029.001.09", now=CREATED_AT)
    assert [item.status for item in read_resolution(answer).items] == [item.status for item in found]


@pytest.mark.parametrize(
    ("item", "by"),
    [
        (RecallItem(WAITING[-1].uetr, end_to_end_id="E2E-1"), BANK_A),
        (RecallItem(WAITING[-1].uetr, original_message_id="M1"), BANK_A),
        (RecallItem(WAITING[-1].uetr), BANK_B),
    ],
)
def test_a_payment_that_waits_is_ended_by_no_stranger_and_no_recall_unlike_it(
    world: World, waiting: UUID, item: RecallItem, by: ParticipantId
) -> None:
    (found,) = resolve(send(world, recall(item, assigner=by), by)[0])
    assert (found.status, found.reason) == (CancellationStatus.REJECTED, "NOOR")
    assert work_on(world.context, waiting)
    assert (world.row(waiting).booked_count, world.refusals(waiting)) == (6, [])


def test_a_payment_in_a_file_that_is_still_read_may_be_recalled_again(world: World) -> None:
    stream = world.send(write_pacs009(WAITING, message_id="M2", created_at=CREATED_AT))
    asked = RecallItem(WAITING[-1].uetr)
    (early,) = resolve(send(world, recall(asked))[0])
    (strangers,) = resolve(send(world, recall(asked, assigner=BANK_B), BANK_B)[0])
    assert "recall it again" in " ".join(early.texts) and "recall it again" not in " ".join(strangers.texts)
    assert work_on(world.context, stream)
    (later,) = resolve(send(world, recall(asked, name="R2"))[0])
    assert later.status is CancellationStatus.PENDING and given_up(world) == {WAITING[-1].uetr}


def test_a_stranger_may_recall_nothing_and_learns_nothing(world: World) -> None:
    """Neither the payee nor anybody else: to them the payment does not exist, whether they describe it well or not."""
    answers = set()
    for number, by in enumerate((BANK_B, ParticipantId("CCCCCNBJ"))):
        for item in (LIKE, replace(LIKE, end_to_end_id="E9"), replace(LIKE, uetr=uuid4())):
            name = f"S{number}{item.uetr.hex[:8]}{item.end_to_end_id}"
            standing, _ = send(world, recall(item, name=name, assigner=by), by)
            (found,) = resolve(standing)
            answers.add((found.status, found.reason, found.texts))
    assert len(answers) == 1 and given_up(world) == set()
    standing, _ = send(world, recall(LIKE, assigner=BANK_A), BRIDGE)
    assert given_up(world) == {PAID.uetr}


ENVELOPE = {"sender": BANK_A, "receiver": BRIDGE, "business_message_id": "R1", "created_at": CREATED_AT}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (recall(assignee=BANK_B), "Assgne"),
        (recall(assigner=BANK_B), "Assgnr"),
        (b"", "not-xml"),
        (b"<x/>", "wrong-namespace"),
        (pacs009(1), "wrong-namespace"),
        (recall().decode().encode("utf-16"), "encoding-not-utf8"),
        (recall().replace(b"<FIToFI", b"<!DOCTYPE x><FIToFI", 1), "doctype-forbidden"),
        (recall().replace(b">CASE1<", b">" + b"<a>" * 400 + b"<"), "not-xml"),
        (recall().replace(b">CASE1<", b">" + b"x" * 3_000_000 + b"<"), "file-too-large"),
        (recall().replace(b">CASE1<", b">" + b"C" * 36 + b"<"), "schema-invalid"),
        (recall().replace(b">CASE1<", b">C_1<"), "Case/Id"),
        (recall(LIKE).replace(b">E2E-1<", b">=cmd<"), "OrgnlEndToEndId"),
        (recall(LIKE).replace(b">pacs.009.001.08<", b">pacs_009<"), "OrgnlMsgNmId"),
        (recall(LIKE).replace(b">2026-11-02<", b">2026-11-02+08:00<"), "OrgnlIntrBkSttlmDt"),
        (recall(LIKE).replace(b'"CNY">1000.01<', b'"CNY">1000.001<'), "amount-too-many-decimals"),
        (recall(LIKE).replace(b'"CNY">1000.01<', b'"XXX">1000.01<'), "currency-unknown"),
        (recall(LIKE).replace(b"</NbOfTxs>", b"</NbOfTxs><CtrlSum>1000.02</CtrlSum>"), "CtrlSum"),
        (recall().replace(b"</NbOfTxs>", b"</NbOfTxs><CtrlSum>1000.01</CtrlSum>"), "CtrlSum"),
        (recall(*(RecallItem(UUID(int=n << 80 | 4 << 76 | 2 << 62)) for n in range(1_001))), "at most 1,000"),
        (recall().replace(b"-4000-8000-", b"-7000-8000-"), "OrgnlUETR"),
        (
            recall().replace(
                b"<TxInf>",
                b"<OrgnlGrpInfAndCxl><OrgnlMsgId>M1</OrgnlMsgId><OrgnlMsgNmId>p</OrgnlMsgNmId>"
                b"<GrpCxl> true\n</GrpCxl></OrgnlGrpInfAndCxl><TxInf>",
            ),
            "whole file",
        ),
        (
            recall().replace(
                b"<TxInf>",
                b"<OrgnlGrpInfAndCxl><OrgnlMsgId>M1</OrgnlMsgId><OrgnlMsgNmId>p</OrgnlMsgNmId><NbOfTxs>7</NbOfTxs>"
                b"</OrgnlGrpInfAndCxl><TxInf>",
            ),
            "NbOfTxs says 7",
        ),
        (envelope(recall(), **{**ENVELOPE, "business_message_id": "R2"}), "BizMsgIdr"),  # type: ignore[arg-type]
        (envelope(recall(), **{**ENVELOPE, "sender": BANK_B}), "Fr"),  # type: ignore[arg-type]
        (envelope(recall(), **{**ENVELOPE, "receiver": BANK_B}), "To"),  # type: ignore[arg-type]
    ],
)
def test_a_recall_that_cannot_be_taken_is_one_problem_and_leaves_nothing(
    shared: World, content: bytes, part: str
) -> None:
    refusal, detail = refused(shared, content)
    assert refusal == "recall-invalid" and part in detail
    assert (rows(shared), given_up(shared)) == (0, set())


@pytest.fixture(scope="module")
def shared(fresh_databases: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One for what changes nothing."""
    made = World(fresh_databases("settlement"), tmp_path_factory.mktemp("recalls"))
    assert work_on(made.context, made.send(pacs009(1)))
    yield made
    made.close()
