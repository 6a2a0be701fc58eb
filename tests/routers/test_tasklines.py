from __future__ import annotations

import numpy as np

from polyroute.routers.tasklines import learn_lines
from polyroute.types import Candidate, Outcomes, Profile
from tests.routers.tables import queries_of

RNG = np.random.default_rng(0)


def priced(n=400, noise=0.0):
    """Two tasks with answers of 10 and 100 tokens; two candidates at 1 and 5 USD per million, in and out."""
    task, tokens = RNG.integers(2, size=n), RNG.integers(10, 400, size=n)
    price = np.array([1.0, 5.0]) / 1e6
    cost = (tokens + np.where(task, 100, 10))[:, None] * price * (1 + noise * RNG.normal(size=(n, 2)))
    queries = queries_of(np.zeros((n, 1), np.float32), tokens=tokens)
    pool = [Candidate(f"m{j}") for j in range(2)]
    return Outcomes(queries, pool, {"cost": np.maximum(cost, 0)}, np.ones((n, 2), bool)), task, tokens


def test_lines_of_a_price_list_are_found():
    table, task, tokens = priced()
    lines = learn_lines(table, task, 2)
    said = lines.read(np.eye(2)[task], tokens, lines.table(np.arange(2), table.pool))
    np.testing.assert_allclose(said.mean, table.values["cost"], rtol=0.1)
    assert (said.std < 0.2 * said.mean).all()


def test_doubt_about_the_task_is_doubt_about_the_cost():
    table, task, _ = priced()
    lines = learn_lines(table, task, 2)
    use = lines.table(np.arange(2), table.pool)
    sure, unsure = (lines.read(np.array([p]), np.array([50.0]), use).std for p in ([1.0, 0.0], [0.5, 0.5]))
    assert (unsure > 3 * sure).all()


def test_a_stranger_costs_what_its_list_says_until_it_was_paid():
    table, task, tokens = priced()
    lines = learn_lines(table, task, 2).widened(1)
    stranger = Candidate("new", profile=Profile(price_in=2.0, price_out=0.0))
    use = lines.table(np.array([2]), [stranger])
    np.testing.assert_allclose(lines.read(np.eye(2)[:1], np.array([100.0]), use).mean, 2e-4)
    paid = Outcomes(table.queries, [stranger], {"cost": table.values["cost"][:, 1:] * 3}, np.ones((400, 1), bool))
    lines = lines.updated(paid, np.eye(2)[task], np.array([2]))
    said = lines.read(np.eye(2)[task], tokens, lines.table(np.array([2]), [stranger])).mean
    np.testing.assert_allclose(said, paid.values["cost"], rtol=0.1)


def test_a_newcomers_few_bills_tell_prompts_from_completions():
    rng = np.random.default_rng(0)
    task, tokens = rng.integers(2, size=600), rng.integers(20, 400, size=600).astype(float)
    written = np.array([2.0, 300.0])[task]
    cost = np.stack([0.6 * tokens + 0.6 * written, 10 * tokens + 30 * written], axis=1) / 1e6
    table = Outcomes(queries_of(np.ones((600, 2)), tokens=tokens), [Candidate("cheap")], {"cost": cost[:, :1]},
                     np.ones((600, 1), bool))  # fmt: skip
    lines = learn_lines(table, task, 2)
    base, slope = lines.of_few(task[:30], tokens[:30], cost[:30, 1])
    said = base[task] + slope[task] * tokens
    np.testing.assert_allclose(said, cost[:, 1], rtol=0.4)
    assert np.abs(said / cost[:, 1] - 1).mean() < 0.15
    one = lines.of_few(task[:1], tokens[:1], cost[:1, 1])  # a single bill is met as it is
    np.testing.assert_allclose(one[0, task[0]] + one[1, task[0]] * tokens[0], cost[0, 1])
    assert (lines.of_few(task[:5], tokens[:5], np.zeros(5)) == 0).all()


def test_without_costs_there_are_no_lines():
    table, task, _ = priced()
    bare = Outcomes(table.queries, table.pool, {"quality": table.values["cost"]}, table.observed)
    assert not learn_lines(bare, task, 2).any
