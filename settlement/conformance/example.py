"""The suite over the island in memory: an example of a subject, and a look at the report without any ledger.

jiaozi-settlement conformance --adapter settlement.conformance.example:fake
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey
from kernel.ids import AccountNumber, ParticipantId
from kernel.money import Currency
from ledger.contract import INSTRUCTION_TYP, sign_instruction
from settlement.conformance.subject import Line, Subject
from settlement.domain.escrow import HoldOrder
from settlement.islands.authorisers import AuthorisationOutcome, check_authorisation
from settlement.islands.fake import FakeIsland
from settlement.islands.native import hold_terms
from settlement.islands.port import EndOrder, Island, SignedHold

FUNDS_MINOR = 1_000_000
_CHANGES = ("prepare", "fulfil", "cancel")


class FakeSubject(Subject):
    ledger = "fake"
    currency = Currency.of("CNY")
    payer, payee = ParticipantId("BKCHCNBJ"), ParticipantId("ICBKCNBJ")
    debit, credit = AccountNumber(11), AccountNumber(12)
    patience_seconds = 1.0

    def __init__(self) -> None:
        self._key = PrivateKey.generate()
        self._island = FakeIsland(
            self.ledger,
            balances={self.debit: FUNDS_MINOR, self.credit: 0},
            is_authorised=self._is_signed,
        )

    @property
    def island(self) -> Island:
        return self._island

    def authorise(self, order: HoldOrder) -> str:
        valid_until = datetime.now(UTC) + timedelta(hours=1)
        return sign_instruction(hold_terms(order), ledger=self.ledger, valid_until=valid_until, key=self._key)

    def available(self, account: AccountNumber) -> int:
        return self._island.available(account)

    def lines(self, account: AccountNumber) -> Sequence[Line]:
        return [
            Line(hold_id, -amount if debit == account else amount)
            for debit, _, amount, hold_id in self._island.statement(account)
        ]

    def check(self, order: HoldOrder, authorisation: str) -> AuthorisationOutcome:
        return check_authorisation(order, authorisation)

    def reopened(self) -> Island:
        return self._island  # its state is the ledger's; it keeps nothing else

    def unreachable(self) -> Island:
        away = FakeIsland(self.ledger, balances={})
        away.faults.down = True
        return away

    def pass_time(self, seconds: int) -> None:
        """Nothing in memory has a clock."""

    @contextmanager
    def losing_answers(self) -> Iterator[None]:
        self._island.faults.lose_answer |= set(_CHANGES)
        yield
        self._island.faults.lose_answer.clear()

    @contextmanager
    def losing_requests(self) -> Iterator[None]:
        self._island.faults.lose_request |= set(_CHANGES)
        yield
        self._island.faults.lose_request.clear()

    @contextmanager
    def duplicating(self) -> Iterator[None]:
        self._island.faults.duplicate = True
        yield
        self._island.faults.duplicate = False

    @contextmanager
    def delaying(self) -> Iterator[None]:
        self._island.faults.delayed = True
        yield
        self._island.faults.delayed = False
        self._island.deliver(reverse=True)

    def post_as_payee(self, order: HoldOrder, secret: bytes) -> None:
        self._island.fulfil([EndOrder(order, order.hold_id, secret)])

    def place_as_payer(self, order: HoldOrder, *, expires_in_seconds: int | None = None) -> None:
        if expires_in_seconds is not None:
            super().place_as_payer(order, expires_in_seconds=expires_in_seconds)
        self._island.prepare([SignedHold(order, self.authorise(order))])

    def _is_signed(self, hold: SignedHold) -> bool:
        try:
            jws.verify(hold.authorisation, self._key.public, typ=INSTRUCTION_TYP)
        except jws.InvalidJws:
            return False
        return True


@contextmanager
def fake(config: Mapping[str, Any]) -> Iterator[Subject]:
    """The factory. It takes no configuration."""
    yield FakeSubject()
