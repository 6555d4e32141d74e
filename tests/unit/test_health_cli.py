"""The command: what it prints and how it exits."""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from healthcheck import cli
from healthcheck.exchange import Result
from healthcheck.rundir import held
from healthcheck.schedule import Beat
from readiness.manager import ServiceManager
from tests.support.health import Asks, a_fleet, backend, check, closed_port, document, put, serving


@pytest.fixture
def open_port() -> Iterator[int]:
    with serving(lambda connection: None) as port:
        yield port


def run_once(tmp_path: Path, *entries: dict[str, Any], output: str = "text") -> int:
    put(tmp_path / "targets.json", document(*entries))
    path = str(tmp_path / "targets.json")
    return cli.main(["--targets", path, "--once", "--output", output])


def test_once_exits_0_when_all_pass(
    tmp_path: Path, open_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_once(tmp_path, backend(1, open_port), backend(2, open_port)) == 0
    head, one, two = capsys.readouterr().out.splitlines()
    assert head.split() == ["BACKEND", "ADDRESS", "PORT", "CHECK", "RESULT", "MS", "REASON"]
    assert one.split()[:5] == ["web/web1", "127.0.0.1", str(open_port), "alive", "pass"]
    assert two.split()[0] == "web/web2"


def test_once_exits_2_when_one_does_not(
    tmp_path: Path, open_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = (backend(1, open_port), backend(2, closed_port()))
    assert run_once(tmp_path, *entries, output="json") == 2
    printed = json.loads(capsys.readouterr().out)
    assert printed["format_version"] == "1.0"
    assert [entry["outcome"] for entry in printed["backends"]] == ["pass", "fail"]
    assert printed["backends"][1]["reason"] == "refused"


def test_once_exits_1_when_it_could_not_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_port: int
) -> None:
    for faults in ("_FAULTS", "_FAULTS_ON_THE_WIRE"):  # every errno is our own trouble
        monkeypatch.setattr(f"healthcheck.probes.{faults}", {})
    assert run_once(tmp_path, backend(1, closed_port()), backend(2, open_port)) == 1


def test_once_with_nothing_to_probe_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_once(tmp_path) == 0
    assert capsys.readouterr().out == "no backend has a check\n"


def test_once_writes_nothing(tmp_path: Path, open_port: int) -> None:
    run_once(tmp_path, backend(1, open_port, check=check(rise=1, fall=1)))
    assert [path.name for path in tmp_path.iterdir()] == ["targets.json"]


def test_a_file_that_cannot_be_used_is_an_own_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--targets", str(tmp_path / "none.json"), "--once"]) == 1
    assert "none.json: not there" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--wrong"],
        ["--output", "json"],
        ["--once", "--output", "xml"],
        ["--instance", "../x"],
        ["--once", "probe", "tcp://127.0.0.1:9"],
    ],
)
def test_usage_errors_exit_64(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 64


def test_help_has_examples_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown
    assert "exit codes:" in shown


def test_a_second_checker_on_one_instance_is_refused(tmp_path: Path) -> None:
    ours = tmp_path / "run"
    with held(ours), pytest.raises(OSError, match="another healthcheck holds it"), held(ours):
        pass


def test_a_mistake_of_ours_ends_the_checker_instead_of_hiding(tmp_path: Path) -> None:
    """Whatever runs inside the loop: else one backend would never be probed again, and nobody would know."""

    def mistaken() -> Result:
        raise ZeroDivisionError

    with a_fleet() as (fleet, _):
        fleet.engine.watch(Asks(mistaken), Beat(1, 0.01), 1.0)
        with pytest.raises(ZeroDivisionError):
            asyncio.run(cli.follow(fleet, ServiceManager()))


def test_once_needs_no_kernel_interface(tmp_path: Path, open_port: int) -> None:
    """The map is only opened by the daemon, so a round can be tried from any machine."""
    put(tmp_path / "targets.json", document(backend(1, open_port)))
    code = (
        "import sys; sys.modules['bcc'] = sys.modules['bpf.kernel'] = None\n"
        "from healthcheck.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["--once", "--targets", str(tmp_path / "targets.json")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=False)
    assert done.returncode == 0


def test_probe_shows_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 503 Later\r\n\r\n")

    with serving(serve) as port:
        assert cli.main(["probe", f"http://127.0.0.1:{port}/up?x=1", "--set", "host=www"]) == 2
        assert (
            cli.main(["probe", f"tcp://127.1:{port}"]) == 0
        )  # a name, to everybody but the resolver
    lines = [line.split(" ms  ")[1] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == f"http check of 127.0.0.1:{port}, 1 s for all of it"
    assert "GET /up?x=1 HTTP/1.1" in lines[1]
    assert lines[2] == "received 22 bytes: 'HTTP/1.1 503 Later\\r\\n\\r\\n'"
    assert lines[3] == "fail: wrong-status: status 503, expected 200-399"
    assert lines[-1] == "pass: connected"


def test_a_name_of_several_addresses_is_probed_at_the_first_and_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [(0, 0, 0, "", (address, 0)) for address in ("127.0.0.1", "127.0.0.1", "::1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    cli.main(["probe", f"tcp://twofold:{closed_port()}"])
    assert "not of ::1, which twofold also is" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ftp://127.0.0.1"], "begins with none of tcp://"),
        (["tcp://127.0.0.1"], "port cannot be 0"),
        (["http://127.0.0.1", "--set", "retries=3"], "retries: not known"),
        (["udp://127.0.0.1:99999"], "ort"),
    ],
)
def test_a_probe_that_makes_no_sense_says_why(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["probe", *arguments]) == 1
    assert message in capsys.readouterr().err
