"""B3: holder-signed payments, one a request, through the wallet API and the ledger, 64 concurrent clients.

Every payment is an Ed25519 JWS by the payer's device, checked by the ledger (I8) and, where there is a doubt, by the
wallet too; it is on disk in both before the answer. The load comes from a process of its own with keep-alive
connections and prepared requests, so that it costs the services as little as may be. B3 bulk: such instructions sent to
the ledger by thousands. Beside both: the machine's raw rate of signature checks, and what CPU each process used. A
warm-up of 512 payments is not counted.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from kernel import ids, migrate
from kernel.clock import system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.postgres import service_role
from ledger.client import LedgerClient
from ledger.contract import (
    BATCH_TRANSFERS_MAX,
    AccountKind,
    AccountOpening,
    SetRuleClassAction,
    TransferItem,
    TransferKind,
    TransferTerms,
    sign_instruction,
)
from tests.bench.scene import BANK, Scene, ledger_process, service_process
from tests.ledger_world import LedgerWorld, free_port
from wallet.client import WalletClient
from wallet.domain.rules import Evidence, WalletClass, ledger_rule_classes
from wallet.rulepack_files import load_rule_pack

RULE_PACK = "ecny-2021-06"
CLIENTS = 64
WALLETS = 128
WARM_UP = 512
"""Payments before the measured ones: connections, prepared statements and caches are not made while it counts."""
BULK_WALLETS = 2_000
BULK_CONNECTIONS = 3


def run_payments(stage: Scene, *, name: str, payments: int) -> dict[str, Any]:
    with ledger_process(stage, name) as (world, ledger):
        for rule_class in ledger_rule_classes(load_rule_pack(RULE_PACK)):
            world.mandate(SetRuleClassAction(rule_class=rule_class))
        vault = world.open_vault(BANK)
        world.issue(vault, 10**12)
        channel = PrivateKey.generate()
        files = _wallet_files(stage.directory, world.participants[BANK], channel, world.ledger, world.url, vault)
        stage.server.ensure_database(f"{name}_wallet")
        stage.server.ensure_role(service_role("wallet"))
        database = stage.server.url(f"{name}_wallet", role=service_role("wallet"))
        migrate.upgrade("wallet", stage.server.url(f"{name}_wallet"), service_url=database)
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        settings = {
            **files,
            "port": str(port),
            "public_url": url,
            "database_url": database,
            "data_dir": str(stage.directory / f"{name}-wallet-data"),
            "participant": BANK,
            "sandbox": "true",
        }
        log = stage.directory / f"{name}-wallet.log"
        with service_process("wallet", "JIAOZI_WALLET_", settings, url, log) as wallet:
            with WalletClient(url, signer=RequestSigner(channel)) as client:
                holders = [_holder(client) for _ in range(WALLETS)]
            requests = _payment_requests(url, world.ledger, holders, WARM_UP + payments)
            _run_in_process(_load, url, requests[payments:])
            del requests[payments:]
            first_block, before = _head_block(world), _cpu_seconds(stage, wallet, ledger)
            seconds, client_cpu, latencies, statuses = _run_in_process(_load, url, requests)
            after, last_block = _cpu_seconds(stage, wallet, ledger), _head_block(world)
            memory = wallet.memory_info().rss / 2**20
        with world.anonymous() as anyone:
            supply = anyone.supply()
        ledger_memory = ledger.memory_info().rss / 2**20
    return {
        "payments": statuses.get("201", 0) + statuses.get("200", 0),
        "statuses": statuses,
        "payments_per_block": round(payments / (last_block - first_block), 1),
        "cpu_us_per_payment": {
            "client": round(client_cpu / payments * 1e6),
            **{name: round((after[name] - before[name]) / payments * 1e6) for name in before},
        },
        "per_second": (statuses.get("201", 0) + statuses.get("200", 0)) / seconds,
        "batch_p50_ms": float(np.percentile(latencies, 50) * 1e3),
        "batch_p99_ms": float(np.percentile(latencies, 99) * 1e3),
        "ledger_rss_mb": ledger_memory,
        "wallet_rss_mb": memory,
        "conserved": supply.identity_holds and supply.circulation_minor == 10**12,
    }


def run_signed_bulk(stage: Scene, *, name: str, batches: int) -> dict[str, Any]:
    """B3 bulk: holders' instructions straight to the ledger, JSON, BATCH in a request, signed by their institution."""
    with ledger_process(stage, name) as (world, ledger):
        for rule_class in ledger_rule_classes(load_rule_pack(RULE_PACK)):
            world.mandate(SetRuleClassAction(rule_class=rule_class))
        vault = world.open_vault(BANK)
        world.issue(vault, 10**12)
        keys = [PrivateKey.generate() for _ in range(BULK_WALLETS)]
        openings = [
            AccountOpening(
                opening=ids.new_uuid7(),
                kind=AccountKind.WALLET,
                rule_class=f"{RULE_PACK}/I",
                holder_key=key.public.to_jwk(),
            )
            for key in keys
        ]
        with world.client(BANK) as client:
            accounts = [int(result.account or 0) for result in client.open_accounts(openings)]
            client.submit(
                [
                    TransferItem(
                        terms=_terms(TransferKind.EXCHANGE_IN, vault, account, amount_minor=10**7),
                    )
                    for account in accounts
                ]
            )
        holders = list(zip(keys, accounts, strict=True))
        tokens = _tokens(world.ledger, holders, batches * BATCH_TRANSFERS_MAX)
        before = _cpu_seconds(stage, ledger)
        path = stage.directory / f"{name}.pem"
        path.unlink(missing_ok=True)
        world.participants[BANK].save(path)
        seconds, client_cpu, latencies, booked = _run_in_process(_load_bulk, world.url, path, tokens)
        after = _cpu_seconds(stage, ledger)
        with world.anonymous() as anyone:
            supply = anyone.supply()
        memory = ledger.memory_info().rss / 2**20
    return {
        "payments": booked,
        "per_second": booked / seconds,
        "cpu_us_per_payment": {
            "client": round(client_cpu / len(tokens) * 1e6),
            **{part: round((after[part] - before[part]) / len(tokens) * 1e6) for part in before},
        },
        "batch_p50_ms": float(np.percentile(latencies, 50) * 1e3),
        "batch_p99_ms": float(np.percentile(latencies, 99) * 1e3),
        "ledger_rss_mb": memory,
        "conserved": supply.identity_holds and supply.circulation_minor == 10**12,
    }


