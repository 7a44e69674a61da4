"""A file streams in: parts are stored durably, its lines read and staged, then booked; each line accepted or refused.

1. `open_stream`: the file's digest and size are declared. The same file of the same submitter is the same stream (I7).
2. `put_part`: bytes at an offset, with their digest; on the disk before they are acknowledged. After a crash the sender
   asks how much is here and goes on.
3. Reading: the whole file's digest is compared, then segments are decided line by line and staged. Cursor and staged
   rows are one transaction, so a service that dies at any byte goes on from its last segment. A fault of the file (not
   well-formed to its end, header, totals) refuses it whole, and nothing was booked.
4. Booking: staged lines become batches of at most BATCH_LINES, each in one transaction with the cursor; what is refused
   now (an unknown participant, no rate, a UETR that is used) is refused line by line, with its reason.

Memory is one segment or one batch of lines of each stream under way, whatever the files' sizes. Steps 3 and 4 run in
`StreamWorker`'s thread and go on by themselves after a restart; two services at work on one stream are harmless, for
each step compares the cursor under the stream's row lock.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal
from uuid import UUID

import sqlalchemy as sa

from kernel.clock import Clock
from kernel.database import Database
from kernel.errors import ProblemError
from kernel.ids import ParticipantId, new_uuid7
from settlement.domain.instructions import (
    Instruction,
    InstructionProblem,
    InstructionRefusal,
    Totals,
)
from settlement.domain.refusals import SettlementRefusal
from settlement.domain.streams import (
    OPEN_BYTES_MAX,
    OPEN_STREAMS_MAX,
    PART_BYTES_MAX,
    STREAM_BYTES_MAX,
    STREAM_INSTRUCTIONS_MAX,
    StreamState,
)
from settlement.iso20022.chunks import Chunk, FileProblem, GroupHeader
from settlement.iso20022.credit_transfer import read_chunks
from settlement.iso20022.csv_batch import read_csv_chunks
from settlement.iso20022.segments import START, Cursor
from settlement.settings import Directory
from settlement.store import batches, gates, messages
from settlement.store.messages import StagedRow, StreamRefusalRow, StreamRow
from settlement.usecases.intake import Candidate, Fault, IntakeCheck
from settlement.usecases.market import CreditorPrices, Market
from settlement.usecases.statements import sweep_interrupted
from settlement.usecases.submit import Submission, quoted

log = logging.getLogger("jiaozi.settlement")

StreamFormat = Literal["xml", "csv"]
BATCH_LINES = 5_000
"""Lines of a stream booked in one transaction: some seconds of work, and well within a batch."""
STAGE_LINES = 5_000
"""Lines staged in one transaction: a handful of segments."""
RACES_MAX = 3
"""How often a batch is booked anew because another submission took one of its UETRs in between."""
IDLE_SECONDS = 1.0
RETRY_SECONDS = 5.0
"""After a stream's step failed (the database away, a disk full) the others come first for so long."""
SWEEP_SECONDS = 3_600.0
"""Files that nobody needs any more are looked for at the start and then so often."""
_DIGEST_BLOCK = 1024 * 1024


@dataclass(frozen=True, slots=True)
class StreamContext:
    """What the steps need of the service."""

    database: Database
    directory: Directory
    clock: Clock
    files_directory: Path
    bridge: ParticipantId
    run_on_submit: bool
    checks: Sequence[IntakeCheck] = ()
    market: Market | None = None

    def path(self, stream: UUID) -> Path:
        return self.files_directory / "streams" / f"str_{stream}"


# --- 1 and 2: a file arrives


