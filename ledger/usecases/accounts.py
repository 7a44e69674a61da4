"""Accounts: opening them, and reading balances and statements at one point of the journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import TypeVar

from kernel import pagination
from kernel.clock import from_micros
from kernel.crypto.keys import KeyRefused, PublicKey
from kernel.database import Database
from kernel.errors import ProblemError, Refusal, RequestRefusal
from kernel.ids import AccountNumber, ParticipantId
from ledger.contract import (
    AccountOpening,
    AccountOpeningResult,
    AccountView,
    AnnouncedKeyView,
    SupplyView,
)
from ledger.domain.account_changes import effective_at
from ledger.domain.blocks import OpenedAccount
from ledger.domain.keys import key_bytes
from ledger.domain.state import CLOSED, FROZEN, NO_CAP, SUSPENDED, LedgerState
from ledger.domain.vocabulary import (
    ACCOUNT_KIND_CODE,
    ACCOUNT_KINDS,
    KIND_CODE,
    AccountKind,
    AccountStatus,
    LedgerRefusal,
    ParticipantRole,
    TransferKind,
    TransferRefusal,
)
from ledger.engine.sequencer import Sequencer, SequencerUnavailable
from ledger.store import queries
from ledger.store.history import History
from ledger.store.queries import BookedTransfer
from ledger.usecases.keyring import Caller, Keyring, decode_holder_key

T = TypeVar("T")
UNPOSTED_CODES = frozenset(
    KIND_CODE[kind] for kind in (TransferKind.HOLD, TransferKind.VOID, TransferKind.EXPIRE, TransferKind.TOMBSTONE)
)
"""Kinds that do not move the posted balance."""
BOOKINGS_READ_MAX = 20_000
"""Journal rows that one page of bookings may read: some twenty milliseconds."""


@dataclass(frozen=True, slots=True)
class StatementRow:
    """A line of a statement. `moved`: in the posted balance, 0 for a hold or its end; `balance`: after this line."""

    booked: BookedTransfer
    is_debit: bool
    moved: int
    balance: int


@dataclass(frozen=True, slots=True)
class StatementPage:
    account: int
    currency: str
    opening_balance: int
    closing_balance: int
    lines: Sequence[StatementRow]
    next_cursor: str | None


class Accounts:
    def __init__(
        self,
        sequencer: Sequencer,
        keyring: Keyring,
        database: Database,
        history: History,
        *,
        state: LedgerState,
        answer_seconds_max: float,
    ) -> None:
        self._sequencer = sequencer
        self._keyring = keyring
        self._database = database
        self._history = history
        self._state = state
        self._answer_seconds_max = answer_seconds_max

    # --- opening

    def open(self, openings: Sequence[AccountOpening], *, caller: Caller) -> list[AccountOpeningResult]:
        """Open accounts of the calling participant; one result an item, in order."""
        participant = self._keyring.participant(caller.participant)
        if participant is None or participant.role is ParticipantRole.BRIDGE:
            raise ProblemError(LedgerRefusal.ROLE_NOT_ALLOWED, "intermediaries and foreign participants open accounts")
        accepted: list[OpenedAccount] = []
        checked: list[Refusal | None] = []
        for item in openings:
            refusal, key = self._check_opening(item, participant.role)
            checked.append(refusal)
            if refusal is None:
                accepted.append(
                    OpenedAccount(
                        number=0,
                        opening_id=item.opening.bytes,
                        kind=ACCOUNT_KIND_CODE[item.kind],
                        participant=participant.number,
                        rule_class=item.rule_class,
                        holder_key=key,
                    )
                )
        numbered = self._wait(lambda: self._sequencer.open_accounts(accepted)) if accepted else []
        opened = iter(numbered)
        results = []
        for item, refusal in zip(openings, checked, strict=True):
            account = next(opened) if refusal is None else None
            if refusal is None and account is None:
                refusal = TransferRefusal.ID_ALREADY_USED
            results.append(
                AccountOpeningResult(
                    opening=item.opening,
                    account=AccountNumber(account.number) if account is not None else None,
                    refusal=refusal.value if refusal is not None else None,
                    transient=refusal.transient if refusal is not None else None,
                    detail=refusal.title if refusal is not None else None,
                )
            )
        return results

    def _check_opening(self, item: AccountOpening, role: ParticipantRole) -> tuple[Refusal | None, bytes | None]:
        if item.rule_class not in self._state.class_by_name:
            return LedgerRefusal.CLASS_UNKNOWN, None
        is_wallet = item.kind is AccountKind.WALLET
        if item.kind is not AccountKind.VAULT and role is not ParticipantRole.INTERMEDIARY:
            return LedgerRefusal.ROLE_NOT_ALLOWED, None
        if is_wallet != (item.holder_key is not None):
            return LedgerRefusal.HOLDER_KEY_MISMATCH, None
        if item.holder_key is None:
            return None, None
        try:
            PublicKey.from_jwk(item.holder_key)
        except KeyRefused:
            return LedgerRefusal.HOLDER_KEY_MISMATCH, None
        return None, key_bytes(item.holder_key)

    # --- reading

    def view(self, account: int, *, caller: Caller) -> AccountView:
        """As `find`. Raises ProblemError(ACCOUNT_NOT_FOUND), also for an account that the caller may not see."""
        found = self.find(account, caller=caller)
        if found is None:
            raise ProblemError(LedgerRefusal.ACCOUNT_NOT_FOUND)
        return found

    def find(self, account: int, *, caller: Caller) -> AccountView | None:
        """The account as of the last block. Its participant and operators may look; bridges at vaults, whose money
        they settle with. None for everybody else, as if there were none."""
        state = self._state
        if not (self._may_read(state, account, caller) or self._is_vault_for_bridge(state, account, caller)):
            return None
        now = self._sequencer.account_now(account)
        participant = state.participants[int(state.participant[account])]
        kind = ACCOUNT_KINDS[int(state.kind[account])]
        keys = self._keyring.holder_thumbprints(account)
        return AccountView(
            account=AccountNumber(account),
            kind=kind,
            participant=ParticipantId(participant.code) if participant is not None else None,
            status=_status(int(state.standing[account])),
            rule_class=state.classes[int(state.rule_class[account])].name,
            currency=state.currency,
            balance_minor=now.balance,
            available_minor=now.balance - now.debits_pending,
            debits_posted_minor=now.debits_posted,
            credits_posted_minor=now.credits_posted,
            debits_pending_minor=now.debits_pending,
            credits_pending_minor=now.credits_pending,
            spent_today_minor=now.spent_day,
            spent_this_year_minor=now.spent_year,
            balance_max_minor=self._own_cap(account),
            holder_key=keys[0] if keys else None,
            holder_keys=keys,
            announced_key=self._announced(account),
            as_of_seq=now.seq,
            as_of=from_micros(now.booked_at),
        )

    def exist(self, accounts: Sequence[int]) -> list[bool]:
        """Whether each is an account. No more than the refusal credit-account-unknown tells any payer anyway."""
        state = self._state
        return [state.exists(account) for account in accounts]

    def _own_cap(self, account: int) -> int | None:
        cap = self._state.balance_caps.get(account)
        return None if cap is None or cap.balance_max == NO_CAP else cap.balance_max

    def _announced(self, account: int) -> AnnouncedKeyView | None:
        announced = self._state.announced.get(account)
        if announced is None:
            return None
        return AnnouncedKeyView(
            key=decode_holder_key(announced.key).thumbprint,
            announced_at=from_micros(announced.announced_at),
            effective_at=from_micros(effective_at(self._state, announced)),
        )

    def _check_may_read(self, state: LedgerState, account: int, caller: Caller) -> None:
        """An account of another participant is answered like one that does not exist."""
        if not self._may_read(state, account, caller):
            raise ProblemError(LedgerRefusal.ACCOUNT_NOT_FOUND)

    def _may_read(self, state: LedgerState, account: int, caller: Caller) -> bool:
        return state.exists(account) and (caller.is_operator or int(state.participant[account]) == caller.participant)

    def _is_vault_for_bridge(self, state: LedgerState, account: int, caller: Caller) -> bool:
        participant = state.participants[caller.participant]
        is_bridge = participant is not None and participant.role is ParticipantRole.BRIDGE
        return is_bridge and state.exists(account) and ACCOUNT_KINDS[int(state.kind[account])] is AccountKind.VAULT

    def statement(
        self, account: int, *, caller: Caller, cursor: str | None, limit: int, newest_first: bool
    ) -> StatementPage:
        """A page of booked lines with the running balance, exact at each line."""
        filters = {"account": account, "newest_first": newest_first}

        self._check_may_read(self._state, account, caller)
        now = self._sequencer.account_now(account)
        through, balance = now.seq, now.balance
        after = 0
        if cursor is not None:
            position = pagination.decode(cursor, filters, shape=(int, int))
            at, balance = int(position[0]), int(position[1])
            if at <= 0:
                raise ProblemError(RequestRefusal.VALIDATION_FAILED, "pass next_cursor unchanged")
            after, through = (0, at - 1) if newest_first else (at, through)
        elif not newest_first:
            balance = 0
        # Each statement for itself: what is booked never changes, and `through` bounds what is seen.
        with self._database.session(is_lazy=True) as connection:
            entries = self._history.find(
                connection, account, after_seq=after, through_seq=through, limit=limit + 1, newest_first=newest_first
            )
            rows = queries.find_transfers(connection, entries)
        lines: list[StatementRow] = []
        first = balance
        for row in rows[:limit]:
            is_debit = row.debit == account
            moved = 0 if row.kind in UNPOSTED_CODES else row.amount
            signed = -moved if is_debit else moved
            if not newest_first:
                balance += signed
            lines.append(StatementRow(row, is_debit, moved, balance))
            if newest_first:
                balance -= signed
        has_more = len(rows) > limit
        opening, closing = (balance, first) if newest_first else (first, balance)
        next_cursor = pagination.encode([lines[-1].booked.seq, balance], filters) if has_more else None
        return StatementPage(account, self._state.currency, opening, closing, lines, next_cursor)

    def bookings(self, *, caller: Caller, after_seq: int, limit: int) -> tuple[list[BookedTransfer], int]:
        """What was booked on the caller's accounts after a seq, in order, and the seq up to which that is all. One
        call reads BOOKINGS_READ_MAX transfers of the journal at most, so both may be less than there is.

        Raises: ProblemError(role-not-allowed) for who has no accounts.
        """
        if not caller.participant:
            raise ProblemError(LedgerRefusal.ROLE_NOT_ALLOWED, "participants have accounts")
        head = self._sequencer.current_head()
        newest = head.first_seq + head.transfer_count - 1 if head is not None else 0
        last_seq = min(newest, after_seq + BOOKINGS_READ_MAX)
        if last_seq <= after_seq:
            return [], after_seq
        with self._database.session(is_lazy=True) as connection:
            seqs = queries.seqs_of_owner(
                connection, self._state.participant, caller.participant, first_seq=after_seq + 1, last_seq=last_seq
            )
            if len(seqs) > limit:
                seqs = seqs[:limit]
                last_seq = seqs[-1]
            return queries.transfers_at(connection, seqs) if seqs else [], last_seq

    def supply(self) -> SupplyView:
        """I2 as the newest block's header states it: its totals are hashed with it, and checked by the verifier."""
        head = self._sequencer.current_head()
        if head is None:
            raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "the ledger has no genesis yet")
        circulation = head.issued - head.redeemed
        return SupplyView(
            currency=self._state.currency,
            issued_minor=head.issued,
            redeemed_minor=head.redeemed,
            circulation_minor=circulation,
            vaults_minor=head.vaults,
            wallets_minor=head.wallets,
            offline_minor=head.offline,
            held_minor=head.held,
            identity_holds=circulation == head.vaults + head.wallets + head.offline,
            as_of_block=head.number,
            as_of_seq=head.first_seq + head.transfer_count - 1,
            as_of=from_micros(head.booked_at),
        )

    def _wait(self, ask: Callable[[], Future[T]]) -> T:
        try:
            return ask().result(self._answer_seconds_max)
        except FutureTimeout:
            raise ProblemError(LedgerRefusal.OUTCOME_UNKNOWN, "retry with the same ids") from None
        except SequencerUnavailable as error:
            raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "the ledger is not serving; retry") from error


def _status(standing: int) -> AccountStatus:
    """The strongest of what holds: a suspended account that is frozen too is shown frozen."""
    if standing & CLOSED:
        return AccountStatus.CLOSED
    if standing & FROZEN:
        return AccountStatus.FROZEN
    return AccountStatus.SUSPENDED if standing & SUSPENDED else AccountStatus.ACTIVE
