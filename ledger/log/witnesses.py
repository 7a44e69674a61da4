"""Cosignatures: each new checkpoint is shown to every witness, in a thread of its own that nobody waits for.

C2SP tlog-witness. A witness that is away or slow is shown the newest checkpoint when it is back: those between are
covered by it. One that refuses a checkpoint as inconsistent (422; 409 at the very size it has cosigned last) has seen
another history of this log: that is an incident (`incidents`),
said by the ledger's health until that witness cosigns again or an operator has acknowledged it.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import psycopg
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError

from kernel.clock import Clock, system_clock
from kernel.database import Database, OutcomeUnknown
from kernel.transparency.checkpoints import SIZE_MEDIA_TYPE
from kernel.transparency.notes import Note, NoteRefused, Signature, VerifierKey, open_note, parse_signatures, to_base64
from kernel.transparency.tiles import TiledTree
from ledger.log import incidents, queries
from ledger.log.sealer import Sealed
from ledger.log.tables import log_cosignature

ANSWER_SECONDS_MAX = 10.0
ANSWER_BYTES_MAX = 64 * 1024
RETRY_SECONDS_FIRST = 1.0
RETRY_SECONDS_MAX = 30.0
REFUSED_RETRY_SECONDS_MAX = 5.0
"""A witness that refuses is asked more often: an acknowledgement, or its repair, is to be seen soon."""
CONFLICTS_MAX = 3
_SIZE_LINE = re.compile(rb"(0|[1-9][0-9]{0,18})\n?")

log = logging.getLogger("jiaozi.ledger.log.witness")

TellWitnessStatus = Callable[[str, str | None], None]
"""Is told (witness, why it refuses the log or None)."""


class WitnessRefused(Exception):
    """The witness has seen another history than ours."""


class WitnessAway(Exception):
    """No usable answer: to be tried again."""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    media_type: str
    body: bytes


class WitnessPusher:
    """One witness."""

    def __init__(
        self,
        database: Database,
        *,
        url: str,
        key: VerifierKey,
        tell: TellWitnessStatus,
        clock: Clock = system_clock,
    ) -> None:
        self._database = database
        self._url = url.rstrip("/") + "/add-checkpoint"
        self._key = key
        self._tell = tell
        self._clock = clock
        self._newest: Sealed | None = None
        self._cosigned_size: int | None = None
        """What the witness has cosigned last; None = not known in this process yet."""
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"witness {key.name}", daemon=True)
        self._client = httpx.Client(timeout=ANSWER_SECONDS_MAX, trust_env=False, follow_redirects=False)

    def start(self) -> None:
        self._thread.start()

    def offer(self, sealed: Sealed) -> None:
        """A checkpoint to be cosigned; it replaces one that still waits."""
        with self._changed:
            self._newest = sealed
            self._changed.notify()

    def _run(self) -> None:
        done: Sealed | None = None
        pause = 0.0
        while True:
            time.sleep(pause)
            with self._changed:
                while self._newest is None or self._newest == done:
                    self._changed.wait()
                sealed = self._newest
            try:
                self.push(sealed)
                done, pause = sealed, 0.0
                self._tell(self._key.name, None)
                continue
            except WitnessRefused as error:
                reason = f"witness refused: fork ({self._key.name}: {error})"
                is_acknowledged = self._note(sealed, str(error))
                log.log(logging.WARNING if is_acknowledged else logging.CRITICAL, "%s", reason)
                self._tell(self._key.name, None if is_acknowledged else reason)
                pause = min(pause, REFUSED_RETRY_SECONDS_MAX / 2)
            except (WitnessAway, SQLAlchemyError, psycopg.Error, OutcomeUnknown, LookupError) as error:
                log.warning("witness %s: %s", self._key.name, str(error).splitlines()[0] if str(error) else error)
            except Exception:
                log.exception("witness %s: the checkpoint could not be shown", self._key.name)
            pause = min(RETRY_SECONDS_MAX, pause * 2 or RETRY_SECONDS_FIRST)

    def push(self, sealed: Sealed) -> None:
        """Have one checkpoint cosigned and store the cosignature. Raises WitnessRefused, WitnessAway, database errors.

        The witness decides which older size the proof begins at: what we remember is only a first guess.
        """
        if self._cosigned_size is None:
            with self._database.transaction(isolation="READ COMMITTED") as connection:
                self._cosigned_size = queries.last_cosigned(connection, str(self._key))
        old = min(self._cosigned_size, sealed.size)
        for _ in range(CONFLICTS_MAX):
            answer = self._ask(old, sealed)
            if answer.status == 200:
                self._store(sealed, self._checked(answer, sealed))
                self._cosigned_size = sealed.size
                return
            if answer.status == 422:
                raise WitnessRefused(f"size {sealed.size} does not contain what it has seen at size {old}")
            if answer.status != 409:
                raise WitnessAway(f"answered {answer.status}")
            known = self._conflicting_size(answer)
            if old == sealed.size and known in (None, old):
                self._check_is_newest(sealed)
                raise WitnessRefused(f"it has cosigned another checkpoint of size {old}")
            if known is None:
                raise WitnessAway("answered 409 without a size")
            old = known
            if old > sealed.size:
                self._check_not_rolled_back(old)
                raise WitnessAway(f"has cosigned size {old} meanwhile")
        raise WitnessAway("is shown checkpoints by somebody else at the same time")

    def _ask(self, old: int, sealed: Sealed) -> _Answer:
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            proof = TiledTree(sealed.size, queries.tile_reader(connection)).consistency_proof(old)
        lines = [f"old {old}", *(to_base64(item) for item in proof), "", sealed.note]
        try:
            with self._client.stream("POST", self._url, content="\n".join(lines).encode()) as response:
                body = b""
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > ANSWER_BYTES_MAX:
                        raise WitnessAway("answers too much")
                media_type = response.headers.get("content-type", "").partition(";")[0].strip()
                return _Answer(response.status_code, media_type, body)
        except httpx.HTTPError as error:
            raise WitnessAway(f"does not answer ({type(error).__name__})") from None

    def _checked(self, answer: _Answer, sealed: Sealed) -> Signature:
        """The witness's own cosignature in its answer, verified."""
        try:
            text = Note.parse(sealed.note).text
            note = Note(text, parse_signatures(answer.body.decode("utf-8")))
            return open_note(note, [self._key])[self._key]
        except (NoteRefused, UnicodeDecodeError) as error:
            raise WitnessAway(f"its cosignature is not valid: {error}") from None

    @staticmethod
    def _conflicting_size(answer: _Answer) -> int | None:
        """None without one, as a witness may answer whose size is the old one but whose root is not."""
        if answer.media_type != SIZE_MEDIA_TYPE:
            return None
        match = _SIZE_LINE.fullmatch(answer.body)
        if match is None:
            raise WitnessAway("answered 409 with a size that is none")
        return int(match[1])

    def _check_is_newest(self, sealed: Sealed) -> None:
        """One of an earlier block than the witness has cosigned is refused with good reason, if it is of our line."""
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            latest = queries.latest_checkpoint(connection)
        if latest is not None and latest.block > sealed.block:
            raise WitnessAway(f"may have cosigned a checkpoint after block {sealed.block} meanwhile")

    def _check_not_rolled_back(self, size: int) -> None:
        """A checkpoint is durable here before a witness sees it: one that we do not have was taken from us."""
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            latest = queries.latest_checkpoint(connection)
        if latest is None or latest.size < size:
            ours = latest.size if latest is not None else 0
            raise WitnessRefused(f"it has cosigned size {size}, and this log ends at {ours}: an older database?")

    def _store(self, sealed: Sealed, cosignature: Signature) -> None:
        row = {"block": sealed.block, "witness": str(self._key), "line": cosignature.line, "received_at": self._clock()}
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            connection.execute(insert(log_cosignature).values(**row).on_conflict_do_nothing())

    def _note(self, sealed: Sealed, detail: str) -> bool:
        """Write the refusal down. Has an operator acknowledged the incident that it belongs to?"""
        try:
            with self._database.transaction(isolation="READ COMMITTED") as connection:
                incident = incidents.note_refusal(
                    connection,
                    str(self._key),
                    block=sealed.block,
                    size=sealed.size,
                    detail=detail,
                    now=self._clock(),
                )
        except (SQLAlchemyError, psycopg.Error, OutcomeUnknown) as error:
            log.warning("the incident could not be written down: %s", error)
            return False
        return incident is not None and incident.reason is not None
