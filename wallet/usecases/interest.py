"""Interest on wallets (pack 2026-01): what has accrued, settling a quarter, crediting it, a closure's interest.

  1. once the quarter's last day is over beyond doubt, each wallet's closing balances are read from the ledger's
     statement and its classes from its changes; the exact accrual is written with its rounding and remainder, and with
     the id of the transfer that will pay it. Under the wallet's lock, and only if it follows upon what is settled: so
     no day is settled twice (the tables say so too)
  2. from the day of crediting on the transfer is sent, institution's vault -> wallet, until the ledger has booked it.
     Its id is derived from wallet and day: whoever sends it again, after whatever crash, books nothing twice (I7)

Nothing is backdated: a balance counts as it stood in the ledger at the end of the day in the scheme's time zone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from uuid import UUID

import sqlalchemy as sa

from kernel import ids
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.errors import ProblemError, RequestRefusal
from kernel.ids import AccountNumber
from ledger.contract import TransferKind, TransferOutcome, TransferRefusal, TransferTerms
from wallet.contract import WalletRefusal
from wallet.domain.interest import ONE_DAY, Accrual, Segment, accrue, settlement_days
from wallet.domain.limits import scheme_day
from wallet.domain.records import Wallet
from wallet.domain.rules import RulePack, WalletClass, in_force
from wallet.store import interest, wallets
from wallet.store.interest import Settlement, Total
from wallet.usecases.context import SUBMISSION_GRACE, Context, is_definite, ledger_unavailable, show_transfer
from wallet.usecases.wallets import find_wallet

log = logging.getLogger("jiaozi.wallet.interest")

WALLETS_AT_ONCE_MAX = 200
"""Settled, and credited, in one pass."""
FAILURES_AT_ONCE_MAX = 20
"""After so many the ledger is left alone until the next pass."""
SCANNED_AGAIN_AFTER = timedelta(hours=1)
TRIED_AGAIN_AFTER = timedelta(minutes=5)
_STATEMENT_LINES = 1_000


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a holder may know of his interest now."""

    accrual: Accrual | None
    """To the end of yesterday, not settled yet; None = no day since the last settlement is over."""
    pack: RulePack
    wallet_class: WalletClass
    next_settlement: tuple[date, date] | None
    """(settled on, credited on); None = the pack in force pays no interest."""


def outlook(context: Context, wallet_id: UUID) -> Outlook:
    """Raises: ProblemError(wallet-not-found, service-unavailable)."""
    row = find_wallet(context, wallet_id)
    accrual = unsettled(context, row)
    today = _today(context)
    after = accrual.first_on - ONE_DAY if accrual is not None else today - ONE_DAY
    packs = _packs(context)
    following = next(settlement_days(packs, after=after), None)
    return Outlook(accrual, in_force(packs, today) or context.pack, row.wallet_class, following)


def accrued_interest(context: Context, wallet: Wallet, /) -> int:
    """Minor units accrued to the day before, not settled yet: what a closure of today pays."""
    accrual = unsettled(context, wallet)
    return 0 if accrual is None else accrual.credited_minor


def unsettled(context: Context, row: Wallet, *, last_on: date | None = None) -> Accrual | None:
    """From the day after the last settlement to `last_on`, by default yesterday; None if that is no day.

    Raises: ProblemError(service-unavailable) while the ledger does not answer.
    """
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        settled = interest.settled_until(connection, row.id)
        changes = interest.class_changes(connection, row.id)
    return _accrual(context, row, settled, changes, last_on or _today(context) - ONE_DAY)


def fix_for_closure(
    context: Context, connection: sa.Connection, row: Wallet, accrual: Accrual | None, *, change_id: UUID
) -> None:
    """In the transaction that begins the closure, under the wallet's lock. The interest is the holder's from now on:
    if he cancels the closure, it is credited all the same.

    Raises: ProblemError(money-on-its-way) while a quarter's interest is still to be credited, ProblemError(
    change-in-progress) if a settlement or midnight came in between.
    """
    due_on = interest.due_on(connection, row.id)
    if due_on is not None:
        raise ProblemError(WalletRefusal.MONEY_ON_ITS_WAY, f"interest is to be credited, from {due_on} on")
    if accrual is None or not accrual.units:
        return
    settled = interest.settled_until(connection, row.id)
    today = _today(context)
    if not _follows(accrual, row, settled, context) or accrual.last_on != today - ONE_DAY:
        raise ProblemError(WalletRefusal.CHANGE_IN_PROGRESS, "interest was settled meanwhile: repeat the request")
    interest.insert_settlement(
        connection,
        row,
        accrual,
        kind="closure",
        transfer_id=ids.derive_uuid7(change_id, "interest"),
        credit_on=today,
        now=context.clock(),
    )


# --- a quarter -------------------------------------------------------------------------------------------------------


def last_settlement_day(context: Context) -> date | None:
    """The newest day on which a quarter was to be settled and which is over beyond doubt; None = there was none."""
    today = _today(context, at=context.clock() - SUBMISSION_GRACE)
    days = settlement_days(_packs(context), after=date(today.year - 1, today.month, 1))
    return max((settled_on for settled_on, _ in days if settled_on < today), default=None)


