"""A C2SP tlog-witness: it is shown the checkpoints of logs it knows, and cosigns only what contains all it has seen.

An intermediary runs one (`jiaozi-wallet witness`). What it has cosigned last is one file a log, replaced atomically and
durable before the answer, so a witness that was killed can never be led to cosign two histories. It keeps no leaves and
checks no transfers: its word is that the log only grows, and, where checkpoints name a block, that it has cosigned one
text only for a block, each of a later block than the one before.
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI
from fastapi import Path as PathParameter
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import SettingsConfigDict
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from kernel import strict_json
from kernel.clock import Clock, system_clock
from kernel.crypto.keys import PrivateKey
from kernel.errors import ProblemError, Refusal, RequestRefusal
from kernel.http import create_app, problems, strict_router
from kernel.settings import InvalidSettings, ServiceSettings
from kernel.transparency.checkpoints import SIZE_MEDIA_TYPE, Checkpoint, parse_hash, parse_size
from kernel.transparency.merkle import EMPTY_ROOT, PROOF_HASHES_MAX, verify_consistency
from kernel.transparency.notes import KeyKind, Note, NoteRefused, Signature, VerifierKey, cosign_text, open_note

VERSION = "1.0.0"
REQUEST_BYTES_MAX = 64 * 1024
LOGS_MAX = 10_000
_ORIGIN_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)


class WitnessRefusal(Refusal):
    """Ways in which a witness refuses a checkpoint, in order of precedence (C2SP tlog-witness, add-checkpoint)."""

    MALFORMED = "checkpoint-malformed", False, "The request is not an old size, a proof and a checkpoint."
    UNKNOWN_LOG = "log-unknown", False, "This witness does not know a log of this origin."
    NOT_SIGNED = "checkpoint-not-signed", False, "The log's signature is missing or does not verify."
    INCONSISTENT = "checkpoint-inconsistent", False, "The proof does not show that the log only grew."
    NEVER_COSIGNED = "checkpoint-never-cosigned", True, "This witness has not cosigned a checkpoint of this log yet."


STATUS_BY_WITNESS_REFUSAL: Mapping[Refusal, int] = {
    WitnessRefusal.MALFORMED: 400,
    WitnessRefusal.UNKNOWN_LOG: 404,
    WitnessRefusal.NOT_SIGNED: 403,
    WitnessRefusal.INCONSISTENT: 422,
    WitnessRefusal.NEVER_COSIGNED: 404,
}


class AnotherSize(Exception):
    """The checkpoint cosigned last is of `size`: not the request's old size, or of that size and another checkpoint."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the last cosigned size is {size}")
        self.size = size


