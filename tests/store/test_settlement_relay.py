"""Goal: what is kept of an island is never taken back: a fork, a rewritten past, a smaller log and another block at a
final height are alarms with their evidence, once each, and what was kept stays.

Method: a real PostgreSQL under the service's own role; logs signed by a real key, a chain in process whose blocks are
undone; the constraints are asked alone, past the code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha256

import psycopg
import pytest

from kernel.clock import system_clock
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.transparency.checkpoints import Checkpoint
from kernel.transparency.merkle import leaf_hash, root_of
from kernel.transparency.notes import KeyKind, Note, VerifierKey, sign_text
from ledger.client import LedgerClient
from ledger.contract import ConsistencyProofView
from settlement.islands.evm.rpc import Node
from settlement.relay.keeping import AlarmKind
from settlement.relay.trust import Trust
from settlement.store import relay as store
from settlement.usecases.relay import Relay
from tests.relay_world import RelayChain
from tests.roles import as_service, dsn

LEDGER, CHAIN = "cny-ledger", "aed-chain"


class Log(LedgerClient):
    """A log that can be told to tell another history."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9")
        self.key = PrivateKey.generate()
        self.leaves: list[bytes] = []

    def grow(self, count: int, salt: str = "") -> None:
        start = len(self.leaves)
        self.leaves += [leaf_hash(f"{salt}{number}".encode()) for number in range(start, start + count)]

    def checkpoint(self) -> str:
        text = Checkpoint(LEDGER, len(self.leaves), root_of(self.leaves)).text
        return str(Note(text, (sign_text(text, name=LEDGER, key=self.key),)))

    def consistency_proof(self, old: int, new: int) -> ConsistencyProofView:
        return ConsistencyProofView(old_size=old, new_size=new, proof=_proof(old, self.leaves[:new], is_whole=True))


def _proof(old: int, leaves: list[bytes], *, is_whole: bool) -> list[bytes]:
    """RFC 6962 section 2.1.2, as it is written there."""
    if old == len(leaves):
        return [] if is_whole else [root_of(leaves)]
    middle = 1 << ((len(leaves) - 1).bit_length() - 1)
    if old <= middle:
        return [*_proof(old, leaves[:middle], is_whole=is_whole), root_of(leaves[middle:])]
    return [*_proof(old - middle, leaves[middle:], is_whole=False), root_of(leaves[:middle])]


@pytest.fixture
def url(fresh_database: Callable[[str], str]) -> str:
    return fresh_database("settlement")


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    made = Database(as_service(url, "settlement"), application_name="test", pool_size=3)
    yield made
    made.close()


def log_relay(database: Database, log: Log) -> Relay:
    key = str(VerifierKey(LEDGER, KeyKind.ED25519, log.key.public))
    islands: list[object] = [{"kind": "native", "ledger": LEDGER, "currency": "CNY", "log_key": key}]
    return make_relay(database, islands, {LEDGER: log}, {})


def chain_relay(database: Database, chain: RelayChain) -> Relay:
    nowhere = "0x" + "11" * 20
    island = {
        "kind": "evm", "ledger": CHAIN, "currency": "AED", "escrow": nowhere, "token": nowhere, "unit": "1",
        "accounts": {}, "anchor": {"number": 2, "hash": chain._block(2)["hash"][2:]}, "confirmations": 3, "quorum": 0,
    }  # fmt: skip
    return make_relay(database, [island], {}, {CHAIN: Node("http://chain.invalid", transport=chain.transport())})


def make_relay(database: Database, islands: list[object], ledgers: dict[str, Log], nodes: dict[str, Node]) -> Relay:
    trust = Trust.model_validate({"format": "jiaozi-relay-trust/v1", "islands": islands})
    key = PrivateKey.generate()
    return Relay(trust, ledgers, nodes, database=database, clock=system_clock, name="BRDGAEAD", key=key)


def kept_sizes(database: Database) -> list[int]:
    found = []
    with database.transaction(isolation="READ COMMITTED") as connection:
        kept = store.nearest_checkpoint(connection, LEDGER, 0)
        while kept is not None and kept.size not in found:
            found.append(kept.size)
            kept = store.nearest_checkpoint(connection, LEDGER, kept.size + 1)
    return found


def test_checkpoints_are_kept_as_they_grow_and_older_ones_too(database: Database) -> None:
    log = Log()
    relay = log_relay(database, log)
    for count in (3, 0, 4, 1):
        log.grow(count)
        relay.round()
    assert kept_sizes(database) == [3, 7, 8]
    (standing,) = relay.standings()
    assert (standing.height, standing.head, standing.failure) == (8, root_of(log.leaves), "")
    whole, log.leaves = log.leaves, log.leaves[:5]
    older = log.checkpoint()  # such as a receipt from before brings
    log.leaves = whole
    relay.keep(relay.trust.islands[0], older)  # type: ignore[arg-type]
    assert kept_sizes(database) == [3, 5, 7, 8]
    assert relay.alarms(limit=9) == []


