"""RFC 9421 signatures on requests between institutions.

Covered: @method, @target-uri, with a body also content-digest (RFC 9530) and content-type, and idempotency-key where it
is sent. Parameters: created, keyid (the key's thumbprint), alg, nonce (128 random bits), tag "jiaozi"; and expires,
where the caller sets a deadline (`signatures_expire`).
The verifier finds the key by keyid and takes the algorithm from the key, before anything is verified.

A general library parses and builds any signature of the standard, in 0.4 ms. Ours always look the same, so a pattern
reads them and a few lines build what is signed, in a quarter of that; what does not look so, or does not verify so, is
left to the library, which has the last word on every refusal.
"""

from __future__ import annotations

import binascii
import hashlib
import re
import secrets
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NoReturn

import http_message_signatures as hms
import http_sf
import httpx

from kernel.clock import EPOCH, Clock, system_clock
from kernel.crypto.keys import THUMBPRINT, PublicKey, SigningKey, Suite, to_base64url
from kernel.errors import ProblemError, RequestRefusal
from kernel.limits import SIGNATURE_SECONDS_MAX, SIGNATURE_SKEW_SECONDS_MAX

TAG = "jiaozi"
_LABEL = "sig1"
_NONCE = re.compile(r"[A-Za-z0-9_-]{22,64}", re.ASCII)
_CREATED_MAX = 2**40
_expires_at: ContextVar[datetime | None] = ContextVar("jiaozi_signatures_expire", default=None)


@dataclass(frozen=True, slots=True)
class VerifiedRequest:
    """Who signed, and what must be remembered so that nobody sends it again."""

    key_id: str
    nonce: str
    created: datetime
    expires: datetime
    """Until then the nonce must be remembered; afterwards the signature is stale anyway."""


def verify_request(
    *,
    method: str,
    target_uri: str,
    headers: Mapping[str, str] | Iterable[tuple[str, str]],
    body: bytes,
    find_key: Callable[[str], PublicKey | None],
    now: datetime,
    max_age_seconds: int = SIGNATURE_SECONDS_MAX,
) -> VerifiedRequest:
    """Who signed this request. `target_uri` is the configured public origin + path and query as received, never Host.

    `find_key` answers None for unknown and revoked keys. The caller then takes the nonce (kernel.crypto.nonces) and
    refuses with SIGNATURE_REPLAYED if it was taken.
    Raises: ProblemError(SIGNATURE_MISSING | SIGNATURE_INVALID | SIGNATURE_STALE).
    """
    fields = list(headers.items() if isinstance(headers, Mapping) else headers)
    names = {name.lower() for name, _ in fields}
    if not names & {"signature", "signature-input"}:
        raise ProblemError(RequestRefusal.SIGNATURE_MISSING, "sign the request (RFC 9421) with a registered key")
    ours = _verify_as_we_sign(method, target_uri, fields, body, find_key)
    key_id, nonce, created, stated = ours or _verify_any(method, target_uri, fields, names, body, find_key)
    # Only now its age: of a forged request nothing is believed, not even its time.
    moment = EPOCH + timedelta(seconds=created)
    expires = moment + timedelta(seconds=max_age_seconds)
    if now > expires or (stated is not None and now > EPOCH + timedelta(seconds=min(stated, _CREATED_MAX))):
        raise ProblemError(RequestRefusal.SIGNATURE_STALE, f"sign anew: older than {max_age_seconds} seconds")
    if moment > now + timedelta(seconds=SIGNATURE_SKEW_SECONDS_MAX):
        raise ProblemError(RequestRefusal.SIGNATURE_STALE, "the signer's clock runs ahead: set it by NTP")
    return VerifiedRequest(key_id, nonce, moment, expires)


_Verified = tuple[str, str, int, int | None]
"""keyid, nonce, created, expires."""


