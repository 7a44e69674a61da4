"""What accounts have on their islands, where an island shows it: the positions a run of the queue starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from kernel.ids import AccountNumber
from settlement.islands.port import Island


@runtime_checkable
class ShowsBalances(Protocol):
    def available_of(self, accounts: Sequence[AccountNumber]) -> list[int | None]:
        """Minor units available in each account, holds taken off; None = not shown, or no answer."""
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
