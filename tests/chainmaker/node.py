"""A double of a ChainMaker node: a real gRPC server on loopback, written from the published wire format.

It shares the messages (`wire.proto`) with the adapter and nothing else: addresses, signatures, calls and events are
worked out here anew, as the public node's sources and the protocol's documents say.

* Members are certificates (P-256) of organisations; a request counts if its sender's signature over the payload is good
  and its certificate is its organisation's.
* `SendRequest` of a transaction is admission to the pool. Blocks are made from it a little later, and only they count.
* A transaction id is taken once, for ever. A transaction of another chain, out of its time or expired is refused.
* Contracts are EVM bytecode, run by py-evm, installed under a name by an endorsed transaction.

Not shown by it: consensus, several nodes, TLS by mutual certificates, gas accounts, archives, SM2.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc  # type: ignore[import-untyped]
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID
from eth.constants import BLANK_ROOT_HASH, ZERO_ADDRESS, ZERO_HASH32
from eth.db.atomic import AtomicDB
from eth.db.backends.memory import MemoryDB
from eth.vm.execution_context import ExecutionContext
from eth.vm.forks.london import LondonVM
from eth.vm.message import Message
from eth_utils.crypto import keccak

from settlement.islands.chainmaker import wire_pb2 as wire

logging.getLogger("eth").setLevel(logging.WARNING)

CHAIN_ID = "chain1"
GAS = 1_000_000_000
TX_TIMEOUT_SECONDS = 600
SUCCESS, CONTRACT_FAIL, INTERNAL_ERROR = 0, 4, 5


@dataclass(frozen=True)
class Person:
    """A member's key and certificate, in PEM."""

    org_id: str
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def endorse(self, payload: wire.Payload) -> wire.EndorsementEntry:
        signature = self.key.sign(payload.SerializeToString(), ec.ECDSA(hashes.SHA256()))
        member = wire.Member(org_id=self.org_id, member_type=wire.CERT, member_info=self.certificate_pem)
        return wire.EndorsementEntry(signer=member, signature=signature)


class Organisation:
    def __init__(self, org_id: str) -> None:
        self.org_id = org_id
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.ca = self._issue(f"ca.{org_id}", self._key, is_ca=True)

    def member(self, name: str, *, host: str | None = None) -> Person:
        key = ec.generate_private_key(ec.SECP256R1())
        return Person(self.org_id, key, self._issue(name, key, host=host))

    def _issue(
        self, name: str, key: ec.EllipticCurvePrivateKey, *, is_ca: bool = False, host: str | None = None
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"ca.{self.org_id}")])
        point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=3_650))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier(hashlib.sha256(point).digest()), critical=False)
        )
        if host is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        return builder.sign(self._key, hashes.SHA256())


@dataclass
class _Contract:
    name: str
    version: str
    address: bytes


class _Refused(Exception):
    pass


