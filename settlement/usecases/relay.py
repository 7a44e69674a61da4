"""The relay: it keeps the islands' signed checkpoints and headers, and gathers the proofs that stand under them.

Nothing is kept before it is checked against what is kept already (`settlement.relay.keeping`); what contradicts it is
an alarm with its evidence and is kept apart. The database keeps one root a size and one header a height, each the child
of the one before it, whatever this code does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from rlp import encode as rlp_encode  # type: ignore[import-untyped]
from sqlalchemy.exc import IntegrityError

from kernel import strict_json
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.clock import Clock
from kernel.crypto.keys import SigningKey
from kernel.database import Database
from kernel.errors import ProblemError
from kernel.ids import HoldId
from kernel.transparency.notes import KeyKind, VerifierKey
from ledger.client import LedgerClient
from settlement.domain.escrow import Decision, Leg, LegState
from settlement.islands.evm.rpc import Node, NodeRefused, NodeUnreachable, data_bytes, quantity
from settlement.relay import evm, keeping
from settlement.relay.bundle import (
    HEADERS_MAX,
    EventProof,
    EvmProof,
    HeaderChain,
    LegProof,
    LegStanding,
    NativeProof,
    ProofBundle,
    Statement,
)
from settlement.relay.evm import Header
from settlement.relay.keeping import Alarm, AlarmKind, Kept
from settlement.relay.trie import ProofRefused, prove
from settlement.relay.trust import EvmTrust, NativeTrust, Trust
from settlement.store import relay as store
from settlement.store.batches import SettlementRow
from settlement.store.relay import ProofTerms

log = logging.getLogger("jiaozi.settlement.relay")

HEADERS_A_PASS = 256
HEADERS_A_REQUEST = 64
LOGS_BLOCKS = 5_000
SEARCH_BLOCKS_MAX = 50_000
"""How far behind the newest kept header a leg's events are looked for."""
_CLOCKS_APART = timedelta(minutes=10)
"""How much a chain's clock may be before ours."""
RECEIPTS_MAX = 20_000
_FIELDS = (
    *("parentHash", "sha3Uncles", "miner", "stateRoot", "transactionsRoot", "receiptsRoot", "logsBloom"),
    *("difficulty", "number", "gasLimit", "gasUsed", "timestamp", "extraData", "mixHash", "nonce"),
)
_LATER_FIELDS = (
    *("baseFeePerGas", "withdrawalsRoot", "blobGasUsed", "excessBlobGas", "parentBeaconBlockRoot", "requestsHash"),
)
_NUMBERS = {
    *("difficulty", "number", "gasLimit", "gasUsed", "timestamp"),
    *("baseFeePerGas", "blobGasUsed", "excessBlobGas"),
}


class NotProvable(Exception):
    """There is no proof now; the text says why."""


class RelayFailed(Exception):
    """An island could not be looked at; the text says why."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What is kept of an island."""

    ledger: str
    kind: str
    height: int | None
    """The size of the last checkpoint, or the number of the last header; None while nothing is kept."""
    head: bytes | None
    """Its root or hash."""
    note: str
    """The checkpoint as the log signed it, or the header's number and hash as this keeper signs them."""
    failure: str
    """Why the last look at it failed."""


