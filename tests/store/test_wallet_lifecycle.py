"""Goal: a wallet's caps, class, devices, standing and end change as its holder and his evidence allow, and whatever
crashes between this service and the ledger leaves the stricter side in force.
Method: the use cases on a real PostgreSQL and a fake ledger that keeps classes, keys and standings; faults injected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from kernel.client import ServiceUnreachable
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.errors import ProblemError
from ledger.contract import (
    AccountChangeDocument,
    AccountStanding,
    AccountStatus,
    HolderKeyChange,
    TransferKind,
    sign_account_consent,
)
from tests.purse_world import fund_instruction, new_purse
from tests.wallet_bank import ALL_EVIDENCE, Bank, Holder
from wallet.contract.lifecycle import CapsOrder, CapsView, sign_caps_order
from wallet.domain.lifecycle import Change
from wallet.domain.limits import NO_CAPS, Caps
from wallet.domain.records import Wallet
from wallet.domain.rules import Evidence, WalletClass
from wallet.store import lifecycle as store
from wallet.usecases import changes, closing, devices, lifecycle, offline
from wallet.usecases.change_recovery import resume_changes
from wallet.usecases.exchange import exchange_in
from wallet.usecases.pay import Declined, pay, pay_one
from wallet.usecases.recover import recover
from wallet.usecases.refunds import refund
from wallet.usecases.wallets import find_wallet, open_wallet

PHONE = frozenset({Evidence.PHONE})


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[Bank]:
    database = Database(fresh_database("wallet"), application_name="test")
    made = Bank(database)
    made.ledger.participant_key = made.context.key.public
    yield made
    database.close()


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ProblemError) as caught:
        call()
    return caught.value.refusal.value


def wallet_of(bank: Bank, holder: Holder) -> Wallet:
    return find_wallet(bank.context, holder.wallet.id)


def pays(bank: Bank, payer: Holder, amount: int, *, key: PrivateKey | None = None, to: Holder | None = None) -> str:
    outcome = pay(bank.context, [bank.instruction(payer, (to or payee(bank)).account, amount, key=key)])[0]
    return outcome.refusal.value if isinstance(outcome, Declined) else outcome.refusal or outcome.state


def payee(bank: Bank) -> Holder:
    return bank.holder(WalletClass.I)


def notices(bank: Bank, holder: Holder) -> list[str]:
    found = changes.list_notices(bank.context, holder.wallet.id, before=None, limit=100)
    return [notice.kind for notice in reversed(found)]


# --- caps ------------------------------------------------------------------------------------------------------------


def caps_order(
    bank: Bank, holder: Holder, change: UUID, own: Caps, *, key: PrivateKey | None = None, **over: Any
) -> str:
    values = {
        "wallet": holder.wallet.id,
        "change": change,
        "caps": CapsView(
            balance_max_minor=own.balance_max_minor,
            single_max_minor=own.single_max_minor,
            day_max_minor=own.day_max_minor,
            year_max_minor=own.year_max_minor,
        ),
        "valid_until": bank.clock() + timedelta(minutes=5),
        **over,
    }
    return sign_caps_order(CapsOrder(**values), key=key or holder.key)


def set_caps(bank: Bank, holder: Holder, own: Caps, *, order: str | None = None, id: UUID | None = None) -> Change:
    return lifecycle.set_caps(bank.context, id or bank.new_id(), holder.wallet.id, own, order=order)


def test_I9_lowered_caps_bind_payments_and_the_class_still_does(bank: Bank) -> None:
    payer = bank.holder(WalletClass.IV, funds=10_000_00)
    set_caps(bank, payer, Caps(single_max_minor=500, day_max_minor=800))
    assert pays(bank, payer, 501) == "single-limit-exceeded"
    assert pays(bank, payer, 500) == "final"
    assert pays(bank, payer, 301) == "day-limit-exceeded"
    assert pays(bank, payer, 300) == "final"
    assert pays(bank, payer, 1) == "day-limit-exceeded"
    assert notices(bank, payer) == ["caps-changed"]


def test_cap_above_the_class_is_refused(bank: Bank) -> None:
    payer = bank.holder(WalletClass.IV)
    above = Caps(single_max_minor=2_000_00 + 1)
    assert refused(lambda: set_caps(bank, payer, above)) == "cap-above-class"
    assert wallet_of(bank, payer).own_caps == NO_CAPS


@pytest.mark.parametrize("raised", [Caps(day_max_minor=801), Caps(), Caps(single_max_minor=1)])
def test_raising_any_cap_needs_the_holders_signature(bank: Bank, raised: Caps) -> None:
    payer = bank.holder(WalletClass.IV)
    set_caps(bank, payer, Caps(day_max_minor=800))
    assert refused(lambda: set_caps(bank, payer, raised)) == "holder-order-missing"
    change = bank.new_id()
    done = set_caps(bank, payer, raised, id=change, order=caps_order(bank, payer, change, raised))
    assert done.state == "done"
    assert wallet_of(bank, payer).own_caps == raised


def test_order_that_raises_is_good_for_one_change_of_one_wallet_only(bank: Bank) -> None:
    payer, other = bank.holder(WalletClass.IV), bank.holder(WalletClass.IV)
    low, high = Caps(day_max_minor=100), Caps(day_max_minor=900)
    for holder in (payer, other):
        set_caps(bank, holder, low)
    change, thief = bank.new_id(), PrivateKey.generate()

    def tried(order: str, *, holder: Holder = payer, id: UUID = change, own: Caps = high) -> str:
        return refused(lambda: set_caps(bank, holder, own, order=order, id=id))

    good = caps_order(bank, payer, change, high)
    assert tried(caps_order(bank, payer, change, high, key=thief)) == "holder-order-invalid"
    assert tried(good, holder=other) == "holder-order-invalid"
    assert tried(good, id=bank.new_id()) == "holder-order-invalid"
    assert tried(good, own=Caps(day_max_minor=901)) == "holder-order-invalid"
    late: dict[str, Any] = {"valid_until": bank.clock()}
    assert tried(caps_order(bank, payer, change, high, **late)) == "holder-order-expired"
    for_years: dict[str, Any] = {"valid_until": bank.clock() + timedelta(days=400)}
    assert tried(caps_order(bank, payer, change, high, **for_years)) == "holder-order-expired"
    assert tried("e30.e30." + "A" * 10) == "holder-order-invalid"
    set_caps(bank, payer, high, order=good, id=change)
    # Replayed after the holder has lowered them again, it answers what it did, and does nothing.
    set_caps(bank, payer, low)
    assert set_caps(bank, payer, high, order=good, id=change).state == "done"
    assert wallet_of(bank, payer).own_caps == low


def test_change_with_the_id_of_another_is_refused(bank: Bank) -> None:
    payer, change = bank.holder(WalletClass.IV), bank.new_id()
    set_caps(bank, payer, Caps(day_max_minor=5), id=change)
    assert refused(lambda: set_caps(bank, payer, Caps(day_max_minor=4), id=change)) == "wallet-change-exists"


def test_own_balance_cap_bounds_what_is_exchanged_in_and_on_its_way(bank: Bank) -> None:
    holder = bank.holder(WalletClass.II)
    bank.core_banking.credit_deposit(bank.new_id(), holder.wallet.customer_id, 10_000)
    set_caps(bank, holder, Caps(balance_max_minor=1_000))

    def exchange(amount: int) -> str:
        row = exchange_in(bank.context, bank.new_id(), wallet_id=holder.wallet.id, amount_minor=amount, currency="CNY")
        return row.state

    assert refused(lambda: exchange(1_001)) == "balance-limit-exceeded"
    assert exchange(400) == "final"
    bank.ledger.lose_answers = 1
    assert exchange(500) == "debited"  # on its way: counted, though nobody knows of it yet
    assert refused(lambda: exchange(101)) == "balance-limit-exceeded"
    recover(bank.context, at_start=True)
    assert bank.balance(holder) == 900
    assert exchange(100) == "final"


def test_own_balance_cap_holds_when_exchanges_come_at_once(bank: Bank) -> None:
    holder = bank.holder(WalletClass.II)
    bank.core_banking.credit_deposit(bank.new_id(), holder.wallet.customer_id, 100_000)
    set_caps(bank, holder, Caps(balance_max_minor=1_000))
    ids = [bank.new_id() for _ in range(12)]

    def exchange(id: UUID) -> str:
        try:
            return exchange_in(bank.context, id, wallet_id=holder.wallet.id, amount_minor=300, currency="CNY").state
        except ProblemError as error:
            return error.refusal.value

    with ThreadPoolExecutor(6) as pool:
        states = list(pool.map(exchange, ids))
    assert states.count("final") == 3
    assert bank.balance(holder) == 900


# --- class and evidence ----------------------------------------------------------------------------------------------


def change_class(bank: Bank, holder: Holder, to: WalletClass, *, id: UUID | None = None) -> Change:
    return lifecycle.change_class(bank.context, id or bank.new_id(), holder.wallet.id, to)


def ledger_class(bank: Bank, holder: Holder) -> str:
    return bank.ledger.accounts[holder.account].rule_class


def withdraw(
    bank: Bank, holder: Holder, *evidence: Evidence, add: bool = False, id: UUID | None = None
) -> list[Change]:
    given = frozenset(evidence)
    return lifecycle.change_evidence(
        bank.context,
        id or bank.new_id(),
        holder.wallet.customer_id,
        added=given if add else frozenset(),
        withdrawn=frozenset() if add else given,
    )


@pytest.mark.parametrize(("before", "after"), [(WalletClass.IV, WalletClass.II), (WalletClass.II, WalletClass.IV)])
def test_class_changes_on_both_sides(bank: Bank, before: WalletClass, after: WalletClass) -> None:
    holder, change = bank.holder(before), bank.new_id()
    assert change_class(bank, holder, after, id=change).state == "done"
    assert change_class(bank, holder, after, id=change).state == "done"
    assert wallet_of(bank, holder).wallet_class is after
    assert ledger_class(bank, holder) == f"ecny-2021-06/{after.value}"
    assert notices(bank, holder) == ["class-changed"]


@pytest.mark.parametrize("lost", ["request", "answer"])
@pytest.mark.parametrize(("before", "after"), [(WalletClass.IV, WalletClass.II), (WalletClass.II, WalletClass.IV)])
def test_I9_stricter_class_is_in_force_until_both_sides_have_the_new_one(
    bank: Bank, before: WalletClass, after: WalletClass, lost: str
) -> None:
    holder = bank.holder(before, funds=30_000_00)
    shop = payee(bank)
    bank.ledger.unreachable, bank.ledger.lose_answers = lost == "request", int(lost == "answer")
    change = bank.new_id()
    assert refused(lambda: change_class(bank, holder, after, id=change)) == "service-unavailable"
    bank.ledger.unreachable = False
    assert pays(bank, holder, 2_000_01, to=shop) == "single-limit-exceeded"  # class IV's
    assert pays(bank, holder, 2_000_00, to=shop) == "final"
    assert refused(lambda: change_class(bank, holder, WalletClass.III)) == "change-in-progress"
    assert resume_changes(bank.context) == 1
    assert wallet_of(bank, holder).wallet_class is after
    assert wallet_of(bank, holder).changing_to is None
    expected = "final" if after is WalletClass.II else "single-limit-exceeded"
    assert pays(bank, holder, 2_000_01, to=shop) == expected


def test_upgrade_needs_the_evidence(bank: Bank) -> None:
    holder = bank.holder(WalletClass.IV)
    withdraw(bank, holder, Evidence.BANK_ACCOUNT)
    assert refused(lambda: change_class(bank, holder, WalletClass.II)) == "evidence-insufficient"
    withdraw(bank, holder, Evidence.BANK_ACCOUNT, add=True)
    assert change_class(bank, holder, WalletClass.II).state == "done"


def test_withdrawn_evidence_brings_every_wallet_of_the_customer_down(bank: Bank) -> None:
    holder = bank.holder(WalletClass.II)
    key = PrivateKey.generate()
    second = open_wallet(
        bank.context,
        bank.new_id(),
        customer_id=holder.wallet.customer_id,
        wallet_class=WalletClass.IV,
        device_key=key.public.to_jwk(),
    )
    change = bank.new_id()
    made = withdraw(bank, holder, Evidence.BANK_ACCOUNT, id=change)
    assert [(row.wallet_id, row.kind, row.state) for row in made] == [(holder.wallet.id, "class", "done")]
    assert wallet_of(bank, holder).wallet_class is WalletClass.III
    assert find_wallet(bank.context, second.id).wallet_class is WalletClass.IV
    assert [row.id for row in withdraw(bank, holder, Evidence.BANK_ACCOUNT, id=change)] == [row.id for row in made]
    assert refused(lambda: withdraw(bank, holder, Evidence.ID, id=change)) == "wallet-change-exists"


def test_wallet_that_no_evidence_opens_is_suspended_and_comes_back_weaker(bank: Bank) -> None:
    holder = bank.holder(WalletClass.II, funds=100)
    withdraw(bank, holder, *ALL_EVIDENCE)
    assert wallet_of(bank, holder).suspensions == {"evidence"}
    assert pays(bank, holder, 1) == "debit-account-suspended"
    withdraw(bank, holder, Evidence.PHONE, add=True)
    after = wallet_of(bank, holder)
    assert (after.state, after.wallet_class) == ("open", WalletClass.IV)
    assert pays(bank, holder, 1) == "final"


def test_withdrawal_while_another_class_change_is_under_way_is_enforced_later(bank: Bank) -> None:
    holder = bank.holder(WalletClass.IV)
    bank.ledger.unreachable = True
    assert refused(lambda: change_class(bank, holder, WalletClass.II)) == "service-unavailable"
    assert withdraw(bank, holder, Evidence.BANK_ACCOUNT) == []
    bank.ledger.unreachable = False
    resume_changes(bank.context)
    assert wallet_of(bank, holder).wallet_class is WalletClass.III
    assert ledger_class(bank, holder) == "ecny-2021-06/III"


def test_repeated_opening_answers_the_same_after_the_class_and_device_have_changed(bank: Bank) -> None:
    holder = bank.holder(WalletClass.IV)
    change_class(bank, holder, WalletClass.II)
    new = PrivateKey.generate()
    device_change(bank, holder, "replace-holder-key", new)
    again = open_wallet(
        bank.context,
        holder.wallet.id,
        customer_id=holder.wallet.customer_id,
        wallet_class=WalletClass.IV,
        device_key=holder.key.public.to_jwk(),
    )
    assert (again.wallet_class, again.device_thumbprint) == (WalletClass.II, new.thumbprint)


# --- devices ---------------------------------------------------------------------------------------------------------


def consent(
    bank: Bank, holder: Holder, change: object, *, key: PrivateKey | None = None, id: UUID | None = None
) -> str:
    document = AccountChangeDocument.model_validate(
        {
            "id": id or bank.new_id(),
            "ledger": "cny",
            "change": change,
            "valid_until": bank.clock() + timedelta(minutes=5),
        }
    )
    return sign_account_consent(document, key=key or holder.key)


def key_change(holder: Holder, kind: str, key: PrivateKey) -> HolderKeyChange:
    values = {"change": kind, "account": holder.account, "key": key.public.to_jwk()}
    return HolderKeyChange.model_validate(values)


def device_change(
    bank: Bank, holder: Holder, kind: str, key: PrivateKey, *, by: PrivateKey | None = None, id: UUID | None = None
) -> Change:
    token = consent(bank, holder, key_change(holder, kind, key), key=by, id=id)
    return devices.change_device(bank.context, holder.wallet.id, token)


def states(bank: Bank, holder: Holder) -> dict[str, str]:
    return {row.thumbprint: row.state for row in devices.list_devices(bank.context, holder.wallet.id)}


@pytest.mark.parametrize("suite", ["ed25519", "ecdsa-p256-sha256"])
def test_second_device_pays_until_it_is_removed(bank: Bank, suite: str) -> None:
    holder, second = bank.holder(funds=1000), PrivateKey.generate(suite)
    assert pays(bank, holder, 1, key=second) == "instruction-invalid"
    assert device_change(bank, holder, "add-holder-key", second).state == "done"
    assert [pays(bank, holder, 1, key=key) for key in (holder.key, second)] == ["final", "final"]
    # The second may remove the first, and is the wallet's first one then.
    assert device_change(bank, holder, "remove-holder-key", holder.key, by=second).state == "done"
    assert [pays(bank, holder, 1, key=key) for key in (holder.key, second)] == ["instruction-invalid", "final"]
    assert wallet_of(bank, holder).device_thumbprint == second.thumbprint
    assert states(bank, holder) == {holder.key.thumbprint: "removed", second.thumbprint: "active"}
    assert refused(lambda: device_change(bank, holder, "remove-holder-key", second, by=second)) == "device-is-last"
    assert notices(bank, holder) == ["add-device-done", "remove-device-done"]


def test_what_was_carried_before_the_key_was_replaced_is_answered_as_before(bank: Bank) -> None:
    """Else its holder would be told "refused", and pay again. What is decided anew takes a key of today's."""
    holder, shop, new = bank.holder(funds=1_000), bank.holder(), PrivateKey.generate()
    given = pay_one(bank.context, bank.instruction(shop_payer := bank.holder(funds=100), holder.account, 100))
    purse = new_purse(bank, holder)
    carried: list[tuple[Callable[[str], Any], str]] = [
        (lambda token: pay_one(bank.context, token), bank.instruction(holder, shop.account, 10)),
        (
            lambda token: refund(bank.context, token),
            bank.instruction(holder, shop_payer.account, 5, kind=TransferKind.REFUND, reference=given.id),
        ),
        (lambda token: offline.fund(bank.context, token), fund_instruction(bank, purse, 20)),
    ]
    assert [again(token).state for again, token in carried] == ["final"] * 3
    lost, poor = bank.instruction(holder, shop.account, 40), bank.instruction(holder, shop.account, 5_000)
    bank.ledger.lose_answers = 1
    assert refused(lambda: pay_one(bank.context, lost)) == "outcome-unknown"
    assert refused(lambda: pay_one(bank.context, poor)) == "insufficient-funds"
    device_change(bank, holder, "replace-holder-key", new)
    assert [again(token).state for again, token in carried] == ["final"] * 3
    assert pay_one(bank.context, lost).state == "final"
    bank.ledger.fund(holder.account, 10_000)
    assert refused(lambda: pay_one(bank.context, poor)) == "instruction-invalid"
    assert refused(lambda: pay_one(bank.context, bank.instruction(holder, shop.account, 1))) == "instruction-invalid"
    assert bank.balance(shop) == 50


