"""A status in Prometheus' text format. Pure: counts nothing, remembers nothing.

Counters come from the maps, by the name of what they count, so that a restart of
the daemon does not set one back. Labels are names of the configuration, never ids.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping

from reconciler.facts import Checker
from reconciler.rates import Count, Tally
from reconciler.status import BackendStatus, Status
from reconciler.vrrp import State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
NS = 1e-9
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_COUNTED = {
    "packets": "Packets from clients.",
    "bytes": "Bytes of packets from clients.",
    "flows": "New flows.",
    "reply_packets": "Translated packets from backends.",
    "reply_bytes": "Bytes of translated packets from backends.",
}

Labels = Mapping[str, str] | str  # rendered once where many families have the same
Sample = tuple[Labels, float]


def render(
    status: Status, cpus: Iterable[Iterable[Tally]] = (), verdicts: Iterable[str] = ()
) -> str:
    """`cpus` are the verdicts' tallies of each CPU, in the order of `verdicts`."""
    names = list(verdicts)
    per_cpu = [
        ({"cpu": str(cpu), "verdict": name}, tally.packets)
        for cpu, tallies in enumerate(cpus)
        for name, tally in zip(names, tallies, strict=True)
        if tally.packets
    ]
    lines = [
        *_instance(status),
        *_verdicts(status),
        *_metric("cpu_verdict_packets_total", "Packets by CPU and verdict; zeros are left out.", per_cpu),
        *_latency(status.latency),
        *_services(status),
        *_pools(status),
        *_backends(status),
        *_checks(status),
        *_checker(status.checker),
        *_conditions(status),
        *_operators(status),
        *_vrrp(status),
        *_peers(status),
        *_daemon(status),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _metric(name: str, what: str, samples: Iterable[Sample]) -> Iterator[str]:
    """One family: its comments, then its samples; nothing without any."""
    found = [f"evenkeel_{name}{_labels(labels)} {_number(value)}" for labels, value in samples]
    if found:
        yield f"# HELP evenkeel_{name} {what}"
        yield f"# TYPE evenkeel_{name} {'counter' if name.endswith('_total') else 'gauge'}"
        yield from found


def _labels(labels: Labels) -> str:
    if not labels or isinstance(labels, str):
        return str(labels or "")
    return "{" + ",".join(f'{k}="{v.translate(_ESCAPES)}"' for k, v in labels.items()) + "}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


# ---- what is forwarded


def _instance(status: Status) -> Iterator[str]:
    applied = status.applied
    content = {"commit": applied.commit, "digest": applied.digest} if applied else {}
    yield from _metric(
        "generation", "Configurations accepted so far.", [({}, applied.generation if applied else 0)]
    )  # fmt: skip
    if applied:
        yield from _metric(
            "applied_timestamp_seconds", "When the applied configuration was.", [({}, applied.at)]
        )  # fmt: skip
        yield from _metric("config_info", "What is applied, as labels.", [(content, 1)])
    yield from _metric(
        "attached",
        "Interfaces that the program is attached to.",
        [({"interface": one.interface, "mode": one.mode}, 1) for one in status.attached],
    )
    yield from _program(status)
    yield from _metric("live_flows", "Live flows, as last recounted.", [({}, status.live_flows)])


def _program(status: Status) -> Iterator[str]:
    program = status.program
    if program is None:
        return
    labels = {"version": program.version, "object": program.object, "tag": program.tag}
    yield from _metric("program_info", "The program that runs, as labels.", [(labels, 1)])
    if program.since:
        yield from _metric(
            "program_since_timestamp_seconds", "When it took over.", [({}, program.since)]
        )


def _verdicts(status: Status) -> Iterator[str]:
    for unit in ("packets", "bytes"):
        yield from _metric(
            f"verdict_{unit}_total",
            f"{unit.capitalize()} by why they went where they went.",
            [({"verdict": one.verdict}, getattr(one, unit)) for one in status.verdicts],
        )


def _latency(buckets: tuple[int, ...]) -> Iterator[str]:
    """Bucket b holds what took less than 2^b ns; the last one also whatever took longer."""
    if not buckets:
        return
    name = "evenkeel_processing_seconds"
    yield f"# HELP {name} Time in the program of the packets measured; its sum is estimated from the buckets."
    yield f"# TYPE {name} histogram"
    below = 0
    for b, count in enumerate(buckets[:-1]):
        below += count
        yield f'{name}_bucket{{le="{2**b * NS:.9g}"}} {below}'
    yield f'{name}_bucket{{le="+Inf"}} {sum(buckets)}'
    yield f"{name}_sum {sum(c * 0.75 * 2**b for b, c in enumerate(buckets)) * NS:.9g}"
    yield f"{name}_count {sum(buckets)}"


def _services(status: Status) -> Iterator[str]:
    yield from _counted("service", [({"service": s.name}, s.counters) for s in status.services])
    yield from _metric(
        "service_serving",
        "The pool that new flows get: 1; 0.5 when none of its backends is usable (fail open).",
        [
            ({"service": one.name, "pool": pool}, _serving(pool == one.serving, one.fail_open))
            for one in status.services
            for pool in one.pools
        ],
    )


def _serving(chosen: bool, fail_open: bool) -> float:
    return (0.5 if fail_open else 1) if chosen else 0


def _counted(kind: str, counted: list[tuple[Labels, Count]]) -> Iterator[str]:
    for unit, what in _COUNTED.items():
        value = operator.attrgetter(unit)
        samples = [(labels, value(count)) for labels, count in counted]
        yield from _metric(f"{kind}_{unit}_total", what, samples)


def _pools(status: Status) -> Iterator[str]:
    yield from _metric(
        "pool_usable_backends",
        "Backends that get new flows and are usable.",
        [({"pool": pool.name}, pool.usable) for pool in status.pools],
    )
    yield from _metric(
        "table_info",
        "Digest of a pool's table: equal on all nodes with the same configuration.",
        [
            ({"table": table.name, "digest": table.digest}, 1)
            for pool in status.pools
            for table in pool.tables
        ],
    )


_OF_BACKENDS: list[tuple[str, str, Callable[[BackendStatus], float | None]]] = [
    ("backend_usable", "Whether the backend may get flows: health, overrides and state together.",
     lambda one: one.usable),
    ("backend_healthy", "What its check says: 1 up, 0 down; absent while unknown.",
     lambda one: {"up": 1, "down": 0}.get(one.health.state)),
    ("backend_weight", "As configured.", lambda one: one.weight),
    ("backend_table_share", "Share of its pool's slots.", lambda one: one.share),
    ("backend_live_flows", "Live flows, as last recounted.", lambda one: one.live_flows),
    ("backend_check_seconds", "How long the last check took.",
     lambda one: None if one.health.latency_ms is None else one.health.latency_ms / 1000),
]  # fmt: skip


def _backends(status: Status) -> Iterator[str]:
    backends: list[tuple[Labels, BackendStatus]] = [
        (_labels({"pool": pool.name, "backend": one.name}), one)
        for pool in status.pools
        for one in pool.backends
    ]
    yield from _counted("backend", [(labels, one.counters) for labels, one in backends])
    for name, what, value in _OF_BACKENDS:
        samples = ((labels, value(one)) for labels, one in backends)
        yield from _metric(name, what, [(labels, n) for labels, n in samples if n is not None])


# ---- what healthcheck found


def _checks(status: Status) -> Iterator[str]:
    """Of backends that were probed. Counters are healthcheck's, which keeps them across its restarts."""
    probed = [
        ({"pool": pool.name, "backend": one.name}, one.health)
        for pool in status.pools
        for one in pool.backends
        if one.health.check
    ]
    yield from _metric(
        "backend_checks_total",
        "Results: passed, failed, or neutral when the trouble was the checker's own.",
        [
            ({**labels, "result": result}, getattr(health.probes, result))
            for labels, health in probed
            for result in ("passed", "failed", "neutral")
        ],
    )
    yield from _metric(
        "backend_check_reasons_total",
        "Results that did not pass, by why.",
        [
            ({**labels, "reason": reason}, count)
            for labels, health in probed
            for reason, count in sorted(health.probes.reasons.items())
        ],
    )
    yield from _metric(
        "backend_health_changes_total",
        "Verdicts that became another, the first included.",
        [(labels, health.probes.flips) for labels, health in probed],
    )
    yield from _metric(
        "backend_health_since_timestamp_seconds",
        "Since when the verdict is what it is.",
        [(labels, health.since) for labels, health in probed if health.since is not None],
    )


_OF_THE_CHECKER = (
    ("probes_total", "Results of any kind.", "probes"),
    ("own_trouble_total", "Results that say nothing about a backend: the trouble was its own.", "own_trouble"),
    ("stalls_total", "Times that it did not run for more than a quarter of a second.", "stalls"),
    ("late_probes_total", "Probes that began more than an interval after they were due.", "late"),
)  # fmt: skip


def _checker(checker: Checker | None) -> Iterator[str]:
    if checker is None:
        return
    for name, what, field in _OF_THE_CHECKER:
        yield from _metric(f"checker_{name}", what, [({}, getattr(checker, field))])
    yield from _metric(
        "checker_lateness_seconds",
        "The longest that a probe began after it was due, since the report before.",
        [({}, checker.lateness_ms / 1000)],
    )
    yield from _metric(
        "checker_report_timestamp_seconds", "When it last reported.", [({}, checker.at)]
    )


# ---- what is said about it


def _conditions(status: Status) -> Iterator[str]:
    yield from _metric(
        "condition",
        "Whether it holds: 1, 0, or -1 when unknown.",
        [({"type": c.type}, _HOLDS[c.status]) for c in status.conditions],
    )
    yield from _metric(
        "condition_since_timestamp_seconds",
        "Since when.",
        [({"type": c.type}, c.since) for c in status.conditions],
    )


_HOLDS = {"True": 1, "False": 0, "Unknown": -1}


def _operators(status: Status) -> Iterator[str]:
    yield from _metric(
        "drift",
        "Map entries that the last pass found changed by others.",
        [({}, len(status.drift))],
    )
    yield from _metric(
        "refused_removals", "Guardrails that hold removals back.", [({}, len(status.refused))]
    )
    yield from _metric(
        "blocked_services", "Services that are not what the file says.", [({}, len(status.blocked))]
    )
    yield from _metric(
        "suspended", "Whether the source is not followed.", [({}, bool(status.suspends))]
    )
    yield from _metric(
        "override_until_timestamp_seconds",
        "When a forced backend is let go.",
        [({"backend": one.backend, "state": one.state}, one.until) for one in status.overrides],
    )
    yield from _metric(
        "drain_flows",
        "Flows left on a draining backend.",
        [({"backend": one.backend}, one.flows_left) for one in status.drains],
    )
    yield from _metric(
        "drain_seconds",
        "Time left until these are flushed.",
        [
            ({"backend": one.backend}, one.seconds_left)
            for one in status.drains
            if one.seconds_left is not None
        ],
    )


def _vrrp(status: Status) -> Iterator[str]:
    if status.vrrp is None:
        return
    yield from _metric(
        "vrrp_running", "Whether keepalived has the FIFO open.", [({}, status.vrrp.running)]
    )
    yield from _metric(
        "vrrp_role",
        "The role that keepalived gave this node: 1 for the one it has.",
        [
            ({"vrrp": one.name, "role": state.value}, state == one.role)
            for one in status.vrrp.instances
            for state in State
        ],
    )
    yield from _metric(
        "vrrp_role_since_timestamp_seconds",
        "Since when.",
        [({"vrrp": one.name}, one.since) for one in status.vrrp.instances],
    )
    yield from _metric(
        "vrrp_priority",
        "As keepalived last said.",
        [({"vrrp": i.name}, i.priority) for i in status.vrrp.instances if i.priority is not None],
    )


def _peers(status: Status) -> Iterator[str]:
    yield from _metric(
        "peer_answers",
        "Whether the peer answered when it was last asked.",
        [({"peer": one.name}, one.answers) for one in status.peers],
    )
    yield from _metric(
        "peer_agrees",
        "Whether the peer forwards the same, as it last said; absent if it never did.",
        [({"peer": one.name}, one.agrees) for one in status.peers if one.agrees is not None],
    )


def _daemon(status: Status) -> Iterator[str]:
    daemon = status.daemon
    if daemon is None:
        return
    yield from _metric("build_info", "The version, as a label.", [({"version": daemon.version}, 1)])
    yield from _metric("start_time_seconds", "When the daemon started.", [({}, daemon.started)])
    yield from _metric(
        "reconcile_total",
        "Passes since the start, by what became of them.",
        [({"result": result}, count) for result, count in sorted(daemon.passes.items())],
    )
    yield from _metric(
        "reconcile_seconds_total", "Time spent in passes since the start.", [({}, daemon.pass_seconds)]
    )  # fmt: skip
    yield from _metric(
        "map_writes_total", "Entries written since the start.", [({}, daemon.map_writes)]
    )  # fmt: skip
    yield from _metric(
        "drift_found_total", "Entries that others changed, since the start.", [({}, daemon.drift_found)]
    )  # fmt: skip
