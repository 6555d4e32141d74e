"""The program on the interfaces that node.yaml names, and on no others. Writes no map.

What is the matter with one interface is no reason to leave out the others. While one is not to be had, none is let
go: a name that is mistyped would otherwise take the program off the interface that was meant.
"""

import logging
from collections.abc import Mapping

from bpf.kernel import Instance, KernelError, Mode

log = logging.getLogger("reconciler")


def attach(instance: Instance, wanted: Mapping[str, str]) -> KernelError | None:
    """What keeps an interface from having the program, if anything does. To be called once the maps are complete."""
    attached = {found.interface for found in instance.attachments()}
    trouble = None
    for interface, mode in wanted.items():
        if interface not in attached:
            trouble = _attach(instance, interface, Mode(mode)) or trouble
    unnamed = sorted(attached - wanted.keys())
    if trouble and unnamed:
        return type(trouble)(
            f"{trouble}. Until then {', '.join(unnamed)} keeps the program, too, which node.yaml does not name"
        )
    for interface in unnamed:
        instance.detach(interface)
        log.info("detached from %s", interface)
    return trouble


def _attach(instance: Instance, interface: str, mode: Mode) -> KernelError | None:
    try:
        found = instance.attach(interface, mode)
    except KernelError as error:
        return error
    reason = f", {found.reason}" if found.reason else ""
    log.info("attached to %s (%s%s)", interface, found.mode.value, reason)
    return None