def open_stream(
    context: StreamContext,
    *,
    submitter: ParticipantId,
    is_operator: bool,
    stream_format: StreamFormat,
    sha256: bytes,
    byte_count: int,
) -> tuple[StreamRow, bool]:
    """The stream of this file, and whether it is new. Raises ProblemError(stream-too-large, too-many-streams)."""
    if not 0 < byte_count <= STREAM_BYTES_MAX:
        raise ProblemError(SettlementRefusal.STREAM_TOO_LARGE, f"a stream has 1 to {STREAM_BYTES_MAX:,} bytes")
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        messages.lock_submitter(connection, submitter)
        known = messages.find_stream_of_file(connection, submitter, sha256)
        if known is not None:
            if known.byte_count != byte_count or known.format != stream_format:
                reason = f"the file of this digest was announced as {known.format} of {known.byte_count:,} bytes"
                raise ProblemError(SettlementRefusal.STREAM_DIFFERS, reason)
            return known, False
        count, size = messages.open_streams(connection, submitter)
        if count >= OPEN_STREAMS_MAX or size + byte_count > OPEN_BYTES_MAX:
            reason = f"{count} streams of {size:,} bytes are open: finish or withdraw one"
            raise ProblemError(SettlementRefusal.TOO_MANY_STREAMS, reason)
        row = StreamRow(
            id=new_uuid7(),
            submitter=submitter,
            is_operator=is_operator,
            format=stream_format,
            content_sha256=sha256,
            byte_count=byte_count,
            received_bytes=0,
            state=StreamState.RECEIVING,
            message="",
            message_id="",
            read_bytes=0,
            read_line=1,
            line_count=0,
            totals=_totals_json(Totals()),
            refused_count=0,
            booked_count=0,
            booked_number=0,
            refusal=None,
            reason="",
            created_at=context.clock(),
            received_at=None,
            ended_at=None,
        )
        messages.insert_stream(connection, row)
    return row, True


def put_part(context: StreamContext, stream: UUID, *, offset: int, content: bytes) -> StreamRow:
    """Store bytes of the file. A part that is here already is acknowledged again.

    Raises ProblemError(stream-not-found, stream-not-open, stream-part-misplaced, stream-part-differs).
    """
    digest = hashlib.sha256(content).digest()
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = messages.find_stream(connection, stream, lock=True)
        if row is None:
            raise ProblemError(SettlementRefusal.STREAM_NOT_FOUND)
        known = messages.find_part(connection, stream, offset)
        if known is not None:
            if known != (len(content), digest):
                raise ProblemError(SettlementRefusal.STREAM_PART_DIFFERS, f"other bytes are stored from {offset:,} on")
            return row
        if row.state != StreamState.RECEIVING:
            raise ProblemError(SettlementRefusal.STREAM_NOT_OPEN, f"the stream is {row.state}")
        if offset != row.received_bytes or not 0 < len(content) <= min(
            PART_BYTES_MAX, row.byte_count - row.received_bytes
        ):
            reason = (
                f"{row.received_bytes:,} of {row.byte_count:,} bytes are here: send the part from there on, "
                f"at most {PART_BYTES_MAX:,} bytes and none beyond the end"
            )
            raise ProblemError(SettlementRefusal.STREAM_PART_MISPLACED, reason, received_bytes=str(row.received_bytes))
        # The bytes are durable before the row that acknowledges them; what a crash leaves behind is written over.
        _write_at(context.path(stream), offset, content)
        messages.insert_part(connection, stream, start=offset, length=len(content), sha256=digest)
        received = row.received_bytes + len(content)
        values: dict[str, Any] = {"received_bytes": received}
        if received == row.byte_count:
            values |= {"state": StreamState.READING.value, "received_at": context.clock()}
        messages.update_stream(connection, stream, **values)
        found = messages.find_stream(connection, stream)
    return found or row


def withdraw(context: StreamContext, stream: UUID) -> StreamRow:
    """Give up a stream that is not whole; again is harmless. Raises ProblemError(stream-not-found, stream-not-open)."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = messages.find_stream(connection, stream, lock=True)
        if row is None:
            raise ProblemError(SettlementRefusal.STREAM_NOT_FOUND)
        if row.state == StreamState.WITHDRAWN:
            return row
        if row.state != StreamState.RECEIVING:
            raise ProblemError(SettlementRefusal.STREAM_NOT_OPEN, f"the stream is {row.state}")
        messages.update_stream(connection, stream, state=StreamState.WITHDRAWN.value, ended_at=context.clock())
        found = messages.find_stream(connection, stream)
    context.path(stream).unlink(missing_ok=True)
    return found or row


def _write_at(path: Path, offset: int, content: bytes) -> None:
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        written = 0
        while written < len(content):
            written += os.pwrite(descriptor, content[written:], offset + written)
        os.ftruncate(descriptor, offset + written)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if is_new:
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


# --- 3 and 4: a file is read and booked


class _Elsewhere(Exception):
    """Another service moved the stream on: this one lets go of it."""


def work_on(context: StreamContext, stream: UUID, *, is_stopping: Callable[[], bool] = lambda: False) -> bool:
    """Read and book a stream as far as it goes, from wherever it is; True when it has ended."""
    for _ in steps(context, stream):
        if is_stopping():
            return False
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = messages.find_stream(connection, stream)
    return row is not None and row.ended_at is not None


def steps(context: StreamContext, stream: UUID) -> Generator[None, None, None]:
    """The work on a stream, one durable step at a time; left between any two, it is taken up again by a new call."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = messages.find_stream(connection, stream)
    try:
        if row is not None and row.state == StreamState.READING:
            yield from _read(context, row)
        with context.database.transaction(isolation="READ COMMITTED") as connection:
            row = messages.find_stream(connection, stream)
        if row is not None and row.state == StreamState.BOOKING:
            yield from _book(context, row)
    except _Elsewhere:
        return
    if row is not None and row.state != StreamState.RECEIVING:
        context.path(stream).unlink(missing_ok=True)


