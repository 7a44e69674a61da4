"""The transparency log of the ledger: every booked transfer is a leaf, every second a signed checkpoint.

`leaves` says what is hashed; `sealer` grows the tree and seals, in a process of its own (`process`) beside the
ledger's, which feeds it (`feed`); `witnesses` collects cosignatures; `queries` reads for the API.
Formats: docs/transparency.md.
"""
