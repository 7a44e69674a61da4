"""What every reader of a large file hands out: chunks of decided lines, each with the place to go on from."""

from __future__ import annotations

from dataclasses import dataclass

from kernel.ids import ParticipantId
from settlement.domain.instructions import DeclaredTotals, Instruction, InstructionProblem
from settlement.iso20022.segments import Cursor


@dataclass(frozen=True, slots=True)
class GroupHeader:
    """What a file says of itself before its first instruction."""

    message: str
    message_id: str
    value_date: str
    settlement_method: str
    declared: DeclaredTotals
    sender: ParticipantId | None
    """Fr of the application header; None without one."""
    receiver: ParticipantId | None
    line: int


@dataclass(slots=True)
class Line:
    """One line of a file as it was decided. `amount` and `currency` are as written, for the file's totals."""

    index: int
    line: int
    decided: Instruction | InstructionProblem
    amount: str
    currency: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some lines in order, and from where to read on. `header` is None in CSV, which has none."""

    header: GroupHeader | None
    lines: list[Line]
    after: Cursor
    is_last: bool


class FileProblem(Exception):
    """The whole file is refused."""

    def __init__(self, problem: InstructionProblem) -> None:
        super().__init__(str(problem))
        self.problem = problem
