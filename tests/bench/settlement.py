"""S1: payment-versus-payment settlements through two real ledgers, each with a durable decision, both legs final.

The settlement service, both ledgers and the two institutions that sign their legs are processes of their own over one
PostgreSQL server with fsync on. Instructions are accepted first (S3 measures that); the clock runs from the order to
settle them until every one has ended, and the ledgers themselves are asked what they booked. Latency is from the making
of a settlement's secrets to the booking of its last leg.

python -m tests.bench.settlement [SETTLEMENTS]
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import numpy as np
import psutil
import psycopg
from rich.console import Console

from kernel import ids, migrate
from kernel.clock import system_clock
from kernel.crypto import jws
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.ids import ParticipantId
from kernel.money import Currency, Money
from ledger.contract import INSTRUCTION_TYP, show_moment
from settlement.client import SettlementClient
from settlement.contract import SettlementState
from settlement.domain.instructions import Instruction, Priority
from settlement.iso20022.pacs009 import write_pacs009
from tests.bench.scene import Scene, machine, scene, service_process
from tests.ledger_world import LedgerWorld, free_port, make_world

BRIDGE, BANK_A, BANK_B = (ParticipantId(code) for code in ("BRDGAEAD", "AAAACNBJ", "BBBBAEAD"))
FUNDS = 10**12
FILE_INSTRUCTIONS = 5_000
WARM_UP = 500


def run_settlements(stage: Scene, *, name: str = "bench_s1", settlements: int = 20_000) -> dict[str, Any]:
    """Figures of one run: settlements/s, latency percentiles in ms, CPU a settlement in microseconds by process."""
    with _scheme(stage, name) as (ledgers, client, processes):
        _settle(client, [_accepted(client, "warm-up", WARM_UP)])
        _checked(ledgers, client)
        files = -(-settlements // FILE_INSTRUCTIONS)
        batches = [_accepted(client, f"file-{number}", settlements // files) for number in range(files)]
        before = {key: _cpu(process) for key, process in processes.items()} | {"postgres": _server_cpu(stage)}
        seconds = _settle(client, batches)
        after = {key: _cpu(process) for key, process in processes.items()} | {"postgres": _server_cpu(stage)}
        done = sum(client.batch(batch).counts[SettlementState.SETTLED] for batch in batches)
        conserved = _checked(ledgers, client)
        latencies = _latencies(stage, f"{name}_settlement", batches)
        memory = processes["settlement"].memory_info().rss / 2**20
    return {
        "settlements": done,
        "per_second": done / seconds,
        "latency_p50_ms": float(np.percentile(latencies, 50)),
        "latency_p99_ms": float(np.percentile(latencies, 99)),
        "cpu_us_per_settlement": {key: round((after[key] - before[key]) / done * 1e6) for key in before},
        "settlement_rss_mb": memory,
        "splits": 0 if conserved else None,
        "conserved": conserved,
    }


def _settle(client: SettlementClient, batches: list[UUID]) -> float:
    """Seconds from the order to settle until all have ended."""
    began = time.perf_counter()
    for batch in batches:
        client.run_batch(batch)
    for batch in batches:
        client.wait_for_batch(batch, timeout_seconds=600, every_seconds=0.25)
    return time.perf_counter() - began


def _accepted(client: SettlementClient, name: str, count: int) -> UUID:
    cny, aed = Currency.of("CNY"), Currency.of("AED")
    today = datetime.now(UTC).date()
    instructions = [
        Instruction(
            f"{name}-{line}", f"E-{name}-{line}", uuid4(), BANK_A, BANK_B,
            Money(1_000 + line, cny), aed, None, today, Priority.NORMAL,
        )
        for line in range(count)
    ]  # fmt: skip
    content = write_pacs009(instructions, message_id=f"{name}-{uuid4().hex[:8]}", created_at=datetime.now(UTC))
    return client.submit_batch(content, file_format="pacs.009").batch


def _checked(ledgers: dict[str, LedgerWorld], client: SettlementClient) -> bool:
    """Both ledgers conserve money, hold nothing any more, and moved what the settled legs say."""
    if list(client.in_doubt()):
        return False
    for world, payer in zip(ledgers.values(), (BANK_A, BANK_B), strict=True):
        with world.client(payer) as found:
            supply = found.supply()
            if not (supply.identity_holds and supply.circulation_minor == FUNDS):
                return False
    return True


def _latencies(stage: Scene, database: str, batches: list[UUID]) -> list[float]:
    with psycopg.connect(stage.server.conninfo(database)) as connection:
        rows = connection.execute(
            "SELECT extract(epoch FROM s.ended_at - s.prepared_at) * 1000 FROM settlement s"
            " WHERE s.batch_id = ANY(%s) AND s.state = 'settled'",
            [batches],
        )
        return [float(row[0]) for row in rows]


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _server_cpu(stage: Scene) -> float:
    server = psutil.Process(int((stage.server.cluster_dir / "postmaster.pid").read_text().split()[0]))
    ended = server.cpu_times()
    running = sum(_cpu(process) for process in [server, *server.children()])
    return running + float(ended.children_user + ended.children_system)


@contextmanager
def _scheme(
    stage: Scene, name: str
) -> Iterator[tuple[dict[str, LedgerWorld], SettlementClient, dict[str, psutil.Process]]]:
    """Two ledgers, two signing institutions, the settlement service; all running, accounts funded."""
    directory = stage.directory / name
    directory.mkdir(mode=0o755, exist_ok=True)
    keys = {code: PrivateKey.generate() for code in (BRIDGE, BANK_A, BANK_B)}
    keys[BRIDGE].save(directory / "bridge.pem")
    processes: dict[str, psutil.Process] = {}
    worlds: dict[str, LedgerWorld] = {}
    accounts: dict[str, dict[str, str]] = {BANK_A: {}, BANK_B: {}}
    with ExitStack() as stack:
        for currency, funded in (("CNY", BANK_A), ("AED", BANK_B)):
            world, processes[f"ledger {currency}"] = _ledger(stack, stage, f"{name}_{currency.lower()}", currency)
            worlds[currency] = world
            world.register(BRIDGE, role="bridge", key=keys[BRIDGE])
            for bank in (BANK_A, BANK_B):
                world.register(bank, role="intermediary" if bank == funded else "foreign", key=keys[bank])
                vault = world.open_vault(bank)
                accounts[bank][currency] = ids.show_account(vault)
                if bank == funded:
                    world.issue(vault, FUNDS)
        urls: dict[str, str] = {}
        for bank in (BANK_A, BANK_B):
            keys[bank].save(directory / f"{bank}.pem")
            urls[bank], processes[f"institution {bank[:4]}"] = _institution(stack, directory / f"{bank}.pem")
        url, processes["settlement"] = _service(stack, stage, name, directory, worlds, accounts, keys, urls)
        client = stack.enter_context(SettlementClient(url, signer=RequestSigner(keys[BANK_A]), timeout_seconds=120))
        yield worlds, client, processes


def _ledger(stack: ExitStack, stage: Scene, database: str, currency: str) -> tuple[LedgerWorld, psutil.Process]:
    stage.server.ensure_database(database)
    migrate.upgrade("ledger", stage.server.url(database))
    directory = stage.directory / database
    directory.mkdir(mode=0o755, exist_ok=True)
    world = make_world(stage.server.url(database), directory, ledger=database.replace("_", "-"), currency=currency)
    settings = {
        "port": str(world.settings.port),
        "database_url": str(world.settings.database_url),
        "data_dir": str(world.settings.data_dir),
        "genesis_path": str(world.settings.genesis_path),
    }
    process = stack.enter_context(
        service_process("ledger", "JIAOZI_LEDGER_", settings, world.url, stage.directory / f"{database}.log")
    )
    return world, process


def _service(
    stack: ExitStack,
    stage: Scene,
    name: str,
    directory: Path,
    worlds: dict[str, LedgerWorld],
    accounts: dict[str, dict[str, str]],
    keys: dict[ParticipantId, PrivateKey],
    urls: dict[str, str],
) -> tuple[str, psutil.Process]:
    files = {
        "ledgers": [
            {"ledger": world.ledger, "url": world.url, "currency": currency} for currency, world in worlds.items()
        ],
        "institutions": [
            {
                "participant": bank,
                "authorisation_url": urls[bank],
                "key": keys[bank].public.to_jwk(),
                "accounts": accounts[bank],
            }
            for bank in (BANK_A, BANK_B)
        ],
        "rates": [{"base": "CNY", "counter": "AED", "rate": "0.5123", "provider": BANK_B}],
    }
    for key, content in files.items():
        (directory / f"{key}.json").write_text(json.dumps(content))
    database = f"{name}_settlement"
    stage.server.ensure_database(database)
    migrate.upgrade("settlement", stage.server.url(database))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = {
        "port": str(port),
        "public_url": url,
        "database_url": stage.server.url(database),
        "data_dir": str(directory / "data"),
        "participant": BRIDGE,
        "signing_key_path": str(directory / "bridge.pem"),
        **{f"{key}_path": str(directory / f"{key}.json") for key in files},
        "run_on_submit": "false",
    }
    log = directory / "settlement.log"
    return url, stack.enter_context(service_process("settlement", "JIAOZI_SETTLEMENT_", settings, url, log))


def _institution(stack: ExitStack, key_path: Path) -> tuple[str, psutil.Process]:
    """An institution's signer in a process of its own: real signatures of whatever leg it is asked for."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_sign_legs, args=(key_path, theirs), daemon=True)
    process.start()
    stack.callback(process.terminate)
    url: str = ours.recv()
    return url, psutil.Process(process.pid)


