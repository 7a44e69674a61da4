"""The ledger over HTTP: issue by 2 of 3, open, pay, hold, read.

Goal: every operation does what its contract says and every refusal is the documented one.
Method: one real ledger on real PostgreSQL for the module, real signatures, the product's own client.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from click.testing import Result
from typer.testing import CliRunner

from kernel import ids
from kernel.client import ProblemResponse
from kernel.clock import system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey, Suite
from kernel.ids import new_uuid7
from ledger.__main__ import app
from ledger.client import LedgerClient
from ledger.contract import (
    LOOK_UPS_MAX,
    Approval,
    FreezeAction,
    HoldStatus,
    IssueAction,
    MandateView,
    TransferItem,
    TransferOutcome,
    sign_approval,
    sign_proposal,
)
from tests.ledger_world import LedgerWorld, running_ledger

BANK, OTHER, BRIDGE = "BKCHCNBJ", "ICBKCNBJ", "JZBRCNBJ"


@pytest.fixture(scope="module")
def world(fresh_databases: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LedgerWorld]:
    with running_ledger(fresh_databases("ledger"), tmp_path_factory.mktemp("ledger")) as world:
        world.register(BANK)
        world.register(OTHER)
        world.register(BRIDGE, role="bridge")
        yield world


def refusal_of(call: object, *arguments: object) -> str:
    with pytest.raises(ProblemResponse) as caught:
        call(*arguments)  # type: ignore[operator]
    return caught.value.refusal


def test_issue_needs_two_of_three_and_acts_once(world: LedgerWorld) -> None:
    vault = world.open_vault(BANK)
    action = IssueAction(transfer=ids.new_uuid7(), vault=ids.AccountNumber(vault), amount_minor=500, currency="CNY")
    with world.client(BANK) as client:
        view = client.propose(sign_proposal(world.proposal(action), key=world.participants[BANK]))
        assert refusal_of(client.execute, view.mandate) == "approvals-missing"
        world.approve(view, 0)
        assert refusal_of(client.execute, view.mandate) == "approvals-missing"
        assert refusal_of(world.approve, view, 0) == "already-approved"
        world.approve(view, 1)
        done = client.execute(view.mandate)
        assert done.status == "executed"
        assert refusal_of(client.execute, view.mandate) == "mandate-executed"
    with world.client(BANK) as client:
        assert client.get_account(vault).balance_minor == 500


def test_nobody_but_operators_and_the_participant_concerned_carries_a_mandate_out(world: LedgerWorld) -> None:
    """Approved by enough, and still not anybody's to say when: unsigned, another bank, the bridge."""
    vault = world.open_vault(BANK)

    def approved() -> MandateView:
        action = IssueAction(transfer=ids.new_uuid7(), vault=ids.AccountNumber(vault), amount_minor=7, currency="CNY")
        with world.anonymous() as client:
            view = client.propose(sign_proposal(world.proposal(action), key=world.operators[0]))
        for operator in (1, 2):
            view = world.approve(view, operator)
        return view

    view = approved()
    with world.anonymous() as client:
        assert refusal_of(client.execute, view.mandate) == "signature-missing"
    for stranger in (OTHER, BRIDGE):
        with world.client(stranger) as client:
            assert refusal_of(client.execute, view.mandate) == "mandate-not-found"
    with LedgerClient(world.url, signer=RequestSigner(PrivateKey.generate())) as client:
        assert refusal_of(client.execute, view.mandate) == "signature-invalid"
    with world.client(BANK) as client:
        assert client.get_mandate(view.mandate).status == "proposed"
        assert client.get_account(vault).balance_minor == 0
        assert client.execute(view.mandate).status == "executed"
    other = approved()
    with world.operator(2) as client:
        assert client.execute(other.mandate).status == "executed"
    with world.client(BANK) as client:
        assert client.get_account(vault).balance_minor == 14


