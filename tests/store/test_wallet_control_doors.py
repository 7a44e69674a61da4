"""Goal: above what one signature alone may pay, no money leaves a wallet under dual control through any door.
Method: each door is tried three times: as it is; with the service's own rules taken out, so that only the database's
are left; and, where it is a payment, with a second person's approval. Every operation of the API is a door or is on the
list of those that take nothing out of a wallet, with the reason; every table that keeps signed instructions is
guarded or copied from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.errors import ProblemError
from ledger.contract import TransferKind
from sandbox.openapi import path_of
from tests.programs_world import ProgramBank
from tests.purse_world import Purse, fund_instruction, new_purse
from tests.store.test_wallet_controls import ALONE, Company, no_rules
from tests.store.test_wallet_families import child_of, pushed
from wallet.contract.requests import CodeRedemption
from wallet.domain.bulk import line_transfer_id
from wallet.domain.calendars import Frequency, Recurrence
from wallet.domain.payer_holds import make_payer_code
from wallet.domain.requests import Terms, payment_id
from wallet.domain.schedules import schedule_transfer_id
from wallet.usecases import (
    bulk,
    closing,
    exchange,
    families,
    incoming,
    offline,
    payer_codes,
    refunds,
    requests,
    schedules,
)
from wallet.usecases.bulk import SignedLine
from wallet.usecases.pay import Declined, pay, pay_one

ABOVE = ALONE + 1
Attempt = tuple[UUID | None, str | None, Callable[[], str]]
"""(payment, instruction) that a second person may approve, and the attempt: what became of it."""


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[ProgramBank]:
    database = Database(fresh_database("wallet"), application_name="test")
    made = ProgramBank(database)
    made.ledger.peers[made.context.participant] = made.context.key.public
    yield made
    database.close()


class Firm(Company):
    """A company whose rules are set when the door is ready: what needs another wallet or a purse makes it before."""

    def __init__(self, bank: ProgramBank) -> None:
        super().__init__(bank, is_set=False)
        self.programs = bank

    def controlled(self) -> None:
        self.persons = [("treasurer", self.wallet.key.public), ("director", self.director.public)]
        self.set(self.wallet.key, self.director)

    def signed(self, credit: int, amount: int = ABOVE, *, id: UUID | None = None, **more: Any) -> tuple[UUID, str]:
        payment = id or self.bank.new_id()
        return payment, self.bank.instruction(self.wallet, credit, amount, id=payment, **more)


def said(work: Callable[[], object]) -> str:
    """`final`, or the refusal."""
    try:
        outcome: Any = work()
    except ProblemError as error:
        return error.refusal.value
    return outcome.refusal.value if isinstance(outcome, Declined) else str(getattr(outcome, "state", "done"))


def push(firm: Firm) -> Attempt:
    firm.controlled()
    payment, token = firm.signed(firm.payee.account)
    return payment, token, lambda: said(lambda: pay_one(firm.bank.context, token))


def batch(firm: Firm) -> Attempt:
    firm.controlled()
    payment, token = firm.signed(firm.payee.account)
    return payment, token, lambda: said(lambda: pay(firm.bank.context, [token])[0])


def payroll(firm: Firm) -> Attempt:
    firm.controlled()
    context, file = firm.bank.context, firm.bank.new_id()
    line = line_transfer_id(file, "one")
    payment, token = firm.signed(firm.payee.account, id=line)

    def run() -> str:
        bulk.register_file(
            context,
            file,
            wallet_id=firm.wallet.wallet.id,
            content_sha256=sha256(b"").digest(),
            lines_total=1,
            total_minor=ABOVE,
            again=False,
        )
        bulk.receive_lines(context, file, [SignedLine(2, "one", token)])
        bulk.start_file(context, file)
        bulk.run_files(context)
        (row,) = bulk.page_of_lines(context, file, after=0, limit=9)
        return row.refusal or row.state

    return payment, token, run


def standing_order(firm: Firm) -> Attempt:
    firm.controlled()
    context, schedule = firm.bank.context, firm.bank.new_id()
    recurrence = Recurrence(frequency=Frequency.ONCE, first_on=firm.bank.clock().date())
    (day,) = schedules.dates(recurrence, "cn", first=0, count=1)
    payment, token = firm.signed(
        firm.payee.account,
        id=schedule_transfer_id(schedule, day.number),
        valid_for=day.sign_until - firm.bank.clock(),
    )

    def run() -> str:
        schedules.create_schedule(
            context,
            schedule,
            wallet_id=firm.wallet.wallet.id,
            recurrence=recurrence,
            calendar="cn",
            instructions=[token],
        )
        schedules.execute_due(context)
        (row,) = schedules.payments_of(context, schedule, after=-1, limit=9)
        return row.refusal or row.state

    return payment, token, run


def asked(firm: Firm) -> Any:
    return requests.create_request(
        firm.bank.context,
        firm.bank.new_id(),
        wallet_id=firm.payee.wallet.id,
        currency="CNY",
        terms=Terms(ABOVE, None, None, False),
        payer_account=firm.wallet.account,
        payer_institution=firm.bank.context.participant,
        payee_name="Teahouse",
        description="",
        payee_reference="",
        expires_at=firm.bank.clock() + timedelta(hours=1),
    )


def request_approved(firm: Firm) -> Attempt:
    firm.controlled()
    context, request = firm.bank.context, asked(firm)
    incoming.deliver_request(context, request.document)
    payment, token = firm.signed(firm.payee.account, id=payment_id(request.id, 0), reference=request.id)
    wallet = firm.wallet.wallet.id
    return payment, token, lambda: said(lambda: incoming.approve(context, wallet, request.id, token))


def refund(firm: Firm) -> Attempt:
    customer = firm.bank.holder(funds=ABOVE)
    sale = pay_one(firm.bank.context, firm.bank.instruction(customer, firm.wallet.account, ABOVE))
    firm.controlled()
    payment, token = firm.signed(customer.account, kind=TransferKind.REFUND, reference=sale.id)
    return payment, token, lambda: said(lambda: refunds.refund(firm.bank.context, token))


def exchange_out(firm: Firm) -> Attempt:
    firm.controlled()
    payment, token = firm.signed(firm.bank.vault, kind=TransferKind.EXCHANGE_OUT)
    return payment, token, lambda: said(lambda: exchange.exchange_out(firm.bank.context, token))


def closure(firm: Firm) -> Attempt:
    firm.controlled()
    change, balance = firm.bank.new_id(), firm.bank.balance(firm.wallet)
    payment, token = firm.signed(firm.bank.vault, balance, kind=TransferKind.EXCHANGE_OUT)

    def close() -> str:
        closed = closing.close_wallet(
            firm.bank.context,
            change,
            firm.wallet.wallet.id,
            instruction=token,
            accrued_interest=lambda context, wallet: 0,
        )
        return "final" if closed.change.state == "done" else closed.change.state

    return payment, token, lambda: said_str(close)


def said_str(work: Callable[[], str]) -> str:
    try:
        return work()
    except ProblemError as error:
        return error.refusal.value


def pooling(firm: Firm) -> Attempt:
    """The child is the company's too, and has such rules itself."""
    parent = firm.wallet
    firm.wallet = child_of(firm.bank, parent, funds=ABOVE)
    firm.controlled()
    payment, token = firm.signed(parent.account)
    return payment, token, lambda: said(lambda: families.pool(firm.bank.context, parent.wallet.id, [token])[0])


