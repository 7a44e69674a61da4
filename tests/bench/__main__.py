"""`make bench`: every row measured beside PostgreSQL's own TPC-B in the same run. Nothing here fails a build.

make bench              all rows, half an hour and more (the growth rows book 50 million transfers first)
make bench ONLY=B1      one row
make bench QUICK=1      smaller sizes for the growth rows
make bench RUNS=3       each row so often; the table shows the medians

Writes a report (Markdown), a chart (SVG) and a receipt (figures, machine, durability settings and the ledger's last
checkpoint, as a signed JWS) to build/bench; `python -m tests.bench.report verify RECEIPT` checks a receipt.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.bench import bulk, growth, liquidity, messages, payments, reconciliation, report, settlement, verify
from tests.bench.scene import Scene, machine, row, scene

PGBENCH_SECONDS = 10
console = Console(stderr=True, width=160)


@dataclass(frozen=True)
class Sizes:
    bulk_transfers: int = 2_000_000
    payments: int = 16_000
    signed_batches: int = 8
    accounts: int = 10_000_000
    journal: int = 50_000_000
    since_snapshot: int = 950_000
    verified: int = 3_000_000
    queued: int = 10_000
    solver_seconds: float = 20.0
    pacs009: int = 100_000
    settlements: int = 20_000


QUICK = Sizes(
    bulk_transfers=800_000,
    payments=4_000,
    signed_batches=4,
    accounts=1_000_000,
    journal=4_000_000,
    verified=2_000_000,
    settlements=4_000,
    solver_seconds=5.0,
)


def b1(stage: Scene, sizes: Sizes) -> dict[str, Any]:
    return bulk.run_bulk(stage, name="bench_b1", transfers=sizes.bulk_transfers, hot=False, with_load_curve=True)


def b2(stage: Scene, sizes: Sizes) -> dict[str, Any]:
    return bulk.run_bulk(stage, name="bench_b2", transfers=sizes.bulk_transfers, hot=True)


def b3(stage: Scene, sizes: Sizes) -> dict[str, Any]:
    return payments.run_payments(stage, name="bench_b3", payments=sizes.payments)


def b3_bulk(stage: Scene, sizes: Sizes) -> dict[str, Any]:
    raw, openssl = (payments.signature_checks_per_second(threads=2, openssl=which) for which in (False, True))
    found = payments.run_signed_bulk(stage, name="bench_b3_bulk", batches=sizes.signed_batches)
    rates = {"raw_signature_checks": raw, "raw_signature_checks_openssl": openssl}
    return {**found, **rates, "of_raw": found["per_second"] / raw, "of_raw_openssl": found["per_second"] / openssl}


def b4(stage: Scene, sizes: Sizes) -> dict[str, Any]:
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    ) as bar:
        tasks = {what: bar.add_task(f"B4 {what}", total=None) for what in ("accounts", "transfers")}

        def progress(what: str, done: int, total: int) -> None:
            bar.update(tasks[what], completed=done, total=total)

        return growth.run_growth(
            stage,
            accounts=sizes.accounts,
            transfers=sizes.journal,
            measured=sizes.bulk_transfers,
            progress=progress,
        )


def b6(stage: Scene, sizes: Sizes) -> dict[str, Any]:
    return growth.run_recovery(stage, transfers=sizes.since_snapshot)


def s4(stage: Scene, sizes: Sizes) -> dict[str, Any]:
    return liquidity.run_liquidity(instructions=sizes.queued, solver_seconds=sizes.solver_seconds)


def b7(stage: Scene, sizes: Sizes) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="jiaozi-bench-export-") as directory:
        return verify.run_verify(Path(directory), plain=sizes.verified)


def s3(stage: Scene, sizes: Sizes) -> dict[str, Any]:
    return messages.run_messages(stage, instructions=sizes.pacs009)


def s1(stage: Scene, sizes: Sizes) -> dict[str, Any]:
    name = f"bench_s1_{token_hex(3)}"  # its databases are three: a second run makes its own
    return settlement.run_settlements(stage, name=name, settlements=sizes.settlements)


def s2(stage: Scene, sizes: Sizes) -> dict[str, Any]:
    return reconciliation.run_alone()


@dataclass(frozen=True)
class Row:
    title: str
    unit: str
    target: str
    run: Callable[[Scene, Sizes], dict[str, Any]]
    value: str = "per_second"


ROWS = {
    "B1": Row("bulk transfers, 100k accounts, batches of 8192", "transfers/s", ">= 300,000 and >= 60 x pgbench", b1),
    "B2": Row("the same, one hot account in every transfer", "transfers/s", ">= B1", b2),
    "B3": Row("signed payments, one a request, 64 clients", "payments/s", ">= 0.5 x pgbench, p99 <= 50 ms", b3),
    "B3-bulk": Row("signed instructions, 8192 a request", "payments/s", ">= 50 % of raw verification", b3_bulk),
    "B4": Row("B1 on a grown journal (B5: histories beside it)", "transfers/s", ">= 0.8 x B1", b4),
    "B6": Row("SIGKILL to serving again", "seconds", "<= 5 s", b6, value="seconds"),
    "B7": Row("verify an export, all cores", "transfers/s", ">= 1,000,000", b7),
    "S1": Row("payment-versus-payment, two ledgers, two legs each", "settlements/s", ">= 2,000", s1),
    "S2": Row("reconcile 1M against 1M lines", "seconds", "<= 30 s, <= 4 x DuckDB's join", s2, value="seconds"),
    "S4": Row("netting and gridlock run, 10k queued, 50 x 5 positions", "seconds", "<= 2 s", s4, value="seconds"),
    "S3": Row("parse, validate, store a pacs.009 of 100k", "seconds", "<= 15 s, <= 300 MB", s3, value="seconds"),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", choices=sorted(ROWS), action="append")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--runs", type=int, default=1, choices=range(1, 10))
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else Sizes()
    with scene() as stage:
        document: dict[str, Any] = {
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "durability": stage.durability(),
            "sizes": vars(sizes),
            "rows": [],
        }
        console.print(document["machine"], document["durability"])
        for name in arguments.only or ROWS:
            runs = [_measure(stage, name, sizes, number) for number in range(1, arguments.runs + 1)]
            document["rows"].append(_median(name, runs))
        document["ended"] = datetime.now(UTC).isoformat(timespec="seconds")
    for path in report.write(document, arguments.out):
        console.print(f"wrote {path}")
    console.print(report.table(document))


def _measure(stage: Scene, name: str, sizes: Sizes, number: int) -> dict[str, Any]:
    """One run of a row, and TPC-B directly before it: the ratio is of what the machine does at that time."""
    wanted = ROWS[name]
    with console.status(f"{name}, run {number}: pgbench TPC-B-like, 8 clients"):
        tpcb = stage.pgbench(clients=8, seconds=PGBENCH_SECONDS)
    console.print(f"{name}, run {number}: {wanted.title} (pgbench TPC-B, 8 clients: {tpcb:,.0f}/s)")
    found = wanted.run(stage, sizes) | {"pgbench_tpcb_8": tpcb}
    stage.forget(f"bench_{name.lower().replace('-', '_')}")
    ratios = {"pgbench_tpcb_8": round(found[wanted.value] / tpcb, 3)} if wanted.value == "per_second" else {}
    row(name, found[wanted.value], wanted.unit, ratios, **found)
    return found


def _median(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run in the middle (by the row's figure), with the range of all."""
    wanted = ROWS[name]
    values = [run[wanted.value] for run in runs]
    middle = sorted(runs, key=lambda run: float(run[wanted.value]))[len(runs) // 2]
    return {
        "row": name,
        "title": wanted.title,
        "unit": wanted.unit,
        "target": wanted.target,
        "value": middle[wanted.value],
        "runs": values,
        "x_pgbench": statistics.median(run[wanted.value] / run["pgbench_tpcb_8"] for run in runs)
        if wanted.value == "per_second"
        else None,
        **middle,
    }


if __name__ == "__main__":
    main()
