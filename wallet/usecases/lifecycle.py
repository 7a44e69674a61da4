"""A wallet's caps, class and standing, and how evidence decides them. How a change is made: `wallet.usecases.changes`.

| change  | at once, in the recording transaction    | then the ledger    | in the finishing transaction |
|---------|------------------------------------------|--------------------|------------------------------|
| caps    | the new caps (done)                      | -                  | -                            |
| class   | the stricter of both classes' caps holds | set-rule-class     | the new class's caps hold    |
| suspend | nothing is debited                       | suspend            | -                            |
| resume  | -                                        | resume             | debits again                 |

So whatever crashes between, the stricter side is in force. A step at the ledger has an id derived from the change's,
which a retry repeats; only suspend and resume, where the last word counts, are sent afresh until the ledger's account
is as it is wanted. Devices are in `wallet.usecases.devices`, closure in `wallet.usecases.closing`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa

from kernel import ids
from kernel.errors import ProblemError, RequestRefusal
from ledger.contract import AccountStanding, AccountStatus, SetAccountClass
from wallet.contract import WalletRefusal
from wallet.contract.lifecycle import CAPS_ORDER_TYP, CapsOrder, CapsView, caps_order_payload
from wallet.domain.lifecycle import Change, enforce_evidence, refuse_caps
from wallet.domain.limits import Caps, is_raised
from wallet.domain.records import Customer, Wallet
from wallet.domain.rules import Evidence, WalletClass, rule_class_name
from wallet.store import balance_caps as cap_store
from wallet.store import customers, lifecycle, wallets
from wallet.usecases import balance_caps
from wallet.usecases.changes import (
    Decision,
    account_of,
    ask_ledger,
    begin,
    check_holder,
    check_validity,
    finish,
    ledger_account,
    notify,
    refuse_identification,
    refuse_if_open,
    refuse_unless,
    refused,
    send,
    signed_by_us,
)
from wallet.usecases.context import Context
from wallet.usecases.wallets import find_wallet

log = logging.getLogger("jiaozi.wallet.lifecycle")

SENT_AFRESH_MAX = 3
"""Times that one request tries to bring the ledger's account to the wanted standing; then recovery goes on."""


# --- caps ------------------------------------------------------------------------------------------------------------


def set_caps(context: Context, change_id: UUID, wallet_id: UUID, own: Caps, *, order: str | None) -> Change:
    """The holder's own caps, all four as they shall be. To lower needs no signature: it only protects. To raise does.

    Raises: ProblemError(wallet-closed, cap-above-class, holder-order-missing, -invalid, -expired), as `begin`, and as
    `balance_caps.tell`: then the change is made, and only the ledger does not have it yet.
    """
    shown = CapsView(**asdict(own))
    content = {"caps": shown.model_dump(mode="json")}

    def decide(connection: sa.Connection, row: Wallet, changes: Sequence[Change]) -> Decision:
        if row.state != "suspended":
            refuse_unless(row)
        of_class = context.pack.caps(row.wallet_class)
        refusal = refuse_caps(own, of_class=of_class)
        if refusal is not None:
            raise ProblemError(refusal, f"class {row.wallet_class.value} of {context.pack.name}")
        if is_raised(row.own_caps, own):
            refuse_unless(row)
            if order is None:
                raise ProblemError(WalletRefusal.HOLDER_ORDER_MISSING, "a cap is raised: sign a CapsOrder")
            _check_caps_order(connection, context, row, order, change_id, shown)
        lifecycle.save_own_caps(connection, wallet_id, own)
        if own.balance_max_minor != row.own_caps.balance_max_minor:
            cap_store.note_change(connection, wallet_id, at=context.clock())
        notify(connection, wallet_id, "caps-changed", at=context.clock(), data=content)
        return Decision(is_done=True, token=order)

    change = begin(context, change_id, wallet_id, "caps", content, decide)
    balance_caps.tell(context, wallet_id)
    return change


