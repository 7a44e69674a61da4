"""What a wallet's standing allows, decided purely: which caps are in force, which class evidence leads to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from kernel.errors import Refusal
from ledger.contract import TransferRefusal
from wallet.contract import WalletRefusal
from wallet.domain.limits import NO_CAPS, Caps, is_above, lowest
from wallet.domain.records import WalletStateName
from wallet.domain.rules import Evidence, RulePack, WalletClass

ChangeKindName = Literal[
    "caps", "class", "add-device", "remove-device", "replace-device", "suspend", "resume", "recover", "close"
]
ChangeStateName = Literal["pending", "waiting", "done", "refused", "objected", "cancelled"]
DeviceStateName = Literal["adding", "announced", "active", "removed", "refused"]
SuspensionReason = Literal["loss", "evidence", "institution"]


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a wallet, from being asked for to its end."""

    id: UUID
    wallet_id: UUID
    kind: ChangeKindName
    content: Mapping[str, object]
    """What was asked: JSON."""
    token: str | None
    """What the holder signed for it."""
    state: ChangeStateName
    progress: Mapping[str, object]
    refusal: str | None
    detail: str | None
    due_at: datetime | None
    created_at: datetime
    ended_at: datetime | None

    @property
    def is_open(self) -> bool:
        return self.state in ("pending", "waiting")


@dataclass(frozen=True, slots=True)
class Device:
    thumbprint: str
    wallet_id: UUID
    key: Mapping[str, str]
    state: DeviceStateName
    added_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class Notice:
    id: UUID
    wallet_id: UUID
    kind: str
    at: datetime
    data: Mapping[str, object]


def caps_in_force(
    pack: RulePack, wallet_class: WalletClass, *, changing_to: WalletClass | None = None, own: Caps = NO_CAPS
) -> Caps:
    """The strictest of the class's, of the class's that the wallet is on its way to, and of the holder's own (I9)."""
    of_class = pack.caps(wallet_class)
    if changing_to is None and own == NO_CAPS:
        return of_class
    return lowest(of_class, own, *(() if changing_to is None else (pack.caps(changing_to),)))


def refuse_caps(own: Caps, *, of_class: Caps) -> Refusal | None:
    return WalletRefusal.CAP_ABOVE_CLASS if is_above(own, of_class) else None


_NOT_PAYING: Mapping[WalletStateName, Refusal] = {
    "suspended": TransferRefusal.DEBIT_ACCOUNT_SUSPENDED,
    "closing": WalletRefusal.WALLET_CLOSING,
    "closed": TransferRefusal.ACCOUNT_CLOSED,
}
_NOT_OPEN: Mapping[WalletStateName, Refusal] = {
    "opening": WalletRefusal.WALLET_NOT_OPEN,
    "refused": WalletRefusal.WALLET_NOT_OPEN,
    "suspended": WalletRefusal.WALLET_SUSPENDED,
    "closing": WalletRefusal.WALLET_CLOSING,
    "closed": WalletRefusal.WALLET_CLOSED,
}


def refuse_paying(state: WalletStateName) -> Refusal | None:
    """Why a wallet in this state is not debited: as the ledger says it, where both know. None = it may be."""
    return _NOT_PAYING.get(state)


def refuse_unless_open(state: WalletStateName) -> Refusal | None:
    return _NOT_OPEN.get(state)


@dataclass(frozen=True, slots=True)
class Enforced:
    """What evidence makes of a wallet: a weaker class, or none at all."""

    wallet_class: WalletClass | None


def enforce_evidence(pack: RulePack, wallet_class: WalletClass, evidence: frozenset[Evidence]) -> Enforced | None:
    """None: the evidence opens the class, nothing is to be done."""
    return None if pack.allows(wallet_class, evidence) else Enforced(pack.highest_class(evidence))
