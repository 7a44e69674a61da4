"""ISO 20022 messages about what came in: status reports, account reports, statements, notifications, and recalls."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from uuid import UUID

import sqlalchemy as sa
from lxml import etree

from kernel import ids
from kernel.clock import Clock
from kernel.database import Database
from kernel.errors import ProblemError
from kernel.ids import AccountNumber, ParticipantId, derive_uuid7, new_uuid7
from kernel.money import Currency, Money
from settlement.domain.escrow import IN_DOUBT, Decision, SettlementState
from settlement.domain.instructions import Instruction
from settlement.domain.refusals import AbortReason, SettlementRefusal
from settlement.domain.statements import Direction, Statement, StatementEntry, reference_of
from settlement.domain.statuses import (
    AGENT_DECISION,
    NO_ORIGINAL,
    STATUS_BY_STATE,
    CancellationStatus,
    PaymentStatus,
    StatusReport,
    TransactionStatus,
    cancellation_of,
    code_of_abort,
    code_of_refusal,
    confirmation_of,
    texts_of,
)
from settlement.domain.streams import StreamState
from settlement.iso20022.camt053 import write_camt053
from settlement.iso20022.pacs002 import write_pacs002
from settlement.iso20022.recalls import Recall, RecallItem, Resolution, ResolvedItem, read_recall, write_resolution
from settlement.iso20022.small_messages import MessageRefused
from settlement.iso20022.versions import kind_of
from settlement.iso20022.xml_reader import local_name
from settlement.store import batches, messages
from settlement.store.batches import BatchRow, SettlementRow
from settlement.store.messages import EntryPlace, EntryRow, RecallItemRow, RecallRow, StreamRow
from settlement.usecases.kept_twice import database_refusals

CSV_MESSAGE = "csv"
SETTLE_GRACE = timedelta(minutes=5)
"""How long after midnight (UTC) a day's statement may be written: postings of the last seconds are recorded by then."""
EPOCH_DAY = date(2020, 1, 1)
"""Statements are numbered by day from here, so that their numbers have no gap and nobody has to count them."""


@dataclass(frozen=True, slots=True)
class WrittenPage:
    """A message, and the place behind its last item if there is more."""

    content: bytes
    next_place: EntryPlace | int | None


# --- pacs.002


def status_of(row: SettlementRow) -> PaymentStatus:
    """One settlement's status, with the reason of a rejected one."""
    status = STATUS_BY_STATE[row.state]
    reason: str | None = None
    texts: tuple[str, ...] = ()
    if status is TransactionStatus.REJECTED:
        why = AbortReason.OPERATOR if row.reason is None else AbortReason(row.reason)
        reason, texts = code_of_abort(why, row.detail), texts_of(f"{why.value}: {row.detail}" if row.detail else why)
    settled_on = None
    if status is TransactionStatus.COMPLETED and row.ended_at is not None:
        settled_on = max((leg.ended_at or row.ended_at) for leg in row.legs).astimezone(UTC).date()
    return PaymentStatus(status, row.instruction_id, row.end_to_end_id, row.uetr, reason, texts, settled_on)


def batch_status_report(
    connection: sa.Connection, row: BatchRow, *, after: int, limit: int, version: str, now: datetime
) -> WrittenPage:
    """pacs.002 of a batch's instructions behind a position."""
    found = batches.settlements_page(connection, row.id, after=after, limit=limit + 1)
    report = StatusReport(
        message_id=new_uuid7().hex,
        created_at=now,
        original_message_id=row.message_id,
        original_message=row.format,
        original_count=row.settlement_count,
        counts=_counts(row.counts, refused=0),
        items=tuple(status_of(item) for item in found[:limit]),
    )
    more = found[limit - 1].position if len(found) > limit else None
    return WrittenPage(write_pacs002(report, version), more)


def settlement_status_report(
    row: SettlementRow, batch: BatchRow, stream: StreamRow | None, *, version: str, now: datetime
) -> bytes:
    """pacs.002 of one instruction."""
    item = status_of(row)
    report = StatusReport(
        message_id=new_uuid7().hex,
        created_at=now,
        original_message_id=batch.message_id if stream is None else stream.message_id,
        original_message=batch.format if stream is None else (stream.message or CSV_MESSAGE),
        original_count=None,
        counts={item.status: 1},
        items=(item,),
    )
    return write_pacs002(report, version)


