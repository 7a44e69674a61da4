"""A sequencer on a real database with a clock that stands still, without HTTP: for tests of what happens between the
sequencer and its journal. Every directive is properly signed, so that the verifier can judge the result."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import numpy as np
import psycopg

from kernel import ids
from kernel.clock import ManualClock, to_micros
from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from ledger.contract import Approval, Proposal, sign_approval, sign_proposal
from ledger.domain.blocks import OpenedAccount
from ledger.domain.records import FLAG_LINKED, SUBMISSION, Authority, Batch, Extra
from ledger.domain.state import COLUMNS, LedgerState
from ledger.domain.vocabulary import KIND_CODE, TRANSFER_REFUSALS, TransferKind
from ledger.engine.sequencer import BatchOutcome, Sequencer
from ledger.verifier import verify_database
from tests.roles import as_service, dsn

NOON = datetime(2026, 11, 23, 4, 0, tzinfo=UTC)
"""Noon in Shanghai, the ledger's zone."""
LOW = 2**64 - 1


@dataclass(frozen=True)
class Item:
    """One transfer to submit."""

    kind: str
    debit: int = 0
    credit: int = 0
    amount: int = 0
    id: UUID = field(default_factory=ids.new_uuid7)
    hold: UUID | None = None
    expires_at: datetime | None = None
    commit_hash: bytes | None = None
    abort_hash: bytes | None = None
    secret: bytes | None = None
    linked: bool = False


def batch_of(*items: Item, submitter: int = 1) -> Batch:
    records = np.zeros(len(items), SUBMISSION)
    extras: dict[int, Extra] = {}
    for position, item in enumerate(items):
        row = records[position]
        row["id_high"], row["id_low"] = item.id.int >> 64, item.id.int & LOW
        row["debit"], row["credit"], row["amount"] = item.debit, item.credit, item.amount
        row["kind"] = KIND_CODE[TransferKind(item.kind)]
        row["flags"] = FLAG_LINKED if item.linked else 0
        if item.hold is not None:
            row["hold_high"], row["hold_low"] = item.hold.int >> 64, item.hold.int & LOW
        if item.expires_at is not None:
            row["expires_at"] = to_micros(item.expires_at)
        if item.commit_hash or item.abort_hash or item.secret:
            extras[position] = Extra(item.commit_hash, item.abort_hash, item.secret)
    batch = Batch.of_institution(records, submitter=submitter)
    for position, item in enumerate(items):
        if item.secret is not None:
            batch.authority[position] = Authority.SECRET
    return Batch(batch.records, batch.authority, batch.submitter, batch.key_version, extras)


def names_of(outcome: BatchOutcome) -> list[str]:
    """`booked`, `already`, or the refusal's name, for each."""
    special = {0: "booked", -1: "already"}
    return [special.get(code) or TRANSFER_REFUSALS[code - 1].value for code in outcome.codes.tolist()]


def picture_of(state: LedgerState) -> dict[str, Any]:
    """Everything in a state that must survive a restart."""
    used = slice(0, state.size)
    return {
        **{name: getattr(state, name)[used].tolist() for name in (*COLUMNS, "kind", "standing", "rule_class")},
        "keys": [state.holder_keys(number) for number in range(state.size)],
        "announced": dict(state.announced),
        "participants": [(p.code, p.quota, p.outstanding, p.key_version) for p in state.participants if p],
        "holds": dict(state.holds),
        "totals": (*state.totals, state.next_seq, state.booked_at, state.day, state.year),
        "classes": list(state.classes),
    }


