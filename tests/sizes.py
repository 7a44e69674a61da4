"""Which of many cases of one kind `make test` takes; CI takes all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def some(cases: Iterable[Any], *, each: int) -> list[Any]:
    """All cases of a parametrisation, in their order; all but each so many marked `extended`."""
    return [case if number % each == 0 else _extended(case) for number, case in enumerate(cases)]


def _extended(case: Any) -> Any:
    mark = pytest.mark.extended
    if hasattr(case, "values") and hasattr(case, "marks"):  # a pytest.param
        return pytest.param(*case.values, id=case.id, marks=[*case.marks, mark])
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=mark)
