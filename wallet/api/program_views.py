"""Views of programmable money, built from the records."""

from __future__ import annotations

from collections.abc import Sequence

from kernel.ids import AccountNumber, ParticipantId
from wallet.contract.programs import (
    HoldState,
    MerchantView,
    PartyForecast,
    PreviewStep,
    PreviewView,
    ProgramHoldView,
    ProgramRequest,
    ProgramState,
    ProgramSummary,
    ProgramView,
    SpendState,
    SpendView,
    StatementView,
    TemplateView,
    TriggerView,
    VerdictView,
    VoucherView,
)
from wallet.domain.limits import scheme_day
from wallet.domain.program_records import Merchant, Part, Program, Spend, Voucher
from wallet.domain.program_templates import ACCEPT, AGREE, Plan, Range, Step, Template
from wallet.domain.programs import Verdict
from wallet.program_template_files import sign_template
from wallet.usecases import program_books, program_decisions
from wallet.usecases.context import Context
from wallet.usecases.program_books import Known


def template_view(template: Template, context: Context) -> TemplateView:
    return TemplateView(
        name=template.name,
        version=template.version,
        title=template.title,
        kind=template.kind,
        in_force=template.is_in_force(scheme_day(context.clock(), context.time_zone)),
        in_force_from=template.in_force_from,
        sha256=template.sha256,
        template=template.plain(),
        signature=sign_template(template, context.key),
    )


def program_view(known: Known, context: Context) -> ProgramView:
    program = known.program
    return ProgramView(
        program=program.id,
        state=ProgramState(program.state),
        template=known.terms.template,
        version=known.terms.version,
        terms=known.terms,
        terms_sha256=program.terms_sha256,
        reference=program_books.reference(known),
        triggers=_triggers(known.plan.template),
        awaited=known.awaited if program.state == "proposed" else [],
        funded_minor=program.funded_minor,
        held_minor=program.held_minor,
        released_minor=program.released_minor,
        returned_minor=program.returned_minor,
        funded_at=program.funded_at,
        holds=[_hold_view(known, part, context) for part in known.parts],
        statements=[
            StatementView(
                statement=item.id,
                role=item.role,
                event=item.event,
                ordinal=item.ordinal,
                taken_at=item.taken_at,
                token=item.token,
            )
            for item in known.statements
        ],
        refusal=program.refusal,
        detail=program.detail,
        created_at=program.created_at,
    )


def _triggers(template: Template) -> list[TriggerView]:
    accepts = [TriggerView(event=ACCEPT, title="Accepts the terms", by=list(template.accepts))]
    return [
        TriggerView(event=AGREE, title="Agrees to the terms, with the funding", by=["payer"]),
        *(accepts if template.accepts else []),
        *(TriggerView(event=name, title=rule.title, by=list(rule.by)) for name, rule in template.events.items()),
    ]


def _hold_view(known: Known, part: Part, context: Context) -> ProgramHoldView:
    hold = known.terms.holds[part.number - 1]
    state = HoldState(part.state)
    if part.state == "held" and part.outcome is not None:
        state = HoldState.RELEASING if part.outcome == "release" else HoldState.RETURNING
    is_open = part.state == "held" and part.outcome is None and part.spend_id is None
    decided = program_decisions.decide_now(context, known, part, now=context.clock()) if is_open else None
    return ProgramHoldView(
        hold=part.id,
        number=part.number,
        credit=hold.credit,
        amount_minor=part.amount_minor,
        voucher=part.voucher_id,
        state=state,
        because=part.because,
        decided_at=part.decided_at,
        ended_at=part.ended_at,
        secret=program_books.decided_secret(context, known, part),
        why_not_yet=decided.because if decided is not None and decided.outcome is None else None,
        release=_verdict(decided.release) if decided is not None else None,
        returns=_verdict(decided.return_) if decided is not None else None,
    )


def _verdict(verdict: Verdict | None) -> VerdictView | None:
    if verdict is None:
        return None
    parts = [view for view in map(_verdict, verdict.parts) if view is not None]
    return VerdictView(holds=verdict.holds, because=verdict.because, parts=parts)


def program_summary(row: Program) -> ProgramSummary:
    return ProgramSummary(
        program=row.id,
        state=ProgramState(row.state),
        template=str(row.terms["template"]),
        version=int(row.terms["version"]),
        payer=AccountNumber(row.payer_account),
        funded_minor=row.funded_minor,
        held_minor=row.held_minor,
        released_minor=row.released_minor,
        returned_minor=row.returned_minor,
        deadline=row.deadline,
        created_at=row.created_at,
    )


def preview_view(
    request: ProgramRequest, plan: Plan, amounts: Sequence[int], steps: Sequence[Step], bounds: Range
) -> PreviewView:
    total = sum(amounts)
    least, most = bounds.released_min_minor, bounds.released_max_minor

    def forecast(role: str) -> PartyForecast:
        if role == "payer":
            meaning = "what comes back: worst if everything that can be released is, best if nothing more than must"
            return PartyForecast(role=role, worst_minor=total - most, best_minor=total - least, meaning=meaning)
        if role == "payee":
            return PartyForecast(role=role, worst_minor=least, best_minor=most, meaning="what is paid")
        return PartyForecast(role=role, worst_minor=0, best_minor=0, meaning="signs, and has no money in it")

    voucher = plan.template.voucher
    parties = [forecast(party.role) for party in request.parties]
    if voucher is not None:
        parties.append(
            PartyForecast(
                role="recipient", worst_minor=0, best_minor=total, meaning="what can be spent at fitting merchants"
            )
        )
    return PreviewView(
        funded_minor=total,
        deadline=plan.deadline,
        reserved_until=plan.expires_at,
        schedule=[
            PreviewStep(
                number=step.number,
                amount_minor=step.amount_minor,
                outcome=step.outcome,
                at=step.at,
                because=step.because,
            )
            for step in steps
        ],
        parties=parties,
        exhaustive=bounds.is_exhaustive,
    )


def voucher_view(row: Voucher, known: Known, left_minor: int) -> VoucherView:
    is_open = known.program.state == "active"
    return VoucherView(
        voucher=row.id,
        program=row.program_id,
        issuer=AccountNumber(known.program.payer_account),
        account=AccountNumber(row.recipient_account),
        value_minor=row.value_minor,
        left_minor=left_minor if is_open else 0,
        spent_minor=row.spent_minor,
        change_minor=row.change_minor,
        step_minor=known.plan.step_minor,
        expires_at=known.program.deadline,
        state=ProgramState(known.program.state),
    )


def spend_view(row: Spend) -> SpendView:
    return SpendView(
        spend=row.id,
        voucher=row.voucher_id,
        merchant=AccountNumber(row.merchant_account),
        amount_minor=row.amount_minor,
        change_minor=row.change_minor,
        change_to=row.change_to,
        payment=row.payment_id,
        state=SpendState(row.state),
        seq=row.seq,
        booked_at=row.booked_at,
        refusal=row.refusal,
        detail=row.detail,
        created_at=row.created_at,
    )


def merchant_view(row: Merchant) -> MerchantView:
    return MerchantView(
        account=AccountNumber(row.account),
        name=row.name,
        category=row.category,
        place=row.place,
        participant=ParticipantId(row.participant),
        valid_until=row.valid_until,
        statement=row.statement,
        key=None if row.key is None else dict(row.key),
    )
