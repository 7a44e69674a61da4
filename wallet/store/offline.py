"""The SQL of offline purses. Whoever changes what a purse has spent or holds has locked its row; rows in id order."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import RowMapping
from sqlalchemy.dialects.postgresql import insert

from kernel import ids
from wallet.domain.events import EventType
from wallet.domain.offline.books import BookedSpend, Books, PurseBook, SourceBook
from wallet.domain.offline.messages import Part
from wallet.domain.offline.records import FundingRow, PayoutRow, PurseRow
from wallet.store import events
from wallet.store.carriage import Connection as RawConnection
from wallet.store.offline_tables import (
    purse,
    purse_escrow,
    purse_funding,
    purse_part,
    purse_payout,
    purse_proof,
    purse_source,
    purse_spend,
)
from wallet.store.rows import dict_row

# --- the escrow's account --------------------------------------------------------------------------------------------


def prepare_escrow(connection: sa.Connection, ledger: str, opening_id: UUID) -> tuple[UUID, int | None]:
    """The opening id (the one given only if there was none yet) and the account, once open."""
    connection.execute(insert(purse_escrow).values(ledger=ledger, opening_id=opening_id).on_conflict_do_nothing())
    row = connection.execute(sa.select(purse_escrow).where(purse_escrow.c.ledger == ledger)).one()
    return row.opening_id, row.account


def save_escrow(connection: sa.Connection, ledger: str, account: int) -> None:
    connection.execute(sa.update(purse_escrow).where(purse_escrow.c.ledger == ledger).values(account=account))


# --- purses ----------------------------------------------------------------------------------------------------------


def insert_purse(connection: sa.Connection, row: PurseRow) -> bool:
    """False if the id or the device's key is taken, or the wallet has an active purse."""
    statement = insert(purse).values(asdict(row)).on_conflict_do_nothing().returning(purse.c.id)
    return connection.execute(statement).first() is not None


def find_purse(connection: sa.Connection, purse_id: UUID, *, for_update: bool = False) -> PurseRow | None:
    query = sa.select(purse).where(purse.c.id == purse_id)
    row = connection.execute(query.with_for_update() if for_update else query).mappings().first()
    return None if row is None else PurseRow(**row)


def purses_unsettled(connection: sa.Connection, wallet_id: UUID) -> list[PurseRow]:
    query = sa.select(purse).where(purse.c.wallet_id == wallet_id, purse.c.closed_at.is_(None)).order_by(purse.c.id)
    return [PurseRow(**row) for row in connection.execute(query.with_for_update()).mappings()]


def mark_revoked(connection: sa.Connection, purse_id: UUID, reason: str, *, at: datetime) -> None:
    """The first reason stays, but for double spending, which takes the place of any other."""
    connection.execute(
        sa.update(purse)
        .where(purse.c.id == purse_id, sa.or_(purse.c.revoked_for.is_(None), sa.literal(reason) == "double-spend"))
        .values(revoked_for=reason, revoked_at=at)
    )


def purses_revoked(connection: sa.Connection, *, limit: int) -> list[UUID]:
    """Those not settled yet whose payments nobody should take, the newest first."""
    query = (
        sa.select(purse.c.id)
        .where(purse.c.revoked_for.in_(("lost", "double-spend")), purse.c.closed_at.is_(None))
        .order_by(purse.c.revoked_at.desc())
        .limit(limit)
    )
    return list(connection.execute(query).scalars())


def purses_to_close(connection: sa.Connection, *, now: datetime, limit: int) -> list[UUID]:
    """Not while a funding is under way: what it brings must be settled with the rest. It ends with its instruction."""
    under_way = sa.select(purse_funding.c.id).where(
        purse_funding.c.purse_id == purse.c.id, purse_funding.c.state == "initiated"
    )
    query = sa.select(purse.c.id).where(purse.c.closed_at.is_(None), purse.c.closes_at <= now, ~under_way.exists())
    return list(connection.execute(query.order_by(purse.c.closes_at).limit(limit)).scalars())


