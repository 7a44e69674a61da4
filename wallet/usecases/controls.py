"""Dual control of corporate wallets: set its rules, approve payments, take approvals back.

What a payment asks of the rules on its way is in `wallet.usecases.own_rules`, under the wallet's lock, which every step
here takes too: an approval is used or withdrawn, never both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from uuid import UUID

from kernel.crypto.keys import KeyRefused, PublicKey
from kernel.errors import ProblemError
from wallet.contract import WalletRefusal
from wallet.contract.controls import (
    APPROVAL_TYP,
    CONTROL_TYP,
    WITHDRAWAL_TYP,
    ApprovalWithdrawal,
    PaymentApproval,
    PaymentControl,
)
from wallet.domain.controls import Approval, Control, alone_today
from wallet.domain.limits import scheme_day
from wallet.store import controls as store
from wallet.store.carriage import Connection
from wallet.store.controls import Signatory
from wallet.usecases.context import Context
from wallet.usecases.program_documents import check_signed, read_document

_R = WalletRefusal


@dataclass(frozen=True, slots=True)
class KnownControl:
    control: Control
    signatories: list[Signatory]


@dataclass(frozen=True, slots=True)
class Signed:
    """What a signatory has said about payments."""

    wallet_id: UUID
    person: str
    payments: list[UUID]


def set_control(context: Context, wallet_id: UUID, tokens: tuple[str, str]) -> KnownControl:
    """The rules from now on, signed by two persons. The same again answers the same.

    Raises: ProblemError(wallet-not-found, wallet-not-open, owner-not-corporate, control-invalid, control-changed).
    """
    document, other = (read_document(token, PaymentControl, refusal=_R.CONTROL_INVALID) for token in tokens)
    if other != document or document.wallet != wallet_id:
        raise ProblemError(_R.CONTROL_INVALID, "both sign the same document, of this wallet")
    who = _signatories(document)
    if document.alone_max_minor > document.alone_day_max_minor:
        raise ProblemError(_R.CONTROL_INVALID, "alone_max_minor is above alone_day_max_minor")

    def work(connection: Connection) -> None:
        wallet = store.lock_wallet(connection, wallet_id)
        if wallet is None:
            raise ProblemError(_R.WALLET_NOT_FOUND)
        customer_id, account, devices = wallet
        if account is None:
            raise ProblemError(_R.WALLET_NOT_OPEN)
        if not store.is_corporate(connection, customer_id):
            raise ProblemError(_R.OWNER_NOT_CORPORATE)
        before = store.find_control(connection, wallet_id)
        if before is not None and document.version == before.version and _is_same(document, before, who):
            return
        if document.version != (1 if before is None else before.version + 1):
            raise ProblemError(_R.CONTROL_CHANGED, f"the version now is {0 if before is None else before.version}")
        now = context.clock()
        if now >= document.valid_until:
            raise ProblemError(_R.CONTROL_INVALID, "the signatures have expired")
        may = who if before is None else store.signatories(connection, wallet_id, before.version)
        signed = [_signer(token, may, typ=CONTROL_TYP, refusal=_R.CONTROL_INVALID) for token in tokens]
        if signed[0].person == signed[1].person:
            raise ProblemError(_R.CONTROL_INVALID, "two different persons sign")
        if before is None and devices.isdisjoint(item.thumbprint for item in signed):
            raise ProblemError(_R.CONTROL_INVALID, "one of the first signatures is a device's of the wallet")
        if devices.isdisjoint(item.thumbprint for item in who):
            raise ProblemError(_R.CONTROL_INVALID, "no signatory has a device of the wallet: nobody could pay")
        today = scheme_day(now, context.time_zone)
        control = Control(
            wallet_id=wallet_id,
            account=account,
            version=document.version,
            is_in_force=document.is_in_force,
            alone_max_minor=document.alone_max_minor,
            alone_day_max_minor=document.alone_day_max_minor,
            alone_on=today if before is None else max(today, before.alone_on),
            # What was paid before stays paid: lower rules leave nothing for today.
            alone_minor=0 if before is None else alone_today(before, today),
            time_zone=context.time_zone.key,
            changed_at=now,
            persons={item.thumbprint: item.person for item in who},
        )
        by = [(item.person, token) for item, token in zip(signed, tokens, strict=True)]
        store.save_control(connection, control, who, by)

    context.database.run_session(work)
    return find_control(context, wallet_id)


def find_control(context: Context, wallet_id: UUID) -> KnownControl:
    """As it stands today. Raises: ProblemError(control-not-found)."""

    def work(connection: Connection) -> KnownControl:
        control = store.find_control(connection, wallet_id)
        if control is None:
            raise ProblemError(_R.CONTROL_NOT_FOUND)
        today = scheme_day(context.clock(), context.time_zone)
        shown = replace(control, alone_minor=alone_today(control, today))
        return KnownControl(shown, store.signatories(connection, wallet_id, control.version))

    return context.database.run_session(work)


def approve(context: Context, wallet_id: UUID, token: str) -> Signed:
    """A checker's word for instructions that a maker hands in afterwards, as often as he likes.

    Raises: ProblemError(control-not-found, approval-invalid, approval-used).
    """
    document = read_document(token, PaymentApproval, refusal=_R.APPROVAL_INVALID)
    payments = [item.payment for item in document.payments]
    if document.wallet != wallet_id or len(set(payments)) != len(payments):
        raise ProblemError(_R.APPROVAL_INVALID, "of another wallet, or a payment twice")
    if context.clock() >= document.valid_until:
        raise ProblemError(_R.APPROVAL_INVALID, "it has expired")

    def work(connection: Connection) -> Signed:
        control, person = _checker(connection, wallet_id, token, typ=APPROVAL_TYP)
        known = store.approvals_of(connection, payments)
        for item in document.payments:
            before = known.get(item.payment)
            if before is not None and before.token == token and before.version == control.version:
                continue  # the same once more: what was withdrawn stays withdrawn
            if before is not None and (before.maker is not None or before.wallet_id != wallet_id):
                raise ProblemError(_R.APPROVAL_USED, f"payment {item.payment}")
            row = Approval(
                payment_id=item.payment,
                wallet_id=wallet_id,
                digest=item.digest,
                checker=person,
                valid_until=document.valid_until,
                token=token,
                version=control.version,
            )
            store.save_approval(connection, row, at=context.clock())
        return Signed(wallet_id, person, payments)

    return context.database.run_session(work)


def withdraw(context: Context, wallet_id: UUID, token: str) -> Signed:
    """Approvals of the same person that were not used are void from now on. All or none.

    Raises: ProblemError(control-not-found, approval-invalid, approval-used).
    """
    document = read_document(token, ApprovalWithdrawal, refusal=_R.APPROVAL_INVALID)
    if document.wallet != wallet_id:
        raise ProblemError(_R.APPROVAL_INVALID, "of another wallet")

    def work(connection: Connection) -> Signed:
        _, person = _checker(connection, wallet_id, token, typ=WITHDRAWAL_TYP)
        known = store.approvals_of(connection, document.payments)
        for payment in document.payments:
            before = known.get(payment)
            if before is None or before.wallet_id != wallet_id or before.checker != person:
                raise ProblemError(_R.APPROVAL_INVALID, f"payment {payment} is not approved by {person}")
            if before.maker is not None:
                raise ProblemError(_R.APPROVAL_USED, f"payment {payment}")
        store.withdraw(connection, document.payments, at=context.clock())
        return Signed(wallet_id, person, list(document.payments))

    return context.database.run_session(work)


# --- inside ----------------------------------------------------------------------------------------------------------


def _signatories(document: PaymentControl) -> list[Signatory]:
    try:
        who = [
            Signatory(PublicKey.from_jwk(item.key).thumbprint, item.person, PublicKey.from_jwk(item.key).to_jwk())
            for item in document.signatories
        ]
    except KeyRefused as error:
        raise ProblemError(_R.CONTROL_INVALID, str(error)) from None
    if len({item.thumbprint for item in who}) != len(who):
        raise ProblemError(_R.CONTROL_INVALID, "one key is one person's")
    if len({item.person for item in who}) < 2:
        raise ProblemError(_R.CONTROL_INVALID, "name two persons at least")
    return who


def _is_same(document: PaymentControl, control: Control, who: list[Signatory]) -> bool:
    asked = (document.is_in_force, document.alone_max_minor, document.alone_day_max_minor)
    persons = {item.thumbprint: item.person for item in who}
    return (control.is_in_force, control.alone_max_minor, control.alone_day_max_minor) == asked and (
        dict(control.persons) == persons
    )


def _signer(token: str, may: list[Signatory], *, typ: str, refusal: WalletRefusal) -> Signatory:
    keys = [PublicKey.from_jwk(item.key) for item in may]
    key = check_signed(token, keys, typ=typ, refusal=refusal)
    return may[keys.index(key)]


def _checker(connection: Connection, wallet_id: UUID, token: str, *, typ: str) -> tuple[Control, str]:
    """The rules, the wallet's row locked, and who has signed."""
    store.lock_wallet(connection, wallet_id)
    control = store.find_control(connection, wallet_id)
    if control is None:
        raise ProblemError(_R.CONTROL_NOT_FOUND)
    may = store.signatories(connection, wallet_id, control.version)
    return control, _signer(token, may, typ=typ, refusal=_R.APPROVAL_INVALID).person