class Relay:
    def __init__(
        self,
        trust: Trust,
        ledgers: Mapping[str, LedgerClient],
        nodes: Mapping[str, Node],
        *,
        database: Database,
        clock: Clock,
        name: str,
        key: SigningKey,
    ) -> None:
        """`ledgers` and `nodes` by the island's name; `name` and `key` sign headers. Raises ValueError for an island
        without either."""
        for island in trust.islands:
            if island.ledger not in (ledgers if isinstance(island, NativeTrust) else nodes):
                raise ValueError(
                    f"the relay is to keep {island.ledger}, which is no {island.kind} ledger of this bridge"
                )
        self.trust = trust
        self._ledgers = ledgers
        self._nodes = nodes
        self._database = database
        self._clock = clock
        self._name = name
        self._key = key
        self._failures: dict[str, str] = {}

    @property
    def keeper(self) -> str:
        """The public key that signs headers (a C2SP vkey)."""
        return str(VerifierKey(self._name, KeyKind.ED25519, self._key.public))

    def close(self) -> None:
        for client in self._ledgers.values():
            client.close()
        for node in self._nodes.values():
            node.close()

    # --- keeping

    def round(self) -> None:
        """Look at every island once. One that fails delays no other."""
        for island in self.trust.islands:
            try:
                if isinstance(island, NativeTrust):
                    self._keep_log(island)
                else:
                    self._keep_chain(island)
                self._failures.pop(island.ledger, None)
            except (*_UNREACHABLE, *_UNREADABLE, ProofRefused, RelayFailed) as error:
                self._failures[island.ledger] = str(error)[:200]
                log.warning("the relay could not look at %s: %s", island.ledger, str(error)[:200])

    def standings(self) -> list[Standing]:
        found = []
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            for island in self.trust.islands:
                height: int | None = None
                head: bytes | None = None
                note = ""
                if isinstance(island, NativeTrust):
                    kept = store.last_checkpoint(connection, island.ledger)
                    if kept is not None:
                        height, head, note = kept.size, kept.root, kept.note
                else:
                    last = store.last_header(connection, island.ledger)
                    if last is not None:
                        height, head, note = last.number, last.hash, self._sign(island, last)
                why = self._failures.get(island.ledger, "")
                found.append(Standing(island.ledger, island.kind, height, head, note, why))
        return found

    def alarms(self, *, limit: int) -> list[store.AlarmRow]:
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            return store.alarms(connection, limit=limit)

    def _keep_log(self, island: NativeTrust) -> None:
        # The kept one is read first: whatever is asked for afterwards must not be behind it.
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            before = store.last_checkpoint(connection, island.ledger)
        note = self._ledgers[island.ledger].checkpoint()
        shown = keeping.open_note_of(island, note)
        if before is not None and shown.size < before.size:
            # A log that has lost its end cannot prove anything about what it lost.
            detail = f"the newest checkpoint is of size {shown.size}; one of size {before.size} was kept before"
            self._raise(island.ledger, Alarm(AlarmKind.ROLLED_BACK, detail, before.note.encode(), shown.note.encode()))
            raise RelayFailed(detail)
        self.keep(island, note)

    def keep(self, island: NativeTrust, note: str) -> None:
        """A checkpoint, if it is consistent with the nearest one that is kept; else an alarm, and RelayFailed."""
        shown = keeping.open_note_of(island, note)
        for _ in range(2):  # another thread may keep another checkpoint of this size in between: compare with that one
            with self._database.transaction(isolation="READ COMMITTED") as connection:
                kept = store.nearest_checkpoint(connection, island.ledger, shown.size)
            if kept is not None:
                alarm = keeping.compare(kept, shown, self._consistency(island, kept, shown))
                if alarm is not None:
                    self._raise(island.ledger, alarm)
                    raise RelayFailed(alarm.detail)
                if kept.size == shown.size:
                    return
            with self._database.transaction(isolation="READ COMMITTED") as connection:
                if store.keep_checkpoint(connection, island.ledger, shown, now=self._clock()):
                    return

    def _consistency(self, island: NativeTrust, kept: Kept, shown: Kept) -> Sequence[bytes]:
        old, new = sorted((kept.size, shown.size))
        if old in (0, new):
            return []
        return self._ledgers[island.ledger].consistency_proof(old, new).proof

    def _keep_chain(self, island: EvmTrust) -> None:
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            last = store.last_header(connection, island.ledger)
        node = self._nodes[island.ledger]
        if last is None:
            first = _headers(node, island.anchor.number, island.anchor.number)[0]
            if first.hash != island.anchor.hash:
                detail = f"block {first.number} is 0x{first.hash.hex()}, not the trusted 0x{island.anchor.hash.hex()}"
                self._raise(island.ledger, Alarm(AlarmKind.CONTRADICTION, detail, island.anchor.hash, first.raw))
                raise RelayFailed(detail)
            self._insert(island.ledger, [first], is_first=True)
            last = first
        self._compare(island, last, _headers(node, last.number, last.number)[0])
        final = quantity(node.call("eth_blockNumber")) - island.confirmations + 1
        until = min(final, last.number + HEADERS_A_PASS)
        for start in range(last.number + 1, until + 1, HEADERS_A_REQUEST):
            found = _headers(node, start, min(start + HEADERS_A_REQUEST - 1, until))
            evm.linked([last.raw, *(header.raw for header in found)])
            self._insert(island.ledger, found, is_first=False)
            last = found[-1]

    def _compare(self, island: EvmTrust, kept: Header, shown: Header) -> None:
        alarm = keeping.same_block(kept, shown)
        if alarm is not None:
            self._raise(island.ledger, alarm)
            raise RelayFailed(alarm.detail)

    def _insert(self, ledger: str, headers: Sequence[Header], *, is_first: bool) -> None:
        try:
            with self._database.transaction(isolation="READ COMMITTED") as connection:
                store.keep_headers(connection, ledger, headers, is_first=is_first, now=self._clock())
        except IntegrityError:
            raise RelayFailed("another header is kept at one of these heights: the next look compares them") from None

    def _raise(self, ledger: str, alarm: Alarm) -> None:
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            is_new = store.raise_alarm(connection, ledger, alarm, now=self._clock())
        if is_new:
            log.error("ALARM of %s: %s: %s", ledger, alarm.kind.value, alarm.detail)

    def _sign(self, island: EvmTrust, header: Header) -> str:
        return evm.sign_header(island.ledger, header, name=self._name, key=self._key)

    # --- proving

    def prove(self, row: SettlementRow) -> ProofBundle | None:
        """None of a settlement that holds nothing on any island: it was not prepared, or was netted into another."""
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            terms = store.proof_terms(connection, row.id)
        if terms is None:
            return None
        legs, chains = [], {}
        for found in row.legs:
            island = self.trust.of(found.leg.terms.ledger)
            proof: NativeProof | EvmProof | None = None
            why = ""
            try:
                if island is None:
                    raise NotProvable("no headers of this island are kept")
                if isinstance(island, NativeTrust):
                    proof, why = self._prove_native(island, found.leg, terms)
                else:
                    proof, why = self._prove_evm(island, row, found.leg, terms)
                    if island.ledger not in chains:
                        chains[island.ledger] = self._chain(island, row)
            except (*_UNREACHABLE, *_UNREADABLE, ProofRefused, RelayFailed, NotProvable) as error:
                why = str(error)[:500]
            legs.append(LegProof(statement=_statement(found.leg, row.decision), proof=proof, why_not=why))
        return ProofBundle(
            settlement=row.id,
            uetr=row.uetr,
            state=row.state,
            commit_hash=terms.commit_hash,
            abort_hash=terms.abort_hash,
            legs=legs,
            chains=list(chains.values()),
        )

    def _prove_native(self, island: NativeTrust, leg: Leg, terms: ProofTerms) -> tuple[NativeProof, str]:
        client = self._ledgers[island.ledger]
        view = client.get_hold(HoldId(leg.hold_id))
        why = ""
        end = view.ended_by
        is_tombstone = view.debit is None
        if is_tombstone and terms.abort_secret is not None:
            end = leg.end_id(Decision.ABORT, terms.abort_secret)
        hold = None if is_tombstone else self._receipt(island, leg.hold_id)
        ended = None
        if end is None:
            why = "nothing has ended the hold yet"
        else:
            try:
                ended = self._receipt(island, end)
            except (*_UNREACHABLE, NotProvable) as error:
                if hold is None:
                    raise
                why = f"the receipt of its end: {error}"[:500]
        if hold is None and ended is None:
            raise NotProvable(why)
        secret = terms.abort_secret if is_tombstone else None
        instruction = None if is_tombstone else terms.authorisations.get(leg.number)
        return NativeProof(hold_receipt=hold, instruction=instruction, end_receipt=ended, end_secret=secret), why

    def _receipt(self, island: NativeTrust, transfer: UUID) -> dict[str, Any]:
        """Under a checkpoint that is kept from now on: it was checked against those before it."""
        try:
            document = strict_json.loads(self._ledgers[island.ledger].receipt(transfer, quorum=island.quorum))
        except ProblemError as error:
            raise NotProvable(f"the ledger's receipt is not JSON: {error.detail}") from None
        if not isinstance(document, dict) or not isinstance(document.get("checkpoint"), str):
            raise NotProvable("the ledger's receipt has no checkpoint")
        self.keep(island, document["checkpoint"])
        return document

    def _prove_evm(self, island: EvmTrust, row: SettlementRow, leg: Leg, terms: ProofTerms) -> tuple[EvmProof, str]:
        node = self._nodes[island.ledger]
        payer = island.accounts.get(leg.terms.debit)
        if payer is None:
            raise NotProvable("the payer's address on the chain is not known")
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            last = store.last_header(connection, island.ledger)
            since = int((row.received_at - _CLOCKS_APART).timestamp())
            first = store.first_header_since(connection, island.ledger, since)
        if last is None or first is None:
            raise NotProvable("no header of the time since the settlement was received is kept yet")
        start = max(first.number, last.number - SEARCH_BLOCKS_MAX)
        hold = leg.hold_id.int.to_bytes(32, "big")
        word = bytes(12) + bytes.fromhex(payer[2:])
        found: dict[bytes, dict[str, Any]] = {}
        for begin in range(start, last.number + 1, LOGS_BLOCKS):
            bounds = {"fromBlock": hex(begin), "toBlock": hex(min(begin + LOGS_BLOCKS - 1, last.number))}
            for topics in (
                [[_hex(evm.LOCKED), _hex(evm.POSTED), _hex(evm.VOIDED)], _hex(word), None, _hex(hold)],
                [_hex(evm.BURIED), _hex(word), _hex(hold)],
            ):
                logs = node.call("eth_getLogs", {"address": island.escrow, "topics": topics, **bounds})
                for item in logs if isinstance(logs, list) else []:
                    topic = data_bytes(item["topics"][0])
                    if topic != evm.BURIED or data_bytes(item["data"]) == terms.abort_hash:
                        found[topic] = item
        locked = found.get(evm.LOCKED)
        ended = found.get(evm.POSTED) or found.get(evm.VOIDED)
        if locked is None and ended is None:
            ended = found.get(evm.BURIED)
        if locked is None and ended is None:
            raise NotProvable("no final block that is kept shows a lock or a tombstone of it")
        proof = EvmProof(
            locked=None if locked is None else _event(node, locked),
            ended=None if ended is None else _event(node, ended),
        )
        return proof, "" if ended is not None else "no final block that is kept shows its end"

    def _chain(self, island: EvmTrust, row: SettlementRow) -> HeaderChain:
        """From the trusted block to the newest kept, or, if that is too much, from the settlement's time on."""
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            last = store.last_header(connection, island.ledger)
            since = int((row.received_at - _CLOCKS_APART).timestamp())
            near = store.first_header_since(connection, island.ledger, since)
            if last is None or near is None:
                raise NotProvable("no header is kept yet")
            start = min(island.anchor.number, near.number)
            if last.number - start >= HEADERS_MAX:
                start = near.number
            headers = store.headers_between(connection, island.ledger, start, min(last.number, start + HEADERS_MAX - 1))
        note = self._sign(island, headers[-1])
        return HeaderChain(ledger=island.ledger, headers=[header.raw.hex() for header in headers], note=note)


