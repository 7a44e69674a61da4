"""Whatever a service's OpenAPI document allows, and what it forbids, sent to the real service; every answer judged.

    fuzz = OpenApiFuzz(app.openapi(), client, signers=[...], known={"wlt": [...]}, examples=3)
    fuzz.run()
    assert not fuzz.findings

Method: schemathesis makes requests of both kinds (data that fit the document, data that break it); this signs them as a
registered client, puts ids that exist in place of most made-up ones, so that operations are reached past the door, and
judges: no 5xx but a documented 503, every status, body and content type as documented, problem documents (RFC 9457)
well-formed, and their refusal one that the operation lists. The same requests from run to run (derandomized).
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from kernel import ids

CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
PROBLEM_MEDIA_TYPE = "application/problem+json"
_ID = re.compile(r"([a-z]{3})_")
_NOT_OF_THE_OPERATION = {"not-found", "method-not-allowed"}
"""What the router answers when a made-up path is not the operation's (a slash or a line feed in a parameter)."""


def examples_wanted(default: int) -> int:
    """How many requests of each kind an operation gets; JIAOZI_EXAMPLES for a campaign."""
    return int(os.environ.get("JIAOZI_EXAMPLES", default))


def every_wanted() -> int:
    """`make test` asks each eighth operation (JIAOZI_SEED begins with another); JIAOZI_EVERY=1 all."""
    return int(os.environ.get("JIAOZI_EVERY", "8"))


@dataclass(frozen=True, slots=True)
class Finding:
    operation: str
    what: str
    request: str
    answer: str

    def __str__(self) -> str:
        return f"{self.operation}: {self.what}\n    {self.request}\n    {self.answer}"


