"""Named bounds of the HTTP edge, each with its reason. Services pass others where an operation needs them."""

from __future__ import annotations

BODY_BYTES_MAX = 64 * 1024
"""An ordinary request is under 4 KiB; 64 KiB leaves room for signed documents."""

BULK_BODY_BYTES_MAX = 8 * 1024 * 1024
"""8,192 transfers of about 900 bytes each: one full batch of the sequencer."""

READ_SECONDS_MAX = 10.0
"""A body must arrive whole within this; slow senders otherwise hold a slot for ever (900 of 900 did, measured)."""

HEADER_SECONDS_MAX = 10.0
"""The same for a request's head (slowloris)."""

HEADER_BYTES_MAX = 32 * 1024
"""Signature headers are about 600 bytes; 32 KiB is generous and bounds memory per connection."""

KEEP_ALIVE_SECONDS = 30
"""Idle connections are closed after this; clients keep a pool and reconnect."""

SHUTDOWN_SECONDS_MAX = 10
"""Requests in flight get this long at a graceful stop; the journal makes any later end safe."""

CONCURRENT_REQUESTS_MAX = 1_024
"""Requests being read or worked on at once in one process: bounds memory at the body bound."""

CONCURRENT_REQUESTS_PER_CLIENT_MAX = 256
"""A quarter of the above, so that no single address can take every slot."""

CONNECTIONS_MAX = 4_096
"""Open sockets of one process, under the usual descriptor limit."""

CONNECTIONS_PER_CLIENT_MAX = 512
"""An eighth of the above: a flood from one address leaves room for the others."""

RETRY_AFTER_SECONDS = 1
"""What a refused client is told to wait: slots turn over in milliseconds."""

JSON_DEPTH_MAX = 32
"""The deepest documented body has 6 levels."""

JSON_NUMBER_DIGITS_MAX = 30
"""A 64-bit amount has 19 digits; converting huge literals is quadratic in CPython."""

JWS_BYTES_MAX = 16 * 1024
"""Instructions are under 1 KiB; statements of authorisation under 4 KiB."""

SIGNATURE_SECONDS_MAX = 300
"""How old a request signature may be; nonces are remembered this long."""

SIGNATURE_SKEW_SECONDS_MAX = 30
"""How far a signer's clock may run ahead of ours."""

NONCES_IN_MEMORY_MAX = 1_000_000
"""About 150 MB at worst; above it every signed request is refused rather than a replay let in."""

PAGE_ITEMS_DEFAULT = 50
PAGE_ITEMS_MAX = 1_000
"""One page stays under a megabyte and one index scan."""

CURSOR_CHARACTERS_MAX = 1_024
"""Positions are two or three keys; more is not ours."""

VALIDATION_ERRORS_MAX = 20
"""Errors named in one validation problem: enough to mend a body, too few to be an amplifier."""

RESPONSE_BYTES_MAX = 64 * 1024 * 1024
"""What a client of ours reads of one response before it gives up."""

RETRIES_MAX = 3
"""Attempts after the first of an idempotent call."""

BUFFERED_BYTES_MAX = 256 * 1024 * 1024
"""Bodies held in memory at once by one process; one client may hold a quarter."""
