"""The HTTP edge of every service: one way to build an app, read JSON, refuse, and describe itself.

    app = create_app(title=..., version=..., description=..., status_tables=[STATUS_BY_LEDGER_REFUSAL],
                     lifespan=..., body_limits={"/v1/transfer-batches": BULK_BODY_BYTES_MAX})
    router = strict_router(tags=["transfers"])            # always this one: a bare APIRouter is refused at start-up

    @router.post("/v1/x", operation_id="create_x", status_code=201, responses=problems(R.A, R.B, statuses=STATUS_...))
    def create_x(body: XRequest, key: IdempotencyKey) -> XView:
        raise ProblemError(R.A, "detail")                  # rendered as application/problem+json with R.A's status

Raw (non-JSON) bodies: declare `openapi_extra={"requestBody": {"content": {"application/xml": {}}}}` and take
`request: Request`; other content types are then refused with 415. Dependencies that need the raw bytes (signatures)
use `await request.body()`: it is already read, bounded and kept. A front proxy, if there is one, must keep its own
limits per client: behind it every request has the proxy's address.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from email.message import Message as MimeHeaders
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response, params
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_flat_params
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from kernel import limits, strict_json
from kernel.docs_page import docs_page
from kernel.edge import HEALTH_PATH, Direct, DirectRead, Edge, EdgeBounds, merged_statuses, render
from kernel.errors import STATUS_BY_REQUEST_REFUSAL, ProblemError, Refusal, RequestRefusal
from kernel.openapi import openapi_document, problems

__all__ = [
    "IdempotencyKey",
    "create_app",
    "forbid_unknown_query",
    "problem_response",
    "problems",
    "request_id_of",
    "status_of",
    "strict_router",
]

_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]{1,255}")
_REFUSAL_BY_STATUS = {
    STATUS_BY_REQUEST_REFUSAL[refusal]: refusal
    for refusal in (
        RequestRefusal.NOT_FOUND,
        RequestRefusal.METHOD_NOT_ALLOWED,
        RequestRefusal.BODY_TOO_LARGE,
        RequestRefusal.UNSUPPORTED_MEDIA_TYPE,
        RequestRefusal.NOT_PERMITTED,
        RequestRefusal.SERVICE_UNAVAILABLE,
        RequestRefusal.MALFORMED_JSON,
    )
}

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


class _App(FastAPI):
    """A FastAPI app whose outermost layer is the edge. FastAPI puts layers of its own before every other (plain-text
    answers to errors, telemetry, a bound of bodies): the edge does that work, so they would cost and never act."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        if self.middleware_stack is None:
            self.middleware_stack = self.build_middleware_stack()
        await self.middleware_stack(scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        outermost: ASGIApp = super().build_middleware_stack()
        added: list[Any] = [each.cls for each in self.user_middleware]
        while type(outermost) not in added:
            layer: Any = outermost
            outermost = layer.app
        return outermost

    def include_router(self, router: APIRouter, **arguments: Any) -> None:
        """A router that is taken as it is gives its operations themselves: FastAPI would analyse each of them a second
        time when the app starts, for a prefix that is not there."""
        if arguments:
            super().include_router(router, **arguments)
        else:
            self.router.routes.extend(router.routes)


def create_app(
    *,
    title: str,
    version: str,
    description: str,
    status_tables: Sequence[Mapping[Any, int]],
    lifespan: Lifespan | None = None,
    body_bytes_max: int = limits.BODY_BYTES_MAX,
    body_limits: Mapping[str, int] | None = None,
    read_seconds_max: float = limits.READ_SECONDS_MAX,
    concurrent_requests_max: int = limits.CONCURRENT_REQUESTS_MAX,
    concurrent_requests_per_client_max: int = limits.CONCURRENT_REQUESTS_PER_CLIENT_MAX,
    models: Sequence[type[BaseModel]] = (),
    direct: Mapping[str, Direct] | None = None,
    direct_reads: Mapping[str, DirectRead] | None = None,
) -> FastAPI:
    """A FastAPI app with the edge of this module, GET /healthz, /openapi.json and /docs.

    A service may set `app.state.failure`, a callable that says why it does not work (None: it does), for /healthz.
    `status_tables` are the service's refusal -> HTTP status tables (the request refusals' own is added).
    `models` are bodies that operations read for themselves, for the document.
    `body_limits` maps path templates ("/v1/batches/{id}") to body bounds in bytes other than `body_bytes_max`.
    `direct` maps paths to what answers their plain requests beside the framework (kernel.edge); each is the POST
    operation of that path too, which is what the document shows and what takes every other request. `direct_reads` is
    the same for GET, by path template.
    """
    statuses = merged_statuses([STATUS_BY_REQUEST_REFUSAL, *status_tables])
    app = _App(
        title=title,
        version=version,
        description=description,
        lifespan=_checked(lifespan),
        docs_url=None,  # FastAPI's page loads its scripts from a CDN; ours is below
        redoc_url=None,
        redirect_slashes=False,
    )
    app.router.route_class = StrictRoute
    app.state.status_by_refusal = statuses
    app.state.models = models
    bounds = EdgeBounds(
        body_bytes_max=body_bytes_max,
        body_limits=dict(body_limits or {}),
        read_seconds_max=read_seconds_max,
        concurrent_requests_max=concurrent_requests_max,
        concurrent_requests_per_client_max=concurrent_requests_per_client_max,
    )
    app.state.direct = {("POST", path) for path in direct or {}} | {("GET", path) for path in direct_reads or {}}
    app.add_middleware(Edge, bounds=bounds, statuses=statuses, direct=direct, direct_reads=direct_reads)
    # Everything else that is raised reaches the edge; these two would be answered by FastAPI in its own shape.
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it

    @app.get(HEALTH_PATH, operation_id="health", tags=["service"], summary="Whether the service does its work")
    async def health() -> dict[str, str]:
        """503 once the service has stopped writing; then a supervisor restarts it, or pages a person."""
        failure = getattr(app.state, "failure", lambda: None)()
        if failure is not None:
            raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, str(failure))
        return {"status": "ok"}

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        page, content_security_policy = docs_page(app.openapi())
        return HTMLResponse(page, headers={"content-security-policy": content_security_policy})

    return app


