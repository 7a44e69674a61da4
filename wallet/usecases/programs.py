"""Programs of conditional holds: terms, funding, statements, decisions, and carrying the decisions out.

  1. *Terms.* The service makes a seed, stores it sealed, and derives from it two secrets for every part; their hashes
     stand in the terms. The terms' hash stands in every hold and every statement that a party signs.
  2. *Funding.* The payer signs one hold a part (I8) and the agreement. Everything is stored, then the holds are placed
     as one linked chain, all or nothing. If the ledger refuses, every hold is voided with its abort secret, which keeps
     a late copy out for good (decision 4); only then is the program called refused.
  3. *Decisions.* Each hold is decided once: a row that is never changed (primary key, no UPDATE grant). What is decided
     follows from the kept statements and the time alone (`domain.program_templates.replay`), so it does not matter when
     or how often somebody looks.
  4. *Carrying out.* Only the decided secret is sent to the ledger, and shown. A hold ends exactly once (I6), so this
     may be repeated by anybody: by the request that caused it, by the periodic pass, by whoever reads the secret.

A process may die between any two of these; `wake_at` says when the pass looks again, and a CHECK forbids that an
unfinished program has none.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Literal, TypeVar
from uuid import UUID

from psycopg.errors import UniqueViolation
from pydantic import BaseModel

from kernel import ids, strict_json
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.crypto import jws
from kernel.crypto.keys import KeyRefused, PublicKey
from kernel.errors import InvariantBroken, ProblemError, Refusal
from kernel.ids import AccountNumber
from kernel.money import AMOUNT_MINOR_MAX
from ledger.contract import (
    INSTRUCTION_TYP,
    InvalidInstruction,
    LedgerRefusal,
    TransferItem,
    TransferKind,
    TransferOutcome,
    TransferRefusal,
    TransferResult,
    TransferTerms,
    read_instruction,
)
from wallet.contract import WalletRefusal
from wallet.contract.programs import (
    STATEMENT_TYP,
    Party,
    ProgramHold,
    ProgramRequest,
    ProgramStatement,
    ProgramTerms,
    hold_terms,
    reference_of,
    terms_sha256,
)
from wallet.domain import limits
from wallet.domain.events import EventType
from wallet.domain.lifecycle import caps_in_force, refuse_paying
from wallet.domain.program_records import Part, Program, Statement, Voucher
from wallet.domain.program_templates import (
    ACCEPT,
    AGREE,
    HOLDS_MAX,
    LIFE_DAYS_MAX,
    Decided,
    Plan,
    Range,
    Step,
    Template,
    fits_merchant,
    ordinal_max,
    plan_of,
    preview,
    replay,
    speaks_of_merchants,
    stamps_of,
    worst_cases,
)
from wallet.domain.programs import ProgramInvalid, Said, Scene
from wallet.store import carriage, events, own_rules
from wallet.store import programs as store
from wallet.store.carriage import Connection, Payer
from wallet.usecases.context import Context, is_definite, refusal_of
from wallet.usecases.kept_twice import KeptByDatabase
from wallet.usecases.own_rules import refuse_but_payments

RETRY_AFTER = timedelta(seconds=10)
"""When the pass takes up what a request has left unfinished. Touching it earlier would be safe, only wasteful."""
LOOK_EVERY = timedelta(seconds=30)
"""How often a counterpart's hold is looked up in the ledger, where its secret may have been shown."""

_R = WalletRefusal
Document = TypeVar("Document", bound=BaseModel)
Ended = Literal["released", "returned"]
_ENDED_BY: Mapping[str, Ended] = {
    TransferRefusal.HOLD_ALREADY_POSTED.value: "released",
    TransferRefusal.HOLD_ALREADY_VOIDED.value: "returned",
    TransferRefusal.HOLD_EXPIRED.value: "returned",
}


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


# --- secrets ---------------------------------------------------------------------------------------------------------


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
    return Seed(program.id, context.personal_data.open_secret(_label(program.id), program.sealed_seed))


def _label(program_id: UUID) -> bytes:
    return b"program:" + program_id.bytes


def decided_secret(context: Context, known: Known, part: Part) -> bytes | None:
    """The secret that ends the part, once it is decided; of an undecided or a voucher's part never."""
    if part.outcome is None:
        return None
    if part.outcome == "release" and known.plan.template.lock == "counterpart":
        return known.program.shown_secret
    return seed_of(context, known.program).secret("commit" if part.outcome == "release" else "abort", part.number)


