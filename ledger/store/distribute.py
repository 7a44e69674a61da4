"""Spread the journal over several machines with Citus: which table goes where, the statements, and the checks before.

Big tables are distributed by the column that their queries name; what belongs to one transfer stands on one worker with
it. Of the small tables one is joined with `transfer` and becomes a reference table. The others stay ordinary tables of
the coordinator: there is one writer, who needs them in one place and not on every node; and Citus asks for the right to
UPDATE a reference table of whoever inserts into it with ON CONFLICT, which the service's append-only role does not
have (I4).

All of it is one transaction: a database is distributed or it is not. See docs/scaling.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

CITUS_MAJOR_MIN = 12
SHARDS_DEFAULT = 32
SHARDS_MAX = 1024
"""Each shard is a table on a worker and a connection of a large COPY."""
LOCK_WAIT_MAX = "5s"
"""A ledger that runs holds locks on these tables: then it is told to stop, not waited for."""


class DistributeRefused(ValueError):
    """Nothing was changed; the message says why and what to do."""


class Place(StrEnum):
    DISTRIBUTED = "distributed"
    REFERENCE = "reference"
    """A copy on every node, which any worker can join with."""
    LOCAL = "local"
    """An ordinary table of the coordinator."""


@dataclass(frozen=True, slots=True)
class Placement:
    place: Place
    column: str | None = None
    """The distribution column; part of every unique constraint of the table."""
    beside: str | None = None
    """The table whose rows of the same value stand on the same worker."""


PLACEMENTS: Mapping[str, Placement] = {
    "transfer": Placement(Place.DISTRIBUTED, "id"),
    "evidence": Placement(Place.DISTRIBUTED, "transfer_id", "transfer"),
    "hold_event": Placement(Place.DISTRIBUTED, "hold_id", "transfer"),
    "hold_tombstone": Placement(Place.REFERENCE),
    "history_page": Placement(Place.DISTRIBUTED, "run"),
    "log_tile": Placement(Place.DISTRIBUTED, "index", "history_page"),
    "closing_page": Placement(Place.DISTRIBUTED, "page"),
    **dict.fromkeys(
        (
            "account",
            "balance_page",
            "block",
            "closing",
            "directive",
            "history_mark",
            "history_run",
            "lease",
            "log_acknowledgement",
            "log_checkpoint",
            "log_cosignature",
            "log_identity",
            "log_incident",
            "mandate",
            "mandate_approval",
            "open_hold",
            "participant_balance",
            "request_nonce",
            "snapshot",
        ),
        Placement(Place.LOCAL),
    ),
}
"""Every table of the ledger; a test holds it total."""


def statements(*, shards: int = SHARDS_DEFAULT) -> list[str]:
    """What turns a ledger's tables into distributed and reference tables, in order. Raises DistributeRefused."""
    if not 1 <= shards <= SHARDS_MAX:
        raise DistributeRefused(f"the number of shards is 1 to {SHARDS_MAX}")
    moved = [table for table, placement in PLACEMENTS.items() if placement.place is not Place.LOCAL]
    made = [
        f"SET LOCAL lock_timeout = '{LOCK_WAIT_MAX}'",
        f"LOCK TABLE {', '.join(moved)} IN ACCESS EXCLUSIVE MODE",
        # one connection a worker: reference and distributed tables are made in one transaction
        "SET LOCAL citus.multi_shard_modify_mode = 'sequential'",
    ]
    for table, placement in PLACEMENTS.items():
        if placement.place is Place.REFERENCE:
            made.append(f"SELECT create_reference_table('{table}')")
        elif placement.place is Place.DISTRIBUTED:
            beside = f"colocate_with => '{placement.beside or 'none'}'"
            count = f", shard_count => {shards}" if placement.beside is None else ""
            made.append(f"SELECT create_distributed_table('{table}', '{placement.column}', {beside}{count})")
    return made


