"""The ledger's tables. The journal (`block`, `transfer`, `evidence`, `hold_event`, `hold_tombstone`, `account`,
`directive`) is append-only (I4); the rest can be rebuilt from it or guards the door.

The hot path is COPY, INSERT and one compare-and-set: no triggers, sequences, foreign keys or LISTEN, so the same
schema runs on one embedded PostgreSQL and on a distributed one. The journal's one unique constraint is the transfer
id (I7); `seq` is dense because one fenced sequencer assigns it and each block proves it.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import UUID

from kernel.crypto.nonces import nonce_table

metadata = sa.MetaData()

_time = sa.DateTime(timezone=True)

lease = sa.Table(
    "lease",
    metadata,
    sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("node", sa.Text, nullable=False),
    sa.Column("renewed_at", _time, nullable=False),
    sa.CheckConstraint("id = 1", name="lease_is_single"),
)
"""One writer: every block's transaction moves `renewed_at` where `epoch` is still its own."""

block = sa.Table(
    "block",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("booked_at", _time, nullable=False),
    sa.Column("first_seq", sa.BigInteger, nullable=False),
    sa.Column("transfer_count", sa.Integer, nullable=False),
    sa.Column("transfers_digest", sa.LargeBinary, nullable=False),
    sa.Column("evidence_digest", sa.LargeBinary, nullable=False),
    sa.Column("first_directive", sa.BigInteger, nullable=False),
    sa.Column("directive_count", sa.Integer, nullable=False),
    sa.Column("directives_digest", sa.LargeBinary, nullable=False),
    sa.Column("first_account", sa.BigInteger, nullable=False),
    sa.Column("account_count", sa.Integer, nullable=False),
    sa.Column("issued", sa.BigInteger, nullable=False),
    sa.Column("redeemed", sa.BigInteger, nullable=False),
    sa.Column("vaults", sa.BigInteger, nullable=False),
    sa.Column("wallets", sa.BigInteger, nullable=False),
    sa.Column("offline", sa.BigInteger, nullable=False),
    sa.Column("held", sa.BigInteger, nullable=False),
    sa.Column("accounts_digest", sa.LargeBinary, nullable=False),
    sa.Column("previous_hash", sa.LargeBinary, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sa.CheckConstraint("transfer_count >= 0 AND directive_count >= 0 AND account_count >= 0", name="block_counts"),
    sa.CheckConstraint("issued - redeemed = vaults + wallets + offline AND held >= 0", name="block_i2"),
)

transfer = sa.Table(
    "transfer",
    metadata,
    sa.Column("id", UUID, primary_key=True),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("debit_account", sa.BigInteger, nullable=False),
    sa.Column("credit_account", sa.BigInteger, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("booked_at", _time, nullable=False),
    sa.Column("submitter", sa.Integer, nullable=False),
    sa.Column("kind", sa.SmallInteger, nullable=False),
    sa.Column("hold_id", UUID),
    sa.Column("reference", UUID),
    sa.Index("transfer_seq", "seq"),
    # I1 beside the state machine; kind 12 is the tombstone, which moves nothing
    sa.CheckConstraint(
        "(kind = 12 AND amount_minor = 0 AND debit_account = 0 AND credit_account = 0) OR (kind <> 12 AND"
        " amount_minor > 0 AND debit_account > 0 AND credit_account > 0 AND debit_account <> credit_account)",
        name="transfer_i1",
    ),
)

"""Wide columns first: no padding. The history of an account is found by `history_page`."""

history_run = sa.Table(
    "history_run",
    metadata,
    sa.Column("first_seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("last_seq", sa.BigInteger, nullable=False),
)
"""Ranges of seq that are indexed by account; dense from seq 1. Written with their pages in one transaction."""

history_page = sa.Table(
    "history_page",
    metadata,
    sa.Column("run", sa.BigInteger, nullable=False),
    sa.Column("first_account", sa.BigInteger, nullable=False),
    sa.Column("first_seq", sa.BigInteger, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.PrimaryKeyConstraint("run", "first_account", "first_seq", name="history_page_pkey"),
)
"""The transfers of a run (its first seq) by account, then seq: see `ledger.store.history`. Can be rebuilt from
`transfer`."""

history_mark = sa.Table(
    "history_mark",
    metadata,
    sa.Column("place", sa.BigInteger, nullable=False),
    sa.Column("run", sa.BigInteger, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.PrimaryKeyConstraint("place", "run", name="history_mark_pkey"),
)
"""Which runs of a group of eight (`run`: the first) an account is in: a byte an account, a bit a run. By place first,
so that an account's bytes of all groups lie side by side in the key. Written with the group's last run."""

evidence = sa.Table(
    "evidence",
    metadata,
    sa.Column("transfer_id", UUID, nullable=False),
    sa.Column("kind", sa.SmallInteger, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.PrimaryKeyConstraint("transfer_id", "kind", name="evidence_pkey"),
    sa.Index("evidence_seq", "seq"),
)
"""Instructions, secrets, mandate numbers: whose authority moved the money (I8)."""

hold_event = sa.Table(
    "hold_event",
    metadata,
    sa.Column("hold_id", UUID, nullable=False),
    sa.Column("phase", sa.SmallInteger, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("transfer_id", UUID, nullable=False),
    sa.Column("kind", sa.SmallInteger, nullable=False),
    sa.Column("commit_hash", sa.LargeBinary),
    sa.Column("abort_hash", sa.LargeBinary),
    sa.Column("expires_at", _time),
    # I6 beside the state machine: a hold is placed once (phase 0) and ends once (phase 1)
    sa.PrimaryKeyConstraint("hold_id", "phase", name="hold_event_i6"),
    sa.Index("hold_event_seq", "seq"),
    sa.CheckConstraint("phase IN (0, 1)", name="hold_event_phase"),
)

hold_tombstone = sa.Table(
    "hold_tombstone",
    metadata,
    sa.Column("hold_id", UUID, nullable=False),
    sa.Column("guard", sa.LargeBinary, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("transfer_id", UUID, nullable=False),
    sa.PrimaryKeyConstraint("hold_id", "guard", name="hold_tombstone_pkey"),
    sa.Index("hold_tombstone_seq", "seq"),
)

account = sa.Table(
    "account",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("opening_id", UUID, nullable=False, unique=True),
    sa.Column("kind", sa.SmallInteger, nullable=False),
    sa.Column("participant", sa.Integer, nullable=False),
    sa.Column("rule_class", sa.Text, nullable=False),
    sa.Column("holder_key", sa.LargeBinary),
    sa.Column("opened_at", _time, nullable=False),
    sa.CheckConstraint("(kind = 2) = (holder_key IS NOT NULL)", name="account_i8"),
)
"""As opened. Freezes are directives; balances are in `account_balance`."""

directive = sa.Table(
    "directive",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("mandate_id", UUID, unique=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("booked_at", _time, nullable=False),
)
"""Genesis and executed mandates with all their signatures; a mandate acts once (unique)."""

snapshot = sa.Table(
    "snapshot",
    metadata,
    sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("block", sa.BigInteger, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.CheckConstraint("id = 1", name="snapshot_is_single"),
)
"""Through which block `balance_page`, `participant_balance` and `open_hold` speak."""

balance_page = sa.Table(
    "balance_page",
    metadata,
    sa.Column("page", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("least_available", sa.BigInteger, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.CheckConstraint("octet_length(body) = 1536", name="balance_page_size"),
    # I3 beside the state machine: the smallest available balance of the page's holders
    sa.CheckConstraint("least_available >= 0", name="balance_page_i3"),
)
"""Totals of the 32 accounts from 32 * page on: for each six signed integers of 8 bytes, big-endian, in the order of
`ledger.domain.state.COLUMNS`. The view `account_balance` shows them as rows, `account_balance_now` with the tail."""

participant_balance = sa.Table(
    "participant_balance",
    metadata,
    sa.Column("participant", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("outstanding", sa.BigInteger, nullable=False),
)

open_hold = sa.Table(
    "open_hold",
    metadata,
    sa.Column("hold_id", UUID, primary_key=True),
    sa.Column("debit_account", sa.BigInteger, nullable=False),
    sa.Column("credit_account", sa.BigInteger, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("commit_hash", sa.LargeBinary),
    sa.Column("abort_hash", sa.LargeBinary),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("counted", sa.Boolean, nullable=False),
    sa.Column("day", sa.Integer, nullable=False),
    sa.Column("year", sa.Integer, nullable=False),
)

mandate = sa.Table(
    "mandate",
    metadata,
    sa.Column("id", UUID, primary_key=True),
    sa.Column("proposal", sa.Text, nullable=False),
    sa.Column("proposal_sha256", sa.LargeBinary, nullable=False),
    sa.Column("maker", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("refusal", sa.Text),
    sa.Column("directive", sa.BigInteger),
    sa.Column("proposed_at", _time, nullable=False),
    sa.Column("valid_until", _time, nullable=False),
    sa.CheckConstraint("status IN ('proposed', 'executed', 'refused')", name="mandate_status"),
    sa.Index("mandate_status_proposed_at", "status", "proposed_at"),
)
"""The maker-checker queue. What a mandate did is in `directive`, which alone the engine believes."""

mandate_approval = sa.Table(
    "mandate_approval",
    metadata,
    sa.Column("mandate", UUID, nullable=False),
    sa.Column("operator", sa.Text, nullable=False),
    sa.Column("approval", sa.Text, nullable=False),
    sa.Column("approved_at", _time, nullable=False),
    sa.PrimaryKeyConstraint("mandate", "operator", name="mandate_approval_pkey"),
)
"""One row an operator: nobody approves twice."""

request_nonce = nonce_table(metadata)
