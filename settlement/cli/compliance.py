"""`jiaozi-settlement compliance`: the officers' queue and verdicts, the record of decisions, a resident's quota."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.markup import escape
from rich.table import Table

from kernel import ids
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.money import Currency, format_minor
from settlement.cli.options import DEFAULT_URL, ClientKey, Json, Url, connect, console, fail, parse_ref
from settlement.compliance_files import DEMONSTRATION, PolicyInvalid, load_policy
from settlement.contract.compliance import ComplianceCaseView

app = typer.Typer(
    no_args_is_help=True,
    help="What compliance holds and why. Approving takes two officers, each with a key of his own (--client-key); one "
    "rejection ends the settlement. See docs/compliance.md.",
)
SettlementId = Annotated[str, typer.Argument(help="Settlement, as stl_...")]
Reason = Annotated[str, typer.Option("--reason", help="Kept for ever: name the evidence, not the person.")]


@app.command()
def queue(client_key: ClientKey, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Settlements that wait for officers, oldest first."""
    with connect(url, client_key) as client:
        try:
            found = list(client.compliance_cases())
        except (ProblemResponse, ServiceUnreachable) as error:
            fail(error)
    if as_json:
        _print_json(found)
        return
    table = Table("settlement", "since", "state", "approvals", "why", "debtor", "creditor")
    for item in found:
        table.add_row(
            ids.show("stl", item.settlement),
            f"{item.opened_at:%Y-%m-%d %H:%MZ}",
            item.state,
            f"{item.approvals} of {item.approvals_needed}",
            escape(item.reason),
            escape(item.parties.get("debtor_name", "")),
            escape(item.parties.get("creditor_name", "")),
        )
    console.print(table if found else "Nothing waits.")


@app.command()
def approve(
    settlement: SettlementId, reason: Reason, client_key: ClientKey, url: Url = DEFAULT_URL, as_json: Json = False
) -> None:
    """Approve a case as an officer. The second approval, by another officer, lets the settlement go."""
    with connect(url, client_key) as client:
        try:
            found = client.approve_case(parse_ref("stl", settlement), reason=reason)
        except (ProblemResponse, ServiceUnreachable) as error:
            fail(error)
    _print_case(found, as_json=as_json)


@app.command()
def reject(
    settlement: SettlementId, reason: Reason, client_key: ClientKey, url: Url = DEFAULT_URL, as_json: Json = False
) -> None:
    """Reject a case as an officer: the settlement ends, cancelled, and nobody was ever asked for money."""
    with connect(url, client_key) as client:
        try:
            found = client.reject_case(parse_ref("stl", settlement), reason=reason)
        except (ProblemResponse, ServiceUnreachable) as error:
            fail(error)
    _print_case(found, as_json=as_json)


@app.command()
def decisions(
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
    settlement: Annotated[str, typer.Option(help="Of one settlement only, as stl_...")] = "",
    as_json: Json = False,
) -> None:
    """Every decision, oldest first: who, what, by which versions, why, when."""
    with connect(url, client_key) as client:
        try:
            found = list(client.compliance_decisions(parse_ref("stl", settlement) if settlement else None))
        except (ProblemResponse, ServiceUnreachable) as error:
            fail(error)
    if as_json:
        _print_json(found)
        return
    table = Table("when", "settlement", "verdict", "by", "why", "versions")
    for item in found:
        when = f"{item.decided_at:%Y-%m-%d %H:%MZ}"
        shown = ids.show("stl", item.settlement)
        table.add_row(when, shown, item.verdict, item.decided_by, escape(item.reason), escape(item.versions))
    console.print(table)


@app.command()
def quota(
    resident_id: Annotated[
        str, typer.Option(prompt=True, hide_input=True, help="Identity number; asked for if not given.")
    ],
    client_key: ClientKey,
    country: Annotated[str, typer.Option(help="ISO 3166-1 alpha-2.")] = "CN",
    year: Annotated[int | None, typer.Option(help="By default the present one.")] = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """What is left of a resident's annual quotas."""
    with connect(url, client_key) as client:
        try:
            found = client.quotas(country=country, resident_id=resident_id, year=year)
        except (ProblemResponse, ServiceUnreachable) as error:
            fail(error)
    if as_json:
        _print_json(found)
        return
    table = Table("rule", "direction", "year", "limit", "left")
    for item in found:
        currency = Currency.of(item.currency)
        amounts = [f"{currency} {format_minor(amount, currency)}" for amount in (item.limit_minor, item.left_minor)]
        table.add_row(item.rule, item.direction.value, str(item.year), *amounts)
    console.print(table if found else f"No rule of the policy counts residents of {country}.")


@app.command()
def check(
    policy: Annotated[Path, typer.Argument(help="A policy file; by default the demonstration's.")] = DEMONSTRATION,
) -> None:
    """Check a policy file and its lists, without a service."""
    try:
        found, lists = load_policy(policy)
    except PolicyInvalid as error:
        fail(error)
    console.print(
        f"{found.name} {found.version}, in force from {found.valid_from}: "
        f"{len(found.purpose)} purpose, {len(found.lei)} LEI, {len(found.quota)} quota rules",
        soft_wrap=True,
    )
    for item in lists:
        console.print(f"  {item.name} {item.version}, from {item.valid_from}: {len(item.entries):,} entries")


def _print_case(found: ComplianceCaseView, *, as_json: bool) -> None:
    if as_json:
        _print_json([found])
        return
    shown = ids.show("stl", found.settlement)
    console.print(f"{shown}: {found.state}, {found.approvals} of {found.approvals_needed} approvals")


def _print_json(found: Sequence[BaseModel]) -> None:
    print(json.dumps([item.model_dump(mode="json") for item in found], indent=2))  # noqa: T201
