"""Goal: whatever a bank, a holder, a thief with an old key and time do to a wallet's keys, only current keys sign for
it, and no key comes in without a current key's consent or an announcement that nobody objected to in time.

Method: a state machine of one wallet, held after every step to a model that is a handful of sets; every key that ever
was, with every version it ever had, is asked whether it may pay. JIAOZI_HYPOTHESIS_EXAMPLES=20000 makes it a campaign.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from kernel.crypto.keys import to_base64url
from kernel.ids import show_account
from ledger.domain import account_changes
from ledger.domain.account_changes import Signatures
from ledger.domain.keys import key_bytes
from ledger.domain.vocabulary import AccountKind
from ledger.domain.vocabulary import TransferKind as Kind
from tests.machines.core_world import HOUR, UNCAPPED, Twin, outcomes
from tests.machines.reference_model import BOOKED, Item

KEYS = [{"kty": "OKP", "crv": "Ed25519", "x": to_base64url(bytes([n]) * 32)} for n in range(8)]
DELAY_HOURS = 24
VAULT, WALLET = 2, 3
EXAMPLES = int(os.environ.get("JIAOZI_HYPOTHESIS_EXAMPLES", "0"))
WHICH = st.integers(0, len(KEYS) - 1)


class WalletMachine(RuleBasedStateMachine):
    @initialize()
    def open(self) -> None:
        self.twin = Twin()
        self.twin.state.key_recovery_seconds = DELAY_HOURS * 3600
        for kind in (AccountKind.VAULT, AccountKind.WALLET):
            self.twin.open_account(kind, 1, UNCAPPED)
        self.twin.fund(WALLET, 10_000)
        self.twin.state.replace_keys(WALLET, key_bytes(KEYS[0]), version=1)
        self.current = {0: 1}
        """The model: key -> version, of keys that may sign now."""
        self.ever = {1}
        self.announced: tuple[int, int] | None = None
        self.is_closed = self.is_suspended = False
        self.number = 1

    def ask(self, what: str, *, by_bank: bool = True, consent: int | None = None, **more: Any) -> bool:
        """Whether the change was carried out; `consent` is a version, of any key that ever was."""
        change = {"change": what, "account": show_account(WALLET), **more}
        signed, now = Signatures((1, 1) if by_bank else None, consent), self.twin.now
        if account_changes.check(self.twin.state, change, signed, valid_until=now, booked_at=now) is not None:
            return False
        self.number += 1
        account_changes.apply(self.twin.state, change, directive=self.number, booked_at=now)
        return True

    def may_consent(self, consent: int | None) -> bool:
        return consent is None or consent in self.current.values()

    @rule(key=WHICH, consent=st.none() | st.integers(0, 30), by_bank=st.booleans())
    def add(self, key: int, consent: int | None, by_bank: bool) -> None:
        done = self.ask("add-holder-key", by_bank=by_bank, consent=consent, key=KEYS[key])
        is_right = by_bank and consent is not None and self.may_consent(consent)
        assert done == (is_right and key not in self.current and len(self.current) < 5 and not self.is_closed)
        if done:
            self.came(key)

    @rule(key=WHICH, consent=st.none() | st.integers(0, 30))
    def remove(self, key: int, consent: int | None) -> None:
        done = self.ask("remove-holder-key", consent=consent, key=KEYS[key])
        is_right = consent is not None and self.may_consent(consent)
        assert done == (is_right and key in self.current and len(self.current) > 1 and not self.is_closed)
        if done:
            del self.current[key]

    @rule(key=WHICH, consent=st.none() | st.none() | st.integers(0, 30))
    def replace(self, key: int, consent: int | None) -> None:
        done = self.ask("replace-holder-key", consent=consent, key=KEYS[key])
        is_due = self.announced is not None and self.announced == (key, min(self.announced[1], self.due_before()))
        is_right = self.may_consent(consent) if consent is not None else is_due
        assert done == (is_right and key not in self.current and not self.is_closed)
        if done:
            self.current, self.announced = {}, None
            self.came(key)

    def due_before(self) -> int:
        return self.twin.now - DELAY_HOURS * HOUR

    def came(self, key: int) -> None:
        self.current[key] = self.number
        self.ever.add(self.number)

    @rule(key=WHICH, by_bank=st.booleans())
    def announce(self, key: int, by_bank: bool) -> None:
        done = self.ask("announce-holder-key", by_bank=by_bank, key=KEYS[key])
        assert done == (by_bank and key not in self.current and not self.is_closed)
        if done:
            self.announced = (key, self.twin.now)

    @rule(key=WHICH, hours=st.sampled_from([DELAY_HOURS - 1, DELAY_HOURS, DELAY_HOURS + 1]))
    def lose_devices(self, key: int, hours: int) -> None:
        """Announced, and taken about when it may be: a path that random rules seldom walk."""
        self.announce(key, True)
        self.twin.now += hours * HOUR
        self.replace(key, None)

    @rule(consent=st.none() | st.integers(0, 30), by_bank=st.booleans())
    def object(self, consent: int | None, by_bank: bool) -> None:
        done = self.ask("object-to-key", by_bank=by_bank, consent=consent)
        is_holders = not by_bank and consent is not None and self.may_consent(consent)
        assert done == (is_holders and self.announced is not None and not self.is_closed)
        self.announced = None if done else self.announced

    @rule(is_on=st.booleans())
    def suspend_or_resume(self, is_on: bool) -> None:
        if self.ask("suspend" if is_on else "resume"):
            self.is_suspended = is_on
            self.twin.suspend(WALLET, is_on)

    @rule(pays_out=st.sampled_from([False, False, False, True]))
    def close(self, pays_out: bool) -> None:
        if pays_out and not self.is_suspended and not self.is_closed:
            amount = self.twin.state.balance(WALLET)
            assert amount == 0 or self.pay(min(self.current.values()), amount) == BOOKED
        is_empty = self.twin.state.balance(WALLET) == 0
        done = self.ask("close")
        assert done == (is_empty and not self.is_closed)
        if done:
            self.is_closed, self.announced = True, None
            self.twin.close(WALLET)

    @rule(hours=st.sampled_from([1, 12, 24]))
    def time_passes(self, hours: int) -> None:
        self.twin.now += hours * HOUR

    def pay(self, version: int, amount: int) -> str:
        item = Item(
            self.twin.next_id(), Kind.EXCHANGE_OUT, WALLET, VAULT, amount, authority="owner", key_version=version
        )
        model = self.twin.model.accounts[WALLET]
        first, *more = sorted(self.current.values())
        model["key_version"], model["more_versions"] = first, more
        return outcomes(self.twin.run([item]))[0]

    @invariant()
    def I8_only_current_keys_sign(self) -> None:
        for version in sorted(self.ever | {0, self.number + 1}):
            funds = self.twin.state.balance(WALLET)
            outcome = self.pay(version, 1)
            if version not in self.current.values():
                assert outcome == "not-authorised"
            elif self.is_closed or self.is_suspended:
                assert outcome == ("account-closed" if self.is_closed else "debit-account-suspended")
            else:
                assert outcome == (BOOKED if funds else "insufficient-funds")

    @invariant()
    def the_ledger_has_the_models_keys(self) -> None:
        kept = {version: bytes(key) for version, key in self.twin.state.holder_keys(WALLET)}
        assert kept == {version: key_bytes(KEYS[key]).ljust(34, b"\0") for key, version in self.current.items()}
        assert 1 <= len(kept) <= 5
        waiting = self.twin.state.announced.get(WALLET)
        assert (waiting is None) == (self.announced is None)


@pytest.mark.campaign
def test_wallet_machine() -> None:
    run_state_machine_as_test(
        WalletMachine,
        settings=settings(
            max_examples=EXAMPLES or 12,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
