"""Goal: a webhook is signed as the Standard Webhooks specification says, goes to public addresses only, and its
retries end.
Method: the specification's published test vector; tables of addresses; forged, old and altered messages.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kernel.crypto.keys import PrivateKey
from wallet.domain.events import (
    ATTEMPTS_MAX,
    RETRY_DELAYS,
    AddressRefused,
    WebhookRefused,
    check_address,
    check_url,
    next_delivery,
    verify_webhook,
    webhook_headers,
)

NOW = datetime.fromtimestamp(1614265330, UTC)


def test_signature_is_that_of_the_published_vector() -> None:
    """Source: standard-webhooks, libraries/go/webhook_asymmetric_test.go, TestAsymmetricWebhookSign."""
    seed = base64.b64decode("VEVTVFNJR05JTkdLRVlET05PVFVTRVRISVNGT1JBTlk=")
    key = PrivateKey(Ed25519PrivateKey.from_private_bytes(seed))
    body = b'{"test": 2432232314}'
    headers = webhook_headers("msg_p5jXN8AQM9LWM0D4loKWxJek", body, sent_at=NOW, key=key)
    assert headers["webhook-timestamp"] == "1614265330"
    assert headers["webhook-signature"] == (
        "v1a,tQ9V2XOqn7jL/DQenEFpqIugdBVtiMmER5mhSkXBNwM0mkATuDe6KYYUuxqtaiHeYGb7KaaBRdM5WqyeFiL8Ag=="
    )
    assert verify_webhook(headers, body, keys=[key.public], now=NOW) == "msg_p5jXN8AQM9LWM0D4loKWxJek"


@pytest.mark.parametrize("fault", ["body", "id", "time", "key", "old", "future", "no-header", "v1", "garbage", "empty"])
def test_altered_old_or_foreign_message_is_refused(fault: str) -> None:
    key = PrivateKey.generate()
    headers, body, now = webhook_headers("evt_1", b"{}", sent_at=NOW, key=key), b"{}", NOW
    trusted = PrivateKey.generate().public if fault == "key" else key.public
    if fault == "body":
        body = b"{ }"
    elif fault == "id":
        headers["webhook-id"] = "evt_2"
    elif fault == "time":
        headers["webhook-timestamp"] = str(int(NOW.timestamp()) + 1)
    elif fault == "old":
        now += timedelta(seconds=301)
    elif fault == "future":
        now -= timedelta(seconds=301)
    elif fault == "no-header":
        del headers["webhook-signature"]
    elif fault == "v1":
        headers["webhook-signature"] = headers["webhook-signature"].replace("v1a", "v1")
    elif fault == "garbage":
        headers["webhook-signature"] = "v1a,***"
    elif fault == "empty":
        headers["webhook-signature"] = "v1a,"
    with pytest.raises(WebhookRefused):
        verify_webhook(headers, body, keys=[trusted], now=now)


def test_one_good_signature_among_others_is_enough_while_keys_change() -> None:
    old, new = PrivateKey.generate(), PrivateKey.generate()
    headers = webhook_headers("evt_1", b"{}", sent_at=NOW, key=new)
    before = webhook_headers("evt_1", b"{}", sent_at=NOW, key=old)["webhook-signature"]
    headers["webhook-signature"] = f"v1,AAAA {before} {headers['webhook-signature']}"
    assert verify_webhook(headers, b"{}", keys=[new.public], now=NOW) == "evt_1"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "::7f00:1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:0:1::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "nonsense",
    ],
)
def test_address_that_is_not_public_is_refused(address: str) -> None:
    with pytest.raises(AddressRefused):
        check_address(address, is_sandbox=False)


def test_public_addresses_are_allowed_and_a_sandbox_may_reach_its_own_machine_only() -> None:
    for address in ("8.8.8.8", "2606:4700:4700::1111"):
        check_address(address, is_sandbox=False)
    for address in ("127.0.0.1", "::1"):
        check_address(address, is_sandbox=True)
    with pytest.raises(AddressRefused):
        check_address("169.254.169.254", is_sandbox=True)


@pytest.mark.parametrize(
    "url",
    [
        "http://bank.example/",
        "ftp://bank.example/",
        "https://",
        "https://user:pw@bank.example/",
        "https://bank.example/#x",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://bank.example:99999/",
        "https://bank.example/\r\nx: y",
        "https://bank.example\\@evil.example/",
        "https://bänk.example/",
        "https://bank.example/" + "x" * 2000,
    ],
)
def test_address_that_cannot_be_an_endpoint_is_refused(url: str) -> None:
    with pytest.raises(AddressRefused):
        check_url(url, is_sandbox=False)


def test_retries_follow_the_specification_and_end() -> None:
    at, spent = NOW, []
    for attempts in range(1, ATTEMPTS_MAX):
        later = next_delivery(at, attempts=attempts, chance=0.0)
        assert later is not None
        spent.append(later - at)
        at = later
    assert tuple(spent) == RETRY_DELAYS
    assert at - NOW == timedelta(hours=75, minutes=35, seconds=5)
    assert next_delivery(at, attempts=ATTEMPTS_MAX, chance=0.0) is None
    jittered = next_delivery(NOW, attempts=1, chance=0.999)
    assert jittered is not None
    assert timedelta(seconds=5) < jittered - NOW < timedelta(seconds=6)
    assert next_delivery(NOW, attempts=1, chance=0, retry_after_seconds=60) == NOW + timedelta(minutes=1)
    assert next_delivery(NOW, attempts=1, chance=0, retry_after_seconds=10**9) == NOW + timedelta(days=1)
