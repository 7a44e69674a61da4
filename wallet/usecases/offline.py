"""Offline purses at the institution: issue, load, sync, settle. The rules are in `wallet.domain.offline`.

Loading (the holder signs wallet -> escrow, with the purse's id as reference):

  1. one transaction: limits (I9) under the wallet's lock, the funding recorded as initiated;
  2. the ledger books it, once, by its id (I7);
  3. one transaction: final, the signed funding kept, its value object in the books; or refused, the usage given back.

Sync: messages are proof in themselves, so anybody may hand them in, in any order, as often as he likes. Each chain is
verified and booked in one transaction under the locks of its purses; what it makes due is recorded there as payouts
with derived ids, which are sent afterwards and by the recovery pass until the ledger has booked them. A payout is never
given up: the money stays in the escrow for its payee until his wallet can take it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import sqlalchemy as sa

from kernel import ids
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.crypto import jws
from kernel.crypto.keys import KeyRefused, PublicKey
from kernel.errors import InvariantBroken, ProblemError, Refusal, RequestRefusal
from kernel.ids import AccountNumber, is_from_future
from kernel.money import AMOUNT_MINOR_MAX
from ledger.contract import (
    INSTRUCTION_TYP,
    AccountKind,
    AccountOpening,
    Instruction,
    InvalidInstruction,
    LedgerRefusal,
    TransferKind,
    TransferOutcome,
    TransferRefusal,
    TransferResult,
    TransferTerms,
    read_instruction,
)
from wallet.contract import WalletRefusal
from wallet.domain import limits
from wallet.domain.lifecycle import caps_in_force, refuse_paying
from wallet.domain.limits import scheme_day
from wallet.domain.offline import messages
from wallet.domain.offline.books import BookedSpend, SourceBook
from wallet.domain.offline.cose import Unreadable
from wallet.domain.offline.limits import REVOKED_MAX
from wallet.domain.offline.messages import write_proof
from wallet.domain.offline.policy import POLICY, Policy
from wallet.domain.offline.records import FundingRow, PayoutRow, PurseRow
from wallet.domain.offline.verify import Chain, verify_chain
from wallet.domain.offline.vocabulary import PurseRefusal, Refused
from wallet.domain.records import Wallet
from wallet.store import carriage, offline, wallets
from wallet.store.carriage import Connection as RawConnection
from wallet.store.carriage import Payer
from wallet.usecases.context import (
    SUBMISSION_GRACE,
    SUBMISSION_LIFE,
    Context,
    is_definite,
    ledger_unavailable,
    refusal_of,
)
from wallet.usecases.kept_twice import KeptByDatabase
from wallet.usecases.own_rules import refuse_but_payments

log = logging.getLogger("jiaozi.wallet.offline")

RECOVERED_AT_ONCE_MAX = 200
PAYOUT_AGAIN = timedelta(minutes=1)
"""How long a payout that was refused (a full or frozen wallet) rests before it is tried again."""


# --- purses ----------------------------------------------------------------------------------------------------------


def issue_purse(
    context: Context, purse_id: UUID, *, wallet_id: UUID, device_key: dict[str, str], policy: Policy = POLICY
) -> PurseRow:
    """A signed certificate for a device. Idempotent by id.

    Raises: ProblemError(wallet-not-found, wallet-not-open, device-key-refused, kind-not-allowed, purse-exists,
    purses-too-many, device-key-in-use).
    """
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        wallet = wallets.find_wallet(connection, wallet_id)
        known = offline.find_purse(connection, purse_id)
    if wallet is None:
        raise ProblemError(WalletRefusal.WALLET_NOT_FOUND)
    try:
        key = PublicKey.from_jwk(device_key)
    except KeyRefused as error:
        raise ProblemError(WalletRefusal.DEVICE_KEY_REFUSED, str(error)) from None
    if known is not None:
        return _same_purse(known, wallet_id, key)
    if wallet.state != "open" or wallet.account is None:
        raise ProblemError(WalletRefusal.WALLET_NOT_OPEN)
    if is_from_future(purse_id, now=context.clock()):
        raise ProblemError(LedgerRefusal.ID_FROM_FUTURE)
    row = _new_purse(context, purse_id, wallet, key, policy)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        locked = wallets.lock_wallet(connection, wallet_id)
        if locked is None or locked.state != "open":  # a closure that has begun meanwhile has seen no purse
            raise ProblemError(WalletRefusal.WALLET_NOT_OPEN)
        refuse_but_payments(connection, wallet.account)
        unsettled = offline.purses_unsettled(connection, wallet_id)
        for purse in unsettled:
            if purse.revoked_for is None and purse.not_after <= context.clock():
                offline.mark_revoked(connection, purse.id, "expired", at=context.clock())
        is_inserted = len(unsettled) < policy.purses_unsettled_max and offline.insert_purse(connection, row)
        known = offline.find_purse(connection, purse_id)
        is_active = any(purse.revoked_for is None and purse.not_after > context.clock() for purse in unsettled)
    if known is not None:
        return known if is_inserted else _same_purse(known, wallet_id, key)
    if is_active or len(unsettled) >= policy.purses_unsettled_max:
        raise ProblemError(WalletRefusal.PURSES_TOO_MANY, "report the old one lost, or wait until it is settled")
    raise ProblemError(WalletRefusal.DEVICE_KEY_IN_USE, "make a new key for a new purse")


def find_purse(context: Context, purse_id: UUID) -> PurseRow:
    """Raises: ProblemError(purse-not-found)."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = offline.find_purse(connection, purse_id)
    if row is None:
        raise ProblemError(WalletRefusal.PURSE_NOT_FOUND)
    return row


