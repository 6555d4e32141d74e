"""The real daemon with a file that does not fit: the rest of it is applied, and everybody is told."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.balancer import CONFIG, NODE, Balancer
from tests.support.wait import until

SMALL = NODE.replace("sizes: {", "sizes: {backends: 16, ")
CROWD = ", ".join(f"b{i}: {{address: 10.1.2.{120 + i}, port: 80}}" for i in range(17))
ONLY_WEB2 = CONFIG.replace("address: 10.1.2.101,", "weight: 0, address: 10.1.2.101,")
TOO_MUCH = ONLY_WEB2.replace(
    "pools:\n", f"pools:\n  crowd: {{backends: {{{CROWD}}}}}\n", 1
).replace(
    "services:\n",
    "services:\n  crowd: {addresses: [192.0.2.99], ports: [80/tcp], pools: [crowd]}\n",
    1,
)


@pytest.fixture
def balancer() -> Iterator[Balancer]:
    with Balancer() as made:
        made.node.write_text(SMALL)
        yield made


def condition(balancer: Balancer, type_: str) -> dict[str, Any]:
    return next(found for found in balancer.status()["conditions"] if found["type"] == type_)


def last(balancer: Balancer) -> dict[str, Any]:
    found = balancer.command("history", "--output", "json")
    generation: dict[str, Any] = json.loads(found.stdout)["generations"][0]
    return generation


def test_what_fits_is_applied_and_what_does_not_is_told_until_it_does(balancer: Balancer) -> None:
    balancer.start()
    assert balancer.answering() == {"web1", "web2"}
    balancer.config.write_text(TOO_MUCH)
    until(
        lambda: condition(balancer, "Ready")["reason"] == "PartiallyApplied", what="the condition"
    )
    assert balancer.answering() == {"web2"}, "the change of another service is applied"
    ready, sync = condition(balancer, "Ready"), condition(balancer, "InSync")
    assert (ready["status"], sync["status"], sync["reason"]) == (
        "True",
        "False",
        "PartiallyApplied",
    )
    assert "sizes.backends of at least 20 in node.yaml, which says 16" in ready["message"]
    assert condition(balancer, "ConfigValid")["status"] == "True", "the file as such is accepted"
    status = balancer.status()
    assert [(one["service"], one["reason"]) for one in status["blocked"]] == [("crowd", "NoRoom")]
    assert status["attempted"]["result"] == last(balancer)["result"] == "partly"
    assert "services[crowd]" in last(balancer)["note"]
    _a_dry_run_says_so(balancer)
    balancer.stop()
    balancer.start()  # ready: one service is no reason to stay away
    assert balancer.answering() == {"web2"}
    balancer.config.write_text(CONFIG)
    until(lambda: condition(balancer, "Ready")["reason"] == "Forwarding", what="all of it")
    assert balancer.answering() == {"web1", "web2"}
    assert balancer.status()["blocked"] == []


def test_what_only_a_blocked_service_has_can_be_taken_out(balancer: Balancer) -> None:
    """Its file is not the one that was offered last; its backends get connections all the same."""
    two = "old: {address: 10.1.2.140, port: 80}, other: {address: 10.1.2.141, port: 80}"
    before = TOO_MUCH.replace(CROWD, two)
    balancer.config.write_text(before)
    balancer.start()
    balancer.config.write_text(TOO_MUCH)
    until(lambda: balancer.status()["blocked"], what="the crowd does not fit")
    done = balancer.command("override", "crowd/old", "down", "--for", "1h", "--reason", "its disk")
    assert "crowd/old is forced down until" in done.stdout, done.stderr
    until(
        lambda: standing(balancer, "crowd") == {"old": False, "other": True},
        what="only other gets any",
    )


def standing(balancer: Balancer, pool: str) -> dict[str, bool]:
    pools = {one["name"]: one["backends"] for one in balancer.status()["pools"]}
    return {one["name"]: one["usable"] for one in pools[pool]}


def _a_dry_run_says_so(balancer: Balancer) -> None:
    files = ("--config", str(balancer.config), "--node", str(balancer.node))
    found = balancer.command("--dry-run", "--detailed-exitcode", *files)
    assert found.returncode == 4, found.stderr
    assert "Guard: services[crowd]: 17 more backends do not fit" in found.stdout
    assert "no changes" in found.stdout