def strict_router(**arguments: Any) -> APIRouter:
    """An APIRouter whose operations read strict JSON and check content types. Same arguments as APIRouter."""
    return APIRouter(route_class=StrictRoute, **arguments)


def problem_response(request: Request, refusal: Refusal, detail: str = "", **extra: Any) -> Response:
    """A refusal as an application/problem+json response, for handlers that return rather than raise."""
    return _render(request, ProblemError(refusal, detail, **extra))


def status_of(request: Request, refusal: Refusal) -> int:
    """The HTTP status of a refusal in this app (for results per item of bulk calls)."""
    statuses: dict[str, int] = request.app.state.status_by_refusal
    return statuses[refusal.value]


def request_id_of(request: Request) -> str:
    """The request's id, as in X-Request-Id."""
    return str(request.state.request_id)


def _idempotency_key(key: Annotated[str | None, Header(alias="Idempotency-Key")] = None) -> str:
    if key is None:
        raise ProblemError(
            RequestRefusal.IDEMPOTENCY_KEY_MISSING, "send an Idempotency-Key of your own making, the same on a retry"
        )
    if _VISIBLE_ASCII.fullmatch(key) is None:
        message = "1 to 255 visible ASCII characters"
        raise ProblemError(
            RequestRefusal.VALIDATION_FAILED,
            f"Idempotency-Key: {message}",
            errors=[{"pointer": "/header/Idempotency-Key", "message": message}],
        )
    return key


IdempotencyKey = Annotated[str, Depends(_idempotency_key)]
"""Parameter type: the required Idempotency-Key header, 1-255 visible ASCII characters; 400 without it."""


def forbid_unknown_query(request: Request) -> None:
    """422 for a query parameter the operation does not declare, or one given twice. On every strict operation."""
    _check_query(request, _query_names(request.scope["route"].dependant))


class StrictRequest(Request):
    """A request whose JSON is read by kernel.strict_json."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = strict_json.loads(await self.body(), wire=True)
        return self._json


class StrictRoute(APIRoute):
    """An operation that checks content type and query before FastAPI looks at them, and reads strict JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        accepted = self._accepted_media_types()
        known = _query_names(self.dependant)

        async def handle_strictly(request: Request) -> Response:
            if request.query_params:
                _check_query(request, known)
            if accepted:
                await _check_content_type(request, accepted)
            return await handle(StrictRequest(request.scope, request.receive))

        return handle_strictly

    def _accepted_media_types(self) -> frozenset[str]:
        if self.body_field is not None:
            return frozenset({"application/json"})
        return frozenset((self.openapi_extra or {}).get("requestBody", {}).get("content", {}))


