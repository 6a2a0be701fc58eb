from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from polyroute.data.export import write_outcomes
from polyroute.data.outcomes import complete, load_outcomes, with_embeddings
from polyroute.data.synthetic import synthetic_outcomes
from polyroute.errors import OutcomesError, ShapeError

pa = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'polyroute[data]'")
pq = pytest.importorskip("pyarrow.parquet")

TABLE = {
    "query_id": ["a", "a", "b", "b"],
    "model": ["small", "large", "small", "large"],
    "score": [0.0, 1.0, 1.0, 0.5],
    "cost_usd": [0.001, 0.01, 0.002, 0.02],
    "query": ["one", "one", "two", "two"],
    "split": ["train", "train", "test", "test"],
    "group_id": ["g1", "g1", "g2", "g2"],
    "dataset": ["x", "x", "y", "y"],
    "input_tokens": [10, 14, 7, None],
    "output_tokens": [5, None, 6, 7],
}


@pytest.fixture
def write(tmp_path: Path):
    def written(drop=(), schema=None, **columns) -> Path:
        table = {name: column for name, column in {**TABLE, **columns}.items() if name not in drop}
        path = tmp_path / "table.parquet"
        pq.write_table(pa.table(table), path)
        return path

    return written


def test_a_long_table_becomes_a_wide_one(write):
    outcomes = load_outcomes(write())
    assert [query.id for query in outcomes.queries] == ["a", "b"]
    assert [query.text for query in outcomes.queries] == ["one", "two"]
    assert [query.num_tokens for query in outcomes.queries] == [12, 7]  # the median of what is stated
    assert [candidate.id for candidate in outcomes.pool] == ["small", "large"]
    np.testing.assert_array_equal(outcomes.values["quality"], [[0.0, 1.0], [1.0, 0.5]])
    np.testing.assert_array_equal(outcomes.values["cost"], [[0.001, 0.01], [0.002, 0.02]])
    np.testing.assert_array_equal(outcomes.values["output_tokens"], [[5, np.nan], [6, 7]])
    assert outcomes.labels["group"].tolist() == ["g1", "g2"]
    assert outcomes.labels["split"].tolist() == ["train", "test"]
    assert outcomes.observed.all()


def test_rows_in_any_order_give_the_same_numbers(write):
    rows = [2, 1, 3, 0]
    outcomes = load_outcomes(write(**{name: [column[row] for row in rows] for name, column in TABLE.items()}))
    assert [query.id for query in outcomes.queries] == ["b", "a"]
    assert [candidate.id for candidate in outcomes.pool] == ["small", "large"]
    np.testing.assert_array_equal(outcomes.values["quality"], [[1.0, 0.5], [0.0, 1.0]])


def test_a_missing_row_is_a_hole_and_not_a_zero(write):
    outcomes = load_outcomes(write(**{name: column[:3] for name, column in TABLE.items()}))
    np.testing.assert_array_equal(outcomes.observed, [[True, True], [True, False]])
    assert np.isnan(outcomes.values["quality"][1, 1])
    np.testing.assert_array_equal(complete(outcomes), [True, False])


def test_latency_is_in_seconds(write):
    assert load_outcomes(write(latency_ms=[1500.0, 1.0, 2.0, 3.0])).values["latency"][0, 0] == 1.5


def test_dictionary_large_string_integer_and_boolean_columns_are_read(write):
    path = write(
        query_id=[7, 7, 8, 8],
        model=pa.array(TABLE["model"]).dictionary_encode(),
        query=pa.array(TABLE["query"], pa.large_string()),
        score=[False, True, True, False],
    )
    outcomes = load_outcomes(path)
    assert [query.id for query in outcomes.queries] == ["7", "8"]
    np.testing.assert_array_equal(outcomes.values["quality"], [[0, 1], [1, 0]])


def test_the_prompt_serves_where_there_is_no_query(write):
    assert load_outcomes(write(drop=["query"], prompt=TABLE["query"])).queries[0].text == "one"


