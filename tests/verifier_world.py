"""A real ledger's journal that has some of everything, for tests of what verifies it.

Issues, payments, chains, holds of every kind and end, tombstones, freezes, legal orders, a rotated key, class caps,
account changes, purses.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kernel import ids, migrate
from kernel.clock import system_clock
from kernel.crypto.keys import PrivateKey, Suite
from kernel.money import AMOUNT_MINOR_MAX
from kernel.postgres import EmbeddedPostgres
from ledger.client import LedgerClient
from ledger.contract import (
    AccountKind,
    AccountOpening,
    AdjustmentAction,
    FreezeAction,
    RedeemAction,
    RotateParticipantKeyAction,
    SetQuotaAction,
    TransferItem,
    TransferResult,
    sign_account_consent,
)
from ledger.engine.sequencer import Sequencer
from tests.ledger_world import KEY_RECOVERY_SECONDS, LedgerWorld, make_world, serving

BANK, OTHER = "BKCHCNBJ", "ICBKCNBJ"


@dataclass
class Scheme:
    """The prepared database and where in it things are."""

    database: str
    seqs: dict[str, int]
    accounts: dict[str, int]
    log_salts: Path
    keys: dict[str, PrivateKey] = field(default_factory=dict)
    """Of holders: `wallet`, and `tablet`, which was the same wallet's for a while; of the institution: `bank`."""


def make_scheme(postgres: EmbeddedPostgres, directory: Path, *, bulk: int = 100, signed: int = 40) -> Scheme:
    """A journal of the session's server; `bulk` exchanges and `signed` payments come in one request each."""
    name = f"verifier_{secrets.token_hex(4)}"
    postgres.ensure_database(name)
    migrate.upgrade("ledger", postgres.url(name))
    world = make_world(postgres.url(name), directory, data_dir=directory / "data")
    scheme = Scheme(name, {}, {}, directory / "data" / f"log-{world.ledger}.salt")
    with serving(world):
        _live(world, scheme, bulk=bulk, signed_payments=signed)
    with pytest.MonkeyPatch.context() as patch, serving(world):  # and a tail that the balance tables do not have
        patch.setattr(Sequencer, "_write_snapshot", lambda self: None)
        with world.client(BANK) as client:
            vault, wallet = scheme.accounts["vault"], scheme.accounts["wallet"]
            scheme.seqs["tail"] = booked(client.transfer(world.terms("exchange-in", vault, wallet, 11)))
        time.sleep(0.05)
    return scheme


def booked(*results: TransferResult) -> int:
    for result in results:
        assert result.outcome == "booked", result
    return results[-1].seq or 0


def _live(world: LedgerWorld, scheme: Scheme, *, bulk: int, signed_payments: int) -> None:
    """Some of everything."""
    seqs, accounts = scheme.seqs, scheme.accounts
    world.register(BANK, quota_minor=10_000_000)
    world.register(OTHER)
    key, small_key, p256 = PrivateKey.generate(), PrivateKey.generate(), PrivateKey.generate(Suite.ECDSA_P256_SHA256)
    vault, other = world.open_vault(BANK), world.open_vault(OTHER)
    wallet, small, phone = (
        world.open_wallet(BANK, key),
        world.open_wallet(BANK, small_key, "small"),
        world.open_wallet(OTHER, p256),
    )
    accounts |= {"vault": vault, "other": other, "wallet": wallet, "small": small, "phone": phone}
    world.issue(vault, 5_000_000)
    world.issue(other, 2_000_000)
    with world.client(BANK) as bank, world.client(OTHER) as icbk:

        def signed(kind: str, debit: int, credit: int, amount: int, by: PrivateKey, **more: object) -> int:
            terms = world.terms(kind, debit, credit, amount, **more)
            return booked(bank.submit_instruction(world.instruction(terms, by)))

        many = [TransferItem(terms=world.terms("exchange-in", vault, wallet, 100 + i)) for i in range(bulk)]
        seqs["bulk"] = booked(*bank.submit(many)) - bulk // 2
        seqs["exchange"] = booked(bank.transfer(world.terms("exchange-in", vault, wallet, 900_000)))
        booked(icbk.transfer(world.terms("exchange-in", other, phone, 500_000)))
        booked(bank.transfer(world.terms("exchange-in", vault, small, 60_000)))
        many = [
            TransferItem(instruction=world.instruction(world.terms("payment", wallet, phone, 5 + i), key))
            for i in range(signed_payments)
        ]
        booked(*bank.submit(many))
        reference = ids.new_uuid7()
        seqs["payment"] = signed("payment", wallet, phone, 2_500, key, reference=reference)
        seqs["p256"] = signed("payment", phone, wallet, 700, p256)
        seqs["refund"] = signed("refund", phone, wallet, 100, p256, reference=reference)
        seqs["small"] = signed("payment", small, wallet, 50_000, small_key)
        signed("exchange-out", wallet, vault, 300, key)
        booked(bank.transfer(world.terms("interest", vault, wallet, 3)))
        seqs["carried"] = signed("payment", vault, phone, 41, world.participants[BANK])
        chain = [TransferItem(terms=world.terms("payment", vault, other, 70 + i), linked=i < 2) for i in range(3)]
        booked(*bank.submit(chain))

        def hold(
            kind: str = "plain", *, amount: int = 1_000, seconds: float = 3600, payee: int = other
        ) -> tuple[Any, bytes, bytes]:
            commit, abort = secrets.token_bytes(32), secrets.token_bytes(32)
            hashes = {"commit_hash": hashlib.sha256(commit).digest(), "abort_hash": hashlib.sha256(abort).digest()}
            plain = {"expires_at": system_clock() + timedelta(seconds=seconds)}
            terms = world.terms("hold", wallet, payee, amount, **(plain if kind == "plain" else hashes))
            seqs[f"hold {kind}"] = booked(bank.submit_instruction(world.instruction(terms, key)))
            return terms.id, commit, abort

        first, *_ = hold()
        seqs["post"] = booked(icbk.transfer(world.terms("post", None, None, 400, hold=first)))
        second, *_ = hold()
        booked(icbk.transfer(world.terms("void", None, None, None, hold=second)))
        hold(seconds=0.7)
        world.change(
            OTHER, "set-balance-cap", phone, version=1, balance_max_minor=str(AMOUNT_MINOR_MAX)
        )  # binds nothing
        hold("conditional", amount=1, payee=phone)
        third, commit, _ = hold("conditional")
        seqs["secret"] = booked(bank.transfer(world.terms("post", None, None, None, hold=third, secret=commit)))
        fourth, _, abort = hold("conditional")
        booked(bank.transfer(world.terms("void", None, None, None, hold=fourth, secret=abort)))
        void = world.terms("void", None, None, None, hold=ids.new_uuid7(), secret=secrets.token_bytes(32))
        seqs["tombstone"] = booked(bank.transfer(void))
        void = world.terms("void", None, None, None, hold=ids.new_uuid7())
        booked(icbk.transfer(void))
        hold("conditional", amount=777)
        hold(amount=888)

        account = ids.AccountNumber(small)
        world.mandate(FreezeAction(action="freeze", account=account, case="2026-1"))
        adjustment = AdjustmentAction(
            transfer=ids.new_uuid7(),
            debit=account,
            credit=ids.AccountNumber(other),
            amount_minor=1_234,
            currency="CNY",
            case="2026-1",
        )
        world.mandate(adjustment)
        seqs["adjustment"] = bank.ledger().head_seq
        world.mandate(FreezeAction(action="unfreeze", account=account, case="2026-1"))
        signed("payment", small, wallet, 10, small_key)
        redeem = RedeemAction(
            transfer=ids.new_uuid7(), vault=ids.AccountNumber(other), amount_minor=5_000, currency="CNY"
        )
        world.mandate(redeem)
        world.mandate(SetQuotaAction(participant=ids.ParticipantId(BANK), quota_minor=5_000_000))
        _change_accounts(world, scheme, bank, key, small_key)
        rotated = PrivateKey.generate()
        world.mandate(RotateParticipantKeyAction(participant=ids.ParticipantId(OTHER), key=rotated.public.to_jwk()))
        world.participants[OTHER] = rotated
    with world.client(OTHER) as icbk:
        terms = world.terms("payment", other, wallet, 9)
        booked(icbk.submit_instruction(world.instruction(terms, rotated)))
    time.sleep(1.2)  # the hold of 0.7 s expires


