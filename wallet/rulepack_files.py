"""Rule packs in files: `NAME.toml`, and beside it `NAME.jws`, with which the rule-pack authority has signed it.

The signature is a compact JWS (EdDSA, typ `jiaozi-rule-pack+jws`) over the pack's name, its day of coming into force
and the SHA-256 of the file, byte for byte: a cap, a mark or a comment that is not the authority's is not loaded. Whose
signature counts is a setting; by default it is the demonstration key beside the packs, whose private part nobody keeps.
"""

from __future__ import annotations

import hashlib
import tomllib
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from kernel import strict_json
from kernel.crypto import jws
from kernel.crypto.keys import KeyRefused, PrivateKey, PublicKey, Suite
from kernel.errors import ProblemError
from wallet.domain.rules import RulePack

RULE_PACK_TYP = "jiaozi-rule-pack+jws"
RULE_PACK_BYTES_MAX = 64 * 1024
SIGNATURE_BYTES_MAX = 4_096
DIRECTORY = Path(__file__).parent / "rulepacks"
DEMONSTRATION_AUTHORITY = DIRECTORY / "demonstration-authority.jwk"


class RulePackInvalid(ValueError):
    """The message has one line a fault, each naming the file and the place in it."""


def rule_pack_names(directory: Path = DIRECTORY) -> list[str]:
    return sorted(path.stem for path in directory.glob("*.toml"))


def load_rule_pack(name: str, *, authority: PublicKey | None = None, directory: Path = DIRECTORY) -> RulePack:
    """The validated pack, signed by `authority` (by default the demonstration's). Raises: LookupError for an unknown
    name, RulePackInvalid."""
    if name not in rule_pack_names(directory):
        known = ", ".join(rule_pack_names(directory))
        raise LookupError(f"there is no rule pack {name!r}; known: {known}")
    path = directory / f"{name}.toml"
    pack = read_rule_pack(path)
    verify_rule_pack(path, pack, authority or demonstration_authority())
    return pack


def read_rule_pack(path: Path) -> RulePack:
    """The pack in a file, whoever wrote it. Raises: RulePackInvalid."""
    data = _read(path, RULE_PACK_BYTES_MAX)
    try:
        pack = RulePack.model_validate(tomllib.loads(data.decode("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RulePackInvalid(f"{path.name}: no TOML: {error}") from None
    except ValidationError as error:
        raise RulePackInvalid("\n".join(_faults(path.name, error))) from None
    if path.stem != pack.name:
        raise RulePackInvalid(f"{path.name}: name: holds the pack {pack.name}; name the file after it")
    return pack


def sign_rule_pack(path: Path, key: PrivateKey) -> Path:
    """Writes the signature beside the file. Raises: RulePackInvalid, also for a key that is not Ed25519; OSError."""
    if key.suite is not Suite.ED25519:
        raise RulePackInvalid("a rule-pack authority signs with an Ed25519 key")
    pack = read_rule_pack(path)
    beside = path.with_suffix(".jws")
    beside.write_text(jws.sign(_signed_payload(path, pack), key, typ=RULE_PACK_TYP) + "\n", encoding="ascii")
    return beside


def verify_rule_pack(path: Path, pack: RulePack, authority: PublicKey) -> None:
    """Raises: RulePackInvalid unless the authority has signed the file as it is."""
    beside = path.with_suffix(".jws")
    if not beside.exists():
        raise RulePackInvalid(f"{path.name}: not signed: {beside.name} is missing")
    try:
        token = _read(beside, SIGNATURE_BYTES_MAX).decode("ascii").strip()
        payload = jws.verify(token, authority, typ=RULE_PACK_TYP)
    except (jws.InvalidJws, UnicodeDecodeError) as error:
        raise RulePackInvalid(f"{beside.name}: not the rule-pack authority's signature: {error}") from None
    if payload != _signed_payload(path, pack):
        raise RulePackInvalid(f"{path.name}: changed after it was signed")


@lru_cache(maxsize=1)
def demonstration_authority() -> PublicKey:
    return read_authority(DEMONSTRATION_AUTHORITY)


def read_authority(path: Path | None) -> PublicKey:
    """The key in a file that holds one public JWK; None = the demonstration's. Raises: RulePackInvalid."""
    if path is None:
        return demonstration_authority()
    try:
        jwk = strict_json.loads(_read(path, SIGNATURE_BYTES_MAX))
        if not isinstance(jwk, dict) or jwk.get("crv") != "Ed25519":
            raise RulePackInvalid(f"{path.name}: no Ed25519 JWK")
        if "d" in jwk:
            raise RulePackInvalid(f"{path.name}: holds a private key; give the public JWK")
        return PublicKey.from_jwk({name: str(jwk[name]) for name in ("kty", "crv", "x") if name in jwk})
    except (ProblemError, KeyRefused) as error:
        raise RulePackInvalid(f"{path.name}: {error}") from None


def _signed_payload(path: Path, pack: RulePack) -> bytes:
    digest = hashlib.sha256(_read(path, RULE_PACK_BYTES_MAX)).hexdigest()
    return jws.canonical_json(
        {"name": pack.name, "in_force_from": pack.in_force_from.isoformat(), "file_sha256": digest}
    )


def _read(path: Path, bytes_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise RulePackInvalid(f"{path.name}: cannot be read: {error.strerror}") from None
    if len(data) > bytes_max:
        raise RulePackInvalid(f"{path.name}: larger than {bytes_max} bytes")
    return data


def _faults(name: str, error: ValidationError) -> list[str]:
    faults = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        place = ".".join(str(part) for part in item["loc"])
        faults.append(f"{name}: {place + ': ' if place else ''}{item['msg'].removeprefix('Value error, ')}")
    return faults
