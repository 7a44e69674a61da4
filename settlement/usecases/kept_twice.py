"""What it means to a client when the database refuses an instruction or an order that the service had allowed.

Told by the constraint's name, and by nothing else: that a UETR is used is said only of a UETR. Another key that a
request has taken since it was looked up is a matter of repeating: then it is found. What is not named here is a fault
of this program, and stays what it is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import sqlalchemy as sa
from psycopg import Error as PostgresError
from psycopg.errors import UniqueViolation

from kernel.errors import ProblemError, Refusal, RequestRefusal
from settlement.domain.refusals import SettlementRefusal

log = logging.getLogger("jiaozi.settlement.kept-twice")

_S = SettlementRefusal
REFUSALS: Mapping[str, tuple[Refusal, str]] = {
    "settlement_uetr_once": (_S.UETR_ALREADY_USED, "another request has just used it"),
    "fx_execution_uetr_once": (_S.UETR_ALREADY_USED, "another request has just used it"),
    "settlement_parties_differ": (_S.LEGS_INVALID, "the debtor is the creditor"),
    "leg_parties_differ": (_S.LEGS_INVALID, "the payer of a leg is its payee"),
    "leg_i1": (_S.LEGS_INVALID, "a leg's debit account is its credit account"),
    "leg_amount_positive": (_S.LEGS_INVALID, "a leg's amount is above zero"),
}
"""By the constraint's name: what the service's own rule would have said."""
_REPEAT = "another request has written the same meanwhile; repeat this one with the same ids"


@contextmanager
def database_refusals() -> Iterator[None]:
    """Around a whole transaction: nothing of it was written. Raises: ProblemError for what the database alone has
    refused and a client may know of; sqlalchemy.exc.IntegrityError for the rest."""
    try:
        yield
    except sa.exc.IntegrityError as error:
        if not isinstance(error.orig, PostgresError):
            raise
        constraint = error.orig.diag.constraint_name or ""
        known = REFUSALS.get(constraint)
        if known is not None:
            log.warning("the database alone has refused: %s", constraint)
            raise ProblemError(*known) from error
        if isinstance(error.orig, UniqueViolation):
            log.info("taken by another request meanwhile: %s", constraint)
            raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, _REPEAT) from error
        raise