def test_both_devices_are_checked_here_when_a_signature_is_in_doubt(bank: Bank) -> None:
    holder, second, shop = bank.holder(funds=1000), PrivateKey.generate(), payee(bank)
    device_change(bank, holder, "add-holder-key", second)
    tokens = [bank.instruction(holder, shop.account, 1, key=key) for key in (holder.key, second, PrivateKey.generate())]
    outcomes = pay(bank.context, tokens)  # several of one account in a request: each is checked before it counts
    assert [isinstance(outcome, Declined) for outcome in outcomes] == [False, False, True]


@pytest.mark.parametrize("kind", ["add-holder-key", "remove-holder-key", "replace-holder-key"])
def test_device_changes_with_the_consent_of_an_active_device_only(bank: Bank, kind: str) -> None:
    holder, second, thief, other = bank.holder(), PrivateKey.generate(), PrivateKey.generate(), bank.holder()
    device_change(bank, holder, "add-holder-key", second)
    key = second if kind == "remove-holder-key" else PrivateKey.generate()
    assert refused(lambda: device_change(bank, holder, kind, key, by=thief)) == "holder-order-invalid"
    foreign = consent(bank, other, key_change(other, kind, key))

    def change(token: str) -> Change:
        return devices.change_device(bank.context, holder.wallet.id, token)

    assert refused(lambda: change(foreign)) == "holder-order-invalid"
    old = consent(bank, holder, key_change(holder, kind, key))
    bank.clock.advance(timedelta(hours=1))
    assert refused(lambda: change(old)) == "holder-order-expired"
    assert states(bank, holder) == {holder.key.thumbprint: "active", second.thumbprint: "active"}


