"""`exchange-check`: a day's exchanges against the bank's books and the ledger's vault.

1. this service's exchanges begun on the day, and all that are unfinished since before
2. the bank's postings and the vault's lines of the day
3. for legs of 1 that are not in 2 (booked around midnight, or days later): asked for by id, one by one
4. lines of 2 of another day's exchange are compared with it; what belongs to no exchange is unknown here
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from uuid import UUID

from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.errors import ProblemError, RequestRefusal
from ledger.contract import LedgerRefusal, TransferKind
from wallet.domain.core_banking import PostingOutcome
from wallet.domain.exchange_check import Break, Direction, Entry, Exchange, Leg, check, of_exchange_in, of_exchange_out
from wallet.store import exchange_check as store
from wallet.usecases.context import Context, ledger_unavailable

_PAGE = 1_000
_KINDS = (TransferKind.EXCHANGE_IN, TransferKind.EXCHANGE_OUT)


@dataclass(frozen=True, slots=True)
class Checked:
    day: date
    exchanges: int
    bank_postings: int
    vault_lines: int
    breaks: Sequence[Break]


def check_day(context: Context, day: date) -> Checked:
    """Raises: ProblemError(service-unavailable) while one of the two other systems does not answer."""
    since = datetime.combine(day, time.min, tzinfo=context.time_zone)
    until = datetime.combine(day + timedelta(days=1), time.min, tzinfo=context.time_zone)
    # The other books first: an exchange that goes on meanwhile then has at most less to show there than it says.
    vault = list(_vault_lines(context, since=since, until=until))
    bank = list(_postings(context, since=since, until=until))
    with context.database.transaction(isolation="REPEATABLE READ") as connection:
        exchanges = [
            *(of_exchange_in(row) for row in store.exchanges_in(connection, since=since, until=until)),
            *(of_exchange_out(row) for row in store.exchanges_out(connection, since=since, until=until)),
        ]
        mine = {(leg.side, leg.id) for exchange in exchanges for leg in exchange.legs}
        strange = [entry.id for entry in (*vault, *bank) if (entry.side, entry.id) not in mine]
        came_in, went_out = store.exchanges_near(connection, strange)
    entries = [*vault, *bank]
    seen = {(entry.side, entry.id) for entry in entries}
    for exchange in exchanges:
        for leg in exchange.legs:
            if leg.need == "must" and (leg.side, leg.id) not in seen:
                entries += _look_up(context, exchange, leg)
    known = {(exchange.direction, exchange.id) for exchange in exchanges}
    others = [*(of_exchange_in(row) for row in came_in), *(of_exchange_out(row) for row in went_out)]
    for exchange in others:
        legs = [leg for leg in exchange.legs if (leg.side, leg.id) in seen]
        if legs and (exchange.direction, exchange.id) not in known:
            exchanges.append(replace(exchange, legs=legs, is_finished=True))
    breaks = check(exchanges, entries, now=context.clock())
    return Checked(day, len(known), len(bank), len(vault), breaks)


def _vault_lines(context: Context, *, since: datetime, until: datetime) -> Iterator[Entry]:
    home = context.ledgers.home
    vault = context.ledgers.vault(home)
    cursor: str | None = None
    while True:
        try:
            page = home.client.statement(vault, cursor=cursor, limit=_PAGE, newest_first=True)
        except (ProblemResponse, ServiceUnreachable) as error:
            raise ledger_unavailable(error) from error
        for line in page.lines:
            if line.booked_at < since:
                return
            if line.booked_at < until and line.kind in _KINDS:
                yield Entry("ledger", line.transfer, line.direction, line.amount_minor, line.booked_at)
        cursor = page.next_cursor
        if cursor is None:
            return


def _postings(context: Context, *, since: datetime, until: datetime) -> Iterator[Entry]:
    after: tuple[datetime, UUID] | None = None
    while True:
        try:
            page = context.core_banking.statement(since=since, until=until, after=after, limit=_PAGE)
        except Exception as error:  # of another system, of any kind
            raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "core banking gives no statement now") from error
        for posting in page:
            yield Entry("bank", posting.id, posting.direction, posting.amount_minor, posting.booked_at)
        if len(page) < _PAGE:
            return
        after = (page[-1].booked_at, page[-1].id)


def _look_up(context: Context, exchange: Exchange, leg: Leg) -> list[Entry]:
    """The leg's line of another day, if there is one."""
    if leg.side == "bank":
        try:
            outcome = context.core_banking.look_up(leg.id)
        except Exception as error:  # of another system, of any kind
            raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "core banking does not answer now") from error
        if outcome is not PostingOutcome.BOOKED:
            return []
        # The bank says that it is booked; its amount is in the statement of its own day, which that day's check reads.
        return [Entry("bank", leg.id, leg.direction, exchange.amount_minor, exchange.created_at)]
    try:
        view = context.ledgers.home.client.get_transfer(leg.id)
    except ServiceUnreachable as error:
        raise ledger_unavailable(error) from error
    except ProblemResponse as error:
        if error.refusal == LedgerRefusal.TRANSFER_NOT_FOUND.value:
            return []
        raise ledger_unavailable(error) from error
    vault = context.ledgers.vault(context.ledgers.home)
    direction: Direction = "debit" if view.debit == vault else "credit"
    return [Entry("ledger", leg.id, direction, view.amount_minor, view.booked_at)]
