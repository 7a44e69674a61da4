"""The process that makes one closing's tree and writes it: hashing that the ledger's own process has no time for.

It is told everything on standard input, so that no secret stands in arguments or environment:
1. in: one line of JSON (`Task`), then the balances, 8 bytes little-endian each;
2. out: `{"root": hex, "total": digits}`, after the pages are written and before they are committed;
3. in: one line of JSON, the closing's row with the statement that the ledger has signed; the end of input means no;
4. out: `{"stored": true}` after COMMIT, `false` if another process has made this closing first.
Nothing is visible to a reader of the database before step 4.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from datetime import date
from typing import IO, Any

import numpy as np
import psycopg

from kernel.database import CheckedConnection, Database, is_duplicate_key
from kernel.transparency import sum_tree
from ledger.store import closings
from ledger.store.closings import ClosingRecord

PAGE_HEIGHT = 10
"""1,024 leaves a page (17 KB): one proof hashes two pages again, 1 ms each."""
NICENESS = 10
"""The ledger comes first."""
IDLE_SECONDS_MAX = 300
"""Between two statements: hashing takes seconds. A process that was stopped keeps no page locked for longer."""
DIRECTORY = np.dtype([("tag", ">u8"), ("node", sum_tree.NODE)])


@dataclass(frozen=True, slots=True)
class Task:
    database_url: str
    key: str
    """The closing's key, 64 hexadecimal digits."""
    closing: int
    first_account: int
    accounts: int


def send(stream: IO[bytes], message: dict[str, Any]) -> None:
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def record_message(record: ClosingRecord) -> dict[str, Any]:
    return asdict(record) | {"day": record.day.isoformat()}


def main() -> None:
    os.nice(NICENESS)
    task = Task(**json.loads(sys.stdin.buffer.readline()))
    data = sys.stdin.buffer.read(8 * task.accounts)
    if len(data) != 8 * task.accounts:
        raise SystemExit("the ledger went away")
    database = Database(task.database_url, application_name="jiaozi-ledger closing")
    with database.raw(isolation="READ COMMITTED") as connection:
        connection.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_SECONDS_MAX}s'")
        connection.commit()
        _make(task, np.frombuffer(data, "<i8"), connection)
    database.close()


def _make(task: Task, balances: sum_tree.Int64s, connection: CheckedConnection) -> None:
    key = bytes.fromhex(task.key)
    tags, leaves = sum_tree.lay_out(balances, first_account=task.first_account, key=key)
    height, size = PAGE_HEIGHT, 1 << PAGE_HEIGHT
    nodes: list[sum_tree.Nodes] = []
    first_page = 0
    with connection.cursor() as cursor:
        for run, above in sum_tree.raised(leaves, key=key, height=height):
            # a COPY for each run, none of them long: hashing does not count towards a statement's time
            pages = (run[start : start + size].tobytes() for start in range(0, len(run), size))
            closings.copy_pages(cursor, task.closing, first_page, pages)
            nodes.append(above)
            first_page += len(above)
        entries = np.empty(first_page, DIRECTORY)
        entries["tag"], entries["node"] = tags[::size], sum_tree.joined(nodes)
        root = sum_tree.root_of(entries["node"])
        send(sys.stdout.buffer, {"root": root.hash.hex(), "total": str(root.sum)})
        answer = sys.stdin.buffer.readline()
        if not answer:
            raise SystemExit("the ledger went away")
        row = json.loads(answer)
        record = ClosingRecord(**row | {"day": date.fromisoformat(row["day"])})
        closings.insert_closing(cursor, record, entries.tobytes())
    connection.commit()
    send(sys.stdout.buffer, {"stored": True})


if __name__ == "__main__":
    try:
        main()
    except psycopg.Error as error:
        if not is_duplicate_key(error):
            raise
        send(sys.stdout.buffer, {"stored": False})
