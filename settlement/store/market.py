"""The FX market's rows: quotes and their revisions, executions, fills, evidence."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from kernel.ids import ParticipantId
from kernel.money import Currency
from settlement.domain.escrow import LegState, LegTerms, SettlementState
from settlement.domain.market import Fill, QuoteTerms, Side, StandingQuote
from settlement.store import market_tables as m
from settlement.store import tables as t

_MARKET_LOCK = 0x6678_6D61_726B_6574
"""Executions follow one another: what price-time priority means among customers, and no deadlock between them."""


@dataclass(frozen=True, slots=True)
class QuoteRow:
    standing: StandingQuote
    posted_at: datetime


@dataclass(frozen=True, slots=True)
class NewExecution:
    settlement: UUID
    uetr: UUID
    submitter: ParticipantId
    request_sha256: bytes
    payer: ParticipantId
    payee: ParticipantId
    sell: Currency
    buy: Currency
    is_sale: bool
    given_minor: int
    received_minor: int
    least_received_minor: int | None
    most_given_minor: int | None
    on_expiry: str
    lock_expires_at: datetime


@dataclass(frozen=True, slots=True)
class ExecutionRow:
    execution: NewExecution
    batch: UUID
    attempt: int
    created_at: datetime
    is_locked: bool
    settlement_state: SettlementState


@dataclass(frozen=True, slots=True)
class FillRow:
    attempt: int
    number: int
    hop: int
    quote: UUID | None
    revision: int
    side: Side
    provider: ParticipantId
    source: str
    given_minor: int
    target: str
    received_minor: int
    base_minor: int
    price: str
    fee_ppm: int
    fee_minor: str
    rounding_minor: str
    state: str


# --- quotes


def lock_market(connection: sa.Connection) -> None:
    """Until the end of the transaction."""
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MARKET_LOCK)))


def lock_provider(connection: sa.Connection, provider: ParticipantId) -> None:
    """One posting of a provider at a time, so that its live quotes are counted truly. Until the transaction's end."""
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(f"fx:{provider}", 0))))


def find_quote(connection: sa.Connection, quote: UUID, *, lock: bool = False) -> QuoteRow | None:
    statement = sa.select(m.fx_quote).where(m.fx_quote.c.id == quote)
    row = connection.execute(statement.with_for_update() if lock else statement).one_or_none()
    return None if row is None else _quote(row)


def signed_quote(connection: sa.Connection, quote: UUID, revision: int) -> str | None:
    """The token of a revision."""
    statement = sa.select(m.fx_quote_revision.c.token).where(
        m.fx_quote_revision.c.quote_id == quote, m.fx_quote_revision.c.revision == revision
    )
    return connection.execute(statement).scalar_one_or_none()


def count_live(connection: sa.Connection, terms: QuoteTerms, *, now: datetime) -> tuple[int, int, int]:
    """(of the provider, of the pair in either direction, of both), without the quote itself."""
    pair = (terms.base.code, terms.counter.code)
    quote = m.fx_quote.c
    is_own, is_of_pair = quote.provider == terms.provider, quote.base.in_(pair) & quote.counter.in_(pair)
    statement = (
        sa.select(
            sa.func.count().filter(is_own),
            sa.func.count().filter(is_of_pair),
            sa.func.count().filter(is_own, is_of_pair),
        )
        .select_from(m.fx_quote)
        .where(quote.withdrawn_at.is_(None), quote.valid_until > now, quote.id != terms.quote)
    )
    of_provider, of_pair, of_both = connection.execute(statement).one()
    return of_provider, of_pair, of_both


