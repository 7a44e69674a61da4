"""The port over the escrow contract of an EVM chain, by JSON-RPC.

Idempotent by the contract's state: every round reads where each hold stands, in the newest final block and in the
newest block, and sends only what is missing there. A leg counts only in the final block (`finality`); what is merely
mined may be reorganised away, is then seen as absent again, and is sent again. A lost acknowledgement, a second bridge,
a payee's own post and a crash at any point all look alike: the next round reads the state.

A call waits `wait_seconds` for finality and then answers `Unknown`, with what it waits for: the engine asks again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

from kernel.ids import AccountNumber
from settlement.domain.escrow import HoldOrder
from settlement.domain.refusals import AbortReason
from settlement.islands.balances import EscrowTotals
from settlement.islands.escrow_holds import Patience, SeenHold, ended_as, known_ends, standing_of
from settlement.islands.evm.contracts import ESCROW, TOKEN, AbiMismatch, chain_id_of_hold, uuid_of
from settlement.islands.evm.finality import Block, ChainView, NodeAstray
from settlement.islands.evm.rpc import Call, Node, NodeRefused, NodeUnreachable, data_bytes, quantity
from settlement.islands.evm.sender import RESEND_SECONDS, GasTooDear, Sender, is_known
from settlement.islands.evm.terms import EvmTerms, LockTransaction, read_lock
from settlement.islands.port import (
    EndOrder,
    EndOutcome,
    Held,
    HoldStanding,
    PrepareOutcome,
    Refused,
    SignedHold,
    Unknown,
)

LOOK_UP_MAX = 100
"""Holds in one eth_call: about 45,000 gas of reading each at most."""
LOGS_BLOCKS = 5_000
"""Blocks in one eth_getLogs: nodes commonly allow as many."""
ATTEMPTS_ALONE = 1
"""After so many posts of it in company that changed nothing, a hold is posted alone."""
ATTEMPTS_MAX = 3
RETRY_SECONDS = 60.0
"""After ATTEMPTS_MAX of them no oftener than this: each attempt costs gas."""

Outcome = TypeVar("Outcome")
Recall = Callable[[HoldOrder], str | None]


@dataclass(frozen=True, slots=True)
class EvmLine:
    """A posted leg, as the chain's final blocks show it. Amounts in the token's smallest units; times UTC."""

    hold_id: UUID | None
    """None of a hold that was not made from a UUID: not a leg of ours."""
    reference: UUID | None
    debit: str
    credit: str
    amount_units: int
    booked_at: datetime
    block_number: int
    block_hash: str
    transaction: str
    log_index: int


@dataclass(slots=True)
class _Try:
    count: int
    at: float


class EvmIsland:
    def __init__(
        self,
        terms: EvmTerms,
        node: Node,
        view: ChainView,
        sender: Sender,
        *,
        first_block: int = 0,
        wait_seconds: float = 2.0,
        poll_seconds: float = 0.1,
        ends_per_transaction: int = 50,
        resend_seconds: float = RESEND_SECONDS,
        recall: Recall | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`recall` finds the authorisation of a leg that this process never saw: it is sent again when a held lock was
        reorganised away. `first_block` is the contract's, where statements begin."""
        self._terms = terms
        self._node = node
        self._view = view
        self._sender = sender
        self._first_block = first_block
        self._patience = Patience(
            wait_seconds, poll_seconds, monotonic, sleep, (NodeUnreachable, NodeAstray, NodeRefused, GasTooDear)
        )
        self._ends_per_transaction = ends_per_transaction
        self._resend_seconds = resend_seconds
        self._recall = recall
        self._monotonic = monotonic
        self._locks: dict[UUID, str] = {}
        self._lock_sent: dict[UUID, float] = {}
        self._tries: dict[str, _Try] = {}
        self._is_code_checked = False

    @property
    def name(self) -> str:
        return self._terms.ledger

    # --- the port

    def prepare(self, holds: Sequence[SignedHold]) -> list[PrepareOutcome]:
        outcomes: dict[int, PrepareOutcome] = {}
        locks: dict[int, LockTransaction] = {}
        for place, hold in enumerate(holds):
            found = read_lock(self._terms, hold.order, hold.authorisation)
            if isinstance(found, Refused):
                outcomes[place] = found
            else:
                locks[place] = found
                self._locks[hold.order.hold_id] = hold.authorisation

        def work(places: Sequence[int]) -> dict[int, PrepareOutcome]:
            return self._lock_round({place: (holds[place].order, locks[place]) for place in places})

        self._patience.rounds(locks, work, outcomes)
        return [outcomes[place] for place in range(len(holds))]

    def fulfil(self, orders: Sequence[EndOrder]) -> list[EndOutcome]:
        return self._end(orders, "commit")

    def cancel(self, orders: Sequence[EndOrder]) -> list[EndOutcome]:
        return self._end(orders, "abort")

    def look_up(self, orders: Sequence[HoldOrder]) -> list[HoldStanding]:
        try:
            final, head = self._states(orders, self._view.final())
        except (NodeUnreachable, NodeAstray, NodeRefused):
            return [HoldStanding.UNKNOWN] * len(orders)
        found = []
        for order, settled, newest in zip(orders, final, head, strict=True):
            standing = self._standing(order, settled)
            is_moving = standing is HoldStanding.ABSENT and self._standing(order, newest) is not standing
            found.append(HoldStanding.UNKNOWN if is_moving else standing)
        return found

    def statement(self, account: AccountNumber) -> list[EvmLine]:
        """Raises NodeUnreachable, NodeRefused, NodeAstray."""
        address = self._terms.address(account)
        if address is None:
            return []
        return self._lines(address, self._view.final())

    def available_of(self, accounts: Sequence[AccountNumber]) -> list[int | None]:
        """What each has in final blocks (`settlement.islands.balances`): locked money has left it; None = unknown."""
        found: list[int | None] = [None] * len(accounts)
        try:
            at = {"blockHash": self._view.final().hash}
            for place, account in enumerate(accounts):
                address = self._terms.address(account)
                if address is not None:
                    found[place] = self._ask_token(at, "balanceOf", address) // self._terms.unit
        except (NodeUnreachable, NodeAstray, NodeRefused):
            return [None] * len(accounts)
        return found

    def escrow_totals(self) -> EscrowTotals | None:
        """What the escrow holds and counts, in the newest final block."""
        try:
            at = {"blockHash": self._view.final().hash}
            balance = self._ask_token(at, "balanceOf", self._terms.escrow)
            asked = {"to": self._terms.escrow, "data": _hex(ESCROW.call("heldTotal", self._terms.token))}
            held = int(ESCROW.result("heldTotal", data_bytes(self._node.call("eth_call", asked, at)))[0])
        except (NodeUnreachable, NodeAstray, NodeRefused, AbiMismatch):
            return None
        return EscrowTotals(balance // self._terms.unit, held // self._terms.unit)

    # --- placing

    def _lock_round(self, asked: dict[int, tuple[HoldOrder, LockTransaction]]) -> dict[int, PrepareOutcome]:
        places = list(asked)
        orders = [asked[place][0] for place in places]
        block = self._view.final()
        final, head = self._states(orders, block)
        answers: dict[int, PrepareOutcome] = {}
        absent: list[int] = []
        for place, order, settled, newest in zip(places, orders, final, head, strict=True):
            match self._standing(order, settled):
                case HoldStanding.HELD:
                    answers[place] = Held()
                case HoldStanding.ABSENT if self._standing(order, newest) is HoldStanding.ABSENT:
                    absent.append(place)
                case HoldStanding.ABSENT:
                    answers[place] = Unknown("the lock is in a block that is not final yet")
                case HoldStanding.VOIDED:
                    answers[place] = Refused("hold-already-voided")
                case standing:
                    why = f"a hold with this id stands: {standing.value}"
                    answers[place] = Refused(AbortReason.HOLD_DIFFERS.value, why)
        if absent:
            answers |= self._relay({place: asked[place] for place in absent}, block)
        return answers

    def _relay(self, asked: dict[int, tuple[HoldOrder, LockTransaction]], block: Block) -> dict[int, PrepareOutcome]:
        """Locks that are in no block: send them, unless they were mined in vain or can never be."""
        at = {"blockHash": block.hash}
        calls: list[Call] = []
        for order, lock in asked.values():
            calls.append(("eth_getTransactionReceipt", [lock.hash]))
            calls.append(("eth_getTransactionCount", [lock.sender, hex(block.number)]))
            asked_call = {"from": lock.sender, "to": self._terms.escrow, "data": _hex(self._terms.lock_call(order))}
            calls.append(("eth_call", [asked_call, "latest"]))
        found = self._node.batch(calls)
        answers: dict[int, PrepareOutcome] = {}
        sent: list[int] = []
        judged: list[int] = []
        now = self._monotonic()
        for number, (place, (order, lock)) in enumerate(asked.items()):
            receipt, count, simulated = found[3 * number : 3 * number + 3]
            if isinstance(receipt, NodeRefused):
                answers[place] = Unknown("the node does not say whether the lock is in a block")
            elif isinstance(receipt, dict):
                mined_in = quantity(receipt.get("blockNumber"))
                if quantity(receipt.get("status")) == 0 and mined_in <= block.number:
                    answers[place] = self._why_refused(order, simulated, at)
                else:
                    answers[place] = Unknown("the lock is in a block that is not final yet")
            elif not isinstance(count, NodeRefused) and quantity(count) > lock.nonce:
                # Final: another transaction of the payer's has this nonce, so this one is never mined.
                why = f"the payer used nonce {lock.nonce} for another transaction"
                answers[place] = Refused("authorisation-superseded", why)
                judged.append(place)
            elif isinstance(simulated, NodeRefused) and _is_revert(simulated):
                answers[place] = self._why_refused(order, simulated, "latest")
                judged.append(place)
            elif now - self._lock_sent.get(order.hold_id, float("-inf")) < self._resend_seconds:
                answers[place] = Unknown("the lock is sent and in no block yet")
            else:
                sent.append(place)
        if judged:
            # The lock itself, mined between two of these questions, looks like another that used its nonce or its id.
            again = self._node.batch([("eth_getTransactionReceipt", [asked[place][1].hash]) for place in judged])
            for place, receipt in zip(judged, again, strict=True):
                if receipt is not None:
                    answers[place] = Unknown("the lock was mined, or the node failed, while it was asked about")
        if sent:
            results = self._node.batch([("eth_sendRawTransaction", [_hex(asked[place][1].raw)]) for place in sent])
            for place, result in zip(sent, results, strict=True):
                self._lock_sent[asked[place][0].hold_id] = now
                if isinstance(result, NodeRefused) and not is_known(result):
                    answers[place] = Unknown(f"the node does not take the lock: {result.message}")
                else:
                    answers[place] = Unknown("the lock is sent and in no block yet")
        return answers

    def _why_refused(self, order: HoldOrder, simulated: Any, at: Any) -> Refused:
        """The reason of a lock that cannot be: the escrow's own, or what its token says of the payer."""
        name = ESCROW.error_name(simulated.data) if isinstance(simulated, NodeRefused) else None
        if name == "IdUsed":
            return Refused(AbortReason.HOLD_DIFFERS.value, "the payer used this id for another hold")
        if name == "Tombstoned":
            return Refused("hold-already-voided")
        payer = self._terms.addresses[order.terms.debit]
        needed = order.terms.amount.amount_minor * self._terms.unit
        if self._ask_token(at, "balanceOf", payer) < needed:
            return Refused("insufficient-funds")
        if self._ask_token(at, "allowance", payer, self._terms.escrow) < needed:
            return Refused("allowance-too-low", "the payer has not approved the escrow for this amount")
        return Refused("lock-refused", name or "the escrow refused the lock")

    def _ask_token(self, at: Any, function: str, *arguments: object) -> int:
        asked = {"to": self._terms.token, "data": _hex(TOKEN.call(function, *arguments))}
        try:
            return int(TOKEN.result(function, data_bytes(self._node.call("eth_call", asked, at)))[0])
        except AbiMismatch:
            raise NodeUnreachable(f"the token answered no number to {function}") from None

    # --- ending

    def _end(self, orders: Sequence[EndOrder], function: str) -> list[EndOutcome]:
        outcomes = known_ends(orders, function, lambda order: self._terms.address(order.terms.debit) is not None)

        def work(places: Sequence[int]) -> dict[int, EndOutcome]:
            return self._end_round({place: orders[place] for place in places}, function)

        self._patience.rounds([place for place in range(len(orders)) if place not in outcomes], work, outcomes)
        return [outcomes[place] for place in range(len(orders))]

    def _end_round(self, asked: dict[int, EndOrder], function: str) -> dict[int, EndOutcome]:
        places = list(asked)
        orders = [asked[place].order for place in places]
        self._sender.refresh()
        under_way = self._sender.under_way()
        final, head = self._states(orders, self._view.final())
        answers: dict[int, EndOutcome] = {}
        due: list[int] = []
        for place, order, settled, newest in zip(places, orders, final, head, strict=True):
            outcome = self._ended(order, settled, function)
            if outcome is not None:
                answers[place] = outcome
                self._forget(order, function)
            elif self._ended(order, newest, function) is not None:
                answers[place] = Unknown("it is in a block that is not final yet")
            elif _key(order, function) in under_way:
                answers[place] = Unknown("it is sent and in no block yet")
            elif function == "commit" and self._standing(order, newest) is HoldStanding.ABSENT:
                answers[place] = Unknown(self._lock_again(order))
            elif self._is_too_soon(order, function):
                answers[place] = Unknown("it was sent several times and changed nothing; it is tried now and then")
            else:
                due.append(place)
        if due:
            answers |= self._send_ends({place: asked[place] for place in due}, function)
        return answers

    def _ended(self, order: HoldOrder, seen: SeenHold | None, function: str) -> EndOutcome | None:
        return ended_as(self._standing(order, seen), seen, function)

    def _send_ends(self, asked: dict[int, EndOrder], function: str) -> dict[int, EndOutcome]:
        """Each is tried on the newest state first: what would fail costs no gas and says why."""
        answers: dict[int, EndOutcome] = {}
        calls: list[Call] = []
        for end in asked.values():
            data = ESCROW.call(function, self._payer(end.order), chain_id_of_hold(end.order.hold_id), end.secret)
            calls.append(
                ("eth_call", [{"from": self._sender.address, "to": self._terms.escrow, "data": _hex(data)}, "latest"])
            )
        together: list[int] = []
        alone: list[int] = []
        for (place, end), result in zip(asked.items(), self._node.batch(calls), strict=True):
            if isinstance(result, NodeRefused):
                why = ESCROW.error_name(result.data) or result.message
                answers[place] = Unknown(f"the escrow would refuse it: {why}"[:200])
                continue
            tried = self._tries.get(_key(end.order, function))
            (alone if tried is not None and tried.count >= ATTEMPTS_ALONE else together).append(place)
        size = self._ends_per_transaction
        chunks = [together[start : start + size] for start in range(0, len(together), size)] + [[at] for at in alone]
        for chunk in chunks:
            outcome = self._send_chunk([asked[place] for place in chunk], function)
            answers |= dict.fromkeys(chunk, outcome)
        return answers

    def _send_chunk(self, ends: list[EndOrder], function: str) -> Unknown:
        payers = [self._payer(end.order) for end in ends]
        ids = [chain_id_of_hold(end.order.hold_id) for end in ends]
        data = ESCROW.call(f"{function}All", payers, ids, [end.secret for end in ends])
        keys = frozenset(_key(end.order, function) for end in ends)
        try:
            is_sent = self._sender.send(self._terms.escrow, data, keys=keys, ends=len(ends))
        except NodeRefused as error:
            return Unknown(f"the node does not take the transaction: {error.message}")
        if not is_sent:
            return Unknown("as many transactions as may wait for a block already")
        now = self._monotonic()
        for key in keys:
            tried = self._tries.setdefault(key, _Try(0, now))
            tried.count, tried.at = tried.count + 1, now
        return Unknown("it is sent and in no block yet")

    def _is_too_soon(self, order: HoldOrder, function: str) -> bool:
        tried = self._tries.get(_key(order, function))
        return tried is not None and tried.count >= ATTEMPTS_MAX and self._monotonic() - tried.at < RETRY_SECONDS

    def _forget(self, order: HoldOrder, function: str) -> None:
        self._tries.pop(_key(order, function), None)
        self._locks.pop(order.hold_id, None)
        self._lock_sent.pop(order.hold_id, None)

    def _lock_again(self, order: HoldOrder) -> str:
        """A held lock that is gone: it was reorganised away. The payer's own signed transaction is sent again."""
        token = self._locks.get(order.hold_id) or (self._recall(order) if self._recall is not None else None)
        found = None if token is None else read_lock(self._terms, order, token)
        if not isinstance(found, LockTransaction):
            return "the held lock is on the chain no more, and its transaction is not known here"
        now = self._monotonic()
        if now - self._lock_sent.get(order.hold_id, float("-inf")) >= self._resend_seconds:
            self._lock_sent[order.hold_id] = now
            try:
                self._node.call("eth_sendRawTransaction", _hex(found.raw))
            except NodeRefused as error:
                if not is_known(error):
                    return (
                        f"the held lock is on the chain no more, and the node does not take it again: {error.message}"
                    )
        return "the held lock was reorganised away and is sent again"

    # --- reading

    def _states(self, orders: Sequence[HoldOrder], block: Block) -> tuple[list[SeenHold | None], list[SeenHold | None]]:
        """Each hold in the final block's state and in the newest; None for accounts without an address."""
        known = [place for place, order in enumerate(orders) if self._terms.address(order.terms.debit) is not None]
        calls: list[Call] = []
        for tag in ({"blockHash": block.hash}, "latest"):
            for start in range(0, len(known), LOOK_UP_MAX):
                chunk = [orders[place] for place in known[start : start + LOOK_UP_MAX]]
                data = ESCROW.call(
                    "lookUp",
                    [self._payer(order) for order in chunk],
                    [chain_id_of_hold(order.hold_id) for order in chunk],
                    [order.abort_hash for order in chunk],
                )
                calls.append(("eth_call", [{"to": self._terms.escrow, "data": _hex(data)}, tag]))
        seen: list[SeenHold] = []
        for answer in self._node.batch(calls):
            if isinstance(answer, NodeRefused):
                raise answer
            try:
                holds, buried = ESCROW.result("lookUp", data_bytes(answer))
            except AbiMismatch:
                raise NodeUnreachable(f"no escrow answers at {self._terms.escrow}") from None
            seen += [SeenHold(*(*hold, is_buried)) for hold, is_buried in zip(holds, buried, strict=True)]
        if len(seen) != 2 * len(known):
            raise NodeUnreachable("the escrow answered for another number of holds")
        self._check_code()
        final: list[SeenHold | None] = [None] * len(orders)
        head: list[SeenHold | None] = [None] * len(orders)
        for number, place in enumerate(known):
            final[place], head[place] = seen[number], seen[len(known) + number]
        return final, head

    def _check_code(self) -> None:
        """Once: the code at the escrow's address is this program's. Another's could answer anything (I5)."""
        if self._is_code_checked:
            return
        if data_bytes(self._node.call("eth_getCode", self._terms.escrow, "latest")) != ESCROW.runtime:
            raise NodeAstray(f"the contract at {self._terms.escrow} is not this program's escrow")
        self._is_code_checked = True

    def _standing(self, order: HoldOrder, seen: SeenHold | None) -> HoldStanding:
        payee = self._terms.address(order.terms.credit)
        return standing_of(order, seen, payee=payee, token=self._terms.token, unit=self._terms.unit)

    def _lines(self, address: str, block: Block) -> list[EvmLine]:
        word = "0x" + "00" * 12 + address[2:].lower()
        escrow = self._terms.escrow
        posted, locked = (_hex(ESCROW.topic(name)) for name in ("Posted", "Locked"))
        logs: list[dict[str, Any]] = []
        for start in range(self._first_block, block.number + 1, LOGS_BLOCKS):
            bounds = {"fromBlock": hex(start), "toBlock": hex(min(start + LOGS_BLOCKS - 1, block.number))}
            for topics in ([[posted, locked], word], [[posted, locked], None, word]):
                found = self._node.call("eth_getLogs", {"address": escrow, "topics": topics, **bounds})
                if not isinstance(found, list):
                    raise NodeUnreachable("a node answered no logs where some were due")
                logs += found
        references: dict[tuple[str, bytes], bytes] = {}
        entries: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for item in sorted(logs, key=lambda log: (quantity(log["blockNumber"]), quantity(log["logIndex"]))):
            try:
                topics_of = [data_bytes(topic) for topic in item["topics"]]
                name, fields = ESCROW.event(topics_of, data_bytes(item["data"]))
            except AbiMismatch:
                continue
            if fields["token"] != self._terms.token:
                continue
            if name == "Locked":
                references[fields["payer"], fields["id"]] = fields["ref"]
            else:
                entries.append((item, fields))
        times = self._times({item["blockNumber"] for item, _ in entries})
        return [
            EvmLine(
                hold_id=uuid_of(fields["id"]),
                reference=uuid_of(references.get((fields["payer"], fields["id"]), b"")),
                debit=fields["payer"],
                credit=fields["payee"],
                amount_units=fields["amount"],
                booked_at=times[item["blockNumber"]],
                block_number=quantity(item["blockNumber"]),
                block_hash=item["blockHash"],
                transaction=item["transactionHash"],
                log_index=quantity(item["logIndex"]),
            )
            for item, fields in entries
        ]

    def _times(self, numbers: set[str]) -> dict[str, datetime]:
        asked = sorted(numbers)
        found = self._node.batch([("eth_getBlockByNumber", [number, False]) for number in asked])
        times: dict[str, datetime] = {}
        for number, block in zip(asked, found, strict=True):
            if not isinstance(block, dict):
                raise NodeUnreachable("a node does not have the block of a log it showed")
            times[number] = datetime.fromtimestamp(quantity(block.get("timestamp")), UTC)
        return times

    def _payer(self, order: HoldOrder) -> str:
        return self._terms.addresses[order.terms.debit]


def _is_revert(error: NodeRefused) -> bool:
    return error.code == 3 or "revert" in error.message.lower()


def _key(order: HoldOrder, function: str) -> str:
    return f"{function} {order.hold_id}"


def _hex(data: bytes) -> str:
    return "0x" + data.hex()
