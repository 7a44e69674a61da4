"""B7: `jiaozi-ledger verify` of an exported journal, as typed: one process, all cores, memory measured from outside.

Two exports are made beforehand, by numpy and not by a ledger (that would take minutes): one of millions of plain
transfers between 100,000 accounts in blocks of 8192, with a transparency log; one of payments that holders have signed.
"""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from kernel import ids
from kernel.clock import from_micros, to_micros
from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey
from kernel.transparency.checkpoints import Checkpoint
from kernel.transparency.notes import KeyKind, Note, VerifierKey, sign_text, to_base64
from kernel.transparency.tiles import GrowingTree
from ledger.contract import Approval, Proposal, sign_approval, sign_proposal
from ledger.export import layout, log
from ledger.export.source import Group, Position
from ledger.export.writer import ExportDirectory
from ledger.log import leaves
from ledger.verifier.documents import encode_key

PLAIN_TRANSFERS = 5_000_000
SIGNED_TRANSFERS = 120_000
ACCOUNTS = 100_000
WALLETS = 500
BLOCK = 8192
_CHECKPOINT_BLOCKS = 50
"""About a second of traffic at 400,000 transfers/s."""
_PAYMENT, _EXCHANGE_IN, _ISSUE = 4, 2, 0
_VAULT, _WALLET = 1, 2
_START = datetime(2026, 11, 23, 1, 0, tzinfo=UTC)
_FUNDS = 10**15
_LEDGER = "bench-cny"


def run_verify(directory: Path, *, plain: int = PLAIN_TRANSFERS, signed: int = SIGNED_TRANSFERS) -> dict[str, Any]:
    """Transfers/s of plain transfers with their log, signatures/s of signed ones, peak memory of all processes."""
    first, key = directory / "plain", PrivateKey.generate()
    began = time.perf_counter()
    bench = _Bench(key)
    bench.open_vaults(ACCOUNTS)
    bench.pay(plain)
    bench.write(first)
    made = time.perf_counter() - began
    found = _verify(first, bench.verifier_key)
    second = directory / "signed"
    bench = _Bench(key)
    bench.open_wallets(WALLETS)
    bench.pay_signed(signed)
    bench.write(second)
    with_signatures = _verify(second, bench.verifier_key)
    for report, wanted in ((found, plain), (with_signatures, signed)):
        if not report["is_whole"] or report["proved"]["transfers"] < wanted:
            raise RuntimeError(f"the generated journal does not verify: {report['findings']}")
    raw = _raw_signatures_per_second()
    return {
        "transfers": found["proved"]["transfers"],
        "generated_seconds": round(made, 1),
        "export_mb": round(sum(file.stat().st_size for file in first.rglob("*") if file.is_file()) / 2**20),
        "per_second": found["proved"]["transfers"] / found["seconds"],
        "seconds": found["seconds"],
        "cpu_us_per_transfer": found["cpu"] / found["proved"]["transfers"] * 1e6,
        "leaves_of_the_log": found["proved"]["leaves of the log"],
        "checkpoints": found["proved"]["roots of checkpoints"],
        "signatures": with_signatures["proved"]["instructions signed by the owner"],
        "signatures_per_second": signed / with_signatures["seconds"],
        "cpu_us_per_signature": with_signatures["cpu"] / signed * 1e6,
        "raw_signature_checks_1_thread": raw,
        "peak_rss_mb": round(max(found["rss"], with_signatures["rss"]) / 2**20),
        "peak_private_mb": round(max(found["private"], with_signatures["private"]) / 2**20),
    }


