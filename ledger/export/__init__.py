"""The journal as files that a stranger can check: written by `jiaozi-ledger export`, read by `jiaozi-ledger verify`.

`docs/export-format.md` has every byte. The package reads the journal's tables and knows nothing of the engine.
"""

from __future__ import annotations

from ledger.export.layout import FORMAT, ExportUnreadable, Manifest, SegmentEntry
from ledger.export.writer import ExportRefused, export_journal

__all__ = ["FORMAT", "ExportRefused", "ExportUnreadable", "Manifest", "SegmentEntry", "export_journal"]
