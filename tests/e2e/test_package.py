"""The Debian package on a machine of its own, run by systemd: what its users get, sandbox and all.

The repository and its compilers are out of sight there: see tests/support/machine.py.
"""

import json
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import mapset
from tests.support.lab import ROOT, SERVICE, Lab
from tests.support.machine import Machine, package
from tests.support.traffic import Connection
from tests.support.wait import until

RECONCILER, HEALTHCHECK = "evenkeel-reconciler.service", "evenkeel-healthcheck.service"
UNITS = (RECONCILER, HEALTHCHECK)
PORT, BACKEND_PORT = 80, 8080
WORST = 20  # systemd-analyze's points, times ten, from 0 (nothing is allowed) to 100
CONFIG = """\
apiVersion: evenkeel/v1
checks:
  alive: {type: http, path: /, every: 200ms, timeout: 200ms, rise: 1, fall: 2}
  ping: {type: icmp, every: 200ms, timeout: 200ms, fwmark: 7}
pools:
  web:
    check: alive
    backends:
      web1: {address: 10.1.2.101, port: 8080}
      web2: {address: 10.1.2.102, port: 8080}
  sorry:
    check: ping
    backends: {sorry1: {address: 10.1.2.102, port: 8080}}
services:
  www: {addresses: [192.0.2.10], ports: [80/tcp], pools: [web, sorry], forward: nat}
"""
NODE = """\
apiVersion: evenkeel/v1
interfaces: {wan: {mode: native}, lan: {mode: native}}
table-size: 1021
sizes: {flows4: 8192, flows6: 8192, returns4: 8192, returns6: 8192, opening4: 4096, opening6: 4096}
"""
FOLDERS = ("/run/evenkeel/default", "/var/lib/evenkeel", "/sys/fs/bpf/evenkeel")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(2) as made:
        for backend in made.backends:
            made.serve(backend, BACKEND_PORT)
        yield made


@pytest.fixture(scope="module")
def bare(lab: Lab) -> Iterator[Machine]:
    with Machine(lab.balancer, package()) as made:
        yield made


@pytest.fixture
def machine(bare: Machine) -> Machine:
    """As every test finds it: both daemons run, on files that are sound."""
    bare.write("/etc/evenkeel/lb.yaml", CONFIG)
    bare.write("/etc/evenkeel/node.yaml", NODE)
    bare.run("systemctl", "start", *UNITS)
    return bare


def answering(lab: Lab) -> set[str]:
    return {_request(lab) for _ in range(12)}


def _request(lab: Lab) -> str:
    with Connection(lab.client, SERVICE[4], PORT) as connection:
        return connection.get().backend


def generation(machine: Machine) -> int:
    status = json.loads(machine.run("reconciler", "status", "--output", "json").stdout)
    return int(status["applied"]["generation"])


def main_pid(machine: Machine, unit: str) -> int:
    return int(machine.show(unit, "MainPID"))


def test_an_installation_changes_nothing_before_this_node_has_a_file(bare: Machine) -> None:
    for unit in UNITS:
        assert bare.run("systemctl", "is-enabled", unit).stdout == "enabled\n"
        assert bare.show(unit, "ActiveState") == "inactive"
        assert bare.show(unit, "ConditionResult") == "no"
    assert bare.run("ls", "/sys/fs/bpf/evenkeel").stdout == ""
    gone = bare.run("sh", "-c", f"ls {ROOT}; command -v clang gcc", check=False)
    assert gone.stdout == "", "a package that is tested beside its sources proves nothing"


