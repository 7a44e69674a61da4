"""Purses for tests: devices in memory (a `PurseState` each), their messages, and a bank that issues them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from uuid import UUID

from kernel.crypto.keys import PrivateKey, PublicKey
from ledger.contract import TransferKind
from tests.wallet_bank import Bank, Holder
from wallet.domain.offline import element
from wallet.domain.offline.element import Device, PurseState, Step
from wallet.domain.offline.policy import POLICY, Policy
from wallet.domain.offline.vocabulary import Disposition, PurseRefusal, Refused
from wallet.usecases import offline


@dataclass
class Purse:
    """A device with its key. `state` is what an honest element would keep."""

    id: UUID
    key: PrivateKey
    state: PurseState
    holder: Holder | None = None

    @property
    def device(self) -> Device:
        return Device(self.key.public, self.key.sign)

    def step(self, outcome: Step | Refused) -> bytes:
        """Take the step; its answer. Fails on a refusal."""
        assert isinstance(outcome, Step), outcome
        self.state = outcome.state
        return outcome.answer

    def refusal(self, outcome: Step | Refused) -> PurseRefusal:
        assert isinstance(outcome, Refused)
        return outcome.refusal

    def ask(self, amount: int, now: int, disposition: Disposition = Disposition.PURSE) -> bytes:
        nonce = secrets.token_bytes(16)
        return self.step(
            element.ask(
                self.state, amount_minor=amount, disposition=disposition, nonce=nonce, now=now, device=self.device
            )
        )

    def pay(self, invoice: bytes, now: int) -> bytes:
        return self.step(element.pay(self.state, invoice, now=now, device=self.device))

    def receive(self, transfer: bytes, now: int) -> bytes:
        return self.step(element.receive(self.state, transfer, now=now, device=self.device))

    def redeem(self, amount: int, now: int) -> bytes:
        return self.step(element.redeem(self.state, amount, now=now, device=self.device))

    def pays(self, payee: Purse, amount: int, now: int, disposition: Disposition = Disposition.PURSE) -> bytes:
        """The whole protocol; the transfer."""
        transfer = self.pay(payee.ask(amount, now, disposition), now)
        payee.receive(transfer, now)
        return transfer


def seconds(bank: Bank) -> int:
    return int(bank.clock().timestamp())


def new_purse(bank: Bank, holder: Holder, *, policy: Policy = POLICY, suite: str = "ed25519") -> Purse:
    key, purse_id = PrivateKey.generate(suite), bank.new_id()
    row = offline.issue_purse(
        bank.context, purse_id, wallet_id=holder.wallet.id, device_key=key.public.to_jwk(), policy=policy
    )
    device = Device(key.public, key.sign)
    state = element.new_purse(row.certificate, bank.context.key.public, device)
    assert isinstance(state, PurseState)
    return Purse(purse_id, key, state, holder)


def fund_instruction(bank: Bank, purse: Purse, amount: int, *, id: UUID | None = None) -> str:
    assert purse.holder is not None
    return bank.instruction(
        purse.holder,
        offline.escrow_account(bank.context),
        amount,
        kind=TransferKind.PURSE_FUND,
        reference=purse.id,
        id=id,
    )


def load(bank: Bank, purse: Purse, amount: int) -> None:
    funding = offline.fund(bank.context, fund_instruction(bank, purse, amount))
    assert funding.message is not None
    purse.step(element.load(purse.state, funding.message))


def funded_purse(bank: Bank, amount: int, *, policy: Policy = POLICY, suite: str = "ed25519") -> Purse:
    """A new customer's purse with that much in it."""
    purse = new_purse(bank, bank.holder(funds=amount), policy=policy, suite=suite)
    if amount:
        load(bank, purse, amount)
    return purse


def institution_key(bank: Bank) -> PublicKey:
    return bank.context.key.public
