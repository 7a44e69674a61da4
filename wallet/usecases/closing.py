"""Close a wallet and pay out what is in it. Resumable; every step has an id derived from the closure's.

  1. recorded: nothing but the pay-out is debited any more; the interest to the day before is fixed. Refused while
     anything is owed to the wallet or by it: money on its way, children, purses not settled, programs not finished
  2. interest, if there is any: vault -> wallet
  3. the holder's own instruction for the whole balance: to his deposit, or to another wallet
  4. the ledger closes the account, which it does only without balance and holds
  5. the wallet is closed

Money that comes in between 3 and 4 keeps the account open: then another instruction is due. Until 4 is sent the holder
may cancel. The instruction may come with the first request or with a later one of the same id.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

import sqlalchemy as sa

from kernel import ids
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.errors import InvariantBroken, ProblemError
from ledger.contract import (
    AccountStanding,
    AccountStatus,
    InvalidInstruction,
    LedgerRefusal,
    TransferKind,
    TransferOutcome,
    TransferTerms,
    read_instruction,
)
from wallet.contract import WalletRefusal
from wallet.domain.interest import Accrual
from wallet.domain.lifecycle import Change, ChangeKindName
from wallet.domain.records import Wallet
from wallet.store import families, lifecycle, offline
from wallet.usecases.changes import (
    Decision,
    account_of,
    ask_ledger,
    begin,
    finish,
    ledger_account,
    notify,
    refuse_if_open,
    refuse_unless,
)
from wallet.usecases.context import Context, ledger_unavailable, refusal_of, show_transfer
from wallet.usecases.exchange import credit_deposit_of
from wallet.usecases.interest import fix_for_closure, unsettled
from wallet.usecases.pay import pay_out
from wallet.usecases.wallets import find_wallet

log = logging.getLogger("jiaozi.wallet.closing")

LOOKED_AGAIN_AFTER = timedelta(minutes=10)
"""When the recovery pass looks again at a closure that waits for its holder's instruction."""
_NOT_BESIDE: tuple[ChangeKindName, ...] = (
    "class",
    "add-device",
    "remove-device",
    "replace-device",
    "recover",
    "suspend",
    "resume",
    "close",
)
"""Changes that are finished before a closure begins."""


class AccruedInterest(Protocol):
    """Another way to know the interest: minor units accrued on the wallet to the day before, not credited yet."""

    def __call__(self, context: Context, wallet: Wallet, /) -> int: ...


@dataclass(frozen=True, slots=True)
class Closure:
    change: Change
    interest_minor: int
    amount_due_minor: int | None
    """What is left to be paid out; None = not known now, or nothing because it is done."""
    payout: UUID | None


def close_wallet(
    context: Context,
    change_id: UUID,
    wallet_id: UUID,
    *,
    instruction: str | None,
    accrued_interest: AccruedInterest | None = None,
) -> Closure:
    """Begin, or go on with, the closure. While the pay-out is missing it is pending and says what is due.

    Raises: ProblemError(money-on-its-way, children-not-closed, purse-not-settled, program-not-finished,
    change-in-progress, payout-mismatch, wallet-suspended, service-unavailable), what becomes of the instruction (as
    `pay_one`), and as `begin`.
    """
    accrual: Accrual | None = None
    if accrued_interest is not None:
        interest_minor = accrued_interest(context, find_wallet(context, wallet_id))
    else:
        accrual = unsettled(context, find_wallet(context, wallet_id))
        interest_minor = 0 if accrual is None else accrual.credited_minor
    if interest_minor < 0:
        raise InvariantBroken("I2", f"interest of {interest_minor} on wallet {wallet_id}")

    def decide(connection: sa.Connection, row: Wallet, changes: Sequence[Change]) -> Decision:
        refuse_unless(row)
        refuse_if_open(changes, _NOT_BESIDE)
        if lifecycle.has_unfinished_money(connection, wallet_id):
            raise ProblemError(WalletRefusal.MONEY_ON_ITS_WAY)
        if families.count_not_closed(connection, wallet_id):
            raise ProblemError(WalletRefusal.CHILDREN_NOT_CLOSED)
        unsettled_purses = offline.purses_unsettled(connection, wallet_id)
        if unsettled_purses:
            # What others pay to the purse is owed to this wallet until then, and nothing else can take it.
            settled_at = max(purse.closes_at for purse in unsettled_purses)
            detail = f"the last one is settled at {settled_at.isoformat()}"
            raise ProblemError(WalletRefusal.PURSE_NOT_SETTLED, detail)
        if lifecycle.has_unfinished_program(connection, wallet_id, row.account):
            raise ProblemError(WalletRefusal.PROGRAM_NOT_FINISHED)
        fix_for_closure(context, connection, row, accrual, change_id=change_id)
        lifecycle.update_wallet(connection, wallet_id, state="closing")
        return Decision(progress={"interest_minor": str(interest_minor)})

    change = begin(context, change_id, wallet_id, "close", {}, decide)
    if not change.is_open:
        return closure_of(change)
    return _advance(context, change, instruction)


