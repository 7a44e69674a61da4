"""An institution's key in a hardware security module: a signer whose key stays inside, by PKCS#11 (OASIS, v3.1).

`ModuleKey` is a `kernel.crypto.keys.SigningKey` over the library `python-pkcs11` (optional: `pip install
python-pkcs11`); `load_signing_key` reads which key a service signs with. The key is found by its label and must be
sensitive and not extractable, so nobody gets it out, this program included. It signs

- Ed25519: mechanism CKM_EDDSA without parameters, over the data itself (64 bytes: R || S, RFC 8032);
- ECDSA P-256: CKM_ECDSA over the data's SHA-256 (64 bytes: r || s, as `kernel.crypto.keys` has it).

The public key is CKA_EC_POINT of the public object with the same label. One session, under a lock; a session that the
module has closed is opened and logged in again, once; so is one that a second key's `close` has logged out, for a
process logs in to a token as a whole.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from kernel import strict_json
from kernel.crypto.keys import KeyRefused, PrivateKey, PublicKey, SigningKey, Suite, read_secret
from kernel.errors import ProblemError

_OCTET_STRING = 0x04
_SIGNATURE_BYTES = 64


class ModuleUnusable(OSError):
    """The library, the module, its token or the key cannot be used; the message says which."""


class ModuleKey:
    """The key `label` in the token `token` of a PKCS#11 module (a shared library). Thread-safe."""

    def __init__(self, module: Path, *, token: str, label: str, pin: Callable[[], str]) -> None:
        """`pin` is asked whenever the token is logged in to; it is not kept. Raises: ModuleUnusable, KeyRefused."""
        try:
            self._api: Any = import_module("pkcs11")
        except ImportError:
            raise ModuleUnusable("keys in a module need the library python-pkcs11, which is not installed") from None
        self._module, self._token, self._label, self._pin = module, token, label, pin
        self._lock = threading.Lock()
        self._session: Any = None
        self._key: Any = None
        with self._lock:
            self._public = self._open()

    @property
    def public(self) -> PublicKey:
        return self._public

    @property
    def suite(self) -> Suite:
        return self._public.suite

    @property
    def thumbprint(self) -> str:
        return self._public.thumbprint

    def sign(self, data: bytes) -> bytes:
        with self._lock:
            try:
                signature = self._sign(data)
            except self._api.PKCS11Error:
                signature = self._again(data)
        if len(signature) != _SIGNATURE_BYTES or not self._public.verify(data, signature):
            raise ModuleUnusable(f"the module's signature by {self._label} does not verify")
        return signature

    def close(self) -> None:
        with self._lock:
            self._drop()

    # --- inside

    def _sign(self, data: bytes) -> bytes:
        if self._key is None:
            raise self._api.SessionClosed
        if self.suite is Suite.ED25519:
            return bytes(self._key.sign(data, mechanism=self._api.Mechanism.EDDSA))
        return bytes(self._key.sign(hashlib.sha256(data).digest(), mechanism=self._api.Mechanism.ECDSA))

    def _again(self, data: bytes) -> bytes:
        """In a new session: the module was restarted, or the token taken out and put back."""
        self._drop()
        if self._open() != self._public:
            raise ModuleUnusable(f"the module has another key under {self._label} now")
        try:
            return self._sign(data)
        except self._api.PKCS11Error as error:
            raise ModuleUnusable(f"the module does not sign ({type(error).__name__})") from None

    def _open(self) -> PublicKey:
        api = self._api
        try:
            token = api.lib(str(self._module)).get_token(token_label=self._token)
            try:
                self._session = token.open(user_pin=self._pin())
            except api.UserAlreadyLoggedIn:  # a process logs in once a token: another key of ours has done it
                self._session = token.open()
            self._key = self._session.get_key(object_class=api.ObjectClass.PRIVATE_KEY, label=self._label)
            if not self._key[api.Attribute.SENSITIVE] or self._key[api.Attribute.EXTRACTABLE]:
                self._drop()
                raise KeyRefused(f"the key {self._label} can be taken out of its module: make one that cannot")
            public = self._session.get_key(object_class=api.ObjectClass.PUBLIC_KEY, label=self._label)
            return _public_key(bytes(public[api.Attribute.EC_POINT]))
        except (api.PKCS11Error, RuntimeError) as error:
            self._drop()
            raise ModuleUnusable(f"the key {self._label} cannot be used ({type(error).__name__})") from None

    def _drop(self) -> None:
        session, self._session, self._key = self._session, None, None
        if session is not None:
            try:
                session.close()
            except self._api.PKCS11Error:
                return  # it was closed already


def _public_key(point: bytes) -> PublicKey:
    """CKA_EC_POINT: a DER OCTET STRING around the point; of Edwards keys some modules give the point bare.

    Raises: KeyRefused.
    """
    if len(point) > 2 and point[0] == _OCTET_STRING and point[1] == len(point) - 2:
        point = point[2:]
    try:
        if len(point) == 32:
            return PublicKey(ed25519.Ed25519PublicKey.from_public_bytes(point))
        return PublicKey(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point))
    except ValueError:
        raise KeyRefused("the module's public key is neither Ed25519 nor ECDSA P-256") from None


_MEMBERS = {"module", "token", "label", "pin_path"}


def load_signing_key(path: Path) -> SigningKey:
    """A service's key: of a PEM file (`PrivateKey.load`), or, if the file's name ends in .json, of a module:

        {"module": "/usr/lib/softhsm/libsofthsm2.so", "token": "bank", "label": "signing", "pin_path": "/run/pin"}

    `pin_path` is a file of mode 0600, read again at each login. Raises: KeyRefused, ModuleUnusable.
    """
    if path.suffix != ".json":
        return PrivateKey.load(path)
    try:
        found = strict_json.loads(path.read_bytes())
    except (OSError, ProblemError) as error:
        raise KeyRefused(f"cannot read {path}: {error}") from None
    if not isinstance(found, dict) or set(found) != _MEMBERS or not all(isinstance(found[name], str) for name in found):
        raise KeyRefused(f"{path}: give {', '.join(sorted(_MEMBERS))}, each as a string")
    pin_path = Path(found["pin_path"])
    return ModuleKey(
        Path(found["module"]),
        token=found["token"],
        label=found["label"],
        pin=lambda: read_secret(pin_path).decode("utf-8").strip(),
    )
