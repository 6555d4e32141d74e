"""`reconciler upgrade`: what it compares, refuses, says beforehand and leaves alone."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from bpf import abi, mapset, replacing
from bpf.kernel import Instance, KernelError
from bpf.pins import ROOT as PINS
from bpf.pins import Pins, locked, preceding
from reconciler import selftest
from reconciler.likeness import Outcome
from tests.support import frames
from tests.support.box import CLIENT, ROOT, WAN_LAN, Box, boxed, mac_of
from tests.support.instances import REJECTED, compiled
from tests.support.objects import MARKS, OTHER_HASH, SAME, changed

CONFIG = """\
apiVersion: evenkeel/v1
pools:
  web:
    backends:
      web1: {address: 10.1.2.101, port: 8080}
      web2: {address: 10.1.2.102, port: 8080}
  web6: {backends: {six1: {address: "fd01:2::11"}, six2: {address: "fd01:2::12"}}}
services:
  www: {addresses: [192.0.2.10], ports: [80/tcp, 53/udp], pools: [web]}
  six: {addresses: ["2001:db8::10"], ports: [80/tcp], pools: [web6], forward: dsr}
  lots:
    addresses: [192.0.2.11]
    ports: [80/tcp]
    pools: [web]
    balance: {method: random}
tests:
  - {name: web answers, packet: "198.51.100.7:41000 -> 192.0.2.10:80/tcp", expect: {pool: web}}
...
"""
OTHER_ABI = "enum abi { ABI_VERSION = 2 }; enum abi spoken;"
SCHEMA = json.loads((ROOT / "schemas/upgrade.schema.json").read_text())


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with boxed(f"ek{os.getpid()}up", tmp_path_factory.mktemp("box")) as made:
        for number in (101, 102):
            made.neighbour(f"10.1.2.{number}", mac_of(number))
        for number in (11, 12):
            made.neighbour(f"fd01:2::{number}", mac_of(number))
        yield made


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Later versions of the program, good and bad."""
    folder = tmp_path_factory.mktemp("objects")
    return {
        "same": changed(folder, "same", SAME),
        "marks": changed(folder, "marks", MARKS),
        "hash": changed(folder, "hash", OTHER_HASH),
        "refused": compiled(REJECTED, folder / "refused.o"),
        "abi": compiled(OTHER_ABI, folder / "abi.o"),
    }


@pytest.fixture
def box(loaded: Box) -> Box:
    """The shipped program, with flows of both families."""
    loaded.write(CONFIG)
    loaded.run("--once", "--allow-removals")
    loaded.bed.instance.replace(if_changed=True)
    for sport in range(20000, 20012):
        for flags in "SA":
            tcp = frames.tcp(sport, 80, flags)
            loaded.send(frames.eth(frames.ip(CLIENT[4], "192.0.2.10", tcp)))
            loaded.send(frames.eth(frames.ip(CLIENT[4], "192.0.2.11", tcp)))
            loaded.send(frames.eth(frames.ip(CLIENT[6], "2001:db8::10", tcp)))
        udp = frames.udp(sport, 53, b"who")
        loaded.send(frames.eth(frames.ip(CLIENT[4], "192.0.2.10", udp)))
    return loaded


def tag(box: Box) -> str:
    with Instance.open(box.place.instance) as instance:
        return instance.running().program.tag


def live(box: Box) -> dict[str, object]:
    """All that forwards by: what a program that is only asked may not touch."""
    maps = box.bed.instance.maps
    plain = ("flows4", "flows6", "returns4", "returns6", "hops", "live", "cpus", "backend_counts")
    pins = sorted(str(path) for path in (PINS / box.place.instance).rglob("*"))
    return {**{name: maps[name].items() for name in plain}, "pins": pins}


