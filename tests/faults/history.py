"""Recorded histories of concurrent operations on a ledger, and two independent judges of whether one order explains
them (linearizability, Herlihy and Wing 1990).

`search` looks for such an order without knowing the journal: it is Wing and Gong's algorithm with Lowe's memory of
configurations seen. `follow_log` knows the order that the journal claims and holds every operation to it. A ledger
that fooled one by a doctored journal does not fool the other, and the search checks short histories only.

An operation is one intention of one client: all attempts with one id are one operation, which begins with the first
attempt and completes with the answer. One without an answer may have happened or not (or may yet).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BOOKED, REFUSED, UNKNOWN = "booked", "refused", "unknown"


@dataclass(frozen=True)
class Operation:
    """`kind`: transfer, hold, post, void (of the hold with id `hold`) or read (of account `debit`).

    `result`: BOOKED, REFUSED or UNKNOWN; of a read, its (posted, held) of the account, or None if it got no answer.
    `began` and `ended`: one clock for all clients, in seconds; `ended` is infinite without an answer. `seq`: where the
    ledger said it is booked; only `follow_log` looks at it.
    """

    id: int
    kind: str
    began: float
    ended: float
    result: object
    debit: int = 0
    credit: int = 0
    amount: int = 0
    hold: int = 0
    seq: int = 0


@dataclass(frozen=True)
class Accounts:
    """The sequential model: what the accounts are between two operations. Immutable and hashable."""

    posted: tuple[tuple[int, int], ...]
    holds: tuple[tuple[int, tuple[int, int, int]], ...] = ()
    """Open holds: id -> (debit, credit, amount)."""
    ended: frozenset[int] = frozenset()

    def read(self, account: int) -> tuple[int, int]:
        """(posted balance, of which held)."""
        held = sum(amount for _, (debit, _, amount) in self.holds if debit == account)
        return dict(self.posted)[account], held

    def after(self, operation: Operation) -> Accounts | None:
        """The accounts after it was booked; None if they refuse it."""
        posted, holds = dict(self.posted), dict(self.holds)
        match operation.kind:
            case "transfer" | "hold":
                balance, held = self.read(operation.debit)
                if balance - held < operation.amount:
                    return None
                if operation.kind == "hold":
                    if operation.id in holds or operation.id in self.ended:
                        return None
                    holds[operation.id] = (operation.debit, operation.credit, operation.amount)
                else:
                    _move(posted, operation.debit, operation.credit, operation.amount)
            case "post" | "void":
                if operation.hold not in holds:
                    return None
                debit, credit, amount = holds.pop(operation.hold)
                if operation.kind == "post":
                    _move(posted, debit, credit, amount)
                return Accounts(
                    tuple(sorted(posted.items())), tuple(sorted(holds.items())), self.ended | {operation.hold}
                )
            case _:
                raise ValueError(operation.kind)
        return Accounts(tuple(sorted(posted.items())), tuple(sorted(holds.items())), self.ended)


def _move(posted: dict[int, int], debit: int, credit: int, amount: int) -> None:
    posted[debit] -= amount
    posted[credit] += amount


def outcomes(state: Accounts, operation: Operation) -> list[Accounts]:
    """The states in which an operation may leave the accounts if it happens now, as it was answered; [] = it cannot."""
    if operation.kind == "read":
        return [state] if state.read(operation.debit) == operation.result else []
    after = state.after(operation)
    if operation.result == BOOKED:
        return [after] if after is not None else []
    if operation.result == REFUSED:
        return [state] if after is None else []
    return [] if after is None else [after]


def search(operations: Sequence[Operation], start: Accounts) -> list[Operation] | None:
    """An order of the operations that explains every answer and respects real time; None if there is none.

    Operations without an answer may be left out. Exponential at worst: for histories of some dozens of operations and
    few clients.
    """
    every = sorted((item for item in operations if item.result is not None), key=lambda item: item.began)
    answered = frozenset(item.id for item in every if item.result != UNKNOWN)
    seen: set[tuple[frozenset[int], Accounts]] = set()
    # Depth first: (done, state, order so far). A stack of its own, because histories are longer than Python's.
    stack: list[tuple[frozenset[int], Accounts, tuple[Operation, ...]]] = [(frozenset(), start, ())]
    while stack:
        done, state, order = stack.pop()
        if answered <= done:
            return list(order)
        if (done, state) in seen:
            continue
        seen.add((done, state))
        waiting = [item for item in every if item.id not in done]
        # Only what began before the first of the waiting ended can come next.
        first_end = min(item.ended for item in waiting)
        for item in waiting:
            if item.began <= first_end:
                stack.extend((done | {item.id}, after, (*order, item)) for after in outcomes(state, item))
    return None


def follow_log(operations: Sequence[Operation], start: Accounts, log: Mapping[int, int]) -> list[str]:
    """What is wrong with a history if the journal's order is the order. `log`: seq -> operation id, of all operations
    that the journal has, in whatever range of seqs. Empty = linearizable.

    1. What was booked is in the log where it was answered; what was refused is not.
    2. The log's order respects real time.
    3. Every booked operation is one that the model books at that place.
    4. Every read and every refusal is explained at a place that respects real time, towards the log and among
       themselves.
    """
    by_id = {item.id: item for item in operations}
    place_of = {operation: place for place, (_, operation) in enumerate(sorted(log.items()), start=1)}
    seq_of = {operation: seq for seq, operation in log.items()}
    wrong: list[str] = []
    for item in operations:
        if item.kind == "read":
            continue
        if item.result == BOOKED and seq_of.get(item.id) != item.seq:
            wrong.append(f"{item.id} was answered as booked at {item.seq} and is at {seq_of.get(item.id)}")
        if item.result == REFUSED and item.id in seq_of:
            wrong.append(f"{item.id} was refused and is at {seq_of[item.id]}")
    ordered = [by_id[operation] for _, operation in sorted(log.items()) if operation in by_id]
    if len(ordered) != len(log):
        wrong.append("the log has operations that nobody asked for")
    if wrong:
        return wrong
    began_before = float("-inf")
    for item in ordered:
        if item.ended < began_before:
            wrong.append(f"{item.id} ended before one began that the log has earlier")
        began_before = max(began_before, item.began)
    states = [start]
    for item in ordered:
        after = states[-1].after(item)
        if after is None:
            wrong.append(f"{item.id} is booked where the accounts do not allow it")
            return wrong
        states.append(after)
    # Places 0..n lie between the booked operations; an operation that is not in the log happens at one of them.
    placed: list[tuple[float, int]] = []
    for item in sorted(operations, key=lambda item: item.began):
        if item.id in place_of or item.result in (UNKNOWN, None):
            continue
        lowest = max((place_of[other.id] for other in ordered if other.ended < item.began), default=0)
        lowest = max(lowest, max((place for ended, place in placed if ended < item.began), default=0))
        highest = min((place_of[other.id] - 1 for other in ordered if other.began > item.ended), default=len(ordered))
        # The lowest place that explains it leaves the most room to those after it.
        found = next((place for place in range(lowest, highest + 1) if outcomes(states[place], item)), None)
        if found is None:
            wrong.append(f"{item.kind} {item.id} with {item.result} is explained by no state of its time")
        else:
            placed.append((item.ended, found))
    return wrong
