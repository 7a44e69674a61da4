"""The chains' memory in the database: the last final block of each, and the authorisations of legs."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from kernel.clock import Clock
from kernel.database import Database
from settlement.domain.escrow import HoldOrder
from settlement.store import tables as t
from settlement.store.islands_tables import island_block


class IslandMemory:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def last(self, ledger: str) -> tuple[int, str] | None:
        wanted = sa.select(island_block.c.number, island_block.c.hash).where(island_block.c.ledger == ledger)
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            row = connection.execute(wanted).one_or_none()
        return None if row is None else (row.number, row.hash)

    def remember(self, ledger: str, number: int, block_hash: str) -> None:
        """A later block takes the place of an earlier one, never the other way."""
        statement = insert(island_block).values(
            ledger=ledger, number=number, hash=block_hash.lower(), seen_at=self._clock()
        )
        new = statement.excluded
        statement = statement.on_conflict_do_update(
            index_elements=["ledger"],
            set_={"number": new.number, "hash": new.hash, "seen_at": new.seen_at},
            where=island_block.c.number < new.number,
        )
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            connection.execute(statement)

    def authorisation(self, order: HoldOrder) -> str | None:
        """The payer's stored authorisation of a leg; None if there is none, or more than one that could be it."""
        terms = order.terms
        wanted = (
            sa.select(t.leg.c.authorisation)
            .join(t.settlement, t.settlement.c.id == t.leg.c.settlement_id)
            .where(
                t.settlement.c.uetr == order.reference,
                t.leg.c.ledger == terms.ledger,
                t.leg.c.debit == terms.debit,
                t.leg.c.credit == terms.credit,
                t.leg.c.amount_minor == terms.amount.amount_minor,
            )
            .limit(2)
        )
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            rows = connection.execute(wanted).all()
        return rows[0].authorisation if len(rows) == 1 else None
