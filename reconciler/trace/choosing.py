"""How a backend is chosen: slots, pools in order, lots. Pure."""

from bpf import abi
from bpf.abi import BackendFlag, Balance, ServiceFlag, Verdict
from reconciler import choice, ids
from reconciler.choice import Visit
from reconciler.trace.scene import Ending, Found, only
from reconciler.trace.sending import Sender


class Chooser(Sender):
    """A packet that no flow knows."""

    def anew(self, found: Found) -> Ending:
        service = found[1]
        if self._drawn(service):
            return self.by_lot(found)
        draw = self._draw(service)
        for retry in range(abi.Limit.RETURN_TRIES + 1):
            if retry:
                self.say(
                    "choice again",
                    f"{retry} steps further: that backend's replies are another flow's",
                )
            number = self.choose(service, draw, retry)
            if not number:
                return self.stopped(Verdict.NO_BACKEND, service)
            backend = self._entry(number)
            if verdict := self.unsendable(service, backend):
                return self.stopped(verdict, service)
            verdict, port = self.learnt(found, backend, first=not retry)
            if verdict is Verdict.RETURN_TAKEN:
                continue
            if verdict is not Verdict.FORWARDED:
                return self.stopped(verdict, service)
            self._say_delivery(found, backend, port)
            return only(Verdict.FORWARDED, service.id, number)
        return self.stopped(Verdict.RETURN_TAKEN, service)

    def _drawn(self, service: abi.Service) -> bool:
        """Whether the program draws lots."""
        lots = (Balance.RANDOM, Balance.LEAST_CONNECTIONS)
        return service.balance in lots and not (self.is_tcp and not self.is_syn)

    def _draw(self, service: abi.Service) -> tuple[int, bool]:
        """What slots follow from, and whether it counts them."""
        if service.balance == Balance.ROUND_ROBIN and not (self.is_tcp and not self.is_syn):
            kept = self.scene.memory.get("service_state", ids.index(service.id))
            cursor = kept.cursor if kept is not None else 0
            self.say("turn", f"number {cursor}, each packet that consults it has the next")
            return cursor, True
        fields = abi.HashFields(service.hash)
        hashed = choice.tuple_hash(self.packet, fields)
        self.say("hash", f"{hashed:#018x} of {_fields(fields)}")
        return hashed, False

    def choose(self, service: abi.Service, draw: tuple[int, bool], retry: int) -> int:
        """The backend's id, 0 if there is none."""
        pools = list(service.pools[: service.pool_count])
        for i, number in enumerate(pools):
            if service.short_pools >> i & 1:
                self.say(f"pool {self.pool(number)}", "passed over: below its panic share")
            elif chosen := self.walk(number, draw, retry, self.scene.health):
                return chosen
        if service.flags & ServiceFlag.FAIL_CLOSED or not pools:
            self.say("no pool", "none has a usable backend, and the service fails closed")
            return 0
        self.say(
            "no pool", "none has a usable backend: the first is used whole, whatever its health"
        )
        return self.walk(pools[0], draw, retry, None)

    def pool(self, number: int) -> str:
        return self.scene.names.pool(number)

    def walk(
        self, number: int, draw: tuple[int, bool], retry: int, health: choice.Health | None
    ) -> int:
        about, pool = f"pool {self.pool(number)}", choice.pool_of(self.state, number)
        if pool is None:
            self.say(about, "has no table: nobody to choose")
            return 0
        first = draw[0] % pool.size if draw[1] else choice.first_slot(pool, draw[0])
        first = (first + retry * pool.step) % pool.size
        seen = list(choice.visits(self.state, pool, first, health))
        chosen = seen[-1].backend if not seen[-1].why else 0
        how = f"slot {first} of {pool.size}, step {pool.step}"
        said = self.backend(chosen) if chosen else "nobody usable on the whole way"
        self.say(about, f"{how}: {said}", *(self._visit(one) for one in seen))
        return chosen

    def _visit(self, one: Visit) -> str:
        where = f"spare slot {one.slot}" if one.spare else f"slot {one.slot}"
        return f"{where}: {self.backend(one.backend)}: {one.why or self.standing(one.backend)}"

    def standing(self, number: int) -> str:
        """Why a backend can be used."""
        entry, health = self._entry(number), self.scene.health.get(ids.index(number))
        if entry.flags & BackendFlag.FORCED_UP:
            return "forced up"
        if health is None or health.id != number or health.state == abi.HealthState.UNKNOWN:
            return "taken for healthy: nothing checks it, or not yet"
        return "healthy" if health.state == abi.HealthState.UP else "used in spite of its health"

    def by_lot(self, found: Found) -> Ending:
        """All that can come of it."""
        service = found[1]
        numbers, nobody = self.candidates(service)
        names = ", ".join(sorted(self.backend(number) for number in numbers)) or "nobody"
        self.say("lot", f"one of {names}")
        verdicts = {Verdict.NO_BACKEND} if nobody else set()
        for number in numbers:
            backend = self._entry(number)
            refused = self.unsendable(service, backend)
            verdict = refused or self.learnt(found, backend, first=False)[0]
            verdicts.add(verdict)
            if verdict is Verdict.TOO_BIG:
                verdicts |= {Verdict.TOO_BIG_ANSWERED, Verdict.TOO_BIG_LIMITED}
            if verdict is Verdict.RETURN_TAKEN:  # another slot is tried: any of these
                verdicts.add(Verdict.FORWARDED)
        if self.gated(service):
            verdicts = verdicts - {Verdict.FORWARDED} | self.over_gate(service)
        return Ending(frozenset(verdicts), frozenset(numbers), service.id)

    def over_gate(self, service: abi.Service) -> set[Verdict]:
        return {Verdict.GATED if self.needs_entry(service) else Verdict.FORWARDED}

    def candidates(self, service: abi.Service) -> tuple[set[int], bool]:
        """Who can be drawn, and whether it can be nobody."""
        pools = list(service.pools[: service.pool_count])
        found: set[int] = set()
        for i, number in enumerate(pools):
            if not service.short_pools >> i & 1:
                ends = self._ends(number, self.scene.health)
                found |= ends - {0}
                if 0 not in ends:
                    return found, False
        if service.flags & ServiceFlag.FAIL_CLOSED or not pools:
            return found, True
        whole = self._ends(pools[0], None)
        return found | whole - {0}, 0 in whole

    def _ends(self, number: int, health: choice.Health | None) -> set[int]:
        """Where walks from all slots end; 0: nowhere."""
        pool = choice.pool_of(self.state, number)
        if pool is None:
            return {0}
        ends = set()
        for first in range(pool.size):
            *_, last = choice.visits(self.state, pool, first, health)
            ends.add(0 if last.why else last.backend)
        return ends


def _fields(fields: abi.HashFields) -> str:
    return {
        abi.HashFields.FIVE_TUPLE: "all of the 5-tuple",
        abi.HashFields.SOURCE: "the source address",
        abi.HashFields.SOURCE_PORT: "the source address and the service's port",
    }[fields]