def test_key_of_one_wallet_never_becomes_anothers(bank: Bank) -> None:
    first, second = bank.holder(), bank.holder()
    assert refused(lambda: device_change(bank, second, "add-holder-key", first.key)) == "device-key-in-use"
    new = PrivateKey.generate()
    device_change(bank, first, "replace-holder-key", new)
    assert refused(lambda: device_change(bank, second, "add-holder-key", first.key)) == "device-key-in-use"
    opened = lambda: open_wallet(  # noqa: E731
        bank.context,
        bank.new_id(),
        customer_id=first.wallet.customer_id,
        wallet_class=WalletClass.IV,
        device_key=first.key.public.to_jwk(),
    )
    assert refused(opened) == "device-key-in-use"


def test_devices_are_bounded(bank: Bank) -> None:
    holder = bank.holder()
    for _ in range(4):
        device_change(bank, holder, "add-holder-key", PrivateKey.generate())
    assert refused(lambda: device_change(bank, holder, "add-holder-key", PrivateKey.generate())) == "devices-too-many"


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_device_change_that_the_ledger_did_not_answer_is_finished_by_recovery(bank: Bank, lost: str) -> None:
    holder, second = bank.holder(funds=10), PrivateKey.generate()
    bank.ledger.unreachable, bank.ledger.lose_answers = lost == "request", int(lost == "answer")
    change = bank.new_id()
    add = lambda: device_change(bank, holder, "add-holder-key", second, id=change)  # noqa: E731
    assert refused(add) == "service-unavailable"
    bank.ledger.unreachable = False
    assert states(bank, holder)[second.thumbprint] == "adding"
    assert pays(bank, holder, 1, key=second) == "instruction-invalid"
    assert resume_changes(bank.context) == 1
    assert pays(bank, holder, 1, key=second) == "final"
    # A removed device does not sign here from the moment on that its removal is recorded.
    bank.ledger.unreachable = True
    assert refused(lambda: device_change(bank, holder, "remove-holder-key", second)) == "service-unavailable"
    bank.ledger.unreachable = False
    assert pays(bank, holder, 1, key=second) == "instruction-invalid"
    # Too late for the holder's consent: the ledger never heard of it, so it is shown as what it is.
    bank.clock.advance(timedelta(hours=1))
    resume_changes(bank.context)
    assert states(bank, holder)[second.thumbprint] == "active"
    assert [row.state for row in changes.list_changes(bank.context, holder.wallet.id, before=None, limit=9)] == [
        "refused",
        "done",
    ]


