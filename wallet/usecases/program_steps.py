"""Programs brought further: holds placed or kept out, decisions carried out (steps 2 and 4 of
`wallet.usecases.programs`). Everything here may be repeated by anybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Literal
from uuid import UUID

from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.errors import InvariantBroken
from ledger.contract import (
    LedgerRefusal,
    TransferItem,
    TransferKind,
    TransferOutcome,
    TransferRefusal,
    TransferResult,
    TransferTerms,
)
from wallet.domain.events import EventType
from wallet.domain.program_records import Part, Program
from wallet.store import programs as store
from wallet.store.carriage import Connection
from wallet.usecases.context import Context, is_definite
from wallet.usecases.program_books import (
    RETRY_AFTER,
    Known,
    decided_secret,
    find,
    force_usage,
    locked,
    release_usage,
    seed_of,
    tell,
)
from wallet.usecases.program_decisions import decide

Ended = Literal["released", "returned"]
_ENDED_BY: Mapping[str, Ended] = {
    TransferRefusal.HOLD_ALREADY_POSTED.value: "released",
    TransferRefusal.HOLD_ALREADY_VOIDED.value: "returned",
    TransferRefusal.HOLD_EXPIRED.value: "returned",
}


def step(context: Context, program_id: UUID) -> Known:
    """Bring a program as far as it can be brought now: place, keep out, look up, decide, carry out. Safe to repeat.

    Returns it as it then is. Raises: ProblemError(program-not-found).
    """
    known = find(context, program_id)
    if known.program.state == "funding":
        _place(context, known)
        known = find(context, program_id)
    if known.program.state == "refusing":
        _keep_out(context, known)
        return find(context, program_id)
    if known.program.state != "active":
        return known
    if known.plan.template.lock == "counterpart":
        _look_up(context, known)

    def decided(connection: Connection) -> Known:
        return decide(connection, context, locked(connection, context, program_id))

    known = context.database.run_session(decided)
    waiting = [part for part in known.parts if part.state == "held" and part.outcome is not None]
    if not waiting:
        return known
    orders: list[tuple[Part, Literal["commit", "abort"], bytes]] = []
    for part in waiting:
        secret = decided_secret(context, known, part)
        if secret is not None:
            orders.append((part, "commit" if part.outcome == "release" else "abort", secret))
    ended = _end(context, known, orders)
    context.database.run_session(lambda connection: conclude(connection, context, program_id, ended))
    return find(context, program_id)


def _place(context: Context, known: Known) -> None:
    """The holds, as one linked chain. Sent again, it books once (I7)."""
    last = len(known.parts)
    items = [
        TransferItem(instruction=part.instruction, linked=number < last)
        for number, part in enumerate(known.parts, start=1)
    ]
    try:
        results = context.ledgers.home.client.submit(items)
    except ServiceUnreachable:
        return
    except ProblemResponse as error:
        if is_definite(error):
            _refuse(context, known.program.id, error.refusal, error.detail)
        return
    refused = [item for item in results if item.outcome is TransferOutcome.REFUSED]
    if refused:
        chained = TransferRefusal.LINKED_TRANSFER_REFUSED.value
        cause = next((item for item in refused if item.refusal != chained), refused[0])
        if is_passing(cause):
            return
        _refuse(context, known.program.id, cause.refusal or "", cause.detail)
        return

    def activate(connection: Connection) -> None:
        program = locked(connection, context, known.program.id).program
        if program.state != "funding":
            return
        now = context.clock()
        booked = [item.booked_at for item in results if item.booked_at is not None]
        funded_at = max(booked, default=now)
        store.mark_held(connection, program.id)
        store.save_program(
            connection,
            replace(
                program,
                state="active",
                held_minor=program.funded_minor,
                funded_at=funded_at,
                evaluated_at=funded_at,
                wake_at=now,
            ),
        )
        tell(connection, EventType.PROGRAM_FUNDED, program, funded_at, amount_minor=program.funded_minor)

    context.database.run_session(activate)


def is_passing(result: TransferResult) -> bool:
    """An answer that says nothing about the holds: the ledger could not decide now."""
    return result.refusal in (LedgerRefusal.OUTCOME_UNKNOWN.value, "service-unavailable", "internal-error")


def _refuse(context: Context, program_id: UUID, refusal: str, detail: str | None) -> None:
    def work(connection: Connection) -> None:
        program = locked(connection, context, program_id).program
        if program.state == "funding":
            now = context.clock()
            release_usage(connection, program, program.funded_minor)
            store.save_program(
                connection,
                replace(program, state="refusing", counted_on=None, refusal=refusal, detail=detail, wake_at=now),
            )

    context.database.run_session(work)


def _keep_out(context: Context, known: Known) -> None:
    """Of a refused funding: void every hold. One that is not there leaves a tombstone, so that no copy of its signed
    instruction can ever be booked."""
    seed = seed_of(context, known.program)
    open_parts = [part for part in known.parts if part.state == "proposed"]
    ended = _end(context, known, [(part, "abort", seed.secret("abort", part.number)) for part in open_parts])

    def work(connection: Connection) -> None:
        current = locked(connection, context, known.program.id)
        program = current.program
        if program.state != "refusing":
            return
        for part_id, (state, at) in ended.items():
            store.end_part(connection, part_id, state=state, ended_at=at)
        parts = store.parts_of(connection, program.id)
        if any(part.state == "proposed" for part in parts):
            store.save_program(connection, replace(program, wake_at=context.clock() + RETRY_AFTER))
            return
        released = sum(part.amount_minor for part in parts if part.state == "released")
        if released:
            # A counterpart showed its secret at the ledger while a late copy of the chain was booked: that is final,
            # and was spent after all (I9).
            now = context.clock()
            done = replace(
                program,
                state="finished",
                released_minor=released,
                returned_minor=program.funded_minor - released,
                funded_at=now,
                counted_on=force_usage(connection, context, program, released, now=now),
                refusal=None,
                detail=None,
                wake_at=None,
            )
            store.save_program(connection, done)
            tell(connection, EventType.PROGRAM_FINISHED, program, now)
            return
        store.save_program(connection, replace(program, state="refused", wake_at=None))
        tell(connection, EventType.PROGRAM_REFUSED, program, context.clock())

    context.database.run_session(work)


def _end(
    context: Context, known: Known, orders: Sequence[tuple[Part, Literal["commit", "abort"], bytes]]
) -> dict[UUID, tuple[Ended, datetime]]:
    """Post or void by the decided secrets: which holds have ended, how, and when. What is not known is left out."""
    seed = seed_of(context, known.program)
    items = [
        TransferItem(
            terms=TransferTerms(
                id=seed.transfer_id(f"{which}:{part.number}"),
                kind=TransferKind.POST if which == "commit" else TransferKind.VOID,
                currency=known.terms.currency,
                hold=part.id,
                secret=secret,
            )
        )
        for part, which, secret in orders
    ]
    try:
        results = context.ledgers.home.client.submit(items) if items else []
    except (ServiceUnreachable, ProblemResponse):
        return {}
    ended: dict[UUID, tuple[Ended, datetime]] = {}
    for (part, which, _), result in zip(orders, results, strict=True):
        at = result.booked_at or context.clock()
        if result.outcome is not TransferOutcome.REFUSED:
            ended[part.id] = ("released" if which == "commit" else "returned", at)
        elif result.refusal is not None and result.refusal in _ENDED_BY:
            ended[part.id] = (_ENDED_BY[result.refusal], at)
    return ended


def conclude(
    connection: Connection, context: Context, program_id: UUID, ended: Mapping[UUID, tuple[Ended, datetime]]
) -> None:
    """Write what the ledger has said: each part ends once (I6), and the totals move with it."""
    known = locked(connection, context, program_id)
    program = known.program
    if program.state != "active":
        return
    now = context.clock()
    released = returned = 0
    for part in known.parts:
        if part.state != "held" or part.id not in ended:
            continue
        state, at = ended[part.id]
        if state == "released" and part.outcome == "return" and known.plan.template.lock == "service":
            raise InvariantBroken("I6", f"hold {part.id} was posted, though only its abort secret was ever shown")
        if store.end_part(connection, part.id, state=state, ended_at=at):
            released += part.amount_minor if state == "released" else 0
            returned += part.amount_minor if state == "returned" else 0
    if returned:
        release_usage(connection, program, returned)
    save_totals(connection, context, program, released=released, returned=returned, now=now)


def save_totals(
    connection: Connection,
    context: Context,
    program: Program,
    *,
    released: int,
    returned: int,
    change: int = 0,
    now: datetime,
) -> None:
    """released + returned + held = funded, whatever has moved; the program is finished when nothing is held.

    `change`: how much of what is returned is the change of a purchase.
    """
    held = program.held_minor - released - returned
    unfinished = [part for part in store.parts_of(connection, program.id) if part.state == "held"]
    if sum(part.amount_minor for part in unfinished) != held:
        raise InvariantBroken("I6", f"program {program.id} counts {held} as held, its parts another sum")
    wake_at = program.wake_at
    if not unfinished:
        wake_at = None
    elif any(part.outcome is not None or part.spend_id is not None for part in unfinished):
        wake_at = min(now + RETRY_AFTER, wake_at) if wake_at is not None and wake_at > now else now + RETRY_AFTER
    elif wake_at is None or wake_at <= now:
        wake_at = now + RETRY_AFTER  # the next look computes it from the conditions
    store.save_program(
        connection,
        replace(
            program,
            state="active" if unfinished else "finished",
            held_minor=held,
            released_minor=program.released_minor + released,
            returned_minor=program.returned_minor + returned,
            change_minor=program.change_minor + change,
            wake_at=wake_at,
        ),
    )
    if released:
        tell(connection, EventType.PROGRAM_RELEASED, program, now, amount_minor=released)
    if returned:
        tell(connection, EventType.PROGRAM_RETURNED, program, now, amount_minor=returned)
    if not unfinished:
        tell(connection, EventType.PROGRAM_FINISHED, program, now)


def _look_up(context: Context, known: Known) -> None:
    """A counterpart may have shown its secret at the ledger itself: then everybody knows it."""
    part = next((part for part in known.parts if part.state == "held"), None)
    if part is None or known.program.shown_secret is not None:
        return
    try:
        view = context.ledgers.home.client.get_hold(part.id)
    except (ServiceUnreachable, ProblemResponse):
        return
    if view.status == "posted" and view.secret is not None:
        secret = view.secret

        def note(connection: Connection) -> None:
            program = locked(connection, context, known.program.id).program
            if program.shown_secret is None and program.state == "active":
                store.save_program(connection, replace(program, shown_secret=secret))

        context.database.run_session(note)
