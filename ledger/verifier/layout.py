"""The journal's codes, and what its digests cover: written from `docs/export-format.md`, not from the engine."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from ledger.export.layout import (
    ACCOUNT,
    BLOCK,
    BLOCK_HASHED_BYTES,
    DIRECTIVE,
    EVIDENCE,
    HOLD_EVENT,
    TOMBSTONE,
    TRANSFER,
    Records,
)

KINDS = (
    *("issue", "redeem", "exchange-in", "exchange-out", "payment", "refund", "interest"),
    *("hold", "post", "void", "expire", "adjustment", "tombstone"),
    *("purse-fund", "purse-redeem", "purse-loss"),
)
"""A kind's position is its code."""
ISSUE, REDEEM, EXCHANGE_IN, EXCHANGE_OUT, PAYMENT, REFUND, INTEREST = range(7)
HOLD, POST, VOID, EXPIRE, ADJUSTMENT, TOMBSTONE_KIND = range(7, 13)
PURSE_FUND, PURSE_REDEEM, PURSE_LOSS = range(13, 16)
PLAIN = frozenset({EXCHANGE_IN, EXCHANGE_OUT, PAYMENT, REFUND, INTEREST, PURSE_FUND, PURSE_REDEEM, PURSE_LOSS})
ENDS = frozenset({POST, VOID, EXPIRE})
MANDATED = frozenset({ISSUE, REDEEM, ADJUSTMENT})
SPENDING = frozenset({PAYMENT, REFUND, HOLD, PURSE_FUND})
"""Count towards the payer's caps (I9)."""
SAME_OWNER = frozenset({EXCHANGE_IN, EXCHANGE_OUT, PURSE_FUND, PURSE_LOSS})
"""Both accounts are of one participant."""

ISSUANCE, VAULT, WALLET, OFFLINE = range(4)
"""Codes of the kinds of accounts. Account 1 is the issuance account; it has no row, genesis makes it."""
ISSUANCE_ACCOUNT = 1
HOLDERS = (VAULT, WALLET)
OPENED = (VAULT, WALLET, OFFLINE)
"""Kinds of accounts that have a row."""

_AMONG_HOLDERS = {(debit, credit) for debit in HOLDERS for credit in HOLDERS}
JOINS: dict[int, set[tuple[int, int]]] = {
    **dict.fromkeys((PAYMENT, REFUND, HOLD, ADJUSTMENT), _AMONG_HOLDERS),
    ISSUE: {(ISSUANCE, VAULT)},
    REDEEM: {(VAULT, ISSUANCE)},
    EXCHANGE_IN: {(VAULT, WALLET)},
    EXCHANGE_OUT: {(WALLET, VAULT)},
    INTEREST: {(VAULT, WALLET)},
    PURSE_FUND: {(WALLET, OFFLINE)},
    PURSE_REDEEM: {(OFFLINE, WALLET)},
    PURSE_LOSS: {(VAULT, OFFLINE), (OFFLINE, VAULT)},
}
"""Debit and credit kinds of accounts that a kind of transfer joins; post, void and expire follow their hold."""

INSTRUCTION, SECRET, MANDATE, HOLD_TERMS, TOMBSTONE_GUARD = range(1, 6)
"""Codes of evidence. The last two have tables of their own and are hashed with the rest."""

GENESIS_HASH = bytes(32)
NIL = bytes(16)
EMPTY_DIGEST = hashlib.sha256(b"").digest()
_BLOCK_PREFIX = b"jiaozi-block-v1"
_EVIDENCE_ITEM = struct.Struct(">qBI")
_ACCOUNT_ITEM = struct.Struct(">q16sBi")
_DIRECTIVE_ITEM = struct.Struct(">qI")

EvidenceItem = tuple[int, int, bytes]
"""(seq, kind, body)"""


def block_hashes(blocks: Records) -> list[bytes]:
    """SHA-256 of a prefix, fifteen integers and five digests of each, as they lie in the record."""
    data = memoryview(blocks.tobytes())
    size = BLOCK.itemsize
    return [
        hashlib.sha256(_BLOCK_PREFIX + data[start : start + BLOCK_HASHED_BYTES]).digest()
        for start in range(0, len(data), size)
    ]