def charge(firm: Firm) -> Attempt:
    """Its instruction is made when it is charged, so nobody can approve it before: the bound is a limit."""
    firm.wallet, key = pushed(firm.bank, firm.wallet, firm.payee.account, total=10 * ABOVE, funds=ABOVE)
    firm.controlled()
    context, charge_id = firm.bank.context, firm.bank.new_id()

    def take() -> object:
        return families.charge(
            context, charge_id, firm.wallet.wallet.id, amount_minor=ABOVE, currency="CNY", secret=key.secret
        )

    return None, None, lambda: said(take)


def purse_issued(firm: Firm) -> Attempt:
    firm.controlled()
    return None, None, lambda: said(lambda: new_purse(firm.bank, firm.wallet))


def purse_loaded(firm: Firm) -> Attempt:
    purse: Purse = new_purse(firm.bank, firm.wallet)
    firm.controlled()
    token = fund_instruction(firm.bank, purse, 1)
    return None, None, lambda: said(lambda: offline.fund(firm.bank.context, token))


def program_funded(firm: Firm) -> Attempt:
    bank = firm.programs
    actors = bank.actors(firm.wallet, firm.payee, "courier")
    known = bank.propose(bank.request("prepaid-drip", actors, [1], quiet_days=14, subject="x"), actors)
    firm.controlled()
    return None, None, lambda: said(lambda: bank.fund(known, actors))


def voucher_funded(firm: Firm) -> Attempt:
    bank = firm.programs
    actors = bank.actors(firm.wallet, None)
    limits: dict[str, Any] = {"categories": ["5411"], "places": ["3301"], "step": "100"}
    request = bank.request("voucher-multi", actors, vouchers=[bank.voucher(firm.payee, 100)], **limits)
    known = bank.propose(request, actors)
    firm.controlled()
    return None, None, lambda: said(lambda: bank.fund(known, actors))


