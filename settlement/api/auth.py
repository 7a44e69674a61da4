"""Who calls: every request but the public prices is signed (RFC 9421) by an institution or by the bridge's operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from kernel.clock import Clock
from kernel.crypto.http_signatures import verify_request
from kernel.crypto.keys import PublicKey
from kernel.crypto.nonces import NonceStore
from kernel.errors import ProblemError, RequestRefusal
from kernel.ids import ParticipantId
from settlement.settings import Directory

SIGNED = (
    RequestRefusal.SIGNATURE_MISSING,
    RequestRefusal.SIGNATURE_INVALID,
    RequestRefusal.SIGNATURE_STALE,
    RequestRefusal.SIGNATURE_REPLAYED,
    RequestRefusal.NOT_PERMITTED,
)
"""The refusals of every signed operation."""


@dataclass(frozen=True, slots=True)
class Caller:
    participant: ParticipantId
    is_operator: bool
    """Signed with the bridge's own key: may see and submit for everybody."""
    officer: str = ""
    """A compliance officer's name: a person of the bridge, who decides cases and may do nothing else."""
    key_thumbprint: str = ""

    def may_see(self, *parties: ParticipantId) -> bool:
        return self.is_operator or self.participant in parties

    def require(self, *parties: ParticipantId) -> None:
        """Raises: ProblemError(not-permitted)."""
        if not self.may_see(*parties):
            raise ProblemError(RequestRefusal.NOT_PERMITTED, f"{self.participant} is no party to this")


class Authenticator:
    def __init__(
        self,
        directory: Directory,
        *,
        bridge: ParticipantId,
        bridge_key: PublicKey,
        public_url: str,
        nonces: NonceStore,
        clock: Clock,
        officers: Mapping[str, tuple[str, PublicKey]] = MappingProxyType({}),
    ) -> None:
        """`officers` by key thumbprint. Raises: ValueError if one of them has an institution's or the bridge's key."""
        self._callers = {
            thumbprint: (Caller(participant, False), key) for thumbprint, (participant, key) in directory.keys.items()
        }
        if officers.keys() & {*self._callers, bridge_key.thumbprint}:
            raise ValueError("an officer has the key of an institution or of the bridge")
        for thumbprint, (name, key) in officers.items():
            self._callers[thumbprint] = (Caller(bridge, False, name, thumbprint), key)
        self._callers[bridge_key.thumbprint] = (Caller(bridge, True), bridge_key)
        self._origin = public_url.rstrip("/")
        self._nonces = nonces
        self._clock = clock

    def authenticate(self, request: Request, body: bytes) -> Caller:
        path = request.scope.get("raw_path") or request.url.path.encode()
        query = request.scope.get("query_string", b"")
        verified = verify_request(
            method=request.method,
            target_uri=self._origin + path.decode("ascii") + ("?" + query.decode("ascii") if query else ""),
            headers=request.headers.items(),
            body=body,
            find_key=self._find_key,
            now=self._clock(),
        )
        if not self._nonces.take(verified.key_id, verified.nonce, verified.expires):
            raise ProblemError(RequestRefusal.SIGNATURE_REPLAYED)
        return self._callers[verified.key_id][0]

    def _find_key(self, thumbprint: str) -> PublicKey | None:
        found = self._callers.get(thumbprint)
        return None if found is None else found[1]


async def _anybody(request: Request) -> Caller:
    authenticator: Authenticator = request.app.state.authenticator
    return await run_in_threadpool(authenticator.authenticate, request, await request.body())


async def _signed(request: Request) -> Caller:
    caller = await _anybody(request)
    if caller.officer:
        raise ProblemError(RequestRefusal.NOT_PERMITTED, "an officer decides compliance cases and does nothing else")
    return caller


async def _officer(request: Request) -> Caller:
    caller = await _anybody(request)
    if not caller.officer:
        raise ProblemError(RequestRefusal.NOT_PERMITTED, "this is for a compliance officer, with a key of his own")
    return caller


async def _overseer(request: Request) -> Caller:
    caller = await _anybody(request)
    if not (caller.officer or caller.is_operator):
        raise ProblemError(RequestRefusal.NOT_PERMITTED, "this is for compliance officers and the bridge's operator")
    return caller


async def _operator(request: Request) -> Caller:
    caller = await _signed(request)
    if not caller.is_operator:
        raise ProblemError(RequestRefusal.NOT_PERMITTED, "this is for the bridge's operator")
    return caller


Signed = Annotated[Caller, Depends(_signed)]
Operator = Annotated[Caller, Depends(_operator)]
Officers = Annotated[Caller, Depends(_officer)]
Overseer = Annotated[Caller, Depends(_overseer)]
