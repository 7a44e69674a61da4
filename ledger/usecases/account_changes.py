"""Changes of an account that its participant orders, with its holder's consent where that is needed.

1. *Read* what is asked for; a change that the journal has is answered with what it did (any retry, for ever).
2. *Verify* the participant's signature and the holder's over the very same text.
3. *Journal*: the sequencer asks the rules (`ledger.domain.account_changes`) and writes a directive that carries the
   signatures as they came, so that anybody with an export can check who ordered it (I8).
"""

from __future__ import annotations

import json
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from typing import Any
from uuid import UUID

from kernel import ids
from kernel.clock import Clock, from_micros, to_micros
from kernel.crypto import jws
from kernel.database import Database
from kernel.errors import ProblemError, RequestRefusal
from ledger.contract import (
    CHANGE_TYP,
    CONSENT_TYP,
    AccountChangeDocument,
    AccountChangeRequest,
    AccountChangeView,
    InvalidInstruction,
    read_account_change,
    show_moment,
)
from ledger.domain import account_changes
from ledger.domain.account_changes import Signatures
from ledger.domain.state import ISSUANCE_ACCOUNT, LedgerState
from ledger.domain.vocabulary import LedgerRefusal, TransferRefusal
from ledger.engine.sequencer import Sequencer, SequencerUnavailable
from ledger.store.directives import DirectiveRow, find_directive
from ledger.usecases.keyring import Caller, Keyring


def order_id(change: UUID) -> UUID:
    """Under which the journal keeps a change: derived, so that no change can take the place of a mandate."""
    return ids.derive_uuid8(change, account_changes.KIND)


