"""Whole balances against the bridge's sums: what no look-up of single legs shows.

The control asks each island about each leg, and believes its answer. Here the island's accounts themselves are read,
a few questions an island however many legs there are, and nothing may be less than what the bridge's legs add up to:

1. *open legs*: what an account has reserved (native), or what the escrow has and counts as held (chains), covers every
   leg that is held and not decided. A leg counts if it stood so before and after the reading: a hold that nobody has
   decided cannot end in between;
2. *ended legs*: an account was debited, and credited, at least what the bridge's posted legs debit and credit. The
   bridge's sums are read first, and the island posts before the bridge records it, so the island is never behind.

More is no contradiction: others pay from the same accounts. So on an account with much other traffic a small loss of
posted money shows here only when it exceeds that traffic; the look-up of legs finds it at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from uuid import UUID

import sqlalchemy as sa

from kernel import ids
from kernel.database import Database
from kernel.ids import AccountNumber, ParticipantId
from kernel.money import Currency
from settlement.domain.escrow import LegState, SettlementState
from settlement.domain.reconciliation import AgeBucket, Break, BreakType
from settlement.islands.balances import ShowsEscrow, ShowsTotals, Totals
from settlement.islands.port import Island
from settlement.store import reconciliation_tables as rt
from settlement.store import tables as t
from settlement.store.reconciliation import Relation

COUNTERPARTY = "control"
ACCOUNTS_MAX = 1_000
"""With ended legs, of one comparison: the next one goes on behind them."""
OPEN_LEGS_MAX = 50_000
"""Of more a part is looked at: what is compared is smaller than what there is, so nothing is alarmed for nothing."""


@dataclass(frozen=True, slots=True)
class _Account:
    ledger: str
    number: AccountNumber
    participant: ParticipantId
    currency: str


Place = tuple[str, int, str, str]
"""In the running sums: ledger, account, participant, currency."""


@dataclass(slots=True)
class _Sums:
    held_minor: int = 0
    debits_minor: int = 0
    credits_minor: int = 0


def find_contradictions(
    database: Database, islands: Mapping[str, Island], *, bridge: ParticipantId, today: date, behind: Place | None
) -> tuple[list[tuple[Relation, Break]], Place | None]:
    """One comparison: of every open leg, and of ACCOUNTS_MAX accounts with ended legs behind a place. Returns
    the place for the next one too (None = from the beginning). Holds no transaction while islands are asked.

    What an account lacks is its participant's affair; what the escrow lacks, which is everybody's, is the bridge's.
    """
    with database.transaction(isolation="READ COMMITTED") as connection:
        sums, place = _ended(connection, behind)
        before = _open(connection)
    asked: defaultdict[str, list[_Account]] = defaultdict(list)
    for account in sorted({*sums, *(account for account, _ in before.values())}, key=str):
        asked[account.ledger].append(account)
    totals: dict[_Account, Totals] = {}
    escrows: dict[str, tuple[int, int]] = {}
    for ledger, accounts in asked.items():
        island = islands.get(ledger)
        if isinstance(island, ShowsTotals):
            answers = island.totals_of([account.number for account in accounts])
            totals |= {account: found for account, found in zip(accounts, answers, strict=True) if found is not None}
        elif isinstance(island, ShowsEscrow):
            escrow = island.escrow_totals()
            if escrow is not None and escrow.balance_minor < escrow.held_minor:
                escrow = island.escrow_totals()  # holds may have ended and begun meanwhile: it counts if it stays so
            if escrow is not None:
                escrows[ledger] = (escrow.balance_minor, escrow.held_minor)
    with database.transaction(isolation="READ COMMITTED") as connection:
        after = _open(connection)
    for key in before.keys() & after.keys():
        account, amount = before[key]
        sums.setdefault(account, _Sums()).held_minor += amount
    found = list(_of_accounts(sums, totals, today))
    for ledger, (balance, held) in sorted(escrows.items()):
        found += _of_escrow(ledger, balance, held, sums, bridge, today)
    return found, place


def _ended(connection: sa.Connection, behind: Place | None) -> tuple[dict[_Account, _Sums], Place | None]:
    """The sums behind a place, and the place where the next ones are."""
    table = rt.control_balance
    order = (table.c.ledger, table.c.account, table.c.participant, table.c.currency)
    statement = sa.select(table).order_by(*order).limit(ACCOUNTS_MAX)
    if behind is not None:
        statement = statement.where(sa.tuple_(*order) > sa.tuple_(*map(sa.literal, behind)))
    rows = connection.execute(statement).all()
    place = None
    if len(rows) == ACCOUNTS_MAX:
        place = (rows[-1].ledger, rows[-1].account, rows[-1].participant, rows[-1].currency)
    sums = {
        _Account(row.ledger, AccountNumber(row.account), ParticipantId(row.participant), row.currency): _Sums(
            0, int(row.debits_minor), int(row.credits_minor)
        )
        for row in rows
    }
    return sums, place


def _open(connection: sa.Connection) -> dict[tuple[UUID, int], tuple[_Account, int]]:
    """Legs that are held while nothing is decided."""
    rows = connection.execute(
        sa.select(t.leg)
        .join(t.settlement, t.settlement.c.id == t.leg.c.settlement_id)
        .where(t.settlement.c.state == SettlementState.PREPARED.value, t.leg.c.state == LegState.HELD.value)
        .order_by(t.leg.c.settlement_id, t.leg.c.number)
        .limit(OPEN_LEGS_MAX)
    )
    return {
        (row.settlement_id, row.number): (
            _Account(row.ledger, AccountNumber(row.debit), ParticipantId(row.payer), row.currency),
            row.amount_minor,
        )
        for row in rows
    }


def _of_accounts(
    sums: Mapping[_Account, _Sums], totals: Mapping[_Account, Totals], today: date
) -> Iterator[tuple[Relation, Break]]:
    for account, shown in totals.items():
        ours = sums.get(account, _Sums())
        for what, bridge, island in (
            ("held", ours.held_minor, shown.reserved_minor),
            ("debited", ours.debits_minor, shown.debits_minor),
            ("credited", ours.credits_minor, shown.credits_minor),
        ):
            if island < bridge:
                name = ids.show_account(account.number)
                relation = Relation(account.participant, COUNTERPARTY, account.currency, name, "same-account")
                yield _contradiction(relation, account.ledger, f"{what} on {name}", bridge, island, today)


def _of_escrow(
    ledger: str, balance: int, held: int, sums: Mapping[_Account, _Sums], bridge: ParticipantId, today: date
) -> Iterator[tuple[Relation, Break]]:
    of_ledger = [account for account in sums if account.ledger == ledger]
    if not of_ledger:
        return
    ours = sum(sums[account].held_minor for account in of_ledger)
    relation = Relation(bridge, COUNTERPARTY, min(account.currency for account in of_ledger), ledger, "same-account")
    if held < ours:
        yield _contradiction(relation, ledger, "counted as held by the escrow", ours, held, today)
    if balance < held:
        yield _contradiction(relation, ledger, "held by the escrow, which counts them", held, balance, today)


def _contradiction(
    relation: Relation, ledger: str, what: str, wanted: int, there: int, today: date
) -> tuple[Relation, Break]:
    currency = Currency.of(relation.currency)
    sentence = f"{ledger}: {wanted} minor units of {relation.currency} are to be {what}; there are {there}."
    found = Break(
        BreakType.MOVEMENT,
        (f"{ledger} {what}"[:140],),
        (),
        None,
        None,
        there - wanted,
        ((currency, wanted - there),),
        0,
        AgeBucket.DAYS_0_1,
        sentence,
        oldest=today,
    )
    return relation, found
