"""Goal: a cursor continues only its own listing; a misspelt setting stops the start; secrets are not shown.

Method: round trips, then every way to bend a cursor or the environment.
"""

from __future__ import annotations

import base64

import pytest
from pydantic_settings import SettingsConfigDict

from kernel import pagination
from kernel.errors import ProblemError, RequestRefusal
from kernel.settings import MisspeltSetting, ServiceSettings

FILTERS = {"account": "acc_00000000000171", "status": None, "closed": False}


def test_cursor_round_trips_with_its_filters_in_any_order() -> None:
    cursor = pagination.encode([2**62, "trf_x"], FILTERS)
    same = {"closed": False, "account": "acc_00000000000171"}  # an absent filter is the same as None
    assert pagination.decode(cursor, same, shape=(int, str)) == (2**62, "trf_x")


@pytest.mark.parametrize(
    "filters",
    [{}, FILTERS | {"status": "posted"}, FILTERS | {"account": "acc_00000000000268"}, FILTERS | {"closed": True}],
)
def test_cursor_of_another_listing_is_refused(filters: dict[str, object]) -> None:
    with pytest.raises(ProblemError, match="other filters") as caught:
        pagination.decode(pagination.encode([1], FILTERS), filters)
    assert caught.value.refusal is RequestRefusal.VALIDATION_FAILED


def test_damaged_cursor_is_refused() -> None:
    cursor = pagination.encode([1, "a"], FILTERS)

    def of(position: bytes) -> str:
        return base64.urlsafe_b64encode(base64.urlsafe_b64decode(cursor + "==")[:12] + position).decode().rstrip("=")

    damaged = ["", "x", cursor + "=", cursor[:-1], "é", "A" * 5_000]
    damaged += [of(p) for p in (b"", b"[]", b"{}", b"[1.5]", b"[null]", b"[true]", b"[[1]]", b'["\\u0000"]', b"1")]
    damaged += [of(f"[{2**63}]".encode())]
    for bad in damaged:
        with pytest.raises(ProblemError) as caught:
            pagination.decode(bad, FILTERS)
        assert caught.value.refusal is RequestRefusal.VALIDATION_FAILED
    with pytest.raises(ProblemError, match="damaged"):
        pagination.decode(cursor, FILTERS, shape=(str, int))


class ExampleSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="JIAOZI_EXAMPLE_")

    database_url: str
    signing_key_path: str = "keys/example.pem"
    api_token: str = "x"
    hold_seconds_max: int = 60


def test_settings_come_from_the_environment_and_are_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JIAOZI_EXAMPLE_DATABASE_URL", "postgresql://me:hush@db.example:5432/x?sslmode=require")
    monkeypatch.setenv("JIAOZI_EXAMPLE_HOLD_SECONDS_MAX", "90")
    settings = ExampleSettings.load()
    assert settings.hold_seconds_max == 90
    with pytest.raises(ValueError):
        settings.hold_seconds_max = 1  # type: ignore[misc]
    shown = settings.describe()
    assert shown["JIAOZI_EXAMPLE_DATABASE_URL"] == "postgresql://me:********@db.example:5432/x?sslmode=require"
    assert shown["JIAOZI_EXAMPLE_SIGNING_KEY_PATH"] == "keys/example.pem"
    assert shown["JIAOZI_EXAMPLE_API_TOKEN"] == "********"
    assert "hush" not in repr(settings) + str(settings)


def test_misspelt_setting_is_refused_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JIAOZI_EXAMPLE_DATABASE_URL", "postgresql:///x")
    monkeypatch.setenv("JIAOZI_EXAMPLE_HOLD_SECOND_MAX", "90")
    with pytest.raises(MisspeltSetting, match="did you mean JIAOZI_EXAMPLE_HOLD_SECONDS_MAX"):
        ExampleSettings.load()


def test_unknown_value_in_code_is_refused() -> None:
    with pytest.raises(ValueError):
        ExampleSettings(database_url="x", unknown=1)  # type: ignore[call-arg]
