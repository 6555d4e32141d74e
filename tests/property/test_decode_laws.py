"""Laws of the decoder: it reads what scapy wrote, field by field; it believes no length and no
checksum; and nothing makes it raise."""

from ipaddress import ip_address
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.all import ARP, ICMP, IP, TCP, UDP, Dot1AD, Dot1Q, Ether, IPv6, Raw
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)

from reconciler.packet.decode import Decoded, decode
from tests.support import checksums

MACS = st.binary(min_size=6, max_size=6).map(lambda data: data.hex(":"))
V4 = st.ip_addresses(v=4).map(str)
V6 = st.ip_addresses(v=6).map(str)
PORT, SHORT, BYTE = st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 255)
WORD = st.integers(0, 2**32 - 1)
PORTS = PORT.filter(lambda port: port != 6080)
TCP_OPTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("MSS"), SHORT),
        st.tuples(st.just("WScale"), BYTE),
        st.just(("SAckOK", b"")),
        st.tuples(st.just("Timestamp"), st.tuples(WORD, WORD)),
        st.just(("NOP", None)),
        st.tuples(st.just("SAck"), st.tuples(WORD, WORD)),
    ),
    max_size=3,
)
OURS = {"MSS": "mss", "WScale": "window-scale", "SAckOK": "sack-permitted", "Timestamp": "timestamps", "NOP": "nop", "SAck": "sack"}  # fmt: skip
PAYLOAD = st.binary(max_size=40)


@st.composite
def segments(draw: st.DrawFn, version: int) -> Any:
    """What IP carries."""
    kind = draw(st.sampled_from(("tcp", "udp", "icmp", "error", "error")))
    load = Raw(draw(PAYLOAD))
    if kind == "tcp":
        return TCP(sport=draw(PORT), dport=draw(PORT), seq=draw(WORD), ack=draw(WORD), reserved=draw(st.integers(0, 7)), flags=draw(st.integers(0, 511)), window=draw(SHORT), urgptr=draw(SHORT), options=draw(TCP_OPTIONS)) / load  # fmt: skip
    if kind == "udp":
        return UDP(sport=draw(PORTS), dport=draw(PORTS)) / load
    if kind == "icmp":
        ident, seq = draw(SHORT), draw(SHORT)
        return ICMP(id=ident, seq=seq) / load if version == 4 else ICMPv6EchoRequest(id=ident, seq=seq, data=bytes(load))  # fmt: skip
    quoted = draw(packets(version, quoting=True))
    if version == 4:
        return ICMP(type=3, code=4, nexthopmtu=draw(SHORT)) / quoted
    head = draw(st.sampled_from((ICMPv6PacketTooBig(mtu=draw(WORD)), ICMPv6DestUnreach(code=4), ICMPv6TimeExceeded(), ICMPv6ParamProblem(ptr=draw(WORD)))))  # fmt: skip
    return head / quoted


@st.composite
def packets(draw: st.DrawFn, version: int, *, quoting: bool = False) -> Any:
    inner = UDP(sport=draw(PORTS), dport=draw(PORTS)) / Raw(draw(PAYLOAD)) if quoting else draw(segments(version))  # fmt: skip
    if version == 4:
        options = draw(st.sampled_from(([], [b"\x94\x04\0\0"], [b"\x01\x01\x01\x00"])))
        head = IP(src=draw(V4), dst=draw(V4), tos=draw(BYTE), id=draw(SHORT), ttl=draw(BYTE), flags=draw(st.sampled_from((0, 2, 4))), options=options)  # fmt: skip
        return head / inner
    head = IPv6(src=draw(V6), dst=draw(V6), tc=draw(BYTE), fl=draw(st.integers(0, 0xFFFFF)), hlim=draw(BYTE))  # fmt: skip
    for extension in draw(
        st.lists(st.sampled_from(("hop", "dest", "route", "fragment")), max_size=2, unique=True)
        if not quoting
        else st.just([])
    ):
        head /= {
            "hop": IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0\0")]),
            "dest": IPv6ExtHdrDestOpt(),
            "route": IPv6ExtHdrRouting(
                addresses=["2001:db8::1", draw(V6)], segleft=draw(st.integers(0, 2))
            ),
            "fragment": IPv6ExtHdrFragment(id=draw(WORD), m=draw(st.integers(0, 1))),
        }[extension]
    return head / inner


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    head = Ether(dst=draw(MACS), src=draw(MACS))
    for kind in draw(st.sampled_from(((), (Dot1Q,), (Dot1AD, Dot1Q)))):
        head /= kind(vlan=draw(st.integers(0, 4095)), prio=draw(st.integers(0, 7)))
    if draw(st.integers(0, 9)) == 0:
        return bytes(head / ARP(op=draw(st.integers(1, 2)), hwsrc=draw(MACS), psrc=draw(V4), hwdst=draw(MACS), pdst=draw(V4)))  # fmt: skip
    version = draw(st.sampled_from((4, 6)))
    wrapped = draw(packets(version))
    if draw(st.integers(0, 5)) == 0:  # a tunnel
        outer = draw(st.sampled_from((IP(src="192.0.2.1", dst="192.0.2.2"), IPv6(src="2001:db8::1", dst="2001:db8::2"))))  # fmt: skip
        head /= outer
        if draw(st.booleans()):
            return bytes(head / UDP(sport=50000, dport=6080) / Raw(bytes(wrapped)))
    return bytes(head / wrapped)


