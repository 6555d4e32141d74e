"""Reading what the reconciler publishes: whole or not at all."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from healthcheck.health import Thresholds
from healthcheck.targets import TargetsError, parse, read, signature
from tests.support.health import backend, check, document, put

SCHEMA = json.loads(Path("schemas/targets.schema.json").read_text("utf-8"))

FULL = document(
    backend(1, 8080, check=check("http", path="/healthz", host="www", expect=[[200, 299]])),
    backend(0x00500002, 443, address="2001:db8::5", check=check(every=10)),
)

EVERYTHING: dict[str, Any] = {
    "settle": 10,
    "fast": 0.2,
    "slow": 5.0,
    "jitter": 0.1,
    "slow_start": 30.0,
    "source": "127.0.0.2",
    "interface": "lo",
    "fwmark": 7,
    "send": "PING\r\n",
    "receive": "+",
    "query": "www.example",
    "record": "A",
    "answer": "192.0.2.1",
    "method": "HEAD",
    "path": "/",
    "host": "www",
    "headers": {"X-Probe": "1"},
    "expect": [[200, 299]],
    "down_at_once": [],
    "expect_headers": {"Server": "x"},
    "expect_body": "ok",
    "keep_alive": True,
    "verify": True,
    "server_name": "www",
    "ca": "/etc/ca.pem",
    "alpn": ["http/1.1"],
    "expiry_warning": 86400,
}


def test_what_is_read() -> None:
    jsonschema.validate(FULL, SCHEMA)
    one, two = parse(FULL).backends
    assert (one.id, one.name, str(one.subject)) == (1, "web/web1", "127.0.0.1:8080")
    assert one.subject.check.http.expected.status == ((200, 299),)
    assert one.subject.check.thresholds == Thresholds(rise=2, fall=3)
    assert (two.id, str(two.subject)) == (0x00500002, "[2001:db8::5]:443")
    assert two.subject.check.pacing.every == 10.0


def test_checks_that_probe_alike_are_equal_whatever_they_are_called() -> None:
    alive, beat = (backend(n, 80, check=check(name=n_)) for n, n_ in ((1, "alive"), (2, "beat")))
    one, two = parse(document(alive, beat)).backends
    assert one.subject == two.subject
    other = parse(document(backend(check=check(fall=9)))).backends[0]
    assert other.subject != one.subject


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 0}, "backends[0]: id cannot be 0"),
        ({"id": True}, "backends[0]: id cannot be true"),
        ({"address": "web1.example"}, 'backends[0]: address cannot be "web1.example"'),
        ({"port": 70000}, "backends[0]: port cannot be 70000"),
        ({"port": "80"}, 'backends[0]: port cannot be "80"'),
        ({"weight": 3}, "backends[0]: weight: not known to this release"),
        ({"check": check("ping")}, 'backends[0].check: type cannot be "ping"'),
        ({"check": check(rise=0)}, "backends[0].check: rise cannot be 0"),
        ({"check": check(every=-1)}, "backends[0].check: every cannot be -1"),
        ({"check": check(timeout="1s")}, 'backends[0].check: timeout cannot be "1s"'),
        ({"check": check(weird="x")}, "backends[0].check: weird: not known to this release"),
        ({"check": check("http", path="x")}, 'backends[0].check: path cannot be "x"'),
        (
            {"check": check("http", host="a\r\nX: b")},
            'backends[0].check: host cannot be "a\\r\\nX: b"',
        ),
        ({"check": check("http", expect=[[300, 200]])}, "expect cannot be [[300, 200]]"),
        ({"check": []}, "backends[0]: check cannot be []"),
    ],
)
def test_what_does_not_fit_is_refused_and_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetsError) as refused:
        parse(document(backend(**change)))
    assert message in str(refused.value)


def test_a_missing_field_is_named() -> None:
    entry = backend()
    del entry["check"]["fall"]
    with pytest.raises(TargetsError, match=r"backends\[0\]\.check: fall is missing"):
        parse(document(entry))


def test_one_id_twice_is_refused() -> None:
    with pytest.raises(TargetsError, match="id 1 occurs more than once"):
        parse(document(backend(1), backend(1, 81)))


def test_a_newer_format_is_refused_and_a_newer_minor_one_read() -> None:
    with pytest.raises(TargetsError, match=r"this program reads 1\.x"):
        parse({**FULL, "format_version": "2.0"})
    assert parse({**FULL, "format_version": "1.7"}).instance == "lab"


def test_what_is_not_json_is_placed(tmp_path: Path) -> None:
    put(tmp_path / "targets.json", '{"format_version": ')
    with pytest.raises(TargetsError, match=r"targets\.json:1:20: not JSON"):
        read(tmp_path / "targets.json")


def test_a_file_put_in_place_has_another_signature(tmp_path: Path) -> None:
    path = tmp_path / "targets.json"
    assert signature(path) is None
    put(path, FULL)
    before = signature(path)
    assert signature(path) == before
    put(path, FULL)
    assert signature(path) != before


def test_what_only_http_knows_makes_no_difference_to_tcp() -> None:
    plain, adorned = backend(1), backend(2, check=check(path="/x", host="www", expect=[[200, 200]]))
    one, two = parse(document(plain, adorned)).backends
    assert one.subject == two.subject


def test_what_the_reconciler_publishes_is_understood() -> None:
    """The two sides of the file, one release: neither names what the other does not know."""
    known = set(SCHEMA["$defs"]["check"]["properties"])
    everything = check("http", **EVERYTHING)
    assert set(everything) == known
    jsonschema.validate(document(backend(check=everything)), SCHEMA)
    assert parse(document(backend(check=everything))).backends[0].subject.check.http.host == "www"
