"""I9. Goal: what a child spends, and what is spent under a holder's own caps, is held to them twice: by the service's
counts, and by the database's own, which add up every row that counts.
Method: the use cases over PostgreSQL and fake ledgers. The service's rules are taken out, so that only the triggers are
left; long random histories, after which both counts are the same; real threads.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from typing import Any, cast
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from kernel.client import ServiceUnreachable
from kernel.database import Database
from kernel.errors import ProblemError
from ledger.contract import LedgerRefusal, TransferItem, TransferKind, TransferTerms
from tests.programs_world import ProgramBank
from tests.purse_world import fund_instruction, new_purse
from tests.store.test_wallet_families import child_of
from tests.wallet_bank import Bank, Holder
from wallet.contract.requests import CodeRedemption
from wallet.domain import lifecycle as lifecycle_rules
from wallet.domain.families import Child, ChildCaps, ChildUsage
from wallet.domain.limits import Caps
from wallet.domain.payer_holds import make_payer_code
from wallet.domain.requests import Terms
from wallet.store.schema import metadata as isolated
from wallet.usecases import families, lifecycle, offline, payer_codes, program_books, program_steps, requests
from wallet.usecases.pay import Declined, pay, pay_one
from wallet.usecases.program_pass import resume_programs
from wallet.usecases.wallets import find_wallet

DAY = timedelta(days=1)


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[ProgramBank]:
    database = Database(fresh_database("wallet"), application_name="test")
    made = ProgramBank(database)
    made.ledger.peers[made.context.participant] = made.context.key.public
    yield made
    database.close()


def said(bank: Bank, payer: Holder, credit: int, amount: int) -> str:
    outcome = pay(bank.context, [bank.instruction(payer, credit, amount)])[0]
    if isinstance(outcome, Declined):
        return f"{outcome.refusal.value} {outcome.detail}"
    return outcome.refusal or outcome.state


def by_database(what: str) -> str:
    return f"{what} the database counts more than the wallet's own cap"


def counted(bank: Bank, wallet: UUID) -> dict[date, tuple[int, int]]:
    """The database's count: day -> (all, towards a child's caps)."""
    with bank.database.engine.connect() as connection:
        query = sa.text("SELECT day, spent_minor, child_minor FROM spent_day WHERE wallet_id = :wallet")
        return {day: (spent, child) for day, spent, child in connection.execute(query, {"wallet": wallet})}


def counts_agree(bank: Bank, holder: Holder) -> tuple[int, int]:
    """(of the day, of the year): the service's count, which is the database's too."""
    usage = find_wallet(bank.context, holder.wallet.id).usage
    days = counted(bank, holder.wallet.id)
    found = days.get(usage.day, (0, 0))[0], sum(spent for day, (spent, _) in days.items() if day.year == usage.day.year)
    assert found == (usage.day_minor, usage.year_minor)
    return found


def no_rules_of_children(monkeypatch: pytest.MonkeyPatch) -> None:
    def allow(child: Child, **values: Any) -> ChildUsage:
        return child.usage

    monkeypatch.setattr("wallet.usecases.own_rules.families.decide_transfer", allow)


def no_own_caps(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_class(pack: Any, wallet_class: Any, **values: Any) -> Caps:
        return lifecycle_rules.caps_in_force(pack, wallet_class, changing_to=None, own=Caps())

    for module in ("pay", "offline", "payer_codes", "program_funding"):
        monkeypatch.setattr(f"wallet.usecases.{module}.caps_in_force", of_class)


def set_caps(bank: Bank, holder: Holder, **caps: int) -> None:
    lifecycle.set_caps(bank.context, bank.new_id(), holder.wallet.id, Caps(**caps), order=None)


def test_the_database_alone_holds_a_child_to_its_caps(bank: ProgramBank, monkeypatch: pytest.MonkeyPatch) -> None:
    parent, payee = bank.holder(), bank.holder()
    child = child_of(bank, parent, ChildCaps(None, 100, 250, 400), funds=10_000)
    no_rules_of_children(monkeypatch)
    assert said(bank, child, payee.account, 101) == by_database("single-limit-exceeded")
    assert [said(bank, child, payee.account, 100) for _ in range(2)] == ["final", "final"]
    assert said(bank, child, payee.account, 51) == by_database("day-limit-exceeded")
    assert said(bank, child, payee.account, 50) == "final"
    assert said(bank, child, parent.account, 5_000) == "final", "what goes back to the parent counts towards nothing"
    bank.clock.advance(DAY)
    assert said(bank, child, payee.account, 100) == "final"
    assert said(bank, child, payee.account, 51) == by_database("child-limit-exceeded")
    assert said(bank, child, payee.account, 50) == "final"
    batch = [bank.instruction(child, payee.account, 1), bank.instruction(bank.holder(funds=5), payee.account, 5)]
    outcomes = pay(bank.context, batch)
    assert [isinstance(item, Declined) for item in outcomes] == [True, False], "nobody else's payment waits for it"


def test_the_database_alone_holds_a_holder_to_his_own_caps(bank: ProgramBank, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was spent before the cap was set counts, as the service counts it."""
    payer, payee = bank.holder(funds=10_000), bank.holder()
    assert said(bank, payer, payee.account, 300) == "final"
    bank.clock.advance(DAY)
    assert said(bank, payer, payee.account, 100) == "final"
    set_caps(bank, payer, single_max_minor=200, day_max_minor=300, year_max_minor=700)
    no_own_caps(monkeypatch)
    assert said(bank, payer, payee.account, 201) == by_database("single-limit-exceeded")
    assert said(bank, payer, payee.account, 200) == "final"
    assert said(bank, payer, payee.account, 1) == by_database("day-limit-exceeded")
    bank.clock.advance(DAY)
    assert said(bank, payer, payee.account, 101) == by_database("year-limit-exceeded")
    assert said(bank, payer, payee.account, 100) == "final"
    assert counts_agree(bank, payer) == (100, 700)
    bank.clock.advance(365 * DAY)
    assert said(bank, payer, payee.account, 101) == "final"


