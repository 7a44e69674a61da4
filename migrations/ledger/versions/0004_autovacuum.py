"""When autovacuum comes to the tables that grow with the journal, and how fast it works there.

Nothing in these tables but `balance_page` is ever updated or deleted, so there is no bloat to remove. Vacuum is needed
for two things: to freeze rows, or a wraparound vacuum would one day read the whole journal at once; and to set the
visibility map. By default it comes after 1,000 + 20 % of the rows: at 50 million transfers after 10 million more, at a
billion after 200 million, each time a longer run. A fixed number makes every run equally long, whatever the size. (With
no dead rows the indexes are not read, and pages that are frozen are never read again: a run costs what is new.)

Sources: PostgreSQL documentation, "Routine Vacuuming" and "Storage Parameters"; L. Albe, "Tuning autovacuum for
insert-only tables" (2020).
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"

# Rows are frozen when they are first visited, while their page is in memory and being written anyway. The default waits
# until they are 50 million transactions old: with up to 8,192 transfers a transaction that is every page a second time,
# years later, from disk. Nothing is lost by it: no row here ever changes again.
_FREEZE_AT_ONCE = "autovacuum_freeze_min_age = 0"

# 200 units of work and then a pause; writing a page is 20 units. A pause of 5 ms (default 2 ms) lets one worker write
# 2,000 pages/s, 16 MB/s: as much as 160,000 transfers/s bring for hours (a page that is still dirty in memory costs a
# unit, not 20). A burst above that is worked off after it, instead of taking the disk from it. In need (wraparound
# failsafe) the server leaves out the pauses by itself.
_GENTLY = "autovacuum_vacuum_cost_delay = 5"

STATEMENTS = (
    # 10 million rows of 101 bytes: 123,000 pages, a minute's work at that pace. Measured on 1.2 million rows just
    # written (PostgreSQL 18): 1.5 s, every page frozen, no index read, 4 MB of WAL.
    f"""ALTER TABLE transfer SET (autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 10000000, {_FREEZE_AT_ONCE}, {_GENTLY})""",
    # One row a signed transfer, 500 to 900 bytes: a million are as many pages.
    f"""ALTER TABLE evidence SET (autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 1000000, {_FREEZE_AT_ONCE}, {_GENTLY})""",
    # Two entries a transfer, 60 entries a row: what 10 million transfers bring, 83,000 pages.
    f"""ALTER TABLE history_page SET (autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 333333, {_FREEZE_AT_ONCE}, {_GENTLY})""",
    # A million accounts are 17,000 pages; they come by hand, or all at once at a migration.
    f"""ALTER TABLE account SET (autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 1000000, {_FREEZE_AT_ONCE}, {_GENTLY})""",
    # The one that is rewritten: a snapshot deletes the pages that changed and copies them in anew, with ten million
    # accounts up to 312,500 rows, 480 MB. What it deleted must be free before the next one needs room, or the table
    # doubles: so at 5 % (default 20 %) and 1,000 rows dead, and at the default's speed: a quarter of a minute for
    # 480 MB. Insertions say nothing new here, deletions have said it; and freezing what the next snapshot replaces is
    # in vain.
    """ALTER TABLE balance_page SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_insert_threshold = -1)""",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
