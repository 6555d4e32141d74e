"""A change of what a machine forwards, by git, and of what forwards it: new versions, under load, beside the running units."""

from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.installed import (
    CONFIG,
    DEFAULTS,
    LB_YAML,
    PORT,
    RECONCILER,
    UNITS,
    main_pid,
    status,
)
from tests.support.lab import SERVICE, Lab
from tests.support.machine import Machine, next_version, package
from tests.support.objects import SAME, changed
from tests.support.traffic import Connection, Load
from tests.support.wait import until

REST = 0.01  # seconds
ENOUGH = 20  # requests, and probes, that each step has to see
EXAMPLE = "/usr/share/doc/evenkeel/examples/pull-deploy"
SIGNERS = "/etc/evenkeel/allowed_signers"
GIT = (
    "git", "-C", "/srv/lb", "-c", "user.name=Ada", "-c", "user.email=ada@example.com",
    "-c", "gpg.format=ssh", "-c", "user.signingKey=/srv/key",
)  # fmt: skip


def committed(machine: Machine, text: str) -> str:
    """Signed by Ada, in root's repository."""
    machine.write("/srv/lb/lb.yaml", text)
    machine.run(*GIT, "add", "lb.yaml")
    machine.run(*GIT, "commit", "--quiet", "--message=next", "-S")
    return machine.run(*GIT, "rev-parse", "HEAD").stdout.strip()


def repository(machine: Machine) -> None:
    if machine.run("ls", "/srv/lb", check=False).returncode == 0:
        return
    machine.run("git", "init", "--quiet", "--initial-branch=main", "/srv/lb")
    machine.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/srv/key")
    machine.write(SIGNERS, f"ada@example.com {machine.run('cat', '/srv/key.pub').stdout}")


def test_signed_commits_are_followed_within_the_sandbox(machine: Machine) -> None:
    repository(machine)
    commit = committed(machine, CONFIG + "# from git\n")
    defaults = machine.run("cat", DEFAULTS).stdout
    source = f"--from-git /srv/lb --every 1 --verify-commit --allowed-signers {SIGNERS}"
    try:
        machine.write(DEFAULTS, f'RECONCILER_OPTIONS="{source}"\n')
        machine.run("systemctl", "restart", RECONCILER)
        until(lambda: status(machine)["applied"]["commit"] == commit, 30, what="the commit")
        assert commit[:12] in machine.run("reconciler", "--dry-run", *source.split()).stdout
    finally:
        machine.write(DEFAULTS, defaults)
        machine.run("systemctl", "restart", RECONCILER)


def test_pull_deploy_publishes_beside_the_units(machine: Machine) -> None:
    """As its README says, but for where the repository is; its dry run acts as the daemon's user."""
    repository(machine)
    commit = committed(machine, CONFIG + "# pulled\n")
    install = (
        "install -m 755 evenkeel-deploy /usr/local/bin/",
        "install -m 644 evenkeel-deploy.service evenkeel-deploy.timer /etc/systemd/system/",
        "echo REPO=/srv/lb > /etc/default/evenkeel-deploy",
    )
    readme = machine.run("cat", f"{EXAMPLE}/README.md").stdout
    assert all(line in readme for line in install[:2])
    machine.run("mkdir", "-p", "/usr/local/bin", "/etc/systemd/system")
    machine.run("sh", "-c", f"cd {EXAMPLE} && {' && '.join(install)} && systemctl daemon-reload")
    machine.run("systemctl", "start", "evenkeel-deploy.service")
    until(lambda: status(machine)["applied"]["commit"] == commit, what="the commit")
    assert machine.run("head", "-1", LB_YAML).stdout == f"# commit: {commit}\n"


def test_a_new_version_and_its_program_and_back_lose_no_packet(machine: Machine, lab: Lab) -> None:
    with TemporaryDirectory() as name:
        newer = next_version(package(), Path(name), changed(Path(name), "same", SAME))
        machine.put("/next.deb", newer.read_bytes())
    first, is_current = program(machine)
    assert is_current
    with (
        Load(lab.client, SERVICE[4], PORT, REST) as load,
        Connection(lab.client, SERVICE[4], PORT) as one,
    ):
        backend = one.get().backend

        def goes_on() -> None:
            before = load.requests, load.echoes
            until(
                lambda: load.requests > before[0] + ENOUGH and load.echoes > before[1] + ENOUGH,
                what="traffic",
            )
            assert one.get().backend == backend

        goes_on()
        old = {unit: main_pid(machine, unit) for unit in UNITS}
        machine.run("dpkg", "--install", "/next.deb")
        until(lambda: all(has_started(machine, unit, old[unit]) for unit in UNITS), 30, what="both")
        goes_on()
        new = {unit: main_pid(machine, unit) for unit in UNITS}

        machine.run("reconciler", "upgrade", "--dry-run")
        assert program(machine) == (first, False), "neither a start nor a dry run replaces it"
        machine.run("reconciler", "upgrade")
        goes_on()
        until(lambda: has_another(machine, first), what="the installed version's program")
        machine.run("reconciler", "upgrade", "--undo")
        goes_on()
        until(lambda: program(machine) == (first, False), what="the first program")
        assert {unit: main_pid(machine, unit) for unit in UNITS} == new, "beside the daemons"
        assert not machine.run("find", "/sys/fs/bpf/evenkeel", "-not", "-user", "evenkeel").stdout
    assert load.failures == []
    assert load.lost == 0
    machine.run("reconciler", "sync")


def program(machine: Machine) -> tuple[int, bool]:
    """Its number in the kernel, and whether it is that of the installed version."""
    said = status(machine)
    current = next(one["status"] for one in said["conditions"] if one["type"] == "ProgramCurrent")
    return said["program"]["id"], current == "True"


def has_another(machine: Machine, first: int) -> bool:
    number, is_current = program(machine)
    return number != first and is_current


def has_started(machine: Machine, unit: str, old: int) -> bool:
    return main_pid(machine, unit) not in {0, old} and machine.show(unit, "ActiveState") == "active"
