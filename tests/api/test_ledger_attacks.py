"""Attacks and accidents that a review of the ledger found, each now with its own answer.

Goal: what once broke the ledger, or told a client the wrong thing, never does again.
Method: one real ledger over HTTP; each test is named for the attack.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import sqlalchemy as sa

from kernel import ids, pagination
from kernel.client import ProblemResponse
from kernel.clock import system_clock
from kernel.crypto import jws
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.ids import AccountNumber, ParticipantId
from ledger.client import LedgerClient
from ledger.contract import (
    INSTRUCTION_TYP,
    MANDATE_TYP,
    AdjustmentAction,
    BlockView,
    IssueAction,
    RotateParticipantKeyAction,
    SetQuotaAction,
    TransferItem,
    TransferOutcome,
    sign_proposal,
)
from ledger.store import leases
from tests.ledger_world import LedgerWorld, running_ledger
from tests.roles import dsn

BANK, OTHER = "BKCHCNBJ", "ICBKCNBJ"


@pytest.fixture(scope="module")
def world(fresh_databases: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LedgerWorld]:
    with running_ledger(fresh_databases("ledger"), tmp_path_factory.mktemp("ledger")) as world:
        world.register(BANK)
        world.register(OTHER)
        yield world


def raw_proposal(world: LedgerWorld, action: dict[str, Any]) -> str:
    document = {
        "ledger": world.ledger,
        "mandate": ids.show("mdt", ids.new_uuid7()),
        "action": action,
        "reason": "",
        "valid_until": (system_clock() + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    return jws.sign(jws.canonical_json(document), world.operators[0], typ=MANDATE_TYP)


def refused_proposal(world: LedgerWorld, action: dict[str, Any]) -> str:
    with world.anonymous() as client, pytest.raises(ProblemResponse) as caught:
        client.propose(raw_proposal(world, action))
    return caught.value.refusal


def test_a_proposal_that_leaves_a_member_out_never_reaches_the_journal(world: LedgerWorld) -> None:
    """What is applied is what was signed, so a default that only validation knows would break every replay."""
    action = {
        "action": "register-participant",
        "participant": "LEFTCNBJ",
        "name": "x",
        "role": "intermediary",
        "key": PrivateKey.generate().public.to_jwk(),
    }
    assert refused_proposal(world, action) == "instruction-invalid"
    assert refused_proposal(world, {**action, "quota_minor": "00"}) == "instruction-invalid"
    assert refused_proposal(
        world, {"action": "set-rule-class", "rule_class": {"name": "x", "day_max_minor": None}}
    ) == ("instruction-invalid")


@pytest.mark.parametrize(
    "key",
    [
        {"kty": "OKP", "crv": "Ed25519", "x": "oops"},
        {"kty": "oct", "k": "AAAA"},
        {"kty": "OKP", "crv": "Ed25519", "x": "A" * 43, "d": "A" * 43},
        {},
    ],
)
def test_a_key_that_is_no_public_key_is_refused_before_it_hurts_anybody(
    world: LedgerWorld, key: dict[str, str]
) -> None:
    for kind in ("register-participant", "rotate-participant-key"):
        action: dict[str, Any] = {"action": kind, "participant": BANK, "key": key}
        if kind == "register-participant":
            action |= {"participant": "BADKCNBJ", "name": "x", "role": "foreign", "quota_minor": "0"}
        assert refused_proposal(world, action) == "instruction-invalid"
    assert world.open_vault(BANK) > 0


def test_a_retry_after_the_instructions_expiry_is_answered_with_the_booking(world: LedgerWorld) -> None:
    key = PrivateKey.generate()
    vault = world.open_vault(BANK)
    world.issue(vault, 100)
    wallet = world.open_wallet(BANK, key, "none")
    with world.client(BANK) as client:
        client.transfer(world.terms("exchange-in", vault, wallet, 100))
        terms = world.terms("payment", wallet, vault, 40)
        expiry = system_clock() + timedelta(seconds=2.5)
        short = {"ledger": world.ledger, "valid_until": expiry.isoformat()}
        document = {**short, "terms": terms.model_dump(mode="json", exclude_none=True)}
        token = jws.sign(jws.canonical_json(document), key, typ=INSTRUCTION_TYP)
        first = client.submit_instruction(token)
        assert first.outcome == TransferOutcome.BOOKED
        time.sleep(max(0.0, (expiry - system_clock()).total_seconds()) + 0.1)
        again = client.submit_instruction(token)
        assert (again.outcome, again.seq, again.booked_at) == (
            TransferOutcome.ALREADY_BOOKED,
            first.seq,
            first.booked_at,
        )
        # one that was never booked stays refused
        other = world.terms("payment", wallet, vault, 1)
        late = world.instruction(other, key, minutes=-1)
        assert client.submit_instruction(late).refusal == "instruction-expired"


def test_a_replaced_key_books_nothing_and_old_bookings_are_still_answered(world: LedgerWorld) -> None:
    world.register("ROTACNBJ")
    old = world.participants["ROTACNBJ"]
    vault, target = world.open_vault("ROTACNBJ"), world.open_vault(BANK)
    world.issue(vault, 100)
    booked = world.instruction(world.terms("payment", vault, target, 10), old)
    with world.anonymous() as client:
        assert client.submit_instruction(booked).outcome == TransferOutcome.BOOKED
    new = PrivateKey.generate()
    world.mandate(RotateParticipantKeyAction(participant=ParticipantId("ROTACNBJ"), key=new.public.to_jwk()))
    with world.anonymous() as client:
        assert client.submit_instruction(booked).outcome == TransferOutcome.ALREADY_BOOKED
        fresh = world.instruction(world.terms("payment", vault, target, 10), old)
        assert client.submit_instruction(fresh).refusal == "instruction-invalid"
        renewed = world.instruction(world.terms("payment", vault, target, 10), new)
        assert client.submit_instruction(renewed).outcome == TransferOutcome.BOOKED
    with world.client("ROTACNBJ") as client, pytest.raises(ProblemResponse) as caught:
        client.transfer(world.terms("payment", vault, target, 10))
    assert caught.value.refusal == "signature-invalid"


def test_an_adjustment_in_another_currency_is_refused(world: LedgerWorld) -> None:
    first, second = world.open_vault(BANK), world.open_vault(BANK)
    world.issue(first, 700)
    action = AdjustmentAction(
        transfer=ids.new_uuid7(),
        debit=AccountNumber(first),
        credit=AccountNumber(second),
        amount_minor=700,
        currency="AED",
        case="2026-7",
    )
    with pytest.raises(ProblemResponse) as caught:
        world.mandate(action)
    assert caught.value.refusal == "wrong-currency"
    world.mandate(action.model_copy(update={"currency": "CNY", "transfer": ids.new_uuid7()}))
    with world.client(BANK) as client:
        assert client.get_account(second).balance_minor == 700


def test_a_mandate_that_was_carried_out_says_so_whatever_its_row_says(world: LedgerWorld) -> None:
    vault = world.open_vault(BANK)
    transfer = ids.new_uuid7()
    action = IssueAction(transfer=transfer, vault=AccountNumber(vault), amount_minor=5, currency="CNY")
    done = world.mandate(action)
    database = Database(str(world.settings.database_url), application_name="test")
    with database.transaction(isolation="READ COMMITTED") as connection:  # as after a crash before the row was updated
        connection.execute(
            sa.text("UPDATE mandate SET status = 'proposed', directive = NULL WHERE id = :id"), {"id": done.mandate}
        )
    database.close()
    with world.operator() as client:
        view = client.get_mandate(done.mandate)
        assert (view.status, view.directive) == ("executed", done.directive)
        with pytest.raises(ProblemResponse) as caught:
            client.execute(done.mandate)
    assert caught.value.refusal == "mandate-executed"


def test_a_mandate_is_shown_to_operators_and_to_whom_it_concerns(world: LedgerWorld) -> None:
    """An adjustment names accounts and an amount; to know its id is no right to see them."""
    mine, theirs = world.open_vault(BANK), world.open_vault(OTHER)
    issued = world.issue(mine, 20)
    adjusted = world.mandate(
        AdjustmentAction(
            transfer=ids.new_uuid7(),
            debit=AccountNumber(mine),
            credit=AccountNumber(theirs),
            amount_minor=3,
            currency="CNY",
            case="2026-7",
        )
    )
    registered = world.mandate(SetQuotaAction(participant=ParticipantId(OTHER), quota_minor=10**15))
    action = IssueAction(transfer=ids.new_uuid7(), vault=AccountNumber(mine), amount_minor=1, currency="CNY")
    with world.anonymous() as client:
        asked = client.propose(sign_proposal(world.proposal(action), key=world.participants[BANK]))

    def seen_by(client: LedgerClient) -> list[str]:
        answers: list[str] = []
        with client:
            for view in (issued, asked, registered, adjusted):
                try:
                    answers.append(client.get_mandate(view.mandate).action.action)
                except ProblemResponse as refused:
                    answers.append(refused.refusal)
        return answers

    unseen = "mandate-not-found"
    assert seen_by(world.anonymous()) == ["signature-missing"] * 4
    assert seen_by(world.client(BANK)) == ["issue", "issue", unseen, unseen]
    assert seen_by(world.client(OTHER)) == [unseen, unseen, "set-quota", unseen]
    assert seen_by(world.operator()) == ["issue", "issue", "set-quota", "adjustment"]


def test_a_blocks_digests_and_totals_are_for_operators_alone(world: LedgerWorld) -> None:
    """A block of one transfer: its digest, which has no salt, could be guessed by who knows the transfer's id."""
    world.issue(world.open_vault(BANK), 20)
    public = {"number", "booked_at", "first_seq", "transfer_count"}
    for number in ("latest", "2"):
        assert set(httpx.get(f"{world.url}/v1/blocks/{number}").json()) == public
    with world.operator() as operator, world.client(BANK) as participant, world.anonymous() as anybody:
        whole, short = operator.block(), participant.block()
        assert set(whole.model_dump(exclude_none=True)) == set(BlockView.model_fields)
        assert set(short.model_dump(exclude_none=True)) == public
        assert anybody.block(whole.number) == short == BlockView(**whole.model_dump(include=public))


