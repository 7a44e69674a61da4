"""The purse's own state machine: what a secure element does with each message, as (state, message) -> (state, answer).

What makes it safe to lose power at any instant: an operation is one step from one state to the next, whoever runs it
stores the next state durably *before* the answer leaves the device (`wallet.purse_device`), and
  - the counter and the parts that were spent only go up, so nothing that was signed can be signed again otherwise;
  - an answer that was lost is given again from the state: the same payment for the same invoice, the same receipt.
So at worst a payment is recorded that the payee never got. It is shown as such, can be handed over again, and never
becomes two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kernel.crypto.keys import PublicKey, Suite
from wallet.domain.offline import messages
from wallet.domain.offline.cose import Sign, Unreadable
from wallet.domain.offline.limits import (
    CLOCK_SKEW_SECONDS,
    COUNTER_MAX,
    FUNDINGS_LOADED_MAX,
    HOLDINGS_MAX,
    INVOICE_SECONDS_MAX,
    OPEN_INVOICES_MAX,
    PARTS_MAX,
    UNSYNCED_MAX,
)
from wallet.domain.offline.messages import (
    CERTIFICATE,
    FUNDING,
    INVOICE,
    REVOCATIONS,
    Certificate,
    Part,
    Revocations,
    Spend,
)
from wallet.domain.offline.verify import Chain, verify_chain
from wallet.domain.offline.vocabulary import Disposition, PurseRefusal, Refused

REDEMPTION_NONCE = bytes(messages.NONCE_BYTES)


@dataclass(frozen=True, slots=True)
class Holding:
    """A value object of this purse: a funding, or a payment received into the purse."""

    source: bytes
    amount_minor: int
    spent_minor: int
    """Parts are taken from the beginning; this much is gone."""
    hops: int
    hops_max: int
    not_after: int
    """When it can still be paid onward."""
    sync_by: int
    certificates: tuple[bytes, ...]
    fundings: tuple[bytes, ...]
    spends: tuple[bytes, ...]
    """The evidence, documents in the order that a transfer has them."""

    @property
    def left_minor(self) -> int:
        return self.amount_minor - self.spent_minor


@dataclass(frozen=True, slots=True)
class PurseState:
    """All that an element keeps besides its key. Immutable: a step makes the next one."""

    certificate: bytes
    institution_key: bytes
    counter: int = 0
    clock: int = 0
    """The latest time seen: a clock that is set back revives no expired certificate."""
    holdings: tuple[Holding, ...] = ()
    loaded: tuple[bytes, ...] = ()
    """Transfers of the fundings ever loaded: none is loaded twice."""
    invoices: tuple[bytes, ...] = ()
    """Open ones."""
    sent: tuple[bytes, ...] = ()
    received: tuple[bytes, ...] = ()
    """Transfers not synced yet."""
    revocations: bytes = b""

    @property
    def balance_minor(self) -> int:
        return sum(holding.left_minor for holding in self.holdings)


@dataclass(frozen=True, slots=True)
class Step:
    """What an operation does: the state to store, then the answer to give."""

    state: PurseState
    answer: bytes = b""


@dataclass(frozen=True, slots=True)
class Device:
    """The element's key: public here, and a way to sign."""

    key: PublicKey
    sign: Sign

    @property
    def suite(self) -> Suite:
        return self.key.suite


def new_purse(certificate: bytes, institution_key: PublicKey, device: Device) -> PurseState | Refused:
    """An empty purse. Refuses: message-invalid, certificate-invalid, not-for-this-purse."""
    try:
        read = messages.read_certificate(certificate)
    except Unreadable as error:
        return Refused(PurseRefusal.MESSAGE_INVALID, str(error))
    if not read.signed.is_signed_by(institution_key, CERTIFICATE):
        return Refused(PurseRefusal.CERTIFICATE_INVALID)
    if read.key != device.key:
        return Refused(PurseRefusal.NOT_FOR_THIS_PURSE, "the certificate is for another device's key")
    return PurseState(certificate, messages.key_bytes(institution_key))


