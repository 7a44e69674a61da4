"""Rebuild the state from the journal: the balance tables as of the last snapshot, then every block after it.

Checked on the way: the chain of block hashes, the digest of every replayed block's transfers, that `seq` is dense,
and at the end the invariants. A ledger that cannot prove its past does not start.
"""

from __future__ import annotations

import hashlib
import json
from zoneinfo import ZoneInfo

import numpy as np

from kernel.errors import InvariantBroken
from ledger.domain import directives
from ledger.domain.blocks import GENESIS_HASH, BlockHeader
from ledger.domain.decide import SPENDING
from ledger.domain.records import Records, uuid_bytes
from ledger.domain.state import (
    COLUMNS,
    CREDITS_PENDING,
    CREDITS_POSTED,
    DEBITS_PENDING,
    DEBITS_POSTED,
    SPENT_DAY,
    SPENT_YEAR,
    Effects,
    Hold,
    HoldEnd,
    LedgerState,
)
from ledger.domain.vocabulary import ACCOUNT_KINDS, KIND_CODE, TRANSFER_KINDS, TransferKind
from ledger.store.journal import TAIL_PAGE, BlockMismatch, Journal

_HOLD_KINDS = np.isin(
    np.arange(len(TRANSFER_KINDS)),
    [
        KIND_CODE[kind]
        for kind in (
            *(TransferKind.HOLD, TransferKind.POST, TransferKind.VOID, TransferKind.EXPIRE),
            *(TransferKind.ISSUE, TransferKind.REDEEM, TransferKind.TOMBSTONE),
        )
    ],
)
"""Kinds that touch more than two posted totals."""


def recover(journal: Journal) -> tuple[LedgerState, BlockHeader | None]:
    """The state after the journal's last block, and that block's header (None for an empty journal)."""
    found = journal.directives()
    if not found:
        return LedgerState(time_zone=ZoneInfo("UTC")), None
    genesis = json.loads(found[0].body)
    state = LedgerState(time_zone=ZoneInfo(genesis["time_zone"]))
    freezes = []
    for directive in found:
        if directive.kind in ("freeze", "unfreeze"):
            freezes.append(directive)  # their accounts are opened first
        else:
            directives.apply(state, directive.body)
    for opened in journal.accounts():
        number = state.open_account(
            kind=ACCOUNT_KINDS[opened.kind],
            participant=opened.participant,
            rule_class=state.class_by_name[opened.rule_class],
            holder_key=opened.holder_key,
        )
        if number != opened.number:
            raise BlockMismatch(f"account {opened.number} is missing or out of order")
    for directive in freezes:
        directives.apply(state, directive.body)

    block, seq, booked_at = 0, 0, 0
    snapshot = journal.snapshot()
    if snapshot is not None:
        block, seq, booked_at, state.issued, state.redeemed = snapshot
        for page in journal.balances():
            rows = np.array(page, np.int64)
            for position, name in enumerate(COLUMNS, start=1):
                getattr(state, name)[rows[:, 0]] = rows[:, position]
        for number, outstanding in journal.outstanding().items():
            participant = state.participants[number]
            if participant is not None:
                participant.outstanding = outstanding
        for hold in journal.open_holds():
            state.holds[hold.id] = hold
        state.day, state.year = state.local_date(booked_at)
    state.next_seq, state.booked_at = seq + 1, booked_at

    head = journal.block(block) if block else None
    for header in journal.blocks_after(block):
        before = (head.number, head.hash) if head is not None else (0, GENESIS_HASH)
        if (header.number - 1, header.previous_hash) != before:
            raise BlockMismatch(f"block {header.number} does not follow block {before[0]}")
        if header.first_seq != state.next_seq:
            raise BlockMismatch(f"block {header.number} begins at seq {header.first_seq}")
        _replay_block(state, journal, header)
        head = header
    broken = state.broken_invariant()
    if broken is not None:
        raise InvariantBroken(broken[:2], f"after recovery: {broken}")
    return state, head