def stream_status_report(
    connection: sa.Connection, row: StreamRow, *, after: int, limit: int, version: str, now: datetime
) -> WrittenPage:
    """pacs.002 of a stream's lines behind a line number: what became of each, refused ones included."""
    group: tuple[str | None, tuple[str, ...]] = (None, ())
    if row.state == StreamState.REFUSED and row.refusal is not None:
        group = code_of_refusal(row.refusal), texts_of(f"{row.refusal}: {row.reason}")
    lines: list[tuple[int, PaymentStatus]] = [
        (
            found.number,
            PaymentStatus(
                TransactionStatus.REJECTED,
                found.instruction_id,
                None,
                found.uetr,
                code_of_refusal(found.refusal),
                texts_of(f"line {found.line}: {found.refusal}: {found.reason}"),
            ),
        )
        for found in messages.refusals_page(connection, row.id, after=after, limit=limit + 1)
    ]
    room = limit + 1
    for part in messages.stream_batches(connection, row.id):
        if part.last_number <= after or room <= 0:
            continue
        before = part.first_number - 1
        found_rows = batches.settlements_page(connection, part.batch, after=max(0, after - before), limit=room)
        lines += [(before + item.position, status_of(item)) for item in found_rows]
        room -= len(found_rows)
    lines.sort(key=lambda line: line[0])
    states = {SettlementState(state): count for state, count in messages.states_of_stream(connection, row.id).items()}
    report = StatusReport(
        message_id=new_uuid7().hex,
        created_at=now,
        original_message_id=row.message_id or f"sha256:{row.content_sha256.hex()}",
        original_message=row.message or CSV_MESSAGE,
        original_count=row.line_count,
        counts=_counts(states, refused=row.refused_count),
        items=tuple(status for _, status in lines[:limit]),
        group_reason=group[0],
        group_texts=group[1],
    )
    return WrittenPage(write_pacs002(report, version), lines[limit - 1][0] if len(lines) > limit else None)


def _counts(states: dict[SettlementState, int], *, refused: int) -> dict[TransactionStatus, int]:
    counts = dict.fromkeys(TransactionStatus, 0)
    for state, count in states.items():
        counts[STATUS_BY_STATE[state]] += count
    counts[TransactionStatus.REJECTED] += refused
    return counts


# --- camt.052, 053, 054


def account_message(
    connection: sa.Connection,
    *,
    participant: ParticipantId,
    currency: Currency,
    account: AccountNumber,
    version: str,
    day: date | None,
    after: EntryPlace | None,
    page: int,
    limit: int,
    now: datetime,
) -> WrittenPage:
    """A page of an account's report (camt.052, today), statement (camt.053, a day that is over) or notifications
    (camt.054, of a day, or everything behind a place).

    The bridge knows nobody's balance: balances count what it moved on the account from its first settlement on, so a
    day's statement opens with the previous day's closing. Raises ProblemError(day-not-over).
    """
    kind = kind_of(version)
    today = now.astimezone(UTC).date()
    day = today if day is None and kind != "camt.054" else day
    if day is not None and day > today:
        raise ProblemError(SettlementRefusal.DAY_NOT_OVER, f"{day} has not come")
    since = None if day is None else datetime.combine(day, time(), UTC)
    until = now if since is None else min(now, since + timedelta(days=1))
    if kind == "camt.053" and since is not None:
        over = since + timedelta(days=1)
        if now < over + SETTLE_GRACE or messages.is_posting_before(connection, participant=participant, until=over):
            raise ProblemError(SettlementRefusal.DAY_NOT_OVER, f"the statement of {day} is not complete")
    rows = messages.entries_page(
        connection,
        participant=participant,
        currency=currency.code,
        since=since,
        until=until,
        after=after,
        limit=limit + 1,
    )
    found, is_last = rows[:limit], len(rows) <= limit
    opening = 0
    if kind != "camt.054":
        opening = messages.net_before(
            connection, participant=participant, currency=currency.code, before=since or until, up_to=after
        )
    entries = tuple(_entry(row, participant, currency) for row in found)
    reference_day = day or today
    seed = UUID(int=0)
    name = f"{kind}/{participant}/{currency}/{reference_day}/{page}/{after}"
    # A statement of a day that is over is the same message whenever it is asked for.
    message_id = derive_uuid7(seed, name).hex if kind == "camt.053" else new_uuid7().hex
    statement = Statement(
        statement_id=message_id,
        sequence_number=max(0, (reference_day - EPOCH_DAY).days),
        account=ids.show_account(account),
        currency=currency,
        created_at=until if kind == "camt.053" else now,
        from_at=since or (found[0].ended_at if found else until),
        to_at=until,
        opening_minor=opening,
        closing_minor=opening + sum(entry.signed_minor for entry in entries),
        entries=entries,
        page=page,
        is_last_page=is_last,
    )
    file = io.BytesIO()
    write_camt053(statement, file, version=version)
    last = found[-1] if found else None
    place = None if last is None else (last.ended_at, last.settlement, last.number)
    return WrittenPage(file.getvalue(), None if is_last else place)


