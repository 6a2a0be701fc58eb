"""Each published format from a small file of its form to a table that fit and eval read."""

from __future__ import annotations

import csv
import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from polyroute.cli import main
from polyroute.data.formats.convert import convert, told
from polyroute.data.formats.long import Answer, Long, columns_of_answers, split_of_group
from polyroute.data.outcomes import load_outcomes
from polyroute.data.queries import load_queries
from polyroute.errors import OutcomesError, UnknownNameError

pa = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'polyroute[data]'")
pq = pytest.importorskip("pyarrow.parquet")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def wide(n: int = 3) -> list[dict[str, Any]]:
    """RouterBench: two models, the second dearer."""
    return [
        {
            "sample_id": f"mmlu.val.{i}", "prompt": f"Question {i}\nA. yes\nB. \"no\", he said",
            "eval_name": "mmlu-law", "gpt-4": 1.0, "yi/34b": i % 2 * 0.5,
            "gpt-4|model_response": "['A']", "yi/34b|model_response": "['B']",
            "gpt-4|total_cost": 0.01, "yi/34b|total_cost": 0.0004, "oracle_model_to_route_to": "gpt-4",
        }
        for i in range(n)
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_routerbench_is_one_wide_row_per_prompt(tmp_path, suffix):
    source = tmp_path / f"routerbench_0shot{suffix}"
    if suffix == ".csv":
        write_csv(source, wide())
    else:
        pq.write_table(pa.Table.from_pylist(wide()), source)
    done = convert(source, tmp_path / "t.parquet")
    assert (done.format, done.queries, done.models, done.notes) == ("routerbench", 3, 2, [])
    outcomes = load_outcomes(tmp_path / "t.parquet")
    assert [c.id for c in outcomes.pool] == ["gpt-4", "yi/34b"]
    assert outcomes.values["quality"].tolist() == [[1, 0], [1, 0.5], [1, 0]]
    assert outcomes.values["cost"][0].tolist() == [0.01, 0.0004]
    assert outcomes.queries[0].text == 'Question 0\nA. yes\nB. "no", he said'
    assert set(outcomes.labels["dataset"]) == {"mmlu-law"}
    assert {"split", "group"} <= outcomes.labels.keys()


def test_a_prompt_stored_as_a_list_is_its_text_and_a_hole_stays_one(tmp_path):
    rows = wide(2)
    rows[0] |= {"prompt": "['First turn', \"Second's turn\"]", "yi/34b": ""}
    rows[1] |= {"prompt": "['not a list]"}
    convert(write_csv(tmp_path / "rb.csv", rows), tmp_path / "t.parquet")
    outcomes = load_outcomes(tmp_path / "t.parquet")
    assert [q.text for q in outcomes.queries] == ["First turn\nSecond's turn", "['not a list]"]
    assert outcomes.observed.tolist() == [[True, False], [True, True]]


def test_a_pickle_is_never_opened(tmp_path, capsys):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / "routerbench_0shot.pkl").write_bytes(pickle.dumps(Trap()))
    for format in ((), ("--format", "routerbench")):
        source, output = str(tmp_path / "routerbench_0shot.pkl"), str(tmp_path / "t.parquet")
        assert main(["convert", source, *format, "-o", output]) == 2
        told = capsys.readouterr().err
        assert "got a pickle, which may run any code when it is opened and is never opened here" in told
        assert "pandas.read_pickle('routerbench_0shot.pkl').to_parquet('routerbench_0shot.parquet')" in told
    assert not (tmp_path / "sprung").exists()


def test_routellm_has_a_file_per_subject_and_prices_make_costs(tmp_path):
    weak, strong = "mixtral-8x7b-instruct-v0.1", "gpt-4-1106-preview"
    write_csv(tmp_path / "in" / "mmlu_law.csv", [
        {"prompt": "Is it?\nA. yes\nAnswer:", weak: "True", strong: "False"},
        {"prompt": "Was it?\nA. yes\nAnswer:", weak: "False", strong: "True"},
    ])  # fmt: skip
    write_csv(tmp_path / "in" / "gsm8k_responses.csv", [
        {"prompt": "How many?", weak: "False", strong: "True", f"{weak}_response": "x" * 40,
         f"{strong}_response": "y" * 80},
    ])  # fmt: skip
    prices = tmp_path / "models.json"
    prices.write_text(json.dumps({"models": [{"name": weak, "price_in": 0.6, "price_out": 0.6}]}))
    done = convert(tmp_path / "in", tmp_path / "t.parquet", prices=prices)
    assert (done.format, done.queries, done.models) == ("routellm", 3, 2)
    assert done.notes == ["costs estimated from list prices for 1 models",
                          f"no costs and no prices for 1 models ({strong}): their cost is 0; see --prices"]  # fmt: skip
    outcomes = load_outcomes(tmp_path / "t.parquet")
    assert outcomes.values["quality"].tolist() == [[0, 1], [1, 0], [0, 1]]
    assert outcomes.labels["dataset"].tolist() == ["gsm8k_responses", "mmlu_law", "mmlu_law"]
    assert outcomes.values["cost"][0].tolist() == pytest.approx([0.6 * (9 / 4 + 10) / 1e6, 0])
    assert outcomes.values["output_tokens"][0].tolist() == [10, 20]


