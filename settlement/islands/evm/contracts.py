"""The compiled contracts and their calls, by the contract ABI. What is compiled of what: `tests/evm/compile.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import UUID

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

HERE = Path(__file__).resolve().parent
ADDRESS_ZERO = "0x" + "00" * 20


class AbiMismatch(ValueError):
    """Bytes that are no call, answer or event of this contract."""


@dataclass(frozen=True, slots=True)
class Function:
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    selector: bytes


@dataclass(frozen=True, slots=True)
class Event:
    name: str
    topic: bytes
    fields: tuple[tuple[str, str, bool], ...]
    """(name, type, is indexed) of each."""


class Contract:
    """A contract's ABI and bytecode. Addresses are checksummed strings, bytes32 are bytes, integers are ints."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.name = str(document["contract"])
        self.bytecode = bytes.fromhex(document["bytecode"])
        self.runtime = bytes.fromhex(document["runtime"])
        """The code that stands at the contract's address, where it has no immutable values."""
        self._abi: list[dict[str, Any]] = list(document["abi"])

    @staticmethod
    def load(path: Path) -> Contract:
        return Contract(json.loads(path.read_text("utf-8")))

    @cached_property
    def functions(self) -> dict[str, Function]:
        return {
            item["name"]: Function(item["name"], _types(item["inputs"]), _types(item["outputs"]), _id(item)[:4])
            for item in self._abi
            if item["type"] == "function"
        }

    @cached_property
    def events(self) -> dict[bytes, Event]:
        found = [
            Event(item["name"], _id(item), tuple((it["name"], _type(it), it["indexed"]) for it in item["inputs"]))
            for item in self._abi
            if item["type"] == "event"
        ]
        return {event.topic: event for event in found}

    @cached_property
    def _errors(self) -> dict[bytes, str]:
        return {_id(item)[:4]: item["name"] for item in self._abi if item["type"] == "error"}

    def topic(self, event: str) -> bytes:
        return next(found.topic for found in self.events.values() if found.name == event)

    def deployment(self, arguments: Sequence[object] = ()) -> bytes:
        types = next((_types(item["inputs"]) for item in self._abi if item["type"] == "constructor"), ())
        return self.bytecode + encode(types, arguments)

    def call(self, function: str, *arguments: object) -> bytes:
        """Calldata."""
        found = self.functions[function]
        return found.selector + encode(found.inputs, arguments)

    def arguments(self, function: str, data: bytes) -> tuple[Any, ...]:
        """What calldata asks of `function`. Raises AbiMismatch unless it is such a call and nothing more."""
        found = self.functions[function]
        if data[:4] != found.selector:
            raise AbiMismatch(f"not a call of {function}")
        values = _decoded(found.inputs, data[4:])
        if encode(found.inputs, values) != data[4:]:
            raise AbiMismatch(f"a call of {function} with more in it")
        return values

    def result(self, function: str, data: bytes) -> tuple[Any, ...]:
        """The answer of a call. Raises AbiMismatch."""
        return _decoded(self.functions[function].outputs, data)

    def event(self, topics: Sequence[bytes], data: bytes) -> tuple[str, dict[str, Any]]:
        """(name, fields) of a log. Raises AbiMismatch."""
        found = self.events.get(topics[0]) if topics else None
        if found is None:
            raise AbiMismatch("not an event of this contract")
        indexed = [field for field in found.fields if field[2]]
        plain = [field for field in found.fields if not field[2]]
        if len(topics) != len(indexed) + 1:
            raise AbiMismatch(f"{found.name} with another number of topics")
        values = {name: _decoded((kind,), topic)[0] for (name, kind, _), topic in zip(indexed, topics[1:], strict=True)}
        values |= dict(zip([name for name, _, _ in plain], _decoded([kind for _, kind, _ in plain], data), strict=True))
        return found.name, values

    def error_name(self, output: bytes) -> str | None:
        """The custom error in a revert's output."""
        return self._errors.get(output[:4])


ESCROW = Contract.load(HERE / "escrow.json")
TOKEN = Contract.load(HERE / "token.json")


def chain_id_of_hold(hold_id: UUID) -> bytes:
    """A UUID as the contract's bytes32: the 16 bytes, right-aligned."""
    return hold_id.int.to_bytes(32, "big")


def uuid_of(word: bytes) -> UUID | None:
    """The other way; None if it was not made from a UUID."""
    return UUID(bytes=word[16:]) if len(word) == 32 and not any(word[:16]) else None


def _types(items: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(_type(item) for item in items)


def _type(item: Mapping[str, Any]) -> str:
    kind = str(item["type"])
    return f"({','.join(_types(item['components']))}){kind[5:]}" if kind.startswith("tuple") else kind


def _id(item: Mapping[str, Any]) -> bytes:
    return bytes(keccak(text=f"{item['name']}({','.join(_types(item['inputs']))})"))


def _decoded(types: Sequence[str], data: bytes) -> tuple[Any, ...]:
    try:
        found = decode(types, data)
    except (DecodingError, OverflowError, ValueError) as error:
        raise AbiMismatch(f"not {','.join(types)}: {type(error).__name__}") from None
    return tuple(_checksummed(kind, value) for kind, value in zip(types, found, strict=True))


def _checksummed(kind: str, value: Any) -> Any:
    return to_checksum_address(value) if kind == "address" else value
