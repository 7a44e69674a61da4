"""The committed OpenAPI documents: what the code says, complete enough to program against.

Goal: nobody reads a stale document, and every operation says how it can refuse.
Method: generate all three, once each, and compare (also `make check` does); walk every operation of what is committed.
"""

from __future__ import annotations

import asyncio
import re
from functools import cache
from typing import Any

import httpx
import pytest
import yaml

from sandbox.openapi import APPS, PROBLEMS_PATH, document, path_of, problems_document
from tests.sizes import some

METHODS = {"get", "post", "put", "patch", "delete"}
text_of = cache(document)


@cache
def content_of(service: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.load(path_of(service).read_text(encoding="utf-8"), yaml.CSafeLoader)
    return content


@pytest.mark.parametrize("service", sorted(APPS))
@pytest.mark.extended
def test_committed_document_is_what_the_code_says(service: str) -> None:
    assert path_of(service).read_text(encoding="utf-8") == text_of(service), "run `make openapi` and commit"


def test_the_list_of_problems_is_what_the_code_says() -> None:
    assert PROBLEMS_PATH.read_text(encoding="utf-8") == problems_document(), "run `make openapi` and commit"


@pytest.mark.parametrize("service", some(sorted(APPS), each=3))
def test_every_operation_is_named_and_lists_its_refusals(service: str) -> None:
    content = content_of(service)
    assert content["openapi"].startswith("3.1")
    assert "HTTPValidationError" not in content["components"]["schemas"]
    names = []
    for path, item in content["paths"].items():
        for method, operation in item.items():
            if method not in METHODS:
                continue
            names.append(operation["operationId"])
            if path == "/healthz":
                continue
            problems = {status for status in operation["responses"] if status[0] in "45"}
            assert problems, f"{method} {path} lists no refusals"
            for status in problems:
                assert "application/problem+json" in operation["responses"][status]["content"], (path, status)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("service", some(sorted(APPS), each=3))
def test_every_reference_leads_somewhere(service: str) -> None:
    schemas = content_of(service)["components"]["schemas"]
    wanted = set(re.findall(r"#/components/schemas/([A-Za-z0-9_.-]+)", text_of(service)))
    assert wanted
    assert wanted - set(schemas) == set()


@pytest.mark.parametrize("service", some(sorted(APPS), each=3))
def test_amounts_are_strings_of_digits_everywhere(service: str) -> None:
    schemas = content_of(service)["components"]["schemas"]
    amounts = {
        f"{name}.{member}": schema
        for name, body in schemas.items()
        for member, schema in body.get("properties", {}).items()
        if member.endswith("_minor") and not member.startswith("is_")
    }
    assert amounts
    for name, schema in amounts.items():
        schema = schema["items"] if schema.get("type") == "array" else schema
        if schema.get("type") == "object":  # amounts by currency
            schema = schema.get("additionalProperties") or next(iter(schema["patternProperties"].values()))
        kinds = {schema.get("type"), *(option.get("type") for option in schema.get("anyOf", []))}
        assert "integer" not in kinds, name
        assert "number" not in kinds, name
        assert "string" in kinds, name


UNINVITED: dict[str, tuple[str, dict[str, str], bytes]] = {
    "query": ("?nobody-asked-for=this", {}, b""),
    "query without a value": ("?=", {}, b""),
    "NUL in the query": ("?a=%00", {}, b""),
    "NUL in the path": ("%00", {}, b""),
    "endless body": ("", {"content-length": str(10**12), "content-type": "application/json"}, b""),
    "body of another kind": ("", {"content-type": "text/plain"}, b"hello"),
}
"""What an operation is sent although its document says nothing of it: (end of the address, headers, body)."""
REFUSED_AS = {
    "query": {"validation-failed"},
    "query without a value": {"validation-failed"},
    "NUL in the query": {"nul-character"},
    "NUL in the path": {"nul-character"},
    "endless body": {"body-too-large"},
    "body of another kind": {"unsupported-media-type"},
}


@pytest.mark.parametrize("service", sorted(APPS))
def test_what_no_operation_asks_for_is_refused_as_its_document_says(service: str) -> None:
    """Every operation, also those that take neither parameters nor a body; the app is asked in this process, and its
    start (database, other services) is not needed: nothing of this comes as far."""
    content = content_of(service)
    wrong: list[str] = []

    async def ask() -> int:
        asked = 0
        transport = httpx.ASGITransport(APPS[service]())
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            for path, item in content["paths"].items():
                address = re.sub(r"\{[^}]+\}", "x", path)
                for method in METHODS & set(item):
                    for name, (end, headers, body) in UNINVITED.items():
                        if name == "body of another kind" and "requestBody" not in item[method]:
                            continue  # no operation that takes none looks at one
                        answer = await client.request(method, address + end, headers=headers, content=body)
                        asked += 1
                        refusal = answer.json().get("refusal")
                        said = item[method]["responses"].get(str(answer.status_code), {}).get("content", {})
                        listed = said.get(answer.headers["content-type"], {}).get("examples", {})
                        if refusal not in REFUSED_AS[name] or refusal not in listed:
                            wrong.append(f"{method} {path}: {name}: {answer.status_code} {refusal}")
        return asked

    assert asyncio.run(ask()) >= 5 * len(content["paths"])
    assert not wrong, "\n".join(wrong)