def test_a_fork_is_an_alarm_once_with_both_notes_and_replaces_nothing(database: Database) -> None:
    log = Log()
    relay = log_relay(database, log)
    log.grow(6)
    relay.round()
    first = log.checkpoint()
    log.leaves = log.leaves[:4]
    log.grow(2, "forked ")
    for _ in range(3):
        relay.round()
    (alarm,) = relay.alarms(limit=9)
    assert (alarm.kind, alarm.ledger) == (AlarmKind.FORK, LEDGER)
    assert (alarm.first.decode(), alarm.second.decode()) == (first, log.checkpoint())
    assert relay.standings()[0].note == first
    assert "different roots" in relay.standings()[0].failure


def test_a_rewritten_past_and_a_smaller_log_are_alarms(database: Database) -> None:
    log = Log()
    relay = log_relay(database, log)
    log.grow(6)
    relay.round()
    good = list(log.leaves)
    log.leaves = [leaf_hash(b"rewritten"), *good[1:]]
    log.grow(3)
    relay.round()
    assert [alarm.kind for alarm in relay.alarms(limit=9)] == [AlarmKind.INCONSISTENT]
    log.leaves = good[:5]
    relay.round()
    assert [alarm.kind for alarm in relay.alarms(limit=9)] == [AlarmKind.ROLLED_BACK, AlarmKind.INCONSISTENT]
    assert relay.standings()[0].height == 6


def test_a_checkpoint_of_another_key_is_not_kept_and_is_no_evidence(database: Database) -> None:
    log = Log()
    relay = log_relay(database, log)
    log.grow(2)
    log.key = PrivateKey.generate()
    relay.round()
    assert kept_sizes(database) == []
    assert relay.standings()[0].failure
    assert relay.alarms(limit=9) == []


def test_final_headers_are_kept_in_a_chain_and_another_block_there_is_an_alarm(database: Database) -> None:
    chain = RelayChain()
    chain.mine(6)
    relay = chain_relay(database, chain)
    relay.round()
    assert (relay.standings()[0].height, relay.standings()[0].failure) == (4, "")
    before = chain.snapshot()
    chain.mine(100)
    relay.round()
    assert relay.standings()[0].height == 104
    kept = relay.standings()[0].head
    chain.revert(before)
    chain.mine(200)
    relay.round()
    (alarm,) = relay.alarms(limit=9)
    assert alarm.kind is AlarmKind.CONTRADICTION
    assert alarm.second == chain.header_rlp(104)
    assert (relay.standings()[0].height, relay.standings()[0].head) == (104, kept)


def test_a_chain_without_the_trusted_block_is_not_kept(database: Database) -> None:
    chain, another = RelayChain(chain_id=1), RelayChain(chain_id=1)
    chain.mine(6)
    another.mine(6, seconds=9)
    relay = chain_relay(database, chain)
    relay._nodes = {CHAIN: Node("http://chain.invalid", transport=another.transport())}
    relay.round()
    assert relay.standings()[0].height is None
    assert [alarm.kind for alarm in relay.alarms(limit=9)] == [AlarmKind.CONTRADICTION]


def header(number: int, parent: int | None, parent_hash: bytes | None = None, **changes: object) -> tuple[object, ...]:
    own = sha256(b"%d" % number).digest()
    row = {"ledger": CHAIN, "number": number, "hash": own, "parent_number": parent, "parent_hash": parent_hash}
    return tuple((row | changes).values())


def test_the_database_alone_refuses_a_gap_a_second_start_and_a_second_root(database: Database, url: str) -> None:
    insert = (
        "INSERT INTO relay_header (ledger, number, hash, parent_number, parent_hash, timestamp, rlp, kept_at)"
        " VALUES (%s, %s, %s, %s, %s, 1, decode(repeat('00', 500), 'hex'), now())"
    )
    first = sha256(b"5").digest()
    with psycopg.connect(dsn(url), autocommit=True) as connection:
        connection.execute(insert, header(5, None))
        connection.execute(insert, header(6, 5, first))
        for row, constraint in (
            (header(8, 7, bytes(32)), "relay_header_child_of_its_parent"),
            (header(7, 6, first), "relay_header_child_of_its_parent"),
            (header(7, 5, first), "relay_header_parent"),
            (header(7, None), "relay_header_first"),
            (header(7, None, first), "relay_header_parent"),
            (header(6, 5, first, hash=first), "relay_header_one_a_height"),
            (header(7, 6, sha256(b"6").digest(), hash=b"short"), "relay_header_shape"),
        ):
            with pytest.raises(psycopg.Error, match=constraint):
                connection.execute(insert, row)
        checkpoint = "INSERT INTO relay_checkpoint VALUES ('l', 3, %s, 'note', now())"
        connection.execute(checkpoint, (bytes(32),))
        with pytest.raises(psycopg.Error, match="relay_checkpoint_one_root_a_size"):
            connection.execute(checkpoint, (first,))
