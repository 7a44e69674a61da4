"""GET /docs: the OpenAPI document as one plain HTML page. No script, nothing fetched, readable without styles."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b;background:#fff}
code,pre{font:14px/1.45 ui-monospace,monospace;background:#f3f3f0;border-radius:3px}code{padding:0 .2em}
pre{padding:.7rem;overflow-x:auto}h2{margin-top:2.5rem;border-bottom:1px solid #ccc}section{margin:2rem 0}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:.3rem .6rem;border-bottom:1px solid #ddd}
.method{display:inline-block;min-width:4.5rem;font-weight:700}details{margin:.4rem 0}
""".strip()
_CSP = (
    "default-src 'self'; script-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'"
)


def docs_page(document: Mapping[str, Any]) -> tuple[str, str]:
    """The page and its Content-Security-Policy."""
    return "".join(_page(document)), _CSP


def _page(document: Mapping[str, Any]) -> Iterator[str]:
    info = document["info"]
    title = escape(f"{info['title']} {info['version']}")
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
    yield f"<h1>{title}</h1>{_text(info.get('description', ''))}"
    yield '<p>Machine-readable: <a href="/openapi.json">/openapi.json</a></p><h2>Operations</h2><ul>'
    operations = list(_operations(document))
    for method, path, operation in operations:
        anchor = escape(operation["operationId"])
        yield f'<li><a href="#{anchor}"><span class="method">{method}</span><code>{escape(path)}</code></a> '
        yield f"{escape(operation.get('summary', ''))}</li>"
    yield "</ul>"
    for method, path, operation in operations:
        yield from _operation(method, path, operation)
    yield "<h2>Schemas</h2>"
    for name, schema in document.get("components", {}).get("schemas", {}).items():
        yield f'<section id="schema-{escape(name)}"><h3>{escape(name)}</h3>{_text(schema.get("description", ""))}'
        yield from _members(schema)
        yield "</section>"
    yield "</body></html>"


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for path, item in document.get("paths", {}).items():
        for method in ("get", "post", "put", "patch", "delete"):
            if method in item:
                yield method.upper(), path, item[method]


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f'<section id="{escape(operation["operationId"])}"><h3><span class="method">{method}</span>'
    yield f"<code>{escape(path)}</code></h3><p><b>{escape(operation.get('summary', ''))}</b></p>"
    yield _text(operation.get("description", ""))
    if operation.get("parameters"):
        yield "<table><tr><th>Parameter<th>In<th>Type<th>Meaning</tr>"
        for parameter in operation["parameters"]:
            required = "" if parameter.get("required") else " (optional)"
            yield f"<tr><td><code>{escape(parameter['name'])}</code>{required}<td>{escape(parameter['in'])}"
            yield f"<td>{_type(parameter.get('schema', {}))}<td>{escape(parameter.get('description', ''))}</tr>"
        yield "</table>"
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<p>Body: <code>{escape(media_type)}</code> {_type(content.get('schema', {}))}</p>"
        yield from _examples(content)
    for status, response in operation.get("responses", {}).items():
        yield f"<h4>{escape(status)} {escape(response.get('description', ''))}</h4>"
        for media_type, content in response.get("content", {}).items():
            yield f"<p><code>{escape(media_type)}</code> {_type(content.get('schema', {}))}</p>"
            yield from _examples(content)
    yield "</section>"


def _members(schema: Mapping[str, Any]) -> Iterator[str]:
    if not schema.get("properties"):
        yield f"<p>{_type(schema)}</p>"
        return
    required = schema.get("required", [])
    yield "<table><tr><th>Member<th>Type<th>Meaning</tr>"
    for name, member in schema["properties"].items():
        optional = "" if name in required else " (optional)"
        yield f"<tr><td><code>{escape(name)}</code>{optional}<td>{_type(member)}"
        yield f"<td>{escape(member.get('description', ''))}</tr>"
    yield "</table>"
    yield from _examples(schema)


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(_type(option) for option in schema[several])
    if "const" in schema:
        return f"<code>{escape(json.dumps(schema['const']))}</code>"
    if "enum" in schema:
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    bounds = {
        name: schema[name]
        for name in ("format", "pattern", "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems")
        if name in schema
    }
    described = "".join(f" {name} <code>{escape(str(value))}</code>" for name, value in bounds.items())
    return escape(str(schema.get("type", "any"))) + described


def _examples(content: Mapping[str, Any]) -> Iterator[str]:
    examples = content.get("examples", {})
    if isinstance(examples, list):
        examples = {f"example {number}": {"value": value} for number, value in enumerate(examples, 1)}
    for name, example in examples.items():
        shown = escape(json.dumps(example.get("value"), ensure_ascii=False, indent=2))
        summary = f"<code>{escape(name)}</code> {escape(example.get('summary', ''))}"
        yield f"<details><summary>{summary}</summary><pre>{shown}</pre></details>"


def _text(text: str) -> str:
    return "".join(f"<p>{escape(paragraph)}</p>" for paragraph in text.split("\n\n") if paragraph.strip())
