"""Goal: for every state in which a settlement can stand, an operator reads why, what is missing and what resolves it.

Method: a table of facts and the words that matter in the answer; then all combinations, for totality.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest

from kernel.ids import ParticipantId
from settlement.domain.escrow import LegState, SettlementState
from settlement.domain.explain import WAITS_SHOWN_MAX, EngineFacts, Explanation, Facts, GateFacts, LegFacts, explain

NOW = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
ENGINE = EngineFacts(7, "host/1", NOW - timedelta(seconds=1))
A, B = ParticipantId("AAAACNBJ"), ParticipantId("BBBBAEAD")
S, L = SettlementState, LegState


def legs(first: LegState, second: LegState, *, signed: bool = True) -> list[LegFacts]:
    return [LegFacts(0, "cny", A, first, signed), LegFacts(1, "aed", B, second, signed)]


def facts(
    state: SettlementState, first: LegState = L.PENDING, second: LegState = L.PENDING, **changes: object
) -> Facts:
    signed = bool(changes.pop("signed", True))
    return replace(Facts(state, legs(first, second, signed=signed), engine=ENGINE, epoch=7), **changes)  # type: ignore[arg-type]


def ask(given: Facts) -> Explanation | None:
    return explain(given, now=NOW, undecided_max=timedelta(minutes=10), engine_silent_after=timedelta(seconds=10))


GATE = GateFacts("liquidity", "queued behind 3 others", None)
TIMED = GateFacts("calendar", "AED is closed", NOW + timedelta(hours=2))
MINUTE = NOW - timedelta(minutes=1)

TABLE = [
    # facts, words of why, of what it waits for, of what resolves it
    (
        facts(S.RECEIVED, gates=[GATE]),
        "not begun",
        "the liquidity gate: queued behind 3",
        "When liquidity lets it pass",
    ),
    (
        facts(S.RECEIVED, gates=[TIMED]),
        "no money",
        "not before 2026-11-23 10:00:00Z",
        "by themselves from 2026-11-23 10",
    ),
    (facts(S.RECEIVED, gates=[GATE, TIMED]), "not begun", "the calendar gate", "When liquidity lets it pass"),
    (facts(S.RECEIVED, is_started=False), "not begun", "its batch to be started", "/run"),
    (facts(S.RECEIVED), "not begun", "its turn", "priority"),
    (facts(S.RECEIVED, gates=[GATE], abort_requested_by="BRDGAEAD"), "not begun", "BRDGAEAD", "aborts it"),
    (
        facts(S.PREPARED, signed=False),
        "no leg is known to be held",
        "BBBBAEAD to sign leg 1 on aed",
        "2026-11-23 08:09",
    ),
    (facts(S.PREPARED, L.HELD), "1 of 2 legs are held", "ledger aed to hold leg 1", "the operator may give it up"),
    (facts(S.PREPARED, L.HELD, waits_for="ledger aed: timeout"), "1 of 2", "ledger aed: timeout", "asks again"),
    (facts(S.PREPARED, L.HELD, L.HELD), "2 of 2", "the decision of this round", "commits"),
    (facts(S.PREPARED, L.HELD, L.REFUSED), "Undecided", "leg 1 was refused", "aborts"),
    (
        facts(S.PREPARED, L.HELD, L.HELD, epoch=6),
        "Undecided",
        "epoch 6 ended before it decided",
        "Recovery writes ABORT",
    ),
    (facts(S.PREPARED, L.HELD, abort_requested_by="BRDGAEAD"), "Undecided", "BRDGAEAD asked for", "unless COMMIT"),
    (
        facts(S.COMMITTED, L.POSTED, L.HELD, decided_at=MINUTE),
        "Final since 2026-11-23 07:59:00Z: COMMIT is in the decision log. 1 of 2",
        "ledger aed to post leg 1",
        "until aed answers",
    ),
    (
        facts(S.ABORTED, L.VOIDED, L.HELD, reason="operator", detail="given up"),
        "Aborted (operator: given up)",
        "ledger aed to void leg 1",
        "stays reserved",
    ),
]


@pytest.mark.parametrize(("given", "why", "waits", "resolution"), TABLE)
def test_each_state_says_why_and_what_resolves_it(given: Facts, why: str, waits: str, resolution: str) -> None:
    said = ask(replace(given, prepared_at=MINUTE))
    assert said is not None
    assert why in said.why
    assert waits in "\n".join(said.waits_for)
    assert resolution in said.resolution
    assert not said.needs_person


@pytest.mark.parametrize("state", [S.SETTLED, S.CANCELLED])
def test_what_has_ended_needs_no_explanation(state: SettlementState) -> None:
    assert ask(facts(state)) is None


def test_a_contradiction_calls_a_person_first() -> None:
    said = ask(facts(S.COMMITTED, L.POSTED, L.HELD, waits_for="A PERSON: I5: leg 1 on aed: voided"))
    assert said is not None and said.needs_person
    assert said.waits_for[0].startswith("A PERSON: I5")
    assert "halted" in said.resolution


@pytest.mark.parametrize("engine", [None, replace(ENGINE, renewed_at=NOW - timedelta(seconds=3_000))])
def test_without_a_living_engine_starting_one_is_the_resolution(engine: EngineFacts | None) -> None:
    said = ask(facts(S.COMMITTED, L.POSTED, L.HELD, engine=engine))
    assert said is not None and said.needs_person
    assert "engine" in said.waits_for[0]
    assert (engine is None) or "3,000 s" in said.waits_for[0]
    assert said.resolution.startswith("Start the settlement service")


def test_every_combination_has_an_answer_of_whole_sentences() -> None:
    states = (S.RECEIVED, S.PREPARED, S.COMMITTED, S.ABORTED)
    for state, first, second, signed, gate, epoch in product(
        states, LegState, LegState, (False, True), ((), (GATE,), (TIMED,)), (6, 7)
    ):
        said = ask(facts(state, first, second, signed=signed, gates=gate, epoch=epoch))
        assert said is not None
        assert said.why.endswith(".") and said.resolution.rstrip().endswith(("batch.", "."))
        assert said.waits_for or state in (S.COMMITTED, S.ABORTED)
        assert all(item and not item.endswith(".") for item in said.waits_for)


def test_of_hundreds_of_legs_the_first_are_named_and_the_rest_counted() -> None:
    many = [LegFacts(number, "aed", B, L.HELD, True) for number in range(500)]
    said = ask(replace(facts(S.COMMITTED), legs=many))
    assert said is not None
    assert len(said.waits_for) == WAITS_SHOWN_MAX + 1
    assert said.waits_for[-1] == "480 more of the kind"
