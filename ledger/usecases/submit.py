"""From a request to booked transfers: parse, check signatures in verifier threads, hand over to the sequencer.

What is wrong with the envelope (a bad signature, another ledger, another currency) is refused here, item by item;
what is wrong with the transfer is the state machine's to say.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from uuid import UUID

import msgspec
import numpy as np

from kernel import ids
from kernel.clock import Clock, from_micros, to_micros
from kernel.crypto import jws
from kernel.database import Database
from kernel.errors import ProblemError, Refusal, RequestRefusal
from ledger.contract import (
    BATCH_TRANSFERS_MAX,
    INSTRUCTION_TYP,
    InvalidInstruction,
    ReadEnd,
    SignedItem,
    TransferAnswer,
    TransferItem,
    TransferOutcome,
    TransferTerms,
    read_instruction,
    show_moment,
)
from ledger.domain.decide import DUPLICATE
from ledger.domain.records import FLAG_LINKED, SUBMISSION, Authority, Batch, Extra
from ledger.domain.vocabulary import (
    KIND_CODE,
    TRANSFER_REFUSALS,
    LedgerRefusal,
    TransferKind,
    TransferRefusal,
)
from ledger.engine.sequencer import BatchOutcome, Sequencer, SequencerUnavailable, SignerRotated
from ledger.store import queries
from ledger.usecases.keyring import Caller, Keyring

_VERIFY_CHUNK = 64
"""Signatures a thread checks at a time: a request with no more is prepared in one go by one thread."""
IN_FLIGHT_TRANSFERS_MAX = 16 * BATCH_TRANSFERS_MAX
"""Of one signer (or of all who do not sign): nobody's flood makes the others wait for more than these."""
UNSIGNED_ITEMS_MAX = 256
"""Items of a request that nobody signed: checking them is work for whoever asks."""
_CLIENT_KINDS = frozenset(TransferKind) - {
    TransferKind.ISSUE,
    TransferKind.REDEEM,
    TransferKind.ADJUSTMENT,
    TransferKind.EXPIRE,
    TransferKind.TOMBSTONE,
}
"""What a client may submit; the others come from mandates and from the ledger itself."""


Item = TransferItem | SignedItem | ReadEnd
Authenticate = Callable[[], Caller | None]
"""Who signed the request, None if nobody did. Called in a verifier thread; raises ProblemError."""


class Prepared(msgspec.Struct, frozen=True, gc=False):
    """An item that may be decided."""

    id_number: int
    id_shown: str
    record: bytes
    """Packed as `SUBMISSION`."""
    authority: Authority
    key_version: int
    extra: Extra | None
    linked: bool


class Refused(msgspec.Struct, frozen=True, gc=False):
    """An item that is refused before it is decided."""

    id_number: int | None
    id_shown: str | None
    refusal: Refusal
    detail: str
    linked: bool


class _Ready(msgspec.Struct, frozen=True):
    """A request whose items have been checked. `batch` is None if none of them may be decided."""

    caller: Caller | None
    checks: Sequence[Prepared | Refused]
    booked_before: dict[int, TransferAnswer]
    batch: Batch | None


