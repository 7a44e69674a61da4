"""Goal: what arrives is what the institution signed, recently, once.

Method: one honest request per suite, then a matrix of tampering; each must get its own refusal.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import http_message_signatures as hms
import httpx
import pytest

from kernel.clock import ManualClock
from kernel.crypto import http_signatures
from kernel.crypto.http_signatures import RequestSigner, VerifiedRequest, signatures_expire, verify_request
from kernel.crypto.keys import PrivateKey, PublicKey, Suite
from kernel.crypto.nonces import MemoryNonceStore
from kernel.errors import ProblemError, RequestRefusal

NOW = datetime(2027, 1, 4, 9, 0, tzinfo=UTC)
URL = "https://ledger.example/v1/transfers?atomic=true"
BODY = b'{"amount_minor":"100"}'
SUITES = list(Suite)


def signed(key: PrivateKey, *, body: bytes | None = BODY, idempotency_key: str | None = "k-1") -> httpx.Request:
    headers = {"content-type": "application/json"} if body else {}
    if idempotency_key:
        headers["idempotency-key"] = idempotency_key
    request = httpx.Request("POST" if body else "GET", URL, content=body, headers=headers)
    RequestSigner(key, clock=lambda: NOW).sign(request)
    return request


def check(request: httpx.Request, key: PublicKey | None, **changes: object) -> VerifiedRequest:
    arguments: dict[str, object] = {
        "method": request.method,
        "target_uri": str(request.url),
        "headers": list(request.headers.multi_items()),
        "body": request.content,
        "find_key": lambda key_id: key if key is not None and key_id == key.thumbprint else None,
        "now": NOW,
    }
    return verify_request(**(arguments | changes))  # type: ignore[arg-type]


def refused(request: httpx.Request, key: PublicKey | None, **changes: object) -> RequestRefusal:
    with pytest.raises(ProblemError) as caught:
        check(request, key, **changes)
    assert isinstance(caught.value.refusal, RequestRefusal)
    return caught.value.refusal


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("body", [BODY, None])
def test_honest_request_verifies(suite: Suite, body: bytes | None) -> None:
    key = PrivateKey.generate(suite)
    verified = check(signed(key, body=body), key.public)
    assert (verified.key_id, verified.created) == (key.thumbprint, NOW)
    assert verified.expires == NOW + timedelta(seconds=300)


def set_header(name: str, value: str) -> Callable[[httpx.Request], None]:
    def change(request: httpx.Request) -> None:
        request.headers[name] = value

    return change


def drop_header(name: str) -> Callable[[httpx.Request], None]:
    def change(request: httpx.Request) -> None:
        del request.headers[name]

    return change


def edit(name: str, pattern: str, replacement: str) -> Callable[[httpx.Request], None]:
    def change(request: httpx.Request) -> None:
        before = request.headers[name]
        request.headers[name] = re.sub(pattern, replacement, before, count=1)
        assert request.headers[name] != before

    return change


HEADER_TAMPERING = {
    "content type changed": set_header("content-type", "application/xml"),
    "content type removed": drop_header("content-type"),
    "idempotency key changed": set_header("idempotency-key", "k-2"),
    "idempotency key removed": drop_header("idempotency-key"),
    "digest changed": set_header("content-digest", "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"),
    "digest removed": drop_header("content-digest"),
    "digest of an unknown algorithm": set_header("content-digest", "md5=:AAAAAAAAAAAAAAAAAAAAAA==:"),
    "signature removed": drop_header("signature"),
    "signature input removed": drop_header("signature-input"),
    "signature replaced": set_header("signature", "sig1=:" + "A" * 86 + "==:"),
    "signature malformed": set_header("signature", "sig1=x;;;"),
    "signature input malformed": set_header("signature-input", "((((("),
    "signature of another label": edit("signature", "sig1", "sig2"),
    "created altered": edit("signature-input", r"created=\d+", "created=1800000000"),
    "created removed": edit("signature-input", r"created=\d+;", ""),
    "created not a number": edit("signature-input", r"created=\d+", 'created="now"'),
    "nonce altered": edit("signature-input", r'nonce="[^"]+"', 'nonce="AAAAAAAAAAAAAAAAAAAAAA"'),
    "nonce removed": edit("signature-input", r'nonce="[^"]+";', ""),
    "nonce too short": edit("signature-input", r'nonce="[^"]+"', 'nonce="A"'),
    "tag of another protocol": edit("signature-input", "jiaozi", "other"),
    "tag removed": edit("signature-input", ';tag="jiaozi"', ""),
    "alg of another suite": edit("signature-input", r'alg="[^"]+"', 'alg="hmac-sha256"'),
    "keyid not a thumbprint": edit("signature-input", r'keyid="[^"]+"', 'keyid="../../etc"'),
    "coverage of the target removed": edit("signature-input", '"@target-uri" ', ""),
    "coverage of the digest removed": edit("signature-input", ' "content-digest"', ""),
    "coverage of the key removed": edit("signature-input", ' "idempotency-key"', ""),
    "coverage emptied": edit("signature-input", r"\([^)]*\)", "()"),
    "expires added": edit("signature-input", ";keyid", ";expires=9999999999;keyid"),
}


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("attack", HEADER_TAMPERING)
def test_tampered_header_is_refused(suite: Suite, attack: str) -> None:
    key = PrivateKey.generate(suite)
    request = signed(key)
    HEADER_TAMPERING[attack](request)
    assert refused(request, key.public) is RequestRefusal.SIGNATURE_INVALID


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize(
    "changes",
    [
        {"body": b'{"amount_minor":"999"}'},
        {"body": b""},
        {"method": "PUT"},
        {"target_uri": "https://ledger.example/v1/refunds?atomic=true"},
        {"target_uri": "https://ledger.example/v1/transfers?atomic=false"},
        {"target_uri": "https://ledger.example/v1/transfers"},
        {"target_uri": "https://other.example/v1/transfers?atomic=true"},
        {"target_uri": "http://ledger.example/v1/transfers?atomic=true"},
    ],
    ids=str,
)
def test_tampered_request_is_refused(suite: Suite, changes: dict[str, object]) -> None:
    key = PrivateKey.generate(suite)
    assert refused(signed(key), key.public, **changes) is RequestRefusal.SIGNATURE_INVALID


def test_body_added_to_a_signed_request_without_one_is_refused() -> None:
    key = PrivateKey.generate()
    assert refused(signed(key, body=None), key.public, body=BODY) is RequestRefusal.SIGNATURE_INVALID


def test_idempotency_key_added_to_a_signed_request_without_one_is_refused() -> None:
    key = PrivateKey.generate()
    request = signed(key, idempotency_key=None)
    request.headers["idempotency-key"] = "k-9"
    assert refused(request, key.public) is RequestRefusal.SIGNATURE_INVALID


def test_unsigned_request_is_told_to_sign() -> None:
    request = httpx.Request("POST", URL, content=BODY)
    assert refused(request, None) is RequestRefusal.SIGNATURE_MISSING


@pytest.mark.parametrize("suite", SUITES)
def test_unknown_key_other_key_and_other_suite_are_refused(suite: Suite) -> None:
    key = PrivateKey.generate(suite)
    assert refused(signed(key), None) is RequestRefusal.SIGNATURE_INVALID
    for other in SUITES:  # a registry that answers with somebody else's key must not help
        stranger = PrivateKey.generate(other).public
        assert refused(signed(key), None, find_key=lambda _, k=stranger: k) is RequestRefusal.SIGNATURE_INVALID


def test_headers_that_are_not_ascii_are_refused() -> None:
    key = PrivateKey.generate()
    for name in ("signature", "signature-input", "content-digest"):
        request = signed(key)
        lines = [(n, v + "\xe9" if n == name else v) for n, v in request.headers.multi_items()]
        assert refused(request, key.public, headers=lines) is RequestRefusal.SIGNATURE_INVALID


def test_two_signatures_of_ours_are_refused() -> None:
    key = PrivateKey.generate()
    request = signed(key)
    for name in ("signature", "signature-input"):
        value = request.headers[name]
        request.headers[name] = value + ", " + value.replace("sig1", "sig2", 1)
    assert refused(request, key.public) is RequestRefusal.SIGNATURE_INVALID


@pytest.mark.parametrize(
    ("seconds_later", "refusal"),
    [(0, None), (299, None), (301, "stale"), (86_400, "stale"), (-29, None), (-31, "stale"), (-86_400, "stale")],
)
def test_stale_and_future_signatures_are_refused(seconds_later: int, refusal: str | None) -> None:
    key = PrivateKey.generate()
    now = NOW + timedelta(seconds=seconds_later)
    if refusal is None:
        check(signed(key), key.public, now=now)
    else:
        assert refused(signed(key), key.public, now=now) is RequestRefusal.SIGNATURE_STALE


def test_request_with_a_deadline_is_stale_after_it_even_if_it_was_signed_later() -> None:
    key = PrivateKey.generate()
    deadline = NOW + timedelta(seconds=60)
    with signatures_expire(deadline):
        request = signed(key)
    check(request, key.public, now=deadline)
    too_late = deadline + timedelta(seconds=1)
    assert refused(request, key.public, now=too_late) is RequestRefusal.SIGNATURE_STALE
    check(signed(key), key.public, now=too_late)  # the deadline ends with its block
    with signatures_expire(NOW - timedelta(seconds=1)):
        assert refused(signed(key), key.public) is RequestRefusal.SIGNATURE_STALE


def test_replayed_request_is_taken_once_until_it_is_stale() -> None:
    key, clock = PrivateKey.generate(), ManualClock(NOW)
    store = MemoryNonceStore(clock=clock)
    verified = check(signed(key), key.public)
    assert store.take(verified.key_id, verified.nonce, verified.expires)
    clock.advance(timedelta(seconds=300))
    assert not store.take(verified.key_id, verified.nonce, verified.expires)


def test_every_attempt_has_a_nonce_of_its_own() -> None:
    key = PrivateKey.generate()
    request = signed(key)
    first = check(request, key.public)
    RequestSigner(key, clock=lambda: NOW).sign(request)
    assert check(request, key.public).nonce != first.nonce


def test_full_nonce_memory_refuses_rather_than_forgets_and_frees_itself() -> None:
    clock = ManualClock(NOW)
    store = MemoryNonceStore(clock=clock, nonces_max=2)
    assert [store.take("k", nonce, NOW + timedelta(seconds=10)) for nonce in "abca"] == [True, True, False, False]
    clock.advance(timedelta(seconds=11))
    assert store.take("k", "c", NOW + timedelta(seconds=20))


def test_origin_is_signed_instead_of_the_dialled_host() -> None:
    key = PrivateKey.generate()
    request = httpx.Request("GET", "http://127.0.0.1:9/v1/supply?x=%20")
    RequestSigner(key, clock=lambda: NOW, origin="https://ledger.example/").sign(request)
    assert check(request, key.public, target_uri="https://ledger.example/v1/supply?x=%20").key_id == key.thumbprint


# --- our short way and the library's long one ------------------------------------------------------------------------


def by_the_library(key: PrivateKey, request: httpx.Request, nonce: str, expires: datetime | None) -> httpx.Headers:
    """The request's headers as the general library signs it."""

    class Signs(hms.HTTPSignatureAlgorithm):
        algorithm_id = key.suite.value

        def __init__(self, public_key: Any = None, private_key: Any = None) -> None:
            pass

        def sign(self, message: bytes) -> bytes:
            return key.sign(message)

        def verify(self, signature: bytes, message: bytes) -> None:
            raise NotImplementedError

    class Knows(hms.HTTPSignatureKeyResolver):
        def resolve_public_key(self, key_id: str) -> Any:
            return None

        def resolve_private_key(self, key_id: str) -> Any:
            return b"any"

    signed_by_library = httpx.Request(request.method, request.url, content=request.content, headers=request.headers)
    for name in ("signature", "signature-input", "content-digest"):
        signed_by_library.headers.pop(name, None)
    covered = ("@method", "@target-uri", "content-type", "idempotency-key")
    hms.HTTPMessageSigner(signature_algorithm=Signs, key_resolver=Knows()).sign(
        signed_by_library,
        key_id=key.thumbprint,
        created=NOW,
        expires=expires,
        nonce=nonce,
        label="sig1",
        tag="jiaozi",
        covered_component_ids=[name for name in covered if name.startswith("@") or name in signed_by_library.headers],
        body=request.content or None,
    )
    return signed_by_library.headers