def _read(context: StreamContext, row: StreamRow) -> Iterator[None]:
    path = context.path(row.id)
    if not path.is_file():
        reason = "the stored file is gone: send it again"
        _refuse_file(context, row, InstructionRefusal.NO_INSTRUCTIONS.value, reason, state=StreamState.WITHDRAWN)
        return
    with path.open("rb") as file:
        if _digest(file) != row.content_sha256:
            reason = "the bytes received are not those of the declared SHA-256: send the file again"
            _refuse_file(context, row, SettlementRefusal.STREAM_DIFFERS.value, reason, state=StreamState.WITHDRAWN)
            return
        try:
            yield from _read_lines(context, row, file)
        except FileProblem as refused:
            problem = refused.problem
            place = f"line {problem.line}: " if problem.line else ""
            _refuse_file(context, row, problem.refusal.value, place + problem.reason)


def _read_lines(context: StreamContext, row: StreamRow, file: BinaryIO) -> Iterator[None]:
    cursor = START if row.read_bytes == 0 else Cursor(row.read_bytes, row.line_count, row.read_line)
    totals = _totals(row.totals)
    chunks = (
        read_csv_chunks(file, cursor=cursor, bytes_max=STREAM_BYTES_MAX)
        if row.format == "csv"
        else read_chunks(file, cursor=cursor, bytes_max=STREAM_BYTES_MAX)
    )
    taken: list[StagedRow] = []
    refused: list[StreamRefusalRow] = []
    staged: Future[None] | None = None
    # While the database stores some lines, the next ones are read.
    with ThreadPoolExecutor(1, thread_name_prefix="settlement-stream-stage") as storing:
        for chunk in chunks:
            _check_header(context, row, chunk.header)
            for line in chunk.lines:
                totals.add(line.amount, line.currency)
                if isinstance(line.decided, InstructionProblem):
                    refused.append(_refusal(line.decided))
                else:
                    taken.append(StagedRow(line.index, line.line, line.decided))
            if totals.count > STREAM_INSTRUCTIONS_MAX:
                reason = f"a stream takes at most {STREAM_INSTRUCTIONS_MAX:,}"
                raise FileProblem(InstructionProblem(InstructionRefusal.TOO_MANY_INSTRUCTIONS, 0, 0, reason))
            if chunk.is_last or len(taken) + len(refused) >= STAGE_LINES:
                if staged is not None:
                    staged.result()
                    yield
                so_far = replace(totals, codes=set(totals.codes))
                staged = storing.submit(_stage, context, row, cursor, chunk, taken, refused, so_far)
                taken, refused, cursor = [], [], chunk.after
        if staged is not None:
            staged.result()
            yield


def _check_header(context: StreamContext, row: StreamRow, header: GroupHeader | None) -> None:
    """What only the bridge knows of a group header. Raises FileProblem."""
    if header is None:
        return
    fault = ""
    if header.sender is not None and not row.is_operator and header.sender != row.submitter:
        fault = f"AppHdr/Fr says {header.sender}, the stream is of {row.submitter}"
    elif header.receiver is not None and header.receiver != context.bridge:
        fault = f"AppHdr/To says {header.receiver}, this is {context.bridge}"
    if fault:
        refusal = InstructionRefusal.APPLICATION_HEADER_INVALID
        raise FileProblem(InstructionProblem(refusal, 0, header.line, fault))