def test_a_mandate_is_proposed_approved_and_carried_out_at_the_prompt(world: LedgerWorld, tmp_path: Path) -> None:
    vault = ids.show_account(world.open_vault(BANK))
    world.participants[BANK].save(tmp_path / "bank.pem")
    world.participants[OTHER].save(tmp_path / "other.pem")
    for number, key in enumerate(world.operators):
        key.save(tmp_path / f"operator-{number}.pem")

    def command(*arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "--url", world.url], env={"COLUMNS": "200"})

    def key_of(name: str) -> tuple[str, str]:
        return "--key", str(tmp_path / f"{name}.pem")

    approvers = [word for number in (0, 1) for word in ("--approver", str(tmp_path / f"operator-{number}.pem"))]
    done = command("issue", vault, "12.50", "--maker", str(tmp_path / "bank.pem"), *approvers)
    assert (done.exit_code, "executed" in done.output) == (0, True), done.output
    mandate = re.findall(r"mdt_[\w-]+", command("propose", vault, "7.50", *key_of("bank")).output)[0]
    for number in (0, 1):
        assert command("approve", mandate, *key_of(f"operator-{number}")).exit_code == 0
    assert command("execute", mandate).exit_code == 2  # no key, no signature
    refused = command("execute", mandate, *key_of("other"))
    assert isinstance(refused.exception, ProblemResponse)
    assert refused.exception.refusal == "mandate-not-found"
    assert "executed" in command("execute", mandate, *key_of("operator-2")).output
    assert "20.00" in command("balance", vault, *key_of("bank")).output


def test_maker_cannot_approve_own_proposal_and_approval_binds_the_text(world: LedgerWorld) -> None:
    vault = world.open_vault(BANK)
    action = IssueAction(transfer=ids.new_uuid7(), vault=ids.AccountNumber(vault), amount_minor=500, currency="CNY")
    with world.anonymous() as client:
        view = client.propose(sign_proposal(world.proposal(action), key=world.operators[0]))
        assert refusal_of(world.approve, view, 0) == "approver-is-maker"
        changed = Approval(
            ledger=world.ledger, mandate=view.mandate, proposal_sha256=hashlib.sha256(b"another text").digest()
        )
        token = sign_approval(changed, key=world.operators[1])
        assert refusal_of(client.approve, view.mandate, token) == "approval-mismatch"
        stranger = sign_approval(
            Approval(ledger=world.ledger, mandate=view.mandate, proposal_sha256=view.proposal_sha256),
            key=PrivateKey.generate(),
        )
        assert refusal_of(client.approve, view.mandate, stranger) == "unknown-signer"


def test_quota_bounds_what_an_intermediary_is_issued(world: LedgerWorld) -> None:
    world.register("QUOTCNBJ", quota_minor=1_000)
    vault = world.open_vault("QUOTCNBJ")
    world.issue(vault, 1_000)
    assert refusal_of(world.issue, vault, 1) == "quota-exceeded"


@pytest.mark.parametrize("suite", list(Suite))
def test_holder_pays_across_intermediaries_and_reads_it_back(world: LedgerWorld, suite: Suite) -> None:
    payer_key, payee_key = PrivateKey.generate(suite), PrivateKey.generate(suite)
    vault = world.open_vault(BANK)
    world.issue(vault, 10_000)
    payer, payee = world.open_wallet(BANK, payer_key), world.open_wallet(OTHER, payee_key)
    with world.client(BANK) as client:
        assert client.transfer(world.terms("exchange-in", vault, payer, 10_000)).outcome == TransferOutcome.BOOKED
        reference = uuid4()
        terms = world.terms("payment", payer, payee, 2_500, reference=reference)
        token = world.instruction(terms, payer_key)
        first = client.submit_instruction(token)
        again = client.submit_instruction(token)
        assert (first.outcome, again.outcome) == (TransferOutcome.BOOKED, TransferOutcome.ALREADY_BOOKED)
        assert first.seq == again.seq
        assert first.booked_at == again.booked_at
        view = client.get_transfer(terms.id)
        assert (view.debit, view.credit, view.amount_minor, view.reference) == (payer, payee, 2_500, reference)
        page = client.statement(payer)
        assert [(line.kind, line.direction, line.balance_minor) for line in page.lines] == [
            ("exchange-in", "credit", 10_000),
            ("payment", "debit", 7_500),
        ]
        newest = client.statement(payer, newest_first=True, limit=1)
        assert newest.lines[0].balance_minor == 7_500
        older = client.statement(payer, newest_first=True, limit=1, cursor=newest.next_cursor)
        assert [line.balance_minor for line in older.lines] == [10_000]
    with world.client(OTHER) as client:
        assert client.get_account(payee).available_minor == 2_500
        assert refusal_of(client.get_account, payer) == "account-not-found"
    with world.operator() as client:
        assert client.get_account(payer).balance_minor == 7_500


