"""The port over the escrow contract on a ChainMaker chain.

Its three calls are Try, Confirm and Cancel: `prepare` places the hold, `fulfil` posts it, `cancel` voids it or leaves a
tombstone. Blocks are final by the chain's consensus: what a block shows counts, what waits in a pool does not.

Idempotent by the contract's state and by transaction ids that follow from the leg. Each round reads where the holds
stand and sends what is missing. Whatever a node answers to a transaction decides nothing good: a hold counts when it is
seen in the state. A lost acknowledgement, a duplicate, a crash and a second bridge are one case.

A call waits `wait_seconds` for blocks and then answers `Unknown`, with what it waits for: the engine asks again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from eth_utils.address import to_checksum_address

from kernel.ids import AccountNumber
from settlement.domain.escrow import HoldOrder
from settlement.domain.refusals import AbortReason
from settlement.islands.balances import EscrowTotals
from settlement.islands.chainmaker import wire_pb2 as wire
from settlement.islands.chainmaker.client import (
    Node,
    NodeRefused,
    NodeUnreachable,
    address_of_certificate,
    transaction_id,
    verified_sender,
)
from settlement.islands.chainmaker.terms import VALID_SECONDS, ChainMakerTerms, LockRequest, read_lock
from settlement.islands.escrow_holds import Patience, SeenHold, ended_as, known_ends, standing_of
from settlement.islands.evm.contracts import ESCROW, TOKEN, AbiMismatch, chain_id_of_hold, uuid_of
from settlement.islands.evm.island import EvmLine
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
"""Holds in one query."""
BLOCKS_AT_ONCE = 50
RESEND_SECONDS = 5.0
ATTEMPTS_MAX = 3
RETRY_SECONDS = 60.0
"""After ATTEMPTS_MAX posts or voids that changed nothing, no oftener than this."""
READINGS_MAX = 3
"""Of the escrow's totals, until no block came in between."""
CHECK_SECONDS = 30.0
"""The installed version of the escrow is asked for as often."""
_TRANSIENT = ("duplicate", "exist", "full", "limit", "busy", "timeout")
"""In a node's words for "not now" and "already here"."""

Outcome = TypeVar("Outcome")


class EscrowAstray(Exception):
    """The contract under the escrow's name is not known to be this program's; nothing it says is believed (I5)."""


@dataclass(slots=True)
class _Attempt:
    """The next transaction of an end. `found` = it was seen in a block; a later state shows whether it worked."""

    number: int = 0
    found: bool = False
    sent_at: float = float("-inf")
    failed_at: float = float("-inf")


@dataclass(frozen=True, slots=True)
class _Posted:
    """What an event says."""

    payer: str
    payee: str
    id: bytes
    amount: int


@dataclass(frozen=True, slots=True)
class _Place:
    block_number: int
    block_hash: str
    transaction: str
    log_index: int


class _Book:
    """What was read of the blocks, which do not change: the events of posts and the locks' own arguments."""

    def __init__(self, first_block: int) -> None:
        self.lock = threading.Lock()
        self.next = first_block
        self.posted: dict[_Posted, _Place] = {}
        self.references: dict[tuple[str, bytes], bytes] = {}