def load(state: PurseState, funding: bytes) -> Step | Refused:
    """Take a funding in; again: no change."""
    own, institution_key = _own(state)
    try:
        read = messages.read_funding(funding)
    except Unreadable as error:
        return Refused(PurseRefusal.MESSAGE_INVALID, str(error))
    if not read.signed.is_signed_by(institution_key, FUNDING):
        return Refused(PurseRefusal.SIGNATURE_INVALID, "the institution has not signed this funding")
    if read.purse != own.purse:
        return Refused(PurseRefusal.NOT_FOR_THIS_PURSE)
    if read.transfer.bytes in state.loaded:
        return Step(state)
    if state.balance_minor + read.amount_minor > own.balance_max_minor:
        return Refused(PurseRefusal.PURSE_FULL)
    if len(state.loaded) >= FUNDINGS_LOADED_MAX:
        return Refused(PurseRefusal.COUNTER_EXHAUSTED, "the purse was loaded as often as it may be")
    if len(state.holdings) >= HOLDINGS_MAX:
        return Refused(PurseRefusal.TOO_MUCH_UNSYNCED, "redeem some of what was received first")
    holding = Holding(
        source=read.hash,
        amount_minor=read.amount_minor,
        spent_minor=0,
        hops=0,
        hops_max=own.hops_max,
        not_after=own.not_after,
        sync_by=own.closes_at,
        certificates=(state.certificate,),
        fundings=(funding,),
        spends=(),
    )
    loaded = (*state.loaded, read.transfer.bytes)
    return Step(replace(state, holdings=(*state.holdings, holding), loaded=loaded))


def ask(
    state: PurseState, *, amount_minor: int, disposition: Disposition, nonce: bytes, now: int, device: Device
) -> Step | Refused:
    """An invoice, with this purse's certificate: the first of a payment's two messages. `nonce` is fresh randomness."""
    own, _ = _own(state)
    now = max(now, state.clock)
    if not own.not_before <= now < own.not_after:
        return Refused(PurseRefusal.CERTIFICATE_EXPIRED, "this purse's own")
    if disposition is Disposition.PURSE and state.balance_minor + amount_minor > own.balance_max_minor:
        return Refused(PurseRefusal.PURSE_FULL)
    if not 0 < amount_minor <= own.balance_max_minor:
        return Refused(PurseRefusal.CAP_EXCEEDED)
    if _is_loaded(state):
        return Refused(PurseRefusal.TOO_MUCH_UNSYNCED)
    invoice = messages.sign_invoice(
        payee=own.hash,
        amount_minor=amount_minor,
        nonce=nonce,
        disposition=disposition,
        created_at=now,
        suite=device.suite,
        sign=device.sign,
    )
    kept = [item for item in state.invoices if now - messages.read_invoice(item).created_at <= INVOICE_SECONDS_MAX]
    invoices = (*kept, invoice)[-OPEN_INVOICES_MAX:]
    answer = messages.write_invoice_bundle(state.certificate, invoice)
    return Step(replace(state, clock=now, invoices=invoices), answer)