# ---- what scapy says of the same bytes, in our words


def by_scapy(frame: bytes) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    layer = Ether(frame)
    while layer and not isinstance(layer, Raw):
        kind = layer.__class__.__name__
        said = READERS.get(QUOTED.get(kind, kind))
        if said is None:
            break
        name, fields = said
        found.append((name, fields(layer)))
        layer = layer.payload
        if isinstance(layer, Raw) and found[-1][0] == "udp" and found[-1][1]["destination-port"] == 6080:  # fmt: skip
            found.append(("gue", {"variant": 1}))
            layer = (IP if bytes(layer)[0] >> 4 == 4 else IPv6)(bytes(layer))
    return found


QUOTED = {"IPerror": "IP", "IPerror6": "IPv6", "UDPerror": "UDP"}


def _options(layer: Any) -> list[tuple[str, Any]]:
    return [(OURS[n], v) for n, v in layer.options if n != "EOL"]


READERS: dict[str, tuple[str, Any]] = {
    "Ether": ("ethernet", lambda p: {"destination": p.dst, "source": p.src, "type": p.type}),
    "Dot1Q": ("vlan", lambda p: {"id": p.vlan, "priority": p.prio, "type": p.type}),
    "Dot1AD": ("vlan", lambda p: {"id": p.vlan, "priority": p.prio, "type": p.type}),
    "ARP": ("arp", lambda p: {"operation": p.op, "sender-hardware": p.hwsrc, "sender-protocol": p.psrc, "target-hardware": p.hwdst, "target-protocol": p.pdst, "hardware-type": p.hwtype, "protocol-type": p.ptype}),
    "IP": ("ipv4", lambda p: {"version": p.version, "header-length": p.ihl * 4, "dscp": p.tos >> 2, "ecn": p.tos & 3, "total-length": p.len, "id": p.id, "dont-fragment": int(p.flags.DF), "more-fragments": int(p.flags.MF), "reserved": int(p.flags.evil), "fragment-offset": p.frag * 8, "ttl": p.ttl, "protocol": p.proto, "checksum": p.chksum, "source": p.src, "destination": p.dst}),
    "IPv6": ("ipv6", lambda p: {"version": p.version, "dscp": p.tc >> 2, "ecn": p.tc & 3, "flow-label": p.fl, "payload-length": p.plen, "next-header": p.nh, "hop-limit": p.hlim, "source": p.src, "destination": p.dst}),
    "IPv6ExtHdrHopByHop": ("hop-by-hop", lambda p: {"next-header": p.nh, "header-length": (p.len + 1) * 8}),
    "IPv6ExtHdrDestOpt": ("destination", lambda p: {"next-header": p.nh, "header-length": (p.len + 1) * 8}),
    "IPv6ExtHdrRouting": ("routing", lambda p: {"next-header": p.nh, "header-length": (p.len + 1) * 8, "type": p.type, "segments-left": p.segleft}),
    "IPv6ExtHdrFragment": ("fragment", lambda p: {"next-header": p.nh, "offset": p.offset * 8, "more": p.m, "id": p.id}),
    "TCP": ("tcp", lambda p: {"source-port": p.sport, "destination-port": p.dport, "sequence": p.seq, "acknowledgement": p.ack, "header-length": p.dataofs * 4, "reserved": p.reserved, "flags": int(p.flags), "window": p.window, "checksum": p.chksum, "urgent": p.urgptr, "options": _options(p)}),
    "UDP": ("udp", lambda p: {"source-port": p.sport, "destination-port": p.dport, "length": p.len, "checksum": p.chksum}),
    "ICMP": ("icmp", lambda p: {"type": p.type, "code": p.code, "checksum": p.chksum, **({"mtu": p.nexthopmtu} if p.type == 3 else {"id": p.id, "sequence": p.seq})}),
    "ICMPv6EchoRequest": ("icmpv6", lambda p: {"type": p.type, "code": p.code, "checksum": p.cksum, "id": p.id, "sequence": p.seq}),
    "ICMPv6PacketTooBig": ("icmpv6", lambda p: {"type": p.type, "code": p.code, "checksum": p.cksum, "mtu": p.mtu}),
    "ICMPv6DestUnreach": ("icmpv6", lambda p: {"type": p.type, "code": p.code, "checksum": p.cksum}),
    "ICMPv6ParamProblem": ("icmpv6", lambda p: {"type": p.type, "code": p.code, "checksum": p.cksum, "pointer": p.ptr}),
    "ICMPv6TimeExceeded": ("icmpv6", lambda p: {"type": p.type, "code": p.code, "checksum": p.cksum}),
}  # fmt: skip


