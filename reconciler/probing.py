"""What the probes map should say: how packets of a check are sent that go as clients' do. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from bpf import abi
from reconciler import encode, ways
from reconciler.model import Address, Config, Forward, Node
from reconciler.ways import Name, Way


@dataclass(frozen=True, slots=True)
class Probes:
    """The entries by mark, and each probe's mark."""

    entries: Mapping[int, abi.Probe]
    marks: Mapping[Name, int]


def probes(config: Config, node: Node, actual: Mapping[int, abi.Probe]) -> Probes:
    """One for each address of a backend and each of the services' that it is for."""
    wanted = {
        ways.name_of(backend, way): (backend, way)
        for (pool, name), found in sorted(ways.all_ways(config).items())
        for backend in [config.pools[pool].backends[name].address]
        for way in found
    }
    marks = ways.marks(wanted, {_name(entry): mark for mark, entry in actual.items()})
    entries = {marks[name]: _entry(backend, way, node) for name, (backend, way) in wanted.items()}
    return Probes(entries, marks)


def _name(entry: abi.Probe) -> Name:
    backend = encode.address_bytes(entry.backend, entry.family)
    return backend, encode.address_bytes(entry.service, entry.family), entry.forward


def _entry(backend: Address, way: Way, node: Node) -> abi.Probe:
    source = node.tunnel_source.get(backend.version) if way.forward.tunnels else None
    return abi.Probe(
        backend=encode.abi_address(backend),
        service=encode.abi_address(way.address),
        source=encode.abi_address(source),
        gue_port=node.gue_port if way.forward is Forward.GUE else 0,
        forward=encode.FORWARD[way.forward],
        family=backend.version,
    )
