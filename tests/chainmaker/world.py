"""The double with the escrow and a token installed, its members, and the conformance suite's subject over it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eth_abi.abi import encode

from kernel.money import Currency
from settlement.conformance.chainmaker import ChainMakerSubject
from settlement.islands.chainmaker.client import Signer
from settlement.islands.evm.contracts import ESCROW, TOKEN
from tests.chainmaker.node import ChainNode, Person, address_of

ESCROW_NAME, TOKEN_NAME = "jiaozi_escrow", "test_yuan"
DECIMALS = 4
UNIT = 100
"""Four decimals of the token on two of the currency: so that a forgotten scale shows."""
FUNDS_MINOR = 1_000_000


class World:
    def __init__(self) -> None:
        self.node = ChainNode()
        organisations = self.node.organisations
        self.bridge = organisations["bridge"].member("bridge")
        self.payer = organisations["bank-a"].member("payer")
        self.payee = organisations["bank-b"].member("payee")
        issuer = organisations["bank-a"].member("issuer")
        self.install_tx_id = self.node.install(ESCROW_NAME, ESCROW.bytecode, person=self.bridge)
        arguments = encode(["string", "string", "uint8"], ["Test yuan", "CNYT", DECIMALS])
        self.node.install(TOKEN_NAME, TOKEN.bytecode, arguments, person=issuer)
        self.node.act(issuer, TOKEN_NAME, TOKEN.call("mint", address_of(self.payer), FUNDS_MINOR * UNIT))

    def subject(self, *, resend_seconds: float = 0.05) -> ChainMakerSubject:
        found = ChainMakerSubject(
            self.node.url,
            chain_id=self.node.chain_id,
            escrow=ESCROW_NAME,
            token=TOKEN_NAME,
            token_decimals=DECIMALS,
            install_tx_id=self.install_tx_id,
            bridge=signer_of(self.bridge),
            payer=signer_of(self.payer),
            payee=signer_of(self.payee),
            currency=Currency.of("CNY"),
            wait_seconds=0.15,
            resend_seconds=resend_seconds,
            clock=self.node.now,
            move_clock=self.node.pass_time,
        )
        found.patience_seconds = 5.0
        return found

    def files(self, person: Person, directory: Path, name: str) -> dict[str, str]:
        """The person's key and certificate in files, as configurations name them."""
        key, certificate = directory / f"{name}.key", directory / f"{name}.crt"
        key.touch(0o600)
        key.write_bytes(person.key_pem)
        certificate.write_bytes(person.certificate_pem)
        return {"org_id": person.org_id, "key_path": str(key), "certificate_path": str(certificate)}


def signer_of(person: Person) -> Signer:
    return Signer(person.org_id, person.certificate_pem, person.key)


@contextmanager
def running() -> Iterator[World]:
    world = World()
    world.node.start()
    try:
        yield world
    finally:
        world.node.stop()
