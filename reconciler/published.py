"""What others are told: targets.json for healthcheck, and the meta entry for whoever asks.

Files are renamed into place, so that no reader sees half of one.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bpf import abi
from reconciler import ways
from reconciler.compile import Desired
from reconciler.dataplane import State
from reconciler.drain import NO_NEW
from reconciler.memo import Memo, Same
from reconciler.model import Backend, Check, CheckType, Config, Pool
from reconciler.ways import Way

FORMAT = "1.2"
Marked = Mapping[str, tuple[tuple[Way, int], ...]]  # by backend


def targets(
    config: Config,
    desired: Desired,
    instance: str,
    health_map: Path,
    memo: Memo | None = None,
    *,
    via: bool = True,
    retained: Iterable[str] = (),
) -> str:
    """What is to be probed, a line for each backend: see schemas/targets.schema.json.

    Not `via`: nothing can be probed by the way that clients take, for the time being.
    `retained` are lines of backends that the maps keep, and no configuration names.
    """
    memo = memo or Memo()
    found = (Same(config), Same(desired), instance, health_map, tuple(retained), memo, via)
    return memo.of(_text, "", *found)


def _text(
    same_config: Same[Config],
    same_desired: Same[Desired],
    instance: str,
    health_map: Path,
    retained: tuple[str, ...],
    memo: Memo,
    via: bool,
) -> str:
    config, desired = same_config.value, same_desired.value
    marked = memo.of(_marked, "", config, desired.marks, via)
    pools = [config.pools[name] for name in sorted({key.pool for key in desired.pools.values()})]
    probed = [
        memo.of(
            _probed, pool.name, pool, pool.check, _numbers(desired, pool), marked.get(pool.name, {})
        )
        for pool in pools
        if pool.check
    ]
    head = {"format_version": FORMAT, "instance": instance, "health_map": str(health_map)}
    lines = ",\n".join(lines for lines in (*probed, *retained) if lines)
    return f'{json.dumps(head)[:-1]}, "backends": [\n{lines}\n]}}\n'


def retained(path: Path, held: State, desired: State, *, via: bool = True) -> list[str]:
    """What was said of backends that stay although the file has them no more.

    A guardrail keeps them, or a service that can only be left as it is: they are still
    chosen, so their health must go on counting. Whoever is not named loses it.
    """
    gone = held.backends.keys() - desired.backends.keys()
    numbers = {held.backends[at].id for at in gone if not held.backends[at].flags & NO_NEW}
    if not numbers:
        return []
    try:
        said = json.loads(path.read_text())["backends"]
        return [_again(one, held, via=via) for one in said if one["id"] in numbers]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # there was none, or none of ours


def _again(target: dict[str, Any], held: State, *, via: bool) -> str:
    """With the marks that still mean something."""
    for way in target.get("via", ()):
        way["mark"] = way["mark"] if via and way["mark"] in held.probes else 0
    return json.dumps(target)


def _numbers(desired: Desired, pool: Pool) -> tuple[tuple[str, int], ...]:
    """Names and ids of those that the maps have."""
    known = desired.backends
    return tuple((name, known[pool.name, name]) for name in sorted(pool.backends))


def _marked(config: Config, marks: Mapping[ways.Name, int], via: bool) -> dict[str, Marked]:
    """The ways of each backend with their marks, by pool; 0 where they are not prepared."""
    found: dict[str, dict[str, tuple[tuple[Way, int], ...]]] = {}
    for (pool, name), several in ways.all_ways(config).items():
        address = config.pools[pool].backends[name].address
        found.setdefault(pool, {})[name] = tuple(
            (way, marks[ways.name_of(address, way)] if via else 0) for way in several
        )
    return dict(found)


def _probed(pool: Pool, check: Check, numbers: Iterable[tuple[str, int]], marked: Marked) -> str:
    entries = (
        _target(number, pool, pool.backends[name], check) | _via(marked.get(name, ()))
        for name, number in numbers
    )
    return ",\n".join(map(json.dumps, entries))


def _target(number: int, pool: Pool, backend: Backend, check: Check) -> dict[str, Any]:
    portless = check.type is CheckType.ICMP
    target: dict[str, Any] = {
        "id": number,
        "name": f"{pool.name}/{backend.name}",
        "address": str(backend.address),
        "port": 0 if portless else check.port or backend.port,
        "check": _check(check),
    }
    return target | {"assumed_up": True} if pool.initial_up else target


def _via(marked: Iterable[tuple[Way, int]]) -> dict[str, Any]:
    told = [
        {"service": way.service, "address": str(way.address), "port": way.port, "mark": mark}
        for way, mark in marked
    ]
    return {"port": told[0]["port"], "via": told} if told else {}


def _check(check: Check) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": check.name,
        "type": check.type.value,
        "every": check.every,
        "timeout": check.timeout,
        "rise": check.rise,
        "fall": check.fall,
    }
    if check.type in (CheckType.HTTP, CheckType.HTTPS):
        told["path"] = check.path
        told["expect"] = [list(span) for span in check.expect]
    if check.host:
        told["host"] = check.host
    if check.type is CheckType.DNS:
        told["record"] = "A"
    return told | dict(check.options)


def publish(path: Path, text: str) -> bool:
    """Put the text there in one step; False when it was there already."""
    try:
        if path.read_text() == text:
            return False
    except FileNotFoundError:
        pass
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text)
        beside.rename(path)
    finally:
        beside.unlink(missing_ok=True)
    return True


def publish_json(path: Path, document: Mapping[str, Any]) -> bool:
    """On one line: only so is it written by compiled code, in a tenth of the time."""
    return publish(path, json.dumps(document) + "\n")


def next_meta(
    before: abi.Meta | None,
    digest: bytes,
    commit: str,
    now: int,
    kept: tuple[int, bytes] = (0, b""),
) -> abi.Meta:
    """The entry for a configuration: a generation further when it is another one.

    `kept` is the newest generation on disk: after a reboot, counting goes on from there.
    """
    number, content = kept if before is None else (before.generation, bytes(before.digest))
    again = before is not None and bytes(before.digest) == digest
    return abi.Meta(
        abi=abi.Abi.VERSION,
        phase=abi.Phase.IDLE,
        generation=number if content == digest else max(number, kept[0]) + 1,
        applied_at=before.applied_at if before is not None and again else now,
        digest=tuple(digest),
        commit=commit.encode()[:63],
    )


def applying(meta: abi.Meta) -> abi.Meta:
    """The same entry while the maps are being written."""
    under_way = abi.Meta.from_bytes(bytes(meta))
    under_way.phase = abi.Phase.APPLYING
    return under_way
