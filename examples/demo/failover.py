"""The last act: two balancers under the real keepalived, and the master is gone in the middle of everything."""

import contextlib
import shutil
import signal
import time

import board
from clients import Clients
from stage import PATIENCE, expect

from tests.support.pair import DSR, IPIP, NAT, Pair
from tests.support.wait import until

MODES = {"nat": NAT, "dsr": DSR, "ipip": IPIP}
VISITORS = 8  # of each mode
NAMES = {"b1": "b1", "b2": "b2", "b3": "b3"}


def failover(screen: board.Screen, *, hurry: bool) -> None:
    say = screen.say
    say("\n== Two balancers with one lb.yaml; keepalived gives the addresses to one of them")
    if shutil.which("keepalived") is None:
        say("  left out: keepalived is not installed (sudo make setup)")
        return
    with Pair() as pair, contextlib.ExitStack() as crowd:
        roles(screen, pair)
        crowds = {
            mode: crowd.enter_context(
                Clients(pair.lab.client, address, 80, NAMES, visitors=VISITORS)
            )
            for mode, address in MODES.items()
        }
        screen.rest(1.0 if hurry else 4.0)
        say("lb1 is gone: its interfaces down, its keepalived and its reconciler killed")
        began = time.monotonic()
        pair.one.host.ip("link set wan down\nlink set lan down\n")
        pair.one.stop_keepalived()
        pair.one.stop(signal.SIGKILL)
        until(lambda: pair.two.role()[0] == "master", PATIENCE, what="lb2 takes over")
        say(f"  lb2 took over after {time.monotonic() - began:.1f} s")
        for mode, clients in crowds.items():
            answered(clients, mode)
        screen.rest(1.0 if hurry else 4.0)
        lost = {mode: len(clients.failures) for mode, clients in crowds.items()}
        requests = sum(clients.requests for clients in crowds.values())
        expect(
            not any(lost.values()),
            f"of {requests} requests by {', '.join(MODES)}, before and after, none was lost",
        )


def roles(screen: board.Screen, pair: Pair) -> None:
    for member in (pair.one, pair.two):
        role, priority = member.role()
        screen.say(f"  lb{member.number}: {role}, priority {priority}")


def answered(clients: Clients, mode: str) -> None:
    """Until a hundred more requests were answered: by whom, the client cannot tell."""
    wanted = clients.requests + 100
    until(lambda: clients.requests >= wanted, PATIENCE, what=f"requests by {mode}")