def _entry(row: EntryRow, participant: ParticipantId, currency: Currency) -> StatementEntry:
    is_credit = row.payee == participant
    hold = derive_uuid7(row.settlement, f"leg-{row.number}/hold")
    return StatementEntry(
        reference=reference_of(hold),
        end_to_end_id=row.end_to_end_id,
        uetr=row.uetr,
        amount=Money(row.amount_minor, currency),
        direction=Direction.CREDIT if is_credit else Direction.DEBIT,
        booked_at=row.ended_at,
        value_date=row.ended_at.astimezone(UTC).date(),
        counterparty=row.payer if is_credit else row.payee,
        counterparty_account=ids.show_account(row.debit if is_credit else row.credit),
    )


# --- recalls

STILL_READ = "no payment of this UETR yet, but a file is still being read: recall it again when it is"


@dataclass(frozen=True, slots=True)
class RecallStanding:
    """A recall, its payments and the settlements they are, as they stand now."""

    row: RecallRow
    items: tuple[tuple[RecallItemRow, SettlementRow | None], ...]
    staged: Mapping[int, CancellationStatus] = field(default_factory=dict)
    """By the item's number: of payments that were lines of a file when they were asked back, where that stands."""


def submit_recall(
    content: bytes,
    *,
    submitter: ParticipantId,
    is_operator: bool,
    bridge: ParticipantId,
    database: Database,
    clock: Clock,
) -> tuple[RecallStanding, bool]:
    """Take a camt.056 in: what is not decided is given up by the engine, what is final stays. The answer and whether it
    is new; the same message again is the same recall.

    Only the payer of a payment's first leg, its batch's submitter or the bridge may ask for it; to others it does not
    exist. Raises: ProblemError(recall-invalid, recall-id-reused).
    """
    try:
        recall = read_recall(content)
    except MessageRefused as refused:
        raise ProblemError(SettlementRefusal.RECALL_INVALID, str(refused)) from None
    _check_parties(recall, submitter, is_operator=is_operator, bridge=bridge)
    digest = hashlib.sha256(content).digest()
    now = clock()
    with database_refusals(), database.transaction(isolation="READ COMMITTED") as connection:
        known = messages.find_recall_of(connection, submitter, recall.assignment_id)
        if known is not None:
            if known.content_sha256 != digest:
                raise ProblemError(SettlementRefusal.RECALL_ID_REUSED, f"assignment {recall.assignment_id}")
            return _standing(connection, known), False
        row = RecallRow(
            id=new_uuid7(),
            submitter=submitter,
            message=recall.message,
            assignment_id=recall.assignment_id,
            case_id=recall.case_id,
            assigner=recall.assigner,
            content_sha256=digest,
            received_at=now,
        )
        items = _asked_back(connection, recall, submitter, is_operator=is_operator, now=now)
        messages.insert_recall(connection, row, items)
        return _standing(connection, row), True


