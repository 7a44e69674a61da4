"""Models of interest, of the reserve base, and of the check of exchanges."""

from __future__ import annotations

from datetime import date
from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from ledger.contract import Amount, Model, Moment, ParticipantRef, SignedAmount, TransferRef
from wallet.contract import WalletRef, WalletState
from wallet.domain.exchange_check import BreakKind as BreakKind
from wallet.domain.reserves import OperatorKind as OperatorKind
from wallet.domain.rules import DayCount, WalletClass

Exact = Annotated[
    str,
    Field(
        pattern=r"^-?[0-9]+(/[1-9][0-9]*)?$",
        description="Minor units as a fraction in lowest terms, n or n/d.",
        examples=["1500", "7/200"],
    ),
]


# --- interest --------------------------------------------------------------------------------------------------------


class InterestDays(Model):
    """Days in a row with one closing balance, class and rate; both ends included."""

    first_on: date
    last_on: date
    days: int
    wallet_class: WalletClass
    balance_minor: Amount
    rate_ppm_per_year: int
    day_count: DayCount
    rule_pack: str
    exact_minor: Exact


class InterestView(Model):
    """What has accrued to the end of yesterday and is not settled yet."""

    wallet: WalletRef
    wallet_class: WalletClass
    rule_pack: str
    rate_ppm_per_year: int
    """Of the wallet's class today; 0 = it earns nothing."""
    rate_assumed: bool
    """Day count and rounding are published by no source."""
    first_on: date | None
    last_on: date | None
    exact_minor: Exact
    accrued_minor: Amount
    """What would be credited if it were settled now."""
    next_settled_on: date | None
    next_credited_on: date | None
    days: list[InterestDays]


class InterestSettlementState(StrEnum):
    DUE = "due"
    """Fixed, and credited as soon as the day has come and the ledger takes it."""
    CREDITED = "credited"
    NOTHING = "nothing"
    """It rounds to nothing."""


class InterestSettlementView(Model):
    """credited = exact - remainder, exactly."""

    first_on: date
    last_on: date
    kind: Literal["quarter", "closure"]
    exact_minor: Exact
    credited_minor: Amount
    remainder_minor: Exact
    credit_on: date
    state: InterestSettlementState
    transfer: TransferRef
    refusal: str | None
    seq: int | None
    booked_at: Moment | None
    days: list[InterestDays]


class InterestPreview(Model):
    wallet: WalletRef
    wallet_class: WalletClass
    state: WalletState
    first_on: date | None
    last_on: date | None
    exact_minor: Exact
    accrued_minor: Amount


class InterestTotal(Model):
    """One page of the remainder account: all settlements whose period ends on a day."""

    last_on: date
    settlements: int
    exact_minor: Exact
    credited_minor: Amount
    """Fixed for the holders, whether credited yet or not."""
    remainder_minor: Exact
    due: int
    due_minor: Amount


class InterestRunView(Model):
    """What one bounded pass has done; ask again while `is_finished` is false."""

    settled_on: date | None
    """The quarter that ended last; None = no quarter has ended under a pack with interest."""
    settled: int
    credited: int
    is_finished: bool


class InterestTotals(Model):
    items: list[InterestTotal]


# --- reserves --------------------------------------------------------------------------------------------------------


class ReserveBalance(Model):
    wallet: WalletRef
    wallet_class: WalletClass
    balance_minor: Amount


class ReservePage(Model):
    """Closing balances of a day, wallet by wallet."""

    day: date
    participant: ParticipantRef
    operator_kind: OperatorKind
    rule_pack: str
    currency: str
    in_reserve_base: bool
    """Whether the pack in force on the day counts a bank's wallet balances."""
    margin_percent: int
    """What the pack asks of an operator that is no bank."""
    escrow_minor: Amount | None
    """Held for offline purses; on the first page only."""
    items: list[ReserveBalance]
    next_cursor: str | None


# --- the check of exchanges ------------------------------------------------------------------------------------------


class ExchangeBreak(Model):
    kind: BreakKind
    side: Literal["bank", "ledger"] | None
    exchange: UUID | None
    """Of an exchange in its id, of one out its transfer's."""
    entry: UUID | None
    wallet: WalletRef | None
    expected_minor: Amount | None
    found_minor: SignedAmount | None
    since: Moment
    age_seconds: int
    next_step: str


class ExchangeCheckView(Model):
    day: date
    exchanges: int
    bank_postings: int
    vault_lines: int
    break_count: int
    breaks: list[ExchangeBreak]
    """The worst first; at most `EXCHANGE_BREAKS_MAX`."""


EXCHANGE_BREAKS_MAX = 1_000