def run_file(root: Path, dataset: str, model: str, time: str, scores: list[Any]) -> None:
    records = [
        {"index": i, "origin_query": f"{dataset} {i}", "prompt": f"Q: {dataset} {i}\nA:", "prediction": "4",
         "score": score, "ground_truth": "4", "prompt_tokens": 15, "completion_tokens": 5, "cost": 0.0001,
         "raw_output": "It is 4."}
        for i, score in enumerate(scores, 1)
    ]  # fmt: skip
    path = root / dataset / "test" / model / f"{time}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"performance": 0.5, "cost": 0.1, "counts": len(records), "records": records}))


def test_llmrouterbench_is_a_folder_and_the_latest_run_counts(tmp_path):
    for model in ("Qwen3-8B", "glm-4-9b"):
        run_file(tmp_path / "bench", "aime", model, "20250101_000000", [0.0, 0.0])
    run_file(tmp_path / "bench", "aime", "Qwen3-8B", "20250202_000000", [1.0, None])
    run_file(tmp_path / "bench", "mbpp", "Qwen3-8B", "20250101_000000", [1.0])
    done = convert(tmp_path / "bench", tmp_path / "t.parquet")
    assert (done.format, done.queries, done.models) == ("llmrouterbench", 3, 2)
    assert done.notes == ["1 answers without a score, left out", "2 queries lack a model's answer"]
    outcomes = load_outcomes(tmp_path / "t.parquet")
    place = {q.id: i for i, q in enumerate(outcomes.queries)}
    column = [c.id for c in outcomes.pool].index("Qwen3-8B")
    assert outcomes.values["quality"][place["aime-test-1"], column] == 1.0
    assert not outcomes.observed[place["aime-test-2"], column]
    assert outcomes.queries[place["mbpp-test-1"]].text == "mbpp 1"
    assert outcomes.queries[0].num_tokens == 15


def test_routerarena_is_a_file_of_lines_per_model(tmp_path):
    for model, score in (("claude-3-haiku-20240307", 1.0), ("gemini-2.0-flash-001", 0.0)):
        write_lines(tmp_path / "cached_results" / f"{model}.jsonl", [
            {"global_index": f"ArcMMLU_{i}", "question": f"Which {i}?", "llm_selected": model, "generated_answer": "A",
             "token_usage": {"input_tokens": 120, "output_tokens": 60, "total_tokens": 180}, "success": True,
             "evaluation_result": {"score": score, "metric": "mcq_accuracy", "inference_cost": 1.06e-4}}
            for i in (7, 9)
        ] + [{"global_index": "AIME_1", "question": "Find N.", "llm_selected": model, "token_usage": None,
              "success": False, "evaluation_result": None}])  # fmt: skip
    done = convert(tmp_path / "cached_results", tmp_path / "t.parquet")
    assert (done.format, done.queries, done.models) == ("routerarena", 2, 2)
    assert done.notes == ["2 answers without a score, left out"]
    outcomes = load_outcomes(tmp_path / "t.parquet")
    assert outcomes.values["quality"].tolist() == [[1, 0], [1, 0]]
    assert set(outcomes.labels["dataset"]) == {"ArcMMLU"}
    assert outcomes.values["output_tokens"].min() == 60


def embedllm_rows(texts: list[str]) -> list[dict[str, Any]]:
    return [
        {"prompt_id": i, "model_id": m, "category_id": 3, "label": (i + m) % 2, "prompt": text,
         "model_name": f"org__m{m}", "category": "piqa"}
        for i, text in enumerate(texts) for m in range(3)
    ]  # fmt: skip


def test_embedllm_has_long_rows_and_splits_of_its_own(tmp_path):
    for name, texts in (("train", ["a", "b"]), ("val", ["c"]), ("test", ["d"])):
        write_csv(tmp_path / "e" / f"{name}.csv", embedllm_rows(texts))
    done = convert(tmp_path / "e", tmp_path / "t.parquet")
    assert (done.format, done.queries, done.models) == ("embedllm", 4, 3)
    outcomes = load_outcomes(tmp_path / "t.parquet")
    split = dict(zip([q.text for q in outcomes.queries], outcomes.labels["split"], strict=True))
    assert split == {"a": "train", "b": "train", "c": "valid", "d": "test"}
    assert outcomes.values["cost"].max() == 0


