"""Reads from the host what `doctor` judges. Changes nothing, and asks no neighbour.

What the kernel does not say here, or not to this process, is None or left at what is
harmless: a doctor that cannot see one thing still looks at the others.
"""

import ctypes
import fcntl
import gzip
import os
import resource
import socket
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.ethtool.ioctl import EthtoolError, IoctlEthtool
from pyroute2.netlink import NLM_F_REQUEST, genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from bpf import errors, link, pins, program
from bpf.kernel import Instance, KernelError, Mode, NotLoaded
from bpf.via import Via
from reconciler.model import Config, Node
from reconciler.neigh import Neighbours
from reconciler.symptoms import Device, Facts, Reach

SYSCTL = Path("/proc/sys")
FEATURES = ("rx-lro", "rx-gro", "rx-gro-hw", "rx-vlan-hw-parse")
_SIOCETHTOOL, _GDRVINFO = 0x8946, 3
_DRVINFO_SIZE = 196
_GCHANNELS = 0x3C
_CHANNELS = struct.Struct("=9I")  # command; most of rx, tx, other, combined; and those in use
_UP = 1
_FILTERING = (b"CONFIG_NET_SCH_INGRESS=", b"CONFIG_NET_CLS_BPF=")
_XDP_BASIC, _XDP_XMIT = 1, 4
_DEV_GET = 1

Attached = Mapping[str, str]  # interface -> mode


class _DeviceMessage(genlmsg):  # type: ignore[misc] # pyroute2 has no types
    """Of the netdev family: what a device can do with XDP."""

    nla_map = (
        ("NETDEV_A_DEV_PAD0", "none"),
        ("NETDEV_A_DEV_IFINDEX", "uint32"),
        ("NETDEV_A_DEV_PAD", "none"),
        ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
    )


def read(node: Node, config: Config | None, instance: str) -> Facts:
    loaded, attached = _instance(instance)
    filtered = _filtered(instance)
    with IPRoute() as netlink:
        links = {m.get_attr("IFLA_IFNAME"): m for m in netlink.get_links()}
    return Facts(
        node=node,
        config=config,
        release=errors.release(),
        kernel=os.uname().release,
        lacking=tuple(errors.missing_capabilities()),
        bpffs=pins.is_mounted(),
        loaded=loaded,
        jit=_sysctl("net/core/bpf_jit_enable"),
        memlock=_memlock(),
        cpus=os.cpu_count() or 1,
        local_ports=_local_ports(),
        reserved=tuple(_reserved()),
        keepalive=_sysctl("net/ipv4/tcp_keepalive_time") or 7200,
        most_neighbours=_sysctl("net/ipv4/neigh/default/gc_thresh3"),
        clsact=_clsact(),
        devices=tuple(
            _device(name, mode, links, attached, filtered) for name, mode in node.interfaces.items()
        ),
        reaches=tuple(_reaches(config, links)) if config else (),
    )


def _instance(name: str) -> tuple[bool | None, Attached]:
    try:
        with Instance.open(name, read_only=True) as instance:
            return True, {
                a.interface: a.mode for a in instance.attachments() if a.mode != Mode.AUTO
            }
    except NotLoaded:
        return False, {}
    except (KernelError, OSError):
        return None, {}


def _filtered(name: str) -> Collection[str] | None:
    """Interfaces on which checks with `via: service` are turned; None: not permitted to know."""
    try:
        found = Via.open(name, read_only=True)
        if found is None:
            return ()
        with closing(found):
            return found.attached()
    except (KernelError, OSError):
        return None


def _device(
    name: str,
    wanted: str,
    links: Mapping[str, Any],
    attached: Attached,
    filtered: Collection[str] | None,
) -> Device:
    found = links.get(name)
    if found is None:
        return Device(name, wanted, present=False)
    xdp = _xdp(found["index"])
    queues, most = _queues(name)
    return Device(
        name,
        wanted,
        up=bool(found["flags"] & _UP),
        kind=_kind(found),
        driver=_driver(name),
        mtu=found.get_attr("IFLA_MTU"),
        mode=attached.get(name, ""),
        foreign="" if name in attached else _foreign(found["index"]),
        features=_features(name),
        queues=queues,
        most_queues=most,
        native=None if xdp is None else bool(xdp & _XDP_BASIC),
        redirect=None if xdp is None else bool(xdp & _XDP_XMIT),
        rp_filter=_rp_filter(name),
        forwards=frozenset(
            family for family in (4, 6) if _sysctl(f"net/ipv{family}/conf/{name}/forwarding")
        ),
        vlans=tuple(sorted(_vlans(found["index"], links))),
        filtered=None if filtered is None else name in filtered,
    )


