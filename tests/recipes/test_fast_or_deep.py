"""A fast and a deep tier: intents, quotas, the band, and feedback that is not fooled by who complains."""

from __future__ import annotations

import json

import numpy as np
import pytest

from polyroute.errors import ConfigError, NotFittedError, OutcomesError, ShapeError
from polyroute.policies.quota import Quota
from polyroute.recipes.fast_or_deep import FastOrDeep
from polyroute.routers.gate import ThinkGate, Turn, report_rate_of
from polyroute.signals.intent import intent
from polyroute.types import Query


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("Think hard about this: 17 * 23?", "deep"),
        ("please THINK CAREFULLY", "deep"),
        ("Quick answer please: capital of Peru", "fast"),
        ("Don’t overthink it.", "fast"),
        ("be thorough, no, just the answer", "fast"),
        ("What is 2 + 2?", None),
        ("", None),
        ("you need not think hard", None),
        ("rethink harder things", None),
        ('Summarise: "we must think hard about this"', None),
        ("> think hard\nWhat does he mean?", None),
        ("```\n# think hard\n```\nExplain the comment", None),
        ("<document>think hard</document> Summarise", None),
        ("<document>think hard", None),
        ("Translate `think hard`", None),
        ("x " * 2000 + "think hard" + " y" * 2000, None),
        ("x " * 2000 + "think hard", "deep"),
    ],
)
def test_an_intent_counts_when_the_user_says_it_and_not_a_quotation(text, wish):
    assert intent(text) == wish


def test_a_quota_falls_back_and_refills_for_each_user():
    quota = Quota({"deep": 2, "deep-mini": 1}, {"deep": "deep-mini", "deep-mini": "fast"}, window_s=100.0)
    assert [quota.take("ana", "deep", 0.0) for _ in range(4)] == ["deep", "deep", "deep-mini", "fast"]
    assert quota.take("bo", "deep", 0.0) == "deep"
    assert quota.take("ana", "deep", 49.0) == "fast"
    assert quota.take("ana", "deep", 50.0) == "deep"
    assert quota.take("ana", "anything", 0.0) == "anything"
    with pytest.raises(ConfigError, match=r"fallback\.deep"):
        Quota({"deep": 1}, {})
    with pytest.raises(ConfigError, match="no circle"):
        Quota({"a": 1, "b": 1}, {"a": "b", "b": "a"})
    with pytest.raises(ConfigError, match=r"limits\.deep"):
        Quota({"deep": -1}, {"deep": "x"})


@pytest.fixture(scope="module")
def world():
    """Deep wins on half of the hard queries and on 2 % of the easy ones."""
    rng = np.random.default_rng(0)
    hard = rng.random(3000) < 0.3
    x = np.c_[np.where(hard, 1.0, -1.0), 0.5 * rng.normal(size=(3000, 3))].astype(np.float32)
    gain = (rng.random(3000) < np.where(hard, 0.5, 0.02)).astype(float)
    return [Query(f"q{i}", embedding=row) for i, row in enumerate(x)], gain, hard


def test_fit_finds_where_deep_wins_and_a_saved_gate_is_the_same(world):
    queries, gain, hard = world
    gate = ThinkGate().fit(queries, gain)
    chance = gate.chance(queries)
    assert chance[hard].mean() == pytest.approx(0.5, abs=0.08)
    assert chance[~hard].mean() == pytest.approx(0.02, abs=0.03)
    params, arrays = gate.state()
    again = ThinkGate.from_state(json.loads(json.dumps(params)), arrays)
    assert (again.chance(queries) == chance).all()
    assert (again.covariance_ == gate.covariance_).all()


def test_the_band_holds_a_conversation_and_propensities_are_those_of_the_draw(world):
    queries, gain, _ = world
    gate = ThinkGate(band=0.1, explore=0.0).fit(queries, gain)
    rng = np.random.default_rng(0)
    near = queries[int(np.abs(gate.chance(queries) - 0.5).argmin())]
    assert gate.decide(near, rng, before="deep").tier == "deep"
    assert gate.decide(near, rng, before="fast").tier == "fast"
    assert gate.decide(near, rng, before="fast", intent="deep").tier == "deep"
    gate.explore = 0.2
    turns = [gate.decide(queries[0], rng) for _ in range(4000)]
    propensity = np.array([t.propensity for t in turns])
    assert set(propensity.round(9)) == {0.1, 0.9}
    assert (propensity < 0.5).mean() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(("ipw", "honest"), [(True, True), (False, False)])
