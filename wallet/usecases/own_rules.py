"""What some wallets obey besides their class: children (own caps, one merchant), cards (counter, PIN-free caps),
companies (two signatures above what one may pay).

`wallet.usecases.pay` asks here under the payers' locks, in the transaction that records the payment; so I9 holds for a
child's own caps as it does for a class's, whatever is sent at once. The tables repeat every rule that is a count.

A child's balance is the ledger's to know, and nobody's locks wait for the ledger: it is read before the transaction
(`AskOutside`), with the sequence number up to which it is true. Under the locks everything is added that was recorded
towards the child and is not known to be in that reading: what is on its way, and what was booked later. So however old
a reading is, no payment of ours is left out of it, and the cap holds whatever is sent at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from uuid import UUID

import sqlalchemy as sa

from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.crypto import jws
from kernel.database import AskOutside
from kernel.errors import ProblemError, Refusal, RequestRefusal
from kernel.ids import AccountNumber
from ledger.contract import TransferRefusal
from wallet.contract import WalletRefusal
from wallet.contract.controls import instruction_digest
from wallet.domain import cards, families
from wallet.domain.cards import Card, Cloned
from wallet.domain.controls import Allowed, Approval, Control, decide_instruction
from wallet.domain.families import Child, ChildUsage
from wallet.domain.limits import scheme_day
from wallet.domain.records import Payment
from wallet.store import controls as controls_store
from wallet.store import own_rules as store
from wallet.store.carriage import Connection
from wallet.usecases.context import Context

READING_SECONDS_MAX = 10.0
"""A reading that is older is asked for again: other institutions' payments to the child are not in our records."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A balance on the ledger, true up to `seq`."""

    balance_minor: int
    seq: int


class _Readings(threading.local):
    """What this thread has just asked outside of its transaction, for the payments that it begins again with."""

    batch: tuple[UUID, ...] = ()
    asked_at: float = 0.0
    found: Mapping[int, Reading | None] = {}


_readings = _Readings()


@dataclass(frozen=True, slots=True)
class OwnRules:
    """Loaded once a transaction; decided on through a `Tally`. Empty for nearly every batch."""

    children: dict[int, Child] = field(default_factory=dict)
    cards: dict[tuple[int, str], Card] = field(default_factory=dict)
    seen: dict[tuple[str, int], tuple[UUID, str]] = field(default_factory=dict)
    controls: dict[int, Control] = field(default_factory=dict)
    approvals: dict[UUID, Approval] = field(default_factory=dict)
    batch: tuple[UUID, ...] = ()
    capped: frozenset[int] = frozenset()
    """Accounts of the children that are paid and have a cap on their balance."""

    def is_card(self, account: int | None) -> bool:
        """Whether who has signed matters here (a card's counter, a company's maker): then the signature is checked
        before it is believed."""
        return account in self.controls or any(account == of_card for of_card, _ in self.cards)


def load(
    connection: Connection,
    moves: Collection[tuple[UUID, int, int]],
    *,
    of_children: Collection[int],
    of_cards: Collection[int],
    of_controls: Collection[int],
) -> OwnRules:
    """`moves`: (payment's id, debit, credit); the others: which of these accounts have rules. The payers' wallets must
    be locked."""
    debits = {debit for _, debit, _ in moves}
    if not of_children and not of_cards and not of_controls:
        return OwnRules()
    found_controls = controls_store.lock_controls(connection, debits) if of_controls else {}
    children = store.lock_children(connection, of_children) if of_children else {}
    batch = tuple(payment_id for payment_id, _, _ in moves)
    credits = {credit for _, _, credit in moves}
    capped = frozenset(
        account
        for account, child in children.items()
        if account in credits and child.caps.balance_max_minor is not None
    )
    with_cards = debits.intersection(of_cards)
    found = store.lock_cards(connection, with_cards) if with_cards else {}
    used = [
        (thumbprint, cards.read_stamp(payment_id).counter)
        for payment_id, debit, _ in moves
        for account, thumbprint in found
        if account == debit
    ]
    return OwnRules(
        children,
        found,
        store.counters_seen(connection, used) if used else {},
        found_controls,
        controls_store.approvals_of(connection, batch) if found_controls else {},
        batch,
        capped,
    )


def _reading_of(context: Context, rules: OwnRules, account: int) -> Reading | None:
    """What was asked outside for these payments. Raises: AskOutside, if it was not, before anything is written."""
    is_fresh = _readings.batch == rules.batch and time.monotonic() - _readings.asked_at <= READING_SECONDS_MAX
    if is_fresh and account in _readings.found:
        return _readings.found[account]

    def ask() -> None:
        _readings.found = {each: read_balance(context, each) for each in sorted(rules.capped)}
        _readings.batch, _readings.asked_at = rules.batch, time.monotonic()

    raise AskOutside(ask)