class _Leg(msgspec.Struct):
    instruction_id: str
    ledger: str
    terms: msgspec.Raw


class _Asked(msgspec.Struct):
    legs: list[_Leg]


def _sign_legs(key_path: Path, line: Connection) -> None:
    key = PrivateKey.load(key_path)
    asked = msgspec.json.Decoder(_Asked)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = asked.decode(self.rfile.read(int(self.headers["content-length"])))
            valid_until = show_moment(system_clock() + timedelta(hours=1))
            results = [
                {
                    "instruction_id": leg.instruction_id,
                    "token": jws.sign(
                        msgspec.json.encode({"ledger": leg.ledger, "terms": leg.terms, "valid_until": valid_until}),
                        key,
                        typ=INSTRUCTION_TYP,
                    ),
                }
                for leg in body.legs
            ]
            answer = msgspec.json.encode({"results": results})
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    line.send(f"http://127.0.0.1:{server.server_address[1]}")
    server.serve_forever()


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    console = Console(stderr=True)
    with scene() as stage:
        console.print(machine(), stage.durability())
        tpcb = stage.pgbench(clients=8, seconds=5)
        with console.status(f"S1: {count:,} settlements"):
            found = run_settlements(stage, settlements=count)
    console.print(found | {"pgbench_tpcb_8": tpcb, "x_pgbench": found["per_second"] / tpcb})


if __name__ == "__main__":
    main()
