"""A double of a bank's core-banking system: deposits and postings in tables of their own. For sandboxes and tests."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from kernel.clock import Clock
from kernel.database import Database
from wallet.domain.core_banking import Posting, PostingConflict, PostingOutcome
from wallet.store.tables import sandbox_deposit, sandbox_posting


class SandboxCoreBanking:
    """Implements `CoreBanking`. Each call is one transaction of its own, as a call to another system would be."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def debit_deposit(self, posting_id: UUID, customer_id: UUID, amount_minor: int) -> PostingOutcome:
        return self._post(posting_id, customer_id, "debit", amount_minor)

    def credit_deposit(self, posting_id: UUID, customer_id: UUID, amount_minor: int) -> PostingOutcome:
        return self._post(posting_id, customer_id, "credit", amount_minor)

    def pay_in(self, posting_id: UUID, customer_id: UUID, amount_minor: int) -> PostingOutcome:
        """Money from elsewhere onto the deposit: no exchange, so not in `statement`."""
        return self._post(posting_id, customer_id, "credit", amount_minor, purpose="other")

    def statement(
        self, *, since: datetime, until: datetime, after: tuple[datetime, UUID] | None, limit: int
    ) -> list[Posting]:
        columns = sandbox_posting.c
        query = (
            sa.select(columns.id, columns.customer_id, columns.direction, columns.amount_minor, columns.created_at)
            .where(columns.is_booked, columns.purpose == "exchange")
            .where(columns.created_at >= since, columns.created_at < until)
            .order_by(columns.created_at, columns.id)
            .limit(limit)
        )
        if after is not None:
            query = query.where(sa.tuple_(columns.created_at, columns.id) > sa.tuple_(*map(sa.literal, after)))
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            return [Posting(*row) for row in connection.execute(query)]

    def look_up(self, posting_id: UUID) -> PostingOutcome | None:
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            query = sa.select(sandbox_posting.c.is_booked).where(sandbox_posting.c.id == posting_id)
            is_booked = connection.execute(query).scalar()
        return None if is_booked is None else _outcome(is_booked)

    def balance(self, customer_id: UUID) -> int:
        """Minor units; 0 for a customer without a deposit."""
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            query = sa.select(sandbox_deposit.c.balance_minor).where(sandbox_deposit.c.customer_id == customer_id)
            return connection.execute(query).scalar() or 0

    def total(self) -> int:
        """All deposits, in minor units: what a test of conservation adds up."""
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            return int(connection.execute(sa.select(sa.func.sum(sandbox_deposit.c.balance_minor))).scalar() or 0)

    def _post(
        self, posting_id: UUID, customer_id: UUID, direction: str, amount_minor: int, *, purpose: str = "exchange"
    ) -> PostingOutcome:
        def work(connection: sa.Connection) -> PostingOutcome:
            opened = insert(sandbox_deposit).values(customer_id=customer_id, balance_minor=0)
            connection.execute(opened.on_conflict_do_nothing())
            # The row lock serialises a customer's postings, so the id is looked up after all earlier ones ended.
            balance_minor = connection.execute(
                sa.select(sandbox_deposit.c.balance_minor)
                .where(sandbox_deposit.c.customer_id == customer_id)
                .with_for_update()
            ).scalar_one()
            known = connection.execute(sa.select(sandbox_posting).where(sandbox_posting.c.id == posting_id)).first()
            if known is not None:
                if (known.customer_id, known.direction, known.amount_minor) != (customer_id, direction, amount_minor):
                    raise PostingConflict(f"posting {posting_id} was made with other content")
                return _outcome(known.is_booked)
            is_booked = direction == "credit" or amount_minor <= balance_minor
            connection.execute(
                sa.insert(sandbox_posting).values(
                    id=posting_id,
                    customer_id=customer_id,
                    direction=direction,
                    purpose=purpose,
                    amount_minor=amount_minor,
                    is_booked=is_booked,
                    created_at=self._clock(),
                )
            )
            if is_booked:
                change = amount_minor if direction == "credit" else -amount_minor
                connection.execute(
                    sa.update(sandbox_deposit)
                    .where(sandbox_deposit.c.customer_id == customer_id)
                    .values(balance_minor=sandbox_deposit.c.balance_minor + change)
                )
            return _outcome(is_booked)

        return self._database.run(work, isolation="READ COMMITTED")


def _outcome(is_booked: bool) -> PostingOutcome:
    return PostingOutcome.BOOKED if is_booked else PostingOutcome.REFUSED
