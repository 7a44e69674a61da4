"""The bridge's own transactions on an EVM chain: posts and voids, from its own account, which holds gas money alone.

Nothing here is money: anyone may end a hold with its published secret, and a repetition changes nothing. So after a
crash nothing is remembered and nothing is lost: nonces are read from the chain, and what was under way is sent again.

Nonces have no gaps: at most PENDING_MAX transactions wait at once, what the node forgot is sent again under its own
nonce, and one that waits too long is replaced by one that pays more, up to the bound.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eth_account import Account
from eth_account.signers.local import LocalAccount

from settlement.islands.evm.rpc import Node, NodeRefused, NodeUnreachable, quantity

log = logging.getLogger("jiaozi.settlement.evm")

PENDING_MAX = 8
GAS_FIXED = 80_000
GAS_PER_END = 150_000
"""A post of a plain ERC-20 takes about 75,000; the rest is for tokens that do more. Not estimated: in a batch each end
may fail by itself, so the least gas with which the whole succeeds is one with which its parts fail."""
RESEND_SECONDS = 5.0
REPLACE_SECONDS = 60.0
_TIP_WEI = 10**9


class GasTooDear(Exception):
    """The chain asks for more than the configured bound."""


@dataclass(frozen=True, slots=True)
class GasPolicy:
    """Prices in wei per gas: a fixed one (0 on a chain without fees), or the chain's own up to `max_wei`."""

    max_wei: int = 500 * 10**9
    price_wei: int | None = None

    def fees(self, base_fee: int | None, asked: int | None, *, bumps: int) -> dict[str, int]:
        """The fee members of a transaction that replaces `bumps` earlier ones. Raises GasTooDear."""
        if self.price_wei is not None:
            return {"gasPrice": self.price_wei}
        if base_fee is None:
            price = _bumped(asked or 0, bumps)
            if price > self.max_wei:
                raise GasTooDear(f"the chain asks {price} wei per gas, the bound is {self.max_wei}")
            return {"gasPrice": price}
        tip = _bumped(_TIP_WEI, bumps)
        if base_fee + tip > self.max_wei:
            raise GasTooDear(f"the chain asks {base_fee + tip} wei per gas, the bound is {self.max_wei}")
        return {"maxFeePerGas": min(self.max_wei, _bumped(2 * base_fee, bumps) + tip), "maxPriorityFeePerGas": tip}


def _bumped(price: int, bumps: int) -> int:
    """Nodes take a replacement that pays an eighth more."""
    for _ in range(bumps):
        price += price // 8 + 1
    return price


@dataclass(slots=True)
class _Waiting:
    nonce: int
    document: dict[str, Any]
    """Without its fees."""
    raw: bytes
    keys: frozenset[str]
    first_sent: float
    last_sent: float
    bumps: int = 0


@dataclass(slots=True)
class _Book:
    waiting: dict[int, _Waiting] = field(default_factory=dict)


def load_account(path: Path) -> LocalAccount:
    """The account of a private key in a file: 32 bytes in hex, mode 0600. Raises ValueError, saying nothing of it."""
    try:
        if path.stat().st_mode & 0o077:
            raise ValueError(f"{path} must not be readable by others (mode 0600)")
        text = path.read_text("ascii").strip().removeprefix("0x")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    try:
        account: LocalAccount = Account.from_key(bytes.fromhex(text))
    except Exception as error:
        raise ValueError(f"{path} holds no private key of a chain ({type(error).__name__})") from None
    return account


