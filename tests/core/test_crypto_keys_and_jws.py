"""Goal: a document verifies only under the key, suite and type it was signed with; keys do not leak or degrade.

Method: every known JWS attack against both suites; joserfc, an independent library, as oracle in both directions.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from joserfc import jws as oracle
from joserfc.jwk import ECKey, OKPKey

from kernel.crypto import jws
from kernel.crypto.keys import KeyRefused, PrivateKey, PublicKey, Suite, from_base64url, to_base64url

SUITES = list(Suite)
TYP = "jiaozi-instruction"


def forged(header: dict[str, object], payload: bytes, key: PrivateKey) -> str:
    """A token whose signature is honest but whose header is the attacker's."""
    signing_input = f"{to_base64url(json.dumps(header).encode())}.{to_base64url(payload)}"
    return f"{signing_input}.{to_base64url(key.sign(signing_input.encode()))}"


def header_of(key: PrivateKey, **changes: object) -> dict[str, object]:
    alg = "EdDSA" if key.suite is Suite.ED25519 else "ES256"
    return {"alg": alg, "kid": key.thumbprint, "typ": TYP} | changes


@pytest.mark.parametrize("suite", SUITES)
def test_signed_document_verifies_and_can_be_peeked_at(suite: Suite) -> None:
    key = PrivateKey.generate(suite)
    token = jws.sign(b'{"a":1}', key, typ=TYP)
    assert jws.verify(token, key.public, typ=TYP) == b'{"a":1}'
    assert jws.peek_header(token)["kid"] == key.thumbprint
    assert jws.peek_payload(token) == b'{"a":1}'


@pytest.mark.parametrize("suite", SUITES)
def test_independent_library_agrees_in_both_directions(suite: Suite, tmp_path: Path) -> None:
    key = PrivateKey.generate(suite)
    key.save(tmp_path / "key.pem")
    kind = OKPKey if suite is Suite.ED25519 else ECKey
    theirs = kind.import_key((tmp_path / "key.pem").read_text())
    alg = str(header_of(key)["alg"])
    assert theirs.thumbprint() == key.thumbprint
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # RFC 9864 prefers the name Ed25519 over EdDSA
        token = oracle.serialize_compact(header_of(key), b"theirs", theirs, algorithms=[alg])
        assert jws.verify(token, key.public, typ=TYP) == b"theirs"
        ours = jws.sign(b"ours", key, typ=TYP)
        assert oracle.deserialize_compact(ours, theirs, algorithms=[alg]).payload == b"ours"


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize(
    "changes",
    [
        {"alg": "none"},
        {"alg": "HS256"},
        {"alg": "ES384"},
        {"alg": "Ed448"},
        {"typ": "jiaozi-receipt"},
        {"kid": "A" * 43},
        {"crit": ["exp"], "exp": 1},
        {"b64": False, "crit": ["b64"]},
        {"b64": False},
        {"jwk": {"kty": "OKP"}},
        {"jku": "https://attacker.example/keys"},
        {"zip": "DEF"},
        {"typ": None},
    ],
    ids=str,
)
def test_header_of_the_attackers_choice_is_refused_though_honestly_signed(
    suite: Suite, changes: dict[str, object]
) -> None:
    key = PrivateKey.generate(suite)
    with pytest.raises(jws.InvalidJws):
        jws.verify(forged(header_of(key, **changes), b"x", key), key.public, typ=TYP)


def test_suite_confusion_is_refused_both_ways() -> None:
    ed, p256 = (PrivateKey.generate(suite) for suite in SUITES)
    for signer, other in ((ed, p256), (p256, ed)):
        token = forged(header_of(other), b"x", signer)  # the victim's header, the attacker's signature
        with pytest.raises(jws.InvalidJws):
            jws.verify(token, other.public, typ=TYP)
        with pytest.raises(jws.InvalidJws):
            jws.verify(forged(header_of(signer), b"x", signer), other.public, typ=TYP)


@pytest.mark.parametrize("suite", SUITES)
def test_every_altered_character_is_refused(suite: Suite) -> None:
    key = PrivateKey.generate(suite)
    token = jws.sign(b'{"amount_minor":"100"}', key, typ=TYP)
    for index, character in enumerate(token):
        altered = token[:index] + ("B" if character == "A" else "A") + token[index + 1 :]
        with pytest.raises(jws.InvalidJws):
            jws.verify(altered, key.public, typ=TYP)


@pytest.mark.parametrize("suite", SUITES)
def test_malformed_tokens_are_refused(suite: Suite) -> None:
    key = PrivateKey.generate(suite)
    head, payload, signature = jws.sign(b"xy", key, typ=TYP).split(".")
    for token in (
        "",
        ".",
        "..",
        f"{head}.{payload}",
        f"{head}.{payload}.",
        f"{head}.{payload}.{signature}.",
        f"{head}.{payload}.{signature}=",
        f"{head}.{payload}=.{signature}",
        f"{head}.{payload} .{signature}",
        f"{head}.{payload}.{signature}\n",
        f"{head}.{payload}.é{signature}",
        f"{head}.{payload}.{to_base64url(from_base64url(signature)[:-1])}",
        f"{head}.{payload}.{to_base64url(bytes(64))}",
        f"{to_base64url(b'[]')}.{payload}.{signature}",
        f"{to_base64url(b'[' * 5000)}.{payload}.{signature}",
    ):
        with pytest.raises(jws.InvalidJws):
            jws.verify(token, key.public, typ=TYP)
    with pytest.raises(jws.InvalidJws, match="longer"):
        jws.verify(jws.sign(b"x" * 20_000, key, typ=TYP), key.public, typ=TYP)


