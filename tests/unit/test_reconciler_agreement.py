"""Whether peers forward alike, over time that is made up; and what is said over the wire."""

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from reconciler import digests, peers
from reconciler.agreement import Answer, Identity, Peer, asked, differences
from reconciler.board import Board
from reconciler.conditions import Condition, Holds, Observed, Type, judge
from reconciler.control import Requests
from reconciler.model import PeerNode
from reconciler.peers import OFTEN, Peers, pace
from reconciler.printable import LONGEST
from reconciler.serve import Server
from reconciler.stating import build
from tests.support.lab import ROOT
from tests.support.ports import free
from tests.support.statuses import facts
from tests.support.wait import until

OWN = Identity("aa" * 32, "c0ffee", {"web": "11", "api": "22"})
SAME = Answer(OWN)
OTHER = Answer(replace(OWN, commit="beef"))
SILENT = Answer(trouble="no route to host")
NEW = Peer("lb2", "http://10.1.9.2:9160", patience=60, began=0)


def after(*answers: tuple[float, Answer]) -> Peer:
    """What is known of a peer that gave these answers at these times."""
    peer = NEW
    for at, answer in answers:
        peer = asked(peer, OWN, answer, at, at + 1_000_000)
    return peer


def conditions(peer: Peer, now: float) -> tuple[Condition, Condition]:
    judged = {one.type: one for one in judge(Observed(now=1, peers=(peer,), clock=now))}
    return judged[Type.PEERS_AGREE], judged[Type.PEERS_ANSWER]


def test_nodes_that_say_the_same_agree() -> None:
    agree, answer = conditions(after((1, SAME)), 2)
    assert (agree.status, answer.status) == (Holds.TRUE, Holds.TRUE)


def test_a_deployment_under_way_is_no_difference_yet_and_then_is_one() -> None:
    peer = after((1, SAME), (10, OTHER), (20, OTHER), (69, OTHER))
    assert conditions(peer, 69.9)[0].status is Holds.TRUE
    agree, answer = conditions(peer, 70)
    assert (agree.status, agree.reason) == (Holds.FALSE, "PeersDiffer")
    assert agree.message == "lb2: commit c0ffee here, beef there"
    assert answer.status is Holds.TRUE, "it answers: that is another question"


def test_one_moment_of_agreement_ends_a_difference() -> None:
    peer = after((1, OTHER), (50, SAME), (51, OTHER), (100, OTHER))
    assert conditions(peer, 110)[0].status is Holds.TRUE
    assert conditions(peer, 111)[0].status is Holds.FALSE


def test_a_silent_peer_is_another_and_milder_matter() -> None:
    peer = after((1, SAME), (10, SILENT), (30, SILENT))
    assert [one.status for one in conditions(peer, 60)] == [Holds.TRUE, Holds.TRUE]
    agree, answer = conditions(peer, 61)
    assert (agree.status, answer.status) == (Holds.UNKNOWN, Holds.FALSE)
    assert "no route to host" in answer.message
    assert not agree.well


def test_what_a_silent_peer_last_said_does_not_count_for_ever() -> None:
    peer = after((1, OTHER), (10, SILENT))
    assert conditions(peer, 60.5)[0].status is Holds.TRUE
    assert conditions(peer, 61)[0].status is Holds.UNKNOWN


def test_a_peer_that_never_answered_is_given_its_time_too() -> None:
    peer = after((1, SILENT))
    assert [one.status for one in conditions(peer, 59)] == [Holds.UNKNOWN, Holds.TRUE]
    assert conditions(peer, 60)[1].status is Holds.FALSE


def test_before_anything_is_known_of_ourselves_nothing_differs() -> None:
    peer = asked(NEW, None, OTHER, 1, 1)
    assert peer.differences == ()
    assert peer.identity == OTHER.identity


def test_without_peers_all_is_well() -> None:
    judged = {one.type: one for one in judge(Observed(now=1))}
    assert judged[Type.PEERS_AGREE].well
    assert judged[Type.PEERS_ANSWER].well
    assert judged[Type.PEERS_AGREE].reason == "NoPeers"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (OWN, []),
        (replace(OWN, digest="bb" * 32), ["configuration aaaaaaaaaaaa here, bbbbbbbbbbbb there"]),
        (replace(OWN, commit=""), []),
        (replace(OWN, tables={"web": "11"}), ["table api 22 here, nothing there", "table-size"]),
        (replace(OWN, tables={"web": "33", "api": "22"}), ["table web 11 here, 33 there", "table-size"]),
        (Identity("", "", {}), ["configuration aaaaaaaaaaaa here, nothing there", "table api", "table web"]),
    ],
)  # fmt: skip
def test_what_differs_is_named(other: Identity, said: list[str]) -> None:
    found = list(differences(OWN, other))
    assert len(found) == len(said)
    assert all(part in whole for part, whole in zip(said, found, strict=True))


