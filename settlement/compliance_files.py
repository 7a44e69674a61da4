"""The compliance policy in a file, and beside it the lists that it names; the hash key and the officers in files too.

The version that decisions record is the file's own version and the first twelve digits of its SHA-256: two files that
call themselves by one version are still told apart.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from settlement.domain.compliance import Policy, ScreeningList

POLICY_BYTES_MAX = 256 * 1024
LIST_BYTES_MAX = 64 * 1024 * 1024
HASH_KEY_BYTES_MIN = 32
DEMONSTRATION = Path(__file__).parent / "compliance" / "demonstration.toml"

Found = TypeVar("Found", bound=BaseModel)


class PolicyInvalid(ValueError):
    """The message has one line a fault, each naming the file and the place in it."""


def load_policy(path: Path) -> tuple[Policy, list[ScreeningList]]:
    """Raises: PolicyInvalid."""
    policy = _load(path, Policy, POLICY_BYTES_MAX)
    return policy, [_load(path.parent / name, ScreeningList, LIST_BYTES_MAX) for name in policy.lists]


def load_hash_key(path: Path) -> bytes:
    """At least 64 hexadecimal digits in a file that only its owner reads. Raises: PolicyInvalid."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            if mode & 0o077:
                raise PolicyInvalid(f"{path} can be read by others (mode {mode:04o}): run `chmod 600 {path}`")
            key = bytes.fromhex(file.read(1_024).decode("ascii").strip())
    except OSError as error:
        raise PolicyInvalid(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        if isinstance(error, PolicyInvalid):
            raise
        raise PolicyInvalid(f"{path}: not hexadecimal digits") from None
    if len(key) < HASH_KEY_BYTES_MIN:
        raise PolicyInvalid(f"{path}: fewer than {2 * HASH_KEY_BYTES_MIN} hexadecimal digits")
    return key


def _load(path: Path, model: type[Found], bytes_max: int) -> Found:
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise PolicyInvalid(f"{path.name}: cannot be read: {error.strerror}") from None
    if len(data) > bytes_max:
        raise PolicyInvalid(f"{path.name}: larger than {bytes_max} bytes")
    try:
        found = model.model_validate(tomllib.loads(data.decode("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PolicyInvalid(f"{path.name}: no TOML: {error}") from None
    except ValidationError as error:
        items = error.errors(include_url=False, include_context=False, include_input=False)
        lines = [f"{path.name}: {'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in items]
        raise PolicyInvalid("\n".join(lines[:20])) from None
    version = f"{getattr(found, 'version', '')}@{hashlib.sha256(data).hexdigest()[:12]}"
    return found.model_copy(update={"version": version})
