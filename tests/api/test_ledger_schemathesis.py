"""Goal: no request that the ledger's OpenAPI document allows or forbids gets a 5xx or an answer it does not list.
Method: tests/openapi_fuzz.py over every operation of a real ledger with accounts, a transfer, a hold and a mandate.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from kernel import ids
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from ledger.contract import TransferItem
from sandbox.openapi import APPS
from tests.ledger_world import LedgerWorld, running_ledger
from tests.openapi_fuzz import OpenApiFuzz, examples_wanted

BANK = "BKCHCNBJ"


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_every_answer_of_the_ledger_is_documented(fresh_database: Callable[[str], str], tmp_path: Path) -> None:
    with running_ledger(fresh_database("ledger"), tmp_path, log_enabled=True) as world:
        world.register(BANK)
        known, token = _seeded(world)
        signers = [RequestSigner(world.participants[BANK]), RequestSigner(world.operators[0])]
        with httpx.Client(base_url=world.url, trust_env=False) as client:
            fuzz = OpenApiFuzz(
                APPS["ledger"]().openapi(),
                client,
                signers=signers,
                known=known,
                made={"instruction": token},
                examples=examples_wanted(2),
            )
            fuzz.run()
        with world.operator() as client:
            assert client.supply().identity_holds
    assert not fuzz.findings, fuzz.report()
    assert fuzz.answers
    assert fuzz.reached() == set(fuzz.answers), set(fuzz.answers) - fuzz.reached()
    print(fuzz.report())


def _seeded(world: LedgerWorld) -> tuple[dict[str, list[str]], Callable[[], str]]:
    """Ids that exist, and a holder's new payment, signed."""
    key = PrivateKey.generate()
    vault, payer, payee = world.open_vault(BANK), world.open_wallet(BANK, key), world.open_wallet(BANK, key)
    mandate = world.issue(vault, 1_000_000).mandate
    paid = world.terms("exchange-in", vault, payer, 500_000)
    with world.client(BANK) as client:
        result = client.submit([TransferItem(terms=paid)])[0]
        assert result.outcome == "booked", result
    known = {
        "acc": [ids.show_account(number) for number in (vault, payer, payee)],
        "trf": [ids.show("trf", paid.id)],
        "mdt": [ids.show("mdt", mandate)],
        "account": [ids.show_account(number) for number in (vault, payer, payee)],
        "transfer": [ids.show("trf", paid.id)],
        "mandate": [ids.show("mdt", mandate)],
    }
    return known, lambda: world.instruction(world.terms("payment", payer, payee, 1), key)
