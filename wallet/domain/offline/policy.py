"""What an institution lets its purses do."""

from __future__ import annotations

from dataclasses import dataclass

DAY = 86_400


@dataclass(frozen=True, slots=True)
class Policy:
    """Caps in minor units, times in seconds. The values are assumed: no published source gives the e-CNY's."""

    balance_max_minor: int = 1_000_00
    """What a purse may hold, and the most that a hacked one costs the institution."""
    single_max_minor: int = 500_00
    hops_max: int = 4
    life_seconds: int = 30 * DAY
    grace_seconds: int = 7 * DAY
    """After expiry, for payees to sync."""
    purses_unsettled_max: int = 3
    """Of one wallet: the active one, and lost or expired ones that are not settled yet."""


POLICY = Policy()
