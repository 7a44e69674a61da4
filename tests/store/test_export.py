"""Goal: what `jiaozi-ledger export` writes is the whole journal, however often it was stopped on the way, and verifies
without the database: the log's roots and signatures included.

Method: a real ledger with its transparency log; the command in a process of its own, killed at random moments; the same
directory used again while the ledger goes on.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from kernel.postgres import EmbeddedPostgres
from ledger.__main__ import app
from ledger.export import ExportRefused, ExportUnreadable, export_journal
from ledger.export.layout import MANIFEST, SECTIONS, Manifest
from ledger.export.log import DatabaseLog
from ledger.log import leaves
from ledger.verifier import Known, verify_database, verify_export
from tests import tampering
from tests.commands import run_here
from tests.ledger_world import running_ledger
from tests.roles import dsn
from tests.sequencer_world import Item, SequencerWorld
from tests.verifier_world import BANK, Scheme, make_scheme


@pytest.fixture(scope="module")
def scheme(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Scheme:
    return make_scheme(postgres, tmp_path_factory.mktemp("export-scheme"), bulk=40, signed=6)


def connect(url: str) -> psycopg.Connection[Any]:
    return psycopg.connect(dsn(url), autocommit=True, options="-c timezone=UTC")


def vkey_of(url: str) -> str:
    with connect(url) as connection:
        row = connection.execute("SELECT vkey FROM log_identity").fetchone()
    assert row is not None
    return str(row[0])


@pytest.mark.extended
def test_an_exported_journal_verifies_offline_with_the_ledgers_own_log(
    postgres: EmbeddedPostgres, scheme: Scheme, tmp_path: Path
) -> None:
    url, directory, runner = postgres.url(scheme.database), tmp_path / "export", CliRunner()
    salts = str(scheme.log_salts)
    done = runner.invoke(app, ["export", str(directory), "--database-url", url, "--log-salts", salts])
    assert done.exit_code == 0, done.output
    arguments = ["verify", "--export", str(directory), "--log-key", vkey_of(url), "--json"]
    report = json.loads(runner.invoke(app, arguments).stdout)
    assert report["findings"] == []
    assert report["is_whole"] is True
    proved = report["proved"]
    assert proved["leaves of the log"] == proved["transfers"] == report["head"]["seq"]
    assert proved["roots of checkpoints"] >= 1
    assert proved["signatures of checkpoints"] == proved["supply statements"] >= proved["roots of checkpoints"]
    live = verify_database(url)
    assert report["supply_minor"]["issued"] == str(live.supply.issued)
    assert report["head"]["hash"] == live.head_hash.hex()
    known = ["--operators-genesis", report["genesis_sha256"], "--anchor", f"3:{bytes(32).hex()}"]
    wrong = runner.invoke(app, [*arguments[:-1], *known])
    assert wrong.exit_code == 1
    assert "I4: block 3" in wrong.output
    assert not [path for path in directory.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["verify", "--export", "nowhere"], "no export"),
        (["verify", "--export", "x", "--database-url", "postgresql://y"], "goes alone"),
        (["verify", "--export", "x", "--anchor", "12"], "NUMBER:HASH"),
        (["verify", "--export", "x", "--log-key", "key"], "name+id+key"),
        (["verify", "--export", "x", "--operators-genesis", "ab"], "64 hexadecimal"),
    ],
)
def test_a_command_typed_wrong_says_what_to_do(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_here("ledger", *arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_salts_of_another_log_are_refused(postgres: EmbeddedPostgres, scheme: Scheme, tmp_path: Path) -> None:
    other = tmp_path / "other.salt"
    other.write_text("ab" * 32)
    other.chmod(0o600)
    url = postgres.url(scheme.database)
    done = CliRunner().invoke(app, ["export", str(tmp_path / "x"), "--database-url", url, "--log-salts", str(other)])
    assert done.exit_code == 1
    assert "not the salt file" in str(done.exception)
    assert "ab" * 32 not in done.output


# --- stopped and gone on ---------------------------------------------------------------------------------------------


@pytest.fixture
def world(fresh_database: Callable[[str], str]) -> Any:
    made = SequencerWorld(fresh_database("ledger"))
    yield made
    made.close()


def trade(world: SequencerWorld, vaults: tuple[int, int], count: int) -> None:
    for start in range(0, count, 100):
        world.submit(*(Item("payment", *vaults, 1) for _ in range(min(100, count - start))))


def files_of(directory: Path) -> dict[str, bytes]:
    """The content of an export's sections, end to end, wherever segments end."""
    found: dict[str, bytes] = {}
    for entry in Manifest.from_json((directory / MANIFEST).read_bytes()).segments:
        for name in entry.files:
            found[name] = found.get(name, b"") + (directory / entry.name / name).read_bytes()
    return found