def resume_interest(context: Context) -> int:
    """For the recovery pass: settle and credit what is due, a bounded piece. How many settlements were written or
    credited."""
    return settle_some(context) + credit_some(context)


@dataclass(frozen=True, slots=True)
class Ran:
    settled_on: date | None
    settled: int
    credited: int
    is_finished: bool
    """Every wallet has its settlement, and nothing that may be credited today is left."""


def run(context: Context) -> Ran:
    """One bounded pass that somebody has asked for: what was refused a moment ago is tried again."""
    settled_on = last_settlement_day(context)
    settled = settle_some(context, ignore_scan=True)
    credited = credit_some(context, is_asked=True)
    is_finished = settled_on is None
    if settled_on is not None:
        with context.database.transaction(isolation="READ COMMITTED") as connection:
            found = interest.find_run(connection, settled_on)
            due = interest.settlements_due(connection, today=_today(context), refused_before=context.clock(), limit=1)
        is_finished = found is not None and found[1] is not None and not due
    return Ran(settled_on, settled, credited, is_finished)


def settle_some(context: Context, *, ignore_scan: bool = False) -> int:
    """Settle wallets for the quarter that ended last (and any before it that were missed). How many."""
    settled_on = last_settlement_day(context)
    if settled_on is None:
        return 0
    now = context.clock()
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        run = interest.find_run(connection, settled_on)
    if run is not None:
        scanned_at, finished_at = run
        is_fresh = scanned_at is not None and now - scanned_at < SCANNED_AGAIN_AFTER
        if finished_at is not None or (is_fresh and not ignore_scan):
            return 0
    done, failures = 0, 0
    after: UUID | None = None
    opened_before = _midnight(context, settled_on + ONE_DAY)
    while done < WALLETS_AT_ONCE_MAX and failures < FAILURES_AT_ONCE_MAX:
        with context.database.transaction(isolation="READ COMMITTED") as connection:
            rows = interest.wallets_to_settle(
                connection,
                settled_on=settled_on,
                opened_before=opened_before,
                after=after,
                limit=WALLETS_AT_ONCE_MAX - done,
            )
        if not rows:
            with context.database.transaction(isolation="READ COMMITTED") as connection:
                is_finished = not failures and not interest.has_closing(connection)
                interest.mark_scanned(connection, settled_on, now=now, is_finished=is_finished)
            break
        after = rows[-1].id
        for row in rows:
            try:
                done += settle_wallet(context, row, until=settled_on)
            except ProblemError as error:
                failures += 1
                log.warning("interest of wallet %s is settled later: %s", row.id, error.refusal)
                if failures >= FAILURES_AT_ONCE_MAX:
                    break
    return done


def settle_wallet(context: Context, row: Wallet, *, until: date) -> int:
    """Write the settlements of every quarter up to `until` that the wallet lacks. How many were written.

    Raises: ProblemError(service-unavailable).
    """
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        settled = interest.settled_until(connection, row.id)
        changes = interest.class_changes(connection, row.id)
    before, planned = settled, []
    for settled_on, credited_on in settlement_days(_packs(context), after=_first_day(context, row, settled) - ONE_DAY):
        if settled_on > until:
            break
        accrual = _accrual(context, row, before, changes, settled_on)
        if accrual is not None:
            planned.append((accrual, credited_on))
            before = settled_on

    def write(connection: sa.Connection) -> int:
        locked = wallets.lock_wallet(connection, row.id)
        if locked is None or locked.state not in ("open", "suspended"):
            return 0
        if interest.settled_until(connection, row.id) != settled:
            return 0  # another process has settled it
        for accrual, credit_on in planned:
            last_on = accrual.last_on
            interest.insert_settlement(
                connection,
                locked,
                accrual,
                kind="quarter",
                transfer_id=ids.derive_uuid7(row.id, f"interest/{last_on.isoformat()}"),
                credit_on=credit_on,
                now=context.clock(),
            )
        return len(planned)

    return context.database.run(write, isolation="READ COMMITTED")


def credit_some(context: Context, *, is_asked: bool = False) -> int:
    """Send what is due by today to the ledger. How many settlements were credited."""
    now = context.clock()
    before = now if is_asked else now - TRIED_AGAIN_AFTER
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        rows = interest.settlements_due(
            connection, today=_today(context), refused_before=before, limit=WALLETS_AT_ONCE_MAX
        )
    return sum(_credit(context, row) for row in rows)


