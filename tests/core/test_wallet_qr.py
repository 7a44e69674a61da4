"""Goal: a code says what was put into it, to the letter, and nothing that is not a code of ours is ever taken for one.
Method: Hypothesis round trips; a fuzzer over text, bytes and small changes of good codes; the examples of the standard;
the symbols of segno read by a small reader written from ISO/IEC 18004.
"""

from __future__ import annotations

import contextlib
import string
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest
import segno
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel import ids
from kernel.crypto.keys import PrivateKey
from kernel.ids import AccountNumber, ParticipantId
from tests.qr_reader import read_png, read_symbol
from wallet.domain import qr
from wallet.domain.qr import (
    MerchantCode,
    PayerCode,
    QrRefused,
    encode_merchant,
    encode_payer,
    is_signed_by,
    parse_merchant,
    parse_payer,
)
from wallet.qr_images import render

KEYS = {suite: PrivateKey.generate(suite) for suite in ("ed25519", "ecdsa-p256-sha256")}
SHOWN = st.text(string.ascii_letters + string.digits + " .,-'&/", min_size=1, max_size=25).filter(
    lambda text: text == text.strip()
)
MOMENTS = st.integers(0, 2**32 - 1).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
UUID7S = st.integers(0, 2**48 - 1).map(ids.uuid7_at)
INSTITUTIONS = st.from_regex(r"[A-Z0-9]{4}[A-Z]{2}[A-Z0-9]{2}([A-Z0-9]{3})?", fullmatch=True).map(ParticipantId)
ACCOUNTS = st.integers(1, ids.ACCOUNT_NUMBER_MAX).map(AccountNumber)


@st.composite
def merchant_codes(draw: st.DrawFn) -> MerchantCode:
    is_dynamic = draw(st.booleans())
    return MerchantCode(
        institution=draw(INSTITUTIONS),
        account=draw(ACCOUNTS),
        currency=draw(st.sampled_from(["CNY", "AED", "JPY", "KWD"])),
        name=draw(SHOWN),
        city=draw(SHOWN.filter(lambda text: len(text) <= 15)),
        country=draw(st.sampled_from(["CN", "AE"])),
        category=draw(st.from_regex("[0-9]{4}", fullmatch=True)),
        amount_minor=draw(st.none() | st.integers(1, 10**10 - 1)),
        request=draw(UUID7S) if is_dynamic else None,
        valid_until=draw(MOMENTS) if is_dynamic else None,
        reference=draw(st.none() | SHOWN),
    )


@given(merchant_codes(), st.sampled_from(sorted(KEYS)))
def test_payees_code_comes_back_whole_and_signed(code: MerchantCode, suite: str) -> None:
    text = encode_merchant(code, key=KEYS[suite])
    read = parse_merchant(text)
    assert replace(read, signature=None) == code
    assert encode_merchant(read) == text
    assert is_signed_by(text, KEYS[suite].public)
    assert not is_signed_by(text, PrivateKey.generate().public)
    assert len(text) <= qr.MERCHANT_CHARACTERS_MAX


@given(INSTITUTIONS, UUID7S, ACCOUNTS, st.integers(1, 2**63 - 1), MOMENTS, st.binary(min_size=64, max_size=64))
def test_payers_code_comes_back_whole(
    institution: ParticipantId, hold: UUID, account: AccountNumber, cap: int, until: datetime, signature: bytes
) -> None:
    code = PayerCode(institution, hold, account, cap, until, signature)
    text = encode_payer(code)
    assert parse_payer(text) == code
    assert len(text) == 185


@settings(max_examples=400)
@given(st.text(max_size=600) | st.binary(max_size=600).map(lambda data: data.decode("latin-1")))
def test_whatever_text_is_refused_clearly_or_is_a_code(text: str) -> None:
    for parse in (parse_merchant, parse_payer):
        with contextlib.suppress(QrRefused):  # anything else fails the test
            assert parse(text).institution


