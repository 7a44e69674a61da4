"""Statements of a program's parties, and secrets that they show (step 3 of `wallet.usecases.programs`)."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from uuid import UUID

from kernel.crypto import jws
from kernel.errors import ProblemError
from ledger.contract import TransferRefusal
from wallet.contract import WalletRefusal
from wallet.domain.program_templates import ACCEPT, ordinal_max
from wallet.store import programs as store
from wallet.store.carriage import Connection
from wallet.usecases.context import Context
from wallet.usecases.program_books import Known, locked, read
from wallet.usecases.program_decisions import decide
from wallet.usecases.program_documents import check_said_by, insert_statement, read_statement
from wallet.usecases.program_steps import step

_R = WalletRefusal


def take_statement(context: Context, token: str) -> Known:
    """Keep a party's signed statement, decide what follows, carry it out. The same again answers the same.

    Raises: ProblemError: statement-invalid, statement-exists, statement-not-allowed, program-not-found,
    program-state-mismatch, program-terms-mismatch.
    """
    statement = read_statement(token)

    def take(connection: Connection) -> None:
        known = locked(connection, context, statement.program)
        before = store.find_statement(connection, statement.statement)
        if before is not None:
            if before.program_id != statement.program or _payload(before.token) != _payload(token):
                raise ProblemError(_R.STATEMENT_EXISTS)
            if before.token != token:  # signed once more, or by nobody: what is in it is no secret
                check_said_by(connection, known, statement, token)
            return
        check_said_by(connection, known, statement, token)
        template = known.plan.template
        if not template.may_say(statement.role, statement.event):
            raise ProblemError(_R.STATEMENT_NOT_ALLOWED, f"the {statement.role} may not say {statement.event!r}")
        highest = ordinal_max(known.plan, len(known.parts)) if statement.event != ACCEPT else 1
        if statement.ordinal > highest:
            raise ProblemError(_R.STATEMENT_NOT_ALLOWED, f"ordinals go up to {highest}")
        said = {(item.role, item.event, item.ordinal) for item in known.statements}
        if (statement.role, statement.event, statement.ordinal) in said:
            raise ProblemError(_R.STATEMENT_EXISTS, "this was said before, under another id")
        wanted = "proposed" if statement.event == ACCEPT else "active"
        if known.program.state != wanted:
            raise ProblemError(_R.PROGRAM_STATE_MISMATCH, f"the program is {known.program.state}, not {wanted}")
        if wanted == "proposed":
            insert_statement(connection, known, statement, token, at=context.clock())
            return
        # What time had decided before this was said stays decided.
        known = decide(connection, context, known)
        insert_statement(connection, known, statement, token, at=known.program.evaluated_at or context.clock())
        decide(connection, context, read(connection, context, known.program))

    context.database.run_session(take)
    return step(context, statement.program)


def show_secret(context: Context, program_id: UUID, secret: bytes) -> Known:
    """Somebody shows the counterpart's secret: to know it is the authority, here as at the ledger.

    Raises: ProblemError: program-not-found, program-state-mismatch, hold-secret-wrong.
    """

    def take(connection: Connection) -> None:
        known = locked(connection, context, program_id)
        wanted = known.terms.parameters.get("secret_hash")
        if known.plan.template.lock != "counterpart" or hashlib.sha256(secret).hexdigest() != wanted:
            raise ProblemError(TransferRefusal.HOLD_SECRET_WRONG)
        if known.program.shown_secret is not None:
            return
        if known.program.state != "active":
            raise ProblemError(_R.PROGRAM_STATE_MISMATCH, f"the program is {known.program.state}")
        known = decide(connection, context, known)
        shown = replace(known.program, shown_secret=secret)
        store.save_program(connection, shown)
        decide(connection, context, read(connection, context, shown))

    context.database.run_session(take)
    return step(context, program_id)


def _payload(token: str) -> bytes:
    return jws.peek_payload(token)
