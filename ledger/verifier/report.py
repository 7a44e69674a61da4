"""What a verification proved, and what it found wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `rule` is an invariant (I1 to I9), `quota`, `freeze`, or `snapshot` (tables beside the
    journal that differ from its replay)."""

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
    """All in minor units, by replay. issued - redeemed = vaults + wallets, of which `held` is reserved."""

    issued: int = 0
    redeemed: int = 0
    vaults: int = 0
    wallets: int = 0
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
    findings: list[Finding] = field(default_factory=list)
    is_complete: bool = True
    """False: the verifier stopped early, at `FINDINGS_MAX`."""

    @property
    def is_whole(self) -> bool:
        """Nothing is wrong."""
        return not self.findings and self.is_complete
