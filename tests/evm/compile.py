"""Compile the Solidity sources and write, or compare, what is committed beside them.

`python -m tests.evm.compile` writes; the tests compare. Needs Node.js and `npm ci --prefix tests/thirdparty`.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
THIRDPARTY = ROOT / "tests" / "thirdparty"
SOLC = THIRDPARTY / "node_modules" / "solc"
EVM_VERSION = "london"
SOURCES = {
    ROOT / "settlement" / "islands" / "evm" / "escrow.sol": "Escrow",
    ROOT / "settlement" / "islands" / "evm" / "token.sol": "Token",
    ROOT / "tests" / "evm" / "evil_tokens.sol": "EvilToken",
}


def compile_sources() -> dict[Path, dict[str, Any]]:
    """The committed document of each contract. Raises RuntimeError with the compiler's words, warnings included."""
    sources = {path: path.read_text("utf-8") for path in SOURCES}
    settings = {
        "evmVersion": EVM_VERSION,
        "optimizer": {"enabled": True, "runs": 1_000},
        "metadata": {"bytecodeHash": "none", "appendCBOR": False},
        "outputSelection": {"*": {"*": ["abi", "evm.bytecode.object", "evm.deployedBytecode.object", "metadata"]}},
    }
    contents = {path.name: {"content": source} for path, source in sources.items()}
    asked = {"language": "Solidity", "sources": contents, "settings": settings}
    run = subprocess.run(
        ["node", "compile_solidity.js"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=THIRDPARTY,
        timeout=60,
        check=True,
    )
    answer = json.loads(run.stdout)
    if answer.get("errors"):
        raise RuntimeError("\n".join(item["formattedMessage"] for item in answer["errors"]))
    return {
        path: _document(answer["contracts"][path.name][contract], contract, sources[path])
        for path, contract in SOURCES.items()
    }


def _document(found: dict[str, Any], contract: str, source: str) -> dict[str, Any]:
    return {
        "contract": contract,
        "compiler": json.loads(found["metadata"])["compiler"]["version"],
        "evm_version": EVM_VERSION,
        "optimizer_runs": 1_000,
        "source_sha256": hashlib.sha256(source.encode()).hexdigest(),
        "abi": found["abi"],
        "bytecode": found["evm"]["bytecode"]["object"],
        "runtime": found["evm"]["deployedBytecode"]["object"],
    }


def written(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1) + "\n"


def main() -> int:
    for path, document in compile_sources().items():
        path.with_suffix(".json").write_text(written(document), "utf-8")
        print(f"{path.relative_to(ROOT)}: {len(document['bytecode']) // 2} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
