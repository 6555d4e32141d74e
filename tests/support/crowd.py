"""A configuration of any size: pools of ten backends, and a service for each. Knows no kernel."""

from dataclasses import dataclass

EACH = 10


@dataclass(frozen=True, slots=True)
class Crowd:
    """So many pools; `change` makes one backend of the first another one."""

    pools: int
    change: str = ""

    def text(self) -> str:
        pools = "".join(map(self._pool, range(self.pools)))
        services = "".join(map(_service, range(self.pools)))
        check = "checks: {alive: {type: tcp, every: 2s, timeout: 1s}}\n"
        return (
            f"apiVersion: evenkeel/v1\n{check}pools:\n{pools}services:\n{services}"
            "guardrails: {allow-empty: true}\n...\n"
        )

    def _pool(self, number: int) -> str:
        backends = [_backend(number * EACH + i) for i in range(EACH)]
        if number == 0:
            backends = changed(backends, self.change)
        lines = "".join(f"      {line}\n" for line in backends)
        return f"  pool{number}:\n    check: alive\n    backends:\n{lines}"


CHANGES = ("weight", "address", "one more", "one less", "drain")


def changed(backends: list[str], change: str) -> list[str]:
    first, *others = backends
    return {
        "": backends,
        "weight": [first.replace("}", ", weight: 90}"), *others],
        "address": [first.replace("10.64.", "10.65."), *others],
        "one more": [*backends, "more: {address: 10.66.0.1, port: 8080}"],
        "one less": others,
        "drain": [first.replace("}", ", state: drain, reason: repair}"), *others],
    }[change]


def _backend(number: int) -> str:
    return f"b{number}: {{address: 10.64.{number // 256}.{number % 256}, port: 8080}}"


def _service(number: int) -> str:
    address = f"192.{number // 250}.2.{number % 250 + 1}"
    lines = (f"addresses: [{address}]", "ports: [80/tcp]", f"pools: [pool{number}]")
    return f"  service{number}:\n" + "".join(f"    {line}\n" for line in lines)


def broken(text: str) -> str:
    """The same with a mistake in every tenth backend."""
    return text.replace("0, port: 8080", "0, prot: 8080")
