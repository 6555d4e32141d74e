"""What tests of healthcheck share: targets as documents, a map in memory, a clock by hand, servers that misbehave."""

import asyncio
import json
import os
import select
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from healthcheck.checker import Engine, Watch
from healthcheck.definition import Subject
from healthcheck.exchange import Reason, Result, failed
from healthcheck.fleet import Fleet
from healthcheck.health import FULL, Outcome, State
from healthcheck.probes import Attempt
from healthcheck.stock import Stock
from healthcheck.targets import Backend, parse
from healthcheck.verdicts import Verdict, Verdicts, VerdictsError
from tests.support.wait import until

LOOPBACK = "127.0.0.1"
PASS = Result(Outcome.PASS, Reason.CONNECTED)
FAIL = failed(Reason.REFUSED, "nobody there")
NEUTRAL = Result(Outcome.NEUTRAL, Reason.OWN_TROUBLE, "no descriptors")

Serve = Callable[[socket.socket], None]


def check(kind: str = "tcp", **changes: object) -> dict[str, Any]:
    timing = {"every": 1.0, "timeout": 0.5, "rise": 2, "fall": 3}
    return {"name": "alive", "type": kind, **timing, **changes}


def backend(number: int = 1, port: int = 80, **changes: Any) -> dict[str, Any]:
    plain = {"id": number, "name": f"web/web{number}", "address": LOOPBACK, "port": port}
    return {**plain, "check": check(), **changes}


def document(
    *backends: dict[str, Any], instance: str = "lab", health_map: Path = Path("/map")
) -> dict[str, Any]:
    return {
        "format_version": "1.0",
        "instance": instance,
        "health_map": str(health_map),
        "backends": list(backends),
    }


def put(path: Path, content: object) -> None:
    """As the reconciler does: renamed into place."""
    new = path.with_suffix(".new")
    new.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    new.replace(path)


def backends_of(*entries: dict[str, Any]) -> tuple[Backend, ...]:
    return parse(document(*entries)).backends


def subject(port: int, address: str = LOOPBACK, **changes: object) -> Subject:
    entry = backend(port=port, address=address, check=check(**changes))  # type: ignore[arg-type]
    return backends_of(entry)[0].subject


@dataclass
class MapInMemory:
    """A health map that counts how often it is written, and that can break."""

    states: dict[int, State] = field(default_factory=dict)
    batches: list[dict[int, State]] = field(default_factory=list)
    broken: bool = False

    ramps: dict[int, int] = field(default_factory=dict)

    def read(self) -> dict[int, Verdict]:
        return {
            id_: Verdict(state, self.ramps.get(id_, FULL)) for id_, state in self.states.items()
        }

    def write(self, verdicts: Iterable[tuple[int, Verdict]]) -> None:
        if self.broken:
            raise VerdictsError("the map is broken")
        entries = dict(verdicts)
        self.batches.append({id_: one.state for id_, one in entries.items()})
        self.states |= self.batches[-1]
        self.ramps |= {id_: one.ramp for id_, one in entries.items()}

    def close(self) -> None: ...

    def open(self, _path: Path, _instance: str) -> Verdicts:
        return self


class LabFleet(Fleet):
    """A fleet that hears results from the test instead of from its engine."""

    def hear(self, result: Result, latency: float = 0.001, name: str | None = None) -> None:
        for watch in self.watches(name):
            self.learn(watch, result, latency)
        self.settle()

    def watches(self, name: str | None = None) -> list[Watch]:
        return [
            watch
            for watch in self._watches
            if name is None or any(member.backend.name == name for member in watch.hearers)
        ]

    def state(self, name: str = "web/web1") -> State:
        return next(m.health.state for m in self._members if m.backend.name == name)