# --- 1. terms --------------------------------------------------------------------------------------------------------


def find_template(context: Context, name: str, version: int) -> Template:
    """Raises: ProblemError(template-not-found)."""
    template = context.templates.get((name, version))
    if template is None:
        raise ProblemError(_R.TEMPLATE_NOT_FOUND, f"{name} version {version}; see /v1/program-templates")
    return template


def propose(context: Context, request: ProgramRequest) -> Known:
    """The program with its terms; nothing is reserved yet. The same request again answers the same.

    Raises: ProblemError: template-not-found, template-not-in-force, program-invalid, program-exists, voucher-exists,
    not-our-wallet, merchant-not-found, merchant-not-fitting, and what a wallet's state refuses.
    """
    request_sha256 = hashlib.sha256(_canonical(request)).digest()
    known = context.database.run_session(lambda connection: _find(connection, context, request.program))
    if known is None:
        now = context.clock()
        if ids.is_from_future(request.program, now=now):
            raise ProblemError(LedgerRefusal.ID_FROM_FUTURE)
        template, plan, amounts = _planned(context, request, now=now)
        vault = context.ledgers.vault(context.ledgers.home) if template.kind == "voucher" else None
        seed = secrets.token_bytes(32)
        terms = _terms(context, request, plan, amounts, seed=Seed(request.program, seed), vault=vault)

        def insert(connection: Connection) -> None:
            payer = _check_parties(connection, context, request.parties)
            _check_payee(connection, context, plan, request, amounts, now=now)
            body = template.plain()
            store.insert_template(connection, template.sha256, name=template.name, version=template.version, body=body)
            program = Program(
                id=request.program,
                request_sha256=request_sha256,
                template_sha256=template.sha256,
                wallet_id=payer.wallet_id,
                payer_account=_payer_account(terms),
                terms=terms.model_dump(mode="json", exclude_none=True),
                terms_sha256=terms_sha256(terms),
                sealed_seed=context.personal_data.seal_secret(_label(request.program), seed),
                shown_secret=None,
                state="proposed",
                funded_minor=sum(hold.amount_minor for hold in terms.holds),
                held_minor=0,
                released_minor=0,
                returned_minor=0,
                deadline=plan.deadline,
                expires_at=plan.expires_at,
                created_at=now,
                funded_at=None,
                evaluated_at=None,
                wake_at=None,
                counted_on=None,
                refusal=None,
                detail=None,
            )
            parts = [
                Part(hold.hold, program.id, hold.number, hold.voucher, hold.amount_minor, "proposed", None, None, None)
                for hold in terms.holds
            ]
            vouchers = [
                Voucher(item.voucher, program.id, item.account, item.recipient, item.value_minor, 0, 0)
                for item in request.vouchers
            ]
            store.insert_program(connection, program, parts, vouchers)

        try:
            context.database.run_session(insert)
        except KeptByDatabase as kept:  # another request took the id in between, or a voucher's
            if kept.table == "program_voucher":
                raise ProblemError(_R.VOUCHER_EXISTS) from None
            if not kept.is_taken:
                raise
        known = find(context, request.program)
    if known.program.request_sha256 != request_sha256:
        raise ProblemError(_R.PROGRAM_EXISTS)
    return known


def _planned(context: Context, request: ProgramRequest, *, now: datetime) -> tuple[Template, Plan, list[int]]:
    """The plan and the amounts of all parts."""
    template = find_template(context, request.template, request.version)
    if not template.is_in_force(limits.scheme_day(now, context.time_zone)):
        raise ProblemError(_R.TEMPLATE_NOT_IN_FORCE, f"from {template.in_force_from} to {template.in_force_until}")
    try:
        plan = plan_of(template, request.parameters, time_zone=context.time_zone)
        _check_roles(template, request.parties)
        if template.kind == "voucher":
            if request.amounts_minor or not request.vouchers:
                raise ProgramInvalid("give vouchers, and no amounts")
            if len({item.voucher for item in request.vouchers}) != len(request.vouchers):
                raise ProgramInvalid("name each voucher once")
            amounts = [stamp for item in request.vouchers for stamp in stamps_of(plan, item.value_minor)]
        else:
            fewest, most = template.instalments.min, template.instalments.max
            if request.vouchers or not fewest <= len(request.amounts_minor) <= most:
                raise ProgramInvalid(f"give {fewest} to {most} amounts, and no vouchers")
            amounts = list(request.amounts_minor)
        if len(amounts) > HOLDS_MAX:
            raise ProgramInvalid(f"{len(amounts)} holds; at most {HOLDS_MAX}")
        if min(amounts) < 1 or sum(amounts) > AMOUNT_MINOR_MAX:
            raise ProgramInvalid("every amount is positive, and their sum an amount")
        if not now < plan.deadline <= now + timedelta(days=LIFE_DAYS_MAX):
            raise ProgramInvalid("the deadline is ahead, by ten years at most")
    except ProgramInvalid as error:
        raise ProblemError(_R.PROGRAM_INVALID, str(error)) from None
    return template, plan, amounts