def left_minor(context: Context, purse_id: UUID) -> int:
    """What the purse holds as far as the service knows: payments that nobody has synced are not in it."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        return offline.purse_left(connection, purse_id)


def report_lost(context: Context, purse_id: UUID) -> PurseRow:
    """On the revocation list from now on. The rest comes back when the purse is settled. Idempotent."""
    find_purse(context, purse_id)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        offline.mark_revoked(connection, purse_id, "lost", at=context.clock())
    return find_purse(context, purse_id)


def revocations(context: Context) -> bytes:
    """The signed list as of now; its number is the time."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        listed = offline.purses_revoked(connection, limit=REVOKED_MAX)
    return messages.sign_revocations(
        number=_seconds(context.clock()), purses=listed, suite=context.key.suite, sign=context.key.sign
    )


def proof_against(context: Context, purse_id: UUID) -> bytes:
    """Raises: ProblemError(purse-not-found, purse-has-no-proof)."""
    find_purse(context, purse_id)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        proof = offline.find_proof(connection, purse_id)
    if proof is None:
        raise ProblemError(WalletRefusal.PURSE_HAS_NO_PROOF)
    return proof


def escrow_account(context: Context) -> AccountNumber:
    """Our offline account on the home ledger; opened at first need, under an id that is durable before."""
    home = context.ledgers.home
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        opening_id, known = offline.prepare_escrow(connection, home.name, ids.new_uuid7())
    if known is not None:
        return AccountNumber(known)
    try:
        result = home.client.open_accounts([AccountOpening(opening=opening_id, kind=AccountKind.OFFLINE)])[0]
    except (ProblemResponse, ServiceUnreachable) as error:
        raise ledger_unavailable(error) from error
    if result.account is None:
        raise ProblemError(refusal_of(result.refusal), result.detail or "the ledger refused to open our escrow")
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        offline.save_escrow(connection, home.name, result.account)
    return result.account


@dataclass(frozen=True, slots=True)
class EscrowReport:
    """The ledger's escrow against our books, in minor units. While nothing is under way they are equal."""

    account: AccountNumber
    escrow_minor: int
    unspent_minor: int
    payouts_minor: int
    recoveries_minor: int
    losses_minor: int

    @property
    def claims_minor(self) -> int:
        return self.unspent_minor + self.payouts_minor + self.recoveries_minor - self.losses_minor


def escrow_report(context: Context) -> EscrowReport:
    """Raises: ProblemError(service-unavailable)."""
    account = escrow_account(context)
    with context.database.transaction(isolation="REPEATABLE READ") as connection:
        unspent, payouts, recoveries, losses = offline.escrow_claims(connection)
    try:
        balance = context.ledgers.home.client.get_account(account).balance_minor
    except (ProblemResponse, ServiceUnreachable) as error:
        raise ledger_unavailable(error) from error
    return EscrowReport(account, balance, unspent, payouts, recoveries, losses)


# --- loading ---------------------------------------------------------------------------------------------------------


