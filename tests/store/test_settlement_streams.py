"""Goal: a streamed file is booked once, line by line, wherever the service stops and however often the file is sent.

Method: the steps of a stream over a real database, left after every durable one and taken up again by a new context;
the outcome must equal that of a run without a stop. Files are made by our own writers and spoiled in places.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from kernel.errors import ProblemError
from kernel.money import Currency, Money
from settlement.domain import instructions as rules
from settlement.domain.compliance import ComplianceData, PartyKind
from settlement.domain.streams import OPEN_STREAMS_MAX
from settlement.iso20022 import csv_batch, segments
from settlement.iso20022.csv_batch import write_csv
from settlement.iso20022.head001 import envelope
from settlement.iso20022.pacs008 import write_pacs008
from settlement.iso20022.pacs009 import write_pacs009
from settlement.store import messages
from settlement.store.gates import Gate, GateKind
from settlement.usecases import streams
from settlement.usecases.intake import Candidate, Fault
from settlement.usecases.streams import put_part, steps, withdraw, work_on
from settlement.usecases.submit import Submission, submit_batch
from tests.messages_world import BANK_A, BANK_B, BRIDGE, CREATED_AT, World, instruction, pacs009


@pytest.fixture
def world(fresh_database: Callable[[str], str], tmp_path: Path) -> Iterator[World]:
    made = World(fresh_database("settlement"), tmp_path)
    yield made
    made.close()


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handful of lines a step, so that a small file has many boundaries."""
    for reader, name, value in (
        (segments.SegmentReader.__init__, "segment_bytes", 2_000),
        (csv_batch.read_csv_chunks, "lines_max", 3),
    ):
        defaults = dict(reader.__kwdefaults__ or {})
        monkeypatch.setattr(reader, "__kwdefaults__", defaults | {name: value})
    monkeypatch.setattr(streams, "STAGE_LINES", 3)
    monkeypatch.setattr(streams, "BATCH_LINES", 4)


def mixed() -> list[rules.Instruction]:
    """Ten lines: the third wants an unquoted currency, the fifth and sixth repeat ids, the eighth is too small."""
    items = [instruction(number) for number in range(1, 11)]
    items[2] = instruction(3, counter_currency=Currency.of("JPY"))
    items[4] = instruction(5, instruction_id=items[0].instruction_id)
    items[5] = instruction(6, uetr=items[1].uetr)
    items[7] = instruction(8, amount=Money(1, Currency.of("CNY")))
    return items


EXPECTED = [
    (3, "quote-not-found"),
    (5, "duplicate-instruction-id"),
    (6, "duplicate-uetr"),
    (8, "counter-amount-out-of-range"),
]


@pytest.mark.parametrize("stream_format", ["xml", "csv"])
def test_each_line_is_booked_or_refused_with_its_reason(world: World, stream_format: streams.StreamFormat) -> None:
    content = (
        write_csv(mixed()) if stream_format == "csv" else write_pacs009(mixed(), message_id="M1", created_at=CREATED_AT)
    )
    stream = world.send(content, stream_format=stream_format)
    assert work_on(world.context, stream)
    row = world.row(stream)
    assert (row.state, row.line_count, row.booked_count, row.refused_count) == ("done", 10, 6, 4)
    assert world.refusals(stream) == EXPECTED
    assert [line[-1] for line in world.booked()][::2] == [1, 2, 4, 7, 9, 10]
    assert world.counts()["stream_staged"] == 0
    assert not world.context.path(stream).exists()


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("stream_format", ["xml", "csv"])
def test_left_after_any_step_it_goes_on_to_the_same_end(
    fresh_database: Callable[[str], str], tmp_path: Path, stream_format: streams.StreamFormat
) -> None:
    content = (
        write_csv(mixed()) if stream_format == "csv" else write_pacs009(mixed(), message_id="M1", created_at=CREATED_AT)
    )
    whole = World(fresh_database("settlement"), tmp_path / "whole")
    stream = whole.send(content, stream_format=stream_format)
    assert work_on(whole.context, stream)
    stepped = World(fresh_database("settlement"), tmp_path / "stepped")
    broken = stepped.send(content, stream_format=stream_format)
    stops = 0
    while stepped.row(broken).ended_at is None:
        # One durable step, then everything in memory is gone.
        stepped.close()
        stepped = World(stepped.url, stepped.files)
        next(steps(stepped.context, broken), None)
        stops += 1
    assert stops >= 6
    assert stepped.booked() == whole.booked()
    assert stepped.refusals(broken) == whole.refusals(stream) == EXPECTED
    assert stepped.counts() == whole.counts()
    whole.close()
    stepped.close()