def _check_roles(template: Template, parties: Sequence[Party]) -> None:
    given = {party.role: party for party in parties}
    needed = {name for name, role in template.roles.items() if not role.optional}
    if len(given) != len(parties) or not needed <= set(given) <= set(template.roles):
        raise ProgramInvalid(f"the parties are {', '.join(sorted(template.roles))}, each once")
    for name, party in given.items():
        if (party.account is not None) != template.roles[name].account:
            raise ProgramInvalid(
                f"the {name} is named {'with' if template.roles[name].account else 'without'} an account"
            )
    # One key in two roles could sign twice where two signers are wanted.
    if len({PublicKey.from_jwk(party.key).thumbprint for party in parties}) != len(parties):
        raise ProgramInvalid("each party has a key of its own")
    accounts = [party.account for party in parties if party.account is not None]
    if len(set(accounts)) != len(accounts):
        raise ProgramInvalid("each party has an account of its own")


def _terms(
    context: Context, request: ProgramRequest, plan: Plan, amounts: Sequence[int], *, seed: Seed, vault: int | None
) -> ProgramTerms:
    payee = next((party.account for party in request.parties if party.role == "payee"), None)
    credit = vault if vault is not None else payee
    if credit is None:
        raise ProblemError(_R.PROGRAM_INVALID, "nobody would be paid")
    of_voucher = [item.voucher for item in request.vouchers for _ in stamps_of(plan, item.value_minor)]
    secret_hash = request.parameters.get("secret_hash") if plan.template.lock == "counterpart" else None

    def hold(number: int, amount: int) -> ProgramHold:
        commit = hashlib.sha256(seed.secret("commit", number)).digest()
        return ProgramHold(
            hold=seed.transfer_id(f"hold:{number}"),
            number=number,
            credit=AccountNumber(credit),
            amount_minor=amount,
            commit_hash=commit if secret_hash is None else bytes.fromhex(str(secret_hash)),
            abort_hash=hashlib.sha256(seed.secret("abort", number)).digest(),
            voucher=of_voucher[number - 1] if of_voucher else None,
        )

    home = context.ledgers.home
    return ProgramTerms(
        program=request.program,
        ledger=home.name,
        currency=home.currency,
        template=plan.template.name,
        version=plan.template.version,
        template_sha256=plan.template.sha256,
        parameters=request.parameters,
        parties=request.parties,
        vouchers=request.vouchers,
        deadline=plan.deadline,
        expires_at=plan.expires_at,
        holds=[hold(number, amount) for number, amount in enumerate(amounts, start=1)],
    )


def _check_parties(connection: Connection, context: Context, parties: Sequence[Party]) -> Payer:
    """The payer's wallet, which is ours and open. A party's key must be his own where his account is ours."""
    accounts = [party.account for party in parties if party.account is not None]
    ours = carriage.lock_payers(connection, accounts)
    for party in parties:
        wallet = ours.get(party.account or 0)
        if party.role == "payer" and wallet is None:
            raise ProblemError(_R.NOT_OUR_WALLET)
        if wallet is not None and PublicKey.from_jwk(party.key).thumbprint not in _device_keys(wallet):
            raise ProblemError(_R.PROGRAM_INVALID, f"the key of the {party.role} is no device of that wallet")
    payer_account = next(party.account for party in parties if party.role == "payer")
    payer = ours[payer_account or 0]
    _refuse_payer(connection, payer, payer_account or 0)
    return payer


def _refuse_payer(connection: Connection, payer: Payer, account: int) -> None:
    refusal = refuse_paying(payer.state)
    if refusal is not None:
        raise ProblemError(refusal)
    refuse_but_payments(connection, account)


