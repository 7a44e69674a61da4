"""The ledger's operations. Each parses, asks one use case, renders; none decides about money."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any
from uuid import UUID

import msgspec
import numpy as np
from fastapi import Depends, Path, Query, Request, Response
from pydantic import TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.types import Scope

from kernel import ids, pagination, strict_json
from kernel.crypto.keys import PublicKey
from kernel.errors import ProblemError, Refusal, RequestRefusal
from kernel.http import problems, strict_router
from kernel.limits import PAGE_ITEMS_DEFAULT, PAGE_ITEMS_MAX
from kernel.pagination import Page
from ledger.api.auth import authenticate, is_signed, optional_caller, required_caller
from ledger.api.service import Service, service_of
from ledger.contract import (
    BATCH_TRANSFERS_MAX,
    BINARY_MEDIA_TYPE,
    STATUS_BY_REFUSAL,
    AccountCheckRequest,
    AccountCheckResponse,
    AccountLookUpRequest,
    AccountLookUpResponse,
    AccountOpeningRequest,
    AccountOpeningResponse,
    AccountView,
    ApprovalRequest,
    BlockView,
    HoldAnswer,
    HoldLookUpRequest,
    HoldLookUpResponse,
    HoldStatus,
    HoldView,
    LedgerView,
    MandateStatus,
    MandateView,
    OperatorView,
    ParticipantView,
    ProposalRequest,
    RuleClass,
    SupplyView,
    TransferBatchRequest,
    TransferBatchResponse,
    TransferView,
    read_end_items,
    read_hold_look_up,
    read_signed_items,
    show_moment,
    write_answers,
    write_hold_answers,
)
from ledger.domain.records import RESULT, SUBMISSION, Batch
from ledger.domain.state import ISSUANCE_ACCOUNT, NO_CAP, LedgerState, RuleCaps
from ledger.domain.vocabulary import (
    ACCOUNT_KINDS,
    KIND_CODE,
    TRANSFER_KINDS,
    LedgerRefusal,
    TransferKind,
    TransferRefusal,
)
from ledger.store import queries
from ledger.store.queries import BookedTransfer, HoldRecord
from ledger.usecases.keyring import Caller
from ledger.usecases.submit import Item

router = strict_router()
Signed = Annotated[Caller, Depends(required_caller)]
MaybeSigned = Annotated[Caller | None, Depends(optional_caller)]
Running = Annotated[Service, Depends(service_of)]
_INLINE_BYTES_MAX = 16 * 1024
_BATCH = TypeAdapter(TransferBatchRequest)
_SIGNATURE = (
    RequestRefusal.SIGNATURE_MISSING,
    RequestRefusal.SIGNATURE_INVALID,
    RequestRefusal.SIGNATURE_STALE,
    RequestRefusal.SIGNATURE_REPLAYED,
)


def _refusals(*refusals: Refusal) -> dict[int | str, dict[str, Any]]:
    return problems(*refusals, statuses=STATUS_BY_REFUSAL)


def _parsed(prefix: str, text: str) -> UUID:
    try:
        return ids.parse(prefix, text)
    except ValueError as error:
        raise ProblemError(RequestRefusal.VALIDATION_FAILED, str(error)) from None


def _account(text: str) -> int:
    try:
        return ids.parse_account(text)
    except ValueError as error:
        raise ProblemError(RequestRefusal.VALIDATION_FAILED, str(error)) from None


# --- transfers


@router.post(
    "/v1/transfer-batches",
    operation_id="submit_transfers",
    tags=["transfers"],
    summary="Book up to 8,192 transfers, one result each",
    response_model=TransferBatchResponse,
    responses=_refusals(*_SIGNATURE, LedgerRefusal.OUTCOME_UNKNOWN),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/TransferBatchRequest"}},
                BINARY_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
)
async def submit_transfers(request: Request, caller: MaybeSigned, service: Running) -> Response:
    """Items are independent unless `linked`. An item carries either a signed `instruction`, or `terms`: then the
    request must be signed by the institution that owns the debit account, or the terms be a post or void by secret.
    Each result's refusal is one of `TransferRefusal` or of the envelope's (`instruction-invalid`, `wrong-ledger`,
    `wrong-currency`, `instruction-expired`, `id-from-future`). Ids make retries safe for ever."""
    body = await request.body()
    if request.headers.get("content-type", "").partition(";")[0].strip() == BINARY_MEDIA_TYPE:
        return await _submit_binary(body, caller, service)
    # A large body takes tenths of a second to read: not on the event loop, where everybody waits.
    batch = await run_in_threadpool(_parse, body) if len(body) > _INLINE_BYTES_MAX else _parse(body)
    answers = await service.submitter.submit(batch.transfers, lambda: caller)
    return Response(write_answers(answers), media_type="application/json")


async def submit_transfers_directly(scope: Scope, body: bytes) -> tuple[int, bytes] | None:
    """The same operation for the common requests, spelt without white space: signed instructions, or ends of holds by
    their secrets."""
    service: Service = scope["app"].state.starting.service
    is_large = len(body) > _INLINE_BYTES_MAX
    items = await run_in_threadpool(_read_quickly, body) if is_large else _read_quickly(body)
    if items is None:
        return None
    authenticator = partial(authenticate, service, scope, body) if is_signed(scope) else _nobody
    answers = await service.submitter.submit(items, authenticator)
    return 200, await run_in_threadpool(write_answers, answers) if is_large else write_answers(answers)


def _read_quickly(body: bytes) -> Sequence[Item] | None:
    is_of_ends = body.startswith(b'{"transfers":[{"terms"')
    return read_end_items(body) if is_of_ends else read_signed_items(body)


def _nobody() -> None:
    """Nobody has signed the request."""


def _parse(body: bytes) -> TransferBatchRequest:
    try:
        return _BATCH.validate_python(strict_json.loads(body, wire=True))
    except ValidationError as error:
        raise _validation_problem(error) from None


async def _submit_binary(body: bytes, caller: Caller | None, service: Service) -> Response:
    if caller is None:
        raise ProblemError(RequestRefusal.SIGNATURE_MISSING, "a binary batch is signed by the institution")
    if not body or len(body) % SUBMISSION.itemsize or len(body) // SUBMISSION.itemsize > BATCH_TRANSFERS_MAX:
        detail = f"1 to {BATCH_TRANSFERS_MAX} records of {SUBMISSION.itemsize} bytes"
        raise ProblemError(RequestRefusal.VALIDATION_FAILED, detail)
    records = np.frombuffer(body, SUBMISSION)
    unused = ("flags", "hold_high", "hold_low", "expires_at")
    kinds = np.minimum(records["kind"], len(_BINARY_KINDS) - 1)
    if not _BINARY_KINDS[kinds].all() or any(records[name].any() for name in unused):
        detail = "binary records are plain transfers: no flags, hold or expiry"
        raise ProblemError(RequestRefusal.VALIDATION_FAILED, detail)
    high = records["id_high"].astype(np.uint64)
    is_uuid7 = ((high >> 12) & 0xF == 7) & (records["id_low"].astype(np.uint64) >> 62 == 2)
    if not bool(is_uuid7.all()):
        raise ProblemError(RequestRefusal.VALIDATION_FAILED, "every id must be a UUIDv7")
    if ids.is_from_future(UUID(int=int(high.max()) << 64), now=service.clock()):
        raise ProblemError(LedgerRefusal.ID_FROM_FUTURE)
    batch = Batch.of_institution(records, submitter=caller.participant)
    outcome = await service.submitter.book(batch, caller=caller)
    results = np.zeros(len(records), RESULT)
    results["code"], results["seq"], results["booked_at"] = outcome.codes, outcome.seqs, outcome.booked_at
    for position, known in outcome.known.items():
        results[position]["booked_at"] = known.booked_at
    results["booked_at"][outcome.codes > 0] = 0
    return Response(results.tobytes(), media_type=BINARY_MEDIA_TYPE)


_BINARY_KINDS = np.zeros(len(TRANSFER_KINDS) + 1, np.bool_)
for _kind in (
    *(TransferKind.PAYMENT, TransferKind.REFUND, TransferKind.INTEREST, TransferKind.EXCHANGE_IN),
    *(TransferKind.PURSE_REDEEM, TransferKind.PURSE_LOSS),
):
    _BINARY_KINDS[KIND_CODE[_kind]] = True


def _validation_problem(error: ValidationError) -> ProblemError:
    found = error.errors(include_input=False, include_url=False, include_context=False)
    errors = [
        {"pointer": "/body" + "".join(f"/{str(part)[:64]}" for part in item["loc"]), "message": item["msg"][:200]}
        for item in found[:20]
    ]
    return ProblemError(RequestRefusal.VALIDATION_FAILED, "see errors", errors=errors, errors_total=len(found))


@router.get(
    "/v1/transfers/{transfer}",
    operation_id="get_transfer",
    summary="A booked transfer",
    tags=["transfers"],
    responses=_refusals(*_SIGNATURE, LedgerRefusal.TRANSFER_NOT_FOUND),
)
def get_transfer(transfer: Annotated[str, Path(max_length=64)], caller: Signed, service: Running) -> TransferView:
    """A booked transfer, for the participants it concerns and for operators."""
    return _transfer_view(service.state, booked_transfer(service, caller, transfer))


def booked_transfer(service: Service, caller: Caller, transfer: str) -> BookedTransfer:
    """What the caller may see of `trf_...`. Raises ProblemError(TRANSFER_NOT_FOUND)."""
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        found = queries.find_transfer(connection, _parsed("trf", transfer))
    if found is None or not _may_see(service.state, caller, found):
        raise ProblemError(LedgerRefusal.TRANSFER_NOT_FOUND)
    return found


@router.get(
    "/v1/holds/{hold}",
    operation_id="get_hold",
    summary="A hold, its terms and its end",
    tags=["transfers"],
    responses=_refusals(*_SIGNATURE, TransferRefusal.HOLD_NOT_FOUND),
)
def get_hold(hold: Annotated[str, Path(max_length=64)], caller: Signed, service: Running) -> HoldView:
    """A hold, its terms and its end, for the participants it concerns, for whoever placed it, and for operators."""
    found = _hold_answers(service, caller, [_parsed("trf", hold)])[0]
    if found is None:
        raise ProblemError(TransferRefusal.HOLD_NOT_FOUND)
    return HoldView.model_validate(msgspec.to_builtins(found))


@router.post(
    "/v1/hold-look-ups",
    operation_id="look_up_holds",
    summary="Up to 1,000 holds, their terms and their ends",
    tags=["transfers"],
    responses=_refusals(*_SIGNATURE),
    response_model=HoldLookUpResponse,
)
def look_up_holds(body: HoldLookUpRequest, caller: Signed, service: Running) -> Response:
    """As `get_hold`, one answer each; null where `get_hold` would answer `hold-not-found`. All as of one moment."""
    return Response(write_hold_answers(_hold_answers(service, caller, body.holds)), media_type="application/json")


async def look_up_holds_directly(scope: Scope, body: bytes) -> tuple[int, bytes] | None:
    """The same for requests spelt without white space: a settlement service asks for thousands a second."""
    service: Service = scope["app"].state.starting.service
    return await run_in_threadpool(_look_up_quickly, service, scope, body) if is_signed(scope) else None


def _look_up_quickly(service: Service, scope: Scope, body: bytes) -> tuple[int, bytes] | None:
    holds = read_hold_look_up(body)
    if holds is None:
        return None
    return 200, write_hold_answers(_hold_answers(service, authenticate(service, scope, body), holds))


def _hold_answers(service: Service, caller: Caller, holds: Sequence[UUID]) -> list[HoldAnswer | None]:
    """None where there is no such hold, or none that the caller may see."""
    with service.database.transaction(isolation="REPEATABLE READ") as connection:
        found = queries.find_holds(connection, holds)
    state = service.state
    answers: list[HoldAnswer | None] = []
    for hold in holds:
        record = found.get(hold)
        is_seen = record is not None and (record.is_tombstoned or _may_see(state, caller, record))
        answers.append(_hold_answer(state, record) if record is not None and is_seen else None)
    return answers


def _may_see(state: LedgerState, caller: Caller, transfer: BookedTransfer | HoldRecord) -> bool:
    if caller.is_operator or caller.participant == transfer.submitter:
        return True
    return caller.participant in {
        int(state.participant[number]) for number in (transfer.debit, transfer.credit) if number
    }


def _transfer_view(state: LedgerState, found: BookedTransfer) -> TransferView:
    submitter = state.participants[found.submitter]
    return TransferView(
        id=found.id,
        seq=found.seq,
        kind=TRANSFER_KINDS[found.kind],
        debit=ids.AccountNumber(found.debit) if found.debit else None,
        debit_kind=ACCOUNT_KINDS[int(state.kind[found.debit])] if found.debit else None,
        credit=ids.AccountNumber(found.credit) if found.credit else None,
        amount_minor=found.amount,
        currency=state.currency,
        hold=found.hold,
        reference=found.reference,
        booked_at=found.booked_at,
        submitter=ids.ParticipantId(submitter.code) if submitter is not None else None,
    )


_HOLD_STATUS = {
    None: HoldStatus.HELD,
    KIND_CODE[TransferKind.POST]: HoldStatus.POSTED,
    KIND_CODE[TransferKind.VOID]: HoldStatus.VOIDED,
    KIND_CODE[TransferKind.EXPIRE]: HoldStatus.EXPIRED,
}


def _hold_answer(state: LedgerState, found: HoldRecord) -> HoldAnswer:
    return HoldAnswer(
        hold=ids.show("trf", found.hold),
        status=(HoldStatus.TOMBSTONED if found.is_tombstoned else _HOLD_STATUS[found.ended_kind]).value,
        debit=ids.show_account(found.debit) if found.debit else None,
        credit=ids.show_account(found.credit) if found.credit else None,
        amount_minor=str(found.amount),
        currency=state.currency,
        commit_hash=_hex(found.commit_hash),
        abort_hash=_hex(found.abort_hash),
        expires_at=show_moment(found.expires_at) if found.expires_at is not None else None,
        ended_by=ids.show("trf", found.ended_by) if found.ended_by is not None else None,
        secret=_hex(found.secret),
    )


def _hex(value: bytes | None) -> str | None:
    return value.hex() if value is not None else None


# --- accounts


@router.post(
    "/v1/accounts",
    operation_id="open_accounts",
    summary="Open up to 4,096 accounts, one result each",
    tags=["accounts"],
    responses=_refusals(*_SIGNATURE, LedgerRefusal.ROLE_NOT_ALLOWED, LedgerRefusal.OUTCOME_UNKNOWN),
)
def open_accounts(body: AccountOpeningRequest, caller: Signed, service: Running) -> AccountOpeningResponse:
    """Open accounts of the signing participant. Each opening's id makes a retry return the same account."""
    return AccountOpeningResponse(results=service.accounts.open(body.openings, caller=caller))


