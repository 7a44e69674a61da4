"""Files of instructions and what streams need around them, for tests: a database, a directory of participants."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from kernel import ids
from kernel.clock import system_clock
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.ids import ParticipantId
from kernel.money import Currency, Money
from settlement.domain.instructions import Instruction
from settlement.iso20022.pacs009 import write_pacs009
from settlement.settings import Directory, InstitutionEntry, LedgerEntry, RateEntry
from settlement.store import messages
from settlement.store.messages import StreamRow
from settlement.usecases.intake import IntakeCheck
from settlement.usecases.streams import StreamContext, StreamFormat, open_stream, put_part

BRIDGE, BANK_A, BANK_B = (ParticipantId(code) for code in ("BRDGAEAD", "AAAACNBJ", "BBBBAEAD"))
CNY, AED = Currency.of("CNY"), Currency.of("AED")
CREATED_AT = datetime(2026, 11, 2, 8, 0, tzinfo=UTC)
_KEYS = {code: PrivateKey.generate() for code in (BANK_A, BANK_B)}


def instruction(number: int, *, seed: int = 1, **changes: Any) -> Instruction:
    made = Instruction(
        f"I{seed}-{number}",
        f"E2E-{number}",
        UUID(int=seed << 100 | number << 80 | 4 << 76 | 2 << 62),
        BANK_A,
        BANK_B,
        Money(100_000 + number, CNY),
        AED,
        None,
        date(2026, 11, 2),
    )
    return replace(made, **changes)


def pacs009(count: int, *, seed: int = 1, message_id: str = "M1") -> bytes:
    items = [instruction(number, seed=seed) for number in range(1, count + 1)]
    return write_pacs009(items, message_id=message_id, created_at=CREATED_AT)


def directory() -> Directory:
    return Directory(
        [
            LedgerEntry(ledger="cny-ledger", url="http://127.0.0.1:1", currency="CNY"),
            LedgerEntry(ledger="aed-ledger", url="http://127.0.0.1:1", currency="AED"),
        ],
        [
            InstitutionEntry(
                participant=code,
                authorisation_url="http://127.0.0.1:1",
                key=_KEYS[code].public.to_jwk(),
                accounts={"CNY": ids.show_account(cny), "AED": ids.show_account(aed)},
            )
            for code, cny, aed in ((BANK_A, 11, 21), (BANK_B, 12, 22))
        ],
        [RateEntry(base="CNY", counter="AED", rate="0.5123", provider=BANK_B)],
    )


@dataclass
class World:
    """A database with the service's tables, and the steps of streams over it."""

    url: str
    files: Path
    checks: tuple[IntakeCheck, ...] = ()
    database: Database = field(init=False)
    context: StreamContext = field(init=False)

    def __post_init__(self) -> None:
        self.database = Database(self.url, application_name="test-streams", pool_size=4)
        self.context = StreamContext(
            database=self.database,
            directory=directory(),
            clock=system_clock,
            files_directory=self.files,
            bridge=BRIDGE,
            run_on_submit=False,
            checks=self.checks,
        )

    def open(self, content: bytes, *, stream_format: StreamFormat = "xml", by: ParticipantId = BANK_A) -> StreamRow:
        return self.open_digest(hashlib.sha256(content).digest(), len(content), stream_format=stream_format, by=by)

    def open_digest(
        self, sha256: bytes, byte_count: int, *, stream_format: StreamFormat = "xml", by: ParticipantId = BANK_A
    ) -> StreamRow:
        row, _ = open_stream(
            self.context,
            submitter=by,
            is_operator=by == BRIDGE,
            stream_format=stream_format,
            sha256=sha256,
            byte_count=byte_count,
        )
        return row

    def send(self, content: bytes, *, part: int = 64 * 1024, **how: Any) -> UUID:
        """The whole file, part by part."""
        row = self.open(content, **how)
        for start in range(row.received_bytes, len(content), part):
            put_part(self.context, row.id, offset=start, content=content[start : start + part])
        return row.id

    def row(self, stream: UUID) -> StreamRow:
        with self.database.transaction(isolation="READ COMMITTED") as connection:
            found = messages.find_stream(connection, stream)
        if found is None:
            raise LookupError(stream)
        return found

    def refusals(self, stream: UUID) -> list[tuple[int, str]]:
        with self.database.transaction(isolation="READ COMMITTED") as connection:
            rows = messages.refusals_page(connection, stream, after=0, limit=100_000)
        return [(row.number, row.refusal) for row in rows]

    def counts(self) -> dict[str, int]:
        """Rows by table: what is there of streams and settlements."""
        names = ("batch", "settlement", "leg", "gate", "stream_staged", "stream_refusal", "stream_batch")
        with self.database.transaction(isolation="READ COMMITTED") as connection:
            return {name: connection.execute(sa.text(f"SELECT count(*) FROM {name}")).scalar_one() for name in names}

    def booked(self) -> list[tuple[Any, ...]]:
        """Every settlement as booked, with its legs, in an order of its own."""
        query = sa.text(
            "SELECT s.instruction_id, s.uetr, s.debtor, s.creditor, s.value_date, s.priority, s.rate, l.number,"
            " l.ledger, l.debit, l.credit, l.amount_minor, l.currency, b.first_number - 1 + s.position"
            " FROM settlement s JOIN leg l ON l.settlement_id = s.id JOIN stream_batch b ON b.batch_id = s.batch_id"
            " ORDER BY s.uetr, l.number"
        )
        with self.database.transaction(isolation="READ COMMITTED") as connection:
            return [tuple(row) for row in connection.execute(query)]

    def close(self) -> None:
        self.database.close()


def spoiled(content: bytes, random_: random.Random) -> bytes:
    """The bytes with one to three mutations anywhere."""
    found = bytearray(content)
    for _ in range(random_.randint(1, 3)):
        place = random_.randrange(len(found))
        kind = random_.randrange(4)
        if kind == 0:
            found[place] = random_.randrange(256)
        elif kind == 1:
            del found[place : place + random_.randint(1, 40)]
        elif kind == 2:
            found[place:place] = bytes(random_.randrange(256) for _ in range(random_.randint(1, 8)))
        else:
            start = random_.randrange(len(found))
            found[place:place] = found[start : start + random_.randint(1, 200)]
    return bytes(found)
