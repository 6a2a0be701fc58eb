import math

import numpy as np
import pytest

from polyroute.constraints import healthy, offers_needs, only
from polyroute.decide import decide, own_rng, weigh
from polyroute.errors import EstimateError, NoCandidateError, SelectionError, ShapeError
from polyroute.policies.explore import UCB, Epsilon, Thompson
from polyroute.policies.greedy import Greedy
from polyroute.protocols import OnlineRouter, Router
from polyroute.types import Candidate, Estimate, Objective, Profile, Query, Selection

POOL = [Candidate("small"), Candidate("medium", profile=Profile(offers=frozenset({"tools"}))), Candidate("large")]
GOAL = Objective({"quality": 1.0, "cost": -10.0})


class Table:
    """A router that knows quality by query id, and the cost of each candidate."""

    def __init__(self, quality, std=None):
        self.quality, self.std = quality, std

    def fit(self, outcomes):
        return self

    def predict(self, queries, pool):
        column = {"small": 0, "medium": 1, "large": 2}
        columns = [column[candidate.id] for candidate in pool]
        mean = np.array([self.quality[query.id] for query in queries], dtype=float).reshape(-1, 3)[:, columns]
        cost = np.tile(np.array([0.001, 0.01, 0.05])[columns], (len(queries), 1))
        return {
            "quality": Estimate(mean, None if self.std is None else np.full(mean.shape, self.std)),
            "cost": Estimate(cost),
        }


ROUTER = Table({"easy": [0.8, 0.81, 0.82], "hard": [0.1, 0.3, 0.95], "even": [0.5, 0.59, 0.0]})
QUERIES = [Query("easy"), Query("hard")]


def test_each_query_goes_where_utility_is_highest_and_says_why():
    easy, hard = decide(QUERIES, POOL, ROUTER, Greedy(), GOAL)
    assert (easy.query_id, easy.candidate_ids, easy.propensity) == ("easy", ("small",), 1.0)
    assert easy.because == "leads medium by 0.080 utility"  # 0.8 - 0.01 against 0.81 - 0.1
    assert (hard.candidate_ids, hard.because) == (("large",), "leads medium by 0.250 utility")


def test_the_order_of_the_pool_does_not_matter():
    for pool in (POOL[::-1], [POOL[1], POOL[0], POOL[2]]):
        ids = [d.candidate_ids for d in decide(QUERIES, pool, ROUTER, Greedy(), GOAL)]
        assert ids == [("small",), ("large",)]


def test_a_weighing_keeps_estimates_utilities_and_refusals():
    queries = [Query("easy", needs=frozenset({"tools"})), Query("hard")]
    weighing = weigh(queries, POOL, ROUTER, Greedy(), GOAL, [healthy({"large"}), offers_needs])
    assert [d.candidate_ids for d in weighing.decisions] == [("medium",), ("medium",)]
    assert weighing.refused == [{"large": "healthy", "small": "offers_needs"}, {"large": "healthy"}]
    np.testing.assert_allclose(weighing.utility, [[0.79, 0.71, 0.32], [0.09, 0.2, 0.45]])
    assert weighing.estimates["cost"].mean.shape == (2, 3)
    assert weighing.decisions[0].because == "only candidate allowed"


def test_the_first_constraint_against_a_candidate_is_the_one_named():
    rules = [only({"medium", "large"}), healthy({"small", "large"})]
    assert weigh([Query("easy")], POOL, ROUTER, Greedy(), GOAL, rules).refused == [
        {"small": "only", "large": "healthy"}
    ]


def test_nobody_left_is_an_error_that_names_who_and_why():
    rules = [only({"medium", "large"}), healthy({"medium", "large"})]
    with pytest.raises(NoCandidateError, match=r"'hard'.*small by only, medium by healthy, large by healthy") as caught:
        decide([Query("hard")], POOL, ROUTER, Greedy(), GOAL, rules)
    assert caught.value.refused == {"small": "only", "medium": "healthy", "large": "healthy"}


def test_an_empty_pool_is_an_error_and_no_queries_are_not():
    with pytest.raises(NoCandidateError, match="the pool is empty"):
        decide(QUERIES, [], ROUTER, Greedy(), GOAL)
    for pool in (POOL, []):
        empty = weigh([], pool, ROUTER, Thompson(), GOAL, [offers_needs, healthy({"small"})])
        assert (empty.decisions, empty.refused, empty.utility.shape) == ([], [], (0, len(pool)))


