"""`reconciler replay`: captures through a shadow of the program, and nothing of what forwards changes."""

import io
import json
import os
import resource
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bpf import kernel
from bpf.abi import Verdict
from reconciler import cli
from reconciler import config as configuration
from reconciler.capture import Captured
from reconciler.capture import frames as frames_of
from reconciler.verdicts import WHY
from tests.support import frames
from tests.support.box import CLIENT, Box, acquaint, boxed
from tests.support.wait import until

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "schemas/replay.schema.json").read_text())
WEB = """\
apiVersion: evenkeel/v1
pools:
  web:
    backends: {web1: {address: 10.1.2.101, port: 8080}, web2: {address: 10.1.2.102, port: 8080}}
services:
  www: {addresses: [192.0.2.10], ports: [80/tcp], pools: [web]}
...
"""
START = 1_700_000_000 * 10**9


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    try:
        with boxed(f"ek{os.getpid()}replay", tmp_path_factory.mktemp("run")) as made:
            acquaint(made, configuration.load(WEB))
            made.write(WEB)
            made.run("--once")
            yield made
    except (kernel.NotPermitted, kernel.Unsupported) as error:
        pytest.skip(str(error))


def capture(path: Path, *sent: bytes, keep: int = 65535) -> str:
    """A pcap with nanoseconds, a second between packets."""
    out = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, keep, 1)
    for i, frame in enumerate(sent):
        data = frame[:keep]
        out += struct.pack("<IIII", START // 10**9 + i, 0, len(data), len(frame)) + data
    path.write_bytes(out)
    return str(path)


def towards(sport: int, flags: str = "S", dport: int = 80, payload: bytes = b"") -> bytes:
    return frames.eth(frames.ip(CLIENT[4], "192.0.2.10", frames.tcp(sport, dport, flags, payload)))


def told(box: Box, *arguments: str, ok: tuple[int, ...] = (0,)) -> list[dict[str, Any]]:
    done = box.ask("replay", *arguments, "--output", "json", ok=ok)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for one in found:
        jsonschema.validate(one, SCHEMA)
    return found


def everything(box: Box) -> list[object]:
    """What the live program knows and has counted, but for times."""
    maps = box.bed.maps
    names = ("flows4", "returns4", "opening4", "service_counts", "backend_counts", "service_state")
    cpu = box.bed.cpu()
    return [dict(maps[name].items()) for name in names] + [bytes(cpu.verdict), box.read()]


def test_every_verdict_has_a_sentence() -> None:
    assert set(WHY) == set(Verdict)


def test_flows_build_up_and_the_live_node_learns_nothing(box: Box, tmp_path: Path) -> None:
    path = capture(tmp_path / "a.pcap", towards(1), towards(1, "A"), towards(1, "PA", payload=b"x"))
    before = everything(box)
    *packets, summary = told(box, path)
    assert everything(box) == before
    assert [one["verdict"] for one in packets] == ["forwarded"] * 3
    assert {one["service"] for one in packets} == {"www"}
    assert len({one["backend"] for one in packets}) == 1
    assert packets[0]["tuple"] == f"{CLIENT[4]}:1 -> 192.0.2.10:80/tcp"
    assert summary["flows"] == 1
    assert summary["backends"] == {packets[0]["backend"]: 3}
    assert summary["error"] == ""


def test_a_reply_in_the_capture_is_translated_for_the_client_of_its_flow(
    box: Box, tmp_path: Path
) -> None:
    """Which only a shadow can do that has learnt the flow from the packet before."""
    back = [
        frames.eth(frames.ip(f"10.1.2.{at}", CLIENT[4], frames.tcp(8080, 7, "SA")))
        for at in (101, 102)
    ]
    *packets, summary = told(box, capture(tmp_path / "a.pcap", towards(7), *back))
    returned = [one for one in packets[1:] if one["verdict"] == "returned"]
    assert [one["backend"] for one in returned] == [packets[0]["backend"]]
    assert summary["verdicts"] == {"forwarded": 1, "returned": 1, "not_ours": 1}


def test_people_read_each_packet_and_a_summary(box: Box, tmp_path: Path) -> None:
    path = capture(tmp_path / "a.pcap", towards(1), towards(1, dport=81))
    said = box.ask("replay", path, "--decode").stdout
    assert (
        "#1 2023-11-14T22:13:20.000000000Z 10.1.1.2:1 -> 192.0.2.10:80/tcp: forwarded www" in said
    )
    assert "#2 " in said
    assert "not_ours (pass): it concerns no service" in said
    assert "tcp          source-port 1, destination-port 80" in said
    assert "(exact)" in said
    assert "       1 verdict forwarded" in said


def test_what_is_printed_can_be_narrowed_and_all_of_it_is_counted(box: Box, tmp_path: Path) -> None:
    path = capture(tmp_path / "a.pcap", *(towards(i, dport=80 + i % 2) for i in range(1, 9)))
    *some, summary = told(box, path, "--only", "not_ours", "--limit", "3")
    assert [one["number"] for one in some] == [1, 3, 5]
    assert summary["packets"] == 8
    *mine, _ = told(box, path, "--service", "www")
    assert [one["number"] for one in mine] == [2, 4, 6, 8]


def test_a_packet_that_the_snaplen_cut_is_marked_and_judged_by_its_headers(
    box: Box, tmp_path: Path
) -> None:
    path = capture(tmp_path / "a.pcap", towards(1, "A", payload=bytes(900)), keep=96)
    packet, summary = told(box, path)
    assert (packet["verdict"], packet["cut"], packet["captured"]) == ("forwarded", True, 96)
    assert packet["malformed"] == ""
    assert summary["cut"] == 1


def test_what_is_broken_is_said_and_what_came_before_it_counts(box: Box, tmp_path: Path) -> None:
    path = Path(capture(tmp_path / "a.pcap", towards(1), towards(2)))
    path.write_bytes(path.read_bytes()[:-5])
    done = box.ask("replay", str(path), "--output", "json", ok=(1,))
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["packets"] == 1
    assert (
        "byte 110: the file ends within a packet's bytes: 49 of 54 bytes are there" in done.stderr
    )
    assert summary["error"].startswith(str(path))


def test_frames_of_all_sizes_are_told_of(box: Box, tmp_path: Path) -> None:
    bad = bytearray(towards(3))
    bad[50:52] = b"\xab\xcd"  # the checksum
    lies = bytearray(towards(3))
    lies[46] = 0x20  # TCP header length 8
    path = capture(
        tmp_path / "a.pcap", b"\x01" * 13, bytes(14), bytes(60000), bytes(bad), bytes(lies)
    )
    short, empty, giant, wrong, malformed, summary = told(box, path)
    assert short["verdict"] == "not_replayed"
    assert "13 bytes" in short["why"]
    assert [empty["verdict"], giant["verdict"]] == ["not_ours"] * 2
    assert wrong["verdict"] == "forwarded"
    assert wrong["wrong_checksums"][0].startswith("tcp checksum wrong, should be 0x")
    assert (malformed["verdict"], malformed["service"]) == ("bad_tcp", "www")
    assert "a TCP header of 8 bytes" in malformed["malformed"]
    assert (summary["wrong_checksums"], summary["malformed"]) == (2, 2)


def test_a_length_that_no_packet_has_takes_no_memory(box: Box, tmp_path: Path) -> None:
    path = Path(capture(tmp_path / "a.pcap", towards(1), towards(2)))
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 24 + 12, 1_500_000_000)  # of the first, on the wire
    path.write_bytes(data)
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    absurd, well, _ = told(box, str(path))
    assert (absurd["verdict"], absurd["length"]) == ("not_replayed", 1_500_000_000)
    assert well["verdict"] == "forwarded"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - taken < 1 << 20  # KiB


