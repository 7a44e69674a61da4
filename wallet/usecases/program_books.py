"""A program as it is kept: read whole, under its lock, with its secrets, its events and what it counts as spent."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Literal
from uuid import UUID

from kernel import ids
from kernel.errors import InvariantBroken, ProblemError
from wallet.contract import WalletRefusal
from wallet.contract.programs import ProgramTerms, reference_of, terms_sha256
from wallet.domain import limits
from wallet.domain.events import EventType
from wallet.domain.lifecycle import refuse_paying
from wallet.domain.program_records import Part, Program, Statement
from wallet.domain.program_templates import ACCEPT, Plan, Template, plan_of
from wallet.domain.programs import Said
from wallet.store import carriage, events
from wallet.store import programs as store
from wallet.store.carriage import Connection, Payer
from wallet.usecases.context import Context
from wallet.usecases.own_rules import refuse_but_payments

RETRY_AFTER = timedelta(seconds=10)
"""When the pass takes up what a request has left unfinished. Touching it earlier would be safe, only wasteful."""

_R = WalletRefusal


@dataclass(frozen=True, slots=True)
class Known:
    """A program with all that belongs to it, read in one transaction."""

    program: Program
    terms: ProgramTerms
    plan: Plan
    parts: Sequence[Part]
    statements: Sequence[Statement]

    @property
    def said(self) -> list[Said]:
        return [Said(item.role, item.event, item.ordinal, item.taken_at) for item in self.statements]

    @property
    def awaited(self) -> list[str]:
        accepted = {item.role for item in self.statements if item.event == ACCEPT}
        return [role for role in self.plan.template.accepts if role not in accepted]


class Seed:
    """Every secret and unguessable id of one program. Nobody who does not know it can take an id first."""

    def __init__(self, program_id: UUID, seed: bytes) -> None:
        self._program_id = program_id
        self._seed = seed

    def secret(self, kind: Literal["commit", "abort"], number: int) -> bytes:
        return self._derive(f"{kind}:{number}")

    def transfer_id(self, label: str) -> UUID:
        return ids.derive_uuid7(self._program_id, self._derive(f"id:{label}").hex())

    def _derive(self, label: str) -> bytes:
        return hmac.new(self._seed, label.encode(), hashlib.sha256).digest()


def seed_of(context: Context, program: Program) -> Seed:
    return Seed(program.id, context.personal_data.open_secret(seed_label(program.id), program.sealed_seed))


def seed_label(program_id: UUID) -> bytes:
    return b"program:" + program_id.bytes


def decided_secret(context: Context, known: Known, part: Part) -> bytes | None:
    """The secret that ends the part, once it is decided; of an undecided or a voucher's part never."""
    if part.outcome is None:
        return None
    if part.outcome == "release" and known.plan.template.lock == "counterpart":
        return known.program.shown_secret
    return seed_of(context, known.program).secret("commit" if part.outcome == "release" else "abort", part.number)


def find(context: Context, program_id: UUID) -> Known:
    """Raises: ProblemError(program-not-found)."""
    known = context.database.run_session(lambda connection: find_if_known(connection, context, program_id))
    if known is None:
        raise ProblemError(_R.PROGRAM_NOT_FOUND)
    return known


def list_programs(context: Context, wallet_id: UUID, *, after: UUID | None, limit: int) -> list[Program]:
    """A wallet's, in order of id."""
    return context.database.run_session(
        lambda connection: store.list_programs(connection, wallet_id, after=after, limit=limit)
    )


def find_if_known(connection: Connection, context: Context, program_id: UUID) -> Known | None:
    program = store.find_program(connection, program_id)
    return None if program is None else read(connection, context, program)


def locked(connection: Connection, context: Context, program_id: UUID) -> Known:
    """The program, its row locked until the transaction's end. Raises: ProblemError(program-not-found)."""
    program = store.find_program(connection, program_id, lock=True)
    if program is None:
        raise ProblemError(_R.PROGRAM_NOT_FOUND)
    return read(connection, context, program)


def read(connection: Connection, context: Context, program: Program) -> Known:
    """With the very template that it was agreed under, and terms that are still those that were signed."""
    body = store.find_template(connection, program.template_sha256)
    terms = ProgramTerms.model_validate(program.terms)
    template = Template.model_validate(body)
    if template.sha256 != program.template_sha256 or terms_sha256(terms) != program.terms_sha256:
        raise InvariantBroken("I8", f"the kept terms of program {program.id} are not those that were signed")
    plan = plan_of(template, terms.parameters, time_zone=context.time_zone)
    parts = store.parts_of(connection, program.id)
    return Known(program, terms, plan, parts, store.statements_of(connection, program.id))


def reference(known: Known) -> UUID:
    return reference_of(known.program.terms_sha256)


def refuse_payer(connection: Connection, payer: Payer, account: int) -> None:
    refusal = refuse_paying(payer.state)
    if refusal is not None:
        raise ProblemError(refusal)
    refuse_but_payments(connection, account)


def tell(
    connection: Connection, type: EventType, program: Program, at: datetime, *, amount_minor: int | None = None
) -> None:
    """In the transaction that has made it so, under the program's lock, so once. In order: what is told later in one
    transaction has the later id."""
    data = {} if amount_minor is None else {"amount_minor": str(amount_minor)}
    events.emit_raw(connection, type, f"prg_{program.id}", at=at, wallet_id=program.wallet_id, data=data)


def release_usage(connection: Connection, program: Program, amount_minor: int) -> None:
    """I9: what returns no longer counts as spent, as in the ledger."""
    if program.counted_on is None:
        return
    payer = carriage.lock_payers(connection, [program.payer_account]).get(program.payer_account)
    if payer is not None:
        usage = limits.release(payer.usage, amount_minor, counted_on=program.counted_on)
        carriage.save_usages(connection, {program.payer_account: usage})


def force_usage(
    connection: Connection, context: Context, program: Program, amount_minor: int, *, now: datetime
) -> date:
    """Counts what the ledger has booked of a program that was taken for refused. Returns the day."""
    payer = carriage.lock_payers(connection, [program.payer_account])[program.payer_account]
    usage = limits.force(payer.usage, amount_minor, today=limits.scheme_day(now, context.time_zone))
    carriage.save_usages(connection, {program.payer_account: usage})
    return usage.day
