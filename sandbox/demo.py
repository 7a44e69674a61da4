"""`jiaozi demo`: the main job from end to end, on real processes, through their HTTP clients only.

1. two central banks, four intermediaries and a bridge come up;
2. currency is issued by 2 of 3 operator keys                        (sandbox.retail)
3. wallets are opened, deposits exchanged, payments signed           (sandbox.retail)
4. a cross-border batch settles, payment against payment, through crashes  (sandbox.cross_border)
5. statements are written and reconciled with a counterparty's       (sandbox.reconcile)
6. the supply of both ledgers is proved by the verifier, the one reader of databases here.

Every expectation is checked; `run` returns those that did not hold.
"""

from __future__ import annotations

import time

from rich.console import Console
from rich.markup import escape

from kernel import ids
from kernel.clock import Clock, system_clock
from kernel.money import Currency, format_minor
from ledger.contract import SupplyView
from ledger.verifier import Report as Proof
from ledger.verifier import verify_database
from sandbox import retail
from sandbox.cross_border import CrossBorder
from sandbox.reconcile import reconcile
from sandbox.report import Failure, Report, make_table
from sandbox.scheme import Scheme
from sandbox.topology import BRIDGE, BRIDGE_NAME, BRIDGE_SERVICE, CENTRAL_BANKS, INSTITUTIONS, ledger_service


