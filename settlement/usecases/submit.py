"""A batch comes in: read whole, judged whole, quoted, stored whole, or refused with every fault found."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from kernel import idempotency
from kernel.clock import Clock
from kernel.database import Database
from kernel.errors import ProblemError
from kernel.ids import AccountNumber, ParticipantId, new_uuid7
from kernel.money import Currency, Money
from settlement.contract import BATCH_BYTES_MAX, BATCH_INSTRUCTIONS_MAX
from settlement.domain.escrow import LegTerms
from settlement.domain.fx import Quote, Rate, find_rate, quote, show_fraction
from settlement.domain.instructions import PROBLEMS_MAX, Instruction, InstructionRefusal, ReadResult
from settlement.domain.refusals import SettlementRefusal
from settlement.iso20022.credit_transfer import read_credit_transfer
from settlement.iso20022.csv_batch import read_csv
from settlement.settings import Directory
from settlement.store import batches, gates, messages, tables
from settlement.usecases.intake import Candidate, Fault, IntakeCheck
from settlement.usecases.kept_twice import database_refusals
from settlement.usecases.market import CreditorPrices, Market

BatchFormat = Literal["pacs.009", "csv"]


@dataclass(frozen=True, slots=True)
class Submission:
    content: bytes
    format: BatchFormat
    submitter: ParticipantId
    is_operator: bool
    """The bridge's own operator may submit for anybody; an institution only what it is a party of."""
    idempotency_key: str
    path: str


def submit_batch(
    submission: Submission,
    *,
    database: Database,
    directory: Directory,
    clock: Clock,
    bridge: ParticipantId,
    run_on_submit: bool,
    checks: Sequence[IntakeCheck] = (),
    market: Market | None = None,
    render: Callable[[batches.BatchRow], dict[str, Any]],
) -> idempotency.Outcome:
    """Store the batch; every instruction becomes a settlement in state received. `render` makes the answer's body.

    Idempotent by (submitter, Idempotency-Key), and by (submitter, message id) for the same content.
    Raises: ProblemError(batch-invalid with `problems`, batch-id-reused, idempotency-key-*).
    """
    digest = hashlib.sha256(submission.content).digest()
    print_ = idempotency.fingerprint("POST", submission.path, submission.format.encode() + b"\0" + submission.content)
    now = clock()

    def work() -> tuple[int, dict[str, Any]]:
        # Reading waits for the key's lock: of two equal requests at once, one parses.
        read = _read(submission)
        message_id = read.message_id or f"sha256:{digest.hex()}"
        known = batches.find_by_message(connection, submission.submitter, message_id)
        if known is not None:
            if known.content_sha256 != digest:
                raise ProblemError(SettlementRefusal.BATCH_ID_REUSED, f"message id {message_id} has other content")
            return 200, render(known)
        if messages.find_stream_of_message(connection, submission.submitter, message_id) is not None:
            raise ProblemError(SettlementRefusal.BATCH_ID_REUSED, f"message id {message_id} was booked as a stream")
        if read.problems:
            faults = [Fault(item.refusal.value, item.index, str(item)) for item in read.problems]
            raise _invalid(faults, truncated=read.problems_truncated)
        if read.sender is not None and not submission.is_operator and read.sender != submission.submitter:
            reason = f"AppHdr/Fr says {read.sender}, the request is signed by {submission.submitter}"
            raise _invalid([Fault(InstructionRefusal.APPLICATION_HEADER_INVALID.value, 0, reason)], truncated=False)
        if read.receiver is not None and read.receiver != bridge:
            reason = f"AppHdr/To says {read.receiver}, this is {bridge}"
            raise _invalid([Fault(InstructionRefusal.APPLICATION_HEADER_INVALID.value, 0, reason)], truncated=False)
        prices = None if market is None else CreditorPrices(market, connection, now=now)
        made, faults = quoted(read.instructions, submission, directory=directory, clock=clock, prices=prices)
        used = batches.used_uetrs(connection, [item.uetr for item in read.instructions])
        faults += [
            Fault(SettlementRefusal.UETR_ALREADY_USED.value, index, f"UETR {item.uetr} belongs to another batch")
            for index, item in enumerate(read.instructions, start=1)
            if item.uetr in used
        ]
        closed: list[gates.Gate] = []
        if not faults:
            candidates = [
                Candidate(index, instruction, item)
                for index, (instruction, item) in enumerate(zip(read.instructions, made, strict=True), start=1)
            ]
            for check in checks:
                found = check(connection, candidates, now=now)
                faults += [item for item in found if isinstance(item, Fault)]
                closed += [item for item in found if isinstance(item, gates.Gate)]
        if faults:
            raise _invalid(faults[:PROBLEMS_MAX], truncated=len(faults) > PROBLEMS_MAX)
        batch = new_uuid7()
        batches.insert_batch(
            connection,
            batch=batch,
            submitter=submission.submitter,
            message_id=message_id,
            batch_format=read.message or submission.format,
            content_sha256=digest,
            received_at=now,
            started_at=now if run_on_submit else None,
            settlements=made,
        )
        if prices is not None:
            prices.lock(made, submitter=submission.submitter)
        gates.close(connection, closed, now=now)
        stored = batches.find(connection, batch)
        if stored is None:
            raise RuntimeError("the batch just stored is not there")
        return 201, render(stored)

    with database_refusals(), database.transaction(isolation="READ COMMITTED") as connection:
        return idempotency.run_once(
            connection,
            client=submission.submitter,
            key=submission.idempotency_key,
            fingerprint=print_,
            work=work,
            table=tables.idempotency,
            clock=clock,
        )


