"""An independent check of a run before it books: plain sums over plain values, no code shared with what found it.

Everything is a tuple, a list or a dictionary, and every rule is the sentence beside it. It is slow and obvious on
purpose. Imports nothing of this project, so that a fault there cannot hide here (tested).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

PlainFlow: TypeAlias = tuple[str, str, str, int]
"""(payer, payee, currency, minor units)."""
PlainLimit: TypeAlias = tuple[str, str, str, str | None, int]
"""(bilateral | multilateral | cap, participant, currency, counterparty or None, room in minor units)."""


def find_faults(
    *,
    queue: Sequence[tuple[str, Sequence[PlainFlow]]],
    balances: Mapping[tuple[str, str], int],
    limits: Collection[PlainLimit],
    chosen: Sequence[str],
    net: Sequence[PlainFlow] | None,
    in_queue_order: bool,
) -> list[str]:
    """Every rule that the run breaks, as sentences; none = it may book. `net` is None where nothing is netted."""
    faults: list[str] = []
    flows_of = dict(queue)
    if len(flows_of) != len(queue):
        faults.append("an instruction is in the queue twice")
    if len(set(chosen)) != len(chosen):
        faults.append("an instruction was chosen twice")
    unknown = [key for key in chosen if key not in flows_of]
    if unknown:
        return [*faults, f"{unknown[0]} was chosen and is not in the queue"]
    flows = [flow for key in chosen for flow in flows_of[key]]

    # Nobody's balance ends below zero.
    after = dict(balances)
    for payer, payee, currency, amount in flows:
        if amount <= 0:
            faults.append(f"{payer} pays {payee} {amount} {currency}")
        after[payer, currency] = after.get((payer, currency), 0) - amount
        after[payee, currency] = after.get((payee, currency), 0) + amount
    for (participant, currency), balance in after.items():
        if balance < 0:
            faults.append(f"{participant} would end {-balance} {currency} below zero")

    # Nobody pays more, net, than its limits leave. A limit that nothing chosen draws on cannot be what is broken.
    has_own = {(who, currency, other) for kind, who, currency, other, _ in limits if kind == "bilateral"}
    for kind, who, currency, other, room in limits:
        drawn, is_drawn_on = 0, False
        for key in chosen:
            own = 0
            for payer, payee, flow_currency, amount in flows_of[key]:
                if flow_currency != currency or who not in (payer, payee):
                    continue
                against = payee if payer == who else payer
                counts = kind == "cap" or (
                    against == other if kind == "bilateral" else (who, currency, against) not in has_own
                )
                if counts:
                    own += amount if payer == who else -amount
            drawn += own
            is_drawn_on = is_drawn_on or own > 0
        if is_drawn_on and drawn > room:
            faults.append(f"{who} would pay {drawn} {currency} under a {kind} limit that leaves {room}")

    # In queue order nothing passes an earlier instruction of one of its payers in that currency.
    if in_queue_order:
        taken, passed = set(chosen), set[tuple[str, str]]()
        for key, own_flows in queue:
            pays = {(payer, currency) for payer, _, currency, _ in own_flows}
            if key not in taken:
                passed |= pays
            elif pays & passed:
                faults.append(f"{key} passes an earlier instruction")

    # The net payments give everybody exactly what the chosen instructions give, in every currency.
    if net is not None:
        gross_sum, net_sum = _sums(flows), _sums(net)
        for position in sorted(gross_sum.keys() | net_sum.keys()):
            if gross_sum.get(position, 0) != net_sum.get(position, 0):
                faults.append(
                    f"{position[0]} nets {gross_sum.get(position, 0)} {position[1]} and would get "
                    f"{net_sum.get(position, 0)}"
                )
        for payer, payee, currency, amount in net:
            if amount <= 0 or payer == payee:
                faults.append(f"a net payment of {amount} {currency} from {payer} to {payee}")
    return faults


def _sums(flows: Sequence[PlainFlow]) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for payer, payee, currency, amount in flows:
        found[payer, currency] = found.get((payer, currency), 0) - amount
        found[payee, currency] = found.get((payee, currency), 0) + amount
    return found
