"""The catalogue: complete, adds up, and its mistakes are told with their place."""

from __future__ import annotations

import re

import pytest

from polyroute.data.catalogue import catalogue, local_price, read_catalogue
from polyroute.errors import ConfigError, UnknownNameError

ENTRY = """
usd_per_core_hour = 0.036
[[local]]
id = "toy"
title = "Toy"
file = "toy.gguf"
bytes = 5
sha256 = "00"
licence = "MIT"
licence_url = "https://example.org"
context = 8192
params_b = 0.1
prefill_tokens_per_s = 100
tokens_per_s = 10
memory_mb = 1
offers = ["json"]
parts = [
  { package = "p1", version = "1", member = "p1/data/a", bytes = 3, sha256 = "00" },
  { package = "p2", version = "1", member = "p2/data/b", bytes = 2, sha256 = "00" },
]
"""


def test_a_token_costs_the_time_it_takes():
    # 0.036 USD an hour is 1e-5 USD a second: a million tokens at 100 a second take 1e4 s.
    assert local_price(100, 10, 0.036) == pytest.approx((0.1, 1.0))
    assert local_price(100, 10, 0.036, threads=2) == pytest.approx((0.2, 2.0))
    with pytest.raises(ConfigError, match="above 0"):
        local_price(0, 10)


def test_an_entry_becomes_a_candidate_with_its_price():
    model = read_catalogue(ENTRY).local_model("toy")
    assert (model.price_in, model.price_out) == pytest.approx((0.1, 1.0))
    profile = model.candidate(context=4096).profile
    assert (profile.context, profile.tokens_per_s, profile.offers) == (4096, 10, {"json"})
    assert model.candidate().profile.context == 8192
    assert model.candidate(context=100_000).profile.context == 8192


def test_a_price_in_the_file_wins_over_the_formula():
    model = read_catalogue(ENTRY.replace("params_b", "price_out = 7.5\nparams_b")).local_model("toy")
    assert (model.price_in, model.price_out) == pytest.approx((0.1, 7.5))


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("bytes = 5", "bytes = 6", ConfigError, r"local\[0\]\.parts: expected 6 bytes together, got 5"),
        ('"toy.gguf"', '"../toy.gguf"', ConfigError, r"local\[0\]\.file: expected a file name without a folder"),
        ("title", "titel", UnknownNameError, r"local\[0\].*'titel'.*Did you mean 'title'"),
        ("memory_mb = 1\n", "", ConfigError, r"local\[0\]: expected all fields .*memory_mb"),
        ("tokens_per_s = 10\n", "", ConfigError, r"local\[0\]\.tokens_per_s: expected tokens per second"),
        ('member = "p2/data/b"', 'membre = "p2/data/b"', UnknownNameError, r"local\[0\]\.parts\[1\].*'membre'"),
        ("[[local]]", "[[local", ConfigError, "expected TOML"),
    ],
)
def test_a_mistake_is_told_with_its_place(old, new, error, message):
    assert old in ENTRY
    with pytest.raises(error, match=message):
        read_catalogue(ENTRY.replace(old, new))


def test_an_id_twice_is_an_error():
    again = ENTRY + ENTRY.replace("usd_per_core_hour = 0.036", "")
    with pytest.raises(ConfigError, match="each id once"):
        read_catalogue(again)


def test_the_shipped_catalogue_is_whole():
    shipped = catalogue()
    for model in shipped.local.values():
        assert re.fullmatch("[0-9a-f]{64}", model.sha256)
        assert sum(part.bytes for part in model.parts) == model.bytes
        assert all(re.fullmatch("[0-9a-f]{64}", part.sha256) for part in model.parts)
        assert model.url.startswith("https://")
        assert model.licence
        assert 0 < model.price_in < model.price_out
    assert len(shipped.hosted) > 10
    assert all(m.price_in >= 0 and re.fullmatch(r"20\d\d-\d\d", m.price_date) for m in shipped.hosted.values())


def test_the_embedded_pool_has_a_price_gap():
    cheap, dear = catalogue().embedded()
    assert (cheap.id, dear.id) == ("qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b")
    assert dear.price_out == pytest.approx(2 * cheap.price_out)


def test_a_profile_is_found_by_any_name_of_a_model():
    shipped = catalogue()
    assert shipped.profile("qwen2.5-coder-0.5b").price_out == shipped.local_model("qwen2.5-coder-0.5b").price_out
    hosted = shipped.profile("meta/llama-3.1-8b-instruct")
    same = shipped.profile("llama-3.1-8b-instruct")
    assert (hosted.price_in, hosted.context) == (same.price_in, same.context) == (0.2, 131072)
    assert shipped.profile("nobody") is None


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(UnknownNameError, match=r"Did you mean 'qwen2\.5-coder-0\.5b'"):
        catalogue().local_model("qwen-coder-0.5b")