def test_complaints_alone_do_not_fool_the_gate_with_inverse_propensities(world, ipw, honest):
    queries, gain, _ = world
    rng = np.random.default_rng(1)
    gate = ThinkGate(tau=0.3, band=0.0, explore=0.1, ipw=ipw, report_rate=0.3).start(queries, 0.15)
    for i in rng.permutation(len(queries)):
        turn = gate.decide(queries[i], rng)
        gate.feedback(turn, switched=turn.tier == "fast" and gain[i] > 0 and rng.random() < 0.3)
    off = abs(gate.chance(queries).mean() - gain.mean())
    assert bool(off < 0.08) is honest


def test_one_pass_of_audits_teaches_what_judged_pairs_do(world):
    queries, gain, _ = world
    offline, online = ThinkGate().fit(queries, gain), ThinkGate(l2_online=10.0).start(queries, 0.2)
    rng = np.random.default_rng(3)
    for i in range(len(queries)):
        online.feedback(online.decide(queries[i], rng)._replace(tier="deep"), gain=float(gain[i]))
    assert online.chance(queries) == pytest.approx(offline.chance(queries), abs=0.03)
    assert online.weight_[1:] == pytest.approx(offline.weight_[1:], abs=0.1)


@pytest.mark.parametrize("switched", [True, False])
@pytest.mark.parametrize("propensity", [0.9, 0.5, 0.01])
def test_a_fast_turn_moves_the_gate_along_the_likelihood_of_its_switch(world, switched, propensity):
    queries, gain, _ = world
    gate = ThinkGate(report_rate=0.4, cap=5.0).fit(queries, gain)
    before, covariance = gate.weight_.copy(), gate.covariance_.copy()
    phi = gate.phi(queries[:1])[0]

    def log_likelihood(logit):
        seen = 0.4 / (1 + np.exp(-logit))
        return 0.3 * min(1 / propensity, 5.0) * np.log(seen if switched else 1 - seen)

    logit = phi @ before
    slope = (log_likelihood(logit + 1e-5) - log_likelihood(logit - 1e-5)) / 2e-5
    gate.feedback(Turn("fast", propensity, 0.5, phi), switched=switched)
    assert gate.weight_ - before == pytest.approx(slope * (gate.covariance_ @ phi), rel=1e-4)
    assert phi @ gate.covariance_ @ phi < phi @ covariance @ phi


def test_audits_and_preferences_teach(world):
    queries, gain, hard = world
    gate = ThinkGate().start(queries, 0.2)
    rng = np.random.default_rng(2)
    for i in range(1500):
        preferred = "deep" if gain[i] > 0 else "fast"
        gate.feedback(gate.decide(queries[i], rng), gain=float(gain[i]), preferred=preferred)
    chance = gate.chance(queries)
    assert chance[hard].mean() > chance[~hard].mean() + 0.15
    assert report_rate_of(np.array([1.0, 1.0, 0.0]), np.array([True, False, True])) == 0.5


def test_a_switch_away_from_a_mini_is_no_feedback(world):
    queries, gain, _ = world
    gate = ThinkGate().fit(queries, gain)
    service = FastOrDeep(gate, Quota({"deep": 1, "fast": 1}, {"deep": "deep-mini", "fast": "fast-mini"}))
    rng = np.random.default_rng(0)
    asked = Query("q", "think hard about this", queries[0].embedding)
    served = [service.serve(asked, rng, user="u", conversation="c", now_s=0.0) for _ in range(2)]
    assert [s.tier for s in served] == ["deep", "deep-mini"]
    assert served[0].because == "asked to be deep"
    assert "quota of deep used up" in served[1].because
    before = gate.weight_.copy()
    service.feedback(served[1], switched=True, gain=1.0)
    assert (gate.weight_ == before).all()
    service.feedback(served[0], gain=-1.0)
    assert (gate.weight_ != before).any()


def test_wrong_input_is_named(world):
    queries, gain, _ = world
    with pytest.raises(ShapeError, match="gain"):
        ThinkGate().fit(queries, gain[:5])
    with pytest.raises(OutcomesError, match="gain"):
        ThinkGate().fit(queries, np.full(len(queries), np.nan))
    with pytest.raises(NotFittedError):
        ThinkGate().chance(queries)
    with pytest.raises(ConfigError, match="cap"):
        ThinkGate(cap=0.5)
    with pytest.raises(ConfigError, match="explore"):
        ThinkGate(explore=2.0)
    with pytest.raises(ConfigError, match="preferred"):
        ThinkGate().start(queries).feedback(Turn("fast", 1.0, 0.5, np.zeros(5)), preferred="both")
