"""A settlement of n legs comes in: from a client, or from another part of the service in its own transaction.

`store_settlement` is the door for other areas (a route through a bridge currency, a netted cycle): it stores one
settlement of n legs, with the gates and refusals of the intake checks, in the caller's transaction. The engine does
the rest: all legs or none (I5).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal
from uuid import UUID

import sqlalchemy as sa

from kernel import idempotency
from kernel.clock import Clock
from kernel.crypto import jws
from kernel.database import Database
from kernel.errors import ProblemError
from kernel.ids import ParticipantId, new_uuid7
from kernel.money import Money
from settlement.domain.escrow import LegTerms
from settlement.domain.instructions import INSTRUCTION_ID_LENGTH_MAX, PROBLEMS_MAX, Instruction, Priority
from settlement.domain.multileg import LEGS_MAX, LEGS_MIN, find_fault
from settlement.domain.refusals import SettlementRefusal
from settlement.settings import Directory
from settlement.store import batches, gates, tables
from settlement.usecases.intake import Candidate, Fault, IntakeCheck
from settlement.usecases.kept_twice import database_refusals

Origin = Literal["multileg", "route", "netting"]
"""What brought the settlement: the `format` of its batch of one."""


@dataclass(frozen=True, slots=True)
class NewLeg:
    """A leg as a client names it: the accounts are the participants' own on that ledger."""

    ledger: str
    payer: ParticipantId
    payee: ParticipantId
    amount: Money


@dataclass(frozen=True, slots=True)
class NewMultileg:
    """A settlement to be stored. The first leg's payer and payee are its debtor and creditor."""

    uetr: UUID
    legs: tuple[LegTerms, ...]
    value_date: date
    priority: Priority = Priority.NORMAL
    instruction_id: str = ""
    """By default the UETR's 32 digits, as for `end_to_end_id`."""
    end_to_end_id: str = ""
    rate: str | None = None
    rate_provider: ParticipantId | None = None
    remainder_minor: str | None = None


@dataclass(frozen=True, slots=True)
class MultilegSubmission:
    """A client's request. `content` is its body, byte for byte."""

    uetr: UUID
    legs: tuple[NewLeg, ...]
    value_date: date
    priority: Priority
    submitter: ParticipantId
    is_operator: bool
    idempotency_key: str
    path: str
    content: bytes


def submit_settlement(
    submission: MultilegSubmission,
    *,
    database: Database,
    directory: Directory,
    clock: Clock,
    run_on_submit: bool,
    checks: Sequence[IntakeCheck] = (),
    render: Callable[[batches.SettlementRow], dict[str, Any]],
) -> idempotency.Outcome:
    """Store the settlement in state received. Idempotent by (submitter, Idempotency-Key), and by UETR and content.

    Raises: ProblemError(participant-unknown, submitter-not-party, currency-not-served, account-missing, legs-invalid,
    uetr-already-used, batch-id-reused, batch-invalid with `problems`, idempotency-key-*).
    """
    new = NewMultileg(
        submission.uetr, _terms(submission, directory=directory), submission.value_date, submission.priority
    )
    print_ = idempotency.fingerprint("POST", submission.path, submission.content)
    now = clock()

    def work() -> tuple[int, dict[str, Any]]:
        stored = store_settlement(
            connection, new, submitter=submission.submitter, now=now, is_started=run_on_submit, checks=checks
        )
        return (201 if stored.is_new else 200), render(stored.row)

    with database_refusals(), database.transaction(isolation="READ COMMITTED") as connection:
        return idempotency.run_once(
            connection,
            client=submission.submitter,
            key=submission.idempotency_key,
            fingerprint=print_,
            work=work,
            table=tables.idempotency,
            clock=clock,
        )


@dataclass(frozen=True, slots=True)
class Stored:
    row: batches.SettlementRow
    is_new: bool
    """False: the same settlement was stored before, and nothing was written now."""


