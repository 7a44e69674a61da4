"""A ledger that cheats at a close is caught, each cheat by whom docs/balance-proofs.md says.

Goal: a root that leaves a balance out, understates it, or hides a liability behind a negative one is refused by the
holder's own proof or found by the auditor; two roots convict the ledger before anybody who has seen both.
Method: a ledger that signs any tree (tests/cheating_closings.py); the verifier that holders use; Hypothesis.
"""

from __future__ import annotations

import json
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.crypto.keys import PrivateKey
from kernel.transparency.notes import KeyKind, VerifierKey
from ledger.balance_proofs import (
    ProofRefused,
    contradiction,
    open_statement,
    parse_proof,
    parse_statement,
    verify_balance_proof,
)
from ledger.verifier.closings import audit_closing
from tests.cheating_closings import ISSUED, LOG_KEY, MASTER, ORIGIN, SIGNING, CheatingClosing

BOOK = {2: 500_000, 3: 0, 4: 12_345, 5: 7, 6: 250_000_000, 7: 99, 8: 1}
ALICE = 4
HONEST = CheatingClosing.of(BOOK)


def verify(document: dict[str, Any], **known: int) -> int:
    proof = parse_proof(json.dumps(document).encode())
    return verify_balance_proof(proof, log_key=LOG_KEY, **known).balance_minor


def audit(closing: CheatingClosing, book: dict[int, int] = BOOK) -> list[str]:
    """By the books as replayed, and what they add up to."""
    total = sum(book.values())
    return audit_closing(
        closing.statement.text,
        key=closing.key,
        balances=np.array([book[account] for account in sorted(book)], np.int64),
        block=9,
        commitment=b"\7" * 32,
        seq=100,
        totals={"issued": ISSUED, "redeemed": ISSUED - total, "vaults": 0, "wallets": total, "offline": 0},
    )


def test_an_honest_closing_satisfies_every_holder_and_the_auditor() -> None:
    for account, balance in BOOK.items():
        assert verify(HONEST.document(account), account=account, balance_minor=balance) == balance
    assert HONEST.statement.root_total_minor == sum(BOOK.values())
    assert audit(HONEST) == []


# --- (a) omission


def test_a_balance_left_out_has_no_proof_and_the_auditor_finds_it() -> None:
    cheat = CheatingClosing.of(BOOK, leave_out=ALICE)
    assert cheat.statement.root_total_minor == sum(BOOK.values()) - BOOK[ALICE]
    for indexes in permutations(range(len(cheat.leaves)), 2):  # whatever leaves the ledger shows her
        with pytest.raises(ProofRefused):
            verify(cheat.document(ALICE, indexes=indexes), account=ALICE)
    assert any("left out" in finding for finding in audit(cheat))
    assert any("root_total_minor" in finding for finding in audit(cheat))
    assert verify(cheat.document(6), account=6, balance_minor=BOOK[6]) == BOOK[6]  # others cannot see it


def test_an_account_beyond_the_count_is_refused_and_the_count_is_in_the_block_header() -> None:
    last = max(BOOK)
    short = {account: balance for account, balance in BOOK.items() if account != last}
    cheat = CheatingClosing.of(short)
    with pytest.raises(ProofRefused, match="not among those"):
        verify(HONEST.document(last) | {"statement": cheat.note}, account=last)
    assert any(finding.startswith("accounts is 7") for finding in audit(cheat))


def test_one_leaf_does_not_serve_two_holders() -> None:
    """The oldest cheat: holders of equal balances are shown the same leaf, and it is counted once."""
    cheat = CheatingClosing.of({2: 700, 3: 700}, leave_out=3)
    twin = cheat.document(2)
    assert verify(twin, account=2, balance_minor=700) == 700
    with pytest.raises(ProofRefused, match="does not lead"):
        verify(cheat.document(3, indexes=[share["index"] for share in twin["shares"]]), account=3)


