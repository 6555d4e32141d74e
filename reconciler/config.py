"""From the text of lb.yaml to a Config, or to everything that is wrong with it.

Knows no node, no kernel and no history: what it accepts is accepted on every
node that has room for it.
"""

import functools
import ipaddress
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from reconciler import checks as check_options
from reconciler import expectations, shape, ways, yamlpos
from reconciler.checks import seconds as seconds  # noqa: PLC0414 - others read durations too
from reconciler.model import (
    Address,
    AdminState,
    Backend,
    Balance,
    Check,
    CheckType,
    Config,
    Drain,
    Forward,
    Guardrails,
    HashOn,
    Method,
    Origin,
    Pool,
    Port,
    Proto,
    Service,
    Then,
)
from reconciler.problems import SHOWN, Mark, Problem, Rejected, did_you_mean
from reconciler.sound import Sound, sound
from reconciler.yamlpos import Content, Map, Seq

MAX_PORT = 65535


def load(text: str, file: str = "lb.yaml") -> Config:
    """The configuration that the text describes. Rejected carries every problem at once."""
    root, found = _read(text, "config")
    if not found:
        return _Reader(Sound(root), file, text).config()
    if there := sound(root, found):
        found += _Reader(there, file, text).problems()
    raise Rejected(file, found, text)


def parse(text: str, file: str, schema: str) -> Map:
    """A mapping that is well-formed YAML and has the schema's shape."""
    root, found = _read(text, schema)
    if found:
        raise Rejected(file, found, text)
    return root


def _read(text: str, schema: str) -> tuple[Map, list[Problem]]:
    """What is wrong with it is no mapping, perhaps."""
    document = yamlpos.read(text)
    found = list(document.problems)
    if document.root is not None or not found:
        doubtful = {problem.mark for problem in found}
        shaped = shape.problems(document.root, schema)
        found += [problem for problem in shaped if problem.mark not in doubtful]
    return document.root, found


def sealed(text: str) -> bool:
    """Whether the text ends with YAML's end marker, so that a cut-off copy can be told."""
    return yamlpos.read(text).sealed


def percent(text: str) -> int:
    return int(text.rstrip("%"))