def code_shown(firm: Firm) -> Attempt:
    """Made on the device before the rules, and scanned after."""
    bank = firm.bank
    request = requests.create_request(
        bank.context,
        bank.new_id(),
        wallet_id=firm.payee.wallet.id,
        currency="CNY",
        terms=Terms(1, None, None, False),
        payer_account=None,
        payer_institution=None,
        payee_name="Teahouse",
        description="",
        payee_reference="",
        expires_at=bank.clock() + timedelta(hours=1),
    )
    code = make_payer_code(
        key=firm.wallet.key,
        institution=bank.context.participant,
        vault=bank.vault,
        ledger="cny",
        currency="CNY",
        account=firm.wallet.account,
        cap_minor=1,
        valid_until=bank.clock() + timedelta(seconds=60),
        hold=bank.new_id(),
    )
    firm.controlled()
    redemption = CodeRedemption(code=code, document=request.document)
    return None, None, lambda: said(lambda: payer_codes.accept(bank.context, redemption))


PAYMENTS: dict[Callable[[Firm], Attempt], set[str]] = {
    push: {"create_payment"},
    batch: {"create_payment_batch"},
    payroll: {"start_bulk_file", "add_bulk_lines", "create_bulk_file"},
    standing_order: {"create_schedule", "prolong_schedule"},
    request_approved: {"approve_request"},
    refund: {"create_refund"},
    exchange_out: {"create_exchange_out"},
    closure: {"close_wallet"},
    pooling: {"pool_children"},
    charge: {"create_charge"},
}
"""Doors that end as a payment: it needs an approval. -> the operations of the API."""
OTHERS: dict[Callable[[Firm], Attempt], set[str]] = {
    purse_issued: {"create_purse"},
    purse_loaded: {"create_purse_funding"},
    program_funded: {"create_program", "fund_program"},
    voucher_funded: set(),
    code_shown: {"accept_payer_code", "redeem_payer_code"},
}
"""Doors that ask for one signature only: closed, whatever the amount."""
TAKES_NOTHING_OUT = {
    "only says or asks": {
        "approve_unmask",
        "check_bulk_file",
        "create_alias",
        "create_customer",
        "create_payment_request",
        "create_webhook_endpoint",
        "cancel_bulk_file",
        "cancel_payment_request",
        "cancel_schedule",
        "cancel_scheduled_payment",
        "cancel_wallet_closure",
        "decline_request",
        "deliver_request",
        "disable_webhook_endpoint",
        "disclose_unmasked",
        "enable_webhook_endpoint",
        "erase_customer",
        "list_schedule_dates",
        "look_up_alias",
        "make_alias_default",
        "order_unmask",
        "preview_program",
        "read_code",
        "register_corporate",
        "register_merchant",
        "remove_alias",
        "replay_webhooks",
        "show_request",
        "take_card_revocations",
        "take_request_decline",
        "verify_alias",
    },
    "opens, closes or bounds a wallet; a key that it adds is no signatory's": {
        "change_customer_evidence",
        "change_wallet_class",
        "change_wallet_device",
        "close_child_wallet",
        "object_to_announced_key",
        "open_child_wallet",
        "open_wallet",
        "recover_wallet_key",
        "register_card",
        "report_card",
        "report_purse_lost",
        "resume_wallet",
        "revoke_child_wallet",
        "set_child_caps",
        "set_wallet_caps",
        "suspend_wallet",
    },
    "is the second signature, or the rules themselves, which two persons sign": {
        "approve_payments",
        "set_payment_control",
        "withdraw_approvals",
    },
    "brings money in": {"create_exchange_in", "run_interest"},
    "moves what was held or loaded before the rules were set": {
        "create_program_statement",
        "show_program_secret",
        "spend_voucher",
        "sync_purses",
        "take_merchant_statement",
    },
    "moves the institution's own money": {"authorise_legs", "register_settlement_instructions"},
}


def nothing_moved(firm: Firm, before: int) -> None:
    assert firm.bank.balance(firm.wallet) == before


