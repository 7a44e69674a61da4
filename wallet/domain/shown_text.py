"""Text that one person writes and another is shown before he pays: names, descriptions, references.

Control characters end lines and steer terminals; the bidirectional embeddings, overrides and isolates show a text in
another order than it was written in, so that what is approved is not what is read. Letters of every script, and the
marks that a script needs, are taken.
Source: Unicode Technical Report 36, section 2.5; CVE-2021-42574.
"""

from __future__ import annotations

NEVER_SHOWN = r"\x00-\x1F\x7F-\x9F\u2028-\u202E\u2066-\u2069"
"""The members of a character class of regular expressions: as Python, Rust and JSON Schema read it."""
SHOWN_TEXT = f"^[^{NEVER_SHOWN}]*$"