def _check_parties(recall: Recall, submitter: ParticipantId, *, is_operator: bool, bridge: ParticipantId) -> None:
    fault = ""
    if recall.assignee != bridge:
        fault = f"Assgne is {recall.assignee}, this is {bridge}"
    elif not is_operator and recall.assigner != submitter:
        fault = f"Assgnr is {recall.assigner}, the request is signed by {submitter}"
    if fault:
        raise ProblemError(SettlementRefusal.RECALL_INVALID, fault)


def _asked_back(
    connection: sa.Connection, recall: Recall, submitter: ParticipantId, *, is_operator: bool, now: datetime
) -> list[RecallItemRow]:
    uetrs = [item.uetr for item in recall.items]
    # First the files that are being booked: what leaves them before this is found as a settlement.
    staged: dict[UUID, list[tuple[StreamRow, Instruction]]] = {}
    for row, line in messages.lock_staged(connection, uetrs):
        staged.setdefault(line.uetr, []).append((row, line))
    found = messages.settlements_by_uetr(connection, uetrs)
    # In the order in which the engine locks them: a recall's own order could end in a deadlock with it.
    batches.lock_in_order(connection, list(found.values()))
    rows: list[RecallItemRow] = []
    for number, item in enumerate(recall.items, start=1):
        key = found.get(item.uetr)
        settlement = None if key is None else batches.find_settlement(connection, key)
        batch = None if settlement is None else batches.find(connection, settlement.batch)
        asks = (submitter,) if settlement is None else (settlement.debtor, batch.submitter if batch else None)
        if not is_operator and submitter not in asks:
            settlement = None
        # A recall of another payment than its UETR's must not end that one: the UETR alone may be a slip.
        fault = "" if settlement is None or batch is None else _unlike_settled(connection, item, settlement, batch)
        if fault:
            settlement = None
        stream: UUID | None = None
        if key is None:
            for row, line in staged.get(item.uetr, ()):
                if is_operator or submitter in (row.submitter, line.debtor):
                    # Whose file is not read to its end may yet turn out to be no file, and has no message id.
                    fault = _unlike_staged(item, row, line) if row.state == StreamState.BOOKING else STILL_READ
                    stream = None if fault else row.id
                    break
            else:
                if messages.is_file_unread(connection, None if is_operator else submitter):
                    fault = STILL_READ
        was_open = False
        if settlement is not None:
            # Under the settlement's row lock: a decision that came first stays.
            was_open = batches.request_abort(connection, settlement.id, by=submitter, now=now)
        rows.append(
            RecallItemRow(
                number=number,
                cancellation_id=item.cancellation_id,
                original_message_id=item.original_message_id,
                original_message=item.original_message,
                instruction_id=item.instruction_id,
                end_to_end_id=item.end_to_end_id,
                uetr=item.uetr,
                settlement_id=None if settlement is None else settlement.id,
                was_open=was_open,
                fault=fault,
                stream_id=stream,
            )
        )
    return rows


def _unlike_settled(connection: sa.Connection, item: RecallItem, settlement: SettlementRow, batch: BatchRow) -> str:
    message_id = None
    if item.original_message_id is not None and batch.format.startswith("pacs."):
        stream = messages.stream_of_batch(connection, batch.id)
        message_id = batch.message_id if stream is None else stream.message_id
    amount = settlement.legs[0].leg.terms.amount
    return _unlike(item, message_id, settlement.instruction_id, settlement.end_to_end_id, amount, settlement.value_date)


def _unlike_staged(item: RecallItem, stream: StreamRow, line: Instruction) -> str:
    message_id = stream.message_id if stream.message else None  # a table's is made here
    return _unlike(item, message_id, line.instruction_id, line.end_to_end_id, line.amount, line.value_date)


def _unlike(
    item: RecallItem,
    message_id: str | None,
    instruction_id: str,
    end_to_end_id: str,
    amount: Money,
    value_date: date,
) -> str:
    """What a recall says of a payment that is not so, "" if nothing; what it leaves out is not asked for."""
    for name, says, holds in (
        ("OrgnlMsgId", item.original_message_id, message_id),
        ("OrgnlInstrId", item.instruction_id, instruction_id),
        ("OrgnlEndToEndId", item.end_to_end_id, end_to_end_id),
        ("OrgnlIntrBkSttlmAmt", item.amount, amount),
        ("OrgnlIntrBkSttlmDt", item.value_date, value_date),
    ):
        if says is not None and holds is not None and says != holds:
            return f"{name} says {says}, the payment of this UETR has {holds}"
    return ""


