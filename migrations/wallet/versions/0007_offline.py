"""Offline purses: certificates, fundings, value objects, spends, proofs, payouts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

# What a caught device has left is not its holder's before the vault has back what it paid for it.
HELD = """CREATE FUNCTION purse_payout_refuse_held() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.kind = 'redeem' AND EXISTS (
        SELECT FROM purse WHERE id = NEW.purse_id AND account = NEW.account AND revoked_for = 'double-spend'
        AND (closed_at IS NULL OR recovered_minor < loss_minor)
    ) THEN
        RAISE EXCEPTION 'the rest of a double spender''s purse is held'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'purse_payout_held_i3';
    END IF;
    RETURN NEW;
END
$$"""


def upgrade() -> None:
    op.create_table(
        "purse_escrow",
        sa.Column("ledger", sa.Text(), nullable=False),
        sa.Column("opening_id", sa.Uuid(), nullable=False),
        sa.Column("account", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("ledger", name=op.f("purse_escrow_pk")),
        sa.UniqueConstraint("opening_id", name=op.f("purse_escrow_opening_id_uq")),
    )
    op.create_table(
        "purse",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.Column("account", sa.BigInteger(), nullable=False),
        sa.Column("certificate", sa.LargeBinary(), nullable=False),
        sa.Column("certificate_hash", sa.LargeBinary(), nullable=False),
        sa.Column("device_thumbprint", sa.Text(), nullable=False),
        sa.Column("balance_max_minor", sa.BigInteger(), nullable=False),
        sa.Column("not_after", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closes_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("loss_minor", sa.BigInteger(), nullable=False),
        sa.Column("recovered_minor", sa.BigInteger(), nullable=False),
        sa.Column("spends", sa.Integer(), nullable=False),
        sa.Column("revoked_for", sa.Text(), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("revoked_for IN ('lost', 'expired', 'double-spend')", name=op.f("purse_revoked_for_ck")),
        sa.CheckConstraint("(revoked_for IS NULL) = (revoked_at IS NULL)", name=op.f("purse_revoked_at_ck")),
        sa.CheckConstraint(
            "0 <= loss_minor AND loss_minor <= balance_max_minor", name=op.f("purse_loss_is_bounded_ck")
        ),
        sa.CheckConstraint(
            "0 <= recovered_minor AND recovered_minor <= loss_minor", name=op.f("purse_recovered_is_lost_ck")
        ),
        sa.CheckConstraint(
            "not_after <= closes_at AND (closed_at IS NULL OR closes_at <= closed_at)", name=op.f("purse_closes_ck")
        ),
        sa.ForeignKeyConstraint(["wallet_id"], ["wallet.id"], name=op.f("purse_wallet_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("purse_pk")),
        sa.UniqueConstraint("certificate_hash", name=op.f("purse_certificate_hash_uq")),
        sa.UniqueConstraint("device_thumbprint", name=op.f("purse_device_thumbprint_uq")),
    )
    op.create_index(
        "purse_active",
        "purse",
        ["wallet_id"],
        unique=True,
        postgresql_where=sa.text("revoked_for IS NULL AND closed_at IS NULL"),
    )
    op.create_index("purse_open", "purse", ["closes_at"], unique=False, postgresql_where=sa.text("closed_at IS NULL"))
    op.create_index("purse_wallet_id", "purse", ["wallet_id"], unique=False)
    op.create_table(
        "purse_funding",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("purse_id", sa.Uuid(), nullable=False),
        sa.Column("debit_account", sa.BigInteger(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("instruction", sa.Text(), nullable=False),
        sa.Column("valid_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("counted_on", sa.Date(), nullable=False),
        sa.Column("refusal", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.Column("booked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("message", sa.LargeBinary(), nullable=True),
        sa.Column("tried_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "(state = 'final') = (booked_at IS NOT NULL AND message IS NOT NULL)",
            name=op.f("purse_funding_message_after_final_ck"),
        ),
        sa.CheckConstraint(
            "(state = 'refused') = (refusal IS NOT NULL)", name=op.f("purse_funding_refused_says_why_ck")
        ),
        sa.CheckConstraint("state IN ('initiated', 'final', 'refused')", name=op.f("purse_funding_state_ck")),
        sa.CheckConstraint("amount_minor > 0", name=op.f("purse_funding_amount_positive_ck")),
        sa.ForeignKeyConstraint(["purse_id"], ["purse.id"], name=op.f("purse_funding_purse_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("purse_funding_pk")),
    )
    op.create_index("purse_funding_purse_id", "purse_funding", ["purse_id"], unique=False)
    op.create_index(
        "purse_funding_unfinished",
        "purse_funding",
        ["tried_at"],
        unique=False,
        postgresql_where=sa.text("state = 'initiated'"),
    )
    op.create_table(
        "purse_source",
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("purse_id", sa.Uuid(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("backed_minor", sa.BigInteger(), nullable=False),
        sa.Column("covered_minor", sa.BigInteger(), nullable=False),
        sa.Column("answers_for", sa.Uuid(), nullable=True),
        sa.CheckConstraint(
            "0 <= covered_minor AND covered_minor <= backed_minor", name=op.f("purse_source_covered_once_ck")
        ),
        sa.CheckConstraint(
            "backed_minor <= amount_minor AND amount_minor > 0", name=op.f("purse_source_backed_within_amount_ck")
        ),
        sa.ForeignKeyConstraint(["answers_for"], ["purse.id"], name=op.f("purse_source_answers_for_fk")),
        sa.ForeignKeyConstraint(["purse_id"], ["purse.id"], name=op.f("purse_source_purse_id_fk")),
        sa.PrimaryKeyConstraint("hash", name=op.f("purse_source_pk")),
    )
    op.create_index("purse_source_purse_id", "purse_source", ["purse_id"], unique=False)
    op.create_table(
        "purse_spend",
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("payer_id", sa.Uuid(), nullable=False),
        sa.Column("payee_id", sa.Uuid(), nullable=False),
        sa.Column("counter", sa.Integer(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("borne_minor", sa.BigInteger(), nullable=False),
        sa.Column("short_minor", sa.BigInteger(), nullable=False),
        sa.Column("is_paid_out", sa.Boolean(), nullable=False),
        sa.Column("message", sa.LargeBinary(), nullable=False),
        sa.Column("arrived_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "borne_minor + short_minor <= amount_minor AND amount_minor > 0",
            name=op.f("purse_spend_parts_within_amount_ck"),
        ),
        sa.CheckConstraint("borne_minor >= 0 AND short_minor >= 0", name=op.f("purse_spend_parts_not_negative_ck")),
        sa.ForeignKeyConstraint(["payee_id"], ["purse.id"], name=op.f("purse_spend_payee_id_fk")),
        sa.ForeignKeyConstraint(["payer_id"], ["purse.id"], name=op.f("purse_spend_payer_id_fk")),
        sa.PrimaryKeyConstraint("hash", name=op.f("purse_spend_pk")),
    )
    op.create_index("purse_spend_payee", "purse_spend", ["payee_id"], unique=False)
    op.create_index("purse_spend_payer", "purse_spend", ["payer_id", "counter"], unique=False)
    op.create_table(
        "purse_part",
        sa.Column("spend_hash", sa.LargeBinary(), nullable=False),
        sa.Column("position", sa.SmallInteger(), nullable=False),
        sa.Column("source_hash", sa.LargeBinary(), nullable=False),
        sa.Column("lower_minor", sa.BigInteger(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("lower_minor >= 0 AND amount_minor > 0", name=op.f("purse_part_interval_ck")),
        sa.ForeignKeyConstraint(["source_hash"], ["purse_source.hash"], name=op.f("purse_part_source_hash_fk")),
        sa.ForeignKeyConstraint(["spend_hash"], ["purse_spend.hash"], name=op.f("purse_part_spend_hash_fk")),
        sa.PrimaryKeyConstraint("spend_hash", "position", name="purse_part_pk"),
    )
    op.create_index("purse_part_source", "purse_part", ["source_hash"], unique=False)
    op.create_table(
        "purse_proof",
        sa.Column("purse_id", sa.Uuid(), nullable=False),
        sa.Column("proof", sa.LargeBinary(), nullable=False),
        sa.Column("found_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["purse_id"], ["purse.id"], name=op.f("purse_proof_purse_id_fk")),
        sa.PrimaryKeyConstraint("purse_id", name=op.f("purse_proof_pk")),
    )
    op.create_table(
        "purse_payout",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("purse_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("event", sa.LargeBinary(), nullable=False),
        sa.Column("account", sa.BigInteger(), nullable=True),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.Column("booked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("refusal", sa.Text(), nullable=True),
        sa.Column("tried_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "(kind = 'redeem') = (account IS NOT NULL)", name=op.f("purse_payout_redeem_names_a_wallet_ck")
        ),
        sa.CheckConstraint("kind IN ('redeem', 'loss', 'recovery')", name=op.f("purse_payout_kind_ck")),
        sa.CheckConstraint("amount_minor > 0", name=op.f("purse_payout_amount_positive_ck")),
        sa.ForeignKeyConstraint(["purse_id"], ["purse.id"], name=op.f("purse_payout_purse_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("purse_payout_pk")),
        sa.UniqueConstraint("purse_id", "kind", "event", name="purse_payout_event_i7"),
    )
    op.create_index("purse_payout_event", "purse_payout", ["event"], unique=False)
    op.create_index(
        "purse_payout_pending",
        "purse_payout",
        ["created_at"],
        unique=False,
        postgresql_where=sa.text("booked_at IS NULL"),
    )
    op.execute(HELD)
    op.execute(
        "CREATE TRIGGER purse_payout_held_i3 BEFORE INSERT ON purse_payout"
        " FOR EACH ROW EXECUTE FUNCTION purse_payout_refuse_held()"
    )


def downgrade() -> None:
    for name in ("purse_payout", "purse_proof", "purse_part", "purse_spend", "purse_source", "purse_funding", "purse"):
        op.drop_table(name)
    op.drop_table("purse_escrow")
    op.execute("DROP FUNCTION purse_payout_refuse_held")