class RelayWatch:
    """`start()` it with the service, `stop()` it in the end. Several at once do no harm: rows are only added."""

    def __init__(self, relay: Relay, *, every_seconds: float) -> None:
        self._relay = relay
        self._every_seconds = every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="settlement-relay", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, *, timeout_seconds: float = 5.0) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._relay.round()
            except Exception:
                # The next round does it: what is kept is in the database.
                log.warning("a round of the relay failed", exc_info=True)
            self._stop.wait(self._every_seconds)


_UNREADABLE = (ValueError, LookupError, TypeError)
"""Of an answer that is not what was asked for."""
_UNREACHABLE = (ServiceUnreachable, ProblemResponse, NodeUnreachable, NodeRefused)


def _statement(leg: Leg, decision: Decision | None) -> Statement:
    """What is claimed follows from the leg's state, and the decision says which way a leg that has not ended will go:
    claims are cheap, the proof decides."""
    state = LegStanding.HELD
    if leg.state is LegState.POSTED or decision is Decision.COMMIT:
        state = LegStanding.POSTED
    elif leg.state is LegState.VOIDED or decision is Decision.ABORT:
        state = LegStanding.VOIDED
    return Statement(
        number=leg.number,
        ledger=leg.terms.ledger,
        hold=leg.hold_id,
        payer=leg.terms.payer,
        payee=leg.terms.payee,
        debit=leg.terms.debit,
        credit=leg.terms.credit,
        amount_minor=leg.terms.amount.amount_minor,
        currency=leg.terms.amount.currency.code,
        state=state,
    )


