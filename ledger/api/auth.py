"""Who calls? RFC 9421 signatures of participants and operators, each nonce taken once."""

from __future__ import annotations

from datetime import datetime

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from kernel.crypto.http_signatures import verify_request
from kernel.crypto.keys import PublicKey
from kernel.errors import ProblemError, RequestRefusal
from ledger.api.service import Service, service_of
from ledger.usecases.keyring import Caller


async def optional_caller(request: Request) -> Caller | None:
    """The signer of a request that need not be signed (a holder's instruction carries its own signature)."""
    if "signature" not in request.headers and "signature-input" not in request.headers:
        return None
    return await required_caller(request)


async def required_caller(request: Request) -> Caller:
    """The participant or operator that signed this request. Raises ProblemError(SIGNATURE_*)."""
    service = service_of(request)
    body = await request.body()
    query = f"?{request.url.query}" if request.url.query else ""
    target_uri = f"{service.settings.origin}{request.scope['raw_path'].decode('ascii', 'replace')}{query}"
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.scope["headers"]]
    return await run_in_threadpool(_verify, service, request.method, target_uri, headers, body, service.clock())


def _verify(
    service: Service, method: str, target_uri: str, headers: list[tuple[str, str]], body: bytes, now: datetime
) -> Caller:
    found: list[Caller] = []

    def find_key(key_id: str) -> PublicKey | None:
        match = service.keyring.find_caller(key_id)
        if match is None:
            return None
        found.append(match[0])
        return match[1]

    verified = verify_request(
        method=method, target_uri=target_uri, headers=headers, body=body, find_key=find_key, now=now
    )
    if not service.nonces.take(verified.key_id, verified.nonce, verified.expires):
        raise ProblemError(RequestRefusal.SIGNATURE_REPLAYED)
    return found[0]
