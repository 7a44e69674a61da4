"""Every table of the service as the database has it, for whoever needs them all: the migrations' check, tests.

The statements of `wallet.store` are made with the tables declared in the other modules, which do not know of tenants.
"""

from __future__ import annotations

from wallet.store import bulk_tables as bulk_tables
from wallet.store import event_tables as event_tables
from wallet.store import families_tables as families_tables
from wallet.store import interest_tables as interest_tables
from wallet.store import lifecycle_tables as lifecycle_tables
from wallet.store import netting_tables as netting_tables
from wallet.store import offline_tables as offline_tables
from wallet.store import privacy_tables as privacy_tables
from wallet.store import programs_tables as programs_tables
from wallet.store import requests_tables as requests_tables
from wallet.store import spending_tables as spending_tables
from wallet.store.tables import metadata as declared
from wallet.store.tenancy import isolated

metadata = isolated(declared)