def purse_left(connection: sa.Connection, purse_id: UUID) -> int:
    """What the purse holds as far as the service knows."""
    left = sa.func.coalesce(sa.func.sum(purse_source.c.backed_minor - purse_source.c.covered_minor), 0)
    return int(connection.execute(sa.select(left).where(purse_source.c.purse_id == purse_id)).scalar_one())


# --- fundings --------------------------------------------------------------------------------------------------------


def find_funding(connection: sa.Connection, funding_id: UUID) -> FundingRow | None:
    row = connection.execute(sa.select(purse_funding).where(purse_funding.c.id == funding_id)).mappings().first()
    return None if row is None else FundingRow(**row)


@dataclass(frozen=True, slots=True)
class LockedPurse:
    balance_max_minor: int
    left_minor: int
    """As far as is known."""
    under_way_minor: int
    """Of fundings that are not booked yet."""
    not_after: datetime
    is_active: bool


def lock_purse_of(connection: RawConnection, purse_id: UUID, wallet_id: UUID) -> LockedPurse | None:
    """None if the wallet has no such purse."""
    row = connection.execute(
        "SELECT balance_max_minor, not_after, revoked_for IS NULL AND closed_at IS NULL FROM purse"
        " WHERE id = %s AND wallet_id = %s FOR UPDATE",
        (purse_id, wallet_id),
    ).fetchone()
    if row is None:
        return None
    # Read after the lock was taken, so that it counts what others have committed before.
    sums = connection.execute(
        "SELECT (SELECT coalesce(sum(backed_minor - covered_minor), 0)::bigint FROM purse_source WHERE purse_id = %s),"
        " (SELECT coalesce(sum(amount_minor), 0)::bigint FROM purse_funding"
        " WHERE purse_id = %s AND state = 'initiated')",
        (purse_id, purse_id),
    ).fetchone()
    left, under_way = (0, 0) if sums is None else sums
    return LockedPurse(row[0], int(left), int(under_way), row[1], row[2])


def find_funding_raw(connection: RawConnection, funding_id: UUID) -> FundingRow | None:
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute("SELECT * FROM purse_funding WHERE id = %s FOR UPDATE", (funding_id,)).fetchone()
    return None if row is None else FundingRow(**row)


def insert_funding(connection: RawConnection, row: FundingRow) -> bool:
    """False if the id is taken."""
    values = asdict(row)
    columns = ", ".join(values)
    places = ", ".join(f"%({name})s" for name in values)
    cursor = connection.execute(
        f"INSERT INTO purse_funding ({columns}) VALUES ({places}) ON CONFLICT DO NOTHING", values
    )
    return cursor.rowcount == 1


def refuse_funding(connection: RawConnection, row: FundingRow, *, refusal: str, detail: str | None) -> bool:
    """False if a newer attempt is at work, or it has ended."""
    cursor = connection.execute(
        "UPDATE purse_funding SET state = 'refused', refusal = %s, detail = %s"
        " WHERE id = %s AND state = 'initiated' AND attempt = %s",
        (refusal, detail, row.id, row.attempt),
    )
    return cursor.rowcount == 1


def claim_funding(connection: sa.Connection, row: FundingRow, *, now: datetime) -> FundingRow | None:
    """A new attempt at an unfinished funding; None if another one was quicker."""
    statement = (
        sa.update(purse_funding)
        .where(
            purse_funding.c.id == row.id,
            purse_funding.c.state == "initiated",
            purse_funding.c.attempt == row.attempt,
        )
        .values(attempt=row.attempt + 1, tried_at=now)
        .returning(*purse_funding.c)
    )
    found = connection.execute(statement).mappings().first()
    return None if found is None else FundingRow(**found)


