"""What purses and the institution say to each other, as bytes and as values.

| document | signed by | says |
|---|---|---|
| certificate | institution | this device key holds purse P of account A, with these caps, until then |
| funding | institution | purse P was loaded with this amount by that ledger transfer |
| invoice | payee | pay this amount to my purse, with this nonce |
| spend | payer | of these value objects these parts go to that certificate; my n-th payment |
| receipt | payee | I hold that spend |
| revocation list | institution | take no money from these purses |

A funding and a spend are *value objects*: amounts that belong to one purse. A spend takes from value objects *parts*,
each an interval [offset, offset + amount). A value object of 100 can be spent as [0, 30), then [30, 100), and neither
payment needs the other as evidence. Two spends that overlap cannot both be honest.

Bundles carry documents with their evidence: an invoice its certificate; a transfer everything that leads back to the
fundings; a proof of double spending the certificate and the two spends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from uuid import UUID

from kernel.crypto.keys import KeyRefused, PublicKey, Suite, from_base64url, to_base64url
from kernel.money import AMOUNT_MINOR_MAX
from wallet.domain.offline import cbor, cose
from wallet.domain.offline.cbor import NotCbor, Value
from wallet.domain.offline.cose import Sign, Signed, Unreadable
from wallet.domain.offline.limits import (
    CERTIFICATES_MAX,
    COUNTER_MAX,
    FUNDINGS_MAX,
    HOPS_MAX,
    PARTS_MAX,
    REVOKED_MAX,
    SPENDS_MAX,
    TEXT_MAX,
)
from wallet.domain.offline.vocabulary import Disposition

CERTIFICATE, FUNDING, INVOICE, SPEND, RECEIPT, REVOCATIONS = (
    "jz-certificate",
    "jz-funding",
    "jz-invoice",
    "jz-spend",
    "jz-receipt",
    "jz-revocations",
)
INVOICE_BUNDLE, TRANSFER_BUNDLE, PROOF_BUNDLE = 1, 2, 3
"""First member of a bundle."""
HASH_BYTES = 32
NONCE_BYTES = 16
TIME_MAX = 2**40
"""Unix seconds; far beyond any certificate."""


@dataclass(frozen=True)
class Certificate:
    """The institution's word for a device. Amounts in minor units, times in Unix seconds."""

    issuer: str
    """The institution's participant code."""
    ledger: str
    currency: str
    purse: UUID
    account: int
    """Of the wallet that the money came from and returns to."""
    key: PublicKey
    balance_max_minor: int
    """What the purse may hold; also the most that the institution pays for this device's double spending."""
    single_max_minor: int
    hops_max: int
    not_before: int
    not_after: int
    grace_seconds: int
    """After `not_after` + this the purse is settled, and payments by it that are not synced yet are void."""
    signed: Signed

    @cached_property
    def hash(self) -> bytes:
        return self.signed.hash

    @property
    def closes_at(self) -> int:
        return self.not_after + self.grace_seconds


@dataclass(frozen=True)
class Funding:
    """A value object made by the institution when the ledger had moved the money into the offline escrow."""

    purse: UUID
    transfer: UUID
    amount_minor: int
    issued_at: int
    signed: Signed

    @cached_property
    def hash(self) -> bytes:
        return self.signed.hash


@dataclass(frozen=True, slots=True)
class Part:
    """[offset, offset + amount) of the value object `source`."""

    source: bytes
    offset: int
    amount_minor: int

    @property
    def end(self) -> int:
        return self.offset + self.amount_minor

    def overlaps(self, other: Part) -> bool:
        return self.source == other.source and self.offset < other.end and other.offset < self.end


@dataclass(frozen=True)
class Invoice:
    payee: bytes
    """Hash of the payee's certificate."""
    amount_minor: int
    nonce: bytes
    disposition: Disposition
    created_at: int
    signed: Signed


