"""What is done to whom. A fault strikes at a point, is mended, and may have an aftermath once the rest has recovered.

- engine: kill (SIGKILL, started again); stop (SIGSTOP; a second process takes over and finishes; SIGCONT: the deposed
  one goes on where it stood, secrets in hand, and must do no harm); rival (a second live process deposes it there)
- engine-postgres: kill (SIGKILL of the postmaster), stop (SIGSTOP of all its processes), cut (every session ended)
- each ledger: kill, stop for longer than a call may take, partition; its PostgreSQL: kill, stop, cut
- each institution: partition, it is dead to the bridge
- a message: drop, delay, duplicate, hold (arrives when everything is over); its answer: drop, delay

`applies_to` leaves out what would be the same case again: between two neighbouring points only one of the actors does
anything, and the others cannot tell the two apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from settlement.torture import proxy
from settlement.torture.points import Hit
from settlement.torture.proxy import Proxy
from settlement.torture.world import CALL_SECONDS, ENGINE, Ledger, Process, Server, World, WorldFailed, until

STOP_SECONDS = CALL_SECONDS * 1.2
"""Of what cannot be taken over: the caller has given up meanwhile, and the request is still carried out afterwards."""
OUTAGE_SECONDS = 0.15
DEPOSED_SECONDS_MAX = 8.0
"""A stopped engine that goes on writes, or renews its lease, within a second; both tell it that it is deposed."""
RESTART_SECONDS = 0.35
"""An engine that met an error tries again after 0.2 s (`settlement.usecases.worker`)."""
RIVAL_SECONDS_MAX = 0.4
"""At a point inside a transaction the lease's row is locked, so the rival gets it only when the transaction ends."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`name` is `ACTOR-KIND`. `strike` runs at the point; `mend` afterwards, by the campaign."""

    actor: str
    kind: str
    strike: Callable[[Hit], str | None]
    mend: Callable[[], None]
    aftermath: Callable[[], None]

    @property
    def name(self) -> str:
        return f"{self.actor}-{self.kind}"

    @property
    def is_of_message(self) -> bool:
        return self.actor in ("request", "answer")

    @property
    def is_lifted_when_mended(self) -> bool:
        """Mending takes its time, and only at its end is everything there again."""
        return self.kind == "partition" or (self.kind == "stop" and self.actor != ENGINE)

    def applies_to(self, point: str) -> bool:
        """Does the point differ from its neighbours for this actor?

        The engine can be hurt everywhere. Its database: around each of its writes, and while a call is under way. A
        ledger or institution: when its own message has come and when it has been carried out, and after each write.
        """
        step, _, moment = point.rpartition(":")
        place = step.partition("@")[2]
        if self.is_of_message:
            return moment == self.actor
        if self.actor == ENGINE:
            return True
        if self.actor == f"{ENGINE}-postgres":
            return moment == "request" if place else True
        if not place:
            return moment == "after" and self.is_of_ledger
        return moment in ("request", "answer") and place in (self.actor, self.actor.removesuffix("-postgres"))

    @property
    def is_of_ledger(self) -> bool:
        return "-ledger" in self.actor


def faults_of(world: World) -> dict[str, Fault]:
    """By name; they refer to the world's present processes when they strike."""
    found = [*_of_engine(world), *_of_server(ENGINE, world.engine_server)]
    for ledger in world.ledgers.values():
        found += [*_of_ledger(world, ledger), *_of_server(ledger.name, ledger.server)]
    for institution in world.institutions.values():
        found.append(_partition(institution.participant, institution.proxy))
    found += _of_messages(world)
    return {fault.name: fault for fault in found}


