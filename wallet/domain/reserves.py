"""What an operator owes to the rules for the wallets it keeps (pack 2026-01): reserve base, or margin.

A bank's wallet balances count in the base of its required reserves. An operator that is no bank keeps a margin of a
percentage of them with the central bank, 100 in the pack of 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from wallet.domain.rules import WalletClass


class OperatorKind(StrEnum):
    BANK = "bank"
    NON_BANK = "non-bank"


@dataclass(frozen=True, slots=True)
class ReserveReport:
    """Of one operator, as of the end of a day; minor units."""

    day: date
    participant: str
    operator_kind: OperatorKind
    rule_pack: str
    balances_minor: Mapping[WalletClass, int]
    escrow_minor: int
    total_minor: int
    reserve_base_minor: int
    margin_required_minor: int
    margin_held_minor: int | None
    """As the operator states it; None = not stated."""
    shortfall_minor: int | None
    """What the margin lacks; None = not known."""
    surplus_minor: int | None


def report(
    *,
    day: date,
    participant: str,
    operator_kind: OperatorKind,
    rule_pack: str,
    in_reserve_base: bool,
    margin_percent: int,
    balances_minor: Mapping[WalletClass, int],
    escrow_minor: int,
    margin_held_minor: int | None,
) -> ReserveReport:
    """The margin is rounded up: a part of a fen that is owed is owed."""
    total = sum(balances_minor.values()) + escrow_minor
    is_bank = operator_kind is OperatorKind.BANK
    required = 0 if is_bank else -(-total * margin_percent // 100)
    lacking = None if margin_held_minor is None else max(required - margin_held_minor, 0)
    over = None if margin_held_minor is None else max(margin_held_minor - required, 0)
    return ReserveReport(
        day=day,
        participant=participant,
        operator_kind=operator_kind,
        rule_pack=rule_pack,
        balances_minor=balances_minor,
        escrow_minor=escrow_minor,
        total_minor=total,
        reserve_base_minor=total if is_bank and in_reserve_base else 0,
        margin_required_minor=required,
        margin_held_minor=margin_held_minor,
        shortfall_minor=0 if required == 0 else lacking,
        surplus_minor=over,
    )
