"""Goal: what the institution itself has decided about a wallet no app of its own takes back; what a stranger sends in
the place of a signature is refused, and is no fault of the service.
Method: the real app over HTTP, with the keys of its clients.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from kernel.clock import system_clock
from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey, to_base64url
from ledger.contract import INSTRUCTION_TYP, TransferKind
from tests.api.test_wallet_api import Service, open_wallet
from tests.api.test_wallet_api import service as service
from wallet.client.controls import payment_control
from wallet.contract.controls import sign_control


def test_institutions_own_suspension_is_lifted_by_its_desk_alone(service: Service) -> None:
    wallet, _, _ = open_wallet(service)
    with service.client("operator") as desk, service.client("channel") as app:
        desk.suspend_wallet(wallet=wallet.wallet, reason="institution")
        tried = service.refusal(lambda: app.resume_wallet(wallet=wallet.wallet, reason="institution"))
        assert tried == (403, "not-permitted")
        assert app.get_wallet(wallet.wallet).state.value == "suspended"
        desk.resume_wallet(wallet=wallet.wallet, reason="institution")
        assert app.get_wallet(wallet.wallet).state.value == "open"


def test_a_signature_that_is_none_is_refused_and_no_fault(service: Service) -> None:
    """Anybody may send rules of dual control; the second signature may be anything."""
    wallet, key, customer = open_wallet(service)
    other = PrivateKey.generate()
    with service.client("channel") as app:
        app.register_corporate(customer, legal_name="Teahouse", social_credit_code="91350100M000100Y43")
    document = payment_control(
        wallet.wallet,
        [("a", key.public), ("b", other.public)],
        alone_max_minor=1,
        alone_day_max_minor=1,
        version=1,
        valid_until=system_clock() + timedelta(hours=1),
    )
    good = [sign_control(document, signer) for signer in (key, other)]
    anybody = service.client(None)
    for bad in ("x" * 40, "a.b.c" * 10, "." * 40, good[0][:-1] + ".", "e30.e30.e30" + "A" * 20):
        for pair in ([good[0], bad], [bad, good[1]]):
            refused = service.refusal(lambda pair=pair: anybody.set_payment_control(wallet.wallet, pair))  # type: ignore[misc]
            assert refused == (403, "control-invalid")
    assert anybody.set_payment_control(wallet.wallet, good).version == 1


def test_a_header_that_names_no_key_is_refused_by_every_door_of_a_wallet_with_two_devices(service: Service) -> None:
    wallet, key, _ = open_wallet(service, deposit=1_000)
    tablet = PrivateKey.generate("ecdsa-p256-sha256")
    with service.client("channel") as app:
        app.change_device(
            "add-holder-key",
            wallet=wallet.wallet,
            account=wallet.account,
            ledger="cny",
            device_key=tablet.public,
            key=key,
        )
        purse = app.create_purse(wallet=wallet.wallet, device_key=PrivateKey.generate("ecdsa-p256-sha256").public)
        token = app.instruct(
            TransferKind.PURSE_FUND,
            key=key,
            ledger="cny",
            debit=wallet.account,
            credit=purse.escrow,
            amount_minor=10,
            currency="CNY",
            reference=purse.purse,
        )
    for kid in ([], {}, ["x"], None, 7, "x" * 500):
        header = to_base64url(jws.canonical_json({"alg": "ES256", "kid": kid, "typ": INSTRUCTION_TYP}))
        odd = ".".join([header, *token.split(".")[1:]])
        for path in ("/v1/payments", "/v1/refunds", "/v1/exchanges-out", "/v1/purse-fundings"):
            answer = service.http.post(path, json={"instruction": odd})
            assert 400 <= answer.status_code < 500, (path, kid, answer.text)


def test_the_ends_of_the_calendar_are_no_fault(service: Service) -> None:
    wallet, key, _ = open_wallet(service, deposit=1_000)
    with service.client("channel") as app:
        purse = app.create_purse(wallet=wallet.wallet, device_key=PrivateKey.generate("ecdsa-p256-sha256").public)
        funding = app.fund_purse(
            key=key,
            ledger="cny",
            debit=wallet.account,
            escrow=purse.escrow,
            purse=purse.purse,
            amount_minor=10,
            currency="CNY",
            valid_until=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
        )
        assert funding.message is not None
    with service.client("operator") as desk:
        for day in (date.min, date.max):
            for call in (desk.check_exchanges, desk.reserve_report):
                assert service.refusal(lambda call=call, day=day: call(day)) == (422, "validation-failed")  # type: ignore[misc]
