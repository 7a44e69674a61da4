"""Goal: the words that journals and clients have stored keep their meaning for ever.

Method: the order of every coded enum is pinned here; a member may only be appended, never moved, renamed or removed.
"""

from __future__ import annotations

import pytest

from kernel.errors import Refusal
from ledger.domain.decide import REFUSAL_CODE
from ledger.domain.records import JOURNAL, SUBMISSION, Authority, EvidenceKind
from ledger.domain.vocabulary import (
    ACCOUNT_KIND_CODE,
    KIND_CODE,
    AccountKind,
    LedgerRefusal,
    TransferKind,
    TransferRefusal,
)

ACCOUNT_KINDS = "issuance vault wallet offline"
TRANSFER_KINDS = (
    "issue redeem exchange-in exchange-out payment refund interest hold post void expire adjustment tombstone"
    " purse-fund purse-redeem purse-loss"
)
REFUSALS = """
amount-invalid accounts-must-differ id-already-used debit-account-unknown credit-account-unknown kind-not-allowed
not-authorised hold-not-found hold-already-posted hold-already-voided hold-expired hold-secret-wrong
hold-amount-exceeded hold-terms-invalid account-closed debit-account-suspended debit-account-frozen
credit-account-frozen quota-exceeded single-limit-exceeded day-limit-exceeded year-limit-exceeded
insufficient-funds balance-limit-exceeded
amount-overflow linked-transfer-refused linked-chain-open
"""
TRANSIENT = """
debit-account-unknown credit-account-unknown hold-not-found debit-account-suspended debit-account-frozen
credit-account-frozen quota-exceeded day-limit-exceeded year-limit-exceeded insufficient-funds
balance-limit-exceeded linked-transfer-refused
"""


def test_the_codes_of_account_and_transfer_kinds_never_move() -> None:
    assert [k.value for k in AccountKind] == ACCOUNT_KINDS.split()
    assert [k.value for k in TransferKind][: len(TRANSFER_KINDS.split())] == TRANSFER_KINDS.split()
    assert list(KIND_CODE.values()) == list(range(len(TransferKind)))
    assert list(ACCOUNT_KIND_CODE.values()) == [0, 1, 2, 3]


def test_refusals_keep_their_order_of_precedence_and_their_codes() -> None:
    assert [r.value for r in TransferRefusal][: len(REFUSALS.split())] == REFUSALS.split()
    assert list(REFUSAL_CODE.values()) == list(range(1, len(TransferRefusal) + 1))


def test_which_refusals_may_pass_later() -> None:
    assert {r.value for r in TransferRefusal if r.transient} == set(TRANSIENT.split())


def test_authorities_and_evidence_keep_their_codes() -> None:
    assert [(a.name, int(a)) for a in Authority] == [
        ("INSTITUTION", 0), ("OWNER", 1), ("SECRET", 2), ("MANDATE", 3), ("ENGINE", 4)
    ]  # fmt: skip
    assert [(e.name, int(e)) for e in EvidenceKind] == [("INSTRUCTION", 1), ("SECRET", 2), ("MANDATE", 3)]


@pytest.mark.parametrize("refusals", [TransferRefusal, LedgerRefusal])
def test_every_refusal_is_one_sentence_with_one_code(refusals: type[Refusal]) -> None:
    for refusal in refusals:
        assert refusal.value == refusal.name.lower().replace("_", "-")
        assert refusal.title.endswith(".") and refusal.title[0].isupper()
    assert not {r.value for r in TransferRefusal} & {r.value for r in LedgerRefusal}


def test_records_are_packed_big_endian_and_have_the_documented_sizes() -> None:
    assert (SUBMISSION.itemsize, JOURNAL.itemsize) == (88, 93)
    for record in (SUBMISSION, JOURNAL):
        assert record.fields is not None
        for name, (column, *_) in record.fields.items():
            assert column.itemsize == 1 or column.byteorder == ">" or name == "reserved"
