"""Goal: what an honest purse refuses, in the cases a payee meets; and that a power cut at any byte neither makes nor
loses nor doubles money.
Method: tables of attacks on real messages; a device in files whose every write is cut at every byte.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kernel import ids
from kernel.crypto.keys import PrivateKey
from tests.core.test_wallet_offline_messages import BANK, NOW, funding_for, make_purse
from tests.purse_world import Purse
from wallet import purse_device
from wallet.domain.offline import element, messages
from wallet.domain.offline.element import PurseState, Step
from wallet.domain.offline.limits import INVOICE_SECONDS_MAX, UNSYNCED_MAX
from wallet.domain.offline.messages import Part
from wallet.domain.offline.vocabulary import Disposition, PurseRefusal, Refused
from wallet.purse_device import DeviceBroken, PurseDevice, read_state, write_state

R = PurseRefusal


def forge(device: Purse, invoice: bytes, **changes: object) -> bytes:
    """A transfer by a device that signs whatever it likes: the honest one's with `changes` to its spend."""
    honest = element.pay(device.state, invoice, now=NOW, device=device.device)
    assert isinstance(honest, Step)
    read = messages.read_transfer(honest.answer)
    spend = read.payment
    values: dict[str, object] = {
        "payer": spend.payer,
        "counter": spend.counter,
        "parts": spend.parts,
        "payee": spend.payee,
        "disposition": spend.disposition,
        "nonce": spend.nonce,
        "time_hint": spend.time_hint,
        "suite": device.key.suite,
        "sign": device.key.sign,
    }
    signed = messages.sign_spend(**(values | changes))  # type: ignore[arg-type]
    return messages.write_transfer(
        [item.signed.message for item in read.certificates],
        [item.signed.message for item in read.fundings],
        [*(item.signed.message for item in read.spends[:-1]), signed],
    )


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (lambda spend, payer: {"sign": PrivateKey.generate().sign}, R.SIGNATURE_INVALID),
        (lambda spend, payer: {"nonce": bytes(16)}, R.INVOICE_UNKNOWN),
        (lambda spend, payer: {"payee": spend.payer}, R.NOT_FOR_THIS_PURSE),
        (lambda spend, payer: {"disposition": Disposition.ACCOUNT}, R.AMOUNT_MISMATCH),
        (lambda spend, payer: {"parts": [replace(spend.parts[0], amount_minor=1)]}, R.AMOUNT_MISMATCH),
        (lambda spend, payer: {"parts": [replace(spend.parts[0], amount_minor=900)]}, R.CAP_EXCEEDED),
        (lambda spend, payer: {"parts": [replace(spend.parts[0], offset=950)]}, R.CHAIN_BROKEN),
        (lambda spend, payer: {"parts": [spend.parts[0]] * 2}, R.CHAIN_BROKEN),
        (lambda spend, payer: {"parts": [Part(bytes(32), 0, 100)]}, R.CHAIN_BROKEN),
        (lambda spend, payer: {"payer": bytes(32)}, R.CHAIN_BROKEN),
    ],
)
def test_payee_refuses_what_is_not_his_invoice_paid(
    change: Callable[[messages.Spend, Purse], dict[str, object]], refusal: PurseRefusal
) -> None:
    payer, payee = make_purse(), make_purse(fund=0)
    invoice = payee.ask(100, NOW)
    spend = messages.read_transfer(forge(payer, invoice)).payment
    transfer = forge(payer, invoice, **change(spend, payer))
    assert payee.refusal(element.receive(payee.state, transfer, now=NOW, device=payee.device)) is refusal


def test_payee_refuses_money_of_another_bank_and_expired_money() -> None:
    other_bank = PrivateKey.generate()
    payee, stranger = make_purse(fund=0), make_purse(other_bank)
    assert stranger.refusal(element.pay(stranger.state, payee.ask(5, NOW), now=NOW, device=stranger.device)) is (
        R.CERTIFICATE_INVALID
    )
    payer = make_purse()
    invoice = payee.ask(5, NOW)
    transfer = payer.pay(invoice, NOW)
    late = element.receive(payee.state, transfer, now=NOW + INVOICE_SECONDS_MAX + 1, device=payee.device)
    assert payee.refusal(late) is R.INVOICE_EXPIRED
    expired = element.receive(payee.state, transfer, now=NOW + 10_000, device=payee.device)
    assert payee.refusal(expired) is R.CERTIFICATE_EXPIRED
    # A clock that is set back revives nothing.
    payee.state = replace(payee.state, clock=NOW + 10_000)
    assert payee.refusal(element.receive(payee.state, transfer, now=NOW, device=payee.device)) is R.CERTIFICATE_EXPIRED


