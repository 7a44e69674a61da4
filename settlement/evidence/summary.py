"""The pack for people: one HTML page and the same as PDF. Nothing in it is evidence; the files beside it are."""

from __future__ import annotations

import html
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from kernel.money import Currency, format_minor

ROWS_MAX = 500
PDF_IS_NO_EVIDENCE = "summary.pdf is for reading and is not evidence: no verifier compares it with the pack."
_STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%;margin:1rem 0}th,td{text-align:left;padding:.25rem .5rem;"
    "border-bottom:1px solid #ccc;vertical-align:top}code{font-size:12px;word-break:break-all}"
)
Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def tables_of(manifest: Mapping[str, Any], breaks: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Title, head and rows of each table of the summary."""
    run = manifest["run"]
    facts: list[tuple[str, ...]] = [
        ("participant", str(run["participant"])),
        ("counterparty", str(run["counterparty"])),
        ("account", f"{run['account']} in {run['currency']}"),
        ("as of", str(run["as_of"])),
        ("our side", _side(manifest["inputs"]["ours"])),
        ("their side", _side(manifest["inputs"]["theirs"])),
        ("our lines", f"{run['lines_ours']:,}"),
        ("their lines", f"{run['lines_theirs']:,}"),
        ("matched", f"{run['matched']:,}"),
        ("breaks", _count(manifest["breaks"])),
        ("older breaks closed by this run", f"{run['closed_count']:,}"),
        ("result (SHA-256)", str(run["result_sha256"])),
    ]
    counted = Counter((str(item["type"]), str(item["state"])) for item in breaks)
    by_type: list[tuple[str, ...]] = [(*key, str(count)) for key, count in sorted(counted.items())]
    shown: list[tuple[str, ...]] = [
        (
            str(item["type"]),
            str(item["state"]),
            _amount(item["our_amount_minor"], run["currency"]),
            _amount(item["their_amount_minor"], run["currency"]),
            str(item["sentence"])[:300],
        )
        for item in breaks[:ROWS_MAX]
    ]
    inputs: list[tuple[str, ...]] = [
        (name, f"{what['bytes']:,}", str(what["sha256"])) for name, what in sorted(manifest["files"].items())
    ]
    tables: list[Table] = [
        ("Reconciliation " + str(run["reconciliation"]), ("", ""), facts),
        ("Breaks by type and state", ("type", "state", "count"), by_type),
        (
            "Breaks" if len(breaks) <= ROWS_MAX else f"The first {ROWS_MAX} of {len(breaks):,} breaks",
            ("type", "state", "ours", "theirs", "what"),
            shown,
        ),
        ("Files", ("file", "bytes", "SHA-256"), inputs),
    ]
    return [table for table in tables if table[2]]


def _side(source: Mapping[str, Any]) -> str:
    """Whose word a side is: the bridge's, or that of whoever handed the file in."""
    if source["is_bridge_record"]:
        return "the bridge's own record"
    text = f"a file handed in as {source['counterparty']}'s, not the bridge's record"
    return text if source["is_schema_validated"] is not False else f"{text}; {source['message']}, not schema-validated"


def _count(breaks: Mapping[str, Any]) -> str:
    found, listed = int(breaks["found"]), int(breaks["listed"])
    return f"{found:,}" if found == listed else f"{found:,}, of which the first {listed:,} are listed in this pack"


def write_html(tables: Sequence[Table]) -> bytes:
    parts = [f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Evidence</title><style>{_STYLE}</style>']
    for title, head, rows in tables:
        parts.append(f"<h2>{html.escape(title)}</h2><table>")
        if any(head):
            parts.append("<tr>" + "".join(f"<th>{html.escape(text)}</th>" for text in head) + "</tr>")
        parts += ["<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in rows]
        parts.append("</table>")
    parts.append(
        f"<p>Check this pack with <code>jiaozi-settlement evidence verify FILE</code>. {PDF_IS_NO_EVIDENCE}</p></html>"
    )
    return "".join(parts).encode()


def write_pdf(tables: Sequence[Table]) -> bytes:
    # Here, so that a reader of packs needs no PDF library.
    from reportlab.lib import colors  # type: ignore[import-untyped]
    from reportlab.lib.pagesizes import A4  # type: ignore[import-untyped]
    from reportlab.lib.styles import getSampleStyleSheet  # type: ignore[import-untyped]
    from reportlab.platypus import (  # type: ignore[import-untyped]
        LongTable,
        Paragraph,
        SimpleDocTemplate,
        Spacer,
        TableStyle,
    )

    style = getSampleStyleSheet()
    small = style["BodyText"].clone("small", fontSize=7, leading=9, wordWrap="CJK")
    story: list[Any] = []
    out = io.BytesIO()
    # `invariant`: no time of making and no random id, so that the same content is the same file.
    document = SimpleDocTemplate(out, pagesize=A4, title="Evidence", invariant=1, leftMargin=40, rightMargin=40)
    story.append(Paragraph(PDF_IS_NO_EVIDENCE, style["BodyText"]))
    for title, head, rows in tables:
        story.append(Paragraph(html.escape(_latin(title)), style["Heading2"]))
        cells = [[Paragraph(html.escape(_latin(text)), small) for text in row] for row in rows]
        if any(head):
            cells.insert(0, [Paragraph(f"<b>{html.escape(text)}</b>", small) for text in head])
        widths = _widths(document.width, [head, *rows])
        grid = TableStyle([("LINEBELOW", (0, 0), (-1, -1), 0.25, colors.grey), ("VALIGN", (0, 0), (-1, -1), "TOP")])
        story += [LongTable(cells, colWidths=widths, repeatRows=1 if any(head) else 0, style=grid), Spacer(1, 12)]
    document.build(story)
    return out.getvalue()


def _widths(width: float, rows: Sequence[Sequence[str]]) -> list[float]:
    """By the longest text of each column, none below a tenth."""
    longest = [max(6, min(60, max(len(row[at]) for row in rows))) for at in range(len(rows[0]))]
    return [width * length / sum(longest) for length in longest]


def _latin(text: str) -> str:
    """The standard fonts of PDF have Latin-1; what lies beyond is shown as a question mark, and whole in the HTML."""
    return text.encode("latin-1", "replace").decode("latin-1")


def _amount(minor: str | None, currency: str) -> str:
    return "" if minor is None else format_minor(int(minor), Currency.of(currency))
