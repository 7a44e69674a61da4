"""QR payloads: the payee's code in EMVCo TLV, the payer's code as a compact signed authority. Pure; docs/qr.md.

Parsing is strict and bounded: whatever is not exactly a code of ours raises `QrRefused`, and nothing else is ever
raised, whatever the text. Encoding refuses what a code cannot hold with the same exception, so that every code made
here can be read back to the same value.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from uuid import UUID

import iso4217

from kernel import ids
from kernel.crypto.keys import PublicKey, SigningKey, from_base64url, to_base64url
from kernel.ids import AccountNumber, ParticipantId
from kernel.money import AMOUNT_MINOR_MAX, Currency, Money

MERCHANT_CHARACTERS_MAX = 512
"""EMVCo Merchant-Presented Mode 1.1, section 3.3: the longest payload that readers must take."""
MERCHANT_NAME_MAX, MERCHANT_CITY_MAX, REFERENCE_MAX = 25, 15, 25
GUID = "org.jiaozi"
"""Our globally unique identifier, a reverse domain name, in every template of ours."""
SIGNED_PREFIX = b"jiaozi-qr/v1\n"
"""In front of what is signed, so that a code's signature is good for nothing else."""
PAYER_PREFIX = "JZP1"

_ACCOUNT_TEMPLATES = range(26, 52)
_SIGNATURE_HALF = 43


class QrRefused(ValueError):
    """The text is no code of ours, or the value fits in none; the message says why."""


# --- TLV -------------------------------------------------------------------------------------------------------------


def _object(tag: int, value: str) -> str:
    if not 1 <= len(value) <= 99:
        raise QrRefused(f"field {tag:02d} must have 1 to 99 characters, it has {len(value)}")
    return f"{tag:02d}{len(value):02d}{value}"


def _objects(text: str, place: str) -> dict[int, str]:
    """Tag -> value, in ascending order of tags (63, the checksum, comes last), each at most once."""
    found: dict[int, str] = {}
    at, before = 0, -1
    while at < len(text):
        head = text[at : at + 4]
        if re.fullmatch(r"[0-9]{4}", head, re.ASCII) is None:
            raise QrRefused(f"{place}: a tag and a length of two digits each are expected at character {at}")
        tag, length = int(head[:2]), int(head[2:])
        value = text[at + 4 : at + 4 + length]
        if not length or len(value) != length:
            raise QrRefused(f"{place}: field {tag:02d} is empty or cut off")
        order = 100 if tag == 63 else tag
        if order <= before:
            raise QrRefused(f"{place}: field {tag:02d} is there twice or out of order")
        found[tag], before, at = value, order, at + 4 + length
    return found


def _checksum(text: str) -> str:
    """CRC-16/CCITT-FALSE of the text up to and with the checksum's own tag and length. ISO/IEC 13239, EMVCo 4.7.3."""
    return f"{binascii.crc_hqx(text.encode('utf-8'), 0xFFFF):04X}"


# --- payee-presented -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MerchantCode:
    """What a payee shows. Static (no `request`): pay this account, any time. Dynamic: pay this request, until then."""

    institution: ParticipantId
    account: AccountNumber
    currency: str
    name: str
    """Of the payee; printable ASCII."""
    city: str
    country: str
    """ISO 3166-1 alpha-2."""
    category: str = "0000"
    """ISO 18245 merchant category code."""
    amount_minor: int | None = None
    """None: the payer enters it."""
    request: UUID | None = None
    valid_until: datetime | None = None
    """Of a dynamic code; whole seconds."""
    reference: str | None = None
    signature: bytes | None = None
    """By the institution's key over everything before it. A dynamic code always has one."""

    @property
    def is_dynamic(self) -> bool:
        return self.request is not None


