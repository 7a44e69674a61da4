"""A wallet's own cap on its balance, a parent's or the holder's, is kept by the ledger too (decisions 30 and 33): other
institutions' payments to it pass by this service."""

from __future__ import annotations

import logging
from datetime import timedelta
from uuid import UUID

from kernel import ids
from kernel.errors import ProblemError, RequestRefusal
from ledger.contract import SetBalanceCap, TransferRefusal
from wallet.store import balance_caps as store
from wallet.usecases.changes import STEP_LIFE, send, signed_by_us
from wallet.usecases.context import Context

log = logging.getLogger("jiaozi.wallet.balance-caps")

CAPS_A_PASS_MAX = 200


def tell(context: Context, wallet_id: UUID) -> None:
    """Tell the ledger the cap that is in force, if it may not have it. An order that arrives late undoes no later one:
    the ledger goes by the version. Raises: ProblemError(service-unavailable): then the recovery pass tells it."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        found = store.find_untold(connection, wallet_id)
    if found is None:
        return
    body = SetBalanceCap(account=found.account, version=found.version, balance_max_minor=found.balance_max_minor)
    attempt = max(timedelta(0), context.clock() - found.changed_at) // STEP_LIFE
    token = signed_by_us(
        context,
        body,
        id=ids.derive_uuid7(wallet_id, f"balance-cap-{found.version}-{attempt}"),
        valid_until=found.changed_at + (attempt + 2) * STEP_LIFE,
    )
    said_no = send(context, token)
    if said_no is not None and said_no.refusal != TransferRefusal.ACCOUNT_CLOSED.value:  # closed: nothing is credited
        raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, f"the ledger refuses the cap: {said_no.refusal}")
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        store.mark_told(connection, wallet_id, found.version)


def tell_all(context: Context) -> int:
    """Of all wallets whose cap the ledger may not have; how many were told."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        waiting = store.untold(connection, limit=CAPS_A_PASS_MAX)
    done = 0
    for wallet_id in waiting:
        try:
            tell(context, wallet_id)
            done += 1
        except ProblemError as error:
            log.info("the cap of wallet %s is told later: %s", wallet_id, error.detail)
    return done
