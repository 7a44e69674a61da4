"""A wallet's devices: added, removed and replaced with a current device's consent; lost and recovered without it.

The holder's consent is the ledger's own document (`AccountChangeDocument`), signed by an active device: this service
countersigns it, and the ledger checks both. In which order the two sides change:

- add: recorded, then the ledger, then it may sign here. Remove: it may not sign here, then the ledger.
- replace: the ledger, then the new device is the only one here.
- recover (devices lost, wallet suspended, holder identified again): the new key is announced to the ledger and the
  holder gets a notice; after the ledger's waiting time it becomes the only key, and the wallet opens. Whoever holds a
  current key can object until then: the holder, if somebody else was taken for him.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa

from kernel import ids
from kernel.crypto.keys import KeyRefused, PublicKey
from kernel.errors import ProblemError
from ledger.contract import (
    CONSENT_TYP,
    HOLDER_KEYS_MAX,
    AccountChangeDocument,
    AccountStanding,
    AccountView,
    HolderKeyChange,
    InvalidInstruction,
    LedgerRefusal,
    read_account_change,
)
from wallet.contract import WalletRefusal
from wallet.domain.lifecycle import Change, ChangeKindName, Device
from wallet.domain.records import Wallet
from wallet.domain.rules import Evidence
from wallet.store import lifecycle
from wallet.usecases.changes import (
    Decision,
    account_of,
    ask_ledger,
    begin,
    check_holder,
    check_validity,
    finish,
    ledger_account,
    notify,
    refuse_identification,
    refuse_if_open,
    refuse_unless,
    refused,
    send,
)
from wallet.usecases.context import Context, refusal_of
from wallet.usecases.lifecycle import advance_standing
from wallet.usecases.wallets import find_wallet

_KINDS: Mapping[str, ChangeKindName] = {
    "add-holder-key": "add-device",
    "remove-holder-key": "remove-device",
    "replace-holder-key": "replace-device",
}
_DEVICE_CHANGES: tuple[ChangeKindName, ...] = ("add-device", "remove-device", "replace-device", "recover", "close")
LOOKED_AGAIN_AFTER = timedelta(minutes=1)
"""When a waiting time that the ledger says has not passed is looked at again."""


def list_devices(context: Context, wallet_id: UUID) -> list[Device]:
    """All that the wallet ever had, the oldest first. Raises: ProblemError(wallet-not-found)."""
    find_wallet(context, wallet_id)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        return lifecycle.devices_of(connection, wallet_id)


# --- with consent ----------------------------------------------------------------------------------------------------


def change_device(context: Context, wallet_id: UUID, consent: str) -> Change:
    """Add, remove or replace a device, as the consent says. Its id is the change's.

    Raises: ProblemError(holder-order-invalid, -expired, device-key-in-use, device-unknown, device-is-last,
    devices-too-many, wallet-suspended, ...) and as `begin`.
    """
    document = _read(context, consent)
    body = document.change
    if not isinstance(body, HolderKeyChange) or body.change not in _KINDS:
        detail = "a consent to add-holder-key, remove-holder-key or replace-holder-key is needed"
        raise ProblemError(WalletRefusal.HOLDER_ORDER_INVALID, detail)
    key = _public_key(body.key)
    content: dict[str, object] = {"thumbprint": key.thumbprint}

    def decide(connection: sa.Connection, row: Wallet, changes: Sequence[Change]) -> Decision:
        refuse_unless(row)
        _check_consent(connection, context, row, consent, document)
        refuse_if_open(changes, _DEVICE_CHANGES)
        now = context.clock()
        if body.change == "remove-holder-key":
            if key.thumbprint not in row.devices:
                raise ProblemError(WalletRefusal.DEVICE_UNKNOWN)
            if len(row.devices) == 1:
                raise ProblemError(WalletRefusal.DEVICE_IS_LAST)
            lifecycle.set_devices(connection, wallet_id, [key.thumbprint], "removed", ended_at=now)
        else:
            if body.change == "add-holder-key" and len(row.devices) >= HOLDER_KEYS_MAX:
                raise ProblemError(WalletRefusal.DEVICES_TOO_MANY, f"at most {HOLDER_KEYS_MAX}")
            _insert(connection, wallet_id, key, "adding", now)
        return Decision(token=consent)

    change = begin(context, document.id, wallet_id, _KINDS[body.change], content, decide)
    return advance(context, change)


def _advance_consented(context: Context, change: Change) -> Change:
    consent = change.token or ""
    body = read_account_change(consent).change
    if not isinstance(body, HolderKeyChange):
        raise ProblemError(WalletRefusal.HOLDER_ORDER_INVALID)
    thumbprint = str(change.content["thumbprint"])

    def is_achieved(view: AccountView) -> bool:
        match change.kind:
            case "add-device":
                return thumbprint in view.holder_keys
            case "remove-device":
                return thumbprint not in view.holder_keys
            case _:
                return view.holder_keys == [thumbprint]

    said = ask_ledger(context, change, body, step=change.kind, is_achieved=is_achieved, consent=consent)

    def apply(connection: sa.Connection, row: Wallet, change: Change, now: datetime) -> Mapping[str, object]:
        if said is not None:
            if change.kind == "remove-device":  # the ledger goes on taking its signature: it is shown as what it is
                lifecycle.set_devices(connection, row.id, [thumbprint], "active", ended_at=None)
            else:
                lifecycle.set_devices(connection, row.id, [thumbprint], "refused", ended_at=now)
            return refused(said)
        if change.kind == "replace-device":
            _make_only(connection, row, thumbprint, now)
        elif change.kind == "add-device":
            lifecycle.set_devices(connection, row.id, [thumbprint], "active", ended_at=None)
        notify(connection, row.id, f"{change.kind}-done", at=now, data={"thumbprint": thumbprint})
        return {"state": "done"}

    return finish(context, change, apply)


# --- without: lost devices -------------------------------------------------------------------------------------------


def recover_key(
    context: Context,
    change_id: UUID,
    wallet_id: UUID,
    *,
    device_key: Mapping[str, str],
    identified_by: frozenset[Evidence],
) -> Change:
    """Announce a new key for a wallet whose devices are reported lost. It is the only one after the waiting time.

    Raises: ProblemError(wallet-not-suspended, evidence-insufficient, device-key-in-use, ...) and as `begin`.
    """
    key = _public_key(device_key)
    content: dict[str, object] = {
        "thumbprint": key.thumbprint,
        "device_key": key.to_jwk(),
        "identified_by": sorted(identified_by),
    }

    def decide(connection: sa.Connection, row: Wallet, changes: Sequence[Change]) -> Decision:
        if "loss" not in row.suspensions:
            raise ProblemError(WalletRefusal.WALLET_NOT_SUSPENDED, "report the loss first")
        refuse_identification(context, row, identified_by)
        refuse_if_open(changes, (*_DEVICE_CHANGES, "resume"))
        _insert(connection, wallet_id, key, "announced", context.clock())
        return Decision()

    return advance(context, begin(context, change_id, wallet_id, "recover", content, decide))


def _advance_recovery(context: Context, change: Change) -> Change:
    if change.state == "pending":
        change = _announce(context, change)
    if change.state != "waiting" or change.due_at is None or context.clock() < change.due_at:
        return change
    thumbprint = str(change.content["thumbprint"])
    row = find_wallet(context, change.wallet_id)
    body = HolderKeyChange(change="replace-holder-key", account=account_of(row), key=_key_of(change))
    said = ask_ledger(context, change, body, step="replace", is_achieved=lambda view: view.holder_keys == [thumbprint])

    def apply(connection: sa.Connection, row: Wallet, change: Change, now: datetime) -> Mapping[str, object]:
        if said is None:
            if any(other.kind == "resume" for other in lifecycle.open_changes(connection, row.id)):
                return {"due_at": now + LOOKED_AGAIN_AFTER}  # one resumption at a time
            _make_only(connection, row, thumbprint, now)
            notify(connection, row.id, "key-recovered", at=now, data={"thumbprint": thumbprint})
            # The wallet opens as it does after any other suspension: by a change of its own.
            lifecycle.insert_change(connection, _resumption(change, now))
            return {"state": "done"}
        if said.refusal == LedgerRefusal.KEY_RECOVERY_PENDING.value:
            return {"due_at": now + LOOKED_AGAIN_AFTER}
        lifecycle.set_devices(connection, row.id, [thumbprint], "refused", ended_at=now)
        if said.refusal == LedgerRefusal.KEY_NOT_ANNOUNCED.value:
            return _objected(connection, row, thumbprint, now)
        return refused(said)

    finished = finish(context, change, apply)
    if finished.state == "done":
        with context.database.transaction(isolation="READ COMMITTED") as connection:
            resumption = lifecycle.find_change(connection, _resumption_id(change.id))
        if resumption is not None:
            advance_standing(context, resumption)
    return finished


def _announce(context: Context, change: Change) -> Change:
    thumbprint = str(change.content["thumbprint"])
    account = account_of(find_wallet(context, change.wallet_id))

    def is_announced(view: AccountView) -> bool:
        return view.announced_key is not None and view.announced_key.key == thumbprint

    body = HolderKeyChange(change="announce-holder-key", account=account, key=_key_of(change))
    said = ask_ledger(context, change, body, step="announce", is_achieved=is_announced)
    announced = None if said is not None else ledger_account(context, account).announced_key
    due_at = None if announced is None or announced.key != thumbprint else announced.effective_at

    def apply(connection: sa.Connection, row: Wallet, change: Change, now: datetime) -> Mapping[str, object]:
        if change.state == "waiting":
            return {}
        if said is not None or due_at is None:  # refused, or objected to since
            lifecycle.set_devices(connection, row.id, [thumbprint], "refused", ended_at=now)
            return refused(said) if said is not None else _objected(connection, row, thumbprint, now)
        notify(
            connection,
            row.id,
            "key-announced",
            at=now,
            data={"thumbprint": thumbprint, "effective_at": due_at.isoformat()},
        )
        return {"state": "waiting", "due_at": due_at}

    return finish(context, change, apply)


def object_to_key(context: Context, wallet_id: UUID, consent: str) -> Change:
    """A current key objects to the announced one. The wallet stays suspended. Idempotent: an objection stands.

    Raises: ProblemError(holder-order-invalid, -expired, nothing-announced).
    """
    document = _read(context, consent)
    if not isinstance(document.change, AccountStanding) or document.change.change != "object-to-key":
        raise ProblemError(WalletRefusal.HOLDER_ORDER_INVALID, "a consent to object-to-key is needed")
    row = find_wallet(context, wallet_id)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        recoveries = [change for change in lifecycle.open_changes(connection, wallet_id) if change.kind == "recover"]
        before = lifecycle.find_objected(connection, wallet_id, document.id)
        if before is None:
            _check_consent(connection, context, row, consent, document)
        else:  # its id alone tells nobody anything
            check_holder(connection, row, consent, typ=CONSENT_TYP)
    if before is not None:
        return before
    if not recoveries:
        raise ProblemError(WalletRefusal.NOTHING_ANNOUNCED)
    recovery = recoveries[0]
    said = send(context, None, consent=consent)
    if said is not None and ledger_account(context, account_of(row)).announced_key is not None:
        raise ProblemError(refusal_of(said.refusal), said.detail)

    def apply(connection: sa.Connection, row: Wallet, change: Change, now: datetime) -> Mapping[str, object]:
        thumbprint = str(change.content["thumbprint"])
        lifecycle.set_devices(connection, row.id, [thumbprint], "refused", ended_at=now)
        progress = {**change.progress, "objection": str(document.id)}
        return {**_objected(connection, row, thumbprint, now), "progress": progress}

    return finish(context, recovery, apply)


def _objected(connection: sa.Connection, row: Wallet, thumbprint: str, now: datetime) -> dict[str, object]:
    notify(connection, row.id, "key-objected", at=now, data={"thumbprint": thumbprint})
    return {"state": "objected"}


# --- helpers ---------------------------------------------------------------------------------------------------------


def advance(context: Context, change: Change) -> Change:
    """As far as it goes now; what is recorded is finished by the recovery pass if the ledger does not answer."""
    if not change.is_open:
        return change
    return _advance_recovery(context, change) if change.kind == "recover" else _advance_consented(context, change)


def _read(context: Context, consent: str) -> AccountChangeDocument:
    try:
        document = read_account_change(consent)
    except InvalidInstruction as error:
        raise ProblemError(WalletRefusal.HOLDER_ORDER_INVALID, error.reason) from None
    if document.ledger != context.ledgers.home.name:
        raise ProblemError(WalletRefusal.HOLDER_ORDER_INVALID, f"this wallet's ledger is {context.ledgers.home.name}")
    return document


def _check_consent(
    connection: sa.Connection, context: Context, row: Wallet, consent: str, document: AccountChangeDocument
) -> None:
    if document.change.account != row.account:
        raise ProblemError(WalletRefusal.HOLDER_ORDER_INVALID, "signed for another account")
    check_holder(connection, row, consent, typ=CONSENT_TYP)
    check_validity(context, document.valid_until)


def _public_key(jwk: Mapping[str, str]) -> PublicKey:
    try:
        return PublicKey.from_jwk(dict(jwk))
    except KeyRefused as error:
        raise ProblemError(WalletRefusal.DEVICE_KEY_REFUSED, str(error)) from None


def _key_of(change: Change) -> dict[str, str]:
    key = change.content["device_key"]
    return {str(name): str(value) for name, value in key.items()} if isinstance(key, Mapping) else {}


def _insert(connection: sa.Connection, wallet_id: UUID, key: PublicKey, state: str, now: datetime) -> None:
    device = Device(
        key.thumbprint, wallet_id, key.to_jwk(), "adding" if state == "adding" else "announced", now, ended_at=None
    )
    if not lifecycle.insert_device(connection, device):
        raise ProblemError(WalletRefusal.DEVICE_KEY_IN_USE)


def _make_only(connection: sa.Connection, row: Wallet, thumbprint: str, now: datetime) -> None:
    others = [device for device in row.devices if device != thumbprint]
    lifecycle.set_devices(connection, row.id, [thumbprint], "active", ended_at=None)
    lifecycle.set_devices(connection, row.id, others, "removed", ended_at=now)


def _resumption_id(recovery_id: UUID) -> UUID:
    return ids.derive_uuid7(recovery_id, "resume")


def _resumption(recovery: Change, now: datetime) -> Change:
    return Change(
        id=_resumption_id(recovery.id),
        wallet_id=recovery.wallet_id,
        kind="resume",
        content={"reason": "loss", "identified_by": recovery.content["identified_by"]},
        token=None,
        state="pending",
        progress={},
        refusal=None,
        detail=None,
        due_at=None,
        created_at=now,
        ended_at=None,
    )