@router.post(
    "/v1/account-checks",
    operation_id="check_accounts",
    summary="Whether accounts exist, one answer each",
    tags=["accounts"],
    responses=_refusals(*_SIGNATURE),
)
def check_accounts(body: AccountCheckRequest, caller: Signed, service: Running) -> AccountCheckResponse:
    """For a payer's institution before it sends a payroll: numbers that nobody has are found without paying."""
    return AccountCheckResponse(exists=service.accounts.exist(body.accounts))


@router.get(
    "/v1/accounts/{account}",
    operation_id="get_account",
    summary="An account's balance and status",
    tags=["accounts"],
    responses=_refusals(*_SIGNATURE, LedgerRefusal.ACCOUNT_NOT_FOUND),
)
def get_account(account: Annotated[str, Path(max_length=32)], caller: Signed, service: Running) -> AccountView:
    """Balance and status as of the last block, for the account's participant and for operators."""
    return service.accounts.view(_account(account), caller=caller)


@router.post(
    "/v1/account-look-ups",
    operation_id="look_up_accounts",
    summary="Up to 1,000 accounts' balances and statuses",
    tags=["accounts"],
    responses=_refusals(*_SIGNATURE),
)
def look_up_accounts(body: AccountLookUpRequest, caller: Signed, service: Running) -> AccountLookUpResponse:
    """As `get_account`, one answer each; null where `get_account` would answer `account-not-found`."""
    return AccountLookUpResponse(accounts=[service.accounts.find(account, caller=caller) for account in body.accounts])


