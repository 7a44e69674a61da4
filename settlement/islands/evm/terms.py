"""An EVM island's terms: the chain, the contracts, whose address is whose, and a leg's lock transaction.

The payer's authorisation of a leg is its own signed transaction `lock(...)`, raw and in hex. Anybody may send it, only
the payer could make it, and the contract takes the money of its sender alone: so the bridge relays what it could never
have signed (decision 20).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eth_account import Account
from eth_account.typed_transactions.typed_transaction import TypedTransaction
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from hexbytes import HexBytes
from rlp import decode as rlp_decode  # type: ignore[import-untyped]

from kernel.ids import AccountNumber
from settlement.domain.escrow import HoldOrder
from settlement.domain.refusals import AbortReason
from settlement.islands.authorisers import Authorised
from settlement.islands.evm.contracts import ESCROW, AbiMismatch, chain_id_of_hold
from settlement.islands.port import Refused

RAW_BYTES_MAX = 4_096
LOCK_GAS_MIN = 150_000
"""A lock of a plain ERC-20 takes about 190,000; below this it cannot succeed."""
LOCK_GAS_MAX = 2_000_000


@dataclass(frozen=True, slots=True)
class EvmTerms:
    """What both sides agree on. `unit` is how many of the token's smallest units a minor unit is: 10^(its decimals -
    the currency's). `addresses` maps our account numbers to the chain's (checksummed)."""

    ledger: str
    chain_id: int
    escrow: str
    token: str
    unit: int
    addresses: Mapping[AccountNumber, str]
    accounts: Mapping[str, AccountNumber] = field(init=False)

    def __post_init__(self) -> None:
        reverse = {address: account for account, address in self.addresses.items()}
        if len(reverse) != len(self.addresses):
            raise ValueError("two accounts have one address")
        if self.unit < 1:
            raise ValueError("the token has fewer decimals than its currency")
        object.__setattr__(self, "accounts", reverse)

    def address(self, account: AccountNumber) -> str | None:
        return self.addresses.get(account)

    def lock_call(self, order: HoldOrder) -> bytes:
        """The calldata that locks exactly this order: no deadline, for no clock decides anything. Raises KeyError for
        an account without an address."""
        return ESCROW.call(
            "lock",
            chain_id_of_hold(order.hold_id),
            self.token,
            self.addresses[order.terms.credit],
            order.terms.amount.amount_minor * self.unit,
            order.commit_hash,
            order.abort_hash,
            0,
            chain_id_of_hold(order.reference),
        )


@dataclass(frozen=True, slots=True)
class LockTransaction:
    """A payer's signed lock, read."""

    raw: bytes
    hash: str
    sender: str
    nonce: int


def read_lock(terms: EvmTerms, order: HoldOrder, token: str) -> LockTransaction | Refused:
    """The lock of exactly this order, signed by the payer's address for this chain and escrow; or why it is not.

    Were it not read here, a payer could sign other hashes or a smaller amount, the chain would hold that, and the
    engine would count it as the leg.
    """

    def differs(why: str) -> Refused:
        return Refused(AbortReason.AUTHORISATION_DIFFERS.value, why)

    debit, credit = terms.address(order.terms.debit), terms.address(order.terms.credit)
    if order.terms.ledger != terms.ledger or debit is None or credit is None:
        return Refused("account-unknown", "an account of this leg has no address on the chain")
    try:
        raw = bytes.fromhex(token.removeprefix("0x"))
        if len(raw) > RAW_BYTES_MAX:
            return differs("longer than a lock is")
        fields = _fields(raw)
        sender = to_checksum_address(Account.recover_transaction(raw))
    except Exception as error:  # the libraries raise many kinds of their own for bytes that are no transaction
        return differs(f"unreadable: {type(error).__name__}")
    if fields["chain_id"] != terms.chain_id:
        return differs("signed for another chain")
    if sender != debit:
        return differs("not signed by the payer's address")
    if fields["to"] != terms.escrow or fields["value"] != 0:
        return differs("not a call of the escrow")
    try:
        if fields["data"] != terms.lock_call(order):
            return differs("the signed terms are not the ordered ones")
    except (AbiMismatch, OverflowError):
        return differs("the terms do not fit the contract")
    if not LOCK_GAS_MIN <= fields["gas"] <= LOCK_GAS_MAX:
        return differs(f"its gas limit is not within {LOCK_GAS_MIN} and {LOCK_GAS_MAX}")
    return LockTransaction(raw, "0x" + keccak(raw).hex(), sender, fields["nonce"])


def check_lock(terms: EvmTerms, order: HoldOrder, token: str) -> Authorised | Refused:
    found = read_lock(terms, order, token)
    return found if isinstance(found, Refused) else Authorised(token)


def _fields(raw: bytes) -> dict[str, Any]:
    if raw[:1] and raw[0] <= 0x7F:  # EIP-2718: typed
        decoded = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
        return {
            "chain_id": int(decoded["chainId"]),
            "to": to_checksum_address(decoded["to"]),
            "value": int(decoded["value"]),
            "data": bytes(decoded["data"]),
            "gas": int(decoded["gas"]),
            "nonce": int(decoded["nonce"]),
        }
    nonce, _, gas, to, value, data, v, _, _ = rlp_decode(raw)
    number = int.from_bytes(v, "big")
    return {
        "chain_id": (number - 35) // 2 if number >= 35 else 0,  # EIP-155; without it any chain would take it
        "to": to_checksum_address(to),
        "value": int.from_bytes(value, "big"),
        "data": bytes(data),
        "gas": int.from_bytes(gas, "big"),
        "nonce": int.from_bytes(nonce, "big"),
    }
