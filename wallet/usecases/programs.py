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
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta

from pydantic import BaseModel

from kernel import ids
from kernel.crypto import jws
from kernel.crypto.keys import PublicKey
from kernel.errors import ProblemError
from kernel.ids import AccountNumber
from kernel.money import AMOUNT_MINOR_MAX
from ledger.contract import LedgerRefusal
from wallet.contract import WalletRefusal
from wallet.contract.programs import Party, ProgramHold, ProgramRequest, ProgramTerms, terms_sha256
from wallet.domain import limits
from wallet.domain.program_records import Part, Program, Voucher
from wallet.domain.program_templates import (
    HOLDS_MAX,
    LIFE_DAYS_MAX,
    Plan,
    Range,
    Step,
    Template,
    fits_merchant,
    plan_of,
    preview,
    speaks_of_merchants,
    stamps_of,
    worst_cases,
)
from wallet.domain.programs import ProgramInvalid, Said, Scene
from wallet.store import carriage
from wallet.store import programs as store
from wallet.store.carriage import Connection, Payer
from wallet.usecases.context import Context
from wallet.usecases.kept_twice import KeptByDatabase
from wallet.usecases.program_books import Known, Seed, find, find_if_known, refuse_payer, seed_label
from wallet.usecases.program_documents import device_keys

_R = WalletRefusal


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
    known = context.database.run_session(lambda connection: find_if_known(connection, context, request.program))
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
                sealed_seed=context.personal_data.seal_secret(seed_label(request.program), seed),
                shown_secret=None,
                state="proposed",
                funded_minor=sum(hold.amount_minor for hold in terms.holds),
                held_minor=0,
                released_minor=0,
                returned_minor=0,
                change_minor=0,
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
        if wallet is not None and PublicKey.from_jwk(party.key).thumbprint not in device_keys(wallet):
            raise ProblemError(_R.PROGRAM_INVALID, f"the key of the {party.role} is no device of that wallet")
    payer_account = next(party.account for party in parties if party.role == "payer")
    payer = ours[payer_account or 0]
    refuse_payer(connection, payer, payer_account or 0)
    return payer


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


def _payer_account(terms: ProgramTerms) -> int:
    account = next(party.account for party in terms.parties if party.role == "payer")
    if account is None:
        raise ProblemError(_R.PROGRAM_INVALID, "the payer is named with an account")
    return account


def _canonical(document: BaseModel) -> bytes:
    return jws.canonical_json(document.model_dump(mode="json", exclude_none=True))
