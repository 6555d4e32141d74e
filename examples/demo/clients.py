"""Those whom the demo must not disappoint: a stream of new connections, and visitors that stay a while.

Every request is counted, and so is every one that failed: nothing is tried again.
"""

import random
import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tests.support.namespace import Namespace
from tests.support.traffic import Connection

VISITORS = 24
PAUSE = 0.004  # between two new connections
RHYTHM = 0.1  # between two requests of a visitor
STAY = (2.0, 6.0)  # seconds that a visitor keeps a connection for


class Clients:
    """Requests from the client's namespace for as long as this is entered."""

    def __init__(
        self, place: Namespace, address: str, port: int, names: dict[str, str], *, visitors: int
    ) -> None:
        self._place, self._address, self._port = place, address, port
        self._names = names  # of backends, by what their servers call themselves
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._come_and_go)]
        self._threads += [threading.Thread(target=self._visit) for _ in range(visitors)]
        self._fresh: Counter[str] = Counter()
        self.requests = 0
        self.connections = 0
        self.failures: list[str] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def fresh(self) -> Counter[str]:
        """Answers since this was last asked, by backend."""
        answers, self._fresh = self._fresh, Counter()
        return answers

    def _come_and_go(self) -> None:
        while not self._stop.wait(PAUSE):
            self._counted(self._once)

    def _visit(self) -> None:
        while not self._stop.wait(RHYTHM):
            self._counted(self._stay)

    def _counted(self, errand: Callable[[], None]) -> None:
        try:
            errand()
        except OSError as error:
            self.failures.append(repr(error))

    def _once(self) -> None:
        with self._connected() as connection:
            self._ask(connection)

    def _stay(self) -> None:
        requests = round(random.uniform(*STAY) / RHYTHM)  # noqa: S311 -- a visitor's whim
        with self._connected() as connection:
            for _ in range(requests):
                self._ask(connection)
                if self._stop.wait(RHYTHM):
                    return

    def _connected(self) -> Connection:
        connection = Connection(self._place, self._address, self._port)
        self.connections += 1
        return connection

    def _ask(self, connection: Connection) -> None:
        self._fresh[self._names[connection.get("/bytes/2000").backend]] += 1
        self.requests += 1