def _check_caps_order(
    connection: sa.Connection, context: Context, row: Wallet, token: str, change_id: UUID, caps: CapsView
) -> None:
    payload = check_holder(connection, row, token, typ=CAPS_ORDER_TYP)
    try:
        order = CapsOrder.model_validate_json(payload)
    except ValueError:
        raise ProblemError(WalletRefusal.HOLDER_ORDER_INVALID, "the payload is not a CapsOrder") from None
    if caps_order_payload(order) != payload:
        raise ProblemError(WalletRefusal.HOLDER_ORDER_INVALID, "the payload must be canonical JSON")
    if (order.wallet, order.change, order.caps) != (row.id, change_id, caps):
        raise ProblemError(WalletRefusal.HOLDER_ORDER_INVALID, "signed for another wallet, change or caps")
    check_validity(context, order.valid_until)


# --- class and evidence ----------------------------------------------------------------------------------------------


def change_class(context: Context, change_id: UUID, wallet_id: UUID, wallet_class: WalletClass) -> Change:
    """To any class that the customer's evidence opens. Idempotent; a pending change is finished by recovery.

    Raises: ProblemError(evidence-insufficient, wallet-suspended, ...) and as `begin`.
    """
    return advance_class(context, _begin_class(context, change_id, wallet_id, wallet_class, is_enforced=False))


def _begin_class(
    context: Context, change_id: UUID, wallet_id: UUID, wallet_class: WalletClass, *, is_enforced: bool
) -> Change:
    content = {"wallet_class": wallet_class.value, "because": "evidence" if is_enforced else "asked"}

    def decide(connection: sa.Connection, row: Wallet, changes: Sequence[Change]) -> Decision:
        if is_enforced:  # whatever its standing; but an open one closes its class only once
            if row.account is None or row.state == "closed":
                refuse_unless(row)
        else:
            refuse_unless(row)
            evidence = _customer_of(connection, row).evidence
            if not context.pack.allows(wallet_class, evidence):
                needed = ", ".join(sorted(context.pack.classes[wallet_class].evidence))
                raise ProblemError(WalletRefusal.EVIDENCE_INSUFFICIENT, f"class {wallet_class.value} needs: {needed}")
        refuse_if_open(changes, ("class", "close"))
        if row.wallet_class is wallet_class:
            return Decision(is_done=True)
        lifecycle.update_wallet(connection, wallet_id, changing_to=wallet_class.value)
        return Decision()

    return begin(context, change_id, wallet_id, "class", content, decide, lock_customer=True)


def advance_class(context: Context, change: Change) -> Change:
    if not change.is_open:
        return change
    row = find_wallet(context, change.wallet_id)
    target = WalletClass(str(change.content["wallet_class"]))
    name = rule_class_name(context.pack, target)
    said = ask_ledger(
        context,
        change,
        SetAccountClass(account=account_of(row), rule_class=name),
        step="class",
        is_achieved=lambda view: view.rule_class == name,
    )

    def apply(connection: sa.Connection, row: Wallet, change: Change, now: datetime) -> Mapping[str, object]:
        if said is None:
            lifecycle.update_wallet(connection, row.id, wallet_class=target.value, changing_to=None)
            data = {"from": row.wallet_class.value, "to": target.value, "because": change.content["because"]}
            notify(connection, row.id, "class-changed", at=now, data=data)
            return {"state": "done", "refusal": None, "detail": None}
        if change.content["because"] == "evidence":
            # The stricter caps stay in force here, and the ledger is asked again.
            return {"refusal": said.refusal, "detail": said.detail[:500]}
        lifecycle.update_wallet(connection, row.id, changing_to=None)
        return refused(said)

    return finish(context, change, apply)


