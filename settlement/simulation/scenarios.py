"""What the simulation settles: small cases in which every fault and every pair of faults can be tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from kernel.ids import AccountNumber, ParticipantId
from kernel.money import Currency, Money
from settlement.domain.escrow import LegTerms
from settlement.simulation.world import Scenario, Scene

FUNDS = 1_000
TOO_MUCH = FUNDS + 1
CURRENCIES = ("CNY", "AED", "USD")
BANKS = tuple(
    ParticipantId(f"{letter * 4}{country}")
    for letter, country in zip("ABCDE", ("CNBJ", "AEAD", "USNY", "SGSG", "HKHH"), strict=True)
)


def _id(version: int, number: int) -> UUID:
    return UUID(f"0198c7b2-6f1e-{version}c3a-9d55-{number:012x}")


def _account(bank: int, currency: int) -> AccountNumber:
    return AccountNumber(10 * (currency + 1) + bank + 1)


def _leg(payer: int, payee: int, currency: int, amount: int) -> LegTerms:
    code = CURRENCIES[currency]
    money = Money(amount, Currency.of(code))
    debit, credit = _account(payer, currency), _account(payee, currency)
    return LegTerms(code.lower(), BANKS[payer], BANKS[payee], debit, credit, money)


def _scene(number: int, *legs: LegTerms) -> Scene:
    return Scene(_id(7, number), _id(4, number), legs)


def _scenario(name: str, scenes: Sequence[Scene]) -> Scenario:
    ledgers = sorted({leg.ledger for scene in scenes for leg in scene.legs})
    balances: dict[str, dict[int, int]] = {
        ledger: {_account(bank, currency): FUNDS for bank in range(len(BANKS))}
        for currency, ledger in enumerate(code.lower() for code in CURRENCIES)
        if ledger in ledgers
    }
    return Scenario(name, tuple(scenes), balances)


CNY, AED, USD = range(3)
A, B, C, D, E = range(5)

PVP = _scenario("pvp", [_scene(1, _leg(A, B, CNY, 100), _leg(B, A, AED, 51))])
FIRST_SHORT = _scenario("pvp-first-leg-short", [_scene(1, _leg(A, B, CNY, TOO_MUCH), _leg(B, A, AED, 51))])
SECOND_SHORT = _scenario("pvp-second-leg-short", [_scene(1, _leg(A, B, CNY, 100), _leg(B, A, AED, TOO_MUCH))])
UNSIGNED = replace(PVP, name="pvp-not-signed", refusing=frozenset({PVP.scenes[0].uetr}))
PVPVP = _scenario("pvpvp", [_scene(1, _leg(A, B, CNY, 100), _leg(B, C, USD, 14), _leg(C, A, AED, 51))])
PVPVP_SHORT = _scenario(
    "pvpvp-bridge-leg-short", [_scene(1, _leg(A, B, CNY, 100), _leg(B, C, USD, TOO_MUCH), _leg(C, A, AED, 51))]
)
TWO = _scenario(
    "two-of-which-one-is-short",
    [
        _scene(1, _leg(A, B, CNY, 100), _leg(B, A, AED, 51)),
        _scene(2, _leg(C, D, CNY, 100), _leg(D, C, AED, TOO_MUCH)),
    ],
)
CYCLE = _scenario(
    "netted-cycle-of-5-legs-on-2-ledgers",
    [
        _scene(
            1,
            _leg(A, B, CNY, 30),
            _leg(B, C, CNY, 20),
            _leg(C, D, AED, 10),
            _leg(D, E, AED, 10),
            _leg(E, A, CNY, 5),
        )
    ],
)
CYCLE_SHORT = _scenario(
    "netted-cycle-last-leg-short",
    [
        _scene(
            1,
            _leg(A, B, CNY, 30),
            _leg(B, C, CNY, 20),
            _leg(C, D, AED, 10),
            _leg(D, E, AED, 10),
            _leg(E, A, CNY, TOO_MUCH),
        )
    ],
)

SMALL = (PVP, FIRST_SHORT, SECOND_SHORT, UNSIGNED)
"""In which every pair of faults is tried."""
ALL = (*SMALL, PVPVP, PVPVP_SHORT, TWO, CYCLE, CYCLE_SHORT)
BY_NAME = {scenario.name: scenario for scenario in ALL}
EXPECTED_COMMITS = {PVP.name: 1, PVPVP.name: 1, CYCLE.name: 1, TWO.name: 1}
"""Settlements that commit when nothing goes wrong; in the others none does."""
