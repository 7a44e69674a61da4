"""Goal: nobody is unmasked without two approvals and an entry that an auditor finds; who is erased is forgotten.
Method: the real app under its own database role; attacks by officers over HTTP, and by the tables' owner in SQL.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import errors
from typer.testing import CliRunner

from kernel import ids
from kernel.client import ProblemResponse
from kernel.clock import system_clock
from kernel.transparency.notes import VerifierKey
from tests.privacy_world import BANK, NAME, OFFICERS, PHONE, PrivacyWorld, privacy_world
from tests.roles import as_service, dsn
from wallet.__main__ import app as cli
from wallet.contract.families import AliasKind
from wallet.contract.lifecycle import ChangeState
from wallet.contract.privacy import (
    ErasureReason,
    EvidenceRefused,
    UnmaskApproval,
    UnmaskApprovalRequest,
    UnmaskEvidence,
    UnmaskField,
    UnmaskOrder,
    UnmaskOrderRequest,
    UnmaskState,
    sha256_of,
    sign_approval,
    sign_order,
    verify_growth,
    verify_unmask,
)
from wallet.personal_data import PersonalDataUnreadable, PersonalDataVault


@pytest.fixture
def world(fresh_database: Callable[[str], str], tmp_path: Path) -> Iterator[PrivacyWorld]:
    with privacy_world(fresh_database, tmp_path) as made:
        yield made


def log_key(world: PrivacyWorld) -> VerifierKey:
    return VerifierKey.parse(world.client(None).privacy_log_key())


def tamper(world: PrivacyWorld, *statements: str) -> None:
    """As the tables' owner, past every grant and trigger."""
    with psycopg.connect(dsn(world.owner_url), autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        for statement in statements:
            connection.execute(statement.encode())


# --- unmask ----------------------------------------------------------------------------------------------------------


def test_an_unmask_answers_what_was_asked_once_and_its_entry_is_found(world: PrivacyWorld) -> None:
    customer, wallet, _ = world.customer()
    before = world.client(None).privacy_log_checkpoint()
    view = world.order("ada", wallet.wallet, UnmaskField.NAME, UnmaskField.EVIDENCE)
    assert view.state is UnmaskState.REQUESTED
    ada = world.client("ada")
    assert world.refusal(lambda: ada.disclose(view.request)) == "unmask-not-approved"
    assert [item.officer for item in world.approve("ben", view).approvals] == ["ben"]
    assert world.refusal(lambda: ada.disclose(view.request)) == "unmask-not-approved"
    assert world.approve("cai", view).state is UnmaskState.APPROVED
    assert world.refusal(lambda: world.client("ben").disclose(view.request)) == "unmask-not-yours"
    assert list(world.client("auditor").unmask_evidence()) == []

    shown = ada.disclose(view.request)
    evidence = ["bank-account", "id", "in-person", "phone"]
    assert shown.values == {"name": NAME, "evidence": evidence}
    assert world.refusal(lambda: ada.disclose(view.request)) == "unmask-answered"
    assert world.refusal(lambda: world.approve("dov", view)) == "unmask-answered"
    assert ada.get_unmask_request(view.request).state is UnmaskState.DISCLOSED

    # the auditor: the entry, opened, is in the tree that the log has signed; and nothing else is
    found = list(world.client("auditor").unmask_evidence(wallet.wallet))
    assert len(found) == 1
    verified = verify_unmask(found[0], log_key=log_key(world))
    assert (verified.index, verified.size) == (shown.entry_index, 1) == (0, 1)
    assert verified.entry.case_number == "2026-0815"
    assert verified.entry.fields == [UnmaskField.NAME, UnmaskField.EVIDENCE]
    assert verified.officers == tuple(world.keys[name].public.thumbprint for name in ("ada", "ben", "cai"))
    assert NAME not in found[0].model_dump_json() and str(customer) not in found[0].model_dump_json()
    anybody = world.client(None)
    log = anybody.privacy_log_entries()
    assert (log.size, len(log.commitments)) == (1, 1)
    assert verify_growth(before, anybody.privacy_log_checkpoint(), None, log_key=log_key(world)) == 1


def test_scope_cannot_be_widened(world: PrivacyWorld) -> None:
    _, wallet, _ = world.customer()
    _, other, _ = world.customer("Somebody Else", "")
    view = world.order("ada", wallet.wallet, UnmaskField.NAME)
    # the same id with more fields, or another wallet
    fields = [UnmaskField.NAME, UnmaskField.PHONE]
    for subject in (wallet.wallet, other.wallet):
        again = lambda subject=subject: world.order("ada", subject, *fields, request=view.request)  # noqa: E731
        assert world.refusal(again) == "unmask-exists"
    world.approve("ben", view)
    world.approve("cai", view)
    ada = world.client("ada")
    path = f"/v1/unmask-requests/{ids.show('unm', view.request)}/disclosure"
    with_more = lambda: ada._http.post(path + "?fields=phone", {}, idempotent=True)  # noqa: E731
    assert world.refusal(with_more) == "validation-failed"
    assert ada.disclose(view.request).values == {"name": NAME}
    # a row that was rewritten to ask for more: the signature is the order
    second = world.order("ada", wallet.wallet, UnmaskField.NAME)
    for officer in ("ben", "cai"):
        world.approve(officer, second)
    forged = UnmaskOrder(
        institution=BANK,
        request=second.request,
        case_number="2026-0815",
        legal_basis="Order 7, art. 3",
        wallet=wallet.wallet,
        fields=list(UnmaskField),
        valid_until=second.valid_until,
    )
    token = sign_order(forged, key=world.keys["stranger"])
    tamper(world, f"UPDATE unmask_case SET token = '{token}' WHERE id = '{second.request}'")
    assert world.refusal(lambda: ada.disclose(second.request)) == "unmask-statement-invalid"


def test_every_field_is_given_by_its_name_alone(world: PrivacyWorld) -> None:
    customer, wallet, _ = world.customer()
    expected: dict[UnmaskField, Any] = {
        UnmaskField.CUSTOMER: ids.show("cus", customer),
        UnmaskField.NAME: NAME,
        UnmaskField.PHONE: PHONE,
        UnmaskField.EVIDENCE: ["bank-account", "id", "in-person", "phone"],
        UnmaskField.WALLETS: [ids.show("wlt", wallet.wallet)],
        UnmaskField.CORPORATE: None,
    }
    assert set(expected) == set(UnmaskField)
    for field, value in expected.items():
        view = world.order("ada", None, field, account=wallet.account)
        world.approve("ben", view)
        world.approve("dov", view)
        assert world.client("ada").disclose(view.request).values == {field.value: value}


def test_one_officer_counts_once_and_never_for_his_own_order(world: PrivacyWorld) -> None:
    _, wallet, _ = world.customer()
    view = world.order("ada", wallet.wallet)
    assert world.refusal(lambda: world.approve("ada", view)) == "unmask-own-order"
    assert world.refusal(lambda: world.approve("ada-too", view)) == "unmask-own-order"  # the same name, another key
    for _ in range(2):
        assert [item.officer for item in world.approve("ben", view).approvals] == ["ben"]
    assert world.refusal(lambda: world.client("ada").disclose(view.request)) == "unmask-not-approved"

    def submit(sender: str, signer: str, sha: str, request: UUID = view.request) -> object:
        approval = UnmaskApproval(institution=BANK, request=request, order_sha256=sha)
        body = UnmaskApprovalRequest(approval=sign_approval(approval, key=world.keys[signer]))
        path = f"/v1/unmask-requests/{ids.show('unm', view.request)}/approvals"
        return world.client(sender)._post(path, body)

    right = sha256_of(view.order)
    assert world.refusal(lambda: submit("ben", "cai", right)) == "unmask-statement-invalid"  # another's signature
    assert world.refusal(lambda: submit("cai", "cai", sha256_of("x"))) == "unmask-statement-invalid"
    assert world.refusal(lambda: submit("cai", "cai", right, ids.new_uuid7())) == "unmask-statement-invalid"
    assert world.refusal(lambda: world.approve("operator", view)) == "not-permitted"
    assert world.refusal(lambda: world.approve("auditor", view)) == "not-permitted"
    # the tables say the same
    with psycopg.connect(dsn(as_service(world.owner_url, "wallet")), autocommit=True) as connection:
        row = connection.execute("SELECT case_id, requested_by, officer FROM unmask_approval").fetchone()
        assert row is not None
        case, requester, approver = row
        copy = (
            "INSERT INTO unmask_approval SELECT case_id, %s, requested_by, %s, officer_key, token, now()"
            " FROM unmask_approval"
        )
        with pytest.raises(errors.CheckViolation):
            connection.execute(copy, [requester, "x"])
        with pytest.raises(errors.UniqueViolation):
            connection.execute(copy, [approver, "x"])
        connection.execute("INSERT INTO privacy_entry VALUES (0, sha256('x'))")
        disclose = "INSERT INTO unmask_disclosure VALUES (%s, %s, %s, %s, sha256('x'), '{}', now())"
        with pytest.raises(errors.CheckViolation):  # one approval is not two
            connection.execute(disclose, [case, approver, approver, 0])
        with pytest.raises(errors.ForeignKeyViolation):  # nor is an officer who has not approved
            connection.execute(disclose, [case, approver, requester, 0])
        with pytest.raises(errors.ForeignKeyViolation):
            connection.execute(disclose, [case, approver, world.keys["cai"].public.thumbprint, 7])


def test_orders_are_bound_to_officer_institution_and_time(world: PrivacyWorld) -> None:
    _, wallet, _ = world.customer()
    ada = world.client("ada")
    late, long = system_clock() - timedelta(seconds=1), system_clock() + timedelta(days=7, minutes=5)
    assert world.refusal(lambda: world.order("ada", wallet.wallet, valid_until=late)) == "unmask-expired"
    assert world.refusal(lambda: world.order("ada", wallet.wallet, valid_until=long)) == "unmask-expired"
    elsewhere = lambda: world.order("ada", wallet.wallet, institution="ICBKCNBJ")  # noqa: E731
    assert world.refusal(elsewhere) == "unmask-statement-invalid"
    assert world.refusal(lambda: world.order("ada", ids.new_uuid7())) == "wallet-not-found"
    assert world.refusal(lambda: world.order("ada", None, account=99)) == "not-our-wallet"
    view = world.order("ada", wallet.wallet)
    stolen = UnmaskOrderRequest(order=view.order)
    assert world.refusal(lambda: world.client("ben")._post("/v1/unmask-requests", stolen)) == "unmask-statement-invalid"
    assert ada._post("/v1/unmask-requests", stolen)["state"] == "requested"  # the same again
    assert world.refusal(lambda: ada.get_unmask_request(ids.new_uuid7())) == "unmask-not-found"
    assert [item.request for item in ada.unmask_requests()] == [view.request]
    for role in ("channel", "operator", "bridge", "auditor"):
        client = world.client(role)
        assert world.refusal(partial(client.get_unmask_request, view.request)) == "not-permitted"
        assert world.refusal(partial(client.disclose, view.request)) == "not-permitted"
    # it expires
    for officer in ("ben", "cai"):
        world.approve(officer, view)
    tamper(
        world,
        f"UPDATE unmask_case SET created_at = now() - interval '2 h', valid_until = now() - interval '1 h'"
        f" WHERE id = '{view.request}'",
    )
    assert world.refusal(lambda: ada.disclose(view.request)) == "unmask-expired"
    assert ada.get_unmask_request(view.request).state is UnmaskState.EXPIRED


def test_two_at_once_are_answered_once(world: PrivacyWorld) -> None:
    _, wallet, _ = world.customer()
    views = [world.order("ada", wallet.wallet) for _ in range(2)]
    for view in views:
        for officer in ("ben", "cai"):
            world.approve(officer, view)
    outcomes: list[str] = []

    def disclose(request: UUID) -> None:
        try:
            outcomes.append(str(world.client("ada").disclose(request).values))
        except ProblemResponse as error:
            outcomes.append(error.refusal)

    threads = [threading.Thread(target=disclose, args=(view.request,)) for view in views for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["unmask-answered"] * 6 + [str({"name": NAME})] * 2
    assert world.client(None).privacy_log_entries().size == 2
    for item in world.client("auditor").unmask_evidence():
        verify_unmask(item, log_key=log_key(world))


def test_an_entry_that_cannot_be_written_unmasks_nobody(world: PrivacyWorld) -> None:
    _, wallet, _ = world.customer()
    view = world.order("ada", wallet.wallet)
    for officer in ("ben", "cai"):
        world.approve(officer, view)
    with psycopg.connect(dsn(world.owner_url), autocommit=True) as connection:
        connection.execute("ALTER TABLE privacy_entry ADD CONSTRAINT full_disk CHECK (index < 0) NOT VALID")
        answer = world.refusal(lambda: world.client("ada").disclose(view.request))
        assert NAME not in answer
        assert connection.execute("SELECT count(*) FROM unmask_disclosure").fetchone() == (0,)
        connection.execute("ALTER TABLE privacy_entry DROP CONSTRAINT full_disk")
    assert world.client("ada").disclose(view.request).values == {"name": NAME}


# --- the log ---------------------------------------------------------------------------------------------------------


def test_a_rewritten_or_deleted_entry_is_caught(world: PrivacyWorld) -> None:
    _, wallet, _ = world.customer()
    for _ in range(3):
        world.unmask(wallet.wallet)
    anybody, key = world.client(None), log_key(world)
    seen = anybody.privacy_log_checkpoint()
    found = list(world.client("auditor").unmask_evidence())
    world.unmask(wallet.wallet)
    new = anybody.privacy_log_checkpoint()
    assert verify_growth(seen, new, anybody.privacy_log_proof(old_size=3), log_key=key) == 4
    inclusion = anybody.privacy_log_proof(index=1)
    assert len(inclusion.hashes) == 2
    # (a) rewritten: the service sees it against its own last signature, signs nothing and unmasks nobody
    tamper(world, "UPDATE privacy_entry SET commitment = sha256('nobody') WHERE index = 1")
    assert world.refusal(anybody.privacy_log_checkpoint) == "service-unavailable"
    view = world.order("ada", wallet.wallet)
    for officer in ("ben", "cai"):
        world.approve(officer, view)
    assert world.refusal(lambda: world.client("ada").disclose(view.request)) == "service-unavailable"
    # (b) rewritten together with every signature, by whoever has the log's key too: the auditor sees it
    forged = forge(world)
    with pytest.raises(EvidenceRefused, match="rewritten"):
        verify_growth(seen, forged, anybody.privacy_log_proof(old_size=3), log_key=key)
    with pytest.raises(EvidenceRefused, match="does not contain"):
        verify_unmask(found[1].model_copy(update={"checkpoint": forged}), log_key=key)
    # (c) deleted, with every signature of it
    tamper(
        world,
        "DELETE FROM unmask_disclosure WHERE entry_index > 1",
        "DELETE FROM privacy_checkpoint WHERE size > 2",
        "DELETE FROM privacy_entry WHERE index > 1",
    )
    with pytest.raises(EvidenceRefused, match="deleted"):
        verify_growth(seen, forge(world), None, log_key=key)


def forge(world: PrivacyWorld) -> str:
    """A checkpoint over whatever the table has now, put where the service looks for its last signature."""
    log = world.http.app.state.privacy_log  # type: ignore[attr-defined]
    with psycopg.connect(dsn(world.owner_url), autocommit=True) as connection:
        rows = connection.execute("SELECT commitment FROM privacy_entry ORDER BY index").fetchall()
        from kernel.transparency.merkle import leaf_hash

        note: str = log.note([leaf_hash(bytes(row[0])) for row in rows])
        connection.execute("UPDATE privacy_checkpoint SET note = %s WHERE size = %s", [note, len(rows)])
    return note


@pytest.mark.parametrize(
    "change",
    [
        {"case_number": "2026-0816"},
        {"fields": ["name", "phone"]},
        {"disclosed_at": "2026-01-01T00:00:00.000000Z"},
        {"wallet": "wlt_0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"},
    ],
)
def test_evidence_that_was_changed_proves_nothing(world: PrivacyWorld, change: dict[str, Any]) -> None:
    _, wallet, _ = world.customer()
    world.unmask(wallet.wallet)
    plain = next(world.client("auditor").unmask_evidence()).model_dump(mode="json")
    plain["entry"] |= change
    with pytest.raises(EvidenceRefused, match="does not contain"):
        verify_unmask(UnmaskEvidence.model_validate(plain), log_key=log_key(world))


def test_the_log_answers_bad_questions_clearly(world: PrivacyWorld) -> None:
    anybody = world.client(None)
    assert anybody.privacy_log_entries().model_dump() == {"start": 0, "commitments": [], "size": 0}
    questions: tuple[dict[str, int], ...] = (
        {},
        {"index": 0, "old_size": 0},
        {"index": 0},
        {"old_size": 5},
        {"old_size": 0, "size": 1},
    )
    for query in questions:
        assert world.refusal(partial(anybody.privacy_log_proof, **query)) == "validation-failed"
    assert world.refusal(lambda: world.client("channel").unmask_evidence().__next__()) == "not-permitted"


# --- erasure ---------------------------------------------------------------------------------------------------------


def test_an_erased_customer_is_forgotten(world: PrivacyWorld) -> None:
    customer, wallet, _ = world.customer()
    client, ada = world.client("channel"), world.client("ada")
    asked = client.create_alias(wallet.wallet, kind=AliasKind.PHONE, alias=PHONE)
    client.verify_alias(asked.alias_id, client.simulated_codes()[0].code)
    vault = PersonalDataVault.at(world.key_path)
    erasure, reason = ids.new_uuid7(), ErasureReason.REQUESTED

    def row(connection: psycopg.Connection) -> tuple[bytes, bytes]:
        found = connection.execute("SELECT wrapped_key, personal_data FROM customer WHERE id = %s", [customer])
        key, data = found.fetchone() or (None, None)
        return bytes(key or b""), bytes(data or b"")

    with psycopg.connect(dsn(world.owner_url), autocommit=True) as connection:
        wrapped, sealed = row(connection)
        assert vault.open(customer, wrapped, sealed) == (NAME, PHONE)

        def erase() -> object:
            return ada.erase_customer(customer, reason=reason, erasure=erasure)

        assert world.refusal(erase) == "customer-has-wallets"
        assert world.refusal(lambda: client.erase_customer(customer, reason=reason)) == "not-permitted"
        assert client.close_wallet(wallet=wallet.wallet).state is ChangeState.DONE
        open_case = world.order("ada", wallet.wallet)
        assert world.refusal(erase) == "unmask-open"
        assert world.refusal(lambda: ada.get_erasure(customer)) == "erasure-not-found"
        tamper(
            world,
            f"UPDATE unmask_case SET created_at = now() - interval '2 h', valid_until = now() - interval '1 h'"
            f" WHERE id = '{open_case.request}'",
        )
        first = erase()
        assert first == erase() == ada.get_erasure(customer)
        other = lambda: ada.erase_customer(  # noqa: E731
            customer, reason=ErasureReason.RETENTION_ENDED, erasure=erasure
        )
        assert world.refusal(other) == "erasure-exists"
        assert world.refusal(lambda: ada.erase_customer(customer, reason=reason)) == "customer-erased"

        assert row(connection) == (b"", b"")
        with pytest.raises(PersonalDataUnreadable):
            vault.open(customer, b"", sealed)  # a copy of the sealed data is of no use without its key
        tombstone = connection.execute("SELECT reason, erased_by FROM customer_erasure").fetchall()
        assert tombstone == [("requested", "ada")]
        hashes = connection.execute("SELECT alias_hash, state FROM wallet_alias").fetchall()
        assert [(bytes(value) == vault.blind_index("alias-phone", PHONE), state) for value, state in hashes] == [
            (False, "removed")
        ]
        with pytest.raises(errors.CheckViolation):  # half an erasure
            connection.execute("UPDATE customer SET personal_data = 'x' WHERE id = %s", [customer])

    for role in ("channel", "operator"):
        reader = world.client(role)
        assert world.refusal(partial(reader.get_customer, customer)) == "customer-erased"
    assert world.refusal(lambda: world.order("ada", wallet.wallet)) == "customer-erased"
    again = lambda: client.create_customer(evidence=[], name=NAME, phone=PHONE, customer=customer)  # noqa: E731
    assert world.refusal(again) == "customer-erased"
    from kernel.crypto.keys import PrivateKey
    from wallet.domain.rules import Evidence, WalletClass

    key = PrivateKey.generate().public
    reopened = lambda: client.open_wallet(customer=customer, wallet_class=WalletClass.IV, device_key=key)  # noqa: E731
    assert world.refusal(reopened) == "customer-erased"
    assert world.refusal(lambda: client.change_evidence(customer=customer, added=[Evidence.ID])) == "customer-erased"


# --- at the prompt ---------------------------------------------------------------------------------------------------


@pytest.mark.extended
def test_unmask_at_the_prompt_and_offline_check(
    world: PrivacyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wallet.cli import privacy as commands

    _, wallet, _ = world.customer()
    for officer in (*OFFICERS, "auditor"):
        world.keys[officer].save(tmp_path / f"{officer}.pem")
    by_path = {tmp_path / f"{name}.pem": name for name in (*OFFICERS, "auditor")}
    monkeypatch.setattr(commands, "connect", lambda url, key: world.client(by_path[key]))
    monkeypatch.setattr(commands, "anybody", lambda url: world.client(None))

    def run(*words: str, by: str | None = None) -> Any:
        mine = ["--client-key", str(tmp_path / f"{by}.pem")] if by else []
        return CliRunner().invoke(cli, [*words, *mine])

    shown = ids.show("wlt", wallet.wallet)
    asked = ("--case", "2026-0815", "--legal-basis", "Order 7", "--wallet", shown, "--field", "name", "--json")
    made = run("privacy", "order", *asked, by="ada")
    assert made.exit_code == 0, made.output
    request = json.loads(made.stdout)["request"]
    for officer in ("ben", "cai"):
        approved = run("privacy", "approve", request, "--yes", by=officer)
        assert approved.exit_code == 0, approved.output
    answer = run("privacy", "disclose", request, by="ada")
    assert f"name: {NAME}" in answer.stdout, answer.output
    kept = run("privacy", "evidence", "--wallet", shown, "--out", str(tmp_path), by="auditor")
    assert kept.exit_code == 0, kept.output
    file = tmp_path / "unmask-0.json"
    key = str(log_key(world))
    good = run("verify-unmask", str(file), "--log-key", key)
    assert good.exit_code == 0, good.output
    assert "2026-0815" in good.stdout and "entry 0 of 1" in good.stdout
    seen = tmp_path / "seen.note"
    assert run("privacy", "watch", "--seen", str(seen), "--log-key", key).exit_code == 0
    world.unmask(wallet.wallet)
    assert "1 -> 2" in run("privacy", "watch", "--seen", str(seen), "--log-key", key).stdout
    file.write_text(file.read_text().replace("2026-0815", "2026-0816"))
    bad = run("verify-unmask", str(file), "--log-key", key)
    assert bad.exit_code == 1
    assert "proves nothing" in bad.output
    assert run("verify-unmask", str(tmp_path / "none.json"), "--log-key", key).exit_code == 1
