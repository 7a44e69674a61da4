"""Clients that load a ledger while it is hurt, and what they were told.

They repeat a batch with the same ids until it is answered, as every client must: a lost answer is an unknown outcome.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from random import Random
from typing import Any, TypeVar
from uuid import UUID

import numpy as np
import numpy.typing as npt

from kernel import ids
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.clock import system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from ledger.client import LedgerClient
from ledger.contract import TransferItem, TransferOutcome
from ledger.domain.records import RESULT, SUBMISSION
from ledger.domain.vocabulary import KIND_CODE, TransferKind
from tests.ledger_world import LedgerWorld

ACKNOWLEDGED = np.dtype([("id_high", "<u8"), ("id_low", "<u8"), ("seq", "<i8")])
PAUSE_SECONDS = 0.02
T = TypeVar("T")


class Notes:
    """What the clients were told."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.booked: dict[UUID, int] = {}
        self.refused: set[UUID] = set()
        self.counts: Counter[str] = Counter()
        self.answers = 0
        self.errors: list[str] = []
        self.acknowledged: list[npt.NDArray[Any]] = []
        """Of bulk batches: arrays of ACKNOWLEDGED."""
        self.refused_bulk: list[npt.NDArray[Any]] = []
        self.go = threading.Event()
        """Cleared: clients finish what is in flight and wait."""
        self.go.set()
        self.at_rest = 0

    def take(self, wanted: list[UUID], results: list[Any], attempts: int) -> None:
        with self._lock:
            for transfer, result in zip(wanted, results, strict=True):
                self.counts[str(result.outcome.value)] += 1
                if result.outcome is TransferOutcome.REFUSED:
                    self.counts[f"refused: {result.refusal}"] += 1
                    self.refused.add(transfer)
                else:
                    assert result.seq is not None
                    self.booked[transfer] = result.seq
            self._count(attempts)

    def take_bulk(self, records: npt.NDArray[Any], results: npt.NDArray[Any], attempts: int) -> None:
        """`results`: RESULT records, parallel to the SUBMISSION records; code 0 and -1 are booked now and before."""
        booked = results["code"] <= 0
        rows = np.zeros(int(booked.sum()), ACKNOWLEDGED)
        for name in ("id_high", "id_low"):
            rows[name] = records[name][booked]
        rows["seq"] = results["seq"][booked]
        with self._lock:
            self.acknowledged.append(rows)
            self.refused_bulk.append(records[["id_high", "id_low"]][~booked])
            self.counts["booked in bulk"] += len(rows)
            self.counts["refused in bulk"] += len(records) - len(rows)
            self._count(attempts)

    def _count(self, attempts: int) -> None:
        self.counts["requests"] += 1
        self.counts["answers lost and asked again"] += attempts - 1
        self.answers += 1

    def rest(self) -> None:
        """Called by a client between two batches."""
        if self.go.is_set():
            return
        with self._lock:
            self.at_rest += 1
        self.go.wait()
        with self._lock:
            self.at_rest -= 1