@contextmanager
def a_fleet(
    *backends: dict[str, Any],
    states: dict[int, State] | None = None,
    now: Callable[[], float] = lambda: 1e9,
) -> Iterator[tuple[LabFleet, MapInMemory]]:
    with TemporaryDirectory() as name:
        directory = Path(name)
        verdicts = MapInMemory(dict(states or {}))
        put(directory / "targets.json", document(*backends))
        fleet = LabFleet(
            directory / "targets.json", directory / "health.json", "lab", verdicts.open, now
        )
        try:
            fleet.look()
            yield fleet, verdicts
        finally:
            fleet.close()


# ---- an engine without time


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


class ByHand:
    """An attempt that ends when the test says so."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.events = select.EPOLLIN
        self.registered = False
        self.result: Result | None = None
        self.closed = False

    def answer(self, result: Result = PASS) -> None:
        self.result = result
        os.eventfd_write(self.fd, 1)

    def ready(self, _events: int) -> Result | None:
        return self.result

    def overdue(self) -> Result:
        return failed(Reason.ANSWER_TIMEOUT, "too late")

    def close(self) -> None:
        if not self.closed:
            os.close(self.fd)
        self.closed = True


class Asks:
    """A target of the engine's, made from whatever begins an attempt."""

    def __init__(self, begin: Callable[[], Attempt | Result]) -> None:
        self._begin = begin

    def __call__(self) -> Attempt | Result:
        return self._begin()

    def close(self) -> None: ...


def pass_until(engine: Engine, clock: Clock, end: float) -> int:
    """Lets time pass as asyncio would: from one wake-up that the engine asked for to the next. How many there were."""
    looks = 1
    while (at := max(engine.next_wake(), clock.now)) <= end:
        clock.now = at
        engine.wake()
        looks += 1
    clock.now = end
    engine.wake()
    return looks


# ---- real probes of real servers


def probe(where: Subject, begin: Callable[[], Attempt | Result] | None = None) -> Result:
    """One probe, from its start to its end."""

    made = where.probe(Stock(keep=False))

    async def one() -> Result:
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        engine = Engine(lambda _watch, result, _latency: done.set_result(result))
        try:
            engine.once(Asks(begin or made), where.check.timeout)
            engine.attach(asyncio.get_running_loop())
            return await done
        finally:
            engine.close()
            made.close()

    return asyncio.run(one())


class Row:
    """Probes of one target by one engine, one after the other, over sockets that are used again."""

    def __init__(self, begin: Callable[[], Attempt | Result], timeout: float = 2.0) -> None:
        self.begin, self.timeout = begin, timeout
        self.results: list[Result] = []
        self.engine = Engine(lambda _watch, result, _latency: self.results.append(result))

    def probe(self) -> Result:
        before = len(self.results)
        self.engine.once(Asks(self.begin), self.timeout)
        until(lambda: self.engine.wake() or len(self.results) > before, what="a result")
        return self.results[-1]


@contextmanager
def a_row_of(where: Subject) -> Iterator[Row]:
    stock = Stock()
    begin = where.probe(stock)
    row = Row(begin, where.check.timeout)
    try:
        yield row
    finally:
        row.engine.close()
        begin.close()
        stock.close()


@contextmanager
def serving(serve: Serve, family: int = socket.AF_INET) -> Iterator[int]:
    """A server on loopback that treats each connection in its own way; yields the port."""
    with socket.socket(family) as listener:
        listener.bind(("::1" if family == socket.AF_INET6 else LOOPBACK, 0))
        listener.listen()
        threads = [threading.Thread(target=_accept, args=(listener, serve))]
        threads[0].start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            threads[0].join(10)


def _accept(listener: socket.socket, serve: Serve) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # shut down
        with connection:
            try:
                serve(connection)
            except OSError:
                continue  # the other side went away, as probes do


def closed_port(least: int = 20000) -> int:
    """A port below those that the kernel hands out by itself, on which nothing listens."""
    for port in range(least, 30000):
        with socket.socket() as candidate:
            try:
                candidate.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port from 20000 to 30000")


@contextmanager
def silent_port() -> Iterator[int]:
    """A port that answers no SYN: its queue of connections is full, and nobody takes one."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        try:
            yield listener.getsockname()[1]
        finally:
            for client in waiting:
                client.close()