def encode_merchant(code: MerchantCode, *, key: SigningKey | None = None) -> str:
    """The payload, signed by the institution's `key`. A static code may go without. Raises: QrRefused."""
    unsigned = _unsigned(code)
    if key is not None:
        code = replace(code, signature=key.sign(SIGNED_PREFIX + unsigned.encode("ascii")))
    text = unsigned
    if code.signature is not None:
        encoded = to_base64url(code.signature)
        for tag, half in ((81, encoded[:_SIGNATURE_HALF]), (82, encoded[_SIGNATURE_HALF:])):
            text += _object(tag, _object(0, GUID) + _object(1, half))
    text += "6304"
    text += _checksum(text)
    if parse_merchant(text) != code:
        raise QrRefused("a code holds its text in printable ASCII without spaces at either end, and whole seconds")
    return text


def parse_merchant(text: str) -> MerchantCode:
    """The code in a payload. Its signature is not checked: see `is_signed_by`. Raises: QrRefused, nothing else."""
    if not 0 < len(text) <= MERCHANT_CHARACTERS_MAX:
        raise QrRefused(f"a payload has 1 to {MERCHANT_CHARACTERS_MAX} characters")
    if not text.isascii() or not text.isprintable():
        raise QrRefused("a payload is printable ASCII")
    if text[-8:-4] != "6304" or _checksum(text[:-4]) != text[-4:]:
        raise QrRefused("the checksum does not match: the code was misread")
    fields = _objects(text, "payload")
    if 63 not in fields or next(iter(fields)) != 0 or fields[0] != "01":
        raise QrRefused("this is no payload of version 01")
    template = _our_template(fields)
    institution, account, request = _merchant_account(template)
    currency = _currency_of(_need(fields, 53, r"[0-9]{3}", "a numeric currency"))
    point = fields.get(1)
    if point != ("12" if request is not None else "11"):
        raise QrRefused("a code of ours is dynamic if, and only if, it names a request")
    valid_until = _validity(fields.get(80))
    signature = _signature(fields)
    if request is not None and (valid_until is None or signature is None):
        raise QrRefused("a dynamic code has an expiry and a signature")
    if request is None and valid_until is not None:
        raise QrRefused("a static code has no expiry")
    code = MerchantCode(
        institution=institution,
        account=account,
        currency=currency.code,
        name=_need(fields, 59, r"(?! ).{1,25}(?<! )", "a name of at most 25 characters"),
        city=_need(fields, 60, r"(?! ).{1,15}(?<! )", "a city of at most 15 characters"),
        country=_need(fields, 58, r"[A-Z]{2}", "a country"),
        category=_need(fields, 52, r"[0-9]{4}", "a category"),
        amount_minor=_amount(fields.get(54), currency),
        request=request,
        valid_until=valid_until,
        reference=_reference(fields.get(62)),
        signature=signature,
    )
    for tag in fields:
        if tag not in _OUR_TAGS and tag not in _ACCOUNT_TEMPLATES and not 2 <= tag <= 25:
            raise QrRefused(f"field {tag:02d} is not known in version 01")
    return code


def is_signed_by(text: str, key: PublicKey) -> bool:
    """Whether the institution with this key has signed the payload. Raises: QrRefused as `parse_merchant` does."""
    code = parse_merchant(text)
    if code.signature is None:
        return False
    return key.verify(SIGNED_PREFIX + _signed_part(text).encode("ascii"), code.signature)


_OUR_TAGS = frozenset({0, 1, 52, 53, 54, 58, 59, 60, 62, 63, 80, 81, 82})


def _signed_part(text: str) -> str:
    """Every byte in front of the signature, other networks' templates too: what the payer sees is what was signed."""
    at = 0
    while text[at : at + 2] != "81":
        at += 4 + int(text[at + 2 : at + 4])
    return text[:at]


