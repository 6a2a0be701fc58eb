"""What a user of the official OpenAI SDK does: `python sdk_client.py BASE_URL [MODEL]` prints one JSON line.

Runs in an environment that has the SDK and nothing else, so that several of its versions can be tried.
"""

from __future__ import annotations

import json
import sys

import openai


def main(base_url: str, model: str) -> dict[str, object]:
    client = openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0)
    question = [{"role": "user", "content": "What is 2+2? Reply with the number only."}]
    whole = client.chat.completions.with_raw_response.create(model=model, messages=question, max_tokens=16)
    answer = whole.parse()
    pieces, finish, usage = [], None, None
    for chunk in client.chat.completions.create(model=model, messages=question, max_tokens=16, stream=True):
        choice = chunk.choices[0]  # a client may index blindly: no chunk without choices comes unasked
        pieces.append(choice.delta.content or "")
        finish = choice.finish_reason or finish
    options = {"include_usage": True}
    for chunk in client.chat.completions.create(
        model=model, messages=question, max_tokens=16, stream=True, stream_options=options
    ):
        usage = chunk.usage or usage
    try:
        client.chat.completions.create(model="no-such-model", messages=question)
        problem = None
    except openai.NotFoundError as error:
        problem = error.code
    return {
        "sdk": openai.__version__,
        "text": answer.choices[0].message.content,
        "selected": whole.headers.get("x-polyroute-selected-model"),
        "decision": whole.headers.get("x-polyroute-decision-id"),
        "usage": answer.usage is not None,
        "streamed": "".join(pieces),
        "finish": finish,
        "stream_usage": usage is not None,
        "problem": problem,
        "models": [m.id for m in client.models.list()],
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "auto")))
