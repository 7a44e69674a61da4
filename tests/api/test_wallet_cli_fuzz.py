"""Goal: whatever is typed, `jiaozi-wallet` answers with one clear line and a status that is not 0, or does it; never a
traceback.
Method: every command that does not run a service, by Hypothesis, with arguments of which some are right and some are
hostile (ids, amounts, dates, files of any content), in this process, against the real app over a fake ledger.
"""

from __future__ import annotations

import enum
import io
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import pytest
import typer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kernel import ids
from kernel.crypto.keys import PrivateKey
from tests.api.test_wallet_api import Service, open_wallet, service
from tests.commands import Done, run_here
from wallet.__main__ import app
from wallet.client import WalletClient

__all__ = ["service"]
EXAMPLES = int(os.environ.get("JIAOZI_EXAMPLES", "50"))
SECONDS_MAX = 15
NOT_HERE = {("serve",), ("migrate",), ("witness",)}
"""They run a service."""
NOT_GIVEN = {"follow", "help", "client_key"}
"""--follow never ends."""

TEXTS = [
    "",
    " ",
    "-",
    "--",
    "0",
    "-1",
    "1.005",
    "1e9",
    "NaN",
    "inf",
    "１２",
    "9" * 40,
    "0x10",
    "1,000.00",
    "acc_1",
    "acc_00000000000000",
    "wlt_",
    "wlt_00000000-0000-0000-0000-000000000000",
    "wlt_ffffffff-ffff-ffff-ffff-ffffffffffff",
    "null",
    "[]",
    "a" * 5_000,
    "\n",
    "\u202e\u0007",
    "甲",
    "\udcff",
    "../../etc/passwd",
    "2026-13-40",
    "2026-01-01",
    "9999-12-31T23:59:59Z",
    "0001-01-01",
    "I",
    "name=",
    "=",
    "role=event",
    "role:event@9999-99-99",
    "a.b.c",
    "eyJ.eyJ.AA",
    "https://",
    "http://[::1",
]
URLS = ["", "x", "http://[::1", "ftp://127.0.0.1", "http://", "http://\x07", "\udcff", "file:///etc/passwd"]
"""Nothing answers there, and nobody is asked for a name."""
FILES = {
    "empty": b"",
    "bytes": bytes(range(256)),
    "text": "甲\n乙\n".encode(),
    "object": b"{}",
    "list": b"[]",
    "number": b"1e999",
    "deep": b"[" * 10_000,
    "twice": b'{"a": 1, "a": 2}',
    "header.csv": b"line,payee,amount\n",
    "line.csv": b"reference,account,alias,amount,remark\nx,acc_1,,1.005,\n",
    "quotes.csv": b'a,"b\n',
    "wide.csv": b"," * 5_000,
    "nul.csv": b"a\0b,c\n",
    "template.toml": b'name = "x"\nversion = -1\n',
    "token": b"a.b.c\n",
    "half.pem": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
}


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from leaves(inner, (*path, name))
    elif path not in NOT_HERE:
        yield path, command


COMMAND: Any = typer.main.get_command(app)
COMMANDS = dict(leaves(COMMAND))


