"""Goal: the protocol as drawn keeps I5 under every interleaving, crash, loss, repetition and reordering; and the
hash-time-lock variant splits exactly when its gap is too small.

Method: spin checks the Promela models of docs/models exhaustively; each property is also shown to fail where it must,
by planted bugs. Without spin and a C compiler the tests are skipped, with JIAOZI_NO_SKIP set they fail.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[2] / "docs" / "models"
SECONDS_MAX = 60
DEPTH_MAX = 200_000
SAFE = ("NEVER_CALM",)
"""Safety needs no calm: it only takes behaviour away."""

Check = Callable[[str, tuple[str, ...], str], tuple[int, int]]


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Check:
    """(errors, states) of a property of a model with macros. One compilation a model and set of macros."""
    missing = [tool for tool in ("spin", "gcc") if shutil.which(tool) is None]
    if missing:
        reason = f"{' and '.join(missing)} not found: `apt-get install spin gcc libc6-dev` to check docs/models"
        if os.environ.get("JIAOZI_NO_SKIP"):
            pytest.fail(reason)
        pytest.skip(reason)
    built: dict[tuple[str, tuple[str, ...]], Path] = {}

    def run(model: str, macros: tuple[str, ...], claim: str) -> tuple[int, int]:
        if (model, macros) not in built:
            home = tmp_path_factory.mktemp("spin")
            flags = [f"-D{macro}" for macro in macros]
            _run(["spin", "-a", *flags, str(MODELS / f"{model}.pml")], home)
            _run(["gcc", "-O1", "-w", "-o", "pan", "pan.c"], home)
            built[model, macros] = home
        output = _run(["./pan", "-a", f"-m{DEPTH_MAX}", "-N", claim], built[model, macros])
        assert "max search depth too small" not in output
        errors, states = re.search(r"errors: (\d+)", output), re.search(r"(\d+) states, stored", output)
        assert errors is not None and states is not None, output
        print(f"{model} {' '.join(macros)} {claim}: {states[1]} states, {errors[1]} errors")
        return int(errors[1]), int(states[1])

    return run


def _run(command: list[str], home: Path) -> str:
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("claim", ["no_split", pytest.param("no_lost_decision", marks=pytest.mark.extended)])
@pytest.mark.extended
def test_i5_decision_escrow_never_splits_and_never_loses_a_decision(check: Check, claim: str) -> None:
    errors, states = check("decision_escrow", SAFE, claim)
    assert errors == 0
    assert states > 400_000  # two engines, two crashes: a smaller number would be another model


@pytest.mark.extended
def test_decision_escrow_comes_to_its_end_once_everyone_is_back(check: Check) -> None:
    errors, states = check("decision_escrow", ("CRASHES=1",), "progress")
    assert errors == 0
    assert states > 100_000


@pytest.mark.parametrize("claim", ["never_settles", "never_cancels"])
@pytest.mark.medium
def test_decision_escrow_can_end_both_ways(check: Check, claim: str) -> None:
    assert check("decision_escrow", SAFE, claim)[0] == 1


@pytest.mark.parametrize(
    ("macros", "claim"),
    [
        ((*SAFE, "SECRET_FIRST"), "no_split"),
        ((*SAFE, "NO_FENCE", "NO_KEY"), "no_split"),
        (("CRASHES=1", "COMMIT_EARLY"), "progress"),
        (("CRASHES=1", "PRESUME_COMMIT"), "progress"),
        (("CRASHES=1", "NO_TOMBSTONE"), "progress"),
    ],
)
@pytest.mark.medium
def test_a_bug_planted_in_the_model_is_found(check: Check, macros: tuple[str, ...], claim: str) -> None:
    assert check("decision_escrow", macros, claim)[0] == 1


@pytest.mark.parametrize("macro", ["NO_FENCE", "NO_KEY"])
@pytest.mark.medium
def test_i5_fence_and_key_of_the_decision_log_are_two_independent_means(check: Check, macro: str) -> None:
    """Without either alone nothing splits; without both it does (above)."""
    assert check("decision_escrow", (*SAFE, macro), "no_split")[0] == 0


BOUND = 2 + 2 + 1 + 2 * 1
"""REACTION + FINALITY_1 + FINALITY_2 + 2 * SKEW of the model's own numbers."""


@pytest.mark.parametrize(
    ("macros", "splits"),
    [
        pytest.param(("GAP=0",), True, marks=pytest.mark.extended),
        ((f"GAP={BOUND}",), True),
        ((f"GAP={BOUND + 1}",), False),
        pytest.param(("SKEW=3", f"GAP={BOUND + 1}"), True, marks=pytest.mark.extended),
        pytest.param(("SKEW=3", f"GAP={BOUND + 5}"), False, marks=pytest.mark.extended),
        pytest.param(("REACTION=9", f"GAP={BOUND + 1}"), True, marks=pytest.mark.extended),
    ],
)
def test_hash_time_locks_split_exactly_when_the_gap_is_too_small(
    check: Check, macros: tuple[str, ...], splits: bool
) -> None:
    assert check("hash_time_lock", macros, "no_split")[0] == splits


@pytest.mark.parametrize("claim", ["never_swaps", "never_refunds"])
@pytest.mark.medium
def test_hash_time_locks_can_end_both_ways(check: Check, claim: str) -> None:
    assert check("hash_time_lock", (), claim)[0] == 1