def pay(state: PurseState, invoice: bytes, *, now: int, device: Device) -> Step | Refused:
    """The transfer that answers an invoice; for an invoice that was paid before, the same transfer again."""
    own, institution_key = _own(state)
    now = max(now, state.clock)
    try:
        bundle = messages.read_invoice_bundle(invoice)
    except Unreadable as error:
        return Refused(PurseRefusal.MESSAGE_INVALID, str(error))
    payee, asked = bundle.certificate, bundle.invoice
    for sent in state.sent:
        before = messages.read_transfer(sent).payment
        if (before.payee, before.nonce) == (asked.payee, asked.nonce):
            return Step(state, sent)
    if not payee.signed.is_signed_by(institution_key, CERTIFICATE):
        return Refused(PurseRefusal.CERTIFICATE_INVALID)
    if not (own.not_before <= now < own.not_after and payee.not_before <= now < payee.not_after):
        return Refused(PurseRefusal.CERTIFICATE_EXPIRED)
    if is_revoked(state, payee):
        return Refused(PurseRefusal.DEVICE_REVOKED)
    if asked.payee != payee.hash or not asked.signed.is_signed_by(payee.key, INVOICE):
        return Refused(PurseRefusal.SIGNATURE_INVALID, "the payee has not signed this invoice")
    if payee.purse == own.purse or (payee.issuer, payee.ledger, payee.currency) != (
        own.issuer,
        own.ledger,
        own.currency,
    ):
        return Refused(PurseRefusal.NOT_FOR_THIS_PURSE, "an invoice of this purse itself, or of another currency")
    if not -CLOCK_SKEW_SECONDS <= now - asked.created_at <= INVOICE_SECONDS_MAX:
        return Refused(PurseRefusal.INVOICE_EXPIRED)
    if asked.amount_minor > own.single_max_minor:
        return Refused(PurseRefusal.CAP_EXCEEDED)
    return _spend(
        state,
        asked.amount_minor,
        payee=asked.payee,
        hops_max=payee.hops_max,
        disposition=asked.disposition,
        nonce=asked.nonce,
        now=now,
        device=device,
    )


def redeem(state: PurseState, amount_minor: int, *, now: int, device: Device) -> Step | Refused:
    """Take money back into the wallet at the next sync. Possible until the purse is settled."""
    own, _ = _own(state)
    now = max(now, state.clock)
    return _spend(
        state,
        amount_minor,
        payee=own.hash,
        hops_max=None,
        disposition=Disposition.ACCOUNT,
        nonce=REDEMPTION_NONCE,
        now=now,
        device=device,
    )


def receive(state: PurseState, transfer: bytes, *, now: int, device: Device) -> Step | Refused:
    """Check a payment with nothing but what is in this device, keep it, and answer a receipt; again: the same."""
    own, institution_key = _own(state)
    now = max(now, state.clock)
    try:
        read = messages.read_transfer(transfer)
    except Unreadable as error:
        return Refused(PurseRefusal.MESSAGE_INVALID, str(error))
    payment = read.payment
    if payment.payee != own.hash or payment.is_redemption:
        return Refused(PurseRefusal.NOT_FOR_THIS_PURSE)
    for known in state.received:
        if messages.read_transfer(known).payment.hash == payment.hash:
            return Step(state, _receipt(payment, own, now, device))
    invoice = next((item for item in state.invoices if messages.read_invoice(item).nonce == payment.nonce), None)
    if invoice is None:
        return Refused(PurseRefusal.INVOICE_UNKNOWN)
    asked = messages.read_invoice(invoice)
    chain = verify_chain(read, institution_key)
    if isinstance(chain, Refused):
        return chain
    refused = _refusal_of(chain, own, state, now)
    if refused is not None:
        return refused
    if payment.amount_minor != asked.amount_minor or payment.disposition is not asked.disposition:
        return Refused(PurseRefusal.AMOUNT_MISMATCH)
    if now - asked.created_at > INVOICE_SECONDS_MAX:
        return Refused(PurseRefusal.INVOICE_EXPIRED)
    if _is_loaded(state):
        return Refused(PurseRefusal.TOO_MUCH_UNSYNCED)
    holdings = state.holdings
    if payment.disposition is Disposition.PURSE:
        if state.balance_minor + payment.amount_minor > own.balance_max_minor:
            return Refused(PurseRefusal.PURSE_FULL)
        holdings = (*holdings, _holding(chain, own, state.certificate))
    after = replace(
        state,
        clock=now,
        holdings=holdings,
        invoices=tuple(item for item in state.invoices if item != invoice),
        received=(*state.received, transfer),
    )
    return Step(after, _receipt(payment, own, now, device))


