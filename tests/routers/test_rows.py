from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import EmbeddingError, OutcomesError, ShapeError, UnknownCandidateError
from polyroute.routers.rows import (
    PerPool,
    Unchanged,
    check_shape,
    columns,
    embeddings,
    extend,
    observed,
    prompt_tokens,
    unit_rows,
    within,
)
from polyroute.types import Candidate, Query
from tests.routers.tables import queries_of, table_of


def test_embeddings_of_any_kind_of_numbers_become_float32():
    queries = [Query("a", embedding=[1, 2]), Query("b", embedding=np.array([3, 4], np.float16))]
    x = embeddings(queries, 2)
    assert x.dtype == np.float32
    assert x.tolist() == [[1, 2], [3, 4]]
    assert embeddings([], 7).shape == (0, 7)


@pytest.mark.parametrize("bad", [np.array([[1.0, 2.0]]), np.float64(3.0), np.ones(3)])
def test_an_embedding_of_another_shape_names_its_query(bad):
    with pytest.raises(ShapeError, match="'b'"):
        embeddings([Query("a", embedding=np.ones(2)), Query("b", embedding=bad)])


@pytest.mark.parametrize("bad", [["x", "y"], object(), np.array([1.0, 1e30])])
def test_an_embedding_that_is_no_vector_names_its_query(bad):
    with pytest.raises(EmbeddingError, match="'b'"):
        embeddings([Query("a", embedding=np.ones(2)), Query("b", embedding=bad)])


def test_unit_rows_have_length_1_and_zeros_stay():
    x = unit_rows(np.array([[3.0, 4.0], [0.0, 0.0], [1e-5, 0.0]], np.float32))
    np.testing.assert_allclose(x, [[0.6, 0.8], [0, 0], [1, 0]], rtol=1e-6)


def test_prompt_tokens_are_counted_or_four_characters_each():
    assert prompt_tokens([Query("a", "x" * 40), Query("b", "x" * 40, num_tokens=7), Query("c")]).tolist() == [10, 7, 0]


def test_observed_needs_both_a_mark_and_a_number():
    table = table_of(np.ones((2, 3)), np.array([[0.5, np.nan], [1.0, 0.0]]))
    table.observed[1, 0] = False
    y, seen = observed(table, "quality")
    assert seen.tolist() == [[True, False], [False, True]]
    assert y.tolist() == [[0.5, 0.0], [0.0, 0.0]]


def test_an_infinite_outcome_is_an_error_that_says_where():
    table = table_of(np.ones((2, 3)), np.array([[0.5, 1.0], [0.0, 0.0]]))
    table.values["quality"][1, 1] = np.inf
    with pytest.raises(OutcomesError, match="'q1' and candidate 'm1'"):
        observed(table, "quality")


def test_columns_follow_the_pool_and_mark_the_unseen():
    pool = [Candidate("b"), Candidate("x"), Candidate("a")]
    at = columns({"a": 0, "b": 1}, pool, prior=object())
    assert at.index.tolist() == [1, 0, 0]
    assert at.unseen is not None
    assert at.unseen.tolist() == [False, True, False]
    with pytest.raises(UnknownCandidateError):
        columns({"a": 0, "b": 1}, pool)


def test_extend_keeps_columns_and_appends_new_ones():
    column = {"a": 0, "b": 1}
    assert extend(column, [Candidate("c"), Candidate("a")]).tolist() == [2, 0]
    assert column == {"a": 0, "b": 1, "c": 2}


def test_per_pool_works_out_each_pool_once_and_sees_replaced_profiles():
    asked = []
    remembered = PerPool(lambda pool: asked.append(pool) or len(asked), keep=2)
    first, other = [Candidate("a"), Candidate("b")], [Candidate("b")]
    assert [remembered(first), remembered(first), remembered(tuple(first)), remembered(other)] == [1, 1, 1, 2]
    assert remembered(first) == 1
    first.pop()
    assert remembered(first) == 3
    remembered.clear()
    assert remembered(other) == 4


def test_within_keeps_a_metric_to_its_range():
    assert within("quality", np.array([-0.1, 0.5, 1.2])).tolist() == [0.0, 0.5, 1.0]
    assert within("cost", np.array([-0.1, 12.0])).tolist() == [0.0, 12.0]
    assert within("surprise", np.array([-0.1])).tolist() == [-0.1]


def test_check_shape_takes_none_for_any_length():
    assert check_shape("x", np.ones((2, 3)), (None, 3)).shape == (2, 3)
    with pytest.raises(ShapeError, match=r"x: expected shape \('any', 4\), got \(2, 3\)"):
        check_shape("x", np.ones((2, 3)), (None, 4))
    with pytest.raises(ShapeError):
        check_shape("x", np.ones(3), (None, 3))


def test_queries_of_is_one_query_a_row():
    assert [q.id for q in queries_of(np.ones((2, 3)))] == ["q0", "q1"]


def test_unchanged_works_out_again_only_for_other_objects():
    asked = []

    def double(x, y):
        asked.append(1)
        return x + y

    kept = Unchanged(double)
    one, other = np.array([1.0]), np.array([1.0])
    assert kept(one, one) is kept(one, one)
    assert len(asked) == 1
    kept(one, other)
    kept(other, other)
    assert kept(one, one).tolist() == [2.0]
    assert len(asked) == 4
