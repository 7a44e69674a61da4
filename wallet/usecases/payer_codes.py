"""Payers' codes: a merchant's wallet scans what a payer shows, and is paid at once.

The code is the payer's device's signature over one hold: at most `cap_minor` from his account to his institution's
vault, for a minute or two. His phone may be offline. When a merchant's institution brings the code with a request, the
payer's institution sends the ledger one linked chain, all or nothing:

  1. the hold, as the holder signed it (I8);
  2. its post, of exactly the request's amount; the rest returns;
  3. the payment from the vault to the merchant, under the id that the request sets for its payment (I7).

So the holder's signature stands before every fen that leaves his account; nobody stands in between, for either all
three are booked or none; a code pays once, for its hold books once; and a request is paid once. Above the code's cap or
the institution's own nothing is sent: the request is put before the payer, who approves it as any other.

Two codes for one request would make one and the same third transfer, which the ledger takes for a repetition: two
payers would be debited for one payment. Two things that know nothing of each other forbid it: one live redemption a
payment (`redemption_payment_i7`), and the post's id, which is the request's and not the hold's: the ledger books the
post of one hold under it and refuses, whole, the chain of any other hold (I7).

What the holder trusts his institution with: that it posts a code's hold only for a merchant who has scanned it, at most
the cap, within the code's minutes. Every such post is on his statement.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.crypto import jws
from kernel.crypto.keys import PublicKey, Suite, to_base64url
from kernel.errors import ProblemError, Refusal, RequestRefusal
from kernel.ids import ParticipantId, derive_uuid7, is_from_future
from ledger.contract import (
    INSTRUCTION_TYP,
    LedgerRefusal,
    SignedInstruction,
    TransferItem,
    TransferKind,
    TransferOutcome,
    TransferRefusal,
    TransferResult,
    TransferTerms,
    TransferView,
)
from wallet.contract import WalletRefusal
from wallet.contract.requests import (
    ACCEPTANCE_TYP,
    REQUEST_TYP,
    AcceptanceDocument,
    CodeRedemption,
    CodeRedemptionAnswer,
    RedemptionState,
    RedemptionView,
    RequestDocument,
)
from wallet.domain import limits, qr
from wallet.domain.events import EventType
from wallet.domain.lifecycle import caps_in_force, refuse_paying
from wallet.domain.payer_holds import hold_of
from wallet.domain.qr import PayerCode, QrRefused
from wallet.domain.records import Wallet
from wallet.domain.requests import OPEN_STATES, payment_id
from wallet.store import events, wallets
from wallet.store import requests as store
from wallet.store.requests import Redemption
from wallet.usecases import incoming, own_rules, requests
from wallet.usecases.context import SUBMISSION_GRACE, SUBMISSION_LIFE, Context, refusal_of
from wallet.usecases.peers import REQUEST_REFUSALS, canonical, peer_unavailable, signed_document

log = logging.getLogger("jiaozi.wallet.payer-codes")

CODE_SECONDS_MAX = 300
"""A code that is valid for longer is refused: whoever photographs it should have little time."""
UNFINISHED_A_PASS_MAX = 500
OLD_ENOUGH = timedelta(seconds=10)


# --- the merchant's side ---------------------------------------------------------------------------------------------


def redeem(context: Context, request_id: UUID, text: str) -> RedemptionView:
    """Have a request of ours paid by a payer's code. Again with the same code: the same answer.

    Raises: ProblemError(request-not-found, code-invalid, request-terms-invalid, request-ended, request-already-paid,
    institution-unknown, service-unavailable), and what the payer's institution answers.
    """
    try:
        code = qr.parse_payer(text)
    except QrRefused as error:
        raise ProblemError(WalletRefusal.CODE_INVALID, str(error)) from None
    request = requests.look(context, requests.find_request(context, request_id))
    if request.terms.amount_minor is None or request.terms.is_many:
        raise ProblemError(WalletRefusal.REQUEST_TERMS_INVALID, "a code pays a request for one amount in one payment")
    if request.state in OPEN_STATES and request.state_at(context.clock()) == "expired":
        raise ProblemError(WalletRefusal.REQUEST_ENDED, "the request has expired")
    if request.state in ("declined", "cancelled", "expired"):
        raise ProblemError(WalletRefusal.REQUEST_ENDED, f"the request is {request.state}")
    answer = _ask(context, code.institution, CodeRedemption(code=text, document=request.document))
    if answer.acceptance is None:
        return RedemptionView(
            state=RedemptionState.NEEDS_APPROVAL, request=request_id, payment=None, seq=None, booked_at=None
        )
    accepted = signed_document(context, answer.acceptance, typ=ACCEPTANCE_TYP, model=AcceptanceDocument)
    if (accepted.request, accepted.institution) != (request_id, code.institution):
        raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "the payer's institution answered about another request")
    requests.look(context, request)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        found = store.find_payment(connection, accepted.payment)
        if found is None or found.request_id != request_id:
            # Its word alone is nothing: what counts is the ledger, which will have it in a moment if it is true.
            raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "the ledger does not show the payment yet; retry")
        store.save_refund_account(connection, accepted.payment, accepted.payer)
    return RedemptionView(
        state=RedemptionState.PAID,
        request=request_id,
        payment=found.transfer_id,
        seq=found.seq,
        booked_at=found.booked_at,
    )


def _ask(context: Context, institution: ParticipantId, redemption: CodeRedemption) -> CodeRedemptionAnswer:
    if institution == context.participant:
        return accept(context, redemption)
    try:
        return context.peers.find(institution).redeem_code(redemption)
    except (ProblemResponse, ServiceUnreachable) as error:
        raise peer_unavailable(error, passed_on=_PASSED_ON) from error


_PASSED_ON: dict[str, Refusal] = {
    **REQUEST_REFUSALS,
    **{
        refusal.value: refusal
        for refusal in (
            TransferRefusal.INSUFFICIENT_FUNDS,
            TransferRefusal.SINGLE_LIMIT_EXCEEDED,
            TransferRefusal.DAY_LIMIT_EXCEEDED,
            TransferRefusal.YEAR_LIMIT_EXCEEDED,
            TransferRefusal.BALANCE_LIMIT_EXCEEDED,
            TransferRefusal.DEBIT_ACCOUNT_FROZEN,
            TransferRefusal.CREDIT_ACCOUNT_FROZEN,
            TransferRefusal.KIND_NOT_ALLOWED,
            TransferRefusal.LINKED_TRANSFER_REFUSED,
        )
    },
}


# --- the payer's side ------------------------------------------------------------------------------------------------


def accept(context: Context, redemption: CodeRedemption) -> CodeRedemptionAnswer:
    """Pay a merchant's request by a code of one of our holders, or put it before him. Again: the same answer.

    Raises: ProblemError(code-invalid, code-signature-invalid, code-expired, code-already-redeemed,
    request-document-invalid, request-terms-invalid, request-ended, request-already-paid, not-our-wallet, the limits'
    and the ledger's refusals, outcome-unknown, service-unavailable).
    """
    now = context.clock()
    try:
        code = qr.parse_payer(redemption.code)
    except QrRefused as error:
        raise ProblemError(WalletRefusal.CODE_INVALID, str(error)) from None
    if code.institution != context.participant:
        raise ProblemError(WalletRefusal.CODE_INVALID, f"the code is of {code.institution}")
    asked = signed_document(context, redemption.document, typ=REQUEST_TYP, model=RequestDocument)
    if asked.amount_minor is None or asked.payments == "many":
        raise ProblemError(WalletRefusal.REQUEST_TERMS_INVALID, "a code pays a request for one amount in one payment")
    wallet = incoming.wallet_of(context, code.account)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        known = store.find_redemption(connection, code.hold)
    token = _instruction(context, wallet, code, known)
    if known is not None and known.request_id != asked.request:
        raise ProblemError(WalletRefusal.CODE_ALREADY_REDEEMED)
    if known is None:
        _check(code, asked, now)
        if asked.amount_minor > min(code.cap_minor, context.pin_free_max_minor):
            incoming.keep(context, wallet, redemption.document, asked, needs_approval=True)
            return CodeRedemptionAnswer(state=RedemptionState.NEEDS_APPROVAL, acceptance=None)
        known = _count(context, wallet, code, asked, token)
    return CodeRedemptionAnswer(state=RedemptionState.PAID, acceptance=_acceptance(context, _finish(context, known)))


def _check(code: PayerCode, asked: RequestDocument, now: datetime) -> None:
    if now >= code.valid_until:
        raise ProblemError(WalletRefusal.CODE_EXPIRED)
    if code.valid_until > now + timedelta(seconds=CODE_SECONDS_MAX) or is_from_future(code.hold, now=now):
        raise ProblemError(WalletRefusal.CODE_INVALID, f"a code is valid for {CODE_SECONDS_MAX} seconds at most")
    if now >= asked.expires_at:
        raise ProblemError(WalletRefusal.REQUEST_ENDED, "the request has expired")


def _instruction(context: Context, wallet: Wallet, code: PayerCode, known: Redemption | None) -> str:
    """The hold as the holder's device signed it, put together again; the very one that is `known`, though its key be
    replaced since. Raises: ProblemError(code-signature-invalid)."""
    home = context.ledgers.home
    document = hold_of(code, vault=context.ledgers.vault(home), ledger=home.name, currency=home.currency)
    signed = f".{to_base64url(canonical(document))}.{to_base64url(code.signature)}"
    if known is not None and known.instruction.endswith(signed):
        return known.instruction
    for jwk in wallet.devices.values():
        key = PublicKey.from_jwk(jwk)
        token = _token(document, code.signature, key)
        try:
            jws.verify(token, key, typ=INSTRUCTION_TYP)
        except jws.InvalidJws:
            continue
        return token
    raise ProblemError(WalletRefusal.CODE_SIGNATURE_INVALID, "none of the wallet's devices has signed this code")


def _token(document: SignedInstruction, signature: bytes, key: PublicKey) -> str:
    header = jws.header_of("EdDSA" if key.suite is Suite.ED25519 else "ES256", key.thumbprint, INSTRUCTION_TYP)
    return f"{header}.{to_base64url(canonical(document))}.{to_base64url(signature)}"


def _count(context: Context, wallet: Wallet, code: PayerCode, asked: RequestDocument, token: str) -> Redemption:
    """Record the redemption and count the whole cap towards the limits, as the ledger does while it is held (I9)."""
    now = context.clock()
    today = limits.scheme_day(now, context.time_zone)
    row = Redemption(
        hold_id=code.hold,
        wallet_id=wallet.id,
        request_id=asked.request,
        payment_id=payment_id(asked.request, 0),
        credit_account=asked.account,
        amount_minor=asked.amount_minor or 0,
        cap_minor=code.cap_minor,
        instruction=token,
        valid_until=code.valid_until,
        state="initiated",
        tries=0,
        counted_on=None,
        refusal=None,
        seq=None,
        booked_at=None,
        created_at=now,
    )
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        payer = wallets.lock_wallet(connection, wallet.id)
        if payer is None:
            raise ProblemError(WalletRefusal.NOT_OUR_WALLET)
        refusal = refuse_paying(payer.state) if payer.state != "open" else None
        if refusal is not None:
            raise ProblemError(refusal)
        own_rules.refuse_but_payments(connection, code.account)
        caps = caps_in_force(context.pack, payer.wallet_class, changing_to=payer.changing_to, own=payer.own_caps)
        usage = limits.decide_payment(code.cap_minor, caps=caps, usage=payer.usage, today=today)
        if isinstance(usage, Refusal):
            raise ProblemError(usage, f"class {payer.wallet_class.value} of {context.pack.name}")
        row = replace(row, counted_on=usage.day)
        if not store.insert_redemption(connection, row):
            before = store.find_redemption(connection, code.hold)
            if before is None:
                raise ProblemError(WalletRefusal.REQUEST_ALREADY_PAID, "by another code, or one is on its way")
            if before.request_id != asked.request:
                raise ProblemError(WalletRefusal.CODE_ALREADY_REDEEMED)
            return before
        # What the post will return is not counted in the end: only the amount stays.
        store.save_usage(
            connection, payer.id, limits.release(usage, code.cap_minor - row.amount_minor, counted_on=usage.day)
        )
    return row


def _finish(context: Context, row: Redemption) -> Redemption:
    """Send the chain, conclude. Raises: ProblemError with the refusal, or outcome-unknown: repeat."""
    if row.state == "initiated":
        row = _send(context, row)
    if row.state == "refused":
        raise ProblemError(refusal_of(row.refusal))
    if row.state == "initiated":
        raise ProblemError(LedgerRefusal.OUTCOME_UNKNOWN, "the ledger's answer is not known yet; repeat the request")
    return row


def post_id(payment: UUID) -> UUID:
    """The id of the one post that may stand behind a request's payment, whichever code it is of."""
    return derive_uuid7(payment, "code-post")


def chain_of(context: Context, row: Redemption) -> list[TransferItem]:
    """Hold, post, payment: linked, so all or nothing. The same again at every try, so each books once (I7)."""
    home = context.ledgers.home
    post = TransferTerms(
        id=post_id(row.payment_id),
        kind=TransferKind.POST,
        hold=row.hold_id,
        amount_minor=row.amount_minor,
        currency=home.currency,
        reference=row.request_id,
    )
    pay_on = TransferTerms(
        id=row.payment_id,
        kind=TransferKind.PAYMENT,
        debit=context.ledgers.vault(home),
        credit=row.credit_account,
        amount_minor=row.amount_minor,
        currency=home.currency,
        reference=row.request_id,
    )
    return [
        TransferItem(instruction=row.instruction, linked=True),
        TransferItem(terms=post, linked=True),
        TransferItem(terms=pay_on),
    ]


def _send(context: Context, row: Redemption) -> Redemption:
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        locked = store.find_redemption(connection, row.hold_id, lock=True)
        if locked is None or locked.state != "initiated":
            return locked or row
        row = replace(locked, tries=locked.tries + 1)
        store.save_redemption(connection, row.hold_id, tries=row.tries)
    try:
        results = context.ledgers.home.client.submit(
            chain_of(context, row), expires_at=context.clock() + SUBMISSION_LIFE
        )
    except (ProblemResponse, ServiceUnreachable) as error:
        log.info("a code's outcome is not known: %s", type(error).__name__)
        return row
    booked = [item for item in results if item.outcome is not TransferOutcome.REFUSED]
    if len(booked) == len(results) == 3:
        return _write(context, row, state="final", seq=results[2].seq, booked_at=results[2].booked_at)
    if row.tries == 1:
        row = _write(context, row, state="refused", refusal=_reason(results), if_sent_once=True)
    return row if row.state != "initiated" else _second_look(context, row, _reason(results))


def _reason(results: list[TransferResult]) -> str:
    """Why the chain was refused: the member that is not only refused because of another."""
    codes = [item.refusal for item in results if item.refusal not in (None, TransferRefusal.LINKED_TRANSFER_REFUSED)]
    reason = codes[0] if codes else None
    if reason == TransferRefusal.ID_ALREADY_USED.value:
        return WalletRefusal.REQUEST_ALREADY_PAID.value  # the request's payment is another: it was paid otherwise
    return reason or TransferRefusal.LINKED_TRANSFER_REFUSED.value


def _second_look(context: Context, row: Redemption, reason: str) -> Redemption:
    """What became of a chain of which one copy was refused while another's answer is not known: the ledger's word.

    The post under the request's id says which code has paid. Without one this code has not, and that is final when no
    copy of its chain can be booked any more: after its hold's own expiry. The time is read before the ledger is asked.
    """
    is_over = context.clock() - SUBMISSION_GRACE > row.valid_until
    try:
        post = _booked(context, post_id(row.payment_id))
        payment = _booked(context, row.payment_id)
    except (ProblemResponse, ServiceUnreachable) as error:
        log.info("a code's outcome is not known yet: %s", type(error).__name__)
        return row
    if post is not None and post.hold == row.hold_id:
        if payment is None:  # they are booked together: the next look sees both
            return row
        return _write(context, row, state="final", seq=payment.seq, booked_at=payment.booked_at)
    if post is not None or is_over:
        is_paid = post is not None or payment is not None
        refusal = WalletRefusal.REQUEST_ALREADY_PAID.value if is_paid else reason
        return _write(context, row, state="refused", refusal=refusal)
    return row


def _booked(context: Context, transfer_id: UUID) -> TransferView | None:
    """Raises: ProblemResponse, ServiceUnreachable."""
    try:
        return context.ledgers.home.client.get_transfer(transfer_id)
    except ProblemResponse as error:
        if error.refusal == LedgerRefusal.TRANSFER_NOT_FOUND.value:
            return None
        raise


def _write(
    context: Context,
    row: Redemption,
    *,
    state: str,
    refusal: str | None = None,
    seq: int | None = None,
    booked_at: datetime | None = None,
    if_sent_once: bool = False,
) -> Redemption:
    """The outcome, once; what was counted for a refused one is given back. `if_sent_once`: only if no other copy has
    been sent meanwhile, which may be booked yet."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        payer = wallets.lock_wallet(connection, row.wallet_id)
        locked = store.find_redemption(connection, row.hold_id, lock=True)
        if locked is None or payer is None:
            return row
        if locked.state != "initiated" or (if_sent_once and locked.tries > 1):
            return locked
        counted_on = locked.counted_on
        if state == "refused" and counted_on is not None:
            store.save_usage(connection, payer.id, limits.release(payer.usage, row.amount_minor, counted_on=counted_on))
            counted_on = None
        store.save_redemption(
            connection,
            row.hold_id,
            state=state,
            refusal=refusal,
            seq=seq,
            booked_at=booked_at,
            counted_on=counted_on,
        )
        if booked_at is not None:
            data = {"payment": f"trf_{row.payment_id}", "amount_minor": str(row.amount_minor)}
            subject, once = f"trf_{row.hold_id}", row.hold_id
            events.emit(
                connection,
                EventType.CODE_REDEEMED,
                subject,
                at=booked_at,
                wallet_id=row.wallet_id,
                data=data,
                once=once,
            )
        found = store.find_redemption(connection, row.hold_id)
    return found or row


def _acceptance(context: Context, row: Redemption) -> str:
    if row.seq is None or row.booked_at is None:
        raise TypeError("only what is booked is accepted")
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        payer = wallets.find_wallet(connection, row.wallet_id)
    if payer is None or payer.account is None:
        raise ProblemError(WalletRefusal.NOT_OUR_WALLET)
    document = AcceptanceDocument(
        request=row.request_id,
        institution=context.participant,
        payment=row.payment_id,
        payer=payer.account,
        amount_minor=row.amount_minor,
        seq=row.seq,
        booked_at=row.booked_at,
    )
    return jws.sign(canonical(document), context.key, typ=ACCEPTANCE_TYP)


def resume_redemptions(context: Context, *, older_than: timedelta = OLD_ENOUGH) -> int:
    """Codes whose outcome a crash or a lost answer left open; how many were concluded."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        rows = store.redemptions_unfinished(
            connection, before=context.clock() - older_than, limit=UNFINISHED_A_PASS_MAX
        )
    return sum(_send(context, row).state != "initiated" for row in rows)