def test_a_score_off_by_single_precision_is_clipped(write):
    assert load_outcomes(write(score=[0.0, 1.0 + 1e-7, 1.0, 0.5])).values["quality"].max() == 1.0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"drop": ["score"]}, r"table\.parquet: expected a column 'score', got 'query_id'"),
        ({"drop": ["score"], "scores": [0.0] * 4}, r"Did you mean 'scores'\? Rename it to 'score'"),
        ({"drop": ["query"]}, r"expected a column 'query' or 'prompt'"),
        ({"score": [0.0, 1.5, 1.0, 0.5]}, r"column 'score', row 1: expected a number in 0..1, got 1.5"),
        ({"score": [0.0, -0.1, 1.0, -2.0]}, r"column 'score', row 1: .* got -0.1 \(2 such rows\)"),
        ({"score": [0.0, 1.0, np.nan, 0.5]}, r"column 'score', row 2: .* got nan. Leave out rows"),
        ({"score": [0.0, 1.0, None, 0.5]}, r"column 'score', row 2: .* got nan"),
        ({"score": ["0", "1", "1", "0"]}, r"column 'score': expected numbers, got string"),
        ({"cost_usd": [0.1, -0.1, 0.1, 0.1]}, r"column 'cost_usd', row 1: expected a finite number of 0 or more"),
        ({"cost_usd": [0.1, np.inf, 0.1, 0.1]}, r"column 'cost_usd', row 1: .* got inf"),
        ({"output_tokens": [-3, 1, 1, 1]}, r"column 'output_tokens', row 0"),
        ({"input_tokens": [1, 1, -1, 1]}, r"column 'input_tokens', row 2"),
        ({"model": ["small", "small", "small", "large"]},
         r"got rows 0 and 1 for query_id 'a', model 'small'. Keep one"),
        ({"model": ["small", None, "small", "large"]}, r"column 'model', row 1: expected a text, got null"),
        ({"model": [1.5, 2.5, 1.5, 2.5]}, r"column 'model': expected text, got double"),
        ({"split": ["train", "test", "test", "test"]},
         r"column 'split', row 1: expected 'train' as in row 0 of the same query_id 'a', got 'test'"),
        ({"query": ["one", "other", "two", "two"]}, r"column 'query', row 1"),
        ({"group_id": ["g1"] * 4}, r"1 in several \('g1': 'a' in train, 'b' in test\)"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_place(write, columns, message):
    with pytest.raises(OutcomesError, match=message):
        load_outcomes(write(**columns))


def test_shared_groups_can_be_allowed(write):
    assert len(load_outcomes(write(group_id=["g1"] * 4), allow_shared_groups=True)) == 2


def test_queries_without_a_group_do_not_share_one(write):
    assert len(load_outcomes(write(group_id=[None] * 4))) == 2


def test_bytes_that_are_not_utf8_are_named(write, tmp_path):
    texts = pa.Array.from_buffers(
        pa.string(), 4, [None, pa.py_buffer(np.array([0, 3, 6, 9, 12], np.int32)), pa.py_buffer(b"oneone\xfftwtwo")]
    )
    with pytest.raises(OutcomesError, match=r"column 'query', row 2: expected UTF-8 text, got byte 0xff at position 0"):
        load_outcomes(write(query=texts))


def test_files_that_are_no_tables_are_named(write, tmp_path):
    with pytest.raises(OutcomesError, match=r"missing\.parquet: expected a Parquet file, got no such file"):
        load_outcomes(tmp_path / "missing.parquet")
    with pytest.raises(OutcomesError, match="got a folder"):
        load_outcomes(tmp_path)
    (tmp_path / "text.parquet").write_text("query_id,model\n")
    with pytest.raises(OutcomesError, match=r"text\.parquet: expected a readable Parquet file"):
        load_outcomes(tmp_path / "text.parquet")
    whole = write().read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OutcomesError, match=r"cut\.parquet: expected a readable Parquet file"):
        load_outcomes(tmp_path / "cut.parquet")
    with pytest.raises(OutcomesError, match="got an empty table"):
        load_outcomes(write(**{name: pa.array(column)[:0] for name, column in TABLE.items()}))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_table_of_another_kind_is_told_how_to_become_parquet(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    path.write_text("query_id,model\n")
    with pytest.raises(OutcomesError, match=r"Write it as Parquet: pandas\.read_.*to_parquet\('mine\.parquet'\)"):
        load_outcomes(path)


@pytest.mark.parametrize("column", ["query_id", "model"])
def test_a_name_that_is_empty_is_no_name(write, column):
    with pytest.raises(OutcomesError, match=rf"column '{column}', row 2: expected a text, got ''"):
        load_outcomes(write(**{column: [*TABLE[column][:2], "", TABLE[column][3]]}))


@pytest.mark.parametrize("kind", ["string_view", "large_string"])
def test_every_kind_of_text_column_is_read(write, kind):
    if not hasattr(pa, kind):
        pytest.skip(f"this pyarrow has no {kind}")
    names = ("query_id", "model", "query", "split", "group_id", "dataset")
    found = load_outcomes(write(**{name: pa.array(TABLE[name], getattr(pa, kind)()) for name in names}))
    assert [query.text for query in found.queries] == ["one", "two"]
    assert [candidate.id for candidate in found.pool] == ["small", "large"]


def test_damage_inside_a_column_is_an_error_of_the_file(write):
    path = write(query=["x" * 5000, "x" * 5000, "two", "two"])
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36
    path.write_bytes(content)
    with pytest.raises(OutcomesError, match=r"table\.parquet"):
        load_outcomes(path)


def test_a_repeated_column_is_named(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"])] * 2, names=["query_id", "query_id"])
    pq.write_table(table, tmp_path / "twice.parquet")
    with pytest.raises(OutcomesError, match=r"twice\.parquet: expected"):
        load_outcomes(tmp_path / "twice.parquet")


def test_prices_come_from_models_json_beside_or_above(write, tmp_path):
    models = [
        {"name": "small", "table": "other", "price_in": 9, "price_out": 9, "currency": "USD"},
        {"name": "small", "table": "table", "price_in": 1, "price_out": 2, "currency": "USD"},
        {"name": "large", "table": "other", "price_in": 14.2, "price_out": 28.4, "currency": "CNY"},
    ]
    (tmp_path / "models.json").write_text(json.dumps({"note": {"cny_per_usd": 7.1}, "models": models}))
    small, large = load_outcomes(write()).pool
    assert (small.profile.price_in, small.profile.price_out) == (1, 2)  # the entry of this very table
    assert (large.profile.price_in, large.profile.price_out) == pytest.approx((2, 4))  # yuan at the file's rate
    below = tmp_path / "deeper"
    below.mkdir()
    path = write().rename(below / "table.parquet")
    assert load_outcomes(path).pool[0].profile.price_in == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "readable JSON"),
        ("[]", "list `models`"),
        ('{"models": [{"name": "small", "price_in": 1, "currency": "EUR"}]}', "'small': expected a price in USD"),
        ('{"models": [{"name": "small", "price_in": -1}]}', "'small': expected price_in of 0 or more, got -1"),
    ],
)
def test_a_broken_models_json_is_named(write, tmp_path, content, message):
    (tmp_path / "models.json").write_text(content)
    with pytest.raises(OutcomesError, match=message):
        load_outcomes(write())