def fund(context: Context, token: str) -> FundingRow:
    """Carry the holder's signed purse-fund; the final funding with its signed message. Idempotent by the transfer's id.

    Raises: ProblemError with the refusal, or outcome-unknown: repeat the same request.
    """
    item = _read_fund(context, token)
    escrow = escrow_account(context)
    row, is_new = context.database.run_session(lambda connection: _record(context, connection, item, token, escrow))
    if not is_new and row.state == "initiated":
        with context.database.transaction(isolation="READ COMMITTED") as connection:
            row = offline.claim_funding(connection, row, now=context.clock()) or row
    if row.state == "initiated" and (is_new or row.attempt > 1):
        row = _advance(context, row)
    if row.state == "refused":
        raise ProblemError(refusal_of(row.refusal), row.detail or "")
    if row.state == "initiated":
        raise ProblemError(LedgerRefusal.OUTCOME_UNKNOWN, "the ledger's answer is not known yet; repeat the request")
    return row


def find_funding(context: Context, funding_id: UUID) -> FundingRow:
    """Raises: ProblemError(funding-not-found)."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = offline.find_funding(connection, funding_id)
    if row is None:
        raise ProblemError(WalletRefusal.FUNDING_NOT_FOUND)
    return row


def _read_fund(context: Context, token: str) -> Instruction:
    try:
        item = read_instruction(token)
    except InvalidInstruction as error:
        raise ProblemError(LedgerRefusal.INSTRUCTION_INVALID, error.reason) from None
    home = context.ledgers.home
    if item.kind is not TransferKind.PURSE_FUND:
        raise ProblemError(TransferRefusal.KIND_NOT_ALLOWED, f"a {item.kind.value} is not carried here")
    if item.debit is None or item.credit is None or item.amount_minor is None or not item.reference_number:
        raise ProblemError(
            LedgerRefusal.INSTRUCTION_INVALID, "give debit, credit, amount_minor and the purse as reference"
        )
    if item.ledger != home.name:
        raise ProblemError(LedgerRefusal.WRONG_LEDGER, f"this wallet's ledger is {home.name}")
    if item.currency != home.currency:
        raise ProblemError(LedgerRefusal.WRONG_CURRENCY, f"this wallet holds {home.currency}")
    if not 0 < item.amount_minor <= AMOUNT_MINOR_MAX:
        raise ProblemError(TransferRefusal.AMOUNT_INVALID)
    return item


def _record(
    context: Context, connection: RawConnection, item: Instruction, token: str, escrow: AccountNumber
) -> tuple[FundingRow, bool]:
    """Step 1: the funding, and whether it is recorded only now. Everything is refused before it is recorded."""
    now = context.clock()
    debit, amount, purse_id = item.debit or 0, item.amount_minor or 0, UUID(int=item.reference_number)
    payer = carriage.lock_payers(connection, [debit]).get(debit)
    if payer is None:
        raise ProblemError(WalletRefusal.NOT_OUR_WALLET)
    known = offline.find_funding_raw(connection, item.id)
    if known is None or known.instruction != token:  # the very same is answered as before, though its key be replaced
        try:
            jws.check(item.unverified, _signer_key(token, payer), typ=INSTRUCTION_TYP)
        except jws.InvalidJws as error:
            raise ProblemError(LedgerRefusal.INSTRUCTION_INVALID, error.reason) from None
    if known is not None:
        if (known.purse_id, known.debit_account, known.amount_minor) != (purse_id, debit, amount):
            raise ProblemError(TransferRefusal.ID_ALREADY_USED)
        return known, False
    if now >= item.valid_until:
        raise ProblemError(LedgerRefusal.INSTRUCTION_EXPIRED)
    if is_from_future(item.id, now=now):
        raise ProblemError(LedgerRefusal.ID_FROM_FUTURE)
    if item.credit != escrow:
        raise ProblemError(WalletRefusal.NOT_OUR_ESCROW, f"credit {ids.show_account(escrow)}")
    refusal = refuse_paying(payer.state)
    if refusal is not None:
        raise ProblemError(refusal)
    refuse_but_payments(connection, debit)
    purse = offline.lock_purse_of(connection, purse_id, payer.wallet_id)
    if purse is None:
        raise ProblemError(WalletRefusal.PURSE_NOT_FOUND, "the instruction's reference is no purse of this wallet")
    if not purse.is_active or now >= purse.not_after:
        raise ProblemError(WalletRefusal.PURSE_NOT_ACTIVE)
    if purse.left_minor + purse.under_way_minor + amount > purse.balance_max_minor:
        raise ProblemError(WalletRefusal.PURSE_LIMIT_EXCEEDED)
    today = scheme_day(now, context.time_zone)
    caps = caps_in_force(context.pack, payer.wallet_class, changing_to=payer.changing_to, own=payer.own_caps)
    usage = limits.decide_payment(amount, caps=caps, usage=payer.usage, today=today)
    if isinstance(usage, Refusal):
        raise ProblemError(usage, f"class {payer.wallet_class.value} of {context.pack.name}")
    row = FundingRow(
        id=item.id,
        purse_id=purse_id,
        debit_account=debit,
        amount_minor=amount,
        instruction=token,
        valid_until=item.valid_until,
        state="initiated",
        attempt=1,
        counted_on=usage.day,
        refusal=None,
        detail=None,
        seq=None,
        booked_at=None,
        message=None,
        tried_at=now,
        created_at=now,
    )
    if not offline.insert_funding(connection, row):
        raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "the same funding is being carried; repeat the request")
    carriage.save_usages(connection, {debit: usage})
    return row, True


def _advance(context: Context, row: FundingRow) -> FundingRow:
    """Steps 2 and 3. A refusal is believed if no other copy was ever sent, or none can be booked any more."""
    is_first = row.attempt == 1
    is_dead = context.clock() - SUBMISSION_GRACE > row.valid_until
    if not is_first:
        booked = _look_up(context, row)
        if booked is not None:
            return _finish(context, row, booked)
        if is_dead:
            detail = "the ledger did not book the funding in time; sign another one"
            return _refuse(context, row, LedgerRefusal.INSTRUCTION_EXPIRED.value, detail)
    try:
        answer = context.ledgers.home.client.submit_signed(
            [row.instruction], expires_at=row.tried_at + SUBMISSION_LIFE
        )[0]
    except (ProblemResponse, ServiceUnreachable, IndexError):
        return row
    if answer.outcome != TransferOutcome.REFUSED.value:
        booked_at = datetime.fromisoformat(answer.booked_at) if answer.booked_at else context.clock()
        result = TransferResult(outcome=TransferOutcome.BOOKED, id=row.id, seq=answer.seq, booked_at=booked_at)
        return _finish(context, row, result)
    if is_first:
        return _refuse(context, row, answer.refusal or RequestRefusal.SERVICE_UNAVAILABLE.value, answer.detail)
    return row


def _look_up(context: Context, row: FundingRow) -> TransferResult | None:
    """The booked transfer; None: the ledger does not have it. Raises: ProblemError when it does not say."""
    try:
        view = context.ledgers.home.client.get_transfer(row.id)
    except ServiceUnreachable as error:
        raise ledger_unavailable(error) from error
    except ProblemResponse as error:
        if error.refusal == LedgerRefusal.TRANSFER_NOT_FOUND.value:
            return None
        raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "the ledger did not say") from error
    if view.kind is not TransferKind.PURSE_FUND or (view.debit, view.amount_minor) != (
        row.debit_account,
        row.amount_minor,
    ):
        return None  # the id is somebody else's, so ours can never be booked
    return TransferResult(outcome=TransferOutcome.BOOKED, id=row.id, seq=view.seq, booked_at=view.booked_at)


def _finish(context: Context, row: FundingRow, booked: TransferResult) -> FundingRow:
    booked_at = booked.booked_at or context.clock()
    message = messages.sign_funding(
        purse=row.purse_id,
        transfer=row.id,
        amount_minor=row.amount_minor,
        issued_at=_seconds(booked_at),
        suite=context.key.suite,
        sign=context.key.sign,
    )
    source = SourceBook(messages.read_funding(message).hash, row.purse_id, row.amount_minor, row.amount_minor)

    def work(connection: sa.Connection) -> None:
        offline.finish_funding(connection, row, seq=booked.seq, booked_at=booked_at, message=message, source=source)

    # The money is in the escrow: two transactions that met must not leave the purse without it.
    context.database.run(work, isolation="READ COMMITTED")
    return find_funding(context, row.id)


def _refuse(context: Context, row: FundingRow, refusal: str, detail: str | None) -> FundingRow:
    def work(connection: RawConnection) -> None:
        payer = carriage.lock_payers(connection, [row.debit_account])[row.debit_account]
        if offline.refuse_funding(connection, row, refusal=refusal, detail=detail):
            usage = limits.release(payer.usage, row.amount_minor, counted_on=row.counted_on)
            carriage.save_usages(connection, {row.debit_account: usage})

    context.database.run_session(work)
    return find_funding(context, row.id)


# --- sync ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Synced:
    """What became of one message's payment."""

    payment: bytes | None
    """Hash of the spend; None: the message could not be read."""
    booked: BookedSpend | None
    payout: PayoutRow | None
    refused: Refused | None


