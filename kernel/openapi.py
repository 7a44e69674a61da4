"""The OpenAPI 3.1 document: FastAPI's, with every refusal declared and FastAPI's own error shapes taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from kernel.edge import PROBLEM_MEDIA_TYPE
from kernel.errors import STATUS_BY_REQUEST_REFUSAL, Refusal, RequestRefusal, problem_document

_METHODS = ("get", "put", "post", "delete", "patch")
# Also of an operation that takes neither parameters nor a body: it is sent some all the same, and they are refused.
_ALWAYS = (
    RequestRefusal.TOO_MANY_REQUESTS,
    RequestRefusal.BODY_TOO_LARGE,
    RequestRefusal.REQUEST_TIMEOUT,
    RequestRefusal.NUL_CHARACTER,
    RequestRefusal.VALIDATION_FAILED,
    RequestRefusal.SERVICE_UNAVAILABLE,
    RequestRefusal.INTERNAL_ERROR,
)
_WITH_BODY = (RequestRefusal.UNSUPPORTED_MEDIA_TYPE,)
_WITH_JSON = (RequestRefusal.MALFORMED_JSON,)
_PHRASE_BY_STATUS = {
    400: "Malformed",
    401: "Not signed, or not validly",
    403: "Not permitted",
    404: "Not found",
    405: "Method not allowed",
    408: "Too slow",
    409: "In conflict with what is",
    413: "Too large",
    415: "Unsupported content type",
    422: "Refused",
    429: "Too many requests",
    500: "Failed",
    503: "Unavailable",
}
_PROBLEM_SCHEMA: dict[str, Any] = {
    "title": "Problem",
    "description": "A refusal (RFC 9457). `refusal` is stable and is what programs read.",
    "type": "object",
    "properties": {
        "type": {"type": "string", "description": "`/problems/` and the refusal.", "examples": ["/problems/not-found"]},
        "title": {"type": "string", "description": "The same sentence for every occurrence."},
        "status": {"type": "integer", "description": "The HTTP status."},
        "detail": {"type": "string", "description": "This occurrence, and what to do next; for people."},
        "instance": {"type": "string", "description": "The address asked for."},
        "refusal": {"type": "string", "description": "The refusal's code."},
        "transient": {"type": "boolean", "description": "Whether the identical request may succeed later."},
        "request_id": {"type": "string", "description": "As in X-Request-Id; quote it when asking for help."},
        "errors": {
            "type": "array",
            "description": "What is wrong where, if the request's shape is (`validation-failed`).",
            "items": {
                "type": "object",
                "properties": {
                    "pointer": {"type": "string", "description": "JSON pointer below /body, /query, /path, /header."},
                    "message": {"type": "string"},
                },
                "required": ["pointer", "message"],
            },
        },
    },
    "required": ["type", "title", "status", "detail", "instance", "refusal", "transient", "request_id"],
    "additionalProperties": True,
}


def problems(*refusals: Refusal, statuses: Mapping[Any, int] | None = None) -> dict[int | str, dict[str, Any]]:
    """`responses=` of an operation: each refusal as an example under its status.

    `statuses` is the service's table; request refusals need none. What every operation can answer (400, 408, 413, 422,
    429, 500, 503; with a body 415) is added to the document without being listed.
    """
    table: dict[Any, int] = {**STATUS_BY_REQUEST_REFUSAL, **(statuses or {})}
    responses: dict[int | str, dict[str, Any]] = {}
    for refusal in refusals:
        status = table[refusal]
        response = responses.setdefault(status, _empty_response(status))
        response["content"][PROBLEM_MEDIA_TYPE]["examples"][refusal.value] = _example(refusal, status)
    return responses


def openapi_document(
    app: FastAPI, statuses: Mapping[str, int], models: Sequence[type[BaseModel]] = ()
) -> dict[str, Any]:
    """The app's document; the same bytes for the same code. `models`: bodies that operations read for themselves."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        openapi_version="3.1.0",
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
        servers=app.servers,
    )
    for path in document.get("paths", {}).values():
        for method in _METHODS:
            if method in path:
                _complete(path[method], statuses)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Problem"] = _PROBLEM_SCHEMA
    if models:
        _, extra = models_json_schema(
            [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
        )
        for name, schema in extra["$defs"].items():
            schemas.setdefault(name, schema)
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    return document


def _complete(operation: dict[str, Any], statuses: Mapping[str, int]) -> None:
    responses: dict[str, Any] = operation.setdefault("responses", {})
    if "HTTPValidationError" in str(responses.get("422", "")):
        del responses["422"]
    refusals: list[Refusal] = list(_ALWAYS)
    body = operation.get("requestBody")
    if body:
        refusals += _WITH_BODY
        if "application/json" in body.get("content", {}):
            refusals += _WITH_JSON
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "header" and parameter["name"].lower() == "idempotency-key":
            parameter["required"] = True
            parameter["description"] = "Made by the client; the same on every retry of the same request."
            parameter["schema"] = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[\x21-\x7e]+$"}
            refusals.append(RequestRefusal.IDEMPOTENCY_KEY_MISSING)
    for refusal in refusals:
        status = statuses[refusal.value]
        response = responses.setdefault(str(status), _empty_response(status))
        content = response.setdefault("content", {}).setdefault(PROBLEM_MEDIA_TYPE, {"schema": _reference()})
        content.setdefault("examples", {}).setdefault(refusal.value, _example(refusal, status))
    operation["responses"] = dict(sorted(responses.items()))


def _empty_response(status: int) -> dict[str, Any]:
    return {
        "description": _PHRASE_BY_STATUS.get(status, "Refused"),
        "content": {PROBLEM_MEDIA_TYPE: {"schema": _reference(), "examples": {}}},
    }


def _reference() -> dict[str, str]:
    return {"$ref": "#/components/schemas/Problem"}


def _example(refusal: Refusal, status: int) -> dict[str, Any]:
    value = problem_document(refusal, status, instance="/v1/...", request_id="01928d3e1c2b7a6f8e5d4c3b2a190807")
    return {"summary": refusal.title, "value": value}
