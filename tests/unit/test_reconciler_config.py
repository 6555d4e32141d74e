"""lb.yaml: what it means, and what is said about what is wrong with it."""

import json
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from reconciler import config, node
from reconciler.model import (
    AdminState,
    CheckType,
    Drain,
    Forward,
    HashOn,
    Method,
    Port,
    Proto,
    Then,
)
from reconciler.parts import node_problems
from reconciler.problems import Rejected

FULL = """\
apiVersion: evenkeel/v1
defaults:
  forward: dsr
  balance: {hash: source}
  idle: {tcp: 1h}
  drain: {grace: 1m}
checks:
  alive: {type: http, path: /up, host: www, expect: [200-204, 401], every: 500ms, timeout: 100ms, fall: 5}
  open: {type: tcp, port: 9000}
pools:
  web:
    check: alive
    initial: up
    drain: {then: keep}
    backends:
      web1: {address: 10.1.2.101, port: 8080}
      web2: {address: "2001:db8:2::2", port: 8080, weight: 50, state: drain, reason: new kernel}
  any: {check: open, backends: {a: {address: 10.1.2.250}}}
services:
  www:
    addresses: [192.0.2.10, "2001:db8::10"]
    ports: [80/tcp, "*/udp"]
    pools: [web, any]
    balance: {method: maglev}
    panic: 20%
    recover: 45%
    gate: 100
    echo: true
    fail: closed
    down-flows: keep
    flows: off
    idle: {udp: 2m}
guardrails: {removed-services: 10%, allow-empty: true}
...
"""

PLAIN = """\
apiVersion: evenkeel/v1
pools:
  web: {backends: {web1: {address: 10.1.2.101, port: 8080}}}
services:
  www: {addresses: [192.0.2.10], ports: [80/tcp], pools: [web]}
"""


def errors(text: str) -> str:
    with pytest.raises(Rejected) as caught:
        config.load(text, "lb.yaml")
    return str(caught.value)


def test_everything_that_a_file_can_say() -> None:
    found = config.load(FULL)
    check = found.pools["web"].check
    assert check is not None
    assert (check.type, check.path, check.host) == (CheckType.HTTP, "/up", "www")
    assert (check.every, check.timeout, check.rise, check.fall) == (0.5, 0.1, 2, 5)
    assert check.expect == ((200, 204), (401, 401))
    drained = found.pools["web"].backends["web2"]
    assert (drained.state, drained.reason) == (AdminState.DRAIN, "new kernel")
    assert not drained.takes_new
    www = found.services["www"]
    assert www.addresses == (ip_address("192.0.2.10"), ip_address("2001:db8::10"))
    assert www.ports == (Port(80, Proto.TCP), Port(0, Proto.UDP))
    assert (www.forward, www.balance.method) == (Forward.DSR, Method.MAGLEV)
    assert www.balance.hash is HashOn.SOURCE, "what defaults say and the service does not"
    assert (www.tcp_idle, www.udp_idle) == (3600, 120)
    assert (www.panic, www.recover) == (20, 45)
    assert (www.gate, www.echo, www.flows) == (100, True, False)
    assert www.fail_closed
    assert www.keep_down
    assert www.origin.line == 20
    assert found.pools["web"].drain == Drain(60, Then.KEEP)
    assert found.pools["any"].drain == found.drain == Drain(60, Then.FLUSH)
    assert (found.guardrails.removed_services, found.guardrails.removed_backends) == (10, 34)


def test_every_schema_example_of_a_key_is_one() -> None:
    for name in ("config", "node"):
        schema = json.loads(Path(f"schemas/{name}.schema.json").read_text())
        for where, part in _parts(schema):
            assert "description" in part or "$ref" in part, where
            for example in part.get("examples", []):
                whole = {**part, "$defs": schema.get("$defs", {})}
                jsonschema.Draft202012Validator(whole).validate(example)
        assert not re.search(r'"(oneOf|anyOf)"', json.dumps(schema)), "one place, one cause"


def _parts(schema: Any, where: str = "") -> Any:
    for key, part in {**schema.get("properties", {}), **schema.get("$defs", {})}.items():
        yield f"{where}/{key}", part
        yield from _parts(part, f"{where}/{key}")


def test_an_error_shows_its_line_a_caret_and_a_hint() -> None:
    assert errors(PLAIN.replace("ports:", "port:")) == (
        "lb.yaml:5:34: error: services[www]: unknown key 'port'\n"
        "    5 |   www: {addresses: [192.0.2.10], port: [80/tcp], pools: [web]}\n"
        "      |                                  ^  hint: did you mean 'ports'?"
    )


