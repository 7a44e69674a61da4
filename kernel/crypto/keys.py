"""Signature keys in two suites: Ed25519 (default) and ECDSA P-256 with SHA-256 (phones, WebCrypto, HSMs).

The suite belongs to the key, never to a header: whoever verifies first finds the key and asks the key. Everywhere a key
is known by its RFC 7638 thumbprint (SHA-256, base64url without padding, 43 characters).
"""

from __future__ import annotations

import binascii
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
_P256_HALF_BYTES = 32
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_ED25519_FIELD = 2**255 - 19
# The encodings of y of the eight points of small order (RFC 8032 section 5.1): under such a key one signature fits
# every message, so it identifies nobody.
_ED25519_SMALL_ORDER_Y = frozenset(
    {
        0,
        1,
        _ED25519_FIELD - 1,
        2707385501144840649318225287225658788936804267575313519463743609750303021415 % _ED25519_FIELD,
        55188659117513257062467267217118295137698188065244968500265048394206261417927 % _ED25519_FIELD,
    }
)


class KeyRefused(ValueError):
    """The key's file or JWK is not acceptable; the message says why and what to do, never the key."""


class Suite(StrEnum):
    """The names RFC 9421 registers."""

    ED25519 = "ed25519"
    ECDSA_P256_SHA256 = "ecdsa-p256-sha256"


class PublicKey:
    """Frozen and hashable; equal when suite and point are equal."""

    __slots__ = ("_key", "_raw", "_suite", "_thumbprint", "_x", "_y")

    def __init__(self, key: ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey) -> None:
        self._key = key
        if isinstance(key, ed25519.Ed25519PublicKey):
            raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
            y = int.from_bytes(raw, "little") & (2**255 - 1)
            if y >= _ED25519_FIELD or y in _ED25519_SMALL_ORDER_Y:
                raise KeyRefused("this Ed25519 key is a point of small order or not canonical: make another")
            self._x, self._y = to_base64url(raw), ""
            self._raw = raw
        elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            self._raw = b""
            numbers = key.public_numbers()
            self._x = to_base64url(numbers.x.to_bytes(_P256_HALF_BYTES, "big"))
            self._y = to_base64url(numbers.y.to_bytes(_P256_HALF_BYTES, "big"))
        else:
            raise KeyRefused("only Ed25519 and ECDSA P-256 keys are taken")
        self._suite = Suite.ED25519 if self._raw else Suite.ECDSA_P256_SHA256
        canonical = json.dumps(self.to_jwk(), sort_keys=True, separators=(",", ":"))
        self._thumbprint = to_base64url(hashlib.sha256(canonical.encode("ascii")).digest())

    @property
    def suite(self) -> Suite:
        return self._suite

    @property
    def thumbprint(self) -> str:
        """The key id (RFC 7638): 43 characters of base64url."""
        return self._thumbprint

    @property
    def cryptography_key(self) -> ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey:
        return self._key

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Whether `signature` (64 bytes; for P-256 r || s) is this key's over `data`. Raises nothing."""
        if len(signature) != 64:
            return False
        try:
            if self._raw:
                crypto_sign_open(signature + data, self._raw)
            elif isinstance(self._key, ec.EllipticCurvePublicKey):
                r = int.from_bytes(signature[:_P256_HALF_BYTES], "big")
                s = int.from_bytes(signature[_P256_HALF_BYTES:], "big")
                if not (0 < r < _P256_ORDER and 0 < s < _P256_ORDER):
                    return False
                self._key.verify(encode_dss_signature(r, s), data, ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, BadSignatureError):
            return False
        return True

    def to_jwk(self) -> dict[str, str]:
        """The RFC 7517 form: kty, crv, x and for P-256 y; no other member."""
        if self._y:
            return {"kty": "EC", "crv": "P-256", "x": self._x, "y": self._y}
        return {"kty": "OKP", "crv": "Ed25519", "x": self._x}

    @staticmethod
    def from_jwk(jwk: Mapping[str, object]) -> PublicKey:
        """Strict: exactly the public members, canonical base64url of 32 bytes, a point on the curve.

        Raises: KeyRefused.
        """
        members = {name: value for name, value in jwk.items() if isinstance(value, str)}
        if members.get("kty") == "OKP" and set(jwk) == set(members) == {"kty", "crv", "x"}:
            if members["crv"] != "Ed25519":
                raise KeyRefused("an OKP key must have crv Ed25519")
            return PublicKey(_ed25519_point(_coordinate(members["x"])))
        if members.get("kty") == "EC" and set(jwk) == set(members) == {"kty", "crv", "x", "y"}:
            if members["crv"] != "P-256":
                raise KeyRefused("an EC key must have crv P-256")
            x, y = (int.from_bytes(_coordinate(members[name]), "big") for name in ("x", "y"))
            try:
                return PublicKey(ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key())
            except ValueError:
                raise KeyRefused("the key's point is not on the curve P-256") from None
        raise KeyRefused("expected a public JWK: kty OKP with crv, x or kty EC with crv, x, y; and nothing else")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and self._thumbprint == other._thumbprint

    def __hash__(self) -> int:
        return hash(self._thumbprint)

    def __repr__(self) -> str:
        return f"PublicKey({self.suite.value}, {self._thumbprint})"