def sync(context: Context, transfers: Sequence[bytes]) -> list[Synced]:
    """One result a message, in order. Every spend of every chain is booked once (I7), whoever brings it."""
    results = [_sync_one(context, message) for message in transfers]
    pay_out(context)
    events = [result.booked.hash for result in results if result.booked is not None]
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        payouts = offline.payouts_of(connection, events) if events else {}
    return [
        Synced(result.payment, result.booked, payouts.get(result.payment or b""), result.refused) for result in results
    ]


def _sync_one(context: Context, message: bytes) -> Synced:
    try:
        transfer = messages.read_transfer(message)
    except Unreadable as error:
        return Synced(None, None, None, Refused(PurseRefusal.MESSAGE_INVALID, str(error)))
    # A chain that brings both spends of a double spender is no less evidence: it is booked, and names him.
    chain = verify_chain(transfer, context.key.public, takes_conflicts=True)
    outcome = _book(context, chain, context.clock()) if isinstance(chain, Chain) else chain
    payment = transfer.payment.hash
    if isinstance(outcome, Refused):
        return Synced(payment, None, None, outcome)
    return Synced(payment, outcome, None, None)


def _book(context: Context, chain: Chain, now: datetime) -> BookedSpend | Refused:
    transfer = chain.transfer

    def work(connection: sa.Connection) -> BookedSpend | Refused:
        books = offline.load_books(
            connection,
            certificates=[*chain.certificates, *(spend.payee for spend in transfer.spends)],
            sources=[
                *(funding.hash for funding in transfer.fundings),
                *(part.source for spend in transfer.spends for part in spend.parts),
            ],
            spends=[spend.hash for spend in transfer.spends],
            counters=[spend.counter for spend in transfer.spends],
        )
        results = books.arrive(chain, now=_seconds(now))
        certificates = {item.purse: item.signed.message for item in chain.certificates.values()}
        proofs: dict[UUID, bytes] = {}
        for conflict in books.conflicts:
            proofs.setdefault(
                conflict.purse, write_proof(certificates[conflict.purse], conflict.first, conflict.second)
            )
        offline.save_books(connection, books, proofs=proofs, now=now)
        return results[-1]

    try:
        return context.database.run(work, isolation="READ COMMITTED")
    except KeptByDatabase as kept:
        if kept.constraint != "purse_payout_held_i3":
            raise
        return Refused(PurseRefusal.PURSE_HELD)  # this message's; the others are not held up


