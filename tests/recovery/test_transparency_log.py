"""Goal: whatever is killed or altered, the log is one history: what was sealed stays sealed, nothing is sealed twice,
and a ledger that rewrites or rolls back is found out, by itself at its start or by its witnesses.

Method: real ledgers with their sealer's processes, which are killed under load; rows, tiles and checkpoints changed by
the database's owner; databases copied, so that one ledger lives two lives.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import io
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
import psycopg
import pytest
from psycopg import sql

from kernel.client import ProblemResponse
from kernel.clock import system_clock
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.postgres import EmbeddedPostgres
from kernel.server import make_server
from kernel.transparency.checkpoints import SIZE_MEDIA_TYPE, Checkpoint, open_checkpoint
from kernel.transparency.merkle import verify_consistency
from kernel.transparency.notes import KeyKind, Note, VerifierKey, sign_text
from kernel.transparency.tiles import TiledTree
from kernel.transparency.witness import create
from ledger.api.service import LedgerNotReady, start_service
from ledger.client import verify_receipt
from ledger.log import feed, incidents, process, queries, witnesses
from ledger.log.feed import LogTask
from ledger.log.keys import load
from ledger.log.sealer import LogBroken, Sealed, Sealer, WasSealedElsewhere, read_range
from ledger.log.tables import log_cosignature
from ledger.log.witnesses import WitnessAway, WitnessPusher, WitnessRefused
from ledger.store.journal import BLOCK_COLUMNS, Deposed, Journal, header_of
from ledger.verifier import Known, verify_database
from tests.commands import Done, run_here
from tests.conftest import _administer, _fresh_name
from tests.faults.processes import LedgerProcess, wait_until_serving
from tests.ledger_world import LedgerWorld, free_port, make_world, serving
from tests.log_world import BANK, SEAL_SECONDS, Scene, given_log_key, module_database, read_over_http, scene_on
from tests.roles import as_service, dsn


def sealer_pid() -> int | None:
    """Of the one ledger that this test runs in this process."""
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if "ledger.log.process" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                return int(child.pid)
    return None


def await_health(world: LedgerWorld, wanted: str) -> str:
    deadline = time.monotonic() + 30
    while True:
        answer = httpx.get(f"{world.url}/healthz")
        if answer.status_code == 503 and wanted in answer.text:
            return str(answer.json()["detail"])
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.05)


def checkpoints_of(database_url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn(database_url)) as connection:
        return connection.execute(
            "SELECT size, previous_size, root, note, block, previous_block FROM log_checkpoint ORDER BY block"
        ).fetchall()


def sealer_on(scene: Scene, directory: Path, holder: str = "") -> tuple[Sealer, Database]:
    """A sealer of the scene's log in this process."""
    database = Database(as_service(scene.database_url), application_name="test")
    keys = load("test-cny", directory / "log-test-cny.pem", directory / "log-test-cny.salt")
    return Sealer(database, keys, ledger="test-cny", currency="CNY", holder=holder, clock=system_clock), database


def check_history(scene: Scene, known: list[Checkpoint]) -> Checkpoint:
    """Every checkpoint in the table is the beginning of the newest, and so is every one that was seen before."""
    rows = checkpoints_of(scene.database_url)
    assert [row[1] for row in rows] == [-1, *(row[0] for row in rows[:-1])]
    assert [row[5] for row in rows] == [0, *(row[4] for row in rows[:-1])]
    newest = open_checkpoint(rows[-1][3], log_key=scene.log_key).checkpoint
    database = Database(as_service(scene.database_url), application_name="test")
    with database.transaction(isolation="REPEATABLE READ") as connection:
        tree = TiledTree(newest.size, queries.tile_reader(connection))
        assert tree.root() == newest.root
        sealed = [open_checkpoint(row[3], log_key=scene.log_key).checkpoint for row in rows]
        for older in [*sealed, *known]:
            assert verify_consistency(
                old_size=older.size,
                old_root=older.root,
                new_size=newest.size,
                new_root=newest.root,
                proof=tree.consistency_proof(older.size),
            )
        blocks = {row[4]: row[0] for row in rows}
        ends = connection.exec_driver_sql("SELECT number, first_seq + transfer_count - 1 FROM block").all()
        assert blocks == {number: end for number, end in ends if number in blocks}  # sizes are block boundaries
    database.close()
    return newest


@pytest.mark.extended
@pytest.mark.parametrize("kills", [2, 6])
def test_a_sealer_killed_again_and_again_seals_one_history(
    fresh_database: Callable[[str], str], tmp_path: Path, kills: int
) -> None:
    with scene_on(fresh_database("ledger"), tmp_path) as scene:
        seen: list[Checkpoint] = []
        for number in range(kills):
            last = 0
            for _ in range(4):
                last = scene.pay_binary(700 + 13 * number)
                if number % 2:
                    time.sleep(0.02 * number)
            pid = sealer_pid()
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with suppress(AssertionError):
                seen.append(open_checkpoint(scene.await_sealed(1), log_key=scene.log_key).checkpoint)
        last = scene.pay_binary(100)
        note = scene.await_sealed(last)
        assert httpx.get(f"{scene.world.url}/healthz").status_code == 200
        newest = check_history(scene, [*seen, open_checkpoint(note, log_key=scene.log_key).checkpoint])
        assert newest.size == last
        tree = TiledTree(newest.size, read_over_http(scene.world.url))
        assert tree.root() == newest.root
    sealer, database = sealer_on(scene, tmp_path)
    assert sealer.check_all() == newest
    sealer.close()
    database.close()


