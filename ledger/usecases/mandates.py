"""Maker-checker: a proposal signed by its maker, approvals signed by M operators, carried out once.

1. *Propose*: the maker (an intermediary that asks, or an operator) signs the exact action.
2. *Approve*: operators other than the maker sign the proposal's hash; each counts once.
3. *Execute*: with M approvals an operator, or the participant concerned, says when: the sequencer books the action
   and, in the same block, a directive that carries the proposal and the approvals as signed, so that anybody can check
   afterwards who ordered it.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from uuid import UUID

from pydantic import ValidationError

from kernel import strict_json
from kernel.clock import Clock
from kernel.crypto import jws
from kernel.database import Database
from kernel.errors import ProblemError, RequestRefusal
from ledger.contract import (
    APPROVAL_TYP,
    MANDATE_TYP,
    Action,
    Approval,
    MandateStatus,
    MandateView,
    Proposal,
    RegisterParticipantAction,
    RotateParticipantKeyAction,
    SetQuotaAction,
)
from ledger.domain.state import LedgerState
from ledger.domain.vocabulary import LedgerRefusal
from ledger.engine.sequencer import Sequencer, SequencerUnavailable
from ledger.store import mandates as store
from ledger.store.mandates import MandateRow
from ledger.usecases.keyring import Caller, Keyring

_PARTICIPANT_MAY_ASK = ("issue", "redeem")
"""What an intermediary may propose; everything else is for operators."""


class Mandates:
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

    def propose(self, token: str) -> MandateView:
        """Idempotent: the same proposal again returns its mandate."""
        caller, payload = self._verified(token, MANDATE_TYP)
        try:
            proposal = Proposal.model_validate(strict_json.loads(payload, wire=True))
        except ValidationError as error:
            raise ProblemError(LedgerRefusal.INSTRUCTION_INVALID, _first(error)) from None
        if json.loads(payload)["action"] != proposal.action.model_dump(mode="json", exclude_none=True):
            raise ProblemError(
                LedgerRefusal.INSTRUCTION_INVALID, "the action must state all its members, as documented, and no nulls"
            )
        if proposal.ledger != self._state.ledger:
            raise ProblemError(LedgerRefusal.WRONG_LEDGER, f"this is {self._state.ledger}")
        if proposal.valid_until <= self._clock():
            raise ProblemError(LedgerRefusal.MANDATE_EXPIRED, "the proposal's valid_until has passed")
        if not caller.is_operator and not self._may_ask(proposal.action, caller):
            raise ProblemError(
                RequestRefusal.NOT_PERMITTED, "a participant proposes issue and redeem for its own vaults only"
            )
        row = MandateRow(
            id=proposal.mandate,
            proposal=token,
            proposal_sha256=hashlib.sha256(payload).digest(),
            maker=caller.thumbprint,
            status=MandateStatus.PROPOSED.value,
            refusal=None,
            directive=None,
            proposed_at=self._clock(),
            valid_until=proposal.valid_until,
        )
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            if not store.insert_mandate(connection, row):
                found = store.find_mandate(connection, row.id)
                if found is None or (found.proposal_sha256, found.maker) != (row.proposal_sha256, row.maker):
                    raise ProblemError(LedgerRefusal.MANDATE_EXISTS)
        return self.view(proposal.mandate)

    def approve(self, mandate_id: UUID, token: str) -> MandateView:
        caller, payload = self._verified(token, APPROVAL_TYP)
        if not caller.is_operator:
            raise ProblemError(RequestRefusal.NOT_PERMITTED, "only operators approve")
        try:
            approval = Approval.model_validate(strict_json.loads(payload, wire=True))
        except ValidationError as error:
            raise ProblemError(LedgerRefusal.INSTRUCTION_INVALID, _first(error)) from None
        if approval.ledger != self._state.ledger:
            raise ProblemError(LedgerRefusal.WRONG_LEDGER, f"this is {self._state.ledger}")
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            row = store.find_mandate(connection, mandate_id, lock=True)
            if row is None:
                raise ProblemError(LedgerRefusal.MANDATE_NOT_FOUND)
            if row.status == MandateStatus.EXECUTED:
                raise ProblemError(LedgerRefusal.MANDATE_EXECUTED)
            if row.valid_until <= self._clock():
                raise ProblemError(LedgerRefusal.MANDATE_EXPIRED)
            if approval.mandate != mandate_id or approval.proposal_sha256 != row.proposal_sha256:
                raise ProblemError(LedgerRefusal.APPROVAL_MISMATCH)
            if caller.thumbprint == row.maker:
                raise ProblemError(LedgerRefusal.APPROVER_IS_MAKER)
            if not store.insert_approval(
                connection, mandate_id, operator=caller.thumbprint, approval=token, approved_at=self._clock()
            ):
                raise ProblemError(LedgerRefusal.ALREADY_APPROVED)
        return self.view(mandate_id)

    def execute(self, caller: Caller, mandate_id: UUID) -> MandateView:
        """Carry out an approved mandate, once. The approvals say that it may be done, the caller that it is done now:
        an operator, its maker or the participant concerned. To others it does not exist, as in `view_for`."""
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            row = store.find_mandate(connection, mandate_id)
            if row is None or not self._may_see(caller, row.maker, _proposal_of(row).action):
                raise ProblemError(LedgerRefusal.MANDATE_NOT_FOUND)
            if row.status == MandateStatus.EXECUTED or store.directive_of(connection, mandate_id) is not None:
                raise ProblemError(LedgerRefusal.MANDATE_EXECUTED)
            if row.valid_until <= self._clock():
                raise ProblemError(LedgerRefusal.MANDATE_EXPIRED)
            # Only approvals of today's operators count: one who left since has no say.
            operators = self._operators()
            given = [token for operator, token in store.approvals(connection, mandate_id) if operator in operators]
        needed = self._state.approvals_needed
        if len(given) < needed:
            raise ProblemError(
                LedgerRefusal.APPROVALS_MISSING,
                f"{len(given)} of {needed} approvals are there",
                approvals=len(given),
                approvals_needed=needed,
            )
        action = json.loads(jws.peek_payload(row.proposal))["action"]
        body = jws.canonical_json({"kind": action["action"], "proposal": row.proposal, "approvals": given[:needed]})
        try:
            future = self._sequencer.carry_out(
                kind=action["action"], mandate_id=mandate_id.bytes, body=body, action=action
            )
            directive, refusal = future.result(self._answer_seconds_max)
        except FutureTimeout:
            raise ProblemError(LedgerRefusal.OUTCOME_UNKNOWN, "ask again for the mandate's status") from None
        except SequencerUnavailable as error:
            raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "nothing was done; retry") from error
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            store.finish_mandate(
                connection,
                mandate_id,
                status=(MandateStatus.EXECUTED if refusal is None else MandateStatus.REFUSED).value,
                directive_number=directive if refusal is None else None,
                refusal=refusal.value if refusal is not None else None,
            )
        if refusal is not None:
            raise ProblemError(refusal, f"The mandate was not carried out: {refusal.title}")
        return self.view(mandate_id)

    def view_for(self, caller: Caller, mandate_id: UUID) -> MandateView:
        """For operators and the participant concerned; to others it is answered like one that does not exist."""
        view = self.view(mandate_id)
        if not self._may_see(caller, view.maker, view.action):
            raise ProblemError(LedgerRefusal.MANDATE_NOT_FOUND)
        return view

    def view(self, mandate_id: UUID) -> MandateView:
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            row = store.find_mandate(connection, mandate_id)
            if row is None:
                raise ProblemError(LedgerRefusal.MANDATE_NOT_FOUND)
            if row.status != MandateStatus.EXECUTED:
                directive = store.directive_of(connection, mandate_id)
                if directive is not None:  # carried out, and the process died before it said so here
                    row = replace(row, status=MandateStatus.EXECUTED.value, directive=directive, refusal=None)
            return self._view(row, [operator for operator, _ in store.approvals(connection, mandate_id)])

    def queue(self, *, status: str | None, after: UUID | None, limit: int) -> list[MandateView]:
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            rows = store.list_mandates(connection, status=status, after=after, limit=limit)
            return [self._view(row, [operator for operator, _ in store.approvals(connection, row.id)]) for row in rows]

    def _view(self, row: MandateRow, approvers: list[str]) -> MandateView:
        proposal = _proposal_of(row)
        return MandateView(
            mandate=row.id,
            status=MandateStatus(row.status),
            action=proposal.action,
            reason=proposal.reason,
            maker=row.maker,
            approvers=approvers,
            approvals_needed=self._state.approvals_needed,
            proposal_sha256=row.proposal_sha256,
            valid_until=row.valid_until,
            directive=row.directive,
            refusal=row.refusal,
        )

    def _operators(self) -> set[str]:
        return self._keyring.operator_thumbprints()

    def _may_see(self, caller: Caller, maker: str, action: Action) -> bool:
        return caller.is_operator or maker == caller.thumbprint or self._concerns(action, caller)

    def _concerns(self, action: Action, caller: Caller) -> bool:
        if isinstance(action, RegisterParticipantAction | RotateParticipantKeyAction | SetQuotaAction):
            participant = self._keyring.participant(caller.participant)
            return participant is not None and participant.code == action.participant
        return self._may_ask(action, caller)

    def _may_ask(self, action: Action, caller: Caller) -> bool:
        if action.action not in _PARTICIPANT_MAY_ASK:
            return False
        vault = action.vault  # type: ignore[union-attr]  # the two kinds above have one
        return self._state.exists(vault) and int(self._state.participant[vault]) == caller.participant

    def _verified(self, token: str, typ: str) -> tuple[Caller, bytes]:
        """Who signed a document, and its payload. The key is found by `kid`, the algorithm by the key."""
        try:
            found = self._keyring.find_caller(str(jws.peek_header(token).get("kid", "")))
            if found is None:
                raise ProblemError(LedgerRefusal.UNKNOWN_SIGNER)
            payload = jws.verify(token, found[1], typ=typ)
            if payload != jws.canonical_json(json.loads(payload)):
                raise ProblemError(LedgerRefusal.INSTRUCTION_INVALID, "the payload must be canonical JSON")
            return found[0], payload
        except (jws.InvalidJws, ValueError, TypeError, RecursionError) as error:
            raise ProblemError(LedgerRefusal.INSTRUCTION_INVALID, f"not a valid signed document: {error}") from None


def _proposal_of(row: MandateRow) -> Proposal:
    """As its maker signed it; the signature was checked before it was stored."""
    return Proposal.model_validate(json.loads(jws.peek_payload(row.proposal)))


def _first(error: ValidationError) -> str:
    item = error.errors(include_input=False, include_url=False)[0]
    return f"{'/'.join(str(part) for part in item['loc'])}: {item['msg']}"
