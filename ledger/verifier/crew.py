"""Who does the work that needs no order: processes for a large journal, this one for a small one.

Hashing the log's leaves, checking signatures and sorting ids take most of the time and know nothing of the replay. So
the replay runs here, and everything else in as many processes as there are cores: the system shares the cores among
them until nothing is left to do.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

from ledger.verifier import identifiers, merkle
from ledger.verifier.closings import TreeTask, tree_problems
from ledger.verifier.documents import InstructionCheck, InstructionVerifier
from ledger.verifier.merkle import SpanResult, SpanTask
from ledger.verifier.source import Source, file_problem

T = TypeVar("T")

WAITING_MAX = 64
"""Tasks handed out and not done: bounds the memory of what they carry."""

Problems = list[tuple[int, str]]
"""(place in the batch, what is wrong)"""


class Crew:
    """`processes` 0 = everything is done at once, by the caller."""

    def __init__(self, source: Source, *, processes: int | None = None) -> None:
        self._source = source
        self._waiting: deque[Future[object]] = deque()
        self._pool: ProcessPoolExecutor | None = None
        if processes != 0:
            # not fork: this process has threads
            context = multiprocessing.get_context("spawn")
            count = processes or os.cpu_count() or 1
            self._pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(source,))

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    @property
    def is_alone(self) -> bool:
        return self._pool is None

    def hash_span(self, task: SpanTask) -> Future[SpanResult]:
        return self._do(_hash_span, lambda: merkle.hash_span(self._source, task), task)

    def make_tree(self, task: TreeTask) -> Future[list[str]]:
        return self._do(tree_problems, lambda: tree_problems(task), task)

    def check_files(self, segment: int) -> Future[str | None]:
        return self._do(_check_files, lambda: file_problem(self._source, segment), segment)

    def spill_ids(self, segment: int, path: Path) -> Future[None]:
        return self._do(_spill_ids, lambda: identifiers.spill(self._source, segment, path), segment, path)

    def verify(self, ledger: str, currency: str, checks: list[InstructionCheck]) -> Future[Problems]:
        return self._do(_verify, lambda: _verify(ledger, currency, checks), ledger, currency, checks)

    def drain(self) -> None:
        """Wait until nothing is under way."""
        while self._waiting:
            self._waiting.popleft().exception()

    def _do(self, task: Callable[..., T], here: Callable[[], T], *arguments: object) -> Future[T]:
        if self._pool is None:
            done: Future[T] = Future()
            try:
                done.set_result(here())
            except Exception as error:
                done.set_exception(error)
            return done
        while len(self._waiting) >= WAITING_MAX:
            self._waiting.popleft().exception()
        future = self._pool.submit(task, *arguments)
        self._waiting.append(future)  # type: ignore[arg-type]
        return future


_sources: list[Source] = []
"""Of a process of the crew: the one source that it reads."""


def _begin(source: Source) -> None:
    _sources[:] = [source]
    gc.freeze()  # the modules stay: the garbage collector need not look at them again and again


def _hash_span(task: SpanTask) -> SpanResult:
    return merkle.hash_span(_sources[0], task)


def _check_files(segment: int) -> str | None:
    return file_problem(_sources[0], segment)


def _spill_ids(segment: int, path: Path) -> None:
    identifiers.spill(_sources[0], segment, path)


def _verify(ledger: str, currency: str, checks: list[InstructionCheck]) -> Problems:
    verifier = InstructionVerifier(ledger, currency)
    found = ((place, verifier.problem(check)) for place, check in enumerate(checks))
    return [(place, problem) for place, problem in found if problem is not None]