def test_bookings_tell_a_participant_its_own_in_order_page_by_page(world: LedgerWorld) -> None:
    key, stranger = PrivateKey.generate(), "FEEDCNBJ"
    world.register(stranger, quota_minor=10_000)
    ours, theirs = world.open_vault(BANK), world.open_vault(stranger)
    world.issue(ours, 1_000)
    world.issue(theirs, 500)
    wallet, other = world.open_wallet(BANK, key), world.open_wallet(stranger, PrivateKey.generate())
    with world.client(BANK) as client:
        start = client.bookings(after_seq=0, limit=1_000).through_seq
        exchanged, paid = (
            world.terms("exchange-in", ours, wallet, 300),
            world.terms("payment", wallet, other, 7, reference=uuid4()),
        )
        client.transfer(exchanged)
        with world.client(stranger) as elsewhere:
            elsewhere.transfer(world.terms("exchange-in", theirs, other, 5))  # none of ours
        client.submit_instruction(world.instruction(paid, key))
        page = client.bookings(after_seq=start)
        assert [(item.transfer, item.kind, item.debit, item.credit, item.amount_minor) for item in page.bookings] == [
            (exchanged.id, "exchange-in", ours, wallet, 300),
            (paid.id, "payment", wallet, other, 7),
        ]
        assert page.bookings[1].reference == paid.reference
        assert page.through_seq == page.bookings[1].seq
        one = client.bookings(after_seq=start, limit=1)
        assert (one.bookings, one.through_seq) == (page.bookings[:1], page.bookings[0].seq)
        rest = client.bookings(after_seq=one.through_seq, limit=1)
        assert rest.bookings == page.bookings[1:]
        end = client.bookings(after_seq=10**12)
        assert (end.bookings, end.through_seq) == ([], 10**12)
    with world.client(stranger) as client:
        assert [item.kind for item in client.bookings(after_seq=start).bookings] == ["exchange-in", "payment"]
    with world.operator() as client:
        assert refusal_of(lambda: client.bookings(after_seq=0)) == "role-not-allowed"
    with world.anonymous() as client:
        assert refusal_of(lambda: client.bookings(after_seq=0)) == "signature-missing"


def test_instruction_attacks_are_refused_each_with_its_reason(world: LedgerWorld) -> None:
    key, other_key = PrivateKey.generate(), PrivateKey.generate()
    vault = world.open_vault(BANK)
    world.issue(vault, 1_000)
    payer, payee = world.open_wallet(BANK, key), world.open_wallet(BANK, other_key)
    with world.client(BANK) as client:
        client.transfer(world.terms("exchange-in", vault, payer, 1_000))

        def outcome(token: str) -> str | None:
            return client.submit_instruction(token).refusal

        pay = world.terms("payment", payer, payee, 10)
        assert outcome(world.instruction(pay, other_key)) == "instruction-invalid"
        good = world.instruction(pay, key)
        head, body, signature = good.split(".")
        other_body = world.instruction(world.terms("payment", payer, payee, 11), key).split(".")[1]
        assert outcome(f"{head}.{other_body}.{signature}") == "instruction-invalid"
        assert outcome(world.instruction(pay, key, ledger="other-ledger")) == "wrong-ledger"
        assert outcome(world.instruction(pay, key, minutes=-1)) == "instruction-expired"
        assert outcome(world.instruction(world.terms("payment", payer, payee, 5_000), key)) == "insufficient-funds"
        dollars = pay.model_copy(update={"currency": "USD"})
        assert outcome(world.instruction(dollars, key)) == "wrong-currency"
        # the institution cannot spend its holder's wallet on its own signature (I8)
        assert client.transfer(world.terms("payment", payer, payee, 10)).refusal == "not-authorised"
        # an id cannot be used again with other content
        assert outcome(good) is None
        changed = world.terms("payment", payer, payee, 11).model_copy(update={"id": pay.id})
        assert outcome(world.instruction(changed, key)) == "id-already-used"
        assert outcome("e30.e30.AAAA" + "A" * 20) == "instruction-invalid"
        assert client.get_account(payer).balance_minor == 990
        assert head and body


