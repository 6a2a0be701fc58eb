"""polyroute bench request: one protocol, records that are used again, and a page that says what was reached."""

from __future__ import annotations

import json

import numpy as np
import pytest

from polyroute.cli import main
from polyroute.cli.kept import code_of, imported, read
from polyroute.cli.wanted import unfit
from polyroute.data.export import write_outcomes
from polyroute.data.synthetic import synthetic_outcomes

pa = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'polyroute[data]'")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'polyroute[plot]'")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two public tables with recorded embeddings: three models with prices, and a pair."""
    (tmp_path / "outcomes").mkdir()
    drawn = synthetic_outcomes(240, 3, rng=np.random.default_rng(0)).outcomes
    write_outcomes(drawn, tmp_path / "outcomes" / "three.parquet")
    write_outcomes(drawn.among(["model-0", "model-2"]), tmp_path / "outcomes" / "pair.parquet")
    said = [
        {"query_id": q.id, "model": c.id, "response": f"Answer {j}: {'yes ' * int(3 * drawn.values['quality'][i, j])}"}
        for i, q in enumerate(drawn.queries) for j, c in enumerate(drawn.pool)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(said), tmp_path / "outcomes" / "three_responses.parquet")  # not a table
    rows = pa.table({"query_id": [q.id for q in drawn.queries], "emb_row": np.arange(240, dtype=np.int32)})
    pq.write_table(rows, tmp_path / "queries.parquet")
    np.save(tmp_path / "embeddings.npy", np.stack([q.embedding for q in drawn.queries]).astype(np.float16))
    monkeypatch.setenv("POLYROUTE_DATA", str(tmp_path))
    monkeypatch.setattr("polyroute.offline.benchmark.COUNTED_S", 0.001)
    monkeypatch.setattr("polyroute.offline.benchmark.ONE_BY_ONE", 3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bench(capsys):
    def called(*words: str):
        code = main(["bench", "request", "--features", "recorded-minilm", "--resamples", "20", "-o", "page.md", *words])
        told = capsys.readouterr()
        return json.loads(told.out.splitlines()[-1]) if code == 0 else told.err

    return called


def test_every_table_gets_every_router_and_the_baselines(folder, bench):
    found = bench("--routers", "knn", "price")
    assert [one["table"] for one in found["tables"]] == ["pair", "three"]
    assert found["skipped"] == {"price": "predicts cost, not quality"}
    aiq = found["tables"][1]["aiq"]
    assert set(aiq) == {"plain kNN", "knn", "shrunk kNN", "data-set oracle", "best single", "cheapest", "random mix",
                        "oracle"}  # fmt: skip
    assert aiq["oracle"] > aiq["knn"] > aiq["random mix"] > aiq["cheapest"]
    text = (folder / "page.md").read_text()
    assert "polyroute bench request --routers knn price --features recorded-minilm" in text
    assert "## three, `recorded-minilm`" in text
    assert "- `price`: predicts cost, not quality" in text
    assert text.count("| APGR |") == 1  # the pair's
    for name in ("pair", "three"):
        assert (folder / f"page-{name}-recorded-minilm.svg").read_text().lstrip().startswith("<?xml")


def test_the_figure_is_what_eval_prints(folder, bench, capsys):
    aiq = bench("--tables", "three", "--routers", "cluster")["tables"][0]["aiq"]
    words = ("eval", "cluster", "outcomes/three.parquet", "--features", "recorded-minilm", "--resamples", "20")
    assert main(list(words)) == 0
    rows = {row["name"]: row["aiq"] for row in json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]}
    assert aiq["cluster"] == pytest.approx(rows["cluster"], abs=1e-4)
    assert aiq["oracle"] == pytest.approx(rows["oracle"], abs=1e-4)


def test_records_are_used_again_until_table_or_code_change(folder, bench):
    words = ("--tables", "three", "--routers", "knn")
    bench(*words)
    record = folder / ".polyroute" / "bench" / "three.recorded-minilm.knn.json"
    planted = json.loads(record.read_text()) | {"aiq": 0.123}
    record.write_text(json.dumps(planted))
    assert bench(*words, "--resume")["tables"][0]["aiq"]["knn"] == 0.123
    assert read(record, planted["mark"]) == planted
    assert read(record, "made by other code") is None
    record.write_text("{ cut")
    assert read(record, planted["mark"]) is None
    record.write_text(json.dumps(planted))
    other = synthetic_outcomes(240, 3, rng=np.random.default_rng(1)).outcomes
    write_outcomes(other, folder / "outcomes" / "three.parquet")
    assert bench(*words, "--resume")["tables"][0]["aiq"]["knn"] != 0.123


def test_where_answers_were_recorded_the_cascade_stands_beside(folder, bench, monkeypatch):
    monkeypatch.setattr("polyroute.cli.bench.FEWEST", 20)
    found = bench("--tables", "three", "--routers", "knn")
    assert [one["table"] for one in found["tables"]] == ["three", "three-answers"]
    aiq = found["tables"][1]["aiq"]
    assert aiq["oracle"] >= aiq["verified cascade"] > aiq["cheapest"]
    text = (folder / "page.md").read_text()
    assert "| three-answers | `recorded-minilm` | 35 % |" in text
    assert "The queries to which every model's answer was recorded." in text


def test_settings_and_routers_never_depend_on_the_test_split(folder, bench):
    def chosen():
        bench("--tables", "three", "--routers", "bradley-terry")
        path = folder / ".polyroute" / "bench" / "three.recorded-minilm.bradley-terry.json"
        return json.loads(path.read_text())["chosen"]

    before = chosen()
    drawn = synthetic_outcomes(240, 3, rng=np.random.default_rng(0)).outcomes
    test = drawn.labels["split"] == "test"
    drawn.values["quality"][test] = 1 - drawn.values["quality"][test]
    write_outcomes(drawn, folder / "outcomes" / "three.parquet")
    assert chosen() == before


def test_newcomers_are_measured_by_one_command(folder, capsys):
    words = ["bench", "newcomer", "--tables", "three", "--features", "recorded-minilm", "--judge", "valid"]
    assert main([*words, "--draws", "2", "--resamples", "5", "--answers", "10", "-o", "new.md"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found["tables"]["three"]) == {"random", "spread"}
    assert found["tables"]["three"]["spread"]["AIQ"]["mean_full"] != 0
    text = (folder / "new.md").read_text()
    assert text.count("| three | `model-") == 6  # three models, two measures
    assert "polyroute bench newcomer --judge valid --answers 10 --draws 2 --resamples 5" in text
    assert main([*words, "--draws", "1", "-o", "new.md"]) != 0
    assert "--draws: expected 2 or more, got 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--tables", "tree"), "Unknown table 'tree'; expected one of: pair, three. Did you mean 'three'?"),
        (("--routers", "knnn"), "Unknown router 'knnn'"),
        (("-o", "page.html"), "--output: expected a file name ending in .md"),
    ],
)
def test_mistakes_are_named_before_any_work(folder, bench, words, told):
    assert told in bench(*words)


def test_a_page_that_cannot_be_written_is_named_before_any_work(folder, bench):
    (folder / "page.md").mkdir()
    assert "--output: expected a file that may be written, got 'page.md'" in bench("--routers", "knn")
    assert not (folder / ".polyroute").exists()


def test_what_cannot_take_part_says_why():
    assert unfit("knn") == ""
    assert unfit("price") == "predicts cost, not quality"
    assert unfit("together").startswith("has no defaults")


def test_a_records_mark_covers_the_code_it_rests_on():
    assert list(imported(b"import polyroute.a\nfrom polyroute.b import c\nfrom . import d")) == [
        "polyroute.a", "polyroute.b",
    ]  # fmt: skip
    assert code_of({"polyroute.routers.knn"}) == code_of({"polyroute.routers.knn", "polyroute.routers.shrink"})
    assert code_of({"polyroute.routers.knn"}) != code_of({"polyroute.routers.cluster"})