def test_from_a_file_to_packets_and_back_to_nothing(bare: Machine, lab: Lab) -> None:
    bare.write("/etc/evenkeel/lb.yaml", CONFIG)
    bare.write("/etc/evenkeel/node.yaml", NODE)
    assert "lb.yaml: ok" in bare.run("reconciler", "validate").stdout
    assert "+ service www" in bare.run("reconciler", "--dry-run").stdout
    bare.run("systemctl", "start", HEALTHCHECK)  # which wants the reconciler
    assert answering(lab) == {"b1", "b2"}
    assert re.search(r"Ready +True", bare.run("reconciler", "status").stdout)
    until(lambda: "health.json" not in bare.show(RECONCILER, "StatusText"), what="a report")
    assert (
        bare.show(RECONCILER, "StatusText") == "generation 1: 1 services, 3 backends, on lan, wan"
    )
    assert bare.show(HEALTHCHECK, "StatusText") == "3 backends, 3 probes"
    assert bare.run("healthcheck", "--once").stdout.count(" pass ") == 3
    assert bare.run("reconciler", "doctor", check=False).returncode in {0, 2}
    check = "/usr/libexec/evenkeel/evenkeel-check"
    assert bare.run(check, "dataplane", as_user="nobody").returncode == 0
    assert bare.run(check, "control", as_user="nobody").returncode == 0

    bare.run("systemctl", "stop", *UNITS)
    assert answering(lab) == {"b1", "b2"}
    bare.run("reconciler", "teardown")
    assert "xdp" not in bare.run("ip", "link").stdout
    with pytest.raises(OSError, match=r"unreachable|timed out|refused"):
        _request(lab)


def test_each_daemon_has_the_capabilities_that_its_unit_names_and_no_others(
    machine: Machine,
) -> None:
    numbers = {
        "CAP_NET_ADMIN": 12,
        "CAP_NET_RAW": 13,
        "CAP_LEASE": 28,
        "CAP_PERFMON": 38,
        "CAP_BPF": 39,
    }
    wanted = {
        RECONCILER: {"CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN", "CAP_LEASE"},
        HEALTHCHECK: {"CAP_NET_RAW"},
    }
    for unit, names in wanted.items():
        mask = f"{sum(1 << numbers[name] for name in names):016x}"
        said = machine.run("cat", f"/proc/{main_pid(machine, unit)}/status").stdout
        for kind in ("CapPrm", "CapEff", "CapBnd"):
            assert re.search(rf"^{kind}:\t(\w+)$", said, re.MULTILINE)[1] == mask  # type: ignore[index]
        assert "NoNewPrivs:\t1" in said
        assert "Uid:\t0" not in said


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


def test_a_node_without_a_sound_file_waits_and_says_why(machine: Machine, lab: Lab) -> None:
    machine.run("systemctl", "stop", *UNITS)
    machine.run("reconciler", "teardown")
    machine.write("/etc/evenkeel/lb.yaml", CONFIG.replace("forward: nat", "forward: nonsense"))
    machine.run("systemctl", "--no-block", "start", RECONCILER)
    until(lambda: "Rejected" in machine.show(RECONCILER, "StatusText"), 30, what="why it waits")
    assert machine.show(RECONCILER, "ActiveState") == "activating"
    machine.write("/etc/evenkeel/lb.yaml", CONFIG)
    until(lambda: machine.show(RECONCILER, "ActiveState") == "active", 30, what="readiness")
    assert answering(lab) == {"b1", "b2"}


def test_a_reload_takes_the_file(machine: Machine) -> None:
    before = generation(machine)
    machine.write("/etc/evenkeel/lb.yaml", CONFIG + "# another\n")
    machine.run("systemctl", "reload", *UNITS)
    until(lambda: generation(machine) == before + 1, what="the file")
    for unit in UNITS:
        until(lambda u=unit: machine.show(u, "SubState") == "running", what="the end of it")  # type: ignore[misc]


def test_what_root_does_by_hand_is_the_daemons_to_change(machine: Machine) -> None:
    machine.run("systemctl", "stop", *UNITS)
    machine.write("/etc/evenkeel/lb.yaml", CONFIG.replace("[web, sorry]", "[web]"))
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


