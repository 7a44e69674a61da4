"""What every route needs, built once at start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn
from uuid import UUID

from fastapi import Depends, Request

from kernel import ids
from kernel.clock import Clock
from kernel.database import Database
from kernel.errors import ProblemError
from settlement.domain.refusals import SettlementRefusal
from settlement.settings import Directory
from settlement.usecases.settle import Engine
from settlement.usecases.worker import Worker


@dataclass(frozen=True, slots=True)
class Service:
    database: Database
    directory: Directory
    engine: Engine
    worker: Worker
    files_directory: Path
    run_on_submit: bool
    clock: Clock


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Services = Annotated[Service, Depends(_service)]


def parse_ref(prefix: str, text: str, refusal: SettlementRefusal) -> UUID:
    """An id in a path. A malformed one names nothing: the same 404 as an unknown one."""
    try:
        return ids.parse(prefix, text)
    except ValueError as error:
        raise ProblemError(refusal, str(error)) from None


def not_found(refusal: SettlementRefusal) -> NoReturn:
    raise ProblemError(refusal)
