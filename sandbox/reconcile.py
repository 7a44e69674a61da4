"""Step 5 of the demo: both ledgers' statements as camt.053; a counterparty's copy that errs; each error found.

The bridge holds its own record of each batch against a statement that somebody sends it. First the ledger's own
statement, which must agree line by line; then a copy in which four lines were spoilt.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID, uuid4

from rich.table import Table

from kernel import ids
from kernel.clock import Clock
from kernel.money import Currency, Money, format_minor
from sandbox.cross_border import CrossBorder
from sandbox.report import Report, make_table
from sandbox.retail import FIRST, THIRD
from sandbox.scheme import Scheme
from sandbox.topology import CENTRAL_BANKS, CentralBank, Institution
from settlement.contract import BatchView
from settlement.contract.reconciliation import BreakView, ReconciliationView
from settlement.domain.reconciliation import BreakType
from settlement.domain.statements import Statement, StatementEntry, reference_of
from settlement.iso20022.camt053 import read_camt053
from settlement.usecases.statements import camt053_bytes, ledger_statement

LINES_MIN = 4
"""Three different ones are spoilt, and one must be left to agree."""
WRONG_BY_MINOR = 90_00
"""What the counterparty's clerk adds to one amount."""

Break = tuple[str, tuple[str, ...], tuple[str, ...]]
"""Type, our references, their references: what a break is recognised by."""


@dataclass(frozen=True, slots=True)
class Planted:
    """A counterparty's copy of a statement, and what reconciliation must find in it."""

    statement: Statement
    breaks: frozenset[Break]


def reconcile(scheme: Scheme, report: Report, crossing: CrossBorder, *, clock: Clock) -> None:
    report.step(5, "Statements as camt.053, and reconciliation with a counterparty that errs")
    cases = zip(CENTRAL_BANKS, (FIRST, THIRD), crossing.batches[:2], strict=True)
    for bank, institution, batch in cases:
        _reconcile_account(scheme, report, crossing, bank, institution, batch, clock=clock)


def _reconcile_account(
    scheme: Scheme,
    report: Report,
    crossing: CrossBorder,
    bank: CentralBank,
    institution: Institution,
    batch: BatchView,
    *,
    clock: Clock,
) -> None:
    currency = bank.currency
    key = scheme.keys.institution(institution.participant)
    account = crossing.vaults[institution.participant][bank.ledger]
    with scheme.ledger_client(bank.ledger, key) as client:
        statement = ledger_statement(
            client,
            account,
            statement_id=f"{currency.code}-{crossing.name}",
            sequence_number=1,
            created_at=clock(),
        )
        balance = client.get_account(account).balance_minor
    path = scheme.home.files / f"statement-{crossing.name}-{currency.code}.camt053.xml"
    path.write_bytes(camt053_bytes(statement))
    report.say(
        f"[bold]{currency}[/]: the ledger {bank.ledger} gives {institution.name} the statement of its vault "
        f"{ids.show_account(account)}, {len(statement.entries):,} lines, opening to closing balance: files/{path.name}"
    )
    read = read_camt053(path)
    report.expect(
        "the file is valid against the ISO 20022 schema, and its sums add up",
        expected=((), ()),
        seen=(read.problems, read.findings),
    )
    if read.statement is None:
        return
    report.expect(
        f"it closes with {currency} {format_minor(balance, currency)}, the balance that the ledger shows",
        expected=(0, balance),
        seen=(read.statement.opening_minor, read.statement.closing_minor),
    )
    uetrs = {item.uetr for item in crossing.settlements if item.batch == batch.batch}
    lines = [entry for entry in read.statement.entries if entry.uetr in uetrs]
    is_enough = report.expect("there are lines to reconcile", expected=True, seen=len(lines) >= LINES_MIN, quiet=True)
    if not is_enough:
        return
    our_reference: dict[UUID | None, str] = {
        item.uetr: reference_of(leg.hold)
        for item in crossing.settlements
        for leg in item.legs
        if leg.currency == currency.code
    }
    planted = plant(read.statement, our_reference, uetrs)
    copy = scheme.home.files / f"statement-{crossing.name}-{currency.code}-counterparty.camt053.xml"
    copy.write_bytes(camt053_bytes(planted.statement))
    with scheme.bridge_client(key) as bridge:

        def compared(file: Path) -> ReconciliationView:
            return bridge.reconcile(
                file.read_bytes(), batch=batch.batch, participant=institution.participant, currency=currency.code
            )

        clean = compared(path)
        report.expect(
            f"the bridge's record of the batch and the ledger's statement agree: {clean.matched:,} of "
            f"{clean.lines_ours:,} lines match, no breaks",
            expected=(len(lines), len(lines), []),
            seen=(clean.lines_ours, clean.matched, [item.sentence for item in clean.breaks]),
        )
        found = compared(copy)
    report.table(break_table(found.breaks, currency), f"Breaks in {currency} against files/{copy.name}")
    report.expect(
        f"the counterparty's copy with 4 planted errors: {found.matched:,} lines match, and exactly the 4 are found",
        expected=planted.breaks,
        seen=frozenset(_recognised(item) for item in found.breaks),
    )
    report.expect("each break once", expected=len(planted.breaks), seen=len(found.breaks), quiet=True)


