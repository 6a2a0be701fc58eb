import numpy as np
import pytest

from polyroute.errors import ConfigError, NoCandidateError, ShapeError
from polyroute.policies.assign import (
    Assign,
    AssignConfig,
    Batch,
    InstanceState,
    Lateness,
    assign,
    gathering,
    output_limit,
)
from polyroute.types import Estimate, Objective

ALIKE = [InstanceState(slots=2, seconds_per_token=0.01, prefill_tokens_per_s=1000.0) for _ in range(3)]


def batch(n, m=3, quality=0.5, cost=1.0, output=100.0):
    full = [np.broadcast_to(np.asarray(x, float), (n, m)).copy() for x in (quality, cost, output)]
    return Batch(*full, np.full(n, 100.0))


def columns(placed):
    return [place.column for place in placed]


def test_expected_delays_are_queue_prompt_and_answer():
    free = InstanceState(running=1, slots=2, pending_decode=50.0, prefill_tokens_per_s=1000.0, seconds_per_token=0.01)
    assert free.delays(100.0, 200.0) == pytest.approx((0.1, 2.1))
    full = InstanceState(2, 1, 2, 500.0, 300.0, 1000.0, 0.01)
    assert full.delays(100.0, 200.0) == pytest.approx((1.5 + 0.6, 1.5 + 0.6 + 2.0))


def test_placements_of_a_batch_are_seen_by_those_that_follow():
    assert sorted(columns(assign(batch(6), ALIKE))) == [0, 0, 1, 1, 2, 2]
    herd = assign(batch(6), ALIKE, AssignConfig(reckon=False))
    assert columns(herd) == [0] * 6
    assert ALIKE[0].waiting == 0  # the caller's states stay as they are


def test_the_longest_answers_are_placed_first():
    full = [InstanceState(slots=1, seconds_per_token=s) for s in (0.01, 0.02)]
    output = np.array([[100.0, 100.0], [900.0, 900.0]])
    placed = assign(Batch(np.full((2, 2), 0.5), np.ones((2, 2)), output, np.zeros(2)), full)
    assert columns(placed) == [1, 0]
    assert [place.row for place in placed] == [0, 1]


def test_weights_trade_quality_cost_and_latency():
    states = [InstanceState(slots=8, seconds_per_token=s) for s in (0.01, 0.03)]
    two = Batch(np.array([[0.5, 0.8]]), np.array([[1.0, 4.0]]), np.full((1, 2), 100.0), np.zeros(1))
    assert columns(assign(two, states, AssignConfig(quality=1.0, cost=0.0, latency=0.0))) == [1]
    assert columns(assign(two, states, AssignConfig(quality=1.0, cost=1.0, latency=0.0))) == [0]
    assert columns(assign(two, states, AssignConfig(quality=1.0, cost=0.0, latency=1.0))) == [0]
    spread = AssignConfig(quality=1.0, cost=0.9, latency=0.0, spread_quality=True)
    assert columns(assign(two, states, spread)) == [1]


def test_a_limit_rules_out_and_is_relaxed_in_order_where_nobody_keeps_it():
    states = [InstanceState(slots=8, seconds_per_token=s) for s in (0.01, 0.03)]
    two = Batch(np.array([[0.5, 0.9]]), np.ones((1, 2)), np.full((1, 2), 100.0), np.zeros(1))
    best = {"quality": 1.0, "cost": 0.0, "latency": 0.0}
    (placed,) = assign(two, states, AssignConfig(**best, latency_s=2.0))
    assert (placed.column, placed.relaxed) == (0, 0)
    (placed,) = assign(two, states, AssignConfig(**best, latency_s=0.95))
    assert (placed.column, placed.relaxed) == (0, 1)
    (placed,) = assign(two, states, AssignConfig(**best, latency_s=0.1))
    assert (placed.column, placed.relaxed) == (1, -1)
    (placed,) = assign(two, states, AssignConfig(**best, latency_s=2.0, min_quality=0.9))
    assert (placed.column, placed.relaxed) == (1, -1)  # neither at 1.33 times the seconds nor at 0.73 of the quality
    (placed,) = assign(two, states, AssignConfig(**best, latency_s=2.0, min_quality=0.52))
    assert (placed.column, placed.relaxed) == (0, 2)  # latency is given up first, then quality


def test_lateness_moves_the_limit():
    late = Lateness()
    for ratio in np.linspace(0.5, 2.0, 100):
        late.saw(1.0, float(ratio))
    assert late.factor(0.7) == pytest.approx(np.quantile(np.append(np.linspace(0.5, 2.0, 100), 1.0), 0.7))
    states = [InstanceState(slots=8, seconds_per_token=s) for s in (0.01, 0.015)]
    two = Batch(np.array([[0.5, 0.9]]), np.ones((1, 2)), np.full((1, 2), 100.0), np.zeros(1))
    config = AssignConfig(quality=1.0, cost=0.0, latency=0.0, latency_s=1.6)
    assert columns(assign(two, states, config)) == [1]
    assert columns(assign(two, states, config, lateness=late)) == [0]


def test_as_a_policy_it_reads_the_states_once_a_batch():
    asked = []

    def states():
        asked.append(1)
        return ALIKE

    b = batch(4)
    estimates = {"quality": Estimate(b.quality), "cost": Estimate(b.cost), "output_tokens": Estimate(b.output)}
    allowed = np.array([[True, True, False]] * 4)
    chosen = Assign(states).decide(estimates, Objective({"quality": 1.0}), allowed, np.random.default_rng(0))
    assert sorted(chosen.index.ravel().tolist()) == [0, 0, 1, 1]
    assert len(asked) == 1
    assert chosen.weight.tolist() == [[0.5]] * 4


def test_batches_grow_with_the_fleets_load():
    assert [gathering(busy) for busy in (0.1, 0.5, 0.9)] == [(4, 0.05), (16, 0.1), (32, 0.2)]


def test_an_answer_is_as_long_as_its_budget():
    assert output_limit(0.01, 1000, 2.0, 8.0) == 1000
    assert output_limit(0.001, 1000, 2.0, 8.0) == 0
    assert output_limit(0.001, 0, 2.0, 0.0) == 2**31


def test_nobody_allowed_and_wrong_shapes_are_told():
    with pytest.raises(NoCandidateError):
        assign(batch(1), ALIKE, allowed=np.zeros((1, 3), bool))
    with pytest.raises(ShapeError, match="states"):
        assign(batch(1), ALIKE[:2])
    with pytest.raises(ShapeError, match="cost"):
        assign(batch(1)._replace(cost=np.ones((2, 3))), ALIKE)
    with pytest.raises(ConfigError, match="certainty"):
        AssignConfig(certainty=1.0)
    with pytest.raises(ConfigError, match="quality"):
        AssignConfig(quality=-1.0)
    assert assign(batch(0), ALIKE) == []
