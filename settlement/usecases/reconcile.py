"""Reconciliation at work: sources are taken, sides compared, breaks opened, and closed when the late side arrives.

1. A source is a file, kept whole under its digest; the same file again is the same source. The bridge's own record of
   posted legs becomes one too, so that every run rests on two files that an auditor can read.
2. A run is named by its caller: the same id with the same content is the same run, whatever died in between.
3. One run of a relation at a time. The lines that wait for the other side (of open missing breaks, of reversals, and
   ours that they had as pending) are carried into the run; a break whose lines are matched now is closed by it
   (`late-side`), unless an officer has opened it. A break that is found again stays the one that it was, open or, if
   officers have explained, booked or matched exactly it, closed: nothing is booked twice. Breaks
   against the bridge's record and breaks against a file that the participant calls its own live apart: a file of
   anybody's making carries nothing into, and closes nothing of, a comparison with the record.
4. Result, new breaks with their first events, and closings are one transaction.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from kernel import ids
from kernel.clock import Clock
from kernel.crypto import jws
from kernel.database import Database
from kernel.errors import ProblemError
from kernel.ids import AccountNumber, ParticipantId, new_uuid7
from kernel.money import Currency
from settlement.domain.calendars import Calendar
from settlement.domain.reconciliation import JOURNAL, Break, BreakType, Rules, Side, View
from settlement.domain.reconciliation import session as sessions
from settlement.domain.reconciliation.lifecycle import BreakState, Event, EventKind
from settlement.domain.reconciliation.lines import LineTable, entry_of_json, entry_to_json
from settlement.domain.reconciliation.mapping import CANONICAL, TableMapping
from settlement.domain.reconciliation.session import Outcome, Previous, Selection
from settlement.domain.refusals import SettlementRefusal as R
from settlement.domain.statements import StatementEntry
from settlement.sources import SourceFormat, SourceRead, papers_of, read_source
from settlement.sources.tables import write_csv
from settlement.store import batches
from settlement.store import reconciliation as store
from settlement.store.reconciliation import BreakRow, MatchRow, NewBreak, PairsRow, Relation, RunRow, SourceRow
from settlement.usecases.statements import account_of, batch_entries, written_beside

CARRIED_MAX = 20_000
"""Open breaks of one relation that a run looks at, the oldest first."""
REFERENCES_SHOWN_MAX = 200


_EXACT = Rules()


@dataclass(frozen=True, slots=True)
class NewSource:
    content: bytes
    format: SourceFormat
    participant: ParticipantId
    counterparty: str
    account: str | None = None
    """Of tables, which do not name theirs; of a camt file with several statements, which is meant."""
    created_by: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to reconcile. `our_source` None = the bridge's record: of a batch, or of what was posted in a period."""

    reconciliation: UUID
    participant: ParticipantId
    counterparty: str
    currency: Currency
    their_source: UUID
    our_source: UUID | None = None
    batch: UUID | None = None
    booked_from: datetime | None = None
    booked_to: datetime | None = None
    view: View = View.SAME_ACCOUNT
    rules: Rules = _EXACT
    as_of: date | None = None
    calendar: Calendar | None = None
    """Of the currency. Its days count where the rules have a cut-off and name no days of their own; not part of the
    request, which may come again after the data have changed."""

    @property
    def rules_and_days(self) -> Rules:
        rules = self.rules
        if self.calendar is None or rules.cut_off is None or rules.days_off or rules.working_days:
            return rules
        off, worked = self.calendar.beside_weekends()
        return replace(rules, days_off=off, working_days=worked)

    @property
    def request_sha256(self) -> bytes:
        moments = [None if at is None else at.astimezone(UTC).isoformat() for at in (self.booked_from, self.booked_to)]
        parts = [self.participant, self.counterparty, self.currency.code, str(self.their_source)]
        parts += [str(self.our_source), str(self.batch), self.view.value, str(self.as_of)]
        content = {"parts": parts, "moments": moments, "rules": sessions.rules_to_json(self.rules)}
        return hashlib.sha256(jws.canonical_json(content)).digest()


# --- sources


