"""A leg on an EVM chain, by block headers and receipt proofs. The events are decoded here by hand, word by word: the
adapter's own reading of them is not used."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from uuid import UUID

from eth_utils.crypto import keccak
from rlp import encode as rlp_encode  # type: ignore[import-untyped]

from kernel.crypto.keys import SigningKey
from kernel.transparency.notes import Note, NoteRefused, open_note, sign_text
from settlement.relay.bundle import HEADER_BYTES_MAX, EventProof, EvmProof, HeaderChain, LegStanding, Statement
from settlement.relay.trie import ProofRefused, read_proved, read_rlp
from settlement.relay.trust import EvmTrust

_HEADER_FIELDS = range(15, 32)
"""15 at first; London, Shanghai, Cancun and Prague added theirs, and others will."""
LOCKED, POSTED, VOIDED, BURIED = (
    bytes(keccak(text=text))
    for text in (
        "Locked(address,address,bytes32,address,uint256,bytes32,bytes32,uint40,bytes32)",
        "Posted(address,address,bytes32,address,uint256,bytes32)",
        "Voided(address,address,bytes32,address,uint256,bytes32)",
        "Buried(address,bytes32,bytes32)",
    )
)


@dataclass(frozen=True, slots=True)
class Header:
    """`timestamp` in UNIX seconds."""

    number: int
    hash: bytes
    parent: bytes
    receipts_root: bytes
    timestamp: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class Finals:
    """Headers by number, and why a later one is none."""

    headers: Mapping[int, Header]
    beyond: str


@dataclass(frozen=True, slots=True)
class Log:
    address: bytes
    topics: tuple[bytes, ...]
    data: bytes


def read_header(raw: bytes) -> Header:
    """A header from its RLP, with the hash that it has. Raises ProofRefused."""
    if len(raw) > HEADER_BYTES_MAX:
        raise ProofRefused("longer than a header is")
    fields = read_rlp(raw)
    if not isinstance(fields, list) or len(fields) not in _HEADER_FIELDS:
        raise ProofRefused("not a block header")
    if not all(isinstance(field, bytes) for field in fields):
        raise ProofRefused("not a block header")
    lengths = {0: 32, 1: 32, 2: 20, 3: 32, 4: 32, 5: 32, 6: 256}
    if any(len(fields[place]) != length for place, length in lengths.items()):
        raise ProofRefused("not a block header")
    number, timestamp = _number(fields[8]), _number(fields[11])
    return Header(number, bytes(keccak(raw)), fields[0], fields[5], timestamp, raw)


def linked(raws: Sequence[bytes]) -> list[Header]:
    """Headers, each the child of the one before. Raises ProofRefused."""
    headers = [read_header(raw) for raw in raws]
    for parent, child in itertools.pairwise(headers):
        if child.parent != parent.hash or child.number != parent.number + 1:
            raise ProofRefused(f"header {child.number} is not the child of the one before it")
    return headers


def header_text(ledger: str, header: Header) -> str:
    """What a keeper signs: it has seen this block final on its own nodes."""
    return f"jiaozi-relay-header/v1\n{ledger}\n{header.number}\n{header.hash.hex()}\n"


def sign_header(ledger: str, header: Header, *, name: str, key: SigningKey) -> str:
    text = header_text(ledger, header)
    return str(Note(text, (sign_text(text, name=name, key=key),)))


def final_headers(trust: EvmTrust, chain: HeaderChain) -> Finals:
    """The headers of `chain` that a reader of this trust may take for final. Raises ProofRefused."""
    headers = linked([bytes.fromhex(text) for text in chain.headers])
    first, last = headers[0], headers[-1]
    if not first.number <= trust.anchor.number <= last.number:
        raise ProofRefused(
            f"the headers {first.number} to {last.number} do not reach the trusted block {trust.anchor.number}"
        )
    if headers[trust.anchor.number - first.number].hash != trust.anchor.hash:
        raise ProofRefused(f"block {trust.anchor.number} is another than the trusted one: another chain, or a fork")
    # Ancestors of the trusted block are bound to it by their hashes. Its descendants have to be deep enough, under a
    # last header that the keepers vouch for.
    final_to, beyond = trust.anchor.number, ""
    try:
        _check_keepers(trust, last, chain.note)
        final_to = max(final_to, last.number - trust.confirmations + 1)
        beyond = f"it has fewer than {trust.confirmations} confirmations among the headers"
    except ProofRefused as error:
        beyond = str(error)
    return Finals({header.number: header for header in headers if header.number <= final_to}, beyond)


def _check_keepers(trust: EvmTrust, last: Header, text: str) -> None:
    if trust.quorum == 0:
        return
    try:
        note = Note.parse(text)
        signed = open_note(note, trust.keeper_keys)
    except NoteRefused as error:
        raise ProofRefused(f"the keepers' note: {error}") from None
    if note.text != header_text(trust.ledger, last):
        raise ProofRefused("the keepers' note is not of the last header")
    if len({key.public for key in signed}) < trust.quorum:
        raise ProofRefused(f"{len(signed)} of the known keepers have signed the last header, {trust.quorum} are needed")


def read_event(header: Header, proof: EventProof) -> Log:
    """The log at its place of a receipt in this block, of a transaction that succeeded. Raises ProofRefused."""
    if header.number != proof.block:
        raise ProofRefused("the proof is of another block")
    key = bytes(rlp_encode(proof.transaction_index))
    value = read_proved(header.receipts_root, key, [bytes.fromhex(node) for node in proof.nodes])
    # EIP-2718: a byte of type before the list; the list itself begins at 0xc0.
    receipt = read_rlp(value[1:] if value[0] < 0x80 else value)
    if not isinstance(receipt, list) or len(receipt) != 4:
        raise ProofRefused("not a receipt")
    status, _, _, logs = receipt
    if status != b"\x01":
        raise ProofRefused("the transaction failed: its receipt has no status 1")
    if not isinstance(logs, list) or proof.log_position >= len(logs):
        raise ProofRefused("the receipt has no log at this place")
    return _log(logs[proof.log_position])


def check_leg(
    trust: EvmTrust,
    finals: Finals,
    statement: Statement,
    proof: EvmProof,
    *,
    uetr: UUID,
    commit_hash: bytes,
    abort_hash: bytes,
) -> tuple[LegStanding, str]:
    """(what the leg is proved to be, what the proof stands under). Raises ProofRefused."""
    payer, payee = (trust.accounts.get(account) for account in (statement.debit, statement.credit))
    if payer is None or payee is None:
        raise ProofRefused("the reader does not know the address of an account of this leg")
    hold = statement.hold.int.to_bytes(32, "big")
    words = [_word(payer), _word(payee), hold]
    terms = _word(trust.token) + (statement.amount_minor * trust.unit).to_bytes(32, "big")
    blocks = []

    def event(shown: EventProof) -> Log:
        header = finals.headers.get(shown.block)
        if header is None:
            is_before = bool(finals.headers) and shown.block < min(finals.headers)
            why = "it is before the headers given" if is_before else finals.beyond
            raise ProofRefused(f"block {shown.block} is not final for this reader: {why}")
        log = read_event(header, shown)
        if log.address != bytes.fromhex(trust.escrow[2:]):
            raise ProofRefused("the log is of another contract than the escrow")
        blocks.append(f"block {header.number} 0x{header.hash.hex()[:16]}...")
        return log

    if proof.locked is not None:
        log = event(proof.locked)
        wanted = terms + commit_hash + abort_hash + bytes(32) + uetr.int.to_bytes(32, "big")
        if log.topics != (LOCKED, *words) or log.data != wanted:
            raise ProofRefused("the lock is not of this leg's terms")
    if proof.ended is None:
        if proof.locked is None:
            raise ProofRefused("nothing is shown")
        return LegStanding.HELD, ", ".join(blocks)
    log = event(proof.ended)
    if proof.locked is None:
        if log.topics != (BURIED, words[0], hold) or log.data != abort_hash:
            raise ProofRefused("without its lock only a tombstone under the abort hash proves anything")
        return LegStanding.VOIDED, ", ".join(blocks)
    for topic, standing, digest in (
        (POSTED, LegStanding.POSTED, commit_hash),
        (VOIDED, LegStanding.VOIDED, abort_hash),
    ):
        if log.topics == (topic, *words):
            if log.data[:64] != terms or len(log.data) != 96 or sha256(log.data[64:]).digest() != digest:
                raise ProofRefused("the end is not of this leg's terms")
            return standing, ", ".join(blocks)
    raise ProofRefused("the end is not of this leg")


def _log(item: Any) -> Log:
    if not isinstance(item, list) or len(item) != 3:
        raise ProofRefused("not a log")
    address, topics, data = item
    if not isinstance(address, bytes) or not isinstance(data, bytes) or not isinstance(topics, list):
        raise ProofRefused("not a log")
    if len(address) != 20 or any(not isinstance(topic, bytes) or len(topic) != 32 for topic in topics):
        raise ProofRefused("not a log")
    return Log(address, tuple(topics), data)


def _number(field: bytes) -> int:
    if len(field) > 8 or field[:1] == b"\0":
        raise ProofRefused("not a number of a header")
    return int(struct.unpack(">Q", field.rjust(8, b"\0"))[0])


def _word(address: str) -> bytes:
    return bytes(12) + bytes.fromhex(address[2:])
