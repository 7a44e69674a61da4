"""The port to the payers' institutions: each signs the exact terms of its own legs, or refuses.

A ledger holds nothing on the engine's word alone: what it books is the institution's signed instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol
from uuid import UUID

import msgspec

from kernel.client import ProblemResponse, ServiceClient, ServiceUnreachable
from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey
from kernel.ids import ParticipantId
from ledger.contract import (
    InvalidInstruction,
    is_instruction_of,
    read_instruction,
    sign_instruction,
    spell_hold_terms,
)
from settlement.domain.escrow import HoldOrder
from settlement.domain.refusals import AbortReason
from settlement.islands.native import hold_terms
from settlement.islands.port import Refused, Unknown

TERMS_MAX = 1_000
"""Terms in one request to an institution, about 700 KiB: 500 legs of PvP settlements with the other leg of each, 31 of
settlements of 32 legs."""


@dataclass(frozen=True, slots=True)
class Authorised:
    token: str


@dataclass(frozen=True, slots=True)
class NettedInstruction:
    """An instruction of the payer's that a net leg pays: by its UETR, what the payer pays and gets, by currency."""

    uetr: UUID
    paid: tuple[tuple[str, int], ...]
    received: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class LegOrder:
    """A hold to be signed, and all the other holds of its settlement: the payer signs against what it is to get.

    Of a netting settlement: those of the other holds that pay it or that it pays, and what it nets.
    """

    hold: HoldOrder
    others: tuple[HoldOrder, ...]
    netted: tuple[NettedInstruction, ...] = ()


def leg_order(hold_orders: Sequence[HoldOrder], number: int) -> LegOrder:
    """Leg `number` of a settlement whose legs are `hold_orders`, counted from 0."""
    return LegOrder(hold_orders[number], (*hold_orders[:number], *hold_orders[number + 1 :]))


AuthorisationOutcome = Authorised | Refused | Unknown


class Authoriser(Protocol):
    def authorise(self, payer: ParticipantId, orders: Sequence[LegOrder]) -> list[AuthorisationOutcome]:
        """The payer's signature on each hold, in order. Idempotent: the same order gets the same answer."""
        ...


Check = Callable[[HoldOrder, str], Authorised | Refused]


class HttpAuthoriser:
    """Asks each institution's wallet service: POST /v1/leg-authorisations, signed by the bridge (RFC 9421).

    `instruction_id` on the wire is the payment's UETR: the one id that both banks knew before the bridge did.
    """

    def __init__(
        self, clients: Mapping[ParticipantId, ServiceClient], checks: Mapping[str, Check] | None = None
    ) -> None:
        """`checks` by ledger, where an authorisation is not an instruction of one of our own ledgers."""
        self._clients = clients
        self._checks = checks or {}

    def authorise(self, payer: ParticipantId, orders: Sequence[LegOrder]) -> list[AuthorisationOutcome]:
        client = self._clients.get(payer)
        if client is None:
            return [Refused("institution-unknown", f"{payer} is not registered")] * len(orders)
        answers: list[AuthorisationOutcome] = []
        for chunk in _chunks(orders):
            answers += self._ask(client, chunk)
        return answers

    def _ask(self, client: ServiceClient, orders: Sequence[LegOrder]) -> list[AuthorisationOutcome]:
        spelt = [_spelt(order.hold) for order in orders]
        try:
            body: Any = client.post("/v1/leg-authorisations", _request(orders, spelt), idempotent=True)
        except (ServiceUnreachable, ProblemResponse) as error:
            # Nothing is held yet, and a problem of the whole request says nothing of a leg: ask again, visibly.
            return [Unknown(str(error)[:200])] * len(orders)
        results = body.get("results") if isinstance(body, dict) else None
        if not isinstance(results, list) or len(results) != len(orders):
            return [Unknown("the institution's answer has another shape")] * len(orders)
        return [
            _judged(order.hold, result, self._check_of(order.hold, terms))
            for order, result, terms in zip(orders, results, spelt, strict=True)
        ]

    def _check_of(self, hold: HoldOrder, spelt: bytes) -> Check:
        return self._checks.get(hold.terms.ledger) or partial(check_authorisation, spelt=spelt)


def _chunks(orders: Sequence[LegOrder]) -> Iterator[list[LegOrder]]:
    chunk: list[LegOrder] = []
    terms = 0
    for order in orders:
        if chunk and terms + 1 + len(order.others) > TERMS_MAX:
            yield chunk
            chunk, terms = [], 0
        chunk.append(order)
        terms += 1 + len(order.others)
    if chunk:
        yield chunk