class SequencerWorld:
    """Participant 1 with vaults; `start` again is a restart. Operators: one makes, one approves."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.clock = ManualClock(NOON)
        self.operators = [PrivateKey.generate(), PrivateKey.generate()]
        self.running: list[tuple[Sequencer, Database]] = []
        self.sequencer = self.start()
        self._genesis()
        self.order(
            action="register-participant",
            participant="BKCHCNBJ",
            name="bank",
            role="intermediary",
            key=PrivateKey.generate().public.to_jwk(),
            quota_minor="1000000000",
        )

    def start(self, node: str = "one") -> Sequencer:
        """Another sequencer on the same journal: a restart, or a rival if the first still runs."""
        self._free_the_lease()
        database = Database(as_service(self.url), application_name=f"test {node}")
        sequencer = Sequencer(database, node=node, clock=self.clock)
        sequencer.start()
        self.running.append((sequencer, database))
        self.sequencer = sequencer
        return sequencer

    def _free_the_lease(self) -> None:
        """As if the holder had fallen silent long ago: tests of what follows need not wait for it."""
        with psycopg.connect(dsn(self.url), autocommit=True) as connection:
            connection.execute("UPDATE lease SET node = ''")

    def restart(self, *, graceful: bool) -> Sequencer:
        """`graceful` stops the old one first (it writes a snapshot); else it is simply left behind, as after a kill."""
        if graceful:
            self.sequencer.stop()
        return self.start()

    def close(self) -> None:
        for sequencer, database in self.running:
            if sequencer.is_running:
                sequencer.stop()
            database.close()

    def _genesis(self) -> None:
        document = {
            "kind": "genesis",
            "ledger": "test-cny",
            "currency": "CNY",
            "time_zone": "Asia/Shanghai",
            "approvals_needed": 1,
            "operators": [
                {"name": name, "key": key.public.to_jwk()}
                for name, key in zip(("maker", "checker"), self.operators, strict=True)
            ],
            "rule_classes": [{"name": "daily", "day_max_minor": "100", "year_max_minor": "250"}],
            "key_recovery_seconds": 3600,
        }
        body = jws.canonical_json(document)
        self.sequencer.carry_out(kind="genesis", mandate_id=None, body=body, action=None).result(10)

    def order(self, **action: Any) -> None:
        proposal = Proposal.model_validate(
            {
                "ledger": "test-cny",
                "mandate": ids.new_uuid7(),
                "action": action,
                "valid_until": self.clock() + timedelta(days=1),
            }
        )
        token = sign_proposal(proposal, key=self.operators[0])
        sha256 = hashlib.sha256(jws.peek_payload(token)).digest()
        approval = Approval(ledger="test-cny", mandate=proposal.mandate, proposal_sha256=sha256)
        body = jws.canonical_json(
            {
                "kind": action["action"],
                "proposal": token,
                "approvals": [sign_approval(approval, key=self.operators[1])],
            }
        )
        done = self.sequencer.carry_out(
            kind=action["action"], mandate_id=proposal.mandate.bytes, body=body, action=_action_of(token)
        )
        _, refusal = done.result(10)
        if refusal is not None:
            raise RuntimeError(refusal)

    def vault(self, amount: int = 0, rule_class: str = "none") -> int:
        opened = OpenedAccount(0, ids.new_uuid7().bytes, 1, 1, rule_class, None)
        account = self.sequencer.open_accounts([opened]).result(10)[0]
        if account is None:
            raise RuntimeError("not opened")
        if amount:
            self.order(
                action="issue",
                transfer=ids.show("trf", ids.new_uuid7()),
                vault=ids.show_account(account.number),
                amount_minor=str(amount),
                currency="CNY",
            )
        return account.number

    def submit(self, *items: Item, sequencer: Sequencer | None = None) -> BatchOutcome:
        return (sequencer or self.sequencer).submit(batch_of(*items)).result(20)

    def names(self, *items: Item) -> list[str]:
        return names_of(self.submit(*items))

    def picture(self) -> dict[str, Any]:
        return self.sequencer.read(picture_of).result(10)

    def balance(self, account: int) -> int:
        return self.sequencer.read(lambda state: state.balance(account)).result(10)

    def findings(self) -> list[str]:
        return [str(finding) for finding in verify_database(self.url).findings]


def _action_of(token: str) -> dict[str, Any]:
    action: dict[str, Any] = json.loads(jws.peek_payload(token))["action"]
    return action
