"""The emulated card: the secure element's memory in a file, safe against a power cut at any write.

Memory is replaced whole: written beside (with a checksum), synced, renamed over the old, the directory synced. A cut
leaves the old or the new one. The order is always: decide, sign, keep, answer; so a counter that has left the card is
never used again, and a PIN try that was answered stays spent. The file is the chip: whoever copies it clones the card,
which the service finds by the counter. A real card gives no such file; this one has mode 0600.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import secrets
import stat
from base64 import b64decode, b64encode
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kernel import strict_json
from kernel.crypto.keys import PrivateKey, PublicKey
from kernel.errors import ProblemError
from kernel.ids import AccountNumber
from ledger.contract import sign_instruction
from wallet.hardware import element
from wallet.hardware.element import CardRefusal, Memory, Presented, ToSign

_MEMORY = "card.mem"
_BESIDE = "card.mem.new"
_SEED_BYTES = 32
_MEMORY_BYTES_MAX = 64 * 1024
_FORMAT = 1
_SCRYPT = {"n": 2**14, "r": 8, "p": 1}
"""RFC 7914; 16 MiB. Of a short PIN it slows guessing only; what guards it is the counter of tries."""


class CardUnusable(Exception):
    """No card, a damaged one, or one that somebody else is using; the message says what to do."""


class Disk(Protocol):
    """The chip's persistent memory, in steps that power can be cut between."""

    def read(self, name: str) -> bytes | None: ...

    def write(self, name: str, content: bytes) -> None:
        """Whole, not durable yet."""

    def sync(self, name: str) -> None: ...

    def replace(self, name: str, by: str) -> None:
        """Atomic, not durable yet."""

    def sync_directory(self) -> None: ...


