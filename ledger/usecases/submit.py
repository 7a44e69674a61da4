"""From a request to booked transfers: parse, check signatures in verifier threads, hand over to the sequencer.

What is wrong with the envelope (a bad signature, another ledger, another currency) is refused here, item by item;
what is wrong with the transfer is the state machine's to say.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import numpy as np
from pydantic import ValidationError

from kernel import strict_json
from kernel.clock import Clock, from_micros, to_micros
from kernel.crypto import jws
from kernel.database import Database
from kernel.errors import ProblemError, Refusal, RequestRefusal
from kernel.ids import is_from_future
from ledger.contract import (
    BATCH_TRANSFERS_MAX,
    INSTRUCTION_TYP,
    SignedInstruction,
    TransferItem,
    TransferOutcome,
    TransferResult,
    TransferTerms,
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

_VERIFY_CHUNK = 32
"""Signatures a thread checks at a time."""
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


@dataclass(frozen=True, slots=True)
class Prepared:
    """An item that may be decided."""

    terms: TransferTerms
    authority: Authority
    key_version: int
    token: str | None
    linked: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """An item that is refused before it is decided."""

    id: UUID | None
    refusal: Refusal
    detail: str
    linked: bool


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

    async def submit(self, items: Sequence[TransferItem], *, caller: Caller | None) -> list[TransferResult]:
        """One result an item, in order. Raises ProblemError(OUTCOME_UNKNOWN | SERVICE_UNAVAILABLE) for the whole."""
        if caller is None and len(items) > UNSIGNED_ITEMS_MAX:
            detail = f"an unsigned request carries at most {UNSIGNED_ITEMS_MAX} items; sign it to send more"
            raise ProblemError(RequestRefusal.VALIDATION_FAILED, detail)
        loop = asyncio.get_running_loop()
        now = self._clock()
        chunks = [items[start : start + _VERIFY_CHUNK] for start in range(0, len(items), _VERIFY_CHUNK)]
        checked = await asyncio.gather(
            *(loop.run_in_executor(self._verifiers, self._check_all, chunk, caller, now) for chunk in chunks)
        )
        found = [item for chunk in checked for item in chunk]
        booked = await loop.run_in_executor(self._verifiers, self._booked_before, items, found)
        checks = _refuse_broken_chains(found)
        prepared = [item for item in checks if isinstance(item, Prepared)]
        outcome = await self.book(_to_batch(prepared, caller), caller=caller) if prepared else None
        results: list[TransferResult] = []
        position = 0
        for item in checks:
            if isinstance(item, Refused) or outcome is None:
                before = booked.get(len(results))
                results.append(_refused(item) if before is None else before)
            else:
                results.append(_result(item, outcome, position))
                position += 1
        return results

    async def book(self, batch: Batch, *, caller: Caller | None) -> BatchOutcome:
        """Hand a batch to the sequencer and wait for its commit. Each participant has a bounded share of the queue."""
        who = caller.thumbprint if caller is not None else ""
        waiting = self._in_flight.get(who, 0)
        if waiting and waiting + len(batch) > IN_FLIGHT_TRANSFERS_MAX:
            raise ProblemError(RequestRefusal.TOO_MANY_REQUESTS, f"{waiting} transfers of yours wait already")
        self._in_flight[who] = waiting + len(batch)
        try:
            return await self._book(batch, caller)
        finally:
            left = self._in_flight[who] - len(batch)
            if left:
                self._in_flight[who] = left
            else:
                del self._in_flight[who]

    async def _book(self, batch: Batch, caller: Caller | None) -> BatchOutcome:
        signer = (caller.participant, caller.key_version) if caller is not None and caller.participant else None
        try:
            future = self._sequencer.submit(batch, signer=signer)
            return await asyncio.wait_for(asyncio.wrap_future(future), self._answer_seconds_max)
        except TimeoutError:
            raise ProblemError(
                LedgerRefusal.OUTCOME_UNKNOWN, "The journal did not answer in time; retry with the same ids."
            ) from None
        except SignerRotated:
            raise ProblemError(RequestRefusal.SIGNATURE_INVALID, "the key was replaced: sign anew") from None
        except SequencerUnavailable as error:
            raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "retry with the same ids: they book once") from error

    # --- checks, in verifier threads

    def _booked_before(
        self, items: Sequence[TransferItem], checks: Sequence[Prepared | Refused]
    ) -> dict[int, TransferResult]:
        """Instructions refused now that were booked when they were first sent: a retry after its expiry, or after its
        signer's key was replaced, is answered with the booking. The journal keeps the very token (I7, I8)."""
        tokens = {
            item.id: (position, items[position].instruction)
            for position, item in enumerate(checks)
            if isinstance(item, Refused) and item.id is not None and items[position].instruction is not None
        }
        if not tokens:
            return {}
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            kept = queries.kept_instructions(connection, list(tokens))
        return {
            tokens[row.id][0]: TransferResult(
                id=row.id, outcome=TransferOutcome.ALREADY_BOOKED, seq=row.seq, booked_at=row.booked_at
            )
            for row in kept
            if row.token.decode() == tokens[row.id][1]
        }

    def _check_all(
        self, items: Sequence[TransferItem], caller: Caller | None, now: datetime
    ) -> list[Prepared | Refused]:
        return [self._check(item, caller, now) for item in items]

    def _check(self, item: TransferItem, caller: Caller | None, now: datetime) -> Prepared | Refused:
        if item.instruction is not None:
            checked = self._check_instruction(item.instruction, item.linked, now)
            if isinstance(checked, Refused):
                return checked
        elif item.terms is not None:
            has_secret = item.terms.secret is not None
            if caller is None and not has_secret:
                detail = "sign the request, or send what the account's owner has signed"
                return Refused(item.terms.id, TransferRefusal.NOT_AUTHORISED, detail, item.linked)
            authority = Authority.SECRET if has_secret else Authority.INSTITUTION
            checked = Prepared(item.terms, authority, 0, None, item.linked)
        else:
            return Refused(None, LedgerRefusal.INSTRUCTION_INVALID, "give an instruction or terms", item.linked)
        terms = checked.terms
        if terms.currency != self._currency:
            detail = f"this ledger's currency is {self._currency}"
            return Refused(terms.id, LedgerRefusal.WRONG_CURRENCY, detail, checked.linked)
        if terms.kind not in _CLIENT_KINDS:
            detail = f"{terms.kind.value} comes from a mandate or from the ledger itself"
            return Refused(terms.id, TransferRefusal.KIND_NOT_ALLOWED, detail, checked.linked)
        if is_from_future(terms.id, now=now):
            return Refused(terms.id, LedgerRefusal.ID_FROM_FUTURE, "", checked.linked)
        return checked

    def _check_instruction(self, token: str, linked: bool, now: datetime) -> Prepared | Refused:
        """I8: the signature is checked once, here, with the key that the ledger has for the debit account."""

        def invalid(detail: str, transfer: UUID | None = None) -> Refused:
            return Refused(transfer, LedgerRefusal.INSTRUCTION_INVALID, detail, linked)

        try:
            document = SignedInstruction.model_validate(strict_json.loads(jws.peek_payload(token), wire=True))
        except (jws.InvalidJws, ValidationError, ProblemError) as error:
            return invalid(f"the payload is not an instruction: {type(error).__name__}")
        terms = document.terms
        if terms.debit is None:
            return invalid("an instruction names the debit account", terms.id)
        owner = self._keyring.owner_key(terms.debit)
        if owner is None:
            return Refused(terms.id, TransferRefusal.DEBIT_ACCOUNT_UNKNOWN, "", linked)
        try:
            payload = jws.verify(token, owner[0], typ=INSTRUCTION_TYP)
        except jws.InvalidJws as error:
            return invalid(f"the signature is not that of the debit account's owner: {error}", terms.id)
        if payload != jws.canonical_json(json.loads(payload)):
            return invalid("the payload must be canonical JSON, so that everybody reads the same", terms.id)
        if document.ledger != self._ledger:
            detail = f"signed for {document.ledger}, this is {self._ledger}"
            return Refused(terms.id, LedgerRefusal.WRONG_LEDGER, detail, linked)
        if document.valid_until < now:
            return Refused(terms.id, LedgerRefusal.INSTRUCTION_EXPIRED, "", linked)
        return Prepared(terms, Authority.OWNER, owner[1], token, linked)


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
            result[index] = Refused(item.terms.id, refusal, "", item.linked)