class Sender:
    """Thread-safe. One a node and account."""

    def __init__(
        self,
        node: Node,
        account: LocalAccount,
        *,
        chain_id: int,
        gas: GasPolicy,
        resend_seconds: float = RESEND_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._account = account
        self._chain_id = chain_id
        self._gas = gas
        self._resend_seconds = resend_seconds
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._book = _Book()

    @property
    def address(self) -> str:
        return str(self._account.address)

    def under_way(self) -> frozenset[str]:
        """The keys of what was sent and is not in a block yet."""
        with self._lock:
            return frozenset(key for item in self._book.waiting.values() for key in item.keys)

    def refresh(self) -> None:
        """Forget what is mined; send again, or for more, what is not. Raises NodeUnreachable, GasTooDear."""
        with self._lock:
            self._refresh()

    def send(self, to: str, data: bytes, *, keys: frozenset[str], ends: int) -> bool:
        """Send a call that ends `ends` holds; False if as many wait as may.

        Raises NodeUnreachable, NodeRefused, GasTooDear. After any of them it may have been sent: `under_way` says.
        """
        with self._lock:
            mined = self._refresh()
            book = self._book.waiting
            if len(book) >= PENDING_MAX:
                return False
            nonce = max([mined, *(number + 1 for number in book)])
            if not book:  # of an earlier process of ours something may still wait at the node
                nonce = max(nonce, quantity(self._node.call("eth_getTransactionCount", self.address, "pending")))
            document = {
                "chainId": self._chain_id,
                "to": to,
                "value": 0,
                "data": data,
                "gas": GAS_FIXED + GAS_PER_END * ends,
                "nonce": nonce,
            }
            now = self._monotonic()
            waiting = _Waiting(nonce, document, self._signed(document, 0), keys, now, now)
            book[nonce] = waiting
            try:
                self._push(waiting)
            except NodeRefused:
                del book[nonce]
                raise
            return True

    def _refresh(self) -> int:
        mined = quantity(self._node.call("eth_getTransactionCount", self.address, "latest"))
        book = self._book.waiting
        for nonce in [number for number in book if number < mined]:
            del book[nonce]
        if book and min(book) > mined:
            # A reorganisation took back what was forgotten already: those above can never be mined. Start anew.
            book.clear()
        now = self._monotonic()
        for waiting in sorted(book.values(), key=lambda item: item.nonce):
            if now - waiting.first_sent > REPLACE_SECONDS * (waiting.bumps + 1):
                waiting.bumps += 1
                try:
                    waiting.raw = self._signed(waiting.document, waiting.bumps)
                except GasTooDear as error:
                    log.warning("transaction %d of %s waits: %s", waiting.nonce, self.address, error)
            elif now - waiting.last_sent < self._resend_seconds:
                continue
            waiting.last_sent = now
            try:
                self._push(waiting)
            except NodeRefused as error:
                log.warning("transaction %d of %s waits: %s", waiting.nonce, self.address, error.message)
        return mined

    def _push(self, waiting: _Waiting) -> None:
        try:
            self._node.call("eth_sendRawTransaction", "0x" + waiting.raw.hex())
        except NodeRefused as error:
            if not is_known(error) and not _is_nonce_used(error):
                raise
        except NodeUnreachable:
            log.warning("transaction %d of %s: no answer, it is sent again", waiting.nonce, self.address)

    def _signed(self, document: dict[str, Any], bumps: int) -> bytes:
        base_fee: int | None = None
        asked: int | None = None
        if self._gas.price_wei is None:
            block = self._node.call("eth_getBlockByNumber", "latest", False)
            if isinstance(block, dict) and block.get("baseFeePerGas") is not None:
                base_fee = quantity(block["baseFeePerGas"])
            else:
                asked = quantity(self._node.call("eth_gasPrice"))
        fees = self._gas.fees(base_fee, asked, bumps=bumps)
        return bytes(self._account.sign_transaction({**document, **fees}).raw_transaction)


def is_known(error: NodeRefused) -> bool:
    """The node has this very transaction already: a lost acknowledgement, or somebody sent it first."""
    text = error.message.lower()
    return "already known" in text or "already imported" in text or "known transaction" in text


def _is_nonce_used(error: NodeRefused) -> bool:
    text = error.message.lower()
    return "nonce too low" in text or "underpriced" in text
