"""The client's side of streams, recalls and ISO 20022 messages."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

from kernel import ids, strict_json
from kernel.client import ServiceClient
from settlement.contract.messages import (
    PART_BYTES_MAX,
    RECALL_PREFIX,
    STREAM_PREFIX,
    RecallView,
    StreamBatchView,
    StreamRefusalView,
    StreamRequest,
    StreamState,
    StreamView,
)

_BLOCK = 1024 * 1024
_ENDED = (StreamState.DONE, StreamState.REFUSED, StreamState.WITHDRAWN)


class MessagesMixin:
    _http: ServiceClient

    # --- streams

    def open_stream(self, *, file_format: Literal["xml", "csv"], byte_count: int, sha256: str) -> StreamView:
        """Refuses: stream-too-large, stream-differs, too-many-streams."""
        body = StreamRequest(format=file_format, byte_count=byte_count, sha256=sha256)
        return StreamView.model_validate(self._http.post("/v1/streams", body, idempotent=True))

    def put_stream_part(self, stream: UUID, offset: int, content: bytes) -> StreamView:
        """Refuses: stream-not-found, stream-not-open, stream-part-misplaced, stream-part-differs."""
        response = self._http.request(
            "PUT",
            f"/v1/streams/{ids.show(STREAM_PREFIX, stream)}/parts/{offset}",
            content=content,
            content_type="application/octet-stream",
            idempotent=True,
        )
        return StreamView.model_validate(strict_json.loads(response.content))

    def send_stream(
        self,
        path: Path,
        *,
        file_format: Literal["xml", "csv"] | None = None,
        part_bytes: int = PART_BYTES_MAX,
        progress: Callable[[StreamView], None] = lambda view: None,
    ) -> StreamView:
        """Send a file part by part, from wherever an earlier attempt ended. Memory is one part. Raises OSError too."""
        chosen: Literal["xml", "csv"] = file_format or ("csv" if path.suffix.lower() == ".csv" else "xml")
        with path.open("rb") as file:
            digest, size = hashlib.sha256(), 0
            while block := file.read(_BLOCK):
                digest.update(block)
                size += len(block)
            view = self.open_stream(file_format=chosen, byte_count=size, sha256=digest.hexdigest())
            progress(view)
            while view.state is StreamState.RECEIVING:
                file.seek(view.received_bytes)
                view = self.put_stream_part(view.stream, view.received_bytes, file.read(part_bytes))
                progress(view)
        return view

    def stream(self, stream: UUID) -> StreamView:
        return StreamView.model_validate(self._http.get(f"/v1/streams/{ids.show(STREAM_PREFIX, stream)}"))

    def streams(self) -> Iterator[StreamView]:
        """Newest first."""
        for item in self._items("/v1/streams"):
            yield StreamView.model_validate(item)

    def wait_for_stream(
        self,
        stream: UUID,
        *,
        timeout_seconds: float = 600.0,
        every_seconds: float = 0.3,
        progress: Callable[[StreamView], None] = lambda view: None,
    ) -> StreamView:
        """Until every line is booked or refused. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            view = self.stream(stream)
            progress(view)
            if view.state in _ENDED:
                return view
            if time.monotonic() > deadline:
                raise TimeoutError(f"stream {ids.show(STREAM_PREFIX, stream)} is {view.state}")
            time.sleep(every_seconds)

    def withdraw_stream(self, stream: UUID) -> StreamView:
        """Refuses: stream-not-found, stream-not-open."""
        path = f"/v1/streams/{ids.show(STREAM_PREFIX, stream)}/withdraw"
        return StreamView.model_validate(self._http.post(path, {}, idempotent=True))

    def stream_refusals(self, stream: UUID) -> Iterator[StreamRefusalView]:
        for item in self._items(f"/v1/streams/{ids.show(STREAM_PREFIX, stream)}/refusals"):
            yield StreamRefusalView.model_validate(item)

    def stream_batches(self, stream: UUID) -> list[StreamBatchView]:
        found = self._http.get(f"/v1/streams/{ids.show(STREAM_PREFIX, stream)}/batches")
        return [StreamBatchView.model_validate(item) for item in found]

    # --- messages, each page a message of its own

    def status_reports(
        self,
        of: UUID,
        *,
        kind: Literal["stream", "batch", "settlement"],
        version: str | None = None,
        header: str | None = None,
        limit: int | None = None,
    ) -> Iterator[bytes]:
        """pacs.002, page by page. Refuses: message-version-unknown, ...-not-found."""
        prefix, folder = {
            "stream": (STREAM_PREFIX, "streams"),
            "batch": ("bat", "batches"),
            "settlement": ("stl", "settlements"),
        }[kind]
        query = {"version": version, "header": header, "limit": limit}
        return self._messages(f"/v1/{folder}/{ids.show(prefix, of)}/status-report", query)

    def account_messages(
        self,
        kind: Literal["camt.052", "camt.053", "camt.054"],
        *,
        participant: str,
        currency: str,
        day: date | None = None,
        version: str | None = None,
        header: str | None = None,
        limit: int | None = None,
    ) -> Iterator[bytes]:
        """An account's report, statement or notifications, page by page. Refuses: day-not-over, account-missing, ..."""
        path = {
            "camt.052": "/v1/account-reports",
            "camt.053": "/v1/account-statements",
            "camt.054": "/v1/notifications",
        }[kind]
        query = {
            "participant": participant,
            "currency": currency,
            "day": None if day is None else day.isoformat(),
            "version": version,
            "header": header,
            "limit": limit,
        }
        return self._messages(path, query)

    # --- recalls

    def submit_recall(self, content: bytes) -> RecallView:
        """A camt.056; the same again is the same recall. Refuses: recall-invalid, recall-id-reused."""
        response = self._http.request(
            "POST", "/v1/recalls", content=content, content_type="application/xml", idempotent=True
        )
        return RecallView.model_validate(strict_json.loads(response.content))

    def recall(self, recall: UUID) -> RecallView:
        return RecallView.model_validate(self._http.get(f"/v1/recalls/{ids.show(RECALL_PREFIX, recall)}"))

    def recall_resolution(self, recall: UUID, *, version: str | None = None, header: str | None = None) -> bytes:
        """camt.029."""
        path = f"/v1/recalls/{ids.show(RECALL_PREFIX, recall)}/resolution"
        query = {"version": version, "header": header}
        return self._http.request("GET", path, query=query, idempotent=True).content

    def _messages(self, path: str, query: dict[str, Any]) -> Iterator[bytes]:
        cursor: str | None = None
        while True:
            response = self._http.request("GET", path, query=query | {"cursor": cursor}, idempotent=True)
            yield response.content
            link = response.links.get("next")
            if link is None:
                return
            cursor = parse_qs(urlsplit(link["url"]).query)["cursor"][0]

    def _items(self, path: str) -> Iterator[Any]:
        cursor: str | None = None
        while True:
            page = self._http.get(path, query={"limit": 500, "cursor": cursor})
            yield from page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return