def _to_batch(prepared: Sequence[Prepared], caller: Caller | None) -> Batch:
    records = np.zeros(len(prepared), SUBMISSION)
    extras: dict[int, Extra] = {}
    mask = 2**64 - 1
    for position, item in enumerate(prepared):
        terms = item.terms
        row = records[position]
        row["id_high"], row["id_low"] = terms.id.int >> 64, terms.id.int & mask
        row["debit"], row["credit"] = terms.debit or 0, terms.credit or 0
        row["amount"] = terms.amount_minor or 0
        row["kind"] = KIND_CODE[terms.kind]
        row["flags"] = FLAG_LINKED if item.linked else 0
        if terms.hold is not None:
            row["hold_high"], row["hold_low"] = terms.hold.int >> 64, terms.hold.int & mask
        if terms.reference is not None:
            row["reference_high"], row["reference_low"] = terms.reference.int >> 64, terms.reference.int & mask
        if terms.expires_at is not None:
            row["expires_at"] = to_micros(terms.expires_at)
        if item.token or terms.secret or terms.commit_hash or terms.abort_hash:
            extras[position] = Extra(
                commit_hash=terms.commit_hash,
                abort_hash=terms.abort_hash,
                secret=terms.secret,
                instruction=item.token.encode() if item.token else None,
            )
    return Batch(
        records=records,
        authority=np.array([item.authority for item in prepared], np.uint8),
        submitter=np.full(len(prepared), caller.participant if caller is not None else 0, np.int32),
        key_version=np.array([item.key_version for item in prepared], np.int32),
        extras=extras,
    )


def _result(item: Prepared, outcome: BatchOutcome, position: int) -> TransferResult:
    code = int(outcome.codes[position])
    if code > 0:
        refusal = TRANSFER_REFUSALS[code - 1]
        return TransferResult(
            id=item.terms.id,
            outcome=TransferOutcome.REFUSED,
            refusal=refusal.value,
            transient=refusal.transient,
            detail=refusal.title,
        )
    known = outcome.known.get(position)
    return TransferResult(
        id=item.terms.id,
        outcome=TransferOutcome.ALREADY_BOOKED if code == DUPLICATE else TransferOutcome.BOOKED,
        seq=int(outcome.seqs[position]),
        booked_at=from_micros(known.booked_at if known is not None else outcome.booked_at),
    )


def _refused(item: Prepared | Refused) -> TransferResult:
    if isinstance(item, Prepared):
        raise TypeError("a prepared item has an outcome")
    return TransferResult(
        id=item.id,
        outcome=TransferOutcome.REFUSED,
        refusal=item.refusal.value,
        transient=item.refusal.transient,
        detail=item.detail or item.refusal.title,
    )
