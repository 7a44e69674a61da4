"""Payrolls: one file of many payments, each signed by the payer's device, carried to the ledger line by line.

  1. `check_file` (the dry run) reads a file and says what would become of each line; nothing is kept.
  2. `register_file` announces a file: its lines and their sum. `receive_lines` takes the signed lines in chunks.
  3. `start_file` begins only if what arrived is what was announced: before it nothing can be booked.
  4. `run_files`, a periodic pass, carries what was received, in order, and records each line's outcome.

Every step may be repeated after a crash of either side: a line's transfer has an id derived from the file's and the
line's, so whoever sends it again, it books once (I7); the signature is the payer's, and the ledger checks it (I8).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from psycopg.errors import UniqueViolation

from kernel import ids
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.errors import ProblemError, Refusal, RequestRefusal
from kernel.money import Currency
from ledger.contract import (
    ACCOUNT_CHECKS_MAX,
    InvalidInstruction,
    LedgerRefusal,
    TransferKind,
    read_instruction,
)
from wallet.contract import WalletRefusal
from wallet.domain import bulk as rules
from wallet.domain.bulk import BadLine, CheckedLine, FileUnreadable, PayrollLine, line_transfer_id
from wallet.domain.events import EventType
from wallet.domain.lifecycle import caps_in_force
from wallet.domain.limits import scheme_day
from wallet.domain.records import Payment, Wallet
from wallet.store import bulk, events, wallets
from wallet.store.bulk import BulkFile, BulkLine, Progress
from wallet.usecases.aliases import look_up_many
from wallet.usecases.context import Context, ledger_unavailable
from wallet.usecases.pay import Outcome, pay
from wallet.usecases.wallets import account_of, find_wallet

log = logging.getLogger("jiaozi.wallet.bulk")

CARRIED_TOGETHER_MAX = 500
"""Lines of one ledger batch: single payments wait no longer for it than for each other."""
CLAIM = timedelta(seconds=60)
"""How long a file is left to the process that works on it; longer than one batch can take."""
PAUSE = timedelta(seconds=2)
"""After a batch of which nothing is known: the ledger does not answer."""
_UNKNOWN = frozenset({RequestRefusal.SERVICE_UNAVAILABLE.value, LedgerRefusal.OUTCOME_UNKNOWN.value})


# --- 1. the dry run --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CheckedFile:
    lines: list[CheckedLine]
    """In the file's order."""
    total_minor: int
    """The sum of the lines that could be read."""
    payable: int
    payable_minor: int
    available_minor: int


def check_file(context: Context, wallet_id: UUID, content: bytes) -> CheckedFile:
    """What would become of each line now. Nothing is kept, nothing is booked.

    A payee may be an alias of this institution's: it is resolved here, once, and the payer sees whose account it is by
    masked name before signing to that account; an alias that moves afterwards moves no money.
    Raises: ProblemError(bulk-file-unreadable, wallet-not-found, wallet-not-open, alias-lookups-too-many,
    service-unavailable).
    """
    wallet = find_wallet(context, wallet_id)
    account = account_of(context, wallet)
    if account is None or wallet.account is None:
        raise ProblemError(WalletRefusal.WALLET_NOT_OPEN)
    today = scheme_day(context.clock(), context.time_zone)
    bad: list[CheckedLine] = []
    good: list[PayrollLine] = []
    try:
        for line in rules.read_payroll([content], Currency.of(context.ledgers.home.currency)):
            if isinstance(line, PayrollLine):
                good.append(line)
            else:
                bad.append(_unreadable(line))
    except FileUnreadable as error:
        raise ProblemError(WalletRefusal.BULK_FILE_UNREADABLE, str(error)) from None
    payer = rules.Payer(
        account=wallet.account,
        caps=caps_in_force(context.pack, wallet.wallet_class, changing_to=wallet.changing_to, own=wallet.own_caps),
        usage=wallet.usage,
        available_minor=account.available_minor,
    )
    payees = {line.payee for line in good}
    named = look_up_many(context, wallet, payees, currency=context.ledgers.home.currency)
    accounts = find_payees(context, payees) | {text: int(payee.account) for text, payee in named.items()}
    names = {text: payee.masked_name for text, payee in named.items()}
    checked = [*rules.check_lines(good, accounts=accounts, payer=payer, today=today, names=names), *bad]
    payable = [line for line in checked if line.refusal is None]
    return CheckedFile(
        lines=sorted(checked, key=lambda line: line.number),
        total_minor=sum(line.amount_minor for line in good),
        payable=len(payable),
        payable_minor=sum(line.amount_minor for line in payable),
        available_minor=account.available_minor,
    )


