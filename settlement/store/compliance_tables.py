"""Tables of the compliance port: cases, decisions, and residents' annual quotas under keyed hashes."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from settlement.store.tables import metadata

_MOMENT = sa.DateTime(timezone=True)


def _settlement() -> sa.ForeignKey:
    """Deferred: an intake check writes before the settlement is stored, in the same transaction."""
    return sa.ForeignKey("settlement.id", deferrable=True, initially="DEFERRED")


compliance_case = sa.Table(
    "compliance_case",
    metadata,
    sa.Column("settlement_id", sa.Uuid, _settlement(), primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("parties", sa.JSON, nullable=False),
    sa.Column("opened_at", _MOMENT, nullable=False),
    sa.Column("closed_at", _MOMENT),
    sa.CheckConstraint(
        "state IN ('review', 'refused', 'approved', 'rejected', 'lapsed')", name="compliance_case_state"
    ),
    sa.CheckConstraint(
        "(state IN ('approved', 'rejected', 'lapsed')) = (closed_at IS NOT NULL) OR state = 'refused'",
        name="compliance_case_closed",
    ),
    sa.Index("compliance_case_open", "settlement_id", postgresql_where=sa.text("closed_at IS NULL")),
)
"""A settlement that a screen did not pass. `parties` is what officers need to decide: the ultimate parties' names."""

compliance_decision = sa.Table(
    "compliance_decision",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("settlement_id", sa.Uuid, _settlement(), nullable=False),
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("decided_by", sa.Text, nullable=False),
    sa.Column("is_officer", sa.Boolean, nullable=False),
    sa.Column("key_thumbprint", sa.Text),
    sa.Column("versions", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("decided_at", _MOMENT, nullable=False),
    sa.Column("institutions", JSONB(none_as_null=True)),
    sa.CheckConstraint("is_officer = (institutions IS NULL)", name="compliance_decision_institutions"),
    sa.CheckConstraint(
        "verdict IN ('pass', 'review', 'refuse') AND NOT is_officer OR verdict IN ('approve', 'reject') AND is_officer",
        name="compliance_decision_verdict",
    ),
    sa.CheckConstraint("is_officer = (key_thumbprint IS NOT NULL)", name="compliance_decision_signed"),
    sa.CheckConstraint("NOT is_officer OR length(reason) > 0", name="compliance_decision_has_reason"),
    sa.Index(
        "compliance_decision_officer_once",
        "settlement_id",
        "decided_by",
        unique=True,
        postgresql_where=sa.text("is_officer"),
    ),
    sa.Index(
        "compliance_decision_key_once",
        "settlement_id",
        "key_thumbprint",
        unique=True,
        postgresql_where=sa.text("is_officer"),
    ),
    sa.Index("compliance_decision_of_settlement", "settlement_id", "id"),
)
"""Append-only: who decided what, by which versions, why, when; a screen on each institution that pays or is paid. A
trigger lets a settlement be quoted anew with nobody whom the screens have not passed."""

quota_year = sa.Table(
    "quota_year",
    metadata,
    sa.Column("rule", sa.Text, nullable=False),
    sa.Column("direction", sa.Text, nullable=False),
    sa.Column("resident", sa.LargeBinary, nullable=False),
    sa.Column("year", sa.SmallInteger, nullable=False),
    sa.Column("limit_minor", sa.BigInteger, nullable=False),
    sa.Column("used_numerator", sa.Numeric, nullable=False),
    sa.Column("used_denominator", sa.Numeric, nullable=False),
    sa.PrimaryKeyConstraint("rule", "direction", "resident", "year", name="quota_year_pk"),
    sa.CheckConstraint("octet_length(resident) = 32", name="quota_year_resident_hashed"),
    sa.CheckConstraint("used_denominator > 0 AND used_numerator >= 0", name="quota_year_fraction"),
    sa.CheckConstraint("used_numerator <= limit_minor * used_denominator", name="quota_year_within_limit"),
)
"""What a resident has used, an exact fraction of minor units. `resident` is an HMAC: no name and no number is here."""

quota_use = sa.Table(
    "quota_use",
    metadata,
    sa.Column("settlement_id", sa.Uuid, _settlement(), primary_key=True),
    sa.Column("rule", sa.Text, nullable=False),
    sa.Column("direction", sa.Text, nullable=False),
    sa.Column("resident", sa.LargeBinary, nullable=False),
    sa.Column("year", sa.SmallInteger, nullable=False),
    sa.Column("numerator", sa.Numeric, nullable=False),
    sa.Column("denominator", sa.Numeric, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reserved_at", _MOMENT, nullable=False),
    sa.Column("ended_at", _MOMENT),
    sa.ForeignKeyConstraint(
        ["rule", "direction", "resident", "year"],
        ["quota_year.rule", "quota_year.direction", "quota_year.resident", "quota_year.year"],
        name="quota_use_of_year",
    ),
    sa.CheckConstraint("denominator > 0 AND numerator > 0", name="quota_use_fraction"),
    sa.CheckConstraint("state IN ('reserved', 'used', 'released')", name="quota_use_state"),
    sa.CheckConstraint("(state = 'reserved') = (ended_at IS NULL)", name="quota_use_ended"),
    sa.Index("quota_use_reserved", "settlement_id", postgresql_where=sa.text("state = 'reserved'")),
)
"""What one settlement counts; given back once if it is cancelled."""
