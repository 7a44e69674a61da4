"""The payer's side of a ChainMaker leg: its institution signs the lock, in its own house, with its own key.

Nothing is remembered: the transaction's id follows from the hold's, and the chain takes an id once. So an order signed
twice, or again after its first signature ran out, is one transaction; with other terms under the same id it is still
one, and the bridge counts only the ordered terms.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from kernel.ids import ParticipantId
from settlement.domain.escrow import HoldOrder
from settlement.domain.refusals import AbortReason
from settlement.islands.authorisers import AuthorisationOutcome, LegOrder
from settlement.islands.chainmaker.client import Signer, address_of_certificate
from settlement.islands.chainmaker.terms import ChainMakerTerms, check_lock, sign_lock
from settlement.islands.port import Refused


class PayerSigner:
    """One for each payer's member. Thread-safe."""

    def __init__(self, terms: ChainMakerTerms, signer: Signer, *, clock: Callable[[], float] = time.time) -> None:
        self._terms = terms
        self._signer = signer
        self._clock = clock
        self.address = address_of_certificate(signer.certificate, terms.addr_type)

    def sign(self, order: HoldOrder) -> AuthorisationOutcome:
        if self._terms.address(order.terms.debit) != self.address:
            return Refused(AbortReason.AUTHORISATION_REFUSED.value, "not this payer's account")
        try:
            token = sign_lock(self._terms, order, self._signer, now=int(self._clock()))
        except KeyError:
            return Refused(AbortReason.AUTHORISATION_REFUSED.value, "the payee has no address on the chain")
        return check_lock(self._terms, order, token)


class ChainMakerAuthoriser:
    """Payers' signers in this process: for tests, demonstrations and institutions that run a bridge of their own."""

    def __init__(self, signers: Mapping[ParticipantId, PayerSigner]) -> None:
        self._signers = signers

    def authorise(self, payer: ParticipantId, orders: Sequence[LegOrder]) -> list[AuthorisationOutcome]:
        signer = self._signers.get(payer)
        if signer is None:
            return [Refused("institution-unknown", f"{payer} is no member of this chain")] * len(orders)
        return [signer.sign(order.hold) for order in orders]