@pytest.mark.extended
@pytest.mark.timeout(240)
def test_a_ledger_killed_whole_leaves_one_history(fresh_database: Callable[[str], str], tmp_path: Path) -> None:
    """SIGKILL of the ledger's process under load: its sealer ends by itself, the next one's goes on."""
    log_key = given_log_key(tmp_path)
    url = fresh_database("ledger")
    world = make_world(url, tmp_path, lease_seconds=2)
    seen: list[Checkpoint] = []
    scene = Scene(world, log_key, [], url, 0, 0, 0, PrivateKey.generate())
    for number in range(2):
        extra = {"JIAOZI_LEDGER_LOG_SEAL_SECONDS": str(SEAL_SECONDS)}
        with LedgerProcess(world, tmp_path / "ledger.log", extra=extra) as process:
            wait_until_serving(world)
            if number == 0:
                world.register(BANK)
                scene.payer, scene.payee = world.open_vault(BANK), world.open_vault(BANK)
                world.issue(scene.payer, 10**9)
            last = 0
            for _ in range(3 + number):
                last = scene.pay_binary(1000 + 17 * number)
            seen.append(open_checkpoint(scene.await_sealed(1), log_key=log_key).checkpoint)
            sealers = [child.pid for child in psutil.Process(process.pid).children()]
            process.signal(signal.SIGKILL)
            process.ended(20)
        deadline = time.monotonic() + 20
        while any(psutil.pid_exists(pid) for pid in sealers):
            assert time.monotonic() < deadline, "a sealer outlived its ledger"
            time.sleep(0.02)
    with serving(world):
        assert Checkpoint.parse(Note.parse(scene.await_sealed(last)).text).size == last
    check_history(scene, seen)


def test_a_restarted_ledger_goes_on_with_the_same_log(fresh_database: Callable[[str], str], tmp_path: Path) -> None:
    with scene_on(fresh_database("ledger"), tmp_path) as scene:
        result = scene.pay(30)[7]
        document = scene.receipt(result)
        before = open_checkpoint(scene.await_sealed(result.seq or 0), log_key=scene.log_key).checkpoint
    closed = checkpoints_of(scene.database_url)
    with serving(scene.world):
        scene.pay(5)
        scene.await_sealed(closed[-1][0] + 5)
        again = scene.receipt(result)
    check_history(scene, [before])
    for item in (document, again):
        assert verify_receipt(item, log_key=scene.log_key).receipt.transfer.seq == result.seq
    assert document != again


def test_what_was_not_sealed_before_a_stop_is_sealed_on_the_way_out(
    fresh_database: Callable[[str], str], tmp_path: Path
) -> None:
    world = make_world(fresh_database("ledger"), tmp_path, log_seal_seconds=60)
    with serving(world):
        world.register(BANK)
        vault = world.open_vault(BANK)
        world.issue(vault, 1000)
        other = world.open_vault(BANK)
        deadline = time.monotonic() + 20
        with world.client(BANK) as client:
            while not client.checkpoints():  # the next one comes a minute later
                assert time.monotonic() < deadline
                time.sleep(0.02)
            client.transfer(world.terms("payment", vault, other, 1))
            assert client.log().size < 2
    assert checkpoints_of(str(world.settings.database_url))[-1][0] == 2


# --- blocks without transfers ----------------------------------------------------------------------------------------


def newest_blocks(scene: Scene) -> tuple[int, int]:
    """(of the last checkpoint, of the journal)"""
    with scene.owner() as connection:
        row = connection.execute("SELECT (SELECT max(block) FROM log_checkpoint), max(number) FROM block").fetchone()
    assert row is not None
    return row[0], row[1]


def await_all_sealed(scene: Scene) -> int:
    deadline = time.monotonic() + 20
    while len(set(newest_blocks(scene))) != 1:
        assert time.monotonic() < deadline, newest_blocks(scene)
        time.sleep(0.02)
    return newest_blocks(scene)[0]


