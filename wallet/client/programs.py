"""Programmable money, from the client's side: terms are checked before anything is signed under them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote
from uuid import UUID

from pydantic import BaseModel

from kernel import ids
from kernel.client import ServiceClient
from kernel.clock import Clock
from kernel.crypto.keys import PrivateKey
from kernel.ids import AccountNumber
from ledger.contract import sign_instruction
from wallet.contract.programs import (
    FundRequest,
    MerchantRequest,
    MerchantStatementRequest,
    MerchantView,
    ParameterValue,
    Party,
    PreviewRequest,
    PreviewView,
    ProgramRequest,
    ProgramStatement,
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
    VoucherRequest,
    VoucherSpend,
    VoucherView,
    hold_terms,
    sign_spend,
    sign_statement,
    terms_sha256,
)

FUNDING_LIFE = timedelta(minutes=10)
"""How long the payer's signatures on the holds stand."""


class TermsDiffer(ValueError):
    """The service's terms are not what was asked for: nothing was signed."""


def program_request(
    *,
    template: str,
    version: int,
    parameters: Mapping[str, ParameterValue],
    parties: Sequence[Party],
    amounts_minor: Sequence[int] = (),
    vouchers: Sequence[VoucherRequest] = (),
    program: UUID | None = None,
) -> ProgramRequest:
    return ProgramRequest(
        program=program or ids.new_uuid7(),
        template=template,
        version=version,
        parameters=dict(parameters),
        parties=list(parties),
        amounts_minor=list(amounts_minor),
        vouchers=list(vouchers),
    )


def check_terms(view: ProgramView, request: ProgramRequest) -> None:
    """Whether the terms that the service made are those of the request. Raises: TermsDiffer naming what differs."""
    terms = view.terms
    for name in ("program", "template", "version", "parameters", "parties", "vouchers"):
        if getattr(terms, name) != getattr(request, name):
            raise TermsDiffer(f"the service changed {name}")
    amounts = [hold.amount_minor for hold in terms.holds]
    expected = list(request.amounts_minor) if not request.vouchers else None
    if expected is not None and amounts != expected:
        raise TermsDiffer("the service changed the amounts")
    if request.vouchers and sum(amounts) != sum(item.value_minor for item in request.vouchers):
        raise TermsDiffer("the holds are not the vouchers' value")
    payee = next((party.account for party in request.parties if party.role == "payee"), None)
    if payee is not None and any(hold.credit != payee for hold in terms.holds):
        raise TermsDiffer("a hold is towards another account than the payee's")
    lock = request.parameters.get("secret_hash")
    if lock is not None and any(hold.commit_hash.hex() != lock for hold in terms.holds):
        raise TermsDiffer("a hold is not under the counterpart's hash")
    if terms_sha256(terms) != view.terms_sha256:
        raise TermsDiffer("the hash is not that of the terms")