# --- mandates

_MANDATE_REFUSALS = (
    LedgerRefusal.INSTRUCTION_INVALID,
    LedgerRefusal.UNKNOWN_SIGNER,
    LedgerRefusal.WRONG_LEDGER,
    LedgerRefusal.MANDATE_EXPIRED,
    RequestRefusal.NOT_PERMITTED,
)


@router.post(
    "/v1/mandates",
    operation_id="propose_mandate",
    summary="Propose an issue, a redemption or an operators' order",
    tags=["mandates"],
    status_code=201,
    responses=_refusals(*_MANDATE_REFUSALS, LedgerRefusal.MANDATE_EXISTS),
)
def propose_mandate(body: ProposalRequest, service: Running) -> MandateView:
    """Propose an issue, a redemption or an operators' order. The proposal carries its maker's signature."""
    return service.mandates.propose(body.proposal)


@router.post(
    "/v1/mandates/{mandate}/approvals",
    operation_id="approve_mandate",
    summary="Approve a proposal as an operator",
    tags=["mandates"],
    responses=_refusals(
        *_MANDATE_REFUSALS,
        LedgerRefusal.MANDATE_NOT_FOUND,
        LedgerRefusal.MANDATE_EXECUTED,
        LedgerRefusal.APPROVAL_MISMATCH,
        LedgerRefusal.APPROVER_IS_MAKER,
        LedgerRefusal.ALREADY_APPROVED,
    ),
)
def approve_mandate(
    mandate: Annotated[str, Path(max_length=64)], body: ApprovalRequest, service: Running
) -> MandateView:
    """An operator's signed approval of exactly this proposal; each operator counts once, its maker never."""
    return service.mandates.approve(_parsed("mdt", mandate), body.approval)


