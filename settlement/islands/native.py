"""The port over one of our own ledgers, by HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.ids import AccountNumber, HoldId, new_uuid7, show, show_account
from ledger.client import LedgerClient
from ledger.contract import (
    LOOK_UPS_MAX,
    AccountView,
    EndTerms,
    HoldAnswer,
    HoldStatus,
    LedgerRefusal,
    StatementLine,
    TransferAnswer,
    TransferKind,
    TransferOutcome,
    TransferRefusal,
    TransferTerms,
)
from settlement.domain.escrow import HoldOrder
from settlement.domain.refusals import AbortReason
from settlement.islands.balances import Totals
from settlement.islands.booked import Booked
from settlement.islands.port import (
    Contradiction,
    Ended,
    EndOrder,
    EndOutcome,
    Held,
    HoldStanding,
    PrepareOutcome,
    Refused,
    SignedHold,
    Unknown,
)

ITEMS_MAX = 1_000
"""Transfers in one request: about a megabyte of signed instructions."""
_BAD_REQUEST = frozenset({400, 413, 422})

_BOOKED = frozenset({TransferOutcome.BOOKED.value, TransferOutcome.ALREADY_BOOKED.value})

Item = TypeVar("Item")


def hold_terms(order: HoldOrder) -> TransferTerms:
    """The hold as the payer's institution signs it and the ledger books it. No expiry: no clock decides anything."""
    # Two of each leg: from typed values, so nothing is validated again.
    return TransferTerms.model_construct(
        id=order.hold_id,
        kind=TransferKind.HOLD,
        debit=order.terms.debit,
        credit=order.terms.credit,
        amount_minor=order.terms.amount.amount_minor,
        currency=order.terms.amount.currency.code,
        reference=order.reference,
        commit_hash=order.commit_hash,
        abort_hash=order.abort_hash,
    )


