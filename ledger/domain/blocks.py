"""Blocks: what is written and hashed together. Each header names its predecessor's hash, so history is one chain.

The digests cover, in order, the packed records (`ledger.domain.records.JOURNAL`) of the block's transfers, their
evidence, the directives and the opened accounts. An independent verifier recomputes all of them from the tables.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ledger.domain.state import Hold

GENESIS_HASH = bytes(32)
EVIDENCE_HOLD_TERMS = 4
EVIDENCE_TOMBSTONE = 5
"""Beside `EvidenceKind`: the terms of a hold and the guard of a tombstone, which have tables of their own."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What vouches for a booked transfer (I8)."""

    seq: int
    transfer_id: bytes
    kind: int
    body: bytes


@dataclass(frozen=True, slots=True)
class OpenedAccount:
    number: int
    opening_id: bytes
    kind: int
    participant: int
    rule_class: str
    holder_key: bytes | None
    """Suite byte and key, unpadded."""


@dataclass(frozen=True, slots=True)
class Directive:
    """A change of who may do what, with the signatures that ordered it; `body` is canonical JSON."""

    number: int
    kind: str
    mandate_id: bytes | None
    """Or what stands for an account change's id: no id orders anything twice."""
    body: bytes
    booked_at: int = 0
    """Microseconds since 1970; 0 where it is not in the journal yet."""


@dataclass(frozen=True, slots=True)
class BlockHeader:
    """`issued` to `held` are totals in minor units after the block (I2): issued and redeemed ever, balances of vaults,
    of wallets and of the escrow behind offline purses, and what open holds reserve of them."""

    number: int
    epoch: int
    booked_at: int
    first_seq: int
    transfer_count: int
    transfers_digest: bytes
    evidence_digest: bytes
    first_directive: int
    directive_count: int
    directives_digest: bytes
    first_account: int
    account_count: int
    issued: int
    redeemed: int
    vaults: int
    wallets: int
    offline: int
    held: int
    accounts_digest: bytes
    previous_hash: bytes

    @property
    def hash(self) -> bytes:
        """SHA-256 of the header's members, integers as 8 bytes big-endian, digests as they are, in this order."""
        integers = (
            self.number,
            self.epoch,
            self.booked_at,
            self.first_seq,
            self.transfer_count,
            self.first_directive,
            self.directive_count,
            self.first_account,
            self.account_count,
            self.issued,
            self.redeemed,
            self.vaults,
            self.wallets,
            self.offline,
            self.held,
        )
        digests = (
            self.transfers_digest,
            self.evidence_digest,
            self.directives_digest,
            self.accounts_digest,
            self.previous_hash,
        )
        return hashlib.sha256(b"jiaozi-block-v1" + struct.pack(">15q", *integers) + b"".join(digests)).digest()


def digest_evidence(items: Sequence[Evidence]) -> bytes:
    """Over seq (8), kind (1), length (4) and body of each, by (seq, kind)."""
    digest = hashlib.sha256()
    for item in sorted(items, key=lambda item: (item.seq, item.kind)):
        digest.update(struct.pack(">qBI", item.seq, item.kind, len(item.body)))
        digest.update(item.body)
    return digest.digest()


def digest_accounts(accounts: Iterable[OpenedAccount]) -> bytes:
    """Over number (8), opening (16), kind (1), participant (4), class (length 1), key (length 1) of each."""
    digest = hashlib.sha256()
    for account in accounts:
        name, key = account.rule_class.encode(), account.holder_key or b""
        digest.update(struct.pack(">q16sBi", account.number, account.opening_id, account.kind, account.participant))
        digest.update(bytes([len(name)]) + name + bytes([len(key)]) + key)
    return digest.digest()


def digest_directives(directives: Iterable[Directive]) -> bytes:
    """Over number (8), length (4) and body of each."""
    digest = hashlib.sha256()
    for directive in directives:
        digest.update(struct.pack(">qI", directive.number, len(directive.body)) + directive.body)
    return digest.digest()


def hold_terms_body(hold: Hold) -> bytes:
    """Commit hash, abort hash (32 each, zero if plain) and expiry (8, microseconds, 0 = none)."""
    zero = bytes(32)
    return (hold.commit_hash or zero) + (hold.abort_hash or zero) + struct.pack(">q", hold.expires_at)
