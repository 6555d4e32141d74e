"""What a check is, as values, and how to make a probe of one. Reads no file and knows no backend's id."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from ipaddress import ip_address

from healthcheck import dns, web
from healthcheck.echo import Echo
from healthcheck.endpoint import ANY, Endpoint, Origin, endpoint
from healthcheck.exchange import Exchange, Reason, Result, Words
from healthcheck.health import Outcome, Thresholds
from healthcheck.probes import Attempt, Datagram, Probe, Tcp
from healthcheck.schedule import JITTER
from healthcheck.stock import Stock
from healthcheck.tls import SYSTEM, Client, Trust, begin
from healthcheck.ways import Leg, NotReady, Ways

WARNING = 14 * 86400.0  # seconds before a certificate ends


@dataclass(frozen=True, slots=True)
class Http:
    """What an http check asks for and takes for a good answer."""

    method: str = "GET"
    path: str = "/"
    host: str = ""  # empty: address and port
    headers: tuple[tuple[str, str], ...] = ()
    expected: web.Expected = web.GOOD
    keep_alive: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """What a tcp or udp check sends, and what has to come back; both empty: nothing but a connection."""

    send: bytes = b""
    receive: bytes = b""


@dataclass(frozen=True, slots=True)
class Question:
    name: str = "."
    record: str = "NS"
    answer: str = ""  # an address that has to be among the answers


@dataclass(frozen=True, slots=True)
class Secure:
    name: str = ""  # empty: the Host header's, else the address
    trust: Trust = SYSTEM
    warning: float = WARNING


PLAIN_HTTP, NO_LINE, ROOT, BY_THE_SYSTEM = Http(), Line(), Question(), Secure()


@dataclass(frozen=True, slots=True)
class Pacing:
    """Seconds from one probe to the next."""

    every: float
    fast: float
    slow: float
    jitter: float = JITTER


@dataclass(frozen=True, slots=True)
class Check:
    """How to probe. Two checks are equal when they probe alike: what they are called does not matter."""

    name: str = field(compare=False)
    type: str
    pacing: Pacing
    timeout: float
    thresholds: Thresholds
    ramp: float = 0.0  # seconds until a backend that came back has its whole share
    origin: Origin = ANY
    http: Http = PLAIN_HTTP
    line: Line = NO_LINE
    question: Question = ROOT
    secure: Secure = BY_THE_SYSTEM

    def __hash__(self) -> int:
        """Not of all that makes two checks equal: thousands of backends ask for it, and have a handful of checks."""
        return hash((self.type, self.timeout, self.pacing.every))


SEGMENT = 1024  # bytes in a packet of a way: fits into any encapsulation, on any path


@dataclass(frozen=True, slots=True)
class Way:
    """To a backend as clients of a service get there: the mark says how."""

    service: str
    address: str
    port: int
    mark: int  # 0: it is not prepared


@dataclass(frozen=True, slots=True)
class Subject:
    """What is probed. Backends that share it are probed once."""

    address: str
    port: int
    check: Check
    via: tuple[Way, ...] = ()  # instead of address and port as such

    def __str__(self) -> str:
        where = f"[{self.address}]" if ":" in self.address else self.address
        return f"{where}:{self.port}" if self.port else where

    def identity(self) -> str:
        """The same in every process: when it is probed depends on it."""
        said = f"{self} {self.check.type} {self.check.http.host} {self.check.http.path}"
        return " ".join([said, *(f"{way.address}:{way.port}" for way in self.via)])

    def probe(self, stock: Stock) -> Probe:
        """OSError nowhere: what this machine lacks is said by each attempt, until it is there."""
        try:
            return self._probe(stock)
        except OSError:
            return Later(lambda: self._probe(stock))

    def _probe(self, stock: Stock) -> Probe:
        if self.via:
            return Ways([self._leg(way, stock) for way in self.via])
        return self._to(endpoint(self.address, self.port, self.check.origin), stock)

    def _leg(self, way: Way, stock: Stock) -> Leg:
        """As to the service's address: only the socket knows better."""
        meant = Subject(way.address, way.port, self.check)
        what = f"{meant} of {way.service}"
        if not way.mark:
            return Leg(what, NotReady())
        origin = replace(self.check.origin, mark=way.mark, segment=SEGMENT)
        return Leg(what, meant._to(endpoint(self.address, way.port, origin), stock))

    def _to(self, where: Endpoint, stock: Stock) -> Probe:
        check = self.check
        if check.type in {"tcp", "http", "https"}:
            return Tcp(where, self._over_tcp(), stock, keep=check.http.keep_alive)
        return Datagram(where, self._over_datagrams(), echo=check.type == "icmp")

    def _over_tcp(self) -> Callable[[], Exchange] | None:
        check, line = self.check, self.check.line
        if check.type == "tcp":
            return partial(Words, line.send, line.receive) if line.send or line.receive else None
        http = check.http
        request = web.request(
            http.method, http.path, http.host or str(self), http.headers, keep=http.keep_alive
        )
        asking = web.Asking(request, http.expected, keep=http.keep_alive)
        if check.type == "http":
            return asking
        client = Client(_context(check.secure.trust), self._tls_name(), check.secure.trust.alpn)
        return partial(begin, client, asking)

    def _tls_name(self) -> str:
        return self.check.secure.name or _hostname(self.check.http.host) or self.address

    def _over_datagrams(self) -> Callable[[], Exchange]:
        check = self.check
        if check.type == "icmp":
            return partial(Echo, ip_address(self.address).version)
        if check.type == "udp":
            return partial(Words, check.line.send, check.line.receive)
        asked = check.question
        encoded = dns.question(asked.name, asked.record)
        return partial(dns.Dns, encoded, asked.record, asked.answer)


class Later:
    """A probe that cannot be made yet, for want of something here: each attempt tries anew."""

    def __init__(self, make: Callable[[], Probe]) -> None:
        self._make = make
        self._probe: Probe | None = None

    def __call__(self) -> Attempt | Result:
        try:
            self._probe = self._probe or self._make()
        except OSError as error:
            return Result(Outcome.NEUTRAL, Reason.OWN_TROUBLE, str(error))
        return self._probe()

    def close(self) -> None:
        if self._probe:
            self._probe.close()


@cache
def _context(trust: Trust) -> ssl.SSLContext:
    """One for all targets that are trusted alike: reading the certificates takes longer than a thousand probes."""
    return trust.context()


def _hostname(host: str) -> str:
    """Without a port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
