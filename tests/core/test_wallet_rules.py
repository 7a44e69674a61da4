"""Goal: the shipped rule packs say what the published sources say, and the limits decide as the packs say.
Method: the published table is repeated here and compared; each cap is met exactly, then exceeded by one fen.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from ledger.contract import TransferRefusal
from wallet.domain import limits
from wallet.domain.limits import Caps, Usage
from wallet.domain.rules import Evidence, RulePack, WalletClass, ledger_rule_classes, rule_class_name
from wallet.rulepack_files import load_rule_pack, rule_pack_names

# Yuan; - = no cap; [x] = published by no source found, so marked assumed.
PUBLISHED = """
# pack           class  balance  single   daily    annual
  ecny-2020-08   I      500000   50000    100000   500000
  ecny-2020-08   II     10000    5000     10000    300000
  ecny-2020-08   III    2000     2000     2000     50000
  ecny-2020-08   IV     1000     500      1000     10000
  ecny-2021-06   I      -        [-]      [-]      -
  ecny-2021-06   II     500000   50000    100000   -
  ecny-2021-06   III    20000    [5000]   [10000]  -
  ecny-2021-06   IV     10000    2000     5000     50000
  ecny-2026-01   I      -        [-]      [-]      -
  ecny-2026-01   II     500000   50000    100000   -
  ecny-2026-01   III    20000    [5000]   [10000]  -
  ecny-2026-01   IV     10000    2000     5000     50000
"""
ROWS = [line.split() for line in PUBLISHED.splitlines() if line.strip() and not line.strip().startswith("#")]
TODAY = date(2026, 6, 15)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}/{row[1]}")
def test_pack_has_the_published_caps_and_marks_the_assumed_ones(row: list[str]) -> None:
    pack = load_rule_pack(row[0])
    wallet_class = WalletClass(row[1])
    caps, rules = pack.caps(wallet_class), pack.classes[wallet_class]
    minor = (caps.balance_max_minor, caps.single_max_minor, caps.day_max_minor, caps.year_max_minor)
    marks = (rules.balance.assumed, rules.single.assumed, rules.daily.assumed, rules.annual.assumed)
    published = [cell.strip("[]") for cell in row[2:]]
    assert list(minor) == [None if cell == "-" else int(cell) * 100 for cell in published]
    assert list(marks) == [cell.startswith("[") for cell in row[2:]]


def test_every_shipped_pack_loads_and_names_fit_the_ledger() -> None:
    for name in rule_pack_names():
        for rule_class in ledger_rule_classes(load_rule_pack(name)):
            assert rule_class.name.startswith(f"{name}/")
    assert {"ecny-2020-08", "ecny-2021-06", "ecny-2026-01", "demo-aed"} == set(rule_pack_names())


def test_demonstration_pack_is_labelled_and_wholly_assumed() -> None:
    pack = load_rule_pack("demo-aed")
    assert pack.demonstration
    assert pack.evidence_assumed
    for rules in pack.classes.values():
        assert all(cap.assumed for cap in (rules.balance, rules.single, rules.daily, rules.annual))


def test_ledger_classes_carry_the_same_caps() -> None:
    pack = load_rule_pack("ecny-2021-06")
    by_name = {rule_class.name: rule_class for rule_class in ledger_rule_classes(pack)}
    found = by_name[rule_class_name(pack, WalletClass.IV)]
    assert (found.balance_max_minor, found.single_max_minor) == (1_000_000, 200_000)
    assert (found.day_max_minor, found.year_max_minor) == (500_000, 5_000_000)


@pytest.mark.parametrize(
    ("evidence", "highest"),
    [
        (set(), None),
        ({Evidence.BANK_ACCOUNT}, None),
        ({Evidence.PHONE}, WalletClass.IV),
        ({Evidence.PHONE, Evidence.IN_PERSON}, WalletClass.IV),
        ({Evidence.PHONE, Evidence.ID}, WalletClass.III),
        ({Evidence.PHONE, Evidence.ID, Evidence.BANK_ACCOUNT}, WalletClass.II),
        (set(Evidence), WalletClass.I),
    ],
)
def test_evidence_opens_the_highest_class_it_covers(evidence: set[Evidence], highest: WalletClass | None) -> None:
    assert load_rule_pack("ecny-2021-06").highest_class(frozenset(evidence)) is highest


@pytest.mark.parametrize(
    "change",
    [
        {"currency": "XXX"},
        {"time_zone": "Asia/Nowhere"},
        {"unknown": 1},
        {"classes": {}},
    ],
)
def test_malformed_pack_is_refused_on_load(change: dict[str, object]) -> None:
    good = load_rule_pack("ecny-2021-06").model_dump(mode="json")
    RulePack.model_validate(good)
    with pytest.raises((ValidationError, KeyError, ValueError)):
        RulePack.model_validate(good | change)


def test_cap_with_more_digits_than_the_currency_is_refused() -> None:
    good = load_rule_pack("ecny-2021-06").model_dump(mode="json")
    good["classes"]["IV"]["single"]["max"] = "0.001"
    with pytest.raises(ValidationError):
        RulePack.model_validate(good)


# amount, spent today, spent this year -> outcome, under caps single 100, day 250, year 600
DECISIONS = """
  100  0    0    ok
  101  0    0    single-limit-exceeded
  101  200  600  single-limit-exceeded
  100  150  150  ok
  100  151  151  day-limit-exceeded
  100  151  501  day-limit-exceeded
  100  0    500  ok
  100  0    501  year-limit-exceeded
