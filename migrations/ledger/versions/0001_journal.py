"""The journal, the snapshot beside it, the lease, and the mandates' queue."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None

STATEMENTS = (
    """CREATE TABLE account (
    number BIGINT NOT NULL,
    opening_id UUID NOT NULL,
    kind SMALLINT NOT NULL,
    participant INTEGER NOT NULL,
    rule_class TEXT NOT NULL,
    holder_key BYTEA,
    opened_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (number),
    CONSTRAINT account_i8 CHECK ((kind = 2) = (holder_key IS NOT NULL)),
    UNIQUE (opening_id)
)""",
    """CREATE TABLE balance_page (
    page BIGINT NOT NULL,
    least_available BIGINT NOT NULL,
    body BYTEA NOT NULL,
    PRIMARY KEY (page),
    CONSTRAINT balance_page_size CHECK (octet_length(body) = 1536),
    CONSTRAINT balance_page_i3 CHECK (least_available >= 0)
)""",
    """CREATE TABLE block (
    number BIGINT NOT NULL,
    epoch BIGINT NOT NULL,
    booked_at TIMESTAMP WITH TIME ZONE NOT NULL,
    first_seq BIGINT NOT NULL,
    transfer_count INTEGER NOT NULL,
    transfers_digest BYTEA NOT NULL,
    evidence_digest BYTEA NOT NULL,
    first_directive BIGINT NOT NULL,
    directive_count INTEGER NOT NULL,
    directives_digest BYTEA NOT NULL,
    first_account BIGINT NOT NULL,
    account_count INTEGER NOT NULL,
    issued BIGINT NOT NULL,
    redeemed BIGINT NOT NULL,
    vaults BIGINT NOT NULL,
    wallets BIGINT NOT NULL,
    offline BIGINT NOT NULL,
    held BIGINT NOT NULL,
    accounts_digest BYTEA NOT NULL,
    previous_hash BYTEA NOT NULL,
    hash BYTEA NOT NULL,
    PRIMARY KEY (number),
    CONSTRAINT block_counts CHECK (transfer_count >= 0 AND directive_count >= 0 AND account_count >= 0),
    CONSTRAINT block_i2 CHECK (issued - redeemed = vaults + wallets + offline AND held >= 0)
)""",
    """CREATE TABLE directive (
    number BIGINT NOT NULL,
    kind TEXT NOT NULL,
    mandate_id UUID,
    body BYTEA NOT NULL,
    booked_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (number),
    UNIQUE (mandate_id)
)""",
    """CREATE TABLE evidence (
    transfer_id UUID NOT NULL,
    kind SMALLINT NOT NULL,
    seq BIGINT NOT NULL,
    body BYTEA NOT NULL,
    CONSTRAINT evidence_pkey PRIMARY KEY (transfer_id, kind)
)""",
    """CREATE INDEX evidence_seq ON evidence (seq)""",
    """CREATE TABLE history_run (
    first_seq BIGINT NOT NULL,
    last_seq BIGINT NOT NULL,
    PRIMARY KEY (first_seq)
)""",
    """CREATE TABLE history_page (
    run BIGINT NOT NULL,
    first_account BIGINT NOT NULL,
    first_seq BIGINT NOT NULL,
    body BYTEA NOT NULL,
    CONSTRAINT history_page_pkey PRIMARY KEY (run, first_account, first_seq)
) WITH (toast_tuple_target = 8160)""",
    """CREATE TABLE history_mark (
    place BIGINT NOT NULL,
    run BIGINT NOT NULL,
    body BYTEA NOT NULL,
    CONSTRAINT history_mark_pkey PRIMARY KEY (place, run)
)""",
    """CREATE TABLE hold_event (
    hold_id UUID NOT NULL,
    phase SMALLINT NOT NULL,
    seq BIGINT NOT NULL,
    transfer_id UUID NOT NULL,
    kind SMALLINT NOT NULL,
    commit_hash BYTEA,
    abort_hash BYTEA,
    expires_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT hold_event_i6 PRIMARY KEY (hold_id, phase),
    CONSTRAINT hold_event_phase CHECK (phase IN (0, 1))
)""",
    """CREATE INDEX hold_event_seq ON hold_event (seq)""",
    """CREATE TABLE hold_tombstone (
    hold_id UUID NOT NULL,
    guard BYTEA NOT NULL,
    seq BIGINT NOT NULL,
    transfer_id UUID NOT NULL,
    CONSTRAINT hold_tombstone_pkey PRIMARY KEY (hold_id, guard)
)""",
    """CREATE INDEX hold_tombstone_seq ON hold_tombstone (seq)""",
    """CREATE TABLE lease (
    id SMALLINT NOT NULL,
    epoch BIGINT NOT NULL,
    node TEXT NOT NULL,
    renewed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT lease_is_single CHECK (id = 1)
)""",
    """CREATE TABLE mandate (
    id UUID NOT NULL,
    proposal TEXT NOT NULL,
    proposal_sha256 BYTEA NOT NULL,
    maker TEXT NOT NULL,
    status TEXT NOT NULL,
    refusal TEXT,
    directive BIGINT,
    proposed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    valid_until TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT mandate_status CHECK (status IN ('proposed', 'executed', 'refused'))
)""",
    """CREATE INDEX mandate_status_proposed_at ON mandate (status, proposed_at)""",
    """CREATE TABLE mandate_approval (
    mandate UUID NOT NULL,
    operator TEXT NOT NULL,
    approval TEXT NOT NULL,
    approved_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT mandate_approval_pkey PRIMARY KEY (mandate, operator)
)""",
    """CREATE TABLE open_hold (
    hold_id UUID NOT NULL,
    debit_account BIGINT NOT NULL,
    credit_account BIGINT NOT NULL,
    amount_minor BIGINT NOT NULL,
    commit_hash BYTEA,
    abort_hash BYTEA,
    expires_at BIGINT NOT NULL,
    counted BOOLEAN NOT NULL,
    day INTEGER NOT NULL,
    year INTEGER NOT NULL,
    PRIMARY KEY (hold_id)
)""",
    """CREATE TABLE participant_balance (
    participant INTEGER NOT NULL,
    outstanding BIGINT NOT NULL,
    PRIMARY KEY (participant)
)""",
    """CREATE TABLE request_nonce (
    key_id TEXT NOT NULL,
    nonce TEXT NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT request_nonce_pk PRIMARY KEY (key_id, nonce)
)""",
    """CREATE INDEX request_nonce_expires_at ON request_nonce (expires_at)""",
    """CREATE TABLE snapshot (
    id SMALLINT NOT NULL,
    block BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT snapshot_is_single CHECK (id = 1)
)""",
    """CREATE TABLE transfer (
    id UUID NOT NULL,
    seq BIGINT NOT NULL,
    debit_account BIGINT NOT NULL,
    credit_account BIGINT NOT NULL,
    amount_minor BIGINT NOT NULL,
    booked_at TIMESTAMP WITH TIME ZONE NOT NULL,
    submitter INTEGER NOT NULL,
    kind SMALLINT NOT NULL,
    hold_id UUID,
    reference UUID,
    PRIMARY KEY (id),
    CONSTRAINT transfer_i1 CHECK ((kind = 12 AND amount_minor = 0 AND debit_account = 0
        AND credit_account = 0) OR (kind <> 12 AND amount_minor > 0 AND debit_account > 0
        AND credit_account > 0 AND debit_account <> credit_account))
)""",
    """CREATE INDEX transfer_seq ON transfer (seq)""",
    """CREATE FUNCTION int8_at(body BYTEA, place INTEGER) RETURNS BIGINT LANGUAGE SQL IMMUTABLE PARALLEL SAFE AS $$
    SELECT ('x' || encode(substring(body FROM place * 8 + 1 FOR 8), 'hex'))::bit(64)::bigint