def keep_mapping(
    content: Mapping[str, Any],
    *,
    participant: ParticipantId,
    counterparty: str,
    created_by: str,
    database: Database,
    clock: Clock,
) -> store.MappingRow:
    """The next version of a counterparty's mapping; the same content as the newest is that version.

    Raises: ProblemError(mapping-invalid).
    """
    try:
        mapping = TableMapping.of_json(content)
    except (ValueError, TypeError) as error:
        raise ProblemError(R.MAPPING_INVALID, str(error)[:300]) from None
    written = mapping.to_json()
    digest = hashlib.sha256(jws.canonical_json(written)).digest()
    with database.transaction(isolation="READ COMMITTED") as connection:
        store.lock_name(connection, f"mapping {participant} {counterparty}")
        newest = store.find_mapping(connection, participant, counterparty)
        if newest is not None and newest.sha256 == digest:
            return newest
        version = 1 if newest is None else newest.version + 1
        row = store.MappingRow(participant, counterparty, version, written, digest, created_by, clock())
        store.add_mapping(connection, row)
    return row


def take_source(
    wanted: NewSource,
    *,
    database: Database,
    files_directory: Path,
    clock: Clock,
    reads: dict[UUID, SourceRead] | None = None,
) -> SourceRow:
    """Read a file whole, by the counterparty's newest mapping if it is a table, and keep it.

    `reads` takes what was read, by the source's id, for a caller that reconciles it next.
    Raises: ProblemError(statement-invalid with `problems`; source-of-another-relation of a file that would pass for
    the bridge's record).
    """
    if wanted.counterparty == JOURNAL:
        raise ProblemError(R.SOURCE_OF_ANOTHER_RELATION, f"{JOURNAL} is the bridge's own record")
    return _take(wanted, database=database, files_directory=files_directory, clock=clock, reads=reads)


def _take(
    wanted: NewSource,
    *,
    database: Database,
    files_directory: Path,
    clock: Clock,
    reads: dict[UUID, SourceRead] | None = None,
) -> SourceRow:
    digest = hashlib.sha256(wanted.content).digest()
    with database.transaction(isolation="READ COMMITTED") as connection:
        kept = store.find_mapping(connection, wanted.participant, wanted.counterparty)
        version = 0 if kept is None or wanted.counterparty == JOURNAL else kept.version

    def same_source(accounts: Sequence[str | None] | None) -> SourceRow | None:
        by_content = (wanted.participant, wanted.counterparty, wanted.format.value, version, digest)
        with database.transaction(isolation="READ COMMITTED") as connection:
            return store.find_same_source(connection, *by_content, accounts=accounts)

    same = same_source(None if wanted.account is None else [wanted.account])
    path = source_path(files_directory, digest)
    if same is not None and path.is_file():
        return same
    with written_beside(path, wanted.content) as put:
        mapping = _mapping_of(kept if version else None)
        read = read_source(wanted.content, wanted.format, mapping=mapping, account=wanted.account)
        if read.lines is None:
            problems = [{"refusal": x.refusal, "index": x.index, "reason": x.reason} for x in read.problems]
            raise ProblemError(R.STATEMENT_INVALID, read.problems[0].reason, problems=problems)
        put()  # before its row: a row without its file would be a promise broken
    row = _source_row(wanted, read, read.lines, digest, version, clock())
    try:
        with database.transaction(isolation="READ COMMITTED") as connection:
            store.insert_source(connection, row)
    except sa.exc.IntegrityError:
        same = same_source([row.account])
        if same is None:
            raise
        return same
    if reads is not None:
        reads[row.id] = read
    return row


def source_path(files_directory: Path, sha256: bytes) -> Path:
    return files_directory / "sources" / sha256.hex()


def _source_row(
    wanted: NewSource, read: SourceRead, lines: LineTable, digest: bytes, version: int, now: datetime
) -> SourceRow:
    statement = read.statement
    currencies = lines.strings("currency").unique().to_pylist()
    currency = currencies[0] if len(currencies) == 1 else None
    return SourceRow(
        id=new_uuid7(),
        participant=wanted.participant,
        counterparty=wanted.counterparty,
        format=wanted.format.value,
        mapping_version=version,
        sha256=digest,
        byte_count=len(wanted.content),
        line_count=len(lines),
        account=read.account or wanted.account,
        currency=read.currency or currency,
        statement_id=None if statement is None else statement.statement_id,
        sequence_number=None if statement is None else statement.sequence_number,
        opening_minor=None if statement is None else statement.opening_minor,
        closing_minor=None if statement is None else statement.closing_minor,
        to_at=None if statement is None else statement.to_at,
        message=read.message,
        created_by=wanted.created_by,
        created_at=now,
    )


def _mapping_of(row: store.MappingRow | None) -> TableMapping:
    return CANONICAL if row is None else TableMapping.of_json(row.content)