def _read(submission: Submission) -> ReadResult:
    reader = read_credit_transfer if submission.format == "pacs.009" else read_csv
    return reader(io.BytesIO(submission.content), instructions_max=BATCH_INSTRUCTIONS_MAX, bytes_max=BATCH_BYTES_MAX)


def quoted(
    instructions: Sequence[Instruction],
    submission: Submission,
    *,
    directory: Directory,
    clock: Clock,
    prices: CreditorPrices | None = None,
) -> tuple[list[batches.NewSettlement], list[Fault]]:
    """Each instruction's legs and locked quote; the others' faults, by their place in `instructions` from 1."""
    desk = _Desk(submission, directory, prices, at=clock())
    made: list[batches.NewSettlement] = []
    faults: list[Fault] = []
    for index, instruction in enumerate(instructions, start=1):
        try:
            legs, locked = desk.terms(instruction)
        except _Refused as refused:
            faults.append(Fault(refused.refusal.value, index, f"instruction {index}: {refused.reason}"))
        else:
            made.append(_new_settlement(new_uuid7(), index, instruction, legs, locked))
    return made, faults


class _Refused(Exception):
    def __init__(self, refusal: SettlementRefusal, reason: str) -> None:
        super().__init__(reason)
        self.refusal = refusal
        self.reason = reason