def test_payer_refuses_what_he_cannot_pay() -> None:
    payer, payee = make_purse(), make_purse(fund=0)

    def refusal(invoice: bytes, now: int = NOW) -> PurseRefusal:
        return payer.refusal(element.pay(payer.state, invoice, now=now, device=payer.device))

    assert refusal(payee.ask(801, NOW)) is R.CAP_EXCEEDED
    assert refusal(payee.ask(5, NOW), NOW + INVOICE_SECONDS_MAX + 1) is R.INVOICE_EXPIRED
    assert refusal(payee.ask(5, NOW), NOW + 10_000) is R.CERTIFICATE_EXPIRED
    assert refusal(payer.ask(1, NOW, Disposition.ACCOUNT)) is R.NOT_FOR_THIS_PURSE
    payer.pays(payee, 800, NOW)
    assert (
        payee.refusal(
            element.ask(
                payee.state,
                amount_minor=201,
                disposition=Disposition.PURSE,
                nonce=bytes(16),
                now=NOW,
                device=payee.device,
            )
        )
        is R.PURSE_FULL
    )
    assert refusal(payee.ask(201, NOW, Disposition.ACCOUNT)) is R.FUNDS_INSUFFICIENT
    full = replace(payer.state, sent=(payer.state.sent[0],) * UNSYNCED_MAX)
    outcome = element.pay(full, payee.ask(5, NOW), now=NOW, device=payer.device)
    assert payer.refusal(outcome) is R.TOO_MUCH_UNSYNCED


def test_hops_end_at_the_cap() -> None:
    purses = [make_purse(fund=0 if number else 100, hops_max=3) for number in range(5)]
    for payer, payee in itertools.pairwise(purses[:4]):
        payer.pays(payee, 100, NOW)
    outcome = element.pay(purses[3].state, purses[4].ask(100, NOW), now=NOW, device=purses[3].device)
    assert purses[3].refusal(outcome) is R.FUNDS_INSUFFICIENT  # what he holds goes no further: he redeems it
    assert messages.read_transfer(purses[3].redeem(100, NOW)).payment.is_redemption


def test_payee_who_sees_both_spends_refuses_the_second() -> None:
    payer, payee = make_purse(), make_purse(fund=0)
    hacked = replace(payer)
    payer.pays(payee, 300, NOW)
    transfer = hacked.pay(payee.ask(200, NOW), NOW)
    outcome = element.receive(payee.state, transfer, now=NOW, device=payee.device)
    assert payee.refusal(outcome) is R.DOUBLE_SPEND


def test_payment_and_receipt_are_repeatable() -> None:
    payer, payee = make_purse(), make_purse(fund=0)
    invoice = payee.ask(300, NOW)
    transfer = payer.pay(invoice, NOW)
    assert payer.pay(invoice, NOW + 5) == transfer
    receipt = payee.receive(transfer, NOW)
    read = messages.read_receipt(payee.receive(transfer, NOW))
    assert (read.spend, read.payee) == (
        messages.read_transfer(transfer).payment.hash,
        messages.read_receipt(receipt).payee,
    )
    assert read.signed.is_signed_by(payee.key.public, "jz-receipt")
    assert (payer.state.balance_minor, payee.state.balance_minor) == (700, 300)


def test_funding_is_loaded_once_for_ever() -> None:
    purse, payee = make_purse(fund=0), make_purse(fund=0)
    funding = funding_for(purse, 400)
    purse.step(element.load(purse.state, funding))
    purse.pays(payee, 400, NOW)
    taken = frozenset({messages.read_transfer(purse.state.sent[0]).payment.hash})
    purse.step(element.synced(purse.state, taken=taken, now=NOW + 5000))
    assert (purse.state.sent, purse.state.holdings) == ((), ())
    purse.step(element.load(purse.state, funding))
    assert purse.state.balance_minor == 0
    foreign = funding_for(payee, 5)
    assert purse.refusal(element.load(purse.state, foreign)) is R.NOT_FOR_THIS_PURSE
    forged = funding_for(purse, 5, PrivateKey.generate())
    assert purse.refusal(element.load(purse.state, forged)) is R.SIGNATURE_INVALID