def digest_evidence(items: Iterable[EvidenceItem]) -> bytes:
    """Over seq (8), kind (1), length (4) and body of each, in the given order, which must be by (seq, kind)."""
    digest = hashlib.sha256()
    for seq, kind, body in items:
        digest.update(_EVIDENCE_ITEM.pack(seq, kind, len(body)) + body)
    return digest.digest()


def evidence_items(
    evidence: Records, bodies: Sequence[bytes], hold_events: Records, tombstones: Records
) -> list[EvidenceItem]:
    """Everything that counts as evidence, by (seq, kind): terms of placed holds and guards of tombstones too."""
    items = list(zip(evidence["seq"].tolist(), evidence["kind"].tolist(), bodies, strict=True))
    placed = hold_events[hold_events["phase"] == 0]
    if len(placed):
        # commit hash, abort hash, expiry: as they lie in the record
        raw, size = memoryview(placed.tobytes()), HOLD_EVENT.itemsize
        terms = [bytes(raw[end - 72 : end]) for end in range(size, len(raw) + 1, size)]
        items += zip(placed["seq"].tolist(), [HOLD_TERMS] * len(placed), terms, strict=True)
    for stone in tombstones:
        body = stone["hold"].tobytes() + stone["guard"].tobytes()[: int(stone["length"])]
        items.append((int(stone["seq"]), TOMBSTONE_GUARD, body))
    items.sort()
    return items


def digest_accounts(accounts: Records, texts: Sequence[tuple[bytes, bytes | None]]) -> bytes:
    """Over number (8), opening (16), kind (1), participant (4), class (length 1), key (length 1) of each.

    Raises ValueError for a class or key of more than 255 bytes.
    """
    digest = hashlib.sha256()
    numbers, kinds = accounts["number"].tolist(), accounts["kind"].tolist()
    participants, openings = accounts["participant"].tolist(), accounts["opening"].tolist()
    parts = []
    for number, opening, kind, participant, (name, key) in zip(
        numbers, openings, kinds, participants, texts, strict=True
    ):
        key = key or b""
        parts.append(_ACCOUNT_ITEM.pack(number, bytes(opening), kind, participant))
        parts.append(bytes([len(name)]) + name + bytes([len(key)]) + key)
    digest.update(b"".join(parts))
    return digest.digest()


def digest_account_page(accounts: Records, name: bytes, keys: npt.NDArray[np.uint8]) -> bytes:
    """The same of accounts of one class, whose keys are the rows of a matrix."""
    if len(name) > 255 or keys.shape[1] > 255:
        raise ValueError("a class or key of more than 255 bytes")
    fixed = np.ascontiguousarray(accounts).view(np.uint8).reshape(len(accounts), ACCOUNT.itemsize)
    text = bytes([len(name)]) + name + bytes([keys.shape[1]])
    middle = np.broadcast_to(np.frombuffer(text, np.uint8), (len(accounts), len(text)))
    rows = np.concatenate([fixed[:, : _ACCOUNT_ITEM.size], middle, keys], axis=1)
    return hashlib.sha256(rows.tobytes()).digest()


def digest_directives(directives: Records, texts: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Over number (8), length (4) and body of each."""
    digest = hashlib.sha256()
    for number, (_, body) in zip(directives["number"].tolist(), texts, strict=True):
        digest.update(_DIRECTIVE_ITEM.pack(number, len(body)) + body)
    return digest.digest()


def uuid_bytes(high: int, low: int) -> bytes:
    return high.to_bytes(8, "big") + low.to_bytes(8, "big")


def table(kinds: Iterable[int]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """A kind's code -> whether it is one of these; 256 long, so that any byte may ask."""
    found = np.zeros(256, np.bool_)
    found[list(kinds)] = True
    return found


__all__ = ["ACCOUNT", "BLOCK", "DIRECTIVE", "EVIDENCE", "HOLD_EVENT", "TOMBSTONE", "TRANSFER"]
