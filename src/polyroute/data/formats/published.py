"""The formats in which benchmarks of routing publish one score per query and model, each as a few lines.

RouterBench (withmartian/routerbench), RouteLLM (lm-sys/RouteLLM), LLMRouterBench (ynulihao/LLMRouterBench), RouterArena
(RouteWorks/RouterArena) and EmbedLLM (RZ412/EmbedLLM). Fields were read off the projects' own files and writers.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from pathlib import Path

from polyroute.data.checks import CHARACTERS_PER_TOKEN
from polyroute.data.formats.files import Row, columns_of, files_of, need, number, rows_of_file
from polyroute.data.formats.long import Answer, Long
from polyroute.errors import OutcomesError

COST, RESPONSE = "|total_cost", "|model_response"
SPLITS = {"train": "train", "val": "valid", "valid": "valid", "validation": "valid", "eval": "valid", "test": "test"}


def routerbench(source: Path) -> Long:
    """One row per prompt: sample_id, prompt, eval_name, and for each model its score and `MODEL|total_cost` in USD."""
    long = Long()
    for path in files_of(source, ".parquet", ".csv"):
        names = columns_of(path)
        models = [name.removesuffix(COST) for name in names if name.endswith(COST)]
        if not models:
            raise OutcomesError(f"{path}: expected columns 'MODEL|total_cost', got {', '.join(names[:8])}.")
        wanted = ["sample_id", "prompt", "eval_name", *models, *(model + COST for model in models)]
        for row in rows_of_file(path, wanted):
            need(path, row, wanted)
            for model in models:
                if row[model] not in (None, ""):
                    long.add(Answer(
                        str(row["sample_id"]), unlisted(str(row["prompt"])), model, number(path, model, row[model]),
                        dataset=str(row["eval_name"]), cost_usd=number(path, model + COST, row[model + COST]),
                    ))  # fmt: skip
    return long


def unlisted(text: str) -> str:
    """A prompt that was stored as the text of a Python list of strings, as one text; other texts as they are."""
    if text.startswith(("['", '["')) and text.endswith("]"):
        try:
            parts = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text
        if all(isinstance(part, str) for part in parts):
            return "\n".join(parts)
    return text


def routellm(source: Path) -> Long:
    """One row per prompt: prompt, each model's True or False under its name, and maybe `MODEL_response`. No costs."""
    long = Long()
    for path in files_of(source, ".csv", ".parquet"):
        for line, row in enumerate(rows_of_file(path), 1):
            need(path, row, ["prompt"])
            models = [name for name in row if name != "prompt" and name and not name.endswith("_response")]
            for model in models:
                answer = row.get(f"{model}_response")
                long.add(Answer(
                    f"{path.stem}-{line}", str(row["prompt"]), model, number(path, model, row[model]),
                    dataset=path.stem,
                    output_tokens=None if answer is None else round(len(answer) / CHARACTERS_PER_TOKEN),
                ))  # fmt: skip
    return long


def llmrouterbench(source: Path) -> Long:
    """A folder of DATASET/SPLIT/MODEL/TIME.json with a list `records`; the latest file of a model counts."""
    latest = {path.parent: path for path in files_of(source, ".json")}
    long = Long()
    for folder, path in latest.items():
        (run,) = rows_of_file(path)
        need(path, run, ["records"])
        dataset, part, model = folder.parts[-3:]
        for record in run["records"]:
            need(path, record, ["index", "prompt", "score"])
            text = str(record.get("origin_query") or record["prompt"])
            score = math.nan if record["score"] is None else number(path, "score", record["score"])
            long.add(Answer(
                f"{dataset}-{part}-{record['index']}", text, model, score, dataset=dataset,
                cost_usd=optional(path, record, "cost"),
                input_tokens=optional(path, record, "prompt_tokens"),
                output_tokens=optional(path, record, "completion_tokens"),
            ))  # fmt: skip
    return long


def optional(path: Path, row: Row, name: str) -> float | None:
    return None if row.get(name) in (None, "") else number(path, name, row[name])


def routerarena(source: Path) -> Long:
    """One JSON Lines file per model (`cached_results/`): global_index, question, llm_selected, evaluation_result."""
    long = Long()
    for path in files_of(source, ".jsonl"):
        for row in rows_of_file(path):
            need(path, row, ["global_index", "question", "llm_selected"])
            graded: Mapping[str, object] = row.get("evaluation_result") or {}
            used = row.get("token_usage") or {}
            name = str(row["global_index"])
            long.add(Answer(
                name, str(row["question"]), str(row["llm_selected"]),
                math.nan if graded.get("score") is None else number(path, "score", graded["score"]),
                dataset=name.rpartition("_")[0] or name, cost_usd=optional(path, graded, "inference_cost"),
                input_tokens=optional(path, used, "input_tokens"),
                output_tokens=optional(path, used, "output_tokens"),
            ))  # fmt: skip
    return long


def embedllm(source: Path) -> Long:
    """One row per prompt and model: prompt_id, prompt, category, model_name, label; train, val and test. No costs."""
    long = Long()
    for path in files_of(source, ".csv", ".parquet"):
        split = SPLITS.get(path.stem.lower(), "")
        for row in rows_of_file(path):
            need(path, row, ["prompt_id", "prompt", "model_name", "label"])
            long.add(Answer(
                f"{split or path.stem}-{row['prompt_id']}", str(row["prompt"]), str(row["model_name"]),
                number(path, "label", row["label"]), dataset=str(row.get("category") or ""), split=split,
            ))  # fmt: skip
    return long
