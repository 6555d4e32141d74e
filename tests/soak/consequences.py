"""What each thing that is done to the balancer may cost, and whom. Pure: the promises that the soak holds it to.

Where nothing is said, nothing may happen: changes of weights, programs replaced and daemons killed cost nobody
anything, but for the handshakes that hashed dsr and ipip services do not remember (design, "Flows").
"""

from collections.abc import Iterator

from tests.soak.excuses import ANY, DEAD, Symptom, Trouble
from tests.soak.wishes import HASHED, OPENING, POOLS, Does, Edit

BROKEN = frozenset({Symptom.RESET})
CHOSEN_ANEW = frozenset({Symptom.RESET, Symptom.MOVED})
LOST = frozenset({Symptom.RESET, Symptom.MOVED}) | DEAD
PASSED = frozenset({Symptom.UNREACHABLE, Symptom.SILENT, Symptom.RESET, Symptom.REFUSED})


def of_slots(what: str, pool: str, at: float) -> Trouble:
    """A handshake that is not over when its slot moves is nobody's, until the slots are at rest."""
    return Trouble(
        "slots moved in a handshake", what, at, BROKEN, services=HASHED, pool=pool, fresh=True
    )


def until_settled(edit: Edit, at: float) -> Iterator[Trouble]:
    if edit.does in (Does.OPEN, Does.CLOSE):
        return
    yield of_slots(str(edit), edit.pool, at)
    if edit.does is Does.DOWN:
        yield Trouble("down in the file", str(edit), at, BROKEN, pool=edit.pool, fresh=True)


def until_returned(edit: Edit, at: float) -> Iterator[Trouble]:
    """Flows of a backend that goes are chosen anew: at once, or when its time is over, and not before."""
    kept = POOLS[edit.pool]
    if edit.does is Does.DOWN:
        yield _chosen_anew("down in the file", edit, at)
    elif edit.does in (Does.DRAIN, Does.REMOVE) and kept.flush:
        yield _chosen_anew("drain's deadline", edit, at + kept.grace)
    elif edit.does is Does.CLOSE:
        yield Trouble("service closed", str(edit), at, ANY, services=frozenset({edit.service}))


def _chosen_anew(kind: str, edit: Edit, at: float) -> Trouble:
    return Trouble(kind, str(edit), at, CHOSEN_ANEW, pool=edit.pool, host=edit.host, fresh=False)


def unnoticed(what: str, host: str, at: float) -> Trouble:
    """Until checks notice and spare tables follow, new connections go to a host that does not answer."""
    return Trouble("server failed, not noticed yet", what, at, DEAD, host=host, fresh=True)


def illness(what: str, host: str, at: float) -> Trouble:
    return Trouble("server failed", what, at, LOST, host=host, fresh=False)


def forced_down(what: str, pool: str, host: str, at: float) -> Iterator[Trouble]:
    yield Trouble("override", what, at, CHOSEN_ANEW, pool=pool, host=host, fresh=False)
    yield Trouble("override", what, at, BROKEN, pool=pool, fresh=True)


def unseen(what: str, at: float, services: frozenset[str] | None = None) -> Trouble:
    """Packets that the program does not look at, or takes for nobody's, go to the kernel."""
    return Trouble("drift", what, at, PASSED, services=services)


def larger_maps(what: str, at: float) -> Trouble:
    """What `upgrade` says beforehand: a flow of the last moments before the switch goes by the table for a moment.

    Who is in the middle of a handshake then, with a service that remembers handshakes, may lose it.
    """
    symptoms = frozenset({Symptom.RESET, Symptom.SILENT})
    return Trouble("larger maps", what, at, symptoms, services=OPENING, fresh=True)


def no_service(what: str, name: str, at: float) -> Trouble:
    """As if it were not there; flows of its that meet that are forgotten."""
    services = frozenset({name})
    return Trouble("drift", what, at, PASSED | {Symptom.MOVED}, services=services)


def no_table(what: str, at: float) -> Trouble:
    return Trouble("drift", what, at, frozenset({Symptom.SILENT}), fresh=True)


def no_backend(what: str, pool: str, host: str, at: float) -> Iterator[Trouble]:
    """Where the spare table names it, there is nobody: the pool is used whole, whatever the checks say."""
    yield Trouble("drift", what, at, CHOSEN_ANEW, pool=pool, host=host, fresh=False)
    yield Trouble("drift", what, at, BROKEN, pool=pool, fresh=True, exposes=True)
