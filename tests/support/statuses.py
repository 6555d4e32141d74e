"""One status with something of everything, made by the builder from facts as they could be read."""

import json
from array import array
from dataclasses import replace

from bpf import abi
from bpf.link import Attachment, Mode
from reconciler import config as configuration
from reconciler import ids
from reconciler.admission import Blocked, Why
from reconciler.agreement import Identity, Peer
from reconciler.conditions import Condition, Observed, Trouble, follow, judge
from reconciler.dataplane import State
from reconciler.facts import (
    Attempt,
    Checked,
    Checker,
    Daemon,
    Facts,
    Moment,
    Past,
    Probes,
    Program,
    Suspend,
)
from reconciler.ledger import Account, Ledger
from reconciler.overrides import Forced, Override
from reconciler.parts import PoolKey, parts_of
from reconciler.rates import Count, Reading, Tally
from reconciler.roster import Roster
from reconciler.stating import build
from reconciler.table import Fill
from reconciler.vrrp import Role, Vrrp
from reconciler.vrrp import State as RoleState

NOW = 1_800_000_000.0
EVIL = '<b>bold</b> & "quoted"'
CONFIG = """\
apiVersion: evenkeel/v1
checks:
  alive: {type: tcp, every: 2s, timeout: 1s, rise: 2, fall: 3}
pools:
  web:
    check: alive
    backends:
      web1: {address: 10.1.2.101, port: 8080}
      web2: {address: 10.1.2.102, port: 8080}
      web3: {address: 10.1.2.103, port: 8080, state: drain, reason: kernel upgrade}
services:
  www: {addresses: [192.0.2.10], ports: [80/tcp], pools: [web], forward: nat}
"""
WEB1, WEB2, WEB3 = (ids.make(at, 1) for at in (1, 2, 3))
SERVICE, POOL = ids.make(1, 1), ids.make(1, 1)


def facts() -> Facts:
    """web1 is forced down, web2 up, web3 drains; the newest file was rejected."""
    config = configuration.load(CONFIG)
    part = next(parts_of(config.services["www"]))
    live = {1: 3, 2: 5, 3: 2}
    overrides = (Override("web", "web1", Forced.DOWN, "disk is replaced", EVIL, NOW, NOW + 1800),)
    return Facts(
        instance="edge",
        now=NOW,
        tick=100,
        state=State(
            backends={
                1: backend(WEB1, abi.BackendFlag.FORCED_DOWN),
                2: backend(WEB2),
                3: backend(WEB3, abi.BackendFlag.NO_NEW, until=110),
            },
            tables={1: array("I", [WEB1, WEB2, WEB2])},
            services={1: abi.Service(id=SERVICE, pool_count=1)},
            pools={1: abi.Pool(id=POOL, size=3)},
        ),
        config=config,
        roster=Roster(
            services={SERVICE: part},
            pools={POOL: PoolKey("web", Fill.CONSISTENT, 4)},
            backends={("web", "web1"): WEB1, ("web", "web2"): WEB2, ("web", "web3"): WEB3},
        ),
        health={
            1: abi.Health(id=WEB1, state=abi.HealthState.DOWN, ramp=255),
            2: abi.Health(id=WEB2, state=abi.HealthState.UP, ramp=255),
            3: abi.Health(id=WEB3, state=abi.HealthState.UP, ramp=255),
        },
        checked={
            WEB1: Checked(
                "alive", Moment(NOW - 90), "connect-timeout", "no answer within 1 s", 1000.0,
                Probes(900, 5, 1, 3, {"refused": 2, "connect-timeout": 3, "own-trouble": 1}),
            ),
            WEB2: Checked("alive", Moment(NOW - 9000), "connected", "", 0.8),
        },
        checker=Checker(Moment(NOW - 2), 2000, 1, 1, 4, 12.5),
        reading=reading(at=10, scale=3, live=live),
        earlier=reading(at=5, scale=1, live=live),
        services=Ledger({1: Account("www/ipv4")}, {"old": Count(packets=9)}),
        backends=Ledger(
            {i: Account(f"web/web{i}") for i in (1, 2, 3)}, {"web/web1": Count(100, 1000, 10, 0, 0)}
        ),
        attached=(Attachment("eth0", 2, Mode.NATIVE, ""), Attachment("eth1", 3, Mode.GENERIC, "virtio")),
        programs=(
            Program(41, "ba" * 8, "0.2.0", "ab" * 8, Moment(NOW - 60)),
            Program(40, "ab" * 8, "0.1.0", "ba" * 8, Moment(NOW - 3600)),
        ),
        meta=abi.Meta(abi=1, generation=7, applied_at=int(NOW) - 60, digest=(7,) * 32, commit=b"c0ffee"),
        daemon=Daemon(42, "0.1.0", Moment(NOW - 3600), {"applied": 7, "unchanged": 300}, 1.5, 99),
        attempt=Attempt(
            "lb.yaml", 8, "08" * 32, "beef", f'commit beef "{EVIL}"', Moment(NOW), "rejected", "line 3"
        ),
        conditions=conditions(),
        overrides=overrides,
        refused=("3 of 4 backends would be removed: refused",),
        blocked=(Blocked("shop", Why.NO_ROOM, "12 more backends do not fit"),),
        drift=("backends entry 2: different",),
        suspends=(Suspend("router is replaced", "alice", Moment(NOW), Moment(NOW + 60)),),
        vrrp=Vrrp(running=True, instances=(Role("edge", RoleState.BACKUP, 145, NOW - 30),)),
        peers=(PEER,),
        clock=CLOCK,
        history=(Past(7, "07" * 32, "c0ffee", Moment(NOW - 60), "applied"),),
    )  # fmt: skip


CLOCK = 5000.0
PEER = Peer(
    "lb2", "http://10.1.9.2:9160", 60, CLOCK - 900, answered=CLOCK - 2, heard=NOW - 2,
    identity=Identity("08" * 32, "beef"), differences=("commit c0ffee here, beef there",), differing_since=CLOCK - 75,
)  # fmt: skip


def backend(number: int, flags: int = 0, until: int = 0) -> abi.Backend:
    return abi.Backend(id=number, ifindex=2, flags=flags, until=until, family=4)


def reading(at: float, scale: int, live: dict[int, int]) -> Reading:
    each = Count(10 * scale, 1000 * scale, scale, 8 * scale, 800 * scale)
    tallies = tuple(Tally(scale * verdict, 100 * scale * verdict) for verdict in abi.Verdict)
    return Reading(
        at=at,
        services={1: each},
        backends={1: each, 2: each},
        live=live,
        cpus=(tallies, tallies),
        latency=(0, 0, 1 * scale, 2 * scale, *[0] * 28),
    )


def conditions() -> tuple[Condition, ...]:
    observed = Observed(
        now=NOW,
        converged=True,
        rejected=Trouble("Rejected", f"lb.yaml:3: {EVIL}"),
        interfaces=("eth0", "eth1"),
        attached=("eth0", "eth1"),
        checked=True,
        reported_at=NOW - 1,
        overrides=("web/web1 down: disk is replaced",),
    )
    return follow((), judge(observed), NOW - 30)


def example() -> str:
    return json.dumps(build(facts()).document())


def without_readings() -> Facts:
    return replace(facts(), reading=Reading(), earlier=Reading())