def test_a_deposed_ledger_does_not_answer_from_memory(fresh_database: Callable[[str], str], tmp_path: Path) -> None:
    url = fresh_database("ledger")
    with running_ledger(url, tmp_path) as world:
        world.register(BANK)
        assert httpx.get(f"{world.url}/v1/participants").status_code == 200
        with psycopg.connect(dsn(url), autocommit=True) as connection:
            connection.execute("UPDATE lease SET node = 'rival 1 ?', epoch = epoch + 1")
        deadline = time.monotonic() + 30
        while httpx.get(f"{world.url}/v1/supply").status_code == 200:  # until it has looked at the lease
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for path in ("participants", "ledger", "supply", "blocks/latest"):
            assert httpx.get(f"{world.url}/v1/{path}").status_code == 503, path


def test_every_session_of_a_ledger_ends_when_another_takes_over(
    fresh_database: Callable[[str], str], tmp_path: Path
) -> None:
    """By their names: all but the lease's own, which holds nothing between two statements."""
    url = fresh_database("ledger")
    with running_ledger(url, tmp_path, log_enabled=True) as world:
        world.register(BANK)
        world.issue(world.open_vault(BANK), 20)
        names: set[str] = set()
        deadline = time.monotonic() + 60
        while not any(name.startswith("jiaozi-log ") for name in names):  # its process takes a while to start
            assert time.monotonic() < deadline
            with psycopg.connect(dsn(url)) as connection:
                rows = connection.execute(
                    "SELECT application_name FROM pg_stat_activity"
                    " WHERE datname = current_database() AND usename <> current_user"
                    " AND backend_type = 'client backend'"
                ).fetchall()
            names = {str(name) for (name,) in rows}
    assert leases.LEASE_KEEPER in names
    assert all(name.startswith(leases.WRITERS) for name in names - {leases.LEASE_KEEPER})


