"""keepalived.conf: how it is read, what its weights come to, and everything that doctor holds against it."""

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address

import pytest

from reconciler import config as configuration
from reconciler.keepalived import DEEPEST, Malformed, Statement, parse
from reconciler.pairing import Executable, Keepalived, examined, forged
from reconciler.weighing import Setup, Signal, setup
from tests.support.lab import ROOT

EXAMPLE = ROOT / "examples/keepalived"
ONE, TWO = ((EXAMPLE / name / "keepalived.conf").read_text() for name in ("lb1", "lb2"))
PATH = "/usr/libexec/evenkeel/evenkeel-check"


def words(text: str, **files: str) -> list[object]:
    """The statements as nested lists."""

    def included(pattern: str, _: str) -> Iterable[tuple[str, str]]:
        return [(pattern, files[pattern])] if pattern in files else []

    return [plain(one) for one in parse(text, "k.conf", included).root.block]


def plain(one: Statement) -> object:
    return [*one.words, [plain(inner) for inner in one.block]] if one.block else list(one.words)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a b c", [["a", "b", "c"]]),
        ("a # comment\n! another\n#\n b", [["a"], ["b"]]),
        ('script "/x y # not ! a comment { }" # one', [["script", "/x y # not ! a comment { }"]]),
        ("a {\n b c\n d {\n  e\n }\n}\nf", [["a", [["b", "c"], ["d", [["e"]]]]], ["f"]]),
        ("a\n{\n b\n}", [["a", [["b"]]]]),
        ("a { b } c { d e }", [["a", [["b"]]], ["c", [["d", "e"]]]]),
        ("a b \\\n  c\nd", [["a", "b", "c"], ["d"]]),
        ("$B=10.${C}\n$C=0\nx ${B}.1\n$C=1\nx ${B}.1", [["x", "10.0.1"], ["x", "10.1.1"]]),
        ("$I= \\\n v n${N} { \\\n  p 1 \\\n  q \\\n }\n$N=0\n$I\n$N=1\n$I\nend",
         [["v", "n0", [["p", "1"], ["q"]]], ["v", "n1", [["p", "1"], ["q"]]], ["end"]]),
        ("@lb1 $P=150\npriority $P", [["priority", "150"]]),
        ("$P=150\npriority $P\nx ${P}0 $Q", [["priority", "150"], ["x", "1500", "$Q"]]),
        ("@lb1 priority 1\n@!lb2 state BACKUP", [["priority", "1"], ["state", "BACKUP"]]),
        ("include more\nb", [["a", [["c"]]], ["b"]]),
        ("z {\n include more\n}", [["z", [["a", [["c"]]]]]]),
        ("", []),
    ],
)  # fmt: skip
def test_it_is_read_as_keepalived_reads_it(text: str, found: list[object]) -> None:
    assert words(text, more="a {\n c\n}\n") == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a {\n b\n", "k.conf:1: the block is not closed"),
        ("a\n}\n", "k.conf:2: a } that closes nothing"),
        ("{\n}", "k.conf:1: a { without a name"),
        ('a\nscript "x y\n', "k.conf:2: a quote that is not closed"),
        ("$A=x${A}\na $A", "k.conf:2: definitions that use each other without an end"),
        ("include self", f"self: included {DEEPEST} deep"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(text: str, said: str) -> None:
    with pytest.raises(Malformed) as caught:
        words(text, self="include self")
    assert said in str(caught.value)


def test_includes_of_nothing_and_lines_for_some_nodes_are_told() -> None:
    found = parse("include none*.conf\n@lb1 a\n", "k.conf")
    assert found.absent == ("k.conf:1: include none*.conf",)
    assert found.conditional == ("k.conf:2",)


# ---- what it means


def node(text: str, file: str = "lb1.conf") -> Setup:
    return setup(parse(text, file), file)


def test_priorities_of_the_example_are_those_of_its_documentation() -> None:
    for text, own in ((ONE, 150), (TWO, 120)):
        made = node(text)
        assert [edge.name for edge in made.instances] == ["edge", "edge6"]
        for edge in made.instances:
            assert made.priority(edge) == own
            assert made.priority(edge, Signal.CONTROL) == own - 5
            assert made.priority(edge, Signal.DATAPLANE) == own - 60
            assert made.priority(edge, *Signal) == own - 65
    page = (ROOT / "docs/keepalived.md").read_text()
    assert all(f": {n}" in page for n in (145, 115, 90, 60, 85))


def test_weights_may_be_positive_tracked_and_cut_off() -> None:
    made = node(ONE.replace("weight -60 ", "weight 60 "))
    edge, _ = made.instances
    assert (made.priority(edge), made.priority(edge, Signal.DATAPLANE)) == (210, 150)
    made = node(ONE.replace("        evenkeel_dataplane", "        evenkeel_dataplane weight -200"))
    edge, _ = made.instances
    assert (made.sum(edge, Signal.DATAPLANE), made.priority(edge, Signal.DATAPLANE)) == (-50, 1)


def test_a_master_without_a_priority_owns_the_address_as_keepalived_has_it() -> None:
    bare = ONE.replace("priority 150", "")
    assert [node(bare.replace("state BACKUP", f"state {state}")).instances[0].priority
            for state in ("BACKUP", "MASTER")] == [100, 255]  # fmt: skip


# ---- what doctor says

WELL = Keepalived(node(ONE), (node(TWO, "lb2.conf"),), {PATH: Executable()})


def names(found: Keepalived) -> set[str]:
    return {one.name for one in examined(found)}


def own(old: str, new: str, **changes: object) -> Keepalived:
    assert old in ONE
    return replace(WELL, own=node(ONE.replace(old, new)), **changes)


def both(old: str, new: str) -> Keepalived:
    return replace(own(old, new), peers=(node(TWO.replace(old, new), "lb2.conf"),))


def at(**changes: object) -> Keepalived:
    return replace(WELL, executables={PATH: Executable(**changes)})  # type: ignore[arg-type]


def test_nothing_is_wrong_with_the_example() -> None:
    assert list(examined(WELL)) == []


FAULTS = {
    "insecure path": (at(exposed="/usr/libexec"), {"vrrp-script-insecure"}),
    "missing": (at(exists=False), {"vrrp-script-missing"}),
    "nobody to run it": (own("script_user root", ""), {"vrrp-script-user"}),
    "a user that is none": (own("script_user root", "script_user ghost", strangers=frozenset({"ghost"})), {"vrrp-script-user"}),
    "interpreter": (at(interpreter="/no/python", interpreter_runs=False), {"vrrp-script-interpreter"}),
    "no first line": (at(program=False), {"vrrp-script-interpreter"}),
    "deleted": (replace(at(exists=False), running=True), {"vrrp-script-deleted"}),
    "not executable": (at(runs=False), {"vrrp-script-permission"}),
    "tracked, not defined": (own("vrrp_script evenkeel_control", "vrrp_script other"), {"vrrp-script-unknown", "vrrp-untracked"}),
    "defined, not tracked": (own("        evenkeel_control\n", ""), {"vrrp-untracked"}),
    "no security": (own("enable_script_security", ""), {"vrrp-security"}),
    "user sees no pins": (own("script_user root", "script_user nobody"), {"vrrp-pins"}),
    "no init_fail": (both("init_fail", ""), {"vrrp-init-fail"}),
    "dataplane weight 0": (both("weight -60", "weight 0"), {"vrrp-weight-0", "vrrp-weights"}),
    "no control weight": (both("    weight -5 ", "    # "), {"vrrp-weight-0"}),
    "dataplane below the gap": (both("weight -60", "weight -20"), {"vrrp-weights"}),
    "dataplane just the gap": (both("weight -60", "weight -30"), {"vrrp-weights"}),
    "control above the gap": (both("weight -5 ", "weight -40 "), {"vrrp-weights"}),
    "control just the gap": (both("weight -5 ", "weight -30 "), {"vrrp-weights"}),
    "control over dataplane": (both("weight -5 ", "weight -70 "), {"vrrp-weights"}),
    "cut off": (both("weight -60", "weight -160"), {"vrrp-range", "vrrp-both"}),
    "other weights on the peer": (own("weight -60", "weight -120"), {"vrrp-both"}),
    "equal priorities": (own("priority 150", "priority 120"), {"vrrp-equal"}),
    "no such router": (own("virtual_router_id 51", "virtual_router_id 52"), {"vrrp-peer"}),
    "owner": (own("priority 150", "priority 255"), {"vrrp-owner", "vrrp-range", "vrrp-weights"}),
    "sync group": (own("vrrp_instance edge", "vrrp_sync_group all {\n group {\n  edge\n }\n}\nvrrp_instance edge"), {"vrrp-group"}),
    "include of nothing": (replace(WELL, absent=("k:1: include x",)), {"vrrp-include"}),
    "for some nodes": (replace(WELL, conditional=("k:1",)), {"vrrp-conditional"}),
}  # fmt: skip


@pytest.mark.parametrize(("found", "expected"), FAULTS.values(), ids=FAULTS)
def test_what_is_wrong_is_found_and_nothing_else(found: Keepalived, expected: set[str]) -> None:
    assert names(found) == expected
    for one in examined(found):
        assert one.mend
        assert one.what


def test_an_interpreter_of_windows_is_shown_as_it_is_and_mended() -> None:
    found, *_ = examined(at(interpreter="/bin/sh\r", interpreter_runs=False))
    assert r"wants '/bin/sh\r'," in found.what
    assert found.mend == f"sed -i 's/\\r$//' {PATH}"


def test_a_script_that_runs_as_another_user_may_lie_where_others_write() -> None:
    found = own("script_user root", "script_user nobody", pins_are_roots=False)
    open_ = replace(found, executables={PATH: Executable(exposed="/usr")})
    assert names(open_) == set(), "keepalived runs it: measured with 2.2.7"


def test_peers_find_each_other_by_number_and_family() -> None:
    """Of the IPv6 instance alone: the other node's IPv4 instance has the same number."""
    six = TWO.rpartition("vrrp_instance edge6")
    for lacking in (six[0], TWO.partition("vrrp_instance edge ")[0] + six[1] + six[2]):
        assert names(replace(WELL, peers=(node(lacking, "lb2.conf"),))) == {"vrrp-peer"}


def test_one_file_alone_is_judged_as_far_as_it_goes() -> None:
    assert names(replace(WELL, peers=())) == set()
    assert names(replace(both("weight -5 ", "weight -70 "), peers=())) == {"vrrp-weights"}


def test_nat_behind_a_local_address_needs_accept_local() -> None:
    config = configuration.load((EXAMPLE / "lb.yaml").read_text())
    outs = {ip_address("10.1.2.101"): "lan"}
    closed = replace(WELL, forged=frozenset({"lan", "wan"}))
    (found,) = forged(config, closed, outs)
    assert (found.name, found.about) == ("accept-local", "lan")
    assert list(forged(config, WELL, outs)) == []
    assert list(forged(None, closed, outs)) == []
    routed = replace(closed, own=node(ONE.replace("192.0.2.10/32", "192.0.2.99/32")))
    assert list(forged(config, routed, outs)) == [], (
        "the IPv6 address, which is held, is never forged"
    )
    assert list(forged(config, closed, {ip_address("fd01:2::101"): "lan"})) == []
    vlan = replace(closed, forged=frozenset({"lan.7"}))
    (found,) = forged(config, vlan, {ip_address("10.1.2.101"): "lan.7"})
    assert found.mend == "sysctl -w net.ipv4.conf.lan/7.accept_local=1"


def test_addresses_are_the_same_however_they_are_written() -> None:
    made = node(ONE.replace("192.0.2.10/32", "2001:DB8:0::10/64"))
    assert made.instances[0].addresses[0] == "2001:db8::10"