def signature_checks_per_second(seconds: float = 1.0, *, threads: int = 1, openssl: bool = False) -> float:
    """Ed25519 verifications a second of so many threads, of a 400-byte message: the library alone, whose checks do not
    hold Python's lock. libsodium's, which the services use, or OpenSSL's by `cryptography`."""
    key = PrivateKey.generate()
    data = b"x" * 400
    signature, public = key.sign(data), key.public
    point = public.cryptography_key
    if not isinstance(point, Ed25519PublicKey):
        raise TypeError("not an Ed25519 key")
    counts = [0] * threads
    began = time.perf_counter()

    def check(number: int) -> None:
        while time.perf_counter() - began < seconds:
            for _ in range(100):
                if openssl:
                    point.verify(signature, data)
                else:
                    public.verify(data, signature)
            counts[number] += 100

    workers = [threading.Thread(target=check, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - began)


def _head_block(world: LedgerWorld) -> int:
    with world.anonymous() as anyone:
        return anyone.block().number


def _cpu_seconds(stage: Scene, *services: psutil.Process) -> dict[str, float]:
    """CPU used so far, by service (in the order wallet, ledger) and by the database server with all its processes."""
    names = ("wallet", "ledger")[-len(services) :]
    used = {name: _used(service) for name, service in zip(names, services, strict=True)}
    server = psutil.Process(int((stage.server.cluster_dir / "postmaster.pid").read_text().split()[0]))
    ended = server.cpu_times()
    used["postgres"] = sum(_used(process) for process in [server, *server.children()])
    used["postgres"] += ended.children_user + ended.children_system
    return used


def _used(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _run_in_process(load: Callable[..., None], *arguments: object) -> Any:
    parent, child = multiprocessing.Pipe()
    worker = multiprocessing.get_context("spawn").Process(target=load, args=(*arguments, child))
    worker.start()
    child.close()  # if the load fails, the next line does too
    found = parent.recv()
    worker.join()
    return found


def _wallet_files(
    directory: Path, bank: PrivateKey, channel: PrivateKey, ledger: str, ledger_url: str, vault: int
) -> dict[str, str]:
    key_path = directory / "bench-bank.pem"
    key_path.unlink(missing_ok=True)  # another run's
    bank.save(key_path)
    clients = directory / f"clients-{ledger}.json"
    clients.write_text(json.dumps([{"name": "channel", "key": channel.public.to_jwk(), "role": "channel"}]))
    ledgers = directory / f"ledgers-{ledger}.json"
    entry = {"ledger": ledger, "url": ledger_url, "currency": "CNY", "vault": ids.show_account(vault)}
    ledgers.write_text(json.dumps([entry]))
    return {"signing_key_path": str(key_path), "clients_path": str(clients), "ledgers_path": str(ledgers)}


def _holder(client: WalletClient) -> tuple[PrivateKey, int]:
    """A customer with a class I wallet and money in it."""
    key = PrivateKey.generate()
    evidence = [Evidence.IN_PERSON, Evidence.ID, Evidence.PHONE, Evidence.BANK_ACCOUNT]
    customer = client.create_customer(evidence=evidence)
    wallet = client.open_wallet(customer=customer.customer, wallet_class=WalletClass.I, device_key=key.public)
    client.simulate_deposit(customer=customer.customer, amount_minor=10**7)
    client.exchange_in(wallet=wallet.wallet, amount_minor=10**7, currency="CNY")
    if wallet.account is None:
        raise RuntimeError("the wallet's account is not open")
    return key, wallet.account


def _payment_requests(url: str, ledger: str, holders: list[tuple[PrivateKey, int]], count: int) -> list[bytes]:
    """Raw HTTP requests, one payment each."""
    host = urlsplit(url).netloc
    found = []
    for token in _tokens(ledger, holders, count):
        body = json.dumps({"instruction": token}).encode()
        lines = ("POST /v1/payments HTTP/1.1", f"Host: {host}", "Content-Type: application/json")
        head = "\r\n".join((*lines, f"Content-Length: {len(body)}", "", ""))
        found.append(head.encode() + body)
    return found


def _tokens(ledger: str, holders: list[tuple[PrivateKey, int]], count: int) -> list[str]:
    """Signed instructions: payment i goes from holder i to the next."""
    valid_until = system_clock() + timedelta(hours=1)
    found = []
    for number in range(count):
        key, payer = holders[number % len(holders)]
        terms = _terms(TransferKind.PAYMENT, payer, holders[(number + 1) % len(holders)][1], amount_minor=1)
        found.append(sign_instruction(terms, ledger=ledger, valid_until=valid_until, key=key))
    return found


def _terms(kind: TransferKind, debit: int, credit: int, *, amount_minor: int) -> TransferTerms:
    return TransferTerms(
        id=ids.new_uuid7(),
        kind=kind,
        debit=ids.AccountNumber(debit),
        credit=ids.AccountNumber(credit),
        amount_minor=amount_minor,
        currency="CNY",
    )


def _load(url: str, requests: list[bytes], answer: Connection) -> None:
    answer.send(asyncio.run(_run_load(url, requests)))


async def _run_load(url: str, requests: list[bytes]) -> tuple[float, float, list[float], dict[str, int]]:
    """Seconds, CPU seconds of the load itself, latencies, statuses."""
    parts = urlsplit(url)
    latencies: list[float] = []
    statuses: dict[str, int] = {}

    async def client() -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        while requests:
            request = requests.pop()
            began = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))[15:])
            await reader.readexactly(length)
            latencies.append(time.perf_counter() - began)
            status = head[9:12].decode()
            statuses[status] = statuses.get(status, 0) + 1
        writer.close()

    began, cpu_before = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return time.perf_counter() - began, time.process_time() - cpu_before, latencies, statuses


def _load_bulk(url: str, key_path: Path, tokens: list[str], answer: Connection) -> None:
    """BULK_CONNECTIONS threads, each sending batch after batch; writing batches and reading answers is in the time."""
    key = PrivateKey.load(key_path)
    size = BATCH_TRANSFERS_MAX
    work = [tokens[start : start + size] for start in range(0, len(tokens), size)]
    latencies: list[float] = []
    booked = [0] * BULK_CONNECTIONS
    lock = threading.Lock()

    def send(number: int) -> None:
        with LedgerClient(url, signer=RequestSigner(key), timeout_seconds=120) as client:
            while True:
                with lock:
                    if not work:
                        return
                    batch = work.pop()
                began = time.perf_counter()
                answers = client.submit_signed(batch)
                latencies.append(time.perf_counter() - began)
                booked[number] += sum(answer.outcome == "booked" for answer in answers)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(BULK_CONNECTIONS)]
    began, cpu_before = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answer.send((time.perf_counter() - began, time.process_time() - cpu_before, latencies, sum(booked)))