def _verify_any(
    method: str,
    target_uri: str,
    fields: list[tuple[str, str]],
    names: set[str],
    body: bytes,
    find_key: Callable[[str], PublicKey | None],
) -> _Verified:
    """Raises: ProblemError(SIGNATURE_INVALID)."""
    # 1. The key, and with it the algorithm.
    parameters = _parameters_of_ours(fields)
    key_id, nonce, created = (parameters.get(name) for name in ("keyid", "nonce", "created"))
    if not isinstance(key_id, str) or THUMBPRINT.fullmatch(key_id) is None:
        _invalid("keyid must be the thumbprint (RFC 7638) of a registered key")
    if not isinstance(nonce, str) or _NONCE.fullmatch(nonce) is None:
        _invalid("nonce must be 22 to 64 characters of base64url: 128 random bits")
    if type(created) is not int or not 0 <= created < _CREATED_MAX:
        _invalid("created must be a time in Unix seconds")
    key = find_key(key_id)
    if key is None:
        _invalid(f"no key {key_id} is registered and active")
    # 2. The signature, and that it covers enough.
    required = ["@method", "@target-uri"]
    if body:
        required += ["content-digest", "content-type"]
    if "idempotency-key" in names:
        required.append("idempotency-key")
    verifier = _Verifier(signature_algorithm=_ALGORITHM_BY_SUITE[key.suite], key_resolver=_OneKey(key_id, key))
    message = _Message(method, target_uri, _Fields(fields))
    try:
        verifier.verify(message, max_age=None, expect_tag=TAG, require_components=required, body=body)
    except hms.HTTPMessageSignaturesException as error:
        _invalid(str(error)[:200])
    except Exception:  # the library's parser meets hostile bytes here; whatever it trips over is no valid signature
        _invalid("the signature headers are malformed")
    expires = parameters.get("expires")
    return key_id, nonce, created, expires if type(expires) is int else None


_OUR_INPUT = re.compile(
    r"sig1=("
    r'\(("@method" "@target-uri"(?: "content-type")?(?: "idempotency-key")?(?: "content-digest")?)\)'
    r";created=(0|[1-9][0-9]{0,11})"
    r';keyid="([A-Za-z0-9_-]{43})"'
    r';alg="(ed25519|ecdsa-p256-sha256)"'
    r"(?:;expires=(0|[1-9][0-9]{0,11}))?"
    r';nonce="([A-Za-z0-9_-]{22,64})"'
    r';tag="jiaozi")',
    re.ASCII,
)
_OUR_SIGNATURE = re.compile(r"sig1=:([A-Za-z0-9+/]{86}==):", re.ASCII)
_COVERABLE = frozenset({"content-type", "idempotency-key", "content-digest"})


def _verify_as_we_sign(
    method: str,
    target_uri: str,
    fields: list[tuple[str, str]],
    body: bytes,
    find_key: Callable[[str], PublicKey | None],
) -> _Verified | None:
    """What a signature of exactly the form of `RequestSigner` says, if it verifies and covers enough; else None."""
    read: dict[str, str] = {}
    for name, value in fields:
        name = name.lower()
        if name in _COVERABLE or name in ("signature", "signature-input"):
            if name in read or not (value.isascii() and value.isprintable() and value == value.strip(" ")):
                return None
            read[name] = value
    stated = _OUR_INPUT.fullmatch(read.get("signature-input", ""))
    signature = _OUR_SIGNATURE.fullmatch(read.get("signature", ""))
    if stated is None or signature is None or not (target_uri.isascii() and target_uri.isprintable()):
        return None
    parameters, covered, created, key_id, algorithm, expires, nonce = stated.groups()
    required = [*(("content-type", "content-digest") if body else ())]
    required += ["idempotency-key"] if "idempotency-key" in read else []
    components = covered.replace('"', "").split()
    if any(name not in components for name in required) or any(name not in read for name in components[2:]):
        return None
    if "content-digest" in components and read["content-digest"] != _digest(body):
        return None
    key = find_key(key_id)
    if key is None or key.suite.value != algorithm:
        return None
    base = _base(method, target_uri, [(name, read[name]) for name in components[2:]], parameters)
    if not key.verify(base, binascii.a2b_base64(signature[1])):
        return None
    return key_id, nonce, int(created), int(expires) if expires is not None else None


def _base(method: str, target_uri: str, covered: list[tuple[str, str]], parameters: str) -> bytes:
    """What is signed: RFC 9421, 2.5."""
    lines = [f'"@method": {method}', f'"@target-uri": {target_uri}']
    lines += [f'"{name}": {value}' for name, value in covered]
    lines.append(f'"@signature-params": {parameters}')
    return "\n".join(lines).encode("ascii")


def _digest(body: bytes) -> str:
    """Content-Digest (RFC 9530)."""
    return f"sha-256=:{binascii.b2a_base64(hashlib.sha256(body).digest(), newline=False).decode('ascii')}:"


@contextmanager
def signatures_expire(at: datetime | None) -> Iterator[None]:
    """Every request signed inside, however late, says `expires` = `at` in whole seconds, rounded down (RFC 9421, 2.3).

    A request that must not take effect after a deadline needs it: `created` is the moment of signing, and that may come
    long after the decision to send. None sets no deadline. Holds for this thread (or task) only.
    """
    token = _expires_at.set(at)
    try:
        yield
    finally:
        _expires_at.reset(token)