def save_quote(
    connection: sa.Connection,
    terms: QuoteTerms,
    *,
    token: str,
    bid: str | None,
    offer: str | None,
    keep_priority: bool,
    is_new: bool,
    now: datetime,
) -> None:
    """A new quote, or the next revision of one whose row is locked."""
    values = {
        "revision": terms.revision,
        "bid": bid,
        "bid_size_minor": terms.bid_size_minor,
        "offer": offer,
        "offer_size_minor": terms.offer_size_minor,
        "fee_ppm": terms.fee_ppm,
        "issued_at": terms.issued_at,
        "valid_until": terms.valid_until,
        "posted_at": now,
    }
    if is_new:
        connection.execute(
            m.fx_quote.insert().values(
                id=terms.quote,
                provider=terms.provider,
                base=terms.base.code,
                counter=terms.counter.code,
                priority=0,
                **values,
            )
        )
    place = connection.execute(
        m.fx_quote_revision.insert()
        .values(quote_id=terms.quote, revision=terms.revision, token=token, posted_at=now)
        .returning(m.fx_quote_revision.c.place)
    ).scalar_one()
    if not keep_priority:
        values["priority"] = place
    connection.execute(m.fx_quote.update().where(m.fx_quote.c.id == terms.quote).values(values))


def withdraw_quote(connection: sa.Connection, quote: UUID, *, now: datetime) -> None:
    connection.execute(
        m.fx_quote.update()
        .where(m.fx_quote.c.id == quote, m.fx_quote.c.withdrawn_at.is_(None))
        .values(withdrawn_at=now)
    )


def live_quotes(connection: sa.Connection, currencies: Collection[Currency], *, now: datetime) -> list[StandingQuote]:
    """Live quotes with one of the currencies on either side, in the order of their ids."""
    codes = sorted(currency.code for currency in currencies)
    quote = m.fx_quote.c
    statement = (
        sa.select(m.fx_quote)
        .where(quote.withdrawn_at.is_(None), quote.valid_until > now)
        .where(quote.base.in_(codes) | quote.counter.in_(codes))
        .order_by(quote.id)
    )
    return [_quote(row).standing for row in connection.execute(statement)]


def lock_quotes(connection: sa.Connection, quotes: Collection[UUID]) -> dict[UUID, StandingQuote]:
    """In the order of their ids, as every transaction that locks several does."""
    statement = sa.select(m.fx_quote).where(m.fx_quote.c.id.in_(sorted(quotes))).order_by(m.fx_quote.c.id)
    return {row.id: _quote(row).standing for row in connection.execute(statement.with_for_update())}


def has_live_quotes(connection: sa.Connection, *, now: datetime) -> bool:
    quote = m.fx_quote.c
    statement = sa.select(sa.exists().where(quote.withdrawn_at.is_(None), quote.valid_until > now))
    return bool(connection.execute(statement).scalar_one())


def lock_live_quotes(connection: sa.Connection, provider: ParticipantId, *, now: datetime) -> list[StandingQuote]:
    """All of a provider's, locked in the order of their ids."""
    quote = m.fx_quote.c
    statement = (
        sa.select(m.fx_quote)
        .where(quote.provider == provider, quote.withdrawn_at.is_(None), quote.valid_until > now)
        .order_by(quote.id)
        .with_for_update()
    )
    return [_quote(row).standing for row in connection.execute(statement)]


def quotes_page(
    connection: sa.Connection,
    *,
    provider: ParticipantId | None,
    after: UUID | None,
    limit: int,
    live_at: datetime | None,
) -> list[QuoteRow]:
    """In the order of their ids, which is nearly that of time."""
    statement = sa.select(m.fx_quote).order_by(m.fx_quote.c.id).limit(limit)
    if provider is not None:
        statement = statement.where(m.fx_quote.c.provider == provider)
    if after is not None:
        statement = statement.where(m.fx_quote.c.id > after)
    if live_at is not None:
        statement = statement.where(m.fx_quote.c.withdrawn_at.is_(None), m.fx_quote.c.valid_until > live_at)
    return [_quote(row) for row in connection.execute(statement)]


# --- executions


