"""What a reader of proofs, or a keeper of headers, believes beforehand: public keys and a header. One file for both."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from kernel import strict_json
from kernel.errors import ProblemError
from kernel.transparency.checkpoints import witness_keys
from kernel.transparency.notes import KeyKind, NoteRefused, VerifierKey
from ledger.contract import AccountRef, Amount, CurrencyCode, Hash32, Model

TRUST_BYTES_MAX = 1024 * 1024
ISLANDS_MAX = 64
KEYS_MAX = 16

Name = Annotated[str, Field(min_length=1, max_length=64)]
KeyText = Annotated[str, Field(max_length=400, description="A C2SP signed-note verifier key.")]
Address = Annotated[str, Field(pattern="^0x[0-9a-fA-F]{40}$")]


class NativeTrust(Model):
    """A ledger of this system: its log's public key and, if the reader asks for them, witnesses."""

    kind: Literal["native"]
    ledger: Name
    currency: CurrencyCode
    log_key: KeyText
    witnesses: Annotated[tuple[KeyText, ...], Field(max_length=KEYS_MAX)] = ()
    quorum: Annotated[int, Field(ge=0, le=KEYS_MAX)] = 0

    @model_validator(mode="after")
    def _check_keys(self) -> NativeTrust:
        try:
            is_log = VerifierKey.parse(self.log_key).kind is KeyKind.ED25519
            keys = witness_keys(self.witnesses)
        except NoteRefused as error:
            raise ValueError(str(error)) from None
        if not is_log:
            raise ValueError("a log's key is of type 0x01")
        if self.quorum > len(keys):
            raise ValueError("the quorum is larger than the number of witnesses")
        return self


class Anchor(Model):
    """A block that the reader knows to be of the chain, and final."""

    number: Annotated[int, Field(ge=0, lt=2**63)]
    hash: Hash32


class EvmTrust(Model):
    """An EVM chain: one block of it, the escrow and token, and whose address is whose.

    What stands before the anchor is bound to it by hashes alone. For what comes after it, a keeper's signature on the
    last header counts: the headers of a chain can be made up by anybody who does not have to mine or validate them.
    """

    kind: Literal["evm"]
    ledger: Name
    currency: CurrencyCode
    escrow: Address
    token: Address
    unit: Amount
    """The token's smallest units in a minor unit."""
    accounts: Annotated[dict[AccountRef, Address], Field(max_length=10_000)]
    anchor: Anchor
    confirmations: Annotated[int, Field(ge=1, le=10_000)]
    """A block after the anchor is final when so many stand on it, itself included."""
    keepers: Annotated[tuple[KeyText, ...], Field(max_length=KEYS_MAX)] = ()
    quorum: Annotated[int, Field(ge=0, le=KEYS_MAX)]
    """So many keepers must have signed the last header. 0 is a choice: then headers after the anchor are the prover's
    word, which is right for a keeper that reads its own node, and for nobody else."""

    @model_validator(mode="after")
    def _check_keys(self) -> EvmTrust:
        try:
            keys = [VerifierKey.parse(text) for text in self.keepers]
        except NoteRefused as error:
            raise ValueError(str(error)) from None
        if any(key.kind is not KeyKind.ED25519 for key in keys) or len({key.public for key in keys}) != len(keys):
            raise ValueError("a keeper's key is of type 0x01, and each is there once")
        if self.quorum > len(keys):
            raise ValueError("the quorum is larger than the number of keepers")
        if self.unit < 1:
            raise ValueError("the unit is 1 or more")
        if len({address.lower() for address in self.accounts.values()}) != len(self.accounts):
            raise ValueError("two accounts have one address")
        return self

    @property
    def keeper_keys(self) -> list[VerifierKey]:
        return [VerifierKey.parse(text) for text in self.keepers]


class Trust(Model):
    format: Literal["jiaozi-relay-trust/v1"]
    islands: Annotated[
        list[Annotated[NativeTrust | EvmTrust, Field(discriminator="kind")]],
        Field(min_length=1, max_length=ISLANDS_MAX),
    ]

    @model_validator(mode="after")
    def _check_names(self) -> Trust:
        if len({island.ledger for island in self.islands}) != len(self.islands):
            raise ValueError("an island is named twice")
        return self

    def of(self, ledger: str) -> NativeTrust | EvmTrust | None:
        return next((island for island in self.islands if island.ledger == ledger), None)


def read_trust(path: Path) -> Trust:
    """Raises OSError, ValueError naming the file and what is wrong in it."""
    with open(path, "rb") as file:
        content = file.read(TRUST_BYTES_MAX + 1)
    if len(content) > TRUST_BYTES_MAX:
        raise ValueError(f"{path}: longer than {TRUST_BYTES_MAX} bytes")
    try:
        return Trust.model_validate(strict_json.loads(content))
    except ProblemError as error:
        raise ValueError(f"{path}: {error.detail}") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise ValueError(f"{path}: {'/'.join(str(part) for part in first['loc'])}: {first['msg']}") from None
