"""What may be kept of an island beside what is kept of it: the next checkpoint or header, or an alarm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from kernel.transparency.checkpoints import Checkpoint, open_checkpoint, witness_keys
from kernel.transparency.merkle import verify_consistency
from kernel.transparency.notes import NoteRefused, VerifierKey
from settlement.relay.evm import Header
from settlement.relay.trie import ProofRefused
from settlement.relay.trust import NativeTrust


class AlarmKind(StrEnum):
    FORK = "fork"
    """Two signed checkpoints of one size with different roots: the log has told two histories, and signed both."""
    INCONSISTENT = "inconsistent"
    """A signed checkpoint, and a consistency proof that does not lead from a kept one to it (or the other way)."""
    ROLLED_BACK = "rolled-back"
    """The newest checkpoint is smaller than one that was kept before it was asked for."""
    CONTRADICTION = "contradiction"
    """A node shows another block at the height of one that is kept as final, or of the trusted one."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint that is kept, or is to be."""

    size: int
    root: bytes
    note: str


@dataclass(frozen=True, slots=True)
class Alarm:
    """`first` is what was believed, `second` what contradicts it: both as they were signed or hashed."""

    kind: AlarmKind
    detail: str
    first: bytes
    second: bytes


def open_note_of(trust: NativeTrust, note: str) -> Kept:
    """A checkpoint signed by the trusted log. Raises ProofRefused. Witnesses are the reader's to ask for: their
    cosignatures come later than the checkpoint."""
    try:
        opened: Checkpoint = open_checkpoint(
            note, log_key=VerifierKey.parse(trust.log_key), witnesses=witness_keys(trust.witnesses)
        ).checkpoint
    except NoteRefused as error:
        raise ProofRefused(str(error)) from None
    return Kept(opened.size, opened.root, note)


def compare(first: Kept, second: Kept, proof: Sequence[bytes]) -> Alarm | None:
    """A kept checkpoint and another; `proof` leads from the smaller to the larger and is empty for equal sizes."""
    if first.size == second.size:
        if first.root == second.root:
            return None
        detail = f"two signed checkpoints of size {first.size} have different roots"
        return Alarm(AlarmKind.FORK, detail, first.note.encode(), second.note.encode())
    small, large = (first, second) if first.size < second.size else (second, first)
    is_consistent = verify_consistency(
        old_size=small.size, old_root=small.root, new_size=large.size, new_root=large.root, proof=proof
    )
    if is_consistent:
        return None
    detail = f"the checkpoint of size {large.size} is not shown to contain the one of size {small.size}"
    return Alarm(AlarmKind.INCONSISTENT, detail, first.note.encode(), second.note.encode())


def same_block(kept: Header, shown: Header) -> Alarm | None:
    if kept.hash == shown.hash:
        return None
    detail = f"block {kept.number} was final as 0x{kept.hash.hex()} and is shown as 0x{shown.hash.hex()}"
    return Alarm(AlarmKind.CONTRADICTION, detail, kept.raw, shown.raw)