def test_copies_across_a_sources_own_splits_are_refused_unless_drawn_anew(tmp_path):
    for name, texts in (("train", ["a copy", "b"]), ("test", ["A  copy!"])):
        write_csv(tmp_path / "e" / f"{name}.csv", embedllm_rows(texts))
    with pytest.raises(OutcomesError, match="'test-0' in test, 'train-0' in train"):
        convert(tmp_path / "e", tmp_path / "t.parquet")
    assert not (tmp_path / "t.parquet").exists()
    convert(tmp_path / "e", tmp_path / "t.parquet", new_splits=True)
    outcomes = load_outcomes(tmp_path / "t.parquet")
    group = dict(zip([q.text for q in outcomes.queries], outcomes.labels["group"], strict=True))
    assert group["a copy"] == group["A  copy!"] != group["b"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_gqr_is_labelled_texts(tmp_path, suffix):
    rows = [{"text": "May I sue?", "domain": "law", "label": 0},
            {"text": "Buy bonds?", "domain": "finance", "label": 1},
            {"text": " ", "domain": "ood", "label": 3}]  # fmt: skip
    (tmp_path / "g").mkdir()
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "g" / "gqr_train.parquet")
    else:
        (write_csv if suffix == ".csv" else write_lines)(tmp_path / "g" / f"gqr_train{suffix}", rows)
    write_lines(tmp_path / "g" / "gqr_ood_test.jsonl", [{"text": "who won", "label": 3, "dataset": "web_questions"}])
    done = convert(tmp_path / "g", tmp_path / "t.parquet")
    assert (done.format, done.queries, done.models, done.notes) == ("gqr", 3, 0, ["labels: finance, law, ood"])
    table = {row["query"]: row for row in pq.read_table(tmp_path / "t.parquet").to_pylist()}
    assert {text: (row["domain"], row["split"]) for text, row in table.items()} == {
        "May I sue?": ("law", "train"), "Buy bonds?": ("finance", "train"), "who won": ("ood", "test"),
    }  # fmt: skip
    assert len(load_queries(tmp_path / "t.parquet")) == 3


def test_copies_get_one_split_and_shares_are_as_said():
    drawn = [split_of_group(f"group {i}") for i in range(4000)]
    assert [drawn.count(s) / 4000 for s in ("train", "valid", "test")] == pytest.approx([0.7, 0.1, 0.2], abs=0.02)
    long = Long()
    for i in range(40):
        long.add(Answer(f"q{i}", f"text {i % 10}", "m", 1.0))
    columns = columns_of_answers(long, {})
    pairs = set(zip(columns["query"], columns["split"], strict=True))
    assert len(pairs) == 10


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"prompt,a,b\nx,True\n", r"t\.csv, line 2: expected 3 columns"),
        ("t.csv", b"prompt,a,b\ncaf\xe9,True,True\n", r"t\.csv: expected UTF-8 text, got byte 0xe9"),
        ("t.csv", b"prompt,a,b\nx,maybe,True\n", r"field 'a': expected a number, got 'maybe'"),
        ("t.csv", b"prompt,a,b\nx,7,1\n", r"column 'score', row 0: expected a number in 0\.\.1, got 7"),
        ("t.csv", b"prompt,a,b\n", "expected the fields of one of"),
        ("t.csv", b"apples,pears\n1,2\n", "got apples, pears. Name the format with --format"),
        ("t.jsonl", b'{oops\n', r"t\.jsonl, line 1: expected a JSON object"),
        ("t.jsonl", b'[1, 2]\n', r"line 1: expected a JSON object, got list"),
        ("t.json", b'{"records": [', r"t\.json: expected JSON"),
        ("t.json", b'{"records": [{"index": 1, "prompts": "x", "score": 1}]}', "Did you mean 'prompts'"),
        ("t.parquet", b"PAR1", r"t\.parquet: expected a readable Parquet file"),
        ("t.txt", b"x", r"expected a file ending in \.csv or"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    format = "routerarena" if name == "t.jsonl" else None
    with pytest.raises(OutcomesError, match=message):
        convert(tmp_path / name, tmp_path / "out.parquet", format)
    assert not (tmp_path / "out.parquet").exists()


def test_other_mistakes_are_named(tmp_path):
    with pytest.raises(OutcomesError, match="expected a file or a folder, got none"):
        told(tmp_path / "none")
    with pytest.raises(OutcomesError, match="in this folder, got none"):
        told(tmp_path)
    source = write_csv(tmp_path / "g.csv", [{"text": "x", "label": 9}])
    with pytest.raises(OutcomesError, match=r"row 1: expected a domain of law, .*, ood or its number, got '9'"):
        convert(source, tmp_path / "t.parquet")
    with pytest.raises(UnknownNameError, match="Did you mean 'routerbench'"):
        convert(source, tmp_path / "t.parquet", "routerbenc")


@pytest.mark.skipif(
    importlib.util.find_spec("wordllama") is None, reason="needs wordllama: pip install 'polyroute[embed]'"
)
def test_what_is_converted_can_be_learned_from(tmp_path, capsys):
    write_csv(tmp_path / "rb.csv", wide(80))
    output = str(tmp_path / "t.parquet")
    assert main(["convert", str(tmp_path / "rb.csv"), "-o", output]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["format"], said["queries"], said["models"]) == ("routerbench", 80, 2)
    assert main(["eval", "knn", output, "--resamples", "5"]) == 0
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    assert "polyroute convert routerbench_0shot.parquet" in capsys.readouterr().out
