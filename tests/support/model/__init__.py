"""The data plane in plain Python, from docs/packet-path.md and the RFCs alone.

    parse    bytes in, a packet out                 choice   which backend
    hashing  the hashes                             flows    what is remembered
    config   the daemons' maps, as values           rewrite  what is written into a frame
    state    what the program keeps, as values      icmp     errors on their way through
    case     one frame in one situation             sweeping what goes when nothing comes
    towards  to a backend         back     to a client         errors   ICMP
    program  the order of decisions: Model

It shares no code with the program: what both get right, both have read in the specification.
"""

from tests.support.model.case import Way
from tests.support.model.program import Model
from tests.support.model.state import Action, Flow, Outcome, Return

__all__ = ["Action", "Flow", "Model", "Outcome", "Return", "Way"]
