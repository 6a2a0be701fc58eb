"""Browsers: which pages may call, and what they may read. Checked as a browser checks it, by the headers."""

from __future__ import annotations

import pytest

from polyroute.errors import ConfigError
from polyroute.gateway.config import ServerConfig, load_config
from polyroute.gateway.config_faults import warnings
from polyroute.gateway.scripted import JSON, chat_body, reply
from tests.gateway.live import serving
from tests.gateway.test_app import as_asked

CHAT = "/v1/chat/completions"
PAGE = "http://localhost:5173"
QUESTION = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


def strict(seen):
    """A backend that allows a page of its own."""
    if b"stream" in seen.body:
        return as_asked(seen)
    return reply(chat_body(), headers=[JSON, (b"access-control-allow-origin", b"https://its.own")])


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    head = f'[server]\nallow_origins = ["{PAGE}", "app://Obsidian.md"]\nclient_keys = ["env:ORIGINS_KEY"]\n'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORIGINS_KEY", "k")
        with serving(tmp_path_factory.mktemp("origins"), {"only": strict}, head=head) as it:
            yield it


@pytest.mark.parametrize(("path", "methods"), [(CHAT, "POST"), ("/v1/models", "GET"), ("/v1/models/only", "GET")])
def test_a_browser_that_asks_first_is_told_yes_without_a_key(live, path, methods):
    answer, body = live.call("OPTIONS", path, headers=QUESTION)
    assert (answer.status, body) == (204, b"")
    assert answer.getheader("access-control-allow-origin") == PAGE
    assert answer.getheader("access-control-allow-methods") == methods
    assert answer.getheader("access-control-allow-headers") == QUESTION["access-control-request-headers"]
    assert answer.getheader("vary") == "Origin"


@pytest.mark.parametrize("origin", [PAGE, "app://obsidian.md"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_page_may_read_answers_and_errors(live, origin, stream):
    for key, status in (("k", 200), ("wrong", 401)):
        headers = {"origin": origin, "authorization": f"Bearer {key}"}
        answer, _ = live.chat("only", headers=headers, stream=stream)
        assert answer.status == status
        assert answer.headers.get_all("access-control-allow-origin") == [origin]  # one, and not the backend's
        assert answer.getheader("access-control-expose-headers") == "*"
    for path in ("/no/such", CHAT):
        answer, _ = live.call("GET", path, headers={"origin": origin})
        assert (answer.status >= 400, answer.getheader("access-control-allow-origin")) == (True, origin)


@pytest.mark.parametrize("origin", ["https://evil.example", PAGE + "0", "null", ""])
def test_another_page_may_read_nothing(live, origin):
    for method, headers in (("OPTIONS", QUESTION), ("POST", {"authorization": "Bearer k"})):
        answer, _ = live.call(method, CHAT, {"model": "only", "messages": []}, {**headers, "origin": origin})
        assert answer.getheader("vary") == "Origin"
        assert "access-control-allow-origin" not in answer.headers


def test_any_page_where_the_operator_says_so(tmp_path):
    with serving(tmp_path, {"only": as_asked}, head='[server]\nallow_origins = ["*"]\n') as live:
        answer, _ = live.chat("only", headers={"origin": "https://any.example"})
        assert answer.getheader("access-control-allow-origin") == "*"
        asked = {**QUESTION, "access-control-request-private-network": "true"}
        answer, _ = live.call("OPTIONS", CHAT, headers=asked)
        assert answer.getheader("access-control-allow-private-network") == "true"


def test_without_a_word_from_the_operator_nothing_is_allowed(tmp_path):
    with serving(tmp_path, {"only": strict}) as live:
        answer, _ = live.call("OPTIONS", CHAT, headers=QUESTION)
        assert (answer.status, answer.getheader("allow")) == (405, "POST")
        answer, _ = live.chat("only", headers={"origin": PAGE})
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", ["https://a.example/", "a.example", "https://a.example/chat", "", "*.example"])
def test_what_is_no_origin_is_a_fault_of_the_file(tmp_path, origin):
    path = tmp_path / "polyroute.toml"
    path.write_text(f'[server]\nallow_origins = ["*", "{origin}"]\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"server.allow_origins\[1\]"):
        load_config(path)


def test_any_page_without_keys_is_warned_of():
    config = load_config(None)
    object.__setattr__(config, "server", ServerConfig(allow_origins=("*",)))
    assert [text for text in warnings(config) if "allow_origins" in text]
