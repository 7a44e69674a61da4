"""The independent verifier: replays the journal from its export alone and checks every invariant (I1-I9).

It shares no code with the engine (an import contract holds it to that): one error cannot hide in both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ledger.verifier.report import Finding, Report, Supply
from ledger.verifier.verify import Known, verify_export, verify_source

if TYPE_CHECKING:
    from ledger.verifier.database import verify_database, verify_transaction

__all__ = [
    "Finding",
    "Known",
    "Report",
    "Supply",
    "verify_database",
    "verify_export",
    "verify_source",
    "verify_transaction",
]


def __getattr__(name: str) -> Any:
    """The database's door comes with its driver: who verifies an export, in several processes, does not wait for it."""
    if name in ("verify_database", "verify_transaction"):
        from ledger.verifier import database

        return getattr(database, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
