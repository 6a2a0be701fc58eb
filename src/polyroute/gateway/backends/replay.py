"""Recorded answers served as if by a model: for tests and demonstrations, and named as such in every answer.

Nothing is computed: a prompt that was recorded gets the recorded text and the recorded token counts, any other prompt
gets an error. Parameters such as temperature or max_tokens change nothing.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec

from polyroute.errors import ConfigError, MissingExtraError, UnknownNameError
from polyroute.gateway.backends.canned import CannedReply
from polyroute.gateway.backends.status import BackendStatus
from polyroute.gateway.transport import Headers, Timeouts

COLUMNS = ("query_id", "prompt", "model", "response", "input_tokens", "output_tokens")
PIECE = re.compile(r"\s*\S+|\s+\Z")  # a stream sends a word at a time
BYTES_PER_TOKEN = 4  # the estimate where no count was recorded
JSON = (b"content-type", b"application/json")
EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")


class Recorded(NamedTuple):
    """One recorded answer and its token counts; counted: False where a count is an estimate."""

    query_id: str
    answer: str
    prompt_tokens: int
    completion_tokens: int
    counted: bool


def recorded(row: Mapping[str, Any]) -> Recorded:
    """From a row with `COLUMNS`. A count that is null is estimated as one token for every four bytes, rounded up."""
    counts = row.get("input_tokens"), row.get("output_tokens")
    texts = str(row["prompt"]), str(row["response"])
    prompt, completion = (
        -(-len(text.encode()) // BYTES_PER_TOKEN) if count is None else int(count)
        for count, text in zip(counts, texts, strict=True)
    )
    return Recorded(str(row.get("query_id", "")), texts[1], prompt, completion, None not in counts)


class ReplayBackend:
    """Answers from a recording of one model.

    rows: mappings with `COLUMNS`; those of other models, without prompt or without response are left out, and the
    first of several with one prompt counts. A request finds its answer by the exact text of its last user message,
    or of all its messages joined by a blank line. name: the model's name in answers (default: `model`).
    tokens_per_s: words of a stream in a second; None: all at once.

    Every answer carries `x-polyroute-path: replay` and `x-polyroute-usage: recorded` or `estimated`.
    """

    path = "replay"

    def __init__(
        self,
        id: str,
        rows: Iterable[Mapping[str, Any]],
        model: str,
        *,
        name: str | None = None,
        source: str = "",
        tokens_per_s: float | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ):
        self.id, self.model, self.name, self.source = id, model, name or model, source
        self.pause_s = 1 / tokens_per_s if tokens_per_s else 0.0
        self.clock, self.sleep = clock, sleep
        self.answers: dict[str, Recorded] = {}
        for row in rows:
            if row["model"] == model and row["prompt"] is not None and row["response"] is not None:
                self.answers.setdefault(row["prompt"], recorded(row))

    @classmethod
    def from_table(cls, id: str, path: Path, model: str, **options: Any) -> Self:
        """From a Parquet file with `COLUMNS`, such as outcomes/*_responses.parquet. options: as for the class.

        Raises: ConfigError (no such file, not such a table), UnknownNameError (model), MissingExtraError.
        """
        try:
            import pyarrow
            import pyarrow.compute as compute
            import pyarrow.parquet as parquet
        except ImportError:
            raise MissingExtraError("pyarrow", "data") from None
        where = f"models.{id}.table"
        try:
            table = parquet.read_table(path, columns=list(COLUMNS))
            known = set(compute.unique(table["model"].cast("string")).to_pylist())
        except (OSError, KeyError, pyarrow.ArrowException) as problem:
            expected = f"a Parquet file with the columns {', '.join(COLUMNS)}"
            raise ConfigError(where, got=str(path), expected=expected, hint=str(problem)) from problem
        if model not in known:
            raise UnknownNameError(f"model in {path}:", model, known)
        rows = table.filter(compute.equal(table["model"].cast("string"), model)).to_pylist()
        return cls(id, rows, model, source=path.name, **options)

    async def send(self, path: str, headers: Headers, body: bytes, timeouts: Timeouts) -> CannedReply:
        """As `Backend.send`; a prompt that was not recorded is a 404 in the protocol's shape."""
        path = path.partition("?")[0]
        if not path.endswith("/completions"):
            return refusal(404, f"{self.id} replays recorded completions and has no {path}.", "not_recorded")
        try:
            request = msgspec.json.decode(body)
            chat = path.endswith("/chat/completions")
            prompts = prompts_of(request["messages"]) if chat else [text_of(request["prompt"])]
        except (msgspec.MsgspecError, KeyError, TypeError, AttributeError) as problem:
            return refusal(400, f"Expected a request with messages or a prompt: {problem!r}.", None)
        found = next((self.answers[prompt] for prompt in prompts if prompt in self.answers), None)
        if found is None:
            what = f"No recorded answer of {self.model} to this prompt; {self.id} replays a recording"
            return refusal(404, f"{what} and computes nothing.", "not_recorded")
        marks = [
            (b"x-polyroute-path", b"replay"),
            (b"x-polyroute-usage", b"recorded" if found.counted else b"estimated"),
        ]
        if not request.get("stream"):
            return CannedReply(200, [JSON, *marks], [msgspec.json.encode(self._whole(found, chat))])
        with_usage = bool((request.get("stream_options") or {}).get("include_usage"))
        events = [b"data: " + msgspec.json.encode(e) + b"\n\n" for e in self._events(found, chat, with_usage)]
        events.append(b"data: [DONE]\n\n")
        return CannedReply(200, [EVENTS, *marks], events, pause_s=self.pause_s, sleep=self.sleep)

    def _head(self, found: Recorded, kind: str) -> dict[str, Any]:
        return {"id": f"replay-{found.query_id}", "object": kind, "created": int(self.clock()), "model": self.name}

    def _whole(self, found: Recorded, chat: bool) -> dict[str, Any]:
        """The answer in one object."""
        said = {"message": {"role": "assistant", "content": found.answer}} if chat else {"text": found.answer}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": "stop"}
        kind = "chat.completion" if chat else "text_completion"
        return {**self._head(found, kind), "choices": [choice], "usage": usage_of(found)}

    def _events(self, found: Recorded, chat: bool, with_usage: bool) -> list[dict[str, Any]]:
        """The answer as a stream: the role, a word at a time, the reason it ended, and usage where asked for."""
        head = self._head(found, "chat.completion.chunk" if chat else "text_completion")
        rest: dict[str, Any] = {"usage": None} if with_usage else {}
        pieces: list[dict[str, Any]] = [{"delta": {"role": "assistant", "content": ""}}] if chat else []
        for piece in PIECE.findall(found.answer):
            pieces.append({"delta": {"content": piece}} if chat else {"text": piece})
        events = [{**head, "choices": [{"index": 0, **piece, "finish_reason": None}], **rest} for piece in pieces]
        last: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        events.append({**head, "choices": [{"index": 0, **last, "finish_reason": "stop"}], **rest})
        if with_usage:
            events.append({**head, "choices": [], "usage": usage_of(found)})
        return events

    async def status(self) -> BackendStatus:
        where = f" from {self.source}" if self.source else ""
        return BackendStatus("ready", f"replays {len(self.answers)} recorded answers of {self.model}{where}")

    async def close(self) -> None:
        """Nothing to stop."""


def prompts_of(messages: list[dict[str, Any]]) -> list[str]:
    """The texts to look for: the last user message, then everything."""
    texts = [text_of(message.get("content")) for message in messages]
    users = [text for message, text in zip(messages, texts, strict=True) if message.get("role") == "user"]
    return [*users[-1:], "\n\n".join(texts)]


def text_of(content: Any) -> str:
    """The text of a message or a prompt: a string, or the text parts of a list."""
    if isinstance(content, str):
        return content
    parts = content or []
    return "".join(part if isinstance(part, str) else part.get("text") or "" for part in parts)


def usage_of(found: Recorded) -> dict[str, int]:
    return {
        "prompt_tokens": found.prompt_tokens,
        "completion_tokens": found.completion_tokens,
        "total_tokens": found.prompt_tokens + found.completion_tokens,
    }


def refusal(status: int, message: str, code: str | None) -> CannedReply:
    """An error in the protocol's shape."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return CannedReply(status, [JSON, (b"x-polyroute-path", b"replay")], [msgspec.json.encode({"error": error})])
