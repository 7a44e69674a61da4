"""Closings and balance proofs as documents: what a ledger signs at a close, and what a holder verifies offline.

A closing statement is a signed note whose text is one line of canonical JSON; a balance proof is that note, the
holder's leaves and their paths. Neither needs the ledger, its database or the network to be verified, only the
ledger's public key. See docs/balance-proofs.md.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError, WithJsonSchema, model_validator

from kernel import strict_json
from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey
from kernel.errors import ProblemError
from kernel.transparency.notes import KeyKind, Note, NoteRefused, VerifierKey, open_note, sign_text
from kernel.transparency.sum_tree import (
    PATH_MAX,
    SALT_BYTES,
    SHARES,
    InvalidSumTree,
    Node,
    leaf_node,
    root_of_path,
)
from ledger.contract import AccountRef, Amount, CurrencyCode, Hash32, Model, Moment

STATEMENT_FORMAT: Final = "jiaozi-closing/v1"
PROOF_FORMAT: Final = "jiaozi-balance-proof/v1"
PROOF_BYTES_MAX = 64 * 1024
"""Two paths of 63 nodes are under 20 KB; a statement is under 2 KB."""
FIRST_HOLDER_ACCOUNT = 2
"""Account 1 issues the currency and holds none of it: its debit balance is the circulation. Holders follow, dense."""
NO_STATEMENT = bytes(32)
"""What the first closing names as the one before it."""


class ProofRefused(ValueError):
    """The statement or proof does not prove what it claims; the message says what is wrong with it."""


class ClosingKind(StrEnum):
    DAY = "day"
    """Taken at the last block of a local day of the scheme."""
    ORDER = "order"
    """Taken at the last block when an operator asked for it."""


def _salt(value: object) -> bytes:
    if isinstance(value, bytes) and len(value) == SALT_BYTES:
        return value
    if not isinstance(value, str) or len(value) != 2 * SALT_BYTES or value.strip("0123456789abcdef"):
        raise ValueError(f"expected {2 * SALT_BYTES} lower-case hexadecimal digits")
    return bytes.fromhex(value)


Salt = Annotated[
    bytes,
    BeforeValidator(_salt),
    PlainSerializer(lambda value: value.hex(), return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^[0-9a-f]{{{2 * SALT_BYTES}}}$"}),
]
Count = Annotated[int, Field(ge=0, lt=2**53)]


class ClosingStatement(Model):
    """What the ledger signs at a close: every holder's balance at one block, as the root of a Merkle sum tree."""

    format: Literal["jiaozi-closing/v1"] = STATEMENT_FORMAT
    ledger: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9.-]{1,62}$")]
    currency: CurrencyCode
    closing: Annotated[int, Field(ge=1, lt=2**53)]
    """Dense: 1, 2, 3, ..."""
    kind: ClosingKind
    day: date
    """The scheme's local day of the block."""
    block: Annotated[int, Field(ge=1, lt=2**53)]
    block_commitment: Hash32
    """As in checkpoints: of the block's hash, salted."""
    seq: Count
    """The last transfer that is in the balances."""
    booked_at: Moment
    accounts: Count
    """Holders' accounts: 2 to `accounts` + 1, without a gap."""
    shares_per_account: Literal[2] = SHARES
    leaves: Count
    root: Hash32
    root_total_minor: Amount
    issued_minor: Amount
    redeemed_minor: Amount
    circulation_minor: Amount
    vaults_minor: Amount
    wallets_minor: Amount
    offline_minor: Amount
    """Vaults, wallets and the escrow behind offline purses hold all there is; holds are part of them."""
    previous: Hash32
    """SHA-256 of the text of the closing before: statements are one chain. Zeros for the first."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.leaves != self.accounts * self.shares_per_account:
            raise ValueError("the number of leaves is not that of the accounts' shares")
        if self.circulation_minor != self.issued_minor - self.redeemed_minor:
            raise ValueError("the circulation is not issued - redeemed (I2)")
        held_by_all = self.vaults_minor + self.wallets_minor + self.offline_minor
        if not self.root_total_minor == self.circulation_minor == held_by_all:
            raise ValueError("the root's total is not the circulation (I2)")
        if (self.closing == 1) != (self.previous == NO_STATEMENT):
            raise ValueError("every closing but the first names the one before")
        return self

    @property
    def text(self) -> str:
        """What is signed: canonical JSON (RFC 8785) and a newline."""
        return jws.canonical_json(self.model_dump(mode="json")).decode() + "\n"

    @property
    def digest(self) -> bytes:
        """What the next closing names as `previous`."""
        return hashlib.sha256(self.text.encode()).digest()


class ProofNode(Model):
    hash: Hash32
    sum_minor: Amount


class ProofShare(Model):
    """One leaf of the account and the siblings on its way to the root, lowest first."""

    index: Count
    salt: Salt
    sum_minor: Amount
    path: Annotated[list[ProofNode], Field(max_length=PATH_MAX)]


class BalanceProof(Model):
    """A holder's balance in a closing, verifiable offline with `verify_balance_proof`."""

    format: Literal["jiaozi-balance-proof/v1"] = PROOF_FORMAT
    statement: Annotated[str, Field(max_length=8192)]
    """The closing statement as a signed note."""
    account: AccountRef
    balance_minor: Amount
    """Posted balance; holds are part of it."""
    shares: Annotated[list[ProofShare], Field(min_length=SHARES, max_length=SHARES)]