class ChainMakerIsland:
    """Thread-safe."""

    def __init__(
        self,
        terms: ChainMakerTerms,
        node: Node,
        *,
        install_tx_id: str,
        first_block: int = 0,
        wait_seconds: float = 2.0,
        poll_seconds: float = 0.05,
        resend_seconds: float = RESEND_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`first_block` is the escrow's, where statements begin."""
        self._terms = terms
        self._node = node
        self._install_tx_id = install_tx_id
        self._patience = Patience(
            wait_seconds, poll_seconds, monotonic, sleep, (NodeUnreachable, NodeRefused, EscrowAstray)
        )
        self._resend_seconds = resend_seconds
        self._monotonic = monotonic
        self._book = _Book(first_block)
        self._lock = threading.Lock()
        self._lock_sent: dict[str, float] = {}
        self._attempts: dict[str, _Attempt] = {}
        self._version: str | None = None
        self._checked_at = float("-inf")

    @property
    def name(self) -> str:
        return self._terms.ledger

    # --- the port

    def prepare(self, holds: Sequence[SignedHold]) -> list[PrepareOutcome]:
        outcomes: dict[int, PrepareOutcome] = {}
        locks: dict[int, LockRequest] = {}
        for place, hold in enumerate(holds):
            found = read_lock(self._terms, hold.order, hold.authorisation)
            if isinstance(found, Refused):
                outcomes[place] = found
            else:
                locks[place] = found

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
            states = self._states(orders)
        except (NodeUnreachable, NodeRefused, EscrowAstray):
            return [HoldStanding.UNKNOWN] * len(orders)
        return [self._standing(order, seen) for order, seen in zip(orders, states, strict=True)]

    def statement(self, account: AccountNumber) -> list[EvmLine]:
        """Raises NodeUnreachable, NodeRefused, EscrowAstray. Times are those of the chain's blocks."""
        address = self._terms.address(account)
        if address is None:
            return []
        self._check_escrow()
        with self._book.lock:
            self._read_blocks()
            posted = {item: at for item, at in self._book.posted.items() if address in (item.payer, item.payee)}
            references = dict(self._book.references)
        return self._lines(posted, references)

    def available_of(self, accounts: Sequence[AccountNumber]) -> list[int | None]:
        """What each has (`settlement.islands.balances`): locked money has left it; None = unknown."""
        found: list[int | None] = [None] * len(accounts)
        known = {place: self._terms.addresses[it] for place, it in enumerate(accounts) if it in self._terms.addresses}
        try:
            balances = self._ask_token([("balanceOf", (address,)) for address in known.values()])
        except (NodeUnreachable, NodeRefused):
            return found
        for place, balance in zip(known, balances, strict=True):
            found[place] = balance // self._terms.unit
        return found

    def escrow_totals(self) -> EscrowTotals | None:
        """What the escrow holds and counts in one block. Equal counts before and after would not show that it is one:
        a hold may end and another of the same amount begin."""
        try:
            for _ in range(READINGS_MAX):
                height = self._node.height()
                held = self._escrow_held()
                (balance,) = self._ask_token([("balanceOf", (self._terms.escrow_address,))])
                if self._node.height() == height:
                    return EscrowTotals(balance // self._terms.unit, held // self._terms.unit)
        except (NodeUnreachable, NodeRefused, AbiMismatch):
            return None
        return None

    def _escrow_held(self) -> int:
        (data,) = self._node.query_evm(self._terms.escrow, [ESCROW.call("heldTotal", self._terms.token_address)])
        return int(ESCROW.result("heldTotal", data)[0])

    # --- placing

    def _lock_round(self, asked: dict[int, tuple[HoldOrder, LockRequest]]) -> dict[int, PrepareOutcome]:
        answers: dict[int, PrepareOutcome] = {}
        absent: list[int] = []
        # First the transactions, then the state: one that is found was at work before the state was read.
        in_blocks = dict(zip(asked, self._node.transactions([lock.tx_id for _, lock in asked.values()]), strict=True))
        states = self._states([order for order, _ in asked.values()])
        for (place, (order, _)), seen in zip(asked.items(), states, strict=True):
            match self._standing(order, seen):
                case HoldStanding.HELD:
                    answers[place] = Held()
                case HoldStanding.ABSENT:
                    absent.append(place)
                case HoldStanding.VOIDED:
                    answers[place] = Refused("hold-already-voided")
                case standing:
                    why = f"a hold with this id stands: {standing.value}"
                    answers[place] = Refused(AbortReason.HOLD_DIFFERS.value, why)
        due: list[int] = []
        now = self._monotonic()
        for place in absent:
            order, lock = asked[place]
            info = in_blocks[place]
            if info is not None:
                answers[place] = self._why_refused(order, info)
            elif self._node.now() > lock.expires_at:
                # Were it still in a pool: an abort follows this, and its tombstone keeps the late lock out.
                answers[place] = Refused("authorisation-expired", "the signed lock is not valid any more")
            elif now - self._lock_sent.get(lock.tx_id, float("-inf")) < self._resend_seconds:
                answers[place] = Unknown("the lock is sent and in no block yet")
            else:
                self._lock_sent[lock.tx_id] = now
                due.append(place)
        if due:
            for place, answer in zip(due, self._node.send([asked[place][1].request for place in due]), strict=True):
                answers[place] = _admitted(answer)
        for place, outcome in answers.items():
            if not isinstance(outcome, Unknown):
                self._lock_sent.pop(asked[place][1].tx_id, None)
        return answers

    def _why_refused(self, order: HoldOrder, info: wire.TransactionInfo) -> Refused:
        """Of a lock's transaction that is in a block and placed no hold."""
        if info.transaction.result.code == 0 and info.transaction.result.contract_result.code == 0:
            return Refused("authorisation-superseded", "another transaction has the id of this lock")
        payer = self._terms.addresses[order.terms.debit]
        needed = order.terms.amount.amount_minor * self._terms.unit
        balance, allowance = self._ask_token(
            [("balanceOf", (payer,)), ("allowance", (payer, self._terms.escrow_address))]
        )
        if balance < needed:
            return Refused("insufficient-funds")
        if allowance < needed:
            return Refused("allowance-too-low", "the payer has not approved the escrow for this amount")
        return Refused("lock-refused", str(info.transaction.result.contract_result.message)[:200])

    def _ask_token(self, calls: Sequence[tuple[str, tuple[object, ...]]]) -> list[int]:
        results = self._node.query_evm(self._terms.token, [TOKEN.call(name, *arguments) for name, arguments in calls])
        try:
            return [int(TOKEN.result(name, data)[0]) for (name, _), data in zip(calls, results, strict=True)]
        except AbiMismatch:
            raise NodeUnreachable("the token answered no number") from None

    # --- ending

    def _end(self, orders: Sequence[EndOrder], function: str) -> list[EndOutcome]:
        outcomes = known_ends(orders, function, lambda order: self._terms.address(order.terms.debit) is not None)

        def work(places: Sequence[int]) -> dict[int, EndOutcome]:
            return self._end_round({place: orders[place] for place in places}, function)

        self._patience.rounds([place for place in range(len(orders)) if place not in outcomes], work, outcomes)
        return [outcomes[place] for place in range(len(orders))]

    def _end_round(self, asked: dict[int, EndOrder], function: str) -> dict[int, EndOutcome]:
        answers: dict[int, EndOutcome] = {}
        rest: dict[str, list[int]] = {}
        states = self._states([end.order for end in asked.values()])
        for (place, end), seen in zip(asked.items(), states, strict=True):
            ended = self._ended(end.order, seen, function)
            key = f"{function} {end.end_id}"
            if ended is not None:
                answers[place] = ended
                self._attempts.pop(key, None)
            elif function == "commit" and self._standing(end.order, seen) is HoldStanding.ABSENT:
                answers[place] = Unknown("no hold is on the chain to be posted")
            else:
                rest.setdefault(key, []).append(place)  # the same end may be asked for twice
        if rest:
            with self._lock:  # an attempt's number is one for all threads
                found = self._send_ends({key: asked[places[0]] for key, places in rest.items()}, function)
            for key, places in rest.items():
                answers |= dict.fromkeys(places, Unknown(found[key]))
        return answers

    def _send_ends(self, ends: dict[str, EndOrder], function: str) -> dict[str, str]:
        """By key, what is waited for. Each was not ended in a state read just before."""
        answers: dict[str, str] = {}
        attempts = {key: self._attempts.setdefault(key, _Attempt()) for key in ends}
        now = self._monotonic()
        for attempt in attempts.values():
            if attempt.found:  # in a block before that state was read, and it did not work
                attempt.number, attempt.found, attempt.failed_at = attempt.number + 1, False, now
                attempt.sent_at = float("-inf")
        ids = {key: self._end_tx_id(ends[key], function, attempts[key].number) for key in ends}
        due: list[str] = []
        for key, info in zip(ids, self._node.transactions(list(ids.values())), strict=True):
            attempt = attempts[key]
            if info is not None:
                attempt.found = True
                answers[key] = "its transaction is in a block; the state is read again"
            elif attempt.number >= ATTEMPTS_MAX and now - attempt.failed_at < RETRY_SECONDS:
                answers[key] = "it was sent several times and changed nothing; it is tried now and then"
            elif now - attempt.sent_at < self._resend_seconds:
                answers[key] = "it is sent and in no block yet"
            else:
                attempt.sent_at = now
                due.append(key)
        stamp = self._node.now()
        requests = []
        for key in due:
            end = ends[key]
            payer = self._terms.addresses[end.order.terms.debit]
            data = ESCROW.call(function, payer, chain_id_of_hold(end.order.hold_id), end.secret)
            payload = self._terms.payload(data, tx_id=ids[key], timestamp=stamp, expiration_time=stamp + VALID_SECONDS)
            requests.append(self._node.signer.signed(payload))
        for key, answer in zip(due, self._node.send(requests), strict=True):
            outcome = _admitted(answer)
            answers[key] = outcome.why if isinstance(outcome, Unknown) else outcome.detail
        return answers

    def _end_tx_id(self, end: EndOrder, function: str, attempt: int) -> str:
        """`end_id` cannot be guessed before the decision, so nobody uses up this id first."""
        return transaction_id(self._terms.chain_id, self._terms.escrow, function, str(end.end_id), str(attempt))

    def _ended(self, order: HoldOrder, seen: SeenHold | None, function: str) -> EndOutcome | None:
        return ended_as(self._standing(order, seen), seen, function)

    # --- reading

    def _states(self, orders: Sequence[HoldOrder]) -> list[SeenHold | None]:
        """Each hold in the newest state; None for accounts without an address."""
        self._check_escrow()
        known = [place for place, order in enumerate(orders) if self._terms.address(order.terms.debit) is not None]
        asked = [
            (
                self._terms.addresses[orders[place].terms.debit],
                chain_id_of_hold(orders[place].hold_id),
                orders[place].abort_hash,
            )
            for place in known
        ]
        found: list[SeenHold | None] = [None] * len(orders)
        for place, seen in zip(known, self._look_up(asked), strict=True):
            found[place] = seen
        return found

    def _look_up(self, asked: Sequence[tuple[str, bytes, bytes]]) -> list[SeenHold]:
        """Of (payer, id, abort hash)."""
        chunks = [asked[start : start + LOOK_UP_MAX] for start in range(0, len(asked), LOOK_UP_MAX)]
        calls = [ESCROW.call("lookUp", *(list(column) for column in zip(*chunk, strict=True))) for chunk in chunks]
        seen: list[SeenHold] = []
        for data in self._node.query_evm(self._terms.escrow, calls):
            try:
                holds, buried = ESCROW.result("lookUp", data)
            except AbiMismatch:
                raise NodeUnreachable(f"no escrow answers as {self._terms.escrow}") from None
            seen += [SeenHold(*(*hold, is_buried)) for hold, is_buried in zip(holds, buried, strict=True)]
        if len(seen) != len(asked):
            raise NodeUnreachable("the escrow answered for another number of holds")
        return seen

    def _check_escrow(self) -> None:
        """The installed code is this program's, and was not upgraded since: another's could answer anything (I5)."""
        now = self._monotonic()
        if self._version is not None and now - self._checked_at < CHECK_SECONDS:
            return
        if self._version is None:
            info = self._node.transactions([self._install_tx_id])[0]
            if info is None:
                raise EscrowAstray(f"transaction {self._install_tx_id} is in no block")
            self._version = self._installed(info)
        version = self._node.contract_version(self._terms.escrow)
        if version != self._version:
            raise EscrowAstray(f"{self._terms.escrow} was upgraded from version {self._version} to {version}"[:200])
        self._checked_at = now

    def _installed(self, info: wire.TransactionInfo) -> str:
        """The version that the transaction installed. Raises EscrowAstray."""
        payload, result = info.transaction.payload, info.transaction.result
        values = {item.key: item.value for item in payload.parameters}
        code = values.get("CONTRACT_BYTECODE", b"")
        is_ours = code == ESCROW.bytecode or code.strip().lower() == ESCROW.bytecode.hex().encode()
        if (
            (payload.chain_id, payload.contract_name, payload.method)
            != (self._terms.chain_id, "CONTRACT_MANAGE", "INIT_CONTRACT")
            or values.get("CONTRACT_NAME") != self._terms.escrow.encode()
            or (result.code, result.contract_result.code) != (0, 0)
            or not is_ours
        ):
            raise EscrowAstray(f"transaction {self._install_tx_id} did not install this program's escrow")
        return str(values.get("CONTRACT_VERSION", b"").decode("utf-8", "replace"))

    def _standing(self, order: HoldOrder, seen: SeenHold | None) -> HoldStanding:
        payee = self._terms.address(order.terms.credit)
        return standing_of(order, seen, payee=payee, token=self._terms.token_address, unit=self._terms.unit)

    # --- statements

    def _read_blocks(self) -> None:
        """Every block since the last time: the posts and the locks in it."""
        newest = self._node.height()
        while self._book.next <= newest:
            heights = range(self._book.next, min(self._book.next + BLOCKS_AT_ONCE, newest + 1))
            for block in self._node.blocks(heights):
                for transaction in block.txs:
                    if transaction.result.code == 0:
                        self._read_posts(block.header, transaction)
                        if transaction.payload.contract_name == self._terms.escrow:
                            self._read_lock(transaction)
                self._book.next = block.header.block_height + 1

    def _read_posts(self, header: wire.BlockHeader, transaction: wire.Transaction) -> None:
        """Of any contract's transaction: a payee may post by a contract of its own, and an event carries the name of
        the called contract. So anybody can show such an event; `_lines` takes none on its word alone."""
        topic = ESCROW.topic("Posted").hex()
        for index, event in enumerate(transaction.result.contract_result.contract_event):
            if event.topic.removeprefix("0x") != topic:
                continue
            try:
                topics = [bytes.fromhex(text) for text in (topic, *event.event_data[:-1])]
                _, fields = ESCROW.event(topics, bytes.fromhex(event.event_data[-1]))
            except (AbiMismatch, ValueError, IndexError):
                continue
            parties = {fields["payer"], fields["payee"]}
            if fields["token"] == self._terms.token_address and parties <= self._terms.accounts.keys():
                posted = _Posted(fields["payer"], fields["payee"], fields["id"], fields["amount"])
                height, name = header.block_height, transaction.payload.tx_id
                self._book.posted.setdefault(posted, _Place(height, header.block_hash.hex(), name, index))

    def _read_lock(self, transaction: wire.Transaction) -> None:
        """The reference of a lock that its payer signed: the state does not keep it."""
        values = {item.key: item.value for item in transaction.payload.parameters}
        try:
            data = bytes.fromhex(values.get("data", b"").decode("ascii").removeprefix("0x"))
            arguments = ESCROW.arguments("lock", data)
            sender = address_of_certificate(
                verified_sender(wire.TxRequest(payload=transaction.payload, sender=transaction.sender)),
                self._terms.addr_type,
            )
        except ValueError:  # no lock, or of a member that shows no certificate
            return
        self._book.references[sender, arguments[0]] = arguments[7]

    def _lines(self, posted: dict[_Posted, _Place], references: dict[tuple[str, bytes], bytes]) -> list[EvmLine]:
        """Of the events those that the escrow's state bears out."""
        states = self._look_up([(item.payer, item.id, bytes(32)) for item in posted])
        lines = [
            EvmLine(
                hold_id=uuid_of(item.id),
                reference=uuid_of(references.get((item.payer, item.id), b"")),
                debit=item.payer,
                credit=item.payee,
                amount_units=item.amount,
                booked_at=datetime.fromtimestamp(seen.ended_at, UTC),
                block_number=at.block_number,
                block_hash=at.block_hash,
                transaction=at.transaction,
                log_index=at.log_index,
            )
            for (item, at), seen in zip(posted.items(), states, strict=True)
            if seen.standing == 2
            and to_checksum_address(seen.payee) == item.payee
            and to_checksum_address(seen.token) == self._terms.token_address
            and seen.amount == item.amount
        ]
        return sorted(lines, key=lambda line: (line.block_number, line.log_index))


def _admitted(answer: wire.TxResponse | NodeUnreachable) -> Unknown | Refused:
    """Admission is no outcome; a definite no of the node is one, before a decision."""
    if isinstance(answer, NodeUnreachable):
        return Unknown(str(answer))
    if answer.code == 0:
        return Unknown("it is sent and in no block yet")
    text = f"the node answers {answer.code}: {answer.message}"[:200]
    if any(word in answer.message.lower() for word in _TRANSIENT):
        return Unknown(text)
    return Refused("lock-not-admitted", text)
