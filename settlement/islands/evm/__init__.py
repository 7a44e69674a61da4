"""Islands on EVM chains: the escrow contract, its calls, the port over JSON-RPC and the payer's side of it."""

import sys

# A library behind eth_account (py_ecc) raises Python's recursion limit a hundredfold for the whole process when it is
# imported. Deeply nested JSON would then end the process by its stack instead of being refused.
_LIMIT = sys.getrecursionlimit()
import eth_account as eth_account  # noqa: E402

sys.setrecursionlimit(_LIMIT)
