"""Steps 2 and 3 of the demo: central banks issue; holders open wallets, exchange deposits, and pay by signature."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID, uuid4

from kernel import ids
from kernel.clock import Clock
from kernel.crypto.keys import PrivateKey, Suite
from kernel.ids import AccountNumber, ParticipantId
from kernel.money import Currency, Money
from ledger.client import LedgerClient
from ledger.contract import (
    IssueAction,
    MandateStatus,
    Proposal,
    TransferKind,
    TransferTerms,
    sign_instruction,
    sign_proposal,
)
from sandbox.report import Report, make_table
from sandbox.scheme import Scheme
from sandbox.seed import MANDATE_LIFE, QUOTA_MAJOR, approve, carry_out
from sandbox.topology import CENTRAL_BANKS, INSTITUTIONS, CentralBank, Institution, central_bank
from wallet.client import WalletClient
from wallet.contract import WalletView
from wallet.domain.rules import Evidence, WalletClass

FIRST, SECOND, THIRD, FOURTH = INSTITUTIONS
CNY = CENTRAL_BANKS[0]
ISSUED_MAJOR = {
    FIRST.participant: 10_000_000,
    SECOND.participant: 5_000_000,
    THIRD.participant: 5_000_000,
    FOURTH.participant: 3_000_000,
}
"""What each intermediary is issued at home, in major units."""

Vaults = dict[ParticipantId, dict[str, AccountNumber]]


def major(amount: int | str, currency: Currency) -> Money:
    return Money.parse_major(str(amount), currency)


# --- step 2: issue ----------------------------------------------------------------------------------------------------


def issue(scheme: Scheme, report: Report, vaults: Vaults, *, clock: Clock) -> None:
    """One issue in slow motion, with everything that must be refused on the way; then the other three."""
    report.step(2, "Issue: a proposal, two of three operator keys")
    before = {bank.ledger: _issued(scheme, bank) for bank in CENTRAL_BANKS}
    amount = major(ISSUED_MAJOR[FIRST.participant], CNY.currency)
    vault = vaults[FIRST.participant][CNY.ledger]
    with scheme.ledger_client(CNY.ledger, scheme.keys.operator(CNY, 0)) as client:
        proposal = _proposal(CNY, vault, amount, clock=clock)
        view = client.propose(sign_proposal(proposal, key=scheme.keys.institution(FIRST.participant)))
        report.say(f"{FIRST.name} proposes: issue {amount} into its vault {ids.show_account(vault)}")
        governor, treasurer = (scheme.keys.operator(CNY, number) for number in (0, 1))
        approve(client, CNY, view, governor)
        report.refused("executed with 1 approval of 2", "approvals-missing", lambda: client.execute(view.mandate))
        report.refused(
            "the governor approves a second time", "already-approved", lambda: approve(client, CNY, view, governor)
        )
        approve(client, CNY, view, treasurer)
        done = client.execute(view.mandate)
        report.expect(
            f"with the treasurer's key too, {amount} are issued",
            expected=(MandateStatus.EXECUTED, 2),
            seen=(done.status, len(done.approvers)),
        )
        report.refused("executed once more", "mandate-executed", lambda: client.execute(view.mandate))
        over = major(QUOTA_MAJOR, CNY.currency)
        report.refused(
            f"another {over}, beyond the bank's quota, even with two keys",
            "quota-exceeded",
            lambda: _issue(client, scheme, CNY, vault, over, clock=clock),
        )
    for institution in (SECOND, THIRD, FOURTH):
        bank = central_bank(institution.home)
        amount = major(ISSUED_MAJOR[institution.participant], bank.currency)
        with scheme.ledger_client(bank.ledger, scheme.keys.operator(bank, 0)) as client:
            _issue(client, scheme, bank, vaults[institution.participant][bank.ledger], amount, clock=clock)
        report.say(f"issued in the same way: {amount} to {institution.name}")
    for bank in CENTRAL_BANKS:
        expected = sum(ISSUED_MAJOR[item.participant] for item in INSTITUTIONS if item.home == bank.ledger)
        amount = major(expected, bank.currency)
        seen = _issued(scheme, bank) - before[bank.ledger]
        report.expect(
            f"the ledger {bank.ledger} counts {amount} as newly issued", expected=amount.amount_minor, seen=seen
        )


def _proposal(bank: CentralBank, vault: AccountNumber, amount: Money, *, clock: Clock) -> Proposal:
    action = _issue_action(vault, amount)
    return Proposal(ledger=bank.ledger, mandate=ids.new_uuid7(), action=action, valid_until=clock() + MANDATE_LIFE)


def _issue_action(vault: AccountNumber, amount: Money) -> IssueAction:
    return IssueAction(
        transfer=ids.new_uuid7(), vault=vault, amount_minor=amount.amount_minor, currency=amount.currency.code
    )


def _issue(
    client: LedgerClient, scheme: Scheme, bank: CentralBank, vault: AccountNumber, amount: Money, *, clock: Clock
) -> None:
    carry_out(client, scheme.keys, bank, _issue_action(vault, amount), clock=clock)


def _issued(scheme: Scheme, bank: CentralBank) -> int:
    with scheme.ledger_client(bank.ledger) as client:
        return client.supply().issued_minor


# --- step 3: wallets --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Holder:
    """A customer with one wallet and the device key that only this person has."""

    name: str
    institution: Institution
    customer: UUID
    wallet: UUID
    account: AccountNumber
    key: PrivateKey
    wallet_class: WalletClass


_EVIDENCE = {
    WalletClass.I: [Evidence.IN_PERSON, Evidence.ID, Evidence.PHONE, Evidence.BANK_ACCOUNT],
    WalletClass.II: [Evidence.ID, Evidence.PHONE, Evidence.BANK_ACCOUNT],
    WalletClass.III: [Evidence.ID, Evidence.PHONE],
    WalletClass.IV: [Evidence.PHONE],
}
_HOLDERS = (
    ("tea house", FIRST, WalletClass.I, Suite.ED25519),
    ("household", FIRST, WalletClass.II, Suite.ED25519),
    ("student", FIRST, WalletClass.III, Suite.ED25519),
    ("commuter", FIRST, WalletClass.IV, Suite.ECDSA_P256_SHA256),
    ("noodle bar", SECOND, WalletClass.II, Suite.ED25519),
)


class Retail:
    def __init__(self, scheme: Scheme, report: Report, vaults: Vaults, *, clock: Clock) -> None:
        self._scheme = scheme
        self._report = report
        self._vaults = vaults
        self._clock = clock
        self._holders: dict[str, Holder] = {}
        self._expected: dict[str, int] = {}
        """Balance that each wallet must have, in minor units."""

    def run(self) -> None:
        self._report.step(3, "Wallets: open, exchange deposits, pay by signature")
        self._open()
        self._exchange()
        self._pay()
        self._attack()
        self._balances()

    def _bank(self, institution: Institution) -> WalletClient:
        """The bank's app: a registered client of its wallet service."""
        return self._scheme.wallet_client(institution, self._scheme.keys.channel(institution.participant))

    def _money(self, amount: str) -> Money:
        return major(amount, CNY.currency)

    def _open(self) -> None:
        columns = ("holder", "bank", "class", "device key", "balance up to", "a payment", "a day")
        shown = make_table(*columns, right=columns[4:], whole=columns[:1])
        for name, institution, wallet_class, suite in _HOLDERS:
            key = PrivateKey.generate(suite)
            with self._bank(institution) as client:
                customer = client.create_customer(evidence=_EVIDENCE[wallet_class], name=name).customer
                view = client.open_wallet(customer=customer, wallet_class=wallet_class, device_key=key.public)
            if view.account is None:
                raise RuntimeError(f"the wallet of the {name} has no account: {view.refusal}")
            self._holders[name] = Holder(name, institution, customer, view.wallet, view.account, key, wallet_class)
            self._expected[name] = 0
            suite_name = "Ed25519" if suite is Suite.ED25519 else "P-256"
            shown.add_row(name, institution.name, wallet_class.value, suite_name, *_caps(view))
        title = f"Wallets under the rule pack {CNY.rule_pack}: caps in CNY, * = assumed: no published source found"
        self._report.table(shown, title)
        self._report.expect("wallets of the classes I to IV are open", expected=5, seen=len(self._holders))
        with self._bank(FIRST) as client:
            customer = client.create_customer(evidence=[Evidence.PHONE], name="visitor").customer
            self._report.refused(
                "a class II wallet for somebody known by phone only",
                "evidence-insufficient",
                lambda: client.open_wallet(
                    customer=customer, wallet_class=WalletClass.II, device_key=PrivateKey.generate().public
                ),
            )

    def _exchange(self) -> None:
        with self._bank(FIRST) as client:
            for name, deposit, amount in (("household", "8000.00", "5000.00"), ("commuter", "4000.00", "3000.00")):
                holder, money = self._holders[name], self._money(amount)
                paid_in, left = self._money(deposit), self._money(deposit).amount_minor - money.amount_minor
                client.simulate_deposit(customer=holder.customer, amount_minor=paid_in.amount_minor)
                view = client.exchange_in(wallet=holder.wallet, amount_minor=money.amount_minor, currency="CNY")
                self._expected[name] += money.amount_minor
                self._report.expect(
                    f"the {name} exchanges {money} of a bank deposit of {paid_in} for currency",
                    expected=("final", left),
                    seen=(view.state.value, client.simulated_deposit(holder.customer).balance_minor),
                )
            holder = self._holders["household"]
            self._report.refused(
                "the household exchanges another CNY 7,000.00, more than its deposit has left",
                "deposit-insufficient",
                lambda: client.exchange_in(wallet=holder.wallet, amount_minor=7_000_00, currency="CNY"),
            )

    def _pay(self) -> None:
        for payer, payee, amount, where in (
            ("household", "tea house", "128.50", "inside one bank"),
            ("household", "noodle bar", "42.00", "across two banks"),
            ("commuter", "noodle bar", "35.80", "across two banks, P-256 key of a phone"),
        ):
            money = self._money(amount)
            with self._bank(self._holders[payer].institution) as client:
                view = client.submit_payment(self._instruction(payer, payee, money))
            self._expected[payer] -= money.amount_minor
            self._expected[payee] += money.amount_minor
            final = f", final at {view.booked_at:%H:%M:%S.%f} UTC" if view.booked_at else ""
            self._report.expect(
                f"the {payer} pays {money} to the {payee} ({where}){final}", expected="final", seen=view.state.value
            )

    def _attack(self) -> None:
        with self._bank(FIRST) as client, self._scheme.ledger_client(CNY.ledger) as ledger:

            def refused(what: str, code: str, token: str) -> None:
                self._report.refused(what, code, lambda: client.submit_payment(token))

            refused(
                "the commuter (class IV) pays CNY 2,500.00 at once",
                "single-limit-exceeded",
                self._instruction("commuter", "tea house", self._money("2500.00")),
            )
            refused(
                "the student pays CNY 10.00 from an empty wallet",
                "insufficient-funds",
                self._instruction("student", "tea house", self._money("10.00")),
            )
            refused(
                "a payment from the household, signed by the student's key",
                "instruction-invalid",
                self._instruction("household", "student", self._money("500.00"), key=self._holders["student"].key),
            )
            honest = self._instruction("household", "tea house", self._money("5.00"))
            refused(
                "CNY 5.00 signed, CNY 5,000.00 carried by whoever forwards it", "instruction-invalid", _altered(honest)
            )
            bank_key = self._scheme.keys.institution(FIRST.participant)
            with self._scheme.ledger_client(CNY.ledger, bank_key) as bank:
                holder, vault = self._holders["household"], self._vaults[FIRST.participant][CNY.ledger]
                taken = TransferTerms(
                    id=ids.new_uuid7(),
                    kind=TransferKind.EXCHANGE_OUT,
                    debit=holder.account,
                    credit=vault,
                    amount_minor=1_000_00,
                    currency="CNY",
                )
                result = bank.transfer(taken)
                self._report.expect(
                    "the bank itself takes CNY 1,000.00 without the holder's signature: [yellow]refused[/] "
                    f"[bold]not-authorised[/]: [dim]{(result.detail or '').rstrip('.')}[/]",
                    expected="not-authorised",
                    seen=result.refusal,
                )
            # The same signed paper twice, the second time past the bank, straight to the central bank.
            first = client.submit_payment(honest)
            again = ledger.submit_instruction(honest)
            self._expected["household"] -= 5_00
            self._expected["tea house"] += 5_00
            self._report.expect(
                "a payment presented twice is booked once: the second time answers already-booked, with the same seq",
                expected=("final", "already-booked", first.seq),
                seen=(first.state.value, again.outcome.value, again.seq),
            )

    def _balances(self) -> None:
        columns = ("holder", "class", "balance", "spent today")
        shown = make_table(*columns, right=columns[2:])
        seen: dict[str, int] = {}
        for name, holder in self._holders.items():
            with self._bank(holder.institution) as client:
                view = client.get_wallet(holder.wallet)
            if view.balance is None:
                raise RuntimeError(f"the wallet of the {name} shows no balance")
            seen[name] = view.balance.balance_minor
            spent = Money(view.balance.spent_today_minor, CNY.currency)
            shown.add_row(name, holder.wallet_class.value, str(Money(seen[name], CNY.currency)), str(spent))
        self._report.table(shown, "Balances, as the ledger has them")
        self._report.expect("every wallet has exactly what was exchanged and paid", expected=self._expected, seen=seen)

    def _instruction(self, payer: str, payee: str, money: Money, *, key: PrivateKey | None = None) -> str:
        """What the payer's device makes: terms and signature. No service is asked, none can change it."""
        debit, credit = self._holders[payer], self._holders[payee]
        terms = TransferTerms(
            id=ids.new_uuid7(),
            kind=TransferKind.PAYMENT,
            debit=debit.account,
            credit=credit.account,
            amount_minor=money.amount_minor,
            currency=money.currency.code,
            reference=uuid4(),
        )
        valid_until = self._clock() + timedelta(minutes=5)
        return sign_instruction(terms, ledger=CNY.ledger, valid_until=valid_until, key=key or debit.key)


def _caps(view: WalletView) -> list[str]:
    if view.limits is None:
        return ["", "", ""]
    found = []
    for cap in (view.limits.balance, view.limits.single, view.limits.daily):
        amount = "no cap" if cap.max_minor is None else Money(cap.max_minor, CNY.currency).format_major()
        found.append(amount + ("*" if cap.assumed else ""))
    return found


def _altered(token: str) -> str:
    """A compact JWS with a thousand times the amount and the old signature."""
    head, body, signature = token.split(".")
    payload = json.loads(_decoded(body))
    payload["terms"]["amount_minor"] = str(int(payload["terms"]["amount_minor"]) * 1_000)
    changed = json.dumps(payload, sort_keys=True, separators=(",", ":")).encode()
    return ".".join([head, base64.urlsafe_b64encode(changed).rstrip(b"=").decode(), signature])


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
