"""R1. Goal: whatever is killed and whenever, an acknowledged transfer is in the journal exactly once, a refused one is
not, every balance is the replay, and the ledger comes back by itself.

Method: `tests.faults.campaign`, in short; `make torture-ledger SECONDS=600` is the long form.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.campaign import Campaign

SECONDS = float(os.environ.get("JIAOZI_TORTURE_SECONDS", "3"))
SEED = 20261123


@pytest.mark.campaign
@pytest.mark.timeout(180)
@pytest.mark.extended
def test_kills_under_load_lose_nothing_and_double_nothing(server_dir: Path, tmp_path: Path) -> None:
    print(f"\n{Campaign(server_dir, tmp_path, seed=SEED).run(seconds=SECONDS)}")