class _Reader:
    """Adds meaning to a well-shaped document; collects what has none."""

    def __init__(self, there: Sound, file: str, text: str) -> None:
        self._root, self._doubtful = there.root, there.doubtful
        self._file = file
        self._text = text
        self._problems: list[Problem] = []

    def problems(self) -> tuple[Problem, ...]:
        """What it means, apart."""
        try:
            self.config()
        except Rejected as error:
            return error.problems
        return ()

    def _is_there(self, section: str, name: str, known: Collection[str]) -> bool:
        """What has errors of its own is not said to be missing."""
        return name in known or name in self._doubtful.get(section, ())

    def _near(self, name: str, known: Collection[str]) -> str:
        """A hint, for as many problems as are shown: looking for the nearest of many takes long."""
        return did_you_mean(name, known) if len(self._problems) < SHOWN else ""

    def config(self) -> Config:
        checks = {
            name: check_options.read(name, at, self._complain)
            for name, at in self._section("checks")
        }
        pools = {name: self._pool(name, at, checks) for name, at in self._section("pools")}
        services = {name: self._service(name, at, pools) for name, at in self._section("services")}
        self._frontends_are_unique(services)
        self._no_loops(services, pools)
        self._ways_exist(services, pools)
        tests = expectations.read(self._root.get("tests", ()), services, pools, self._complain)
        if self._problems:
            raise Rejected(self._file, self._problems, self._text)
        guardrails = _guardrails(self._root.get("guardrails", {}))
        return Config(services, pools, guardrails, self._drain({}), tests)

    def _section(self, name: str) -> list[tuple[str, Map]]:
        return list(self._root.get(name, {}).items())

    def _complain(self, mark: Mark, message: str, hint: str = "") -> None:
        self._problems.append(Problem(mark, message, hint))

    def _origin(self, parent: Map, key: str) -> Origin:
        return Origin(self._file, parent.keys_at[key].line)

    def _address(self, parent: Map | Seq, key: Content, where: str) -> Address | None:
        address = _parsed(parent[key])
        if address is None:
            message = f"{where}: {parent[key]!r} is no IPv4 or IPv6 address"
            self._complain(parent.values_at[key], message, "without a port or a prefix length")
        elif kind := unfit(address):
            mark = parent.values_at[key]
            self._complain(mark, f"{where}: {address} is {kind.name}", kind.hint)
        return address

    def _pool(self, name: str, at: Map, checks: Mapping[str, Check]) -> Pool:
        where = f"pools[{name}]"
        check = self._check_of(at, checks, where)
        section: Map = at["backends"]
        backends = {
            backend.name: backend
            for key in section
            if (backend := self._backend(where, section, key)) is not None
        }
        if backends and not any(backend.weight for backend in backends.values()):
            message = f"{where}: all weights are 0, so no backend takes new flows"
            self._complain(at.keys_at["backends"], message, "for maintenance say state: down")
        portless = check and (check.type is CheckType.ICMP or check.via_service)
        if check and not check.port and not portless:
            self._checkable(section, backends, where)
        if "initial" in at and "check" not in at:
            self._complain(at.keys_at["initial"], f"{where}: 'initial' needs a check")
        origin = self._origin(self._root["pools"], name)
        drain = self._drain(at)
        return Pool(name, backends, check, at.get("initial") == "up", drain, origin)

    def _drain(self, at: Mapping[str, Any]) -> Drain:
        said = {**self._root.get("defaults", {}).get("drain", {}), **at.get("drain", {})}
        return Drain(seconds(said.get("grace", "5m")), Then(said.get("then", "flush")))

    def _checkable(self, section: Map, backends: Mapping[str, Backend], where: str) -> None:
        for name, backend in backends.items():
            if not backend.port:
                message = f"{where}.backends[{name}]: no port to check"
                hint = "give the backend or the check a port"
                self._complain(section.keys_at[name], message, hint)

    def _check_of(self, at: Map, checks: Mapping[str, Check], where: str) -> Check | None:
        name = at.get("check")
        if name is not None and not self._is_there("checks", name, checks):
            mark = at.values_at["check"]
            self._complain(mark, f"{where}: there is no check {name!r}", self._near(name, checks))
        return checks.get(name) if name else None

    def _backend(self, where: str, section: Map, name: str) -> Backend | None:
        at: Map = section[name]
        address = self._address(at, "address", f"{where}.backends[{name}]")
        if address is None:
            return None
        return Backend(
            name=name,
            address=address,
            port=at.get("port", 0),
            weight=at.get("weight", 100),
            state=AdminState(at.get("state", "up")),
            reason=at.get("reason", ""),
            origin=self._origin(section, name),
        )

    def _service(self, name: str, at: Map, pools: Mapping[str, Pool]) -> Service:
        where = f"services[{name}]"
        said = {**self._root.get("defaults", {}), **at}
        balance = {**self._root.get("defaults", {}).get("balance", {}), **at.get("balance", {})}
        idle = {**self._root.get("defaults", {}).get("idle", {}), **at.get("idle", {})}
        service = Service(
            name=name,
            addresses=self._addresses(at["addresses"], where),
            ports=self._ports(at["ports"], where),
            pools=self._pool_names(at["pools"], pools, where),
            forward=Forward(said.get("forward", "nat")),
            balance=Balance(
                Method(balance.get("method", "consistent")), HashOn(balance.get("hash", "5-tuple"))
            ),
            panic=percent(said.get("panic", "0%")),
            recover=percent(said["recover"]) if "recover" in said else None,
            flows=said.get("flows", "on") == "on",
            gate=said.get("gate", 0),
            echo=said.get("echo", False),
            direct=said.get("direct", False),
            fail_closed=said.get("fail", "open") == "closed",
            keep_down=said.get("down-flows", "move") == "keep",
            tcp_idle=seconds(idle.get("tcp", "5m")),
            udp_idle=seconds(idle.get("udp", "30s")),
            origin=self._origin(self._root["services"], name),
        )
        self._modes_agree(service, at, where)
        self._families_agree(service, at, pools, where)
        self._recovers(service, at, where)
        return service

    def _addresses(self, listed: Seq, where: str) -> tuple[Address, ...]:
        read = [self._address(listed, i, where) for i in range(len(listed))]
        return tuple(address for address in read if address is not None)

    def _ports(self, listed: Seq, where: str) -> tuple[Port, ...]:
        ports = []
        for text, mark in zip(listed, listed.values_at, strict=True):
            number, proto = text.split("/")
            if number != "*" and int(number) > MAX_PORT:
                self._complain(mark, f"{where}: port {number} is above 65535")
            ports.append(Port(0 if number == "*" else int(number), Proto[proto.upper()]))
        return tuple(ports)

    def _pool_names(self, listed: Seq, pools: Mapping[str, Pool], where: str) -> tuple[str, ...]:
        for name, mark in zip(listed, listed.values_at, strict=True):
            if not self._is_there("pools", name, pools):
                hint = self._near(name, pools)
                self._complain(mark, f"{where}: there is no pool {name!r}", hint)
        return tuple(name for name in listed if name in pools)

    def _modes_agree(self, service: Service, at: Map, where: str) -> None:
        """Settings that would contradict each other in the data plane."""

        def complain(key: str, message: str, hint: str) -> None:
            mark = at.keys_at.get(key, self._root["services"].keys_at[service.name])
            self._complain(mark, f"{where}: {message}", hint)

        method = service.balance.method
        if not service.flows and not method.hashes:
            hint = "only a hash finds the same backend again: use consistent or maglev"
            complain("flows", f"flows: off does not go with {method}", hint)
        if not service.flows and service.forward is Forward.FULLNAT:
            complain("flows", "flows: off does not go with fullnat", "its ports are its flows")
        if service.direct and service.forward is not Forward.NAT:
            complain("direct", f"direct does not go with {service.forward}", "it is for nat")

    def _recovers(self, service: Service, at: Map, where: str) -> None:
        """A recovery that could not be, or that nobody would notice."""
        recover, key = service.recover, "recover" if "recover" in at else "panic"
        if recover is None or key not in at:
            return
        if service.panic > recover:
            message = f"recover: {recover}% is less than panic: {service.panic}%"
            hint = "a pool that has recovered would be short at once: say as much or more"
        elif key == "recover" and not service.panic:
            message, hint = "recover does nothing without panic", "say both, or neither"
        elif key == "recover" and len(service.pools) == 1:
            message = "recover does nothing with one pool"
            hint = "it is for how long the next pool goes on serving: add one, or leave it out"
        else:
            return
        self._complain(at.keys_at[key], f"{where}: {message}", hint)

    def _families_agree(
        self, service: Service, at: Map, pools: Mapping[str, Pool], where: str
    ) -> None:
        whole = len(service.pools) == len(at["pools"])  # else who knows what is in the others
        if not service.forward.translates or not service.pools or not whole:
            return
        offered = {
            backend.address.version
            for name in service.pools
            for backend in pools[name].backends.values()
        }
        for text, mark in zip(at["addresses"], at["addresses"].values_at, strict=True):
            address = _parsed(text)
            if address is not None and offered and address.version not in offered:
                message = f"{where}: {service.forward} of {address} needs IPv{address.version}"
                hint = f"add IPv{address.version} backends, or forward by ipip or gue"
                self._complain(mark, f"{message} backends; its pools have none", hint)

    def _frontends_are_unique(self, services: Mapping[str, Service]) -> None:
        seen: dict[tuple[Address, Port], str] = {}
        for service in services.values():
            for address, port in frontends(service):
                first = seen.setdefault((address, port), service.name)
                if first != service.name:
                    mark = self._root["services"].keys_at[service.name]
                    message = f"services[{service.name}]: {address} {port} is taken"
                    line = services[first].origin.line
                    self._complain(mark, message, f"by services[{first}] on line {line}")

    def _no_loops(self, services: Mapping[str, Service], pools: Mapping[str, Pool]) -> None:
        ours = {address: service for service in services.values() for address in service.addresses}
        for pool in pools.values():
            for backend in pool.backends.values():
                if backend.address in ours:
                    section = self._root["pools"][pool.name]["backends"][backend.name]
                    message = f"pools[{pool.name}].backends[{backend.name}]: {backend.address}"
                    hint = "a packet would come back here for ever"
                    name = ours[backend.address].name
                    mark = section.values_at["address"]
                    self._complain(mark, f"{message} is an address of service {name!r}", hint)

    def _ways_exist(self, services: Mapping[str, Service], pools: Mapping[str, Pool]) -> None:
        """What `via: service` needs of the services that use a pool."""
        for found in ways.misfits(services, pools):
            pool, backend = found.backend
            section: Map = self._root["services"]
            where, key = f"services[{found.service}]", found.service
            if backend:
                section = self._root["pools"][pool]["backends"]
                where, key = f"pools[{pool}].backends[{backend}]", backend
            elif found.check:
                section = self._root["checks"]
                where, key = f"checks[{found.check}]", found.check
            self._complain(section.keys_at[key], f"{where}: {found.message}", found.hint)