def test_all_errors_in_one_run_in_the_order_of_the_file() -> None:
    text = PLAIN.replace("8080", "80800").replace("80/tcp", "80/tpc").replace("v1", "v2")
    lines = [line for line in errors(text).splitlines() if ": error: " in line]
    assert [line.split(": error: ")[0] for line in lines] == [
        "lb.yaml:1:13", "lb.yaml:3:54", "lb.yaml:5:42",
    ]  # fmt: skip


BROKEN = (
    PLAIN.replace("services:\n", "  bad: {backends: 7}\nservices:\n").replace(
        "pools: [web]}", "pools: [web, bad]}"
    )
    + "  old: {addresses: [192.0.2.77], port: [1/tcp], pools: [web]}\n"
)


def messages(text: str) -> list[str]:
    return [line for line in errors(text).splitlines() if ": error: " in line]


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("[web, bad]", "[wbe, bad]", "there is no pool 'wbe'"),
        ("{backends: {web1", "{check: alive, backends: {web1", "there is no check 'alive'"),
        ("80/tcp", "70000/tcp", "port 70000 is above 65535"),
        ("10.1.2.101", "192.0.2.10", "192.0.2.10 is an address of service 'www'"),
        ("8080", "8080, weight: 0", "all weights are 0"),
        ("[web, bad]", "[web, bad], direct: true, forward: dsr", "direct does not go with dsr"),
    ],
)
def test_what_a_sound_entry_means_is_judged_beside_others_that_are_none(
    right: str, wrong: str, message: str
) -> None:
    """And nothing is said that only follows from an entry with errors of its own."""
    before = messages(BROKEN)
    assert len(before) == 2, "a mapping is expected; unknown key: no pool is said to be missing"
    after = messages(BROKEN.replace(right, wrong, 1))
    assert len(after) == 3
    assert any(message in line for line in after)


def test_nothing_is_guessed_where_a_section_is_wrong() -> None:
    (only,) = messages(PLAIN.replace("pools:\n", "poolz:\n", 1).replace("[web]", "[wbe]"))
    assert "unknown key 'poolz'" in only
    wrong = PLAIN.replace("pools:\n", "defaults: {panic: 7}\npools:\n", 1).replace("[web]", "[wbe]")
    assert len(messages(wrong)) == 1
    (six,) = messages(BROKEN.replace("[192.0.2.10]", '["2001:db8::10"]'))[1:-1] or [""]
    assert not six, "what bad has for backends nobody knows"


WRONG = [
    ("evenkeel/v1", "evenkeel/v2", "format evenkeel/v2 is not this program's evenkeel/v1"),
    ("10.1.2.101", "10.1.2.300", "'10.1.2.300' is no IPv4 or IPv6 address"),
    ("10.1.2.101", "010.1.2.1", "'010.1.2.1' is no IPv4 or IPv6 address"),
    ("10.1.2.101", '"fe80::1%eth0"', "'fe80::1%eth0' is no IPv4 or IPv6 address"),
    ("10.1.2.101", "192.0.2.10", "192.0.2.10 is an address of service 'www'"),
    ("8080", "0", "0 is below 1"),
    ("8080", "8080.5", "expected a whole number, not 8080.5"),
    ("8080", '"8080"', "expected a whole number, not '8080'"),
    ("8080", "8080, weight: 0", "all weights are 0"),
    ("8080", "8080, weight: -1", "-1 is below 0"),
    ("8080", "8080, state: drian", "'drian' is none of up, drain, down"),
    ("80/tcp", "70000/tcp", "port 70000 is above 65535"),
    ("80/tcp", "80/sctp", "'80/sctp' is not a port and protocol"),
    ("80/tcp", "80/tcp, 80/tcp", "an item is there twice"),
    ("[80/tcp]", "[]", "the list is empty"),
    ("[web]", "[wbe]", "there is no pool 'wbe'"),
    ("[web]", "[web], forward: ipop", "'ipop' is none of nat"),
    ("[web]", "[web], panic: 120%", "'120%' is not a percentage"),
    ("[web]", "[web, web2], panic: 40%, recover: 30%", "recover: 30% is less than panic: 40%"),
    ("[web]", "[web, web2], recover: 30%", "recover does nothing without panic"),
    ("[web]", "[web], panic: 20%, recover: 30%", "recover does nothing with one pool"),
    ("[web]", "[web], flows: true", "true is none of on, off"),
    ("[web]", "[web], idle: {tcp: 5}", "expected text, not 5"),
    ("[web]", "[web], idle: {tcp: 5 minutes}", "'5 minutes' is not a duration"),
    ("[web]", "[web], idle: {udp: 9000h}", "services[www].idle.udp: 9000h is longer than 8760h"),
    ("[web]", "[web], flows: off, balance: {method: random}", "does not go with random"),
    ("[web]", "[web], flows: off, forward: fullnat", "flows: off does not go with fullnat"),
    ("[web]", "[web], direct: true, forward: dsr", "direct does not go with dsr"),
    ("[192.0.2.10]", '["2001:db8::10"]', "nat of 2001:db8::10 needs IPv6 backends"),
    ("[192.0.2.10]", "192.0.2.10", "expected a list, not '192.0.2.10'"),
    ("www: {", "-www: {", "'-www' is not a name"),
    ("services:", "service:", "unknown key 'service'"),
    ("pools:\n", "drain: 5m\npools:\n", "unknown key 'drain'"),
    ("{backends: {web1", "{drain: 5m, backends: {web1", "expected a mapping, not '5m'"),
    ("{backends: {web1", "{drain: {then: kepe}, backends: {web1", "'kepe' is none of flush, keep"),
    ("{backends: {web1", "{check: alive, backends: {web1", "there is no check 'alive'"),
    ("{backends: {web1", "{initial: up, backends: {web1", "'initial' needs a check"),
]