class RequestSigner(httpx.Auth):
    """Signs every attempt anew (fresh nonce and created), so that a retry is never taken for a replay.

    `origin` ("https://ledger.example") is signed instead of the dialled scheme and host when the two differ (Unix
    sockets, private networks): it must be the public origin the service is configured with.
    """

    requires_request_body = True

    def __init__(self, key: SigningKey, *, clock: Clock = system_clock, origin: str | None = None) -> None:
        self._key = key
        self._clock = clock
        self._origin = origin.rstrip("/") if origin is not None else None

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        self.sign(request)
        yield request

    def sign(self, request: httpx.Request) -> None:
        """Put Content-Digest (with a body), Signature-Input and Signature on a request whose body is read."""
        for name in ("content-digest", "signature", "signature-input"):
            request.headers.pop(name, None)
        has_key = "idempotency-key" in request.headers
        body = request.content
        if body:
            request.headers["content-digest"] = _digest(body)
        names = (*(("content-type",) if body else ()), *(("idempotency-key",) if has_key else ()))
        names += ("content-digest",) if body else ()
        covered = [(name, request.headers[name]) for name in names]
        target = str(request.url)
        if self._origin is not None:
            target = self._origin + request.url.raw_path.decode("ascii")
        components = " ".join(f'"{name}"' for name in ("@method", "@target-uri", *names))
        expires = _expires_at.get()
        stated = f";expires={int(expires.timestamp())}" if expires is not None else ""
        parameters = (
            f"({components});created={int(self._clock().timestamp())}"
            f';keyid="{self._key.thumbprint}";alg="{self._key.suite.value}"{stated}'
            f';nonce="{to_base64url(secrets.token_bytes(16))}";tag="{TAG}"'
        )
        signature = self._key.sign(_base(request.method, target, covered, parameters))
        request.headers["signature-input"] = f"{_LABEL}={parameters}"
        encoded = binascii.b2a_base64(signature, newline=False).decode("ascii")
        request.headers["signature"] = f"{_LABEL}=:{encoded}:"


@dataclass(slots=True)
class _Message:
    """What the library wants to see of a request."""

    method: str
    url: str
    headers: Any


class _Fields:
    """All field lines in order, repeated ones included."""

    def __init__(self, lines: list[tuple[str, str]]) -> None:
        self._lines = lines

    def items(self) -> list[tuple[str, str]]:
        return self._lines


class _Algorithm(hms.HTTPSignatureAlgorithm):
    """Our keys do the arithmetic; the library builds the signature base."""

    def __init__(self, public_key: Any = None, private_key: Any = None) -> None:
        self._public: PublicKey | None = public_key

    def sign(self, message: bytes) -> bytes:
        raise TypeError("only RequestSigner signs")

    def verify(self, signature: bytes, message: bytes) -> None:
        if self._public is None or not self._public.verify(message, signature):
            raise hms.InvalidSignature("the signature does not verify with the key")


class _Ed25519(_Algorithm):
    algorithm_id = Suite.ED25519.value


class _EcdsaP256(_Algorithm):
    algorithm_id = Suite.ECDSA_P256_SHA256.value


_ALGORITHM_BY_SUITE: dict[Suite, type[_Algorithm]] = {
    Suite.ED25519: _Ed25519,
    Suite.ECDSA_P256_SHA256: _EcdsaP256,
}


class _OneKey(hms.HTTPSignatureKeyResolver):
    """Knows exactly the key that was looked up before."""

    def __init__(self, key_id: str, public: PublicKey) -> None:
        self._key_id = key_id
        self._public = public

    def resolve_public_key(self, key_id: str) -> Any:
        return self._public if key_id == self._key_id else None

    def resolve_private_key(self, key_id: str) -> Any:
        return None


class _Verifier(hms.HTTPMessageVerifier):
    def validate_created_and_expires(self, sig_input: Any, max_age: Any = None) -> None:
        """Left to verify_request, whose clock is a parameter; the library reads the system's."""


def _parameters_of_ours(fields: list[tuple[str, str]]) -> dict[str, Any]:
    """The parameters of the one signature tagged as ours."""
    value = ", ".join(value for name, value in fields if name.lower() == "signature-input")
    try:
        parsed: Any = http_sf.parse(value.encode("ascii"), tltype="dictionary")
        ours = [dict(parameters) for _, parameters in parsed.values() if parameters.get("tag") == TAG]
    except Exception:  # see above: hostile bytes
        _invalid("the Signature-Input header is malformed")
    if len(ours) != 1:
        _invalid(f'there must be exactly one signature with tag "{TAG}"')
    return ours[0]


def _invalid(detail: str) -> NoReturn:
    raise ProblemError(RequestRefusal.SIGNATURE_INVALID, detail)
