"""Officers at work on breaks: signed decisions, repairs by two of them, matches undone and made by hand.

A decision comes as a JWS by a registered officer's key and names the break's last event that the officer has seen: what
happened in between is looked at first. It is taken once, by its id. An approved claim is booked in the same
transaction; an approved instruction becomes a settlement of one leg, which the engine carries out like any other, and
the break is closed when it is settled (`follow_repairs`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID

import sqlalchemy as sa

from kernel import ids
from kernel.clock import Clock
from kernel.crypto import jws
from kernel.crypto.keys import PublicKey
from kernel.database import Database
from kernel.errors import ProblemError
from kernel.ids import ParticipantId, derive_uuid7
from kernel.money import Currency, Money
from settlement.domain.escrow import LegTerms, SettlementState
from settlement.domain.instructions import PROBLEMS_MAX, Instruction, Priority
from settlement.domain.reconciliation import JOURNAL, AgeBucket, Break, BreakType, MatchRule
from settlement.domain.reconciliation import lifecycle as life
from settlement.domain.reconciliation import session as sessions
from settlement.domain.reconciliation.lifecycle import (
    DECISION_BYTES_MAX,
    DECISION_TYPE,
    BreakState,
    DecisionDocument,
    DecisionKind,
    Event,
    EventKind,
    Officer,
    RepairKind,
    Standing,
)
from settlement.domain.refusals import SettlementRefusal as R
from settlement.settings import Directory
from settlement.store import batches, gates
from settlement.store import reconciliation as store
from settlement.store.reconciliation import BreakRow, MatchRow, RunRow
from settlement.usecases.intake import Candidate, Fault, IntakeCheck
from settlement.usecases.reconcile import break_keys, new_break, read_kept

REPAIRS_FOLLOWED_MAX = 1_000
REPAIR_FORMAT = "repair"


@dataclass(frozen=True, slots=True)
class Officers:
    """Who may decide: by the thumbprint of the key. `bridge` officers decide on everybody's breaks."""

    keys: Mapping[str, tuple[Officer, PublicKey]]
    bridge: ParticipantId

    def signed(self, token: str) -> tuple[DecisionDocument, Officer, str]:
        """What an officer signed, who, and with which key. Raises: ProblemError(officer-unknown, decision-invalid)."""
        try:
            unverified = jws.read(token, bytes_max=DECISION_BYTES_MAX)
            kid = str(jws.peek_header(token, bytes_max=DECISION_BYTES_MAX).get("kid"))
            known = self.keys.get(kid)
            if known is None:
                raise ProblemError(R.OFFICER_UNKNOWN, "register the officer's key with the bridge")
            jws.check(unverified, known[1], typ=DECISION_TYPE)
            document = life.parse_decision(unverified.payload)
        except (jws.InvalidJws, ValueError) as error:
            raise ProblemError(R.DECISION_INVALID, str(error)[:300]) from None
        return document, known[0], kid

    def require(self, officer: Officer, participant: ParticipantId) -> None:
        if officer.participant not in (participant, self.bridge):
            raise ProblemError(R.OFFICER_UNKNOWN, f"{officer.name} is no officer of {participant}")


def decide_break(
    token: str,
    *,
    subject: UUID,
    officers: Officers,
    database: Database,
    directory: Directory,
    checks: Sequence[IntakeCheck],
    clock: Clock,
) -> BreakRow:
    """One decision on a break. The same decision again is answered with the break as it stands. An instruction passes
    the same intake `checks` as everybody's: they refuse it, or close gates before it.

    Raises: ProblemError(officer-unknown, decision-invalid, decision-id-reused, break-not-found, break-has-moved-on,
    break-state-wrong, four-eyes, repair-not-possible (with `problems` if a check refuses), lines-do-not-balance).
    """
    document, officer, key = officers.signed(token)
    if document.subject != subject or document.kind is DecisionKind.UNMATCH:
        raise ProblemError(R.DECISION_INVALID, "the decision is about something else")
    now = clock()
    with database.transaction(isolation="READ COMMITTED") as connection:
        store.lock_name(connection, f"break {subject}")
        row = store.find_break(connection, subject)
        if row is None:
            raise ProblemError(R.BREAK_NOT_FOUND)
        officers.require(officer, row.participant)
        if _taken_before(connection, document, token):
            return row
        # The relation's lock too: a run that closes breaks must not meet a decision half way.
        store.lock_name(connection, f"relation {row.relation}")
        row = store.find_break(connection, subject) or row
        kind = life.decide(_standing(connection, row), document, officer, key)
        if isinstance(kind, R):
            raise ProblemError(kind, _said(kind, row))
        work = _Decision(connection, row, document, officer, key, token, now)
        match kind:
            case EventKind.PROPOSED:
                work.propose(directory)
            case EventKind.APPROVED:
                work.approve(directory, checks)
            case EventKind.REMATCHED:
                work.rematch(officers)
            case _:
                work.append(kind)
        return store.find_break(connection, subject) or row


