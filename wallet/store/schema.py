"""Every table of the service, for whoever needs them all: the migrations' check, the grants' check."""

from __future__ import annotations

from wallet.store import bulk_tables as bulk_tables
from wallet.store import event_tables as event_tables
from wallet.store import families_tables as families_tables
from wallet.store import interest_tables as interest_tables
from wallet.store import lifecycle_tables as lifecycle_tables
from wallet.store import offline_tables as offline_tables
from wallet.store import privacy_tables as privacy_tables
from wallet.store import programs_tables as programs_tables
from wallet.store import requests_tables as requests_tables
from wallet.store.tables import metadata as metadata
