"""What in keepalived.conf keeps a pair from failing over, or makes it when it should not. Pure.

keepalived is master without a script that it cannot run, and hardly says so. So
every way in which that happens is looked for here, and then the weights are reckoned up.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from reconciler.model import Address, Config, Forward
from reconciler.symptoms import Finding, in_sysctl, note, warning
from reconciler.weighing import OWNER, Instance, Script, Setup, Signal

IPV4 = 4

SCRIPT = "/usr/libexec/evenkeel/evenkeel-check"


@dataclass(frozen=True, slots=True)
class Executable:
    """What is at the path of a script."""

    exists: bool = True
    runs: bool = True  # has the permission
    program: bool = True  # or a script that names its interpreter: else the kernel runs it not
    exposed: str = ""  # the first part of its path that others than root may change
    interpreter: str = ""  # of its #! line
    interpreter_runs: bool = True


@dataclass(frozen=True, slots=True)
class Keepalived:
    """Of this node, and the files of its peers."""

    own: Setup
    peers: tuple[Setup, ...] = ()
    executables: Mapping[str, Executable] = field(default_factory=dict)  # by path
    default_user: bool = False  # whether there is a user keepalived_script
    roots: frozenset[str] = frozenset({"root"})  # names of users that are root
    strangers: frozenset[str] = frozenset()  # named to run scripts, and no users of this machine
    running: bool = False
    pins_are_roots: bool = True  # whether others see no pins
    conditional: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    forged: frozenset[str] = frozenset()  # interfaces that drop packets from local addresses


def examined(found: Keepalived) -> Iterator[Finding]:
    for place in found.absent:
        yield warning("vrrp-include", place, "takes nothing in: there is no such file", "mend or remove the line")  # fmt: skip
    for place in found.conditional:
        yield note("vrrp-conditional", place, "is for some nodes only (@): it was read as if for this one", "look at it yourself")  # fmt: skip
    if not found.own.security and found.own.scripts:
        yield note(
            "vrrp-security",
            found.own.file,
            "scripts that others than root may change would be run all the same",
            "`enable_script_security` and `script_user root` in global_defs",
        )
    for script in found.own.scripts.values():
        yield from _ignored(script, found)
        yield from _settings(script, found)
    if not found.own.instances:
        yield warning(
            "vrrp-none",
            found.own.file,
            "has no vrrp_instance: it moves no address",
            "name the file that keepalived reads, mostly /etc/keepalived/keepalived.conf",
        )
    for instance in found.own.instances:
        yield from _tracking(instance, found.own)
        yield from _weights(instance, found.own)
        for peer in found.peers:
            yield from _between(instance, found.own, peer)


# ---- five ways in which a script is silently ignored, and one more


def _ignored(script: Script, found: Keepalived) -> Iterator[Finding]:
    about = f"vrrp_script {script.name}"
    user = _user(script, found)
    if user is None:
        yield warning(
            "vrrp-script-user",
            about,
            "nobody is named to run it, and there is no user keepalived_script: keepalived removes it"
            " and is master without it",
            "`script_user root` in global_defs",
        )
    if user in found.strangers:
        yield warning(
            "vrrp-script-user",
            about,
            f"{user}, who is to run it, is no user here: keepalived removes it and is master without it",
            f"`user root` in it ({script.where})"
            if script.user
            else "`script_user root` in global_defs",
        )
    at = found.executables.get(script.path, Executable(exists=False))
    if not at.exists:
        yield _missing(script, found)
        return
    if at.exposed and found.own.security and user in found.roots:
        yield warning(
            "vrrp-script-insecure",
            about,
            f"others than root may change {at.exposed}: keepalived disables it and is master without it",
            f"chown root:root {at.exposed} && chmod go-w {at.exposed}",
        )
    if not at.runs:
        yield warning(
            "vrrp-script-permission",
            about,
            f"{script.path} is not executable: keepalived takes that for a success, for ever",
            f"chmod 755 {script.path}",
        )
    elif not at.program:
        yield warning(
            "vrrp-script-interpreter",
            about,
            f"{script.path} does not begin with #! and an interpreter: the kernel does not run it, and keepalived takes"
            " that for a success, for ever",
            f"`#!/bin/sh` as the first line of {script.path}",
        )
    elif at.interpreter and not at.interpreter_runs:
        yield warning(
            "vrrp-script-interpreter",
            about,
            f"{script.path} wants {_visible(at.interpreter)}, which cannot be run: keepalived takes that for a"
            " success, for ever, and `keepalived -t` says nothing",
            _interpreter_mended(script.path, at.interpreter),
        )


def _visible(name: str) -> str:
    return name if name.isprintable() else repr(name)


def _interpreter_mended(path: str, interpreter: str) -> str:
    if interpreter.endswith("\r"):  # written on Windows
        return f"sed -i 's/\\r$//' {path}"
    return f"install {interpreter}, or name one that there is in the first line of {path}"


def _missing(script: Script, found: Keepalived) -> Finding:
    about, path = f"vrrp_script {script.name}", script.path or "its `script`"
    if found.running:
        return warning(
            "vrrp-script-deleted",
            about,
            f"{path} is gone while keepalived runs: the last result or a success stands for ever, and"
            " no log says so",
            f"install {path} again: the next look finds it; then systemctl restart keepalived",
        )
    return warning(
        "vrrp-script-missing",
        about,
        f"{path} is not there: keepalived disables it when it starts and is master without it",
        f"install {path}",
    )


def _user(script: Script, found: Keepalived) -> str | None:
    """Who runs it; None: keepalived finds nobody."""
    named = script.user or found.own.user
    if named:
        return named
    if found.default_user:
        return "keepalived_script"
    return None if found.own.security else "root"


# ---- what our scripts need


def _settings(script: Script, found: Keepalived) -> Iterator[Finding]:
    if script.signal is None:
        return
    about = f"vrrp_script {script.name}"
    user = _user(script, found)
    if (
        script.signal is Signal.DATAPLANE
        and found.pins_are_roots
        and user not in (*found.roots, *found.strangers, None)
    ):
        yield warning(
            "vrrp-pins",
            about,
            f"{user} may not look into /sys/fs/bpf, so it always fails",
            "`script_user root` in global_defs",
        )
    if not script.init_fail:
        yield warning(
            "vrrp-init-fail",
            about,
            "has no init_fail: a node that boots may be master before its maps are programmed",
            f"`init_fail` in it ({script.where})",
        )


def _tracking(instance: Instance, own: Setup) -> Iterator[Finding]:
    about = f"vrrp_instance {instance.name}"
    for name in instance.tracked.keys() - own.scripts.keys():
        yield warning(
            "vrrp-script-unknown",
            about,
            f"tracks {name}, which is not defined: keepalived ignores that",
            f"define `vrrp_script {name}`, or correct the name ({instance.where})",
        )
    for signal in Signal:
        if not any(own.asks(instance, signal)):
            yield warning(
                "vrrp-untracked",
                about,
                f"tracks no script that asks for {signal.value}",
                f'`script "{SCRIPT} {signal.value}"` in a vrrp_script, and that in its track_script',
            )
    if instance.grouped:
        yield warning(
            "vrrp-group",
            about,
            "is in a sync group, where weights count for nothing",
            "`sync_group_tracking_weight` in global_defs",
        )
    if instance.priority == OWNER:
        yield warning(
            "vrrp-owner",
            about,
            "has priority 255, the address owner's, as `state MASTER` has without a priority: no weight"
            " counts",
            f"`priority 254` or less ({instance.where})",
        )


# ---- weights


def _weights(instance: Instance, own: Setup) -> Iterator[Finding]:
    about = f"vrrp_instance {instance.name}"
    for signal in Signal:
        for script in own.asks(instance, signal):
            if own.weight(instance, script.name) == 0:
                yield warning(
                    "vrrp-weight-0",
                    about,
                    f"{script.name} has no weight: when it fails this node gives the address away,"
                    " and where it fails on both nobody has it",
                    f"`weight {-60 if signal is Signal.DATAPLANE else -5}` in it ({script.where})",
                )
    sums = {own.sum(instance), own.sum(instance, *Signal)}
    if wrong := [total for total in sorted(sums) if not 0 < total < OWNER]:
        yield warning(
            "vrrp-range",
            about,
            f"comes to a priority of {wrong[0]}, which keepalived cuts off at 1 or 254: the order of the"
            " nodes is lost",
            "priorities further from both ends, or smaller weights",
        )
    loss = own.sum(instance) - own.sum(instance, Signal.DATAPLANE)
    small = own.sum(instance) - own.sum(instance, Signal.CONTROL)
    if 0 < loss <= small:
        yield warning(
            "vrrp-weights",
            about,
            f"dataplane weighs {loss} and control {small}: a dead daemon costs more than a dead data plane",
            "a control weight below the difference of the nodes' priorities, a dataplane weight above it",
        )


def _between(mine: Instance, own: Setup, peer: Setup) -> Iterator[Finding]:
    """Who has the address, with this node and a peer in every state that matters."""
    theirs = next((one for one in peer.instances if one.speaks == mine.speaks), None)
    about = f"vrrp_instance {mine.name}, {peer.file}"
    if theirs is None:
        what = f"the peer has no instance with virtual_router_id {mine.router} and addresses of its family"
        yield warning("vrrp-peer", about, what, "the same virtual_router_id in both files")
        return
    (first, a), (second, b) = sorted(
        ((own, mine), (peer, theirs)), key=lambda node: -node[0].priority(node[1])
    )
    gap = first.priority(a) - second.priority(b)
    if gap == 0:
        what = "has its peer's priority: who is master depends on addresses"
        yield warning("vrrp-equal", about, what, "another `priority` on one of them")
        return
    if first.priority(a, Signal.DATAPLANE) >= second.priority(b) and any(first.asks(a, Signal.DATAPLANE)):  # fmt: skip
        yield warning(
            "vrrp-weights",
            about,
            f"the priorities differ by {gap} and dataplane weighs no more: the address stays with a node"
            " that cannot forward",
            f"a dataplane weight beyond -{gap}, such as `weight -{gap * 2}`",
        )
    if first.priority(a, Signal.CONTROL) <= second.priority(b):
        yield warning(
            "vrrp-weights",
            about,
            f"the priorities differ by {gap} and control weighs no less: a dead daemon moves the address,"
            " though its node forwards",
            f"a control weight of less than {gap}",
        )
    for both in ((Signal.DATAPLANE,), (Signal.CONTROL,), tuple(Signal)):
        if first.priority(a, *both) <= second.priority(b, *both):
            yield warning(
                "vrrp-both",
                about,
                f"when {' and '.join(both)} fail on both nodes the address moves, and nothing is gained",
                "the same weights in both files",
            )


# ---- nat behind a local address


def forged(
    config: Config | None, found: Keepalived, outs: Mapping[Address, str]
) -> Iterator[Finding]:
    """`outs`: the interface towards each backend. IPv6 asks nobody where an address is from."""
    if config is None:
        return
    held = {address for instance in found.own.instances for address in instance.addresses}
    for service in config.services.values():
        addresses = {str(one) for one in service.addresses if one.version == IPV4}
        if service.forward is not Forward.NAT or held.isdisjoint(addresses):
            continue
        backends = (b for name in service.pools for b in config.pools[name].backends.values())
        reached = (one.address for one in backends if one.address.version == IPV4)
        used = {outs[address] for address in reached if address in outs}
        for name in sorted(used & found.forged):
            yield warning(
                "accept-local",
                name,
                f"drops what comes from the addresses of {service.name}, which keepalived makes local:"
                " after a move, answers are lost until the client's MAC is known",
                f"sysctl -w net.ipv4.conf.{in_sysctl(name)}.accept_local=1",
            )