class _Desk:
    """Makes terms of the instructions of one submission, at one moment.

    The lines of a file share a few parties and currencies: what is found out of them is found out once.
    """

    def __init__(
        self, submission: Submission, directory: Directory, prices: CreditorPrices | None, *, at: datetime
    ) -> None:
        self._submission = submission
        self._directory = directory
        self._prices = prices
        self._at = at
        self._admitted: set[tuple[ParticipantId, ParticipantId]] = set()
        self._rates: dict[tuple[str, str | None], Rate] = {}
        self._routes: dict[tuple[ParticipantId, ParticipantId, str], tuple[str, AccountNumber, AccountNumber]] = {}

    def terms(self, instruction: Instruction) -> tuple[tuple[LegTerms, LegTerms], Quote | None]:
        """Both legs and the locked quote. Raises _Refused, in order of precedence of SettlementRefusal."""
        debtor, creditor, amount = instruction.debtor, instruction.creditor, instruction.amount
        if (debtor, creditor) not in self._admitted:
            self._admit(debtor, creditor)
        locked: Quote | None = None
        counter = instruction.counter_amount
        if counter is None and self._prices is not None and (locked := self._prices.price(instruction)) is not None:
            counter = locked.counter
        if counter is None:
            rate = self._rate(amount.currency, instruction.counter_currency)
            found = quote(amount, rate, receiver=debtor)
            if isinstance(found, SettlementRefusal):
                raise _Refused(found, f"{amount} at {rate.value}")
            locked, counter = found, found.counter
        return (self._leg(debtor, creditor, amount), self._leg(creditor, debtor, counter)), locked

    def _admit(self, debtor: ParticipantId, creditor: ParticipantId) -> None:
        for party in (debtor, creditor):
            if party not in self._directory.institutions:
                raise _Refused(SettlementRefusal.PARTICIPANT_UNKNOWN, f"{party} is not registered with this bridge")
        submitter = self._submission.submitter
        if not self._submission.is_operator and submitter not in (debtor, creditor):
            raise _Refused(SettlementRefusal.SUBMITTER_NOT_PARTY, f"{submitter} is neither {debtor} nor {creditor}")
        self._admitted.add((debtor, creditor))

    def _rate(self, base: Currency, counter: Currency | None) -> Rate:
        pair = base.code, None if counter is None else counter.code
        known = self._rates.get(pair)
        if known is not None:
            return known
        rate = find_rate(self._directory.rates, base=base, counter=counter, at=self._at)
        if isinstance(rate, SettlementRefusal):
            raise _Refused(rate, f"{base} against {counter or 'any currency'}")
        self._rates[pair] = rate
        return rate

    def _leg(self, payer: ParticipantId, payee: ParticipantId, amount: Money) -> LegTerms:
        key = payer, payee, amount.currency.code
        known = self._routes.get(key)
        if known is None:
            known = self._routes[key] = self._route(payer, payee, amount.currency)
        ledger, debit, credit = known
        return LegTerms(ledger, payer, payee, debit, credit, amount)

    def _route(
        self, payer: ParticipantId, payee: ParticipantId, currency: Currency
    ) -> tuple[str, AccountNumber, AccountNumber]:
        """The ledger of a currency, and the two parties' accounts there."""
        ledger = self._directory.ledger_of_currency.get(currency)
        if ledger is None:
            raise _Refused(SettlementRefusal.CURRENCY_NOT_SERVED, f"no ledger of {currency}")
        debit, credit = self._directory.account(payer, currency), self._directory.account(payee, currency)
        if debit is None or credit is None:
            raise _Refused(SettlementRefusal.ACCOUNT_MISSING, f"{payer if debit is None else payee} in {currency}")
        return ledger, debit, credit


def _new_settlement(
    key: UUID, position: int, instruction: Instruction, legs: tuple[LegTerms, ...], locked: Quote | None
) -> batches.NewSettlement:
    return batches.NewSettlement(
        id=key,
        position=position,
        instruction_id=instruction.instruction_id,
        end_to_end_id=instruction.end_to_end_id,
        uetr=instruction.uetr,
        debtor=instruction.debtor,
        creditor=instruction.creditor,
        value_date=instruction.value_date,
        priority=instruction.priority.value,
        rate=None if locked is None else show_fraction(locked.rate.value),
        rate_provider=None if locked is None else locked.rate.provider,
        remainder_minor=None if locked is None else show_fraction(locked.remainder_minor),
        legs=legs,
    )


def _invalid(faults: list[Fault], *, truncated: bool) -> ProblemError:
    found = [{"refusal": fault.refusal, "index": fault.index, "reason": fault.reason} for fault in faults]
    detail = f"{len(found)} faults; the first: {faults[0].reason}"[:500]
    return ProblemError(SettlementRefusal.BATCH_INVALID, detail, problems=found, problems_truncated=truncated)