def store_settlement(
    connection: sa.Connection,
    new: NewMultileg,
    *,
    submitter: ParticipantId,
    now: datetime,
    origin: Origin = "multileg",
    is_started: bool = True,
    checks: Sequence[IntakeCheck] = (),
    closed: Sequence[tuple[gates.GateKind, str]] = (),
    leg_bounds: tuple[int, int] = (LEGS_MIN, LEGS_MAX),
) -> Stored:
    """Store one settlement of n legs, as a batch of one, in the caller's READ COMMITTED transaction.

    It settles once the transaction commits and no gate of it is closed: `checks` may close some, `closed` (kind,
    reason) closes the caller's own. Idempotent: the same (submitter, UETR) with the same content is the settlement
    stored before. Wake the worker after the commit. Two transactions that race for one UETR: the later one raises
    sqlalchemy.exc.IntegrityError. Raises: ProblemError(legs-invalid, uetr-already-used, batch-id-reused,
    batch-invalid with `problems`).
    """
    fault = find_fault(new.legs, legs_min=leg_bounds[0], legs_max=leg_bounds[1])
    if fault is not None:
        raise ProblemError(SettlementRefusal.LEGS_INVALID, fault)
    # An instruction's own id may be an order's of the caller; the UETR names the settlement for ever.
    message_id, digest = f"uetr:{new.uetr}", _digest(new, origin)
    known = batches.find_by_message(connection, submitter, message_id)
    if known is not None:
        if known.content_sha256 != digest:
            raise ProblemError(SettlementRefusal.BATCH_ID_REUSED, f"UETR {new.uetr} came before with other content")
        return Stored(batches.settlements_page(connection, known.id, after=0, limit=1)[0], is_new=False)
    if batches.used_uetrs(connection, [new.uetr]):
        raise ProblemError(SettlementRefusal.UETR_ALREADY_USED, f"UETR {new.uetr} belongs to another settlement")
    made = _new_settlement(new)
    found = [item for check in checks for item in check(connection, [_candidate(new, made)], now=now)]
    faults = [item for item in found if isinstance(item, Fault)]
    if faults:
        problems = [
            {"refusal": item.refusal, "index": item.index, "reason": item.reason} for item in faults[:PROBLEMS_MAX]
        ]
        detail = f"{len(faults)} faults; the first: {faults[0].reason}"[:500]
        truncated = len(faults) > PROBLEMS_MAX
        raise ProblemError(SettlementRefusal.BATCH_INVALID, detail, problems=problems, problems_truncated=truncated)
    batch = new_uuid7()
    batches.insert_batch(
        connection,
        batch=batch,
        submitter=submitter,
        message_id=message_id,
        batch_format=origin,
        content_sha256=digest,
        received_at=now,
        started_at=now if is_started else None,
        settlements=[made],
    )
    of_checks = [item for item in found if isinstance(item, gates.Gate)]
    gates.close(connection, of_checks + [gates.Gate(made.id, kind, reason) for kind, reason in closed], now=now)
    return Stored(batches.settlements_page(connection, batch, after=0, limit=1)[0], is_new=True)


def _terms(submission: MultilegSubmission, *, directory: Directory) -> tuple[LegTerms, ...]:
    """The legs with their accounts. In order of precedence of SettlementRefusal."""
    found: list[LegTerms] = []
    for number, leg in enumerate(submission.legs):
        for party in (leg.payer, leg.payee):
            if party not in directory.institutions:
                detail = f"leg {number}: {party} is not registered with this bridge"
                raise ProblemError(SettlementRefusal.PARTICIPANT_UNKNOWN, detail)
    everybody = {party for leg in submission.legs for party in (leg.payer, leg.payee)}
    if not submission.is_operator and submission.submitter not in everybody:
        raise ProblemError(SettlementRefusal.SUBMITTER_NOT_PARTY, f"{submission.submitter} is in none of the legs")
    for number, leg in enumerate(submission.legs):
        currency = leg.amount.currency
        entry = directory.ledgers.get(leg.ledger)
        if entry is None or entry.currency != currency.code:
            detail = f"leg {number}: no ledger {leg.ledger} of {currency} here"
            raise ProblemError(SettlementRefusal.CURRENCY_NOT_SERVED, detail)
        debit, credit = directory.account(leg.payer, currency), directory.account(leg.payee, currency)
        if debit is None or credit is None:
            detail = f"leg {number}: {leg.payer if debit is None else leg.payee} in {currency}"
            raise ProblemError(SettlementRefusal.ACCOUNT_MISSING, detail)
        found.append(LegTerms(leg.ledger, leg.payer, leg.payee, debit, credit, leg.amount))
    return tuple(found)


def _new_settlement(new: NewMultileg) -> batches.NewSettlement:
    first = new.legs[0]
    return batches.NewSettlement(
        id=new_uuid7(),
        position=1,
        instruction_id=new.instruction_id or new.uetr.hex[-INSTRUCTION_ID_LENGTH_MAX:],
        end_to_end_id=new.end_to_end_id or new.uetr.hex,
        uetr=new.uetr,
        debtor=first.payer,
        creditor=first.payee,
        value_date=new.value_date,
        priority=new.priority.value,
        rate=new.rate,
        rate_provider=new.rate_provider,
        remainder_minor=new.remainder_minor,
        legs=new.legs,
    )


def _candidate(new: NewMultileg, made: batches.NewSettlement) -> Candidate:
    """For the checks. The instruction shows the first leg, against the first that pays its payer if there is one;
    a check of all parties and currencies reads `settlement.legs`."""
    first = new.legs[0]
    back = next((leg for leg in new.legs[1:] if leg.payee == first.payer), new.legs[1])
    instruction = Instruction(
        made.instruction_id,
        made.end_to_end_id,
        new.uetr,
        first.payer,
        first.payee,
        first.amount,
        back.amount.currency,
        back.amount,
        new.value_date,
        new.priority,
    )
    return Candidate(1, instruction, made)


def _digest(new: NewMultileg, origin: str) -> bytes:
    document = {
        "origin": origin,
        "uetr": str(new.uetr),
        "value_date": new.value_date.isoformat(),
        "priority": new.priority.value,
        "instruction_id": new.instruction_id,
        "end_to_end_id": new.end_to_end_id,
        "legs": [
            {
                "ledger": leg.ledger,
                "payer": leg.payer,
                "payee": leg.payee,
                "debit": str(leg.debit),
                "credit": str(leg.credit),
                "amount_minor": str(leg.amount.amount_minor),
                "currency": leg.amount.currency.code,
            }
            for leg in new.legs
        ],
    }
    return hashlib.sha256(jws.canonical_json(document)).digest()