def test_one_share_is_not_shown_twice() -> None:
    document = HONEST.document(ALICE)
    first, second = document["shares"]
    for shares in ([first, first], [second, second]):
        with pytest.raises(ProofRefused, match="one and the same leaf"):
            verify(document | {"shares": shares}, account=ALICE)
    for shares in ([second, first], [first], [first, second, second]):
        with pytest.raises(ProofRefused):
            verify(document | {"shares": shares}, account=ALICE)


# --- (b) understatement


def test_an_understated_balance_is_refused_by_its_holder_and_found_by_the_auditor() -> None:
    cheat = CheatingClosing.of(BOOK, claim={ALICE: BOOK[ALICE] - 45})
    assert verify(cheat.document(ALICE)) == BOOK[ALICE] - 45  # a valid proof: of less than she owns
    with pytest.raises(ProofRefused, match="proves a balance of 12300, not of 12345"):
        verify(cheat.document(ALICE), account=ALICE, balance_minor=BOOK[ALICE])
    with pytest.raises(ProofRefused, match="do not add up"):
        verify(cheat.document(ALICE, balance=BOOK[ALICE]), account=ALICE, balance_minor=BOOK[ALICE])
    assert any("root_total_minor" in finding for finding in audit(cheat))


def test_a_balance_moved_to_an_accomplice_under_the_right_total_is_found_too() -> None:
    cheat = CheatingClosing.of(BOOK, claim={ALICE: 0, 6: BOOK[6] + BOOK[ALICE]})
    assert cheat.statement.root_total_minor == sum(BOOK.values())
    with pytest.raises(ProofRefused, match="proves a balance of 0"):
        verify(cheat.document(ALICE), account=ALICE, balance_minor=BOOK[ALICE])
    assert [finding.partition(" ")[0] for finding in audit(cheat)] == ["root"]


# --- (c) a negative balance that hides a liability


def test_a_negative_balance_is_refused_by_its_holder_by_its_neighbours_and_by_the_auditor() -> None:
    cheat = CheatingClosing.of(BOOK, claim={3: -400_000})
    assert cheat.statement.root_total_minor == sum(BOOK.values()) - 400_000
    below = {index for index, leaf in enumerate(cheat.leaves) if leaf.sum < 0}
    assert len(below) == 1
    with pytest.raises(ProofRefused):  # nothing below zero can be written
        verify(cheat.document(3), account=3)
    [negative] = below
    neighbour = cheat.leaves[negative ^ 1]
    if neighbour.account != 3:
        with pytest.raises(ProofRefused):
            verify(cheat.document(neighbour.account), account=neighbour.account)
    assert any("root" in finding for finding in audit(cheat))


@pytest.mark.parametrize("shown", [-400_000, 2**64 - 400_000, 400_000, 0])
def test_however_the_negative_sum_is_written_it_is_refused(shown: int) -> None:
    cheat = CheatingClosing.of(BOOK, claim={3: -400_000})
    [negative] = [index for index, leaf in enumerate(cheat.leaves) if leaf.sum < 0]
    refused = 0
    for leaf in cheat.leaves:
        if leaf.account == 3:
            continue
        document = cheat.document(leaf.account)
        text = json.dumps(document).replace('"-400000"', f'"{shown}"')
        if text == json.dumps(document) and shown != -400_000:
            continue  # the leaf itself is not on this path; sums above it are honest numbers of a cheated tree
        try:
            proof = parse_proof(text.encode())
            verify_balance_proof(proof, log_key=LOG_KEY)
        except ProofRefused:
            refused += 1
        else:
            assert negative not in {share.index ^ 1 for share in proof.shares}
    assert refused >= 1


def test_an_overflow_of_the_total_is_refused() -> None:
    cheat = CheatingClosing.of({2: 2**62, 3: 5, 4: 6, 5: 7})
    [path] = [share["path"] for share in cheat.document(3)["shares"]][:1]
    path[-1]["sum_minor"] = str(2**63 - 1)
    document = cheat.document(3)
    document["shares"][0]["path"] = path
    with pytest.raises(ProofRefused, match="63 bits"):
        verify(document)


# --- (d) two roots