def _check_payee(
    connection: Connection,
    context: Context,
    plan: Plan,
    request: ProgramRequest,
    amounts: Sequence[int],
    *,
    now: datetime,
) -> None:
    if plan.template.kind == "release" and plan.merchant is not None:
        payee = next(party.account for party in request.parties if party.role == "payee")
        must_fit(connection, context, plan, payee or 0, amount_minor=sum(amounts), now=now)


def must_fit(
    connection: Connection, context: Context, plan: Plan, account: int, *, amount_minor: int, now: datetime
) -> None:
    """Raises: ProblemError(merchant-not-found, merchant-not-fitting) unless the program may pay this account."""
    found = store.find_merchant(connection, account)
    if found is not None and found.valid_until is not None and found.valid_until <= now:
        found = None
    if found is None and speaks_of_merchants(plan):
        raise ProblemError(_R.MERCHANT_NOT_FOUND)
    scene = Scene(account, None, None) if found is None else Scene(account, found.category, found.place)
    verdict = fits_merchant(plan, scene, amount_minor=amount_minor, now=now, time_zone=context.time_zone)
    if not verdict.holds:
        raise ProblemError(_R.MERCHANT_NOT_FITTING, verdict.why_not())


def forecast(
    context: Context,
    request: ProgramRequest,
    *,
    funded_at: datetime | None,
    said: Sequence[Said],
    is_secret_shown: bool,
) -> tuple[Plan, list[int], list[Step], Range]:
    """What happens if exactly this is said: plan, amounts, schedule, least and most for the payee. Stores nothing."""
    now = context.clock()
    _, plan, amounts = _planned(context, request, now=now)
    start = funded_at or now
    for item in said:
        if not plan.template.may_say(item.role, item.event):
            raise ProblemError(_R.STATEMENT_NOT_ALLOWED, f"the {item.role} may not say {item.event}")
    if plan.template.kind == "voucher":
        return plan, amounts, [], worst_cases(plan, amounts, funded_at=start, time_zone=context.time_zone)
    steps = preview(
        plan,
        amounts,
        funded_at=start,
        said=said,
        time_zone=context.time_zone,
        is_secret_shown=is_secret_shown,
    )
    return plan, amounts, steps, worst_cases(plan, amounts, funded_at=start, time_zone=context.time_zone)


# --- 2. funding ------------------------------------------------------------------------------------------------------


def fund(context: Context, program_id: UUID, *, agreement: str, instructions: Sequence[str]) -> Known:
    """Place the holds that the payer has signed. Raises: ProblemError; with outcome-unknown, repeat the request."""

    def record(connection: Connection) -> None:
        known = _locked(connection, context, program_id)
        program, now = known.program, context.clock()
        statement = _read_statement(agreement)
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
        _refuse_payer(connection, payer, program.payer_account)
        _check_said_by(connection, known, statement, agreement)
        if (statement.role, statement.event, statement.program) != ("payer", AGREE, program.id):
            raise ProblemError(_R.STATEMENT_INVALID, f"the agreement is the payer's {AGREE!r}")
        _check_instructions(known, payer, instructions, now=now)
        usage = _counted(context, payer, known, now=now)
        carriage.save_usages(connection, {program.payer_account: usage})
        _insert_statement(connection, known, statement, agreement, at=now)
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
    keys = _device_keys(payer)
    for hold, token in zip(known.terms.holds, instructions, strict=True):
        try:
            item = read_instruction(token)
            kid = str(jws.peek_header(token).get("kid"))
            if kid not in keys:
                raise ProblemError(LedgerRefusal.INSTRUCTION_INVALID, "it is not signed by a device of the payer's")
            jws.check(item.unverified, keys[kid], typ=INSTRUCTION_TYP)
        except (InvalidInstruction, jws.InvalidJws) as error:
            raise ProblemError(LedgerRefusal.INSTRUCTION_INVALID, error.reason) from None
        if item.terms != hold_terms(known.terms, hold):
            raise ProblemError(_R.PROGRAM_TERMS_MISMATCH, f"instruction {hold.number} is not the hold of the terms")
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
        program = _locked(connection, context, known.program.id).program
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
        _tell(connection, EventType.PROGRAM_FUNDED, program, funded_at, amount_minor=program.funded_minor)

    context.database.run_session(activate)


