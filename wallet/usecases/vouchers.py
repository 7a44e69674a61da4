"""Spending vouchers, and the merchants where they may be spent. See docs/decisions/0014.

A voucher is a set of the issuer's own holds towards this institution's vault. A purchase is one linked chain in the
ledger, all or nothing: post as many holds as it needs, pay the merchant from the vault, give the change. So the money
is the issuer's until the very block in which it is the merchant's, and the vault holds it at no moment in between.

  1. *Decide and record.* Under the program's lock: the recipient's signature, the merchant's category and place, what
     is left. The purchase and the holds it uses are on disk before the ledger hears of them.
  2. *Submit* one copy, which expires.
  3. *Conclude.* Booked is final. A refusal is believed only if no other copy can still be booked: then the holds are
     free for another purchase. Otherwise the purchase stays initiated, and the periodic pass asks again (I7).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from uuid import UUID

from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.crypto import jws
from kernel.crypto.keys import PublicKey
from kernel.errors import InvariantBroken, ProblemError
from kernel.ids import AccountNumber, ParticipantId
from ledger.contract import (
    LedgerRefusal,
    TransferItem,
    TransferKind,
    TransferOutcome,
    TransferRefusal,
    TransferResult,
    TransferTerms,
    TransferView,
)
from wallet.contract import WalletRefusal
from wallet.contract.programs import (
    MERCHANT_TYP,
    ORIGIN_TYP,
    SPEND_TYP,
    MerchantRequest,
    MerchantStatement,
    PurchaseOrigin,
    VoucherSpend,
)
from wallet.domain.program_records import Merchant, Spend, Voucher
from wallet.domain.program_templates import stamps_for
from wallet.store import carriage
from wallet.store import programs as store
from wallet.store.carriage import Connection
from wallet.usecases import program_books, program_documents, program_steps
from wallet.usecases.context import (
    SUBMISSION_GRACE,
    SUBMISSION_LIFE,
    Context,
    is_definite,
    ledger_unavailable,
    refusal_of,
)
from wallet.usecases.kept_twice import KeptByDatabase
from wallet.usecases.peers import canonical, peer_unavailable, signed_document
from wallet.usecases.program_books import RETRY_AFTER, Known, seed_of
from wallet.usecases.program_documents import check_signed, keys_of, read_document
from wallet.usecases.programs import must_fit

_R = WalletRefusal


# --- purchases -------------------------------------------------------------------------------------------------------


def spend(context: Context, token: str) -> Spend:
    """Pay a merchant with a voucher. The same signed purchase again answers the same.

    Raises: ProblemError: spend-invalid, spend-exists, voucher-not-found, voucher-not-spendable, voucher-too-small,
    merchant-not-found, merchant-not-fitting, what the ledger refuses; outcome-unknown: repeat the request.
    """
    order = read_document(token, VoucherSpend, refusal=_R.SPEND_INVALID)
    try:
        context.database.run_session(lambda connection: _record(connection, context, order, token))
    except KeptByDatabase as kept:  # another request took the id in between: now it is there to be read
        if not kept.is_taken:
            raise
        context.database.run_session(lambda connection: _record(connection, context, order, token))
    return final(carry(context, order.spend))


def final(row: Spend) -> Spend:
    """The purchase, if it is final. Raises: as `spend`."""
    if row.state == "refused":
        raise ProblemError(refusal_of(row.refusal), row.detail or "")
    if row.state == "initiated":
        raise ProblemError(LedgerRefusal.OUTCOME_UNKNOWN, "the ledger's answer is not known yet; repeat the request")
    return row


def find_spend(context: Context, spend_id: UUID) -> Spend:
    """Raises: ProblemError(spend-not-found)."""
    found = context.database.run_session(lambda connection: store.find_spend(connection, spend_id))
    if found is None:
        raise ProblemError(_R.SPEND_NOT_FOUND)
    return found


def find_voucher(context: Context, voucher_id: UUID) -> tuple[Voucher, Known, int]:
    """The voucher, its program, and what is left of it in minor units. Raises: ProblemError(voucher-not-found)."""
    voucher = context.database.run_session(lambda connection: store.find_voucher(connection, voucher_id))
    if voucher is None:
        raise ProblemError(_R.VOUCHER_NOT_FOUND)
    known = program_books.find(context, voucher.program_id)
    return voucher, known, sum(amount for _, amount in _free(known, voucher_id))


def issuer_of(context: Context, payment_id: UUID) -> tuple[Spend, AccountNumber] | None:
    """Of a purchase that our vault passed on: it, and the account of the voucher's issuer, to whom what is not used
    returns. None: no voucher of this institution has paid it."""
    row = context.database.run_session(lambda connection: store.find_spend_of(connection, payment_id))
    if row is None:
        return None
    program = context.database.run_session(lambda connection: store.find_program(connection, row.program_id))
    if program is None:
        raise InvariantBroken("I6", f"purchase {row.id} is of no program")
    return row, AccountNumber(program.payer_account)


def sign_origin(context: Context, payment_id: UUID) -> str:
    """Our word to the merchant's institution, for its refunds. Raises: ProblemError(spend-not-found)."""
    found = issuer_of(context, payment_id)
    if found is None:
        raise ProblemError(_R.SPEND_NOT_FOUND)
    row, issuer = found
    origin = PurchaseOrigin(
        institution=context.participant,
        payment=payment_id,
        merchant=AccountNumber(row.merchant_account),
        amount_minor=row.amount_minor,
        currency=context.ledgers.home.currency,
        refund_account=issuer,
    )
    return jws.sign(canonical(origin), context.key, typ=ORIGIN_TYP)