def read_kept(source: SourceRow, *, database: Database, files_directory: Path) -> SourceRead:
    """A kept source's lines again. Raises: ProblemError(source-not-found) if its file is gone."""
    path = source_path(files_directory, source.sha256)
    if not path.is_file():
        raise ProblemError(R.SOURCE_NOT_FOUND, "its file is gone: send it again")
    content = path.read_bytes()
    if hashlib.sha256(content).digest() != source.sha256:
        raise ProblemError(R.SOURCE_NOT_FOUND, "its file is not the one that was taken: send it again")
    row = None
    if source.mapping_version:
        with database.transaction(isolation="READ COMMITTED") as connection:
            row = store.find_mapping(connection, source.participant, source.counterparty, source.mapping_version)
    return read_source(content, SourceFormat(source.format), mapping=_mapping_of(row), account=source.account)


# --- runs


def reconcile(
    wanted: Wanted,
    *,
    account: AccountNumber | None,
    run_by: str,
    database: Database,
    files_directory: Path,
    clock: Clock,
    reads: Mapping[UUID, SourceRead] | None = None,
) -> RunRow:
    """Compare, store and return the run. `account` is the participant's as registered now. `reads` are sources that
    were read just now; others are read from their files.

    Raises: ProblemError(source-not-found, source-of-another-relation, batch-not-found, reconciliation-id-reused,
    statement-of-another-account).
    """
    known = _same_run(wanted, database)
    if known is not None:
        return known
    theirs = _source(wanted.their_source, wanted, database)
    if theirs.counterparty != wanted.counterparty or theirs.counterparty == JOURNAL:
        detail = f"{ids.show('src', theirs.id)} is of {theirs.counterparty}, not of {wanted.counterparty}"
        raise ProblemError(R.SOURCE_OF_ANOTHER_RELATION, detail)
    known_reads = dict(reads or {})
    read = known_reads.get(theirs.id) or read_kept(theirs, database=database, files_directory=files_directory)
    if read.lines is None:
        raise ProblemError(R.SOURCE_NOT_FOUND, "its file cannot be read by its mapping any more")
    if wanted.our_source is None:
        ours, excluded, booked_from, accounts = _journal(
            wanted, read.lines, account, database=database, files_directory=files_directory, run_by=run_by, clock=clock
        )
    else:
        ours = _source(wanted.our_source, wanted, database)
        excluded, booked_from, accounts = (), wanted.booked_from, {_shown(account), ours.account}
    ours_read = known_reads.get(ours.id) or read_kept(ours, database=database, files_directory=files_directory)
    if ours_read.lines is None:
        raise ProblemError(R.SOURCE_NOT_FOUND, "our file cannot be read by its mapping any more")
    account_name = _account_of(wanted, theirs, {name for name in accounts if name is not None})
    relation = Relation(wanted.participant, wanted.counterparty, wanted.currency.code, account_name, wanted.view.value)
    now = clock()
    as_of = wanted.as_of or now.date()
    with database.transaction(isolation="READ COMMITTED") as connection:
        store.lock_name(connection, f"relation {relation}")
        stored = store.find_run(connection, wanted.reconciliation)
        if stored is not None:
            return _checked(stored, wanted)
        of_record = ours.counterparty == JOURNAL
        open_breaks = store.open_breaks(connection, relation, record=JOURNAL, of_record=of_record, limit=CARRIED_MAX)
        before = store.source_before(connection, theirs) if wanted.batch is None else None
        carried_ours = _carried(open_breaks, ours_read.lines, is_ours=True)
        carried_theirs = _carried(open_breaks, read.lines, is_ours=False)
        selection = Selection(
            booked_from=booked_from,
            booked_to=wanted.booked_to,
            is_of_batch=wanted.batch is not None and wanted.our_source is None,
            excluded_uetrs=tuple(sorted(excluded)),
            accounts=tuple(sorted({account_name, theirs.account or account_name, ours.account or account_name})),
            previous=None
            if before is None or before.closing_minor is None
            else Previous(before.sequence_number, before.closing_minor),
            carried_ours=tuple(carried_ours),
            carried_theirs=tuple(carried_theirs),
        )
        outcome = sessions.run_session(
            ours_read.lines,
            read.lines,
            selection=selection,
            rules=wanted.rules_and_days,
            view=wanted.view,
            as_of=as_of,
            papers=papers_of(read),
            asked_ours={reference for row in open_breaks for reference in row.our_references},
            asked_theirs={reference for row in open_breaks for reference in row.their_references},
        )
        run = _run_row(wanted, ours, theirs, relation, selection, outcome, as_of, run_by, now)
        return _store(
            connection, run, outcome, open_breaks, ours_read.lines, read.lines, selection, of_record=of_record
        )


