"""The independent verifier: replays the journal from its tables alone and checks every invariant (I1-I9).

It shares no code with the engine (an import contract holds it to that): one error cannot hide in both.
"""

from __future__ import annotations

from ledger.verifier.report import Finding, Report, Supply
from ledger.verifier.verify import verify_database, verify_transaction

__all__ = ["Finding", "Report", "Supply", "verify_database", "verify_transaction"]
