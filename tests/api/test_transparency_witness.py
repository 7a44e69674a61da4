"""Goal: a witness cosigns only what contains all it has cosigned before, whatever it is sent, at once or after a crash.

Method: the app over HTTP with a log of the test's own; each answer of C2SP tlog-witness; forks; many threads at once;
and a process that is killed.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from kernel.clock import system_clock
from kernel.crypto.keys import PrivateKey
from kernel.errors import ProblemError
from kernel.server import make_server
from kernel.settings import InvalidSettings
from kernel.transparency.checkpoints import Checkpoint, open_checkpoint
from kernel.transparency.merkle import EMPTY_ROOT
from kernel.transparency.notes import KeyKind, Note, VerifierKey, parse_signatures, sign_text, to_base64
from kernel.transparency.tiles import TILE_WIDTH, GrowingTree, TiledTree, entries
from kernel.transparency.witness import AnotherSize, Witness, WitnessSettings, WitnessStore, create, load_witness
from tests.commands import run_here
from tests.ledger_world import free_port

LOG = PrivateKey.generate()
LOG_KEY = VerifierKey("log.example", KeyKind.ED25519, LOG.public)
SIZES = 700


class Log:
    """A small log; `fork` changes one leaf."""

    def __init__(self, fork: int | None = None) -> None:
        self.leaves = [hashlib.sha256(f"leaf {number}".encode()).digest() for number in range(SIZES)]
        if fork is not None:
            self.leaves[fork] = hashlib.sha256(b"another").digest()

    def tree(self, size: int) -> TiledTree:
        growing = GrowingTree()
        tiles = {(item.level, item.index): item.hashes for item in growing.append(b"".join(self.leaves[:size]))}
        for level in range(8):
            if growing.partial(level):
                tiles[level, entries(size, level) // TILE_WIDTH] = growing.partial(level)
        return TiledTree(size, lambda level, index, width: tiles[level, index][: width * 32])

    def note(
        self,
        size: int,
        *lines: str,
        key: PrivateKey = LOG,
        root: bytes | None = None,
        origin: str = "log.example",
    ) -> Note:
        text = Checkpoint(origin, size, root if root is not None else self.tree(size).root(), lines).text
        return Note(text, (sign_text(text, name=origin, key=key),))

    def request(self, old: int, size: int, *, proof: list[bytes] | None = None, note: Note | None = None) -> bytes:
        lines = proof if proof is not None else self.tree(size).consistency_proof(min(old, size))
        return "\n".join([f"old {old}", *map(to_base64, lines), "", str(note or self.note(size))]).encode()


HONEST = Log()


class Running:
    def __init__(self, directory: Path, port: int, key: PrivateKey) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.witness = Witness(
            name="w.example", key=key, logs=[LOG_KEY], store=WitnessStore(directory), clock=system_clock
        )

    def post(self, body: bytes) -> httpx.Response:
        return httpx.post(f"{self.url}/add-checkpoint", content=body)

    def add(self, old: int, size: int, log: Log = HONEST) -> int:
        return self.post(log.request(old, size)).status_code

    def last(self) -> Checkpoint:
        """What it has cosigned last."""
        note = self.witness.last(hashlib.sha256(b"log.example").hexdigest())
        assert note is not None
        return Checkpoint.parse(note.text)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    port = free_port()
    found = Running(tmp_path / "witness", port, PrivateKey.generate())
    server = make_server(create(found.witness), port=port, log_level="warning")
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield found
    server.should_exit = True
    thread.join(20)


def test_it_cosigns_a_log_that_grows(running: Running) -> None:
    key = running.witness.verifier_key
    assert httpx.get(f"{running.url}/{hashlib.sha256(b'log.example').hexdigest()}/checkpoint").status_code == 404
    for old, size in ((0, 0), (0, 1), (1, 1), (1, 255), (255, 256), (256, 700)):
        response = running.post(HONEST.request(old, size))
        assert response.status_code == 200, response.text
        text = HONEST.note(size).text
        (line,) = parse_signatures(response.text)
        assert (line.name, line.key_id) == ("w.example", key.key_id)
        assert key.verify(text, line.value)
        assert abs(int.from_bytes(line.value[:8], "big") - time.time()) < 60
        kept = httpx.get(f"{running.url}/{hashlib.sha256(b'log.example').hexdigest()}/checkpoint")
        opened = open_checkpoint(kept.text, log_key=LOG_KEY, witnesses=[key], quorum=1)
        assert opened.checkpoint.size == size


REQUESTS = {
    # what is sent after size 100 was cosigned -> status
    "malformed: no old line": (HONEST.request(100, 200)[4:], 400),
    "malformed: old with a zero": (HONEST.request(100, 200).replace(b"old 100", b"old 0100"), 400),
    "malformed: old is negative": (HONEST.request(100, 200).replace(b"old 100", b"old -100"), 400),
    "malformed: two spaces": (HONEST.request(100, 200).replace(b"old 100", b"old  100"), 400),
    "malformed: no blank line": (HONEST.request(100, 200).replace(b"\n\n", b"\n"), 400),
    "malformed: proof is no base64": (HONEST.request(100, 200).replace(b"old 100\n", b"old 100\n!!\n"), 400),
    "malformed: hash of 31 bytes": (HONEST.request(100, 200, proof=[bytes(31)]), 400),
    "malformed: 64 lines of proof": (HONEST.request(100, 200, proof=[bytes(32)] * 64), 400),
    "malformed: not a checkpoint": (b"old 100\n\nhello\n\n" + HONEST.note(9).signatures[0].line.encode(), 400),
    "malformed: empty": (b"", 400),
    "malformed: not UTF-8": (HONEST.request(100, 200) + b"\xff", 400),
    "old larger than the checkpoint": (HONEST.request(100, 50), 400),
    "unknown log": (HONEST.request(100, 200, note=HONEST.note(200, origin="other.example")), 404),
    "signed by another key": (HONEST.request(100, 200, note=HONEST.note(200, key=PrivateKey.generate())), 403),
    "signed for another text": (
        HONEST.request(100, 200, note=Note(HONEST.note(200).text, HONEST.note(199).signatures)),
        403,
    ),
    "an older old size": (HONEST.request(50, 200), 409),
    "old size zero": (HONEST.request(0, 200), 409),
    "no proof": (HONEST.request(100, 200, proof=[]), 422),
    "a proof for other sizes": (HONEST.request(100, 200, proof=HONEST.tree(201).consistency_proof(100)), 422),
    "same size, another root": (HONEST.request(100, 100, note=HONEST.note(100, root=bytes(32))), 409),
    "same size with a proof": (HONEST.request(100, 100, proof=[bytes(32)]), 422),
    "a rewritten leaf": (Log(fork=7).request(100, 200), 422),
    "the next honest checkpoint": (HONEST.request(100, 200), 200),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_each_answer_of_the_specification(running: Running, case: str) -> None:
    body, status = REQUESTS[case]
    assert running.add(0, 100) == 200
    response = running.post(body)
    assert response.status_code == status, response.text
    if status == 409:
        assert response.headers["content-type"] == "text/x.tlog.size"
        assert response.text == "100\n"
    elif status != 200:
        assert response.headers["content-type"] == "application/problem+json"
    stored = running.last()
    size = 200 if status == 200 else 100
    assert (stored.size, stored.root) == (size, HONEST.tree(size).root())


def test_two_texts_of_one_block_are_never_both_cosigned(running: Running) -> None:
    """A tree that stands still is cosigned again under a later block only; a tree that grows, too."""

    def add(old: int, size: int, *lines: str) -> int:
        answer = running.post(HONEST.request(old, size, note=HONEST.note(size, *lines)))
        assert answer.status_code != 409 or answer.text == f"{running.last().size}\n"
        return answer.status_code

    assert add(0, 100, "block 9 a", "supply x") == 200
    assert add(100, 100, "block 9 a", "supply x") == 200  # the answer was lost: once more
    for lines in (
        ["block 9 a", "supply y"],
        ["block 9 b", "supply x"],
        ["block 8 a", "supply x"],
        ["block 9 a"],
        ["supply x"],
        [],
        ["block 10 a", "block 11 a"],
        ["block -10 a"],
    ):
        assert add(100, 100, *lines) == 409, lines
        assert running.last().extensions == ("block 9 a", "supply x")
    assert add(100, 100, "block 10 b", "supply y") == 200
    assert running.last().extensions == ("block 10 b", "supply y")
    for lines in (["block 10 c"], ["block 9 c"], []):
        assert add(100, 101, *lines) == 422, lines
    assert add(100, 101, "block 11 c") == 200
    assert add(100, 101, "block 12 c") == 409  # another old size


def test_a_log_that_names_no_blocks_is_cosigned_by_its_size(running: Running) -> None:
    def add(old: int, size: int, *lines: str) -> int:
        return running.post(HONEST.request(old, size, note=HONEST.note(size, *lines))).status_code

    assert [add(0, 5, "a"), add(5, 5, "a"), add(5, 5, "b"), add(5, 6, "b")] == [200, 200, 409, 200]


def test_an_empty_tree_has_the_empty_root_and_no_proof_before_it(running: Running) -> None:
    assert running.post(HONEST.request(0, 0, note=HONEST.note(0, root=bytes(32)))).status_code == 409
    assert running.post(HONEST.request(0, 5, proof=[bytes(32)])).status_code == 422
    assert HONEST.tree(0).root() == EMPTY_ROOT
    assert running.add(0, 5) == 200


def test_a_forked_log_gets_no_cosignature_ever(running: Running) -> None:
    assert running.add(0, 300) == 200
    for fork in (0, 150, 299):
        other = Log(fork=fork)
        for size in (300, 301, 512, 700):
            assert running.add(300, size, other) == (409 if size == 300 else 422)
    # it may not lie about the size either
    assert running.add(0, 700, Log(fork=3)) == 409
    assert running.add(300, 301) == 200
    # a fork after what was seen cannot be told from honest growth, but then the two never meet again
    assert running.add(301, 400, Log(fork=350)) == 200
    assert running.add(400, 500) == 422


def test_many_at_once_never_roll_it_back(running: Running) -> None:
    """Whatever interleaves, sizes that were cosigned only grow, and one size is cosigned with one root."""
    seen: list[int] = []

    def push(size: int) -> None:
        old = 0
        for _ in range(60):
            try:
                running.witness.add_checkpoint(HONEST.request(old, size))
                seen.append(size)
                return
            except AnotherSize as error:
                if error.size > size:
                    return
                old = error.size
            except ProblemError as error:
                raise AssertionError(error) from None

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(push, [size for size in range(20, SIZES, 17) for _ in range(2)]))
    assert running.last().size == max(seen)


def test_a_damaged_memory_cosigns_nothing(running: Running, tmp_path: Path) -> None:
    assert running.add(0, 100) == 200
    (file,) = (tmp_path / "witness").glob("*.checkpoint")
    kept = file.read_bytes()
    file.write_bytes(kept[:40])
    assert running.add(0, 100) == 503
    file.write_bytes(kept)
    assert running.add(100, 200) == 200


@pytest.mark.extended
@pytest.mark.timeout(180)
def test_as_a_process_it_keeps_what_it_answered_through_sigkill(tmp_path: Path) -> None:
    key_path, logs_path, port = tmp_path / "key.pem", tmp_path / "logs.json", free_port()
    PrivateKey.generate().save(key_path)
    logs_path.write_text(f'[{{"vkey": "{LOG_KEY}"}}]')
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("JIAOZI_W")},
        "JIAOZI_WITNESS_NAME": "w.example",
        "JIAOZI_WITNESS_KEY_PATH": str(key_path),
        "JIAOZI_WITNESS_LOGS_PATH": str(logs_path),
        "JIAOZI_WITNESS_DATA_DIR": str(tmp_path / "data"),
        "JIAOZI_WITNESS_PORT": str(port),
    }
    command = [sys.executable, "-m", "wallet", "witness"]
    shown = run_here("wallet", "witness", "--show-key", **environment)
    key = VerifierKey.parse(shown.stdout.strip())
    url, size = f"http://127.0.0.1:{port}/add-checkpoint", 0
    for _ in range(2):
        process = subprocess.Popen(command, env=environment)
        try:
            deadline = time.monotonic() + 30
            while True:
                assert process.poll() is None
                assert time.monotonic() < deadline
                with suppress(httpx.HTTPError):
                    if httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200:
                        break
                time.sleep(0.05)
            for _ in range(10):
                answer = httpx.post(url, content=HONEST.request(size, size + 7))
                assert answer.status_code == 200, answer.text
                assert key.verify(HONEST.note(size + 7).text, parse_signatures(answer.text)[0].value)
                size += 7
            assert httpx.post(url, content=Log(fork=1).request(size, size + 1)).status_code == 422
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


@pytest.mark.parametrize(
    ("logs", "message"),
    [
        ("[", "LOGS_PATH"),
        ("{}", "list of logs"),
        ('[{"vkey": "x"}]', "verifier key"),
        ('[{"vkey": 7}]', "LOGS_PATH"),
        (f'[{{"vkey": "{LOG_KEY}"}}, {{"vkey": "{LOG_KEY}"}}]', "origin of its own"),
        (f'[{{"vkey": "{VerifierKey("w", KeyKind.COSIGNATURE_V1, LOG.public)}"}}]', "type 0x01"),
    ],
    ids=["no JSON", "no list", "no key", "a number", "twice", "another kind"],
)
def test_a_wrong_configuration_is_one_line(tmp_path: Path, logs: str, message: str) -> None:
    PrivateKey.generate().save(tmp_path / "key.pem")
    (tmp_path / "logs.json").write_text(logs)
    settings = WitnessSettings(
        name="w.example",
        key_path=tmp_path / "key.pem",
        logs_path=tmp_path / "logs.json",
        data_dir=tmp_path / "data",
    )
    with pytest.raises(InvalidSettings, match=message):
        load_witness(settings)
