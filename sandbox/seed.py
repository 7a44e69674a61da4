"""What a fresh scheme needs before anybody can pay: keys, genesis files, registrations, settings files.

Everything here may be repeated: keys and ids that exist are kept, participants that are registered are left alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from kernel import ids
from kernel.clock import Clock
from kernel.crypto.keys import PrivateKey
from kernel.ids import ParticipantId
from ledger.client import LedgerClient
from ledger.contract import (
    Action,
    Approval,
    MandateView,
    ParticipantRole,
    Proposal,
    RegisterParticipantAction,
    sign_approval,
    sign_proposal,
)
from sandbox.topology import BRIDGE, BRIDGE_NAME, CENTRAL_BANKS, INSTITUTIONS, CentralBank, Home, write_whole
from wallet.domain.rules import ledger_rule_classes
from wallet.rulepack_files import load_rule_pack

QUOTA_MAJOR = 1_000_000_000
"""What an intermediary may have outstanding at home."""
MANDATE_LIFE = timedelta(hours=1)


# --- keys -------------------------------------------------------------------------------------------------------------


class Keys:
    """The scheme's private keys: one PEM file each, mode 0600, made at first need. In life no two lie in one place."""

    def __init__(self, home: Home) -> None:
        self._folder = home.keys

    def path(self, name: str) -> Path:
        path = self._folder / f"{name}.pem"
        if not path.exists():
            PrivateKey.generate().save(path)
        return path

    def get(self, name: str) -> PrivateKey:
        return PrivateKey.load(self.path(name))

    def operator_path(self, bank: CentralBank, number: int) -> Path:
        return self.path(f"{bank.ledger}-{bank.operators[number]}")

    def operator(self, bank: CentralBank, number: int) -> PrivateKey:
        return PrivateKey.load(self.operator_path(bank, number))

    def institution(self, participant: ParticipantId) -> PrivateKey:
        """Signs the institution's requests to ledgers and its leg authorisations."""
        return self.get(participant)

    def channel(self, participant: ParticipantId) -> PrivateKey:
        """The bank's app and branches: a client of its wallet service."""
        return self.get(f"{participant}-channel")

    def desk(self, participant: ParticipantId) -> PrivateKey:
        """The bank's treasury desk: orders settlements at its wallet service."""
        return self.get(f"{participant}-desk")


# --- settings files ---------------------------------------------------------------------------------------------------


def write_genesis(home: Home, keys: Keys, bank: CentralBank) -> Path:
    """Who may order what on a ledger, and the wallet classes of its rule pack (I9 is enforced there)."""
    path = home.config / f"genesis-{bank.ledger}.json"
    classes = ledger_rule_classes(load_rule_pack(bank.rule_pack))
    operators = [
        {"name": name, "key": keys.operator(bank, number).public.to_jwk()} for number, name in enumerate(bank.operators)
    ]
    document = {
        "ledger": bank.ledger,
        "currency": bank.currency.code,
        "time_zone": bank.time_zone,
        "approvals_needed": bank.approvals_needed,
        "operators": operators,
        "rule_classes": [rules.model_dump(mode="json") for rules in classes],
    }
    write_json(path, document)
    return path


def write_wallet_clients(home: Home, keys: Keys, participant: ParticipantId) -> Path:
    """clients.json of a wallet service: who may call it, and as what."""
    path = home.config / f"clients-{participant}.json"
    clients = [
        ("app and branches", keys.channel(participant), "channel"),
        ("treasury desk", keys.desk(participant), "operator"),
        (BRIDGE_NAME, keys.institution(BRIDGE), "bridge"),
    ]
    write_json(path, [{"name": name, "key": key.public.to_jwk(), "role": role} for name, key, role in clients])
    return path


def write_wallet_ledgers(home: Home, participant: ParticipantId, urls: Mapping[str, str], home_ledger: str) -> Path:
    """ledgers.json of a wallet service: the home ledger first."""
    path = home.config / f"ledgers-{participant}.json"
    ordered = sorted(CENTRAL_BANKS, key=lambda bank: bank.ledger != home_ledger)
    entries = [{"ledger": bank.ledger, "url": urls[bank.ledger], "currency": bank.currency.code} for bank in ordered]
    write_json(path, entries)
    return path


def write_json(path: Path, document: object) -> None:
    write_whole(path, json.dumps(document, indent=2) + "\n")


# --- registrations ----------------------------------------------------------------------------------------------------


def carry_out(client: LedgerClient, keys: Keys, bank: CentralBank, action: Action, *, clock: Clock) -> MandateView:
    """A mandate in one go: proposed by the first operator, approved by the other two, executed. `client` signs for an
    operator of the ledger."""
    proposal = Proposal(ledger=bank.ledger, mandate=ids.new_uuid7(), action=action, valid_until=clock() + MANDATE_LIFE)
    view = client.propose(sign_proposal(proposal, key=keys.operator(bank, 0)))
    for number in (1, 2):
        view = approve(client, bank, view, keys.operator(bank, number))
    return client.execute(view.mandate)


def approve(client: LedgerClient, bank: CentralBank, view: MandateView, key: PrivateKey) -> MandateView:
    approval = Approval(ledger=bank.ledger, mandate=view.mandate, proposal_sha256=view.proposal_sha256)
    return client.approve(view.mandate, sign_approval(approval, key=key))


def register_participants(client: LedgerClient, keys: Keys, bank: CentralBank, *, clock: Clock) -> None:
    """Everybody at one ledger: its own intermediaries, the other country's banks as foreign, the bridge."""
    known = {view.participant for view in client.participants()}
    members = [
        *(
            (
                item.participant,
                item.name,
                ParticipantRole.INTERMEDIARY if item.home == bank.ledger else ParticipantRole.FOREIGN,
            )
            for item in INSTITUTIONS
        ),
        (BRIDGE, BRIDGE_NAME, ParticipantRole.BRIDGE),
    ]
    for participant, name, role in members:
        if participant in known:
            continue
        quota = QUOTA_MAJOR * 10**bank.currency.exponent if role is ParticipantRole.INTERMEDIARY else 0
        action = RegisterParticipantAction(
            participant=participant,
            name=name,
            role=role,
            key=keys.institution(participant).public.to_jwk(),
            quota_minor=quota,
        )
        carry_out(client, keys, bank, action, clock=clock)
