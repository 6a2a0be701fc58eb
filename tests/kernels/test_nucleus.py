import itertools

import numpy as np
import pytest

from polyroute.errors import ConfigError
from polyroute.kernels.nucleus import nucleus
from tests.conftest import BACKENDS


@pytest.mark.parametrize("asarray", BACKENDS)
@pytest.mark.parametrize("p", [0.01, 0.5, 0.9, 1.0])
def test_the_nucleus_is_the_smallest_set_that_holds_the_mass(asarray, p):
    probability = np.random.default_rng(0).dirichlet(np.full(5, 0.5), size=25)
    index, weight, _ = map(np.asarray, nucleus(asarray(probability), p))
    for row, columns, kept in zip(probability, index, weight, strict=True):
        sets = (s for size in range(1, 6) for s in itertools.combinations(range(5), size))
        enough = [s for s in sets if row[list(s)].sum() >= p - 1e-12]
        smallest = min(len(s) for s in enough)
        best = max((s for s in enough if len(s) == smallest), key=lambda s: row[list(s)].sum())
        assert set(columns[kept > 0].tolist()) == set(best)
        assert kept[kept > 0].tolist() == sorted(row[list(best)].tolist(), reverse=True)


@pytest.mark.parametrize("asarray", BACKENDS)
def test_sure_rows_take_few_and_doubtful_rows_many(asarray):
    weight = np.asarray(nucleus(asarray([[0.97, 0.01, 0.01, 0.01], [0.25, 0.25, 0.25, 0.25]]), 0.9).weight)
    assert (weight > 0).sum(axis=1).tolist() == [1, 4]


@pytest.mark.parametrize("asarray", BACKENDS)
@pytest.mark.parametrize(("p", "size"), [(0.5, 1), (0.75, 2), (0.76, 3), (1.0, 3)])
def test_mass_that_is_just_enough_is_enough(asarray, p, size):
    weight = np.asarray(nucleus(asarray([[0.25, 0.5, 0.0, 0.25]]), p).weight)
    assert (weight > 0).sum() == size


@pytest.mark.parametrize("asarray", BACKENDS)
def test_k_caps_the_row(asarray):
    index, weight, _ = nucleus(asarray([[0.4, 0.3, 0.2, 0.1]]), 0.95, k=2)
    assert np.asarray(index).tolist() == [[0, 1]]
    assert np.asarray(weight).tolist() == [[0.4, 0.3]]


@pytest.mark.parametrize("p", [0.0, 1.1, float("nan")])
def test_a_share_outside_zero_to_one_is_refused(p):
    with pytest.raises(ConfigError, match=r"p: expected a share of the mass in \(0, 1\]"):
        nucleus(np.ones((1, 2)) / 2, p)


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own deprecations
def test_it_traces_without_a_break():
    torch = pytest.importorskip("torch")
    probability = torch.softmax(torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    traced = torch.compile(lambda x: nucleus(x, 0.7), fullgraph=True, backend="eager")(probability)
    assert all(torch.equal(a, b) for a, b in zip(traced[:2], nucleus(probability, 0.7)[:2], strict=True))
