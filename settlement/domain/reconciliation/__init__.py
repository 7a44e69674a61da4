"""Reconciliation: our lines of an account against the counterparty's, every difference a typed break."""

from settlement.domain.reconciliation.checks import check_statement, check_succession
from settlement.domain.reconciliation.matcher import reconcile, reconcile_statements
from settlement.domain.reconciliation.model import (
    JOURNAL,
    AgeBucket,
    Break,
    BreakType,
    Match,
    MatchRule,
    ReconciliationResult,
    Rules,
    Severity,
    Side,
    Totals,
    View,
    age_bucket,
    severity,
)

__all__ = [
    "JOURNAL",
    "AgeBucket",
    "Break",
    "BreakType",
    "Match",
    "MatchRule",
    "ReconciliationResult",
    "Rules",
    "Severity",
    "Side",
    "Totals",
    "View",
    "age_bucket",
    "check_statement",
    "check_succession",
    "reconcile",
    "reconcile_statements",
    "severity",
]