def plant(
    statement: Statement, our_reference: Mapping[UUID | None, str], uetrs: Collection[UUID] | None = None
) -> Planted:
    """The same statement as a careless counterparty would send it: four errors among the lines of `uetrs` (or any).

    One line of ours is lacking, one amount is wrong, one line is there twice, one line is of nobody's making.
    `our_reference` by UETR: the bridge knows a leg by its hold, the ledger by its posting.
    """
    lines = [line for line in statement.entries if uetrs is None or line.uetr in uetrs]
    lacking, wrong, doubled = lines[len(lines) // 4], lines[len(lines) // 2], lines[3 * len(lines) // 4]
    currency = statement.currency
    spoilt = replace(wrong, amount=Money(wrong.amount.amount_minor + WRONG_BY_MINOR, currency))
    again = replace(doubled, reference=reference_of(ids.new_uuid7()))
    largest = max(line.amount.amount_minor for line in lines)
    stranger = StatementEntry(
        reference=reference_of(ids.new_uuid7()),
        end_to_end_id=None,
        uetr=uuid4(),
        # An amount of its own, so that it cannot be taken for the line that is lacking.
        amount=Money(largest + 777_77, currency),
        direction=lacking.direction,
        booked_at=lines[-1].booked_at,
        value_date=lines[-1].value_date,
    )
    copied: list[StatementEntry] = []
    for line in statement.entries:
        if line is lacking:
            continue
        copied.append(spoilt if line is wrong else line)
        if line is doubled:
            copied.append(again)
    copied.append(stranger)
    breaks: frozenset[Break] = frozenset(
        {
            (BreakType.MISSING_THERE.value, (our_reference[lacking.uetr],), ()),
            (BreakType.AMOUNT.value, (our_reference[wrong.uetr],), (spoilt.reference,)),
            (BreakType.DUPLICATE.value, (), (again.reference,)),
            (BreakType.MISSING_HERE.value, (), (stranger.reference,)),
        }
    )
    return Planted(statement.with_entries(copied), breaks)


def break_table(breaks: Sequence[BreakView], currency: Currency) -> Table:
    columns = ("break", "ours", "theirs", "effect on balance", "what it means")
    table = make_table(*columns, right=columns[1:4], whole=columns[:1])
    for item in breaks:
        amounts = (item.our_amount_minor, item.their_amount_minor, item.difference_minor)
        cells = ["" if amount is None else format_minor(amount, currency) for amount in amounts]
        table.add_row(f"[yellow]{item.type}[/]", *cells, _MEANING.get(item.type, item.sentence))
    return table


_MEANING = {
    BreakType.AMOUNT.value: "both have the payment, the amounts differ",
    BreakType.DUPLICATE.value: "they have one payment twice",
    BreakType.MISSING_THERE.value: "we have it, they do not",
    BreakType.MISSING_HERE.value: "they have it, we do not",
}


def _recognised(item: BreakView) -> Break:
    return item.type, tuple(item.our_references), tuple(item.their_references)
