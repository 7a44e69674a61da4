"""A pending rule pack takes effect on its day: here at once, at the ledger wallet by wallet.

From midnight on the caps of the new pack decide here. The ledger keeps a wallet under its old class until it is told,
so until then both packs' caps hold for that wallet, which is the safe side. The ledger must know the new classes
(mandates) before the day; a wallet whose class it does not know yet stays where it is and is asked for again.
"""

from __future__ import annotations

import logging
from datetime import timedelta

import sqlalchemy as sa

from kernel import ids
from kernel.errors import ProblemError
from ledger.contract import SetAccountClass
from wallet.domain.limits import scheme_day
from wallet.domain.records import Wallet
from wallet.domain.rules import in_force, rule_class_name
from wallet.store import rule_adoption as store
from wallet.store import wallets
from wallet.usecases.changes import account_of, ledger_account, send, signed_by_us
from wallet.usecases.context import Context

log = logging.getLogger("jiaozi.wallet.rules")

WALLETS_AT_ONCE_MAX = 100


def adopt_pack(context: Context) -> int:
    """For the recovery pass: change to the pack in force today, and bring some wallets to it. How many came over."""
    packs = context.packs
    if len(packs) < 2:
        return 0
    pack = in_force(packs, scheme_day(context.clock(), context.time_zone))
    if pack is not None and pack.name != context.pack.name:
        log.info("rule pack %s is in force from now on, in place of %s", pack.name, context.pack.name)
        context.take_effect(pack)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        rows = store.wallets_of_other_packs(connection, context.pack.name, limit=WALLETS_AT_ONCE_MAX)
    done = 0
    for row in rows:
        try:
            done += _adopt(context, row)
        except ProblemError as error:
            log.warning("wallet %s comes to %s later: %s", row.id, context.pack.name, error.refusal)
            break
    return done


def _adopt(context: Context, row: Wallet) -> bool:
    account, name = account_of(row), rule_class_name(context.pack, row.wallet_class)
    if ledger_account(context, account).rule_class != name:
        body = SetAccountClass(account=account, rule_class=name)
        valid_until = context.clock() + timedelta(minutes=5)
        said = send(context, signed_by_us(context, body, id=ids.new_uuid7(), valid_until=valid_until))
        if said is not None:
            log.warning("the ledger does not take wallet %s to %s: %s", row.id, name, said.refusal)
            return False

    def write(connection: sa.Connection) -> bool:
        locked = wallets.lock_wallet(connection, row.id)
        if locked is None or locked.changing_to is not None or locked.wallet_class is not row.wallet_class:
            return False  # its class changed meanwhile: the next pass looks again
        store.set_pack(connection, row.id, context.pack.name)
        return True

    return context.database.run(write, isolation="READ COMMITTED")