# --- what a node answers, as the bytes that hashes cover


def _headers(node: Node, first: int, last: int) -> list[Header]:
    """Raises NodeUnreachable, ProofRefused, RelayFailed."""
    answers = node.batch([("eth_getBlockByNumber", [hex(number), False]) for number in range(first, last + 1)])
    headers = []
    for number, answer in zip(range(first, last + 1), answers, strict=True):
        if not isinstance(answer, dict):
            raise RelayFailed(f"{node.name} does not have block {number}")
        header = evm.read_header(header_rlp(answer))
        if header.number != number or header.hash != data_bytes(answer.get("hash")):
            # A field that this program does not know yet, or a lie: either way it is not that block's header.
            raise RelayFailed(f"the header of block {number} from {node.name} does not have the hash it is shown under")
        headers.append(header)
    return headers


def header_rlp(block: Mapping[str, Any]) -> bytes:
    names = [*_FIELDS, *(name for name in _LATER_FIELDS if block.get(name) is not None)]
    return bytes(rlp_encode([_field(name, block.get(name)) for name in names]))


def receipt_rlp(receipt: Mapping[str, Any]) -> bytes:
    """EIP-2718: the type's byte before the list, but none for the legacy type 0."""
    logs = [
        [data_bytes(item["address"]), [data_bytes(topic) for topic in item["topics"]], data_bytes(item["data"])]
        for item in receipt["logs"]
    ]
    kind = quantity(receipt.get("type", "0x0"))
    body = [_minimal(quantity(receipt["status"])), _minimal(quantity(receipt["cumulativeGasUsed"]))]
    encoded = bytes(rlp_encode([*body, data_bytes(receipt["logsBloom"]), logs]))
    return (bytes([kind]) if kind else b"") + encoded