@pytest.mark.parametrize("idempotency_key", ["k-1", None])
@pytest.mark.parametrize("body", [BODY, None])
@pytest.mark.parametrize("expires", [NOW + timedelta(seconds=60), None])
def test_library_signs_the_same_letters(
    body: bytes | None, idempotency_key: str | None, expires: datetime | None
) -> None:
    """Ed25519 signatures are deterministic, so what is signed is the same to the last byte."""
    key = PrivateKey.generate()
    with signatures_expire(expires):
        request = signed(key, body=body, idempotency_key=idempotency_key)
    nonce = re.search(r'nonce="([^"]+)"', request.headers["signature-input"])
    assert nonce is not None
    expected = by_the_library(key, request, nonce[1], expires)
    for name in ("signature", "signature-input", "content-digest"):
        assert request.headers.get(name) == expected.get(name)


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("body", [BODY, None])
@pytest.mark.parametrize("idempotency_key", ["k-1", None])
@pytest.mark.parametrize("expires", [NOW + timedelta(seconds=60), None])
def test_short_way_and_library_verify_the_same_request(
    suite: Suite, body: bytes | None, idempotency_key: str | None, expires: datetime | None
) -> None:
    key = PrivateKey.generate(suite)
    with signatures_expire(expires):
        request = signed(key, body=body, idempotency_key=idempotency_key)
    fields = list(request.headers.multi_items())
    arguments = (request.method, str(request.url), fields)
    short = http_signatures._verify_as_we_sign(*arguments, body or b"", lambda key_id: key.public)
    names = {name for name, _ in fields}
    long = http_signatures._verify_any(*arguments, names, body or b"", lambda key_id: key.public)
    assert short is not None
    assert short == long


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("attack", HEADER_TAMPERING)
def test_short_way_takes_nothing_tampered(suite: Suite, attack: str) -> None:
    key = PrivateKey.generate(suite)
    request = signed(key)
    HEADER_TAMPERING[attack](request)
    fields = list(request.headers.multi_items())
    assert (
        http_signatures._verify_as_we_sign(
            request.method, str(request.url), fields, request.content, lambda key_id: key.public
        )
        is None
    )


@pytest.mark.parametrize("name", ["content-type", "content-digest", "signature", "signature-input", "idempotency-key"])
def test_short_way_leaves_repeated_fields_to_the_library(name: str) -> None:
    key = PrivateKey.generate()
    request = signed(key)
    fields = [*request.headers.multi_items(), (name.title(), request.headers[name])]
    read = http_signatures._verify_as_we_sign(
        request.method, str(request.url), fields, request.content, lambda key_id: key.public
    )
    assert read is None
