"""Health at the moment of choice: the walk, the spare table, ramps, overrides, ids of another life. §4."""

from dataclasses import replace

import pytest

from bpf import abi
from bpf.abi import BackendFlag, Forward, HealthState, ServiceFlag, Verdict
from tests.support.bed import Bed
from tests.support.frames import tcp
from tests.support.scenes import Net, backend, both, one, pool, port_to_slot
from tests.support.world import Health, Pool, World, make_id, ramp_byte

UP, DOWN, UNKNOWN, STALE = Health.UP, Health.DOWN, Health.UNKNOWN, Health.STALE
SIZE, STEP = 61, 17
CLOSED = ServiceFlag.FAIL_CLOSED


def walked(net: Net, start: int, healths: list[Health], **fields: object) -> Pool:
    """From slot `start` on, a walk meets b1, b2, ... in this health; every other slot is empty."""
    slots = [""] * SIZE
    for k in range(len(healths)):
        slots[(start + k * STEP) % SIZE] = f"b{k + 1}"
    backends = tuple(backend(net, k + 1, health=health) for k, health in enumerate(healths))
    return Pool("web", backends, size=SIZE, step=STEP, slots=tuple(slots), **fields)  # type: ignore[arg-type]


def world_of(net: Net, *pools: Pool, flags: int = CLOSED) -> World:
    return one(net, Forward.DSR, pools=pools, flags=flags)


def chosen(bed: Bed, net: Net, slot: int, size: int = SIZE) -> str | None:
    """Which backend a packet gets whose hash names `slot`; None if it gets none."""
    frame = net.frame(tcp(port_to_slot(net, slot, size=size), 80, "S"))
    outcome = bed.send(frame)
    assert outcome.verdict in (Verdict.FORWARDED, Verdict.NO_BACKEND)
    return outcome.backend if outcome.verdict == Verdict.FORWARDED else None


@pytest.mark.parametrize("start", [0, 30, 60], ids=lambda s: f"slot {s}")
@pytest.mark.parametrize("down", range(9), ids=lambda n: f"{n} down")
@both
def test_the_walk_goes_eight_slots_on(bed: Bed, net: Net, start: int, down: int) -> None:
    bed.load(world_of(net, walked(net, start, [DOWN] * down + [UP] * (9 - down), no_spares=True)))
    assert chosen(bed, net, start) == f"b{down + 1}"


@both
def test_the_tenth_slot_is_not_visited(bed: Bed, net: Net) -> None:
    bed.load(world_of(net, walked(net, 5, [DOWN] * 9 + [UP], no_spares=True)))
    assert chosen(bed, net, 5) is None


@both
def test_after_the_walk_the_spare_of_the_first_slot_serves(bed: Bed, net: Net) -> None:
    spares = [""] * SIZE
    spares[5] = "b10"
    spares[(5 + 8 * STEP) % SIZE] = spares[(5 + STEP) % SIZE] = "b11"
    healths = [DOWN] * 9 + [UP, UP]
    bed.load(world_of(net, walked(net, 5, healths, spares=tuple(spares))))
    assert chosen(bed, net, 5) == "b10"


@pytest.mark.parametrize(
    ("health", "flags", "ramp", "serves"),
    [
        (UP, 0, 255, True),
        (UP, 0, 0, True),  # the ramp is ignored: somebody must serve
        (DOWN, 0, 255, False),
        (UNKNOWN, 0, 255, False),
        (UNKNOWN, BackendFlag.ASSUME_UP, 255, True),
        (UP, BackendFlag.FORCED_DOWN, 255, False),
        (DOWN, BackendFlag.FORCED_UP, 0, True),
    ],
)
@both
def test_a_spare_serves_if_it_is_usable(
    bed: Bed, net: Net, health: Health, flags: int, ramp: int, serves: bool
) -> None:
    made = walked(net, 5, [DOWN] * 9, spares=("b10",) * SIZE)
    spare = backend(net, 10, health=health, flags=flags, ramp=ramp)
    bed.load(world_of(net, replace(made, backends=(*made.backends, spare))))
    assert chosen(bed, net, 5) == ("b10" if serves else None)


