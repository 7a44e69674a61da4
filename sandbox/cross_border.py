"""Step 4 of the demo: batches from pacs.009 and CSV files settle PvP, while processes are killed under them.

What the pair law (I5) is checked against is not the bridge's word: afterwards both central banks' statements are read,
and every payment must have been posted on both ledgers or on neither.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Literal
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

from rich.markup import escape

from kernel.clock import Clock
from kernel.ids import ParticipantId
from kernel.money import Currency, Money, format_minor
from ledger.contract import TransferKind
from sandbox.bridge import RATE, RATE_BASE, RATE_COUNTER
from sandbox.report import Report, make_table
from sandbox.retail import FIRST, FOURTH, SECOND, THIRD, Vaults, major
from sandbox.scheme import Scheme
from sandbox.topology import BRIDGE, BRIDGE_SERVICE, CENTRAL_BANKS, INSTITUTIONS, Institution, ledger_service
from settlement.client import SettlementClient
from settlement.contract import AbortReason, BatchView, Decision, LegState, SettlementState, SettlementView
from settlement.domain.escrow import IN_DOUBT
from settlement.domain.instructions import Instruction, Priority
from settlement.iso20022.csv_batch import write_csv
from settlement.iso20022.pacs009 import write_pacs009
from wallet.contract import BATCH_ITEMS_MAX, SettlementOrder

CNY, AED = Currency.of("CNY"), Currency.of("AED")
AGREED_EVERY = 10
"""Every tenth instruction brings a counter amount that the banks agreed; the others take the bridge's rate."""
UNCONFIRMED = (5, 17)
"""Places in the pacs.009 batch of payments that the creditor's desk never confirms: its bank will not sign."""
MISTYPED = 9
"""Place of a payment whose amount has so many zeros too many that the debtor's vault cannot pay it."""
SECONDS_MAX = 90.0
"""For the whole batch, restarts included; it takes some fifteen."""
ORDER_LIFE = timedelta(hours=12)
POLL_SECONDS = 0.03
EARLY_SHARE = 0.2
"""Of each batch but the last, before the last is run and the crash comes."""
HELD_STILL = ledger_service("ae-daed")


@dataclass(frozen=True, slots=True)
class Posted:
    """What both ledgers' statements say: by UETR, the currencies in which a leg was posted, and the sums."""

    currencies_by_uetr: dict[UUID, set[str]]
    sums_minor: Counter[str]


@dataclass(frozen=True, slots=True)
class Crash:
    """SIGKILL to a service while payments are in doubt, and `dead_seconds` without it."""

    service: str
    title: str
    dead_seconds: float