def ask_origin(context: Context, institution: ParticipantId, view: TransferView) -> AccountNumber | None:
    """Whom a refund of a payment credits that another institution carried under a program's reference: the issuer of
    its voucher, by its signed word. None: it was no voucher.

    Raises: ProblemError(institution-unknown, request-document-invalid, service-unavailable): better no refund now than
    one into the wrong pocket.
    """
    try:
        token = context.peers.find(institution).purchase_origin(view.id).origin
    except ServiceUnreachable as error:
        raise peer_unavailable(error, passed_on={}) from error
    except ProblemResponse as error:
        if error.refusal == _R.SPEND_NOT_FOUND.value:
            return None
        raise peer_unavailable(error, passed_on={}) from error
    origin = signed_document(context, token, typ=ORIGIN_TYP, model=PurchaseOrigin)
    said = (origin.institution, origin.payment, origin.merchant, origin.amount_minor, origin.currency)
    if said != (institution, view.id, view.credit, view.amount_minor, view.currency):
        raise ProblemError(_R.REQUEST_DOCUMENT_INVALID, "the origin is of another purchase")
    return origin.refund_account


def _record(connection: Connection, context: Context, order: VoucherSpend, token: str) -> None:
    """Step 1. Raises: ProblemError; KeptByDatabase, if the id was taken meanwhile."""
    before = store.find_spend(connection, order.spend)
    if before is not None:
        if jws.peek_payload(before.token) != jws.peek_payload(token):
            raise ProblemError(_R.SPEND_EXISTS)
        if before.token != token:  # signed once more, or by nobody: what is in it is no secret
            of_voucher = store.find_voucher(connection, before.voucher_id)
            keys = [] if of_voucher is None else _recipient_keys(connection, of_voucher)
            check_signed(token, keys, typ=SPEND_TYP, refusal=_R.SPEND_INVALID)
        return
    voucher = store.find_voucher(connection, order.voucher)
    if voucher is None:
        raise ProblemError(_R.VOUCHER_NOT_FOUND)
    known = program_books.locked(connection, context, voucher.program_id)
    keys = _recipient_keys(connection, voucher)
    check_signed(token, keys, typ=SPEND_TYP, refusal=_R.SPEND_INVALID)
    now = context.clock()
    if order.valid_until <= now:
        raise ProblemError(LedgerRefusal.INSTRUCTION_EXPIRED)
    if order.currency != known.terms.currency:
        raise ProblemError(LedgerRefusal.WRONG_CURRENCY)
    if order.amount_minor < 1:
        raise ProblemError(TransferRefusal.AMOUNT_INVALID)
    if known.program.state != "active" or now >= known.program.deadline:
        raise ProblemError(_R.VOUCHER_NOT_SPENDABLE, f"the program is {known.program.state}")
    if order.merchant in (known.program.payer_account, voucher.recipient_account):
        raise ProblemError(_R.MERCHANT_NOT_FITTING, "a voucher pays a merchant, not its issuer or recipient")
    must_fit(connection, context, known.plan, order.merchant, amount_minor=order.amount_minor, now=now)
    chosen = stamps_for(_free(known, order.voucher), order.amount_minor)
    if chosen is None:
        left = sum(amount for _, amount in _free(known, order.voucher))
        raise ProblemError(_R.VOUCHER_TOO_SMALL, f"{left} minor units are left")
    numbers, change = chosen
    rules = known.plan.template.voucher
    row = Spend(
        id=order.spend,
        voucher_id=order.voucher,
        program_id=known.program.id,
        merchant_account=order.merchant,
        amount_minor=order.amount_minor,
        change_minor=change,
        change_to="issuer" if rules is None else rules.change_to,
        payment_id=seed_of(context, known.program).transfer_id(f"pay:{order.spend}"),
        token=token,
        state="initiated",
        attempt=0,
        unknown_until=None,
        seq=None,
        booked_at=None,
        refusal=None,
        detail=None,
        created_at=now,
    )
    store.insert_spend(connection, row, [part.id for part in known.parts if part.number in set(numbers)])
    soon = now + RETRY_AFTER
    wake_at = known.program.wake_at
    store.save_program(connection, replace(known.program, wake_at=soon if wake_at is None else min(soon, wake_at)))


