"""A screen behind HTTP: somebody else's service. Silence or a strange answer is REVIEW, never PASS.

`POST <url>` with {"items": [{"id", "uetr", "debtor", "creditor", "value_date", "legs", "parties"}]} is answered by
{"version": "...", "items": [{"id", "outcome": "pass" | "review" | "refuse", "reason": "..."}]}. Identity numbers of
residents are not sent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import date
from typing import Annotated, Any

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kernel.client import ProblemResponse, ServiceClient, ServiceUnreachable
from kernel.errors import ProblemError
from settlement.domain.compliance import ComplianceData, Screening, Subject, Verdict

log = logging.getLogger("jiaozi.settlement")

ITEMS_MAX = 1_000
"""In one call."""


class _Item(BaseModel):
    model_config = ConfigDict(extra="ignore")
    id: str
    outcome: Verdict
    reason: Annotated[str, Field(max_length=200)] = ""


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore")
    version: Annotated[str, Field(min_length=1, max_length=80)]
    items: Annotated[list[_Item], Field(max_length=ITEMS_MAX)]


class HttpScreen:
    """`timeout_seconds` bounds a whole `screen`, however many calls it takes: what is left over is a review."""

    def __init__(self, url: str, *, timeout_seconds: float, client: ServiceClient | None = None) -> None:
        parsed = httpx.URL(url)
        self._path = parsed.raw_path.decode("ascii")
        self._client = client or ServiceClient(
            str(parsed.copy_with(raw_path=b"/")), timeout_seconds=timeout_seconds, retries_max=0
        )
        self._timeout_seconds = timeout_seconds

    @property
    def name(self) -> str:
        return "service"

    def close(self) -> None:
        self._client.close()

    def screen(self, subjects: Sequence[Subject], *, on: date) -> list[Screening]:
        deadline = time.monotonic() + self._timeout_seconds
        found: list[Screening] = []
        for start in range(0, len(subjects), ITEMS_MAX):
            chunk = subjects[start : start + ITEMS_MAX]
            left = deadline - time.monotonic()
            found += self._ask(chunk, left) if left > 0 else _review(chunk, "no time was left to ask")
        return found

    def _ask(self, subjects: Sequence[Subject], timeout_seconds: float) -> list[Screening]:
        body = {"items": [_item(subject) for subject in subjects]}
        try:
            answer = _Answer.model_validate(self._client.post(self._path, body, timeout_seconds=timeout_seconds))
        except (ProblemResponse, ServiceUnreachable, ProblemError) as error:
            log.warning("the screening service did not answer: %s", type(error).__name__)
            return _review(subjects, "the screening service did not answer")
        except ValidationError:
            return _review(subjects, "the screening service's answer cannot be read")
        by_id: dict[str, _Item] = {}
        for item in answer.items:
            if item.id in by_id:  # two answers to one question are none
                return _review(subjects, "the screening service answered twice")
            by_id[item.id] = item
        version = f"service {answer.version}"
        found = []
        for subject in subjects:
            answered = by_id.get(str(subject.settlement))
            if answered is None:
                found.append(Screening(Verdict.REVIEW, "the screening service left it out", version))
            else:
                found.append(Screening(answered.outcome, answered.reason, version))
        return found


def _review(subjects: Sequence[Subject], reason: str) -> list[Screening]:
    return [Screening(Verdict.REVIEW, reason, "service")] * len(subjects)


def _item(subject: Subject) -> dict[str, Any]:
    data = subject.data or ComplianceData()
    return {
        "id": str(subject.settlement),
        "uetr": str(subject.uetr),
        "debtor": subject.debtor,
        "creditor": subject.creditor,
        "value_date": subject.value_date.isoformat(),
        "legs": [
            {
                "payer": leg.payer,
                "payee": leg.payee,
                "amount_minor": str(leg.amount.amount_minor),
                "currency": leg.amount.currency.code,
            }
            for leg in subject.legs
        ],
        "parties": {
            "debtor_kind": data.debtor_kind.value,
            "debtor_name": data.debtor_name,
            "debtor_country": data.debtor_country,
            "debtor_lei": data.debtor_lei,
            "creditor_kind": data.creditor_kind.value,
            "creditor_name": data.creditor_name,
            "creditor_country": data.creditor_country,
            "creditor_lei": data.creditor_lei,
            "purpose": data.purpose,
        },
    }