class World:
    """What right arguments are made of, and the files."""

    def __init__(self, service: Service, folder: Path) -> None:
        self.folder = folder
        payer, key, customer = open_wallet(service, deposit=100_000)
        payee, _, _ = open_wallet(service)
        key.save(folder / "device.pem")
        service.keys["channel"].save(folder / "client.pem")
        PrivateKey.generate().save(folder / "other.pem")
        for name, content in FILES.items():
            (folder / name).write_bytes(content)
        made = {
            prefix: ids.show(prefix, ids.new_uuid7()) for prefix in ("trf", "exc", "req", "prg", "sch", "fil", "chg")
        }
        account = ids.show_account(payee.account)
        self.right: dict[str, str] = {
            **dict.fromkeys(("wallet", "parent", "payer"), ids.show("wlt", payer.wallet)),
            "child": ids.show("wlt", payee.wallet),
            **dict.fromkeys(("payee", "account", "merchant"), account),
            **dict.fromkeys(("amount", "cap", "total", "single", "daily", "alone", "alone_day"), "1.00"),
            "customer": ids.show("cus", customer),
            "device_key": str(folder / "device.pem"),
            "payment": made["trf"],
            "transfer": made["trf"],
            "request": made["req"],
            "program": made["prg"],
            "schedule": made["sch"],
            "valid_until": "2030-01-01T00:00:00Z",
            "first_on": "2030-01-01",
        }
        self.texts = [*TEXTS, *made.values(), *self.right.values()]
        self.paths = [
            str(folder / name) for name in (*FILES, "other.pem", "device.pem", "missing", "missing/inner", "")
        ]

    def values(self, parameter: Any) -> st.SearchStrategy[str]:
        annotation = parameter.type_descriptor.annotation
        kinds = [annotation, *get_args(annotation)]
        if parameter.name == "url":
            return st.sampled_from(URLS)
        texts = st.sampled_from(self.texts) | st.text(st.characters(exclude_characters="\0"), max_size=20)
        if Path in kinds:
            texts = st.sampled_from(self.paths)
        elif int in kinds:
            texts = st.sampled_from(["-1", "0", "1", "2", str(2**63), "x"])
        elif datetime in kinds:
            texts = st.sampled_from(["2026-01-01", "0001-01-01T00:00:00", "x", "9999-12-31T23:59:59Z"])
        elif choices := [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, enum.Enum)]:
            texts = st.sampled_from([*(str(item.value) for item in choices[0]), "x", ""])
        if parameter.name not in self.right:
            return texts
        return st.integers(0, 3).flatmap(lambda choice: texts if choice == 0 else st.just(self.right[parameter.name]))

    @st.composite
    @staticmethod
    def words(draw: st.DrawFn, world: World) -> tuple[str, ...]:
        path = draw(st.sampled_from(sorted(COMMANDS)))
        words = list(path)
        arguments: list[str] = []
        for parameter in COMMANDS[path].params:
            if parameter.name in NOT_GIVEN:
                continue
            if parameter.name == "url" and draw(st.integers(0, 19)) > 0:
                continue  # the client tries such an address for a while
            is_given = (parameter.required and draw(st.integers(0, 19)) > 0) or draw(st.integers(0, 3)) == 0
            if not is_given:
                continue
            is_flag = getattr(parameter, "is_flag", False)
            if parameter.param_type_name == "argument":
                arguments.append(draw(world.values(parameter)))
            elif is_flag:
                words.append(parameter.opts[0])
            else:
                words += [parameter.opts[0], draw(world.values(parameter))]
        return (*words, "--", *arguments)


@contextmanager
def within(seconds: int) -> Iterator[None]:
    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"it takes more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def typed(world: World, words: tuple[str, ...], environment: Mapping[str, str]) -> Done:
    with within(SECONDS_MAX), mock.patch.object(sys, "stdin", io.StringIO("")):
        return run_here("wallet", *words, **environment)


def wrong(done: Done) -> str:
    """What is wrong with how a command ended; "" if nothing."""
    lines = done.stderr.strip().splitlines()
    if "Traceback" in done.stderr:
        return "a traceback"
    if done.returncode == 0 or (done.returncode == 2 and "Usage:" in done.stderr):
        return ""
    if not lines:
        return "" if done.stdout.strip() else f"status {done.returncode} and not a word"
    # An id that was made for the retry comes before the reason.
    return "" if len(lines) <= 3 and len(lines[-1]) <= 1_000 else "more than a clear line"


@pytest.mark.extended
def test_whatever_is_typed_is_answered_in_a_clear_line(
    service: Service, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("typed")
    world = World(service, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("wallet.__main__.app", COMMAND)  # made once, not for each command line
    real = WalletClient.__init__
    origin, to_app = str(service.settings.public_url), {"transport": service.http._transport}
    monkeypatch.setattr(
        WalletClient,
        "__init__",
        lambda self, url, **named: real(self, url, **named, **(to_app if url == origin else {})),
    )
    environment = {
        "JIAOZI_WALLET_PUBLIC_URL": origin,
        "JIAOZI_CLIENT_KEY": str(folder / "client.pem"),
    }
    found: dict[str, str] = {}
    ended: dict[int, int] = {}

    @settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(words=World.words(world))
    def attempt(words: tuple[str, ...]) -> None:
        done = typed(world, words, environment)
        ended[done.returncode] = ended.get(done.returncode, 0) + 1
        what = wrong(done)
        if what:
            last = done.stderr.strip().splitlines()[-1:] or [""]
            found.setdefault(f"{' '.join(words[:2])}: {what}: {last[0][:200]}", f"{words}\n{done.stderr[-3000:]}")

    attempt()
    assert not found, "\n\n".join(f"{name}\n{how}" for name, how in found.items())
    assert ended.get(1, 0) > EXAMPLES // 10, ended  # the commands' own refusals, not only the parser's
