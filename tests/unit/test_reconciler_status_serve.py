"""The second thread on its own: what it serves, to whom, and what happens when it cannot."""

import grp
import json
import logging
import os
import socket
import stat
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from reconciler import control, node, serve
from reconciler.board import SILENCE, Board
from reconciler.control import NotRunning, Refused, Requests
from reconciler.problems import Rejected
from reconciler.serve import Server, bound
from tests.support.ports import free
from tests.support.statuses import facts
from tests.support.wait import until

NODE = "apiVersion: evenkeel/v1\ninterfaces: {{eth0: {{}}}}\n{}\n"


class Loop:
    """Answers requests as the reconciler's loop would: between its own turns, in another thread."""

    def __init__(self) -> None:
        self.woken = threading.Event()
        self.requests = Requests(self.woken.set)
        self.seen: list[tuple[str, str]] = []

    def turn(self) -> None:
        assert self.woken.wait(10)
        for request in self.requests.take():
            self.seen.append((request.command, request.by))
            if request.command == "fail":
                request.answer.set_exception(Refused("not today"))
            else:
                request.answer.set_result({"did": dict(request.arguments)})


@pytest.fixture
def board() -> Board:
    return Board()


@pytest.fixture
def listen() -> str:
    return free()


@pytest.fixture
def loop(board: Board, listen: str, tmp_path: Path) -> Iterator[Loop]:
    made = Loop()
    with Server(board, made.requests, listen, tmp_path / control.SOCKET):
        until(lambda: (tmp_path / control.SOCKET).exists(), what="the socket")
        until(lambda: get(listen, "/healthz")[0] == 200, what="HTTP")
        yield made


def get(listen: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{listen}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except urllib.error.URLError:
        return 0, ""


def test_before_anything_was_read_it_is_alive_and_not_ready(loop: Loop, listen: str) -> None:
    assert get(listen, "/healthz") == (200, "ok\n")
    for path in ("/readyz", "/status", "/metrics"):
        assert get(listen, path)[0] == 503
    assert get(listen, "/")[0] == 200


def test_ready_is_what_the_condition_says(loop: Loop, board: Board, listen: str) -> None:
    board.facts = facts()
    assert get(listen, "/readyz") == (200, "ok\n")
    assert json.loads(get(listen, "/status")[1])["instance"] == "edge"


def test_a_loop_that_hangs_is_not_healthy(loop: Loop, board: Board, listen: str) -> None:
    board.seen -= SILENCE
    assert get(listen, "/healthz")[0] == 503


def test_a_command_goes_to_the_loop_with_the_name_of_who_asked(loop: Loop, tmp_path: Path) -> None:
    turn = threading.Thread(target=loop.turn)
    turn.start()
    answer = control.ask(tmp_path / control.SOCKET, "override", {"backend": "web/web1"})
    turn.join()
    assert answer == {"did": {"backend": "web/web1"}}
    assert loop.seen == [("override", "root" if os.geteuid() == 0 else loop.seen[0][1])]


def test_a_refusal_comes_back_as_one(loop: Loop, tmp_path: Path) -> None:
    turn = threading.Thread(target=loop.turn)
    turn.start()
    with pytest.raises(Refused, match="not today"):
        control.ask(tmp_path / control.SOCKET, "fail")
    turn.join()


def test_status_needs_no_turn_of_the_loop(loop: Loop, board: Board, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="ask again"):
        control.ask(tmp_path / control.SOCKET, "status")
    board.facts = facts()
    assert control.ask(tmp_path / control.SOCKET, "status")["instance"] == "edge"


def test_the_socket_goes_when_the_server_does(board: Board, tmp_path: Path) -> None:
    path = tmp_path / control.SOCKET
    with Server(board, Requests(lambda: None), "off", path):
        until(path.exists, what="the socket")
    with pytest.raises(NotRunning):
        control.ask(path, "status")


def test_an_address_that_is_taken_is_said_and_tried_again(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serve, "RETRY", 0.01)
    path = tmp_path / control.SOCKET
    board.facts = facts()
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as squatter,
        caplog.at_level(logging.ERROR),
    ):
        listen = f"127.0.0.1:{squatter.getsockname()[1]}"
        with Server(board, Requests(lambda: None), listen, path):
            until(lambda: "listen:" in caplog.text, what="the complaint")
            assert control.ask(path, "status")["instance"] == "edge", (
                "the socket serves all the same"
            )
            squatter.close()
            until(lambda: get(listen, "/readyz")[0] == 200, what="HTTP once the address is free")
    assert caplog.text.count("listen:") == 1, "said once, not every time"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: only root gives a file to a group")
def test_the_socket_can_be_a_groups(tmp_path: Path) -> None:
    group = grp.getgrgid(1)
    path = tmp_path / control.SOCKET
    path.write_text("left behind by one who was killed")
    with bound(path, group.gr_name):
        assert path.stat().st_gid == 1
        assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_nobody_listens_where_nothing_is(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="no reconciler listens"):
        control.ask(tmp_path / control.SOCKET, "status")


# ---- node.yaml


@pytest.mark.parametrize(
    ("said", "listen"),
    [
        ("", "127.0.0.1:9160"),
        ("listen: 10.0.0.1:80", "10.0.0.1:80"),
        ('listen: "[::1]:9160"', "[::1]:9160"),
        ("listen: off", "off"),
    ],
)
def test_where_to_listen(said: str, listen: str) -> None:
    assert node.load(NODE.format(said)).listen == listen


@pytest.mark.parametrize(
    "said", ["lb1:9160", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:70000", "none"]
)
def test_where_nobody_can_listen(said: str) -> None:
    with pytest.raises(Rejected) as error:
        node.load(NODE.format(f"listen: {said}"))
    assert "is no address and port" in str(error.value)