def test_non_canonical_base64url_of_the_same_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="canonical"):
        from_base64url("QR")  # decodes to "A" as "QQ" does


def test_canonical_json_is_rfc_8785() -> None:
    value = {"\U0001f600": 1, "\ufb33": 2, "b": [True, None, '\u20ac\n\x0f/"\\'], "a": {"z": -1, "": 0}}
    expected = '{"a":{"":0,"z":-1},"b":[true,null,"€\\n\\u000f/\\"\\\\"],"\U0001f600":1,"\ufb33":2}'
    assert jws.canonical_json(value).decode() == expected
    for refused in (1.5, float("nan"), 2**53, -(2**53), {1: 2}, "\ud800", {"a": {"b": 1.0}}, b"x"):
        with pytest.raises(ValueError):
            jws.canonical_json(refused)


@pytest.mark.parametrize("suite", SUITES)
def test_key_file_is_private_and_read_back(suite: Suite, tmp_path: Path) -> None:
    key, path = PrivateKey.generate(suite), tmp_path / "key.pem"
    key.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert PrivateKey.load(path).public == key.public
    with pytest.raises(FileExistsError):
        key.save(path)
    for mode in (0o640, 0o604, 0o660):
        path.chmod(mode)
        with pytest.raises(KeyRefused, match="chmod 600"):
            PrivateKey.load(path)


def test_file_that_is_no_key_is_refused_without_showing_it(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")
    path.chmod(0o600)
    with pytest.raises(KeyRefused) as caught:
        PrivateKey.load(path)
    assert "c2Vj" not in str(caught.value)
    with pytest.raises(KeyRefused, match="cannot read"):
        PrivateKey.load(tmp_path / "absent")


@pytest.mark.parametrize("suite", SUITES)
def test_private_key_shows_nothing_and_is_not_pickled(suite: Suite) -> None:
    key = PrivateKey.generate(suite)
    assert repr(key) == f"PrivateKey({suite.value}, {key.thumbprint})"
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_thumbprint_is_rfc_8037s_example() -> None:
    key = PublicKey.from_jwk({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})
    assert key.thumbprint == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_only_exact_public_jwks_are_taken() -> None:
    ed, p256 = (PrivateKey.generate(suite).public.to_jwk() for suite in SUITES)
    assert PublicKey.from_jwk(ed) == PublicKey.from_jwk(dict(ed)) and len({PublicKey.from_jwk(p256)}) == 1
    small_order = to_base64url((1).to_bytes(32, "little"))
    for refused in (
        ed | {"d": "AAAA"},
        ed | {"kid": "x"},
        ed | {"crv": "X25519"},
        ed | {"kty": "EC"},
        ed | {"x": ed["x"][:-1]},
        ed | {"x": ed["x"] + "="},
        ed | {"x": small_order},
        ed | {"x": to_base64url(bytes(32))},
        ed | {"x": to_base64url((2).to_bytes(32, "little"))},
        ed | {"x": to_base64url(b"\xff" * 32)},
        p256 | {"y": p256["x"]},
        p256 | {"crv": "P-384"},
        p256 | {"x": 5},
        {"kty": "oct", "k": "AAAA"},
        {},
    ):
        with pytest.raises(KeyRefused):
            PublicKey.from_jwk(refused)


@pytest.mark.parametrize("suite", SUITES)
def test_signature_of_wrong_form_is_false_not_an_error(suite: Suite) -> None:
    key = PrivateKey.generate(suite)
    signature = key.sign(b"data")
    assert len(signature) == 64 and key.public.verify(b"data", signature)
    for wrong in (b"", signature[:-1], signature + b"\0", bytes(64), b"\xff" * 64):
        assert not key.public.verify(b"data", wrong)
    assert not key.public.verify(b"Data", signature)
    assert not PrivateKey.generate(suite).public.verify(b"data", signature)


def test_a_signature_with_a_point_of_small_order_is_refused() -> None:
    """Only the key's holder can make one: R is the neutral point, S = k a. Libraries differ; we refuse it."""
    order = 2**252 + 27742317777372353535851937790883648493
    seed = bytes(range(32))
    key = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
    public = key.public_key().public_bytes_raw()
    digest = bytearray(hashlib.sha512(seed).digest()[:32])
    digest[0] &= 248
    digest[31] = digest[31] & 127 | 64
    data, neutral = b"pay", (1).to_bytes(32, "little")
    challenge = int.from_bytes(hashlib.sha512(neutral + public + data).digest(), "little") % order
    scalar = challenge * int.from_bytes(digest, "little") % order
    signature = neutral + scalar.to_bytes(32, "little")
    key.public_key().verify(signature, data)  # OpenSSL takes it, so the equation holds
    assert not PublicKey(key.public_key()).verify(data, signature)
    assert PublicKey(key.public_key()).verify(data, key.sign(data))