def test_two_configurations_are_compared(box: Box, tmp_path: Path) -> None:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(WEB)
    new.write_text(WEB.replace("web2: {", "web2: {state: down, "))
    path = capture(tmp_path / "a.pcap", *(towards(i) for i in range(1, 41)))
    *packets, summary = told(box, path, "--config", str(new), "--against", str(old))
    gone = [one for one in packets if one["elsewhere"]]
    assert {(one["against"]["backend"], one["backend"]) for one in gone} == {
        ("web/web2", "web/web1")
    }
    assert all(one["backend"] == "web/web1" for one in packets)
    assert summary["elsewhere"]["packets"] == len(gone) == len(summary["elsewhere"]["flows"])
    assert 10 < len(gone) < 30
    text = box.ask("replay", path, "--config", str(new), "--against", str(old), "--limit", "0")
    assert f"{len(gone)} packets would go elsewhere than with --against" in text.stdout


def test_a_flow_that_changes_its_backend_is_told(box: Box, tmp_path: Path) -> None:
    """A reset ends it, and the next with the same ports has another turn."""
    config = tmp_path / "lb.yaml"
    turns = WEB.replace("pools: [web]}", "pools: [web], balance: {method: round-robin}}")
    config.write_text(turns)
    path = capture(tmp_path / "a.pcap", towards(1), towards(1, "R"), towards(1))
    first, _, second, summary = told(box, path, "--config", str(config))
    assert second["moved_from"] == first["backend"] != second["backend"]
    assert [(one["from"], one["to"]) for one in summary["moved"]] == [
        (first["backend"], second["backend"])
    ]