def ours(decoded: Decoded) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for one in decoded.layers:
        fields = {field.name: field.value for field in one.fields}
        if one.name == "tcp":
            listed = [(o.name, o.value) for o in fields["options"] if o.name != "end"]
            fields["options"] = [
                (n, {"nop": None, "sack-permitted": b""}.get(n, v)) for n, v in listed
            ]
        if one.name != "payload":
            found.append((one.name, fields))
    return found


def plain(value: Any) -> Any:
    """One way to write an IPv6 address: scapy dots those that are mapped."""
    return str(ip_address(value)) if isinstance(value, str) and "::" in value else value


@settings(deadline=None, max_examples=80)
@given(frames())
def test_every_field_is_what_scapy_says(frame: bytes) -> None:
    decoded = decode(frame)
    assert not decoded.problem
    said, mine = by_scapy(frame), ours(decoded)
    assert [name for name, _ in mine] == [name for name, _ in said]
    for (name, wanted), (_, found) in zip(said, mine, strict=True):
        assert {key: plain(found[key]) for key in wanted} == {
            key: plain(value) for key, value in wanted.items()
        }, name
    assert decoded.wrong_sums == []


@settings(deadline=None, max_examples=80)
@given(frames(), st.data())
def test_a_changed_byte_is_judged_as_an_independent_arithmetic_judges_it(
    frame: bytes, data: st.DataObject
) -> None:
    """`checksums` walks the headers by itself, and scapy does its sums."""
    at = data.draw(st.integers(0, len(frame) - 1))
    changed = frame[:at] + bytes([data.draw(BYTE)]) + frame[at + 1 :]
    decoded = decode(changed)
    if decoded.problem or _lengths(decoded) != _lengths(decode(frame)):
        return  # `checksums` believes lengths that we do not
    names = {one.name: one for one in decoded.layers}
    if "routing" in names and names["routing"]["segments-left"]:
        return  # `checksums` takes the next hop for the destination
    if "fragment" in names and names["fragment"]["more"]:
        return  # ... and reads no quote in a fragment
    wrong = [name for name in checksums.problems(changed) if name.endswith("checksum")]
    assert len(decoded.wrong_sums) == len(wrong), (decoded.wrong_sums, wrong)


def _lengths(decoded: Decoded) -> list[Any]:
    """What says where things start, and which address a packet is for in the end."""
    names = ("type", "protocol", "next-header", "total-length", "payload-length", "length", "segments-left", "more", "offset", "more-fragments", "fragment-offset")  # fmt: skip
    return [[(f.name, f.value) for f in one.fields if f.name in names] for one in decoded.layers]


@settings(deadline=None, max_examples=50)
@given(frames(), st.data())
def test_what_should_be_there_makes_the_checksum_exact(frame: bytes, data: st.DataObject) -> None:
    places = [
        (one.at + CHECKSUM_AT[one.name], one.name, i)
        for i, one in enumerate(decode(frame).layers)
        if one.name in CHECKSUM_AT and one.note("checksum") == "exact"
    ]
    if not places:
        return
    at, name, i = data.draw(st.sampled_from(places))
    value = int.from_bytes(frame[at : at + 2])
    other = data.draw(st.integers(1, 65535).filter(lambda v: v != value))
    broken = frame[:at] + other.to_bytes(2) + frame[at + 2 :]
    note = decode(broken).layers[i].note("checksum")
    assert note == f"wrong, should be 0x{value:04x}", name


CHECKSUM_AT = {"ipv4": 10, "tcp": 16, "udp": 6, "icmp": 2, "icmpv6": 2}


@settings(deadline=None, max_examples=50)
@given(frames(), st.data())
def test_a_capture_cut_anywhere_says_so_and_what_is_left_reads_the_same(
    frame: bytes, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(0, len(frame) - 1))
    whole, short = decode(frame), decode(frame[:keep], len(frame))
    assert short.cut or keep >= sum(o.length for o in whole.layers if o.name != "payload")
    full = [(n, f) for n, f in ours(whole)]
    assert [n for n, _ in ours(short)] == [n for n, _ in full][: len(ours(short))]


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=120), frames(), st.integers(0, 200))
def test_nothing_makes_it_raise(noise: bytes, frame: bytes, at: int) -> None:
    for data in (noise, frame[:at], frame[:at] + noise, noise[:14] + frame[14:]):
        decoded = decode(data)
        for one in decoded.layers:
            assert one.document()
        assert decoded.tuple is None or str(decoded.tuple)
