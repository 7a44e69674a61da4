"""Goal: a payroll books each line at most once, and only what its payer signed, whatever is repeated or dies;
nothing is booked before all announced lines are there.
Method: the use cases on a real PostgreSQL and a fake ledger; faults and deaths between every two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from hashlib import sha256
from threading import Barrier
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from kernel import ids
from kernel.database import Database
from kernel.errors import ProblemError
from ledger.contract import TransferKind
from tests.wallet_bank import Bank, Holder
from wallet.domain.bulk import line_transfer_id
from wallet.domain.rules import WalletClass
from wallet.store.bulk import BulkLine
from wallet.usecases import bulk
from wallet.usecases.bulk import SignedLine


class Killed(BaseException):
    """Nothing may catch it, as nothing catches SIGKILL."""


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[Bank]:
    database = Database(fresh_database("wallet"), application_name="test")
    yield Bank(database)
    database.close()


@dataclass
class Payroll:
    bank: Bank
    payer: Holder
    payees: list[Holder]
    amounts: list[int]
    file: UUID

    def sign(self, *, key: object = None, valid_for: timedelta = timedelta(hours=1)) -> list[SignedLine]:
        return [
            SignedLine(
                number,
                f"l{number}",
                self.bank.instruction(
                    self.payer,
                    self.payees[number % len(self.payees)].account,
                    amount,
                    id=line_transfer_id(self.file, f"l{number}"),
                    key=key,  # type: ignore[arg-type]
                    valid_for=valid_for,
                ),
            )
            for number, amount in enumerate(self.amounts, 2)
        ]

    def register(self, *, again: bool = False, content: bytes = b"content") -> None:
        bulk.register_file(
            self.bank.context,
            self.file,
            wallet_id=self.payer.wallet.id,
            content_sha256=sha256(content).digest(),
            lines_total=len(self.amounts),
            total_minor=sum(self.amounts),
            again=again,
        )

    def start(self) -> None:
        self.register()
        bulk.receive_lines(self.bank.context, self.file, self.sign())
        bulk.start_file(self.bank.context, self.file)

    def lines(self) -> list[BulkLine]:
        return bulk.page_of_lines(self.bank.context, self.file, after=0, limit=1000)

    def states(self) -> list[str]:
        return [line.refusal or line.state for line in self.lines()]

    def received(self) -> int:
        return sum(self.bank.balance(payee) for payee in self.payees)


def payroll(bank: Bank, amounts: list[int], *, funds: int = 10_000) -> Payroll:
    return Payroll(
        bank, bank.holder(WalletClass.I, funds=funds), [bank.holder() for _ in range(3)], amounts, bank.new_id()
    )


def run(bank: Bank) -> None:
    for _ in range(20):
        bank.clock.advance(timedelta(seconds=3))
        bulk.run_files(bank.context)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ProblemError) as caught:
        call()
    return caught.value.refusal.value


def test_lines_are_booked_in_order_and_each_has_its_result(bank: Bank) -> None:
    job = payroll(bank, [100, 200, 9_800, 50])
    job.start()
    run(bank)
    assert job.states() == ["booked", "booked", "insufficient-funds", "booked"]
    assert job.received() == 350
    seqs = [line.seq for line in job.lines() if line.seq is not None]
    assert seqs == sorted(seqs)
    assert bulk.find_file(bank.context, job.file).state == "finished"
    done = bulk.progress_of(bank.context, job.file)
    assert (done.booked, done.booked_minor, done.refused, done.refused_minor) == (3, 350, 1, 9_800)


def test_nothing_is_booked_before_lines_and_sum_are_what_was_announced(bank: Bank) -> None:
    job = payroll(bank, [100, 200])
    job.register()
    bulk.receive_lines(bank.context, job.file, job.sign()[:1])
    assert refusal(lambda: bulk.start_file(bank.context, job.file)) == "bulk-totals-mismatch"
    run(bank)
    assert job.received() == 0
    other = payroll(bank, [100, 200])
    other.register()
    other.amounts = [100, 201]
    bulk.receive_lines(bank.context, other.file, other.sign())
    assert refusal(lambda: bulk.start_file(bank.context, other.file)) == "bulk-totals-mismatch"
    third = other.sign()[0]
    assert refusal(lambda: bulk.receive_lines(bank.context, job.file, [third])) == "bulk-line-mismatch"


def test_more_lines_than_announced_are_refused(bank: Bank) -> None:
    job = payroll(bank, [100, 200])
    job.register()
    job.amounts.append(300)
    assert refusal(lambda: bulk.receive_lines(bank.context, job.file, job.sign())) == "bulk-totals-mismatch"
    assert job.lines() == []


def test_everything_may_be_repeated_and_each_line_books_once(bank: Bank) -> None:
    job = payroll(bank, [100, 200, 300])
    for _ in range(2):
        job.register()
        bulk.receive_lines(bank.context, job.file, job.sign())
    for _ in range(2):
        bulk.start_file(bank.context, job.file)
        run(bank)
        bulk.receive_lines(bank.context, job.file, job.sign())
    assert job.states() == ["booked"] * 3
    assert job.received() == 600


def test_same_content_twice_must_be_meant(bank: Bank) -> None:
    job = payroll(bank, [100])
    job.start()
    again = Payroll(bank, job.payer, job.payees, job.amounts, bank.new_id())
    assert refusal(again.register) == "bulk-file-repeated"
    again.register(again=True)
    job.file = again.file
    assert refusal(lambda: job.register(content=b"other")) == "bulk-file-exists"


def test_same_content_at_the_same_moment_must_be_meant_too(bank: Bank) -> None:
    job, gate = payroll(bank, [100]), Barrier(4)
    files = [replace(job, file=bank.new_id()) for _ in range(4)]

    def register(file: Payroll) -> str:
        gate.wait(10)
        try:
            file.register()
        except ProblemError as error:
            return error.refusal.value
        return "taken"

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(register, files)) == ["bulk-file-repeated"] * 3 + ["taken"]


def test_same_content_may_be_sent_after_the_first_was_cancelled(bank: Bank) -> None:
    job = payroll(bank, [100])
    job.register()
    assert bulk.cancel_file(bank.context, job.file).state == "cancelled"
    assert bulk.cancel_file(bank.context, job.file).state == "cancelled"
    assert refusal(lambda: bulk.start_file(bank.context, job.file)) == "bulk-file-closed"
    assert refusal(lambda: bulk.receive_lines(bank.context, job.file, job.sign())) == "bulk-file-closed"
    Payroll(bank, job.payer, job.payees, job.amounts, bank.new_id()).register()


def test_started_file_cannot_be_cancelled(bank: Bank) -> None:
    job = payroll(bank, [100])
    job.start()
    assert refusal(lambda: bulk.cancel_file(bank.context, job.file)) == "bulk-file-closed"


@pytest.mark.parametrize("fault", ["other-id", "other-payer", "refund", "other-amount", "same-number", "twice", "old"])
def test_line_that_is_not_the_payers_own_is_refused(bank: Bank, fault: str) -> None:
    job = payroll(bank, [100, 200])
    job.register()
    lines = job.sign()
    first = lines[0]
    if fault == "other-id":
        bad = SignedLine(2, "l2", bank.instruction(job.payer, job.payees[0].account, 100))
    elif fault == "other-payer":
        bad = SignedLine(
            2, "l2", bank.instruction(job.payees[0], job.payees[1].account, 100, id=line_transfer_id(job.file, "l2"))
        )
    elif fault == "refund":
        token = bank.instruction(
            job.payer,
            job.payees[0].account,
            100,
            id=line_transfer_id(job.file, "l2"),
            kind=TransferKind.REFUND,
            reference=bank.new_id(),
        )
        bad = SignedLine(2, "l2", token)
    elif fault == "other-amount":
        bulk.receive_lines(bank.context, job.file, lines)
        job.amounts = [101, 200]
        bad = job.sign()[0]
    elif fault == "same-number":
        bad = SignedLine(3, "l2", first.instruction)
        bulk.receive_lines(bank.context, job.file, lines[1:])
    elif fault == "twice":
        assert refusal(lambda: bulk.receive_lines(bank.context, job.file, [first, first])) == "bulk-line-mismatch"
        return
    else:
        bank.clock.advance(timedelta(hours=2))
        assert refusal(lambda: bulk.receive_lines(bank.context, job.file, [first])) == "instruction-expired"
        return
    assert refusal(lambda: bulk.receive_lines(bank.context, job.file, [bad])) == "bulk-line-mismatch"


def test_I8_line_signed_by_another_key_moves_nothing(bank: Bank) -> None:
    job = payroll(bank, [100, 200])
    job.register()
    bulk.receive_lines(bank.context, job.file, job.sign(key=job.payees[0].key))
    bulk.start_file(bank.context, job.file)
    run(bank)
    assert job.states() == ["instruction-invalid"] * 2
    assert job.received() == 0
    bulk.receive_lines(bank.context, job.file, job.sign())
    assert bulk.find_file(bank.context, job.file).state == "running"
    run(bank)
    assert job.states() == ["booked"] * 2


def test_refused_line_is_tried_again_with_a_new_signature_and_booked_ones_stay(bank: Bank) -> None:
    job = payroll(bank, [100, 200], funds=150)
    job.start()
    run(bank)
    assert job.states() == ["booked", "insufficient-funds"]
    bank.ledger.fund(job.payer.account, 1_000)
    bulk.receive_lines(bank.context, job.file, job.sign(valid_for=timedelta(hours=2)))
    run(bank)
    assert job.states() == ["booked", "booked"]
    assert job.received() == 300


def test_lost_answers_and_a_silent_ledger_only_delay(bank: Bank) -> None:
    job = payroll(bank, [100] * 5)
    job.start()
    bank.ledger.lose_answers = 1
    bulk.run_files(bank.context)
    assert job.states() == ["received"] * 5
    bank.ledger.unreachable = True
    run(bank)
    assert job.states() == ["received"] * 5
    bank.ledger.unreachable = False
    run(bank)
    assert job.states() == ["booked"] * 5
    assert job.received() == 500


@pytest.mark.parametrize("moment", ["before-the-ledger", "after-the-ledger", "before-the-result"])
def test_death_at_any_moment_is_resumed_and_pays_once(bank: Bank, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "CARRIED_TOGETHER_MAX", 2)
    job = payroll(bank, [100] * 7)
    job.start()
    for _ in range(4):  # dies in each batch
        with monkeypatch.context() as dying:
            if moment == "before-the-ledger":
                dying.setattr(bank.ledger, "submit", _kill)
            elif moment == "after-the-ledger":
                dying.setattr(bank.ledger, "_answer", _kill)
            else:
                dying.setattr(bulk.bulk, "conclude_lines", _kill)
            with pytest.raises(Killed):
                bulk.run_files(bank.context, at_start=True)
        bulk.run_files(bank.context, at_start=True)
    run(bank)
    assert job.states() == ["booked"] * 7
    assert job.received() == 700


def _kill(*_: object, **__: object) -> None:
    raise Killed


def test_I7_many_workers_at_once_book_each_line_once(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "CARRIED_TOGETHER_MAX", 10)
    jobs = [payroll(bank, [10] * 40) for _ in range(2)]
    for number, job in enumerate(jobs):
        job.register(content=bytes([number]))
        bulk.receive_lines(bank.context, job.file, job.sign())
        bulk.start_file(bank.context, job.file)
    with ThreadPoolExecutor(4) as pool:
        # at_start ignores claims: the workers do step on each other's feet
        list(pool.map(lambda number: bulk.run_files(bank.context, at_start=number % 2 == 0), range(60)))
    run(bank)
    assert [job.received() for job in jobs] == [400, 400]
    assert [set(job.states()) for job in jobs] == [{"booked"}, {"booked"}]


def test_I9_caps_bind_a_payroll_as_they_bind_payments(bank: Bank) -> None:
    payer = bank.holder(WalletClass.IV, funds=1_000_000)
    job = Payroll(bank, payer, [bank.holder()], [200_000, 200_000, 200_000, 200_001, 100_000], bank.new_id())
    job.start()
    run(bank)
    assert job.states() == ["booked", "booked", "day-limit-exceeded", "single-limit-exceeded", "booked"]


def test_dry_run_finds_every_fault_and_books_nothing(bank: Bank) -> None:
    payer, payee = bank.holder(WalletClass.I, funds=1_000), bank.holder()
    account, nobody = ids.show_account(payee.account), ids.show_account(999_999)
    rows = [
        f"a,{account},5.00,x",
        f"b,{nobody},1.00,x",
        "c,+8613800000000,1.00,x",
        f"a,{account},1.00,x",
        "d,acc,1.005,x",
        f"e,{account},5.01,x",
        f"f,{account},5.00,x",
    ]
    content = ("line_id,payee,amount,description\r\n" + "\r\n".join(rows)).encode()
    checked = bulk.check_file(bank.context, payer.wallet.id, content)
    assert [line.refusal for line in checked.lines] == [
        None,
        "payee-unknown",
        "payee-unknown",
        "line-repeated",
        "line-unreadable",
        "insufficient-funds",
        None,
    ]
    assert (checked.payable, checked.payable_minor, checked.available_minor) == (2, 1_000, 1_000)
    assert bank.balance(payer) == 1_000
    assert bulk.list_files(bank.context, payer.wallet.id, before=None, limit=10) == []
    assert refusal(lambda: bulk.check_file(bank.context, payer.wallet.id, b"no")) == "bulk-file-unreadable"


def test_payee_at_another_bank_is_asked_for_at_the_ledger(bank: Bank) -> None:
    payer = bank.holder(WalletClass.I, funds=1_000)
    elsewhere = ids.show_account(bank.vault)
    assert bulk.find_payees(bank.context, {elsewhere, ids.show_account(999_999)}) == {elsewhere: bank.vault}
    bank.ledger.unreachable = True
    assert refusal(lambda: bulk.find_payees(bank.context, {elsewhere})) == "service-unavailable"
    assert payer.wallet.state == "open"


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("UPDATE bulk_line SET amount_minor = 0", "bulk_line_amount_positive_ck"),
        ("UPDATE bulk_line SET booked_at = NULL", "bulk_line_booked_says_when_ck"),
        ("UPDATE bulk_line SET payment_id = (SELECT min(payment_id::text)::uuid FROM bulk_line)", "payment_i7"),
        ("UPDATE bulk_line SET line_id = 'x'", "bulk_line_line_id_uq"),
        ("UPDATE bulk_file SET finished_at = NULL", "bulk_file_finished_says_when_ck"),
        ("UPDATE bulk_file SET lines_total = 20001", "bulk_file_lines_bounded_ck"),
    ],
)
def test_tables_refuse_what_the_core_refuses(bank: Bank, statement: str, constraint: str) -> None:
    job = payroll(bank, [100, 100])
    job.start()
    run(bank)
    with pytest.raises(IntegrityError, match=constraint), bank.database.engine.begin() as connection:
        connection.execute(sa.text(statement))
