"""Goal: files stream in over the API and messages come out valid, and a recall ends what is not final and nothing else.

Method: the real app on a real socket with its database, engine and stream threads; ledgers and institutions are the
fakes that the product ships. What comes out is read back by the readers, each of which validates against the schema.
"""

from __future__ import annotations

import hashlib
import io
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from kernel import ids
from kernel.client import ProblemResponse
from settlement.__main__ import app
from settlement.contract import SettlementState
from settlement.contract.messages import StreamState
from settlement.domain.statuses import CancellationStatus, Confirmation, TransactionStatus
from settlement.iso20022.camt053 import read_camt053
from settlement.iso20022.csv_batch import write_csv
from settlement.iso20022.pacs002 import read_pacs002
from settlement.iso20022.recalls import Recall, RecallItem, read_resolution, write_recall
from settlement.iso20022.small_messages import read_message
from settlement.iso20022.versions import VERSIONS
from tests.api.test_settlement_api import BANK_A, BANK_B, BANK_C, BRIDGE, START, Running, instruction, pacs
from tests.api.test_settlement_api import service as service  # the fixture


def recall_of(*uetrs: object, assigner: str = BANK_A, assignee: str = BRIDGE, name: str | None = None) -> bytes:
    items = tuple(RecallItem(uetr, f"C{number}", reason="DUPL") for number, uetr in enumerate(uetrs, start=1))  # type: ignore[arg-type]
    made = Recall(
        "camt.056.001.08",
        name or uuid4().hex[:20],
        assigner,  # type: ignore[arg-type]
        assignee,  # type: ignore[arg-type]
        datetime(2026, 11, 2, tzinfo=UTC),
        "CASE1",
        items,
    )
    return write_recall(made)


def test_a_file_streams_in_settles_and_every_message_about_it_is_valid(service: Running, tmp_path: Path) -> None:
    items = [instruction(number) for number in range(1, 31)]
    items[6] = instruction(7, amount=1)  # buys nothing
    items[8] = instruction(9, amount=START * 5)  # more than there is
    path = tmp_path / "file.xml"
    path.write_bytes(pacs(*items, message_id="FILE1"))
    with service.client(BANK_A) as client, service.client(BANK_B) as other, service.client(BANK_C) as stranger:
        sent = client.send_stream(path, part_bytes=3_000)
        view = client.wait_for_stream(sent.stream, timeout_seconds=30)
        assert (view.state, view.line_count, view.booked_count, view.refused_count) == ("done", 30, 29, 1)
        assert [(item.number, item.refusal) for item in client.stream_refusals(view.stream)] == [
            (7, "counter-amount-out-of-range")
        ]
        (part,) = client.stream_batches(view.stream)
        client.wait_for_batch(part.batch, timeout_seconds=30)
        assert client.send_stream(path).stream == view.stream
        assert next(client.streams()).stream == view.stream
        with pytest.raises(ProblemResponse) as hidden:
            stranger.stream(view.stream)
        assert hidden.value.refusal == "stream-not-found"

        reports = [read_pacs002(content) for content in client.status_reports(view.stream, kind="stream", limit=8)]
        assert len(reports) == 4
        statuses = [item for report in reports for item in report.items]
        assert [item.uetr for item in statuses] == [item.uetr for item in items]
        assert {(item.status, item.reason) for item in statuses} == {("ACSC", None), ("RJCT", "AM02"), ("RJCT", "AM04")}
        assert reports[0].counts == {TransactionStatus.COMPLETED: 28, TransactionStatus.REJECTED: 2}
        assert (reports[0].original_message_id, reports[0].original_message) == ("FILE1", "pacs.009.001.08")
        by_batch = [read_pacs002(page) for page in client.status_reports(part.batch, kind="batch", limit=20)]
        assert sum(len(report.items) for report in by_batch) == 29
        one = next(client.settlements(part.batch))
        assert len(read_pacs002(next(client.status_reports(one.settlement, kind="settlement"))).items) == 1

        for kind in ("camt.052", "camt.054"):
            for version in VERSIONS[kind]:
                pages = list(
                    client.account_messages(
                        kind,
                        participant=BANK_A,
                        currency="CNY",
                        version=version,
                    )
                )
                found = read_camt053(io.BytesIO(pages[0]), messages=[version])
                assert found.statement is not None and found.findings == ()
                assert len(found.statement.entries) == 28
                assert -found.statement.closing_minor == sum(
                    item.amount.amount_minor for item in items if item.amount.amount_minor not in (1, START * 5)
                )
        theirs = next(other.account_messages("camt.054", participant=BANK_B, currency="CNY", limit=10))
        assert theirs.count(b"<CdtDbtInd>CRDT") == 10
        with pytest.raises(ProblemResponse) as early:
            list(client.account_messages("camt.053", participant=BANK_A, currency="CNY", day=datetime.now(UTC).date()))
        assert early.value.refusal == "day-not-over"
        day = datetime.now(UTC).date() - timedelta(days=3)
        (empty,) = client.account_messages("camt.053", participant=BANK_A, currency="CNY", day=day)
        assert read_camt053(io.BytesIO(empty)).statement is not None
        enveloped = next(client.status_reports(part.batch, kind="batch", header="head.001.001.04", limit=5))
        assert read_message(enveloped, VERSIONS["pacs.002"])[2] is not None
        for wrong in ({"version": "pacs.002.001.99"}, {"header": "head.001.001.09"}):
            with pytest.raises(ProblemResponse) as refused:
                next(client.status_reports(part.batch, kind="batch", **wrong))  # type: ignore[arg-type]
            assert refused.value.refusal == "message-version-unknown"