class ProgramMethods:
    """What `WalletClient` can do with programs. Statements, fundings and purchases need no registered client."""

    _http: ServiceClient
    _clock: Clock
    _post: Callable[[str, BaseModel], Any]
    _items: Callable[[str, dict[str, Any]], Iterator[Any]]

    def program_templates(self) -> list[TemplateView]:
        return TemplateList.model_validate(self._http.get("/v1/program-templates")).items

    def program_template(self, name: str, version: int) -> TemplateView:
        path = f"/v1/program-templates/{quote(name, safe='', errors='replace')}/{version}"
        return TemplateView.model_validate(self._http.get(path))

    def preview_program(
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
        return PreviewView.model_validate(self._post("/v1/program-previews", body))

    def create_program(self, request: ProgramRequest) -> ProgramView:
        """The terms to sign, checked against the request. Raises: TermsDiffer."""
        view = ProgramView.model_validate(self._post("/v1/programs", request))
        check_terms(view, request)
        return view

    def get_program(self, program: UUID) -> ProgramView:
        return ProgramView.model_validate(self._http.get(f"/v1/programs/{ids.show('prg', program)}"))

    def programs(self, wallet: UUID) -> Iterator[ProgramSummary]:
        query = {"wallet": ids.show("wlt", wallet), "limit": 1000}
        return (ProgramSummary.model_validate(item) for item in self._items("/v1/programs", query))

    def sign_program_holds(
        self, terms: ProgramTerms, *, key: PrivateKey, valid_until: datetime | None = None
    ) -> list[str]:
        """The payer's signature on every hold of the terms, in their order; nothing is sent."""
        until = valid_until or self._clock() + FUNDING_LIFE
        return [sign_instruction(hold, ledger=terms.ledger, valid_until=until, key=key) for hold in hold_terms(terms)]

    def fund_program(self, terms: ProgramTerms, *, key: PrivateKey) -> ProgramView:
        """Agree to the terms and place all their holds, signed with the payer's device key."""
        agreement = statement_token(terms, role="payer", event="agree", key=key)
        body = FundRequest(
            program=terms.program, agreement=agreement, instructions=self.sign_program_holds(terms, key=key)
        )
        return self.submit_funding(body)

    def submit_funding(self, body: FundRequest) -> ProgramView:
        return ProgramView.model_validate(self._post("/v1/program-fundings", body))

    def say(
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
        return self.submit_statement(token)

    def submit_statement(self, token: str) -> ProgramView:
        return ProgramView.model_validate(self._post("/v1/program-statements", StatementRequest(statement=token)))

    def show_program_secret(self, program: UUID, secret: bytes) -> ProgramView:
        path = f"/v1/programs/{ids.show('prg', program)}/secret"
        return ProgramView.model_validate(self._post(path, SecretRequest(secret=secret)))

    # --- vouchers

    def get_voucher(self, voucher: UUID) -> VoucherView:
        return VoucherView.model_validate(self._http.get(f"/v1/vouchers/{ids.show('vch', voucher)}"))

    def spend_voucher(
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
        return self.submit_spend(sign_spend(order, key))

    def submit_spend(self, token: str) -> SpendView:
        return SpendView.model_validate(self._post("/v1/voucher-spends", SpendRequest(spend=token)))

    def purchase_origin(self, payment: UUID) -> PurchaseOriginView:
        """Institution to institution (wallet.usecases.peers.Peer): whose money a purchase was."""
        return PurchaseOriginView.model_validate(
            self._http.get(f"/v1/voucher-payments/{ids.show('trf', payment)}/origin")
        )

    def get_voucher_spend(self, spend: UUID) -> SpendView:
        return SpendView.model_validate(self._http.get(f"/v1/voucher-spends/{ids.show('spd', spend)}"))

    # --- merchants

    def register_merchant(self, account: int, *, name: str, category: str, place: str) -> MerchantView:
        """The bank's desk: a merchant of its own, by ISO 18245 category and GB/T 2260 place."""
        body = MerchantRequest(account=AccountNumber(account), name=name, category=category, place=place)
        return MerchantView.model_validate(self._post("/v1/merchants", body))

    def take_merchant_statement(self, token: str) -> MerchantView:
        body = MerchantStatementRequest(statement=token)
        return MerchantView.model_validate(self._post("/v1/merchant-statements", body))

    def get_merchant(self, account: int) -> MerchantView:
        return MerchantView.model_validate(self._http.get(f"/v1/merchants/{ids.show_account(account)}"))


def statement_token(
    terms: ProgramTerms,
    *,
    role: str,
    event: str,
    key: PrivateKey,
    ordinal: int = 1,
    statement: UUID | None = None,
) -> str:
    """A signed statement about these very terms; nothing is sent."""
    said = ProgramStatement(
        statement=statement or ids.new_uuid7(),
        program=terms.program,
        terms_sha256=terms_sha256(terms),
        role=role,
        event=event,
        ordinal=ordinal,
    )
    return sign_statement(said, key)
