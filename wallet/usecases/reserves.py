"""Closing balances of a day, wallet by wallet: what the reserve base and the margin are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from kernel.errors import ProblemError, RequestRefusal
from kernel.ids import AccountNumber
from wallet.domain.limits import scheme_day
from wallet.domain.rules import LiabilityRules, RulePack, WalletClass, in_force
from wallet.store import interest, wallets
from wallet.usecases.context import Context
from wallet.usecases.interest import closing_balances


@dataclass(frozen=True, slots=True)
class Balances:
    pack: RulePack
    liability: LiabilityRules | None
    escrow_minor: int | None
    items: Sequence[tuple[UUID, WalletClass, int]]
    last: UUID | None
    """The last wallet looked at; None = there are no more."""


def balances_of(context: Context, day: date, *, after: UUID | None, limit: int) -> Balances:
    """Of at most `limit` wallets, in order of id, those that were not open on the day left out.

    Raises: ProblemError(validation-failed) for a day that is not over, ProblemError(service-unavailable).
    """
    if day >= scheme_day(context.clock(), context.time_zone):
        raise ProblemError(RequestRefusal.VALIDATION_FAILED, "the day is not over yet: ask for one that is")
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        rows = wallets.list_wallets(connection, customer_id=None, after=after, limit=limit)
        escrow = interest.purse_escrow_account(connection, context.ledgers.home.name) if after is None else None
        changes = {row.id: interest.class_changes(connection, row.id) for row in rows}
    found = []
    for row in rows:
        if row.account is None or row.opened_at is None or scheme_day(row.opened_at, context.time_zone) > day:
            continue
        wallet_class = row.opened_in_class or row.wallet_class
        for moment, became in changes[row.id]:
            if scheme_day(moment, context.time_zone) <= day:
                wallet_class = became
        found.append((row.id, wallet_class, _closing_balance(context, row.account, day)))
    pack = in_force(context.packs or (context.pack,), day) or context.pack
    return Balances(
        pack=pack,
        liability=pack.liability,
        escrow_minor=None if after is not None else 0 if escrow is None else _closing_balance(context, escrow, day),
        items=found,
        last=rows[-1].id if len(rows) == limit else None,
    )


def _closing_balance(context: Context, account: AccountNumber, day: date) -> int:
    steps, before = closing_balances(context, account, first_on=day, last_on=day)
    return steps.get(day, before)