@pytest.mark.parametrize("is_child", [True, False], ids=["child", "holder"])
def test_the_database_alone_holds_payments_that_come_at_once(
    bank: ProgramBank, monkeypatch: pytest.MonkeyPatch, is_child: bool
) -> None:
    payee = bank.holder()
    if is_child:
        payer = child_of(bank, bank.holder(), ChildCaps(day_max_minor=500), funds=10_000)
        no_rules_of_children(monkeypatch)
    else:
        payer = bank.holder(funds=10_000)
        set_caps(bank, payer, day_max_minor=500)
        no_own_caps(monkeypatch)
    tokens = [bank.instruction(payer, payee.account, 100) for _ in range(12)]
    with ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(lambda token: pay(bank.context, [token])[0], tokens))
    assert sum(not isinstance(item, Declined) for item in outcomes) == 5
    assert bank.balance(payee) == 500


def test_every_way_of_spending_counts_and_what_returns_does_not(bank: ProgramBank) -> None:
    """Purse, program, code, payment: the database's count is the service's at each step, from before the cap on."""
    holder, payee = bank.holder(funds=100_000), bank.holder()
    actors = bank.actors(holder, payee, "courier")

    def drip(amounts: list[int]) -> Any:
        return bank.request("prepaid-drip", actors, amounts, quiet_days=14, subject="x")

    purse = new_purse(bank, holder)
    offline.fund(bank.context, fund_instruction(bank, purse, 30))
    before = bank.funded(drip([5, 7]), actors)
    set_caps(bank, holder, single_max_minor=5_000, day_max_minor=20_000)
    assert counts_agree(bank, holder)[0] == 42
    bank.say(before, actors, "payer", "stop")
    assert counts_agree(bank, holder)[0] == 30
    known = bank.funded(drip([100, 200]), actors)
    offline.fund(bank.context, fund_instruction(bank, purse, 40))
    assert said(bank, holder, payee.account, 50) == "final"
    assert counts_agree(bank, holder)[0] == 30 + 300 + 40 + 50
    with suppress(ProblemError):  # refused by the ledger: given back
        bank.ledger.before_call = lambda method: bank.ledger.fund(holder.account, -bank.balance(holder))
        offline.fund(bank.context, fund_instruction(bank, purse, 60))
    bank.ledger.before_call = lambda method: None
    bank.ledger.fund(holder.account, 10_000)
    assert counts_agree(bank, holder)[0] == 420
    bank.clock.advance(DAY)
    bank.say(known, actors, "payer", "stop")  # yesterday's hold returns: the year's count goes down, not today's
    assert said(bank, holder, payee.account, 1) == "final"
    assert counts_agree(bank, holder) == (1, 121)
    redeem(bank, holder, payee, 70)
    assert counts_agree(bank, holder) == (71, 191)


