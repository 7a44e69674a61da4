"""Goal: nobody who is listed passes, nobody else is stopped by chance, and a quota is counted to the last fraction.

Method: tables over a small list and policy; properties for the LEI's check digits and for quotas summed as fractions.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from kernel.client import ServiceClient
from kernel.ids import AccountNumber, ParticipantId
from kernel.money import Currency, Money
from settlement.compliance_files import DEMONSTRATION, PolicyInvalid, load_hash_key, load_policy
from settlement.domain.compliance import (
    ComplianceData,
    ListScreen,
    PartyKind,
    Policy,
    QuotaClaim,
    QuotaDirection,
    Screening,
    ScreeningList,
    Subject,
    Verdict,
    check_data,
    combine,
    decide_quota,
    find_fault,
    is_lei,
    name_tokens,
    quota_claim,
    verdicts_by_institution,
)
from settlement.domain.escrow import LegTerms
from settlement.domain.refusals import SettlementRefusal as R
from settlement.usecases.compliance import ResidentHasher
from settlement.usecases.screening_http import HttpScreen

CNY, AED, USD, JPY = (Currency.of(code) for code in ("CNY", "AED", "USD", "JPY"))
A, B = ParticipantId("AAAACNBJ"), ParticipantId("BBBBAEAD")
POLICY, LISTS = load_policy(DEMONSTRATION)
TODAY = date(2026, 11, 23)
NOW = datetime(2026, 11, 23, 3, tzinfo=UTC)
PERSON = ComplianceData(
    debtor_kind=PartyKind.PERSON, debtor_name="Wang Xiaoming", debtor_country="CN",
    debtor_resident_id="11010519491231002X",
    creditor_kind=PartyKind.ORGANISATION, creditor_name="Gulf School", creditor_country="AE", purpose="STDY",
)  # fmt: skip
COMPANY = replace(PERSON, debtor_kind=PartyKind.ORGANISATION, debtor_resident_id="", debtor_name="Acme Ltd")
LEI = "5493001KJTIIGC8Y1R12"


def legs(paid: Money, received: Money) -> tuple[LegTerms, ...]:
    return (
        LegTerms("a", A, B, AccountNumber(1), AccountNumber(2), paid),
        LegTerms("b", B, A, AccountNumber(3), AccountNumber(4), received),
    )


def subject(data: ComplianceData | None = PERSON, paid: Money | None = None, received: Money | None = None) -> Subject:
    terms = legs(paid or Money(71_000, CNY), received or Money(36_725, AED))
    return Subject(uuid4(), uuid4(), A, B, terms, TODAY, data)


# --- lists


LIST = ScreeningList.model_validate(
    {
        "name": "test-list", "version": "1", "valid_from": "2026-01-01", "source": "test",
        "entries": [
            {"id": "N1", "kind": "name", "values": ["Ernst Stavro Blofeld", "Blofeld, Ernst S."], "action": "refuse"},
            {"id": "N2", "kind": "name", "values": ["Goldfinger"], "action": "refuse"},
            {"id": "B1", "kind": "bic", "values": ["BADBRUMM"], "action": "refuse"},
            {"id": "L1", "kind": "lei", "values": [LEI], "action": "review"},
            {"id": "C1", "kind": "country", "values": ["XZ"], "action": "refuse"},
        ],
    }
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "verdict", "entry"),
    [
        ({}, Verdict.PASS, ""),
        ({"debtor_name": "ernst stavro BLOFELD"}, Verdict.REFUSE, "N1"),
        ({"creditor_name": "Blofeld, Ernst Stavro"}, Verdict.REFUSE, "N1"),
        ({"debtor_name": "Érnst  Stavro-Blöfeld"}, Verdict.REFUSE, "N1"),
        ({"debtor_name": "Ｅｒｎｓｔ Ｓｔａｖｒｏ Ｂｌｏｆｅｌｄ"}, Verdict.REFUSE, "N1"),
        ({"debtor_name": "Dr Ernst Stavro Blofeld & Sons"}, Verdict.REVIEW, "N1"),
        ({"debtor_name": "Ernst Blofeld"}, Verdict.PASS, ""),  # a word is missing: another name
        ({"debtor_name": "Goldfinger"}, Verdict.REFUSE, "N2"),
        ({"debtor_name": "Goldfinger Jewellers"}, Verdict.PASS, ""),  # one common word is no name
        ({"debtor_lei": LEI}, Verdict.REVIEW, "L1"),
        ({"debtor_country": "XZ"}, Verdict.REFUSE, "C1"),
        ({"creditor_country": "XZ"}, Verdict.REFUSE, "C1"),
        ({"debtor_name": ""}, Verdict.PASS, ""),
    ],
)
def test_lists_match_exactly_and_normalised(changes: dict[str, str], verdict: Verdict, entry: str) -> None:
    (found,) = ListScreen([LIST]).screen([subject(replace(PERSON, **changes))], on=TODAY)
    assert found.verdict is verdict
    assert f"entry {entry} of" in found.reason if entry else found.reason == ""
    assert found.version == "test-list 1"
    assert "Blofeld" not in found.reason  # reasons name the entry and never the person


@pytest.mark.parametrize("bic", ["BADBRUMM", "BADBRUMMXXX", "GOODXZMM"])
def test_institutions_are_screened_whether_or_not_they_are_a_customers(bic: str) -> None:
    first, second = subject(None), subject(None)
    as_debtor = replace(first, debtor=bic)
    as_third = replace(second, legs=(*second.legs, replace(second.legs[0], payer=ParticipantId(bic))))
    for found in ListScreen([LIST]).screen([as_debtor, as_third], on=TODAY):
        assert found.verdict is Verdict.REFUSE


def test_every_institution_of_the_legs_has_a_verdict_of_its_own() -> None:
    whole = subject(PERSON)
    third = ParticipantId("THRDUS33")
    payment = replace(whole, legs=(*whole.legs, replace(whole.legs[0], payer=third)))
    passed, silent = Screening(Verdict.PASS, "", "x", {}), Screening(Verdict.REVIEW, "no answer")
    of_third = Screening(Verdict.REFUSE, "r", "y", {third: Verdict.REFUSE})
    assert verdicts_by_institution(payment, [passed, of_third]) == {
        payment.debtor: Verdict.PASS, payment.creditor: Verdict.PASS, third: Verdict.REFUSE,
    }  # fmt: skip
    # A screen that judges the whole judges everybody in it.
    assert set(verdicts_by_institution(payment, [passed, silent]).values()) == {Verdict.REVIEW}
    assert set(verdicts_by_institution(payment, []).values()) == {Verdict.PASS}


def test_the_newest_version_in_force_counts() -> None:
    newer = LIST.model_copy(update={"version": "2", "valid_from": date(2026, 12, 1), "entries": ()})
    screen = ListScreen([newer, LIST])
    listed = subject(replace(PERSON, debtor_name="Goldfinger"))
    assert screen.screen([listed], on=date(2026, 11, 30))[0] == Screening(
        Verdict.REFUSE, "debtor's name of entry N2 of test-list 1", "test-list 1", {listed.debtor: Verdict.REFUSE}
    )
    assert screen.screen([listed], on=date(2026, 12, 1))[0] == Screening(Verdict.PASS, "", "test-list 2", {})
    with pytest.raises(ValueError, match="two versions"):
        ListScreen([LIST, LIST])


def test_the_strongest_answer_counts() -> None:
    answers = [
        Screening(Verdict.PASS, "", "x 1"),
        Screening(Verdict.REVIEW, "b", "y 2"),
        Screening(Verdict.REVIEW, "c"),
    ]
    assert combine(answers) == Screening(Verdict.REVIEW, "b; c", "x 1, y 2")
    assert combine([*answers, Screening(Verdict.REFUSE, "d")]).verdict is Verdict.REFUSE


@pytest.mark.parametrize(
    "entry",
    [
        {"id": "1", "kind": "bic", "values": ["bad"], "action": "refuse"},
        {"id": "1", "kind": "name", "values": ["--"], "action": "refuse"},
        {"id": "1", "kind": "country", "values": ["China"], "action": "refuse"},
        {"id": "1", "kind": "lei", "values": [LEI], "action": "pass"},
    ],
)
def test_an_entry_that_could_never_match_is_not_taken(entry: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ScreeningList.model_validate(LIST.model_dump() | {"entries": [entry]})


@pytest.mark.parametrize("hidden", ["\u00ad", "\u200b", "\u200d", "\u2060", "\ufeff"])
def test_what_nobody_sees_in_a_name_hides_nobody(hidden: str) -> None:
    assert name_tokens(f"Jo{hidden}hn Smi{hidden}th") == name_tokens("John Smith")


@given(st.text(max_size=60))
@settings(max_examples=50, deadline=None)
def test_a_name_is_one_name_however_its_words_are_ordered_and_cased(text: str) -> None:
    tokens = name_tokens(text)
    assert name_tokens(" ".join(reversed(tokens))) == tokens


# --- the external service


def http_screen(handler: Any) -> HttpScreen:
    client = ServiceClient("http://screen.test", transport=httpx.MockTransport(handler), retries_max=0)
    return HttpScreen("http://screen.test/v1/screen", timeout_seconds=2.0, client=client)


def answer_of(request: httpx.Request, change: Any = None) -> httpx.Response:
    items = [{"id": item["id"], "outcome": "pass"} for item in json.loads(request.content)["items"]]
    body = {"version": "v7", "items": items}
    return httpx.Response(200, json=body if change is None else change(body))


def test_the_service_is_asked_without_identity_numbers_and_its_pass_counts() -> None:
    seen: list[bytes] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.content)
        return answer_of(request)

    found = http_screen(handler).screen([subject(), subject()], on=TODAY)
    assert found == [Screening(Verdict.PASS, "", "service v7")] * 2
    assert b"11010519491231002X" not in seen[0]
    assert b"Wang Xiaoming" in seen[0]


def raise_timeout(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("too slow", request=request)


@pytest.mark.parametrize(
    "handler",
    [
        raise_timeout,
        lambda request: httpx.Response(503),
        lambda request: httpx.Response(404, json={}),
        lambda request: httpx.Response(302, headers={"location": "http://elsewhere.test"}),
        lambda request: httpx.Response(200, content=b"yes"),
        lambda request: httpx.Response(200, json=[]),
        lambda request: answer_of(request, lambda body: {"items": body["items"]}),
        lambda request: answer_of(request, lambda body: body | {"items": []}),
        lambda request: answer_of(request, lambda body: body | {"items": body["items"] * 2}),
        lambda request: answer_of(request, lambda body: body | {"items": [{"id": "other", "outcome": "pass"}]}),
        lambda request: answer_of(
            request, lambda body: body | {"items": [item | {"outcome": "ok"} for item in body["items"]]}
        ),
    ],
)
def test_no_usable_answer_is_a_review_and_never_a_pass(handler: Any) -> None:
    (found,) = http_screen(handler).screen([subject()], on=TODAY)
    assert found.verdict is Verdict.REVIEW
    assert found.reason


# --- data, purposes, LEI


@pytest.mark.parametrize(
    ("data", "paid", "refusal"),
    [
        (None, None, None),
        (PERSON, None, None),
        (replace(PERSON, purpose=""), None, R.PURPOSE_REQUIRED),
        (replace(PERSON, purpose="XXXX"), None, R.PURPOSE_NOT_ALLOWED),
        (replace(PERSON, purpose="study"), None, R.COMPLIANCE_DATA_INVALID),
        (replace(PERSON, debtor_country="China"), None, R.COMPLIANCE_DATA_INVALID),
        (replace(PERSON, debtor_country=""), None, R.COMPLIANCE_DATA_MISSING),
        (replace(PERSON, debtor_kind=PartyKind.UNKNOWN), None, R.COMPLIANCE_DATA_MISSING),
        (replace(PERSON, debtor_name="x" * 141), None, R.COMPLIANCE_DATA_INVALID),
        (COMPANY, Money(99_999_999, CNY), None),
        (COMPANY, Money(100_000_000, CNY), R.LEI_REQUIRED),
        (replace(COMPANY, debtor_lei=LEI), Money(100_000_000, CNY), None),
        (replace(COMPANY, debtor_lei="5493001KJTIIGC8Y1R13"), None, R.LEI_INVALID),
        (replace(COMPANY, creditor_lei="5493001KJTIIGC8Y1R21"), None, R.LEI_INVALID),
    ],
)
def test_the_policys_rules(data: ComplianceData | None, paid: Money | None, refusal: R | None) -> None:
    found = check_data(POLICY, subject(data, paid=paid))
    assert (None if found is None else found[0]) is refusal


def test_faults_and_reprs_never_quote_what_they_are_about() -> None:
    bad = replace(PERSON, debtor_resident_id="1234567890!")
    fault = find_fault(bad)
    assert fault is not None
    for text in (fault, repr(bad), repr(subject(bad))):
        assert "1234567890" not in text
        assert "Wang" not in text


@given(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=18, max_size=18), st.data())
@settings(max_examples=50, deadline=None)
def test_an_lei_has_one_pair_of_check_digits_and_no_slip_passes(body: str, data: st.DataObject) -> None:
    number = int("".join(str(int(letter, 36)) for letter in body + "00"))
    whole = f"{body}{98 - number % 97:02d}"
    assert is_lei(whole)
    place = data.draw(st.integers(0, 19))
    other = data.draw(st.sampled_from("0123456789"))
    assume(other != whole[place])
    slipped = whole[:place] + other + whole[place + 1 :]
    # A digit for a digit is always found; a digit for a letter shifts the number, and may rarely collide.
    if whole[place].isdigit():
        assert not is_lei(slipped)


# --- quota


def claim(data: ComplianceData = PERSON, at: datetime = NOW, **more: Any) -> Any:
    def find(base: Currency, counter: Currency) -> Fraction | None:
        return {("CNY", "USD"): Fraction(10, 71), ("JPY", "USD"): Fraction(1, 150)}.get((base.code, counter.code))

    return quota_claim(POLICY, subject(data, **more), at=at, find_rate=find)


@pytest.mark.parametrize(
    ("paid", "received", "direction", "cents"),
    [
        (Money(71_000, CNY), Money(36_725, AED), QuotaDirection.PURCHASE, Fraction(10_000)),
        (Money(1, CNY), Money(1, AED), QuotaDirection.PURCHASE, Fraction(10, 71)),  # not rounded
        (Money(71_100, CNY), Money(10_000, USD), QuotaDirection.PURCHASE, Fraction(10_000)),  # the dollar leg itself
        (Money(10_000, USD), Money(71_000, CNY), QuotaDirection.SALE, Fraction(10_000)),
        (Money(15_000, JPY), Money(71_000, CNY), QuotaDirection.SALE, Fraction(10_000)),  # no minor unit: 100 dollars
    ],
)
def test_a_residents_exchange_is_counted_exactly(
    paid: Money, received: Money, direction: QuotaDirection, cents: Fraction
) -> None:
    found = claim(paid=paid, received=received)
    assert (found.direction, found.year, found.counted_minor) == (direction, 2026, cents)


@pytest.mark.parametrize(
    ("data", "paid", "received"),
    [
        (COMPANY, None, None),
        (replace(PERSON, debtor_country="AE"), None, None),
        (PERSON, Money(1, USD), Money(3, AED)),  # no home money in it
    ],
)
def test_others_have_no_quota(data: ComplianceData, paid: Money | None, received: Money | None) -> None:
    assert claim(data, paid=paid, received=received) is None


def test_what_cannot_be_counted_is_refused() -> None:
    assert claim(replace(PERSON, debtor_resident_id=""))[0] is R.COMPLIANCE_DATA_MISSING
    only_from_pounds = quota_claim(POLICY, subject(), at=NOW, find_rate=lambda base, counter: None)
    assert isinstance(only_from_pounds, tuple)
    assert only_from_pounds[0] is R.QUOTA_RATE_MISSING


@pytest.mark.parametrize(
    ("at", "year"),
    [("2026-12-31T15:59:59", 2026), ("2026-12-31T16:00:00", 2027), ("2027-01-01T00:00:00", 2027)],
)
def test_the_year_begins_in_shanghai(at: str, year: int) -> None:
    assert claim(at=datetime.fromisoformat(at).replace(tzinfo=UTC)).year == year


def test_the_last_fraction_counts() -> None:
    rule = POLICY.quota[0]
    third = QuotaClaim(rule, QuotaDirection.PURCHASE, 2026, Fraction(1, 3))
    limit = Fraction(rule.limit_minor)
    assert limit == 5_000_000
    assert decide_quota(third, used_minor=limit - Fraction(1, 3)) is None
    refused = decide_quota(third, used_minor=limit - Fraction(1, 3) + Fraction(1, 10**40))
    assert refused is not None
    assert refused[0] is R.QUOTA_EXCEEDED
    assert "USD 0.00 is left" in refused[1]


def test_residents_are_hashed_by_key_country_and_number() -> None:
    rule, other = POLICY.quota[0], POLICY.quota[0].model_copy(update={"country": "HK"})
    first, second = ResidentHasher(b"k" * 32), ResidentHasher(b"l" * 32)
    assert first(rule, "1101 0519-49123100 2x") == first(rule, "11010519491231002X")
    assert len({first(rule, "1"), first(rule, "2"), first(other, "1"), second(rule, "1")}) == 4
    with pytest.raises(ValueError, match="fewer"):
        ResidentHasher(b"short")


# --- files


def test_files_are_read_strictly(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(DEMONSTRATION.read_text().replace("demonstration-list.toml", "../secrets.toml"))
    with pytest.raises(PolicyInvalid, match="lists"):
        load_policy(policy)
    policy.write_text(DEMONSTRATION.read_text())
    with pytest.raises(PolicyInvalid, match=r"demonstration-list\.toml: cannot be read"):
        load_policy(policy)
    policy.write_text(DEMONSTRATION.read_text().replace('limit = "50000.00"', 'limit = "50000.001"'))
    with pytest.raises(PolicyInvalid, match="decimal digits"):
        load_policy(policy)
    key = tmp_path / "key"
    key.write_text("ab" * 32)
    with pytest.raises(PolicyInvalid, match="chmod 600"):
        load_hash_key(key)
    key.chmod(0o600)
    assert load_hash_key(key) == b"\xab" * 32
    key.write_text("ab" * 31)
    with pytest.raises(PolicyInvalid, match="fewer"):
        load_hash_key(key)


def test_versions_tell_files_apart() -> None:
    assert POLICY.version.startswith("2026-11@")
    assert len(LISTS[0].version.rpartition("@")[2]) == 12


def test_a_policy_with_two_rules_of_one_key_is_not_taken() -> None:
    data = POLICY.model_dump()
    with pytest.raises(ValidationError, match="two rules"):
        Policy.model_validate(data | {"purpose": [*data["purpose"], data["purpose"][0]]})
