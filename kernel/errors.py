"""Refusals and RFC 9457 problems: the one way in which anything here says no.

A *refusal* is a business answer: a member of a closed enum, in order of precedence, that says whether the identical
request may succeed later. Refusals are values, returned by domains. At the edge each becomes one problem document
(`application/problem+json`) through one status table a service, which a test holds to be total.
Exceptions are for bugs and broken infrastructure only; `InvariantBroken` stops a service's writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Self

PROBLEM_TYPE_PREFIX = "/problems/"


class Refusal(StrEnum):
    """Base of all refusal enums. Members are declared as `NAME = code, transient, title`."""

    transient: bool
    """May the identical request succeed later?"""
    title: str  # type: ignore[assignment]  # hides str.title(): a refusal is a code, never prose
    """One sentence that does not change from occurrence to occurrence."""

    def __new__(cls, code: str, transient: bool, title: str) -> Self:
        member = str.__new__(cls, code)
        member._value_ = code
        member.transient = transient
        member.title = title
        return member


class RequestRefusal(Refusal):
    """Ways in which a request is refused before any service looks at its meaning, in order of precedence."""

    NOT_FOUND = "not-found", False, "There is nothing at this address."
    METHOD_NOT_ALLOWED = "method-not-allowed", False, "This address does not take that method."
    TOO_MANY_REQUESTS = "too-many-requests", True, "The client sends faster than its share; wait and retry."
    BODY_TOO_LARGE = "body-too-large", False, "The body is larger than this operation takes."
    REQUEST_TIMEOUT = "request-timeout", True, "The request did not arrive in time."
    UNSUPPORTED_MEDIA_TYPE = "unsupported-media-type", False, "This operation does not take that content type."
    MALFORMED_JSON = "malformed-json", False, "The body is not strict JSON (RFC 8259, no NaN, no duplicate keys)."
    NUL_CHARACTER = "nul-character", False, "Text may not contain the NUL character."
    VALIDATION_FAILED = "validation-failed", False, "The request does not have the documented shape."
    SIGNATURE_MISSING = "signature-missing", False, "The request must be signed (RFC 9421)."
    SIGNATURE_INVALID = "signature-invalid", False, "The request's signature does not verify."
    SIGNATURE_STALE = "signature-stale", False, "The request's signature is too old or from the future."
    SIGNATURE_REPLAYED = "signature-replayed", False, "A request with this signature nonce was already taken."
    NOT_PERMITTED = "not-permitted", False, "The signer may not do this."
    IDEMPOTENCY_KEY_MISSING = "idempotency-key-missing", False, "This operation needs an Idempotency-Key header."
    IDEMPOTENCY_KEY_REUSED = "idempotency-key-reused", False, "The Idempotency-Key was used with another request."
    IDEMPOTENCY_IN_PROGRESS = "idempotency-in-progress", True, "The first request with this key is still being done."
    SERVICE_UNAVAILABLE = "service-unavailable", True, "The service cannot answer now; retry with the same ids."
    INTERNAL_ERROR = "internal-error", True, "The service failed; the failure is recorded under the request id."


STATUS_BY_REQUEST_REFUSAL: Mapping[Refusal, int] = {
    RequestRefusal.NOT_FOUND: 404,
    RequestRefusal.METHOD_NOT_ALLOWED: 405,
    RequestRefusal.TOO_MANY_REQUESTS: 429,
    RequestRefusal.BODY_TOO_LARGE: 413,
    RequestRefusal.REQUEST_TIMEOUT: 408,
    RequestRefusal.UNSUPPORTED_MEDIA_TYPE: 415,
    RequestRefusal.MALFORMED_JSON: 400,
    RequestRefusal.NUL_CHARACTER: 400,
    RequestRefusal.VALIDATION_FAILED: 422,
    RequestRefusal.SIGNATURE_MISSING: 401,
    RequestRefusal.SIGNATURE_INVALID: 401,
    RequestRefusal.SIGNATURE_STALE: 401,
    RequestRefusal.SIGNATURE_REPLAYED: 409,
    RequestRefusal.NOT_PERMITTED: 403,
    RequestRefusal.IDEMPOTENCY_KEY_MISSING: 400,
    RequestRefusal.IDEMPOTENCY_KEY_REUSED: 422,
    RequestRefusal.IDEMPOTENCY_IN_PROGRESS: 409,
    RequestRefusal.SERVICE_UNAVAILABLE: 503,
    RequestRefusal.INTERNAL_ERROR: 500,
}


class ProblemError(Exception):
    """Carries a refusal to the edge, where it is rendered as a problem document.

    `detail` speaks to a person about this occurrence and says what to do next; `extra` adds documented members.
    """

    def __init__(self, refusal: Refusal, detail: str = "", **extra: Any) -> None:
        super().__init__(f"{refusal.value}: {detail or refusal.title}")
        self.refusal = refusal
        self.detail = detail
        self.extra = extra


class InvariantBroken(RuntimeError):
    """An invariant I1-I9 does not hold: a bug or tampering. The service stops writing and a person is paged."""

    def __init__(self, invariant: str, message: str) -> None:
        super().__init__(f"{invariant}: {message}")
        self.invariant = invariant


def problem_document(
    refusal: Refusal, status: int, *, detail: str = "", instance: str = "", request_id: str = "", **extra: Any
) -> dict[str, Any]:
    """The RFC 9457 object of a refusal."""
    return {
        "type": PROBLEM_TYPE_PREFIX + refusal.value,
        "title": refusal.title,
        "status": status,
        "detail": detail or refusal.title,
        "instance": instance,
        "refusal": refusal.value,
        "transient": refusal.transient,
        "request_id": request_id,
        **extra,
    }
