"""Goal: the central bank never sees a name: nothing that its ledger stores or receives has any of a customer's data.
Method: a wallet's whole life at a real ledger on a socket, whose every request is recorded as it arrives; then every
column of every table and every byte received is searched for the data, as it is, and in the ways it could be hidden.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import psycopg
import pytest
from psycopg import sql

from kernel import ids
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from ledger.client import LedgerClient
from ledger.contract import IssueAction, TransferKind
from tests.api import test_wallet_with_ledger as with_ledger
from tests.api.test_wallet_with_ledger import Scheme, order_by_operators, scheme
from tests.roles import dsn
from wallet.contract.families import AliasKind
from wallet.contract.lifecycle import ChangeState
from wallet.domain.rules import Evidence, WalletClass

__all__ = ["scheme"]

Message = MutableMapping[str, Any]
NAME, HAN_NAME, PHONE, EMAIL = "Wilhelmina Quarterstaff", "司马相如", "+8613912345678", "wil.quarterstaff@example.org"
PERSONAL = (NAME, HAN_NAME, PHONE, PHONE[1:], EMAIL, "Wilhelmina", "Quarterstaff")


class Recorder:
    """Keeps what arrives: method, path, query, headers and body of every request."""

    def __init__(self, app: Any, seen: list[bytes]) -> None:
        self.app = app
        self.seen = seen

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        if scope["type"] == "http":
            self.seen += [
                scope["raw_path"],
                scope["query_string"],
                *(part for pair in scope["headers"] for part in pair),
            ]

        async def recorded() -> Message:
            message = await receive()
            self.seen.append(message.get("body", b""))
            return message

        await self.app(scope, recorded, send)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Everything that the ledger of `scheme` receives. Named before `scheme`, so that it is there when that starts."""
    kept: list[bytes] = []
    create = vars(with_ledger)["create_ledger"]

    def recorded(*arguments: Any, **more: Any) -> Any:
        app = create(*arguments, **more)
        app.add_middleware(Recorder, seen=kept)
        return app

    monkeypatch.setattr(with_ledger, "create_ledger", recorded)
    return kept


@pytest.fixture
def databases() -> dict[str, str]:
    return {}


@pytest.fixture
def fresh_database(fresh_database: Callable[[str], str], databases: dict[str, str]) -> Callable[[str], str]:
    """The same, remembering where each service's is."""

    def make(service: str) -> str:
        databases[service] = fresh_database(service)
        return databases[service]

    return make


