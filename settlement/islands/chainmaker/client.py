"""Signed requests to a ChainMaker node, over its published gRPC protocol.

A request is a payload and its sender's P-256 signature over the serialised payload. That `SendRequest` took it means
that it waits in the node's pool, no more; what became of it is found by its transaction id once it is in a block.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc  # type: ignore[import-untyped]
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from settlement.islands.chainmaker import wire_pb2 as wire

METHOD = "/api.RpcNode/SendRequest"
MESSAGE_BYTES_MAX = 32 * 1024 * 1024
REQUESTS_AT_ONCE = 50
SUCCESS, CONTRACT_FAIL, ARCHIVED_TX, ARCHIVED_BLOCK = 0, 4, 40, 41
_FILE_BYTES_MAX = 65_536


class NodeUnreachable(Exception):
    """No usable answer of the node; what was asked may or may not have happened."""


class NodeRefused(Exception):
    """The node answered no. `code` is the protocol's TxStatusCode."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        self.message = message[:300]
        super().__init__(f"the node answers {code}: {self.message}")


def address_of_contract(name: str) -> str:
    """The EVM address (checksummed) of the contract of this name."""
    return str(to_checksum_address(keccak(text=name)[12:]))


def address_of_certificate(certificate: x509.Certificate, addr_type: str) -> str:
    """Under which EVM contracts see its holder. `chainmaker`: of the subject key identifier; `ethereum`: of the public
    key. Which one it is, is in the chain's configuration (`vm.addr_type`). Raises ValueError."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("the certificate has no P-256 key")
    if addr_type == "ethereum":
        seed = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]
    else:
        try:
            seed = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        except x509.ExtensionNotFound:
            raise ValueError("the certificate has no subject key identifier") from None
    return str(to_checksum_address(keccak(seed)[12:]))


@dataclass(frozen=True, slots=True)
class Signer:
    """A member of an organisation of the chain. Its key is in no representation of it."""

    org_id: str
    certificate_pem: bytes
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.certificate_pem)

    def signed(self, payload: wire.Payload) -> wire.TxRequest:
        member = wire.Member(org_id=self.org_id, member_type=wire.CERT, member_info=self.certificate_pem)
        signature = self._key.sign(payload_bytes(payload), ec.ECDSA(hashes.SHA256()))
        return wire.TxRequest(payload=payload, sender=wire.EndorsementEntry(signer=member, signature=signature))


def payload_bytes(payload: wire.Payload) -> bytes:
    """What is signed."""
    return bytes(payload.SerializeToString(deterministic=True))


def load_signer(org_id: str, key_path: Path, certificate_path: Path) -> Signer:
    """Of a PEM key (P-256, mode 0600) and its certificate. Raises ValueError, saying nothing of the key."""
    try:
        if key_path.stat().st_mode & 0o077:
            raise ValueError(f"{key_path} must not be readable by others (mode 0600)")
        key_pem = key_path.read_bytes()[:_FILE_BYTES_MAX]
        certificate_pem = certificate_path.read_bytes()[:_FILE_BYTES_MAX]
    except OSError as error:
        raise ValueError(f"{error.filename}: {error.strerror}") from None
    try:
        key = load_pem_private_key(key_pem, password=None)
    except Exception as error:
        raise ValueError(f"{key_path} holds no private key in PEM ({type(error).__name__})") from None
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
    except ValueError:
        raise ValueError(f"{certificate_path} holds no certificate in PEM") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError(f"{key_path} is no P-256 key")
    if key.public_key() != certificate.public_key():
        raise ValueError(f"{certificate_path} is not the certificate of {key_path}")
    return Signer(org_id, certificate_pem, key)


def verified_sender(request: wire.TxRequest) -> x509.Certificate:
    """The certificate whose key signed the payload. Whether the chain knows it, only a node can say. Raises ValueError
    if it did not sign."""
    sender = request.sender
    if sender.signer.member_type != wire.CERT:
        raise ValueError("the sender shows no certificate")
    certificate = x509.load_pem_x509_certificate(sender.signer.member_info)
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("the sender's key is not P-256")
    try:
        key.verify(sender.signature, payload_bytes(request.payload), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise ValueError("the sender's signature is wrong") from None
    return certificate


def transaction_id(*parts: str) -> str:
    """64 hex digits, the same in every retry: the chain takes an id once, so a retry is the same transaction."""
    text = "\x1f".join(("jiaozi chainmaker transaction 1", *parts))
    return hashlib.sha256(text.encode()).hexdigest()


def evm_call(
    chain_id: str,
    contract: str,
    data: bytes,
    *,
    tx_id: str,
    timestamp: int,
    expiration_time: int = 0,
    gas_limit: int | None = None,
    is_query: bool = False,
) -> wire.Payload:
    """A call of an EVM contract: `method` is the selector in hex, the parameter `data` the calldata in hex. `timestamp`
    and `expiration_time` in UNIX seconds."""
    payload = wire.Payload(
        chain_id=chain_id,
        tx_type=wire.QUERY_CONTRACT if is_query else wire.INVOKE_CONTRACT,
        tx_id=tx_id,
        timestamp=timestamp,
        expiration_time=expiration_time,
        contract_name=contract,
        method=data[:4].hex(),
        parameters=[wire.KeyValuePair(key="data", value=data.hex().encode())],
    )
    if gas_limit is not None:
        payload.limit.gas_limit = gas_limit
    return payload


@dataclass(frozen=True, slots=True)
class Tls:
    """The node's certificate authority, and our own certificate where the node asks for one. All PEM."""

    ca: bytes
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    server_name: str | None = None