def _reaches(config: Config, links: Mapping[str, Any]) -> Iterator[Reach]:
    """Of the backends that services use, in the file's order."""
    used = {name: None for service in config.services.values() for name in service.pools}
    backends = [(pool, b) for pool in used for b in config.pools[pool].backends.values()]
    with Neighbours() as neighbours:
        addresses = [backend.address for _, backend in backends]
        vias, hops = neighbours.vias(addresses), neighbours.hops(addresses, wait=None)
    redirect = {via.link.name: _xmits(via.link.index) for via in vias.values()}
    for pool, backend in backends:
        via, name = vias.get(backend.address), f"{pool}/{backend.name}"
        if via is None:
            yield Reach(name, backend.address)
            continue
        yield Reach(
            name,
            backend.address,
            out=via.link.name,
            kind=_kind(links[via.link.name]) if via.link.name in links else via.link.kind,
            mtu=via.mtu,
            via=None if via.address == backend.address else via.address,
            resolved=backend.address in hops,
            redirect=redirect[via.link.name],
        )


# ---- of an interface


def _kind(message: Any) -> str:  # noqa: ANN401 -- pyroute2 has no types
    info = message.get_attr("IFLA_LINKINFO")
    return (info.get_attr("IFLA_INFO_KIND") if info else "") or ""


def _vlans(index: int, links: Mapping[str, Any]) -> Iterator[str]:
    for name, message in links.items():
        if _kind(message) == "vlan" and message.get_attr("IFLA_LINK") == index:
            yield name


def _driver(name: str) -> str:
    """As `ethtool -i` says it."""
    answer = _asked(name, _GDRVINFO, _DRVINFO_SIZE)
    return answer[4:36].partition(b"\0")[0].decode(errors="replace")


def _asked(name: str, command: int, size: int) -> bytes:
    """What the driver fills a structure of that size with; nothing but zeros if it does not know."""
    answer = bytearray(struct.pack("=I", command).ljust(size, b"\0"))
    request = struct.pack("16sP16x", name.encode(), _address_of(answer))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
        except OSError:
            return bytes(size)
    return bytes(answer)


def _address_of(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _features(name: str) -> dict[str, bool]:
    try:
        ethtool = IoctlEthtool(name)
        with closing(ethtool.sock):  # Debian 12's has no close() of its own
            found = ethtool.get_features()
            return {one: bool(found[one]) for one in FEATURES if one in found}
    except (EthtoolError, OSError):
        return {}


def _queues(name: str) -> tuple[int, int]:
    """Receive queues: those in use, and as many as there could be."""
    answer = _asked(name, _GCHANNELS, _CHANNELS.size)
    _, most, _, _, most_combined, now, _, _, combined = _CHANNELS.unpack(answer)
    used = now + combined
    return max(used, 1), max(most + most_combined, used, 1)


def _xdp(index: int) -> int | None:
    """The device's XDP features; kernels before 6.3 do not say."""
    request = _DeviceMessage()
    request["cmd"], request["version"] = _DEV_GET, 1
    request["attrs"] = [("NETDEV_A_DEV_IFINDEX", index)]
    try:
        with closing(GenericNetlinkSocket()) as netlink:
            netlink.bind("netdev", _DeviceMessage)
            answers = netlink.nlm_request(request, msg_type=netlink.prid, msg_flags=NLM_F_REQUEST)
            features = next(iter(answers)).get_attr("NETDEV_A_DEV_XDP_FEATURES")
    except (NetlinkError, StopIteration, OSError):
        return None
    return None if features is None else int(features)


def _xmits(index: int) -> bool | None:
    features = _xdp(index)
    return None if features is None else bool(features & _XDP_XMIT)


def _foreign(index: int) -> str:
    try:
        number, _ = link.running(index)
        return program.describe(number) if number else ""
    except KernelError:
        return ""


# ---- of the host


def _sysctl(path: str) -> int | None:
    """None where there is none: many exist in the first network namespace only."""
    try:
        return int((SYSCTL / path).read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _rp_filter(name: str) -> int:
    """The kernel takes the larger of the two."""
    both = (_sysctl(f"net/ipv4/conf/{which}/rp_filter") for which in ("all", name))
    return max(value or 0 for value in both)


def _local_ports() -> tuple[int, int]:
    text = (SYSCTL / "net/ipv4/ip_local_port_range").read_text(encoding="ascii")
    low, high = text.split()
    return int(low), int(high)


def _reserved() -> Iterator[tuple[int, int]]:
    text = (SYSCTL / "net/ipv4/ip_local_reserved_ports").read_text(encoding="ascii")
    for part in filter(None, text.strip().split(",")):
        low, _, high = part.partition("-")
        yield int(low), int(high or low)


def _clsact() -> bool | None:
    """By the kernel's own configuration, where it can be read."""
    for path in (Path("/proc/config.gz"), Path(f"/boot/config-{os.uname().release}")):
        try:
            text = path.read_bytes()
        except OSError:
            continue
        lines = (gzip.decompress(text) if path.suffix == ".gz" else text).split(b"\n")
        return all(any(line.startswith(one) for line in lines) for one in _FILTERING)
    return None


def _memlock() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft
