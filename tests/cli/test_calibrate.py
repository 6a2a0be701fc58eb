"""polyroute calibrate: what a model answers becomes its profile, whatever its server does meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from polyroute.cli import main
from polyroute.cli.calibrate import toml_lines
from polyroute.data.probes import FAMILIES, LEVELS, Probe, probes
from polyroute.errors import ProfileError
from polyroute.gateway.build import build_brain
from polyroute.gateway.config import load_config
from polyroute.gateway.control import readiness
from polyroute.gateway.probing import Answer, Interview, Timing, speeds_of
from polyroute.gateway.profiles import profile_path, read_profile
from polyroute.gateway.scripted import ScriptedUpstream, Seen, error_body, reply
from polyroute.pull import models_folder
from tests.cli.shipped import needs_cold_start

pytestmark = needs_cold_start
NUM = len(FAMILIES) * LEVELS  # questions with --per-level 1
KNOWN = {p.prompt: p for seed in (0, 1) for p in probes(3, np.random.default_rng(seed))}
BUSY = reply(error_body("slow down", "rate_limit_error"), 429, [(b"retry-after", b"0")])


def completion(text: str | None, **more: Any) -> list[Any]:
    """A chat completion that says this."""
    finish = more.pop("finish_reason", "stop")
    choices = [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}]
    return reply(json.dumps({"choices": choices, **more}).encode())


def question(seen: Seen) -> Probe:
    return KNOWN[json.loads(seen.body)["messages"][0]["content"]]


def knows(rule: Callable[[Probe], bool], **more: Any) -> Callable[[Seen], list[Any]]:
    """A model that is right where the rule says so."""

    def script(seen: Seen) -> list[Any]:
        probe = question(seen)
        return completion(f"Answer: {probe.answer}" if rule(probe) else "Answer: nonsense", **more)

    return script


@contextmanager
def upstream(*scripts: Any) -> Iterator[ScriptedUpstream]:
    """A scripted server with a thread of its own: the command under test runs an event loop itself."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = ScriptedUpstream(*scripts)
    asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(10)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No configuration and no profiles of others."""
    monkeypatch.chdir(tmp_path)


def calibrate(*words: str) -> int:
    return main(["calibrate", *words])


def measured(model: str, script: Any, *words: str) -> Any:
    """The profile of a scripted model, from the place `polyroute serve` looks in."""
    with upstream(script) as server:
        assert calibrate(model, "--url", f"{server.url}/v1", "--per-level", "1", *words) == 0
    return read_profile(profile_path(load_config(None).journal.path.parent / "profiles", model), model)


def test_who_answers_more_is_measured_as_abler(capsys):
    rules = {"weak": lambda p: False, "middling": lambda p: p.level <= 2, "strong": lambda p: True}
    found = {name: measured(name, knows(rule)) for name, rule in rules.items()}
    skills = found["weak"].ability.keys()
    for skill in skills:
        weak, middling, strong = (found[name].ability[skill] for name in rules)
        assert weak <= middling <= strong, skill
    level = {name: np.mean(list(one.ability.values())) for name, one in found.items()}
    assert level["weak"] + 0.5 < level["middling"] < level["strong"] - 0.5
    assert all(0 < one.ability_std < 2 for one in found.values())
    assert len(found["weak"].questions) == NUM
    assert f"{NUM}/{NUM}" in capsys.readouterr().out


def test_a_model_good_at_one_skill_is_measured_so():
    found = measured("coder", knows(lambda p: p.skill == "code"))
    prior = measured("nobody", knows(lambda p: False))
    assert found.ability["code"] - prior.ability["code"] > max(
        logit - prior.ability[skill] for skill, logit in found.ability.items() if skill != "code"
    )


def test_questions_go_out_greedy_short_and_with_the_key_named(monkeypatch, capsys):
    monkeypatch.setenv("POLYROUTE_TEST_KEY", "top-secret")
    with upstream(knows(lambda p: True)) as server:
        words = ("m/1", "--url", f"{server.url}/v1", "--api-key", "env:POLYROUTE_TEST_KEY", "--per-level", "1")
        assert calibrate(*words, "--max-tokens", "77", "--json") == 0
    for seen in server.seen:
        body = json.loads(seen.body)
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("m/1", 77, 0)
        assert dict(seen.headers)[b"authorization"] == b"Bearer top-secret"
        assert seen.request_line == b"POST /v1/chat/completions HTTP/1.1"
    told = capsys.readouterr()
    assert "top-secret" not in told.out + told.err
    assert json.loads(told.out)["model"] == "m/1"


def test_failures_are_counted_told_and_left_out(capsys):
    failing = {p.id for p in probes(1, np.random.default_rng(0)) if p.id.startswith("string")}
    right = knows(lambda p: True)
    found = measured("m", lambda seen: reply(error_body("broke"), 500) if question(seen).id in failing else right(seen))
    assert len(found.questions) == NUM - len(failing)
    told = capsys.readouterr().err
    assert f"{len(failing)} of {NUM} questions to m got no answer; {len(failing)} times: status 500" in told


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (reply(error_body("wrong key"), 401), "status 401"),
        (reply(b"<html>hello</html>"), "expected a chat completion, got <html>hello</html>"),
        (completion("", finish_reason="length"), "see --max-tokens"),
    ],
)
def test_a_model_that_answers_hardly_anything_is_an_error_that_says_what_came(script, told, capsys):
    with upstream(script) as server:
        assert calibrate("m", "--url", server.url) == 2
    assert len(server.seen) < 12  # it gives up early
    error = capsys.readouterr().err
    assert told in error
    assert "got no answer" in error
    assert not list(load_config(None).journal.path.parent.glob("profiles/*"))


def test_more_than_half_failing_is_an_error_though_some_were_answered(capsys):
    right = knows(lambda p: True)
    with upstream(lambda seen: right(seen) if question(seen).level < 3 else reply(error_body("no"), 500)) as server:
        assert calibrate("m", "--url", server.url, "--per-level", "1") == 2
    assert "status 500" in capsys.readouterr().err


def test_a_server_nobody_runs_is_named(capsys):
    assert calibrate("m", "--url", "http://127.0.0.1:9/v1") == 2
    assert "127.0.0.1:9" in capsys.readouterr().err


def test_a_busy_server_is_asked_again():
    calls: dict[str, int] = {}
    right = knows(lambda p: True)

    def script(seen: Seen) -> list[Any]:
        calls[question(seen).id] = calls.get(question(seen).id, 0) + 1
        return BUSY if calls[question(seen).id] == 1 else right(seen)

    assert len(measured("m", script).questions) == NUM
    assert set(calls.values()) == {2}


def test_settings_a_server_refuses_are_said_otherwise():
    right = knows(lambda p: True)

    def script(seen: Seen) -> list[Any]:
        body = json.loads(seen.body)
        if "max_tokens" in body:
            return reply(error_body("'max_tokens' is not supported: use 'max_completion_tokens' instead."), 400)
        if "temperature" in body:
            return reply(error_body("'temperature' does not support 0"), 400)
        assert body["max_completion_tokens"] == 128
        return right(seen)

    assert len(measured("m", script).questions) == NUM


@pytest.fixture
def interruptible():
    """SIGINT as in a terminal: started in the background, a process may have inherited that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_run_keeps_its_answers_and_goes_on_from_there(tmp_path, capsys):
    save, right, times = tmp_path / "answers.json", knows(lambda p: True), iter(range(10**6))

    def script(seen: Seen) -> list[Any]:
        if next(times) == 12:
            os.kill(os.getpid(), signal.SIGINT)
            return [2.0, *right(seen)]
        return right(seen)

    with upstream(script) as server:
        words = ("m", "--url", server.url, "--per-level", "1", "--at-once", "1", "--save", str(save))
        assert calibrate(*words) == 130
        assert f"12 of {NUM} answers are kept in {save}" in capsys.readouterr().err
        assert len(json.loads(save.read_text())["answers"]) == 12
        before = len(server.seen)
        assert calibrate(*words) == 0
        assert len(server.seen) - before == NUM - 12
    assert f"12 of {NUM} answers are in {save}" in capsys.readouterr().err
    answers = json.loads(save.read_text())["answers"]
    assert [a["id"] for a in answers][:12] == [p.id for p in probes(1, np.random.default_rng(0))][:12]
    assert all(a["score"] == 1.0 and a["reply"].endswith(a["expected"]) for a in answers)


