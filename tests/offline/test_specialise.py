"""DSI, GG and CDTR in closed form, and a ratio that refuses to be read off noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from polyroute.errors import OutcomesError, ShapeError, UnknownNameError
from polyroute.offline.specialise import home_of, specialisation


def table(size=400):
    """Base scores .5 everywhere; the special one .9 at home, .4 and .3 elsewhere."""
    domains = np.repeat(["code", "maths", "chat"], size)
    level = {"code": 0.9, "maths": 0.4, "chat": 0.3}
    special = np.concatenate([np.arange(size) < level[d] * size for d in ("code", "maths", "chat")]).astype(float)
    return np.tile([0.0, 1.0], 3 * size // 2), special, domains


def test_the_figures_are_their_formulas():
    base, special, domains = table()
    found = specialisation(base, special, domains, "code", np.random.default_rng(0))
    assert found.dsi.value == pytest.approx(0.9 / 0.35)
    assert found.gain.value == pytest.approx(0.4)
    assert found.gg.value == pytest.approx(0.4 - (-0.1 - 0.2) / 2)
    assert found.cdtr.value == pytest.approx(-0.15 / 0.4)
    assert found.base == pytest.approx({"chat": 0.5, "code": 0.5, "maths": 0.5})
    for figure in found[:4]:
        assert figure.interval.low < figure.value < figure.interval.high
    assert found.gg.interval.low > 0.4
    assert found.cdtr.interval.high < 0


def test_a_gain_within_noise_has_no_ratio():
    base, special, domains = table(20)
    found = specialisation(base, base, domains, "code", np.random.default_rng(0))
    assert found.gain.value == 0.0
    assert math.isnan(found.cdtr.value)
    found = specialisation(base[:8], special[:8], np.repeat(["code", "chat"], 4), "code", np.random.default_rng(0))
    assert math.isnan(found.cdtr.value)


def test_groups_widen_the_interval():
    base, special, domains = table()
    groups = np.arange(1200) // 40
    alone = specialisation(base, special, domains, "code", np.random.default_rng(0)).gg.interval
    together = specialisation(base, special, domains, "code", np.random.default_rng(0), groups=groups).gg.interval
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_home_is_where_the_index_is_greatest():
    _, special, domains = table()
    found = home_of(special, domains)
    assert list(found) == ["code", "maths", "chat"]
    assert found["maths"] == pytest.approx(0.4 / 0.6)


def test_misuse_is_told():
    base, special, domains = table(4)
    rng = np.random.default_rng(0)
    with pytest.raises(UnknownNameError, match="Did you mean 'code'"):
        specialisation(base, special, domains, "cod", rng)
    with pytest.raises(ShapeError, match="domains"):
        specialisation(base, special, domains[:3], "code", rng)
    with pytest.raises(OutcomesError, match="gaps"):
        specialisation(base * np.nan, special, domains, "code", rng)
    with pytest.raises(OutcomesError, match="2 or more"):
        specialisation(base, special, np.full(12, "code"), "code", rng)