class NativeIsland:
    def __init__(self, name: str, client: LedgerClient) -> None:
        self._name = name
        self._client = client

    @property
    def name(self) -> str:
        return self._name

    def prepare(self, holds: Sequence[SignedHold]) -> list[PrepareOutcome]:
        answers = self._submit([hold.authorisation for hold in holds], self._client.submit_signed)
        return [self._prepared(hold.order, answer) for hold, answer in zip(holds, answers, strict=True)]

    def fulfil(self, orders: Sequence[EndOrder]) -> list[EndOutcome]:
        return self._end(orders, TransferKind.POST)

    def cancel(self, orders: Sequence[EndOrder]) -> list[EndOutcome]:
        return self._end(orders, TransferKind.VOID)

    def look_up(self, orders: Sequence[HoldOrder]) -> list[HoldStanding]:
        found: list[HoldStanding] = []
        for start in range(0, len(orders), LOOK_UPS_MAX):
            part = orders[start : start + LOOK_UPS_MAX]
            try:
                answers = self._client.look_up_hold_answers([order.hold_id for order in part])
            except (ProblemResponse, ServiceUnreachable):
                answers = []
            if len(answers) != len(part):
                return [HoldStanding.UNKNOWN] * len(orders)
            found += [_standing_of(answer, order) for answer, order in zip(answers, part, strict=True)]
        return found

    def statement(self, account: AccountNumber) -> list[StatementLine]:
        return list(self._client.statement_lines(account))

    def available_of(self, accounts: Sequence[AccountNumber]) -> list[int | None]:
        """What each account has available as of the last block; None where the ledger does not say. One that does not
        answer is not asked about the rest: each question would wait as long as the first."""
        return [None if view is None else view.available_minor for view in self._accounts(accounts)]

    def totals_of(self, accounts: Sequence[AccountNumber]) -> list[Totals | None]:
        """As `available_of`: reserved, ever debited and ever credited."""
        return [
            None
            if view is None
            else Totals(view.debits_pending_minor, view.debits_posted_minor, view.credits_posted_minor)
            for view in self._accounts(accounts)
        ]

    def _accounts(self, accounts: Sequence[AccountNumber]) -> list[AccountView | None]:
        found: list[AccountView | None] = []
        for start in range(0, len(accounts), LOOK_UPS_MAX):
            part = accounts[start : start + LOOK_UPS_MAX]
            try:
                views = self._client.look_up_accounts(part)
            except (ServiceUnreachable, ProblemResponse, ValueError):
                break
            if len(views) != len(part):
                break
            found += views
        return found + [None] * (len(accounts) - len(found))

    # --- evidence

    def receipt(self, hold_id: UUID) -> bytes | None:
        """The transparency log's receipt of the transfer that posted a hold of ours; None while there is none, or if
        another posted it (the ledger shows a receipt to who is concerned)."""
        try:
            ended_by = self._client.get_hold(HoldId(hold_id)).ended_by
            return None if ended_by is None else self._client.receipt(ended_by)
        except (ServiceUnreachable, ProblemResponse, ValueError):
            return None

    def log_key(self) -> str | None:
        """The public key of the ledger's log, as it states it."""
        try:
            return self._client.log().vkey
        except (ServiceUnreachable, ProblemResponse, ValueError):
            return None

    # --- one answer

    def _prepared(self, order: HoldOrder, answer: TransferAnswer | Unknown | Refused) -> PrepareOutcome:
        if isinstance(answer, Unknown | Refused):
            return answer
        match answer.outcome:
            case TransferOutcome.BOOKED:
                return Held()
            case TransferOutcome.ALREADY_BOOKED:
                # A retry of ours, or somebody placed a hold with this id first: the payer knows the id before we do
                # use it, and the ledger compares accounts and amount, not hashes. Only our own hashes make it a leg.
                match self._standing(order):
                    case HoldStanding.HELD:
                        return Held()
                    case HoldStanding.UNKNOWN:
                        return Unknown("the hold was booked before and cannot be looked up now")
                    case standing:
                        return Refused(AbortReason.HOLD_DIFFERS.value, f"a hold with this id stands: {standing.value}")
            case TransferOutcome.REFUSED if answer.refusal == LedgerRefusal.OUTCOME_UNKNOWN.value:
                return Unknown(answer.detail or answer.refusal)
            case _:
                return Refused(answer.refusal or "refused", answer.detail or "")

    def _end(self, orders: Sequence[EndOrder], kind: TransferKind) -> list[EndOutcome]:
        answers = self._submit([_end_terms(order, kind) for order in orders], self._client.submit_ends)
        return [self._ended(order, kind, answer) for order, answer in zip(orders, answers, strict=True)]

    def _ended(
        self,
        order: EndOrder,
        kind: TransferKind,
        answer: TransferAnswer | Unknown | Refused,
        *,
        is_second: bool = False,
    ) -> EndOutcome:
        if isinstance(answer, Unknown):
            return answer
        if isinstance(answer, TransferAnswer) and answer.outcome in _BOOKED:
            # `already-booked` is our own post or void: its terms name the hold, which ends once (I6).
            return Booked(datetime.fromisoformat(answer.booked_at) if answer.booked_at is not None else None)
        refusal = answer.code if isinstance(answer, Refused) else answer.refusal or ""
        is_post = kind is TransferKind.POST
        match refusal:
            case TransferRefusal.HOLD_ALREADY_POSTED if is_post:
                return self._posted_by_another(order)
            case TransferRefusal.HOLD_ALREADY_VOIDED | TransferRefusal.HOLD_EXPIRED if not is_post:
                return Ended()
            case TransferRefusal.HOLD_SECRET_WRONG if not is_post:
                return Ended()  # a hold of another's hashes took the id, so ours can never be placed
            case TransferRefusal.HOLD_ALREADY_POSTED:
                return self._posted_though_aborted(order)
            case TransferRefusal.HOLD_ALREADY_VOIDED | TransferRefusal.HOLD_EXPIRED | TransferRefusal.HOLD_SECRET_WRONG:
                return Contradiction(f"the post of a held, committed leg is refused: {refusal}")
            case TransferRefusal.ID_ALREADY_USED if not is_second:
                # Somebody booked another transfer under our id. Any id does: a hold ends once, whatever its ends' ids.
                second = self._submit([_end_terms(order, kind, end_id=new_uuid7())], self._client.submit_ends)[0]
                return self._ended(order, kind, second, is_second=True)
            case _:
                return Unknown(f"{kind.value} refused: {refusal}")

    def _posted_by_another(self, order: EndOrder) -> EndOutcome:
        """Anyone may post with a published secret, and the payee's bank was faster: the booking time is of its post."""
        try:
            view = self._client.get_hold(HoldId(order.order.hold_id))
            return Ended() if view.ended_by is None else Booked(self._client.get_transfer(view.ended_by).booked_at)
        except ServiceUnreachable:
            return Unknown("the hold was posted by another and when cannot be looked up now")
        except (ProblemResponse, ValueError):
            return Ended()  # posted it is, and that is what counts; its time stays the bridge's own

    def _posted_though_aborted(self, order: EndOrder) -> EndOutcome:
        """Ours, which takes the erased secret, or another's hold that took the id (the ledger shows us only ours)?"""
        match self._standing(order.order):
            case HoldStanding.OTHER | HoldStanding.ABSENT:
                return Ended()
            case HoldStanding.UNKNOWN:
                return Unknown("the hold was posted and cannot be looked up now")
            case _:
                return Contradiction("an aborted leg stands posted")

    def _standing(self, order: HoldOrder) -> HoldStanding:
        return self.look_up([order])[0]

    # --- transport

    def _submit(
        self, items: Sequence[Item], send: Callable[[Sequence[Item]], list[TransferAnswer]]
    ) -> list[TransferAnswer | Unknown | Refused]:
        answers: list[TransferAnswer | Unknown | Refused] = []
        for start in range(0, len(items), ITEMS_MAX):
            answers += self._send(items[start : start + ITEMS_MAX], send)
        return answers

    def _send(
        self, items: Sequence[Item], send: Callable[[Sequence[Item]], list[TransferAnswer]]
    ) -> list[TransferAnswer | Unknown | Refused]:
        try:
            results = send(items)
        except ServiceUnreachable as error:
            return [Unknown(str(error)[:200])] * len(items)
        except ValueError as error:  # an answer that is not the documented shape says nothing
            return [Unknown(f"unreadable answer: {type(error).__name__}")] * len(items)
        except ProblemResponse as problem:
            if problem.transient or problem.status not in _BAD_REQUEST:
                return [Unknown(str(problem)[:200])] * len(items)
            # The whole request was refused for the sake of some item: find it, so that it stops only itself.
            if len(items) > 1:
                middle = len(items) // 2
                return self._send(items[:middle], send) + self._send(items[middle:], send)
            return [Refused(problem.refusal or "bad-request", problem.detail[:200])]
        if len(results) != len(items):
            return [Unknown("the ledger answered another number of items")] * len(items)
        return list(results)