def _same_run(wanted: Wanted, database: Database) -> RunRow | None:
    with database.transaction(isolation="READ COMMITTED") as connection:
        stored = store.find_run(connection, wanted.reconciliation)
    return None if stored is None else _checked(stored, wanted)


def _checked(stored: RunRow, wanted: Wanted) -> RunRow:
    if stored.request_sha256 != wanted.request_sha256:
        raise ProblemError(R.RECONCILIATION_ID_REUSED, "take a new id for another reconciliation")
    return stored


def _source(source: UUID, wanted: Wanted, database: Database) -> SourceRow:
    with database.transaction(isolation="READ COMMITTED") as connection:
        found = store.find_source(connection, source)
    if found is None or found.participant != wanted.participant:
        raise ProblemError(R.SOURCE_NOT_FOUND, ids.show("src", source))
    if found.currency not in (None, wanted.currency.code) and found.format.startswith("camt"):
        raise ProblemError(R.STATEMENT_OF_ANOTHER_ACCOUNT, f"it is in {found.currency}, not in {wanted.currency.code}")
    return found


def _journal(
    wanted: Wanted,
    theirs: LineTable,
    account: AccountNumber | None,
    *,
    database: Database,
    files_directory: Path,
    run_by: str,
    clock: Clock,
) -> tuple[SourceRow, tuple[str, ...], datetime | None, set[str | None]]:
    """Our record as a source; their payments that belong to other batches; from when their lines count; accounts."""
    with database.transaction(isolation="REPEATABLE READ") as connection:
        booked_from = wanted.booked_from
        excluded: tuple[str, ...] = ()
        if wanted.batch is not None:
            batch = batches.find(connection, wanted.batch)
            if batch is None:
                raise ProblemError(R.BATCH_NOT_FOUND)
            booked_from = booked_from or batch.received_at
            rows = batches.posted_legs(
                connection, wanted.batch, participant=wanted.participant, currency=wanted.currency.code
            )
            named = [UUID(text) for text in theirs.strings("uetr").unique().to_pylist() if text is not None]
            others = batches.uetrs_of_other_batches(connection, named, batch=wanted.batch)
            excluded = tuple(str(uetr) for uetr in others)
        else:
            rows = batches.posted_legs_between(
                connection,
                participant=wanted.participant,
                currency=wanted.currency.code,
                booked_from=wanted.booked_from,
                booked_to=wanted.booked_to,
            )
    accounts = {_shown(account_of(leg, wanted.participant)) for _, leg in rows} or {_shown(account)}
    content = write_csv(LineTable.of_entries(batch_entries(rows, wanted.participant)))
    made = NewSource(content, SourceFormat.CSV, wanted.participant, JOURNAL, None, run_by)
    source = _take(made, database=database, files_directory=files_directory, clock=clock)
    return source, excluded, booked_from, accounts


def _shown(account: AccountNumber | None) -> str | None:
    return None if account is None else ids.show_account(account)


def _account_of(wanted: Wanted, theirs: SourceRow, accounts: set[str]) -> str:
    """The account reconciled. Another account's statement would match nothing and report every line as a break."""
    if wanted.view is View.MIRROR or theirs.account is None:
        return min(accounts, default=theirs.account or "")
    if theirs.account not in accounts:
        known = " or ".join(sorted(accounts)) or "no account"
        raise ProblemError(
            R.STATEMENT_OF_ANOTHER_ACCOUNT,
            f"it is of {theirs.account} in {theirs.currency}, not of {known} in {wanted.currency}"[:300],
        )
    return theirs.account


def _waiting_side(found: Break) -> Side | None:
    """Whose lines of a break wait for the other side, and are kept for later runs."""
    match found.type:
        case BreakType.MISSING_THERE:
            return Side.OURS
        case BreakType.MISSING_HERE:
            return Side.THEIRS
        case BreakType.REVERSED:
            return found.side
        case BreakType.STATUS:  # booked here and pending there: the booking follows
            return Side.OURS
        case _:
            return None


def _carried(open_breaks: Sequence[BreakRow], present: LineTable, *, is_ours: bool) -> list[StatementEntry]:
    """Lines of open breaks that wait for the other side and that the source does not hold itself."""
    rows = [row for row in open_breaks if row.lines and _is_of(row, is_ours=is_ours)]
    if not rows:
        return []
    wanted = {str(line["reference"]) for row in rows for line in row.lines or ()}
    there = sessions.references_of(present, wanted)
    return [entry_of_json(line) for row in rows for line in row.lines or () if str(line["reference"]) not in there]