# --- suspension and lost keys ----------------------------------------------------------------------------------------


def suspend(bank: Bank, holder: Holder, reason: str = "loss") -> Change:
    return lifecycle.suspend(bank.context, bank.new_id(), holder.wallet.id, reason)


def resume(bank: Bank, holder: Holder, reason: str = "loss") -> Change:
    return lifecycle.resume(bank.context, bank.new_id(), holder.wallet.id, reason, identified_by=ALL_EVIDENCE)


def status(bank: Bank, holder: Holder) -> AccountStatus:
    return bank.ledger.accounts[holder.account].status


def test_reported_loss_stops_debits_at_once_even_when_the_ledger_is_silent(bank: Bank) -> None:
    holder, shop = bank.holder(funds=1000), payee(bank)
    bank.ledger.unreachable = True
    assert suspend(bank, holder).state == "pending"
    bank.ledger.unreachable = False
    assert pays(bank, holder, 1, to=shop) == "debit-account-suspended"
    assert status(bank, holder) is AccountStatus.ACTIVE
    assert resume_changes(bank.context) == 1
    assert status(bank, holder) is AccountStatus.SUSPENDED
    assert pays(bank, shop, 0 + 1, to=holder) == "insufficient-funds"  # being paid is not refused for it
    bank.ledger.fund(shop.account, 5)
    assert pays(bank, shop, 5, to=holder) == "final"
    assert refused(lambda: device_change(bank, holder, "add-holder-key", PrivateKey.generate())) == "wallet-suspended"


