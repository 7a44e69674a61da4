"""Goal: one alias has one spelling, no name is shown whole, and legal identifiers are checked by their own standards.
Method: tables of published examples; Hypothesis over any text.
"""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wallet.domain.aliases import AliasKindName, mask_name, normalise
from wallet.domain.corporate import is_lei, is_social_credit_code, social_credit_check


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("+8613800138000", "+8613800138000"),
        (" +86 138-0013-8000 ", "+8613800138000"),
        ("008613800138000", "+8613800138000"),
        ("＋８６１３８００１３８０００", "+8613800138000"),
        ("+1 (415) 555.2671", "+14155552671"),
        ("13800138000", None),
        ("+0138001380", None),
        ("+86138001380001234", None),
        ("+86138x0138000", None),
        ("+", None),
        ("", None),
        ("+8613800138000\n+8613800138001", None),
        ("+٨٦١٣٨٠٠١٣٨٠٠٠", None),
    ],
)
def test_phone(text: str, expected: str | None) -> None:
    assert normalise("phone", text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Zhang.San@Example.COM", "zhang.san@example.com"),
        (" a+b@mail.example.cn ", "a+b@mail.example.cn"),
        ("ａ@example.com", "a@example.com"),
        ("a@b", None),
        ("a@@example.com", None),
        ("a b@example.com", None),
        (".a@example.com", None),
        ("a..b@example.com", None),
        ("a@-example.com", None),
        ("a@example.com\nbcc:x@y.cn", None),
        (f"{'a' * 65}@example.com", None),
        (f"a@{'b' * 64}.com", None),
        (f"a@{'b.' * 130}com", None),
    ],
)
def test_email(text: str, expected: str | None) -> None:
    assert normalise("email", text) == expected


@given(st.sampled_from(["phone", "email"]), st.text(max_size=60))
def test_normalising_again_changes_nothing(kind: AliasKindName, text: str) -> None:
    once = normalise(kind, text)
    if once is not None:
        assert normalise(kind, once) == once
        assert once.isascii() and once == once.lower() and not any(c.isspace() for c in once)


@given(
    st.from_regex(r"\+[1-9][0-9]{6,14}", fullmatch=True),
    st.lists(st.tuples(st.integers(1, 15), st.sampled_from(" -.()/\u00a0")), max_size=5),
)
def test_every_way_of_writing_a_number_is_one_alias(number: str, separators: list[tuple[int, str]]) -> None:
    written = number
    for place, separator in separators:
        written = written[: min(place, len(written))] + separator + written[min(place, len(written)) :]
    assert normalise("phone", written) == number
    assert normalise("phone", "00" + written[1:]) == number


@given(st.emails())
def test_case_of_an_address_does_not_matter(address: str) -> None:
    assert normalise("email", address) == normalise("email", address.upper()) == normalise("email", address.lower())


@pytest.mark.parametrize(
    ("name", "masked"),
    [
        ("张三", "张*"),
        ("欧阳娜娜", "欧*"),
        ("Jane Smith", "J*** S***"),
        ("  jane   smith ", "j*** s***"),
        ("J Smith", "* S***"),
        ("张", "*"),
        ("", "*"),
        ("A B C D E F", "* * * *"),
        ("张*", "*"),
        ("(x)", "*"),
    ],
)
def test_mask(name: str, masked: str) -> None:
    assert mask_name(name) == masked


@given(st.text(max_size=40))
def test_no_name_is_shown_whole(name: str) -> None:
    masked = mask_name(name)
    assert masked.strip(" ")
    assert name.strip() != masked or masked == "*"
    for word in masked.split():
        assert len(word.rstrip("*")) <= 1


@given(st.text(alphabet=string.ascii_letters, min_size=2, max_size=30))
def test_mask_says_nothing_of_the_length(name: str) -> None:
    assert mask_name(name) == name[0] + "***"


# --- legal identifiers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lei", ["5493001KJTIIGC8Y1R12", "529900T8BM49AURSDO55"])
def test_published_leis_are_valid_and_no_single_mistake_is(lei: str) -> None:
    assert is_lei(lei)
    for place, character in enumerate(lei):
        for other in string.digits if character.isdigit() else string.ascii_uppercase:
            if other != character:
                assert not is_lei(lei[:place] + other + lei[place + 1 :])
    for place in range(17):
        swapped = lei[:place] + lei[place + 1] + lei[place] + lei[place + 2 :]
        is_one_kind = lei[place].isdigit() == lei[place + 1].isdigit()  # a digit for a letter shifts the rest
        assert swapped == lei or not is_one_kind or not is_lei(swapped)


@pytest.mark.parametrize("code", ["91350100M000100Y43", "91440300708461136T"])
def test_published_credit_codes_are_valid_and_no_single_mistake_is(code: str) -> None:
    assert is_social_credit_code(code)
    alphabet = "0123456789ABCDEFGHJKLMNPQRTUWXY"
    for place, character in enumerate(code):
        for other in alphabet:
            if other != character:
                assert not is_social_credit_code(code[:place] + other + code[place + 1 :])


@given(st.text(max_size=20))
def test_any_text_is_an_answer(text: str) -> None:
    assert is_lei(text) in (True, False)
    assert is_social_credit_code(text) in (True, False)


@given(st.from_regex(r"91[0-9]{6}[0-9A-HJ-NPQRTUWXY]{9}", fullmatch=True))
def test_check_character_completes_a_code(first: str) -> None:
    assert is_social_credit_code(first + social_credit_check(first))
