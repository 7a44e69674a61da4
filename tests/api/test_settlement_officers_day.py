"""Goal: whatever a settlement officer's day brings (files with broken lines, duplicates, wrong currencies, nothing,
far too much, other institutions' names, tables of every convention), the service answers as its document says, with one
clear problem, keeps working, and neither loses nor invents a line or a fen.

Method: the real service on a real socket; requests with hostile content, each answer compared with the operation's
entry in /openapi.json; afterwards the same relation is reconciled and the money counted.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kernel import ids
from kernel.crypto.http_signatures import RequestSigner
from kernel.money import Money
from settlement.domain.instructions import Instruction, Priority
from settlement.domain.liquidity.model import LimitKind
from settlement.iso20022.csv_batch import write_csv
from settlement.iso20022.pacs009 import write_pacs009
from settlement.sources import zip_of_pages
from settlement.usecases.statements import camt053_bytes
from tests.api.test_settlement_reconciliation import (
    AED,
    BANK_A,
    BANK_B,
    BRIDGE,
    CNY,
    START,
    World,
    settled,
    spoilt,
    statement_of,
    world,
)

__all__ = ["world"]

HEADER = "reference,uetr,end_to_end_id,currency,amount,direction,value_date,booked_at,status"
LINE = "R1,,E1,CNY,10.00,CRDT,2026-11-02,2026-11-02T10:00:00Z,BOOK"


class Desk:
    """Sends what it is told and holds every answer against the service's own document."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.document = httpx.get(f"{world.url}/openapi.json", trust_env=False).json()
        self._paths = [
            (re.compile(re.sub(r"\{[^}]*\}", "[^/]+", path)), operations)
            for path, operations in sorted(self.document["paths"].items(), key=lambda item: item[0].count("{"))
        ]

    def send(
        self, method: str, path: str, *, by: str = BANK_A, content: Any = b"", media_type: str = "application/json",
        query: dict[str, Any] | None = None,
    ) -> httpx.Response:  # fmt: skip
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        with httpx.Client(auth=RequestSigner(self.world.keys[by]), trust_env=False, timeout=60) as client:
            answer = client.request(
                method,
                self.world.url + path,
                params=query,
                content=content,
                headers={"content-type": media_type, "idempotency-key": uuid4().hex},
            )
        self._judge(method, path, answer)
        return answer

    def _judge(self, method: str, path: str, answer: httpx.Response) -> None:
        assert answer.status_code < 500, f"{method} {path}: {answer.status_code} {answer.text[:300]}"
        operation = next(found for pattern, found in self._paths if pattern.fullmatch(path))[method.lower()]
        described = operation["responses"].get(str(answer.status_code))
        assert described is not None, f"{method} {path} answers {answer.status_code}, undocumented: {answer.text[:300]}"
        if answer.status_code >= 400:
            problem = answer.json()
            assert answer.headers["content-type"] == "application/problem+json"
            assert problem["status"] == answer.status_code and len(problem.get("detail") or "") <= 600
            known = described["content"]["application/problem+json"]["examples"]
            assert problem["refusal"] in known, f"{method} {path}: {problem['refusal']} is not documented"

    def source(
        self, content: bytes, known: str = "csv", *, by: str = BANK_A, of: str = BANK_A, **more: Any
    ) -> httpx.Response:
        query = {"participant": of, "counterparty": "AGENT", "format": known} | more
        return self.send(
            "POST", "/v1/reconciliation-sources", by=by, content=content, media_type="text/csv", query=query
        )

    def batch(self, content: bytes, media_type: str = "text/csv", *, by: str = BANK_A) -> httpx.Response:
        return self.send("POST", "/v1/batches", by=by, content=content, media_type=media_type)


@pytest.fixture(scope="module")
def desk(world: World) -> Iterator[Desk]:
    before = (sum(world.cny._balances.values()), sum(world.aed._balances.values()))
    yield Desk(world)
    assert (sum(world.cny._balances.values()), sum(world.aed._balances.values())) == before


def good(number: int = 1, **changes: Any) -> Instruction:
    made = Instruction(
        f"D{uuid4().hex[:10]}{number}", f"E{uuid4().hex[:10]}", uuid4(), BANK_A, BANK_B, Money(100 + number, CNY), AED,
        None, datetime.now(UTC).date(), Priority.NORMAL,
    )  # fmt: skip
    return replace(made, **changes)


