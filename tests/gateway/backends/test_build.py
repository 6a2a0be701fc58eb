"""A configuration becomes backends, and nothing starts by that."""

from __future__ import annotations

import asyncio

import pyarrow
import pyarrow.parquet
import pytest

from polyroute.errors import ConfigError, UnknownNameError
from polyroute.gateway.backends.build import build_backends
from polyroute.gateway.backends.http import HttpBackend
from polyroute.gateway.backends.local import LocalBackend
from polyroute.gateway.backends.replay import ReplayBackend
from polyroute.gateway.config import load_config

ROW = {"query_id": "q1", "prompt": "q", "model": "strong", "response": "a", "input_tokens": 1, "output_tokens": 1}


def built(folder, text: str, environment=None):
    (folder / "polyroute.toml").write_text(text)
    config = load_config(folder / "polyroute.toml", environment=environment or {"KEY": "secret"})
    return build_backends(config, object(), models=folder / "models", logs=folder / "logs")


def test_each_entry_becomes_its_backend(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROW]), tmp_path / "answers.parquet")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/model.gguf").touch()
    backends = built(
        tmp_path,
        """
        [local]
        threads = 2
        context = 2048
        slots = 3
        [[models]]
        id = "remote"
        url = "http://127.0.0.1:1/v1"
        api_key = "env:KEY"
        price_in = 1.0
        price_out = 1.0
        [[models]]
        id = "small"
        backend = "local"
        file = "gemma-3-270m"
        [[models]]
        id = "own"
        backend = "local"
        file = "mine/model.gguf"
        context = 1024
        price_in = 1.0
        price_out = 1.0
        [[models]]
        id = "strong"
        backend = "replay"
        table = "answers.parquet"
        price_in = 1.0
        price_out = 1.0
        """,
    )
    assert list(backends) == ["remote", "small", "own", "strong"]
    remote, small, own, recorded = backends.values()
    assert isinstance(remote, HttpBackend)
    assert remote.url == "http://127.0.0.1:1/v1"
    assert isinstance(small, LocalBackend)
    assert small.file == tmp_path / "models" / "gemma-3-270m-q4_k_m.gguf"
    assert (small.settings.threads, small.settings.context, small.settings.slots) == (2, 2048, 3)
    assert "assistant:" in (small.settings.chat_template or "")
    assert isinstance(own, LocalBackend)
    assert (own.settings.context, own.settings.chat_template) == (1024, None)
    assert own.file == tmp_path / "mine/model.gguf"
    assert isinstance(recorded, ReplayBackend)
    assert (recorded.name, list(recorded.answers)) == ("strong", ["q"])
    states = [asyncio.run(backend.status()) for backend in backends.values()]
    assert [status.state for status in states] == ["ready", "down", "cold", "ready"]
    assert states[1].detail.endswith("run: polyroute models pull gemma-3-270m")
    assert not (tmp_path / "logs").exists()
    for backend in backends.values():
        asyncio.run(backend.close())


def test_without_a_configuration_the_embedded_pool_is_built(tmp_path):
    backends = build_backends(load_config(None), object(), models=tmp_path, logs=tmp_path)
    assert list(backends) == ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]


def test_what_cannot_be_built_is_told(tmp_path):
    entry = '[[models]]\nid = "x"\nbackend = "{}"\n{}\nprice_in = 1.0\nprice_out = 1.0\n'
    with pytest.raises(UnknownNameError, match="Did you mean"):
        built(tmp_path, entry.format("local", 'file = "gemma-270m"'))
    with pytest.raises(ConfigError, match="table"):
        built(tmp_path, entry.format("replay", 'table = "absent.parquet"'))
