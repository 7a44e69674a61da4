"""Goal: whatever comes, in whatever order, a request is never paid beyond what it asks, and every fen is counted once.
Method: Hypothesis over the pure rules; a table of contradictory terms.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel import ids
from kernel.ids import AccountNumber
from wallet.domain.refunds import Original, release, reserve
from wallet.domain.requests import (
    OPEN_STATES,
    Received,
    Request,
    Terms,
    amount_refused,
    contradiction,
    end,
    payment_id,
    receive,
)

NOW = datetime(2026, 6, 15, 4, tzinfo=UTC)
ID = ids.uuid7_at(1)


def request(terms: Terms) -> Request:
    return Request(
        id=ID,
        wallet_id=ID,
        account=AccountNumber(17),
        currency="CNY",
        terms=terms,
        payer_account=None,
        payer_institution=None,
        payee_name="Shop",
        description="",
        payee_reference="",
        document="",
        state="open",
        paid_minor=0,
        payments=0,
        surplus_minor=0,
        created_at=NOW,
        expires_at=NOW + timedelta(hours=1),
        ended_at=None,
    )


TERMS = st.builds(
    Terms,
    st.none() | st.integers(1, 100),
    st.none() | st.integers(1, 50),
    st.none() | st.integers(1, 50),
    st.booleans(),
).filter(lambda terms: contradiction(terms) is None)
COMING = st.lists(
    st.tuples(st.integers(-1, 8), st.integers(1, 120), st.integers(0, 80), st.booleans()), min_size=1, max_size=25
)


@given(TERMS, COMING)
def test_never_paid_beyond_what_is_asked_and_every_fen_counted(
    terms: Terms, coming: list[tuple[int, int, int, bool]]
) -> None:
    now, total = request(terms), 0
    for seq, (slot, amount, minute, is_cancelled) in enumerate(coming, start=1):
        transfer = ids.uuid7_at(seq) if slot < 0 else payment_id(ID, slot)
        at = NOW + timedelta(minutes=minute)
        if is_cancelled:
            now = end(now, "cancelled", at)
        before = now
        now, is_surplus = receive(now, Received(transfer, seq, None, amount, at))
        total += amount
        assert now.paid_minor + now.surplus_minor == total
        assert is_surplus == (now.payments == before.payments)
        if terms.amount_minor is not None:
            assert now.paid_minor <= terms.amount_minor
            assert (now.state == "paid") == (now.paid_minor == terms.amount_minor)
        if not terms.is_many:
            assert now.payments <= 1
        if terms.has_slots and not is_surplus:
            assert transfer == payment_id(ID, before.payments)
        assert (now.ended_at is None) == (now.state in OPEN_STATES)
        if before.state == "paid":
            assert is_surplus


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 120)), max_size=40))
def test_refunds_reserved_never_exceed_the_original(steps: list[tuple[bool, int]]) -> None:
    original = Original(ID, ID, AccountNumber(17), AccountNumber(18), 100, "CNY", 0, 1, NOW)
    reserved: list[int] = []
    for is_release, amount in steps:
        if is_release and reserved:
            original = release(original, reserved.pop())
        else:
            after = reserve(original, amount)
            assert (after is None) == (amount == 0 or amount > 100 - sum(reserved))
            if after is not None:
                original = after
                reserved.append(amount)
        assert original.refunded_minor == sum(reserved) <= 100


@pytest.mark.parametrize(
    "terms",
    [
        Terms(0, None, None, False),
        Terms(-1, None, None, False),
        Terms(2**63, None, None, False),
        Terms(10, None, 20, False),
        Terms(10, 5, None, False),
        Terms(10, 11, None, True),
        Terms(None, 6, 5, False),
    ],
)
def test_contradictory_terms_are_named(terms: Terms) -> None:
    assert contradiction(terms)


def test_last_part_may_be_smaller_than_the_least() -> None:
    terms = Terms(100, 30, None, True)
    assert amount_refused(terms, 29, paid_minor=0)
    assert amount_refused(terms, 10, paid_minor=90) is None
    assert amount_refused(terms, 11, paid_minor=90)


def test_payment_ids_are_those_of_the_document() -> None:
    """docs/qr.md: SHA-256 of the 16 bytes and the label, the request's time in front."""
    found = payment_id(UUID("0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"), 0)
    assert (str(found)[:13], found.version, found.variant) == ("0198c7b2-6f1e", 7, "specified in RFC 4122")
    assert found != payment_id(UUID("0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"), 1)