def redeem(bank: ProgramBank, holder: Holder, payee: Holder, amount: int) -> None:
    """The fake ledger posts no part of a hold, so the code's chain stays open: it counts from the start."""
    now = bank.clock()
    request = requests.create_request(
        bank.context,
        bank.new_id(),
        wallet_id=payee.wallet.id,
        currency="CNY",
        terms=Terms(amount, None, None, False),
        payer_account=None,
        payer_institution=None,
        payee_name="Teahouse",
        description="",
        payee_reference="",
        expires_at=now + timedelta(hours=1),
    )
    code = make_payer_code(
        key=holder.key,
        institution=bank.context.participant,
        vault=bank.vault,
        ledger="cny",
        currency="CNY",
        account=holder.account,
        cap_minor=2 * amount,
        valid_until=now + timedelta(seconds=60),
        hold=bank.new_id(),
    )
    bank.ledger.lose_answers = 1
    bank.ledger.unreachable = True
    with pytest.raises(ProblemError) as said:
        payer_codes.accept(bank.context, CodeRedemption(code=code, document=request.document))
    bank.ledger.lose_answers, bank.ledger.unreachable = 0, False
    if said.value.refusal is not LedgerRefusal.OUTCOME_UNKNOWN:
        raise said.value


def test_the_change_of_a_purchase_has_been_spent(bank: ProgramBank) -> None:
    """Its holds were posted: the ledger gives none of it back to the day, nor do the two counts. The rest returns."""
    holder, worker, shop = bank.holder(funds=100_000), bank.holder(), bank.merchant()
    set_caps(bank, holder, single_max_minor=5_000, day_max_minor=20_000)
    actors, voucher = bank.actors(holder, None), bank.voucher(worker, 5_000)
    meals: dict[str, Any] = {"categories": ["5411"], "places": ["3301"], "step": "500"}
    known = bank.funded(bank.request("voucher-multi", actors, vouchers=[voucher], days=1, **meals), actors)
    assert bank.spend(voucher.voucher, shop, 1_200, worker).change_minor == 300
    found = program_books.find(bank.context, known.program.id).program
    assert (found.released_minor, found.returned_minor, found.change_minor) == (1_200, 300, 300)
    at_ledger = bank.ledger.accounts[holder.account]
    assert counts_agree(bank, holder) == (5_000, 5_000) == (at_ledger.spent_day, at_ledger.spent_year)
    bank.clock.advance(DAY)
    resume_programs(bank.context)
    assert program_books.find(bank.context, known.program.id).program.state == "finished"
    assert counts_agree(bank, holder)[1] == 1_500 == at_ledger.spent_year


