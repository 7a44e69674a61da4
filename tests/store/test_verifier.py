"""Goal: the verifier passes a real journal that has some of everything, and names every tampering at its place.

Method: one real ledger books issues, payments, chains, holds of every kind and end, freezes and legal orders; then
each attack is made by a superuser in SQL, in a transaction that verifies what it sees and is rolled back. Digests alone would find most of
them: so the same attacks are made again by somebody who can also seal forged blocks, and the rules must find them.
"""

# ruff: noqa: E501 - the tables of attacks have one SQL statement a line
from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from typer.testing import CliRunner

from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey
from kernel.ids import derive_uuid8, new_uuid7, show_account
from kernel.postgres import EmbeddedPostgres
from ledger.__main__ import app
from ledger.export.log import NO_SALTS
from ledger.verifier import Report, layout, verify_database, verify_transaction
from ledger.verifier.database import DatabaseSource
from tests import tampering
from tests.sizes import some
from tests.verifier_world import Scheme, make_scheme


@pytest.fixture(scope="module")
def scheme(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Scheme:
    return make_scheme(postgres, tmp_path_factory.mktemp("verifier"))


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
    assert supply.vaults + supply.wallets + supply.offline == supply.circulation
    assert supply.offline == 200 - 60 - 30
    assert supply.held == 1 + 777 + 888
    proved = report.proved
    assert proved["transfers"] == report.head_seq
    assert proved["blocks"] == report.head_block
    assert proved["digests"] == 4 * proved["blocks"]
    assert proved["mandates"] == proved["directives"] - 1 - proved["account changes"]
    assert (proved["account changes"], proved["consents of holders"]) == (12, 3)
    assert proved["approvals of mandates"] == 2 * proved["mandates"]
    assert proved["transfers by mandate"] == 4
    assert (proved["holds placed"], proved["holds ended once"], proved["tombstones"]) == (8, 5, 2)
    assert proved["secrets"] == 2
    assert proved["instructions signed by the owner"] >= 40 + 8 + 7
    assert proved["balances in the snapshot"] == 7


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
transfer inserted at the end  | I4 seq beyond       | INSERT INTO transfer (id, seq, kind, debit_account, credit_account, amount_minor, hold_id, reference, submitter, booked_at) SELECT gen_random_uuid(), {beyond}, 4, {vault}, {other}, 1, NULL, NULL, 1, now()
transfer inserted in a block  | I4 seq bulk         | INSERT INTO transfer (id, seq, kind, debit_account, credit_account, amount_minor, hold_id, reference, submitter, booked_at) SELECT gen_random_uuid(), {bulk}, 4, {vault}, {other}, 1, NULL, NULL, 1, now()
transfer before the first     | I4 seq zero         | INSERT INTO transfer (id, seq, kind, debit_account, credit_account, amount_minor, hold_id, reference, submitter, booked_at) SELECT gen_random_uuid(), 0, 4, {vault}, {other}, 1, NULL, NULL, 1, now()
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
balance rewritten             | snapshot -          | UPDATE balance_page SET body = set_byte(body, 15, get_byte(body, 15) # 1) WHERE page = 0
balance of caps rewritten     | snapshot -          | UPDATE balance_page SET body = set_byte(body, 239, get_byte(body, 239) # 1) WHERE page = 0
balance's least               | snapshot -          | UPDATE balance_page SET least_available = least_available + 1
balance deleted               | snapshot -          | DELETE FROM balance_page WHERE page = 0
balance inserted              | snapshot -          | INSERT INTO balance_page SELECT 99, 0, body FROM balance_page
open hold deleted             | snapshot -          | DELETE FROM open_hold WHERE expires_at <> 0
open hold rewritten           | snapshot -          | UPDATE open_hold SET commit_hash = sha256('x') WHERE commit_hash IS NOT NULL
outstanding rewritten         | snapshot -          | UPDATE participant_balance SET outstanding = 0 WHERE participant = 1
snapshot's seq                | snapshot -          | UPDATE snapshot SET seq = seq - 1
snapshot of the future        | I4 -                | UPDATE snapshot SET block = 100000
id booked twice               | I4 -                | ALTER TABLE transfer DROP CONSTRAINT transfer_pkey; UPDATE transfer SET id = (SELECT id FROM transfer WHERE seq = {bulk}) WHERE seq = {bulk} + 1
"""


def _attacks() -> list[Any]:
    rows = [line.split(" | ", 2) for line in ATTACKS.strip().splitlines() if not line.startswith("#")]
    return [pytest.param(wanted.strip(), sql, id=name.strip()) for name, wanted, sql in rows]


@pytest.mark.parametrize(("wanted", "statement"), some(_attacks(), each=3))
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


TABLES = (
    *("block", "transfer", "evidence", "hold_event", "hold_tombstone", "account", "directive"),
    *("snapshot", "balance_page", "participant_balance", "open_hold"),
)
CHANGES = {
    "int2": "{column} + 2",
    "int4": "{column} + 100",
    "int8": "{column} + 1000000",
    "uuid": "gen_random_uuid()",
    "timestamptz": "{column} + interval '1 microsecond'",
    "bytea": "set_byte({column}, 0, get_byte({column}, 0) # 1)",
    "text": "{column} || 'x'",
    "bool": "NOT {column}",
}


@pytest.mark.parametrize("rows_each", [1, pytest.param(3, marks=pytest.mark.extended)])
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.extended
def test_every_column_of_every_row_that_the_journal_implies_is_checked(
    attacked: psycopg.Connection[Any], table: str, rows_each: int
) -> None:
    """One or three rows of each column, one after the other; and a row deleted."""
    attacked.execute("SET LOCAL search_path = public")
    for name, kind in attacked.execute(
        "SELECT conname, contype FROM pg_constraint WHERE conrelid = %s::regclass", (table,)
    ).fetchall():
        if kind == "c":
            attacked.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
    columns = attacked.execute(
        "SELECT column_name, udt_name, is_nullable FROM information_schema.columns WHERE table_name = %s", (table,)
    ).fetchall()
    assert len(columns) > 1
    missed, tried = [], 0
    for column, kind, _ in columns:
        if (table, column) == ("snapshot", "id"):
            continue  # one row, whatever it is called
        rows = attacked.execute(f"SELECT ctid::text FROM {table} WHERE {column} IS NOT NULL ORDER BY 1").fetchall()
        for (place,) in list(dict.fromkeys((rows[len(rows) // 2], rows[0], rows[-1])))[:rows_each]:
            change = CHANGES[kind].format(column=column)
            with attacked.transaction(force_rollback=True):
                attacked.execute(f"UPDATE {table} SET {column} = {change} WHERE ctid = %s::tid", (place,))
                tried += 1
                if verify_transaction(attacked).is_whole:
                    missed.append((column, place))
    if table != "snapshot":  # without one there is nothing to compare
        with attacked.transaction(force_rollback=True):
            attacked.execute(f"DELETE FROM {table} WHERE ctid = (SELECT min(ctid) FROM {table})")
            assert not verify_transaction(attacked).is_whole
    assert missed == []
    assert tried >= len(columns) - 1


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
closed account is credited     | freeze after | UPDATE transfer SET credit_account = {closed} WHERE seq = {after}
suspended account pays         | freeze suspended | UPDATE transfer SET kind = 3, debit_account = {small}, credit_account = {vault} WHERE seq = {suspended}
purse loaded by its bank       | I8 funded    | DELETE FROM evidence WHERE seq = {funded}
purse redeemed by another      | I8 redeemed  | UPDATE transfer SET submitter = 2 WHERE seq = {redeemed}
purse's loss to a wallet       | I1 lost      | UPDATE transfer SET credit_account = {wallet} WHERE seq = {lost}
escrow pays like a wallet      | I1 redeemed  | UPDATE transfer SET kind = 4 WHERE seq = {redeemed}
frozen account pays            | freeze -     | UPDATE transfer SET kind = 6, credit_account = {small}, debit_account = {vault}, submitter = 1 WHERE seq = {adjustment}
"""


def _forgeries() -> list[Any]:
    rows = [line.split(" | ", 2) for line in FORGERIES.strip().splitlines() if not line.startswith("#")]
    return [pytest.param(wanted.strip(), sql, id=name.strip()) for name, wanted, sql in rows]


@pytest.mark.parametrize(("wanted", "statement"), some(_forgeries(), each=2))
def test_a_forger_who_can_seal_blocks_is_caught_by_the_rules(
    scheme: Scheme, attacked: psycopg.Connection[Any], tmp_path: Path, wanted: str, statement: str
) -> None:
    places = {**scheme.seqs, **scheme.accounts}
    places["void"] = places["post"] + 2
    places["expiring"] = places["post"] + 3
    for place, value in places.items():
        statement = statement.replace(f"{{{place}}}", str(value))
    assert attacked.execute(statement).rowcount == 1
    attacked.execute("DELETE FROM snapshot")
    _reseal(attacked, tmp_path / "resealed")
    report = verify_transaction(attacked)
    kind, _, where = wanted.partition(" ")
    found = [finding for finding in report.findings if finding.rule == kind]
    assert not [finding for finding in report.findings if finding.rule == "I4"], report.findings
    assert found, report.findings
    if where.strip() != "-":
        assert found[0].seq == places[where.strip()], report.findings


def _reseal(connection: psycopg.Connection[Any], directory: Path) -> None:
    """Compute every digest and hash anew, as an attacker with the whole database could."""
    source = DatabaseSource(connection, directory, NO_SALTS)
    list(source.grow())
    journal = tampering.read(source)
    tampering.reseal(journal)
    columns = (*tampering.DIGESTS, "hash", "issued", "redeemed", "vaults", "wallets", "offline", "held")
    assignments = ", ".join(f"{name} = %({name})s" for name in columns)
    connection.execute("ALTER TABLE block DROP CONSTRAINT block_i2")
    for block in journal.tables["block"]:
        connection.execute(f"UPDATE block SET {assignments} WHERE number = %(number)s", block)


@pytest.mark.parametrize(
    "forged", ["one approver twice", "the maker approves", "too few", "outsider", "another action"]
)
def test_a_forged_mandate_is_caught_even_when_sealed(
    attacked: psycopg.Connection[Any], tmp_path: Path, forged: str
) -> None:
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
    _reseal(attacked, tmp_path / "resealed")
    report = verify_transaction(attacked)
    assert report.findings[0].rule == "I8", report.findings
    assert f"directive {number}" in report.findings[0].message


CHANGED = {"add": "add-holder-key", "remove": "remove-holder-key", "replace": "replace-holder-key"}


@pytest.mark.parametrize(
    ("forged", "says"),
    [
        ("consent dropped", "without the holder's consent"),
        ("consent of another change", "not of a current holder key"),
        ("consent of a stranger", "not of a current holder key"),
        ("another participant's signature", "the header's kid is not the key's"),
        ("nobody's objection", "without the holder's consent"),
        ("class of another text", "the signature does not verify"),
        ("acts twice", "has changed an account before"),
        ("acts under another id", "names another change"),
        ("taken before its time", "before its 3600 s of waiting"),
        ("never announced", "without announcement"),
        ("added to a full account", "the key was the account's before"),
        ("closed with money", "with a balance"),
    ],
)
def test_a_forged_account_change_is_caught_even_when_sealed(
    scheme: Scheme, attacked: psycopg.Connection[Any], tmp_path: Path, forged: str, says: str
) -> None:
    """As somebody with the whole database could write it, who has no key (or, in the last ones, no right)."""
    rows = attacked.execute("SELECT number, mandate_id, body FROM directive ORDER BY number").fetchall()
    bodies = {number: json.loads(body) for number, _, body in rows}
    orders = {number: order for number, order, _ in rows}
    changes = {
        number: json.loads(jws.peek_payload(body.get("change", body.get("consent"))))["change"]["change"]
        for number, body in bodies.items()
        if body["kind"] == "account-change"
    }
    (added,), (removed,), (replaced,), (objected,), (classed,), (closed,) = (
        [number for number, name in changes.items() if name == wanted]
        for wanted in (*CHANGED.values(), "object-to-key", "set-rule-class", "close")
    )
    stranger, number = PrivateKey.generate(), added
    if forged == "consent dropped":
        del bodies[added]["consent"]
    elif forged == "consent of another change":
        bodies[added]["consent"] = bodies[removed]["consent"]
    elif forged == "consent of a stranger":
        payload = jws.peek_payload(bodies[added]["consent"])
        bodies[added]["consent"] = jws.sign(payload, stranger, typ="jiaozi-account-consent+jws")
    elif forged == "another participant's signature":
        payload = jws.peek_payload(bodies[added]["change"])
        bodies[added]["change"] = jws.sign(payload, stranger, typ="jiaozi-account-change+jws")
    elif forged == "nobody's objection":
        number, bodies[objected] = objected, {"kind": "account-change", "change": bodies[objected]["consent"]}
        says = "the participant signs every change"
    elif forged == "class of another text":
        header, _, signature = bodies[classed]["change"].split(".")
        payload = jws.peek_payload(bodies[classed]["change"]).replace(b'"none"', b'"small"')
        text = base64.urlsafe_b64encode(payload).decode().rstrip("=")
        number, bodies[classed]["change"] = classed, f"{header}.{text}.{signature}"
    elif forged == "acts twice":
        number = removed
        bodies[removed], orders[removed] = bodies[added], orders[added]
        attacked.execute("ALTER TABLE directive DROP CONSTRAINT directive_mandate_id_key")
    elif forged == "acts under another id":
        orders[added] = uuid4()
    elif forged == "taken before its time":
        number, bodies[1]["key_recovery_seconds"] = replaced, 3600
    elif forged == "never announced":
        number = replaced
        for other, name in changes.items():
            if name == "announce-holder-key":
                bodies[other], orders[other] = bodies[objected], orders[objected]
        attacked.execute("ALTER TABLE directive DROP CONSTRAINT directive_mandate_id_key")
    elif forged == "added to a full account":
        number = removed
        again = json.loads(jws.peek_payload(bodies[added]["change"])) | {"id": f"chg_{(own := new_uuid7())}"}
        payload = jws.canonical_json(again)
        consent = jws.sign(payload, scheme.keys["wallet"], typ="jiaozi-account-consent+jws")
        change = jws.sign(payload, scheme.keys["bank"], typ="jiaozi-account-change+jws")
        bodies[removed] = {"kind": "account-change", "change": change, "consent": consent}
        orders[removed] = derive_uuid8(own, "account-change")
    else:
        number = closed
        again = json.loads(jws.peek_payload(bodies[closed]["change"]))
        again |= {"id": f"chg_{(own := new_uuid7())}"}
        again["change"]["account"] = show_account(scheme.accounts["wallet"])
        change = jws.sign(jws.canonical_json(again), scheme.keys["bank"], typ="jiaozi-account-change+jws")
        bodies[closed], orders[closed] = (
            {"kind": "account-change", "change": change},
            derive_uuid8(own, "account-change"),
        )
    for place, body in bodies.items():
        attacked.execute(
            "UPDATE directive SET body = %s, mandate_id = %s WHERE number = %s",
            (jws.canonical_json(body), orders[place], place),
        )
    attacked.execute("DELETE FROM snapshot")
    _reseal(attacked, tmp_path / "resealed")
    report = verify_transaction(attacked)
    found = [finding for finding in report.findings if f"directive {number}:" in finding.message]
    assert found and found[0].rule == "I8", report.findings
    assert says in found[0].message


@pytest.mark.parametrize(
    ("change", "rule", "says"),
    [
        ({"balance_max_minor": "10"}, "I9", "by its own cap at most 10"),
        ({"balance_max_minor": "-10"}, "I8", "no number"),
        ({"version": "1"}, "I8", "no number"),
        ({"account": "vault"}, "I8", "no wallet"),
    ],
)
def test_credits_above_a_wallets_own_cap_are_caught_even_when_sealed(
    scheme: Scheme, attacked: psycopg.Connection[Any], tmp_path: Path, change: dict[str, str], rule: str, says: str
) -> None:
    """As an engine that does not keep a cap would have them in its journal; and caps that no ledger takes."""
    rows = attacked.execute("SELECT number, body FROM directive WHERE convert_from(body, 'UTF8') LIKE '%change%'")
    for number, body in rows.fetchall():
        document = jws_document(body)
        said = json.loads(jws.peek_payload(document.get("change") or "e30.e30.e30"))
        if said.get("change", {}).get("change") == "set-balance-cap":
            said["change"] |= {
                name: show_account(scheme.accounts["vault"]) if value == "vault" else value
                for name, value in change.items()
            }
            token = jws.sign(jws.canonical_json(said), scheme.keys["bank"], typ="jiaozi-account-change+jws")
            fresh = jws.canonical_json({"kind": "account-change", "change": token})
            attacked.execute("UPDATE directive SET body = %s WHERE number = %s", (fresh, number))
    attacked.execute("DELETE FROM snapshot")
    _reseal(attacked, tmp_path / "resealed")
    found = [finding for finding in verify_transaction(attacked).findings if says in finding.message]
    assert {finding.rule for finding in found} == {rule}


def test_a_payment_by_a_removed_key_is_caught_even_when_sealed(
    scheme: Scheme, attacked: psycopg.Connection[Any], tmp_path: Path
) -> None:
    """The tablet was the wallet's; its signature holds for what it paid then, and for nothing later."""
    late = scheme.seqs["late"]
    rows = attacked.execute("SELECT body FROM evidence WHERE seq = %s", (late,)).fetchall()
    payload = jws.peek_payload(rows[0][0].decode())
    token = jws.sign(payload, scheme.keys["tablet"], typ="jiaozi-instruction+jws")
    attacked.execute("UPDATE evidence SET body = %s WHERE seq = %s", (token.encode(), late))
    attacked.execute("DELETE FROM snapshot")
    _reseal(attacked, tmp_path / "resealed")
    found = [finding for finding in verify_transaction(attacked).findings if finding.rule == "I8"]
    assert [finding.seq for finding in found] == [late]


def jws_document(body: bytes) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(body)
    return document


def test_a_cut_tail_is_seen_by_the_checkpoints_left_or_an_anchor_from_outside(
    scheme: Scheme, attacked: psycopg.Connection[Any]
) -> None:
    before = verify_transaction(attacked)
    anchor = (before.head_block, before.head_hash)
    assert verify_transaction(attacked, anchor=anchor).is_whole
    attacked.execute("DELETE FROM transfer WHERE seq = %s", (scheme.seqs["tail"],))
    attacked.execute("DELETE FROM block WHERE number = %s", (before.head_block,))
    by_checkpoint = verify_transaction(attacked).findings
    assert {finding.rule for finding in by_checkpoint} == {"log"}, by_checkpoint
    attacked.execute("DELETE FROM log_checkpoint WHERE block >= %s", (before.head_block,))
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


@pytest.mark.parametrize("processes", [0, 2])
def test_a_database_read_in_many_segments_is_verified_the_same(
    postgres: EmbeddedPostgres, scheme: Scheme, attacked: psycopg.Connection[Any], processes: int
) -> None:
    """Segments are removed as they are done with; an id that comes again is read from the database once more."""
    whole = verify_transaction(attacked)
    parts = verify_transaction(attacked, segment_transfers=25, processes=processes)
    assert parts.findings == []
    wanted = whole.to_dict() | {"proved": {**whole.to_dict()["proved"], "files": parts.proved["files"]}}
    assert parts.to_dict() == wanted
    attacked.execute("ALTER TABLE transfer DROP CONSTRAINT transfer_pkey")
    first, again = scheme.seqs["bulk"], scheme.seqs["tail"]
    attacked.execute("UPDATE transfer SET id = (SELECT id FROM transfer WHERE seq = %s) WHERE seq = %s", (first, again))
    report = verify_transaction(attacked, segment_transfers=25, processes=processes)
    assert [(finding.rule, finding.seq) for finding in report.findings if finding.rule == "I7"] == [("I7", again)]
    assert f"seq {first}" in next(finding.message for finding in report.findings if finding.rule == "I7")


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
