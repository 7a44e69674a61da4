"""B3: holder-signed payments, one a request, through the wallet API and the ledger, 64 concurrent clients.

Every payment is an Ed25519 JWS by the payer's device, checked by the wallet and again by the ledger (I8), committed by
both with fsync before the answer. The load comes from a process of its own with keep-alive connections and prepared
requests, so that it costs the services as little as may be. Beside it: the machine's raw rate of signature checks.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from kernel import ids, migrate
from kernel.clock import system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from ledger.contract import SetRuleClassAction, TransferKind, TransferTerms, sign_instruction
from tests.bench.scene import BANK, Scene, ledger_process, service_process
from tests.ledger_world import free_port
from wallet.client import WalletClient
from wallet.domain.rules import Evidence, WalletClass, ledger_rule_classes
from wallet.rulepack_files import load_rule_pack

CLIENTS = 64
WALLETS = 128


def run_payments(stage: Scene, *, name: str, payments: int) -> dict[str, Any]:
    with ledger_process(stage, name) as (world, ledger):
        for rule_class in ledger_rule_classes(load_rule_pack("ecny-2021-06")):
            world.mandate(SetRuleClassAction(rule_class=rule_class))
        vault = world.open_vault(BANK)
        world.issue(vault, 10**12)
        channel = PrivateKey.generate()
        files = _wallet_files(stage.directory, world.participants[BANK], channel, world.ledger, world.url, vault)
        stage.server.ensure_database(f"{name}_wallet")
        migrate.upgrade("wallet", stage.server.url(f"{name}_wallet"))
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        settings = {
            **files,
            "port": str(port),
            "public_url": url,
            "database_url": stage.server.url(f"{name}_wallet"),
            "data_dir": str(stage.directory / f"{name}-wallet-data"),
            "participant": BANK,
            "sandbox": "true",
        }
        log = stage.directory / f"{name}-wallet.log"
        with service_process("wallet", "JIAOZI_WALLET_", settings, url, log) as wallet:
            with WalletClient(url, signer=RequestSigner(channel)) as client:
                holders = [_holder(client) for _ in range(WALLETS)]
            requests = _signed_requests(url, world.ledger, holders, payments)
            parent, child = multiprocessing.Pipe()
            worker = multiprocessing.get_context("spawn").Process(target=_load, args=(url, requests, child))
            worker.start()
            seconds, latencies, statuses = parent.recv()
            worker.join()
            memory = wallet.memory_info().rss / 2**20
        with world.anonymous() as anyone:
            supply = anyone.supply()
        ledger_memory = ledger.memory_info().rss / 2**20
    return {
        "payments": statuses.get("201", 0) + statuses.get("200", 0),
        "statuses": statuses,
        "per_second": (statuses.get("201", 0) + statuses.get("200", 0)) / seconds,
        "batch_p50_ms": float(np.percentile(latencies, 50) * 1e3),
        "batch_p99_ms": float(np.percentile(latencies, 99) * 1e3),
        "ledger_rss_mb": ledger_memory,
        "wallet_rss_mb": memory,
        "conserved": supply.identity_holds and supply.circulation_minor == 10**12,
    }


def signature_checks_per_second(seconds: float = 1.0) -> float:
    """Ed25519 verifications a second of one thread, of a 400-byte message."""
    key = PrivateKey.generate()
    data = b"x" * 400
    signature, public = key.sign(data), key.public
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(100):
            public.verify(data, signature)
        count += 100
    return count / (time.perf_counter() - began)


def _wallet_files(
    directory: Path, bank: PrivateKey, channel: PrivateKey, ledger: str, ledger_url: str, vault: int
) -> dict[str, str]:
    key_path = directory / "bench-bank.pem"
    if not key_path.exists():
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


def _signed_requests(url: str, ledger: str, holders: list[tuple[PrivateKey, int]], count: int) -> list[bytes]:
    """Raw HTTP requests: payment i goes from holder i to the next."""
    host = urlsplit(url).netloc
    valid_until = system_clock() + timedelta(hours=1)
    found = []
    for number in range(count):
        key, payer = holders[number % len(holders)]
        payee = holders[(number + 1) % len(holders)][1]
        terms = TransferTerms(
            id=ids.new_uuid7(),
            kind=TransferKind.PAYMENT,
            debit=ids.AccountNumber(payer),
            credit=ids.AccountNumber(payee),
            amount_minor=1,
            currency="CNY",
        )
        token = sign_instruction(terms, ledger=ledger, valid_until=valid_until, key=key)
        body = json.dumps({"instruction": token}).encode()
        lines = ("POST /v1/payments HTTP/1.1", f"Host: {host}", "Content-Type: application/json")
        head = "\r\n".join((*lines, f"Content-Length: {len(body)}", "", ""))
        found.append(head.encode() + body)
    return found


def _load(url: str, requests: list[bytes], answer: Connection) -> None:
    answer.send(asyncio.run(_run_load(url, requests)))


async def _run_load(url: str, requests: list[bytes]) -> tuple[float, list[float], dict[str, int]]:
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

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return time.perf_counter() - began, latencies, statuses
