from __future__ import annotations

import pytest

from polyroute.data.queries import load_queries
from polyroute.errors import OutcomesError

pa = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'polyroute[data]'")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def write(tmp_path):
    def written(**columns):
        pq.write_table(pa.table(columns), tmp_path / "q.parquet")
        return tmp_path / "q.parquet"

    return written


def test_each_query_comes_once_in_order_with_its_median_tokens(write):
    path = write(query_id=["b", "a", "b", "b"], query=["two", "one", "two", "two"], input_tokens=[3, None, 9, 4])
    assert [(q.id, q.text, q.num_tokens) for q in load_queries(path)] == [("b", "two", 4), ("a", "one", None)]


def test_a_prompt_will_do_and_tokens_may_be_missing(write):
    assert load_queries(write(query_id=["a"], prompt=["one"]))[0].num_tokens is None


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"query_id": ["a", "a"], "query": ["one", "two"]}, r"column 'query', row 1: expected 'one'"),
        ({"query_id": ["a"], "text": ["one"]}, r"expected a column 'query' or 'prompt'"),
        ({"id": ["a"], "query": ["one"]}, r"expected a column 'query_id'"),
        ({"query_id": [None], "query": ["one"]}, r"column 'query_id', row 0: expected a text, got null"),
    ],
)
def test_a_fault_is_named(write, columns, message):
    with pytest.raises(OutcomesError, match=message):
        load_queries(write(**columns))
