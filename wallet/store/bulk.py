"""Payroll files and their lines."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Literal
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from wallet.store.bulk_tables import bulk_file, bulk_line
from wallet.store.tables import wallet

FileStateName = Literal["uploading", "running", "finished", "cancelled"]
LineStateName = Literal["received", "booked", "refused"]


@dataclass(frozen=True, slots=True)
class BulkFile:
    id: UUID
    wallet_id: UUID
    debit_account: int
    currency: str
    content_sha256: bytes
    lines_total: int
    total_minor: int
    state: FileStateName
    claimed_until: datetime
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class BulkLine:
    file_id: UUID
    number: int
    line_id: str
    payment_id: UUID
    credit_account: int
    amount_minor: int
    instruction: str
    state: LineStateName
    refusal: str | None = None
    is_transient: bool | None = None
    detail: str | None = None
    seq: int | None = None
    booked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Lines and their sums by state, in minor units."""

    received: int = 0
    received_minor: int = 0
    booked: int = 0
    booked_minor: int = 0
    refused: int = 0
    refused_minor: int = 0

    @property
    def lines(self) -> int:
        return self.received + self.booked + self.refused

    @property
    def total_minor(self) -> int:
        return self.received_minor + self.booked_minor + self.refused_minor


def insert_file(connection: sa.Connection, row: BulkFile) -> bool:
    """False if the id is taken."""
    values = {item.name: getattr(row, item.name) for item in fields(row)}
    statement = insert(bulk_file).values(values).on_conflict_do_nothing().returning(bulk_file.c.id)
    return connection.execute(statement).first() is not None


def find_file(connection: sa.Connection, file_id: UUID, *, lock: bool = False) -> BulkFile | None:
    query = sa.select(bulk_file).where(bulk_file.c.id == file_id)
    row = connection.execute(query.with_for_update() if lock else query).mappings().first()
    return None if row is None else BulkFile(**row)


def find_same_content(connection: sa.Connection, wallet_id: UUID, content_sha256: bytes) -> UUID | None:
    query = sa.select(bulk_file.c.id).where(
        bulk_file.c.wallet_id == wallet_id,
        bulk_file.c.content_sha256 == content_sha256,
        bulk_file.c.state != "cancelled",
    )
    return connection.execute(query.limit(1)).scalar()


def list_files(
    connection: sa.Connection, *, wallet_id: UUID, before: tuple[datetime, UUID] | None, limit: int
) -> list[BulkFile]:
    """Newest first."""
    query = sa.select(bulk_file).where(bulk_file.c.wallet_id == wallet_id)
    if before is not None:
        query = query.where(sa.tuple_(bulk_file.c.created_at, bulk_file.c.id) < sa.tuple_(*before))
    query = query.order_by(bulk_file.c.created_at.desc(), bulk_file.c.id.desc()).limit(limit)
    return [BulkFile(**row) for row in connection.execute(query).mappings()]


def set_state(connection: sa.Connection, file_id: UUID, state: FileStateName, *, now: datetime) -> None:
    values: dict[str, object] = {"state": state, "finished_at": now if state == "finished" else None}
    if state == "running":
        values["started_at"] = sa.func.coalesce(bulk_file.c.started_at, now)
        values["claimed_until"] = now
    connection.execute(sa.update(bulk_file).where(bulk_file.c.id == file_id).values(**values))


def progress(connection: sa.Connection, file_id: UUID) -> Progress:
    query = (
        sa.select(bulk_line.c.state, sa.func.count(), sa.func.sum(bulk_line.c.amount_minor))
        .where(bulk_line.c.file_id == file_id)
        .group_by(bulk_line.c.state)
    )
    counted: dict[str, int] = {}
    for state, count, total in connection.execute(query):
        counted[state], counted[f"{state}_minor"] = count, int(total)
    return Progress(**counted)


def find_lines(connection: sa.Connection, file_id: UUID, line_ids: Collection[str]) -> dict[str, BulkLine]:
    query = sa.select(bulk_line).where(bulk_line.c.file_id == file_id, bulk_line.c.line_id.in_(line_ids))
    return {row["line_id"]: BulkLine(**row) for row in connection.execute(query).mappings()}


def insert_lines(connection: sa.Connection, rows: Sequence[BulkLine]) -> None:
    if rows:
        connection.execute(
            sa.insert(bulk_line), [{item.name: getattr(row, item.name) for item in fields(row)} for row in rows]
        )