def undo_match(
    token: str,
    *,
    run: UUID,
    officers: Officers,
    database: Database,
    files_directory: Path,
    clock: Clock,
) -> BreakRow:
    """Take a match back: its lines become an open break, with the officer's reason. The run itself stays as it was.

    Raises: ProblemError(officer-unknown, decision-invalid, reconciliation-not-found, match-not-found).
    """
    document, officer, key = officers.signed(token)
    if document.subject != run or document.kind is not DecisionKind.UNMATCH or not life.is_complete(document):
        raise ProblemError(R.DECISION_INVALID, "the decision does not take back a match of this reconciliation")
    now = clock()
    positions = document.positions or (-1, -1)
    with database.transaction(isolation="READ COMMITTED") as connection:
        found = store.find_run(connection, run)
        if found is None:
            raise ProblemError(R.RECONCILIATION_NOT_FOUND)
        officers.require(officer, found.participant)
        store.lock_name(connection, f"relation {found.relation}")
        known = store.find_decision(connection, document.decision)
        if known is not None:
            if known[1] != token:
                raise ProblemError(R.DECISION_ID_REUSED)
            row = store.find_break(connection, known[0])
            if row is not None:
                return row
        sides = find_match(connection, found, positions)
        if sides is None or _is_carried(connection, found, sides):
            raise ProblemError(R.MATCH_NOT_FOUND, f"no match of our line {positions[0]} and their line {positions[1]}")
        made = _undone(connection, found, sides, officer, document, now, database, files_directory)
        ours = store.find_source(connection, found.our_source)
        of_record = ours is not None and ours.counterparty == JOURNAL
        key_of = break_keys(found.relation, [made], of_record=of_record)[0]
        new = new_break(made, found.relation, key_of, run=found.id, lines=None, now=now)
        if positions in store.unmatched(connection, run):
            raise ProblemError(R.MATCH_NOT_FOUND, "the match was taken back before")
        opened = Event(1, EventKind.OPENED, officer.name, now, document.reason, None, document.decision, token)
        store.insert_breaks(connection, [new], opened_by=opened, key=key)
        store.add_unmatch(connection, run, positions, new.id)
        row = store.find_break(connection, new.id)
    if row is None:
        raise RuntimeError("the break just stored is not there")
    return row


def follow_repairs(*, database: Database, clock: Clock) -> int:
    """Close the breaks whose instruction is settled, and open again those whose instruction was cancelled."""
    ended = 0
    with database.transaction(isolation="READ COMMITTED") as connection:
        waiting = store.repairs_under_way(connection, limit=REPAIRS_FOLLOWED_MAX)
    for repair in waiting:
        if repair.settlement_id is None:
            continue
        with database.transaction(isolation="READ COMMITTED") as connection:
            store.lock_name(connection, f"break {repair.break_id}")
            row = store.find_break(connection, repair.break_id)
            settlement = batches.find_settlement(connection, repair.settlement_id)
            if row is None or settlement is None or row.state is not BreakState.APPROVED:
                continue
            now = clock()
            if settlement.state is SettlementState.SETTLED:
                _book(connection, repair, now)
                kind, reason = EventKind.BOOKED, f"settled as {ids.show('stl', settlement.id)}"
            elif settlement.state is SettlementState.CANCELLED:
                kind, reason = EventKind.FAILED, f"cancelled: {settlement.reason or ''} {settlement.detail}"[:500]
            else:
                continue
            event = Event(row.sequence + 1, kind, "bridge", now, reason, repair=repair.id)
            store.append_events(connection, [(row, event)])
            ended += 1
    return ended