def _of_engine(world: World) -> list[Fault]:
    deposed: list[Process] = []
    stood_at: list[str] = []

    def kill(_: Hit) -> None:
        world.kill_engine(world.engines[0])

    def stop(hit: Hit) -> None:
        stood_at[:] = [hit.point]
        world.engines[0].stop()

    def take_over() -> None:
        deposed.append(world.engines[0])
        world.start_engine()
        world.engines.reverse()  # the new one is the one under test from now on

    def rival(hit: Hit) -> None:
        stood_at[:] = [hit.point]
        take_over()
        name = world.engines[0].name
        try:
            until(lambda: world.switchboard.seen(name, "take_lease:after"), RIVAL_SECONDS_MAX, "the rival waits")
        except WorldFailed:
            return  # see RIVAL_SECONDS_MAX

    def end_deposed() -> None:
        """The deposed engine goes on from where it stood, finds out, and leaves the lease to the living one."""
        old, board = deposed.pop(), world.switchboard
        before = board.number_of(old.name, "take_lease:after")
        old.go_on()
        until(
            lambda: board.seen(old.name, ":deposed") or board.seen(old.name, ":failed"),
            DEPOSED_SECONDS_MAX,
            f"{old.name} does not notice that it is deposed",
        )
        if not board.seen(old.name, ":deposed"):
            time.sleep(RESTART_SECONDS)  # its database has told it of a broken session: it looks at the lease again
        # One that was only starting may start again: whoever starts takes the lease.
        was_starting = stood_at[0] in ("take_lease:commit", "take_lease:sent")
        took_back = board.number_of(old.name, "take_lease:after") > before and not was_starting
        world.kill_engine(old)
        if took_back:
            raise WorldFailed(f"{old.name} was stopped, and took the lease back from a living engine")

    def start() -> None:
        world.start_engine()

    return [
        Fault(ENGINE, "kill", kill, start, _nothing),
        Fault(ENGINE, "stop", stop, take_over, end_deposed),
        Fault(ENGINE, "rival", rival, _nothing, end_deposed),
    ]


def _of_server(actor: str, server: Server) -> list[Fault]:
    def go_on() -> None:
        time.sleep(STOP_SECONDS)
        server.go_on()

    name = f"{actor}-postgres"
    return [
        Fault(name, "kill", lambda _: server.kill(), server.start, _nothing),
        Fault(name, "stop", lambda _: server.stop(), go_on, _nothing),
        Fault(name, "cut", lambda _: server.cut(), _nothing, _nothing),
    ]


def _of_ledger(world: World, ledger: Ledger) -> list[Fault]:
    def process() -> Process:
        if ledger.process is None:
            raise WorldFailed(f"{ledger.name} was never started")
        return ledger.process

    def go_on() -> None:
        time.sleep(STOP_SECONDS)
        process().go_on()

    return [
        Fault(ledger.name, "kill", lambda _: process().kill(), lambda: world.start_ledger(ledger), _nothing),
        Fault(ledger.name, "stop", lambda _: process().stop(), go_on, _nothing),
        _partition(ledger.name, ledger.proxy),
    ]


def _partition(actor: str, place: Proxy) -> Fault:
    def heal() -> None:
        time.sleep(OUTAGE_SECONDS)
        place.heal()

    return Fault(actor, "partition", lambda _: place.partition(), heal, _nothing)


def _of_messages(world: World) -> list[Fault]:
    def deliver() -> None:
        for place in world.proxies:
            place.release()

    def saying(verdict: str) -> Callable[[Hit], str]:
        return lambda _: verdict

    return [
        Fault("request", proxy.DROP, saying(proxy.DROP), _nothing, _nothing),
        Fault("request", proxy.DELAY, saying(proxy.DELAY), _nothing, _nothing),
        Fault("request", proxy.DUPLICATE, saying(proxy.DUPLICATE), _nothing, _nothing),
        Fault("request", proxy.HOLD, saying(proxy.HOLD), _nothing, deliver),
        Fault("answer", proxy.DROP, saying(proxy.DROP), _nothing, _nothing),
        Fault("answer", proxy.DELAY, saying(proxy.DELAY), _nothing, _nothing),
    ]


def _nothing() -> None:
    pass
