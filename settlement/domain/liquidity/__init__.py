"""Queue, limits, gridlock resolution and netting over n currencies: the pure part.

A *position* is what one participant has in one currency. Queued instructions are of n flows each (a PvP has two) and
settle whole or not at all. The parts:

- `model`: what goes in (`Snapshot`) and what comes out (`Outcome`);
- `problem`: balances and limits as constraints of one form, and the largest set that keeps them and the queue's order;
- `gridlock`: the stages of a run;
- `explain`: why an instruction did not settle, and the smallest amount that frees it;
- `netting`: a chosen set as few net payments;  `gross`: the same set one by one, in an order that works;
- `optimise`: the most value, queue order ignored (needs the optional package ortools);
- `limits`: which dated limits are in force;  `picture`: positions before and after, drawn.

`settlement.domain.netting_check` checks what these find, and shares no code with them.
"""
