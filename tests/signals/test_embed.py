"""Featurisers by name."""

from __future__ import annotations

import importlib
import importlib.util

import pytest

from polyroute.errors import MissingExtraError, ModelFileError, UnknownNameError
from polyroute.signals import FEATURISERS, featuriser, is_quick
from polyroute.signals.embed import package_file
from polyroute.signals.minilm import MiniLM
from polyroute.signals.static import Static


def test_names_say_what_they_load():
    for name, where in FEATURISERS.items():
        module, _, attribute = where.partition(":")
        assert getattr(importlib.import_module(module), attribute).name == name


def test_one_name_is_loaded_once(static):
    assert featuriser("static-1") is static is featuriser()
    assert static.name == "static-1"


@pytest.mark.parametrize(
    ("text", "quick"),
    [
        ("", True),
        ("x" * 1_000, True),
        ("x" * 1_001, False),
        ("好" * 333, True),
        ("好" * 334, False),
        ("\ud800" * 9, True),
    ],
    ids=["empty", "1,000 bytes", "1,001 bytes", "999 bytes", "1,002 bytes", "surrogates"],
)
def test_texts_for_the_event_loop(static, text, quick):
    assert is_quick(static, text) is quick


def test_a_transformer_is_never_quick():
    assert not hasattr(MiniLM, "is_quick")
    assert not is_quick(MiniLM.__new__(MiniLM), "a")


def test_unknown_names_suggest():
    with pytest.raises(UnknownNameError, match="Did you mean 'static-1'"):
        featuriser("static")


@pytest.mark.parametrize(("made", "extra"), [(Static, "embed"), (MiniLM, "minilm")])
def test_a_missing_package_names_its_extra(monkeypatch, made, extra):
    pytest.importorskip("tokenizers")
    if made is MiniLM:
        pytest.importorskip("onnxruntime")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=rf"polyroute\[{extra}\]"):
        made()


def test_a_package_without_the_file_is_named():
    with pytest.raises(ModelFileError, match=r"json: expected a file nothing\.bin"):
        package_file("json", "nothing.bin", "embed")


def test_a_package_file_is_found_without_importing():
    assert package_file("json", "decoder.py", "embed").is_file()
