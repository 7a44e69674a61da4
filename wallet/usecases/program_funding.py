"""Funding of programs: what the payer has signed is checked against the terms and kept, then placed
(step 2 of `wallet.usecases.programs`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from kernel.crypto import jws
from kernel.errors import ProblemError, Refusal
from ledger.contract import INSTRUCTION_TYP, InvalidInstruction, LedgerRefusal, read_instruction
from wallet.contract import WalletRefusal
from wallet.contract.programs import hold_terms
from wallet.domain import limits
from wallet.domain.lifecycle import caps_in_force
from wallet.domain.program_templates import AGREE
from wallet.store import carriage
from wallet.store import programs as store
from wallet.store.carriage import Connection, Payer
from wallet.usecases.context import Context, refusal_of
from wallet.usecases.program_books import RETRY_AFTER, Known, locked, refuse_payer
from wallet.usecases.program_documents import check_said_by, device_keys, insert_statement, read_statement
from wallet.usecases.program_steps import step

_R = WalletRefusal


def fund(context: Context, program_id: UUID, *, agreement: str, instructions: Sequence[str]) -> Known:
    """Place the holds that the payer has signed. Raises: ProblemError; with outcome-unknown, repeat the request."""

    def record(connection: Connection) -> None:
        known = locked(connection, context, program_id)
        program, now = known.program, context.clock()
        statement = read_statement(agreement)
        if program.state != "proposed":
            before = [part.instruction for part in known.parts]
            if before == list(instructions) and any(item.token == agreement for item in known.statements):
                return
            raise ProblemError(_R.PROGRAM_STATE_MISMATCH, f"the program is {program.state}")
        if known.awaited:
            raise ProblemError(_R.PROGRAM_NOT_ACCEPTED, f"awaited: {', '.join(known.awaited)}")
        if now >= program.deadline:
            raise ProblemError(_R.PROGRAM_STATE_MISMATCH, "the deadline has passed")
        payer = carriage.lock_payers(connection, [program.payer_account]).get(program.payer_account)
        if payer is None:
            raise ProblemError(_R.NOT_OUR_WALLET)
        refuse_payer(connection, payer, program.payer_account)
        check_said_by(connection, known, statement, agreement)
        if (statement.role, statement.event, statement.program) != ("payer", AGREE, program.id):
            raise ProblemError(_R.STATEMENT_INVALID, f"the agreement is the payer's {AGREE!r}")
        _check_instructions(known, payer, instructions, now=now)
        usage = _counted(context, payer, known, now=now)
        carriage.save_usages(connection, {program.payer_account: usage})
        insert_statement(connection, known, statement, agreement, at=now)
        pairs = [(part.id, token) for part, token in zip(known.parts, instructions, strict=True)]
        store.save_instructions(connection, pairs)
        store.save_program(
            connection, replace(program, state="funding", counted_on=usage.day, wake_at=now + RETRY_AFTER)
        )

    context.database.run_session(record)
    known = step(context, program_id)
    if known.program.state == "funding":
        raise ProblemError(LedgerRefusal.OUTCOME_UNKNOWN, "the ledger's answer is not known yet; repeat the request")
    if known.program.state in ("refusing", "refused"):
        raise ProblemError(refusal_of(known.program.refusal), known.program.detail or "")
    return known


def _check_instructions(known: Known, payer: Payer, instructions: Sequence[str], *, now: datetime) -> None:
    """Each is exactly the hold of the terms, signed by a device of the payer's. Raises: ProblemError."""
    if len(instructions) != len(known.parts):
        raise ProblemError(_R.PROGRAM_TERMS_MISMATCH, f"{len(known.parts)} holds are to be signed, in their order")
    keys = device_keys(payer)
    for number, (hold, token) in enumerate(zip(hold_terms(known.terms), instructions, strict=True), start=1):
        try:
            item = read_instruction(token)
            kid = str(jws.peek_header(token).get("kid"))
            if kid not in keys:
                raise ProblemError(LedgerRefusal.INSTRUCTION_INVALID, "it is not signed by a device of the payer's")
            jws.check(item.unverified, keys[kid], typ=INSTRUCTION_TYP)
        except (InvalidInstruction, jws.InvalidJws) as error:
            raise ProblemError(LedgerRefusal.INSTRUCTION_INVALID, error.reason) from None
        if item.terms != hold:
            raise ProblemError(_R.PROGRAM_TERMS_MISMATCH, f"instruction {number} is not the hold of the terms")
        if item.ledger != known.terms.ledger:
            raise ProblemError(LedgerRefusal.WRONG_LEDGER)
        if item.valid_until <= now:
            raise ProblemError(LedgerRefusal.INSTRUCTION_EXPIRED)


def _counted(context: Context, payer: Payer, known: Known, *, now: datetime) -> limits.Usage:
    """I9: a hold counts as spent from its placing on, here as in the ledger."""
    usage = payer.usage
    today = limits.scheme_day(now, context.time_zone)
    caps = caps_in_force(context.pack, payer.wallet_class, changing_to=payer.changing_to, own=payer.own_caps)
    for part in known.parts:
        decided = limits.decide_payment(part.amount_minor, caps=caps, usage=usage, today=today)
        if isinstance(decided, Refusal):
            raise ProblemError(decided, f"class {payer.wallet_class.value} of {context.pack.name}")
        usage = decided
    return usage
