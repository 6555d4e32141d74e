"""A client, a balancer and its backends in namespaces of this machine, run by the real programs.

    demo.py [--fast] [--two-targets]

Tells the story of a service from its first commit on (see story.py), in a few minutes, then goes on until Ctrl-C.
With --fast nobody is given time to read, and both stories end by themselves: exit code 0 if everything shown was as
it should be. Leaves nothing behind.
"""

import argparse
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType

import board
from stage import ADDRESS, Stage, Unexpected, expect
from story import quickstart

from bpf import kernel
from tests.support.lab import clean, leftovers

CURLS = 40


def two_targets(*, hurry: bool) -> None:
    """The smallest router there is."""
    with Stage("two-targets", 2, hurry=hurry) as stage:
        stage.repository.commit((stage.example / "lb.yaml").read_text(), "two targets")
        stage.start()
        while True:
            stage.screen.say(f"{CURLS} times: curl http://{ADDRESS}/")
            answers = Counter(curl(stage) for _ in range(CURLS))
            stage.screen.draw(
                board.table(board.rows(stage.instance, stage.names), answers), keep=True
            )
            fair = CURLS / 4 <= answers["A"] <= CURLS * 3 / 4 and answers.total() == CURLS
            expect(fair, "A and B answer half of them each, give or take chance")
            if hurry:
                return


def curl(stage: Stage) -> str:
    name = stage.lab.client.run("curl", "--silent", "--max-time", "5", f"http://{ADDRESS}/").strip()
    backend = next(b for b in stage.lab.backends if b.name == name)
    return stage.names[backend.addresses[4]]


def taken_down(number: int, _frame: FrameType | None) -> None:
    if number == signal.SIGHUP:  # the terminal is gone: words to it would be errors
        nobody = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nobody, sys.stdout.fileno())
        os.dup2(nobody, sys.stderr.fileno())
    sys.exit(1)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument(
        "--fast", action="store_true", help="no time to read, and an end after the last chapter"
    )
    arguments.add_argument("--two-targets", action="store_true", help="the router with two targets")
    options = arguments.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("demo: namespaces and BPF need root: sudo make demo")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, taken_down)
    if left := leftovers():
        print("a demo or test was killed before: removing what it left:", *left, flush=True)
        clean(left)
    stories: list[Callable[..., None]] = [quickstart, two_targets]
    if options.two_targets or not options.fast:
        stories = [two_targets if options.two_targets else quickstart]
    try:
        for story in stories:
            story(hurry=options.fast)
    except KeyboardInterrupt:
        print("\ntaken down")
    except (Unexpected, OSError, RuntimeError, kernel.KernelError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