@dataclass(frozen=True)
class Spend:
    """A payment, or (payer = payee) money that the holder takes back into his wallet."""

    payer: bytes
    counter: int
    parts: tuple[Part, ...]
    payee: bytes
    disposition: Disposition
    nonce: bytes
    time_hint: int
    """The payer's clock; believed by nobody, kept for whoever investigates."""
    signed: Signed

    @cached_property
    def hash(self) -> bytes:
        return self.signed.hash

    @property
    def amount_minor(self) -> int:
        return sum(part.amount_minor for part in self.parts)

    @property
    def is_redemption(self) -> bool:
        return self.payer == self.payee

    def conflicts_with(self, other: Spend) -> bool:
        """Whether no honest device could have signed both: one counter, or overlapping parts of one value object."""
        if self.payer != other.payer or self.hash == other.hash:
            return False
        if self.counter == other.counter:
            return True
        return any(mine.overlaps(theirs) for mine in self.parts for theirs in other.parts)


@dataclass(frozen=True)
class Receipt:
    spend: bytes
    payee: bytes
    received_at: int
    signed: Signed


@dataclass(frozen=True)
class Revocations:
    """Purses whose payments no device takes any more. A higher `number` replaces a lower one."""

    number: int
    purses: tuple[UUID, ...]
    signed: Signed


@dataclass(frozen=True)
class InvoiceBundle:
    certificate: Certificate
    invoice: Invoice


@dataclass(frozen=True)
class Transfer:
    """The last spend is the payment; everything else is its evidence, each spend after those that it draws on."""

    certificates: tuple[Certificate, ...]
    fundings: tuple[Funding, ...]
    spends: tuple[Spend, ...]

    @property
    def payment(self) -> Spend:
        return self.spends[-1]


@dataclass(frozen=True)
class Proof:
    certificate: Certificate
    first: Spend
    second: Spend


# --- writing ---------------------------------------------------------------------------------------------------------


def sign_certificate(
    *,
    issuer: str,
    ledger: str,
    currency: str,
    purse: UUID,
    account: int,
    key: PublicKey,
    balance_max_minor: int,
    single_max_minor: int,
    hops_max: int,
    not_before: int,
    not_after: int,
    grace_seconds: int,
    suite: Suite,
    sign: Sign,
) -> bytes:
    payload: list[Value] = [issuer, ledger, currency, purse.bytes, account, key_bytes(key)]
    payload += [balance_max_minor, single_max_minor, hops_max, not_before, not_after, grace_seconds]
    return cose.sign(CERTIFICATE, payload, suite=suite, sign=sign)


def sign_funding(*, purse: UUID, transfer: UUID, amount_minor: int, issued_at: int, suite: Suite, sign: Sign) -> bytes:
    return cose.sign(FUNDING, [purse.bytes, transfer.bytes, amount_minor, issued_at], suite=suite, sign=sign)


def sign_invoice(
    *,
    payee: bytes,
    amount_minor: int,
    nonce: bytes,
    disposition: Disposition,
    created_at: int,
    suite: Suite,
    sign: Sign,
) -> bytes:
    payload: list[Value] = [payee, amount_minor, nonce, int(disposition), created_at]
    return cose.sign(INVOICE, payload, suite=suite, sign=sign)


def sign_spend(
    *,
    payer: bytes,
    counter: int,
    parts: Sequence[Part],
    payee: bytes,
    disposition: Disposition,
    nonce: bytes,
    time_hint: int,
    suite: Suite,
    sign: Sign,
) -> bytes:
    taken: list[Value] = [[part.source, part.offset, part.amount_minor] for part in parts]
    payload: list[Value] = [payer, counter, taken, payee, int(disposition), nonce, time_hint]
    return cose.sign(SPEND, payload, suite=suite, sign=sign)


def sign_receipt(*, spend: bytes, payee: bytes, received_at: int, suite: Suite, sign: Sign) -> bytes:
    return cose.sign(RECEIPT, [spend, payee, received_at], suite=suite, sign=sign)


