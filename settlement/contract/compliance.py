"""Compliance on the wire: cases that wait for officers, decisions, a resident's quota."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import Field

from ledger.contract import Amount, CurrencyCode, Model, Moment
from settlement.contract import SettlementRef
from settlement.domain.compliance import QuotaDirection


class CaseDecisionRequest(Model):
    reason: Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00]*$")]
    """Kept with the decision for ever: name the evidence, not the person."""


class ComplianceDecisionView(Model):
    id: UUID
    settlement: SettlementRef
    verdict: Annotated[str, Field(pattern="^(pass|review|refuse|approve|reject)$")]
    decided_by: str
    is_officer: bool
    key_thumbprint: str | None
    versions: str
    """Of the policy and of every list consulted, each with the start of its file's SHA-256."""
    reason: str
    decided_at: Moment
    institutions: dict[str, str] | None
    """A screen's verdict on each institution that pays or is paid; None of an officer's decision."""


class ComplianceCaseView(Model):
    settlement: SettlementRef
    state: Annotated[str, Field(pattern="^(review|refused|approved|rejected|lapsed)$")]
    reason: str
    parties: dict[str, str]
    opened_at: Moment
    closed_at: Moment | None
    approvals: int
    approvals_needed: int
    decisions: list[ComplianceDecisionView]


class QuotaRequest(Model):
    """A body and not a query, so that no identity number ends up in an access log."""

    country: Annotated[str, Field(pattern="^[A-Z]{2}$")]
    resident_id: Annotated[str, Field(min_length=1, max_length=35, pattern=r"^[A-Za-z0-9 ./-]+$")]
    year: Annotated[int, Field(ge=2000, le=9999)] | None = None
    """Unset: the present one in the rule's time zone."""


class QuotaView(Model):
    rule: str
    direction: QuotaDirection
    year: int
    currency: CurrencyCode
    limit_minor: Amount
    used_minor: str
    """Exact, a fraction of minor units."""
    left_minor: Amount
    """Rounded down to a minor unit."""
