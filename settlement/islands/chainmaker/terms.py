"""A ChainMaker island's terms, and a leg's lock: a request that the payer's institution signed.

The payer's authorisation of a leg is its own signed TxRequest, the call `lock(...)` of the escrow, in base64url.
Anybody may send it, only the payer could make it, and the contract takes the money of its sender alone (decisions 20
and 26).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from kernel.ids import AccountNumber
from settlement.domain.escrow import HoldOrder
from settlement.domain.refusals import AbortReason
from settlement.islands.authorisers import Authorised
from settlement.islands.chainmaker import wire_pb2 as wire
from settlement.islands.chainmaker.client import (
    Signer,
    address_of_certificate,
    address_of_contract,
    evm_call,
    payload_bytes,
    transaction_id,
    verified_sender,
)
from settlement.islands.evm.contracts import ESCROW, chain_id_of_hold
from settlement.islands.port import Refused

REQUEST_BYTES_MAX = 16_384
VALID_SECONDS = 600
"""How long a signed lock is taken; chains themselves commonly refuse a transaction older than that."""
VALID_SECONDS_MAX = 86_400


@dataclass(frozen=True, slots=True)
class ChainMakerTerms:
    """What both sides agree on. `escrow` and `token` are contract names; `unit` is how many of the token's smallest
    units a minor unit is. `addresses` maps our account numbers to the chain's (checksummed)."""

    ledger: str
    chain_id: str
    escrow: str
    token: str
    unit: int
    addresses: Mapping[AccountNumber, str]
    addr_type: str = "chainmaker"
    gas_limit: int | None = None
    accounts: Mapping[str, AccountNumber] = field(init=False)
    escrow_address: str = field(init=False)
    token_address: str = field(init=False)

    def __post_init__(self) -> None:
        reverse = {address: account for account, address in self.addresses.items()}
        if len(reverse) != len(self.addresses):
            raise ValueError("two accounts have one address")
        if self.unit < 1:
            raise ValueError("the token has fewer decimals than its currency")
        object.__setattr__(self, "accounts", reverse)
        object.__setattr__(self, "escrow_address", address_of_contract(self.escrow))
        object.__setattr__(self, "token_address", address_of_contract(self.token))

    def address(self, account: AccountNumber) -> str | None:
        return self.addresses.get(account)

    def lock_call(self, order: HoldOrder, *, deadline: int = 0) -> bytes:
        """The calldata that locks exactly this order. A leg has no deadline, for no clock decides anything. Raises
        KeyError for an account without an address."""
        return ESCROW.call(
            "lock",
            chain_id_of_hold(order.hold_id),
            self.token_address,
            self.addresses[order.terms.credit],
            order.terms.amount.amount_minor * self.unit,
            order.commit_hash,
            order.abort_hash,
            deadline,
            chain_id_of_hold(order.reference),
        )

    def lock_payload(self, order: HoldOrder, *, timestamp: int, expiration_time: int) -> wire.Payload:
        tx_id = transaction_id(self.chain_id, self.escrow, "lock", str(order.hold_id))
        return self.payload(self.lock_call(order), tx_id=tx_id, timestamp=timestamp, expiration_time=expiration_time)

    def payload(self, data: bytes, *, tx_id: str, timestamp: int, expiration_time: int) -> wire.Payload:
        """A call of the escrow."""
        return evm_call(
            self.chain_id,
            self.escrow,
            data,
            tx_id=tx_id,
            timestamp=timestamp,
            expiration_time=expiration_time,
            gas_limit=self.gas_limit,
        )


@dataclass(frozen=True, slots=True)
class LockRequest:
    """A payer's signed lock, read. `expires_at` in UNIX seconds."""

    request: wire.TxRequest
    tx_id: str
    expires_at: int


def sign_lock(terms: ChainMakerTerms, order: HoldOrder, signer: Signer, *, now: int) -> str:
    """The authorisation of this order by its payer. Raises KeyError for an account without an address."""
    payload = terms.lock_payload(order, timestamp=now, expiration_time=now + VALID_SECONDS)
    raw = signer.signed(payload).SerializeToString(deterministic=True)
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def read_lock(terms: ChainMakerTerms, order: HoldOrder, token: str) -> LockRequest | Refused:
    """The lock of exactly this order, signed by the payer's member for this chain and escrow; or why it is not.

    Were it not read here, a payer could sign other hashes or a smaller amount, the chain would hold that, and the
    engine would count it as the leg.
    """

    def differs(why: str) -> Refused:
        return Refused(AbortReason.AUTHORISATION_DIFFERS.value, why)

    debit, credit = terms.address(order.terms.debit), terms.address(order.terms.credit)
    if order.terms.ledger != terms.ledger or debit is None or credit is None:
        return Refused("account-unknown", "an account of this leg has no address on the chain")
    if len(token) > REQUEST_BYTES_MAX:
        return differs("longer than a lock is")
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        request = wire.TxRequest.FromString(raw)
        sender = address_of_certificate(verified_sender(request), terms.addr_type)
    except (ValueError, DecodeError) as error:
        return differs(f"unreadable: {error}"[:200])
    if request.SerializeToString(deterministic=True) != raw or request.endorsers or request.HasField("payer"):
        return differs("a request with more in it")
    if sender != debit:
        return differs("not signed by the payer's member")
    payload = request.payload
    if not 0 < payload.expiration_time - payload.timestamp <= VALID_SECONDS_MAX:
        return differs(f"it is not valid for some time up to {VALID_SECONDS_MAX} s")
    try:
        wanted = terms.lock_payload(order, timestamp=payload.timestamp, expiration_time=payload.expiration_time)
    except (ValueError, OverflowError):
        return differs("the terms do not fit the contract")
    if payload_bytes(payload) != payload_bytes(wanted):
        return differs("the signed terms are not the ordered ones")
    return LockRequest(request, payload.tx_id, payload.expiration_time)


def check_lock(terms: ChainMakerTerms, order: HoldOrder, token: str) -> Authorised | Refused:
    found = read_lock(terms, order, token)
    return found if isinstance(found, Refused) else Authorised(token)
