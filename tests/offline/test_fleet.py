import numpy as np
import pytest

from polyroute.errors import ConfigError, ShapeError
from polyroute.offline.fleet import Arrivals, Instance, least_busy, poisson, simulate


def arrivals(times, prompt=0.0, output=1.0, prefix=None):
    n = len(times)
    return Arrivals(np.array(times, float), np.full(n, prompt), np.full((n, 1), output), None, prefix)


def first(requests, fleet):
    return [0] * len(requests)


def test_one_slot_serves_in_order():
    served = simulate([Instance(id="a", seconds_per_token=1.0)], arrivals([0.0, 0.5, 5.0], output=2.0), first)
    assert served.start_s.tolist() == [0.0, 2.0, 5.0]
    assert served.finish_s.tolist() == [2.0, 4.0, 7.0]


def test_slots_are_filled_before_anyone_waits():
    served = simulate([Instance(id="a", slots=2, seconds_per_token=1.0)], arrivals([0.0, 0.0, 0.0], output=2.0), first)
    assert sorted(served.start_s.tolist()) == [0.0, 0.0, 2.0]


def test_a_cached_prefix_is_not_read_again_until_it_is_pushed_out():
    spec = Instance(id="a", prefill_tokens_per_s=1000.0, cache_blocks=3, block_tokens=100)
    prefixes = [(1, 2), (1, 2), (1, 3), (4, 5), (1, 2)]
    served = simulate([spec], arrivals(np.arange(5.0), prompt=300.0, output=0.0, prefix=prefixes), first)
    assert served.cached.tolist() == [0.0, 200.0, 100.0, 0.0, 100.0]
    assert (served.first_s - served.start_s).tolist() == pytest.approx([0.3, 0.1, 0.2, 0.3, 0.2])


def test_models_write_answers_of_their_own_length():
    specs = [Instance(id="a", seconds_per_token=1.0), Instance(id="b", model=1, seconds_per_token=1.0)]
    served = simulate(specs, Arrivals(np.zeros(2), np.zeros(2), np.array([[1.0, 5.0], [1.0, 5.0]])), least_busy)
    assert served.instance.tolist() == [0, 1]
    assert served.finish_s.tolist() == [1.0, 5.0]


def test_the_state_counts_what_is_left_to_do():
    seen = []

    def look(requests, fleet):
        seen.append((fleet.state(0), fleet.busy()))
        return [0] * len(requests)

    spec = Instance(id="a", prefill_tokens_per_s=100.0, seconds_per_token=0.1)
    simulate([spec], arrivals([0.0, 0.5, 1.5], prompt=100.0, output=20.0), look)
    (empty, idle), (early, busy), (late, _) = seen
    assert (empty.running, empty.waiting, idle) == (0, 0, 0.0)
    assert (early.running, early.waiting, busy) == (1, 0, 1.0)
    assert (early.pending_prefill, early.pending_decode) == pytest.approx((50.0, 20.0))
    assert (late.running, late.waiting) == (1, 1)
    assert (late.pending_prefill, late.pending_decode) == pytest.approx((100.0, 15.0 + 20.0))


def test_a_batch_is_placed_when_it_is_full_or_its_time_is_up():
    batches = []

    def place(requests, fleet):
        batches.append((fleet.now, list(requests)))
        return [0] * len(requests)

    times = [0.0, 0.01, 0.02, 1.0]
    simulate([Instance(id="a")], arrivals(times), place, gather=lambda busy: (3, 0.5))
    assert batches == [(0.02, [0, 1, 2]), (1.5, [3])]


def test_waiting_requests_may_be_moved():
    specs = [Instance(id=name, seconds_per_token=1.0) for name in "ab"]

    def move(fleet, j):
        waiting = list(fleet.live[0].queue)
        return [(waiting[0], 0, 1)] if len(waiting) > 1 and not fleet.live[1].running else []

    served = simulate(specs, arrivals([0.0, 0.1, 0.2], output=10.0), first, move=move)
    assert served.moves == 1
    assert served.instance.tolist() == [0, 1, 0]
    assert served.finish_s.max() == 20.0


def test_the_same_seed_gives_the_same_run_and_streams_have_their_rate():
    times = poisson(50.0, 20_000, np.random.default_rng(0))
    assert times[-1] == pytest.approx(400.0, rel=0.03)
    runs = [
        simulate([Instance(id="a", slots=4, seconds_per_token=0.05)], arrivals(times[:500]), least_busy) for _ in "ab"
    ]
    assert (runs[0].finish_s == runs[1].finish_s).all()


def test_wrong_arguments_are_named():
    with pytest.raises(ConfigError, match="requests in order of time"):
        simulate([Instance(id="a")], arrivals([1.0, 0.0]), first)
    with pytest.raises(ConfigError, match="at least one instance"):
        simulate([], arrivals([1.0]), first)
    with pytest.raises(ShapeError, match="output"):
        simulate([Instance(id="a")], Arrivals(np.zeros(2), np.zeros(2), np.zeros(2)), first)
    for bad in ({"slots": 0}, {"prefill_tokens_per_s": 0.0}, {"seconds_per_token": -1.0}):
        with pytest.raises(ConfigError):
            Instance(id="a", **bad)
