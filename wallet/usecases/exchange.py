"""Deposit for currency and back: two systems, once on both sides, whatever crashes.

In (a saga; each arrow is one durable write, each call has an id derived from the exchange's):

  1. initiated: debit the deposit        -- refused --> refused (the deposit was not touched)
  2. debited:   exchange-in at the ledger -- booked --> final
                                          -- refused, and no other copy was ever sent --> compensating
                                          -- no copy can be booked any more --> compensating
  3. compensating: look the transfer up once more, then credit the deposit back --> compensated

What makes it right: core banking answers an id once and for ever; the ledger books an id at most once; every outcome is
written under the fence of the attempt's number; and the deposit is only credited back when no copy of the transfer can
still be booked. For that the step to `debited` stores `unknown_until`, and every copy, by whatever attempt and however
late it is signed, carries a signature that expires in time for it (RFC 9421 `expires`).

Out: the holder signs wallet -> vault; `pay` carries it; once it is final the deposit is credited under a derived id.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.errors import InvariantBroken, ProblemError, Refusal, RequestRefusal
from kernel.money import AMOUNT_MINOR_MAX
from ledger.contract import (
    AccountView,
    LedgerRefusal,
    TransferKind,
    TransferOutcome,
    TransferRefusal,
    TransferResult,
    TransferTerms,
)
from wallet.contract import WalletRefusal
from wallet.domain import limits
from wallet.domain.core_banking import PostingConflict, PostingOutcome
from wallet.domain.events import EventType
from wallet.domain.lifecycle import caps_in_force, refuse_unless_open
from wallet.domain.records import ExchangeIn, Payment, Wallet
from wallet.store import events, exchanges, families, lifecycle, payments, wallets
from wallet.usecases.context import SUBMISSION_GRACE, SUBMISSION_LIFE, Context, is_definite, refusal_of, show_transfer
from wallet.usecases.pay import EXCHANGES_OUT, carry, pay_one
from wallet.usecases.wallets import account_of

log = logging.getLogger("jiaozi.wallet.exchange")

RECOVERED_AT_ONCE_MAX = 500


def exchange_in(
    context: Context, exchange_id: UUID, *, wallet_id: UUID, amount_minor: int, currency: str
) -> ExchangeIn:
    """Start the exchange, or go on with it. Idempotent by id; an unfinished one is resumed by the recovery pass.

    Raises: ProblemError(exchange-exists, wallet-not-found, wallet-not-open, amount-invalid, wrong-currency,
    balance-limit-exceeded) before anything is recorded; afterwards the state says what became of it.
    """
    now = context.clock()
    row = ExchangeIn(
        id=exchange_id,
        wallet_id=wallet_id,
        amount_minor=amount_minor,
        currency=currency,
        state="initiated",
        attempt=1,
        claimed_until=now + context.claim,
        unknown_until=None,
        refusal=None,
        detail=None,
        seq=None,
        booked_at=None,
        created_at=now,
    )
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        known = exchanges.find_exchange(connection, exchange_id)
        wallet = wallets.find_wallet(connection, wallet_id)
    if known is None:
        view = _admit(context, wallet, amount_minor=amount_minor, currency=currency)
        with context.database.transaction(isolation="READ COMMITTED") as connection:
            _admit_under_lock(connection, wallet_id, amount_minor, view)
            if exchanges.insert_exchange(connection, row):
                known = row
        if known is not None:
            return _advance(context, row)
        known = find_exchange(context, exchange_id)
    if (known.wallet_id, known.amount_minor, known.currency) != (wallet_id, amount_minor, currency):
        raise ProblemError(WalletRefusal.EXCHANGE_EXISTS)
    return resume(context, known)


def find_exchange(context: Context, exchange_id: UUID) -> ExchangeIn:
    """Raises: ProblemError(exchange-not-found)."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = exchanges.find_exchange(connection, exchange_id)
    if row is None:
        raise ProblemError(WalletRefusal.EXCHANGE_NOT_FOUND)
    return row