def sign_revocations(*, number: int, purses: Iterable[UUID], suite: Suite, sign: Sign) -> bytes:
    # One byte string, sixteen bytes a purse.
    return cose.sign(REVOCATIONS, [number, b"".join(sorted(purse.bytes for purse in purses))], suite=suite, sign=sign)


def write_invoice_bundle(certificate: bytes, invoice: bytes) -> bytes:
    return cbor.encode([INVOICE_BUNDLE, certificate, invoice])


def write_transfer(certificates: Iterable[bytes], fundings: Iterable[bytes], spends: Iterable[bytes]) -> bytes:
    return cbor.encode([TRANSFER_BUNDLE, list(certificates), list(fundings), list(spends)])


def write_proof(certificate: bytes, first: bytes, second: bytes) -> bytes:
    """The same whichever of the two came first."""
    return cbor.encode([PROOF_BUNDLE, certificate, *sorted((first, second))])


# --- reading: Unreadable for everything that does not have exactly the documented shape -------------------------------


def read_certificate(message: bytes) -> Certificate:
    signed, members = cose.read(message, CERTIFICATE)
    take = _Members(members, 12)
    certificate = Certificate(
        issuer=take.text(),
        ledger=take.text(),
        currency=take.text(),
        purse=UUID(bytes=take.data(16)),
        account=take.integer(1, 2**62),
        key=key_of(take.data()),
        balance_max_minor=take.integer(1, AMOUNT_MINOR_MAX),
        single_max_minor=take.integer(1, AMOUNT_MINOR_MAX),
        hops_max=take.integer(1, HOPS_MAX),
        not_before=take.integer(0, TIME_MAX),
        not_after=take.integer(0, TIME_MAX),
        grace_seconds=take.integer(0, TIME_MAX),
        signed=signed,
    )
    if certificate.not_before >= certificate.not_after:
        raise Unreadable("the certificate is never valid")
    return certificate


def read_funding(message: bytes) -> Funding:
    signed, members = cose.read(message, FUNDING)
    take = _Members(members, 4)
    return Funding(
        purse=UUID(bytes=take.data(16)),
        transfer=UUID(bytes=take.data(16)),
        amount_minor=take.integer(1, AMOUNT_MINOR_MAX),
        issued_at=take.integer(0, TIME_MAX),
        signed=signed,
    )


def read_invoice(message: bytes) -> Invoice:
    signed, members = cose.read(message, INVOICE)
    take = _Members(members, 5)
    return Invoice(
        payee=take.data(HASH_BYTES),
        amount_minor=take.integer(1, AMOUNT_MINOR_MAX),
        nonce=take.data(NONCE_BYTES),
        disposition=Disposition(take.integer(0, 1)),
        created_at=take.integer(0, TIME_MAX),
        signed=signed,
    )


def read_spend(message: bytes) -> Spend:
    signed, members = cose.read(message, SPEND)
    take = _Members(members, 7)
    spend = Spend(
        payer=take.data(HASH_BYTES),
        counter=take.integer(1, COUNTER_MAX),
        parts=tuple(_part(item) for item in take.list(PARTS_MAX)),
        payee=take.data(HASH_BYTES),
        disposition=Disposition(take.integer(0, 1)),
        nonce=take.data(NONCE_BYTES),
        time_hint=take.integer(0, TIME_MAX),
        signed=signed,
    )
    if not spend.parts or spend.amount_minor > AMOUNT_MINOR_MAX:
        raise Unreadable("a spend takes from 1 to 4 parts, together no more than an amount can be")
    return spend


def read_receipt(message: bytes) -> Receipt:
    signed, members = cose.read(message, RECEIPT)
    take = _Members(members, 3)
    return Receipt(take.data(HASH_BYTES), take.data(HASH_BYTES), take.integer(0, TIME_MAX), signed)


def read_revocations(message: bytes) -> Revocations:
    signed, members = cose.read(message, REVOCATIONS)
    take = _Members(members, 2)
    number, listed = take.integer(0, TIME_MAX), take.data()
    if len(listed) % 16 or len(listed) > 16 * REVOKED_MAX:
        raise Unreadable("not a list of purses")
    purses = [listed[at : at + 16] for at in range(0, len(listed), 16)]
    if purses != sorted(set(purses)):
        raise Unreadable("the purses are not in order, each once")
    return Revocations(number, tuple(UUID(bytes=purse) for purse in purses), signed)


