from __future__ import annotations

import errno
import importlib.util
import io
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from polyroute.artefact import load, save
from polyroute.cli import main
from polyroute.cli.eval import finite
from polyroute.cli.predict import weights_of
from polyroute.cli.progress import Steps, elapsed
from polyroute.data.export import write_outcomes
from polyroute.data.outcomes import load_outcomes
from polyroute.data.synthetic import synthetic_outcomes
from polyroute.offline.frontier import realised, scale_of, summarise
from polyroute.routers.constant import Constant
from polyroute.routers.knn import KNN
from polyroute.types import Estimate, Outcomes, Query
from tests.recipes.test_verified import world

pa = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'polyroute[data]'")
pq = pytest.importorskip("pyarrow.parquet")
FEATURES = ("--features", "recorded-minilm")
needs_static = pytest.mark.skipif(
    importlib.util.find_spec("wordllama") is None, reason="needs wordllama: pip install 'polyroute[embed]'"
)


def with_recorded(outcomes: Outcomes, folder: Path, name: str = "table.parquet") -> Path:
    """Write a table and, beside it, its embeddings as a data set records them."""
    write_outcomes(outcomes, folder / name)
    rows = np.arange(len(outcomes), dtype=np.int32)
    pq.write_table(
        pa.table({"query_id": [q.id for q in outcomes.queries], "emb_row": rows}), folder / "queries.parquet"
    )
    np.save(folder / "embeddings.npy", np.stack([q.embedding for q in outcomes.queries]).astype(np.float16))
    return folder / name


@pytest.fixture
def drawn() -> Outcomes:
    return synthetic_outcomes(300, 3, rng=np.random.default_rng(0)).outcomes


@pytest.fixture
def table(drawn, tmp_path) -> Path:
    return with_recorded(drawn, tmp_path)


@pytest.fixture
def run(capsys):
    """Call a command; gives its exit code, its lines, and the JSON object of the last line."""

    def called(*words: object):
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        lines = captured.out.splitlines()
        last = json.loads(lines[-1]) if code == 0 else None
        return code, "\n".join(lines[:-1]) if code == 0 else captured.err, last

    return called


def test_a_cascade_is_fitted_on_recorded_answers(run, tmp_path):
    table, answers = world(120)
    path = with_recorded(table, tmp_path)
    told = {name: [key[i] for key in answers] for i, name in enumerate(("query_id", "model"))}
    pq.write_table(pa.table({**told, "response": list(answers.values())}), tmp_path / "answers.parquet")
    given = ("fit", path, "--router", "cascade", *FEATURES, "--answers", tmp_path / "answers.parquet")
    code, text, fitted = run(*given, "-o", tmp_path / "c.npz")
    assert code == 0
    assert "cascade on table.parquet" in text
    assert fitted["rows"] == 120
    assert load(tmp_path / "c.npz").router.rungs_ == ["small", "large"]
    silent = pa.table({**told, "response": pa.nulls(len(answers), pa.string())})
    pq.write_table(silent, tmp_path / "silent.parquet")
    fit, to = ("fit", path, *FEATURES), ("-o", tmp_path / "d.npz")
    some = ("--answers", tmp_path / "silent.parquet")
    nobody = "expected queries of table.parquet with an answer of every model, got none"
    for words, problem in (
        ((*fit, "--router", "cascade", *some, *to), nobody),
        ((*fit, "--router", "cascade", *to), "--answers: expected files of recorded answers"),
        ((*fit, *some, *to), "--answers"),
    ):
        code, text, _ = run(*words)
        assert code != 0
        assert problem in text
    assert not (tmp_path / "d.npz").exists()