@router.post(
    "/v1/mandates/{mandate}/execute",
    operation_id="execute_mandate",
    summary="Carry out an approved mandate, once",
    tags=["mandates"],
    responses=_refusals(
        *_SIGNATURE,
        LedgerRefusal.MANDATE_NOT_FOUND,
        LedgerRefusal.MANDATE_EXECUTED,
        LedgerRefusal.MANDATE_EXPIRED,
        LedgerRefusal.APPROVALS_MISSING,
        LedgerRefusal.OUTCOME_UNKNOWN,
        LedgerRefusal.ROLE_NOT_ALLOWED,
        LedgerRefusal.PARTICIPANT_EXISTS,
        LedgerRefusal.PARTICIPANT_UNKNOWN,
        LedgerRefusal.KEY_IN_USE,
        LedgerRefusal.ACCOUNT_NOT_FOUND,
        LedgerRefusal.WRONG_CURRENCY,
        TransferRefusal.QUOTA_EXCEEDED,
        TransferRefusal.INSUFFICIENT_FUNDS,
    ),
)
def execute_mandate(mandate: Annotated[str, Path(max_length=64)], caller: Signed, service: Running) -> MandateView:
    """Carry out a mandate that enough operators have approved. It acts once. For operators, its maker, and the
    participant whose vault, registration, key or quota it is about; to others it is answered like one that does not
    exist."""
    return service.mandates.execute(caller, _parsed("mdt", mandate))


