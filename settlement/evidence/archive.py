"""The archive: a zip that has exactly one form for its contents, so that a changed byte anywhere is found.

Stored, not deflated (what a compressor writes differs from version to version), names sorted, one fixed time.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping

_TIME = (1980, 1, 1, 0, 0, 0)
MEMBERS_MAX = 2_000
ARCHIVE_BYTES_MAX = 2 * 1024 * 1024 * 1024


class PackRefused(ValueError):
    """The pack proves nothing; the message says why."""


def write_archive(members: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, _TIME)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, members[name])
    return out.getvalue()


def read_archive(content: bytes) -> dict[str, bytes]:
    """Raises PackRefused for what `write_archive` would not have written byte by byte."""
    if len(content) > ARCHIVE_BYTES_MAX:
        raise PackRefused("the pack is too large")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = archive.infolist()
            if len(infos) > MEMBERS_MAX or sum(info.file_size for info in infos) > len(content):
                raise PackRefused("the pack has too many members, or they are packed")
            if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
                raise PackRefused("a member is packed: the one form of the archive stores its members")
            members = {info.filename: archive.read(info) for info in infos}
    except PackRefused:
        raise
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        raise PackRefused(f"not a zip as it must be: {type(error).__name__}") from None
    if write_archive(members) != content:
        raise PackRefused("the archive is not in its one form: bytes outside its members were changed")
    return members