def _request(orders: Sequence[LegOrder], spelt: Sequence[bytes]) -> bytes:
    """The body of POST /v1/leg-authorisations. `spelt`: the terms of the orders' own holds."""
    legs = [
        {
            "instruction_id": str(order.hold.reference),
            **_on_wire(order.hold, terms),
            "other_legs": [_on_wire(other, _spelt(other)) for other in order.others],
        }
        for order, terms in zip(orders, spelt, strict=True)
    ]
    return msgspec.json.encode({"legs": legs} | ({"nettings": nettings} if (nettings := _nettings(orders)) else {}))


def _nettings(orders: Sequence[LegOrder]) -> list[dict[str, object]]:
    """The list of each netting settlement once, however many of its legs are asked for."""
    lists = {order.hold.reference: order.netted for order in orders if order.netted}
    return [
        {
            "instruction_id": str(reference),
            "netted": [
                {
                    "instruction_id": str(item.uetr),
                    "paid": [{"currency": currency, "amount_minor": str(amount)} for currency, amount in item.paid],
                    "received": [
                        {"currency": currency, "amount_minor": str(amount)} for currency, amount in item.received
                    ],
                }
                for item in netted
            ],
        }
        for reference, netted in lists.items()
    ]


def _on_wire(hold: HoldOrder, spelt: bytes) -> dict[str, object]:
    return {"ledger": hold.terms.ledger, "terms": msgspec.Raw(spelt)}


def _spelt(hold: HoldOrder) -> bytes:
    """The hold's terms, letter by letter as they will stand in the instruction."""
    terms = hold.terms
    return spell_hold_terms(
        hold=hold.hold_id,
        debit=terms.debit,
        credit=terms.credit,
        amount_minor=terms.amount.amount_minor,
        currency=terms.amount.currency.code,
        reference=hold.reference,
        commit_hash=hold.commit_hash,
        abort_hash=hold.abort_hash,
    )


def _judged(order: HoldOrder, result: object, check: Check) -> AuthorisationOutcome:
    if not isinstance(result, dict):
        return Unknown("the institution's answer has another shape")
    token, refusal = result.get("token"), result.get("refusal")
    if isinstance(token, str):
        return check(order, token)
    if isinstance(refusal, str) and refusal:
        return Refused(AbortReason.AUTHORISATION_REFUSED.value, refusal[:100])
    return Unknown("the institution neither signed nor refused")


def check_authorisation(order: HoldOrder, token: str, *, spelt: bytes | None = None) -> Authorised | Refused:
    """Is this an instruction of exactly the ordered terms (`spelt`, if they are spelt already)? The ledger verifies the
    signature; we read the content.

    Were it not read here, an institution could sign other hashes or a smaller amount, the ledger would hold that, and
    the engine would count it as the leg.
    """
    try:
        # Nearly every one is spelt as we spell it; another is read, member by member.
        if is_instruction_of(jws.read(token).payload, ledger=order.terms.ledger, terms=spelt or _spelt(order)):
            return Authorised(token)
        read = read_instruction(token)
    except jws.InvalidJws as error:
        return Refused(AbortReason.AUTHORISATION_DIFFERS.value, f"unreadable: {error.reason}"[:200])
    except InvalidInstruction as error:
        return Refused(AbortReason.AUTHORISATION_DIFFERS.value, f"unreadable: {error.reason}"[:200])
    if read.ledger != order.terms.ledger or read.terms != hold_terms(order):
        return Refused(AbortReason.AUTHORISATION_DIFFERS.value, "the signed terms are not the ordered ones")
    return Authorised(token)


class FakeAuthoriser:
    """Signs whatever it is asked to, unless told otherwise. For tests and simulations."""

    def __init__(self, key: PrivateKey, *, clock: Callable[[], datetime]) -> None:
        self._key = key
        self._clock = clock
        self.refuse: set[UUID] = set()
        """References (UETRs) that are refused."""
        self.unreachable: set[ParticipantId] = set()
        self.calls = 0

    def authorise(self, payer: ParticipantId, orders: Sequence[LegOrder]) -> list[AuthorisationOutcome]:
        self.calls += 1
        if payer in self.unreachable:
            return [Unknown(f"{payer} did not answer")] * len(orders)
        return [self._sign(order.hold) for order in orders]

    def _sign(self, order: HoldOrder) -> AuthorisationOutcome:
        if order.reference in self.refuse:
            return Refused(AbortReason.AUTHORISATION_REFUSED.value, "settlement-not-found")
        valid_until = self._clock() + timedelta(hours=1)
        token = sign_instruction(hold_terms(order), ledger=order.terms.ledger, valid_until=valid_until, key=self._key)
        return check_authorisation(order, token)
