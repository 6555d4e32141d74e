"""The command line: reads arguments, prints, and picks the exit code. Decides nothing about backends."""

import argparse
import asyncio
import json
import logging
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from bpf.errors import plainly
from healthcheck import targets, trace
from healthcheck.checker import Engine, Watch
from healthcheck.definition import Subject
from healthcheck.exchange import Result
from healthcheck.fleet import STEP, Fleet
from healthcheck.health import Outcome
from healthcheck.rundir import held
from healthcheck.stock import Stock
from healthcheck.targets import Backend, TargetsError
from readiness.manager import ServiceManager

ALL_UP, OWN_ERROR, SOME_DOWN, USAGE = 0, 1, 2, 64
RUN_DIR = Path("/run/evenkeel")
ROUND_VERSION = "1.0"
IN_FLIGHT = 4096
HUNG = 5.0  # seconds by which a probe is late that nobody is going to start any more

EXAMPLES = """\
examples:
  healthcheck --instance edge
        probe what the reconciler of instance edge publishes, until SIGTERM; then the map stays as it is
  healthcheck --targets /run/evenkeel/edge/targets.json --once
        one probe of each backend, as a table; changes nothing and needs no privilege
  healthcheck probe http://10.1.2.101:8080/healthz
        one check, step by step
  healthcheck --targets targets.json --once --output json | jq '.backends[] | select(.outcome != "pass")'

exit codes: 0 done, with --once: every backend passed; 2 with --once: one did not; 1 own error; 64 usage
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    arguments = _Parser(
        prog="healthcheck",
        description="Probe backends, and say in the pinned health map which of them may be chosen.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    arguments.add_argument(
        "--instance", default="default", metavar="NAME", help="which data plane (default: default)"
    )
    arguments.add_argument(
        "--run-dir",
        type=Path,
        metavar="DIR",
        help=f"where health.json is published (default: {RUN_DIR}/NAME)",
    )
    arguments.add_argument(
        "--targets",
        type=Path,
        metavar="FILE",
        help="what to probe, as the reconciler publishes it (default: targets.json in the run dir)",
    )
    arguments.add_argument(
        "--once", action="store_true", help="one round, printed; no map and no file is written"
    )
    arguments.add_argument(
        "--output", choices=("text", "json"), help="how --once prints (default: text)"
    )
    commands = arguments.add_subparsers(dest="command", metavar="")
    one = commands.add_parser(
        "probe",
        help="one check of one target, step by step",
        description="Try one check, and show each step with its time.",
        epilog=trace.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    trace.add_arguments(one)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser()
    options = arguments.parse_args(argv)
    if options.output and not options.once:
        arguments.error("--output goes with --once: otherwise nothing is printed but the log")
    if options.command and options.once:
        arguments.error(f"{options.command} is one round already: leave --once away")
    if not options.instance or "/" in options.instance or options.instance.startswith("."):
        arguments.error(f"--instance {options.instance!r}: a name, not a path")
    run_dir: Path = options.run_dir or RUN_DIR / options.instance
    targets_path: Path = options.targets or run_dir / "targets.json"
    if options.command == "probe":
        return try_one(options, targets_path)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    in_flight = room(raise_descriptor_limit())
    try:
        if options.once:
            return once(targets_path, options.output or "text")
        return run(targets_path, run_dir, options.instance, in_flight)
    except (TargetsError, OSError) as error:
        print(f"healthcheck: {plainly(error)}", file=sys.stderr)
        return OWN_ERROR


def try_one(options: argparse.Namespace, targets_path: Path) -> int:
    try:
        outcome = trace.probe(options.url, options.timeout, options.set, targets_path)
    except (TargetsError, OSError, ValueError) as error:
        print(f"healthcheck: {plainly(error)}", file=sys.stderr)
        return OWN_ERROR
    return {Outcome.PASS: ALL_UP, Outcome.NEUTRAL: OWN_ERROR}.get(outcome, SOME_DOWN)


def raise_descriptor_limit() -> int:
    """As many sockets as we are allowed; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def room(descriptors: int) -> int:
    """How many probes may be under way: files, maps and kept connections need descriptors too."""
    return max(min(IN_FLIGHT, descriptors // 2), 1)


# ---- the daemon


def run(targets_path: Path, run_dir: Path, instance: str, in_flight: int) -> int:
    # Imported here: --once works where there is no bcc and no kernel to talk to.
    from healthcheck.pinned import open_pinned  # noqa: PLC0415

    with held(run_dir):
        fleet = Fleet(
            targets_path, run_dir / "health.json", instance, open_pinned, in_flight=in_flight
        )
        try:
            asyncio.run(follow(fleet, ServiceManager.of()))
        finally:
            fleet.close()
    return ALL_UP


async def follow(fleet: Fleet, manager: ServiceManager) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    broken: list[Exception] = []

    def give_up(_loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        # A mistake of ours. Better to end than to go on probing some backends and not others: the map stays.
        error = context.get("exception")
        broken.append(error if isinstance(error, Exception) else RuntimeError(context["message"]))
        stop.set()

    loop.set_exception_handler(give_up)
    fleet.engine.attach(loop)

    def step() -> None:
        if not stop.is_set():
            fleet.step()
            tell(manager, fleet)
            loop.call_later(STEP, step)

    def look_now() -> None:
        manager.reloading()
        fleet.look()
        tell(manager, fleet)

    loop.add_signal_handler(signal.SIGHUP, look_now)
    loop.call_soon(step)
    await stop.wait()
    manager.stopping("stopped; the map keeps the last verdicts")
    if broken:
        raise broken[0]


def tell(manager: ServiceManager, fleet: Fleet) -> None:
    """What the service manager hears of this turn: not that we live, when the probes do not."""
    if fleet.engine.lateness() < HUNG:
        manager.alive()
    if fleet.follows:
        manager.ready(fleet.headline(), manager.reloads)
    else:
        manager.status(fleet.headline())


# ---- one round


def once(targets_path: Path, output: str) -> int:
    backends = targets.read(targets_path).backends
    results = asyncio.run(one_round(backends))
    rows = [_row(backend, *results[backend]) for backend in backends]
    print(json.dumps(_round(rows), indent=2) if output == "json" else table(rows))
    outcomes = {result.outcome for result, _ in results.values()}
    if Outcome.NEUTRAL in outcomes:
        return OWN_ERROR
    return SOME_DOWN if outcomes - {Outcome.PASS} else ALL_UP


async def one_round(backends: Sequence[Backend]) -> dict[Backend, tuple[Result, float]]:
    subjects = {backend.subject for backend in backends}
    results: dict[Watch, tuple[Result, float]] = {}
    done = asyncio.Event()

    def report(watch: Watch, result: Result, latency: float) -> None:
        results[watch] = (result, latency)
        if len(results) == len(subjects):
            done.set()

    engine, stock = Engine(report), Stock(keep=False)
    try:
        watches = {subject: _begin(engine, subject, stock) for subject in subjects}
        engine.attach(asyncio.get_running_loop())
        if subjects:
            await done.wait()
    finally:
        engine.close()
    for watch in watches.values():
        engine.forget(watch)
    return {backend: results[watches[backend.subject]] for backend in backends}


def _begin(engine: Engine, subject: Subject, stock: Stock) -> Watch:
    return engine.once(subject.probe(stock), subject.check.timeout)


def _row(backend: Backend, result: Result, latency: float) -> dict[str, Any]:
    return {
        "id": backend.id,
        "name": backend.name,
        "address": backend.subject.address,
        "port": backend.subject.port,
        "check": backend.subject.check.name,
        "outcome": result.outcome.value,
        "reason": result.reason,
        "detail": result.detail,
        "latency_ms": round(latency * 1000, 3),
    }


def _round(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"format_version": ROUND_VERSION, "backends": rows}


def table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "no backend has a check"
    head = ("BACKEND", "ADDRESS", "PORT", "CHECK", "RESULT", "MS", "REASON")
    lines = [head] + [
        (
            row["name"],
            row["address"],
            str(row["port"]),
            row["check"],
            row["outcome"],
            f"{row['latency_ms']:.1f}",
            f"{row['reason']}: {row['detail']}" if row["detail"] else row["reason"],
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
