"""Rebuild the state from the journal: the balance tables as of the last snapshot, then every block after it.

Checked on the way: the chain of block hashes, the digest of every replayed block's transfers, that `seq` is dense,
and at the end the invariants. A ledger that cannot prove its past does not start.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from zoneinfo import ZoneInfo

import numpy as np

from kernel.errors import InvariantBroken
from ledger.domain import account_changes, directives
from ledger.domain.blocks import GENESIS_HASH, BlockHeader
from ledger.domain.decide import PLAIN_AMOUNT_MAX, SPENDING
from ledger.domain.records import Records, uuid_bytes
from ledger.domain.state import (
    COLUMNS,
    CREDITS_PENDING,
    CREDITS_POSTED,
    DEBITS_PENDING,
    DEBITS_POSTED,
    PAGE_ACCOUNTS,
    SPENT_DAY,
    SPENT_YEAR,
    Effects,
    Hold,
    HoldEnd,
    LedgerState,
    Totals,
)
from ledger.domain.vocabulary import KIND_CODE, TRANSFER_KINDS, TransferKind
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
SPARE_ACCOUNTS = 2**16
"""Room for accounts that are opened soon: making more moves them all."""


def recover(journal: Journal) -> tuple[LedgerState, BlockHeader | None]:
    """The state after the journal's last block, and that block's header (None for an empty journal)."""
    found = journal.directives()
    if not found:
        return LedgerState(time_zone=ZoneInfo("UTC")), None
    genesis = json.loads(found[0].body)
    state = LedgerState(time_zone=ZoneInfo(genesis["time_zone"]))
    of_accounts = []
    for directive in found:
        if directive.kind in ("freeze", "unfreeze", account_changes.KIND):
            of_accounts.append(directive)  # their accounts are opened first
        else:
            directives.apply(state, directive.body, number=directive.number, booked_at=directive.booked_at)
    state.reserve(journal.last_account() + SPARE_ACCOUNTS)
    for page in journal.accounts([caps.name for caps in state.classes]):
        first, size = state.size, len(page)
        if not size or not np.array_equal(page["number"], np.arange(first, first + size)):
            raise BlockMismatch(f"an account between {first} and {first + size - 1} is missing or out of order")
        if int(page["rule_class"].min()) < 0:
            raise BlockMismatch(f"an account between {first} and {first + size - 1} has an unknown rule class")
        state.load_accounts(
            kind=page["kind"].astype(np.uint8),
            participant=page["participant"].astype(np.int32),
            rule_class=page["rule_class"].astype(np.uint8),
            holder_key=page["key"],
            has_key=page["key_size"] > 0,
        )
    for directive in of_accounts:
        directives.apply(state, directive.body, number=directive.number, booked_at=directive.booked_at)

    head = _load_snapshot(state, journal)
    for header, transfers, terms in _blocks_after(journal, head.number if head is not None else 0):
        before = (head.number, head.hash) if head is not None else (0, GENESIS_HASH)
        if (header.number - 1, header.previous_hash) != before:
            raise BlockMismatch(f"block {header.number} does not follow block {before[0]}")
        if header.first_seq != state.next_seq:
            raise BlockMismatch(f"block {header.number} begins at seq {header.first_seq}")
        if hashlib.sha256(transfers.tobytes()).digest() != header.transfers_digest:
            raise BlockMismatch(f"block {header.number}: its transfers are not those it was sealed with")
        state.roll_to(header.booked_at)
        effects = effects_of(state, transfers, terms)
        state.absorb(effects, transfer_count=len(transfers), booked_at=header.booked_at)
        if state.totals != _totals_of(header):
            raise BlockMismatch(f"block {header.number}: its totals are not those of its transfers")
        head = header
    broken = state.broken_invariant()
    if broken is not None:
        raise InvariantBroken(broken[:2], f"after recovery: {broken}")
    return state, head


def _load_snapshot(state: LedgerState, journal: Journal) -> BlockHeader | None:
    """Bring the state to the block of the last snapshot; returns its header, None if there is none."""
    snapshot = journal.snapshot()
    if snapshot is None:
        return None
    block, seq = snapshot
    head = journal.block(block)
    if head is None or head.first_seq + head.transfer_count - 1 != seq:
        raise BlockMismatch(f"the snapshot speaks of block {block} and seq {seq}, the journal does not")
    for pages, totals in journal.balances():
        if int(pages[-1]) * PAGE_ACCOUNTS >= state.size:
            raise BlockMismatch("the snapshot has accounts that were never opened")
        for place, name in enumerate(COLUMNS):
            getattr(state, name).reshape(-1, PAGE_ACCOUNTS)[pages] = totals[:, :, place]
    for number, outstanding in journal.outstanding().items():
        participant = state.participants[number]
        if participant is not None:
            participant.outstanding = outstanding
    for hold in journal.open_holds():
        state.holds[hold.id] = hold
    state.day, state.year = state.local_date(head.booked_at)
    state.totals = _totals_of(head)
    state.next_seq, state.booked_at = seq + 1, head.booked_at
    return head


def _totals_of(header: BlockHeader) -> Totals:
    return Totals(header.issued, header.redeemed, header.vaults, header.wallets, header.offline, header.held)


def _blocks_after(
    journal: Journal, number: int
) -> Iterator[tuple[BlockHeader, Records, dict[bytes, tuple[bytes | None, bytes | None, int]]]]:
    """Each later block with its transfers and the terms of holds among them; many blocks are read at a time."""
    waiting: list[BlockHeader] = []
    headers = journal.blocks_after(number)
    for place, header in enumerate(headers):
        waiting.append(header)
        count = header.first_seq + header.transfer_count - waiting[0].first_seq
        if count < TAIL_PAGE and place < len(headers) - 1:
            continue
        first = waiting[0].first_seq
        tail = journal.tail(first, first + count - 1)
        for each in waiting:
            start = each.first_seq - first
            yield each, tail.transfers[start : start + each.transfer_count], tail.holds
        waiting = []


def effects_of(
    state: LedgerState, journal: Records, terms: dict[bytes, tuple[bytes | None, bytes | None, int]]
) -> Effects:
    """What booked transfers changed, without deciding anything anew."""
    kind = journal["kind"].astype(np.intp)
    plain = ~_HOLD_KINDS[kind] & (journal["amount"].astype(np.int64) <= PLAIN_AMOUNT_MAX)
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
        case TransferKind.TOMBSTONE:
            pass  # it moves nothing; the journal is asked for it when its hold comes
        case _:  # an amount too large to be summed in 63 bits with others
            add(debit, DEBITS_POSTED, amount)
            add(credit, CREDITS_POSTED, amount)
            if SPENDING[KIND_CODE[kind]]:
                add(debit, SPENT_DAY, amount)
                add(debit, SPENT_YEAR, amount)


_END = {
    TransferKind.POST: HoldEnd.POSTED,
    TransferKind.VOID: HoldEnd.VOIDED,
    TransferKind.EXPIRE: HoldEnd.EXPIRED,
}
