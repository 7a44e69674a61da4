"""Refusals: one closed enum a place, one status each, one code each.

Goal: no refusal can reach the edge without a status, and no two mean the same code.
Method: compare the enums with the status tables of all services.
"""

from __future__ import annotations

import re

from kernel.errors import STATUS_BY_REQUEST_REFUSAL, RequestRefusal
from ledger.contract import STATUS_BY_REFUSAL, LedgerRefusal, TransferRefusal


def test_every_refusal_has_exactly_one_status() -> None:
    assert set(STATUS_BY_REQUEST_REFUSAL) == set(RequestRefusal)
    assert set(STATUS_BY_REFUSAL) == {*TransferRefusal, *LedgerRefusal}
    assert all(400 <= status < 600 for status in (*STATUS_BY_REFUSAL.values(), *STATUS_BY_REQUEST_REFUSAL.values()))


def test_codes_are_kebab_case_and_titles_are_sentences() -> None:
    for refusal in (*RequestRefusal, *TransferRefusal, *LedgerRefusal):
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", refusal.value), refusal
        assert refusal.title.endswith("."), refusal
        assert isinstance(refusal.transient, bool)


def test_no_code_has_two_meanings() -> None:
    codes = [refusal.value for refusal in (*RequestRefusal, *TransferRefusal, *LedgerRefusal)]
    assert len(codes) == len(set(codes))
