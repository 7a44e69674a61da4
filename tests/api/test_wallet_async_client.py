"""Goal: the asynchronous client does what the synchronous one does, and is made from it.
Method: the twin compared with what its sources say, its operations with the synchronous ones; then a story on it
against a real wallet service and a real ledger, payments side by side.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

from kernel.client import ProblemResponse
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from sandbox import async_client
from tests.bank_world import BankWorld, running_bank
from wallet.client import WalletClient
from wallet.client.aio import AsyncWalletClient
from wallet.domain.rules import Evidence, WalletClass


@pytest.fixture(scope="module")
def twin() -> dict[Path, str]:
    """Made once: seconds of a formatter's work."""
    return async_client.documents()


def test_the_twin_is_what_the_sources_say() -> None:
    assert async_client.outdated() == [], "run `make openapi` and commit"


def test_it_has_every_operation_with_the_same_parameters() -> None:
    def operations(kind: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(item).parameters) for name, item in methods if not name.startswith("_")}

    expected = operations(WalletClient)
    expected["aclose"] = expected.pop("close")
    assert operations(AsyncWalletClient) == expected
    assert len(expected) > 100
    # What sends is awaited or iterated over; what only signs is not.
    assert inspect.iscoroutinefunction(AsyncWalletClient.get_wallet)
    assert inspect.iscoroutinefunction(AsyncWalletClient.pool)
    assert not inspect.iscoroutinefunction(AsyncWalletClient.instruct)


@pytest.mark.parametrize("suffix", ["\n# edited by hand\n", ""])
def test_an_edited_twin_is_noticed(
    suffix: str, twin: dict[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_client, "documents", lambda: {tmp_path / path.name: text for path, text in twin.items()})
    for path, text in twin.items():
        (tmp_path / path.name).write_text(text + (suffix if path.name == "bulk.py" else ""), encoding="utf-8")
    monkeypatch.setattr(async_client, "TWIN", tmp_path)
    assert async_client.outdated() == (["bulk.py"] if suffix else [])


@pytest.mark.extended
def test_story_with_payments_side_by_side(fresh_database: Callable[[str], str], tmp_path: Path) -> None:
    with running_bank(fresh_database, tmp_path) as world:
        asyncio.run(_story(world))


async def _story(world: BankWorld) -> None:
    key, other = PrivateKey.generate(), PrivateKey.generate()
    async with AsyncWalletClient(world.url, signer=RequestSigner(world.keys["channel"])) as client:
        customer = (await client.create_customer(evidence=list(Evidence))).customer
        payer, payee = await asyncio.gather(
            client.open_wallet(customer=customer, wallet_class=WalletClass.II, device_key=key.public),
            client.open_wallet(customer=customer, wallet_class=WalletClass.II, device_key=other.public),
        )
        assert payer.account is not None and payee.account is not None
        await client.simulate_deposit(customer=customer, amount_minor=100_000)
        exchange = await client.exchange_in(wallet=payer.wallet, amount_minor=100_000, currency="CNY")
        assert exchange.state == "final"
        terms = {"key": key, "ledger": world.ledger.ledger, "debit": payer.account, "credit": payee.account}
        paid = await asyncio.gather(*(client.pay(**terms, amount_minor=1_000, currency="CNY") for _ in range(10)))
        assert {item.state.value for item in paid} == {"final"}
        with pytest.raises(ProblemResponse, match="insufficient-funds"):
            await client.pay(**terms, amount_minor=90_001, currency="CNY")
        lines = [line async for line in client.history(payer.wallet)]
        assert [line.amount_minor for line in lines] == [100_000, *[1_000] * 10]
        assert sorted([item.payment async for item in client.payments(payer.wallet)])[:10] == sorted(
            item.payment for item in paid
        )
        shown = await client.get_wallet(payee.wallet)
        assert shown.balance is not None and shown.balance.balance_minor == 10_000
        refunded = await client.refund(
            key=other,
            ledger=world.ledger.ledger,
            debit=payee.account,
            credit=payer.account,
            amount_minor=400,
            currency="CNY",
            original=paid[0].payment,
        )
        assert refunded.state == "final"
        assert (await client.refunds(paid[0].payment)).refunded_minor == 400
        assert [item.wallet async for item in client.wallets(customer=customer)]