def read_secret(path: Path | str) -> bytes:
    """A file that only its owner can read, at most 16 KiB of it. Raises: KeyRefused."""
    try:
        # Checked on the open file, not by name, so that it cannot be exchanged in between.
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KeyRefused(f"{path} is not a regular file")
            if status.st_mode & 0o077:
                mode = stat.S_IMODE(status.st_mode)
                raise KeyRefused(f"{path} can be read by others (mode {mode:04o}): run `chmod 600 {path}`")
            return file.read(16_384)
    except OSError as error:
        raise KeyRefused(f"cannot read the key file {path}: {error.strerror}") from None


class SigningKey(Protocol):
    """What a program needs of a key to sign with it: a `PrivateKey`, or one that stays in a hardware security module
    (`kernel.crypto.pkcs11.ModuleKey`)."""

    @property
    def public(self) -> PublicKey: ...

    @property
    def suite(self) -> Suite: ...

    @property
    def thumbprint(self) -> str:
        """RFC 7638."""

    def sign(self, data: bytes) -> bytes:
        """64 bytes over `data`. Raises: OSError if a module does not answer: nothing was signed that can be used."""


class PrivateKey:
    """Signs. Its repr and its errors never show key material, and it cannot be pickled."""

    __slots__ = ("_key", "_public")

    def __init__(self, key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self._public = PublicKey(key.public_key())

    @staticmethod
    def generate(suite: Suite | str = Suite.ED25519) -> PrivateKey:
        match Suite(suite):
            case Suite.ED25519:
                return PrivateKey(ed25519.Ed25519PrivateKey.generate())
            case Suite.ECDSA_P256_SHA256:
                return PrivateKey(ec.generate_private_key(ec.SECP256R1()))

    @staticmethod
    def load(path: Path | str) -> PrivateKey:
        """From an unencrypted PKCS#8 PEM file that only its owner can read.

        Raises: KeyRefused when the file is readable by others, is not such a key, or cannot be read.
        """
        pem = read_secret(path)
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise KeyRefused(f"{path} does not hold an unencrypted PKCS#8 PEM private key") from None
        if not isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
            raise KeyRefused(f"{path}: only Ed25519 and ECDSA P-256 keys are taken")
        return PrivateKey(key)

    def save(self, path: Path | str) -> None:
        """To a new PKCS#8 PEM file of mode 0600. Raises: FileExistsError; a key is never overwritten."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(
                self._key.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                )
            )
            file.flush()
            os.fsync(file.fileno())

    @property
    def public(self) -> PublicKey:
        return self._public

    @property
    def suite(self) -> Suite:
        return self._public.suite

    @property
    def thumbprint(self) -> str:
        return self._public.thumbprint

    @property
    def cryptography_key(self) -> ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey:
        return self._key

    def sign(self, data: bytes) -> bytes:
        """64 bytes; for P-256 r || s as RFC 9421 section 3.3.4 and RFC 7518 section 3.4 have it."""
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return self._key.sign(data)
        r, s = decode_dss_signature(self._key.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(_P256_HALF_BYTES, "big") + s.to_bytes(_P256_HALF_BYTES, "big")

    def __repr__(self) -> str:
        return f"PrivateKey({self.suite.value}, {self.thumbprint})"

    def __reduce__(self) -> str:
        raise TypeError("a private key is not pickled")


_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_", b"+/")


def to_base64url(data: bytes) -> str:
    """RFC 4648 section 5 without padding."""
    return binascii.b2a_base64(data, newline=False).translate(_TO_URL).rstrip(b"=").decode("ascii")


def from_base64url(text: str) -> bytes:
    """The bytes of canonical, unpadded base64url. Raises ValueError for anything that would not encode back to it."""
    try:
        encoded = text.encode("ascii")
        data = binascii.a2b_base64(encoded.translate(_FROM_URL) + b"=" * (-len(encoded) % 4))
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError("not base64url") from None
    # The decoder skips what is not its alphabet; what does not encode back to the same text is refused here.
    if binascii.b2a_base64(data, newline=False).translate(_TO_URL).rstrip(b"=") != encoded:
        raise ValueError("not canonical base64url")
    return data


def _coordinate(text: str) -> bytes:
    try:
        data = from_base64url(text)
    except ValueError:
        data = b""
    if len(data) != 32:
        raise KeyRefused("a coordinate must be 32 bytes in canonical base64url")
    return data


def _ed25519_point(raw: bytes) -> ed25519.Ed25519PublicKey:
    y = int.from_bytes(raw, "little") & (2**255 - 1)
    # RFC 8032 section 5.1.3: x^2 = (y^2 - 1) / (d y^2 + 1) must be a square; the library accepts any 32 bytes.
    d = -121665 * pow(121666, -1, _ED25519_FIELD) % _ED25519_FIELD
    square = (y * y - 1) * pow(d * y * y + 1, -1, _ED25519_FIELD) % _ED25519_FIELD
    if y >= _ED25519_FIELD or pow(square, (_ED25519_FIELD - 1) // 2, _ED25519_FIELD) not in (0, 1):
        raise KeyRefused("the key's point is not on the curve Ed25519")
    return ed25519.Ed25519PublicKey.from_public_bytes(raw)