def _verify(directory: Path, log_key: VerifierKey) -> dict[str, Any]:
    """The command's own report, its time from start to end, and the peak memory of it and its children.

    `rss` counts mapped files too, which the system can drop at any time; `private` is what is really taken."""
    command = [sys.executable, "-m", "ledger", "verify", "--json", "--export", str(directory)]
    began = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(
        [*command, "--log-key", str(log_key)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    rss = private = 0
    while process.poll() is None:
        sums = [0, 0]
        try:
            parent = psutil.Process(process.pid)
            for one in [parent, *parent.children(recursive=True)]:
                memory = one.memory_full_info()
                sums[0], sums[1] = sums[0] + memory.rss, sums[1] + memory.uss
        except psutil.Error:
            pass  # it has just ended
        rss, private = max(rss, sums[0]), max(private, sums[1])
        time.sleep(0.25)
    seconds = time.perf_counter() - began
    if process.stdout is None:
        raise RuntimeError("no output")
    report: dict[str, Any] = json.loads(process.stdout.read())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return report | {"seconds": seconds, "cpu": cpu, "rss": rss, "private": private}


def _raw_signatures_per_second() -> float:
    key = PrivateKey.generate()
    message, count = b"x" * 300, 3_000
    signature = key.sign(message)
    began = time.perf_counter()
    for _ in range(count):
        key.public.verify(message, signature)
    return count / (time.perf_counter() - began)


@dataclass
class _Block:
    """What goes into one block; the rest of its header follows."""

    transfers: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(0, layout.TRANSFER))
    evidence: list[bytes] = field(default_factory=list)
    """An instruction for each transfer, or for none of them."""
    directive: tuple[str, bytes | None, bytes] | None = None
    accounts: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(0, layout.ACCOUNT))
    keys: Sequence[bytes] = ()


