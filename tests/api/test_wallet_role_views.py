"""Goal: each role of a client reads what it needs and nothing else, and only the customers' own bank reads a name.
Method: a table over every GET operation that the app has, total by construction; every cell of it is asked for. Then a
customer's story is told, and every answer that anybody but a channel gets is searched for the name and the number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel import ids
from kernel.client import ProblemResponse
from tests.privacy_world import NAME, PHONE, ROLES, PrivacyWorld, privacy_world
from wallet.contract.families import AliasKind

C, B, D, P, A = "channel", "bridge", "operator", "compliance", "auditor"
ANYBODY = frozenset({None, C, B, D, P, A})
READERS = frozenset({C, D})
OPEN = """
health get_institution list_webhook_keys list_program_templates get_program_template get_request_offer
get_purchase_origin
get_purse_revocations get_privacy_log_key get_privacy_log_checkpoint list_privacy_log_entries
get_privacy_log_proof
"""
BANKS = """
get_customer list_wallets get_wallet get_wallet_history list_wallet_payments get_payment get_exchange_in
list_bulk_lines get_bulk_file get_bulk_result list_bulk_files list_scheduled_payments get_schedule
list_schedules list_events list_webhook_endpoints list_webhook_deliveries list_child_wallets get_child_wallet
get_child_wallet_history get_corporate get_payment_control list_cards list_aliases list_wallet_devices get_wallet_change
list_wallet_changes list_wallet_notices list_programs get_program get_voucher get_voucher_spend get_merchant
get_payment_request list_payment_requests list_request_payments get_request_qr get_wallet_qr
list_incoming_requests get_incoming_request list_refunds get_wallet_receipt get_wallet_balance_proof get_purse
get_double_spend_proof get_purse_funding get_purse_escrow get_simulated_deposit get_interest
list_interest_settlements
"""
DESKS = "list_interest_previews list_interest_totals list_reserve_balances check_exchanges"
MAY_READ: dict[str, frozenset[str | None]] = {
    **dict.fromkeys(OPEN.split(), ANYBODY),
    **dict.fromkeys(BANKS.split(), READERS),
    **dict.fromkeys(DESKS.split(), frozenset({D})),
    "list_simulated_codes": frozenset({C}),
    "get_erasure": frozenset({P}),
    "list_unmask_requests": frozenset({P}),
    "get_unmask_request": frozenset({P}),
    "list_unmask_evidence": frozenset({P, A}),
}
CLIENT_OF = {C: C, B: B, D: D, P: "ada", A: A}
PREFIX_BY_PARAMETER = {
    "customer": "cus",
    "wallet": "wlt",
    "payment": "trf",
    "exchange": "exc",
    "file": "blk",
    "schedule": "sch",
    "child": "wlt",
    "endpoint": "whe",
    "change": "chg",
    "program": "prg",
    "voucher": "vch",
    "spend": "vsp",
    "request": "req",
    "transfer": "trf",
    "purse": "pur",
    "funding": "fnd",
}


@pytest.fixture
def world(fresh_database: Callable[[str], str], tmp_path: Path) -> Iterator[PrivacyWorld]:
    with privacy_world(fresh_database, tmp_path) as made:
        yield made


def reads(world: PrivacyWorld) -> dict[str, tuple[str, list[str]]]:
    """Operation -> (path, names of the query parameters that it must have), of every GET."""
    document = world.http.app.openapi()  # type: ignore[attr-defined]
    return {
        item["get"]["operationId"]: (
            path,
            [one["name"] for one in item["get"].get("parameters", ()) if one["in"] == "query" and one["required"]],
        )
        for path, item in document["paths"].items()
        if "get" in item
    }


def answer(world: PrivacyWorld, who: str | None, path: str, query: dict[str, str], **known: str) -> tuple[int, str]:
    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        fresh = ids.show(PREFIX_BY_PARAMETER.get(name, "x"), ids.new_uuid7())
        plain = {"account": ids.show_account(99), "name": "none", "version": "1", "day": "2026-01-01"}
        return known.get(name) or plain.get(name, fresh)

    client = world.client(None if who is None else CLIENT_OF[who])
    try:
        reply = client._http.request("GET", re.sub(r"\{(\w+)\}", value, path), query=query, idempotent=True)
    except ProblemResponse as error:
        return error.status, error.detail
    return 200, reply.content.decode("utf-8", "replace")


def query_of(names: list[str], **known: str) -> dict[str, str]:
    return {name: known.get(name, "X") for name in names}


def test_the_table_is_total(world: PrivacyWorld) -> None:
    assert set(reads(world)) == set(MAY_READ)
    assert set(ROLES.values()) == {C, B, D, P, A}


@pytest.mark.slow
def test_each_role_reads_what_the_table_says(world: PrivacyWorld) -> None:
    _, wallet, _ = world.customer()
    shown = ids.show("wlt", wallet.wallet)
    wrong = []
    for operation, (path, required) in reads(world).items():
        for who in (None, C, B, D, P, A):
            status, detail = answer(world, who, path, query_of(required, wallet=shown))
            expected = 401 if who is None else 403
            is_refused = status in (401, 403)
            if is_refused == (who in MAY_READ[operation]) or (is_refused and status != expected) or status >= 500:
                wrong.append((operation, who, status, detail))
    assert wrong == []


@pytest.mark.slow
def test_only_a_channel_reads_a_name(world: PrivacyWorld) -> None:
    customer, wallet, _ = world.customer()
    channel = world.client(C)
    asked = channel.create_alias(wallet.wallet, kind=AliasKind.PHONE, alias=PHONE)
    channel.verify_alias(asked.alias_id, channel.simulated_codes()[0].code)
    world.unmask(wallet.wallet)
    assert channel.get_customer(customer).name == NAME
    masked = world.client(D).get_customer(customer)
    assert (masked.name, masked.phone, masked.evidence) == (
        "W*** Q***",
        "***78",
        channel.get_customer(customer).evidence,
    )
    payee = channel.look_up_alias(payer=wallet.wallet, kind=AliasKind.PHONE, alias=PHONE, currency="CNY")
    assert payee.masked_name == "W*** Q***"
    known: dict[str, Any] = {"customer": ids.show("cus", customer), "wallet": ids.show("wlt", wallet.wallet)}
    answered = 0
    for operation, (path, required) in reads(world).items():
        for who in (None, B, D, P, A):
            status, text = answer(world, who, path, query_of(required, **known), **known)
            answered += status == 200
            for secret in (NAME, "Quarterstaff", PHONE, PHONE[1:]):
                assert secret not in text, (operation, who)
    assert answered > 30
