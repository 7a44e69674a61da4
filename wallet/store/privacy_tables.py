"""Tables of erasure, of unmasking, and of the privacy log. All are only added to: no grant changes a row of them.

The keys repeat the rules: no disclosure without an entry in the log, none without two approvals by different officers,
none of whom gave the order, and one disclosure an order.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from wallet.store.tables import metadata

_Moment = sa.DateTime(timezone=True)

customer_erasure = sa.Table(
    "customer_erasure",
    metadata,
    sa.Column("customer_id", sa.Uuid, sa.ForeignKey("customer.id"), primary_key=True),
    sa.Column("id", sa.Uuid, nullable=False, unique=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("erased_by", sa.Text, nullable=False),
    sa.Column("erased_at", _Moment, nullable=False),
    sa.CheckConstraint("reason IN ('requested', 'retention-ended', 'registered-in-error')", name="reason"),
)

unmask_case = sa.Table(
    "unmask_case",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    # The officer's signed order: the truth, of which the other columns are a reading.
    sa.Column("token", sa.Text, nullable=False),
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("wallet.id"), nullable=False),
    sa.Column("customer_id", sa.Uuid, sa.ForeignKey("customer.id"), nullable=False),
    sa.Column("officer", sa.Text, nullable=False),
    sa.Column("officer_name", sa.Text, nullable=False),
    sa.Column("officer_key", JSONB, nullable=False),
    sa.Column("valid_until", _Moment, nullable=False),
    sa.Column("created_at", _Moment, nullable=False),
    sa.UniqueConstraint("id", "officer", name="unmask_case_officer_uq"),
    sa.CheckConstraint(
        "valid_until > created_at AND valid_until <= created_at + interval '7 days'", name="valid_for_a_while"
    ),
    sa.Index("unmask_case_customer", "customer_id"),
)

unmask_approval = sa.Table(
    "unmask_approval",
    metadata,
    sa.Column("case_id", sa.Uuid, nullable=False),
    sa.Column("officer", sa.Text, nullable=False),
    sa.Column("requested_by", sa.Text, nullable=False),
    sa.Column("officer_name", sa.Text, nullable=False),
    sa.Column("officer_key", JSONB, nullable=False),
    sa.Column("token", sa.Text, nullable=False),
    sa.Column("created_at", _Moment, nullable=False),
    sa.PrimaryKeyConstraint("case_id", "officer", name="unmask_approval_pk"),
    sa.ForeignKeyConstraint(
        ["case_id", "requested_by"], ["unmask_case.id", "unmask_case.officer"], name="unmask_approval_case_fk"
    ),
    sa.CheckConstraint("officer <> requested_by", name="not_his_own"),
    sa.UniqueConstraint("case_id", "officer_name", name="unmask_approval_name_uq"),
)

privacy_entry = sa.Table(
    "privacy_entry",
    metadata,
    sa.Column("index", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("commitment", sa.LargeBinary, nullable=False, unique=True),
    sa.CheckConstraint("index >= 0", name="index"),
    sa.CheckConstraint("octet_length(commitment) = 32", name="commitment"),
)

privacy_checkpoint = sa.Table(
    "privacy_checkpoint",
    metadata,
    sa.Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("last_index", sa.BigInteger, sa.ForeignKey("privacy_entry.index"), nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.CheckConstraint("size = last_index + 1", name="covers_its_entries"),
)

unmask_disclosure = sa.Table(
    "unmask_disclosure",
    metadata,
    sa.Column("case_id", sa.Uuid, sa.ForeignKey("unmask_case.id"), primary_key=True),
    sa.Column("first_approver", sa.Text, nullable=False),
    sa.Column("second_approver", sa.Text, nullable=False),
    sa.Column("entry_index", sa.BigInteger, sa.ForeignKey("privacy_entry.index"), nullable=False, unique=True),
    sa.Column("salt", sa.LargeBinary, nullable=False),
    sa.Column("entry", sa.Text, nullable=False),
    sa.Column("disclosed_at", _Moment, nullable=False),
    sa.ForeignKeyConstraint(
        ["case_id", "first_approver"],
        ["unmask_approval.case_id", "unmask_approval.officer"],
        name="unmask_disclosure_first_fk",
    ),
    sa.ForeignKeyConstraint(
        ["case_id", "second_approver"],
        ["unmask_approval.case_id", "unmask_approval.officer"],
        name="unmask_disclosure_second_fk",
    ),
    sa.CheckConstraint("first_approver <> second_approver", name="two_approvers"),
    sa.CheckConstraint("octet_length(salt) = 32", name="salt"),
)