@pytest.mark.parametrize("door", PAYMENTS, ids=lambda door: door.__name__)
def test_a_payment_above_the_bound_needs_a_second_person(
    bank: ProgramBank, monkeypatch: pytest.MonkeyPatch, door: Callable[[Firm], Attempt]
) -> None:
    refused = "single-limit-exceeded" if door is charge else "approval-needed"
    firm = Firm(bank)
    payment, token, attempt = door(firm)
    before = bank.balance(firm.wallet)
    assert attempt() == refused
    nothing_moved(firm, before)

    with monkeypatch.context() as patched:  # nobody but the database knows of the rules
        no_rules(bank, patched)
        other = Firm(bank)
        _, _, alone = door(other)
        before = bank.balance(other.wallet)
        assert alone() == refused
        nothing_moved(other, before)

    if door is not charge:
        firm = Firm(bank)
        payment, token, attempt = door(firm)
        assert payment is not None and token is not None
        firm.approve(payment, token, firm.director)
        before = bank.balance(firm.wallet)
        assert attempt() in ("final", "booked", "executed")
        assert bank.balance(firm.wallet) < before


@pytest.mark.parametrize("door", OTHERS, ids=lambda door: door.__name__)
def test_what_asks_for_one_signature_only_is_closed(
    bank: ProgramBank,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    door: Callable[[Firm], Attempt],
) -> None:
    firm = Firm(bank)
    _, _, attempt = door(firm)
    before = bank.balance(firm.wallet)
    assert attempt() == "kind-not-allowed"
    nothing_moved(firm, before)
    monkeypatch.setattr("wallet.usecases.own_rules.store.accounts_with_rules", lambda *arguments: (set(), set()))
    if door is purse_issued:
        attempt()  # an empty purse holds nothing; loading it is the next door
        return
    caplog.clear()
    assert attempt() == "kind-not-allowed"
    assert "the database alone has refused: pays_by_payments_i8" in caplog.text
    nothing_moved(firm, before)


def test_every_operation_is_a_door_or_takes_nothing_out() -> None:
    doors = set().union(*PAYMENTS.values(), *OTHERS.values())
    others = set().union(*TAKES_NOTHING_OUT.values())
    assert not doors & others
    document = path_of("wallet").read_text(encoding="utf-8")  # `tests/api/test_openapi.py` holds it to the code
    methods = re.split(r"^    (get|put|post|delete|patch):$", document, flags=re.MULTILINE)[1:]
    found = zip(methods[::2], methods[1::2], strict=True)
    names = [(method, re.findall(r"^      operationId: (\w+)$", text, re.MULTILINE)) for method, text in found]
    assert all(len(each) == 1 for _, each in names)
    assert doors | others == {each[0] for method, each in names if method != "get"}


def test_every_table_with_signed_instructions_is_guarded(bank: ProgramBank) -> None:
    """Guarded by a trigger, or each instruction is copied into `payment` before it is sent anywhere."""
    copied = {"bulk_line", "card_counter", "schedule_payment"}
    with bank.database.engine.connect() as connection:
        tables = set(
            connection.execute(
                sa.text(
                    "SELECT table_name FROM information_schema.columns"
                    " WHERE table_schema = 'public' AND column_name = 'instruction'"
                )
            ).scalars()
        )
        guarded = set(
            connection.execute(
                sa.text(
                    "SELECT DISTINCT event_object_table FROM information_schema.triggers"
                    " WHERE trigger_name IN ('pays_by_payments_i8', 'payment_approved_i8')"
                    " UNION SELECT relname FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid"
                    " WHERE tgname = 'payment_approved_i8'"
                )
            ).scalars()
        )
    assert guarded == {"payment", "program_hold", "purse_funding", "redemption"}
    assert tables == guarded | copied


def test_the_services_role_cannot_write_what_the_database_counts(bank: ProgramBank) -> None:
    """Nor take a row out: what passed on one signature goes only with its payment."""
    for table in ("payment_alone", "capped_wallet", "spent_day"):
        for statement in (f"DELETE FROM {table}", f"INSERT INTO {table} SELECT * FROM {table}"):
            refused = pytest.raises(sa.exc.ProgrammingError, match="permission denied")
            with refused, bank.context.database.engine.begin() as connection:
                connection.execute(sa.text(statement))


def test_a_key_that_one_person_adds_signs_nothing(bank: ProgramBank) -> None:
    firm, added = Firm(bank), PrivateKey.generate()
    firm.controlled()
    keys = json.dumps({added.public.thumbprint: added.public.to_jwk()})
    with bank.database.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE wallet SET other_device_keys = CAST(:keys AS jsonb) WHERE id = :id"),
            {"keys": keys, "id": firm.wallet.wallet.id},
        )
    token = bank.instruction(firm.wallet, firm.payee.account, 1, key=added)
    assert said(lambda: pay_one(bank.context, token)) == "signatory-unknown"