@pytest.mark.extended
def test_blocks_without_transfers_are_sealed_and_an_idle_ledger_seals_nothing(
    fresh_database: Callable[[str], str], tmp_path: Path
) -> None:
    """Account openings after the last transfer: of the same size, each under a later block, cosigned anew; dropping
    them from the database is found."""
    url = fresh_database("ledger")
    with scene_on(url, tmp_path, witnesses=1) as scene:
        last = scene.pay(3)[-1].seq or 0
        scene.await_sealed(last, cosignatures=1)
        before = await_all_sealed(scene)
        for _ in range(3):
            scene.world.open_vault(BANK)
            assert await_all_sealed(scene) > before
            time.sleep(3 * SEAL_SECONDS)
        of_one_size = [row for row in checkpoints_of(url) if row[0] == last]
        assert len(of_one_size) >= 4
        assert len({row[2] for row in of_one_size}) == 1
        deadline = time.monotonic() + 20
        while True:
            note = scene.await_sealed(last)
            if open_checkpoint(note, log_key=scene.log_key, witnesses=[scene.witnesses[0].key]).cosigned:
                break
            assert time.monotonic() < deadline, "the newest of the size is not cosigned"
            time.sleep(0.02)
        assert Checkpoint.parse(Note.parse(note).text).extension("block") == [
            str(of_one_size[-1][4]),
            note.split("\n")[3].split(" ")[2],
        ]
        count = len(checkpoints_of(url))
        time.sleep(10 * SEAL_SECONDS + 1)
        assert len(checkpoints_of(url)) == count, "an idle ledger sealed"
        tree = TiledTree(last, read_over_http(scene.world.url))  # the tails of one size are not counted twice
        assert tree.root() == of_one_size[-1][2]
        last = scene.pay(2)[-1].seq or 0
        scene.await_sealed(last, cosignatures=1)
        check_history(scene, [])
        scene.world.open_vault(BANK)
        await_all_sealed(scene)
    sealer, database = sealer_on(scene, tmp_path)
    assert sealer.check_all().size == last
    sealer.close()
    database.close()
    assert verify_database(url, known=Known(log_key=scene.log_key)).findings == []
    with scene.owner() as connection:
        connection.execute("DELETE FROM account WHERE number = (SELECT max(number) FROM account)")
        connection.execute("DELETE FROM block WHERE number = (SELECT max(number) FROM block)")
        connection.execute("UPDATE snapshot SET block = (SELECT max(number) FROM block)")
    findings = verify_database(url, known=Known(log_key=scene.log_key)).findings
    assert any("which it names, is not there" in finding.message for finding in findings), findings


@pytest.mark.extended
def test_a_checkpoint_of_the_same_size_with_another_root_is_found(sealed: tuple[Scene, Path]) -> None:
    scene, directory = sealed
    keys = load("test-cny", directory / "log-test-cny.pem", directory / "log-test-cny.salt")
    with copied(scene.database_url, _fresh_name()) as url, psycopg.connect(dsn(url), autocommit=True) as connection:
        row = connection.execute("SELECT block, size, note FROM log_checkpoint ORDER BY block DESC").fetchone()
        assert row is not None
        first = Checkpoint.parse(Note.parse(row[2]).text)
        for root, block, message in (
            (bytes(32), row[0], "with another root"),
            (first.root, row[0], f"it names block {row[0]}, and one before it block {row[0]}"),
            (first.root, row[0] + 1, "which it names, is not there"),
        ):
            lines = (first.extensions[0].replace(f" {row[0]} ", f" {block} "), first.extensions[1])
            text = Checkpoint(first.origin, first.size, root, lines).text
            note = str(Note(text, (sign_text(text, name="test-cny", key=keys.signing),)))
            connection.execute(
                "INSERT INTO log_checkpoint SELECT block + 1, block, size, size, root, block_commitment, '', supply,"
                " %s, sealed_at FROM log_checkpoint WHERE block = %s",
                (note, row[0]),
            )
            findings = verify_database(url, known=Known(log_key=scene.log_key)).findings
            assert any(message in finding.message for finding in findings), (message, findings)
            connection.execute("DELETE FROM log_checkpoint WHERE block = %s", (row[0] + 1,))


# --- a database that was altered -------------------------------------------------------------------------------------

ALTERATIONS = {
    "a transfer of the last block": (
        "UPDATE transfer SET amount_minor = amount_minor + 1 WHERE seq = (SELECT max(seq) FROM transfer)",
        "transfers|seq",
    ),
    "a transfer of an older block": ("UPDATE transfer SET amount_minor = amount_minor + 1 WHERE seq = 300", "seq 300"),
    "a transfer taken out": ("DELETE FROM transfer WHERE seq = 300", "seq"),
    "two transfers swapped": (
        "UPDATE transfer SET seq = CASE seq WHEN 300 THEN 301 ELSE 300 END WHERE seq IN (300, 301)",
        "seq 300",
    ),
    "the evidence of the issue": (
        "UPDATE evidence SET body = set_byte(body, 7, get_byte(body, 7) # 1) WHERE seq = 1",
        "seq 1",
    ),
    "a hash in a tile": (
        "UPDATE log_tile SET hashes = set_byte(hashes, 40, get_byte(hashes, 40) # 1) WHERE level = 0 AND index = 0",
        "seq 2",
    ),
    "a tile's root": (
        "UPDATE log_tile SET root = set_byte(root, 4, get_byte(root, 4) # 1) WHERE level = 0 AND index = 0",
        "another root",
    ),
    "a tile taken out": ("DELETE FROM log_tile WHERE level = 0 AND index = 0", "missing|another number"),
    "the tail of the last checkpoint": (
        "UPDATE log_checkpoint SET tail = set_byte(tail, 4, get_byte(tail, 4) # 1)"
        " WHERE size = (SELECT max(size) FROM log_checkpoint) AND tail <> ''",
        "another root",
    ),
    "the supply of the last checkpoint": (
        "UPDATE log_checkpoint SET supply = replace(convert_from(supply, 'UTF8'), '1000000000', '1000000001')::bytea"
        " WHERE size = (SELECT max(size) FROM log_checkpoint)",
        "does not say what the journal says",
    ),
    "the note of the last checkpoint": (
        "UPDATE log_checkpoint SET note = replace(note, 'block ', 'block 1')"
        " WHERE size = (SELECT max(size) FROM log_checkpoint)",
        "does not verify",
    ),
    "the totals of the last block": (
        "UPDATE block SET issued = issued + 1, vaults = vaults + 1 WHERE number = (SELECT max(number) FROM block)",
        "hash is not that of its content",
    ),
}