def change_evidence(
    context: Context,
    change_id: UUID,
    customer_id: UUID,
    *,
    added: frozenset[Evidence],
    withdrawn: frozenset[Evidence],
) -> list[Change]:
    """Evidence verified anew or no longer good; returns what became of the customer's wallets because of it.

    Raises: ProblemError(customer-not-found, wallet-change-exists, validation-failed).
    """
    if added & withdrawn or not added | withdrawn:
        detail = "name evidence that is added or withdrawn, none of it as both"
        raise ProblemError(RequestRefusal.VALIDATION_FAILED, detail)

    def work(connection: sa.Connection) -> None:
        customer = customers.find_customer(connection, customer_id, lock="change")
        if customer is None:
            raise ProblemError(WalletRefusal.CUSTOMER_NOT_FOUND)
        if customer.is_erased:
            raise ProblemError(WalletRefusal.CUSTOMER_ERASED)
        known = lifecycle.find_evidence_change(connection, change_id)
        if known is not None:
            if known != (customer_id, added, withdrawn):
                raise ProblemError(WalletRefusal.CHANGE_EXISTS)
            return
        lifecycle.insert_evidence_change(
            connection, change_id, customer_id, added=added, withdrawn=withdrawn, now=context.clock()
        )
        customers.save_evidence(connection, customer_id, (customer.evidence | added) - withdrawn)

    context.database.run(work, isolation="READ COMMITTED")
    return enforce(context, change_id, customer_id)


def enforce(context: Context, change_id: UUID, customer_id: UUID) -> list[Change]:
    """Bring the customer's wallets to what his evidence opens, as it is now. Marked done once every wallet is."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        wallet_ids = lifecycle.wallet_ids_of(connection, customer_id)
    made: list[Change] = []
    is_left = False
    for wallet_id in wallet_ids:
        try:
            found = _enforce_one(context, change_id, wallet_id)
        except ProblemError as error:
            log.info("wallet %s is not yet in a class of its evidence: %s", wallet_id, error.refusal)
            is_left = True
            continue
        made += [_try_to_advance(context, change) for change in found]
    if not is_left:
        with context.database.transaction(isolation="READ COMMITTED") as connection:
            lifecycle.mark_enforced(connection, change_id)
    return made


def _enforce_one(context: Context, change_id: UUID, wallet_id: UUID) -> list[Change]:
    """At most two changes of one wallet, whose ids a retry repeats: its class, and whether it is suspended."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = wallets.find_wallet(connection, wallet_id)
        evidence = frozenset[Evidence]() if row is None else _customer_of(connection, row).evidence
        ids_of = {step: ids.derive_uuid7(change_id, f"{wallet_id}/{step}") for step in ("class", "standing")}
        known = {step: lifecycle.find_change(connection, id) for step, id in ids_of.items()}
    if row is None or row.state in ("refused", "closed"):
        return []
    enforced = enforce_evidence(context.pack, row.changing_to or row.wallet_class, evidence)
    opens_none = enforced is not None and enforced.wallet_class is None
    made = [change for change in known.values() if change is not None]
    if known["class"] is None and enforced is not None and enforced.wallet_class is not None:
        made.append(_begin_class(context, ids_of["class"], wallet_id, enforced.wallet_class, is_enforced=True))
    if known["standing"] is None and opens_none != ("evidence" in row.suspensions):
        id = ids_of["standing"]
        made.append(
            _begin_suspend(context, id, wallet_id, "evidence")
            if opens_none
            else _begin_resume(context, id, wallet_id, "evidence", identified_by=frozenset())
        )
    return made


def _customer_of(connection: sa.Connection, row: Wallet) -> Customer:
    customer = customers.find_customer(connection, row.customer_id)
    if customer is None:
        raise ProblemError(WalletRefusal.CUSTOMER_NOT_FOUND)
    return customer


# --- suspension ------------------------------------------------------------------------------------------------------


def suspend(context: Context, change_id: UUID, wallet_id: UUID, reason: str) -> Change:
    """At once here; at the ledger as soon as it answers. Raises: ProblemError(wallet-not-open, wallet-closed)."""
    return _try_to_advance(context, _begin_suspend(context, change_id, wallet_id, reason))


