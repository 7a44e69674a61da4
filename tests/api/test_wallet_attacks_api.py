"""Goal: what the institution itself has decided about a wallet no app of its own takes back.
Method: the real app over HTTP, with the keys of its clients.
"""

from __future__ import annotations

from tests.api.test_wallet_api import Service, open_wallet
from tests.api.test_wallet_api import service as service


def test_institutions_own_suspension_is_lifted_by_its_desk_alone(service: Service) -> None:
    wallet, _, _ = open_wallet(service)
    with service.client("operator") as desk, service.client("channel") as app:
        desk.suspend_wallet(wallet=wallet.wallet, reason="institution")
        tried = service.refusal(lambda: app.resume_wallet(wallet=wallet.wallet, reason="institution"))
        assert tried == (403, "not-permitted")
        assert app.get_wallet(wallet.wallet).state.value == "suspended"
        desk.resume_wallet(wallet=wallet.wallet, reason="institution")
        assert app.get_wallet(wallet.wallet).state.value == "open"
