"""Goal: the condition language is closed, total and deterministic, and says why not yet; every template is coherent.
Method: tables of the evaluator's leaves and joins, refused conditions, the walk through time, Hypothesis trees.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from kernel.crypto.keys import PrivateKey
from kernel.ids import show_account
from wallet.cli.programs import app
from wallet.contract.programs import reference_of
from wallet.domain.program_templates import (
    STAMPS_MAX,
    Plan,
    Template,
    plan_of,
    preview,
    replay,
    stamps_for,
    stamps_of,
    worst_cases,
)
from wallet.domain.programs import (
    DEPTH_MAX,
    NODES_MAX,
    Facts,
    ProgramInvalid,
    Said,
    Scene,
    evaluate,
    read_condition,
)
from wallet.program_template_files import (
    builtin_templates,
    load_templates,
    read_template,
    sign_template,
)

SHANGHAI = ZoneInfo("Asia/Shanghai")
FUNDED = datetime(2026, 6, 15, 15, 30, tzinfo=UTC)
"""Half past eleven at night in Shanghai: its next day begins half an hour later."""


def facts(
    *,
    now: datetime = FUNDED,
    said: Sequence[tuple[str, str, int]] = (),
    scene: tuple[str | None, str | None] | None = None,
    amount: int = 100,
    instalment: int = 1,
    secret: bool = False,
) -> Facts:
    return Facts(
        now=now,
        time_zone=SHANGHAI,
        funded_at=FUNDED,
        amount_minor=amount,
        instalment=instalment,
        said=[Said(role, event, ordinal, FUNDED) for role, event, ordinal in said],
        scene=None if scene is None else Scene(17, *scene),
        is_secret_shown=secret,
    )


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


D = {"event": "delivered", "by": ["payer", "courier"]}
ACCOUNT = show_account(17)
LEAVES: list[tuple[dict[str, Any], Facts, bool]] = [
    # a day begins and ends at midnight in Shanghai, 16:00 UTC
    ({"not_before": "2026-06-16"}, facts(now=at("2026-06-15T15:59:59.999999Z")), False),
    ({"not_before": "2026-06-16"}, facts(now=at("2026-06-15T16:00:00Z")), True),
    ({"not_after": "2026-06-16"}, facts(now=at("2026-06-16T15:59:59Z")), True),
    ({"not_after": "2026-06-16"}, facts(now=at("2026-06-16T16:00:00Z")), False),
    ({"not_before": "2026-06-16T00:00:00Z"}, facts(now=at("2026-06-15T23:59:59Z")), False),
    ({"not_before": "2026-06-16T08:00:00+08:00"}, facts(now=at("2026-06-16T00:00:00Z")), True),
    ({"not_after": "2026-06-16T00:00:00Z"}, facts(now=at("2026-06-16T00:00:00Z")), False),
    # days after the funding are calendar days: one day after half past eleven is half an hour later
    ({"not_before": {"days": 1, "after": "funded"}}, facts(now=FUNDED + timedelta(minutes=29)), False),
    ({"not_before": {"days": 1, "after": "funded"}}, facts(now=FUNDED + timedelta(minutes=30)), True),
    ({"not_before": {"days": 0, "after": "funded"}}, facts(), True),
    # scene
    ({"merchant_category": ["5411"]}, facts(scene=("5411", None)), True),
    ({"merchant_category": ["5411", "5811-5814"]}, facts(scene=("5814", None)), True),
    ({"merchant_category": ["5811-5814"]}, facts(scene=("5815", None)), False),
    ({"merchant_category": ["5411"]}, facts(scene=(None, "330106")), False),
    ({"merchant_category": ["5411"]}, facts(), False),
    ({"place": ["33"]}, facts(scene=(None, "330106")), True),
    ({"place": ["3301", "11"]}, facts(scene=(None, "110101")), True),
    ({"place": ["330106"]}, facts(scene=(None, "330105")), False),
    ({"place": ["33"]}, facts(), False),
    ({"account": [ACCOUNT]}, facts(scene=(None, None)), True),
    ({"account": [ACCOUNT]}, facts(), False),
    # amount
    ({"amount_at_most": "100"}, facts(amount=100), True),
    ({"amount_at_most": "99"}, facts(amount=100), False),
    # roles: a role counts once, however often it speaks; another role's word is nobody's
    ({"signed": D}, facts(said=[("courier", "delivered", 1)]), True),
    ({"signed": D}, facts(said=[("payee", "delivered", 1)]), False),
    ({"signed": D}, facts(said=[("courier", "lost", 1)]), False),
    ({"signed": {**D, "signers": 2}}, facts(said=[("courier", "delivered", 1), ("courier", "delivered", 2)]), False),
    ({"signed": {**D, "signers": 2}}, facts(said=[("courier", "delivered", 1), ("payer", "delivered", 1)]), True),
    # counts are of different ordinals
    ({"count": {**D, "at_least": 2}}, facts(said=[("courier", "delivered", 1), ("payer", "delivered", 1)]), False),
    ({"count": {**D, "at_least": 2}}, facts(said=[("courier", "delivered", 1), ("payer", "delivered", 7)]), True),
    (
        {"count": {**D, "at_least": 1, "signers": 2}},
        facts(said=[("courier", "delivered", 1), ("payer", "delivered", 2)]),
        False,
    ),
    (
        {"count": {**D, "at_least": 1, "signers": 2}},
        facts(said=[("courier", "delivered", 2), ("payer", "delivered", 2)]),
        True,
    ),
    ({"count": {**D, "at_least": "instalment"}}, facts(said=[("payer", "delivered", 1)], instalment=1), True),
    ({"count": {**D, "at_least": "instalment"}}, facts(said=[("payer", "delivered", 1)], instalment=2), False),
    # quiet is counted in calendar days from the last word, or from the funding
    ({"quiet": {"event": "delivered", "days": 1}}, facts(now=FUNDED + timedelta(minutes=29)), False),
    ({"quiet": {"event": "delivered", "days": 1}}, facts(now=FUNDED + timedelta(minutes=30)), True),
    # secret
    ({"secret_shown": True}, facts(), False),
    ({"secret_shown": True}, facts(secret=True), True),
    # joins
    ({"all": [{"secret_shown": True}, {"amount_at_most": "100"}]}, facts(), False),
    ({"any": [{"secret_shown": True}, {"amount_at_most": "100"}]}, facts(), True),
    ({"not": {"secret_shown": True}}, facts(), True),
    ({"not": {"any": [{"amount_at_most": "100"}, {"secret_shown": True}]}}, facts(), False),
]


@pytest.mark.parametrize(("raw", "known", "holds"), LEAVES)
def test_evaluator_table(raw: dict[str, Any], known: Facts, holds: bool) -> None:
    verdict = evaluate(read_condition(raw), known)
    assert verdict.holds is holds
    assert verdict.because
    assert (verdict.why_not() == "") is holds
    assert verdict.changes_at is None or verdict.changes_at > known.now


def _nested(depth: int) -> dict[str, Any]:
    raw: dict[str, Any] = {"secret_shown": True}
    for _ in range(depth - 1):
        raw = {"not": raw}
    return raw


BAD: list[Any] = [
    None,
    [],
    "signed",
    {},
    {"secret_shown": True, "amount_at_most": "1"},
    {"exec": "rm"},
    {"secret_shown": False},
    {"all": []},
    {"any": "x"},
    {"all": {"secret_shown": True}},
    {"not": [{"secret_shown": True}]},
    {"not_before": "tomorrow"},
    {"not_before": "2026-02-30"},
    {"not_before": "2026-01-01T00:00:00"},
    {"not_before": "0001-01-01T00:00:00Z"},
    {"not_before": "9999-12-31"},
    {"not_before": {"days": -1, "after": "funded"}},
    {"not_before": {"days": 10**6, "after": "funded"}},
    {"not_before": {"days": 1, "after": "birth"}},
    {"merchant_category": []},
    {"merchant_category": ["541"]},
    {"place": ["3"]},
    {"place": ["33010"]},
    {"account": ["acc_1"]},
    {"amount_at_most": "-1"},
    {"amount_at_most": 1.5},
    {"signed": {"event": "x", "by": []}},
    {"signed": {"event": "x", "by": ["a", "a"]}},
    {"signed": {"event": "x", "by": ["a"], "signers": 2}},
    {"signed": {"event": "$x", "by": ["a"]}},
    {"count": {"event": "x", "by": ["a"], "at_least": 0}},
    {"count": {"event": "x", "by": ["a"], "at_least": "all"}},
    {"quiet": {"event": "x", "days": 0}},
    _nested(DEPTH_MAX + 1),
    _nested(10_000),
    {"all": [{"all": [{"secret_shown": True}] * 16}] * (NODES_MAX // 16 + 1)},
]


@pytest.mark.parametrize("raw", BAD, ids=range(len(BAD)))
def test_what_is_no_condition_is_refused_in_words(raw: Any) -> None:
    with pytest.raises(ProgramInvalid, match=r"\w+"):
        read_condition(raw)


_EVENTS, _ROLES = ["delivered", "stop"], ["payer", "payee", "courier"]
_leaves = st.one_of(
    st.sampled_from(["2026-06-16", "2026-07-01", "2026-06-20T12:00:00Z"]).map(lambda day: {"not_before": day}),
    st.sampled_from(["2026-06-16", "2026-07-01"]).map(lambda day: {"not_after": day}),
    st.integers(0, 9).map(lambda days: {"not_before": {"days": days, "after": "funded"}}),
    st.integers(1, 9).map(lambda days: {"quiet": {"event": "delivered", "days": days}}),
    st.integers(0, 200).map(lambda amount: {"amount_at_most": str(amount)}),
    st.sampled_from(_EVENTS).map(lambda event: {"signed": {"event": event, "by": ["payer", "courier"]}}),
    st.integers(1, 3).map(lambda k: {"count": {"event": "delivered", "by": ["payer", "courier"], "at_least": k}}),
    st.just({"merchant_category": ["5411"]}),
    st.just({"place": ["33"]}),
)
_trees = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"all": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"any": parts}),
        inner.map(lambda part: {"not": part}),
    ),
    max_leaves=8,
)
_said = st.lists(
    st.tuples(st.sampled_from(_ROLES), st.sampled_from(_EVENTS), st.integers(1, 3), st.integers(0, 20 * 24)), max_size=8
).map(lambda rows: [Said(role, event, n, FUNDED + timedelta(hours=hours)) for role, event, n, hours in rows])


@given(_trees, _said, st.integers(0, 40 * 24))
@settings(max_examples=300, deadline=None)
def test_time_alone_changes_a_verdict_only_when_it_says_so(raw: Any, said: list[Said], hours: int) -> None:
    """Total, deterministic, and `changes_at` is never too late: between now and then nothing flips."""
    try:
        condition = read_condition(raw)
    except ProgramInvalid:
        return  # deeper than allowed
    now = FUNDED + timedelta(hours=hours)
    known = [item for item in said if item.at <= now]

    def verdict(moment: datetime) -> Any:
        return evaluate(condition, Facts(moment, SHANGHAI, FUNDED, 100, said=known))

    first = verdict(now)
    assert verdict(now) == first
    end = first.changes_at or now + timedelta(days=400)
    assert end > now
    for part in (0.25, 0.5, 0.999):
        assert verdict(now + (end - now) * part).holds is first.holds


@given(_trees, _trees, _said, st.lists(st.integers(0, 35 * 24), max_size=6))
@settings(max_examples=300, deadline=None)
def test_it_does_not_matter_when_somebody_looks(release: Any, back: Any, said: list[Said], looks: list[int]) -> None:
    """Looking at many moments decides exactly what one look at the end decides, at the same moment."""
    try:
        template = Template.model_validate(
            {
                "name": "test",
                "version": 1,
                "title": "t",
                "summary": "",
                "kind": "release",
                "in_force_from": "2026-01-01",
                "roles": {name: {"title": name, "account": name != "courier"} for name in _ROLES},
                "parameters": {"deadline": {"type": "moment", "title": "d"}},
                "events": {event: {"by": ["payer", "courier"], "title": event} for event in _EVENTS},
                "release": release,
                "return": back,
            }
        )
    except (ValidationError, ProgramInvalid):
        return  # too deep, or it speaks of a merchant
    plan = plan_of(template, {"deadline": "2026-07-15T00:00:00Z"}, time_zone=SHANGHAI)

    def look(since: datetime, until: datetime) -> Any:
        return replay(
            plan,
            amount_minor=100,
            instalment=1,
            funded_at=FUNDED,
            since=since,
            until=until,
            said=[item for item in said if item.at <= until],
            time_zone=SHANGHAI,
        )

    end = plan.deadline
    at_once = look(FUNDED, end)
    assert at_once.outcome is not None
    since = FUNDED
    for hours in sorted(looks):
        now = FUNDED + timedelta(hours=hours)
        stepwise = look(since, now)
        if stepwise.outcome is not None:
            break
        since = max(since, now)
    else:
        stepwise = look(since, max(end, since))
    assert (stepwise.outcome, stepwise.at) == (at_once.outcome, at_once.at)


# --- templates -------------------------------------------------------------------------------------------------------


def plan(name: str, **parameters: Any) -> Plan:
    return plan_of(builtin_templates()[name, 1], {"deadline": "2026-08-01T00:00:00Z"} | parameters, time_zone=SHANGHAI)


def test_every_built_in_template_is_read_and_named_after_its_file() -> None:
    book = builtin_templates()
    assert {"prepaid-drip", "delivery-versus-payment", "guardian-approval", "voucher-multi"} <= {key[0] for key in book}
    assert len({template.sha256 for template in book.values()}) == len(book)


def test_silence_and_words_lead_to_different_schedules() -> None:
    drip = plan("prepaid-drip", quiet_days=14, subject="milk")
    silent = preview(drip, [10, 20], funded_at=FUNDED, said=[], time_zone=SHANGHAI)
    # fourteen calendar days after the 15th in Shanghai, at midnight there
    assert [(step.outcome, step.at) for step in silent] == [("return", at("2026-06-28T16:00:00Z"))] * 2
    said = [Said("courier", "delivered", 1, FUNDED + timedelta(days=3))]
    spoken = preview(drip, [10, 20], funded_at=FUNDED, said=said, time_zone=SHANGHAI)
    assert [(step.number, step.outcome) for step in spoken] == [(1, "release"), (2, "return")]
    assert spoken[1].at == at("2026-07-01T16:00:00Z")


@pytest.mark.parametrize(
    ("name", "parameters", "least", "most"),
    [
        ("prepaid-drip", {"quiet_days": 14, "subject": "x"}, 0, 30),
        ("time-locked-gift", {"opens_on": "2026-07-01"}, 0, 30),
        ("guardian-approval", {"free_up_to": "10"}, 10, 30),
        ("guardian-approval", {"free_up_to": "20"}, 30, 30),
        ("delivery-versus-payment", {"secret_hash": "ab" * 32}, 0, 30),
    ],
)
def test_worst_cases_over_all_that_others_may_say(name: str, parameters: dict[str, Any], least: int, most: int) -> None:
    found = worst_cases(plan(name, **parameters), [10, 20], funded_at=FUNDED, time_zone=SHANGHAI)
    assert (found.released_min_minor, found.released_max_minor, found.is_exhaustive) == (least, most, True)


_GOOD = """
name = "mine"
version = 1
title = "t"
summary = "s"
kind = "release"
in_force_from = 2026-01-01
[roles]
payer = { title = "p", account = true }
payee = { title = "q", account = true }
[parameters]
deadline = { type = "moment", title = "d" }
[events]
yes = { by = ["payer"], title = "y" }
[release]
signed = { event = "yes", by = ["payer"] }
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('by = ["payer"] }', 'by = ["payee"] }'),
        ('event = "yes"', 'event = "no"'),
        ('yes = { by = ["payer"]', 'yes = { by = ["ghost"]'),
        ("yes = {", "agree = {"),
        ('type = "moment"', 'type = "day"'),
        ("deadline = {", "ends = {"),
        ("account = true }\n[par", "account = false }\n[par"),
        ('signed = { event = "yes", by = ["payer"] }', "secret_shown = true"),
        ('signed = { event = "yes", by = ["payer"] }', 'merchant_category = ["5411"]'),
        ('signed = { event = "yes", by = ["payer"] }', 'amount_at_most = "$x"'),
        ('kind = "release"', 'kind = "voucher"'),
        ('kind = "release"', 'kind = "release"\nlock = "counterpart"'),
        ('kind = "release"', 'kind = "release"\ngrace_hours = 0'),
        ('kind = "release"', 'kind = "release"\naccepts = ["payer"]'),
        ('kind = "release"', 'kind = "release"\ncode = "print()"'),
        ("version = 1", "version = 0"),
        ('name = "mine"', 'name = "Mine"'),
    ],
)
def test_incoherent_templates_are_refused(tmp_path: Path, old: str, new: str) -> None:
    assert _GOOD.count(old) >= 1
    Template.model_validate(tomllib.loads(_GOOD))
    path = tmp_path / "mine-v1.toml"
    path.write_text(_GOOD.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=r"mine-v1\.toml"):
        read_template(path)


