"""Goal: offline purses over HTTP: the whole way by the typed client, and each refusal as a problem, never a fault.
Method: the real app in process, a fake ledger behind it; devices in memory.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernel import ids
from kernel.clock import system_clock
from kernel.crypto.keys import PrivateKey
from tests.api.test_wallet_api import Service, open_wallet
from tests.api.test_wallet_api import service as service
from tests.purse_world import Purse
from wallet.contract import WalletRefusal
from wallet.contract.offline import MESSAGE_BYTES_MAX, SYNCED_TOGETHER_MAX, PurseView
from wallet.domain.offline import element, messages
from wallet.domain.offline.element import Device, PurseState
from wallet.domain.offline.vocabulary import Disposition


def now() -> int:
    return int(system_clock().timestamp())


def issue(service: Service, *, deposit: int = 0) -> tuple[Purse, PurseView, PrivateKey]:
    wallet, wallet_key, _ = open_wallet(service, deposit=deposit)
    key = PrivateKey.generate("ecdsa-p256-sha256")
    with service.client("channel") as client:
        view = client.create_purse(wallet=wallet.wallet, device_key=key.public)
    state = element.new_purse(view.certificate, service.keys["bank"].public, Device(key.public, key.sign))
    assert isinstance(state, PurseState)
    return Purse(view.purse, key, state), view, wallet_key


def test_whole_way_from_certificate_to_payout(service: Service) -> None:
    payer, view, wallet_key = issue(service, deposit=50_000)
    payee, _, _ = issue(service)
    with service.client(None) as anybody, service.client("operator") as desk:
        funding = anybody.fund_purse(
            key=wallet_key,
            ledger="cny",
            debit=view.account,
            escrow=view.escrow,
            purse=payer.id,
            amount_minor=30_000,
            currency="CNY",
            valid_until=system_clock() + timedelta(minutes=5),
        )
        assert funding.message is not None
        assert desk.get_purse_funding(funding.funding).message == funding.message
        payer.step(element.load(payer.state, funding.message))
        transfer = payer.pays(payee, 12_000, now(), Disposition.ACCOUNT)
        first, again, broken = anybody.sync_purses([transfer, transfer, transfer[:-2]])
        assert first == again
        assert (first.credited_minor, first.short_minor, first.is_paid_out) == (12_000, 0, True)
        assert first.booked_at is not None
        assert (broken.refusal, broken.payment) == ("message-invalid", None)
        assert desk.get_purse(payer.id).known_balance_minor == 18_000
        escrow = desk.purse_escrow()
        assert (escrow.escrow_minor, escrow.claims_minor) == (18_000, 18_000)
        assert messages.read_revocations(anybody.purse_revocations()).purses == ()
        with service.client("channel") as channel:
            assert channel.report_purse_lost(payer.id).state == "lost"
        assert messages.read_revocations(anybody.purse_revocations()).purses == (payer.id,)
        assert service.refusal(lambda: desk.double_spend_proof(payer.id)) == (404, "purse-has-no-proof")
        assert service.refusal(lambda: desk.get_purse(ids.new_uuid7())) == (404, "purse-not-found")
        assert service.refusal(lambda: desk.get_purse_funding(ids.new_uuid7())) == (404, "funding-not-found")
        assert service.refusal(lambda: anybody.get_purse(payer.id)) == (401, "signature-missing")


def test_second_purse_and_second_wallet_are_refused(service: Service) -> None:
    purse, view, _ = issue(service)
    with service.client("channel") as client:
        make = client.create_purse
        assert make(wallet=view.wallet, device_key=purse.key.public, purse=purse.id) == view
        fresh = PrivateKey.generate().public
        assert service.refusal(lambda: make(wallet=view.wallet, device_key=fresh, purse=purse.id)) == (
            409,
            WalletRefusal.PURSE_EXISTS.value,
        )
        assert service.refusal(lambda: make(wallet=view.wallet, device_key=fresh)) == (409, "purses-too-many")
        other, _, _ = open_wallet(service)
        assert service.refusal(lambda: make(wallet=other.wallet, device_key=purse.key.public)) == (
            409,
            "device-key-in-use",
        )


@pytest.mark.parametrize(
    "messages_sent",
    [
        [],
        [""],
        ["!"],
        ["A" * (MESSAGE_BYTES_MAX * 4 // 3 + 8)],
        ["AA"] * (SYNCED_TOGETHER_MAX + 1),
        [7],
        "AA",
    ],
)
def test_misshapen_syncs_are_refused_whole(service: Service, messages_sent: object) -> None:
    response = service.http.post("/v1/purse-syncs", json={"messages": messages_sent})
    assert (response.status_code, response.json()["refusal"]) in {(422, "validation-failed")}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5))
def test_no_bytes_make_a_sync_fail(service: Service, content: list[bytes]) -> None:
    with service.client(None) as client:
        assert {result.refusal for result in client.sync_purses(content)} == {"message-invalid"}