def _begin_suspend(context: Context, change_id: UUID, wallet_id: UUID, reason: str) -> Change:
    def decide(connection: sa.Connection, row: Wallet, changes: Sequence[Change]) -> Decision:
        if row.state not in ("open", "suspended", "closing"):
            refuse_unless(row)
        for change in changes:
            if change.kind == "resume" and change.content["reason"] == reason:
                now = context.clock()
                lifecycle.update_change(connection, change.id, state="cancelled", ended_at=now)
        lifecycle.update_wallet(
            connection, wallet_id, state="suspended", suspensions=sorted(row.suspensions | {reason})
        )
        notify(connection, wallet_id, "suspended", at=context.clock(), data={"reason": reason})
        # One that is under way brings the ledger's side about for both.
        return Decision(is_done=any(change.kind == "suspend" for change in changes))

    return begin(context, change_id, wallet_id, "suspend", {"reason": reason}, decide)


def resume(
    context: Context, change_id: UUID, wallet_id: UUID, reason: str, *, identified_by: frozenset[Evidence]
) -> Change:
    """Take a reason away; the wallet is open again when none is left and the ledger has said so.

    Raises: ProblemError(wallet-not-suspended, evidence-insufficient, change-in-progress).
    """
    return advance_standing(context, _begin_resume(context, change_id, wallet_id, reason, identified_by=identified_by))


def _begin_resume(
    context: Context, change_id: UUID, wallet_id: UUID, reason: str, *, identified_by: frozenset[Evidence]
) -> Change:
    content: dict[str, object] = {"reason": reason, "identified_by": sorted(identified_by)}

    def decide(connection: sa.Connection, row: Wallet, changes: Sequence[Change]) -> Decision:
        if reason not in row.suspensions:
            raise ProblemError(WalletRefusal.WALLET_NOT_SUSPENDED, reason)
        if reason == "loss":
            refuse_identification(context, row, identified_by)
        refuse_if_open(changes, ("resume", "recover"))
        return Decision()

    return begin(context, change_id, wallet_id, "resume", content, decide)


def advance_standing(context: Context, change: Change) -> Change:
    """Send suspend or resume until the ledger's account stands as this service wants it, whoever wanted what last."""
    if not change.is_open:
        return change
    account = account_of(find_wallet(context, change.wallet_id))
    for _ in range(SENT_AFRESH_MAX):
        is_wanted = _is_suspension_wanted(context, change.wallet_id)
        view = ledger_account(context, account)
        if view.status in (AccountStatus.FROZEN, AccountStatus.CLOSED):
            # Nothing is debited there, and by whose order it is so is not ours to change.
            if not is_wanted and view.status is AccountStatus.FROZEN:
                return change
            break
        if (view.status is AccountStatus.SUSPENDED) == is_wanted:
            break
        body = AccountStanding(change="suspend" if is_wanted else "resume", account=account)
        valid_until = context.clock() + timedelta(minutes=5)
        said = send(context, signed_by_us(context, body, id=ids.new_uuid7(), valid_until=valid_until))
        if said is not None:
            raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, f"the ledger said {said.refusal}; repeat later")
    else:
        return change

    def apply(connection: sa.Connection, row: Wallet, change: Change, now: datetime) -> Mapping[str, object]:
        if change.kind == "resume":
            reasons = row.suspensions - {str(change.content["reason"])}
            is_closing = any(other.kind == "close" for other in lifecycle.open_changes(connection, row.id))
            state = "suspended" if reasons else "closing" if is_closing else "open"
            lifecycle.update_wallet(connection, row.id, state=state, suspensions=sorted(reasons))
            data = {"reason": change.content["reason"], "is_open": not reasons}
            notify(connection, row.id, "resumed", at=now, data=data)
        return {"state": "done"}

    return finish(context, change, apply)


def _is_suspension_wanted(context: Context, wallet_id: UUID) -> bool:
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = wallets.find_wallet(connection, wallet_id)
        changes = lifecycle.open_changes(connection, wallet_id)
    leaving = {str(change.content["reason"]) for change in changes if change.kind == "resume"}
    return row is not None and bool(row.suspensions - leaving)


def _try_to_advance(context: Context, change: Change) -> Change:
    """What is recorded is in force here; a silent ledger hears of it from the recovery pass."""
    try:
        return advance_class(context, change) if change.kind == "class" else advance_standing(context, change)
    except ProblemError as error:
        log.warning("change %s (%s) goes on later: %s", change.id, change.kind, error.refusal)
        return change