@dataclass(frozen=True, slots=True)
class MatchSides:
    """A match's lines by position and reference."""

    rule: MatchRule
    our_positions: tuple[int, ...]
    their_positions: tuple[int, ...]


def find_match(connection: sa.Connection, run: RunRow, positions: tuple[int, int]) -> MatchSides | None:
    """By its first line on either side."""
    for row in store.pairs_of(connection, run.id):
        pairs = sessions.unpack_pairs(MatchRule(row.rule), row.positions)
        if bool(((pairs.ours == positions[0]) & (pairs.theirs == positions[1])).any()):
            return MatchSides(pairs.rule, (positions[0],), (positions[1],))
    for item in store.matches_of(connection, run.id):
        if item.our_positions[:1] == [positions[0]] and item.their_positions[:1] == [positions[1]]:
            return MatchSides(MatchRule(item.rule), tuple(item.our_positions), tuple(item.their_positions))
    return None


def _is_carried(connection: sa.Connection, run: RunRow, sides: MatchSides) -> bool:
    """A match with a carried line has closed a break: that break is reopened instead."""
    sources = [store.find_source(connection, key) for key in (run.our_source, run.their_source)]
    counts = [0 if source is None else source.line_count for source in sources]
    return max(sides.our_positions) >= counts[0] or max(sides.their_positions) >= counts[1]


def _undone(
    connection: sa.Connection,
    run: RunRow,
    sides: MatchSides,
    officer: Officer,
    document: DecisionDocument,
    now: datetime,
    database: Database,
    files_directory: Path,
) -> Break:
    """The break that a match becomes: nothing says any more that its lines belong together."""
    lines = []
    for key, positions in ((run.our_source, sides.our_positions), (run.their_source, sides.their_positions)):
        source = store.find_source(connection, key)
        read = None if source is None else read_kept(source, database=database, files_directory=files_directory)
        if read is None or read.lines is None:
            raise ProblemError(R.SOURCE_NOT_FOUND)
        lines.append(read.lines.entries(list(positions)))
    ours, theirs = lines
    currency = ours[0].amount.currency
    gross = max(sum(line.amount.amount_minor for line in side) for side in lines)
    return Break(
        BreakType.AMBIGUOUS,
        tuple(line.reference for line in ours),
        tuple(line.reference for line in theirs),
        ours[0].amount if len(ours) == 1 else None,
        theirs[0].amount if len(theirs) == 1 else None,
        0,
        ((currency, gross),),
        0,
        AgeBucket.DAYS_0_1,
        f"The match by {sides.rule.value} was taken back by {officer.name}: {document.reason}",
        our_positions=sides.our_positions,
        their_positions=sides.their_positions,
        oldest=min(line.value_date for line in (*ours, *theirs)),
    )


def _taken_before(connection: sa.Connection, document: DecisionDocument, token: str) -> bool:
    known = store.find_decision(connection, document.decision)
    if known is not None and known[1] != token:
        raise ProblemError(R.DECISION_ID_REUSED)
    return known is not None


def _standing(connection: sa.Connection, row: BreakRow) -> Standing:
    events = store.history(connection, row.id)
    proposed = next((event for event in reversed(events) if event.kind is EventKind.PROPOSED), None)
    if row.state is not BreakState.PROPOSED or proposed is None:
        return Standing(row.state, row.sequence, events[-1].kind)
    repair = store.find_repair(connection, proposed.repair or row.id)
    return Standing(
        row.state,
        row.sequence,
        events[-1].kind,
        maker=proposed.actor,
        maker_key=None if repair is None else repair.maker_key,
        proposal=proposed.decision,
    )


def _said(refusal: R, row: BreakRow) -> str:
    if refusal is R.BREAK_HAS_MOVED_ON:
        return f"its last event is number {row.sequence} and its state {row.state.value}: look at it again"
    if refusal is R.BREAK_STATE_WRONG:
        return f"the break is {row.state.value}"
    return ""


def _book(connection: sa.Connection, repair: store.RepairRow, now: datetime) -> None:
    store.insert_booking(
        connection,
        {
            "repair_id": repair.id,
            "break_id": repair.break_id,
            "debtor": repair.payer,
            "creditor": repair.payee,
            "amount_minor": repair.amount_minor,
            "currency": repair.currency,
            "settlement_id": repair.settlement_id,
            "booked_at": now,
        },
    )