def test_wallet_opens_when_the_last_reason_is_gone(bank: Bank) -> None:
    holder = bank.holder(funds=1000)
    suspend(bank, holder, "loss")
    suspend(bank, holder, "institution")
    resume(bank, holder, "institution")
    assert wallet_of(bank, holder).suspensions == {"loss"}
    assert status(bank, holder) is AccountStatus.SUSPENDED
    assert refused(lambda: resume(bank, holder, "institution")) == "wallet-not-suspended"
    weak = lambda: lifecycle.resume(  # noqa: E731
        bank.context, bank.new_id(), holder.wallet.id, "loss", identified_by=PHONE
    )
    assert refused(weak) == "evidence-insufficient"
    assert resume(bank, holder, "loss").state == "done"
    assert wallet_of(bank, holder).state == "open"
    assert status(bank, holder) is AccountStatus.ACTIVE
    assert pays(bank, holder, 1) == "final"


def test_loss_reported_while_a_resumption_is_under_way_wins(bank: Bank) -> None:
    holder = bank.holder(funds=1000)
    suspend(bank, holder)
    bank.ledger.lose_answers = 1
    with pytest.raises(ProblemError):
        resume(bank, holder)  # the ledger has resumed it, the answer is lost
    assert status(bank, holder) is AccountStatus.ACTIVE
    assert suspend(bank, holder).state == "done"
    assert status(bank, holder) is AccountStatus.SUSPENDED
    resume_changes(bank.context)
    assert wallet_of(bank, holder).suspensions == {"loss"}
    assert status(bank, holder) is AccountStatus.SUSPENDED


