"""Puts back the pins of maps that somebody removed, while we still hold the maps. Writes no entry."""

from bpf import mapset
from bpf.kernel import Instance
from bpf.pins import Pins
from bpf.tables import pin


def pin_again(instance: Instance) -> tuple[str, ...]:
    """Maps whose pin was gone. Without one neither healthcheck nor the next start would find it."""
    home = Pins.of(instance.name)
    gone = tuple(name for name in mapset.names() if not home.map(name).exists())
    for name in gone:
        pin(instance.maps[name].fd, home.map(name))
        mapset.share(name, home.map(name))
    return gone
