"""`jiaozi-ledger distribute`: the journal over the workers of a Citus cluster.

Goal: the plan places every table and breaks no unique constraint; a plain PostgreSQL is refused in one line; on Citus a
ledger with a past goes on as before, and the plan is carried out once, whole or not at all.
Method: the plan against the declared tables; the command as typed; with JIAOZI_TEST_CITUS_URL a fresh database on every
node of that cluster, and a real ledger before and after.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from kernel import ids, migrate
from kernel.clock import system_clock
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from ledger.contract import HoldStatus, TransferOutcome
from ledger.log import tables as _log_tables  # noqa: F401  its tables are in the same metadata
from ledger.store import closing_tables as _closing_tables  # noqa: F401  the same
from ledger.store import distribute as spread
from ledger.store.distribute import PLACEMENTS, DistributeRefused, Found, Place, Placement
from ledger.store.history import History
from ledger.store.tables import metadata
from ledger.verifier import verify_database
from tests.citus import SKIPPED, citus_database, citus_url
from tests.commands import Done, run_here
from tests.ledger_world import LedgerWorld, make_world, serving

BANK = "BKCHCNBJ"
needs_citus = pytest.mark.skipif(citus_url() is None, reason=SKIPPED)
LOCAL = {table: Placement(Place.LOCAL) for table in PLACEMENTS}


def command(*arguments: str) -> Done:
    return run_here("ledger", "distribute", *arguments)


# --- the plan


def test_every_table_has_its_place() -> None:
    assert set(PLACEMENTS) == set(metadata.tables)


def test_a_distribution_column_is_in_every_unique_constraint_of_its_table() -> None:
    """Citus can keep a constraint only where all rows that could break it are on one worker (I7, I6)."""
    for name, placement in PLACEMENTS.items():
        if placement.place is not Place.DISTRIBUTED:
            assert placement.column is None
            continue
        table = metadata.tables[name]
        assert placement.column in table.columns
        uniques = [
            item for item in table.constraints if isinstance(item, sa.PrimaryKeyConstraint | sa.UniqueConstraint)
        ]
        indexes = [index for index in table.indexes if index.unique]
        assert uniques
        for unique in (*uniques, *indexes):
            assert placement.column in {column.name for column in unique.columns}, name


def test_tables_beside_each_other_have_columns_of_one_type() -> None:
    for name, placement in PLACEMENTS.items():
        if placement.beside is not None and placement.column is not None:
            beside = PLACEMENTS[placement.beside]
            own = metadata.tables[name].columns[placement.column].type
            other = metadata.tables[placement.beside].columns[str(beside.column)].type
            assert str(own) == str(other)
            assert list(PLACEMENTS).index(placement.beside) < list(PLACEMENTS).index(name)


def test_the_statements_are_these() -> None:
    assert spread.statements(shards=4) == [
        "SET LOCAL lock_timeout = '5s'",
        "LOCK TABLE transfer, evidence, hold_event, hold_tombstone, history_page, log_tile, closing_page"
        " IN ACCESS EXCLUSIVE MODE",
        "SET LOCAL citus.multi_shard_modify_mode = 'sequential'",
        "SELECT create_distributed_table('transfer', 'id', colocate_with => 'none', shard_count => 4)",
        "SELECT create_distributed_table('evidence', 'transfer_id', colocate_with => 'transfer')",
        "SELECT create_distributed_table('hold_event', 'hold_id', colocate_with => 'transfer')",
        "SELECT create_reference_table('hold_tombstone')",
        "SELECT create_distributed_table('history_page', 'run', colocate_with => 'none', shard_count => 4)",
        "SELECT create_distributed_table('log_tile', 'index', colocate_with => 'history_page')",
        "SELECT create_distributed_table('closing_page', 'page', colocate_with => 'none', shard_count => 4)",
    ]


@pytest.mark.parametrize("shards", [0, -1, 1025])
def test_a_number_of_shards_out_of_bounds_is_refused(shards: int) -> None:
    with pytest.raises(DistributeRefused, match="1 to 1024"):
        spread.statements(shards=shards)


def test_what_is_done_is_not_done_again_and_half_a_plan_is_refused() -> None:
    assert spread.is_to_do(Found(LOCAL, workers=2))
    whole = {table: replace(placement, beside=None) for table, placement in PLACEMENTS.items()}
    assert not spread.is_to_do(Found(whole, workers=2))
    for name, placement in whole.items():
        if placement.place is Place.DISTRIBUTED:
            half = {**whole, name: Placement(Place.LOCAL)}
            with pytest.raises(
                DistributeRefused, match=f"{name} is a local table, not distributed by {placement.column}"
            ):
                spread.is_to_do(Found(half, workers=2))
            with pytest.raises(DistributeRefused, match="half distributed"):
                spread.is_to_do(Found({**LOCAL, name: placement}, workers=2))
    for wrong in (Placement(Place.DISTRIBUTED, "seq"), Placement(Place.REFERENCE)):
        with pytest.raises(DistributeRefused, match=r"transfer is .*, not distributed by id"):
            spread.is_to_do(Found({**whole, "transfer": wrong}, workers=2))


# --- without Citus


@pytest.mark.parametrize("arguments", [(), ("--apply",)])
def test_a_plain_postgresql_is_refused_in_one_line(
    fresh_database: Callable[[str], str], arguments: tuple[str, ...]
) -> None:
    url = fresh_database("ledger")
    done = command("--database-url", url, *arguments)
    assert done.returncode == 1
    assert "this PostgreSQL has no Citus" in done.stderr
    assert "Traceback" not in done.stderr
    assert ("create_distributed_table('transfer', 'id'" in done.stdout) == (not arguments)  # a dry run shows its plan
    assert migrate.differences(url, metadata) == []


def test_the_embedded_server_is_no_cluster() -> None:
    done = command()
    assert (done.returncode, "give --database-url" in done.stderr) == (1, True)


# --- on a Citus cluster


@pytest.fixture
def cluster() -> Iterator[str]:
    coordinator = citus_url()
    if coordinator is None:
        pytest.skip(SKIPPED)
    with citus_database(coordinator, f"jiaozi_test_{secrets.token_hex(4)}") as url:
        yield url


def live_a_day(world: LedgerWorld, vault: int, wallet: int, other: int, key: PrivateKey) -> None:
    """A bit of everything that a ledger writes and reads, with its answers checked."""
    with world.client(BANK) as client:
        balance = client.get_account(wallet).balance_minor
        assert client.transfer(world.terms("exchange-in", vault, wallet, 5_000)).outcome == TransferOutcome.BOOKED
        terms = world.terms("payment", wallet, other, 100)
        token = world.instruction(terms, key)
        assert client.submit_instruction(token).outcome == TransferOutcome.BOOKED
        assert client.submit_instruction(token).outcome == TransferOutcome.ALREADY_BOOKED  # I7 across shards
        assert client.get_transfer(terms.id).amount_minor == 100
        hold = world.terms("hold", vault, wallet, 10, expires_at=system_clock() + timedelta(hours=1))
        client.submit_instruction(world.instruction(hold, world.participants[BANK]))
        assert client.get_hold(hold.id).status is HoldStatus.HELD
        assert client.transfer(world.terms("post", None, None, 5, hold=hold.id)).outcome == TransferOutcome.BOOKED
        assert client.transfer(world.terms("post", None, None, 5, hold=hold.id)).refusal == "hold-already-posted"
        late = world.terms("void", None, None, None, hold=ids.new_uuid7(), secret=secrets.token_bytes(32))
        assert client.transfer(late).outcome == TransferOutcome.BOOKED  # a tombstone
        assert client.transfer(late).outcome == TransferOutcome.ALREADY_BOOKED
        assert client.get_account(wallet).balance_minor == balance + 4_905
        lines = list(client.statement_lines(wallet))
        assert lines[-1].balance_minor == balance + 4_905
        assert client.statement(wallet, newest_first=True, limit=1).lines[0].seq == lines[-1].seq
    with world.operator() as client:
        closing = client.close_now().closing
        assert client.balance_proof(closing, wallet).balance_minor == balance + 4_905
        assert client.supply().identity_holds


@needs_citus
def test_a_ledger_with_a_past_goes_on_distributed(cluster: str, tmp_path: Path) -> None:
    migrate.upgrade("ledger", cluster)
    world, key = make_world(cluster, tmp_path), PrivateKey.generate()
    with serving(world):
        world.register(BANK)
        vault = world.open_vault(BANK)
        world.issue(vault, 10**6)
        wallet, other = world.open_wallet(BANK, key), world.open_wallet(BANK, PrivateKey.generate())
        live_a_day(world, vault, wallet, other, key)

    dry = command("--database-url", cluster, "--shards", "4")
    assert (dry.returncode, "Nothing was changed" in dry.stdout) == (0, True), dry.stderr
    done = command("--database-url", cluster, "--shards", "4", "--apply")
    assert (done.returncode, "The tables are distributed." in done.stdout) == (0, True), done.stderr
    again = command("--database-url", cluster, "--shards", "4", "--apply")
    assert (again.returncode, "nothing to do" in again.stdout) == (0, True), again.stderr
    assert migrate.differences(cluster, metadata) == []

    for _ in range(2):  # with a restart in between: recovery reads what is distributed
        with serving(world):
            live_a_day(world, vault, wallet, other, key)
    report = verify_database(cluster)
    assert report.findings == []
    assert report.head_seq == 16


@needs_citus
def test_the_history_of_an_account_is_found_on_the_workers(cluster: str, tmp_path: Path) -> None:
    migrate.upgrade("ledger", cluster)
    database = Database(cluster, application_name="test", statement_timeout_ms=0)
    with database.transaction(isolation="READ COMMITTED") as connection:
        assert spread.distribute(connection, shards=4)
    world = make_world(cluster, tmp_path)
    with serving(world):
        world.register(BANK)
        vault, other = world.open_vault(BANK), world.open_vault(BANK)
        world.issue(vault, 1_000)
        with world.client(BANK) as client:
            for _ in range(20):
                client.transfer(world.terms("payment", vault, other, 1))
    history = History(database, run_transfers=4)
    history.start()
    deadline = time.monotonic() + 30
    with database.transaction(isolation="READ COMMITTED") as connection:
        while connection.execute(sa.text("SELECT count(*) FROM history_run")).scalar_one() < 5:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    for newest_first, expected in ((True, [21, 20, 19]), (False, [2, 3, 4])):
        with database.session(is_lazy=True) as connection:
            found = history.find(connection, other, after_seq=0, through_seq=21, limit=3, newest_first=newest_first)
        assert [entry.seq for entry in found] == expected
    history.stop()
    database.close()


@needs_citus
def test_a_running_ledger_or_half_a_plan_is_refused_and_nothing_changes(cluster: str) -> None:
    migrate.upgrade("ledger", cluster)
    database = Database(cluster, application_name="test", statement_timeout_ms=0)
    with database.transaction(isolation="READ COMMITTED") as busy:
        busy.execute(sa.text("SELECT count(*) FROM closing_page"))  # the last table of the plan
        refused = command("--database-url", cluster, "--apply")
        assert (refused.returncode, "Nothing was changed" in refused.stderr) == (1, True)
    with database.transaction(isolation="READ COMMITTED") as connection:
        assert spread.inspect(connection).is_untouched
        connection.execute(sa.text("SELECT create_distributed_table('log_tile', 'index')"))
    refused = command("--database-url", cluster, "--apply")
    assert (refused.returncode, "half distributed" in refused.stderr) == (1, True)
    database.close()
