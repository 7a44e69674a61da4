"""Directives: genesis, what M of N operators ordered, and changes of accounts (`account_changes`). `check` asks,
`apply` does; transfers they imply are decided by `ledger.domain.decide` like any other, with the authority MANDATE.

An action is the JSON object of `ledger.contract.Action`, already validated for shape.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from kernel.crypto import jws
from kernel.ids import parse, parse_account
from kernel.money import parse_minor
from ledger.domain import account_changes
from ledger.domain.state import FROZEN, ISSUANCE_ACCOUNT, NO_CAP, LedgerState, Operator, RuleCaps
from ledger.domain.vocabulary import AccountKind, LedgerRefusal, ParticipantRole

TRANSFER_ACTIONS = ("issue", "redeem", "adjustment")


def check(state: LedgerState, action: Mapping[str, Any]) -> LedgerRefusal | None:
    """Would the action be refused now? (Transfers it implies are asked of `decide`.)"""
    if action["action"] in TRANSFER_ACTIONS and action["currency"] != state.currency:
        return LedgerRefusal.WRONG_CURRENCY
    match action["action"]:
        case "register-participant":
            if action["participant"] in state.participant_by_code:
                return LedgerRefusal.PARTICIPANT_EXISTS
            return _check_key(state, action["key"])
        case "rotate-participant-key":
            if action["participant"] not in state.participant_by_code:
                return LedgerRefusal.PARTICIPANT_UNKNOWN
            return _check_key(state, action["key"])
        case "set-quota":
            if action["participant"] not in state.participant_by_code:
                return LedgerRefusal.PARTICIPANT_UNKNOWN
        case "freeze" | "unfreeze":
            account = parse_account(action["account"])
            if not state.exists(account) or account == ISSUANCE_ACCOUNT:
                return LedgerRefusal.ACCOUNT_NOT_FOUND
        case "issue" | "redeem":
            return _check_issuance(state, action)
        case "set-rule-class":
            if action["rule_class"]["name"] not in state.class_by_name and len(state.classes) >= 255:
                return LedgerRefusal.CLASS_UNKNOWN
    return None


def _check_issuance(state: LedgerState, action: Mapping[str, Any]) -> LedgerRefusal | None:
    vault = parse_account(action["vault"])
    if not state.exists(vault):
        return LedgerRefusal.ACCOUNT_NOT_FOUND
    participant = state.participants[int(state.participant[vault])]
    if participant is None or participant.role is not ParticipantRole.INTERMEDIARY:
        return LedgerRefusal.ROLE_NOT_ALLOWED
    return None


def _check_key(state: LedgerState, key: Mapping[str, str]) -> LedgerRefusal | None:
    canonical = jws.canonical_json(dict(key))
    taken = {participant.key for participant in state.participants if participant is not None}
    taken |= {operator.key for operator in state.operators}
    return LedgerRefusal.KEY_IN_USE if canonical in taken else None


def apply(state: LedgerState, body: bytes, *, number: int, booked_at: int) -> None:
    """Apply a directive that the journal has. Its kind says how the action is found."""
    document = json.loads(body)
    if document["kind"] == "genesis":
        _apply_genesis(state, document)
        return
    if document["kind"] == account_changes.KIND:
        account_changes.apply(state, change_of(document), directive=number, booked_at=booked_at)
        return
    _apply_action(state, action_of(document))


def action_of(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The action inside a mandate's directive: the payload that its maker signed."""
    action: Mapping[str, Any] = json.loads(jws.peek_payload(document["proposal"]))["action"]
    return action


def change_of(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The change inside an account-change's directive: what its participant signed, or the holder alone."""
    signed = document["change"] if "change" in document else document["consent"]
    change: Mapping[str, Any] = json.loads(jws.peek_payload(signed))["change"]
    return change


def _apply_genesis(state: LedgerState, document: Mapping[str, Any]) -> None:
    state.ledger, state.currency = document["ledger"], document["currency"]
    state.approvals_needed = document["approvals_needed"]
    state.key_recovery_seconds = document["key_recovery_seconds"]
    state.operators = [Operator(item["name"], jws.canonical_json(item["key"])) for item in document["operators"]]
    state.institutions_version += 1
    state.set_class(RuleCaps("none"))
    for item in document["rule_classes"]:
        state.set_class(caps_of(item))
    number = state.open_account(kind=AccountKind.ISSUANCE, participant=0, rule_class=0)
    if number != ISSUANCE_ACCOUNT:
        raise ValueError("genesis must be the first directive")


def _apply_action(state: LedgerState, action: Mapping[str, Any]) -> None:
    match action["action"]:
        case "register-participant":
            state.add_participant(
                code=action["participant"],
                name=action["name"],
                role=ParticipantRole(action["role"]),
                key=jws.canonical_json(action["key"]),
                quota=parse_minor(action["quota_minor"]),
            )
        case "rotate-participant-key":
            participant = state.participant_by_code[action["participant"]]
            state.rotate_participant_key(participant, jws.canonical_json(action["key"]))
        case "set-quota":
            state.participant_by_code[action["participant"]].quota = parse_minor(action["quota_minor"])
        case "freeze" | "unfreeze":
            state.set_standing(parse_account(action["account"]), FROZEN, action["action"] == "freeze")
        case "set-rule-class":
            state.set_class(caps_of(action["rule_class"]))
        case "issue" | "redeem" | "adjustment":
            pass  # the transfer itself changes the state
        case unknown:
            raise ValueError(f"unknown directive {unknown!r}: written by a newer version?")


def caps_of(item: Mapping[str, Any]) -> RuleCaps:
    def cap(name: str) -> int:
        value = item.get(name)
        return NO_CAP if value is None else parse_minor(value)

    return RuleCaps(
        item["name"],
        balance_max=cap("balance_max_minor"),
        single_max=cap("single_max_minor"),
        day_max=cap("day_max_minor"),
        year_max=cap("year_max_minor"),
    )


def transfer_of(action: Mapping[str, Any]) -> tuple[UUID, int, int, int]:
    """(id, debit, credit, amount) of an action that moves money."""
    transfer, amount = parse("trf", action["transfer"]), parse_minor(action["amount_minor"])
    match action["action"]:
        case "issue":
            return transfer, ISSUANCE_ACCOUNT, parse_account(action["vault"]), amount
        case "redeem":
            return transfer, parse_account(action["vault"]), ISSUANCE_ACCOUNT, amount
        case "adjustment":
            return transfer, parse_account(action["debit"]), parse_account(action["credit"]), amount
        case other:
            raise ValueError(f"{other!r} moves no money")
