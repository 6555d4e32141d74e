"""Every option of a check, from lb.yaml through targets.json to what is probed: neither side knows less than the other."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from healthcheck.definition import Check
from healthcheck.targets import parse
from reconciler import checks
from reconciler.compile import Surroundings, compile_config
from reconciler.config import load
from reconciler.dataplane import State
from reconciler.problems import Rejected
from reconciler.published import targets
from tests.support.configs import NODE
from tests.support.fake_dataplane import ROOM

SCHEMA = json.loads(Path("schemas/targets.schema.json").read_text("utf-8"))

LB = """\
apiVersion: evenkeel/v1
checks:
  alive: {%s}
pools:
  web: {check: alive, backends: {web1: {address: 10.0.0.1, port: 80}}}
services:
  www: {addresses: [192.0.2.1], ports: [80/tcp], pools: [web]}
"""

ALL = "fast: 200ms, slow: 10s, slow-start: 1m, settle: 5, jitter: 10%, source: 10.9.9.9, interface: eth1, fwmark: 7"
HTTP = (
    "method: HEAD, path: /up, host: www, headers: {X-A: b}, expect: [200-204, 401], down-at-once: [503], "
    "expect-headers: {Server: nginx}, expect-body: ready, keep-alive: true"
)
HTTPS = (
    "server-name: www.example, verify: false, ca: /ca.pem, alpn: [http/1.1], expiry-warning: 24h"
)
VIA = "via: backend"  # the other one: test_via_service.py
LINE = 'send: "PING\\r\\n", receive: "+PONG"'
DNS = "query: www.example, record: AAAA, answer: '2001:db8::1'"


def published(options: str) -> dict[str, Any]:
    config = load(LB % options)
    desired = compile_config(config, NODE, State(), Surroundings(), ROOM)
    document = json.loads(targets(config, desired, "lab", Path("/map")))
    jsonschema.validate(document, SCHEMA)
    return document


def probed(options: str) -> Check:
    return parse(published(options)).backends[0].subject.check


KINDS = {
    "tcp": f"{LINE}, {VIA}",
    "udp": LINE,
    "http": HTTP,
    "https": f"{HTTP}, {HTTPS}",
    "dns": DNS,
    "icmp": "rise: 4",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_check_with_every_option_is_understood(kind: str) -> None:
    check = probed(f"type: {kind}, every: 1s, timeout: 500ms, {ALL}, {KINDS[kind]}")
    assert check.type == kind
    assert (check.pacing.fast, check.pacing.slow, check.pacing.jitter) == (0.2, 10, 0.1)
    assert (check.ramp, check.thresholds.settle, check.origin.mark) == (60, 5, 7)


def test_what_arrives_is_what_was_written() -> None:
    check = probed(f"type: https, {HTTP}, {HTTPS}")
    assert check.http.headers == (("X-A", "b"),)
    assert check.http.expected.status == ((200, 204), (401, 401))
    assert check.http.expected.out == ((503, 503),)
    assert check.http.expected.body == b"ready"
    assert (check.secure.name, check.secure.trust.verify) == ("www.example", False)
    assert probed(f"type: tcp, {LINE}").line.send == b"PING\r\n"
    assert probed(f"type: dns, {DNS}").question.answer == "2001:db8::1"


def test_every_option_is_tried_here() -> None:
    written = f"{ALL}, {HTTP}, {HTTPS}, {LINE}, {DNS}, {VIA}"
    assert [name for name in checks.OPTIONS if f"{name}:" not in written] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("type: tcp, path: /", "'path' is for checks of type http or https"),
        ("type: http, verify: false", "'verify' is for checks of type https"),
        ("type: icmp, port: 7", "echo requests have no port"),
        ("type: udp", "a udp check needs 'send'"),
        ("type: dns", "a dns check needs 'query'"),
        ("type: dns, query: a, answer: '::1'", "a record of type A cannot have the answer ::1"),
        ("type: tcp, source: eth0", "'eth0' is no IPv4 or IPv6 address"),
        ("type: tcp, every: 1s, fast: 2s", "fast 2 s is slower than every 1 s"),
        ('type: http, headers: {Host: "a\\r\\nb"}', "header"),
        ("type: http, expect-status: [200]", "expect-status"),
        ("type: tcp, jitter: 80%", "jitter"),
    ],
)
def test_what_no_check_would_use_is_refused(options: str, message: str) -> None:
    with pytest.raises(Rejected) as refused:
        load(LB % options)
    assert message in str(refused.value)
