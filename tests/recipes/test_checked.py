"""Recipes that check answers: AVR, Fast and Faithful, PALACE, cloud and device."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.data.synthetic import synthetic_outcomes
from polyroute.errors import ConfigError
from polyroute.flows.cascade import run
from polyroute.policies.escalate import UploadPolicy
from polyroute.recipes.avr import avr
from polyroute.recipes.edge_cloud import Usefulness, device, doubt_of, stream
from polyroute.recipes.faithful import BLOCKED, at_depth, grounded, settled, supported_share
from polyroute.recipes.palace import audit_features, directions, palace
from polyroute.signals.grounding import Depth, GroundingVerifier
from polyroute.types import Candidate, Outcome, Query

SMALL, LARGE = Candidate("small"), Candidate("large")
SOURCE = "The bridge of Varn opened in 1931. It carries 4000 carts a day."
TEXTS = {"small": "The bridge of Varn opened in 1955.", "large": "In 1931 the bridge of Varn opened."}


def backend(asked):
    def answer(decision):
        name = decision.candidate_ids[0]
        asked.append(name)
        return Outcome(decision, {"cost": 1.0 if name == "small" else 20.0}, TEXTS[name])

    return answer


@pytest.mark.parametrize(
    ("sure", "hard", "risky", "path"),
    [(0.85, 0.0, False, ["small"]), (0.85, 1.0, False, ["small", "large"]), (0.5, 0.0, False, ["small", "large"]),
     (1.0, 0.0, True, ["large"]), (1.0, 0.97, False, ["large"])],
)  # fmt: skip
def test_avr_takes_the_road_its_rules_name(sure, hard, risky, path):
    asked = []
    flow = avr(Query("q"), SMALL, LARGE, lambda q, o: sure, lambda q: hard, lambda q: risky,
               hopeless=0.95 if hard < 1 else 2.0)  # fmt: skip
    outcome = run(flow, backend(asked))
    assert asked == path
    assert outcome.metrics["cost"] == sum({"small": 1.0, "large": 20.0}[name] for name in path)


def test_an_answer_that_is_not_in_the_sources_is_asked_again():
    asked = []
    outcome = run(grounded(Query("q"), [SMALL, LARGE], [SOURCE]), backend(asked))
    assert asked == ["small", "large"]
    assert outcome.text == TEXTS["large"]
    assert outcome.metrics["cost"] == 21.0
    asked.clear()
    assert run(grounded(Query("q"), [LARGE, SMALL], [SOURCE]), backend(asked)).text == TEXTS["large"]
    assert asked == ["large"]


def test_unsupported_sentences_are_marked_or_the_answer_is_withheld():
    text = TEXTS["large"] + " " + TEXTS["small"]
    wrong = GroundingVerifier().unsupported(text, [SOURCE])
    assert settled(text, wrong, "annotate") == text + " [not in the sources]"
    assert settled(text, wrong, "block") == BLOCKED
    assert settled(text, [], "block") == settled(text, wrong, "escalate") == text
    assert supported_share([], 0.5) == 0.0
    with pytest.raises(ConfigError, match="on_fail"):
        settled(text, wrong, "ignore")


def test_the_budget_picks_the_depth():
    choose = at_depth([Depth("cut", 0, 0.001, 0.5), Depth("full", 0, 0.01, 0.9)], {"cut": 10, "full": None}, 50.0)
    assert choose(1000).limit is None
    assert choose(10_000).limit == 40
    assert choose(100_000) is None


def test_the_auditor_learns_from_prompts():
    rng = np.random.default_rng(0)
    queries = [Query(f"q{i}", "step " * int(k), rng.normal(size=8).astype(np.float32))
               for i, k in enumerate(rng.integers(1, 60, size=300))]  # fmt: skip
    tokens = np.array([10 + 2 * len(q.text) for q in queries]) * rng.lognormal(0, 0.1, 300)
    x = audit_features(queries, finals=["#### 7"] * 300, basis=directions(queries, 4))
    auditor = palace().fit(x, tokens, np.full(300, "m"), rng)
    assert np.abs(np.log(auditor.predict(x, ["m"] * 300)[0] / tokens)).mean() < 0.2


def test_uploads_teach_the_device():
    table = synthetic_outcomes(900, 4, rng=np.random.default_rng(3)).outcomes
    topic = table.labels["dataset"] == "topic-0"
    first, later = table.take(np.flatnonzero(topic)), table.take(np.flatnonzero(~topic))
    quality = {}
    for share in (0.0, 0.3):
        step = stream(device().fit(first), later, UploadPolicy(share), np.random.default_rng(0))
        quality[share] = later.values["quality"][np.arange(len(later)), step.choice].mean()
        assert step.uploaded.mean() == pytest.approx(share, abs=0.05)
    assert quality[0.3] > quality[0.0] + 0.03
    assert doubt_of(np.array([0.5, 0.5]), np.array([0.1, 0.1])) > doubt_of(np.array([0.9, 0.1]), np.array([0.1, 0.1]))


def test_usefulness_is_the_drop_of_the_posterior_variance_of_recent_queries():
    rng = np.random.default_rng(5)
    first, x, seen = rng.normal(size=(30, 4)), rng.normal(size=4), rng.normal(size=(3, 4))
    unit = lambda rows: rows / np.linalg.norm(rows, axis=-1, keepdims=True)  # noqa: E731
    useful = Usefulness(first, l2=2.0, recent=3)
    for row in seen:
        useful(row)
    before = unit(first).T @ unit(first) + 2.0 * np.eye(4)
    after = before + np.outer(unit(x), unit(x))
    now = unit(np.vstack([seen[1:], x]))  # the oldest is forgotten
    drop = np.einsum("nd,de,ne->n", now, np.linalg.inv(before) - np.linalg.inv(after), now).mean()
    worth = useful(x)
    assert worth == pytest.approx(drop, rel=1e-4)
    useful.sent(x)
    np.testing.assert_allclose(useful.covariance, np.linalg.inv(after), rtol=1e-4)


def test_useful_uploads_teach_the_device_too():
    table = synthetic_outcomes(900, 4, rng=np.random.default_rng(3)).outcomes
    topic = table.labels["dataset"] == "topic-0"
    first, later = table.take(np.flatnonzero(topic)), table.take(np.flatnonzero(~topic))
    useful = Usefulness(np.array([query.embedding for query in first.queries]))
    step = stream(device().fit(first), later, UploadPolicy(0.3), np.random.default_rng(0), useful=useful)
    assert step.uploaded.mean() == pytest.approx(0.3, abs=0.02)
    alone = stream(device().fit(first), later, UploadPolicy(0.0), np.random.default_rng(0))
    quality = later.values["quality"][np.arange(len(later))[:, None], np.c_[step.choice, alone.choice]].mean(axis=0)
    assert quality[0] > quality[1] + 0.03


def test_what_to_send_may_be_said_beforehand():
    table = synthetic_outcomes(300, 3, rng=np.random.default_rng(4)).outcomes
    first, later = table.take(np.arange(150)), table.take(np.arange(150, 300))
    chosen = np.random.default_rng(0).random(150) < 0.2
    step = stream(device().fit(first), later, UploadPolicy(0.0), np.random.default_rng(0), batch=1, chosen=chosen)
    assert (step.uploaded == chosen).all()
    learner = device().fit(first)
    for i in range(150):  # one at a time, without looking ahead
        mean = learner.predict(later.queries[i : i + 1], later.pool)["quality"].mean[0]
        assert step.choice[i] == mean.argmax()
        if chosen[i]:
            learner.update(later.take(np.array([i])))
