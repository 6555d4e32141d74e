"""Requests through the same ways: wrk at the client, HAProxy as the servers, and what the whole machine worked.

Clients and servers eat most of two CPUs, so that a way's own cost shows in CPU per request rather
than in requests. What the whole machine worked has others' work in it: `others` says how much there was.
"""

import os
import re
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench import health_rig as servers
from tests.bench import rate_ways as ways
from tests.bench.objects import BenchError
from tests.bench.rate_report import Requests
from tests.bench.rate_wire import Wire, ksoftirqd
from tests.support.lab import Lab
from tests.support.wait import until

KINDS = {"keep-alive": (), "a connection each": ("-H", "Connection: close")}
CONNECTIONS = 16  # of each of two clients
DIRECT = "direct, one client a server"
HAPROXY_TCP = """\
frontend www
  bind 192.0.2.10:80
  default_backend web
backend web
  balance source
  server b1 10.1.2.101:8080
  server b2 10.1.2.102:8080
"""
TICK = 1 / os.sysconf("SC_CLK_TCK")
DONE = re.compile(r"^\s*(\d+) requests in ([\d.]+)(m?s)", re.MULTILINE)
FAILED = re.compile(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)")
REFUSED = re.compile(r"Non-2xx or 3xx responses: (\d+)")

Make = Callable[[Wire], Iterator[ways.Way]]


@dataclass(frozen=True, slots=True)
class Site:
    name: str
    lab: Lab
    addresses: tuple[str, str]  # of each client's requests


@dataclass(frozen=True, slots=True)
class Told:
    """What wrk said."""

    requests: int
    seconds: float
    errors: int

    @classmethod
    def of(cls, text: str) -> "Told":
        done = DONE.search(text)
        if not done:
            raise BenchError(f"wrk said something else than expected: {text.strip()[:300]}")
        seconds = float(done[2]) / (1000 if done[3] == "ms" else 1)
        failed = FAILED.search(text)
        errors = sum(map(int, failed.groups())) if failed else 0
        refused = REFUSED.search(text)
        return cls(int(done[1]), seconds, errors + (int(refused[1]) if refused else 0))


# ---- sites


@contextmanager
def sites(wire: Wire) -> Iterator[list[Site]]:
    service = f"{ways.SERVED}:{ways.FRONTENDS[0]}"
    made: tuple[tuple[str, Make, tuple[str, str]], ...] = (
        (DIRECT, ways.routed, (f"{ways.B1}:{ways.REWRITTEN}", f"{ways.B2}:{ways.REWRITTEN}")),
        ("HAProxy, TCP mode, 1 thread", haproxy, (service, service)),
        ("nftables DNAT", ways.nftables, (service, service)),
        ("Evenkeel nat, native", ways.evenkeel("nat"), (service, service)),
        ("Evenkeel nat, generic", ways.evenkeel("nat", "generic"), (service, service)),
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ekbench")))
        found = [Site(n, stack.enter_context(make(wire)).lab, to) for n, make, to in made]
        for site in found:
            site.lab.client.sysctl("net.ipv4.ip_local_port_range=1024 65535")
            _serve(site, folder)
        yield found


@contextmanager
def haproxy(_wire: Wire) -> Iterator[ways.Way]:
    with ways.routed(_wire) as way, tempfile.TemporaryDirectory(prefix="ekbench") as folder:
        way.lab.balancer.ip(f"addr add {ways.SERVED}/32 dev lo\n")
        way.lab.balancer.sysctl("net.ipv4.ip_local_port_range=1024 65535")
        text = servers.COMMON.format(more="") + servers.DEFAULTS.format(mode="tcp") + HAPROXY_TCP
        file = Path(folder) / "balancer.cfg"
        file.write_text(text)
        way.lab.balancer.spawn(servers.HAPROXY, "-db", "-q", "-f", str(file))
        yield way


def _serve(site: Site, folder: Path) -> None:
    """An HAProxy with one thread in each backend that answers by itself."""
    file = folder / "server.cfg"
    file.write_text(
        servers.COMMON.format(more="")
        + servers.DEFAULTS.format(mode="http")
        + f"  timeout http-keep-alive 60s\nlisten web\n  bind :{ways.REWRITTEN} backlog 4096\n"
        + servers.ANSWER
    )
    for backend in site.lab.backends:
        backend.namespace.spawn(servers.HAPROXY, "-db", "-q", "-f", str(file))
    for address in site.addresses:
        until(lambda to=address: _answers(site, to), what=f"{site.name}: an answer from {address}")


def _answers(site: Site, address: str) -> bool:
    curl = ("curl", "-s", "-m", "2", f"http://{address}/")
    return site.lab.client.run(*curl, check=False).strip() == "ready"


# ---- runs


def measure(
    wire: Wire, rounds: int, seconds: float, say: Callable[[str], None]
) -> tuple[list[Requests], list[float]]:
    """All kinds and sites in turn, and what share of the machine others had just before each round."""
    with sites(wire) as found:
        rows = {(k, s.name): Requests(s.name, k) for k in KINDS for s in found}
        others: list[float] = []
        for number in range(rounds + 1):
            others.append(_busy_meanwhile(1.0))
            for kind, options in KINDS.items():
                for site in found:
                    say(f"HTTP, round {number} of {rounds}: {kind}, {site.name}")
                    _add(rows[kind, site.name], *_run(site, options, seconds), keep=number > 0)
        return list(rows.values()), others[1:]


def _add(row: Requests, told: list[Told], machine: float, own: float, *, keep: bool) -> None:
    done = sum(one.requests for one in told)
    if not done:
        raise BenchError(f"{row.way}: no request was answered")
    if keep:
        row.rate.append(sum(one.requests / one.seconds for one in told))
        row.machine.append(machine / done * 1e6)
        row.own.append(own / done * 1e6)
        row.errors += sum(one.errors for one in told)


def _run(site: Site, options: tuple[str, ...], seconds: float) -> tuple[list[Told], float, float]:
    """Both clients at once; seconds that all CPUs worked meanwhile, and those that were for this."""
    before, own = worked(), ours(site)
    wrk = ("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", *options)
    clients = [site.lab.client.spawn(*wrk, f"http://{to}/") for to in site.addresses]
    texts = [client.communicate(timeout=seconds + 30)[0] for client in clients]
    return [Told.of(text) for text in texts], worked() - before, ours(site) - own


def ours(site: Site) -> float:
    """Seconds of clients that have ended, of servers and the balancer, and of the threads for softirqs."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = [p.pid for place in site.lab.namespaces for p in place.running]
    late = [ksoftirqd(cpu) for cpu in range(os.cpu_count() or 1)]
    return ended.ru_utime + ended.ru_stime + sum(map(servers.cpu_of, [*running, *late]))


def worked() -> float:
    """Seconds of all CPUs that were neither idle, nor waiting, nor taken by the hypervisor."""
    user, nice, system, _idle, _wait, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) * TICK


def _busy_meanwhile(seconds: float) -> float:
    """The share of all CPUs that is not ours: we only wait."""
    before, began = worked(), time.monotonic()
    subprocess.run(["sleep", str(seconds)], check=True)
    return (worked() - before) / (time.monotonic() - began) / (os.cpu_count() or 1)