def test_answers_of_another_run_are_not_mixed_in(tmp_path, capsys):
    save = tmp_path / "answers.json"
    measured("m", knows(lambda p: True), "--save", str(save))
    with upstream(knows(lambda p: True)) as server:
        assert calibrate("m", "--url", server.url, "--save", str(save), "--seed", "1") == 2
        assert "seed 0" in capsys.readouterr().err
        save.write_text("[]")
        assert calibrate("m", "--url", server.url, "--save", str(save)) == 2
        assert str(save) in capsys.readouterr().err
    assert not server.seen


POOL = """
[[models]]
id = "m/1"
url = "http://127.0.0.1:9/v1"
price_in = 1
price_out = 1
{}
"""


def test_serve_reads_a_profile_where_the_configuration_gives_no_ability(tmp_path):
    found = measured("m/1", knows(lambda p: p.level < 4))
    config = tmp_path / "polyroute.toml"
    config.write_text(POOL.format(""))
    brain = build_brain(load_config(config))
    profile = brain.pool[0].profile
    assert profile.ability == found.ability
    assert profile.ability_std == found.ability_std
    assert brain.measured["m/1"].startswith(f"measured {found.time[:10]} with {NUM} questions")
    config.write_text(POOL.format("ability = { general = 0.5 }\ntokens_per_s = 3"))
    brain = build_brain(load_config(config))
    assert brain.pool[0].profile.ability == {"general": 0.5}
    assert brain.measured == {}


