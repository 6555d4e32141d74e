"""What the demo shows: per backend its health and what it got, read from the pinned maps. Writes to no map."""

import sys
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address

from bpf import abi, kernel

BAR = 24
HEAD = f"{'backend':9}{'address':14}{'health':9}{'packets':>9}{'bytes':>11}{'flows':>8}  share of answers"
STATES = {abi.HealthState.UP: "up", abi.HealthState.DOWN: "DOWN"}


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    address: str
    health: str
    packets: int
    bytes: int
    flows: int


def rows(instance: kernel.Instance, names: Mapping[str, str]) -> list[Row]:
    """One per backend that the maps know; `names` by address."""
    found = [
        _row(instance, index, entry, names)
        for index, entry in instance.maps.backends.items()
        if entry.id & abi.IdLayout.INDEX_MASK == index
    ]
    return sorted(found, key=lambda row: row.name)


def health(instance: kernel.Instance, names: Mapping[str, str]) -> dict[str, str]:
    return {row.name: row.health for row in rows(instance, names)}


def _row(
    instance: kernel.Instance, index: int, entry: abi.Backend, names: Mapping[str, str]
) -> Row:
    address = str(IPv4Address(int(entry.addr.v4)))
    counts = instance.maps.backend_counts.get(index) or abi.Counters()
    return Row(
        names.get(address, "?"),
        address,
        _health(instance.maps.health.get(index), entry.id),
        counts.packets + counts.reply_packets,
        counts.bytes + counts.reply_bytes,
        counts.flows,
    )


def _health(entry: abi.Health | None, backend: int) -> str:
    if entry is None or entry.id != backend:
        return "unknown"
    return STATES.get(abi.HealthState(entry.state), "unknown")


def table(found: list[Row], answers: Counter[str]) -> list[str]:
    """`answers` by backend, since the last table: what clients saw, not what we believe."""
    total = answers.total() or 1
    lines = [HEAD]
    for row in found:
        share = answers[row.name] / total
        bar = "#" * round(share * BAR)
        lines.append(
            f"{row.name:9}{row.address:14}{row.health:9}{row.packets:>9}{row.bytes:>11}"
            f"{row.flows:>8}  {bar:{BAR}} {share:4.0%}"
        )
    return lines


class Screen:
    """The table refreshed in place on a terminal; elsewhere plain lines, and only when asked."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self._drawn = 0
        self._pause = threading.Event()

    def say(self, line: str) -> None:
        """A line that stays."""
        self._rub_out()
        print(line, flush=True)

    def rest(self, seconds: float) -> None:
        """Time for people to read."""
        self._pause.wait(seconds)

    def draw(self, lines: list[str], *, keep: bool = False) -> None:
        if not self.live and not keep:
            return
        self._rub_out()
        print("\n".join(lines), flush=True)
        self._drawn = 0 if keep else len(lines)

    def _rub_out(self) -> None:
        if self._drawn:
            print(f"\x1b[{self._drawn}A\x1b[J", end="")
        self._drawn = 0