@pytest.mark.usefixtures("small_steps")
def test_a_step_that_fails_before_its_commit_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = world.send(pacs009(10))
    real = messages.update_stream
    calls = 0

    def fail_every_second(connection: sa.Connection, stream: UUID, **values: Any) -> None:
        nonlocal calls
        calls += 1
        real(connection, stream, **values)
        if calls % 2:
            raise ConnectionError("the service dies here")

    monkeypatch.setattr(messages, "update_stream", fail_every_second)
    failures = 0
    while world.row(stream).ended_at is None:
        try:
            work_on(world.context, stream)
        except ConnectionError:
            failures += 1
    assert failures >= 4
    assert world.row(stream).booked_count == 10
    assert world.counts()["settlement"] == 10


def test_parts_may_be_repeated_and_resumed_at_any_byte(world: World) -> None:
    content = pacs009(3)
    stream = world.open(content).id
    for start, end in ((0, 1), (0, 1), (1, 1000), (1, 1000), (1000, len(content))):
        put_part(world.context, stream, offset=start, content=content[start:end])
        assert world.open(content).received_bytes == end
    assert world.row(stream).state == "reading"
    assert put_part(world.context, stream, offset=0, content=content[:1]).state == "reading"
    with pytest.raises(ProblemError) as other:
        put_part(world.context, stream, offset=0, content=b"x")
    assert other.value.refusal.value == "stream-part-differs"
    assert work_on(world.context, stream)
    assert world.row(stream).booked_count == 3


def test_bytes_that_a_crash_left_behind_the_acknowledged_ones_are_written_over(world: World) -> None:
    content = pacs009(3)
    stream = world.open(content).id
    put_part(world.context, stream, offset=0, content=content[:500])
    with world.context.path(stream).open("ab") as file:
        file.write(b"half a part that was never acknowledged" * 100)
    put_part(world.context, stream, offset=500, content=content[500:])
    assert work_on(world.context, stream)
    assert world.row(stream).state == "done"


@pytest.mark.parametrize(("start", "size"), [(1, 10), (0, 0), (0, 10_000_000), (600, 10)])
def test_a_misplaced_part_is_refused_with_where_to_go_on(world: World, start: int, size: int) -> None:
    content = pacs009(2)
    stream = world.open(content).id
    with pytest.raises(ProblemError) as refused:
        put_part(world.context, stream, offset=start, content=b"x" * size)
    assert refused.value.refusal.value == "stream-part-misplaced"
    assert refused.value.extra == {"received_bytes": "0"}


def test_the_same_file_is_the_same_stream_and_books_once(world: World) -> None:
    content = pacs009(5)
    first = world.send(content)
    assert work_on(world.context, first)
    again = world.send(content)
    assert again == first
    assert work_on(world.context, again)
    assert world.counts()["settlement"] == 5


def test_another_file_with_the_message_id_of_a_booked_one_is_refused(world: World) -> None:
    assert work_on(world.context, world.send(pacs009(2, seed=1)))
    other = world.send(pacs009(2, seed=2))
    assert work_on(world.context, other)
    row = world.row(other)
    assert (row.state, row.refusal) == ("refused", "message-id-reused")
    assert world.counts()["settlement"] == 2


def test_a_batch_with_the_message_id_of_a_booked_stream_is_refused(world: World) -> None:
    """Whatever payments it holds."""

    def send() -> None:
        submit_batch(
            Submission(pacs009(2, seed=9), "pacs.009", BANK_A, False, "k1", "/v1/batches"),
            database=world.database,
            directory=world.context.directory,
            clock=world.context.clock,
            bridge=BRIDGE,
            run_on_submit=False,
            render=lambda row: {"batch": str(row.id)},
        )

    assert work_on(world.context, world.send(pacs009(2)))
    before = world.counts()
    with pytest.raises(ProblemError) as refused:
        send()
    assert refused.value.refusal.value == "batch-id-reused" and "stream" in refused.value.detail
    assert world.counts() == before


def test_lines_whose_uetr_another_file_has_used_are_refused_alone(world: World) -> None:
    assert work_on(world.context, world.send(pacs009(2, message_id="M1")))
    other = world.send(pacs009(3, message_id="M2"))
    assert work_on(world.context, other)
    assert world.refusals(other) == [(1, "uetr-already-used"), (2, "uetr-already-used")]
    assert world.row(other).booked_count == 1


