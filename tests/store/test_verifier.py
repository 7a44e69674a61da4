"""Goal: the verifier passes a real journal that has some of everything, and names every tampering at its place.

Method: one real ledger books issues, payments, chains, holds of every kind and end, freezes and legal orders; then
each attack is made by a superuser in SQL, in a transaction that verifies what it sees and is rolled back. Digests alone would find most of
them: so the same attacks are made again by somebody who can also seal forged blocks, and the rules must find them.
"""

# ruff: noqa: E501 - the tables of attacks have one SQL statement a line
from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from kernel import ids, migrate
from kernel.clock import system_clock
from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey, Suite
from kernel.postgres import EmbeddedPostgres
from ledger.__main__ import app
from ledger.contract import (
    AdjustmentAction,
    FreezeAction,
    RedeemAction,
    RotateParticipantKeyAction,
    SetQuotaAction,
    TransferItem,
    TransferResult,
)
from ledger.engine.sequencer import Sequencer
from ledger.verifier import Report, layout, verify_database, verify_transaction
from ledger.verifier.layout import (
    AccountRow,
    BlockRow,
    DirectiveRow,
    EvidenceRow,
    HoldEventRow,
    TombstoneRow,
    TransferRow,
)
from tests.ledger_world import LedgerWorld, make_world, serving

BANK, OTHER = "BKCHCNBJ", "ICBKCNBJ"


@dataclass
class Scheme:
    """The prepared database and where in it things are."""

    database: str
    seqs: dict[str, int]
    accounts: dict[str, int]


def booked(*results: TransferResult) -> int:
    for result in results:
        assert result.outcome == "booked", result
    return results[-1].seq or 0


