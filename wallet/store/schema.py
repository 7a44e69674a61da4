"""Every table of the service, for whoever needs them all: the migrations' check, the grants' check."""

from __future__ import annotations

from wallet.store.tables import metadata as metadata
