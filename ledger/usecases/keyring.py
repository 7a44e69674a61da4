"""Whose key is this? Participants and operators by thumbprint, account owners by account number.

Read by verifier threads while the sequencer writes: accounts only ever appear, and a key that changed in between is
caught by the state machine, which compares the key's version when it decides.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from kernel.crypto import jws
from kernel.crypto.keys import PublicKey
from ledger.domain.state import LedgerState, Participant
from ledger.domain.vocabulary import ACCOUNT_KIND_CODE, AccountKind

_KEYS_CACHED_MAX = 100_000
_VAULT = ACCOUNT_KIND_CODE[AccountKind.VAULT]
_WALLET = ACCOUNT_KIND_CODE[AccountKind.WALLET]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who signed a request: a participant (its number, and which of its keys) or an operator (number 0)."""

    thumbprint: str
    participant: int
    key_version: int
    is_operator: bool


class Keyring:
    def __init__(self, state: LedgerState) -> None:
        self._state = state
        self._institutions: dict[bytes, PublicKey] = {}
        self._holders: OrderedDict[bytes, PublicKey] = OrderedDict()
        self._callers: tuple[int, dict[str, tuple[Caller, PublicKey]]] = (-1, {})

    def find_caller(self, thumbprint: str) -> tuple[Caller, PublicKey] | None:
        """The operator or participant with this active key."""
        version, callers = self._callers
        if version != self._state.institutions_version:
            version = self._state.institutions_version  # read before the keys: at worst they are read once more
            callers = self._all_callers()
            self._callers = (version, callers)
        return callers.get(thumbprint)

    def _all_callers(self) -> dict[str, tuple[Caller, PublicKey]]:
        found: dict[str, tuple[Caller, PublicKey]] = {}
        for participant in list(self._state.participants):
            if participant is not None:
                key_version = participant.key_version  # before the key: see `signing_key`
                key = self._institution_key(participant.key)
                found[key.thumbprint] = Caller(key.thumbprint, participant.number, key_version, False), key
        for operator in self._state.operators:
            key = self._institution_key(operator.key)
            found[key.thumbprint] = Caller(key.thumbprint, 0, 0, True), key
        return found

    def operator_thumbprints(self) -> set[str]:
        return {self._institution_key(operator.key).thumbprint for operator in self._state.operators}

    def signing_key(self, account: int, token: jws.Unverified, *, typ: str) -> tuple[PublicKey, int] | None:
        """The key that must have signed a token for an account, and its version; None where no signature would do. A
        holder with several devices names the key in the token's `kid`; one that names none of them gets the oldest,
        with which the token will not verify."""
        state = self._state
        if not state.exists(account):
            return None
        kind = int(state.kind[account])
        if kind == _VAULT:
            participant = state.participants[int(state.participant[account])]
            if participant is None:
                return None
            # The version before the key: a rotation in between then gives the new key with the old version, which the
            # state machine refuses; the other way round it would book on the old key.
            version = participant.key_version
            return self._institution_key(participant.key), version
        if kind == _WALLET:
            if not state.devices[account]:
                version = int(state.key_version[account])  # before the key, as above
                return self._holder_key(state.holder_key[account].tobytes()), version
            return self._device_key(account, token, typ)
        return None

    def holder_thumbprints(self, account: int) -> list[str]:
        """Of a wallet's keys, the oldest first."""
        return [self._holder_key(key).thumbprint for _, key in self._state.holder_keys(account)]

    def _device_key(self, account: int, token: jws.Unverified, typ: str) -> tuple[PublicKey, int] | None:
        for _ in range(2):  # once more, for keys change places while one of them is removed
            keys = [(self._holder_key(key), version) for version, key in self._state.holder_keys(account)]
            for key, version in keys:
                if jws.is_headed_for(token, key.thumbprint, typ=typ):
                    return key, version
            with suppress(jws.InvalidJws):
                kid = jws.peek_header(token.token).get("kid")
                for key, version in keys:
                    if key.thumbprint == kid:
                        return key, version
        return keys[0] if keys else None

    def participant(self, number: int) -> Participant | None:
        participants = self._state.participants
        return participants[number] if 0 < number < len(participants) else None

    def _institution_key(self, jwk: bytes) -> PublicKey:
        key = self._institutions.get(jwk)
        if key is None:
            key = self._institutions[jwk] = PublicKey.from_jwk(json.loads(jwk))
        return key

    def _holder_key(self, stored: bytes) -> PublicKey:
        key = self._holders.get(stored)
        if key is None:
            key = self._holders[stored] = decode_holder_key(stored)
            if len(self._holders) > _KEYS_CACHED_MAX:
                self._holders.popitem(last=False)
        return key


def decode_holder_key(stored: bytes) -> PublicKey:
    """The key behind the bytes that `ledger.domain.keys.key_bytes` made (padding allowed)."""
    if stored[0] == 1:
        return PublicKey(ed25519.Ed25519PublicKey.from_public_bytes(stored[1:33]))
    return PublicKey(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), stored[1:34]))