BRIDGE_CRASH = Crash(BRIDGE_SERVICE, "bridge", 0.5)
LEDGER_CRASH = Crash(HELD_STILL, "AED ledger", 0.5)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a batch is, in payments."""

    ended: int
    in_doubt: int
    total: int

    @classmethod
    def of(cls, batch: BatchView) -> Progress:
        ended = batch.counts[SettlementState.SETTLED] + batch.counts[SettlementState.CANCELLED]
        return cls(ended, sum(batch.counts[state] for state in IN_DOUBT), batch.settlement_count)

    @property
    def share(self) -> float:
        return self.ended / self.total

    @property
    def is_ended(self) -> bool:
        return self.ended == self.total


class CrossBorder:
    def __init__(self, scheme: Scheme, report: Report, vaults: Vaults, *, instructions: int, clock: Clock) -> None:
        self._scheme = scheme
        self._report = report
        self.vaults = vaults
        self._clock = clock
        self._count = instructions // 3
        """Of each of the three files."""
        # Drawn anew with each run, but the same amounts: runs can be compared.
        self._random = random.Random(20261123)  # noqa: S311 - sample amounts, no secret
        self.name = f"{clock():%Y%m%d-%H%M%S}"
        """Distinguishes this run's files and message ids."""
        self.batches: list[BatchView] = []
        self.settlements: list[SettlementView] = []
        self.files: list[Path] = []

    def run(self) -> None:
        report = self._report
        report.step(4, "A cross-border batch, payment against payment, through crashes")
        report.say(
            "Each payment has two legs, one on each ledger. Both are reserved under the paying banks' own signatures; "
            "then one row in the bridge's decision log is finality; then both are posted, or both are released."
        )
        self._submit()
        unconfirmed = {self.settlements[place].uetr for place in UNCONFIRMED}
        mistyped = self.settlements[MISTYPED].uetr
        report.say(
            f"Planted: {self.settlements[MISTYPED].instruction_id} pays "
            f"{Money(self.settlements[MISTYPED].legs[0].amount_minor, CNY)}, a mistyped amount that the bank does not "
            f"have; and {len(UNCONFIRMED)} payments that their receiver's desk does not confirm."
        )
        before = self._balances()
        ordered, refused = self._order(self.settlements, unconfirmed=unconfirmed)
        report.expect(
            f"the four banks' desks check what they pay against what they get, and order {ordered:,} of "
            f"{2 * len(self.settlements):,} legs at their own wallet services; no other leg will be signed",
            expected=0,
            seen=refused,
        )
        began = time.monotonic()
        is_ended = self._settle(self.batches, BRIDGE_CRASH)
        report.expect(
            f"all {len(self.settlements):,} payments have ended, {time.monotonic() - began:.0f} s after the start, "
            f"the restart included",
            expected=True,
            seen=is_ended,
        )
        self.settlements = self._read_settlements(self.batches)
        self._show_outcome(self.settlements)
        self._check_pairs(self.settlements)
        self._check_net_positions(before)
        own_reason = dict.fromkeys(unconfirmed, AbortReason.AUTHORISATION_REFUSED) | {mistyped: AbortReason.LEG_REFUSED}
        # One that the crash caught first has no reason of its own; that is as it should be.
        otherwise = {
            item.instruction_id: item.reason
            for item in self.settlements
            if item.uetr in own_reason and item.reason not in (own_reason[item.uetr], AbortReason.PRESUMED)
        }
        report.expect(
            "the unconfirmed payments and the mistyped one moved nothing, each for its own reason",
            expected={},
            seen=otherwise,
        )
        caught = [item for item in self.settlements if item.reason is AbortReason.PRESUMED]
        self._send_again([item for item in caught if item.uetr not in own_reason])

    # --- the files

    def _submit(self) -> None:
        """Each file is written first, for people to look at; then sent as it is."""
        pacs009 = self._instructions(FIRST, (THIRD, FOURTH), CNY, AED, self._count, "P")
        typed_minor = pacs009[MISTYPED].amount.amount_minor
        while typed_minor <= self._balances()[FIRST.participant][CNY.code]:
            typed_minor *= 10
        agreed = major("1281.00", AED)
        pacs009[MISTYPED] = replace(pacs009[MISTYPED], amount=Money(typed_minor, CNY), counter_amount=agreed)
        csv = self._instructions(THIRD, (SECOND, FIRST), AED, CNY, self._count, "C")
        late = self._instructions(FIRST, (FOURTH, THIRD), CNY, AED, self._count, "L")

        def message(instructions: Sequence[Instruction], name: str) -> bytes:
            message_id = f"{FIRST.participant}-{name}"
            return write_pacs009(instructions, message_id=message_id, created_at=self._clock())

        late_name = f"{self.name}-late"
        files: tuple[tuple[Literal["pacs.009", "csv"], str, Institution, list[Instruction], bytes], ...] = (
            ("pacs.009", f"{self.name}.pacs009.xml", FIRST, pacs009, message(pacs009, self.name)),
            ("csv", f"{self.name}.csv", THIRD, csv, write_csv(csv)),
            ("pacs.009", f"{late_name}.pacs009.xml", FIRST, late, message(late, late_name)),
        )
        self._report.say(
            f"The bridge quotes {RATE_BASE} 1 = {RATE_COUNTER} {RATE}; every {AGREED_EVERY}th instruction brings an "
            f"amount that the two banks agreed themselves."
        )
        for file_format, name, sender, instructions, content in files:
            path = self._scheme.home.files / f"batch-{name}"
            path.write_bytes(content)
            self.files.append(path)
            batch = self._send(sender.participant, content, file_format)
            self.batches.append(batch)
            currency = instructions[0].amount.currency
            pay = Money(sum(item.amount.amount_minor for item in instructions), currency)
            self._report.expect(
                f"{sender.name} sends files/{path.name}: {len(instructions):,} instructions over {pay}, "
                f"read, quoted and stored whole",
                expected=(len(instructions), len(instructions)),
                seen=(batch.settlement_count, batch.counts[SettlementState.RECEIVED]),
            )
        self.settlements = self._read_settlements(self.batches)

    def _instructions(
        self,
        debtor: Institution,
        creditors: Sequence[Institution],
        pay: Currency,
        get: Currency,
        count: int,
        letter: str,
    ) -> list[Instruction]:
        """`count` PvP instructions: the debtor pays `pay`, the creditor pays `get`. Amounts from 50 to 5,000."""
        made = []
        value_date: date = self._clock().astimezone(ZoneInfo(CENTRAL_BANKS[0].time_zone)).date()
        for number in range(count):
            amount = Money(self._random.randrange(50_00, 5_000_00), pay)
            counter: Money | None = None
            if number % AGREED_EVERY == AGREED_EVERY - 1:
                counter = Money(_at_rate(amount.amount_minor, pay), get)
            made.append(
                Instruction(
                    instruction_id=f"{letter}{self.name[-6:]}-{number + 1:05d}",
                    end_to_end_id=f"INV-{letter}-{self.name}-{number + 1:05d}",
                    uetr=uuid4(),
                    debtor=debtor.participant,
                    creditor=creditors[number % len(creditors)].participant,
                    amount=amount,
                    counter_currency=get,
                    counter_amount=counter,
                    value_date=value_date,
                    priority=Priority.HIGH if number % 50 == 0 else Priority.NORMAL,
                )
            )
        return made

    def _send(self, sender: ParticipantId, content: bytes, file_format: Literal["pacs.009", "csv"]) -> BatchView:
        """As the institution: its key signs the request."""
        with self._scheme.bridge_client(self._scheme.keys.institution(sender)) as client:
            return client.submit_batch(content, file_format=file_format)

    def _bridge(self) -> SettlementClient:
        """As the bridge's operator, who sees every batch."""
        return self._scheme.bridge_client(self._scheme.keys.institution(BRIDGE))

    def _read_settlements(self, batches: Sequence[BatchView]) -> list[SettlementView]:
        with self._bridge() as client:
            return [item for batch in batches for item in client.settlements(batch.batch)]

    # --- the banks' desks

    def _order(self, settlements: Sequence[SettlementView], *, unconfirmed: Container[UUID] = ()) -> tuple[int, int]:
        """Each bank looks at what it is to pay and get, and orders it at its own wallet service: (ordered, refused).

        Only then will that service sign a leg: once, exactly this one, and only together with a leg that pays the bank
        at least what it is to get. What stays with the bridge is that both ledgers end alike (docs/decisions/0007).
        """
        orders: dict[ParticipantId, list[SettlementOrder]] = {item.participant: [] for item in INSTITUTIONS}
        valid_until = self._clock() + ORDER_LIFE
        for settlement in settlements:
            first, second = settlement.legs
            for paying, receiving in ((first, second), (second, first)):
                if paying is second and settlement.uetr in unconfirmed:
                    continue
                orders[paying.payer].append(
                    SettlementOrder(
                        instruction_id=str(settlement.uetr),
                        ledger=paying.ledger,
                        pay_currency=paying.currency,
                        pay_amount_minor=paying.amount_minor,
                        credit_account=paying.credit,
                        receive_currency=receiving.currency,
                        receive_amount_minor_min=receiving.amount_minor,
                        valid_until=valid_until,
                    )
                )
        refused = 0
        for institution in INSTITUTIONS:
            mine = orders[institution.participant]
            key = self._scheme.keys.desk(institution.participant)
            with self._scheme.wallet_client(institution, key) as client:
                for start in range(0, len(mine), BATCH_ITEMS_MAX):
                    results = client.register_settlements(mine[start : start + BATCH_ITEMS_MAX])
                    refused += sum(1 for result in results if result.refusal is not None)
        return sum(map(len, orders.values())), refused

    # --- settlement, and the crashes

    def _settle(self, batches: Sequence[BatchView], crash: Crash) -> bool:
        """Run the batches to their end, through a crash. True if everything ended within SECONDS_MAX.

        However fast the machine is, the batches must not outrun the crash: they would prove less than the demo says.
        So the last of them waits until the others have come some way, and then runs while a ledger is held still,
        without which nothing ends: the service is killed with payments in doubt for certain.
        """
        *early, last = [batch.batch for batch in batches]
        total = sum(batch.settlement_count for batch in batches)
        deadline = time.monotonic() + SECONDS_MAX
        with self._bridge() as client, self._report.progress("settling", total) as show:

            def look(*, until: Callable[[dict[UUID, Progress]], bool]) -> dict[UUID, Progress]:
                while True:
                    seen = {batch: Progress.of(client.batch(batch)) for batch in (*early, last)}
                    in_doubt = sum(progress.in_doubt for progress in seen.values())
                    show(sum(progress.ended for progress in seen.values()), f"settling, {in_doubt} in doubt")
                    if until(seen) or time.monotonic() > deadline:
                        return seen
                    time.sleep(POLL_SECONDS)

            for batch in early:
                client.run_batch(batch)
            look(until=lambda seen: all(seen[batch].share >= EARLY_SHARE for batch in early))
            with self._scheme.processes.held_still(self._scheme.service(HELD_STILL)):
                client.run_batch(last)
                self._crash(crash, look(until=lambda seen: seen[last].in_doubt > 0))
            began = time.monotonic()
            self._scheme.restart(crash.service)
            self._report.say(f"Started again, the {crash.title} answers after {time.monotonic() - began:.1f} s.")
            seen = look(until=lambda seen: all(progress.is_ended for progress in seen.values()))
        return all(progress.is_ended for progress in seen.values())

    def _crash(self, crash: Crash, seen: Mapping[UUID, Progress]) -> None:
        pid = self._scheme.processes.kill(self._scheme.service(crash.service))
        ended = sum(progress.ended for progress in seen.values())
        in_doubt = sum(progress.in_doubt for progress in seen.values())
        self._report.expect(
            f"SIGKILL to the {crash.title} (pid {pid}): {ended:,} payments had ended, {in_doubt:,} were under way",
            expected=(True, True),
            seen=(pid is not None, in_doubt > 0),
        )
        time.sleep(crash.dead_seconds)

    # --- the pair law

    def _check_pairs(self, settlements: Sequence[SettlementView], *, quiet: bool = False) -> None:
        report = self._report
        by_state = Counter(settlement.state for settlement in settlements)
        settled = {item.uetr for item in settlements if item.state is SettlementState.SETTLED}
        posted = self._read_statements({item.uetr for item in settlements})
        both = {uetr for uetr, currencies in posted.currencies_by_uetr.items() if len(currencies) == 2}
        alone = len(posted.currencies_by_uetr) - len(both)
        report.expect(
            f"both central banks' own statements: {len(both):,} payments are posted on both ledgers, {alone} on one "
            f"alone, {len(settlements) - len(both) - alone:,} on neither (I5)",
            expected=(0, True),
            seen=(alone, both == settled),
            quiet=quiet,
        )
        legs = Counter[str]()
        for settlement in settlements:
            if settlement.state is SettlementState.SETTLED:
                for leg in settlement.legs:
                    legs[leg.currency] += leg.amount_minor
        sums = " against ".join(str(Money(posted.sums_minor[code], Currency.of(code))) for code in ("CNY", "AED"))
        report.expect(
            f"moved in vaults: {sums}, to the fen what the bridge says it settled",
            expected=dict(legs),
            seen=dict(posted.sums_minor),
            quiet=quiet,
        )
        is_consistent = all(
            {leg.state for leg in item.legs} == {LegState.POSTED} and item.finality_at is not None
            if item.state is SettlementState.SETTLED
            else LegState.POSTED not in {leg.state for leg in item.legs} and item.decision is Decision.ABORT
            for item in settlements
        )
        report.expect(
            "every settled payment has its finality time in the decision log; no other has a posted leg",
            expected=True,
            seen=is_consistent,
            quiet=quiet,
        )
        report.expect(
            "nothing is left in doubt",
            expected=len(settlements),
            seen=by_state[SettlementState.SETTLED] + by_state[SettlementState.CANCELLED],
            quiet=True,
        )

    def _check_net_positions(self, before: Mapping[ParticipantId, Mapping[str, int]]) -> None:
        """Each bank's vault moved by the sum of its settled legs, in both currencies, and by nothing else."""
        net = {participant: Counter[str]({"CNY": 0, "AED": 0}) for participant in before}
        for settlement in self.settlements:
            if settlement.state is SettlementState.SETTLED:
                for leg in settlement.legs:
                    net[leg.payer][leg.currency] -= leg.amount_minor
                    net[leg.payee][leg.currency] += leg.amount_minor
        after = self._balances()
        table = make_table("bank", "CNY", "AED", right=("CNY", "AED"))
        for institution in INSTITUTIONS:
            own = net[institution.participant]
            cells = [format_minor(own[currency.code], currency) for currency in (CNY, AED)]
            table.add_row(institution.name, *cells)
        self._report.table(table, "Net positions of the batch, as the bridge has them")
        moved = {
            participant: {code: after[participant][code] - amount for code, amount in balances.items()}
            for participant, balances in before.items()
        }
        self._report.expect(
            "every bank's vaults on both ledgers moved by exactly this",
            expected={participant: dict(sums) for participant, sums in net.items()},
            seen=moved,
        )

    def _balances(self) -> dict[ParticipantId, dict[str, int]]:
        """Each institution's vault balance by currency, as each central bank has it."""
        found: dict[ParticipantId, dict[str, int]] = {participant: {} for participant in self.vaults}
        for bank in CENTRAL_BANKS:
            with self._scheme.ledger_client(bank.ledger, self._scheme.keys.operator(bank, 2)) as client:
                for participant, accounts in self.vaults.items():
                    found[participant][bank.currency.code] = client.get_account(accounts[bank.ledger]).balance_minor
        return found

    def _show_outcome(self, settlements: Sequence[SettlementView]) -> None:
        meaning = {
            None: "both legs posted",
            AbortReason.AUTHORISATION_REFUSED: "a bank did not sign its leg",
            AbortReason.LEG_REFUSED: "a ledger refused to reserve a leg",
            AbortReason.PRESUMED: "undecided when the bridge died: presumed aborted",
        }
        columns = ("outcome", "payments", "why", "in the bridge's words")
        table = make_table(*columns, right=("payments",), whole=("outcome",))
        groups: dict[AbortReason | None, list[SettlementView]] = {}
        for settlement in settlements:
            groups.setdefault(settlement.reason, []).append(settlement)
        for reason in sorted(groups, key=lambda reason: -len(groups[reason])):
            found = groups[reason]
            outcome = "[green]settled[/]" if reason is None else f"[yellow]{reason.value}[/]"
            words = "" if reason in (None, AbortReason.PRESUMED) else found[0].detail
            table.add_row(outcome, f"{len(found):,}", meaning.get(reason, ""), escape(words))
        self._report.table(table, "What became of them")

    def _read_statements(self, uetrs: Container[UUID]) -> Posted:
        """Every vault's statement on both ledgers, read as the central bank."""
        currencies: dict[UUID, set[str]] = {}
        sums: Counter[str] = Counter()
        for bank in CENTRAL_BANKS:
            with self._scheme.ledger_client(bank.ledger, self._scheme.keys.operator(bank, 2)) as client:
                for accounts in self.vaults.values():
                    for line in client.statement_lines(accounts[bank.ledger]):
                        uetr = line.reference
                        # Each posting is in two statements; it is counted where it is a debit.
                        if line.kind is not TransferKind.POST or line.direction != "debit" or uetr is None:
                            continue
                        if uetr in uetrs:
                            currencies.setdefault(uetr, set()).add(bank.currency.code)
                            sums[bank.currency.code] += line.amount_minor
        return Posted(currencies, sums)

    # --- once more

    def _send_again(self, cancelled: Sequence[SettlementView]) -> None:
        """What the crash cancelled is sent again, as new payments: a decision is for ever, an instruction is not."""
        if not cancelled:
            self._report.expect("the crash caught payments undecided", expected=True, seen=False)
            return
        instructions = [
            Instruction(
                instruction_id=f"R{item.instruction_id}",
                end_to_end_id=item.end_to_end_id,
                uetr=uuid4(),
                debtor=item.debtor,
                creditor=item.creditor,
                amount=Money(item.legs[0].amount_minor, Currency.of(item.legs[0].currency)),
                counter_currency=Currency.of(item.legs[1].currency),
                counter_amount=Money(item.legs[1].amount_minor, Currency.of(item.legs[1].currency)),
                value_date=item.value_date,
            )
            for item in cancelled
        ]
        by_sender: dict[ParticipantId, list[Instruction]] = {}
        for instruction in instructions:
            by_sender.setdefault(instruction.debtor, []).append(instruction)
        batches = []
        for sender, own in by_sender.items():
            path = self._scheme.home.files / f"batch-{self.name}-again-{sender}.csv"
            path.write_bytes(write_csv(own))
            self.files.append(path)
            batches.append(self._send(sender, path.read_bytes(), "csv"))
        again = self._read_settlements(batches)
        self._order(again)
        self._settle(batches, LEDGER_CRASH)
        again = self._read_settlements(batches)
        self._report.expect(
            f"the {len(cancelled):,} that the crash cancelled are sent again under new UETRs; now they settle too",
            expected={SettlementState.SETTLED: len(cancelled)},
            seen=dict(Counter(item.state for item in again)),
        )
        self._check_pairs(again, quiet=True)


def _at_rate(amount_minor: int, currency: Currency) -> int:
    """What two treasurers agree: the bridge's rate to one decimal less. Integer arithmetic, rounded down."""
    return amount_minor * 512 // 1000 if currency == CNY else amount_minor * 1000 // 512