def _credit(context: Context, row: Settlement) -> bool:
    """Whether the ledger has booked it, now or before."""
    home = context.ledgers.home
    terms = TransferTerms(
        id=row.transfer_id,
        kind=TransferKind.INTEREST,
        debit=context.ledgers.vault(home),
        credit=row.account,
        amount_minor=row.credited_minor,
        currency=home.currency,
    )
    try:
        result = home.client.transfer(terms)
    except ServiceUnreachable:
        return _put_off(context, row, RequestRefusal.SERVICE_UNAVAILABLE.value)
    except ProblemResponse as error:
        known = error.refusal if is_definite(error) and error.refusal else RequestRefusal.SERVICE_UNAVAILABLE.value
        return _put_off(context, row, known)
    if result.outcome is TransferOutcome.REFUSED:
        log.warning("interest %s is credited later: %s", show_transfer(row.transfer_id), result.refusal)
        return _put_off(context, row, result.refusal or RequestRefusal.SERVICE_UNAVAILABLE.value)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        booked_at = result.booked_at or context.clock()
        interest.mark_credited(connection, row.transfer_id, seq=result.seq, booked_at=booked_at)
    return True


def _put_off(context: Context, row: Settlement, refusal: str) -> bool:
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        if refusal == TransferRefusal.ID_ALREADY_USED.value and row.kind == "quarter":
            # Somebody has taken the id for another transfer, so ours was never booked under it: the next one.
            interest.change_transfer(connection, row.transfer_id, ids.derive_uuid7(row.transfer_id, "interest"))
        else:
            interest.mark_tried(connection, row.transfer_id, refusal=refusal, now=context.clock())
    return False


# --- reading ---------------------------------------------------------------------------------------------------------


def history(
    context: Context, wallet_id: UUID, *, before: date | None, limit: int
) -> list[tuple[Settlement, list[Segment]]]:
    """Settlements of a wallet, newest first, each with its days. Raises: ProblemError(wallet-not-found)."""
    find_wallet(context, wallet_id)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        return interest.list_settlements(connection, wallet_id, before=before, limit=limit)


def remainder_account(context: Context, *, limit: int) -> list[Total]:
    """A page a day on which periods ended, newest first: accrued, credited, and what rounding left."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        return interest.totals(connection, limit=limit)


def preview(context: Context, *, after: UUID | None, limit: int) -> list[tuple[Wallet, Accrual | None]]:
    """Wallets in order of id, with what has accrued on each to yesterday. Nothing is written.

    Raises: ProblemError(service-unavailable).
    """
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        rows = wallets.list_wallets(connection, customer_id=None, after=after, limit=limit)
    held = ("open", "suspended", "closing")
    return [(row, unsettled(context, row) if row.state in held else None) for row in rows]


def closing_balances(
    context: Context, account: AccountNumber, *, first_on: date, last_on: date
) -> tuple[dict[date, int], int]:
    """Minor units at the end of each scheme day that had bookings, and before `first_on`. From the ledger's statement,
    read backwards a page at a time. Raises: ProblemError(service-unavailable)."""
    found: dict[date, int] = {}
    cursor: str | None = None
    while True:
        try:
            page = context.ledgers.home.client.statement(
                account, cursor=cursor, limit=_STATEMENT_LINES, newest_first=True
            )
        except (ProblemResponse, ServiceUnreachable) as error:
            raise ledger_unavailable(error) from error
        for line in page.lines:
            day = scheme_day(line.booked_at, context.time_zone)
            if day < first_on:
                return found, line.balance_minor
            if day <= last_on:
                found.setdefault(day, line.balance_minor)
        cursor = page.next_cursor
        if cursor is None:
            return found, 0


def _accrual(
    context: Context,
    row: Wallet,
    settled: date | None,
    changes: Sequence[tuple[datetime, WalletClass]],
    last_on: date,
) -> Accrual | None:
    if row.account is None or row.opened_at is None:
        return None
    first_on = _first_day(context, row, settled)
    if first_on > last_on:
        return None
    packs = _packs(context)
    # The later change of a day overwrites the earlier one: the class at its end counts.
    classes = {scheme_day(moment, context.time_zone): wallet_class for moment, wallet_class in changes}
    opened_in = row.opened_in_class or row.wallet_class
    held = {opened_in, *classes.values()}
    since = [pack.in_force_from for pack in packs if any(pack.bears_interest(name) for name in held)]
    balances: dict[date, int] = {}
    opening_minor = 0
    if since and min(since) <= last_on:
        balances, opening_minor = closing_balances(
            context, row.account, first_on=max(first_on, min(since)), last_on=last_on
        )
    return accrue(
        first_on=first_on,
        last_on=last_on,
        balances=balances,
        opening_minor=opening_minor,
        classes=classes,
        opened_in=opened_in,
        packs=packs,
    )


def _first_day(context: Context, row: Wallet, settled: date | None) -> date:
    """The first day that is not settled."""
    if settled is not None:
        return settled + ONE_DAY
    return scheme_day(row.opened_at or row.created_at, context.time_zone)


def _follows(accrual: Accrual, row: Wallet, settled: date | None, context: Context) -> bool:
    return accrual.first_on == _first_day(context, row, settled)


def _packs(context: Context) -> Sequence[RulePack]:
    return context.packs or (context.pack,)


def _today(context: Context, *, at: datetime | None = None) -> date:
    return scheme_day(at or context.clock(), context.time_zone)


def _midnight(context: Context, day: date) -> datetime:
    """When a scheme day begins."""
    return datetime.combine(day, time.min, tzinfo=context.time_zone)
