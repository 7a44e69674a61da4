"""What some wallets obey besides their class: children (own caps, one merchant) and cards (counter, PIN-free caps).

`wallet.usecases.pay` asks here under the payers' locks, in the transaction that records the payment; so I9 holds for a
child's own caps as it does for a class's, whatever is sent at once. The tables repeat every rule that is a count.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import date, datetime
from uuid import UUID

from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.crypto import jws
from kernel.errors import Refusal, RequestRefusal
from wallet.contract import WalletRefusal
from wallet.domain import cards, families
from wallet.domain.cards import Card, Cloned
from wallet.domain.families import Child, ChildUsage
from wallet.domain.limits import scheme_day
from wallet.domain.records import Payment
from wallet.store import own_rules as store
from wallet.store.carriage import Connection
from wallet.usecases.context import Context


@dataclass(frozen=True, slots=True)
class OwnRules:
    """Loaded once a transaction; decided on through a `Tally`. Empty for nearly every batch."""

    children: dict[int, Child] = field(default_factory=dict)
    cards: dict[tuple[int, str], Card] = field(default_factory=dict)
    seen: dict[tuple[str, int], tuple[UUID, str]] = field(default_factory=dict)

    def is_card(self, account: int | None) -> bool:
        """Whether a card may have signed for it: then the signature is checked before its counter is believed."""
        return any(account == of_card for of_card, _ in self.cards)


def load(
    connection: Connection,
    moves: Collection[tuple[UUID, int, int]],
    *,
    of_children: Collection[int],
    of_cards: Collection[int],
) -> OwnRules:
    """`moves`: (payment's id, debit, credit); the others: which of these accounts have rules. The payers' wallets must
    be locked."""
    if not of_children and not of_cards:
        return OwnRules()
    children = store.lock_children(connection, of_children) if of_children else {}
    debits = {debit for _, debit, _ in moves}
    with_cards = debits.intersection(of_cards)
    found = store.lock_cards(connection, with_cards) if with_cards else {}
    used = [
        (thumbprint, cards.read_stamp(payment_id).counter)
        for payment_id, debit, _ in moves
        for account, thumbprint in found
        if account == debit
    ]
    return OwnRules(children, found, store.counters_seen(connection, used) if used else {})


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
        self._balances: dict[int, int] = {}
        self._credits: list[tuple[UUID, UUID]] = []

    def refuse(self, payment: Payment) -> Refusal | None:
        """None: allowed so far; `count` it once everything else allows it too."""
        if not self._rules.children and not self._rules.cards:
            return None
        return self._refuse_card(payment) or self._refuse_child(payment) or self._refuse_credit(payment)

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
        payee = self._rules.children.get(payment.credit_account)
        if payee is not None and payee.caps.balance_max_minor is not None:
            self._incoming[payment.credit_account] += payment.amount_minor
            self._credits.append((payment.id, payee.wallet_id))

    def write(self, connection: Connection) -> None:
        for account, usage in self._usages.items():
            store.save_child_usage(connection, self._rules.children[account].wallet_id, usage)
        for payment_id, wallet_id in self._credits:
            store.insert_child_credit(connection, payment_id, wallet_id)
        for thumbprint, counter, payment_id, instruction in self._counters:
            store.insert_counter(connection, thumbprint, counter, payment_id=payment_id, instruction=instruction)
        for card in self._cards.values():
            store.save_card(connection, card)
        for thumbprint, first, second in self._suspended:
            store.suspend_cloned(connection, thumbprint, first=first, second=second, suspended_at=self._now)

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
        """The child's row is locked, and what is on its way is read before the ledger's balance: a payment booked in
        between is seen twice, never not at all."""
        payee = self._rules.children.get(payment.credit_account)
        if payee is None:
            return None
        account = payment.credit_account
        if payee.caps.balance_max_minor is not None and account not in self._incoming:
            self._incoming[account] = store.incoming_minor(self._connection, payee.wallet_id)
            try:
                self._balances[account] = self._context.ledgers.home.client.get_account(account).balance_minor
            except (ProblemResponse, ServiceUnreachable):
                del self._incoming[account]
                return RequestRefusal.SERVICE_UNAVAILABLE
        return families.decide_credit(
            payee,
            payment.amount_minor,
            balance_minor=self._balances.get(account, 0),
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