@pytest.mark.parametrize("when", ["0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-23:59"])
def test_times_beyond_the_calendar_are_refused(world: LedgerWorld, when: str) -> None:
    key = PrivateKey.generate()
    terms = world.terms("payment", 2, 3, 1).model_dump(mode="json", exclude_none=True)
    document = {"ledger": world.ledger, "valid_until": when, "terms": terms}
    token = jws.sign(jws.canonical_json(document), key, typ=INSTRUCTION_TYP)
    with world.anonymous() as client:
        assert client.submit_instruction(token).refusal == "instruction-invalid"


def test_a_damaged_statement_cursor_is_refused(world: LedgerWorld) -> None:
    vault = world.open_vault(BANK)
    for position in (0, -(2**63)):
        cursor = pagination.encode([position, 0], {"account": vault, "newest_first": True})
        with world.client(BANK) as client, pytest.raises(ProblemResponse) as caught:
            client.statement(vault, cursor=cursor, newest_first=True)
        assert caught.value.refusal == "validation-failed"


def test_unsigned_requests_carry_little_and_move_nothing(world: LedgerWorld) -> None:
    vault = world.open_vault(BANK)
    world.issue(vault, 10)
    with world.anonymous() as client:
        items = [TransferItem(terms=world.terms("payment", vault, vault + 1, 1)) for _ in range(300)]
        with pytest.raises(ProblemResponse) as caught:
            client.submit(items)
        assert caught.value.refusal == "validation-failed"
        assert client.submit(items[:3])[0].refusal == "not-authorised"