def is_passing(result: TransferResult) -> bool:
    """An answer that says nothing about the holds: the ledger could not decide now."""
    return result.refusal in (LedgerRefusal.OUTCOME_UNKNOWN.value, "service-unavailable", "internal-error")


def _refuse(context: Context, program_id: UUID, refusal: str, detail: str | None) -> None:
    def work(connection: Connection) -> None:
        program = _locked(connection, context, program_id).program
        if program.state == "funding":
            now = context.clock()
            _release_usage(connection, program, program.funded_minor)
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
        current = _locked(connection, context, known.program.id)
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
                counted_on=_force_usage(connection, context, program, released, now=now),
                refusal=None,
                detail=None,
                wake_at=None,
            )
            store.save_program(connection, done)
            _tell(connection, EventType.PROGRAM_FINISHED, program, now)
            return
        store.save_program(connection, replace(program, state="refused", wake_at=None))
        _tell(connection, EventType.PROGRAM_REFUSED, program, context.clock())

    context.database.run_session(work)


# --- 3. statements and decisions -------------------------------------------------------------------------------------


def take_statement(context: Context, token: str) -> Known:
    """Keep a party's signed statement, decide what follows, carry it out. The same again answers the same.

    Raises: ProblemError: statement-invalid, statement-exists, statement-not-allowed, program-not-found,
    program-state-mismatch, program-terms-mismatch.
    """
    statement = _read_statement(token)

    def take(connection: Connection) -> None:
        known = _locked(connection, context, statement.program)
        before = store.find_statement(connection, statement.statement)
        if before is not None:
            if before.program_id != statement.program or _payload(before.token) != _payload(token):
                raise ProblemError(_R.STATEMENT_EXISTS)
            if before.token != token:  # signed once more, or by nobody: what is in it is no secret
                _check_said_by(connection, known, statement, token)
            return
        _check_said_by(connection, known, statement, token)
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
            _insert_statement(connection, known, statement, token, at=context.clock())
            return
        # What time had decided before this was said stays decided.
        known = _decide(connection, context, known)
        _insert_statement(connection, known, statement, token, at=known.program.evaluated_at or context.clock())
        _decide(connection, context, _read(connection, context, known.program))

    context.database.run_session(take)
    return step(context, statement.program)


def show_secret(context: Context, program_id: UUID, secret: bytes) -> Known:
    """Somebody shows the counterpart's secret: to know it is the authority, here as at the ledger.

    Raises: ProblemError: program-not-found, program-state-mismatch, hold-secret-wrong.
    """

    def take(connection: Connection) -> None:
        known = _locked(connection, context, program_id)
        wanted = known.terms.parameters.get("secret_hash")
        if known.plan.template.lock != "counterpart" or hashlib.sha256(secret).hexdigest() != wanted:
            raise ProblemError(TransferRefusal.HOLD_SECRET_WRONG)
        if known.program.shown_secret is not None:
            return
        if known.program.state != "active":
            raise ProblemError(_R.PROGRAM_STATE_MISMATCH, f"the program is {known.program.state}")
        known = _decide(connection, context, known)
        shown = replace(known.program, shown_secret=secret)
        store.save_program(connection, shown)
        _decide(connection, context, _read(connection, context, shown))

    context.database.run_session(take)
    return step(context, program_id)


def decide_now(context: Context, known: Known, part: Part, *, now: datetime) -> Decided:
    """What the conditions say of one undecided part. Pure."""
    program = known.program
    funded_at = program.funded_at or now
    return replay(
        known.plan,
        amount_minor=part.amount_minor,
        instalment=part.number,
        funded_at=funded_at,
        since=program.evaluated_at or funded_at,
        until=now,
        said=known.said,
        time_zone=context.time_zone,
        is_secret_shown=program.shown_secret is not None,
    )


