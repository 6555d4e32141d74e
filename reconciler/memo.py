"""Results of pure functions, given again as long as their arguments are equal. Pure.

What is given again is what would be made again, so nobody can tell, but by the
clock. Equal means equal by content; that what has not changed mostly is the same
object only makes it quick to find out. Holds nothing that the maps are compared with.
"""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

R = TypeVar("R")


class Memo:
    """The last result of each function for each name; results must not be changed by anybody."""

    def __init__(self) -> None:
        self._now: dict[Hashable, tuple[tuple[Any, ...], Any]] = {}
        self._before = self._now

    def turn(self) -> None:
        """A new round begins: what is not asked for until the next one is forgotten."""
        self._before, self._now = self._now, {}

    def of(self, function: Callable[..., R], name: Hashable, *arguments: Any) -> R:  # noqa: ANN401
        """`function(*arguments)`, which `name` tells from its other results."""
        key = function, name
        known = self._now.get(key) or self._before.get(key)
        if known is not None and known[0] == arguments:
            result: R = known[1]
        else:
            result = function(*arguments)
        self._now[key] = arguments, result  # newer objects, which are the same ones next time
        return result
