"""Offline purses, pure: messages and their checks, the purse's own state machine, the institution's books of claims.

Nothing here does I/O or reads a clock: times are Unix seconds and are given. See docs/offline.md.
"""