def _recipient_keys(connection: Connection, voucher: Voucher) -> list[PublicKey]:
    return keys_of(connection, voucher.recipient_account, voucher.recipient_key)


def _free(known: Known, voucher_id: UUID) -> list[tuple[int, int]]:
    """(number, amount) of the holds that can pay."""
    return [
        (part.number, part.amount_minor)
        for part in known.parts
        if part.voucher_id == voucher_id and part.state == "held" and part.spend_id is None and part.outcome is None
    ]


def carry(context: Context, spend_id: UUID) -> Spend:
    """Steps 2 and 3, for a purchase that is recorded. Returns it as it then is."""
    now = context.clock()

    def begin(connection: Connection) -> tuple[Spend, datetime | None]:
        row = _lock_spend(connection, context, spend_id)
        if row.state != "initiated":
            return row, None
        dies_at = now + SUBMISSION_LIFE + SUBMISSION_GRACE
        begun = replace(row, attempt=row.attempt + 1, unknown_until=max(dies_at, row.unknown_until or dies_at))
        store.save_spend(connection, begun)
        return begun, row.unknown_until

    row, earlier = context.database.run_session(begin)
    if row.state != "initiated":
        return row
    known = program_books.find(context, row.program_id)
    try:
        results = context.ledgers.home.client.submit(_chain(context, known, row), expires_at=now + SUBMISSION_LIFE)
    except ServiceUnreachable:
        return row
    except ProblemResponse as error:
        if not is_definite(error):
            return row
        results = [TransferResult(outcome=TransferOutcome.REFUSED, refusal=error.refusal, detail=error.detail)]
    refused = [item for item in results if item.outcome is TransferOutcome.REFUSED]
    if not refused:
        payment = results[-1 if not row.change_minor else -2]
        booked_at = payment.booked_at or context.clock()
        return context.database.run_session(
            lambda connection: _final(connection, context, spend_id, seq=payment.seq, booked_at=booked_at)
        )
    chained = TransferRefusal.LINKED_TRANSFER_REFUSED.value
    cause = next((item for item in refused if item.refusal != chained), refused[0])
    if program_steps.is_passing(cause):
        return row
    if earlier is not None and context.clock() <= earlier:
        return _second_look(context, row, earlier=earlier)
    return context.database.run_session(lambda connection: _refused(connection, context, row, cause))


