"""Erase a customer; unmask on an officer's order with two approvals; the privacy log in which each unmask stands.

An unmask is one transaction: (1) nobody else writes; (2) the order, its approvals and the time are looked at; (3) the
log is held against its last signed checkpoint; (4) what the order names is opened; (5) the entry's commitment, the new
checkpoint and the disclosure are written. The answer leaves after the commit, so there is none without its entry. If
the process dies between, the entry stands and nobody was told: the officers order anew, and both entries are seen.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from kernel import ids
from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey, PublicKey
from kernel.errors import ProblemError, RequestRefusal
from kernel.transparency.checkpoints import Checkpoint, open_checkpoint
from kernel.transparency.merkle import EMPTY_ROOT, leaf_hash, root_of
from kernel.transparency.notes import KeyKind, Note, NoteRefused, VerifierKey, sign_text
from kernel.transparency.tiles import TILE_HEIGHT, TILE_WIDTH, TiledTree
from wallet.contract import WalletRefusal
from wallet.contract.privacy import (
    SALT_BYTES,
    ErasureReason,
    PrivacyEntry,
    SignedStatement,
    StatementRefused,
    UnmaskEvidence,
    UnmaskField,
    UnmaskOrder,
    commitment_of,
    origin_of,
    read_approval,
    read_order,
    sha256_of,
)
from wallet.domain.privacy import Approval, Case, Erasure, Officer, refuse_approval, refuse_disclosure, refuse_life
from wallet.domain.records import Customer
from wallet.store import customers, wallets
from wallet.store import privacy as store
from wallet.usecases import corporate
from wallet.usecases.context import Context

log = logging.getLogger("jiaozi.wallet.privacy")


# --- the log ---------------------------------------------------------------------------------------------------------


class PrivacyLog:
    """The institution's own log: its key, which signs nothing else, and its name. The tree is made from the rows: 32
    bytes an entry, and three officers stand behind each."""

    def __init__(self, institution: str, key: PrivateKey) -> None:
        self._origin = origin_of(institution)
        self._key = key
        self.verifier_key = VerifierKey(self._origin, KeyKind.ED25519, key.public)

    def note(self, leaves: list[bytes]) -> str:
        """A signed checkpoint over leaf hashes. The same leaves give the same note."""
        text = Checkpoint(self._origin, len(leaves), root_of(leaves)).text
        return str(Note(text, (sign_text(text, name=self._origin, key=self._key),)))

    def leaves(self, connection: sa.Connection) -> list[bytes]:
        """Every entry's leaf hash, held against the last checkpoint that was signed.

        Raises: ProblemError(service-unavailable) if an entry was rewritten or is missing: then nothing is unmasked.
        """
        leaves = [leaf_hash(item) for item in store.commitments(connection)]
        last = store.last_note(connection)
        try:
            signed = (
                Checkpoint(self._origin, 0, EMPTY_ROOT)
                if last is None
                else open_checkpoint(last[1], log_key=self.verifier_key).checkpoint
            )
        except NoteRefused as error:
            raise _damaged(str(error)) from None
        if (signed.size, signed.root) != (len(leaves), root_of(leaves)):
            raise _damaged(f"{len(leaves)} entries, signed for {signed.size}")
        return leaves


def _damaged(detail: str) -> ProblemError:
    log.critical("the privacy log is not what was signed: %s", detail)
    return ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "the privacy log is not what was signed")


@dataclass(frozen=True, slots=True)
class LogProof:
    size: int
    root: bytes
    hashes: list[bytes]


def checkpoint(context: Context, privacy_log: PrivacyLog) -> str:
    """The newest signed note."""
    with context.database.transaction(isolation="REPEATABLE READ") as connection:
        return privacy_log.note(privacy_log.leaves(connection))


def entries(context: Context, *, start: int, limit: int) -> tuple[list[bytes], int]:
    """(commitments from `start` on, the log's size)."""
    with context.database.transaction(isolation="REPEATABLE READ") as connection:
        last = store.last_note(connection)
        return store.commitments(connection, start=start, limit=limit), 0 if last is None else last[0]


def prove(
    context: Context, privacy_log: PrivacyLog, *, index: int | None, old_size: int | None, size: int | None
) -> LogProof:
    """That entry `index` is in the tree of `size`, or that this tree begins with the one of `old_size`.

    Raises: ProblemError(validation-failed).
    """
    if (index is None) == (old_size is None):
        raise ProblemError(RequestRefusal.VALIDATION_FAILED, "give index or old_size, one of them")
    with context.database.transaction(isolation="REPEATABLE READ") as connection:
        leaves = privacy_log.leaves(connection)
    size = len(leaves) if size is None else size
    tree = _tree(leaves[:size])
    try:
        if size > len(leaves):
            raise ValueError(f"the log has {len(leaves)} entries")
        hashes = tree.inclusion_proof(index) if index is not None else tree.consistency_proof(old_size or 0)
    except ValueError as error:
        raise ProblemError(RequestRefusal.VALIDATION_FAILED, str(error)) from None
    return LogProof(size, tree.root(), hashes)


def _tree(leaves: list[bytes]) -> TiledTree:
    def read(level: int, index: int, width: int) -> bytes:
        span = 1 << (TILE_HEIGHT * level)
        first = index * TILE_WIDTH
        return b"".join(root_of(leaves[n * span : (n + 1) * span]) for n in range(first, first + width))

    return TiledTree(len(leaves), read)


def evidence(
    context: Context, privacy_log: PrivacyLog, *, wallet_id: UUID | None, after: int, limit: int
) -> list[UnmaskEvidence]:
    """For the data subject's auditor, in the log's order: of one wallet's holder, or of all."""
    with context.database.transaction(isolation="REPEATABLE READ") as connection:
        leaves = privacy_log.leaves(connection)
        rows = store.list_disclosures(connection, wallet_id=wallet_id, after=after, limit=limit)
    note, tree = privacy_log.note(leaves), _tree(leaves)
    return [
        UnmaskEvidence(
            entry=PrivacyEntry.model_validate_json(entry),
            salt=salt.hex(),
            index=index,
            hashes=[item.hex() for item in tree.inclusion_proof(index)],
            checkpoint=note,
        )
        for index, salt, entry in rows
    ]


# --- erasure ---------------------------------------------------------------------------------------------------------


def erase_customer(
    context: Context, erasure_id: UUID, customer_id: UUID, *, reason: ErasureReason, erased_by: str
) -> Erasure:
    """Destroy the key under which the customer's data rests. Idempotent by id; there is no way back.

    Raises: ProblemError(customer-not-found, erasure-exists, customer-erased, customer-has-wallets, unmask-open).
    """
    now = context.clock()
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        store.lock(connection)  # no order is given meanwhile
        customer = customers.find_customer(connection, customer_id, lock="change")  # and no wallet opened
        if customer is None:
            raise ProblemError(WalletRefusal.CUSTOMER_NOT_FOUND)
        known = store.find_erasure(connection, id=erasure_id)
        if known is not None:
            if (known.customer_id, known.reason) != (customer_id, reason):
                raise ProblemError(WalletRefusal.ERASURE_EXISTS)
            return known
        if customer.is_erased:
            raise ProblemError(WalletRefusal.CUSTOMER_ERASED)
        if store.has_living_wallet(connection, customer_id):
            raise ProblemError(WalletRefusal.CUSTOMER_HAS_WALLETS)
        if store.has_open_case(connection, customer_id, now=now):
            raise ProblemError(WalletRefusal.UNMASK_OPEN)
        row = Erasure(erasure_id, customer_id, reason, erased_by, now)
        store.erase(connection, row)
    return row


def find_erasure(context: Context, customer_id: UUID) -> Erasure:
    """Raises: ProblemError(erasure-not-found)."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = store.find_erasure(connection, customer_id=customer_id)
    if row is None:
        raise ProblemError(WalletRefusal.ERASURE_NOT_FOUND)
    return row


# --- unmask ----------------------------------------------------------------------------------------------------------


def order(context: Context, token: str, *, officer: Officer) -> Case:
    """Record an officer's signed order. Idempotent by the id inside, for the same text.

    Raises: ProblemError(unmask-statement-invalid, unmask-exists, unmask-expired, wallet-not-found, not-our-wallet,
    customer-erased).
    """
    asked = _read_order(context, token, officer)
    now = context.clock()
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        store.lock(connection)
        known = store.find_case(connection, asked.request)
        if known is not None:
            if (known.officer.thumbprint, _read_order(context, known.token, known.officer)) != (
                officer.thumbprint,
                asked,
            ):
                raise ProblemError(WalletRefusal.UNMASK_EXISTS)
            return known
        refusal = refuse_life(asked.valid_until, now=now)
        if refusal is not None:
            raise ProblemError(refusal)
        if asked.wallet is not None:
            row = wallets.find_wallet(connection, asked.wallet)
        else:
            row = wallets.find_wallet_of_account(connection, asked.account or 0)
        if row is None:
            missing = WalletRefusal.WALLET_NOT_FOUND if asked.wallet is not None else WalletRefusal.NOT_OUR_WALLET
            raise ProblemError(missing)
        if _customer(connection, row.customer_id).is_erased:
            raise ProblemError(WalletRefusal.CUSTOMER_ERASED)
        case = Case(asked.request, token, row.id, row.customer_id, officer, asked.valid_until, now)
        store.insert_case(connection, case)
    return case


def approve(context: Context, case_id: UUID, token: str, *, officer: Officer) -> Case:
    """Another officer's signed approval of this very order. The same officer again counts once.

    Raises: ProblemError(unmask-not-found, unmask-statement-invalid, unmask-own-order, unmask-approved-before,
    unmask-answered, unmask-expired).
    """
    try:
        said = read_approval(token, PublicKey.from_jwk(officer.key))
    except StatementRefused as error:
        raise ProblemError(WalletRefusal.UNMASK_STATEMENT_INVALID, str(error)) from None
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        store.lock(connection)
        case = _case(connection, case_id)
        if (said.institution, said.request, said.order_sha256) != (context.participant, case.id, sha256_of(case.token)):
            raise ProblemError(WalletRefusal.UNMASK_STATEMENT_INVALID, "it approves another order")
        if all(item.officer.thumbprint != officer.thumbprint for item in case.approvals):
            now = context.clock()
            refusal = refuse_approval(case, officer, now=now)
            if refusal is not None:
                raise ProblemError(refusal)
            store.insert_approval(connection, case, Approval(officer, token, now))
        return _case(connection, case_id)


@dataclass(frozen=True, slots=True)
class Disclosure:
    case: Case
    values: dict[str, Any]
    entry_index: int
    checkpoint: str


def disclose(context: Context, privacy_log: PrivacyLog, case_id: UUID, *, officer: Officer) -> Disclosure:
    """What the order names, once, to the officer who gave it; with the log's entry in the same transaction.

    Raises: ProblemError(unmask-not-found, unmask-not-yours, unmask-answered, unmask-expired, unmask-not-approved,
    customer-erased, service-unavailable: the log is damaged).
    """
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        store.lock(connection)  # 1
        now = context.clock()
        case = _case(connection, case_id)
        refusal = refuse_disclosure(case, officer, now=now)  # 2
        if refusal is not None:
            raise ProblemError(refusal)
        asked = _read_order(context, case.token, case.officer)
        leaves = privacy_log.leaves(connection)  # 3
        values = _values(context, connection, case, asked)  # 4
        first, second = case.approvals[:2]
        entry = PrivacyEntry(
            institution=context.participant,
            request=case.id,
            case_number=asked.case_number,
            legal_basis=asked.legal_basis,
            subject=asked.subject,
            wallet=case.wallet_id,
            fields=asked.fields,
            disclosed_at=now,
            order=_statement(case.officer, case.token),
            approvals=[_statement(item.officer, item.token) for item in (first, second)],
        )
        salt = secrets.token_bytes(SALT_BYTES)
        commitment = commitment_of(entry, salt)
        index = len(leaves)
        note = privacy_log.note([*leaves, leaf_hash(commitment)])
        store.append(connection, index=index, commitment=commitment, note=note)  # 5
        store.insert_disclosure(
            connection,
            case,
            approvers=(first.officer.thumbprint, second.officer.thumbprint),
            entry_index=index,
            salt=salt,
            entry=jws.canonical_json(entry.model_dump(mode="json", exclude_none=True)).decode(),
            disclosed_at=now,
        )
    return Disclosure(case, values, index, note)


def find_case(context: Context, case_id: UUID) -> tuple[Case, UnmaskOrder]:
    """Raises: ProblemError(unmask-not-found)."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        case = _case(connection, case_id)
    return case, order_of(context, case)


def list_cases(context: Context, *, after: UUID | None, limit: int) -> list[Case]:
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        return store.list_cases(connection, after=after, limit=limit)


def order_of(context: Context, case: Case) -> UnmaskOrder:
    """What the kept, signed order says; checked again, for a row may have been written by somebody else."""
    return _read_order(context, case.token, case.officer)


def _values(context: Context, connection: sa.Connection, case: Case, asked: UnmaskOrder) -> dict[str, Any]:
    customer = _customer(connection, case.customer_id)
    if customer.is_erased:
        raise ProblemError(WalletRefusal.CUSTOMER_ERASED)
    found: dict[str, Any] = {}
    for field in asked.fields:
        match field:
            case UnmaskField.CUSTOMER:
                found[field] = ids.show("cus", customer.id)
            case UnmaskField.NAME:
                found[field] = _personal(context, customer)[0]
            case UnmaskField.PHONE:
                found[field] = _personal(context, customer)[1]
            case UnmaskField.EVIDENCE:
                found[field] = sorted(item.value for item in customer.evidence)
            case UnmaskField.WALLETS:
                found[field] = [ids.show("wlt", item) for item in store.wallets_of(connection, customer.id)]
            case UnmaskField.CORPORATE:
                found[field] = _corporate(context, customer.id)
    return {field.value: found[field] for field in asked.fields}


def _personal(context: Context, customer: Customer) -> tuple[str, str]:
    return context.personal_data.open(customer.id, customer.wrapped_key, customer.personal_data)


def _corporate(context: Context, customer_id: UUID) -> dict[str, str] | None:
    try:
        return asdict(corporate.find(context, customer_id))
    except ProblemError as error:
        if error.refusal is WalletRefusal.CUSTOMER_NOT_FOUND:
            return None
        raise


def _case(connection: sa.Connection, case_id: UUID) -> Case:
    case = store.find_case(connection, case_id)
    if case is None:
        raise ProblemError(WalletRefusal.UNMASK_NOT_FOUND)
    return case


def _customer(connection: sa.Connection, customer_id: UUID) -> Customer:
    customer = customers.find_customer(connection, customer_id)
    if customer is None:
        raise ProblemError(WalletRefusal.CUSTOMER_NOT_FOUND)
    return customer


def _read_order(context: Context, token: str, officer: Officer) -> UnmaskOrder:
    try:
        asked = read_order(token, PublicKey.from_jwk(officer.key))
    except StatementRefused as error:
        raise ProblemError(WalletRefusal.UNMASK_STATEMENT_INVALID, str(error)) from None
    if asked.institution != context.participant:
        raise ProblemError(WalletRefusal.UNMASK_STATEMENT_INVALID, "it orders another institution")
    return asked


def _statement(officer: Officer, token: str) -> SignedStatement:
    return SignedStatement(officer=officer.name, key=officer.key, token=token)
