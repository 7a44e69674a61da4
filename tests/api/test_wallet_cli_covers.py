"""`jiaozi-wallet` has a command for every operation of the OpenAPI document (issue 4), which really calls it.

Read from the sources: what a command's function uses in its module, the client's methods among that, and the paths
that those methods ask for.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import typer
import yaml

from wallet.__main__ import app
from wallet.client import WalletClient

DOCUMENT = Path(__file__).parents[2] / "openapi" / "wallet.v1.yaml"
COMMANDS = {
    "look_up_alias": "alias find",
    "create_alias": "alias add",
    "make_alias_default": "alias default",
    "remove_alias": "alias remove",
    "verify_alias": "alias verify",
    "check_bulk_file": "payroll run",
    "create_bulk_file": "payroll run",
    "get_bulk_file": "payroll status",
    "cancel_bulk_file": "payroll cancel",
    "list_bulk_lines": "payroll result",
    "add_bulk_lines": "payroll run",
    "get_bulk_result": "payroll result",
    "start_bulk_file": "payroll run",
    "create_charge": "family charge",
    "read_code": "code read",
    "create_customer": "customer add",
    "get_customer": "customer show",
    "get_corporate": "customer corporate",
    "register_corporate": "customer make-corporate",
    "get_erasure": "customer erasure",
    "erase_customer": "privacy erase",
    "change_customer_evidence": "life evidence",
    "list_events": "events",
    "check_exchanges": "exchange-check",
    "create_exchange_in": "exchange-in",
    "get_exchange_in": "exchange show",
    "create_exchange_out": "exchange-out",
    "get_institution": "institution",
    "list_interest_previews": "interest preview",
    "run_interest": "interest run",
    "list_interest_totals": "interest totals",
    "take_merchant_statement": "program merchant-accept",
    "register_merchant": "program merchant",
    "get_merchant": "program merchant-show",
    "create_payment_batch": "payment send",
    "create_payment_request": "request new",
    "get_payment_request": "request show",
    "cancel_payment_request": "request cancel",
    "list_request_payments": "request payments",
    "get_request_qr": "code request",
    "redeem_payer_code": "code redeem",
    "create_payment": "pay",
    "get_payment": "payment show",
    "list_refunds": "payment refunds",
    "get_privacy_log_checkpoint": "privacy watch",
    "list_privacy_log_entries": "privacy log-entries",
    "get_privacy_log_key": "privacy log-key",
    "get_privacy_log_proof": "privacy watch",
    "fund_program": "program fund",
    "preview_program": "program preview",
    "create_program_statement": "program say",
    "list_program_templates": "program templates",
    "get_program_template": "program template show",
    "list_programs": "program list",
    "create_program": "program propose",
    "get_program": "program show",
    "show_program_secret": "program secret",
    "get_purse_escrow": "purse escrow",
    "create_purse_funding": "purse load",
    "get_purse_funding": "purse funding",
    "get_purse_revocations": "purse sync",
    "sync_purses": "purse sync",
    "create_purse": "purse issue",
    "get_purse": "purse load",
    "get_double_spend_proof": "purse proof",
    "report_purse_lost": "purse lost",
    "create_refund": "refund",
    "list_reserve_balances": "reserve report",
    "list_schedule_dates": "schedule create",
    "create_schedule": "schedule create",
    "get_schedule": "schedule show",
    "cancel_schedule": "schedule cancel",
    "list_scheduled_payments": "schedule show",
    "prolong_schedule": "schedule prolong",
    "cancel_scheduled_payment": "schedule cancel",
    "register_settlement_instructions": "settlement order",
    "list_unmask_evidence": "privacy evidence",
    "list_unmask_requests": "privacy list",
    "order_unmask": "privacy order",
    "get_unmask_request": "privacy show",
    "approve_unmask": "privacy approve",
    "disclose_unmasked": "privacy disclose",
    "spend_voucher": "program spend",
    "get_voucher_spend": "program voucher-spend",
    "get_voucher": "program voucher",
    "get_wallet_change": "life change",
    "cancel_wallet_closure": "life cancel-close",
    "list_wallets": "wallet list",
    "open_wallet": "wallet add",
    "get_wallet": "wallet show",
    "list_aliases": "alias list",
    "get_wallet_balance_proof": "balance-proof",
    "list_bulk_files": "payroll list",
    "set_wallet_caps": "life caps",
    "list_cards": "card list",
    "take_card_revocations": "card revocations",
    "set_payment_control": "control set",
    "get_payment_control": "control show",
    "approve_payments": "control approve",
    "withdraw_approvals": "control withdraw",
    "register_card": "card open",
    "report_card": "card report",
    "list_wallet_changes": "life show",
    "list_child_wallets": "family list",
    "open_child_wallet": "family add",
    "get_child_wallet": "family show",
    "set_child_caps": "family caps",
    "close_child_wallet": "family close",
    "get_child_wallet_history": "family history",
    "revoke_child_wallet": "family revoke",
    "change_wallet_class": "life class",
    "close_wallet": "life close",
    "change_wallet_device": "life add-device",
    "list_wallet_devices": "life devices",
    "get_wallet_history": "history",
    "list_incoming_requests": "request incoming",
    "show_request": "request look",
    "get_incoming_request": "request approve",
    "approve_request": "request approve",
    "decline_request": "request decline",
    "get_interest": "interest statement",
    "list_interest_settlements": "interest statement",
    "recover_wallet_key": "life recover",
    "list_wallet_notices": "life notices",
    "object_to_announced_key": "life object",
    "list_payment_requests": "request list",
    "list_wallet_payments": "payment list",
    "pool_children": "family pool",
    "get_wallet_qr": "code wallet",
    "get_wallet_receipt": "receipt",
    "resume_wallet": "life resume",
    "list_schedules": "schedule list",
    "suspend_wallet": "life suspend",
    "list_webhook_endpoints": "webhook list",
    "create_webhook_endpoint": "webhook add",
    "list_webhook_deliveries": "webhook deliveries",
    "disable_webhook_endpoint": "webhook disable",
    "enable_webhook_endpoint": "webhook enable",
    "replay_webhooks": "webhook replay",
    "list_webhook_keys": "webhook keys",
}
NO_COMMAND = {
    "health": "for a load balancer; says nothing but that the process answers",
    "accept_payer_code": "the payee's institution asks the payer's, under its own key",
    "authorise_legs": "the bridge's service asks for the bank's signatures",
    "deliver_request": "the payee's institution delivers a signed request",
    "get_purchase_origin": "the merchant's institution asks whose money a voucher's purchase was",
    "get_request_offer": "the payer's institution fetches what a scanned request says",
    "take_request_decline": "the payer's institution tells the payee's",
}
"""Why nobody types it: another service asks."""
Function = ast.FunctionDef


def test_every_operation_has_a_command_or_a_reason() -> None:
    assert COMMANDS.keys() | NO_COMMAND.keys() == operations().keys()
    assert not COMMANDS.keys() & NO_COMMAND.keys()


def test_every_command_named_exists_and_calls_its_operation() -> None:
    functions = commands()
    idle = {
        operation: command
        for operation, command in COMMANDS.items()
        if command not in functions or _pattern(operations()[operation]) not in calls(functions[command])
    }
    assert not idle


def test_what_calls_one_operation_is_not_taken_for_another() -> None:
    functions = commands()
    assert calls(functions["webhook keys"]) == {("get", "/v1/webhook-keys")}
    assert ("post", "/v1/webhook-endpoints/{}/replays") not in calls(functions["webhook deliveries"])
    assert ("post", "/v1/wallets/{}/caps") not in calls(functions["life suspend"])


def test_every_command_says_what_it_does() -> None:
    assert not [name for name, function in commands().items() if not inspect.getdoc(function)]


def _pattern(operation: tuple[str, str]) -> tuple[str, str]:
    verb, path = operation
    return verb, re.sub(r"\{\w+\}", "{}", path)


@cache
def operations() -> dict[str, tuple[str, str]]:
    """operation id -> (verb, path)"""
    paths = yaml.load(DOCUMENT.read_text(), Loader=yaml.CSafeLoader)["paths"]
    return {
        operation["operationId"]: (verb, path)
        for path, verbs in paths.items()
        for verb, operation in verbs.items()
        if "operationId" in operation
    }


def commands() -> dict[str, Callable[..., Any]]:
    """`webhook add` -> the function behind it"""

    def walk(command: Any, name: tuple[str, ...]) -> Iterator[tuple[str, Callable[..., Any]]]:
        parts: dict[str, Any] | None = getattr(command, "commands", None)
        if parts is None:
            yield " ".join(name), inspect.unwrap(command.callback)
            return
        for part, inner in parts.items():
            yield from walk(inner, (*name, part))

    return dict(walk(typer.main.get_command(app), ()))


def calls(command: Callable[..., Any]) -> set[tuple[str, str]]:
    """The client's requests that a command may make: verb, path with `{}` for what is filled in."""
    module = importlib.import_module(command.__module__)
    used: set[str] = set().union(*map(_names, _reached(_functions(module)[command.__name__], _functions(module))))
    return {asked for name, requests in _requests().items() if name in used for asked in requests}