def _unsigned(code: MerchantCode) -> str:
    currency = _known_currency(code.currency)
    template = [
        _object(0, GUID),
        _object(1, "1"),
        _object(2, code.institution),
        _object(3, ids.show_account(code.account).removeprefix("acc_")),
    ]
    if code.request is not None:
        template.append(_object(4, to_base64url(code.request.bytes)))
    parts = [
        _object(0, "01"),
        _object(1, "12" if code.is_dynamic else "11"),
        _object(26, "".join(template)),
        _object(52, code.category),
        _object(53, _numeric(currency)),
    ]
    if code.amount_minor is not None:
        if not 0 < code.amount_minor <= AMOUNT_MINOR_MAX:
            raise QrRefused("the amount must be positive")
        amount = Money(code.amount_minor, currency).format_major(grouping=False)
        if len(amount) > 13:
            raise QrRefused("an amount in a code has at most 13 characters")
        parts.append(_object(54, amount))
    parts += [_object(58, code.country), _object(59, code.name), _object(60, code.city)]
    if code.reference is not None:
        parts.append(_object(62, _object(5, code.reference)))
    if code.valid_until is not None:
        seconds = int(code.valid_until.timestamp())
        parts.append(_object(80, _object(0, GUID) + _object(1, f"{seconds:010d}")))
    text = "".join(parts)
    if not text.isascii():
        raise QrRefused("a code is printable ASCII; the request itself carries names in any script")
    return text


def _our_template(fields: Mapping[int, str]) -> dict[int, str]:
    found = []
    for tag in _ACCOUNT_TEMPLATES:
        if tag in fields and fields[tag].startswith(_object(0, GUID)):
            found.append(_objects(fields[tag], f"field {tag:02d}"))
    if len(found) != 1:
        raise QrRefused("the code does not have exactly one account of this scheme")
    return found[0]


def _merchant_account(template: Mapping[int, str]) -> tuple[ParticipantId, AccountNumber, UUID | None]:
    if template.get(1) != "1" or not {0, 1, 2, 3} <= set(template) <= {0, 1, 2, 3, 4}:
        raise QrRefused("the account template is not of version 1")
    try:
        institution = ids.parse_participant(template[2])
        account = ids.parse_account(f"acc_{template[3]}")
        request = None if 4 not in template else _uuid7(from_base64url(template[4]))
    except ValueError as error:
        raise QrRefused(f"the account template: {error}") from None
    return institution, account, request


def _validity(value: str | None) -> datetime | None:
    if value is None:
        return None
    fields = _objects(value, "field 80")
    if set(fields) != {0, 1} or fields[0] != GUID or re.fullmatch(r"[0-9]{10}", fields[1], re.ASCII) is None:
        raise QrRefused("field 80 is not an expiry")
    return datetime.fromtimestamp(int(fields[1]), UTC)


def _signature(fields: Mapping[int, str]) -> bytes | None:
    if 81 not in fields and 82 not in fields:
        return None
    halves = [_objects(fields.get(tag, ""), f"field {tag}") for tag in (81, 82)]
    if any(set(half) != {0, 1} or half[0] != GUID or len(half[1]) != _SIGNATURE_HALF for half in halves):
        raise QrRefused("fields 81 and 82 are not a signature")
    try:
        return from_base64url(halves[0][1] + halves[1][1])
    except ValueError as error:
        raise QrRefused(f"the signature: {error}") from None


def _amount(value: str | None, currency: Currency) -> int | None:
    if value is None:
        return None
    try:
        amount = Money.parse_major(value, currency)
    except ValueError as error:
        raise QrRefused(str(error)) from None
    if len(value) > 13 or amount.amount_minor == 0 or amount.format_major(grouping=False) != value:
        raise QrRefused("the amount is nothing, too long, or not spelt with all of its digits")
    return amount.amount_minor


def _reference(value: str | None) -> str | None:
    if value is None:
        return None
    fields = _objects(value, "field 62")
    if set(fields) != {5} or re.fullmatch(r"(?! ).{1,25}(?<! )", fields[5]) is None:
        raise QrRefused("field 62 holds a reference label of at most 25 characters and nothing else")
    return fields[5]


def _need(fields: Mapping[int, str], tag: int, pattern: str, what: str) -> str:
    value = fields.get(tag, "")
    if re.fullmatch(pattern, value, re.ASCII) is None:
        raise QrRefused(f"field {tag:02d} is not {what}")
    return value


def _uuid7(data: bytes) -> UUID:
    if len(data) != 16 or data[6] >> 4 != 7 or data[8] >> 6 != 2:
        raise ValueError("not the 16 bytes of a UUIDv7")
    return UUID(bytes=data)