class WitnessStore:
    """The last cosigned note of each log, one file each, named by the SHA-256 of its origin."""

    def __init__(self, directory: Path) -> None:
        """Makes the directory. Raises OSError."""
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    @contextmanager
    def exclusive(self, origin: str) -> Iterator[None]:
        """Nobody else looks at or replaces this log's file meanwhile, in this process or another."""
        name = _file_name(origin)
        with self._guard:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            descriptor = os.open(self._directory / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)

    def read(self, origin_hash: str) -> Note | None:
        """None before the first. A witness whose memory is damaged must not cosign: ProblemError."""
        try:
            return Note.parse((self._directory / f"{origin_hash}.checkpoint").read_bytes())
        except FileNotFoundError:
            return None
        except NoteRefused:
            detail = f"the record of log {origin_hash} is damaged: restore the newest one"
            raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, detail) from None

    def write(self, origin: str, note: Note) -> None:
        """Durable when it returns."""
        path = self._directory / f"{_file_name(origin)}.checkpoint"
        fresh = path.with_suffix(".new")
        with fresh.open("wb") as file:
            file.write(str(note).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


class Witness:
    """Thread-safe."""

    def __init__(
        self, *, name: str, key: PrivateKey, logs: Sequence[VerifierKey], store: WitnessStore, clock: Clock
    ) -> None:
        self._name = name
        self._key = key
        self._logs = {log.name: log for log in logs}
        self._store = store
        self._clock = clock

    @property
    def verifier_key(self) -> VerifierKey:
        return VerifierKey(self._name, KeyKind.COSIGNATURE_V1, self._key.public)

    def add_checkpoint(self, body: bytes) -> Signature:
        """The cosignature of a checkpoint that follows the last one. Source: C2SP tlog-witness, add-checkpoint.

        Raises: ProblemError(WitnessRefusal.*), AnotherSize.
        """
        old_size, proof, note, checkpoint = _parse_request(body)
        log = self._logs.get(checkpoint.origin)
        if log is None:
            raise ProblemError(WitnessRefusal.UNKNOWN_LOG)
        try:
            signature = open_note(note, [log])[log]
        except NoteRefused as error:
            raise ProblemError(WitnessRefusal.NOT_SIGNED, str(error)) from None
        if old_size > checkpoint.size:
            raise ProblemError(WitnessRefusal.MALFORMED, "the old size is larger than the checkpoint's")
        with self._store.exclusive(log.name):
            stored = self._store.read(_file_name(log.name))
            last = Checkpoint.parse(stored.text) if stored is not None else Checkpoint(log.name, 0, EMPTY_ROOT)
            is_other = checkpoint.size == last.size and checkpoint.root != last.root
            if old_size != last.size or is_other:
                raise AnotherSize(last.size)
            is_consistent = verify_consistency(
                old_size=last.size,
                old_root=last.root,
                new_size=checkpoint.size,
                new_root=checkpoint.root,
                proof=proof,
            )
            if not is_consistent:
                raise ProblemError(WitnessRefusal.INCONSISTENT)
            if stored is not None and note.text != stored.text and not _comes_after(checkpoint, last):
                if checkpoint.size == last.size:
                    raise AnotherSize(last.size)
                raise ProblemError(WitnessRefusal.INCONSISTENT, "its block does not come after the last one's")
            cosignature = cosign_text(
                note.text, name=self._name, key=self._key, timestamp=int(self._clock().timestamp())
            )
            self._store.write(log.name, Note(note.text, (signature, cosignature)))
        return cosignature

    def last(self, origin_hash: str) -> Note | None:
        """The note cosigned last, with the log's signature and ours."""
        return self._store.read(origin_hash)


def _parse_request(body: bytes) -> tuple[int, list[bytes], Note, Checkpoint]:
    head, separator, rest = body.partition(b"\n\n")
    try:
        if not separator:
            raise NoteRefused("there is no blank line before the checkpoint")
        first, *lines = head.decode("ascii").split("\n")
        if not first.startswith("old "):
            raise NoteRefused("the first line is not `old` and a size")
        if len(lines) > PROOF_HASHES_MAX:
            raise NoteRefused(f"the proof has more than {PROOF_HASHES_MAX} lines")
        note = Note.parse(rest)
        return parse_size(first[4:]), [parse_hash(line) for line in lines], note, Checkpoint.parse(note.text)
    except UnicodeDecodeError:
        raise ProblemError(WitnessRefusal.MALFORMED, "size and proof are ASCII") from None
    except NoteRefused as error:
        raise ProblemError(WitnessRefusal.MALFORMED, str(error)) from None


def _comes_after(checkpoint: Checkpoint, last: Checkpoint) -> bool:
    """By their `block` lines; the checkpoints of a log without such lines, by their sizes alone."""
    block, last_block = _block_of(checkpoint), _block_of(last)
    if last_block is None:
        return checkpoint.size > last.size
    return block is not None and block > last_block


def _block_of(checkpoint: Checkpoint) -> int | None:
    """The number on its one `block` line; None without such a line."""
    try:
        words = checkpoint.extension("block")
        return parse_size(words[0]) if words else None
    except NoteRefused:  # another log may mean something else by it
        return None


def _file_name(origin: str) -> str:
    return sha256(origin.encode()).hexdigest()


# --- the service -----------------------------------------------------------------------------------------------------

router = strict_router(tags=["witness"])


@router.post(
    "/add-checkpoint",
    operation_id="add_checkpoint",
    summary="Check that a log only grew, and cosign its checkpoint",
    response_class=Response,
    responses={
        **problems(
            WitnessRefusal.MALFORMED,
            WitnessRefusal.UNKNOWN_LOG,
            WitnessRefusal.NOT_SIGNED,
            WitnessRefusal.INCONSISTENT,
            statuses=STATUS_BY_WITNESS_REFUSAL,
        ),
        409: {"description": "The size of the checkpoint cosigned last.", "content": {SIZE_MEDIA_TYPE: {}}},
    },
)
async def add_checkpoint(request: Request) -> Response:
    """C2SP tlog-witness: `old <size>`, up to 63 lines of proof, a blank line, the checkpoint. The answer is one
    signature line."""
    witness: Witness = request.app.state.witness
    try:
        cosignature = await run_in_threadpool(witness.add_checkpoint, await request.body())
    except AnotherSize as error:
        return Response(f"{error.size}\n", status_code=409, headers={"content-type": SIZE_MEDIA_TYPE})
    return Response(cosignature.line, media_type="text/plain")


@router.get(
    "/{origin_hash}/checkpoint",
    operation_id="get_cosigned_checkpoint",
    summary="The checkpoint of a log that was cosigned last",
    response_class=Response,
    responses=problems(WitnessRefusal.NEVER_COSIGNED, statuses=STATUS_BY_WITNESS_REFUSAL),
)
def get_cosigned_checkpoint(
    origin_hash: Annotated[str, PathParameter(max_length=64, description="SHA-256 of the origin, lower-case hex.")],
    request: Request,
) -> Response:
    """C2SP tlog-witness, monitor retrieval: with the log's signature and this witness's."""
    witness: Witness = request.app.state.witness
    note = witness.last(origin_hash) if _ORIGIN_HASH.fullmatch(origin_hash) else None
    if note is None:
        raise ProblemError(WitnessRefusal.NEVER_COSIGNED)
    return Response(str(note), media_type="text/plain")


def create(witness: Witness) -> FastAPI:
    app = create_app(
        title="Jiaozi witness",
        version=VERSION,
        description="C2SP tlog-witness: cosigns a transparency log's checkpoints as long as the log only grows.",
        status_tables=[STATUS_BY_WITNESS_REFUSAL],
        body_bytes_max=REQUEST_BYTES_MAX,
    )
    app.state.witness = witness
    app.include_router(router)
    return app


class WitnessSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="JIAOZI_WITNESS_")

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8400, ge=1, le=65_535)
    name: str = Field(min_length=1, max_length=255, description="The witness's name in its cosignatures.")
    key_path: Path = Field(description="Ed25519 private key (PEM, mode 0600), used for cosigning and nothing else.")
    data_dir: Path = Field(description="Where the last cosigned checkpoint of each log is kept. Never restore it.")
    logs_path: Path = Field(description='JSON: [{"vkey": "<the log\'s verifier key>"}, ...]')