class _Bench:
    """A journal in the making. One participant; operators: one makes, one approves."""

    def __init__(self, log_key: PrivateKey) -> None:
        self.operators = [PrivateKey.generate(), PrivateKey.generate()]
        self.log_key = log_key
        self.verifier_key = VerifierKey(_LEDGER, KeyKind.ED25519, log_key.public)
        self.master = bytes(range(32))
        self.position = Position()
        self.groups: list[Group] = []
        self.checkpoints: list[log.Checkpoint] = []
        self.tree = GrowingTree()
        self.head: Any = None
        self.totals = dict.fromkeys(("issued", "redeemed", "vaults", "wallets", "offline", "held"), 0)
        self.accounts = 1
        self.random = np.random.default_rng(7)
        self.wallets: list[tuple[int, PrivateKey]] = []
        genesis = {
            "kind": "genesis",
            "ledger": _LEDGER,
            "currency": "CNY",
            "time_zone": "Asia/Shanghai",
            "approvals_needed": 1,
            "operators": [
                {"name": name, "key": key.public.to_jwk()}
                for name, key in zip(("maker", "checker"), self.operators, strict=True)
            ],
            "rule_classes": [{"name": "daily", "day_max_minor": str(_FUNDS), "year_max_minor": str(_FUNDS)}],
            "key_recovery_seconds": 86_400,
        }
        self.seal(_Block(directive=("genesis", None, jws.canonical_json(genesis))))
        self.order(
            action="register-participant",
            participant="BENCHCNB",
            name="bank",
            role="intermediary",
            key=PrivateKey.generate().public.to_jwk(),
            quota_minor=str(_FUNDS),
        )

    # --- what happens

    def open_vaults(self, count: int) -> None:
        """The first holds all money that there is, then each of the others some."""
        for first in range(2, count + 2, 10_000):
            self._open(min(10_000, count + 2 - first), _VAULT)
        self._issue()
        others = np.arange(3, count + 2)
        for start in range(0, len(others), BLOCK):
            part = others[start : start + BLOCK]
            self.seal(_Block(self._transfers(_PAYMENT, np.full(len(part), 2), part, np.full(len(part), 10**8))))

    def pay(self, count: int) -> None:
        for start in range(0, count, BLOCK):
            size = min(BLOCK, count - start)
            debit = self.random.integers(3, self.accounts, size)
            credit = self.random.integers(3, self.accounts, size)
            credit[credit == debit] = 2
            self.seal(_Block(self._transfers(_PAYMENT, debit, credit, self.random.integers(1, 100, size))))

    def open_wallets(self, count: int) -> None:
        self._open(1, _VAULT)
        keys = [PrivateKey.generate() for _ in range(count)]
        self.wallets = [(self.accounts + 1 + place, key) for place, key in enumerate(keys)]
        self._open(count, _WALLET, [encode_key(key.public) for key in keys])
        self._issue()
        numbers = np.array([number for number, _ in self.wallets])
        moved = self._transfers(_EXCHANGE_IN, np.full(count, 2), numbers, np.full(count, 10**8))
        self.totals["vaults"] -= count * 10**8
        self.totals["wallets"] += count * 10**8
        self.seal(_Block(moved))

    def pay_signed(self, count: int) -> None:
        for start in range(0, count, BLOCK):
            size = min(BLOCK, count - start)
            payers = self.random.integers(0, len(self.wallets), size)
            payees = (payers + self.random.integers(1, len(self.wallets), size)) % len(self.wallets)
            numbers = np.array([number for number, _ in self.wallets])
            records = self._transfers(
                _PAYMENT, numbers[payers], numbers[payees], self.random.integers(1, 100, size), submitter=1
            )
            tokens = [
                self._instruction(row, self.wallets[payer][1])
                for row, payer in zip(records, payers.tolist(), strict=True)
            ]
            self.seal(_Block(records, tokens))

    def order(self, **action: Any) -> None:
        proposal = Proposal.model_validate(
            {
                "ledger": _LEDGER,
                "mandate": ids.new_uuid7(),
                "action": action,
                "valid_until": _START + timedelta(days=1),
            }
        )
        token = sign_proposal(proposal, key=self.operators[0])
        sha256 = hashlib.sha256(jws.peek_payload(token)).digest()
        approval = Approval(ledger=_LEDGER, mandate=proposal.mandate, proposal_sha256=sha256)
        approvals = [sign_approval(approval, key=self.operators[1])]
        body = jws.canonical_json({"kind": action["action"], "proposal": token, "approvals": approvals})
        block = _Block(directive=(action["action"], proposal.mandate.bytes, body))
        if action["action"] == "issue":
            block.transfers = self._transfers(_ISSUE, np.array([1]), np.array([2]), np.array([_FUNDS]), submitter=0)
            own = ids.parse("trf", action["transfer"]).int
            block.transfers["id_high"], block.transfers["id_low"] = own >> 64, own & (2**64 - 1)
            self.totals["issued"] = self.totals["vaults"] = _FUNDS
        self.seal(block)

    def _issue(self) -> None:
        transfer = ids.show("trf", ids.uuid7_at(int(_START.timestamp() * 1000)))
        vault = ids.show_account(2)
        self.order(action="issue", transfer=transfer, vault=vault, amount_minor=str(_FUNDS), currency="CNY")

    def _open(self, count: int, kind: int, keys: Sequence[bytes] = ()) -> None:
        accounts = np.zeros(count, layout.ACCOUNT)
        accounts["number"] = np.arange(self.accounts + 1, self.accounts + 1 + count)
        accounts["opening"] = [np.void(ids.new_uuid7().bytes) for _ in range(count)]
        accounts["kind"], accounts["participant"], accounts["class_length"] = kind, 1, 5
        accounts["key_length"] = [len(key) for key in keys] if keys else -1
        self.seal(_Block(accounts=accounts, keys=keys))
        self.accounts += count

    def _transfers(self, kind: int, debit: Any, credit: Any, amount: Any, *, submitter: int = 1) -> Any:
        records = np.zeros(len(debit), layout.TRANSFER)
        records["kind"], records["debit"], records["credit"], records["amount"] = kind, debit, credit, amount
        records["submitter"] = submitter
        records["seq"] = np.arange(self.position.seq + 1, self.position.seq + 1 + len(records))
        millis = np.uint64(self._now() // 1000) + (np.arange(len(records), dtype=np.uint64) >> np.uint64(12))
        counter = np.arange(len(records), dtype=np.uint64) & np.uint64(0xFFF)
        records["id_high"] = (millis << np.uint64(16)) | np.uint64(0x7000) | counter
        records["id_low"] = np.uint64(2**63) | self.random.integers(0, 2**62, len(records), dtype=np.uint64)
        return records

    def _instruction(self, row: Any, key: PrivateKey) -> bytes:
        own = (int(row["id_high"]) << 64 | int(row["id_low"])).to_bytes(16, "big")
        text = own.hex()
        shown = f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
        document = {
            "ledger": _LEDGER,
            "terms": {
                "id": f"trf_{shown}",
                "kind": "payment",
                "debit": ids.show_account(int(row["debit"])),
                "credit": ids.show_account(int(row["credit"])),
                "amount_minor": str(int(row["amount"])),
                "currency": "CNY",
            },
            "valid_until": "2026-11-23T08:00:00.000000Z",
        }
        return jws.sign(jws.canonical_json(document), key, typ="jiaozi-instruction+jws").encode()

    # --- how it is kept

    def _now(self) -> int:
        return to_micros(_START) + self.position.block * 20_000

    def seal(self, block: _Block) -> None:
        before, now, transfers = self.position, self._now(), block.transfers
        transfers["booked_at"], block.accounts["opened_at"] = now, now
        sections: dict[str, bytes] = {"transfers": transfers.tobytes()}
        digests: dict[int, bytes] = {}
        evidence = np.zeros(len(block.evidence), layout.EVIDENCE)
        packed: list[bytes] = []
        if block.evidence:
            evidence["seq"], evidence["kind"] = transfers["seq"], 1
            raw, size = transfers.tobytes(), layout.TRANSFER.itemsize
            evidence["transfer"] = [np.void(raw[start + 8 : start + 24]) for start in range(0, len(raw), size)]
            evidence["length"] = [len(token) for token in block.evidence]
            for seq, token in zip(transfers["seq"].tolist(), block.evidence, strict=True):
                packed.append(_evidence_item(seq, 1, token))
                digests[seq] = hashlib.sha256(packed[-1]).digest()
        elif len(transfers) and int(transfers[0]["kind"]) == _ISSUE:
            evidence = np.zeros(1, layout.EVIDENCE)
            body = (before.directive + 1).to_bytes(8, "big")
            evidence["seq"], evidence["kind"], evidence["length"] = transfers["seq"], 3, 8
            evidence["transfer"] = np.void(transfers.tobytes()[8:24])
            block.evidence = [body]
            packed.append(_evidence_item(int(transfers[0]["seq"]), 3, body))
            digests[int(transfers[0]["seq"])] = hashlib.sha256(packed[-1]).digest()
        sections |= {"evidence": evidence.tobytes(), "evidence-bodies": b"".join(block.evidence)}
        directives = b""
        if block.directive is not None:
            kind, mandate, body = block.directive
            record = np.zeros(1, layout.DIRECTIVE)
            record["number"], record["booked_at"] = before.directive + 1, now
            record["has_mandate"], record["mandate"] = mandate is not None, np.void(mandate or bytes(16))
            record["kind_length"], record["body_length"] = len(kind), len(body)
            sections |= {"directives": record.tobytes(), "directive-texts": kind.encode() + body}
            directives = (before.directive + 1).to_bytes(8, "big") + len(body).to_bytes(4, "big") + body
        name, keys = b"daily", block.keys or [b""] * len(block.accounts)
        sections["accounts"] = block.accounts.tobytes()
        sections["account-texts"] = b"".join(name + key for key in keys)
        accounts = b"".join(
            record.tobytes()[:29] + bytes([len(name)]) + name + bytes([len(key)]) + key
            for record, key in zip(block.accounts, keys, strict=True)
        )
        header = np.zeros(1, layout.BLOCK)
        header["number"], header["epoch"], header["booked_at"] = before.block + 1, 1, now
        header["first_seq"], header["transfer_count"] = before.seq + 1, len(transfers)
        header["first_directive"], header["directive_count"] = before.directive + 1, int(block.directive is not None)
        header["first_account"], header["account_count"] = self.accounts + (before.block > 0), len(block.accounts)
        for total, value in self.totals.items():
            header[total] = value
        for digest, data in (
            ("transfers_digest", sections["transfers"]),
            ("evidence_digest", b"".join(packed)),
            ("directives_digest", directives),
            ("accounts_digest", accounts),
        ):
            header[digest] = np.void(hashlib.sha256(data).digest())
        header["previous_hash"] = np.void(before.block_hash)
        own = hashlib.sha256(b"jiaozi-block-v1" + header.tobytes()[: layout.BLOCK_HASHED_BYTES]).digest()
        header["hash"] = np.void(own)
        sections["blocks"] = header.tobytes()
        self.position = replace(
            before,
            block=before.block + 1,
            block_hash=own,
            seq=before.seq + len(transfers),
            directive=before.directive + int(block.directive is not None),
            account=self.accounts + len(block.accounts),
        )
        self.groups.append(Group(self.position, sections, 1, len(transfers)))
        self.tree.append(leaves.leaf_hashes(self.master, transfers, digests))
        self.head = header[0]
        if len(transfers) and self.position.block % _CHECKPOINT_BLOCKS == 0:
            self._checkpoint()

    def _checkpoint(self) -> None:
        seq, booked_at = self.position.seq, int(self.head["booked_at"])
        statement = jws.canonical_json(
            {
                **{f"{name}_minor": str(value) for name, value in self.totals.items()},
                "ledger": _LEDGER,
                "currency": "CNY",
                "block": self.position.block,
                "seq": seq,
                "booked_at": from_micros(booked_at).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                "circulation_minor": str(self.totals["issued"] - self.totals["redeemed"]),
            }
        )
        commitment = leaves.block_commitment(self.master, self.position.block, self.position.block_hash)
        lines = (
            f"block {self.position.block} {to_base64(commitment)}",
            f"supply {to_base64(hashlib.sha256(statement).digest())}",
        )
        text = Checkpoint(_LEDGER, seq, self.tree.root(), lines).text
        note = Note(text, (sign_text(text, name=_LEDGER, key=self.log_key),))
        self.checkpoints.append(log.Checkpoint(self.position.block, seq, str(note).encode(), statement))

    def write(self, directory: Path) -> None:
        if not self.checkpoints or self.checkpoints[-1].size < self.position.seq:
            self._checkpoint()
        target = ExportDirectory(directory, durable=False)
        while target.add_segment(_Made(self), _MadeLog(self)) is not None:  # type: ignore[arg-type]
            pass


@dataclass
class _Made:
    """Stands where a database is read otherwise."""

    bench: _Bench

    def groups(self, position: Position, *, transfers_max: int) -> Iterator[Group]:
        return iter([group for group in self.bench.groups if group.position.block > position.block])


@dataclass
class _MadeLog:
    bench: _Bench

    def checkpoints(self, *, after: int, through: int) -> Iterator[log.Checkpoint]:
        return iter([item for item in self.bench.checkpoints if after < item.block <= through])

    def closings(self, *, after: int, through: int) -> Iterator[log.Closing]:
        return iter(())

    def range_key(self, number: int) -> bytes | None:
        return leaves.range_key(self.bench.master, number)

    def block_salt(self, number: int) -> bytes | None:
        return leaves.block_salt(self.bench.master, number)


def _evidence_item(seq: int, kind: int, body: bytes) -> bytes:
    return seq.to_bytes(8, "big") + bytes([kind]) + len(body).to_bytes(4, "big") + body