def test_gates_open_anew_with_each_second_of_the_capture(box: Box, tmp_path: Path) -> None:
    config = tmp_path / "lb.yaml"
    config.write_text(WEB.replace("pools: [web]}", "pools: [web], gate: 1}"))
    path = capture(tmp_path / "a.pcap", *(towards(i) for i in range(1, 11)))  # a second apart
    summary = told(box, path, "--config", str(config))[-1]
    assert summary["verdicts"].get("forwarded", 0) >= 9  # a tick is longer than a second
    same = Path(path).read_bytes()
    at_once = same[:24] + b"".join(
        struct.pack("<II", 5, 5) + same[at + 8 : at + 70] for at in range(24, len(same), 70)
    )
    Path(path).write_bytes(at_once)
    verdicts = told(box, path, "--config", str(config))[-1]["verdicts"]
    assert verdicts["gated"] >= 8, "and at most one more for a tick that ended meanwhile"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("nowhere.pcap",), 1, "No such file"),
        (("a.pcap", "--against", "x.yaml"), 64, "--against compares with --config"),
        (("a.pcap", "--interface", "nowhere0"), 1, "nowhere0"),
    ],
)
def test_what_cannot_be_is_refused(
    box: Box, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    Path(capture(tmp_path / "a.pcap", towards(1)))
    done = box.ask("replay", str(tmp_path / arguments[0]), *arguments[1:], ok=(code,))
    assert said in done.stderr


def test_without_a_data_plane_a_file_is_asked_for(tmp_path: Path, box: Box) -> None:
    path = capture(tmp_path / "a.pcap", towards(1))
    heard = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", heard)
        assert cli.main(["replay", path, "--instance", "ek-nobody"]) == 1
    assert "--config FILE replays with a file instead" in heard.getvalue()


def test_who_interrupts_a_capture_that_goes_on_gets_the_summary(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(source: Any) -> Iterator[Captured]:
        yield from frames_of(source)
        raise KeyboardInterrupt

    monkeypatch.setattr("reconciler.commands.replay.frames", endless)
    *packets, summary = told(box, capture(tmp_path / "a.pcap", towards(1)), ok=(1,))
    assert (len(packets), summary["packets"]) == (1, 1)
    assert summary["error"].endswith("interrupted")


def test_a_reader_that_has_seen_enough_ends_it(box: Box, tmp_path: Path) -> None:
    path = capture(tmp_path / "a.pcap", *(towards(i) for i in range(1, 2000)))
    line = f"{ROOT}/.venv/bin/python -m reconciler replay {path}"
    place = f"--instance {box.place.instance} --run-dir {box.place.run_dir}"
    script = f"set -o pipefail; {line} {place} | head -1"
    done = subprocess.run(
        box.namespace.inside("bash", "-c", script),
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.startswith("#1 ")
    assert done.stderr == ""


def test_what_tcpdump_captured_comes_by_a_pipe(box: Box, tmp_path: Path) -> None:
    """Frames on a wire, tcpdump's own file on standard input."""
    path = tmp_path / "wire.pcap"
    command = ("tcpdump", "-i", "wan-far", "-U", "-s", "0", "-w", str(path), "-c", "3", "tcp")
    sent = [towards(i) for i in (1, 2, 3)]
    with subprocess.Popen(box.namespace.inside(*command), stderr=subprocess.PIPE) as dump:
        assert dump.stderr is not None
        assert any(b"listening" in line for line in dump.stderr)
        with box.namespace.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind(("wan-far", 0))
            for frame in sent:
                wire.send(frame)
        until(lambda: dump.poll() is not None, what="tcpdump's three packets")
    line = (str(ROOT / ".venv/bin/python"), "-m", "reconciler", "replay", "-", "--output", "json")
    place = ("--instance", box.place.instance, "--run-dir", str(box.place.run_dir))
    with path.open("rb") as source:
        done = subprocess.run(
            box.namespace.inside(*line, *place),
            stdin=source,
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
    *packets, summary = [json.loads(one) for one in done.stdout.splitlines()]
    assert [one["verdict"] for one in packets] == ["forwarded"] * 3
    assert summary["packets"] == 3
