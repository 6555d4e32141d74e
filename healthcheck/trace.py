"""`healthcheck probe URL`: one check, each step as it happens. Writes to no map and no file."""

import argparse
import asyncio
import json
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from healthcheck.checker import Engine, Watch
from healthcheck.definition import Subject
from healthcheck.exchange import Exchange, Result, excerpt
from healthcheck.health import Outcome
from healthcheck.probes import Datagram, Tcp
from healthcheck.stock import Stock
from healthcheck.targets import TargetsError, parse, read
from healthcheck.tls import Tls
from healthcheck.ways import Ways

PORTS = {"http": 80, "https": 443, "dns": 53, "icmp": 0}
SHOWN = 5
KINDS = ("tcp", "http", "https", "udp", "dns", "icmp")

EXAMPLES = """\
examples:
  healthcheck probe http://10.1.2.101:8080/healthz
  healthcheck probe https://10.1.2.101/ --set host=www.example --set ca=/etc/ssl/backends.pem
  healthcheck probe tcp://10.1.2.101:6379 --set 'send="PING\\r\\n"' --set receive=+PONG
  healthcheck probe 'dns://10.1.2.53/www.example?record=AAAA'
  healthcheck probe icmp://10.1.2.101
  healthcheck probe web/web1
        a backend as targets.json has it, with `via: service` as clients' packets go; --instance says whose

exit codes: 0 the check passes; 2 it does not; 1 own error; 64 usage
"""


def add_arguments(arguments: argparse.ArgumentParser) -> None:
    arguments.add_argument(
        "url",
        metavar="URL",
        help=f"what to probe: {', '.join(KINDS)}, or POOL/BACKEND of targets.json",
    )
    arguments.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="for all of it (default: 1, of a backend its check's)",
    )
    arguments.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of the check, as targets.json has it (schemas/targets.schema.json); JSON or text",
    )


def published(name: str, path: Path, timeout: float | None) -> Subject:
    """A backend's, as it is probed all the time."""
    backends = read(path).backends
    found = next((one.subject for one in backends if one.name == name), None)
    if found is None:
        several = ", ".join(one.name for one in backends[:SHOWN]) or "none"
        raise TargetsError(f"{path}: no backend {name!r} has a check; there are: {several}")
    return replace(found, check=replace(found.check, timeout=timeout or found.check.timeout))


def subject_of(url: str, timeout: float, settings: Sequence[str]) -> Subject:
    """TargetsError: what is wrong with it, in the words of targets.json."""
    parts = urlsplit(url)
    if parts.scheme not in KINDS or not parts.hostname:
        raise TargetsError(
            f"{url}: begins with none of {', '.join(f'{kind}://' for kind in KINDS)}"
        )
    check: dict[str, Any] = {"name": "probe", "type": parts.scheme, "timeout": timeout}
    check |= {"every": timeout, "rise": 1, "fall": 1, **_asked(parts)}
    for setting in settings:
        name, _, value = setting.partition("=")
        check[name.replace("-", "_")] = _value(value)
    address = addresses(parts.hostname)[0]
    if address != parts.hostname and parts.scheme in {"http", "https"}:
        check.setdefault("host", parts.netloc.rpartition("@")[2])
    port = parts.port or PORTS.get(parts.scheme, 0)
    backend = {"id": 1, "name": "probe", "address": address, "port": port, "check": check}
    document = {
        "format_version": "1.1",
        "instance": "probe",
        "health_map": "",
        "backends": [backend],
    }
    return parse(document).backends[0].subject


def _asked(parts: SplitResult) -> dict[str, Any]:
    if parts.scheme in {"http", "https"}:
        return {"path": (parts.path or "/") + (f"?{parts.query}" if parts.query else "")}
    if parts.scheme != "dns":
        return {}
    fields = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    return {"query": parts.path.strip("/") or ".", **fields}


def _value(text: str) -> Any:  # noqa: ANN401 - whatever JSON has
    try:
        return json.loads(text)
    except ValueError:
        return text


@cache
def addresses(host: str) -> tuple[str, ...]:
    """Checks have addresses; whoever tries one by hand may have a name. As the resolver orders them, asked once."""
    try:
        return (str(ip_address(host)),)
    except ValueError:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return tuple(dict.fromkeys(str(one[4][0]) for one in found))


class Shown:
    """An exchange that tells what goes over the wire."""

    def __init__(self, inner: Exchange, tell: Callable[[str], None]) -> None:
        self._inner = inner
        self._tell = tell
        self._greeted = False

    @property
    def request(self) -> bytes:
        return self._inner.request

    @request.setter
    def request(self, left: bytes) -> None:
        sent = self._inner.request[: len(self._inner.request) - len(left)]
        self._tell(f"sent {len(sent)} bytes: {excerpt(sent)}")
        self._inner.request = left

    def receive(self, data: bytes) -> Result | None:
        self._tell(
            f"received {len(data)} bytes: {excerpt(data)}" if data else "the other side ended"
        )
        result = self._inner.receive(data)
        if isinstance(self._inner, Tls) and self._inner.agreed and not self._greeted:
            self._greeted = True
            self._tell(self._inner.agreed)
        return result

    def overdue(self) -> Result:
        return self._inner.overdue()

    def again(self) -> bool:
        return False


def probe(url: str, timeout: float | None, settings: Sequence[str], path: Path) -> Outcome:
    by_name = "://" not in url and "/" in url
    if by_name and settings:
        raise TargetsError(f"{url}: is probed as targets.json has it; --set goes with a URL")
    where = published(url, path, timeout) if by_name else subject_of(url, timeout or 1.0, settings)
    began = time.monotonic()

    def tell(text: str) -> None:
        print(f"{(time.monotonic() - began) * 1000:9.1f} ms  {text}")

    tell(f"{where.check.type} check of {where}, {where.check.timeout:g} s for all of it")
    if others := () if by_name else addresses(urlsplit(url).hostname or "")[1:]:
        tell(f"not of {', '.join(others)}, which {urlsplit(url).hostname} also is")
    for way in where.via:
        tell(f"as clients of {way.service}: {way.address} port {way.port}, mark {way.mark:#x}")
    result = asyncio.run(_one(where, tell))
    tell(f"{result.outcome.value}: {result.reason}{f': {result.detail}' if result.detail else ''}")
    return result.outcome


async def _one(where: Subject, tell: Callable[[str], None]) -> Result:
    done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    def report(watch: Watch, result: Result, latency: float) -> None:  # noqa: ARG001
        done.set_result(result)

    made, engine = where.probe(Stock(keep=False)), Engine(report)
    if isinstance(made, (Tcp, Datagram, Ways)):
        made.overhear(lambda exchange: Shown(exchange, tell))
    try:
        engine.once(made, where.check.timeout)
        engine.attach(asyncio.get_running_loop())
        return await done
    finally:
        engine.close()
        made.close()
