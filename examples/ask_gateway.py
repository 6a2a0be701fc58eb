"""A gateway in front of two recorded models, asked with the openai SDK: routing, headers, a stream, feedback.

python examples/ask_gateway.py        needs polyroute[gateway,data] and openai; no model, no key, no network
"""

import json
import sys
import tempfile
import urllib.request
from pathlib import Path
from subprocess import PIPE, Popen

import openai
import pyarrow as pa
import pyarrow.parquet as parquet

ANSWERS = [  # query, prompt, model, response, tokens in and out; a hosted model has `url` and `api_key` instead
    ("a", "What is 2+2?", "terse", "4", 12, 1),
    ("a", "What is 2+2?", "wordy", "2 + 2 = 4.", 12, 8),
    ("b", "Name a prime above 100.", "terse", "101", 14, 1),
    ("b", "Name a prime above 100.", "wordy", "101 is the first prime above 100.", 14, 10),
]
COLUMNS = ("query_id", "prompt", "model", "response", "input_tokens", "output_tokens")
MODEL = '[[models]]\nid = "{}"\nbackend = "replay"\ntable = "answers.parquet"\nprice_in = {}\nprice_out = {}\n{}\n'
MODELS = [("terse", 0.1, 0.4, "ability = { general = 0.0 }"), ("wordy", 2.5, 10.0, "ability = { general = 1.0 }")]


def configuration(folder: Path) -> Path:
    """A polyroute.toml with two models whose answers are recorded."""
    table = dict(zip(COLUMNS, map(list, zip(*ANSWERS, strict=True)), strict=True))
    parquet.write_table(pa.table(table), folder / "answers.parquet")
    path = folder / "polyroute.toml"
    path.write_text('[journal]\npath = "journal.sqlite"\n' + "".join(MODEL.format(*model) for model in MODELS))
    return path


def ask(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    for model in ("auto:cheap", "auto", "auto:best", "wordy"):
        question = [{"role": "user", "content": "What is 2+2?"}]
        raw = client.chat.completions.with_raw_response.create(model=model, messages=question)
        chosen, why = raw.headers["x-polyroute-selected-model"], raw.headers["x-polyroute-reason"]
        print(f"{model:<10} -> {chosen:<5} {raw.parse().choices[0].message.content:<10}  ({why})")
    question = [{"role": "user", "content": "Name a prime above 100."}]
    parts = client.chat.completions.create(model="auto", messages=question, stream=True)
    print("streamed: ", "".join(part.choices[0].delta.content or "" for part in parts if part.choices))
    told = {"decision_id": raw.headers["x-polyroute-decision-id"], "metrics": {"quality": 1.0}}
    request = urllib.request.Request(f"{url}/polyroute/v1/feedback", json.dumps(told).encode())
    print("feedback: ", json.load(urllib.request.urlopen(request)))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "polyroute", "serve", str(configuration(Path(folder))), "--port", "0"]
        with Popen(command, stdout=PIPE, text=True) as gateway:
            try:
                ask(gateway.stdout.readline().split()[3])  # "polyroute listens on URL ..."
            finally:
                gateway.terminate()
