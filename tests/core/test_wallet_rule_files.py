"""Goal: a rule pack counts only as its authority signed it, and what is wrong in one is said in a line.
Method: packs in a directory of the test's own, altered one thing at a time; the published facts of interest as a table.
"""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kernel.crypto.keys import PrivateKey
from wallet.cli.rules import DIFFERENT, app
from wallet.domain.rules import DayCount, WalletClass, in_force
from wallet.rulepack_files import (
    DIRECTORY,
    RulePackInvalid,
    load_rule_pack,
    read_authority,
    read_rule_pack,
    sign_rule_pack,
)

NAME = "ecny-2026-01"


@pytest.fixture
def packs(tmp_path: Path) -> Path:
    for path in DIRECTORY.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path


def edit(packs: Path, old: str, new: str) -> Path:
    path = packs / f"{NAME}.toml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


def fault(packs: Path, authority: PrivateKey | None = None) -> str:
    with pytest.raises(RulePackInvalid) as caught:
        load_rule_pack(NAME, directory=packs, authority=authority.public if authority else None)
    return str(caught.value)


def test_what_the_published_sources_say_of_interest_and_reserves() -> None:
    pack = load_rule_pack(NAME)
    assert pack.interest is not None
    assert pack.liability is not None
    assert pack.in_force_from == date(2026, 1, 1)
    assert pack.interest.rate_ppm_per_year == 500  # 0.05 % a year
    assert pack.interest.classes == {WalletClass.I, WalletClass.II, WalletClass.III}
    assert (pack.interest.settled_on_day, pack.interest.credited_on_day) == (20, 21)
    assert (pack.interest.day_count, pack.interest.rounding, pack.interest.assumed) == (
        DayCount.ACTUAL_365,
        "half-even",
        True,
    )
    assert (pack.liability.bank_balances_in_reserve_base, pack.liability.non_bank_margin_percent) == (True, 100)
    assert [load_rule_pack(name).interest for name in ("ecny-2020-08", "ecny-2021-06")] == [None, None]


@pytest.mark.parametrize(
    ("day", "name"),
    [
        (date(2020, 7, 31), None),
        (date(2020, 8, 1), "ecny-2020-08"),
        (date(2021, 5, 31), "ecny-2020-08"),
        (date(2021, 6, 1), "ecny-2021-06"),
        (date(2025, 12, 31), "ecny-2021-06"),
        (date(2026, 1, 1), "ecny-2026-01"),
    ],
)
def test_a_pack_is_in_force_from_its_day_on(day: date, name: str | None) -> None:
    packs = [load_rule_pack(known) for known in ("ecny-2026-01", "ecny-2020-08", "ecny-2021-06")]
    found = in_force(packs, day)
    assert (found and found.name) == name


@pytest.mark.parametrize(
    ("old", "new"), [("500000", "500001"), ("assumed = true }", "assumed = false }"), ("# 2.0", "# 2.1")]
)
def test_a_changed_byte_is_not_what_was_signed(packs: Path, old: str, new: str) -> None:
    edit(packs, old, new)
    assert fault(packs) == f"{NAME}.toml: changed after it was signed"


def test_a_signature_of_somebody_else_or_of_another_pack_does_not_count(packs: Path) -> None:
    stranger = PrivateKey.generate()
    sign_rule_pack(packs / f"{NAME}.toml", stranger)
    assert fault(packs).startswith(f"{NAME}.jws: not the rule-pack authority's signature")
    assert load_rule_pack(NAME, directory=packs, authority=stranger.public).name == NAME
    shutil.copy(packs / "ecny-2021-06.jws", packs / f"{NAME}.jws")
    assert fault(packs) == f"{NAME}.toml: changed after it was signed"
    (packs / f"{NAME}.jws").unlink()
    assert fault(packs) == f"{NAME}.toml: not signed: {NAME}.jws is missing"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('max = "500000"', 'max = "half a million"', "classes.II.balance.max: String should match pattern"),
        ('max = "500000"', 'max = "0.001"', ""),
        ("credited_on_day = 21", "credited_on_day = 19", "interest: interest is credited after the day"),
        ('day_count = "actual/365"', 'day_count = "30/360"', "interest.day_count: Input should be 'actual/360'"),
        ('time_zone = "Asia/Shanghai"', 'time_zone = "Asia/Nowhere"', "time_zone"),
        ('name = "ecny-2026-01"', 'name = "ecny-2026-02"', "name: holds the pack ecny-2026-02"),
        ('name = "ecny-2026-01"', 'nome = "ecny-2026-01"', "nome: Extra inputs are not permitted"),
        ("[interest]", "[interest", "no TOML"),
    ],
)
def test_faults_are_one_line_each_and_name_the_place(packs: Path, old: str, new: str, said: str) -> None:
    path = edit(packs, old, new)
    with pytest.raises(RulePackInvalid) as caught:
        read_rule_pack(path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{NAME}.toml: ") for line in lines)
    assert any(said in line for line in lines), lines


def test_an_authority_is_one_public_ed25519_key(tmp_path: Path) -> None:
    shown = read_authority(None)
    assert "private part is not kept" in (DIRECTORY / "demonstration-authority.jwk").read_text()
    wrong = tmp_path / "authority.jwk"
    for content, said in (
        (json.dumps(PrivateKey.generate("ecdsa-p256-sha256").public.to_jwk()), "no Ed25519 JWK"),
        (json.dumps({**shown.to_jwk(), "d": "AA"}), "holds a private key"),
        ("[]", "no Ed25519 JWK"),
    ):
        wrong.write_text(content)
        with pytest.raises(RulePackInvalid, match=said):
            read_authority(wrong)
    with pytest.raises(RulePackInvalid, match="Ed25519"):
        sign_rule_pack(DIRECTORY / f"{NAME}.toml", PrivateKey.generate("ecdsa-p256-sha256"))


def test_commands_sign_verify_show_and_list(packs: Path) -> None:
    runner, key = CliRunner(), PrivateKey.generate()
    key.save(packs / "authority.pem")
    (packs / "authority.jwk").write_text(json.dumps(key.public.to_jwk()))
    edit(packs, "rate_ppm_per_year = 500", "rate_ppm_per_year = 600")
    file, authority = str(packs / f"{NAME}.toml"), ["--authority", str(packs / "authority.jwk")]
    broken = runner.invoke(app, ["verify", file])
    assert (broken.exit_code, broken.stderr) == (1, f"{NAME}.toml: changed after it was signed\n")
    signed = runner.invoke(app, ["sign", file, "--key", str(packs / "authority.pem")])
    assert signed.exit_code == 0, signed.output
    assert key.thumbprint in runner.invoke(app, ["verify", file, *authority]).stdout
    assert "0.0600 % a year" in runner.invoke(app, ["show", file, *authority]).stdout
    different = runner.invoke(app, ["diff", NAME, file, "--output", "csv"])
    assert different.exit_code == DIFFERENT
    assert different.stdout.splitlines()[1:] == ["interest.rate-ppm-per-year,500,600"]
    assert runner.invoke(app, ["diff", NAME, NAME]).exit_code == 0
    assert runner.invoke(app, ["verify"]).exit_code == 0
    assert [item["name"] for item in json.loads(runner.invoke(app, ["list", "--json"]).stdout)][-1] == NAME
    assert runner.invoke(app, ["diff", NAME, "demo-aed"]).exit_code == 1