def test_an_institutions_own_template_needs_a_publishers_signature_over_its_text(tmp_path: Path) -> None:
    publisher, other = PrivateKey.generate(), PrivateKey.generate()
    path = tmp_path / "mine-v1.toml"
    path.write_text(_GOOD, encoding="utf-8")
    keys = [publisher.public]
    with pytest.raises(ValueError, match="no publisher has signed"):
        load_templates(tmp_path, keys)
    path.with_suffix(".jws").write_text(sign_template(read_template(path), other))
    with pytest.raises(ValueError, match="no publisher's"):
        load_templates(tmp_path, keys)
    path.with_suffix(".jws").write_text(sign_template(read_template(path), publisher) + "\n")
    assert ("mine", 1) in load_templates(tmp_path, keys)
    path.write_text(_GOOD.replace('title = "t"', 'title = "other"'), encoding="utf-8")
    with pytest.raises(ValueError, match="of another text"):
        load_templates(tmp_path, keys)


def test_a_parameter_can_never_become_an_operator() -> None:
    template = builtin_templates()["time-locked-gift", 1]
    for value in ({"secret_shown": True}, "$deadline", "2026-07-01T00:00:00Z", 5, ["2026-07-01"]):
        with pytest.raises(ProgramInvalid):
            plan_of(
                template,
                {"deadline": "2026-08-01T00:00:00Z", "opens_on": value},  # type: ignore[dict-item]
                time_zone=SHANGHAI,
            )


