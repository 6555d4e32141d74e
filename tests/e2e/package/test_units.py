"""The units under systemd: what they promise to those who rely on them, and what they let their daemons do."""

import json
import signal

from bpf import mapset
from tests.support.acting import Capability, mask
from tests.support.installed import (
    CONFIG,
    DEFAULTS,
    HEALTHCHECK,
    LB_YAML,
    NODE,
    NODE_YAML,
    RECONCILER,
    UNITS,
    USERS,
    answering,
    generation,
    main_pid,
    process_status,
)
from tests.support.lab import SERVICE, Lab
from tests.support.machine import Machine
from tests.support.traffic import Connection
from tests.support.wait import until

PORT = 80
EDGE = ("evenkeel-healthcheck@edge.service", "evenkeel-reconciler@edge.service")
FOLDERS = ("/run/evenkeel/default", "/var/lib/evenkeel", "/sys/fs/bpf/evenkeel")
CAPABILITIES = {
    RECONCILER: {
        Capability.CAP_BPF,
        Capability.CAP_PERFMON,
        Capability.CAP_NET_ADMIN,
        Capability.CAP_LEASE,
    },
    HEALTHCHECK: {Capability.CAP_NET_RAW},
}
# What systemd has made of a unit, where nothing else here would fail without it.
COMMON = {
    "LimitNOFILE": "65536",
    "OOMScoreAdjust": "-500",
    "RestartUSec": "1s",
    "StartLimitIntervalUSec": "0",
    "SystemCallErrorNumber": "1",  # EPERM: an error that can be told, no death
    "TimeoutStartUSec": "1min 30s",
    "TimeoutStopUSec": "20s",
}
PROMISES = {
    RECONCILER: COMMON | {"WatchdogUSec": "30s", "LimitMEMLOCK": "infinity"},
    HEALTHCHECK: COMMON | {"WatchdogUSec": "15s"},
}
ORDER = {
    RECONCILER: {
        "Before": {"keepalived.service", HEALTHCHECK},
        "After": {"network-online.target", "systemd-tmpfiles-setup.service"},
    },
    HEALTHCHECK: {
        "Before": {"keepalived.service"},
        "After": {"network-online.target", RECONCILER},
    },
}
# Calls that @system-service has and the units take away again; systemd-analyze does not look.
REFUSED = {RECONCILER: {"keyctl"}, HEALTHCHECK: {"keyctl", "setuid", "chown"}}
# Found open by systemd 252 and not by 255.
BEFORE = {"PrivateMounts": "the namespace is private already; without CAP_SYS_ADMIN nobody mounts"}
# What systemd-analyze finds open, with why it has to be; the units' own comments say so too.
LEFT = {
    "AmbientCapabilities": "a daemon that is not root has its capabilities from here",
    "DeviceAllow": "ProtectClock's own entry: reading the clock",
    "IPAddressDeny": "backends, probes and git are anywhere",
    "PrivateNetwork": "the host's network is what it is about",
    "PrivateUsers": "capabilities over the host's network count among the host's users only",
    "RestrictAddressFamilies_AF_INET_INET6": "probes, git, the status page",
    "RestrictAddressFamilies_AF_NETLINK": "routes, neighbours, names of interfaces",
    "RestrictAddressFamilies_AF_UNIX": "systemd; commands",
    "RootDirectoryOrRootImage": "Python and its packages are the host's",
    "SystemCallFilter_privileged": "of @system-service; without a capability most of it is refused",
    "SystemCallFilter_resources": "limits of what git may write; its own scheduling",
    "UMask": "what it publishes is for others to read",
}
ONLY = {
    RECONCILER: {
        "CapabilityBoundingSet_CAP_BPF",
        "CapabilityBoundingSet_CAP_LEASE",
        "CapabilityBoundingSet_CAP_NET_ADMIN",
        "ProcSubset",  # it reads /proc/sys
    },
    HEALTHCHECK: {"CapabilityBoundingSet_CAP_NET_BIND_SERVICE_BROADCAST_RAW)"},
}


def test_each_daemon_is_its_units_user_with_its_capabilities_and_no_others(
    machine: Machine,
) -> None:
    for unit, capabilities in CAPABILITIES.items():
        said = process_status(machine, unit)
        for kind in ("CapPrm", "CapEff", "CapBnd"):
            assert said[kind] == f"{mask(capabilities):016x}"
        assert said["NoNewPrivs"] == "1"
        for kind, whose in (("Uid", ("-u", USERS[unit])), ("Gid", ("-g", "evenkeel"))):
            assert set(said[kind].split()) == {machine.run("id", *whose).stdout.strip()}