def _unreadable(line: BadLine) -> CheckedLine:
    code = "line-repeated" if line.is_repeated else "line-unreadable"
    return CheckedLine(line.number, line.line_id, None, 0, code, line.reason)


def find_payees(context: Context, payees: Collection[str]) -> dict[str, int]:
    """Those who can be paid: their account. Ours are looked up here, the others' at the ledger, a page at a time."""
    accounts: dict[str, int] = {}
    for payee in payees:
        try:
            accounts[payee] = ids.parse_account(payee)
        except ValueError:
            continue
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        ours = bulk.open_accounts_of(connection, list(accounts.values()))
    others = sorted(set(accounts.values()) - ours)
    found = set(ours)
    for first in range(0, len(others), ACCOUNT_CHECKS_MAX):
        page = others[first : first + ACCOUNT_CHECKS_MAX]
        try:
            exist = context.ledgers.home.client.check_accounts(page)
        except (ProblemResponse, ServiceUnreachable) as error:
            raise ledger_unavailable(error) from error
        found.update(account for account, does in zip(page, exist, strict=True) if does)
    return {payee: account for payee, account in accounts.items() if account in found}


# --- 2. take in ------------------------------------------------------------------------------------------------------


def register_file(
    context: Context,
    file_id: UUID,
    *,
    wallet_id: UUID,
    content_sha256: bytes,
    lines_total: int,
    total_minor: int,
    again: bool,
) -> BulkFile:
    """Idempotent by id. `again`: the payer means to send the same content a second time.

    Raises: ProblemError(wallet-not-found, wallet-not-open, bulk-file-exists, bulk-file-repeated).
    """
    wallet = find_wallet(context, wallet_id)
    now = context.clock()
    row = BulkFile(
        id=file_id,
        wallet_id=wallet_id,
        debit_account=_account(wallet),
        currency=context.ledgers.home.currency,
        content_sha256=content_sha256,
        lines_total=lines_total,
        total_minor=total_minor,
        state="uploading",
        claimed_until=now,
        created_at=now,
        started_at=None,
        finished_at=None,
    )
    if ids.is_from_future(file_id, now=now):  # the lines' ids are made from it
        raise ProblemError(LedgerRefusal.ID_FROM_FUTURE)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        # Two that come at once, each the other's repetition: one by one.
        wallets.lock_wallet(connection, wallet_id)
        known = bulk.find_file(connection, file_id)
        if known is None:
            same = bulk.find_same_content(connection, wallet_id, content_sha256)
            if same is not None and not again:
                detail = f"{ids.show('blk', same)} had it; resume that file, or say that it is meant to be paid again"
                raise ProblemError(WalletRefusal.BULK_FILE_REPEATED, detail)
            if bulk.insert_file(connection, row):
                return row
            known = bulk.find_file(connection, file_id)
    if known is None or (known.wallet_id, known.content_sha256, known.lines_total, known.total_minor) != (
        wallet_id,
        content_sha256,
        lines_total,
        total_minor,
    ):
        raise ProblemError(WalletRefusal.BULK_FILE_EXISTS)
    return known


def _account(wallet: Wallet) -> int:
    if wallet.account is None:
        raise ProblemError(WalletRefusal.WALLET_NOT_OPEN)
    return wallet.account


@dataclass(frozen=True, slots=True)
class SignedLine:
    number: int
    line_id: str
    instruction: str


def receive_lines(context: Context, file_id: UUID, lines: Sequence[SignedLine]) -> list[BulkLine]:
    """The lines as they are now, in the order given. A line that is known stays as it is, unless it was refused and
    comes with a newer signature: then it is tried again.

    All or nothing. Raises: ProblemError(bulk-file-not-found, bulk-file-closed, bulk-line-mismatch).
    """
    now = context.clock()
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        file = _locked(connection, file_id)
        offered = [_signed(file, line, now=now) for line in lines]
        if len({row.line_id for row in offered}) != len(offered):
            raise ProblemError(WalletRefusal.BULK_LINE_MISMATCH, "a line is there twice")
        known = bulk.find_lines(connection, file_id, [row.line_id for row in offered])
        new = [row for row in offered if row.line_id not in known]
        if file.state == "cancelled" or (new and file.state != "uploading"):
            raise ProblemError(WalletRefusal.BULK_FILE_CLOSED, f"the file is {file.state}")
        if bulk.progress(connection, file_id).lines + len(new) > file.lines_total:
            raise ProblemError(WalletRefusal.BULK_TOTALS_MISMATCH, f"the file announced {file.lines_total} lines")
        is_renewed = False
        for row in offered:
            before = known.get(row.line_id)
            if before is None:
                continue
            if (before.number, before.credit_account, before.amount_minor) != (
                row.number,
                row.credit_account,
                row.amount_minor,
            ):
                raise ProblemError(WalletRefusal.BULK_LINE_MISMATCH, f"line {row.line_id} was sent with other terms")
            if _may_be_renewed(before, row, file):
                bulk.renew_line(connection, file_id, before.number, row.instruction)
                known[row.line_id] = replace(row, state="received")
                is_renewed = True
        try:
            with connection.begin_nested():
                bulk.insert_lines(connection, new)
        except sa.exc.IntegrityError as error:  # another line has the number
            if not isinstance(error.orig, UniqueViolation) or error.orig.diag.constraint_name != "bulk_line_pk":
                raise
            raise ProblemError(WalletRefusal.BULK_LINE_MISMATCH, "two lines have one number") from error
        if is_renewed and file.state == "finished":
            bulk.set_state(connection, file_id, "running", now=now)
    return [known.get(row.line_id, row) for row in offered]


