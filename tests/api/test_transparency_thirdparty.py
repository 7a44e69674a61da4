"""Goal: tools that others wrote for these formats, in other languages, accept the log unchanged.

Method: a real ledger's log is read over HTTP by a Go program built on golang.org/x/mod/sumdb (`note`, `tlog`), and a
receipt by a Node.js program built on @sigstore/verify. Both must also refuse what is forged. They run where Go, Node.js
and the libraries are installed (Debian: golang-go, golang-golang-x-mod-dev; `npm ci --prefix tests/thirdparty`); with
JIAOZI_NO_SKIP=1 a missing one is a failure.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel.crypto.keys import from_base64url
from kernel.transparency.checkpoints import open_checkpoint
from ledger.log.leaves import leaf_input
from ledger.receipts import Receipt
from tests.log_world import Scene, module_database, scene_on

HERE = Path(__file__).resolve().parent.parent / "thirdparty"
GO_PATH = Path("/usr/share/gocode")
SIGSTORE = HERE / "node_modules" / "@sigstore" / "verify"


def need(condition: bool, what: str) -> None:
    if condition:
        return
    if os.environ.get("JIAOZI_NO_SKIP") == "1":
        pytest.fail(f"{what} is missing")
    pytest.skip(f"{what} is missing")


@pytest.fixture(scope="module")
def scene(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with (
        module_database(postgres) as url,
        scene_on(url, tmp_path_factory.mktemp("log"), witnesses=2) as found,
    ):
        yield found


@pytest.fixture(scope="module")
def go_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need(shutil.which("go") is not None, "go (Debian package golang-go)")
    library = GO_PATH / "src" / "golang.org" / "x" / "mod" / "sumdb" / "tlog"
    need(library.is_dir(), "golang.org/x/mod (Debian package golang-golang-x-mod-dev)")
    directory = tmp_path_factory.mktemp("go")
    program = directory / "check_log"
    environment = {
        **os.environ,
        **{"GO111MODULE": "off", "GOPATH": str(GO_PATH), "GOFLAGS": "", "GOCACHE": str(directory / "cache")},
        "CGO_ENABLED": "0",
    }
    subprocess.run(["go", "build", "-o", str(program), str(HERE / "check_log.go")], env=environment, check=True)
    return program


def run(command: list[str], given: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=60)


@pytest.mark.extended
@pytest.mark.timeout(300)
def test_gos_checksum_database_library_accepts_the_log(scene: Scene, go_program: Path) -> None:
    sizes = []
    for count in (1, 255, 3, 700, 66_000 - 960):
        for start in range(0, count, 8000):
            last = scene.pay_binary(min(8000, count - start))
        note = scene.await_sealed(last)
        sizes.append(open_checkpoint(note, log_key=scene.log_key).checkpoint.size)
    newest = sizes[-1]
    assert newest > 65_536  # three levels of tiles
    inclusion, consistency = [], []
    with scene.world.anonymous() as client:
        for size in (*sizes, 2, 256, 257):
            for index in {0, 1, size // 2, size - 1}:
                found = client.inclusion_proof(index + 1, size)
                proof = [item.hex() for item in found.proof]
                inclusion.append({"size": size, "index": index, "leaf": found.leaf_hash.hex(), "proof": proof})
        for old in sizes:
            for new in sizes:
                if old <= new:
                    proof = [item.hex() for item in client.consistency_proof(old, new).proof]
                    consistency.append({"old": old, "new": new, "proof": proof})
    command = [str(go_program), scene.world.url, str(scene.log_key)]
    done = run(command, {"inclusion": inclusion, "consistency": consistency})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"size {newest}: {len(inclusion)} inclusion and {len(consistency)} consistency")

    # and it is no rubber stamp
    for kind, items in (("inclusion", inclusion), ("consistency", consistency)):
        forged = next(dict(item) for item in items if item["proof"])
        forged["proof"] = ["00" * 32, *forged["proof"][1:]]
        done = run(command, {"inclusion": [], "consistency": [], kind: [forged]})
        assert done.returncode != 0
    other_key = str(scene.log_key).replace("test-cny+", "other+")
    assert run([str(go_program), scene.world.url, other_key], {}).returncode != 0
    with scene.owner() as connection:
        before = connection.execute("SELECT hashes FROM log_tile WHERE level = 0 AND index = 3").fetchone()
        assert before is not None
        connection.execute(
            "UPDATE log_tile SET hashes = set_byte(hashes, 5, get_byte(hashes, 5) # 1) WHERE level = 0 AND index = 3"
        )
        try:
            forged = {"size": newest, "index": 768, "leaf": before[0][:32].hex(), "proof": []}
            done = run(command, {"inclusion": [{**inclusion[-1], "index": 769}], "consistency": []})
            assert done.returncode != 0
        finally:
            connection.execute("UPDATE log_tile SET hashes = %s WHERE level = 0 AND index = 3", [before[0]])


@pytest.mark.extended
def test_sigstores_verifier_accepts_a_receipt(scene: Scene) -> None:
    need(shutil.which("node") is not None, "node")
    need(SIGSTORE.is_dir(), "@sigstore/verify (npm ci --prefix tests/thirdparty)")
    result = scene.pay(7)[3]
    document = json.loads(scene.receipt(result, quorum=2))  # cosignatures are lines it passes over
    receipt = Receipt.model_validate(document)
    leaf = leaf_input(receipt.salt, receipt.transfer.record, receipt.evidence_digest)
    key = from_base64url(scene.log_key.public.to_jwk()["x"]).hex()

    def check(document: dict[str, Any], leaf: bytes) -> subprocess.CompletedProcess[str]:
        name, key_id = scene.log_key.name, scene.log_key.key_id.hex()
        return run(["node", str(HERE / "check_receipt.js"), name, key_id, key, leaf.hex()], document)

    done = check(document, leaf)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"leaf {receipt.leaf_index} is in the tree of {receipt.tree_size}\n"
    assert check(document, leaf[:-1] + bytes([leaf[-1] ^ 1])).returncode != 0
    assert check({**document, "leaf_index": receipt.leaf_index + 1}, leaf).returncode != 0
    forged = document["checkpoint"].replace(f"\n{receipt.tree_size}\n", f"\n{receipt.tree_size + 1}\n")
    assert check({**document, "checkpoint": forged}, leaf).returncode != 0