def _refusal(problem: InstructionProblem) -> StreamRefusalRow:
    return StreamRefusalRow(problem.index, problem.line, problem.refusal.value, problem.reason)


def _stage(
    context: StreamContext,
    row: StreamRow,
    cursor: Cursor,
    chunk: Chunk,
    taken: Sequence[StagedRow],
    refused: Sequence[StreamRefusalRow],
    totals: Totals,
) -> None:
    """One transaction: the lines, the cursor behind them, and after the last line whether the file is whole."""
    header = chunk.header
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        now = messages.find_stream(connection, row.id, lock=True)
        if now is None or now.state != StreamState.READING or now.line_count != cursor.index:
            raise _Elsewhere
        messages.stage(connection, row.id, taken)
        messages.refuse_lines(connection, row.id, refused)
        refused_count = now.refused_count + len(refused)
        values: dict[str, Any] = {}
        if chunk.is_last:
            message_id = f"sha256:{row.content_sha256.hex()}" if header is None else header.message_id
            _check_whole(connection, row, header, totals, message_id)
            for column, refusal in (
                ("instruction_id", InstructionRefusal.DUPLICATE_INSTRUCTION_ID),
                ("uetr", InstructionRefusal.DUPLICATE_UETR),
            ):
                refused_count += messages.refuse_duplicates(
                    connection,
                    row.id,
                    column=column,  # type: ignore[arg-type]  # a tuple's literal is a plain str to mypy
                    refusal=refusal.value,
                )
            values = {
                "state": StreamState.BOOKING.value,
                "message": "" if header is None else header.message,
                "message_id": message_id,
            }
        messages.update_stream(
            connection,
            row.id,
            read_bytes=chunk.after.offset,
            read_line=chunk.after.line,
            line_count=totals.count,
            totals=_totals_json(totals),
            refused_count=refused_count,
            **values,
        )


def _check_whole(
    connection: sa.Connection, row: StreamRow, header: GroupHeader | None, totals: Totals, message_id: str
) -> None:
    """The file's totals, and that its message id is not that of another file. Raises FileProblem."""
    faults: list[tuple[InstructionRefusal, str]] = []
    if totals.count == 0:
        faults = [(InstructionRefusal.NO_INSTRUCTIONS, "there is nothing to settle")]
    elif header is not None:
        faults = totals.faults(header.declared)
    if faults:
        raise FileProblem(InstructionProblem(faults[0][0], 0, 0, "; ".join(reason for _, reason in faults)))
    messages.lock_submitter(connection, row.submitter)
    other = messages.find_stream_of_message(connection, row.submitter, message_id)
    if other is not None or batches.find_by_message(connection, row.submitter, message_id) is not None:
        reason = f"message id {message_id} was booked with other content, or as a batch"
        raise FileProblem(InstructionProblem(InstructionRefusal.MESSAGE_ID_REUSED, 0, 0, reason))