@pytest.mark.parametrize("fields", [{"no_spares": True}, {"spares": ("",) * SIZE}], ids=str)
@both
def test_without_a_spare_the_next_pool_serves(
    bed: Bed, net: Net, fields: dict[str, object]
) -> None:
    other = pool(net, name="sorry", backends=(backend(net, 12),))
    bed.load(world_of(net, walked(net, 5, [DOWN] * 9, **fields), other))
    assert chosen(bed, net, 5) == "b12"


# ---- one backend ----


@pytest.mark.parametrize(
    ("health", "flags", "usable"),
    [
        (UP, 0, True),
        (DOWN, 0, False),
        (UNKNOWN, 0, False),
        (STALE, 0, False),
        (UP, BackendFlag.ASSUME_UP, True),
        (DOWN, BackendFlag.ASSUME_UP, False),
        (UNKNOWN, BackendFlag.ASSUME_UP, True),
        (STALE, BackendFlag.ASSUME_UP, True),
        (UP, BackendFlag.FORCED_UP, True),
        (DOWN, BackendFlag.FORCED_UP, True),
        (UNKNOWN, BackendFlag.FORCED_UP, True),
        (STALE, BackendFlag.FORCED_UP, True),
        (UP, BackendFlag.FORCED_DOWN, False),
        (UP, BackendFlag.FORCED_DOWN | BackendFlag.FORCED_UP, False),
        (UNKNOWN, BackendFlag.FORCED_DOWN | BackendFlag.ASSUME_UP, False),
        (UP, BackendFlag.NO_NEW, True),
    ],
)
@both
def test_who_is_usable(bed: Bed, net: Net, health: Health, flags: int, usable: bool) -> None:
    subject = backend(net, 1, health=health, flags=flags)
    bed.load(world_of(net, pool(net, backends=(subject,), slots=("b1",) * SIZE, no_spares=True)))
    assert chosen(bed, net, 5) == ("b1" if usable else None)


@pytest.mark.parametrize("state", HealthState, ids=lambda s: s.name)
@both
def test_another_lifes_health_says_nothing(bed: Bed, net: Net, state: HealthState) -> None:
    """An entry that carries another incarnation is unknown, whatever it says."""
    subject = backend(net, 1, incarnation=7)
    made = pool(net, backends=(subject,), slots=("b1",) * SIZE, no_spares=True)
    assumed = replace(made, backends=(replace(subject, flags=BackendFlag.ASSUME_UP),))
    for pools, serves in ((made, False), (assumed, True)):
        bed.load(world_of(net, pools))
        bed.maps.health.put(1, abi.Health(id=make_id(1, 6), state=state, ramp=255))
        assert chosen(bed, net, 5) == ("b1" if serves else None)


@pytest.mark.parametrize("stale", [make_id(1, 2), make_id(63, 1), make_id(9999, 1), 1, 0])
@both
def test_a_slot_whose_id_means_nothing_is_walked_past(bed: Bed, net: Net, stale: int) -> None:
    slots = [stale] * SIZE
    slots[(5 + STEP) % SIZE] = 0
    named: tuple[str | int, ...] = tuple(
        "b1" if s == (5 + 2 * STEP) % SIZE else slots[s] for s in range(SIZE)
    )
    bed.load(world_of(net, pool(net, 1, slots=named, no_spares=True)))
    assert chosen(bed, net, 5) == "b1"
    assert chosen(bed, net, (5 + 3 * STEP) % SIZE) is None


# ---- whole ----


@pytest.mark.parametrize(
    ("healths", "flags", "expected"),
    [
        ([DOWN, DOWN], [0, 0], "b1"),
        ([UNKNOWN, DOWN], [0, 0], "b1"),
        ([DOWN, DOWN], [BackendFlag.FORCED_DOWN, 0], "b2"),
        ([DOWN, DOWN], [BackendFlag.FORCED_DOWN, BackendFlag.FORCED_DOWN], None),
    ],
)
@both
def test_a_pool_used_whole_disregards_health_but_not_the_operator(
    bed: Bed, net: Net, healths: list[Health], flags: list[int], expected: str | None
) -> None:
    made = walked(net, 5, healths, no_spares=True)
    backends = tuple(replace(b, flags=f) for b, f in zip(made.backends, flags, strict=True))
    bed.load(world_of(net, replace(made, backends=backends), flags=0))
    assert chosen(bed, net, 5) == expected