@dataclass(frozen=True, slots=True)
class Found:
    """How a database's tables stand now."""

    tables: Mapping[str, Placement]
    workers: int

    @property
    def is_untouched(self) -> bool:
        return all(placement.place is Place.LOCAL for placement in self.tables.values())

    @property
    def deviations(self) -> Sequence[str]:
        """Each table that is not where the plan has it."""
        found = []
        for table, wanted in PLACEMENTS.items():
            now = self.tables.get(table, Placement(Place.LOCAL))
            if (now.place, now.column) != (wanted.place, wanted.column):
                found.append(f"{table} is {_said(now)}, not {_said(wanted)}")
        return found


def inspect(connection: sa.Connection) -> Found:
    """Raises DistributeRefused for a server without Citus, an old one, one without workers, or another schema."""
    version = connection.execute(sa.text("SELECT extversion FROM pg_extension WHERE extname = 'citus'")).scalar()
    if version is None:
        raise DistributeRefused(
            "this PostgreSQL has no Citus: install it on every node, CREATE EXTENSION citus in this database of each,"
            " and add the workers on the coordinator with citus_add_node(host, port)"
        )
    if int(str(version).partition(".")[0]) < CITUS_MAJOR_MIN:
        raise DistributeRefused(f"Citus {version} is too old: {CITUS_MAJOR_MIN} or newer is needed")
    missing = [
        table
        for table in PLACEMENTS
        if connection.execute(sa.text("SELECT to_regclass(:name)"), {"name": f"public.{table}"}).scalar() is None
    ]
    if missing:
        raise DistributeRefused(f"the tables {', '.join(missing)} are missing: run `jiaozi-ledger migrate` first")
    workers = int(
        connection.execute(
            sa.text("SELECT count(*) FROM pg_dist_node WHERE isactive AND shouldhaveshards AND noderole = 'primary'")
        ).scalar_one()
    )
    coordinators = connection.execute(
        sa.text("SELECT count(*) FROM pg_dist_node WHERE groupid = 0 AND isactive")
    ).scalar_one()
    if not workers or not coordinators:
        raise DistributeRefused(
            "the cluster has no worker, or the coordinator is not in it: on the coordinator call"
            " citus_set_coordinator_host(host, port), then citus_add_node(host, port) for each worker"
        )
    rows = connection.execute(
        sa.text("SELECT table_name::text, citus_table_type, distribution_column FROM citus_tables")
    ).all()
    tables = {
        str(name).removeprefix("public."): Placement(
            Place(kind) if kind in list(Place) else Place.LOCAL, column if kind == Place.DISTRIBUTED else None
        )
        for name, kind, column in rows
    }
    return Found({name: tables.get(name, Placement(Place.LOCAL)) for name in PLACEMENTS}, workers)


def is_to_do(found: Found) -> bool:
    """False when it was done before.

    Raises DistributeRefused for a database in which some tables are where the plan has them and others are not: no run
    of this leaves that, so a person must look.
    """
    if not found.deviations:
        return False
    if not found.is_untouched:
        raise DistributeRefused(
            f"the database is half distributed, and not by this command: {'; '.join(found.deviations)}."
            " Bring what is distributed back with undistribute_table, then run this again"
        )
    return True


def distribute(connection: sa.Connection, *, shards: int = SHARDS_DEFAULT) -> bool:
    """Carry the plan out in the caller's transaction. False: it was done before. Raises DistributeRefused."""
    if not is_to_do(inspect(connection)):
        return False
    try:
        for statement in statements(shards=shards):
            connection.exec_driver_sql(statement)
    except DBAPIError as error:
        reason = str(error.orig).splitlines()[0]
        raise DistributeRefused(f"{reason}. Nothing was changed; is a ledger still running on it?") from error
    left = inspect(connection).deviations
    if left:
        raise DistributeRefused(f"Citus did something else than it was asked: {'; '.join(left)}")
    return True


def _said(placement: Placement) -> str:
    is_spread = placement.place is Place.DISTRIBUTED
    return f"distributed by {placement.column}" if is_spread else f"a {placement.place} table"