def _event(node: Node, item: Mapping[str, Any]) -> EventProof:
    """Raises NodeUnreachable, NodeRefused, RelayFailed."""
    number = quantity(item["blockNumber"])
    receipts = node.call("eth_getBlockReceipts", hex(number))
    if not isinstance(receipts, list) or not 0 < len(receipts) <= RECEIPTS_MAX:
        raise RelayFailed(f"{node.name} shows no receipts of block {number}")
    try:
        values = {bytes(rlp_encode(place)): receipt_rlp(receipt) for place, receipt in enumerate(receipts)}
        of_transaction = [it["transactionHash"] for it in receipts].index(item["transactionHash"])
        position = [it["logIndex"] for it in receipts[of_transaction]["logs"]].index(item["logIndex"])
    except (KeyError, TypeError, ValueError):
        raise RelayFailed(f"the receipts of block {number} from {node.name} cannot be read") from None
    _, nodes = prove(values, bytes(rlp_encode(of_transaction)))
    return EventProof(
        block=number, transaction_index=of_transaction, log_position=position, nodes=[node.hex() for node in nodes]
    )


def _field(name: str, value: Any) -> bytes:
    return _minimal(quantity(value)) if name in _NUMBERS else data_bytes(value)


def _minimal(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def _hex(data: bytes) -> str:
    return "0x" + data.hex()