def _may_be_renewed(before: BulkLine, row: BulkLine, file: BulkFile) -> bool:
    if before.instruction == row.instruction or before.state == "booked":
        return False
    if before.state == "received":
        return file.state == "uploading"
    return bool(before.is_transient) or before.refusal in _SIGNATURE_FAULTS


_SIGNATURE_FAULTS = frozenset({LedgerRefusal.INSTRUCTION_EXPIRED.value, LedgerRefusal.INSTRUCTION_INVALID.value})


def _signed(file: BulkFile, line: SignedLine, *, now: datetime) -> BulkLine:
    """The line, if its instruction is what the file's payer must sign for it (the signature itself: `pay`, I8)."""
    try:
        read = read_instruction(line.instruction)
    except InvalidInstruction as error:
        raise ProblemError(WalletRefusal.BULK_LINE_MISMATCH, f"line {line.line_id}: {error.reason}") from None
    wanted = (line_transfer_id(file.id, line.line_id), TransferKind.PAYMENT, file.debit_account, file.currency)
    if (read.id, read.kind, read.debit, read.currency) != wanted or not read.amount_minor or read.credit is None:
        detail = f"line {line.line_id}: it must be a payment from the file's wallet under the line's own id"
        raise ProblemError(WalletRefusal.BULK_LINE_MISMATCH, detail)
    if read.valid_until <= now:
        raise ProblemError(LedgerRefusal.INSTRUCTION_EXPIRED, f"line {line.line_id}: sign it anew")
    return BulkLine(
        file_id=file.id,
        number=line.number,
        line_id=line.line_id,
        payment_id=read.id,
        credit_account=read.credit,
        amount_minor=read.amount_minor,
        instruction=line.instruction,
        state="received",
    )


# --- 3. start, cancel, look ------------------------------------------------------------------------------------------


def start_file(context: Context, file_id: UUID) -> BulkFile:
    """Let it be paid, if it is whole. May be repeated.

    Raises: ProblemError(bulk-file-not-found, bulk-file-closed, bulk-totals-mismatch).
    """
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        file = _locked(connection, file_id)
        if file.state in ("running", "finished"):
            return file
        if file.state == "cancelled":
            raise ProblemError(WalletRefusal.BULK_FILE_CLOSED, "the file was cancelled")
        came = bulk.progress(connection, file_id)
        if (came.lines, came.total_minor) != (file.lines_total, file.total_minor):
            detail = (
                f"{came.lines} lines of {came.total_minor} came,"
                f" {file.lines_total} of {file.total_minor} minor units were announced"
            )
            raise ProblemError(WalletRefusal.BULK_TOTALS_MISMATCH, detail)
        bulk.set_state(connection, file_id, "running", now=context.clock())
    return find_file(context, file_id)


def cancel_file(context: Context, file_id: UUID) -> BulkFile:
    """Before it is started. May be repeated. Raises: ProblemError(bulk-file-not-found, bulk-file-closed)."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        file = _locked(connection, file_id)
        if file.state in ("running", "finished"):
            raise ProblemError(WalletRefusal.BULK_FILE_CLOSED, f"the file is {file.state}: its lines are being paid")
        bulk.set_state(connection, file_id, "cancelled", now=context.clock())
    return find_file(context, file_id)


def find_file(context: Context, file_id: UUID) -> BulkFile:
    """Raises: ProblemError(bulk-file-not-found)."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = bulk.find_file(connection, file_id)
    if row is None:
        raise ProblemError(WalletRefusal.BULK_FILE_NOT_FOUND)
    return row