def batch_of(answer: httpx.Response) -> UUID:
    return UUID(answer.json()["batch"].removeprefix("bat_"))


# --- batches


def csv_lines(count: int = 2) -> list[list[str]]:
    return [line.split(",") for line in write_csv([good(number) for number in range(count)]).decode().splitlines()]


def _changed(column: str, value: str, *, line: int = 1) -> bytes:
    lines = csv_lines()
    lines[line][lines[0].index(column)] = value
    return "\n".join(",".join(cells) for cells in lines).encode()


def _csv_faults() -> dict[str, bytes]:
    lines = write_csv([good(1), good(2)])
    text = lines.decode()
    first, *rest = text.splitlines()
    columns = first.split(",")
    found = {
        "empty": b"",
        "header alone": first.encode(),
        "blank lines": b"\n\n\n",
        "no header": "\n".join(rest).encode(),
        "a line cut short": text[: len(text) - 30].encode(),
        "a line too long": (text.rstrip() + ",x,y,z\n").encode(),
        "a quote left open": text.replace(rest[0][:3], '"' + rest[0][:3], 1).encode(),
        "a column twice": text.replace(columns[0], f"{columns[0]},{columns[0]}", 1).encode(),
        "nul": text.replace("D", "\0", 1).encode(),
        "latin-1": text.encode() + b"\xff\xfe",
        "utf-16": text.encode("utf-16"),
        "the same line twice": (text.rstrip() + "\n" + rest[-1] + "\n").encode(),
        "many lines of nothing": (first + "\n" + "," * (len(columns) - 1) + "\n" * 5_000).encode(),
        "a huge cell": text.replace(rest[0].split(",")[0], "A" * 2_000_000, 1).encode(),
        "html": b"<html><body>login</body></html>",
        "json": b'{"batch": []}',
    }
    for column in columns:
        for value in ("", "0", "-1", "99999999999999999999999999", "1e400", "NaN", "\u0663", "=1+1", "ZZZ", "x" * 300):
            found[f"{column}={value[:12]!r}"] = _changed(column, value)
    return found


def test_broken_csv_batches_are_refused_with_a_problem_and_nothing_moves(desk: Desk) -> None:
    before = desk.world.cny.balance(11), desk.world.aed.balance(22)
    answers = {name: desk.batch(content) for name, content in _csv_faults().items()}
    taken = {name: batch_of(answer) for name, answer in answers.items() if answer.status_code < 300}
    # What is taken has been changed into something that is still an instruction, and all of it ends.
    with desk.world.client(BANK_A) as client:
        for batch in taken.values():
            client.wait_for_batch(batch, timeout_seconds=30)
    assert all("=" in name or "lines of nothing" in name for name in taken), sorted(taken)
    moved = before[0] - desk.world.cny.balance(11), before[1] - desk.world.aed.balance(22)
    assert moved[0] <= 250 * len(taken) and moved[1] <= 250 * len(taken)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (BANK_A, "ZZZZCNBJ"), (BANK_B, "ZZZZCNBJ"), (BANK_B, BANK_A), (BANK_A, BRIDGE), (">1.01<", ">0.00<"),
        (">1.01<", ">0<"), (">1.01<", ">-1.01<"), (">1.01<", ">9999999999999999.99<"), (">1.01<", ">1.011<"),
        (">1.01<", "><"), ('"CNY"', '"USD"'), ('"CNY"', '"XXX"'), ('"CNY"', '"cny"'), ('"CNY"', '"AED"'),
        ("<NbOfTxs>2<", "<NbOfTxs>3<"), ("<NbOfTxs>2<", "<NbOfTxs>999999999999999<"),
        ("<UETR>", "<UETR>x"), ("pacs.009.001", "pacs.008.001"), ("</Document>", ""), ("<GrpHdr>", "<GrpHdr><X/>"),
    ],
)  # fmt: skip
def test_a_pacs009_with_one_member_changed_is_refused(desk: Desk, old: str, new: str) -> None:
    whole = write_pacs009([good(1), good(2)], message_id=uuid4().hex, created_at=datetime.now(UTC)).decode()
    assert old in whole
    answer = desk.batch(whole.replace(old, new).encode(), "application/xml")
    assert 400 <= answer.status_code < 500, answer.text