@dataclass(frozen=True, slots=True)
class ProvedBalance:
    account: int
    balance_minor: int
    statement: ClosingStatement


def parse_statement(text: str) -> ClosingStatement:
    """The statement in a note's text, which must be its canonical form. Raises ProofRefused."""
    try:
        statement = ClosingStatement.model_validate(strict_json.loads(text.encode(), wire=True))
    except (ValidationError, ProblemError, UnicodeEncodeError) as error:
        raise ProofRefused(f"not a closing statement that adds up: {_first_line(error)}") from None
    if statement.text != text:
        raise ProofRefused("the closing statement is not in its canonical form")
    return statement


def unverified_statement(note: str) -> ClosingStatement:
    """The statement in a note whose signature nobody has checked: for the ledger's own table. Raises ProofRefused."""
    try:
        return parse_statement(Note.parse(note).text)
    except NoteRefused as error:
        raise ProofRefused(f"not a signed note: {error}") from None


def sign_statement(statement: ClosingStatement, *, name: str, key: PrivateKey) -> str:
    """The statement as a signed note of the log's key. `name`: the log's origin."""
    return str(Note(statement.text, (sign_text(statement.text, name=name, key=key),)))


def open_statement(note: str, *, log_key: VerifierKey) -> ClosingStatement:
    """The statement, if the ledger's log key has signed it. Raises ProofRefused."""
    if log_key.kind is not KeyKind.ED25519:
        raise ProofRefused("a ledger's log key is of type 0x01")
    try:
        parsed = Note.parse(note)
        open_note(parsed, [log_key])
    except NoteRefused as error:
        raise ProofRefused(f"the closing statement is not signed by {log_key.name}: {error}") from None
    return parse_statement(parsed.text)


def parse_proof(data: bytes) -> BalanceProof:
    """Raises ProofRefused for anything that is not a proof's JSON."""
    if len(data) > PROOF_BYTES_MAX:
        raise ProofRefused(f"a balance proof is at most {PROOF_BYTES_MAX} bytes")
    try:
        return BalanceProof.model_validate(strict_json.loads(data, wire=True))
    except (ValidationError, ProblemError) as error:
        raise ProofRefused(f"not a balance proof: {_first_line(error)}") from None


def verify_balance_proof(
    proof: BalanceProof, *, log_key: VerifierKey, account: int | None = None, balance_minor: int | None = None
) -> ProvedBalance:
    """Proves: the ledger has signed a root whose total, the circulation, counts this balance of this account in full.

    `account`, `balance_minor`: what the holder knows; a proof of another account or balance is refused. Without them
    he must compare himself: a proof of less than he owns is a valid proof, and evidence against the ledger.
    Raises ProofRefused.
    """
    statement = open_statement(proof.statement, log_key=log_key)
    if account is not None and proof.account != account:
        raise ProofRefused("this is the proof of another account")
    if not FIRST_HOLDER_ACCOUNT <= proof.account < FIRST_HOLDER_ACCOUNT + statement.accounts:
        raise ProofRefused("the account is not among those that the closing counts")
    if len({share.index for share in proof.shares}) != len(proof.shares):
        raise ProofRefused("the shares stand on one and the same leaf")
    for number, share in enumerate(proof.shares):
        try:
            leaf = leaf_node(salt=share.salt, account=proof.account, share=number, sum_minor=share.sum_minor)
            path = [Node(node.hash, node.sum_minor) for node in share.path]
            root = root_of_path(leaf, index=share.index, leaf_count=statement.leaves, path=path)
        except InvalidSumTree as error:
            raise ProofRefused(f"share {number}: {error}") from None
        if root != Node(statement.root, statement.root_total_minor):
            raise ProofRefused(f"share {number} does not lead to the signed root and its total")
    if sum(share.sum_minor for share in proof.shares) != proof.balance_minor:
        raise ProofRefused("the shares do not add up to the balance")
    if balance_minor is not None and proof.balance_minor != balance_minor:
        raise ProofRefused(f"the ledger proves a balance of {proof.balance_minor}, not of {balance_minor} minor units")
    return ProvedBalance(proof.account, proof.balance_minor, statement)


def contradiction(first: ClosingStatement, second: ClosingStatement) -> str | None:
    """Why two statements, both signed by one ledger, cannot both be honest; None if they can. Anybody may ask."""
    earlier, later = sorted((first, second), key=lambda statement: statement.closing)
    if (earlier.ledger, earlier.currency) != (later.ledger, later.currency):
        return "the statements are of two ledgers, but one key has signed both"
    if earlier.closing == later.closing:
        return f"two statements for closing {later.closing}" if earlier != later else None
    if later.closing == earlier.closing + 1 and later.previous != earlier.digest:
        return f"closing {later.closing} does not follow this closing {earlier.closing}"
    if earlier.block == later.block and earlier.block_commitment != later.block_commitment:
        return f"two blocks have the number {later.block}"
    order = ("block", "seq", "booked_at", "accounts", "issued_minor", "redeemed_minor")
    for name in order:
        if getattr(earlier, name) > getattr(later, name):
            return f"{name} went backwards between closings {earlier.closing} and {later.closing}"
    return None


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        found = error.errors(include_input=False, include_url=False)[0]
        return f"{'.'.join(str(part)[:64] for part in found['loc']) or 'document'}: {found['msg']}"[:200]
    return str(error).splitlines()[0][:200]