def carry_revocations(state: PurseState, revocations: bytes) -> Step | Refused:
    """Replace the list by a newer one, from the institution or from another device: it is signed."""
    _, institution_key = _own(state)
    try:
        read = messages.read_revocations(revocations)
    except Unreadable as error:
        return Refused(PurseRefusal.MESSAGE_INVALID, str(error))
    if not read.signed.is_signed_by(institution_key, REVOCATIONS):
        return Refused(PurseRefusal.SIGNATURE_INVALID)
    current = _revocations(state)
    if current is not None and current.number >= read.number:
        return Step(state)
    return Step(replace(state, revocations=revocations))


def synced(state: PurseState, *, taken: frozenset[bytes], now: int) -> Step:
    """Forget the transfers that the service has settled, by their payments' hashes.

    A sent one is kept for as long as its invoice lives: the payee may still ask for it again.
    """
    now = max(now, state.clock)

    def keeps_sent(transfer: bytes) -> bool:
        payment = messages.read_transfer(transfer).payment
        is_young = not payment.is_redemption and now - payment.time_hint <= INVOICE_SECONDS_MAX + CLOCK_SKEW_SECONDS
        return payment.hash not in taken or is_young

    return Step(
        replace(
            state,
            clock=now,
            holdings=tuple(item for item in state.holdings if item.left_minor),
            sent=tuple(item for item in state.sent if keeps_sent(item)),
            received=tuple(item for item in state.received if messages.read_transfer(item).payment.hash not in taken),
        )
    )


def is_revoked(state: PurseState, certificate: Certificate) -> bool:
    current = _revocations(state)
    return current is not None and certificate.purse in current.purses


# --- inside ----------------------------------------------------------------------------------------------------------


def _own(state: PurseState) -> tuple[Certificate, PublicKey]:
    return messages.read_certificate(state.certificate), messages.key_of(state.institution_key)


def _revocations(state: PurseState) -> Revocations | None:
    return messages.read_revocations(state.revocations) if state.revocations else None


def _is_loaded(state: PurseState) -> bool:
    return len(state.sent) >= UNSYNCED_MAX or len(state.received) >= UNSYNCED_MAX or len(state.holdings) >= HOLDINGS_MAX


def _refusal_of(chain: Chain, own: Certificate, state: PurseState, now: int) -> Refused | None:
    """What depends on the time and on what this device knows."""
    if not chain.not_before - CLOCK_SKEW_SECONDS <= now < min(chain.not_after, own.not_after):
        return Refused(PurseRefusal.CERTIFICATE_EXPIRED)
    for certificate in chain.certificates.values():
        if is_revoked(state, certificate):
            return Refused(PurseRefusal.DEVICE_REVOKED, f"purse {certificate.purse}")
        if (certificate.issuer, certificate.ledger, certificate.currency) != (own.issuer, own.ledger, own.currency):
            return Refused(PurseRefusal.NOT_FOR_THIS_PURSE, "another issuer, ledger or currency")
    if chain.hops > own.hops_max:
        return Refused(PurseRefusal.HOPS_EXCEEDED)
    seen = [spend for known in state.received for spend in messages.read_transfer(known).spends]
    seen += [messages.read_spend(item) for holding in state.holdings for item in holding.spends]
    for spend in chain.transfer.spends:
        if any(spend.conflicts_with(other) for other in seen):
            return Refused(PurseRefusal.DOUBLE_SPEND, f"purse {chain.certificates[spend.payer].purse}")
    return None