def test_a_recall_ends_what_waits_and_leaves_what_is_final(service: Running) -> None:
    final, waiting = instruction(1), instruction(2)
    with service.client(BANK_A) as client, service.client(BANK_C) as stranger:
        done = client.submit_batch(pacs(final), file_format="pacs.009")
        client.wait_for_batch(done.batch, timeout_seconds=30)
        service.aed.faults.down = True
        held = client.submit_batch(pacs(waiting), file_format="pacs.009")
        foreign = stranger.submit_recall(recall_of(final.uetr, assigner=BANK_C))
        assert (foreign.confirmation, foreign.items[0].reason) == (Confirmation.REJECTED, "NOOR")
        content = recall_of(final.uetr, waiting.uetr, uuid4(), name="RECALL1")
        asked = client.submit_recall(content)
        assert asked.confirmation in (Confirmation.PENDING, Confirmation.PARTLY)
        deadline = time.monotonic() + 30
        while client.recall(asked.recall).items[1].status is CancellationStatus.PENDING:  # until the engine has decided
            assert time.monotonic() < deadline
            time.sleep(0.05)
        service.aed.faults.down = False
        client.wait_for_batch(held.batch, timeout_seconds=30)
        again = client.submit_recall(content)
        assert again.recall == asked.recall
        assert [item.status for item in again.items] == [
            CancellationStatus.REJECTED,
            CancellationStatus.ACCEPTED,
            CancellationStatus.REJECTED,
        ]
        assert again.confirmation is Confirmation.PARTLY
        assert again.items[1].state is SettlementState.CANCELLED
        for version in VERSIONS["camt.029"]:
            answer = read_resolution(client.recall_resolution(asked.recall, version=version))
            assert answer.assignee == BANK_A and answer.case_id == "CASE1"
            assert [item.reason for item in answer.items] == ["AGNT", None, "NOOR"]
            assert "finality" in answer.items[0].texts[0]
        with pytest.raises(ProblemResponse) as reused:
            client.submit_recall(recall_of(final.uetr, name="RECALL1"))
        assert reused.value.refusal == "recall-id-reused"
        for wrong in (recall_of(final.uetr, assignee=BANK_B), recall_of(final.uetr, assigner=BANK_C), b"<x/>"):
            with pytest.raises(ProblemResponse) as invalid:
                client.submit_recall(wrong)
            assert invalid.value.refusal == "recall-invalid"
    assert service.cny.balance(12) == START + final.amount.amount_minor


@pytest.mark.extended
def test_the_commands_stream_a_file_and_fetch_its_messages(service: Running, tmp_path: Path) -> None:
    key = tmp_path / "a.pem"
    service.keys[BANK_A].save(key)
    file = tmp_path / "file.csv"
    file.write_bytes(write_csv([instruction(1), instruction(2, amount=1)]))
    options = ["--client-key", str(key), "--url", service.url]
    run = CliRunner()
    sent = run.invoke(app, ["submit", str(file), "--stream", "--wait", *options])
    assert sent.exit_code == 1, sent.output
    assert "1 booked, 1 refused" in sent.output
    again = run.invoke(app, ["submit", str(file), "--stream", "--wait", "--json", *options])
    assert again.exit_code == 1 and '"refusal": "counter-amount-out-of-range"' in again.output
    with service.client(BANK_A) as client:
        view = next(client.streams())
        client.wait_for_batch(client.stream_batches(view.stream)[0].batch, timeout_seconds=30)
    shown = ids.show("str", view.stream)
    assert '"state": "done"' in run.invoke(app, ["message", "stream", shown, "--json", *options]).output
    out = tmp_path / "status.xml"
    written = run.invoke(app, ["message", "status", shown, "-o", str(out), "--limit", "1", *options])
    assert written.exit_code == 0, written.output
    assert len(read_pacs002((tmp_path / "status-2.xml").read_bytes()).items) == 1
    for command in ("intraday", "notifications"):
        made = run.invoke(
            app,
            ["message", command, "--participant", BANK_A, "--currency", "CNY", "-o", str(out), *options],
        )
        assert made.exit_code == 0, made.output
    of_account = ["--participant", BANK_A, "--currency", "CNY", "-o", str(out)]
    late = run.invoke(app, ["message", "statement", "--day", "2999-01-01", *of_account, *options])
    assert late.exit_code == 2 and "day-not-over" in late.output
    asked = tmp_path / "recall.xml"
    asked.write_bytes(recall_of(uuid4()))
    told = run.invoke(app, ["message", "recall", str(asked), *options])
    assert told.exit_code == 0 and "RJCR" in told.output
    assert run.invoke(app, ["message", "status", "xyz", "-o", str(out), *options]).exit_code == 2


def test_a_restarted_worker_goes_on_with_a_stream_that_was_sent_before(service: Running, tmp_path: Path) -> None:
    path = tmp_path / "file.xml"
    content = pacs(*(instruction(number) for number in range(1, 6)))
    path.write_bytes(content)
    with service.client(BANK_A) as client:
        view = client.open_stream(
            file_format="xml", byte_count=len(content), sha256=hashlib.sha256(content).hexdigest()
        )
        client.put_stream_part(view.stream, 0, content[:100])
        with pytest.raises(ProblemResponse) as misplaced:
            client.put_stream_part(view.stream, 50, content[50:])
        assert misplaced.value.extra["received_bytes"] == "100"
        # The sender has lost everything but the file.
        done = client.wait_for_stream(client.send_stream(path).stream, timeout_seconds=30)
        assert (done.state, done.booked_count) == (StreamState.DONE, 5)
        deadline = time.monotonic() + 30
        while client.stream(view.stream).counts[SettlementState.SETTLED] < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert client.stream(view.stream).counts[SettlementState.SETTLED] == 5