def cancel_closure(context: Context, change_id: UUID) -> Change:
    """The wallet is open again. Raises: ProblemError(wallet-change-not-found, change-in-progress): the account is being
    closed already, or the pay-out is on its way."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        change = lifecycle.find_change(connection, change_id)
    if change is None or change.kind != "close":
        raise ProblemError(WalletRefusal.CHANGE_NOT_FOUND)

    def apply(connection: sa.Connection, row: Wallet, change: Change, now: datetime) -> Mapping[str, object]:
        if change.progress.get("is_sent") or lifecycle.has_unfinished_money(connection, row.id):
            raise ProblemError(WalletRefusal.CHANGE_IN_PROGRESS)
        if row.state == "closing":
            lifecycle.update_wallet(connection, row.id, state="open")
        return {"state": "cancelled"}

    return finish(context, change, apply)


def advance(context: Context, change: Change) -> Change:
    """For the recovery pass: as far as it goes without the holder."""
    return _advance(context, change, None).change


def closure_of(change: Change) -> Closure:
    """As it is recorded; what is due is asked of the ledger by `close_wallet` alone."""
    payout = change.progress.get("payout")
    return Closure(
        change, int(str(change.progress["interest_minor"])), None, None if payout is None else UUID(str(payout))
    )


def _advance(context: Context, change: Change, instruction: str | None) -> Closure:
    row = find_wallet(context, change.wallet_id)
    account = account_of(row)
    if row.state != "closing":  # suspended meanwhile: it goes on when the wallet is resumed
        refuse_unless(row)
        return closure_of(change)
    interest_minor = int(str(change.progress["interest_minor"]))
    if interest_minor and not change.progress.get("is_interest_paid"):
        _pay_interest(context, change, account, interest_minor)
        change = _note(context, change, is_interest_paid=True)
    view = ledger_account(context, account)
    due = view.balance_minor
    if view.status is AccountStatus.CLOSED:
        due = 0
    elif due and instruction is not None:
        change = _pay_out(context, change, instruction, account=account, due=due)
        due = ledger_account(context, account).balance_minor
    if due:
        change = _wait_for_holder(context, change)
        return Closure(change, interest_minor, due, closure_of(change).payout)
    change = _note(context, change, is_sent=True)
    if change.progress.get("is_sent"):
        change = _close_account(context, change, account)
    return closure_of(change)


def _pay_interest(context: Context, change: Change, account: ids.AccountNumber, amount_minor: int) -> None:
    """Raises: ProblemError if it is not booked: the closure waits for it."""
    home = context.ledgers.home
    terms = TransferTerms(
        id=ids.derive_uuid7(change.id, "interest"),
        kind=TransferKind.INTEREST,
        debit=context.ledgers.vault(home),
        credit=account,
        amount_minor=amount_minor,
        currency=home.currency,
    )
    try:
        result = home.client.transfer(terms)
    except (ProblemResponse, ServiceUnreachable) as error:
        raise ledger_unavailable(error) from error
    if result.outcome is TransferOutcome.REFUSED:
        raise ProblemError(refusal_of(result.refusal), result.detail or "")


def _pay_out(context: Context, change: Change, token: str, *, account: ids.AccountNumber, due: int) -> Change:
    try:
        item = read_instruction(token)
    except InvalidInstruction as error:
        raise ProblemError(LedgerRefusal.INSTRUCTION_INVALID, error.reason) from None
    if change.progress.get("payout") != str(item.id) and (item.debit, item.amount_minor) != (account, due):
        raise ProblemError(WalletRefusal.PAYOUT_MISMATCH, f"sign {due} minor units from the wallet's account")
    change = _note(context, change, payout=str(item.id))
    payment = pay_out(context, token)
    if payment.kind == "exchange-out":
        payment = credit_deposit_of(context, payment)
        if payment.deposit_credited_at is None:
            log.warning("closure %s: the deposit credit of %s goes on later", change.id, show_transfer(payment.id))
    return change


def _close_account(context: Context, change: Change, account: ids.AccountNumber) -> Change:
    body = AccountStanding(change="close", account=account)
    said = ask_ledger(context, change, body, step="close", is_achieved=lambda view: view.status is AccountStatus.CLOSED)

    def apply(connection: sa.Connection, row: Wallet, change: Change, now: datetime) -> Mapping[str, object]:
        if said is not None:  # money has come in, or is held: nothing is closed, and the holder may still cancel
            progress = {**change.progress, "is_sent": False}
            return {"progress": progress, "refusal": said.refusal, "detail": said.detail[:500]}
        lifecycle.update_wallet(connection, row.id, state="closed", closed_at=now, suspensions=[], changing_to=None)
        lifecycle.set_devices(connection, row.id, list(row.devices), "removed", ended_at=now)
        notify(connection, row.id, "closed", at=now, data={})
        return {"state": "done", "refusal": None, "detail": None}

    return finish(context, change, apply)


def _wait_for_holder(context: Context, change: Change) -> Change:
    def apply(connection: sa.Connection, row: Wallet, change: Change, now: datetime) -> Mapping[str, object]:
        return {"state": "waiting", "due_at": now + LOOKED_AGAIN_AFTER}

    return finish(context, change, apply)


def _note(context: Context, change: Change, **progress: object) -> Change:
    """The change with this much more of its progress written, unless it has ended meanwhile."""

    def apply(connection: sa.Connection, row: Wallet, change: Change, now: datetime) -> Mapping[str, object]:
        if row.state != "closing":
            return {}
        return {"progress": {**change.progress, **progress}}

    return finish(context, change, apply)
