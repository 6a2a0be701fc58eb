"""Requests decided in one round are decided as each would be alone."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from polyroute.errors import NoCandidateError
from polyroute.gateway.asked import Asked, Signals
from polyroute.gateway.brain import Brain
from polyroute.gateway.build import build_brain
from polyroute.gateway.choice import Choice
from polyroute.gateway.config import load_config
from polyroute.gateway.wire import BadRequestError, read_view

CONFIG = """
[[models]]
id = "small"
url = "http://127.0.0.1:9/v1"
price_in = 0.1
price_out = 0.4
context = 4096
[[models]]
id = "large"
url = "http://127.0.0.1:9/v1"
price_in = 3.0
price_out = 15.0
context = 128000
offers = ["tools"]
ability = { general = 2.0 }
[policies.one]
trade_off = 0.5
models = ["large"]
"""
TEXTS = (
    "What is 2+2?",
    "Prove that there are infinitely many primes congruent to 3 modulo 4, and generalise.",
    "Hi",
    "def f(x): return x  # why does this fail for lists? " * 40,  # too long for the event loop
    "Wie heißt die Hauptstadt von Peru?",
)


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory) -> Brain:
    path = Path(tmp_path_factory.mktemp("brain")) / "polyroute.toml"
    path.write_text(CONFIG)
    return build_brain(load_config(path))


def asked(brain: Brain, text: str, policy: str = "auto", **extra: object) -> Asked:
    body = {"model": policy, "messages": [{"role": "user", "content": text}], **extra}
    return Asked(read_view(json.dumps(body).encode()), brain.policies[policy], policy, "chat.completions")


def same(one: Choice, other: Choice) -> None:
    assert [c.id for c in one.ranked] == [c.id for c in other.ranked]
    a, b = one.record, other.record
    assert (a.selected, a.policy, a.because, a.prompt_tokens, a.needs) == (
        b.selected, b.policy, b.because, b.prompt_tokens, b.needs,
    )  # fmt: skip
    assert a.embedding == b.embedding
    for mine, yours in zip(a.candidates, b.candidates, strict=True):
        assert (mine.id, mine.refused) == (yours.id, yours.refused)
        assert mine.mean == pytest.approx(yours.mean, rel=1e-6)
        assert mine.std == pytest.approx(yours.std, rel=1e-6)


def test_a_round_decides_as_each_request_would_be_alone(brain: Brain) -> None:
    requests = [asked(brain, text, policy) for text in TEXTS for policy in ("auto", "auto:best", "one")]

    async def both() -> tuple[list[Choice], list[Choice]]:
        alone = [await brain.decide(one) for one in requests]
        return alone, await asyncio.gather(*(brain.decide(one, company=True) for one in requests))

    for one, other in zip(*asyncio.run(both()), strict=True):
        same(one, other)
        assert one.record.id != other.record.id
        assert one.record.embedding is not None
        assert len(one.record.embedding) == 2 * brain.featuriser.dim


def test_what_one_request_ends_in_leaves_the_others_alone(brain: Brain) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    far = asked(brain, "word " * 30_000, max_tokens=200_000)  # nobody's window holds it; its embedding is left
    found = brain.decide_all([
        asked(brain, "What is 2+2?"),
        Asked(read_view(b'{"model":"auto","messages":[]}'), brain.policies["auto"], "auto", "chat.completions"),
        asked(brain, "Call it.", tools=tools),
        asked(brain, "Hi", max_tokens=500_000),
        far,
    ])  # fmt: skip
    assert isinstance(found[0], Choice)
    assert isinstance(found[1], BadRequestError)
    assert isinstance(found[2], Choice)
    assert found[2].record.selected == "large", "the only one that offers tools"
    assert isinstance(found[3], NoCandidateError)
    assert isinstance(found[4], Signals)
    assert found[4].query.embedding is None
    with pytest.raises(NoCandidateError):
        asyncio.run(brain.decide(far, company=True))


def test_a_round_asks_featuriser_and_router_once_for_each_pool(brain: Brain, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[str, int]] = []
    predict, read = brain.router.predict, brain.featuriser.__class__.__call__

    def counted(queries, pool):  # type: ignore[no-untyped-def]
        sizes.append((f"{len(pool)} candidates", len(queries)))
        return predict(queries, pool)

    def embedded(self, texts):  # type: ignore[no-untyped-def]
        sizes.append(("texts", len(texts)))
        return read(self, texts)

    monkeypatch.setattr(brain.router, "predict", counted, raising=False)
    monkeypatch.setattr(brain.featuriser.__class__, "__call__", embedded)
    policies = ["auto", "one", "auto", "auto"]
    found = brain.decide_all([asked(brain, text, policy) for text, policy in zip(TEXTS[:4], policies, strict=True)])
    assert [type(one) for one in found] == [Choice, Choice, Choice, Signals]
    assert sizes == [("texts", 2), ("2 candidates", 2), ("texts", 1), ("1 candidates", 1)]
    assert np.isfinite([c.utility for one in found[:3] for c in one.record.candidates if c.utility is not None]).all()