def test_a_program_that_does_the_same_takes_over_and_goes_back(
    box: Box, objects: dict[str, Path]
) -> None:
    before, flows = tag(box), dict(box.bed.instance.maps.flows4.items())
    done = box.run("upgrade", "--object", str(objects["same"]))
    assert "no difference in verdict, backend or bytes" in done.stdout
    assert "upgrade --undo" in done.stdout
    assert tag(box) != before
    assert dict(box.bed.instance.maps.flows4.items()) == flows
    assert (
        "this program runs already" in box.run("upgrade", "--object", str(objects["same"])).stdout
    )
    box.run("upgrade", "--undo")
    assert tag(box) == before


@pytest.mark.parametrize("words", [("--dry-run",), ()], ids=["beforehand", "in earnest"])
def test_without_a_program_from_before_there_is_nothing_to_undo(
    box: Box, words: tuple[str, ...]
) -> None:
    preceding(Pins.of(box.place.instance).program).unlink(missing_ok=True)
    said = box.run("upgrade", "--undo", *words, ok=(1,))
    assert "no program is kept from before" in said.stderr


@pytest.mark.parametrize("output", ["text", "json"])
def test_a_dry_run_shows_it_and_changes_nothing(
    box: Box, objects: dict[str, Path], output: str
) -> None:
    before = live(box)
    words = ("--dry-run", "--detailed-exitcode", "--output", output)
    said = box.run("upgrade", *words, "--object", str(objects["same"]), ok=(2,)).stdout
    assert live(box) == before
    if output == "text":
        assert "takes over on lan, wan" in said or "takes over on wan, lan" in said
        assert "ABI 1" in said
        return
    found = json.loads(said)
    jsonschema.validate(found, SCHEMA)
    assert found["outcome"] == "pending"
    assert found["running"]["tag"] == tag(box)
    assert found["running"]["tag"] != found["new"]["tag"]
    assert found["running"]["object"] != found["new"]["object"]
    assert found["tests"].startswith("1 test by the program itself")
    assert found["packets"]["frontend"] == 4
    assert found["packets"]["known"] == found["packets"]["new"] > 40
    assert found["packets"]["reply"] > 30
    assert found["load_seconds"] > 0


