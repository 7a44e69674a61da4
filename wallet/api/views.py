"""Response models built from the records: what the API shows, never a table row."""

from __future__ import annotations

import msgspec

from kernel.ids import show_account
from ledger.contract import AccountView, StatementResponse, show_moment
from wallet.contract import (
    BalanceView,
    CustomerView,
    ExchangeState,
    ExchangeView,
    HistoryPage,
    LimitsView,
    LimitView,
    PaymentResult,
    PaymentState,
    PaymentView,
    WalletState,
    WalletView,
)
from wallet.domain.aliases import mask_name
from wallet.domain.lifecycle import caps_in_force
from wallet.domain.limits import left
from wallet.domain.privacy import Sight, mask_phone
from wallet.domain.records import ExchangeIn, Payment, Wallet
from wallet.domain.rules import RulePack
from wallet.usecases.pay import Declined, Outcome
from wallet.usecases.wallets import KnownCustomer


def customer_view(known: KnownCustomer, pack: RulePack, *, sight: Sight = "plain") -> CustomerView:
    """`masked`: for a role that may not see names."""
    is_plain = sight == "plain"
    evidence = known.customer.evidence
    return CustomerView(
        customer=known.customer.id,
        name=known.name if is_plain else mask_name(known.name),
        phone=known.phone if is_plain else mask_phone(known.phone),
        evidence=sorted(evidence),
        highest_class=pack.highest_class(evidence),
        created_at=known.customer.created_at,
    )


def wallet_view(row: Wallet, account: AccountView | None, *, pack: RulePack) -> WalletView:
    return WalletView(
        wallet=row.id,
        customer=row.customer_id,
        state=WalletState(row.state),
        wallet_class=row.wallet_class,
        currency=pack.currency,
        account=row.account,
        device_thumbprint=row.device_thumbprint,
        changing_to=row.changing_to,
        suspended_for=sorted(row.suspensions),
        refusal=row.refusal,
        created_at=row.created_at,
        opened_at=row.opened_at,
        closed_at=row.closed_at,
        balance=None if account is None else _balance_view(account),
        limits=None if account is None else _limits_view(row, account, pack),
    )


def _balance_view(account: AccountView) -> BalanceView:
    return BalanceView(
        balance_minor=account.balance_minor,
        available_minor=account.available_minor,
        spent_today_minor=account.spent_today_minor,
        spent_this_year_minor=account.spent_this_year_minor,
        status=account.status,
        as_of_seq=account.as_of_seq,
        as_of=account.as_of,
    )


def _limits_view(row: Wallet, account: AccountView, pack: RulePack) -> LimitsView:
    rules, of_class, own = pack.classes[row.wallet_class], pack.caps(row.wallet_class), row.own_caps
    caps = caps_in_force(pack, row.wallet_class, changing_to=row.changing_to, own=own)

    def view(name: str, used: int, assumed: bool) -> LimitView:
        cap = getattr(caps, name)
        return LimitView(
            max_minor=cap,
            class_max_minor=getattr(of_class, name),
            holder_max_minor=getattr(own, name),
            left_minor=left(cap, used),
            assumed=assumed,
        )

    return LimitsView(
        rule_pack=pack.name,
        demonstration=pack.demonstration,
        balance=view("balance_max_minor", account.balance_minor, rules.balance.assumed),
        single=view("single_max_minor", 0, rules.single.assumed),
        daily=view("day_max_minor", account.spent_today_minor, rules.daily.assumed),
        annual=view("year_max_minor", account.spent_this_year_minor, rules.annual.assumed),
    )


def history_page(row: Wallet, statement: StatementResponse) -> HistoryPage:
    return HistoryPage(
        wallet=row.id, currency=statement.currency, items=statement.lines, next_cursor=statement.next_cursor
    )


def payment_view(row: Payment) -> PaymentView:
    return PaymentView(
        payment=row.id,
        wallet=row.wallet_id,
        kind=row.kind,
        state=PaymentState(row.state),
        debit=row.debit_account,
        credit=row.credit_account,
        amount_minor=row.amount_minor,
        currency=row.currency,
        reference=row.reference,
        seq=row.seq,
        booked_at=row.booked_at,
        refusal=row.refusal,
        transient=row.is_transient,
        detail=row.detail,
        deposit_credited_at=row.deposit_credited_at,
        created_at=row.created_at,
    )


class _PaymentWire(msgspec.Struct):
    """`PaymentView` as it travels."""

    payment: str
    wallet: str
    kind: str
    state: str
    debit: str
    credit: str
    amount_minor: str
    currency: str
    reference: str | None
    seq: int | None
    booked_at: str | None
    refusal: str | None
    transient: bool | None
    detail: str | None
    deposit_credited_at: str | None
    created_at: str


_encode = msgspec.json.Encoder().encode


def write_payment(row: Payment) -> bytes:
    """The JSON of `payment_view`, at a tenth of its cost."""
    return _encode(
        _PaymentWire(
            f"trf_{row.id}",
            f"wlt_{row.wallet_id}",
            row.kind,
            row.state,
            show_account(row.debit_account),
            show_account(row.credit_account),
            str(row.amount_minor),
            row.currency,
            None if row.reference is None else str(row.reference),
            row.seq,
            None if row.booked_at is None else show_moment(row.booked_at),
            row.refusal,
            row.is_transient,
            row.detail,
            None if row.deposit_credited_at is None else show_moment(row.deposit_credited_at),
            show_moment(row.created_at),
        )
    )


def payment_result(outcome: Outcome) -> PaymentResult:
    if isinstance(outcome, Declined):
        return PaymentResult(
            payment=outcome.payment_id,
            state=PaymentState.REFUSED,
            refusal=outcome.refusal.value,
            transient=outcome.refusal.transient,
            detail=outcome.detail or outcome.refusal.title,
        )
    return PaymentResult(
        payment=outcome.id,
        state=PaymentState(outcome.state),
        seq=outcome.seq,
        booked_at=outcome.booked_at,
        refusal=outcome.refusal,
        transient=outcome.is_transient,
        detail=outcome.detail,
    )


def exchange_view(row: ExchangeIn) -> ExchangeView:
    return ExchangeView(
        exchange=row.id,
        wallet=row.wallet_id,
        transfer=row.transfer_id,
        amount_minor=row.amount_minor,
        currency=row.currency,
        state=ExchangeState(row.state),
        refusal=row.refusal,
        detail=row.detail,
        seq=row.seq,
        booked_at=row.booked_at,
        created_at=row.created_at,
    )
