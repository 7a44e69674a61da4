"""Compact JWS (RFC 7515) for documents that are signed once and read later: instructions, statements, receipts.

The header has exactly `alg`, `kid`, `typ`. The verifier is given the key and the expected `typ`; nothing in the header
chooses either. A document of one type can therefore never pass for another.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from kernel import strict_json
from kernel.crypto.keys import PublicKey, SigningKey, Suite, from_base64url, to_base64url
from kernel.errors import ProblemError
from kernel.limits import JWS_BYTES_MAX

_ALG_BY_SUITE = {Suite.ED25519: "EdDSA", Suite.ECDSA_P256_SHA256: "ES256"}
_INTEGER_EXACT_MAX = 2**53 - 1
_HEADERS_CACHED_MAX = 100_000
"""One a key and type; about 200 bytes each."""


class InvalidJws(ValueError):
    """The token is not a valid JWS of that key and type; `reason` says why, for logs and problem details."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def sign(payload: bytes, key: SigningKey, *, typ: str) -> str:
    """The compact JWS of `payload` with header alg, kid (the key's thumbprint) and typ."""
    # By hand: with one header shape and the algorithm given by the key, what is left of JWS is three lines, at a
    # quarter of a general library's cost. joserfc is the oracle in the tests, in both directions.
    signing_input = f"{header_of(_ALG_BY_SUITE[key.suite], key.thumbprint, typ)}.{to_base64url(payload)}"
    return f"{signing_input}.{to_base64url(key.sign(signing_input.encode('ascii')))}"


def verify(token: str, key: PublicKey, *, typ: str, bytes_max: int = JWS_BYTES_MAX) -> bytes:
    """The payload, if `token` is signed by `key` and of type `typ`.

    Raises: InvalidJws on any deviation: signature, alg that is not the key's, typ, kid, unknown header members (so
    `crit`, `b64`, `jwk`, `jku`, `x5c`), size, non-canonical base64url.
    """
    unverified = read(token, bytes_max=bytes_max)
    check(unverified, key, typ=typ)
    return unverified.payload


class Unverified(NamedTuple):
    """A token taken apart. Nothing in it may be believed before `check`."""

    token: str
    header: str
    """Still encoded."""
    payload: bytes
    signature: bytes


def read(token: str, *, bytes_max: int = JWS_BYTES_MAX) -> Unverified:
    """For who must read the payload to know whose key verifies it: decoded once. Raises: InvalidJws."""
    header, payload, signature = _split(token, bytes_max)
    try:
        return Unverified(token, header, from_base64url(payload), from_base64url(signature))
    except ValueError as error:
        raise InvalidJws(str(error)) from None


def check(unverified: Unverified, key: PublicKey, *, typ: str) -> None:
    """Whether it is signed by `key` and of type `typ`. Raises: InvalidJws as `verify` does."""
    token, header, _, signature = unverified
    # Nearly every header is the one that `sign` makes, known letter by letter; another spelling is read member by
    # member.
    if header != header_of(_ALG_BY_SUITE[key.suite], key.thumbprint, typ):
        _check_header(header, key, typ)
    if not key.verify(token[: token.rindex(".")].encode("ascii"), signature):
        raise InvalidJws("the signature does not verify")


@lru_cache(maxsize=_HEADERS_CACHED_MAX)
def header_of(alg: str, kid: str, typ: str) -> str:
    """The encoded header of a token that `sign` makes."""
    return to_base64url(canonical_json({"alg": alg, "kid": kid, "typ": typ}))


def is_headed_for(unverified: Unverified, kid: str, *, typ: str) -> bool:
    """Whether the header is letter by letter the one that `sign` writes with the key of this thumbprint. Proves
    nothing but that."""
    return unverified.header in (header_of("EdDSA", kid, typ), header_of("ES256", kid, typ))


def _check_header(encoded: str, key: PublicKey, typ: str) -> None:
    header = _header(encoded)
    if set(header) != {"alg", "kid", "typ"}:
        raise InvalidJws("the header must have exactly alg, kid and typ")
    if header["alg"] != _ALG_BY_SUITE[key.suite]:
        raise InvalidJws("the header's alg is not the key's")
    if header["kid"] != key.thumbprint:
        raise InvalidJws("the header's kid is not the key's")
    if header["typ"] != typ:
        raise InvalidJws(f"the header's typ is not {typ}")


def peek_header(token: str, *, bytes_max: int = JWS_BYTES_MAX) -> dict[str, Any]:
    """The unverified header, to look the key up by its kid. Raises: InvalidJws on any malformed part."""
    header = read(token, bytes_max=bytes_max).header
    return _header(header)


def peek_payload(token: str, *, bytes_max: int = JWS_BYTES_MAX) -> bytes:
    """The unverified payload. Nothing in it may be believed before `verify`. Raises: InvalidJws."""
    unverified = read(token, bytes_max=bytes_max)
    _header(unverified.header)
    return unverified.payload


def canonical_json(value: Any) -> bytes:
    """RFC 8785 for null, booleans, strings, lists, objects and integers within 2^53; raises ValueError for others.

    Money travels as strings of digits, so no float is ever signed.
    """
    return _canonical(value, 0).encode("utf-8")


def _canonical(value: Any, depth: int) -> str:
    if depth > 32:
        raise ValueError("nested too deeply to be signed")
    match value:
        case None:
            return "null"
        case True:
            return "true"
        case False:
            return "false"
        case str():
            return _canonical_string(value)
        case int():
            if abs(value) > _INTEGER_EXACT_MAX:
                raise ValueError("integers beyond 2^53 - 1 are signed as strings of digits")
            return int.__repr__(value)
        case list() | tuple():
            return "[" + ",".join(_canonical(item, depth + 1) for item in value) + "]"
        case dict():
            if not all(isinstance(name, str) for name in value):
                raise ValueError("member names must be strings")
            # RFC 8785 section 3.2.3: sorted by UTF-16 code units, which differs from code points beyond U+FFFF.
            names = sorted(value, key=lambda name: name.encode("utf-16-be", "surrogatepass"))
            return "{" + ",".join(f"{_canonical_string(n)}:{_canonical(value[n], depth + 1)}" for n in names) + "}"
        case _:
            raise ValueError(f"a {type(value).__name__} is not signed; use strings, integers, booleans, null")


def _canonical_string(text: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("lone surrogates cannot be signed")
    return strict_json.dumps_string(text)


def _split(token: str, bytes_max: int) -> list[str]:
    if len(token) > bytes_max:
        raise InvalidJws(f"the token is longer than {bytes_max} bytes")
    parts = token.split(".")
    if len(parts) != 3:
        raise InvalidJws("a compact JWS has three parts")
    if not parts[2]:
        raise InvalidJws("the token is not signed")
    return parts


def _header(encoded: str) -> dict[str, Any]:
    try:
        header = strict_json.loads(from_base64url(encoded))
    except ValueError as error:
        raise InvalidJws(str(error)) from None
    except ProblemError:
        raise InvalidJws("the header is not strict JSON") from None
    if not isinstance(header, dict):
        raise InvalidJws("the header is not a JSON object")
    return header