@cache
def _functions(module: ModuleType) -> dict[str, Function]:
    return {node.name: node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, Function)}


def _names(node: ast.AST) -> set[str]:
    """What a function mentions: `name` and `something.name`."""
    plain = {item.id for item in ast.walk(node) if isinstance(item, ast.Name)}
    return plain | {item.attr for item in ast.walk(node) if isinstance(item, ast.Attribute)}


def _reached(start: Function, known: dict[str, Function]) -> list[Function]:
    """The function and those of the known that it uses, however far."""
    found, waiting, seen = [start], [start], {start.name}
    while waiting:
        for name in sorted(_names(waiting.pop()) & known.keys() - seen):
            seen.add(name)
            found.append(known[name])
            waiting.append(known[name])
    return found


@cache
def _requests() -> dict[str, set[tuple[str, str]]]:
    """A client's public method -> its requests."""
    found: dict[str, set[tuple[str, str]]] = {}
    used: dict[str, set[str]] = {}
    for owner in WalletClient.__mro__[:-1]:
        module = importlib.import_module(owner.__module__)
        body = ast.parse(inspect.getsource(module)).body
        node = next(item for item in body if isinstance(item, ast.ClassDef) and item.name == owner.__name__)
        methods = {item.name: item for item in node.body if isinstance(item, Function)}
        private = {name: item for name, item in methods.items() if name.startswith("_") and name != "__init__"}
        for name in methods.keys() - private.keys():
            parts = _reached(methods[name], private)
            found[name] = _asked(parts, _functions(module))
            used[name] = set().union(*map(_of_itself, parts))

    def whole(name: str) -> set[tuple[str, str]]:
        seen, waiting = {name}, [name]
        while waiting:
            below = (used[waiting.pop()] & found.keys()) - seen
            seen |= below
            waiting.extend(below)
        return set().union(*(found[other] for other in seen))

    return {name: whole(name) for name in found}