def finish_funding(
    connection: sa.Connection,
    row: FundingRow,
    *,
    seq: int | None,
    booked_at: datetime,
    message: bytes,
    source: SourceBook,
) -> None:
    """Final, and its value object in the books; a repetition changes nothing."""
    statement = (
        sa.update(purse_funding)
        .where(purse_funding.c.id == row.id, purse_funding.c.state != "final")
        .values(state="final", seq=seq, booked_at=booked_at, message=message, refusal=None, detail=None)
    )
    if connection.execute(statement).rowcount == 1:
        connection.execute(sa.insert(purse_source).values(_source_values(source)))
        _tell(connection, EventType.PURSE_LOADED, row.purse_id, booked_at, data={"transfer": f"trf_{row.id}"})


def fundings_unfinished(connection: sa.Connection, *, before: datetime, limit: int) -> list[FundingRow]:
    query = (
        sa.select(purse_funding)
        .where(purse_funding.c.state == "initiated", purse_funding.c.tried_at <= before)
        .order_by(purse_funding.c.tried_at)
        .limit(limit)
    )
    return [FundingRow(**row) for row in connection.execute(query).mappings()]


# --- the books -------------------------------------------------------------------------------------------------------


def load_books(
    connection: sa.Connection,
    *,
    certificates: Collection[bytes],
    sources: Collection[bytes],
    spends: Collection[bytes],
    counters: Collection[int],
) -> Books:
    """What a chain concerns: its purses (locked), its value objects with all that was spent of them, what else its
    purses have left, and every spend that might be one of the chain's or exclude one."""
    books = Books()
    query = sa.select(purse).where(purse.c.certificate_hash.in_(certificates)).order_by(purse.c.id).with_for_update()
    for row in connection.execute(query).mappings():
        books.purses[row["id"]] = _purse_book(PurseRow(**row))
    is_left = sa.and_(
        purse_source.c.purse_id.in_(list(books.purses)), purse_source.c.covered_minor < purse_source.c.backed_minor
    )
    query = sa.select(purse_source).where(sa.or_(purse_source.c.hash.in_(sources), is_left))
    for row in connection.execute(query).mappings():
        books.sources[row["hash"]] = _source_book(row)
    touching = sa.select(purse_part.c.spend_hash).where(purse_part.c.source_hash.in_(sources))
    related = sa.select(purse_spend).where(
        sa.or_(
            purse_spend.c.hash.in_(spends),
            purse_spend.c.hash.in_(touching),
            sa.and_(purse_spend.c.payer_id.in_(list(books.purses)), purse_spend.c.counter.in_(counters)),
        )
    )
    rows = {row["hash"]: row for row in connection.execute(related).mappings()}
    parts: dict[bytes, list[Part]] = {}
    query = sa.select(purse_part).where(purse_part.c.spend_hash.in_(list(rows)))
    for part in connection.execute(query.order_by(purse_part.c.spend_hash, purse_part.c.position)):
        taken = Part(part.source_hash, part.lower_minor, part.amount_minor)
        parts.setdefault(part.spend_hash, []).append(taken)
        if part.source_hash in books.sources:
            books.sources[part.source_hash].intervals.append(taken)
    for found, row in rows.items():
        books.spends[found] = BookedSpend(
            hash=found,
            payer=row["payer_id"],
            payee=row["payee_id"],
            counter=row["counter"],
            amount_minor=row["amount_minor"],
            borne_minor=row["borne_minor"],
            short_minor=row["short_minor"],
            is_paid_out=row["is_paid_out"],
            parts=tuple(parts[found]),
            message=row["message"],
        )
    return books


def load_books_of(connection: sa.Connection, purse_id: UUID) -> Books | None:
    """A purse and its value objects, and the purses of the same account for which these answer: what closing it needs.
    The purses are locked."""
    # All of the account, a handful: which of them it needs may change until they are locked.
    account = sa.select(purse.c.account).where(purse.c.id == purse_id).scalar_subquery()
    query = sa.select(purse).where(purse.c.account == account).order_by(purse.c.id).with_for_update()
    rows = [PurseRow(**row) for row in connection.execute(query).mappings()]
    if not rows:
        return None
    books = Books(purses={row.id: _purse_book(row) for row in rows})
    for row in connection.execute(sa.select(purse_source).where(purse_source.c.purse_id == purse_id)).mappings():
        books.sources[row["hash"]] = _source_book(row)
    return books


