"""Identifiers of legal entities: the LEI (ISO 17442) and the Chinese unified social credit code (GB 32100-2015)."""

from __future__ import annotations

import re

_LEI = re.compile(r"[A-Z0-9]{18}[0-9]{2}", re.ASCII)
_CREDIT_CODE_ALPHABET = "0123456789ABCDEFGHJKLMNPQRTUWXY"
"""31 characters: no I, O, S, V, Z. Source: GB 32100-2015 table 2."""
_CREDIT_CODE_WEIGHTS = tuple(pow(3, place, 31) for place in range(17))
"""3^(i-1) mod 31. Source: GB 32100-2015 section 5."""
_CREDIT_CODE = re.compile(rf"[{_CREDIT_CODE_ALPHABET}]{{2}}[0-9]{{6}}[{_CREDIT_CODE_ALPHABET}]{{10}}", re.ASCII)


def is_lei(text: str) -> bool:
    """20 characters whose last two are check digits by ISO 7064 MOD 97-10 (letters count 10 to 35)."""
    return _LEI.fullmatch(text) is not None and int("".join(str(int(c, 36)) for c in text)) % 97 == 1


def is_social_credit_code(text: str) -> bool:
    """18 characters: registration department, kind, 6 digits of place, 9 of the organisation code, 1 check character.

    The organisation code's own check character (GB 11714) is not tested: older codes exist that break it.
    """
    if _CREDIT_CODE.fullmatch(text) is None:
        return False
    return text[17] == social_credit_check(text[:17])


def social_credit_check(first_seventeen: str) -> str:
    """The 18th character. Raises ValueError for a character outside the alphabet."""
    total = sum(
        _CREDIT_CODE_ALPHABET.index(character) * weight
        for character, weight in zip(first_seventeen, _CREDIT_CODE_WEIGHTS, strict=True)
    )
    return _CREDIT_CODE_ALPHABET[(31 - total % 31) % 31]