# --- payouts and settling --------------------------------------------------------------------------------------------


def pay_out(context: Context) -> int:
    """Send what is due to the ledger, each under its derived id until it is booked. How many were."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        before = context.clock() - PAYOUT_AGAIN
        rows = offline.payouts_pending(connection, limit=RECOVERED_AT_ONCE_MAX, before=before)
    if not rows:
        return 0
    try:
        escrow = escrow_account(context)
        vault = context.ledgers.vault(context.ledgers.home)
    except ProblemError:
        return 0
    booked = 0
    for row in rows:
        result = _send(context, row, escrow, vault)
        if result is None:
            return booked  # the ledger cannot be reached; what is due stays due
        with context.database.transaction(isolation="READ COMMITTED") as connection:
            if result.outcome is TransferOutcome.REFUSED:
                offline.mark_payout_tried(connection, row.id, refusal=result.refusal, tried_at=context.clock())
            else:
                booked_at = result.booked_at or context.clock()
                offline.mark_payout_booked(connection, row.id, seq=result.seq, booked_at=booked_at)
                booked += 1
    return booked


def _send(context: Context, row: PayoutRow, escrow: AccountNumber, vault: AccountNumber) -> TransferResult | None:
    home = context.ledgers.home
    kind, debit, credit = TransferKind.PURSE_LOSS, vault, escrow
    if row.kind == "redeem":
        if row.account is None:
            raise InvariantBroken("I1", f"payout {row.id} names no wallet")
        kind, debit, credit = TransferKind.PURSE_REDEEM, escrow, AccountNumber(row.account)
    elif row.kind == "recovery":
        debit, credit = escrow, vault
    terms = TransferTerms(
        id=row.id,
        kind=kind,
        debit=debit,
        credit=credit,
        amount_minor=row.amount_minor,
        currency=home.currency,
        reference=row.purse_id,
    )
    try:
        return home.client.transfer(terms)
    except ServiceUnreachable:
        return None
    except ProblemResponse as error:
        if not is_definite(error):
            return None
        return TransferResult(outcome=TransferOutcome.REFUSED, id=row.id, refusal=error.refusal, detail=error.detail)


def settle_purse(context: Context, purse_id: UUID) -> bool:
    """After expiry and grace: the rest goes back. False: it is not time, or done already."""
    now = context.clock()
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        books = offline.load_books_of(connection, purse_id)
        if books is None or books.purses[purse_id].is_closed:
            return False
        books.close(purse_id, now=_seconds(now))
        if not books.purses[purse_id].is_closed:
            return False
        offline.save_books(connection, books, proofs={}, now=now)
    return True


def resume_offline(context: Context, *, older_than: timedelta) -> int:
    """The recovery pass: unfinished fundings, purses to settle, payouts that are due. How many items were done."""
    now = context.clock()
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        fundings = offline.fundings_unfinished(connection, before=now - older_than, limit=RECOVERED_AT_ONCE_MAX)
        due = offline.purses_to_close(connection, now=now, limit=RECOVERED_AT_ONCE_MAX)
    done = 0
    for row in fundings:
        try:
            with context.database.transaction(isolation="READ COMMITTED") as connection:
                claimed = offline.claim_funding(connection, row, now=now)
            done += claimed is not None and _advance(context, claimed).state != "initiated"
        except ProblemError:
            continue
        except Exception:  # one that cannot go on must not keep the others waiting
            log.exception("funding %s cannot go on", row.id)
    for purse_id in due:
        try:
            done += settle_purse(context, purse_id)
        except Exception:  # as above
            log.exception("purse %s cannot be settled", purse_id)
    return done + pay_out(context)


# --- helpers ---------------------------------------------------------------------------------------------------------


def _new_purse(context: Context, purse_id: UUID, wallet: Wallet, key: PublicKey, policy: Policy) -> PurseRow:
    if wallet.account is None:
        raise TypeError("an open wallet has an account")
    now = context.clock().replace(microsecond=0)
    not_after = now + timedelta(seconds=policy.life_seconds)
    closes_at = not_after + timedelta(seconds=policy.grace_seconds)
    home = context.ledgers.home
    certificate = messages.sign_certificate(
        issuer=context.participant,
        ledger=home.name,
        currency=home.currency,
        purse=purse_id,
        account=wallet.account,
        key=key,
        balance_max_minor=policy.balance_max_minor,
        single_max_minor=policy.single_max_minor,
        hops_max=policy.hops_max,
        not_before=_seconds(now),
        not_after=_seconds(not_after),
        grace_seconds=policy.grace_seconds,
        suite=context.key.suite,
        sign=context.key.sign,
    )
    return PurseRow(
        id=purse_id,
        wallet_id=wallet.id,
        account=wallet.account,
        certificate=certificate,
        certificate_hash=messages.read_certificate(certificate).hash,
        device_thumbprint=key.thumbprint,
        balance_max_minor=policy.balance_max_minor,
        not_after=not_after,
        closes_at=closes_at,
        loss_minor=0,
        recovered_minor=0,
        spends=0,
        revoked_for=None,
        revoked_at=None,
        closed_at=None,
        created_at=now,
    )


def _same_purse(known: PurseRow, wallet_id: UUID, key: PublicKey) -> PurseRow:
    if (known.wallet_id, known.device_thumbprint) != (wallet_id, key.thumbprint):
        raise ProblemError(WalletRefusal.PURSE_EXISTS)
    return known


def _seconds(moment: datetime) -> int:
    return int(moment.astimezone(UTC).timestamp())


def _signer_key(token: str, payer: Payer) -> PublicKey:
    """Of the device that the token names; of the first one if it names none of the wallet's."""
    jwk = json.loads(payer.device_key)
    if payer.other_devices is not None:
        jwk = json.loads(payer.other_devices).get(str(jws.peek_header(token).get("kid")), jwk)
    return PublicKey.from_jwk(jwk)
