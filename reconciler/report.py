"""A plan in words. Placeholder-free description follows from a View alone; prints nothing."""

from typing import Any


def describe(view: Any, live: Any, accepted: Any, place: Any, meta: Any) -> dict[str, Any]:
    return {"ops": [str(op)[:200] for op in view.ops]}


def text(plan: Any) -> str:
    return "\n".join(plan["ops"])
