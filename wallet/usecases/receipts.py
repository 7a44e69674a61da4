"""Receipts and balance proofs for holders, passed on from the ledger as they are: nothing here is trusted by them.

A receipt proves that a transfer is in the ledger's log; a balance proof, that a closing counts a balance in full. Both
verify offline with nothing but the ledger's public log key (`ledger.client.verify_receipt`, `verify_balance_proof`).
"""

from __future__ import annotations

from uuid import UUID

from kernel import ids
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.errors import ProblemError, RequestRefusal
from kernel.ids import AccountNumber
from ledger.client import LedgerClient
from ledger.contract import LedgerRefusal
from wallet.contract import WalletRefusal
from wallet.usecases.context import Context, ledger_unavailable
from wallet.usecases.wallets import find_wallet


def receipt(context: Context, wallet_id: UUID, transfer_id: UUID, *, quorum: int) -> bytes:
    """The receipt (JSON) of a line of the wallet's history, under a checkpoint that `quorum` witnesses have cosigned.

    Raises: ProblemError(wallet-not-found, wallet-not-open, transfer-not-of-wallet, not-sealed, service-unavailable).
    """
    account = _account(context, wallet_id)
    client = _ledger(context)
    try:
        view = client.get_transfer(transfer_id)
        # The institution may see its other customers' transfers too: they are none of this wallet's.
        if account not in (view.debit, view.credit):
            raise ProblemError(WalletRefusal.TRANSFER_NOT_OF_WALLET)
        return client.receipt(transfer_id, quorum=quorum)
    except ProblemResponse as error:
        raise _problem(error) from error
    except ServiceUnreachable as error:
        raise ledger_unavailable(error) from error


def balance_proof(context: Context, wallet_id: UUID, *, closing: int | None) -> bytes:
    """The proof (JSON) of the wallet's balance in a closing, the newest by default.

    Raises: ProblemError(wallet-not-found, wallet-not-open, closing-not-found, service-unavailable).
    """
    account = _account(context, wallet_id)
    client = _ledger(context)
    try:
        if closing is None:
            newest = client.closings(limit=1)
            if not newest:
                raise ProblemError(LedgerRefusal.CLOSING_NOT_FOUND, "the ledger has not closed yet")
            closing = newest[0].closing
        return client.balance_proof(closing, account).model_dump_json().encode()
    except ProblemResponse as error:
        if error.refusal == LedgerRefusal.ACCOUNT_NOT_FOUND.value:
            detail = f"{ids.show_account(account)} was opened after this closing"
            raise ProblemError(LedgerRefusal.CLOSING_NOT_FOUND, detail) from error
        raise _problem(error) from error
    except ServiceUnreachable as error:
        raise ledger_unavailable(error) from error


def _account(context: Context, wallet_id: UUID) -> AccountNumber:
    wallet = find_wallet(context, wallet_id)
    if wallet.account is None:
        raise ProblemError(WalletRefusal.WALLET_NOT_OPEN)
    return wallet.account


def _ledger(context: Context) -> LedgerClient:
    return context.ledgers.home.client


def _problem(error: ProblemResponse) -> ProblemError:
    if error.refusal == LedgerRefusal.TRANSFER_NOT_FOUND.value:
        return ProblemError(WalletRefusal.TRANSFER_NOT_OF_WALLET)
    for refusal in (LedgerRefusal.NOT_SEALED, LedgerRefusal.CLOSING_NOT_FOUND):
        if error.refusal == refusal.value:
            return ProblemError(refusal, error.detail)
    if error.refusal == RequestRefusal.SERVICE_UNAVAILABLE.value:
        return ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, error.detail)
    return ledger_unavailable(error)
