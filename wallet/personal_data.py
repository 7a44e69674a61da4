"""Names and phone numbers of customers, encrypted where they rest. The central bank never sees them.

Each customer has a data key of its own; the service's key file wraps it. AES-256-GCM (NIST SP 800-38D), a random
96-bit nonce in front of each ciphertext, and the customer's id as associated data, so that no row can be exchanged
for another's. Destroying one wrapped key forgets one customer.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from pathlib import Path
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kernel import strict_json

_NONCE_BYTES = 12
_KEY_BYTES = 32


class PersonalDataUnreadable(Exception):
    """The row was altered, or belongs to another customer or service key."""


class PersonalDataVault:
    """Seals and opens personal data under one service key."""

    def __init__(self, key: bytes) -> None:
        if len(key) != _KEY_BYTES:
            raise ValueError("the service's data key has 32 bytes")
        self._service = AESGCM(key)
        self._blind = HKDF(SHA256(), 32, salt=None, info=b"jiaozi-blind-index").derive(key)

    @staticmethod
    def at(path: Path) -> PersonalDataVault:
        """With the key in the file, which is made (mode 0600) if there is none. Raises: OSError, ValueError."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            pass
        else:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(secrets.token_hex(_KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
        with open(path, encoding="ascii") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                raise ValueError(f"{path} can be read by others (mode {mode:04o}): run `chmod 600 {path}`")
            return PersonalDataVault(bytes.fromhex(file.read(200).strip()))

    def seal(self, customer_id: UUID, *, name: str, phone: str) -> tuple[bytes, bytes]:
        """(wrapped data key, encrypted data)."""
        data_key = AESGCM.generate_key(bit_length=256)
        plain = strict_json.dumps({"name": name, "phone": phone})
        return (
            _encrypt(self._service, data_key, b"customer-key:" + customer_id.bytes),
            _encrypt(AESGCM(data_key), plain, b"customer-data:" + customer_id.bytes),
        )

    def open(self, customer_id: UUID, wrapped_key: bytes, personal_data: bytes) -> tuple[str, str]:
        """(name, phone). Raises: PersonalDataUnreadable."""
        try:
            data_key = _decrypt(self._service, wrapped_key, b"customer-key:" + customer_id.bytes)
            plain = _decrypt(AESGCM(data_key), personal_data, b"customer-data:" + customer_id.bytes)
        except (InvalidTag, ValueError):
            raise PersonalDataUnreadable(f"personal data of customer {customer_id}") from None
        value = strict_json.loads(plain)
        return str(value["name"]), str(value["phone"])

    def seal_document(self, customer_id: UUID, wrapped_key: bytes, plain: bytes, *, label: str) -> bytes:
        """A further document under the customer's own data key. Raises: PersonalDataUnreadable."""
        return _encrypt(self._of_customer(customer_id, wrapped_key), plain, label.encode() + b":" + customer_id.bytes)

    def open_document(self, customer_id: UUID, wrapped_key: bytes, sealed: bytes, *, label: str) -> bytes:
        """Raises: PersonalDataUnreadable."""
        cipher = self._of_customer(customer_id, wrapped_key)
        try:
            return _decrypt(cipher, sealed, label.encode() + b":" + customer_id.bytes)
        except (InvalidTag, ValueError):
            raise PersonalDataUnreadable(f"{label} of customer {customer_id}") from None

    def blind_index(self, label: str, text: str) -> bytes:
        """HMAC-SHA-256 under a key that is derived from the service's: finds equal values, and shows none. 32 bytes."""
        return hmac.digest(self._blind, f"{label}:{text}".encode(), "sha256")

    def _of_customer(self, customer_id: UUID, wrapped_key: bytes) -> AESGCM:
        try:
            return AESGCM(_decrypt(self._service, wrapped_key, b"customer-key:" + customer_id.bytes))
        except (InvalidTag, ValueError):
            raise PersonalDataUnreadable(f"the data key of customer {customer_id}") from None

    def seal_secret(self, label: bytes, secret: bytes) -> bytes:
        """A secret of the service's own, under its key; `label` names the row that it belongs to, and no other."""
        return _encrypt(self._service, secret, b"secret:" + label)

    def open_secret(self, label: bytes, sealed: bytes) -> bytes:
        """Raises: PersonalDataUnreadable."""
        try:
            return _decrypt(self._service, sealed, b"secret:" + label)
        except (InvalidTag, ValueError):
            raise PersonalDataUnreadable("a sealed secret") from None


def _encrypt(cipher: AESGCM, plain: bytes, associated: bytes) -> bytes:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + cipher.encrypt(nonce, plain, associated)


def _decrypt(cipher: AESGCM, sealed: bytes, associated: bytes) -> bytes:
    return cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], associated)