def _decide(connection: Connection, context: Context, known: Known) -> Known:
    """Decide every part that can be decided now; the program's row is locked. A voucher's part in a purchase waits."""
    program = known.program
    if program.state != "active" or program.evaluated_at is None:
        return known
    # A clock that has gone back decides nothing anew.
    now = max(context.clock(), program.evaluated_at)
    wakes: list[datetime] = []
    for part in known.parts:
        if part.state != "held":
            continue
        if part.spend_id is not None:
            wakes.append(now + RETRY_AFTER)
            continue
        if part.outcome is not None:
            wakes.append(now + RETRY_AFTER)
            continue
        decided = decide_now(context, known, part, now=now)
        if decided.outcome is not None:
            store.insert_decision(
                connection, part.id, outcome=decided.outcome, because=decided.because, decided_at=decided.at
            )
            wakes.append(now + RETRY_AFTER)
        else:
            wakes.append(decided.next_at or program.deadline)
    if known.plan.template.lock == "counterpart":
        wakes.append(now + LOOK_EVERY)
    current = replace(program, evaluated_at=now, wake_at=min(wakes, default=program.wake_at or now))
    store.save_program(connection, current)
    return _read(connection, context, current)


# --- 4. carrying out -------------------------------------------------------------------------------------------------


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

    def decide(connection: Connection) -> Known:
        return _decide(connection, context, _locked(connection, context, program_id))

    known = context.database.run_session(decide)
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
    known = _locked(connection, context, program_id)
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
        _release_usage(connection, program, returned)
    save_totals(connection, context, program, released=released, returned=returned, now=now)


def save_totals(
    connection: Connection, context: Context, program: Program, *, released: int, returned: int, now: datetime
) -> None:
    """released + returned + held = funded, whatever has moved; the program is finished when nothing is held."""
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
            wake_at=wake_at,
        ),
    )
    if released:
        _tell(connection, EventType.PROGRAM_RELEASED, program, now, amount_minor=released)
    if returned:
        _tell(connection, EventType.PROGRAM_RETURNED, program, now, amount_minor=returned)
    if not unfinished:
        _tell(connection, EventType.PROGRAM_FINISHED, program, now)


def _tell(
    connection: Connection, type: EventType, program: Program, at: datetime, *, amount_minor: int | None = None
) -> None:
    """In the transaction that has made it so, under the program's lock, so once. In order: what is told later in one
    transaction has the later id."""
    data = {} if amount_minor is None else {"amount_minor": str(amount_minor)}
    events.emit_raw(connection, type, f"prg_{program.id}", at=at, wallet_id=program.wallet_id, data=data)


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
            program = _locked(connection, context, known.program.id).program
            if program.shown_secret is None and program.state == "active":
                store.save_program(connection, replace(program, shown_secret=secret))

        context.database.run_session(note)


def _release_usage(connection: Connection, program: Program, amount_minor: int) -> None:
    """I9: what returns no longer counts as spent, as in the ledger."""
    if program.counted_on is None:
        return
    payer = carriage.lock_payers(connection, [program.payer_account]).get(program.payer_account)
    if payer is not None:
        usage = limits.release(payer.usage, amount_minor, counted_on=program.counted_on)
        carriage.save_usages(connection, {program.payer_account: usage})


def _force_usage(
    connection: Connection, context: Context, program: Program, amount_minor: int, *, now: datetime
) -> date:
    """Counts what the ledger has booked of a program that was taken for refused. Returns the day."""
    payer = carriage.lock_payers(connection, [program.payer_account])[program.payer_account]
    usage = limits.force(payer.usage, amount_minor, today=limits.scheme_day(now, context.time_zone))
    carriage.save_usages(connection, {program.payer_account: usage})
    return usage.day


# --- reading ---------------------------------------------------------------------------------------------------------


def find(context: Context, program_id: UUID) -> Known:
    """Raises: ProblemError(program-not-found)."""
    known = context.database.run_session(lambda connection: _find(connection, context, program_id))
    if known is None:
        raise ProblemError(_R.PROGRAM_NOT_FOUND)
    return known


def list_programs(context: Context, wallet_id: UUID, *, after: UUID | None, limit: int) -> list[Program]:
    """A wallet's, in order of id."""
    return context.database.run_session(
        lambda connection: store.list_programs(connection, wallet_id, after=after, limit=limit)
    )


def _find(connection: Connection, context: Context, program_id: UUID) -> Known | None:
    program = store.find_program(connection, program_id)
    return None if program is None else _read(connection, context, program)


def _locked(connection: Connection, context: Context, program_id: UUID) -> Known:
    program = store.find_program(connection, program_id, lock=True)
    if program is None:
        raise ProblemError(_R.PROGRAM_NOT_FOUND)
    return _read(connection, context, program)


def locked(connection: Connection, context: Context, program_id: UUID) -> Known:
    """The program, its row locked until the transaction's end. Raises: ProblemError(program-not-found)."""
    return _locked(connection, context, program_id)