def test_class_caps_hold_on_the_ledger(world: LedgerWorld) -> None:
    key = PrivateKey.generate()
    vault = world.open_vault(BANK)
    world.issue(vault, 1_000_000)
    wallet = world.open_wallet(BANK, key, "small")
    with world.client(BANK) as client:
        too_much = client.transfer(world.terms("exchange-in", vault, wallet, 100_001))
        assert too_much.refusal == "balance-limit-exceeded"
        client.transfer(world.terms("exchange-in", vault, wallet, 100_000))

        def pay(amount: int) -> str | None:
            return client.submit_instruction(
                world.instruction(world.terms("payment", wallet, vault, amount), key)
            ).refusal

        assert pay(50_001) == "single-limit-exceeded"
        assert pay(50_000) is None
        assert pay(30_001) == "day-limit-exceeded"
        assert pay(30_000) is None
        view = client.get_account(wallet)
        assert (view.spent_today_minor, view.balance_minor) == (80_000, 20_000)


def test_conditional_hold_is_posted_by_whoever_knows_the_secret(world: LedgerWorld) -> None:
    vault, payee = world.open_vault(BANK), world.open_vault(OTHER)
    world.issue(vault, 1_000)
    commit, abort = secrets.token_bytes(32), secrets.token_bytes(32)
    hashes = {"commit_hash": hashlib.sha256(commit).digest(), "abort_hash": hashlib.sha256(abort).digest()}
    hold = world.terms("hold", vault, payee, 400, **hashes)
    token = world.instruction(hold, world.participants[BANK])
    with world.client(BRIDGE) as bridge:
        unsigned = bridge.transfer(world.terms("hold", vault, payee, 400, **hashes))
        assert unsigned.refusal == "not-authorised"  # nothing is held on the engine's word alone
        assert bridge.submit_instruction(token).outcome == TransferOutcome.BOOKED
        assert bridge.get_hold(hold.id).status == HoldStatus.HELD
    with world.anonymous() as anyone:
        wrong = world.terms("post", None, None, None, hold=hold.id, secret=abort)
        assert anyone.transfer(wrong).refusal == "hold-secret-wrong"
        right = world.terms("post", None, None, None, hold=hold.id, secret=commit)
        assert anyone.transfer(right).outcome == TransferOutcome.BOOKED
        assert anyone.transfer(right).outcome == TransferOutcome.ALREADY_BOOKED
        late = world.terms("void", None, None, None, hold=hold.id, secret=abort)
        assert anyone.transfer(late).refusal == "hold-already-posted"
    with world.client(BANK) as client:
        view = client.get_hold(hold.id)
        assert (view.status, view.secret, view.ended_by) == (HoldStatus.POSTED, commit, right.id)
        assert client.get_account(vault).balance_minor == 600


