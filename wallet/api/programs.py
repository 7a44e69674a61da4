"""Programmable money: templates, programs, signed statements, vouchers, merchants.

What a party has signed needs no second signature on the request: funding, statements, purchases, secrets. Terms are
made for, and shown to, registered clients.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query

from kernel.errors import RequestRefusal
from kernel.http import problems, strict_router
from kernel.pagination import PAGE_ITEMS_DEFAULT, Page, PageCursor, PageLimit, decode, encode
from ledger.contract import AccountRef, LedgerRefusal, TransferRef, TransferRefusal
from wallet.api.auth import SIGNED, Channel, Operator, Reader
from wallet.api.dependencies import STATUSES, Services
from wallet.api.program_views import (
    merchant_view,
    preview_view,
    program_summary,
    program_view,
    spend_view,
    template_view,
    voucher_view,
)
from wallet.contract import WalletRef, WalletRefusal
from wallet.contract.programs import (
    FundRequest,
    MerchantRequest,
    MerchantStatementRequest,
    MerchantView,
    PreviewRequest,
    PreviewView,
    ProgramRef,
    ProgramRequest,
    ProgramSummary,
    ProgramView,
    PurchaseOriginView,
    SecretRequest,
    SpendRef,
    SpendRequest,
    SpendView,
    StatementRequest,
    TemplateList,
    TemplateName,
    TemplateVersion,
    TemplateView,
    VoucherRef,
    VoucherView,
)
from wallet.domain.programs import Said
from wallet.usecases import listings, program_books, program_funding, program_statements, programs, vouchers

router = strict_router(tags=["programs"])
_R = WalletRefusal
_TERMS = (
    _R.TEMPLATE_NOT_FOUND,
    _R.TEMPLATE_NOT_IN_FORCE,
    _R.PROGRAM_INVALID,
)
_HOLDS = (
    LedgerRefusal.INSTRUCTION_INVALID,
    LedgerRefusal.INSTRUCTION_EXPIRED,
    LedgerRefusal.WRONG_LEDGER,
    LedgerRefusal.OUTCOME_UNKNOWN,
    TransferRefusal.KIND_NOT_ALLOWED,
    TransferRefusal.CREDIT_ACCOUNT_UNKNOWN,
    TransferRefusal.HOLD_TERMS_INVALID,
    TransferRefusal.DEBIT_ACCOUNT_FROZEN,
    TransferRefusal.CREDIT_ACCOUNT_FROZEN,
    TransferRefusal.SINGLE_LIMIT_EXCEEDED,
    TransferRefusal.DAY_LIMIT_EXCEEDED,
    TransferRefusal.YEAR_LIMIT_EXCEEDED,
    TransferRefusal.INSUFFICIENT_FUNDS,
    TransferRefusal.BALANCE_LIMIT_EXCEEDED,
    _R.WALLET_SUSPENDED,
    _R.WALLET_CLOSING,
    _R.WALLET_CLOSED,
    RequestRefusal.SERVICE_UNAVAILABLE,
)
_SAID = (_R.PROGRAM_NOT_FOUND, _R.PROGRAM_STATE_MISMATCH, _R.PROGRAM_TERMS_MISMATCH)


# --- templates -------------------------------------------------------------------------------------------------------


@router.get(
    "/v1/program-templates",
    operation_id="list_program_templates",
    summary="Every template, each with its text and this institution's signature over it",
    responses=problems(RequestRefusal.SERVICE_UNAVAILABLE, statuses=STATUSES),
)
def list_program_templates(context: Services) -> TemplateList:
    return TemplateList(items=[template_view(template, context) for _, template in sorted(context.templates.items())])


@router.get(
    "/v1/program-templates/{name}/{version}",
    operation_id="get_program_template",
    summary="One template",
    responses=problems(_R.TEMPLATE_NOT_FOUND, statuses=STATUSES),
)
def get_program_template(
    name: Annotated[TemplateName, Path()], version: Annotated[TemplateVersion, Path()], context: Services
) -> TemplateView:
    return template_view(programs.find_template(context, name, version), context)


# --- programs --------------------------------------------------------------------------------------------------------


@router.post(
    "/v1/program-previews",
    operation_id="preview_program",
    summary="What happens if: the schedule for supposed statements, and the worst case of each party; stores nothing",
    responses=problems(*SIGNED, *_TERMS, _R.STATEMENT_NOT_ALLOWED, statuses=STATUSES),
)
def preview_program(body: PreviewRequest, context: Services, client: Reader) -> PreviewView:
    said = [Said(item.role, item.event, item.ordinal, item.at) for item in body.statements]
    return preview_view(
        body.program,
        *programs.forecast(
            context, body.program, funded_at=body.funded_at, said=said, is_secret_shown=body.secret_shown
        ),
    )


@router.post(
    "/v1/programs",
    operation_id="create_program",
    status_code=201,
    summary="Make a program's terms for its parties to sign; nothing is reserved yet",
    responses=problems(
        *SIGNED,
        *_TERMS,
        _R.PROGRAM_EXISTS,
        _R.VOUCHER_EXISTS,
        _R.NOT_OUR_WALLET,
        _R.MERCHANT_NOT_FOUND,
        _R.MERCHANT_NOT_FITTING,
        _R.WALLET_SUSPENDED,
        _R.WALLET_CLOSING,
        _R.WALLET_CLOSED,
        LedgerRefusal.ID_FROM_FUTURE,
        TransferRefusal.KIND_NOT_ALLOWED,
        RequestRefusal.SERVICE_UNAVAILABLE,
        statuses=STATUSES,
    ),
)
def create_program(body: ProgramRequest, context: Services, client: Channel) -> ProgramView:
    return program_view(programs.propose(context, body), context)


@router.get(
    "/v1/programs",
    operation_id="list_programs",
    summary="A wallet's programs, in order of id",
    responses=problems(*SIGNED, statuses=STATUSES),
)
def list_programs(
    context: Services,
    client: Reader,
    wallet: Annotated[WalletRef, Query()],
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[ProgramSummary]:
    filters = {"list": "programs", "wallet": wallet}
    after = None if cursor is None else listings.position_of_id(decode(cursor, filters, shape=(str,)))
    rows = program_books.list_programs(context, wallet, after=after, limit=limit)
    return Page[ProgramSummary](
        items=[program_summary(row) for row in rows],
        next_cursor=encode([str(rows[-1].id)], filters) if len(rows) == limit else None,
    )


@router.get(
    "/v1/programs/{program}",
    operation_id="get_program",
    summary="A program: terms, who may say what, what was said, each part and why it is not released yet",
    responses=problems(*SIGNED, _R.PROGRAM_NOT_FOUND, statuses=STATUSES),
)
def get_program(program: Annotated[ProgramRef, Path()], context: Services, client: Reader) -> ProgramView:
    return program_view(program_books.find(context, program), context)


@router.post(
    "/v1/program-fundings",
    operation_id="fund_program",
    status_code=201,
    summary="Place the holds that the payer has signed, all or none",
    responses=problems(
        *_SAID,
        *_HOLDS,
        _R.NOT_OUR_WALLET,
        _R.PROGRAM_NOT_ACCEPTED,
        _R.STATEMENT_INVALID,
        _R.STATEMENT_EXISTS,
        _R.STATEMENT_NOT_ALLOWED,
        statuses=STATUSES,
    ),
)
def fund_program(body: FundRequest, context: Services) -> ProgramView:
    known = program_funding.fund(context, body.program, agreement=body.agreement, instructions=body.instructions)
    return program_view(known, context)


@router.post(
    "/v1/program-statements",
    operation_id="create_program_statement",
    status_code=201,
    summary="A party's signed statement: kept, shown, and acted on",
    responses=problems(*_SAID, _R.STATEMENT_INVALID, _R.STATEMENT_EXISTS, _R.STATEMENT_NOT_ALLOWED, statuses=STATUSES),
)
def create_program_statement(body: StatementRequest, context: Services) -> ProgramView:
    return program_view(program_statements.take_statement(context, body.statement), context)


@router.post(
    "/v1/programs/{program}/secret",
    operation_id="show_program_secret",
    status_code=201,
    summary="Show the counterpart's secret: to know it is the authority",
    responses=problems(
        _R.PROGRAM_NOT_FOUND, _R.PROGRAM_STATE_MISMATCH, TransferRefusal.HOLD_SECRET_WRONG, statuses=STATUSES
    ),
)
def show_program_secret(program: Annotated[ProgramRef, Path()], body: SecretRequest, context: Services) -> ProgramView:
    return program_view(program_statements.show_secret(context, program, body.secret), context)


# --- vouchers --------------------------------------------------------------------------------------------------------


@router.get(
    "/v1/vouchers/{voucher}",
    operation_id="get_voucher",
    summary="What a voucher was worth, and what is left of it",
    responses=problems(*SIGNED, _R.VOUCHER_NOT_FOUND, statuses=STATUSES),
)
def get_voucher(voucher: Annotated[VoucherRef, Path()], context: Services, client: Reader) -> VoucherView:
    return voucher_view(*vouchers.find_voucher(context, voucher))


@router.post(
    "/v1/voucher-spends",
    operation_id="spend_voucher",
    status_code=201,
    summary="Pay a merchant with a voucher; signed by its recipient",
    responses=problems(
        _R.SPEND_INVALID,
        _R.SPEND_EXISTS,
        _R.VOUCHER_NOT_FOUND,
        _R.VOUCHER_NOT_SPENDABLE,
        _R.VOUCHER_TOO_SMALL,
        _R.MERCHANT_NOT_FOUND,
        _R.MERCHANT_NOT_FITTING,
        LedgerRefusal.INSTRUCTION_EXPIRED,
        LedgerRefusal.WRONG_CURRENCY,
        LedgerRefusal.OUTCOME_UNKNOWN,
        TransferRefusal.AMOUNT_INVALID,
        TransferRefusal.CREDIT_ACCOUNT_UNKNOWN,
        TransferRefusal.CREDIT_ACCOUNT_FROZEN,
        TransferRefusal.HOLD_EXPIRED,
        TransferRefusal.BALANCE_LIMIT_EXCEEDED,
        RequestRefusal.SERVICE_UNAVAILABLE,
        statuses=STATUSES,
    ),
)
def spend_voucher(body: SpendRequest, context: Services) -> SpendView:
    return spend_view(vouchers.spend(context, body.spend))


@router.get(
    "/v1/voucher-spends/{spend}",
    operation_id="get_voucher_spend",
    summary="One purchase with a voucher",
    responses=problems(*SIGNED, _R.SPEND_NOT_FOUND, statuses=STATUSES),
)
def get_voucher_spend(spend: Annotated[SpendRef, Path()], context: Services, client: Reader) -> SpendView:
    return spend_view(vouchers.find_spend(context, spend))


@router.get(
    "/v1/voucher-payments/{payment}/origin",
    operation_id="get_purchase_origin",
    summary="Whose money a purchase was, signed; for the merchant's institution, which knows the payment's id",
    responses=problems(_R.SPEND_NOT_FOUND, statuses=STATUSES),
)
def get_purchase_origin(payment: Annotated[TransferRef, Path()], context: Services) -> PurchaseOriginView:
    return PurchaseOriginView(origin=vouchers.sign_origin(context, payment))


# --- merchants -------------------------------------------------------------------------------------------------------


@router.post(
    "/v1/merchants",
    operation_id="register_merchant",
    status_code=201,
    summary="The bank's desk registers a merchant of its own: category (ISO 18245) and place (GB/T 2260)",
    responses=problems(*SIGNED, _R.NOT_OUR_WALLET, statuses=STATUSES),
)
def register_merchant(body: MerchantRequest, context: Services, client: Operator) -> MerchantView:
    return merchant_view(vouchers.register_merchant(context, body))


@router.post(
    "/v1/merchant-statements",
    operation_id="take_merchant_statement",
    status_code=201,
    summary="Another institution's signed word about a merchant of its own",
    responses=problems(*SIGNED, _R.MERCHANT_STATEMENT_INVALID, RequestRefusal.SERVICE_UNAVAILABLE, statuses=STATUSES),
)
def take_merchant_statement(body: MerchantStatementRequest, context: Services, client: Reader) -> MerchantView:
    return merchant_view(vouchers.take_merchant_statement(context, body.statement))


@router.get(
    "/v1/merchants/{account}",
    operation_id="get_merchant",
    summary="A registered merchant",
    responses=problems(*SIGNED, _R.MERCHANT_NOT_FOUND, statuses=STATUSES),
)
def get_merchant(account: Annotated[AccountRef, Path()], context: Services, client: Reader) -> MerchantView:
    return merchant_view(vouchers.find_merchant(context, account))