$$""",
    """CREATE VIEW account_balance AS
SELECT * FROM (
    SELECT p.page * 32 + i AS account,
        int8_at(p.body, i * 6) AS debits_posted, int8_at(p.body, i * 6 + 1) AS credits_posted,
        int8_at(p.body, i * 6 + 2) AS debits_pending, int8_at(p.body, i * 6 + 3) AS credits_pending,
        int8_at(p.body, i * 6 + 4) AS spent_day, int8_at(p.body, i * 6 + 5) AS spent_year
    FROM balance_page p CROSS JOIN generate_series(0, 31) AS i
) AS every
WHERE debits_posted <> 0 OR credits_posted <> 0 OR debits_pending <> 0 OR credits_pending <> 0""",
    """CREATE VIEW account_balance_now AS
WITH tail AS (
    SELECT t.* FROM transfer t WHERE t.seq > COALESCE((SELECT seq FROM snapshot), 0)
), moved AS (
    SELECT debit_account AS account, amount_minor AS debits, 0 AS credits FROM tail WHERE kind NOT IN (7, 9, 10, 12)
    UNION ALL
    SELECT credit_account, 0, amount_minor FROM tail WHERE kind NOT IN (7, 9, 10, 12)
), sums AS (
    SELECT account, SUM(debits) AS debits, SUM(credits) AS credits FROM moved GROUP BY account
)
SELECT COALESCE(b.account, s.account) AS account,
    COALESCE(b.debits_posted, 0) + COALESCE(s.debits, 0) AS debits_posted,
    COALESCE(b.credits_posted, 0) + COALESCE(s.credits, 0) AS credits_posted
FROM account_balance b FULL JOIN sums s ON s.account = b.account""",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