def renew_line(connection: sa.Connection, file_id: UUID, number: int, instruction: str) -> None:
    """A newer signature for a line that is not booked: it is to be tried again."""
    connection.execute(
        sa.update(bulk_line)
        .where(bulk_line.c.file_id == file_id, bulk_line.c.number == number, bulk_line.c.state != "booked")
        .values(instruction=instruction, state="received", refusal=None, is_transient=None, detail=None)
    )


def page_of_lines(connection: sa.Connection, file_id: UUID, *, after: int, limit: int) -> list[BulkLine]:
    """In the file's order."""
    query = (
        sa.select(bulk_line)
        .where(bulk_line.c.file_id == file_id, bulk_line.c.number > after)
        .order_by(bulk_line.c.number)
        .limit(limit)
    )
    return [BulkLine(**row) for row in connection.execute(query).mappings()]


def claim_file(
    connection: sa.Connection, *, now: datetime, claimed_until: datetime, ignore_claims: bool
) -> BulkFile | None:
    """A running file that nobody works on; it is the caller's until `claimed_until`."""
    free = sa.select(bulk_file.c.id).where(bulk_file.c.state == "running")
    if not ignore_claims:
        free = free.where(bulk_file.c.claimed_until <= now)
    chosen = free.order_by(bulk_file.c.claimed_until).limit(1).with_for_update(skip_locked=True).scalar_subquery()
    statement = (
        sa.update(bulk_file).where(bulk_file.c.id == chosen).values(claimed_until=claimed_until).returning(bulk_file)
    )
    row = connection.execute(statement).mappings().first()
    return None if row is None else BulkFile(**row)


def release_file(connection: sa.Connection, file_id: UUID, *, claimed_until: datetime) -> None:
    connection.execute(sa.update(bulk_file).where(bulk_file.c.id == file_id).values(claimed_until=claimed_until))


def lines_received(connection: sa.Connection, file_id: UUID, *, limit: int) -> list[BulkLine]:
    query = (
        sa.select(bulk_line)
        .where(bulk_line.c.file_id == file_id, bulk_line.c.state == "received")
        .order_by(bulk_line.c.number)
        .limit(limit)
    )
    return [BulkLine(**row) for row in connection.execute(query).mappings()]


def conclude_lines(connection: sa.Connection, file_id: UUID, outcomes: Mapping[int, Mapping[str, object]]) -> None:
    """By line number. One statement for all; a line that is concluded already stays as it is."""
    if not outcomes:
        return
    numbers = list(outcomes)

    def column(name: str, kind: str) -> sa.ColumnElement[object]:
        values = [outcomes[number].get(name) for number in numbers]
        return sa.cast(sa.bindparam(f"all_{name}", values), _ARRAYS[kind])

    new = (
        sa.func.unnest(
            sa.cast(sa.bindparam("all_numbers", numbers), _ARRAYS["int"]),
            column("state", "text"),
            column("refusal", "text"),
            column("is_transient", "bool"),
            column("detail", "text"),
            column("seq", "bigint"),
            column("booked_at", "moment"),
        )
        .table_valued("number", "state", "refusal", "is_transient", "detail", "seq", "booked_at", name="new")
        .render_derived()
    )
    connection.execute(
        sa.update(bulk_line)
        .where(bulk_line.c.file_id == file_id, bulk_line.c.number == new.c.number, bulk_line.c.state == "received")
        .values({name: new.c[name] for name in ("state", "refusal", "is_transient", "detail", "seq", "booked_at")})
    )


_ARRAYS: Mapping[str, sa.ARRAY[object]] = {
    "int": sa.ARRAY(sa.Integer),
    "bigint": sa.ARRAY(sa.BigInteger),
    "text": sa.ARRAY(sa.Text),
    "bool": sa.ARRAY(sa.Boolean),
    "moment": sa.ARRAY(sa.DateTime(timezone=True)),
}


def open_accounts_of(connection: sa.Connection, accounts: Collection[int]) -> set[int]:
    """Those among the accounts that are wallets of this institution."""
    query = sa.select(wallet.c.account).where(wallet.c.account.in_(accounts), wallet.c.state == "open")
    return set(connection.execute(query).scalars())
