"""`make soak`: random troubles under load for as long as is asked for, then what came of it.

Exit code 0: all that went wrong is explained, and the laws hold; 1: not. Ctrl-C ends it with the report so far.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import threading
from types import FrameType

from bpf.kernel import KernelError
from reconciler.commands import span
from tests.soak import laws, report
from tests.soak.chaos import Chaos
from tests.soak.excuses import judged
from tests.soak.journal import Journal, now
from tests.soak.stage import Stage

PROGRESS = 5.0  # seconds between two lines
CALM = 3.0  # seconds at the end, in which nothing may go wrong


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument(
        "--duration", type=span, default=600, metavar="TIME", help="such as 30s or 10m"
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    return parser.parse_args()


class Soak:
    def __init__(self, seed: int, seconds: float, stop: threading.Event) -> None:
        self.seed, self.seconds, self.stop = seed, seconds, stop
        self.journal = Journal()
        self._told = self._unexplained = 0  # mishaps that progress told of

    def run(self) -> report.Account:
        """Whatever happens, it is reported."""
        with Stage(self.journal, self.seed) as stage:
            self._say(f"lab {stage.name} is up")
            chaos = Chaos(stage, self.seed)
            try:
                self._disturb(chaos)
                self._calm_down(stage, chaos)
            except TimeoutError as error:
                self.journal.complain(str(error))
            stage.clients.close()
            self._say("clients are gone: what is left is looked at")
            try:
                for law in laws.broken(stage):
                    self.journal.complain(law)
            except (KernelError, OSError, subprocess.TimeoutExpired) as error:
                self.journal.complain(f"what is left cannot be looked at: {error}")
        return self.account()

    def _disturb(self, chaos: Chaos) -> None:
        end, due, told = now() + self.seconds, now(), now()
        while now() < end and not self.stop.wait(0.05):
            chaos.follow_up()
            if now() >= due:
                chaos.deed()
                due = now() + chaos.rest()
            if now() >= told + PROGRESS:
                told = now()
                self._say(self._progress())

    def _calm_down(self, stage: Stage, chaos: Chaos) -> None:
        self._say("everybody comes back")
        chaos.calm()
        stage.await_settled()
        self._say("everybody is back: now nothing may go wrong")
        threading.Event().wait(CALM)

    def _progress(self) -> str:
        """What was explained once stays so: troubles only end."""
        counts = self.journal.counts
        new = self.journal.mishaps[self._told :]
        self._told += len(new)
        unexplained = [one.mishap for one in judged(new, self.journal.troubles) if not one.excuses]
        self._unexplained += len(unexplained)
        for mishap in unexplained:
            self._say(f"unexplained at {mishap.at - self.journal.began:.2f} s: {mishap}")
        last = self.journal.done[-1][1] if self.journal.done else "nothing yet"
        return (
            f"{counts['tcp answers']} answers, {counts['udp answers']} echoes, {len(self.journal.mishaps)} mishaps,"
            f" {self._unexplained + len(self.journal.complaints)} unexplained; last: {last}"
        )

    def _say(self, what: str) -> None:
        print(f"{now() - self.journal.began:6.1f} s  {what}", flush=True)

    def account(self) -> report.Account:
        journal = self.journal
        troubles = journal.troubles
        return report.Account(
            self.seed, journal.began, now(), journal.counts, journal.done,
            judged(journal.mishaps, troubles), troubles, journal.complaints, journal.seen,
        )  # fmt: skip


def main() -> int:
    options = arguments()
    if os.geteuid() != 0:
        print("make soak: needs root (namespaces, BPF): sudo make soak", file=sys.stderr)
        return 1
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    print(f"soak of {options.duration:g} s, seed {options.seed}", flush=True)
    account = Soak(options.seed, options.duration, stop).run()
    for line in report.lines(account):
        print(line)
    return 1 if account.failures else 0


if __name__ == "__main__":
    sys.exit(main())
