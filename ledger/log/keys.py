"""The log's two secrets: the key that signs checkpoints and the master of the salts. Files of mode 0600.

A log is begun with new keys, made in the ledger's data directory unless the operator provides files; from then on the
database names them (`log_identity`) and the ledger does not start without them: a log that went on under another
key, or with other salts, would be another log.
"""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from kernel.crypto.keys import PrivateKey, Suite
from kernel.transparency.notes import KeyKind, NoteRefused, VerifierKey
from ledger.log.leaves import MASTER_BYTES, salt_check
from ledger.log.queries import Identity


class LogKeyRefused(ValueError):
    """A key file of the log is missing, or is not the log's; the message says what to do, never the key."""


@dataclass(frozen=True, slots=True)
class LogKeys:
    origin: str
    signing: PrivateKey
    master: bytes

    @property
    def verifier_key(self) -> VerifierKey:
        return VerifierKey(self.origin, KeyKind.ED25519, self.signing.public)

    @property
    def identity(self) -> Identity:
        return Identity(self.origin, str(self.verifier_key), salt_check(self.master))

    def __repr__(self) -> str:
        return f"LogKeys({self.origin})"


def make_missing(key_path: Path, salt_path: Path) -> None:
    """For a log that is empty: make the files that are not there. Raises OSError, FileExistsError on a race."""
    for path in (key_path, salt_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if not key_path.exists():
        PrivateKey.generate(Suite.ED25519).save(key_path)
    if not salt_path.exists():
        descriptor = os.open(salt_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(secrets.token_hex(MASTER_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())


def load(origin: str, key_path: Path, salt_path: Path) -> LogKeys:
    """Raises KeyRefused, LogKeyRefused."""
    signing = PrivateKey.load(key_path)
    if signing.suite is not Suite.ED25519:
        raise LogKeyRefused(f"{key_path}: the log signs with an Ed25519 key")
    keys = LogKeys(origin, signing, load_master(salt_path))
    try:
        keys.verifier_key  # noqa: B018  an origin that cannot be a key's name is refused here
    except NoteRefused as error:
        raise LogKeyRefused(f"the log's origin {origin!r}: {error}") from None
    return keys


def check(keys: LogKeys, identity: Identity) -> None:
    """Are these the keys that the log was begun with? Raises LogKeyRefused."""
    if keys.identity.vkey != identity.vkey:
        raise LogKeyRefused(
            f"the log was begun with the key {identity.vkey}, but the key file holds {keys.identity.vkey}:"
            " restore the first one's file"
        )
    if keys.identity.salt_check != identity.salt_check:
        raise LogKeyRefused("the salt file is not the one that the log was begun with: restore that file")


def load_master(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) or mode & 0o077:
                raise LogKeyRefused(f"{path} can be read by others: run `chmod 600 {path}`")
            text = file.read(4096).decode("ascii", "replace").strip()
    except OSError as error:
        raise LogKeyRefused(f"cannot read the salt file {path}: {error.strerror}") from None
    try:
        master = bytes.fromhex(text)
    except ValueError:
        master = b""
    if len(master) != MASTER_BYTES:
        raise LogKeyRefused(f"{path} does not hold {2 * MASTER_BYTES} hexadecimal digits")
    return master