def recovery(bank: Bank, holder: Holder, key: PrivateKey, *, id: UUID | None = None) -> Change:
    return devices.recover_key(
        bank.context,
        id or bank.new_id(),
        holder.wallet.id,
        device_key=key.public.to_jwk(),
        identified_by=ALL_EVIDENCE,
    )


def test_lost_key_is_replaced_after_the_delay_with_notice(bank: Bank) -> None:
    holder, new, shop = bank.holder(funds=1000), PrivateKey.generate(), payee(bank)
    assert refused(lambda: recovery(bank, holder, new)) == "wallet-not-suspended"
    suspend(bank, holder)
    change = recovery(bank, holder, new)
    assert change.state == "waiting"
    assert change.due_at == bank.clock() + timedelta(seconds=bank.ledger.key_recovery_seconds)
    assert notices(bank, holder)[-1] == "key-announced"
    bank.clock.advance(timedelta(seconds=bank.ledger.key_recovery_seconds - 1))
    assert resume_changes(bank.context) == 0
    assert pays(bank, holder, 1, key=new, to=shop) == "instruction-invalid"
    bank.clock.advance(timedelta(seconds=1))
    assert resume_changes(bank.context) >= 1
    assert [pays(bank, holder, 1, key=key, to=shop) for key in (holder.key, new)] == ["instruction-invalid", "final"]
    assert wallet_of(bank, holder).state == "open"
    assert states(bank, holder) == {holder.key.thumbprint: "removed", new.thumbprint: "active"}
    assert notices(bank, holder)[-2:] == ["key-recovered", "resumed"]


def test_old_key_objects_to_the_announced_one(bank: Bank) -> None:
    holder, impostor = bank.holder(funds=1000), PrivateKey.generate()
    suspend(bank, holder)
    change = recovery(bank, holder, impostor)
    body = AccountStanding(change="object-to-key", account=holder.account)
    forged = consent(bank, holder, body, key=impostor)

    def objects(token: str) -> Change:
        return devices.object_to_key(bank.context, holder.wallet.id, token)

    assert refused(lambda: objects(forged)) == "holder-order-invalid"
    objection = consent(bank, holder, body)
    assert objects(objection).state == "objected"
    assert objects(objection).id == change.id
    bank.clock.advance(timedelta(days=3))
    resume_changes(bank.context)
    assert wallet_of(bank, holder).state == "suspended"
    assert states(bank, holder) == {holder.key.thumbprint: "active", impostor.thumbprint: "refused"}
    assert pays(bank, holder, 1, key=impostor) == "instruction-invalid" or wallet_of(bank, holder).state == "suspended"
    late = consent(bank, holder, body)
    assert refused(lambda: objects(late)) == "nothing-announced"
    assert resume(bank, holder).state == "done"
    assert pays(bank, holder, 1) == "final"


def test_objection_whose_answer_was_lost_is_found_by_the_recovery_pass(bank: Bank) -> None:
    holder, impostor = bank.holder(), PrivateKey.generate()
    suspend(bank, holder)
    change = recovery(bank, holder, impostor)
    token = consent(bank, holder, AccountStanding(change="object-to-key", account=holder.account))
    bank.ledger.lose_answers = 1
    assert refused(lambda: devices.object_to_key(bank.context, holder.wallet.id, token)) == "service-unavailable"
    bank.clock.advance(timedelta(days=2))
    resume_changes(bank.context)
    assert changes.find_change(bank.context, change.id).state == "objected"
    assert impostor.thumbprint not in wallet_of(bank, holder).devices


@pytest.mark.extended
def test_recovery_survives_a_silent_ledger_at_every_call(bank: Bank) -> None:
    """Each call to the ledger fails once before it arrives and once after: the recovery ends all the same."""
    for lost in ("request", "answer"):
        for nth in range(1, 9):
            holder, new = bank.holder(funds=10), PrivateKey.generate()
            suspend(bank, holder)
            calls = 0

            def fail_at_nth(method: str, lost: str = lost, nth: int = nth) -> None:
                nonlocal calls
                calls += 1
                if calls == nth and lost == "answer":
                    bank.ledger.lose_answers = 1
                elif calls == nth:
                    raise ServiceUnreachable("lost")

            bank.ledger.before_call = fail_at_nth
            id = bank.new_id()
            try:
                recovery(bank, holder, new, id=id)
            except ProblemError as error:
                assert error.refusal.value == "service-unavailable"  # noqa: PT017 - may succeed too
            for _ in range(6):
                bank.clock.advance(timedelta(hours=13))
                resume_changes(bank.context)
            bank.ledger.before_call, bank.ledger.lose_answers = (lambda method: None), 0
            assert changes.find_change(bank.context, id).state == "done", (lost, nth)
            assert (wallet_of(bank, holder).state, status(bank, holder)) == ("open", "active"), (lost, nth)
            assert pays(bank, holder, 1, key=new) == "final"


# --- closure ---------------------------------------------------------------------------------------------------------


