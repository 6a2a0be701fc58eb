from __future__ import annotations

import numpy as np

from polyroute.routers.tasks import (
    PENALTY,
    RARE,
    SHARP,
    Prior,
    believe,
    classes_of,
    learn_prior,
    learn_recogniser,
    recognise,
    softmax,
    sums_of,
)
from polyroute.types import Candidate, Outcomes, Profile
from tests.routers.tables import table_of, toy

POOL = [Candidate(f"m{j}") for j in range(6)]


def labelled(dataset, topic=None):
    x = np.random.default_rng(0).normal(size=(len(dataset), 3)).astype(np.float32)
    table = table_of(x, np.ones((len(dataset), 2)))
    labels = {"dataset": np.array(dataset)} | ({} if topic is None else {"topic": np.array(topic)})
    return Outcomes(table.queries, table.pool, table.values, table.observed, labels), x


def test_tasks_are_topics_that_are_frequent_and_else_data_sets():
    dataset = ["exam"] * 60 + ["chat"] * 30
    topic = ["law"] * RARE + ["art"] * RARE + [str(i) for i in range(20)] + [""] * 30
    tasks = classes_of(*labelled(dataset, topic), np.random.default_rng(0))
    assert len(tasks.parent) == 4  # chat, exam and two of its topics
    assert sorted(np.bincount(tasks.parent)) == [1, 3]
    assert len(set(tasks.member[40:60])) == 1


def test_without_labels_tasks_are_clusters():
    table = toy(300)
    bare = Outcomes(table.queries, table.pool, table.values, table.observed)
    x = np.array([q.embedding for q in table.queries])
    tasks = classes_of(bare, x, np.random.default_rng(0))
    assert not tasks.labelled
    assert len(tasks.parent) == 5
    assert set(tasks.member) == set(range(5))


def test_the_recogniser_is_where_the_penalised_likelihood_is_flat():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)).astype(np.float32)
    member = (x[:, :3] + rng.normal(size=(300, 3))).argmax(axis=1)
    weight = learn_recogniser(x, member, 3, steps=400).astype(float)
    miss = np.eye(3)[member] - softmax(x @ weight[1:] + weight[0])
    np.testing.assert_allclose(x.T @ miss, PENALTY * weight[1:], atol=2e-2)


def test_one_task_is_recognised_without_doubt():
    weight = learn_recogniser(np.ones((5, 2), np.float32), np.zeros(5, int), 1)
    assert (recognise(np.ones((2, 2)), weight) == 1).all()


def test_probabilities_are_sharpened_logits():
    weight = np.array([[0.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(recognise(np.array([[2.0]]), weight)[0, 0], 1 / (1 + np.exp(-2 * SHARP)))


def flat(c=3, own=0.01, single=0.02):
    return Prior(np.full(c, 0.5), single + own * np.eye(c), np.full(c, 0.2), np.zeros(2))


def test_belief_without_outcomes_is_the_prior():
    said = believe(flat(), np.zeros((3, 3, 1)), POOL[:1])
    np.testing.assert_allclose(said.mean[:, 0], 0.5)
    np.testing.assert_allclose(said.variance[:, 0], 0.03)


def test_belief_is_the_gaussian_posterior_also_of_tasks_not_tried():
    sums = np.zeros((3, 3, 1))
    sums[:, 0, 0] = 18.0, 18.0, 20.0
    said = believe(flat(), sums, POOL[:1])
    gain = 0.03 / (0.03 + 0.2 / 20)
    np.testing.assert_allclose(said.mean[0, 0], 0.5 + gain * 0.4)
    np.testing.assert_allclose(said.mean[1, 0], 0.5 + 0.02 / 0.04 * 0.4)
    assert said.variance[0, 0] < said.variance[1, 0] < 0.03


def drawn(rng, own, count=200, c=8, m=6):
    chance = np.clip(0.5 + 0.1 * rng.normal(size=(1, m)) + own * rng.normal(size=(c, m)), 0.05, 0.95)
    right = rng.binomial(count, chance).astype(float)
    return np.stack([right, right, np.full((c, m), float(count))]), chance


def test_what_candidates_differ_by_is_learned_with_noise_taken_off():
    alone = np.arange(8)
    wide = [learn_prior(drawn(np.random.default_rng(s), 0.15)[0], alone, POOL).covariance for s in range(10)]
    narrow = [learn_prior(drawn(np.random.default_rng(s), 0.0)[0], alone, POOL).covariance for s in range(10)]
    own = [np.mean([p[0, 0] - p[0, 1] for p in kind]) for kind in (wide, narrow)]
    assert 0.01 < own[0] < 0.04  # 0.15 squared is 0.0225
    assert own[1] < 0.002


def test_shrinking_comes_nearer_to_the_truth_than_bare_means():
    rng = np.random.default_rng(3)
    sums, chance = drawn(rng, 0.05, count=25)
    said = believe(learn_prior(sums, np.arange(8), POOL), sums, POOL).mean
    assert ((said - chance) ** 2).mean() < 0.7 * ((sums[0] / sums[2] - chance) ** 2).mean()


def test_a_stranger_is_judged_by_its_price():
    pool = [Candidate(f"m{j}", profile=Profile(price_in=10.0**j, price_out=10.0**j)) for j in range(6)]
    right = np.tile(np.arange(6) * 20.0 + 40, (4, 1))
    sums = np.stack([right, right, np.full((4, 6), 200.0)])
    prior = learn_prior(sums, np.zeros(4, int), pool)
    strangers = [Candidate(n, profile=Profile(price_in=p, price_out=p)) for n, p in (("low", 1.0), ("high", 1e5))]
    said = believe(prior, np.zeros((3, 4, 2)), strangers).mean
    assert (said[:, 1] > said[:, 0] + 0.1).all()


def test_sums_share_a_query_among_its_tasks():
    y = np.array([[1.0, 0.5]])
    sums = sums_of(y, np.array([[True, False]]), np.array([[0.25, 0.75]]))
    np.testing.assert_allclose(sums[0], [[0.25, 0.0], [0.75, 0.0]])
    np.testing.assert_allclose(sums[2], [[0.25, 0.0], [0.75, 0.0]])