class Node:
    """One node of one chain. Thread-safe; nothing is dialled before the first request."""

    def __init__(
        self,
        url: str,
        signer: Signer,
        *,
        chain_id: str,
        tls: Tls | None = None,
        timeout_seconds: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`url`: grpc://host:port, or grpcs://host:port with `tls`. Raises ValueError for one that is neither."""
        parts = urlsplit(url)
        if parts.scheme not in ("grpc", "grpcs") or not parts.netloc or (parts.scheme == "grpcs") != (tls is not None):
            raise ValueError(f"{url} is no grpc://host:port, nor grpcs://host:port with a tls_ca_path")
        self.name = parts.netloc
        self.chain_id = chain_id
        self.signer = signer
        self._timeout = timeout_seconds
        self._clock = clock
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_reconnect_backoff_ms", 5_000),
        ]
        if tls is None:
            self._channel = grpc.insecure_channel(self.name, options=options)
        else:
            if tls.server_name:
                options.append(("grpc.ssl_target_name_override", tls.server_name))
            credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate)
            self._channel = grpc.secure_channel(self.name, credentials, options=options)
        self._call = self._channel.unary_unary(
            METHOD,
            request_serializer=wire.TxRequest.SerializeToString,
            response_deserializer=wire.TxResponse.FromString,
        )

    def close(self) -> None:
        self._channel.close()

    def now(self) -> int:
        """UNIX seconds."""
        return int(self._clock())

    def send(self, requests: Sequence[wire.TxRequest]) -> list[wire.TxResponse | NodeUnreachable]:
        """Transactions into the node's pool. An answer of each, in order, whatever it is."""
        return self._ask(requests)

    def query_evm(self, contract: str, calls: Sequence[bytes]) -> list[bytes]:
        """What calls of a contract return, on the newest block's state. Raises NodeUnreachable, NodeRefused."""
        payloads = [
            evm_call(self.chain_id, contract, data, tx_id=_random_id(), timestamp=self.now(), is_query=True)
            for data in calls
        ]
        return [_result(answer) for answer in self._ask([self.signer.signed(payload) for payload in payloads])]

    def query_system(self, contract: str, method: str, asked: Sequence[dict[str, str]]) -> list[bytes | NodeRefused]:
        """Answers of a system contract, one for each set of parameters. Raises NodeUnreachable."""
        requests = [
            self.signer.signed(
                wire.Payload(
                    chain_id=self.chain_id,
                    tx_type=wire.QUERY_CONTRACT,
                    tx_id=_random_id(),
                    timestamp=self.now(),
                    contract_name=contract,
                    method=method,
                    parameters=[wire.KeyValuePair(key=key, value=value.encode()) for key, value in parameters.items()],
                )
            )
            for parameters in asked
        ]
        answers: list[bytes | NodeRefused] = []
        for answer in self._ask(requests):
            try:
                answers.append(_result(answer))
            except NodeRefused as error:
                answers.append(error)
        return answers

    def transactions(self, tx_ids: Sequence[str]) -> list[wire.TransactionInfo | None]:
        """Those that are in a block; None = in none that this node has. Raises NodeUnreachable, NodeRefused."""
        found: list[wire.TransactionInfo | None] = []
        answers = self.query_system("CHAIN_QUERY", "GET_TX_BY_TX_ID", [{"txId": tx_id} for tx_id in tx_ids])
        for tx_id, answer in zip(tx_ids, answers, strict=True):
            if isinstance(answer, NodeRefused):
                if answer.code != CONTRACT_FAIL:  # the contract that looks it up fails if it is not there
                    raise answer
                found.append(None)
                continue
            info = _parsed(wire.TransactionInfo, answer)
            is_it = info.transaction.payload.tx_id == tx_id
            found.append(info if is_it else None)
        return found

    def height(self) -> int:
        """Of the newest block. Raises NodeUnreachable, NodeRefused."""
        answer = self.query_system("CHAIN_QUERY", "GET_LAST_BLOCK", [{"withRWSet": "false"}])[0]
        if isinstance(answer, NodeRefused):
            raise answer
        return int(_parsed(wire.BlockInfo, answer).block.header.block_height)

    def blocks(self, heights: Sequence[int]) -> list[wire.Block]:
        """Raises NodeUnreachable, NodeRefused (also for one that was moved to an archive)."""
        asked = [{"blockHeight": str(height), "withRWSet": "false"} for height in heights]
        found = []
        for height, answer in zip(heights, self.query_system("CHAIN_QUERY", "GET_BLOCK_BY_HEIGHT", asked), strict=True):
            if isinstance(answer, NodeRefused):
                raise answer
            block = _parsed(wire.BlockInfo, answer).block
            if block.header.block_height != height or block.header.chain_id != self.chain_id:
                raise NodeUnreachable(f"{self.name} answered another block than {height} of {self.chain_id}")
            found.append(block)
        return found

    def contract_version(self, contract: str) -> str:
        """Of the contract as it is installed now. Raises NodeUnreachable, NodeRefused."""
        answer = self.query_system("CONTRACT_MANAGE", "GET_CONTRACT_INFO", [{"CONTRACT_NAME": contract}])[0]
        if isinstance(answer, NodeRefused):
            raise answer
        try:
            return str(json.loads(answer)["version"])
        except (ValueError, TypeError, KeyError):
            raise NodeUnreachable(f"{self.name} answered no description of {contract}") from None

    def _ask(self, requests: Sequence[wire.TxRequest]) -> list[wire.TxResponse | NodeUnreachable]:
        answers: list[wire.TxResponse | NodeUnreachable] = []
        for start in range(0, len(requests), REQUESTS_AT_ONCE):
            chunk = requests[start : start + REQUESTS_AT_ONCE]
            for call in [self._call.future(request, timeout=self._timeout) for request in chunk]:
                answers.append(self._answer(call))
        return answers

    def _answer(self, call: Any) -> wire.TxResponse | NodeUnreachable:
        try:
            found: wire.TxResponse = call.result()
        except grpc.RpcError as error:
            return NodeUnreachable(f"{self.name}: {error.code().name}: {error.details()}"[:200])
        except (grpc.FutureTimeoutError, grpc.FutureCancelledError, ValueError) as error:
            return NodeUnreachable(f"{self.name}: {type(error).__name__}")
        return found


def _result(answer: wire.TxResponse | NodeUnreachable) -> bytes:
    if isinstance(answer, NodeUnreachable):
        raise answer
    if answer.code != SUCCESS or answer.contract_result.code != 0:
        raise NodeRefused(answer.code, answer.contract_result.message or answer.message)
    return bytes(answer.contract_result.result)


def _parsed(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise NodeUnreachable(f"a node answered no {kind.DESCRIPTOR.name} where one was due") from None


def _random_id() -> str:
    return secrets.token_hex(32)
