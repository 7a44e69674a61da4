"""What would change under another rule pack: the packs compared, and past payments decided again under it.

The replay has the past booked in the ledger's order. It counts day and year under the new pack from the payments that
the new pack accepts, so a payment that it refuses uses up nothing; a payee's balance is what this service knows of it
(payments between its own wallets, refunds, exchanges, interest), again without what was refused. Money from other
institutions' wallets is not known here: a balance counted here is at most the real one, and never below zero.
Its memory is one small record a wallet, whatever the number of payments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID
from zoneinfo import ZoneInfo

from ledger.contract import TransferRefusal
from wallet.domain.limits import Caps, Usage, decide_credit, decide_payment, scheme_day
from wallet.domain.rules import Cap, Evidence, RulePack, WalletClass

MovementKind = Literal["payment", "purse-fund", "other", "class"]


@dataclass(frozen=True, slots=True)
class Movement:
    """One booked movement, or a change of class. `debit` and `credit` are wallets of this service, or None.

    "payment" and "purse-fund" count towards the payer's limits; "other" (refunds, exchanges, interest) only moves
    balances; "class" says what the class of `debit` becomes.
    """

    kind: MovementKind
    id: UUID
    at: datetime
    amount_minor: int
    debit: UUID | None
    debit_opened_in: WalletClass | None
    credit: UUID | None
    credit_opened_in: WalletClass | None
    becomes: WalletClass | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A past payment that the pack would have refused. The caps' name first in order of precedence."""

    payment: UUID
    wallet: UUID
    wallet_class: WalletClass
    amount_minor: int
    at: datetime
    refusal: TransferRefusal


class Replay:
    """Feed it every movement in the ledger's order."""

    def __init__(self, pack: RulePack) -> None:
        self._zone = ZoneInfo(pack.time_zone)
        self._caps: dict[WalletClass, Caps] = {name: pack.caps(name) for name in WalletClass}
        self._classes: dict[UUID, WalletClass] = {}
        self._usage: dict[UUID, Usage] = {}
        self._balances: dict[UUID, int] = {}
        self.payments: Counter[WalletClass] = Counter()
        """Decided, by the payer's class."""
        self.refused: Counter[tuple[WalletClass, TransferRefusal]] = Counter()
        """By the class whose cap it was: the payer's, for a balance the payee's."""
        self.refused_minor: Counter[tuple[WalletClass, TransferRefusal]] = Counter()

    def feed(self, movement: Movement) -> Refused | None:
        payer, payee, amount = movement.debit, movement.credit, movement.amount_minor
        if movement.kind == "class":
            if payer is not None and movement.becomes is not None:
                self._classes[payer] = movement.becomes
            return None
        payee_class = self._class_of(payee, movement.credit_opened_in)
        if movement.kind in ("payment", "purse-fund") and payer is not None:
            payer_class = self._class_of(payer, movement.debit_opened_in)
            today = scheme_day(movement.at, self._zone)
            usage = self._usage.get(payer, Usage(day=today))
            self.payments[payer_class] += 1
            decided = decide_payment(amount, caps=self._caps[payer_class], usage=usage, today=today)
            if isinstance(decided, TransferRefusal):
                return self._refuse(movement, payer, payer_class, decided)
            if payee is not None:
                caps, balance = self._caps[payee_class], self._balances.get(payee, 0)
                refusal = decide_credit(amount, balance_minor=balance, caps=caps)
                if refusal is not None:
                    return self._refuse(movement, payee, payee_class, refusal)
            self._usage[payer] = decided
        if payer is not None:
            self._balances[payer] = max(self._balances.get(payer, 0) - amount, 0)
        if payee is not None:
            self._balances[payee] = self._balances.get(payee, 0) + amount
        return None

    def _class_of(self, wallet: UUID | None, opened_in: WalletClass | None) -> WalletClass:
        if wallet is None:
            return WalletClass.I  # never asked for: another institution decides about its own
        return self._classes.get(wallet) or opened_in or WalletClass.I

    def _refuse(self, movement: Movement, wallet: UUID, wallet_class: WalletClass, refusal: TransferRefusal) -> Refused:
        self.refused[wallet_class, refusal] += 1
        self.refused_minor[wallet_class, refusal] += movement.amount_minor
        return Refused(movement.id, wallet, wallet_class, movement.amount_minor, movement.at, refusal)


# --- the packs themselves --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """`place` is like `II.daily`; values as a person reads them, `[x]` = assumed."""

    place: str
    before: str
    after: str


def differences(before: RulePack, after: RulePack) -> Iterator[Difference]:
    """Class by class and cap by cap, then what holds for all classes."""
    for name in WalletClass:
        old, new = before.classes[name], after.classes[name]
        yield from _differ(f"{name.value}.opened-with", _evidence(old.evidence), _evidence(new.evidence))
        for cap in ("balance", "single", "daily", "annual"):
            yield from _differ(f"{name.value}.{cap}", _show(getattr(old, cap)), _show(getattr(new, cap)))
    for field in ("currency", "in_force_from", "time_zone"):
        yield from _differ(field.replace("_", "-"), str(getattr(before, field)), str(getattr(after, field)))
    for part in ("interest", "liability"):
        old_part, new_part = getattr(before, part), getattr(after, part)
        old_values = {} if old_part is None else old_part.model_dump(mode="json")
        new_values = {} if new_part is None else new_part.model_dump(mode="json")
        for field in sorted(old_values.keys() | new_values.keys()):
            place = f"{part}.{field.replace('_', '-')}"
            yield from _differ(place, _plain(old_values.get(field)), _plain(new_values.get(field)))


def _differ(place: str, before: str, after: str) -> Iterator[Difference]:
    if before != after:
        yield Difference(place, before, after)


def _evidence(evidence: frozenset[Evidence]) -> str:
    return ", ".join(item.value for item in Evidence if item in evidence)


def _show(cap: Cap) -> str:
    return f"[{cap.max}]" if cap.assumed else cap.max


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(sorted(str(item) for item in value))
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