@router.get(
    "/v1/mandates/{mandate}",
    operation_id="get_mandate",
    summary="A mandate and its approvals",
    tags=["mandates"],
    responses=_refusals(*_SIGNATURE, LedgerRefusal.MANDATE_NOT_FOUND),
)
def get_mandate(mandate: Annotated[str, Path(max_length=64)], caller: Signed, service: Running) -> MandateView:
    """For operators, for its maker, and for the participant whose vault, registration, key or quota it is about.
    Freezes and adjustments are legal orders: the operators'."""
    return service.mandates.view_for(caller, _parsed("mdt", mandate))


@router.get(
    "/v1/mandates",
    operation_id="list_mandates",
    summary="The maker-checker queue",
    tags=["mandates"],
    responses=_refusals(*_SIGNATURE),
)
def list_mandates(
    caller: Signed,
    service: Running,
    status: MandateStatus | None = None,
    cursor: Annotated[str | None, Query(max_length=1024)] = None,
    limit: Annotated[int, Query(ge=1, le=PAGE_ITEMS_MAX)] = PAGE_ITEMS_DEFAULT,
) -> Page[MandateView]:
    """The maker-checker queue in the order of proposing, for operators."""
    if not caller.is_operator:
        raise ProblemError(RequestRefusal.NOT_PERMITTED, "the queue is the operators'")
    filters = {"status": status.value if status is not None else None}
    after = _parsed("mdt", str(pagination.decode(cursor, filters, shape=(str,))[0])) if cursor is not None else None
    items = service.mandates.queue(status=filters["status"], after=after, limit=limit + 1)
    more = len(items) > limit
    last = ids.show("mdt", items[limit - 1].mandate) if more else ""
    return Page(items=items[:limit], next_cursor=pagination.encode([last], filters) if more else None)


