"""What people feed to fit, eval and predict by mistake: one line that names the place, or a stated fallback."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyroute.cli import main
from polyroute.data.synthetic import synthetic_outcomes

pa = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'polyroute[data]'")
pq = pytest.importorskip("pyarrow.parquet")
if importlib.util.find_spec("wordllama") is None:
    pytest.skip("needs wordllama: pip install 'polyroute[embed]'", allow_module_level=True)

ROUTERS = ("knn", "calibrated", "default")


def rows_of(n: int = 60, m: int = 3, **change: Any) -> dict[str, list[Any]]:
    """A long table: n queries of a few topics, m models. change: column -> its values, None to leave it out."""
    drawn = synthetic_outcomes(n, m, rng=np.random.default_rng(5)).outcomes
    i, j = np.repeat(np.arange(n), m), np.tile(np.arange(m), n)
    rows = {
        "query_id": [f"q{k}" for k in i],
        "model": [f"m{k}" for k in j],
        "score": drawn.values["quality"][i, j].tolist(),
        "cost_usd": drawn.values["cost"][i, j].tolist(),
        "query": [f"{drawn.queries[k].text} number {k}" for k in i],
        "split": drawn.labels["split"][i].tolist(),
        "group_id": drawn.labels["group"][i].tolist(),
    } | change
    return {name: column for name, column in rows.items() if column is not None}


@pytest.fixture
def write(tmp_path):
    def written(rows: dict[str, list[Any]], name: str = "t.parquet") -> Path:
        pq.write_table(pa.table(rows), tmp_path / name)
        return tmp_path / name

    return written


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """Run a command; gives its exit code, what it said on stderr, and the JSON object of the last line."""
    monkeypatch.chdir(tmp_path)

    def called(*words: object) -> tuple[int, str, Any]:
        code = main([str(word) for word in words])
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return code, told.err, json.loads(told.out.splitlines()[-1]) if code == 0 else None

    return called


def through(call, table: Path, router: str = "knn", *options: object) -> tuple[Any, Any, list[dict[str, Any]]]:
    """Fit, eval and predict one table; all must go well. Gives what each told, and the choices."""
    code, told, fitted = call("fit", table, "--router", router, "-o", "r.npz", *options)
    assert code == 0, told
    code, told, judged = call("eval", "r.npz", table, "--resamples", 10, *options)
    assert code == 0, told
    code, told, _ = call("predict", "r.npz", table, "-o", "p.parquet")
    assert code == 0, told
    return fitted, judged, pq.read_table("p.parquet").to_pylist()


@pytest.mark.parametrize("router", ["knn", "linear"])
def test_queries_that_lack_a_model_are_left_out_and_counted(call, write, router):
    rows = rows_of()
    kept = [k for k in range(len(rows["model"])) if not (rows["model"][k] == "m1" and k % 9 == 1)]
    table = write({name: [column[k] for k in kept] for name, column in rows.items()})
    fitted, _, choices = through(call, table, router)
    assert fitted["complete"]
    code, _, partial = call("fit", table, "--router", router, "-o", "r.npz", "--partial")
    assert (code, partial["rows"] > fitted["rows"]) == (0, True)
    assert "lack a model's outcome and are left out" in call("eval", "r.npz", table, "--resamples", 10)[1]
    assert len(choices) == 62 * len({row["query_id"] for row in choices})


def test_a_score_that_is_missing_is_named(call, write):
    score = rows_of()["score"]
    code, told, _ = call("fit", write(rows_of(score=[None, *score[1:]])), "-o", "r.npz")
    assert code == 2
    assert "column 'score', row 0: expected a number in 0..1, got nan. Leave out rows without an outcome." in told


@pytest.mark.parametrize("router", ROUTERS)
def test_one_model_is_a_pool_with_nothing_to_choose(call, write, router):
    _, judged, choices = through(call, write(rows_of(m=1)), router)
    assert {row["model"] for row in choices} == {"m0"}
    assert judged["models"] == 1
    assert len({row["aiq"] for row in judged["rows"]}) == 1  # every router is the same here


@pytest.mark.parametrize(("router", "score"), [("calibrated", 0.0), ("mix", 1.0), ("default", 1.0)])
def test_scores_that_never_differ_leave_the_choice_to_cost(call, write, router, score):
    rows = rows_of()
    _, judged, choices = through(call, write(rows | {"score": [score] * len(rows["score"])}), router)
    by_name = {row["name"]: row for row in judged["rows"]}
    assert by_name[router]["aiq"] == by_name["random mix"]["aiq"] == score
    assert {row["model"] for row in choices if row["trade_off"] == 1000} == {"m0"}


def test_copies_in_several_splits_are_refused_with_their_ids(call, write):
    rows = rows_of(group_id=None)
    train, test = (rows["query_id"][rows["split"].index(split)] for split in ("train", "test"))
    text = rows["query"][rows["query_id"].index(train)]
    copied = [f"  {text.upper()}!" if known == test else was
              for known, was in zip(rows["query_id"], rows["query"], strict=True)]  # fmt: skip
    table = write(rows | {"query": copied})
    for words in (("fit", table, "-o", "r.npz"), ("eval", "knn", table)):
        code, told, _ = call(*words)
        assert code == 2
        assert "expected each text in one split, got 1 in several" in told
        assert f"'{train}' in train" in told
        assert f"'{test}' in test" in told
    assert call("fit", table, "-o", "r.npz", "--allow-shared-groups")[0] == 0


def test_copies_without_a_group_are_kept_together_in_folds(write):
    from polyroute.data.outcomes import load_outcomes

    rows = rows_of(split=None, group_id=None)
    rows["query"] = [rows["query"][0] if k < 6 else text for k, text in enumerate(rows["query"])]
    group = load_outcomes(write(rows)).labels["group"]
    assert group[0] == group[1] != group[2]


@pytest.mark.parametrize(("router", "prices"), [("knn", None), ("calibrated", 0.0), ("default", None)])
def test_models_without_a_price_or_for_free_are_judged_by_quality(call, write, tmp_path, router, prices):
    rows = rows_of()
    if prices is not None:
        models = [{"name": f"m{j}", "price_in": prices, "price_out": prices} for j in range(3)]
        (tmp_path / "models.json").write_text(json.dumps({"models": models}))
    free = write(rows | {"cost_usd": [0.0] * len(rows["model"])})
    fitted, judged, choices = through(call, free, router)
    assert fitted["reference_cost_usd"] == 1.0
    assert judged["rows"][0]["cost_100"] is None  # nothing to relate a cost to
    some = write(rows | {"cost_usd": [0.0 if m == "m0" else c for m, c in
                                      zip(rows["model"], rows["cost_usd"], strict=True)]})  # fmt: skip
    fitted, judged, choices = through(call, some, router)
    assert {row["model"] for row in choices if row["trade_off"] == np.inf} == {"m0"}


@pytest.mark.parametrize("factor", [100.0, 1e6])
def test_costs_in_another_unit_are_refused(call, write, tmp_path, factor):
    rows = rows_of()
    models = [{"name": f"m{j}", "price_in": p, "price_out": p} for j, p in enumerate((0.2, 2.0, 20.0))]
    (tmp_path / "models.json").write_text(json.dumps({"models": models}))
    tokens = [50] * len(rows["model"])
    listed = [2 * 50 * (0.2, 2.0, 20.0)[int(m[1])] / 1e6 for m in rows["model"]]
    rows |= {"input_tokens": tokens, "output_tokens": tokens}
    assert call("fit", write(rows | {"cost_usd": listed}), "-o", "r.npz")[0] == 0
    table = write(rows | {"cost_usd": [factor * c for c in listed]})
    for words in (("fit", table, "-o", "r.npz"), ("eval", "r.npz", table)):
        code, told, _ = call(*words)
        assert code == 2
        assert f"{factor:.3g} times that (as if in {'cents' if factor == 100 else 'millionths'}" in told
        assert "--any-cost" in told
    assert call("fit", table, "-o", "r.npz", "--any-cost")[0] == 0


def test_models_the_router_never_saw_are_left_out_by_name(call, write):
    small = {name: [v for v, m in zip(column, rows_of()["model"], strict=True) if m != "m2"]
             for name, column in rows_of().items()}  # fmt: skip
    assert call("fit", write(small), "-o", "r.npz")[0] == 0
    code, told, judged = call("eval", "r.npz", write(rows_of()), "--resamples", 10)
    assert (code, judged["models"]) == (0, 2)
    assert "left out, since the router never saw them: m2" in told
    strangers = write(rows_of(model=[m.replace("m", "other") for m in rows_of()["model"]]))
    code, told, _ = call("eval", "r.npz", strangers)
    assert code == 2
    assert "expected at least 2 of the router's models (m0, m1), got 0" in told


def listed(tmp_path: Path, *models: dict[str, Any]) -> Path:
    (tmp_path / "pool.json").write_text(json.dumps({"models": models}))
    return tmp_path / "pool.json"


def test_models_never_seen_are_served_from_profiles_or_named(call, write, tmp_path):
    table = write(rows_of())
    pool = listed(tmp_path, {"name": "m1", "price_in": 1, "price_out": 1},
                  {"name": "able", "price_in": 30, "price_out": 60, "ability": {"general": 3.0}},
                  {"name": "dull", "price_in": 0.01, "price_out": 0.01, "ability": {"general": -3.0}})  # fmt: skip
    assert call("fit", table, "-o", "r.npz")[0] == 0
    code, told, _ = call("predict", "r.npz", table, "--models", pool, "-o", "p.parquet")
    assert code == 2
    assert "No estimate for 'able', 'dull': expected candidates seen in fit (m0, m1, m2)" in told
    assert "give the router a prior that reads profiles" in told
    assert call("fit", table, "--prior", "default", "-o", "r.npz")[0] == 0
    code, told, _ = call("predict", "r.npz", table, "--models", pool, "-o", "p.parquet")
    assert code == 0, told
    chosen = {t: {row["model"] for row in pq.read_table("p.parquet").to_pylist() if row["trade_off"] == t}
              for t in (0.0, np.inf)}  # fmt: skip
    assert "able" in chosen[0.0]
    assert "dull" not in chosen[0.0]
    assert chosen[np.inf] == {"dull"}
    only = listed(tmp_path, {"name": "m2"}, {"name": "m0"})
    assert call("predict", "r.npz", table, "--models", only, "-o", "p.parquet")[0] == 0
    assert {row["model"] for row in pq.read_table("p.parquet").to_pylist()} == {"m0", "m2"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected a readable JSON file"),
        ('{"models": []}', "expected at least one model in the list `models`, got none"),
        ('{"models": [{"name": "x", "price_in": "free"}]}', "model 'x': expected price_in of 0 or more, got 'free'"),
        ('{"models": [7]}', "models[0]: expected an object with a `name`, got 7"),
        ('{"models": [{"price_in": 1}]}', "models[0]: expected an object with a `name`"),
        ('{"note": 3, "models": [{"name": "x"}]}', "No estimate for 'x'"),
        ('{"models": [{"name": "x", "ability": 3}]}', "model 'x': expected ability as an object of skill: logit"),
    ],
)
def test_a_pool_that_is_none_is_named(call, write, tmp_path, content, message):
    table = write(rows_of())
    assert call("fit", table, "-o", "r.npz")[0] == 0
    (tmp_path / "pool.json").write_text(content)
    code, told, _ = call("predict", "r.npz", table, "--models", "pool.json", "-o", "p.parquet")
    assert code == 2
    assert message in told


@pytest.mark.parametrize("text", ["", None])
def test_queries_without_a_text_are_left_out_of_fit_and_named_by_predict(call, write, text):
    rows = rows_of()
    assert call("fit", write(rows), "-o", "r.npz")[0] == 0
    mute = rows["query_id"][rows["split"].index("train")]
    table = write(rows | {"query": [text if known == mute else was for known, was in
                                    zip(rows["query_id"], rows["query"], strict=True)]})  # fmt: skip
    code, told, _ = call("fit", table, "-o", "other.npz")
    assert code == 0
    assert "1 of" in told
    assert "queries have no text and are left out" in told
    code, told, _ = call("predict", "r.npz", table, "-o", "p.parquet")
    assert code == 2
    assert f"expected a text for every query, got none for 1 ({mute!r})" in told
    code, told, _ = call("fit", write(rows | {"query": [text] * len(rows["query"])}), "-o", "other.npz")
    assert code == 2
    assert "expected texts or recorded embeddings to route on, got none for any query" in told


def test_texts_of_no_words_get_a_choice(call, write):
    texts = ["   \n\t ", "\u200b", "\x00", "😀" * 50, "的" * 200, "a\u0301" * 99]
    assert call("fit", write(rows_of()), "-o", "r.npz")[0] == 0
    asked = write({"query_id": [f"a{k}" for k in range(len(texts))], "query": texts}, "q.parquet")
    code, told, said = call("predict", "r.npz", asked, "-o", "p.parquet")
    assert (code, said["queries"]) == (0, len(texts)), told


def test_a_text_of_100_000_tokens_is_learned_from_and_routed(call, write):
    rows = rows_of()
    long = "the river runs past the court and the orchestra " * 12_500
    table = write(rows | {"query": [long if known in ("q4", "q5") else was for known, was in
                                    zip(rows["query_id"], rows["query"], strict=True)]})  # fmt: skip
    _, _, choices = through(call, table, "knn", "--allow-shared-groups")
    assert "q4" in {row["query_id"] for row in choices}


@pytest.mark.parametrize("command", ["fit", "eval", "predict"])
def test_bytes_that_are_not_utf8_are_named(call, write, command):
    rows = rows_of()
    assert call("fit", write(rows), "-o", "r.npz")[0] == 0
    pieces = [text.encode() for text in rows["query"]]
    pieces[6:9] = [b"caf\xe9"] * 3  # Latin-1
    offsets = np.cumsum([0, *map(len, pieces)]).astype(np.int32)
    broken = pa.Array.from_buffers(
        pa.string(), len(pieces), [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(pieces))]
    )
    table = write(rows | {"query": broken})
    words = {"fit": ("fit", table, "-o", "r2.npz"), "eval": ("eval", "r.npz", table),
             "predict": ("predict", "r.npz", table, "-o", "p.parquet")}[command]  # fmt: skip
    code, told, _ = call(*words)
    assert code == 2
    assert "t.parquet: column 'query', row 6: expected UTF-8 text, got byte 0xe9 at position 3" in told


def test_files_that_are_no_tables_are_named(call, tmp_path):
    (tmp_path / "t.csv").write_bytes(b"query_id,model\n\xff\xfe")
    for words in (("fit", "t.csv", "-o", "r.npz"), ("eval", "knn", "t.csv")):
        code, told, _ = call(*words)
        assert code == 2
        assert "t.csv: expected a readable Parquet file" in told


def test_a_missing_column_is_not_mistaken_for_another_that_is_wanted(call, write):
    assert call("fit", write(rows_of()), "-o", "r.npz")[0] == 0
    code, told, _ = call("predict", "r.npz", write({"query": ["What is 2+2?"]}, "q.parquet"), "-o", "p.parquet")
    assert code == 2
    assert "expected a column 'query_id', got 'query'. Add it." in told


def test_a_newcomer_that_costs_most_of_a_table_is_named_with_what_to_do(call, write):
    rows = rows_of()
    kept = [
        k for k in range(len(rows["model"])) if not (rows["model"][k] == "m1" and int(rows["query_id"][k][1:]) > 20)
    ]
    table = write({name: [column[k] for k in kept] for name, column in rows.items()})
    code, told, _ = call("fit", table, "-o", "r.npz")
    assert code == 0
    assert "queries lack a model's outcome and are left out: m1 answered " in told
    assert "--partial learns from them too" in told
    assert "--partial" not in call("eval", "r.npz", table, "--resamples", 10)[1]


def test_the_default_router_keeps_the_queries_that_a_newcomer_did_not_answer(call, write):
    rows = rows_of(90)
    late = [model == "m1" and int(query[1:]) > 30 for model, query in zip(rows["model"], rows["query_id"], strict=True)]
    kept = [k for k, is_late in enumerate(late) if not is_late]
    table = write({name: [column[k] for k in kept] for name, column in rows.items()})
    code, told, fitted = call("fit", table, "--router", "default", "-o", "r.npz")
    assert (code, fitted["complete"]) == (0, False)
    assert fitted["rows"] == len(
        {q for q, split in zip(rows["query_id"], rows["split"], strict=True) if split != "test"}
    )
    assert "queries lack a model's outcome and are learned from as they are: m1 answered " in told
    few = [k for k in range(len(late)) if not (rows["model"][k] == "m1" and rows["query_id"][k] == "q3")]
    table = write({name: [column[k] for k in few] for name, column in rows.items()})
    assert call("fit", table, "--router", "default", "-o", "r.npz")[2]["complete"]


def test_splits_of_another_name_are_said(write, call):
    named = rows_of()["split"]
    renamed = ["validation" if split == "valid" else split for split in named]
    code, told, _ = call("fit", write(rows_of(split=renamed)), "-o", "r.npz")
    assert code == 0
    assert f"not read: {renamed.count('validation') // 3} of 'validation' queries" in told
    assert "not read" not in call("fit", write(rows_of()), "-o", "r.npz")[1]


def test_a_router_that_shrinks_to_no_other_takes_no_prior(write, call):
    code, told, _ = call("fit", write(rows_of()), "--router", "irt", "--prior", "default", "-o", "r.npz")
    assert code == 2
    assert "--prior: expected none with --router irt" in told