def test_many_holds_and_accounts_are_looked_up_at_once_each_as_it_would_be_alone(world: LedgerWorld) -> None:
    vault, payee = world.open_vault(BANK), world.open_vault(OTHER)
    world.issue(vault, 1_000)
    commit, abort = secrets.token_bytes(32), secrets.token_bytes(32)
    hashes = {"commit_hash": hashlib.sha256(commit).digest(), "abort_hash": hashlib.sha256(abort).digest()}
    held, posted, voided = (world.terms("hold", vault, payee, 100, **hashes) for _ in range(3))
    # Nothing of the bridge's: it does not see it.
    own = world.terms("hold", vault, payee, 50, expires_at=system_clock() + timedelta(hours=1))
    tombstone = world.terms("void", None, None, None, hold=new_uuid7(), secret=abort)
    post = world.terms("post", None, None, None, hold=posted.id, secret=commit)
    void = world.terms("void", None, None, None, hold=voided.id, secret=abort)
    with world.client(BRIDGE) as bridge, world.client(BANK) as bank:
        for terms in (held, posted, voided):
            assert bridge.submit_instruction(world.instruction(terms, world.participants[BANK])).seq is not None
        assert bank.transfer(own).outcome == TransferOutcome.BOOKED
        assert {result.outcome for result in map(bridge.transfer, (post, void, tombstone))} == {TransferOutcome.BOOKED}
        absent = new_uuid7()
        asked = [posted.id, absent, held.id, voided.id, tombstone.hold, own.id, posted.id]
        found = bridge.look_up_holds(asked)
        assert [None if view is None else view.status for view in found] == [
            HoldStatus.POSTED, None, HoldStatus.HELD, HoldStatus.VOIDED, HoldStatus.TOMBSTONED, None, HoldStatus.POSTED,
        ]  # fmt: skip
        assert all(view is None or view == bridge.get_hold(hold) for hold, view in zip(asked, found, strict=True))
        assert (seen := bank.look_up_holds([own.id])[0]) is not None and seen == bank.get_hold(own.id)
        accounts = bank.look_up_accounts([vault, payee, 10**9, vault])
        assert [account is None for account in accounts] == [False, True, True, False]
        assert accounts[0] == accounts[3] == bank.get_account(vault)
        with pytest.raises(ProblemResponse, match="422"):
            bridge.look_up_holds([])
        with pytest.raises(ProblemResponse, match="422"):
            bridge.look_up_holds([absent] * (LOOK_UPS_MAX + 1))
    with world.anonymous() as nobody, pytest.raises(ProblemResponse):
        nobody.look_up_holds([held.id])


def test_void_before_its_hold_leaves_a_tombstone(world: LedgerWorld) -> None:
    vault, payee = world.open_vault(BANK), world.open_vault(OTHER)
    world.issue(vault, 1_000)
    commit, abort = secrets.token_bytes(32), secrets.token_bytes(32)
    hashes = {"commit_hash": hashlib.sha256(commit).digest(), "abort_hash": hashlib.sha256(abort).digest()}
    hold = world.terms("hold", vault, payee, 400, **hashes)
    with world.client(BRIDGE) as bridge:
        stranger = world.terms("void", None, None, None, hold=hold.id, secret=secrets.token_bytes(32))
        assert bridge.transfer(stranger).outcome == TransferOutcome.BOOKED  # keeps out only a hold of its own hash
        void = world.terms("void", None, None, None, hold=hold.id, secret=abort)
        assert bridge.transfer(void).outcome == TransferOutcome.BOOKED
        late = bridge.submit_instruction(world.instruction(hold, world.participants[BANK]))
        assert late.refusal == "hold-already-voided"
        assert bridge.get_hold(hold.id).status == HoldStatus.TOMBSTONED


def test_linked_items_are_booked_together_or_not_at_all(world: LedgerWorld) -> None:
    first, second = world.open_vault(BANK), world.open_vault(BANK)
    world.issue(first, 100)
    with world.client(BANK) as client:
        chain = [
            TransferItem(terms=world.terms("payment", first, second, 60), linked=True),
            TransferItem(terms=world.terms("payment", first, second, 60)),
            TransferItem(terms=world.terms("payment", first, second, 1)),
        ]
        refusals = [result.refusal for result in client.submit(chain)]
        assert refusals == ["linked-transfer-refused", "insufficient-funds", None]
        open_chain = [TransferItem(terms=world.terms("payment", first, second, 1), linked=True)]
        assert client.submit(open_chain)[0].refusal == "linked-chain-open"
        assert client.get_account(first).balance_minor == 99


