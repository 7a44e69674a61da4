"""The tables of the transparency log: INSERT only. All but the cosignatures follow from the journal and the keys."""

from __future__ import annotations

import sqlalchemy as sa

from ledger.store.tables import metadata

_time = sa.DateTime(timezone=True)

log_identity = sa.Table(
    "log_identity",
    metadata,
    sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("vkey", sa.Text, nullable=False),
    sa.Column("salt_check", sa.LargeBinary, nullable=False),
    sa.Column("created_at", _time, nullable=False),
    sa.CheckConstraint("id = 1", name="log_identity_is_single"),
)
"""Which keys the log was begun with: it goes on with these or not at all. `salt_check` is a commitment to the salts'
master key that does not reveal it."""

log_tile = sa.Table(
    "log_tile",
    metadata,
    sa.Column("level", sa.SmallInteger, nullable=False),
    sa.Column("index", sa.BigInteger, nullable=False),
    sa.Column("hashes", sa.LargeBinary, nullable=False),
    sa.Column("root", sa.LargeBinary, nullable=False),
    sa.PrimaryKeyConstraint("level", "index", name="log_tile_pkey"),
    sa.CheckConstraint("octet_length(hashes) = 8192 AND octet_length(root) = 32", name="log_tile_is_full"),
)
"""Full tiles. Their roots are the hashes of the level above, so a partial tile above level 0 is a range of roots."""

log_checkpoint = sa.Table(
    "log_checkpoint",
    metadata,
    sa.Column("block", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("previous_block", sa.BigInteger, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("previous_size", sa.BigInteger, nullable=False),
    sa.Column("root", sa.LargeBinary, nullable=False),
    sa.Column("block_commitment", sa.LargeBinary, nullable=False),
    sa.Column("tail", sa.LargeBinary, nullable=False),
    sa.Column("supply", sa.LargeBinary, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("sealed_at", _time, nullable=False),
    # One line of checkpoints, whoever writes: each follows one that no other follows.
    sa.UniqueConstraint("previous_block", name="log_checkpoint_follows_one"),
    sa.CheckConstraint("previous_block >= 0 AND block > previous_block", name="log_checkpoint_comes_after"),
    sa.CheckConstraint("previous_size >= -1 AND size >= previous_size", name="log_checkpoint_never_shrinks"),
    sa.Index("log_checkpoint_of_size", "size", "block"),
    sa.Index("log_checkpoint_grown", "size", unique=True, postgresql_where=sa.text("size > previous_size")),
)
"""One a block at most; a block says the size. Blocks without transfers are sealed too, so several may be of one size:
the same tree, under a later block. `log_checkpoint_grown`: those whose tree is larger than the one before.

`tail`: the leaf hashes that came since the previous checkpoint into the tile that is still partial; so the partial
tile is the tails of its checkpoints. `supply`: the supply statement as it was signed. `note`: with the log's own
signature. The first checkpoint is of the empty log: it follows block 0 and size -1."""

log_cosignature = sa.Table(
    "log_cosignature",
    metadata,
    sa.Column("block", sa.BigInteger, nullable=False),
    sa.Column("witness", sa.Text, nullable=False),
    sa.Column("line", sa.Text, nullable=False),
    sa.Column("received_at", _time, nullable=False),
    sa.PrimaryKeyConstraint("block", "witness", name="log_cosignature_pkey"),
)
"""Signature lines of witnesses, each verified before it was stored. `block`: the checkpoint's. `witness`: its vkey."""

log_incident = sa.Table(
    "log_incident",
    metadata,
    sa.Column("witness", sa.Text, nullable=False),
    sa.Column("block", sa.BigInteger, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("noticed_at", _time, nullable=False),
    sa.PrimaryKeyConstraint("witness", "block", name="log_incident_pkey"),
)
"""Which checkpoint a witness refused as inconsistent with what it had seen: a person must find out why."""

log_acknowledgement = sa.Table(
    "log_acknowledgement",
    metadata,
    sa.Column("witness", sa.Text, nullable=False),
    sa.Column("block", sa.BigInteger, nullable=False),
    sa.Column("operator", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("acknowledged_at", _time, nullable=False),
    sa.PrimaryKeyConstraint("witness", "block", name="log_acknowledgement_pkey"),
    sa.CheckConstraint("length(reason) BETWEEN 1 AND 1000", name="log_acknowledgement_says_why"),
)
"""What an operator (key thumbprint) found out about an incident, once for each, for ever."""
