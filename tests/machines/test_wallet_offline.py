"""Goal: offline money under anything that can happen to it. No honest payee loses while the double spender's cap lasts;
money is conserved (the escrow is what is owed); every double spender whose payments were synced is named, with a proof
that verifies; no honest device is ever named; the loss by a device is at most its cap, and begins only when the purse
itself is empty; a named device redeems nothing, and its purse's rest goes to the vault first.
Method: a Hypothesis state machine. Honest devices run the real element; hacked ones run it too, on states rolled back
to any earlier time. Messages are copied, kept, lost and synced in any order, certificates expire, purses are settled.
Once over the pure books with a ledger of five integers, and once over the use cases, PostgreSQL and the fake ledger.
The model keeps who was paid what by whom, and adds it up afresh.
"""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from kernel import ids
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from tests.purse_world import Purse, funded_purse, load, seconds
from tests.wallet_bank import Bank
from wallet.domain.offline import element, messages
from wallet.domain.offline.books import BookedSpend, Books, PurseBook
from wallet.domain.offline.element import Device, PurseState, Step
from wallet.domain.offline.messages import Transfer, read_proof, read_transfer
from wallet.domain.offline.policy import Policy
from wallet.domain.offline.verify import Chain, verify_chain, verify_proof
from wallet.domain.offline.vocabulary import Disposition, PurseRefusal, Refused
from wallet.store.schema import metadata
from wallet.usecases import offline

CAP, SINGLE, LIFE, GRACE = 100, 80, 20_000, 5_000
POLICY = Policy(balance_max_minor=CAP, single_max_minor=SINGLE, hops_max=3, life_seconds=LIFE, grace_seconds=GRACE)
HONEST, HACKED = 3, 2
COUNT = HONEST + HACKED


@dataclass
class Arrived:
    """What a sync answered: `None` = refused."""

    credited: int | None
    refusal: PurseRefusal | None = None


class PureBank:
    """The books over one process's memory; the ledger is integers."""

    def __init__(self) -> None:
        self.key = PrivateKey.generate()
        self.now = 1_000_000
        self.books = Books()
        self.wallets: dict[int, int] = {}
        self.escrow = 0
        self.vault = 0
        self.proofs: dict[UUID, bytes] = {}
        self.certificates: dict[UUID, bytes] = {}
        self.keys = {"suite": self.key.suite, "sign": self.key.sign}

    def open(self, number: int) -> Purse:
        key, purse = PrivateKey.generate(), ids.new_uuid7()
        message = messages.sign_certificate(
            issuer="BKCHCNBJ",
            ledger="cny",
            currency="CNY",
            purse=purse,
            account=number + 1,
            key=key.public,
            balance_max_minor=CAP,
            single_max_minor=SINGLE,
            hops_max=POLICY.hops_max,
            not_before=self.now,
            not_after=self.now + LIFE,
            grace_seconds=GRACE,
            **self.keys,
        )
        certificate = messages.read_certificate(message)
        self.books.purses[purse] = PurseBook(purse, certificate.hash, number + 1, CAP, certificate.closes_at)
        self.certificates[purse] = message
        self.wallets[number + 1] = 0
        state = element.new_purse(message, self.key.public, Device(key.public, key.sign))
        assert isinstance(state, PurseState)
        return Purse(purse, key, state)

    def load(self, purse: Purse, amount: int) -> None:
        message = messages.sign_funding(
            purse=purse.id, transfer=ids.new_uuid7(), amount_minor=amount, issued_at=self.now, **self.keys
        )
        self.escrow += amount
        self.books.add_funding(messages.read_funding(message))
        purse.step(element.load(purse.state, message))

    def known(self, purse: Purse) -> int:
        return sum(source.left_minor for source in self.books.sources.values() if source.owner == purse.id)

    def sync(self, transfer: bytes) -> Arrived:
        chain = verify_chain(read_transfer(transfer), self.key.public, takes_conflicts=True)
        assert isinstance(chain, Chain), chain
        result = self.books.arrive(chain, now=self.now)[-1]
        for conflict in self.books.conflicts:
            certificate = self.certificates[conflict.purse]
            self.proofs.setdefault(conflict.purse, messages.write_proof(certificate, conflict.first, conflict.second))
        self._pay()
        return Arrived(result.credited_minor) if isinstance(result, BookedSpend) else Arrived(None, result.refusal)

    def settle(self) -> None:
        for purse in self.books.purses:
            self.books.close(purse, now=self.now)
        self._pay()

    def advance(self, by: int) -> None:
        self.now += by

    def wallet(self, purse: Purse) -> int:
        return self.wallets[self.books.purses[purse.id].account]

    def loss(self, purse: Purse) -> int:
        return self.books.purses[purse.id].loss_minor

    def net_cost(self) -> int:
        return -self.vault

    def proof(self, purse: Purse) -> bytes | None:
        return self.proofs.get(purse.id)

    def owed(self) -> tuple[int, int]:
        return self.escrow, self.books.claims_minor()

    def _pay(self) -> None:
        for payout in self.books.payouts:
            if payout.kind == "redeem":
                assert payout.account is not None
                self.escrow -= payout.amount_minor
                self.wallets[payout.account] += payout.amount_minor
            else:
                sign = 1 if payout.kind == "loss" else -1
                self.vault -= sign * payout.amount_minor
                self.escrow += sign * payout.amount_minor
        keys = [(payout.purse, payout.kind, payout.key) for payout in self.books.payouts]
        assert len(keys) == len(set(keys))
        self.books.payouts.clear()
        self.books.conflicts.clear()


