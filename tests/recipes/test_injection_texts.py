"""Generated texts: every slot filled, templates kept apart, and a fit that learns what tells them apart."""

from __future__ import annotations

import numpy as np

from polyroute.recipes.injection_texts import ATTACKS, PLAIN, fit, made, split_templates, windows
from polyroute.signals.injection import Weights


def test_slots_are_filled_and_seeds_repeat():
    texts = made(ATTACKS + PLAIN, 200, np.random.default_rng(0))
    assert not any("{" in text or "}" in text for text in texts)
    assert texts == made(ATTACKS + PLAIN, 200, np.random.default_rng(0))
    assert len(set(texts)) > 190


def test_held_out_templates_are_not_learned_from():
    learned, held = split_templates(ATTACKS, 0)
    assert set(learned) | set(held) == set(ATTACKS)
    assert not set(learned) & set(held)


def test_the_fit_tells_attacks_from_plain_texts_of_unseen_templates():
    rng = np.random.default_rng(0)
    (attack, unseen), (plain, other) = split_templates(ATTACKS, 1), split_templates(PLAIN, 1)
    texts = made(attack, 400, rng) + made(plain, 400, rng)
    weights = Weights(fit(texts, np.arange(800) < 400, least=3))
    flagged = [np.mean([weights(t) >= 0.5 for t in made(some, 200, rng)]) for some in (unseen, other)]
    assert flagged[0] > flagged[1] + 0.3


def test_windows_cover_a_text():
    found = windows(["word " * 100], 10, np.random.default_rng(0))
    assert len(found) == 5
    assert max(len(window.split()) for window in found) == 40