class AccountChanges:
    def __init__(
        self,
        sequencer: Sequencer,
        keyring: Keyring,
        database: Database,
        *,
        state: LedgerState,
        clock: Clock,
        answer_seconds_max: float,
    ) -> None:
        self._sequencer = sequencer
        self._keyring = keyring
        self._database = database
        self._state = state
        self._clock = clock
        self._answer_seconds_max = answer_seconds_max

    def submit(self, request: AccountChangeRequest, *, caller: Caller | None) -> AccountChangeView:
        """Idempotent by the change's id. Only `object-to-key`, which the holder alone signs, needs no `caller`.

        Raises ProblemError: see `ledger.domain.account_changes.check`; INSTRUCTION_INVALID, WRONG_LEDGER,
        ID_FROM_FUTURE, CHANGE_EXISTS, OUTCOME_UNKNOWN.
        """
        token = request.change if request.change is not None else str(request.consent)
        try:
            document = read_account_change(token)
        except InvalidInstruction as error:
            raise ProblemError(LedgerRefusal.INSTRUCTION_INVALID, error.reason) from None
        payload = jws.peek_payload(token)
        if request.change is not None and caller is None:
            raise ProblemError(RequestRefusal.SIGNATURE_MISSING, "a participant signs the request too")
        done = self._find(document.id)
        if done is not None:
            return _answer(document, payload, done)
        if document.ledger != self._state.ledger:
            raise ProblemError(LedgerRefusal.WRONG_LEDGER, f"this is {self._state.ledger}")
        if ids.is_from_future(document.id, now=self._clock()):
            raise ProblemError(LedgerRefusal.ID_FROM_FUTURE)
        signed = Signatures(
            participant=self._verify_change(request.change, document, caller) if request.change is not None else None,
            consent=self._verify_consent(request.consent, document, payload) if request.consent is not None else None,
        )
        self._journal(document, request, signed)
        done = self._find(document.id)
        if done is None:
            raise ProblemError(LedgerRefusal.OUTCOME_UNKNOWN, "ask again with the same request")
        return _answer(document, payload, done)

    def view(self, change: UUID, *, caller: Caller) -> AccountChangeView:
        """For the account's participant and operators; to others it is answered like one that does not exist."""
        done = self._find(change)
        if done is None:
            raise ProblemError(LedgerRefusal.CHANGE_NOT_FOUND)
        document, payload = _document_of(done)
        owner = int(self._state.participant[document.change.account])
        if not caller.is_operator and owner != caller.participant:
            raise ProblemError(LedgerRefusal.CHANGE_NOT_FOUND)
        return _answer(document, payload, done)

    def _find(self, change: UUID) -> DirectiveRow | None:
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            return find_directive(connection, order_id(change))

    def _verify_change(self, token: str, document: AccountChangeDocument, caller: Caller | None) -> tuple[int, int]:
        """The signing participant and its key's version: whose account it is, and whose request."""
        try:
            found = self._keyring.find_caller(str(jws.peek_header(token).get("kid", "")))
            if found is None or found[0].is_operator:
                raise ProblemError(LedgerRefusal.UNKNOWN_SIGNER, "the participant whose account it is signs the change")
            jws.verify(token, found[1], typ=CHANGE_TYP)
        except jws.InvalidJws as error:
            raise ProblemError(LedgerRefusal.INSTRUCTION_INVALID, f"the change does not verify: {error}") from None
        signer, account = found[0], document.change.account
        if caller is None or caller.participant != signer.participant:
            raise ProblemError(RequestRefusal.NOT_PERMITTED, "whoever signed the change signs the request")
        state = self._state
        if (
            not state.exists(account)
            or account == ISSUANCE_ACCOUNT
            or int(state.participant[account]) != signer.participant
        ):
            raise ProblemError(LedgerRefusal.ACCOUNT_NOT_FOUND)
        return signer.participant, signer.key_version

    def _verify_consent(self, token: str, document: AccountChangeDocument, payload: bytes) -> int:
        """The version of the holder's key that signed."""
        try:
            unverified = jws.read(token)
            found = self._keyring.signing_key(document.change.account, unverified, typ=CONSENT_TYP)
            if found is None:
                raise ProblemError(LedgerRefusal.ACCOUNT_NOT_FOUND)
            jws.check(unverified, found[0], typ=CONSENT_TYP)
        except jws.InvalidJws as error:
            raise ProblemError(LedgerRefusal.CONSENT_INVALID, f"the consent does not verify: {error}") from None
        if unverified.payload != payload:
            raise ProblemError(LedgerRefusal.CONSENT_INVALID, "consent and change must be over the same bytes")
        return found[1]

    def _journal(self, document: AccountChangeDocument, request: AccountChangeRequest, signed: Signatures) -> None:
        body = {"kind": account_changes.KIND, **request.model_dump(exclude_none=True)}
        check = partial(_check, change=_plain(document), signed=signed, valid_until=to_micros(document.valid_until))
        try:
            future = self._sequencer.change_account(
                change_id=order_id(document.id).bytes, body=jws.canonical_json(body), check=check
            )
            _, refusal = future.result(self._answer_seconds_max)
        except FutureTimeout:
            raise ProblemError(LedgerRefusal.OUTCOME_UNKNOWN, "retry with the same request") from None
        except SequencerUnavailable as error:
            raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "retry with the same request") from error
        if refusal is None:
            return
        announced = self._state.announced.get(document.change.account)
        if refusal is LedgerRefusal.KEY_RECOVERY_PENDING and announced is not None:
            effective_at = show_moment(from_micros(account_changes.effective_at(self._state, announced)))
            raise ProblemError(refusal, f"the key may be taken from {effective_at} on", effective_at=effective_at)
        raise ProblemError(refusal)


def _check(
    state: LedgerState, booked_at: int, *, change: dict[str, Any], signed: Signatures, valid_until: int
) -> LedgerRefusal | TransferRefusal | None:
    return account_changes.check(state, change, signed, valid_until=valid_until, booked_at=booked_at)


def _plain(document: AccountChangeDocument) -> dict[str, Any]:
    return document.change.model_dump(mode="json", exclude_none=True)


def _document_of(done: DirectiveRow) -> tuple[AccountChangeDocument, bytes]:
    body = json.loads(done.body)
    payload = jws.peek_payload(body["change"] if "change" in body else body["consent"])
    return AccountChangeDocument.model_validate(json.loads(payload)), payload


def _answer(document: AccountChangeDocument, payload: bytes, done: DirectiveRow) -> AccountChangeView:
    booked, booked_payload = _document_of(done)
    if booked_payload != payload:
        raise ProblemError(LedgerRefusal.CHANGE_EXISTS)
    return AccountChangeView(
        id=document.id,
        change=booked.change,
        has_consent="consent" in json.loads(done.body),
        directive=done.number,
        booked_at=done.booked_at,
    )
