"""The journal as files that a stranger can check: written by `jiaozi-ledger export`, read by `jiaozi-ledger verify`.

`docs/export-format.md` has every byte. The package reads the journal's tables and knows nothing of the engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ledger.export.layout import FORMAT, ExportUnreadable, Manifest, SegmentEntry

if TYPE_CHECKING:
    from ledger.export.writer import ExportRefused, export_journal

__all__ = ["FORMAT", "ExportRefused", "ExportUnreadable", "Manifest", "SegmentEntry", "export_journal"]


def __getattr__(name: str) -> Any:
    """Who reads an export needs no database's driver."""
    if name in ("ExportRefused", "export_journal"):
        from ledger.export import writer

        return getattr(writer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
