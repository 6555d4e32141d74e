"""Who must not be disappointed: new connections, visitors that stay, and datagrams, of every service.

Everybody says what went wrong and when it was still well; nobody tries again, and nobody judges. Each service has a
client of its own: where one comes by the same port to two services that share backends, nat may have to drop it.
"""

import random
import threading
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from itertools import product
from math import inf

from tests.soak import wishes
from tests.soak.excuses import Mishap, Symptom
from tests.soak.journal import Journal, now
from tests.soak.wishes import Offer
from tests.support.namespace import Namespace
from tests.support.traffic import Connection, Datagrams

PATIENCE = 8.0  # as long as a busy machine may take, and TCP for its third SYN
VISITORS = 3  # of each service, of each protocol
REST = 0.2  # after a mishap
PATH = "/bytes/2000"
PAUSE, RHYTHM = (0.02, 0.08), (0.05, 0.3)  # between new connections; between requests of one
STAY = (2.0, 20.0)
RESIDENT = inf  # a third of them: for whom nothing may ever move
Which = Callable[[random.Random], Offer | None]
SYMPTOMS: dict[type[Exception], Symptom] = {
    TimeoutError: Symptom.SILENT,
    ConnectionRefusedError: Symptom.REFUSED,
    ConnectionError: Symptom.RESET,
    HTTPException: Symptom.RESET,  # an answer that ends too early
}


def symptom(error: Exception) -> Symptom:
    for kind, found in SYMPTOMS.items():
        if isinstance(error, kind):
            return found
    return Symptom.UNREACHABLE


class Clients:
    """From the client's namespace, for as long as this is entered."""

    def __init__(self, place: Namespace, journal: Journal, seed: int) -> None:
        self.place, self.journal, self._seed = place, journal, seed
        self.stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.extras: tuple[Offer, ...] = ()  # that may be asked just now

    def __enter__(self) -> "Clients":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()

    def ask(self, offers: list[Offer]) -> None:
        """Begin."""
        for offer in offers:
            self._begin(partial(self._come_and_go, partial(_always, offer)))
            for protocol, number in product(("tcp", "udp"), range(VISITORS)):
                self._begin(partial(self._stays, offer, protocol, number))
        self._begin(partial(self._come_and_go, self._extra))

    def _begin(self, work: Callable[[random.Random], None]) -> None:
        whim = random.Random(f"{self._seed} {len(self._threads)}")
        thread = threading.Thread(target=work, args=(whim,))
        self._threads.append(thread)
        thread.start()

    def _extra(self, whim: random.Random) -> Offer | None:
        extras = self.extras
        return whim.choice(extras) if extras else None

    # ---- new connections

    def _come_and_go(self, which: Which, whim: random.Random) -> None:
        while not self.stop.wait(whim.uniform(*PAUSE)):
            if offer := which(whim):
                Visit(self, offer, "tcp").once()

    # ---- those that stay

    def _stays(self, offer: Offer, protocol: str, number: int, whim: random.Random) -> None:
        while not self.stop.wait(0.05):
            stay = RESIDENT if number == 0 else whim.uniform(*STAY)
            Visit(self, offer, protocol).stay(stay, lambda: self.stop.wait(whim.uniform(*RHYTHM)))


def _always(offer: Offer, _whim: random.Random) -> Offer:
    return offer


class Visit:
    """One flow from its first packet to its last."""

    def __init__(self, clients: Clients, offer: Offer, protocol: str) -> None:
        self._clients, self._offer, self._protocol = clients, offer, protocol
        self._host: str | None = None
        self._well = now()

    def once(self) -> None:
        self.stay(0, lambda: True)

    def stay(self, seconds: float, pause: Callable[[], bool]) -> None:
        """Until the time is over, `pause` says so, or something goes wrong."""
        end = now() + seconds
        try:
            with self._opened() as flow:
                self._clients.journal.count(f"{self._protocol} flows")
                while self._asked(flow) and now() < end and not pause():
                    pass
        except (OSError, HTTPException) as error:
            self._mishap(symptom(error), str(error))

    def _opened(self) -> "Connection | Datagrams":
        kind = Connection if self._protocol == "tcp" else Datagrams
        place, offer = self._clients.place, self._offer
        source = wishes.client(offer)
        return kind(place, offer.address, offer.port, source=source, patience=PATIENCE)

    def _asked(self, flow: "Connection | Datagrams") -> bool:
        """Whether the same one answered as before."""
        host = flow.get(PATH).backend
        self._clients.journal.count(f"{self._protocol} answers")
        if self._host not in (None, host):
            self._mishap(Symptom.MOVED, f"answered by {host}")
            return False
        self._host, self._well = host, now()
        return True

    def _mishap(self, kind: Symptom, detail: str) -> None:
        offer = self._offer
        self._clients.journal.mishap(
            Mishap(
                kind, self._well, now(), offer.name, offer.pool, self._host,
                f"{self._protocol}: {detail}",
            )
        )  # fmt: skip
        self._clients.stop.wait(REST)
