"""What requests, codes and refunds need now and then: part of every recovery pass."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from functools import partial

from kernel.errors import ProblemError
from wallet.usecases.context import Context
from wallet.usecases.incoming import tell_declines
from wallet.usecases.payer_codes import resume_redemptions
from wallet.usecases.refunds import settle_refunds
from wallet.usecases.requests import expire_requests, watch_accounts

log = logging.getLogger("jiaozi.wallet.requests")


def resume_requests(context: Context, *, older_than: timedelta) -> int:
    """Unfinished codes and refunds, declines to be told, statements to be read, requests that have expired; how many
    things were done. A ledger that cannot be reached ends one part only; the next pass tries again."""
    parts: list[Callable[[], int]] = [
        partial(resume_redemptions, context, older_than=older_than),
        partial(settle_refunds, context, older_than=older_than),
        partial(tell_declines, context),
        partial(watch_accounts, context),
        partial(expire_requests, context),
    ]
    done = 0
    for work in parts:
        try:
            done += work()
        except ProblemError as error:
            log.info("requests are looked after later: %s", error.refusal.value)
    return done
