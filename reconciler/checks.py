"""The checks of lb.yaml: which option goes with which kind, and what targets.json calls it. Probes nothing.

healthcheck refuses fields that it does not know, so nothing gets there that no check would use.
"""

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from reconciler.model import Check, CheckType
from reconciler.problems import Mark
from reconciler.yamlpos import Map

Complain = Callable[[Mark, str, str], None]

_UNITS = {"ms": Fraction(1, 1000), "s": Fraction(1), "m": Fraction(60), "h": Fraction(3600)}
_VERSIONS = {"A": 4, "AAAA": 6}

HTTP = (CheckType.HTTP, CheckType.HTTPS)
LINES = (CheckType.TCP, CheckType.UDP)
HTTPS, DNS = (CheckType.HTTPS,), (CheckType.DNS,)
ALL = tuple(CheckType)
PORTED = tuple(kind for kind in CheckType if kind is not CheckType.ICMP)
VIA_SERVICE = "service"


def seconds(text: str) -> float:
    number = text.rstrip("smh")
    return float(int(number) * _UNITS[text[len(number) :]])


def spans(listed: list[str | int]) -> list[list[int]]:
    return [list(span(text)) for text in listed]


def span(text: str | int) -> tuple[int, int]:
    low, _, high = str(text).partition("-")
    return int(low), int(high or low)


@dataclass(frozen=True, slots=True)
class Option:
    kinds: tuple[CheckType, ...]
    meaning: Callable[[Any], Any] = lambda value: value


OPTIONS = {
    "fast": Option(ALL, seconds),
    "slow": Option(ALL, seconds),
    "slow-start": Option(ALL, seconds),
    "settle": Option(ALL),
    "jitter": Option(ALL, lambda text: int(text.rstrip("%")) / 100),
    "source": Option(ALL),
    "interface": Option(ALL),
    "fwmark": Option(ALL),
    "via": Option(PORTED),
    "send": Option(LINES),
    "receive": Option(LINES),
    "query": Option(DNS),
    "record": Option(DNS),
    "answer": Option(DNS),
    "method": Option(HTTP),
    "path": Option(HTTP),
    "host": Option(HTTP),
    "headers": Option(HTTP, dict),
    "expect": Option(HTTP, spans),
    "down-at-once": Option(HTTP, spans),
    "expect-headers": Option(HTTP, dict),
    "expect-body": Option(HTTP),
    "keep-alive": Option(HTTP),
    "server-name": Option(HTTPS),
    "verify": Option(HTTPS),
    "ca": Option(HTTPS),
    "alpn": Option(HTTPS, list),
    "expiry-warning": Option(HTTPS, seconds),
}
_IN_THE_MODEL = ("path", "host", "expect", "via")  # they have fields of their own


def read(name: str, at: Map, complain: Complain) -> Check:
    """One check; whatever contradicts itself is complained about."""
    where, kind = f"checks[{name}]", CheckType(at["type"])
    _fits(at, kind, where, complain)
    check = Check(
        name=name,
        type=kind,
        every=seconds(at.get("every", "2s")),
        timeout=seconds(at.get("timeout", "1s")),
        rise=at.get("rise", 2),
        fall=at.get("fall", 3),
        port=at.get("port"),
        via_service=at.get("via") == VIA_SERVICE,
        path=at.get("path", "/"),
        host=at.get("host", ""),
        expect=tuple(span(text) for text in at.get("expect", ["200-299"])),
        options=options(at),
    )
    _agrees(check, at, where, complain)
    return check


def options(at: Map) -> Mapping[str, Any]:
    """By their names in targets.json."""
    return {
        name.replace("-", "_"): option.meaning(at[name])
        for name, option in OPTIONS.items()
        if name in at and name not in _IN_THE_MODEL
    }


def _fits(at: Map, kind: CheckType, where: str, complain: Complain) -> None:
    for name, option in OPTIONS.items():
        if name in at and kind not in option.kinds:
            kinds = " or ".join(one.value for one in option.kinds)
            complain(at.keys_at[name], f"{where}: {name!r} is for checks of type {kinds}", "")
    if kind is CheckType.ICMP and "port" in at:
        complain(at.keys_at["port"], f"{where}: echo requests have no port", "")


def _agrees(check: Check, at: Map, where: str, complain: Complain) -> None:
    told, every = check.options, check.every

    def mark(name: str) -> Mark:
        return at.values_at.get(name, at.at)

    if check.timeout > every:
        message = f"{where}: a timeout of {check.timeout:g} s outlasts every {every:g} s"
        complain(mark("timeout"), message, "")
    if (fast := told.get("fast", every)) > every:
        complain(mark("fast"), f"{where}: fast {fast:g} s is slower than every {every:g} s", "")
    if check.type is CheckType.UDP and not told.get("send"):
        hint = "nothing can be known of a service that is not asked"
        complain(at.at, f"{where}: a udp check needs 'send'", hint)
    if check.type is CheckType.DNS and "query" not in told:
        complain(at.at, f"{where}: a dns check needs 'query', the name to ask for", "")
    if check.via_service and "fwmark" in told:
        hint = "the mark is what says which service is meant"
        complain(mark("fwmark"), f"{where}: fwmark does not go with via: service", hint)
    for name in ("source", "answer"):
        if name in told and _version(told[name]) is None:
            complain(mark(name), f"{where}: {told[name]!r} is no IPv4 or IPv6 address", "")
    _answerable(told, mark("answer"), where, complain)


def _answerable(told: Mapping[str, Any], mark: Mark, where: str, complain: Complain) -> None:
    answer, record = told.get("answer"), told.get("record", "A")
    if answer and (version := _version(answer)) and _VERSIONS.get(record) != version:
        message = f"{where}: a record of type {record} cannot have the answer {answer}"
        complain(mark, message, "record: A for IPv4, AAAA for IPv6")


def _version(text: str) -> int | None:
    try:
        return ipaddress.ip_address(text).version if "%" not in text else None
    except ValueError:
        return None