def test_a_thousand_transfers_a_request_each_with_its_result(world: LedgerWorld) -> None:
    source, target = world.open_vault(BANK), world.open_vault(BANK)
    world.issue(source, 1_000)
    items = [TransferItem(terms=world.terms("payment", source, target, 1)) for _ in range(1_200)]
    with world.client(BANK) as client:
        results = client.submit(items)
        assert [result.outcome for result in results].count(TransferOutcome.BOOKED) == 1_000
        assert {result.refusal for result in results[1_000:]} == {"insufficient-funds"}
        again = client.submit(items)
        assert [result.outcome for result in again].count(TransferOutcome.ALREADY_BOOKED) == 1_000
        assert client.get_account(target).balance_minor == 1_000


def test_freeze_by_mandate_stops_payments_but_not_the_end_of_a_hold(world: LedgerWorld) -> None:
    vault, payee = world.open_vault(BANK), world.open_vault(OTHER)
    world.issue(vault, 100)
    commit, abort = secrets.token_bytes(32), secrets.token_bytes(32)
    hashes = {"commit_hash": hashlib.sha256(commit).digest(), "abort_hash": hashlib.sha256(abort).digest()}
    hold = world.terms("hold", vault, payee, 40, **hashes)
    with world.client(BANK) as client:
        client.submit_instruction(world.instruction(hold, world.participants[BANK]))
        world.mandate(FreezeAction(action="freeze", account=ids.AccountNumber(vault), case="2026-118"))
        assert client.transfer(world.terms("payment", vault, payee, 1)).refusal == "debit-account-frozen"
        post = world.terms("post", None, None, None, hold=hold.id, secret=commit)
        assert client.transfer(post).outcome == TransferOutcome.BOOKED  # or a settlement could split (I5)
        assert client.get_account(vault).status == "frozen"
        world.mandate(FreezeAction(action="unfreeze", account=ids.AccountNumber(vault), case="2026-118"))
        assert client.transfer(world.terms("payment", vault, payee, 1)).refusal is None


def test_supply_identity_and_block_chain(world: LedgerWorld) -> None:
    vault = world.open_vault(BANK)
    world.issue(vault, 12_345)
    with world.anonymous() as client:
        assert client.block().hash is None  # it covers digests that have no salt: for operators
    with world.operator() as client:
        supply = client.supply()
        assert supply.identity_holds
        assert supply.circulation_minor == supply.vaults_minor + supply.wallets_minor
        head = client.block()
        before = client.block(head.number - 1)
        assert head.previous_hash == before.hash
        assert refusal_of(client.block, head.number + 100) == "block-not-found"


def test_opening_again_returns_the_same_account(world: LedgerWorld) -> None:
    from ledger.contract import AccountKind, AccountOpening

    opening = AccountOpening(opening=ids.new_uuid7(), kind=AccountKind.VAULT)
    with world.client(BANK) as client:
        first, again = client.open_accounts([opening])[0], client.open_accounts([opening, opening])[1]
        assert first.account == again.account
        other = AccountOpening(opening=opening.opening, kind=AccountKind.VAULT, rule_class="small")
        assert client.open_accounts([other])[0].refusal == "id-already-used"


def test_id_from_the_future_and_unknown_accounts(world: LedgerWorld) -> None:
    vault = world.open_vault(BANK)
    world.issue(vault, 10)
    with world.client(BANK) as client:
        ahead = ids.uuid7_at(int((system_clock() + timedelta(hours=1)).timestamp() * 1000))
        terms = world.terms("payment", vault, vault + 1, 1).model_copy(update={"id": ahead})
        assert client.transfer(terms).refusal == "id-from-future"
        assert client.transfer(world.terms("payment", vault, 10**12, 1)).refusal == "credit-account-unknown"
        assert client.transfer(world.terms("payment", vault, vault, 1)).refusal == "accounts-must-differ"
        assert client.transfer(world.terms("payment", vault, vault - 1, 0)).refusal == "amount-invalid"


