"""A closing held against the replayed books: what an auditor with the export and the closing's key can ask.

A holder's proof shows that his own balance is counted. Only a replay shows that everybody's is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from kernel.transparency.sum_tree import InvalidSumTree, closing_root

FIRST_HOLDER_ACCOUNT = 2
"""Account 1 issues; holders' numbers follow without a gap."""


def audit_closing(
    text: str,
    *,
    key: bytes,
    balances: npt.NDArray[np.int64],
    block: int,
    block_hash: bytes,
    seq: int,
    totals: Mapping[str, int],
) -> list[str]:
    """What is wrong with a closing statement; empty = its root counts every balance, in full, and nothing else.

    `text`: the note's text, its signature checked. `key`: the closing's, from the export. `balances`: of all holders'
    accounts by replay through the last transfer `seq` of `block`, in minor units, dense from account 2; `totals`:
    issued, redeemed, vaults and wallets by the same replay. 2.5 s a million accounts.
    """
    said = json.loads(text)
    circulation = totals["issued"] - totals["redeemed"]
    expected = {
        "block": block,
        "block_hash": block_hash.hex(),
        "seq": seq,
        "accounts": len(balances),
        **{f"{name}_minor": str(totals[name]) for name in ("issued", "redeemed", "vaults", "wallets")},
        "circulation_minor": str(circulation),
    }
    wrong = [f"{name} is {value} by replay" for name, value in expected.items() if said.get(name) != value]
    try:
        root = closing_root(balances, first_account=FIRST_HOLDER_ACCOUNT, key=key)
    except InvalidSumTree as error:
        return [*wrong, f"the replayed balances make no tree: {error}"]
    if said.get("root_total_minor") != str(root.sum):
        wrong.append(f"root_total_minor is {root.sum} by replay")
    if said.get("root") != root.hash.hex():
        wrong.append(f"root is {root.hash.hex()} by replay: a balance is left out, or is not what was booked")
    return wrong