def _query_names(dependant: Dependant) -> set[str]:
    return {field.alias for field in get_flat_params(dependant) if isinstance(field.field_info, params.Query)}


def _check_query(request: Request, known: set[str]) -> None:
    names = [name for name, _ in request.query_params.multi_items()]
    errors = [
        {"pointer": _pointer(("query", name)), "message": "this operation has no such query parameter"}
        for name in names
        if name not in known
    ] or [
        {"pointer": _pointer(("query", name)), "message": "given more than once"}
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    if errors:
        raise ProblemError(
            RequestRefusal.VALIDATION_FAILED, "see errors", errors=errors[: limits.VALIDATION_ERRORS_MAX]
        )


async def _check_content_type(request: Request, accepted: frozenset[str]) -> None:
    headers = request.headers
    if "transfer-encoding" not in headers and headers.get("content-length", "0") == "0":
        return
    given = MimeHeaders()
    given["content-type"] = headers.get("content-type", "")
    charset = given.get_content_charset("utf-8")
    if "content-type" not in headers or given.get_content_type() not in accepted or charset not in ("utf-8", "utf8"):
        expected = " or ".join(sorted(accepted))
        raise ProblemError(RequestRefusal.UNSUPPORTED_MEDIA_TYPE, f"send {expected} in UTF-8")
    if headers.get("content-encoding", "identity") != "identity":
        raise ProblemError(RequestRefusal.UNSUPPORTED_MEDIA_TYPE, "send the body without Content-Encoding")


async def _http_exception(request: Request, error: Exception) -> Response:
    # FastAPI wraps whatever reading a body raises; the refusal inside is the answer.
    if isinstance(error.__cause__, ProblemError):
        return _render(request, error.__cause__)
    assert isinstance(error, HTTPException)  # noqa: S101  narrows the handler's type only
    default = RequestRefusal.VALIDATION_FAILED if error.status_code < 500 else RequestRefusal.INTERNAL_ERROR
    response = _render(request, ProblemError(_REFUSAL_BY_STATUS.get(error.status_code, default)))
    if error.headers and "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  narrows the handler's type only
    found = error.errors()
    errors = [
        # The message only: `input` and `ctx` would echo the client's data, of whatever size.
        {"pointer": _pointer(item["loc"]), "message": str(item["msg"])[:200]}
        for item in found[: limits.VALIDATION_ERRORS_MAX]
    ]
    problem = ProblemError(RequestRefusal.VALIDATION_FAILED, "see errors", errors=errors, errors_total=len(found))
    return _render(request, problem)


def _pointer(location: Sequence[int | str]) -> str:
    """RFC 6901, from a root of which body, query, path and header are members."""
    parts = [str(part)[:64].replace("~", "~0").replace("/", "~1") for part in location]
    return "".join(f"/{part}" for part in parts)


def _render(request: Request, problem: ProblemError) -> Response:
    statuses: dict[str, int] = request.app.state.status_by_refusal
    body, headers = render(problem, statuses, instance=request.url.path, request_id=request_id_of(request))
    response = Response(body, status_code=statuses[problem.refusal.value])
    response.raw_headers = headers
    return response


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        _check_routes(app)
        app.openapi_schema = openapi_document(app, app.state.status_by_refusal, app.state.models)
    return app.openapi_schema


def _check_routes(app: FastAPI) -> None:
    undocumented: set[tuple[str, str]] = set(app.state.direct)
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if isinstance(route, APIRoute):
            undocumented -= {(method, route.path) for method in route.methods or ()}
        if isinstance(route, APIRoute) and not isinstance(route, StrictRoute):
            raise TypeError(f"{route.path} is not strict: declare it on kernel.http.strict_router()")
    if undocumented:
        raise TypeError(f"direct operations without an operation in the app: {sorted(undocumented)}")


def _checked(lifespan: Lifespan | None) -> Lifespan:
    @asynccontextmanager
    async def checked(app: FastAPI) -> AsyncIterator[None]:
        _check_routes(app)
        if lifespan is None:
            yield
        else:
            async with lifespan(app):
                yield

    return checked