def test_a_dry_run_says_that_another_was_killed_before_it_was_through(
    box: Box, objects: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("upgrade", "--object", str(objects["same"]))
    assert "under way" not in box.run(*words, "--dry-run").stderr

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(replacing, "_switch", killed)
        with pytest.raises(KeyboardInterrupt):
            box.run(*words)
    assert "under way, or was killed before it was through" in box.run(*words, "--dry-run").stderr
    assert "this program runs already" in box.run(*words).stdout, "who is not dry finishes it"
    box.run("upgrade", "--undo")


KINDS = {
    "verdict": r"53/udp: forwarded to web/web\d \(redirect\), new: forwarded to web/web\d \(drop\)",
    "bytes": r"80/tcp: .* byte 15: 00 and 04",
}


def test_a_program_that_does_something_else_is_refused_with_examples(
    box: Box, objects: dict[str, Path]
) -> None:
    before = live(box)
    words = ("upgrade", "--object", str(objects["marks"]))
    refused = box.run(*words, ok=(4,))
    assert live(box) == before
    assert "refused: the new program treats" in refused.stderr
    assert "nothing was changed. To take over all the same: --accept-differences" in refused.stderr
    for kind, example in KINDS.items():
        assert re.search(rf"differ .* \d+ by {kind}", refused.stdout)
        assert re.search(example, refused.stdout), refused.stdout
    found = json.loads(box.run(*words, "--accept-differences", "--output", "json").stdout)
    jsonschema.validate(found, SCHEMA)
    assert found["outcome"] == "upgraded"
    assert found["differences"].keys() == KINDS.keys()
    assert tag(box) == found["new"]["tag"]
    box.run("upgrade", "--undo")
    assert tag(box) == found["running"]["tag"]


def test_a_program_that_picks_other_backends_is_refused(box: Box, objects: dict[str, Path]) -> None:
    """Known flows would stay; what is new would not agree with the other nodes any more."""
    refused = box.run("upgrade", "--object", str(objects["hash"]), ok=(4,))
    assert re.search(
        r"new: .*forwarded to web/web(\d) .*new: forwarded to web/web(?!\1)\d", refused.stdout
    )
    assert "known: " not in refused.stdout


def test_clients_of_frontends_that_share_backends_are_in_nobodys_way(
    box: Box, objects: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were they one client, those whom chance chose for one would decide who is left for the next."""
    numbers = range(101, 117)
    for number in numbers:
        box.neighbour(f"10.1.2.{number}", mac_of(number))
    backends = {f"b{number}": {"address": f"10.1.2.{number}"} for number in numbers}
    addresses = [f"192.0.2.{number}" for number in range(20, 36)]
    box.write(
        CONFIG.replace(
            "services:",
            f"""\
  own: {json.dumps({"backends": backends})}
services:
  dns: {{addresses: {json.dumps(addresses)}, ports: [53/udp], pools: [own], balance: {{method: random}}}}
""",
        )
    )
    box.run("--once")
    ask, verdicts = selftest.outcome, set()

    def outcome(shadow: Instance, probe: selftest.Probe) -> Outcome:
        found = ask(shadow, probe)
        if probe.what.startswith("frontend"):
            verdicts.add(found.verdict)
        return found

    monkeypatch.setattr(selftest, "outcome", outcome)
    done = box.run("upgrade", "--dry-run", "--object", str(objects["same"]))
    assert verdicts == {"forwarded"}
    assert "no difference in verdict, backend or bytes" in done.stdout


def test_a_service_that_closed_and_opened_again_still_chooses_by_chance(
    box: Box, objects: dict[str, Path]
) -> None:
    """Its flows from before name a frontend that is gone; a SYN of theirs is one for the new service."""
    address = "192.0.2.11]\n    ports: "
    for ports in ("[81/tcp]", "[81/tcp, 82/tcp]", "[80/tcp, 81/tcp]"):  # never where it was before
        box.write(CONFIG.replace(f"{address}[80/tcp]", f"{address}{ports}"))
        box.run("--once", "--allow-removals")
    done = box.run("upgrade", "--dry-run", "--object", str(objects["same"]))
    assert "no difference in verdict, backend or bytes" in done.stdout


def test_a_commit_between_the_two_programs_makes_no_difference(
    box: Box, objects: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would go on with the flow that it has begun by then."""
    ask, drained = selftest.outcome, []

    def outcome(shadow: Instance, probe: selftest.Probe) -> Outcome:
        found = ask(shadow, probe)
        if "53/udp" in probe.what and not drained:
            address = f"10.1.2.{found.place[-1]}"
            box.write(CONFIG.replace(address, f"{address}, state: drain"))
            drained.append(address)
            box.run("--once")
        return found

    monkeypatch.setattr(selftest, "outcome", outcome)
    done = box.run("upgrade", "--dry-run", "--object", str(objects["same"]))
    assert drained
    assert "no difference in verdict, backend or bytes" in done.stdout


def test_a_service_that_opens_meanwhile_chooses_by_chance(
    box: Box, objects: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent to it before it closed is sent again, and is its by then."""
    box.write(
        CONFIG.replace("192.0.2.11]\n    ports: [80/tcp]", "192.0.2.11]\n    ports: [81/tcp]")
    )
    box.run("--once", "--allow-removals")
    ask, opened = selftest.outcome, []

    def outcome(shadow: Instance, probe: selftest.Probe) -> Outcome:
        if not opened:
            opened.append(box.write(CONFIG))
            box.run("--once", "--allow-removals")
        return ask(shadow, probe)

    monkeypatch.setattr(selftest, "outcome", outcome)
    done = box.run("upgrade", "--dry-run", "--object", str(objects["same"]))
    assert opened
    assert "no difference in verdict, backend or bytes" in done.stdout


def test_what_another_began_is_finished_before_anything_is_compared(
    box: Box, objects: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        raise KernelError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(replacing, "_switch", dies)
        box.run("upgrade", "--object", str(objects["same"]), ok=(1,))
    done = box.run("upgrade", "--object", str(objects["same"]))
    assert "nothing to do" in done.stdout, done


def test_what_the_verifier_refuses_changes_nothing_and_its_words_are_shown(
    box: Box, objects: dict[str, Path]
) -> None:
    before = live(box)
    refused = box.run("upgrade", "--object", str(objects["refused"]), ok=(1,))
    assert "invalid access to packet" in refused.stderr
    assert live(box) == before


def test_an_object_of_another_abi_is_refused_by_name(box: Box, objects: dict[str, Path]) -> None:
    before = live(box)
    assert "speaks ABI 2" in box.run("upgrade", "--object", str(objects["abi"]), ok=(4,)).stderr
    assert live(box) == before


def test_maps_of_another_abi_are_refused_with_what_a_new_start_costs(box: Box) -> None:
    meta = box.bed.instance.maps.meta
    was = meta.get(0)
    assert was is not None
    meta.put(0, abi.Meta(abi=99))
    try:
        refused = box.run("upgrade", "--dry-run", ok=(4,)).stderr
    finally:
        meta.put(0, was)
    assert "ABI 99" in refused
    assert re.search(r"forgets \d\d+ flows", refused)
    assert re.search(r"loading alone takes \d+\.\d s here", refused)


def test_a_start_adopts_what_runs_and_says_that_it_is_another_program(
    box: Box, objects: dict[str, Path]
) -> None:
    box.run("upgrade", "--object", str(objects["same"]))
    other = tag(box)
    box.run("--once")
    assert tag(box) == other
    status = json.loads(box.run("status", "--output", "json").stdout)
    assert status["program"]["tag"] == other
    assert status["previous_program"]["tag"] != other
    box.run("upgrade", "--undo")


def test_changed_sizes_are_taken_over_with_everything_that_was_there(box: Box) -> None:
    larger = WAN_LAN.replace('"flows4": 4096', '"flows4": 16384').replace(
        '"backends": 64', '"backends": 128'
    )
    assert larger != WAN_LAN
    box.write(CONFIG, larger)
    box.run("--once")  # goes on with the sizes that there are
    before = content(box)
    shown = box.run("upgrade", "--dry-run", "--detailed-exitcode", ok=(2,)).stdout
    assert "sizes.flows4 4096 -> 16384; " in shown
    assert "entries are copied (flows4)" in shown
    assert "sizes.backends 64 -> 128" in shown
    assert re.search(
        r"copying   \d+ entries, about \d+ s, in batches while everything goes on", shown
    )
    assert re.search(r"MiB of kernel memory for the new maps, and until it is over \d+", shown)
    found = json.loads(box.run("upgrade", "--output", "json").stdout)
    jsonschema.validate(found, SCHEMA)
    assert found["outcome"] == "upgraded"
    flows = next(one for one in found["resized"] if one["setting"] == "flows4")
    assert flows["copied"] == len(box.bed.instance.maps.flows4.items())
    assert flows["bytes_after"] == 4 * flows["bytes_before"] >= 16384 * 96
    with Instance.open(box.place.instance) as instance:
        assert (instance.sizes().flows4, instance.sizes().backends) == (16384, 128)
    with locked():
        assert box.bed.instance.follow()
    assert content(box) == before
    assert box.reconcile(CONFIG, larger).ops == ()
    box.write(CONFIG)
    backends = box.bed.instance.maps.backends
    backends.put(100, abi.Backend(id=100))
    refused = box.run("upgrade", ok=(4,))
    assert "refused: sizes.backends 128 -> 64: too few, 101 are needed" in refused.stderr
    assert box.bed.instance.sizes().backends == 128
    backends.put(100, abi.Backend())
    box.run("upgrade")
    with locked():
        box.bed.instance.follow()
    assert content(box) == before


def content(box: Box) -> dict[str, object]:
    maps = box.bed.instance.maps
    names = set(mapset.names()) - {"prefilter", "meta"}
    return {name: dict(maps[name].items()) for name in names}
