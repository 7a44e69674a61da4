"""Corporate owners: a customer's legal name and identifiers, kept as personal data under the customer's own key."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from uuid import UUID

from kernel import strict_json
from kernel.errors import ProblemError
from wallet.contract import WalletRefusal
from wallet.domain.corporate import is_lei, is_social_credit_code
from wallet.store import customers, families
from wallet.usecases.context import Context

_LABEL = "corporate"


@dataclass(frozen=True, slots=True)
class LegalData:
    legal_name: str
    lei: str
    social_credit_code: str


def register(context: Context, customer_id: UUID, data: LegalData) -> LegalData:
    """Once a customer; the same again answers the same.

    Raises: ProblemError(customer-not-found, corporate-data-invalid, customer-exists: it has other data).
    """
    if not (data.lei or data.social_credit_code):
        raise ProblemError(WalletRefusal.CORPORATE_DATA_INVALID, "give an LEI or a unified social credit code")
    if data.lei and not is_lei(data.lei):
        raise ProblemError(WalletRefusal.CORPORATE_DATA_INVALID, "the LEI (ISO 17442)")
    if data.social_credit_code and not is_social_credit_code(data.social_credit_code):
        raise ProblemError(WalletRefusal.CORPORATE_DATA_INVALID, "the unified social credit code (GB 32100-2015)")
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        customer = customers.find_customer(connection, customer_id)
        if customer is None:
            raise ProblemError(WalletRefusal.CUSTOMER_NOT_FOUND)
        if customer.is_erased:
            raise ProblemError(WalletRefusal.CUSTOMER_ERASED)
        plain = strict_json.dumps(asdict(data))
        sealed = context.personal_data.seal_document(customer_id, customer.wrapped_key, plain, label=_LABEL)
        families.insert_corporate(connection, customer_id, legal_data=sealed, created_at=context.clock())
    known = find(context, customer_id)
    if known != data:
        raise ProblemError(WalletRefusal.CUSTOMER_EXISTS, "the customer has other corporate data")
    return known


def find(context: Context, customer_id: UUID) -> LegalData:
    """Raises: ProblemError(customer-not-found), also for a personal customer."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        customer = customers.find_customer(connection, customer_id)
        sealed = families.find_corporate(connection, customer_id)
    if customer is None or sealed is None:
        raise ProblemError(WalletRefusal.CUSTOMER_NOT_FOUND)
    if customer.is_erased:
        raise ProblemError(WalletRefusal.CUSTOMER_ERASED)
    plain = context.personal_data.open_document(customer_id, customer.wrapped_key, sealed, label=_LABEL)
    value = strict_json.loads(plain)
    return LegalData(str(value["legal_name"]), str(value["lei"]), str(value["social_credit_code"]))