def test_an_export_grows_with_the_ledger_and_is_the_same_as_one_made_at_once(
    world: SequencerWorld, tmp_path: Path
) -> None:
    vaults = (world.vault(100_000), world.vault())
    grown, once = tmp_path / "grown", tmp_path / "once"
    with connect(world.url) as connection:
        for count in (250, 30, 0, 400):
            trade(world, vaults, count)
            export_journal(connection, grown, segment_transfers=150)
        export_journal(connection, once)
    assert len(list(grown.iterdir())) > 4
    assert len(list(once.iterdir())) == 2  # a segment and the manifest
    assert files_of(grown) == files_of(once)
    for directory in (grown, once):
        report = verify_export(directory)
        assert report.findings == []
        assert report.proved["transfers"] == 681


@pytest.mark.parametrize("kills", [3, pytest.param(8, marks=pytest.mark.extended)])
@pytest.mark.extended
def test_a_killed_export_goes_on_where_complete_segments_end(world: SequencerWorld, tmp_path: Path, kills: int) -> None:
    vaults = (world.vault(100_000), world.vault())
    trade(world, vaults, 3_000)
    directory = tmp_path / "export"
    script = (
        "import sys, psycopg; from pathlib import Path; from ledger.export import export_journal\n"
        "with psycopg.connect(sys.argv[1], autocommit=True, options='-c timezone=UTC') as connection:\n"
        "    print('begun', flush=True)\n"
        "    export_journal(connection, Path(sys.argv[2]), segment_transfers=100)\n"
    )
    rng, killed = random.Random(11), 0
    for _ in range(40):
        process = subprocess.Popen(
            [sys.executable, "-c", script, dsn(world.url), str(directory)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.12))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if process.returncode == 0:
            break
        killed += 1
        listed = directory / MANIFEST
        if listed.exists() and Manifest.from_json(listed.read_bytes()).segments:
            assert verify_export(directory).findings == [], "what is complete is right"
        if killed >= kills:
            break
    assert killed > 0
    with connect(world.url) as connection:
        export_journal(connection, directory, segment_transfers=100)
    report = verify_export(directory)
    assert report.findings == []
    assert report.proved["transfers"] == 3_001
    assert not [path for path in directory.iterdir() if path.name.endswith(".partial")]


def test_a_live_ledger_is_exported_while_it_books(fresh_database: Callable[[str], str], tmp_path: Path) -> None:
    url, directory = fresh_database("ledger"), tmp_path / "export"
    with running_ledger(url, tmp_path, log_enabled=True, log_seal_seconds=0.05, data_dir=tmp_path / "data") as world:
        world.register(BANK, quota_minor=10_000_000)
        vault, other = world.open_vault(BANK), world.open_vault(BANK)
        world.issue(vault, 5_000_000)
        (salt_path,) = (tmp_path / "data").glob("*.salt")
        master = bytes.fromhex(salt_path.read_text())
        key = vkey_of(url)
        with world.client(BANK) as client, connect(url) as connection:
            log = DatabaseLog(connection, leaves.MasterSalts(master))
            for _ in range(6):
                for _ in range(5):
                    client.transfer(world.terms("payment", vault, other, 1))
                export_journal(connection, directory, log=log)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with connect(url) as connection:
                row = connection.execute("SELECT max(size) FROM log_checkpoint").fetchone()
            if row == (31,):
                break
            time.sleep(0.05)
        with connect(url) as connection:
            # the last checkpoint may have come after its transfers had been exported: it comes alone
            export_journal(connection, directory, log=DatabaseLog(connection, leaves.MasterSalts(master)))
    from kernel.transparency.notes import VerifierKey

    report = verify_export(directory, known=Known(log_key=VerifierKey.parse(key)))
    assert report.findings == []
    assert report.proved["transfers"] == report.proved["leaves of the log"] == 31
    assert not [sentence for sentence in report.unproved if "checkpoint" in sentence], report.unproved
    last = Manifest.from_json((directory / MANIFEST).read_bytes()).segments[-1]
    assert last.last_checkpoint == last.last_block


