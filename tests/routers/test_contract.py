"""What every router must do, whatever it learns. A new router joins by one line in CASES."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from polyroute import artefact
from polyroute.errors import EmbeddingError, NotFittedError, OutcomesError, ShapeError, UnknownCandidateError
from polyroute.protocols import OnlineRouter, Router
from polyroute.routers.bradley_terry import BradleyTerry, Elo
from polyroute.routers.calibrate import Calibrated
from polyroute.routers.cascade import Cascade
from polyroute.routers.centroids import Centroids
from polyroute.routers.cluster import Cluster
from polyroute.routers.coarse import CoarseToFine
from polyroute.routers.conformal import Conformal
from polyroute.routers.constant import Constant
from polyroute.routers.context import Contexts, Contextual
from polyroute.routers.default import Default
from polyroute.routers.described import Described
from polyroute.routers.diagonal import Diagonal
from polyroute.routers.incontext import InContext
from polyroute.routers.knn import KNN
from polyroute.routers.latency import Latency
from polyroute.routers.length import Length
from polyroute.routers.linear import Linear
from polyroute.routers.load import Load
from polyroute.routers.match import Match
from polyroute.routers.mix import Mix, Together
from polyroute.routers.novelty import Novelty
from polyroute.routers.pairwise import Pairwise
from polyroute.routers.price import Price
from polyroute.routers.running import RunningMean
from polyroute.routers.soft_targets import SoftTargets
from polyroute.routers.softmax_policy import SoftmaxPolicy
from polyroute.types import Candidate, Estimates, Outcomes
from tests.routers.tables import renamed, toy


@dataclass(frozen=True)
class Case:
    build: Callable[[], Any]
    metrics: tuple[str, ...] = ("quality",)
    serves_unknown: bool = False  # has a prior of its own for candidates never seen
    works_unfitted: bool = False
    needs_metric: bool = True  # a table without its metric is an error
    reads_embeddings: bool = True
    saved_within: float = 0.0  # relative: what a router that rounds its arrays when saved may lose


def irt() -> Any:
    return importlib.import_module("polyroute.routers.irt").IRT()


GUESS = Constant("quality", 0.5, 0.2)
CASES = {
    "knn": Case(lambda: KNN(k=7, kappa=3.0)),
    "knn with a prior": Case(lambda: KNN(k=7, kappa=3.0, prior=GUESS), serves_unknown=True),
    "knn of cost": Case(lambda: KNN(k=7, metric="cost"), ("cost",)),
    "linear, logistic": Case(lambda: Linear(l2=1.0)),
    "linear, ridge": Case(lambda: Linear(kind="ridge", l2=1.0)),
    "linear of few directions": Case(lambda: Linear(l2=1.0, rank=3)),
    "linear, logistic with a prior": Case(lambda: Linear(l2=1.0, prior=GUESS), serves_unknown=True),
    "linear, ridge with a prior": Case(lambda: Linear(kind="ridge", prior=GUESS), serves_unknown=True),
    "linear of cost": Case(lambda: Linear("cost", tokens="linear"), ("cost",)),
    "cluster": Case(lambda: Cluster(3)),
    "cluster with a prior": Case(lambda: Cluster(3, prior=GUESS), serves_unknown=True),
    "length": Case(Length, ("output_tokens",), serves_unknown=True, works_unfitted=True),
    "running": Case(
        RunningMean, ("output_tokens",), serves_unknown=True, works_unfitted=True, reads_embeddings=False
    ),
    "running, keyed": Case(
        lambda: RunningMean("quality", 0.5, keyed=True), serves_unknown=True, works_unfitted=True
    ),
    "price": Case(Price, ("cost",), serves_unknown=True, works_unfitted=True, needs_metric=False),
    "load": Case(Load, ("latency",), serves_unknown=True, works_unfitted=True, needs_metric=False),
    "latency": Case(Latency, ("latency",), serves_unknown=True, works_unfitted=True, needs_metric=False),
    "constant": Case(
        lambda: Constant("quality", 0.5, 0.1),
        serves_unknown=True, works_unfitted=True, needs_metric=False, reads_embeddings=False,
    ),
    "mix": Case(lambda: Mix([KNN(k=7), Linear(l2=1.0)], [1, 2])),
    "together": Case(lambda: Together([KNN(k=7), Price(), Load()]), ("quality", "cost", "latency")),
    "calibrated": Case(lambda: Calibrated(Linear(l2=1.0))),
    "calibrated by candidate": Case(lambda: Calibrated(KNN(k=7), by="candidate", kappa=10.0)),
    "novelty": Case(Novelty, ("novelty",)),
    "bradley-terry": Case(lambda: BradleyTerry(100.0)),
    "bradley-terry with a prior": Case(lambda: BradleyTerry(100.0, prior=GUESS), serves_unknown=True),
    "conformal": Case(lambda: Conformal(Linear("cost", tokens="linear")), ("cost",)),
    "elo": Case(Elo, serves_unknown=True, works_unfitted=True, reads_embeddings=False),
    "default": Case(Default, ("quality", "cost"), serves_unknown=True),
    "irt": Case(irt, serves_unknown=True, saved_within=1e-6),
    "in context": Case(InContext, serves_unknown=True),
    "centroids": Case(Centroids),
    "soft targets": Case(SoftTargets, ("share",)),
    "contextual": Case(lambda: Contextual(Linear(kind="ridge", rank=None), Contexts())),
    "pairwise": Case(lambda: Pairwise(l2=1.0)),
    "match": Case(Match, ("shortfall", "capability")),
    "diagonal": Case(Diagonal, serves_unknown=True, works_unfitted=True),
    "diagonal of cost": Case(lambda: Diagonal("cost"), ("cost",), serves_unknown=True, works_unfitted=True),
    "coarse to fine": Case(lambda: CoarseToFine({"m0": "a", "m1": "b", "m2": "a", "m3": "b"}, k=1)),
    "described": Case(Described, serves_unknown=True),
    "softmax policy": Case(lambda: SoftmaxPolicy(steps=30), ("preference",)),
    "cascade, no answers": Case(lambda: Cascade(KNN(k=7), Linear("cost")), ("quality", "cost")),
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def fitted(case: Case, outcomes: Outcomes | None = None) -> Any:
    return case.build().fit(toy() if outcomes is None else outcomes)


def same(one: Estimates, other: Estimates, *, rtol: float = 0.0) -> None:
    """Both estimate the same metrics with the same numbers: to the last bit for rtol 0."""
    assert list(one) == list(other)
    for metric in one:
        scale = np.abs(one[metric].mean).max(initial=0.0)
        for a, b in zip(one[metric], other[metric], strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=rtol * scale)


def columns_of(estimates: Estimates, columns: Any) -> Estimates:
    return {name: type(e)(*(part[:, columns] for part in e)) for name, e in estimates.items()}


def test_every_kind_that_can_be_saved_has_a_case():
    tested = {type(case.build()).__name__ for case in CASES.values()}
    assert tested == {path.split(":")[1] for path in artefact.ROUTERS.values()}


def test_it_speaks_the_protocol(case: Case):
    router = case.build()
    assert isinstance(router, Router)
    assert router.fit(toy()) is router


def test_estimates_have_the_shape_of_queries_and_pool(case: Case):
    test, router = toy(9, seed=1), fitted(case)
    estimates = router.predict(test.queries, test.pool)
    assert tuple(estimates) == case.metrics
    for mean, std in estimates.values():
        assert mean.shape == std.shape == (9, 4)
        assert np.isfinite(mean).all()
        assert np.isfinite(std).all()
        assert (std >= 0).all()


def test_estimates_keep_to_the_range_of_their_metric(case: Case):
    test = toy(50, seed=1)
    for metric, (mean, _) in fitted(case).predict(test.queries, test.pool).items():
        assert (mean >= 0).all()
        assert metric != "quality" or (mean <= 1).all()


def test_a_pool_may_be_any_subset_in_any_order(case: Case):
    test, router = toy(9, seed=1), fitted(case)
    whole = router.predict(test.queries, test.pool)
    for columns in ([2, 0], [3, 2, 1, 0], [1]):
        part = router.predict(test.queries, [test.pool[j] for j in columns])
        same(part, columns_of(whole, columns), rtol=1e-5)


def test_a_pool_changed_in_place_is_noticed(case: Case):
    test, router = toy(9, seed=1), fitted(case)
    pool = list(test.pool)
    router.predict(test.queries, pool)
    pool.reverse()
    same(router.predict(test.queries, pool), router.predict(test.queries, tuple(pool)))


def test_a_candidate_never_seen_is_an_error_or_served_from_a_prior(case: Case):
    test, router = toy(9, seed=1), fitted(case)
    pool = [Candidate("stranger"), test.pool[1]]
    if case.serves_unknown:
        estimates = router.predict(test.queries, pool)
        assert all(np.isfinite(part).all() and part.shape == (9, 2) for e in estimates.values() for part in e)
        same(columns_of(estimates, [1]), router.predict(test.queries, pool[1:]), rtol=1e-5)
    else:
        with pytest.raises(UnknownCandidateError, match="'stranger'") as raised:
            router.predict(test.queries, pool)
        assert raised.value.missing == ["stranger"]


def test_a_candidate_without_an_outcome_counts_as_never_seen(case: Case):
    train, test = toy(), toy(9, seed=1)
    train.observed[:, 2] = False
    for column in train.values.values():
        column[:, 2] = np.nan
    router = fitted(case, train)
    if case.serves_unknown:
        estimates = router.predict(test.queries, test.pool)
        assert all(np.isfinite(part).all() for e in estimates.values() for part in e)
    else:
        with pytest.raises(UnknownCandidateError, match="'m2'"):
            router.predict(test.queries, test.pool)
    router.predict(test.queries, [test.pool[j] for j in (0, 1, 3)])


def test_what_stands_in_cells_not_observed_does_not_matter(case: Case):
    clean, test = toy(), toy(9, seed=1)
    dirty = replace(clean, values={name: np.where(clean.observed, v, 0.123) for name, v in clean.values.items()})
    masked = replace(clean, observed=np.ones_like(clean.observed))  # NaN alone says it as well
    expected = fitted(case, clean).predict(test.queries, test.pool)
    same(fitted(case, dirty).predict(test.queries, test.pool), expected)
    same(fitted(case, masked).predict(test.queries, test.pool), expected)


def test_one_query_is_enough_to_fit(case: Case):
    train, test = toy(1, missing=0.0), toy(9, seed=1)
    for metric, (mean, std) in fitted(case, train).predict(test.queries, test.pool).items():
        assert np.isfinite(mean).all()
        assert np.isfinite(std).all()
        assert (std > 0).all(), f"sure of {metric} after one query"


def test_one_query_is_estimated_as_in_a_batch(case: Case):
    test, router = toy(9, seed=1), fitted(case)
    batch = router.predict(test.queries, test.pool)
    for i in (0, 8):
        alone = router.predict(test.queries[i : i + 1], test.pool)
        same(alone, {name: type(e)(*(part[i : i + 1] for part in e)) for name, e in batch.items()}, rtol=1e-5)


def test_no_queries_and_no_candidates_give_empty_estimates(case: Case):
    test, router = toy(9, seed=1), fitted(case)
    for queries, pool in ((test.queries, []), ([], test.pool), ([], [])):
        estimates = router.predict(queries, pool)
        assert tuple(estimates) == case.metrics
        assert all(part.shape == (len(queries), len(pool)) for e in estimates.values() for part in e)


@pytest.mark.parametrize("bad", [np.nan, np.inf, None])
def test_an_embedding_that_is_no_embedding_is_an_error_naming_the_query(case: Case, bad: float | None):
    if not case.reads_embeddings:
        pytest.skip("reads no embeddings")
    train, router = toy(), fitted(case)
    broken = None if bad is None else np.where(np.arange(6) == 4, bad, 1.0)
    queries = [*train.queries[:3], replace(train.queries[3], embedding=broken), *train.queries[4:]]
    for call in (
        lambda: router.predict(queries, train.pool),
        lambda: router.predict(queries[3:4], train.pool),
        lambda: case.build().fit(replace(train, queries=queries)),
    ):
        with pytest.raises(EmbeddingError, match="'q3'") as raised:
            call()
        assert raised.value.query_id == "q3"


def test_an_embedding_of_another_width_is_a_shape_error(case: Case):
    if not case.reads_embeddings:
        pytest.skip("reads no embeddings")
    train, router = toy(), fitted(case)
    with pytest.raises(ShapeError, match=r"expected shape \(6,\), got \(5,\)"):
        router.predict(toy(9, d=5).queries, train.pool)
    mixed = [*train.queries[:9], replace(train.queries[9], embedding=np.ones(5, np.float32)), *train.queries[10:]]
    with pytest.raises(ShapeError, match="'q9'"):
        router.predict(mixed, train.pool)


def test_predict_before_fit(case: Case):
    test = toy(9, seed=1)
    if case.works_unfitted:
        estimates = case.build().predict(test.queries, test.pool)
        assert all(np.isfinite(part).all() for e in estimates.values() for part in e)
    else:
        with pytest.raises(NotFittedError, match="fit"):
            case.build().predict(test.queries, test.pool)


def test_a_table_without_the_metric_names_what_it_has(case: Case):
    train = toy()
    if case.needs_metric:
        with pytest.raises(OutcomesError, match="'energy'"):
            case.build().fit(replace(train, values={"energy": train.values["cost"]}))
    else:
        case.build().fit(replace(train, values={"energy": train.values["cost"]}))


def test_fitting_again_forgets_and_leaves_the_table_alone(case: Case):
    first, second, test = toy(30, seed=3), toy(), toy(9, seed=1)
    before = copy.deepcopy(second)
    again = case.build().fit(first).fit(second)
    same(again.predict(test.queries, test.pool), fitted(case).predict(test.queries, test.pool))
    for name, column in before.values.items():
        np.testing.assert_array_equal(column, second.values[name])


def test_saving_and_loading_gives_the_same_bits(case: Case, tmp_path: Any):
    test, router = toy(9, seed=1), fitted(case)
    artefact.save(router, tmp_path / "r.npz", features="toy-1", pool=test.pool)
    loaded = artefact.load(tmp_path / "r.npz").router
    assert type(loaded) is type(router)
    same(loaded.predict(test.queries, test.pool), router.predict(test.queries, test.pool), rtol=case.saved_within)


def test_its_state_is_json_and_arrays(case: Case):
    tree, arrays = artefact.pack(fitted(case))
    json.dumps(tree, allow_nan=False)
    assert all(array.dtype.kind in "fiub" for array in arrays.values())


def test_saving_before_fit(case: Case, tmp_path: Any):
    if case.works_unfitted:
        artefact.save(case.build(), tmp_path / "r.npz", features="toy-1", pool=[])
    else:
        with pytest.raises((NotFittedError, AttributeError)):
            artefact.save(case.build(), tmp_path / "r.npz", features="toy-1", pool=[])
        assert list(tmp_path.iterdir()) == []


def test_update_learns_the_same_live_and_loaded(case: Case, tmp_path: Any):
    test, more = toy(9, seed=1), toy(30, seed=2, prefix="r")
    router = fitted(case)
    if not isinstance(router, OnlineRouter):
        pytest.skip("does not learn online")
    before = router.predict(test.queries, test.pool)
    artefact.save(router, tmp_path / "r.npz", features="toy-1", pool=test.pool)
    loaded = artefact.load(tmp_path / "r.npz").router
    for learner in (router, loaded):
        learner.update(more)
        learner.update(more.take(np.zeros(0, int)))
    after = router.predict(test.queries, test.pool)
    same(loaded.predict(test.queries, test.pool), after, rtol=1e-9)
    assert all((after[name].mean != before[name].mean).any() for name in after)


def test_update_brings_in_a_new_candidate(case: Case):
    test, router = toy(9, seed=1), fitted(case)
    if not isinstance(router, OnlineRouter):
        pytest.skip("does not learn online")
    router.update(renamed(toy(30, seed=2), ["m3", "new", "m0", "newer"]))
    pool = [Candidate("newer"), *test.pool, Candidate("new")]
    estimates = router.predict(test.queries, pool)
    assert all(np.isfinite(part).all() and part.shape == (9, 6) for e in estimates.values() for part in e)


def test_update_before_fit(case: Case):
    router = case.build()
    if not isinstance(router, OnlineRouter):
        pytest.skip("does not learn online")
    if case.works_unfitted:
        router.update(toy())
    else:
        with pytest.raises(NotFittedError):
            router.update(toy())
