"""Asynchronous twin of `wallet.client.programs`, made by `python -m sandbox.async_client`: change that one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote
from uuid import UUID

from pydantic import BaseModel

from kernel import ids
from kernel.client import AsyncServiceClient
from kernel.clock import Clock
from kernel.crypto.keys import PrivateKey
from kernel.ids import AccountNumber
from ledger.contract import sign_instruction
from wallet.client.programs import FUNDING_LIFE, check_terms, statement_token
from wallet.contract.programs import (
    FundRequest,
    MerchantRequest,
    MerchantStatementRequest,
    MerchantView,
    PreviewRequest,
    PreviewView,
    ProgramRequest,
    ProgramSummary,
    ProgramTerms,
    ProgramView,
    PurchaseOriginView,
    SecretRequest,
    SpendRequest,
    SpendView,
    StatementRequest,
    SupposedStatement,
    TemplateList,
    TemplateView,
    VoucherSpend,
    VoucherView,
    hold_terms,
    sign_spend,
)


class AsyncProgramMethods:
    """What `WalletClient` can do with programs. Statements, fundings and purchases need no registered client."""

    _http: AsyncServiceClient
    _clock: Clock
    _post: Callable[[str, BaseModel], Awaitable[Any]]
    _items: Callable[[str, dict[str, Any]], AsyncIterator[Any]]

    async def program_templates(self) -> list[TemplateView]:
        return TemplateList.model_validate(await self._http.get("/v1/program-templates")).items

    async def program_template(self, name: str, version: int) -> TemplateView:
        path = f"/v1/program-templates/{quote(name, safe='', errors='replace')}/{version}"
        return TemplateView.model_validate(await self._http.get(path))

    async def preview_program(
        self,
        request: ProgramRequest,
        *,
        statements: Sequence[SupposedStatement] = (),
        funded_at: datetime | None = None,
        secret_shown: bool = False,
    ) -> PreviewView:
        """What happens if these statements are made and no others; nothing is stored."""
        body = PreviewRequest(
            program=request, funded_at=funded_at, statements=list(statements), secret_shown=secret_shown
        )
        return PreviewView.model_validate(await self._post("/v1/program-previews", body))

    async def create_program(self, request: ProgramRequest) -> ProgramView:
        """The terms to sign, checked against the request. Raises: TermsDiffer."""
        view = ProgramView.model_validate(await self._post("/v1/programs", request))
        check_terms(view, request)
        return view

    async def get_program(self, program: UUID) -> ProgramView:
        return ProgramView.model_validate(await self._http.get(f"/v1/programs/{ids.show('prg', program)}"))

    def programs(self, wallet: UUID) -> AsyncIterator[ProgramSummary]:
        query = {"wallet": ids.show("wlt", wallet), "limit": 1000}
        return (ProgramSummary.model_validate(item) async for item in self._items("/v1/programs", query))

    def sign_program_holds(
        self, terms: ProgramTerms, *, key: PrivateKey, valid_until: datetime | None = None
    ) -> list[str]:
        """The payer's signature on every hold of the terms, in their order; nothing is sent."""
        until = valid_until or self._clock() + FUNDING_LIFE
        return [sign_instruction(hold, ledger=terms.ledger, valid_until=until, key=key) for hold in hold_terms(terms)]

    async def fund_program(self, terms: ProgramTerms, *, key: PrivateKey) -> ProgramView:
        """Agree to the terms and place all their holds, signed with the payer's device key."""
        agreement = statement_token(terms, role="payer", event="agree", key=key)
        body = FundRequest(
            program=terms.program, agreement=agreement, instructions=self.sign_program_holds(terms, key=key)
        )
        return await self.submit_funding(body)

    async def submit_funding(self, body: FundRequest) -> ProgramView:
        return ProgramView.model_validate(await self._post("/v1/program-fundings", body))

    async def say(
        self,
        terms: ProgramTerms,
        *,
        role: str,
        event: str,
        key: PrivateKey,
        ordinal: int = 1,
        statement: UUID | None = None,
    ) -> ProgramView:
        """Sign a statement and hand it in: the service keeps it and acts on it."""
        token = statement_token(terms, role=role, event=event, key=key, ordinal=ordinal, statement=statement)
        return await self.submit_statement(token)

    async def submit_statement(self, token: str) -> ProgramView:
        return ProgramView.model_validate(await self._post("/v1/program-statements", StatementRequest(statement=token)))

    async def show_program_secret(self, program: UUID, secret: bytes) -> ProgramView:
        path = f"/v1/programs/{ids.show('prg', program)}/secret"
        return ProgramView.model_validate(await self._post(path, SecretRequest(secret=secret)))

    # --- vouchers

    async def get_voucher(self, voucher: UUID) -> VoucherView:
        return VoucherView.model_validate(await self._http.get(f"/v1/vouchers/{ids.show('vch', voucher)}"))

    async def spend_voucher(
        self,
        voucher: UUID,
        *,
        merchant: int,
        amount_minor: int,
        currency: str,
        key: PrivateKey,
        spend: UUID | None = None,
        reference: UUID | None = None,
    ) -> SpendView:
        """Pay a merchant with a voucher, signed with the recipient's key."""
        order = VoucherSpend.model_validate(
            {
                "spend": spend or ids.new_uuid7(),
                "voucher": voucher,
                "merchant": merchant,
                "amount_minor": amount_minor,
                "currency": currency,
                "reference": reference,
                "valid_until": self._clock() + FUNDING_LIFE,
            }
        )
        return await self.submit_spend(sign_spend(order, key))

    async def submit_spend(self, token: str) -> SpendView:
        return SpendView.model_validate(await self._post("/v1/voucher-spends", SpendRequest(spend=token)))

    async def purchase_origin(self, payment: UUID) -> PurchaseOriginView:
        """Institution to institution (wallet.usecases.peers.Peer): whose money a purchase was."""
        return PurchaseOriginView.model_validate(
            await self._http.get(f"/v1/voucher-payments/{ids.show('trf', payment)}/origin")
        )

    async def get_voucher_spend(self, spend: UUID) -> SpendView:
        return SpendView.model_validate(await self._http.get(f"/v1/voucher-spends/{ids.show('spd', spend)}"))

    # --- merchants

    async def register_merchant(self, account: int, *, name: str, category: str, place: str) -> MerchantView:
        """The bank's desk: a merchant of its own, by ISO 18245 category and GB/T 2260 place."""
        body = MerchantRequest(account=AccountNumber(account), name=name, category=category, place=place)
        return MerchantView.model_validate(await self._post("/v1/merchants", body))

    async def take_merchant_statement(self, token: str) -> MerchantView:
        body = MerchantStatementRequest(statement=token)
        return MerchantView.model_validate(await self._post("/v1/merchant-statements", body))

    async def get_merchant(self, account: int) -> MerchantView:
        return MerchantView.model_validate(await self._http.get(f"/v1/merchants/{ids.show_account(account)}"))
