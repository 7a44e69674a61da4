"""Positions before and after, as an SVG: bars from zero, the one above before, the one below after."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from kernel.money import Currency, format_minor

ROWS_MAX = 300
_ROW, _LEFT, _WIDTH, _RIGHT = 30, 170, 420, 200


def positions_svg(positions: Sequence[tuple[str, str, int, int]], *, title: str) -> str:
    """(participant, currency, before, after), each in minor units. Bars of one currency share a scale."""
    shown = positions[:ROWS_MAX]
    largest: dict[str, int] = {}
    for _, currency, before, after in shown:
        largest[currency] = max(largest.get(currency, 1), before, after)
    height = 48 + _ROW * len(shown) + (24 if len(positions) > len(shown) else 0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + _RIGHT}" height="{height}"'
        ' font-family="sans-serif" font-size="12" role="img">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="8" y="20" font-size="14" fill="#1a1a1a">{escape(title)}</text>',
        f'<text x="8" y="38" fill="#6b7280">above: before</text><text x="{_LEFT}" y="38" fill="#1d4ed8">below: after'
        "</text>",
    ]
    for number, (participant, currency, before, after) in enumerate(shown):
        top = 48 + _ROW * number
        amounts = " to ".join(format_minor(amount, Currency.of(currency)) for amount in (before, after))
        parts += [
            f'<text x="8" y="{top + 16}" fill="#1a1a1a">{escape(participant)} {escape(currency)}</text>',
            _bar(top + 3, before * _WIDTH // largest[currency], "#9ca3af"),
            _bar(top + 14, after * _WIDTH // largest[currency], "#1d4ed8"),
            f'<text x="{_LEFT + _WIDTH + 8}" y="{top + 16}" fill="#1a1a1a">{escape(amounts)}</text>',
        ]
    if len(positions) > len(shown):
        parts.append(f'<text x="8" y="{height - 8}" fill="#6b7280">and {len(positions) - len(shown)} more</text>')
    return "\n".join([*parts, "</svg>"])


def _bar(top: int, width: int, colour: str) -> str:
    return f'<rect x="{_LEFT}" y="{top}" width="{max(1, width)}" height="9" fill="{colour}"/>'