def frontends(service: Service) -> Iterable[tuple[Address, Port]]:
    """Every (address, port, protocol) of a service, in the order of the file."""
    return ((address, port) for address in service.addresses for port in service.ports)


@functools.lru_cache(maxsize=1 << 17)
def _parsed(text: str) -> Address | None:
    """The address; scopes such as %eth0 mean nothing to other machines.

    The same object for the same text: the next version of a file has mostly the same addresses.
    """
    try:
        return ipaddress.ip_address(text) if "%" not in text else None
    except ValueError:
        return None


class Kind(NamedTuple):
    """Addresses that no packet of ours can have."""

    name: str
    hint: str


_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


def unfit(address: Address) -> Kind | None:
    """Why nothing can be forwarded to this address, or sent from it."""
    if isinstance(address, ipaddress.IPv6Address) and (inner := address.ipv4_mapped):
        return Kind("an IPv4 address written as IPv6", f"write {inner}")
    if address.is_unspecified:
        return Kind("the unspecified address", "write the one that machines have")
    if address.is_multicast:
        return Kind("a multicast address", "write one that a single machine has")
    if address == _BROADCAST:
        return Kind("the broadcast address", "write one that a single machine has")
    if address.is_loopback:
        return Kind("a loopback address", "packets to it never leave a machine, or come from one")
    if isinstance(address, ipaddress.IPv6Address) and address.is_link_local:
        return Kind("a link-local address", "it has a meaning on one link only: use a global one")
    return None


def _guardrails(at: Mapping[str, Any]) -> Guardrails:
    return Guardrails(
        removed_services=percent(at.get("removed-services", "25%")),
        removed_backends=percent(at.get("removed-backends", "34%")),
        allow_empty=at.get("allow-empty", False),
    )