def test_the_command_line_signs_and_checks_a_template(tmp_path: Path) -> None:
    key, other = tmp_path / "publisher.pem", tmp_path / "other.pem"
    PrivateKey.generate().save(key)
    PrivateKey.generate().save(other)
    path = tmp_path / "mine-v1.toml"
    path.write_text(_GOOD, encoding="utf-8")
    run = CliRunner()
    assert run.invoke(app, ["template", "sign", str(path), "--publisher-key", str(key)]).exit_code == 0
    assert run.invoke(app, ["template", "verify", str(path), "--publisher-key", str(key)]).exit_code == 0
    assert run.invoke(app, ["template", "verify", str(path), "--publisher-key", str(other)]).exit_code == 1
    path.write_text(_GOOD.replace('by = ["payer"] }', 'by = ["payee"] }'), encoding="utf-8")
    answer = run.invoke(app, ["template", "sign", str(path), "--publisher-key", str(key)])
    assert answer.exit_code == 1
    assert "yes is no event that payee may say" in answer.output


# --- vouchers --------------------------------------------------------------------------------------------------------


@given(st.integers(1, STAMPS_MAX), st.integers(1, 10_000), st.data())
@settings(max_examples=100, deadline=None)
def test_purchases_use_whole_steps_and_never_more_than_there_is(stamps: int, step: int, data: st.DataObject) -> None:
    multi = plan("voucher-multi", categories=["5411"], places=["33"], step=str(step))
    free = list(enumerate(stamps_of(multi, stamps * step), start=1))
    while free:
        amount = data.draw(st.integers(1, len(free) * step + 1))
        chosen = stamps_for(free, amount)
        if chosen is None:
            assert amount > len(free) * step
            return
        numbers, change = chosen
        assert 0 <= change < step
        assert len(numbers) * step == amount + change
        free = [item for item in free if item[0] not in numbers]


def test_the_reference_is_a_uuidv8_of_the_terms_hash() -> None:
    found = reference_of(bytes(range(32)))
    assert found == UUID("00010203-0405-8607-8809-0a0b0c0d0e0f")
    assert found.version == 8
