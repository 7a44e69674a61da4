"""S2: reconcile a million lines against a million, from CSV files to stored, typed breaks, beside DuckDB's bare join.

0.1 % of the lines are spoilt: each type of break that two tables can show is planted equally often. The measured
process is one of its own, so that its memory is its own; DuckDB joins the same two files in the same run, before and
after. What must be found is known from the planting, break by break.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

LINES = 1_000_000
SPOILT_PER_MILLE = 1
PLANTED = (
    "currency",
    "direction",
    "fx-rate",
    "fee",
    "amount",
    "status",
    "value-date",
    "duplicate",
    "reversed",
    "split-incomplete",
    "ambiguous",
    "unknown-account",
    "missing-there",
    "missing-here",
)
"""Every type of the lines. Types of a statement's papers and of islands are planted by tests of their own."""
_HEAD = (
    "reference,uetr,end_to_end_id,currency,amount,direction,value_date,booked_at,status,group_reference,account,"
    "instructed_amount,instructed_currency\n"
)
_DAY = date(2026, 11, 2)
_FEE_BPS = 100
Expected = set[tuple[str, tuple[str, ...], tuple[str, ...]]]


def write_files(directory: Path, lines: int, *, seed: int = 1) -> Expected:
    """`ours.csv` and `theirs.csv`, theirs in another order; the breaks that they hold."""
    random = np.random.default_rng(seed)
    spoilt = max(len(PLANTED), lines * SPOILT_PER_MILLE // 1_000)
    chosen = random.choice(lines, size=spoilt, replace=False)
    kind_of = {int(at): PLANTED[number % len(PLANTED)] for number, at in enumerate(chosen)}
    high, low = (random.integers(0, 2**64, lines, dtype=np.uint64).tolist() for _ in range(2))
    ours: list[str] = []
    theirs: list[str] = []
    expected: Expected = set()
    for number in range(lines):
        h = f"{high[number]:016x}{low[number]:016x}"
        line = {
            "reference": f"R{number:09d}",
            "uetr": f"{h[:8]}-{h[8:12]}-4{h[13:16]}-a{h[17:20]}-{h[20:]}",
            "end": f"E{number:09d}",
            "currency": "CNY",
            "minor": 10_000 + number * 7_919 % 99_999_999,
            "direction": "CRDT" if number % 2 else "DBIT",
            "date": _DAY,
            "status": "BOOK",
        }
        kind = kind_of.get(number)
        if kind is None:
            text = _text(line)
            ours.append(text)
            theirs.append(text)
        else:
            a, b = _spoil(line, kind, expected)
            ours += a
            theirs += b
    order = random.permutation(len(theirs)).tolist()
    for name, rows in (("ours", ours), ("theirs", [theirs[at] for at in order])):
        with (directory / f"{name}.csv").open("w") as file:
            file.write(_HEAD)
            file.writelines(rows)
    return expected


def _spoil(line: dict[str, Any], kind: str, expected: Expected) -> tuple[list[str], list[str]]:
    """Our lines and theirs with one break between them."""
    reference, minor = line["reference"], line["minor"]
    both: tuple[tuple[str, ...], tuple[str, ...]] = ((reference,), (reference,))
    ours, theirs = [line], [line]
    match kind:
        case "currency":
            theirs = [line | {"currency": "AED"}]
        case "direction":
            theirs = [line | {"direction": _other(line)}]
        case "fx-rate":
            instructed = {"instructed": ("7.00", "USD")}
            ours, theirs = [line | instructed], [line | instructed | {"minor": minor + 3}]
        case "fee":
            lost = -50 if line["direction"] == "CRDT" else 50  # they credit less, or debit more
            theirs = [line | {"minor": minor + lost}]
        case "amount":
            gained = 5_000 if line["direction"] == "CRDT" else -5_000
            theirs = [line | {"minor": minor + gained}]
        case "status":
            theirs = [line | {"status": "PDNG"}]
        case "value-date":
            theirs = [line | {"date": _DAY + timedelta(days=3)}]
        case "duplicate":
            theirs = [line, line | {"reference": "D" + reference}]
            both = ((), ("D" + reference,))
        case "reversed":
            theirs = [line, line | {"reference": "V" + reference, "direction": _other(line)}]
            both = ((), ("V" + reference,))
        case "split-incomplete":
            bare = line | {"uetr": "", "end": "", "group": "G" + reference}
            parts = [bare | {"reference": f"{part}{reference}", "minor": minor // 3} for part in "XY"]
            ours, theirs = [bare], parts
            both = ((reference,), tuple(sorted(part["reference"] for part in parts)))
        case "ambiguous":
            # Two of ours and one of theirs without ids, alike in everything, of an amount of their own.
            bare = line | {"uetr": "", "end": "", "minor": 10**9 + minor}
            ours = [bare | {"reference": f"{name}{reference}"} for name in "AB"]
            theirs = [bare | {"reference": "C" + reference}]
            both = (tuple(item["reference"] for item in ours), ("C" + reference,))
        case "unknown-account":
            theirs = [line | {"account": "acc_00000000099955"}]
            expected.add(("missing-there", (reference,), ()))
            both = ((), (reference,))
        case "missing-there":
            theirs = []
            both = ((reference,), ())
        case _:
            ours = []
            both = ((), (reference,))
    expected.add((kind, *both))
    return [_text(item) for item in ours], [_text(item) for item in theirs]


def _other(line: dict[str, Any]) -> str:
    return "DBIT" if line["direction"] == "CRDT" else "CRDT"


def _text(line: dict[str, Any]) -> str:
    units, cents = divmod(line["minor"], 100)
    amount, currency = line.get("instructed", ("", ""))
    return (
        f"{line['reference']},{line['uetr']},{line['end']},{line['currency']},{units}.{cents:02d},{line['direction']},"
        f"{line['date']},2026-11-02T09:00:00Z,{line['status']},{line.get('group', '')},{line.get('account', '')},"
        f"{amount},{currency}\n"
    )


def duckdb_join(directory: Path) -> tuple[float, float]:
    """Seconds of the bare join: of the two files as they are, and of the join alone once they are loaded."""
    import duckdb

    joined = (
        "SELECT count(*) FILTER (WHERE a.uetr IS NULL), count(*) FILTER (WHERE b.uetr IS NULL), count(*) FILTER (WHERE"
        " a.amount <> b.amount OR a.value_date <> b.value_date OR a.currency <> b.currency"
        " OR a.direction <> b.direction OR a.status <> b.status) FROM {} a FULL OUTER JOIN {} b ON a.uetr = b.uetr"
    )
    files = [f"read_csv('{directory / name}.csv', all_varchar = true)" for name in ("ours", "theirs")]
    with duckdb.connect() as connection:
        began = time.perf_counter()
        connection.execute(joined.format(*files)).fetchall()
        from_files = time.perf_counter() - began
        for name, file in zip(("a", "b"), files, strict=True):
            connection.execute(f"CREATE TABLE lines_{name} AS FROM {file}")
        began = time.perf_counter()
        connection.execute(joined.format("lines_a", "lines_b")).fetchall()
        alone = time.perf_counter() - began
    return from_files, alone


def run_reconciliation(database_url: str, *, lines: int = LINES) -> dict[str, Any]:
    """Seconds and memory of a reconciliation, stored; DuckDB's join beside it; what was planted and found."""
    with tempfile.TemporaryDirectory(prefix="jiaozi-bench-recon-") as name:
        directory = Path(name)
        expected = write_files(directory, lines)
        before = duckdb_join(directory)
        command = [sys.executable, "-m", "tests.bench.reconciliation", "--measure", name, "--database", database_url]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the measured run failed: {done.stderr[-2_000:]}")
        measured = json.loads(done.stdout.splitlines()[-1])
        after = duckdb_join(directory)
    found = {(kind, tuple(sorted(ours)), tuple(sorted(theirs))) for kind, ours, theirs in measured.pop("breaks")}
    planted = {(kind, tuple(sorted(ours)), tuple(sorted(theirs))) for kind, ours, theirs in expected}
    from_files, alone = (min(pair) for pair in zip(before, after, strict=True))
    return {
        **measured,
        "lines_per_side": lines,
        "per_second": 2 * lines / measured["seconds"],
        "duckdb_join_from_files_seconds": from_files,
        "duckdb_join_alone_seconds": alone,
        "of_duckdb_from_files": measured["seconds"] / from_files,
        "of_duckdb_join_alone": measured["seconds"] / alone,
        "planted": dict(sorted(Counter(kind for kind, _, _ in planted).items())),
        "found": dict(sorted(Counter(kind for kind, _, _ in found & planted).items())),
        "not_found": len(planted - found),
        "invented": len(found - planted),
        "invented_examples": sorted(found - planted)[:3],
    }


def measure(directory: Path, database_url: str) -> dict[str, Any]:
    """From the files to stored breaks, by the use cases that the service calls."""
    import resource

    from kernel.database import Database
    from kernel.ids import AccountNumber, ParticipantId, new_uuid7, show_account
    from kernel.money import Currency
    from settlement.domain.reconciliation import Rules
    from settlement.sources import SourceFormat, SourceRead, read_source
    from settlement.store import reconciliation as store
    from settlement.store.reconciliation import SourceRow
    from settlement.usecases.reconcile import NewSource, Wanted, reconcile, take_source

    participant, account = ParticipantId("AAAACNBJ"), AccountNumber(11)
    database = Database(database_url, application_name="bench", pool_size=2)
    clock = lambda: datetime.now(UTC)  # noqa: E731
    # Libraries load more of themselves at their first use, DuckDB's side when it connects: a service has done so.
    read_source(f"{_HEAD}R1,,,CNY,1.00,CRDT,2026-11-02,,BOOK,,,,\n".encode(), SourceFormat.CSV)
    reads: dict[UUID, SourceRead] = {}

    def take(name: str) -> SourceRow:
        content = (directory / f"{name}.csv").read_bytes()
        wanted = NewSource(content, SourceFormat.CSV, participant, name, show_account(account), "bench")
        return take_source(wanted, database=database, files_directory=directory / "kept", clock=clock, reads=reads)

    steps = [time.perf_counter()]
    with ThreadPoolExecutor(2) as pool:  # two requests: the sides of a reconciliation do not wait for each other
        sources = list(pool.map(take, ("ours", "theirs")))
    steps.append(time.perf_counter())
    run = reconcile(
        Wanted(
            new_uuid7(),
            participant,
            "theirs",
            Currency.of("CNY"),
            sources[1].id,
            sources[0].id,
            rules=Rules(fee_minor_max=100),
            as_of=date(2026, 11, 9),
        ),
        account=account,
        run_by="bench",
        database=database,
        files_directory=directory / "kept",
        clock=clock,
        reads=reads,
    )
    steps.append(time.perf_counter())
    breaks: list[tuple[str, list[str], list[str]]] = []
    with database.transaction(isolation="READ COMMITTED") as connection:
        while page := store.findings_of(connection, run.id, after=len(breaks), limit=500):
            breaks += [(row.type, row.our_references, row.their_references) for row in page]
    database.close()
    return {
        "seconds": steps[2] - steps[0],
        "take_both_seconds": steps[1] - steps[0],
        "match_and_store_seconds": steps[2] - steps[1],
        "matched": run.matched,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "breaks": breaks,
    }


def run_alone(*, lines: int = LINES) -> dict[str, Any]:
    """`run_reconciliation` with a PostgreSQL of its own."""
    from kernel import migrate
    from kernel.postgres import EmbeddedPostgres

    with tempfile.TemporaryDirectory(prefix="jiaozi-bench-pg-") as name:
        server = EmbeddedPostgres(Path(name) / "postgres")
        Path(name).chmod(0o755)
        server.start()
        try:
            server.ensure_database("recon")
            migrate.upgrade("settlement", server.url("recon"))
            return run_reconciliation(server.url("recon"), lines=lines)
        finally:
            server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=LINES)
    parser.add_argument("--measure", type=Path)
    parser.add_argument("--database")
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure, arguments.database)))
        return
    print(json.dumps(run_alone(lines=arguments.lines), indent=1))


if __name__ == "__main__":
    main()
