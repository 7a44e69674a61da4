"""Does a statement add up, and does it follow from the one before it? Breaks within one side's papers."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

from kernel.money import Currency, format_minor
from settlement.domain.reconciliation.model import Break, BreakType, age_bucket
from settlement.domain.statements import Statement, booked_net_minor, summarise


def check_statement(statement: Statement, *, as_of: date, previous: Statement | None = None) -> tuple[Break, ...]:
    """Does the statement add up, and does it follow from the one before? Statement-level breaks: at most one a type,
    and one for each entry that is not what the payments in it add up to."""
    found = Finder(statement.statement_id, statement.currency, statement.to_at.date(), as_of)
    breaks: list[Break] = []
    if previous is not None:
        breaks += check_succession(
            found,
            sequence=(previous.sequence_number, statement.sequence_number),
            closing_minor=previous.closing_minor,
            opening_minor=statement.opening_minor,
        )
    expected = statement.opening_minor + booked_net_minor(statement.entries)
    if statement.closing_minor != expected:
        sentence = (
            f"closes with {_show(statement.closing_minor, statement.currency)}, "
            f"its lines lead to {_show(expected, statement.currency)}."
        )
        difference = statement.closing_minor - expected
        breaks.append(found(BreakType.CLOSING_NOT_OPENING_PLUS_ENTRIES, difference, sentence))
    for entry in statement.entries:
        parts = sum(part.signed_minor for part in entry.parts)
        if entry.parts and parts != entry.signed_minor:
            sentence = (
                f"books {_show(entry.signed_minor, entry.amount.currency)} as one entry, {entry.reference}, "
                f"of payments that add up to {_show(parts, entry.amount.currency)}."
            )
            difference = entry.signed_minor - parts
            breaks.append(
                replace(found(BreakType.SPLIT_INCOMPLETE, difference, sentence), their_references=(entry.reference,))
            )
    if statement.summary is not None:
        declared, actual = statement.summary, summarise(statement.entries)
        pairs = (
            ("entries", declared.entry_count, actual.entry_count),
            ("credits", declared.credit_count, actual.credit_count),
            ("debits", declared.debit_count, actual.debit_count),
            ("minor units of entries", declared.entry_sum_minor, actual.entry_sum_minor),
            ("minor units of credits", declared.credit_sum_minor, actual.credit_sum_minor),
            ("minor units of debits", declared.debit_sum_minor, actual.debit_sum_minor),
        )
        wrong = [
            f"{says} {what} but holds {holds}" for what, says, holds in pairs if says is not None and says != holds
        ]
        if wrong:
            breaks.append(found(BreakType.ENTRY_COUNT, None, f"declares {'; '.join(wrong)}."))
    return tuple(breaks)


def check_succession(
    found: Finder, *, sequence: tuple[int | None, int | None], closing_minor: int, opening_minor: int
) -> tuple[Break, ...]:
    """Against the statement before: `sequence` is (its number, this one's), `closing_minor` its closing balance.

    Without numbers the balances alone tell of a statement that is missing in between."""
    breaks: list[Break] = []
    before, number = sequence
    begins_anew = number == 1 and (before or 0) > 1  # with the year; the balances below tell of one that is missing
    if before is not None and number is not None and number != before + 1 and not begins_anew:
        sentence = f"has number {number}; the one before has {before}."
        breaks.append(found(BreakType.SEQUENCE_GAP, None, sentence))
    if opening_minor != closing_minor:
        sentence = (
            f"opens with {_show(opening_minor, found.currency)}, "
            f"the one before closed with {_show(closing_minor, found.currency)}."
        )
        breaks.append(found(BreakType.OPENING_NOT_PREVIOUS_CLOSING, opening_minor - closing_minor, sentence))
    return tuple(breaks)


class Finder:
    """Makes the breaks of one statement."""

    def __init__(self, statement_id: str, currency: Currency, day: date, as_of: date) -> None:
        self.currency = currency
        self._statement_id = statement_id
        self._day = day
        self._age_days = max(0, (as_of - day).days)

    def __call__(self, kind: BreakType, difference_minor: int | None, sentence: str) -> Break:
        return Break(
            type=kind,
            our_references=(),
            their_references=(self._statement_id,),
            ours=None,
            theirs=None,
            difference_minor=difference_minor,
            gross_minor=((self.currency, abs(difference_minor)),) if difference_minor else (),
            age_days=self._age_days,
            bucket=age_bucket(self._age_days),
            sentence=f"Statement {self._statement_id} {sentence}",
            oldest=self._day,
        )


def _show(signed_minor: int, currency: Currency) -> str:
    return f"{currency.code} {format_minor(signed_minor, currency)}"
