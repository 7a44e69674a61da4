"""A wallet's life: its holder's own caps, its class, its devices, suspension, lost keys, closure.

Every change is known by an id of the client's making (`chg_`, UUIDv7) and is idempotent by it. A change that also
concerns the ledger may come back `pending`: it is recorded, its stricter side is in force, and it is finished when the
request is repeated or by the service itself.

What a holder must agree to he signs with a key of an active device: a `CapsOrder`, or the ledger's own
`AccountChangeDocument` as a consent (`ledger.contract.sign_account_consent`), whose id is then the change's.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey
from ledger.contract import Amount, ChangeRef, Jwk, Model, Moment, Token, TransferRef
from wallet.contract import CustomerView, WalletRef, id_type
from wallet.domain.rules import Evidence, WalletClass

CAPS_ORDER_TYP = "jiaozi-caps-order+jws"
HOLDER_ORDER_LIFE_MAX = timedelta(days=1)
"""How far ahead a holder's order may say that it is valid: what was signed and never sent does not lie in wait."""
EVIDENCE_MAX = 16

EvidenceChangeRef = Annotated[UUID, *id_type("evc")]
_Evidence = Annotated[list[Evidence], Field(max_length=EVIDENCE_MAX)]


# --- caps ------------------------------------------------------------------------------------------------------------


class CapsView(Model):
    """The holder's own caps in minor units; null = none, then the class's alone holds.

    `balance_max_minor` bounds every credit, whoever sends it, as a child's does: the ledger keeps it too. What is there
    above it may stay.
    """

    balance_max_minor: Amount | None = None
    single_max_minor: Amount | None = None
    day_max_minor: Amount | None = None
    year_max_minor: Amount | None = None


class CapsOrder(Model):
    """What a holder signs (typ `jiaozi-caps-order+jws`) to raise his own caps again: all four, as they shall be."""

    wallet: WalletRef
    change: ChangeRef
    caps: CapsView
    valid_until: Moment


class CapsRequest(Model):
    """All four own caps, as they shall be. `order` is needed as soon as one of them is raised or taken away."""

    change: ChangeRef
    caps: CapsView
    order: Token | None = None


def sign_caps_order(order: CapsOrder, *, key: PrivateKey) -> str:
    """The holder's signature."""
    return jws.sign(caps_order_payload(order), key, typ=CAPS_ORDER_TYP)


def caps_order_payload(order: CapsOrder) -> bytes:
    """The canonical JSON that is signed."""
    return jws.canonical_json(order.model_dump(mode="json", exclude_none=True))


# --- changes ---------------------------------------------------------------------------------------------------------


class ChangeKind(StrEnum):
    CAPS = "caps"
    CLASS = "class"
    ADD_DEVICE = "add-device"
    REMOVE_DEVICE = "remove-device"
    REPLACE_DEVICE = "replace-device"
    SUSPEND = "suspend"
    RESUME = "resume"
    RECOVER = "recover"
    CLOSE = "close"


class ChangeState(StrEnum):
    PENDING = "pending"
    """Recorded, not finished: the ledger has not answered yet."""
    WAITING = "waiting"
    """An announced key waits for its time, `due_at`, in which the old key may object; a closure for the pay-out."""
    DONE = "done"
    REFUSED = "refused"
    OBJECTED = "objected"
    """A current key of the wallet has objected to the announced one."""
    CANCELLED = "cancelled"


class ClosureView(Model):
    interest_minor: Amount
    """Accrued to the day before, credited to the wallet first."""
    amount_due_minor: Amount | None
    """What the holder's instruction must pay out; null when not known now (the ledger does not answer) or done."""
    payout: TransferRef | None
    """The instruction that paid it out."""


class WalletChangeView(Model):
    change: ChangeRef
    wallet: WalletRef
    kind: ChangeKind
    state: ChangeState
    content: dict[str, Any]
    """What was asked."""
    refusal: str | None
    detail: str | None
    due_at: Moment | None
    created_at: Moment
    ended_at: Moment | None
    closure: ClosureView | None = None


class ClassChangeRequest(Model):
    change: ChangeRef
    wallet_class: WalletClass


class EvidenceChangeRequest(Model):
    """Evidence verified anew, or no longer good. Wallets in a class that it no longer opens are brought down to the
    strongest that it does, or suspended if it opens none; nothing is brought up without being asked for."""

    change: EvidenceChangeRef
    added: _Evidence = Field(default_factory=list)
    withdrawn: _Evidence = Field(default_factory=list)


class EvidenceChangeView(Model):
    change: EvidenceChangeRef
    customer: CustomerView
    changes: list[WalletChangeView]
    """Of the customer's wallets, because of it."""


# --- devices ---------------------------------------------------------------------------------------------------------


class DeviceChangeRequest(Model):
    """`consent`: an `AccountChangeDocument` of `add-holder-key`, `remove-holder-key` or `replace-holder-key` for the
    wallet's account, signed by an active device."""

    consent: Token


class DeviceState(StrEnum):
    ADDING = "adding"
    ANNOUNCED = "announced"
    """It will be the wallet's only one after its waiting time, unless a current key objects."""
    ACTIVE = "active"
    REMOVED = "removed"
    REFUSED = "refused"


class DeviceView(Model):
    thumbprint: str
    key: Jwk
    state: DeviceState
    added_at: Moment
    ended_at: Moment | None


class DevicesView(Model):
    wallet: WalletRef
    items: list[DeviceView]


# --- suspension, loss, closure ---------------------------------------------------------------------------------------


class SuspensionRequest(Model):
    """`loss`: the holder reports a device lost. `institution`: the bank's own reason."""

    change: ChangeRef
    reason: Literal["loss", "institution"]


class ResumptionRequest(Model):
    """Takes a reason away; the wallet is open again when none is left. After a loss the holder is identified again, by
    evidence that opens the wallet's class: all devices are where they were."""

    change: ChangeRef
    reason: Literal["loss", "institution"]
    identified_by: _Evidence = Field(default_factory=list)


class KeyRecoveryRequest(Model):
    """The holder, identified again by evidence that opens the wallet's class, gets a new device. After a waiting time
    in which the old key may object, its key becomes the wallet's only one and the wallet is open again."""

    change: ChangeRef
    device_key: Jwk
    identified_by: _Evidence


class ObjectionRequest(Model):
    """`consent`: an `AccountChangeDocument` of `object-to-key`, signed by a current key. It needs nobody else."""

    consent: Token


class ClosureRequest(Model):
    """`instruction`: the holder's signed payment or exchange-out of the whole balance, interest included. It may come
    with a later request of the same id; without it the answer says what is due."""

    change: ChangeRef
    instruction: Token | None = None


class NoticeView(Model):
    """What the holder is to be told. `data` has no personal data."""

    wallet: WalletRef
    kind: str
    at: Moment
    data: dict[str, Any]
