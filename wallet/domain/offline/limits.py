"""Bounds of offline messages and purses, each with its reason."""

from __future__ import annotations

MESSAGE_BYTES_MAX = 12 * 1024
"""Of one message with all its evidence: four QR symbols of version 25; 32 spends with their certificates fit."""
DEPTH_MAX = 5
"""Arrays in arrays: message, list, signed document; payload, list of parts, part."""
ITEMS_MAX = 64
"""Members of one array."""
CERTIFICATES_MAX = 16
FUNDINGS_MAX = 16
SPENDS_MAX = 32
"""Evidence in one message."""
PARTS_MAX = 4
"""Value objects that one payment may join: evidence grows by this factor a hop at worst, and is bounded as a whole."""
HOPS_MAX = 8
"""What a certificate may allow at most."""
COUNTER_MAX = 1_000
"""Payments by one certificate; then the holder gets a new one. Bounds what the books keep of a purse."""
INVOICE_SECONDS_MAX = 900
"""How long an invoice may be paid. Transfers are kept at least as long, so that a repeated payment is the same one."""
OPEN_INVOICES_MAX = 16
UNSYNCED_MAX = 100
"""Messages sent, and as many received, that a purse holds for the next sync."""
HOLDINGS_MAX = 32
"""Value objects in a purse at once."""
FUNDINGS_LOADED_MAX = 256
"""Loads by one certificate: their ids are remembered for its whole life."""
REVOKED_MAX = 500
"""Purses on one revocation list: 8.5 kB. Closed purses leave the list."""
TEXT_MAX = 64
"""Bytes of a name inside a document."""
CLOCK_SKEW_SECONDS = 300
"""How far two devices' clocks may differ."""