@both
def test_used_whole_the_ramp_does_not_matter(bed: Bed, net: Net) -> None:
    slot = next(s for s in range(SIZE) if ramp_byte(s) > 100)
    starting = backend(net, 1, ramp=0)
    made = pool(net, backends=(starting,), slots=("b1",) * SIZE, no_spares=True)
    bed.load(world_of(net, made, flags=0))
    bed.set_health("web/b1", HealthState.DOWN)
    assert chosen(bed, net, slot) == "b1"


# ---- the ramp ----


@pytest.mark.parametrize("slot", [0, 1, 5, 30, 60])
@both
def test_a_slot_is_handed_over_when_the_ramp_reaches_its_hash(
    bed: Bed, net: Net, slot: int
) -> None:
    made = walked(net, slot, [UP, UP])
    bed.load(world_of(net, made))
    due = ramp_byte(slot)
    for ramp in {0, max(due - 1, 0), due, min(due + 1, 255), 255}:
        bed.set_health("web/b1", HealthState.UP, ramp)
        assert chosen(bed, net, slot) == ("b1" if due <= ramp else "b2"), (ramp, due)


@both
def test_raising_the_ramp_hands_slots_back_one_by_one(bed: Bed, net: Net) -> None:
    """Its share grows with the ramp, and no slot that it got is taken away again."""
    bed.load(world_of(net, pool(net, 2)))
    owned: set[int] = set()
    for ramp in (0, 63, 127, 191, 255):
        bed.set_health("web/b1", HealthState.UP, ramp)
        now = {slot for slot in range(SIZE) if chosen(bed, net, slot) == "b1"}
        assert owned <= now
        owned = now
    assert len(owned) == 31


@both
def test_forced_up_needs_no_ramp(bed: Bed, net: Net) -> None:
    subject = backend(net, 1, ramp=0, flags=BackendFlag.FORCED_UP)
    bed.load(world_of(net, pool(net, backends=(subject,), no_spares=True)))
    assert {chosen(bed, net, slot) for slot in range(0, SIZE, 5)} == {"b1"}


# ---- what moves ----


@both
def test_a_backend_going_down_moves_its_own_slots_only_and_gets_them_back(
    bed: Bed, net: Net
) -> None:
    bed.load(world_of(net, pool(net, 4)))
    before = [chosen(bed, net, slot) for slot in range(SIZE)]
    bed.set_health("web/b2", HealthState.DOWN)
    during = [chosen(bed, net, slot) for slot in range(SIZE)]
    assert "b2" not in during
    assert all(now == then for now, then in zip(during, before, strict=True) if then != "b2")
    bed.set_health("web/b2", HealthState.UP)
    assert [chosen(bed, net, slot) for slot in range(SIZE)] == before


@pytest.mark.parametrize("size", [1, 2, 61, 509])
@both
def test_with_one_of_many_usable_every_slot_finds_it(bed: Bed, net: Net, size: int) -> None:
    """Farther than any walk: the spare table knows."""
    backends = tuple(backend(net, i, health=UP if i == 7 else DOWN) for i in range(1, 13))
    step = 17 if size > 17 else 1
    slots = tuple("b7" if s == 0 else f"b{s % 6 + 1}" for s in range(size))
    bed.load(world_of(net, pool(net, backends=backends, size=size, step=step, slots=slots)))
    for slot in range(0, size, max(1, size // 40)):
        assert chosen(bed, net, slot, size) == "b7"


@both
def test_a_table_of_another_size_takes_over_at_once(bed: Bed, net: Net) -> None:
    bed.load(world_of(net, pool(net, 1, size=61)))
    assert chosen(bed, net, 5) == "b1"
    bed.configure(world_of(net, pool(net, 3, size=127, slots=("b3",) * 127)))
    assert {chosen(bed, net, slot, 127) for slot in range(0, 127, 9)} == {"b3"}