def find_execution(
    connection: sa.Connection, *, settlement: UUID | None = None, uetr: UUID | None = None
) -> ExecutionRow | None:
    where = m.fx_execution.c.settlement_id == settlement if uetr is None else m.fx_execution.c.uetr == uetr
    row = connection.execute(_EXECUTIONS.where(where)).one_or_none()
    return None if row is None else _execution(row)


def executions_page(
    connection: sa.Connection, *, party: ParticipantId | None, after: UUID | None, limit: int, is_locked: bool
) -> list[ExecutionRow]:
    """In the order of their ids; of one party (payer, payee, submitter or provider), if given."""
    found = m.fx_execution.c
    statement = _EXECUTIONS.order_by(found.settlement_id).limit(limit)
    if party is not None:
        provides = sa.exists().where(m.fx_fill.c.settlement_id == found.settlement_id, m.fx_fill.c.provider == party)
        statement = statement.where(
            (found.payer == party) | (found.payee == party) | (found.submitter == party) | provides
        )
    if after is not None:
        statement = statement.where(found.settlement_id > after)
    if is_locked:
        statement = statement.where(found.is_locked)
    return [_execution(row) for row in connection.execute(statement)]


_EXECUTIONS = sa.select(m.fx_execution, t.settlement.c.state, t.settlement.c.batch_id).join(
    t.settlement, t.settlement.c.id == m.fx_execution.c.settlement_id
)


def _execution(row: sa.Row[Any]) -> ExecutionRow:
    execution = NewExecution(
        row.settlement_id,
        row.uetr,
        ParticipantId(row.submitter),
        bytes(row.request_sha256),
        ParticipantId(row.payer),
        ParticipantId(row.payee),
        Currency.of(row.sell),
        Currency.of(row.buy),
        row.is_sale,
        row.given_minor,
        row.received_minor,
        row.least_received_minor,
        row.most_given_minor,
        row.on_expiry,
        row.lock_expires_at,
    )
    return ExecutionRow(execution, row.batch_id, row.attempt, row.created_at, row.is_locked, SettlementState(row.state))


def insert_execution(connection: sa.Connection, new: NewExecution, *, now: datetime) -> None:
    connection.execute(
        m.fx_execution.insert().values(
            settlement_id=new.settlement,
            uetr=new.uetr,
            submitter=new.submitter,
            request_sha256=new.request_sha256,
            payer=new.payer,
            payee=new.payee,
            sell=new.sell.code,
            buy=new.buy.code,
            is_sale=new.is_sale,
            given_minor=new.given_minor,
            received_minor=new.received_minor,
            least_received_minor=new.least_received_minor,
            most_given_minor=new.most_given_minor,
            on_expiry=new.on_expiry,
            attempt=1,
            lock_expires_at=new.lock_expires_at,
            created_at=now,
        )
    )


def insert_fills(connection: sa.Connection, settlement: UUID, attempt: int, hops: Sequence[Sequence[Fill]]) -> None:
    """Lock what the fills use of their quotes (trigger `fx_fill_counts`). Raises: IntegrityError beyond a size."""
    numbered = [(hop, fill) for hop, fills in enumerate(hops) for fill in fills]
    connection.execute(
        m.fx_fill.insert(),
        [
            {
                "settlement_id": settlement,
                "attempt": attempt,
                "number": number,
                "hop": hop,
                "quote_id": fill.edge.quote,
                "revision": fill.edge.revision,
                "side": fill.edge.side.value,
                "provider": fill.edge.provider,
                "source": fill.edge.source.code,
                "given_minor": fill.given_minor,
                "target": fill.edge.target.code,
                "received_minor": fill.received_minor,
                "base_minor": fill.base_minor,
                "price": str(fill.edge.price),
                "fee_ppm": fill.edge.fee_ppm,
                "fee_minor": str(fill.fee_minor),
                "rounding_minor": str(fill.rounding_minor),
                "state": "reserved",
            }
            for number, (hop, fill) in enumerate(numbered)
        ],
    )


