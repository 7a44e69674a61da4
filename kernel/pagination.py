"""Keyset pagination: a cursor is a position in a stable order, bound to the filters it was made with.

A cursor is opaque but not secret and not a capability: it holds only values the client has just been shown, and every
page is authorised anew. Bound to its filters, it cannot silently continue another listing (a known defect class of the
field: cursors that lose their filters).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Generic, NoReturn, TypeVar

from fastapi import Query
from pydantic import BaseModel, ConfigDict

from kernel import strict_json
from kernel.crypto.jws import canonical_json
from kernel.crypto.keys import from_base64url, to_base64url
from kernel.errors import ProblemError, RequestRefusal
from kernel.limits import CURSOR_CHARACTERS_MAX, PAGE_ITEMS_DEFAULT, PAGE_ITEMS_MAX

T = TypeVar("T")

PageLimit = Annotated[int, Query(ge=1, le=PAGE_ITEMS_MAX, description="Items on a page at most.")]
"""Declare as `limit: PageLimit = PAGE_ITEMS_DEFAULT`."""
PageCursor = Annotated[
    str | None, Query(max_length=CURSOR_CHARACTERS_MAX, description="`next_cursor` of the page before, unchanged.")
]
"""Declare as `cursor: PageCursor = None`."""

__all__ = ["PAGE_ITEMS_DEFAULT", "PAGE_ITEMS_MAX", "Page", "PageCursor", "PageLimit", "decode", "encode"]

_DIGEST_BYTES = 12


class Page(BaseModel, Generic[T]):
    """One page of a listing, in its documented order."""

    model_config = ConfigDict(frozen=True)

    items: list[T]
    next_cursor: str | None
    """Absent (null) on the last page."""


def encode(position: Sequence[int | str], filters: Mapping[str, Any]) -> str:
    """The cursor after the item at `position` of the listing with `filters` (JSON values; None means absent)."""
    return to_base64url(_filter_digest(filters) + strict_json.dumps(list(position)))


def decode(cursor: str, filters: Mapping[str, Any], *, shape: Sequence[type] | None = None) -> tuple[int | str, ...]:
    """The position in `cursor`; `shape`, if given, is the expected types, e.g. `(int, str)`.

    Raises: ProblemError(VALIDATION_FAILED) when the cursor was made with other filters, or is not one of ours.
    """
    if len(cursor) > CURSOR_CHARACTERS_MAX:
        _refuse("the cursor is too long: pass next_cursor unchanged")
    try:
        data = from_base64url(cursor)
        position = strict_json.loads(data[_DIGEST_BYTES:])
    except (ValueError, ProblemError):
        _refuse("the cursor is damaged: pass next_cursor unchanged")
    if not isinstance(position, list) or not position or not all(type(key) in (int, str) for key in position):
        _refuse("the cursor is damaged: pass next_cursor unchanged")
    if data[:_DIGEST_BYTES] != _filter_digest(filters):
        _refuse("the cursor belongs to a listing with other filters: repeat them unchanged or start without a cursor")
    if shape is not None and [type(key) for key in position] != list(shape):
        _refuse("the cursor is damaged: pass next_cursor unchanged")
    if any(type(key) is int and not -(2**63) <= key < 2**63 for key in position):
        _refuse("the cursor is damaged: pass next_cursor unchanged")
    return tuple(position)


def _filter_digest(filters: Mapping[str, Any]) -> bytes:
    present = {name: value if isinstance(value, bool) else str(value) for name, value in filters.items()}
    present = {name: value for name, value in present.items() if filters[name] is not None}
    return hashlib.sha256(canonical_json(present)).digest()[:_DIGEST_BYTES]


def _refuse(detail: str) -> NoReturn:
    raise ProblemError(
        RequestRefusal.VALIDATION_FAILED, detail, errors=[{"pointer": "/query/cursor", "message": detail}]
    )