def test_ready_and_the_greeting_say_that_a_profile_is_in_use(tmp_path):
    from polyroute.gateway.build import build
    from polyroute.gateway.server import greeting

    measured("m/1", knows(lambda p: True))
    config = tmp_path / "polyroute.toml"
    config.write_text(POOL.format(""))
    gateway = build(load_config(config))

    async def look() -> dict[str, Any]:
        try:
            return await readiness(gateway)
        finally:
            await gateway.close()

    state: Any = asyncio.run(look())
    assert state["measured"]["m/1"].startswith("measured 20")
    assert "m/1: measured 20" in greeting(gateway, "http://127.0.0.1:1", {})


def test_abilities_measured_against_another_router_are_read_anew(tmp_path):
    found = measured("m/1", knows(lambda p: p.level < 3))
    path = profile_path(tmp_path / ".polyroute" / "profiles", "m/1")
    stale = json.loads(path.read_text()) | {"artefact": "another", "ability": {"elsewhere": 9.0}}
    path.write_text(json.dumps(stale))
    config = tmp_path / "polyroute.toml"
    config.write_text(POOL.format("tokens_per_s = 3"))
    profile = build_brain(load_config(config)).pool[0].profile
    assert profile.ability == found.ability
    assert profile.tokens_per_s == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "polyroute-router"}, "got a file of another kind"),
        ({"version": 2}, "expected version 1, got version 2"),
        ({"model": "other"}, "expected the profile of 'm/1', got one of 'other'"),
        ({"ability": {"math": "high"}}, r"Expected `float`, got `str` - at `\$.ability"),
        ({"ability_std": 0}, "without a finite number"),
        ({"surprise": 1}, "unknown field `surprise`"),
    ],
)
def test_a_profile_that_is_none_stops_the_start_and_says_why(tmp_path, change, told):
    measured("m/1", knows(lambda p: True))
    path = profile_path(tmp_path / ".polyroute" / "profiles", "m/1")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    config = tmp_path / "polyroute.toml"
    config.write_text(POOL.format(""))
    with pytest.raises(ProfileError, match=told) as caught:
        build_brain(load_config(config))
    assert str(path) in str(caught.value)
    path.write_text("{")
    with pytest.raises(ProfileError, match="truncated"):
        read_profile(path, "m/1")