def read_invoice_bundle(message: bytes) -> InvoiceBundle:
    take = _bundle(message, INVOICE_BUNDLE, 2)
    return InvoiceBundle(read_certificate(take.data()), read_invoice(take.data()))


def read_transfer(message: bytes) -> Transfer:
    take = _bundle(message, TRANSFER_BUNDLE, 3)
    transfer = Transfer(
        certificates=tuple(read_certificate(_data(item)) for item in take.list(CERTIFICATES_MAX)),
        fundings=tuple(read_funding(_data(item)) for item in take.list(FUNDINGS_MAX)),
        spends=tuple(read_spend(_data(item)) for item in take.list(SPENDS_MAX)),
    )
    if not transfer.spends:
        raise Unreadable("a transfer without a payment")
    return transfer


def read_proof(message: bytes) -> Proof:
    take = _bundle(message, PROOF_BUNDLE, 3)
    return Proof(read_certificate(take.data()), read_spend(take.data()), read_spend(take.data()))


def key_bytes(key: PublicKey) -> bytes:
    """32 bytes of Ed25519, or the 64 of a P-256 point's x and y."""
    jwk = key.to_jwk()
    return from_base64url(jwk["x"]) + (from_base64url(jwk["y"]) if key.suite is Suite.ECDSA_P256_SHA256 else b"")


def key_of(data: bytes) -> PublicKey:
    """The reverse of `key_bytes`. Raises: Unreadable."""
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": to_base64url(data)}
    if len(data) == 64:
        jwk = {"kty": "EC", "crv": "P-256", "x": to_base64url(data[:32]), "y": to_base64url(data[32:])}
    try:
        return PublicKey.from_jwk(jwk)
    except KeyRefused as error:
        raise Unreadable(f"device key: {error}") from None


def _part(item: Value) -> Part:
    if not isinstance(item, list):
        raise Unreadable("a part is an array")
    take = _Members(item, 3)
    part = Part(take.data(HASH_BYTES), take.integer(0, AMOUNT_MINOR_MAX), take.integer(1, AMOUNT_MINOR_MAX))
    if part.end > AMOUNT_MINOR_MAX:
        raise Unreadable("a part ends out of range")
    return part


def _bundle(message: bytes, kind: int, count: int) -> _Members:
    try:
        members = cbor.decode(message)
    except NotCbor as error:
        raise Unreadable(str(error)) from None
    if not isinstance(members, list) or not members or members[0] != kind:
        raise Unreadable("another kind of message")
    return _Members(members[1:], count)


def _data(item: Value) -> bytes:
    if not isinstance(item, bytes):
        raise Unreadable("expected a byte string")
    return item


class _Members:
    """An array's members in order, each with the type it must have."""

    def __init__(self, members: list[Value], count: int) -> None:
        if len(members) != count:
            raise Unreadable(f"expected {count} members")
        self._rest = iter(members)

    def integer(self, low: int, high: int) -> int:
        value = next(self._rest)
        if not isinstance(value, int) or not low <= value <= high:
            raise Unreadable("an integer is missing or out of range")
        return value

    def data(self, size: int | None = None) -> bytes:
        value = next(self._rest)
        if not isinstance(value, bytes) or size not in (None, len(value)):
            raise Unreadable("a byte string is missing or has another length")
        return value

    def text(self) -> str:
        value = next(self._rest)
        if not isinstance(value, str) or not 0 < len(value.encode()) <= TEXT_MAX or not value.isprintable():
            raise Unreadable("a text is missing or out of bounds")
        return value

    def list(self, count_max: int) -> list[Value]:
        value = next(self._rest)
        if not isinstance(value, list) or len(value) > count_max:
            raise Unreadable(f"expected an array of at most {count_max}")
        return value
