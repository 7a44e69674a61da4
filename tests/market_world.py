"""A bridge with three currencies, a payer, a payee and three FX providers, for tests of the market."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from kernel import ids
from kernel.clock import Clock
from kernel.crypto.keys import PrivateKey
from kernel.ids import ParticipantId, new_uuid7
from kernel.money import Currency
from settlement.contract.market import QuoteDocument, sign_quote
from settlement.islands.fake import FakeIsland
from settlement.settings import Directory, InstitutionEntry, LedgerEntry, RateEntry

BRIDGE, PAYER, PAYEE = (ParticipantId(code) for code in ("BRDGAEAD", "PAYRCNBJ", "PAYEAEAD"))
P1, P2, P3 = PROVIDERS = tuple(ParticipantId(f"PRV{number}USNY") for number in (1, 2, 3))
INSTITUTIONS = (PAYER, PAYEE, *PROVIDERS)
CURRENCIES = ("CNY", "USD", "AED")
CNY, USD, AED = (Currency.of(code) for code in CURRENCIES)
START = 10_000_000
"""What every institution has on every ledger."""


def account(participant: ParticipantId, currency: str) -> int:
    return 10 * (1 + INSTITUTIONS.index(participant)) + CURRENCIES.index(currency)


def files(keys: dict[ParticipantId, PrivateKey], rates: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The directory's three files."""
    return {
        "ledgers": [
            {"ledger": f"{code.lower()}-ledger", "url": "http://127.0.0.1:1", "currency": code} for code in CURRENCIES
        ],
        "institutions": [
            {
                "participant": participant,
                "authorisation_url": "http://127.0.0.1:1",
                "key": keys[participant].public.to_jwk(),
                "accounts": {code: ids.show_account(account(participant, code)) for code in CURRENCIES},
            }
            for participant in INSTITUTIONS
        ],
        "rates": rates,
    }


def directory(keys: dict[ParticipantId, PrivateKey], rates: list[dict[str, Any]]) -> Directory:
    found = files(keys, rates)
    return Directory(
        [LedgerEntry.model_validate(item) for item in found["ledgers"]],
        [InstitutionEntry.model_validate(item) for item in found["institutions"]],
        [RateEntry.model_validate(item) for item in found["rates"]],
    )


def islands() -> dict[str, FakeIsland]:
    return {
        f"{code.lower()}-ledger": FakeIsland(
            f"{code.lower()}-ledger", balances={account(participant, code): START for participant in INSTITUTIONS}
        )
        for code in CURRENCIES
    }


class Quotes:
    """Signs quotes as the providers do."""

    def __init__(self, keys: dict[ParticipantId, PrivateKey], clock: Clock) -> None:
        self._keys = keys
        self._clock = clock

    def document(
        self,
        provider: ParticipantId,
        pair: str,
        *,
        bid: str | None = None,
        offer: str | None = None,
        size: int = 1_000_000,
        seconds: float = 300,
        quote: UUID | None = None,
        revision: int = 1,
        fee_ppm: int = 0,
        issued_at: datetime | None = None,
    ) -> QuoteDocument:
        at = issued_at or self._clock()
        base, _, counter = pair.partition("/")
        return QuoteDocument(
            bridge=BRIDGE,
            provider=provider,
            quote=quote or new_uuid7(),
            revision=revision,
            base=base,
            counter=counter,
            bid=bid,
            bid_size_minor=0 if bid is None else size,
            offer=offer,
            offer_size_minor=0 if offer is None else size,
            fee_ppm=fee_ppm,
            issued_at=at,
            valid_until=at + timedelta(seconds=seconds),
        )

    def sign(self, document: QuoteDocument, *, by: ParticipantId | None = None) -> str:
        return sign_quote(document, key=self._keys[by or document.provider])

    def token(self, provider: ParticipantId, pair: str, **changes: Any) -> str:
        return self.sign(self.document(provider, pair, **changes))


def new_keys() -> dict[ParticipantId, PrivateKey]:
    return {participant: PrivateKey.generate() for participant in (BRIDGE, *INSTITUTIONS)}


def new_uetr() -> UUID:
    return uuid4()
