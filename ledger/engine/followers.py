"""What others learn of a committed block: the transparency log and the history by account follow the sequencer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ledger.domain.blocks import BlockHeader, Evidence
from ledger.domain.records import Records


@dataclass(frozen=True, slots=True)
class CommittedBlock:
    """A durable block. `transfers`: `JOURNAL` records in seq order; `evidence`: all that the block's digest covers."""

    header: BlockHeader
    transfers: Records
    evidence: Sequence[Evidence]


Follower = Callable[[CommittedBlock], None]
"""Called in the sequencer's thread after COMMIT, block by block: it must be quick, and must neither block nor raise.
Whoever misses a block (a restart, a full queue) finds it in the journal: `seq` is dense."""
