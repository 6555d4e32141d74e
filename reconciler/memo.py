"""Results of pure functions, given again as long as their arguments are equal. Pure.

What is given again is what would be made again, so nobody can tell, but by the
clock. Equal means equal by content; that what has not changed mostly is the same
object only makes it quick to find out. Holds nothing that the maps are compared with.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")
R = TypeVar("R")
ROUNDS = 16


class Same(Generic[R]):
    """An argument that is large, and equal only as the same object; whoever holds it does not change it."""

    __slots__ = ("value",)

    def __init__(self, value: R) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


@dataclass(slots=True)
class Known:
    """A result, what it was made from, and the round in which it was last asked for."""

    arguments: tuple[Any, ...]
    result: Any
    asked: int


class Memo:
    """The last result of each function for each name; results must not be changed by anybody."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Known] = {}
        self._round = 0

    def turn(self) -> None:
        """A new round begins: now and then, what is not asked for any more is forgotten."""
        self._round += 1
        if self._round % ROUNDS == 0:
            since = self._round - ROUNDS
            self._known = {key: one for key, one in self._known.items() if one.asked >= since}

    def of(self, function: Callable[..., R], name: Hashable, *arguments: Any) -> R:  # noqa: ANN401
        """`function(*arguments)`, which `name` tells from its other results."""
        key = function, name
        known = self._known.get(key)
        if known is None:
            known = Known(arguments, function(*arguments), 0)
            self._known[key] = known
        elif known.arguments != arguments:
            known.result = function(*arguments)
        known.arguments = arguments  # newer objects, which are the same ones next time
        known.asked = self._round
        result: R = known.result
        return result

    def each(
        self, function: Callable[[V], R], name: Hashable, entries: Mapping[K, V]
    ) -> dict[K, R]:
        """`function` of each entry, made anew where there is another object than the last time."""
        known = self._known.get((function, name))
        before: tuple[Mapping[K, V], dict[K, R]] = ({}, {}) if known is None else known.result
        old, results = before
        if old is not entries:
            results = {
                at: results[at] if old.get(at) is entry else function(entry)
                for at, entry in entries.items()
            }
        self._known[function, name] = Known((), (entries, results), self._round)
        return results

    def kept(self, name: Hashable, *arguments: Any) -> Any:  # noqa: ANN401
        """What was kept under that name for equal arguments; None: nothing was."""
        known = self._known.get(name)
        return known.result if known is not None and known.arguments == arguments else None

    def keep(self, name: Hashable, result: object, *arguments: Any) -> None:  # noqa: ANN401
        """For who can tell from a result only whether it would be the same again."""
        self._known[name] = Known(arguments, result, self._round)
