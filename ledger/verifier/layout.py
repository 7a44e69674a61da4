"""The journal's documented layout: codes, rows, packed records and what the digests cover. Written from the pages
`ledger/domain/records.py`, `ledger/domain/blocks.py` and `ledger/store/tables.py`, importing none of them.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from kernel.clock import to_micros

KINDS = (
    *("issue", "redeem", "exchange-in", "exchange-out", "payment", "refund", "interest"),
    *("hold", "post", "void", "expire", "adjustment", "tombstone"),
)
"""A kind's position is its code."""
ISSUE, REDEEM, EXCHANGE_IN, EXCHANGE_OUT, PAYMENT, REFUND, INTEREST = range(7)
HOLD, POST, VOID, EXPIRE, ADJUSTMENT, TOMBSTONE = range(7, 13)
ENDS = frozenset({POST, VOID, EXPIRE})
MANDATED = frozenset({ISSUE, REDEEM, ADJUSTMENT})
SPENDING = frozenset({PAYMENT, REFUND, HOLD})
"""Count towards the payer's caps (I9)."""

ISSUANCE, VAULT, WALLET = range(3)
"""Codes of the kinds of accounts. Account 1 is the issuance account; it has no row, genesis makes it."""
ISSUANCE_ACCOUNT = 1

INSTRUCTION, SECRET, MANDATE, HOLD_TERMS, TOMBSTONE_GUARD = range(1, 6)
"""Codes of evidence. The last two have tables of their own and are hashed with the rest."""

GENESIS_HASH = bytes(32)
NIL = bytes(16)
_HEADER = struct.Struct(">9q")
_TRANSFER = struct.Struct(">q16sBqqq16s16siq")
_EVIDENCE = struct.Struct(">qBI")
_ACCOUNT = struct.Struct(">q16sBi")
_DIRECTIVE = struct.Struct(">qI")


class BlockRow(NamedTuple):
    number: int
    epoch: int
    booked_at: datetime
    first_seq: int
    transfer_count: int
    transfers_digest: bytes
    evidence_digest: bytes
    first_directive: int
    directive_count: int
    directives_digest: bytes
    first_account: int
    account_count: int
    accounts_digest: bytes
    previous_hash: bytes
    hash: bytes


class TransferRow(NamedTuple):
    seq: int
    id: bytes
    kind: int
    debit: int
    credit: int
    amount: int
    hold: bytes | None
    reference: bytes | None
    submitter: int
    booked_at: datetime


class EvidenceRow(NamedTuple):
    seq: int
    kind: int
    transfer: bytes
    body: bytes


class HoldEventRow(NamedTuple):
    seq: int
    phase: int
    hold: bytes
    transfer: bytes
    kind: int
    commit_hash: bytes | None
    abort_hash: bytes | None
    expires_at: datetime | None


class TombstoneRow(NamedTuple):
    seq: int
    hold: bytes
    guard: bytes
    transfer: bytes


class AccountRow(NamedTuple):
    number: int
    opening: bytes
    kind: int
    participant: int
    rule_class: str
    holder_key: bytes | None
    opened_at: datetime


class DirectiveRow(NamedTuple):
    number: int
    kind: str
    mandate: bytes | None
    body: bytes
    booked_at: datetime


COLUMNS = {
    BlockRow: (
        "SELECT number, epoch, booked_at, first_seq, transfer_count, transfers_digest, evidence_digest,"
        " first_directive, directive_count, directives_digest, first_account, account_count, accounts_digest,"
        " previous_hash, hash FROM block ORDER BY number"
    ),
    TransferRow: (
        "SELECT seq, uuid_send(id), kind, debit_account, credit_account, amount_minor, uuid_send(hold_id),"
        " uuid_send(reference), submitter, booked_at FROM transfer ORDER BY seq"
    ),
    EvidenceRow: "SELECT seq, kind, uuid_send(transfer_id), body FROM evidence ORDER BY seq, kind",
    HoldEventRow: (
        "SELECT seq, phase, uuid_send(hold_id), uuid_send(transfer_id), kind, commit_hash, abort_hash, expires_at"
        " FROM hold_event ORDER BY seq, phase"
    ),
    TombstoneRow: "SELECT seq, uuid_send(hold_id), guard, uuid_send(transfer_id) FROM hold_tombstone ORDER BY seq",
    AccountRow: (
        "SELECT number, uuid_send(opening_id), kind, participant, rule_class, holder_key, opened_at"
        " FROM account ORDER BY number"
    ),
    DirectiveRow: "SELECT number, kind, uuid_send(mandate_id), body, booked_at FROM directive ORDER BY number",
}
"""How each kind of row is read: in the order in which it was written, its first column saying where it belongs."""


def block_hash(row: BlockRow) -> bytes:
    """SHA-256 of a prefix, nine integers of 8 bytes big-endian and five digests, in the documented order."""
    integers = _HEADER.pack(
        *(row.number, row.epoch, to_micros(row.booked_at), row.first_seq, row.transfer_count),
        *(row.first_directive, row.directive_count, row.first_account, row.account_count),
    )
    digests = (
        *(row.transfers_digest, row.evidence_digest, row.directives_digest, row.accounts_digest),
        row.previous_hash,
    )
    return hashlib.sha256(b"jiaozi-block-v1" + integers + b"".join(digests)).digest()


def transfers_digest(rows: Iterable[TransferRow]) -> bytes:
    """Over the 93-byte record of each, in seq order. Nil uuid = none."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(
            _TRANSFER.pack(
                *(row.seq, row.id, row.kind, row.debit, row.credit, row.amount),
                *(row.hold or NIL, row.reference or NIL, row.submitter, to_micros(row.booked_at)),
            )
        )
    return digest.digest()


def evidence_digest(
    evidence: Iterable[EvidenceRow], placed: Iterable[HoldEventRow], tombstones: Iterable[TombstoneRow]
) -> bytes:
    """Over seq (8), kind (1), length (4) and body of each, by (seq, kind); hold terms and guards among them."""
    items = [(row.seq, row.kind, row.body) for row in evidence]
    zero = bytes(32)
    for event in placed:
        expires = to_micros(event.expires_at) if event.expires_at is not None else 0
        terms = (event.commit_hash or zero) + (event.abort_hash or zero) + struct.pack(">q", expires)
        items.append((event.seq, HOLD_TERMS, terms))
    items += [(row.seq, TOMBSTONE_GUARD, row.hold + row.guard) for row in tombstones]
    digest = hashlib.sha256()
    for seq, kind, body in sorted(items):
        digest.update(_EVIDENCE.pack(seq, kind, len(body)) + body)
    return digest.digest()


def accounts_digest(rows: Iterable[AccountRow]) -> bytes:
    """Over number (8), opening (16), kind (1), participant (4), class (length 1), key (length 1) of each."""
    digest = hashlib.sha256()
    for row in rows:
        name, key = row.rule_class.encode(), row.holder_key or b""
        digest.update(_ACCOUNT.pack(row.number, row.opening, row.kind, row.participant))
        digest.update(bytes([len(name)]) + name + bytes([len(key)]) + key)
    return digest.digest()


def directives_digest(rows: Iterable[DirectiveRow]) -> bytes:
    """Over number (8), length (4) and body of each."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(_DIRECTIVE.pack(row.number, len(row.body)) + row.body)
    return digest.digest()
