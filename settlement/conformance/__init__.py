"""One conformance suite for every island behind the port: what an adapter must keep so that no settlement splits (I5).

    from settlement.conformance import Subject, run
    for verdict in run(my_subject):
        print(verdict.case, verdict.result.value, verdict.detail)

`Subject` is what an adapter brings to be tested; the cases are in `settlement.conformance.cases`.
"""

from settlement.conformance.cases import CASES
from settlement.conformance.stage import Case, CaseFailed
from settlement.conformance.subject import Line, NotOffered, Subject
from settlement.conformance.suite import Result, Verdict, run, run_case

__all__ = [
    "CASES",
    "Case",
    "CaseFailed",
    "Line",
    "NotOffered",
    "Result",
    "Subject",
    "Verdict",
    "run",
    "run_case",
]
