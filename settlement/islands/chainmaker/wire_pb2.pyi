# ruff: noqa
# fmt: off
# mypy: ignore-errors
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TxType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INVOKE_CONTRACT: _ClassVar[TxType]
    QUERY_CONTRACT: _ClassVar[TxType]

class MemberType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CERT: _ClassVar[MemberType]
    CERT_HASH: _ClassVar[MemberType]
    PUBLIC_KEY: _ClassVar[MemberType]
INVOKE_CONTRACT: TxType
QUERY_CONTRACT: TxType
CERT: MemberType
CERT_HASH: MemberType
PUBLIC_KEY: MemberType

class Member(_message.Message):
    __slots__ = ("org_id", "member_type", "member_info")
    ORG_ID_FIELD_NUMBER: _ClassVar[int]
    MEMBER_TYPE_FIELD_NUMBER: _ClassVar[int]
    MEMBER_INFO_FIELD_NUMBER: _ClassVar[int]
    org_id: str
    member_type: MemberType
    member_info: bytes
    def __init__(self, org_id: _Optional[str] = ..., member_type: _Optional[_Union[MemberType, str]] = ..., member_info: _Optional[bytes] = ...) -> None: ...

class EndorsementEntry(_message.Message):
    __slots__ = ("signer", "signature")
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    signer: Member
    signature: bytes
    def __init__(self, signer: _Optional[_Union[Member, _Mapping]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class KeyValuePair(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: bytes
    def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...

class Limit(_message.Message):
    __slots__ = ("gas_limit", "gas_price")
    GAS_LIMIT_FIELD_NUMBER: _ClassVar[int]
    GAS_PRICE_FIELD_NUMBER: _ClassVar[int]
    gas_limit: int
    gas_price: int
    def __init__(self, gas_limit: _Optional[int] = ..., gas_price: _Optional[int] = ...) -> None: ...

class Payload(_message.Message):
    __slots__ = ("chain_id", "tx_type", "tx_id", "timestamp", "expiration_time", "contract_name", "method", "parameters", "sequence", "limit")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    TX_TYPE_FIELD_NUMBER: _ClassVar[int]
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    EXPIRATION_TIME_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_NAME_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    chain_id: str
    tx_type: TxType
    tx_id: str
    timestamp: int
    expiration_time: int
    contract_name: str
    method: str
    parameters: _containers.RepeatedCompositeFieldContainer[KeyValuePair]
    sequence: int
    limit: Limit
    def __init__(self, chain_id: _Optional[str] = ..., tx_type: _Optional[_Union[TxType, str]] = ..., tx_id: _Optional[str] = ..., timestamp: _Optional[int] = ..., expiration_time: _Optional[int] = ..., contract_name: _Optional[str] = ..., method: _Optional[str] = ..., parameters: _Optional[_Iterable[_Union[KeyValuePair, _Mapping]]] = ..., sequence: _Optional[int] = ..., limit: _Optional[_Union[Limit, _Mapping]] = ...) -> None: ...

class TxRequest(_message.Message):
    __slots__ = ("payload", "sender", "endorsers", "payer")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    ENDORSERS_FIELD_NUMBER: _ClassVar[int]
    PAYER_FIELD_NUMBER: _ClassVar[int]
    payload: Payload
    sender: EndorsementEntry
    endorsers: _containers.RepeatedCompositeFieldContainer[EndorsementEntry]
    payer: EndorsementEntry
    def __init__(self, payload: _Optional[_Union[Payload, _Mapping]] = ..., sender: _Optional[_Union[EndorsementEntry, _Mapping]] = ..., endorsers: _Optional[_Iterable[_Union[EndorsementEntry, _Mapping]]] = ..., payer: _Optional[_Union[EndorsementEntry, _Mapping]] = ...) -> None: ...

class ContractEvent(_message.Message):
    __slots__ = ("topic", "tx_id", "contract_name", "contract_version", "event_data", "index_count")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_NAME_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_VERSION_FIELD_NUMBER: _ClassVar[int]
    EVENT_DATA_FIELD_NUMBER: _ClassVar[int]
    INDEX_COUNT_FIELD_NUMBER: _ClassVar[int]
    topic: str
    tx_id: str
    contract_name: str
    contract_version: str
    event_data: _containers.RepeatedScalarFieldContainer[str]
    index_count: int
    def __init__(self, topic: _Optional[str] = ..., tx_id: _Optional[str] = ..., contract_name: _Optional[str] = ..., contract_version: _Optional[str] = ..., event_data: _Optional[_Iterable[str]] = ..., index_count: _Optional[int] = ...) -> None: ...

class ContractResult(_message.Message):
    __slots__ = ("code", "result", "message", "gas_used", "contract_event")
    CODE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    GAS_USED_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_EVENT_FIELD_NUMBER: _ClassVar[int]
    code: int
    result: bytes
    message: str
    gas_used: int
    contract_event: _containers.RepeatedCompositeFieldContainer[ContractEvent]
    def __init__(self, code: _Optional[int] = ..., result: _Optional[bytes] = ..., message: _Optional[str] = ..., gas_used: _Optional[int] = ..., contract_event: _Optional[_Iterable[_Union[ContractEvent, _Mapping]]] = ...) -> None: ...

class TxResponse(_message.Message):
    __slots__ = ("code", "message", "contract_result", "tx_id", "tx_timestamp", "tx_block_height")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_RESULT_FIELD_NUMBER: _ClassVar[int]
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    TX_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    TX_BLOCK_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    contract_result: ContractResult
    tx_id: str
    tx_timestamp: int
    tx_block_height: int
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., contract_result: _Optional[_Union[ContractResult, _Mapping]] = ..., tx_id: _Optional[str] = ..., tx_timestamp: _Optional[int] = ..., tx_block_height: _Optional[int] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("code", "contract_result", "rw_set_hash", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_RESULT_FIELD_NUMBER: _ClassVar[int]
    RW_SET_HASH_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    contract_result: ContractResult
    rw_set_hash: bytes
    message: str
    def __init__(self, code: _Optional[int] = ..., contract_result: _Optional[_Union[ContractResult, _Mapping]] = ..., rw_set_hash: _Optional[bytes] = ..., message: _Optional[str] = ...) -> None: ...

class Transaction(_message.Message):
    __slots__ = ("payload", "sender", "endorsers", "result", "payer")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    ENDORSERS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    PAYER_FIELD_NUMBER: _ClassVar[int]
    payload: Payload
    sender: EndorsementEntry
    endorsers: _containers.RepeatedCompositeFieldContainer[EndorsementEntry]
    result: Result
    payer: EndorsementEntry
    def __init__(self, payload: _Optional[_Union[Payload, _Mapping]] = ..., sender: _Optional[_Union[EndorsementEntry, _Mapping]] = ..., endorsers: _Optional[_Iterable[_Union[EndorsementEntry, _Mapping]]] = ..., result: _Optional[_Union[Result, _Mapping]] = ..., payer: _Optional[_Union[EndorsementEntry, _Mapping]] = ...) -> None: ...

class TransactionInfo(_message.Message):
    __slots__ = ("transaction", "block_height", "block_hash", "tx_index", "block_timestamp")
    TRANSACTION_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASH_FIELD_NUMBER: _ClassVar[int]
    TX_INDEX_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    transaction: Transaction
    block_height: int
    block_hash: bytes
    tx_index: int
    block_timestamp: int
    def __init__(self, transaction: _Optional[_Union[Transaction, _Mapping]] = ..., block_height: _Optional[int] = ..., block_hash: _Optional[bytes] = ..., tx_index: _Optional[int] = ..., block_timestamp: _Optional[int] = ...) -> None: ...

class BlockHeader(_message.Message):
    __slots__ = ("block_version", "block_type", "chain_id", "block_height", "block_hash", "pre_block_hash", "block_timestamp")
    BLOCK_VERSION_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TYPE_FIELD_NUMBER: _ClassVar[int]
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASH_FIELD_NUMBER: _ClassVar[int]
    PRE_BLOCK_HASH_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    block_version: int
    block_type: int
    chain_id: str
    block_height: int
    block_hash: bytes
    pre_block_hash: bytes
    block_timestamp: int
    def __init__(self, block_version: _Optional[int] = ..., block_type: _Optional[int] = ..., chain_id: _Optional[str] = ..., block_height: _Optional[int] = ..., block_hash: _Optional[bytes] = ..., pre_block_hash: _Optional[bytes] = ..., block_timestamp: _Optional[int] = ...) -> None: ...

class Block(_message.Message):
    __slots__ = ("header", "txs")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    TXS_FIELD_NUMBER: _ClassVar[int]
    header: BlockHeader
    txs: _containers.RepeatedCompositeFieldContainer[Transaction]
    def __init__(self, header: _Optional[_Union[BlockHeader, _Mapping]] = ..., txs: _Optional[_Iterable[_Union[Transaction, _Mapping]]] = ...) -> None: ...

class BlockInfo(_message.Message):
    __slots__ = ("block",)
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    block: Block
    def __init__(self, block: _Optional[_Union[Block, _Mapping]] = ...) -> None: ...
