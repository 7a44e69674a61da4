"""What a benchmark leaves behind: a table, a chart, and a signed receipt.

python -m tests.bench.report verify build/bench/receipt.jws
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.figure
from rich.table import Table

from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey, PublicKey

RECEIPT_TYP = "jiaozi-benchmark+jws"
_KEY_PATH = Path(__file__).parents[2] / "build" / "bench-key.pem"
"""Not beside the reports, which are published."""
_NOTES = {
    "checkpoint_lag_ms": "log sealed after",
    "client_cpu_us": "client CPU us",
    "ledger_cpu_us": "ledger CPU us",
    "of_raw": "of libsodium's raw verification rate",
    "of_raw_openssl": "of OpenSSL's (`cryptography`)",
    "history_p99_ms": "B5: history p99 ms",
    "history_p50_ms": "B5: history p50 ms",
    "with_reader_per_second": "B5: transfers/s beside",
    "mb_per_million_accounts": "MB a million accounts",
    "start_seconds": "start s",
    "since_snapshot": "transfers replayed",
    "signatures_per_second": "signatures/s",
    "cpu_us_per_transfer": "CPU us a transfer",
    "peak_rss_mb": "peak MB",
}


def write(document: dict[str, Any], directory: Path) -> list[Path]:
    """report.md, chart.svg and receipt.jws. The receipt's key is made once a clone and stays in `build`."""
    directory.mkdir(parents=True, exist_ok=True)
    if not _KEY_PATH.exists():
        _KEY_PATH.parent.mkdir(exist_ok=True)
        PrivateKey.generate().save(_KEY_PATH)
    key = PrivateKey.load(_KEY_PATH)
    signed = {**json.loads(json.dumps(document, default=float)), "key": key.public.to_jwk()}
    payload = json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()
    paths = [directory / name for name in ("report.md", "chart.svg", "receipt.jws")]
    paths[0].write_text(_markdown(document), encoding="utf-8")
    _chart(document, paths[1])
    paths[2].write_text(jws.sign(payload, key, typ=RECEIPT_TYP) + "\n", encoding="utf-8")
    return paths


def verify(path: Path) -> dict[str, Any]:
    """The figures of a receipt that is signed by the key it names. Raises kernel.crypto.jws.InvalidJws."""
    token = path.read_text(encoding="utf-8").strip()
    claimed = json.loads(jws.peek_payload(token, bytes_max=2**22))
    jws.verify(token, PublicKey.from_jwk(claimed["key"]), typ=RECEIPT_TYP, bytes_max=2**22)
    found: dict[str, Any] = claimed
    return found


def table(document: dict[str, Any]) -> Table:
    found = Table("row", "work", "figure", "x pgbench", "target", "p50 ms", "p99 ms", "MB", "money", "more")
    for cells in _rows(document):
        found.add_row(*cells)
    return found


def _rows(document: dict[str, Any]) -> list[list[str]]:
    rows = []
    for item in document["rows"]:
        more = "; ".join(f"{text} {_show(item[name])}" for name, text in _NOTES.items() if name in item)
        runs = f" ({', '.join(_show(value) for value in item['runs'])})" if len(item["runs"]) > 1 else ""
        conserved = item.get("conserved")
        once = item.get("found_once")
        rows.append(
            [
                item["row"],
                item["title"],
                f"{_show(item['value'])} {item['unit']}{runs}",
                f"{item['x_pgbench']:.2f}" if item["x_pgbench"] is not None else "",
                item["target"],
                _show(item.get("batch_p50_ms", item.get("latency_p50_ms", ""))),
                _show(item.get("batch_p99_ms", item.get("latency_p99_ms", ""))),
                _show(item.get("ledger_rss_mb", item.get("peak_rss_mb", ""))),
                ""
                if conserved is None
                else ("conserved" if conserved else "NOT CONSERVED")
                + ("" if once is None else ", each id once" if once else ", IDS NOT ONCE"),
                more,
            ]
        )
    return rows


def _show(value: object) -> str:
    if isinstance(value, (int, float)):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.2f}"
    return str(value)


def _markdown(document: dict[str, Any]) -> str:
    machine, durability = document["machine"], document["durability"]
    head = ["row", "work", "figure", "x pgbench TPC-B", "target", "p50 ms", "p99 ms", "MB", "money", "more"]
    lines = [
        f"# Benchmarks of {document['began'][:10]}",
        "",
        f"`make bench` on {machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, Python"
        f" {machine['python']}, {machine['system']}. Each ratio is to pgbench TPC-B-like, 8 clients, run directly"
        " before its row on the same server.",
        "",
        "Durability: " + ", ".join(f"{name} {value}" for name, value in durability.items()) + ".",
        "",
        "![throughput and latency over load, throughput over journal size](chart.svg)",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(cells) + " |" for cells in _rows(document)),
        "",
        f"Began {document['began']}, ended {document['ended']}. Figures, machine and checkpoint are signed in"
        " `receipt.jws`: `python -m tests.bench.report verify receipt.jws`.",
        "",
    ]
    return "\n".join(lines)


def _chart(document: dict[str, Any], path: Path) -> None:
    rows = {item["row"]: item for item in document["rows"]}
    figure = matplotlib.figure.Figure(figsize=(11, 4), layout="constrained")
    load, size = figure.subplots(1, 2)
    curve = rows.get("B1", {}).get("load_curve", [])
    if curve:
        connections = [point["connections"] for point in curve]
        load.bar([str(each) for each in connections], [point["per_second"] for point in curve], color="#9ec5e8")
        load.set_xlabel("batches of 8192 in flight")
        load.set_ylabel("durable transfers/s")
        late = load.twinx()
        for name, style in (("p50", "o-"), ("p99", "s--")):
            values = [point[f"batch_{name}_ms"] for point in curve]
            late.plot([str(each) for each in connections], values, style, color="#b5482a", label=f"{name} ms")
        late.set_ylabel("latency of a batch, ms")
        late.set_ylim(bottom=0)
        late.legend(loc="upper left")
    load.set_title("over load (B1)")
    points = rows.get("B4", {}).get("growth", [])
    if points:
        size.plot([point["journal"] / 1e6 for point in points], [point["per_second"] for point in points], ".")
        size.set_xlabel("transfers in the journal, millions")
        size.set_ylabel("transfers/s while it grew")
        size.set_ylim(bottom=0)
    size.set_title("over journal size (B4's past, booked by the engine)")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "verify":
        sys.exit(__doc__)
    sys.stdout.write(json.dumps(verify(Path(sys.argv[2])), indent=2) + "\n")