def test_the_year_ends_at_midnight_in_shanghai_in_both_counts(
    bank: ProgramBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the server's own calendar says; and what returns of the old year gives the new one no allowance."""
    bank.clock.advance(datetime(2026, 12, 31, 15, 59, 59, tzinfo=UTC) - bank.clock())
    payer, payee = bank.holder(funds=10_000), bank.holder()
    set_caps(bank, payer, single_max_minor=600, day_max_minor=600, year_max_minor=600)
    actors = bank.actors(payer, payee, "courier")
    known = bank.funded(bank.request("prepaid-drip", actors, [100, 200], quiet_days=14, subject="x"), actors)
    assert said(bank, payer, payee.account, 300) == "final"
    assert said(bank, payer, payee.account, 1) == "day-limit-exceeded class II of ecny-2021-06"
    bank.clock.advance(timedelta(seconds=1))
    assert said(bank, payer, payee.account, 500) == "final"
    bank.say(known, actors, "payer", "stop")
    assert counts_agree(bank, payer) == (500, 500)
    assert {day: spent for day, (spent, _) in counted(bank, payer.wallet.id).items()} == {
        date(2026, 12, 31): 300,
        date(2027, 1, 1): 500,
    }
    no_own_caps(monkeypatch)
    assert said(bank, payer, payee.account, 101) == by_database("day-limit-exceeded")
    assert said(bank, payer, payee.account, 100) == "final"
    bank.clock.advance(DAY - timedelta(seconds=1))
    assert said(bank, payer, payee.account, 1) == by_database("day-limit-exceeded"), "the last second of the day"
    bank.clock.advance(timedelta(seconds=1))
    assert said(bank, payer, payee.account, 1) == by_database("year-limit-exceeded")


@pytest.mark.parametrize(
    "door",
    ["purse", "program", "code"],
)
def test_the_database_alone_holds_the_other_ways_too(
    bank: ProgramBank, monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    holder, payee = bank.holder(funds=100_000), bank.holder()
    set_caps(bank, holder, day_max_minor=100)
    no_own_caps(monkeypatch)
    assert said(bank, holder, payee.account, 60) == "final"
    purse, actors = new_purse(bank, holder), bank.actors(holder, payee, "courier")
    known = bank.propose(bank.request("prepaid-drip", actors, [20, 21], quiet_days=14, subject="x"), actors)
    ways: dict[str, Callable[[], object]] = {
        "purse": lambda: offline.fund(bank.context, fund_instruction(bank, purse, 41)),
        "program": lambda: bank.fund(known, actors),
        "code": lambda: redeem(bank, holder, payee, 41),
    }
    with pytest.raises(ProblemError) as refused:
        ways[door]()
    assert (refused.value.refusal.value, refused.value.detail) == tuple(by_database("day-limit-exceeded").split(" ", 1))
    assert counted(bank, holder.wallet.id)[date(2026, 6, 15)] == (60, 60)
    assert bank.balance(holder) == 100_000 - 60, "nothing half done"


def test_what_is_booked_of_a_refused_program_counts_after_all(bank: ProgramBank) -> None:
    """The funding is refused and given back; then a late copy of its holds is booked, and the counterpart shows its
    secret at the ledger before the service has voided them. Spent is spent, by both counts."""
    holder, payee = bank.holder(funds=10), bank.holder()
    set_caps(bank, holder, day_max_minor=1_000)
    secret = b"the counterpart's".ljust(32)
    actors = bank.actors(holder, payee)
    lock = sha256(secret).hexdigest()
    known = bank.propose(bank.request("delivery-versus-payment", actors, [400], secret_hash=lock), actors)

    def silent(method: str) -> None:
        raise ServiceUnreachable("no answer")

    bank.ledger.before_call = lambda method: setattr(bank.ledger, "before_call", silent)
    with pytest.raises(ProblemError, match="insufficient-funds"):
        bank.fund(known, actors)
    found = program_books.find(bank.context, known.program.id)
    assert (found.program.state, counts_agree(bank, holder)) == ("refusing", (0, 0))
    bank.ledger.before_call = lambda method: None
    bank.ledger.fund(holder.account, 1_000)
    bank.ledger.submit([TransferItem(instruction=part.instruction) for part in found.parts])
    (part,) = found.parts
    post = TransferTerms(id=bank.new_id(), kind=TransferKind.POST, currency="CNY", hold=part.id, secret=secret)
    bank.ledger.submit([TransferItem(terms=post)])
    program = program_steps.step(bank.context, known.program.id).program
    assert (program.state, program.released_minor, program.counted_on) == ("finished", 400, date(2026, 6, 15))
    assert (bank.balance(payee), counts_agree(bank, holder)) == (400, (400, 400))
    assert said(bank, holder, payee.account, 600) == "final"
    assert said(bank, holder, payee.account, 1).startswith("day-limit-exceeded")


def test_no_row_finds_another_days_allowance(bank: ProgramBank) -> None:
    """What is dated otherwise than it was sent, or moved to another day, wallet or payee, is refused by the database,
    whatever has become of it; and a program is counted, for it begins as a proposal."""
    parent, payee = bank.holder(), bank.holder()
    child, other = (child_of(bank, parent, ChildCaps(None, None, 100, None), funds=1_000) for _ in range(2))
    assert said(bank, child, payee.account, 100) == "final"
    assert said(bank, child, parent.account, 300) == "final"
    assert said(bank, other, payee.account, 60) == "final"
    actors = bank.actors(bank.holder(), payee, "courier")
    known = bank.propose(bank.request("prepaid-drip", actors, [20], quiet_days=14, subject="x"), actors)
    of_child = f"wallet_id = '{child.wallet.id}'"
    spent = f"{of_child} AND amount_minor = 100"
    pooled = f"{of_child} AND amount_minor = 300"
    columns = ", ".join(column.name for column in isolated.tables["program"].columns if column.name != "id")
    for change, constraint in (
        (f"UPDATE payment SET counted_on = '2026-06-18' WHERE {spent}", "spent_dated_i9"),
        (f"UPDATE payment SET counted_on = '2026-06-14' WHERE {spent}", "spent_forward_i9"),
        (f"UPDATE payment SET wallet_id = '{other.wallet.id}' WHERE {spent}", "spent_day_i9"),
        (
            f"UPDATE payment SET credit_account = {payee.account} WHERE {pooled}",
            "spent_day_i9",
        ),
        (
            f"INSERT INTO program (id, {columns}) SELECT '{bank.new_id()}', {columns} FROM"
            f" (SELECT {columns.replace('counted_on', 'DATE ' + repr('2026-06-15') + ' AS counted_on')} FROM program"
            f" WHERE id = '{known.program.id}') AS made",
            "program_begins_proposed_i9",
        ),
    ):
        with pytest.raises(IntegrityError) as refused, bank.database.engine.begin() as connection:
            connection.execute(sa.text(change))
        assert cast(Any, refused.value.orig).diag.constraint_name == constraint, change
    with bank.database.engine.begin() as connection:  # the day after is a day on which it may have been sent
        connection.execute(sa.text(f"UPDATE payment SET counted_on = '2026-06-16' WHERE {of_child}"))
    assert counted(bank, child.wallet.id) == {date(2026, 6, 15): (0, 0), date(2026, 6, 16): (400, 100)}


def test_a_wallet_that_begins_with_caps_is_counted_from_then_on(bank: ProgramBank) -> None:
    template, payee = bank.holder(), bank.holder()
    key = bank.holder(funds=500)
    columns = [column.name for column in isolated.tables["wallet"].columns]
    made = {"id": ":id", "account": "12345", "opening_id": ":id", "device_thumbprint": "'none'", "day_max_minor": "100"}
    names, values = ", ".join(columns), ", ".join(made.get(name, name) for name in columns)
    with bank.database.engine.begin() as connection:
        copied = f"INSERT INTO wallet ({names}) SELECT {values} FROM wallet WHERE id = '{template.wallet.id}'"
        connection.execute(sa.text(copied), {"id": (new := bank.new_id())})
    assert counted(bank, new) == {}
    assert said(bank, key, payee.account, 101) == "final"
    with pytest.raises(IntegrityError, match="own is passed"), bank.database.engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE payment SET wallet_id = '{new}'"))


def test_booked_after_all_counts_beyond_the_cap_and_leaves_nothing(bank: ProgramBank) -> None:
    """Facts are counted whatever the caps say: no cap takes back what the ledger has booked."""
    child = child_of(bank, bank.holder(), ChildCaps(day_max_minor=100), funds=1_000)
    payee = bank.holder()
    assert said(bank, child, payee.account, 100) == "final"
    late = pay_one(bank.context, bank.instruction(bank.holder(funds=50), payee.account, 50))
    with bank.database.engine.begin() as connection:
        move = "UPDATE payment SET state = 'refused', booked_at = NULL, seq = NULL, counted_on = NULL, refusal = 'x',"
        values = {"wallet": child.wallet.id, "id": late.id}
        connection.execute(sa.text(f"{move} wallet_id = :wallet WHERE id = :id"), values)
        back = "UPDATE payment SET state = 'final', booked_at = now(), counted_on = '2026-06-15', refusal = NULL"
        connection.execute(sa.text(f"{back} WHERE id = :id"), values)
    assert counted(bank, child.wallet.id) == {date(2026, 6, 15): (150, 150)}
    again = "UPDATE payment SET amount_minor = amount_minor + 1, state = 'initiated', booked_at = NULL WHERE id = :id"
    with pytest.raises(IntegrityError, match="own is passed"), bank.database.engine.begin() as connection:
        connection.execute(sa.text(again), values)
    early = "UPDATE payment SET state = 'initiated', counted_on = '2026-06-14', booked_at = NULL, refusal = NULL"
    with bank.database.engine.begin() as connection:
        connection.execute(sa.text(f"{move} wallet_id = :wallet WHERE id = :id"), values)
    with pytest.raises(IntegrityError, match="own is passed"), bank.database.engine.begin() as connection:
        connection.execute(sa.text(f"{early} WHERE id = :id"), values)  # a day that is over has no allowance left


@pytest.mark.parametrize("seed", [1, 2])
def test_both_counts_agree_after_any_history(bank: ProgramBank, seed: int) -> None:
    """Payments of a child, refused, lost, repeated, forged and pooled, over days, while caps change."""
    chance = random.Random(seed)
    parent, payee = bank.holder(), bank.holder()
    child = child_of(bank, parent, ChildCaps(None, 90, 300, 1_500), funds=2_000)
    sent: list[str] = []
    for _ in range(50):
        step = chance.randrange(12)
        if step == 0:
            bank.clock.advance(chance.choice([DAY, timedelta(hours=7), 200 * DAY]))
        elif step == 1:
            known = families.find_child(bank.context, parent.wallet.id, child.wallet.id).child
            caps = replace(known.caps, day_max_minor=chance.choice([50, 300, None]))
            families.set_caps(bank.context, parent.wallet.id, child.wallet.id, caps, version=known.version)
        elif step == 2:
            set_caps_lower(bank, child, chance.choice([100, 200, 400]))
        elif step == 3 and sent:
            pay(bank.context, [chance.choice(sent)])
        else:
            bank.ledger.lose_answers = 1 if step == 4 else 0
            is_short = step == 5
            if is_short:
                bank.ledger.fund(child.account, -bank.balance(child))
            credit = parent.account if step == 6 else payee.account
            key = payee.key if step == 7 else None
            sent.append(bank.instruction(child, credit, chance.randrange(1, 100), key=key))
            pay(bank.context, sent[-1:])
            bank.ledger.lose_answers = 0
            bank.ledger.fund(child.account, 500)
        usage = families.find_child(bank.context, parent.wallet.id, child.wallet.id).child.usage
        days = counted(bank, child.wallet.id)
        assert (days.get(usage.day, (0, 0))[1], sum(of_child for _, of_child in days.values())) == (
            usage.day_minor,
            usage.total_minor,
        )
        counts_agree(bank, child)
    assert len(sent) > 20 and usage.total_minor > 0


def set_caps_lower(bank: Bank, holder: Holder, day: int) -> None:
    own = find_wallet(bank.context, holder.wallet.id).own_caps.day_max_minor
    set_caps(bank, holder, day_max_minor=min(day, own or day))
