"""C2SP tlog-checkpoint: what a log's signed note says of its tree, and when a reader believes it.

A reader trusts a log key, and as many witnesses' keys as his policy asks for. A witness's cosignature says that this
tree contains every tree that the witness was shown before, so a quorum of witnesses rules out two histories.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kernel.transparency.merkle import HASH_BYTES, SIZE_MAX
from kernel.transparency.notes import (
    KeyKind,
    Note,
    NoteRefused,
    VerifierKey,
    check_key_name,
    from_base64,
    open_note,
    timestamp_of,
    to_base64,
)

SIZE_MEDIA_TYPE = "text/x.tlog.size"
"""Of a witness's answer that says what it has cosigned last."""
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The text of a checkpoint: origin, size and root, then the log's own extension lines."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        lines = (self.origin, str(self.size), to_base64(self.root), *self.extensions)
        return "".join(f"{line}\n" for line in lines)

    def extension(self, name: str) -> list[str] | None:
        """The words after `name` on the one extension line that begins with it; None without such a line.

        Raises NoteRefused if there are two.
        """
        found = [line.split(" ")[1:] for line in self.extensions if line.split(" ")[0] == name]
        if len(found) > 1:
            raise NoteRefused(f"the checkpoint has two {name} lines")
        return found[0] if found else None

    @staticmethod
    def parse(text: str) -> Checkpoint:
        """Raises NoteRefused."""
        lines = text.split("\n")
        if len(lines) < 4 or lines[-1] or not all(lines[:-1]):
            raise NoteRefused("a checkpoint has at least three lines, none of them empty")
        origin, size, root, *extensions = lines[:-1]
        check_key_name(origin)
        return Checkpoint(origin, parse_size(size), parse_hash(root), tuple(extensions))


@dataclass(frozen=True, slots=True)
class Cosigned:
    witness: str
    timestamp: int
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class OpenedCheckpoint:
    """A checkpoint whose signatures were checked."""

    checkpoint: Checkpoint
    cosigned: tuple[Cosigned, ...]
    """By which of the reader's witnesses, and when."""


def open_checkpoint(
    note: str | bytes, *, log_key: VerifierKey, witnesses: Sequence[VerifierKey] = (), quorum: int = 0
) -> OpenedCheckpoint:
    """The checkpoint in a note, if `log_key` has signed it and at least `quorum` of the `witnesses` have cosigned it.

    Raises NoteRefused: malformed, signed by another log, a signature of one of these keys that does not verify, too few
    witnesses.
    """
    if log_key.kind is not KeyKind.ED25519 or any(key.kind is not KeyKind.COSIGNATURE_V1 for key in witnesses):
        raise NoteRefused("a log's key is of type 0x01, a witness's of type 0x04")
    if not 0 <= quorum <= len({key.public for key in witnesses}):
        raise NoteRefused("the quorum is larger than the number of witnesses")
    parsed = Note.parse(note)
    signed = open_note(parsed, [log_key, *witnesses])
    if log_key not in signed:
        raise NoteRefused(f"the checkpoint is not signed by {log_key.name}")
    checkpoint = Checkpoint.parse(parsed.text)
    if checkpoint.origin != log_key.name:
        raise NoteRefused("the checkpoint is of another log than its key")
    cosigned = tuple(
        Cosigned(key.name, timestamp_of(signature.value)) for key, signature in signed.items() if key != log_key
    )
    if len({key.public for key in signed if key != log_key}) < quorum:
        raise NoteRefused(f"{len(cosigned)} of the known witnesses have cosigned, {quorum} are asked for")
    return OpenedCheckpoint(checkpoint, cosigned)


def parse_size(text: str) -> int:
    if _SIZE.fullmatch(text) is None or int(text) > SIZE_MAX:
        raise NoteRefused("a tree size is a decimal number without needless zeros")
    return int(text)


def parse_hash(text: str) -> bytes:
    value = from_base64(text)
    if len(value) != HASH_BYTES:
        raise NoteRefused("a hash is 32 bytes in base64")
    return value


def witness_keys(texts: Iterable[str]) -> list[VerifierKey]:
    """Verifier keys of witnesses. Raises NoteRefused for another kind of key, or for one key given twice."""
    keys = [VerifierKey.parse(text) for text in texts]
    if any(key.kind is not KeyKind.COSIGNATURE_V1 for key in keys):
        raise NoteRefused("a witness's verifier key is of type 0x04")
    if len({key.public for key in keys}) != len(keys):
        raise NoteRefused("two witnesses have the same key")
    return keys