def test_two_files_with_one_payment_settle_it_once(desk: Desk) -> None:
    shared, before = good(5), desk.world.cny.balance(11)
    answers = [desk.batch(write_csv(lines)) for lines in ([good(1), shared], [shared, good(2)], [shared, shared])]
    assert [answer.status_code for answer in answers] == [201, 422, 422]
    with desk.world.client(BANK_A) as client:
        client.wait_for_batch(batch_of(answers[0]), timeout_seconds=30)
    assert before - desk.world.cny.balance(11) == 101 + 105


def test_an_officers_key_submits_nothing(desk: Desk) -> None:
    assert desk.batch(write_csv([good(1)]), by="ann").status_code in (401, 403)


# --- sources


def _tables() -> dict[str, bytes]:
    def cells(**changes: str) -> bytes:
        names = HEADER.split(",")
        values = LINE.split(",")
        for name, value in changes.items():
            values[names.index(name)] = value
        return f"{HEADER}\n{','.join(values)}\n".encode()

    found = {
        "empty": b"", "header": HEADER.encode(), "one line": f"{HEADER}\n{LINE}\n".encode(), "no header": LINE.encode(),
        "crlf and bom": b"\xef\xbb\xbf" + f"{HEADER}\r\n{LINE}\r\n".encode(), "nul": f"{HEADER}\n{LINE}\0".encode(),
        "ragged": f"{HEADER}\n{LINE},x\n".encode(), "short": f"{HEADER}\nR1,CNY\n".encode(), "quote": b'"' * 99,
        "twice": f"{HEADER}\n{LINE}\n{LINE}\n".encode(), "semicolons": f"{HEADER}\n{LINE}\n".replace(",", ";").encode(),
        "latin": f"{HEADER}\n{LINE}\n".encode() + b"\xe9", "xml": b"<Document/>", "zip": zip_of_pages([b"x"]),
        "column twice": f"{HEADER},amount\n{LINE},1\n".encode(), "a long cell": cells(reference="R" * 1_000_000),
        "many": (HEADER + "\n" + "\n".join([LINE] * 2_000)).encode(),
    }  # fmt: skip
    for name, values in {
        "amount": ("", "0", "0.00", "-1", "1.001", "1,000.00", "1e5", "NaN", "inf", "9" * 30, "\u0663", " 1.00 "),
        "currency": ("", "cny", "XXX", "CNYX", "USD", "\u00a5"),
        "direction": ("", "C", "credit", "DBIT", "crdt"),
        "value_date": ("", "2026-02-30", "02.11.2026", "0001-01-01", "9999-12-31", "10000-01-01", "-1"),
        "booked_at": ("", "2026-11-02", "2026-11-02T10:00:00", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00"),
        "uetr": ("x", str(uuid4()).upper(), str(UUID(int=0)), "{" + str(uuid4()) + "}"),
        "status": ("", "book", "INFO"),
        "reference": ("", " ", "\u202e", "'; DROP TABLE leg; --", "R" * 141),
    }.items():
        for value in values:
            found[f"{name}={value[:20]!r}"] = cells(**{name: f'"{value}"'})
    return found


def _parquets() -> dict[str, bytes]:
    def written(columns: dict[str, Any]) -> bytes:
        file = io.BytesIO()
        pq.write_table(pa.table(columns), file)
        return file.getvalue()

    plain = dict(zip(HEADER.split(","), ([value] for value in LINE.split(",")), strict=True))
    now = datetime(2026, 11, 2, tzinfo=UTC)
    return {
        "strings": written(plain),
        "decimals": written(plain | {"amount": pa.array([Decimal("10.00")])}),
        "a wide decimal": written(plain | {"amount": pa.array([Decimal(10) ** 60], pa.decimal256(70, 2))}),
        "floats": written(plain | {"amount": [10.005]}),
        "nan": written(plain | {"amount": [float("nan")]}),
        "nulls": written({name: pa.array([None], pa.string()) for name in plain}),
        "dates": written(plain | {"value_date": pa.array([now.date()]), "booked_at": pa.array([now])}),
        "naive": written(plain | {"booked_at": pa.array([now.replace(tzinfo=None)])}),
        "nested": written(plain | {"amount": pa.array([{"minor": 1}])}),
        "lists": written(plain | {"reference": pa.array([["a", "b"]])}),
        "binary": written(plain | {"reference": pa.array([b"\xff\xfe"])}),
        "booleans": written(plain | {"direction": [True]}),
        "dictionary": written(plain | {"currency": pa.array(["CNY"]).dictionary_encode()}),
        "no columns": written({"x": [1]}),
        "no lines": written({name: pa.array([], pa.string()) for name in plain}),
        "cut": written(plain)[:-20],
        "not parquet": b"PAR1" + b"\0" * 40 + b"PAR1",
    }


@pytest.mark.extended
def test_tables_of_every_convention_are_read_whole_or_refused_whole(desk: Desk) -> None:
    read = {name: desk.source(content) for name, content in _tables().items()}
    read |= {f"parquet {name}": desk.source(content, "parquet") for name, content in _parquets().items()}
    for known in ("camt.053", "camt.053-pages", "camt.054", "parquet"):
        read[f"csv as {known}"] = desk.source(f"{HEADER}\n{LINE}\n".encode(), known)
    taken = {name for name, answer in read.items() if answer.status_code == 201}
    assert {"one line", "twice", "parquet strings", "parquet decimals", "many"} <= taken
    for name in ("ragged", "short", "amount='NaN'", "amount='1e5'", "value_date='2026-02-30'", "parquet nested", "cut"):
        assert name not in taken
    # Whatever was taken can be reconciled; every line of it is a match or in a break.
    for name in sorted(taken):
        source = read[name].json()
        body = {
            "reconciliation": ids.show("rec", ids.new_uuid7()), "participant": BANK_A, "counterparty": "AGENT",
            "currency": "CNY", "their_source": source["source"],
        }  # fmt: skip
        answer = desk.send("POST", "/v1/reconciliations", content=body)
        if answer.status_code == 201:
            assert answer.json()["lines_theirs"] == source["line_count"], name


def test_sources_of_others_and_odd_questions_are_refused(desk: Desk) -> None:
    line = f"{HEADER}\n{LINE}\n".encode()
    assert desk.source(line, of=BANK_B).status_code == 403
    assert desk.source(line, counterparty="journal").status_code in (409, 422)
    for odd in ({"counterparty": ""}, {"counterparty": "x" * 500}, {"format": "docx"}, {"account": ""}, {"of": 1}):
        assert desk.source(line, **odd).status_code in (400, 422), odd
    assert desk.source(line, account="acc_" + "9" * 30).status_code in (201, 422)


def test_mappings_that_cannot_be_read_one_way_are_refused(desk: Desk) -> None:
    columns = {"reference": "Ref", "amount": "Betrag", "value_date": "Valuta"}
    for change in (
        {"columns": {}}, {"columns": {"amount": "X", "reference": "X"}}, {"delimiter": ""}, {"delimiter": ";;"},
        {"delimiter": "\0"}, {"delimiter": "\n"}, {"delimiter": ",", "decimal": ","}, {"decimal": "x"},
        {"encoding": "utf-16"}, {"encoding": "rot13"}, {"encoding": "zlib"}, {"date_format": "%Q"},
        {"date_format": "MM/MM/MM"}, {"currency": "cny"}, {"sign": "maybe"}, {"columns": {"colour": "X"}},
        {"columns": columns | {"amount": "x" * 5_000}}, {"time_zone": "Mars/Olympus"}, {"zone": "../../etc/passwd"},
        {"thousands": ","},
    ):  # fmt: skip
        mapping = {"columns": columns, "sign": "positive-is-credit", "currency": "CNY"} | change
        body = {"participant": BANK_A, "counterparty": "ODD", "mapping": mapping}
        answer = desk.send("POST", "/v1/reconciliation-mappings", content=body)
        assert answer.status_code in (201, 400, 422), (change, answer.text)
        if answer.status_code == 201:  # then it reads, or refuses, and does neither by falling over
            for content in (b"Ref;Betrag;Valuta\nR1;1,00;02.11.2026\n", b"Ref,Betrag,Valuta\nR1,1.00,2026-11-02\n"):
                desk.source(content, counterparty="ODD")


def test_zips_that_mean_harm_are_refused(desk: Desk) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for number in range(3):
            archive.writestr(f"{number}.xml", b"\0" * 30_000_000)
    nested = zip_of_pages([zip_of_pages([b"<x/>"])])
    for content in (bomb.getvalue(), nested, zip_of_pages([b""] * 1_001), b"PK\x05\x06" + b"\0" * 18):
        assert desk.source(content, "camt.053-pages").status_code == 422


# --- runs


def test_runs_with_odd_bounds_are_refused_or_right(desk: Desk) -> None:
    source = desk.source(f"{HEADER}\n{LINE}\n".encode()).json()["source"]
    far, naive = "9999-12-31T23:59:59Z", "2026-11-02T00:00:00"
    for change in (
        {"currency": "XXX"}, {"currency": "cny"}, {"participant": BANK_B}, {"counterparty": "other"},
        {"their_source": ids.show("src", ids.new_uuid7())}, {"their_source": "src_x"},
        {"batch": ids.show("bat", uuid4())},
        {"booked_from": far, "booked_to": "0001-01-01T00:00:00Z"}, {"booked_from": naive}, {"as_of": "0001-01-01"},
        {"as_of": "9999-12-31"}, {"as_of": "2026-13-01"}, {"view": "sideways"}, {"view": "mirror"},
        {"rules": {"amount_minor_max": "99999999999999999999"}}, {"rules": {"amount_minor_max": -1}},
        {"rules": {"value_days_max": 11}}, {"rules": {"zone": "Nowhere"}}, {"rules": {"cut_off": "25:00"}},
        {"rules": {"subset_lines_max": 7}}, {"rules": {"fee_bps_max": 1_001}}, {"our_source": source},
        {"reconciliation": "rec_1"}, {"extra": 1},
    ):  # fmt: skip
        body = {
            "reconciliation": ids.show("rec", ids.new_uuid7()), "participant": BANK_A, "counterparty": "AGENT",
            "currency": "CNY", "their_source": source,
        } | change  # fmt: skip
        desk.send("POST", "/v1/reconciliations", content=body)


def test_a_statement_in_pages_is_reconciled_once_and_proved(desk: Desk) -> None:
    world = desk.world
    whole = spoilt(world, settled(world))
    middle = whole.opening_minor - sum(entry.amount.amount_minor for entry in whole.entries[:3])
    pages = [
        camt053_bytes(replace(whole, is_last_page=False).with_entries(whole.entries[:3])),
        camt053_bytes(replace(whole, page=2, opening_minor=middle).with_entries(whole.entries[3:])),
    ]
    with world.client(BANK_A) as client:
        runs = []
        for content in (zip_of_pages(pages), zip_of_pages([pages[1], pages[0], pages[1]])):
            source = client.add_source(
                content, source_format="camt.053-pages", participant=BANK_A, counterparty="paged"
            )
            assert source.line_count == len(whole.entries)
            runs.append(
                client.run_reconciliation(
                    participant=BANK_A, counterparty="paged", currency="CNY", their_source=source.source,
                    booked_from=whole.from_at, booked_to=whole.to_at + timedelta(days=1),
                )
            )  # fmt: skip
        first, again = runs
        assert first.lines_theirs == again.lines_theirs == len(whole.entries)
        assert {item.id for item in again.breaks} == {item.id for item in first.breaks} and first.breaks
        pack = client.evidence(first.reconciliation)
    with zipfile.ZipFile(io.BytesIO(pack)) as archive:
        assert "inputs/theirs.zip" in archive.namelist()
    assert desk.source(zip_of_pages(pages[:1]), "camt.053-pages").json()["problems"][0]["refusal"] == "pages-incomplete"


# --- breaks, limits, quotes, the rest


def test_odd_questions_about_breaks_runs_and_settlements_are_answered(desk: Desk) -> None:
    world = desk.world
    with world.client(BANK_A) as client:
        batch = settled(world, 1)
        statement_of(world, batch)
        (one,) = client.settlements(batch)
    for path in (
        "/v1/breaks/brk_x", f"/v1/breaks/{ids.show('brk', uuid4())}", "/v1/breaks/%00", "/v1/reconciliations/rec_%FF",
        f"/v1/settlements/{ids.show('stl', one.settlement)}x", f"/v1/liquidity/why/{ids.show('stl', one.settlement)}",
        f"/v1/executions/{ids.show('stl', one.settlement)}",
        f"/v1/liquidity/runs/{ids.show('lqr', uuid4())}/instructions",
    ):  # fmt: skip
        assert desk.send("GET", path).status_code in (400, 403, 404, 409, 422), path
    for query in (
        {"limit": 0}, {"limit": -1}, {"limit": 10**9}, {"limit": "x"}, {"cursor": "x"}, {"cursor": ""},
        {"cursor": "e30"},
        {"type": "nothing"}, {"bucket": "6-31"}, {"state": "shut"}, {"participant": BANK_B}, {"currency": "cny"},
    ):  # fmt: skip
        assert desk.send("GET", "/v1/breaks", query=query).status_code in (200, 400, 403, 422), query
    token = "x" * 100
    for body in (
        {},
        {"token": ""},
        {"token": token},
        {"token": f"{token}.{token}.{token}"},
        {"token": "x" * 10**6},
        [],
    ):
        assert desk.send("POST", f"/v1/breaks/{ids.show('brk', uuid4())}/decisions", content=body).status_code >= 400
        assert desk.send("POST", "/v1/fx-quotes", content=body).status_code >= 400
        run = f"/v1/liquidity/runs/{ids.show('lqr', uuid4())}/approvals"
        assert desk.send("POST", run, by=BRIDGE, content=body).status_code >= 400


def test_odd_limits_previews_and_orders_are_refused(desk: Desk) -> None:
    today = datetime.now(UTC).date().isoformat()
    for change in (
        {"amount_minor": "-1"}, {"amount_minor": "1e3"}, {"amount_minor": 5}, {"amount_minor": "9" * 40},
        {"currency": "X"},
        {"currency": "USD"}, {"counterparty": BANK_A}, {"counterparty": "ZZZZCNBJ"}, {"kind": "none"},
        {"participant": BANK_B},
        {"valid_from": "2020-01-01"}, {"valid_from": "9999-12-31"}, {"valid_from": "x"},
    ):  # fmt: skip
        body = {
            "kind": LimitKind.BILATERAL.value, "participant": BANK_A, "currency": "CNY", "counterparty": BANK_B,
            "amount_minor": "100", "valid_from": today,
        } | change  # fmt: skip
        answer = desk.send("POST", "/v1/liquidity/limits", content=body)
        assert answer.status_code in (403, 422) or change == {"valid_from": "9999-12-31"}, (change, answer.text)
    for body in (
        {"method": "best"}, {"settle_as": "none"}, {"seconds": -1}, {"seconds": 10**9}, {"seconds": "NaN"},
        {"weights": {"CNY": -1}}, {"weights": {"CNY": 10**30}}, {"weights": {"x": 1}},
        {"method": "optimise", "weights": []},
    ):  # fmt: skip
        assert desk.send("POST", "/v1/liquidity/previews", by=BRIDGE, content=body).status_code in (400, 422), body
    order = {"payer": BANK_A, "payee": BANK_B, "sell": "CNY", "buy": "AED", "given_minor": "100"}
    for change in (
        {"given_minor": "0"}, {"given_minor": "9" * 25}, {"given_minor": None}, {"received_minor": "5"}, {"buy": "CNY"},
        {"sell": "XXX"}, {"payer": "ZZZZCNBJ"}, {"limit_rate": "NaN"}, {"limit_rate": "1e400"}, {"limit_rate": "-1"},
        {"limit_rate": "0"}, {"limit_rate": "1/0"}, {"limit_rate": "9" * 400},
    ):  # fmt: skip
        assert desk.send("POST", "/v1/executions/preview", content=order | change).status_code >= 400, change


def test_the_day_ends_with_every_fen_where_it_was(desk: Desk) -> None:
    world = desk.world
    with world.client(BRIDGE) as bridge:
        assert not list(bridge.in_doubt())
        assert not [alarm for alarm in bridge.run_control().alarms if alarm.type == "movement"]
    assert world.cny.balance(11) + world.cny.balance(12) == world.aed.balance(21) + world.aed.balance(22) == 2 * START