class _KnownLog(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    vkey: str = Field(max_length=512)


def load_witness(settings: WitnessSettings, *, clock: Clock = system_clock) -> Witness:
    """Raises InvalidSettings, KeyRefused, OSError."""
    try:
        found: Any = strict_json.loads(settings.logs_path.read_bytes())
        if not isinstance(found, list) or len(found) > LOGS_MAX:
            raise NoteRefused("expected a list of logs")
        logs = [VerifierKey.parse(_KnownLog.model_validate(item).vkey) for item in found]
        if any(log.kind is not KeyKind.ED25519 for log in logs) or len({log.name for log in logs}) != len(logs):
            raise NoteRefused("each log has one key of type 0x01 and an origin of its own")
        key = PrivateKey.load(settings.key_path)
        VerifierKey(settings.name, KeyKind.COSIGNATURE_V1, key.public)
    except ProblemError as error:
        raise InvalidSettings(f"JIAOZI_WITNESS_LOGS_PATH: {error.detail}") from None
    except ValidationError as error:
        raise InvalidSettings(f"JIAOZI_WITNESS_LOGS_PATH: {error.errors()[0]['msg']}") from None
    except NoteRefused as error:
        raise InvalidSettings(f"JIAOZI_WITNESS_*: {error}") from None
    return Witness(name=settings.name, key=key, logs=logs, store=WitnessStore(settings.data_dir), clock=clock)