def save_books(connection: sa.Connection, books: Books, *, proofs: Mapping[UUID, bytes], now: datetime) -> None:
    """Everything that the books' steps have changed."""
    new = {source.hash for source in books.new_sources}
    for source in books.sources.values():
        if source.hash not in new:
            connection.execute(
                sa.update(purse_source)
                .where(purse_source.c.hash == source.hash, purse_source.c.covered_minor != source.covered_minor)
                .values(covered_minor=source.covered_minor)
            )
    if books.new_sources:
        connection.execute(sa.insert(purse_source), [_source_values(source) for source in books.new_sources])
    for spend in books.new_spends:
        connection.execute(sa.insert(purse_spend).values(_spend_values(spend, now)))
        connection.execute(
            sa.insert(purse_part),
            [
                {
                    "spend_hash": spend.hash,
                    "position": position,
                    "source_hash": part.source,
                    "lower_minor": part.offset,
                    "amount_minor": part.amount_minor,
                }
                for position, part in enumerate(spend.parts)
            ],
        )
        data = {"payer": f"pur_{spend.payer}", "payment": spend.hash.hex(), "amount_minor": str(spend.amount_minor)}
        _tell(connection, EventType.PURSE_SYNCED, spend.payee, now, data=data)
    for book in books.purses.values():
        values: dict[str, Any] = {
            "loss_minor": book.loss_minor,
            "recovered_minor": book.recovered_minor,
            "spends": book.spends,
        }
        if book.is_closed:
            values["closed_at"] = sa.func.coalesce(purse.c.closed_at, now)
            _tell(connection, EventType.PURSE_SETTLED, book.purse, now, is_once=True)
        connection.execute(sa.update(purse).where(purse.c.id == book.purse).values(values))
    for purse_id, proof in proofs.items():
        values = {"purse_id": purse_id, "proof": proof, "found_at": now}
        connection.execute(insert(purse_proof).values(values).on_conflict_do_nothing())
        mark_revoked(connection, purse_id, "double-spend", at=now)
        _tell(connection, EventType.PURSE_DOUBLE_SPENT, purse_id, now, is_once=True)
    for payout in books.payouts:
        connection.execute(
            sa.insert(purse_payout).values(
                id=payout_id(payout.purse, payout.kind, payout.key),
                purse_id=payout.purse,
                kind=payout.kind,
                event=payout.key,
                account=payout.account,
                amount_minor=payout.amount_minor,
                created_at=now,
            )
        )


def _tell(
    connection: sa.Connection,
    type: EventType,
    purse_id: UUID,
    at: datetime,
    *,
    data: Mapping[str, object] | None = None,
    is_once: bool = False,
) -> None:
    wallet_id = connection.execute(sa.select(purse.c.wallet_id).where(purse.c.id == purse_id)).scalar_one()
    once = purse_id if is_once else None
    events.emit(connection, type, f"pur_{purse_id}", at=at, wallet_id=wallet_id, data=data, once=once)


def payout_id(purse_id: UUID, kind: str, event: bytes) -> UUID:
    """The transfer's id: one event, one transfer (I7)."""
    return ids.derive_uuid7(purse_id, f"purse-{kind}:{event.hex()}")


def find_proof(connection: sa.Connection, purse_id: UUID) -> bytes | None:
    return connection.execute(sa.select(purse_proof.c.proof).where(purse_proof.c.purse_id == purse_id)).scalar()


# --- payouts ---------------------------------------------------------------------------------------------------------