class Submitter:
    """Shared by all requests of a ledger."""

    def __init__(
        self,
        sequencer: Sequencer,
        keyring: Keyring,
        database: Database,
        *,
        ledger: str,
        currency: str,
        clock: Clock,
        verifier_threads: int,
        answer_seconds_max: float,
    ) -> None:
        self._sequencer = sequencer
        self._keyring = keyring
        self._database = database
        self._in_flight: dict[str, int] = {}
        self._ledger = ledger
        self._currency = currency
        self._clock = clock
        self._answer_seconds_max = answer_seconds_max
        self._verifiers = ThreadPoolExecutor(verifier_threads, thread_name_prefix="verifier")

    def close(self) -> None:
        self._verifiers.shutdown(cancel_futures=True)

    async def submit(self, items: Sequence[Item], authenticate: Authenticate) -> list[TransferAnswer]:
        """One answer an item, in order. Raises: ProblemError for the whole: what `authenticate` raises,
        VALIDATION_FAILED (too many for a request that nobody signed), OUTCOME_UNKNOWN, SERVICE_UNAVAILABLE."""
        loop = asyncio.get_running_loop()
        now = self._clock()
        if len(items) <= _VERIFY_CHUNK:
            ready = await loop.run_in_executor(self._verifiers, self._prepare_small, items, authenticate, now)
        else:
            caller = await loop.run_in_executor(self._verifiers, _identify, items, authenticate)
            chunks = [items[start : start + _VERIFY_CHUNK] for start in range(0, len(items), _VERIFY_CHUNK)]
            checked = await asyncio.gather(
                *(loop.run_in_executor(self._verifiers, self._check_all, chunk, caller, now) for chunk in chunks)
            )
            found = [item for chunk in checked for item in chunk]
            ready = await loop.run_in_executor(self._verifiers, self._prepare, items, found, caller)
        outcome = await self.book(ready.batch, caller=ready.caller) if ready.batch is not None else None
        if len(items) <= _VERIFY_CHUNK:
            return _answers(ready, outcome)
        return await loop.run_in_executor(self._verifiers, _answers, ready, outcome)

    async def book(self, batch: Batch, *, caller: Caller | None) -> BatchOutcome:
        """Hand a batch to the sequencer and wait for its commit. Each participant has a bounded share of the queue,
        and what it sent counts until the sequencer has answered, also when nobody waits for that any longer."""
        who = caller.thumbprint if caller is not None else ""
        waiting = self._in_flight.get(who, 0)
        if waiting and waiting + len(batch) > IN_FLIGHT_TRANSFERS_MAX:
            raise ProblemError(RequestRefusal.TOO_MANY_REQUESTS, f"{waiting} transfers of yours wait already")
        signer = (caller.participant, caller.key_version) if caller is not None and caller.participant else None
        try:
            answer = asyncio.wrap_future(self._sequencer.submit(batch, signer=signer))
            self._in_flight[who] = waiting + len(batch)
            answer.add_done_callback(lambda _: self._give_back(who, len(batch)))
            # Shielded: to cancel it would not take the batch out of the sequencer's queue.
            return await asyncio.wait_for(asyncio.shield(answer), self._answer_seconds_max)
        except TimeoutError:
            raise ProblemError(
                LedgerRefusal.OUTCOME_UNKNOWN, "The journal did not answer in time; retry with the same ids."
            ) from None
        except SignerRotated:
            raise ProblemError(RequestRefusal.SIGNATURE_INVALID, "the key was replaced: sign anew") from None
        except SequencerUnavailable as error:
            raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "retry with the same ids: they book once") from error

    def _give_back(self, who: str, transfers: int) -> None:
        left = self._in_flight[who] - transfers
        if left:
            self._in_flight[who] = left
        else:
            del self._in_flight[who]

    # --- checks, in verifier threads

    def _prepare_small(self, items: Sequence[Item], authenticate: Authenticate, now: datetime) -> _Ready:
        caller = _identify(items, authenticate)
        return self._prepare(items, self._check_all(items, caller, now), caller)

    def _prepare(self, items: Sequence[Item], found: list[Prepared | Refused], caller: Caller | None) -> _Ready:
        booked = self._booked_before(items, found)
        checks = _refuse_broken_chains(found)
        prepared = [item for item in checks if isinstance(item, Prepared)]
        return _Ready(caller, checks, booked, _to_batch(prepared, caller) if prepared else None)

    def _booked_before(self, items: Sequence[Item], checks: Sequence[Prepared | Refused]) -> dict[int, TransferAnswer]:
        """Instructions refused now that were booked when they were first sent: a retry after its expiry, or after its
        signer's key was replaced, is answered with the booking. The journal keeps the very token (I7, I8)."""
        tokens = {
            UUID(int=item.id_number): (position, items[position].instruction)
            for position, item in enumerate(checks)
            if isinstance(item, Refused) and item.id_number is not None and items[position].instruction is not None
        }
        if not tokens:
            return {}
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            kept = queries.kept_instructions(connection, list(tokens))
        return {
            tokens[row.id][0]: TransferAnswer(
                id=ids.show("trf", row.id),
                outcome=TransferOutcome.ALREADY_BOOKED.value,
                seq=row.seq,
                booked_at=show_moment(row.booked_at),
            )
            for row in kept
            if row.token.decode() == tokens[row.id][1]
        }

    def _check_all(self, items: Sequence[Item], caller: Caller | None, now: datetime) -> list[Prepared | Refused]:
        future_ms = int(now.timestamp() * 1000) + ids.FUTURE_SECONDS_MAX * 1000
        return [
            self._check_instruction(item.instruction, item.linked, now, future_ms)
            if item.instruction is not None
            else self._check_end(item, future_ms)
            if isinstance(item, ReadEnd)
            else self._check_terms(item, caller, future_ms)
            for item in items
        ]

    def _check_end(self, end: ReadEnd, future_ms: int) -> Prepared | Refused:
        """As `_check_terms`, of terms that carry a secret: that is all their authority."""
        number, shown = end.id_number, end.id_shown
        refused = self._refuse(number, shown, end.kind, end.currency, future_ms, end.linked)
        if refused is not None:
            return refused
        hold, reference = end.hold_number, end.reference_number
        record = _RECORD.pack(
            number >> 64,
            number & _LOW,
            0,
            0,
            0,
            hold >> 64,
            hold & _LOW,
            reference >> 64,
            reference & _LOW,
            0,
            KIND_CODE[end.kind],
            FLAG_LINKED if end.linked else 0,
        )
        return Prepared(number, shown, record, Authority.SECRET, 0, Extra(secret=end.secret), end.linked)

    def _check_terms(
        self, item: TransferItem | SignedItem, caller: Caller | None, future_ms: int
    ) -> Prepared | Refused:
        terms = item.terms
        if terms is None:
            return Refused(None, None, LedgerRefusal.INSTRUCTION_INVALID, "give an instruction or terms", item.linked)
        shown = ids.show("trf", terms.id)
        if caller is None and terms.secret is None:
            detail = "sign the request, or send what the account's owner has signed"
            return Refused(terms.id.int, shown, TransferRefusal.NOT_AUTHORISED, detail, item.linked)
        refused = self._refuse(terms.id.int, shown, terms.kind, terms.currency, future_ms, item.linked)
        if refused is not None:
            return refused
        authority = Authority.SECRET if terms.secret is not None else Authority.INSTITUTION
        record, extra = _record(terms, item.linked, None)
        return Prepared(terms.id.int, shown, record, authority, 0, extra, item.linked)

    def _check_instruction(self, token: str, linked: bool, now: datetime, future_ms: int) -> Prepared | Refused:
        """I8: the signature is checked once, here, with the key that the ledger has for the debit account."""
        try:
            read = read_instruction(token)
        except InvalidInstruction as error:
            return Refused(None, None, LedgerRefusal.INSTRUCTION_INVALID, error.reason, linked)
        number, shown = read.id_number, read.id_shown
        invalid = LedgerRefusal.INSTRUCTION_INVALID
        if read.debit is None:
            return Refused(number, shown, invalid, "an instruction names the debit account", linked)
        owner = self._keyring.signing_key(read.debit, read.unverified, typ=INSTRUCTION_TYP)
        if owner is None:
            return Refused(number, shown, TransferRefusal.DEBIT_ACCOUNT_UNKNOWN, "", linked)
        try:
            jws.check(read.unverified, owner[0], typ=INSTRUCTION_TYP)
        except jws.InvalidJws as error:
            detail = f"the signature is not that of the debit account's owner: {error}"
            return Refused(number, shown, invalid, detail, linked)
        if not read.is_canonical:
            detail = "the payload must be canonical JSON, so that everybody reads the same"
            return Refused(number, shown, invalid, detail, linked)
        if read.ledger != self._ledger:
            detail = f"signed for {read.ledger}, this is {self._ledger}"
            return Refused(number, shown, LedgerRefusal.WRONG_LEDGER, detail, linked)
        if read.valid_until < now:
            return Refused(number, shown, LedgerRefusal.INSTRUCTION_EXPIRED, "", linked)
        refused = self._refuse(number, shown, read.kind, read.currency, future_ms, linked)
        if refused is not None:
            return refused
        if read.stated is not None:
            record, extra = _record(read.stated, linked, token)
        else:
            extra = Extra(commit_hash=read.commit_hash, abort_hash=read.abort_hash, instruction=token.encode())
            record = _RECORD.pack(
                number >> 64,
                number & _LOW,
                read.debit,
                read.credit or 0,
                read.amount_minor or 0,
                0,
                0,
                read.reference_number >> 64,
                read.reference_number & _LOW,
                0,
                KIND_CODE[read.kind],
                FLAG_LINKED if linked else 0,
            )
        return Prepared(number, shown, record, Authority.OWNER, owner[1], extra, linked)

    def _refuse(
        self, number: int, shown: str, kind: TransferKind, currency: str, future_ms: int, linked: bool
    ) -> Refused | None:
        """What is wrong with the envelope of any transfer."""
        if currency != self._currency:
            detail = f"this ledger's currency is {self._currency}"
            return Refused(number, shown, LedgerRefusal.WRONG_CURRENCY, detail, linked)
        if kind not in _CLIENT_KINDS:
            detail = f"{kind.value} comes from a mandate or from the ledger itself"
            return Refused(number, shown, TransferRefusal.KIND_NOT_ALLOWED, detail, linked)
        if number >> 80 > future_ms:
            return Refused(number, shown, LedgerRefusal.ID_FROM_FUTURE, "", linked)
        return None