def resume(context: Context, row: ExchangeIn, *, ignore_claim: bool = False) -> ExchangeIn:
    """Go on with an unfinished exchange, unless somebody else is at it."""
    now = context.clock()
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        claimed = exchanges.claim_exchange(
            connection,
            row.id,
            now=now,
            claimed_until=now + context.claim,
            ignore_claim=ignore_claim,
        )
    if claimed is None:
        return find_exchange(context, row.id)
    return _advance(context, claimed)


def resume_exchanges(context: Context, *, ignore_claims: bool = False) -> int:
    """What crashes and lost answers left unfinished; how many ended."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        rows = exchanges.exchanges_unfinished(
            connection, now=context.clock(), ignore_claims=ignore_claims, limit=RECOVERED_AT_ONCE_MAX
        )
    ended = 0
    for row in rows:
        try:
            after = resume(context, row, ignore_claim=ignore_claims)
        except ProblemError:
            continue
        except Exception:  # one that cannot go on must not keep the others waiting
            log.exception("exchange %s cannot go on", row.id)
            continue
        ended += after.state in ("final", "refused", "compensated")
    return ended


def exchange_out(context: Context, token: str) -> Payment:
    """Carry the holder's instruction, then credit the deposit. Raises: ProblemError, see `pay_one`."""
    return credit_deposit_of(context, pay_one(context, token, kinds=EXCHANGES_OUT))


def credit_deposit_of(context: Context, payment: Payment) -> Payment:
    """The deposit credit of a final exchange-out, under its derived id; a repetition credits nothing twice.

    A failing core-banking system leaves it to the recovery pass: the currency has been given back, which is final.
    """
    if payment.kind != "exchange-out" or payment.state != "final":
        raise InvariantBroken("I7", f"{show_transfer(payment.id)} is no final exchange out")
    if payment.deposit_credited_at is not None:
        return payment
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        wallet = wallets.find_wallet(connection, payment.wallet_id)
    if wallet is None:
        raise InvariantBroken("I7", f"{show_transfer(payment.id)} has no wallet")
    try:
        outcome = context.core_banking.credit_deposit(
            payment.deposit_credit_id, wallet.customer_id, payment.amount_minor
        )
    except Exception:  # of another system, of any kind: the outcome is unknown, the id makes a repetition safe
        log.exception("core banking did not answer about %s; recovery goes on with it", show_transfer(payment.id))
        return payment
    if outcome is not PostingOutcome.BOOKED:
        return payment
    credited_at = context.clock()
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        payments.mark_deposit_credited(connection, payment.id, credited_at=credited_at)
    return replace(payment, deposit_credited_at=credited_at)


