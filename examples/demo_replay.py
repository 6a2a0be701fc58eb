"""200 recorded GSM8K questions through the live gateway: every answer and every cent held against the table.

    make demo-replay                      # or: python examples/demo_replay.py [QUESTIONS]

Two recorded models answer behind a gateway process that the openai SDK talks to; every second answer is streamed.
Needs the recorded answers of RouteLLM's GSM8K run in POLYROUTE_DATA (default: ../shared/data).
"""

import json
import os
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from subprocess import PIPE, Popen

import openai
import pyarrow.parquet as parquet

DATA = Path(os.environ.get("POLYROUTE_DATA", Path(__file__).resolve().parents[2] / "shared/data")) / "outcomes"
ANSWERS = DATA / "routellm_gsm8k_responses.parquet"
PRICES = {"mistralai/Mixtral-8x7B-Instruct-v0.1": (0.6, 0.6), "gpt-4-1106-preview": (10.0, 30.0)}  # USD per 1e6 tokens
MODEL = '[[models]]\nid = "{}"\nbackend = "replay"\ntable = "{}"\nprice_in = {}\nprice_out = {}\n'


def ask(client: openai.OpenAI, model: str, prompt: str, stream: bool) -> tuple[str, str, str]:
    """(the prompt, the model that answered, its answer)."""
    messages = [{"role": "user", "content": prompt}]
    raw = client.chat.completions.with_raw_response.create(model=model, messages=messages, stream=stream)
    answer = raw.parse()
    said = [c.choices[0].delta.content or "" for c in answer] if stream else [answer.choices[0].message.content]
    return prompt, raw.headers["x-polyroute-selected-model"], "".join(said)


def spend(url: str, requests: int) -> float:
    """USD the gateway counted for that many requests; the last one is settled just after its answer ends."""
    while (summary := json.load(urllib.request.urlopen(f"{url}/polyroute/v1/summary")))["requests"] < requests:
        time.sleep(0.01)
    return summary["spend_usd"]


def run(url: str, model: str, prompts: list[str], table: dict, done: int) -> dict:
    client, before = openai.OpenAI(base_url=f"{url}/v1", api_key="none"), spend(url, done)
    got = [ask(client, model, prompt, stream=i % 2 == 1) for i, prompt in enumerate(prompts)]
    rows = [table[prompt, name] for prompt, name, _ in got]
    wrong = sum(row["response"] != text for row, (_, _, text) in zip(rows, got, strict=True))
    accuracy, cost = sum(row["score"] for row in rows) / len(rows), sum(row["cost_usd"] for row in rows)
    return {
        "model": model,
        "accuracy": accuracy,
        "gateway": spend(url, done + len(got)) - before,
        "table": cost,
        "wrong": wrong,
    }


def main(questions: int) -> int:
    if not ANSWERS.is_file():
        print(f"No recorded answers at {ANSWERS}; set POLYROUTE_DATA to the folder that has outcomes/.")
        return 1
    costs = {(r["query_id"], r["model"]): r for r in parquet.read_table(DATA / "routellm.parquet").to_pylist()}
    held_out = (r for r in parquet.read_table(ANSWERS).to_pylist() if r["split"] != "train")
    rows = [costs[r["query_id"], r["model"]] | r for r in held_out]
    prompts, folder = (
        list(dict.fromkeys(r["prompt"] for r in rows))[:questions],
        Path((scratch := tempfile.TemporaryDirectory()).name),
    )
    models = "".join(MODEL.format(name, ANSWERS, *price) for name, price in PRICES.items())
    (folder / "polyroute.toml").write_text(f'[journal]\npath = "{folder}/journal.sqlite"\n{models}')
    command = [sys.executable, "-m", "polyroute", "serve", str(folder / "polyroute.toml"), "--port", "0"]
    with Popen(command, stdout=PIPE, text=True) as gateway:
        if not (greeting := gateway.stdout.readline()):
            return 1  # it said why on stderr
        url, report = greeting.split()[3], []  # "polyroute listens on URL ..."
        print(f"{'model':<38} {'accuracy':>8} {'gateway USD':>12} {'table USD':>12} {'wrong answers':>13}")
        for i, model in enumerate([*PRICES, "auto:cheap", "auto", "auto:best"]):
            report.append(run(url, model, prompts, {(r["prompt"], r["model"]): r for r in rows}, i * len(prompts)))
            print("{model:<38} {accuracy:>8.3f} {gateway:>12.6f} {table:>12.6f} {wrong:>13}".format(**report[-1]))
        gateway.terminate()
    scratch.cleanup()
    agreed = all(abs(row["gateway"] - row["table"]) < 0.005 and not row["wrong"] for row in report)
    print(json.dumps({"demo": "replay", "questions": len(prompts), "agreed_to_the_cent": agreed, "rows": report}))
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
