"""Capture files: packets out of pcap and pcapng, strictly. Opens nothing, decodes no packet.

What was read before a file turns out to be broken has been handed out already, and counts.
"""

from collections.abc import Iterator

from reconciler.capture import pcap, pcapng
from reconciler.capture.stream import LONGEST, Captured, CaptureError, Readable, Stream

__all__ = ["LONGEST", "CaptureError", "Captured", "Readable", "frames"]

MAGIC = 4
OTHERS = {
    b"\x1f\x8b": "it is compressed: `zcat FILE | reconciler replay -`",
    b"\x28\xb5": "it is compressed: `zstdcat FILE | reconciler replay -`",
    b"sn": "it is a capture of Solaris' snoop: `editcap -F pcap` converts it",
}


def frames(source: Readable) -> Iterator[Captured]:
    """Every packet, in order; CaptureError where the file is broken."""
    stream = Stream(source)
    magic = stream.take(MAGIC, "the magic number")
    if magic in pcap.MAGICS:
        return pcap.frames(stream, magic)
    if magic == pcapng.SECTION:
        return pcapng.frames(stream)
    what = OTHERS.get(magic[:2], "it is no capture file")
    raise CaptureError(0, f"starts with {magic.hex()}, neither pcap nor pcapng; {what}")
