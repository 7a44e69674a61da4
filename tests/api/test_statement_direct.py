"""Goal: the quick form of a statement answers and refuses as the operation does, and takes nothing unusual.
Method: the same requests to a real ledger, spelt usually (direct) and unusually (through the framework).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel import ids
from kernel.client import ProblemResponse
from ledger.api import statement_routes
from ledger.api.statement_routes import _read_query
from ledger.client import LedgerClient
from tests.ledger_world import LedgerWorld, running_ledger

BANK, OTHER = "BKCHCNBJ", "ICBKCNBJ"


@pytest.fixture
def world(fresh_database: Callable[[str], str], tmp_path: Path) -> Iterator[LedgerWorld]:
    with running_ledger(fresh_database("ledger"), tmp_path) as world:
        for code in (BANK, OTHER):
            world.register(code)
        yield world


def _ask(client: LedgerClient, account: int, query: str) -> bytes:
    return client._http.request("GET", f"/v1/accounts/{ids.show_account(account)}/statement{query}").content


def test_the_quick_form_answers_what_the_operation_answers(world: LedgerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    vault, other = world.open_vault(BANK), world.open_vault(BANK)
    world.issue(vault, 1_000)
    answered: list[str] = []
    write = statement_routes.write_statement

    def noted(page: object) -> bytes:
        answered.append("directly")
        return write(page)  # type: ignore[arg-type]

    monkeypatch.setattr(statement_routes, "write_statement", noted)
    with world.client(BANK) as client:
        for amount in range(1, 8):
            client.transfer(world.terms("payment", vault, other, amount, reference=ids.new_uuid7()))
        for usual in ("?limit=3", "?limit=3&newest_first=true", "?newest_first=false&limit=1000"):
            answered.clear()
            direct = _ask(client, vault, usual)
            assert answered == ["directly"]
            through = _ask(client, vault, usual.replace("limit=", "limit=0"))
            assert answered == ["directly"]  # the framework's
            assert json.loads(direct) == json.loads(through)
        first = json.loads(_ask(client, vault, "?limit=3"))
        following = json.loads(_ask(client, vault, f"?limit=3&cursor={first['next_cursor']}"))
        assert [line["seq"] for line in first["lines"]] < [line["seq"] for line in following["lines"]]
        assert following["opening_balance_minor"] == first["closing_balance_minor"]


@pytest.mark.parametrize(
    ("query", "refusal"),
    [
        ("?limit=0", "validation-failed"),
        ("?limit=1001", "validation-failed"),
        ("?limit=3&limit=4", "validation-failed"),
        ("?newest_first=perhaps", "validation-failed"),
        ("?cursor=damaged", "validation-failed"),
    ],
)
def test_a_wrong_query_is_refused_by_name(world: LedgerWorld, query: str, refusal: str) -> None:
    vault = world.open_vault(BANK)
    with world.client(BANK) as client, pytest.raises(ProblemResponse) as caught:
        _ask(client, vault, query)
    assert caught.value.refusal == refusal


def test_nobody_reads_anothers_account_or_reads_unsigned(world: LedgerWorld) -> None:
    vault = world.open_vault(BANK)
    with world.client(OTHER) as stranger, pytest.raises(ProblemResponse) as caught:
        _ask(stranger, vault, "?limit=3")
    assert caught.value.refusal == "account-not-found"
    with world.anonymous() as anyone, pytest.raises(ProblemResponse) as unsigned:
        _ask(anyone, vault, "?limit=3")
    assert unsigned.value.refusal == "signature-missing"


@pytest.mark.parametrize("text", ["limit=٣", "limit=3&", "limit=+3", "newest_first=1", "cursor=a.b", "limit=3;limit=4"])
def test_an_unusual_query_is_left_to_the_framework(text: str) -> None:
    assert _read_query(text) is None
