"""What every route needs: the services built at start, and the one table of statuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import Depends, Request

from kernel.errors import Refusal
from ledger.contract import STATUS_BY_REFUSAL
from wallet.contract import STATUS_BY_WALLET_REFUSAL
from wallet.usecases.context import Context

STATUSES: Mapping[Refusal, int] = {**STATUS_BY_REFUSAL, **STATUS_BY_WALLET_REFUSAL}
"""A transfer's refusal has one status, whichever service says it."""


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Services = Annotated[Context, Depends(_context)]
