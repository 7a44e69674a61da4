"""`make bench`: every row measured beside PostgreSQL's own TPC-B in the same run. Nothing here fails a build.

make bench            all rows
make bench ONLY=B1    one row
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench import bulk, payments
from tests.bench.scene import Scene, machine, row, scene

PGBENCH_SECONDS = 10
console = Console(stderr=True)


def b1(stage: Scene, tpcb: float) -> dict[str, Any]:
    return _bulk(stage, "B1", tpcb, hot=False)


def b2(stage: Scene, tpcb: float) -> dict[str, Any]:
    return _bulk(stage, "B2", tpcb, hot=True)


def _bulk(stage: Scene, name: str, tpcb: float, *, hot: bool) -> dict[str, Any]:
    found = bulk.run_bulk(stage, name=f"bench_{name.lower()}", transfers=800_000, hot=hot)
    row(
        name,
        found["per_second"],
        "durable transfers/s",
        {"pgbench_tpcb_8": round(found["per_second"] / tpcb, 2)},
        **found,
    )
    return found


def b3(stage: Scene, tpcb: float) -> dict[str, Any]:
    raw = payments.signature_checks_per_second()
    found = payments.run_payments(stage, name="bench_b3", payments=4_000)
    ratios = {
        "pgbench_tpcb_8": round(found["per_second"] / tpcb, 3),
        "raw_signature_checks_1_thread": round(found["per_second"] / raw, 3),
    }
    row("B3", found["per_second"], "signed payments/s", ratios, **found)
    return found


ROWS: dict[str, tuple[str, Callable[[Scene, float], dict[str, Any]]]] = {
    "B1": ("bulk transfers, 100k accounts, batches of 8192", b1),
    "B3": ("signed payments, one a request, 64 clients", b3),
    "B2": ("the same, one hot account in every transfer", b2),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", choices=sorted(ROWS), action="append")
    chosen = parser.parse_args().only or sorted(ROWS)
    with scene() as stage:
        console.print(machine())
        console.print(stage.durability())
        with console.status("pgbench TPC-B-like, 8 clients"):
            tpcb = stage.pgbench(clients=8, seconds=PGBENCH_SECONDS)
        row("PGBENCH", tpcb, "transactions/s", {"pgbench_tpcb_8": 1.0}, clients=8, seconds=PGBENCH_SECONDS)
        table = Table("row", "work", "per second", "x pgbench", "p50 ms", "p99 ms", "ledger MB", "money conserved")
        table.add_row("PGBENCH", "TPC-B-like, 8 clients", f"{tpcb:,.0f}", "1.0", "", "", "", "")
        for name in chosen:
            title, run = ROWS[name]
            with console.status(f"{name}: {title}"):
                found = run(stage, tpcb)
            table.add_row(
                name,
                title,
                f"{found['per_second']:,.0f}",
                f"{found['per_second'] / tpcb:.1f}",
                f"{found['batch_p50_ms']:.1f}",
                f"{found['batch_p99_ms']:.1f}",
                f"{found['ledger_rss_mb']:.0f}",
                "yes" if found["conserved"] else "NO",
            )
        console.print(table)


if __name__ == "__main__":
    main()