def test_fit_eval_and_predict_agree(run, table, tmp_path):
    code, text, fitted = run("fit", table, "--router", "knn", *FEATURES, "-o", tmp_path / "r.npz")
    assert code == 0
    assert "knn: k " in text
    assert "AIQ on valid" in text
    assert fitted["split"] == "train"
    artefact = load(tmp_path / "r.npz")
    assert artefact.features == "recorded-minilm"
    assert artefact.fingerprint == fitted["fingerprint"]
    assert artefact.info["chosen"] == fitted["chosen"]
    assert [candidate.profile.price_in for candidate in artefact.pool] == [0.0] * 3  # no models.json here

    code, text, judged = run("eval", tmp_path / "r.npz", table, "--json", tmp_path / "e.json")
    assert code == 0
    names = [row["name"] for row in judged["rows"]]
    assert names == ["knn", "shrunk kNN", "data-set oracle", "best single", "cheapest", "random mix", "oracle"]
    assert all(name in text for name in names)
    assert "knn minus random mix: " in text
    assert judged == json.loads((tmp_path / "e.json").read_text())

    code, _, predicted = run("predict", tmp_path / "r.npz", table, "-o", tmp_path / "p.parquet")
    assert code == 0
    rows = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert predicted["queries"] * 62 == len(rows)
    assert rows[0]["trade_off"] == 0.0
    assert rows[61]["trade_off"] == np.inf
    assert rows[61]["query_id"] == rows[0]["query_id"]

    # Replaying what predict wrote gives what eval measured.
    test = load_outcomes(table)
    test = test.take(test.labels["split"] == "test")
    column = {candidate.id: j for j, candidate in enumerate(test.pool)}
    chosen = {(row["query_id"], row["trade_off"]): column[row["model"]] for row in rows}
    choices = np.array([[chosen[query.id, t] for query in test.queries] for t in dict.fromkeys(t for _, t in chosen)])
    curve = realised("", choices, test)
    scale = scale_of(test.values["quality"].mean(axis=0), test.values["cost"].mean(axis=0))
    found = summarise(curve.quality.mean(axis=1), curve.cost.mean(axis=1), scale)
    assert judged["rows"][0]["aiq"] == pytest.approx(found.aiq, abs=1e-5)


@pytest.mark.parametrize("valid", ["valid", "train"])
def test_fit_never_reads_the_test_split(run, drawn, tmp_path, valid):
    drawn.labels["split"][drawn.labels["split"] == "valid"] = valid  # without valid, folds of train choose
    table = with_recorded(drawn, tmp_path)
    _, _, before = run("fit", table, "--router", "cluster", *FEATURES, "-o", tmp_path / "r.npz")
    drawn.values["quality"][drawn.labels["split"] == "test"] = 0.5
    with_recorded(drawn, tmp_path)
    _, _, after = run("fit", table, "--router", "cluster", *FEATURES, "-o", tmp_path / "r.npz")
    assert before["fingerprint"] == after["fingerprint"]
    drawn.values["quality"][drawn.labels["split"] == "train"] = 0.5
    with_recorded(drawn, tmp_path)
    assert run("fit", table, "--router", "cluster", *FEATURES, "-o", tmp_path / "r.npz")[2] != after


@pytest.mark.parametrize("router", ["linear", "mix"])
def test_other_routers_can_be_fitted_judged_and_drawn(run, table, tmp_path, router):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'polyroute[plot]'")
    assert run("fit", table, "--router", router, *FEATURES, "-o", tmp_path / "r.npz")[0] == 0
    code, text, judged = run("eval", tmp_path / "r.npz", table, "--plot", tmp_path / "f.png", "--resamples", 20)
    assert code == 0
    assert judged["router"] == router
    assert (tmp_path / "f.png").exists()
    assert (tmp_path / "f.svg").exists()
    assert "f.svg" in text


class Always(KNN):
    """A router of a user: named by its path, fitted by eval, never saved."""


