"""Asks the peers what they forward, gently, in a thread of its own. Judges nothing, and touches no map.

A peer that hangs, or says a byte now and then, delays the others by its two time-outs, to be reached and to
answer, and the loop not at all.
"""

import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from urllib.parse import urlsplit

from reconciler import agreement, digests
from reconciler.agreement import Answer, Identity, Peer
from reconciler.board import Board
from reconciler.model import PeerNode
from reconciler.printable import printable

TIMEOUT = 2.0  # seconds, to be reached; as many for the whole answer
SLOWEST, QUICKEST, OFTEN = 5.0, 0.25, 10  # a peer is asked so many times within its patience
LARGEST = 4 << 20  # bytes of an answer
PATH = "/digests"
log = logging.getLogger("reconciler")


class Peers:
    def __init__(self, peers: Iterable[PeerNode], board: Board) -> None:
        self._board = board
        now = time.monotonic()
        self._known = {one.name: Peer(one.name, one.status, one.patience, now) for one in peers}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)

    def start(self) -> None:
        if self._known:
            self._thread.start()

    def close(self) -> None:
        self._stop.set()  # not joined: it only reads, and may be waiting for a peer

    def look(self) -> tuple[Peer, ...]:
        return tuple(self._known.values())

    def _run(self) -> None:
        try:
            due = dict.fromkeys(self._known, 0.0)
            while not self._stop.wait(max(0.0, min(due.values()) - time.monotonic())):
                name = min(due, key=due.__getitem__)
                self._ask(self._known[name])
                due[name] = time.monotonic() + pace(self._known[name].patience)
        except Exception:
            log.exception("peers are not asked any more")

    def _ask(self, peer: Peer) -> None:
        answer = ask(peer.address)
        after = agreement.asked(peer, self._own(), answer, time.monotonic(), time.time())
        self._known = {**self._known, peer.name: after}

    def _own(self) -> Identity | None:
        status = self._board.status()
        return digests.identity(status) if status else None


def pace(patience: float) -> float:
    """Seconds from one question to the next."""
    return min(SLOWEST, max(QUICKEST, patience / OFTEN))


def ask(address: str) -> Answer:
    """Once; whatever becomes of it is an answer."""
    place = urlsplit(address)
    try:
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=TIMEOUT)
        with closing(connection):
            connection.connect()
            with _hurried(connection.sock):
                connection.request("GET", place.path.rstrip("/") + PATH)
                response = connection.getresponse()
                body = response.read(LARGEST)
        if response.status != http.client.OK:
            return Answer(trouble=printable(f"it answers {response.status} {response.reason}"))
        return digests.parse(json.loads(body))
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
        return Answer(trouble=printable(str(error)) or type(error).__name__)


@contextmanager
def _hurried(channel: socket.socket) -> Iterator[None]:
    """TimeoutError once it takes too long: a socket's own time-out begins anew with each byte."""
    late = threading.Event()

    def give_up() -> None:
        late.set()
        with suppress(OSError):
            channel.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(TIMEOUT, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if late.is_set():
            raise TimeoutError(f"no whole answer within {TIMEOUT:g} s")
