"""Goal: a card never signs two payments under one counter, whatever happens to its power; PIN and caps hold over cuts.
Method: the pure element by table; the card over a disk that loses what was not synced, cut at every step; the real
folder with a process that is killed at every step; a Hypothesis machine of terminals, PINs and cuts.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey, SigningKey
from kernel.ids import AccountNumber
from ledger.contract import INSTRUCTION_TYP, read_instruction
from wallet.domain.cards import COUNTER_MAX, Stamp, read_stamp, stamped_id
from wallet.hardware.card import Card, CardUnusable, FolderDisk
from wallet.hardware.element import INSTRUCTION_LIFE_MAX, PIN_TRIES_MAX, CardRefusal, Presented

PIN = "135790"
NOON = datetime(2026, 6, 15, 4, 0, tzinfo=UTC)
ACCOUNT, SHOP = AccountNumber(4711), AccountNumber(4712)


class PowerCut(BaseException):
    """Not an Exception: nothing may catch it."""


class LossyDisk:
    """Memory of a chip: what was not synced is lost at a cut; a rename may or may not be. Power fails at `cut_at`."""

    def __init__(self) -> None:
        self.durable: dict[str, bytes] = {}
        self.current: dict[str, bytes] = {}
        self.unsynced: set[str] = set()
        self.is_directory_synced = True
        self.steps = 0
        self.cut_at: int | None = None

    def cut(self, *, keeps_rename: bool = False) -> None:
        if not keeps_rename or self.unsynced:
            self.current = dict(self.durable)
        else:
            self.durable = dict(self.current)
        self.unsynced = set()

    def _step(self) -> None:
        if self.cut_at is not None and self.steps == self.cut_at:
            raise PowerCut
        self.steps += 1

    def read(self, name: str) -> bytes | None:
        return self.current.get(name)

    def write(self, name: str, content: bytes) -> None:
        self._step()
        self.current[name] = content
        self.unsynced.add(name)

    def sync(self, name: str) -> None:
        self._step()
        self.unsynced.discard(name)

    def replace(self, name: str, by: str) -> None:
        self._step()
        assert by not in self.unsynced, "renamed before it was synced"
        self.current[name] = self.current.pop(by)

    def sync_directory(self) -> None:
        self._step()
        self.durable = dict(self.current)


def new_card(disk: object | None = None, *, single: int = 100, total: int = 250) -> Card:
    card = Card.make(
        disk or LossyDisk(),  # type: ignore[arg-type]
        pin=PIN,
        pin_free_single_max_minor=single,
        pin_free_total_max_minor=total,
    )
    assert card.bind(ACCOUNT) is None
    return card


def show(amount: int = 50, *, second: int = 0, life: timedelta = INSTRUCTION_LIFE_MAX) -> Presented:
    at = NOON + timedelta(seconds=second)
    return Presented("cny", SHOP, amount, "CNY", at, at + life)


def is_signed(answer: object) -> bool:
    """A refusal is a string too."""
    return isinstance(answer, str) and not isinstance(answer, CardRefusal)


def counter_of(token: object) -> Stamp:
    return read_stamp(read_instruction(str(token)).id)


# --- what is signed --------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**48 - 1), st.integers(1, COUNTER_MAX), st.booleans(), st.binary(max_size=40))
def test_stamp_is_in_a_valid_id(unix_ms: int, counter: int, with_pin: bool, content: bytes) -> None:
    stamp = Stamp(counter, with_pin)
    made = stamped_id(unix_ms, stamp, content)
    assert read_stamp(made) == stamp
    assert (made.version, made.int >> 80) == (7, unix_ms)
    assert str(made)[19] in "89ab"
    assert stamped_id(unix_ms, stamp, content + b"x") != made


def test_card_signs_an_ordinary_instruction_with_growing_counters() -> None:
    card = new_card()
    tokens = [card.sign(show(second=second)) for second in range(3)]
    for number, token in enumerate(tokens, start=1):
        assert is_signed(token)
        jws.verify(str(token), card.public_key, typ=INSTRUCTION_TYP)
        read = read_instruction(str(token))
        assert (read.debit, read.credit, read.amount_minor, read.currency) == (ACCOUNT, SHOP, 50, "CNY")
        assert counter_of(token) == Stamp(number, with_pin=False)


def test_terminal_that_asks_again_gets_the_same_instruction() -> None:
    card = new_card(single=100)
    assert card.sign(show()) == card.sign(show())
    assert card.memory.counter == 1
    assert card.give_pin(PIN) is None
    with_pin = card.sign(show(9_999, second=1))
    assert is_signed(with_pin)
    assert card.sign(show(9_999, second=1)) == with_pin  # without the PIN: nothing new is signed


@pytest.mark.parametrize(
    ("presented", "refusal"),
    [
        (show(0), CardRefusal.AMOUNT_INVALID),
        (show(2**63), CardRefusal.AMOUNT_INVALID),
        (Presented("cny", ACCOUNT, 1, "CNY", NOON, NOON + timedelta(minutes=1)), CardRefusal.AMOUNT_INVALID),
        (show(life=timedelta(0)), CardRefusal.TIME_INVALID),
        (show(life=INSTRUCTION_LIFE_MAX + timedelta(seconds=1)), CardRefusal.TIME_INVALID),
        (show(101), CardRefusal.PIN_NEEDED),
    ],
)
def test_card_refuses(presented: Presented, refusal: CardRefusal) -> None:
    card = new_card()
    assert card.sign(presented) is refusal
    assert card.memory.counter == 0


def test_card_without_an_account_pays_nothing_and_keeps_the_first() -> None:
    card = Card.make(LossyDisk(), pin=PIN, pin_free_single_max_minor=1, pin_free_total_max_minor=1)
    assert card.sign(show(1)) is CardRefusal.NOT_BOUND
    assert card.bind(ACCOUNT) is None and card.bind(ACCOUNT) is None
    assert card.bind(SHOP) is CardRefusal.ALREADY_BOUND


def test_pin_free_caps_are_for_one_payment_and_for_all_since_the_pin() -> None:
    card = new_card(single=100, total=250)
    assert [is_signed(card.sign(show(100, second=n))) for n in range(2)] == [True, True]
    assert card.sign(show(51, second=2)) is CardRefusal.PIN_NEEDED
    assert card.give_pin(PIN) is None
    token = card.sign(show(5_000, second=3))
    assert is_signed(token)
    assert counter_of(token).with_pin
    assert card.sign(show(5_000, second=4)) is CardRefusal.PIN_NEEDED  # the PIN counted once
    assert is_signed(card.sign(show(100, second=5)))


def test_pin_is_blocked_after_its_tries_and_the_card_with_it() -> None:
    card = new_card()
    said = [card.give_pin("000000") for _ in range(PIN_TRIES_MAX + 1)]
    assert said == [CardRefusal.PIN_WRONG] * (PIN_TRIES_MAX - 1) + [CardRefusal.PIN_BLOCKED] * 2
    assert card.give_pin(PIN) is CardRefusal.PIN_BLOCKED
    assert card.sign(show(1)) is CardRefusal.PIN_BLOCKED


def test_right_pin_gives_the_tries_back() -> None:
    card = new_card()
    for _ in range(3):
        assert [card.give_pin("9999") for _ in range(PIN_TRIES_MAX - 1)] == [CardRefusal.PIN_WRONG] * 4
        assert card.give_pin(PIN) is None


@pytest.mark.parametrize("pin", ["", "123", "1234567890123", "12a4", "１２３４"])
def test_pin_is_four_to_twelve_digits(pin: str) -> None:
    with pytest.raises(ValueError, match="digits"):
        Card.make(LossyDisk(), pin=pin, pin_free_single_max_minor=1, pin_free_total_max_minor=1)


def test_key_is_in_nothing_that_the_card_says() -> None:
    disk = LossyDisk()
    card = new_card(disk)
    seed = disk.durable["card.mem"].split(b'"seed":"')[1].split(b'"')[0].decode()
    said = [repr(card), repr(card.memory), str(card.public_key), str(card.sign(show())), repr(card.public_key.to_jwk())]
    assert len(seed) == 44 and not any(seed in text for text in said)


def test_software_key_fits_the_port_of_a_security_module() -> None:
    signer: SigningKey = PrivateKey.generate()
    assert signer.public.verify(b"data", signer.sign(b"data"))
    assert signer.thumbprint == signer.public.thumbprint


# --- power cuts ------------------------------------------------------------------------------------------------------


def steps_of(action: Callable[[Card], object]) -> int:
    disk = LossyDisk()
    card = new_card(disk)
    before = disk.steps
    action(card)
    return disk.steps - before


@pytest.mark.parametrize("keeps_rename", [False, True])
def test_cut_at_any_step_of_a_signature_uses_no_counter_twice(keeps_rename: bool) -> None:
    steps = steps_of(lambda card: card.sign(show()))
    assert steps == 4
    for step in range(steps + 1):
        disk = LossyDisk()
        card = new_card(disk)
        disk.cut_at = disk.steps + step
        token: object = None
        with contextlib.suppress(PowerCut):
            token = card.sign(show())
        disk.cut_at = None
        disk.cut(keeps_rename=keeps_rename)
        card = Card(disk)
        again = card.sign(show())
        other = card.sign(show(60, second=1))
        assert is_signed(again) and is_signed(other)
        assert token in (None, again)
        assert counter_of(again).counter < counter_of(other).counter
        assert card.memory.pin_free_minor == 110


def test_cut_at_any_step_of_a_wrong_pin_wins_no_try() -> None:
    steps = steps_of(lambda card: card.give_pin("0000"))
    for step in range(steps + 1):
        disk = LossyDisk()
        card = new_card(disk)
        answers = 0
        for _ in range(PIN_TRIES_MAX * 3):
            disk.cut_at = disk.steps + step
            with contextlib.suppress(PowerCut):
                answers += card.give_pin("0000") is CardRefusal.PIN_WRONG
            disk.cut_at = None
            disk.cut()
            card = Card(disk)
            assert answers <= PIN_TRIES_MAX - card.memory.pin_tries_left


@pytest.mark.parametrize("step", range(5))
def test_killed_process_leaves_a_card_that_goes_on(tmp_path: Path, step: int) -> None:
    """The real folder; SIGKILL at each step. What the killed process had answered comes through a pipe."""
    folder = tmp_path / "card"
    with new_card(FolderDisk.make(folder)) as card:
        assert is_signed(card.sign(show(10)))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            disk = FolderDisk(folder)
            _kill_at(disk, step)
            os.write(writer, str(Card(disk).sign(show(50, second=1))).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        answered = answers.read().decode()
    _, status = os.waitpid(child, 0)
    assert (os.WTERMSIG(status) == signal.SIGKILL) == (step < 4)
    assert bool(answered) == (step == 4)
    with Card(FolderDisk(folder)) as card:
        again, other = card.sign(show(50, second=1)), card.sign(show(60, second=2))
        assert is_signed(again) and is_signed(other)
        assert answered in ("", again)
        assert [counter_of(token).counter for token in (again, other)] == [2, 3]


def _kill_at(disk: FolderDisk, step: int) -> None:
    count = iter(range(100))
    for name in ("write", "sync", "replace", "sync_directory"):
        original = getattr(disk, name)

        def killing(*values: object, original: Callable[..., None] = original, **named: object) -> None:
            if next(count) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            original(*values, **named)

        setattr(disk, name, killing)


def test_card_is_in_one_terminal_at_a_time_and_is_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "card"
    with new_card(FolderDisk.make(folder)), pytest.raises(CardUnusable, match="another terminal"):
        FolderDisk(folder)
    with pytest.raises(CardUnusable, match="never overwritten"):
        FolderDisk.make(folder)
    folder.chmod(0o755)
    with pytest.raises(CardUnusable, match="chmod 700"):
        FolderDisk(folder)


@cache
def memory_of_a_card() -> bytes:
    disk = LossyDisk()
    new_card(disk)
    return disk.durable["card.mem"]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_memory_is_no_card(data: st.DataObject) -> None:
    disk = LossyDisk()
    content = bytearray(memory_of_a_card())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    disk.current["card.mem"] = bytes(content)
    with pytest.raises(CardUnusable):
        Card(disk)


class CardMachine(RuleBasedStateMachine):
    """Terminals come and go, PINs are right and wrong, power fails at any step."""

    @initialize()
    def begin(self) -> None:
        self.disk = LossyDisk()
        self.card = new_card(self.disk)
        self.out: dict[int, str] = {}
        self.pin_free = 0
        self.second = 0
        self.wrong_answers = 0

    def _powered(self, action: Callable[[], object], cut_at: int | None, *, keeps_rename: bool) -> object:
        self.disk.cut_at = None if cut_at is None else self.disk.steps + cut_at
        try:
            return action()
        except PowerCut:
            self.disk.cut_at = None
            self.disk.cut(keeps_rename=keeps_rename)
            self.card = Card(self.disk)
            self.pin_free = min(self.pin_free, self.card.memory.pin_free_minor)  # one with PIN may have been signed
            return None
        finally:
            self.disk.cut_at = None

    @rule(amount=st.integers(1, 150), cut_at=st.one_of(st.none(), st.integers(0, 3)), renamed=st.booleans())
    def pay(self, amount: int, cut_at: int | None, renamed: bool) -> None:
        self.second += 1
        answer = self._powered(lambda: self.card.sign(show(amount, second=self.second)), cut_at, keeps_rename=renamed)
        if is_signed(answer):
            stamp = counter_of(answer)
            assert stamp.counter not in self.out
            assert not self.out or stamp.counter > max(self.out)
            self.out[stamp.counter] = str(answer)
            self.pin_free = 0 if stamp.with_pin else self.pin_free + amount
            assert stamp.with_pin or amount <= 100

    @rule(right=st.booleans(), cut_at=st.one_of(st.none(), st.integers(0, 7)))
    def give_pin(self, right: bool, cut_at: int | None) -> None:
        answer = self._powered(lambda: self.card.give_pin(PIN if right else "0000"), cut_at, keeps_rename=False)
        if answer is CardRefusal.PIN_WRONG:
            self.wrong_answers += 1
        elif self.card.memory.pin_tries_left == PIN_TRIES_MAX:
            self.wrong_answers = 0

    @invariant()
    def what_leaves_the_card_without_pin_stays_within_the_cap(self) -> None:
        if hasattr(self, "card"):
            assert self.pin_free <= self.card.memory.pin_free_minor <= 250

    @invariant()
    def every_wrong_answer_has_cost_a_try(self) -> None:
        if hasattr(self, "card"):
            assert self.wrong_answers <= PIN_TRIES_MAX - self.card.memory.pin_tries_left


TestCard = pytest.mark.campaign(CardMachine.TestCase)
EXAMPLES = int(os.environ.get("JIAOZI_MACHINE_EXAMPLES", "4"))
TestCard.settings = settings(max_examples=EXAMPLES, stateful_step_count=20, deadline=None)