def test_eval_fits_a_name_or_a_path_on_the_spot(run, table, tmp_path):
    code, _, named = run("eval", "knn", table, *FEATURES, "--resamples", 20)
    assert code == 0
    run("fit", table, "--router", "knn", *FEATURES, "-o", tmp_path / "r.npz")
    _, _, saved = run("eval", tmp_path / "r.npz", table, "--resamples", 20)
    assert named["rows"] == saved["rows"]
    code, _, own = run("eval", f"{__name__}:Always", table, *FEATURES, "--resamples", 20)
    assert code == 0
    assert own["rows"][0]["name"] == "Always"
    assert own["rows"][0]["aiq"] == own["rows"][1]["aiq"]  # KNN at its defaults


class Odd:
    """A router somebody is still writing: `predict` gives what a test put in `said`."""

    def fit(self, outcomes):
        return self

    def predict(self, queries, pool):
        return self.said(np.full((len(queries), len(pool)), 0.5))


class Wide(Odd):
    said = staticmethod(lambda even: {"quality": Estimate(np.hstack([even, even]))})


class Holes(Odd):
    said = staticmethod(lambda even: {"quality": Estimate(np.where(np.eye(*even.shape), np.nan, even))})


class Free(Odd):
    said = staticmethod(lambda even: {"quality": Estimate(even), "cost": Estimate(np.full_like(even, np.inf))})


class Bare(Odd):
    said = staticmethod(lambda even: {"quality": even})


class Naked(Odd):
    said = staticmethod(lambda even: even)


class Percent(Odd):
    said = staticmethod(lambda even: {"quality": Estimate(100.0 * even)})


class Forgetful(Odd):
    def fit(self, outcomes):
        pass


class Demanding(Odd):
    def __init__(self, k):
        self.k = k


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("Wide", "router: quality: expected shape"),
        ("Holes", "nan"),
        ("Free", "inf"),
        ("Bare", "router: quality: expected Estimate(mean) or with a std, got 'ndarray'"),
        ("Naked", "router: expected one that predicts quality, got 'ndarray'"),
        ("Forgetful", "whose fit returns NoneType'. End fit with: return self"),
        ("Demanding", "missing a required argument: 'k'"),
        ("FEATURES", "expected a class with the methods fit and predict"),
        ("Path", "expected a class with the methods fit and predict"),
    ],
)
@pytest.mark.parametrize("folds", [(), ("--folds", 2)])
def test_a_router_half_written_is_told_what_is_wrong_with_it(run, table, own, message, folds):
    code, problem, _ = run("eval", f"{__name__}:{own}", table, *FEATURES, "--resamples", 5, *folds)
    assert code == 2
    assert message in problem.splitlines()[-1]


def test_qualities_in_another_unit_are_said(run, table, capsys):
    main(["eval", f"{__name__}:Percent", str(table), *FEATURES, "--resamples", "5"])
    assert "warning: Percent estimates qualities from 50 to 50, where 0 to 1 is expected" in capsys.readouterr().err


def test_folds_judge_every_query_by_a_router_that_did_not_see_it(run, table, tmp_path):
    run("fit", table, *FEATURES, "-o", tmp_path / "r.npz")
    code, _, judged = run("eval", tmp_path / "r.npz", table, "--folds", 4, "--resamples", 20)
    assert code == 0
    assert judged["queries"] == 300
    assert judged["split"] == "4 folds"
    code, _, named = run("eval", "cluster", table, "--folds", 3, *FEATURES, "--resamples", 20)
    assert code == 0
    aiq = {row["name"]: row["aiq"] for row in named["rows"]}
    assert aiq["oracle"] > aiq["cluster"] > aiq["cheapest"]


def test_a_table_without_splits_is_learned_from_whole(run, drawn, tmp_path):
    del drawn.labels["split"]
    table = with_recorded(drawn, tmp_path)
    code, text, fitted = run("fit", table, *FEATURES, "-o", tmp_path / "r.npz")
    assert code == 0
    assert "AIQ on 5 folds" in text
    assert fitted["rows"] == 300
    code, problem, _ = run("eval", "knn", table, *FEATURES)
    assert code == 2
    assert "expected a split to fit knn on, got none. Use --folds 5." in problem
    assert run("eval", tmp_path / "r.npz", table, "--split", "all", "--resamples", 20)[0] == 0


