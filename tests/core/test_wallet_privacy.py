"""Goal: what becomes of an unmask order, decided purely; and what is left of a number when it is masked."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

from kernel import ids
from kernel.crypto.keys import PrivateKey
from wallet.contract import WalletRefusal
from wallet.contract.privacy import (
    ORDER_TYP,
    StatementRefused,
    UnmaskField,
    UnmaskOrder,
    read_approval,
    read_order,
    sign_order,
)
from wallet.domain.privacy import Approval, Case, Officer, mask_phone, refuse_approval, refuse_disclosure, refuse_life

NOW = datetime(2026, 6, 15, tzinfo=UTC)
ID = UUID("0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28")
ADA, BEN, CAI, ADA_TOO = (Officer(f"key-{n}", name, {}) for n, name in enumerate(("ada", "ben", "cai", "ada")))


def case(*approvers: Officer) -> Case:
    approvals = tuple(Approval(officer, "", NOW) for officer in approvers)
    return Case(ID, "", ID, ID, ADA, NOW + timedelta(days=1), NOW, approvals)


APPROVALS = [
    (case(), BEN, None),
    (case(BEN), CAI, None),
    (case(), ADA, WalletRefusal.UNMASK_OWN_ORDER),
    (case(), ADA_TOO, WalletRefusal.UNMASK_OWN_ORDER),
    (case(BEN), Officer("another", "ben", {}), WalletRefusal.UNMASK_APPROVED_BEFORE),
    (replace(case(), valid_until=NOW), BEN, WalletRefusal.UNMASK_EXPIRED),
    (replace(case(BEN, CAI), entry_index=0), Officer("d", "dov", {}), WalletRefusal.UNMASK_ANSWERED),
]


@pytest.mark.parametrize(("known", "officer", "refusal"), APPROVALS)
def test_who_may_approve(known: Case, officer: Officer, refusal: WalletRefusal | None) -> None:
    assert refuse_approval(known, officer, now=NOW) == refusal


DISCLOSURES = [
    (case(BEN, CAI), ADA, None),
    (case(BEN, CAI), BEN, WalletRefusal.UNMASK_NOT_YOURS),
    (case(BEN, CAI), ADA_TOO, WalletRefusal.UNMASK_NOT_YOURS),
    (case(BEN), ADA, WalletRefusal.UNMASK_NOT_APPROVED),
    (case(BEN, BEN), ADA, WalletRefusal.UNMASK_NOT_APPROVED),
    (case(BEN, ADA), ADA, WalletRefusal.UNMASK_NOT_APPROVED),
    (replace(case(BEN, CAI), valid_until=NOW), ADA, WalletRefusal.UNMASK_EXPIRED),
    (replace(case(BEN, CAI), valid_until=NOW, entry_index=3), ADA, WalletRefusal.UNMASK_ANSWERED),
]


@pytest.mark.parametrize(("known", "officer", "refusal"), DISCLOSURES)
def test_who_is_answered(known: Case, officer: Officer, refusal: WalletRefusal | None) -> None:
    assert refuse_disclosure(known, officer, now=NOW) == refusal


@pytest.mark.parametrize(
    ("seconds", "is_refused"), [(0, True), (1, False), (7 * 86_400, False), (7 * 86_400 + 1, True)]
)
def test_an_order_lives_for_a_while(seconds: int, is_refused: bool) -> None:
    assert (refuse_life(NOW + timedelta(seconds=seconds), now=NOW) is not None) == is_refused


@pytest.mark.parametrize(
    ("phone", "masked"), [("", ""), ("+123456", "***"), ("+1234567", "***67"), ("+8613912345678", "***78")]
)
def test_a_number_is_masked_to_its_last_two_digits(phone: str, masked: str) -> None:
    assert mask_phone(phone) == masked


def test_an_order_is_one_officers_of_one_kind_and_one_spelling() -> None:
    key = PrivateKey.generate()
    values = {
        "institution": "BKCHCNBJ",
        "request": ID,
        "case_number": "1",
        "legal_basis": "law",
        "account": ids.show_account(17),
        "fields": [UnmaskField.NAME],
        "valid_until": NOW,
    }
    order = UnmaskOrder.model_validate(values)
    token = sign_order(order, key=key)
    assert read_order(token, key.public) == order
    assert ORDER_TYP.startswith("jiaozi-")
    with pytest.raises(StatementRefused):
        read_order(token, PrivateKey.generate().public)
    with pytest.raises(StatementRefused):
        read_approval(token, key.public)
    wrongs: tuple[dict[str, Any], ...] = (
        {"wallet": ID},
        {"account": None},
        {"fields": []},
        {"fields": ["name", "name"]},
        {"more": 1},
    )
    for wrong in wrongs:
        with pytest.raises(ValidationError):
            UnmaskOrder.model_validate(values | wrong)
