"""Puts back the pins of maps that somebody removed, while we still hold the maps. Writes no entry."""

from bpf import repinning
from bpf.kernel import Instance
from bpf.pins import Pins


def pin_again(instance: Instance) -> tuple[str, ...]:
    """Maps whose pin was gone. Without one neither healthcheck nor the next start would find it."""
    home = Pins.of(instance.name)
    gone = repinning.missing(home)
    for name in gone:
        repinning.pin_again(home, name, instance.maps[name].fd)
    return gone
