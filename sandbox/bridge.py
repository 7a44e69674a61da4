"""What the settlement service of the sandbox is told: ledgers, institutions with their vaults, one fixed rate."""

from __future__ import annotations

from collections.abc import Mapping

from kernel import ids
from kernel.ids import AccountNumber, ParticipantId
from sandbox.seed import Keys, write_json
from sandbox.topology import (
    BRIDGE,
    BRIDGE_SERVICE,
    CENTRAL_BANKS,
    INSTITUTIONS,
    Home,
    ledger_service,
)

RATE_BASE, RATE_COUNTER = "CNY", "AED"
RATE = "0.5123"
"""AED for one CNY: invented, near the market's."""
RATE_PROVIDER = INSTITUTIONS[2].participant

Vaults = Mapping[ParticipantId, Mapping[str, AccountNumber]]
"""Each institution's account by ledger."""


def write_files(home: Home, keys: Keys, vaults: Vaults, *, urls: Mapping[str, str]) -> None:
    """`urls` by service name."""
    currency_of = {bank.ledger: bank.currency.code for bank in CENTRAL_BANKS}
    ledgers = [
        {"ledger": bank.ledger, "url": urls[ledger_service(bank.ledger)], "currency": bank.currency.code}
        for bank in CENTRAL_BANKS
    ]
    institutions = [
        {
            "participant": item.participant,
            "authorisation_url": urls[item.service],
            "key": keys.institution(item.participant).public.to_jwk(),
            "accounts": {
                currency_of[ledger]: ids.show_account(account) for ledger, account in vaults[item.participant].items()
            },
        }
        for item in INSTITUTIONS
    ]
    rates = [{"base": RATE_BASE, "counter": RATE_COUNTER, "rate": RATE, "provider": RATE_PROVIDER}]
    for name, document in (("ledgers", ledgers), ("institutions", institutions), ("rates", rates)):
        write_json(home.config / f"{BRIDGE_SERVICE}-{name}.json", document)


def settings(home: Home, keys: Keys, *, url: str, port: int, database_url: str) -> dict[str, str]:
    values = {
        "PORT": port,
        "PUBLIC_URL": url,
        "DATABASE_URL": database_url,
        "DATA_DIR": home.path / "data" / BRIDGE_SERVICE,
        "PARTICIPANT": BRIDGE,
        "SIGNING_KEY_PATH": keys.path(BRIDGE),
        "LEDGERS_PATH": home.config / f"{BRIDGE_SERVICE}-ledgers.json",
        "INSTITUTIONS_PATH": home.config / f"{BRIDGE_SERVICE}-institutions.json",
        "RATES_PATH": home.config / f"{BRIDGE_SERVICE}-rates.json",
        "FILES_DIR": home.path / "data" / BRIDGE_SERVICE / "files",
        # The banks' desks look at what the bridge made of their files before anything is settled.
        "RUN_ON_SUBMIT": "false",
        # Small enough that a person sees them pass, and that a crash finds few payments undecided.
        "WAVE_SETTLEMENTS": 100,
    }
    return {f"JIAOZI_SETTLEMENT_{key}": str(value) for key, value in values.items()}
