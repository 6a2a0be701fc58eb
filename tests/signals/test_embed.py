"""Featurisers by name."""

from __future__ import annotations

import importlib
import importlib.util

import pytest

from polyroute.errors import MissingExtraError, ModelFileError, UnknownNameError
from polyroute.signals import FEATURISERS, featuriser
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
