"""A payer's code and the hold it stands for: what the device signs, and what its institution puts together again."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from kernel.crypto.keys import PrivateKey, from_base64url
from kernel.ids import AccountNumber, ParticipantId
from ledger.contract import SignedInstruction, TransferKind, TransferTerms, sign_instruction
from wallet.domain.qr import PayerCode, encode_payer


def hold_of(code: PayerCode, *, vault: AccountNumber, ledger: str, currency: str) -> SignedInstruction:
    """What the code's signature is over."""
    terms = TransferTerms(
        id=code.hold,
        kind=TransferKind.HOLD,
        debit=code.account,
        credit=vault,
        amount_minor=code.cap_minor,
        currency=currency,
        expires_at=code.valid_until,
    )
    return SignedInstruction(ledger=ledger, terms=terms, valid_until=code.valid_until)


def make_payer_code(
    *,
    key: PrivateKey,
    institution: ParticipantId,
    vault: AccountNumber,
    ledger: str,
    currency: str,
    account: AccountNumber,
    cap_minor: int,
    valid_until: datetime,
    hold: UUID,
) -> str:
    """The text of a code, made on the payer's device; nothing is sent, the device may be offline.

    `hold`: a fresh UUIDv7. `valid_until`: whole seconds, a minute or two from now. `vault`, `ledger`, `currency`: of
    the institution, from its `/v1/institution`. Raises: QrRefused.
    """
    code = PayerCode(institution, hold, account, cap_minor, valid_until, bytes(64))
    document = hold_of(code, vault=vault, ledger=ledger, currency=currency)
    token = sign_instruction(document.terms, ledger=ledger, valid_until=valid_until, key=key)
    signature = from_base64url(token.rpartition(".")[2])
    return encode_payer(PayerCode(institution, hold, account, cap_minor, valid_until, signature))
