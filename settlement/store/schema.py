"""Every table of the service as the database has it, for whoever needs them all: the migrations' check, tests."""

from __future__ import annotations

from settlement.store import calendar_tables as calendar_tables
from settlement.store import compliance_tables as compliance_tables
from settlement.store import islands_tables as islands_tables
from settlement.store import liquidity_tables as liquidity_tables
from settlement.store import market_tables as market_tables
from settlement.store import messages_tables as messages_tables
from settlement.store import reconciliation_tables as reconciliation_tables
from settlement.store import relay_tables as relay_tables
from settlement.store.tables import metadata as metadata
