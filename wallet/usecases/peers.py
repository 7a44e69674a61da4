"""Other institutions: where their wallet services are, and with which keys they sign.

Addresses come from this institution's own directory, never from a code or a document: nobody can make this service
call an address of his choice. Keys come from the home ledger's list of participants, which anybody may read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeVar
from uuid import UUID

from pydantic import ValidationError

from kernel import strict_json
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.crypto import jws
from kernel.crypto.keys import PublicKey
from kernel.errors import ProblemError, Refusal, RequestRefusal
from kernel.ids import ParticipantId
from ledger.contract import Model
from wallet.contract import WalletRefusal
from wallet.contract.programs import PurchaseOriginView
from wallet.contract.requests import CodeRedemption, CodeRedemptionAnswer, RequestOffer

if TYPE_CHECKING:
    from wallet.usecases.context import Context

KEYS_FRESH_SECONDS = 5.0
"""A document by an unknown key makes us ask the ledger again, but no more often: it may be a forgery."""
KEYS_OLD_SECONDS = 60.0
"""A key that was replaced on the ledger is believed here no longer than this."""
M = TypeVar("M", bound=Model)


class Peer(Protocol):
    """Another institution's wallet service, as far as requests, codes and refunds need it. Raises: ProblemResponse,
    ServiceUnreachable, ProblemError."""

    def request_offer(self, request: UUID) -> RequestOffer: ...

    def deliver_request(self, document: str) -> None: ...

    def tell_decline(self, request: UUID, decline: str) -> None: ...

    def redeem_code(self, redemption: CodeRedemption) -> CodeRedemptionAnswer: ...

    def purchase_origin(self, payment: UUID) -> PurchaseOriginView: ...


class Peers:
    """The directory and a short memory of the participants' keys. Thread-safe."""

    def __init__(self, directory: Mapping[ParticipantId, Peer] | None = None) -> None:
        self._directory = dict(directory or {})
        self._lock = threading.Lock()
        self._keys: dict[str, PublicKey] = {}
        self._asked_at = float("-inf")

    def find(self, institution: ParticipantId) -> Peer:
        """Raises: ProblemError(institution-unknown)."""
        peer = self._directory.get(institution)
        if peer is None:
            raise ProblemError(WalletRefusal.INSTITUTION_UNKNOWN, f"{institution} is not in this bank's directory")
        return peer

    def key_of(self, context: Context, institution: ParticipantId, thumbprint: str | None) -> PublicKey | None:
        """The institution's key, if it has this thumbprint (None: whichever it has, as known lately).

        Raises: ProblemError(service-unavailable).
        """
        if institution == context.participant:
            return context.key.public if thumbprint in (None, context.key.public.thumbprint) else None
        with self._lock:
            known = self._keys.get(institution)
            is_old = time.monotonic() - self._asked_at >= KEYS_OLD_SECONDS
            if known is None or is_old or thumbprint not in (None, known.thumbprint):
                if time.monotonic() - self._asked_at >= KEYS_FRESH_SECONDS:
                    self._keys = _participants(context)
                    self._asked_at = time.monotonic()
                known = self._keys.get(institution)
        return known if known is not None and thumbprint in (None, known.thumbprint) else None


def _participants(context: Context) -> dict[str, PublicKey]:
    try:
        found = context.ledgers.home.client.participants()
    except (ProblemResponse, ServiceUnreachable) as error:
        raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "the ledger cannot be reached now; retry") from error
    return {item.participant: PublicKey.from_jwk(item.key) for item in found}


def signed_document(context: Context, token: str, *, typ: str, model: type[M]) -> M:
    """A document that the institution named in it has signed, in canonical JSON.

    `model` has a member `institution`. Raises: ProblemError(request-document-invalid, service-unavailable).
    """
    try:
        header, payload = jws.peek_header(token), jws.peek_payload(token)
        document = model.model_validate(strict_json.loads(payload, wire=True))
        institution = ParticipantId(str(getattr(document, "institution", "")))
        key = context.peers.key_of(context, institution, str(header.get("kid")))
        if key is None:
            _invalid(f"the key is not {institution}'s")
        jws.verify(token, key, typ=typ)
        if payload != canonical(document):
            _invalid("the document is not in its canonical form")
    except jws.InvalidJws as error:
        _invalid(error.reason)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        _invalid(f"{'/'.join(str(part)[:64] for part in first['loc'])}: {first['msg']}"[:200])
    return document


def canonical(document: Model) -> bytes:
    """The bytes that are signed."""
    return jws.canonical_json(document.model_dump(mode="json", exclude_none=True))


def _invalid(detail: str) -> NoReturn:
    raise ProblemError(WalletRefusal.REQUEST_DOCUMENT_INVALID, detail)


def peer_unavailable(error: ProblemResponse | ServiceUnreachable, *, passed_on: Mapping[str, Refusal]) -> ProblemError:
    """What another institution's answer becomes here: its refusal if ours has the same word, else try again."""
    if isinstance(error, ProblemResponse):
        refusal = passed_on.get(error.refusal)
        if refusal is not None:
            return ProblemError(refusal, error.detail)
    detail = "the other institution cannot answer now; retry with the same ids"
    return ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, detail)


REQUEST_REFUSALS: Mapping[str, Refusal] = {
    refusal.value: refusal
    for refusal in (
        WalletRefusal.REQUEST_NOT_FOUND,
        WalletRefusal.REQUEST_DOCUMENT_INVALID,
        WalletRefusal.REQUEST_NOT_FOR_WALLET,
        WalletRefusal.REQUEST_TERMS_INVALID,
        WalletRefusal.REQUEST_ENDED,
        WalletRefusal.REQUEST_ALREADY_PAID,
        WalletRefusal.REQUEST_PAYMENT_UNDER_WAY,
        WalletRefusal.CODE_INVALID,
        WalletRefusal.CODE_SIGNATURE_INVALID,
        WalletRefusal.CODE_EXPIRED,
        WalletRefusal.CODE_ALREADY_REDEEMED,
        WalletRefusal.NOT_OUR_WALLET,
    )
}
"""What institutions say to each other about requests and codes, and pass on."""