@dataclass
class OpenApiFuzz:
    """One run over one service. `findings` has one of each kind an operation."""

    document: dict[str, Any]
    client: httpx.Client
    signers: Sequence[httpx.Auth]
    """Clients of different roles: each operation is asked by the first who may."""
    known: Mapping[str, Sequence[str]]
    """Ids that exist, by their prefix, or by the name of a path parameter."""
    made: Mapping[str, Callable[[], str]] = field(default_factory=dict)
    """Members that only a key's holder can fill (signed tokens), by name."""
    files: Mapping[tuple[str, str], Callable[[], str]] = field(default_factory=dict)
    """Whole bodies that are no JSON, by operation's label and media type; every other request has one."""
    examples: int = 2
    every: int = field(default_factory=every_wanted)
    """1: each operation; 4: each fourth of the document's."""
    skipped: frozenset[str] = frozenset()
    number: int = int(os.environ.get("JIAOZI_SEED", "0"))
    """Another number, other requests."""
    findings: dict[tuple[str, str], Finding] = field(default_factory=dict)
    answers: dict[str, Counter[int]] = field(default_factory=dict)
    refusals: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    _signer: dict[str, int] = field(default_factory=dict)

    def run(self) -> None:
        schema = schemathesis.openapi.from_dict(self.document)
        for position, result in enumerate(schema.get_all_operations()):
            operation = result.ok()
            if operation.label in self.skipped or (position + self.number) % self.every:
                continue
            began = time.monotonic()
            self.answers[operation.label] = Counter()
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                if mode is GenerationMode.NEGATIVE and not _takes_anything(operation):
                    continue
                self._try(operation, mode)
            self.seconds[operation.label] = time.monotonic() - began

    def reached(self) -> set[str]:
        """Operations that looked at a request: some answer was neither 401, 403 nor 429."""
        return {name for name, counts in self.answers.items() if set(counts) - {401, 403, 429}}

    def _try(self, operation: Any, mode: GenerationMode) -> None:
        @seed(self.number)
        @settings(
            max_examples=self.examples,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode), choice=st.integers(0, 2**16))
        def attempt(case: Any, choice: int) -> None:
            if choice % 5 != 4:
                self._reach(case, choice, is_whole=mode is GenerationMode.POSITIVE)
            self._judge(case, self._send(case))

        attempt()

    def _reach(self, case: Any, choice: int, *, is_whole: bool) -> None:
        """Ids that exist in the path (and in the body, where the rest of it is as documented)."""
        if case.path_parameters:
            case.path_parameters = {
                name: self._known_for(case, name, value, choice) for name, value in case.path_parameters.items()
            }
        if is_whole and isinstance(case.body, dict):
            case.body = self._with_known(case.body, choice)
        elif is_whole and choice % 2 and (case.operation.label, case.media_type) in self.files:
            case.body = self.files[case.operation.label, case.media_type]()
        if is_whole and case.query:
            case.query = {name: self._known(value, choice) for name, value in case.query.items()}

    def _known_for(self, case: Any, name: str, value: Any, choice: int) -> Any:
        key = name
        for parameter in case.operation.definition.raw.get("parameters", []):
            if parameter.get("name") == name and parameter.get("in") == "path" and name not in self.known:
                found = _ID.search(str(parameter.get("schema", {}).get("pattern", "")))
                key = found.group(1) if found else name
        if key in self.known:
            return self.known[key][choice % len(self.known[key])]
        return self._known(value, choice)

    def _known(self, value: Any, choice: int, *, new_one_in: int = 4) -> Any:
        """An id that exists; else a new one of today, for the times in made-up ones are far away."""
        if not isinstance(value, str) or not (found := _ID.match(value)):
            return value
        prefix = found.group(1)
        if prefix in self.known and (choice + 1) % new_one_in:
            return self.known[prefix][choice % len(self.known[prefix])]
        return ids.show(prefix, ids.new_uuid7()) if prefix != "acc" else value

    def _with_known(self, value: Any, choice: int) -> Any:
        if isinstance(value, dict):
            return {
                name: self.made[name]()
                if name in self.made and isinstance(inner, str)
                else self._with_known(inner, choice // 2 + index)
                for index, (name, inner) in enumerate(value.items())
            }
        if isinstance(value, list):
            return [self._with_known(inner, choice // 2 + index) for index, inner in enumerate(value)]
        return self._known(value, choice, new_one_in=2)  # a write's own id is to be new, what it speaks of is not

    def _send(self, case: Any) -> httpx.Response:
        label = case.operation.label
        arguments = case.as_transport_kwargs(base_url=str(self.client.base_url).rstrip("/"))
        names = ("method", "url", "params", "headers", "json", "data", "files", "cookies")
        prepared = requests.Request(**{name: arguments[name] for name in names if name in arguments}).prepare()
        content = prepared.body.encode() if isinstance(prepared.body, str) else prepared.body
        headers = {
            name: value.encode("utf-8", "replace") if isinstance(value, str) else value
            for name, value in prepared.headers.items()
            if name.lower() != "content-length"
        }
        while True:
            number = self._signer.get(label, 0)
            request = self.client.build_request(
                prepared.method or "GET", prepared.url or "", content=content, headers=headers
            )
            response = self.client.send(request, auth=self.signers[number])
            is_other_role = response.status_code == 403 and _refusal(response) == "not-permitted"
            if not is_other_role or number + 1 == len(self.signers):
                return response
            self._signer[label] = number + 1

    def _judge(self, case: Any, response: httpx.Response) -> None:
        refusal = _refusal(response)
        self.refusals[f"{response.status_code} {refusal}".strip()] += 1
        if refusal in _NOT_OF_THE_OPERATION and refusal not in self._documented(case.operation, response.status_code):
            if wrong := _malformed_problem(response):
                self._find(case, response, wrong)
            return
        self.answers[case.operation.label][response.status_code] += 1
        if response.status_code >= 500 and response.status_code != 503:
            self._find(case, response, f"a {response.status_code}")
        try:
            case.validate_response(response, checks=CHECKS)
        except FailureGroup as group:
            for failure in group.exceptions:
                self._find(case, response, f"{failure.title} ({response.status_code})", failure)
        except Failure as failure:
            self._find(case, response, f"{failure.title} ({response.status_code})", failure)
        if response.status_code >= 400:
            if wrong := _malformed_problem(response):
                self._find(case, response, wrong)
            elif refusal not in self._documented(case.operation, response.status_code):
                self._find(case, response, f"undocumented refusal {refusal} ({response.status_code})")

    def _documented(self, operation: Any, status: int) -> set[str]:
        responses = operation.definition.raw.get("responses", {})
        content = responses.get(str(status), {}).get("content", {}).get(PROBLEM_MEDIA_TYPE, {})
        return set(content.get("examples", {}))

    def _find(self, case: Any, response: httpx.Response, what: str, failure: Any = None) -> None:
        key = (case.operation.label, what)
        if key in self.findings:
            return
        request = response.request
        body = request.content.decode("utf-8", "replace")
        more = "" if failure is None else f" | {' '.join(str(failure.message).split())[:600]}"
        self.findings[key] = Finding(
            case.operation.label,
            what,
            f"{request.method} {str(request.url)[:300]} {request.headers.get('content-type', '')} {body[:600]}",
            f"{response.status_code} {response.text[:300]}{more}",
        )

    def report(self) -> str:
        slow = sorted(self.seconds.items(), key=lambda item: -item[1])[:5]
        lines = [str(finding) for finding in self.findings.values()]
        return "\n".join([*lines, f"answers {dict(self.refusals.most_common())}", f"slowest {slow}"])


def _takes_anything(operation: Any) -> bool:
    return bool(operation.definition.raw.get("parameters") or operation.definition.raw.get("requestBody"))


def _refusal(response: httpx.Response) -> str:
    try:
        document = response.json()
    except ValueError:
        return ""
    return str(document.get("refusal", "")) if isinstance(document, dict) else ""


def _malformed_problem(response: httpx.Response) -> str:
    """What is wrong with a refusal as RFC 9457 and this project have it; "" if nothing."""
    if response.headers.get("content-type") != PROBLEM_MEDIA_TYPE:
        return f"a refusal that is no problem document ({response.status_code})"
    try:
        document = json.loads(response.content)
    except ValueError:
        return "a problem that is not JSON"
    refusal = document.get("refusal")
    expected = {
        "status": response.status_code,
        "type": f"/problems/{refusal}",
        "request_id": response.headers.get("x-request-id"),
    }
    wrong = [name for name, value in expected.items() if document.get(name) != value]
    wrong += [name for name in ("title", "detail", "instance") if not isinstance(document.get(name), str)]
    if not isinstance(document.get("transient"), bool):
        wrong.append("transient")
    return f"a malformed problem: {', '.join(wrong)}" if wrong else ""