def test_systemd_has_understood_what_the_units_promise(machine: Machine) -> None:
    for unit in UNITS:
        assert {name: machine.show(unit, name) for name in PROMISES[unit]} == PROMISES[unit]
        for direction, others in ORDER[unit].items():
            assert others <= set(machine.show(unit, direction).split())
        mounts = machine.run("cat", f"/proc/{main_pid(machine, unit)}/mounts").stdout
        assert {"/": "ro", "/run": "ro", "/run/evenkeel/default": "rw"}.items() <= access(
            mounts
        ).items()
        assert not REFUSED[unit] & set(machine.show(unit, "SystemCallFilter").split())
    modes = machine.run("stat", "--format=%a %U", *FOLDERS[:2]).stdout.splitlines()
    assert modes == ["3775 evenkeel", "750 evenkeel"]


def access(mounts: str) -> dict[str, str]:
    """`ro` or `rw`, by mount point."""
    fields = (line.split() for line in mounts.splitlines())
    return {where: options[:2] for _, where, _, options, *_ in fields}


def test_healthcheck_may_write_one_map_and_read_one(machine: Machine) -> None:
    tried = (
        "import sys; sys.path.insert(0, '/usr/lib/evenkeel')\n"
        "from bpf.pins import Pins; from bpf.tables import open_pin; from bpf.errors import KernelError\n"
        "from bpf import mapset\n"
        "for name in mapset.names():\n"
        "    for read_only in (True, False):\n"
        "        try: open_pin(Pins.of('default').map(name), read_only=read_only)\n"
        "        except KernelError: continue\n"
        "        print(name, 'read' if read_only else 'write')\n"
    )
    asked = (
        "runuser",
        "-u",
        "evenkeel-healthcheck",
        "-g",
        "evenkeel",
        "--",
        "python3",
        "-c",
        tried,
    )
    assert machine.run(*asked).stdout.split("\n")[:-1] == [
        "health read",
        "health write",
        "meta read",
    ]
    assert set(mapset.SHARED) == {"health", "meta"}


def test_a_killed_daemon_comes_back_and_no_connection_notices(machine: Machine, lab: Lab) -> None:
    folder = machine.run("stat", "--format=%i", "/run/evenkeel/default").stdout
    before = generation(machine)
    with Connection(lab.client, SERVICE[4], PORT) as connection:
        backend = connection.get().backend
        for unit in UNITS:
            old = main_pid(machine, unit)
            machine.kill(unit, signal.SIGKILL)
            assert connection.get().backend == backend
            until(
                lambda u=unit, o=old: main_pid(machine, u) not in {0, o}, 30, what="another process"
            )  # type: ignore[misc]
            until(lambda u=unit: machine.show(u, "ActiveState") == "active", 30, what="readiness")  # type: ignore[misc]
        machine.run("systemctl", "restart", *UNITS)
        assert connection.get().backend == backend
    assert generation(machine) == before
    assert machine.run("stat", "--format=%i", "/run/evenkeel/default").stdout == folder


def test_a_loop_that_hangs_is_replaced(machine: Machine) -> None:
    machine.write(
        "/run/systemd/system/evenkeel-healthcheck.service.d/hurry.conf",
        "[Service]\nWatchdogSec=1s\n",
    )
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", HEALTHCHECK)
    old = main_pid(machine, HEALTHCHECK)
    machine.kill(HEALTHCHECK, signal.SIGSTOP)
    until(lambda: main_pid(machine, HEALTHCHECK) not in {0, old}, 30, what="another process")
    assert "watchdog" in machine.journal(HEALTHCHECK).lower()


def test_a_wrong_option_is_said_once_and_not_tried_again(machine: Machine) -> None:
    defaults = machine.run("cat", DEFAULTS).stdout
    machine.write(DEFAULTS, 'RECONCILER_OPTIONS="--nonsense"\nHEALTHCHECK_OPTIONS="--nonsense"\n')
    try:
        for unit in UNITS:
            assert machine.run("systemctl", "restart", unit, check=False).returncode != 0
            assert (machine.show(unit, "ActiveState"), machine.show(unit, "ExecMainStatus")) == (
                "failed",
                "64",
            )
            assert "--nonsense" in machine.journal(unit)
    finally:
        machine.write(DEFAULTS, defaults)


def test_a_node_without_a_sound_file_waits_and_says_why(machine: Machine, lab: Lab) -> None:
    machine.run("systemctl", "stop", *UNITS)
    machine.run("reconciler", "teardown")
    as_after_a_reboot(machine)
    machine.write(LB_YAML, CONFIG.replace("forward: nat", "forward: nonsense"))
    machine.run("systemctl", "--no-block", "start", RECONCILER)
    until(lambda: "Rejected" in machine.show(RECONCILER, "StatusText"), 30, what="why it waits")
    assert machine.show(RECONCILER, "ActiveState") == "activating"
    machine.write(LB_YAML, CONFIG)
    until(lambda: machine.show(RECONCILER, "ActiveState") == "active", 30, what="readiness")
    assert answering(lab) == {"b1", "b2"}