def _read(connection: Connection, context: Context, program: Program) -> Known:
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


# --- helpers ---------------------------------------------------------------------------------------------------------


def _device_keys(wallet: Payer) -> dict[str, PublicKey]:
    """The keys of a wallet's active devices, by thumbprint."""
    keys = {wallet.device_thumbprint: PublicKey.from_jwk(json.loads(wallet.device_key))}
    if wallet.other_devices is not None:
        others = json.loads(wallet.other_devices)
        keys |= {thumbprint: PublicKey.from_jwk(key) for thumbprint, key in others.items()}
    return keys


def _read_statement(token: str) -> ProgramStatement:
    return read_document(token, ProgramStatement, refusal=_R.STATEMENT_INVALID)


def read_document(token: str, model: type[Document], *, refusal: Refusal) -> Document:
    """The payload of a party's JWS, its signature unchecked: canonical JSON of the model. Raises: ProblemError."""
    try:
        payload = jws.peek_payload(token)
        document = model.model_validate(strict_json.loads(payload))
        if jws.canonical_json(document.model_dump(mode="json", exclude_none=True)) != payload:
            raise ProblemError(refusal, "the payload is not canonical JSON (RFC 8785) with every member")
    except jws.InvalidJws as error:
        raise ProblemError(refusal, error.reason) from None
    except ValueError as error:  # pydantic's too; and a number that no canonical JSON has
        raise ProblemError(refusal, " ".join(str(error).split())[:240]) from None
    return document


def check_signed(token: str, keys: Sequence[PublicKey], *, typ: str, refusal: Refusal) -> PublicKey:
    """The one of the keys that has signed the token. Raises: ProblemError."""
    reason = "no key is known"
    for key in keys:
        try:
            jws.verify(token, key, typ=typ)
        except jws.InvalidJws as error:
            reason = error.reason
        else:
            return key
    raise ProblemError(refusal, reason)


def keys_of(connection: Connection, account: int | None, named: Mapping[str, str]) -> list[PublicKey]:
    """The key that the terms name; of a wallet of ours also its present devices: who lost one is not locked out."""
    try:
        keys = [PublicKey.from_jwk(named)]
    except KeyRefused as error:
        raise ProblemError(_R.PROGRAM_INVALID, str(error)) from None
    wallet = None if account is None else carriage.lock_payers(connection, [account]).get(account)
    if wallet is None or account is None:
        return keys
    # A card signs payments and nothing else; what its key has signed besides comes from a broken chip.
    _, with_card = own_rules.accounts_with_rules(connection, [account])
    of_cards = {thumbprint for _, thumbprint in own_rules.lock_cards(connection, with_card)} if with_card else set()
    return [key for thumbprint, key in _device_keys(wallet).items() if thumbprint not in of_cards]


def _check_said_by(connection: Connection, known: Known, statement: ProgramStatement, token: str) -> None:
    party = next((party for party in known.terms.parties if party.role == statement.role), None)
    if party is None:
        raise ProblemError(_R.STATEMENT_NOT_ALLOWED, f"the program has no {statement.role}")
    keys = keys_of(connection, party.account, party.key)
    check_signed(token, keys, typ=STATEMENT_TYP, refusal=_R.STATEMENT_INVALID)
    if statement.terms_sha256 != known.program.terms_sha256:
        raise ProblemError(_R.PROGRAM_TERMS_MISMATCH, "the statement speaks of other terms")


def _insert_statement(
    connection: Connection, known: Known, statement: ProgramStatement, token: str, *, at: datetime
) -> None:
    row = Statement(
        id=statement.statement,
        program_id=known.program.id,
        role=statement.role,
        event=statement.event,
        ordinal=statement.ordinal,
        token=token,
        taken_at=at,
    )
    try:
        store.insert_statement(connection, row)
    except UniqueViolation:  # another program's statement has this id
        raise ProblemError(_R.STATEMENT_EXISTS) from None


def _payer_account(terms: ProgramTerms) -> int:
    account = next(party.account for party in terms.parties if party.role == "payer")
    if account is None:
        raise ProblemError(_R.PROGRAM_INVALID, "the payer is named with an account")
    return account


def _payload(token: str) -> bytes:
    return jws.peek_payload(token)


def _canonical(document: BaseModel) -> bytes:
    return jws.canonical_json(document.model_dump(mode="json", exclude_none=True))