UNFIT = [
    ("0.0.0.0", "the unspecified address"),
    ("::", "the unspecified address"),
    ("224.0.0.5", "a multicast address"),
    ("ff02::1", "a multicast address"),
    ("255.255.255.255", "the broadcast address"),
    ("127.0.0.53", "a loopback address"),
    ("::1", "a loopback address"),
    ("fe80::1", "a link-local address"),
    ("::ffff:10.1.2.101", "an IPv4 address written as IPv6"),
]


@pytest.mark.parametrize(("address", "kind"), UNFIT)
def test_an_address_that_nothing_can_be_sent_to(address: str, kind: str) -> None:
    for where, good in (
        ("pools[web].backends[web1]", "10.1.2.101"),
        ("services[www]", "192.0.2.10"),
    ):
        said = errors(PLAIN.replace(good, f'"{address}"'))
        assert f"{where}: {ip_address(address)} is {kind}" in said
        assert "hint: " in said


@pytest.mark.parametrize("setting", ["nat-source", "tunnel-source"])
@pytest.mark.parametrize(("address", "kind"), UNFIT)
def test_an_address_that_a_node_cannot_send_from(address: str, kind: str, setting: str) -> None:
    version = ip_address(address).version
    with pytest.raises(Rejected) as caught:
        node.load(f'{BARE}{setting}: {{ipv{version}: "{address}"}}\n')
    assert f"{setting}.ipv{version}: {ip_address(address)} is {kind}" in str(caught.value)


@pytest.mark.parametrize("time", ["8761h", "1281029h", "525601m", "31536001s"])
@pytest.mark.parametrize(
    "said",
    [
        "defaults: {idle: {tcp: %s}}",
        "defaults: {drain: {grace: %s}}",
        "checks: {a: {type: tcp, every: %s}}",
        "checks: {a: {type: https, expiry-warning: %s}}",
    ],
)
def test_no_duration_is_longer_than_a_year(said: str, time: str) -> None:
    """What the maps hold of an idle time wraps after 146 years, and is short again."""
    assert f": {time} is longer than 8760h" in errors(f"{PLAIN}{said % time}\n")
    config.load(f"{PLAIN}{said % '8760h'}\n")


@pytest.mark.parametrize(("right", "wrong", "message"), WRONG)
def test_refuses(right: str, wrong: str, message: str) -> None:
    assert right in PLAIN
    assert message in errors(PLAIN.replace(right, wrong, 1))


def test_a_near_miss_is_not_also_reported_as_missing() -> None:
    assert errors(PLAIN.replace("addresses", "adresses")).count(": error: ") == 1


def test_two_services_cannot_have_one_frontend() -> None:
    text = PLAIN + "  api: {addresses: [192.0.2.10], ports: [443/tcp, 80/tcp], pools: [web]}\n"
    assert "services[api]: 192.0.2.10 80/tcp is taken" in errors(text)
    assert "by services[www] on line 5" in errors(text)


def test_a_check_needs_a_port_and_time() -> None:
    text = PLAIN.replace("pools:", "checks: {alive: {type: tcp, timeout: 3s, path: /}}\npools:", 1)
    text = text.replace("{backends", "{check: alive, backends").replace(", port: 8080", "")
    said = errors(text)
    assert "a timeout of 3 s outlasts every 2 s" in said
    assert "'path' is for checks of type http" in said
    assert "pools[web].backends[web1]: no port to check" in said