def as_after_a_reboot(machine: Machine) -> None:
    """bpffs is mounted anew, as systemd does; what was in memory is gone."""
    machine.run(
        "sh", "-c", "rmdir /sys/fs/bpf/evenkeel && chmod 700 /sys/fs/bpf && rm -r /run/evenkeel"
    )


def test_a_reload_takes_the_file(machine: Machine) -> None:
    before = generation(machine)
    machine.write(LB_YAML, CONFIG + "# another\n")
    machine.run("systemctl", "reload", *UNITS)
    until(lambda: generation(machine) == before + 1, what="the file")
    for unit in UNITS:
        until(lambda u=unit: machine.show(u, "SubState") == "running", what="the end of it")  # type: ignore[misc]


def test_what_root_does_by_hand_is_the_daemons_to_change(machine: Machine) -> None:
    machine.run("systemctl", "stop", *UNITS)
    machine.write(LB_YAML, CONFIG.replace("[web, sorry]", "[web]"))
    machine.run("reconciler", "--once")
    machine.run("reconciler", "override", "web/web1", "down", "--for", "1h", "--reason", "by hand")
    machine.run("reconciler", "rollback", "--reason", "by hand")
    theirs = machine.run(
        "find", *FOLDERS, "-not", "-user", "evenkeel", "-not", "-user", "evenkeel-healthcheck"
    )
    assert theirs.stdout == ""
    machine.run("systemctl", "start", *UNITS)
    said = machine.run("reconciler", "override").stdout
    assert "by root: by hand" in said
    machine.run("reconciler", "override", "--clear", "web/web1")
    machine.run("reconciler", "resume")
    assert machine.run("reconciler", "sync").returncode == 0


def test_the_units_are_sound_and_what_they_leave_open_has_a_reason(machine: Machine) -> None:
    folder = "/usr/lib/systemd/system"
    names = [*UNITS, "evenkeel-reconciler@edge.service", "evenkeel-healthcheck@edge.service"]
    man = machine.run("sh", "-c", "command -v man >/dev/null && echo yes || echo no").stdout.strip()
    said = machine.run("systemd-analyze", "verify", f"--man={man}", *names, check=False)
    assert "evenkeel" not in said.stdout + said.stderr
    for unit in UNITS:
        for path in (f"{folder}/{unit}", f"{folder}/{unit.replace('.service', '@.service')}"):
            judge = ("systemd-analyze", "security", "--offline=true", "--json=short", path)
            found = json.loads(machine.run(*judge).stdout)
            left = {one["json_field"] for one in found if one["exposure"]}
            assert left - BEFORE.keys() == LEFT.keys() | ONLY[unit], path


def test_a_second_instance_has_files_and_pins_of_its_own_and_goes_with_the_package(
    machine: Machine,
) -> None:
    machine.run("systemctl", "stop", *UNITS)
    machine.run("reconciler", "teardown")
    machine.run("rm", NODE_YAML)  # an upgrade would start what wants the same interfaces
    machine.write("/etc/evenkeel/edge/lb.yaml", CONFIG)
    machine.write("/etc/evenkeel/edge/node.yaml", NODE)
    machine.write(
        "/etc/default/evenkeel-edge", 'HEALTHCHECK_OPTIONS="--run-dir /run/evenkeel/edge"\n'
    )
    try:
        machine.run("systemctl", "start", EDGE[0])
        said = machine.run("reconciler", "status", "--instance", "edge").stdout
        assert "source      /etc/evenkeel/edge/lb.yaml" in said
        assert machine.run("ls", "/sys/fs/bpf/evenkeel").stdout == "edge\n"
        pids = {unit: main_pid(machine, unit) for unit in EDGE}
        options = machine.run("cat", f"/proc/{pids[EDGE[0]]}/cmdline").stdout
        assert "--run-dir" in options
        machine.run("dpkg", "--install", "/evenkeel.deb")
        until(lambda: all(is_anew(machine, *one) for one in pids.items()), 30, what="both restart")
        machine.run("dpkg", "--remove", "evenkeel")
        assert {machine.show(unit, "ActiveState") for unit in EDGE} == {"inactive"}
        assert machine.run("ls", "/sys/fs/bpf/evenkeel").stdout == "edge\n"
    finally:
        machine.run("dpkg", "--install", "/evenkeel.deb")
        machine.run("systemctl", "stop", *EDGE)
        machine.run("reconciler", "teardown", "--instance", "edge")


def is_anew(machine: Machine, unit: str, before: int) -> bool:
    return main_pid(machine, unit) not in {0, before}