class FolderDisk:
    """A folder of one card (mode 0700), locked for one user at a time."""

    def __init__(self, folder: Path) -> None:
        """Raises: CardUnusable."""
        self._folder = folder
        try:
            self._directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise CardUnusable(f"there is no card at {folder} ({error.strerror}): run `card init` first") from None
        if os.fstat(self._directory).st_mode & 0o077:
            mode = stat.S_IMODE(os.fstat(self._directory).st_mode)
            os.close(self._directory)
            raise CardUnusable(f"{folder} can be read by others (mode {mode:04o}): run `chmod 700 {folder}`")
        try:
            fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._directory)
            raise CardUnusable(f"the card at {folder} is in another terminal") from None

    @staticmethod
    def make(folder: Path) -> FolderDisk:
        """Raises: CardUnusable."""
        try:
            folder.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise CardUnusable(f"cannot make {folder}: {error.strerror}; a card is never overwritten") from None
        return FolderDisk(folder)

    def close(self) -> None:
        os.close(self._directory)

    def read(self, name: str) -> bytes | None:
        try:
            with open(self._folder / name, "rb") as file:
                return file.read(_MEMORY_BYTES_MAX + 1)
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        descriptor = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)

    def sync(self, name: str) -> None:
        descriptor = os.open(self._folder / name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def replace(self, name: str, by: str) -> None:
        os.replace(self._folder / by, self._folder / name)

    def sync_directory(self) -> None:
        os.fsync(self._directory)


class Card:
    """The card in a terminal. A PIN that was given counts for the next signature alone.

    Commands answer, or return a `CardRefusal`.
    """

    def __init__(self, disk: Disk) -> None:
        """Raises: CardUnusable."""
        self._disk = disk
        self._key, self._memory = _read(disk)
        self._is_pin_given = False

    @staticmethod
    def make(disk: Disk, *, pin: str, pin_free_single_max_minor: int, pin_free_total_max_minor: int) -> Card:
        """A new card with a key of its own. Raises: CardUnusable, ValueError for a PIN that is none."""
        if not element.is_pin(pin):
            raise ValueError(CardRefusal.PIN_MALFORMED.title)
        if disk.read(_MEMORY) is not None:
            raise CardUnusable("there is a card already: it is never overwritten")
        salt = secrets.token_bytes(16)
        memory = Memory(
            account=None,
            counter=0,
            pin_salt=salt,
            pin_hash=_pin_hash(pin, salt),
            pin_tries_left=element.PIN_TRIES_MAX,
            pin_free_single_max_minor=pin_free_single_max_minor,
            pin_free_total_max_minor=pin_free_total_max_minor,
            pin_free_minor=0,
            last_request=b"",
            last_token="",
        )
        _keep(disk, secrets.token_bytes(_SEED_BYTES), memory)
        return Card(disk)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.take_out()

    def take_out(self) -> None:
        self._is_pin_given = False
        if isinstance(self._disk, FolderDisk):
            self._disk.close()

    @property
    def public_key(self) -> PublicKey:
        return PrivateKey(Ed25519PrivateKey.from_private_bytes(self._key)).public

    @property
    def memory(self) -> Memory:
        """What a terminal may see of it is `wallet.cli.hardware`'s business; the key is not in it."""
        return self._memory

    def bind(self, account: AccountNumber) -> CardRefusal | None:
        decided = element.bind(self._memory, account)
        if isinstance(decided, CardRefusal):
            return decided
        self._remember(decided)
        return None

    def give_pin(self, pin: str) -> CardRefusal | None:
        """The try is spent before the PIN is compared, so that cutting the power wins none."""
        self._is_pin_given = False
        decided = element.spend_try(self._memory)
        if isinstance(decided, CardRefusal):
            return decided
        self._remember(decided)
        if not hmac.compare_digest(_pin_hash(pin, decided.pin_salt), decided.pin_hash):
            return CardRefusal.PIN_BLOCKED if decided.pin_tries_left == 0 else CardRefusal.PIN_WRONG
        self._remember(element.pin_was_right(decided))
        self._is_pin_given = True
        return None

    def sign(self, presented: Presented) -> str | CardRefusal:
        """The instruction, as a token. Asked again for the same it answers the same, even after a power cut."""
        with_pin, self._is_pin_given = self._is_pin_given, False
        decided = element.decide_signature(self._memory, presented, with_pin=with_pin)
        if not isinstance(decided, ToSign):
            return decided
        key = PrivateKey(Ed25519PrivateKey.from_private_bytes(self._key))
        token = sign_instruction(decided.terms, ledger=presented.ledger, valid_until=presented.valid_until, key=key)
        self._remember(element.signed(decided.memory, token))
        return token

    def _remember(self, memory: Memory) -> None:
        _keep(self._disk, self._key, memory)
        self._memory = memory


def _pin_hash(pin: str, salt: bytes) -> bytes:
    return hashlib.scrypt(pin.encode("utf-8", "replace"), salt=salt, dklen=32, **_SCRYPT)


def _keep(disk: Disk, seed: bytes, memory: Memory) -> None:
    document = {
        "format": _FORMAT,
        "seed": b64encode(seed).decode(),
        "account": memory.account,
        "counter": memory.counter,
        "pin_salt": b64encode(memory.pin_salt).decode(),
        "pin_hash": b64encode(memory.pin_hash).decode(),
        "pin_tries_left": memory.pin_tries_left,
        "pin_free_single_max_minor": str(memory.pin_free_single_max_minor),
        "pin_free_total_max_minor": str(memory.pin_free_total_max_minor),
        "pin_free_minor": str(memory.pin_free_minor),
        "last_request": b64encode(memory.last_request).decode(),
        "last_token": memory.last_token,
    }
    content = strict_json.dumps(document)
    disk.write(_BESIDE, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    disk.sync(_BESIDE)
    disk.replace(_MEMORY, by=_BESIDE)
    disk.sync_directory()


def _read(disk: Disk) -> tuple[bytes, Memory]:
    content = disk.read(_MEMORY)
    if content is None:
        raise CardUnusable("there is no card here: run `card init` first")
    checksum, _, body = content.partition(b"\n")
    if len(content) > _MEMORY_BYTES_MAX or hashlib.sha256(body).hexdigest().encode() != checksum:
        raise CardUnusable("the card's memory is damaged: report it, and open another")
    try:
        value: Any = strict_json.loads(body)
        if value["format"] != _FORMAT:
            raise ValueError(f"format {value['format']}")
        account = value["account"]
        return b64decode(value["seed"]), Memory(
            account=None if account is None else AccountNumber(int(account)),
            counter=int(value["counter"]),
            pin_salt=b64decode(value["pin_salt"]),
            pin_hash=b64decode(value["pin_hash"]),
            pin_tries_left=int(value["pin_tries_left"]),
            pin_free_single_max_minor=int(value["pin_free_single_max_minor"]),
            pin_free_total_max_minor=int(value["pin_free_total_max_minor"]),
            pin_free_minor=int(value["pin_free_minor"]),
            last_request=b64decode(value["last_request"]),
            last_token=str(value["last_token"]),
        )
    except (ProblemError, KeyError, TypeError, ValueError) as error:
        raise CardUnusable(f"the card's memory is damaged ({type(error).__name__})") from None
