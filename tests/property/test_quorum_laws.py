"""When a pool is passed over, and when it serves again: laws of the decision, and of the maps that it is read from."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import assume, given
from hypothesis import strategies as st

from reconciler.model import Service
from reconciler.quorum import Strength, enough, enough_again, short


@st.composite
def services(draw: st.DrawFn) -> Service:
    panic = draw(st.integers(0, 100))
    recover = draw(st.none() | st.integers(panic, 100))
    return Service("www", (), (), ("web", "sorry"), panic=panic, recover=recover)


@st.composite
def strengths(draw: st.DrawFn) -> Strength:
    members = draw(st.integers(0, 30))
    usable = draw(st.integers(0, members))
    unknown = draw(st.just(0) | st.integers(0, members - usable))
    return Strength(usable, members, draw(st.booleans()), unknown)


several = st.lists(strengths(), min_size=1, max_size=8)


def chosen(service: Service, pools: list[Strength]) -> int | None:
    """The pool that serves; None: the first is used whole, or the packet dropped."""
    passed = short(service, pools)
    return next((i for i, p in enumerate(pools) if p.usable and not passed[i]), None)


def step(service: Service, before: list[Strength], usable: list[int]) -> list[Strength]:
    """The next look: other backends are usable, and what was decided is what the maps say."""
    passed = short(service, before)
    return [
        replace(pool, usable=now, was_short=was)
        for now, pool, was in zip(usable, before, passed, strict=True)
    ]


@given(services(), several)
def test_below_its_panic_share_a_pool_is_always_passed_over(
    service: Service, pools: list[Strength]
) -> None:
    for pool, is_short in zip(pools, short(service, pools), strict=True):
        if (pool.usable + pool.unknown) * 100 < service.panic * pool.members:
            assert is_short


@given(services(), strengths(), st.integers(1, 30))
def test_backends_that_nobody_has_checked_yet_end_no_service(
    service: Service, pool: Strength, more: int
) -> None:
    grown = replace(pool, members=pool.members + more, unknown=pool.unknown + more)
    if not pool.was_short and not short(service, [pool])[0]:
        assert not short(service, [grown])[0]


@given(services(), several)
def test_who_was_not_short_and_meets_the_share_never_is(
    service: Service, pools: list[Strength]
) -> None:
    for pool, is_short in zip(pools, short(service, pools), strict=True):
        if not pool.was_short and pool.usable * 100 >= service.panic * pool.members:
            assert not is_short


@given(services(), several)
def test_a_second_look_at_the_same_health_decides_alike(
    service: Service, pools: list[Strength]
) -> None:
    again = step(service, pools, [pool.usable for pool in pools])
    assert short(service, again) == short(service, pools)


@given(services(), several)
def test_waiting_never_leaves_a_service_without_a_pool_that_had_one(
    service: Service, pools: list[Strength]
) -> None:
    """History may choose between pools, but never that there is none."""
    fresh = [replace(pool, was_short=False) for pool in pools]
    assert (chosen(service, pools) is None) == (chosen(service, fresh) is None)


@given(services(), several)
def test_all_back_is_enough_whatever_was(service: Service, pools: list[Strength]) -> None:
    whole = [Strength(pool.members, pool.members, pool.was_short) for pool in pools]
    assert not any(short(service, whole))


@st.composite
def at_an_edge(draw: st.DrawFn) -> tuple[Service, int, int]:
    """A service whose file leaves a backend's worth between the two, its first pool's size, and how many there are sound."""
    service, members = draw(services()), draw(st.integers(1, 30))
    least, again = enough(service.panic, members), enough_again(service, members)
    assume(0 < least < again)
    return service, members, draw(st.sampled_from([least, again])) - 1


@given(at_an_edge(), st.lists(st.booleans(), min_size=2, max_size=12))
def test_one_backend_that_flaps_at_the_edge_does_not_send_clients_to_and_fro(
    edge: tuple[Service, int, int], flaps: list[bool]
) -> None:
    service, members, sound = edge
    pools = [Strength(sound, members), Strength(3, 3)]
    seen = [chosen(service, pools)]
    for flap in flaps:
        pools = step(service, pools, [sound + flap, 3])
        seen.append(chosen(service, pools))
    changes = sum(one != other for one, other in pairwise(seen))
    assert changes <= 1


@given(st.integers(1, 100), st.integers(3, 1000))
def test_unless_the_file_says_otherwise_there_is_a_backend_between_the_two(
    panic: int, members: int
) -> None:
    least = enough(panic, members)
    again = enough_again(Service("www", (), (), (), panic=panic), members)
    assert again <= max(least, members - 1), "one broken backend never keeps a pool out"
    assert again > least or least >= members - 1
    if least < members - 1 and panic <= 90:
        assert again >= min(members - 1, (panic + 10) * members / 100)
