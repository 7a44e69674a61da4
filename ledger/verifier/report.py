"""What a verification proved, and what it found wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `rule` is an invariant (I1 to I9), `quota`, `freeze` (of frozen, suspended and
    closed accounts), `log` (the transparency log's
    checkpoints), `closing`, `genesis`, or `snapshot` (tables beside the journal that differ from its replay)."""

    rule: str
    block: int | None
    seq: int | None
    message: str

    def __str__(self) -> str:
        where = [f"block {self.block}"] if self.block is not None else []
        where += [f"seq {self.seq}"] if self.seq is not None else []
        return f"{self.rule}: {', '.join(where) + ': ' if where else ''}{self.message}"


@dataclass(slots=True)
class Supply:
    """All in minor units, by replay. issued - redeemed = vaults + wallets + offline, of which `held` is reserved."""

    issued: int = 0
    redeemed: int = 0
    vaults: int = 0
    wallets: int = 0
    offline: int = 0
    """In the escrow accounts behind offline purses."""
    held: int = 0

    @property
    def circulation(self) -> int:
        return self.issued - self.redeemed


@dataclass(slots=True)
class Report:
    """Findings come in the order of the journal: the first is the first wrong place."""

    ledger: str = ""
    currency: str = ""
    operators: list[tuple[str, str]] = field(default_factory=list)
    """(name, key thumbprint) as genesis has them. Genesis is the root of trust: compare it with what you know."""
    genesis_sha256: str = ""
    """Of genesis's body: what to know from outside of this journal."""
    proved: Counter[str] = field(default_factory=Counter)
    """What was checked and holds, by name."""
    booked: Counter[str] = field(default_factory=Counter)
    """Amounts booked by kind of transfer, minor units."""
    supply: Supply = field(default_factory=Supply)
    head_block: int = 0
    head_hash: bytes = b""
    head_seq: int = 0
    """A journal whose newest blocks were cut off looks like a younger journal: only this head, known from outside
    (a witness, yesterday's report), tells. See `anchor` of `verify_database`."""
    unproved: list[str] = field(default_factory=list)
    """What could not be asked, for want of a key or of a file: sentences for the reader."""
    findings: list[Finding] = field(default_factory=list)
    is_complete: bool = True
    """False: the verifier stopped early, at `FINDINGS_MAX`."""

    @property
    def is_whole(self) -> bool:
        """Nothing is wrong."""
        return not self.findings and self.is_complete

    def to_dict(self) -> dict[str, Any]:
        """For `--json`: amounts as strings of digits, as everywhere."""
        return {
            "ledger": self.ledger,
            "currency": self.currency,
            "is_whole": self.is_whole,
            "is_complete": self.is_complete,
            "genesis_sha256": self.genesis_sha256,
            "operators": [{"name": name, "thumbprint": thumbprint} for name, thumbprint in self.operators],
            "head": {"block": self.head_block, "hash": self.head_hash.hex(), "seq": self.head_seq},
            "proved": dict(sorted(self.proved.items())),
            "unproved": self.unproved,
            "supply_minor": {
                name: str(getattr(self.supply, name))
                for name in ("issued", "redeemed", "circulation", "vaults", "wallets", "offline", "held")
            },
            "booked_minor": {name: str(amount) for name, amount in sorted(self.booked.items())},
            "findings": [
                {"rule": item.rule, "block": item.block, "seq": item.seq, "message": item.message}
                for item in self.findings
            ],
        }