def _identify(items: Sequence[Item], authenticate: Authenticate) -> Caller | None:
    caller = authenticate()
    if caller is None and len(items) > UNSIGNED_ITEMS_MAX:
        detail = f"an unsigned request carries at most {UNSIGNED_ITEMS_MAX} items; sign it to send more"
        raise ProblemError(RequestRefusal.VALIDATION_FAILED, detail)
    return caller


def _refuse_broken_chains(checks: list[Prepared | Refused]) -> list[Prepared | Refused]:
    """A linked chain with an item refused here is refused whole; so is one that the request does not close."""
    result = list(checks)
    start: int | None = None
    for position, item in enumerate(checks):
        if start is None:
            start = position if item.linked else None
        if start is not None and (not item.linked or position == len(checks) - 1):
            chain = range(start, position + 1)
            if item.linked:
                _refuse_all(result, chain, TransferRefusal.LINKED_CHAIN_OPEN)
            elif any(isinstance(checks[index], Refused) for index in chain):
                _refuse_all(result, chain, TransferRefusal.LINKED_TRANSFER_REFUSED)
            start = None
    return result


def _refuse_all(result: list[Prepared | Refused], chain: range, refusal: TransferRefusal) -> None:
    for index in chain:
        item = result[index]
        if isinstance(item, Prepared):
            result[index] = Refused(item.id_number, item.id_shown, refusal, "", item.linked)


