"""The end of a hold with the time at which the ledger booked it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from settlement.islands.port import Ended


@dataclass(frozen=True, slots=True)
class Booked(Ended):
    """`booked_at` (UTC) is the ledger's own: the value date of a posted leg is its day, at the bridge as on the ledger.

    A plain `Ended` is an end whose booking time the island does not know.
    """

    booked_at: datetime | None = field(default=None)
