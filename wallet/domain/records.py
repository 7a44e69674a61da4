"""What the wallet service keeps: customers, wallets, payments, exchanges, settlement orders. Plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Literal
from uuid import UUID

from kernel.ids import AccountNumber, derive_uuid7
from wallet.domain.limits import NO_CAPS, Caps, Usage
from wallet.domain.rules import Evidence, WalletClass

WalletStateName = Literal["opening", "open", "refused", "suspended", "closing", "closed"]
PaymentKind = Literal["payment", "refund", "exchange-out"]
PaymentStateName = Literal["initiated", "final", "refused"]
ExchangeStateName = Literal["initiated", "debited", "compensating", "final", "refused", "compensated"]


@dataclass(frozen=True, slots=True)
class Customer:
    id: UUID
    evidence: frozenset[Evidence]
    wrapped_key: bytes
    personal_data: bytes
    created_at: datetime

    @property
    def is_erased(self) -> bool:
        """The key is destroyed, and with it everything that it opened."""
        return not self.wrapped_key


@dataclass(frozen=True, slots=True)
class Wallet:
    id: UUID
    customer_id: UUID
    wallet_class: WalletClass
    rule_pack: str
    device_key: Mapping[str, str]
    device_thumbprint: str
    state: WalletStateName
    opening_id: UUID
    account: AccountNumber | None
    refusal: str | None
    detail: str | None
    usage: Usage
    created_at: datetime
    opened_at: datetime | None
    other_device_keys: Mapping[str, Mapping[str, str]] | None = None
    """By thumbprint; None = the first device is the only active one."""
    changing_to: WalletClass | None = None
    own_caps: Caps = NO_CAPS
    """What the holder has set; the class's hold beside them."""
    suspensions: frozenset[str] = frozenset()
    closed_at: datetime | None = None
    opened_in_class: WalletClass | None = None
    opened_with: str = ""
    """Class and device that were asked for at the opening, whatever they are now."""

    @property
    def devices(self) -> dict[str, Mapping[str, str]]:
        """Active devices' keys by thumbprint, the first first."""
        return {self.device_thumbprint: self.device_key, **(self.other_device_keys or {})}


@dataclass(frozen=True, slots=True)
class Payment:
    """A transfer that a holder has signed, and what became of it. Known by the transfer's id."""

    id: UUID
    wallet_id: UUID
    kind: PaymentKind
    debit_account: AccountNumber
    credit_account: AccountNumber
    amount_minor: int
    currency: str
    reference: UUID | None
    instruction: str
    valid_until: datetime
    state: PaymentStateName
    refusal: str | None
    is_transient: bool | None
    detail: str | None
    seq: int | None
    booked_at: datetime | None
    counted_on: date | None
    deposit_credited_at: datetime | None
    created_at: datetime
    tried_at: datetime

    @property
    def deposit_credit_id(self) -> UUID:
        """Of an exchange-out: the id under which the bank deposit is credited, whoever retries."""
        return derive_uuid7(self.id, "deposit-credit")

    def booked(self, seq: int | None, booked_at: datetime) -> Payment:
        """The same, final. Spelt out because it is made for every payment, and `replace` takes thrice as long."""
        return Payment(
            self.id,
            self.wallet_id,
            self.kind,
            self.debit_account,
            self.credit_account,
            self.amount_minor,
            self.currency,
            self.reference,
            self.instruction,
            self.valid_until,
            "final",
            self.refusal,
            self.is_transient,
            self.detail,
            seq,
            booked_at,
            self.counted_on,
            self.deposit_credited_at,
            self.created_at,
            self.tried_at,
        )

    def has_terms_of(self, other: Payment) -> bool:
        """Whether both carry the same terms (the signature and its expiry may differ)."""
        return (
            self.id,
            self.kind,
            self.debit_account,
            self.credit_account,
            self.amount_minor,
            self.currency,
            self.reference,
        ) == (
            other.id,
            other.kind,
            other.debit_account,
            other.credit_account,
            other.amount_minor,
            other.currency,
            other.reference,
        )


@dataclass(frozen=True, slots=True)
class ExchangeIn:
    """Deposit for currency: a saga whose every step has an id derived from the exchange's."""

    id: UUID
    wallet_id: UUID
    amount_minor: int
    currency: str
    state: ExchangeStateName
    attempt: int
    claimed_until: datetime
    unknown_until: datetime | None
    refusal: str | None
    detail: str | None
    seq: int | None
    booked_at: datetime | None
    created_at: datetime

    @property
    def transfer_id(self) -> UUID:
        return derive_uuid7(self.id, "exchange-in")

    @property
    def deposit_debit_id(self) -> UUID:
        return derive_uuid7(self.id, "deposit-debit")

    @property
    def deposit_credit_back_id(self) -> UUID:
        return derive_uuid7(self.id, "deposit-credit-back")


@dataclass(frozen=True, slots=True)
class OrderedPayment:
    ledger: str
    currency: str
    amount_minor: int
    credit_account: AccountNumber


@dataclass(frozen=True, slots=True)
class OrderedReceipt:
    currency: str
    amount_minor_min: int


@dataclass(frozen=True, slots=True)
class SettlementOrder:
    """What the bank has itself ordered of the bridge: nothing beyond it is ever signed.

    Of a PvP: one payment against one receipt. Of a settlement of more legs, a netted cycle say: all its payments
    and receipts, by `further_*`; a bank that only pays its net positions there receives None.
    """

    id: str
    ledger: str
    pay_currency: str
    pay_amount_minor: int
    receive_currency: str | None
    receive_amount_minor_min: int | None
    credit_account: AccountNumber
    valid_until: datetime
    created_at: datetime
    further_payments: tuple[OrderedPayment, ...] = ()
    further_receipts: tuple[OrderedReceipt, ...] = ()

    @property
    def payments(self) -> tuple[OrderedPayment, ...]:
        first = OrderedPayment(self.ledger, self.pay_currency, self.pay_amount_minor, self.credit_account)
        return (first, *self.further_payments)

    @property
    def receipts(self) -> tuple[OrderedReceipt, ...]:
        if self.receive_currency is None or self.receive_amount_minor_min is None:
            return self.further_receipts
        return (OrderedReceipt(self.receive_currency, self.receive_amount_minor_min), *self.further_receipts)

    def orders_the_same_as(self, other: SettlementOrder) -> bool:
        return replace(self, created_at=other.created_at) == other


@dataclass(frozen=True, slots=True)
class SignedLeg:
    """An authorisation given: once per order and payment. `terms` are those of the signed leg and of all others."""

    instruction_id: str
    ledger: str
    credit_account: AccountNumber
    hold_id: UUID
    terms: Mapping[str, object]
    token: str
    created_at: datetime
