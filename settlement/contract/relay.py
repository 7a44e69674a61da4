"""The relay's views. A bundle of proofs is `settlement.relay.bundle.ProofBundle`."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from kernel import ids
from ledger.contract import Hash32, Model, Moment
from settlement.relay.keeping import AlarmKind

ALARM_PREFIX = "alm"
ALARMS_MAX = 100

AlarmRef = Annotated[
    UUID,
    BeforeValidator(lambda value: ids.parse(ALARM_PREFIX, value) if isinstance(value, str) else value),
    PlainSerializer(lambda value: ids.show(ALARM_PREFIX, value), return_type=str),
    WithJsonSchema({"type": "string", "pattern": ids.pattern(ALARM_PREFIX)}),
]


class KeptIslandView(Model):
    """What is kept of an island."""

    ledger: str
    kind: Literal["native", "evm"]
    height: int | None
    """Of a ledger the size of its last kept checkpoint, of a chain the number of its last kept header."""
    head: Hash32 | None
    """The checkpoint's root, or the header's hash."""
    note: str
    """The checkpoint as the log has signed it, or the header's number and hash as this keeper signs them."""
    failure: str
    """Why the last look at the island failed; empty if it did not."""


class AlarmView(Model):
    """Two things that cannot both be true, as they were signed or hashed."""

    alarm: AlarmRef
    ledger: str
    kind: AlarmKind
    detail: str
    first: str
    second: str
    """What was believed, and what contradicts it: a signed note as it is; a header's RLP, or a hash, in hexadecimal."""
    raised_at: Moment


class RelayView(Model):
    keeper: str
    """The public key (C2SP vkey) that signs this keeper's headers."""
    islands: list[KeptIslandView]
    alarms: list[AlarmView]
    """The newest first, at most 100."""