def test_ledger_and_participants_are_public(world: LedgerWorld, tmp_path: Path) -> None:
    with world.anonymous() as client:
        view = client.ledger()
        assert (view.ledger, view.currency, view.approvals_needed, len(view.operators)) == ("test-cny", "CNY", 2, 3)
        assert {item.participant for item in client.participants()} >= {BANK, OTHER, BRIDGE}
    assert tmp_path.exists()


def test_batch_of_instructions_is_answered_alike_however_it_is_spelt(world: LedgerWorld) -> None:
    """The quick way in takes the compact spelling, the framework's the others; results and refusals are the same."""
    key, stranger = PrivateKey.generate(), PrivateKey.generate()
    vault = world.open_vault(BANK)
    world.issue(vault, 1_000)
    wallet, other = world.open_wallet(BANK, key), world.open_wallet(BANK, stranger)
    with world.client(BANK) as client:
        assert client.transfer(world.terms("exchange-in", vault, wallet, 900)).outcome == "booked"
    terms = world.terms("payment", wallet, other, 10)
    tokens = [
        world.instruction(terms, key),
        world.instruction(world.terms("payment", wallet, other, 10), stranger),
        world.instruction(world.terms("payment", wallet, other, 10_000), key),
        world.instruction(world.terms("payment", wallet, other, 10), key, ledger="another"),
        world.instruction(world.terms("payment", wallet, other, 10), key, minutes=-1),
        "x" * 30,
    ]
    items = {"transfers": [{"instruction": token} for token in tokens]}
    compact = json.dumps(items, separators=(",", ":"))
    with httpx.Client(base_url=world.url) as http:

        def post(body: str, path: str = "/v1/transfer-batches") -> httpx.Response:
            return http.post(path, content=body, headers={"content-type": "application/json"})

        assert post(compact).json()["results"][0]["outcome"] == "booked"
        quick, slow = post(compact), post(json.dumps(items))
        assert quick.status_code == slow.status_code == 200
        assert quick.json() == slow.json()
        said = [result.get("refusal", result["outcome"]) for result in quick.json()["results"]]
        assert said == [
            "already-booked",
            "instruction-invalid",
            "insufficient-funds",
            "wrong-ledger",
            "instruction-expired",
            "instruction-invalid",
        ]
        too_many = json.dumps({"transfers": [{"instruction": tokens[0]}] * 257}, separators=(",", ":"))
        assert post(too_many).json()["refusal"] == post(too_many.replace(":", ": ")).json()["refusal"]
        twice = compact[:-1] + "," + compact[1:]
        assert post(twice).json()["refusal"] == "malformed-json"
        forged = http.post(
            "/v1/transfer-batches",
            content=compact,
            headers={"content-type": "application/json", "signature": "sig1=:AAAA:", "signature-input": "sig1=()"},
        )
        assert forged.json()["refusal"] == "signature-invalid"


def test_large_batch_of_instructions_is_checked_by_many_threads_and_answered_in_order(world: LedgerWorld) -> None:
    key = PrivateKey.generate()
    vault = world.open_vault(BANK)
    world.issue(vault, 1_000)
    wallet, other = world.open_wallet(BANK, key), world.open_wallet(BANK, PrivateKey.generate())
    with world.client(BANK) as client:
        client.transfer(world.terms("exchange-in", vault, wallet, 1_000))
        all_terms = [world.terms("payment", wallet, other, 1) for _ in range(300)]
        tokens = [world.instruction(terms, key) for terms in all_terms]
        tokens[77] = world.instruction(all_terms[77], PrivateKey.generate())
        answers = client.submit_signed(tokens)
        assert [answer.id for answer in answers] == [ids.show("trf", terms.id) for terms in all_terms]
        assert [index for index, answer in enumerate(answers) if answer.outcome != "booked"] == [77]
        assert client.get_account(other).balance_minor == 299