@pytest.mark.parametrize("case", ALTERATIONS)
def test_an_altered_database_is_found_when_the_log_is_opened(sealed: tuple[Scene, Path], case: str) -> None:
    scene, directory = sealed
    statement, message = ALTERATIONS[case]
    name = _fresh_name()
    with copied(scene.database_url, name) as url:
        with psycopg.connect(dsn(url), autocommit=True) as connection:
            assert connection.execute(statement).rowcount >= 1
        copy = Scene(**{**scene.__dict__, "database_url": url})
        sealer, database = sealer_on(copy, directory)
        with pytest.raises(LogBroken, match=message):
            sealer.open()
        sealer.close()
        database.close()


@contextmanager
def copied(database_url: str, name: str) -> Iterator[str]:
    """A copy of a database that nobody is connected to."""
    server = EmbeddedPostgres(Path(os.environ["JIAOZI_TEST_POSTGRES_DIR"]))
    source = dsn(database_url).rpartition("/")[2].partition("?")[0]
    _administer(server, sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy"), name, source)
    try:
        yield server.url(name)
    finally:
        _administer(server, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)"), name)


@pytest.fixture(scope="module")
def sealed(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Scene, Path]]:
    """A ledger with 600 transfers under several checkpoints, stopped."""
    directory = tmp_path_factory.mktemp("log")
    with module_database(postgres) as url:
        with scene_on(url, directory) as scene:
            for _ in range(6):
                scene.await_sealed(scene.pay(100)[-1].seq or 0)
        yield scene, directory


def test_the_unaltered_copy_opens(sealed: tuple[Scene, Path]) -> None:
    scene, directory = sealed
    sealer, database = sealer_on(scene, directory)
    found = sealer.open()
    assert found is not None
    assert found.size == 601
    assert sealer.check_all().size == 601
    sealer.close()
    database.close()


def test_a_ledger_on_an_altered_database_serves_and_says_that_its_log_is_broken(
    sealed: tuple[Scene, Path],
) -> None:
    scene, _ = sealed
    with copied(scene.database_url, _fresh_name()) as url:
        with psycopg.connect(dsn(url), autocommit=True) as connection:
            connection.execute("UPDATE transfer SET amount_minor = amount_minor + 1 WHERE seq = 300")
        world = LedgerWorld(
            scene.world.url,
            "test-cny",
            "CNY",
            scene.world.operators,
            scene.world.settings.model_copy(update={"database_url": as_service(url)}),
            scene.world.participants,
        )
        sizes = [row[0] for row in checkpoints_of(url)]
        with serving(world):
            detail = await_health(world, "no longer sealed")
            assert "seq 300 is not what was sealed" in detail
            with world.anonymous() as client:
                assert "seq 300" in (client.log().failure or "")
            time.sleep(4 * SEAL_SECONDS)
        assert [row[0] for row in checkpoints_of(url)] == sizes


# --- two writers -----------------------------------------------------------------------------------------------------