def test_an_item_with_both_forms_is_refused(world: LedgerWorld) -> None:
    terms = world.terms("payment", 2, 3, 1)
    token = world.instruction(terms, PrivateKey.generate())
    body = {"transfers": [{"instruction": token, "terms": terms.model_dump(mode="json", exclude_none=True)}]}
    response = httpx.post(world.url + "/v1/transfer-batches", json=body)
    assert (response.status_code, response.json()["refusal"]) == (422, "validation-failed")


def test_ids_that_the_ledger_keeps_for_itself_are_refused(world: LedgerWorld) -> None:
    """The id under which a hold will expire is derived; whoever could take it first could keep the money locked."""
    expiry = ids.derive_uuid8(ids.new_uuid7(), "expire")
    terms = world.terms("payment", 2, 3, 1).model_dump(mode="json", exclude_none=True)
    body = json.dumps({"transfers": [{"terms": {**terms, "id": ids.show("trf", expiry)}}]}).encode()
    with httpx.Client(auth=RequestSigner(world.participants[BANK])) as client:
        response = client.post(
            world.url + "/v1/transfer-batches", content=body, headers={"content-type": "application/json"}
        )
    assert (response.status_code, response.json()["refusal"]) == (422, "validation-failed")


def test_a_void_with_another_secret_is_not_the_void_that_was_booked(world: LedgerWorld) -> None:
    vault, payee = world.open_vault(BANK), world.open_vault(OTHER)
    world.issue(vault, 100)
    commit, abort = secrets.token_bytes(32), secrets.token_bytes(32)
    hashes = {"commit_hash": hashlib.sha256(commit).digest(), "abort_hash": hashlib.sha256(abort).digest()}
    hold = world.terms("hold", vault, payee, 40, **hashes)
    junk = world.terms("void", None, None, None, hold=hold.id, secret=secrets.token_bytes(32))
    true = world.terms("void", None, None, None, hold=hold.id, secret=abort).model_copy(update={"id": junk.id})
    with world.client(OTHER) as client:
        assert client.transfer(junk).outcome == TransferOutcome.BOOKED
        assert client.transfer(junk).outcome == TransferOutcome.ALREADY_BOOKED
        assert client.transfer(true).refusal == "id-already-used"


def test_nobody_fills_a_holders_cap_with_a_hold_that_never_ends(world: LedgerWorld) -> None:
    key = PrivateKey.generate()
    vault = world.open_vault(BANK)
    world.issue(vault, 100_000)
    wallet = world.open_wallet(OTHER, key, "small")
    hashes = {"commit_hash": b"1" * 32, "abort_hash": b"2" * 32}
    endless = world.terms("hold", vault, wallet, 90_000, **hashes)
    with world.client(BANK) as client:
        assert client.transfer(endless).refusal == "hold-terms-invalid"


def test_two_operators_tokens_of_one_person_count_once(world: LedgerWorld) -> None:
    vault = world.open_vault(BANK)
    action = IssueAction(transfer=ids.new_uuid7(), vault=AccountNumber(vault), amount_minor=5, currency="CNY")
    with world.operator() as client:
        view = client.propose(sign_proposal(world.proposal(action), key=world.operators[0]))
        world.approve(view, 1)
        for _ in range(2):
            with pytest.raises(ProblemResponse) as caught:
                world.approve(view, 1)
            assert caught.value.refusal == "already-approved"
        with pytest.raises(ProblemResponse) as missing:
            client.execute(view.mandate)
    assert missing.value.refusal == "approvals-missing"