@settings(max_examples=150)
@given(merchant_codes(), st.data())
def test_a_changed_payees_code_is_refused_even_with_the_right_checksum(code: MerchantCode, data: st.DataObject) -> None:
    """What a forger can do: change a character, cut, double, and make the checksum fit."""
    good = encode_merchant(code, key=KEYS["ed25519"])
    at = data.draw(st.integers(0, len(good) - 9))
    change = data.draw(st.sampled_from(["set", "cut", "double", "insert"]))
    character = data.draw(st.characters(codec="ascii"))
    body = good[:-4]
    if change == "set":
        body = body[:at] + character + body[at + 1 :]
    elif change == "cut":
        body = body[:at] + body[at + 1 :]
    elif change == "insert":
        body = body[:at] + character + body[at:]
    else:
        body = body[:at] + body[at : at + 8] + body[at:]
    text = body + qr._checksum(body)
    if text == good:
        return
    try:
        is_good = is_signed_by(text, KEYS["ed25519"].public)
    except QrRefused:
        return
    assert not is_good


@given(st.integers(0, 184), st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"))
def test_a_changed_payers_code_is_refused(at: int, character: str) -> None:
    good = encode_payer(PayerCode(ParticipantId("BKCHCNBJ"), ids.uuid7_at(1), AccountNumber(7), 5, T, bytes(64)))
    changed = good[:at] + character + good[at + 1 :]
    if changed != good:
        with pytest.raises(QrRefused):
            parse_payer(changed)


T = datetime(2026, 6, 15, 4, tzinfo=UTC)
STATIC = MerchantCode(ParticipantId("BKCHCNBJ"), AccountNumber(17), "CNY", "Teahouse", "Beijing", "CN")


@pytest.mark.parametrize(
    "code",
    [
        replace(STATIC, name="a" * 26),
        replace(STATIC, name=" a"),
        replace(STATIC, name="茶馆"),
        replace(STATIC, name=""),
        replace(STATIC, city="b" * 16),
        replace(STATIC, country="China"),
        replace(STATIC, currency="XAU"),
        replace(STATIC, amount_minor=0),
        replace(STATIC, amount_minor=10**14),
        replace(STATIC, reference="c" * 26),
        replace(STATIC, valid_until=T),
        replace(STATIC, request=ids.uuid7_at(1)),
        replace(STATIC, request=ids.uuid7_at(1), valid_until=T),
        replace(STATIC, request=ids.uuid7_at(1), valid_until=T.replace(microsecond=1), signature=bytes(64)),
        replace(STATIC, category="12"),
    ],
)
def test_what_a_code_cannot_hold_is_refused_before_it_is_printed(code: MerchantCode) -> None:
    with pytest.raises(QrRefused):
        encode_merchant(code)


def test_fields_and_checksum_are_those_of_the_standard() -> None:
    """EMVCo MPM: 00 first, 63 last; CRC-16/CCITT-FALSE, whose check value for 123456789 is 29B1."""
    assert qr._checksum("123456789") == "29B1"
    text = encode_merchant(replace(STATIC, amount_minor=1250))
    assert text.startswith("00020101021126")
    assert "5303156" in text and "540512.50" in text and "5802CN5908Teahouse6007Beijing" in text
    assert text[-8:-4] == "6304"


def test_other_networks_may_stand_beside_ours() -> None:
    text = encode_merchant(STATIC)
    mine = text[12 : text.index("5204")]
    other = "2612" + "0008otherpay"
    beside = text[:12] + other + "27" + mine[2:] + text[12 + len(mine) : -4]
    assert parse_merchant(beside + qr._checksum(beside)).account == STATIC.account
    twice = text[:12] + mine + "27" + mine[2:] + text[12 + len(mine) : -4]
    with pytest.raises(QrRefused, match="exactly one"):
        parse_merchant(twice + qr._checksum(twice))


@pytest.mark.parametrize("scale", [1, 4])
def test_symbols_are_read_back_by_an_independent_reader(scale: int) -> None:
    dynamic = replace(STATIC, request=ids.uuid7_at(1), valid_until=T, amount_minor=1250, reference="ORDER 7")
    payer = PayerCode(ParticipantId("BKCHCNBJ"), ids.uuid7_at(1), AccountNumber(7), 5, T, bytes(range(64)))
    for text in (
        encode_merchant(STATIC),
        encode_merchant(STATIC, key=KEYS["ed25519"]),
        encode_merchant(dynamic, key=KEYS["ecdsa-p256-sha256"]),
        encode_payer(payer),
    ):
        symbol = segno.make(text, error="m", micro=False, boost_error=False)
        assert read_symbol([list(row) for row in symbol.matrix]) == text
        assert read_png(render(text, image="png", scale=scale), scale=scale) == text
        picture = render(text, image="svg", scale=scale)
        assert picture.startswith(b"<?xml") and b"<path" in picture
