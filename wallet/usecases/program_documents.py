"""What the parties of programs sign: documents read, their signatures checked, statements kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from psycopg.errors import UniqueViolation
from pydantic import BaseModel

from kernel import strict_json
from kernel.crypto import jws
from kernel.crypto.keys import KeyRefused, PublicKey
from kernel.errors import ProblemError, Refusal
from wallet.contract import WalletRefusal
from wallet.contract.programs import STATEMENT_TYP, ProgramStatement
from wallet.domain.program_records import Statement
from wallet.store import carriage, own_rules
from wallet.store import programs as store
from wallet.store.carriage import Connection, Payer
from wallet.usecases.program_books import Known

_R = WalletRefusal
Document = TypeVar("Document", bound=BaseModel)


def read_document(token: str, model: type[Document], *, refusal: Refusal) -> Document:
    """The payload of a party's JWS, its signature unchecked: canonical JSON of the model. Raises: ProblemError."""
    try:
        payload = jws.peek_payload(token)
        document = model.model_validate(strict_json.loads(payload))
        if jws.canonical_json(document.model_dump(mode="json", exclude_none=True)) != payload:
            raise ProblemError(refusal, "the payload is not canonical JSON (RFC 8785) with every member")
    except jws.InvalidJws as error:
        raise ProblemError(refusal, error.reason) from None
    except ValueError as error:  # pydantic's too; and a number that no canonical JSON has
        raise ProblemError(refusal, " ".join(str(error).split())[:240]) from None
    return document


def check_signed(token: str, keys: Sequence[PublicKey], *, typ: str, refusal: Refusal) -> PublicKey:
    """The one of the keys that has signed the token. Raises: ProblemError."""
    reason = "no key is known"
    for key in keys:
        try:
            jws.verify(token, key, typ=typ)
        except jws.InvalidJws as error:
            reason = error.reason
        else:
            return key
    raise ProblemError(refusal, reason)


def keys_of(connection: Connection, account: int | None, named: Mapping[str, str]) -> list[PublicKey]:
    """The key that the terms name; of a wallet of ours also its present devices: who lost one is not locked out."""
    try:
        keys = [PublicKey.from_jwk(named)]
    except KeyRefused as error:
        raise ProblemError(_R.PROGRAM_INVALID, str(error)) from None
    wallet = None if account is None else carriage.lock_payers(connection, [account]).get(account)
    if wallet is None or account is None:
        return keys
    # A card signs payments and nothing else; what its key has signed besides comes from a broken chip.
    _, with_card = own_rules.accounts_with_rules(connection, [account])
    of_cards = {thumbprint for _, thumbprint in own_rules.lock_cards(connection, with_card)} if with_card else set()
    return [key for thumbprint, key in device_keys(wallet).items() if thumbprint not in of_cards]


def device_keys(wallet: Payer) -> dict[str, PublicKey]:
    """The keys of a wallet's active devices, by thumbprint."""
    keys = {wallet.device_thumbprint: PublicKey.from_jwk(json.loads(wallet.device_key))}
    if wallet.other_devices is not None:
        others = json.loads(wallet.other_devices)
        keys |= {thumbprint: PublicKey.from_jwk(key) for thumbprint, key in others.items()}
    return keys


def read_statement(token: str) -> ProgramStatement:
    return read_document(token, ProgramStatement, refusal=_R.STATEMENT_INVALID)


def check_said_by(connection: Connection, known: Known, statement: ProgramStatement, token: str) -> None:
    party = next((party for party in known.terms.parties if party.role == statement.role), None)
    if party is None:
        raise ProblemError(_R.STATEMENT_NOT_ALLOWED, f"the program has no {statement.role}")
    keys = keys_of(connection, party.account, party.key)
    check_signed(token, keys, typ=STATEMENT_TYP, refusal=_R.STATEMENT_INVALID)
    if statement.terms_sha256 != known.program.terms_sha256:
        raise ProblemError(_R.PROGRAM_TERMS_MISMATCH, "the statement speaks of other terms")


def insert_statement(
    connection: Connection, known: Known, statement: ProgramStatement, token: str, *, at: datetime
) -> None:
    row = Statement(
        id=statement.statement,
        program_id=known.program.id,
        role=statement.role,
        event=statement.event,
        ordinal=statement.ordinal,
        token=token,
        taken_at=at,
    )
    try:
        store.insert_statement(connection, row)
    except UniqueViolation:  # another program's statement has this id
        raise ProblemError(_R.STATEMENT_EXISTS) from None