@cache
def _numeric_codes() -> Mapping[str, str]:
    """ISO 4217 numeric -> alphabetic, of currencies that have minor units."""
    return {f"{entry.number:03d}": entry.code for entry in iso4217.Currency if entry.exponent is not None}


def _numeric(currency: Currency) -> str:
    return f"{iso4217.Currency(currency.code).number:03d}"


def _currency_of(numeric: str) -> Currency:
    code = _numeric_codes().get(numeric)
    if code is None:
        raise QrRefused(f"{numeric} is no currency of ISO 4217")
    return Currency.of(code)


def _known_currency(code: str) -> Currency:
    try:
        return Currency.of(code)
    except ValueError as error:
        raise QrRefused(str(error)) from None


# --- payer-presented -------------------------------------------------------------------------------------------------

_PAYER = struct.Struct(">11s16sQQI64s")
"""Institution (padded with spaces), hold id, account, cap in minor units, expiry in seconds, signature."""
_PAYER_TEXT = re.compile(rf"{PAYER_PREFIX}([A-Z2-7]{{181}})", re.ASCII)


@dataclass(frozen=True, slots=True)
class PayerCode:
    """What a payer shows: his device's signature over one hold, in the few bytes that make it.

    The hold debits `account` by `cap_minor` to his institution's vault and expires at `valid_until`; the code has all
    of it that the institution does not know. Its id books once (I7), so a code is redeemed once, by whomever.
    """

    institution: ParticipantId
    hold: UUID
    account: AccountNumber
    cap_minor: int
    valid_until: datetime
    """Whole seconds."""
    signature: bytes


def encode_payer(code: PayerCode) -> str:
    """185 characters of QR's alphanumeric mode. Raises: QrRefused."""
    try:
        body = _PAYER.pack(
            code.institution.ljust(11).encode("ascii"),
            code.hold.bytes,
            code.account,
            code.cap_minor,
            int(code.valid_until.timestamp()),
            code.signature,
        )
    except (struct.error, ValueError) as error:
        raise QrRefused(f"the code cannot hold this: {error}") from None
    body += binascii.crc_hqx(PAYER_PREFIX.encode() + body, 0xFFFF).to_bytes(2, "big")
    text = PAYER_PREFIX + base64.b32encode(body).decode().rstrip("=")
    if parse_payer(text) != code:
        raise QrRefused("the code cannot hold this: whole seconds, a signature of 64 bytes")
    return text


def parse_payer(text: str) -> PayerCode:
    """The code; its signature is not checked, for only the payer's institution can. Raises: QrRefused, nothing else."""
    match = _PAYER_TEXT.fullmatch(text) if len(text) <= MERCHANT_CHARACTERS_MAX else None
    if match is None:
        raise QrRefused(f"a payer's code is {PAYER_PREFIX} and 181 characters of base32")
    data = base64.b32decode(match[1] + "===")
    if base64.b32encode(data).decode().rstrip("=") != match[1]:
        raise QrRefused("the code is not spelt as it must be")
    body, checksum = data[:-2], data[-2:]
    if binascii.crc_hqx(PAYER_PREFIX.encode() + body, 0xFFFF).to_bytes(2, "big") != checksum:
        raise QrRefused("the checksum does not match: the code was misread")
    padded, hold, account, cap_minor, seconds, signature = _PAYER.unpack(body)
    try:
        name = padded.decode("ascii")
        institution = ids.parse_participant(name.rstrip(" "))
        hold_id = _uuid7(hold)
    except ValueError as error:
        raise QrRefused(f"the code: {error}") from None
    if name != institution.ljust(11):
        raise QrRefused("the code's institution is not spelt as it must be")
    if not 0 < account <= ids.ACCOUNT_NUMBER_MAX or not 0 < cap_minor <= AMOUNT_MINOR_MAX:
        raise QrRefused("the code's account or cap is out of range")
    return PayerCode(
        institution, hold_id, AccountNumber(account), cap_minor, datetime.fromtimestamp(seconds, UTC), signature
    )


def is_payer_code(text: str) -> bool:
    """Whether a text that was scanned claims to be a payer's code rather than a payee's."""
    return text.startswith(PAYER_PREFIX)
