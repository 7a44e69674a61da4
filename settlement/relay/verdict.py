"""What a bundle proves to a reader: of each leg, and of the settlement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import ValidationError

from kernel import strict_json
from kernel.errors import ProblemError
from kernel.ids import derive_uuid7
from settlement.relay import evm, native
from settlement.relay.bundle import BUNDLE_BYTES_MAX, EvmProof, LegProof, LegStanding, NativeProof, ProofBundle
from settlement.relay.evm import Finals
from settlement.relay.trie import ProofRefused
from settlement.relay.trust import EvmTrust, NativeTrust, Trust


class Outcome(StrEnum):
    POSTED = "proven-posted"
    """Every leg is proved to be posted."""
    VOIDED = "proven-voided"
    """Every leg is proved to be voided, or kept out for ever."""
    VIOLATION = "proven-violation"
    """One leg is proved to be posted and another to be voided: the settlement is split (I5)."""
    NOT_PROVEN = "not-proven"


@dataclass(frozen=True, slots=True)
class LegVerdict:
    number: int
    ledger: str
    standing: LegStanding | None
    """What is proved; None if nothing is."""
    is_proven: bool
    """The end that the statement claims is proved."""
    why: str
    """Why it is not proven; of a proven one, what the proof stands under."""


@dataclass(frozen=True, slots=True)
class Verdict:
    outcome: Outcome
    legs: tuple[LegVerdict, ...]
    why: str


def read_bundle(content: bytes) -> ProofBundle:
    """Raises ProofRefused."""
    if len(content) > BUNDLE_BYTES_MAX:
        raise ProofRefused(f"longer than {BUNDLE_BYTES_MAX} bytes")
    try:
        return ProofBundle.model_validate(strict_json.loads(content))
    except ProblemError as error:
        raise ProofRefused(f"not JSON as it must be: {error.detail}") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise ProofRefused(f"{'/'.join(str(part)[:64] for part in first['loc'])}: {first['msg']}") from None


def judge(bundle: ProofBundle, trust: Trust, *, legs_expected: int | None = None) -> Verdict:
    """Nothing in the bundle is believed; whatever does not hold is a leg that is not proven.

    `legs_expected`: how many legs the reader knows the settlement to have. A split that is proved stays one.
    """
    if bundle.commit_hash == bundle.abort_hash:
        return Verdict(Outcome.NOT_PROVEN, (), "the two hashes are one")
    if [leg.statement.number for leg in bundle.legs] != list(range(len(bundle.legs))):
        return Verdict(Outcome.NOT_PROVEN, (), "the legs are not numbered from 0 without a gap")
    finals: dict[str, Finals | ProofRefused] = {}
    for chain in bundle.chains:
        island = trust.of(chain.ledger)
        if isinstance(island, EvmTrust):
            if chain.ledger in finals:
                return Verdict(Outcome.NOT_PROVEN, (), f"two chains of headers for {chain.ledger}")
            try:
                finals[chain.ledger] = evm.final_headers(island, chain)
            except ProofRefused as error:
                finals[chain.ledger] = error
    legs = tuple(_leg(bundle, leg, trust, finals) for leg in bundle.legs)
    standings = {leg.standing for leg in legs if leg.standing in (LegStanding.POSTED, LegStanding.VOIDED)}
    if len(standings) == 2:
        return Verdict(Outcome.VIOLATION, legs, "one leg is posted and another voided: the settlement is split (I5)")
    if not all(leg.is_proven for leg in legs) or len(standings) != 1:
        return Verdict(Outcome.NOT_PROVEN, legs, "not every leg is proven to have ended")
    if legs_expected is not None and len(legs) != legs_expected:
        return Verdict(Outcome.NOT_PROVEN, legs, f"it shows {len(legs)} legs, and there are to be {legs_expected}")
    outcome = Outcome.POSTED if LegStanding.POSTED in standings else Outcome.VOIDED
    shown = f"all {len(legs)} legs shown are proven, in the same direction"
    if legs_expected is None:
        shown += "; that there are no more is the bundle's word"
    return Verdict(outcome, legs, shown)


def _leg(bundle: ProofBundle, leg: LegProof, trust: Trust, finals: Mapping[str, Finals | ProofRefused]) -> LegVerdict:
    said = leg.statement
    try:
        standing, under = _check(bundle, leg, trust, finals)
    except ProofRefused as error:
        return LegVerdict(said.number, said.ledger, None, False, str(error))
    if standing is not said.state:
        why = f"it is proved to be {standing.value}, not {said.state.value} as stated"
        return LegVerdict(said.number, said.ledger, standing, False, why)
    if standing is LegStanding.HELD:
        why = leg.why_not or "its end is not shown"
        return LegVerdict(said.number, said.ledger, standing, False, f"only its hold is proved: {why}")
    return LegVerdict(said.number, said.ledger, standing, True, under)


def _check(
    bundle: ProofBundle, leg: LegProof, trust: Trust, finals: Mapping[str, Finals | ProofRefused]
) -> tuple[LegStanding, str]:
    said, proof = leg.statement, leg.proof
    island = trust.of(said.ledger)
    if island is None:
        raise ProofRefused("the reader's trust does not name this island")
    if said.currency != island.currency:
        raise ProofRefused("the island has another currency")
    if said.hold != derive_uuid7(bundle.settlement, f"leg-{said.number}/hold"):
        raise ProofRefused("the hold's id is not that of this settlement's leg")
    if proof is None:
        raise ProofRefused(leg.why_not or "no proof is given")
    terms = {"uetr": bundle.uetr, "commit_hash": bundle.commit_hash, "abort_hash": bundle.abort_hash}
    match island, proof:
        case NativeTrust(), NativeProof():
            return native.check_leg(island, said, proof, **terms)  # type: ignore[arg-type]
        case EvmTrust(), EvmProof():
            headers = finals.get(said.ledger)
            if headers is None:
                raise ProofRefused("no headers of this chain are given")
            if isinstance(headers, ProofRefused):
                raise headers
            return evm.check_leg(island, headers, said, proof, **terms)  # type: ignore[arg-type]
        case _:
            raise ProofRefused("the proof is of another kind than the island")