def test_a_deposed_ledgers_sealer_seals_nothing(sealed: tuple[Scene, Path]) -> None:
    scene, directory = sealed
    with copied(scene.database_url, _fresh_name()) as url:
        copy = Scene(**{**scene.__dict__, "database_url": url})
        with psycopg.connect(dsn(url), autocommit=True) as connection:
            newest = connection.execute("SELECT max(size) FROM log_checkpoint").fetchone()
            connection.execute("DELETE FROM log_checkpoint WHERE block = (SELECT max(block) FROM log_checkpoint)")
            connection.execute("DELETE FROM log_tile WHERE index = 1")  # it came with that checkpoint
            connection.execute("UPDATE lease SET node = 'rival'")

        def open_as(holder: str) -> tuple[Sealer, Database]:
            sealer, database = sealer_on(copy, directory, holder)
            sealer.open()
            assert sealer.catch_up()
            return sealer, database

        mine, one = open_as("mine")
        with pytest.raises(Deposed):
            mine.seal()
        first, two = open_as("rival")
        second, three = open_as("rival")
        again = first.seal()
        assert again is not None
        assert newest == (again.size,)
        with pytest.raises(WasSealedElsewhere):
            second.seal()
        second.open()
        assert second.sealed_size == again.size
        assert second.seal() is None
        for sealer in (mine, first, second):
            sealer.close()
        for database in (one, two, three):
            database.close()


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.extended
def test_keys_are_made_once_and_a_log_goes_on_with_no_others(
    fresh_database: Callable[[str], str], tmp_path: Path
) -> None:
    world = make_world(fresh_database("ledger"), tmp_path)
    key_path, salt_path = tmp_path / "log-test-cny.pem", tmp_path / "log-test-cny.salt"
    with serving(world):
        pass
    assert [path.stat().st_mode & 0o777 for path in (key_path, salt_path)] == [0o600, 0o600]
    key, salt = key_path.read_bytes(), salt_path.read_bytes()

    def refused(match: str) -> None:
        with pytest.raises(LedgerNotReady, match=match):
            start_service(world.settings)

    key_path.unlink()
    refused("goes on only with its own keys: cannot read the key file .* Restore the file")
    assert not key_path.exists()
    PrivateKey.generate().save(key_path)
    refused("the log was begun with the key test-cny")
    key_path.write_bytes(key)
    salt_path.unlink()
    refused("cannot read the salt file")
    salt_path.write_text("00" * 32)
    salt_path.chmod(0o600)
    refused("salt file is not the one")
    salt_path.write_text("zz")
    refused("hexadecimal")
    salt_path.write_bytes(salt)
    salt_path.chmod(0o644)
    refused("chmod 600")
    salt_path.chmod(0o600)
    with pytest.raises(LedgerNotReady, match="for ever"):
        start_service(world.settings.model_copy(update={"log_origin": "another"}))
    with pytest.raises(LedgerNotReady, match="witnesses file"):
        start_service(world.settings.model_copy(update={"log_witnesses_path": tmp_path / "none.json"}))
    start_service(world.settings).close()


# --- a ledger that forks ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_ledger_restored_from_an_older_database_is_refused_by_its_witnesses(
    fresh_database: Callable[[str], str], tmp_path: Path
) -> None:
    with scene_on(fresh_database("ledger"), tmp_path, witnesses=1) as scene:
        scene.await_sealed(scene.pay(50)[-1].seq or 0, cosignatures=1)
        first_life = scene.world
    # scene_on has stopped ledger and witness: the witness's memory stays in its directory
    with restored_witness(scene, tmp_path) as witness:
        settings = first_life.settings
        with copied(scene.database_url, _fresh_name()) as older:
            (tmp_path / "witnesses.json").write_text(f'[{{"url": "{witness}", "vkey": "{scene.witnesses[0].key}"}}]')
            with serving(first_life):  # the real history goes on, and is cosigned
                last = scene.pay(20)[-1].seq or 0
                scene.await_sealed(last, cosignatures=1)
            # the other life: the older database, with the right keys, and other payments
            world = LedgerWorld(
                first_life.url,
                "test-cny",
                "CNY",
                first_life.operators,
                settings.model_copy(update={"database_url": as_service(older)}),
                first_life.participants,
            )
            other = Scene(**{**scene.__dict__, "world": world, "database_url": older})
            with serving(world):
                other.await_sealed(other.pay(1)[-1].seq or 0)
                detail = await_health(world, "witness refused: fork")
                assert "an older database" in detail
                other.await_sealed(other.pay(100, amount=9)[-1].seq or 0)
                detail = await_health(world, "does not contain what it has seen")
                with world.anonymous() as client:
                    assert "witness refused: fork" in (client.log().failure or "")
                    newest = open_checkpoint(
                        client.checkpoint(), log_key=scene.log_key, witnesses=[scene.witnesses[0].key]
                    )
                assert newest.cosigned == ()  # sealing goes on, cosigned by nobody
                with psycopg.connect(dsn(older)) as connection:
                    noted = connection.execute("SELECT witness FROM log_incident").fetchall()
                # one incident, however often it refuses; an operator says what it was, and serves again
                assert [item[0] for item in noted] == [str(scene.witnesses[0].key)]
                acknowledge_the_fork(world, str(scene.witnesses[0].key))
                other.await_sealed(other.pay(5)[-1].seq or 0)
                time.sleep(witnesses.REFUSED_RETRY_SECONDS_MAX + 1)  # it has refused that one too
                assert httpx.get(f"{world.url}/healthz").status_code == 200
            with serving(world):  # and after a restart
                other.await_sealed(other.pay(5)[-1].seq or 0)
                await_refused_again(older)
                assert httpx.get(f"{world.url}/healthz").status_code == 200


def acknowledge_the_fork(world: LedgerWorld, witness: str) -> None:
    reason = "restored from the backup of 23 November: 20 payments are booked again by hand; case 2026-77"
    with world.anonymous() as client:
        (incident,) = client.incidents()
        assert (incident.witness, incident.is_open, incident.reason) == (witness, True, None)
        assert "an older database" in incident.detail
        assert refusal_of(client.acknowledge_incident, witness, incident.block, reason=reason) == "signature-missing"
    with world.client(BANK) as client:
        assert refusal_of(client.acknowledge_incident, witness, incident.block, reason=reason) == "not-permitted"
    shown = command("incidents", "--url", world.url)
    assert (shown.returncode, "OPEN" in shown.stdout, witness in shown.stdout) == (1, True, True)
    with world.operator() as client:
        assert refusal_of(client.acknowledge_incident, witness, 10**6, reason=reason) == "incident-not-found"
        done = client.acknowledge_incident(witness, incident.block, reason=reason)
        assert client.acknowledge_incident(witness, incident.block, reason=reason) == done
        other = "it was nothing"
        assert refusal_of(client.acknowledge_incident, witness, incident.block, reason=other) == "incident-acknowledged"
    with world.operator(1) as client:
        assert (
            refusal_of(client.acknowledge_incident, witness, incident.block, reason=reason) == "incident-acknowledged"
        )
    deadline = time.monotonic() + 20
    while httpx.get(f"{world.url}/healthz").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    shown = command("incidents", "--url", world.url)
    assert (shown.returncode, "acknowledged" in shown.stdout, reason in shown.stdout) == (0, True, True)
    with world.anonymous() as client:
        (incident,) = client.incidents()
        assert (incident.is_open, incident.reason) == (True, reason)