@pytest.mark.parametrize(
    ("old", "new", "refusal"),
    [
        (b"<NbOfTxs>5", b"<NbOfTxs>6", "nb-of-txs-mismatch"),
        (b"<CtrlSum>5000.15", b"<CtrlSum>5000.16", "control-sum-mismatch"),
        (b"</Document>", b"", "not-xml"),
        (b"</FICdtTrf>", b"</FICdtTrf><x/>", "schema-invalid"),
        (b"CLRG", b"INDA", "settlement-method-unsupported"),
        (b"pacs.009.001.08", b"pacs.009.001.11", "wrong-namespace"),
        (b"<GrpHdr>", b"<!DOCTYPE a><GrpHdr>", "doctype-forbidden"),
    ],
)
@pytest.mark.usefixtures("small_steps")
def test_a_fault_of_the_file_books_nothing_although_its_lines_were_staged(
    world: World, old: bytes, new: bytes, refusal: str
) -> None:
    content = pacs009(5)
    assert old in content
    stream = world.send(content.replace(old, new, 1))
    assert work_on(world.context, stream)
    assert (world.row(stream).state, world.row(stream).refusal) == ("refused", refusal)
    counts = world.counts()
    assert (counts["settlement"], counts["batch"], counts["stream_staged"]) == (0, 0, 0)
    assert not world.context.path(stream).exists()


def test_bytes_other_than_announced_are_refused(world: World) -> None:
    content = pacs009(2)
    stream = world.open(content).id
    put_part(world.context, stream, offset=0, content=content.replace(b"E2E-1", b"E2E-7"))
    assert work_on(world.context, stream)
    assert (world.row(stream).state, world.row(stream).refusal) == ("withdrawn", "stream-differs")
    again = world.open(content).id  # the fault was the transport's: the right file is a stream of its own
    assert again != stream
    put_part(world.context, again, offset=0, content=content)
    assert work_on(world.context, again)
    assert world.row(again).state == "done"


def test_a_line_that_the_schema_refuses_is_refused_alone(world: World) -> None:
    content = pacs009(4).replace(b">1000.02<", b">x<").replace(b"<CtrlSum>4000.1</CtrlSum>", b"")
    stream = world.send(content)
    assert work_on(world.context, stream)
    assert world.refusals(stream) == [(2, "schema-invalid")]
    assert world.row(stream).booked_count == 3


def test_the_application_header_names_this_bridge_and_the_submitter(world: World) -> None:
    for sender, receiver, expected in (
        (BANK_A, BRIDGE, "done"),
        (BANK_B, BRIDGE, "refused"),
        (BANK_A, BANK_B, "refused"),
    ):
        name = f"M{sender}{receiver}"
        content = envelope(
            pacs009(1, seed=hash(name) % 1000 + 1, message_id=name),
            sender=sender,
            receiver=receiver,
            business_message_id=name,
            created_at=CREATED_AT,
        )
        stream = world.send(content)
        assert work_on(world.context, stream)
        assert world.row(stream).state == expected, world.row(stream).reason


def test_an_intake_check_refuses_lines_and_closes_gates_and_its_records_are_of_the_booked_lines(
    fresh_database: Callable[[str], str], tmp_path: Path
) -> None:
    seen: list[list[int]] = []

    def check(connection: sa.Connection, candidates: Sequence[Candidate], *, now: datetime) -> list[Fault | Gate]:
        seen.append([found.index for found in candidates])
        for found in candidates:
            note = {"key": found.settlement.instruction_id}
            connection.execute(sa.text("INSERT INTO checked VALUES (:key)"), note)
        found_faults = [Fault("quota-exceeded", item.index, "used up") for item in candidates if item.index == 2]
        held = [Gate(item.settlement.id, GateKind.COMPLIANCE, "look") for item in candidates if item.index == 3]
        return [*found_faults, *held]

    world = World(fresh_database("settlement"), tmp_path, checks=(check,))
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        connection.execute(sa.text("CREATE TABLE checked (instruction_id text PRIMARY KEY)"))
    stream = world.send(pacs009(4))
    assert work_on(world.context, stream)
    assert seen == [[1, 2, 3, 4], [1, 3, 4]]
    assert world.refusals(stream) == [(2, "quota-exceeded")]
    assert world.counts()["gate"] == 1
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        kept = set(connection.execute(sa.text("SELECT instruction_id FROM checked")).scalars())
    assert kept == {"I1-1", "I1-3", "I1-4"}
    world.close()


