"""Several institutions behind one port: each has an app of its own, below `/t/<participant>` (decision 18).

The address says whose door it is, the key that signed says who may pass it: an institution's app knows its own clients
alone, and what they sign is its own public URL. An app has everything for itself: connections, recovery, workers,
keys, bounds on requests. A proxy that gives each institution a host of its own puts the prefix in front of the path.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from kernel import migrate
from kernel.clock import Clock, system_clock
from kernel.database import resolve_url
from kernel.http import create_app
from wallet.api.app import Connect, create
from wallet.api.dependencies import STATUSES
from wallet.settings import SERVICE
from wallet.tenant_settings import TenantsSettings, check_keys

_ADDRESS = re.compile(r"(/t/([A-Z0-9]{8,11}))(/.*)", re.ASCII | re.DOTALL)


class Tenants:
    """An ASGI app. What is addressed to no institution is answered by an app that has nothing but its health."""

    def __init__(
        self, settings: TenantsSettings, *, connect: Connect | None = None, clock: Clock = system_clock
    ) -> None:
        """Nothing is opened before it starts. Raises: OSError, InvalidSettings."""
        self._settings = settings
        self._institutions = settings.institutions()
        self._connect = connect
        self._clock = clock
        self._apps: dict[str, FastAPI] = {}
        self._door = create_app(
            title="Jiaozi wallet services",
            version="1.0.0",
            description="Each institution's service is below /t/<its participant code>.",
            status_tables=[STATUSES],
            lifespan=self._lifespan,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            app, inside = self._find(scope)
            await app(inside, receive, send)
        else:
            await self._door(scope, receive, send)

    def _find(self, scope: Scope) -> tuple[FastAPI, Scope]:
        match = _ADDRESS.fullmatch(scope["path"])
        app = None if match is None else self._apps.get(match[2])
        if match is None or app is None:
            return self._door, scope
        inside = {**scope, "path": match[3], "state": dict(scope.get("state", {}))}
        raw: bytes | None = scope.get("raw_path")
        if raw is not None:
            prefix = match[1].encode()
            if not raw.startswith(prefix + b"/"):  # another spelling of it, which nobody has signed
                return self._door, scope
            inside["raw_path"] = raw[len(prefix) :]
        return app, inside

    @asynccontextmanager
    async def _lifespan(self, door: FastAPI) -> AsyncIterator[None]:
        settings = self._settings
        await run_in_threadpool(check_keys, self._institutions)
        async with AsyncExitStack() as stack:
            url, server = await run_in_threadpool(
                resolve_url, settings.database_url, data_dir=settings.data_dir, service=SERVICE
            )
            if server is not None:
                stack.push_async_callback(run_in_threadpool, server.stop)
                await run_in_threadpool(migrate.upgrade, SERVICE, server.url(SERVICE), service_url=url)
            for one in self._institutions:
                own = one.model_copy(update={"database_url": url})
                app = create(own, connect=self._connect, clock=self._clock, is_alone=False)
                await stack.enter_async_context(app.router.lifespan_context(app))
                self._apps[one.participant] = app
            stack.callback(self._apps.clear)
            yield