def await_refused_again(url: str) -> None:
    """The pusher of the new process has seen the witness refuse: it looks for an open incident, and writes no other."""
    time.sleep(3.0)
    with psycopg.connect(dsn(url)) as connection:
        assert connection.execute("SELECT count(*) FROM log_incident").fetchone() == (1,)


def refusal_of(call: Callable[..., object], *arguments: object, **named: object) -> str:
    with pytest.raises(ProblemResponse) as caught:
        call(*arguments, **named)
    return caught.value.refusal


def command(*arguments: str) -> Done:
    return run_here("ledger", *arguments)


def test_an_acknowledgement_covers_one_incident_and_not_the_next(fresh_database: Callable[[str], str]) -> None:
    """Refused, acknowledged, refused again (the same incident), cosigned, refused: a new one."""
    database = Database(as_service(fresh_database("ledger")), application_name="test")

    def refuse(block: int) -> tuple[int, bool]:
        with database.transaction(isolation="READ COMMITTED") as connection:
            found = incidents.note_refusal(connection, "w1", block=block, size=block, detail="fork", now=system_clock())
        assert found is not None
        return found.block, found.reason is not None

    def cosign(block: int) -> None:
        row = {"block": block, "witness": "w1", "line": "x", "received_at": system_clock()}
        with database.transaction(isolation="READ COMMITTED") as connection:
            connection.execute(log_cosignature.insert().values(**row))

    try:
        assert refuse(5) == (5, False)
        assert refuse(6) == (5, False)
        with database.transaction(isolation="READ COMMITTED") as connection:
            incidents.acknowledge(connection, "w1", 5, operator="o", reason="mended", now=system_clock())
            other = incidents.note_refusal(connection, "w2", block=5, size=5, detail="fork", now=system_clock())
            assert other is not None
            assert other.reason is None
        assert refuse(7) == (5, True)
        cosign(8)
        with database.transaction(isolation="READ COMMITTED") as connection:
            assert incidents.open_incident(connection, "w1") is None
        assert refuse(9) == (9, False)
        with database.transaction(isolation="READ COMMITTED") as connection:
            assert [item.block for item in incidents.list_incidents(connection, before=None, limit=2)] == [9, 5]
            assert [item.block for item in incidents.list_incidents(connection, before=(5, "w2"), limit=9)] == [5]
    finally:
        database.close()


# --- a sealer that hangs ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sealer_that_hangs_is_noticed_and_started_again(
    fresh_database: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP: it lives, and does nothing. The ledger goes on meanwhile, and the log catches up."""
    with scene_on(fresh_database("ledger"), tmp_path) as scene:
        scene.await_sealed(scene.pay(5)[-1].seq or 0)
        first = sealer_pid()
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        last = scene.pay(5)[-1].seq or 0
        with monkeypatch.context() as patch:
            patch.setattr(feed, "HUNG_SECONDS_MAX", 2.0)
            deadline = time.monotonic() + 20
            while psutil.pid_exists(first) and sealer_pid() == first:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        scene.await_sealed(last)
        assert sealer_pid() != first
        assert httpx.get(f"{scene.world.url}/healthz").status_code == 200
        second = sealer_pid()
        monkeypatch.setattr(feed, "HUNG_SECONDS_MAX", 8.0)
        time.sleep(11)  # idle, it beats all the same
        assert sealer_pid() == second


@contextmanager
def restored_witness(scene: Scene, directory: Path) -> Iterator[str]:
    """The scene's witness again, on its own memory."""
    port = free_port()
    server = make_server(create(scene.witnesses[0].witness), port=port, log_level="warning")
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)


@pytest.mark.extended
def test_a_rewritten_row_that_is_sealed_anew_is_refused_by_the_witness(
    fresh_database: Callable[[str], str], tmp_path: Path
) -> None:
    """The operator himself rewrites a payment, its block, and the whole log, with the real keys."""
    with scene_on(fresh_database("ledger"), tmp_path, witnesses=1) as scene:
        scene.await_sealed(scene.pay(50)[-1].seq or 0, cosignatures=1)
    rewrite_history(scene, seq=20)
    with restored_witness(scene, tmp_path) as witness:
        (tmp_path / "witnesses.json").write_text(f'[{{"url": "{witness}", "vkey": "{scene.witnesses[0].key}"}}]')
        with serving(scene.world):
            last = scene.pay(5)[-1].seq or 0
            note = scene.await_sealed(last)
            open_checkpoint(note, log_key=scene.log_key)  # without a witness nobody could tell
            await_health(scene.world, "witness refused: fork")
            with pytest.raises(ValueError, match="1 are asked for"):
                open_checkpoint(note, log_key=scene.log_key, witnesses=[scene.witnesses[0].key], quorum=1)


