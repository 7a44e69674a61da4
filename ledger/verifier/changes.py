"""Account changes, asked again from nothing: may this change have been journaled, and what does it do to the books?

Written from `docs/export-format.md`, not from the engine. Raises Unproven for what no ledger may have written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from kernel.clock import to_micros
from kernel.crypto import jws
from kernel.crypto.keys import PublicKey
from kernel.ids import derive_uuid8, parse, parse_account
from kernel.money import AMOUNT_MINOR_MAX
from ledger.verifier import documents
from ledger.verifier.accounts import Accounts
from ledger.verifier.documents import Unproven
from ledger.verifier.layout import ISSUANCE_ACCOUNT, WALLET

KIND = "account-change"
CHANGE_TYP = "jiaozi-account-change+jws"
CONSENT_TYP = "jiaozi-account-consent+jws"
HOLDER_KEYS_MAX = 5
_HOLDERS_ALONE = "object-to-key"
_CONSENTED = frozenset({"add-holder-key", "remove-holder-key", _HOLDERS_ALONE})


@dataclass(frozen=True, slots=True)
class Change:
    """A change whose signatures have been verified with keys of the moment."""

    id: UUID
    account: int
    kind: str
    members: Mapping[str, Any]
    has_consent: bool

    @property
    def key(self) -> bytes:
        """As `documents.encode_key` has it."""
        return documents.encode_key(PublicKey.from_jwk(self.members["key"]))


def read_change(
    body: bytes,
    *,
    ledger: str,
    booked_at: int,
    accounts: Accounts,
    institution_key: Mapping[int, bytes],
) -> Change:
    """The change in a directive's body, its signatures and validity checked. `institution_key`: participant -> its key
    as of now, as `documents.encode_key` has it."""
    try:
        document = documents.canonical(body)
        if not {"kind"} < document.keys() <= {"kind", "change", "consent"} or document["kind"] != KIND:
            raise Unproven("it has other members than an account change")
        token = document.get("change", document.get("consent"))
        payload = jws.peek_payload(token)
        text = documents.canonical(payload)
        if text.keys() != {"id", "ledger", "change", "valid_until"} or text["ledger"] != ledger:
            raise Unproven("it was signed for another ledger, or is no account change")
        change = text["change"]
        account = int(parse_account(change["account"]))
        if not accounts.exists(account) or account == ISSUANCE_ACCOUNT:
            raise Unproven(f"it names account {account}, which is no holder's")
        if to_micros(datetime.fromisoformat(text["valid_until"])) < booked_at:
            raise Unproven("it was booked after its validity")
        if ("change" in document) == (change["change"] == _HOLDERS_ALONE):
            raise Unproven("the participant signs every change but the holder's objection")
        if "change" in document:
            key = institution_key.get(int(accounts.participant[account]))
            if key is None:
                raise Unproven(f"account {account} has no participant that could have signed")
            jws.verify(token, documents.holder_key(key), typ=CHANGE_TYP)
        if "consent" in document:
            consent = str(document["consent"])
            signer = documents.named_key(consent, accounts.holder_keys(account))
            if signer is None or jws.verify(consent, documents.holder_key(signer), typ=CONSENT_TYP) != payload:
                raise Unproven("the consent is not of a current holder key over the same text")
        elif change["change"] in _CONSENTED:
            raise Unproven(f"{change['change']} without the holder's consent")
        return Change(parse("chg", text["id"]), account, change["change"], change, "consent" in document)
    except Unproven:
        raise
    except (jws.InvalidJws, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unproven(f"{type(error).__name__}: {error}") from None


def order_id(change: UUID) -> bytes:
    """Under which the journal keeps a change."""
    return derive_uuid8(change, KIND).bytes


def apply(
    change: Change,
    accounts: Accounts,
    *,
    class_code: Mapping[str, int],
    booked_at: int,
    key_recovery_seconds: int,
) -> None:
    """Ask the rules and change the books."""
    account, kind = change.account, change.kind
    if accounts.closed[account]:
        raise Unproven(f"account {account} was closed before")
    match kind:
        case "set-rule-class":
            code = class_code.get(change.members["rule_class"])
            if code is None:
                raise Unproven(f"there is no rule class {change.members['rule_class']!r}")
            accounts.rule_class[account] = code
        case "set-balance-cap":
            _apply_cap(change, accounts)
        case "suspend" | "resume":
            accounts.suspended[account] = kind == "suspend"
        case "close":
            if accounts.frozen[account]:
                raise Unproven(f"account {account} was closed while it was frozen")
            if any(accounts.balance(account) or accounts.total(column, account) for column in (2, 3)):
                raise Unproven(f"account {account} was closed with a balance or open holds")
            accounts.closed[account] = True
            accounts.announced.pop(account, None)
        case "object-to-key":
            if accounts.announced.pop(account, None) is None:
                raise Unproven("it objects to no announcement")
        case "add-holder-key" | "remove-holder-key" | "replace-holder-key" | "announce-holder-key":
            if accounts.kind[account] != WALLET:
                raise Unproven(f"account {account} is no wallet and has no holder's keys")
            _apply_key(change, accounts, booked_at=booked_at, key_recovery_seconds=key_recovery_seconds)
        case unknown:
            raise Unproven(f"{unknown!r} is no account change that this verifier knows")


def _apply_cap(change: Change, accounts: Accounts) -> None:
    version, cap = change.members["version"], change.members.get("balance_max_minor")
    if accounts.kind[change.account] != WALLET:
        raise Unproven(f"account {change.account} is no wallet and has no cap of its own")
    if type(version) is not int or not (cap is None or (type(cap) is str and cap.isascii() and cap.isdigit())):
        raise Unproven("its version or cap is no number")
    if version > accounts.balance_caps.get(change.account, (0, None))[0]:
        own = None if cap is None or int(cap) == AMOUNT_MINOR_MAX else int(cap)  # the largest amount binds nothing
        accounts.balance_caps[change.account] = version, own
        accounts.capped[change.account] = own is not None


def _apply_key(change: Change, accounts: Accounts, *, booked_at: int, key_recovery_seconds: int) -> None:
    account, key, keys = change.account, change.key, accounts.holder_keys(change.account)
    if change.kind == "remove-holder-key":
        if key not in keys or len(keys) == 1:
            raise Unproven("it removes a key that is not there, or the last one")
        accounts.set_keys(account, [other for other in keys if other != key])
        return
    if key in keys:
        raise Unproven("the key was the account's before")
    if change.kind == "announce-holder-key":
        accounts.announced[account] = (key, booked_at)
    elif change.kind == "add-holder-key":
        if len(keys) >= HOLDER_KEYS_MAX:
            raise Unproven(f"account {account} has {HOLDER_KEYS_MAX} keys already")
        accounts.set_keys(account, [*keys, key])
    else:
        if not change.has_consent:
            announced, at = accounts.announced.get(account, (b"", 0))
            if announced != key:
                raise Unproven("a key was replaced without consent and without announcement")
            if booked_at < at + key_recovery_seconds * 1_000_000:
                raise Unproven(f"a key was replaced before its {key_recovery_seconds} s of waiting")
        accounts.set_keys(account, [key])
        accounts.announced.pop(account, None)