class RealBank:
    """The use cases over PostgreSQL and the fake ledger, which loses an answer now and then."""

    def __init__(self, database: Database) -> None:
        with database.engine.begin() as connection:
            names = ", ".join(table.name for table in metadata.sorted_tables)
            connection.execute(sa.text(f"TRUNCATE {names} CASCADE"))
        self.bank = Bank(database)
        self.key = self.bank.context.key
        self._vault = self._vault_balance()
        self._faults = itertools.cycle([0, 0, 1])

    @property
    def now(self) -> int:
        return seconds(self.bank)

    def open(self, number: int) -> Purse:
        purse = funded_purse(self.bank, 0, policy=POLICY)
        assert purse.holder is not None
        self.bank.ledger.fund(purse.holder.account, 100 * CAP)
        return purse

    def load(self, purse: Purse, amount: int) -> None:
        load(self.bank, purse, amount)

    def known(self, purse: Purse) -> int:
        return offline.left_minor(self.bank.context, purse.id)

    def sync(self, transfer: bytes) -> Arrived:
        self.bank.ledger.lose_answers = next(self._faults)
        (result,) = offline.sync(self.bank.context, [transfer])
        self.bank.ledger.lose_answers = 0
        if result.booked is not None:
            return Arrived(result.booked.credited_minor)
        return Arrived(None, result.refused.refusal if result.refused else None)

    def settle(self) -> None:
        while offline.resume_offline(self.bank.context, older_than=timedelta(0)):
            pass

    def advance(self, by: int) -> None:
        self.bank.clock.advance(timedelta(seconds=by))

    def wallet(self, purse: Purse) -> int:
        """What it has gained since the beginning, loadings not counted."""
        assert purse.holder is not None
        escrow = offline.escrow_account(self.bank.context)
        booked = [item.terms for item in self.bank.ledger.booked.values()]
        return sum(
            terms.amount_minor or 0
            for terms in booked
            if terms.debit == escrow and terms.credit == purse.holder.account
        ) + sum(row for row in self._pending(purse.holder.account))

    def _pending(self, account: int) -> list[int]:
        query = sa.text("SELECT id, amount_minor FROM purse_payout WHERE booked_at IS NULL AND account = :account")
        with self.bank.database.engine.connect() as connection:
            rows = connection.execute(query, {"account": account}).all()
        return [row.amount_minor for row in rows if row.id not in self.bank.ledger.booked]

    def loss(self, purse: Purse) -> int:
        return offline.find_purse(self.bank.context, purse.id).loss_minor

    def net_cost(self) -> int:
        self.settle()
        return self._vault - self._vault_balance()

    def proof(self, purse: Purse) -> bytes | None:
        query = sa.text("SELECT proof FROM purse_proof WHERE purse_id = :id")
        with self.bank.database.engine.connect() as connection:
            found: bytes | None = connection.execute(query, {"id": purse.id}).scalar()
        return found

    def owed(self) -> tuple[int, int]:
        self.settle()
        report = offline.escrow_report(self.bank.context)
        return report.escrow_minor, report.claims_minor

    def _vault_balance(self) -> int:
        return self.bank.ledger.accounts[self.bank.vault].balance


