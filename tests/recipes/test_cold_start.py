"""The router that ships: it loads, tells easy from hard, and sends them to different models of the embedded pool."""

from __future__ import annotations

import asyncio
import json
from importlib.resources import files

import numpy as np
import pytest

from polyroute.artefact import Artefact, load
from polyroute.data.catalogue import catalogue
from polyroute.data.synthetic import synthetic_outcomes
from polyroute.errors import OutcomesError
from polyroute.recipes import cold_start
from polyroute.routers.default import Default
from polyroute.routers.irt import IRT
from polyroute.signals import featuriser
from polyroute.types import Array, Candidate, Outcomes, Query
from tests.cli.shipped import needs_cold_start

GPT4, MIXTRAL = "gpt-4-1106-preview", "mistralai/Mixtral-8x7B-Instruct-v0.1"
SMALL, LESS_SMALL = "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"
PAIRS = (  # the second asks more of a model than the first
    ("What is 2+2?", "What is 48271 * 9973 - 1234 * 77?"),
    ("What is 2+2?", "Find all pairs of positive integers x, y with x^3 - y^3 = 217 and prove that there are no more."),
    ("Say hello.", "Write a sonnet whose every line hides the name of a chemical element."),
    ("What is the capital of France?", "Which treaty ended the war that followed the defenestration of 1618, and how?"),
    ("What is the opposite of hot?", "A bat and a ball cost 1.10 together and the bat costs 1 more; a third of what "
     "the ball costs, in percent of the bat's price, is how much?"),
    ("Which day comes after Monday?", "If 17 days after the day before yesterday is a Monday, which day was it 100 "
     "days ago?"),
    ("Repeat the word tree.", "What does this print? def f(n): return n if n < 2 else f(n-1) + 3*f(n-2)\nprint(f(9))"),
    ("Is 7 a prime?", "Prove that there are infinitely many primes of the form 4k+3, then generalise."),
    ("What is 3+1?", "A train leaves at 9:40 and travels 210 km at 84 km/h, waits 12 minutes, and returns at 70 km/h. "
     "A second one leaves 25 minutes later at 60 km/h. How far apart are they at noon?"),
    ("What colour is the sky? One word.", "Derive the Euler-Lagrange equation for a rigid pendulum on a moving cart."),
)  # fmt: skip


@pytest.fixture(scope="module")
def shipped() -> Artefact:
    return load(str(files("polyroute.data").joinpath("cold_start.npz")))


def quality(artefact: Artefact, texts: list[str], names: list[str]) -> Array:
    """[n, m] expected quality."""
    rows = featuriser(artefact.features)(texts)
    queries = [Query(str(i), text, rows[i]) for i, text in enumerate(texts)]
    return artefact.router.predict(queries, [Candidate(name) for name in names])["quality"].mean


@needs_cold_start
def test_it_loads_small_and_says_how_it_was_made(shipped: Artefact):
    assert isinstance(shipped.router, Default)
    assert isinstance(shipped.router.prior, IRT)
    assert shipped.features == "static-1"
    assert files("polyroute.data").joinpath("cold_start.npz").stat().st_size < 2_000_000  # type: ignore[attr-defined]
    assert {m.id for m in catalogue().embedded()} <= {candidate.id for candidate in shipped.pool}
    assert shipped.info["recipe"] == "polyroute.recipes.cold_start"
    assert shipped.info["split"] == "train"
    assert shipped.info["tables"] == list(cold_start.TABLES)


@needs_cold_start
def test_the_card_names_what_the_artefact_says_of_itself(shipped: Artefact):
    card = files("polyroute.data").joinpath("cold_start.md").read_text(encoding="utf-8")
    assert 0 < shipped.info["valid_brier"] < 0.25  # 0.25 is a coin
    assert 0 < shipped.info["valid_ece"] < 0.1
    assert shipped.info["valid_brier"] < shipped.info["valid_brier_prior"]
    assert shipped.info["local_brier"] < shipped.info["local_brier_prior"]
    for name in ("rows", "valid_brier", "valid_ece", "l2", "valid_brier_prior", "local_brier", "local_brier_prior"):
        assert f"`{name}`" in card
    made_by = "python -m polyroute.recipes.cold_start"
    for word in (*shipped.info["tables"], shipped.features, "MIT", "Apache-2.0", made_by):
        assert word in card
    for skill in shipped.router.prior.skills_:
        assert str(skill) in card
    for candidate in shipped.pool:
        assert candidate.id in card