def _chain(context: Context, known: Known, row: Spend) -> list[TransferItem]:
    """Post the holds, pay the merchant, give the change: linked, so all or nothing."""
    seed = seed_of(context, known.program)
    entry = context.ledgers.home
    vault, currency, reference = context.ledgers.vault(entry), known.terms.currency, program_books.reference(known)
    terms = [
        TransferTerms(
            id=seed.transfer_id(f"commit:{part.number}"),
            kind=TransferKind.POST,
            currency=currency,
            hold=part.id,
            secret=seed.secret("commit", part.number),
        )
        for part in known.parts
        if part.spend_id == row.id
    ]

    def payment(transfer_id: UUID, credit: int, amount_minor: int) -> TransferTerms:
        return TransferTerms(
            id=transfer_id,
            kind=TransferKind.PAYMENT,
            debit=vault,
            credit=AccountNumber(credit),
            amount_minor=amount_minor,
            currency=currency,
            reference=reference,
        )

    terms.append(payment(row.payment_id, row.merchant_account, row.amount_minor))
    if row.change_minor:
        voucher = next(item for item in known.terms.vouchers if item.voucher == row.voucher_id)
        receiver = known.program.payer_account if row.change_to == "issuer" else voucher.account
        terms.append(payment(seed.transfer_id(f"change:{row.id}"), receiver, row.change_minor))
    return [TransferItem(terms=item, linked=number < len(terms)) for number, item in enumerate(terms, start=1)]


def _second_look(context: Context, row: Spend, *, earlier: datetime) -> Spend:
    """This copy was refused, but an earlier one may live: ask what became of it. Not known: it stays initiated."""
    try:
        view = context.ledgers.home.client.get_transfer(row.payment_id)
    except (ServiceUnreachable, ProblemResponse):

        def answered(connection: Connection) -> Spend:
            current = _lock_spend(connection, context, row.id)
            if current.state == "initiated" and current.attempt == row.attempt:
                current = replace(current, unknown_until=earlier)
                store.save_spend(connection, current)
            return current

        return context.database.run_session(answered)
    return context.database.run_session(
        lambda connection: _final(connection, context, row.id, seq=view.seq, booked_at=view.booked_at)
    )


def _final(connection: Connection, context: Context, spend_id: UUID, *, seq: int | None, booked_at: datetime) -> Spend:
    row = _lock_spend(connection, context, spend_id)
    if row.state == "final":
        return row
    if row.state == "refused":  # never: a refusal is written when no copy can be booked any more
        raise ProblemError(LedgerRefusal.OUTCOME_UNKNOWN, "the purchase was refused and is booked; it is looked into")
    program = program_books.locked(connection, context, row.program_id).program
    for part in store.parts_of_spend(connection, row.id):
        store.end_part(connection, part.id, state="released", ended_at=booked_at)
    done = replace(row, state="final", seq=seq, booked_at=booked_at, unknown_until=None)
    store.save_spend(connection, done)
    store.add_to_voucher(connection, row.voucher_id, spent_minor=row.amount_minor, change_minor=row.change_minor)
    to_issuer = row.change_minor if row.change_to == "issuer" else 0
    used = row.amount_minor + row.change_minor
    released, now = used - to_issuer, context.clock()
    program_steps.save_totals(
        connection, context, program, released=released, returned=to_issuer, change=to_issuer, now=now
    )
    return done


def _refused(connection: Connection, context: Context, tried: Spend, cause: TransferResult) -> Spend:
    row = _lock_spend(connection, context, tried.id)
    if row.state != "initiated" or row.attempt != tried.attempt:
        return row  # a newer attempt has begun, whose copy may be booked yet: it has the last word
    done = replace(row, state="refused", refusal=cause.refusal, detail=cause.detail, unknown_until=None)
    store.free_parts(connection, row.id)
    store.save_spend(connection, done)
    return done