"""


@pytest.mark.parametrize("row", [line.split() for line in DECISIONS.splitlines() if line.strip()])
def test_payment_limits_in_order_of_precedence(row: list[str]) -> None:
    caps = Caps(single_max_minor=100, day_max_minor=250, year_max_minor=600)
    amount, day, year = int(row[0]), int(row[1]), int(row[2])
    decided = limits.decide_payment(amount, caps=caps, usage=Usage(TODAY, day, year), today=TODAY)
    if row[3] == "ok":
        assert decided == Usage(TODAY, day + amount, year + amount)
    else:
        assert decided is {refusal.value: refusal for refusal in TransferRefusal}[row[3]]


def test_sum_beyond_63_bits_is_refused_where_no_cap_is() -> None:
    usage = Usage(TODAY, 0, 2**63 - 10)
    assert limits.decide_payment(10, caps=Caps(), usage=usage, today=TODAY) is TransferRefusal.AMOUNT_OVERFLOW


def test_day_and_year_roll_over_but_never_back() -> None:
    last = Usage(date(2026, 12, 31), 50, 500)
    assert limits.usage_on(last, date(2027, 1, 1)) == Usage(date(2027, 1, 1), 0, 0)
    assert limits.usage_on(Usage(date(2026, 6, 14), 50, 500), TODAY) == Usage(TODAY, 0, 500)
    assert limits.usage_on(last, date(2026, 12, 30)) == last


def test_the_schemes_time_zone_decides_the_day() -> None:
    moment = datetime(2026, 12, 31, 16, 30, tzinfo=UTC)
    assert limits.scheme_day(moment, ZoneInfo("Asia/Shanghai")) == date(2027, 1, 1)
    assert limits.scheme_day(moment, ZoneInfo("Asia/Dubai")) == date(2026, 12, 31)
    with pytest.raises(ValueError, match="aware"):
        limits.scheme_day(datetime(2026, 1, 1), ZoneInfo("UTC"))  # noqa: DTZ001


def test_release_gives_back_only_on_the_day_and_year_it_was_counted() -> None:
    usage = Usage(TODAY, 30, 300)
    assert limits.release(usage, 10, counted_on=TODAY) == Usage(TODAY, 20, 290)
    assert limits.release(usage, 10, counted_on=date(2026, 6, 14)) == Usage(TODAY, 30, 290)
    assert limits.release(usage, 10, counted_on=date(2025, 12, 31)) == usage


def test_balance_cap_and_lowered_caps() -> None:
    caps = limits.lowest(Caps(balance_max_minor=100, day_max_minor=50), Caps(balance_max_minor=80), Caps())
    assert caps == Caps(balance_max_minor=80, day_max_minor=50)
    assert limits.decide_credit(30, balance_minor=50, caps=caps) is None
    assert limits.decide_credit(31, balance_minor=50, caps=caps) is TransferRefusal.BALANCE_LIMIT_EXCEEDED
    assert limits.left(100, 130) == 0
    assert limits.left(None, 130) is None