def close(bank: Bank, holder: Holder, id: UUID, *, token: str | None = None, interest: int = 0) -> closing.Closure:
    return closing.close_wallet(
        bank.context, id, holder.wallet.id, instruction=token, accrued_interest=lambda context, wallet: interest
    )


def out(bank: Bank, holder: Holder, amount: int, *, id: UUID | None = None) -> str:
    return bank.instruction(holder, bank.vault, amount, kind=TransferKind.EXCHANGE_OUT, id=id)


def test_closure_pays_interest_and_the_whole_balance_to_the_deposit(bank: Bank) -> None:
    holder, id = bank.holder(funds=1000), bank.new_id()
    first = close(bank, holder, id, interest=7)
    assert (first.change.state, first.amount_due_minor, first.interest_minor) == ("waiting", 1007, 7)
    assert wallet_of(bank, holder).state == "closing"
    assert pays(bank, holder, 1) == "wallet-closing"
    assert refused(lambda: close(bank, holder, id, token=out(bank, holder, 1000))) == "payout-mismatch"
    done = close(bank, holder, id, token=out(bank, holder, 1007), interest=99)
    assert (done.change.state, done.interest_minor) == ("done", 7)
    assert bank.core_banking.balance(holder.wallet.customer_id) == 1007
    assert (wallet_of(bank, holder).state, status(bank, holder)) == ("closed", "closed")
    assert pays(bank, holder, 1) == "account-closed"
    assert close(bank, holder, id).change.state == "done"
    assert refused(lambda: close(bank, holder, bank.new_id())) == "wallet-closed"
    assert refused(lambda: suspend(bank, holder)) == "wallet-closed"
    assert notices(bank, holder)[-1] == "closed"


def test_empty_wallet_closes_at_once_and_another_wallet_may_be_paid_out_to(bank: Bank) -> None:
    empty, full, other = bank.holder(), bank.holder(funds=50), bank.holder()
    assert close(bank, empty, bank.new_id()).change.state == "done"
    assert close(bank, full, bank.new_id(), token=bank.instruction(full, other.account, 50)).change.state == "done"
    assert bank.balance(other) == 50


def test_closure_waits_for_payments_on_their_way_and_can_be_cancelled(bank: Bank) -> None:
    holder, shop = bank.holder(funds=1000), payee(bank)
    bank.ledger.unreachable = True
    token = bank.instruction(holder, shop.account, 10)
    pay(bank.context, [token])
    bank.ledger.unreachable = False
    assert refused(lambda: close(bank, holder, bank.new_id())) == "money-on-its-way"
    pay_one(bank.context, token)
    id = bank.new_id()
    close(bank, holder, id)
    assert closing.cancel_closure(bank.context, id).state == "cancelled"
    assert pays(bank, holder, 1) == "final"
    assert close(bank, holder, id).change.state == "cancelled"


def test_money_that_comes_in_meanwhile_is_due_too(bank: Bank) -> None:
    holder, id = bank.holder(funds=1000), bank.new_id()
    before = bank.ledger.before_call

    def pay_in(method: str) -> None:
        if method == "change_account":
            bank.ledger.before_call = before
            bank.ledger.fund(holder.account, 5)

    bank.ledger.before_call = pay_in
    close(bank, holder, id, token=out(bank, holder, 1000))
    assert wallet_of(bank, holder).state == "closing"
    again = close(bank, holder, id)
    assert again.amount_due_minor == 5
    assert close(bank, holder, id, token=out(bank, holder, 5)).change.state == "done"
    assert bank.core_banking.balance(holder.wallet.customer_id) == 1005


@pytest.mark.extended
def test_closure_survives_a_silent_ledger_at_every_call(bank: Bank) -> None:
    for lost in ("request", "answer"):
        for nth in range(1, 8):
            holder, id = bank.holder(funds=1000), bank.new_id()
            total = bank.ledger.total() + bank.core_banking.total()
            token, calls = out(bank, holder, 1007), 0

            def fail_at_nth(method: str, lost: str = lost, nth: int = nth) -> None:
                nonlocal calls
                calls += 1
                if calls == nth and lost == "answer":
                    bank.ledger.lose_answers = 1
                elif calls == nth:
                    raise ServiceUnreachable("lost")

            bank.ledger.before_call = fail_at_nth
            for _ in range(4):
                try:
                    if close(bank, holder, id, token=token, interest=7).change.state == "done":
                        break
                except ProblemError as error:
                    assert error.refusal.value in ("service-unavailable", "outcome-unknown")  # noqa: PT017
            bank.ledger.before_call, bank.ledger.lose_answers = (lambda method: None), 0
            bank.clock.advance(timedelta(minutes=1))
            recover(bank.context, at_start=True)
            assert changes.find_change(bank.context, id).state == "done", (lost, nth)
            assert bank.core_banking.balance(holder.wallet.customer_id) == 1007
            # The deposit's growth is what left the wallet for the vault: no money from nowhere on the ledger.
            assert bank.ledger.total() + bank.core_banking.total() == total + 1007
            assert bank.balance(holder) == 0


