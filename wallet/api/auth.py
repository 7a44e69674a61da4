"""Who calls: requests of registered clients are signed by RFC 9421; a role says what each may ask.

Payments, refunds and exchanges out need no such signature: the holder's own on the instruction is the authority.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from kernel.clock import Clock
from kernel.crypto.http_signatures import verify_request
from kernel.crypto.keys import PublicKey
from kernel.crypto.nonces import NonceStore
from kernel.errors import ProblemError, RequestRefusal
from wallet.domain.privacy import Sight
from wallet.settings import ClientRole, RegisteredClient

SIGNED = (
    RequestRefusal.SIGNATURE_MISSING,
    RequestRefusal.SIGNATURE_INVALID,
    RequestRefusal.SIGNATURE_STALE,
    RequestRefusal.SIGNATURE_REPLAYED,
    RequestRefusal.NOT_PERMITTED,
)
"""The refusals of every signed operation."""


class Authenticator:
    """Clients by the thumbprint of their key; nonces taken once, in a store that outlives this process."""

    def __init__(
        self, clients: Mapping[str, RegisteredClient], *, public_url: str, nonces: NonceStore, clock: Clock
    ) -> None:
        self._clients = dict(clients)
        self._keys = {thumbprint: PublicKey.from_jwk(client.key) for thumbprint, client in clients.items()}
        self._origin = public_url.rstrip("/")
        self._nonces = nonces
        self._clock = clock

    def authenticate(self, request: Request, body: bytes) -> RegisteredClient:
        """The client who signed. Raises: ProblemError(signature-missing, -invalid, -stale, -replayed)."""
        path = (request.scope.get("raw_path") or request.url.path.encode()).decode("ascii", "replace")
        query = request.scope.get("query_string", b"").decode("ascii", "replace")
        verified = verify_request(
            method=request.method,
            target_uri=self._origin + path + (f"?{query}" if query else ""),
            headers=request.headers.items(),
            body=body,
            find_key=self._keys.get,
            now=self._clock(),
        )
        if not self._nonces.take(verified.key_id, verified.nonce, verified.expires):
            raise ProblemError(RequestRefusal.SIGNATURE_REPLAYED)
        return self._clients[verified.key_id]


def _allow(*roles: ClientRole) -> Callable[[Request], Coroutine[Any, Any, RegisteredClient]]:
    async def authorise(request: Request) -> RegisteredClient:
        authenticator: Authenticator = request.app.state.authenticator
        client = await run_in_threadpool(authenticator.authenticate, request, await request.body())
        if client.role not in roles:
            allowed = " or ".join(role.value for role in roles)
            raise ProblemError(RequestRefusal.NOT_PERMITTED, f"this is for a client with the role {allowed}")
        return client

    return authorise


Channel = Annotated[RegisteredClient, Depends(_allow(ClientRole.CHANNEL))]
Reader = Annotated[RegisteredClient, Depends(_allow(ClientRole.CHANNEL, ClientRole.OPERATOR))]
Operator = Annotated[RegisteredClient, Depends(_allow(ClientRole.OPERATOR))]
Bridge = Annotated[RegisteredClient, Depends(_allow(ClientRole.BRIDGE))]
Compliance = Annotated[RegisteredClient, Depends(_allow(ClientRole.COMPLIANCE))]
Examiner = Annotated[RegisteredClient, Depends(_allow(ClientRole.COMPLIANCE, ClientRole.AUDITOR))]


def sight_of(client: RegisteredClient) -> Sight:
    """How a client sees names and telephone numbers where it may see a customer at all: its customers' own bank in
    plain, everybody else masked."""
    return "plain" if client.role is ClientRole.CHANNEL else "masked"
