from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from polyroute.data.synthetic import synthetic_outcomes
from polyroute.errors import ConfigError
from polyroute.offline.compare import compare, resamples_of
from polyroute.offline.evaluate import Expected, curves_of
from polyroute.types import Candidate, Outcomes

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'polyroute[plot]'")
from polyroute.offline.plot import box_at, overlap, plot_frontier


@pytest.fixture(scope="module")
def compared():
    drawn = synthetic_outcomes(150, 6, rng=np.random.default_rng(0))
    outcomes = drawn.outcomes
    pool = [Candidate(f"owner/{candidate.id}", profile=candidate.profile) for candidate in outcomes.pool]
    outcomes = Outcomes(outcomes.queries, pool, outcomes.values, outcomes.observed, outcomes.labels)
    curves = curves_of(Expected({"router": drawn.success}, outcomes.values["cost"], 0.01), outcomes)
    counts = resamples_of(outcomes, np.random.default_rng(0), 40)
    return compare(curves, outcomes, counts), curves, outcomes, counts


def test_both_files_are_written_and_name_everything(compared, tmp_path):
    drawn = plot_frontier(tmp_path / "frontier.png", *compared, title="router on a table")
    assert drawn.png.read_bytes().startswith(b"\x89PNG")
    texts = " ".join(element.text or "" for element in ElementTree.parse(drawn.svg).iter())
    for words in ("router on a table", "mean cost, USD per 1,000 queries", "mean quality, 0 to 1", "router (AIQ 0.",
                  "random mix (AIQ", "best single (AIQ", "cheapest (AIQ", "oracle (AIQ", "95 % interval"):  # fmt: skip
        assert words in texts
    for j in range(6):
        assert f"model-{j}" in texts
    assert "owner/" not in texts


def test_the_same_comparison_gives_the_same_picture(compared, tmp_path):
    one, two = (plot_frontier(tmp_path / name, *compared, title="t") for name in ("a.svg", "b"))
    assert one.svg.read_bytes() == two.svg.read_bytes()
    assert one.png.read_bytes() == two.png.read_bytes()


def test_one_price_is_said_and_drawn(compared, tmp_path):
    _, _, outcomes, counts = compared
    cost = np.full(outcomes.observed.shape, 0.001)
    flat = Outcomes(outcomes.queries, outcomes.pool, {**outcomes.values, "cost": cost}, outcomes.observed)
    curves = curves_of(Expected({"router": outcomes.values["quality"]}, cost, 0.001), flat)
    drawn = plot_frontier(tmp_path / "flat.png", compare(curves, flat, counts), curves, flat, counts, title="flat")
    text = drawn.svg.read_text()
    assert "all models have one price" in text
    assert "router (quality 0." in text


def test_a_name_stands_where_its_box_says():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axes = FigureCanvasAgg(Figure(dpi=150)).figure.add_subplot()
    for place, align in (((8, 0), "left"), ((-8, -8), "right"), ((0, 14), "center")):
        note = axes.annotate("name", (0.5, 0.5), xytext=place, textcoords="offset points", ha=align, va="center")
        axes.figure.canvas.draw()
        box = note.get_window_extent()
        expected = box_at(axes.transData.transform((0.5, 0.5)), place, (box.width, box.height), 150 / 72)
        np.testing.assert_allclose(expected, box.padded(1.0).extents, atol=1.5)


def test_a_free_model_is_drawn_too(compared, tmp_path):
    _, _, outcomes, counts = compared
    cost = outcomes.values["cost"] * ([0.0] + [1.0] * 5)
    free = Outcomes(outcomes.queries, outcomes.pool, {**outcomes.values, "cost": cost}, outcomes.observed)
    curves = curves_of(Expected({"router": outcomes.values["quality"]}, cost, 0.001), free)
    drawn = plot_frontier(tmp_path / "free.png", compare(curves, free, counts), curves, free, counts, title="free")
    assert "(logarithmic)" not in drawn.svg.read_text()


def test_another_suffix_is_refused(compared, tmp_path):
    with pytest.raises(ConfigError, match=r"ending in \.png or \.svg, got .*frontier\.pdf"):
        plot_frontier(tmp_path / "frontier.pdf", *compared, title="t")


def test_shared_area_of_boxes():
    assert overlap((0, 0, 2, 2), (1, 1, 3, 3)) == 1
    assert overlap((0, 0, 1, 1), (1, 0, 2, 1)) == 0
    assert overlap((0, 0, 4, 4), (1, 1, 2, 3)) == 2