def payouts_pending(connection: sa.Connection, *, limit: int, before: datetime | None = None) -> list[PayoutRow]:
    """Those not tried since `before`; the longest untried first, so that one that cannot go on keeps no other waiting;
    of one time losses first: they bring the money that others take."""
    query = sa.select(purse_payout).where(purse_payout.c.booked_at.is_(None))
    if before is not None:
        query = query.where(sa.or_(purse_payout.c.tried_at.is_(None), purse_payout.c.tried_at <= before))
    order = (purse_payout.c.tried_at.nulls_first(), purse_payout.c.kind != "loss", purse_payout.c.created_at)
    return [PayoutRow(**row) for row in connection.execute(query.order_by(*order).limit(limit)).mappings()]


def payouts_of(connection: sa.Connection, events: Collection[bytes]) -> dict[bytes, PayoutRow]:
    """The payouts to wallets, by the spend that they are for."""
    query = sa.select(purse_payout).where(purse_payout.c.event.in_(events), purse_payout.c.kind == "redeem")
    return {row["event"]: PayoutRow(**row) for row in connection.execute(query).mappings()}


def mark_payout_booked(connection: sa.Connection, payout: UUID, *, seq: int | None, booked_at: datetime) -> None:
    connection.execute(
        sa.update(purse_payout)
        .where(purse_payout.c.id == payout, purse_payout.c.booked_at.is_(None))
        .values(seq=seq, booked_at=booked_at, refusal=None)
    )


def mark_payout_tried(connection: sa.Connection, payout: UUID, *, refusal: str | None, tried_at: datetime) -> None:
    connection.execute(
        sa.update(purse_payout)
        .where(purse_payout.c.id == payout, purse_payout.c.booked_at.is_(None))
        .values(refusal=refusal, tried_at=tried_at)
    )


def escrow_claims(connection: sa.Connection) -> tuple[int, int, int, int]:
    """(unspent value objects, payouts not booked, recoveries not booked, losses not booked), in minor units.

    The ledger's escrow holds the first three less the fourth.
    """
    unspent = connection.execute(
        sa.select(sa.func.coalesce(sa.func.sum(purse_source.c.backed_minor - purse_source.c.covered_minor), 0))
    ).scalar_one()
    query = (
        sa.select(purse_payout.c.kind, sa.func.sum(purse_payout.c.amount_minor))
        .where(purse_payout.c.booked_at.is_(None))
        .group_by(purse_payout.c.kind)
    )
    pending = {kind: int(total) for kind, total in connection.execute(query)}
    return int(unspent), pending.get("redeem", 0), pending.get("recovery", 0), pending.get("loss", 0)


def _purse_book(row: PurseRow) -> PurseBook:
    return PurseBook(
        purse=row.id,
        certificate=row.certificate_hash,
        account=row.account,
        loss_max_minor=row.balance_max_minor,
        closes_at=int(row.closes_at.astimezone(UTC).timestamp()),
        loss_minor=row.loss_minor,
        recovered_minor=row.recovered_minor,
        spends=row.spends,
        is_named=row.revoked_for == "double-spend",
        is_closed=row.closed_at is not None,
    )


def _source_book(row: RowMapping) -> SourceBook:
    return SourceBook(
        row["hash"],
        row["purse_id"],
        row["amount_minor"],
        row["backed_minor"],
        row["covered_minor"],
        answers_for=row["answers_for"],
    )


def _source_values(source: SourceBook) -> dict[str, object]:
    return {
        "answers_for": source.answers_for,
        "hash": source.hash,
        "purse_id": source.owner,
        "amount_minor": source.amount_minor,
        "backed_minor": source.backed_minor,
        "covered_minor": source.covered_minor,
    }


def _spend_values(spend: BookedSpend, now: datetime) -> dict[str, object]:
    return {
        "hash": spend.hash,
        "payer_id": spend.payer,
        "payee_id": spend.payee,
        "counter": spend.counter,
        "amount_minor": spend.amount_minor,
        "borne_minor": spend.borne_minor,
        "short_minor": spend.short_minor,
        "is_paid_out": spend.is_paid_out,
        "message": spend.message,
        "arrived_at": now,
    }
