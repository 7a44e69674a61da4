"""`jiaozi-settlement conformance` and `jiaozi-settlement islands`: prove an adapter, put an escrow on a chain."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.table import Table

from kernel import strict_json
from kernel.errors import ProblemError
from settlement.cli.options import Json, console, errors, fail

if TYPE_CHECKING:
    from settlement.conformance import Subject

app = typer.Typer(no_args_is_help=True, help="The ledgers and chains that this bridge settles on.")

_CONFIG_BYTES_MAX = 1_048_576


def conformance(
    adapter: Annotated[
        str,
        typer.Option(
            help="`module:factory`. The factory takes the configuration (a dict) and gives a context manager that "
            "yields a settlement.conformance.Subject. To look around: settlement.conformance.example:fake. "
            "Nodes: settlement.conformance.evm:on_node, settlement.conformance.chainmaker:on_node."
        ),
    ],
    config: Annotated[Path | None, typer.Option(help="A JSON object for the factory.", exists=True)] = None,
    case: Annotated[list[str] | None, typer.Option(help="Run this case alone; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Run the conformance suite on an island's adapter: each case, its verdict, and why it failed.

    Exit code 0 if no case failed (a case that the adapter offers no means for is "not run", and says why), 1 if one
    did, 2 if the suite could not start.
    """
    from settlement.conformance import CASES, Result, Verdict, run

    verdicts: list[Verdict] = []
    try:
        if unknown := set(case or ()) - {item.name for item in CASES}:
            raise ValueError(
                f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(c.name for c in CASES)}"
            )
        with _factory(adapter)(_config(config)) as subject:
            for verdict in run(subject, case or ()):
                verdicts.append(verdict)
                if not as_json:
                    errors.print(f"{verdict.case}: {verdict.result.value}", markup=False, highlight=False)
    except (ValueError, ValidationError) as error:
        fail(error)
    except Exception as error:  # the adapter's own set-up, of which nothing is known here
        fail(RuntimeError(f"{adapter} could not be set up or taken down: {type(error).__name__}: {error}"))
    counts = {result: sum(item.result is result for item in verdicts) for result in Result}
    if as_json:
        document = {
            "adapter": adapter,
            "counts": {result.value: count for result, count in counts.items()},
            "cases": [
                {
                    "case": item.case,
                    "rule": item.rule,
                    "result": item.result.value,
                    "detail": item.detail,
                    "seconds": round(item.seconds, 3),
                }
                for item in verdicts
            ],
        }
        print(json.dumps(document, indent=1))  # noqa: T201
    else:
        table = Table("case", "verdict", "promise, and what was found", title=f"Conformance of {adapter}")
        for item in verdicts:
            table.add_row(item.case, item.result.value, f"{item.rule}{': ' + item.detail if item.detail else ''}")
        console.print(table)
        console.print(", ".join(f"{count} {result.value}" for result, count in counts.items()))
    if counts[Result.FAILED]:
        raise typer.Exit(1)


@app.command(name="deploy-escrow")
def deploy_escrow(
    node: Annotated[str, typer.Option("--node", help="URL of the chain's node (JSON-RPC).")],
    key: Annotated[Path, typer.Option("--key", help="Key of the account that pays: 32 bytes in hex, mode 0600.")],
    gas_price_wei: Annotated[int | None, typer.Option(help="A fixed gas price; 0 where the chain has no fees.")] = None,
    as_json: Json = False,
) -> None:
    """Put the escrow contract on an EVM chain and print what the ledger's entry needs: address, chain id, first block.

    The escrow has no owner: whoever deploys it has no power over it.
    """
    from settlement.islands.evm.deploy import deploy
    from settlement.islands.evm.rpc import NodeRefused, NodeUnreachable
    from settlement.islands.evm.sender import GasTooDear

    try:
        found = deploy(node, key, gas_price_wei=gas_price_wei)
    except (ValueError, NodeRefused, NodeUnreachable, GasTooDear) as error:
        fail(error)
    if as_json:
        print(json.dumps(found))  # noqa: T201
    else:
        console.print(f"escrow {found['escrow']} on chain {found['chain_id']}, block {found['first_block']}")


def _factory(name: str) -> Callable[[Mapping[str, Any]], AbstractContextManager[Subject]]:
    module, _, attribute = name.partition(":")
    try:
        found: Callable[[Mapping[str, Any]], AbstractContextManager[Subject]] = getattr(
            importlib.import_module(module), attribute
        )
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--adapter {name}: {error}; it is written module:factory") from None
    return found


def _config(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        with open(path, "rb") as file:
            content = file.read(_CONFIG_BYTES_MAX)
        document = strict_json.loads(content)
    except (OSError, ProblemError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path} holds no JSON object")
    return document
