"""Goal: a replay names exactly the past payments that another pack would have refused, and why.
Method: Hypothesis histories against a naive reference that counts everything anew for each payment; packs' differences.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from ledger.contract import TransferRefusal
from wallet.domain.rule_replay import Movement, Replay, differences
from wallet.domain.rules import RulePack, WalletClass
from wallet.rulepack_files import load_rule_pack

START = datetime(2025, 12, 30, 10, 0, tzinfo=UTC)
WALLETS = [UUID(int=number) for number in range(1, 4)]
OPENED = dict(zip(WALLETS, (WalletClass.II, WalletClass.III, WalletClass.IV), strict=True))
PACK = load_rule_pack("ecny-2020-08")

somebody = st.sampled_from([*WALLETS, None])


@st.composite
def histories(draw: st.DrawFn) -> list[Movement]:
    moment, history = START, []
    for number in range(draw(st.integers(0, 40))):
        moment += timedelta(minutes=draw(st.sampled_from((0, 5, 300, 700, 1500))))
        kind = draw(st.sampled_from(("payment", "payment", "payment", "purse-fund", "other", "class")))
        debit, credit = draw(somebody), draw(somebody)
        if kind in ("class", "purse-fund"):
            credit, debit = None, debit or WALLETS[0]
        if debit == credit:
            continue
        history.append(
            Movement(
                kind=kind,  # type: ignore[arg-type]
                id=UUID(int=100 + number),
                at=moment,
                amount_minor=draw(st.sampled_from((1, 400_00, 500_00, 501_00, 1_000_00, 2_000_00, 9_000_00))),
                debit=debit,
                debit_opened_in=OPENED.get(debit) if debit else None,
                credit=credit,
                credit_opened_in=OPENED.get(credit) if credit else None,
                becomes=draw(st.sampled_from(WalletClass)) if kind == "class" else None,
            )
        )
    return history


def naive(pack: RulePack, history: list[Movement]) -> list[tuple[UUID, str]]:
    """Everything counted again from the beginning, for every payment; caps read from the pack's own text."""

    def cap(wallet_class: WalletClass, name: str) -> float:
        text = getattr(pack.classes[wallet_class], name).max
        return float("inf") if text == "none" else int(text) * 100

    def day(movement: Movement) -> tuple[int, int, int]:
        local = movement.at + timedelta(hours=8)  # Shanghai has no summer time
        return local.year, local.month, local.day

    booked: list[Movement] = []
    refused: list[tuple[UUID, str]] = []
    for index, movement in enumerate(history):

        def class_of(wallet: UUID, index: int = index) -> WalletClass:
            changes = [m.becomes for m in history[:index] if m.kind == "class" and m.debit == wallet]
            return changes[-1] or WalletClass.I if changes else OPENED[wallet]

        if movement.kind == "class":
            continue
        reason = None
        if movement.kind in ("payment", "purse-fund") and movement.debit is not None:
            spent = [m for m in booked if m.debit == movement.debit and m.kind in ("payment", "purse-fund")]
            today = sum(m.amount_minor for m in spent if day(m) == day(movement)) + movement.amount_minor
            year = sum(m.amount_minor for m in spent if day(m)[0] == day(movement)[0]) + movement.amount_minor
            payer = class_of(movement.debit)
            if movement.amount_minor > cap(payer, "single"):
                reason = "single-limit-exceeded"
            elif today > cap(payer, "daily"):
                reason = "day-limit-exceeded"
            elif year > cap(payer, "annual"):
                reason = "year-limit-exceeded"
            elif movement.credit is not None:
                balance = 0
                for m in booked:
                    if m.credit == movement.credit:
                        balance += m.amount_minor
                    if m.debit == movement.credit:
                        balance = max(0, balance - m.amount_minor)
                if balance + movement.amount_minor > cap(class_of(movement.credit), "balance"):
                    reason = "balance-limit-exceeded"
        if reason is None:
            booked.append(movement)
        else:
            refused.append((movement.id, reason))
    return refused


@given(histories())
def test_replay_refuses_what_a_naive_count_refuses(history: list[Movement]) -> None:
    replay = Replay(PACK)
    found = [item for item in map(replay.feed, history) if item is not None]
    assert [(item.payment, item.refusal.value) for item in found] == naive(PACK, history)
    assert replay.refused.total() == len(found)
    assert replay.refused_minor.total() == sum(item.amount_minor for item in found)


def test_days_roll_over_in_shanghai_and_refused_payments_use_nothing_up() -> None:
    payer = WALLETS[2]
    one = Movement("payment", UUID(int=9), START, 500_00, payer, WalletClass.IV, None, None)
    replay = Replay(PACK)
    assert [replay.feed(one), replay.feed(one)] == [None, None]
    third = replay.feed(one)
    assert third is not None
    assert (third.refusal, third.wallet_class) == (TransferRefusal.DAY_LIMIT_EXCEEDED, WalletClass.IV)
    midnight = replace(one, at=datetime(2025, 12, 30, 16, 0, tzinfo=UTC))
    assert replay.feed(midnight) is None


def test_a_pack_differs_from_itself_in_nothing_and_from_the_next_cap_by_cap() -> None:
    old, new = load_rule_pack("ecny-2020-08"), load_rule_pack("ecny-2021-06")
    assert list(differences(old, old)) == []
    found = {item.place: (item.before, item.after) for item in differences(old, new)}
    assert found["III.single"] == ("2000", "[5000]")
    assert found["I.annual"] == ("500000", "none")
    assert "II.opened-with" not in found