def insert_report(
    connection: sa.Connection, settlement: UUID, attempt: int, report: dict[str, Any], *, now: datetime
) -> None:
    connection.execute(
        m.fx_execution_report.insert().values(settlement_id=settlement, attempt=attempt, report=report, made_at=now)
    )


def reports(connection: sa.Connection, settlement: UUID) -> list[tuple[int, datetime, dict[str, Any]]]:
    """(attempt, made at, report), the first attempt first."""
    found = m.fx_execution_report
    rows = connection.execute(sa.select(found).where(found.c.settlement_id == settlement).order_by(found.c.attempt))
    return [(row.attempt, row.made_at, row.report) for row in rows]


def fills(connection: sa.Connection, settlement: UUID) -> list[FillRow]:
    statement = (
        sa.select(m.fx_fill)
        .where(m.fx_fill.c.settlement_id == settlement)
        .order_by(m.fx_fill.c.attempt, m.fx_fill.c.number)
    )
    return [
        FillRow(
            row.attempt,
            row.number,
            row.hop,
            row.quote_id,
            row.revision,
            Side(row.side),
            ParticipantId(row.provider),
            row.source,
            row.given_minor,
            row.target,
            row.received_minor,
            row.base_minor,
            row.price,
            row.fee_ppm,
            row.fee_minor,
            row.rounding_minor,
            row.state,
        )
        for row in connection.execute(statement)
    ]


# --- locks that end


def has_released(connection: sa.Connection) -> bool:
    fill = m.fx_fill.c
    statement = sa.select(sa.exists().where(fill.state == "released", ~fill.is_returned))
    return bool(connection.execute(statement).scalar_one())