def test_judging_on_what_was_learned_from_is_said(table, tmp_path, capsys):
    main(["fit", str(table), *FEATURES, "-o", str(tmp_path / "r.npz")])
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "r.npz"), str(table), "--split", "all", "--resamples", "20"]) == 0
    assert "warning: the router learned from some of these queries" in capsys.readouterr().err


def test_a_pair_gets_apgr_and_cpt(run, drawn, tmp_path):
    table = with_recorded(drawn.among(["model-0", "model-2"]), tmp_path)
    _, text, judged = run("eval", "knn", table, *FEATURES, "--resamples", 50)
    assert "APGR" in text
    pair = {found["name"]: found for found in judged["pair"]}
    assert pair["random calls"]["apgr"] == 0.5
    assert pair["knn"]["cpt_50"] < pair["knn"]["cpt_80"]


def test_models_the_router_never_saw_are_left_out(run, drawn, tmp_path):
    part = with_recorded(drawn.among(["model-0", "model-1"]), tmp_path, "part.parquet")
    table = with_recorded(drawn, tmp_path)
    run("fit", part, *FEATURES, "-o", tmp_path / "r.npz")
    code, _, judged = run("eval", tmp_path / "r.npz", table, "--resamples", 20)
    assert code == 0
    assert judged["models"] == 2
    other = with_recorded(drawn.among(["model-1", "model-2"]), tmp_path, "other.parquet")
    code, problem, _ = run("eval", tmp_path / "r.npz", other)
    assert code == 2
    assert "expected at least 2 of the router's models (model-0, model-1), got 1" in problem


def test_queries_with_holes_count_where_asked(run, drawn, tmp_path):
    drawn.observed[:, 1] &= np.arange(300) % 3 != 0
    table = with_recorded(drawn, tmp_path)
    whole = run("fit", table, *FEATURES, "-o", tmp_path / "r.npz")[2]
    partial = run("fit", table, *FEATURES, "--partial", "-o", tmp_path / "r.npz")[2]
    assert whole["rows"] < partial["rows"]
    assert (whole["complete"], partial["complete"]) == (True, False)
    assert partial["chosen_by"] == "Brier score on valid"
    drawn.observed[:, 1] = np.arange(300) % 2 == 0
    drawn.observed[:, 2] = np.arange(300) % 2 == 1
    with_recorded(drawn, tmp_path)
    code, problem, _ = run("fit", table, *FEATURES, "-o", tmp_path / "r.npz")
    assert code == 2
    assert "expected queries that all 3 models answered, got none" in problem


def test_weights_choose_one_model_a_query(run, table, tmp_path):
    run("fit", table, *FEATURES, "-o", tmp_path / "r.npz")
    out = tmp_path / "p.parquet"
    chosen = {}
    for cost in (-1e9, 0):
        code, _, said = run("predict", tmp_path / "r.npz", table, "--weights", f"quality=1,cost={cost}", "-o", out)
        assert code == 0
        assert said["queries"] == len(pq.read_table(out)) == 300
        chosen[cost] = set(pq.read_table(out)["model"].to_pylist())
        trade_off = pq.read_table(out)["trade_off"][0].as_py()
        assert trade_off == pytest.approx(-cost * said["reference_cost_usd"])
    assert chosen[-1e9] == {"model-0"}
    assert "model-2" in chosen[0]
    code, problem, _ = run("predict", tmp_path / "r.npz", table, "--weights", "quality=1,latency=-1", "-o", out)
    assert code == 2
    assert "Unknown metric 'latency'; expected one of: cost, quality" in problem