def _refuse_file(
    context: StreamContext, row: StreamRow, refusal: str, reason: str, *, state: StreamState = StreamState.REFUSED
) -> None:
    """Nothing of the file is booked, and nothing of it stays staged. `withdrawn`: the fault is the transport's, so the
    same file may be announced anew."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        now = messages.find_stream(connection, row.id, lock=True)
        if now is None or now.state != StreamState.READING:
            raise _Elsewhere
        messages.drop_staged(connection, row.id)
        messages.update_stream(
            connection,
            row.id,
            state=state.value,
            refusal=refusal,
            reason=reason[:500],
            ended_at=context.clock(),
        )


@dataclass(frozen=True, slots=True)
class _Staged:
    """The next staged lines behind a number."""

    after: int
    rows: list[StagedRow]


def _book(context: StreamContext, row: StreamRow) -> Iterator[None]:
    # While the database stores some lines, the next ones are fetched: nothing but their booking changes them.
    with ThreadPoolExecutor(1, thread_name_prefix="settlement-stream-fetch") as fetching:
        fetched = fetching.submit(_staged, context, row.id, row.booked_number)
        while (lines := fetched.result()).rows:
            fetched = fetching.submit(_staged, context, row.id, lines.rows[-1].number)
            _book_batch(context, row.id, lines)
            yield
        _book_batch(context, row.id, lines)


def _staged(context: StreamContext, stream: UUID, after: int) -> _Staged:
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        return _Staged(after, messages.staged(connection, stream, after=after, limit=BATCH_LINES))


def _book_batch(context: StreamContext, stream: UUID, lines: _Staged) -> None:
    """Book these lines in one transaction, or end the stream if there are none."""
    for attempt in range(1, RACES_MAX + 1):
        try:
            with context.database.transaction(isolation="READ COMMITTED") as connection:
                _book_lines(context, connection, stream, lines)
            return
        except sa.exc.IntegrityError:
            # Another submission took a UETR between our look and our write: this time it is seen.
            if attempt == RACES_MAX:
                raise


def _book_lines(context: StreamContext, connection: sa.Connection, stream: UUID, staged: _Staged) -> None:
    row = messages.find_stream(connection, stream, lock=True)
    if row is None or row.state != StreamState.BOOKING or row.booked_number != staged.after:
        raise _Elsewhere
    now = context.clock()
    rows = staged.rows
    if not rows:
        messages.update_stream(
            connection, stream, state=StreamState.DONE.value, booked_number=row.line_count, ended_at=now
        )
        return
    first, last = rows[0].number, rows[-1].number
    refused: dict[int, Fault] = {}
    by_number = {item.number: item.instruction for item in rows}
    made = _settlements(context, connection, row, by_number, refused, now=now)
    if made.settlements:
        batch = new_uuid7()
        batches.insert_batch(
            connection,
            batch=batch,
            submitter=row.submitter,
            message_id=f"{row.message_id}#{first}-{last}",
            batch_format=row.message or "csv",
            content_sha256=row.content_sha256,
            received_at=now,
            started_at=now if context.run_on_submit else None,
            settlements=made.settlements,
        )
        gates.close(connection, made.closed, now=now)
        if made.prices is not None:
            made.prices.lock(made.settlements, submitter=row.submitter)
        messages.insert_stream_batch(connection, stream, batch=batch, first_number=first, last_number=last)
    lines = {item.number: item for item in rows}
    messages.refuse_lines(
        connection,
        stream,
        [
            StreamRefusalRow(
                number,
                lines[number].line,
                fault.refusal,
                fault.reason[:300],
                lines[number].instruction.instruction_id,
                lines[number].instruction.uetr,
            )
            for number, fault in sorted(refused.items())
        ],
    )
    messages.drop_staged(connection, stream, up_to=last)
    messages.update_stream(
        connection,
        stream,
        booked_number=last,
        booked_count=row.booked_count + len(made.settlements),
        refused_count=row.refused_count + len(refused),
    )


@dataclass(frozen=True, slots=True)
class _Made:
    """Of the lines that are accepted: their settlements, the gates that are closed before them, the quotes used."""

    settlements: list[batches.NewSettlement]
    closed: list[gates.Gate]
    prices: CreditorPrices | None


def _settlements(
    context: StreamContext,
    connection: sa.Connection,
    row: StreamRow,
    instructions: dict[int, Instruction],
    refused: dict[int, Fault],
    *,
    now: datetime,
) -> _Made:
    """What becomes of the lines, in their order; those that are refused go to `refused`, by their number."""
    submission = Submission(b"", "csv", row.submitter, row.is_operator, "", "")
    used = batches.used_uetrs(connection, [item.uetr for item in instructions.values()])
    for number, item in instructions.items():
        if item.uetr in used:
            reason = f"UETR {item.uetr} belongs to another batch"
            refused[number] = Fault(SettlementRefusal.UETR_ALREADY_USED.value, number, reason)
    recalled = messages.recalled_of_stream(connection, row.id)
    for number, item in instructions.items():
        if item.uetr in recalled and number not in refused:
            reason = f"UETR {item.uetr} was recalled before it was booked"
            refused[number] = Fault(SettlementRefusal.RECALLED.value, number, reason)
    first = min(instructions)
    while True:
        # Whatever quotes and checks record (a used quota, a taken quote) is of these lines exactly: a line's fault
        # undoes it, and the others are asked again.
        with connection.begin_nested() as savepoint:
            numbers = [number for number in instructions if number not in refused]
            items = [instructions[number] for number in numbers]
            prices = None if context.market is None else CreditorPrices(context.market, connection, now=now)
            made, faults = quoted(items, submission, directory=context.directory, clock=context.clock, prices=prices)
            closed: list[gates.Gate] = []
            if context.checks and not faults:
                candidates = [
                    Candidate(number, instruction, settlement)
                    for number, instruction, settlement in zip(numbers, items, made, strict=True)
                ]
                for check in context.checks if candidates else ():
                    found = check(connection, candidates, now=now)
                    closed += [entry for entry in found if isinstance(entry, gates.Gate)]
                    refused |= {entry.index: entry for entry in found if isinstance(entry, Fault)}
            for fault in faults:
                refused[numbers[fault.index - 1]] = fault
            if len(numbers) == sum(number not in refused for number in instructions):
                for number, settlement in zip(numbers, made, strict=True):
                    settlement.position = number - first + 1
                return _Made(made, closed, prices)
            savepoint.rollback()


def _digest(file: BinaryIO) -> bytes:
    digest = hashlib.sha256()
    while block := file.read(_DIGEST_BLOCK):
        digest.update(block)
    return digest.digest()


def _totals_json(totals: Totals) -> dict[str, Any]:
    return {
        "count": totals.count,
        "sum": str(totals.sum_scaled),
        "unreadable": totals.unreadable,
        "codes": sorted(totals.codes),
    }


def _totals(found: dict[str, Any]) -> Totals:
    return Totals(found["count"], int(found["sum"]), found["unreadable"], set(found["codes"]))


class StreamWorker:
    """The thread that reads and books streams, a step of each in turn, so that none waits for another's end."""

    def __init__(self, context: StreamContext, *, booked: Callable[[], None]) -> None:
        """`booked` is called after each step, to wake the engine."""
        self._context = context
        self._booked = booked
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._not_before: dict[UUID, float] = {}
        self._under_way: dict[UUID, Generator[None, None, None]] = {}
        self._thread = threading.Thread(target=self._run, name="settlement-streams", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def stop(self, *, timeout_seconds: float = 10.0) -> None:
        """Let the step under way end; what is left goes on with the next start."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        sweep_at = time.monotonic()
        while not self._stop.is_set():
            self._wake.clear()
            if time.monotonic() >= sweep_at:
                sweep_at += SWEEP_SECONDS
                try:
                    self._sweep()
                except Exception:
                    log.warning("files that are left over could not be looked for", exc_info=True)
            try:
                worked = self._round()
            except Exception:
                log.warning("streams cannot be listed; trying again", exc_info=True)
                worked = False
            if not worked:
                self._wake.wait(IDLE_SECONDS)
        for work in self._under_way.values():
            work.close()

    def _sweep(self) -> None:
        """Remove the files of streams that ended just before a crash, which hold personal data, and the halves of other
        files whose upload a crash interrupted."""
        sweep_interrupted(self._context.files_directory, now=self._context.clock())
        for path in (self._context.files_directory / "streams").glob("str_*"):
            try:
                stream = UUID(path.name.removeprefix("str_"))
            except ValueError:
                continue  # not ours
            with self._context.database.transaction(isolation="READ COMMITTED") as connection:
                row = messages.find_stream(connection, stream)
            if row is not None and row.ended_at is not None:
                path.unlink(missing_ok=True)

    def _round(self) -> bool:
        """One step of each stream that is due; False if none was."""
        with self._context.database.transaction(isolation="READ COMMITTED") as connection:
            waiting = messages.streams_at_work(connection)
        self._not_before = {key: at for key, at in self._not_before.items() if key in waiting}
        due = [key for key in waiting if self._not_before.get(key, 0.0) <= time.monotonic()]
        for stream in self._under_way.keys() - set(waiting):
            self._under_way.pop(stream).close()  # another service ended it
        for stream in due:
            if self._stop.is_set():
                return False
            work = self._under_way.setdefault(stream, steps(self._context, stream))
            try:
                next(work)
            except StopIteration:
                del self._under_way[stream]
            except Exception:
                log.exception("stream str_%s failed at a step; it goes on in %.0f s", stream, RETRY_SECONDS)
                del self._under_way[stream]
                self._not_before[stream] = time.monotonic() + RETRY_SECONDS
                continue
            self._booked()
        return bool(due)
