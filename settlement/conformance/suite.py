"""Running the suite: cases, their verdicts, and what holds after every case whatever it was about.

After each case the money is there (I2): what payer and payee have available is what it was before, less and plus what
was posted; and nothing stays held (I6).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from settlement.conformance.cases import CASES
from settlement.conformance.stage import Case, CaseFailed, Stage
from settlement.conformance.subject import NotOffered, Subject


class Result(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class Verdict:
    case: str
    rule: str
    result: Result
    detail: str
    seconds: float


def run_case(subject: Subject, case: Case) -> Verdict:
    """Never raises for what the adapter does: an exception of it is a failure of the case."""
    stage = Stage(subject)
    started = time.monotonic()
    result, detail = Result.PASSED, ""
    try:
        stage.open()
        case.run(stage)
        stage.close()
    except NotOffered as error:
        result, detail = Result.NOT_RUN, str(error)
    except CaseFailed as error:
        result, detail = Result.FAILED, str(error)
    except Exception as error:
        result, detail = Result.FAILED, f"the adapter raised {type(error).__name__}: {error}"[:300]
    return Verdict(case.name, case.rule, result, detail, time.monotonic() - started)


def run(subject: Subject, names: Sequence[str] = ()) -> Iterator[Verdict]:
    """All cases, or those named, in the suite's order. Raises ValueError for a name that is no case's."""
    unknown = set(names) - {case.name for case in CASES}
    if unknown:
        raise ValueError(f"no such case: {', '.join(sorted(unknown))}")
    for case in CASES:
        if not names or case.name in names:
            yield run_case(subject, case)