@needs_cold_start
def test_an_easy_and_a_hard_request_go_to_different_models_of_the_embedded_pool():
    from polyroute.cli.route import decided
    from polyroute.gateway.build import build_brain
    from polyroute.gateway.config import load_config

    brain = build_brain(load_config(None))
    assert [candidate.id for candidate in brain.pool] == [SMALL, LESS_SMALL]
    easy, _ = asyncio.run(decided(brain, "What is 2+2?", "auto", None))
    hard, _ = asyncio.run(decided(brain, PAIRS[7][1], "auto", None))
    told = {one.id: round(one.mean["quality"], 3) for one in (*easy.candidates, *hard.candidates)}
    assert (easy.selected, hard.selected) == (SMALL, LESS_SMALL), told


@needs_cold_start
def test_harder_texts_are_expected_to_go_worse(shipped: Artefact):
    names = [SMALL, LESS_SMALL]
    easy, hard = (quality(shipped, [pair[i] for pair in PAIRS], names).mean(axis=1) for i in (0, 1))
    assert (easy > hard).mean() >= 0.8, np.round(easy - hard, 2)
    assert (easy - hard).mean() > 0.15


@needs_cold_start
def test_abilities_are_ordered_as_everybody_knows_them(shipped: Artefact):
    ability, _ = shipped.router.prior.abilities([Candidate(name) for name in (GPT4, MIXTRAL, LESS_SMALL, SMALL)])
    level = ability.mean(axis=1)
    assert (np.diff(level) < 0).all(), level.round(2)
    hard = quality(shipped, [pair[1] for pair in PAIRS], [GPT4, MIXTRAL, LESS_SMALL, SMALL]).mean(axis=0)
    assert (np.diff(hard) < 0).all(), hard.round(2)


@needs_cold_start
def test_a_model_nobody_knows_is_expected_in_the_middle_and_doubted(shipped: Artefact):
    rows = featuriser(shipped.features)(["What is the capital of France?"])
    pool = [Candidate("nobody"), Candidate(GPT4), Candidate(SMALL)]
    mean, std = shipped.router.predict([Query("q", "", rows[0])], pool)["quality"]
    assert std[0, 0] / (mean[0, 0] * (1 - mean[0, 0])) > 1.0
    assert mean[0, 0] < mean[0, 1]


# how it is made, on small tables


def labelled(names: list[str], seed: int) -> Outcomes:
    found = synthetic_outcomes(30, len(names), rng=np.random.default_rng(seed)).outcomes
    queries = [Query(f"{seed}-{q.id}", q.text, q.embedding) for q in found.queries]
    labels = {"skill": found.labels["dataset"], "dataset": found.labels["dataset"]}
    return Outcomes(queries, [Candidate(name) for name in names], found.values, found.observed, labels)


def test_tables_are_stacked_with_gaps_between():
    one, other = labelled(["a", "b"], 0), labelled(["c"], 1)
    both = cold_start.stacked([one, other])
    assert [c.id for c in both.pool] == ["a", "b", "c"]
    assert both.observed.sum(axis=0).tolist() == [30, 30, 30]
    assert not both.observed[:30, 2].any()
    assert not both.observed[30:, :2].any()
    assert (both.values["quality"][:30, :2] == one.values["quality"]).all()
    assert both.labels["skill"].tolist() == [*one.labels["skill"], *other.labels["skill"]]
    IRT().fit(both)
    with pytest.raises(OutcomesError, match="one candidate in two"):
        cold_start.stacked([one, labelled(["b"], 2)])


def test_probes_are_drawn_again_for_the_recorded_scores():
    draws = [{"per_level": 1, "seed": 5, "families": ["arithmetic", "reading"]}]
    recorded = {"draws": draws, "scores": {"m": {"arithmetic-1-0": 1.0, "g1": 0.0}, "k": {"reading-5-0": 1.0}}}
    table = cold_start.probe_table(recorded, {"g1": Query("g1", "How many?")})
    assert [q.id for q in table.queries] == ["arithmetic-1-0", "reading-5-0", "g1"]
    assert table.labels["skill"].tolist() == ["math", "commonsense", "math"]
    assert table.queries[0].text.startswith("What is ")
    assert table.observed.tolist() == [[True, False], [False, True], [True, False]]


@pytest.mark.skipif(
    not files("polyroute.data").joinpath("local_outcomes.json").is_file(), reason="no local_outcomes.json recorded"
)
def test_the_recorded_local_outcomes_are_of_the_embedded_pool():
    recorded = cold_start.local_outcomes()
    table = cold_start.probe_table(recorded, {})
    assert {c.id for c in table.pool} == {SMALL, LESS_SMALL}
    seen = table.values["quality"][table.observed]
    assert ((seen >= 0) & (seen <= 1)).all()
    assert len(table) > 100
    assert 0.1 < seen.mean() < 0.9
    assert json.dumps(recorded)