def test_the_propensity_is_logged_and_explained():
    decisions = [
        decide([Query("easy")], POOL, ROUTER, Epsilon(0.9), GOAL, rng=np.random.default_rng(s))[0] for s in range(20)
    ]
    best = [d for d in decisions if d.candidate_ids == ("small",)]
    others = [d for d in decisions if d.candidate_ids == ("large",)]
    assert best[0].propensity == pytest.approx(0.1 + 0.3)
    assert best[0].because == "leads medium by 0.080 utility, chosen with p=0.400"
    assert others[0].propensity == pytest.approx(0.3)
    assert others[0].because == "explores behind small by 0.470 utility, chosen with p=0.300"


def test_one_seed_makes_one_log():
    router = Table(ROUTER.quality, std=0.3)
    logs = [decide(QUERIES * 10, POOL, router, Thompson(), GOAL, rng=np.random.default_rng(4)) for _ in range(2)]
    assert logs[0] == logs[1]
    assert len({d.candidate_ids for d in logs[0]}) > 1


def test_without_a_seed_chance_is_fresh():
    picks = {decide([Query("even")], POOL, ROUTER, Epsilon(1.0), GOAL)[0].candidate_ids for _ in range(60)}
    assert len(picks) == 3  # fails once in 1e10


def test_a_choice_moved_by_something_else_than_utility_says_so():
    class Doubtful(Table):
        def predict(self, queries, pool):
            estimates = super().predict(queries, pool)
            return {**estimates, "quality": Estimate(estimates["quality"].mean, np.array([[0.0, 0.0, 0.6]]))}

    decision = decide([Query("easy")], POOL, Doubtful(ROUTER.quality), UCB(), GOAL)[0]
    assert decision.candidate_ids == ("large",)
    assert decision.because == "held back from small by price, deadline or doubt, 0.470 utility behind"


def test_several_candidates_become_several_names():
    decision = decide([Query("hard")], POOL, ROUTER, Greedy(3), GOAL, [healthy({"medium"})])[0]
    assert decision.candidate_ids == ("large", "small")


class Fixed:
    """A policy that always answers the same."""

    def __init__(self, *selection):
        self.selection = Selection(*map(np.array, selection))

    def decide(self, estimates, objective, allowed, rng):
        return self.selection


def test_the_propensity_of_an_ordered_set_is_the_product():
    policy = Fixed([[2, 0, -1]], [[1.0, 1.0, 0.0]], [[0.5, 0.25, 0.125]])
    decision = decide([Query("hard")], POOL, ROUTER, policy, GOAL)[0]
    assert (decision.candidate_ids, decision.propensity) == (("large", "small"), 0.125)


@pytest.mark.parametrize("column", [1, 3, -1])
def test_a_policy_may_not_choose_what_is_ruled_out_or_not_there(column):
    with pytest.raises(
        SelectionError, match=rf"Fixed chose column {column} for query 'hard': expected one of small, large"
    ):
        decide([Query("hard")], POOL, ROUTER, Fixed([[column]], [[1.0]]), GOAL, [healthy({"medium"})])


def test_a_constraint_of_another_shape_is_named():
    def transposed(queries, pool):
        return np.ones((len(pool), len(queries)), bool)

    with pytest.raises(ShapeError, match=r"constraint transposed: expected shape \(2, 3\), got \(3, 2\)"):
        decide(QUERIES, POOL, ROUTER, Greedy(), GOAL, [transposed])


def test_a_router_that_does_not_know_is_an_error_only_where_it_matters():
    router = Table({"odd": [math.nan, 0.5, 0.4]})
    with pytest.raises(EstimateError, match=r"estimates\['quality'\]\[0, 0\].*got nan"):
        decide([Query("odd")], POOL, router, Greedy(), GOAL)
    assert decide([Query("odd")], POOL, router, Greedy(), GOAL, [healthy({"small"})])[0].candidate_ids == ("medium",)


def test_any_object_of_the_right_shape_is_a_router():
    assert isinstance(ROUTER, Router)
    assert not isinstance(ROUTER, OnlineRouter)
    assert not isinstance(object(), Router)


def test_duplicate_ids_in_a_pool_still_leave_nobody():
    twice = [Candidate("small"), Candidate("small")]
    with pytest.raises(NoCandidateError, match="small by healthy"):
        decide([Query("easy")], twice, ROUTER, Greedy(), GOAL, [healthy({"small"})])


def test_who_brings_no_randomness_gets_the_process_own_and_a_fork_another():
    mine = own_rng(1)
    assert own_rng(1) is mine
    assert own_rng(2).random(4).tolist() != mine.random(4).tolist()
    log = decide(QUERIES * 50, POOL, ROUTER, Epsilon(0.9), GOAL)
    again = decide(QUERIES * 50, POOL, ROUTER, Epsilon(0.9), GOAL)
    assert [d.candidate_ids for d in log] != [d.candidate_ids for d in again]