def test_two_roots_for_one_closing_convict_the_ledger() -> None:
    for_alice = HONEST
    for_others = CheatingClosing.of(BOOK, leave_out=ALICE)
    assert verify(for_alice.document(ALICE), account=ALICE, balance_minor=BOOK[ALICE])
    assert verify(for_others.document(6), account=6, balance_minor=BOOK[6])
    one, two = (open_statement(closing.note, log_key=LOG_KEY) for closing in (for_alice, for_others))
    assert contradiction(one, two) == "two statements for closing 1"
    assert contradiction(one, one) is None


def test_a_fork_shows_at_the_next_closing_too() -> None:
    other = CheatingClosing.of(BOOK, claim={ALICE: 0, 6: BOOK[6] + BOOK[ALICE]})
    following = CheatingClosing.of(BOOK, closing=2, previous=other.statement.digest)
    assert contradiction(HONEST.statement, following.statement) == "closing 2 does not follow this closing 1"
    assert contradiction(following.statement, other.statement) is None
    split = CheatingClosing.of(BOOK, closing=3, previous=b"\1" * 32, commitment=b"\2" * 32)
    assert contradiction(HONEST.statement, split.statement) == "two blocks have the number 9"


# --- signature and form


def test_only_the_logs_key_signs_and_only_for_its_ledger() -> None:
    stranger = VerifierKey(ORIGIN, KeyKind.ED25519, PrivateKey.generate().public)
    renamed = VerifierKey("another.example/log", KeyKind.ED25519, SIGNING.public)
    witness = VerifierKey(ORIGIN, KeyKind.COSIGNATURE_V1, SIGNING.public)
    for key in (stranger, renamed, witness):
        with pytest.raises(ProofRefused):
            verify_balance_proof(HONEST.proof(ALICE), log_key=key)


@settings(max_examples=300)
@given(st.data())
def test_an_altered_character_of_a_proof_is_refused_or_changes_nothing(data: st.DataObject) -> None:
    document = json.dumps(HONEST.document(ALICE))
    at = data.draw(st.integers(0, len(document) - 1))
    changed = document[:at] + data.draw(st.sampled_from('0123456789abcdefXYZ{}[]",:. -')) + document[at + 1 :]
    try:
        proof = parse_proof(changed.encode())
        proved = verify_balance_proof(proof, log_key=LOG_KEY, account=ALICE)
    except ProofRefused:
        return
    assert (proved.balance_minor, proved.statement) == (BOOK[ALICE], HONEST.statement)
    original = HONEST.proof(ALICE)
    # white space between members, or base64 padding of a note nobody reads: the meaning is the same
    assert proof.model_copy(update={"statement": ""}) == original.model_copy(update={"statement": ""})


@pytest.mark.parametrize(
    "change",
    [
        {"circulation_minor": "1"},
        {"issued_minor": "1"},
        {"wallets_minor": "1"},
        {"root_total_minor": "1"},
        {"leaves": 3},
        {"shares_per_account": 3},
        {"closing": 2},
        {"previous": "11" * 32},
        {"format": "jiaozi-closing/v2"},
        {"accounts": "7"},
        {"root_total_minor": 250512452},
        {"more": 1},
    ],
)
def test_a_statement_that_does_not_add_up_is_refused_however_well_signed(change: dict[str, object]) -> None:
    members = json.loads(HONEST.statement.text) | change
    with pytest.raises(ProofRefused):
        parse_statement(json.dumps(members, sort_keys=True, separators=(",", ":")) + "\n")


def test_a_statement_has_one_form() -> None:
    text = HONEST.statement.text
    assert parse_statement(text) == HONEST.statement
    for other in (text[:-1], " " + text, text.replace(":", ": ", 1), text + "\n"):
        with pytest.raises(ProofRefused):
            parse_statement(other)


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_no_bytes_make_the_verifier_fail_otherwise(data: bytes) -> None:
    with pytest.raises(ProofRefused):
        parse_proof(data)


def test_the_master_is_not_in_a_proof() -> None:
    text = json.dumps(HONEST.document(ALICE))
    assert MASTER.hex() not in text
    assert HONEST.key.hex() not in text
