"""QR symbols as PNG and SVG (ISO/IEC 18004, by segno)."""

from __future__ import annotations

import io
from typing import Literal

import segno

ImageFormat = Literal["png", "svg"]
MEDIA_TYPES = {"png": "image/png", "svg": "image/svg+xml"}


def render(text: str, *, image: ImageFormat, scale: int) -> bytes:
    """The symbol of a code, with a quiet zone of four modules, `scale` pixels a module, error correction M (15 %)."""
    symbol = segno.make(text, error="m", micro=False, boost_error=False)
    out = io.BytesIO()
    if image == "svg":
        symbol.save(out, kind="svg", scale=scale, border=4, xmldecl=True, nl=False)
    else:
        symbol.save(out, kind="png", scale=scale, border=4)
    return out.getvalue()