_RECORD = struct.Struct(">QQqqqQQQQqBB6x")
"""`SUBMISSION`, a record at a time: ten times as quick as assigning to a row of the array."""
_LOW = 2**64 - 1
if _RECORD.size != SUBMISSION.itemsize:
    raise TypeError("the two definitions of a submitted record differ")


def _record(terms: TransferTerms, linked: bool, token: str | None) -> tuple[bytes, Extra | None]:
    hold = terms.hold.int if terms.hold is not None else 0
    reference = terms.reference.int if terms.reference is not None else 0
    record = _RECORD.pack(
        terms.id.int >> 64,
        terms.id.int & _LOW,
        terms.debit or 0,
        terms.credit or 0,
        terms.amount_minor or 0,
        hold >> 64,
        hold & _LOW,
        reference >> 64,
        reference & _LOW,
        to_micros(terms.expires_at) if terms.expires_at is not None else 0,
        KIND_CODE[terms.kind],
        FLAG_LINKED if linked else 0,
    )
    if not (token or terms.secret or terms.commit_hash or terms.abort_hash):
        return record, None
    extra = Extra(
        commit_hash=terms.commit_hash,
        abort_hash=terms.abort_hash,
        secret=terms.secret,
        instruction=token.encode() if token else None,
    )
    return record, extra


def _to_batch(prepared: Sequence[Prepared], caller: Caller | None) -> Batch:
    return Batch(
        records=np.frombuffer(bytearray().join(item.record for item in prepared), SUBMISSION),
        authority=np.array([item.authority for item in prepared], np.uint8),
        submitter=np.full(len(prepared), caller.participant if caller is not None else 0, np.int32),
        key_version=np.array([item.key_version for item in prepared], np.int32),
        extras={position: item.extra for position, item in enumerate(prepared) if item.extra is not None},
    )


def _answers(ready: _Ready, outcome: BatchOutcome | None) -> list[TransferAnswer]:
    codes = outcome.codes.tolist() if outcome is not None else []
    seqs = outcome.seqs.tolist() if outcome is not None else []
    booked_at = show_moment(from_micros(outcome.booked_at)) if outcome is not None else None
    answers: list[TransferAnswer] = []
    position = 0
    for item in ready.checks:
        if isinstance(item, Refused) or outcome is None:
            before = ready.booked_before.get(len(answers))
            answers.append(_refused(item) if before is None else before)
            continue
        code = codes[position]
        if code > 0:
            refusal = TRANSFER_REFUSALS[code - 1]
            answers.append(_refusal_of(item.id_shown, refusal, refusal.title))
        elif code == DUPLICATE:
            known = outcome.known.get(position)
            at = booked_at if known is None else show_moment(from_micros(known.booked_at))
            answers.append(TransferAnswer(_ALREADY_BOOKED, item.id_shown, seqs[position], at))
        else:
            answers.append(TransferAnswer(_BOOKED, item.id_shown, seqs[position], booked_at))
        position += 1
    return answers


_BOOKED = TransferOutcome.BOOKED.value
_ALREADY_BOOKED = TransferOutcome.ALREADY_BOOKED.value


def _refused(item: Prepared | Refused) -> TransferAnswer:
    if isinstance(item, Prepared):
        raise TypeError("a prepared item has an outcome")
    return _refusal_of(item.id_shown, item.refusal, item.detail or item.refusal.title)


def _refusal_of(shown: str | None, refusal: Refusal, detail: str) -> TransferAnswer:
    return TransferAnswer(
        TransferOutcome.REFUSED.value,
        shown,
        refusal=refusal.value,
        transient=refusal.transient,
        detail=detail,
    )
