"""Goal: nobody is shown a text in another order than it was written in, or one that steers his terminal.
Method: what a payer is shown before he approves, in every script, with each character that may not stand there.
"""

from __future__ import annotations

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from wallet.contract.programs import MerchantRequest, MerchantStatement, ParameterValue
from wallet.contract.requests import PaymentRequestOrder, RequestDocument

HARMLESS = ("茶馆 Teahouse", "مقهى \u200f12", "קפה\u200e", "O'Brien & Söhne", "👩\u200d🍳")


@pytest.mark.parametrize(
    ("model", "field"),
    [
        (PaymentRequestOrder, "payee_name"),
        (PaymentRequestOrder, "description"),
        (PaymentRequestOrder, "payee_reference"),
        (RequestDocument, "payee_name"),
        (RequestDocument, "description"),
        (MerchantRequest, "name"),
        (MerchantStatement, "name"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_what_a_payer_is_shown_changes_no_direction_and_holds_no_control(model: type[BaseModel], field: str) -> None:
    found = TypeAdapter(model.model_fields[field].rebuild_annotation())
    for text in HARMLESS:
        assert found.validate_python(text) == text
    for code in (0x00, 0x0A, 0x1B, 0x7F, 0x9B, 0x2028, *range(0x202A, 0x202F), *range(0x2066, 0x206A)):
        for text in (f"{chr(code)}99", f"pay{chr(code)}99", f"pay{chr(code)}"):
            with pytest.raises(ValidationError):
                found.validate_python(text)


def test_so_does_a_parameter_of_a_program() -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(ParameterValue).validate_python("lessons \u202e001")