# --- the ledger itself


@router.get("/v1/ledger", operation_id="get_ledger", summary="What this ledger is", tags=["ledger"])
def get_ledger(service: Running) -> LedgerView:
    """What this ledger is, and who may order what on it."""
    state, head = service.state, service.sequencer.current_head()
    return LedgerView(
        ledger=state.ledger,
        currency=state.currency,
        time_zone=str(state.time_zone),
        operators=[_operator_view(operator.name, operator.key) for operator in state.operators],
        approvals_needed=state.approvals_needed,
        rule_classes=[_class_view(caps) for caps in state.classes],
        key_recovery_seconds=state.key_recovery_seconds,
        issuance_account=ids.AccountNumber(ISSUANCE_ACCOUNT),
        head_block=head.number if head is not None else 0,
        head_seq=head.first_seq + head.transfer_count - 1 if head is not None else 0,
        log_key=str(service.log.keys.verifier_key) if service.log is not None else None,
    )


def _operator_view(name: str, key: bytes) -> OperatorView:
    jwk = json.loads(key)
    return OperatorView(name=name, key=jwk, thumbprint=PublicKey.from_jwk(jwk).thumbprint)


def _class_view(caps: RuleCaps) -> RuleClass:
    def cap(value: int) -> int | None:
        return None if value == NO_CAP else value

    return RuleClass(
        name=caps.name,
        balance_max_minor=cap(caps.balance_max),
        single_max_minor=cap(caps.single_max),
        day_max_minor=cap(caps.day_max),
        year_max_minor=cap(caps.year_max),
    )


@router.get(
    "/v1/participants",
    operation_id="list_participants",
    summary="Who takes part, with quota and outstanding",
    tags=["ledger"],
)
def list_participants(service: Running) -> Page[ParticipantView]:
    """Every registered participant, with quota and what is outstanding."""
    service.sequencer.current_head()  # raises unless this ledger is the writer for certain
    return Page(
        items=[
            ParticipantView(
                participant=ids.ParticipantId(item.code),
                name=item.name,
                role=item.role,
                key=json.loads(item.key),
                quota_minor=item.quota,
                outstanding_minor=item.outstanding,
            )
            for item in service.state.participants
            if item is not None
        ],
        next_cursor=None,
    )


@router.get("/v1/supply", operation_id="get_supply", summary="The supply identity (I2)", tags=["ledger"])
def get_supply(service: Running) -> SupplyView:
    """I2: issued - redeemed = vaults + wallets + offline, held money included."""
    return service.accounts.supply()


@router.get(
    "/v1/blocks/{number}",
    operation_id="get_block",
    summary="A block's header",
    tags=["ledger"],
    responses=_refusals(*_SIGNATURE, LedgerRefusal.BLOCK_NOT_FOUND),
    response_model_exclude_none=True,
)
def get_block(
    number: Annotated[str, Path(pattern=r"^(latest|[1-9][0-9]{0,17})$")], caller: MaybeSigned, service: Running
) -> BlockView:
    """A block's header, or the latest. Anybody, and any participant, sees when it was booked and how many transfers it
    has; its hash, digests and totals, by which one who knows a transfer's id could guess the rest of it, are for
    operators' signed requests. The signed supply is at /v1/log/supply."""
    if number == "latest":
        found = service.sequencer.current_head()
    else:
        with service.database.transaction(isolation="READ COMMITTED") as connection:
            found = queries.find_block(connection, int(number))
    if found is None:
        raise ProblemError(LedgerRefusal.BLOCK_NOT_FOUND)
    return BlockView.of(found, is_whole=caller is not None and caller.is_operator)