def _is_of(row: BreakRow, *, is_ours: bool) -> bool:
    """Whether the lines kept with a break are of our side."""
    if row.type == BreakType.REVERSED.value:
        return (row.side == Side.OURS.value) is is_ours
    return (row.type != BreakType.MISSING_HERE.value) is is_ours


def _gross(found: Break) -> dict[str, str]:
    return {currency.code: str(amount) for currency, amount in found.gross_minor}


def _run_row(
    wanted: Wanted,
    ours: SourceRow,
    theirs: SourceRow,
    relation: Relation,
    selection: Selection,
    outcome: Outcome,
    as_of: date,
    run_by: str,
    now: datetime,
) -> RunRow:
    return RunRow(
        id=wanted.reconciliation,
        request_sha256=wanted.request_sha256,
        batch_id=wanted.batch,
        participant=relation.participant,
        counterparty=relation.counterparty,
        currency=relation.currency,
        account=relation.account,
        view=relation.view,
        our_source=ours.id,
        their_source=theirs.id,
        selection=sessions.selection_to_json(selection),
        rules=sessions.rules_to_json(wanted.rules_and_days),
        as_of=as_of,
        lines_ours=outcome.lines_ours,
        lines_theirs=outcome.lines_theirs,
        carried_ours=len(selection.carried_ours),
        carried_theirs=len(selection.carried_theirs),
        matched=outcome.matched,
        finding_count=len(outcome.breaks),
        closed_count=0,
        result_sha256=outcome.digest,
        run_by=run_by,
        created_at=now,
    )


def _store(
    connection: sa.Connection,
    run: RunRow,
    outcome: Outcome,
    open_breaks: Sequence[BreakRow],
    ours: LineTable,
    theirs: LineTable,
    selection: Selection,
    *,
    of_record: bool,
) -> RunRow:
    """Step 4: the run, new breaks, and the older ones that it closes."""
    keys = break_keys(run.relation, outcome.breaks, of_record=of_record)
    known = {row.key: row.id for row in open_breaks}
    known |= store.find_open_keys(connection, [key for key in keys if key not in known])
    decided = store.find_decided_keys(connection, [key for key in keys if key not in known])
    waiting = [_waiting_side(x) for x in outcome.breaks]
    lines_ours = _lines_at(
        ours,
        {at for x, side in zip(outcome.breaks, waiting, strict=True) if side is Side.OURS for at in x.our_positions},
    )
    lines_theirs = _lines_at(
        theirs,
        {
            at
            for x, side in zip(outcome.breaks, waiting, strict=True)
            if side is Side.THEIRS
            for at in x.their_positions
        },
    )
    new: list[NewBreak] = []
    findings: list[UUID] = []
    for found, key, side in zip(outcome.breaks, keys, waiting, strict=True):
        if key in known:
            findings.append(known[key])
            continue
        before = decided.get(key)
        if before is not None and before.difference_minor == found.difference_minor and before.gross == _gross(found):
            findings.append(before.id)
            continue
        carried: list[dict[str, Any]] | None = None
        if side is Side.OURS:
            carried = [lines_ours[at] for at in found.our_positions if at in lines_ours]
        elif side is Side.THEIRS:
            carried = [lines_theirs[at] for at in found.their_positions if at in lines_theirs]
        if carried and found.type is BreakType.REVERSED:
            carried = [line | {"is_reversal": True} for line in carried]
        new.append(new_break(found, run.relation, key, run=run.id, lines=carried, now=run.created_at))
        findings.append(new[-1].id)
    again = set(findings)
    # What an officer has opened (a match taken back, a closing undone), an officer closes.
    kept = again | store.opened_by_officers(connection, [row.id for row in open_breaks])
    late = [row for row in open_breaks if row.id not in kept and _is_over(row, outcome)]
    moved = _superseded(open_breaks, outcome, len(ours), len(theirs), selection)
    late += [row for row in open_breaks if row.id in moved and row.id not in kept and row not in late]
    run = _counted(run, len(late))
    store.insert_run(
        connection,
        run,
        pairs=_pairs_rows(outcome),
        matches=[
            MatchRow(
                number,
                found.rule.value,
                list(found.our_positions),
                list(found.their_positions),
                [line.reference for line in found.ours],
                [line.reference for line in found.theirs],
                found.difference_minor,
            )
            for number, found in enumerate(outcome.matches, start=1)
        ],
        new=new,
        findings=findings,
    )
    reason = f"reconciliation {ids.show('rec', run.id)} has both sides, or says what came of the line"
    store.append_events(
        connection,
        [
            (row, Event(row.sequence + 1, EventKind.LATE_SIDE, "bridge", run.created_at, reason, run=run.id))
            for row in late
        ],
    )
    return run


