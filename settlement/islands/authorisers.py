"""The port to the payers' institutions: each signs the exact terms of its own legs, or refuses.

A ledger holds nothing on the engine's word alone: what it books is the institution's signed instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from pydantic import ValidationError

from kernel.client import ProblemResponse, ServiceClient, ServiceUnreachable
from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey
from kernel.ids import ParticipantId
from ledger.contract import SignedInstruction, sign_instruction
from settlement.domain.escrow import HoldOrder
from settlement.domain.refusals import AbortReason
from settlement.islands.native import hold_terms
from settlement.islands.port import Refused, Unknown

LEGS_MAX = 500
"""Legs in one request to an institution: with the other leg of each, about 700 KiB."""
_AUTHORISATION_BYTES_MAX = 16_384


@dataclass(frozen=True, slots=True)
class Authorised:
    token: str


@dataclass(frozen=True, slots=True)
class LegOrder:
    """A hold to be signed, and all the other holds of its settlement: the payer signs against what it is to get."""

    hold: HoldOrder
    others: tuple[HoldOrder, ...]


def leg_order(hold_orders: Sequence[HoldOrder], number: int) -> LegOrder:
    """Leg `number` of a settlement whose legs are `hold_orders`, counted from 0."""
    return LegOrder(hold_orders[number], (*hold_orders[:number], *hold_orders[number + 1 :]))


AuthorisationOutcome = Authorised | Refused | Unknown


class Authoriser(Protocol):
    def authorise(self, payer: ParticipantId, orders: Sequence[LegOrder]) -> list[AuthorisationOutcome]:
        """The payer's signature on each hold, in order. Idempotent: the same order gets the same answer."""
        ...


class HttpAuthoriser:
    """Asks each institution's wallet service: POST /v1/leg-authorisations, signed by the bridge (RFC 9421).

    `instruction_id` on the wire is the payment's UETR: the one id that both banks knew before the bridge did.
    """

    def __init__(self, clients: Mapping[ParticipantId, ServiceClient]) -> None:
        self._clients = clients

    def authorise(self, payer: ParticipantId, orders: Sequence[LegOrder]) -> list[AuthorisationOutcome]:
        client = self._clients.get(payer)
        if client is None:
            return [Refused("institution-unknown", f"{payer} is not registered")] * len(orders)
        answers: list[AuthorisationOutcome] = []
        for start in range(0, len(orders), LEGS_MAX):
            answers += self._ask(client, orders[start : start + LEGS_MAX])
        return answers

    def _ask(self, client: ServiceClient, orders: Sequence[LegOrder]) -> list[AuthorisationOutcome]:
        legs = [
            {
                "instruction_id": str(order.hold.reference),
                **_on_wire(order.hold),
                "other_legs": [_on_wire(other) for other in order.others],
            }
            for order in orders
        ]
        try:
            body: Any = client.post("/v1/leg-authorisations", {"legs": legs}, idempotent=True)
        except (ServiceUnreachable, ProblemResponse) as error:
            # Nothing is held yet, and a problem of the whole request says nothing of a leg: ask again, visibly.
            return [Unknown(str(error)[:200])] * len(orders)
        results = body.get("results") if isinstance(body, dict) else None
        if not isinstance(results, list) or len(results) != len(orders):
            return [Unknown("the institution's answer has another shape")] * len(orders)
        return [_judged(order.hold, result) for order, result in zip(orders, results, strict=True)]


def _on_wire(hold: HoldOrder) -> dict[str, object]:
    return {"ledger": hold.terms.ledger, "terms": hold_terms(hold).model_dump(mode="json", exclude_none=True)}


def _judged(order: HoldOrder, result: object) -> AuthorisationOutcome:
    if not isinstance(result, dict):
        return Unknown("the institution's answer has another shape")
    token, refusal = result.get("token"), result.get("refusal")
    if isinstance(token, str):
        return check_authorisation(order, token)
    if isinstance(refusal, str) and refusal:
        return Refused(AbortReason.AUTHORISATION_REFUSED.value, refusal[:100])
    return Unknown("the institution neither signed nor refused")


def check_authorisation(order: HoldOrder, token: str) -> Authorised | Refused:
    """Is this an instruction of exactly the ordered terms? The ledger verifies the signature; we read the content.

    Were it not read here, an institution could sign other hashes or a smaller amount, the ledger would hold that, and
    the engine would count it as the leg.
    """
    try:
        payload = jws.peek_payload(token, bytes_max=_AUTHORISATION_BYTES_MAX)
        document = SignedInstruction.model_validate_json(payload)
    except (jws.InvalidJws, ValidationError) as error:
        return Refused(AbortReason.AUTHORISATION_DIFFERS.value, f"unreadable: {type(error).__name__}")
    if document.ledger != order.terms.ledger or document.terms != hold_terms(order):
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
