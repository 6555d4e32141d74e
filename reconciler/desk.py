"""The operators' side of the loop: takes orders, watches what comes of them, and tells.

Lives in the loop's thread. An order is answered after the pass that it caused, and
`sync` not before the source has come to rest; nor is any order while the first pass still waits for that.
"""

from collections.abc import Iterable
from typing import Any

from readiness.manager import ServiceManager
from reconciler.board import Board
from reconciler.control import Document, Refused, Request, Requests
from reconciler.follow import Following
from reconciler.headline import has_started, headline
from reconciler.heart import Heart
from reconciler.history import Generation
from reconciler.look import View
from reconciler.observer import Observer
from reconciler.orders import Orders
from reconciler.overrides import Overrides
from reconciler.stating import build_conditions

TICK = 1.0  # seconds: how long a change may go unnoticed when no event told of it
POLL = 0.05  # the same while somebody waits


class Desk:
    def __init__(
        self, board: Board, requests: Requests, orders: Orders, observer: Observer, heart: Heart
    ) -> None:
        self._board, self._requests = board, requests
        self._orders, self.observer, self._heart = orders, observer, heart
        self._pending: list[tuple[Request, Document]] = []
        self._has_passed = False

    @property
    def pace(self) -> float:
        """Seconds until the next turn, however quiet it is."""
        return POLL if self._pending else TICK

    def take(self) -> bool:
        """Carry out what was ordered meanwhile; whether a pass is due for it."""
        taken = self._requests.take()
        for request in taken:
            if not request.answer.set_running_or_notify_cancel():
                continue  # nobody waits for it any more, so it is not done either
            try:
                self._pending.append((request, self._orders.carry_out(request)))
            except Refused as error:
                request.answer.set_exception(error)
        return bool(taken)

    def went(
        self,
        outcome: View | Exception,
        seconds: float,
        kept: Iterable[Generation],
        drift: tuple[str, ...],
    ) -> None:
        """A pass is over; `kept` is the history now, `drift` what it found."""
        self._has_passed = True
        if isinstance(outcome, Exception):
            self.observer.failed(outcome, seconds)
        else:
            self.observer.passed(outcome, seconds)
        self.observer.recall(kept)
        self.observer.drifted(drift)

    def tell(self, following: Following, overrides: Overrides, *, at_rest: bool) -> None:
        """Publish what there is to know, and answer those who wait for it."""
        self.observer.publish(following, overrides, now=bool(self._pending))
        self._heart.beat(self._board.facts, blind=self.observer.blind)
        waiting, self._pending = self._pending, []
        for request, result in waiting:
            if not at_rest and (request.command == "sync" or not self._has_passed):
                self._pending.append((request, result))
            else:
                request.answer.set_result({**result, "outcome": self._outcome()})

    def waits(self, following: Following, overrides: Overrides, manager: ServiceManager) -> None:
        """A pass waits for another process: whoever asks learns that, and those who wait for the pass go on waiting."""
        self.observer.waits()
        self.observer.publish(following, overrides)
        self._heart.beat(self._board.facts, blind=self.observer.blind)
        manager.working()
        manager.status(headline(self._board.facts))

    def report(self, manager: ServiceManager, reloads: int) -> None:
        """What the service manager hears of this turn, which answers so many reloads."""
        manager.alive()
        facts = self._board.facts
        if has_started(facts, verified=self.observer.verified):
            manager.ready(headline(facts), reloads)
        else:
            manager.status(headline(facts))

    def _outcome(self) -> dict[str, Any]:
        facts = self._board.facts
        meta = facts.meta if facts else None
        return {
            "generation": meta.generation if meta else 0,
            "conditions": build_conditions(facts.conditions if facts else ()),
        }