def resume_payments(context: Context, *, older_than: timedelta) -> int:
    """Initiated payments are sent again; final exchanges out without their deposit credit get it. How many ended."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        rows = payments.payments_unfinished(
            connection, before=context.clock() - older_than, limit=RECOVERED_AT_ONCE_MAX
        )
    carried = carry(context, [row for row in rows if row.state == "initiated"])
    ended = 0
    for outcome in [*carried, *(row for row in rows if row.state == "final")]:
        if not isinstance(outcome, Payment) or outcome.state == "initiated":
            continue
        if outcome.kind == "exchange-out" and outcome.state == "final":
            outcome = credit_deposit_of(context, outcome)
            ended += outcome.deposit_credited_at is not None
        else:
            ended += 1
    return ended


# --- the saga of exchange-in -----------------------------------------------------------------------------------------


def _admit(context: Context, wallet: Wallet | None, *, amount_minor: int, currency: str) -> AccountView:
    """Refuses before the deposit is touched what the ledger would refuse after it. The account as the ledger has it."""
    if wallet is None:
        raise ProblemError(WalletRefusal.WALLET_NOT_FOUND)
    refusal = refuse_unless_open(wallet.state)
    if refusal is not None:
        raise ProblemError(refusal)
    view = account_of(context, wallet)
    if view is None:
        raise ProblemError(WalletRefusal.WALLET_NOT_OPEN)
    if currency != context.ledgers.home.currency:
        raise ProblemError(LedgerRefusal.WRONG_CURRENCY, f"this wallet holds {context.ledgers.home.currency}")
    if not 0 < amount_minor <= AMOUNT_MINOR_MAX:
        raise ProblemError(TransferRefusal.AMOUNT_INVALID)
    caps = caps_in_force(context.pack, wallet.wallet_class, changing_to=wallet.changing_to, own=wallet.own_caps)
    refusal = limits.decide_credit(amount_minor, balance_minor=view.balance_minor, caps=caps)
    if refusal is not None:
        raise ProblemError(refusal, f"class {wallet.wallet_class.value} of {context.pack.name}")
    context.ledgers.vault(context.ledgers.home)  # opened now, if it never was
    return view


def _admit_under_lock(connection: Connection, wallet_id: UUID, amount_minor: int, view: AccountView) -> None:
    """What only this service keeps, decided under the wallet's lock: that it is open still, and its holder's own
    balance cap, with what is on its way into it and what the ledger's `view` is too old to show."""
    wallet = wallets.lock_wallet(connection, wallet_id)
    if wallet is None:
        raise ProblemError(WalletRefusal.WALLET_NOT_FOUND)
    child = families.find_child(connection, wallet_id)
    if child is not None and child.caps.balance_max_minor is not None:
        raise ProblemError(WalletRefusal.CHILD_IS_FUNDED_BY_PAYMENTS)
    refusal = refuse_unless_open(wallet.state)
    if refusal is None and wallet.own_caps.balance_max_minor is not None:
        coming = lifecycle.exchanged_in_beyond(connection, wallet_id, seq=view.as_of_seq)
        balance_minor = view.balance_minor + coming
        refusal = limits.decide_credit(amount_minor, balance_minor=balance_minor, caps=wallet.own_caps)
    if refusal is not None:
        raise ProblemError(refusal, "the holder's own cap" if refusal in TransferRefusal else "")


def _advance(context: Context, row: ExchangeIn) -> ExchangeIn:
    """As far as it goes."""
    # Only the attempt that makes it `debited` (a fenced write) knows that nobody has sent the transfer before; and that
    # nobody has done so meanwhile, if its next fenced write succeeds.
    is_only_sender = row.state == "initiated"
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        wallet = wallets.find_wallet(connection, row.wallet_id)
    if wallet is None or wallet.account is None:
        raise InvariantBroken("I7", f"exchange {row.id} has no open wallet")
    if row.state == "initiated":
        try:
            outcome = context.core_banking.debit_deposit(row.deposit_debit_id, wallet.customer_id, row.amount_minor)
        except PostingConflict:
            raise
        except Exception:  # of another system, of any kind: the outcome is unknown, the id makes a repetition safe
            log.exception("core banking did not answer about exchange %s; recovery goes on with it", row.id)
            return row
        if outcome is PostingOutcome.REFUSED:
            refusal = WalletRefusal.DEPOSIT_INSUFFICIENT
            return _write(context, row, state="refused", refusal=refusal.value, detail=refusal.title)
        unknown_until = context.clock() + SUBMISSION_LIFE + SUBMISSION_GRACE
        after = _write(context, row, state="debited", unknown_until=unknown_until)
        if after.state != "debited" or after.attempt != row.attempt:
            return after
        row = after
    if row.state == "debited" and context.clock() >= _expires_at(row):
        # Too late to send, if only because this process stood still: what was sent is found, or can be no more.
        booked = _look_up(context, row)
        if booked is not None:
            return _write(context, row, **booked, unknown_until=None)
        if context.clock() <= _unknown_until(row):
            return _write(context, row, claimed_until=context.clock())
        after = _write(
            context,
            row,
            state="compensating",
            unknown_until=None,
            refusal=RequestRefusal.SERVICE_UNAVAILABLE.value,
            detail="the ledger did not book the exchange in time; start another one",
        )
        if after.state != "compensating" or after.attempt != row.attempt:
            return after
        row = after
    if row.state == "debited":
        result = _submit(context, row, wallet)
        if result is None:
            return _write(context, row, claimed_until=context.clock())  # whoever comes next may repeat it
        if result.outcome is not TransferOutcome.REFUSED:
            booked_at = result.booked_at or context.clock()
            return _write(context, row, state="final", seq=result.seq, booked_at=booked_at, unknown_until=None)
        if not is_only_sender:
            # This copy was refused, but one before it may yet be booked: wait until it no longer can.
            return _write(context, row, claimed_until=context.clock())
        refusal_code = refusal_of(result.refusal).value
        is_vaults = refusal_code == TransferRefusal.INSUFFICIENT_FUNDS.value  # the payer here is no customer
        after = _write(
            context,
            row,
            state="compensating",
            unknown_until=None,
            refusal=refusal_code,
            detail="the institution's vault holds less currency than that" if is_vaults else result.detail,
        )
        if after.state != "compensating" or after.attempt != row.attempt:
            return after
        row = after
    if row.state == "compensating":
        # Asked once nothing can be booked any more, so the answer stays true.
        booked = _look_up(context, row)
        if booked is not None:
            return _write(context, row, **booked)
        try:
            context.core_banking.credit_deposit(row.deposit_credit_back_id, wallet.customer_id, row.amount_minor)
        except PostingConflict:
            raise
        except Exception:  # as above
            log.exception("core banking did not answer about exchange %s; recovery goes on with it", row.id)
            return row
        return _write(context, row, state="compensated")
    return row


