"""Goal: ways round the money rules that lead over another operation, another document or another key are closed.
Method: each is tried as an attacker would, by the use cases on a real PostgreSQL; what he must not get is looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from kernel import ids
from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.errors import ProblemError
from ledger.contract import AccountStanding, HolderKeyChange, TransferKind
from tests.card_world import attest
from tests.programs_world import ProgramBank
from tests.store.test_wallet_families import child_of
from tests.store.test_wallet_lifecycle import caps_order, consent, recovery, set_caps, suspend
from tests.store.test_wallet_programs import DRIP, MEALS
from tests.store.test_wallet_requests import TwoBanks
from tests.store.test_wallet_requests import banks as banks
from tests.wallet_bank import Holder
from wallet.contract.requests import REQUEST_LIFE_DAYS_MAX, REQUEST_TYP
from wallet.domain.families import ChildCaps
from wallet.domain.limits import Caps
from wallet.domain.rules import WalletClass
from wallet.usecases import bulk, devices, incoming, offline, program_statements, refunds, requests, vouchers
from wallet.usecases.exchange import exchange_out
from wallet.usecases.hardware import register_card, report_card
from wallet.usecases.listings import find_payment
from wallet.usecases.pay import pay, pay_one
from wallet.usecases.peers import canonical


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[ProgramBank]:
    database = Database(fresh_database("wallet"), application_name="test")
    made = ProgramBank(database)
    made.ledger.participant_key = made.context.key.public
    yield made
    database.close()


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ProblemError) as caught:
        call()
    return caught.value.refusal.value


def forged(token: str) -> str:
    """The same document under a signature that nobody made."""
    head, payload, signature = token.split(".")
    return f"{head}.{payload}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"


# --- a child's caps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["single_max_minor", "day_max_minor", "total_max_minor"])
def test_I9_capped_child_does_not_get_round_its_caps_by_its_deposit(bank: ProgramBank, name: str) -> None:
    parent = bank.holder()
    child = child_of(bank, parent, ChildCaps(**{name: 20}), funds=1_000)
    free = child_of(bank, parent, funds=1_000)

    def out(holder: Holder) -> object:
        return exchange_out(bank.context, bank.instruction(holder, bank.vault, 1_000, kind=TransferKind.EXCHANGE_OUT))

    assert refused(lambda: out(child)) == "kind-not-allowed"
    assert bank.balance(child) == 1_000
    out(free)
    assert bank.balance(free) == 0


def test_child_has_no_purse_whose_payments_nobody_would_count(bank: ProgramBank) -> None:
    child = child_of(bank, bank.holder(), ChildCaps(day_max_minor=20), funds=1_000)
    key = PrivateKey.generate().public.to_jwk()
    said = refused(lambda: offline.issue_purse(bank.context, bank.new_id(), wallet_id=child.wallet.id, device_key=key))
    assert said == "kind-not-allowed"


# --- a card's key ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_reported", [False, True])
def test_key_taken_out_of_a_card_orders_nothing(bank: ProgramBank, is_reported: bool) -> None:
    """A card signs payments alone: an order under its key comes from whoever has broken the chip."""
    holder, stolen = bank.holder(WalletClass.IV, funds=1_000), PrivateKey.generate()
    thumbprint = holder.key.public.thumbprint
    set_caps(bank, holder, Caps(day_max_minor=10))
    jwk = holder.key.public.to_jwk()
    chain = attest(holder.key.public, single=1, total=1, now=bank.clock())
    values: dict[str, Any] = {"pin_free_single_max_minor": 1, "pin_free_total_max_minor": 1}
    register_card(bank.context, holder.wallet.id, key=jwk, attestation=chain, **values)
    if is_reported:
        report_card(bank.context, holder.wallet.id, thumbprint)
    change = bank.new_id()
    order = caps_order(bank, holder, change, Caps(day_max_minor=1_000))
    assert refused(lambda: set_caps(bank, holder, Caps(day_max_minor=1_000), order=order, id=change)) == (
        "holder-order-invalid"
    )
    added = HolderKeyChange.model_validate(
        {"change": "add-holder-key", "account": holder.account, "key": stolen.public.to_jwk()}
    )
    token = consent(bank, holder, added)
    assert refused(lambda: devices.change_device(bank.context, holder.wallet.id, token)) == "holder-order-invalid"
    assert stolen.thumbprint not in [row.thumbprint for row in devices.list_devices(bank.context, holder.wallet.id)]


def test_key_taken_out_of_a_card_spends_no_voucher(bank: ProgramBank) -> None:
    issuer, worker, shop = bank.holder(WalletClass.I, funds=10_000), bank.holder(), bank.merchant()
    actors, voucher = bank.actors(issuer, None), bank.voucher(worker, 500)
    bank.funded(bank.request("voucher-multi", actors, vouchers=[voucher], **MEALS), actors)
    jwk = worker.key.public.to_jwk()
    chain = attest(worker.key.public, single=1, total=1, now=bank.clock())
    values: dict[str, Any] = {"pin_free_single_max_minor": 1, "pin_free_total_max_minor": 1}
    register_card(bank.context, worker.wallet.id, key=jwk, attestation=chain, **values)
    assert refused(lambda: bank.spend(voucher.voucher, shop, 500, worker)) == "spend-invalid"
    assert bank.balance(shop) == 0


# --- documents that nobody signed ------------------------------------------------------------------------------------


def test_known_document_under_a_forged_signature_is_answered_to_nobody(bank: ProgramBank) -> None:
    issuer, worker, shop = bank.holder(WalletClass.I, funds=10_000), bank.holder(), bank.merchant()
    actors, voucher = bank.actors(issuer, None), bank.voucher(worker, 500)
    bank.funded(bank.request("voucher-multi", actors, vouchers=[voucher], **MEALS), actors)
    order = bank.purchase(voucher.voucher, shop.account, 500, worker.key)
    assert vouchers.spend(bank.context, order).state == "final"
    assert vouchers.spend(bank.context, order).state == "final"
    assert refused(lambda: vouchers.spend(bank.context, forged(order))) == "spend-invalid"

    payer, payee = bank.holder(funds=1_000), bank.holder()
    actors = bank.actors(payer, payee, "courier")
    known = bank.funded(bank.request("prepaid-drip", actors, [100, 200], **DRIP), actors)
    said = bank.statement(known, actors, "courier", "delivered")
    program_statements.take_statement(bank.context, said)
    program_statements.take_statement(bank.context, said)
    assert refused(lambda: program_statements.take_statement(bank.context, forged(said))) == "statement-invalid"


def test_known_objection_under_a_forged_signature_is_answered_to_nobody(bank: ProgramBank) -> None:
    holder, impostor = bank.holder(), PrivateKey.generate()
    suspend(bank, holder)
    recovery(bank, holder, impostor)
    token = consent(bank, holder, AccountStanding(change="object-to-key", account=holder.account))
    assert devices.object_to_key(bank.context, holder.wallet.id, token).state == "objected"
    assert devices.object_to_key(bank.context, holder.wallet.id, token).state == "objected"
    wallet = holder.wallet.id
    assert refused(lambda: devices.object_to_key(bank.context, wallet, forged(token))) == "holder-order-invalid"


# --- refunds ---------------------------------------------------------------------------------------------------------


def test_refund_of_a_vouchers_purchase_is_the_issuers_not_the_institutions(bank: ProgramBank) -> None:
    issuer, worker, shop = bank.holder(WalletClass.I, funds=10_000), bank.holder(), bank.merchant()
    actors, voucher = bank.actors(issuer, None), bank.voucher(worker, 500)
    bank.funded(bank.request("voucher-multi", actors, vouchers=[voucher], **MEALS), actors)
    bought = bank.spend(voucher.voucher, shop, 500, worker)
    vault = bank.ledger.accounts[bank.vault].balance

    def back(credit: int) -> str:
        values: dict[str, Any] = {"kind": TransferKind.REFUND, "reference": bought.payment_id}
        return bank.instruction(shop, credit, 500, **values)

    assert refused(lambda: refunds.refund(bank.context, back(bank.vault))) == "refund-mismatch"
    assert refused(lambda: refunds.refund(bank.context, back(worker.account))) == "refund-mismatch"
    assert refunds.refund(bank.context, back(issuer.account)).state == "final"
    assert (bank.balance(issuer), bank.balance(shop)) == (10_000, 0)
    assert bank.ledger.accounts[bank.vault].balance == vault


# --- requests: open to all -------------------------------------------------------------------------------------------


def test_strangers_who_ask_about_a_request_cost_the_ledger_one_statement(
    banks: TwoBanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    payee, payer = banks.payee.holder(), banks.payer.holder(funds=1_000)
    box = banks.ask(payee, None, is_many=True)
    reads, statement = [], banks.ledger.statement

    def counted(*arguments: Any, **more: Any) -> Any:
        reads.append(arguments)
        return statement(*arguments, **more)

    monkeypatch.setattr(banks.ledger, "statement", counted)
    banks.payee.clock.advance(requests.LOOKED_AGAIN_AFTER + timedelta(seconds=1))
    for _ in range(50):
        incoming.get_offer(banks.payee.context, box.id)
    assert len(reads) == 1
    pay_one(banks.payer.context, banks.payer.instruction(payer, payee.account, 70, reference=box.id))
    # The payee himself sees what is there now.
    assert len(requests.list_payments(banks.payee.context, box.id, after_seq=0, limit=10)) == 1


def test_institution_puts_no_request_before_a_wallet_for_ever(banks: TwoBanks) -> None:
    payee, payer = banks.payee.holder(), banks.payer.holder()
    request = banks.ask(payee)
    asked = incoming._read(request.document).model_copy(update={"payer": payer.account})
    key, now = banks.payee.context.key, banks.payee.clock()

    def deliver(**change: Any) -> None:
        document = asked.model_copy(update=change)
        incoming.deliver_request(banks.payer.context, jws.sign(canonical(document), key, typ=REQUEST_TYP))

    for expires_at in (now, now + timedelta(days=REQUEST_LIFE_DAYS_MAX, seconds=1)):
        assert refused(lambda at=expires_at: deliver(expires_at=at)) == "request-document-invalid"
    assert incoming.list_incoming(banks.payer.context, payer.wallet.id, before=None, limit=10) == []
    deliver()
    assert len(incoming.list_incoming(banks.payer.context, payer.wallet.id, before=None, limit=10)) == 1


def test_payer_of_an_open_box_does_not_make_others_payments_forgotten(banks: TwoBanks) -> None:
    payee, victim, thief = banks.payee.holder(), banks.payer.holder(), banks.payer.holder(funds=1_000)
    poor = banks.payer.instruction(victim, payee.account, 5)
    payment = pay(banks.payer.context, [poor])[0]
    assert payment.state == "refused"  # type: ignore[union-attr]
    box = banks.ask(payee, None, is_many=True)
    banks.shown(banks.payer, thief, box)
    token = banks.payer.instruction(thief, payee.account, 7, id=payment.id, reference=box.id)  # type: ignore[union-attr]
    refused(lambda: incoming.approve(banks.payer.context, thief.wallet.id, box.id, token))
    kept = find_payment(banks.payer.context, payment.id)  # type: ignore[union-attr]
    assert (kept.wallet_id, kept.state) == (victim.wallet.id, "refused")


# --- payrolls --------------------------------------------------------------------------------------------------------


def test_dry_run_knows_the_holders_own_caps(bank: ProgramBank) -> None:
    payer, payee = bank.holder(WalletClass.I, funds=1_000), bank.holder()
    set_caps(bank, payer, Caps(single_max_minor=100))
    content = f"line_id,payee,amount,description\r\na,{ids.show_account(payee.account)},1.01,x".encode()
    checked = bulk.check_file(bank.context, payer.wallet.id, content)
    assert [line.refusal for line in checked.lines] == ["single-limit-exceeded"]