def rewrite_history(scene: Scene, *, seq: int) -> None:
    """What an operator with all keys but his witnesses' can do: another amount at `seq`, every block header after it
    hashed anew, and the log begun again."""
    database = Database(scene.database_url, application_name="test")
    with scene.owner() as connection:
        connection.execute("DELETE FROM log_tile")
        connection.execute("DELETE FROM log_checkpoint")
        connection.execute("DELETE FROM log_cosignature")
        connection.execute("UPDATE transfer SET reference = gen_random_uuid() WHERE seq = %s", [seq])
        rows = connection.execute(f"SELECT {BLOCK_COLUMNS} FROM block ORDER BY number").fetchall()
    previous = bytes(32)
    with database.raw(isolation="READ COMMITTED") as raw:
        for row in rows:
            header = header_of(row)
            first, last = header.first_seq, header.first_seq + header.transfer_count - 1
            digest = header.transfers_digest
            if header.transfer_count:
                records, _ = read_range(raw, first, last)
                digest = hashlib.sha256(records.tobytes()).digest()
            header = dataclasses.replace(header, transfers_digest=digest, previous_hash=previous)
            previous = header.hash
            raw.execute(
                "UPDATE block SET transfers_digest = %s, previous_hash = %s, hash = %s WHERE number = %s",
                (digest, header.previous_hash, header.hash, header.number),
            )
            raw.commit()
        assert Journal(raw).last_block() is not None
    database.close()


