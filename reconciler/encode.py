"""Words of the configuration as the numbers of `bpf.abi`. Pure."""

import ipaddress
import math
from collections.abc import Iterable
from ipaddress import IPv4Address

from bpf import abi
from reconciler.model import Address, AdminState, Backend, Forward, HashOn, Method, Pool, Service

TICK = (1 << abi.Limit.TICK_SHIFT) / 1e9  # seconds
ICMP = {4: 1, 6: 58}
GOLDEN4, GOLDEN6 = 0x9E3779B1, 0x9E3779B97F4A7C15
IPV4 = 4

FORWARD = {mode: abi.Forward[mode.name] for mode in Forward}
BALANCE = {
    Method.CONSISTENT: abi.Balance.HASH,
    Method.MAGLEV: abi.Balance.HASH,
    Method.ROUND_ROBIN: abi.Balance.ROUND_ROBIN,
    Method.RANDOM: abi.Balance.RANDOM,
    Method.LEAST_CONNECTIONS: abi.Balance.LEAST_CONNECTIONS,
}
HASH = {on: abi.HashFields[on.name] for on in HashOn}


def ticks(seconds: float) -> int:
    return max(1, math.ceil(seconds / TICK))


def per_tick(rate: int) -> int:
    """A rate a second as one a tick; 0 stays 0, which is no limit."""
    return math.ceil(rate * TICK)


def abi_address(address: Address | None) -> abi.Address:
    if address is None:
        return abi.Address()
    return abi.Address.from_bytes(address.packed.ljust(16, b"\0"))


def bucket(address: Address) -> int:
    """Of the prefilter: the program's hash of an address."""
    packed = address.packed
    if address.version == IPV4:
        return (int.from_bytes(packed, "little") * GOLDEN4 % (1 << 32)) >> 16
    first, second = int.from_bytes(packed[:8], "little"), int.from_bytes(packed[8:], "little")
    return (((first * GOLDEN6 % (1 << 64)) ^ second) * GOLDEN6 % (1 << 64)) >> 48


FrontendKey = abi.Frontend4Key | abi.Frontend6Key


def key_of(address: Address, port: int, proto: int) -> FrontendKey:
    if isinstance(address, IPv4Address):
        return abi.Frontend4Key(addr=int(address), port=port, proto=proto)
    return abi.Frontend6Key(addr=tuple(address.packed), port=port, proto=proto)


def reply(candidates: Iterable[tuple[int, int]]) -> abi.Reply:
    """As many candidates as an entry holds; the count tells of more."""
    listed = sorted(candidates)
    entry = abi.Reply(count=len(listed))
    for i, (frontend, backend) in enumerate(listed[: abi.Limit.REPLY_CANDIDATES]):
        entry.candidate[i].frontend = frontend
        entry.candidate[i].backend = backend
    return entry


def backend_flags(pool: Pool, backend: Backend) -> int:
    flags = abi.BackendFlag(0)
    if pool.check is None or pool.initial_up:
        flags |= abi.BackendFlag.ASSUME_UP
    if backend.state is AdminState.DOWN:
        flags |= abi.BackendFlag.FORCED_DOWN
    if not backend.takes_new:
        flags |= abi.BackendFlag.NO_NEW
    return flags


def service_flags(service: Service) -> int:
    flags = abi.ServiceFlag(0)
    if not service.flows:
        flags |= abi.ServiceFlag.FLOWS_OFF
    if service.direct:
        flags |= abi.ServiceFlag.DIRECT
    if service.fail_closed:
        flags |= abi.ServiceFlag.FAIL_CLOSED
    if service.keep_down:
        flags |= abi.ServiceFlag.KEEP_DOWN
    return flags


def address(packed: abi.Address, family: int) -> Address:
    return ipaddress.ip_address(address_bytes(packed, family))


def address_bytes(address: abi.Address, family: int) -> bytes:
    """As `ipaddress` packs it."""
    return bytes(address)[: 4 if family == IPV4 else 16]
