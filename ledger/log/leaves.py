"""What a leaf of the log is: a salted commitment to one booked transfer, so that public tiles say nothing of it.

    leaf      = salt (16) || packed JOURNAL record (93) || evidence digest (32, only if the transfer has evidence)
    leaf hash = SHA-256(0x00 || leaf)                                                      (RFC 6962 section 2.1)
    salt(seq) = AES-256-ECB(range key, seq as 16 bytes big-endian)
    range key = HMAC-SHA256(master, "jiaozi-log-salt-v1" || u64 of (seq - 1) >> 20)

AES on distinct numbers is a pseudorandom permutation: 128 bits nobody can guess from the transfer, at one call for a
whole range. Range keys are what an auditor's export carries; the master leaves the ledger never.

Blocks are committed to in the same way (decision 11): a block's hash covers digests of private rows that have no salt,
so what the public sees of it is

    commitment    = SHA-256("jiaozi-block-commitment-v1" || block salt (32) || block hash (32))
    block salt(n) = HMAC-SHA256(master, "jiaozi-block-salt-v1" || u64 of n)
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from kernel.crypto.hashes import sha256_rows
from kernel.transparency import sum_tree
from kernel.transparency.merkle import HASH_BYTES
from ledger.domain.blocks import Evidence, digest_evidence
from ledger.domain.records import JOURNAL, Records

SALT_BYTES = 16
MASTER_BYTES = 32
RANGE_BITS = 20
"""A range key covers 2**20 transfers."""
RECORD_BYTES = JOURNAL.itemsize


def leaf_input(salt: bytes, record: bytes, evidence_digest: bytes | None) -> bytes:
    """The leaf of one transfer. Raises ValueError for parts of another length."""
    digest_bytes = HASH_BYTES if evidence_digest is None else len(evidence_digest)
    if (len(salt), len(record), digest_bytes) != (SALT_BYTES, RECORD_BYTES, HASH_BYTES):
        raise ValueError("a leaf is a salt of 16 bytes, a record of 93 and perhaps a digest of 32")
    return salt + record + (evidence_digest or b"")


def range_key(master: bytes, number: int) -> bytes:
    """The salts' key of transfers with (seq - 1) >> 20 = number."""
    return hmac.digest(master, b"jiaozi-log-salt-v1" + struct.pack(">Q", number), "sha256")


def block_salt(master: bytes, number: int) -> bytes:
    """Of one block's commitment: 32 bytes that open this block's and no other."""
    return hmac.digest(master, b"jiaozi-block-salt-v1" + struct.pack(">Q", number), "sha256")


def block_commitment(master: bytes, number: int, block_hash: bytes) -> bytes:
    """What checkpoints and closing statements say of a block in public."""
    return hashlib.sha256(b"jiaozi-block-commitment-v1" + block_salt(master, number) + block_hash).digest()


@dataclass(frozen=True, slots=True)
class MasterSalts:
    """What an auditor's export is given of the master (`ledger.export.log.LogSalts`)."""

    master: bytes = field(repr=False)

    def range_key(self, number: int) -> bytes:
        return range_key(self.master, number)

    def block_salt(self, number: int) -> bytes:
        return block_salt(self.master, number)

    def closing_key(self, number: int) -> bytes:
        return sum_tree.closing_key(self.master, number)


def salt_check(master: bytes) -> bytes:
    """What the database keeps of the master: whether a key file holds the same, and nothing else."""
    return hmac.digest(master, b"jiaozi-log-salt-check-v1", "sha256")


def salts(master: bytes, first_seq: int, count: int) -> bytes:
    """The salts of `count` transfers from `first_seq` on, concatenated: one cipher call a range."""
    made = []
    seq, end = first_seq, first_seq + count
    while seq < end:
        number = (seq - 1) >> RANGE_BITS
        stop = min(end, ((number + 1) << RANGE_BITS) + 1)
        made.append(salts_of_range(range_key(master, number), seq, stop - seq))
        seq = stop
    return b"".join(made)


def salts_of_range(key: bytes, first_seq: int, count: int) -> bytes:
    """Salts of transfers of one range."""
    plain = np.zeros((count, 2), ">u8")
    plain[:, 1] = np.arange(first_seq, first_seq + count)
    # Every plaintext block occurs once under a key: as a pseudorandom function ECB is what is wanted.
    cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305
    return cipher.encryptor().update(plain.tobytes())


def evidence_digests(evidence: Sequence[Evidence]) -> dict[int, bytes]:
    """Of each transfer that has evidence: seq -> the digest of its own items."""
    ordered = sorted(evidence, key=lambda item: item.seq)
    return {seq: digest_evidence(list(items)) for seq, items in groupby(ordered, key=lambda item: item.seq)}


def leaf_hashes(master: bytes, records: Records, digests: Mapping[int, bytes]) -> bytes:
    """Leaf hashes of consecutive transfers, concatenated, in seq order. About a quarter of a microsecond each."""
    count = len(records)
    if not count:
        return b""
    first = int(records[0]["seq"])
    salted = np.empty((count, 1 + SALT_BYTES + RECORD_BYTES), np.uint8)
    salted[:, 0] = 0
    salted[:, 1 : 1 + SALT_BYTES] = np.frombuffer(salts(master, first, count), np.uint8).reshape(count, SALT_BYTES)
    salted[:, 1 + SALT_BYTES :] = np.frombuffer(records.tobytes(), np.uint8).reshape(count, RECORD_BYTES)
    if not digests:
        return sha256_rows(salted).tobytes()
    places = np.array(sorted(digests), np.int64) - first
    with_evidence = np.concatenate(
        [salted[places], np.frombuffer(b"".join(digests[seq] for seq in sorted(digests)), np.uint8).reshape(-1, 32)],
        axis=1,
    )
    plain = np.ones(count, np.bool_)
    plain[places] = False
    hashes = np.empty((count, HASH_BYTES), np.uint8)
    hashes[plain] = sha256_rows(salted[plain])
    hashes[places] = sha256_rows(with_evidence)
    return hashes.tobytes()


def transfers_digest(records: Records) -> bytes:
    """As a block's header has it."""
    return hashlib.sha256(records.tobytes()).digest()