@dataclass(frozen=True, slots=True)
class _Decision:
    """One decision being carried out, in its transaction."""

    connection: sa.Connection
    row: BreakRow
    document: DecisionDocument
    officer: Officer
    key: str
    token: str
    now: datetime

    def append(
        self,
        kind: EventKind,
        *,
        row: BreakRow | None = None,
        repair: UUID | None = None,
        run: UUID | None = None,
        match_number: int | None = None,
    ) -> None:
        at = row or self.row
        event = Event(
            at.sequence + 1,
            kind,
            self.officer.name,
            self.now,
            self.document.reason,
            self.document.assignee,
            self.document.decision,
            self.token,
            run,
            repair,
        )
        store.append_events(self.connection, [(at, event)], key=self.key, match_number=match_number)

    def propose(self, directory: Directory) -> None:
        repair = self.document.repair
        if repair is None:
            raise ProblemError(R.DECISION_INVALID)
        if repair.currency not in {self.row.currency, *self.row.gross}:
            raise ProblemError(R.REPAIR_NOT_POSSIBLE, f"the break is not in {repair.currency}")
        gross = int(self.row.gross.get(repair.currency, 0))
        if repair.amount_minor > gross:
            detail = f"the break is about {gross} minor units of {repair.currency}, the adjustment is of more"
            raise ProblemError(R.REPAIR_NOT_POSSIBLE, detail)
        if self.row.participant not in (repair.payer, repair.payee):
            raise ProblemError(R.REPAIR_NOT_POSSIBLE, f"{self.row.participant} is no party of the adjustment")
        if repair.kind is RepairKind.INSTRUCTION:
            _terms(directory, repair.payer, repair.payee, repair.amount_minor, repair.currency)
        store.insert_repair(
            self.connection,
            {
                "id": self.document.decision,
                "break_id": self.row.id,
                "kind": repair.kind.value,
                "payer": repair.payer,
                "payee": repair.payee,
                "amount_minor": repair.amount_minor,
                "currency": repair.currency,
                "maker": self.officer.name,
                "maker_key": self.key,
                "proposed_at": self.now,
            },
        )
        self.append(EventKind.PROPOSED, repair=self.document.decision)

    def approve(self, directory: Directory, checks: Sequence[IntakeCheck]) -> None:
        """The second officer's word. A claim is booked at once; an instruction goes to the engine."""
        repair = store.find_repair(self.connection, self.document.proposal or self.row.id)
        if repair is None or repair.break_id != self.row.id:
            raise ProblemError(R.BREAK_HAS_MOVED_ON)
        settlement: UUID | None = None
        if repair.kind == RepairKind.INSTRUCTION.value:
            settlement = self._instruct(directory, repair, checks)
        store.insert_approval(
            self.connection,
            {
                "repair_id": repair.id,
                "maker": repair.maker,
                "maker_key": repair.maker_key,
                "checker": self.officer.name,
                "checker_key": self.key,
                "settlement_id": settlement,
                "approved_at": self.now,
            },
        )
        self.append(EventKind.APPROVED, repair=repair.id)
        if settlement is None:
            _book(self.connection, repair, self.now)
            after = store.find_break(self.connection, self.row.id) or self.row
            booked = Event(
                after.sequence + 1, EventKind.BOOKED, "bridge", self.now, "the claim is booked", repair=repair.id
            )
            store.append_events(self.connection, [(after, booked)])

    def _instruct(self, directory: Directory, repair: store.RepairRow, checks: Sequence[IntakeCheck]) -> UUID:
        """One leg through the engine, traceable to the break by its ids, behind the same checks as any other."""
        terms = _terms(directory, repair.payer, repair.payee, repair.amount_minor, repair.currency)
        digest = hashlib.sha256(self.token.encode()).digest()
        made = batches.NewSettlement(
            id=derive_uuid7(repair.id, "settlement"),
            position=1,
            instruction_id=f"RPR{repair.id.hex[-13:]}",
            end_to_end_id=f"BRK{self.row.id.hex}"[:35],
            uetr=UUID(bytes=digest[:16], version=4),
            debtor=repair.payer,
            creditor=repair.payee,
            value_date=self.now.date(),
            priority=Priority.HIGH.value,
            rate=None,
            rate_provider=None,
            remainder_minor=None,
            legs=(terms,),
        )
        closed = self._checked(made, terms, checks)
        batches.insert_batch(
            self.connection,
            batch=derive_uuid7(repair.id, "batch"),
            submitter=self.row.participant,
            message_id=f"repair:{repair.id}",
            batch_format=REPAIR_FORMAT,
            content_sha256=digest,
            received_at=self.now,
            started_at=self.now,
            settlements=[made],
        )
        gates.close(self.connection, closed, now=self.now)
        return made.id

    def _checked(self, made: batches.NewSettlement, terms: LegTerms, checks: Sequence[IntakeCheck]) -> list[gates.Gate]:
        """The gates to close. What a check has written stands or falls with the decision."""
        instruction = Instruction(
            made.instruction_id,
            made.end_to_end_id,
            made.uetr,
            made.debtor,
            made.creditor,
            terms.amount,
            None,
            None,
            made.value_date,
            Priority.HIGH,
        )
        candidates = [Candidate(1, instruction, made)]
        found = [item for check in checks for item in check(self.connection, candidates, now=self.now)]
        faults = [item for item in found if isinstance(item, Fault)]
        if faults:
            problems = [{"refusal": x.refusal, "index": x.index, "reason": x.reason} for x in faults[:PROBLEMS_MAX]]
            raise ProblemError(R.REPAIR_NOT_POSSIBLE, faults[0].reason[:500], problems=problems)
        return [item for item in found if isinstance(item, gates.Gate)]

    def rematch(self, officers: Officers) -> None:
        """Lines of this break and of others belong together after all, by an officer's word: they must balance."""
        rows = [self.row]
        for key in self.document.breaks:
            other = None if key == self.row.id else store.find_break(self.connection, key)
            if other is None or other.relation != self.row.relation:
                raise ProblemError(R.BREAK_NOT_FOUND, f"{ids.show('brk', key)} in this relation")
            if other.state not in life.ALLOWED_FROM[EventKind.REMATCHED]:
                raise ProblemError(R.BREAK_STATE_WRONG, f"{ids.show('brk', key)} is {other.state.value}")
            rows.append(other)
        ours = [reference for row in rows for reference in row.our_references]
        theirs = [reference for row in rows for reference in row.their_references]
        if not ours or not theirs:
            raise ProblemError(R.LINES_DO_NOT_BALANCE, "a match has lines of both sides")
        # A missing line is a difference of its whole amount, so differences that cancel are lines that balance.
        differences = [row.difference_minor for row in rows]
        if any(difference is None for difference in differences) or sum(x or 0 for x in differences) != 0:
            raise ProblemError(R.LINES_DO_NOT_BALANCE, "explain or repair the difference instead")
        if self.row.run_id is None or any(not row.our_positions and not row.their_positions for row in rows):
            raise ProblemError(R.BREAK_STATE_WRONG, "a break of the control, or of a statement, has no lines to match")
        number = store.add_match(
            self.connection,
            self.row.run_id,
            MatchRow(
                0,
                MatchRule.MANUAL.value,
                [at for row in rows for at in row.our_positions],
                [at for row in rows for at in row.their_positions],
                ours,
                theirs,
                0,
            ),
        )
        for row in rows:
            self.append(EventKind.REMATCHED, row=row, run=self.row.run_id, match_number=number)


def _terms(
    directory: Directory, payer: ParticipantId, payee: ParticipantId, amount_minor: int, currency: str
) -> LegTerms:
    """The leg of an adjustment. Raises: ProblemError(repair-not-possible)."""
    try:
        amount = Money(amount_minor, Currency.of(currency))
    except ValueError as error:
        raise ProblemError(R.REPAIR_NOT_POSSIBLE, str(error)) from None
    ledger = directory.ledger_of_currency.get(amount.currency)
    debit, credit = directory.account(payer, amount.currency), directory.account(payee, amount.currency)
    if ledger is None or debit is None or credit is None:
        raise ProblemError(R.REPAIR_NOT_POSSIBLE, f"no ledger of {currency}, or a party has no account on it: claim it")
    return LegTerms(ledger, payer, payee, debit, credit, amount)