def _unknown_until(row: ExchangeIn) -> datetime:
    """After it no copy of the transfer can be booked any more."""
    if row.unknown_until is None:
        raise InvariantBroken("I7", f"exchange {row.id} is debited without a deadline")
    return row.unknown_until


def _expires_at(row: ExchangeIn) -> datetime:
    """What every copy of the transfer says in its signature."""
    return _unknown_until(row) - SUBMISSION_GRACE


def _submit(context: Context, row: ExchangeIn, wallet: Wallet) -> TransferResult | None:
    """The ledger's answer; None = not known."""
    home = context.ledgers.home
    terms = TransferTerms(
        id=row.transfer_id,
        kind=TransferKind.EXCHANGE_IN,
        debit=context.ledgers.vault(home),
        credit=wallet.account,
        amount_minor=row.amount_minor,
        currency=row.currency,
    )
    try:
        return home.client.transfer(terms, expires_at=_expires_at(row))
    except ServiceUnreachable:
        return None
    except ProblemResponse as error:
        if not is_definite(error):
            return None
        return TransferResult(
            id=row.transfer_id,
            outcome=TransferOutcome.REFUSED,
            refusal=error.refusal,
            transient=error.transient,
            detail=error.detail,
        )


def _look_up(context: Context, row: ExchangeIn) -> dict[str, Any] | None:
    """The changes that make the exchange final if its transfer is booked after all; None if it is not.

    Raises: ProblemError when the ledger does not say: then nothing is credited back yet.
    """
    try:
        view = context.ledgers.home.client.get_transfer(row.transfer_id)
    except ServiceUnreachable as error:
        raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "the ledger cannot be reached now") from error
    except ProblemResponse as error:
        if error.refusal == LedgerRefusal.TRANSFER_NOT_FOUND.value:
            return None
        raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "the ledger did not say") from error
    is_ours = view.kind is TransferKind.EXCHANGE_IN and view.amount_minor == row.amount_minor
    if not is_ours:
        return None
    return {"state": "final", "seq": view.seq, "booked_at": view.booked_at, "refusal": None, "detail": None}


def _write(context: Context, row: ExchangeIn, **changes: Any) -> ExchangeIn:
    """The row with the changes, if this attempt is still the newest; else as a newer attempt has it."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        after = exchanges.advance_exchange(connection, row, **changes)
        if after is not None and after.state in ("final", "refused", "compensated"):
            kind = EventType.EXCHANGE_FINAL if after.state == "final" else EventType.EXCHANGE_FAILED
            subject, wallet_id = f"exc_{row.id}", row.wallet_id
            events.emit(connection, kind, subject, at=context.clock(), wallet_id=wallet_id, once=row.id)
    return after if after is not None else find_exchange(context, row.id)


def refusal_of_exchange(row: ExchangeIn) -> Refusal | None:
    """Why an exchange ended without currency; None if it did not."""
    return refusal_of(row.refusal) if row.state in ("refused", "compensated") else None
