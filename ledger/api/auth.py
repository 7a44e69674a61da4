"""Who calls? RFC 9421 signatures of participants and operators, each nonce taken once."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import Scope

from kernel.crypto.http_signatures import verify_request
from kernel.crypto.keys import PublicKey
from kernel.errors import ProblemError, RequestRefusal
from ledger.api.service import Service, service_of
from ledger.usecases.keyring import Caller


async def optional_caller(request: Request) -> Caller | None:
    """The signer of a request that need not be signed (a holder's instruction carries its own signature)."""
    if not is_signed(request.scope):
        return None
    return await required_caller(request)


async def required_caller(request: Request) -> Caller:
    """The participant or operator that signed this request. Raises ProblemError(SIGNATURE_*)."""
    return await run_in_threadpool(authenticate, service_of(request), request.scope, await request.body())


def authenticate(service: Service, scope: Scope, body: bytes) -> Caller:
    """Whose signature the request bears; its nonce is taken. Blocks. Raises ProblemError(SIGNATURE_*)."""
    query = scope["query_string"].decode("ascii", "replace")
    path = scope["raw_path"].decode("ascii", "replace")
    found: list[Caller] = []

    def find_key(key_id: str) -> PublicKey | None:
        match = service.keyring.find_caller(key_id)
        if match is None:
            return None
        found.append(match[0])
        return match[1]

    verified = verify_request(
        method=scope["method"],
        target_uri=f"{service.settings.origin}{path}{'?' if query else ''}{query}",
        headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]],
        body=body,
        find_key=find_key,
        now=service.clock(),
    )
    if not service.nonces.take(verified.key_id, verified.nonce, verified.expires):
        raise ProblemError(RequestRefusal.SIGNATURE_REPLAYED)
    return found[-1]


def is_signed(scope: Scope) -> bool:
    return any(name in (b"signature", b"signature-input") for name, _ in scope["headers"])