def test_what_is_written_is_read_back(tmp_path):
    before = synthetic_outcomes(40, 3, rng=np.random.default_rng(0)).outcomes
    before.observed[3, 1] = False
    write_outcomes(before, tmp_path / "t.parquet")
    after = load_outcomes(tmp_path / "t.parquet")
    np.testing.assert_array_equal(after.observed, before.observed)
    for name, values in before.values.items():
        np.testing.assert_array_equal(after.values[name], np.where(before.observed, values, np.nan))
    for name, column in before.labels.items():
        np.testing.assert_array_equal(after.labels[name], column)
    assert [(q.id, q.text, q.num_tokens) for q in after.queries] == [
        (q.id, q.text, q.num_tokens) for q in before.queries
    ]


def test_embeddings_are_attached_and_nan_means_none(write):
    outcomes = load_outcomes(write())
    with_some = with_embeddings(outcomes, np.array([[1.0, 2.0], [np.nan, np.nan]]))
    np.testing.assert_array_equal(with_some.queries[0].embedding, [1, 2])
    assert with_some.queries[1].embedding is None
    with pytest.raises(ShapeError, match=r"embeddings: expected shape \(2, 'd'\), got \(3, 1\)"):
        with_embeddings(outcomes, np.zeros((3, 1)))


@pytest.mark.parametrize(
    ("name", "queries", "models", "whole"),
    [
        ("routerbench", 2127, 11, 2111),
        ("llmrouter9", 3948, 9, 3948),
        ("routellm", 10226, 2, 10226),
        ("routerdc7", 13740, 7, 13740),
        ("routerbench_mini", 511, 2, 511),
    ],
)
def test_the_public_tables_load_as_described(data_dir, name, queries, models, whole):
    outcomes = load_outcomes(data_dir / "outcomes" / f"{name}.parquet")
    assert (len(outcomes), len(outcomes.pool), complete(outcomes).sum()) == (queries, models, whole)
    assert outcomes.labels.keys() == {"dataset", "split", "group", "topic"}
    assert all(candidate.profile.price_in > 0 for candidate in outcomes.pool)
