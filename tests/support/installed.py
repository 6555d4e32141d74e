"""What is installed on a machine of tests/support/machine.py: its units, its files, and what clients see of it."""

import json
import re
from typing import Any

from tests.support.lab import SERVICE, Lab
from tests.support.machine import Machine
from tests.support.traffic import Connection

RECONCILER, HEALTHCHECK = "evenkeel-reconciler.service", "evenkeel-healthcheck.service"
UNITS = (RECONCILER, HEALTHCHECK)
USERS = {RECONCILER: "evenkeel", HEALTHCHECK: "evenkeel-healthcheck"}
PORT, BACKEND_PORT = 80, 8080
LB_YAML, NODE_YAML = "/etc/evenkeel/lb.yaml", "/etc/evenkeel/node.yaml"
DEFAULTS = "/etc/default/evenkeel"
CONFIG = """\
apiVersion: evenkeel/v1
checks:
  alive: {type: http, path: /, every: 200ms, timeout: 200ms, rise: 1, fall: 2}
  ping: {type: icmp, every: 200ms, timeout: 200ms, fwmark: 7}
pools:
  web:
    check: alive
    backends:
      web1: {address: 10.1.2.101, port: 8080}
      web2: {address: 10.1.2.102, port: 8080}
  sorry:
    check: ping
    backends: {sorry1: {address: 10.1.2.102, port: 8080}}
services:
  www: {addresses: [192.0.2.10], ports: [80/tcp, 80/udp], pools: [web, sorry], forward: nat}
"""
NODE = """\
apiVersion: evenkeel/v1
interfaces: {wan: {mode: native}, lan: {mode: native}}
table-size: 1021
sizes: {flows4: 8192, flows6: 8192, returns4: 8192, returns6: 8192, opening4: 4096, opening6: 4096}
"""


def request(lab: Lab) -> str:
    """Who answers a client."""
    with Connection(lab.client, SERVICE[4], PORT) as connection:
        return connection.get().backend


def answering(lab: Lab) -> set[str]:
    return {request(lab) for _ in range(12)}


def status(machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        machine.run("reconciler", "status", "--output", "json").stdout
    )
    return found


def generation(machine: Machine) -> int:
    return int(status(machine)["applied"]["generation"])


def main_pid(machine: Machine, unit: str) -> int:
    return int(machine.show(unit, "MainPID"))


def process_status(machine: Machine, unit: str) -> dict[str, str]:
    said = machine.run("cat", f"/proc/{main_pid(machine, unit)}/status").stdout
    return dict(re.findall(r"^(\w+):\t(.*)$", said, re.MULTILINE))
