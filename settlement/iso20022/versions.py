"""Which messages this bridge reads and writes, in which versions. The schemas are in `xsd/`; a test holds both equal.

What differs between the versions of a message lies, for all that is read or written here, in the namespace alone: the
elements used are the same in each, which `tests/core/test_iso20022_versions.py` shows against every schema.
"""

from __future__ import annotations

VERSIONS: dict[str, tuple[str, ...]] = {
    "pacs.008": ("pacs.008.001.08", "pacs.008.001.10", "pacs.008.001.12", "pacs.008.001.13"),
    "pacs.009": ("pacs.009.001.08", "pacs.009.001.10", "pacs.009.001.12"),
    "pacs.002": ("pacs.002.001.10", "pacs.002.001.12", "pacs.002.001.14", "pacs.002.001.15"),
    "camt.029": ("camt.029.001.09", "camt.029.001.12", "camt.029.001.13"),
    "camt.052": ("camt.052.001.08",),
    "camt.053": ("camt.053.001.08", "camt.053.001.10", "camt.053.001.12"),
    "camt.054": ("camt.054.001.08", "camt.054.001.10", "camt.054.001.12"),
    "camt.056": ("camt.056.001.08", "camt.056.001.10", "camt.056.001.11"),
    "head.001": ("head.001.001.01", "head.001.001.02", "head.001.001.03", "head.001.001.04"),
}
"""Oldest first."""

UNVALIDATED: dict[str, tuple[str, ...]] = {
    "camt.053": tuple(f"camt.053.001.{number:02}" for number in range(2, 8)),
}
"""Read from others without a schema, by the checks of `unvalidated`; never written."""

DEFAULT = {message: versions[0] for message, versions in VERSIONS.items()}
"""What is written unless another version is asked for: the 2019 set."""

CREDIT_TRANSFERS = VERSIONS["pacs.008"] + VERSIONS["pacs.009"]
ALL = tuple(version for versions in VERSIONS.values() for version in versions)


def require(message: str, version: str) -> str:
    """The version, if it is one of `message`. Raises ValueError naming those there are."""
    if version not in VERSIONS[message]:
        raise ValueError(f"{version[:40]!r} is not one of {', '.join(VERSIONS[message])}")
    return version


def kind_of(version: str) -> str:
    """`pacs.009.001.08` -> `pacs.009`."""
    return version[:8]
