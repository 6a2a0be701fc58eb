from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ConfigError
from polyroute.routers.latency import Latency
from polyroute.routers.length import Length
from polyroute.routers.load import Load
from polyroute.types import Candidate, Outcomes, Profile, Query


def answered(
    n: int, seed: int, first: tuple[float, ...], read: tuple[float, ...], wrote_s: tuple[float, ...]
) -> Outcomes:
    """n queries; candidate j takes first[j] s, read[j] s a prompt token and wrote_s[j] s a token of the answer."""
    rng = np.random.default_rng(seed)
    prompt, wrote = rng.integers(10, 20_000, size=n), rng.integers(1, 600, size=(n, len(first))).astype(float)
    latency = np.array(first) + prompt[:, None] * np.array(read) + wrote * np.array(wrote_s)
    queries = [Query(f"q{i}", num_tokens=int(t), embedding=np.ones(1, np.float32)) for i, t in enumerate(prompt)]
    values = {"latency": latency * rng.uniform(0.9, 1.1, size=latency.shape), "output_tokens": wrote}
    return Outcomes(queries, [Candidate(f"m{j}") for j in range(len(first))], values, np.ones(latency.shape, bool))


TRUE = ((0.2, 3.0), (1e-4, 2e-3), (0.05, 0.005))  # quick to start and slow to write, and the other way round


class Told:
    """A length that is known: the tokens each query allows."""

    def fit(self, outcomes):
        return self

    def update(self, outcomes):
        pass

    def predict(self, queries, pool):
        tokens = np.array([[float(q.max_output or 0)] * len(pool) for q in queries]).reshape(len(queries), len(pool))
        return {"output_tokens": type("E", (tuple,), {"mean": tokens, "std": None})((tokens, None))}


def asked(prompt: int, answer: int) -> Query:
    return Query("q", num_tokens=prompt, max_output=answer, embedding=np.ones(1, np.float32))


def test_the_three_parts_are_told_apart():
    router = Latency(Told(), kappa=0.1).fit(answered(2000, 0, *TRUE))  # type: ignore[arg-type]
    pool = [Candidate("m0"), Candidate("m1")]
    for prompt, answer in ((50, 500), (15_000, 10), (1000, 200)):
        mean, std = router.predict([asked(prompt, answer)], pool)["latency"]
        truth = [f + prompt * r + answer * w for f, r, w in zip(*TRUE, strict=True)]
        assert mean[0] == pytest.approx(truth, rel=0.06)
        assert (std[0] < 0.2 * mean[0]).all()


def test_one_factor_cannot_do_that():
    train, test = answered(800, 1, *TRUE), answered(300, 2, *TRUE)
    error = {}
    for router in (Latency(Length(rank=0)), Load(Length(rank=0))):
        mean = router.fit(train).predict(test.queries, test.pool)["latency"].mean
        error[type(router).__name__] = np.abs(mean - test.values["latency"]).mean()
    assert error["Latency"] < 0.6 * error["Load"]


def test_before_any_answer_it_is_the_promise_and_surer_the_more_it_saw():
    pool = [Candidate("m0", profile=Profile(first_token_s=0.5, tokens_per_s=100.0)), Candidate("m1")]
    router = Latency(Told())  # type: ignore[arg-type]
    mean, before = router.predict([asked(2000, 200)], pool)["latency"]
    assert mean[0] == pytest.approx([0.5 + 1.0 + 2.0, 0.5 + 1.0 + 4.0])
    router.fit(answered(200, 3, (0.5, 0.5), (5e-4, 5e-4), (0.01, 0.02)))
    after = router.predict([asked(2000, 200)], pool)["latency"].std
    assert (after < 0.5 * before).all()


def test_it_follows_a_server_that_becomes_slow():
    router = Latency(Told(), memory=100).fit(answered(400, 4, *TRUE))  # type: ignore[arg-type]
    slow = tuple(tuple(3 * x for x in part) for part in TRUE)
    pool, query = [Candidate("m0")], [asked(1000, 300)]
    before = router.predict(query, pool)["latency"].mean
    router.update(answered(400, 5, *slow))
    assert router.predict(query, pool)["latency"].mean == pytest.approx(3 * before, rel=0.15)


@pytest.mark.parametrize("build", [lambda: Latency(kappa=0), lambda: Latency(memory=1)])
def test_settings_that_make_no_sense_are_refused(build):
    with pytest.raises(ConfigError):
        build()
