"""What became of a packet, in a sentence for each verdict. Pure."""

from bpf.abi import Verdict

WHY = {
    Verdict.NOT_OURS: "it concerns no service: passed to the kernel as it came",
    Verdict.TRUNCATED: "the frame ends before its addresses: passed to the kernel as it came",
    Verdict.FORWARDED: "sent to a backend",
    Verdict.RETURNED: "a backend's reply, sent to the client",
    Verdict.RETURN_PASSED: "a backend's reply, translated; the kernel finds the client's neighbour",
    Verdict.ICMP_FORWARDED: "an error about a flow, sent to the flow's backend",
    Verdict.ICMP_RETURNED: "an error from a backend, sent to the client",
    Verdict.ECHO_ANSWERED: "a ping to a service's address, answered here",
    Verdict.TOO_BIG_ANSWERED: "does not fit the next hop's MTU: the sender is told",
    Verdict.BAD_IP_HEADER: "dropped: an IP version or header length that cannot be, or too many extension headers",
    Verdict.BAD_IP_LENGTH: "dropped: its IP length is beyond the frame, or below the header",
    Verdict.BAD_TCP: "dropped: the TCP header is cut short, or lies about its length",
    Verdict.BAD_UDP: "dropped: the UDP header is cut short, or lies about its length",
    Verdict.BAD_ICMP: "dropped: the ICMP message, or what it quotes, is cut short or lies",
    Verdict.FRAGMENT: "dropped: a fragment, for an address whose services take none",
    Verdict.NO_BACKEND: "dropped: no pool of the service has a usable backend",
    Verdict.NO_NEXT_HOP: "dropped: nobody knows the backend's MAC address; `reconciler doctor` says more",
    Verdict.NO_ROUTE: "dropped: no route towards the client",
    Verdict.TTL_EXPIRED: "dropped: its TTL or hop limit is used up",
    Verdict.TOO_BIG: "dropped: does not fit the next hop's MTU, and the sender cannot be told",
    Verdict.TOO_BIG_LIMITED: "dropped: does not fit the next hop's MTU, and enough senders were told",
    Verdict.GATED: "dropped: the service has had all the new flows that its gate lets in",
    Verdict.RETURN_TAKEN: "dropped: replies of every backend tried would be another flow's",
    Verdict.PORTS_TAKEN: "dropped: every source port tried is in use",
    Verdict.NO_FLOW: "dropped: neither of a known flow nor the start of one",
    Verdict.UNKNOWN_PORT: "dropped: to fullnat's own ports, but no flow's",
    Verdict.NO_ROOM: "dropped: the flow map took no further entry",
    Verdict.NO_HEADROOM: "dropped: the driver left no room for the outer headers",
    Verdict.MISCONFIGURED: "dropped: the service's mode, the families and this node's addresses do not fit together",
}  # fmt: skip
BY_NAME = {verdict.name.lower(): why for verdict, why in WHY.items()}

# With these the program counts a backend, and a service.
COUNTED = frozenset({
    Verdict.FORWARDED, Verdict.RETURNED, Verdict.RETURN_PASSED,
    Verdict.ICMP_FORWARDED, Verdict.ICMP_RETURNED,
})  # fmt: skip

# With these a frame leaves that is not what came in.
SENT = COUNTED | {Verdict.ECHO_ANSWERED, Verdict.TOO_BIG_ANSWERED}