_STANDING = {
    HoldStatus.HELD.value: HoldStanding.HELD,
    HoldStatus.POSTED.value: HoldStanding.POSTED,
    HoldStatus.VOIDED.value: HoldStanding.VOIDED,
    HoldStatus.EXPIRED.value: HoldStanding.VOIDED,
}


def _standing_of(answer: HoldAnswer | None, order: HoldOrder) -> HoldStanding:
    """Where a hold stands, seen from an order: anything with other terms is OTHER."""
    if answer is None:
        return HoldStanding.ABSENT
    if answer.status == HoldStatus.TOMBSTONED.value:
        return HoldStanding.VOIDED
    terms = order.terms
    is_ours = (
        answer.commit_hash == order.commit_hash.hex()
        and answer.abort_hash == order.abort_hash.hex()
        and answer.debit == show_account(terms.debit)
        and answer.credit == show_account(terms.credit)
        and answer.amount_minor == str(terms.amount.amount_minor)
        and answer.currency == terms.amount.currency.code
        and answer.expires_at is None
    )
    return _STANDING.get(answer.status, HoldStanding.UNKNOWN) if is_ours else HoldStanding.OTHER


def _end_terms(order: EndOrder, kind: TransferKind, *, end_id: UUID | None = None) -> EndTerms:
    return EndTerms(
        id=show("trf", end_id or order.end_id),
        kind=kind.value,
        currency=order.order.terms.amount.currency.code,
        reference=str(order.order.reference),
        hold=show("trf", order.order.hold_id),
        secret=order.secret.hex(),
    )