def disguises(text: str) -> set[bytes]:
    """The text itself; escaped, in hex, in base64 wherever it begins within a group, and hashed."""
    plain = text.encode()
    digest = hashlib.sha256(plain).digest()
    found = {plain, json.dumps(text)[1:-1].encode()}
    for raw in (plain, digest):
        found |= {raw, raw.hex().encode(), raw.hex().upper().encode()}
        for shift in range(3):
            body = base64.b64encode(b"\0" * shift + raw)
            # Without the characters that also depend on the bytes before and after.
            inner = body[(shift * 8 + 5) // 6 : (shift + len(raw)) * 8 // 6]
            found |= {inner, inner.translate(bytes.maketrans(b"+/", b"-_"))}
    return found


def stored(url: str) -> bytes:
    """Every value of every table: bytes as they are, all else as text."""
    values: list[bytes] = []
    with psycopg.connect(dsn(url)) as connection:
        tables = connection.execute(
            "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace"
            " AND c.relkind IN ('r', 'p') ORDER BY 1"
        ).fetchall()
        for (table,) in tables:
            name = sql.Identifier(table)
            for (line,) in connection.execute(sql.SQL("SELECT t::text FROM {} t").format(name)):
                values.append(line.encode())
            for row in connection.execute(sql.SQL("SELECT * FROM {}").format(name)):
                values += [bytes(value) for value in row if isinstance(value, bytes | memoryview)]
    return b"\n".join(values)


def test_a_disguise_is_found_wherever_it_stands() -> None:
    for before in (b"", b"x", b"xy", b"xyz"):
        for after in (b"", b"u", b"uv"):
            for text in PERSONAL:
                hay = base64.urlsafe_b64encode(before + text.encode() + after)
                assert any(item in hay for item in disguises(text)), (before, text, after)


def test_tier_1_never_sees_a_name(seen: list[bytes], scheme: Scheme, databases: dict[str, str]) -> None:
    client = scheme.wallet("channel")
    bank = LedgerClient(scheme.ledger_url, signer=RequestSigner(scheme.keys["bank"]))
    home = client.institution().ledgers[0]
    issue = IssueAction(transfer=ids.new_uuid7(), vault=home.vault, amount_minor=10_000_000, currency="CNY")
    order_by_operators(bank, scheme.operators, issue)

    def person(name: str, phone: str, wallet_class: WalletClass) -> tuple[Any, PrivateKey, Any]:
        key = PrivateKey.generate("ecdsa-p256-sha256")
        customer = client.create_customer(evidence=list(Evidence), name=name, phone=phone).customer
        view = client.open_wallet(customer=customer, wallet_class=wallet_class, device_key=key.public)
        return view, key, customer

    payer, payer_key, customer = person(NAME, PHONE, WalletClass.II)
    shop, shop_key, _ = person(HAN_NAME, "", WalletClass.I)
    for kind, alias in ((AliasKind.PHONE, PHONE), (AliasKind.EMAIL, EMAIL)):
        asked = client.create_alias(wallet=payer.wallet, kind=kind, alias=alias)
        codes = client._http.get("/v1/simulate/codes")["codes"]
        client.verify_alias(asked.alias_id, codes[0]["code"])
    client.simulate_deposit(customer=customer, amount_minor=900_000)
    assert client.exchange_in(wallet=payer.wallet, amount_minor=800_000, currency="CNY").state == "final"
    terms: dict[str, Any] = {"ledger": "cny", "currency": "CNY"}
    reference = ids.new_uuid7()
    paid = client.pay(
        key=payer_key, debit=payer.account, credit=shop.account, amount_minor=7_000, reference=reference, **terms
    )
    assert paid.state == "final"
    request = client.request_payment(
        wallet=shop.wallet, payee_name=HAN_NAME, currency="CNY", amount_minor=300, description=f"for {NAME} {EMAIL}"
    )
    shown = client.show_request(payer.wallet, request=request.request, institution="BKCHCNBJ")
    assert client.approve_request(payer.wallet, shown, key=payer_key, debit=payer.account).state == "final"
    back = client.refund(
        key=shop_key,
        debit=shop.account,
        credit=payer.account,
        amount_minor=1_000,
        original=paid.payment,
        **terms,
    )
    assert back.state == "final"
    change = ids.new_uuid7()
    due = client.close_wallet(wallet=payer.wallet, change=change)
    assert due.closure is not None and due.closure.amount_due_minor is not None
    payout = client.instruct(
        TransferKind.EXCHANGE_OUT,
        key=payer_key,
        debit=payer.account,
        credit=home.vault,
        amount_minor=due.closure.amount_due_minor,
        **terms,
    )
    assert client.close_wallet(wallet=payer.wallet, change=change, instruction=payout).state is ChangeState.DONE
    bank.close()

    tier1, received, tier2 = stored(databases["ledger"]), b"\n".join(seen), stored(databases["wallet"])
    # The search sees what is there: the payment's reference, in the database and inside signed instructions.
    for hay in (tier1, received):
        assert any(item in hay for item in disguises(str(reference))), "the search is blind"
    for text in PERSONAL:
        for item in disguises(text):
            assert item not in tier1, (text, item)
            assert item not in received, (text, item)
    # And at the intermediary it rests encrypted, or under a keyed hash. (The requests' own texts are the parties'.)
    for text in (PHONE, PHONE[1:]):
        for item in disguises(text):
            assert item not in tier2, (text, item)