def _change_accounts(
    world: LedgerWorld, scheme: Scheme, bank: LedgerClient, key: PrivateKey, small_key: PrivateKey
) -> None:
    """Of BANK's accounts: a second device, a key that was lost, suspension, an upgrade, a closure; and a purse."""
    seqs, accounts = scheme.seqs, scheme.accounts
    vault, wallet, small, other = (accounts[name] for name in ("vault", "wallet", "small", "other"))
    tablet, found = PrivateKey.generate(), PrivateKey.generate(Suite.ECDSA_P256_SHA256)
    scheme.keys |= {"wallet": key, "tablet": tablet, "bank": world.participants[BANK]}

    def signed(kind: str, debit: int, credit: int, amount: int, by: PrivateKey) -> int:
        return booked(bank.submit_instruction(world.instruction(world.terms(kind, debit, credit, amount), by)))

    world.change(BANK, "add-holder-key", wallet, consent=key, key=tablet.public.to_jwk())
    seqs["tablet"] = signed("payment", wallet, other, 21, tablet)
    signed("payment", wallet, other, 22, key)
    world.change(BANK, "remove-holder-key", wallet, consent=key, key=tablet.public.to_jwk())
    seqs["late"] = signed("payment", wallet, other, 23, key)

    world.change(BANK, "suspend", small)
    seqs["suspended"] = booked(bank.transfer(world.terms("exchange-in", vault, small, 60_077)))
    world.change(BANK, "announce-holder-key", small, key=found.public.to_jwk())
    objection = sign_account_consent(world.change_document("object-to-key", small), key=small_key)
    bank.change_account(None, consent=objection)
    world.change(BANK, "announce-holder-key", small, key=found.public.to_jwk())
    time.sleep(KEY_RECOVERY_SECONDS + 0.05)
    world.change(BANK, "replace-holder-key", small, key=found.public.to_jwk())
    world.change(BANK, "resume", small)
    world.change(BANK, "set-rule-class", small, rule_class="none")
    signed("payment", small, other, 60_000, found)  # more than its old class could pay at once
    world.change(BANK, "set-balance-cap", small, version=1, balance_max_minor="1000000")

    opening = AccountOpening(opening=ids.new_uuid7(), kind=AccountKind.OFFLINE)
    escrow = bank.open_accounts([opening])[0].account
    if escrow is None:
        raise RuntimeError("the escrow account was not opened")
    closed = world.open_wallet(BANK, PrivateKey.generate())
    accounts |= {"escrow": escrow, "closed": closed}
    world.change(BANK, "close", closed)
    seqs["after"] = booked(bank.transfer(world.terms("exchange-in", vault, wallet, 13)))
    seqs["funded"] = signed("purse-fund", wallet, escrow, 200, key)
    seqs["redeemed"] = booked(bank.transfer(world.terms("purse-redeem", escrow, small, 60)))
    seqs["lost"] = booked(bank.transfer(world.terms("purse-loss", escrow, vault, 30)))