def machine(make: Callable[[], Any]) -> type[RuleBasedStateMachine]:
    class OfflineMachine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.bank = make()
            self.purses = [self.bank.open(number) for number in range(COUNT)]
            self.history: dict[int, list[PurseState]] = {number: [] for number in range(HONEST, COUNT)}
            self.transfers: list[bytes] = []
            self.arrived: dict[bytes, bytes] = {}
            self.credited: dict[bytes, int] = {}
            self.held: dict[bytes, bytes] = {}
            self.loaded = [0] * COUNT
            self.rest = [0] * COUNT
            for number in range(COUNT):
                self.load(number, 60)

        def is_hacked(self, number: int) -> bool:
            return number >= HONEST

        def keep(self, number: int) -> None:
            if self.is_hacked(number):
                self.history[number].append(self.purses[number].state)

        def load(self, number: int, amount: int) -> None:
            purse = self.purses[number]
            is_over = self.bank.known(purse) + amount > CAP or purse.state.balance_minor + amount > CAP
            certificate = messages.read_certificate(purse.state.certificate)
            if is_over or self.bank.now >= certificate.not_after or self.bank.proof(purse) is not None:
                return
            self.keep(number)
            self.bank.load(purse, amount)
            self.loaded[number] += amount

        numbers = st.integers(0, COUNT - 1)

        @rule(number=numbers, amount=st.integers(1, 40))
        def fund(self, number: int, amount: int) -> None:
            self.load(number, amount)

        @rule(
            payer=numbers,
            payee=numbers,
            amount=st.integers(1, SINGLE + 5),
            disposition=st.sampled_from(Disposition),
            is_delivered=st.sampled_from([True, True, True, False]),
        )
        def pay(self, payer: int, payee: int, amount: int, disposition: Disposition, is_delivered: bool) -> None:
            one, other, now = self.purses[payer], self.purses[payee], self.bank.now
            asked = element.ask(
                other.state,
                amount_minor=amount,
                disposition=disposition,
                nonce=secrets.token_bytes(16),
                now=now,
                device=other.device,
            )
            if isinstance(asked, Refused):
                return
            self.keep(payee)
            other.state = asked.state
            paid = element.pay(one.state, asked.answer, now=now, device=one.device)
            if isinstance(paid, Refused):
                assert paid.refusal not in (PurseRefusal.DOUBLE_SPEND, PurseRefusal.MESSAGE_INVALID)
                return
            self.keep(payer)
            one.state = paid.state
            again = element.pay(one.state, asked.answer, now=now, device=one.device)
            assert isinstance(again, Step) and again.answer == paid.answer
            self.transfers.append(paid.answer)
            if not is_delivered:
                return
            taken = element.receive(other.state, paid.answer, now=now, device=other.device)
            if isinstance(taken, Refused):
                # An honest device refuses what an honest one pays only if it stands on a double spend it has seen.
                assert self.is_hacked(payer) or taken.refusal is PurseRefusal.DOUBLE_SPEND, taken
                return
            other.state = taken.state

        @rule(number=numbers, amount=st.integers(1, CAP))
        def redeem(self, number: int, amount: int) -> None:
            purse = self.purses[number]
            outcome = element.redeem(purse.state, amount, now=self.bank.now, device=purse.device)
            if isinstance(outcome, Step):
                self.keep(number)
                purse.state = outcome.state
                self.transfers.append(outcome.answer)

        @rule(number=st.integers(HONEST, COUNT - 1), back=st.integers(1, 8))
        def roll_back(self, number: int, back: int) -> None:
            """The hacked device: its memory is what it was."""
            states = self.history[number]
            if states:
                self.purses[number].state = states[max(len(states) - back, 0)]

        @rule(
            payer=st.integers(HONEST, COUNT - 1),
            payees=st.lists(numbers, min_size=2, max_size=3),
            amount=st.integers(1, SINGLE),
            is_synced=st.booleans(),
        )
        def pay_several_from_one_state(self, payer: int, payees: list[int], amount: int, is_synced: bool) -> None:
            before, first = self.purses[payer].state, len(self.transfers)
            for payee in payees:
                if payee != payer:
                    self.purses[payer].state = before
                    self.pay(payer, payee, amount, Disposition.ACCOUNT if is_synced else Disposition.PURSE, True)
            for transfer in self.transfers[first:] if is_synced else ():
                self.sync(transfer)

        @rule(which=st.integers(0, 200), times=st.integers(1, 2))
        def sync_one(self, which: int, times: int) -> None:
            if self.transfers:
                for _ in range(times):
                    self.sync(self.transfers[which % len(self.transfers)])

        @rule(number=numbers)
        def sync_device(self, number: int) -> None:
            purse = self.purses[number]
            taken = set()
            for transfer in (*purse.state.sent, *purse.state.received):
                if self.sync(transfer).credited is not None:
                    taken.add(read_transfer(transfer).payment.hash)
            outcome = element.synced(purse.state, taken=frozenset(taken), now=self.bank.now)
            self.keep(number)
            purse.step(outcome)

        def sync(self, transfer: bytes) -> Arrived:
            read = read_transfer(transfer)
            payment = read.payment
            closes_at = min(certificate.closes_at for certificate in read.certificates)
            losses = [self.bank.loss(purse) for purse in self.purses]
            result: Arrived = self.bank.sync(transfer)
            self.losses_begin_where_the_purse_ends(read, losses)
            payer = self.number_of(payment.payer)
            if result.refusal is PurseRefusal.PURSE_HELD:
                # Evidence all the same, as are the spends before it.
                self.held.update({spend.hash: transfer for spend in read.spends})
                assert payment.is_redemption and self.bank.proof(self.purses[payer]) is not None
                assert payment.hash not in self.credited
                return result
            if payment.is_redemption and result.credited and self.bank.proof(self.purses[payer]) is not None:
                assert self.credited.get(payment.hash) == result.credited, "a named device has redeemed"
            if result.credited is None:
                assert result.refusal is PurseRefusal.PURSE_CLOSED
                assert self.bank.now >= closes_at, "refused although in time"
                assert payment.hash not in self.arrived
                return result
            assert self.credited.setdefault(payment.hash, result.credited) == result.credited
            for spend in read.spends:
                self.arrived[spend.hash] = transfer
            return result

        @rule(
            thief=st.integers(HONEST, COUNT - 1),
            payees=st.permutations(range(HONEST)),
            amount=st.integers(1, SINGLE),
            rest=st.integers(1, CAP),
            order=st.permutations(range(3)),
        )
        def double_spend_then_redeem_the_rest(
            self, thief: int, payees: list[int], amount: int, rest: int, order: list[int]
        ) -> None:
            """Two payees with the same money, and what is left home to the wallet before anything is settled."""
            first = len(self.transfers)
            self.pay_several_from_one_state(thief, payees[:2], amount, False)
            self.redeem(thief, rest)
            made = self.transfers[first:]
            for which in order:
                if which < len(made):
                    self.sync(made[which])

        def losses_begin_where_the_purse_ends(self, read: Transfer, before: list[int]) -> None:
            payees = {self.number_of(spend.payee) for spend in read.spends}
            for number, purse in enumerate(self.purses):
                if self.bank.loss(purse) > before[number] and number not in payees:
                    assert self.bank.known(purse) == 0, "the institution pays while the purse has money"

        @rule(by=st.sampled_from([60, 1_000, LIFE // 2, LIFE, GRACE]))
        def time_passes(self, by: int) -> None:
            self.bank.advance(by)
            due = [
                max(self.bank.known(purse) - self.bank.loss(purse), 0) + self.bank.wallet(purse)
                for purse in self.purses
            ]
            self.bank.settle()
            for number, purse in enumerate(self.purses):
                if self.is_hacked(number) and self.bank.known(purse) == 0:
                    assert self.bank.wallet(purse) <= due[number], "the rest is the vault's first"

        # --- what must hold

        def number_of(self, certificate: bytes) -> int:
            hashes = [messages.read_certificate(purse.state.certificate).hash for purse in self.purses]
            return hashes.index(certificate)

        def spends_that_arrived(self) -> dict[bytes, messages.Spend]:
            return {
                spend.hash: spend
                for transfer in self.arrived.values()
                for spend in read_transfer(transfer).spends
                if spend.hash in self.arrived
            }

        def spends_of_evidence(self) -> list[messages.Spend]:
            held = (spend for transfer in self.held.values() for spend in read_transfer(transfer).spends)
            return list({**{spend.hash: spend for spend in held}, **self.spends_that_arrived()}.values())

        @invariant()
        def money_is_conserved_and_the_escrow_is_what_is_owed(self) -> None:
            escrow, claims = self.bank.owed()
            assert escrow == claims >= 0
            in_wallets = sum(self.bank.wallet(purse) for purse in self.purses)
            assert sum(self.loaded) + self.bank.net_cost() == escrow + in_wallets

        @invariant()
        def every_double_spender_is_named_and_nobody_else(self) -> None:
            spends = self.spends_of_evidence()
            caught = {
                self.number_of(one.payer)
                for one, other in itertools.combinations(spends, 2)
                if one.conflicts_with(other)
            }
            for number, purse in enumerate(self.purses):
                proof = self.bank.proof(purse)
                assert (proof is not None) == (number in caught)
                if proof is not None:
                    assert self.is_hacked(number)
                    read = read_proof(proof)
                    assert verify_proof(read, self.bank.key.public) is None
                    assert read.certificate.purse == purse.id

        @invariant()
        def loss_is_at_most_the_cap_and_the_honest_cost_nothing(self) -> None:
            for number, purse in enumerate(self.purses):
                assert 0 <= self.bank.loss(purse) <= (CAP if self.is_hacked(number) else 0)

        @invariant()
        def nobody_passes_on_more_than_he_got_and_the_institution_bore(self) -> None:
            """Added up from the messages alone; of those in the middle of a chain the answer is not known."""
            out, into = [0] * COUNT, list(self.loaded)
            for key, spend in self.spends_that_arrived().items():
                out[self.number_of(spend.payer)] += self.credited.get(key, 0)
                if spend.disposition is Disposition.PURSE:
                    into[self.number_of(spend.payee)] += self.credited.get(key, spend.amount_minor)
            for number, purse in enumerate(self.purses):
                assert out[number] <= into[number] + self.bank.loss(purse)

        @invariant()
        def no_payee_falls_short_while_the_cap_lasts(self) -> None:
            spends = self.spends_that_arrived()
            for key, credited in self.credited.items():
                payment = spends[key]
                if credited < payment.amount_minor and not self.is_hacked(self.number_of(payment.payee)):
                    # Somebody in its chain has used up what the institution bears for him.
                    transfer = read_transfer(self.arrived[key])
                    payers = {self.number_of(item.hash) for item in transfer.certificates}
                    assert any(
                        self.is_hacked(number) and self.bank.proof(self.purses[number]) is not None for number in payers
                    )
                    assert any(self.bank.loss(self.purses[number]) == CAP for number in payers) or any(
                        self.is_hacked(self.number_of(spend.payee)) for spend in transfer.spends
                    )

        def teardown(self) -> None:
            """Everybody syncs in time what he has; then all purses are settled: all money is in wallets again."""
            for transfer in list(self.transfers):
                self.sync(transfer)
            self.bank.advance(3 * LIFE)
            self.bank.settle()
            escrow, claims = self.bank.owed()
            assert escrow == claims == 0
            in_wallets = sum(self.bank.wallet(purse) for purse in self.purses)
            assert in_wallets == sum(self.loaded) + self.bank.net_cost()
            if not any(self.bank.proof(purse) for purse in self.purses):
                assert self.bank.net_cost() == 0

    return OfflineMachine


TestPureBooks = pytest.mark.campaign(machine(PureBank).TestCase)
EXAMPLES = int(os.environ.get("JIAOZI_MACHINE_EXAMPLES", "4"))
TestPureBooks.settings = settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None)


@pytest.fixture
def database(fresh_database: Callable[[str], str]) -> Iterator[Database]:
    found = Database(fresh_database("wallet"), application_name="test")
    yield found
    found.close()


@pytest.mark.campaign
def test_same_machine_over_postgresql(database: Database) -> None:
    run_state_machine_as_test(
        machine(lambda: RealBank(database)),
        settings=settings(
            max_examples=max(EXAMPLES // 3, 1),
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def fails_over(bank: type[PureBank]) -> None:
    with pytest.raises(BaseException):  # noqa: B017  # whichever invariant notices first
        run_state_machine_as_test(
            machine(bank),
            settings=settings(
                max_examples=200,
                stateful_step_count=20,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                report_multiple_bugs=False,
            ),
        )


def test_the_machine_would_notice_a_thief_redeeming_the_rest() -> None:
    """A bank that names the thief but lets him take home what his purse has left: it must fail, and by that rule."""

    class Lenient(PureBank):
        def sync(self, transfer: bytes) -> Arrived:
            named = [purse for purse in self.books.purses.values() if purse.is_named]
            for purse in named:
                purse.is_named = False
            try:
                return super().sync(transfer)
            finally:
                for purse in named:
                    purse.is_named = True

    def story(bank: type[PureBank]) -> None:
        made: Any = machine(bank)()
        made.double_spend_then_redeem_the_rest(thief=3, payees=[0, 1, 2], amount=20, rest=20, order=[0, 1, 2])
        made.teardown()

    story(PureBank)
    with pytest.raises(AssertionError, match="a named device has redeemed"):
        story(Lenient)


def test_the_machine_would_notice_a_missing_check() -> None:
    """A bank whose books forget what was spent makes money: the machine must fail over it."""

    class Forgetful(PureBank):
        def sync(self, transfer: bytes) -> Arrived:
            for source in self.books.sources.values():
                source.intervals.clear()
                source.covered_minor = 0
            return super().sync(transfer)

    fails_over(Forgetful)