def _holding(chain: Chain, own: Certificate, own_certificate: bytes) -> Holding:
    transfer = chain.transfer
    return Holding(
        source=chain.payment.hash,
        amount_minor=chain.payment.amount_minor,
        spent_minor=0,
        hops=chain.hops,
        hops_max=min(own.hops_max, *(item.hops_max for item in transfer.certificates)),
        not_after=min(own.not_after, chain.not_after),
        sync_by=min(own.closes_at, chain.sync_by),
        certificates=_unique(*(item.signed.message for item in transfer.certificates), own_certificate),
        fundings=tuple(item.signed.message for item in transfer.fundings),
        spends=tuple(item.signed.message for item in transfer.spends),
    )


def _spend(
    state: PurseState,
    amount_minor: int,
    *,
    payee: bytes,
    hops_max: int | None,
    disposition: Disposition,
    nonce: bytes,
    now: int,
    device: Device,
) -> Step | Refused:
    """`hops_max`: the payee's; None = the money goes back to the holder's wallet, whatever its age and hops."""
    own, _ = _own(state)
    if state.counter >= COUNTER_MAX:
        return Refused(PurseRefusal.COUNTER_EXHAUSTED)
    if len(state.sent) >= UNSYNCED_MAX:
        return Refused(PurseRefusal.TOO_MUCH_UNSYNCED)
    usable = [
        holding
        for holding in state.holdings
        if holding.left_minor and (hops_max is None or _goes_onward(state, holding, hops_max, now))
    ]
    # What must be synced first goes first; of that the large ones, so that few parts do.
    usable.sort(key=lambda holding: (holding.sync_by, -holding.left_minor))
    chosen = _choose(usable, amount_minor)
    if not chosen or amount_minor <= 0:
        return Refused(PurseRefusal.FUNDS_INSUFFICIENT)
    parts = [Part(holding.source, holding.spent_minor, taken) for holding, taken in chosen]
    spend = messages.sign_spend(
        payer=own.hash,
        counter=state.counter + 1,
        parts=parts,
        payee=payee,
        disposition=disposition,
        nonce=nonce,
        time_hint=now,
        suite=device.suite,
        sign=device.sign,
    )
    evidence = [holding for holding, _ in chosen]
    transfer = messages.write_transfer(
        _unique(*(item for holding in evidence for item in holding.certificates)),
        _unique(*(item for holding in evidence for item in holding.fundings)),
        (*_unique(*(item for holding in evidence for item in holding.spends)), spend),
    )
    try:
        messages.read_transfer(transfer)
    except Unreadable:
        return Refused(PurseRefusal.TOO_MUCH_UNSYNCED, "the evidence would be too long: pay less, or redeem and reload")
    spent = {holding.source: holding.spent_minor + taken for holding, taken in chosen}
    holdings = tuple(
        replace(holding, spent_minor=spent.get(holding.source, holding.spent_minor)) for holding in state.holdings
    )
    after = replace(
        state,
        counter=state.counter + 1,
        clock=now,
        holdings=tuple(holding for holding in holdings if holding.left_minor),
        sent=(*state.sent, transfer),
    )
    return Step(after, transfer)


def _goes_onward(state: PurseState, holding: Holding, hops_max: int, now: int) -> bool:
    if now >= holding.not_after or holding.hops >= min(hops_max, holding.hops_max):
        return False
    return not any(is_revoked(state, messages.read_certificate(item)) for item in holding.certificates)


def _choose(usable: list[Holding], amount_minor: int) -> list[tuple[Holding, int]]:
    """Parts that make the amount; empty if it takes more than a payment may join, or more than there is."""
    for order in (usable, sorted(usable, key=lambda holding: -holding.left_minor)):
        chosen, missing = [], amount_minor
        for holding in order[:PARTS_MAX]:
            taken = min(missing, holding.left_minor)
            if taken:
                chosen.append((holding, taken))
                missing -= taken
        if not missing:
            return chosen
    return []


def _receipt(payment: Spend, own: Certificate, now: int, device: Device) -> bytes:
    return messages.sign_receipt(
        spend=payment.hash, payee=own.hash, received_at=now, suite=device.suite, sign=device.sign
    )


def _unique(*items: bytes) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(items))
