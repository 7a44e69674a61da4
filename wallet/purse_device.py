"""An emulated secure element: a purse in a directory, with its key and two slots of state.

    key.pem     the device's private key, mode 0600; a hardware element would never let it out
    slot-0, -1  SHA-256 | generation (8 bytes) | state (deterministic CBOR)

A step writes the *older* slot and fsyncs it before the answer is given. So whatever byte the power fails at, the newer
slot is whole: the step has happened with its answer kept in the state, or it has not and nothing was said. Which slot
counts is decided by checksum and generation alone; there is nothing to repair.

What it cannot do, being files: stop its owner from putting an old copy back. That is the hacked device of
docs/offline.md, and what the service finds.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kernel.crypto.keys import KeyRefused, PrivateKey, PublicKey, Suite
from wallet.domain.offline import cbor, element
from wallet.domain.offline.cbor import NotCbor, Value
from wallet.domain.offline.element import Device, Holding, PurseState, Step
from wallet.domain.offline.limits import HOLDINGS_MAX, MESSAGE_BYTES_MAX, UNSYNCED_MAX
from wallet.domain.offline.vocabulary import Refused

STATE_BYTES_MAX = (2 * UNSYNCED_MAX + 2 * HOLDINGS_MAX) * MESSAGE_BYTES_MAX
_DIGEST, _GENERATION = 32, 8
_LIST = 50
"""Items of a list within a list: the codec's arrays are short."""


class DeviceBroken(RuntimeError):
    """No slot of the device holds a state; the message says what to do."""


class PurseDevice:
    """One purse. Operations of several processes exclude each other by a lock on the directory."""

    def __init__(self, directory: Path) -> None:
        """Raises: KeyRefused if there is no device."""
        self.directory = directory
        self._key = PrivateKey.load(directory / "key.pem")

    @staticmethod
    def make(directory: Path, *, suite: Suite = Suite.ECDSA_P256_SHA256) -> PurseDevice:
        """A new device with its key and nothing else. Raises: FileExistsError."""
        directory.mkdir(parents=True, exist_ok=True)
        PrivateKey.generate(suite).save(directory / "key.pem")
        return PurseDevice(directory)

    @property
    def key(self) -> PublicKey:
        return self._key.public

    @property
    def device(self) -> Device:
        return Device(self._key.public, self._key.sign)

    def start(self, certificate: bytes, institution_key: PublicKey) -> Refused | None:
        """Take the certificate; again with the same one: no change. Raises: FileExistsError for another one."""
        made = element.new_purse(certificate, institution_key, self.device)
        if isinstance(made, Refused):
            return made
        with self._locked():
            current = _newest(self.directory)
            if current is None:
                _store(self.directory, 1, made)
            elif current[1].certificate != certificate:
                raise FileExistsError(f"{self.directory} is another purse already: make a new device")
        return None

    def state(self) -> PurseState:
        """Raises: DeviceBroken."""
        current = _newest(self.directory)
        if current is None:
            raise DeviceBroken(f"{self.directory} holds no purse yet: get its certificate first")
        return current[1]

    def do(self, step: Callable[[PurseState], Step | Refused]) -> bytes | Refused:
        """The answer of a step, whose state is durable when this returns. A refusal changes nothing."""
        with self._locked():
            current = _newest(self.directory)
            if current is None:
                raise DeviceBroken(f"{self.directory} holds no purse yet: get its certificate first")
            generation, state = current
            outcome = step(state)
            if isinstance(outcome, Refused):
                return outcome
            if outcome.state != state:
                _store(self.directory, generation + 1, outcome.state)
            return outcome.answer

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _store(directory: Path, generation: int, state: PurseState) -> None:
    content = generation.to_bytes(_GENERATION, "big") + write_state(state)
    path = directory / f"slot-{generation % 2}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(hashlib.sha256(content).digest() + content)
        file.flush()
        os.fsync(file.fileno())
    parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _newest(directory: Path) -> tuple[int, PurseState] | None:
    found = [slot for number in (0, 1) if (slot := _read_slot(directory / f"slot-{number}")) is not None]
    return max(found, key=lambda slot: slot[0], default=None)


def _read_slot(path: Path) -> tuple[int, PurseState] | None:
    """None: not there, torn, or never finished."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    content = data[_DIGEST:]
    if len(content) < _GENERATION or hashlib.sha256(content).digest() != data[:_DIGEST]:
        return None
    return int.from_bytes(content[:_GENERATION], "big"), read_state(content[_GENERATION:])


def write_state(state: PurseState) -> bytes:
    holdings: list[Value] = [
        [
            *(holding.source, holding.amount_minor, holding.spent_minor, holding.hops, holding.hops_max),
            *(holding.not_after, holding.sync_by),
            *(_nest(items) for items in (holding.certificates, holding.fundings, holding.spends)),
        ]
        for holding in state.holdings
    ]
    return cbor.encode(
        [
            *(state.certificate, state.institution_key, state.counter, state.clock, holdings),
            *(_nest(items) for items in (state.loaded, state.invoices, state.sent, state.received)),
            state.revocations,
        ]
    )


def read_state(data: bytes) -> PurseState:
    """Raises: DeviceBroken for what `write_state` has not written."""
    try:
        members = cbor.decode(data, bytes_max=STATE_BYTES_MAX)
    except NotCbor as error:
        raise DeviceBroken(f"the state cannot be read: {error}") from None
    if not isinstance(members, list) or len(members) != 10:
        raise DeviceBroken("the state is not this program's")
    certificate, institution_key, counter, clock, holdings, loaded, invoices, sent, received, revocations = members
    return PurseState(
        certificate=_bytes(certificate),
        institution_key=_bytes(institution_key),
        counter=_integer(counter),
        clock=_integer(clock),
        holdings=tuple(_holding(item) for item in _items(holdings)),
        loaded=_flat(loaded),
        invoices=_flat(invoices),
        sent=_flat(sent),
        received=_flat(received),
        revocations=_bytes(revocations),
    )


def _holding(item: Value) -> Holding:
    members = _items(item)
    if len(members) != 10:
        raise DeviceBroken("a value object in the state is not this program's")
    amount, spent, hops, hops_max, not_after, sync_by = (_integer(member) for member in members[1:7])
    certificates, fundings, spends = (_flat(member) for member in members[7:])
    source = _bytes(members[0])
    return Holding(source, amount, spent, hops, hops_max, not_after, sync_by, certificates, fundings, spends)


def _nest(items: tuple[bytes, ...]) -> Value:
    return [list(items[at : at + _LIST]) for at in range(0, len(items), _LIST)]


def _flat(value: Value) -> tuple[bytes, ...]:
    return tuple(_bytes(item) for group in _items(value) for item in _items(group))


def _items(value: Value) -> list[Value]:
    if not isinstance(value, list):
        raise DeviceBroken("the state is not this program's")
    return value


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise DeviceBroken("the state is not this program's")
    return value


def _integer(value: Value) -> int:
    if not isinstance(value, int):
        raise DeviceBroken("the state is not this program's")
    return value


__all__ = ["DeviceBroken", "KeyRefused", "PurseDevice", "read_state", "write_state"]