def test_git_works_within_the_sandbox(machine: Machine) -> None:
    git = ("git", "-C", "/srv/lb", "-c", "user.name=Ada", "-c", "user.email=ada@example.com")
    machine.write("/srv/lb/lb.yaml", CONFIG + "# from git\n")
    machine.run("git", "init", "--quiet", "--initial-branch=main", "/srv/lb")
    machine.run(*git, "add", "lb.yaml")
    machine.run(*git, "commit", "--quiet", "--message=first")
    commit = machine.run(*git, "rev-parse", "HEAD").stdout.strip()
    defaults = machine.run("cat", "/etc/default/evenkeel").stdout
    try:
        machine.write(
            "/etc/default/evenkeel", 'RECONCILER_OPTIONS="--from-git /srv/lb --every 1"\n'
        )
        machine.run("systemctl", "restart", RECONCILER)
        until(
            lambda: commit[:12] in machine.run("reconciler", "status").stdout, 30, what="the commit"
        )
        assert commit[:12] in machine.run("reconciler", "--dry-run", "--from-git", "/srv/lb").stdout
    finally:
        machine.write("/etc/default/evenkeel", defaults)
        machine.run("systemctl", "restart", RECONCILER)


def test_an_upgrade_of_the_package_interrupts_nobody(machine: Machine, lab: Lab) -> None:
    old = {unit: main_pid(machine, unit) for unit in UNITS}
    with Connection(lab.client, SERVICE[4], PORT) as connection:
        backend = connection.get().backend
        machine.run("dpkg", "--install", "/evenkeel.deb")
        assert connection.get().backend == backend
    for unit in UNITS:
        assert main_pid(machine, unit) not in {0, old[unit]}


def test_the_units_are_sound_and_allow_little(machine: Machine) -> None:
    folder = "/usr/lib/systemd/system"
    names = [*UNITS, "evenkeel-reconciler@edge.service", "evenkeel-healthcheck@edge.service"]
    said = machine.run("systemd-analyze", "verify", "--man=no", *names, check=False)
    assert "evenkeel" not in said.stdout + said.stderr
    for unit in UNITS:
        for path in (f"{folder}/{unit}", f"{folder}/{unit.replace('.service', '@.service')}"):
            judged = machine.run(
                "systemd-analyze",
                "security",
                "--offline=true",
                f"--threshold={WORST}",
                path,
                check=False,
            )
            assert judged.returncode == 0, judged.stdout.splitlines()[-1]


def test_a_second_instance_has_files_and_pins_of_its_own(machine: Machine) -> None:
    machine.run("systemctl", "stop", *UNITS)
    machine.run("reconciler", "teardown")
    machine.write("/etc/evenkeel/edge/lb.yaml", CONFIG)
    machine.write("/etc/evenkeel/edge/node.yaml", NODE)
    try:
        machine.run("systemctl", "start", "evenkeel-healthcheck@edge")
        said = machine.run("reconciler", "status", "--instance", "edge").stdout
        assert "source      /etc/evenkeel/edge/lb.yaml" in said
        assert machine.run("ls", "/sys/fs/bpf/evenkeel").stdout == "edge\n"
    finally:
        machine.run("systemctl", "stop", "evenkeel-healthcheck@edge", "evenkeel-reconciler@edge")
        machine.run("reconciler", "teardown", "--instance", "edge")


def test_purging_the_package_leaves_traffic_alone_and_says_so(machine: Machine, lab: Lab) -> None:
    until(lambda: answering(lab) == {"b1", "b2"}, what="both backends")
    said = machine.run("dpkg", "--purge", "evenkeel").stdout
    try:
        assert "instance default goes on forwarding" in said
        assert "rm -r /sys/fs/bpf/evenkeel/default ends that" in said
        assert answering(lab) == {"b1", "b2"}
        machine.run("rm", "-r", "/sys/fs/bpf/evenkeel/default")
        until(lambda: "xdp" not in machine.run("ip", "link").stdout, what="the end of the program")
    finally:
        machine.run("dpkg", "--install", "/evenkeel.deb")


def test_a_wheel_needs_no_compiler_either(tmp_path: Path) -> None:
    package()
    (wheel,) = ROOT.glob("dist/*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path)
    asked = "from bpf.kernel import default_object; from reconciler import table; print(default_object())"
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    said = subprocess.run(
        (sys.executable, "-c", asked),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == f"{tmp_path}/bpf/lb.bpf.o\n"
    assert (tmp_path / "reconciler/libtable.so").exists()
