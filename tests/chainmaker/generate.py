"""`wire_pb2.py` and its stub are generated of `wire.proto` by this.

python -m tests.chainmaker.generate          # writes them
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[2] / "settlement" / "islands" / "chainmaker"
_HEADER = "# ruff: noqa\n# fmt: off\n# mypy: ignore-errors\n"
_HEADERS = {
    "wire_pb2.py": _HEADER,
    "wire_pb2.pyi": _HEADER,
}


def generated() -> dict[str, str]:
    """File name: content."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={HERE}"]
        command += [f"--python_out={directory}", f"--pyi_out={directory}", "wire.proto"]
        subprocess.run(command, check=True, cwd=HERE)
        return {name: head + (Path(directory) / name).read_text("utf-8") for name, head in _HEADERS.items()}


if __name__ == "__main__":
    for name, content in generated().items():
        (HERE / name).write_text(content, "utf-8")
