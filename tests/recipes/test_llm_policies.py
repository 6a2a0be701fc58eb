"""The runs with a real model, played by a stand-in that is right and one that talks nonsense."""

from __future__ import annotations

import pytest

from polyroute.recipes.llm_policies import AGENTS, RUNS, Server, questions
from polyroute.types import Candidate

POOL = [Candidate("small"), Candidate("large")]


class Played(Server):
    """A server that answers in process."""

    def __init__(self, say):
        super().__init__("", "small")
        self.say = say

    def __call__(self, model, prompt, limit=96, stop=None):
        self.calls += 1
        return self.say(prompt), 1


def wise(items):
    """In the form asked for, and right."""

    def say(prompt):
        probe = max((p for p in items if p.prompt in prompt or p.prompt[:40] in prompt), key=lambda p: len(p.prompt))
        if "<think>" in prompt:
            return f"<think>I know</think><answer>{probe.answer}"  # its stop string is cut, as a server does
        if "Split this problem" in prompt:
            return "1. read it\n2. answer it"
        if "<agents>" in prompt:
            return "<reason>clear</reason>\n" + probe.id.rsplit("-", 2)[0]
        return f"<instant> {probe.answer}"

    return say


def test_questions_cover_every_family_in_turn():
    items = questions(12)
    assert [p.id.rsplit("-", 2)[0] for p in items] == 2 * list(AGENTS)
    assert items == questions(12)


@pytest.mark.parametrize("name", RUNS)
def test_a_policy_that_keeps_to_the_form_is_right(name):
    items = questions(6)
    found = RUNS[name](Played(wise(items)), items, POOL)
    assert found.get("right", found.get("hit")) == 6
    assert found.get("garbled", 0) == 0
    assert found.get("form broken", 0) == 0
    assert found.get("no tag", 0) == 0


@pytest.mark.parametrize("nonsense", ["", "I am a language model.", "<search><answer></think>", "\x00\ud7ff 999"])
@pytest.mark.parametrize("name", RUNS)
def test_a_policy_that_talks_nonsense_is_counted_and_never_breaks_the_run(name, nonsense):
    items = questions(6)
    found = RUNS[name](Played(lambda prompt: nonsense), items, POOL)
    assert found.get("right", 0.0) == 0
    assert max(found.get(k, 0) for k in ("garbled", "form broken", "no tag")) == 6