def _lock_spend(connection: Connection, context: Context, spend_id: UUID) -> Spend:
    """Under its program's lock."""
    row = store.find_spend(connection, spend_id)
    if row is None:
        raise ProblemError(_R.SPEND_NOT_FOUND)
    program_books.locked(connection, context, row.program_id)
    return store.find_spend(connection, spend_id) or row


def resume_spends(context: Context, program_id: UUID) -> int:
    """Purchases of a program whose outcome is not known: asked again. Returns how many are final or refused now."""
    rows = context.database.run_session(lambda connection: store.open_spends(connection, program_id))
    return sum(carry(context, row.id).state != "initiated" for row in rows)


# --- merchants -------------------------------------------------------------------------------------------------------


def register_merchant(context: Context, request: MerchantRequest) -> Merchant:
    """The bank's desk registers a merchant of its own. Raises: ProblemError(not-our-wallet)."""

    def work(connection: Connection) -> Merchant:
        if request.account not in carriage.lock_payers(connection, [request.account]):
            raise ProblemError(_R.NOT_OUR_WALLET, "another institution's merchant comes with that one's statement")
        row = Merchant(
            account=request.account,
            name=request.name,
            category=request.category,
            place=request.place,
            participant=str(context.participant),
            statement=None,
            key=None,
            valid_until=None,
            updated_at=context.clock(),
        )
        store.save_merchant(connection, row)
        return row

    return context.database.run_session(work)


def take_merchant_statement(context: Context, token: str) -> Merchant:
    """Another institution vouches for its merchant; its key is the ledger's participant's. The statement that stands
    longest stands. Raises: ProblemError(merchant-statement-invalid, service-unavailable)."""
    statement = read_document(token, MerchantStatement, refusal=_R.MERCHANT_STATEMENT_INVALID)
    now = context.clock()
    if statement.valid_until <= now or statement.participant == context.participant:
        raise ProblemError(_R.MERCHANT_STATEMENT_INVALID, "it has expired, or speaks of this institution's own")
    try:
        participants = context.ledgers.home.client.participants()
    except (ServiceUnreachable, ProblemResponse) as error:
        raise ledger_unavailable(error) from error
    view = next((item for item in participants if item.participant == statement.participant), None)
    if view is None:
        raise ProblemError(_R.MERCHANT_STATEMENT_INVALID, f"{statement.participant} is not on this ledger")

    def work(connection: Connection) -> Merchant:
        keys = program_documents.keys_of(connection, None, view.key)
        check_signed(token, keys, typ=MERCHANT_TYP, refusal=_R.MERCHANT_STATEMENT_INVALID)
        if statement.account in carriage.lock_payers(connection, [statement.account]):
            raise ProblemError(_R.MERCHANT_STATEMENT_INVALID, "the account is a wallet of this institution")
        before = store.find_merchant(connection, statement.account)
        if before is not None and before.valid_until is not None and before.valid_until > now:
            if before.participant != statement.participant:
                raise ProblemError(_R.MERCHANT_STATEMENT_INVALID, f"{before.participant} vouches for this account")
            if before.valid_until >= statement.valid_until:
                return before
        row = Merchant(
            account=statement.account,
            name=statement.name,
            category=statement.category,
            place=statement.place,
            participant=str(statement.participant),
            statement=token,
            key=view.key,
            valid_until=statement.valid_until,
            updated_at=now,
        )
        store.save_merchant(connection, row)
        return row

    return context.database.run_session(work)


def find_merchant(context: Context, account: int) -> Merchant:
    """Raises: ProblemError(merchant-not-found)."""
    found = context.database.run_session(lambda connection: store.find_merchant(connection, account))
    if found is None:
        raise ProblemError(_R.MERCHANT_NOT_FOUND)
    return found
