"""A language model that routes while it reasons: think, ask a model, read what it said, think on, answer."""

from __future__ import annotations

from collections.abc import Generator, Mapping, MutableSequence, Sequence

from polyroute.errors import ConfigError, NoCandidateError, ReplyError
from polyroute.flows.cascade import together
from polyroute.flows.traces import EXPECTED, Event, next_act, up_to_act
from polyroute.protocols import Flow
from polyroute.types import Candidate, Decision, Outcome, Query

PROMPT = """Answer the question. First think inside <think> and </think>. If you need help, ask one model by writing
<search> NAME: QUESTION </search> with a name from the list; its reply comes back between <information> and
</information>. You may ask again. When you know the answer, write it inside <answer> and </answer>, short.
Models:
{models}
Question: {question}
"""
FORCED = (
    "\nNo more models can be asked. Write the answer now, between answer tags.\n"  # names no tag: it is in the trace
)
CHARACTERS = 2400  # of a model's reply that go back into the transcript: about 600 tokens


def steps(
    query: Query,
    router: Candidate,
    pool: Sequence[Candidate],
    *,
    descriptors: Mapping[str, str] | None = None,
    max_turns: int = 4,
    fallback: Candidate | None = None,
    transcript: MutableSequence[str] | None = None,
    prompt: str = PROMPT,
) -> Flow:
    """Let `router`, a language model, decide at each turn whom to ask or to answer.

    A decision for `router` carries the transcript so far in `prompt`, one for a model of the pool its question; both
    need `Outcome.text`. A name that is not in the pool gets a note as information. Up to `max_turns` models are
    asked, then one forced turn. Where the router writes neither a search nor an answer, the query goes to `fallback`
    as it is. descriptors: candidate id -> a line about it (size, price, strengths); a new model is added by a line.
    transcript: a list that the pieces written are appended to. Returns the answer as `text`, with cost, latency and
    tokens of all calls (those of the router too), `turns`, and `format`: 1.0 unless the fallback had to answer.
    Raises: NoCandidateError for an empty pool; ReplyError where nothing usable came and there is no fallback.
    Source: Router-R1 (arXiv:2506.09033), whose loop bills completion tokens of the asked models only.
    """
    if not pool:
        raise NoCandidateError(query.id, {})
    if max_turns < 0:
        raise ConfigError("max_turns", got=max_turns, expected="0 or more")
    pieces: MutableSequence[str] = [] if transcript is None else transcript
    told: list[Outcome] = []
    opening = prompt.format(models=listing(pool, descriptors or {}), question=query.text)
    names, asked, usable = {c.id.lower(): c for c in pool}, 0, True
    answer: str | None = None
    while answer is None:
        forced = asked >= max_turns
        if forced:
            pieces.append(FORCED)
        because = "last turn" if forced else f"turn {asked + 1} of {max_turns}"
        outcome = yield Decision(query.id, (router.id,), because=because, prompt=opening + "".join(pieces))
        told.append(outcome)
        pieces.append(up_to_act(outcome.text))
        act = next_act(outcome.text)
        if act is not None and act.kind == "answer":
            answer = act.text
        elif act is not None and not forced:
            asked += 1
            told += yield from ask(query, act, names, pieces)
        elif fallback is None:
            raise ReplyError("neither a search nor an answer", outcome.text, expected=EXPECTED)
        else:
            usable = False
            outcome = yield Decision(query.id, (fallback.id,), because="the router said nothing usable",
                                     prompt=query.text)  # fmt: skip
            told.append(outcome)
            answer = outcome.text
            pieces.append(f"<answer>{answer}</answer>")
    done = together(told)
    return Outcome(done.decision, {**done.metrics, "turns": float(asked), "format": float(usable)}, answer)


def ask(
    query: Query, act: Event, names: Mapping[str, Candidate], pieces: MutableSequence[str]
) -> Generator[Decision, Outcome, list[Outcome]]:
    """Ask the model a search names and put its reply, or a note that nobody has this name, into the transcript."""
    found = names.get(act.model.lower())
    if found is None:
        pieces.append(f"<information>None: there is no model called {plain(act.model)}</information>")
        return []
    outcome = yield Decision(query.id, (found.id,), because=f"asked by name: {act.model}", prompt=act.text)
    pieces.append(f"<information>{plain(outcome.text)[:CHARACTERS]}</information>")
    return [outcome]


def plain(text: str) -> str:
    """A model's reply with its angle brackets widened, so that it cannot write tags into the transcript."""
    return text.replace("<", "< ").replace(">", " >").strip()


def listing(pool: Sequence[Candidate], descriptors: Mapping[str, str]) -> str:
    """One line a candidate: its name and what is said of it, or else its price."""
    said = {c.id: descriptors.get(c.id, f"{c.profile.price_out:g} USD per million tokens") for c in pool}
    return "\n".join(f"- {name}: {words}" for name, words in said.items())