def test_personal_data_is_gone_when_the_lines_are_booked(world: World) -> None:
    customers = ComplianceData(PartyKind.PERSON, "Zhang San", "CN", "11010119900307", creditor_name="A Shop")
    items = [instruction(1, compliance=customers), instruction(2, compliance=customers)]
    content = write_pacs008(items, message_id="M8", created_at=CREATED_AT)
    stream = world.send(content)
    work = steps(world.context, stream)
    next(work)
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        assert messages.staged(connection, stream, after=0, limit=9)[0].instruction.compliance == customers
    list(work)
    assert world.row(stream).message == "pacs.008.001.08"
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        for name in ("stream_staged", "stream_refusal", "stream", "settlement", "leg"):
            rows = connection.execute(sa.text(f"SELECT * FROM {name}")).all()
            assert "Zhang" not in repr(rows) and "110101" not in repr(rows)
    assert not world.context.path(stream).exists()


@pytest.mark.usefixtures("small_steps")
def test_a_small_stream_ends_while_a_big_one_is_under_way(world: World) -> None:
    big = world.send(pacs009(60, seed=1, message_id="M1"))
    small = 0
    ended: list[str] = []

    def after_each_step() -> None:
        nonlocal small
        small = small or world.send(pacs009(2, seed=2, message_id="M2")).int
        if world.row(UUID(int=small)).state == "done":
            ended.append(world.row(big).state)

    worker = streams.StreamWorker(world.context, booked=after_each_step)
    worker.start()
    deadline = time.monotonic() + 30
    while world.row(big).state != "done" and time.monotonic() < deadline:
        time.sleep(0.02)
    worker.stop()
    assert ended[0] in ("reading", "booking") and ended[-1] == "done"
    assert (world.row(big).booked_count, world.row(UUID(int=small)).booked_count) == (60, 2)


def test_open_streams_are_bounded_and_may_be_withdrawn(world: World) -> None:
    opened = [world.open(f"file {number}".encode()).id for number in range(OPEN_STREAMS_MAX)]
    with pytest.raises(ProblemError) as refused:
        world.open(b"one more")
    assert refused.value.refusal.value == "too-many-streams"
    assert withdraw(world.context, opened[0]).state == withdraw(world.context, opened[0]).state == "withdrawn"
    world.open(b"one more")
    again = world.open(b"file 0") if withdraw(world.context, opened[1]) else None
    assert again is not None and again.id not in opened


def test_a_file_announced_with_another_size_is_refused(world: World) -> None:
    row = world.open(b"content")
    with pytest.raises(ProblemError) as refused:
        streams.open_stream(
            world.context,
            submitter=BANK_A,
            is_operator=False,
            stream_format="xml",
            sha256=hashlib.sha256(b"content").digest(),
            byte_count=row.byte_count + 1,
        )
    assert refused.value.refusal.value == "stream-differs"


def test_the_database_refuses_what_the_steps_never_do(world: World) -> None:
    content = pacs009(2)
    stream = world.send(content)
    assert work_on(world.context, stream)
    for wrong in (
        "UPDATE stream SET booked_count = 3",
        "UPDATE stream SET state = 'reading'",
        "UPDATE stream SET received_bytes = byte_count + 1",
        "UPDATE stream SET refusal = 'x'",
        "INSERT INTO stream SELECT gen_random_uuid(), submitter, is_operator, format, sha256('x'), byte_count,"
        " received_bytes, state, message, message_id, read_bytes, read_line, line_count, totals, refused_count,"
        " booked_count, booked_number, refusal, reason, created_at, received_at, ended_at FROM stream",
    ):
        with pytest.raises(sa.exc.IntegrityError), world.database.transaction(isolation="READ COMMITTED") as connection:
            connection.execute(sa.text(wrong))


def test_halves_of_interrupted_uploads_are_swept_and_those_of_a_live_one_stay(world: World) -> None:
    """Of any area of the files: a counterparty's source, a statement. What is whole stays however old it is."""
    folder = world.files / "sources"
    folder.mkdir()
    (world.files / "streams").mkdir()
    old, young, whole, foreign = (
        folder / "a.1.part", folder / "a.2.part", folder / "a", world.files / "streams" / "str_of-nobody"
    )  # fmt: skip
    for path in (old, young, whole, foreign):
        path.write_bytes(b"x")
    for path in (old, whole):
        os.utime(path, (time.time() - 7_200,) * 2)
    worker = streams.StreamWorker(world.context, booked=lambda: None)
    worker.start()
    deadline = time.monotonic() + 10
    while old.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    worker.stop()
    assert [path.exists() for path in (old, young, whole, foreign)] == [False, True, True, True]