def test_the_lines_printed_are_a_configuration(tmp_path, capsys):
    timings = {"prompt_n": 50, "prompt_ms": 500.0, "predicted_n": 20, "predicted_ms": 1000.0}
    found = measured("m/1", knows(lambda p: True, timings=timings))
    out = capsys.readouterr().out
    pasted = out[out.index("ability = ") :]
    assert pasted.splitlines() == toml_lines(found)
    assert tomllib.loads(pasted) == {"ability": found.ability, "tokens_per_s": 20.0}
    config = tmp_path / "polyroute.toml"
    config.write_text(POOL.format(pasted))
    assert load_config(config).models[0].ability == found.ability


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("qwen2.5-coder-0.6b",), "Did you mean 'qwen2.5-coder-0.5b'?"),
        (("m", "--api-key", "env:X"), "--api-key: expected both, or a model of the configuration"),
        (("m", "--url", "http://127.0.0.1:9", "--api-key", "sk-1"), "--api-key: expected env:NAME, got 'a value (not"),
        (("m", "--url", "http://127.0.0.1:9", "--api-key", "env:POLYROUTE_NO_SUCH"), "env:POLYROUTE_NO_SUCH: expected"),
        (("m", "--url", "127.0.0.1:9"), "expected a URL such as http://"),
        (("m", "--url", "http://127.0.0.1:9", "--per-level", "0"), "--per-level: expected 1 or more, got 0"),
    ],
)
def test_mistakes_are_one_line(words, told, capsys):
    assert calibrate(*words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "sk-1" not in error
    assert error.count("\n") == 1


def test_a_local_model_that_is_not_here_says_how_to_get_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("POLYROUTE_MODELS", str(tmp_path))
    assert calibrate("qwen2.5-coder-0.5b") == 2
    assert "polyroute models pull qwen2.5-coder-0.5b" in capsys.readouterr().err


def answer(tokens: int | None, latency: float, timing: Timing | None = None) -> Answer:
    return Answer(
        id="a-1-0", skill="math", level=1, prompt="", expected="", score=1.0, latency_s=latency,
        completion_tokens=tokens, timing=timing,
    )  # fmt: skip


def test_speed_is_the_servers_own_where_it_tells():
    answers = [answer(10, 9.0, Timing(40, 400.0, 10, 500.0)), answer(30, 9.0, Timing(80, 800.0, 30, 1500.0))]
    found = speeds_of(answers)
    assert (found.generate, found.prefill, found.first_token_s) == (20.0, 100.0, pytest.approx(0.6))


def test_speed_is_the_slope_of_latency_over_tokens_otherwise():
    found = speeds_of([answer(n, 0.25 + n / 40) for n in range(2, 60, 5)])
    assert found.generate == pytest.approx(40)
    assert found.first_token_s == pytest.approx(0.25)


@pytest.mark.parametrize("lengths", [[3] * 20, [1, 90], [], [None] * 9])
def test_speed_is_not_known_from_answers_that_cannot_tell(lengths):
    assert speeds_of([answer(n, 1.0) for n in lengths]).generate is None


def test_hopeless_is_many_failures_without_an_answer_or_half_of_all():
    bad, good = Answer(id="a-1-0", skill="", level=1, prompt="", expected=""), answer(1, 1.0)
    talk: Any = Interview(backend=None, model="")  # type: ignore[arg-type]
    for answers, hopeless in [([bad] * 5, False), ([bad] * 6, True), ([good, *[bad] * 6], False),
                              ([*[good] * 9, *[bad] * 10], False), ([*[good] * 9, *[bad] * 11], True)]:  # fmt: skip
        talk.answers = answers
        assert talk.hopeless(20) is hopeless


@pytest.mark.slow
def test_the_small_local_model_is_measured_here(capsys):
    if not (models_folder(os.environ) / "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf").is_file():
        pytest.skip("the model is not here: polyroute models pull qwen2.5-coder-0.5b")
    pytest.importorskip("xllamacpp")
    assert calibrate("qwen2.5-coder-0.5b", "--per-level", "1") == 0
    found = read_profile(
        profile_path(load_config(None).journal.path.parent / "profiles", "qwen2.5-coder-0.5b"), "qwen2.5-coder-0.5b"
    )
    assert found is not None
    share = np.mean([asked.score for asked in found.questions])
    assert 0.1 < share < 0.9
    assert found.tokens_per_s
    assert found.price_in
    assert found.price_out
    assert found.price_out > found.price_in