@pytest.fixture(scope="module")
def scheme(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Scheme:
    name = f"verifier_{secrets.token_hex(4)}"
    postgres.ensure_database(name)
    migrate.upgrade("ledger", postgres.url(name))
    world = make_world(postgres.url(name), tmp_path_factory.mktemp("verifier"))
    scheme = Scheme(name, {}, {})
    with serving(world):
        _live(world, scheme)
    with pytest.MonkeyPatch.context() as patch, serving(world):  # and a tail that the balance tables do not have
        patch.setattr(Sequencer, "_write_snapshot", lambda self: None)
        with world.client(BANK) as client:
            vault, wallet = scheme.accounts["vault"], scheme.accounts["wallet"]
            scheme.seqs["tail"] = booked(client.transfer(world.terms("exchange-in", vault, wallet, 11)))
        time.sleep(0.05)
    return scheme


def _live(world: LedgerWorld, scheme: Scheme) -> None:
    """Some of everything."""
    seqs, accounts = scheme.seqs, scheme.accounts
    world.register(BANK, quota_minor=10_000_000)
    world.register(OTHER)
    key, small_key, p256 = PrivateKey.generate(), PrivateKey.generate(), PrivateKey.generate(Suite.ECDSA_P256_SHA256)
    vault, other = world.open_vault(BANK), world.open_vault(OTHER)
    wallet, small, phone = (
        world.open_wallet(BANK, key),
        world.open_wallet(BANK, small_key, "small"),
        world.open_wallet(OTHER, p256),
    )
    accounts |= {"vault": vault, "other": other, "wallet": wallet, "small": small, "phone": phone}
    world.issue(vault, 5_000_000)
    world.issue(other, 2_000_000)
    with world.client(BANK) as bank, world.client(OTHER) as icbk:

        def signed(kind: str, debit: int, credit: int, amount: int, by: PrivateKey, **more: object) -> int:
            terms = world.terms(kind, debit, credit, amount, **more)
            return booked(bank.submit_instruction(world.instruction(terms, by)))

        bulk = [TransferItem(terms=world.terms("exchange-in", vault, wallet, 100 + i)) for i in range(100)]
        seqs["bulk"] = booked(*bank.submit(bulk)) - 50
        seqs["exchange"] = booked(bank.transfer(world.terms("exchange-in", vault, wallet, 900_000)))
        booked(icbk.transfer(world.terms("exchange-in", other, phone, 500_000)))
        booked(bank.transfer(world.terms("exchange-in", vault, small, 60_000)))
        many = [
            TransferItem(instruction=world.instruction(world.terms("payment", wallet, phone, 5 + i), key))
            for i in range(40)
        ]
        booked(*bank.submit(many))
        reference = ids.new_uuid7()
        seqs["payment"] = signed("payment", wallet, phone, 2_500, key, reference=reference)
        seqs["p256"] = signed("payment", phone, wallet, 700, p256)
        seqs["refund"] = signed("refund", phone, wallet, 100, p256, reference=reference)
        seqs["small"] = signed("payment", small, wallet, 50_000, small_key)
        signed("exchange-out", wallet, vault, 300, key)
        booked(bank.transfer(world.terms("interest", vault, wallet, 3)))
        seqs["carried"] = signed("payment", vault, phone, 41, world.participants[BANK])
        chain = [TransferItem(terms=world.terms("payment", vault, other, 70 + i), linked=i < 2) for i in range(3)]
        booked(*bank.submit(chain))

        def hold(kind: str = "plain", *, amount: int = 1_000, seconds: float = 3600) -> tuple[Any, bytes, bytes]:
            commit, abort = secrets.token_bytes(32), secrets.token_bytes(32)
            hashes = {"commit_hash": hashlib.sha256(commit).digest(), "abort_hash": hashlib.sha256(abort).digest()}
            plain = {"expires_at": system_clock() + timedelta(seconds=seconds)}
            terms = world.terms("hold", wallet, other, amount, **(plain if kind == "plain" else hashes))
            seqs[f"hold {kind}"] = booked(bank.submit_instruction(world.instruction(terms, key)))
            return terms.id, commit, abort

        first, *_ = hold()
        seqs["post"] = booked(icbk.transfer(world.terms("post", None, None, 400, hold=first)))
        second, *_ = hold()
        booked(icbk.transfer(world.terms("void", None, None, None, hold=second)))
        hold(seconds=0.7)
        third, commit, _ = hold("conditional")
        seqs["secret"] = booked(bank.transfer(world.terms("post", None, None, None, hold=third, secret=commit)))
        fourth, _, abort = hold("conditional")
        booked(bank.transfer(world.terms("void", None, None, None, hold=fourth, secret=abort)))
        void = world.terms("void", None, None, None, hold=ids.new_uuid7(), secret=secrets.token_bytes(32))
        seqs["tombstone"] = booked(bank.transfer(void))
        void = world.terms("void", None, None, None, hold=ids.new_uuid7())
        booked(icbk.transfer(void))
        hold("conditional", amount=777)
        hold(amount=888)

        account = ids.AccountNumber(small)
        world.mandate(FreezeAction(action="freeze", account=account, case="2026-1"))
        adjustment = AdjustmentAction(
            transfer=ids.new_uuid7(),
            debit=account,
            credit=ids.AccountNumber(other),
            amount_minor=1_234,
            currency="CNY",
            case="2026-1",
        )
        world.mandate(adjustment)
        seqs["adjustment"] = bank.ledger().head_seq
        world.mandate(FreezeAction(action="unfreeze", account=account, case="2026-1"))
        signed("payment", small, wallet, 10, small_key)
        redeem = RedeemAction(
            transfer=ids.new_uuid7(), vault=ids.AccountNumber(other), amount_minor=5_000, currency="CNY"
        )
        world.mandate(redeem)
        world.mandate(SetQuotaAction(participant=ids.ParticipantId(BANK), quota_minor=5_000_000))
        rotated = PrivateKey.generate()
        world.mandate(RotateParticipantKeyAction(participant=ids.ParticipantId(OTHER), key=rotated.public.to_jwk()))
        world.participants[OTHER] = rotated
    with world.client(OTHER) as icbk:
        terms = world.terms("payment", other, wallet, 9)
        booked(icbk.submit_instruction(world.instruction(terms, rotated)))
    time.sleep(1.2)  # the hold of 0.7 s expires


@pytest.fixture
def attacked(postgres: EmbeddedPostgres, scheme: Scheme) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's transaction on the scheme's database: tamper in it, verify what it sees; then it is rolled back."""
    with psycopg.connect(postgres.conninfo(scheme.database), options="-c timezone=UTC") as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        yield connection
        connection.rollback()


def test_a_real_journal_with_some_of_everything_verifies(postgres: EmbeddedPostgres, scheme: Scheme) -> None:
    seen: list[tuple[int, int]] = []
    report = verify_database(postgres.url(scheme.database), progress=lambda done, total: seen.append((done, total)))
    assert report.findings == []
    assert report.is_whole
    assert seen[-1] == (report.head_seq, report.head_seq)
    assert (report.ledger, report.currency) == ("test-cny", "CNY")
    assert [name for name, _ in report.operators] == ["governor", "treasurer", "auditor"]
    assert set(report.booked) == set(layout.KINDS) - {"tombstone"}
    supply = report.supply
    assert (supply.issued, supply.redeemed, supply.circulation) == (7_000_000, 5_000, 6_995_000)
    assert supply.vaults + supply.wallets == supply.circulation
    assert supply.held == 777 + 888
    proved = report.proved
    assert proved["transfers"] == report.head_seq
    assert proved["blocks"] == report.head_block
    assert proved["digests"] == 4 * proved["blocks"]
    assert proved["mandates"] == proved["directives"] - 1
    assert proved["approvals of mandates"] == 2 * proved["mandates"]
    assert proved["transfers by mandate"] == 4
    assert (proved["holds placed"], proved["holds ended once"], proved["tombstones"]) == (7, 5, 2)
    assert proved["secrets"] == 2
    assert proved["instructions signed by the owner"] >= 40 + 8 + 7
    assert proved["balances in the snapshot"] == 6


ATTACKS = """
# attack                      | first finding       | SQL ({bulk} is a seq, {vault} an account)
amount of a bulk transfer     | I4 -                | UPDATE transfer SET amount_minor = amount_minor + 1 WHERE seq = {bulk}
amount of a signed payment    | I4 -                | UPDATE transfer SET amount_minor = 2501 WHERE seq = {payment}
debit account                 | I4 -                | UPDATE transfer SET debit_account = {other} WHERE seq = {bulk}
credit account                | I4 -                | UPDATE transfer SET credit_account = {small} WHERE seq = {payment}
kind                          | I4 -                | UPDATE transfer SET kind = 6 WHERE seq = {bulk}
kind unknown                  | I4 -                | UPDATE transfer SET kind = 99 WHERE seq = {bulk}
reference                     | I4 -                | UPDATE transfer SET reference = gen_random_uuid() WHERE seq = {payment}
reference removed             | I4 -                | UPDATE transfer SET reference = NULL WHERE seq = {payment}
submitter                     | I4 -                | UPDATE transfer SET submitter = 2 WHERE seq = {bulk}
id                            | I4 -                | UPDATE transfer SET id = gen_random_uuid() WHERE seq = {bulk}
hold of a post                | I4 -                | UPDATE transfer SET hold_id = gen_random_uuid() WHERE seq = {post}
booking time of a transfer    | I4 -                | UPDATE transfer SET booked_at = booked_at + '1 microsecond' WHERE seq = {bulk}
booking time of a block       | I4 block 12         | UPDATE block SET booked_at = booked_at + '1 microsecond' WHERE number = 12
booking time infinite         | I4 -                | UPDATE transfer SET booked_at = 'infinity' WHERE seq = {bulk}
commit hash of a hold         | I4 -                | UPDATE hold_event SET commit_hash = sha256('x') WHERE seq = {hold conditional}
abort hash of a hold          | I4 -                | UPDATE hold_event SET abort_hash = sha256('x') WHERE seq = {hold conditional}
expiry of a hold              | I4 -                | UPDATE hold_event SET expires_at = expires_at + interval '1 day' WHERE seq = {hold plain}
hold event deleted, placing   | I4 -                | DELETE FROM hold_event WHERE seq = {hold plain}
hold event deleted, end       | I6 seq post         | DELETE FROM hold_event WHERE seq = {post}
hold event of another kind    | I6 seq post         | UPDATE hold_event SET kind = 9 WHERE seq = {post}
hold event inserted           | I6 seq payment      | INSERT INTO hold_event SELECT gen_random_uuid(), 1, {payment}, gen_random_uuid(), 8
tombstone deleted             | I4 -                | DELETE FROM hold_tombstone WHERE seq = {tombstone}
tombstone's guard             | I4 -                | UPDATE hold_tombstone SET guard = sha256('x') WHERE seq = {tombstone}
transfer deleted              | I4 seq bulk         | DELETE FROM transfer WHERE seq = {bulk}
transfer inserted at the end  | I4 seq beyond       | INSERT INTO transfer SELECT gen_random_uuid(), {beyond}, 4, {vault}, {other}, 1, NULL, NULL, 1, now()
transfer inserted in a block  | I4 seq bulk         | INSERT INTO transfer SELECT gen_random_uuid(), {bulk}, 4, {vault}, {other}, 1, NULL, NULL, 1, now()
transfer before the first     | I4 seq zero         | INSERT INTO transfer SELECT gen_random_uuid(), 0, 4, {vault}, {other}, 1, NULL, NULL, 1, now()
two seqs swapped              | I4 -                | UPDATE transfer SET seq = {bulk} + {bulk} + 1 - seq WHERE seq IN ({bulk}, {bulk} + 1)
block header deleted          | I4 block 13         | DELETE FROM block WHERE number = 12
block header rewritten        | I4 block 12         | UPDATE block SET transfer_count = transfer_count + 1 WHERE number = 12
block epoch rewritten         | I4 block 12         | UPDATE block SET epoch = 7 WHERE number = 12
evidence: instruction edited  | I4 -                | UPDATE evidence SET body = set_byte(body, 200, get_byte(body, 200) # 1) WHERE seq = {payment}
evidence deleted              | I4 -                | DELETE FROM evidence WHERE seq = {payment}
evidence moved                | I8 seq payment      | UPDATE evidence SET transfer_id = gen_random_uuid() WHERE seq = {payment}
evidence inserted             | I4 -                | INSERT INTO evidence SELECT id, 2, seq, 'x' FROM transfer WHERE seq = {bulk}
evidence of nothing           | I4 seq beyond       | INSERT INTO evidence SELECT gen_random_uuid(), 2, {beyond}, 'x'
secret edited                 | I4 -                | UPDATE evidence SET body = sha256('x') WHERE seq = {secret}
directive edited              | I4 -                | UPDATE directive SET body = convert_to(replace(convert_from(body, 'UTF8'), 'issue', 'redeem'), 'UTF8') WHERE kind = 'issue'
approval dropped              | I4 -                | UPDATE directive SET body = convert_to(regexp_replace(convert_from(body, 'UTF8'), '(\\["[^"]*"),"[^"]*"', '\\1'), 'UTF8') WHERE kind = 'issue'
directive deleted             | I4 -                | DELETE FROM directive WHERE number = 4
directive renamed             | I8 -                | UPDATE directive SET kind = 'redeem' WHERE kind = 'issue' AND number = (SELECT min(number) FROM directive WHERE kind = 'issue')
directive's mandate           | I8 -                | UPDATE directive SET mandate_id = gen_random_uuid() WHERE number = 4
directive's time              | I4 -                | UPDATE directive SET booked_at = now() WHERE number = 4
genesis: an operator's name   | I4 block 1          | UPDATE directive SET body = convert_to(replace(convert_from(body, 'UTF8'), 'governor', 'impostor'), 'UTF8') WHERE number = 1
holder's key                  | I4 -                | UPDATE account SET holder_key = set_byte(holder_key, 5, get_byte(holder_key, 5) # 1) WHERE number = {wallet}
holder's key swapped          | I4 -                | UPDATE account SET holder_key = (SELECT holder_key FROM account WHERE number = {small}) WHERE number = {wallet}
account's participant         | I4 -                | UPDATE account SET participant = 2 WHERE number = {wallet}
account's class               | I4 -                | UPDATE account SET rule_class = 'none' WHERE number = {small}
account's opening time        | I4 -                | UPDATE account SET opened_at = now() WHERE number = {small}
account inserted              | I4 -                | INSERT INTO account SELECT 99, gen_random_uuid(), 1, 1, 'none', NULL, now()
account_balance rewritten     | snapshot -          | UPDATE account_balance SET credits_posted = credits_posted + 1 WHERE account = {small}
account_balance: caps         | snapshot -          | UPDATE account_balance SET spent_day = 0 WHERE account = {small}
account_balance row deleted   | snapshot -          | DELETE FROM account_balance WHERE account = {small}
account_balance row inserted  | snapshot -          | INSERT INTO account_balance VALUES (99, 0, 1, 0, 0, 0, 0)
open hold deleted             | snapshot -          | DELETE FROM open_hold WHERE expires_at <> 0
open hold rewritten           | snapshot -          | UPDATE open_hold SET commit_hash = sha256('x') WHERE commit_hash IS NOT NULL
outstanding rewritten         | snapshot -          | UPDATE participant_balance SET outstanding = 0 WHERE participant = 1
supply rewritten              | snapshot -          | UPDATE snapshot SET issued = issued + 1
snapshot of the future        | I4 -                | UPDATE snapshot SET block = 100000
id booked twice               | I4 -                | ALTER TABLE transfer DROP CONSTRAINT transfer_pkey; UPDATE transfer SET id = (SELECT id FROM transfer WHERE seq = {bulk}) WHERE seq = {bulk} + 1
"""


def _attacks() -> list[Any]:
    rows = [line.split(" | ", 2) for line in ATTACKS.strip().splitlines() if not line.startswith("#")]
    return [pytest.param(wanted.strip(), sql, id=name.strip()) for name, wanted, sql in rows]


@pytest.mark.parametrize(("wanted", "statement"), _attacks())
def test_tampering_as_superuser_is_found_and_named(
    scheme: Scheme, attacked: psycopg.Connection[Any], wanted: str, statement: str
) -> None:
    places = {**scheme.seqs, **scheme.accounts, "zero": 0, "beyond": scheme.seqs["tail"] + 1}
    for place, value in places.items():
        statement = statement.replace(f"{{{place}}}", str(value))
    for part in statement.split("; "):
        assert attacked.execute(part).rowcount != 0, "the attack hit nothing"
    kind, _, where = wanted.partition(" ")
    block = _block_of(attacked, statement) if where == "-" else 0
    report = verify_transaction(attacked)
    assert not report.is_whole
    first = report.findings[0]
    assert first.rule == kind, report.findings
    if where.startswith("seq "):
        assert first.seq == places[where.removeprefix("seq ")], report.findings
    elif where.startswith("block "):
        assert first.block == int(where.removeprefix("block ")), report.findings
    elif block and first.block is not None and kind != "snapshot":
        assert first.block == block, report.findings


def _block_of(connection: psycopg.Connection[Any], statement: str) -> int:
    """The block that holds the first seq named in an attack."""
    _, found, seq = statement.rpartition("seq = ")
    if not found or not seq.split()[0].isdigit():
        return 0
    row = connection.execute(
        "SELECT max(number) FROM block WHERE first_seq <= %s AND transfer_count > 0", (int(seq.split()[0]),)
    ).fetchone()
    return int(row[0]) if row else 0


# --- a forger who can seal blocks ------------------------------------------------------------------------------------

FORGERIES = """
# forgery                      | finding      | SQL
payment of another amount      | I8 payment   | UPDATE transfer SET amount_minor = 2501 WHERE seq = {payment}
payment to another account     | I8 payment   | UPDATE transfer SET credit_account = {small} WHERE seq = {payment}
payment of another kind        | I8 payment   | UPDATE transfer SET kind = 5 WHERE seq = {payment}
payment of another reference   | I8 payment   | UPDATE transfer SET reference = NULL WHERE seq = {payment}
payment without instruction    | I8 payment   | DELETE FROM evidence WHERE seq = {payment}
payment, instruction replayed  | I8 payment   | UPDATE evidence SET body = (SELECT body FROM evidence WHERE seq = {p256}) WHERE seq = {payment}
carried vault payment          | I8 carried   | UPDATE transfer SET amount_minor = 42 WHERE seq = {carried}
vault debited by another       | I8 bulk      | UPDATE transfer SET submitter = 2 WHERE seq = {bulk}
holder's key                   | I8 -         | UPDATE account SET holder_key = (SELECT holder_key FROM account WHERE number = {small}) WHERE number = {wallet}
overdraft                      | I3 exchange  | UPDATE transfer SET amount_minor = 99000000 WHERE seq = {exchange}
exchange across institutions   | I1 bulk      | UPDATE transfer SET credit_account = {phone} WHERE seq = {bulk}
issue of another amount        | I8 -         | UPDATE transfer SET amount_minor = 5000001 WHERE kind = 0 AND amount_minor = 5000000
issue without mandate          | I8 bulk      | UPDATE transfer SET kind = 0, debit_account = 1, credit_account = {vault} WHERE seq = {bulk}
adjustment without mandate     | I8 bulk      | UPDATE transfer SET kind = 11 WHERE seq = {bulk}
payment from the issuance      | I1 bulk      | UPDATE transfer SET debit_account = 1 WHERE seq = {bulk}
cap of the payee's class        | I9 exchange  | UPDATE account SET rule_class = 'small' WHERE number = {wallet}
secret that opens nothing      | I6 secret    | UPDATE evidence SET body = sha256('x') WHERE seq = {secret}
secret removed                 | I6 secret    | DELETE FROM evidence WHERE seq = {secret}
hold posted beyond its amount  | I6 post      | UPDATE transfer SET amount_minor = 1001 WHERE seq = {post}
hold ended by another          | I6 post      | UPDATE transfer SET submitter = 1 WHERE seq = {post}
hold ended twice               | I6 void      | UPDATE transfer SET hold_id = (SELECT hold_id FROM transfer WHERE seq = {post}) WHERE seq = {void}
hold's expiry moved            | I8 expiring  | UPDATE hold_event SET expires_at = expires_at - interval '1 second' WHERE seq = {expiring}
early expiry                   | I6 -         | UPDATE hold_event SET expires_at = expires_at + interval '1 day' WHERE seq = {expiring}
tombstone of another guard     | I6 tombstone | UPDATE hold_tombstone SET guard = sha256('x') WHERE seq = {tombstone}
frozen account pays            | freeze -     | UPDATE transfer SET kind = 6, credit_account = {small}, debit_account = {vault}, submitter = 1 WHERE seq = {adjustment}
"""


def _forgeries() -> list[Any]:
    rows = [line.split(" | ", 2) for line in FORGERIES.strip().splitlines() if not line.startswith("#")]
    return [pytest.param(wanted.strip(), sql, id=name.strip()) for name, wanted, sql in rows]


@pytest.mark.parametrize(("wanted", "statement"), _forgeries())
def test_a_forger_who_can_seal_blocks_is_caught_by_the_rules(
    scheme: Scheme, attacked: psycopg.Connection[Any], wanted: str, statement: str
) -> None:
    places = {**scheme.seqs, **scheme.accounts}
    places["void"] = places["post"] + 2
    places["expiring"] = places["post"] + 3
    for place, value in places.items():
        statement = statement.replace(f"{{{place}}}", str(value))
    assert attacked.execute(statement).rowcount == 1
    attacked.execute("DELETE FROM snapshot")
    _reseal(attacked)
    report = verify_transaction(attacked)
    kind, _, where = wanted.partition(" ")
    found = [finding for finding in report.findings if finding.rule == kind]
    assert not [finding for finding in report.findings if finding.rule == "I4"], report.findings
    assert found, report.findings
    if where.strip() != "-":
        assert found[0].seq == places[where.strip()], report.findings


def _reseal(connection: psycopg.Connection[Any]) -> None:
    """Compute every digest and hash anew, as an attacker with the whole database could."""

    def rows(kind: type[Any]) -> list[Any]:
        return [kind(*row) for row in connection.cursor(binary=True).execute(layout.COLUMNS[kind])]

    transfers, evidence, events = rows(TransferRow), rows(EvidenceRow), rows(HoldEventRow)
    stones, accounts, directives = rows(TombstoneRow), rows(AccountRow), rows(DirectiveRow)
    previous = layout.GENESIS_HASH
    for block in rows(BlockRow):
        first, last = block.first_seq, block.first_seq + block.transfer_count
        first_account, first_directive = block.first_account, block.first_directive
        sealed = block._replace(
            transfers_digest=layout.transfers_digest(row for row in transfers if first <= row.seq < last),
            evidence_digest=layout.evidence_digest(
                [row for row in evidence if first <= row.seq < last],
                [row for row in events if first <= row.seq < last and row.phase == 0],
                [row for row in stones if first <= row.seq < last],
            ),
            accounts_digest=layout.accounts_digest(
                row for row in accounts if first_account <= row.number < first_account + block.account_count
            ),
            directives_digest=layout.directives_digest(
                row for row in directives if first_directive <= row.number < first_directive + block.directive_count
            ),
            previous_hash=previous,
        )
        previous = layout.block_hash(sealed)
        connection.execute(
            "UPDATE block SET transfers_digest = %s, evidence_digest = %s, accounts_digest = %s,"
            " directives_digest = %s, previous_hash = %s, hash = %s WHERE number = %s",
            (
                sealed.transfers_digest,
                sealed.evidence_digest,
                sealed.accounts_digest,
                sealed.directives_digest,
                sealed.previous_hash,
                previous,
                sealed.number,
            ),
        )


@pytest.mark.parametrize(
    "forged", ["one approver twice", "the maker approves", "too few", "outsider", "another action"]
)
def test_a_forged_mandate_is_caught_even_when_sealed(attacked: psycopg.Connection[Any], forged: str) -> None:
    """Made of genuine signatures of other mandates where it can be: what is missing is what the test is named for."""
    found = attacked.execute("SELECT number, body FROM directive WHERE kind = 'issue' ORDER BY number").fetchall()
    (number, body), (_, other) = found[0], found[1]
    document, second = jws_document(body), jws_document(other)
    first, last = document["approvals"]
    match forged:
        case "one approver twice":
            document["approvals"] = [first, first]
        case "the maker approves":
            document["approvals"] = [first, document["proposal"]]
        case "too few":
            document["approvals"] = [first]
        case "outsider":
            stranger = PrivateKey.generate()
            document["approvals"] = [first, jws.sign(jws.peek_payload(last), stranger, typ="jiaozi-approval+jws")]
        case _:
            document["proposal"] = second["proposal"]
    attacked.execute("UPDATE directive SET body = %s WHERE number = %s", (jws.canonical_json(document), number))
    attacked.execute("DELETE FROM snapshot")
    _reseal(attacked)
    report = verify_transaction(attacked)
    assert report.findings[0].rule == "I8", report.findings
    assert f"directive {number}" in report.findings[0].message


def jws_document(body: bytes) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(body)
    return document


def test_a_cut_tail_is_seen_only_with_an_anchor_from_outside(scheme: Scheme, attacked: psycopg.Connection[Any]) -> None:
    before = verify_transaction(attacked)
    anchor = (before.head_block, before.head_hash)
    assert verify_transaction(attacked, anchor=anchor).is_whole
    attacked.execute("DELETE FROM transfer WHERE seq = %s", (scheme.seqs["tail"],))
    attacked.execute("DELETE FROM block WHERE number = %s", (before.head_block,))
    assert verify_transaction(attacked).is_whole, "a younger journal is a good journal"
    cut = verify_transaction(attacked, anchor=anchor)
    assert [finding.rule for finding in cut.findings] == ["I4"]
    rewritten = verify_transaction(attacked, anchor=(3, bytes(32)))
    assert (rewritten.findings[0].rule, rewritten.findings[0].block) == ("I4", 3)


def test_dropped_middle_block_with_its_transfers_is_found(scheme: Scheme, attacked: psycopg.Connection[Any]) -> None:
    row = attacked.execute(
        "SELECT number, first_seq, transfer_count FROM block WHERE first_seq <= %s ORDER BY number DESC LIMIT 1",
        (scheme.seqs["payment"],),
    ).fetchone()
    assert row is not None
    number, first, size = row
    for table in ("transfer", "evidence", "hold_event"):
        attacked.execute(f"DELETE FROM {table} WHERE seq BETWEEN %s AND %s", (first, first + size - 1))
    attacked.execute("DELETE FROM block WHERE number = %s", (number,))
    finding = verify_transaction(attacked).findings[0]
    assert (finding.rule, finding.block) == ("I4", number + 1)
    assert finding.message == f"block {number} is missing"


def test_verify_stops_after_some_findings_and_says_so(attacked: psycopg.Connection[Any]) -> None:
    attacked.execute("UPDATE transfer SET booked_at = booked_at + '1 second'")
    report = verify_transaction(attacked)
    assert len(report.findings) == 20
    assert not report.is_complete


def test_the_command_prints_what_it_proved_and_its_exit_code_says_it(
    postgres: EmbeddedPostgres, scheme: Scheme
) -> None:
    good = CliRunner().invoke(app, ["verify", "--database-url", postgres.url(scheme.database)])
    assert good.exit_code == 0, good.output
    assert "69,950.00" in good.output
    assert "Nothing is wrong" in good.output
    wrong_anchor = f"3:{bytes(32).hex()}"
    bad = CliRunner().invoke(app, ["verify", "--database-url", postgres.url(scheme.database), "--anchor", wrong_anchor])
    assert bad.exit_code == 1
    assert "I4: block 3" in bad.output


def test_report_of_a_younger_ledger_is_not_whole_only_because_it_is_empty(
    fresh_database: Callable[[str], str],
) -> None:
    report: Report = verify_database(fresh_database("ledger"))
    assert report.is_whole
    assert (report.head_block, report.head_seq) == (0, 0)
