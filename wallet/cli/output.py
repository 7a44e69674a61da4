"""How the sub-commands show what the service answered: one JSON document, or `name value` lines a person can read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from kernel.money import Currency, format_minor
from wallet.cli.options import fail


def show(view: BaseModel, *, as_json: bool) -> None:
    """A line a field; amounts in major units where the view names its currency."""
    if as_json:
        typer.echo(view.model_dump_json())
        return
    fields = view.model_dump(mode="json")
    currency = _currency(fields)
    for name, value in fields.items():
        typer.echo(f"{_title(name):<22} {_text(name, value, currency)}")


def show_rows(
    rows: Iterable[BaseModel], columns: Sequence[str], *, as_json: bool, currency: Currency | None = None
) -> None:
    """A line a row with these fields of it, or one JSON array of whole rows, written as they come.

    `currency`: of rows that do not name their own.
    """
    if as_json:
        separator = "["
        for row in rows:
            typer.echo(f"{separator}{row.model_dump_json()}", nl=False)
            separator = ","
        typer.echo("]" if separator == "," else "[]")
        return
    for row in rows:
        fields = row.model_dump(mode="json")
        own = _currency(fields) or currency
        typer.echo("  ".join(_text(name, fields[name], own) for name in columns))


def moment(value: datetime) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S}"


def _currency(fields: Mapping[str, Any]) -> Currency | None:
    code = fields.get("currency")
    return Currency.of(code) if isinstance(code, str) else None


def _title(name: str) -> str:
    return name.removesuffix("_minor").replace("_", " ")


def _text(name: str, value: Any, currency: Currency | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False) if value else "-"
    if name.endswith("_minor") and currency is not None:
        return format_minor(int(value), currency)
    return str(value)


def write_tokens(path: Path, tokens: Iterable[str]) -> int:
    """What `control approve` reads: a signed instruction a line. How many there are."""
    count = 0
    try:
        with path.open("w", encoding="ascii") as file:
            for token in tokens:
                file.write(f"{token}\n")
                count += 1
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror}")
    return count
