"""Typed client of the ledger: what the wallet and settlement services, the CLIs, the demo and the tests use.

Requests of an institution are signed (RFC 9421) by the `signer` given; every write is idempotent by client-made
ids, so the client retries it after a lost answer, unless the caller sets a deadline: then it makes one attempt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from kernel import ids
from kernel.client import ServiceClient, ServiceUnreachable
from kernel.crypto.http_signatures import RequestSigner, signatures_expire
from ledger.balance_proofs import BalanceProof
from ledger.balance_proofs import ProofRefused as ProofRefused
from ledger.balance_proofs import ProvedBalance as ProvedBalance
from ledger.balance_proofs import contradiction as contradiction
from ledger.balance_proofs import open_statement as open_statement
from ledger.balance_proofs import parse_proof as parse_proof
from ledger.balance_proofs import verify_balance_proof as verify_balance_proof
from ledger.contract import (
    BINARY_MEDIA_TYPE,
    AccountChangeRequest,
    AccountChangeView,
    AccountCheckRequest,
    AccountCheckResponse,
    AccountLookUpRequest,
    AccountLookUpResponse,
    AccountOpening,
    AccountOpeningRequest,
    AccountOpeningResponse,
    AccountOpeningResult,
    AccountView,
    BlockView,
    BookingsResponse,
    CheckpointView,
    ClosingView,
    ConsistencyProofView,
    EndTerms,
    HoldAnswer,
    HoldLookUpResponse,
    HoldView,
    IncidentAcknowledgement,
    IncidentView,
    InclusionProofView,
    LedgerView,
    LogView,
    MandateView,
    ParticipantView,
    StatementLine,
    StatementResponse,
    SupplyView,
    TransferAnswer,
    TransferBatchRequest,
    TransferBatchResponse,
    TransferItem,
    TransferResult,
    TransferTerms,
    TransferView,
    read_answers,
    read_hold_answers,
    write_end_items,
    write_hold_look_up,
    write_signed_items,
)
from ledger.receipts import ReceiptRefused, VerifiedReceipt, VerifiedSupply, verify_receipt, verify_supply

__all__ = [
    "LedgerClient",
    "ReceiptRefused",
    "VerifiedReceipt",
    "VerifiedSupply",
    "verify_receipt",
    "verify_supply",
]


class LedgerClient:
    """Sync client of one ledger. Raises `kernel.client.ProblemResponse` when the ledger refuses a whole request."""

    def __init__(self, base_url: str, *, signer: RequestSigner | None = None, timeout_seconds: float = 30.0) -> None:
        self._http = ServiceClient(base_url, auth=signer, timeout_seconds=timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # --- transfers

    def transfer(self, terms: TransferTerms, *, expires_at: datetime | None = None) -> TransferResult:
        """One transfer of the signing institution's own account, or one post/void by secret. See `submit`."""
        return self.submit([TransferItem(terms=terms)], expires_at=expires_at)[0]

    def submit_instruction(self, token: str) -> TransferResult:
        """One transfer that its debit account's owner has signed."""
        return self.submit([TransferItem(instruction=token)])[0]

    def submit(self, items: Sequence[TransferItem], *, expires_at: datetime | None = None) -> list[TransferResult]:
        """Up to `BATCH_TRANSFERS_MAX` transfers; one result an item, in order. Only linked items are all-or-nothing.

        With `expires_at` the ledger takes no copy of this request after that time, and there is one copy only: a
        refusal then speaks of all that this call has sent. A lost answer is the caller's to repeat, with the same ids.
        """
        body = TransferBatchRequest(transfers=list(items)).model_dump(mode="json", exclude_none=True)
        with signatures_expire(expires_at):
            answer = self._http.post("/v1/transfer-batches", body, idempotent=expires_at is None)
        return TransferBatchResponse.model_validate(answer).results

    def submit_signed(self, tokens: Sequence[str], *, expires_at: datetime | None = None) -> list[TransferAnswer]:
        """`submit` for instructions alone, without a model an item: one answer each, in order."""
        with signatures_expire(expires_at):
            response = self._http.request(
                "POST",
                "/v1/transfer-batches",
                content=write_signed_items(tokens),
                content_type="application/json",
                idempotent=expires_at is None,
            )
        try:
            return read_answers(response.content)
        except ValueError as error:
            raise ServiceUnreachable(f"the answer cannot be read: {error}") from None

    def submit_ends(self, ends: Sequence[EndTerms]) -> list[TransferAnswer]:
        """`submit` for posts and voids of whole holds by their secrets, without a model an item."""
        response = self._http.request(
            "POST",
            "/v1/transfer-batches",
            content=write_end_items(ends),
            content_type="application/json",
            idempotent=True,
        )
        try:
            return read_answers(response.content)
        except ValueError as error:
            raise ServiceUnreachable(f"the answer cannot be read: {error}") from None

    def submit_binary(self, records: bytes) -> bytes:
        """Plain transfers of the institution's own accounts as packed `ledger.domain.records.SUBMISSION` records
        (88 bytes each); the answer is one packed `RESULT` record each (code, seq, booked_at)."""
        response = self._http.request(
            "POST", "/v1/transfer-batches", content=records, content_type=BINARY_MEDIA_TYPE, idempotent=True
        )
        return response.content

    def get_transfer(self, transfer: UUID) -> TransferView:
        return TransferView.model_validate(self._http.get(f"/v1/transfers/{ids.show('trf', transfer)}"))

    def get_hold(self, hold: UUID) -> HoldView:
        return HoldView.model_validate(self._http.get(f"/v1/holds/{ids.show('trf', hold)}"))

    def look_up_holds(self, holds: Sequence[UUID]) -> list[HoldView | None]:
        """At most `LOOK_UPS_MAX`, one answer each, in order; None where there is none that the signer may see."""
        return HoldLookUpResponse.model_validate_json(self._look_up_holds(holds)).holds

    def look_up_hold_answers(self, holds: Sequence[UUID]) -> list[HoldAnswer | None]:
        """`look_up_holds` without a model an item."""
        try:
            return read_hold_answers(self._look_up_holds(holds))
        except ValueError as error:
            raise ServiceUnreachable(f"the answer cannot be read: {error}") from None

    def _look_up_holds(self, holds: Sequence[UUID]) -> bytes:
        return self._http.request(
            "POST",
            "/v1/hold-look-ups",
            content=write_hold_look_up(holds),
            content_type="application/json",
            idempotent=True,
        ).content

    # --- accounts

    def open_accounts(self, openings: Sequence[AccountOpening]) -> list[AccountOpeningResult]:
        body = AccountOpeningRequest(openings=list(openings)).model_dump(mode="json", exclude_none=True)
        answer = self._http.post("/v1/accounts", body, idempotent=True)
        return AccountOpeningResponse.model_validate(answer).results

    def check_accounts(self, accounts: Sequence[int]) -> list[bool]:
        """Whether each exists, whoever's it is; at most `ACCOUNT_CHECKS_MAX`."""
        body = AccountCheckRequest(accounts=[ids.AccountNumber(account) for account in accounts])
        answer = self._http.post("/v1/account-checks", body.model_dump(mode="json"), idempotent=True)
        return AccountCheckResponse.model_validate(answer).exists

    def get_account(self, account: int) -> AccountView:
        return AccountView.model_validate(self._http.get(f"/v1/accounts/{ids.show_account(account)}"))

    def look_up_accounts(self, accounts: Sequence[int]) -> list[AccountView | None]:
        """At most `LOOK_UPS_MAX`, one answer each, in order; None where there is none that the signer may see."""
        body = AccountLookUpRequest(accounts=[ids.AccountNumber(account) for account in accounts])
        answer = self._http.post("/v1/account-look-ups", body.model_dump(mode="json"), idempotent=True)
        return AccountLookUpResponse.model_validate(answer).accounts

    def statement(
        self, account: int, *, cursor: str | None = None, limit: int = 1000, newest_first: bool = False
    ) -> StatementResponse:
        """Lines in booking order, or the newest first."""
        params: dict[str, Any] = {"limit": limit, "newest_first": newest_first} | ({"cursor": cursor} if cursor else {})
        path = f"/v1/accounts/{ids.show_account(account)}/statement"
        return StatementResponse.model_validate(self._http.get(path, query=params))

    def statement_lines(self, account: int) -> Iterator[StatementLine]:
        """Every line, page by page."""
        cursor: str | None = None
        while True:
            page = self.statement(account, cursor=cursor)
            yield from page.lines
            cursor = page.next_cursor
            if cursor is None:
                return

    def bookings(self, *, after_seq: int, limit: int = 1000) -> BookingsResponse:
        """What was booked on the signing participant's accounts after a seq; go on at the answer's `through_seq`."""
        query = {"after_seq": after_seq, "limit": limit}
        return BookingsResponse.model_validate(self._http.get("/v1/bookings", query=query))

    # --- account changes

    def change_account(self, change: str | None, *, consent: str | None = None) -> AccountChangeView:
        """Class, keys, suspension, closure of an account: see `AccountChangeDocument`. `change` is the participant's
        signature (None for `object-to-key`, which nobody but the holder signs), `consent` the holder's. Idempotent.

        Refuses: account-not-found, consent-missing, consent-invalid, class-unknown, holder-key-..., key-not-announced,
        key-recovery-pending (transient), account-not-empty (transient), account-closed, change-exists, ...
        """
        body = AccountChangeRequest(change=change, consent=consent).model_dump(mode="json", exclude_none=True)
        return AccountChangeView.model_validate(self._http.post("/v1/account-changes", body, idempotent=True))

    def get_account_change(self, change: UUID) -> AccountChangeView:
        path = f"/v1/account-changes/{ids.show('chg', change)}"
        return AccountChangeView.model_validate(self._http.get(path))

    # --- mandates

    def propose(self, proposal_token: str) -> MandateView:
        answer = self._http.post("/v1/mandates", {"proposal": proposal_token}, idempotent=True)
        return MandateView.model_validate(answer)

    def approve(self, mandate: UUID, approval_token: str) -> MandateView:
        path = f"/v1/mandates/{ids.show('mdt', mandate)}/approvals"
        return MandateView.model_validate(self._http.post(path, {"approval": approval_token}))

    def execute(self, mandate: UUID) -> MandateView:
        """Carries out an approved mandate, signed by an operator or the participant concerned. Refuses:
        approvals-missing, mandate-executed, mandate-expired, ..."""
        return MandateView.model_validate(self._http.post(f"/v1/mandates/{ids.show('mdt', mandate)}/execute", {}))

    def get_mandate(self, mandate: UUID) -> MandateView:
        return MandateView.model_validate(self._http.get(f"/v1/mandates/{ids.show('mdt', mandate)}"))

    # --- the transparency log

    def log(self) -> LogView:
        return LogView.model_validate(self._http.get("/v1/log"))

    def incidents(self, *, limit: int = 50) -> list[IncidentView]:
        """Checkpoints that witnesses refused, the newest first."""
        items = self._http.get("/v1/log/incidents", query={"limit": limit})["items"]
        return [IncidentView.model_validate(item) for item in items]

    def acknowledge_incident(self, witness: str, block: int, *, reason: str) -> IncidentView:
        """By an operator, once it is handled. Refuses: incident-not-found, incident-acknowledged."""
        body = IncidentAcknowledgement(witness=witness, block=block, reason=reason)
        answer = self._http.post("/v1/log/incidents/acknowledge", body.model_dump(mode="json"), idempotent=True)
        return IncidentView.model_validate(answer)

    def checkpoint(self) -> str:
        """The newest checkpoint, a signed note with its cosignatures (see `kernel.transparency.checkpoints`)."""
        return self._http.request("GET", "/checkpoint", idempotent=True).text

    def checkpoints(self, *, limit: int = 50) -> list[CheckpointView]:
        """The newest first."""
        items = self._http.get("/v1/log/checkpoints", query={"limit": limit})["items"]
        return [CheckpointView.model_validate(item) for item in items]

    def receipt(self, transfer: UUID, *, quorum: int = 0) -> bytes:
        """A receipt (JSON), to keep and to check with `verify_receipt`: under the newest checkpoint that `quorum`
        witnesses have cosigned. Refuses: not-sealed (transient), transfer-not-found."""
        path = f"/v1/transfers/{ids.show('trf', transfer)}/receipt"
        return self._http.request("GET", path, query={"quorum": quorum}, idempotent=True).content

    def supply_statement(self, size: int | None = None) -> bytes:
        """The statement that the checkpoint of a size signs (the newest by default); see `verify_supply`."""
        path = f"/v1/log/supply/{'latest' if size is None else size}"
        return self._http.request("GET", path, idempotent=True).content

    def inclusion_proof(self, seq: int, size: int) -> InclusionProofView:
        return InclusionProofView.model_validate(self._http.get("/v1/log/inclusion", query={"seq": seq, "size": size}))

    def consistency_proof(self, old: int, new: int) -> ConsistencyProofView:
        return ConsistencyProofView.model_validate(
            self._http.get("/v1/log/consistency", query={"old": old, "new": new})
        )

    # --- the ledger

    def ledger(self) -> LedgerView:
        return LedgerView.model_validate(self._http.get("/v1/ledger"))

    def participants(self) -> list[ParticipantView]:
        return [ParticipantView.model_validate(item) for item in self._http.get("/v1/participants")["items"]]

    def supply(self) -> SupplyView:
        return SupplyView.model_validate(self._http.get("/v1/supply"))

    def block(self, number: int | None = None) -> BlockView:
        """A block's header; the latest by default."""
        return BlockView.model_validate(self._http.get(f"/v1/blocks/{'latest' if number is None else number}"))

    # --- closings

    def close_now(self) -> ClosingView:
        """A closing at the newest block, for an operator; the last one again if nothing was booked since."""
        return ClosingView.model_validate(self._http.post("/v1/closings", {}, idempotent=True))

    def closing(self, number: int) -> ClosingView:
        return ClosingView.model_validate(self._http.get(f"/v1/closings/{number}"))

    def closings(self, *, limit: int = 50) -> list[ClosingView]:
        """The newest, newest first."""
        items = self._http.get("/v1/closings", query={"limit": limit})["items"]
        return [ClosingView.model_validate(item) for item in items]

    def balance_proof(self, closing: int, account: int) -> BalanceProof:
        """To be believed only after `verify_balance_proof`."""
        path = f"/v1/closings/{closing}/balance-proofs/{ids.show_account(account)}"
        return BalanceProof.model_validate(self._http.get(path))