class ChainNode:
    """`url` after `start()`. Switches: `lose_acks` (the next so many transactions are committed and their answer is
    lost), `is_sealing` (False: the pool waits), `block_seconds`."""

    def __init__(self, *, chain_id: str = CHAIN_ID, block_seconds: float = 0.005) -> None:
        self.chain_id = chain_id
        self.block_seconds = block_seconds
        self.organisations = {name: Organisation(name) for name in ("bank-a", "bank-b", "bridge")}
        self.admins = [org.member(f"admin.{name}") for name, org in self.organisations.items()]
        self.lose_acks = 0
        self.is_sealing = True
        self.received: list[wire.TxRequest] = []
        """Every transaction that was sent here, taken or not."""
        self._offset = 0
        self._contracts: dict[str, _Contract] = {}
        self._blocks: list[wire.Block] = []
        self._where: dict[str, tuple[int, int]] = {}
        self._pool: dict[str, wire.TxRequest] = {}
        self._changed = threading.Condition(threading.RLock())
        self._is_over = False
        self._state: Any = LondonVM.get_state_class()(AtomicDB(MemoryDB()), self._context(), BLANK_ROOT_HASH)
        self._seal()  # genesis
        self._server: Any = None
        self._sealer = threading.Thread(target=self._run, daemon=True)
        self.url = ""

    # --- running

    def start(self, *, tls: Person | None = None) -> str:
        handler = grpc.unary_unary_rpc_method_handler(
            self._send_request,
            request_deserializer=wire.TxRequest.FromString,
            response_serializer=wire.TxResponse.SerializeToString,
        )
        self._server = grpc.server(ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("api.RpcNode", {"SendRequest": handler}),)
        )
        if tls is None:
            self.url = f"grpc://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        else:
            credentials = grpc.ssl_server_credentials([(tls.key_pem, tls.certificate_pem)])
            self.url = f"grpcs://127.0.0.1:{self._server.add_secure_port('127.0.0.1:0', credentials)}"
        self._server.start()
        self._sealer.start()
        return self.url

    def stop(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        self._server.stop(None)
        self._sealer.join(5)

    def now(self) -> float:
        return time.time() + self._offset

    def pass_time(self, seconds: int) -> None:
        with self._changed:
            self._offset += seconds
            self._seal()

    # --- the one call

    def _send_request(self, request: wire.TxRequest, context: Any) -> wire.TxResponse:
        payload = request.payload
        try:
            if payload.chain_id != self.chain_id:
                raise _Refused(f"chain not found, {payload.chain_id}")
            sender = self._verified(request.sender, payload)
            if payload.tx_type == wire.QUERY_CONTRACT:
                return self._query(payload, sender)
            with self._changed:
                self.received.append(request)
            self._admit(request)
        except _Refused as error:
            return wire.TxResponse(code=INTERNAL_ERROR, message=str(error), tx_id=payload.tx_id)
        with self._changed:
            if self.lose_acks > 0:
                self.lose_acks -= 1
                self._changed.wait_for(lambda: payload.tx_id in self._where, 5)
                context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")
        return wire.TxResponse(code=SUCCESS, message="OK", tx_id=payload.tx_id)

    def _verified(self, entry: wire.EndorsementEntry, payload: wire.Payload) -> x509.Certificate:
        organisation = self.organisations.get(entry.signer.org_id)
        if organisation is None or entry.signer.member_type != 0:
            raise _Refused("tx verify failed, member is not known")
        try:
            certificate = x509.load_pem_x509_certificate(entry.signer.member_info)
            certificate.verify_directly_issued_by(organisation.ca)
            key = certificate.public_key()
            if not isinstance(key, ec.EllipticCurvePublicKey):
                raise _Refused("tx verify failed, key type")
            key.verify(entry.signature, payload.SerializeToString(), ec.ECDSA(hashes.SHA256()))
        except (ValueError, TypeError, InvalidSignature):
            raise _Refused("tx verify failed, authentication failed") from None
        return certificate

    def _admit(self, request: wire.TxRequest) -> None:
        payload = request.payload
        now = self.now()
        if not 1 <= len(payload.tx_id) <= 64:
            raise _Refused("tx verify failed, tx id length")
        if abs(now - payload.timestamp) > TX_TIMEOUT_SECONDS:
            raise _Refused("tx add failed, tx timestamp error")
        if payload.expiration_time and now > payload.expiration_time:
            raise _Refused("tx add failed, tx expired")
        if payload.contract_name != "CONTRACT_MANAGE" and payload.contract_name not in self._contracts:
            raise _Refused("tx add failed, contract not found")
        with self._changed:
            if payload.tx_id in self._pool or payload.tx_id in self._where:
                raise _Refused("tx add failed, tx duplicate")
            self._pool[payload.tx_id] = request
            self._changed.notify_all()

    # --- blocks

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_over or (self._pool and self.is_sealing), 0.2)
                if self._is_over:
                    return
            time.sleep(self.block_seconds)
            with self._changed:
                if self._pool and self.is_sealing:
                    self._seal()

    def _seal(self) -> None:
        with self._changed:
            height = len(self._blocks)
            taken, self._pool = self._pool, {}
            transactions = []
            for place, request in enumerate(taken.values()):
                result = self._execute(request)
                self._state.lock_changes()
                transactions.append(
                    wire.Transaction(
                        payload=request.payload, sender=request.sender, endorsers=request.endorsers, result=result
                    )
                )
                self._where[request.payload.tx_id] = (height, place)
            header = wire.BlockHeader(chain_id=self.chain_id, block_height=height, block_timestamp=int(self.now()))
            header.pre_block_hash = self._blocks[-1].header.block_hash if self._blocks else bytes(32)
            block = wire.Block(header=header, txs=transactions)
            block.header.block_hash = hashlib.sha256(block.SerializeToString()).digest()
            self._blocks.append(block)
            self._changed.notify_all()

    def _execute(self, request: wire.TxRequest) -> wire.Result:
        payload = request.payload
        values = {item.key: item.value for item in payload.parameters}
        sender = _address(x509.load_pem_x509_certificate(request.sender.signer.member_info))
        if payload.contract_name == "CONTRACT_MANAGE":
            return self._install(request, values, sender)
        contract = self._contracts[payload.contract_name]
        result = self._call(contract, payload, sender)
        return wire.Result(code=SUCCESS if result.code == 0 else CONTRACT_FAIL, contract_result=result)

    def _install(self, request: wire.TxRequest, values: dict[str, bytes], sender: bytes) -> wire.Result:
        name, version = values["CONTRACT_NAME"].decode(), values["CONTRACT_VERSION"].decode()
        endorsing = set()
        for entry in request.endorsers:
            try:
                certificate = self._verified(entry, request.payload)
            except _Refused:
                continue
            if certificate in [admin.certificate for admin in self.admins]:
                endorsing.add(entry.signer.org_id)
        is_upgrade = request.payload.method == "UPGRADE_CONTRACT"
        if 2 * len(endorsing) <= len(self.organisations) or (name in self._contracts) != is_upgrade:
            failed = wire.ContractResult(code=1, message="no majority of endorsements, or the name is taken")
            return wire.Result(code=CONTRACT_FAIL, contract_result=failed)
        address = keccak(text=name)[12:]
        if not is_upgrade:
            code = values["CONTRACT_BYTECODE"] + bytes.fromhex(values.get("data", b"").decode())
            message = _message(sender, to=b"", data=b"", code=code, create_address=address)
            computation = self._apply(message, sender, is_new=True)
            if computation.is_error:
                return wire.Result(code=CONTRACT_FAIL, contract_result=wire.ContractResult(code=1, message="failed"))
        self._contracts[name] = _Contract(name, version, address)
        return wire.Result(code=SUCCESS, contract_result=wire.ContractResult(code=0))

    # --- the EVM

    def _context(self) -> ExecutionContext:
        # Contracts see the newest block's height and time, not those of the one being made.
        last = self._blocks[-1].header if self._blocks else None
        return ExecutionContext(
            coinbase=ZERO_ADDRESS,
            timestamp=last.block_timestamp if last else 0,
            block_number=last.block_height if last else 0,  # type: ignore[arg-type]
            difficulty=0,
            mix_hash=ZERO_HASH32,
            gas_limit=GAS,
            prev_hashes=(),
            chain_id=1,
            base_fee_per_gas=0,
        )

    def _apply(self, message: Message, sender: bytes, *, is_new: bool = False) -> Any:
        state = self._state
        state.execution_context = self._context()
        transaction = state.transaction_context_class(gas_price=1, origin=sender)
        kind = state.computation_class
        return (kind.apply_create_message if is_new else kind.apply_message)(state, message, transaction)

    def _call(self, contract: _Contract, payload: wire.Payload, sender: bytes) -> wire.ContractResult:
        method = payload.method.removeprefix("0x")
        if len(method) != 8:
            return wire.ContractResult(code=1, message="contract verify failed, method length is not 8")
        values = {item.key: item.value for item in payload.parameters}
        try:
            data = bytes.fromhex(values.get("data", b"").decode().removeprefix("0x"))
        except ValueError:
            return wire.ContractResult(code=1, message="params is not hex encode string")
        code = self._state.get_code(contract.address)
        message = _message(sender, to=contract.address, data=data, code=code)
        computation = self._apply(message, sender)
        if computation.is_error:
            why = "failed to execute evm contract, revert instruction was encountered during execution"
            return wire.ContractResult(code=1, message=why)
        events = []
        for _, topics, log_data in computation.get_log_entries():
            words = [int(topic).to_bytes(32, "big").hex() for topic in topics]
            events.append(
                wire.ContractEvent(
                    topic=words[0] if words else "",
                    tx_id=payload.tx_id,
                    contract_name=contract.name,  # of the called contract, whichever one's log it is
                    contract_version=contract.version,
                    event_data=[*words[1:], bytes(log_data).hex()],
                )
            )
        return wire.ContractResult(code=0, result=bytes(computation.output), contract_event=events)

    # --- queries

    def _query(self, payload: wire.Payload, certificate: x509.Certificate) -> wire.TxResponse:
        values = {item.key: item.value.decode() for item in payload.parameters}
        with self._changed:
            if payload.contract_name in self._contracts:
                taken = self._state.snapshot()
                result = self._call(self._contracts[payload.contract_name], payload, _address(certificate))
                self._state.revert(taken)
            else:
                found = self._system(payload.contract_name, payload.method, values)
                result = wire.ContractResult(code=1, message="not found") if found is None else found
        code = SUCCESS if result.code == 0 else CONTRACT_FAIL
        return wire.TxResponse(code=code, contract_result=result, tx_id=payload.tx_id)

    def _system(self, contract: str, method: str, values: dict[str, str]) -> wire.ContractResult | None:
        content: bytes
        match contract, method:
            case "CHAIN_QUERY", "GET_TX_BY_TX_ID" if values["txId"] in self._where:
                height, place = self._where[values["txId"]]
                block = self._blocks[height]
                info = wire.TransactionInfo(
                    transaction=block.txs[place],
                    block_height=height,
                    block_hash=block.header.block_hash,
                    tx_index=place,
                    block_timestamp=block.header.block_timestamp,
                )
                content = info.SerializeToString()
            case "CHAIN_QUERY", "GET_LAST_BLOCK":
                content = wire.BlockInfo(block=self._blocks[-1]).SerializeToString()
            case "CHAIN_QUERY", "GET_BLOCK_BY_HEIGHT" if int(values["blockHeight"]) < len(self._blocks):
                content = wire.BlockInfo(block=self._blocks[int(values["blockHeight"])]).SerializeToString()
            case "CONTRACT_MANAGE", "GET_CONTRACT_INFO" if values["CONTRACT_NAME"] in self._contracts:
                found = self._contracts[values["CONTRACT_NAME"]]
                content = json.dumps({"name": found.name, "version": found.version, "runtime_type": 5}).encode()
            case _:
                return None
        return wire.ContractResult(code=0, result=content)

    # --- what tests do by themselves, past the adapter

    def act(self, person: Person, contract: str, data: bytes) -> None:
        """A member's own transaction, in a block. Raises RuntimeError if it failed."""
        payload = wire.Payload(
            contract_name=contract, method=data[:4].hex(), parameters=[_pair("data", data.hex().encode())]
        )
        self._done(person, payload, [])

    def install(
        self,
        name: str,
        bytecode: bytes,
        arguments: bytes = b"",
        *,
        person: Person,
        version: str = "1.0",
        upgrade: bool = False,
    ) -> str:
        """The transaction id of the installation."""
        payload = wire.Payload(
            contract_name="CONTRACT_MANAGE",
            method="UPGRADE_CONTRACT" if upgrade else "INIT_CONTRACT",
            parameters=[
                _pair("CONTRACT_NAME", name.encode()),
                _pair("CONTRACT_VERSION", version.encode()),
                _pair("CONTRACT_RUNTIME_TYPE", b"EVM"),
                _pair("CONTRACT_BYTECODE", bytecode),
                _pair("data", arguments.hex().encode()),
            ],
        )
        self._done(person, payload, self.admins)
        return str(payload.tx_id)

    def _done(self, person: Person, payload: wire.Payload, endorsers: list[Person]) -> None:
        payload.chain_id, payload.timestamp = self.chain_id, int(self.now())
        payload.tx_id = hashlib.sha256(payload.SerializeToString() + str(time.monotonic_ns()).encode()).hexdigest()
        request = wire.TxRequest(payload=payload, sender=person.endorse(payload))
        request.endorsers.extend(admin.endorse(payload) for admin in endorsers)
        self._verified(request.sender, payload)
        self._admit(request)
        with self._changed:
            if payload.tx_id not in self._where:
                self._seal()
            height, place = self._where[payload.tx_id]
            result = self._blocks[height].txs[place].result
        if result.code != SUCCESS:
            raise RuntimeError(f"a transaction of the test's own failed: {result.contract_result.message}")


def address_of(person: Person) -> str:
    """Under which contracts see the member; lower case, no checksum."""
    return "0x" + _address(person.certificate).hex()


def _address(certificate: x509.Certificate) -> bytes:
    ski = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    return keccak(ski)[12:]


def _message(sender: bytes, *, to: bytes, data: bytes, code: bytes, create_address: bytes | None = None) -> Message:
    made: Any = Message  # its annotations are of newtypes of bytes
    found: Message = made(gas=GAS, to=to, sender=sender, value=0, data=data, code=code, create_address=create_address)
    return found


def _pair(key: str, value: bytes) -> wire.KeyValuePair:
    return wire.KeyValuePair(key=key, value=value)