@pytest.mark.parametrize("text", ["quality", "quality=x", "=1", "quality=1,,cost=2", "quality=nan", "quality=inf"])
def test_weights_that_are_none_are_refused(text, capsys):
    with pytest.raises(SystemExit):
        main(["predict", "r.npz", "q.parquet", "-o", "p.parquet", "--weights", text])
    assert "expected metric=number, for example quality=1,cost=-150" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quality=-1", "expected a weight of 0 or more"),
        ("quality=1,cost=150", "expected a weight of 0 or less, since cost is bad, got 'cost=150'"),
        ("quality=1,quality=2", "expected each metric once, got quality again"),
    ],
)
def test_weights_that_ask_for_the_worst_are_refused(text, message, capsys):
    with pytest.raises(SystemExit):
        main(["predict", "r.npz", "q.parquet", "-o", "p.parquet", "--weights", text])
    assert message in capsys.readouterr().err


def test_where_only_cost_weighs_the_trade_off_is_infinite(run, table, tmp_path):
    assert run("fit", table, *FEATURES, "-o", tmp_path / "r.npz")[0] == 0
    assert run("predict", tmp_path / "r.npz", table, "--weights", "cost=-1", "-o", tmp_path / "p.parquet")[0] == 0
    assert set(pq.read_table(tmp_path / "p.parquet")["trade_off"].to_pylist()) == {float("inf")}


@pytest.mark.parametrize("words", [("fit", "T", "-o", "r.npz"), ("eval", "knn", "T"), ("prove", "16")])
def test_a_seed_below_zero_is_refused(words, capsys):
    with pytest.raises(SystemExit):
        main([*words, "--seed", "-1"])
    assert "--seed: expected a whole number of 0 or more, got '-1'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_an_output_that_cannot_be_written_is_one_line_and_leaves_nothing(run, table, tmp_path, monkeypatch, command):
    assert run("fit", table, *FEATURES, "-o", tmp_path / "r.npz")[0] == 0
    monkeypatch.setattr(Path, "replace", full)
    out = tmp_path / ("new.npz" if command == "fit" else "new.parquet")
    words = (table, *FEATURES) if command == "fit" else (tmp_path / "r.npz", table)
    before = sorted(tmp_path.iterdir())
    code, problem, _ = run(command, *words, "-o", out)
    assert code == 2
    assert "expected to read or write it, got No space left on device. Check the path" in problem.splitlines()[-1]
    assert sorted(tmp_path.iterdir()) == before


def full(self: Path, target: Path) -> Path:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))