class Demo:
    def __init__(self, scheme: Scheme, console: Console, *, instructions: int, clock: Clock = system_clock) -> None:
        self._scheme = scheme
        self._console = console
        self._report = Report(console)
        self._instructions = instructions
        self._clock = clock

    def run(self, *, keep: bool) -> list[Failure]:
        """All steps. `keep`: the services will go on running (what the closing words say)."""
        began = time.monotonic()
        scheme, report = self._scheme, self._report
        self._console.print(
            "[bold]Jiaozi[/]: issue, pay, settle across a border, reconcile.\n"
            "[dim]Every line with a ✓ was checked. Processes, signatures and databases are real; names, bank deposits "
            "and the exchange rate are made up.[/]"
        )
        self._bring_up()
        vaults = scheme.vaults()
        retail.issue(scheme, report, vaults, clock=self._clock)
        retail.Retail(scheme, report, vaults, clock=self._clock).run()
        crossing = CrossBorder(scheme, report, vaults, instructions=self._instructions, clock=self._clock)
        crossing.run()
        reconcile(scheme, report, crossing, clock=self._clock)
        self._prove()
        self._close(time.monotonic() - began, crossing, keep=keep)
        return report.failures

    # --- step 1

    def _bring_up(self) -> None:
        report = self._report
        report.step(1, "Two central banks, four intermediaries, one bridge come up")
        began = time.monotonic()
        with self._console.status("starting") as status:
            started = self._scheme.up(lambda text: status.update(escape(text)))
        seconds = time.monotonic() - began
        table = make_table("who", "service", "currency", "address", whole=("who", "service", "address"))
        for bank in CENTRAL_BANKS:
            name = ledger_service(bank.ledger)
            table.add_row(bank.title, f"ledger {bank.ledger}", bank.currency.code, self._scheme.url(name))
        for item in INSTITUTIONS:
            currency = next(bank.currency.code for bank in CENTRAL_BANKS if bank.ledger == item.home)
            table.add_row(
                f"{item.name} ({item.participant})", "wallet service", currency, self._scheme.url(item.service)
            )
        table.add_row(BRIDGE_NAME, "settlement", "CNY / AED", self._scheme.url(BRIDGE_SERVICE))
        report.table(table)
        what = f"in {seconds:.0f} s" if started else "they were up already"
        report.expect(
            f"nine processes answer, each service with its own database on an embedded PostgreSQL ({what})",
            expected=9,
            seen=len(self._scheme.processes.pids()),
        )
        for bank in CENTRAL_BANKS:
            with self._scheme.ledger_client(bank.ledger) as client:
                roles = sorted(view.role.value for view in client.participants())
            report.expect(
                f"{bank.ledger}: two intermediaries, two foreign banks and the bridge are registered, each by a "
                f"mandate of {bank.approvals_needed} of {len(bank.operators)} operators",
                expected=["bridge", "foreign", "foreign", "intermediary", "intermediary"],
                seen=roles,
            )

    # --- step 6

    def _prove(self) -> None:
        report = self._report
        report.step(6, "Proof: the supply of both ledgers, recomputed from the journal alone")
        found: list[tuple[SupplyView, Proof]] = []
        for bank in CENTRAL_BANKS:
            name = ledger_service(bank.ledger)
            with self._scheme.ledger_client(bank.ledger, self._scheme.keys.operator(bank, 0)) as client:
                head, supply = client.block(), client.supply()
            # The head that the ledger shows to its operators: a journal whose end was cut off cannot contain it.
            anchor = (head.number, head.hash) if head.hash is not None else None
            proof = verify_database(self._scheme.database_url(name), anchor=anchor)
            found.append((supply, proof))
        currencies = tuple(supply.currency for supply, _ in found)
        table = make_table("by replay", *currencies, right=currencies)
        rows = ("issued", "redeemed", "circulation", "vaults", "wallets", "held")
        titles = {
            "redeemed": "- redeemed",
            "circulation": "= in circulation",
            "vaults": "  in institutions' vaults",
            "wallets": "  in holders' wallets",
            "held": "  of these reserved by holds",
        }
        for row in rows:
            cells = [format_minor(getattr(proof.supply, row), Currency.of(supply.currency)) for supply, proof in found]
            table.add_row(titles.get(row, row), *cells)
        report.table(table)
        for bank, (supply, proof) in zip(CENTRAL_BANKS, found, strict=True):
            proved = proof.proved
            report.expect(
                f"{bank.ledger}: {proved['transfers']:,} transfers in {proved['blocks']:,} blocks replayed by the "
                f"verifier, which shares no code with the engine: hashes, order, signatures, balances all hold",
                expected=[],
                seen=[str(finding) for finding in proof.findings],
            )
            ours = proof.supply
            report.expect(
                f"{bank.ledger}: issued - redeemed = vaults + wallets, nothing is left reserved (I2)",
                expected=(ours.issued - ours.redeemed, 0),
                seen=(ours.vaults + ours.wallets, ours.held),
            )
            report.expect(
                f"{bank.ledger}: the ledger's own API says the same",
                expected=(ours.issued, ours.redeemed, ours.vaults, ours.wallets, ours.held, True),
                seen=(
                    supply.issued_minor,
                    supply.redeemed_minor,
                    supply.vaults_minor,
                    supply.wallets_minor,
                    supply.held_minor,
                    supply.identity_holds,
                ),
            )

    # --- the end

    def _close(self, seconds: float, crossing: CrossBorder, *, keep: bool) -> None:
        report, home, scheme = self._report, self._scheme.home, self._scheme
        console = self._console
        console.print()
        console.rule("[bold]Where everything is[/]", align="left", style="dim")
        table = make_table("service", "API docs", "log", whole=("service", "API docs", "log"))
        for service in scheme.services:
            table.add_row(service.name, f"{service.url}/docs", str(service.log_file.relative_to(home.path)))
        console.print(table)
        console.print(f"\n  In {home.path}:", soft_wrap=True)
        for path in sorted(home.files.glob(f"*{crossing.name}*")):
            console.print(f"    files/{path.name}  [dim]{path.stat().st_size:,} bytes[/]", soft_wrap=True)
        console.print("    keys/*.pem  [dim]every key of the scheme, to act as anybody[/]")
        console.print()
        if keep:
            report.say("The services keep running. Stop them with [bold]jiaozi down[/].")
        else:
            report.say("The services are stopped now. [bold]jiaozi up[/] brings them back with these data. Then:")
        ledger = ledger_service(CENTRAL_BANKS[0].ledger)
        vault = ids.show_account(crossing.vaults[INSTITUTIONS[0].participant][CENTRAL_BANKS[0].ledger])
        auditor, bridge = scheme.keys.operator_path(CENTRAL_BANKS[0], 2), scheme.keys.path(BRIDGE)
        batch = ids.show("bat", crossing.batches[0].batch)
        for command in (
            f"jiaozi-ledger supply --url {scheme.url(ledger)}",
            f"jiaozi-ledger balance {vault} --url {scheme.url(ledger)} --key {auditor}",
            f"jiaozi-settlement status {batch} --url {scheme.url(BRIDGE_SERVICE)} --client-key {bridge}",
        ):
            console.print(f"    {command}", soft_wrap=True)
        report.say("[bold]jiaozi reset[/] removes all data.")
        console.print()
        if report.failures:
            console.print(f"[bold red]{len(report.failures)} of {report.checked} checks FAILED[/]:")
            for failure in report.failures:
                console.print(f"  [red]✗[/] {failure.what}")
        else:
            console.print(f"[bold green]All {report.checked} checks held[/], in {seconds:.0f} s.")
