"""Transparency logs: RFC 6962 Merkle trees, C2SP tiles, signed notes, checkpoints, cosignatures and a witness.

`merkle` hashes and checks proofs, `tiles` grows a tree and makes proofs from it, `notes` signs and opens signed notes,
`checkpoints` says what a log's note holds and when it is believed: all pure. `witness` is a service. None of it knows
what the leaves are. Formats, byte by byte: docs/transparency.md.
"""
