from __future__ import annotations

import numpy as np
import pytest

from polyroute.data.recorded import recorded_embeddings
from polyroute.errors import OutcomesError

pa = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'polyroute[data]'")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def folder(tmp_path):
    """Three vectors, four queries: two share a vector, one has no text. The table is one folder below."""
    np.save(tmp_path / "embeddings.npy", np.array([[1, 0], [0, 1], [0.5, 0.5]], np.float16))
    table = {"query_id": ["a", "b", "c", "d"], "emb_row": pa.array([2, 0, None, 2], pa.int32())}
    pq.write_table(pa.table(table), tmp_path / "queries.parquet")
    (tmp_path / "outcomes").mkdir()
    return tmp_path


@pytest.mark.parametrize("table", ["outcomes/t.parquet", "t.parquet"])
def test_vectors_are_found_by_query(folder, table):
    found = recorded_embeddings(["d", "b", "c", "a"], folder / table)
    np.testing.assert_array_equal(found, [[0.5, 0.5], [1, 0], [np.nan, np.nan], [0.5, 0.5]])
    assert found.dtype == np.float32


def test_a_query_that_is_not_listed_is_named(folder):
    with pytest.raises(OutcomesError, match=r"got none for 1 \('z'\). Use --features static-1"):
        recorded_embeddings(["a", "z"], folder / "t.parquet")


def test_missing_and_broken_files_are_named(folder, tmp_path):
    with pytest.raises(OutcomesError, match=r"expected embeddings\.npy and queries\.parquet beside it"):
        recorded_embeddings(["a"], folder / "outcomes" / "deeper" / "t.parquet")
    (folder / "embeddings.npy").write_bytes(b"no array")
    with pytest.raises(OutcomesError, match=r"embeddings\.npy: expected a NumPy array file"):
        recorded_embeddings(["a"], folder / "t.parquet")
    np.save(folder / "embeddings.npy", np.zeros((2, 3)))
    with pytest.raises(OutcomesError, match=r"with rows up to 2, got \(2, 3\)"):
        recorded_embeddings(["a"], folder / "t.parquet")
    np.save(folder / "embeddings.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(OutcomesError, match=r"embeddings\.npy"):
        recorded_embeddings(["a"], folder / "t.parquet")