def test_more_than_twenty_errors_are_counted() -> None:
    text = PLAIN + "".join(f"  s{i}: {{}}\n" for i in range(10))
    assert "and 10 more errors" in errors(text)


def test_every_prefix_of_a_sealed_file_is_unsealed_or_refused() -> None:
    """Half of one is often valid YAML: only the end marker tells."""
    assert config.sealed(FULL)
    for end in range(len(FULL) - 1):
        assert not config.sealed(FULL[:end]), FULL[:end][-20:]


# ---- node.yaml

BARE = "apiVersion: evenkeel/v1\ninterfaces: {eth0: {}}\n"
NODE = """\
apiVersion: evenkeel/v1
interfaces: {wan: {mode: native}, lan: {}}
table-size: 4093
sizes: {flows4: 1024}
tunnel-source: {ipv4: 10.1.2.1, ipv6: "2001:db8::1"}
nat-source: {ipv4: 10.1.2.1}
nat-ports: 30000-30999
latency-sample: 64
vrrp: {fifo: /run/evenkeel/default/vrrp.fifo}
peers: {lb2: {status: "http://10.1.9.2:9160", patience: 5m}, lb3: {status: "http://[2001:db8::3]:9160"}}
"""


def test_everything_that_a_node_can_say() -> None:
    found = node.load(NODE)
    assert found.interfaces == {"wan": "native", "lan": "auto"}
    assert (found.table_size, found.sizes, found.nat_ports) == (
        4093,
        {"flows4": 1024},
        (30000, 30999),
    )
    assert found.tunnel_source == {4: ip_address("10.1.2.1"), 6: ip_address("2001:db8::1")}
    assert (found.latency_sample, found.gue_port, found.icmp_rate) == (64, 6080, 1000)
    assert found.vrrp_fifo == "/run/evenkeel/default/vrrp.fifo"
    assert [(one.name, one.status, one.patience) for one in found.peers] == [
        ("lb2", "http://10.1.9.2:9160", 300),
        ("lb3", "http://[2001:db8::3]:9160", 60),
    ]


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("4093", "4096", "4096 is no prime number"),
        ("64", "65", "65 is no power of two"),
        ("30000-30999", "30999-30000", "is no range of ports"),
        ("30000-30999", "30000-70000", "is no range of ports"),
        ("30000-30999", "1023-30999", "nat-ports: 1023-30999 begins below 1024"),
        ("ipv4: 10.1.2.1,", 'ipv4: "2001:db8::1",', "is no IPV4 address"),
        ("native", "offload", "'offload' is none of auto, native, generic"),
        ("{wan: {mode: native}, lan: {}}", "{}", "there must be at least one"),
        ("fifo: /run", "fifo: run", "is not an absolute path"),
        (
            "http://10.1.9.2:9160",
            "10.1.9.2:9160",
            "peers[lb2].status: '10.1.9.2:9160' is not where",
        ),
        ("http://10.1.9.2:9160", "https://10.1.9.2:9160", "is not where a status page is"),
        ("http://10.1.9.2:9160", "http://10.1.9.2:70000", "is not where a status page is"),
        ("patience: 5m", "patience: 5", "patience"),
        ("wan:", "an-interface-name-too-long:", "is not an interface name"),
    ],
)
def test_refuses_a_node(right: str, wrong: str, message: str) -> None:
    with pytest.raises(Rejected) as caught:
        node.load(NODE.replace(right, wrong, 1))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("frontends", 1 << 20),
        ("services", 1 << 20),
        ("pools", 1 << 20),
        ("backends", 1 << 20),
        ("hops", 1 << 16),
        ("flows4", 1 << 24),
    ],
)
def test_a_map_is_not_made_larger_than_is_of_use(name: str, most: int) -> None:
    assert node.load(f"{BARE}sizes: {{{name}: {most}}}\n").sizes == {name: most}
    with pytest.raises(Rejected) as caught:
        node.load(f"{BARE}sizes: {{{name}: {most + 1}}}\n")
    assert f"sizes.{name}: {most + 1} is above {most}" in str(caught.value)


@pytest.mark.parametrize(
    ("forward", "setting"), [("fullnat", "nat-source"), ("ipip", "tunnel-source")]
)
def test_a_node_must_have_the_source_that_a_service_needs(forward: str, setting: str) -> None:
    found = config.load(PLAIN.replace("[web]}", f"[web], forward: {forward}}}"))
    bare = node.load(BARE)
    (problem,) = node_problems(found, bare)
    assert problem.message == f"services[www]: {forward} needs the node's {setting} of IPv4"
    assert not node_problems(found, node.load(NODE))