def test_closed_and_suspended_wallets_take_nothing_from_the_deposit(bank: Bank) -> None:
    holder = bank.holder()
    bank.core_banking.credit_deposit(bank.new_id(), holder.wallet.customer_id, 100)
    exchange = lambda: exchange_in(  # noqa: E731
        bank.context, bank.new_id(), wallet_id=holder.wallet.id, amount_minor=1, currency="CNY"
    )
    suspend(bank, holder)
    assert refused(exchange) == "wallet-suspended"
    resume(bank, holder)
    close(bank, holder, bank.new_id())
    assert refused(exchange) == "wallet-closed"
    assert bank.core_banking.balance(holder.wallet.customer_id) == 100


# --- concurrency -----------------------------------------------------------------------------------------------------


def test_I9_caps_lowered_among_concurrent_payments_hold_from_then_on(bank: Bank) -> None:
    """Payments race with the lowering of the day's cap: what is counted afterwards never exceeds the lowered cap."""
    holder, shop = bank.holder(WalletClass.II, funds=100_000), payee(bank)
    tokens = [bank.instruction(holder, shop.account, 100) for _ in range(40)]
    lowered_at: list[int] = []

    def lower() -> None:
        set_caps(bank, holder, Caps(day_max_minor=1_500))
        lowered_at.append(wallet_of(bank, holder).usage.day_minor)

    with ThreadPoolExecutor(8) as pool:
        payments = [pool.submit(pay, bank.context, [token]) for token in tokens[:20]]
        lowering = pool.submit(lower)
        payments += [pool.submit(pay, bank.context, [token]) for token in tokens[20:]]
        lowering.result()
        outcomes = [payment.result()[0] for payment in payments]
    booked = sum(not isinstance(outcome, Declined) and outcome.state == "final" for outcome in outcomes)
    spent = wallet_of(bank, holder).usage.day_minor
    assert spent == booked * 100
    assert spent <= max(1_500, lowered_at[0])
    assert spent >= 1_500


def test_same_change_from_many_threads_is_made_once(bank: Bank) -> None:
    holder, change = bank.holder(WalletClass.IV), bank.new_id()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: change_class(bank, holder, WalletClass.II, id=change).state, range(8)))
    assert set(found) == {"done"}
    assert notices(bank, holder) == ["class-changed"]


_EXPECTED = ("wallet-not-suspended", "change-in-progress", "service-unavailable")


def test_suspensions_and_resumptions_from_many_threads_leave_both_sides_agreed(bank: Bank) -> None:
    holder = bank.holder()

    def work(number: int) -> None:
        try:
            reason = ("loss", "institution")[number % 2]
            if number % 4 < 2:
                suspend(bank, holder, reason)
            else:
                resume(bank, holder, reason)
        except ProblemError as error:
            assert error.refusal.value in _EXPECTED  # noqa: PT017 - may succeed too

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(24)))
    for _ in range(3):
        bank.clock.advance(timedelta(minutes=1))
        resume_changes(bank.context)
    row = wallet_of(bank, holder)
    assert (row.state == "suspended") == bool(row.suspensions) == (status(bank, holder) is AccountStatus.SUSPENDED)
    with bank.database.engine.connect() as connection:
        assert store.open_changes(connection, holder.wallet.id) == []


# --- the tables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("UPDATE wallet SET day_max_minor = -1", "wallet_own_caps_i9_ck"),
        ("UPDATE wallet SET changing_to = wallet_class", "wallet_changing_to_ck"),
        ("UPDATE wallet SET state = 'suspended'", "wallet_suspended_ck"),
        ("UPDATE wallet SET suspensions = ARRAY['loss']", "wallet_open_is_not_suspended_ck"),
        ("UPDATE wallet SET suspensions = ARRAY['whim'], state = 'suspended'", "wallet_suspensions_ck"),
        ("UPDATE wallet SET state = 'closed'", "wallet_closed_at_ck"),
        ("UPDATE wallet_change SET state = 'pending'", "wallet_change_ended_ck"),
        ("UPDATE wallet_change SET state = 'refused'", "wallet_change_refused_says_why_ck"),
        ("UPDATE wallet_change SET state = 'waiting', ended_at = NULL", "wallet_change_waits_for_a_time_ck"),
        ("UPDATE wallet_device SET state = 'removed'", "wallet_device_ended_ck"),
    ],
)
def test_table_refuses_what_the_core_refuses(bank: Bank, statement: str, constraint: str) -> None:
    holder = bank.holder()
    set_caps(bank, holder, Caps(day_max_minor=1))
    with pytest.raises(IntegrityError, match=constraint), bank.database.engine.begin() as connection:
        connection.execute(sa.text(statement))


def test_devices_that_payments_read_are_the_active_ones(bank: Bank) -> None:
    holder = bank.holder()
    keys = [PrivateKey.generate() for _ in range(3)]
    for key in keys:
        device_change(bank, holder, "add-holder-key", key)
    device_change(bank, holder, "remove-holder-key", keys[1])
    device_change(bank, holder, "remove-holder-key", holder.key, by=keys[2])
    active = {thumbprint for thumbprint, state in states(bank, holder).items() if state == "active"}
    assert set(wallet_of(bank, holder).devices) == active == {keys[0].thumbprint, keys[2].thumbprint}
    assert {key.thumbprint for key in bank.ledger.accounts[holder.account].keys} == active
