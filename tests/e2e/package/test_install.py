"""The Debian package from its installation to its end: what its users get, without sources, compilers, or a configuration.

First of all: it finds the machine as an installation leaves it.
"""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.installed import (
    CONFIG,
    DEFAULTS,
    HEALTHCHECK,
    LB_YAML,
    NODE,
    NODE_YAML,
    RECONCILER,
    UNITS,
    answering,
    request,
    status,
)
from tests.support.lab import ROOT, Lab
from tests.support.machine import Machine, package
from tests.support.wait import until

LIBRARY, DOCUMENTS = "/usr/lib/evenkeel", "/usr/share/doc/evenkeel"


def test_an_installation_changes_nothing_before_this_node_has_a_file(bare: Machine) -> None:
    for unit in UNITS:
        assert bare.run("systemctl", "is-enabled", unit).stdout == "enabled\n"
        assert bare.show(unit, "ActiveState") == "inactive"
        assert bare.show(unit, "ConditionResult") == "no"
    assert bare.run("ls", "/sys/fs/bpf/evenkeel").stdout == ""
    assert bare.run("find", LIBRARY, "-name", "cli.*.pyc").stdout, (
        "else root's first command compiles"
    )
    assert (
        bare.run("zgrep", "-c", "SYNOPSIS", "/usr/share/man/man8/reconciler.8.gz").stdout == "1\n"
    )
    gone = bare.run("sh", "-c", f"ls {ROOT}; command -v clang gcc", check=False)
    assert gone.stdout == "", "a package that is tested beside its sources proves nothing"


def test_from_a_file_to_packets_and_back_to_nothing(bare: Machine, lab: Lab) -> None:
    bare.write(LB_YAML, CONFIG)
    bare.write(NODE_YAML, NODE)
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
    assert (
        bare.run("stat", "--format=%U", "/run/evenkeel/default/health.json").stdout
        == "evenkeel-healthcheck\n"
    )
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
        request(lab)


def test_what_the_documents_name_is_installed(bare: Machine) -> None:
    """Each file of the package that install.md, the units and the examples' pages name."""
    named = bare.run(
        "grep", "-rhoE", f"{DOCUMENTS}/[a-z./-]+[a-z]", "/usr/lib/systemd/system", DOCUMENTS
    )
    paths = sorted(set(named.stdout.split()))
    assert f"{DOCUMENTS}/install.md" in paths
    assert bare.run("ls", "-d", *paths).stdout.split() == paths


def test_purging_the_package_leaves_traffic_alone_and_says_so(machine: Machine, lab: Lab) -> None:
    until(
        lambda: risen(machine) == {"web1", "web2"},
        what="both backends: who stays unknown is not used",
    )
    said = machine.run("dpkg", "--purge", "evenkeel").stdout
    try:
        assert "instance default goes on forwarding" in said
        assert "rm -r /sys/fs/bpf/evenkeel/default ends that" in said
        assert answering(lab) == {"b1", "b2"}
        kept = machine.run(
            "ls",
            "-d",
            LIBRARY,
            "/var/lib/evenkeel",
            "/run/evenkeel",
            DEFAULTS,
            LB_YAML,
            check=False,
        )
        assert kept.stdout == f"{LB_YAML}\n", "what the operator wrote stays, and nothing else"
        for unit in UNITS:
            assert machine.run("systemctl", "is-enabled", unit, check=False).stdout != "enabled\n"
        machine.run("rm", "-r", "/sys/fs/bpf/evenkeel/default")
        until(lambda: "xdp" not in machine.run("ip", "link").stdout, what="the end of the program")
    finally:
        machine.run("dpkg", "--install", "/evenkeel.deb")
    until(
        lambda: answering(lab) == {"b1", "b2"}, 30, what="its daemons, for the files that are there"
    )


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


def risen(machine: Machine) -> set[str]:
    web = next(pool for pool in status(machine)["pools"] if pool["name"] == "web")
    return {one["name"] for one in web["backends"] if one["health"]["state"] == "up"}
