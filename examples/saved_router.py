"""Save a fitted router, load it elsewhere, and serve a model it never saw from a prior.

python examples/saved_router.py
"""

import tempfile
from pathlib import Path

import numpy as np

from polyroute import Candidate
from polyroute.artefact import load, save
from polyroute.data.synthetic import synthetic_outcomes
from polyroute.errors import UnknownCandidateError
from polyroute.offline.split import part
from polyroute.routers.constant import Constant
from polyroute.routers.knn import KNN


def main() -> int:
    table = synthetic_outcomes(800, 3, rng=np.random.default_rng(0)).outcomes
    train, valid = part(table, "train"), part(table, "valid")
    queries = valid.queries[:3]
    newcomer = Candidate("model-new")

    alone = KNN().fit(train)
    try:
        alone.predict(queries, [*train.pool, newcomer])
    except UnknownCandidateError as error:
        print(f"without a prior: {error}\n")

    with_prior = KNN(prior=Constant("quality", mean=0.5, std=0.2)).fit(train)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "router.npz"
        fingerprint = save(with_prior, path, features="synthetic", pool=train.pool, info={"rows": len(train)})
        found = load(path)
        print(f"{path.stat().st_size / 1e3:.0f} kB: a {found.kind} on features {found.features!r}, {found.info}")
        assert found.fingerprint == fingerprint

    pool = [newcomer, *reversed(train.pool)]  # any subset, in any order
    estimate = found.router.predict(queries, pool)["quality"]
    assert np.array_equal(estimate.mean, with_prior.predict(queries, pool)["quality"].mean)
    for j, candidate in enumerate(pool):
        pairs = zip(estimate.mean[:, j], estimate.std[:, j], strict=True)
        print(f"{candidate.id:<10} " + "   ".join(f"{mean:.2f} ± {std:.2f}" for mean, std in pairs))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