def recall_standing(connection: sa.Connection, recall: UUID) -> RecallStanding | None:
    row = messages.find_recall(connection, recall)
    return None if row is None else _standing(connection, row)


def _standing(connection: sa.Connection, row: RecallRow) -> RecallStanding:
    items = messages.recall_items(connection, row.id)
    return RecallStanding(
        row,
        tuple(
            (item, None if item.settlement_id is None else batches.find_settlement(connection, item.settlement_id))
            for item in items
        ),
        {
            item.number: _staged_standing(connection, item.stream_id, item.uetr)
            for item in items
            if item.stream_id is not None and item.uetr is not None
        },
    )


def _staged_standing(connection: sa.Connection, stream: UUID, uetr: UUID) -> CancellationStatus:
    """It is refused when its turn comes; a file that is refused as a whole had no such payment."""
    row = messages.find_stream(connection, stream)
    refusal = messages.refusal_of_uetr(connection, stream, uetr)
    if refusal is None and row is not None and row.state == StreamState.BOOKING:
        return CancellationStatus.PENDING
    is_recalled = refusal == SettlementRefusal.RECALLED.value
    return CancellationStatus.ACCEPTED if is_recalled else CancellationStatus.REJECTED


def resolve(standing: RecallStanding) -> list[ResolvedItem]:
    """What came of each payment so far."""
    return [_resolved(item, settlement, standing.staged.get(item.number)) for item, settlement in standing.items]


def _resolved(
    item: RecallItemRow, settlement: SettlementRow | None, staged: CancellationStatus | None = None
) -> ResolvedItem:
    reason: str | None = None
    texts: tuple[str, ...] = ()
    status: CancellationStatus
    if staged is CancellationStatus.PENDING:
        status, texts = staged, texts_of("it waits in a file to be booked, and is refused when its turn comes")
    elif staged is CancellationStatus.ACCEPTED:
        status, texts = staged, texts_of("it was not booked")
    elif settlement is None:
        status, reason = CancellationStatus.REJECTED, NO_ORIGINAL
        texts = texts_of(item.fault or "no payment of this UETR that the sender may recall")
    else:
        status = cancellation_of(settlement.state, was_open=item.was_open)
        if status is CancellationStatus.REJECTED:
            reason = AGENT_DECISION
            since = "" if settlement.decided_at is None else f" since {settlement.decided_at:%Y-%m-%d %H:%M:%S} UTC"
            is_final = settlement.decision is Decision.COMMIT
            texts = texts_of(f"settled with finality{since}" if is_final else "it is decided")
        elif status is CancellationStatus.PENDING and settlement.state in IN_DOUBT:
            texts = texts_of("holds are being undone unless a decision came first: ask again")
    return ResolvedItem(
        status=status,
        uetr=None if item.uetr is None or item.uetr.version != 4 else item.uetr,
        cancellation_id=item.cancellation_id,
        original_message_id=item.original_message_id,
        original_message=item.original_message,
        instruction_id=item.instruction_id,
        end_to_end_id=item.end_to_end_id,
        reason=reason,
        texts=texts,
    )


def resolution_message(standing: RecallStanding, *, bridge: ParticipantId, version: str, now: datetime) -> bytes:
    """camt.029: the answer to a recall as it stands now."""
    items: Sequence[ResolvedItem] = resolve(standing)
    resolution = Resolution(
        assignment_id=new_uuid7().hex,
        assigner=bridge,
        assignee=standing.row.assigner,
        created_at=now,
        case_id=standing.row.case_id,
        confirmation=confirmation_of([item.status for item in items]),
        items=tuple(items),
    )
    return write_resolution(resolution, version)


def own_id(content: bytes) -> str:
    """The id that a message of ours bears: MsgId, or an assignment's Id. Raises ValueError for another message."""
    root = etree.fromstring(content)
    for element in root.iter():
        if isinstance(element.tag, str) and local_name(element) in ("MsgId", "Id"):
            return element.text or ""
    raise ValueError("the message has no id")