def test_newer_revocations_replace_older_ones_only() -> None:
    purse = make_purse()

    def listed(number: int, *purses: object) -> bytes:
        return messages.sign_revocations(number=number, purses=purses, suite=BANK.suite, sign=BANK.sign)  # type: ignore[arg-type]

    newer = listed(5, ids.new_uuid7())
    purse.step(element.carry_revocations(purse.state, newer))
    purse.step(element.carry_revocations(purse.state, listed(4)))
    assert purse.state.revocations == newer


# --- power cuts ------------------------------------------------------------------------------------------------------


class PowerCut(Exception):
    pass


def device_of(directory: Path, purse: Purse) -> PurseDevice:
    directory.mkdir()
    purse.key.save(directory / "key.pem")
    purse_device._store(directory, 1, purse.state)
    return PurseDevice(directory)


def cut_at(monkeypatch: pytest.MonkeyPatch, directory: Path, generation: int, state: PurseState, byte: int) -> None:
    """The write of a slot that fails after so many bytes."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        path = directory / f"slot-{generation % 2}"
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            os.truncate(path, min(byte, path.stat().st_size))
            raise PowerCut
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(PowerCut):
        purse_device._store(directory, generation, state)
    monkeypatch.undo()


def test_power_cut_at_any_byte_leaves_the_state_before_or_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payer, payee = make_purse(), make_purse(fund=0)
    device = device_of(tmp_path / "payer", payer)
    invoice = payee.ask(300, NOW)
    after = element.pay(payer.state, invoice, now=NOW, device=payer.device)
    assert isinstance(after, Step)
    size = 40 + len(write_state(after.state))
    for byte in [*range(0, size, 7), size - 1]:
        cut_at(monkeypatch, device.directory, 2, after.state, byte)
        assert device.state() == payer.state, "a torn slot counts for nothing"
    cut_at(monkeypatch, device.directory, 2, after.state, size)
    assert device.state() == after.state, "the whole slot is there, though nobody heard of it"
    # Whatever the instant was: the same invoice gives one payment, with one counter, and the payee takes it once.
    transfer = device.do(lambda state: element.pay(state, invoice, now=NOW, device=device.device))
    assert transfer == after.answer
    assert (device.state().counter, device.state().balance_minor) == (1, 700)


def test_power_cut_before_the_write_leaves_nothing_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    payer, payee = make_purse(), make_purse(fund=0)
    device = device_of(tmp_path / "payer", payer)
    invoice = payee.ask(300, NOW)
    monkeypatch.setattr(purse_device, "_store", lambda *_: (_ for _ in ()).throw(PowerCut()))
    with pytest.raises(PowerCut):
        device.do(lambda state: element.pay(state, invoice, now=NOW, device=device.device))
    monkeypatch.undo()
    assert device.state() == payer.state
    transfer = device.do(lambda state: element.pay(state, invoice, now=NOW, device=device.device))
    assert isinstance(transfer, bytes)
    payee.receive(transfer, NOW)
    assert messages.read_transfer(transfer).payment.counter == 1


def test_older_slot_is_the_one_that_is_written(tmp_path: Path) -> None:
    payer, payee = make_purse(), make_purse(fund=0)
    device = device_of(tmp_path / "payer", payer)
    for number in range(1, 5):
        device.do(lambda state: element.pay(state, payee.ask(10, NOW), now=NOW, device=device.device))
        newest = device.directory / f"slot-{(number + 1) % 2}"
        before = newest.read_bytes()
        newest.write_bytes(b"")
        assert device.state().counter == number - 1, "the one before is still whole"
        newest.write_bytes(before)
        assert device.state().counter == number


def test_device_refuses_clearly(tmp_path: Path) -> None:
    device = PurseDevice.make(tmp_path / "new")
    with pytest.raises(DeviceBroken, match="certificate"):
        device.state()
    refused = device.start(make_purse().state.certificate, BANK.public)
    assert isinstance(refused, Refused)
    purse = make_purse()
    other = device_of(tmp_path / "other", purse)
    assert other.start(purse.state.certificate, BANK.public) is None
    shutil.copy(other.directory / "slot-1", tmp_path / "copy")
    assert read_state((tmp_path / "copy").read_bytes()[40:]) == purse.state
    with pytest.raises(FileExistsError):
        PurseDevice.make(tmp_path / "other")