class Client(threading.Thread):
    """Submits batches without pause; repeats a batch with the same ids until it is answered. `world` may be changed to
    another process of the same ledger at any time."""

    def __init__(self, world: LedgerWorld, notes: Notes, participant: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.notes, self.stop_event = notes, stop
        self._participant = participant
        self.turn_to(world)

    def turn_to(self, world: LedgerWorld, timeout_seconds: float = 20.0) -> None:
        self.world = world
        signer = RequestSigner(world.participants[self._participant])
        self.ledger = LedgerClient(world.url, signer=signer, timeout_seconds=timeout_seconds)

    def run(self) -> None:
        try:
            while not self.stop_event.is_set():
                self.notes.rest()
                self.work()
        except BaseException as error:
            self.notes.errors.append(f"{type(self).__name__}: {type(error).__name__}: {error}")
            raise
        finally:
            self.ledger.close()

    def work(self) -> None:
        raise NotImplementedError

    def submit(self, items: list[TransferItem], wanted: list[UUID]) -> list[Any]:
        results, attempts = self.until_answered(lambda: self.ledger.submit(items))
        self.notes.take(wanted, results, attempts)
        return results

    def until_answered(self, ask: Callable[[], T]) -> tuple[T, int]:
        """The answer, and how often it took to ask. Raises ProblemResponse for what no repetition can mend."""
        attempts = 0
        while True:
            attempts += 1
            try:
                return ask(), attempts
            except ServiceUnreachable:
                time.sleep(PAUSE_SECONDS)
            except ProblemResponse as problem:
                if problem.status < 500:
                    raise
                self.notes.counts[f"problem {problem.refusal or problem.status}"] += 1
                time.sleep(PAUSE_SECONDS)


class BulkClient(Client):
    """Plain transfers of an institution's vault in bulk, some in linked chains, some beyond what a vault has."""

    def __init__(self, *arguments: Any, debit: int, credits: list[int], poor: int, seed: int) -> None:
        super().__init__(*arguments)
        self.debit, self.credits, self.poor, self.random = debit, credits, poor, Random(seed)

    def work(self) -> None:
        terms = []
        for _ in range(self.random.randint(50, 300)):
            debit = self.poor if self.random.random() < 0.05 else self.debit
            credit = self.random.choice([account for account in self.credits if account != debit])
            terms.append(self.world.terms("payment", debit, credit, self.random.randint(1, 900)))
        items = [TransferItem(terms=item, linked=place % 10 == 0) for place, item in enumerate(terms)]
        items[-1] = TransferItem(terms=terms[-1])
        self.submit(items, [item.id for item in terms])


class HoldClient(Client):
    """Signed payments of a wallet; holds that are posted, voided, or left to expire; voids that overtake their hold."""

    def __init__(self, *arguments: Any, wallet: int, key: PrivateKey, payee: int, seed: int) -> None:
        super().__init__(*arguments)
        self.wallet, self.key, self.payee, self.random = wallet, key, payee, Random(seed)

    def work(self) -> None:
        items: list[TransferItem] = []
        wanted: list[UUID] = []
        ends: list[TransferItem] = []
        end_ids: list[UUID] = []

        def sign(kind: str, **more: object) -> UUID:
            terms = self.world.terms(kind, self.wallet, self.payee, self.random.randint(1, 50), **more)
            items.append(TransferItem(instruction=self.world.instruction(terms, self.key, minutes=30)))
            wanted.append(terms.id)
            return terms.id

        def end(kind: str, **more: object) -> None:
            terms = self.world.terms(kind, None, None, None, **more)
            ends.append(TransferItem(terms=terms))
            end_ids.append(terms.id)

        for _ in range(6):
            sign("payment")
        for _ in range(3):
            seconds = self.random.choice([0.4, 3600.0])
            hold = sign("hold", expires_at=system_clock() + timedelta(seconds=seconds))
            if seconds > 1:
                end(self.random.choice(["post", "void"]), hold=hold)
        for _ in range(3):
            commit, abort = self.random.randbytes(32), self.random.randbytes(32)
            hashes = {"commit_hash": hashlib.sha256(commit).digest(), "abort_hash": hashlib.sha256(abort).digest()}
            hold = sign("hold", **hashes)
            is_post = self.random.random() < 0.6
            end("post" if is_post else "void", hold=hold, secret=commit if is_post else abort)
        end("void", hold=ids.new_uuid7())  # a tombstone
        self.submit(items, wanted)
        self.submit(ends, end_ids)


class BinaryClient(Client):
    """Batches of thousands of plain transfers between an institution's own vaults, in the bulk format; the vaults'
    balances are small, so that some are refused."""

    def __init__(self, *arguments: Any, vaults: list[int], size: int, seed: int) -> None:
        super().__init__(*arguments)
        self.vaults, self.size = np.array(vaults, np.int64), size
        self.random = np.random.default_rng(seed)

    def work(self) -> None:
        records = np.zeros(self.size, SUBMISSION)
        pick = self.random.integers(0, len(self.vaults), self.size)
        other = (pick + self.random.integers(1, len(self.vaults), self.size)) % len(self.vaults)
        records["debit"], records["credit"] = self.vaults[pick], self.vaults[other]
        records["amount"] = self.random.integers(1, 200, self.size)
        records["kind"] = KIND_CODE[TransferKind.PAYMENT]
        stamp(records, self.random)
        body = records.tobytes()
        answer, attempts = self.until_answered(lambda: self.ledger.submit_binary(body))
        self.notes.take_bulk(records, np.frombuffer(answer, RESULT), attempts)


def stamp(records: npt.NDArray[Any], random: np.random.Generator) -> None:
    """Time-ordered ids (UUIDv7) of now, increasing within the batch."""
    order = np.arange(len(records), dtype=np.uint64)
    millis = np.uint64(time.time_ns() // 1_000_000) + (order >> np.uint64(12))
    records["id_high"] = (millis << np.uint64(16)) | np.uint64(0x7000) | (order & np.uint64(0xFFF))
    records["id_low"] = np.uint64(2**63) | random.integers(0, 2**62, len(records), dtype=np.uint64)
