"""ICMP errors on their way through, by docs/packet-path.md §8: the packet that they quote is made
to look as its sender sent it. Whose error it is, program.py decides.
"""

from dataclasses import dataclass

from tests.support.model.parse import Packet, Quote, Tuple
from tests.support.model.rewrite import Draft, updated


@dataclass(frozen=True, slots=True)
class End:
    """An address and port to be written; no port where it shall stay."""

    address: bytes
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Ends:
    """What becomes of the outer and quoted addresses; None: nothing."""

    outer_source: End | None = None
    outer_destination: End | None = None
    quoted_source: End | None = None
    quoted_destination: End | None = None


def client_tuple(quote: Quote) -> Tuple:
    """The tuple of the client's packets, from one that was sent to the client."""
    return quote.tuple.back()


def reply_tuple(quote: Quote) -> Tuple:
    """The tuple of the backend's packets, from one that was sent to the backend."""
    return quote.tuple.back()


def translated(packet: Packet, ends: Ends) -> Draft:
    """The error with new addresses outside and inside. TTL and MACs are the caller's."""
    quote = packet.quote
    assert quote is not None, "only errors are translated"
    outer = Draft.of(packet)
    inner = _quoted(outer, quote)
    _apply(outer, ends.outer_source, ends.outer_destination)
    _apply(inner, ends.quoted_source, ends.quoted_destination)
    if ends.quoted_source or ends.quoted_destination:
        inner.finish()
    _update_icmp(packet, outer, inner)
    return outer


def _quoted(outer: Draft, quote: Quote) -> Draft:
    protocol = quote.tuple.protocol
    return Draft(outer.data, outer.family, quote.l3, quote.l4, quote.end, protocol, quote.piece)


def _apply(draft: Draft, source: End | None, destination: End | None) -> None:
    if source:
        draft.source(source.address, source.port)
    if destination:
        draft.destination(destination.address, destination.port)


def _update_icmp(packet: Packet, outer: Draft, inner: Draft) -> None:
    before, after = inner.written.before, inner.written.after
    if packet.family == 6:
        before, after = before + outer.pseudo.before, after + outer.pseudo.after
    at = packet.l4 + 2
    old = int.from_bytes(outer.data[at : at + 2], "big")
    outer.data[at : at + 2] = updated(old, before, after).to_bytes(2, "big")
