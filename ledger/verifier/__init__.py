"""The independent verifier: replays the journal from its export alone and checks every invariant (I1-I9).

It shares no code with the engine (an import contract holds it to that): one error cannot hide in both.
"""

from __future__ import annotations

from ledger.verifier.database import verify_database, verify_transaction
from ledger.verifier.report import Finding, Report, Supply
from ledger.verifier.verify import Known, verify_export, verify_source

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
