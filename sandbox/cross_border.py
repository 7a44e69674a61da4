"""Step 4 of the demo: a batch from a pacs.009 file and a CSV file settles PvP, while processes are killed under it.

What the pair law (I5) is checked against is not the bridge's word: afterwards both central banks' statements are read,
and every payment must have been posted on both ledgers or on neither.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

from kernel.clock import Clock
from kernel.ids import ParticipantId
from kernel.money import Currency, Money
from ledger.contract import TransferKind
from sandbox.bridge import RATE, RATE_BASE, RATE_COUNTER
from sandbox.report import Report, money_table
from sandbox.retail import FIRST, FOURTH, SECOND, THIRD, Vaults, major
from sandbox.scheme import Scheme
from sandbox.topology import BRIDGE, BRIDGE_SERVICE, CENTRAL_BANKS, INSTITUTIONS, Institution, ledger_service
from settlement.contract import AbortReason, BatchView, Decision, LegState, SettlementState, SettlementView
from settlement.domain.instructions import Instruction, Priority
from settlement.iso20022.csv_batch import write_csv
from settlement.iso20022.pacs009 import write_pacs009
from wallet.contract import BATCH_ITEMS_MAX, SettlementOrder

CNY, AED = Currency.of("CNY"), Currency.of("AED")
AGREED_EVERY = 10
"""Every tenth instruction brings a counter amount that the banks agreed themselves; the others take the bridge's rate."""
UNCONFIRMED = (4, 17)
"""Places in the pacs.009 batch of payments that the creditor's desk never confirms: its bank will not sign."""
MISTYPED = 9
"""Place of a payment whose amount has four zeros too many: more than the debtor's vault holds."""
SECONDS_MAX = 90.0
"""For the whole batch, restarts included; it takes some fifteen."""
ORDER_LIFE = timedelta(hours=12)
POLL_SECONDS = 0.03


@dataclass(frozen=True, slots=True)
class Posted:
    """What both ledgers' statements say: by UETR, the currencies in which a leg was posted, and the sums."""

    currencies_by_uetr: dict[UUID, set[str]]
    sums_minor: Counter[str]


class CrossBorder:
    def __init__(
        self, scheme: Scheme, report: Report, vaults: Vaults, *, instructions: int, clock: Clock
    ) -> None:
        self._scheme = scheme
        self._report = report
        self._vaults = vaults
        self._clock = clock
        self._count_pacs009 = instructions * 2 // 3
        self._count_csv = instructions - self._count_pacs009
        # Drawn anew with each run, but the same amounts: runs can be compared.
        self._random = random.Random(20261123)  # noqa: S311 - sample amounts, no secret
        self.name = f"{clock():%Y%m%d-%H%M%S}"
        """Distinguishes this run's files and message ids."""
        self.batches: list[BatchView] = []
        self.settlements: list[SettlementView] = []
        self.files: list[Path] = []

    def run(self) -> None:
        self._report.step(4, "A cross-border batch, payment against payment, through crashes")
        self._submit()
        self._order()
        self._settle()
        self._check()
        self._send_again()

    # --- the files

    def _submit(self) -> None:
        """Both files are written first, for people to look at; then sent as they are."""
        pacs009 = self._instructions(FIRST, (THIRD, FOURTH), CNY, AED, self._count_pacs009, "P")
        plain = pacs009[MISTYPED].amount
        typed = Money(plain.amount_minor * 10_000, CNY)
        agreed = major("1281.00", AED)
        pacs009[MISTYPED] = replace(pacs009[MISTYPED], amount=typed, counter_amount=agreed)
        csv = self._instructions(THIRD, (SECOND, FIRST), AED, CNY, self._count_csv, "C")
        message_id = f"{FIRST.participant}-{self.name}"
        files = (
            ("pacs.009", FIRST, pacs009, write_pacs009(pacs009, message_id=message_id, created_at=self._clock())),
            ("csv", THIRD, csv, write_csv(csv)),
        )
        self._report.say(
            f"rate of the bridge: {RATE_BASE} 1 = {RATE_COUNTER} {RATE}; every {AGREED_EVERY}th instruction brings "
            f"an amount that the banks agreed themselves"
        )
        for file_format, sender, instructions, content in files:
            suffix = "xml" if file_format == "pacs.009" else "csv"
            path = self._scheme.home.files / f"batch-{self.name}.{'pacs009.' if suffix == 'xml' else ''}{suffix}"
            path.write_bytes(content)
            self.files.append(path)
            batch = self._send(sender, content, file_format)
            self.batches.append(batch)
            currency = instructions[0].amount.currency
            pay = Money(sum(item.amount.amount_minor for item in instructions), currency)
            self._report.expect(
                f"{sender.name} sends files/{path.name}: {len(instructions):,} instructions over {pay}, "
                f"read, quoted and stored whole",
                expected=(len(instructions), len(instructions)),
                seen=(batch.settlement_count, batch.counts[SettlementState.RECEIVED]),
            )
        self.settlements = self._read_settlements()

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
                    instruction_id=f"{letter}{self.name}-{number + 1:05d}",
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

    def _send(self, sender: Institution, content: bytes, file_format: str) -> BatchView:
        raise NotImplementedError

    # --- the banks' desks

    def _order(self) -> None:
        """Each bank looks at what it is to pay and get, and orders it at its own wallet service.

        Only then will that service sign a leg, once, and exactly this one: the bridge can make nobody pay.
        """
        unconfirmed = {self.settlements[place].uetr for place in UNCONFIRMED}
        orders: dict[ParticipantId, list[SettlementOrder]] = {item.participant: [] for item in INSTITUTIONS}
        valid_until = self._clock() + ORDER_LIFE
        for settlement in self.settlements:
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
        self._report.expect(
            f"the four banks' desks order their {sum(map(len, orders.values())):,} legs, each at its own bank "
            f"(all but {len(UNCONFIRMED)}, which {_name(self.settlements[UNCONFIRMED[0]].creditor)} does not confirm)",
            expected=0,
            seen=refused,
        )
