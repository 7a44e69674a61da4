"""Proofs of what islands did: pure checks over signed checkpoints, block headers and the proofs under them.

`trust` says what a reader believes beforehand (public keys, a header), `bundle` what he is given, `verdict` what that
proves. `native` and `evm` check one leg, `keeping` what may be kept beside what is kept. No clock, database or network,
and none of the adapters' code: what settles and what checks do not share a mistake. Formats: docs/relay.md.
"""
