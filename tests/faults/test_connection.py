"""R2. Goal: a connection that is cut between COMMIT and its reply, or just before COMMIT, leaves nothing in doubt: the
ledger reads the outcome back, the client's repetition books once.

Method: a real ledger process behind a proxy that cuts the connection at exactly these points of the protocol, at random
and often, under bulk load; then the journal is held against what the client was told.
"""

from __future__ import annotations

import threading
from pathlib import Path
from random import Random

import pytest

from kernel.postgres import EmbeddedPostgres
from ledger.verifier import verify_database
from tests.faults.campaign import BANK, Replay
from tests.faults.load import BinaryClient, Notes
from tests.faults.processes import LedgerProcess, wait_for
from tests.faults.proxy import COMMITTED, Link, Proxy
from tests.ledger_world import make_world

CUTS_EACH = 5


@pytest.mark.extended
def test_connections_cut_around_commit_lose_nothing_and_double_nothing(server_dir: Path, tmp_path: Path) -> None:
    server = EmbeddedPostgres(server_dir)
    server.start()
    server.ensure_database("ledger")
    world = make_world(server.url("ledger"), tmp_path)
    proxy = Proxy(str(server.socket_dir / ".s.PGSQL.5432"))
    world.settings = world.settings.model_copy(update={"database_url": proxy.url("ledger", "jiaozi_ledger")})
    random, cuts = Random(5), {"before": 0, "after": 0}

    def before(link: Link, chunk: bytes) -> str:
        return cut("before", link.wrote_block and b"COMMIT\x00" in chunk)

    def after(link: Link, chunk: bytes) -> str:
        return cut("after", link.wrote_block and COMMITTED in chunk)

    def cut(when: str, is_there: bool) -> str:
        if not is_there or cuts[when] >= CUTS_EACH or random.random() > 0.4:
            return "pass"
        cuts[when] += 1
        return "cut"

    try:
        with LedgerProcess(world, tmp_path / "ledger.log") as ledger:
            ledger.await_health(200)
            world.register(BANK)
            vaults = [world.open_vault(BANK) for _ in range(4)]
            world.issue(vaults[0], 10**9)
            stop, notes = threading.Event(), Notes()
            load = BinaryClient(world, notes, BANK, stop, vaults=vaults, size=300, seed=3)
            proxy.from_client, proxy.from_server = before, after
            load.start()
            wait_for(lambda: all(count == CUTS_EACH for count in cuts.values()), 40, f"too few cuts: {cuts}")
            seen = notes.answers
            wait_for(lambda: notes.answers > seen + 2, 20, "the ledger did not go on")
            stop.set()
            load.join(20)
            assert not notes.errors
            replay = Replay(server, notes)
            replay.follow()
            replay.finish()
            assert replay.acknowledged == notes.counts["booked in bulk"] > 0
            assert ledger.await_health(200) == "ok"
            report = verify_database(server.url("ledger"))
            assert (report.findings, report.head_seq) == ([], replay.seq)
    finally:
        proxy.close()