def test_a_conflict_at_the_size_cosigned_last_is_a_fork_and_no_absence(sealed: tuple[Scene, Path]) -> None:
    """C2SP tlog-witness: a witness that has cosigned another root of the same size answers 409, with any body."""
    scene, directory = sealed
    answer: dict[str, Any] = {}

    class Stub(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(409)
            if answer["type"]:
                self.send_header("content-type", answer["type"])
            self.send_header("content-length", str(len(answer["body"])))
            self.end_headers()
            self.wfile.write(answer["body"])

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    key = VerifierKey("w.example", KeyKind.COSIGNATURE_V1, PrivateKey.generate().public)
    sealer, database = sealer_on(scene, directory)
    newest = sealer.open()
    assert newest is not None
    sealer.close()

    def push(checkpoint: Sealed, body: bytes, media_type: str | None, *, cosigned: int) -> None:
        answer.update(type=media_type, body=body)
        pusher = WitnessPusher(database, url=f"http://127.0.0.1:{server.server_port}", key=key, tell=lambda *_: None)
        pusher._cosigned_size = cosigned
        pusher.push(checkpoint)

    size, own = newest.size, f"{newest.size}\n".encode()
    for body, media_type in ((b"", None), (own, SIZE_MEDIA_TYPE), (b"{}", "application/problem+json")):
        with pytest.raises(WitnessRefused, match="another checkpoint of size 601"):
            push(newest, body, media_type, cosigned=size)
    with pytest.raises(WitnessRefused, match="another checkpoint"):  # told the size first, then the conflict
        push(newest, own, SIZE_MEDIA_TYPE, cosigned=1)
    with pytest.raises(WitnessAway, match="without a size"):
        push(newest, b"", None, cosigned=1)
    with pytest.raises(WitnessAway, match="a size that is none"):
        push(newest, b"x", SIZE_MEDIA_TYPE, cosigned=size)
    # a checkpoint that is no longer our newest may have been overtaken by our own successor
    with pytest.raises(WitnessAway, match="meanwhile"):
        push(dataclasses.replace(newest, block=newest.block - 1), b"", None, cosigned=size)
    server.shutdown()
    server.server_close()
    database.close()


# --- a sealer that stalls or dies ------------------------------------------------------------------------------------


@pytest.mark.extended
def test_a_sealer_that_stalls_while_it_seals_does_not_hold_the_ledger(
    fresh_database: Callable[[str], str], tmp_path: Path
) -> None:
    """Stopped between its lock on the lease's row and its COMMIT, for ever as far as the ledger can tell."""
    with scene_on(fresh_database("ledger"), tmp_path) as scene:
        pid = sealer_pid()
        assert pid is not None
        scene.await_sealed(scene.pay()[0].seq or 0)
        await_all_sealed(scene)
        os.kill(pid, signal.SIGSTOP)  # its own sealer must not be quicker
        with scene.owner() as connection:
            row = connection.execute("SELECT node FROM lease").fetchone()
        assert row is not None
        sealer, database = sealer_on(scene, tmp_path, row[0])
        try:
            sealer.open()
            scene.pay()
            assert sealer.catch_up()
            is_locked, released = threading.Event(), threading.Event()

            def stall() -> None:
                is_locked.set()
                released.wait(30)
                psycopg.Connection.commit(sealer._opened())

            sealer._opened().commit = stall  # type: ignore[method-assign]
            failures: list[Exception] = []

            def seal() -> None:
                try:
                    sealer.seal()
                except Exception as error:
                    failures.append(error)

            thread = threading.Thread(target=seal, daemon=True)
            thread.start()
            assert is_locked.wait(10)
            began = time.monotonic()
            assert scene.pay()[0].seq is not None
            assert time.monotonic() - began < 6
            released.set()
            thread.join(10)
            assert [type(error) for error in failures] == [psycopg.errors.IdleInTransactionSessionTimeout]
        finally:
            os.kill(pid, signal.SIGCONT)
            sealer.close()
            database.close()
        await_all_sealed(scene)
        check_history(scene, [])


@pytest.mark.extended
def test_a_sealer_that_dies_while_the_ledger_is_idle_is_started_again(
    fresh_database: Callable[[str], str], tmp_path: Path
) -> None:
    with scene_on(fresh_database("ledger"), tmp_path) as scene:
        scene.await_sealed(1)
        pid = sealer_pid()
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        last = scene.pay_binary(10)
        time.sleep(0.3)  # it has been handed over: nothing else will come
        os.kill(pid, signal.SIGKILL)
        scene.await_sealed(last)
        assert sealer_pid() not in (None, pid)


@pytest.mark.extended
def test_the_end_of_the_input_outlasts_a_database_error(
    fresh_database: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint fails: once, and it is made by the next attempt; always, and the process ends without it."""
    with scene_on(fresh_database("ledger"), tmp_path) as scene:
        await_all_sealed(scene)
    monkeypatch.setattr(process, "IDLE_SECONDS", 0.05)
    task = LogTask(
        database_url=as_service(scene.database_url),
        origin="test-cny",
        key_path=str(tmp_path / "log-test-cny.pem"),
        salt_path=str(tmp_path / "log-test-cny.salt"),
        ledger="test-cny",
        currency="CNY",
        holder="",
        seal_seconds=1.0,
        witnesses=[],
    )
    real = Sealer.seal
    for failures, attempts in ((1, 2), (99, process.LAST_ATTEMPTS_MAX)):
        calls: list[int] = []

        def seal(sealer: Sealer, failures: int = failures, calls: list[int] = calls) -> Sealed | None:
            calls.append(1)
            if len(calls) <= failures:
                raise psycopg.OperationalError("cut")
            return real(sealer)

        monkeypatch.setattr(Sealer, "seal", seal)
        found: list[int] = []
        run = process.Process(task, io.BytesIO(), io.StringIO())
        thread = threading.Thread(target=lambda run=run, found=found: found.append(run.run()), daemon=True)
        thread.start()
        thread.join(20)
        assert (found, len(calls)) == ([0], attempts)
        run._sealer.close()
        run._database.close()


# --- the feed --------------------------------------------------------------------------------------------------------


@pytest.mark.extended
def test_slow_and_dead_witnesses_delay_nothing(fresh_database: Callable[[str], str], tmp_path: Path) -> None:
    key = given_log_key(tmp_path)
    deaf = socket.socket()
    deaf.bind(("127.0.0.1", 0))
    deaf.listen(1)  # takes the connection and never answers
    vkeys = [VerifierKey(f"w{n}.example", KeyKind.COSIGNATURE_V1, PrivateKey.generate().public) for n in range(2)]
    (tmp_path / "witnesses.json").write_text(
        f'[{{"url": "http://127.0.0.1:{deaf.getsockname()[1]}", "vkey": "{vkeys[0]}"}},'
        f' {{"url": "http://127.0.0.1:1", "vkey": "{vkeys[1]}"}}]'
    )
    world = make_world(
        fresh_database("ledger"),
        tmp_path,
        log_seal_seconds=SEAL_SECONDS,
        log_witnesses_path=tmp_path / "witnesses.json",
    )
    with serving(world):
        world.register(BANK)
        vault, other = world.open_vault(BANK), world.open_vault(BANK)
        world.issue(vault, 1000)
        scene = Scene(world, key, [], str(world.settings.database_url), vault, other, 0, PrivateKey.generate())
        for _ in range(5):
            began = time.monotonic()
            scene.await_sealed(scene.pay()[0].seq or 0)
            assert time.monotonic() - began < 5
        assert httpx.get(f"{world.url}/healthz").status_code == 200
    deaf.close()


@pytest.mark.extended
def test_a_full_queue_drops_blocks_and_the_journal_has_them(
    fresh_database: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "QUEUE_BLOCKS_MAX", 1)
    monkeypatch.setattr(feed, "PIPE_BYTES", 4096)
    with scene_on(fresh_database("ledger"), tmp_path) as scene:
        scene.await_sealed(1)
        pid = sealer_pid()
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            last = 0
            for _ in range(8):  # one on its way into the pipe, one waits, the others are dropped
                last = scene.pay_binary(500)
        finally:
            os.kill(pid, signal.SIGCONT)
        note = scene.await_sealed(last)
        assert Checkpoint.parse(Note.parse(note).text).size == last
        check_history(scene, [])
