"""Goal: no request that the settlement service's OpenAPI document allows or forbids gets a 5xx or an unlisted answer.
Method: tests/openapi_fuzz.py over every operation of the real app (real PostgreSQL, the engine at work, fake ledgers),
signed by a bank and by the operator, over a batch that is settled, one that is not run, a statement and a
reconciliation; half the files sent are real ones.
"""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from kernel import ids
from kernel.crypto.http_signatures import RequestSigner
from sandbox.openapi import APPS
from settlement.contract import SettlementState
from settlement.iso20022.csv_batch import write_csv
from tests.api.test_settlement_api import AED, BANK_A, BRIDGE, START, Running, instruction, pacs, service
from tests.openapi_fuzz import OpenApiFuzz, examples_wanted

__all__ = ["service"]


OFFICERS = {
    "POST /v1/compliance/cases/{settlement}/approve",
    "POST /v1/compliance/cases/{settlement}/reject",
}
"""An officer of compliance signs these, and this service has none: every request is refused at the door."""


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@pytest.mark.extended
def test_every_answer_of_the_settlement_service_is_documented(service: Running) -> None:
    known, files = _seeded(service)
    with httpx.Client(base_url=service.url, trust_env=False, timeout=30) as client:
        fuzz = OpenApiFuzz(
            APPS["settlement"]().openapi(),
            client,
            signers=[RequestSigner(service.keys[BANK_A]), RequestSigner(service.keys[BRIDGE])],
            known=known,
            files=files,
            examples=examples_wanted(3),
        )
        fuzz.run()
    assert not fuzz.findings, fuzz.report()
    assert set(fuzz.answers) - fuzz.reached() <= OFFICERS, set(fuzz.answers) - fuzz.reached()
    assert any("created" in name or name.startswith("20") for name in fuzz.refusals)
    print(fuzz.report())


def _seeded(service: Running) -> tuple[dict[str, list[str]], dict[tuple[str, str], Callable[[], str]]]:
    """Ids that exist, by path parameter; files that are right, by operation and media type."""
    with service.client(BANK_A) as client:
        batch = client.submit_batch(pacs(instruction(1), instruction(2, START * 5)), file_format="pacs.009").batch
        done = client.wait_for_batch(batch, timeout_seconds=30)
        assert done.counts[SettlementState.SETTLED] == 1
        settlements = [item.settlement for item in client.settlements(batch)]
        statement = client.write_statement(batch, participant=BANK_A, currency=AED.code)
        content = client.statement_file(statement.statement).decode("utf-8")
        found = client.reconcile(content.encode(), batch=batch, participant=BANK_A, currency=AED.code)
    known = {
        "batch": [ids.show("bat", batch)],
        "bat": [ids.show("bat", batch)],
        "settlement": [ids.show("stl", item) for item in settlements],
        "statement": [ids.show("stf", statement.statement)],
        "reconciliation": [ids.show("rec", found.reconciliation)],
    }
    numbers = iter(range(10, 10_000))
    files: dict[tuple[str, str], Callable[[], str]] = {
        ("POST /v1/batches", "application/xml"): lambda: pacs(instruction(next(numbers))).decode("utf-8"),
        ("POST /v1/batches", "text/csv"): lambda: write_csv([instruction(next(numbers))]).decode("utf-8"),
        ("POST /v1/reconciliation-sources", "application/xml"): lambda: content,
    }
    return known, files
