"""What a map says, read again and again: what has not changed is the same object.

Every reading is of the map itself; what is remembered is only what its bytes mean.
So whoever compares two readings finds out by identity what is equal, and
whoever holds one may keep it: callers must not change entries.
"""

from typing import Generic, TypeVar

from bpf.maps import Map

K = TypeVar("K")
V = TypeVar("V")


class Rereading(Generic[K, V]):
    """One map's entries."""

    def __init__(self, source: Map[K, V]) -> None:
        self._source = source
        self._seen: list[tuple[bytes, bytes]] = []  # keys and values, batch by batch
        self._known: dict[bytes, tuple[K, V]] = {}  # by the bytes of both
        self._content: dict[K, V] = {}

    def read(self) -> dict[K, V]:
        """Every entry; of an array, every entry that is not all zero."""
        now = self._source.raw()
        if now != self._seen:
            known, records = self._known, self._source.records(now)
            self._known = {
                record: known.get(record) or self._source.decoded(record) for record in records
            }
            self._seen, self._content = now, dict(self._known.values())
        return self._content

    def expect(self, key: K, value: V) -> None:
        """What was written: if it is found to be there, it is this object."""
        self._known[self._source.encoded(key, value)] = key, value
        self._seen = []
