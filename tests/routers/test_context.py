"""Contexts: a few blocks that say what a query is like."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ConfigError, NotFittedError, OutcomesError, ShapeError
from polyroute.routers.constant import Constant
from polyroute.routers.context import Contexts, Contextual, memberships, reading_ease
from polyroute.routers.linear import Linear
from polyroute.types import Query
from tests.routers.tables import queries_of, toy

EASY = "The cat sat on the mat. It was warm."
HARD = "Notwithstanding jurisdictional considerations, interdepartmental reconciliation necessitates authorization."


def test_reading_ease_by_hand():
    # 9 words, 2 sentences, 9 syllables
    assert reading_ease(EASY) == pytest.approx(206.835 - 1.015 * 9 / 2 - 84.6 * 9 / 9)
    assert reading_ease("") == reading_ease("1 + 1 = 2 !") == 100.0
    assert reading_ease(HARD) < 0
    assert reading_ease("table") == reading_ease("maple")  # a last le is heard
    assert reading_ease("make") == pytest.approx(206.835 - 1.015 - 84.6)
    assert reading_ease("a " * 10**6) == reading_ease("a " * 2_000)


def test_blocks_stand_in_order_and_each_is_one_hot():
    rng = np.random.default_rng(0)
    x = np.vstack([np.eye(6)[0] + 0.1 * rng.normal(size=(20, 6)), np.eye(6)[1] + 0.1 * rng.normal(size=(20, 6))])
    queries = queries_of(x.astype(np.float32))
    contexts = Contexts(2, (20.0, 30.0)).fit(queries, ["a"] * 20 + ["b"] * 20)
    assert contexts.blocks == [("constant", 1), ("task", 2), ("cluster", 2), ("complexity", 3)]
    found = contexts(queries)
    assert found.shape == (40, 8)
    assert (found[:, 0] == 1).all()
    for block in (slice(1, 3), slice(3, 5), slice(5, 8)):
        assert (np.sort(found[:, block], axis=1)[:, -1] == 1).all()
        assert (found[:, block].sum(axis=1) == 1).all()
    assert (found[:20, 1] == 1).all()
    assert (found[20:, 2] == 1).all()
    assert len(set(found[:20, 3])) == 1
    assert (found[:20, 3] != found[20:, 3]).all()


def test_complexity_has_its_bin():
    x = np.ones(3, np.float32)
    queries = [Query("e", EASY, x), Query("h", HARD, x), Query("n", "", x)]
    contexts = Contexts(0, (20.0, 60.0), tasks=False, constant=False).fit(queries)
    assert contexts(queries).tolist() == [[1, 0, 0], [0, 0, 1], [1, 0, 0]]


def test_several_clusters_share_a_query_without_counting_twice():
    weight = memberships(np.array([[0.9, 0.8, 0.1, 0.85], [0.5, 0.5, 0.5, 0.5]]), 3)
    assert (weight**2).sum(axis=1) == pytest.approx([1.0, 1.0])
    assert (weight > 0).sum(axis=1).tolist() == [3, 3]
    assert weight[0].argsort().tolist() == [2, 1, 3, 0]
    assert weight[0, 0] / weight[0, 1] == pytest.approx(np.e)  # 0.1 further away
    assert weight[1] == pytest.approx([3**-0.5] * 3 + [0])
    assert memberships(np.array([[0.2, 0.9]]), 5).shape == (1, 2)


def test_without_labels_there_is_no_task_block():
    contexts = Contexts(2).fit(queries_of(np.eye(4, dtype=np.float32)))
    assert dict(contexts.blocks)["task"] == 0


def test_contexts_that_came_fitted_stay_and_others_are_fitted_anew():
    one, other = toy(seed=1), toy(seed=2)
    fitted = Contexts(3).fit(one.queries, one.labels["dataset"])
    before = fitted.centres_.copy()
    Contextual(Constant("quality", 0.5, 0.1), fitted).fit(other)
    assert (fitted.centres_ == before).all()
    fresh = Contextual(Constant("quality", 0.5, 0.1), Contexts(3)).fit(one).fit(other)
    assert (fresh.contexts.centres_ != before).any()


def test_the_router_inside_sees_contexts_and_the_texts():
    table = toy()

    class Spy(Constant):
        def fit(self, outcomes):
            self.seen = outcomes.queries
            return self

    spy = Spy("quality", 0.5, 0.1)
    router = Contextual(spy, Contexts(3)).fit(table)
    assert np.array([q.embedding for q in spy.seen]).tolist() == router.contexts(table.queries).tolist()
    assert [(q.id, q.text, q.num_tokens) for q in spy.seen] == [(q.id, q.text, q.num_tokens) for q in table.queries]


def test_a_linear_router_with_a_prior_may_start_from_queries_alone():
    table = toy()
    contexts = Contexts(3).fit(table.queries, table.labels["dataset"])
    router = Contextual(Linear(kind="ridge", l2=1.0, rank=None, prior=Constant("quality", 0.5, 0.3)), contexts)
    nothing = type(table)(
        table.queries, table.pool, {"quality": np.full((60, 4), np.nan)}, np.zeros((60, 4), bool), table.labels
    )
    router.fit(nothing)
    mean, std = router.predict(table.queries, table.pool)["quality"]
    assert (mean == 0.5).all()
    assert (std == 0.3).all()
    router.update(table)
    after = router.predict(table.queries, table.pool)["quality"]
    assert after.mean.std() > 0.05
    assert (after.std < 0.3).mean() > 0.9


def test_wrong_settings_and_calls():
    for wrong in ({"num_clusters": -1}, {"nearest": 0}, {"bins": (3.0, 1.0)}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Contexts(**wrong)
    with pytest.raises(OutcomesError, match="at least one"):
        Contexts().fit([])
    with pytest.raises(ShapeError, match="tasks"):
        Contexts().fit(queries_of(np.eye(3, dtype=np.float32)), ["a"])
    with pytest.raises(NotFittedError):
        Contexts()([])
