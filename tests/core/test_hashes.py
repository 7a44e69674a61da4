"""SHA-256 of many messages at once, against hashlib; and what `verify` loads before it begins."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kernel.crypto import hashes
from kernel.crypto.hashes import HashesDiffer, sha256_rows


@pytest.mark.parametrize("width", [0, 1, 55, 56, 63, 64, 65, 110, 119, 120, 128, 142])
@pytest.mark.parametrize("count", [0, 1, 17, 4097])
def test_every_row_is_hashed_as_hashlib_does(count: int, width: int) -> None:
    rows = np.random.default_rng(width).integers(0, 256, (count, width), dtype=np.uint8)
    found = sha256_rows(rows)
    assert found.shape == (count, 32)
    assert [row.tobytes() for row in found] == [hashlib.sha256(row.tobytes()).digest() for row in rows]


def test_rows_that_do_not_lie_end_to_end_are_hashed_by_their_own_bytes() -> None:
    wide = np.random.default_rng(1).integers(0, 256, (50, 93), dtype=np.uint8)
    rows = wide[::2, 8:24]
    assert [row.tobytes() for row in sha256_rows(rows)] == [hashlib.sha256(row.tobytes()).digest() for row in rows]


def test_a_library_that_hashes_otherwise_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, lanes: int) -> None: ...

        def update(self, chunks: list[bytes]) -> Broken:
            return self

        def digest(self, out: np.ndarray) -> None:
            out[:] = 7

    monkeypatch.setattr(hashes, "Sha256s", Broken)
    with pytest.raises(HashesDiffer):
        sha256_rows(np.zeros((3, 65), np.uint8))


@pytest.mark.parametrize("wrong", [0, -1])
def test_a_library_that_hashes_one_end_of_a_batch_otherwise_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    real = hashes.Sha256s

    class Broken:
        def __init__(self, lanes: int) -> None:
            self.real = real(lanes)

        def update(self, chunks: list[bytes]) -> Broken:
            self.real.update(chunks)
            return self

        def digest(self, out: np.ndarray) -> None:
            self.real.digest(out=out)
            out[wrong] ^= 1

    monkeypatch.setattr(hashes, "Sha256s", Broken)
    with pytest.raises(HashesDiffer):
        sha256_rows(np.random.default_rng(3).integers(0, 256, (50, 65), dtype=np.uint8))


def test_verify_loads_no_database_and_no_http() -> None:
    """A second for each process of a verification, if they did."""
    loaded = "import ledger.__main__, ledger.verifier.crew, sys; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", loaded], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"numpy", "ledger.verifier.replay"} <= set(output)
    assert not {"psycopg", "sqlalchemy", "alembic", "httpx", "pydantic"} & set(output)