def _of_itself(node: ast.AST) -> set[str]:
    """`self.name` for each name in it."""
    return {
        item.attr
        for item in ast.walk(node)
        if isinstance(item, ast.Attribute) and isinstance(item.value, ast.Name) and item.value.id == "self"
    }


def _asked(parts: list[Function], helpers: dict[str, Function]) -> set[tuple[str, str]]:
    words = {item.value for part in parts for item in ast.walk(part) if isinstance(item, ast.Constant)}
    names = set().union(*map(_names, parts))
    verbs = {"get"} if names & {"get", "_items", "_request_pages"} or "GET" in words else set()
    verbs |= {"post"} if names & {"post", "_post", "_post_order"} or "POST" in words else set()
    paths = {path for part in parts for item in ast.walk(part) if (path := _text(item, helpers)).startswith("/")}
    # `f"{a wallet's path}/{part}"` where the part is one of the method's words.
    filled = {
        path.removesuffix("{}") + word
        for path in paths
        if path.endswith("/{}")
        for word in words
        if isinstance(word, str) and word.replace("-", "").isalpha()
    }
    return {(verb, path) for verb in verbs for path in paths | filled}


def _text(node: ast.AST, helpers: dict[str, Function]) -> str:
    """A string expression's text, `{}` for what is not known; a helper that only returns one is looked into."""
    if isinstance(node, ast.Constant):
        return node.value.partition("?")[0] if isinstance(node.value, str) else "{}"
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(item, helpers) for item in node.values)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, helpers)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in helpers:
        last = helpers[node.func.id].body[-1]
        return _text(last.value, helpers) if isinstance(last, ast.Return) and last.value else "{}"
    return "{}"