def _replay_block(state: LedgerState, journal: Journal, header: BlockHeader) -> None:
    state.roll_to(header.booked_at)
    digest = hashlib.sha256()
    first, last = header.first_seq, header.first_seq + header.transfer_count - 1
    for start in range(first, last + 1, TAIL_PAGE):
        tail = journal.tail(start, min(last, start + TAIL_PAGE - 1))
        digest.update(tail.transfers.tobytes())
        effects = effects_of(state, tail.transfers, tail.holds)
        state.absorb(effects, transfer_count=len(tail.transfers), booked_at=header.booked_at)
    if digest.digest() != header.transfers_digest:
        raise BlockMismatch(f"block {header.number}: its transfers are not those it was sealed with")
    state.booked_at = header.booked_at


def effects_of(
    state: LedgerState, journal: Records, terms: dict[bytes, tuple[bytes | None, bytes | None, int]]
) -> Effects:
    """What booked transfers changed, without deciding anything anew."""
    kind = journal["kind"].astype(np.intp)
    plain = ~_HOLD_KINDS[kind]
    rows = journal[plain]
    effects = Effects(
        debit=rows["debit"].astype(np.int64),
        credit=rows["credit"].astype(np.int64),
        amount=rows["amount"].astype(np.int64),
        spent=SPENDING[kind[plain]],
    )
    for row in journal[~plain]:
        _replay_special(state, effects, row, terms)
    return effects


def _replay_special(
    state: LedgerState, effects: Effects, row: Records, terms: dict[bytes, tuple[bytes | None, bytes | None, int]]
) -> None:
    kind = TRANSFER_KINDS[int(row["kind"])]
    debit, credit, amount = int(row["debit"]), int(row["credit"]), int(row["amount"])
    hold_id = uuid_bytes(int(row["hold_high"]), int(row["hold_low"]))

    def add(account: int, column: int, delta: int) -> None:
        effects.running.setdefault(account, [0] * len(COLUMNS))[column] += delta

    match kind:
        case TransferKind.ISSUE | TransferKind.REDEEM:
            add(debit, DEBITS_POSTED, amount)
            add(credit, CREDITS_POSTED, amount)
            is_issue = kind is TransferKind.ISSUE
            owner = int(state.participant[credit if is_issue else debit])
            effects.outstanding[owner] = effects.outstanding.get(owner, 0) + (amount if is_issue else -amount)
            effects.issued += amount if is_issue else 0
            effects.redeemed += 0 if is_issue else amount
        case TransferKind.HOLD:
            own_id = uuid_bytes(int(row["id_high"]), int(row["id_low"]))
            commit_hash, abort_hash, expires_at = terms[own_id]
            effects.placed[own_id] = Hold(
                own_id, debit, credit, amount, commit_hash, abort_hash, expires_at, True, state.day, state.year
            )
            add(debit, DEBITS_PENDING, amount)
            add(credit, CREDITS_PENDING, amount)
            add(debit, SPENT_DAY, amount)
            add(debit, SPENT_YEAR, amount)
        case TransferKind.POST | TransferKind.VOID | TransferKind.EXPIRE:
            hold = effects.placed.get(hold_id) or state.holds.get(hold_id)
            if hold is None:
                raise BlockMismatch(f"seq {int(row['seq'])} ends a hold that is not open")
            add(debit, DEBITS_PENDING, -hold.amount)
            add(credit, CREDITS_PENDING, -hold.amount)
            unspent = hold.amount
            if kind is TransferKind.POST:
                add(debit, DEBITS_POSTED, amount)
                add(credit, CREDITS_POSTED, amount)
                unspent -= amount
            if unspent and hold.day == state.day:
                add(debit, SPENT_DAY, -unspent)
            if unspent and hold.year == state.year:
                add(debit, SPENT_YEAR, -unspent)
            effects.ended[hold_id] = _END[kind]
        case _:
            pass  # a tombstone moves nothing; the journal is asked for it when its hold comes


_END = {
    TransferKind.POST: HoldEnd.POSTED,
    TransferKind.VOID: HoldEnd.VOIDED,
    TransferKind.EXPIRE: HoldEnd.EXPIRED,
}