def return_released(connection: sa.Connection, *, limit: int = 1_000) -> int:
    """Give what aborted settlements had locked back to its quotes; how many fills."""
    fill = m.fx_fill.c
    keys = connection.execute(
        sa.select(fill.settlement_id, fill.attempt, fill.number, fill.quote_id)
        .where(fill.state == "released", ~fill.is_returned)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    if not keys:
        return 0
    lock_quotes(connection, {row.quote_id for row in keys if row.quote_id is not None})
    connection.execute(
        m.fx_fill.update()
        .where(
            fill.settlement_id == sa.bindparam("key"),
            fill.attempt == sa.bindparam("key_attempt"),
            fill.number == sa.bindparam("key_number"),
        )
        .values(is_returned=True),
        [{"key": row.settlement_id, "key_attempt": row.attempt, "key_number": row.number} for row in keys],
    )
    return len(keys)


def expired_locks(
    connection: sa.Connection,
    *,
    now: datetime,
    limit: int,
    after: tuple[datetime, UUID] | None = None,
    settlement: UUID | None = None,
) -> list[tuple[datetime, UUID]]:
    """Undecided executions whose lock has expired and which nobody has given up yet: since when, and which; in this
    order, after that one. Of `settlement` alone, if it is given."""
    order = (m.fx_execution.c.lock_expires_at, m.fx_execution.c.settlement_id)
    statement = (
        sa.select(*order)
        .join(t.settlement, t.settlement.c.id == m.fx_execution.c.settlement_id)
        .where(m.fx_execution.c.is_locked, m.fx_execution.c.lock_expires_at <= now)
        .where(t.settlement.c.abort_requested_at.is_(None))
        # A netting under way stands for it as it is: its price ends with that netting, one way or the other.
        .where(t.settlement.c.netted_by.is_(None))
        .where(t.settlement.c.state.in_([SettlementState.RECEIVED.value, SettlementState.PREPARED.value]))
        .order_by(*order)
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(sa.tuple_(*order) > sa.tuple_(*(sa.literal(value) for value in after)))
    if settlement is not None:
        statement = statement.where(m.fx_execution.c.settlement_id == settlement)
    return [(row.lock_expires_at, row.settlement_id) for row in connection.execute(statement)]


def lock_settlement(connection: sa.Connection, settlement: UUID) -> SettlementState | None:
    """Its state, which nobody changes until this transaction's end; None while a netting stands for it."""
    columns = sa.select(t.settlement.c.state, t.settlement.c.netted_by)
    row = connection.execute(columns.where(t.settlement.c.id == settlement).with_for_update()).one()
    return None if row.netted_by is not None else SettlementState(row.state)


def release_fills(connection: sa.Connection, settlement: UUID) -> None:
    """Before a re-quote. Their quotes' rows must be locked."""
    fill = m.fx_fill.c
    connection.execute(
        m.fx_fill.update()
        .where(fill.settlement_id == settlement, fill.state == "reserved")
        .values(state="released", is_returned=True)
    )


def replace_legs(
    connection: sa.Connection,
    settlement: UUID,
    legs: Sequence[LegTerms],
    *,
    attempt: int,
    given_minor: int,
    received_minor: int,
    rate: str,
    rate_provider: ParticipantId | None,
    lock_expires_at: datetime,
) -> None:
    """Of an execution that the engine has not taken (function `fx_remove_legs` refuses any other)."""
    connection.execute(sa.select(sa.func.fx_remove_legs(settlement)))
    connection.execute(
        t.leg.insert(),
        [
            {
                "settlement_id": settlement,
                "number": number,
                "ledger": terms.ledger,
                "payer": terms.payer,
                "payee": terms.payee,
                "debit": terms.debit,
                "credit": terms.credit,
                "amount_minor": terms.amount.amount_minor,
                "currency": terms.amount.currency.code,
                "state": LegState.PENDING.value,
            }
            for number, terms in enumerate(legs)
        ],
    )
    connection.execute(
        t.settlement.update()
        .where(t.settlement.c.id == settlement)
        .values(creditor=legs[0].payee, rate=rate, rate_provider=rate_provider)
    )
    connection.execute(
        m.fx_execution.update()
        .where(m.fx_execution.c.settlement_id == settlement)
        .values(
            attempt=attempt, given_minor=given_minor, received_minor=received_minor, lock_expires_at=lock_expires_at
        )
    )


def remainders(
    connection: sa.Connection, *, provider: ParticipantId | None
) -> list[tuple[ParticipantId, str, Fraction]]:
    """What rounding has left with each provider in consumed fills, by currency, in minor units; exact."""
    fill = m.fx_fill.c
    numerator = sa.cast(sa.func.split_part(fill.rounding_minor, "/", 1), sa.Numeric)
    denominator = sa.func.split_part(fill.rounding_minor, "/", 2)
    statement = (
        sa.select(fill.provider, fill.target, denominator, sa.func.sum(numerator))
        .where(fill.state == "consumed")
        .group_by(fill.provider, fill.target, denominator)
    )
    if provider is not None:
        statement = statement.where(fill.provider == provider)
    sums: dict[tuple[str, str], Fraction] = {}
    for name, currency, below, above in connection.execute(statement):
        key = (name, currency)
        sums[key] = sums.get(key, Fraction(0)) + Fraction(int(above), int(below or 1))
    return [(ParticipantId(key[0]), key[1], found) for key, found in sorted(sums.items())]


def _quote(row: sa.Row[Any]) -> QuoteRow:
    terms = QuoteTerms(
        row.id,
        row.revision,
        ParticipantId(row.provider),
        Currency.of(row.base),
        Currency.of(row.counter),
        None if row.bid is None else Fraction(row.bid),
        row.bid_size_minor,
        None if row.offer is None else Fraction(row.offer),
        row.offer_size_minor,
        row.fee_ppm,
        row.issued_at,
        row.valid_until,
    )
    standing = StandingQuote(terms, row.priority, row.bid_used_minor, row.offer_used_minor, row.withdrawn_at)
    return QuoteRow(standing, row.posted_at)