def test_weights_are_read():
    assert weights_of("quality=1, cost=-150.5") == {"quality": 1.0, "cost": -150.5}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fit", "T", "-o", "r.txt"), r"--output: expected a file name ending in .npz, got 'r.txt'"),
        (("fit", "T", "-o", "none/r.npz"), "--output: expected a file in a folder that exists"),
        (("fit", "none.parquet", "-o", "r.npz"), "none.parquet: expected a Parquet file, got no such file"),
        (("fit", "T", *FEATURES, "--prior", "default", "-o", "r.npz"), "expected a router on recorded-minilm"),
        (("eval", "none.npz", "T"), "none.npz: expected a file written by"),
        (("eval", "price", "T"), "ROUTER: expected a router of quality: knn, linear"),
        (("eval", "default", "T"), "Fit it first: polyroute fit TABLE --router default -o r.npz"),
        (("eval", "no_such_module:Router", "T"), "got 'no_such_module:Router'. No module named 'no_such_module'"),
        (("eval", "knnn", "T"), "Unknown router or file 'knnn'; expected one of: bradley-terry"),
        (("eval", "knn", "T", "--folds", "1"), "--folds: expected 2 to 100"),
        (("eval", "knn", "T", "--folds", "1000000"), "--folds: expected 2 to 100"),
        (("fit", "T", "--answers", "a.parquet", "-o", "r.npz"), "--answers: expected --router cascade, which reads"),
        (("fit", "T", "-o", "."), "--output: expected a file name ending in .npz"),
        (("predict", "none.npz", "T", "-o", "table.parquet"), "--output: expected another file than the one"),
        (
            ("eval", "knn", "T", *FEATURES, "--split", "dev"),
            "table.parquet: expected queries with split 'dev', got only",
        ),
        (("eval", "knn", "T", "--resamples", "0"), "--resamples: expected 1 or more"),
        (("eval", "knn", "T", "--plot", "f.pdf"), "--plot: expected a file name ending in .png or .svg"),
        (("eval", "knn", "T", "--json", "none/e.json"), "--json: expected a file in a folder that exists"),
        (("predict", "none.npz", "T", "-o", "p.parquet"), "none.npz"),
        (("predict", "none.npz", "T", "-o", "p.csv"), "ending in .parquet"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(run, table, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, problem, _ = run(*(table if word == "T" else word for word in words))
    assert code == 2
    assert message in problem.splitlines()[-1]
    assert problem.startswith(f"polyroute {words[0]}: ")
    assert "Traceback" not in problem


@pytest.mark.parametrize("command", ["fit", "eval", "predict"])
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"polyroute {command} r" in capsys.readouterr().out.replace("fit outcomes/r", "fit r")


def test_a_journal_serves_as_a_table_and_shrinks_to_a_prior(run, drawn, tmp_path):
    pytest.importorskip("msgspec", reason="needs the gateway: pip install 'polyroute[gateway]'")
    from polyroute.gateway.journal import Journal
    from polyroute.gateway.records import DecisionRecord, FeedbackRecord, OutcomeRecord, Weighed

    journal = Journal(tmp_path / "j.sqlite")
    for i, query in enumerate(drawn.queries):
        j, known = i % 2, f"dec_{i:024x}"
        journal.decision(DecisionRecord(
            id=known, request_id="r", time=float(i), endpoint="e", requested="auto", policy="auto", because="",
            selected=f"model-{j}", propensity=0.5, candidates=[Weighed(id="never")], features="static-1",
            prompt_tokens=query.num_tokens, embedding=query.embedding.astype("<f2").tobytes(),
        ))  # fmt: skip
        journal.outcome(OutcomeRecord(decision_id=known, time=float(i), status=200, state="ok", selected=f"model-{j}",
                                      cost_usd=1e-4, latency_s=0.1, completion_tokens=5))  # fmt: skip
        journal.feedback(FeedbackRecord(decision_id=known, time=float(i),
                                        metrics={"quality": float(drawn.values["quality"][i, j])}))  # fmt: skip
    journal.close()
    code, _, first = run("fit", tmp_path / "j.sqlite", "-o", tmp_path / "first.npz")
    assert code == 0
    assert first["chosen_by"] == "Brier score on 5 folds"
    assert 0 < first["scores"]["knn"] < 0.3
    assert first["rows"] == 300
    assert first["reference_cost_usd"] == pytest.approx(1e-4)
    assert [candidate.id for candidate in load(tmp_path / "first.npz").pool] == ["model-0", "model-1"]
    save(Constant("quality", 0.25, 0.1), tmp_path / "prior.npz", features="static-1", pool=[])
    code, _, second = run("fit", tmp_path / "j.sqlite", "--prior", tmp_path / "prior.npz", "-o", tmp_path / "s.npz")
    assert code == 0
    assert second["prior"].endswith("prior.npz")
    artefact = load(tmp_path / "s.npz")
    estimates = artefact.router.predict([Query("q", embedding=drawn.queries[0].embedding)], artefact.pool)
    assert set(estimates) == {"quality"}  # the gateway prices answers by its own list
    assert artefact.pool[2].id == "never"
    assert estimates["quality"].mean[0, 2] == 0.25
    code, problem, _ = run("eval", tmp_path / "s.npz", tmp_path / "j.sqlite")
    assert code == 2
    assert "expected a table in which every model answered, got a journal" in problem


@needs_static
def test_the_default_features_are_made_from_the_text(run, drawn, tmp_path):
    write_outcomes(drawn, tmp_path / "t.parquet")
    code, _, fitted = run("fit", tmp_path / "t.parquet", "-o", tmp_path / "r.npz")
    assert code == 0
    assert fitted["features"] == "static-1"
    pq.write_table(pa.table({"query_id": ["a", "b"], "query": ["river border", "python loop"]}), tmp_path / "q.parquet")
    assert run("predict", tmp_path / "r.npz", tmp_path / "q.parquet", "-o", tmp_path / "p.parquet")[0] == 0
    pq.write_table(pa.table({"query_id": ["a", "b"], "query": ["river", None]}), tmp_path / "q.parquet")
    code, problem, _ = run("predict", tmp_path / "r.npz", tmp_path / "q.parquet", "-o", tmp_path / "p.parquet")
    assert code == 2
    assert "expected a text for every query, got none for 1 ('b')" in problem


@pytest.mark.parametrize("features", ["recorded-minilm", pytest.param("static-1", marks=needs_static)])
def test_knn_reaches_the_published_figure_on_routerbench(run, data_dir, tmp_path, features):
    table = data_dir / "outcomes" / "routerbench.parquet"
    run("fit", table, "--router", "knn", "--features", features, "-o", tmp_path / "r.npz")
    code, _, judged = run("eval", tmp_path / "r.npz", table)
    assert code == 0
    aiq = {row["name"]: row["aiq"] for row in judged["rows"]}
    assert aiq["knn"] >= 0.828
    assert aiq["random mix"] == pytest.approx(0.809, abs=0.0006)
    assert judged["rows"][0]["aiq_minus"]["random mix"][1] > 0


def test_progress_is_shown_of_long_work_only():
    now = iter(range(100))
    stream = io.StringIO()
    with Steps("folding", 5, stream=stream, after_s=3, every_s=1, clock=lambda: next(now)) as steps:
        for done in range(1, 6):
            steps.at(done, "note")
    assert stream.getvalue().splitlines() == [
        "folding: 3 of 5  note", "folding: 4 of 5  note", "folding: 5 of 5  note",
    ]  # fmt: skip


def test_a_terminal_is_redrawn_and_wiped():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    now = iter(range(100))
    stream = Terminal()
    with Steps("x", 2, stream=stream, after_s=0, clock=lambda: next(now)) as steps:
        steps.at(1)
    assert stream.getvalue() == "\rx: 1 of 2\r         \r"


def test_json_holds_no_nan():
    assert finite({"a": [float("nan"), float("inf"), 1 / 3], "b": "x"}) == {"a": [None, None, 0.333333], "b": "x"}


def test_the_default_router_by_the_command_line(run, table, tmp_path):
    code, _, fitted = run("fit", table, "--router", "default", "-o", tmp_path / "r.npz", *FEATURES)
    assert code == 0
    assert (fitted["router"], fitted["split"], fitted["tokens"]) == ("default", "train and valid", "text")
    code = run("eval", tmp_path / "r.npz", table, "--resamples", 5)[0]
    assert code == 0
    code, _, said = run("predict", tmp_path / "r.npz", table, "-o", tmp_path / "out.parquet")
    assert (code, said["queries"]) == (0, 300)


def test_the_default_router_takes_no_prior(run, table, tmp_path):
    code = run("fit", table, "--router", "default", "--prior", "default", "-o", tmp_path / "r.npz", *FEATURES)[0]
    assert code != 0


def test_work_without_steps_says_how_long_it_has_been_going_on(monkeypatch):
    monkeypatch.setattr("polyroute.cli.progress.TICK_S", 0.001)
    stream = io.StringIO()
    with elapsed("fitting", stream=stream, after_s=0, every_s=0):
        while stream.getvalue().count("\n") < 3:
            time.sleep(0.001)
    assert stream.getvalue().startswith("fitting: 0 s\nfitting: 0 s\n")
    before = stream.getvalue()
    time.sleep(0.01)
    assert stream.getvalue() == before
    with pytest.raises(ZeroDivisionError), elapsed("fitting", stream=stream, after_s=9):
        _ = 1 / 0
    assert stream.getvalue() == before
