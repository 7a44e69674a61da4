"""What accounts have on their islands, where an island shows it: the positions a run of the queue starts from, and
what the control compares the bridge's own sums with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from kernel.ids import AccountNumber
from settlement.islands.port import Island


@runtime_checkable
class ShowsBalances(Protocol):
    def available_of(self, accounts: Sequence[AccountNumber]) -> list[int | None]:
        """Minor units available in each account, holds taken off; None = not shown, or no answer."""
        ...


@dataclass(frozen=True, slots=True)
class Totals:
    """Of one account, in minor units: what holds of anybody reserve, and what was ever debited and credited."""

    reserved_minor: int
    debits_minor: int
    credits_minor: int


@runtime_checkable
class ShowsTotals(Protocol):
    """A ledger whose accounts count their own movements."""

    def totals_of(self, accounts: Sequence[AccountNumber]) -> list[Totals | None]:
        """None = not shown, or no answer."""
        ...


@dataclass(frozen=True, slots=True)
class EscrowTotals:
    """Of a contract that keeps everybody's held money in one place, in minor units, at one block."""

    balance_minor: int
    held_minor: int
    """What its standing holds add up to, by its own count."""


@runtime_checkable
class ShowsEscrow(Protocol):
    def escrow_totals(self) -> EscrowTotals | None:
        """None = no answer."""
        ...


def read_available(
    islands: Mapping[str, Island], wanted: Mapping[str, Sequence[AccountNumber]]
) -> dict[tuple[str, AccountNumber], int | None]:
    """By (ledger, account). An island without this answer gives None for all."""
    found: dict[tuple[str, AccountNumber], int | None] = {}
    for ledger, accounts in sorted(wanted.items()):
        island = islands.get(ledger)
        answers: Sequence[int | None] = [None] * len(accounts)
        if isinstance(island, ShowsBalances):
            answers = island.available_of(accounts)
        found.update({(ledger, account): answer for account, answer in zip(accounts, answers, strict=True)})
    return found