def progress_of(context: Context, file_id: UUID) -> Progress:
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        return bulk.progress(connection, file_id)


def list_files(
    context: Context, wallet_id: UUID, *, before: tuple[datetime, UUID] | None, limit: int
) -> list[BulkFile]:
    """Newest first. Raises: ProblemError(wallet-not-found)."""
    find_wallet(context, wallet_id)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        return bulk.list_files(connection, wallet_id=wallet_id, before=before, limit=limit)


def page_of_lines(context: Context, file_id: UUID, *, after: int, limit: int) -> list[BulkLine]:
    """In the file's order. Raises: ProblemError(bulk-file-not-found)."""
    find_file(context, file_id)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        return bulk.page_of_lines(connection, file_id, after=after, limit=limit)


def result_csv(context: Context, file_id: UUID) -> Iterator[str]:
    """The result file, a line at a time; the descriptions are not known here."""
    currency = Currency.of(find_file(context, file_id).currency)
    return rules.result_lines((_result(row) for row in _all_lines(context, file_id)), currency)


def _all_lines(context: Context, file_id: UUID) -> Iterable[BulkLine]:
    after = 0
    while page := page_of_lines(context, file_id, after=after, limit=CARRIED_TOGETHER_MAX):
        yield from page
        after = page[-1].number


def _result(row: BulkLine) -> rules.LineResult:
    return rules.LineResult(
        line_id=row.line_id,
        payee=ids.show_account(row.credit_account),
        amount_minor=row.amount_minor,
        description="",
        state=row.state,
        refusal=row.refusal or "",
        detail=row.detail or "",
        payment=ids.show("trf", row.payment_id),
        booked_at=row.booked_at,
    )


def _locked(connection: sa.Connection, file_id: UUID) -> BulkFile:
    file = bulk.find_file(connection, file_id, lock=True)
    if file is None:
        raise ProblemError(WalletRefusal.BULK_FILE_NOT_FOUND)
    return file


# --- 4. run ----------------------------------------------------------------------------------------------------------


def run_files(context: Context, *, at_start: bool = False) -> int:
    """Carry the next lines of a running file; how many were concluded. At start no claim of a dead process counts."""
    now = context.clock()
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        file = bulk.claim_file(connection, now=now, claimed_until=now + CLAIM, ignore_claims=at_start)
        lines = [] if file is None else bulk.lines_received(connection, file.id, limit=CARRIED_TOGETHER_MAX)
    if file is None:
        return 0
    outcomes = pay(context, [line.instruction for line in lines]) if lines else []
    concluded = {
        line.number: values
        for line, outcome in zip(lines, outcomes, strict=True)
        if (values := _concluded(outcome)) is not None
    }
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        _locked(connection, file.id)
        bulk.conclude_lines(connection, file.id, concluded)
        now = context.clock()
        if bulk.lines_received(connection, file.id, limit=1):
            bulk.release_file(connection, file.id, claimed_until=now if concluded else now + PAUSE)
        else:
            finish(connection, context, file, now=now)
    return len(concluded)


def finish(connection: sa.Connection, context: Context, file: BulkFile, *, now: datetime) -> None:
    bulk.set_state(connection, file.id, "finished", now=now)
    done = bulk.progress(connection, file.id)
    events.emit(
        connection,
        EventType.BULK_FINISHED,
        ids.show("blk", file.id),
        at=now,
        wallet_id=file.wallet_id,
        data={"booked": done.booked, "booked_minor": str(done.booked_minor), "refused": done.refused},
    )
    log.info("bulk file %s: %d lines booked, %d refused", file.id, done.booked, done.refused)


def _concluded(outcome: Outcome) -> dict[str, object] | None:
    """What to write of a line; None if nobody knows yet what became of it: it is sent again, under the same id."""
    if isinstance(outcome, Payment):
        if outcome.state == "final":
            return {"state": "booked", "seq": outcome.seq, "booked_at": outcome.booked_at}
        if outcome.state == "initiated":
            return None
        return _refused(outcome.refusal or "", bool(outcome.is_transient), outcome.detail or "")
    return _refused(outcome.refusal.value, outcome.refusal.transient, outcome.detail or _title(outcome.refusal))


def _refused(code: str, is_transient: bool, detail: str) -> dict[str, object] | None:
    if code in _UNKNOWN:
        return None
    return {"state": "refused", "refusal": code, "is_transient": is_transient, "detail": detail[:500]}


def _title(refusal: Refusal) -> str:
    return refusal.title