def read_balance(context: Context, account: int) -> Reading | None:
    """None: the ledger cannot be asked now. Never called inside a transaction."""
    try:
        view = context.ledgers.home.client.get_account(AccountNumber(account))
    except (ProblemResponse, ServiceUnreachable):
        return None
    return Reading(view.balance_minor, view.as_of_seq)


def refuse_but_payments(connection: Connection | sa.Connection, account: int) -> None:
    """For every way by which money leaves a wallet otherwise than as a payment: a purse, a hold, a code. Rules of its
    own (a child's, a card's, a company's two signatures) are decided payment by payment, and these would pass them by.
    The wallet must be locked. Raises: ProblemError(kind-not-allowed)."""
    if any(store.accounts_with_rules(connection, [account])):
        raise ProblemError(
            TransferRefusal.KIND_NOT_ALLOWED,
            "a child's wallet, one with a card, one of two signatures loads no purse, places no holds, shows no codes",
        )


class Tally:
    """One pass of deciding over `OwnRules`: nothing is written before `write`, which writes all of it."""

    def __init__(
        self, context: Context, rules: OwnRules, connection: Connection, *, now: datetime, today: date
    ) -> None:
        self._context = context
        self._rules = rules
        self._connection = connection
        self._now = now
        self._today = today
        self._usages: dict[int, ChildUsage] = {}
        self._cards: dict[tuple[int, str], Card] = {}
        self._seen = dict(rules.seen)
        self._counters: list[tuple[str, int, UUID, str]] = []
        self._suspended: list[tuple[str, str, str]] = []
        self._incoming: dict[int, int] = {}
        self._credits: list[tuple[UUID, UUID]] = []
        self._controls: dict[int, Control] = {}
        self._used: list[Approval] = []

    def refuse(self, payment: Payment) -> Refusal | None:
        """None: allowed so far; `count` it once everything else allows it too."""
        if not self._rules.children and not self._rules.cards and not self._rules.controls:
            return None
        return (
            self._refuse_card(payment)
            or self._refuse_control(payment)
            or self._refuse_child(payment)
            or self._refuse_credit(payment)
        )

    def count(self, payment: Payment) -> None:
        """Of a payment that `refuse` has just allowed and that is recorded now."""
        child = self._rules.children.get(payment.debit_account)
        if child is not None:
            decided = self._decide_child(child, payment)
            if not isinstance(decided, Refusal):
                self._usages[payment.debit_account] = decided
        card = self._card(payment)
        if card is not None:
            self._take(card, payment)
        allowed = self._decide_control(payment)
        if isinstance(allowed, Allowed):
            self._controls[payment.debit_account] = allowed.control
            if allowed.approval is not None:
                self._used.append(allowed.approval)
        payee = self._rules.children.get(payment.credit_account)
        if payee is not None:
            if payee.caps.balance_max_minor is not None:
                self._incoming[payment.credit_account] += payment.amount_minor
            self._credits.append((payment.id, payee.wallet_id))

    def write(self, connection: Connection) -> None:
        _readings.batch = ()
        for account, usage in self._usages.items():
            store.save_child_usage(connection, self._rules.children[account].wallet_id, usage)
        for payment_id, wallet_id in self._credits:
            store.insert_child_credit(connection, payment_id, wallet_id)
        for control in self._controls.values():
            controls_store.save_alone(connection, control)
        for approval in self._used:
            controls_store.mark_used(connection, approval)
        for thumbprint, counter, payment_id, instruction in self._counters:
            store.insert_counter(connection, thumbprint, counter, payment_id=payment_id, instruction=instruction)
        for card in self._cards.values():
            store.save_card(connection, card)
        for thumbprint, first, second in self._suspended:
            store.suspend_cloned(connection, thumbprint, first=first, second=second, suspended_at=self._now)

    # --- dual control

    def _decide_control(self, payment: Payment) -> Allowed | Refusal | None:
        control = self._controls.get(payment.debit_account) or self._rules.controls.get(payment.debit_account)
        if control is None:
            return None
        approval = self._rules.approvals.get(payment.id)
        if approval is not None and approval.wallet_id != control.wallet_id:
            approval = None  # of another wallet's signatories
        return decide_instruction(
            control,
            signer=str(jws.peek_header(payment.instruction).get("kid")),
            digest=instruction_digest(payment.instruction),
            amount_minor=payment.amount_minor,
            approval=approval,
            today=payment.counted_on or self._today,
            now=self._now,
        )

    def _refuse_control(self, payment: Payment) -> Refusal | None:
        decided = self._decide_control(payment)
        return decided if isinstance(decided, Refusal) else None

    # --- children

    def _decide_child(self, child: Child, payment: Payment) -> ChildUsage | Refusal:
        current = families.with_usage(child, self._usages.get(payment.debit_account, child.usage))
        return families.decide_transfer(
            current,
            kind=payment.kind,
            credit=payment.credit_account,
            amount_minor=payment.amount_minor,
            today=payment.counted_on or self._today,
        )

    def _refuse_child(self, payment: Payment) -> Refusal | None:
        child = self._rules.children.get(payment.debit_account)
        if child is None:
            return None
        decided = self._decide_child(child, payment)
        return decided if isinstance(decided, Refusal) else None

    def _refuse_credit(self, payment: Payment) -> Refusal | None:
        """The child's row is locked. A payment that is booked and not known here to be is counted twice, never not at
        all."""
        payee = self._rules.children.get(payment.credit_account)
        if payee is None:
            return None
        account, reading = payment.credit_account, None
        if payee.caps.balance_max_minor is not None:
            reading = _reading_of(self._context, self._rules, account)
            if reading is None:
                return RequestRefusal.SERVICE_UNAVAILABLE
            if account not in self._incoming:
                self._incoming[account] = store.incoming_minor(self._connection, payee.wallet_id, after=reading.seq)
        return families.decide_credit(
            payee,
            payment.amount_minor,
            balance_minor=0 if reading is None else reading.balance_minor,
            incoming_minor=self._incoming.get(account, 0),
        )

    # --- cards

    def _card(self, payment: Payment) -> Card | None:
        """The card that has signed the payment, if it was one."""
        if not self._rules.is_card(payment.debit_account):
            return None
        key = (payment.debit_account, str(jws.peek_header(payment.instruction).get("kid")))
        return self._cards.get(key) or self._rules.cards.get(key)

    def _refuse_card(self, payment: Payment) -> Refusal | None:
        card = self._card(payment)
        if card is None:
            return None
        if self._now >= card.expires_at:
            return WalletRefusal.CARD_EXPIRED
        first = self._seen.get((card.thumbprint, cards.read_stamp(payment.id).counter))
        decided = cards.decide_instruction(card, payment.id, amount_minor=payment.amount_minor, seen=first and first[0])
        if isinstance(decided, Cloned) and first is not None:
            self._suspended.append((card.thumbprint, first[1], payment.instruction))
            self._cards[card.account, card.thumbprint] = cards.suspended(card)
            return WalletRefusal.CARD_CLONED
        return decided if isinstance(decided, Refusal) else None

    def _take(self, card: Card, payment: Payment) -> None:
        key = (card.thumbprint, cards.read_stamp(payment.id).counter)
        if key in self._seen:  # the same payment once more
            return
        decided = cards.decide_instruction(card, payment.id, amount_minor=payment.amount_minor, seen=None)
        if isinstance(decided, Card):
            self._cards[card.account, card.thumbprint] = decided
            self._seen[key] = (payment.id, payment.instruction)
            self._counters.append((*key, payment.id, payment.instruction))


def settle(connection: Connection, context: Context, *, released: Iterable[Payment], forced: Iterable[Payment]) -> None:
    """After the ledger has answered: `released` were counted and are refused, `forced` are booked but were not
    counted any more. The payers' wallets must be locked."""
    released, forced = list(released), list(forced)
    accounts = {payment.debit_account for payment in (*released, *forced)}
    of_children, _ = store.accounts_with_rules(connection, accounts) if accounts else (set(), set())
    if not of_children:
        return
    children = store.lock_children(connection, of_children)
    today = scheme_day(context.clock(), context.time_zone)
    usages: dict[int, ChildUsage] = {}
    for payment in (*released, *forced):
        child = children.get(payment.debit_account)
        if child is None or not families.counts(child, kind=payment.kind, credit=payment.credit_account):
            continue
        usage = usages.get(payment.debit_account, child.usage)
        usages[payment.debit_account] = (
            families.force(usage, payment.amount_minor, today=today)
            if payment.counted_on is None
            else families.release(usage, payment.amount_minor, counted_on=payment.counted_on)
        )
    for account, usage in usages.items():
        store.save_child_usage(connection, children[account].wallet_id, usage)