def test_a_thousand_tables_are_no_thousand_lines() -> None:
    many = replace(OWN, digest="bb", tables={f"t{i}": "1" for i in range(1000)})
    found = list(differences(OWN, many))
    assert len(found) < 10
    assert found[-1] == "and 997 more tables"


# ---- over the wire


def test_a_document_comes_back_as_it_was_and_has_a_schema() -> None:
    status = build(facts())
    document = json.loads(json.dumps(digests.document(status)))
    jsonschema.validate(document, json.loads((ROOT / "schemas/digests.schema.json").read_text()))
    assert digests.parse(document) == Answer(digests.identity(status))
    assert len(digests.identity(status).tables) == 1


@pytest.mark.parametrize(
    "content",
    [None, [], {}, {"format_version": 1}, {"format_version": "2.0"}, {"format_version": "1.0", "digest": 1}],
)  # fmt: skip
def test_nonsense_is_no_identity(content: object) -> None:
    answer = digests.parse(content)
    assert answer.identity is None
    assert answer.trouble


def test_a_peer_is_asked_over_its_status_page(tmp_path: Path) -> None:
    board, listen = Board(), free()
    board.facts = facts()
    with Server(board, Requests(lambda: None), listen, tmp_path / "socket"):
        until(lambda: peers.ask(f"http://{listen}").identity, what="an answer")
        assert peers.ask(f"http://{listen}/") == Answer(digests.identity(build(facts())))


@contextmanager
def answering(code: int, body: bytes) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("code", "body", "said"),
    [(503, b"", "503"), (200, b"[" * 100_000, ""), (200, b"\xff", ""), (200, b"{}", "not what")],
)
def test_whatever_a_peer_answers_is_an_answer(code: int, body: bytes, said: str) -> None:
    with answering(code, body) as address:
        found = peers.ask(address)
    assert found.identity is None
    assert found.trouble
    assert said in found.trouble


@contextmanager
def dripping(piece: bytes) -> Iterator[str]:
    """Says a little, again and again, and never comes to an end of its own."""
    gone = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            channel, _ = server.accept()
            with channel, suppress(OSError):
                channel.sendall(b"HTTP/1.0 200 OK\r\n")
                while not gone.wait(0.01):
                    channel.sendall(piece)

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            gone.set()
            thread.join()


@pytest.mark.parametrize("piece", [b"x", b"\r\n[["], ids=["headers", "body"])
def test_a_peer_that_never_finishes_is_given_up(
    piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "TIMEOUT", 0.3)
    found: list[Answer] = []
    with dripping(piece) as address:
        asking = threading.Thread(target=lambda: found.append(peers.ask(address)))
        asking.start()
        until(lambda: found, what="an end of the question")
        asking.join()
    assert found == [Answer(trouble="no whole answer within 0.3 s")]


def test_what_a_peer_says_rules_no_terminal() -> None:
    said = {"digest": "\x1b[2J", "commit": "c" * 1000, "tables": {"web\n": "1\x00"}}
    found = digests.parse({"format_version": "1.0", **said}).identity
    assert found == Identity("?[2J", "c" * LONGEST, {"web?": "1?"})
    assert digests.parse({"format_version": "\x1b2.0"}).trouble == "it speaks format ?2.0, we 1.0"


def test_nobody_there_is_an_answer_too() -> None:
    assert "refused" in peers.ask(f"http://{free()}").trouble


def test_the_thread_asks_all_and_ends(tmp_path: Path) -> None:
    board, listen = Board(), free()
    board.facts = facts()
    with Server(board, Requests(lambda: None), listen, tmp_path / "socket"):
        known = [
            PeerNode("same", f"http://{listen}", 1),
            PeerNode("gone", f"http://{free()}", 1),
        ]
        with closing(Peers(known, board)) as asking:
            asking.start()

            def answers() -> dict[str, tuple[bool, bool]]:
                return {p.name: (p.identity is not None, bool(p.trouble)) for p in asking.look()}

            wanted = {"same": (True, False), "gone": (False, True)}
            until(lambda: answers() == wanted, what="answers of both")
            assert asking.look()[0].differences == ()


def test_peers_are_asked_gently() -> None:
    assert pace(60) == 5
    assert pace(3600) == 5
    assert pace(10) == 10 / OFTEN
    assert pace(0.001) == 0.25