def _counted(run: RunRow, closed: int) -> RunRow:
    values = {name: getattr(run, name) for name in RunRow.__slots__}
    return RunRow(**(values | {"closed_count": closed}))


_IN_OFFICERS_HANDS = frozenset({BreakState.PROPOSED, BreakState.APPROVED})
"""A repair waits for its second officer, or its money is on its way: an officer looks at what came late."""


def _is_over(row: BreakRow, outcome: Outcome) -> bool:
    if BreakType(row.type) not in sessions.AUTO_CLOSED or row.state in _IN_OFFICERS_HANDS:
        return False
    if row.our_references:
        return outcome.matched_ours.issuperset(row.our_references)
    return outcome.matched_theirs.issuperset(row.their_references)


def _superseded(
    open_breaks: Sequence[BreakRow], outcome: Outcome, our_count: int, their_count: int, selection: Selection
) -> set[UUID]:
    """Breaks whose late line came and differs: the new break says how, so the old one is over."""
    new_ours = {
        selection.carried_ours[at - our_count].reference
        for x in outcome.breaks
        for at in x.our_positions
        if at >= our_count
    }
    new_theirs = {
        selection.carried_theirs[at - their_count].reference
        for x in outcome.breaks
        for at in x.their_positions
        if at >= their_count
    }
    return {
        row.id
        for row in open_breaks
        if row.lines
        and row.state not in _IN_OFFICERS_HANDS
        and (new_ours if _is_of(row, is_ours=True) else new_theirs).issuperset(line["reference"] for line in row.lines)
    }


def _lines_at(lines: LineTable, places: set[int]) -> dict[int, dict[str, Any]]:
    wanted = sorted(at for at in places if at < len(lines))
    return {at: entry_to_json(entry) for at, entry in zip(wanted, lines.entries(wanted), strict=True)}


def break_keys(relation: Relation, breaks: Sequence[Break], *, of_record: bool = True) -> list[bytes]:
    """What makes a break the same in the next run: its relation, type and lines, and whether our side is the bridge's
    record or a file; equal ones are counted."""
    seen: Counter[str] = Counter()
    found = []
    for item in breaks:
        side = None if item.side is None else item.side.value
        parts = [relation.participant, relation.counterparty, relation.currency, relation.account, relation.view]
        parts += [] if of_record else ["own file"]
        name = json.dumps([*parts, item.type.value, side, item.our_references, item.their_references])
        found.append(hashlib.sha256(f"{name}{seen[name]}".encode()).digest())
        seen[name] += 1
    return found


def new_break(
    found: Break,
    relation: Relation,
    key: bytes,
    *,
    run: UUID | None,
    lines: list[dict[str, Any]] | None,
    now: datetime,
) -> NewBreak:
    document = sessions.break_document(found)
    return NewBreak(
        id=new_uuid7(),
        run_id=run,
        relation=relation,
        key=key,
        type=found.type.value,
        side=document["side"],
        also=document["also"],
        our_references=document["our_references"],
        their_references=document["their_references"],
        our_positions=document["our_positions"],
        their_positions=document["their_positions"],
        our_amount_minor=None if found.ours is None else found.ours.amount_minor,
        their_amount_minor=None if found.theirs is None else found.theirs.amount_minor,
        difference_minor=found.difference_minor,
        gross=document["gross"],
        gross_minor=max((amount for _, amount in found.gross_minor), default=0),
        oldest=found.oldest or now.date(),
        sentence=found.sentence,
        lines=lines,
        created_at=now,
    )


def _pairs_rows(outcome: Outcome) -> list[PairsRow]:
    rows: list[PairsRow] = []
    for found in outcome.pairs:
        for start in range(0, len(found.ours), store.PAIRS_IN_ROW):
            ours, theirs = (side[start : start + store.PAIRS_IN_ROW] for side in (found.ours, found.theirs))
            rows.append(PairsRow(len(rows) + 1, found.rule.value, len(ours), sessions.pack_pairs(ours, theirs)))
    return rows
