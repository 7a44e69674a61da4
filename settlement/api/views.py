"""Rows to response models: a table row never leaves the service as it is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from kernel.ids import ParticipantId
from settlement.contract import (
    BatchView,
    ClosedGateView,
    ExplanationView,
    InDoubtView,
    LegView,
    RateView,
    SettlementView,
    StatementFileView,
)
from settlement.domain.escrow import Decision, SettlementState
from settlement.domain.explain import Explanation
from settlement.domain.fx import Rate, show_fraction
from settlement.domain.refusals import AbortReason
from settlement.store.batches import BatchRow, SettlementRow
from settlement.store.gates import Gate
from settlement.store.reports import StatementFileRow


def batch_view(row: BatchRow) -> BatchView:
    ended = row.counts[SettlementState.SETTLED] + row.counts[SettlementState.CANCELLED]
    return BatchView(
        batch=row.id,
        submitter=row.submitter,
        message_id=row.message_id,
        format=row.format,
        content_sha256=row.content_sha256.hex(),
        received_at=row.received_at,
        started_at=row.started_at,
        settlement_count=row.settlement_count,
        counts=row.counts,
        is_finished=ended == row.settlement_count,
    )


def settlement_view(
    row: SettlementRow, explanation: ExplanationView | None = None, *, viewer: ParticipantId | None = None
) -> SettlementView:
    """To a viewer other than the operator (None) a run's net settlement shows only the legs that touch it: the others
    are net positions of others."""
    is_cut = row.nets and viewer is not None
    return SettlementView(
        settlement=row.id,
        batch=row.batch,
        instruction_id=row.instruction_id,
        end_to_end_id=row.end_to_end_id,
        uetr=row.uetr,
        debtor=row.debtor,
        creditor=row.creditor,
        value_date=row.value_date,
        state=row.state,
        rate=row.rate,
        rate_provider=row.rate_provider,
        remainder_minor=row.remainder_minor,
        legs=[
            LegView(
                number=found.leg.number,
                ledger=found.leg.terms.ledger,
                payer=found.leg.terms.payer,
                payee=found.leg.terms.payee,
                debit=found.leg.terms.debit,
                credit=found.leg.terms.credit,
                amount_minor=found.leg.terms.amount.amount_minor,
                currency=found.leg.terms.amount.currency.code,
                state=found.leg.state,
                hold=found.leg.hold_id,
                detail=found.detail,
                ended_at=found.ended_at,
            )
            for found in row.legs
            if not is_cut or viewer in (found.leg.terms.payer, found.leg.terms.payee)
        ],
        decision=row.decision,
        finality_at=row.decided_at if row.decision is Decision.COMMIT else None,
        decided_at=row.decided_at,
        reason=None if row.reason is None else AbortReason(row.reason),
        detail=row.detail,
        waits_for=row.waits_for,
        ended_at=row.ended_at,
        explanation=explanation,
    )


def explanation_view(explanation: Explanation, closed: Sequence[Gate]) -> ExplanationView:
    return ExplanationView(
        why=explanation.why,
        waits_for=list(explanation.waits_for),
        resolution=explanation.resolution,
        needs_person=explanation.needs_person,
        gates=[ClosedGateView(kind=gate.kind.value, reason=gate.reason, not_before=gate.not_before) for gate in closed],
    )


def in_doubt_view(row: SettlementRow, explanation: ExplanationView, *, now: datetime) -> InDoubtView:
    since = row.prepared_at or row.received_at
    return InDoubtView(
        settlement=row.id,
        batch=row.batch,
        uetr=row.uetr,
        state=row.state,
        decision=row.decision,
        waits_for=row.waits_for or "; ".join(explanation.waits_for),
        since=since,
        age_seconds=max(0, int((now - since).total_seconds())),
        legs={f"{found.leg.number} {found.leg.terms.ledger}": found.leg.state for found in row.legs},
        explanation=explanation,
    )


def rate_view(rate: Rate) -> RateView:
    return RateView(
        base=rate.base.code,
        counter=rate.counter.code,
        rate=show_fraction(rate.value),
        provider=rate.provider,
        valid_from=rate.valid_from,
        valid_until=rate.valid_until,
    )


def statement_file_view(row: StatementFileRow) -> StatementFileView:
    return StatementFileView(
        statement=row.id,
        batch=row.batch_id,
        participant=row.participant,
        currency=row.currency,
        sequence_number=row.sequence_number,
        entry_count=row.entry_count,
        file_name=row.file_name,
        sha256=row.sha256.hex(),
        created_at=row.created_at,
    )
