"""The bank's orders to the bridge, and the leg authorisations that the bridge fetches under them."""

from __future__ import annotations

from kernel.errors import RequestRefusal
from kernel.http import problems, strict_router
from wallet.api.auth import SIGNED, Bridge, Operator
from wallet.api.dependencies import STATUSES, Services
from wallet.contract import (
    InstitutionView,
    LedgerMembership,
    LegAuthorisationResult,
    LegAuthorisationsRequest,
    LegAuthorisationsResponse,
    NettedInstruction,
    SettlementOrderResult,
    SettlementOrdersRequest,
    SettlementOrdersResponse,
)
from wallet.domain.netting import NettedOrder
from wallet.domain.records import OrderedPayment, OrderedReceipt, SettlementOrder
from wallet.domain.settlements import LedgerLeg
from wallet.usecases import netting, settle

router = strict_router(tags=["settlement"])


@router.get(
    "/v1/institution",
    operation_id="get_institution",
    summary="Who runs this wallet service, and its vaults",
    responses=problems(RequestRefusal.SERVICE_UNAVAILABLE, statuses=STATUSES),
)
def get_institution(context: Services) -> InstitutionView:
    return InstitutionView(
        participant=context.participant,
        key=context.key.public.to_jwk(),
        rule_pack=context.pack.name,
        ledgers=[
            LedgerMembership(ledger=entry.name, currency=entry.currency, vault=context.ledgers.vault(entry))
            for entry in context.ledgers.all()
        ],
    )


@router.post(
    "/v1/settlement-instructions",
    operation_id="register_settlement_instructions",
    summary="Record what the bank has ordered of the bridge",
    responses=problems(*SIGNED, statuses=STATUSES),
)
def register_settlement_instructions(
    body: SettlementOrdersRequest, context: Services, client: Operator
) -> SettlementOrdersResponse:
    now = context.clock()
    orders = [
        SettlementOrder(
            id=order.instruction_id,
            ledger=order.ledger,
            pay_currency=order.pay_currency,
            pay_amount_minor=order.pay_amount_minor,
            receive_currency=order.receive_currency,
            receive_amount_minor_min=order.receive_amount_minor_min,
            credit_account=order.credit_account,
            valid_until=order.valid_until,
            created_at=now,
            further_payments=tuple(OrderedPayment(**dict(item)) for item in order.further_payments),
            further_receipts=tuple(OrderedReceipt(**dict(item)) for item in order.further_receipts),
        )
        for order in body.instructions
    ]
    answers = settle.register_orders(context, orders)
    return SettlementOrdersResponse(
        results=[
            SettlementOrderResult(
                instruction_id=order.id,
                refusal=answer and answer.value,
                transient=None if answer is None else answer.transient,
                detail=answer and answer.title,
            )
            for order, answer in zip(orders, answers, strict=True)
        ]
    )


@router.post(
    "/v1/leg-authorisations",
    operation_id="authorise_legs",
    summary="The bank's signature on legs it has ordered, against the legs that pay it; once each",
    responses=problems(*SIGNED, RequestRefusal.SERVICE_UNAVAILABLE, statuses=STATUSES),
)
def authorise_legs(body: LegAuthorisationsRequest, context: Services, client: Bridge) -> LegAuthorisationsResponse:
    requests = [
        settle.LegRequest(
            leg.instruction_id,
            LedgerLeg(leg.ledger, leg.terms),
            [LedgerLeg(other.ledger, other.terms) for other in leg.other_legs],
        )
        for leg in body.legs
    ]
    nettings = {item.instruction_id: [_netted_order(netted) for netted in item.netted] for item in body.nettings}
    answers = netting.authorise(context, requests, nettings)
    return LegAuthorisationsResponse(
        results=[
            LegAuthorisationResult(
                instruction_id=leg.instruction_id,
                token=token,
                refusal=refusal and refusal.value,
                transient=None if refusal is None else refusal.transient,
                detail=refusal and refusal.title,
            )
            for leg, (token, refusal) in zip(body.legs, answers, strict=True)
        ]
    )


def _netted_order(item: NettedInstruction) -> NettedOrder:
    paid = {amount.currency: amount.amount_minor for amount in item.paid}
    received = {amount.currency: amount.amount_minor for amount in item.received}
    return NettedOrder(item.instruction_id, paid, received)