def test_processes_find_what_one_process_finds(postgres: EmbeddedPostgres, scheme: Scheme, tmp_path: Path) -> None:
    url = postgres.url(scheme.database)
    master = bytes.fromhex(scheme.log_salts.read_text())
    with connect(url) as connection:
        log = DatabaseLog(connection, leaves.MasterSalts(master))
        export_journal(connection, tmp_path / "export", log=log, segment_transfers=50)
    alone = verify_export(tmp_path / "export", processes=0)
    together = verify_export(tmp_path / "export", processes=2)
    assert alone.is_whole
    assert together.to_dict() == alone.to_dict()
    shutil.copytree(tmp_path / "export", tmp_path / "broken")
    (victim,) = (tmp_path / "broken" / "000001").glob("evidence-bodies")
    data = bytearray(victim.read_bytes())
    data[-5] ^= 1
    victim.write_bytes(data)
    found = [verify_export(tmp_path / "broken", processes=processes).findings for processes in (0, 2)]
    assert found[0] == found[1] != []


# --- what is refused --------------------------------------------------------------------------------------------------


def test_an_export_of_another_ledger_or_past_is_not_gone_on_with(world: SequencerWorld, tmp_path: Path) -> None:
    vaults = (world.vault(100_000), world.vault())
    directory = tmp_path / "export"
    with connect(world.url) as connection:
        export_journal(connection, directory)
        trade(world, vaults, 3)
        with connection.transaction():
            connection.execute("UPDATE block SET hash = sha256('x') WHERE number = (SELECT max(number) - 1 FROM block)")
        with pytest.raises(ExportRefused, match="history was rewritten"):
            export_journal(connection, directory)


def test_a_directory_with_other_things_and_a_lost_file_are_refused(world: SequencerWorld, tmp_path: Path) -> None:
    world.vault(5)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("kept")
    with connect(world.url) as connection:
        with pytest.raises(ExportRefused, match="something else"):
            export_journal(connection, tmp_path / "letters")
        export_journal(connection, tmp_path / "export")
        (tmp_path / "export" / "000001" / "blocks").unlink()
        with pytest.raises(ExportRefused, match="missing"):
            export_journal(connection, tmp_path / "export")
    assert (tmp_path / "letters" / "dear.txt").read_text() == "kept"
    assert verify_export(tmp_path / "export").findings[0].rule == "I4"


def test_rows_that_belong_to_no_block_are_not_left_out_in_silence(world: SequencerWorld, tmp_path: Path) -> None:
    world.vault(5)
    with connect(world.url) as connection:
        connection.execute("INSERT INTO account SELECT 99, gen_random_uuid(), 1, 1, 'none', NULL, now()")
        with pytest.raises(ExportRefused, match="belong to no block"):
            export_journal(connection, tmp_path / "export")


MANIFESTS = [
    b"",
    b"{}",
    b'{"format": "jiaozi-export-v2", "segments": []}',
    b'{"format": "jiaozi-export-v1", "segments": [{"name": "../../etc"}]}',
    b'{"format": "jiaozi-export-v1", "segments": 7}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("content", MANIFESTS, ids=range(len(MANIFESTS)))
def test_a_manifest_of_another_form_is_refused_in_words(content: bytes, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(ExportUnreadable):
        verify_export(tmp_path)


def test_cut_and_swollen_files_are_findings_not_crashes(world: SequencerWorld, tmp_path: Path) -> None:
    vaults = (world.vault(1_000), world.vault())
    trade(world, vaults, 20)
    with connect(world.url) as connection:
        export_journal(connection, tmp_path / "export")
    source = tampering.pack(tampering.read(_source(tmp_path / "export")))
    for (number, name), content in source.files.items():
        for changed in (content[:-1], content + b"\0", content[: len(content) // 2], b""):
            files = dict(source.files)
            files[number, name] = changed
            report = tampering.verify_files(source.manifest, files)
            assert not report.is_whole, name
            report = tampering.verify_files(tampering.relisted(source.manifest, files), files)
            assert not report.is_whole, name


def test_the_page_of_the_format_names_every_file_with_its_records_size() -> None:
    page = Path("docs/export-format.md").read_text()
    sizes = dict(re.findall(r"\*\*`([a-z-]+)`\*\*,\s+([0-9]+) bytes", page))
    assert sizes == {name: str(dtype.itemsize) for name, dtype in SECTIONS.items() if dtype is not None}
    assert all(f"`{name}`" in page for name in SECTIONS)


def _source(directory: Path) -> Any:
    from ledger.verifier.source import DirectorySource

    return DirectorySource(directory)
